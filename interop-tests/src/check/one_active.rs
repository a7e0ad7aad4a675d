//! One active consumer at a time, by fencing, not by timing.
//!
//! Owns: rule 6. Promises: two that overlap on the clock are no violation; one whose token is old and is still
//! accepted, or two between whom a queue's messages alternate without the first being lost, are.
//! Does not know: how a broker chooses the active one.

use std::collections::HashMap;

use super::Findings;
use super::view::{Life, Seen, View, same_reader};
use crate::history::event::{Name, Op, Settle};

/// Finds `one_active.token_went_back` (a later message first delivered under an older token), `one_active.stale_ack` (a
/// settlement under an older token accepted after a newer one appeared), `one_active.interleaved` (on a queue that
/// declares one active consumer, the next message went to another while the first was not lost).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut steps = Vec::new();
    for life in view.lives() {
        note_first_deliveries(view, life, &mut steps);
    }
    steps.sort_unstable_by_key(|step| (step.lane, step.place));
    for lane in steps.chunk_by(|a, b| a.lane == b.lane) {
        judge_tokens(view, lane, &mut findings);
        if view.topology.singles().contains(&lane[0].lane.queue) {
            judge_turns(view, lane, &mut findings);
        }
    }
    judge_settlements(view, &mut findings);
    findings
}

/// A message's first delivery, at its place among those whose order is certain.
#[derive(Debug, Clone, Copy)]
struct Step {
    lane: Lane,
    place: u64,
    index: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    queue: Name,
    part: u16,
    group: Name,
    /// Where only numbers tell places, they do so within one publisher's path.
    from: Option<(Name, Name)>,
    /// A crash may cost the flag of a message that was delivered before and not seen.
    epoch: u64,
}

fn note_first_deliveries(view: &View<'_>, life: Life<'_>, steps: &mut Vec<Step>) {
    for deliveries in life.deliveries().chunk_by(same_reader) {
        let Seen { index, event, delivery } = deliveries[0];
        let guarded = delivery.token.is_some() || view.topology.singles().contains(&delivery.queue);
        if !guarded || delivery.redelivered == Some(true) {
            continue;
        }
        let Some(epoch) = view.breaks.epoch(event.t0) else {
            continue;
        };
        let (from, place) = match delivery.offset {
            Some(offset) => (None, offset.get()),
            None => {
                let sent = view.only_attempt(life);
                let Some((_, sent, publish)) =
                    sent.filter(|(_, _, p)| p.ordered && view.keeps_order(p, delivery.queue))
                else {
                    continue;
                };
                (Some((sent.client, publish.msg.publisher)), u64::from(publish.msg.seq))
            }
        };
        let lane = Lane { queue: delivery.queue, part: delivery.part, group: delivery.group, from, epoch };
        let index = u32::try_from(index).expect("a view has fewer than 2^32 events");
        steps.push(Step { lane, place, index });
    }
}

fn judge_tokens(view: &View<'_>, lane: &[Step], findings: &mut Findings) {
    let token = |step: &Step| match view.events[step.index as usize].op {
        Op::Deliver(delivery) => delivery.token,
        _ => None,
    };
    let mut newest = None;
    for step in lane {
        let Some(token) = token(step) else {
            continue;
        };
        match newest {
            Some((newer, before)) if newer > token => {
                findings.add("one_active.token_went_back", &[before, step.index as usize], || {
                    let queue = view.text(step.lane.queue);
                    format!("{queue:?} was delivered under token {newer}, then under {token}")
                });
            }
            _ => newest = Some((token, step.index as usize)),
        }
    }
}

/// The holder of a queue changes only when it lost its hold after its last message and before the next one's.
fn judge_turns(view: &View<'_>, lane: &[Step], findings: &mut Findings) {
    for pair in lane.windows(2) {
        let [first, second] = [pair[0], pair[1]].map(|step| step.index as usize);
        let (before, after) = (&view.events[first], &view.events[second]);
        if before.client == after.client {
            continue;
        }
        let lost = view.breaks.loss(before.client, pair[0].lane.queue, before.t0);
        if lost.is_none_or(|at| at > after.t1) {
            findings.add("one_active.interleaved", &[first, second], || {
                let [holder, other] = [before, after].map(|event| view.text(event.client));
                let queue = view.text(pair[0].lane.queue);
                format!("{queue:?} passed from {holder:?} to {other:?} though {holder:?} was not lost")
            });
        }
    }
}

type Guarded = (Name, u16, Name);

/// When the newest token so far was seen, for each guarded queue: instant, token, event.
type Appearances = HashMap<Guarded, Vec<(u64, u32, usize)>>;

