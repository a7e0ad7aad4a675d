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
use tokio::net::{TcpListener, TcpStream};

use super::Stop;
use crate::broker::link::Shard;
use crate::metrics::Metrics;
use crate::security::Realm;

mod answers;
mod arguments;
mod basic;
mod channel;
mod confirms;
mod connection;
mod declare;
pub(super) mod deliver;
mod events;
mod greeting;
mod line;
mod names;
mod output;
mod presence;
mod properties;
pub(super) mod publish;
mod refusals;
mod session;
mod settlements;
mod transaction;
mod unacked;

/// Serves all connections of a listener until `stop`. `most`: connections at once; `offer`: what connection.tune proposes; `realm`:
/// who may log in.
pub async fn listen(
    listener: TcpListener,
    most: usize,
    shard: Shard,
    offer: Limits,
    realm: Arc<Realm>,
    stop: Stop,
    metrics: Arc<Metrics>,
) {
    let stop_each = stop.clone();
    let numbers = Arc::clone(&metrics);
    let connect = move |stream, peer| {
        serve(stream, peer, shard.clone(), offer, Arc::clone(&realm), stop_each.clone(), Arc::clone(&numbers))
    };
    super::serve(listener, "amqp.listen", most, stop, metrics, connect).await;
}

/// Serves one connection from its first byte to its end. `offer`: what connection.tune proposes.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shard: Shard,
    offer: Limits,
    realm: Arc<Realm>,
    stop: Stop,
    metrics: Arc<Metrics>,
) {
    connection::serve(stream, peer, &shard, offer, realm, &stop, presence::Presence::new(metrics)).await;
}
