//! The shard's core: state, what is in flight, who waits. One value on one thread.
//!
//! Owns: the order of everything. Verbs come in, batches go out to the log, committed batches come back, events leave.
//! Promises: nothing durable leaves before it is committed (D7); a refused or voided batch is decided again, in order, and no verb
//! is answered twice (D10); acks are never held back by publishes.
//! Does not know: threads, sockets, the consensus library, files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dassie_storage::{Batch, LogPoint, Spill};
use hashbrown::HashMap;
use tokio::sync::{mpsc, watch};

use super::api::{
    ChannelId, ConnectionId, Delivery, Event, Fetch, Op, QueueUid, ReaderId, Refusal, Reply, Semantics, Verb,
    channel_of,
};
use super::dead::{Dead, Moving};
use super::front::Front;
use super::guests::{Guest, Guests};
use super::index::Pages;
use super::later::Later;
use super::link::{Credit, Input, weight};
use super::message::{Batches, Cache, Extent};
use super::moving::Need;
use super::reader::{Reader, ReaderKey, Runtime};
use super::record::{BatchBuilder, Kind, PayloadHead};
use super::repeats::Repeats;
use super::retention::Retention;
use super::state::{ALREADY_DELIVERED, Applied, Done, State};
use super::topology::{Route, Topology};
use crate::clock::{Clock, LogTime};
use crate::limits;
use crate::metrics::Metrics;
use crate::security::Authorized;

/// Fast maps for small keys made here, the same in every run; keys that clients choose freely use the seeded default.
pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// A batch to be proposed.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Term in which it was decided.
    pub term: u64,
    /// Its number in that term.
    pub ordinal: u64,
    /// The bytes.
    pub payload: Bytes,
}

/// What the core is given.
pub struct Parts {
    /// This node.
    pub node: u64,
    /// A new incarnation's number: random, never 0.
    pub session: u64,
    /// Reads batches.
    pub log: Box<dyn Batches>,
    /// Reads index pages.
    pub pages: Box<dyn PageSource>,
    /// Knows the layouts.
    pub semantics: Arc<dyn Semantics>,
    /// Where queues in memory page to under pressure; `None`: they do not.
    pub spill: Option<Spill>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where snapshots of the topology go.
    pub topology: watch::Sender<Arc<Topology>>,
    /// A batch is closed when its payload reaches this, and a body that is larger goes first in pieces. Bytes; at most
    /// [`limits::BATCH_TARGET`], less where the log's segments are small.
    pub batch_bytes: usize,
    /// What one verb may write when all of it must stand in one batch. Bytes; at most [`limits::SECTION_MAX`], less where the
    /// log's segments are small.
    pub section_bytes: usize,
}

/// Reads index pages, synchronously.
pub trait PageSource {
    /// The entries of `page`, which must belong to `owner`.
    ///
    /// # Errors
    /// What the disk says.
    fn read(&self, page: u32, owner: u64) -> std::io::Result<Bytes>;
}

struct PagesOf<'a>(&'a dyn PageSource);

impl Pages for PagesOf<'_> {
    fn read(&self, page: u32, owner: u64) -> std::io::Result<Bytes> {
        self.0.read(page, owner)
    }
}

/// One connection of this node.
pub(crate) struct Connection {
    events: mpsc::UnboundedSender<Vec<Event>>,
    pub(crate) credit: Arc<Credit>,
    /// Events of this turn.
    pub(crate) outbox: Vec<Event>,
    /// Verbs that wait until what is in flight is applied.
    pub(crate) stalled: VecDeque<Verb>,
    /// Sequence whose outcome the stalled verbs wait for; `None` with stalled verbs: any batch.
    pub(crate) stalled_on: Option<u64>,
    /// Sequence of its last publish that a record holds.
    last_publish: u64,
    /// Weight of deliveries handed over and not written yet.
    pub(crate) outstanding: usize,
    pub(crate) readers: BTreeSet<ReaderId>,
    /// Shared windows of channels: (limit, held).
    pub(crate) windows: Map<ChannelId, (u16, u32)>,
    /// The reader that got a message last: the next room of a shared window is for those behind it.
    pub(crate) served: ReaderId,
    /// Exclusive queues it declared.
    pub(crate) owned: Vec<QueueUid>,
    /// Channels that a refusal ended and that are not closed yet.
    pub(crate) refused: BTreeSet<ChannelId>,
    /// The client is gone; kept until its last verbs are decided.
    pub(crate) gone: bool,
    /// It is another node's.
    pub(crate) guest: Option<Guest>,
    /// Batch of this term in which its last send with a key stands.
    pub(crate) last_send: Option<u64>,
    /// The key of its last verb.
    pub(crate) key: Option<Authorized>,
}

impl Connection {
    /// A new one.
    pub(crate) fn new(events: mpsc::UnboundedSender<Vec<Event>>, credit: Arc<Credit>) -> Self {
        Connection {
            events,
            credit,
            outbox: Vec::new(),
            stalled: VecDeque::new(),
            stalled_on: None,
            last_publish: 0,
            outstanding: 0,
            readers: BTreeSet::new(),
            windows: Map::default(),
            served: 0,
            owned: Vec::new(),
            refused: BTreeSet::new(),
            gone: false,
            guest: None,
            last_send: None,
            key: None,
        }
    }
}

/// What a verb in the log leads to.
#[derive(Debug)]
pub(crate) enum Work {
    /// A client's verb.
    Verb { connection: ConnectionId, verb: Verb, weight: usize },
    /// Topology changes that the leader owes (auto-delete, exclusive queues).
    Internal(Vec<super::topology::Change>),
    /// Settlements: a reader's, or made by the leader itself (auto-ack).
    Settled { queue: QueueUid, ranges: Vec<(u64, u64)>, by: Option<ReaderKey> },
    /// Something that the records behind it need.
    Needed(Need),
    /// A piece of a large body of the verb that waits in `large`.
    Piece { connection: ConnectionId, bytes: Bytes },
    /// A fan-out to more queues than one record names: the parts before the publish itself.
    Part { publish: Box<super::api::Publish>, targets: Vec<QueueUid> },
    /// A dead message moves to its next queues.
    Dead(Box<Moving>),
    /// A transaction.
    Commit(Box<super::tx::Committing>),
    /// Records that nobody waits for. If they are lost, the state still says what is owed.
    Unanswered,
}

