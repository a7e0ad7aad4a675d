//! The checkers checked: bugs planted into legal histories, each of which the checker that owns its promise must find.
//!
//! Owns: the list of bugs. Promises: each is planted as it would show in a history of real clients, and at least once in
//! a handful of seeds. Does not know: how the checkers work.

use std::collections::HashMap;

use super::all;
use crate::history::event::{
    Cursor, Damaged, Delivery, Edge, Event, Msg, Name, Offset, Op, Outcome, Publish, Scan,
};
use crate::history::{History, Names};
use crate::model::{self, dice::Dice};
use proptest::prelude::*;

/// What a broker could do wrong, the rule that must find it, and how it is planted; none where a history has no place
/// for it.
type Bug = (&'static str, &'static str, fn(&mut Story) -> Option<()>);

const BUGS: [Bug; 37] = [
    ("loses a confirmed message", "loss.lost", lose_one),
    ("forgets to store a dead letter", "loss.dead_letter", forget_dead_letter),
    ("lets a group skip a message", "loss.skipped", skip_in_group),
    ("changes a property", "phantom.changed", change_a_byte),
    ("damages a body", "phantom.damaged", damage_a_body),
    ("invents a message", "phantom.unknown", invent),
    ("stores what it refused", "phantom.refused", store_refused),
    ("delivers before it received", "phantom.early", deliver_early),
    ("delivers to the wrong queue", "phantom.misrouted", misroute),
    ("delivers again what was acknowledged", "duplicate.after_ack", redeliver_acked),
    ("delivers twice", "duplicate.excess", deliver_twice),
    ("delivers again below a stored offset", "duplicate.below_committed", pull_below_stored),
    ("drops the redelivered flag", "duplicate.flag_missing", drop_flag),
    ("swaps two messages of a publisher", "order.arrival", |story| swap_arrivals(story, true)),
    ("swaps two offsets", "order.position", swap_offsets),
    ("counts a channel's tags back", "order.tags", swap_tags),
    ("reuses an offset", "offset.reused", reuse_offset),
    ("stores one copy twice", "offset.moved", store_twice),
    ("tells a sender a wrong offset", "offset.send_differs", tell_wrong_offset),
    ("leaves a hole", "offset.gap", leave_hole),
    ("forgets the end of a topic", "offset.max_went_back", forget_end),
    ("brings trimmed messages back", "offset.min_went_back", untrim),
    ("forgets a stored offset", "offset.commit_went_back", forget_commit),
    ("has two active consumers", "one_active.interleaved", two_active),
    ("gives out an old token", "one_active.token_went_back", old_token),
    ("accepts an acknowledgement of the past", "one_active.stale_ack", accept_stale),
    ("swaps two publishers' messages", "queue_lin.overtaken", |story| swap_arrivals(story, false)),
    ("answers empty falsely", "queue_lin.false_empty", answer_empty),
    ("lets a message be settled twice", "queue_lin.dequeued_twice", settle_twice),
    ("lets a replica diverge", "replica.diverged", diverge),
    ("never compares a replica", "replica.never_compared", compare_never),
    ("delivers nothing after healing", "liveness.no_delivery", stop_delivering),
    ("confirms nothing after healing", "liveness.no_confirm", stop_confirming),
    ("does not converge", "liveness.not_converged", |story| story.remove(|op| matches!(op, Op::Converged))),
    ("changes its leader in calm", "liveness.leader_changed", change_leader),
    ("was not killed as planned", "vacuity.fault", |story| story.remove(|op| matches!(op, Op::Fault { .. }))),
    ("confirmed too little", "vacuity.confirms", plan_more),
];

