//! Answers to request messages (codes 324, 325; callback 326), within RocketMQ and across, and other messages for one queue of AMQP.
//!
//! Owns: the way of a reply: to the client that asked, to a queue of AMQP, and from AMQP to the client. Promises: who replies learns
//! whether the reply arrived; a reply is kept only where a queue keeps it; a client gets replies under its own id alone.
//! Does not know: what was asked.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use bytes::Bytes;
use dassie_rocketmq::header::{PushReply, SendAnswer, SendMessage};
use dassie_rocketmq::message::{Properties, PropertiesText, Record, check_group, check_topic, property};
use dassie_rocketmq::{Command, RequestCode, ResponseCode};

use super::group::{Answer, Notice, Push};
use super::pull;
use super::refuse::{Refused, missing, name_refused, refused};
use super::send::{BODY_MAX, check_alarms, illegal, made_for_queue};
use super::session::{Asked, Session};
use crate::broker::api::{ChannelId, Delivery, Op, Publish, ReaderId, Refusal};
use crate::security::{Action, Resource, authorize};
use crate::server::across::{parts, reply_key, reply_target};

/// Clients of one connection that take replies from AMQP.
const CLIENTS_MAX: usize = 64;
/// The only channel there is.
const CHANNEL: ChannelId = 0;
/// The only reader there is.
const READER: ReaderId = 1;

/// Replies of one connection.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// Client ids that AMQP can reply to.
    clients: BTreeSet<String>,
    /// Replies on their way to queues, by the number of their publish: a few at a time.
    waiting: Vec<Waiting>,
    last: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    reply: Reply,
    returned: bool,
}

/// Who sent a reply, and what its answer repeats.
#[derive(Debug)]
pub(super) struct Reply {
    asked: Asked,
    unique_key: String,
    queue_id: i32,
    to: String,
    /// Where it is; -1: nobody keeps it, or the queue's own.
    offset: i64,
    /// When nobody takes it.
    lost: ResponseCode,
}

/// SEND_REPLY_MESSAGE, SEND_REPLY_MESSAGE_V2.
pub(super) fn on_reply(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header = SendMessage::of(command)?;
    check_topic(header.topic).map_err(|error| name_refused("topic", header.topic, error))?;
    if command.body.is_empty() || command.body.len() > BODY_MAX {
        return Err(illegal(format!("the body of a reply has 1 to {BODY_MAX} bytes")));
    }
    let properties = Properties::check(header.properties.unwrap_or_default()).map_err(illegal)?;
    let Some(to) = properties.get(property::REPLY_TO_CLIENT).filter(|to| !to.is_empty()) else {
        let text = format!("reply message properties[{}] is null", property::REPLY_TO_CLIENT);
        return Err(refused(ResponseCode::SystemError, text));
    };
    let unique_key = properties.get(property::UNIQUE_KEY).unwrap_or_default().to_owned();
    let (lost, to) = (ResponseCode::SystemError, to.to_owned());
    let target = reply_target(&to).map(str::to_owned);
    let reply = Reply { asked, unique_key, queue_id: header.queue_id, to, offset: 0, lost };
    match target {
        Some(queue) => to_queue(session, &header, command.body, &queue, reply),
        None => to_client(session, &header, properties, command.body, reply),
    }
}

