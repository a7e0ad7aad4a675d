//! The driver under its own roof: the library's storage suite, and single voters on a real and on a simulated disk.
//!
//! Owns: nothing. Promises: every test owns its disk and its clock; the only real waiting is for the real disk.

use std::cell::RefCell;
use std::io;
use std::ops::RangeBounds;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dassie_storage::sim::{Keep, SimDisk};
use dassie_storage::{
    Apply, Batch, Disk, Genesis, Log, LogPoint, Opened, Options, ProposalId, RealDisk, ReplicatedLog,
    block_on,
};
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageError};
use tokio::task::LocalSet;

use super::log_store::LogStore;
use super::membership::log_id;
use super::peer::NoPeers;
use super::state_machine::{Applied, StateMachine};
use super::types::{Config, Entry, LogId, StoredMembership, Vote};
use super::{Birth, Node, Replica, Role, Start, Timing};

pub(super) fn genesis() -> Genesis {
    Genesis {
        cluster: [1; 16],
        shard: *b"a shard's uuid..",
        store: [3; 16],
        shard_number: 0,
        node: 1,
        segment_size: 1 << 20,
        created: 0,
        joins: false,
    }
}

/// Remembers what was applied, and tells.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<Batch>>>, Rc<tokio::sync::Notify>);

impl Apply for Seen {
    fn applied(&self) -> Option<LogPoint> {
        self.0.borrow().last().map(|batch| batch.point)
    }

    fn apply(&mut self, batch: &Batch) {
        self.0.borrow_mut().push(batch.clone());
        self.1.notify_one();
    }
}

async fn open<D: Disk>(disk: &D) -> io::Result<Opened<D>> {
    if Genesis::load(disk).await?.is_none() {
        genesis().create(disk).await?;
    }
    Log::open(disk, Options::default(), &genesis(), None).await
}

/// Opens a log whose writer and preparer are tasks of this thread.
async fn simulated(disk: &SimDisk) -> Log<SimDisk> {
    let Opened { log, writer, preparer, .. } = open(disk).await.expect("opens");
    tokio::task::spawn_local(writer.run());
    tokio::task::spawn_local(preparer.run());
    log
}

/// Opens a log whose writer and preparer have threads of their own.
async fn real(disk: &RealDisk) -> Log<RealDisk> {
    let Opened { log, writer, preparer, .. } = open(disk).await.expect("opens");
    std::thread::spawn(move || block_on(writer.run()));
    std::thread::spawn(move || block_on(preparer.run()));
    log
}

async fn start<D: Disk>(log: Log<D>, seen: Seen) -> io::Result<Replica<D, Seen>> {
    Replica::start(Start {
        node: 1,
        myself: Node::default(),
        log,
        apply: seen,
        membership: None,
        peers: NoPeers,
        birth: Birth::Alone,
        timing: Timing::default(),
    })
    .await
}

async fn term<D: Disk>(replica: &Replica<D, Seen>) -> u64 {
    let mut roles = replica.role();
    let role = *roles.wait_for(|role| matches!(role, Role::Leader { .. })).await.expect("runs");
    let Role::Leader { term } = role else { unreachable!("waited for") };
    term
}

pub(super) async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn on_a_shard<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

/// The same, with a clock that moves only when all wait.
pub(super) fn in_a_paused_world<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

// ---- the library's suite ----

/// The suite begins logs at index 1 or 2, purges beyond their end and applies entries that no log has. Our log refuses all
/// three, and the product can not come there without installing a snapshot. This store fills the gaps with blank entries
/// and hides them.
struct Gapless<D: Disk> {
    store: LogStore<D>,
    hidden: u64,
}

impl<D: Disk> Gapless<D> {
    async fn fill(&mut self, first: u64, like: LogId) -> io::Result<()> {
        let next = self.store.get_log_state().await?.last_log_id.map_or(0, |id| id.index() + 1);
        if next >= first {
            return Ok(());
        }
        self.hidden = first;
        let blank = |index| Entry::new_blank(log_id(**like.committed_leader_id(), index));
        let (sender, flushed) = tokio::sync::oneshot::channel();
        let flushed_too = IOFlushed::signal(wrapped(sender));
        self.store.append((next..first).map(blank), flushed_too).await?;
        flushed.await.expect("told")
    }
}

