//! Pulls (codes 11, 361).
//!
//! Owns: which messages a pull means, and the answer's bytes.
//! Promises: an answer holds copies of stored records with queue offset and physical position patched and nothing else; it always
//! fits a frame; a pull without a subscription is refused as Apache does, so that clients act alike.
//! Does not know: where messages lie, who waits.

use std::sync::Arc;

use bytes::Bytes;
use dassie_rocketmq::frame::{MAX_FRAME, MAX_HEADER};
use dassie_rocketmq::header::{PullAnswer, PullMessage, pull_flag};
use dassie_rocketmq::message::{PATCH_PHYSICAL_OFFSET, PATCH_QUEUE_OFFSET};
use dassie_rocketmq::{Command, ResponseCode};

use super::clients::{BY_TAG, no_such_filter, tags};
use super::group::Found;
use super::group_configs;
use super::offsets::{queue, signed};
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Delivery, Fetch, FetchStatus, Located, Op, Origin, Reply, StoredMessage};
use crate::broker::message::resolve;
use crate::limits;
use crate::security::{Action, Resource, authorize};
use crate::server::across_back::{Place, rocketmq_view};

/// Bytes of messages in one answer, if the client allows as many. Apache's brokers stop at 256 KiB.
const ANSWER: u32 = 1024 * 1024;
/// Bytes of messages in one answer, however large each is.
pub(super) const ANSWER_MAX: usize = 8 * 1024 * 1024;
/// One message above this can not be sent in a frame.
pub(super) const RECORD_MAX: usize = MAX_FRAME - MAX_HEADER;
/// Read, in RocketMQ's permission bits.
const READ: u32 = 4;

/// What the answer needs of the request.
#[derive(Debug)]
pub(super) struct Pulled {
    topic: Arc<str>,
    queue_id: u32,
    offset: u64,
    /// The offset asked for is below 0: below everything that is stored.
    before_all: bool,
}

/// PULL_MESSAGE, LITE_PULL_MESSAGE.
pub(super) fn on_pull(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: PullMessage<'_> = command.header()?;
    let (topic, group) = (header.topic, header.consumer_group);
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    if session.topology.topic(topic).is_some_and(|known| known.permission & READ == 0) {
        let text = format!("the topic[{topic}] pulling message is forbidden");
        return Err(refused(ResponseCode::NoPermission, text));
    }
    group_configs::check_pull(session, group)?;
    let queue_id = queue(header.queue_id, topic)?;
    let tags = wanted(session, &header)?;
    let has = |flag| header.sys_flag & flag != 0;
    if has(pull_flag::COMMIT_OFFSET)
        && let Ok(offset) = u64::try_from(header.commit_offset)
    {
        let op = Op::CommitOffset { group: group.into(), topic: topic.into(), queue_id, offset, wait: true };
        session.ask(Action::Read, Resource::Topic(topic), op, asked.silently(), Wait::Commit)?;
    }
    let most = |wish: Option<i32>, limit: u32| {
        wish.and_then(|wish| u32::try_from(wish).ok())
            .filter(|wish| *wish > 0)
            .map_or(limit, |wish| wish.min(limit))
    };
    let wait =
        if has(pull_flag::SUSPEND) { u32::try_from(header.suspend_timeout_millis).unwrap_or(0) } else { 0 };
    let topic: Arc<str> = topic.into();
    let fetch = Fetch {
        topic: Arc::clone(&topic),
        queue_id,
        // Below 0 is as wrong as beyond the end; only where to go differs.
        offset: u64::try_from(header.queue_offset).unwrap_or(u64::MAX),
        max_messages: most(Some(header.max_msg_nums), limits::FETCH_MESSAGES_MAX),
        max_bytes: most(header.max_msg_bytes, ANSWER),
        tags,
        wait_ms: wait.min(limits::FETCH_WAIT_MAX_MS),
    };
    let pulled = Pulled { topic, queue_id, offset: fetch.offset, before_all: header.queue_offset < 0 };
    session.ask(Action::Read, Resource::Topic(header.topic), Op::Fetch(fetch), asked, Wait::Pull(pulled))?;
    Ok(())
}

