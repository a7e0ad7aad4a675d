//! A tiny broker that keeps every promise, and lives out a random history with all that may happen to it: retried and
//! unknown publishes, lost consumers, swallowed acknowledgements, crashes that cost flags, dead letters, expiry,
//! handovers, groups that restart and are set back.
//!
//! Owns: legal histories. Promises: the same seed and size, the same history; whatever a checker says against it is the
//! checker's fault. Does not know: the checkers.

pub(crate) mod dice;
mod queue;
mod topic;

use std::num::{NonZeroU32, NonZeroU64};

use crate::history::event::{
    self, Allowance, Delivery, Edge, Event, Msg, Name, Offset, Op, Outcome, Publish, Scan, Settle,
};
use crate::history::{History, Names};
use dice::Dice;
use queue::{Copy, Kind, Queue};
use topic::Topic;

/// A legal history of about `size` events, and not fewer.
#[must_use]
pub fn live(seed: u64, size: usize) -> History {
    let mut events = Vec::with_capacity(size);
    tell(seed, size, |event| events.push(event));
    History::new(names(), events)
}

/// Tells the same history event by event, each at its end, to those who can not hold it.
pub fn tell(seed: u64, size: usize, each: impl FnMut(Event)) {
    let mut model = Model::new(seed, &mut Names::default(), each);
    model.declare();
    while model.told + model.owed() < size {
        model.step();
    }
    model.end();
}

/// The words of every history told.
#[must_use]
pub fn names() -> Names {
    let mut names = Names::default();
    Model::new(0, &mut names, |_| {});
    names
}

const PUBLISHERS: usize = 4;
const PARTS: u16 = 3;

struct Model<T> {
    tell: T,
    told: usize,
    dice: Dice,
    now: u64,
    words: Words,
    publishers: [(Name, u32); PUBLISHERS],
    queues: Vec<Queue>,
    topic: Topic,
    places: u64,
    /// Publishes of unknown outcome that their publishers will try again.
    retries: Vec<(Msg, Name)>,
    tags: Vec<(Name, u64)>,
    /// Of the single queue: who is active, under which token.
    active: (usize, u32),
    confirms: u64,
    redeliveries: u64,
    crashes: u64,
    expired: u64,
}

/// Words that are used in more than one place.
struct Words {
    harness: Name,
    nodes: [Name; 3],
    work: Name,
    dead: Name,
    fan: Name,
    mortal: Name,
    kill: Name,
    confirms: Name,
    redeliveries: Name,
}

impl<T: FnMut(Event)> Model<T> {
    fn new(seed: u64, names: &mut Names, tell: T) -> Self {
        let mut name = |text: &str| names.name(text);
        let pair = |name: &mut dyn FnMut(&str) -> Name, text: &str| {
            [name(&format!("{text}-a")), name(&format!("{text}-b"))]
        };
        let words = Words {
            harness: name("harness"),
            nodes: ["n1", "n2", "n3"].map(&mut name),
            work: name("work"),
            dead: name("dead"),
            fan: name("fan"),
            mortal: name("mortal"),
            kill: name("kill"),
            confirms: name("confirms"),
            redeliveries: name("redeliveries"),
        };
        let queues = [
            ("work", Kind::Pushed),
            ("dead", Kind::Asked),
            ("left", Kind::Asked),
            ("right", Kind::Single),
            ("mortal", Kind::Mortal),
        ];
        let queues = queues.map(|(text, kind)| Queue::new(name(text), pair(&mut name, text), kind));
        let mut cursors = Vec::new();
        for text in ["g1", "g2"] {
            let group = name(text);
            for part in 0..PARTS {
                let consumer = name(&format!("{text}-{part}"));
                cursors.push(topic::Cursor { group, consumer, part, next: 0, stored: 0 });
            }
        }
        let parts = vec![Vec::new(); usize::from(PARTS)];
        Self {
            tell,
            told: 0,
            dice: Dice::new(seed),
            now: 1_000,
            words,
            publishers: ["p1", "p2", "p3", "p4"].map(|text| (name(text), 0)),
            queues: queues.into(),
            topic: Topic { name: name("topic"), parts, cursors },
            places: 0,
            retries: Vec::new(),
            tags: Vec::new(),
            active: (0, 1),
            confirms: 0,
            redeliveries: 0,
            crashes: 0,
            expired: 0,
        }
    }

