//! Messages by key (code 12).
//!
//! Owns: the walk through a topic's queues within a time range. Promises: a key is a word of KEYS or the unique key, as with
//! Apache; the newest messages stand first; nothing is kept for it, so that sends pay nothing; the shard is asked for one
//! chunk at a time, and bodies are read in the connection's task. A range with more than [`LOOKED_MAX`] messages that does not
//! hold the key in what was looked at is refused with the reason, never answered as if the key was not there.
//! Does not know: where messages lie.

use std::sync::Arc;

use dassie_rocketmq::header::{QueryMessage, QueryMessageAnswer};
use dassie_rocketmq::message::{MAGIC_V2, Properties, property};
use dassie_rocketmq::{Command, ResponseCode};

use super::offsets::signed;
use super::pull::{ANSWER_MAX, Copy, RECORD_MAX, view};
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Fetch, Fetched, Op, Reply, StoredMessage};
use crate::security::{Action, Resource};

/// Messages in one answer; Apache's brokers give as many.
const FOUND_MAX: usize = 64;
/// Messages in one answer about a unique key.
const UNIQUE_MAX: usize = 32;
/// Messages of one chunk.
const CHUNK: u64 = 1_024;
/// Bytes of one chunk.
const CHUNK_BYTES: u32 = 4 * 1024 * 1024;
/// Messages looked at for one request.
const LOOKED_MAX: u64 = 2_000_000;
/// Requests of one connection at once.
const QUERIES_MAX: usize = 4;

/// A query on its way.
#[derive(Debug)]
pub(super) struct Query {
    topic: Arc<str>,
    key: String,
    unique: bool,
    most: usize,
    /// ms since 1970, inclusive.
    range: (u64, u64),
    /// Queues not looked at yet.
    queues: Vec<u32>,
    queue_id: u32,
    stage: Stage,
    looked: u64,
    found: Vec<Copy>,
    bytes: usize,
}

/// What the next reply is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The first offset of the range.
    Low,
    /// The first offset behind it.
    High { low: u64 },
    /// Messages of `at..end`; what lies in `low..start` comes after them.
    Chunk { low: u64, start: u64, at: u64, end: u64 },
}

/// QUERY_MESSAGE.
pub(super) fn on_query(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: QueryMessage<'_> = command.header()?;
    let topic = header.topic;
    let Some(known) = session.topology.topic(topic) else {
        nothing(session, asked);
        return Ok(());
    };
    if header.key.is_empty() {
        return Err(refused(ResponseCode::InvalidParameter, "the key is empty"));
    }
    if session.queries >= QUERIES_MAX {
        let text = format!("a connection has at most {QUERIES_MAX} queries by key at once");
        return Err(refused(ResponseCode::SystemBusy, text));
    }
    let unique = header.unique_key == Some(true);
    let asked_for = usize::try_from(header.max_num).unwrap_or(0).max(1);
    let time = |ms: i64| u64::try_from(ms).unwrap_or(0);
    let query = Query {
        topic: topic.into(),
        key: header.key.to_owned(),
        unique,
        most: if unique { UNIQUE_MAX } else { asked_for.min(FOUND_MAX) },
        range: (time(header.begin_timestamp), time(header.end_timestamp)),
        queues: (0..u32::try_from(known.queues.len()).unwrap_or(u32::MAX)).collect(),
        queue_id: 0,
        stage: Stage::Low,
        looked: 0,
        found: Vec::new(),
        bytes: 0,
    };
    session.queries += 1;
    next_queue(session, asked, Box::new(query))
}

fn next_queue(session: &mut Session, asked: Asked, mut query: Box<Query>) -> Result<(), Refused> {
    match query.queues.pop() {
        // A unique key is one message's: the other queues do not have it.
        Some(queue_id) if !query.unique || query.found.is_empty() => {
            (query.queue_id, query.stage) = (queue_id, Stage::Low);
            let begin = query.range.0;
            search(session, asked, query, begin)
        }
        _ => finish(session, asked, &query),
    }
}

fn search(session: &mut Session, asked: Asked, query: Box<Query>, timestamp: u64) -> Result<(), Refused> {
    let op = Op::SearchOffset { topic: Arc::clone(&query.topic), queue_id: query.queue_id, timestamp };
    ask(session, asked, query, op)
}

fn ask(session: &mut Session, asked: Asked, query: Box<Query>, op: Op) -> Result<(), Refused> {
    let topic = Arc::clone(&query.topic);
    Ok(session.ask(Action::Read, Resource::Topic(&topic), op, asked, Wait::Query(query))?)
}

/// Takes the shard's reply and goes on.
pub(super) fn on_reply(
    session: &mut Session,
    asked: Asked,
    mut query: Box<Query>,
    reply: Reply,
) -> Result<(), Refused> {
    match (query.stage, reply) {
        (Stage::Low, Reply::Offset(low)) => {
            query.stage = Stage::High { low };
            let behind = query.range.1.saturating_add(1);
            search(session, asked, query, behind)
        }
        (Stage::High { low }, Reply::Offset(high)) => older(session, asked, query, low, high),
        (Stage::Chunk { low, start, end, .. }, Reply::Fetched(fetched)) => {
            look(session, &mut query, end, &fetched)?;
            if query.looked > LOOKED_MAX && query.found.is_empty() {
                session.queries -= 1;
                let text = format!(
                    "the time range holds more than {LOOKED_MAX} messages, none of those looked at has the key: narrow it"
                );
                return Err(refused(ResponseCode::QueryNotFound, text));
            }
            if fetched.next > start && fetched.next < end && query.found.len() < query.most {
                query.stage = Stage::Chunk { low, start, at: fetched.next, end };
                return fetch(session, asked, query);
            }
            older(session, asked, query, low, start)
        }
        _ => {
            session.queries -= 1;
            Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"))
        }
    }
}

