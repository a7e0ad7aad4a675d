//! A message of AMQP seen from RocketMQ.
//!
//! Owns: the property mapping from AMQP to RocketMQ. Promises: the stored message is not changed; the record is the same whenever it
//! is read, its unique key included; headers beyond the 32,767 bytes that a record has for properties are left out, largest first,
//! and counted.
//! Does not know: queues, frames, who reads.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dassie_amqp::content::ContentHeader;
use dassie_amqp::table::Value;
use dassie_rocketmq::message::{
    Body, PropertiesText, Record, RecordError, SysFlag, UniqueKey, check_group, property,
};
use serde_json::Value as Json;

use super::across::{DEATHS, RESERVED_PREFIX, asker, is_user_property};
use crate::broker::api::{Origin, Position, StoredMessage};

/// Until when a reply is of use, as clients of RocketMQ want to know it; AMQP does not say. In ms.
const REPLY_WITHIN_MS: &str = "30000";
/// Header that counts earlier deliveries.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Where the message stands in the RocketMQ world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Topic.
    pub(super) topic: &'a str,
    /// Message queue.
    pub(super) queue_id: u32,
    /// Public position: what makes the unique key unique.
    pub(super) position: Position,
    /// This broker, as clients reach it.
    pub(super) store_host: SocketAddr,
    /// Its cluster.
    pub(super) cluster: &'a str,
}

/// Why there is no such view.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoView {
    /// The bytes are no AMQP-born message.
    #[error("the stored bytes are no AMQP message")]
    Malformed,
    /// The record can not be written.
    #[error("{0}")]
    Record(RecordError),
}

/// An AMQP-born message as a RocketMQ client sees it: sent to `place.topic` with the routing key as tag.
///
/// # Errors
/// [`NoView`]
pub(super) fn rocketmq_view(message: &StoredMessage, place: &Place<'_>) -> Result<StoredMessage, NoView> {
    let prefix = message.bytes.get(..message.prefix_len as usize).ok_or(NoView::Malformed)?;
    let (exchange, rest) = short_string(prefix).ok_or(NoView::Malformed)?;
    let (key, header) = short_string(rest).ok_or(NoView::Malformed)?;
    let header = ContentHeader::parse(header).map_err(|_| NoView::Malformed)?;
    let text = properties(&header, exchange, key, message.store_time, place);
    let body = body(message)?;
    let born_time = i64::try_from(message.store_time).unwrap_or(i64::MAX);
    let record = Record {
        queue_id: i32::try_from(place.queue_id).unwrap_or(i32::MAX),
        flag: 0,
        queue_offset: 0,
        physical_offset: 0,
        sys_flag: SysFlag(0),
        born_time,
        born_host: place.store_host,
        store_time: born_time,
        store_host: place.store_host,
        reconsume_times: delivered(&header),
        prepared_transaction_offset: 0,
        topic: place.topic,
        properties: text.properties(),
    };
    let mut bytes = Vec::with_capacity(record.prefix_length() + record.suffix_length());
    record.encode_prefix(Body::of(&body).map_err(NoView::Record)?, &mut bytes).map_err(NoView::Record)?;
    let prefix_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    record.encode_suffix(&mut bytes).map_err(NoView::Record)?;
    Ok(StoredMessage {
        origin: Origin::Rocketmq,
        bytes: bytes.into(),
        prefix_len,
        body_len: message.body_len,
        body: Some(vec![body]),
        store_time: message.store_time,
    })
}

fn short_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

fn body(message: &StoredMessage) -> Result<Bytes, NoView> {
    let (start, len) = (message.prefix_len as usize, message.body_len as usize);
    match message.body.as_deref() {
        Some([one]) => Ok(one.clone()),
        Some(pieces) => Ok(Bytes::from(pieces.concat())),
        None if message.bytes.len() >= start + len => Ok(message.bytes.slice(start..start + len)),
        None => Err(NoView::Malformed),
    }
}