    /// Tells what happens at this instant and is known to its client `lasting` later.
    fn emit(&mut self, client: Name, lasting: u64, outcome: Outcome, op: Op) {
        (self.tell)(Event { t0: self.now, t1: self.now + lasting, client, outcome, op });
        self.told += 1;
        self.now += 1;
    }

    /// As `emit`, for a client that waits for the answer, as all others do here.
    fn ask(&mut self, client: Name, op: Op) {
        let lasting = 1 + self.dice.below(20);
        self.emit(client, lasting, Outcome::Ok, op);
        self.now += lasting;
    }

    fn declare(&mut self) {
        let Words { harness, work, dead, fan, .. } = self.words;
        let [left, right] = [2, 3].map(|at: usize| self.queues[at].name);
        let topic = self.topic.name;
        self.ask(harness, Op::DeadLetter { from: work, queue: dead });
        for queue in [left, right] {
            self.ask(harness, Op::Route { from: fan, queue });
        }
        self.ask(harness, Op::Single { queue: right });
        let mut groups: Vec<_> = self.topic.cursors.iter().map(|cursor| cursor.group).collect();
        groups.dedup();
        for group in groups {
            self.ask(harness, Op::Subscribe { queue: topic, group });
        }
    }

    fn step(&mut self) {
        match self.dice.below(1_000) {
            0..170 => self.publish_somewhere(),
            170..180 => self.retry(),
            180..480 => self.deliver_somewhere(),
            480..790 => self.settle_somewhere(),
            790..900 => self.pull(),
            900..940 => self.commit(),
            940..965 => self.ask_cursor_or_end(),
            965..972 => self.expire(),
            972..984 => self.lose_someone(),
            984..993 => self.restart_a_group_consumer(),
            993..997 => self.digest(),
            997..999 => self.set_back_or_purge(),
            _ => self.crash(),
        }
        self.now += self.dice.below(10);
    }

    fn publish_somewhere(&mut self) {
        let publisher = self.dice.index(PUBLISHERS);
        let (name, seq) = &mut self.publishers[publisher];
        *seq += 1;
        let msg = Msg { publisher: *name, seq: *seq };
        let places = [self.words.work, self.words.fan, self.words.mortal, self.topic.name];
        let place = places[self.dice.index(places.len())];
        self.publish(msg, place);
    }

    fn retry(&mut self) {
        if !self.retries.is_empty() {
            let (msg, place) = self.retries.swap_remove(0);
            self.publish(msg, place);
        }
    }

    fn publish(&mut self, msg: Msg, place: Name) {
        let (outcome, stored) = match self.dice.below(100) {
            0..92 => (Outcome::Ok, true),
            92..95 => (Outcome::Info, true),
            95..98 => (Outcome::Info, false),
            _ => (Outcome::Fail, false),
        };
        let lasting = 1 + self.dice.below(40);
        self.publish_as(msg, place, outcome, stored, lasting);
    }

    fn publish_as(&mut self, msg: Msg, place: Name, outcome: Outcome, stored: bool, lasting: u64) {
        let part =
            (place == self.topic.name).then(|| u16::try_from(msg.seq % u32::from(PARTS)).expect("small"));
        let offset = if stored { self.store(msg, place, part) } else { None };
        let offset = offset.filter(|_| outcome == Outcome::Ok).and_then(Offset::new);
        let publish = Publish { queue: place, part, msg, offset, sum: Some(sum(msg)), ordered: true };
        self.emit(msg.publisher, lasting, outcome, Op::Publish(publish));
        match outcome {
            Outcome::Ok => self.confirms += 1,
            Outcome::Info if self.dice.chance(50) => self.retries.push((msg, place)),
            Outcome::Info | Outcome::Fail => {}
        }
    }

    /// Puts the message where it is routed to; its offset if that is the topic.
    fn store(&mut self, msg: Msg, place: Name, part: Option<u16>) -> Option<u64> {
        if let Some(part) = part {
            return Some(self.topic.put(part, msg));
        }
        let queues: &[usize] = match place {
            _ if place == self.words.work => &[0],
            _ if place == self.words.fan => &[2, 3],
            _ => &[4],
        };
        for queue in queues {
            self.places += 1;
            self.queues[*queue].put(self.places, msg);
        }
        None
    }

