//! Sends (codes 10, 310, 320).
//!
//! Owns: the record that a message becomes, and which messages are taken at all.
//! Promises: what is stored is what the producer sent, plus the properties that a broker adds; a delayed or half message names the
//! place where it waits, as Apache's does; a message that asks for something without effect here (a timer) is refused by name; an
//! answer means that every message of the send is durable.
//! Does not know: where a message goes.

use std::fmt::Write;

use bytes::Bytes;
use dassie_rocketmq::header::{SendAnswer, SendMessage};
use dassie_rocketmq::message::{
    Batch, DLQ_PREFIX, MessageId, Properties, PropertiesText, RETRY_PREFIX, Record, SysFlag,
    TransactionState, check_topic, is_unsendable_topic, property, tag_hash, waiting,
};
use dassie_rocketmq::{Command, RequestCode, ResponseCode};

use super::Front;
use super::group_configs::retries_max;
use super::offsets::signed;
use super::refuse::{Refused, missing, name_refused, refused};
use super::replies;
use super::session::{Asked, Session, Wait};
use crate::alarms::Raised;
use crate::broker::api::{
    BindingSpec, Destination, Message, Op, Origin, Reply, Send, SendMessage as Enqueue, Waits,
};
use crate::limits;
use crate::security::{Action, Resource, TOPIC_EXCHANGE_PREFIX, authorize, queue_of_topic};
use crate::server::across::{exchange_of, is_foreign, routing_key};
use crate::server::steps::shown_topic;

/// Largest body of a send, of a batch as a whole too: Apache's `maxMessageSize`. Bytes.
pub(super) const BODY_MAX: usize = 4 * 1024 * 1024;
/// Messages in one batch.
const BATCH_MAX: usize = 10_000;
/// A batch is one piece in the log, with the core's own overhead: so many bytes as stored. A larger one would be confirmed when
/// only its first part is there.
const BATCH_STORED_MAX: usize = limits::BATCH_TARGET / 4 * 3;
/// What the core adds to each message, at most, unless many AMQP queues are bound. Bytes.
const STORED_OVERHEAD: usize = 256;
/// Ids in an answer, together: a header has an end. Bytes.
const IDS_MAX: usize = 48 * 1024;
/// The region of every broker that was given no other.
const REGION: &str = "DefaultRegion";
/// Write, in RocketMQ's permission bits.
const WRITE: u32 = 2;
/// Read and write.
const READ_WRITE: u32 = 6;
/// A 5.4 producer's priority.
const PRIORITY: &str = "_SYS_MSG_PRIORITY_";
/// Deliver later, at a time: 5.x.
const TIMED: [&str; 3] = [property::TIMER_DELAY_SEC, property::TIMER_DELAY_MS, property::TIMER_DELIVER_MS];

/// What the answer repeats of the request.
#[derive(Debug)]
pub(super) struct Sent {
    /// The unique key, of a batch the first.
    unique_key: String,
}

