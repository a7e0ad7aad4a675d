//! The shard's loop: takes turns of the core between what connections send, what the log commits, and what time brings.
//!
//! Owns: when things happen. Promises: a turn is bounded; what a turn decided is proposed and told before the next one; one
//! checkpoint at a time, taken when enough log was applied, written elsewhere.
//! Does not know: which thread it runs on, the consensus library, files (they come as [`Seams`]).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dassie_storage::{Apply, Batch, LogPoint};
use tokio::sync::{Notify, mpsc, watch};

use super::core::{Core, Proposal};
use super::link::{Input, Inputs};
use super::state::Delta;
use crate::limits;

/// Who does not lead, or was refused, tries again after so long: a leader that hands its lead over refuses everything until the
/// other one has it, and asking it at once again would be all that the shard's thread does meanwhile.
const RETRY: Duration = Duration::from_millis(20);

/// What the loop is joined to; `node` makes it.
pub struct Seams {
    /// Hands a batch to consensus; never blocks.
    pub propose: Box<dyn Fn(Proposal)>,
    /// Terms of proposals that were refused.
    pub refused: mpsc::UnboundedReceiver<u64>,
    /// The term that this node leads, as consensus sees it, and nobody else can yet.
    pub leads: Box<dyn Fn() -> Option<u64>>,
    /// The other voters, while this node has some: their clients may hold messages.
    pub others: Box<dyn Fn() -> Vec<u64>>,
    /// The membership as of the last applied batch, for the checkpoint to keep.
    pub membership: Box<dyn Fn() -> bytes::Bytes>,
    /// Why the disk holds the log up, if it does.
    pub backlog_full: Box<dyn Fn() -> bool>,
    /// First of so many adjoining free index pages, and the pages nothing names any more.
    pub allocate_pages: Box<dyn FnMut(u32) -> u32>,
    /// End of what this node's own log has durably: others may have committed more.
    pub durable: Box<dyn Fn() -> u64>,
    /// Begins to write a checkpoint elsewhere; the answer comes through `checkpoints`.
    pub write_checkpoint: Box<dyn FnMut(CheckpointJob)>,
    /// Checkpoints that are durable.
    pub checkpoints: mpsc::UnboundedReceiver<LogPoint>,
    /// A checkpoint is durable: the log floor may rise to it.
    pub checkpointed: Box<dyn FnMut(LogPoint)>,
    /// The segments of the log that exist (numbers, ascending), and how many files there are beside them.
    pub segments: Box<dyn Fn() -> (Vec<u64>, usize)>,
    /// These segments (numbers) hold nothing alive: they go as soon as the durable log floor allows.
    pub retire: Box<dyn FnMut(Vec<u64>)>,
    /// Becomes true when the node shall stop.
    pub stop: watch::Receiver<bool>,
    /// Told whether this shard serves.
    pub ready: watch::Sender<bool>,
    /// Called about once a second with what was counted.
    pub observe: Box<dyn FnMut(&mut Core)>,
}

/// What the maintenance thread writes, in this order: pages, then objects.
#[derive(Debug)]
pub struct CheckpointJob {
    /// What it stands for.
    pub point: LogPoint,
    /// Index pages: (page, owner, content).
    pub pages: Vec<(u32, u64, bytes::Bytes)>,
    /// Objects that changed.
    pub puts: Vec<(bytes::Bytes, bytes::Bytes)>,
    /// Objects that are gone.
    pub removes: Vec<bytes::Bytes>,
    /// Index pages that nothing names from here on.
    pub freed: Vec<u32>,
}

/// The core as the log's [`Apply`].
pub struct Applier {
    core: Rc<RefCell<Core>>,
    applied: Rc<Notify>,
}

impl Applier {
    /// A digest of all that is applied: equal on every replica that applied the same batches. Walks the whole state.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.core.borrow_mut().digest()
    }

    /// Looks for what must never be ([`Core::audit`]).
    ///
    /// # Errors
    /// What it is.
    pub fn audit(&self) -> Result<(), String> {
        self.core.borrow_mut().audit()
    }

    /// Reads every message that lives ([`Core::audit_messages`]).
    ///
    /// # Errors
    /// Which can not be read.
    pub fn audit_messages(&self) -> Result<(), String> {
        self.core.borrow_mut().audit_messages()
    }
}

impl Apply for Applier {
    fn applied(&self) -> Option<LogPoint> {
        self.core.borrow().applied()
    }

    fn apply(&mut self, batch: &Batch) {
        self.core.borrow_mut().apply(batch);
        self.applied.notify_one();
    }
}

/// See the module.
pub struct ShardLoop {
    core: Rc<RefCell<Core>>,
    inputs: mpsc::UnboundedReceiver<Input>,
    applied: Rc<Notify>,
    /// What the running checkpoint assigned.
    checkpoint: Option<Vec<(u64, u64, u32)>>,
    /// The durable checkpoint stands in that segment.
    checkpointed: u64,
    segment_size: u64,
    checkpoint_bytes: u64,
    /// Not before this it leads again after a refusal.
    resumes: Duration,
}

