//! RocketMQ's remoting protocol: one task per connection drives the codec of `protocols/rocketmq` and turns requests into
//! broker verbs. Broker and name server are one: every code is answered on every port.
//!
//! ```text
//!   socket ─► connection ─► session ─┬─► send, pull, offsets, topics ─► verbs ─► shard
//!                                    ├─► clients ─► group (the node's registry)
//!                                    └─► route (name server)
//!   socket ◄─ output ◄─ session ◄──── events ◄──────────────────────────────────┘
//! ```
//!
//! Owns: everything of a connection, and the node's registry of consumer groups.
//! Promises: an answer is written when its effect is there, and carries the code that makes clients do the right thing; what has no
//! effect here yet is refused by its name and never stored as something else.
//! Does not know: queues, the log, the other protocol. What AMQP clients sent is turned into a record by `server::across_back`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use dassie_rocketmq::message::UniqueKey;
use tokio::net::{TcpStream, lookup_host};

use super::registry::Registry;
use super::tls::{Entered, Entrance};
use super::{Door, Stop};
use crate::alarms::Alarms;
use crate::broker::link::Shard;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::security::Realm;

pub use nodes::{Nodes, announce};

mod back;
mod clients;
mod codes;
mod connection;
mod credentials;
mod figures;
mod group;
mod group_configs;
mod key_values;
mod lock;
mod nodes;
mod offsets;
mod output;
pub mod overview;
mod pull;
mod query;
mod refuse;
mod replies;
mod route;
mod send;
mod session;
mod tools;
mod topics;
mod transaction;

/// What the configuration says, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where routes tell clients to connect: host name or address. `None`: where the asking client came to.
    pub advertised_host: Option<String>,
    /// The port there.
    pub advertised_port: u16,
    /// Name of this broker in routes.
    pub broker_name: String,
    /// Name of the cluster in routes.
    pub cluster_name: String,
    /// A send to a missing topic makes it.
    pub auto_create_topics: bool,
    /// Message queues of such a topic, at most.
    pub default_topic_queues: u32,
    /// Delay levels there are.
    pub delay_levels: u32,
}

/// As clients spell it.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What all RocketMQ connections of a node share.
pub struct Front {
    settings: Settings,
    nodes: Option<Nodes>,
    /// The advertised address inside message ids and records.
    store_host: SocketAddr,
    groups: Arc<group::Groups>,
    registry: Arc<Registry>,
    realm: Arc<Realm>,
    clock: Arc<dyn Clock>,
    /// A client was told an address that can not be right for it.
    misled: Once,
    /// When this front began, ms since 1970.
    started_ms: u64,
    alarms: Arc<Alarms>,
    instance: u32,
    keys: AtomicU32,
}

impl Front {
    /// Resolves the advertised host. A name without an address still stands in routes, but message ids then carry 127.0.0.1:
    /// only tools that connect to the address inside an id notice.
    pub async fn new(
        settings: Settings,
        nodes: Option<Nodes>,
        realm: Arc<Realm>,
        registry: Arc<Registry>,
        clock: Arc<dyn Clock>,
        alarms: Arc<Alarms>,
        instance: u32,
    ) -> Arc<Self> {
        let target = (settings.advertised_host.as_deref().unwrap_or("127.0.0.1"), settings.advertised_port);
        let found: Vec<SocketAddr> = lookup_host(target).await.map_or_else(|_| Vec::new(), Iterator::collect);
        let fallback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), settings.advertised_port);
        let store_host =
            found.iter().find(|address| address.is_ipv4()).or(found.first()).copied().unwrap_or(fallback);
        let groups = Arc::new(group::Groups::default());
        if let Some(host) = &settings.advertised_host
            && matches!(&**host, "0.0.0.0" | "::")
        {
            tracing::warn!(
                "rocketmq.advertised_host={host} is no address that a client could connect to: set it to a name or address by which clients reach this broker, or to auto"
            );
        }
        let started_ms = clock.wall_ms();
        let misled = Once::new();
        Arc::new(Self {
            misled,
            settings,
            nodes,
            store_host,
            groups,
            registry,
            realm,
            clock,
            started_ms,
            alarms,
            instance,
            keys: AtomicU32::new(0),
        })
    }

    /// A key for a message that came without one.
    fn unique_key(&self) -> UniqueKey {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        let [high, low] = [number >> 16, number & 0xFFFF].map(|half| u16::try_from(half).unwrap_or_default());
        UniqueKey {
            ip: self.store_host.ip(),
            pid: high,
            instance: self.instance,
            unix_ms: self.clock.wall_ms(),
            counter: low,
        }
    }

    /// `host:port` for the routes of a client that came to `local` from `peer`.
    fn address(&self, local: IpAddr, peer: IpAddr) -> String {
        let Settings { advertised_host, advertised_port: port, .. } = &self.settings;
        let host = advertised_host.clone().unwrap_or_else(|| local.to_canonical().to_string());
        if advertised_host.is_some()
            && self.store_host.ip().is_loopback()
            && !peer.to_canonical().is_loopback()
        {
            self.misled.call_once(|| {
                tracing::warn!(
                    "a RocketMQ client from {peer} is told to connect to {host}, which is this machine only from here: set rocketmq.advertised_host to a name or address by which clients reach this broker"
                );
            });
        }
        host_port(&host, *port)
    }
}

/// Serves all connections of a door until `stop`.
pub async fn listen(door: Door, shard: Shard, front: Arc<Front>, stop: Stop, metrics: Arc<Metrics>) {
    let Door { listener, key, most, entrance } = door;
    let (stop_each, numbers) = (stop.clone(), Arc::clone(&metrics));
    let connect = move |stream, peer| {
        let way = Way { key, entrance: entrance.clone(), peer };
        serve(stream, way, shard.clone(), Arc::clone(&front), stop_each.clone(), Arc::clone(&numbers))
    };
    super::serve(listener, key, most, stop, metrics, connect).await;
}

/// How a connection came here.
struct Way {
    key: &'static str,
    entrance: Entrance,
    peer: SocketAddr,
}

/// Serves one connection from its first byte to its end.
async fn serve(
    stream: TcpStream,
    way: Way,
    shard: Shard,
    front: Arc<Front>,
    stop: Stop,
    metrics: Arc<Metrics>,
) {
    let Way { key, entrance, peer } = way;
    match entrance.enter(key, stream, peer, &stop).await {
        Some(Entered::Plain(stream)) => {
            connection::serve(stream, peer, &shard, front, &stop, metrics).await;
        }
        Some(Entered::Encrypted(stream)) => {
            connection::serve(stream, peer, &shard, front, &stop, metrics).await;
        }
        None => {}
    }
}
