//! Where messages may go and where they are owed, as the history declares it.
//!
//! Owns: routes followed to their queues, dead-letter ways, subscriptions, allowances, purges.
//! Promises: a place nothing is routed from is its own queue; a route counts as owed only after it was confirmed, and as
//! possible from when it was asked for. Does not know: messages.

use std::collections::{HashMap, HashSet};

use crate::history::event::{Allowance, Event, Name, Op};

/// A queue that a place leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sink {
    pub(super) queue: Name,
    /// What is published from here on may arrive.
    pub(super) may_from: u64,
    /// What is published from here on must arrive.
    pub(super) owed_from: u64,
}

#[derive(Debug, Default)]
pub(super) struct Topology {
    sinks: HashMap<Name, Vec<Sink>>,
    deaths: HashMap<Name, Vec<Name>>,
    death_targets: HashSet<Name>,
    groups: HashMap<Name, Vec<(Name, u64)>>,
    allowances: HashMap<(Name, Allowance), Option<u64>>,
    purges: HashMap<Name, u64>,
    singles: HashSet<Name>,
}

type Routes = HashMap<Name, Vec<Sink>>;

impl Topology {
    pub(super) fn of(events: &[Event]) -> Self {
        let mut topology = Self::default();
        let mut routes = Routes::new();
        let mut dies_to: HashMap<Name, Vec<Name>> = HashMap::new();
        for event in events.iter().filter(|event| event.may_have_happened()) {
            match event.op {
                Op::Route { from, queue } => {
                    let owed_from = if event.happened() { event.t1 } else { u64::MAX };
                    routes.entry(from).or_default().push(Sink { queue, may_from: event.t0, owed_from });
                }
                Op::DeadLetter { from, queue } => dies_to.entry(from).or_default().push(queue),
                Op::Subscribe { queue, group } => {
                    topology.groups.entry(queue).or_default().push((group, event.t1));
                }
                Op::Allow { queue, what, count } => topology.allow(queue, what, count),
                Op::Purge { queue } => {
                    let last = topology.purges.entry(queue).or_default();
                    *last = event.t1.max(*last);
                }
                Op::Single { queue } => {
                    topology.singles.insert(queue);
                }
                Op::Publish(publish) => {
                    topology.sinks.entry(publish.queue).or_default();
                }
                _ => {}
            }
        }
        for (from, sinks) in &mut topology.sinks {
            *sinks = follow(&routes, *from);
        }
        topology.death_targets = dies_to.values().flatten().copied().collect();
        topology.deaths = dies_to.keys().map(|queue| (*queue, reachable(&dies_to, *queue))).collect();
        topology
    }

    /// Counts of one allowance add up; one without a count lifts the bound.
    fn allow(&mut self, queue: Name, what: Allowance, count: Option<u64>) {
        let bound = self.allowances.entry((queue, what)).or_insert(Some(0));
        *bound = bound.zip(count).map(|(a, b)| a + b);
    }

    /// The queues that publishes to `place` lead to.
    pub(super) fn sinks(&self, place: Name) -> &[Sink] {
        self.sinks.get(&place).map_or(&[], Vec::as_slice)
    }

    /// All queues that a message can reach by dying in `queue`; with `queue` itself if it can come back.
    pub(super) fn deaths(&self, queue: Name) -> &[Name] {
        self.deaths.get(&queue).map_or(&[], Vec::as_slice)
    }

    pub(super) fn is_death_target(&self, queue: Name) -> bool {
        self.death_targets.contains(&queue)
    }

    /// The groups that want all of `queue`, each with the instant from which on. None: a queue without groups.
    pub(super) fn groups(&self, queue: Name) -> Option<&[(Name, u64)]> {
        self.groups.get(&queue).map(Vec::as_slice)
    }

    /// How often `queue` may do `what`: none for never, none inside for any number.
    pub(super) fn allowance(&self, queue: Name, what: Allowance) -> Option<Option<u64>> {
        self.allowances.get(&(queue, what)).copied()
    }

    pub(super) fn may_reorder(&self, queue: Name) -> bool {
        self.allowance(queue, Allowance::Reorder).is_some()
    }

    pub(super) fn may_have_holes(&self, queue: Name) -> bool {
        self.allowance(queue, Allowance::Holes).is_some()
    }

