//! Request codes: what a command asks for.
//!
//! Owns the list of every code that Apache RocketMQ 4.9 to 5.5 defines, so that a refusal can name the request
//! and a permission table can be a total `match`. Does not know which of them a server serves.

use super::codes;

codes! {
    /// What a request asks for. Most travel from client to broker or name server; codes 39, 40, 220, 221, 307, 309
    /// and 326 also from broker to client.
    ///
    /// Codes above 32,767 do not fit the ROCKETMQ binary header (16 bits): they travel in JSON headers only.
    pub enum RequestCode {
        // messages, offsets, clients
        SendMessage = 10, "SEND_MESSAGE", "Store one message; long field names.";
        PullMessage = 11, "PULL_MESSAGE", "Read stored messages from an offset, possibly waiting for one to arrive.";
        QueryMessage = 12, "QUERY_MESSAGE", "Find messages by key or unique key.";
        QueryBrokerOffset = 13, "QUERY_BROKER_OFFSET", "Unused by known clients.";
        QueryConsumerOffset = 14, "QUERY_CONSUMER_OFFSET", "Read a group's offset in one queue.";
        UpdateConsumerOffset = 15, "UPDATE_CONSUMER_OFFSET", "Commit a group's offset in one queue; often one-way.";
        UpdateAndCreateTopic = 17, "UPDATE_AND_CREATE_TOPIC", "Create or change a topic.";
        UpdateAndCreateTopicList = 18, "UPDATE_AND_CREATE_TOPIC_LIST", "Create or change several topics.";
        GetAllTopicConfig = 21, "GET_ALL_TOPIC_CONFIG", "Read every topic's configuration.";
        GetTopicConfigList = 22, "GET_TOPIC_CONFIG_LIST", "Unused by known clients.";
        GetTopicNameList = 23, "GET_TOPIC_NAME_LIST", "Unused by known clients.";
        UpdateBrokerConfig = 25, "UPDATE_BROKER_CONFIG", "Change the broker's settings (CVE-2023-33246).";
        GetBrokerConfig = 26, "GET_BROKER_CONFIG", "Read the broker's settings as properties text.";
        TriggerDeleteFiles = 27, "TRIGGER_DELETE_FILES", "Unused by known clients.";
        GetBrokerRuntimeInfo = 28, "GET_BROKER_RUNTIME_INFO", "Read the broker's running figures.";
        SearchOffsetByTimestamp = 29, "SEARCH_OFFSET_BY_TIMESTAMP", "Find the offset stored at a time.";
        GetMaxOffset = 30, "GET_MAX_OFFSET", "Read the next offset of a queue.";
        GetMinOffset = 31, "GET_MIN_OFFSET", "Read the first offset kept of a queue.";
        GetEarliestMsgStoretime = 32, "GET_EARLIEST_MSG_STORETIME", "Read the store time of a queue's first message.";
        ViewMessageById = 33, "VIEW_MESSAGE_BY_ID", "Read the record at a physical offset.";
        HeartBeat = 34, "HEART_BEAT", "Announce a client's groups and subscriptions.";
        UnregisterClient = 35, "UNREGISTER_CLIENT", "Withdraw a client from its groups.";
        ConsumerSendMsgBack = 36, "CONSUMER_SEND_MSG_BACK", "Have a consumed message delivered again later.";
        EndTransaction = 37, "END_TRANSACTION", "Commit or roll back a half message; usually one-way.";
        GetConsumerListByGroup = 38, "GET_CONSUMER_LIST_BY_GROUP", "Read the client ids of a group.";
        CheckTransactionState = 39, "CHECK_TRANSACTION_STATE", "Broker asks a producer how a transaction ended.";
        NotifyConsumerIdsChanged = 40, "NOTIFY_CONSUMER_IDS_CHANGED", "Broker tells a group that its members changed.";
        LockBatchMq = 41, "LOCK_BATCH_MQ", "Lock queues for ordered consumption.";
        UnlockBatchMq = 42, "UNLOCK_BATCH_MQ", "Give up such locks.";
        GetAllConsumerOffset = 43, "GET_ALL_CONSUMER_OFFSET", "Read all groups' offsets.";
        GetAllDelayOffset = 45, "GET_ALL_DELAY_OFFSET", "Read the progress of the delay levels.";
        CheckClientConfig = 46, "CHECK_CLIENT_CONFIG", "Check a filter expression before use.";
        GetClientConfig = 47, "GET_CLIENT_CONFIG", "Debugging.";
        // access control of 4.9, gone in 5.3
        UpdateAndCreateAclConfig = 50, "UPDATE_AND_CREATE_ACL_CONFIG", "Create or change an account (4.9).";
        DeleteAclConfig = 51, "DELETE_ACL_CONFIG", "Delete an account (4.9).";
        GetBrokerClusterAclInfo = 52, "GET_BROKER_CLUSTER_ACL_INFO", "Read the version of the account list (4.9).";
        UpdateGlobalWhiteAddrsConfig = 53, "UPDATE_GLOBAL_WHITE_ADDRS_CONFIG", "Change the trusted addresses (4.9).";
        GetBrokerClusterAclConfig = 54, "GET_BROKER_CLUSTER_ACL_CONFIG", "Read accounts with their secrets (4.9).";
        GetTimerCheckPoint = 60, "GET_TIMER_CHECK_POINT", "Read the timer's checkpoint.";
        GetTimerMetrics = 61, "GET_TIMER_METRICS", "Read the timer's figures.";
        // name server
        PutKvConfig = 100, "PUT_KV_CONFIG", "Set a name server key.";
        GetKvConfig = 101, "GET_KV_CONFIG", "Read a name server key.";
        DeleteKvConfig = 102, "DELETE_KV_CONFIG", "Delete a name server key.";
        RegisterBroker = 103, "REGISTER_BROKER", "A broker announces itself and its topics.";
        UnregisterBroker = 104, "UNREGISTER_BROKER", "A broker withdraws.";
        GetRouteinfoByTopic = 105, "GET_ROUTEINFO_BY_TOPIC", "Read where a topic's queues live.";
        GetBrokerClusterInfo = 106, "GET_BROKER_CLUSTER_INFO", "Read all brokers and clusters.";
        // groups, statistics, maintenance
        UpdateAndCreateSubscriptiongroup = 200, "UPDATE_AND_CREATE_SUBSCRIPTIONGROUP", "Create or change a group.";
        GetAllSubscriptiongroupConfig = 201, "GET_ALL_SUBSCRIPTIONGROUP_CONFIG", "Read every group's configuration.";
        GetTopicStatsInfo = 202, "GET_TOPIC_STATS_INFO", "Read offsets of a topic's queues.";
        GetConsumerConnectionList = 203, "GET_CONSUMER_CONNECTION_LIST", "Read a group's connected consumers.";
        GetProducerConnectionList = 204, "GET_PRODUCER_CONNECTION_LIST", "Read a group's connected producers.";
        WipeWritePermOfBroker = 205, "WIPE_WRITE_PERM_OF_BROKER", "Take write permission from all topics of a broker.";
        GetAllTopicListFromNameserver = 206, "GET_ALL_TOPIC_LIST_FROM_NAMESERVER", "Read all topic names.";
        DeleteSubscriptiongroup = 207, "DELETE_SUBSCRIPTIONGROUP", "Delete a group.";
        GetConsumeStats = 208, "GET_CONSUME_STATS", "Read a group's progress.";
        SuspendConsumer = 209, "SUSPEND_CONSUMER", "Unused by known clients.";
        ResumeConsumer = 210, "RESUME_CONSUMER", "Unused by known clients.";
        ResetConsumerOffsetInConsumer = 211, "RESET_CONSUMER_OFFSET_IN_CONSUMER", "Unused by known clients.";
        ResetConsumerOffsetInBroker = 212, "RESET_CONSUMER_OFFSET_IN_BROKER", "Unused by known clients.";
        AdjustConsumerThreadPool = 213, "ADJUST_CONSUMER_THREAD_POOL", "Unused by known clients.";
        WhoConsumeTheMessage = 214, "WHO_CONSUME_THE_MESSAGE", "Unused by known clients.";
        DeleteTopicInBroker = 215, "DELETE_TOPIC_IN_BROKER", "Delete a topic.";
        DeleteTopicInNamesrv = 216, "DELETE_TOPIC_IN_NAMESRV", "Delete a topic's route.";
        RegisterTopicInNamesrv = 217, "REGISTER_TOPIC_IN_NAMESRV", "Announce one topic's route.";
        GetKvlistByNamespace = 219, "GET_KVLIST_BY_NAMESPACE", "Read all keys of a name server namespace.";
        ResetConsumerClientOffset = 220, "RESET_CONSUMER_CLIENT_OFFSET", "Broker tells a consumer its new offsets.";
        GetConsumerStatusFromClient = 221, "GET_CONSUMER_STATUS_FROM_CLIENT", "Broker asks a consumer for its offsets.";
        InvokeBrokerToResetOffset = 222, "INVOKE_BROKER_TO_RESET_OFFSET", "Move a group's offsets to a time.";
        InvokeBrokerToGetConsumerStatus = 223, "INVOKE_BROKER_TO_GET_CONSUMER_STATUS", "Read the offsets consumers hold.";
        GetTopicsByCluster = 224, "GET_TOPICS_BY_CLUSTER", "Read the topic names of a cluster.";
        UpdateAndCreateSubscriptiongroupList = 225, "UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST", "Create or change several groups.";
        QueryTopicConsumeByWho = 300, "QUERY_TOPIC_CONSUME_BY_WHO", "Read the groups that consume a topic.";
        RegisterFilterServer = 301, "REGISTER_FILTER_SERVER", "Obsolete.";
        RegisterMessageFilterClass = 302, "REGISTER_MESSAGE_FILTER_CLASS", "Obsolete.";
        QueryConsumeTimeSpan = 303, "QUERY_CONSUME_TIME_SPAN", "Read the time a group has reached, by queue.";
        GetSystemTopicListFromNs = 304, "GET_SYSTEM_TOPIC_LIST_FROM_NS", "Read the name server's system topics.";
        GetSystemTopicListFromBroker = 305, "GET_SYSTEM_TOPIC_LIST_FROM_BROKER", "Read the broker's system topics.";
        CleanExpiredConsumequeue = 306, "CLEAN_EXPIRED_CONSUMEQUEUE", "Delete expired queue indexes.";
        GetConsumerRunningInfo = 307, "GET_CONSUMER_RUNNING_INFO", "Ask a consumer for its state; the broker passes it on.";
        QueryCorrectionOffset = 308, "QUERY_CORRECTION_OFFSET", "Read a group's corrected offsets.";
        ConsumeMessageDirectly = 309, "CONSUME_MESSAGE_DIRECTLY", "Have one consumer consume one message now.";
        SendMessageV2 = 310, "SEND_MESSAGE_V2", "Store one message; one-letter field names.";
        GetUnitTopicList = 311, "GET_UNIT_TOPIC_LIST", "Read unit topics.";
        GetHasUnitSubTopicList = 312, "GET_HAS_UNIT_SUB_TOPIC_LIST", "Read topics with a unit subscription.";
        GetHasUnitSubUnunitTopicList = 313, "GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST", "Read other topics with a unit subscription.";
        CloneGroupOffset = 314, "CLONE_GROUP_OFFSET", "Copy one group's offsets to another.";
        ViewBrokerStatsData = 315, "VIEW_BROKER_STATS_DATA", "Read one statistic.";
        CleanUnusedTopic = 316, "CLEAN_UNUSED_TOPIC", "Delete topics without use.";
        GetBrokerConsumeStats = 317, "GET_BROKER_CONSUME_STATS", "Read every group's progress.";
        UpdateNamesrvConfig = 318, "UPDATE_NAMESRV_CONFIG", "Change the name server's settings (CVE-2023-37582).";
        GetNamesrvConfig = 319, "GET_NAMESRV_CONFIG", "Read the name server's settings.";
        SendBatchMessage = 320, "SEND_BATCH_MESSAGE", "Store several messages; one-letter field names.";
        QueryConsumeQueue = 321, "QUERY_CONSUME_QUEUE", "Read entries of a queue index.";
        QueryDataVersion = 322, "QUERY_DATA_VERSION", "A broker asks whether its registration is stale.";
        ResumeCheckHalfMessage = 323, "RESUME_CHECK_HALF_MESSAGE", "Check a parked half message again.";
        SendReplyMessage = 324, "SEND_REPLY_MESSAGE", "Answer a request message; long field names.";
        SendReplyMessageV2 = 325, "SEND_REPLY_MESSAGE_V2", "Answer a request message; one-letter field names.";
        PushReplyMessageToClient = 326, "PUSH_REPLY_MESSAGE_TO_CLIENT", "Broker hands such an answer to the requester.";
        AddWritePermOfBroker = 327, "ADD_WRITE_PERM_OF_BROKER", "Give write permission back to a broker's topics.";
        GetAllProducerInfo = 328, "GET_ALL_PRODUCER_INFO", "Read all connected producers.";
        DeleteExpiredCommitlog = 329, "DELETE_EXPIRED_COMMITLOG", "Delete expired log files.";
        QueryTopicsByConsumer = 343, "QUERY_TOPICS_BY_CONSUMER", "Read the topics a group consumes.";
        QuerySubscriptionByConsumer = 345, "QUERY_SUBSCRIPTION_BY_CONSUMER", "Read a group's subscription to a topic.";
        GetTopicConfig = 351, "GET_TOPIC_CONFIG", "Read one topic's configuration.";
        GetSubscriptiongroupConfig = 352, "GET_SUBSCRIPTIONGROUP_CONFIG", "Read one group's configuration.";
        UpdateAndGetGroupForbidden = 353, "UPDATE_AND_GET_GROUP_FORBIDDEN", "Forbid a group to read a topic.";
        CheckRocksdbCqWriteProgress = 354, "CHECK_ROCKSDB_CQ_WRITE_PROGRESS", "Tool of one storage engine.";
        ExportRocksdbConfigToJson = 355, "EXPORT_ROCKSDB_CONFIG_TO_JSON", "Tool of one storage engine.";
        LitePullMessage = 361, "LITE_PULL_MESSAGE", "As PULL_MESSAGE, from the lite pull consumer.";
        RecallMessage = 370, "RECALL_MESSAGE", "Take back a delayed message.";
        QueryAssignment = 400, "QUERY_ASSIGNMENT", "Have the broker allocate queues to a consumer.";
        SetMessageRequestMode = 401, "SET_MESSAGE_REQUEST_MODE", "Switch a group between pull and POP.";
        GetAllMessageRequestMode = 402, "GET_ALL_MESSAGE_REQUEST_MODE", "Read all groups' modes.";
        UpdateAndCreateStaticTopic = 513, "UPDATE_AND_CREATE_STATIC_TOPIC", "Create or change a static topic.";
        // broker groups and their controller
        GetBrokerMemberGroup = 901, "GET_BROKER_MEMBER_GROUP", "Read the members of a broker group.";
        AddBroker = 902, "ADD_BROKER", "Add a broker to a container.";
        RemoveBroker = 903, "REMOVE_BROKER", "Remove a broker from a container.";
        BrokerHeartbeat = 904, "BROKER_HEARTBEAT", "A broker says that it lives.";
        NotifyMinBrokerIdChange = 905, "NOTIFY_MIN_BROKER_ID_CHANGE", "Tell brokers who leads their group.";
        ExchangeBrokerHaInfo = 906, "EXCHANGE_BROKER_HA_INFO", "Exchange replication addresses.";
        GetBrokerHaStatus = 907, "GET_BROKER_HA_STATUS", "Read replication figures.";
        ResetMasterFlushOffset = 908, "RESET_MASTER_FLUSH_OFFSET", "Move the replication position.";
        ControllerAlterSyncStateSet = 1001, "CONTROLLER_ALTER_SYNC_STATE_SET", "Change a group's in-sync replicas.";
        ControllerElectMaster = 1002, "CONTROLLER_ELECT_MASTER", "Elect a group's master.";
        ControllerRegisterBroker = 1003, "CONTROLLER_REGISTER_BROKER", "Register at the controller.";
        ControllerGetReplicaInfo = 1004, "CONTROLLER_GET_REPLICA_INFO", "Read a group's master.";
        ControllerGetMetadataInfo = 1005, "CONTROLLER_GET_METADATA_INFO", "Read the controller's state.";
        ControllerGetSyncStateData = 1006, "CONTROLLER_GET_SYNC_STATE_DATA", "Read in-sync replicas.";
        GetBrokerEpochCache = 1007, "GET_BROKER_EPOCH_CACHE", "Read a broker's epochs.";
        NotifyBrokerRoleChanged = 1008, "NOTIFY_BROKER_ROLE_CHANGED", "Tell a broker its role.";
        UpdateControllerConfig = 1009, "UPDATE_CONTROLLER_CONFIG", "Change the controller's settings.";
        GetControllerConfig = 1010, "GET_CONTROLLER_CONFIG", "Read the controller's settings.";
        CleanBrokerData = 1011, "CLEAN_BROKER_DATA", "Forget a broker at the controller.";
        ControllerGetNextBrokerId = 1012, "CONTROLLER_GET_NEXT_BROKER_ID", "Read the next free broker id.";
        ControllerApplyBrokerId = 1013, "CONTROLLER_APPLY_BROKER_ID", "Take a broker id.";
        BrokerCloseChannelRequest = 1014, "BROKER_CLOSE_CHANNEL_REQUEST", "Between controllers.";
        CheckNotActiveBrokerRequest = 1015, "CHECK_NOT_ACTIVE_BROKER_REQUEST", "Between controllers.";
        GetBrokerLiveInfoRequest = 1016, "GET_BROKER_LIVE_INFO_REQUEST", "Between controllers.";
        GetSyncStateDataRequest = 1017, "GET_SYNC_STATE_DATA_REQUEST", "Between controllers.";
        RaftBrokerHeartBeatEventRequest = 1018, "RAFT_BROKER_HEART_BEAT_EVENT_REQUEST", "Between controllers.";
        // flow control of cold reads
        UpdateColdDataFlowCtrConfig = 2001, "UPDATE_COLD_DATA_FLOW_CTR_CONFIG", "Set a group's cold-read limit.";
        RemoveColdDataFlowCtrConfig = 2002, "REMOVE_COLD_DATA_FLOW_CTR_CONFIG", "Remove such a limit.";
        GetColdDataFlowCtrInfo = 2003, "GET_COLD_DATA_FLOW_CTR_INFO", "Read such limits.";
        SetCommitlogReadMode = 2004, "SET_COMMITLOG_READ_MODE", "Set the log's read-ahead.";
        // access control of 5.3
        AuthCreateUser = 3001, "AUTH_CREATE_USER", "Create a user.";
        AuthUpdateUser = 3002, "AUTH_UPDATE_USER", "Change a user.";
        AuthDeleteUser = 3003, "AUTH_DELETE_USER", "Delete a user.";
        AuthGetUser = 3004, "AUTH_GET_USER", "Read a user.";
        AuthListUser = 3005, "AUTH_LIST_USER", "Read users.";
        AuthCreateAcl = 3006, "AUTH_CREATE_ACL", "Create permissions.";
        AuthUpdateAcl = 3007, "AUTH_UPDATE_ACL", "Change permissions.";
        AuthDeleteAcl = 3008, "AUTH_DELETE_ACL", "Delete permissions.";
        AuthGetAcl = 3009, "AUTH_GET_ACL", "Read permissions of a subject.";
        AuthListAcl = 3010, "AUTH_LIST_ACL", "Read permissions.";
        SwitchTimerEngine = 5001, "SWITCH_TIMER_ENGINE", "Change the timer's storage (5.5).";
        // POP
        PopMessage = 200050, "POP_MESSAGE", "Take messages under a lease with a deadline.";
        AckMessage = 200051, "ACK_MESSAGE", "Settle one leased message.";
        PeekMessage = 200052, "PEEK_MESSAGE", "Read messages without a lease.";
        ChangeMessageInvisibletime = 200053, "CHANGE_MESSAGE_INVISIBLETIME", "Move a lease's deadline.";
        Notification = 200054, "NOTIFICATION", "Wait until a group has messages.";
        PollingInfo = 200055, "POLLING_INFO", "Read how many requests wait.";
        PopRollback = 200056, "POP_ROLLBACK", "Tool.";
        PopLiteMessage = 200070, "POP_LITE_MESSAGE", "Lite mode (5.5).";
        LiteSubscriptionCtl = 200071, "LITE_SUBSCRIPTION_CTL", "Lite mode (5.5).";
        AckLiteMessage = 200072, "ACK_LITE_MESSAGE", "Lite mode (5.5).";
        NotifyUnsubscribeLite = 200073, "NOTIFY_UNSUBSCRIBE_LITE", "Lite mode (5.5).";
        GetBrokerLiteInfo = 200074, "GET_BROKER_LITE_INFO", "Lite mode (5.5).";
        GetParentTopicInfo = 200075, "GET_PARENT_TOPIC_INFO", "Lite mode (5.5).";
        GetLiteTopicInfo = 200076, "GET_LITE_TOPIC_INFO", "Lite mode (5.5).";
        GetLiteClientInfo = 200077, "GET_LITE_CLIENT_INFO", "Lite mode (5.5).";
        GetLiteGroupInfo = 200078, "GET_LITE_GROUP_INFO", "Lite mode (5.5).";
        TriggerLiteDispatch = 200079, "TRIGGER_LITE_DISPATCH", "Lite mode (5.5).";
        BatchAckMessage = 200151, "BATCH_ACK_MESSAGE", "Settle several leased messages.";
    }
}
