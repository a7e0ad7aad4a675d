//! What simulated clients do all day: publishers, consumers, producers, members of a group, and those who declare and delete.
//!
//! Owns: the scripts, and the names they use. Promises: a client whose node is gone or silent connects elsewhere; nothing is
//! sent again by a client itself. Does not know: what its answers prove.

use std::time::Duration;

use dassie::broker::api::{
    BindingSpec, Destination, ExchangeKind, ExchangeSpec, Op, QueueKind, QueueSpec, Settle, Waits,
};
use dassie::broker::retention;

use super::desk::{Desk, PARTS, STEADY, Target};
use super::dice::Dice;
use super::life::SEGMENT;
use super::waiting::DELAYS_MS;
use super::world::Shared;
use crate::history::event::{Allowance, Op as Noted, Outcome};

/// Topics that are there from the beginning.
pub(crate) const TOPICS: [&str; 2] = ["t0", "t1"];
/// Queues that may lose messages by what clients ask for: purged, deleted, in memory, acknowledged by being handed out.
pub(crate) const LOOSE: [&str; 5] = ["loose", "x0", "x1", "m0", "a0"];
/// The exchange that comes and goes.
const PASSING: &str = "y0";

const fn target(exchange: &'static str, key: &'static str, place: &'static str, sure: bool) -> Target {
    Target { exchange, key, place, sure, confirmed: true }
}

const TARGETS: [Target; 12] = [
    target("", "q0", "q0", true),
    target("", "q1", "q1", true),
    target("", "q2", "q2", true),
    target("", "q3", "q3", true),
    target("f", "", "f", true),
    target("amq.rmq.t0", "tag", "t0", true),
    target("", "loose", "loose", true),
    target("", "x0", "x0", false),
    target("", "x1", "x1", false),
    target("", "m0", "m0", false),
    target("", "a0", "a0", false),
    Target { exchange: PASSING, key: "k", place: PASSING, sure: false, confirmed: false },
];

fn queue(name: &str, kind: QueueKind) -> QueueSpec {
    QueueSpec {
        name: name.into(),
        kind,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: bytes::Bytes::new(),
    }
}

fn exchange(name: &str, auto_delete: bool) -> ExchangeSpec {
    ExchangeSpec {
        name: name.into(),
        kind: ExchangeKind::Fanout,
        durable: true,
        auto_delete,
        internal: false,
        arguments: bytes::Bytes::new(),
    }
}

fn binding(source: &str, queue: &str, key: &str) -> BindingSpec {
    BindingSpec {
        source: source.into(),
        destination: Destination::Queue(queue.into()),
        key: key.into(),
        arguments: bytes::Bytes::new(),
    }
}

/// Everything that is declared before the weather turns.
pub(crate) fn declarations() -> Vec<Op> {
    let mut all: Vec<Op> = STEADY
        .iter()
        .zip([QueueKind::Classic, QueueKind::Quorum].iter().cycle())
        .map(|(name, kind)| Op::DeclareQueue(queue(name, *kind), false))
        .collect();
    all.push(Op::DeclareQueue(queue("loose", QueueKind::Classic), false));
    all.push(Op::DeclareExchange(exchange("f", false), false));
    all.extend(["q1", "q2"].map(|name| Op::Bind(binding("f", name, ""))));
    all.extend(TOPICS.map(|topic| Op::CreateTopic {
        topic: topic.into(),
        write_queues: PARTS,
        read_queues: PARTS,
        permission: 6,
    }));
    all.push(Op::Bind(binding("amq.rmq.t0", "q3", "#")));
    all
}

/// Tells the story what was declared, as if it had always been so.
pub(crate) fn tell(shared: &Shared) {
    let story = &shared.story;
    for (from, to) in [("f", "q1"), ("f", "q2"), ("t0", "t0"), ("t0", "q3"), (PASSING, "x0"), (PASSING, "x1")]
    {
        story.route(from, to);
    }
    let harness = story.name("harness");
    for name in LOOSE {
        story.allow(name, Allowance::Transient);
        story.put(harness, Noted::Purge { queue: story.name(name) }, Outcome::Ok, 0, u64::MAX);
    }
    for topic in TOPICS {
        if shared.habits.trims() {
            story.allow(topic, Allowance::Retention);
            story.allow(topic, Allowance::Holes);
        }
        let (queue, group) = (story.name(topic), story.name(super::desk::GROUP));
        story.put(harness, Noted::Subscribe { queue, group }, Outcome::Ok, 0, 0);
    }
    let what = story.name("confirms");
    story.put(harness, Noted::Plan { what, count: 1 }, Outcome::Ok, 0, 0);
}