/// Wanted tag hashes; empty: all.
fn wanted(session: &Session, header: &PullMessage<'_>) -> Result<Arc<[u32]>, Refused> {
    if header.sys_flag & pull_flag::CLASS_FILTER != 0 {
        return Err(no_such_filter("class"));
    }
    if header.sys_flag & pull_flag::SUBSCRIPTION != 0 {
        let kind = header.expression_type.filter(|kind| !kind.is_empty()).unwrap_or(BY_TAG);
        return if kind == BY_TAG {
            tags(header.subscription.unwrap_or_default())
        } else {
            Err(no_such_filter(kind))
        };
    }
    let (group, topic) = (header.consumer_group, header.topic);
    let missing = |text: String| Err(refused(ResponseCode::SubscriptionNotExist, text));
    match session.front.groups.subscription(group, topic) {
        // A client that lost its connection pulls on over a new one, up to 30 s before its next heartbeat. Refused (24), as Apache
        // does, it would consume nothing until then. As below, all is a superset of what it wants.
        Found::NoGroup if session.front.clock.monotonic() < session.new_until => Ok(Arc::from([])),
        Found::NoGroup => missing(format!("the consumer's group info not exist, group: {group}")),
        Found::NoTopic => {
            missing(format!("the consumer's subscription not exist, group: {group}, topic: {topic}"))
        }
        // Clients renew the version of a subscription in each rebalance and pull before the heartbeat that says so. Refused (25),
        // they would wait a second and more. Whatever the newer expression is, everything is a superset of it, and clients
        // compare tags themselves.
        Found::Subscription(known) if known.tags.is_some() && known.version < header.sub_version => {
            Ok(Arc::from([]))
        }
        Found::Subscription(known) => known.tags.ok_or_else(|| no_such_filter("SQL92")),
    }
}

/// Answers a pull.
pub(super) fn answer(
    session: &mut Session,
    asked: Asked,
    pulled: &Pulled,
    reply: Reply,
) -> Result<(), Refused> {
    let Reply::Fetched(fetched) = reply else {
        return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"));
    };
    let (code, remark) = match fetched.status {
        FetchStatus::Found => (ResponseCode::Success, "FOUND"),
        FetchStatus::NotFound => (ResponseCode::PullNotFound, "OFFSET_OVERFLOW_ONE"),
        FetchStatus::NoneMatched => (ResponseCode::PullRetryImmediately, "NO_MATCHED_MESSAGE"),
        FetchStatus::OffsetMoved => (ResponseCode::PullOffsetMoved, moved(pulled, fetched.min, fetched.max)),
    };
    let mut fields = PullAnswer {
        next_begin_offset: signed(if pulled.before_all { fetched.min } else { fetched.next }),
        min_offset: signed(fetched.min),
        max_offset: signed(fetched.max),
        topic_sys_flag: Some(0),
        group_sys_flag: Some(0),
        ..PullAnswer::default()
    };
    if code != ResponseCode::Success {
        session.answer_code(asked, code, Some(remark.to_owned()), &fields, &[]);
        return Ok(());
    }
    let records = match collect(session, pulled, &fetched.deliveries) {
        Ok(records) => records,
        Err(error) => {
            tracing::error!("a pull of topic {} can not be answered: {error}", pulled.topic);
            return Err(refused(ResponseCode::SystemError, format!("the log can not be read: {error}")));
        }
    };
    if let Some(next) = records.next {
        fields.next_begin_offset = signed(next);
    }
    if records.records.is_empty() {
        let code = ResponseCode::PullRetryImmediately;
        session.answer_code(asked, code, Some("MESSAGE_TOO_LARGE".to_owned()), &fields, &[]);
        return Ok(());
    }
    let body = records.bytes;
    if session.begin_answer(asked, code, Some(remark.to_owned()), &fields, body) {
        for record in &records.records {
            record.write(&mut session.output);
        }
    } else {
        return Err(refused(ResponseCode::SystemError, "the answer can not be written"));
    }
    Ok(())
}

