//! Wires a node together: storage, consensus, the shard and its threads. No logic.
//!
//! Owns: which thread runs what (`src/docs/threads.md`). Promises: a node that started is led and recovered or says why not; the
//! first failure of the log ends the process with the operation and the place named (D18).
//! Does not know: protocols; listeners are joined to the [`Shard`] by `main`.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dassie_storage::{
    BackupRequest, BackupSource, CheckpointStore, CopySource, Disk, Flush, FullSpeed, Genesis, Log, LogPoint,
    LogReader, NewPage, Options, PageReader, PageStore, ProposalId, RealDisk, ReplicatedLog, Spill, Syncer,
    block_on, read_floor,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::alarms::Alarms;
use crate::awake::Awake;
use crate::backup::serve::{Backups, Confirmed, Hold, Unclear};
use crate::broker::api::Semantics;
use crate::broker::core::{Core, PageSource, Parts, Proposal};
use crate::broker::later::Settings as Times;
use crate::broker::link::Shard;
use crate::broker::retention;
use crate::broker::shard::{CheckpointJob, Seams, ShardLoop};
use crate::clock::Clock;
use crate::cluster::calls::Calls;
use crate::cluster::copy::{Copying, Receiver};
use crate::cluster::keeper::Keeper;
use crate::cluster::{self, Birth, Replica, Role, Start, Timing, seed_thread};
use crate::copies::{self, Dead, HeldIn, Incoming, Outgoing, Whole};
use crate::data_dir::DataDir;
use crate::fronts;
use crate::limits;
use crate::metrics::Metrics;
use crate::process::{self, AbortOnPanic};

/// A checkpoint is taken after so many bytes of log: what a restart replays at most, and what index pages in memory come from.
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// How often a checkpoint that found no space is tried again.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);

/// What a node is made of.
pub struct NodeParts {
    /// Where the store is, and who it is.
    pub store: DataDir,
    /// Bytes of the newest batches kept in memory.
    pub tail_memory: usize,
    /// Knows the layouts of messages.
    pub semantics: Arc<dyn Semantics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// When delayed messages are due, and transactions asked about.
    pub times: Times,
    /// What is kept.
    pub retention: retention::Settings,
    /// How often what is written is synced; `None`: before it is confirmed (D8).
    pub flush_every: Option<Duration>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Told when the log finds no space for a segment.
    pub alarms: Arc<Alarms>,
    /// What joins it to the other nodes; `None`: it stands alone.
    pub keeper: Option<Keeper>,
    /// Bytes a second of a copy to a node that is far behind.
    pub copy_rate: u64,
    /// Bytes of log below the newest checkpoint that are kept for nodes that lack them.
    pub keep_log: u64,
    /// A random number, never 0: names this incarnation, and seeds election timeouts.
    pub incarnation: u64,
}

/// A running node.
pub struct Node {
    /// The door for connections.
    pub shard: Shard,
    /// True while the shard serves.
    pub ready: watch::Receiver<bool>,
    /// True when the node must end and start again: a copy of the leader's store has come in whole.
    pub again: watch::Receiver<bool>,
    /// Backups of its store.
    pub backups: Backups,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Node {
    /// Recovers the store and starts the node's threads.
    ///
    /// # Errors
    /// A store that can not be opened, with file and offset.
    pub async fn start(parts: NodeParts) -> std::io::Result<Self> {
        let (opened, wait) = oneshot::channel();
        let (stop, stopped) = watch::channel(false);
        let (ready, ready_out) = watch::channel(false);
        let (again, again_out) = watch::channel(false);
        let awake = Arc::new(Awake::default());
        tokio::spawn(Arc::clone(&awake).keep_a_worker_awake(Arc::clone(&parts.clock)));
        let thread = spawn("shard", move || run_shard(parts, awake, opened, stopped, ready, again))?;
        let (shard, backups) =
            wait.await.map_err(|_| std::io::Error::other("the shard's thread ended while it started"))??;
        Ok(Self { shard, ready: ready_out, again: again_out, backups, stop, thread })
    }

    /// Ends the node: the log is closed cleanly. Blocks until its threads have ended.
    pub fn stop(self) {
        self.stop.send_replace(true);
        drop(self.shard);
        // A panic there has already aborted the process.
        let _ = self.thread.join();
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let _guard = AbortOnPanic::new(name);
        run();
    })
}

type Opened = oneshot::Sender<std::io::Result<(Shard, Backups)>>;

