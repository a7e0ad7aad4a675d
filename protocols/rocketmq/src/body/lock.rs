//! Bodies of LOCK_BATCH_MQ (41) and UNLOCK_BATCH_MQ (42).

use super::{MessageQueue, lenient};
use serde::{Deserialize, Serialize};

/// How many queues one request may lock.
pub const MAX_LOCKED_QUEUES: usize = 10_000;

/// The request to lock or unlock queues.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockQueues {
    /// The consumer group.
    pub consumer_group: String,
    /// Who locks.
    pub client_id: String,
    /// Not on the other members of the broker group.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub only_this_broker: bool,
    /// The queues; the C++ client leaves an empty set out.
    #[serde(default, deserialize_with = "lenient::list::<_, _, MAX_LOCKED_QUEUES>")]
    pub mq_set: Vec<MessageQueue>,
}

/// The answer to a lock: the queues that are now this client's. An unlock's answer has no body.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LockAnswer {
    /// The queues.
    #[serde(rename = "lockOKMQSet", default, deserialize_with = "lenient::list::<_, _, MAX_LOCKED_QUEUES>")]
    pub locked: Vec<MessageQueue>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{from_json, same_as_java};

    #[test]
    fn locks_and_unlocks_are_javas() {
        let lock: LockQueues = same_as_java("lock");
        assert_eq!(lock.mq_set[0].queue_id, 3);
        assert_eq!(same_as_java::<LockQueues>("unlock"), lock);
        assert_eq!(same_as_java::<LockAnswer>("lock_response").locked, lock.mq_set);
    }

    #[test]
    fn the_cpp_lock_is_read() {
        let cpp =
            br#"{"clientId":"c","consumerGroup":"g","mqSet":[{"brokerName":"b","queueId":1,"topic":"t"}]}"#;
        assert_eq!(from_json::<LockQueues>(cpp).unwrap().mq_set.len(), 1);
        assert_eq!(
            from_json::<LockQueues>(b"{\"clientId\":\"c\",\"consumerGroup\":\"g\"}\n").unwrap().mq_set.len(),
            0
        );
    }

    #[test]
    fn a_lock_of_a_million_queues_is_refused() {
        let queue = r#"{"brokerName":"b","queueId":1,"topic":"t"}"#;
        let body = |count: usize| {
            format!(r#"{{"clientId":"c","consumerGroup":"g","mqSet":[{}]}}"#, vec![queue; count].join(","))
        };
        assert!(from_json::<LockQueues>(body(MAX_LOCKED_QUEUES).as_bytes()).is_ok());
        assert!(from_json::<LockQueues>(body(1_000_000).as_bytes()).is_err());
    }
}
