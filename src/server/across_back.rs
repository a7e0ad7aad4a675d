//! A message of AMQP seen from RocketMQ.
//!
//! Owns: the property mapping from AMQP to RocketMQ. Promises: the stored message is not changed; the record is the same whenever it
//! is read, its unique key included; headers beyond the 32,767 bytes that a record has for properties are left out, largest first,
//! and counted.
//! Does not know: queues, frames, who reads.

use std::net::SocketAddr;

use bytes::Bytes;
use dassie_amqp::content::ContentHeader;
use dassie_amqp::table::Value;
use dassie_rocketmq::message::{Body, PropertiesText, Record, RecordError, SysFlag, UniqueKey, property};

use super::across::is_user_property;
use crate::broker::api::{Origin, Position, StoredMessage};

/// Before headers whose names mean something to RocketMQ.
const RESERVED_PREFIX: &str = "amqp.h.";

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
        reconsume_times: 0,
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
        // Blind copies are nobody's business.
        if name == "BCC" || name.is_empty() {
            continue;
        }
        let reserved = !is_user_property(name) && name != property::SHARDING_KEY;
        let name = if reserved { format!("{RESERVED_PREFIX}{name}") } else { name.to_owned() };
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

/// A header's value as text; what is no scalar, as AMQP tools show it.
fn shown(value: &Value<'_>) -> String {
    match value {
        Value::LongStr(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Bool(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::Timestamp(value) => value.to_string(),
        Value::Void => "null".to_owned(),
        other => other.as_integer().map_or_else(|| other.to_string(), |value| value.to_string()),
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
        let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        let list = PropertyList {
            headers: Some(headers.as_table().unwrap()),
            message_id: Some(b"m-1"),
            delivery_mode: Some(2),
            ..PropertyList::default()
        };
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
        let place =
            Place { topic: "T", queue_id: 2, position: 77, store_host: "127.0.0.1:10911".parse().unwrap() };
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
