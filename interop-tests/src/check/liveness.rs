//! It works again: after the last fault messages flow, replicas agree, and the leader stays.
//!
//! Owns: rule 10 and its limits. Promises: judged from the end of the last `healed` only; before it, nothing need work.
//! A queue that was purged or deleted after its last message is out of use.
//! Does not know: whether what flows is right.

use std::collections::{HashMap, HashSet};

use super::Findings;
use super::view::View;
use crate::history::event::{Allowance, Event, Name, Op};

const SECOND: u64 = 1_000_000_000;
/// Within which each queue confirms and delivers again.
const FLOWS_WITHIN: u64 = 10 * SECOND;
/// Within which all replicas agree.
const CONVERGES_WITHIN: u64 = 60 * SECOND;
/// For which the leader then stays.
const CALM_FOR: u64 = 60 * SECOND;

/// Finds `liveness.no_confirm`, `liveness.no_delivery` (of a queue in use, in time after healing),
/// `liveness.not_converged`, `liveness.leader_changed` (after converging), `liveness.never_healed` (faults, and no end of
/// them).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let healed = view.events().filter(|(_, event)| matches!(event.op, Op::Healed)).last();
    match healed {
        Some((index, event)) => {
            judge_flow(view, index, event.t1, &mut findings);
            judge_calm(view, index, event.t1, &mut findings);
        }
        None => {
            let fault = view.events().find(|(_, event)| matches!(event.op, Op::Fault { .. } | Op::Crash));
            if let Some((index, _)) = fault {
                findings.add("liveness.never_healed", &[index], || "faults, and no end of them".to_owned());
            }
        }
    }
    findings
}

fn judge_flow(view: &View<'_>, healed: usize, since: u64, findings: &mut Findings) {
    let until = since.saturating_add(FLOWS_WITHIN);
    let within = |event: &Event| event.t0 >= since && event.t1 <= until;
    let mut used: HashMap<Name, (usize, u64)> = HashMap::new();
    let (mut confirmed, mut delivered) = (HashSet::new(), HashSet::new());
    for (index, event) in view.events() {
        match event.op {
            Op::Publish(publish) => {
                for sink in view.topology.sinks(publish.queue) {
                    used.entry(sink.queue).or_insert((index, 0)).1 = event.t0;
                    if event.happened() && within(event) {
                        confirmed.insert(sink.queue);
                    }
                }
            }
            // Of a delivery that was waited for since before the healing, the arrival counts.
            Op::Deliver(delivery) if event.t1 >= since && event.t1 <= until => {
                delivered.insert(delivery.queue);
            }
            _ => {}
        }
    }
    used.retain(|queue, (_, last)| !view.topology.purged_after(*queue, *last));
    for (queue, (first_use, _)) in used {
        if !confirmed.contains(&queue) {
            add(view, "liveness.no_confirm", [healed, first_use], queue, "confirmed nothing", findings);
        }
        // What is trimmed may be gone before anybody could have it.
        let trimmed = view.topology.allowance(queue, Allowance::Retention).is_some();
        if !trimmed && !delivered.contains(&queue) {
            add(view, "liveness.no_delivery", [healed, first_use], queue, "delivered nothing", findings);
        }
    }
}

fn add(
    view: &View<'_>,
    rule: &'static str,
    evidence: [usize; 2],
    queue: Name,
    what: &str,
    findings: &mut Findings,
) {
    findings.add(rule, &evidence, || {
        format!("queue {:?} {what} within {} s of healing", view.text(queue), FLOWS_WITHIN / SECOND)
    });
}

/// Only a run with replicas, told by their leaders or digests, has something to converge.
fn judge_calm(view: &View<'_>, healed: usize, since: u64, findings: &mut Findings) {
    let replicated =
        view.events().any(|(_, event)| matches!(event.op, Op::Leader { .. } | Op::Digest { .. }));
    if !replicated {
        return;
    }
    let converged = view.events().find(|(_, event)| matches!(event.op, Op::Converged) && event.t0 >= since);
    let in_time = converged.filter(|(_, event)| event.t1 <= since.saturating_add(CONVERGES_WITHIN));
    let Some((index, event)) = in_time else {
        findings.add("liveness.not_converged", &[healed], || {
            format!("replicas did not agree within {} s of healing", CONVERGES_WITHIN / SECOND)
        });
        return;
    };
    let calm = event.t1..event.t1.saturating_add(CALM_FOR);
    for (change, event) in view.events() {
        if let Op::Leader { term } = event.op
            && calm.contains(&event.t0)
        {
            findings.add("liveness.leader_changed", &[index, change], || {
                format!("a leader of term {term} within {} s of converging", CALM_FOR / SECOND)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    const HEALED: [&str; 4] =
        ["p publish queue=q msg=p/1", "h healed", "p publish queue=q msg=p/2", "c deliver queue=q msg=p/2"];

    #[test]
    fn a_queue_in_use_must_confirm_and_deliver_after_healing() {
        assert!(rules(&HEALED).is_empty());
        assert_eq!(rules(&HEALED[..3]), ["liveness.no_delivery"]);
        assert_eq!(rules(&HEALED[..2]), ["liveness.no_confirm", "liveness.no_delivery"]);
    }

    #[test]
    fn a_queue_deleted_before_healing_need_not_work() {
        assert!(rules(&[HEALED[0], "h purge queue=q", HEALED[1]]).is_empty());
    }

    #[test]
    fn a_confirm_too_late_is_none() {
        let late = "p publish queue=q msg=p/2 t1=10000002501";
        assert_eq!(rules(&[HEALED[0], HEALED[1], late, HEALED[3]]), ["liveness.no_confirm"]);
        assert!(rules(&[HEALED[0], HEALED[1], &late.replace("501", "500"), HEALED[3]]).is_empty());
    }

    #[test]
    fn faults_need_an_end() {
        assert_eq!(rules(&["n crash"]), ["liveness.never_healed"]);
        assert_eq!(rules(&["h fault name=kill"]), ["liveness.never_healed"]);
        assert!(rules(&HEALED[..1]).is_empty());
    }

    #[test]
    fn replicas_must_agree_in_time_and_then_keep_their_leader() {
        let with = |lines: &[&str]| rules(&[&HEALED[..], lines].concat());
        assert_eq!(with(&["n1 leader term=1"]), ["liveness.not_converged"]);
        assert!(with(&["n1 leader term=1", "h converged"]).is_empty());
        assert_eq!(
            with(&["h converged t0=9000 t1=60000002501", "n1 leader term=1"]),
            ["liveness.not_converged"]
        );
        assert_eq!(with(&["h converged", "n1 leader term=2"]), ["liveness.leader_changed"]);
        assert!(with(&["h converged", "n1 leader term=2 t0=90000000000 t1=90000000000"]).is_empty());
    }
}
