//! What clients say of themselves, and what others may know of them: heartbeats, leaving, member lists, the check of a filter,
//! connections, questions to a client (codes 34, 35, 38, 46, 203, 204, 307).
//!
//! Owns: the judgement of a heartbeat, and heartbeats that wait for topics.
//! Promises: a heartbeat is answered when the retry topics of its groups exist, and its groups are known before that, so that the
//! first look of a new member is complete.
//! Does not know: how members are told of each other.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use dassie_rocketmq::body::{
    CheckClient, ClientConnection, Consumer, ConsumerConnections, ConsumerList, Heartbeat,
    ProducerConnections, Subscription as Wish, from_json, to_json,
};
use dassie_rocketmq::header::{
    GetConsumerList, GetConsumerRunningInfo, GetProducers, HeartbeatAnswer, UnregisterClient,
};
use dassie_rocketmq::message::{RETRY_PREFIX, TagFilter, check_group};
use dassie_rocketmq::{Command, RequestCode, ResponseCode};

use super::group::{Manner, Member, Notice, Push, Subscription, View};
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Op, Refusal};
use crate::security::{Action, Resource, authorize};

/// The only kind of filter so far.
pub(super) const BY_TAG: &str = "TAG";
/// Client ids on one connection. Real ones have one, or one for each producer and consumer of a process.
const CLIENTS_MAX: usize = 1_024;
/// Read and write, in RocketMQ's bits.
const READ_WRITE: u32 = 6;

/// Heartbeats, and other requests of several steps, that wait for all of them.
#[derive(Debug, Default)]
pub(super) struct Joins {
    waiting: HashMap<u64, Join>,
    last: u64,
    /// Client ids that this connection spoke for.
    clients: std::collections::BTreeSet<String>,
    /// Producer groups that it answers for.
    producers: std::collections::BTreeSet<String>,
}

impl Joins {
    /// This connection says that it is this client; false: it says so of too many.
    pub(super) fn speaks_for(&mut self, client: &str) -> bool {
        if self.clients.contains(client) {
            return true;
        }
        let has_room = self.clients.len() < CLIENTS_MAX && !client.is_empty() && client.len() <= 255;
        has_room && self.clients.insert(client.to_owned())
    }
}

#[derive(Debug)]
struct Join {
    asked: Asked,
    left: usize,
    failed: Option<Refusal>,
}

/// HEART_BEAT.
pub(super) fn on_heartbeat(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let heartbeat = Heartbeat::from_json(command.body)?;
    let clients = &mut session.joins.clients;
    if heartbeat.client_id.is_empty() || heartbeat.client_id.len() > 255 {
        return Err(refused(ResponseCode::InvalidParameter, "a client id has 1 to 255 bytes"));
    }
    if !clients.contains(&heartbeat.client_id) {
        if clients.len() >= CLIENTS_MAX {
            let text = format!("a connection speaks for at most {CLIENTS_MAX} clients");
            return Err(refused(ResponseCode::SystemBusy, text));
        }
        clients.insert(heartbeat.client_id.clone());
    }
    // Judged as a whole first: half a heartbeat would be a group that consumes half.
    let mut groups = Vec::with_capacity(heartbeat.consumer_data_set.len());
    for consumer in &heartbeat.consumer_data_set {
        groups.push((consumer, judge(session, consumer)?));
    }
    for producer in &heartbeat.producer_data_set {
        let group = &producer.group_name;
        check_group(group).map_err(|error| {
            refused(ResponseCode::InvalidParameter, format!("producer group [{group}]: {error}"))
        })?;
    }
    (session.member.language, session.member.version) = (command.head.language, command.head.version);
    for producer in &heartbeat.producer_data_set {
        session.front.groups.produce(&producer.group_name, &heartbeat.client_id, &session.member);
        answer_for(session, &producer.group_name, true)?;
    }
    let mut missing = Vec::new();
    for (consumer, topics) in groups {
        let group = &consumer.group_name;
        let manner = Manner {
            consume_type: consumer.consume_type,
            message_model: consumer.message_model,
            consume_from_where: consumer.consume_from_where,
        };
        session.front.groups.join(group, &heartbeat.client_id, &session.member, manner, topics);
        let retry = format!("{RETRY_PREFIX}{group}");
        if session.topology.topic(&retry).is_none() {
            missing.push(retry);
        }
    }
    if missing.is_empty() {
        session.answer(asked, &HeartbeatAnswer::default(), &[]);
        return Ok(());
    }
    let join = wait_for(session, asked, missing.len());
    for retry in missing {
        let op = Op::CreateTopic {
            topic: retry.as_str().into(),
            write_queues: 1,
            read_queues: 1,
            permission: READ_WRITE,
        };
        session.ask(Action::Configure, Resource::Topic(&retry), op, asked, Wait::Join(join))?;
    }
    Ok(())
}