/// The client that asked is told, and its word is the answer.
fn to_client(
    session: &mut Session,
    header: &SendMessage<'_>,
    properties: Properties<'_>,
    body: &[u8],
    reply: Reply,
) -> Result<(), Refused> {
    authorize(&session.principal, Action::Write, Resource::Own)?;
    let Some(member) = session.front.groups.client(&reply.to) else {
        let text = format!("push reply message fail, channel of <{}> not found.", reply.to);
        return Err(refused(ResponseCode::SystemError, text));
    };
    let mut text = PropertiesText::from_properties(properties).map_err(illegal)?;
    let now = session.front.clock.wall_ms();
    let _ = text.set(property::PUSH_REPLY_TIME, &now.to_string());
    let mut fields = vec![
        ("producerGroup", header.producer_group.to_owned()),
        ("topic", header.topic.to_owned()),
        ("defaultTopic", header.default_topic.to_owned()),
        ("defaultTopicQueueNums", header.default_topic_queue_nums.to_string()),
        ("queueId", header.queue_id.to_string()),
        ("sysFlag", header.sys_flag.to_string()),
        ("bornTimestamp", header.born_timestamp.to_string()),
        ("flag", header.flag.to_string()),
        ("properties", text.properties().text().to_owned()),
        ("bornHost", session.peer.to_string()),
        ("storeHost", session.front.store_host.to_string()),
        ("storeTimestamp", now.to_string()),
    ];
    fields.extend(header.reconsume_times.map(|times| ("reconsumeTimes", times.to_string())));
    fields.extend(header.unit_mode.map(|unit| ("unitMode", unit.to_string())));
    let back = Some(session.will_reply(reply));
    let push = Push {
        code: RequestCode::PushReplyMessageToClient,
        fields,
        body: Bytes::copy_from_slice(body),
        back,
    };
    member.tell(Notice::Push(push));
    Ok(())
}

/// The client that asked has it, or says why not.
pub(super) fn on_told(session: &mut Session, reply: &Reply, answer: &Answer) {
    if answer.code == ResponseCode::Success.code() {
        return answer_reply(session, reply);
    }
    let text = format!("push reply message to <{}> fail.", reply.to);
    session.refuse(reply.asked, refused(ResponseCode::SystemError, text));
}

/// A send to a topic that is another look at a queue: a publish to that queue, answered when it is there. Its offset is not told.
pub(super) fn on_send(
    session: &mut Session,
    command: &Command<'_>,
    header: &SendMessage<'_>,
    queue: &str,
    asked: Asked,
) -> Result<(), Refused> {
    if header.batch == Some(true) || command.head.request_code() == Some(RequestCode::SendBatchMessage) {
        return Err(missing("a batch for a queue of AMQP"));
    }
    let (to, lost) = (header.topic.to_owned(), ResponseCode::TopicNotExist);
    let reply = Reply { asked, unique_key: String::new(), queue_id: 0, to, offset: -1, lost };
    to_queue(session, header, command.body, queue, reply)
}

/// To a queue of AMQP, or a channel that takes direct replies.
fn to_queue(
    session: &mut Session,
    header: &SendMessage<'_>,
    body: &[u8],
    queue: &str,
    mut reply: Reply,
) -> Result<(), Refused> {
    check_alarms(session.front.alarms.raised())?;
    let (message, unique_key) = made_for_queue(&session.front, header, session.peer, body)?;
    reply.unique_key = unique_key;
    session.replies.last += 1;
    let number = session.replies.last;
    let publish = Publish {
        channel: CHANNEL,
        exchange: "".into(),
        routing_key: queue.into(),
        also: Vec::new(),
        mandatory: true,
        confirm: number,
        message,
    };
    session.tell(Action::Write, Resource::Exchange(""), Op::Publish(publish))?;
    session.replies.waiting.push(Waiting { number, reply, returned: false });
    Ok(())
}

/// A reply reached no queue; its confirm follows.
pub(super) fn on_returned(session: &mut Session, number: u64) {
    if let Some(waiting) = session.replies.waiting.iter_mut().find(|waiting| waiting.number == number) {
        waiting.returned = true;
    }
}

