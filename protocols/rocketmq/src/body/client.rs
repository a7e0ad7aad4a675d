//! Bodies about a group's clients: codes 38, 46, 203, 204, 309, 328 and 345.

use super::heartbeat::{ConsumeFromWhere, ConsumeType, MessageModel, Subscription};
use super::lenient;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The answer to GET_CONSUMER_LIST_BY_GROUP (38): who shares the group's queues. Clients sort it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerList {
    /// The members' client ids.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 100_000>")]
    pub consumer_id_list: Vec<String>,
}

/// The body of CHECK_CLIENT_CONFIG (46): is this expression valid?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckClient {
    /// The client's id.
    pub client_id: String,
    /// The consumer group.
    pub group: String,
    /// The expression and its kind.
    pub subscription_data: Subscription,
    /// The namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A client of a group, for tools.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientConnection {
    /// The client's id.
    pub client_id: String,
    /// Where it connected from, `host:port`.
    pub client_addr: String,
    /// Its language's name.
    pub language: String,
    /// Its version's ordinal.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub version: i32,
}

/// The answer to GET_CONSUMER_CONNECTION_LIST (203).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerConnections {
    /// The members.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 100_000>")]
    pub connection_set: Vec<ClientConnection>,
    /// What they subscribe to, by topic.
    #[serde(default)]
    pub subscription_table: BTreeMap<String, Subscription>,
    /// How they get their messages.
    pub consume_type: ConsumeType,
    /// Whether they share them.
    pub message_model: MessageModel,
    /// Where they begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consume_from_where: Option<ConsumeFromWhere>,
}

/// The answer to GET_PRODUCER_CONNECTION_LIST (204).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerConnections {
    /// The members.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 100_000>")]
    pub connection_set: Vec<ClientConnection>,
}

/// A producer of any group, for tools.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerInfo {
    /// The client's id.
    pub client_id: String,
    /// Where it connected from, `host:port`.
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    /// Its language's name.
    pub language: String,
    /// Its version's ordinal.
    pub version: i32,
    /// When it last said that it lives, in ms since 1970.
    pub last_update_timestamp: i64,
}

/// The answer to GET_ALL_PRODUCER_INFO (328).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProducerTable {
    /// By group.
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

/// The answer to QUERY_SUBSCRIPTION_BY_CONSUMER (345).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupSubscription {
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// What it wants of the topic, if it has members that want anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_data: Option<Subscription>,
}

lenient::named! {
    /// What became of a message that one consumer was told to consume.
    pub enum ConsumeOutcome {
        /// Consumed.
        Success = "CR_SUCCESS",
        /// To be delivered again.
        Later = "CR_LATER",
        /// Rolled back.
        Rollback = "CR_ROLLBACK",
        /// Committed.
        Commit = "CR_COMMIT",
        /// The application failed.
        ThrowException = "CR_THROW_EXCEPTION",
        /// The application did not say.
        ReturnNull = "CR_RETURN_NULL",
    }
}

/// The answer to CONSUME_MESSAGE_DIRECTLY (309).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeDirectlyResult {
    /// Whether the consumer consumes in order.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub order: bool,
    /// Whether it commits by itself.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub auto_commit: bool,
    /// What became of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consume_result: Option<ConsumeOutcome>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// How long it took, in ms.
    #[serde(default, deserialize_with = "lenient::integer")]
    pub spent_time_mills: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{from_json, same_as_java};

    #[test]
    fn the_consumer_list_is_javas() {
        let list: ConsumerList = same_as_java("consumer_list");
        assert_eq!(list.consumer_id_list, ["c1", "c2"]);
    }

    #[test]
    fn the_client_check_is_javas() {
        let check: CheckClient = same_as_java("check_client");
        assert_eq!(check.subscription_data.sub_string, "TagA || TagB");
    }

    #[test]
    fn the_result_of_direct_consumption_is_javas() {
        let result: ConsumeDirectlyResult = same_as_java("consume_directly_result");
        assert_eq!((result.consume_result, result.spent_time_mills), (Some(ConsumeOutcome::Success), 3));
    }

    #[test]
    fn the_go_clients_result_gives_the_outcome_as_an_ordinal() {
        let go =
            br#"{"order":false,"autoCommit":true,"consumeResult":4,"remark":"boom","spentTimeMills":12}"#;
        let result: ConsumeDirectlyResult = from_json(go).unwrap();
        assert_eq!(result.consume_result, Some(ConsumeOutcome::ThrowException));
    }
}
