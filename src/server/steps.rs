//! What becomes of a stored message that comes back, waits, or is committed: the RocketMQ side of moves.
//!
//! Owns: the record at the next place, property by property, as Apache's broker leaves it. Promises: body, flag, born time and
//! host stay; a message born in AMQP that a RocketMQ consumer sends back goes on as the record that this consumer saw.
//! Does not know: queues, time, who may do what.

use std::sync::Arc;

use bytes::Bytes;
use dassie_rocketmq::message::{
    Body, DLQ_PREFIX, MessageId, PropertiesText, RETRY_PREFIX, Record, TransactionState, property,
    system_topic, tag_hash, waiting,
};

use super::across::{parts, routing_key};
use super::across_back::{Place, rocketmq_view};
use crate::broker::api::{Half, Message, Origin, SendBack, SendMessage, Step, Stepped, StoredMessage, Waits};

/// See [`crate::broker::api::Semantics::step`].
pub(super) fn step(message: &StoredMessage, step: &Step<'_>, cluster: &str) -> Result<Stepped, Arc<str>> {
    if message.origin == Origin::Amqp {
        let Step::SentBack { back, topic, .. } = step else { return Err("no message of RocketMQ".into()) };
        return step_record(&as_seen(message, back, topic, cluster)?, step);
    }
    step_record(message, step)
}

/// A message of AMQP as the consumer saw it that sends it back.
fn as_seen(
    message: &StoredMessage,
    back: &SendBack,
    topic: &str,
    cluster: &str,
) -> Result<StoredMessage, Arc<str>> {
    let id: MessageId = back.id.parse().map_err(|_| "the message's id is none")?;
    let place = Place { topic, queue_id: 0, position: back.position, store_host: id.store_host, cluster };
    rocketmq_view(message, &place).map_err(|error| error.to_string().into())
}

fn step_record(message: &StoredMessage, step: &Step<'_>) -> Result<Stepped, Arc<str>> {
    let (prefix, body, suffix) = parts(message).map_err(text)?;
    let (mut record, measured) = Record::decode_parts(&prefix, &suffix).map_err(text)?;
    let mut properties = PropertiesText::from_properties(record.properties).map_err(text)?;
    let next = match step {
        Step::Due => due(&mut properties)?,
        Step::SentBack { back, topic, levels } => {
            let next = sent_back(&mut properties, record.reconsume_times, back, topic, *levels)?;
            record.reconsume_times = record.reconsume_times.saturating_add(1);
            next
        }
        Step::Committed { position, asked, levels } => {
            record.sys_flag = record.sys_flag.with_transaction(TransactionState::Commit);
            record.prepared_transaction_offset = i64::try_from(*position).unwrap_or(i64::MAX);
            committed(&mut properties, *asked, *levels)?
        }
        Step::GivenUp => Next { topic: system_topic::TRANS_CHECK_MAX_TIME.into(), queue_id: 0, waits: None },
    };
    let properties = properties.properties();
    let shown: Arc<str> = shown_topic(next.waits).map_or_else(|| Arc::clone(&next.topic), Into::into);
    record.topic = &shown;
    record.properties = properties;
    let send = encode(&record, &next.topic, measured, &body)?;
    Ok(Stepped { send, topic: next.topic, queue_id: next.queue_id, waits: next.waits })
}

/// Where a message goes.
struct Next {
    topic: Arc<str>,
    queue_id: u32,
    waits: Option<Waits>,
}

fn due(properties: &mut PropertiesText) -> Result<Next, Arc<str>> {
    let (topic, queue_id) =
        waiting::target(properties.properties()).ok_or("it does not say where it is for")?;
    Ok(Next { topic: topic.into(), queue_id, waits: None })
}

fn sent_back(
    properties: &mut PropertiesText,
    attempts: i32,
    back: &SendBack,
    topic: &str,
    levels: u32,
) -> Result<Next, Arc<str>> {
    // Of a retry, clients name the topic that their application knows.
    let first = properties.properties().get(property::RETRY_TOPIC).unwrap_or(topic);
    if back.topic.as_ref().is_some_and(|known| **known != *topic && **known != *first) {
        return Err(format!("look message by offset failed to check the topic name{}", back.position).into());
    }
    if properties.properties().get(property::RETRY_TOPIC).is_none() {
        properties.set(property::RETRY_TOPIC, topic).map_err(text)?;
    }
    if properties.properties().get(property::ORIGIN_MESSAGE_ID).is_none_or(|id| id.trim().is_empty()) {
        properties.set(property::ORIGIN_MESSAGE_ID, &back.id).map_err(text)?;
    }
    if attempts >= back.attempts_max || back.level < 0 {
        properties.set(property::DELAY_TIME_LEVEL, "0").map_err(text)?;
        return Ok(Next { topic: format!("{DLQ_PREFIX}{}", back.group).into(), queue_id: 0, waits: None });
    }
    let level = if back.level == 0 { attempts.saturating_add(3) } else { back.level };
    let level = u32::try_from(level).unwrap_or(1).clamp(1, levels.max(1));
    let topic = format!("{RETRY_PREFIX}{}", back.group);
    properties.set(property::DELAY_TIME_LEVEL, &level.to_string()).map_err(text)?;
    waiting::note_target(properties, &topic, 0).map_err(text)?;
    Ok(Next { topic: topic.into(), queue_id: 0, waits: Some(Waits::Delay(level)) })
}