/// A history to be spoiled.
#[derive(Clone)]
struct Story {
    events: Vec<Event>,
    names: Names,
    dice: Dice,
    /// The events about each message, before anything is spoiled.
    lives: HashMap<Msg, Vec<usize>>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let history = model::live(seed, 3_000);
        let events = history.events().to_vec();
        let mut lives: HashMap<Msg, Vec<usize>> = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            if let Some(msg) = event.op.msg() {
                lives.entry(msg).or_default().push(at);
            }
        }
        Self { events, names: history.names().clone(), dice: Dice::new(seed), lives }
    }

    fn name(&self, text: &str) -> Name {
        self.names.find(text).expect("a word of the model")
    }

    fn is_in(&self, op: &Op, queue: &str) -> bool {
        queue_of(op) == Some(self.name(queue))
    }

    /// One of the events that `fits`, by chance.
    fn pick(&mut self, fits: impl Fn(&Self, &Event) -> bool) -> Option<usize> {
        let fitting: Vec<_> = (0..self.events.len()).filter(|at| fits(self, &self.events[*at])).collect();
        (!fitting.is_empty()).then(|| fitting[self.dice.index(fitting.len())])
    }

    /// A delivery that `fits`, of a message published once for certain, which its reader got once.
    fn pick_plain(&mut self, fits: impl Fn(&Self, &Event, &Delivery) -> bool) -> Option<(usize, Delivery)> {
        let at = self.pick(|story, event| match &event.op {
            Op::Deliver(delivery) => story.is_plain(delivery) && fits(story, event, delivery),
            _ => false,
        })?;
        delivery(&self.events[at].op).map(|delivery| (at, *delivery))
    }

    fn is_plain(&self, delivery: &Delivery) -> bool {
        let same = |other: &&Delivery| (other.queue, other.group) == (delivery.queue, delivery.group);
        let times = self.about(delivery.msg).filter_map(|event| self::delivery(&event.op)).filter(same);
        delivery.redelivered != Some(true)
            && !self.is_in(&Op::Deliver(*delivery), "dead")
            && self.only_publish(delivery.msg).is_some()
            && times.count() == 1
    }

    fn about(&self, msg: Msg) -> impl Iterator<Item = &Event> {
        self.lives[&msg].iter().map(|at| &self.events[*at])
    }

    /// The only publish of a message, if it is certain.
    fn only_publish(&self, msg: Msg) -> Option<&Event> {
        let mut publishes = self.about(msg).filter(|event| matches!(event.op, Op::Publish(_)));
        let first = publishes.next()?;
        (publishes.next().is_none() && first.happened()).then_some(first)
    }

    fn publish_of(&mut self, msg: Msg) -> &mut Event {
        let is_it = |event: &&mut Event| matches!(event.op, Op::Publish(publish) if publish.msg == msg);
        self.events.iter_mut().find(is_it).expect("a plain message was published")
    }

    /// Whether nobody lost anything around the time from `begin` to `end`.
    fn is_calm(&self, begin: u64, end: u64) -> bool {
        let breaks = |event: &&Event| matches!(event.op, Op::Crash | Op::Lost { .. });
        !self.events.iter().filter(breaks).any(|event| event.t0 <= end && event.t1 >= begin)
    }

    fn end(&self) -> u64 {
        self.events.iter().map(|event| event.t1).max().unwrap_or(0) + 1
    }

    /// Adds an event at one instant, in its place.
    fn add(&mut self, at: u64, client: Name, op: Op) -> Option<()> {
        self.events.push(Event { t0: at, t1: at, client, outcome: Outcome::Ok, op });
        Some(())
    }

    fn drop_if(&mut self, mut goes: impl FnMut(&Event) -> bool) -> Option<()> {
        let before = self.events.len();
        self.events.retain(|event| !goes(event));
        (self.events.len() < before).then_some(())
    }

    /// Removes the first event of a kind.
    fn remove(&mut self, of_kind: fn(&Op) -> bool) -> Option<()> {
        let at = self.events.iter().position(|event| of_kind(&event.op))?;
        self.events.remove(at);
        Some(())
    }

    /// Exchanges the messages that two events are about.
    fn exchange(&mut self, one: usize, other: usize) -> Option<()> {
        let [a, b] = [one, other].map(|at| identity(&self.events[at].op));
        set_identity(&mut self.events[one].op, b?);
        set_identity(&mut self.events[other].op, a?);
        Some(())
    }

    fn find(self, rule: &str) -> Result<(), String> {
        let report = all(&History::new(self.names, self.events));
        if report.findings().totals().contains_key(rule) { Ok(()) } else { Err(report.to_string()) }
    }
}

fn delivery(op: &Op) -> Option<&Delivery> {
    match op {
        Op::Deliver(delivery) => Some(delivery),
        _ => None,
    }
}

fn queue_of(op: &Op) -> Option<Name> {
    match op {
        Op::Publish(publish) => Some(publish.queue),
        Op::Deliver(delivery) => Some(delivery.queue),
        Op::Scan(scan) => Some(scan.queue),
        Op::Ack(settle) | Op::Requeue(settle) | Op::Reject(settle) => Some(settle.queue),
        _ => None,
    }
}

fn identity(op: &Op) -> Option<(Msg, Option<u32>)> {
    match op {
        Op::Deliver(delivery) => Some((delivery.msg, delivery.sum)),
        Op::Scan(scan) => Some((scan.msg, scan.sum)),
        _ => None,
    }
}

