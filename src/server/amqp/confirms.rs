//! Confirms of one channel: which publishes the broker has answered, and how few frames say so.
//!
//! Owns: the numbering of publishes and what was said about each.
//! Promises: each publish is acked or nacked exactly once; `multiple` is set only when everything up to the tag is answered; what
//! is answered while an earlier publish is still open is said one by one, at once, because it may take long.
//! Does not know: frames, when to write them.

use std::collections::BTreeMap;

/// One basic.ack or basic.nack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confirm {
    /// The publish, or with `multiple` all up to it.
    pub(super) tag: u64,
    /// Everything up to `tag`.
    pub(super) multiple: bool,
    /// false: nack.
    pub(super) accepted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// confirm.select was seen.
    enabled: bool,
    /// Number of the last publish.
    published: u64,
    /// Everything up to here was said.
    said: u64,
    /// Answered and said beyond `said`: first → last, disjoint and not adjacent.
    ahead: BTreeMap<u64, u64>,
    /// Answered, not yet said, in the order of the answers.
    fresh: Vec<(u64, u64, bool)>,
}

impl Confirms {
    /// From now on publishes are numbered.
    pub(super) fn enable(&mut self) {
        self.enabled = true;
    }

    /// confirm.select was seen.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Publishes that were not answered yet.
    pub(super) fn open(&self) -> u64 {
        let ahead: u64 = self.ahead.iter().map(|(first, last)| last - first + 1).sum();
        self.published - self.said - ahead
    }

    /// The number of the next publish; 0 without confirm mode.
    pub(super) fn next(&mut self) -> u64 {
        self.published += u64::from(self.enabled);
        if self.enabled { self.published } else { 0 }
    }

    /// The broker has answered `first..=last`.
    pub(super) fn answered(&mut self, first: u64, last: u64, accepted: bool) {
        match self.fresh.last_mut() {
            Some(open) if open.2 == accepted && open.1 + 1 == first => open.1 = last,
            _ => self.fresh.push((first, last, accepted)),
        }
    }

    /// Says everything that was answered since the last call.
    pub(super) fn say(&mut self, mut frame: impl FnMut(Confirm)) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable_by_key(|range| range.0);
        let mut open: Option<Confirm> = None;
        for (first, last, accepted) in fresh.drain(..) {
            if first != self.said + 1 {
                self.say_ahead(first, last, accepted, &mut frame);
                continue;
            }
            // Runs of the same answer melt into one frame; a change of answer cuts.
            if let Some(confirm) = open.take_if(|confirm| confirm.accepted != accepted) {
                frame(confirm);
            }
            let single = open.is_none() && first == last;
            self.said = last;
            open = Some(Confirm { tag: last, multiple: !single, accepted });
            self.absorb();
        }
        open.into_iter().for_each(frame);
        self.fresh = fresh;
    }

    fn say_ahead(&mut self, first: u64, last: u64, accepted: bool, frame: &mut impl FnMut(Confirm)) {
        for tag in first..=last {
            frame(Confirm { tag, multiple: false, accepted });
        }
        let first = match self.ahead.range(..first).next_back() {
            Some((&start, &end)) if end + 1 == first => start,
            _ => first,
        };
        let last = self.ahead.remove(&(last + 1)).unwrap_or(last);
        self.ahead.insert(first, last);
    }

    /// What was said one by one is behind us when the gap before it is closed.
    fn absorb(&mut self) {
        while let Some(last) = self.ahead.remove(&(self.said + 1)) {
            self.said = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(confirms: &mut Confirms) -> Vec<(u64, bool, bool)> {
        let mut said = Vec::new();
        confirms.say(|c| said.push((c.tag, c.multiple, c.accepted)));
        said
    }

    #[test]
    fn without_confirm_mode_publishes_have_no_number() {
        let mut confirms = Confirms::default();
        assert_eq!(confirms.next(), 0);
        confirms.enable();
        assert_eq!((confirms.next(), confirms.next()), (1, 2));
    }

    #[test]
    fn answers_in_a_row_are_one_frame() {
        let mut confirms = Confirms::default();
        confirms.answered(1, 3, true);
        confirms.answered(4, 4, true);
        assert_eq!(say(&mut confirms), [(4, true, true)]);
        confirms.answered(5, 5, true);
        assert_eq!(say(&mut confirms), [(5, false, true)]);
        assert!(confirms.fresh.is_empty());
    }

    #[test]
    fn what_overtakes_an_open_publish_is_said_one_by_one() {
        let mut confirms = Confirms::default();
        confirms.answered(3, 4, true);
        assert_eq!(say(&mut confirms), [(3, false, true), (4, false, true)]);
        confirms.answered(1, 1, true);
        assert_eq!(say(&mut confirms), [(1, false, true)]);
        confirms.answered(2, 2, true);
        assert_eq!(say(&mut confirms), [(2, false, true)]);
        confirms.answered(5, 6, true);
        assert_eq!(say(&mut confirms), [(6, true, true)]);
    }

    #[test]
    fn a_nack_cuts_the_run() {
        let mut confirms = Confirms::default();
        confirms.answered(1, 2, true);
        confirms.answered(3, 3, false);
        confirms.answered(4, 6, true);
        assert_eq!(say(&mut confirms), [(2, true, true), (3, false, false), (6, true, true)]);
    }

    #[test]
    fn every_publish_is_said_exactly_once_whatever_the_order_of_answers() {
        // A fixed permutation of 1..=200 with answers taken in batches of 7.
        let mut order: Vec<u64> = (1..=200).collect();
        order.sort_unstable_by_key(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
        let mut confirms = Confirms::default();
        let mut settled = std::collections::BTreeSet::new();
        let mut answered = std::collections::BTreeSet::new();
        for batch in order.chunks(7) {
            for &n in batch {
                confirms.answered(n, n, n % 9 != 0);
                answered.insert(n);
            }
            for (tag, multiple, accepted) in say(&mut confirms) {
                let first = if multiple { 1 } else { tag };
                for n in first..=tag {
                    assert!(answered.contains(&n), "{n} was still open");
                    if settled.insert(n) {
                        assert_eq!(accepted, n % 9 != 0, "{n}");
                    }
                }
            }
        }
        assert_eq!(settled.len(), 200);
        assert!(confirms.ahead.is_empty());
    }
}
