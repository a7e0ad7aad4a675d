//! One life of one node: the product's log, driver, core and loop on a simulated disk.
//!
//! Owns: what `node.rs` of the product does with threads, done with local tasks. Promises: everything of a life is in one set
//! of tasks, which a crash drops at once; recovery, checkpoints, the log floor and recycling are the product's.
//! Does not know: clients, other nodes.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dassie::broker::core::{Core, PageSource, Parts, Proposal};
use dassie::broker::later;
use dassie::broker::link::Shard;
use dassie::broker::message::Batches;
use dassie::broker::shard::{Applier, CheckpointJob, Seams, ShardLoop};
use dassie::cluster::{Birth, Node, Replica, Role, Start, Timing};
use dassie::server::semantics::Layouts;
use dassie_storage::sim::SimDisk;
use dassie_storage::{
    Batch, CheckpointStore, FullSpeed, Genesis, Log, LogPoint, LogReader, NewPage, Options, PageReader,
    PageStore, ProposalId, ReplicatedLog, block_on, read_floor,
};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use super::network::{Letter, Wire};
use super::payload::Payload;
use super::plant::Plant;
use super::time::NodeClock;
use super::waiting::DELAYS_MS;
use super::witness::{Lax, Witness};
use super::world::{NODES, Shared, count};

/// Small, so that a run fills many.
pub(crate) const SEGMENT: u64 = 64 << 10;
/// A quarter of a segment: bodies above it go in pieces.
const BATCH: usize = 16 << 10;
/// Log between two checkpoints.
const CHECKPOINT: u64 = 96 << 10;
/// Proposals refused on their way, in a thousand.
const REFUSED: u64 = 5;
/// How often a node's role and log end are looked at.
const LOOK: Duration = Duration::from_millis(5);

type NodeReplica = Replica<SimDisk, Witness>;

/// What a life is begun with.
pub(crate) struct Dawn {
    pub(crate) shared: Shared,
    pub(crate) node: u64,
    pub(crate) session: u64,
    /// Writes and syncs take time.
    pub(crate) disk: SimDisk,
    /// The same disk without the time: for what the product does on threads that may block.
    pub(crate) prompt: SimDisk,
    pub(crate) clock: NodeClock,
    pub(crate) face: Rc<Face>,
    pub(crate) letters: mpsc::UnboundedReceiver<Letter>,
}

/// What the world sees of a life.
#[derive(Default)]
pub(crate) struct Face {
    pub(crate) shard: RefCell<Option<Shard>>,
    pub(crate) applier: RefCell<Option<Applier>>,
    pub(crate) ready: Cell<bool>,
    pub(crate) role: Cell<Role>,
    /// The voter that shall lead instead.
    pub(crate) transfer: Cell<Option<u64>>,
}

fn genesis(node: u64) -> Genesis {
    Genesis {
        cluster: [7; 16],
        shard: *b"simulated shard.",
        store: [u8::try_from(node).expect("few nodes"); 16],
        shard_number: 0,
        node,
        segment_size: SEGMENT,
        created: 0,
        joins: false,
    }
}

fn times(plant: Plant) -> later::Settings {
    let hurry = if plant == Plant::HastyDelay { 2 } else { 1 };
    later::Settings {
        delay_levels_ms: DELAYS_MS.map(|ms| ms / hurry).into(),
        transaction_timeout_ms: 600,
        transaction_check_interval_ms: 900,
        transaction_check_max: 3,
    }
}

struct Pages(PageReader<SimDisk>);

impl PageSource for Pages {
    fn read(&self, page: u32, owner: u64) -> io::Result<bytes::Bytes> {
        self.0.read(u64::from(page), owner)
    }
}

/// The log as readers see it; with a plant, not as it is.
struct Reading {
    log: LogReader<SimDisk>,
    flip: bool,
}

impl Batches for Reading {
    fn batch(&self, position: u64) -> io::Result<Batch> {
        Ok(self.seen(self.log.batch(position)?))
    }

    fn is_at_hand(&self, position: u64) -> bool {
        self.log.is_in_memory(position)
    }

    fn holding(&self, position: u64) -> io::Result<Batch> {
        Ok(self.seen(self.log.holding(position)?))
    }
}

impl Reading {
    fn seen(&self, mut batch: Batch) -> Batch {
        if self.flip && batch.payload.len() > 600 && batch.point.index % 5 == 3 {
            let mut bytes = batch.payload.to_vec();
            let last = bytes.len() - 20;
            bytes[last] ^= 4;
            batch.payload = bytes.into();
        }
        batch
    }
}

