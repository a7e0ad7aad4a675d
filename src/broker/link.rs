//! How a connection's task and the shard's thread talk.
//!
//! Owns: the two queues between them and the credit that bounds both.
//! Promises: verbs of one link are taken in order, events come back in order; dropping a [`Link`] tells the shard that the
//! connection is gone; sending never blocks, and [`Link::ready`] says when the connection may read its socket again.
//! Does not know: what a verb means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use super::api::{ConnectionId, Event, Op, Verb};
use super::message::Batches;
use super::topology::Topology;
use crate::limits;

/// What reaches the shard.
#[derive(Debug)]
pub(crate) enum Input {
    /// A new connection and where its events go.
    Connected(ConnectionId, mpsc::UnboundedSender<Vec<Event>>, Arc<Credit>),
    /// Verbs of one connection, in order.
    Verbs(ConnectionId, Vec<Verb>),
    /// The connection is gone.
    Disconnected(ConnectionId),
    /// A stream to another node opened: who it is, whether this node goes to it as a front end, where frames for it go.
    Attached { stream: u64, node: u64, leads: bool, frames: mpsc::UnboundedSender<Bytes> },
    /// A frame of such a stream.
    Frame(u64, Bytes),
    /// It ended.
    Detached(u64),
}

/// Bytes of verbs handed over and not yet resolved.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    used: AtomicUsize,
    freed: Notify,
}

impl Credit {
    pub(crate) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The shard is done with verbs of so many bytes.
    pub(crate) fn give(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        // Only the step over the limit can have somebody waiting.
        if before >= limits::CONNECTION_CREDIT && before - bytes < limits::CONNECTION_CREDIT {
            self.freed.notify_one();
        }
    }

    /// Bytes that are not resolved.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.used.load(Ordering::Acquire) < limits::CONNECTION_CREDIT
    }
}

/// Bytes a verb counts against its connection's credit: its message, or nothing, so that acks are never held back.
pub(crate) fn weight(verb: &Verb) -> usize {
    match &verb.op {
        Op::Publish(publish) => publish.message.bytes.len() + 256,
        Op::Commit(commit) => commit.publishes.iter().map(|p| p.message.bytes.len() + 256).sum(),
        Op::Send(send) => send.messages.iter().map(|m| m.message.bytes.len() + 256).sum(),
        _ => 0,
    }
}

/// Reads messages that lie in the log, from any thread.
pub type SharedLog = Arc<dyn Batches + Send + Sync>;

/// What connections sent, for the shard's loop to take.
#[derive(Debug)]
pub struct Inputs(pub(crate) mpsc::UnboundedReceiver<Input>);

/// The door to one shard; clone it freely.
#[derive(Clone)]
pub struct Shard {
    inputs: mpsc::UnboundedSender<Input>,
    topology: watch::Receiver<Arc<Topology>>,
    log: SharedLog,
    next: Arc<AtomicU64>,
}

impl Shard {
    /// A door, and the other end of it. `topology` follows what is applied.
    #[must_use]
    pub fn new(topology: watch::Receiver<Arc<Topology>>, log: SharedLog) -> (Self, Inputs) {
        let (inputs, taken) = mpsc::unbounded_channel();
        (Self { inputs, topology, log, next: Arc::new(AtomicU64::new(1)) }, Inputs(taken))
    }

    /// Opens a link for a new connection.
    #[must_use]
    pub fn connect(&self) -> Link {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (events_in, events) = mpsc::unbounded_channel();
        let credit = Arc::new(Credit::default());
        // A closed queue means that the shard stopped: the link then sees the end of its events.
        let _ = self.inputs.send(Input::Connected(id, events_in, Arc::clone(&credit)));
        Link {
            id,
            inputs: self.inputs.clone(),
            events,
            credit,
            topology: self.topology.clone(),
            log: self.log.clone(),
        }
    }

    /// A stream of purpose `Front` to another node opened: to the leader (`leads`), or from a node that is a front end. What the shard
    /// says there comes out of `frames`; when that ends, the stream must end.
    #[must_use]
    pub fn attach(&self, node: u64, leads: bool, frames: mpsc::UnboundedSender<Bytes>) -> Attached {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = self.inputs.send(Input::Attached { stream, node, leads, frames });
        Attached { stream, inputs: self.inputs.clone() }
    }

    /// The topology as last applied.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// The topology, once it is as wanted; `None` when the shard ends before. Cancel safe.
    pub async fn topology_when(&self, wanted: impl Fn(&Topology) -> bool) -> Option<Arc<Topology>> {
        let mut topology = self.topology.clone();
        let seen = topology.wait_for(|topology| wanted(topology)).await.ok()?;
        Some(Arc::clone(&seen))
    }

    /// Reads messages that lie in the log.
    #[must_use]
    pub fn log(&self) -> &SharedLog {
        &self.log
    }
}

/// The shard's end of a stream to another node; dropping it tells the shard that the stream ended.
#[derive(Debug)]
pub struct Attached {
    stream: u64,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Attached {
    /// Hands over a frame that arrived; false: the shard has stopped.
    pub fn frame(&self, frame: Bytes) -> bool {
        self.inputs.send(Input::Frame(self.stream, frame)).is_ok()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::Detached(self.stream));
    }
}

/// One connection's end.
pub struct Link {
    id: ConnectionId,
    inputs: mpsc::UnboundedSender<Input>,
    events: mpsc::UnboundedReceiver<Vec<Event>>,
    credit: Arc<Credit>,
    topology: watch::Receiver<Arc<Topology>>,
    log: SharedLog,
}

impl Link {
    /// This connection's number.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Hands over the verbs of one socket read, in order. Never blocks; false: the shard has stopped.
    pub fn send(&self, verbs: Vec<Verb>) -> bool {
        if verbs.is_empty() {
            return true;
        }
        self.credit.take(verbs.iter().map(weight).sum());
        self.inputs.send(Input::Verbs(self.id, verbs)).is_ok()
    }

    /// May the socket be read? False after more than [`limits::CONNECTION_CREDIT`] bytes are unresolved.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.credit.is_open()
    }

    /// Waits until [`Link::is_open`]. Cancel safe.
    pub async fn ready(&self) {
        while !self.credit.is_open() {
            self.credit.freed.notified().await;
        }
    }

    /// The credit alone, so that a task can wait for it and for events at the same time.
    #[must_use]
    pub fn gate(&self) -> Gate {
        Gate(Arc::clone(&self.credit))
    }

    /// The next events, in order; `None` after the shard has stopped. Cancel safe.
    pub async fn events(&mut self) -> Option<Vec<Event>> {
        self.events.recv().await
    }

    /// More events, if there are some at once.
    pub fn try_events(&mut self) -> Option<Vec<Event>> {
        self.events.try_recv().ok()
    }

    /// The topology as last applied.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// Reads messages that lie in the log.
    #[must_use]
    pub fn log(&self) -> &SharedLog {
        &self.log
    }
}

/// The credit of a link, see [`Link::gate`].
#[derive(Debug, Clone)]
pub struct Gate(Arc<Credit>);

impl Gate {
    /// As [`Link::is_open`].
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// As [`Link::ready`]. Cancel safe. Only one task may wait.
    pub async fn ready(&self) {
        while !self.0.is_open() {
            self.0.freed.notified().await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::Disconnected(self.id));
    }
}
