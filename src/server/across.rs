//! A message of one world seen from the other.
//!
//! Owns: the property mapping from RocketMQ to AMQP, and which names the mapping keeps for itself. Promises: the stored message is not changed; a body that RocketMQ's producer
//! compressed arrives opened, within the broker's own limit on messages; what can not be expressed is left out, never mangled.
//! Does not know: queues, frames, who reads.

use bytes::{Bytes, BytesMut};
use dassie_amqp::content::{BASIC_CLASS, PropertyList};
use dassie_amqp::table::{RawTable, TableBuilder, Value};
use dassie_rocketmq::message::{
    Compression, DLQ_PREFIX, Properties, Record, RecordError, decompress_bounded, property,
};

use super::amqp::deliver::put_prefix;
use crate::broker::api::{Origin, REPLY_PREFIX, StoredMessage};
use crate::broker::topology::TOPIC_EXCHANGE_PREFIX;
use crate::limits;
use crate::security::{QUEUE_TOPIC_PREFIX, queue_of_topic, unescaped};

/// Why a message of a group is dead, in RabbitMQ's words.
const DEAD: &str = "delivery_limit";
/// A 5.5 producer's priority.
const PRIORITY: &str = "_SYS_MSG_PRIORITY_";
/// Most headers made of properties; AMQP clients count them.
const HEADERS_MAX: usize = 512;
/// Properties that belong to brokers and clients, not to the application.
const SYSTEM: [&str; 54] = [
    property::KEYS,
    property::TAGS,
    property::WAIT_STORE_MSG_OK,
    property::DELAY_TIME_LEVEL,
    property::RETRY_TOPIC,
    property::REAL_TOPIC,
    property::REAL_QUEUE_ID,
    property::TRANSACTION_PREPARED,
    property::PRODUCER_GROUP,
    property::MIN_OFFSET,
    property::MAX_OFFSET,
    property::ORIGIN_MESSAGE_ID,
    property::RECONSUME_TIME,
    property::MAX_RECONSUME_TIMES,
    property::CONSUME_START_TIMESTAMP,
    property::MSG_REGION,
    property::TRACE_SWITCH,
    property::UNIQUE_KEY,
    property::INNER_NUM,
    property::INNER_BASE,
    property::CHECK_IMMUNITY_TIME_IN_SECONDS,
    property::TRANSACTION_PREPARED_QUEUE_OFFSET,
    property::TRANSACTION_ID,
    property::TRANSACTION_CHECK_TIMES,
    property::INSTANCE_ID,
    property::CORRELATION_ID,
    property::REPLY_TO_CLIENT,
    property::TTL,
    property::REPLY_ARRIVE_TIME,
    property::PUSH_REPLY_TIME,
    property::CLUSTER,
    property::MESSAGE_TYPE,
    property::POP_CHECK,
    property::POP_CHECK_OFFSET,
    property::FIRST_POP_TIME,
    property::BORN_HOST,
    property::BORN_TIMESTAMP,
    property::DLQ_ORIGIN_TOPIC,
    property::DLQ_ORIGIN_MESSAGE_ID,
    property::INNER_MULTI_DISPATCH,
    property::INNER_MULTI_QUEUE_OFFSET,
    property::TRACE_CONTEXT,
    property::TIMER_DELAY_SEC,
    property::TIMER_DELAY_MS,
    property::TIMER_DELIVER_MS,
    property::TIMER_OUT_MS,
    property::TIMER_ENQUEUE_MS,
    property::TIMER_DEQUEUE_MS,
    property::TIMER_ROLL_TIMES,
    property::TIMER_DEL_UNIQUE_KEY,
    property::TIMER_DELAY_LEVEL,
    property::CRC32,
    PRIORITY,
    DEATHS,
];
/// Begins the names of properties that hold an AMQP property.
const AMQP: &str = "AMQP_";
/// Before the names of headers that mean something to RocketMQ or to this mapping.
pub(super) const RESERVED_PREFIX: &str = "amqp.h.";
/// Where an AMQP-born message's `x-death` is, as JSON.
pub(super) const DEATHS: &str = "AMQP_DEATHS";
/// Headers that the broker writes: a property of that name would stand beside them.
const OURS: [&str; 10] = [
    "x-rmq-keys",
    "x-rmq-topic",
    "x-rmq-queue-id",
    "x-rmq-born-host",
    "timestamp_in_ms",
    "x-delivery-count",
    "x-death",
    "x-first-death-reason",
    "x-first-death-queue",
    "x-first-death-exchange",
];

