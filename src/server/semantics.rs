//! What the core asks about the insides of messages and tables.
//!
//! Owns: headers exchanges, the equality of arguments, the choice of a message queue, and the two fields that only the shard knows.
//! Promises: plain functions of their inputs; bytes that are not what they should be match nothing and change nothing.
//! Does not know: queues, connections.

use std::sync::Arc;

use dassie_amqp::content::ContentHeader;
use dassie_amqp::table::{RawTable, Value};
use dassie_rocketmq::message::{
    PATCH_QUEUE_ID, Record, check_topic, is_system_topic, patch_store_time, property,
};

use super::across::{is_foreign, is_user_property};
use super::amqp::arguments::{QUEUE_EFFECTS, is_single_active};
use super::amqp::publish::java_hash;
use super::death;
use super::steps;
use crate::broker::api::{
    DeadLetter, Death, Half, Message, Origin, Overflow, QueueLimits, Semantics, Step, Stepped, StoredMessage,
};

/// Knows the layouts of both worlds.
#[derive(Debug, Clone, Default)]
pub struct Layouts {
    /// Message queues of a topic that a publish to its exchange makes; `None`: topics are not made so.
    pub auto_topic_queues: Option<u32>,
    /// Name of the RocketMQ cluster: replies go to a topic named after it.
    pub cluster: String,
}

impl Semantics for Layouts {
    fn headers_match(&self, arguments: &[u8], message: &Message) -> bool {
        let Ok(arguments) = RawTable::parse(arguments) else { return false };
        match message.origin {
            Origin::Amqp => {
                let headers = amqp_headers(message).unwrap_or(RawTable::EMPTY);
                headers_match(arguments, |name| headers.get(name))
            }
            Origin::Rocketmq => {
                let Some(record) = rocketmq_record(message) else { return false };
                headers_match(arguments, |name| {
                    record.properties.get(name).filter(|_| is_user_property(name)).map(Value::from)
                })
            }
        }
    }

