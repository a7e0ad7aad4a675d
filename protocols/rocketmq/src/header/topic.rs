//! Headers of creating and deleting topics: codes 17 and 215.

use super::headers;

headers! {
    /// UPDATE_AND_CREATE_TOPIC (17); the answer has no fields.
    pub struct CreateTopic<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The topic whose settings it takes over.
        default_topic: &'a str = "defaultTopic",
        /// Queues to read.
        read_queue_nums: i32 = "readQueueNums",
        /// Queues to write.
        write_queue_nums: i32 = "writeQueueNums",
        /// 4 read, 2 write, 1 inherit.
        perm: i32 = "perm",
        /// SINGLE_TAG or MULTI_TAG.
        topic_filter_type: &'a str = "topicFilterType",
        /// The topic's flags.
        topic_sys_flag: Option<i32> = "topicSysFlag",
        /// Whether order matters more than availability. The C++ client does not send it.
        order: Option<bool> = "order",
        /// Changes, as `+name=value,-name`.
        attributes: Option<&'a str> = "attributes",
        /// Overrides static topics' checks.
        force: Option<bool> = "force",
    }

    /// DELETE_TOPIC_IN_BROKER (215); the answer has no fields.
    pub struct DeleteTopic<'a> {
        /// The topic.
        topic: &'a str = "topic",
    }
}
