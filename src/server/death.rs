//! What a message becomes that dies in an AMQP queue: the same, with its deaths in its headers.
//!
//! Owns: `x-death` and its like, as RabbitMQ 3.10 writes them, and who must not get such a message again. Promises: one entry for
//! each queue and reason, the last death first; nothing else of the message changes but the expiration and, with a new routing key,
//! CC. A message of RocketMQ becomes what an AMQP reader sees of it. Does not know: queues, bindings, when something dies.

use std::sync::Arc;

use bytes::BytesMut;
use dassie_amqp::content::{ContentHeader, PropertyList};
use dassie_amqp::table::{ArrayBuilder, RawTable, TableBuilder, Value};

use super::across::{amqp_view, parts};
use super::amqp::deliver::put_prefix;
use super::amqp::publish::java_hash;
use crate::broker::api::{Cause, DeadLetter, Death, Message, Origin, Publish, StoredMessage};

/// Where deaths are listed.
const DEATHS: &str = "x-death";

/// What RabbitMQ calls it.
const fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Rejected => "rejected",
        Cause::Expired => "expired",
        Cause::Length => "maxlen",
    }
}

/// See [`crate::broker::api::Semantics::dead_letter`].
pub(super) fn dead_letter(stored: &StoredMessage, death: &Death<'_>) -> Result<DeadLetter, String> {
    let seen = match stored.origin {
        Origin::Amqp => stored.clone(),
        Origin::Rocketmq => amqp_view(stored).map_err(|error| error.to_string())?,
    };
    let (prefix, body, _) = parts(&seen).map_err(|error| error.to_string())?;
    let came = Address::cut(&prefix).ok_or("no message of AMQP")?;
    let header = ContentHeader::parse(came.header).map_err(|error| error.to_string())?;
    let old = header.properties.headers().unwrap_or(RawTable::EMPTY);
    let copies = copies(old);
    let headers = with_death(old, &came, &copies, header.properties.expiration(), death);
    let headers = headers.as_table().map_err(|error| error.to_string())?;
    let barred = match death.cause {
        Cause::Rejected => Vec::new(),
        Cause::Expired | Cause::Length => circle(headers),
    };
    let list = PropertyList { headers: Some(headers), expiration: None, ..header.properties.to_list() };
    let mut changed = came.header.get(..12).ok_or("no content header")?.to_vec();
    list.encode(&mut changed);
    let key = death.routing_key.cloned().unwrap_or_else(|| came.key.into());
    let mut bytes = BytesMut::with_capacity(changed.len() + body.len() + 512);
    put_prefix(&mut bytes, death.exchange, &key, [&changed, &[]]);
    let prefix_len = u32::try_from(bytes.len()).map_err(|error| error.to_string())?;
    bytes.extend_from_slice(&body);
    let message = Message {
        origin: Origin::Amqp,
        bytes: bytes.freeze(),
        prefix_len,
        body_len: seen.body_len,
        tag_hash: java_hash(&key),
        persistent: header.properties.delivery_mode() == Some(2),
        ttl: None,
    };
    let also =
        if death.routing_key.is_some() { Vec::new() } else { copies.into_iter().map(Arc::from).collect() };
    let publish = Publish {
        channel: 0,
        exchange: Arc::clone(death.exchange),
        routing_key: key,
        also,
        mandatory: false,
        confirm: 0,
        message,
    };
    // One that its producer compressed was opened.
    let same_body = stored.origin == Origin::Amqp || parts(stored).is_ok_and(|(_, stored, _)| stored == body);
    Ok(DeadLetter { publish, barred, same_body })
}

/// A prefix taken apart.
struct Address<'a> {
    exchange: &'a str,
    key: &'a str,
    header: &'a [u8],
}

impl<'a> Address<'a> {
    fn cut(prefix: &'a [u8]) -> Option<Self> {
        let (exchange, rest) = short_string(prefix)?;
        let (key, header) = short_string(rest)?;
        Some(Self { exchange, key, header })
    }
}

fn short_string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*len))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// The routing keys in the header CC. BCC is not kept with a message.
fn copies(headers: RawTable<'_>) -> Vec<&str> {
    match headers.get("CC") {
        Some(Value::Array(keys)) => {
            keys.iter().filter_map(|key| key.as_str()).filter(|key| key.len() < 256).collect()
        }
        _ => Vec::new(),
    }
}

