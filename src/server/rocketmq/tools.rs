//! What else tools ask: progress in time, what consumers hold and subscribe to, one message for one consumer, copies of offsets,
//! producers, a broker's permission to be written to (codes 205, 223, 303, 309, 311-315, 319, 327, 328, 343, 345).
//!
//! Owns: those requests, and the answers of several clients to one question. Promises: what is asked of clients is passed on as
//! they say it; a permission that was taken stays taken over a restart, until it is given back.
//! Does not know: where offsets are kept, how clients are reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dassie_rocketmq::body::{
    ConsumeTimeSpan, GroupSubscription, MessageQueue, OffsetTable, ProducerInfo, ProducerTable,
    QueueTimeSpan, TopicList, to_json,
};
use dassie_rocketmq::header::{
    AddWritePermissionAnswer, BrokerByName, BrokerStats, ByGroup, CloneOffsets, ConsumeMessageDirectly,
    GetConsumerStatus, GroupAndTopic, WipeWritePermissionAnswer,
};
use dassie_rocketmq::message::{MessageId, check_group};
use dassie_rocketmq::{Command, RequestCode, ResponseCode};

use super::back;
use super::group::{Answer, Member, Notice, Push};
use super::offsets::signed;
use super::refuse::{Refused, name_refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Op, QueueStats, Reply};
use crate::broker::topology::Topology;
use crate::security::{Action, Resource, authorize};

/// Where it stands that a broker's topics may not be written to.
const WIPED: &str = "rocketmq.wiped";

// ---- a broker's permission to be written to

/// Do routes of this broker name no permission to write?
pub(super) fn is_wiped(topology: &Topology, broker: &str) -> bool {
    topology.setting_count() > 0 && topology.setting(WIPED, broker).is_some()
}

/// WIPE_WRITE_PERM_OF_BROKER and ADD_WRITE_PERM_OF_BROKER: producers leave the broker with their next look at a route, or come back.
pub(super) fn on_permission(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
    wipe: bool,
) -> Result<(), Refused> {
    let BrokerByName { broker_name } = command.header()?;
    let ours = broker_name == session.front.settings.broker_name;
    let topics = if ours { session.topology.topics().count() } else { 0 };
    let count = i32::try_from(topics).unwrap_or(i32::MAX);
    if !ours || is_wiped(&session.topology, broker_name) == wipe {
        authorize(&session.principal, Action::Configure, Resource::Topic(broker_name))?;
        answer_permission(session, asked, wipe, count);
        return Ok(());
    }
    let value = wipe.then(|| Bytes::from_static(b"true"));
    let op = Op::PutSetting { space: WIPED.into(), name: broker_name.into(), value };
    let wait = Wait::Permission { wipe, count };
    session.ask(Action::Configure, Resource::Topic(broker_name), op, asked, wait)?;
    Ok(())
}

/// It is done.
pub(super) fn answer_permission(session: &mut Session, asked: Asked, wipe: bool, count: i32) {
    if wipe {
        session.answer(asked, &WipeWritePermissionAnswer { wipe_topic_count: count }, &[]);
    } else {
        session.answer(asked, &AddWritePermissionAnswer { add_topic_count: count }, &[]);
    }
}

// ---- figures of groups

/// What is done with the shard's figures.
#[derive(Debug)]
pub(super) enum Figured {
    /// How far a group is, in time.
    Span,
    /// The topics of a group.
    Topics,
    /// They are given to another group: this one, but only in topics that these members want, if there are any.
    Clone { to: String, only: Option<Vec<String>> },
}

/// QUERY_CONSUME_TIME_SPAN.
pub(super) fn on_span(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GroupAndTopic { group, topic } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let op = Op::TopicStats { topic: Some(topic.into()), group: Some(group.into()) };
    session.ask(Action::Read, Resource::Topic(topic), op, asked, Wait::Figured(Figured::Span))?;
    Ok(())
}