/// A verb that has a number and is not resolved yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) work: Work,
    pub(crate) done: bool,
    /// Gathered while its records are applied.
    pub(crate) enqueued: Vec<super::state::Enqueued>,
    /// Chosen message queue of a send.
    pub(crate) queue_id: u32,
    /// It is a send that was stored before.
    pub(crate) repeats: bool,
    /// Where the pieces of a large body lie, committed.
    pub(crate) extents: Vec<Extent>,
    /// A queue turned it away that it was for.
    pub(crate) refused: bool,
    /// What queues in memory get once it is applied.
    pub(crate) in_memory: Option<Box<super::api::Publish>>,
}

/// A large publish whose pieces are on their way.
pub(crate) struct Large {
    pub(crate) verb: Verb,
    pub(crate) left: usize,
    pub(crate) extents: Vec<Extent>,
}

/// A pull that waits.
pub(crate) struct Waiter {
    pub(crate) connection: ConnectionId,
    pub(crate) request: u64,
    pub(crate) queue: QueueUid,
    pub(crate) fetch: Fetch,
    pub(crate) deadline: Duration,
}

/// What the leader decided on top of the applied state.
pub(crate) struct Overlay {
    pub(crate) term: u64,
    pub(crate) ordinal: u64,
    /// With everything in flight applied.
    pub(crate) topology: Topology,
    /// Likewise.
    pub(crate) locks: super::locks::Locks,
    /// Last sequence of this node's session that stands in a decided batch.
    pub(crate) previous: u64,
    pub(crate) builder: BatchBuilder,
    /// How long the open batch may grow beyond the usual, because what is being written must stand in one.
    pub(crate) room: usize,
    /// The state's ordinal when the first record of the open batch was decided.
    pub(crate) opened: u64,
    /// Closed, not proposed yet.
    pub(crate) closed: VecDeque<Proposal>,
    /// Proposed, not applied yet.
    pub(crate) in_flight: usize,
    /// A guest's verb whose records are being written: sequence, front end, number.
    pub(crate) origin: Option<(u64, u64, u64)>,
}

/// See the module.
pub struct Core {
    pub(crate) state: State,
    pub(crate) node: u64,
    pub(crate) session: u64,
    pub(crate) log: Box<dyn Batches>,
    pub(crate) pages: Box<dyn PageSource>,
    pub(crate) semantics: Arc<dyn Semantics>,
    clock: Arc<dyn Clock>,
    pub(crate) batch_bytes: usize,
    pub(crate) section_bytes: usize,
    log_time: LogTime,
    topology_out: watch::Sender<Arc<Topology>>,
    /// `Some` while this node leads and has decided everything again that it must.
    pub(crate) overlay: Option<Overlay>,
    /// Batches of a dropped overlay of that term that must be applied or refused before anything is decided again.
    draining: Option<(u64, usize)>,
    /// The term whose first batch, this node's, was applied; it leads when consensus agrees.
    begun: Option<u64>,
    pub(crate) session_open: bool,
    /// Nobody else can lead at this moment: what is applied here is all there is.
    leased: bool,
    /// Somebody else led since this node did.
    deposed: bool,
    next_sequence: u64,
    /// Verbs with numbers, oldest first; the first one has number `first_pending`.
    pub(crate) pending: VecDeque<Pending>,
    first_pending: u64,
    pub(crate) connections: Map<ConnectionId, Connection>,
    /// Connections with verbs that wait.
    stalled: BTreeSet<ConnectionId>,
    /// Exclusive queues whose connection went while nobody led.
    pub(crate) orphans: Vec<QueueUid>,
    /// Verbs are being decided for the second time: what is not durable already happened.
    pub(crate) again: bool,
    /// Log time of this turn.
    time: u64,
    /// Wall time of this turn as messages are stamped with it: never behind one that was stamped before.
    stamp: u64,
    pub(crate) readers: Map<ReaderKey, Reader>,
    pub(crate) runtimes: Map<QueueUid, Runtime>,
    pub(crate) routes: HashMap<(u32, Arc<str>, Arc<str>), Arc<Route>>,
    routes_version: u64,
    pub(crate) waiters: Map<u64, Waiter>,
    pub(crate) deadlines: BTreeMap<(Duration, u64), ()>,
    next_waiter: u64,
    /// Who takes direct replies, by key. Clients name keys freely, those that are not here too.
    pub(crate) replies: HashMap<Arc<str>, super::reply::ReplyReader>,
    /// Log time at which the head of a queue expires.
    pub(crate) due: BTreeSet<(u64, QueueUid)>,
    /// Queues whose arguments set limits, as decided, while this node leads.
    pub(crate) limited: Map<QueueUid, super::expire::Limited>,
    /// Log time at which a queue goes unless it is used before.
    pub(crate) unused: BTreeSet<(u64, QueueUid)>,
    /// Found expired while its queue was served.
    pub(crate) expired: Vec<u64>,
    /// Queues that may have something to hand out.
    pub(crate) work: VecDeque<QueueUid>,
    /// Queues whose readers moved on since the last delivered-through record.
    pub(crate) handed: Vec<QueueUid>,
    /// Connections with events to send or verbs to retry.
    flushes: Vec<ConnectionId>,
    pub(crate) memory_used: usize,
    /// Where queues in memory page to.
    pub(crate) spill: Option<Spill>,
    pub(crate) large: Map<ConnectionId, Large>,
    pub(crate) cache: Cache,
    pub(crate) counters: Counters,
    observed: Counters,
    pub(crate) round_robin: u64,
    /// Handed to readers that settle as they get, in this turn.
    pub(crate) auto_acked: Vec<(QueueUid, u64)>,
    /// What waits for its time.
    pub(crate) later: Later,
    /// What died and is not moved yet.
    pub(crate) dead: Dead,
    /// What is kept.
    pub(crate) retention: Retention,
    /// Producers that try again.
    pub(crate) repeats: Repeats,
    /// Connections of other nodes.
    pub(crate) guests: Guests,
    /// This node's side of the same.
    pub(crate) front: Front,
    /// The other voters.
    pub(crate) others: Vec<u64>,
}