/// Begins the name of a topic that stands for an exchange of vhost `/`.
const EXCHANGE: &str = "AMQP-X-";

/// Does this topic's name belong to an exchange or a queue of AMQP?
pub(super) fn is_foreign(topic: &str) -> bool {
    topic.starts_with(EXCHANGE) || topic.starts_with(QUEUE_TOPIC_PREFIX)
}

/// The exchange that a topic stands for: `AMQP-X-<exchange>`, where `|HH` is the byte HH of its name. A topic is an exchange already,
/// and the default exchange has no bindings: there is none for those.
pub(super) fn exchange_of(topic: &str) -> Option<String> {
    let name = unescaped(topic.strip_prefix(EXCHANGE)?)?;
    (!name.starts_with(TOPIC_EXCHANGE_PREFIX)).then_some(name)
}

/// What bindings see as the routing key of a message of that topic.
pub(super) fn routing_key<'a>(topic: &str, properties: Properties<'a>) -> &'a str {
    let named = topic.starts_with(EXCHANGE).then(|| properties.get("AMQP_ROUTING_KEY")).flatten();
    named.or_else(|| properties.get(property::TAGS)).unwrap_or_default()
}

/// Begins what a reply from RocketMQ says of where to, when AMQP asked.
const REPLY_TO_AMQP: &str = "amqp:";
/// Begins the keys of RocketMQ clients that AMQP replies to.
const REPLY_CLIENT: &str = "rmq.";

/// The key under which AMQP replies to a RocketMQ client; `None`: its id is too long for one.
pub(super) fn reply_key(client: &str) -> Option<String> {
    let key = format!("{REPLY_PREFIX}{REPLY_CLIENT}{client}");
    (key.len() <= 255).then_some(key)
}

/// The queue that a reply is for, when AMQP asked.
pub(super) fn reply_target(client: &str) -> Option<&str> {
    client.strip_prefix(REPLY_TO_AMQP)
}

/// What replies to a message of AMQP name as the client that asked.
pub(super) fn asker(reply_to: &str) -> String {
    format!("{REPLY_TO_AMQP}{reply_to}")
}

/// Is this property the application's own?
pub(super) fn is_user_property(name: &str) -> bool {
    !SYSTEM.contains(&name) && !name.starts_with(AMQP)
}

/// A RocketMQ-born message as an AMQP client sees it: published to `amq.rmq.<topic>` with the tag as routing key.
///
/// # Errors
/// The bytes are no RocketMQ record.
pub(super) fn amqp_view(message: &StoredMessage) -> Result<StoredMessage, RecordError> {
    let (prefix, body, suffix) = parts(message)?;
    let (record, _) = Record::decode_parts(&prefix, &suffix)?;
    let (body, encoding) = open(&record, body);
    let headers = headers(&record);
    let asks = |name| {
        record.properties.get(name).filter(|_| record.properties.get(property::CORRELATION_ID).is_some())
    };
    let asker =
        asks(property::REPLY_TO_CLIENT).filter(|client| reply_target(client).is_none()).and_then(reply_key);
    let mut header = vec![0; 12];
    header[..2].copy_from_slice(&BASIC_CLASS.to_be_bytes());
    header[4..].copy_from_slice(&(body.len() as u64).to_be_bytes());
    properties(&record, (encoding, asker.as_deref()), headers.as_table().unwrap_or(RawTable::EMPTY))
        .encode(&mut header);
    let queue = queue_of_topic(record.topic);
    let exchange = match &queue {
        // It was sent to the queue itself, as through the default exchange.
        Some(_) => String::new(),
        None => {
            exchange_of(record.topic).unwrap_or_else(|| format!("{TOPIC_EXCHANGE_PREFIX}{}", record.topic))
        }
    };
    let key = queue.as_deref().unwrap_or_else(|| routing_key(record.topic, record.properties));
    let mut bytes = BytesMut::with_capacity(exchange.len() + header.len() + 300);
    put_prefix(&mut bytes, cut(&exchange), cut(key), [&header, &[]]);
    Ok(StoredMessage {
        origin: Origin::Amqp,
        prefix_len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        bytes: bytes.freeze(),
        body: Some(vec![body]),
        store_time: message.store_time,
    })
}

