//! One replica of the log: the consensus library, run on the shard's thread.
//!
//! Owns: the library's core and its tasks, the order of proposals, the role, the log's completions. Promises: proposals reach
//! the core in the order they were made and never block; what the log did not take is said by name; the log floor rises only
//! to a durable checkpoint, and above what a member lacks only when that is more than is kept for it; the first failure of the log is the last thing that
//! happens. Does not know: what is proposed, how peers are reached, who calls.
//!
//! Everything here is local to one thread with a `tokio::task::LocalSet`; the writer runs elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use dassie_storage::{Apply, Disk, Log, LogPoint, ProposalId, ReplicatedLog};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Instant as _, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;

use super::copy::Holds;
use super::log_store::{LogStore, completion};
use super::membership::{decode_record, encode_record};
use super::peer::{Answer, Network, Peers, Question, Request};
use super::state_machine::{Applied, StateMachine};
use super::types::{Config, Node, Proposed, Refusal, Refusals, Refused, StoredMembership};
use crate::limits;

/// Time between two heartbeats. A follower answers one only when its accepted writes are synced, so it must be longer than a
/// slow sync, and six of them must fit into the lease, so that a few lost ones cost no election.
pub const HEARTBEAT: Duration = Duration::from_millis(150);

/// Bounds of the random wait before an election. The larger is also the leader's lease: after the last contact a follower
/// waits the lease and then this long: 1.5 to 1.8 s, so that the first confirm of a new leader comes after about two seconds
/// (house D25). Shorter would let one slow sync of 600 ms depose a healthy leader.
pub const ELECTION: (Duration, Duration) = (Duration::from_millis(600), Duration::from_millis(900));

/// Entries in one request to a peer; the real bound is the store's 4 MiB.
const ENTRIES_PER_REQUEST: u64 = 4096;

/// How long a raised log floor may take before the attempt is given up; the next checkpoint tries again.
const FLOOR_PATIENCE: Duration = Duration::from_secs(30);
/// Who closes waits so long until what was written is applied.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// What an empty store becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Birth {
    /// The only voter of a new cluster.
    Alone,
    /// One of the first voters of a new cluster. Exactly one of them is started so; the others [`Birth::Joins`].
    Founds(BTreeMap<u64, Node>),
    /// It waits until a leader adds it.
    Joins,
}

/// Timing of heartbeats and elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`ELECTION`].
    pub election: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Timing { heartbeat: HEARTBEAT, election: ELECTION }
    }
}

/// What a replica is made of.
pub struct Start<D: Disk, A, P> {
    /// This node.
    pub node: u64,
    /// What the membership says of it when it founds a cluster alone: where peers reach it, which store it has.
    pub myself: Node,
    /// The open log. Its writer and preparer run on threads of their own.
    pub log: Log<D>,
    /// The state, as of the newest checkpoint.
    pub apply: A,
    /// [`Replica::membership_record`] as of that checkpoint; `None` when there is no checkpoint.
    pub membership: Option<Bytes>,
    /// The way to the others.
    pub peers: P,
    /// What an empty store becomes.
    pub birth: Birth,
    /// Heartbeats and elections.
    pub timing: Timing,
}

/// What this node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// No leader is known.
    #[default]
    Looking,
    /// Another node leads.
    Follower {
        /// Which.
        leader: u64,
    },
    /// This node leads. Its state has everything of earlier terms once the term's own first batch (kind 2) is applied.
    Leader {
        /// Its term.
        term: u64,
    },
}

type Sending = Pin<Box<dyn Future<Output = Result<(), Fatal<Config>>>>>;

/// Proposals that could not be handed to the core at once.
#[derive(Default)]
struct Outbox {
    queue: RefCell<VecDeque<Sending>>,
    news: Notify,
}

