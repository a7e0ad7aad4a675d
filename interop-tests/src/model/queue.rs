//! The model's queue: messages wait in order, are held by consumers, come back to their old place.
//!
//! Owns: one queue's state. Promises: what comes back is flagged, unless a crash cost the flag.
//! Does not know: events, time, who else has copies.

use std::collections::BTreeMap;

use super::dice::Dice;
use crate::history::event::{Msg, Name};

/// A copy of a message in a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    pub(super) place: u64,
    pub(super) msg: Msg,
    pub(super) redelivered: bool,
}

/// A copy that a consumer has.
#[derive(Debug, Clone, Copy)]
struct Held {
    copy: Copy,
    consumer: Name,
    /// The consumer believes that it settled it; the broker never heard of it.
    unheard: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: Name,
    pub(super) consumers: [Name; 2],
    pub(super) kind: Kind,
    ready: BTreeMap<u64, Copy>,
    held: Vec<Held>,
}

/// How a queue's messages reach its consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pushed to all its consumers.
    Pushed,
    /// Asked for one by one.
    Asked,
    /// Pushed to one active consumer.
    Single,
    /// Pushed; what waits may expire or be purged.
    Mortal,
}

const PREFETCH: usize = 8;

impl Queue {
    pub(super) fn new(name: Name, consumers: [Name; 2], kind: Kind) -> Self {
        Self { name, consumers, kind, ready: BTreeMap::new(), held: Vec::new() }
    }

    pub(super) fn put(&mut self, place: u64, msg: Msg) {
        self.ready.insert(place, Copy { place, msg, redelivered: false });
    }

    pub(super) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Hands the next copy to `consumer` until it has its fill.
    pub(super) fn hand_out(&mut self, consumer: Name) -> Option<Copy> {
        let has = self.held.iter().filter(|held| held.consumer == consumer && !held.unheard).count();
        if has >= PREFETCH {
            return None;
        }
        let (_, copy) = self.ready.pop_first()?;
        self.held.push(Held { copy, consumer, unheard: false });
        Some(copy)
    }

    /// Takes the next copy for good.
    pub(super) fn take(&mut self) -> Option<Copy> {
        self.ready.pop_first().map(|(_, copy)| copy)
    }

    /// A copy that a consumer has and has not settled, by chance.
    pub(super) fn any_held(&self, dice: &mut Dice) -> Option<(Name, Copy)> {
        let mut open = self.held.iter().filter(|held| !held.unheard);
        let count = open.clone().count();
        let held = (count > 0).then(|| open.nth(dice.index(count)))??;
        Some((held.consumer, held.copy))
    }

    pub(super) fn settle(&mut self, copy: Copy) {
        self.held.retain(|held| held.copy.place != copy.place);
    }

    /// The consumer settled the copy, and the broker never heard of it.
    pub(super) fn settle_unheard(&mut self, copy: Copy) {
        for held in self.held.iter_mut().filter(|held| held.copy.place == copy.place) {
            held.unheard = true;
        }
    }

    pub(super) fn requeue(&mut self, copy: Copy) {
        self.settle(copy);
        self.ready.insert(copy.place, Copy { redelivered: true, ..copy });
    }

    /// Takes back what `consumer` has; returns a copy of which it knows that it has lost it.
    pub(super) fn lose(&mut self, consumer: Name) -> Option<Copy> {
        let (lost, kept) = self.held.iter().partition::<Vec<_>, _>(|held| held.consumer == consumer);
        self.held = kept;
        for held in &lost {
            self.ready.insert(held.copy.place, Copy { redelivered: true, ..held.copy });
        }
        lost.iter().find(|held| !held.unheard).map(|held| held.copy)
    }

    /// Takes everything back; any flag may be lost.
    pub(super) fn crash(&mut self, dice: &mut Dice) {
        for Held { copy, .. } in std::mem::take(&mut self.held) {
            self.ready.insert(copy.place, Copy { redelivered: true, ..copy });
        }
        for copy in self.ready.values_mut().filter(|copy| copy.redelivered) {
            copy.redelivered = dice.chance(50);
        }
    }

    pub(super) fn purge(&mut self) {
        self.ready.clear();
    }
}