/// What clients of one run like, and what the broker is told to keep for them.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    /// Bodies that need pieces, in a thousand.
    large: u64,
    /// Topics are used. Unless they are trimmed they keep their messages, and with them nearly every segment.
    topics: bool,
    /// Messages that wait: delayed ones, transactions, what is sent back.
    waits: bool,
    pub(crate) keeps: retention::Settings,
}

impl Habits {
    pub(crate) fn thrown(dice: &Dice) -> Self {
        let keeps = match dice.below(5) {
            0 => {
                retention::Settings { topics_ms: 2_000 + dice.below(6_000), ..retention::Settings::default() }
            }
            1 => retention::Settings { topics_bytes: 4 * SEGMENT, ..retention::Settings::default() },
            2 => retention::Settings { max_bytes: 8 * SEGMENT, ..retention::Settings::default() },
            _ => retention::Settings::default(),
        };
        Self {
            large: [25, 25, 120][usize::try_from(dice.below(3)).expect("few")],
            topics: dice.permille(600),
            waits: dice.permille(600),
            keeps,
        }
    }

    /// Topics lose their oldest messages.
    pub(crate) fn trims(&self) -> bool {
        self.keeps != retention::Settings::default()
    }

    pub(crate) fn trades(&self) -> [Trade; 5] {
        if self.topics {
            [Trade::Amqp, Trade::Amqp, Trade::Amqp, Trade::Producer, Trade::Member]
        } else {
            [Trade::Amqp; 5]
        }
    }
}

/// What a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trade {
    /// Publishes and consumes, declares and deletes.
    Amqp,
    /// Sends to topics.
    Producer,
    /// Consumes topics for the group, and sends.
    Member,
}

/// A client that lives as long as the storm.
pub(crate) struct Client {
    pub(crate) shared: Shared,
    pub(crate) trade: Trade,
    pub(crate) name: String,
    pub(crate) seq: u32,
}