/// The headers with this death in them, in the order of their names.
fn with_death(
    old: RawTable<'_>,
    came: &Address<'_>,
    copies: &[&str],
    expiration: Option<&[u8]>,
    death: &Death<'_>,
) -> TableBuilder {
    let reason = reason(death.cause);
    let earlier = old.get(DEATHS);
    let deaths = match earlier {
        Some(Value::Array(deaths)) => deaths.iter().collect(),
        _ => Vec::new(),
    };
    let same = |known: &Value<'_>| match known {
        Value::Table(known) => {
            text(*known, "queue") == Some(death.queue) && text(*known, "reason") == Some(reason)
        }
        _ => false,
    };
    let mut fields: Vec<(&str, Value<'_>)> = old.iter().filter(|(name, _)| *name != DEATHS).collect();
    if death.routing_key.is_some() {
        fields.retain(|(name, _)| *name != "CC");
    }
    let first = [
        ("x-first-death-reason", reason),
        ("x-first-death-queue", death.queue),
        ("x-first-death-exchange", came.exchange),
    ];
    if earlier.is_none() {
        fields.retain(|(name, _)| first.iter().all(|(first, _)| first != name));
        fields.extend(first.map(|(name, value)| (name, Value::from(value))));
    }
    // Where the list of deaths stands.
    fields.push((DEATHS, Value::Void));
    fields.sort_by_key(|(name, _)| *name);
    let mut table = TableBuilder::new();
    for (name, value) in fields {
        if name != DEATHS {
            table.put(name, value);
            continue;
        }
        table.put_array(DEATHS, |list| {
            match deaths.iter().find(|known| same(known)) {
                Some(Value::Table(known)) => {
                    let times = deaths.iter().filter(|known| same(known)).map(times).sum::<i64>();
                    list.push_table(|entry| died_again(entry, *known, times.saturating_add(1)));
                }
                _ => {
                    let sorted = matches!(earlier, Some(Value::Array(_)));
                    push_death(list, sorted, came, copies, expiration, death);
                }
            }
            for other in deaths.iter().filter(|known| !same(known)) {
                list.push(*other);
            }
        });
    }
    table
}

fn text<'a>(table: RawTable<'a>, name: &str) -> Option<&'a str> {
    table.get(name)?.as_str()
}

/// How often a message died so.
fn times(known: &Value<'_>) -> i64 {
    let Value::Table(known) = known else { return 0 };
    known.get("count").and_then(|count| count.as_integer()).unwrap_or(1)
}