fn committed(properties: &mut PropertiesText, asked: u32, levels: u32) -> Result<Next, Arc<str>> {
    if asked > 0 {
        properties.set(property::TRANSACTION_CHECK_TIMES, &asked.to_string()).map_err(text)?;
    }
    let next = due(properties)?;
    // A half message's delay begins with its commit.
    let level = waiting::delay_level(properties.properties()).unwrap_or(0);
    let level = u32::try_from(level).unwrap_or(0).min(levels);
    if level == 0 {
        // Apache leaves them in a message that was delayed, but not in one that was committed.
        properties.remove(property::REAL_TOPIC);
        properties.remove(property::REAL_QUEUE_ID);
    }
    Ok(Next { waits: (level > 0).then_some(Waits::Delay(level)), ..next })
}

/// The topic that a waiting message's own record names.
pub(super) fn shown_topic(waits: Option<Waits>) -> Option<&'static str> {
    match waits? {
        Waits::Delay(_) => Some(system_topic::SCHEDULE),
        Waits::Half => Some(system_topic::TRANS_HALF),
    }
}

/// `topic`: where it goes in the end.
fn encode(record: &Record<'_>, topic: &str, measured: Body, body: &[u8]) -> Result<SendMessage, Arc<str>> {
    let mut bytes = Vec::with_capacity(record.prefix_length() + body.len() + record.suffix_length());
    record.encode_prefix(measured, &mut bytes).map_err(text)?;
    let prefix_len = u32::try_from(bytes.len()).map_err(text)?;
    bytes.extend_from_slice(body);
    record.encode_suffix(&mut bytes).map_err(text)?;
    let tag = record.properties.get(property::TAGS);
    let message = Message {
        origin: Origin::Rocketmq,
        bytes: Bytes::from(bytes),
        prefix_len,
        body_len: measured.length,
        tag_hash: i32::try_from(tag_hash(tag)).unwrap_or_default().cast_unsigned(),
        persistent: true,
        ttl: None,
    };
    Ok(SendMessage { message, tag: routing_key(topic, record.properties).into() })
}

fn text(error: impl std::fmt::Display) -> Arc<str> {
    error.to_string().into()
}

