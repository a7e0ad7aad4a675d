//! Consumer group configuration as JSON.

use super::lenient;
use super::topic::DataVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A consumer group's configuration: the body of UPDATE_AND_CREATE_SUBSCRIPTIONGROUP (200). What a client leaves out
/// has Apache's default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupConfig {
    /// The group.
    pub group_name: String,
    /// Whether it may consume at all.
    #[serde(deserialize_with = "lenient::boolean")]
    pub consume_enable: bool,
    /// Whether it may consume from the first offset.
    #[serde(deserialize_with = "lenient::boolean")]
    pub consume_from_min_enable: bool,
    /// Whether it may broadcast.
    #[serde(deserialize_with = "lenient::boolean")]
    pub consume_broadcast_enable: bool,
    /// Whether POP keeps the order.
    #[serde(deserialize_with = "lenient::boolean")]
    pub consume_message_orderly: bool,
    /// Queues of its retry topic.
    pub retry_queue_nums: i32,
    /// After so many retries a message is dead.
    pub retry_max_times: i32,
    /// How long retries wait.
    #[serde(deserialize_with = "lenient::or_default")]
    pub group_retry_policy: RetryPolicy,
    /// Which broker id it reads from.
    pub broker_id: i64,
    /// Which broker id it reads from when it lags.
    pub which_broker_when_consume_slowly: i64,
    /// Whether members are told of changes.
    #[serde(deserialize_with = "lenient::boolean")]
    pub notify_consumer_ids_changed_enable: bool,
    /// Flags.
    pub group_sys_flag: i32,
    /// How long one message may take.
    pub consume_timeout_minute: i32,
    /// What it may subscribe to; anything if empty.
    #[serde(deserialize_with = "lenient::list::<_, _, 10_000>", skip_serializing_if = "Vec::is_empty")]
    pub subscription_data_set: Vec<SimpleSubscription>,
    /// Attributes.
    #[serde(deserialize_with = "lenient::or_default")]
    pub attributes: BTreeMap<String, String>,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            group_name: String::new(),
            consume_enable: true,
            consume_from_min_enable: true,
            consume_broadcast_enable: true,
            consume_message_orderly: false,
            retry_queue_nums: 1,
            retry_max_times: 16,
            group_retry_policy: RetryPolicy::default(),
            broker_id: 0,
            which_broker_when_consume_slowly: 1,
            notify_consumer_ids_changed_enable: true,
            group_sys_flag: 0,
            consume_timeout_minute: 15,
            subscription_data_set: Vec::new(),
            attributes: BTreeMap::new(),
        }
    }
}

/// How long a group's retries wait.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryPolicy {
    /// CUSTOMIZED or EXPONENTIAL.
    #[serde(rename = "type")]
    pub kind: String,
    /// Under EXPONENTIAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exponential_retry_policy: Option<ExponentialRetry>,
    /// Under CUSTOMIZED; absent means the delay levels from 10 s on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customized_retry_policy: Option<CustomizedRetry>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { kind: "CUSTOMIZED".to_owned(), exponential_retry_policy: None, customized_retry_policy: None }
    }
}

/// Waits that grow.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExponentialRetry {
    /// The first wait, in ms.
    pub initial: i64,
    /// The longest wait, in ms.
    pub max: i64,
    /// Each wait is so many times the one before.
    pub multiplier: f64,
}

/// Waits from a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CustomizedRetry {
    /// In ms, by retry; the last one for all later ones.
    #[serde(deserialize_with = "lenient::list::<_, _, 1_000>")]
    pub next: Vec<i64>,
}

/// A subscription that a group is held to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SimpleSubscription {
    /// The topic.
    pub topic: String,
    /// TAG or SQL92.
    #[serde(rename = "expressionType")]
    pub expression_type: String,
    /// The filter expression.
    pub expression: String,
    /// Its version.
    pub version: i64,
}

/// Several groups' configurations: the body of UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST (225).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupConfigs {
    /// The groups.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 1_000>")]
    pub group_config_list: Vec<GroupConfig>,
}

/// Every group's configuration: the answer to GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupTable {
    /// By group.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub subscription_group_table: BTreeMap<String, GroupConfig>,
    /// The table's version.
    pub data_version: DataVersion,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{from_json, same_as_java};

    #[test]
    fn group_configurations_and_their_defaults_are_javas() {
        let config: GroupConfig = same_as_java("subscription_group");
        assert_eq!(config, GroupConfig { group_name: "CG".to_owned(), ..GroupConfig::default() });
        let table: GroupTable = same_as_java("subscription_group_wrapper");
        assert_eq!(table.subscription_group_table["CG"], config);
    }

    #[test]
    fn retry_policies_are_read() {
        let json = br#"{"groupName":"g","groupRetryPolicy":{"type":"EXPONENTIAL",
            "exponentialRetryPolicy":{"initial":5000,"max":7200000,"multiplier":2}}}"#;
        let config: GroupConfig = from_json(json).unwrap();
        assert_eq!(config.group_retry_policy.exponential_retry_policy.unwrap().max, 7_200_000);
        let json = br#"{"groupName":"g","groupRetryPolicy":null,"attributes":null}"#;
        assert_eq!(from_json::<GroupConfig>(json).unwrap().group_retry_policy, RetryPolicy::default());
    }
}
