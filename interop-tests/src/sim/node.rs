//! The seam between the harness and what is replicated.
//!
//! Owns: the trait [`SimNode`] and its words. Promises: a state machine that implements it is run under every fault of the
//! harness and judged by every rule of the oracle. Does not know: the state machine, the network, the disk.

use std::time::Duration;

use bytes::Bytes;
use dassie::cluster::Refused;
use dassie_storage::{Apply, LogPoint, ProposalId};

use super::plant::Plant;

/// A client's wish, named by its front end's session and its number there, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verb {
    /// One life of one front end.
    pub session: u64,
    /// Its place among the verbs of that life.
    pub sequence: u64,
    /// What is to be stored.
    pub value: u64,
}

/// What a node says after a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It applied a batch.
    Applied {
        /// Where.
        point: LogPoint,
        /// Digest of the whole state behind it.
        digest: u64,
        /// Kind of the batch.
        kind: u8,
        /// Verbs that took effect, in order.
        accepted: Vec<Verb>,
        /// The batch, or a section of it, was voided.
        voided: bool,
    },
    /// It told its client that this verb is done.
    Confirmed {
        /// Of this life.
        session: u64,
        /// Which verb.
        sequence: u64,
    },
}

/// One life of one node, between a start and a crash. Clones are handles on one.
pub trait SimNode: Clone + 'static {
    /// The state as the log sees it.
    type Apply: Apply + 'static;

    /// A new life with an empty state: the log is replayed into it.
    fn born(node: u64, session: u64, plant: Plant) -> Self;
    /// What the replica applies to.
    fn apply(&self) -> Self::Apply;
    /// A client of this node wishes something; answers its sequence.
    fn submit(&self, value: u64) -> u64;
    /// Verbs this node waits for.
    fn waiting(&self) -> usize;
    /// Verbs from another node arrive.
    fn deliver(&self, verbs: &[Verb]);
    /// Verbs to be sent to the leader now, if it is another node.
    fn forward(&self, leader: u64, now: Duration) -> Vec<Verb>;
    /// Decides. `leads` is the term that this node leads as consensus sees it.
    fn turn(&self, leads: Option<u64>, refused: &[Refused], now: Duration) -> Vec<(Bytes, ProposalId)>;
    /// What was applied and confirmed since the last call.
    fn told(&self) -> Vec<Told>;
}
