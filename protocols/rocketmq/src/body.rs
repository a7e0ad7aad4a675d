//! JSON bodies: heartbeats, locks, routes, topics, groups, offset tables.
//!
//! Owns their shapes and what is tolerated in them: enum names or ordinals, numbers or booleans in quotes, `null` for
//! absent, unknown keys. Promises bounded lists wherever a client writes them, and standard JSON on the way out,
//! but for the offset tables that Java and Go read in fastjson's own dialect ([`OffsetTable`]). Does not know what
//! a body is for.

mod client;
mod group;
mod heartbeat;
mod lenient;
mod lock;
mod offset_table;
mod route;
mod stats;
mod topic;

pub use client::{
    CheckClient, ClientConnection, ConsumeDirectlyResult, ConsumeOutcome, ConsumerConnections, ConsumerList,
    GroupSubscription, ProducerConnections, ProducerInfo, ProducerTable,
};
pub use group::{
    CustomizedRetry, ExponentialRetry, GroupConfig, GroupConfigs, GroupTable, RetryPolicy, SimpleSubscription,
};
pub use heartbeat::{
    ConsumeFromWhere, ConsumeType, Consumer, Heartbeat, MAX_SUBSCRIPTIONS, MessageModel, Producer,
    Subscription,
};
pub use lock::{LockAnswer, LockQueues, MAX_LOCKED_QUEUES};
pub use offset_table::OffsetTable;
pub use route::{BrokerAddresses, ClusterInfo, KvTable, QueueCounts, TopicList, TopicRoute};
pub use stats::{
    ConsumeOffset, ConsumeTimeSpan, GroupList, QueueTimeSpan, TopicOffset, consume_stats, topic_stats,
};
pub use topic::{DataVersion, TopicConfig, TopicConfigs, TopicTable};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A body that can not be read. Answer it with SYSTEM_ERROR and this text; the connection is fine.
#[derive(Debug)]
pub struct BodyError(String);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JSON body: {}", self.0)
    }
}

impl std::error::Error for BodyError {}

impl From<serde_json::Error> for BodyError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads a body.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    Ok(serde_json::from_slice(body)?)
}

/// Writes a body.
pub fn to_json<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body)
        .expect("bodies have text or integer keys only: nothing in them can fail to be written")
}

/// One queue of a topic, as bodies name it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueue {
    /// The topic.
    pub topic: String,
    /// The broker name.
    pub broker_name: String,
    /// The queue.
    #[serde(deserialize_with = "lenient::integer")]
    pub queue_id: i32,
}

#[cfg(test)]
use tests::same_as_java;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use std::fmt::Debug;

    /// Reads what Java wrote, and checks that what we write of it says the same.
    pub(crate) fn same_as_java<T: DeserializeOwned + Serialize + PartialEq + Debug>(name: &str) -> T {
        let java = golden::body(name);
        let read: T = from_json(java.as_bytes()).unwrap();
        let written = to_json(&read);
        let ours: serde_json::Value = serde_json::from_slice(&written).unwrap();
        let theirs: serde_json::Value = serde_json::from_str(java).unwrap();
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(from_json::<T>(&written).unwrap(), read, "{name}");
        read
    }

    #[test]
    fn a_deep_body_is_refused_without_recursion_to_the_end() {
        let deep = format!("{{\"topicList\":{}", "[".repeat(1_000_000));
        assert!(from_json::<TopicList>(deep.as_bytes()).is_err());
        let deep = format!("{{\"unknown\":{}", "{\"a\":".repeat(1_000_000));
        assert!(from_json::<TopicList>(deep.as_bytes()).is_err());
    }
}