    fn arguments_differ(
        &self,
        kind: &'static str,
        received: &[u8],
        current: &[u8],
    ) -> Option<(String, String, String)> {
        let (Ok(received), Ok(current)) = (RawTable::parse(received), RawTable::parse(current)) else {
            return None;
        };
        // Of a queue's arguments those that this broker gives an effect, of an exchange's the one that RabbitMQ compares.
        let differs = |name: &str, default: Option<Value<'_>>| {
            let (ours, theirs) = (received.get(name), current.get(name));
            let same = match (ours.or(default), theirs.or(default)) {
                (Some(a), Some(b)) => a.equivalent(&b),
                (a, b) => a.is_none() && b.is_none(),
            };
            // RabbitMQ's words: two values of one sort by themselves, all else with its type.
            let (received, current) = match (ours, theirs) {
                (Some(a), Some(b)) if alike(a, b) => (format!("'{a}'"), format!("'{b}'")),
                (ours, theirs) => (describe(ours), describe(theirs)),
            };
            (!same).then(|| (name.to_owned(), received, current))
        };
        match kind {
            "queue" => differs("x-queue-type", Some(Value::from("classic")))
                .or_else(|| QUEUE_EFFECTS.iter().find_map(|name| differs(name, None))),
            _ => differs("alternate-exchange", None),
        }
    }

    fn alternate_exchange(&self, arguments: &[u8]) -> Option<Arc<str>> {
        RawTable::parse(arguments).ok()?.get("alternate-exchange")?.as_str().map(Arc::from)
    }

    fn queue_limits(&self, arguments: &[u8]) -> QueueLimits {
        let Ok(arguments) = RawTable::parse(arguments) else { return QueueLimits::default() };
        let number = |name| arguments.get(name).and_then(|value| u64::try_from(value.as_integer()?).ok());
        let text = |name| arguments.get(name)?.as_str().map(Arc::from);
        QueueLimits {
            message_ttl: number("x-message-ttl"),
            expires: number("x-expires").filter(|ms| *ms > 0),
            max_length: number("x-max-length"),
            max_bytes: number("x-max-length-bytes"),
            overflow: overflow(arguments),
            single_active: is_single_active(arguments.as_bytes()),
            max_priority: number("x-max-priority").and_then(|most| u8::try_from(most).ok()),
            dead_letter: text("x-dead-letter-exchange").map(|to| (to, text("x-dead-letter-routing-key"))),
        }
    }

    fn dead_letter(&self, message: &StoredMessage, death: &Death<'_>) -> Result<DeadLetter, Arc<str>> {
        death::dead_letter(message, death).map_err(Into::into)
    }

    fn priority(&self, message: &Message) -> u8 {
        let header = (message.origin == Origin::Amqp).then(|| amqp_header(message)).flatten();
        header.and_then(|header| header.properties.priority()).unwrap_or(0)
    }

    fn topic_queue(&self, message: &Message, queues: u32) -> Option<u32> {
        let headers = amqp_headers(message)?;
        let wanted = headers.get("x-rmq-queue-id").and_then(|value| match value {
            Value::LongStr(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            number => u32::try_from(number.as_integer()?).ok(),
        });
        if let Some(queue) = wanted.filter(|queue| *queue < queues) {
            return Some(queue);
        }
        let Some(Value::LongStr(key)) = headers.get(property::SHARDING_KEY) else { return None };
        let hash = java_hash(&String::from_utf8_lossy(key)).cast_signed();
        // As RocketMQ's SelectMessageQueueByHash: the remainder of the signed hash, without its sign.
        let queues = i32::try_from(queues).ok().filter(|queues| *queues > 0)?;
        Some((hash % queues).unsigned_abs())
    }

    fn new_topic(&self, name: &str) -> Option<u32> {
        self.auto_topic_queues
            .filter(|_| check_topic(name).is_ok() && !is_system_topic(name) && !is_foreign(name))
    }

    fn step(&self, message: &StoredMessage, step: &Step<'_>) -> Result<Stepped, Arc<str>> {
        steps::step(message, step, &self.cluster)
    }

    fn half(&self, message: &StoredMessage) -> Option<Half> {
        steps::half(message)
    }

    fn born_after(&self, first: &StoredMessage, again: &Message) -> Option<i64> {
        if first.origin != Origin::Rocketmq || again.origin != Origin::Rocketmq {
            return None;
        }
        let (prefix, rest) = first.bytes.split_at_checked(first.prefix_len as usize)?;
        let (inline, suffix) = match &first.body {
            None => rest.split_at_checked(first.body_len as usize)?,
            Some(_) => (&[][..], rest),
        };
        let stored: Vec<&[u8]> =
            first.body.iter().flatten().map(|piece| &piece[..]).chain([inline]).collect();
        let (a, _) = Record::decode_parts(prefix, suffix).ok()?;
        let b = rocketmq_record(again)?;
        let start = again.prefix_len as usize;
        let mut body = again.bytes.get(start..start + again.body_len as usize)?;
        for piece in stored {
            body = body.strip_prefix(piece)?;
        }
        // The queue that a waiting message is for is chosen for each attempt.
        let properties = |record: &Record<'_>| {
            let mut all: Vec<(String, String)> = record
                .properties
                .iter()
                .filter(|(name, _)| *name != property::REAL_QUEUE_ID)
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            all.sort_unstable();
            all
        };
        let same = body.is_empty()
            && (a.topic, a.flag, a.reconsume_times) == (b.topic, b.flag, b.reconsume_times)
            && properties(&a) == properties(&b);
        same.then_some(b.born_time - a.born_time)
    }

    fn stamp(&self, prefix: &mut [u8], queue_id: u32, store_time: u64) {
        if let Some(field) = prefix.get_mut(PATCH_QUEUE_ID..PATCH_QUEUE_ID + 4) {
            field.copy_from_slice(&queue_id.to_be_bytes());
        }
        let store_time = i64::try_from(store_time).unwrap_or(i64::MAX);
        // Too short for a record: the adapter that made it never does that, and the field stays as it is.
        let _ = patch_store_time(prefix, store_time);
    }
}

/// What a queue that is full does. Of quorum queues RabbitMQ takes reject-publish-dlx for drop-head.
fn overflow(arguments: RawTable<'_>) -> Overflow {
    let text = |name| arguments.get(name).and_then(|value| value.as_str());
    match text("x-overflow") {
        Some("reject-publish") => Overflow::Reject,
        Some("reject-publish-dlx") if text("x-queue-type") != Some("quorum") => Overflow::RejectDeadLetter,
        _ => Overflow::DropHead,
    }
}

/// The headers table of an AMQP-born message.
fn amqp_headers(message: &Message) -> Option<RawTable<'_>> {
    amqp_header(message)?.properties.headers()
}

fn amqp_header(message: &Message) -> Option<ContentHeader<'_>> {
    let prefix = message.bytes.get(..message.prefix_len as usize)?;
    let exchange = 1 + usize::from(*prefix.first()?);
    let key = 1 + usize::from(*prefix.get(exchange)?);
    ContentHeader::parse(prefix.get(exchange + key..)?).ok()
}