fn set_identity(op: &mut Op, (msg, sum): (Msg, Option<u32>)) {
    match op {
        Op::Deliver(delivery) => (delivery.msg, delivery.sum) = (msg, sum),
        Op::Scan(scan) => (scan.msg, scan.sum) = (msg, sum),
        _ => {}
    }
}

fn place(op: &Op) -> Option<(Name, u16, Offset)> {
    match op {
        Op::Deliver(delivery) => Some((delivery.queue, delivery.part, delivery.offset?)),
        Op::Scan(scan) => Some((scan.queue, scan.part, scan.offset)),
        _ => None,
    }
}

fn moved(offset: Offset, by: i64) -> Option<Offset> {
    offset.get().checked_add_signed(by).and_then(Offset::new)
}

fn lose_one(story: &mut Story) -> Option<()> {
    // The mortal queue may lose, by its rules.
    let (_, Delivery { msg, .. }) = story.pick_plain(|story, event, _| !story.is_in(&event.op, "mortal"))?;
    story.drop_if(|event| event.op.msg() == Some(msg) && !matches!(event.op, Op::Publish(_)))
}

fn forget_dead_letter(story: &mut Story) -> Option<()> {
    let rejected = story.pick(|story, event| match event.op {
        Op::Reject(settle) => {
            story.is_in(&event.op, "work")
                && story.only_publish(settle.msg).is_some()
                && !story.about(settle.msg).any(|e| matches!(e.op, Op::Ack(_)) && story.is_in(&e.op, "work"))
        }
        _ => false,
    })?;
    let msg = story.events[rejected].op.msg();
    let dead = story.name("dead");
    story.drop_if(|event| event.op.msg() == msg && queue_of(&event.op) == Some(dead))
}

fn skip_in_group(story: &mut Story) -> Option<()> {
    let group = story.name("g1");
    let (at, _) = story.pick_plain(|_, _, delivery| delivery.group == group)?;
    story.events.remove(at);
    Some(())
}

fn change_a_byte(story: &mut Story) -> Option<()> {
    let (at, delivery) = story.pick_plain(|_, _, _| true)?;
    let sum = delivery.sum.map(|sum| sum ^ 1);
    set_identity(&mut story.events[at].op, (delivery.msg, sum));
    Some(())
}

fn damage_a_body(story: &mut Story) -> Option<()> {
    let (at, Delivery { queue, .. }) = story.pick_plain(|_, _, _| true)?;
    let why = story.names.name("checksum differs");
    story.events[at].op = Op::Damaged(Damaged { queue, why });
    Some(())
}

fn invent(story: &mut Story) -> Option<()> {
    let (at, delivery) = story.pick_plain(|_, _, delivery| delivery.offset.is_none())?;
    let Event { t0, client, .. } = story.events[at];
    let msg = Msg { seq: u32::MAX, ..delivery.msg };
    story.add(t0 + 1, client, Op::Deliver(Delivery { msg, tag: None, ..delivery }))
}

fn store_refused(story: &mut Story) -> Option<()> {
    let (_, Delivery { msg, .. }) = story.pick_plain(|_, _, _| true)?;
    story.publish_of(msg).outcome = Outcome::Fail;
    Some(())
}

fn deliver_early(story: &mut Story) -> Option<()> {
    let (at, Delivery { msg, .. }) = story.pick_plain(|_, _, _| true)?;
    let arrival = story.events[at].t1;
    let publish = story.publish_of(msg);
    (publish.t0, publish.t1) = (arrival + 1, arrival + 2);
    Some(())
}

fn misroute(story: &mut Story) -> Option<()> {
    let (at, delivery) = story.pick_plain(|story, event, _| story.is_in(&event.op, "left"))?;
    let queue = story.name("mortal");
    story.events[at].op = Op::Deliver(Delivery { queue, ..delivery });
    Some(())
}

fn redeliver_acked(story: &mut Story) -> Option<()> {
    let ack = |story: &Story, delivery: &Delivery| {
        let acks = |event: &&Event| match event.op {
            Op::Ack(settle) => event.happened() && settle.queue == delivery.queue,
            _ => false,
        };
        story.about(delivery.msg).find(acks).map(|event| event.t1)
    };
    let (at, delivery) = story.pick_plain(|story, _, delivery| ack(story, delivery).is_some())?;
    let end = ack(story, &delivery)?;
    let again = Delivery { redelivered: Some(true), tag: None, ..delivery };
    story.add(end + 1, story.events[at].client, Op::Deliver(again))
}