/// Runs until its set is dropped.
pub(crate) async fn live(dawn: Dawn) {
    let (shared, node) = (dawn.shared.clone(), dawn.node);
    if let Err(error) = begin(dawn).await {
        shared.oracle.borrow_mut().violated(format!("node {node} does not start: {error}"));
    }
}

async fn begin(dawn: Dawn) -> io::Result<()> {
    let Dawn { shared, node, session, disk, prompt, clock, face, letters } = dawn;
    let genesis = genesis(node);
    if Genesis::load(&disk).await?.is_none() {
        genesis.create(&disk).await?;
    }
    let floor = read_floor(&disk, &genesis).await?;
    let (checkpoints, loaded) = CheckpointStore::load(&disk, genesis.store, floor.map(|f| f.index)).await?;
    let point = loaded.as_ref().map(|l| l.point);
    let (state, used) = Core::recovered(SEGMENT, loaded.map(|l| (l.point, l.objects)))?;
    let pages = PageStore::open(&prompt, used.into_iter().map(u64::from)).await?;
    let options = Options { tail_bytes: 48 << 10, ..Options::default() };
    let log = Log::open(&disk, options, &genesis, point).await?;
    let first_segment = log.recovered.segments.first().map_or(0, |start| start / SEGMENT);
    spawn_local(log.writer.run());
    spawn_local(log.preparer.run());
    shared.oracle.borrow_mut().begins(session, point);
    let from = point.map(|point| point.index);
    shared.note(|| format!("node {node} recovered from {from:?}, segment {first_segment}"));

    let (topology, topology_out) = watch::channel(Arc::default());
    let reading = || Reading { log: log.reader.clone(), flip: shared.plant == Plant::FlippedByte };
    let (shard, inputs) = Shard::new(topology_out, Arc::new(reading()));
    let membership = state.membership();
    let core = Core::new(
        Parts {
            spill: None,
            node,
            session,
            log: Box::new(reading()),
            pages: Box::new(Pages(pages.reader())),
            semantics: Arc::new(Layouts::default()),
            clock: Arc::new(clock.clone()),
            topology,
            batch_bytes: BATCH,
            section_bytes: 2 * BATCH,
        },
        state,
    )
    .with_retention(shared.habits.keeps.clone())
    .with_times(times(shared.plant));
    let shard_loop = ShardLoop::new(core, inputs, SEGMENT, CHECKPOINT);
    let inner = shard_loop.applier();
    *face.applier.borrow_mut() = Some(shard_loop.applier());
    let witness = Witness { shared: shared.clone(), node, session, inner, clock, lax: Lax::default() };
    let member = |id: u64| (id, Node { address: format!("node-{id}"), ..Node::default() });
    let replica = Replica::start(Start {
        node,
        myself: member(node).1,
        log: log.log.clone(),
        apply: witness,
        membership,
        peers: Wire { network: shared.network.clone(), node },
        birth: if node == 1 { Birth::Founds((1..=NODES).map(member).collect()) } else { Birth::Joins },
        timing: Timing::default(),
    })
    .await?;
    let living = Living { shared, node, replica, log: log.log, end: Rc::default(), face };
    let (refused_in, refused) = mpsc::unbounded_channel();
    spawn_local(living.clone().receive(letters));
    spawn_local(living.clone().watch_replica(refused_in.clone()));
    spawn_local(living.clone().show());
    let seams = living.seams(pages, checkpoints, refused, refused_in);
    *living.face.shard.borrow_mut() = Some(shard);
    shard_loop.run(seams).await;
    Ok(())
}

#[derive(Clone)]
struct Living {
    shared: Shared,
    node: u64,
    replica: NodeReplica,
    log: Log<SimDisk>,
    /// The end of the log when it was looked at last: an end that is gone was truncated.
    end: Rc<Cell<Option<LogPoint>>>,
    face: Rc<Face>,
}

impl Living {
    async fn receive(self, mut letters: mpsc::UnboundedReceiver<Letter>) {
        while let Some(Letter { request, reply }) = letters.recv().await {
            let this = self.clone();
            spawn_local(async move {
                let answer = this.replica.answer(request).await;
                this.look_for_truncation();
                if let Ok(answer) = answer {
                    drop(reply.send(answer));
                }
            });
        }
    }