fn rocketmq_record(message: &Message) -> Option<Record<'_>> {
    let prefix = message.bytes.get(..message.prefix_len as usize)?;
    let suffix = message.bytes.get((message.prefix_len + message.body_len) as usize..)?;
    Record::decode_parts(prefix, suffix).ok().map(|(record, _)| record)
}

/// RabbitMQ's rules: `all` unless x-match says otherwise, keys that begin with `x-` count only in the `-with-x` modes, a
/// value of no type asks only that the header is there.
fn headers_match<'a>(arguments: RawTable<'_>, header: impl Fn(&str) -> Option<Value<'a>>) -> bool {
    let mode = arguments.get("x-match").and_then(|value| value.as_str().map(str::to_owned));
    let (any, with_x) = match mode.as_deref() {
        Some("any") => (true, false),
        Some("any-with-x") => (true, true),
        Some("all-with-x") => (false, true),
        _ => (false, false),
    };
    let mut wanted =
        arguments.iter().filter(|(name, _)| *name != "x-match" && (with_x || !name.starts_with("x-")));
    let matches = |(name, value): (&str, Value<'_>)| {
        header(name).is_some_and(|found| value == Value::Void || value.equivalent(&found))
    };
    if any { wanted.any(matches) } else { wanted.all(matches) }
}

fn alike(a: Value<'_>, b: Value<'_>) -> bool {
    a.type_name() == b.type_name() || (a.as_integer().is_some() && b.as_integer().is_some())
}