/// SEND_MESSAGE, SEND_MESSAGE_V2, SEND_BATCH_MESSAGE.
pub(super) fn on_send(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    check_alarms(session.front.alarms.raised())?;
    let mut header = SendMessage::of(command)?;
    check(&header, command.body)?;
    let dead = dead_letters(session, &header);
    if let Some(dead) = &dead {
        header.topic = dead;
    }
    let topic = header.topic;
    let known = session.topology.topic(topic);
    if known.is_some_and(|known| known.permission & WRITE == 0) {
        let text = format!(
            "the broker[{}] sending message is forbidden: topic[{topic}]",
            session.front.settings.broker_name
        );
        return Err(refused(ResponseCode::NoPermission, text));
    }
    if let Some(queue) = queue_of_topic(topic) {
        return replies::on_send(session, command, &header, &queue, asked);
    }
    let is_batch =
        header.batch == Some(true) || command.head.request_code() == Some(RequestCode::SendBatchMessage);
    let link = link(session, topic)?;
    let write_queues = known.map_or(1, |known| known.write_queues.max(1));
    let mut maker = Maker {
        front: &session.front,
        header: &header,
        born_host: session.peer,
        dead: dead.is_some(),
        waits: None,
        queue_id: 0,
    };
    let (mut unique_key, mut key) = (None, 0);
    let mut messages = Vec::new();
    let mut queue_id = u32::try_from(header.queue_id).ok();
    let (mut waits, mut expected) = (None, None);
    if is_batch {
        let batch = Batch::check(command.body, BATCH_MAX).map_err(illegal)?;
        for message in batch.iter() {
            if waits_for(message.properties, &header, session.front.settings.delay_levels)?.is_some() {
                return Err(illegal("a message of a batch can neither be delayed nor transactional"));
            }
            if messages.is_empty() {
                key = retry_key(topic, message.properties);
            }
            let made = maker.make(message.flag, message.properties, message.body)?;
            unique_key.get_or_insert(made.1);
            messages.push(made.0);
        }
    } else {
        let properties = Properties::check(header.properties.unwrap_or_default()).map_err(illegal)?;
        if dead.is_none() {
            waits = waits_for(properties, &header, session.front.settings.delay_levels)?;
        }
        expected = Some(properties);
        key = retry_key(topic, properties);
        if waits.is_some() && queue_id.is_none() {
            // Its record says where it is for: the choice can not be left to the moment when it is due.
            queue_id =
                Some(session.front.keys.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % write_queues);
        }
        (maker.waits, maker.queue_id) = (waits, queue_id.unwrap_or(0));
        let made = maker.make(header.flag, properties, command.body)?;
        unique_key = Some(made.1);
        messages.push(made.0);
    }
    check_stored(&messages)?;
    if let Some(properties) = expected {
        replies::expect(session, header.producer_group, properties)?;
    }
    if session.principal.narrows_keys() {
        // To AMQP the topic is an exchange and the tag its routing key: one permission for both doors.
        let exchange = format!("{TOPIC_EXCHANGE_PREFIX}{topic}");
        for message in &messages {
            let key = Resource::RoutingKey { exchange: &exchange, key: &message.tag };
            authorize(&session.principal, Action::Write, key)?;
            if let Some((exchange, _)) = &link {
                let key = Resource::RoutingKey { exchange, key: &message.tag };
                authorize(&session.principal, Action::Write, key)?;
            }
        }
    }
    let create = create_queues(&session.front, &header).filter(|_| session.topology.topic(topic).is_none());
    if let Some(queues) = create {
        // A verb of its own, in front of the send: together they might not fit one batch of the log.
        let op = Op::CreateTopic {
            topic: topic.into(),
            write_queues: queues,
            read_queues: queues,
            permission: READ_WRITE,
        };
        session.tell(Action::Configure, Resource::Topic(topic), op)?;
    }
    if let Some((exchange, Some(binding))) = link {
        session.tell(Action::Write, Resource::Exchange(&exchange), Op::Bind(binding))?;
    }
    // Nobody waits for an answer to a one-way send, so nobody misses it.
    let key = if asked.is_one_way() { 0 } else { key };
    let send = Send {
        topic: topic.into(),
        queue_id,
        create_queues: create,
        messages,
        waits,
        key,
        arrived: std::time::Duration::ZERO,
    };
    let sent = Sent { unique_key: unique_key.unwrap_or_default() };
    session.ask(Action::Write, Resource::Topic(topic), Op::Send(send), asked, Wait::Send(sent))?;
    Ok(())
}

/// What a producer's retry has in common with the attempt before it (ADR 16); 0: nothing, the client named no key.
fn retry_key(topic: &str, properties: Properties<'_>) -> u64 {
    let Some(unique) = properties.get(property::UNIQUE_KEY) else { return 0 };
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(topic.as_bytes());
    digest.update(b"\0");
    digest.update(unique.as_bytes());
    digest.finalize().max(1)
}