    fn look_for_truncation(&self) {
        if let Some(end) = self.end.get()
            && self.log.point(end.index).ok().flatten() != Some(end)
        {
            count(&self.shared.counts.truncations, 1);
            self.shared.note(|| format!("node {} truncated {}", self.node, end.index));
        }
        self.end.set(self.log.last());
    }

    async fn watch_replica(self, refused: mpsc::UnboundedSender<u64>) {
        loop {
            tokio::select! {
                biased;
                error = self.replica.failed() => {
                    let what = format!("node {} failed: {error}", self.node);
                    return self.shared.oracle.borrow_mut().violated(what);
                }
                all = self.replica.refused() => {
                    for one in all {
                        self.shared.note(|| format!("node {} is refused {one:?}", self.node));
                        count(&self.shared.counts.refused, 1);
                        if self.shared.plant != Plant::DeafToRefusals {
                            let _ = refused.send(one.id.term);
                        }
                    }
                }
            }
        }
    }

    /// Keeps what the world sees true, and does what it asks.
    async fn show(self) {
        let role = self.replica.role();
        loop {
            let known = *role.borrow();
            if self.face.role.replace(known) != known {
                self.shared.note(|| format!("node {} is {known:?}", self.node));
            }
            if let Some(to) = self.face.transfer.take() {
                drop(self.replica.transfer_lead(to).await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn propose(&self, Proposal { term, ordinal, payload }: Proposal, refused: &mpsc::UnboundedSender<u64>) {
        let id = ProposalId { term, ordinal };
        // The library may refuse one proposal and take the next in the same term. That is rare, and what follows from it is
        // where confirms were lost elsewhere: so it is made to happen.
        if self.shared.dice.permille(REFUSED) {
            count(&self.shared.counts.refused, 1);
            if self.shared.plant != Plant::DeafToRefusals {
                let _ = refused.send(term);
            }
            return;
        }
        self.replica.propose(self.planted(payload, ordinal), id);
    }

    fn planted(&self, payload: bytes::Bytes, ordinal: u64) -> bytes::Bytes {
        if !matches!(self.shared.plant, Plant::DoubleEnqueue | Plant::DroppedRecord | Plant::SwappedRecords)
            || ordinal % 7 != 5
        {
            return payload;
        }
        let mut parts = Payload::of(&payload);
        for section in &mut parts.sections {
            let messages = section.messages();
            match (self.shared.plant, &messages[..]) {
                (Plant::DoubleEnqueue, [.., last]) => {
                    let mut again = section.records[*last].clone();
                    again[2..4].copy_from_slice(&[0; 2]);
                    section.records.insert(last + 1, again);
                }
                // The verb after it makes up for its step: only the message is missing.
                (Plant::DroppedRecord, [.., last]) if *last > 0 && last + 1 == section.records.len() => {
                    section.records.pop();
                }
                (Plant::SwappedRecords, [.., first, second]) => {
                    let (a, b) = (section.records[*first].clone(), section.records[*second].clone());
                    let swap = |bytes: Vec<u8>, step: &[u8]| [&bytes[..2], step, &bytes[4..]].concat();
                    section.records[*first] = swap(b.clone(), &a[2..4]);
                    section.records[*second] = swap(a, &b[2..4]);
                }
                _ => {}
            }
        }
        parts.bytes()
    }

    fn seams(
        &self,
        pages: PageStore<SimDisk>,
        checkpoints: CheckpointStore<SimDisk>,
        refused: mpsc::UnboundedReceiver<u64>,
        refuse: mpsc::UnboundedSender<u64>,
    ) -> Seams {
        let pages = Rc::new(RefCell::new(pages));
        let (jobs, todo) = mpsc::unbounded_channel();
        let (durable_in, durable) = mpsc::unbounded_channel();
        spawn_local(self.clone().maintain(pages.clone(), checkpoints, todo, durable_in));
        let (proposer, leader, members, backlog) = (self.clone(), self.clone(), self.clone(), self.clone());
        let (floor, retiring, listed) = (self.clone(), self.clone(), self.log.clone());
        let face = self.face.clone();
        let held = Cell::new(None);
        let own_log = self.log.clone();
        let (stop, stopped) = watch::channel(false);
        Seams {
            propose: Box::new(move |proposal| proposer.propose(proposal, &refuse)),
            refused,
            leads: Box::new(move || match leader.shared.plant {
                Plant::EndlessLease => match leader.replica.leads() {
                    Some(term) => {
                        held.set(Some(term));
                        Some(term)
                    }
                    None => held.get(),
                },
                _ => leader.replica.leads(),
            }),
            // Its clients go to the leader themselves: no node holds messages for another.
            others: Box::new(Vec::new),
            membership: Box::new(move || members.replica.membership_record()),
            backlog_full: Box::new(move || backlog.log.backlog().is_full()),
            allocate_pages: Box::new(move |count| {
                let first = block_on(pages.borrow_mut().allocate(u64::from(count)));
                u32::try_from(first.expect("a simulated disk is large")).expect("few pages")
            }),
            durable: Box::new(move || own_log.durable()),
            write_checkpoint: Box::new(move |job| drop(jobs.send(job))),
            checkpoints: durable,
            checkpointed: Box::new(move |point| drop(spawn_local(floor.clone().raise(point)))),
            segments: Box::new(move || {
                let starts = listed.segments().into_iter();
                (starts.map(|start| start / SEGMENT).collect(), listed.spare_files())
            }),
            retire: Box::new(move |dead| retiring.retire(dead.into_iter().map(|n| n * SEGMENT))),
            stop: stopped,
            ready: {
                let (ready, mut changes) = watch::channel(false);
                spawn_local(async move {
                    while changes.changed().await.is_ok() {
                        face.ready.set(*changes.borrow_and_update());
                    }
                });
                ready
            },
            // Never told to stop: a life ends with the power.
            observe: Box::new(move |_| {
                let _never = &stop;
            }),
        }
    }

    async fn raise(self, point: LogPoint) {
        if self.replica.checkpointed(point).await.is_err() {
            return; // tried again with the next checkpoint
        }
        if self.shared.plant == Plant::RecycledAlive {
            self.retire((0..point.position / SEGMENT).map(|n| n * SEGMENT));
        }
    }

    fn retire(&self, dead: impl Iterator<Item = u64>) {
        for segment in dead {
            if self.log.retire(&[segment]).is_err() {
                return;
            }
            self.shared.note(|| format!("node {} retired {segment}", self.node));
            count(&self.shared.counts.retired, 1);
        }
    }

    async fn maintain(
        self,
        pages: Rc<RefCell<PageStore<SimDisk>>>,
        mut checkpoints: CheckpointStore<SimDisk>,
        mut todo: mpsc::UnboundedReceiver<CheckpointJob>,
        durable: mpsc::UnboundedSender<LogPoint>,
    ) {
        while let Some(mut job) = todo.recv().await {
            if self.shared.plant == Plant::StaleCheckpoint
                && let Some(queue) = job.puts.iter().position(|(key, _)| key.first() == Some(&b'q'))
            {
                job.puts.remove(queue);
            }
            if let Err(error) = self.write_checkpoint(&pages, &mut checkpoints, &job).await {
                let what = format!("node {}: checkpoint: {error}", self.node);
                return self.shared.oracle.borrow_mut().violated(what);
            }
            count(&self.shared.counts.checkpoints, 1);
            if durable.send(job.point).is_err() {
                return;
            }
            if checkpoints.wants_merge()
                && let Err(error) = checkpoints.merge(&FullSpeed).await
            {
                let what = format!("node {}: merging checkpoints: {error}", self.node);
                return self.shared.oracle.borrow_mut().violated(what);
            }
        }
    }

    async fn write_checkpoint(
        &self,
        pages: &RefCell<PageStore<SimDisk>>,
        checkpoints: &mut CheckpointStore<SimDisk>,
        job: &CheckpointJob,
    ) -> io::Result<()> {
        let new: Vec<NewPage> = job
            .pages
            .iter()
            .map(|(id, owner, content)| NewPage {
                id: u64::from(*id),
                owner: *owner,
                content: content.clone(),
            })
            .collect();
        let freed = {
            let mut pages = pages.borrow_mut();
            pages.free(job.freed.iter().map(|id| u64::from(*id)));
            pages.checkpoint_started()
        };
        let dice = &self.shared.dice;
        let pause = || tokio::time::sleep(Duration::from_micros(100 + dice.below(3_000)));
        if !new.is_empty() {
            pause().await;
            block_on(pages.borrow_mut().write(&new))?;
            pause().await;
            block_on(pages.borrow_mut().sync())?;
            pause().await;
        }
        let (puts, removes) = (job.puts.iter().cloned(), job.removes.iter().cloned());
        checkpoints.write_delta(job.point, puts, removes, &FullSpeed).await?;
        pages.borrow_mut().checkpoint_durable(&freed);
        Ok(())
    }
}
