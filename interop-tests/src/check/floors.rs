//! How far each group had certainly consumed each queue, at any instant.
//!
//! Owns: confirmed commits and reads of stored offsets between resets. Promises: a floor counts from the end of the
//! request that proved it; a reset forgets what was before it, and what ran beside it; a commit whose client never heard of it may
//! have its effect at any later time, so no floor is above it.
//! Does not know: messages.

use std::collections::HashMap;

use crate::history::event::{Cursor, Event, Name, Offset, Op};

#[derive(Debug, Default)]
pub(super) struct Floors(HashMap<Key, Floor>);

type Key = (Name, u16, Name);

#[derive(Debug)]
struct Floor {
    /// Each from a reset on; the first from the beginning.
    stretches: Vec<Stretch>,
    /// Commits that may have happened, whatever their outcome.
    highest: Option<Offset>,
    /// Commits of unknown outcome, without a confirmed one behind them of the same client: who, when, where.
    open: Vec<(Name, u64, Offset)>,
}

#[derive(Debug)]
struct Stretch {
    since: u64,
    /// Proofs that began before this instant ran beside the reset.
    settled: u64,
    /// Where the reset that began it may have set the cursor.
    reset_to: Option<Offset>,
    /// End of a proof, highest offset proven by then, the proof's index.
    proofs: Vec<(u64, Offset, usize)>,
}

impl Default for Floor {
    fn default() -> Self {
        let first = Stretch { since: 0, settled: 0, reset_to: None, proofs: Vec::new() };
        Self { stretches: vec![first], highest: None, open: Vec::new() }
    }
}

impl Floors {
    pub(super) fn of(events: &[Event]) -> Self {
        let mut floors = Self::default();
        for (index, event) in events.iter().enumerate().filter(|(_, event)| event.may_have_happened()) {
            match event.op {
                Op::Commit(cursor) => {
                    let floor = floors.of_cursor(&cursor);
                    floor.highest = floor.highest.max(Some(cursor.offset));
                    if event.happened() {
                        // One client's commits take effect in their order.
                        floor.open.retain(|(client, ..)| *client != event.client);
                    } else {
                        floor.open.push((event.client, event.t0, cursor.offset));
                    }
                    floor.prove(index, event, cursor.offset);
                }
                Op::Committed(cursor) => floors.of_cursor(&cursor).prove(index, event, cursor.offset),
                Op::Reset(cursor) => floors.of_cursor(&cursor).reset(index, event, cursor.offset),
                _ => {}
            }
        }
        floors.0.values_mut().flat_map(|floor| &mut floor.stretches).for_each(Stretch::arrange);
        floors
    }

    fn of_cursor(&mut self, cursor: &Cursor) -> &mut Floor {
        self.0.entry(key(cursor)).or_default()
    }

    /// The offset below which the group had consumed everything by `at`, with the event that proves it.
    pub(super) fn floor(&self, cursor: &Cursor, at: u64) -> Option<(Offset, usize)> {
        let Floor { stretches, open, .. } = self.0.get(&key(cursor))?;
        let current = stretches.partition_point(|stretch| stretch.since < at).checked_sub(1)?;
        let proofs = &stretches[current].proofs;
        let last = proofs.partition_point(|(end, ..)| *end < at).checked_sub(1)?;
        let late = open.iter().filter(|(_, since, _)| *since < at).map(|(.., offset)| *offset).min();
        let (_, proven, index) = proofs[last];
        Some((late.map_or(proven, |late| proven.min(late)), index))
    }

    /// The highest offset that the group may ever have committed.
    pub(super) fn highest(&self, cursor: &Cursor) -> Option<Offset> {
        self.0.get(&key(cursor))?.highest
    }

    /// When the first reset since `since` began that may have set the group back to `cursor` or before.
    pub(super) fn set_back(&self, cursor: &Cursor, since: u64) -> Option<u64> {
        let stretches = &self.0.get(&key(cursor))?.stretches;
        let back = |stretch: &&Stretch| {
            stretch.settled >= since && stretch.reset_to.is_some_and(|offset| offset <= cursor.offset)
        };
        stretches.iter().find(back).map(|stretch| stretch.since)
    }

