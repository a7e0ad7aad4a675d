//! Deliveries of one channel that the client has not settled.
//!
//! Owns: delivery tags, and which lease each open tag stands for.
//! Promises: tags count from 1 and are never reused in a channel; looking one up costs a subtraction when all are open in a row
//! and a binary search otherwise; memory is that of the open deliveries, however long one of them stays open.
//! Does not know: consumers, verbs, frames.

use std::collections::VecDeque;

use crate::broker::api::{Offset, ReaderId};

/// What a delivery tag stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    /// Who holds it.
    pub(super) reader: ReaderId,
    /// Which message of the reader's queue.
    pub(super) offset: Offset,
}

/// A delivery that is not settled, under its tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    tag: u64,
    lease: Lease,
    settled: bool,
}

impl Open {
    /// What its tag stands for.
    pub(super) fn lease(&self) -> Lease {
        self.lease
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    last: u64,
    /// By tag, ascending; the first one is never settled.
    open: VecDeque<Open>,
    /// Settled entries that still stand in `open`.
    holes: usize,
}

/// The client named a delivery tag that is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnknownTag(pub(super) u64);

impl Unacked {
    /// The tag of a delivery that needs no ack.
    pub(super) fn skip(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The tag of a delivery that the client must settle.
    pub(super) fn push(&mut self, lease: Lease) -> u64 {
        let tag = self.skip();
        self.open.push_back(Open { tag, lease, settled: false });
        tag
    }

    /// Takes out the one message that an ack names; `None`: it names several, use [`Unacked::take`].
    pub(super) fn take_one(&mut self, tag: u64, multiple: bool) -> Result<Option<Lease>, UnknownTag> {
        if multiple {
            return Ok(None);
        }
        let at = self.find(tag).ok_or(UnknownTag(tag))?;
        let lease = self.open[at].lease;
        self.open[at].settled = true;
        self.holes += 1;
        self.tidy();
        Ok(Some(lease))
    }

    /// Takes out what an ack names: one tag, all up to it, or (0 and `multiple`) all.
    pub(super) fn take(&mut self, tag: u64, multiple: bool, into: &mut Vec<Lease>) -> Result<(), UnknownTag> {
        if tag == 0 && multiple {
            into.extend(self.take_all());
            return Ok(());
        }
        if let Some(lease) = self.take_one(tag, multiple)? {
            into.push(lease);
            return Ok(());
        }
        let at = self.find(tag).ok_or(UnknownTag(tag))?;
        let taken = self.open.drain(..=at).filter(|entry| !entry.settled);
        let before = into.len();
        into.extend(taken.map(|entry| entry.lease));
        self.holes -= (at + 1) - (into.len() - before);
        self.tidy();
        Ok(())
    }

    /// As [`Unacked::take`], but with their tags, so that they can come back.
    pub(super) fn take_open(&mut self, tag: u64, multiple: bool) -> Result<Vec<Open>, UnknownTag> {
        let (first, last) = match (tag, multiple) {
            (0, true) => (0, self.open.len()),
            (tag, true) => (0, self.find(tag).ok_or(UnknownTag(tag))? + 1),
            (tag, false) => {
                let at = self.find(tag).ok_or(UnknownTag(tag))?;
                (at, at + 1)
            }
        };
        let taken: Vec<Open> = self.open.range(first..last).filter(|entry| !entry.settled).copied().collect();
        self.open.range_mut(first..last).for_each(|entry| entry.settled = true);
        self.holes += taken.len();
        self.tidy();
        Ok(taken)
    }

    /// What was taken with its tags is open again.
    pub(super) fn put_back(&mut self, deliveries: impl Iterator<Item = Open>) {
        self.open.retain(|entry| !entry.settled);
        self.holes = 0;
        self.open.extend(deliveries);
        self.open.make_contiguous().sort_unstable_by_key(|entry| entry.tag);
    }

    /// Takes out everything, in order of delivery.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Lease> + use<> {
        self.holes = 0;
        std::mem::take(&mut self.open).into_iter().filter(|entry| !entry.settled).map(|entry| entry.lease)
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len() - self.holes
    }

