//! Response codes: how a request ended.
//!
//! Owns the list of Apache RocketMQ 4.9 to 5.5. Does not know which request may answer which code.

use super::codes;

codes! {
    /// How a request ended. The Java producer retries on 1, 2, 14, 16, 17, 204, 205 and 1500; a send answered by
    /// 0, 10, 11 or 12 counts as stored, whatever the name says.
    pub enum ResponseCode {
        Success = 0, "SUCCESS", "Done.";
        SystemError = 1, "SYSTEM_ERROR", "Failed; the remark says why. Retried elsewhere by producers.";
        SystemBusy = 2, "SYSTEM_BUSY", "Refused for now; retried by producers.";
        RequestCodeNotSupported = 3, "REQUEST_CODE_NOT_SUPPORTED", "This server does not serve the code.";
        TransactionFailed = 4, "TRANSACTION_FAILED", "Unused by known servers.";
        FlushDiskTimeout = 10, "FLUSH_DISK_TIMEOUT", "Stored, not known to be synced.";
        SlaveNotAvailable = 11, "SLAVE_NOT_AVAILABLE", "Stored, without a replica.";
        FlushSlaveTimeout = 12, "FLUSH_SLAVE_TIMEOUT", "Stored, the replicas did not answer in time.";
        MessageIllegal = 13, "MESSAGE_ILLEGAL", "The message breaks a limit or a rule.";
        ServiceNotAvailable = 14, "SERVICE_NOT_AVAILABLE", "The broker can not write now.";
        VersionNotSupported = 15, "VERSION_NOT_SUPPORTED", "The client is too old.";
        NoPermission = 16, "NO_PERMISSION", "Forbidden by topic, group or account.";
        TopicNotExist = 17, "TOPIC_NOT_EXIST", "No such topic, or no route to it.";
        TopicExistAlready = 18, "TOPIC_EXIST_ALREADY", "Such a topic exists.";
        PullNotFound = 19, "PULL_NOT_FOUND", "Nothing at this offset yet.";
        PullRetryImmediately = 20, "PULL_RETRY_IMMEDIATELY", "Nothing matched here; pull again from the next offset.";
        PullOffsetMoved = 21, "PULL_OFFSET_MOVED", "The offset is outside the queue; the answer names a better one.";
        QueryNotFound = 22, "QUERY_NOT_FOUND", "Nothing stored under this key.";
        SubscriptionParseFailed = 23, "SUBSCRIPTION_PARSE_FAILED", "The filter expression is wrong.";
        SubscriptionNotExist = 24, "SUBSCRIPTION_NOT_EXIST", "The group does not subscribe to the topic.";
        SubscriptionNotLatest = 25, "SUBSCRIPTION_NOT_LATEST", "The broker's subscription is older than the request's.";
        SubscriptionGroupNotExist = 26, "SUBSCRIPTION_GROUP_NOT_EXIST", "No such group.";
        FilterDataNotExist = 27, "FILTER_DATA_NOT_EXIST", "The compiled filter is missing.";
        FilterDataNotLatest = 28, "FILTER_DATA_NOT_LATEST", "The compiled filter is older than the request's.";
        InvalidParameter = 29, "INVALID_PARAMETER", "A field is out of range.";
        TransactionShouldCommit = 200, "TRANSACTION_SHOULD_COMMIT", "Unused by known servers.";
        TransactionShouldRollback = 201, "TRANSACTION_SHOULD_ROLLBACK", "Unused by known servers.";
        TransactionStateUnknow = 202, "TRANSACTION_STATE_UNKNOW", "Unused by known servers.";
        TransactionStateGroupWrong = 203, "TRANSACTION_STATE_GROUP_WRONG", "Unused by known servers.";
        NoBuyerId = 204, "NO_BUYER_ID", "Retried by producers; unused by known servers.";
        NotInCurrentUnit = 205, "NOT_IN_CURRENT_UNIT", "Retried by producers; unused by known servers.";
        ConsumerNotOnline = 206, "CONSUMER_NOT_ONLINE", "No member of the group is connected.";
        ConsumeMsgTimeout = 207, "CONSUME_MSG_TIMEOUT", "The consumer did not answer in time.";
        NoMessage = 208, "NO_MESSAGE", "The queue has no such message.";
        PollingFull = 209, "POLLING_FULL", "Too many requests wait already.";
        PollingTimeout = 210, "POLLING_TIMEOUT", "Nothing arrived while waiting.";
        BrokerNotExist = 211, "BROKER_NOT_EXIST", "No such broker.";
        BrokerDispatchNotComplete = 212, "BROKER_DISPATCH_NOT_COMPLETE", "The index is behind the log.";
        BroadcastConsumption = 213, "BROADCAST_CONSUMPTION", "The group broadcasts: the broker has no offsets of it.";
        FlowControl = 215, "FLOW_CONTROL", "Refused by a rate limit.";
        NotLeaderForQueue = 501, "NOT_LEADER_FOR_QUEUE", "A static topic's queue lives elsewhere.";
        IllegalOperation = 604, "ILLEGAL_OPERATION", "The operation is not allowed in this state.";
        GoAway = 1500, "GO_AWAY", "Reconnect elsewhere; only for clients above 5.3.1.";
        ControllerFencedMasterEpoch = 2000, "CONTROLLER_FENCED_MASTER_EPOCH", "Controller only.";
        ControllerFencedSyncStateSetEpoch = 2001, "CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH", "Controller only.";
        ControllerInvalidMaster = 2002, "CONTROLLER_INVALID_MASTER", "Controller only.";
        ControllerInvalidReplicas = 2003, "CONTROLLER_INVALID_REPLICAS", "Controller only.";
        ControllerMasterNotAvailable = 2004, "CONTROLLER_MASTER_NOT_AVAILABLE", "Controller only.";
        ControllerInvalidRequest = 2005, "CONTROLLER_INVALID_REQUEST", "Controller only.";
        ControllerBrokerNotAlive = 2006, "CONTROLLER_BROKER_NOT_ALIVE", "Controller only.";
        ControllerNotLeader = 2007, "CONTROLLER_NOT_LEADER", "Controller only.";
        ControllerBrokerMetadataNotExist = 2008, "CONTROLLER_BROKER_METADATA_NOT_EXIST", "Controller only.";
        ControllerInvalidCleanBrokerMetadata = 2009, "CONTROLLER_INVALID_CLEAN_BROKER_METADATA", "Controller only.";
        ControllerBrokerNeedToBeRegistered = 2010, "CONTROLLER_BROKER_NEED_TO_BE_REGISTERED", "Controller only.";
        ControllerMasterStillExist = 2011, "CONTROLLER_MASTER_STILL_EXIST", "Controller only.";
        ControllerElectMasterFailed = 2012, "CONTROLLER_ELECT_MASTER_FAILED", "Controller only.";
        ControllerAlterSyncStateSetFailed = 2013, "CONTROLLER_ALTER_SYNC_STATE_SET_FAILED", "Controller only.";
        ControllerBrokerIdInvalid = 2014, "CONTROLLER_BROKER_ID_INVALID", "Controller only.";
        ControllerJraftInternalError = 2015, "CONTROLLER_JRAFT_INTERNAL_ERROR", "Controller only.";
        ControllerBrokerLiveInfoNotExists = 2016, "CONTROLLER_BROKER_LIVE_INFO_NOT_EXISTS", "Controller only.";
        LmqQuotaExceeded = 2017, "LMQ_QUOTA_EXCEEDED", "Too many logical queues (5.5).";
        LiteSubscriptionQuotaExceeded = 2018, "LITE_SUBSCRIPTION_QUOTA_EXCEEDED", "Too many lite subscriptions (5.5).";
        UserNotExist = 3001, "USER_NOT_EXIST", "No such user.";
        PolicyNotExist = 3002, "POLICY_NOT_EXIST", "No such permission.";
    }
}
