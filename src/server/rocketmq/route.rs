//! The name server: where topics live (codes 105, 106, 206, 224, 304, 305).
//!
//! Owns: routes, made from the topology at the moment they are asked for.
//! Promises: a topic is routable as soon as it exists; a group's retry topic is routable before its first heartbeat has made it,
//! because clients look for its route only once in 30 s; so are the topics named after cluster and broker, for tools; JSON is standard JSON.
//! Does not know: how topics come to be.

use std::collections::BTreeMap;

use dassie_rocketmq::body::{BrokerAddresses, ClusterInfo, QueueCounts, TopicList, TopicRoute, to_json};
use dassie_rocketmq::header::{GetRoute, TopicsByCluster};
use dassie_rocketmq::message::{RETRY_PREFIX, check_group, system_topic};
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::{Asked, Session};
use super::tools::is_wiped;
use super::{Settings, key_values, nodes};
use crate::security::{Action, Resource, authorize};
use crate::server::across::exchange_of;

/// Write, in RocketMQ's bits.
const WRITE: u32 = 2;
/// The same, as routes have it.
const WRITE_ONLY: i32 = 2;
/// Read and write.
const READ_WRITE: u32 = 6;
/// Behind the cluster's name, the topic of replies.
const REPLY_SUFFIX: &str = "_REPLY_TOPIC";
/// The same, and passed on to topics that are made from it.
const INHERITED: u32 = 7;

/// GET_ROUTEINFO_BY_TOPIC.
pub(super) fn on_route(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GetRoute { topic, .. } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    let known =
        session.topology.topic(topic).map(|topic| [topic.read_queues, topic.write_queues, topic.permission]);
    let Some(counts) =
        known.or_else(|| promised(&session.front.settings, topic)).or_else(|| linked(session, topic))
    else {
        let text = format!(
            "No topic route info in name server for the topic: {topic}\nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
        );
        return Err(refused(ResponseCode::TopicNotExist, text));
    };
    let mut counts = counts;
    if is_wiped(&session.topology, &session.front.settings.broker_name) {
        counts[2] &= !WRITE;
    }
    let [read_queue_nums, write_queue_nums, perm] =
        counts.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let queues = |broker_name, perm| QueueCounts {
        broker_name,
        read_queue_nums,
        write_queue_nums,
        perm,
        topic_sys_flag: 0,
    };
    let mut queue_datas = vec![queues(session.front.settings.broker_name.clone(), perm)];
    if counts[2] & WRITE != 0 {
        // The same queues by other ways: they take messages and give none.
        let others = nodes::others(&session.front, &session.topology).into_iter();
        queue_datas.extend(others.map(|(name, _)| queues(name, WRITE_ONLY)));
    }
    let route = TopicRoute {
        order_topic_conf: key_values::value(&session.topology, key_values::ORDERS, topic),
        queue_datas,
        broker_datas: brokers(session),
        filter_server_table: BTreeMap::new(),
    };
    session.answer(asked, &(), &to_json(&route));
    Ok(())
}

/// Topics that are there for whoever asks: read queues, write queues, permission.
fn promised(settings: &Settings, topic: &str) -> Option<[u32; 3]> {
    if topic == system_topic::AUTO_CREATE && settings.auto_create_topics {
        return Some([settings.default_topic_queues, settings.default_topic_queues, INHERITED]);
    }
    // Tools find a cluster's brokers, and one broker, by topics of their names.
    if topic == settings.cluster_name {
        return Some([16, 16, INHERITED]);
    }
    if topic == settings.broker_name {
        return Some([1, 1, INHERITED]);
    }
    // Replies are sent to this one, and pass by it.
    if topic.strip_suffix(REPLY_SUFFIX) == Some(&settings.cluster_name) {
        return Some([1, 1, READ_WRITE]);
    }
    let group = topic.strip_prefix(RETRY_PREFIX)?;
    check_group(group).ok().map(|()| [1, 1, READ_WRITE])
}