/// See [`crate::broker::api::Semantics::half`].
pub(super) fn half(message: &StoredMessage) -> Option<Half> {
    let (prefix, _, suffix) = parts(message).ok()?;
    let (record, _) = Record::decode_parts(&prefix, &suffix).ok()?;
    let group = record.properties.get(property::PRODUCER_GROUP).unwrap_or_default().into();
    Some(Half { group, not_before_ms: waiting::check_immunity_ms(record.properties) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_rocketmq::message::{Properties, StoredMessage as Decoded, SysFlag};

    fn stored(properties: &str, reconsume_times: i32) -> StoredMessage {
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
            reconsume_times,
            prepared_transaction_offset: 0,
            topic: "T",
            properties: Properties::new(properties),
        };
        let mut bytes = Vec::new();
        record.encode(b"body", &mut bytes).unwrap();
        StoredMessage {
            origin: Origin::Rocketmq,
            bytes: bytes.into(),
            prefix_len: u32::try_from(record.prefix_length()).unwrap(),
            body_len: 4,
            body: None,
            store_time: 2,
        }
    }

    fn back(level: i32) -> SendBack {
        SendBack {
            queue: 1,
            position: 77,
            topic: None,
            group: "g".into(),
            level,
            attempts_max: 16,
            id: "7F00000100002A9F000000000000004D".into(),
        }
    }

    fn after(message: &StoredMessage, how: &Step<'_>) -> (Stepped, String, i32) {
        let stepped = step(message, how, "c").unwrap();
        let bytes = stepped.send.message.bytes.clone();
        let (decoded, used) = Decoded::decode(&bytes).unwrap();
        decoded.check_body().unwrap();
        assert_eq!(
            (used, decoded.body, decoded.record.flag),
            (stepped.send.message.bytes.len(), &b"body"[..], 9)
        );
        let record = decoded.record;
        let shown = format!(
            "{} {}",
            record.topic,
            record.properties.text().replace('\u{1}', "=").replace('\u{2}', " ")
        );
        (stepped, shown, record.reconsume_times)
    }

    #[test]
    fn a_message_sent_back_waits_by_its_attempts_and_knows_where_it_came_from() {
        let message = stored("TAGS\u{1}a\u{2}", 2);
        let (stepped, shown, attempts) =
            after(&message, &Step::SentBack { back: &back(0), topic: "T", levels: 18 });
        assert_eq!((stepped.waits, &*stepped.topic, attempts), (Some(Waits::Delay(5)), "%RETRY%g", 3));
        assert_eq!(
            shown,
            "SCHEDULE_TOPIC_XXXX TAGS=a RETRY_TOPIC=T ORIGIN_MESSAGE_ID=7F00000100002A9F000000000000004D DELAY=5 REAL_TOPIC=%RETRY%g REAL_QID=0 "
        );
        let again = StoredMessage { bytes: stepped.send.message.bytes, ..message };
        let again = StoredMessage { prefix_len: stepped.send.message.prefix_len, ..again };
        let (due, shown, attempts) = after(&again, &Step::Due);
        assert_eq!((due.waits, &*due.topic, due.queue_id, attempts), (None, "%RETRY%g", 0, 3));
        assert!(shown.starts_with("%RETRY%g TAGS=a RETRY_TOPIC=T"), "{shown}");
        // Its first topic and id stay.
        let second = SendBack { id: "X".into(), topic: Some("T".into()), ..back(1) };
        let foreign = SendBack { topic: Some("U".into()), ..back(1) };
        assert!(
            step(&again, &Step::SentBack { back: &foreign, topic: "%RETRY%g", levels: 18 }, "c").is_err()
        );
        let (_, shown, _) = after(&again, &Step::SentBack { back: &second, topic: "%RETRY%g", levels: 18 });
        assert!(shown.contains("RETRY_TOPIC=T ") && shown.contains("000000000000004D"), "{shown}");
    }

    #[test]
    fn after_its_last_attempt_or_at_once_a_message_is_dead_and_levels_have_an_end() {
        for (level, attempts, expected) in
            [(-1, 0, "%DLQ%g"), (3, 16, "%DLQ%g"), (0, 15, "%RETRY%g"), (99, 0, "%RETRY%g")]
        {
            let message = stored("", attempts);
            let (stepped, shown, after) =
                after(&message, &Step::SentBack { back: &back(level), topic: "T", levels: 18 });
            assert_eq!((&*stepped.topic, after), (expected, attempts + 1));
            let waits = (expected == "%RETRY%g").then_some(Waits::Delay(18));
            assert_eq!(stepped.waits, waits, "{shown}");
        }
    }

    #[test]
    fn a_committed_message_points_at_its_half_and_a_delayed_one_waits_first() {
        let half = "REAL_TOPIC\u{1}R\u{2}REAL_QID\u{1}2\u{2}PGROUP\u{1}P\u{2}TRAN_MSG\u{1}true\u{2}";
        let commit = Step::Committed { position: 99, asked: 2, levels: 18 };
        let (stepped, shown, _) = after(&stored(half, 0), &commit);
        assert_eq!((&*stepped.topic, stepped.queue_id, stepped.waits), ("R", 2, None));
        assert_eq!(shown, "R PGROUP=P TRAN_MSG=true TRANSACTION_CHECK_TIMES=2 ");
        let (decoded, _) = Decoded::decode(&stepped.send.message.bytes).unwrap();
        assert_eq!((decoded.record.prepared_transaction_offset, decoded.record.sys_flag.0), (99, 8));
        let delayed = format!("{half}DELAY\u{1}2\u{2}");
        assert_eq!(after(&stored(&delayed, 0), &commit).0.waits, Some(Waits::Delay(2)));
        assert_eq!(
            super::half(&stored(&format!("{half}CHECK_IMMUNITY_TIME_IN_SECONDS\u{1}5\u{2}"), 0)),
            Some(Half { group: "P".into(), not_before_ms: Some(5000) })
        );
        assert_eq!(&*after(&stored(half, 0), &Step::GivenUp).0.topic, "TRANS_CHECK_MAX_TIME_TOPIC");
    }

    #[test]
    fn a_message_that_waits_for_nowhere_goes_nowhere() {
        assert!(step(&stored("", 0), &Step::Due, "c").is_err());
        let broken = StoredMessage { bytes: Bytes::from_static(b"short"), ..stored("", 0) };
        assert!(step(&broken, &Step::Due, "c").is_err() && half(&broken).is_none());
    }
}
