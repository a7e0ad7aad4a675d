//! Bytes of votes, memberships, and of what a checkpoint must remember of them.
//!
//! Owns: three small formats, little-endian. Promises: what was encoded decodes to itself, and every other sequence of bytes
//! is refused with a reason. Does not know: where they are kept.
//!
//! **Membership** (payload of a batch of kind 3):
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 2 |
//! | 1 | 1 | number of voter sets: 1, or 2 while the members change |
//! | 2 | 2 | number of nodes |
//! | 4 | 4 | reserved |
//!
//! then per node, in ascending order: id (8), its store's UUID (16, zeros: not known yet), length of its address (2), the address
//! (UTF-8); then per voter set: number of
//! voters (2), their ids (8 each, ascending). A node in no set learns without a vote. Version 1 has no UUIDs; it is read still.
//!
//! **Record of the membership** (a checkpoint's object): version 1 (1), whether there is an index (1), reserved (6), term (8),
//! index (8) of the batch that set it, then the membership.
//!
//! **Vote** (hard state): term (8), node voted for (8), 1 when a quorum granted it (1).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dassie_storage::{LogPoint, NewBatch, Uuid};
use openraft::vote::RaftLeaderId;

use super::types::{LeaderId, LogId, Members, Node, StoredMembership, Vote};

const VERSION: u8 = 2;
/// Of the record, and of memberships without stores.
const FIRST_VERSION: u8 = 1;
const HEAD: usize = 8;
const RECORD_HEAD: usize = 24;

/// Why bytes are not what they should be.
pub(crate) type Reason = &'static str;

/// Takes bytes off the front.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let (head, rest) = self.0.split_at_checked(len).ok_or("cut short")?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, Reason> {
        Ok(u16::from_le_bytes(self.bytes(2)?.try_into().expect("two bytes")))
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().expect("eight bytes")))
    }

    fn end(&self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes behind the end") }
    }
}

fn count(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("a cluster has fewer than 65536 members").to_le_bytes()
}

pub(crate) fn encode_membership(members: &Members) -> Vec<u8> {
    let sets = members.get_joint_config();
    let nodes: Vec<_> = members.nodes().collect();
    let mut bytes = vec![VERSION, u8::try_from(sets.len()).expect("at most two sets")];
    bytes.extend_from_slice(&count(nodes.len()));
    bytes.extend_from_slice(&[0; 4]);
    for (id, node) in nodes {
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&node.store);
        bytes.extend_from_slice(&count(node.address.len()));
        bytes.extend_from_slice(node.address.as_bytes());
    }
    for set in sets {
        bytes.extend_from_slice(&count(set.len()));
        for id in set {
            bytes.extend_from_slice(&id.to_le_bytes());
        }
    }
    bytes
}

/// What goes behind the last batch of a log that becomes the log of one node alone: a membership of that node and nobody else, and the
/// vote of the term in which it says so. Whoever was a member before is none, and no vote of theirs counts.
#[must_use]
pub fn alone_behind(last: LogPoint, node: u64, store: Uuid) -> (NewBatch, Bytes) {
    let myself = Node { address: String::new(), store };
    let members = Members::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, myself)]));
    let payload = encode_membership(&members.expect("its only voter is a node")).into();
    let term = last.term + 1;
    let vote = Vote { leader_id: LeaderId::new(term, node), committed: true };
    let batch =
        NewBatch { term, leader: node, index: last.index + 1, kind: super::log_store::MEMBERSHIP, payload };
    (batch, Bytes::copy_from_slice(&encode_vote(&vote)))
}

pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Members, Reason> {
    let mut cut = Cut(bytes);
    let head = cut.bytes(HEAD)?;
    if !(FIRST_VERSION..=VERSION).contains(&head[0]) {
        return Err("a membership of another version");
    }
    if head[4..] != [0; 4] {
        return Err("reserved bytes of a membership are not zero");
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..u16::from_le_bytes([head[2], head[3]]) {
        let id = cut.u64()?;
        let store = match head[0] {
            FIRST_VERSION => [0; 16],
            _ => cut.bytes(16)?.try_into().expect("sixteen bytes"),
        };
        let len = usize::from(cut.u16()?);
        let address = std::str::from_utf8(cut.bytes(len)?).map_err(|_| "an address is not UTF-8")?;
        nodes.insert(id, Node { address: address.to_owned(), store });
    }
    let mut sets = Vec::new();
    for _ in 0..head[1] {
        let voters = cut.u16()?;
        sets.push((0..voters).map(|_| cut.u64()).collect::<Result<BTreeSet<u64>, Reason>>()?);
    }
    cut.end()?;
    Members::new(sets, nodes).map_err(|_| "a membership with a voter that is no node")
}

pub(crate) fn encode_record(stored: &StoredMembership) -> Vec<u8> {
    let mut bytes = vec![FIRST_VERSION, u8::from(stored.log_id().is_some()), 0, 0, 0, 0, 0, 0];
    let (term, index) = stored.log_id().map_or((0, 0), |id| (**id.committed_leader_id(), id.index()));
    bytes.extend_from_slice(&term.to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&encode_membership(stored.membership()));
    bytes
}

pub(crate) fn decode_record(bytes: &[u8]) -> Result<StoredMembership, Reason> {
    let mut cut = Cut(bytes);
    let head = cut.bytes(RECORD_HEAD)?;
    if head[0] != FIRST_VERSION || head[1] > 1 || head[2..8] != [0; 6] {
        return Err("not a record of a membership");
    }
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let id = (head[1] == 1).then(|| log_id(u64_at(8), u64_at(16)));
    Ok(StoredMembership::new(id, decode_membership(cut.0)?))
}

pub(crate) fn encode_vote(vote: &Vote) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[..8].copy_from_slice(&vote.leader_id.term.to_le_bytes());
    bytes[8..16].copy_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    bytes[16] = u8::from(vote.committed);
    bytes
}

pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Vote, Reason> {
    let mut cut = Cut(bytes);
    let leader_id = LeaderId::new(cut.u64()?, cut.u64()?);
    let committed = match cut.bytes(1)? {
        [0] => false,
        [1] => true,
        _ => return Err("neither granted nor not"),
    };
    cut.end()?;
    Ok(Vote { leader_id, committed })
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        let store = |n: u64| [u8::try_from(n).expect("small"); 16];
        let node = |n: u64| (n, Node { address: format!("node{n}:5680"), store: store(n) });
        Members::new(vec![[1, 2, 3].into(), [2, 3, 4].into()], BTreeMap::from([1, 2, 3, 4, 9].map(node)))
            .expect("a sound membership")
    }

    #[test]
    fn a_membership_and_its_record_survive_their_bytes() {
        let members = members();
        assert_eq!(decode_membership(&encode_membership(&members)).as_ref(), Ok(&members));
        for id in [None, Some(log_id(7, 11))] {
            let stored = StoredMembership::new(id, members.clone());
            assert_eq!(decode_record(&encode_record(&stored)), Ok(stored));
        }
        let empty = StoredMembership::default();
        assert_eq!(decode_record(&encode_record(&empty)), Ok(empty));
    }

    #[test]
    fn a_membership_of_the_first_version_is_read_without_stores() {
        let mut bytes = vec![1, 1, 1, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, b'a']);
        bytes.extend_from_slice(&[1, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        let members = decode_membership(&bytes).expect("reads");
        assert_eq!(members.get_node(&7), Some(&Node { address: "a".into(), store: [0; 16] }));
        assert!(decode_membership(&[&[3], &bytes[1..]].concat()).is_err());
    }

    #[test]
    fn a_cut_or_longer_membership_is_refused() {
        let stored = StoredMembership::new(Some(log_id(1, 2)), members());
        let mut bytes = encode_record(&stored);
        for len in 0..bytes.len() {
            assert!(decode_record(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes.push(0);
        assert!(decode_record(&bytes).is_err());
    }

    #[test]
    fn a_vote_survives_its_bytes() {
        for committed in [false, true] {
            let vote = Vote { leader_id: LeaderId::new(1 << 40, 3), committed };
            assert_eq!(decode_vote(&encode_vote(&vote)), Ok(vote));
        }
        assert!(decode_vote(&[0; 16]).is_err());
        assert!(decode_vote(&[2; 17]).is_err());
    }
}