    fn deliver_somewhere(&mut self) {
        let at = self.dice.index(self.queues.len());
        let consumer = match self.queues[at].kind {
            Kind::Single => self.queues[at].consumers[self.active.0],
            _ => self.queues[at].consumers[self.dice.index(2)],
        };
        let queue = self.queues[at].name;
        if self.queues[at].kind == Kind::Asked && self.queues[at].waiting() == 0 {
            self.ask(consumer, Op::Empty { queue });
        } else if let Some(copy) = self.queues[at].hand_out(consumer) {
            self.deliver(at, consumer, copy, false);
        }
    }

    fn deliver(&mut self, at: usize, consumer: Name, copy: Copy, auto: bool) {
        let Queue { name: queue, kind, .. } = self.queues[at];
        self.redeliveries += u64::from(copy.redelivered);
        let delivery = Delivery {
            queue,
            group: Name::NONE,
            part: 0,
            msg: copy.msg,
            offset: None,
            tag: Some(self.next_tag(consumer)),
            token: NonZeroU32::new(self.active.1).filter(|_| kind == Kind::Single),
            redelivered: Some(copy.redelivered),
            sum: Some(sum(copy.msg)),
            asked: kind == Kind::Asked,
            auto,
        };
        if kind == Kind::Asked {
            self.ask(consumer, Op::Deliver(delivery));
        } else {
            self.emit(consumer, 0, Outcome::Ok, Op::Deliver(delivery));
        }
    }

    fn next_tag(&mut self, consumer: Name) -> NonZeroU64 {
        let tag = match self.tags.iter_mut().find(|(of, _)| *of == consumer) {
            Some((_, tag)) => tag,
            None => {
                self.tags.push((consumer, 0));
                &mut self.tags.last_mut().expect("just pushed").1
            }
        };
        *tag += 1;
        NonZeroU64::new(*tag).expect("counted up")
    }

    fn settle_somewhere(&mut self) {
        let at = self.dice.index(self.queues.len());
        let Some((consumer, copy)) = self.queues[at].any_held(&mut self.dice) else {
            return;
        };
        let settle = self.settlement(at, copy);
        let lasting = 1 + self.dice.below(20);
        match self.dice.below(100) {
            0..60 => {
                self.queues[at].settle(copy);
                self.emit(consumer, lasting, Outcome::Ok, Op::Ack(settle));
            }
            60..75 => {
                self.queues[at].settle(copy);
                self.emit(consumer, lasting, Outcome::Info, Op::Ack(settle));
            }
            75..80 => {
                self.queues[at].settle_unheard(copy);
                self.emit(consumer, lasting, Outcome::Info, Op::Ack(settle));
            }
            80..90 => {
                self.queues[at].requeue(copy);
                self.emit(consumer, lasting, Outcome::Info, Op::Requeue(settle));
            }
            _ => {
                self.queues[at].settle(copy);
                if self.queues[at].name == self.words.work {
                    self.places += 1;
                    self.queues[1].put(self.places, copy.msg);
                }
                self.emit(consumer, lasting, Outcome::Ok, Op::Reject(settle));
            }
        }
    }

    fn settlement(&self, at: usize, copy: Copy) -> Settle {
        let single = self.queues[at].kind == Kind::Single;
        let token = NonZeroU32::new(self.active.1).filter(|_| single);
        Settle { queue: self.queues[at].name, group: Name::NONE, msg: copy.msg, token }
    }

    /// A consumer is lost; what it still tries to settle is refused.
    fn lose_someone(&mut self) {
        let at = self.dice.index(self.queues.len());
        let consumer = self.queues[at].consumers[self.dice.index(2)];
        self.lose(at, consumer);
    }

    fn lose(&mut self, at: usize, consumer: Name) {
        let lasting = 1 + self.dice.below(20);
        self.emit(consumer, lasting, Outcome::Ok, Op::Lost { queue: None });
        let lost = self.queues[at].lose(consumer);
        if let Some(copy) = lost {
            let settle = self.settlement(at, copy);
            self.emit(consumer, lasting, Outcome::Fail, Op::Ack(settle));
        }
        self.forget_tag(consumer);
        let Queue { kind, consumers, .. } = self.queues[at];
        if kind == Kind::Single && consumers[self.active.0] == consumer {
            self.hand_over();
        }
    }

    fn forget_tag(&mut self, consumer: Name) {
        self.tags.retain(|(of, _)| *of != consumer);
    }