fn properties(
    header: &ContentHeader<'_>,
    exchange: &[u8],
    key: &[u8],
    store_time: u64,
    place: &Place<'_>,
) -> PropertiesText {
    let mut text = PropertiesText::new();
    let mut put = |name: &str, value: &str| {
        // A value that RocketMQ can not express is left out: an empty one means "none" there.
        let _ = if value.is_empty() { Ok(()) } else { text.push(name, &escaped(value)) };
    };
    let (exchange, key) = (String::from_utf8_lossy(exchange), String::from_utf8_lossy(key));
    let unique_key = unique_key(store_time, place);
    put(property::UNIQUE_KEY, &unique_key);
    if let Some(reply_to) =
        header.properties.reply_to().and_then(|to| str::from_utf8(to).ok()).filter(|to| !to.is_empty())
    {
        // What Apache's clients make a reply of, and where they send it.
        put(property::REPLY_TO_CLIENT, &asker(reply_to));
        put(property::CLUSTER, place.cluster);
        put(property::TTL, REPLY_WITHIN_MS);
    }
    // A tag expression could never name a key with its own separator.
    if !key.contains("||") {
        put(property::TAGS, &key);
    }
    put("AMQP_ROUTING_KEY", &key);
    put("AMQP_EXCHANGE", &exchange);
    let p = &header.properties;
    let texts = [
        ("AMQP_MESSAGE_ID", p.message_id()),
        (property::KEYS, p.message_id()),
        (property::CORRELATION_ID, p.correlation_id()),
        ("AMQP_REPLY_TO", p.reply_to()),
        ("AMQP_EXPIRATION", p.expiration()),
        ("AMQP_TYPE", p.message_type()),
        ("AMQP_CONTENT_TYPE", p.content_type()),
        ("AMQP_CONTENT_ENCODING", p.content_encoding()),
        ("AMQP_APP_ID", p.app_id()),
        ("AMQP_USER_ID", p.user_id()),
    ];
    for (name, value) in texts {
        put(name, &String::from_utf8_lossy(value.unwrap_or_default()));
    }
    if let Some(app) =
        p.app_id().and_then(|app| str::from_utf8(app).ok()).filter(|app| check_group(app).is_ok())
    {
        put(property::PRODUCER_GROUP, app);
    }
    let numbers = [
        ("AMQP_DELIVERY_MODE", p.delivery_mode().map(u64::from)),
        ("AMQP_TIMESTAMP", p.timestamp()),
        ("_SYS_MSG_PRIORITY_", p.priority().map(u64::from)),
    ];
    for (name, value) in numbers {
        put(name, &value.map_or_else(String::new, |value| value.to_string()));
    }
    put_headers(&mut text, header);
    text
}

/// The same for every reader of the same message, and for no other message of this broker.
fn unique_key(store_time: u64, place: &Place<'_>) -> String {
    let [_, _, a, b, c, d, e, f] = place.position.to_be_bytes();
    let instance = u32::from_be_bytes([c, d, e, f]);
    let pid = u16::from_be_bytes([a, b]);
    UniqueKey { ip: place.store_host.ip(), pid, instance, unix_ms: store_time, counter: 0 }.to_string()
}

fn put_headers(text: &mut PropertiesText, header: &ContentHeader<'_>) {
    let Some(table) = header.properties.headers() else { return };
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, value) in table.iter() {
        let name = match name {
            // Blind copies are nobody's business; the count is a field of the record.
            "" | "BCC" | DELIVERY_COUNT => continue,
            "x-death" => DEATHS.to_owned(),
            _ if !is_user_property(name) || name.starts_with(RESERVED_PREFIX) => {
                format!("{RESERVED_PREFIX}{name}")
            }
            _ => name.to_owned(),
        };
        let value = escaped(&shown(&value));
        if !value.is_empty() {
            headers.push((escaped(&name), value));
        }
    }
    // Smallest first: what does not fit then is the largest.
    headers.sort_by_key(|(name, value)| name.len() + value.len());
    let mut truncated = 0_u32;
    let room = dassie_rocketmq::message::MAX_PROPERTIES - 64;
    for (name, value) in headers {
        let length = text.properties().text().len() + name.len() + value.len() + 2;
        if length > room || text.push(&name, &value).is_err() {
            truncated += 1;
        }
    }
    if truncated > 0 {
        let _ = text.push("AMQP_HEADERS_TRUNCATED", &truncated.to_string());
    }
}

