//! The broker's state as the consensus library's state machine.
//!
//! Owns: the membership as of what is applied, and what the newest durable checkpoint stands for. Promises: every committed
//! batch of every kind reaches [`Apply`] once and in order; a long replay lets the shard's other tasks have their turns.
//! Does not know: what applying means, how a checkpoint is written.
//!
//! A snapshot here is metadata alone: the newest durable checkpoint, so that the log floor may rise to it. Its bytes are never handed
//! to the library. A peer that lacks what is below the floor gets files ([`super::copy`]), puts them in the place of its store,
//! and begins anew: the library there finds itself restarted behind the checkpoint, and never installs anything.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use dassie_storage::{Apply, LogPoint};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::copy::Holds;
use super::membership::log_id;
use super::types::{Config, LogId, StoredMembership};

pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Config>;
type Snapshot = openraft::type_config::alias::SnapshotOf<Config, ()>;

/// Batches applied in one turn of the shard's thread: at a few µs each well below its 5 ms.
const TURN_BATCHES: usize = 64;
/// Bytes applied in one turn.
const TURN_BYTES: usize = 4 << 20;

/// What the driver and the state machine both look at.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Memberships applied since the newest checkpoint, and the one before; never empty after the start.
    memberships: RefCell<Vec<StoredMembership>>,
    checkpoint: RefCell<Option<SnapshotMeta>>,
    /// What copies under way need.
    pub(crate) holds: Rc<Holds>,
}

impl Applied {
    /// Begins with the membership as of the checkpoint, `at` the batch it stands for.
    pub(crate) fn new(membership: StoredMembership, at: Option<LogPoint>) -> Self {
        let checkpoint = at.map(|point| SnapshotMeta {
            last_log_id: Some(log_id(point.term, point.index)),
            last_membership: membership.clone(),
        });
        Applied {
            memberships: RefCell::new(vec![membership]),
            checkpoint: RefCell::new(checkpoint),
            holds: Rc::default(),
        }
    }

    /// The membership as of the last applied batch.
    pub(crate) fn membership(&self) -> StoredMembership {
        self.memberships.borrow().last().cloned().unwrap_or_default()
    }

    fn changed(&self, membership: StoredMembership) {
        self.memberships.borrow_mut().push(membership);
    }

    /// A checkpoint at `point` is durable.
    pub(crate) fn checkpointed(&self, point: LogPoint) {
        let mut memberships = self.memberships.borrow_mut();
        let until =
            |known: &StoredMembership| known.log_id().as_ref().is_none_or(|id| id.index() <= point.index);
        let older = memberships.iter().take_while(|known| until(known)).count();
        memberships.drain(..older.saturating_sub(1));
        let last_membership = memberships.first().cloned().unwrap_or_default();
        let last_log_id = Some(log_id(point.term, point.index));
        let mut checkpoint = self.checkpoint.borrow_mut();
        if checkpoint.as_ref().is_none_or(|known| known.last_log_id < last_log_id) {
            *checkpoint = Some(SnapshotMeta { last_log_id, last_membership });
        }
    }

    fn snapshot(&self) -> Option<Snapshot> {
        self.checkpoint.borrow().clone().map(|meta| Snapshot { meta, snapshot: () })
    }
}

/// The state machine.
pub(crate) struct StateMachine<A> {
    apply: A,
    applied: Rc<Applied>,
}

impl<A: Apply> StateMachine<A> {
    pub(crate) fn new(apply: A, applied: Rc<Applied>) -> Self {
        StateMachine { apply, applied }
    }
}

/// Answers with the newest durable checkpoint.
pub(crate) struct Builder(Rc<Applied>);

impl RaftSnapshotBuilder<Config> for Builder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        // Without a checkpoint it stands for nothing, and nothing may be purged up to it.
        Ok(self.0.snapshot().unwrap_or_else(|| Snapshot { meta: SnapshotMeta::default(), snapshot: () }))
    }
}

impl<A: Apply + 'static> RaftStateMachine<Config> for StateMachine<A> {
    type SnapshotData = ();
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let last = self.apply.applied().map(|point| log_id(point.term, point.index));
        Ok((last, self.applied.membership()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Config>>> + Unpin + OptionalSend,
    {
        let (mut batches, mut bytes) = (0, 0);
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let Some(batch) = entry.batch else {
                let reason = format!("entry {} was not read from the log", entry.id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            };
            if let EntryPayload::Membership(members) = entry.payload {
                self.applied.changed(StoredMembership::new(Some(entry.id), members));
            }
            self.apply.apply(&batch);
            if let Some(responder) = responder {
                responder.send(());
            }
            batches += 1;
            bytes += batch.payload.len();
            if batches >= TURN_BATCHES || bytes >= TURN_BYTES {
                (batches, bytes) = (0, 0);
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        (force || self.applied.checkpoint.borrow().is_some()).then(|| Builder(self.applied.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.applied.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _snapshot: ()) -> io::Result<()> {
        let reason = format!("the snapshot {meta}: a checkpoint comes as files, never through the library");
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        // Asked for a peer that needs a copy. The first copy's checkpoint, as long as that is held: who has it goes on with the log
        // behind it. The newest would run away from a peer, checkpoint by checkpoint, while that starts again with a copy.
        let held = self.applied.holds.lowest().map(|meta| Snapshot { meta, snapshot: () });
        Ok(held.or_else(|| self.applied.snapshot()))
    }
}
