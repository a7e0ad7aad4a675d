//! A queue behaves as if its operations took place one by one, each within its own time.
//!
//! Values are unique, so that four patterns are all that can go wrong (Henzinger, Sezgin and Vafeiadis, CONCUR 2013);
//! each is a sort and a sweep. The first, a value dequeued that was never enqueued or only later, is `phantom`'s.
//!
//! Owns: rule 7. Promises: only what the order of begin and end proves is reported. Left out, as they may be ready
//! later than enqueued: messages sent or delivered more than once, or flagged, or beyond a crash.
//! Does not know: the protocols; a pushed delivery's beginning is unknown, so pushes are compared at one consumer.

use std::collections::{HashMap, HashSet};

use super::Findings;
use super::view::{Life, Seen, View, same_reader};
use crate::history::event::{Event, Msg, Name, Offset, Op};

/// Finds `queue_lin.dequeued_twice`, `queue_lin.overtaken` (enqueued strictly later, yet before it by place or strictly
/// earlier dequeued), `queue_lin.false_empty` (answered empty while it never was).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let asked_empty = asked_empty(view);
    let mut placed = Vec::new();
    let mut lanes = Lanes::default();
    let mut presences: HashMap<Name, Vec<Presence>> = HashMap::new();
    for life in view.lives() {
        judge_dequeues(view, life, &mut findings);
        note_place(view, life, &mut placed);
        for deliveries in life.deliveries().chunk_by(same_reader) {
            let Some(transit) = Transit::of(view, life, deliveries) else {
                continue;
            };
            lanes.add(view, transit);
            if asked_empty.contains(&transit.queue)
                && let Some(presence) = Presence::of(view, transit)
            {
                presences.entry(transit.queue).or_default().push(presence);
            }
        }
    }
    judge_places(view, placed, &mut findings);
    lanes.judge(view, &mut findings);
    judge_empties(view, presences, &mut findings);
    findings
}

/// Each copy is settled for good at most once by each reader.
fn judge_dequeues(view: &View<'_>, life: Life<'_>, findings: &mut Findings) {
    let mut done: Vec<(Name, Name, usize)> = Vec::new();
    for (index, event) in life.iter().filter(|(_, event)| event.happened()) {
        if let Op::Ack(settle) | Op::Reject(settle) = event.op {
            done.push((settle.queue, settle.group, index));
        }
    }
    if done.len() < 2 {
        return;
    }
    done.sort_unstable();
    for same in done.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let queue = same[0].0;
        if view.copies(life, queue).is_some_and(|copies| same.len() > copies.max(1)) {
            let evidence: Vec<_> = same.iter().map(|(_, _, index)| *index).collect();
            findings.add("queue_lin.dequeued_twice", &evidence, || {
                let (msg, queue) = (view.msg(life.msg()), view.text(queue));
                format!("{msg} was certainly settled {} times in {queue:?}", same.len())
            });
        }
    }
}

/// A message at a certain place of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    queue: (Name, u16),
    offset: Offset,
    publish: u32,
}

