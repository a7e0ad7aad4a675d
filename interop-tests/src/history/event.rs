//! One event of a run: who did or saw what, between which two instants, with what outcome.
//!
//! Owns: the vocabulary of histories. Promises: an event of any kind takes at most 80 bytes, so that five million of
//! them and the checkers' tables fit into a gibibyte.
//! Does not know: how events are written down, or judged.

use std::num::{NonZeroU32, NonZeroU64};

/// A word of the run (client, queue, group, fault...), as a number of its history's table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub(super) u32);

impl Name {
    /// The empty word: the group of those who need none, the scope that is everything.
    pub const NONE: Self = Self(0);
}

/// The identity of a message: its publisher and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msg {
    /// Who made it.
    pub publisher: Name,
    /// Its place among the publisher's messages.
    pub seq: u32,
}

/// A place in a queue. Never `u64::MAX`, which leaves room to be optional in eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(NonZeroU64);

impl Offset {
    /// The place `value`; none for `u64::MAX`.
    #[must_use]
    pub fn new(value: u64) -> Option<Self> {
        value.checked_add(1).and_then(NonZeroU64::new).map(Self)
    }

    /// As a plain number, counted from zero.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get() - 1
    }
}

/// What a client learned about its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It happened.
    Ok,
    /// It did not happen and never will: nothing was stored.
    Fail,
    /// Nobody knows (timeout, lost connection): never counted as lost, never as a phantom.
    Info,
}

/// Something a client or the harness did or saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When it began: nanoseconds of the machine's one monotonic clock.
    pub t0: u64,
    /// When its outcome was known; not before `t0`.
    pub t1: u64,
    /// Who: one channel of AMQP, one producer or consumer of RocketMQ, a node, or the harness.
    pub client: Name,
    /// With what outcome.
    pub outcome: Outcome,
    /// What.
    pub op: Op,
}

impl Event {
    /// Whether it may have had its effect.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.outcome != Outcome::Fail
    }

    /// Whether it certainly had its effect.
    #[must_use]
    pub fn happened(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A message was sent; ok means confirmed. Each attempt is an event of its own.
    Publish(Publish),
    /// A sound message arrived at a consumer.
    Deliver(Delivery),
    /// A body arrived that does not prove itself.
    Damaged(Damaged),
    /// A message was seen lying in a queue, by a reader that consumes nothing (a final scan, a replica's log).
    Scan(Scan),
    /// A consumer settled a message as done.
    Ack(Settle),
    /// A consumer gave a message back: nack, recover, or its lease passed.
    Requeue(Settle),
    /// A consumer refused a message for good: dead-lettered where the queue has a target, else dropped.
    Reject(Settle),
    /// A queue was asked and answered that it has nothing.
    Empty {
        /// The queue asked.
        queue: Name,
    },
    /// A group's consumed offset was stored.
    Commit(Cursor),
    /// A group's stored offset was read.
    Committed(Cursor),
    /// A group's stored offset was set on purpose, backwards too.
    Reset(Cursor),
    /// The lowest offset that a queue still has was read.
    MinOffset(Edge),
    /// The offset that the next message of a queue gets was read.
    MaxOffset(Edge),
    /// The client lost what it held: channel, connection or consumer closed, or the queue given to another.
    Lost {
        /// Only its hold on this queue; none for everything.
        queue: Option<Name>,
    },
    /// The broker crashed or its leader changed, from the blow until it was ready again.
    Crash,
    /// A leader came to power, between these instants.
    Leader {
        /// The leader's term.
        term: u64,
    },
    /// The harness did harm, from start to end.
    Fault {
        /// Its name in the plan.
        name: Name,
    },
    /// All faults are over: the liveness phase begins.
    Healed,
    /// All replicas were seen to agree after healing.
    Converged,
    /// A replica's digest of a scope at an index.
    Digest {
        /// What was digested: a queue, the log, the state.
        scope: Name,
        /// After how much of it.
        index: u64,
        /// The digest.
        hash: u64,
    },
    /// What is published to `from` from now on goes to `queue`; a place without routes is its own queue.
    Route {
        /// Exchange, or exchange and key, or topic.
        from: Name,
        /// Queue, topic or further exchange. A route from a place to itself keeps what it passes on.
        queue: Name,
    },
    /// What dies in `from` goes to `queue`.
    DeadLetter {
        /// The queue left.
        from: Name,
        /// The queue reached.
        queue: Name,
    },
    /// From now on the group wants every message of the topic.
    Subscribe {
        /// The topic.
        queue: Name,
        /// The group.
        group: Name,
    },
    /// The queue promises one active consumer at a time.
    Single {
        /// The queue.
        queue: Name,
    },
    /// A rule under which the queue may do less than the promises say.
    Allow {
        /// The queue.
        queue: Name,
        /// What is allowed.
        what: Allowance,
        /// How often at most, by the broker's own counters; none for any number.
        count: Option<u64>,
    },
    /// The queue was purged or deleted.
    Purge {
        /// The queue.
        queue: Name,
    },
    /// The run was to see at least `count` of this.
    Plan {
        /// `confirms` (outside faults), `redeliveries`, or the name of a fault.
        what: Name,
        /// How many.
        count: u64,
    },
}

