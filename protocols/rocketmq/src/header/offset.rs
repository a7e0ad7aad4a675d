//! Headers about offsets: codes 14, 15, 29, 30, 31, 32.

use super::{Value, headers};
use crate::command::FieldWriter;

/// Which of several messages stored in one millisecond a search means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Boundary {
    /// The first.
    Lower,
    /// The last.
    Upper,
}

impl Value<'_> for Boundary {
    const KIND: &'static str = "LOWER or UPPER";
    fn parse(text: &str) -> Option<Self> {
        [(Self::Lower, "LOWER"), (Self::Upper, "UPPER")]
            .into_iter()
            .find_map(|(boundary, name)| name.eq_ignore_ascii_case(text).then_some(boundary))
    }
    fn put(&self, name: &str, out: &mut FieldWriter<'_>) {
        out.text(name, if *self == Self::Lower { "LOWER" } else { "UPPER" });
    }
}

headers! {
    /// QUERY_CONSUMER_OFFSET (14); answered by [`OffsetAnswer`] or code 22.
    pub struct QueryConsumerOffset<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// Whether 0 stands for "none stored"; true when absent.
        set_zero_if_not_found: Option<bool> = "setZeroIfNotFound",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// UPDATE_CONSUMER_OFFSET (15); the answer has no fields.
    pub struct UpdateConsumerOffset<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// The next offset the group wants.
        commit_offset: i64 = "commitOffset",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP (29); answered by [`OffsetAnswer`].
    pub struct SearchOffset<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// Store time, in ms since 1970.
        timestamp: i64 = "timestamp",
        /// The first of equals when absent.
        boundary_type: Option<Boundary> = "boundaryType",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// GET_MAX_OFFSET (30); answered by [`OffsetAnswer`].
    pub struct GetMaxOffset<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// Whether only replicated messages count; true when absent.
        committed: Option<bool> = "committed",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// GET_MIN_OFFSET (31), answered by [`OffsetAnswer`], and GET_EARLIEST_MSG_STORETIME (32), answered by
    /// [`TimestampAnswer`].
    pub struct QueueAddress<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// The answer to codes 14, 29, 30 and 31.
    pub struct OffsetAnswer {
        /// The offset.
        offset: i64 = "offset",
    }

    /// The answer to GET_EARLIEST_MSG_STORETIME (32).
    pub struct TimestampAnswer {
        /// In ms since 1970.
        timestamp: i64 = "timestamp",
    }
}