/// QUERY_TOPICS_BY_CONSUMER.
pub(super) fn on_topics(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ByGroup { group } = command.header()?;
    let op = Op::TopicStats { topic: None, group: Some(group.into()) };
    session.ask(Action::Read, Resource::Group(group), op, asked, Wait::Figured(Figured::Topics))?;
    Ok(())
}

/// CLONE_GROUP_OFFSET.
pub(super) fn on_clone(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let CloneOffsets { from, to, topic, offline } = command.header()?;
    check_group(to).map_err(|error| name_refused("group", to, error))?;
    authorize(&session.principal, Action::Configure, Resource::Group(to))?;
    let topic = topic.filter(|topic| !topic.is_empty());
    if let Some(topic) = topic {
        authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    }
    let wanted = || session.front.groups.consumers(from).map(|view| view.topics);
    let only = (offline != Some(true)).then(wanted).flatten().filter(|topics| !topics.is_empty());
    let only = only.map(|topics| topics.into_iter().map(|s| s.wish.topic).collect());
    let op = Op::TopicStats { topic: topic.map(Into::into), group: Some(from.into()) };
    let wait = Wait::Figured(Figured::Clone { to: to.to_owned(), only });
    session.ask(Action::Read, Resource::Group(from), op, asked, wait)?;
    Ok(())
}

/// Answers any of those three.
pub(super) fn answer(
    session: &mut Session,
    asked: Asked,
    figured: Figured,
    reply: Reply,
) -> Result<(), Refused> {
    let Reply::Stats(topics) = reply else {
        return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"));
    };
    match figured {
        Figured::Topics => {
            let topic_list = topics.iter().map(|(topic, _)| topic.to_string()).collect();
            session.answer(asked, &(), &to_json(&TopicList { topic_list, broker_addr: None }));
        }
        Figured::Span => {
            let (broker, now) = (&session.front.settings.broker_name, session.front.clock.wall_ms());
            let spans = topics.iter().flat_map(|(topic, stats)| {
                (0..).zip(stats).map(move |(id, stats)| {
                    let queue =
                        MessageQueue { topic: topic.to_string(), broker_name: broker.clone(), queue_id: id };
                    span(queue, stats, now)
                })
            });
            let body = ConsumeTimeSpan { consume_time_span_set: spans.collect() };
            session.answer(asked, &(), &to_json(&body));
        }
        Figured::Clone { to, only } => {
            return give(session, asked, &to, only.as_deref(), &topics);
        }
    }
    Ok(())
}

fn span(message_queue: MessageQueue, stats: &QueueStats, now: u64) -> QueueTimeSpan {
    let time = |time: u64| if time == 0 { -1 } else { signed(time) };
    let behind = stats.group.unwrap_or(0) < stats.max && stats.waiting > 0;
    QueueTimeSpan {
        message_queue,
        min_time_stamp: time(stats.earliest),
        max_time_stamp: time(stats.latest),
        consume_time_stamp: time(if stats.reached > 0 { stats.reached } else { stats.earliest }),
        delay_time: if behind { signed(now.saturating_sub(stats.waiting)) } else { 0 },
    }
}

/// Stores each offset of one group as another's. The last one is answered: they are durable in their order.
fn give(
    session: &mut Session,
    asked: Asked,
    to: &str,
    only: Option<&[String]>,
    topics: &[(Arc<str>, Vec<QueueStats>)],
) -> Result<(), Refused> {
    let wanted =
        topics.iter().filter(|(topic, _)| only.is_none_or(|only| only.iter().any(|t| **t == **topic)));
    let offsets = wanted.flat_map(|(topic, stats)| {
        (0..).zip(stats).filter_map(move |(queue_id, stats)| Some((topic, queue_id, stats.group?)))
    });
    let mut offsets = offsets.peekable();
    if offsets.peek().is_none() {
        session.answer(asked, &(), &[]);
        return Ok(());
    }
    while let Some((topic, queue_id, offset)) = offsets.next() {
        let last = offsets.peek().is_none();
        let (group, topic) = (Arc::from(to), Arc::clone(topic));
        let op = Op::CommitOffset { group, topic, queue_id, offset, wait: last };
        if last {
            session.ask(Action::Configure, Resource::Group(to), op, asked, Wait::Commit)?;
        } else {
            session.tell(Action::Configure, Resource::Group(to), op)?;
        }
    }
    Ok(())
}

