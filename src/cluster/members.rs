//! Who is in the cluster, as one node sees it, and how a leader changes it.
//!
//! Owns: [`View`], and the changes of the membership in the words of operators. Promises: a change answers when it is committed;
//! one at a time (the library refuses a second); a member's number and store never change together by accident.
//! Does not know: why somebody joins or leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use dassie_storage::{Apply, Disk};
use openraft::{ChangeMembers, Instant as _};

use super::driver::{Replica, Role};
use super::types::Node;

/// The cluster as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// This node.
    pub node: u64,
    /// What it is.
    pub role: Role,
    /// The term it is in.
    pub term: u64,
    /// All members, by number; with the newest change of them even before that is committed.
    pub members: BTreeMap<u64, Member>,
    /// A change of the membership has begun and is not committed: until then the members of before are needed, too.
    pub changing: bool,
    /// Its first half is: the voters of before and of afterwards both decide.
    pub joint: bool,
    /// Index of the last entry in this node's log.
    pub last: Option<u64>,
    /// Index of the last entry it knows as committed.
    pub committed: Option<u64>,
    /// Index of the last entry it has applied.
    pub applied: Option<u64>,
}

/// One member. What only a leader knows is `None` elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Where it is reached, and its store.
    pub node: Node,
    /// It counts for the majority; otherwise it has a copy only.
    pub voter: bool,
    /// Index of the last entry that it has synced.
    pub matched: Option<u64>,
    /// Bytes of the leader's log that it has not.
    pub lag_bytes: Option<u64>,
    /// Since its last answer, ms.
    pub silent_ms: Option<u64>,
}

impl View {
    /// The leader it knows.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        match self.role {
            Role::Leader { .. } => Some(self.node),
            Role::Follower { leader } => Some(leader),
            Role::Looking => None,
        }
    }

    /// How many count for the majority.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.members.values().filter(|member| member.voter).count()
    }
}

impl<D: Disk, A: Apply + 'static> Replica<D, A> {
    /// The cluster as this node sees it now.
    #[must_use]
    pub fn view(&self) -> View {
        let metrics = self.raft().metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let joint = membership.get_joint_config().len() > 1;
        let end = self.log().last().map_or(0, |last| last.end);
        let leads = metrics.replication.is_some();
        let member = |id: u64, node: &Node| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let matched = matched.map(|id| id.index());
            let has = matched.and_then(|index| self.log().point(index).ok().flatten()).map_or(0, |at| at.end);
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let silent =
                heard.map(|at| u64::try_from(at.into_inner().elapsed().as_millis()).unwrap_or(u64::MAX));
            let own = id == self.node();
            Member {
                node: node.clone(),
                voter: voters.contains(&id),
                matched,
                lag_bytes: leads.then(|| if own { 0 } else { end.saturating_sub(has) }),
                silent_ms: if own && leads { Some(0) } else { silent },
            }
        };
        View {
            node: self.node(),
            role: *self.role().borrow(),
            term: metrics.current_term,
            members: membership.nodes().map(|(id, node)| (*id, member(*id, node))).collect(),
            changing: joint
                || metrics.committed_membership_config.log_id() != metrics.membership_config.log_id(),
            joint,
            last: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index()),
            applied: metrics.last_applied.map(|id| id.index()),
        }
    }

    /// Adds a node with an empty store: it gets the log and does not count for the majority.
    ///
    /// # Errors
    /// When this node does not lead, another change is under way, or the replica has failed.
    pub async fn add_learner(&self, id: u64, node: Node) -> io::Result<()> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, node)]))).await
    }

    /// Lets learners count for the majority. With nobody it ends a change that was begun.
    ///
    /// # Errors
    /// As [`Replica::add_learner`].
    pub async fn promote(&self, ids: BTreeSet<u64>) -> io::Result<()> {
        self.change(ChangeMembers::AddVoterIds(ids)).await
    }

    /// Says anew where a member is reached, or which store it has.
    ///
    /// # Errors
    /// As [`Replica::add_learner`].
    pub async fn describe(&self, id: u64, node: Node) -> io::Result<()> {
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, node)]))).await
    }

    /// Takes a member out, whatever it is.
    ///
    /// # Errors
    /// As [`Replica::add_learner`]; when it is the last voter.
    pub async fn remove(&self, id: u64) -> io::Result<()> {
        let votes = self.view().members.get(&id).is_some_and(|member| member.voter);
        if votes {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await?;
        }
        if self.view().members.contains_key(&id) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await?;
        }
        Ok(())
    }

    async fn change(&self, change: ChangeMembers<u64, Node>) -> io::Result<()> {
        let changed = self.raft().change_membership(change, true).await;
        changed.map(drop).map_err(|error| self.said(&error))
    }
}