    fn hand_over(&mut self) {
        self.active = (1 - self.active.0, self.active.1 + 1);
    }

    fn pull(&mut self) {
        let at = self.dice.index(self.topic.cursors.len());
        for _ in 0..self.dice.below(4) {
            self.pull_one(at);
        }
    }

    /// Whether there was something to pull.
    fn pull_one(&mut self, at: usize) -> bool {
        let cursor = self.topic.cursors[at];
        let Some((offset, msg)) = self.topic.pull(at) else {
            return false;
        };
        let delivery = Delivery {
            queue: self.topic.name,
            group: cursor.group,
            part: cursor.part,
            msg,
            offset: Offset::new(offset),
            tag: None,
            token: None,
            redelivered: None,
            sum: Some(sum(msg)),
            asked: true,
            auto: false,
        };
        self.ask(cursor.consumer, Op::Deliver(delivery));
        true
    }

    fn commit(&mut self) {
        let at = self.dice.index(self.topic.cursors.len());
        let cursor = self.topic.cursors[at];
        let (outcome, stored) = match self.dice.below(10) {
            0..7 => (Outcome::Ok, true),
            7..9 => (Outcome::Info, true),
            _ => (Outcome::Info, false),
        };
        if stored {
            self.topic.cursors[at].stored = cursor.next;
        }
        let op = Op::Commit(self.cursor(cursor, cursor.next));
        self.emit(cursor.consumer, 5, outcome, op);
        self.now += 5;
    }

    fn cursor(&self, cursor: topic::Cursor, offset: u64) -> event::Cursor {
        let offset = Offset::new(offset).expect("a short topic");
        event::Cursor { queue: self.topic.name, group: cursor.group, part: cursor.part, offset }
    }

    fn ask_cursor_or_end(&mut self) {
        let cursor = self.topic.cursors[self.dice.index(self.topic.cursors.len())];
        let edge = |queue: Name, offset: usize| Edge {
            queue,
            part: cursor.part,
            offset: Offset::new(offset as u64).expect("a short topic"),
        };
        let length = self.topic.parts[usize::from(cursor.part)].len();
        let op = match self.dice.below(3) {
            0 => Op::MaxOffset(edge(self.topic.name, length)),
            1 => Op::MinOffset(edge(self.topic.name, 0)),
            _ => Op::Committed(self.cursor(cursor, cursor.stored)),
        };
        self.ask(cursor.consumer, op);
    }

    fn expire(&mut self) {
        if self.queues[4].take().is_some() {
            self.expired += 1;
        }
    }

    fn restart_a_group_consumer(&mut self) {
        let at = self.dice.index(self.topic.cursors.len());
        let queue = self.dice.chance(50).then_some(self.topic.name);
        self.ask(self.topic.cursors[at].consumer, Op::Lost { queue });
        self.topic.cursors[at].next = self.topic.cursors[at].stored;
    }

    /// Only the last cursor and the mortal queue: what was set back or purged once is judged less strictly ever after.
    fn set_back_or_purge(&mut self) {
        if self.dice.chance(20) {
            self.queues[4].purge();
            self.ask(self.words.harness, Op::Purge { queue: self.words.mortal });
            return;
        }
        let at = self.topic.cursors.len() - 1;
        let cursor = self.topic.cursors[at];
        let offset = cursor.next.saturating_sub(self.dice.below(8));
        self.topic.cursors[at] = topic::Cursor { next: offset, stored: offset, ..cursor };
        let op = Op::Reset(self.cursor(cursor, offset));
        self.ask(self.words.harness, op);
    }

    fn digest(&mut self) {
        self.places += 1;
        let (index, hash) = (self.places, self.dice.throw());
        for node in self.words.nodes {
            let scope = if self.dice.chance(50) { self.topic.name } else { Name::NONE };
            // Each scope has its own digests: the same chance value must not pass for the other's.
            let hash = hash ^ u64::from(scope == Name::NONE);
            self.ask(node, Op::Digest { scope, index, hash });
        }
    }