fn describe(value: Option<Value<'_>>) -> String {
    value.map_or_else(
        || "none".to_owned(),
        |value| format!("the value '{value}' of type '{}'", value.type_name()),
    )
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use dassie_amqp::content::PropertyList;
    use dassie_amqp::table::TableBuilder;
    use dassie_rocketmq::message::{Properties, StoredMessage as Stored, SysFlag};

    use super::super::amqp::deliver::put_prefix;
    use super::*;

    const LAYOUTS: Layouts = Layouts { auto_topic_queues: Some(4), cluster: String::new() };

    #[test]
    fn a_publish_makes_topics_only_where_it_may_and_under_legal_names() {
        let made: Vec<_> =
            ["T", "", "a b", "SELF_TEST_TOPIC", "AMQP-X-e"].map(|name| LAYOUTS.new_topic(name)).into();
        assert_eq!(made, [Some(4), None, None, None, None]);
        assert_eq!(Layouts::default().new_topic("T"), None);
    }

    fn amqp(headers: &TableBuilder) -> Message {
        let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        PropertyList { headers: Some(headers.as_table().unwrap()), ..PropertyList::default() }
            .encode(&mut header);
        let mut bytes = BytesMut::new();
        put_prefix(&mut bytes, "ex", "key", [&header, &[]]);
        let prefix_len = u32::try_from(bytes.len()).unwrap();
        Message {
            origin: Origin::Amqp,
            bytes: bytes.freeze(),
            prefix_len,
            body_len: 0,
            tag_hash: 0,
            persistent: true,
            ttl: None,
        }
    }

    fn rocketmq(properties: &str) -> Message {
        let record = Record {
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: SysFlag(0),
            born_time: 1,
            born_host: "127.0.0.1:1".parse().unwrap(),
            store_time: 0,
            store_host: "127.0.0.1:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            topic: "T",
            properties: Properties::new(properties),
        };
        let mut bytes = Vec::new();
        record.encode(b"body", &mut bytes).unwrap();
        let prefix_len = u32::try_from(record.prefix_length()).unwrap();
        Message {
            origin: Origin::Rocketmq,
            bytes: bytes.into(),
            prefix_len,
            body_len: 4,
            tag_hash: 0,
            persistent: true,
            ttl: None,
        }
    }

    fn table(fill: impl FnOnce(&mut TableBuilder)) -> TableBuilder {
        let mut table = TableBuilder::new();
        fill(&mut table);
        table
    }

    fn matches(arguments: &TableBuilder, message: &Message) -> bool {
        LAYOUTS.headers_match(arguments.as_table().unwrap().as_bytes(), message)
    }

    #[test]
    fn all_wants_every_key_and_any_wants_one() {
        let message = amqp(&table(|t| {
            t.put("a", 1_i32).put("b", "x").put("x-c", true);
        }));
        for (mode, b, c, expected) in [
            (None, "x", false, true),
            (None, "y", false, false),
            (Some("all"), "x", true, true),
            (Some("any"), "y", false, true),
            (Some("all-with-x"), "x", false, true),
            (Some("any-with-x"), "y", true, true),
        ] {
            let arguments = table(|t| {
                t.put("a", 1_i64).put("b", b);
                if c {
                    t.put("x-c", true);
                }
                if let Some(mode) = mode {
                    t.put("x-match", mode);
                }
            });
            assert_eq!(matches(&arguments, &message), expected, "{mode:?} {b} {c}");
        }
        let only_x = table(|t| {
            t.put("x-c", true).put("x-match", "any");
        });
        assert!(!matches(&only_x, &message));
        assert!(matches(&TableBuilder::new(), &message));
    }

    #[test]
    fn a_value_without_type_asks_for_presence_and_types_must_agree() {
        let message = amqp(&table(|t| {
            t.put("a", "1");
        }));
        let mut present = TableBuilder::new();
        present.put("a", Value::Void);
        assert!(matches(&present, &message));
        assert!(!matches(
            &table(|t| {
                t.put("a", 1_i32);
            }),
            &message
        ));
        let mut absent = TableBuilder::new();
        absent.put("z", Value::Void);
        assert!(!matches(&absent, &message));
    }

    #[test]
    fn of_a_rocketmq_message_the_user_properties_are_matched() {
        let message = rocketmq("colour\u{1}red\u{2}TAGS\u{1}t");
        assert!(matches(
            &table(|t| {
                t.put("colour", "red");
            }),
            &message
        ));
        assert!(!matches(
            &table(|t| {
                t.put("colour", "blue");
            }),
            &message
        ));
        assert!(!matches(
            &table(|t| {
                t.put("TAGS", "t");
            }),
            &message
        ));
    }

    #[test]
    fn an_absent_queue_type_is_classic_and_other_keys_are_not_compared() {
        let of = |value: &str| {
            table(|t| {
                t.put("x-queue-type", value);
            })
        };
        let differ = |a: &TableBuilder, b: &TableBuilder| {
            LAYOUTS.arguments_differ(
                "queue",
                a.as_table().unwrap().as_bytes(),
                b.as_table().unwrap().as_bytes(),
            )
        };
        let none = table(|t| {
            t.put("note", "kept");
        });
        assert_eq!(differ(&none, &of("classic")), None);
        assert_eq!(differ(&of("classic"), &TableBuilder::new()), None);
        let expected =
            ("x-queue-type".to_owned(), "the value 'quorum' of type 'longstr'".to_owned(), "none".to_owned());
        assert_eq!(differ(&of("quorum"), &none), Some(expected));
    }

    #[test]
    fn times_of_a_queue_are_numbers_of_any_size_and_are_compared() {
        let short = table(|t| {
            t.put("x-message-ttl", Value::I16(100)).put("x-expires", 60_000_i64);
        });
        let long = table(|t| {
            t.put("x-message-ttl", 100_i64).put("x-expires", 60_000_i32);
        });
        let other = table(|t| {
            t.put("x-message-ttl", 100_i64);
        });
        let bytes = |table: &TableBuilder| table.as_table().unwrap().as_bytes().to_vec();
        let limits = QueueLimits { message_ttl: Some(100), expires: Some(60_000), ..QueueLimits::default() };
        assert_eq!(LAYOUTS.queue_limits(&bytes(&short)), limits);
        assert_eq!(LAYOUTS.queue_limits(b""), QueueLimits::default());
        assert_eq!(LAYOUTS.arguments_differ("queue", &bytes(&short), &bytes(&long)), None);
        let differs = LAYOUTS.arguments_differ("queue", &bytes(&other), &bytes(&short)).unwrap();
        assert_eq!((&*differs.0, &*differs.1), ("x-expires", "none"));
    }

    #[test]
    fn the_message_queue_is_named_by_a_header_or_hashed_from_the_sharding_key() {
        let named = amqp(&table(|t| {
            t.put("x-rmq-queue-id", 2_i32);
        }));
        assert_eq!(LAYOUTS.topic_queue(&named, 4), Some(2));
        assert_eq!(LAYOUTS.topic_queue(&named, 2), None);
        let sharded = amqp(&table(|t| {
            t.put("__SHARDINGKEY", "hello");
        }));
        assert_eq!(LAYOUTS.topic_queue(&sharded, 4), Some(99_162_322 % 4));
        assert_eq!(LAYOUTS.topic_queue(&amqp(&TableBuilder::new()), 4), None);
    }

    #[test]
    fn the_stamp_is_what_a_client_decodes() {
        let message = rocketmq("a\u{1}b");
        let mut bytes = message.bytes.to_vec();
        LAYOUTS.stamp(&mut bytes[..message.prefix_len as usize], 7, 1_700_000_000_456);
        let (stored, _) = Stored::decode(&bytes).unwrap();
        assert_eq!((stored.record.queue_id, stored.record.store_time), (7, 1_700_000_000_456));
        LAYOUTS.stamp(&mut [0; 10], 7, 1);
    }
}