/// How an offset is outside of its queue, in Apache's words.
fn moved(pulled: &Pulled, min: u64, max: u64) -> &'static str {
    match (max, pulled.offset) {
        (0, _) => "NO_MESSAGE_IN_QUEUE",
        (_, offset) if pulled.before_all || offset < min => "OFFSET_TOO_SMALL",
        _ => "OFFSET_OVERFLOW_BADLY",
    }
}

/// What an answer is made of.
#[derive(Debug, Default)]
struct Records {
    records: Vec<Copy>,
    /// Bytes of all.
    bytes: usize,
    /// Where to go on, if not all deliveries are in.
    next: Option<u64>,
}

fn collect(session: &mut Session, pulled: &Pulled, deliveries: &[Delivery]) -> std::io::Result<Records> {
    let mut found = Records::default();
    for delivery in deliveries {
        let Some(message) = view(session, &pulled.topic, pulled.queue_id, delivery)? else {
            found.next = Some(delivery.offset + 1);
            continue;
        };
        let record = Copy::of(delivery, message);
        let len = record.len();
        if len > RECORD_MAX {
            // Born in AMQP, which allows more. A queue must not end here for its readers.
            tracing::warn!(
                "topic {}, offset {}: {len} bytes do not fit a frame; passed over",
                pulled.topic,
                delivery.offset
            );
            found.next = Some(delivery.offset + 1);
            continue;
        }
        if !found.records.is_empty() && found.bytes + len > ANSWER_MAX {
            found.next = Some(delivery.offset);
            return Ok(found);
        }
        found.bytes += len;
        found.records.push(record);
    }
    // Everything was looked at: the shard's own word on where to go on is further than any of ours.
    if !found.records.is_empty() || deliveries.is_empty() {
        found.next = None;
    }
    Ok(found)
}

/// A message as RocketMQ clients read it; `None`: it has no such form, which is logged.
pub(super) fn view(
    session: &mut Session,
    topic: &str,
    queue_id: u32,
    delivery: &Delivery,
) -> std::io::Result<Option<StoredMessage>> {
    let message = read(session, &delivery.message)?;
    match message.origin {
        Origin::Rocketmq => Ok(Some(message)),
        Origin::Amqp => {
            let place = Place {
                topic,
                queue_id,
                position: delivery.position,
                store_host: session.front.store_host,
                cluster: &session.front.settings.cluster_name,
            };
            let view = rocketmq_view(&message, &place);
            Ok(view
                .inspect_err(|error| {
                    tracing::error!("topic {topic}, offset {}: {error}; passed over", delivery.offset);
                })
                .ok())
        }
    }
}

/// One message as a record, its place patched in.
///
/// # Errors
/// What the log says, or that a message of AMQP can not be shown.
pub(super) fn one(
    session: &mut Session,
    delivery: &Delivery,
    topic: &str,
    queue_id: u32,
) -> std::io::Result<Vec<u8>> {
    let mut message = read(session, &delivery.message)?;
    if message.origin == Origin::Amqp {
        let store_host = session.front.store_host;
        let cluster = &session.front.settings.cluster_name;
        let place = Place { topic, queue_id, position: delivery.position, store_host, cluster };
        message = rocketmq_view(&message, &place).map_err(std::io::Error::other)?;
    }
    let mut output = super::output::Output::default();
    let record = Copy::of(delivery, message);
    let mut bytes = Vec::with_capacity(record.len());
    record.write(&mut output);
    while !output.is_empty() {
        output.write_to(|slices| {
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            Ok(slices.iter().map(|slice| slice.len()).sum())
        })?;
    }
    Ok(bytes)
}