/// The exchange that the topic stands for, and the binding that passes its messages on, if that is still to be made.
fn link(session: &Session, topic: &str) -> Result<Option<(String, Option<BindingSpec>)>, Refused> {
    let Some(exchange) = exchange_of(topic) else { return Ok(None) };
    match session.topology.exchange(0, &exchange) {
        Some(known) if known.spec.internal => {
            let text = format!("topic[{topic}]: the exchange '{exchange}' is internal");
            return Err(refused(ResponseCode::NoPermission, text));
        }
        Some(_) => {}
        None => {
            let text = format!("topic[{topic}]: there is no exchange '{exchange}' in vhost '/'");
            return Err(refused(ResponseCode::TopicNotExist, text));
        }
    }
    authorize(&session.principal, Action::Write, Resource::Exchange(&exchange))?;
    let binding = BindingSpec {
        source: format!("{TOPIC_EXCHANGE_PREFIX}{topic}").into(),
        destination: Destination::Exchange(exchange.as_str().into()),
        key: "#".into(),
        arguments: Bytes::new(),
    };
    let is_there = session.topology.binding(0, &binding).is_some();
    Ok(Some((exchange, (!is_there).then_some(binding))))
}

/// While an alarm is raised nothing is stored. Both codes make producers try again, and tell why in Apache's words.
pub(super) fn check_alarms(raised: Raised) -> Result<(), Refused> {
    if raised.disk {
        let text = "service not available now. It may be caused by one of the following reasons: the broker's disk is full, less than disk_free_limit is left";
        return Err(refused(ResponseCode::ServiceNotAvailable, text));
    }
    if raised.minority {
        let text = "[PCBUSY_CLEAN_QUEUE]broker busy, start flow control for a while, no majority of the nodes is reached";
        return Err(refused(ResponseCode::SystemBusy, text));
    }
    if raised.memory {
        let text = "[PCBUSY_CLEAN_QUEUE]broker busy, start flow control for a while, more memory than memory_high_watermark is in use";
        return Err(refused(ResponseCode::SystemBusy, text));
    }
    Ok(())
}

/// Does the send fit one piece of the log? A single large message has a way of its own.
fn check_stored(messages: &[Enqueue]) -> Result<(), Refused> {
    let stored: usize = messages.iter().map(|message| message.message.bytes.len() + STORED_OVERHEAD).sum();
    if messages.len() > 1 && stored > BATCH_STORED_MAX {
        let text = format!(
            "a batch of {} messages and {stored} bytes as stored is not supported by this broker yet, only up to {BATCH_STORED_MAX} bytes; nothing was stored",
            messages.len()
        );
        return Err(illegal(text));
    }
    Ok(())
}

pub(super) fn illegal(error: impl std::fmt::Display) -> Refused {
    refused(ResponseCode::MessageIllegal, error.to_string())
}

/// How many queues the topic gets if it is missing.
fn create_queues(front: &Front, header: &SendMessage<'_>) -> Option<u32> {
    if header.topic.starts_with(RETRY_PREFIX)
        || header.topic.starts_with(DLQ_PREFIX)
        || is_foreign(header.topic)
    {
        return Some(1);
    }
    let wanted = u32::try_from(header.default_topic_queue_nums).unwrap_or(0).max(1);
    front.settings.auto_create_topics.then(|| wanted.min(front.settings.default_topic_queues))
}

/// What can be said without looking at a message.
fn check(header: &SendMessage<'_>, body: &[u8]) -> Result<(), Refused> {
    let topic = header.topic;
    check_topic(topic).map_err(|error| name_refused("topic", topic, error))?;
    if is_unsendable_topic(topic) {
        let text = format!("Sending message to topic[{topic}] is forbidden.");
        return Err(refused(ResponseCode::NoPermission, text));
    }
    if is_foreign(topic) && exchange_of(topic).is_none() && queue_of_topic(topic).is_none() {
        return Err(missing(&format!("such an exchange of AMQP as a topic ({topic})")));
    }
    if body.is_empty() {
        return Err(illegal("the message body is empty"));
    }
    if body.len() > BODY_MAX {
        return Err(illegal(format!("the message body size {} is over {BODY_MAX}", body.len())));
    }
    let flags = SysFlag(header.sys_flag);
    if matches!(flags.transaction(), TransactionState::Commit | TransactionState::Rollback) {
        return Err(illegal("a message is sent prepared, and committed or rolled back later (sysFlag)"));
    }
    if flags.has(SysFlag::INNER_BATCH) || flags.has(SysFlag::NEED_UNWRAP) {
        return Err(missing("a batch stored as one record (sysFlag)"));
    }
    Ok(())
}