/// An answer that waits for so many steps, each a [`Wait::Join`].
pub(super) fn wait_for(session: &mut Session, asked: Asked, steps: usize) -> u64 {
    session.joins.last += 1;
    let join = session.joins.last;
    session.joins.waiting.insert(join, Join { asked, left: steps, failed: None });
    join
}

/// This connection is asked about half messages of a producer group from now on, or not any more.
fn answer_for(session: &mut Session, group: &str, answers: bool) -> Result<(), Refused> {
    let known = session.joins.producers.contains(group);
    if known == answers || check_group(group).is_err() {
        return Ok(());
    }
    if answers {
        if session.joins.producers.len() >= CLIENTS_MAX {
            let text = format!("a connection speaks for at most {CLIENTS_MAX} producer groups");
            return Err(refused(ResponseCode::SystemBusy, text));
        }
        session.joins.producers.insert(group.to_owned());
    } else {
        session.joins.producers.remove(group);
    }
    session.tell(Action::Write, Resource::Own, Op::AnswerFor { group: group.into(), answers })?;
    Ok(())
}

fn judge(session: &Session, consumer: &Consumer) -> Result<Vec<(String, Subscription)>, Refused> {
    let group = &consumer.group_name;
    check_group(group).map_err(|error| {
        refused(ResponseCode::InvalidParameter, format!("consumer group [{group}]: {error}"))
    })?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    authorize(&session.principal, Action::Configure, Resource::Topic(&format!("{RETRY_PREFIX}{group}")))?;
    let topics = consumer.subscription_data_set.iter();
    topics.map(|wish| Ok((wish.topic.clone(), subscription(wish)?))).collect()
}

fn subscription(wish: &Wish) -> Result<Subscription, Refused> {
    let tags = match wish.expression_type.as_str() {
        BY_TAG => Some(tags(&wish.sub_string)?),
        _ => None,
    };
    Ok(Subscription { version: wish.sub_version, tags, wish: wish.clone() })
}

/// The hashes that a tag expression lets through; none: all.
pub(super) fn tags(expression: &str) -> Result<Arc<[u32]>, Refused> {
    let filter = TagFilter::parse(expression).map_err(|error| {
        refused(ResponseCode::SubscriptionParseFailed, format!("[{expression}]: {error}"))
    })?;
    match &filter {
        TagFilter::All => Ok(Arc::from([])),
        TagFilter::Tags { hashes, .. } if hashes.is_empty() => {
            let text = format!("[{expression}]: the expression names no tag");
            Err(refused(ResponseCode::SubscriptionParseFailed, text))
        }
        TagFilter::Tags { hashes, .. } => Ok(hashes.iter().map(|hash| hash.cast_unsigned()).collect()),
    }
}

/// One step that an answer waited for is done, or can not be.
pub(super) fn on_joined(session: &mut Session, join: u64, failed: Option<Refusal>) {
    let Some(waiting) = session.joins.waiting.get_mut(&join) else { return };
    waiting.left -= 1;
    waiting.failed = waiting.failed.take().or(failed);
    if waiting.left > 0 {
        return;
    }
    let Some(Join { asked, failed, .. }) = session.joins.waiting.remove(&join) else { return };
    match failed {
        None => session.answer(asked, &HeartbeatAnswer::default(), &[]),
        Some(refusal) => session.refuse(asked, refusal.into()),
    }
}

/// A client on its way out of a group.
#[derive(Debug)]
pub(super) struct Leaving {
    client: String,
    group: Option<String>,
}

/// UNREGISTER_CLIENT.
pub(super) fn on_unregister(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let header: UnregisterClient<'_> = command.header()?;
    if let Some(group) = header.producer_group.filter(|group| !group.is_empty()) {
        session.front.groups.stop_producing(group, header.client_id, session.member.connection);
    }
    let group = header.consumer_group.filter(|group| !group.is_empty()).map(str::to_owned);
    if let Some(producers) = header.producer_group {
        answer_for(session, producers, false)?;
    }
    session.leave(asked, Leaving { client: header.client_id.to_owned(), group });
    Ok(())
}