fn read(session: &mut Session, message: &Located) -> std::io::Result<StoredMessage> {
    match message {
        Located::Ready(message) => Ok(message.clone()),
        // It may read from disk: the runtime moves other tasks away meanwhile.
        Located::Stored { .. } | Located::Paged(_) => {
            tokio::task::block_in_place(|| resolve(message, &*session.log, &mut session.cache))
        }
    }
}

/// One record on its way out.
#[derive(Debug)]
pub(super) struct Copy {
    offset: i64,
    position: i64,
    message: StoredMessage,
}

impl Copy {
    pub(super) fn of(delivery: &Delivery, message: StoredMessage) -> Self {
        Self { offset: signed(delivery.offset), position: signed(delivery.position), message }
    }

    /// Public position.
    pub(super) fn position(&self) -> i64 {
        self.position
    }

    pub(super) fn len(&self) -> usize {
        self.message.bytes.len() + self.message.body.iter().flatten().map(Bytes::len).sum::<usize>()
    }

    pub(super) fn write(&self, output: &mut super::output::Output) {
        let (bytes, prefix) = (&self.message.bytes, self.message.prefix_len as usize);
        let start = output.tail.len();
        output.tail.extend_from_slice(&bytes[..prefix]);
        let patches = [(PATCH_QUEUE_OFFSET, self.offset), (PATCH_PHYSICAL_OFFSET, self.position)];
        for (at, value) in patches {
            if let Some(field) = output.tail.get_mut(start + at..start + at + 8) {
                field.copy_from_slice(&value.to_be_bytes());
            }
        }
        match &self.message.body {
            Some(pieces) => {
                pieces.iter().for_each(|piece| output.push(piece));
                output.tail.extend_from_slice(&bytes[prefix..]);
            }
            None => {
                let end = prefix + self.message.body_len as usize;
                output.push(&bytes.slice(prefix..end));
                output.tail.extend_from_slice(&bytes[end..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::Output;
    use super::*;
    use dassie_rocketmq::message::{Properties, Record, StoredMessage as Decoded, SysFlag};

    fn stored(body: &[u8], in_pieces: bool) -> StoredMessage {
        let record = Record {
            queue_id: 3,
            flag: 9,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: SysFlag(0),
            born_time: 1,
            born_host: "127.0.0.1:1".parse().unwrap(),
            store_time: 2,
            store_host: "127.0.0.1:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            topic: "T",
            properties: Properties::new("TAGS\u{1}a\u{2}"),
        };
        let mut bytes = Vec::new();
        record.encode(body, &mut bytes).unwrap();
        let prefix = record.prefix_length();
        if in_pieces {
            bytes.drain(prefix..prefix + body.len());
        }
        let whole = Bytes::copy_from_slice(body);
        StoredMessage {
            origin: Origin::Rocketmq,
            bytes: bytes.into(),
            prefix_len: u32::try_from(prefix).unwrap(),
            body_len: u32::try_from(body.len()).unwrap(),
            body: in_pieces.then(|| vec![whole.slice(..1), whole.slice(1..)]),
            store_time: 2,
        }
    }

    #[test]
    fn an_answer_is_the_stored_record_with_its_place_patched_and_nothing_else() {
        for (size, in_pieces) in [(5, false), (5, true), (20_000, false), (20_000, true)] {
            let body = vec![7; size];
            let copy = Copy { offset: 42, position: 4_711, message: stored(&body, in_pieces) };
            let mut output = Output::default();
            copy.write(&mut output);
            let mut written = Vec::new();
            output
                .write_to(|slices| {
                    written.extend_from_slice(&slices[0]);
                    Ok(slices[0].len())
                })
                .unwrap();
            assert_eq!(written.len(), copy.len());
            let (decoded, used) = Decoded::decode(&written).unwrap();
            assert_eq!((used, decoded.body), (written.len(), &body[..]));
            let record = decoded.record;
            assert_eq!(
                (record.queue_offset, record.physical_offset, record.queue_id, record.flag),
                (42, 4_711, 3, 9)
            );
            decoded.check_body().unwrap();
        }
    }
}