/// Where a message goes that was retried too often: clients that can not send back send again to the retry topic. One that
/// consumes in order tries again by itself, and sends only what it gave up.
fn dead_letters(session: &Session, header: &SendMessage<'_>) -> Option<String> {
    let group = header.topic.strip_prefix(RETRY_PREFIX)?;
    let most = retries_max(&session.topology, group, header.max_reconsume_times);
    let ordered = || session.front.groups.is_ordered(group, session.front.clock.monotonic());
    (header.reconsume_times.unwrap_or(0) > most || ordered()).then(|| format!("{DLQ_PREFIX}{group}"))
}

/// Where a message waits before it is to be seen.
fn waits_for(
    properties: Properties<'_>,
    header: &SendMessage<'_>,
    levels: u32,
) -> Result<Option<Waits>, Refused> {
    let level = waiting::delay_level(properties)
        .map_err(|error| illegal(format!("{}: {error}", property::DELAY_TIME_LEVEL)))?;
    // A retry of what was transactional once is no transaction.
    let retried = header.reconsume_times.unwrap_or(0) > 0 && level > 0;
    if waiting::is_prepared(properties) && !retried {
        return Ok(Some(Waits::Half));
    }
    Ok(u32::try_from(level).ok().filter(|level| *level > 0).map(|level| Waits::Delay(level.min(levels))))
}

/// Is this property a wish that would have no effect?
fn refuse_wishes(properties: Properties<'_>) -> Result<(), Refused> {
    // A delay level counts before a time.
    let leveled = waiting::delay_level(properties).is_ok_and(|level| level > 0);
    if let Some(name) = TIMED.into_iter().find(|name| !leveled && properties.get(name).is_some()) {
        return Err(missing(&format!("a timed message ({name})")));
    }
    for (name, what) in [
        (property::TIMER_DEL_UNIQUE_KEY, "recalling a message"),
        (property::INNER_MULTI_DISPATCH, "dispatch to several queues"),
        (PRIORITY, "a message priority"),
    ] {
        if properties.get(name).is_some() {
            return Err(missing(&format!("{what} ({name})")));
        }
    }
    Ok(())
}

/// A message as it is stored for a queue of AMQP, and its unique key.
pub(super) fn made_for_queue(
    front: &Front,
    header: &SendMessage<'_>,
    born_host: std::net::SocketAddr,
    body: &[u8],
) -> Result<(Message, String), Refused> {
    let properties = Properties::check(header.properties.unwrap_or_default()).map_err(illegal)?;
    if waits_for(properties, header, front.settings.delay_levels)?.is_some() {
        return Err(missing("a delayed or transactional message for a queue of AMQP"));
    }
    let maker = Maker { front, header, born_host, dead: false, waits: None, queue_id: 0 };
    let (made, unique_key) = maker.make(header.flag, properties, body)?;
    Ok((made.message, unique_key))
}

struct Maker<'a> {
    front: &'a Front,
    header: &'a SendMessage<'a>,
    born_host: std::net::SocketAddr,
    /// It goes to the dead letters.
    dead: bool,
    /// Where it waits.
    waits: Option<Waits>,
    /// Message queue it is for.
    queue_id: u32,
}