impl Op {
    /// The message it is about, if it is about one.
    #[must_use]
    pub fn msg(&self) -> Option<Msg> {
        match self {
            Self::Publish(publish) => Some(publish.msg),
            Self::Deliver(delivery) => Some(delivery.msg),
            Self::Scan(scan) => Some(scan.msg),
            Self::Ack(settle) | Self::Requeue(settle) | Self::Reject(settle) => Some(settle.msg),
            _ => None,
        }
    }
}

/// A message sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where to: a queue, a topic, or a place with routes.
    pub queue: Name,
    /// The topic's queue chosen, or told by the broker.
    pub part: Option<u16>,
    /// The message.
    pub msg: Msg,
    /// The offset that the broker's answer named.
    pub offset: Option<Offset>,
    /// Checksum of whatever must arrive as it left, beside the body.
    pub sum: Option<u32>,
    /// Whether it was sent on a path that keeps order with the client's other messages.
    pub ordered: bool,
}

/// A message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// From this queue or topic.
    pub queue: Name,
    /// For this group.
    pub group: Name,
    /// From this queue of the topic.
    pub part: u16,
    /// The message that its body proves.
    pub msg: Msg,
    /// Its place, where the protocol tells.
    pub offset: Option<Offset>,
    /// AMQP's delivery tag.
    pub tag: Option<NonZeroU64>,
    /// The fencing token under which it was delivered, where the harness can know.
    pub token: Option<NonZeroU32>,
    /// AMQP's flag; none where the protocol has none.
    pub redelivered: Option<bool>,
    /// Checksum of what [`Publish::sum`] covers.
    pub sum: Option<u32>,
    /// Asked for by a request that began at `t0` (get, pull); else pushed, and `t0` is the arrival.
    pub asked: bool,
    /// Settled by its delivery (no-ack).
    pub auto: bool,
}

/// A body that does not prove itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged {
    /// From this queue or topic.
    pub queue: Name,
    /// What was wrong with it.
    pub why: Name,
}

/// A message lying in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// The queue or topic.
    pub queue: Name,
    /// The queue of the topic.
    pub part: u16,
    /// Its place.
    pub offset: Offset,
    /// The message that its body proves.
    pub msg: Msg,
    /// Checksum of what [`Publish::sum`] covers.
    pub sum: Option<u32>,
}

/// A message settled or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// In this queue or topic.
    pub queue: Name,
    /// For this group.
    pub group: Name,
    /// The message.
    pub msg: Msg,
    /// The fencing token of the one who settles.
    pub token: Option<NonZeroU32>,
}

/// How far a group has consumed one queue: everything below `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The topic.
    pub queue: Name,
    /// The group.
    pub group: Name,
    /// The queue of the topic.
    pub part: u16,
    /// The first offset not consumed.
    pub offset: Offset,
}

/// One end of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The topic.
    pub queue: Name,
    /// The queue of the topic.
    pub part: u16,
    /// Where the end is.
    pub offset: Offset,
}

/// What a queue may do by a declared rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allowance {
    /// Messages die of age.
    Expire,
    /// Messages are dropped because the queue is full.
    Overflow,
    /// Messages die of too many deliveries.
    DeliveryLimit,
    /// Old messages of a retained topic are removed.
    Retention,
    /// The queue lives in memory: a crash may empty it.
    Transient,
    /// The queue does not keep order (priorities).
    Reorder,
    /// Readers skip some offsets (a filter, or bodies settled by the other protocol).
    Holes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_takes_at_most_80_bytes() {
        assert!(size_of::<Event>() <= 80, "{} bytes", size_of::<Event>());
    }

    #[test]
    fn every_offset_but_the_last_number_is_a_place() {
        for value in [0, 1, u64::MAX - 1] {
            assert_eq!(Offset::new(value).map(Offset::get), Some(value));
        }
        assert_eq!(Offset::new(u64::MAX), None);
    }
}
