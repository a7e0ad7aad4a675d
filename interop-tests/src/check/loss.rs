//! No loss: what was confirmed is settled, still lies there, or was removed by a declared rule.
//!
//! Owns: rule 1. Promises: a publish of unknown outcome is never owed; an acknowledgement of unknown outcome settles;
//! every removal that a rule explains is counted, and no rule explains more than its count.
//! Does not know: whether anything came twice, late or changed. A history that was not drained has losses.

use std::collections::HashMap;

use super::Findings;
use super::view::{Life, View};
use crate::history::event::{Allowance, Cursor, Event, Name, Op, Publish, Scan};

/// Finds confirmed messages that are gone: `loss.lost`, `loss.dead_letter` (gone on the way to a dead-letter queue),
/// `loss.skipped` (a group's offset passed a message it never got).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut removals = Removals::default();
    for life in view.lives() {
        for (queue, owed) in debts(view, life) {
            if !is_safe(view, life, queue, owed.since) && !removals.explain(view, queue, owed.since) {
                report(view, life, queue, owed, &mut findings);
            }
            find_skipped(view, life, queue, owed, &mut findings);
        }
    }
    for (what, count) in removals.counts {
        findings.note(what, count);
    }
    findings
}

/// A confirmed publish, by when it began.
#[derive(Debug, Clone, Copy)]
struct Owed {
    publish: usize,
    since: u64,
}

/// The queues that a message must have reached, each once.
fn debts(view: &View<'_>, life: Life<'_>) -> Vec<(Name, Owed)> {
    let mut debts: Vec<(Name, Owed)> = Vec::new();
    for (index, event, publish) in life.publishes().filter(|(_, event, _)| event.happened()) {
        for sink in view.topology.sinks(publish.queue) {
            let known = debts.iter().any(|(queue, _)| *queue == sink.queue);
            if sink.owed_from <= event.t0 && !known {
                debts.push((sink.queue, Owed { publish: index, since: event.t0 }));
            }
        }
    }
    debts
}

/// Whether the message ended well in `queue` or in a queue it can reach by dying there.
fn is_safe(view: &View<'_>, life: Life<'_>, queue: Name, since: u64) -> bool {
    ended_well(view, life, queue, since)
        || view.topology.deaths(queue).iter().any(|reached| ended_well(view, life, *reached, since))
}

fn ended_well(view: &View<'_>, life: Life<'_>, queue: Name, since: u64) -> bool {
    if life.iter().any(|(_, event)| matches!(event.op, Op::Scan(scan) if scan.queue == queue)) {
        return true;
    }
    let Some(groups) = view.topology.groups(queue) else {
        return is_settled(view, life, queue, Name::NONE);
    };
    let mut owed = groups.iter().filter(|(_, from)| *from <= since).peekable();
    if owed.peek().is_none() {
        return life.deliveries().iter().any(|seen| seen.delivery.queue == queue);
    }
    owed.all(|(group, _)| is_settled(view, life, queue, *group))
}

fn is_settled(view: &View<'_>, life: Life<'_>, queue: Name, group: Name) -> bool {
    life.iter().any(|(_, event)| event.may_have_happened() && settles(view, event, queue, group))
}

fn settles(view: &View<'_>, event: &Event, queue: Name, group: Name) -> bool {
    match event.op {
        Op::Ack(settle) => settle.queue == queue && settle.group == group,
        // Refused where dead letters have a queue, the message must turn up there.
        Op::Reject(settle) => {
            settle.queue == queue && settle.group == group && view.topology.deaths(queue).is_empty()
        }
        Op::Deliver(delivery) if delivery.queue == queue && delivery.group == group => {
            let consumed = |offset| {
                let place = Cursor { queue, group, part: delivery.part, offset };
                view.floors.highest(&place).is_some_and(|highest| highest > offset)
            };
            delivery.auto || delivery.offset.is_some_and(consumed)
        }
        _ => false,
    }
}

fn report(view: &View<'_>, life: Life<'_>, queue: Name, owed: Owed, findings: &mut Findings) {
    let mut evidence = vec![owed.publish];
    let here = |event: &Event| match event.op {
        Op::Deliver(delivery) => delivery.queue == queue,
        Op::Ack(settle) | Op::Requeue(settle) | Op::Reject(settle) => settle.queue == queue,
        _ => false,
    };
    let rejected = life.iter().any(|(_, event)| matches!(event.op, Op::Reject(_)) && here(event));
    evidence.extend(life.iter().filter(|(_, event)| here(event)).map(|(index, _)| index));
    let rule = if rejected { "loss.dead_letter" } else { "loss.lost" };
    findings.add(rule, &evidence, || {
        let end = match (rejected, evidence.len()) {
            (true, _) => "was refused and never reached a dead-letter queue",
            (false, 1) => "was never seen",
            (false, _) => "was delivered and never settled",
        };
        format!("{} was confirmed for queue {:?} and {end}", view.msg(life.msg()), view.text(queue))
    });
}

/// Removals that declared rules explain, each used at most as often as its rule says.
#[derive(Debug, Default)]
struct Removals {
    used: HashMap<(Name, Allowance), u64>,
    counts: HashMap<&'static str, u64>,
}

