//! When something broke: crashes and leader changes, and clients that lost what they held.
//!
//! Owns: these spans. Promises: answers in logarithmic time, since millions of deliveries ask.
//! Does not know: messages.

use std::collections::HashMap;

use crate::history::event::{Event, Name, Op};

#[derive(Debug, Default)]
pub(super) struct Breaks {
    crashes: Spans,
    /// Crashes, and changes of the leader alone.
    changes: Spans,
    lost: HashMap<(Name, Option<Name>), Spans>,
    /// Beginnings and ends of crashes, in order, each with how many crashes are open after it.
    edges: Vec<(u64, u32)>,
}

/// Spans by their ends; with each, the earliest beginning of it and all later ones.
#[derive(Debug, Default)]
struct Spans(Vec<(u64, u64)>);

impl Spans {
    fn push(&mut self, event: &Event) {
        self.0.push((event.t1, event.t0));
    }

    fn arrange(&mut self) {
        self.0.sort_unstable();
        let mut earliest = u64::MAX;
        for (_, begin) in self.0.iter_mut().rev() {
            earliest = earliest.min(*begin);
            *begin = earliest;
        }
    }

    /// The earliest beginning among the spans not over before `since`.
    fn first(&self, since: u64) -> Option<u64> {
        let later = self.0.partition_point(|(end, _)| *end < since);
        self.0.get(later).map(|(_, begin)| *begin)
    }
}

impl Breaks {
    pub(super) fn of(events: &[Event]) -> Self {
        let mut breaks = Self::default();
        for event in events {
            match event.op {
                Op::Crash => {
                    breaks.crashes.push(event);
                    breaks.changes.push(event);
                }
                Op::Leader { .. } => breaks.changes.push(event),
                Op::Lost { queue } => breaks.lost.entry((event.client, queue)).or_default().push(event),
                _ => {}
            }
        }
        breaks.edges = edges(&breaks.crashes);
        breaks.crashes.arrange();
        breaks.changes.arrange();
        breaks.lost.values_mut().for_each(Spans::arrange);
        breaks
    }

    /// When the first crash began that was not over before `since`.
    pub(super) fn crash(&self, since: u64) -> Option<u64> {
        self.crashes.first(since)
    }

    /// When the first crash, or change of the leader, began that was not over before `since`.
    pub(super) fn change(&self, since: u64) -> Option<u64> {
        self.changes.first(since)
    }

    /// When `client` first lost its hold on `queue`, by its own end or by a crash, not before `since`.
    pub(super) fn loss(&self, client: Name, queue: Name, since: u64) -> Option<u64> {
        let of = |queue| self.lost.get(&(client, queue)).and_then(|spans| spans.first(since));
        [self.crash(since), of(None), of(Some(queue))].into_iter().flatten().min()
    }

    /// When `client` lost its hold on `queue`, if that is what is under way at `at`; no crash.
    pub(super) fn losing(&self, client: Name, queue: Name, at: u64) -> Option<u64> {
        let of = |queue| self.lost.get(&(client, queue)).and_then(|spans| spans.first(at));
        [of(None), of(Some(queue))].into_iter().flatten().min().filter(|begin| *begin <= at)
    }

    /// When `client` first lost all it held, not before `since`.
    pub(super) fn end_of(&self, client: Name, since: u64) -> Option<u64> {
        let all = self.lost.get(&(client, None)).and_then(|spans| spans.first(since));
        [self.crash(since), all].into_iter().flatten().min()
    }

    /// When the stretch without a crash that `at` lies in began; none inside a crash, where before and after mix.
    pub(super) fn epoch(&self, at: u64) -> Option<u64> {
        let passed = self.edges.partition_point(|(edge, _)| *edge <= at);
        match passed.checked_sub(1).map(|last| self.edges[last]) {
            None => Some(0),
            Some((edge, 0)) => Some(edge),
            Some(_) => None,
        }
    }
}

fn edges(crashes: &Spans) -> Vec<(u64, u32)> {
    // At one instant a crash that begins comes before one that ends: both are open there.
    let mut edges: Vec<(u64, bool)> = Vec::new();
    for (end, begin) in &crashes.0 {
        edges.push((*begin, false));
        edges.push((*end, true));
    }
    edges.sort_unstable();
    let mut open = 0;
    let count = |(at, ends): (u64, bool)| {
        if ends {
            open -= 1;
        } else {
            open += 1;
        }
        (at, open)
    };
    edges.into_iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::tale;

    #[test]
    fn the_first_loss_is_found_whether_it_hits_one_queue_all_or_the_broker() {
        let history = tale(&[
            "c lost t0=10 t1=20 queue=q",
            "c lost t0=30 t1=40",
            "broker crash t0=50 t1=60",
            "d lost t0=1 t1=99",
        ]);
        let breaks = Breaks::of(history.events());
        let [c, q] = ["c", "q"].map(|text| history.names().find(text).unwrap());
        let loss = |since| breaks.loss(c, q, since);
        assert_eq!([0, 20, 21, 41, 60, 61].map(loss), [10, 10, 30, 50, 50, 0].map(|t| (t > 0).then_some(t)));
        assert_eq!(breaks.end_of(c, 0), Some(30));
        assert_eq!([0, 60, 61].map(|since| breaks.crash(since)), [Some(50), Some(50), None]);
    }

    #[test]
    fn instants_inside_a_crash_belong_to_no_epoch_and_those_around_it_to_two() {
        let history = tale(&["n1 crash t0=10 t1=30", "n2 crash t0=20 t1=40"]);
        let breaks = Breaks::of(history.events());
        assert_eq!([10, 25, 35].map(|at| breaks.epoch(at)), [None, None, None]);
        assert_eq!([9, 41, 1_000].map(|at| breaks.epoch(at)), [Some(0), Some(40), Some(40)]);
    }
}