fn deliver_twice(story: &mut Story) -> Option<()> {
    let (at, delivery) = story.pick_plain(|story, event, _| story.is_calm(event.t0, event.t1 + 1))?;
    let Event { t1, client, .. } = story.events[at];
    let again = delivery.redelivered.map(|_| true);
    story.add(t1 + 1, client, Op::Deliver(Delivery { redelivered: again, tag: None, ..delivery }))
}

fn pull_below_stored(story: &mut Story) -> Option<()> {
    let group = story.name("g1");
    let (at, delivery) = story.pick_plain(|_, _, delivery| delivery.group == group)?;
    story.add(story.end(), story.events[at].client, Op::Deliver(delivery))
}

fn drop_flag(story: &mut Story) -> Option<()> {
    let at = story.pick(|story, event| match &event.op {
        Op::Deliver(again) if again.redelivered == Some(true) => {
            let same = |event: &&Event| delivery(&event.op).is_some_and(|other| other.queue == again.queue);
            let times: Vec<_> = story.about(again.msg).filter(same).collect();
            let crash = |e: &Event| matches!(e.op, Op::Crash) && e.t0 <= event.t1 && e.t1 >= times[0].t0;
            story.only_publish(again.msg).is_some()
                && times.len() == 2
                && times[0] != event
                && !story.events.iter().any(crash)
        }
        _ => false,
    })?;
    let again = *delivery(&story.events[at].op)?;
    story.events[at].op = Op::Deliver(Delivery { redelivered: Some(false), ..again });
    Some(())
}

/// Of two plain deliveries to one consumer between two crashes, of one publisher or of two that published one after the
/// other.
fn swap_arrivals(story: &mut Story, one_publisher: bool) -> Option<()> {
    let (first, before) = story.pick_plain(|_, _, delivery| delivery.offset.is_none())?;
    let Event { t0: begin, client, .. } = story.events[first];
    let sent = *story.only_publish(before.msg)?;
    let (second, _) = story.pick_plain(|story, event, after| {
        let publish = story.only_publish(after.msg).expect("plain");
        let crash = |e: &Event| matches!(e.op, Op::Crash) && e.t0 <= event.t1 && e.t1 >= begin;
        event.client == client
            && event.t0 > begin
            && (after.msg.publisher == before.msg.publisher) == one_publisher
            && publish.t0 > sent.t1
            && !story.events.iter().any(crash)
    })?;
    story.exchange(first, second)
}

fn swap_offsets(story: &mut Story) -> Option<()> {
    let group = story.name("g1");
    let (_, first) = story.pick_plain(|_, _, delivery| delivery.group == group)?;
    let (_, second) = story.pick_plain(|_, _, other| {
        (other.group, other.part, other.msg.publisher) == (first.group, first.part, first.msg.publisher)
            && other.msg != first.msg
    })?;
    let [first, second] = [first, second].map(Op::Deliver);
    for event in &mut story.events {
        for (from, to) in [(&first, &second), (&second, &first)] {
            if place(&event.op).is_some() && place(&event.op) == place(from) {
                set_identity(&mut event.op, identity(to)?);
                break;
            }
        }
    }
    Some(())
}

fn swap_tags(story: &mut Story) -> Option<()> {
    let at = (0..story.events.len()).find(|at| {
        let event = &story.events[*at];
        let before =
            story.events[..*at].iter().rfind(|e| e.client == event.client && delivery(&e.op).is_some());
        let tagged = delivery(&event.op).is_some_and(|delivery| delivery.tag.is_some());
        tagged && before.is_some_and(|before| story.is_calm(before.t0, event.t1))
    })?;
    let late = *delivery(&story.events[at].op)?;
    story.events[at].op = Op::Deliver(Delivery { tag: std::num::NonZeroU64::new(1), ..late });
    Some(())
}

/// Two scans of one part; the second is at least the third of the part.
fn two_scans(story: &mut Story) -> Option<(usize, usize)> {
    let second = story.pick(|_, event| matches!(event.op, Op::Scan(scan) if scan.offset.get() > 1))?;
    let Op::Scan(there) = story.events[second].op else { return None };
    let client = story.events[second].client;
    let first = story.pick(|_, event| match event.op {
        Op::Scan(scan) => event.client == client && scan.part == there.part && scan.offset < there.offset,
        _ => false,
    })?;
    Some((first, second))
}