/// Nothing that it committed is on its way any more.
pub(super) fn on_left(session: &mut Session, asked: Asked, leaving: &Leaving) {
    if let Some(group) = &leaving.group {
        session.front.groups.leave(group, &leaving.client, session.member.connection);
    }
    session.answer(asked, &(), &[]);
}

/// GET_CONSUMER_LIST_BY_GROUP.
pub(super) fn on_list(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GetConsumerList { consumer_group: group } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let consumer_id_list = session.front.groups.clients(group);
    if consumer_id_list.is_empty() {
        return Err(refused(ResponseCode::SystemError, format!("no consumer for this group, {group}")));
    }
    session.answer(asked, &(), &to_json(&ConsumerList { consumer_id_list }));
    Ok(())
}

/// GET_CONSUMER_CONNECTION_LIST.
pub(super) fn on_consumers(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let GetConsumerList { consumer_group: group } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let Some(View { members, manner: Some(manner), topics }) = session.front.groups.consumers(group) else {
        let text = format!("the consumer group[{group}] not online");
        return Err(refused(ResponseCode::ConsumerNotOnline, text));
    };
    let body = ConsumerConnections {
        connection_set: members.into_iter().map(connection).collect(),
        subscription_table: topics.into_iter().map(|s| (s.wish.topic.clone(), s.wish)).collect(),
        consume_type: manner.consume_type,
        message_model: manner.message_model,
        consume_from_where: manner.consume_from_where,
    };
    session.answer(asked, &(), &to_json(&body));
    Ok(())
}

/// GET_PRODUCER_CONNECTION_LIST.
pub(super) fn on_producers(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let GetProducers { producer_group: group } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let Some(View { members, .. }) = session.front.groups.producers(group) else {
        let text = format!("the producer group[{group}] not exist");
        return Err(refused(ResponseCode::SystemError, text));
    };
    let connection_set = members.into_iter().map(connection).collect();
    session.answer(asked, &(), &to_json(&ProducerConnections { connection_set }));
    Ok(())
}

fn connection((client_id, member): (String, Member)) -> ClientConnection {
    ClientConnection {
        client_id,
        client_addr: member.address.to_string(),
        language: member.language.name().to_owned(),
        version: member.version,
    }
}

/// GET_CONSUMER_RUNNING_INFO: the client is asked, and its answer passed on unread.
pub(super) fn on_running_info(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let header: GetConsumerRunningInfo<'_> = command.header()?;
    let (group, client) = (header.consumer_group, header.client_id);
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let member = session
        .front
        .groups
        .consumers(group)
        .and_then(|view| view.members.into_iter().find(|(id, _)| id == client).map(|(_, member)| member));
    let Some(member) = member else {
        let text = format!("The Consumer <{group}> <{client}> not online");
        return Err(refused(ResponseCode::SystemError, text));
    };
    let fields = vec![
        ("consumerGroup", group.to_owned()),
        ("clientId", client.to_owned()),
        ("jstackEnable", header.jstack_enable.unwrap_or(false).to_string()),
    ];
    let back = Some(session.will_answer(asked));
    let code = RequestCode::GetConsumerRunningInfo;
    member.tell(Notice::Push(Push { code, fields, body: Bytes::new(), back }));
    Ok(())
}

/// CHECK_CLIENT_CONFIG: a wrong filter fails the client's start instead of every pull.
pub(super) fn on_check(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let check: CheckClient = from_json(command.body)?;
    let wish = &check.subscription_data;
    if wish.expression_type != BY_TAG {
        return Err(no_such_filter(&wish.expression_type));
    }
    tags(&wish.sub_string)?;
    session.answer(asked, &(), &[]);
    Ok(())
}

/// Apache's words while its own setting for SQL92 is off.
pub(super) fn no_such_filter(kind: &str) -> Refused {
    let text = format!("The broker does not support consumer to filter message by {kind}");
    refused(ResponseCode::SystemError, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_rocketmq::message::java_hash;

    #[test]
    fn an_expression_becomes_the_hashes_of_its_tags() {
        assert_eq!(&*tags("*").unwrap(), [0_u32; 0]);
        assert_eq!(&*tags("").unwrap(), [0_u32; 0]);
        let mut expected = [java_hash("TagA").cast_unsigned(), java_hash("TagB").cast_unsigned()];
        let mut found = tags("TagA || TagB").unwrap().to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(tags("||").unwrap_err().code, ResponseCode::SubscriptionParseFailed);
        assert_eq!(tags(" ").unwrap_err().code, ResponseCode::SubscriptionParseFailed);
    }
}