fn note_place(view: &View<'_>, life: Life<'_>, placed: &mut Vec<Placed>) {
    let Some((publish, _, sent)) = view.only_attempt(life) else {
        return;
    };
    let place = |(_, event): (usize, &Event)| match event.op {
        Op::Publish(publish) => {
            publish.part.zip(publish.offset).map(|(p, offset)| (publish.queue, p, offset))
        }
        Op::Deliver(delivery) => delivery.offset.map(|offset| (delivery.queue, delivery.part, offset)),
        Op::Scan(scan) => Some((scan.queue, scan.part, scan.offset)),
        _ => None,
    };
    let mut known: Vec<_> =
        life.iter().filter_map(place).filter(|(queue, ..)| view.keeps_order(sent, *queue)).collect();
    known.sort_unstable();
    known.dedup();
    for (queue, part, offset) in known {
        placed.push(Placed { queue: (queue, part), offset, publish: narrow(publish) });
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a view has fewer than 2^32 events")
}

/// When an enqueue was certainly over; one of unknown outcome may take effect at any later time.
fn certain_end(enqueue: &Event) -> u64 {
    if enqueue.happened() { enqueue.t1 } else { u64::MAX }
}

/// Nothing lies behind what was enqueued strictly after it.
fn judge_places(view: &View<'_>, mut placed: Vec<Placed>, findings: &mut Findings) {
    placed.sort_unstable();
    for queue in placed.chunk_by(|a, b| a.queue == b.queue) {
        let mut latest: Option<Placed> = None;
        for here in queue {
            let enqueue = &view.events[here.publish as usize];
            let before =
                latest.filter(|latest| certain_end(enqueue) < view.events[latest.publish as usize].t0);
            if let Some(before) = before {
                report_overtaken(view, before.publish, here.publish, here.queue.0, findings);
            }
            if latest.is_none_or(|latest| view.events[latest.publish as usize].t0 < enqueue.t0) {
                latest = Some(*here);
            }
        }
    }
}

fn report_overtaken(view: &View<'_>, first: u32, second: u32, queue: Name, findings: &mut Findings) {
    let evidence = [first as usize, second as usize];
    findings.add("queue_lin.overtaken", &evidence, || {
        let msg =
            |index: usize| view.events[index].op.msg().map_or_else(String::new, |msg: Msg| view.msg(msg));
        let [later, earlier] = evidence.map(msg);
        format!(
            "{later} came before {earlier} in {:?}, though it was enqueued strictly later",
            view.text(queue)
        )
    });
}

/// A message's only way through a queue: enqueued once, delivered once, never given back.
#[derive(Debug, Clone, Copy)]
struct Transit {
    queue: Name,
    group: Name,
    enqueue: usize,
    dequeue: usize,
    placed: bool,
    pushed: bool,
}

impl Transit {
    fn of(view: &View<'_>, life: Life<'_>, deliveries: &[Seen<'_>]) -> Option<Self> {
        let [Seen { index, delivery, .. }] = *deliveries else {
            return None;
        };
        let (enqueue, _, sent) = view.only_attempt(life)?;
        if delivery.redelivered == Some(true) || !view.keeps_order(sent, delivery.queue) {
            return None;
        }
        Some(Self {
            queue: delivery.queue,
            group: delivery.group,
            enqueue,
            dequeue: index,
            placed: delivery.offset.is_some(),
            pushed: !delivery.asked,
        })
    }
}

/// Dequeues that can be compared by time: those asked of one queue, and those pushed to one consumer.
#[derive(Debug, Default)]
struct Lanes {
    numbers: HashMap<(Name, Name, Option<Name>, u64), u32>,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    lane: u32,
    enqueue: u32,
    dequeue: u32,
}

impl Lanes {
    fn add(&mut self, view: &View<'_>, transit: Transit) {
        let event = &view.events[transit.dequeue];
        // Places decide better than times, and groups of a topic may jump.
        let Some(epoch) = view.breaks.epoch(event.t0).filter(|_| !transit.placed) else {
            return;
        };
        let consumer = transit.pushed.then_some(event.client);
        let next = narrow(self.numbers.len());
        let lane = *self.numbers.entry((transit.queue, transit.group, consumer, epoch)).or_insert(next);
        self.steps.push(Step { lane, enqueue: narrow(transit.enqueue), dequeue: narrow(transit.dequeue) });
    }

    /// Sweeps over dequeues by their beginning; of those that ended before, the latest enqueued is the one to beat.
    fn judge(mut self, view: &View<'_>, findings: &mut Findings) {
        let event = |index: u32| &view.events[index as usize];
        self.steps.sort_unstable_by_key(|step| (step.lane, event(step.dequeue).t1));
        let ended = self.steps.clone();
        // Events stand in the order in which they began.
        self.steps.sort_unstable_by_key(|step| (step.lane, step.dequeue));
        let mut ended = ended.into_iter().peekable();
        let mut latest: Option<Step> = None;
        for step in &self.steps {
            latest = latest.filter(|latest| latest.lane == step.lane);
            let begin = event(step.dequeue).t0;
            let over = |other: &Step| {
                other.lane < step.lane || (other.lane == step.lane && event(other.dequeue).t1 < begin)
            };
            while let Some(other) = ended.next_if(over) {
                let later = |latest: Step| event(latest.enqueue).t0 < event(other.enqueue).t0;
                if other.lane == step.lane && latest.is_none_or(later) {
                    latest = Some(other);
                }
            }
            let enqueue = event(step.enqueue);
            if let Some(before) = latest.filter(|latest| certain_end(enqueue) < event(latest.enqueue).t0) {
                let queue = match event(step.dequeue).op {
                    Op::Deliver(delivery) => delivery.queue,
                    _ => Name::NONE,
                };
                report_overtaken(view, before.enqueue, step.enqueue, queue, findings);
            }
        }
    }
}

fn asked_empty(view: &View<'_>) -> HashSet<Name> {
    let queue = |(_, event): (usize, &Event)| match event.op {
        Op::Empty { queue } if event.happened() => Some(queue),
        _ => None,
    };
    view.events().filter_map(queue).collect()
}

/// A span in which a message was certainly ready in its queue: after its confirm, before it was asked for, and after
/// any crash between, for until then someone may have held it unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Presence {
    from: u64,
    until: u64,
    enqueue: usize,
}

impl Presence {
    fn of(view: &View<'_>, transit: Transit) -> Option<Self> {
        let until = view.events[transit.dequeue].t0;
        let from = certain_end(&view.events[transit.enqueue]).max(view.breaks.epoch(until)?);
        let sure = !transit.pushed && from < until;
        sure.then_some(Self { from, until, enqueue: transit.enqueue })
    }
}

/// Each empty answer needs one instant within its time in which no message was certainly ready.
fn judge_empties(view: &View<'_>, mut presences: HashMap<Name, Vec<Presence>>, findings: &mut Findings) {
    for spans in presences.values_mut() {
        spans.sort_unstable();
        merge(spans);
    }
    for (index, event) in view.events().filter(|(_, event)| event.happened()) {
        let Op::Empty { queue } = event.op else {
            continue;
        };
        let spans = presences.get(&queue).map_or(&[][..], Vec::as_slice);
        let before = spans.partition_point(|span| span.from < event.t0).checked_sub(1);
        let filled = before.map(|at| spans[at]).filter(|span| span.until > event.t1);
        if let Some(span) = filled {
            findings.add("queue_lin.false_empty", &[span.enqueue, index], || {
                format!("{:?} was answered empty when it was not", view.text(queue))
            });
        }
    }
}

/// Joins spans that overlap: in their union some message was ready at every instant. The first one stays as evidence.
fn merge(spans: &mut Vec<Presence>) {
    spans.dedup_by(|next, kept| {
        let overlaps = next.from < kept.until;
        if overlaps {
            kept.until = kept.until.max(next.until);
        }
        overlaps
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    const SENT: [&str; 2] = ["p publish queue=q msg=p/1", "r publish queue=q msg=r/1"];

    fn after_sent(lines: &[&str]) -> Vec<&'static str> {
        rules(&[&SENT[..], lines].concat())
    }

    #[test]
    fn a_value_enqueued_strictly_later_must_not_be_dequeued_strictly_earlier() {
        let overtaken = ["c deliver queue=q msg=r/1 asked", "d deliver queue=q msg=p/1 asked"];
        assert_eq!(after_sent(&overtaken), ["queue_lin.overtaken"]);
        assert!(after_sent(&[overtaken[1], overtaken[0]]).is_empty());
    }

    #[test]
    fn enqueues_or_dequeues_that_overlap_may_take_either_order() {
        let beside = [
            "p publish queue=q msg=p/1 t0=10 t1=30",
            "r publish queue=q msg=r/1 t0=20 t1=40",
            "c deliver queue=q msg=r/1 asked t0=50 t1=60",
            "d deliver queue=q msg=p/1 asked t0=70 t1=80",
        ];
        assert!(rules(&beside).is_empty());
        let dequeues = [
            "c deliver queue=q msg=r/1 asked t0=5000 t1=7000",
            "d deliver queue=q msg=p/1 asked t0=6000 t1=8000",
        ];
        assert!(after_sent(&dequeues).is_empty());
    }

    #[test]
    fn pushes_are_compared_at_one_consumer_only() {
        let one = ["c deliver queue=q msg=r/1", "c deliver queue=q msg=p/1"];
        assert_eq!(after_sent(&one), ["queue_lin.overtaken"]);
        assert!(after_sent(&[one[0], "d deliver queue=q msg=p/1"]).is_empty());
    }

    #[test]
    fn an_enqueue_of_unknown_outcome_may_take_effect_late() {
        let lines = [
            "p publish queue=q msg=p/1 outcome=info",
            "r publish queue=q msg=r/1",
            "c deliver queue=q msg=r/1 asked",
            "c deliver queue=q msg=p/1 asked",
        ];
        assert!(rules(&lines).is_empty());
    }

    #[test]
    fn by_place_the_order_is_judged_whoever_reads() {
        let lines = ["n1 scan queue=q msg=r/1 offset=0", "n2 scan queue=q msg=p/1 offset=1"];
        assert_eq!(after_sent(&lines), ["queue_lin.overtaken"]);
    }

    #[test]
    fn a_value_is_settled_once() {
        let deliver = "c deliver queue=q msg=p/1";
        let ack = "c ack queue=q msg=p/1";
        assert_eq!(after_sent(&[deliver, ack, ack]), ["queue_lin.dequeued_twice"]);
        assert!(after_sent(&[deliver, ack, "c ack queue=q msg=p/1 outcome=info"]).is_empty());
        assert!(after_sent(&["p publish queue=q msg=p/1", deliver, ack, ack]).is_empty());
    }

    #[test]
    fn empty_must_not_be_answered_while_a_confirmed_value_waits() {
        let lines = ["c empty queue=q", "c deliver queue=q msg=p/1 asked"];
        assert_eq!(after_sent(&lines), ["queue_lin.false_empty"]);
        assert!(after_sent(&[lines[1], "c deliver queue=q msg=r/1 asked", lines[0]]).is_empty());
    }

    #[test]
    fn values_that_wait_in_turn_keep_a_queue_filled_only_without_an_instant_between() {
        let wait = |from: u64, until: u64, number: u64| {
            [
                format!("p publish queue=q msg=p/{number} t0=0 t1={from}"),
                format!("c deliver queue=q msg=p/{number} asked t0={until} t1=900"),
            ]
        };
        let told = |second: [String; 2]| {
            let [a, b] = wait(10, 50, 1);
            let [c, d] = second;
            rules(&[&a, &b, &c, &d, "e empty queue=q t0=20 t1=80"])
        };
        assert_eq!(told(wait(40, 90, 2)), ["queue_lin.false_empty"]);
        assert!(told(wait(50, 90, 2)).is_empty());
    }

    #[test]
    fn a_push_or_a_crash_leaves_open_when_a_value_was_ready() {
        let pushed = ["c empty queue=q", "c deliver queue=q msg=p/1", "c deliver queue=q msg=r/1"];
        assert!(after_sent(&pushed).is_empty());
        let crashed = [
            "n crash",
            "c empty queue=q",
            "c deliver queue=q msg=p/1 asked",
            "c deliver queue=q msg=r/1 asked",
        ];
        assert_eq!(after_sent(&crashed), ["queue_lin.false_empty"]);
        assert!(after_sent(&[crashed[1], crashed[0], crashed[2], crashed[3]]).is_empty());
    }
}
