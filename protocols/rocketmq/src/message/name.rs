//! Names of topics and groups: what they may contain, and which are taken.
//!
//! Owns Apache's rules: `^[%|a-zA-Z0-9_-]+$`, topics up to 127 bytes (so that the one-byte length of a record's topic is
//! never negative for Java), groups up to 120, retry and dead-letter topics up to 255.

use std::fmt;

/// The longest topic.
pub const MAX_TOPIC: usize = 127;
/// The longest group.
pub const MAX_GROUP: usize = 120;
/// The longest retry or dead-letter topic.
pub const MAX_RETRY_TOPIC: usize = 255;
/// Before a group: the topic its retries go to.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Before a group: the topic its dead messages go to.
pub const DLQ_PREFIX: &str = "%DLQ%";

/// Topics that belong to the broker.
pub mod system_topic {
    /// Settings of automatically created topics: a producer asks for its route when its own topic has none.
    pub const AUTO_CREATE: &str = "TBW102";
    /// Delayed messages, a queue for each level.
    pub const SCHEDULE: &str = "SCHEDULE_TOPIC_XXXX";
    /// Of the benchmark classes.
    pub const BENCHMARK: &str = "BenchmarkTest";
    /// Half messages.
    pub const TRANS_HALF: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
    /// Which half messages are done.
    pub const TRANS_OP_HALF: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
    /// Half messages nobody wants to decide.
    pub const TRANS_CHECK_MAX_TIME: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
    /// Traces.
    pub const TRACE: &str = "RMQ_SYS_TRACE_TOPIC";
    /// Unused.
    pub const SELF_TEST: &str = "SELF_TEST_TOPIC";
    /// Consumers whose offset was outside the queue.
    pub const OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
    /// Of one storage engine.
    pub const ROCKSDB_OFFSET: &str = "CHECKPOINT_TOPIC";
    /// Begins the names of all newer system topics.
    pub const PREFIX: &str = "rmq_sys_";

    /// All of them.
    pub const ALL: [&str; 10] = [
        AUTO_CREATE,
        SCHEDULE,
        BENCHMARK,
        TRANS_HALF,
        TRANS_OP_HALF,
        TRANS_CHECK_MAX_TIME,
        TRACE,
        SELF_TEST,
        OFFSET_MOVED_EVENT,
        ROCKSDB_OFFSET,
    ];

    pub(super) const UNSENDABLE: [&str; 6] =
        [SCHEDULE, TRANS_HALF, TRANS_OP_HALF, TRANS_CHECK_MAX_TIME, SELF_TEST, OFFSET_MOVED_EVENT];
}

/// A name that no topic or group may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// Empty.
    Blank,
    /// A character outside `%|a-zA-Z0-9_-`.
    IllegalCharacter,
    /// Too long.
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("the name is blank"),
            Self::IllegalCharacter => f.write_str("the name has characters outside ^[%|a-zA-Z0-9_-]+$"),
            Self::TooLong { limit } => write!(f, "the name is longer than {limit}"),
        }
    }
}

impl std::error::Error for NameError {}

/// Checks a topic's name.
pub fn check_topic(topic: &str) -> Result<(), NameError> {
    let of_group = topic.starts_with(RETRY_PREFIX) || topic.starts_with(DLQ_PREFIX);
    check(topic, if of_group { MAX_RETRY_TOPIC } else { MAX_TOPIC })
}

/// Checks a group's name.
pub fn check_group(group: &str) -> Result<(), NameError> {
    check(group, MAX_GROUP)
}

fn check(name: &str, limit: usize) -> Result<(), NameError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-');
    if name.is_empty() {
        Err(NameError::Blank)
    } else if name.len() > limit {
        Err(NameError::TooLong { limit })
    } else if !name.bytes().all(legal) {
        Err(NameError::IllegalCharacter)
    } else {
        Ok(())
    }
}

/// Whether a topic belongs to the broker. Those named after a cluster or a broker are not known here.
pub fn is_system_topic(topic: &str) -> bool {
    topic.starts_with(system_topic::PREFIX) || system_topic::ALL.contains(&topic)
}

/// Whether no client may send to a topic.
pub fn is_unsendable_topic(topic: &str) -> bool {
    system_topic::UNSENDABLE.contains(&topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_have_letters_digits_and_four_other_characters() {
        for good in ["TopicTest", "a", "%RETRY%g", "INST%topic", "a|b", "A-b_9"] {
            assert_eq!(check_topic(good), Ok(()), "{good}");
        }
        for bad in ["a b", "a/b", "../../x", "a.b", "a\0", "a\u{1}b", "é", "名", "a+b"] {
            assert_eq!(check_topic(bad), Err(NameError::IllegalCharacter), "{bad}");
        }
        assert_eq!(check_topic(""), Err(NameError::Blank));
    }

    #[test]
    fn lengths_are_bounded_by_kind() {
        assert_eq!(check_topic(&"t".repeat(127)), Ok(()));
        assert_eq!(check_topic(&"t".repeat(128)), Err(NameError::TooLong { limit: 127 }));
        assert_eq!(check_topic(&format!("%RETRY%{}", "g".repeat(248))), Ok(()));
        assert_eq!(check_topic(&format!("%DLQ%{}", "g".repeat(251))), Err(NameError::TooLong { limit: 255 }));
        assert_eq!(check_group(&"g".repeat(120)), Ok(()));
        assert_eq!(check_group(&"g".repeat(121)), Err(NameError::TooLong { limit: 120 }));
    }

    #[test]
    fn the_brokers_own_topics_are_known() {
        assert!(is_system_topic("TBW102") && is_system_topic("rmq_sys_wheel_timer"));
        assert!(!is_system_topic("TopicTest") && !is_system_topic("tbw102"));
        assert!(
            is_unsendable_topic("SCHEDULE_TOPIC_XXXX") && is_unsendable_topic("RMQ_SYS_TRANS_HALF_TOPIC")
        );
        assert!(!is_unsendable_topic("RMQ_SYS_TRACE_TOPIC") && !is_unsendable_topic("BenchmarkTest"));
    }
}
