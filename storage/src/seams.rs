//! The two seams between log, consensus and state: [`ReplicatedLog`] and [`Apply`].
//!
//! Owns: the traits. `cluster` implements the first, `broker` the second, `node` joins them. Does not know: either of them.

use bytes::Bytes;

use crate::format::{Batch, LogPoint};

/// Names a proposal by the place its leader gave it: the batch's header inside the payload carries the same two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    /// Term in which the leader decided it.
    pub term: u64,
    /// Its ordinal in that term, from 0.
    pub ordinal: u64,
}

/// A log to which this node, as leader, proposes batches.
pub trait ReplicatedLog {
    /// Proposes one batch of kind 1. Returns at once and promises nothing: the proposal may be committed, refused or lost with
    /// the term. What became of it is seen in [`Apply::apply`] alone, where ordinals tell a refused predecessor.
    fn propose(&self, payload: Bytes, id: ProposalId);
}

/// The state that committed batches are applied to, in log order, on the shard's thread.
pub trait Apply {
    /// The last batch applied; `None` before the first.
    fn applied(&self) -> Option<LogPoint>;
    /// Applies the next committed batch. Total: it reads nothing but the state and the batch, and can not fail.
    fn apply(&mut self, batch: &Batch);
}