const REMOVALS: [(Allowance, &str); 4] = [
    (Allowance::Expire, "removed by expiry"),
    (Allowance::Overflow, "removed by overflow"),
    (Allowance::DeliveryLimit, "removed by delivery limit"),
    (Allowance::Retention, "removed by retention"),
];

impl Removals {
    /// Whether a rule may have removed the message from `queue` or from where it died to. A rule of a queue with a
    /// dead-letter way explains nothing: there, what is removed moves on.
    fn explain(&mut self, view: &View<'_>, queue: Name, since: u64) -> bool {
        let reached = view.topology.deaths(queue).iter().copied();
        for place in std::iter::once(queue).chain(reached) {
            let cause = if view.topology.purged_after(place, since) {
                Some("removed by purge")
            } else if view.topology.deaths(place).is_empty() {
                self.by_rule(view, place, since)
            } else {
                None
            };
            if let Some(cause) = cause {
                *self.counts.entry(cause).or_default() += 1;
                return true;
            }
        }
        false
    }

    fn by_rule(&mut self, view: &View<'_>, place: Name, since: u64) -> Option<&'static str> {
        let transient = view.topology.allowance(place, Allowance::Transient).is_some();
        if transient && view.breaks.crash(since).is_some() {
            return Some("removed by crash from a transient queue");
        }
        REMOVALS.into_iter().find(|(what, _)| self.has_left(view, place, *what)).map(|(_, cause)| cause)
    }

    fn has_left(&mut self, view: &View<'_>, place: Name, what: Allowance) -> bool {
        let Some(bound) = view.topology.allowance(place, what) else {
            return false;
        };
        let used = self.used.entry((place, what)).or_default();
        if bound.is_some_and(|bound| *used >= bound) {
            return false;
        }
        *used += 1;
        true
    }
}

/// A group whose stored offset passed a message that it never got will never get it, even though it is still stored.
fn find_skipped(view: &View<'_>, life: Life<'_>, queue: Name, owed: Owed, findings: &mut Findings) {
    let Some(groups) = view.topology.groups(queue) else {
        return;
    };
    if view.topology.may_have_holes(queue)
        || view.topology.allowance(queue, Allowance::Retention).is_some()
        || view.topology.purged_after(queue, owed.since)
    {
        return;
    }
    let deliveries = life.deliveries();
    for (group, _) in groups.iter().filter(|(_, from)| *from <= owed.since) {
        if deliveries.iter().any(|seen| seen.reader() == (queue, *group)) {
            continue;
        }
        let passed = life.iter().find(|(_, event)| is_passed(view, event, queue, *group));
        if let Some((index, _)) = passed {
            findings.add("loss.skipped", &[owed.publish, index], || {
                let (msg, group) = (view.msg(life.msg()), view.text(*group));
                format!("group {group:?} consumed past {msg} of {:?} and never got it", view.text(queue))
            });
        }
    }
}

/// Whether the event shows the message at a place that the group's stored offset has passed by consuming.
fn is_passed(view: &View<'_>, event: &Event, queue: Name, group: Name) -> bool {
    let place = match event.op {
        Op::Scan(Scan { queue: here, part, offset, .. }) if here == queue => Some((part, offset)),
        Op::Deliver(delivery) if delivery.queue == queue => {
            delivery.offset.map(|offset| (delivery.part, offset))
        }
        Op::Publish(Publish { queue: here, part: Some(part), offset: Some(offset), .. }) if here == queue => {
            Some((part, offset))
        }
        _ => None,
    };
    place.is_some_and(|(part, offset)| {
        let place = Cursor { queue, group, part, offset };
        !view.floors.was_reset(&place) && view.floors.highest(&place).is_some_and(|highest| highest > offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn found(lines: &[&str]) -> Findings {
        check(&View::of(&tale(lines)))
    }

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&found(lines))
    }

    #[test]
    fn confirmed_and_acknowledged_is_safe_and_so_is_an_acknowledgement_of_unknown_outcome() {
        for outcome in ["ok", "info"] {
            let ack = format!("c ack queue=q msg=p/1 outcome={outcome}");
            assert!(rules(&["p publish queue=q msg=p/1", "c deliver queue=q msg=p/1", &ack]).is_empty());
        }
    }

    #[test]
    fn confirmed_and_never_seen_is_lost() {
        let findings = found(&["p publish queue=q msg=p/1", "p publish queue=q msg=p/2 outcome=info"]);
        assert_eq!(broken(&findings), ["loss.lost"]);
        assert_eq!(findings.violations()[0].evidence, [0]);
        assert_eq!(findings.violations()[0].detail, "p/1 was confirmed for queue \"q\" and was never seen");
    }

    #[test]
    fn delivered_but_never_settled_is_lost() {
        let lines = [
            "p publish queue=q msg=p/1",
            "c deliver queue=q msg=p/1",
            "c lost",
            "c ack queue=q msg=p/1 outcome=fail",
        ];
        assert_eq!(rules(&lines), ["loss.lost"]);
    }

    #[test]
    fn a_message_for_two_queues_is_owed_to_both() {
        let lines = [
            "h route from=x queue=q1",
            "h route from=x queue=q2",
            "p publish queue=x msg=p/1",
            "c deliver queue=q1 msg=p/1 auto",
        ];
        let findings = found(&lines);
        assert_eq!(broken(&findings), ["loss.lost"]);
        assert!(findings.violations()[0].detail.contains("\"q2\""));
    }

    #[test]
    fn a_route_made_after_the_publish_owes_nothing() {
        let lines = [
            "h route from=x queue=q1",
            "p publish queue=x msg=p/1",
            "h route from=x queue=q2",
            "c deliver queue=q1 msg=p/1 auto",
        ];
        assert!(rules(&lines).is_empty());
    }

    #[test]
    fn a_refused_message_must_reach_its_dead_letter_queue() {
        let refused = [
            "h dead_letter from=q queue=dlq",
            "p publish queue=q msg=p/1",
            "c deliver queue=q msg=p/1",
            "c reject queue=q msg=p/1",
        ];
        assert_eq!(rules(&refused), ["loss.dead_letter"]);
        let reached = [&refused[..], &["c deliver queue=dlq msg=p/1 auto"]].concat();
        assert!(rules(&reached).is_empty());
    }

    #[test]
    fn a_refused_message_without_a_dead_letter_queue_is_settled() {
        let lines = ["p publish queue=q msg=p/1", "c deliver queue=q msg=p/1", "c reject queue=q msg=p/1"];
        assert!(rules(&lines).is_empty());
    }

    #[test]
    fn rules_explain_as_many_removals_as_they_count_and_no_more() {
        let lines = [
            "h allow queue=q what=expire count=1",
            "h allow queue=q what=overflow count=1",
            "p publish queue=q msg=p/1",
            "p publish queue=q msg=p/2",
            "p publish queue=q msg=p/3",
        ];
        let findings = found(&lines);
        assert_eq!(findings.totals()["loss.lost"], 1);
        assert_eq!((findings.notes()["removed by expiry"], findings.notes()["removed by overflow"]), (1, 1));
    }

    #[test]
    fn expiry_with_a_dead_letter_queue_explains_nothing_unless_the_message_is_there() {
        let expired =
            ["h dead_letter from=q queue=dlq", "h allow queue=q what=expire", "p publish queue=q msg=p/1"];
        assert_eq!(rules(&expired), ["loss.lost"]);
        assert!(rules(&[&expired[..], &["c deliver queue=dlq msg=p/1 auto"]].concat()).is_empty());
    }

    #[test]
    fn a_purge_explains_what_was_published_before_it_ended_and_nothing_later() {
        let lines = ["p publish queue=q msg=p/1", "h purge queue=q", "p publish queue=q msg=p/2"];
        let findings = found(&lines);
        assert_eq!(findings.totals()["loss.lost"], 1);
        assert_eq!(findings.notes()["removed by purge"], 1);
    }

    #[test]
    fn a_transient_queue_may_lose_by_a_crash_only() {
        let lines = ["h allow queue=q what=transient", "p publish queue=q msg=p/1"];
        assert_eq!(rules(&lines), ["loss.lost"]);
        assert!(rules(&[&lines[..], &["n crash"]].concat()).is_empty());
    }

    #[test]
    fn each_group_of_a_topic_is_owed_what_came_after_it_subscribed() {
        let lines = [
            "g1 subscribe queue=t group=g1",
            "p publish queue=t msg=p/1 part=0 offset=0",
            "g2 subscribe queue=t group=g2",
            "g1 deliver queue=t group=g1 msg=p/1 offset=0",
        ];
        assert_eq!(rules(&lines), ["loss.lost"]);
        assert!(rules(&[&lines[..], &["g1 commit queue=t group=g1 offset=1"]].concat()).is_empty());
    }

    #[test]
    fn a_topic_that_nobody_subscribed_keeps_its_messages() {
        let lines = ["p publish queue=t msg=p/1 part=0 offset=0", "n1 scan queue=t msg=p/1 offset=0"];
        assert!(rules(&lines).is_empty());
        assert_eq!(rules(&lines[..1]), ["loss.lost"]);
    }

    #[test]
    fn a_group_that_consumed_past_a_message_it_never_got_has_lost_it() {
        let lines = [
            "g subscribe queue=t group=g",
            "p publish queue=t msg=p/1 part=0 offset=0",
            "p publish queue=t msg=p/2 part=0 offset=1",
            "g deliver queue=t group=g msg=p/2 offset=1",
            "g commit queue=t group=g offset=2",
            "n1 scan queue=t msg=p/1 offset=0",
        ];
        assert_eq!(rules(&lines), ["loss.skipped"]);
        let by_filter = [&["h allow queue=t what=holes"], &lines[..]].concat();
        assert!(rules(&by_filter).is_empty());
        let by_reset = [&lines[..2], &["h reset queue=t group=g offset=1"], &lines[2..]].concat();
        assert!(rules(&by_reset).is_empty());
    }
}
