//! The types the consensus library is told to use.
//!
//! Owns: what an entry, a node and a proposal are, and how a refusal finds its way back. Promises: standard leader ids (one
//! leader a term); a proposal costs no channel and no task: success shows in apply, only refusals are noted.
//! Does not know: where entries are kept, what their payloads say.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;
use dassie_storage::{Batch, ProposalId};
use openraft::entry::RaftEntry;
use openraft::errors::ClientWriteError;
use openraft::impls::leader_id_std;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use openraft::{EntryPayload, Membership, OptionalSend};
use tokio::sync::Notify;

use super::runtime::ShardRuntime;

/// The library's configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Config;

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<<LeaderId as openraft::vote::RaftLeaderId>::Committed>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type Payload = EntryPayload<Proposed, u64, Node>;
pub(crate) type Members = Membership<u64, Node>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Config>;

impl openraft::RaftTypeConfig for Config {
    type D = Proposed;
    type R = ();
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = ShardRuntime;
    type Responder<T>
        = Refusal
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A member of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Where its peers reach it, `host:port`; empty for a node that stands alone.
    pub address: String,
    /// Its store; zeros: not known yet.
    pub store: dassie_storage::Uuid,
}

/// The payload of a proposal, exactly as it will stand in the log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposed(pub(crate) Bytes);

impl fmt::Debug for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One entry on its way through the library.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: LogId,
    pub(crate) payload: Payload,
    /// Where it stands in this node's log, for entries that were read from it. Its `leader` also travels to peers: a log id
    /// has only the term, and the batch header, which is equal on all nodes, names the leader too.
    pub(crate) batch: Option<Batch>,
    /// The leader that proposed it, for entries that came from a peer.
    pub(crate) leader: Option<u64>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.payload)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = <LeaderId as openraft::vote::RaftLeaderId>::Committed;
    type Payload = Payload;

    fn new(id: LogId, payload: Payload) -> Self {
        Entry { id, payload, batch: None, leader: None }
    }

    fn log_id_parts(&self) -> (&Self::CommittedLeaderId, u64) {
        (self.id.committed_leader_id(), self.id.index())
    }

    fn set_log_id(&mut self, id: LogId) {
        self.id = id;
    }

    fn get_membership(&self) -> Option<Members> {
        match &self.payload {
            EntryPayload::Membership(membership) => Some(membership.clone()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        }
    }
}

/// A proposal that the log did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub id: ProposalId,
    /// It is not in the log and never will be. Otherwise this node lost its lead while the proposal was on its way: a later
    /// leader may still commit it. Both are resent by session and sequence; only the first can be the answer to a client.
    pub certain: bool,
}

/// Refusals not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    list: RefCell<Vec<Refused>>,
    news: Notify,
}

impl Refusals {
    pub(crate) fn add(&self, refused: Refused) {
        self.list.borrow_mut().push(refused);
        self.news.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<Refused> {
        std::mem::take(&mut *self.list.borrow_mut())
    }

    pub(crate) async fn wait(&self) -> Vec<Refused> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.news.notified().await;
        }
    }
}

/// The library's way to say that a proposal was not taken. Two words, no allocation.
pub(crate) struct Refusal {
    open: Option<(ProposalId, Rc<Refusals>)>,
}

impl Refusal {
    pub(crate) fn new(id: ProposalId, refusals: Rc<Refusals>) -> Self {
        Refusal { open: Some((id, refusals)) }
    }

    fn refuse(&mut self, certain: bool) {
        if let Some((id, refusals)) = self.open.take() {
            refusals.add(Refused { id, certain });
        }
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        // The core stopped or forgot it: what became of the proposal is not known.
        self.refuse(false);
    }
}

impl<T: 'static> Responder<Config, T> for Refusal {
    fn on_complete(mut self, result: T) {
        // The library wants one responder for results of any type; the only ones it ever sends here are those of writes.
        match (&result as &dyn Any).downcast_ref::<ClientWriteResult<Config>>() {
            Some(Ok(_)) => self.open = None,
            Some(Err(ClientWriteError::LogEntryDiscarded(_))) | None => self.refuse(false),
            Some(Err(_)) => self.refuse(true),
        }
    }
}
