//! Bodies of the name server: routes, clusters, topic lists, key-value tables (codes 105, 106, 206, 219, 224, 304).
//!
//! Apache's name server writes the broker ids of some of these as unquoted keys, which is no JSON; every known client
//! reads them quoted too, so they are always quoted here. To read routes from Apache, ask it with
//! `acceptStandardJsonOnly`.

use super::lenient;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a topic's queues live: the answer to GET_ROUTEINFO_BY_TOPIC (105).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicRoute {
    /// `broker:queues;...` of ordered topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_topic_conf: Option<String>,
    /// How many queues on which broker name.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub queue_datas: Vec<QueueCounts>,
    /// Where to reach each broker name.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub broker_datas: Vec<BrokerAddresses>,
    /// Obsolete, but clients expect the object.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub filter_server_table: BTreeMap<String, Vec<String>>,
}

/// A topic's queues on one broker name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueCounts {
    /// The broker name.
    pub broker_name: String,
    /// Queues to read.
    pub read_queue_nums: i32,
    /// Queues to write.
    pub write_queue_nums: i32,
    /// 4 read, 2 write, 1 inherit.
    pub perm: i32,
    /// The topic's flags.
    #[serde(default)]
    pub topic_sys_flag: i32,
}

/// The nodes behind one broker name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerAddresses {
    /// The cluster.
    pub cluster: String,
    /// The broker name.
    pub broker_name: String,
    /// Address by broker id; 0 takes writes. The Go client splits them at every `:` and `,`: host names or IPv4 only.
    pub broker_addrs: BTreeMap<i64, String>,
    /// The zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_name: Option<String>,
    /// Whether a replica may stand in for the master.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub enable_acting_master: bool,
}

/// All brokers and clusters: the answer to GET_BROKER_CLUSTER_INFO (106).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfo {
    /// By broker name.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub broker_addr_table: BTreeMap<String, BrokerAddresses>,
    /// Broker names by cluster.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub cluster_addr_table: BTreeMap<String, Vec<String>>,
}

/// Topic names: the answer to codes 206, 224 and 304.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicList {
    /// The names.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub topic_list: Vec<String>,
    /// A broker that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<String>,
}

/// Keys and values: the answer to GET_KVLIST_BY_NAMESPACE (219), among others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KvTable {
    /// By key.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub table: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{from_json, same_as_java, to_json};

    #[test]
    fn routes_are_javas() {
        let route: TopicRoute = same_as_java("route");
        assert_eq!(route.queue_datas[0].read_queue_nums, 8);
        assert_eq!(route.broker_datas[0].broker_addrs[&1], "10.1.2.4:10911");
    }

    #[test]
    fn broker_ids_are_written_quoted_and_without_blanks() {
        let broker = BrokerAddresses {
            broker_addrs: BTreeMap::from([(0, "a:1".to_owned()), (1, "b:2".to_owned())]),
            ..BrokerAddresses::default()
        };
        let written = String::from_utf8(to_json(&broker)).unwrap();
        assert!(written.contains(r#""brokerAddrs":{"0":"a:1","1":"b:2"}"#), "{written}");
    }

    #[test]
    fn the_filter_servers_are_written_even_if_there_are_none() {
        let written = String::from_utf8(to_json(&TopicRoute::default())).unwrap();
        assert_eq!(written, r#"{"queueDatas":[],"brokerDatas":[],"filterServerTable":{}}"#);
    }

    #[test]
    fn cluster_information_is_javas_but_for_its_unquoted_keys() {
        let java = crate::golden::body("cluster_info").replace("{0:", "{\"0\":").replace(",1:", ",\"1\":");
        let info: ClusterInfo = from_json(java.as_bytes()).unwrap();
        assert_eq!(info.cluster_addr_table["DefaultCluster"], ["broker-a"]);
        let ours: serde_json::Value = serde_json::from_slice(&to_json(&info)).unwrap();
        assert_eq!(ours, serde_json::from_str::<serde_json::Value>(&java).unwrap());
    }

    #[test]
    fn topic_lists_and_key_value_tables_are_javas() {
        assert_eq!(same_as_java::<TopicList>("topic_list").topic_list, ["TopicTest"]);
        assert_eq!(same_as_java::<KvTable>("kv_table").table["TopicTest"], "broker-a:4");
    }
}