    fn find(&self, tag: u64) -> Option<usize> {
        let first = self.open.front()?.tag;
        let guess = usize::try_from(tag.checked_sub(first)?).ok()?;
        let at = match self.open.get(guess) {
            Some(entry) if entry.tag == tag => guess,
            _ => self.open.binary_search_by_key(&tag, |entry| entry.tag).ok()?,
        };
        (!self.open[at].settled).then_some(at)
    }

    fn tidy(&mut self) {
        while self.open.front().is_some_and(|entry| entry.settled) {
            self.open.pop_front();
            self.holes -= 1;
        }
        // A client that keeps one message for ever must not make us keep all later ones.
        if self.holes > 64 && self.holes > self.open.len() / 2 {
            self.open.retain(|entry| !entry.settled);
            self.holes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(count: u64) -> Unacked {
        let mut unacked = Unacked::default();
        for n in 1..=count {
            assert_eq!(unacked.push(Lease { reader: 1, offset: n + 100 }), n);
        }
        unacked
    }

    fn take(unacked: &mut Unacked, tag: u64, multiple: bool) -> Result<Vec<u64>, UnknownTag> {
        let mut leases = Vec::new();
        unacked.take(tag, multiple, &mut leases)?;
        Ok(leases.into_iter().map(|lease| lease.offset).collect())
    }

    #[test]
    fn one_tag_settles_one_message() {
        let mut unacked = with(3);
        assert_eq!(take(&mut unacked, 2, false), Ok(vec![102]));
        assert_eq!(take(&mut unacked, 2, false), Err(UnknownTag(2)));
        assert_eq!(take(&mut unacked, 3, true), Ok(vec![101, 103]));
        assert_eq!(unacked.len(), 0);
    }

    #[test]
    fn multiple_settles_all_up_to_the_tag_and_zero_settles_everything() {
        let mut unacked = with(5);
        assert_eq!(take(&mut unacked, 3, true), Ok(vec![101, 102, 103]));
        assert_eq!(take(&mut unacked, 0, true), Ok(vec![104, 105]));
        assert_eq!(take(&mut unacked, 0, true), Ok(vec![]));
        assert_eq!(take(&mut unacked, 0, false), Err(UnknownTag(0)));
    }

    #[test]
    fn what_was_taken_with_its_tags_comes_back_under_them() {
        let mut unacked = with(6);
        let mut taken = unacked.take_open(2, false).unwrap();
        assert_eq!(take(&mut unacked, 1, false), Ok(vec![101]));
        taken.extend(unacked.take_open(4, true).unwrap());
        assert_eq!(unacked.take_open(4, true).unwrap_err(), UnknownTag(4));
        unacked.put_back(taken.into_iter());
        assert_eq!(unacked.len(), 5);
        assert_eq!(take(&mut unacked, 3, false), Ok(vec![103]));
        let all: Vec<u64> = unacked.take_open(0, true).unwrap().iter().map(|o| o.lease().offset).collect();
        assert_eq!(all, [102, 104, 105, 106]);
    }

    #[test]
    fn tags_of_deliveries_without_ack_are_unknown() {
        let mut unacked = with(1);
        assert_eq!(unacked.skip(), 2);
        assert_eq!(unacked.push(Lease { reader: 1, offset: 7 }), 3);
        assert_eq!(take(&mut unacked, 2, false), Err(UnknownTag(2)));
        assert_eq!(take(&mut unacked, 3, false), Ok(vec![7]));
        assert_eq!(take(&mut unacked, 4, false), Err(UnknownTag(4)));
    }

    #[test]
    fn one_message_kept_for_ever_does_not_keep_the_later_ones() {
        let mut unacked = with(1);
        for _ in 0..10_000 {
            let tag = unacked.push(Lease { reader: 1, offset: 1 });
            assert_eq!(take(&mut unacked, tag, false), Ok(vec![1]));
        }
        assert_eq!(unacked.len(), 1);
        assert!(unacked.open.len() < 200);
        assert_eq!(take(&mut unacked, 1, false), Ok(vec![101]));
        assert!(unacked.open.is_empty());
    }
}
