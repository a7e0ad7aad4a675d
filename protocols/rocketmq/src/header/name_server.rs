//! Headers of the name server: codes 100 to 102, 105, 205, 216, 219, 224, 327. Codes 106, 206 and 304 have none.

use super::headers;

headers! {
    /// GET_ROUTEINFO_BY_TOPIC (105); answered by a [`TopicRoute`](crate::body::TopicRoute) or code 17.
    pub struct GetRoute<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// Whether the client reads standard JSON only. All known ones do read it.
        accept_standard_json_only: Option<bool> = "acceptStandardJsonOnly",
    }

    /// DELETE_TOPIC_IN_NAMESRV (216); the answer has no fields.
    pub struct DeleteRoute<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// Only in this cluster.
        cluster_name: Option<&'a str> = "clusterName",
    }

    /// PUT_KV_CONFIG (100); the answer has no fields.
    pub struct PutKv<'a> {
        /// The namespace.
        namespace: &'a str = "namespace",
        /// The key.
        key: &'a str = "key",
        /// The value.
        value: &'a str = "value",
    }

    /// GET_KV_CONFIG (101), answered by [`GetKvAnswer`] or code 22, and DELETE_KV_CONFIG (102), whose answer has no
    /// fields.
    pub struct GetKv<'a> {
        /// The namespace.
        namespace: &'a str = "namespace",
        /// The key.
        key: &'a str = "key",
    }

    /// The answer to GET_KV_CONFIG (101).
    pub struct GetKvAnswer<'a> {
        /// The value.
        value: Option<&'a str> = "value",
    }

    /// GET_KVLIST_BY_NAMESPACE (219); answered by a [`KvTable`](crate::body::KvTable).
    pub struct ListKv<'a> {
        /// The namespace.
        namespace: &'a str = "namespace",
    }

    /// GET_TOPICS_BY_CLUSTER (224); answered by a [`TopicList`](crate::body::TopicList).
    pub struct TopicsByCluster<'a> {
        /// The cluster.
        cluster: &'a str = "cluster",
    }

    /// WIPE_WRITE_PERM_OF_BROKER (205) and ADD_WRITE_PERM_OF_BROKER (327).
    pub struct BrokerByName<'a> {
        /// The broker.
        broker_name: &'a str = "brokerName",
    }

    /// The answer to WIPE_WRITE_PERM_OF_BROKER (205).
    pub struct WipeWritePermissionAnswer {
        /// How many topics changed.
        wipe_topic_count: i32 = "wipeTopicCount",
    }

    /// The answer to ADD_WRITE_PERM_OF_BROKER (327).
    pub struct AddWritePermissionAnswer {
        /// How many topics changed.
        add_topic_count: i32 = "addTopicCount",
    }
}