fn died_again(entry: &mut TableBuilder, known: RawTable<'_>, times: i64) {
    let mut fields: Vec<(&str, Value<'_>)> = known.iter().filter(|(name, _)| *name != "count").collect();
    fields.push(("count", Value::I64(times)));
    fields.sort_by_key(|(name, _)| *name);
    for (name, value) in fields {
        entry.put(name, value);
    }
}

/// The first death of its kind. RabbitMQ sorts the fields of all but a message's very first one.
fn push_death(
    list: &mut ArrayBuilder,
    sorted: bool,
    came: &Address<'_>,
    copies: &[&str],
    expiration: Option<&[u8]>,
    death: &Death<'_>,
) {
    let mut keys = ArrayBuilder::default();
    keys.push(came.key);
    copies.iter().for_each(|key| {
        keys.push(*key);
    });
    list.push_table(|entry| {
        let mut fields = vec!["count", "reason", "queue", "time", "exchange", "routing-keys"];
        if expiration.is_some() {
            fields.push("original-expiration");
        }
        if sorted {
            fields.sort_unstable();
        }
        for name in fields {
            match name {
                "count" => entry.put(name, 1_i64),
                "reason" => entry.put(name, reason(death.cause)),
                "queue" => entry.put(name, death.queue),
                "time" => entry.put(name, Value::Timestamp(death.time)),
                "exchange" => entry.put(name, came.exchange),
                "original-expiration" => entry.put(name, Value::LongStr(expiration.unwrap_or_default())),
                _ => entry.put_array(name, |array| *array = keys.clone()),
            };
        }
    });
}

/// The queues in which it died since somebody rejected it: back in one of them it would go round for ever.
fn circle(headers: RawTable<'_>) -> Vec<Arc<str>> {
    let Some(Value::Array(deaths)) = headers.get(DEATHS) else { return Vec::new() };
    let since = deaths.iter().map_while(|death| match death {
        Value::Table(death) if text(death, "reason") != Some("rejected") => Some(text(death, "queue")),
        _ => None,
    });
    since.flatten().map(Arc::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(list: &PropertyList<'_>, in_pieces: bool) -> StoredMessage {
        let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
        list.encode(&mut header);
        let mut bytes = BytesMut::new();
        put_prefix(&mut bytes, "ex", "key", [&header, &[]]);
        let prefix_len = u32::try_from(bytes.len()).unwrap();
        if !in_pieces {
            bytes.extend_from_slice(b"body");
        }
        let body = in_pieces.then(|| vec![b"bo".to_vec().into(), b"dy".to_vec().into()]);
        StoredMessage {
            origin: Origin::Amqp,
            bytes: bytes.freeze(),
            prefix_len,
            body_len: 4,
            body,
            store_time: 0,
        }
    }

    fn died(message: &StoredMessage, cause: Cause, queue: &str, key: Option<&str>, time: u64) -> DeadLetter {
        let (exchange, key) = ("dlx".into(), key.map(Arc::from));
        let death = Death { cause, queue, exchange: &exchange, routing_key: key.as_ref(), time };
        dead_letter(message, &death).unwrap()
    }

    /// As its next queue has it.
    fn again(letter: &DeadLetter) -> StoredMessage {
        let message = &letter.publish.message;
        StoredMessage {
            origin: message.origin,
            bytes: message.bytes.clone(),
            prefix_len: message.prefix_len,
            body_len: message.body_len,
            body: None,
            store_time: 0,
        }
    }

    /// Its headers' names, and those of its deaths with queue, reason and count.
    fn deaths(letter: &DeadLetter) -> (Vec<String>, Vec<(String, String, i64)>) {
        let message = again(letter);
        let (prefix, body, _) = parts(&message).unwrap();
        assert_eq!(&body[..], b"body");
        let came = Address::cut(&prefix).unwrap();
        assert_eq!(came.exchange, "dlx");
        let header = ContentHeader::parse(came.header).unwrap();
        let headers = header.properties.headers().unwrap();
        let Some(Value::Array(list)) = headers.get(DEATHS) else { panic!("no deaths") };
        let deaths = list.iter().map(|death| {
            let Value::Table(death) = death else { panic!("{death:?}") };
            let count = death.get("count").and_then(|count| count.as_integer()).unwrap_or(0);
            (text(death, "queue").unwrap().into(), text(death, "reason").unwrap().into(), count)
        });
        (headers.iter().map(|(name, _)| name.to_owned()).collect(), deaths.collect())
    }

    #[test]
    fn deaths_are_counted_by_queue_and_reason_and_the_last_stands_first() {
        let list =
            PropertyList { expiration: Some(b"10"), delivery_mode: Some(2), ..PropertyList::default() };
        for in_pieces in [false, true] {
            let first = died(&stored(&list, in_pieces), Cause::Expired, "a", None, 7);
            let second = died(&again(&first), Cause::Rejected, "b", None, 8);
            let third = died(&again(&second), Cause::Expired, "a", None, 9);
            let (names, all) = deaths(&third);
            assert_eq!(
                names,
                [DEATHS, "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"]
            );
            assert_eq!(all, [("a".into(), "expired".into(), 2), ("b".into(), "rejected".into(), 1)]);
            assert!(third.same_body && third.publish.message.persistent);
            let message = again(&third);
            let (prefix, ..) = parts(&message).unwrap();
            let header = ContentHeader::parse(Address::cut(&prefix).unwrap().header).unwrap();
            assert_eq!((header.properties.expiration(), header.body_size), (None, 4));
            let Some(Value::Array(list)) = header.properties.headers().unwrap().get(DEATHS) else { panic!() };
            let Some(Value::Table(known)) = list.iter().next() else { panic!() };
            // Of its first time there.
            assert_eq!(known.get("time"), Some(Value::Timestamp(7)));
            assert_eq!(text(known, "original-expiration"), Some("10"));
            assert_eq!(text(known, "exchange"), Some("ex"));
        }
    }

    #[test]
    fn a_circle_ends_where_somebody_rejected() {
        let names =
            |letter: &DeadLetter| letter.barred.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let first = died(&stored(&PropertyList::default(), false), Cause::Length, "a", None, 7);
        assert_eq!(names(&first), ["a"]);
        let rejected = died(&again(&first), Cause::Rejected, "b", None, 8);
        assert_eq!(names(&rejected), Vec::<String>::new());
        let third = died(&again(&rejected), Cause::Expired, "c", None, 9);
        assert_eq!(names(&third), ["c"]);
    }

    #[test]
    fn copies_go_on_unless_there_is_a_new_key() {
        let mut table = TableBuilder::new();
        table.put("z", 1_i32).put_array("CC", |keys| {
            keys.push("one").push(2_i32).push("two");
        });
        let list = PropertyList { headers: Some(table.as_table().unwrap()), ..PropertyList::default() };
        let same = died(&stored(&list, false), Cause::Rejected, "q", None, 1);
        let also: Vec<_> = same.publish.also.iter().map(|key| &**key).collect();
        assert_eq!((&*same.publish.routing_key, also), ("key", vec!["one", "two"]));
        assert_eq!(deaths(&same).0[..2], ["CC", DEATHS]);
        let new = died(&stored(&list, false), Cause::Rejected, "q", Some("new"), 1);
        assert_eq!((&*new.publish.routing_key, new.publish.also.len()), ("new", 0));
        assert_eq!(deaths(&new).0[0], DEATHS);
        assert_eq!(new.publish.message.tag_hash, java_hash("new"));
    }

    #[test]
    fn what_is_no_message_of_amqp_has_no_death() {
        let message = StoredMessage {
            origin: Origin::Amqp,
            bytes: b"\x09ex".to_vec().into(),
            prefix_len: 3,
            body_len: 0,
            body: None,
            store_time: 0,
        };
        let exchange = "dlx".into();
        let death =
            Death { cause: Cause::Length, queue: "q", exchange: &exchange, routing_key: None, time: 1 };
        assert!(dead_letter(&message, &death).is_err());
    }
}