fn judge_settlements(view: &View<'_>, findings: &mut Findings) {
    let appearances = appearances(view);
    if appearances.is_empty() {
        return;
    }
    for life in view.lives() {
        let mut deliveries = None;
        for (index, event) in life.iter().filter(|(_, event)| event.happened()) {
            let (Op::Ack(settle) | Op::Requeue(settle) | Op::Reject(settle)) = event.op else {
                continue;
            };
            let Some(token) = settle.token else {
                continue;
            };
            let deliveries = deliveries.get_or_insert_with(|| life.deliveries());
            let guarded = (settle.queue, part(deliveries, &settle), settle.group);
            let newer = newest(&appearances, guarded, event.t0).filter(|(newer, _)| *newer > token.get());
            if let Some((newer, seen)) = newer {
                findings.add("one_active.stale_ack", &[seen, index], || {
                    let (msg, queue) = (view.msg(life.msg()), view.text(settle.queue));
                    format!("{msg} of {queue:?} was settled under token {token} when {newer} had appeared")
                });
            }
        }
    }
}

/// The part in which the message that is settled was delivered.
fn part(deliveries: &[Seen<'_>], settle: &Settle) -> u16 {
    let reader = (settle.queue, settle.group);
    deliveries.iter().find(|seen| seen.reader() == reader).map_or(0, |seen| seen.delivery.part)
}

fn appearances(view: &View<'_>) -> Appearances {
    let mut appearances = Appearances::new();
    for (index, event) in view.events() {
        if let Op::Deliver(delivery) = event.op
            && let Some(token) = delivery.token
        {
            let guarded = (delivery.queue, delivery.part, delivery.group);
            appearances.entry(guarded).or_default().push((event.t1, token.get(), index));
        }
    }
    for seen in appearances.values_mut() {
        seen.sort_unstable();
        let mut newest = 0;
        seen.retain(|(_, token, _)| {
            let newer = *token > newest;
            newest = newest.max(*token);
            newer
        });
    }
    appearances
}

fn newest(appearances: &Appearances, guarded: Guarded, at: u64) -> Option<(u32, usize)> {
    let seen = appearances.get(&guarded)?;
    let last = seen.partition_point(|(end, ..)| *end < at).checked_sub(1)?;
    Some((seen[last].1, seen[last].2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    const SENT: [&str; 4] = [
        "h single queue=q",
        "p publish queue=q msg=p/1",
        "p publish queue=q msg=p/2",
        "p publish queue=q msg=p/3",
    ];

    fn after_sent(lines: &[&str]) -> Vec<&'static str> {
        rules(&[&SENT[..], lines].concat())
    }

    #[test]
    fn two_consumers_that_take_turns_are_two_active_ones() {
        let turns = ["a deliver queue=q msg=p/1", "b deliver queue=q msg=p/2", "a deliver queue=q msg=p/3"];
        assert_eq!(after_sent(&turns), ["one_active.interleaved"]);
    }

    #[test]
    fn a_queue_passes_on_when_its_holder_is_lost_or_the_broker_crashed() {
        for cause in ["a lost", "a lost queue=q", "n crash"] {
            assert!(
                after_sent(&["a deliver queue=q msg=p/1", cause, "b deliver queue=q msg=p/2"]).is_empty()
            );
        }
        let other = ["a deliver queue=q msg=p/1", "a lost queue=r", "b deliver queue=q msg=p/2"];
        assert_eq!(after_sent(&other), ["one_active.interleaved"]);
    }

    #[test]
    fn the_lost_holders_messages_may_arrive_after_the_next_holders() {
        let late = [
            "a deliver queue=q msg=p/2 t0=9000 t1=9000",
            "a lost t0=6000 t1=9500",
            "b deliver queue=q msg=p/3 t0=8000 t1=8000",
        ];
        assert!(after_sent(&late).is_empty());
    }

    #[test]
    fn queues_that_promise_nothing_are_not_judged() {
        let turns = ["a deliver queue=q msg=p/1", "b deliver queue=q msg=p/2"];
        assert!(rules(&[&SENT[1..], &turns[..]].concat()).is_empty());
    }

    #[test]
    fn tokens_ascend_with_places() {
        let told = |first: u32, second: u32| {
            let [a, b] = [first, second].map(|token| format!("token={token}"));
            let lines = [
                format!("a deliver queue=q msg=p/1 {a}"),
                "a lost".to_owned(),
                format!("b deliver queue=q msg=p/2 {b}"),
            ];
            after_sent(&lines.each_ref().map(String::as_str))
        };
        assert!(told(1, 2).is_empty());
        assert_eq!(told(2, 1), ["one_active.token_went_back"]);
    }

    #[test]
    fn a_settlement_under_an_older_token_is_not_accepted_once_a_newer_one_appeared() {
        let lines = [
            "a deliver queue=q msg=p/1 token=1",
            "a lost",
            "b deliver queue=q msg=p/2 token=2",
            "a ack queue=q msg=p/1 token=1",
        ];
        assert_eq!(after_sent(&lines), ["one_active.stale_ack"]);
        assert!(after_sent(&[lines[0], lines[3], lines[1], lines[2]]).is_empty());
        let refused = "a ack queue=q msg=p/1 token=1 outcome=fail";
        assert!(after_sent(&[lines[0], lines[1], lines[2], refused]).is_empty());
    }
}