/// A topic that stands for an exchange is there with the exchange: its first send makes it. One that is a look at a queue is there with
/// the queue.
fn linked(session: &Session, topic: &str) -> Option<[u32; 3]> {
    let topology = &session.topology;
    let found = match exchange_of(topic) {
        Some(exchange) => topology.exchange(0, &exchange).is_some(),
        None => topology.queue_behind(topic).is_some(),
    };
    found.then_some([1, 1, READ_WRITE])
}

/// This node, and the others of its cluster.
fn brokers(session: &Session) -> Vec<BrokerAddresses> {
    let own = (session.front.settings.broker_name.clone(), session.address());
    let others = nodes::others(&session.front, &session.topology);
    std::iter::once(own).chain(others).map(|(name, address)| addresses(session, name, address)).collect()
}

fn addresses(session: &Session, broker_name: String, address: String) -> BrokerAddresses {
    BrokerAddresses {
        cluster: session.front.settings.cluster_name.clone(),
        broker_name,
        broker_addrs: BTreeMap::from([(0, address)]),
        zone_name: None,
        enable_acting_master: false,
    }
}

/// GET_BROKER_CLUSTER_INFO.
pub(super) fn on_cluster(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let brokers = brokers(session);
    let names = brokers.iter().map(|broker| broker.broker_name.clone()).collect();
    let info = ClusterInfo {
        broker_addr_table: brokers.into_iter().map(|broker| (broker.broker_name.clone(), broker)).collect(),
        cluster_addr_table: BTreeMap::from([(session.front.settings.cluster_name.clone(), names)]),
    };
    session.answer(asked, &(), &to_json(&info));
    Ok(())
}

/// GET_ALL_TOPIC_LIST_FROM_NAMESERVER.
pub(super) fn on_topics(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let mut topic_list: Vec<String> = session.topology.topics().map(|topic| topic.name.to_string()).collect();
    topic_list.sort_unstable();
    session.answer(asked, &(), &to_json(&TopicList { topic_list, broker_addr: None }));
    Ok(())
}

/// GET_TOPICS_BY_CLUSTER.
pub(super) fn on_topics_of(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let TopicsByCluster { cluster } = command.header()?;
    if cluster == session.front.settings.cluster_name {
        return on_topics(session, asked);
    }
    session.answer(asked, &(), &to_json(&TopicList::default()));
    Ok(())
}

/// GET_SYSTEM_TOPIC_LIST_FROM_NS, GET_SYSTEM_TOPIC_LIST_FROM_BROKER: names that clients can not take.
pub(super) fn on_system_topics(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let Settings { broker_name, cluster_name, .. } = session.front.settings.clone();
    let mut topic_list: Vec<String> = system_topic::ALL.iter().map(|topic| (*topic).to_owned()).collect();
    topic_list.extend([cluster_name, broker_name]);
    let list = TopicList { topic_list, broker_addr: Some(session.address()) };
    session.answer(asked, &(), &to_json(&list));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_topic_is_promised_only_with_auto_creation_and_retry_topics_always() {
        let mut settings = Settings {
            advertised_host: Some("127.0.0.1".into()),
            advertised_port: 10911,
            broker_name: "b".into(),
            cluster_name: "c".into(),
            auto_create_topics: true,
            default_topic_queues: 8,
            delay_levels: 18,
        };
        assert_eq!(promised(&settings, "TBW102"), Some([8, 8, 7]));
        settings.auto_create_topics = false;
        assert_eq!(promised(&settings, "TBW102"), None);
        assert_eq!(promised(&settings, "%RETRY%G"), Some([1, 1, 6]));
        assert_eq!(promised(&settings, "%RETRY%"), None);
        assert_eq!(promised(&settings, "T"), None);
        assert_eq!(
            (promised(&settings, "c"), promised(&settings, "b")),
            (Some([16, 16, 7]), Some([1, 1, 7]))
        );
    }
}