/// What the shard counts; read by metrics.
#[derive(Debug, Default, Clone)]
pub struct Counters {
    /// Messages taken from publishers (AMQP).
    pub published: u64,
    /// Messages taken from producers (RocketMQ).
    pub sent: u64,
    /// Sends that were a retry of one that is stored.
    pub repeated: u64,
    /// Confirms given.
    pub confirmed: u64,
    /// Messages handed to AMQP readers.
    pub delivered: u64,
    /// Of these, not for the first time.
    pub redelivered: u64,
    /// Messages handed to pulls.
    pub pulled: u64,
    /// Acknowledged or discarded.
    pub settled: u64,
    /// Of the published: with a confirm wanted.
    pub published_confirm: u64,
    /// Reached no queue and were dropped.
    pub unroutable: u64,
    /// Reached no queue and went back.
    pub returned: u64,
    /// Gets that found nothing.
    pub get_empty: u64,
    /// Pulls that found nothing.
    pub pull_empty: u64,
    /// Batches applied.
    pub batches: u64,
    /// Batches or sections found void.
    pub voided: u64,
}

impl Counters {
    /// A message was taken from an AMQP publisher.
    pub(crate) fn publish(&mut self, wants_confirm: bool) {
        self.published += 1;
        self.published_confirm += u64::from(wants_confirm);
    }

    /// It reached no queue.
    pub(crate) fn no_route(&mut self, mandatory: bool) {
        self.unroutable += u64::from(!mandatory);
        self.returned += u64::from(mandatory);
    }
}

/// A state as recovered from a checkpoint, before the log behind it is replayed.
pub struct Recovered(State);

impl Recovered {
    /// The membership kept with the checkpoint.
    #[must_use]
    pub fn membership(&self) -> Option<Bytes> {
        self.0.membership.clone()
    }

    /// Its log time, ms since 1970.
    #[must_use]
    pub fn log_time(&self) -> u64 {
        self.0.log_time
    }
}

