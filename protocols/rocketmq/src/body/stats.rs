//! Figures of topics and groups, and what broker and group lists look like: codes 28, 201, 202, 208, 300, 303, 343.
//!
//! Java writes and reads tables by queue in fastjson's dialect, where objects stand for keys, which is no JSON. Owns those
//! forms. Does not know where figures come from.

use super::{MessageQueue, lenient, to_json};
use serde::{Deserialize, Serialize};

/// Where a queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicOffset {
    /// First offset kept.
    pub min_offset: i64,
    /// Next offset to be written.
    pub max_offset: i64,
    /// Store time of the last message, in ms since 1970; 0 without one.
    pub last_update_timestamp: i64,
}

/// Where a group is in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeOffset {
    /// Next offset to be written.
    pub broker_offset: i64,
    /// The group's.
    pub consumer_offset: i64,
    /// How far it has pulled.
    pub pull_offset: i64,
    /// Store time of the last message before the group's offset, in ms since 1970; 0 without one.
    pub last_timestamp: i64,
}

/// The times between which a queue's messages were stored, and the one that a group has reached. In ms since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueTimeSpan {
    /// The queue.
    pub message_queue: MessageQueue,
    /// Store time of the first message; -1 without one.
    pub min_time_stamp: i64,
    /// Store time of the last message; -1 without one.
    pub max_time_stamp: i64,
    /// Store time of the last message before the group's offset, else of the first one.
    pub consume_time_stamp: i64,
    /// How long the next message has waited for the group, in ms; 0 without one.
    pub delay_time: i64,
}

/// The answer to QUERY_CONSUME_TIME_SPAN (303).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeTimeSpan {
    /// One by queue.
    pub consume_time_span_set: Vec<QueueTimeSpan>,
}

/// The answer to GET_TOPIC_STATS_INFO (202).
pub fn topic_stats(queues: &[(MessageQueue, TopicOffset)]) -> Vec<u8> {
    table(queues, "topicPutTps")
}

/// The answer to GET_CONSUME_STATS (208).
pub fn consume_stats(queues: &[(MessageQueue, ConsumeOffset)]) -> Vec<u8> {
    table(queues, "consumeTps")
}

fn table<T: Serialize>(queues: &[(MessageQueue, T)], rate: &str) -> Vec<u8> {
    let mut out = format!("{{\"{rate}\":0.0,\"offsetTable\":{{").into_bytes();
    for (at, (queue, value)) in queues.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&to_json(queue));
        out.push(b':');
        out.extend_from_slice(&to_json(value));
    }
    out.extend_from_slice(b"}}");
    out
}

/// Names of groups: the answer to QUERY_TOPIC_CONSUME_BY_WHO (300).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupList {
    /// The groups.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 1_000_000>")]
    pub group_list: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_objects_as_keys_as_java_reads_them() {
        let queue = MessageQueue { topic: "T".into(), broker_name: "b".into(), queue_id: 1 };
        let stats = topic_stats(&[
            (queue.clone(), TopicOffset { min_offset: 1, max_offset: 2, last_update_timestamp: 3 }),
            (queue, TopicOffset::default()),
        ]);
        assert_eq!(
            String::from_utf8(stats).unwrap(),
            concat!(
                r#"{"topicPutTps":0.0,"offsetTable":{{"topic":"T","brokerName":"b","queueId":1}:"#,
                r#"{"minOffset":1,"maxOffset":2,"lastUpdateTimestamp":3},{"topic":"T","brokerName":"b","queueId":1}:"#,
                r#"{"minOffset":0,"maxOffset":0,"lastUpdateTimestamp":0}}}"#
            )
        );
        assert_eq!(consume_stats(&[]), br#"{"consumeTps":0.0,"offsetTable":{}}"#);
    }
}