    /// Whether a purge of `queue` may have removed what was published at `t0`.
    pub(super) fn purged_after(&self, queue: Name, t0: u64) -> bool {
        self.purges.get(&queue).is_some_and(|end| *end > t0)
    }

    pub(super) fn singles(&self) -> &HashSet<Name> {
        &self.singles
    }
}

/// Follows routes from `place` to the queues at their ends.
fn follow(routes: &Routes, place: Name) -> Vec<Sink> {
    let mut found = Vec::new();
    let start = Sink { queue: place, may_from: 0, owed_from: 0 };
    step(routes, start, &mut vec![place], &mut found);
    found
}

/// `path` keeps exchanges that are bound in a ring from being followed for ever.
fn step(routes: &Routes, here: Sink, path: &mut Vec<Name>, found: &mut Vec<Sink>) {
    let Some(ways) = routes.get(&here.queue) else {
        return arrive(here, found);
    };
    for way in ways {
        let next = Sink {
            queue: way.queue,
            may_from: here.may_from.max(way.may_from),
            owed_from: here.owed_from.max(way.owed_from),
        };
        if next.queue == here.queue {
            arrive(next, found);
        } else if !path.contains(&next.queue) {
            path.push(next.queue);
            step(routes, next, path, found);
            path.pop();
        }
    }
}

/// A queue reached on several ways still gets one copy, from the first way on.
fn arrive(sink: Sink, found: &mut Vec<Sink>) {
    match found.iter_mut().find(|known| known.queue == sink.queue) {
        Some(known) => {
            known.may_from = known.may_from.min(sink.may_from);
            known.owed_from = known.owed_from.min(sink.owed_from);
        }
        None => found.push(sink),
    }
}

fn reachable(ways: &HashMap<Name, Vec<Name>>, from: Name) -> Vec<Name> {
    let mut found = Vec::new();
    let mut open = vec![from];
    while let Some(here) = open.pop() {
        for next in ways.get(&here).into_iter().flatten() {
            if !found.contains(next) {
                found.push(*next);
                open.push(*next);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::tale;
    use crate::history::History;

    fn queues(history: &History, place: &str) -> Vec<String> {
        let topology = Topology::of(history.events());
        let sinks = topology.sinks(history.names().find(place).unwrap());
        sinks.iter().map(|sink| history.names().text(sink.queue).to_owned()).collect()
    }

    #[test]
    fn a_place_without_routes_is_its_own_queue() {
        assert_eq!(queues(&tale(&["p publish queue=q msg=p/1"]), "q"), ["q"]);
    }

    #[test]
    fn routes_are_followed_through_exchanges_and_rings_to_queues() {
        let history = tale(&[
            "h route from=a queue=b",
            "h route from=b queue=a",
            "h route from=b queue=q1",
            "h route from=a queue=q1",
            "h route from=a queue=q2",
            "p publish queue=a msg=p/1",
        ]);
        assert_eq!(queues(&history, "a"), ["q1", "q2"]);
    }

    #[test]
    fn a_topic_that_passes_messages_on_keeps_them_by_a_route_to_itself() {
        let history =
            tale(&["h route from=t queue=t", "h route from=t queue=q", "p publish queue=t msg=p/1"]);
        assert_eq!(queues(&history, "t"), ["t", "q"]);
    }

    #[test]
    fn a_route_of_unknown_outcome_may_lead_on_but_owes_nothing() {
        let history = tale(&["h route from=x queue=q outcome=info", "p publish queue=x msg=p/1"]);
        let topology = Topology::of(history.events());
        let [sink] = topology.sinks(history.names().find("x").unwrap()) else { panic!("one queue") };
        assert_eq!((sink.may_from, sink.owed_from), (1_000, u64::MAX));
    }

    #[test]
    fn counted_allowances_add_up_and_one_without_a_count_has_no_bound() {
        let history = tale(&[
            "h allow queue=a what=expire count=2",
            "h allow queue=a what=expire count=3",
            "h allow queue=b what=expire count=2",
            "h allow queue=b what=expire",
        ]);
        let topology = Topology::of(history.events());
        let bound = |queue| topology.allowance(history.names().find(queue).unwrap(), Allowance::Expire);
        assert_eq!((bound("a"), bound("b")), (Some(Some(5)), Some(None)));
        assert_eq!(topology.allowance(history.names().find("a").unwrap(), Allowance::Overflow), None);
    }
}
