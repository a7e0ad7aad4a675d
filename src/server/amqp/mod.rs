//! AMQP 0-9-1: one task per connection drives the codec of `protocols/amqp` and turns what clients say into broker verbs.
//!
//! ```text
//!   socket ─► connection ─► greeting (until open)
//!                      └──► session ─► declare, basic ─► verbs ─► shard
//!   socket ◄─ output ◄─ deliver, events ◄────────────── events ◄──┘
//! ```
//!
//! Owns: everything of a connection: channels, tags, confirms, assembly, the mapping of refusals to reply codes.
//! Promises: no task, lock or oneshot per message; a connection's panic or error ends that connection alone.
//! Does not know: queues, the log, the other protocol. What RocketMQ clients sent is turned into AMQP's view by `server::across`.

use std::net::SocketAddr;
use std::sync::Arc;

pub use dassie_amqp::connection::Limits;
use tokio::net::TcpStream;

pub use import::{ImportError, import};

use super::registry::Registry;
use super::tls::{Entered, Entrance};
use super::{Door, Stop};
use crate::alarms::{Alarms, Watch};
use crate::broker::link::Shard;
use crate::metrics::Metrics;
use crate::security::Realm;

mod answers;
pub(in crate::server) mod arguments;
mod basic;
mod channel;
mod confirms;
mod connection;
mod declare;
pub(super) mod deliver;
mod describe;
mod events;
mod greeting;
pub(in crate::server) mod import;
mod line;
mod names;
pub(in crate::server) mod operate;
mod output;
mod presence;
mod properties;
pub(super) mod publish;
mod refusals;
mod session;
mod settlements;
mod transaction;
mod unacked;

/// What a client is told of the server before it logs in.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What connection.tune proposes.
    pub limits: Limits,
    /// Its name.
    pub product: String,
    /// The name's version.
    pub version: String,
}

/// Serves all connections of a door until `stop`. `realm`: who may log in; `alarms`: when publishers wait.
#[allow(clippy::too_many_arguments)] // what `main` joins to a door
pub async fn listen(
    door: Door,
    shard: Shard,
    offer: Arc<Offer>,
    realm: Arc<Realm>,
    registry: Arc<Registry>,
    stop: Stop,
    metrics: Arc<Metrics>,
    alarms: Arc<Alarms>,
) {
    let Door { listener, key, most, entrance } = door;
    let (stop_each, numbers) = (stop.clone(), Arc::clone(&metrics));
    let connect = move |stream, peer| {
        let way = Way {
            key,
            entrance: entrance.clone(),
            peer,
            realm: Arc::clone(&realm),
            registry: Arc::clone(&registry),
            alarms: alarms.follow(),
        };
        serve(stream, way, shard.clone(), Arc::clone(&offer), stop_each.clone(), Arc::clone(&numbers))
    };
    super::serve(listener, key, most, stop, metrics, connect).await;
}

/// How a connection came here.
struct Way {
    key: &'static str,
    entrance: Entrance,
    peer: SocketAddr,
    realm: Arc<Realm>,
    registry: Arc<Registry>,
    alarms: Watch,
}

/// Serves one connection from its first byte to its end.
async fn serve(
    stream: TcpStream,
    way: Way,
    shard: Shard,
    offer: Arc<Offer>,
    stop: Stop,
    metrics: Arc<Metrics>,
) {
    let Way { key, entrance, peer, realm, registry, alarms } = way;
    let Some(entered) = entrance.enter(key, stream, peer, &stop).await else { return };
    let presence = presence::Presence::new(metrics, registry);
    match entered {
        Entered::Plain(stream) => {
            connection::serve(stream, peer, &shard, offer, realm, &stop, presence, alarms).await;
        }
        Entered::Encrypted(stream) => {
            connection::serve(stream, peer, &shard, offer, realm, &stop, presence, alarms).await;
        }
    }
}