fn reuse_offset(story: &mut Story) -> Option<()> {
    let (first, second) = two_scans(story)?;
    let stolen = identity(&story.events[first].op)?;
    set_identity(&mut story.events[second].op, stolen);
    Some(())
}

fn store_twice(story: &mut Story) -> Option<()> {
    // Its sender must not know where it is, or it is another rule's find.
    let unknown = |story: &Story, msg: Msg| {
        let publishes = story.about(msg).filter(|event| matches!(event.op, Op::Publish(_)));
        publishes.map(|event| event.outcome).collect::<Vec<_>>() == [Outcome::Info]
    };
    let at = story.pick(|story, event| matches!(event.op, Op::Scan(scan) if unknown(story, scan.msg)))?;
    let Op::Scan(scan) = story.events[at].op else { return None };
    let end = Offset::new(1_000_000)?;
    story.add(story.end(), story.events[at].client, Op::Scan(Scan { offset: end, ..scan }))
}

fn tell_wrong_offset(story: &mut Story) -> Option<()> {
    let group = story.name("g1");
    let (_, Delivery { msg, .. }) = story.pick_plain(|_, _, delivery| delivery.group == group)?;
    let event = story.publish_of(msg);
    let Op::Publish(publish) = event.op else { return None };
    event.op = Op::Publish(Publish { offset: moved(publish.offset?, 1), ..publish });
    Some(())
}

fn leave_hole(story: &mut Story) -> Option<()> {
    let (first, _) = two_scans(story)?;
    let hole = place(&story.events[first].op)?;
    if hole.2.get() == 0 {
        return None;
    }
    let msg = story.events[first].op.msg();
    story.drop_if(|event| {
        place(&event.op) == Some(hole) || (matches!(event.op, Op::Publish(_)) && event.op.msg() == msg)
    })
}

fn forget_end(story: &mut Story) -> Option<()> {
    let at = story.pick(|_, e| e.happened() && matches!(e.op, Op::Publish(p) if p.offset.is_some()))?;
    let Op::Publish(Publish { queue, part, offset, .. }) = story.events[at].op else { return None };
    let Event { t1, client, .. } = story.events[at];
    story.add(t1 + 1, client, Op::MaxOffset(Edge { queue, part: part?, offset: offset? }))
}

fn untrim(story: &mut Story) -> Option<()> {
    let (queue, client) = (story.name("topic"), story.name("harness"));
    for offset in [5, 4] {
        let offset = Offset::new(offset)?;
        story.add(story.end(), client, Op::MinOffset(Edge { queue, part: 0, offset }))?;
    }
    Some(())
}

fn forget_commit(story: &mut Story) -> Option<()> {
    let group = story.name("g1");
    let at = story.pick(|_, e| e.happened() && matches!(e.op, Op::Commit(c) if c.group == group))?;
    let Op::Commit(cursor) = story.events[at].op else { return None };
    let Event { t1, client, .. } = story.events[at];
    let offset = moved(cursor.offset, -1)?;
    story.add(t1 + 1, client, Op::Committed(Cursor { offset, ..cursor }))
}

/// Three plain deliveries of the single queue, of messages that one publisher sent one after the other, while nobody
/// was lost.
fn turn_of_three(story: &Story) -> Option<[usize; 3]> {
    let mut plain: Vec<_> = (0..story.events.len())
        .filter_map(|at| delivery(&story.events[at].op).map(|delivery| (delivery.msg, at, delivery)))
        .filter(|(_, _, delivery)| story.is_in(&Op::Deliver(**delivery), "right") && story.is_plain(delivery))
        .map(|(msg, at, _)| (msg, at))
        .collect();
    plain.sort_unstable();
    let turn = plain.windows(3).find(|turn| {
        let [a, b, c] = [0, 1, 2].map(|at| &story.events[turn[at].1]);
        turn[0].0.publisher == turn[2].0.publisher
            && (a.client, b.client) == (b.client, c.client)
            && story.is_calm(a.t0, c.t1)
    })?;
    Some([0, 1, 2].map(|at| turn[at].1))
}

fn two_active(story: &mut Story) -> Option<()> {
    let [_, middle, _] = turn_of_three(story)?;
    let pair = ["right-a", "right-b"].map(|text| story.name(text));
    let event = &mut story.events[middle];
    event.client = if event.client == pair[0] { pair[1] } else { pair[0] };
    Some(())
}