/// The chunk before `end`, or the next queue.
fn older(
    session: &mut Session,
    asked: Asked,
    mut query: Box<Query>,
    low: u64,
    end: u64,
) -> Result<(), Refused> {
    if end <= low || query.found.len() >= query.most || query.looked > LOOKED_MAX {
        return next_queue(session, asked, query);
    }
    let start = low.max(end.saturating_sub(CHUNK));
    query.stage = Stage::Chunk { low, start, at: start, end };
    fetch(session, asked, query)
}

fn fetch(session: &mut Session, asked: Asked, query: Box<Query>) -> Result<(), Refused> {
    let Stage::Chunk { at, end, .. } = query.stage else { return Ok(()) };
    let op = Op::Fetch(Fetch {
        topic: Arc::clone(&query.topic),
        queue_id: query.queue_id,
        offset: at,
        max_messages: u32::try_from(end - at).unwrap_or(u32::MAX),
        max_bytes: CHUNK_BYTES,
        tags: Arc::from([]),
        wait_ms: 0,
    });
    ask(session, asked, query, op)
}

fn look(session: &mut Session, query: &mut Query, end: u64, fetched: &Fetched) -> Result<(), Refused> {
    for delivery in fetched.deliveries.iter().filter(|delivery| delivery.offset < end) {
        query.looked += 1;
        let message = view(session, &query.topic, query.queue_id, delivery)
            .map_err(|error| refused(ResponseCode::SystemError, format!("the log can not be read: {error}")));
        let message = message.inspect_err(|_| session.queries -= 1)?;
        let Some(message) = message.filter(|message| has_key(message, &query.key)) else { continue };
        let record = Copy::of(delivery, message);
        if record.len() <= RECORD_MAX && query.bytes + record.len() <= ANSWER_MAX {
            query.bytes += record.len();
            query.found.push(record);
        }
    }
    Ok(())
}

/// Is the key the message's unique key, or a word of its keys?
fn has_key(message: &StoredMessage, key: &str) -> bool {
    let Some(properties) = properties(message) else { return false };
    properties.get(property::UNIQUE_KEY) == Some(key)
        || properties.get(property::KEYS).is_some_and(|keys| keys.split(' ').any(|word| word == key))
}

/// The properties behind a stored record's body and topic.
fn properties(message: &StoredMessage) -> Option<Properties<'_>> {
    let body = if message.body.is_some() { 0 } else { message.body_len as usize };
    let magic = message.bytes.get(4..8)?;
    let suffix = message.bytes.get(message.prefix_len as usize + body..)?;
    let topic_len = if magic == MAGIC_V2.to_be_bytes() {
        2 + usize::from(u16::from_be_bytes([*suffix.first()?, *suffix.get(1)?]))
    } else {
        1 + usize::from(*suffix.first()?)
    };
    let text = suffix.get(topic_len + 2..)?;
    std::str::from_utf8(text).ok().map(Properties::new)
}

fn nothing(session: &mut Session, asked: Asked) {
    let text = "can not find message, maybe time range not correct".to_owned();
    session.answer_code(asked, ResponseCode::QueryNotFound, Some(text), &QueryMessageAnswer::default(), &[]);
}

fn finish(session: &mut Session, asked: Asked, query: &Query) -> Result<(), Refused> {
    session.queries -= 1;
    let mut found: Vec<&Copy> = query.found.iter().collect();
    found.sort_by_key(|record| std::cmp::Reverse(record.position()));
    found.truncate(query.most);
    let Some(newest) = found.first() else {
        nothing(session, asked);
        return Ok(());
    };
    let fields = QueryMessageAnswer {
        index_last_update_timestamp: signed(session.front.clock.wall_ms()),
        index_last_update_phyoffset: newest.position(),
    };
    let body = found.iter().map(|record| record.len()).sum();
    if !session.begin_answer(asked, ResponseCode::Success, None, &fields, body) {
        return Err(refused(ResponseCode::SystemError, "the answer can not be written"));
    }
    found.iter().for_each(|record| record.write(&mut session.output));
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dassie_rocketmq::message::{Record, SysFlag};

    use super::*;
    use crate::broker::api::Origin;

    fn stored(topic: &str, properties: &str, in_pieces: bool) -> StoredMessage {
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
            topic,
            properties: Properties::new(properties),
        };
        let mut bytes = Vec::new();
        record.encode(b"body", &mut bytes).unwrap();
        let prefix = record.prefix_length();
        if in_pieces {
            bytes.drain(prefix..prefix + 4);
        }
        StoredMessage {
            origin: Origin::Rocketmq,
            bytes: bytes.into(),
            prefix_len: u32::try_from(prefix).unwrap(),
            body_len: 4,
            body: in_pieces.then(|| vec![Bytes::from_static(b"body")]),
            store_time: 2,
        }
    }

    #[test]
    fn a_key_is_a_whole_word_or_the_unique_key_wherever_the_body_lies() {
        let long = format!("%RETRY%{}", "g".repeat(200));
        for (topic, in_pieces) in [("T", false), ("T", true), (&*long, false)] {
            let message = stored(topic, "KEYS\u{1}one two\u{2}UNIQ_KEY\u{1}U1\u{2}", in_pieces);
            for key in ["one", "two", "U1"] {
                assert!(has_key(&message, key), "{key}");
            }
            for key in ["on", "one two", "U", ""] {
                assert!(!has_key(&message, key), "{key}");
            }
        }
    }
}