impl Client {
    pub(crate) async fn live(mut self) {
        let mut incarnation = 0;
        while !self.shared.over.get() {
            let wait = 20 + self.shared.dice.below(200);
            if let Some(shard) = self.shared.door() {
                incarnation += 1;
                let mut desk = Desk::new(&self.shared, shard.connect(), &self.name, incarnation);
                if self.trade != Trade::Amqp {
                    desk.answer_for_halves();
                }
                self.work(&mut desk).await;
                desk.end();
            }
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    async fn work(&mut self, desk: &mut Desk) {
        let dice = self.shared.dice.clone();
        while !self.shared.over.get() && !desk.is_lost() && !dice.permille(8) {
            match self.trade {
                Trade::Amqp => self.amqp(desk),
                Trade::Producer => self.produce(desk),
                Trade::Member => self.member(desk),
            }
            desk.listen(Duration::from_millis(10 + dice.below(120))).await;
        }
    }

    fn sequence(&mut self, count: u32) -> std::ops::Range<u32> {
        self.seq += count;
        self.seq - count..self.seq
    }

    /// Mostly short; some need pieces.
    fn size(&self) -> usize {
        let dice = &self.shared.dice;
        let size = if dice.permille(self.shared.habits.large) {
            15_000 + dice.below(45_000)
        } else {
            120 + dice.below(900)
        };
        usize::try_from(size).expect("small")
    }

    fn amqp(&mut self, desk: &mut Desk) {
        let dice = self.shared.dice.clone();
        let pick =
            |names: &[&'static str]| names[usize::try_from(dice.throw() % 1024).unwrap() % names.len()];
        match dice.below(100) {
            0..38 => {
                for _ in 0..=dice.below(4) {
                    if let Some(target) = self.target() {
                        let seq = self.sequence(1).start;
                        desk.publish(target, seq, self.size());
                    }
                }
            }
            38..70 => {
                let how = match dice.below(10) {
                    0..7 => Settle::Ack,
                    7..9 => Settle::Requeue,
                    _ => Settle::Discard,
                };
                let count = usize::try_from(1 + dice.below(12)).expect("few");
                desk.settle(dice.throw(), count, how);
            }
            70..76 => desk.get(pick(&STEADY), false),
            76..78 => desk.get("loose", true),
            78..86 if desk.readers() < 5 => {
                let window = u16::try_from(dice.below(20)).expect("small");
                match dice.below(5) {
                    0 => desk.subscribe(pick(&LOOSE), window, dice.permille(500)),
                    _ => desk.subscribe(pick(&STEADY), window, false),
                }
            }
            86..88 => desk.unsubscribe(dice.throw()),
            88..91 => self.transact(desk),
            91..97 => self.declare(desk),
            _ => {}
        }
    }

    fn target(&self) -> Option<Target> {
        let target = TARGETS[usize::try_from(self.shared.dice.below(TARGETS.len() as u64)).expect("few")];
        (self.shared.habits.topics || !TOPICS.contains(&target.place)).then_some(target)
    }

    fn transact(&mut self, desk: &mut Desk) {
        let dice = self.shared.dice.clone();
        let mut publishes = Vec::new();
        for _ in 0..dice.below(4) {
            if let Some(target) = self.target().filter(|target| target.confirmed) {
                publishes.push((target, self.sequence(1).start, self.size()));
            }
        }
        let how = [Settle::Ack, Settle::Ack, Settle::Requeue][usize::try_from(dice.below(3)).expect("few")];
        let count = usize::try_from(dice.below(12)).expect("few");
        desk.transact(publishes.into_iter(), dice.throw(), count, how);
    }

    fn declare(&self, desk: &mut Desk) {
        let dice = &self.shared.dice;
        let name = ["x0", "x1"][usize::from(dice.permille(500))];
        match dice.below(12) {
            0..3 => {
                let kind = [QueueKind::Classic, QueueKind::Quorum][usize::from(dice.permille(500))];
                desk.ask(Op::DeclareQueue(queue(name, kind), false));
            }
            3 => desk.ask(Op::DeclareQueue(
                QueueSpec { exclusive: true, ..queue(name, QueueKind::Classic) },
                false,
            )),
            4 => desk.ask(Op::DeclareQueue(
                QueueSpec { durable: false, ..queue("m0", QueueKind::Classic) },
                false,
            )),
            5 => desk.ask(Op::DeclareQueue(
                QueueSpec { auto_delete: true, ..queue("a0", QueueKind::Classic) },
                false,
            )),
            6 => desk.ask(Op::DeleteQueue { name: name.into(), if_unused: false, if_empty: false }),
            7 => desk.purge(["loose", "x0", "m0"][usize::try_from(dice.below(3)).expect("few")]),
            8 => desk.ask(Op::DeclareExchange(exchange(PASSING, dice.permille(500)), false)),
            9 => desk.ask(Op::Bind(binding(PASSING, name, ""))),
            10 => desk.ask(Op::Unbind(binding(PASSING, name, ""))),
            _ => desk.ask(Op::DeleteExchange { name: PASSING.into(), if_unused: dice.permille(500) }),
        }
    }

    fn produce(&mut self, desk: &mut Desk) {
        let dice = self.shared.dice.clone();
        if dice.permille(600) {
            return;
        }
        let topic = TOPICS[usize::from(dice.permille(500))];
        let part = dice.permille(500).then(|| u32::try_from(dice.below(u64::from(PARTS))).expect("few"));
        let size = self.size();
        if self.shared.habits.waits && dice.permille(300) {
            let waits = match dice.below(5) {
                0 | 1 => Waits::Delay(1 + u32::try_from(dice.below(DELAYS_MS.len() as u64)).expect("few")),
                _ => Waits::Half,
            };
            let seq = self.sequence(1).start;
            return desk.send_waiting(topic, part.unwrap_or(0), seq, size, waits);
        }
        let count = if size > 2_000 { 1 } else { 1 + u32::try_from(dice.below(5)).expect("few") };
        let seqs = self.sequence(count);
        desk.send_rmq(topic, part, seqs, size);
    }

    fn member(&mut self, desk: &mut Desk) {
        let dice = self.shared.dice.clone();
        for topic in TOPICS {
            for part in 0..PARTS {
                if !desk.cursors.contains_key(&(topic, part)) {
                    desk.resume(topic, part);
                }
            }
        }
        let topic = TOPICS[usize::from(dice.permille(500))];
        let part = u32::try_from(dice.below(u64::from(PARTS))).expect("few");
        match dice.below(10) {
            0..5 => desk.fetch(topic, part, u32::try_from(dice.below(800)).expect("small")),
            5..7 => desk.commit(topic, part),
            7 if self.shared.habits.waits => desk.send_back(),
            _ => self.produce(desk),
        }
    }
}