/// Replies are where they should be, or were not taken.
pub(super) fn on_confirmed(session: &mut Session, numbers: &RangeInclusive<u64>, accepted: bool) {
    let waiting = &mut session.replies.waiting;
    let done: Vec<_> = waiting.extract_if(.., |waiting| numbers.contains(&waiting.number)).collect();
    for Waiting { reply, returned, .. } in done {
        if returned {
            let text = format!("the message is taken by nobody: there is no queue behind <{}>.", reply.to);
            session.refuse(reply.asked, refused(reply.lost, text));
        } else if accepted {
            answer_reply(session, &reply);
        } else {
            let text = format!("the queue behind <{}> does not take the message now", reply.to);
            session.refuse(reply.asked, refused(ResponseCode::SystemBusy, text));
        }
    }
}

/// The shard takes no replies; it does not say which.
pub(super) fn on_refused(session: &mut Session, refusal: &Refusal) {
    for Waiting { reply, .. } in std::mem::take(&mut session.replies.waiting) {
        session.refuse(reply.asked, refusal.clone().into());
    }
}

/// It arrived; it has no place among a topic's messages.
fn answer_reply(session: &mut Session, reply: &Reply) {
    let fields = SendAnswer {
        msg_id: &reply.unique_key,
        queue_id: reply.queue_id.max(0),
        queue_offset: reply.offset,
        transaction_id: Some(&reply.unique_key),
        ..SendAnswer::default()
    };
    session.answer(reply.asked, &fields, &[]);
}

// ---- from AMQP

/// A message that this connection's client wants an answer to is about to be sent: it can be given from now on. Clients ask before
/// their first heartbeat says who they are; with Apache the answer finds nobody then.
pub(super) fn expect(session: &mut Session, group: &str, properties: Properties<'_>) -> Result<(), Refused> {
    let (Some(client), Some(_)) =
        (properties.get(property::REPLY_TO_CLIENT), properties.get(property::CORRELATION_ID))
    else {
        return Ok(());
    };
    let known = session.replies.clients.contains(client);
    if known || session.replies.clients.len() >= CLIENTS_MAX || !session.joins.speaks_for(client) {
        return Ok(());
    }
    if check_group(group).is_ok() {
        session.front.groups.produce(group, client, &session.member);
    }
    let Some(key) = reply_key(client) else { return Ok(()) };
    session.replies.clients.insert(client.to_owned());
    let op = Op::SubscribeReplies { reader: READER, channel: CHANNEL, key: key.into() };
    session.tell(Action::Read, Resource::Own, op)?;
    Ok(())
}

/// Replies from AMQP, for this connection's client.
pub(super) fn on_deliveries(session: &mut Session, deliveries: &[Delivery]) {
    for delivery in deliveries {
        if let Err(error) = push(session, delivery) {
            tracing::warn!("a reply for the RocketMQ client at {} is dropped: {error}", session.peer);
        }
    }
    let bytes = deliveries.iter().map(|delivery| delivery.weight).sum();
    // Without rights its replies end with the next reload of users; until then the credit must come back.
    let _ = session.tell(Action::Read, Resource::Own, Op::Drained { bytes });
}

fn push(session: &mut Session, delivery: &Delivery) -> Result<(), String> {
    let topic = format!("{}_REPLY_TOPIC", session.front.settings.cluster_name);
    let view = pull::view(session, &topic, 0, delivery).map_err(|error| error.to_string())?;
    let view = view.ok_or("it has no form of RocketMQ's")?;
    let (prefix, body, suffix) = parts(&view).map_err(|error| error.to_string())?;
    let (record, _) = Record::decode_parts(&prefix, &suffix).map_err(|error| error.to_string())?;
    let (born, store) = (record.born_host.to_string(), session.front.store_host.to_string());
    let fields = PushReply {
        producer_group: "AMQP",
        topic: record.topic,
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        queue_id: 0,
        sys_flag: record.sys_flag.0,
        born_timestamp: record.born_time,
        flag: record.flag,
        properties: Some(record.properties.text()),
        reconsume_times: Some(0),
        unit_mode: Some(false),
        born_host: &born,
        store_host: &store,
        store_timestamp: record.store_time,
    };
    session.request(RequestCode::PushReplyMessageToClient, true, &fields, &body);
    Ok(())
}
