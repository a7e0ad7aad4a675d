//! Who is connected: what operators may know of a connection, and ask of it.
//!
//! Owns: one entry for each open connection of both protocols.
//! Promises: a connection is in the list from its opening to its end, however it ends; its own task pays one lock when it opens and
//! one when it ends, and a few relaxed stores for each read; what is asked of a connection is done by its own task, and a
//! connection that does not answer holds nobody up.
//! Does not know: protocols, HTTP.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::brake::Brake;
use crate::clock::Clock;
use crate::limits;

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// AMQP 0-9-1
    Amqp,
    /// RocketMQ's remoting protocol
    Rocketmq,
}

/// What is true of a connection from its opening to its end.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What it speaks.
    pub protocol: Protocol,
    /// The broker's end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// Login.
    pub user: Arc<str>,
    /// Virtual host.
    pub vhost: Arc<str>,
    /// SASL mechanism; "" where there is none.
    pub mechanism: String,
    /// Version and cipher suite of TLS, if it is encrypted.
    pub tls: Option<String>,
    /// Subject of the client's certificate, if it showed one.
    pub subject: Option<String>,
    /// Field table of the client, content only; empty where there is none.
    pub client_properties: Box<[u8]>,
    /// Agreed on; 0 where there is no such thing.
    pub channel_max: u16,
    /// Bytes, agreed on; 0 where there is no such thing.
    pub frame_max: u32,
    /// Seconds, agreed on.
    pub heartbeat: u16,
}

/// A channel as its connection describes it.
#[derive(Debug, Clone, Default)]
pub struct ChannelFacts {
    /// The client's number.
    pub number: u16,
    /// Per consumer, for those to come; 0: no limit.
    pub prefetch: u16,
    /// Shared by all its consumers; 0: no limit.
    pub global_prefetch: u16,
    /// confirm.select was seen.
    pub confirm: bool,
    /// tx.select was seen.
    pub transactional: bool,
    /// Delivered, not settled.
    pub unacked: u64,
    /// Published, not confirmed.
    pub unconfirmed: u64,
    /// Who consumes.
    pub consumers: Vec<ConsumerFacts>,
}

/// A consumer as its connection describes it.
#[derive(Debug, Clone)]
pub struct ConsumerFacts {
    /// Its tag.
    pub tag: Arc<str>,
    /// Its queue.
    pub queue: Arc<str>,
    /// Deliveries need no ack.
    pub no_ack: bool,
    /// Nobody else may read.
    pub exclusive: bool,
    /// Unsettled deliveries it may hold; 0: no limit.
    pub prefetch: u16,
    /// Field table, content only.
    pub arguments: Bytes,
}

/// What a connection's task is asked to do.
#[derive(Debug)]
pub enum Ask {
    /// End, and tell the client this.
    Close(String),
    /// Tell of your channels.
    Describe(oneshot::Sender<Vec<ChannelFacts>>),
}

/// One open connection.
#[derive(Debug)]
pub struct Entry {
    /// Unique while the process lives; ascending.
    pub number: u64,
    /// See there.
    pub facts: Facts,
    /// ms since 1970.
    pub connected_at: u64,
    channels: AtomicU32,
    received: AtomicU64,
    sent: AtomicU64,
    /// Its socket is not read: the broker is behind.
    held: AtomicBool,
    asks: Mutex<Vec<Ask>>,
    asked: Notify,
}

impl Entry {
    /// RabbitMQ's name of a connection: `127.0.0.1:40000 -> 127.0.0.1:5672`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} -> {}", self.facts.peer, self.facts.local)
    }

    /// Open channels.
    #[must_use]
    pub fn channels(&self) -> u32 {
        self.channels.load(Ordering::Relaxed)
    }

    /// Bytes received and sent, TLS not counted.
    #[must_use]
    pub fn octets(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// Is the client held back?
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Waits until something is asked; for its task. Cancel safe.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Asks its task. False: more is waiting already than anybody needs.
    pub fn ask(&self, ask: Ask) -> bool {
        let mut asks = lock(&self.asks);
        // A wish to end is never lost: it is one of few, and the last thing that matters.
        if asks.len() >= limits::CONNECTION_ASKS_MAX && !matches!(ask, Ask::Close(_)) {
            return false;
        }
        asks.push(ask);
        drop(asks);
        self.asked.notify_one();
        true
    }
}

/// See the module.
pub struct Registry {
    clock: Arc<dyn Clock>,
    brake: Brake,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    entries: BTreeMap<u64, Arc<Entry>>,
}