/// How often it was delivered before, as a queue that it came from says.
fn delivered(header: &ContentHeader<'_>) -> i32 {
    let count = header.properties.headers().and_then(|headers| headers.get(DELIVERY_COUNT)?.as_integer());
    count.map_or(0, |count| i32::try_from(count.max(0)).unwrap_or(i32::MAX))
}

/// A header's value as text; what is no scalar, as JSON.
fn shown(value: &Value<'_>) -> String {
    match value {
        Value::LongStr(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Bytes(_) | Value::Array(_) | Value::Table(_) | Value::Void => json(value).to_string(),
        scalar => scalar.to_string(),
    }
}

/// As JSON: bytes in base64, numbers that JSON has no word for as text. Tables end before the stack does: a header is parsed with
/// a limit on its depth.
fn json(value: &Value<'_>) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::LongStr(bytes) => String::from_utf8_lossy(bytes).into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Value::Timestamp(value) => (*value).into(),
        Value::Void => Json::Null,
        Value::Array(array) => array.iter().map(|value| json(&value)).collect(),
        Value::Table(table) => table.iter().map(|(name, value)| (name.to_owned(), json(&value))).collect(),
        Value::F64(number) if number.is_finite() => (*number).into(),
        Value::F32(number) if number.is_finite() => (*number).into(),
        other => other.as_integer().map_or_else(|| other.to_string().into(), Json::from),
    }
}

