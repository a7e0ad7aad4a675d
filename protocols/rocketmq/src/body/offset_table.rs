//! Tables of offsets by queue: callbacks 220 and 221, and what a tool is told of the latter (223).
//!
//! Java and Go write and read them in fastjson's dialect, where objects stand for keys, which is no JSON:
//! `{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:5}}`. The C++ client reads a list instead. Owns both
//! forms, and the bound on entries. Does not know what a table is for.

use super::{BodyError, MessageQueue, lenient, to_json};
use crate::json::{Lexer, Scalar, Unexpected};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How many queues a table may have.
const MAX_QUEUES: usize = 10_000;

const RESET: &str = "offsetTable";
const STATUS: &str = "messageQueueTable";

/// Offsets by queue, in the order written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OffsetTable(pub Vec<(MessageQueue, i64)>);

/// An entry of the list form.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    topic: String,
    broker_name: String,
    #[serde(deserialize_with = "lenient::integer")]
    queue_id: i32,
    #[serde(deserialize_with = "lenient::integer")]
    offset: i64,
}

impl OffsetTable {
    /// The body of RESET_CONSUMER_CLIENT_OFFSET (220) for Java and Go clients.
    pub fn to_reset_body(&self) -> Vec<u8> {
        self.write(RESET)
    }

    /// The body of RESET_CONSUMER_CLIENT_OFFSET (220) for C++ clients.
    pub fn to_reset_body_for_cpp(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            offset_table: Vec<Entry>,
        }
        let entry = |(queue, offset): &(MessageQueue, i64)| Entry {
            topic: queue.topic.clone(),
            broker_name: queue.broker_name.clone(),
            queue_id: queue.queue_id,
            offset: *offset,
        };
        to_json(&Body { offset_table: self.0.iter().map(entry).collect() })
    }

    /// A client's answer to GET_CONSUMER_STATUS_FROM_CLIENT (221).
    pub fn to_status_body(&self) -> Vec<u8> {
        self.write(STATUS)
    }

    /// The answer to INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223): the tables that clients answered with, by client id.
    pub fn to_statuses_body<'a>(clients: impl IntoIterator<Item = (&'a str, &'a Self)>) -> Vec<u8> {
        let mut out = b"{\"consumerTable\":{".to_vec();
        for (at, (client, table)) in clients.into_iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&to_json(&client));
            out.push(b':');
            table.put(&mut out);
        }
        out.extend_from_slice(b"},\"messageQueueTable\":{}}");
        out
    }

    /// Reads the body of RESET_CONSUMER_CLIENT_OFFSET (220), in either form.
    pub fn from_reset_body(body: &[u8]) -> Result<Self, BodyError> {
        read(body, RESET)
    }

    /// Reads a client's answer to GET_CONSUMER_STATUS_FROM_CLIENT (221).
    pub fn from_status_body(body: &[u8]) -> Result<Self, BodyError> {
        read(body, STATUS)
    }

    fn write(&self, name: &str) -> Vec<u8> {
        let mut out = format!("{{\"{name}\":").into_bytes();
        self.put(&mut out);
        out.push(b'}');
        out
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (at, (queue, offset)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&to_json(queue));
            out.extend_from_slice(format!(":{offset}").as_bytes());
        }
        out.push(b'}');
    }
}

impl From<Unexpected> for BodyError {
    fn from(Unexpected { at, wanted }: Unexpected) -> Self {
        Self(format!("expected {wanted} at byte {at}"))
    }
}

fn read(body: &[u8], name: &str) -> Result<OffsetTable, BodyError> {
    let text = std::str::from_utf8(body).map_err(|error| BodyError(error.to_string()))?;
    let mut lexer = Lexer::new(text);
    let mut table = OffsetTable::default();
    lexer.expect(b'{', "an opening brace")?;
    let mut first = true;
    while let Some(key) = lexer.next_key(&mut first)? {
        if key.text != name {
            lexer.skip_value()?;
        } else if lexer.peek() == Some(b'[') {
            table = next_list(&mut lexer)?;
        } else {
            table = next_table(&mut lexer)?;
        }
    }
    lexer.end()?;
    Ok(table)
}

/// `{{queue}:offset,...}`
fn next_table(lexer: &mut Lexer<'_>) -> Result<OffsetTable, BodyError> {
    let mut entries = Vec::new();
    lexer.expect(b'{', "an opening brace")?;
    if lexer.take(b'}') {
        return Ok(OffsetTable(entries));
    }
    loop {
        if entries.len() == MAX_QUEUES {
            return Err(BodyError(format!("more than {MAX_QUEUES} queues")));
        }
        let queue: MessageQueue = next_json(lexer)?;
        lexer.expect(b':', "a colon")?;
        let offset = match lexer.scalar()? {
            Scalar::Bare(number) => number.parse().ok(),
            Scalar::Text(_) | Scalar::Null => None,
        };
        entries.push((queue, offset.ok_or(lexer.unexpected("an offset"))?));
        if !lexer.take(b',') {
            lexer.expect(b'}', "a comma or a closing brace")?;
            return Ok(OffsetTable(entries));
        }
    }
}