impl Maker<'_> {
    /// The message as it is stored, and its unique key.
    fn make(&self, flag: i32, properties: Properties<'_>, body: &[u8]) -> Result<(Enqueue, String), Refused> {
        refuse_wishes(properties)?;
        if body.is_empty() {
            return Err(illegal("the message body is empty"));
        }
        let (text, unique_key) = self.properties(properties)?;
        let properties = text.properties();
        let tag = properties.get(property::TAGS);
        let sys_flag = SysFlag(self.header.sys_flag).with_transaction(TransactionState::None);
        let record = Record {
            queue_id: self.header.queue_id.max(0),
            flag,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag,
            born_time: self.header.born_timestamp,
            born_host: self.born_host,
            store_time: 0,
            store_host: self.front.store_host,
            reconsume_times: self.header.reconsume_times.unwrap_or(0),
            prepared_transaction_offset: 0,
            topic: shown_topic(self.waits).unwrap_or(self.header.topic),
            properties,
        };
        let mut bytes = Vec::new();
        record.encode(body, &mut bytes).map_err(illegal)?;
        let too_large = |_| illegal("the message is above 4 GiB");
        let message = Message {
            origin: Origin::Rocketmq,
            bytes: Bytes::from(bytes),
            prefix_len: u32::try_from(record.prefix_length()).map_err(too_large)?,
            body_len: u32::try_from(body.len()).map_err(too_large)?,
            tag_hash: i32::try_from(tag_hash(tag)).unwrap_or_default().cast_unsigned(),
            persistent: true,
            ttl: None,
        };
        let key = routing_key(self.header.topic, properties);
        Ok((Enqueue { message, tag: key.into() }, unique_key))
    }

    /// What the producer sent, with what a broker adds.
    fn properties(&self, sent: Properties<'_>) -> Result<(PropertiesText, String), Refused> {
        let mut text = PropertiesText::from_properties(sent).map_err(illegal)?;
        // A handle of a lease that a client got with another message is no property of this one.
        text.remove(property::POP_CHECK);
        let unique_key = match sent.get(property::UNIQUE_KEY) {
            Some(key) => key.to_owned(),
            None => {
                let key = self.front.unique_key().to_string();
                text.set(property::UNIQUE_KEY, &key).map_err(illegal)?;
                key
            }
        };
        let added = [
            (property::MSG_REGION, REGION),
            (property::TRACE_SWITCH, "true"),
            (property::CLUSTER, &self.front.settings.cluster_name),
        ];
        for (name, value) in added {
            // The broker's word counts, whatever the client wrote there. They inform only: a message that leaves no room for
            // them is still a message.
            let _ = text.set(name, value);
        }
        if self.dead {
            text.set(property::DELAY_TIME_LEVEL, "-1").map_err(illegal)?;
        }
        if let Some(Waits::Delay(level)) = self.waits {
            // Above the last level there is none; a level counts before a time.
            text.set(property::DELAY_TIME_LEVEL, &level.to_string()).map_err(illegal)?;
            TIMED.into_iter().for_each(|name| text.remove(name));
        }
        if self.waits.is_some() {
            waiting::note_target(&mut text, self.header.topic, self.queue_id).map_err(illegal)?;
        }
        Ok((text, unique_key))
    }
}

