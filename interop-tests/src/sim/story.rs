//! The run as the clients saw it: a history for the checkers.
//!
//! Owns: its names and events. Promises: every event carries simulated time. Does not know: what the events prove.

use std::cell::RefCell;
use std::rc::Rc;

use super::time::nanos;
use crate::history::event::{Allowance, Event, Name, Op, Outcome};
use crate::history::{History, Names};

/// The history so far. Clones write one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Story(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    names: Names,
    events: Vec<Event>,
}

/// An event that was written, to be completed later.
pub(crate) type Place = usize;

impl Story {
    pub(crate) fn name(&self, text: &str) -> Name {
        self.0.borrow_mut().names.name(text)
    }

    /// Something that begins now, with an outcome that is not known yet.
    pub(crate) fn begin(&self, client: Name, op: Op) -> Place {
        self.put(client, op, Outcome::Info, nanos(), nanos())
    }

    /// Something that happened just now.
    pub(crate) fn note(&self, client: Name, op: Op) {
        self.put(client, op, Outcome::Ok, nanos(), nanos());
    }

    pub(crate) fn put(&self, client: Name, op: Op, outcome: Outcome, t0: u64, t1: u64) -> Place {
        let events = &mut self.0.borrow_mut().events;
        events.push(Event { t0, t1, client, outcome, op });
        events.len() - 1
    }

    /// What came of it, now.
    pub(crate) fn end(&self, place: Place, outcome: Outcome) {
        self.end_at(place, outcome, nanos());
    }

    /// What came of it, by then.
    pub(crate) fn end_at(&self, place: Place, outcome: Outcome, at: u64) {
        let event = &mut self.0.borrow_mut().events[place];
        (event.outcome, event.t1) = (outcome, at);
    }

    pub(crate) fn change(&self, place: Place, change: impl FnOnce(&mut Op)) {
        change(&mut self.0.borrow_mut().events[place].op);
    }

    pub(crate) fn route(&self, from: &str, queue: &str) {
        let (from, queue, harness) = (self.name(from), self.name(queue), self.name("harness"));
        self.put(harness, Op::Route { from, queue }, Outcome::Ok, 0, 0);
    }

    pub(crate) fn allow(&self, queue: &str, what: Allowance) {
        let (queue, harness) = (self.name(queue), self.name("harness"));
        self.put(harness, Op::Allow { queue, what, count: None }, Outcome::Ok, 0, 0);
    }

    pub(crate) fn history(&self) -> History {
        let inner = self.0.borrow();
        History::new(inner.names.clone(), inner.events.clone())
    }
}