fn wrapped(
    sender: tokio::sync::oneshot::Sender<io::Result<()>>,
) -> openraft::type_config::alias::OneshotSenderOf<Config, io::Result<()>> {
    use openraft::async_runtime::Oneshot;
    let (ours, theirs) = openraft_rt_tokio::TokioOneshot::channel();
    tokio::task::spawn_local(async move { drop(sender.send(theirs.await.expect("told"))) });
    ours
}

impl<D: Disk> RaftLogReader<Config> for Gapless<D> {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        let entries = self.store.try_get_log_entries(range).await?;
        Ok(entries.into_iter().filter(|entry| entry.id.index() >= self.hidden).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.store.read_vote().await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.store.limited_get_log_entries(start, end).await
    }

    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        self.store.entries_stream(range).await
    }

    async fn get_key_log_ids(&mut self, range: std::ops::RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        self.store.get_key_log_ids(range).await
    }
}

impl<D: Disk> RaftLogStorage<Config> for Gapless<D> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Config>> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        Gapless { store: self.store.clone(), hidden: self.hidden }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.store.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(first) = entries.first() {
            self.fill(first.id.index(), first.id).await?;
        }
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.store.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.fill(upto.index() + 1, upto).await?;
        self.store.purge(upto).await
    }
}

/// Gives entries without a batch one, and makes a checkpoint of every applied state.
struct Placed {
    machine: StateMachine<Seen>,
    seen: Seen,
    applied: Rc<Applied>,
}

impl RaftStateMachine<Config> for Placed {
    type SnapshotData = ();
    type SnapshotBuilder = <StateMachine<Seen> as RaftStateMachine<Config>>::SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Config>>> + Unpin + OptionalSend,
    {
        let placed = entries.map(|item| {
            let (mut entry, responder) = item?;
            let (term, index) = (**entry.id.committed_leader_id(), entry.id.index());
            let point = LogPoint { index, term, leader: 1, position: 0, end: 0, hash: 0 };
            entry.batch.get_or_insert(Batch { point, kind: 2, payload: Bytes::new(), payload_position: 0 });
            Ok((entry, responder))
        });
        self.machine.apply(placed).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        if let Some(point) = self.seen.applied() {
            self.applied.checkpointed(point);
        }
        self.machine.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.machine.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &openraft::type_config::alias::SnapshotMetaOf<Config>,
        snapshot: (),
    ) -> io::Result<()> {
        self.machine.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::type_config::alias::SnapshotOf<Config, ()>>> {
        self.machine.get_current_snapshot().await
    }
}

fn placed() -> Placed {
    let (seen, applied) = (Seen::default(), Rc::new(Applied::new(StoredMembership::default(), None)));
    Placed { machine: StateMachine::new(seen.clone(), applied.clone()), seen, applied }
}

fn pumped<D: Disk>(log: Log<D>) -> Gapless<D> {
    let pump = log.clone();
    tokio::task::spawn_local(async move { while let Ok(Some(_)) = pump.completions().await {} });
    Gapless { store: LogStore::new(log, 0), hidden: 0 }
}

struct OnSimDisk;

impl StoreBuilder<Config, Gapless<SimDisk>, Placed> for OnSimDisk {
    async fn build(&self) -> Result<((), Gapless<SimDisk>, Placed), StorageError<Config>> {
        Ok(((), pumped(simulated(&SimDisk::new()).await), placed()))
    }
}

struct OnRealDisk;

impl StoreBuilder<Config, Gapless<RealDisk>, Placed, tempfile::TempDir> for OnRealDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, Gapless<RealDisk>, Placed), StorageError<Config>> {
        let dir = tempfile::tempdir().expect("a directory");
        let log = real(&RealDisk::open(dir.path()).expect("opens")).await;
        Ok((dir, pumped(log), placed()))
    }
}

