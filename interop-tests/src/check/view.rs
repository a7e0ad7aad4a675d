//! A history arranged for questions: by message, by topology, by what broke when, by how far groups had consumed.
//!
//! Owns: these arrangements, made once for all checkers. Promises: lives hold the events about one message in the order
//! of the history; 12 bytes an event. Does not know: the rules.

use super::breaks::Breaks;
use super::floors::Floors;
use super::topology::Topology;
use crate::history::event::{Delivery, Event, Msg, Name, Op, Publish};
use crate::history::{History, Names};

/// A history arranged for questions.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) events: &'a [Event],
    pub(super) names: &'a Names,
    pub(super) topology: Topology,
    pub(super) breaks: Breaks,
    pub(super) floors: Floors,
    mentions: Vec<Mention>,
}

/// An event about a message. Sorting these puts each message's events together and in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mention {
    msg: Msg,
    index: u32,
}

impl<'a> View<'a> {
    /// Arranges `history`.
    ///
    /// # Panics
    /// With more than four billion events.
    #[must_use]
    pub fn of(history: &'a History) -> Self {
        let events = history.events();
        let mention = |(index, event): (usize, &Event)| {
            let index = u32::try_from(index).expect("fewer than 2^32 events");
            event.op.msg().map(|msg| Mention { msg, index })
        };
        let mut mentions: Vec<_> = events.iter().enumerate().filter_map(mention).collect();
        mentions.sort_unstable();
        Self {
            events,
            names: history.names(),
            topology: Topology::of(events),
            breaks: Breaks::of(events),
            floors: Floors::of(events),
            mentions,
        }
    }

    /// Each message with all events about it.
    pub(super) fn lives(&self) -> impl Iterator<Item = Life<'_>> {
        let same = |a: &Mention, b: &Mention| a.msg == b.msg;
        self.mentions.chunk_by(same).map(|mentions| Life { events: self.events, mentions })
    }

    /// The events with their indexes.
    pub(super) fn events(&self) -> impl Iterator<Item = (usize, &'a Event)> {
        self.events.iter().enumerate()
    }

    /// How many copies of the message its publishers may have put into `queue`, directly or by way of queues that it
    /// died in. None when messages can come back to the queue by dying: then there is no bound.
    pub(super) fn copies(&self, life: Life<'_>, queue: Name) -> Option<usize> {
        if self.topology.deaths(queue).contains(&queue) {
            return None;
        }
        let attempts = life.publishes().filter(|(_, event, _)| event.may_have_happened());
        let ways = attempts.map(|(_, _, publish)| {
            let sinks = self.topology.sinks(publish.queue).iter();
            sinks.filter(|s| s.queue == queue || self.topology.deaths(s.queue).contains(&queue)).count()
        });
        Some(ways.sum())
    }

    /// The only attempt to publish the message, if there was just one that may have happened.
    pub(super) fn only_attempt<'v>(&'v self, life: Life<'v>) -> Option<(usize, &'v Event, &'v Publish)> {
        let mut attempts = life.publishes().filter(|(_, event, _)| event.may_have_happened());
        let first = attempts.next()?;
        attempts.next().is_none().then_some(first)
    }

    /// Whether the message reached `queue` by its publish alone, in a queue that keeps order: then its place among
    /// others is decided by when it was published.
    pub(super) fn keeps_order(&self, publish: &Publish, queue: Name) -> bool {
        let direct = |sink: &super::topology::Sink| sink.queue == queue;
        self.topology.sinks(publish.queue).iter().any(direct)
            && !self.topology.is_death_target(queue)
            && !self.topology.may_reorder(queue)
    }

    pub(super) fn text(&self, name: Name) -> &str {
        self.names.text(name)
    }

    pub(super) fn msg(&self, msg: Msg) -> String {
        self.names.msg(msg)
    }
}

/// All events about one message, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life<'v> {
    events: &'v [Event],
    mentions: &'v [Mention],
}

impl<'v> Life<'v> {
    pub(super) fn msg(self) -> Msg {
        self.mentions[0].msg
    }

    pub(super) fn iter(self) -> impl Iterator<Item = (usize, &'v Event)> {
        self.mentions.iter().map(move |mention| {
            let index = mention.index as usize;
            (index, &self.events[index])
        })
    }

    pub(super) fn publishes(self) -> impl Iterator<Item = (usize, &'v Event, &'v Publish)> {
        self.iter().filter_map(|(index, event)| match &event.op {
            Op::Publish(publish) => Some((index, event, publish)),
            _ => None,
        })
    }

    /// Its deliveries, those of one queue and group together and in order.
    pub(super) fn deliveries(self) -> Vec<Seen<'v>> {
        let seen = |(index, event): (usize, &'v Event)| match &event.op {
            Op::Deliver(delivery) => Some(Seen { index, event, delivery }),
            _ => None,
        };
        let mut deliveries: Vec<_> = self.iter().filter_map(seen).collect();
        deliveries.sort_by_key(Seen::reader);
        deliveries
    }
}

/// One delivery of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'v> {
    pub(super) index: usize,
    pub(super) event: &'v Event,
    pub(super) delivery: &'v Delivery,
}

impl Seen<'_> {
    /// For whom a message is delivered once.
    pub(super) fn reader(&self) -> (Name, Name) {
        (self.delivery.queue, self.delivery.group)
    }
}

/// Whether two deliveries are for the same reader.
pub(super) fn same_reader(a: &Seen<'_>, b: &Seen<'_>) -> bool {
    a.reader() == b.reader()
}