/// `[{queue and offset},...]`
fn next_list(lexer: &mut Lexer<'_>) -> Result<OffsetTable, BodyError> {
    #[derive(Deserialize)]
    struct List(#[serde(deserialize_with = "lenient::list::<_, _, MAX_QUEUES>")] Vec<Entry>);

    let List(entries) = next_json(lexer)?;
    let pair = |Entry { topic, broker_name, queue_id, offset }| {
        (MessageQueue { topic, broker_name, queue_id }, offset)
    };
    Ok(OffsetTable(entries.into_iter().map(pair).collect()))
}

/// The next value, which is JSON in itself.
fn next_json<T: DeserializeOwned>(lexer: &mut Lexer<'_>) -> Result<T, BodyError> {
    let mut values = serde_json::Deserializer::from_str(lexer.rest()).into_iter();
    let value = values.next().ok_or(lexer.unexpected("a value"))??;
    let read = values.byte_offset();
    lexer.advance(read);
    Ok(value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_clients_answered_stands_under_their_ids() {
        let queue = MessageQueue { topic: "T".into(), broker_name: "b".into(), queue_id: 1 };
        let table = OffsetTable(vec![(queue, 7)]);
        let body = OffsetTable::to_statuses_body([("c@1", &table), ("d", &OffsetTable::default())]);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            concat!(
                r#"{"consumerTable":{"c@1":{{"topic":"T","brokerName":"b","queueId":1}:7},"d":{}},"#,
                r#""messageQueueTable":{}}"#
            )
        );
    }

    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    fn queue(queue_id: i32) -> MessageQueue {
        MessageQueue { topic: "TopicTest".to_owned(), broker_name: "broker-a".to_owned(), queue_id }
    }

    #[test]
    fn javas_reset_table_is_read_and_what_we_write_is_read_alike() {
        let table = OffsetTable(vec![(queue(0), 5), (queue(1), -1)]);
        assert_eq!(OffsetTable::from_reset_body(golden::body("reset_offset").as_bytes()).unwrap(), table);
        assert_eq!(OffsetTable::from_reset_body(&table.to_reset_body()).unwrap(), table);
        let written = String::from_utf8(table.to_reset_body()).unwrap();
        let java = golden::body("reset_offset");
        assert_eq!(written.len(), java.len(), "the same but for the order of a queue's keys");
    }

    #[test]
    fn javas_list_for_cpp_is_read_and_written() {
        let table = OffsetTable(vec![(queue(0), 5)]);
        let java = golden::body("reset_offset_c");
        assert_eq!(OffsetTable::from_reset_body(java.as_bytes()).unwrap(), table);
        let ours: serde_json::Value = serde_json::from_slice(&table.to_reset_body_for_cpp()).unwrap();
        assert_eq!(ours, serde_json::from_str::<serde_json::Value>(java).unwrap());
    }

    #[test]
    fn javas_status_is_read_past_its_other_table() {
        let table = OffsetTable(vec![(queue(0), 5), (queue(1), -1)]);
        assert_eq!(OffsetTable::from_status_body(golden::body("consumer_status").as_bytes()).unwrap(), table);
        assert_eq!(OffsetTable::from_status_body(&table.to_status_body()).unwrap(), table);
    }

    #[test]
    fn fastjsons_reference_to_another_place_is_refused_and_not_read_as_empty() {
        assert!(OffsetTable::from_status_body(golden::body("consumer_status_table").as_bytes()).is_err());
    }

    #[test]
    fn an_absent_table_is_an_empty_one() {
        assert_eq!(OffsetTable::from_reset_body(b"{}").unwrap(), OffsetTable::default());
        assert_eq!(OffsetTable::from_reset_body(b"{\"offsetTable\":{}}").unwrap(), OffsetTable::default());
        assert_eq!(OffsetTable::from_reset_body(b"{\"offsetTable\":[]}").unwrap(), OffsetTable::default());
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for broken in [
            "",
            "{",
            r#"{"offsetTable":}"#,
            r#"{"offsetTable":{{}:1}}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}}}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:"5"}}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:9223372036854775808}}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:5,}}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:5}"#,
            r#"{"offsetTable":{{"topic":"t","brokerName":"b","queueId":0}:5}} x"#,
        ] {
            assert!(OffsetTable::from_reset_body(broken.as_bytes()).is_err(), "{broken}");
        }
        assert!(OffsetTable::from_reset_body(&[b'{', 0xff]).is_err());
    }

    #[test]
    fn a_table_of_more_than_ten_thousand_queues_is_refused() {
        let table = |count: i32| OffsetTable((0..count).map(|at| (queue(at), 0)).collect());
        assert!(OffsetTable::from_reset_body(&table(10_000).to_reset_body()).is_ok());
        assert!(OffsetTable::from_reset_body(&table(10_001).to_reset_body()).is_err());
        assert!(OffsetTable::from_reset_body(&table(10_001).to_reset_body_for_cpp()).is_err());
    }

    proptest! {
        #[test]
        fn tables_survive_the_trip(entries in proptest::collection::vec((any::<String>(), any::<String>(), any::<i32>(), any::<i64>()), 0..5)) {
            let entry = |(topic, broker_name, queue_id, offset)| (MessageQueue { topic, broker_name, queue_id }, offset);
            let table = OffsetTable(entries.into_iter().map(entry).collect());
            prop_assert_eq!(&OffsetTable::from_reset_body(&table.to_reset_body()).unwrap(), &table);
            prop_assert_eq!(&OffsetTable::from_reset_body(&table.to_reset_body_for_cpp()).unwrap(), &table);
        }
    }
}