    /// A crash hits a publish under way, all consumers, and what the broker had not stored.
    fn crash(&mut self) {
        // Nothing else is under way, so that every other confirm counts as outside faults.
        self.now += 100;
        let lasting = 100 + self.dice.below(400);
        let (name, seq) = &mut self.publishers[0];
        *seq += 1;
        let msg = Msg { publisher: *name, seq: *seq };
        let stored = self.dice.chance(50);
        self.publish_as(msg, self.words.work, Outcome::Info, stored, lasting);
        let Words { harness, nodes, kill, .. } = self.words;
        self.emit(harness, lasting, Outcome::Ok, Op::Fault { name: kill });
        self.emit(nodes[0], lasting, Outcome::Ok, Op::Crash);
        for queue in &mut self.queues {
            queue.crash(&mut self.dice);
        }
        self.topic.crash();
        self.tags.clear();
        self.hand_over();
        self.crashes += 1;
        self.now += lasting;
        self.ask(nodes[0], Op::Leader { term: self.crashes });
    }

    /// How many events the end will need to drain everything.
    fn owed(&self) -> usize {
        let waiting: usize = self.queues.iter().map(Queue::waiting).sum();
        let stored: usize = self.topic.parts.iter().map(Vec::len).sum();
        waiting + stored * self.words.nodes.len()
    }

    /// Heals, shows that everything flows, drains, compares, and says what the run was to have seen.
    fn end(&mut self) {
        for at in 0..self.queues.len() {
            for consumer in self.queues[at].consumers {
                self.lose(at, consumer);
            }
        }
        let harness = self.words.harness;
        self.ask(harness, Op::Healed);
        for place in [self.words.work, self.words.fan, self.words.mortal, self.topic.name] {
            for publisher in 0..PUBLISHERS {
                let (name, seq) = &mut self.publishers[publisher];
                *seq += 1;
                let msg = Msg { publisher: *name, seq: *seq };
                self.publish_as(msg, place, Outcome::Ok, true, 10);
            }
        }
        self.drain_queues();
        self.drain_topic();
        self.ask(harness, Op::Converged);
        self.say_plan();
    }

    fn drain_queues(&mut self) {
        for at in 0..self.queues.len() {
            let consumer = match self.queues[at].kind {
                Kind::Single => self.queues[at].consumers[self.active.0],
                _ => self.queues[at].consumers[0],
            };
            while let Some(copy) = self.queues[at].take() {
                self.deliver(at, consumer, copy, true);
            }
        }
    }

    fn drain_topic(&mut self) {
        for at in 0..self.topic.cursors.len() {
            while self.pull_one(at) {}
            let cursor = self.topic.cursors[at];
            let op = Op::Commit(self.cursor(cursor, cursor.next));
            self.ask(cursor.consumer, op);
        }
        for node in self.words.nodes {
            for part in 0..PARTS {
                for at in 0..self.topic.parts[usize::from(part)].len() {
                    let msg = self.topic.parts[usize::from(part)][at];
                    let offset = Offset::new(at as u64).expect("a short topic");
                    let scan = Scan { queue: self.topic.name, part, offset, msg, sum: Some(sum(msg)) };
                    self.emit(node, 1, Outcome::Ok, Op::Scan(scan));
                }
            }
        }
        let (index, hash) = (self.places + 1, self.dice.throw());
        for node in self.words.nodes {
            for scope in [Name::NONE, self.topic.name] {
                self.ask(node, Op::Digest { scope, index, hash });
            }
        }
    }

    fn say_plan(&mut self) {
        let Words { harness, mortal, kill, confirms, redeliveries, .. } = self.words;
        let allow = Op::Allow { queue: mortal, what: Allowance::Expire, count: Some(self.expired) };
        self.ask(harness, allow);
        let plans = [(kill, self.crashes), (confirms, self.confirms), (redeliveries, self.redeliveries)];
        for (what, count) in plans {
            self.ask(harness, Op::Plan { what, count });
        }
    }
}

/// Stands for a checksum of the message's properties.
fn sum(msg: Msg) -> u32 {
    msg.seq.wrapping_mul(0x9e37_79b1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::all;
    use proptest::prelude::*;

    #[test]
    fn the_same_seed_gives_the_same_history() {
        let (a, b) = (live(3, 1_000), live(3, 1_000));
        assert_eq!(a.events(), b.events());
        assert_ne!(a.events(), live(4, 1_000).events());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_checker_says_anything_against_a_legal_history(seed: u64, size in 10_usize..6_000) {
            let report = all(&live(seed, size));
            prop_assert!(report.passed(), "{report}");
        }
    }
}
