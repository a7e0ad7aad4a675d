//! What clients know of messages that wait: delayed ones, transactions, and what was sent back to come again.
//!
//! Owns: these notes, of all clients together. Promises: a transaction is ended in one way, whoever is asked about it; what comes
//! before its time, or again without having been sent back, has a name. Does not know: requests, histories.

use std::collections::BTreeMap;
use std::time::Duration;

use dassie::broker::api::{Origin, SendMessage, Waits};
use dassie_rocketmq::message::{Body, PropertiesText, Record, SysFlag, property, system_topic, waiting};

use super::story::Place;
use crate::history::event::Msg;

/// Delay levels of a run, ms.
pub(crate) const DELAYS_MS: [u64; 3] = [400, 1_200, 3_000];
/// The group whose clients are asked about transactions.
pub(crate) const PRODUCERS: &str = "pg";
/// Where messages come again that a member of the group sent back.
pub(crate) const RETRY: &str = "%RETRY%g";
/// The property that says what a message is, on all its ways.
const NAME: &str = "SIM";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Not before.
    due: BTreeMap<Msg, Duration>,
    /// Half messages, by where the story tells of them.
    halves: BTreeMap<Msg, Place>,
    backs: BTreeMap<Msg, Backs>,
}

/// How often a message was sent back, and came again.
#[derive(Debug, Default)]
struct Backs {
    asked: u32,
    certain: u32,
    found: u32,
}

impl Waiting {
    /// Sent `now` with a delay of that level.
    pub(crate) fn delayed(&mut self, msg: Msg, level: u32, now: Duration) {
        let delay = Duration::from_millis(DELAYS_MS[level as usize - 1]);
        // The nodes' clocks, and log time behind them, are fast by up to 2 % each.
        self.due.insert(msg, (now + delay * 95 / 100).saturating_sub(Duration::from_millis(20)));
    }

    /// It came at `now`.
    pub(crate) fn arrived(&self, msg: Msg, now: Duration) -> Result<(), String> {
        match self.due.get(&msg) {
            Some(due) if now < *due => {
                Err(format!("message {} came {:?} before its time", msg.seq, *due - now))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn prepared(&mut self, msg: Msg, place: Place) {
        self.halves.insert(msg, place);
    }

    /// Where the story tells of a half message, and whether it is to be committed.
    pub(crate) fn half(&self, msg: Msg) -> Option<(Place, bool)> {
        self.halves.get(&msg).map(|place| (*place, !msg.seq.is_multiple_of(3)))
    }

    pub(crate) fn sent_back(&mut self, msg: Msg) {
        self.backs.entry(msg).or_default().asked += 1;
    }

    pub(crate) fn certainly_sent_back(&mut self, msg: Msg) {
        self.backs.entry(msg).or_default().certain += 1;
    }

    pub(crate) fn came_again(&mut self, msg: Msg) {
        self.backs.entry(msg).or_default().found += 1;
    }

    /// What came again too often, or too rarely unless some may have been `trimmed`.
    pub(crate) fn wrong_returns(&self, trimmed: bool) -> impl Iterator<Item = String> {
        self.backs.iter().filter_map(move |(msg, Backs { asked, certain, found })| {
            let wrong = found > asked || (found < certain && !trimmed);
            let seq = msg.seq;
            wrong.then(|| {
                format!("message {seq} was sent back {certain} to {asked} times and came {found} times")
            })
        })
    }
}

/// A message as producers' connections make it.
pub(crate) fn record(topic: &str, queue_id: u32, seq: u32, body: &[u8], waits: Option<Waits>) -> SendMessage {
    let tag = format!("tag{}", seq % 3);
    let mut text = PropertiesText::new();
    let mut set = |name: &str, value: &str| text.set(name, value).expect("short and clean");
    set(property::TAGS, &tag);
    set(NAME, &name(topic, seq));
    match waits {
        Some(Waits::Delay(level)) => set(property::DELAY_TIME_LEVEL, &level.to_string()),
        Some(Waits::Half) => {
            set(property::TRANSACTION_PREPARED, "true");
            set(property::PRODUCER_GROUP, PRODUCERS);
        }
        None => {}
    }
    if waits.is_some() {
        waiting::note_target(&mut text, topic, queue_id).expect("short and clean");
    }
    let local = "127.0.0.1:10911".parse().expect("an address");
    let record = Record {
        queue_id: i32::try_from(queue_id).expect("few"),
        flag: 0,
        queue_offset: 0,
        physical_offset: 0,
        sys_flag: SysFlag(0),
        born_time: 0,
        born_host: local,
        store_time: 0,
        store_host: local,
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        topic: match waits {
            Some(Waits::Delay(_)) => system_topic::SCHEDULE,
            Some(Waits::Half) => system_topic::TRANS_HALF,
            None => topic,
        },
        properties: text.properties(),
    };
    let mut bytes = Vec::new();
    record.encode(body, &mut bytes).expect("it fits");
    let message = dassie::broker::api::Message {
        origin: Origin::Rocketmq,
        bytes: bytes.into(),
        prefix_len: u32::try_from(record.prefix_length()).expect("short"),
        body_len: u32::try_from(body.len()).expect("short"),
        tag_hash: seq % 3,
        persistent: true,
        ttl: None,
    };
    SendMessage { message, tag: tag.into() }
}

/// What stays the same on all ways of a message beside its body.
pub(crate) fn name(topic: &str, seq: u32) -> String {
    format!("{topic} {seq}")
}

/// The same, as a stored message tells it.
pub(crate) fn name_in(prefix: &[u8], suffix: &[u8]) -> Vec<u8> {
    let told = Record::decode_parts(prefix, suffix).ok();
    let told =
        told.and_then(|(record, _): (Record<'_>, Body)| record.properties.get(NAME).map(str::to_owned));
    told.unwrap_or_default().into_bytes()
}
