//! Headers of what a broker asks its clients: codes 39, 40, 220, 221, 307, 309. Code 326 is among the sends.

use super::headers;

headers! {
    /// CHECK_TRANSACTION_STATE (39), one-way; the body is the half message's record under its real topic. The client
    /// replies with END_TRANSACTION.
    pub struct CheckTransactionState<'a> {
        /// The topic.
        topic: Option<&'a str> = "topic",
        /// The half message's offset in its queue.
        tran_state_table_offset: i64 = "tranStateTableOffset",
        /// The half message's physical offset.
        commit_log_offset: i64 = "commitLogOffset",
        /// The message's unique key.
        msg_id: Option<&'a str> = "msgId",
        /// The transaction's id.
        transaction_id: Option<&'a str> = "transactionId",
        /// The half message's offset id.
        offset_msg_id: Option<&'a str> = "offsetMsgId",
    }

    /// NOTIFY_CONSUMER_IDS_CHANGED (40), one-way: rebalance now.
    pub struct NotifyConsumerIdsChanged<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
    }

    /// RESET_CONSUMER_CLIENT_OFFSET (220), one-way; the body is an offset table (a list for C++ clients).
    pub struct ResetConsumerOffset<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The consumer group.
        group: &'a str = "group",
        /// Only this queue.
        queue_id: Option<i32> = "queueId",
        /// To this offset.
        offset: Option<i64> = "offset",
        /// To this store time, in ms since 1970.
        timestamp: i64 = "timestamp",
        /// Also forwards.
        is_force: bool = "isForce",
    }

    /// GET_CONSUMER_STATUS_FROM_CLIENT (221); answered by the client's offset table.
    pub struct GetConsumerStatus<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The consumer group.
        group: &'a str = "group",
        /// Only this client.
        client_addr: Option<&'a str> = "clientAddr",
    }

    /// GET_CONSUMER_RUNNING_INFO (307); the answer's body goes to the asking tool unread.
    pub struct GetConsumerRunningInfo<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
        /// The client's id.
        client_id: &'a str = "clientId",
        /// Whether the threads' stacks are wanted.
        jstack_enable: Option<bool> = "jstackEnable",
    }

    /// CONSUME_MESSAGE_DIRECTLY (309); the body is the message's record, the answer's a
    /// [`ConsumeDirectlyResult`](crate::body::ConsumeDirectlyResult).
    pub struct ConsumeMessageDirectly<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
        /// The client's id.
        client_id: Option<&'a str> = "clientId",
        /// The message's id.
        msg_id: Option<&'a str> = "msgId",
        /// The broker that stores it.
        broker_name: Option<&'a str> = "brokerName",
        /// The topic.
        topic: Option<&'a str> = "topic",
        /// The topic's flags.
        topic_sys_flag: Option<i32> = "topicSysFlag",
        /// The group's flags.
        group_sys_flag: Option<i32> = "groupSysFlag",
    }
}