/// The suite ends with carrying a snapshot to an empty node, which we refuse by name: whoever comes to that end has passed
/// all the rest.
fn passed(result: Result<(), StorageError<Config>>) {
    let error = result.expect_err("the last test installs a snapshot").to_string();
    assert!(error.contains("never through the library"), "{error}");
}

#[test]
fn the_librarys_storage_suite_passes_on_the_simulated_disk() {
    passed(in_a_paused_world(Suite::test_all(OnSimDisk)));
}

#[test]
fn the_librarys_storage_suite_passes_on_the_real_disk() {
    passed(on_a_shard(Suite::test_all(OnRealDisk)));
}

// ---- single voters ----

#[test]
fn an_empty_store_becomes_a_leader_without_waiting_for_a_timeout() {
    in_a_paused_world(async {
        let began = tokio::time::Instant::now();
        let seen = Seen::default();
        let replica = start(simulated(&SimDisk::new()).await, seen.clone()).await.expect("starts");
        let term = term(&replica).await;
        replica.propose(Bytes::from_static(b"one"), ProposalId { term, ordinal: 0 });
        until(|| seen.0.borrow().iter().any(|batch| batch.kind == 1)).await;
        assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
        let kinds: Vec<(u8, u64)> = seen.0.borrow().iter().map(|b| (b.kind, b.point.leader)).collect();
        assert_eq!(kinds, [(3, 0), (2, 1), (1, 1)]);
        replica.shutdown().await.expect("closes");
    });
}

#[test]
fn what_was_applied_is_there_after_a_power_cut_and_the_next_term_goes_on_behind_it() {
    let disk = SimDisk::new();
    let before = Seen::default();
    in_a_paused_world(async {
        let replica = start(simulated(&disk).await, before.clone()).await.expect("starts");
        let term = term(&replica).await;
        for ordinal in 0..10 {
            replica.propose(Bytes::from(format!("batch {ordinal}")), ProposalId { term, ordinal });
        }
        until(|| before.0.borrow().len() == 12).await;
        disk.cut_power();
    });
    let disk = disk.after_crash(Keep::Nothing);
    in_a_paused_world(async {
        let began = tokio::time::Instant::now();
        let after = Seen::default();
        let replica = start(simulated(&disk).await, after.clone()).await.expect("starts");
        let second = term(&replica).await;
        assert_eq!(second, 2);
        until(|| after.0.borrow().len() > 12).await;
        assert_eq!(after.0.borrow()[..12], before.0.borrow()[..]);
        assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
        replica.shutdown().await.expect("closes");
    });
}

#[test]
fn a_proposal_after_the_end_is_named_as_refused() {
    in_a_paused_world(async {
        let replica = start(simulated(&SimDisk::new()).await, Seen::default()).await.expect("starts");
        let term = term(&replica).await;
        replica.shutdown().await.expect("closes");
        let id = ProposalId { term, ordinal: 0 };
        replica.propose(Bytes::from_static(b"late"), id);
        let refused = replica.refused().await;
        assert_eq!(refused.iter().map(|refused| refused.id).collect::<Vec<_>>(), [id]);
    });
}

#[test]
fn a_durable_checkpoint_raises_the_floor_and_a_restart_goes_on_from_it() {
    let disk = SimDisk::new();
    let (seen, point, record) = in_a_paused_world(async {
        let seen = Seen::default();
        let replica = start(simulated(&disk).await, seen.clone()).await.expect("starts");
        let term = term(&replica).await;
        for ordinal in 0..5 {
            replica.propose(Bytes::from_static(b"some"), ProposalId { term, ordinal });
        }
        until(|| seen.0.borrow().len() == 7).await;
        let point = seen.0.borrow()[4].point;
        let record = replica.membership_record();
        assert_eq!(replica.checkpointed(point).await.expect("rises"), Some(4));
        replica.shutdown().await.expect("closes");
        (seen, point, record)
    });
    in_a_paused_world(async {
        let opened = Log::open(&disk, Options::default(), &genesis(), Some(point)).await.expect("opens");
        tokio::task::spawn_local(opened.writer.run());
        tokio::task::spawn_local(opened.preparer.run());
        let kept = seen.0.borrow()[..5].to_vec();
        let after = Seen(Rc::new(RefCell::new(kept)), Rc::default());
        let replica = Replica::start(Start {
            node: 1,
            myself: Node::default(),
            log: opened.log,
            apply: after.clone(),
            membership: Some(record),
            peers: NoPeers,
            birth: Birth::Alone,
            timing: Timing::default(),
        });
        let replica = replica.await.expect("starts");
        assert_eq!(term(&replica).await, 2);
        until(|| after.0.borrow().len() == 8).await;
        assert_eq!(after.0.borrow()[..7], seen.0.borrow()[..]);
        assert_eq!(replica.voters(), [1]);
    });
}