impl Registry {
    /// An empty list.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, brake: Brake::default(), state: Mutex::default() })
    }

    /// Somebody could not log in: how long the refusal waits, so that passwords are not guessed quickly.
    pub fn login_failed(&self, peer: IpAddr) -> Duration {
        self.brake.failed(peer, self.clock.monotonic())
    }

    /// A connection opened. It is listed until the place is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>, facts: Facts) -> Place {
        let connected_at = self.clock.wall_ms();
        let mut state = lock(&self.state);
        state.last += 1;
        let entry = Arc::new(Entry {
            number: state.last,
            facts,
            connected_at,
            channels: AtomicU32::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            held: AtomicBool::new(false),
            asks: Mutex::default(),
            asked: Notify::new(),
        });
        state.entries.insert(entry.number, Arc::clone(&entry));
        Place { registry: Arc::clone(self), entry }
    }

    /// All connections, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Entry>> {
        lock(&self.state).entries.values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.state).entries.len()
    }

    /// The connection of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Entry>> {
        // Names are made when they are looked at: comparing ends costs nothing.
        let (peer, local) = name.split_once(" -> ")?;
        let (peer, local): (SocketAddr, SocketAddr) = (peer.parse().ok()?, local.parse().ok()?);
        let state = lock(&self.state);
        state.entries.values().find(|e| e.facts.peer == peer && e.facts.local == local).cloned()
    }
}

/// A connection's own end of its entry.
pub struct Place {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
}

impl Place {
    /// How it is now; called once a read.
    pub fn update(&self, channels: usize, received: u64, sent: u64, held: bool) {
        let channels = u32::try_from(channels).unwrap_or(u32::MAX);
        self.entry.channels.store(channels, Ordering::Relaxed);
        self.entry.received.store(received, Ordering::Relaxed);
        self.entry.sent.store(sent, Ordering::Relaxed);
        self.entry.held.store(held, Ordering::Relaxed);
    }

    /// The entry, whose task waits for what is asked.
    #[must_use]
    pub fn entry(&self) -> Arc<Entry> {
        Arc::clone(&self.entry)
    }

    /// What was asked.
    #[must_use]
    pub fn asks(&self) -> Vec<Ask> {
        std::mem::take(&mut *lock(&self.entry.asks))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.registry.state).entries.remove(&self.entry.number);
        // Who waits for an answer learns that there will be none.
        lock(&self.entry.asks).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clock::SystemClock;

    pub(crate) fn facts(port: u16) -> Facts {
        Facts {
            protocol: Protocol::Amqp,
            local: "127.0.0.1:5672".parse().unwrap(),
            peer: SocketAddr::new("127.0.0.1".parse().unwrap(), port),
            user: "guest".into(),
            vhost: "/".into(),
            mechanism: "PLAIN".to_owned(),
            tls: None,
            subject: None,
            client_properties: Box::default(),
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
        }
    }

    #[tokio::test]
    async fn a_connection_is_found_by_its_name_until_it_ends() {
        let registry = Registry::new(Arc::new(SystemClock::new()));
        let first = registry.enter(facts(40_000));
        let second = registry.enter(facts(40_001));
        let name = "127.0.0.1:40001 -> 127.0.0.1:5672";
        assert_eq!(registry.find(name).unwrap().name(), name);
        assert!(registry.find("127.0.0.1:40002 -> 127.0.0.1:5672").is_none() && registry.find("x").is_none());
        assert!(registry.find(name).unwrap().ask(Ask::Close("enough".into())));
        second.entry().asked().await;
        assert!(matches!(&second.asks()[..], [Ask::Close(why)] if why == "enough"));
        drop(second);
        assert!(registry.find(name).is_none());
        assert_eq!(registry.list().len(), 1);
        drop(first);
        assert_eq!(registry.count(), 0);
    }

    #[tokio::test]
    async fn who_asks_a_connection_that_ends_is_told_so_and_too_many_questions_are_turned_away() {
        let registry = Registry::new(Arc::new(SystemClock::new()));
        let place = registry.enter(facts(1));
        let entry = registry.list().remove(0);
        let (sender, answer) = oneshot::channel();
        assert!(entry.ask(Ask::Describe(sender)));
        for _ in 1..limits::CONNECTION_ASKS_MAX {
            assert!(entry.ask(Ask::Describe(oneshot::channel().0)));
        }
        assert!(!entry.ask(Ask::Describe(oneshot::channel().0)));
        assert!(entry.ask(Ask::Close(String::new())));
        drop(place);
        assert!(answer.await.is_err());
    }
}
