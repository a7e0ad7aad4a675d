//! The nodes of a cluster as brokers that clients can choose among (house D12).
//!
//! Owns: where each node's RocketMQ port is, kept with the topology, and the names under which routes show them. Promises: every
//! node shows itself under the common broker name, so that a client reads from a node whose name server it reaches; the other
//! nodes that are reached stand beside it under names of their own, which take messages for the same queues and give none: a
//! producer whose node is gone retries with the next name at once. Every node shows the same queues, whoever leads.
//! Does not know: who leads, how nodes reach each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Front;
use crate::broker::api::{Event, Op, Verb};
use crate::broker::link::Shard;
use crate::broker::topology::Topology;
use crate::security::{Action, Realm, Resource, authorize};

/// The space of settings that holds their addresses, by number.
const NODES: &str = "rocketmq.nodes";
/// How long one that could not say where it is waits.
const AGAIN: Duration = Duration::from_secs(1);

/// This node among others.
pub struct Nodes {
    /// Its number.
    pub own: u64,
    /// Host by which the other nodes reach it: clients are told so where `rocketmq.advertised_host` says nothing.
    pub host: String,
    /// The others that are reached now.
    pub reached: Box<dyn Fn() -> Vec<u64> + Send + Sync>,
}

/// Name and address of the other nodes that are there.
pub(super) fn others(front: &Front, topology: &Topology) -> Vec<(String, String)> {
    let Some(nodes) = &front.nodes else { return Vec::new() };
    let mut reached = (nodes.reached)();
    reached.sort_unstable();
    let place = |node: u64| {
        let address = topology.setting(NODES, &node.to_string())?;
        let address = std::str::from_utf8(address).ok()?;
        Some((format!("{}-{node}", front.settings.broker_name), address.to_owned()))
    };
    reached.into_iter().filter(|node| *node != nodes.own).filter_map(place).collect()
}

/// Keeps with the topology where this node's clients connect.
pub async fn announce(shard: Shard, front: Arc<Front>) {
    let Some(nodes) = &front.nodes else { return };
    let host = front.settings.advertised_host.as_deref().unwrap_or(&nodes.host);
    let address = super::host_port(host, front.settings.advertised_port);
    let name: Arc<str> = nodes.own.to_string().into();
    let Ok(key) = authorize(&Realm::operator(), Action::Configure, Resource::Own) else { return };
    let mut link = shard.connect();
    while link.topology().setting(NODES, &name).map(|kept| &kept[..]) != Some(address.as_bytes()) {
        let value = Some(Bytes::copy_from_slice(address.as_bytes()));
        let op = Op::PutSetting { space: NODES.into(), name: Arc::clone(&name), value };
        if !link.send(vec![Verb { key, request: 1, vhost: 0, op, number: 0 }]) {
            return;
        }
        loop {
            let Some(events) = link.events().await else { return };
            let answered = events.into_iter().find_map(|event| match event {
                Event::Reply { result, .. } => Some(result),
                _ => None,
            });
            match answered {
                Some(Ok(_)) => return,
                Some(Err(_)) => break,
                None => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
