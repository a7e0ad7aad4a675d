//! Topic configuration as JSON.

use super::lenient;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A topic's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicConfig {
    /// The topic.
    pub topic_name: String,
    /// Queues to read.
    pub read_queue_nums: i32,
    /// Queues to write.
    pub write_queue_nums: i32,
    /// 4 read, 2 write, 1 inherit.
    pub perm: i32,
    /// SINGLE_TAG or MULTI_TAG.
    #[serde(default = "single_tag")]
    pub topic_filter_type: String,
    /// Flags.
    #[serde(default)]
    pub topic_sys_flag: i32,
    /// Whether order matters more than availability.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub order: bool,
    /// Attributes such as `message.type`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub attributes: BTreeMap<String, String>,
}

/// Several topics' configurations: the body of UPDATE_AND_CREATE_TOPIC_LIST (18).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicConfigs {
    /// The topics.
    #[serde(default, deserialize_with = "lenient::list::<_, _, 1_000>")]
    pub topic_config_list: Vec<TopicConfig>,
}

fn single_tag() -> String {
    "SINGLE_TAG".to_owned()
}

/// When a table of configuration last changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataVersion {
    /// Which master wrote it.
    #[serde(default)]
    pub state_version: i64,
    /// In ms since 1970.
    pub timestamp: i64,
    /// How often it changed.
    pub counter: i64,
}

/// Every topic's configuration: the answer to GET_ALL_TOPIC_CONFIG (21).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicTable {
    /// By topic.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub topic_config_table: BTreeMap<String, TopicConfig>,
    /// The table's version.
    pub data_version: DataVersion,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::same_as_java;

    #[test]
    fn topic_configurations_are_javas() {
        let config: TopicConfig = same_as_java("topic_config");
        assert_eq!((config.perm, config.attributes["message.type"].as_str()), (6, "FIFO"));
        let table: TopicTable = same_as_java("topic_config_wrapper");
        assert_eq!(table.topic_config_table["TopicTest"], config);
        assert_eq!(table.data_version.counter, 3);
    }
}
