//! Headers of pulling: PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361).

use super::headers;

/// Bits of [`PullMessage::sys_flag`].
pub mod pull_flag {
    /// `commit_offset` is meant.
    pub const COMMIT_OFFSET: i32 = 1;
    /// The request may wait for messages.
    pub const SUSPEND: i32 = 2;
    /// `subscription` is meant; else that of the heartbeat.
    pub const SUBSCRIPTION: i32 = 4;
    /// Filtering by uploaded classes; obsolete.
    pub const CLASS_FILTER: i32 = 8;
    /// From the lite pull consumer.
    pub const LITE_PULL: i32 = 16;
}

headers! {
    /// Asks for the messages of a queue from an offset on.
    pub struct PullMessage<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
        /// The topic.
        topic: &'a str = "topic",
        /// The queue.
        queue_id: i32 = "queueId",
        /// The first offset wanted.
        queue_offset: i64 = "queueOffset",
        /// How many messages at most; clients send 32.
        max_msg_nums: i32 = "maxMsgNums",
        /// Bits of [`pull_flag`].
        sys_flag: i32 = "sysFlag",
        /// The group's offset to store, under [`pull_flag::COMMIT_OFFSET`].
        commit_offset: i64 = "commitOffset",
        /// How long the request may wait, in ms.
        suspend_timeout_millis: i64 = "suspendTimeoutMillis",
        /// The filter expression, under [`pull_flag::SUBSCRIPTION`].
        subscription: Option<&'a str> = "subscription",
        /// The version of the subscription meant: ms since 1970 when it was made.
        sub_version: i64 = "subVersion",
        /// TAG (also when absent) or SQL92. The C++ client does not send it.
        expression_type: Option<&'a str> = "expressionType",
        /// How many bytes at most.
        max_msg_bytes: Option<i32> = "maxMsgBytes",
        /// Set by the proxy.
        request_source: Option<i32> = "requestSource",
        /// The client behind the proxy. The misspelling is the wire's.
        proxy_forward_client_id: Option<&'a str> = "proxyFrowardClientId",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// The answer to a pull, whatever its code; the body holds the records found.
    pub struct PullAnswer {
        /// Where to pull next: 0 here, 1 from a replica.
        suggest_which_broker_id: i64 = "suggestWhichBrokerId",
        /// The offset to ask for next.
        next_begin_offset: i64 = "nextBeginOffset",
        /// The first offset kept.
        min_offset: i64 = "minOffset",
        /// The next offset to be written.
        max_offset: i64 = "maxOffset",
        /// Static topics.
        offset_delta: Option<i64> = "offsetDelta",
        /// The topic's flags.
        topic_sys_flag: Option<i32> = "topicSysFlag",
        /// The group's flags.
        group_sys_flag: Option<i32> = "groupSysFlag",
        /// Why reading is forbidden.
        forbidden_type: Option<i32> = "forbiddenType",
    }
}