fn old_token(story: &mut Story) -> Option<()> {
    let [_, middle, _] = turn_of_three(story)?;
    let now = *delivery(&story.events[middle].op)?;
    let old = std::num::NonZeroU32::new(now.token?.get() - 1)?;
    story.events[middle].op = Op::Deliver(Delivery { token: Some(old), ..now });
    Some(())
}

fn accept_stale(story: &mut Story) -> Option<()> {
    let refused =
        |event: &Event| event.outcome == Outcome::Fail && matches!(event.op, Op::Ack(s) if s.token.is_some());
    let at = story.pick(|_, event| refused(event))?;
    let end = story.end();
    let event = &mut story.events[at];
    (event.outcome, event.t0, event.t1) = (Outcome::Ok, end, end);
    Some(())
}

fn answer_empty(story: &mut Story) -> Option<()> {
    let ready = |story: &Story, event: &Event, msg: Msg| {
        let confirmed = story.only_publish(msg).map(|publish| publish.t1);
        confirmed.filter(|confirmed| confirmed + 2 < event.t0 && story.is_calm(*confirmed, event.t1))
    };
    let (at, Delivery { msg, queue, .. }) = story.pick_plain(|story, event, delivery| {
        story.is_in(&event.op, "left") && ready(story, event, delivery.msg).is_some()
    })?;
    let confirmed = ready(story, &story.events[at], msg)?;
    story.add(confirmed + 1, story.events[at].client, Op::Empty { queue })
}

fn settle_twice(story: &mut Story) -> Option<()> {
    let at = story.pick(|story, event| {
        let once = || event.op.msg().is_some_and(|msg| story.only_publish(msg).is_some());
        matches!(event.op, Op::Ack(_)) && event.happened() && once()
    })?;
    let again = story.events[at];
    story.add(again.t1 + 1, again.client, again.op)
}

fn last_digest(story: &Story) -> Option<(usize, Name)> {
    let at = story.events.iter().rposition(|event| matches!(event.op, Op::Digest { .. }))?;
    let Op::Digest { scope, .. } = story.events[at].op else { return None };
    Some((at, scope))
}

fn diverge(story: &mut Story) -> Option<()> {
    let (at, _) = last_digest(story)?;
    let Op::Digest { scope, index, hash } = story.events[at].op else { return None };
    story.events[at].op = Op::Digest { scope, index, hash: hash ^ 1 };
    Some(())
}

fn compare_never(story: &mut Story) -> Option<()> {
    let (_, scope) = last_digest(story)?;
    let client = story.name("harness");
    story.add(story.end(), client, Op::Digest { scope, index: u64::MAX, hash: 0 })
}

fn healed(story: &Story) -> Option<u64> {
    story.events.iter().find(|event| matches!(event.op, Op::Healed)).map(|event| event.t0)
}

fn stop_delivering(story: &mut Story) -> Option<()> {
    let (since, queue) = (healed(story)?, story.name("work"));
    story.drop_if(|event| {
        event.t1 >= since && delivery(&event.op).is_some_and(|delivery| delivery.queue == queue)
    })
}

fn stop_confirming(story: &mut Story) -> Option<()> {
    let (since, queue) = (healed(story)?, story.name("work"));
    for event in story.events.iter_mut().filter(|event| event.t0 >= since) {
        if matches!(event.op, Op::Publish(publish) if publish.queue == queue) {
            event.outcome = Outcome::Info;
        }
    }
    Some(())
}

fn change_leader(story: &mut Story) -> Option<()> {
    let client = story.name("n1");
    story.add(story.end(), client, Op::Leader { term: 1_000 })
}

fn plan_more(story: &mut Story) -> Option<()> {
    let confirms = story.name("confirms");
    for event in &mut story.events {
        if let Op::Plan { what, count } = &mut event.op
            && *what == confirms
        {
            *count *= 2;
        }
    }
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_bug_planted_into_a_legal_history_is_found_by_its_rule(seed: u64) {
        let legal = Story::new(seed);
        for (bug, rule, plant) in BUGS {
            let mut story = legal.clone();
            if plant(&mut story).is_some()
                && let Err(report) = story.find(rule)
            {
                prop_assert!(false, "a broker that {bug} passes {rule}:\n{report}");
            }
        }
    }
}

#[test]
fn every_bug_finds_a_place_in_most_legal_histories() {
    let legal: Vec<_> = (0..8).map(Story::new).collect();
    for (bug, _, plant) in BUGS {
        let planted = legal.iter().filter(|story| plant(&mut (*story).clone()).is_some()).count();
        assert!(planted >= 4, "only {planted} of 8 histories have a place for a broker that {bug}");
    }
}