/// Prefix, body and suffix, wherever the body lies.
pub(super) fn parts(message: &StoredMessage) -> Result<(Bytes, Bytes, Bytes), RecordError> {
    let prefix_len = message.prefix_len as usize;
    let inline = if message.body.is_some() { 0 } else { message.body_len as usize };
    let suffix_at = prefix_len + inline;
    if message.bytes.len() < suffix_at {
        return Err(RecordError::Truncated);
    }
    let body = match &message.body {
        None => message.bytes.slice(prefix_len..suffix_at),
        Some(pieces) => match &pieces[..] {
            [one] => one.clone(),
            pieces => Bytes::from(pieces.concat()),
        },
    };
    Ok((message.bytes.slice(..prefix_len), body, message.bytes.slice(suffix_at..)))
}

/// The body as its application wrote it. One that can not be opened here goes as it is, with the name of its encoding: a
/// consumer may know what to do, and its queue is not blocked.
fn open(record: &Record<'_>, body: Bytes) -> (Bytes, Option<&'static str>) {
    let limit = usize::try_from(limits::MESSAGE_MAX).unwrap_or(usize::MAX);
    let kind = match record.sys_flag.compression() {
        Ok(None) => return (body, None),
        Ok(Some(kind)) => kind,
        Err(_) => return (body, Some("unknown")),
    };
    match (decompress_bounded(kind, &body, limit), kind) {
        (Ok(opened), _) => (opened.into(), None),
        (Err(_), Compression::Lz4) => (body, Some("lz4")),
        (Err(_), Compression::Zstd) => (body, Some("zstd")),
        (Err(_), Compression::Zlib) => (body, Some("deflate")),
    }
}

fn headers(record: &Record<'_>) -> TableBuilder {
    let mut table = TableBuilder::new();
    // What was a header once is one again, under its own name.
    let header = |(name, value)| match str::strip_prefix(name, RESERVED_PREFIX) {
        Some(name) => Some((name, value)),
        None => (is_user_property(name) || name == DEATHS).then_some((name, value)),
    };
    let own = record.properties.iter().filter_map(header);
    let own = own.filter(|(name, _)| !name.is_empty() && name.len() <= 255 && !OURS.contains(name));
    for (name, value) in own.take(HEADERS_MAX) {
        table.put(name, value);
    }
    if let Some(keys) = record.properties.get(property::KEYS) {
        table.put("x-rmq-keys", keys);
    }
    table
        .put("x-rmq-topic", record.topic)
        .put("x-rmq-queue-id", record.queue_id)
        .put("x-rmq-born-host", &*record.born_host.to_string())
        .put("timestamp_in_ms", record.born_time);
    if record.reconsume_times > 0 {
        table.put("x-delivery-count", i64::from(record.reconsume_times));
    }
    if let Some(group) = record.topic.strip_prefix(DLQ_PREFIX) {
        put_death(&mut table, record, group);
    }
    table
}

/// A dead letter says so as RabbitMQ's do: the group is the queue it died in.
fn put_death(table: &mut TableBuilder, record: &Record<'_>, group: &str) {
    let property = |name| record.properties.get(name);
    let topic = property(property::RETRY_TOPIC).or_else(|| property(property::DLQ_ORIGIN_TOPIC));
    let exchange = match (property("AMQP_EXCHANGE"), topic) {
        (Some(exchange), _) => exchange.to_owned(),
        (None, Some(topic)) => format!("{TOPIC_EXCHANGE_PREFIX}{topic}"),
        (None, None) => String::new(),
    };
    let key = property("AMQP_ROUTING_KEY").or_else(|| property(property::TAGS)).unwrap_or_default();
    let time = u64::try_from(record.store_time / 1000).unwrap_or(0);
    table
        .put_array("x-death", |deaths| {
            deaths.push_table(|death| {
                death
                    .put("count", 1_i64)
                    .put("reason", DEAD)
                    .put("queue", group)
                    .put("time", Value::Timestamp(time))
                    .put("exchange", exchange.as_str())
                    .put_array("routing-keys", |keys| {
                        keys.push(key);
                    });
            });
        })
        .put("x-first-death-reason", DEAD)
        .put("x-first-death-queue", group)
        .put("x-first-death-exchange", exchange.as_str());
}