/// VIEW_BROKER_STATS_DATA: nothing is counted by minute, hour and day here, and Apache has words for that.
pub(super) fn on_stats(command: &Command<'_>) -> Result<(), Refused> {
    let BrokerStats { name, key } = command.header()?;
    Err(refused(ResponseCode::SystemError, format!("The stats <{name}> <{key}> not exist")))
}

/// GET_UNIT_TOPIC_LIST and its two kin: units are sites of one vendor's, no topic here belongs to one.
pub(super) fn on_unit_topics(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    session.answer(asked, &(), &to_json(&TopicList::default()));
    Ok(())
}

/// GET_NAMESRV_CONFIG: what Apache's tools look for, under Apache's names.
pub(super) fn on_name_server_config(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    session.answer(asked, &(), b"orderMessageEnable=true\nreturnOrderTopicConfigToBroker=true\n");
    Ok(())
}

// ---- groups and their clients

/// QUERY_SUBSCRIPTION_BY_CONSUMER.
pub(super) fn on_subscription(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let GroupAndTopic { group, topic } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let topics = session.front.groups.consumers(group).map(|view| view.topics).unwrap_or_default();
    let subscription_data = topics.into_iter().map(|s| s.wish).find(|wish| wish.topic == topic);
    let body = GroupSubscription { topic: topic.to_owned(), group: group.to_owned(), subscription_data };
    session.answer(asked, &(), &to_json(&body));
    Ok(())
}

/// GET_ALL_PRODUCER_INFO.
pub(super) fn on_producers(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let now = signed(session.front.clock.wall_ms());
    let groups = &session.front.groups;
    let mut data = BTreeMap::new();
    for group in groups.all_names().1 {
        let Some(view) = groups.producers(&group) else { continue };
        if authorize(&session.principal, Action::Read, Resource::Group(&group)).is_err() {
            continue;
        }
        let info = |(client_id, member): (String, Member)| ProducerInfo {
            client_id,
            remote_ip: member.address.to_string(),
            language: member.language.name().to_owned(),
            version: member.version,
            // It is connected: that is what the time is asked for.
            last_update_timestamp: now,
        };
        data.insert(group.to_string(), view.members.into_iter().map(info).collect());
    }
    session.answer(asked, &(), &to_json(&ProducerTable { data }));
    Ok(())
}

fn member(session: &Session, group: &str, client: &str) -> Result<Member, Refused> {
    let view = session.front.groups.consumers(group);
    let found = view.and_then(|view| view.members.into_iter().find(|(id, _)| id == client));
    found.map(|(_, member)| member).ok_or_else(|| {
        refused(ResponseCode::SystemError, format!("The Consumer <{group}> <{client}> not online"))
    })
}

/// A message for one consumer, while it is looked for.
#[derive(Debug)]
pub(super) struct Direct {
    group: String,
    client: String,
    id: String,
}

/// CONSUME_MESSAGE_DIRECTLY: one client is told to consume one message now, and its answer is passed on unread.
pub(super) fn on_direct(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: ConsumeMessageDirectly<'_> = command.header()?;
    let (group, client) = (header.consumer_group, header.client_id.unwrap_or_default());
    let id = header.msg_id.unwrap_or_default();
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    member(session, group, client)?;
    let offset = id.parse::<MessageId>().map(|id| id.offset);
    let offset = offset
        .map_err(|error| refused(ResponseCode::SystemError, format!("the message id [{id}]: {error}")))?;
    let direct = Direct { group: group.to_owned(), client: client.to_owned(), id: id.to_owned() };
    back::look(session, offset, asked, Wait::Direct(Box::new(direct)))
}