/// Answers a send that is durable.
pub(super) fn answer(session: &mut Session, asked: Asked, sent: &Sent, reply: &Reply) -> Result<(), Refused> {
    let Reply::Sent { queue_id, offsets, positions } = reply else {
        return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"));
    };
    let mut ids = String::new();
    for position in positions {
        if ids.len() >= IDS_MAX {
            break;
        }
        let id = MessageId { store_host: session.front.store_host, offset: signed(*position) };
        let comma = if ids.is_empty() { "" } else { "," };
        // Writing to a string can not fail.
        let _ = write!(ids, "{comma}{id}");
    }
    let fields = SendAnswer {
        msg_id: &ids,
        queue_id: i32::try_from(*queue_id).unwrap_or(i32::MAX),
        queue_offset: signed(offsets.first().copied().unwrap_or_default()),
        transaction_id: Some(&sent.unique_key),
        region: Some(REGION),
        trace_on: Some(true),
        ..SendAnswer::default()
    };
    session.answer(asked, &fields, &[]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SendMessage<'static> {
        SendMessage { producer_group: "P", topic: "T", default_topic_queue_nums: 4, ..SendMessage::default() }
    }

    #[test]
    fn limits_are_told_with_the_code_that_no_producer_retries() {
        let code = |body: &[u8]| check(&header(), body).unwrap_err().code;
        assert_eq!(code(b""), ResponseCode::MessageIllegal);
        assert_eq!(code(&vec![0; BODY_MAX + 1]), ResponseCode::MessageIllegal);
        assert_eq!(check(&header(), &vec![0; BODY_MAX]), Ok(()));
    }

    #[test]
    fn alarms_are_told_with_codes_that_producers_retry() {
        let code = |disk, memory, minority| {
            check_alarms(Raised { disk, memory, minority }).map_err(|refused| refused.code)
        };
        assert_eq!(code(false, false, false), Ok(()));
        assert_eq!(code(true, true, false), Err(ResponseCode::ServiceNotAvailable));
        assert_eq!(code(false, true, false), Err(ResponseCode::SystemBusy));
        assert_eq!(code(false, false, true), Err(ResponseCode::SystemBusy));
    }

    #[test]
    fn names_that_belong_to_nobody_or_to_the_broker_are_refused() {
        let code = |topic| check(&SendMessage { topic, ..header() }, b"x").unwrap_err().code;
        assert_eq!([code(""), code("a b")], [ResponseCode::InvalidParameter; 2]);
        for topic in ["SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"] {
            assert_eq!(code(topic), ResponseCode::NoPermission);
        }
        for topic in ["AMQP-X-", "AMQP-Q-", "AMQP-Q-a|2"] {
            assert_eq!(code(topic), ResponseCode::MessageIllegal);
        }
    }

    #[test]
    fn a_wish_without_effect_is_refused_by_name_and_no_wish_is_not() {
        for (name, value) in
            [("TIMER_DELAY_SEC", "5"), ("TIMER_DELIVER_MS", "1"), ("INNER_MULTI_DISPATCH", "%LMQ%a")]
        {
            let text = format!("{name}\u{1}{value}\u{2}");
            let refused = refuse_wishes(Properties::new(&text)).unwrap_err();
            assert_eq!(refused.code, ResponseCode::MessageIllegal);
            assert!(refused.remark.contains(name), "{}", refused.remark);
        }
        assert_eq!(
            refuse_wishes(Properties::new("DELAY\u{1}0\u{2}TRAN_MSG\u{1}false\u{2}KEYS\u{1}k")),
            Ok(())
        );
        let ended = SendMessage { sys_flag: 8, ..header() };
        assert_eq!(check(&ended, b"x").unwrap_err().code, ResponseCode::MessageIllegal);
    }

    #[test]
    fn a_message_says_whether_and_where_it_waits() {
        let waits = |text: &str, times: i32| {
            let header = SendMessage { reconsume_times: Some(times), ..header() };
            waits_for(Properties::new(text), &header, 18)
        };
        assert_eq!(waits("DELAY\u{1}0\u{2}TRAN_MSG\u{1}false", 0), Ok(None));
        assert_eq!(waits("DELAY\u{1}-1\u{2}", 0), Ok(None));
        assert_eq!(waits("DELAY\u{1}3\u{2}", 0), Ok(Some(Waits::Delay(3))));
        assert_eq!(waits("DELAY\u{1}99\u{2}", 0), Ok(Some(Waits::Delay(18))));
        assert_eq!(waits("TRAN_MSG\u{1}true\u{2}DELAY\u{1}3", 0), Ok(Some(Waits::Half)));
        assert_eq!(waits("TRAN_MSG\u{1}true\u{2}DELAY\u{1}3", 1), Ok(Some(Waits::Delay(3))));
        assert_eq!(waits("DELAY\u{1}soon\u{2}", 0).unwrap_err().code, ResponseCode::MessageIllegal);
    }
}