fn properties<'a>(
    record: &Record<'a>,
    (encoding, asker): (Option<&'static str>, Option<&'a str>),
    headers: RawTable<'a>,
) -> PropertyList<'a> {
    let text = |name| record.properties.get(name).filter(|value| value.len() <= 255).map(str::as_bytes);
    PropertyList {
        content_type: text("AMQP_CONTENT_TYPE"),
        content_encoding: encoding.map(str::as_bytes).or_else(|| text("AMQP_CONTENT_ENCODING")),
        headers: Some(headers),
        delivery_mode: Some(2),
        priority: record.properties.get(PRIORITY).and_then(|priority| priority.parse().ok()),
        correlation_id: text(property::CORRELATION_ID),
        reply_to: text("AMQP_REPLY_TO").or(asker.map(str::as_bytes)),
        message_id: text("AMQP_MESSAGE_ID").or_else(|| text(property::UNIQUE_KEY)),
        timestamp: u64::try_from(record.born_time / 1000).ok(),
        message_type: text("AMQP_TYPE"),
        app_id: text("AMQP_APP_ID").or_else(|| text(property::PRODUCER_GROUP)),
        ..PropertyList::default()
    }
}

/// Short strings have at most 255 bytes.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(255)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::content::ContentHeader;
    use dassie_rocketmq::message::SysFlag;

    /// zlib of 1,000 times `a`.
    const ZLIB: [u8; 17] = [120, 156, 75, 76, 28, 5, 163, 96, 20, 12, 119, 0, 0, 249, 216, 122, 248];

    fn stored(body: &[u8], sys_flag: i32, in_pieces: bool) -> StoredMessage {
        let properties =
            "TAGS\u{1}paid\u{2}UNIQ_KEY\u{1}ID1\u{2}colour\u{1}red\u{2}KEYS\u{1}k1 k2\u{2}WAIT\u{1}true";
        stored_as("Orders", properties, body, sys_flag, in_pieces)
    }

    fn stored_as(
        topic: &str,
        properties: &str,
        body: &[u8],
        sys_flag: i32,
        in_pieces: bool,
    ) -> StoredMessage {
        let record = Record {
            queue_id: 3,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: SysFlag(sys_flag),
            born_time: 1_700_000_000_123,
            born_host: "127.0.0.1:50123".parse().unwrap(),
            store_time: 1_700_000_009_000,
            store_host: "127.0.0.1:10911".parse().unwrap(),
            reconsume_times: i32::from(topic.starts_with('%')) * 3,
            prepared_transaction_offset: 0,
            topic,
            properties: Properties::new(properties),
        };
        let mut bytes = Vec::new();
        record.encode(body, &mut bytes).unwrap();
        let prefix = record.prefix_length();
        let body_bytes = Bytes::copy_from_slice(body);
        if in_pieces {
            bytes.drain(prefix..prefix + body.len());
        }
        StoredMessage {
            origin: Origin::Rocketmq,
            bytes: bytes.into(),
            prefix_len: u32::try_from(prefix).unwrap(),
            body_len: u32::try_from(body.len()).unwrap(),
            body: in_pieces.then(|| vec![body_bytes.slice(..2), body_bytes.slice(2..)]),
            store_time: 5,
        }
    }

    #[test]
    fn a_rocketmq_message_has_its_topic_as_exchange_and_its_tag_as_key() {
        for in_pieces in [false, true] {
            let view = amqp_view(&stored(b"hello", 0, in_pieces)).unwrap();
            let prefix = &view.bytes[..view.prefix_len as usize];
            assert!(prefix.starts_with(b"\x0eamq.rmq.Orders\x04paid"));
            let header = ContentHeader::parse(&prefix[20..]).unwrap();
            let properties = header.properties;
            assert_eq!((header.body_size, properties.delivery_mode()), (5, Some(2)));
            assert_eq!(
                (properties.message_id(), properties.timestamp()),
                (Some(&b"ID1"[..]), Some(1_700_000_000))
            );
            let headers = properties.headers().unwrap();
            let text = |name| headers.get(name).and_then(|value| value.as_str().map(str::to_owned));
            assert_eq!(text("colour").as_deref(), Some("red"));
            assert_eq!(text("x-rmq-keys").as_deref(), Some("k1 k2"));
            assert_eq!(headers.get("x-rmq-queue-id").and_then(|v| v.as_integer()), Some(3));
            assert!(headers.get("WAIT").is_none() && headers.get("TAGS").is_none());
            assert_eq!(view.body.unwrap().concat(), b"hello");
        }
    }

    /// The view's properties, with its headers in order.
    fn seen<T>(topic: &str, properties: &str, look: impl FnOnce(&Seen<'_>) -> T) -> T {
        let view = amqp_view(&stored_as(topic, properties, b"b", 0, false)).unwrap();
        let prefix = &view.bytes[..view.prefix_len as usize];
        let exchange = 1 + usize::from(prefix[0]);
        let key = usize::from(prefix[exchange]);
        let start = exchange + 1 + key;
        let header = ContentHeader::parse(&prefix[start..]).unwrap();
        look(&Seen { key: str::from_utf8(&prefix[exchange + 1..start]).unwrap(), header })
    }

    struct Seen<'a> {
        key: &'a str,
        header: ContentHeader<'a>,
    }

    impl Seen<'_> {
        fn header(&self, name: &str) -> Option<String> {
            let headers = self.header.properties.headers()?;
            assert!(headers.iter().filter(|(known, _)| *known == name).count() <= 1, "{name} twice");
            headers.get(name).map(|value| value.to_string())
        }
    }

    #[test]
    fn every_property_has_its_place() {
        for (name, value, expected) in [
            ("TAGS", "t", "key=t"),
            ("AMQP_CONTENT_TYPE", "text/plain", "content_type=text/plain"),
            ("AMQP_CONTENT_ENCODING", "gzip", "content_encoding=gzip"),
            ("_SYS_MSG_PRIORITY_", "4", "priority=4"),
            ("CORRELATION_ID", "c", "correlation_id=c"),
            ("AMQP_REPLY_TO", "r", "reply_to=r"),
            ("UNIQ_KEY", "u", "message_id=u"),
            ("AMQP_MESSAGE_ID", "m", "message_id=m"),
            ("AMQP_TYPE", "y", "type=y"),
            ("PGROUP", "g", "app_id=g"),
            ("AMQP_APP_ID", "a", "app_id=a"),
            ("AMQP_USER_ID", "guest", ""),
            ("AMQP_EXPIRATION", "5", ""),
            ("TTL", "5", ""),
            ("_SYS_MSG_PRIORITY_", "high", ""),
            ("CORRELATION_ID", &"c".repeat(256), ""),
        ] {
            let shown = seen("T", &format!("{name}\u{1}{value}\u{2}"), |seen| {
                assert_eq!(seen.header(name), None, "{name} is a header, too");
                let p = &seen.header.properties;
                assert_eq!((p.delivery_mode(), p.timestamp()), (Some(2), Some(1_700_000_000)));
                let text = |name: &str, value: Option<&[u8]>| {
                    value.map(|value| format!("{name}={}", String::from_utf8_lossy(value)))
                };
                [
                    (!seen.key.is_empty()).then(|| format!("key={}", seen.key)),
                    text("content_type", p.content_type()),
                    text("content_encoding", p.content_encoding()),
                    p.priority().map(|priority| format!("priority={priority}")),
                    text("correlation_id", p.correlation_id()),
                    text("reply_to", p.reply_to()),
                    text("expiration", p.expiration()),
                    text("message_id", p.message_id()),
                    text("type", p.message_type()),
                    text("user_id", p.user_id()),
                    text("app_id", p.app_id()),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" ")
            });
            assert_eq!(shown, expected, "{name}");
        }
    }

    #[test]
    fn every_header_has_its_source() {
        for (property, header, expected) in [
            ("colour\u{1}red", "colour", Some("red")),
            ("KEYS\u{1}k1 k2", "x-rmq-keys", Some("k1 k2")),
            ("__SHARDINGKEY\u{1}s", "__SHARDINGKEY", Some("s")),
            ("amqp.h.KEYS\u{1}theirs", "KEYS", Some("theirs")),
            ("AMQP_DEATHS\u{1}[]", "AMQP_DEATHS", Some("[]")),
            ("amqp.h.x-rmq-topic\u{1}lie", "x-rmq-topic", Some("T")),
            ("x-rmq-topic\u{1}lie", "x-rmq-topic", Some("T")),
            ("a\u{1}b", "x-rmq-queue-id", Some("3")),
            ("a\u{1}b", "x-rmq-born-host", Some("127.0.0.1:50123")),
            ("a\u{1}b", "timestamp_in_ms", Some("1700000000123")),
            ("a\u{1}b", "x-delivery-count", None),
            ("a\u{1}b", "x-death", None),
            ("AMQP_EXCHANGE\u{1}e", "AMQP_EXCHANGE", None),
            ("TIMER_DELAY_MS\u{1}5", "TIMER_DELAY_MS", None),
        ] {
            let found = seen("T", &format!("{property}\u{2}"), |seen| seen.header(header));
            assert_eq!(found.as_deref(), expected, "{header} of {property}");
        }
    }

    #[test]
    fn a_dead_letter_says_where_it_died() {
        for (properties, exchange, key) in [
            ("RETRY_TOPIC\u{1}T\u{2}TAGS\u{1}t\u{2}", "amq.rmq.T", "t"),
            ("DLQ_ORIGIN_TOPIC\u{1}U\u{2}", "amq.rmq.U", ""),
            ("RETRY_TOPIC\u{1}T\u{2}AMQP_EXCHANGE\u{1}e\u{2}AMQP_ROUTING_KEY\u{1}a||b\u{2}", "e", "a||b"),
        ] {
            seen("%DLQ%G", properties, |seen| {
                let headers = seen.header.properties.headers().unwrap();
                let Some(Value::Array(deaths)) = headers.get("x-death") else { panic!("no x-death") };
                let Some(Value::Table(death)) = deaths.iter().next() else { panic!("no table") };
                let text = |name| death.get(name).map(|value| value.to_string()).unwrap_or_default();
                assert_eq!(
                    ["count", "reason", "queue", "time", "exchange"].map(text),
                    ["1", "delivery_limit", "G", "1700000009", exchange]
                );
                let Some(Value::Array(keys)) = death.get("routing-keys") else { panic!("no keys") };
                assert_eq!(keys.iter().map(|key| key.to_string()).collect::<Vec<_>>(), [key]);
                assert_eq!(seen.header("x-first-death-queue").as_deref(), Some("G"));
                assert_eq!(seen.header("x-delivery-count").as_deref(), Some("3"));
            });
        }
    }

    #[test]
    fn a_topic_can_stand_for_an_exchange() {
        for (topic, exchange) in [
            ("AMQP-X-orders", Some("orders")),
            ("AMQP-X-a|2Eb|c3|bc", Some("a.bü")),
            ("AMQP-X-", None),
            ("AMQP-X-a|2", None),
            ("AMQP-X-a|zz", None),
            ("AMQP-X-|ff", None),
            ("AMQP-X-amq|2Ermq|2ET", None),
            ("AMQP-Q-orders", None),
            ("orders", None),
        ] {
            assert_eq!(exchange_of(topic).as_deref(), exchange, "{topic}");
        }
        let properties = "TAGS\u{1}t\u{2}AMQP_ROUTING_KEY\u{1}a.b\u{2}";
        for (topic, expected) in [("AMQP-X-orders", "\u{6}orders\u{3}a.b"), ("T", "\u{9}amq.rmq.T\u{1}t")] {
            let view = amqp_view(&stored_as(topic, properties, b"b", 0, false)).unwrap();
            assert!(view.bytes.starts_with(expected.as_bytes()), "{topic}");
        }
    }

    #[test]
    fn a_compressed_body_arrives_opened_and_a_strange_one_with_its_encoding() {
        let strange = amqp_view(&stored(b"\x28\xb5\x2f\xfd", SysFlag::COMPRESSED | 2 << 8, false)).unwrap();
        let header = ContentHeader::parse(&strange.bytes[20..strange.prefix_len as usize]).unwrap();
        assert_eq!(header.properties.content_encoding(), Some(&b"zstd"[..]));
        let opened = amqp_view(&stored(&ZLIB, SysFlag::COMPRESSED, true)).unwrap();
        assert_eq!((opened.body_len, opened.body.unwrap().concat()), (1_000, vec![b'a'; 1_000]));
        let damaged = amqp_view(&stored(&ZLIB[..9], SysFlag::COMPRESSED, false)).unwrap();
        assert_eq!(damaged.body.unwrap().concat(), ZLIB[..9]);
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let mut message = stored(b"hello", 0, false);
        message.bytes = message.bytes.slice(..40);
        assert!(amqp_view(&message).is_err());
    }
}