struct Inner<D: Disk, A: Apply + 'static> {
    raft: Raft<Config, StateMachine<A>>,
    log: Log<D>,
    node: u64,
    applied: Rc<Applied>,
    refusals: Rc<Refusals>,
    outbox: Rc<Outbox>,
    role: watch::Receiver<Role>,
    failure: Rc<Failure>,
    /// How long a majority's word holds.
    lease: Duration,
    /// What copies under way need.
    holds: Rc<Holds>,
    /// See [`Replica::keep_log`].
    keep: Cell<u64>,
}

/// The first failure, kept for everyone who asks.
#[derive(Default)]
struct Failure {
    first: RefCell<Option<Arc<io::Error>>>,
    closing: Cell<bool>,
    news: Notify,
}

impl Failure {
    fn set(&self, error: io::Error) {
        if self.closing.get() {
            return; // what ends now ends because it was told to
        }
        self.first.borrow_mut().get_or_insert(Arc::new(error));
        self.news.notify_waiters();
    }

    async fn wait(&self) -> Arc<io::Error> {
        loop {
            let news = self.news.notified();
            if let Some(error) = &*self.first.borrow() {
                return error.clone();
            }
            news.await;
        }
    }
}

/// A running replica. Clones are handles on one.
pub struct Replica<D: Disk, A: Apply + 'static>(Rc<Inner<D, A>>);

impl<D: Disk, A: Apply + 'static> Clone for Replica<D, A> {
    fn clone(&self) -> Self {
        Replica(self.0.clone())
    }
}