impl ShardLoop {
    /// A loop around `core`, on a log with segments of that size.
    #[must_use]
    pub fn new(core: Core, Inputs(inputs): Inputs, segment_size: u64, checkpoint_bytes: u64) -> Self {
        Self {
            core: Rc::new(RefCell::new(core)),
            inputs,
            applied: Rc::new(Notify::new()),
            checkpoint: None,
            checkpointed: 0,
            segment_size,
            checkpoint_bytes,
            resumes: Duration::ZERO,
        }
    }

    /// What the consensus driver applies to.
    #[must_use]
    pub fn applier(&self) -> Applier {
        Applier { core: Rc::clone(&self.core), applied: Rc::clone(&self.applied) }
    }

    /// Runs until told to stop.
    pub async fn run(mut self, mut seams: Seams) {
        let mut inputs = Vec::new();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut again = false;
        loop {
            let wait = self.wait(again);
            tokio::select! {
                biased;
                _ = seams.stop.changed() => break,
                () = self.applied.notified() => {}
                Some(term) = seams.refused.recv() => {
                    let mut core = self.core.borrow_mut();
                    core.refused(term);
                    self.resumes = core.monotonic() + RETRY;
                }
                Some(point) = seams.checkpoints.recv() => self.checkpoint_done(point, &mut seams),
                taken = self.inputs.recv_many(&mut inputs, 256) => {
                    if taken == 0 {
                        break;
                    }
                }
                _ = second.tick() => {
                    self.tend(&mut seams);
                    (seams.observe)(&mut self.core.borrow_mut());
                }
                () = tokio::time::sleep(wait), if wait < Duration::MAX => {}
            }
            again = self.turn(&mut inputs, &mut seams);
            if again {
                // Consensus, the writer's completions and new input get their turn before this goes on.
                tokio::task::yield_now().await;
            }
        }
        self.core.borrow_mut().shutting_down();
        self.core.borrow_mut().flush();
    }

    fn wait(&self, again: bool) -> Duration {
        if again {
            return Duration::ZERO;
        }
        let core = self.core.borrow();
        if !core.is_ready() && !core.is_front() {
            return RETRY;
        }
        core.next_deadline().map_or(Duration::MAX, |at| at.saturating_sub(core.monotonic()))
    }

    /// One turn; true: there is more to do at once.
    fn turn(&mut self, inputs: &mut Vec<Input>, seams: &mut Seams) -> bool {
        let mut core = self.core.borrow_mut();
        core.turn();
        let leads = (seams.leads)();
        core.lease(leads);
        for input in inputs.drain(..) {
            core.input(input);
        }
        core.expire();
        if !core.is_ready()
            && core.monotonic() >= self.resumes
            && let Some(term) = leads
        {
            core.set_others((seams.others)());
            core.lead(term);
        }
        let more = core.serve();
        if !(seams.backlog_full)() {
            for proposal in core.proposals() {
                (seams.propose)(proposal);
            }
        }
        core.flush();
        let ready = core.is_ready() || core.is_front();
        seams.ready.send_if_modified(|known| std::mem::replace(known, ready) != ready);
        drop(core);
        self.checkpoint_if_due(seams);
        more
    }

    /// Looks after the space that the log takes up.
    fn tend(&mut self, seams: &mut Seams) {
        let (existing, spare) = (seams.segments)();
        let tended = self.core.borrow_mut().tend(&existing, spare, self.checkpointed);
        if !tended.retire.is_empty() {
            (seams.retire)(tended.retire);
        }
        // Right after a restart nothing may be applied beyond the checkpoint that it began from.
        if tended.checkpoint && self.core.borrow().state.since_checkpoint > 0 {
            self.checkpoint(seams);
        }
    }

    fn checkpoint_if_due(&mut self, seams: &mut Seams) {
        if self.core.borrow().state.since_checkpoint >= self.checkpoint_bytes {
            self.checkpoint(seams);
        }
    }

    fn checkpoint(&mut self, seams: &mut Seams) {
        if self.checkpoint.is_some() {
            return;
        }
        let mut core = self.core.borrow_mut();
        // A majority may have what this node's disk has not got yet. A checkpoint that stands for more than the log of its own store
        // would be all that is left of it after a crash.
        if core.applied().is_some_and(|point| point.end > (seams.durable)()) {
            return;
        }
        core.state.keep_membership((seams.membership)());
        let delta = core.state.begin_checkpoint(&mut seams.allocate_pages);
        drop(core);
        let Some(Delta { point, puts, removes, pages, assigned, freed }) = delta else { return };
        self.checkpoint = Some(assigned);
        (seams.write_checkpoint)(CheckpointJob { point, pages, puts, removes, freed });
    }

    fn checkpoint_done(&mut self, point: LogPoint, seams: &mut Seams) {
        let assigned = self.checkpoint.take().unwrap_or_default();
        self.core.borrow_mut().state.checkpointed(&assigned);
        self.checkpointed = point.position / self.segment_size;
        (seams.checkpointed)(point);
    }
}

const _: () = assert!(limits::BATCHES_IN_FLIGHT > 0);
