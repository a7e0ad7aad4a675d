//! Headers about topics and groups for tools: codes 17, 21, 202, 207, 208, 215, 300, 303, 314, 315, 343, 345, 351, 352.

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

    /// GET_TOPIC_STATS_INFO (202), QUERY_TOPIC_CONSUME_BY_WHO (300), GET_TOPIC_CONFIG (351).
    pub struct ByTopic<'a> {
        /// The topic.
        topic: &'a str = "topic",
    }

    /// GET_SUBSCRIPTIONGROUP_CONFIG (352), QUERY_TOPICS_BY_CONSUMER (343).
    pub struct ByGroup<'a> {
        /// The group.
        group: &'a str = "group",
    }

    /// GET_CONSUME_STATS (208).
    pub struct ConsumeStats<'a> {
        /// The group.
        consumer_group: &'a str = "consumerGroup",
        /// Only this topic.
        topic: Option<&'a str> = "topic",
    }

    /// QUERY_CONSUME_TIME_SPAN (303), QUERY_SUBSCRIPTION_BY_CONSUMER (345).
    pub struct GroupAndTopic<'a> {
        /// The group.
        group: &'a str = "group",
        /// The topic.
        topic: &'a str = "topic",
    }

    /// CLONE_GROUP_OFFSET (314); the answer has no fields.
    pub struct CloneOffsets<'a> {
        /// Whose offsets.
        from: &'a str = "srcGroup",
        /// Who gets them.
        to: &'a str = "destGroup",
        /// Only in this topic.
        topic: Option<&'a str> = "topic",
        /// Whether topics count that the first group does not subscribe to now.
        offline: Option<bool> = "offline",
    }

    /// VIEW_BROKER_STATS_DATA (315).
    pub struct BrokerStats<'a> {
        /// What is counted.
        name: &'a str = "statsName",
        /// Of whom.
        key: &'a str = "statsKey",
    }

    /// DELETE_SUBSCRIPTIONGROUP (207).
    pub struct DeleteGroup<'a> {
        /// The group.
        group_name: &'a str = "groupName",
        /// Also forget its offsets.
        clean_offset: Option<bool> = "cleanOffset",
    }

    /// The answer to GET_ALL_TOPIC_CONFIG (21) for those who ask by pages.
    pub struct TopicTableAnswer {
        /// How many topics there are.
        total_topic_num: i32 = "totalTopicNum",
    }

    /// DELETE_TOPIC_IN_BROKER (215); the answer has no fields.
    pub struct DeleteTopic<'a> {
        /// The topic.
        topic: &'a str = "topic",
    }
}