impl<D: Disk, A: Apply + 'static> Replica<D, A> {
    /// Starts the replica inside the current `LocalSet`. An empty store is born as told; a single voter leads at once, others
    /// wait for a leader or an election.
    ///
    /// # Errors
    /// What the log says; `InvalidInput` when there is a checkpoint without the record of its membership.
    pub async fn start<P: Peers>(start: Start<D, A, P>) -> io::Result<Self> {
        let Start { node, myself, log, apply, membership, peers, birth, timing } = start;
        let at = apply.applied();
        let membership = membership_at(at, membership.as_deref())?;
        let applied = Rc::new(Applied::new(membership, at));
        let failure = Rc::<Failure>::default();
        // From here on: starting already writes votes and waits for them.
        spawn_local(complete(log.clone(), failure.clone()));
        let empty = log.last().is_none() && log.vote().is_empty();
        let store = LogStore::new(log.clone(), node);
        let machine = StateMachine::new(apply, applied.clone());
        let holds = applied.holds.clone();
        let network = Network { peers: Rc::new(peers), holds: holds.clone() };
        let raft = Raft::new(node, Arc::new(config(&timing)), network, store, machine).await;
        let raft = raft.map_err(|error| said(&failure, &error))?;
        let (role_sender, role) = watch::channel(Role::default());
        let outbox = Rc::<Outbox>::default();
        spawn_local(watch_role(raft.clone(), node, role_sender, failure.clone()));
        spawn_local(send_rest(outbox.clone()));
        let (refusals, lease) = (Rc::default(), timing.election.1);
        let keep = Cell::new(limits::KEEP_LOG);
        let inner = Inner { raft, log, node, applied, refusals, outbox, role, failure, lease, holds, keep };
        let replica = Replica(Rc::new(inner));
        replica.begin(empty, birth, myself).await?;
        Ok(replica)
    }

    async fn begin(&self, empty: bool, birth: Birth, myself: Node) -> io::Result<()> {
        let raft = &self.0.raft;
        if empty {
            let founders = match birth {
                Birth::Alone => BTreeMap::from([(self.0.node, myself)]),
                Birth::Founds(founders) => founders,
                Birth::Joins => return Ok(()),
            };
            return raft.initialize(founders).await.map_err(|error| said(&self.0.failure, &error));
        }
        // Nobody else could object: waiting for an election timeout would only delay the start.
        let node = self.0.node;
        let alone =
            raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node]));
        if alone.await.map_err(|error| said(&self.0.failure, &error))? {
            raft.trigger().elect(false).await.map_err(|error| said(&self.0.failure, &error))?;
        }
        Ok(())
    }

    /// What this node is now, and every change of it. The receiver may go to another thread.
    #[must_use]
    pub fn role(&self) -> watch::Receiver<Role> {
        self.0.role.clone()
    }

    /// The term this node leads, while its lease lasts: a majority has said so within the time that every voter waits before an
    /// election. Behind the lease somebody else may lead, and what is read here may be old.
    #[must_use]
    pub fn leads(&self) -> Option<u64> {
        match *self.0.role.borrow() {
            Role::Leader { term } if self.holds_lease() => Some(term),
            Role::Leader { .. } | Role::Looking | Role::Follower { .. } => None,
        }
    }

    fn holds_lease(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let alone = metrics.membership_config.membership().voter_ids().eq([self.0.node]);
        alone || metrics.last_quorum_acked.is_some_and(|acked| acked.into_inner().elapsed() < self.0.lease)
    }

    /// Waits for proposals that were refused or lost with the lead; each is named once, to one caller.
    pub async fn refused(&self) -> Vec<Refused> {
        self.0.refusals.wait().await
    }

    /// Refused proposals not named yet, without waiting.
    #[must_use]
    pub fn take_refused(&self) -> Vec<Refused> {
        self.0.refusals.take()
    }

    /// The membership as of the last applied batch, in bytes. A checkpoint keeps them, and [`Start::membership`] wants them
    /// back: the batch that set it may be gone by then.
    #[must_use]
    pub fn membership_record(&self) -> Bytes {
        encode_record(&self.0.applied.membership()).into()
    }

    /// The voters as of the last applied batch.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        self.0.applied.membership().membership().voter_ids().collect()
    }

    /// How much log is kept below the newest checkpoint for members that lack it, bytes. Who lacks more gets the checkpoint.
    pub fn keep_log(&self, bytes: u64) {
        self.0.keep.set(bytes);
    }

    /// A checkpoint at `point` is durable: raises the log floor to it, but not above what a member lacks, unless that is more than
    /// is kept ([`Replica::keep_log`]). Answers the floor's index when it is durable; segments below it may then be retired.
    /// A follower of many keeps as much for whoever may ask it when it leads.
    ///
    /// # Errors
    /// When the replica has failed, or the floor did not rise within half a minute; the next checkpoint tries again.
    pub async fn checkpointed(&self, point: LogPoint) -> io::Result<Option<u64>> {
        self.0.applied.checkpointed(point);
        let floor = || self.0.log.floor().map(|floor| floor.index);
        let Some(upto) = self.floor_limit(point)?.map(|limit| limit.min(point.index)) else {
            return Ok(floor());
        };
        if floor().is_some_and(|floor| floor >= upto) {
            return Ok(floor());
        }
        let raise = self.raise_floor(point.index, upto);
        match tokio::time::timeout(FLOOR_PATIENCE, raise).await {
            Ok(result) => result.map(|()| floor()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the log floor did not rise")),
        }
    }

    /// The library purges only what a snapshot stands for; ours is the checkpoint's name.
    async fn raise_floor(&self, checkpoint: u64, upto: u64) -> io::Result<()> {
        let raft = &self.0.raft;
        let mut metrics = raft.data_metrics();
        raft.trigger().snapshot().await.map_err(|error| said(&self.0.failure, &error))?;
        let stopped = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the replica stopped");
        while metrics.borrow_and_update().snapshot.is_none_or(|id| id.index() < checkpoint) {
            metrics.changed().await.map_err(stopped)?;
        }
        raft.trigger().purge_log(upto).await.map_err(|error| said(&self.0.failure, &error))?;
        while metrics.borrow_and_update().purged.is_none_or(|id| id.index() < upto) {
            metrics.changed().await.map_err(stopped)?;
        }
        Ok(())
    }

    /// How far the floor may rise when a checkpoint stands for `point`.
    fn floor_limit(&self, point: LogPoint) -> io::Result<Option<u64>> {
        let all_have = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            let members = metrics.membership_config.membership();
            let others: Vec<u64> =
                members.nodes().map(|(id, _)| *id).filter(|id| *id != self.0.node).collect();
            if others.is_empty() {
                return Ok(Some(u64::MAX));
            }
            let matched = metrics.replication.as_ref();
            let has = |id: &u64| matched?.get(id)?.as_ref().map(|id| id.index());
            others.iter().map(has).min().flatten()
        };
        let limit = all_have.max(self.too_old(point)?);
        let held = self.0.holds.lowest().and_then(|meta| meta.last_log_id).map(|id| id.index());
        Ok(limit.map(|limit| held.map_or(limit, |held| limit.min(held))))
    }

    /// The last entry that is too far below a checkpoint to be kept for anybody: whole segments.
    fn too_old(&self, point: LogPoint) -> io::Result<Option<u64>> {
        let Some(upto) = point.end.checked_sub(self.0.keep.get()) else { return Ok(None) };
        let start = upto - upto % self.0.log.segment_size();
        if self.0.log.floor().is_some_and(|floor| floor.end >= start) {
            return Ok(None);
        }
        match self.0.log.reader().batch(start) {
            Ok(first) => Ok(first.point.index.checked_sub(1)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn raft(&self) -> &Raft<Config, StateMachine<A>> {
        &self.0.raft
    }

    pub(super) fn log(&self) -> &Log<D> {
        &self.0.log
    }

    /// It was told to end.
    pub(super) fn is_closing(&self) -> bool {
        self.0.failure.closing.get()
    }

    pub(super) fn node(&self) -> u64 {
        self.0.node
    }

    /// The library's error in our words.
    pub(super) fn said(&self, error: &dyn std::fmt::Display) -> io::Error {
        said(&self.0.failure, error)
    }

    /// Hands the lead to another voter, as far as that one is able.
    ///
    /// # Errors
    /// When the replica has failed.
    pub async fn transfer_lead(&self, to: u64) -> io::Result<()> {
        self.0.raft.trigger().transfer_leader(to).await.map_err(|error| said(&self.0.failure, &error))
    }

    /// Answers a peer's request. Only requests of authenticated members of this cluster may come here.
    ///
    /// # Errors
    /// `InvalidData` for entries that do not decode; otherwise when the replica has failed. The peer gets no answer then.
    pub async fn answer(&self, request: Request) -> io::Result<Answer> {
        let raft = &self.0.raft;
        let said = |error: &dyn std::fmt::Display| said(&self.0.failure, &error);
        Ok(match request.question()? {
            Question::Append(request) => raft.append_entries(request).await.map_err(|e| said(&e))?.into(),
            Question::Vote(request) => raft.vote(request).await.map_err(|e| said(&e))?.into(),
            Question::PreVote(request) => raft.pre_vote(request).await.map_err(|e| said(&e))?.into(),
            Question::Transfer(request) => {
                match raft.handle_transfer_leader(request).await.map_err(|e| said(&e))? {
                    Ok(()) => Answer::Transferring,
                    Err(_) => Answer::NotTransferring,
                }
            }
        })
    }

    /// Waits for the first failure of the log or of the core, with operation and place where the disk named them. The
    /// process must exit: nothing will succeed any more, and the page cache is not to be believed.
    pub async fn failed(&self) -> Arc<io::Error> {
        self.0.failure.wait().await
    }

    /// Stops the core and closes the log: a restart will know that its end was synced. Proposals still under way are refused.
    ///
    /// # Errors
    /// What the log says.
    pub async fn shutdown(&self) -> io::Result<()> {
        self.0.failure.closing.set(true);
        // The core is told of each write: what is on its way comes first. Without a majority not all of it is ever applied.
        let quiet = self.0.raft.wait(Some(QUIET_TIME));
        let _ =
            quiet.metrics(|m| m.last_applied.map(|id| id.index()) >= m.last_log_index, "all applied").await;
        let stopped = self.0.raft.shutdown().await;
        stopped.map_err(|error| io::Error::other(format!("the consensus core: {error}")))?;
        let (done, closed) = completion();
        self.0.log.close(done);
        closed.await
    }
}

impl<D: Disk, A: Apply + 'static> ReplicatedLog for Replica<D, A> {
    fn propose(&self, payload: Bytes, id: ProposalId) {
        let raft = self.0.raft.clone();
        let refusal = Refusal::new(id, self.0.refusals.clone());
        let mut sending: Sending =
            Box::pin(async move { raft.client_write_ff(Proposed(payload), Some(refusal)).await });
        let mut queue = self.0.outbox.queue.borrow_mut();
        // The way to the core is a channel with room: nearly always it is taken at once, without a task in between.
        if queue.is_empty() {
            let polled = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if polled.is_ready() {
                return; // a refusal, too, was said by dropping it
            }
        }
        queue.push_back(sending);
        self.0.outbox.news.notify_one();
    }
}

/// Sends what could not be sent at once, in order.
async fn send_rest(outbox: Rc<Outbox>) {
    loop {
        outbox.news.notified().await;
        poll_fn(|context| {
            let mut queue = outbox.queue.borrow_mut();
            while let Some(first) = queue.front_mut() {
                if first.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                queue.pop_front();
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Tells who waits that their writes are durable.
async fn complete<D: Disk>(log: Log<D>, failure: Rc<Failure>) {
    loop {
        match log.completions().await {
            Ok(Some(_)) => {}
            Ok(None) => {
                return failure.set(io::Error::new(io::ErrorKind::BrokenPipe, "the log's writer has ended"));
            }
            Err(error) => return failure.set(error),
        }
    }
}

async fn watch_role<A: Apply + 'static>(
    raft: Raft<Config, StateMachine<A>>,
    node: u64,
    roles: watch::Sender<Role>,
    failure: Rc<Failure>,
) {
    let mut metrics = raft.server_metrics();
    let ended = raft.metrics();
    drop(raft);
    loop {
        let role = {
            let metrics = metrics.borrow_and_update();
            match metrics.current_leader {
                Some(leader) if leader != node => Role::Follower { leader },
                Some(_) if metrics.state == ServerState::Leader => {
                    Role::Leader { term: metrics.vote.leader_id.term }
                }
                Some(_) | None => Role::Looking,
            }
        };
        roles.send_if_modified(|known| std::mem::replace(known, role) != role);
        if metrics.changed().await.is_err() {
            break;
        }
    }
    roles.send_replace(Role::Looking);
    let reason = match &ended.borrow_watched().running_state {
        Ok(()) => "the consensus core ended".to_owned(),
        Err(error) => format!("the consensus core ended: {error}"),
    };
    failure.set(io::Error::other(reason));
}

fn membership_at(at: Option<LogPoint>, record: Option<&[u8]>) -> io::Result<StoredMembership> {
    match (at, record) {
        (None, _) => Ok(StoredMembership::default()),
        (Some(_), Some(record)) => {
            decode_record(record).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
        }
        (Some(point), None) => {
            let reason = format!("the checkpoint at index {} has no record of the membership", point.index);
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
    }
}

/// The library's error in our words; the log's own first failure, when there is one, names operation and place.
fn said(failure: &Failure, error: &dyn std::fmt::Display) -> io::Error {
    match &*failure.first.borrow() {
        Some(first) => io::Error::new(first.kind(), first.to_string()),
        None => io::Error::other(error.to_string()),
    }
}

fn config(timing: &Timing) -> openraft::Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "dassie".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election.0),
        election_timeout_max: millis(timing.election.1),
        max_payload_entries: ENTRIES_PER_REQUEST,
        // A leader that hears no majority falls silent, so that those who hear it alone elect another one.
        quorum_loss_probe_interval: Some(2 * millis(timing.election.1)),
        // A node that comes back must not raise the term of a healthy cluster.
        enable_pre_vote: Some(true),
        // A restarted leader asks again: what it led may have gone on without it.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // The floor rises by our own word only.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A batch leaves for the peers when it is appended, not a turn later.
        broadcast_submitted_on_append: Some(true),
        ..openraft::Config::default()
    }
}