    /// Whether the group was ever set forth or back on purpose.
    pub(super) fn was_reset(&self, cursor: &Cursor) -> bool {
        self.0.get(&key(cursor)).is_some_and(|floor| floor.stretches.len() > 1)
    }
}

fn key(cursor: &Cursor) -> Key {
    (cursor.queue, cursor.part, cursor.group)
}

impl Floor {
    fn prove(&mut self, index: usize, event: &Event, offset: Offset) {
        let stretch = self.stretches.last_mut().expect("there is always the first");
        if event.happened() && event.t0 >= stretch.settled {
            stretch.proofs.push((event.t1, offset, index));
        }
    }

    fn reset(&mut self, index: usize, event: &Event, offset: Offset) {
        let settled = self.stretches.last().map_or(0, |stretch| stretch.settled).max(event.t1);
        let mut stretch = Stretch { since: event.t0, settled, reset_to: Some(offset), proofs: Vec::new() };
        if event.happened() && settled == event.t1 {
            stretch.proofs.push((event.t1, offset, index));
        }
        self.stretches.push(stretch);
    }
}

impl Stretch {
    fn arrange(&mut self) {
        self.proofs.sort_unstable();
        let mut best: Option<(Offset, usize)> = None;
        for (_, offset, index) in &mut self.proofs {
            match best {
                Some((higher, by)) if higher > *offset => (*offset, *index) = (higher, by),
                _ => best = Some((*offset, *index)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::tale;

    fn floor_at(lines: &[&str], at: u64) -> Option<u64> {
        let history = tale(lines);
        let [queue, group] = ["t", "g"].map(|text| history.names().find(text).unwrap());
        let cursor = Cursor { queue, group, part: 0, offset: Offset::new(0).unwrap() };
        Floors::of(history.events()).floor(&cursor, at).map(|(offset, _)| offset.get())
    }

    #[test]
    fn a_floor_counts_from_the_end_of_the_commit_that_proved_it() {
        let lines = ["c commit queue=t group=g offset=5 t0=10 t1=20"];
        assert_eq!((floor_at(&lines, 20), floor_at(&lines, 21)), (None, Some(5)));
    }

    #[test]
    fn a_lower_commit_or_one_of_unknown_outcome_moves_no_floor() {
        let lines = [
            "c commit queue=t group=g offset=5 t0=10 t1=20",
            "c commit queue=t group=g offset=3 t0=30 t1=40",
            "c commit queue=t group=g offset=9 t0=50 t1=60 outcome=info",
        ];
        assert_eq!(floor_at(&lines, 100), Some(5));
    }

    #[test]
    fn a_commit_that_nobody_heard_of_may_come_late_unless_its_client_heard_of_a_later_one() {
        let lines = [
            "old commit queue=t group=g offset=3 t0=10 t1=10 outcome=info",
            "new commit queue=t group=g offset=8 t0=30 t1=40",
        ];
        assert_eq!(floor_at(&lines, 50), Some(3));
        let again = [&lines[..], &["old commit queue=t group=g offset=9 t0=60 t1=70"]].concat();
        assert_eq!(floor_at(&again, 100), Some(9));
    }

    #[test]
    fn a_reset_forgets_what_was_before_it_and_what_ran_beside_it() {
        let lines = [
            "c commit queue=t group=g offset=5 t0=10 t1=20",
            "h reset queue=t group=g offset=1 t0=30 t1=40",
            "c commit queue=t group=g offset=6 t0=35 t1=45",
            "c commit queue=t group=g offset=2 t0=50 t1=60",
        ];
        let at = |at| floor_at(&lines, at);
        assert_eq!([25, 31, 41, 50, 61].map(at), [Some(5), None, Some(1), Some(1), Some(2)]);
    }
}
