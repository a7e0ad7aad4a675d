//! Headers about clients and groups: codes 34, 35, 36, 38, and the fields any 5.x request may carry.

use super::headers;

headers! {
    /// Fields that any request of a 5.x client may carry beside its own.
    pub struct Routing<'a> {
        /// The namespace.
        namespace: Option<&'a str> = "ns",
        /// Whether names already contain the namespace.
        namespaced: Option<bool> = "nsd",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
        /// Whether no answer is wanted.
        one_way: Option<bool> = "oway",
        /// Whether the queue id is that of a static topic.
        logical: Option<bool> = "lo",
    }

    /// The answer to HEART_BEAT (34). With neither field a client keeps sending whole heartbeats.
    pub struct HeartbeatAnswer {
        /// Whether a fingerprint may stand for an unchanged heartbeat.
        supports_v2: Option<bool> = "IS_SUPPORT_HEART_BEAT_V2",
        /// Whether the heartbeat changed a subscription.
        subscription_changed: Option<bool> = "IS_SUB_CHANGE",
    }

    /// UNREGISTER_CLIENT (35); the answer has no fields.
    pub struct UnregisterClient<'a> {
        /// The client's id.
        client_id: &'a str = "clientID",
        /// The producer group to leave; the C++ client sends it empty.
        producer_group: Option<&'a str> = "producerGroup",
        /// The consumer group to leave; the C++ client sends it empty.
        consumer_group: Option<&'a str> = "consumerGroup",
    }

    /// CONSUMER_SEND_MSG_BACK (36); the answer has no fields.
    pub struct ConsumerSendBack<'a> {
        /// The physical offset of the message's stored record.
        offset: i64 = "offset",
        /// The consumer group.
        group: &'a str = "group",
        /// Below 0: to the dead letters; 0: by the number of retries; else this level.
        delay_level: i32 = "delayLevel",
        /// The message's id.
        origin_msg_id: Option<&'a str> = "originMsgId",
        /// The message's topic.
        origin_topic: Option<&'a str> = "originTopic",
        /// Multi-site deployments.
        unit_mode: Option<bool> = "unitMode",
        /// After so many retries the message is dead.
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }

    /// GET_CONSUMER_LIST_BY_GROUP (38); answered by a [`ConsumerList`](crate::body::ConsumerList).
    pub struct GetConsumerList<'a> {
        /// The consumer group.
        consumer_group: &'a str = "consumerGroup",
    }

    /// GET_PRODUCER_CONNECTION_LIST (204); answered by [`ProducerConnections`](crate::body::ProducerConnections).
    pub struct GetProducers<'a> {
        /// The producer group.
        producer_group: &'a str = "producerGroup",
    }
}