#[test]
fn a_failed_sync_is_the_end_and_says_where() {
    use dassie_storage::sim::{Fault, OpKind};
    in_a_paused_world(async {
        let (disk, seen) = (SimDisk::new(), Seen::default());
        let replica = start(simulated(&disk).await, seen.clone()).await.expect("starts");
        let term = term(&replica).await;
        until(|| seen.0.borrow().len() == 2).await;
        disk.inject(OpKind::Sync, "log/", 0, Fault::Fail(io::ErrorKind::Other));
        replica.propose(Bytes::from_static(b"lost"), ProposalId { term, ordinal: 0 });
        let error = replica.failed().await.to_string();
        assert!(error.contains("sync log/"), "{error}");
        assert_eq!(seen.0.borrow().len(), 2);
    });
}

// ---- what it costs ----

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// `cargo test --release -p dassie cluster::tests::overhead -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn overhead_of_one_voter_against_a_raw_write_and_sync() {
    const ROUNDS: usize = 5000;
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let payload = Bytes::from(vec![7; 1024]);
    let raw = {
        let file = std::fs::File::create(dir.path().join("raw")).expect("creates");
        use std::os::unix::fs::FileExt;
        file.write_all_at(&vec![0; ROUNDS * 1120], 0).expect("writes");
        file.sync_all().expect("syncs");
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let began = Instant::now();
            file.write_all_at(&payload, round as u64 * 1120).expect("writes");
            file.sync_data().expect("syncs");
            times.push(began.elapsed());
        }
        quantiles(times)
    };
    let (driver, cost, start_time, bulk) = on_a_shard(async {
        let began = Instant::now();
        let seen = Seen::default();
        let replica = start(real(&RealDisk::open(dir.path()).expect("opens")).await, seen.clone())
            .await
            .expect("starts");
        let term = term(&replica).await;
        until(|| seen.0.borrow().len() == 2).await;
        let start_time = began.elapsed();
        let (mut times, before) = (Vec::new(), cpu());
        for round in 0..ROUNDS {
            let began = Instant::now();
            replica.propose(payload.clone(), ProposalId { term, ordinal: round as u64 });
            while seen.0.borrow().len() < 3 + round {
                seen.1.notified().await;
            }
            times.push(began.elapsed());
        }
        let cost = (cpu() - before) / u32::try_from(ROUNDS).expect("small");
        let (began, before) = (Instant::now(), cpu());
        let many = 100_000;
        for round in 0..many {
            replica.propose(payload.clone(), ProposalId { term, ordinal: (ROUNDS + round) as u64 });
            while seen.0.borrow().len() + 512 < 3 + ROUNDS + round {
                seen.1.notified().await;
            }
        }
        while seen.0.borrow().len() < 2 + ROUNDS + many {
            seen.1.notified().await;
        }
        let bulk = (began.elapsed(), (cpu() - before) / u32::try_from(many).expect("small"), many);
        replica.shutdown().await.expect("closes");
        (quantiles(times), cost, start_time, bulk)
    });
    println!("raw write + fdatasync: p50 {:?} p99 {:?}", raw.0, raw.1);
    println!("through the driver:    p50 {:?} p99 {:?}, shard CPU {cost:?} an entry", driver.0, driver.1);
    println!(
        "ready after {start_time:?}; {} entries, 512 in flight: {:?}, shard CPU {:?} an entry",
        bulk.2, bulk.0, bulk.1
    );
}