fn run_shard(
    mut parts: NodeParts,
    awake: Arc<Awake>,
    opened: Opened,
    stop: watch::Receiver<bool>,
    ready: watch::Sender<bool>,
    again: watch::Sender<bool>,
) {
    let (before, after) = (Arc::clone(&awake), Arc::clone(&awake));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .on_thread_park(move || before.before_sleep())
        .on_thread_unpark(move || after.after_sleep())
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(opened.send(Err(error))),
    };
    let local = tokio::task::LocalSet::new();
    let helped = Arc::clone(&awake);
    runtime.block_on(awake.notice(local.run_until(async move {
        seed_thread(parts.incarnation);
        let keeper = parts.keeper.take();
        match open(&parts, keeper, stop, ready, again, &helped).await {
            Ok((shard, backups, running)) => {
                drop(opened.send(Ok((shard, backups))));
                running.await;
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    })));
}

struct Pages(PageReader<RealDisk>);

impl PageSource for Pages {
    /// The shard can not go on without its index: a disk that does not give it ends the process in good order.
    fn read(&self, page: u32, owner: u64) -> std::io::Result<bytes::Bytes> {
        match self.0.read(u64::from(page), owner) {
            Err(error) => process::die(&format!("index pages: {error}")),
            page => page,
        }
    }
}

async fn open(
    parts: &NodeParts,
    keeper: Option<Keeper>,
    stop: watch::Receiver<bool>,
    ready: watch::Sender<bool>,
    again: watch::Sender<bool>,
    awake: &Arc<Awake>,
) -> std::io::Result<(Shard, Backups, impl Future<Output = ()> + use<>)> {
    let (disk, genesis) = (parts.store.disk.clone(), parts.store.genesis);
    let floor = read_floor(&disk, &genesis).await?;
    let (checkpoints, loaded) = CheckpointStore::load(&disk, genesis.store, floor.map(|f| f.index)).await?;
    let point = loaded.as_ref().map(|l| l.point);
    let (state, used) = Core::recovered(genesis.segment_size, loaded.map(|l| (l.point, l.objects)))?;
    let pages = PageStore::open(&disk, used.into_iter().map(u64::from)).await?;
    let flush = if parts.flush_every.is_some() { Flush::Written } else { Flush::Synced };
    parts.metrics.log.synchronous.set(i64::from(parts.flush_every.is_none()));
    let options = Options { tail_bytes: parts.tail_memory, flush, ..Options::default() };
    let log = Log::open(&disk, options, &genesis, point).await?;
    if let Some(cut) = &log.recovered.cut {
        tracing::warn!("the unfinished end of the log was cut: {cut:?}");
    }
    let (writer, preparer) = (log.writer, log.preparer);
    let reported = Arc::clone(awake);
    log.log.under_way().after_reports(move |bytes| reported.reported(bytes));
    awake.helped_by(log.log.under_way(), Arc::clone(&parts.clock));
    spawn("log writer", move || ended("log writer", block_on(writer.run())))?;
    spawn("log preparer", move || ended("log preparer", block_on(preparer.run())))?;
    let (alive, gone) = std::sync::mpsc::channel::<()>();
    if let Some(every) = parts.flush_every {
        let syncer = log.log.syncer();
        spawn("log flusher", move || flush_now_and_then(&syncer, every, &gone))?;
    }

    let (topology, topology_out) = watch::channel(Arc::default());
    let (shard, inputs) = Shard::new(topology_out, Arc::new(log.reader.clone()));
    let (spill, spilling) = Spill::new(parts.store.disk.root());
    spawn("paging", move || spilling.run(report_paging))?;
    let membership = state.membership();
    let core = Core::new(
        Parts {
            node: genesis.node,
            session: parts.incarnation,
            log: Box::new(log.reader.clone()),
            pages: Box::new(Pages(pages.reader())),
            semantics: Arc::clone(&parts.semantics),
            spill: Some(spill),
            clock: Arc::clone(&parts.clock),
            topology,
            batch_bytes: limits::BATCH_TARGET,
            section_bytes: limits::SECTION_MAX.min(log.log.max_payload() - limits::SECTION_SPARE),
        },
        state,
    )
    .with_times(parts.times.clone())
    .with_retention(parts.retention.clone());
    let shard_loop = ShardLoop::new(core, inputs, genesis.segment_size, CHECKPOINT_BYTES);
    let calls = keeper.as_ref().map(|keeper| Calls::new(Arc::clone(&keeper.transport)));
    let (jobs, todo) = std::sync::mpsc::channel();
    let whole = Arc::<Whole>::default();
    let carry = match &keeper {
        Some(keeper) => {
            let to = Receiver {
                disk,
                genesis,
                log: log.reader.clone(),
                used: Box::new(|_, objects| Core::used_pages(&objects)),
            };
            Incoming { to, whole: Arc::clone(&whole), again }.begin(&keeper.transport)?;
            let (transport, hold) = (Arc::clone(&keeper.transport), hold_through(jobs.clone()));
            let clock = Arc::clone(&parts.clock);
            Outgoing { transport, hold, rate: parts.copy_rate, clock }.carry()
        }
        None => copies::nowhere(),
    };
    let replica = Replica::start(Start {
        node: genesis.node,
        myself: cluster::Node {
            address: keeper.as_ref().map_or(String::new(), |keeper| keeper.transport.card().address),
            store: genesis.store,
        },
        log: log.log.clone(),
        apply: shard_loop.applier(),
        membership,
        peers: Copying { peers: calls.clone(), carry },
        birth: if genesis.joins { Birth::Joins } else { Birth::Alone },
        timing: Timing::default(),
    })
    .await?;
    replica.keep_log(parts.keep_log);
    match keeper.zip(calls) {
        Some((keeper, calls)) => {
            fronts::attend(&keeper.transport, &shard, replica.role());
            keeper.attend(&replica, calls);
        }
        None if replica.view().members.keys().any(|id| *id != genesis.node) || genesis.joins => {
            tracing::warn!(
                "this store is one of a cluster, and cluster.listen is not set: it waits for the others in vain"
            )
        }
        None => {}
    }
    let (refused_in, refused) = mpsc::unbounded_channel();
    tokio::task::spawn_local(watch_replica(replica.clone(), refused_in));
    let (confirmed_in, confirmed) = mpsc::unbounded_channel();
    tokio::task::spawn_local(say_confirmed(replica.clone(), log.log.reader(), confirmed));
    let backups = Backups {
        confirmed: confirmed_in,
        hold: {
            let jobs = jobs.clone();
            Arc::new(move |hold| drop(jobs.send(Todo::Backup(hold))))
        },
        rate: parts.copy_rate,
        clock: Arc::clone(&parts.clock),
        room: Arc::new(tokio::sync::Semaphore::new(1)),
    };
    let closed = log.log.clone();
    let seams = seams(&log.log, &replica, pages, checkpoints, (jobs, todo), refused, stop, ready, parts)?;
    Ok((shard, backups, async move {
        shard_loop.run(seams).await;
        drop(alive);
        match replica.shutdown().await {
            Ok(()) => tracing::info!("log closed"),
            Err(error) => process::die(&format!("closing the log: {error}")),
        }
        whole.commit(&closed);
    }))
}

/// Passes refusals on, and ends the process with the first failure of the log (D18).
async fn watch_replica<D: Disk, A: dassie_storage::Apply + 'static>(
    replica: Replica<D, A>,
    refused: mpsc::UnboundedSender<u64>,
) {
    loop {
        tokio::select! {
            error = replica.failed() => process::die(&format!("log: {error}")),
            all = replica.refused() => {
                for one in all {
                    if refused.send(one.id.term).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Says to backups where everything that was confirmed ends.
async fn say_confirmed<D: Disk, A: dassie_storage::Apply + 'static>(
    replica: Replica<D, A>,
    log: LogReader<D>,
    mut asked: mpsc::UnboundedReceiver<Confirmed>,
) {
    while let Some(answer) = asked.recv().await {
        let _ = answer.send(confirmed(&replica, &log));
    }
}

/// Only who leads and can not have been deposed knows what all nodes have confirmed: once something of its own term is committed, all
/// before it is.
fn confirmed<D: Disk, A: dassie_storage::Apply + 'static>(
    replica: &Replica<D, A>,
    log: &LogReader<D>,
) -> Result<u64, Unclear> {
    if let Role::Follower { leader } = *replica.role().borrow() {
        return Err(Unclear::Here(format!("node {leader} leads: ask there")));
    }
    let leads = replica.leads().ok_or(Unclear::Yet("no leader has a majority"))?;
    let committed = log.committed();
    let last = committed.checked_sub(1).and_then(|last| log.holding(last).ok());
    match last {
        Some(last) if last.point.term == leads => Ok(committed),
        _ => Err(Unclear::Yet("it has just become the leader")),
    }
}

fn report_paging(error: Option<&std::io::Error>) {
    match error {
        Some(error) => tracing::warn!("queues in memory are not paged out for now: {error}"),
        None => tracing::info!("queues in memory are paged out again"),
    }
}

fn ended(thread: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        process::die(&format!("{thread}: {error}"));
    }
}

#[allow(clippy::too_many_arguments)] // the one place where everything meets
fn seams<A: dassie_storage::Apply + 'static>(
    log: &Log<RealDisk>,
    replica: &Replica<RealDisk, A>,
    pages: PageStore<RealDisk>,
    checkpoints: CheckpointStore<RealDisk>,
    (jobs, todo): (std::sync::mpsc::Sender<Todo>, std::sync::mpsc::Receiver<Todo>),
    refused: mpsc::UnboundedReceiver<u64>,
    stop: watch::Receiver<bool>,
    ready: watch::Sender<bool>,
    parts: &NodeParts,
) -> std::io::Result<Seams> {
    let pages = Arc::new(Mutex::new(pages));
    let (durable_in, durable) = mpsc::unbounded_channel();
    let maintained = Arc::clone(&pages);
    let dead = Arc::<Dead>::default();
    let kept = Kept {
        genesis: parts.store.genesis,
        pages: maintained,
        syncer: log.syncer(),
        log: log.reader(),
        dead: Arc::clone(&dead),
    };
    spawn("maintenance", move || maintain(&kept, checkpoints, &todo, &durable_in))?;
    let (proposer, leader, members, floor, others) =
        (replica.clone(), replica.clone(), replica.clone(), replica.clone(), replica.clone());
    let node = parts.store.genesis.node;
    let (backlog, retire, listed, observed) = (log.clone(), log.clone(), log.clone(), log.clone());
    let durable_log = log.clone();
    let (metrics, alarms) = (Arc::clone(&parts.metrics), Arc::clone(&parts.alarms));
    let segment_size = parts.store.genesis.segment_size;
    Ok(Seams {
        propose: Box::new(move |Proposal { term, ordinal, payload }| {
            proposer.propose(payload, ProposalId { term, ordinal });
        }),
        refused,
        leads: Box::new(move || leader.leads()),
        others: Box::new(move || others.voters().into_iter().filter(|voter| *voter != node).collect()),
        membership: Box::new(move || members.membership_record()),
        backlog_full: Box::new(move || {
            let backlog = backlog.backlog();
            // Publishers must hear of it before the open segment is full: it is the reserve of those who settle.
            alarms.no_segment(backlog.blocked.is_some());
            backlog.is_full()
        }),
        allocate_pages: Box::new(move |count| {
            let first = block_on(lock(&pages).allocate(u64::from(count)));
            match first.map(u32::try_from) {
                Ok(Ok(first)) => first,
                Ok(Err(_)) => process::die("index pages: more than fit into their numbers"),
                Err(error) => process::die(&format!("index pages: {error}")),
            }
        }),
        durable: Box::new(move || durable_log.durable()),
        write_checkpoint: Box::new(move |job| drop(jobs.send(Todo::Write(job)))),
        checkpoints: durable,
        checkpointed: Box::new(move |point| {
            let floor = floor.clone();
            tokio::task::spawn_local(async move {
                if let Err(error) = floor.checkpointed(point).await {
                    tracing::warn!("the log floor stays: {error}");
                }
            });
        }),
        segments: Box::new(move || {
            let segments = listed.segments().into_iter().map(|start| start / segment_size).collect();
            (segments, listed.spare_files())
        }),
        retire: Box::new(move |segments| {
            let starts: Vec<u64> = segments.into_iter().map(|segment| segment * segment_size).collect();
            dead.are(starts.iter().copied());
            retire_below(&retire, &starts);
        }),
        stop,
        ready,
        observe: Box::new(move |core| observe(core, &observed, &metrics)),
    })
}

/// Segments that hold nothing alive go, as far as the durable floor allows; the rest is asked for again.
fn retire_below<D: Disk>(log: &Log<D>, dead: &[u64]) {
    for segment in dead {
        if log.retire(&[*segment]).is_err() {
            return;
        }
    }
}

fn observe<D: Disk>(core: &mut Core, log: &Log<D>, metrics: &Metrics) {
    core.observe(metrics);
    let position = |end: u64| i64::try_from(end).unwrap_or(i64::MAX);
    metrics.log.position.set(position(log.last().map_or(0, |l| l.end)));
    metrics.log.synced.set(position(log.durable()));
    if log.backlog().blocked.is_some() {
        log.retry_preparation();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Syncs what was confirmed before it was synced, now and then (`ASYNC_FLUSH`).
fn flush_now_and_then(syncer: &Syncer<RealDisk>, every: Duration, gone: &std::sync::mpsc::Receiver<()>) {
    while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = gone.recv_timeout(every) {
        ended("log flusher", block_on(syncer.sync()));
    }
}

/// What the maintenance thread is asked for.
enum Todo {
    /// Write a checkpoint.
    Write(CheckpointJob),
    /// Hold the newest one for a copy.
    Hold(HeldIn),
    /// Hold it, and the log behind it, for a backup.
    Backup(Hold),
}

/// What the maintenance thread looks after, beside the checkpoints.
struct Kept {
    genesis: Genesis,
    pages: Arc<Mutex<PageStore<RealDisk>>>,
    syncer: Syncer<RealDisk>,
    log: LogReader<RealDisk>,
    dead: Arc<Dead>,
}

/// Where copies ask for what they carry.
fn hold_through(jobs: std::sync::mpsc::Sender<Todo>) -> Arc<dyn Fn(HeldIn) + Send + Sync> {
    Arc::new(move |held| drop(jobs.send(Todo::Hold(held))))
}

/// The maintenance thread: writes checkpoints, merges them, holds them for copies and backups.
fn maintain(
    Kept { genesis, pages, syncer, log, dead }: &Kept,
    mut checkpoints: CheckpointStore<RealDisk>,
    todo: &std::sync::mpsc::Receiver<Todo>,
    durable: &mpsc::UnboundedSender<LogPoint>,
) {
    while let Ok(asked) = todo.recv() {
        let job = match asked {
            Todo::Write(job) => job,
            Todo::Hold(held) => {
                let pages = lock(pages);
                let source = CopySource::open(&checkpoints, &pages, log, |start| dead.lacks(start));
                let _ = held.send(block_on(source));
                continue;
            }
            Todo::Backup(Hold { end, known, taken, answer }) => {
                ended("maintenance", block_on(syncer.sync_to(end)));
                let (pages, asked) = (lock(pages), BackupRequest { genesis, end, known: &known, taken });
                let source = BackupSource::open(asked, &checkpoints, &pages, log, |start| dead.lacks(start));
                let _ = answer.send(block_on(source));
                continue;
            }
        };
        let point = job.point;
        // A checkpoint stands for nothing that a power cut could still take away.
        ended("maintenance", block_on(syncer.sync_to(point.end)));
        while let Err(error) = block_on(write_checkpoint(&mut lock(pages), &mut checkpoints, &job)) {
            if error.kind() != std::io::ErrorKind::StorageFull {
                process::die(&format!("checkpoint: {error}"));
            }
            tracing::warn!("no space for a checkpoint, trying again: {error}");
            if let Err(std::sync::mpsc::RecvTimeoutError::Disconnected) = todo.recv_timeout(CHECKPOINT_RETRY)
            {
                return;
            }
        }
        if durable.send(point).is_err() {
            return;
        }
        if checkpoints.wants_merge()
            && let Err(error) = block_on(checkpoints.merge(&FullSpeed))
        {
            if error.kind() != std::io::ErrorKind::StorageFull {
                process::die(&format!("merging checkpoints: {error}"));
            }
            tracing::warn!("no space to merge checkpoints, they stay as they are: {error}");
        }
    }
}

async fn write_checkpoint(
    pages: &mut PageStore<RealDisk>,
    checkpoints: &mut CheckpointStore<RealDisk>,
    job: &CheckpointJob,
) -> std::io::Result<()> {
    let new: Vec<NewPage> = job
        .pages
        .iter()
        .map(|(id, owner, content)| NewPage { id: u64::from(*id), owner: *owner, content: content.clone() })
        .collect();
    pages.free(job.freed.iter().map(|id| u64::from(*id)));
    let freed = pages.checkpoint_started();
    if !new.is_empty() {
        pages.write(&new).await?;
        pages.sync().await?;
    }
    checkpoints
        .write_delta(job.point, job.puts.iter().cloned(), job.removes.iter().cloned(), &FullSpeed)
        .await?;
    pages.checkpoint_durable(&freed);
    Ok(())
}
