//! No phantom, no damage: every message that arrives was sent, after it was sent, to there, and is unchanged.
//!
//! Owns: rule 2, and the first pattern of rule 7 (a value dequeued that was never enqueued, or before). Promises: a
//! publish of unknown outcome is a good origin; one that failed is none.
//! Does not know: how often a message arrives.

use super::Findings;
use super::view::{Life, View};
use crate::history::event::{Event, Name, Op, Publish};

/// Finds arrivals without a right: `phantom.damaged`, `phantom.unknown` (nobody sent it), `phantom.refused` (its
/// publish failed), `phantom.early` (before its publish began), `phantom.changed` (what must pass unchanged differs),
/// `phantom.misrouted` (in a queue it was not sent to).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    for (index, event) in view.events() {
        if let Op::Damaged(damaged) = event.op {
            findings.add("phantom.damaged", &[index], || {
                format!("from {:?}: {}", view.text(damaged.queue), view.text(damaged.why))
            });
        }
    }
    for life in view.lives() {
        let origins: Vec<_> = life.publishes().filter(|(_, event, _)| event.may_have_happened()).collect();
        for (index, event) in life.iter() {
            if let Some(arrival) = Arrival::of(index, event) {
                arrival.judge(view, life, &origins, &mut findings);
            }
        }
    }
    findings
}

/// A message seen in a queue, by delivery or scan.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    index: usize,
    end: u64,
    queue: Name,
    sum: Option<u32>,
}

type Origin<'v> = (usize, &'v Event, &'v Publish);

impl Arrival {
    fn of(index: usize, event: &Event) -> Option<Self> {
        let (queue, sum) = match event.op {
            Op::Deliver(delivery) => (delivery.queue, delivery.sum),
            Op::Scan(scan) => (scan.queue, scan.sum),
            _ => return None,
        };
        Some(Self { index, end: event.t1, queue, sum })
    }

    fn judge(&self, view: &View<'_>, life: Life<'_>, origins: &[Origin<'_>], findings: &mut Findings) {
        let [(_, first, _), ..] = origins else {
            return self.judge_unsent(view, life, findings);
        };
        if first.t0 > self.end {
            self.add("phantom.early", "arrived before it was published", view, life, findings);
        }
        if !origins.iter().any(|(_, _, publish)| self.is_same(publish)) {
            self.add("phantom.changed", "arrived with other properties than it left", view, life, findings);
        }
        if !origins.iter().any(|(_, _, publish)| self.is_sent_here(view, publish)) {
            self.add("phantom.misrouted", "arrived where it was not sent", view, life, findings);
        }
    }

    fn is_same(&self, publish: &Publish) -> bool {
        publish.sum.is_none() || self.sum.is_none() || publish.sum == self.sum
    }

    fn is_sent_here(&self, view: &View<'_>, publish: &Publish) -> bool {
        view.topology.sinks(publish.queue).iter().any(|sink| {
            let by_death = || view.topology.deaths(sink.queue).contains(&self.queue);
            sink.may_from <= self.end && (sink.queue == self.queue || by_death())
        })
    }

    fn judge_unsent(&self, view: &View<'_>, life: Life<'_>, findings: &mut Findings) {
        if life.publishes().next().is_some() {
            self.add("phantom.refused", "arrived though its publish failed", view, life, findings);
        } else {
            self.add("phantom.unknown", "arrived though nobody published it", view, life, findings);
        }
    }

    fn add(&self, rule: &'static str, what: &str, view: &View<'_>, life: Life<'_>, findings: &mut Findings) {
        let sent = life.publishes().map(|(index, ..)| index);
        let evidence: Vec<_> = sent.chain([self.index]).collect();
        findings.add(rule, &evidence, || {
            format!("{} {what}, in {:?}", view.msg(life.msg()), view.text(self.queue))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    #[test]
    fn what_was_sent_may_arrive_even_if_its_sender_never_learned_so() {
        for outcome in ["ok", "info"] {
            let sent = format!("p publish queue=q msg=p/1 sum=7 outcome={outcome}");
            assert!(rules(&[&sent, "c deliver queue=q msg=p/1 sum=7"]).is_empty());
        }
    }

    #[test]
    fn a_message_that_nobody_sent_is_a_phantom() {
        assert_eq!(rules(&["c deliver queue=q msg=p/1"]), ["phantom.unknown"]);
        assert_eq!(rules(&["n1 scan queue=q msg=p/1 offset=0"]), ["phantom.unknown"]);
    }

    #[test]
    fn a_message_whose_publish_failed_must_not_arrive() {
        let lines = ["p publish queue=q msg=p/1 outcome=fail", "c deliver queue=q msg=p/1"];
        assert_eq!(rules(&lines), ["phantom.refused"]);
    }

    #[test]
    fn a_message_must_not_arrive_before_it_was_sent() {
        let lines = ["c deliver queue=q msg=p/1", "p publish queue=q msg=p/1"];
        assert_eq!(rules(&lines), ["phantom.early"]);
    }

    #[test]
    fn a_message_may_arrive_before_its_confirm() {
        let lines = ["p publish queue=q msg=p/1 t0=10 t1=50", "c deliver queue=q msg=p/1 t0=20 t1=20"];
        assert!(rules(&lines).is_empty());
    }

    #[test]
    fn a_damaged_body_and_changed_properties_are_found() {
        assert_eq!(rules(&["c damaged queue=q name=checksum"]), ["phantom.damaged"]);
        let lines = ["p publish queue=q msg=p/1 sum=7", "c deliver queue=q msg=p/1 sum=8"];
        assert_eq!(rules(&lines), ["phantom.changed"]);
    }

    #[test]
    fn a_message_must_not_arrive_where_it_was_not_sent() {
        let lines = [
            "h route from=x queue=q1",
            "p publish queue=x msg=p/1",
            "c deliver queue=q1 msg=p/1",
            "c deliver queue=q2 msg=p/1",
        ];
        assert_eq!(rules(&lines), ["phantom.misrouted"]);
        assert!(rules(&[&["h dead_letter from=q1 queue=q2"], &lines[..]].concat()).is_empty());
    }
}