/// The message was found.
pub(super) fn answer_direct(
    session: &mut Session,
    asked: Asked,
    direct: &Direct,
    reply: &Reply,
) -> Result<(), Refused> {
    let record = back::record(session, reply)?;
    let member = member(session, &direct.group, &direct.client)?;
    let fields = vec![
        ("consumerGroup", direct.group.clone()),
        ("clientId", direct.client.clone()),
        ("msgId", direct.id.clone()),
        ("brokerName", session.front.settings.broker_name.clone()),
    ];
    let back = Some(session.will_answer(asked));
    let code = RequestCode::ConsumeMessageDirectly;
    member.tell(Notice::Push(Push { code, fields, body: Bytes::from(record), back }));
    Ok(())
}

/// What several clients answer to one question.
#[derive(Debug)]
pub(super) struct Gathering {
    asked: Asked,
    left: usize,
    tables: BTreeMap<String, OffsetTable>,
}

/// INVOKE_BROKER_TO_GET_CONSUMER_STATUS: each consumer says which offsets it holds.
pub(super) fn on_status(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GetConsumerStatus { topic, group, client_addr } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let only = client_addr.filter(|client| !client.trim().is_empty());
    let members = session.front.groups.consumers(group).map(|view| view.members).unwrap_or_default();
    let asked_of: Vec<_> = members.into_iter().filter(|(id, _)| only.is_none_or(|only| only == id)).collect();
    if asked_of.is_empty() {
        let text = format!("No Any Consumer online in the consumer group: [{group}]");
        return Err(refused(ResponseCode::SystemError, text));
    }
    let gathering = Gathering { asked, left: asked_of.len(), tables: BTreeMap::new() };
    let number = session.gather(gathering);
    for (client, member) in asked_of {
        let fields = vec![("topic", topic.to_owned()), ("group", group.to_owned())];
        let back = Some(session.will_gather(number, client));
        let code = RequestCode::GetConsumerStatusFromClient;
        member.tell(Notice::Push(Push { code, fields, body: Bytes::new(), back }));
    }
    Ok(())
}

impl Gathering {
    /// One client answered; the last one's is everybody's answer.
    pub(super) fn take(&mut self, client: String, answer: &Answer) -> Option<(Asked, Vec<u8>)> {
        self.left -= 1;
        // A client that does not understand the question (Go, C++) is left out, as it is with Apache.
        if answer.code == ResponseCode::Success.code()
            && let Ok(table) = OffsetTable::from_status_body(&answer.body)
        {
            self.tables.insert(client, table);
        }
        let tables = || self.tables.iter().map(|(client, table)| (client.as_str(), table));
        (self.left == 0).then(|| (self.asked, OffsetTable::to_statuses_body(tables())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(group: Option<u64>) -> QueueStats {
        QueueStats { min: 2, max: 9, latest: 900, group, reached: 0, waiting: 300, earliest: 200 }
    }

    #[test]
    fn a_span_says_what_waits_and_for_how_long() {
        let queue = MessageQueue::default;
        let behind = span(queue(), &QueueStats { reached: 250, ..stats(Some(3)) }, 1_000);
        let times =
            |s: &QueueTimeSpan| (s.min_time_stamp, s.max_time_stamp, s.consume_time_stamp, s.delay_time);
        assert_eq!(times(&behind), (200, 900, 250, 700));
        assert_eq!(times(&span(queue(), &stats(None), 1_000)), (200, 900, 200, 700));
        let done = QueueStats { reached: 900, waiting: 0, ..stats(Some(9)) };
        assert_eq!(times(&span(queue(), &done, 1_000)), (200, 900, 900, 0));
        let empty =
            QueueStats { min: 0, max: 0, latest: 0, group: None, reached: 0, waiting: 0, earliest: 0 };
        assert_eq!(times(&span(queue(), &empty, 1_000)), (-1, -1, -1, 0));
    }
}