impl Core {
    /// The state that a checkpoint stands for (an empty one without), and the index pages it names.
    ///
    /// # Errors
    /// `InvalidData`: a format that this program does not know.
    pub fn recovered(
        segment_size: u64,
        checkpoint: Option<(LogPoint, BTreeMap<Bytes, Bytes>)>,
    ) -> std::io::Result<(Recovered, Vec<u32>)> {
        let Some((point, objects)) = checkpoint else {
            return Ok((Recovered(State::new(segment_size)), Vec::new()));
        };
        let (state, pages) = State::load(segment_size, point, objects)
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, format!("checkpoint: {e}")))?;
        Ok((Recovered(state), pages))
    }

    /// The index pages that a checkpoint's objects name, with their owners.
    ///
    /// # Errors
    /// As [`Core::recovered`].
    pub fn used_pages(objects: &BTreeMap<Bytes, Bytes>) -> std::io::Result<Vec<(u64, u64)>> {
        super::state::used_pages(objects)
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, format!("checkpoint: {e}")))
    }

    /// The log time of a batch, ms since 1970; `None` for one without outcomes.
    #[must_use]
    pub fn log_time_of(batch: &Batch) -> Option<u64> {
        if batch.kind != 1 {
            return None;
        }
        super::record::log_time(&batch.payload).ok()
    }

    /// A core on a recovered state. `state` is what the last checkpoint held; the log is replayed through [`Core::apply`].
    #[must_use]
    pub fn new(parts: Parts, Recovered(state): Recovered) -> Self {
        let (monotonic, wall) = (parts.clock.monotonic(), parts.clock.wall_ms());
        let log_time = LogTime::begin(state.log_time, monotonic, wall);
        let _ = parts.topology.send(Arc::new(state.topology.clone()));
        Self {
            state,
            node: parts.node,
            session: parts.session,
            log: parts.log,
            pages: parts.pages,
            semantics: parts.semantics,
            clock: parts.clock,
            batch_bytes: parts.batch_bytes,
            section_bytes: parts.section_bytes,
            log_time,
            topology_out: parts.topology,
            overlay: None,
            draining: None,
            begun: None,
            session_open: false,
            leased: false,
            deposed: false,
            next_sequence: 1,
            pending: VecDeque::new(),
            first_pending: 1,
            connections: Map::default(),
            stalled: BTreeSet::new(),
            orphans: Vec::new(),
            again: false,
            time: 0,
            stamp: 0,
            readers: Map::default(),
            runtimes: Map::default(),
            routes: HashMap::default(),
            routes_version: 0,
            waiters: Map::default(),
            deadlines: BTreeMap::new(),
            next_waiter: 1,
            replies: HashMap::new(),
            due: BTreeSet::new(),
            limited: Map::default(),
            unused: BTreeSet::new(),
            expired: Vec::new(),
            work: VecDeque::new(),
            handed: Vec::new(),
            flushes: Vec::new(),
            memory_used: 0,
            spill: parts.spill,
            large: Map::default(),
            cache: Cache::default(),
            counters: Counters::default(),
            observed: Counters::default(),
            round_robin: 0,
            auto_acked: Vec::new(),
            later: Later::default(),
            dead: Dead::default(),
            retention: Retention::default(),
            repeats: Repeats::default(),
            guests: Guests::default(),
            front: Front::new(),
            others: Vec::new(),
        }
    }

    /// This node leads and serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.overlay.is_some() && self.session_open && self.leased
    }

    /// Consensus says which term this node certainly leads now. Without that nothing is read, handed out or decided: another
    /// node may lead already.
    pub fn lease(&mut self, term: Option<u64>) {
        let had = self.is_ready();
        self.leased = term.is_some() && self.overlay.as_ref().map(|o| o.term) == term;
        if !had {
            self.retry_stalled();
        }
    }

    /// Last applied batch.
    #[must_use]
    pub fn applied(&self) -> Option<LogPoint> {
        self.state.applied
    }

    /// A digest of the replicated state: equal on replicas that applied the same batches.
    pub fn digest(&mut self) -> u64 {
        self.with_pages(|state, pages| state.digest(pages))
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes down what changed since it was last asked.
    pub fn observe(&mut self, metrics: &Metrics) {
        let (now, before) =
            (self.counters.clone(), std::mem::replace(&mut self.observed, self.counters.clone()));
        metrics.amqp.received.inc_by(now.published - before.published);
        metrics.amqp.confirmed.inc_by(now.confirmed - before.confirmed);
        metrics.amqp.delivered.inc_by(now.delivered - before.delivered);
        metrics.amqp.redelivered.inc_by(now.redelivered - before.redelivered);
        metrics.amqp.acknowledged.inc_by(now.settled - before.settled);
        metrics.amqp.unroutable_dropped.inc_by(now.unroutable - before.unroutable);
        metrics.amqp.unroutable_returned.inc_by(now.returned - before.returned);
        let routed = |c: &Counters| c.published - c.unroutable - c.returned;
        metrics.amqp.routed.inc_by(routed(&now) - routed(&before));
        metrics.amqp.received_confirm.inc_by(now.published_confirm - before.published_confirm);
        metrics.amqp.get_empty.inc_by(now.get_empty - before.get_empty);
        metrics.rocketmq.get_empty.inc_by(now.pull_empty - before.pull_empty);
        // A send is answered when it is in its queue: there is nothing between.
        metrics.rocketmq.routed.inc_by(now.sent - before.sent);
        metrics.rocketmq.received_confirm.inc_by(now.sent - before.sent);
        metrics.rocketmq.received.inc_by(now.sent - before.sent);
        metrics.rocketmq.confirmed.inc_by(now.sent - before.sent);
        metrics.rocketmq.delivered.inc_by(now.pulled - before.pulled);
        metrics.log.batches.inc_by(now.batches - before.batches);
        metrics.log.leader.set(i64::from(self.overlay.is_some()));
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let end = gauge(self.state.applied.map_or(0, |p| p.end));
        metrics.log.applied.set(end);
        metrics.log.committed.set(end);
        metrics.log.bytes.set(gauge(self.retention.space.used));
        metrics.log.reclaimable.set(gauge(self.retention.space.reclaimable));
        metrics.queues.set(gauge(self.state.topology.queue_count() as u64));
        metrics.consumers.set(gauge(self.readers.values().filter(|r| r.attached).count() as u64));
        let unacked: u64 = self.runtimes.values().map(|r| r.unacked).sum();
        metrics.messages_unacked.set(gauge(unacked));
        let durable = self.state.messages;
        let memory: u64 = self.runtimes.values().filter_map(|r| r.memory.as_ref()).map(|m| m.depth()).sum();
        metrics.messages.set(gauge((durable + memory).max(unacked)));
        metrics.messages_ready.set(gauge((durable + memory).saturating_sub(unacked)));
    }

    /// Takes what connections sent.
    pub(crate) fn input(&mut self, input: Input) {
        match input {
            Input::Connected(id, events, credit) => {
                self.connections.insert(id, Connection::new(events, credit));
            }
            Input::Verbs(id, verbs) => {
                for verb in verbs {
                    self.verb(id, verb);
                }
            }
            Input::Disconnected(id) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                connection.gone = true;
                let here = connection.is_here();
                if here && self.front.is_live() {
                    return self.front_gone(id);
                }
                let Some(connection) = self.connections.get_mut(&id) else { return };
                if connection.stalled.is_empty() && connection.stalled_on.is_none() && self.is_ready() {
                    self.disconnected(id);
                } else {
                    // What it sent before it went is decided first.
                    self.stalled.insert(id);
                }
            }
            Input::Attached { stream, leads: true, frames, .. } => self.leader_attached(stream, frames),
            Input::Attached { stream, node, leads: false, frames } => {
                self.front_attached(stream, node, frames);
            }
            Input::Frame(stream, frame) => {
                self.leader_frame(stream, &frame);
                self.front_frame(stream, &frame);
            }
            Input::Detached(stream) => {
                self.leader_detached(stream);
                self.front_detached(stream);
            }
        }
    }

    /// One verb: decided now, or kept until it can be.
    pub(crate) fn verb(&mut self, id: ConnectionId, mut verb: Verb) {
        let now = self.clock.monotonic();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Op::Send(send) = &mut verb.op {
            // A guest's was on its way for so long already.
            send.arrived = now.saturating_sub(send.arrived);
        }
        connection.key = Some(verb.key);
        if connection.is_here() && self.front.is_live() {
            return self.hand_over(id, verb);
        }
        let urgent = matches!(verb.op, Op::Drained { .. });
        if !urgent
            && (self.overlay.is_none()
                || !self.session_open
                || !self.leased
                || !connection.stalled.is_empty()
                || connection.stalled_on.is_some())
        {
            connection.stalled.push_back(verb);
            self.stalled.insert(id);
            return;
        }
        self.decide(id, verb);
    }

    /// Keeps `verb` (and what follows it on this connection) until the next batch is applied.
    pub(crate) fn stall(&mut self, id: ConnectionId, verb: Verb) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled.push_front(verb);
            self.stalled.insert(id);
        }
    }

    /// Verb `sequence` of this connection publishes.
    pub(crate) fn published(&mut self, id: ConnectionId, sequence: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.last_publish = sequence;
        }
    }

    /// Are publishes of this connection on their way that are not applied yet?
    pub(crate) fn publishes_in_flight(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.last_publish >= self.first_pending)
    }

    /// Keeps `verb` until the connection's own publishes are applied.
    pub(crate) fn stall_behind_publishes(&mut self, id: ConnectionId, verb: Verb) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled_on = Some(connection.last_publish);
        }
        self.stall(id, verb);
    }

    /// Is a topology change on its way that is not applied yet?
    pub(crate) fn topology_in_flight(&self) -> bool {
        self.overlay.as_ref().is_some_and(|o| o.topology.version != self.state.topology.version)
    }

    /// The number that the next [`Core::number`] gives.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Gives a verb its number and remembers it until its records are applied.
    pub(crate) fn number(&mut self, work: Work) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.name_origin(sequence, &work);
        self.pending.push_back(Pending {
            work,
            done: false,
            enqueued: Vec::new(),
            queue_id: 0,
            repeats: false,
            extents: Vec::new(),
            refused: false,
            in_memory: None,
        });
        sequence
    }

    /// The number of the first verb that is not resolved.
    pub(crate) fn first_pending(&self) -> u64 {
        self.first_pending
    }

    /// So many numbers lead to nothing: their verbs wait elsewhere.
    pub(crate) fn drop_numbers(&mut self, count: u64) {
        self.first_pending += count;
    }

    /// If that is a guest's verb, its records shall say so.
    pub(crate) fn name_origin(&mut self, sequence: u64, work: &Work) {
        let origin = match work {
            Work::Verb { connection, verb, .. } => self.origin_of(*connection, verb.number),
            Work::Commit(commit) => self.origin_of(commit.connection(), commit.number()),
            _ => None,
        };
        let Some((front, number)) = origin else { return };
        self.put_origin();
        if let Some(overlay) = self.overlay.as_mut() {
            overlay.origin = Some((sequence, front, number));
        }
    }

    /// Writes whose verb the last records are, in the same batch.
    pub(crate) fn put_origin(&mut self) {
        let session = self.session;
        let Some(overlay) = self.overlay.as_mut() else { return };
        let (previous, version) = (overlay.previous, overlay.topology.version);
        let Some((sequence, front, number)) = overlay.origin.take_if(|(sequence, ..)| *sequence == previous)
        else {
            return;
        };
        let start = overlay.builder.begin(session, previous, sequence, version, Kind::Origin, 0);
        bytes::BufMut::put_u64_le(overlay.builder.body(), front);
        bytes::BufMut::put_u64_le(overlay.builder.body(), number);
        overlay.builder.end(start);
    }

    /// The pending verb with that number.
    pub(crate) fn pending(&mut self, sequence: u64) -> Option<&mut Pending> {
        let place = usize::try_from(sequence.checked_sub(self.first_pending)?).ok()?;
        self.pending.get_mut(place)
    }

    /// Writes one record of verb `sequence` into the open batch.
    ///
    /// # Panics
    /// When this node does not lead: callers checked.
    pub(crate) fn record(
        &mut self,
        sequence: u64,
        kind: Kind,
        size_hint: usize,
        write: impl FnOnce(&mut bytes::BytesMut, usize),
    ) {
        let Some(overlay) = self.overlay.as_mut() else { panic!("only a leader writes records") };
        if overlay.origin.is_some_and(|(of, ..)| of != sequence) {
            self.put_origin();
        }
        let Some(overlay) = self.overlay.as_mut() else { return };
        // One that wrote nothing has nothing to be named.
        overlay.origin.take_if(|(of, ..)| *of != sequence);
        let most = self.batch_bytes.max(overlay.room);
        if !overlay.builder.is_empty() && overlay.builder.len() + size_hint > most {
            self.close_batch();
        }
        let session = self.session;
        let Some(overlay) = self.overlay.as_mut() else { return };
        if overlay.builder.is_empty() {
            overlay.opened = self.state.ordinal;
        }
        let version = overlay.topology.version;
        let start = overlay.builder.begin(session, overlay.previous, sequence, version, kind, 0);
        overlay.previous = sequence;
        let record = start;
        write(overlay.builder.body(), record);
        overlay.builder.end(start);
    }

    /// Closes the open batch if `bytes` more do not fit: what follows stands in one batch, one of its own if it is large. Beyond
    /// [`Parts::section_bytes`] nothing is promised.
    pub(crate) fn make_room(&mut self, bytes: usize) {
        let Some(overlay) = self.overlay.as_ref() else { return };
        let most = self.batch_bytes.max(overlay.room);
        if !overlay.builder.is_empty() && overlay.builder.len() + bytes > most {
            self.close_batch();
        }
        if let Some(overlay) = self.overlay.as_mut() {
            overlay.room = overlay.room.max(overlay.builder.len() + bytes).min(self.section_bytes);
        }
    }

    fn close_batch(&mut self) {
        self.put_origin();
        self.put_delivered_through();
        let log_time = self.now();
        let Some(overlay) = self.overlay.as_mut() else { return };
        let builder = std::mem::replace(&mut overlay.builder, BatchBuilder::new());
        overlay.room = 0;
        let lag = u32::try_from(overlay.ordinal - overlay.opened).unwrap_or(u32::MAX);
        let head = PayloadHead { term: overlay.term, ordinal: overlay.ordinal, log_time, lag };
        overlay.closed.push_back(Proposal {
            term: overlay.term,
            ordinal: overlay.ordinal,
            payload: builder.close(head),
        });
        overlay.ordinal += 1;
    }

    /// Delivered-through marks ride in a batch that goes anyway (D4).
    fn put_delivered_through(&mut self) {
        // A batch has room for so many beside its own records.
        let rest = self.handed.split_off(self.handed.len().min(limits::HANDED_PER_BATCH));
        let handed = std::mem::replace(&mut self.handed, rest);
        let session = self.session;
        for uid in handed {
            let Some(runtime) = self.runtimes.get_mut(&uid) else { continue };
            runtime.handed = false;
            let next = if runtime.keeps { runtime.top } else { runtime.next };
            if !self.state.queues.contains_key(&uid) {
                continue;
            }
            let Some(overlay) = self.overlay.as_mut() else { return };
            if overlay.builder.is_empty() {
                return;
            }
            let (previous, version) = (overlay.previous, overlay.topology.version);
            let start =
                overlay.builder.begin(session, previous, previous, version, Kind::DeliveredThrough, 0);
            bytes::BufMut::put_u64_le(overlay.builder.body(), uid);
            bytes::BufMut::put_u64_le(overlay.builder.body(), next);
            overlay.builder.end(start);
        }
    }

    /// Log time of this turn, ms since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.time
    }

    /// Store time for messages of this turn, ms since 1970. Log time would lag for days behind the wall clock after a long stop;
    /// clients search by this one.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// A turn begins: looks at the clock once for all that is decided in it.
    pub fn turn(&mut self) {
        let (monotonic, wall) = (self.clock.monotonic(), self.clock.wall_ms());
        self.time = self.log_time.now_ms(monotonic, wall).max(self.state.log_time);
        self.stamp = wall.max(self.stamp).max(self.state.store_time);
    }

    /// Monotonic time for waits.
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Batches to propose now, in order: the open one is closed when nothing is in flight (the sync is the only timer, D24).
    pub fn proposals(&mut self) -> Vec<Proposal> {
        let mut out = Vec::new();
        let Some(overlay) = self.overlay.as_ref() else { return out };
        if overlay.in_flight == 0 && overlay.closed.is_empty() && !overlay.builder.is_empty() {
            self.close_batch();
        }
        if let Some(overlay) = self.overlay.as_mut() {
            while overlay.in_flight < limits::BATCHES_IN_FLIGHT
                && let Some(proposal) = overlay.closed.pop_front()
            {
                overlay.in_flight += 1;
                out.push(proposal);
            }
        }
        out
    }

    /// A proposal was refused: drop what was decided on top of the applied state, wait until all that is in flight was applied or
    /// refused too, and decide again (D10). [`Core::lead`] starts again, because an immediate attempt would be refused too.
    pub fn refused(&mut self, term: u64) {
        match &mut self.draining {
            Some((draining, left)) if *draining == term => *left = left.saturating_sub(1),
            _ => self.drop_overlay(term),
        }
    }

    fn drop_overlay(&mut self, term: u64) {
        if let Some(overlay) = self.overlay.take_if(|o| o.term == term) {
            self.draining = Some((term, overlay.in_flight.saturating_sub(1)));
        }
    }

    /// Consensus says that this node leads `term`. Begins to lead once the term's first batch is applied, or decides again after
    /// a refusal was waited out. Replayed term starts of this node's earlier terms lead to nothing.
    pub fn lead(&mut self, term: u64) {
        if self.state.term != term || self.overlay.is_some() {
            return;
        }
        let waited_out = self.draining == Some((term, 0));
        if waited_out || self.begun == Some(term) {
            self.draining = None;
            self.begun = None;
            self.start_leading(term, waited_out);
        }
    }

    /// This node does not lead any more.
    pub fn stop_leading(&mut self) {
        self.overlay = None;
        self.draining = None;
        self.begun = None;
    }

    /// Begins to lead in `term`: everything before it is applied, so what is pending is decided again.
    fn start_leading(&mut self, term: u64, led_before: bool) {
        let last = self.state.sessions.get(&self.session).map(|s| s.last);
        self.overlay = Some(Overlay {
            term,
            ordinal: self.state.ordinal,
            topology: self.state.topology.clone(),
            locks: self.state.locks.clone(),
            previous: last.unwrap_or(0),
            builder: BatchBuilder::new(),
            room: 0,
            opened: self.state.ordinal,
            closed: VecDeque::new(),
            in_flight: 0,
            origin: None,
        });
        if !led_before {
            // In its own term it goes on with its own time: what passed since the last batch is not lost.
            let (monotonic, wall) = (self.clock.monotonic(), self.clock.wall_ms());
            self.log_time = LogTime::begin(self.state.log_time, monotonic, wall);
            self.begin_grace();
        }
        self.turn();
        self.session_open = last.is_some();
        self.restart_later();
        self.restart_retention();
        self.restart_dead();
        self.restart_limits();
        self.leased = true;
        if std::mem::take(&mut self.deposed) {
            self.rebase_runtimes();
            self.forget_late_wishes();
        }
        self.refill_ready();
        let listed: Vec<QueueUid> = self.runtimes.keys().copied().collect();
        listed.into_iter().for_each(|uid| self.list(uid));
        if !self.session_open {
            let (node, session) = (self.node, self.session);
            let Some(overlay) = self.overlay.as_mut() else { return };
            let version = overlay.topology.version;
            let start = overlay.builder.begin(session, 0, 0, version, Kind::Session, 0);
            bytes::BufMut::put_u64_le(overlay.builder.body(), node);
            overlay.builder.end(start);
            return;
        }
        self.decide_again();
    }

    /// Somebody else led meanwhile: what connections that are gone by now had asked is not done any more. They got no answer, and may
    /// have asked again there: an offset stored late would go back, a message would come behind newer ones of its producer.
    fn forget_late_wishes(&mut self) {
        for connection in self.connections.values_mut().filter(|c| c.gone) {
            connection.stalled.clear();
        }
        let gone = |id: &ConnectionId| self.connections.get(id).is_none_or(|connection| connection.gone);
        let late: Vec<ConnectionId> = self.large.keys().filter(|id| gone(id)).copied().collect();
        let mut forgotten: Vec<usize> = Vec::new();
        let mut parts = 0;
        for (place, pending) in self.pending.iter().enumerate() {
            match &pending.work {
                Work::Part { .. } if !pending.done => parts += 1,
                // The parts of a publish stand right before it.
                Work::Verb { connection, .. } if !pending.done && gone(connection) => {
                    forgotten.extend(place - std::mem::take(&mut parts)..=place);
                }
                _ => parts = 0,
            }
        }
        for id in late {
            self.large.remove(&id);
            // It waited for the last of the pieces, which nobody counts any more; what it held is free again when it does not wait.
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.stalled_on = None;
            }
        }
        for place in forgotten {
            // Its number stays: nothing is left to be written under it.
            let sequence = self.first_pending + place as u64;
            let work = std::mem::replace(&mut self.pending[place].work, Work::Unanswered);
            if let Work::Verb { connection, .. } = work
                && let Some(connection) = self.connections.get_mut(&connection)
                && connection.stalled_on == Some(sequence)
            {
                connection.stalled_on = None;
            }
        }
    }

    /// Applies a committed batch, tells who waited, and looks for what can go out now.
    pub fn apply(&mut self, batch: &Batch) {
        let pages = PagesOf(&*self.pages);
        let applied = self.state.apply(batch, &pages);
        self.origins_applied(&applied);
        self.counters.batches += 1;
        self.cache.remember(batch);
        self.log_time.observe(self.state.log_time);
        if applied.topology {
            self.topology_applied(&applied);
        }
        for (session, sequence, done) in &applied.done {
            if *session == self.session {
                self.resolve_record(*sequence, *done, &applied);
            }
        }
        self.pop_resolved();
        for enqueued in &applied.enqueued {
            self.arrived(*enqueued);
            self.waiting_enqueued(enqueued.queue);
        }
        self.after_apply(&applied);
        self.front_turn();
    }

    fn after_apply(&mut self, applied: &Applied) {
        self.counters.voided += applied.void_sections.len() as u64 + u64::from(applied.void.is_some());
        if let Some((term, leader)) = applied.term_start {
            self.stop_leading();
            self.send_guests_away();
            self.forget_repeats();
            self.leave_leader(term);
            self.deposed |= leader != self.node;
            self.begun = (leader == self.node).then_some(term);
            return;
        }
        if !self.session_open && self.state.sessions.contains_key(&self.session) && self.overlay.is_some() {
            self.session_open = true;
            if let Some(overlay) = self.overlay.as_mut() {
                // Applying the session removed what the incarnation before it held; nothing else is in flight yet.
                overlay.topology = self.state.topology.clone();
            }
            self.decide_again();
        }
        let own = applied.term_start.is_none() && applied.outcomes;
        let lost = applied.void.is_some()
            || applied
                .void_sections
                .iter()
                .any(|(s, _, why)| *s == self.session && *why != ALREADY_DELIVERED);
        match (&mut self.overlay, &mut self.draining) {
            (Some(overlay), _) if own && !lost => overlay.in_flight = overlay.in_flight.saturating_sub(1),
            (Some(_), _) if own => {
                // Our own batch or section was void: what was decided after it rests on nothing.
                self.drop_overlay(self.state.term);
                self.lead(self.state.term);
            }
            (None, Some((_, left))) if own => {
                *left = left.saturating_sub(1);
                self.lead(self.state.term);
            }
            _ => {}
        }
        self.retry_stalled();
    }

    /// Verbs that were decided but are not in the log are decided again, in their order, before anything new.
    fn decide_again(&mut self) {
        if self.front.fronted {
            self.stop_fronting();
        }
        let last = self.state.sessions.get(&self.session).map_or(0, |s| s.last);
        let first = self.first_pending;
        let again: Vec<u64> = (first..first + self.pending.len() as u64).filter(|s| *s > last).collect();
        self.again = true;
        for sequence in again {
            self.redo(sequence);
        }
        self.again = false;
        self.pop_resolved();
        self.give_up_unnamed();
        let orphans = std::mem::take(&mut self.orphans);
        self.remove_owned(orphans);
        self.watch_all();
        self.retry_stalled();
    }

    fn topology_applied(&mut self, applied: &Applied) {
        let _ = self.topology_out.send(Arc::new(self.state.topology.clone()));
        self.find_waiting_queues();
        for uid in &applied.removed {
            self.queue_gone(*uid);
        }
    }

    fn resolve_record(&mut self, sequence: u64, done: Done, applied: &Applied) {
        let Some(pending) = self.pending(sequence) else { return };
        pending.done = true;
        if let (Done::Enqueued { first, count: 1.. }, Work::Verb { verb: Verb { op: Op::Send(_), .. }, .. }) =
            (done, &pending.work)
        {
            // The message queue it was sent to stands first; AMQP queues bound to the topic follow.
            pending.enqueued.push(applied.enqueued[first]);
        }
        if let Done::Repeated { place } = done {
            pending.enqueued.clone_from(&applied.again[place]);
        }
        if let (Done::Body { position, batch_back }, Work::Piece { connection, bytes }) =
            (done, &pending.work)
        {
            let (connection, len) = (*connection, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            self.piece_stored(connection, Extent { position, len, batch_back });
        }
    }

    fn pop_resolved(&mut self) {
        while self.pending.front().is_some_and(|p| p.done) {
            let Some(pending) = self.pending.pop_front() else { return };
            let sequence = self.first_pending;
            self.first_pending += 1;
            self.resolved(sequence, pending);
        }
    }

    /// Answers a verb whose records are committed and applied.
    fn resolved(&mut self, sequence: u64, pending: Pending) {
        if let Work::Settled { queue, ranges, .. } = &pending.work
            && let Some(runtime) = self.runtimes.get_mut(queue)
        {
            runtime.settling = runtime.settling.saturating_sub(ranges.iter().map(|(_, n)| n).sum());
        }
        if let Some(publish) = &pending.in_memory {
            self.hand_to_memory(publish);
        }
        let (connection, verb, weight) = match pending.work {
            Work::Verb { connection, verb, weight } => (connection, verb, weight),
            Work::Commit(committing) => {
                let connection = committing.connection();
                self.committed(*committing);
                return self.no_longer_stalled(connection, sequence);
            }
            Work::Dead(moving) => return self.dead_moved(*moving, Some(sequence)),
            _ => return,
        };
        self.give(connection, weight);
        match verb.op {
            Op::Publish(publish) if publish.confirm > 0 => {
                self.confirm(connection, publish.channel, publish.confirm, !pending.refused)
            }
            Op::Send(send) => {
                self.send_resolved(send.key, send.arrived, sequence);
                if pending.repeats && pending.enqueued.is_empty() {
                    let gone = Refusal::Busy("the message that this one repeats is gone by now".into());
                    self.reply(connection, verb.request, Err(gone));
                    return self.no_longer_stalled(connection, sequence);
                }
                let reply = Reply::Sent {
                    queue_id: pending.queue_id,
                    offsets: pending.enqueued.iter().map(|e| e.offset).collect(),
                    positions: pending.enqueued.iter().map(|e| e.position).collect(),
                };
                if !pending.repeats {
                    self.counters.sent += pending.enqueued.len() as u64;
                }
                self.reply(connection, verb.request, Ok(reply));
            }
            Op::EndTransaction(end) => {
                let result = self.ended(&end);
                self.reply(connection, verb.request, result);
            }
            Op::Publish(_) | Op::Settle { .. } => {}
            Op::PurgeQueue { .. } | Op::DeleteQueue { .. } | Op::DeclareQueue(..) => {
                // What these answer was known when they were decided.
                let messages = u64::from(pending.queue_id);
                self.reply(connection, verb.request, Ok(Reply::Queue { messages, consumers: 0 }));
            }
            Op::LockQueues(_) => {
                let reply = self.locked(&verb.op);
                self.reply(connection, verb.request, Ok(reply));
            }
            Op::ResetOffsets(reset) => {
                let reply = self.group_offsets(&reset);
                self.reply(connection, verb.request, Ok(reply));
            }
            _ => self.reply(connection, verb.request, Ok(Reply::Ok)),
        }
        self.no_longer_stalled(connection, sequence);
    }

    pub(crate) fn no_longer_stalled(&mut self, id: ConnectionId, sequence: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.stalled_on == Some(sequence)
        {
            connection.stalled_on = None;
        }
    }

    /// After a batch: connections whose verbs waited go on.
    pub(crate) fn retry_stalled(&mut self) {
        if !self.is_ready() || self.stalled.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.stalled) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.stalled_on.is_some() {
                self.stalled.insert(id);
                continue;
            }
            let mut verbs = std::mem::take(&mut connection.stalled);
            while let Some(verb) = verbs.pop_front() {
                self.decide(id, verb);
                let Some(connection) = self.connections.get_mut(&id) else { break };
                if !connection.stalled.is_empty() || connection.stalled_on.is_some() {
                    connection.stalled.extend(verbs);
                    self.stalled.insert(id);
                    break;
                }
            }
            let Some(connection) = self.connections.get(&id) else { continue };
            if connection.gone && connection.stalled.is_empty() && connection.stalled_on.is_none() {
                self.disconnected(id);
            }
        }
    }

    /// Answers a verb, if its connection wants that.
    pub(crate) fn reply(&mut self, id: ConnectionId, request: u64, result: Result<Reply, Refusal>) {
        if result.is_err() {
            self.refuse_channel(id, channel_of(request));
        }
        if request != 0 {
            self.event(id, Event::Reply { request, result });
        }
    }

    /// Queues an event for a connection; it leaves at the end of the turn.
    pub(crate) fn event(&mut self, id: ConnectionId, event: Event) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.outbox.is_empty() {
            self.flushes.push(id);
        }
        connection.outbox.push(event);
    }

    /// A confirm, joined to the one before where they adjoin.
    pub(crate) fn confirm(&mut self, id: ConnectionId, channel: ChannelId, number: u64, accepted: bool) {
        self.counters.confirmed += u64::from(accepted);
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(Event::Confirmed { channel: c, last, accepted: a, .. }) = connection.outbox.last_mut()
            && (*c, *a, *last + 1) == (channel, accepted, number)
        {
            *last = number;
            return;
        }
        self.event(id, Event::Confirmed { channel, first: number, last: number, accepted });
    }

    /// Adds a delivery to what its reader gets in this turn.
    pub(crate) fn hand_out(&mut self, (id, reader): ReaderKey, delivery: Delivery) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outstanding += delivery.weight as usize;
        if let Some(Event::Deliveries { reader: r, deliveries }) = connection.outbox.last_mut()
            && *r == reader
        {
            deliveries.push(delivery);
            return;
        }
        self.event(id, Event::Deliveries { reader, deliveries: vec![delivery] });
    }

    /// Where a publish goes: by its routing key and all further ones.
    pub(crate) fn route_publish(&mut self, vhost: u32, publish: &super::api::Publish) -> Option<Arc<Route>> {
        let (exchange, message) = (&publish.exchange, &publish.message);
        if publish.also.is_empty() {
            return self.route(vhost, exchange, &publish.routing_key, message);
        }
        let keys: Vec<&str> =
            std::iter::once(&publish.routing_key).chain(&publish.also).map(|key| &**key).collect();
        let topology = &self.overlay.as_ref()?.topology;
        topology.route(vhost, exchange, &keys, message, &*self.semantics).map(Arc::new)
    }

    /// Gives credit back to a connection's publisher side.
    pub(crate) fn give(&mut self, id: ConnectionId, bytes: usize) {
        if bytes > 0
            && let Some(connection) = self.connections.get(&id)
        {
            connection.credit.give(bytes);
        }
    }

    /// Verb done without a record: its credit returns now.
    pub(crate) fn finished(&mut self, id: ConnectionId, verb: &Verb) {
        self.give(id, weight(verb));
    }

    /// Sends the events of this turn.
    pub fn flush(&mut self) {
        for id in std::mem::take(&mut self.flushes) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let events = std::mem::take(&mut connection.outbox);
            if let Some(guest) = connection.guest {
                self.guest_events(guest, events);
                continue;
            }
            // A task that ended has dropped its end; its Disconnected is on the way.
            let _ = connection.events.send(events);
        }
        self.tell_fronts();
        self.tell_leader();
    }

    /// Puts a queue on the work list.
    pub(crate) fn list(&mut self, uid: QueueUid) {
        if let Some(runtime) = self.runtimes.get_mut(&uid)
            && !runtime.listed
            && !(runtime.readers.is_empty() && runtime.waiting.is_empty())
        {
            runtime.listed = true;
            self.work.push_back(uid);
        }
    }

    /// Serves listed queues for one turn; true: there is more to do.
    pub fn serve(&mut self) -> bool {
        if !self.is_ready() {
            return false;
        }
        self.welcome_fronts();
        self.serve_repeats();
        let started = self.clock.monotonic();
        while let Some(uid) = self.work.pop_front() {
            if let Some(runtime) = self.runtimes.get_mut(&uid) {
                runtime.listed = false;
            }
            self.serve_queue(uid);
            if self.clock.monotonic().saturating_sub(started) > Duration::from_micros(limits::TURN_MAX_US) {
                break;
            }
        }
        let more = self.serve_later() | self.serve_dead() | self.serve_retention();
        more || !self.work.is_empty()
    }

    /// When the next wait ends.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let waits = self.deadlines.keys().next().map(|(at, _)| *at);
        let wait = waits
            .into_iter()
            .chain(self.later_deadline())
            .chain(self.grace_deadline())
            .chain(self.repeats_deadline())
            .min();
        let due = self.due.first().into_iter().chain(self.unused.first()).min();
        let Some((at, _)) = due.filter(|_| self.overlay.is_some()) else { return wait };
        // Log time runs a little faster or slower than the clock: who comes too early waits once more.
        let due = self.monotonic() + Duration::from_millis(at.saturating_sub(self.time).max(1));
        Some(wait.map_or(due, |wait| wait.min(due)))
    }

    /// Number for a waiting pull.
    pub(crate) fn waiter_number(&mut self) -> u64 {
        self.next_waiter += 1;
        self.next_waiter
    }

    /// Where a message goes on the leader's topology; remembered per version.
    pub(crate) fn route(
        &mut self,
        vhost: u32,
        exchange: &Arc<str>,
        key: &Arc<str>,
        message: &super::api::Message,
    ) -> Option<Arc<Route>> {
        let overlay = self.overlay.as_ref()?;
        if overlay.topology.version != self.routes_version || self.routes.len() > limits::ROUTE_CACHE_MAX {
            self.routes.clear();
            self.routes_version = overlay.topology.version;
        }
        let place = (vhost, Arc::clone(exchange), Arc::clone(key));
        if let Some(route) = self.routes.get(&place) {
            return Some(Arc::clone(route));
        }
        let route = Arc::new(overlay.topology.route(vhost, exchange, &[key], message, &*self.semantics)?);
        if !route.by_headers {
            self.routes.insert(place, Arc::clone(&route));
        }
        Some(route)
    }

    /// Pages through the core's source.
    pub(crate) fn with_pages<R>(&mut self, act: impl FnOnce(&mut State, &dyn Pages) -> R) -> R {
        let pages = PagesOf(&*self.pages);
        act(&mut self.state, &pages)
    }

    /// The other voters as consensus knows them.
    pub fn set_others(&mut self, others: Vec<u64>) {
        self.others = others;
    }

    /// The verbs of that connection do not wait any more.
    pub(crate) fn forget_stalled(&mut self, id: ConnectionId) {
        self.stalled.remove(&id);
    }

    /// What queues know beside the state, of readers and of messages in memory. Readers keep what they hold.
    pub(crate) fn forget_runtimes(&mut self) {
        self.runtimes.clear();
        self.due.clear();
        self.unused.clear();
        self.expired.clear();
        self.work.clear();
        self.handed.clear();
        self.auto_acked.clear();
        self.memory_used = 0;
    }

    /// Forgets a connection that has nothing left to decide.
    pub(crate) fn forget(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.guest_forgotten(id);
        if let Some(large) = self.large.remove(&id) {
            self.give_up(&large.extents);
        }
    }
}