/// Without the two characters that separate properties.
fn escaped(text: &str) -> String {
    if text.contains(['\u{1}', '\u{2}']) {
        text.replace('\u{1}', "%01").replace('\u{2}', "%02")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::amqp::deliver::put_prefix;
    use super::*;
    use bytes::BytesMut;
    use dassie_amqp::content::PropertyList;
    use dassie_amqp::table::TableBuilder;
    use dassie_rocketmq::message::{Properties, StoredMessage as Decoded};

    fn property_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        Properties::new(text).get(name)
    }

    fn message(headers: &TableBuilder, key: &str) -> StoredMessage {
        let headers = Some(headers.as_table().unwrap());
        let list =
            PropertyList { message_id: Some(b"m-1"), delivery_mode: Some(2), ..PropertyList::default() };
        message_of(&PropertyList { headers, ..list }, key)
    }

    fn message_of(list: &PropertyList<'_>, key: &str) -> StoredMessage {
        let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        list.encode(&mut header);
        let mut bytes = BytesMut::new();
        put_prefix(&mut bytes, "amq.rmq.T", key, [&header, &[]]);
        let prefix_len = u32::try_from(bytes.len()).unwrap();
        bytes.extend_from_slice(b"hello");
        StoredMessage {
            origin: Origin::Amqp,
            bytes: bytes.freeze(),
            prefix_len,
            body_len: 5,
            body: None,
            store_time: 1_700_000_000_123,
        }
    }

    fn view(message: &StoredMessage) -> (Vec<u8>, String) {
        let place = Place {
            topic: "T",
            queue_id: 2,
            position: 77,
            store_host: "127.0.0.1:10911".parse().unwrap(),
            cluster: "c",
        };
        let view = rocketmq_view(message, &place).unwrap();
        let (prefix, suffix) = view.bytes.split_at(view.prefix_len as usize);
        let record = [prefix, &view.body.unwrap().concat(), suffix].concat();
        let text = Decoded::decode(&record).unwrap().0.record.properties.text().to_owned();
        (record, text)
    }

    #[test]
    fn an_amqp_message_has_its_routing_key_as_tag_and_its_headers_as_properties() {
        let mut headers = TableBuilder::new();
        headers.put("colour", "red").put("count", 7_i32).put("KEYS", "theirs").put("odd", "a\u{1}b");
        let (record, text) = view(&message(&headers, "paid"));
        let (decoded, _) = Decoded::decode(&record).unwrap();
        decoded.check_body().unwrap();
        assert_eq!((decoded.body, decoded.record.topic, decoded.record.queue_id), (&b"hello"[..], "T", 2));
        for (name, value) in [
            ("TAGS", "paid"),
            ("AMQP_EXCHANGE", "amq.rmq.T"),
            ("colour", "red"),
            ("count", "7"),
            ("KEYS", "m-1"),
            ("amqp.h.KEYS", "theirs"),
            ("odd", "a%01b"),
            ("AMQP_DELIVERY_MODE", "2"),
        ] {
            assert_eq!(property_of(&text, name), Some(value), "{name}");
        }
        assert_eq!(property_of(&text, "UNIQ_KEY").map(str::len), Some(32));
        assert_eq!(view(&message(&headers, "paid")).0, record);
    }

    #[test]
    fn every_property_has_its_name() {
        let none = PropertyList::default;
        for (list, expected) in [
            (PropertyList { message_id: Some(b"m"), ..none() }, "AMQP_MESSAGE_ID=m KEYS=m"),
            (PropertyList { correlation_id: Some(b"c"), ..none() }, "CORRELATION_ID=c"),
            (
                PropertyList { reply_to: Some(b"r"), ..none() },
                "AMQP_REPLY_TO=r CLUSTER=c REPLY_TO_CLIENT=amqp:r TTL=30000",
            ),
            (PropertyList { expiration: Some(b"5"), ..none() }, "AMQP_EXPIRATION=5"),
            (PropertyList { priority: Some(0), ..none() }, "_SYS_MSG_PRIORITY_=0"),
            (PropertyList { delivery_mode: Some(1), ..none() }, "AMQP_DELIVERY_MODE=1"),
            (PropertyList { timestamp: Some(7), ..none() }, "AMQP_TIMESTAMP=7"),
            (PropertyList { message_type: Some(b"t"), ..none() }, "AMQP_TYPE=t"),
            (PropertyList { content_type: Some(b"t"), ..none() }, "AMQP_CONTENT_TYPE=t"),
            (PropertyList { content_encoding: Some(b"t"), ..none() }, "AMQP_CONTENT_ENCODING=t"),
            (PropertyList { app_id: Some(b"app"), ..none() }, "AMQP_APP_ID=app PGROUP=app"),
            (PropertyList { app_id: Some(b"my app"), ..none() }, "AMQP_APP_ID=my app"),
            (PropertyList { user_id: Some(b"guest"), ..none() }, "AMQP_USER_ID=guest"),
            (PropertyList { message_type: Some(b""), ..none() }, ""),
            (PropertyList { message_type: Some(b"a\x02KEYS\x01b"), ..none() }, "AMQP_TYPE=a%02KEYS%01b"),
        ] {
            assert_eq!(added(&message_of(&list, "")), expected);
        }
        assert_eq!(added(&message_of(&none(), "a.b")), "AMQP_ROUTING_KEY=a.b TAGS=a.b");
        assert_eq!(added(&message_of(&none(), "a||b")), "AMQP_ROUTING_KEY=a||b");
        assert_eq!(added(&message_of(&none(), "a\u{1}b")), "AMQP_ROUTING_KEY=a%01b TAGS=a%01b");
    }

    /// The properties in order, without the two that every message has.
    fn added(message: &StoredMessage) -> String {
        let (_, text) = view(message);
        let mut all: Vec<String> =
            Properties::new(&text).iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.retain(|property| !property.starts_with("UNIQ_KEY=") && property != "AMQP_EXCHANGE=amq.rmq.T");
        all.sort();
        all.join(" ")
    }

    #[test]
    fn every_header_becomes_text_and_none_a_name_that_rocketmq_believes() {
        type Fill = fn(&mut TableBuilder);
        let cases: [(Fill, &str); 20] = [
            (
                |t| {
                    t.put("h", "text");
                },
                "h=text",
            ),
            (
                |t| {
                    t.put("h", "a\u{1}b\u{2}c");
                },
                "h=a%01b%02c",
            ),
            (
                |t| {
                    t.put("a\u{1}KEYS", "x");
                },
                "a%01KEYS=x",
            ),
            (
                |t| {
                    t.put("h", -7_i64);
                },
                "h=-7",
            ),
            (
                |t| {
                    t.put("h", true);
                },
                "h=true",
            ),
            (
                |t| {
                    t.put("h", 0.5_f64);
                },
                "h=0.5",
            ),
            (
                |t| {
                    t.put("h", Value::Timestamp(9));
                },
                "h=9",
            ),
            (
                |t| {
                    t.put("h", Value::Void);
                },
                "h=null",
            ),
            (
                |t| {
                    t.put("h", Value::Bytes(&[1, 2, 3]));
                },
                "h=\"AQID\"",
            ),
            (
                |t| {
                    t.put("h", Value::Decimal { scale: 2, value: 314 });
                },
                "h=314e-2",
            ),
            (
                |t| {
                    t.put_table("h", |t| {
                        t.put("n", 1_i32).put("s", "a\"b").put("f", f64::NAN).put("v", Value::Void);
                    });
                },
                r#"h={"f":"NaN","n":1,"s":"a\"b","v":null}"#,
            ),
            (
                |t| {
                    t.put_array("CC", |a| {
                        a.push("one").push(true).push(Value::Bytes(b"a"));
                    });
                },
                r#"CC=["one",true,"YQ=="]"#,
            ),
            (
                |t| {
                    t.put("BCC", "secret");
                },
                "",
            ),
            (
                |t| {
                    t.put("", "nameless").put("h", "");
                },
                "",
            ),
            (
                |t| {
                    t.put("UNIQ_KEY", "mine");
                },
                "amqp.h.UNIQ_KEY=mine",
            ),
            (
                |t| {
                    t.put("AMQP_EXCHANGE", "e");
                },
                "amqp.h.AMQP_EXCHANGE=e",
            ),
            (
                |t| {
                    t.put("amqp.h.KEYS", "k");
                },
                "amqp.h.amqp.h.KEYS=k",
            ),
            (
                |t| {
                    t.put("__SHARDINGKEY", "s");
                },
                "__SHARDINGKEY=s",
            ),
            (
                |t| {
                    t.put("DELAY", "3");
                },
                "amqp.h.DELAY=3",
            ),
            (
                |t| {
                    t.put_array("x-death", |deaths| {
                        deaths.push_table(|death| {
                            death.put("count", 2_i64).put("queue", "q");
                        });
                    });
                },
                r#"AMQP_DEATHS=[{"count":2,"queue":"q"}]"#,
            ),
        ];
        for (fill, expected) in cases {
            let mut headers = TableBuilder::new();
            fill(&mut headers);
            let list = PropertyList { headers: Some(headers.as_table().unwrap()), ..PropertyList::default() };
            assert_eq!(added(&message_of(&list, "")), expected);
        }
    }

    #[test]
    fn earlier_deliveries_are_a_field_of_the_record() {
        for (count, expected) in [(2, 2), (-1, 0), (i64::MAX, i32::MAX)] {
            let mut headers = TableBuilder::new();
            headers.put("x-delivery-count", count);
            let (record, text) = view(&message(&headers, "k"));
            assert_eq!(Decoded::decode(&record).unwrap().0.record.reconsume_times, expected);
            assert_eq!(property_of(&text, "x-delivery-count"), None);
        }
    }

    #[test]
    fn headers_beyond_the_room_are_counted_largest_first() {
        let mut headers = TableBuilder::new();
        let large = "x".repeat(30_000);
        headers.put("large", large.as_str()).put("larger", format!("{large}y").as_str()).put("small", "s");
        let (_, text) = view(&message(&headers, "a||b"));
        assert_eq!(property_of(&text, "AMQP_HEADERS_TRUNCATED"), Some("1"));
        assert_eq!(property_of(&text, "small"), Some("s"));
        assert!(property_of(&text, "large").is_some() && property_of(&text, "larger").is_none());
        assert_eq!(property_of(&text, "TAGS"), None);
    }
}
