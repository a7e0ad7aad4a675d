//! Something happened: the run had the traffic, the faults and the redeliveries that it was planned to have.
//!
//! Owns: rule 11. Promises: a run without a plan for its confirms is reported, since nothing shows that it proved much.
//! Does not know: whether what happened was right.

use std::collections::HashMap;

use super::Findings;
use super::view::View;
use crate::history::event::{Name, Op};

/// The plan's words that are not names of faults.
const CONFIRMS: &str = "confirms";
const REDELIVERIES: &str = "redeliveries";

/// Finds `vacuity.no_plan`, `vacuity.confirms` (fewer than nine tenths of the plan outside faults), `vacuity.fault` (a
/// planned fault that did not happen as often), `vacuity.redeliveries` (fewer than planned).
#[must_use]
pub fn check(view: &View<'_>) -> Findings {
    let mut findings = Findings::default();
    let seen = Seen::of(view);
    let mut planned_confirms = false;
    for (index, event) in view.events() {
        let Op::Plan { what, count } = event.op else {
            continue;
        };
        let (rule, found, wanted) = match view.text(what) {
            CONFIRMS => {
                planned_confirms = true;
                // In nine parts of ten without overflow: 90 % of the plan, rounded up.
                ("vacuity.confirms", seen.confirms, count - count / 10)
            }
            REDELIVERIES => ("vacuity.redeliveries", seen.redeliveries, count),
            _ => ("vacuity.fault", seen.faults.get(&what).copied().unwrap_or(0), count),
        };
        if found < wanted {
            findings
                .add(rule, &[index], || format!("{found} of {:?}, and {wanted} are needed", view.text(what)));
        }
    }
    if !planned_confirms {
        findings
            .add("vacuity.no_plan", &[], || "no plan says how many confirms the run was to see".to_owned());
    }
    findings.note("confirms outside faults", seen.confirms);
    findings.note("redeliveries seen", seen.redeliveries);
    findings
}

#[derive(Debug, Default)]
struct Seen {
    confirms: u64,
    redeliveries: u64,
    faults: HashMap<Name, u64>,
}

impl Seen {
    fn of(view: &View<'_>) -> Self {
        let mut seen = Self::default();
        let faulty = faulty(view);
        for (_, event) in view.events() {
            match event.op {
                Op::Publish(_) if event.happened() && !contains(&faulty, event.t1) => seen.confirms += 1,
                Op::Deliver(delivery) if delivery.redelivered == Some(true) => seen.redeliveries += 1,
                Op::Fault { name } if event.happened() => *seen.faults.entry(name).or_default() += 1,
                _ => {}
            }
        }
        seen
    }
}

/// The times of faults and crashes, joined where they overlap, in order.
fn faulty(view: &View<'_>) -> Vec<(u64, u64)> {
    let harm = view.events().filter(|(_, event)| matches!(event.op, Op::Fault { .. } | Op::Crash));
    let mut spans: Vec<_> = harm.map(|(_, event)| (event.t0, event.t1)).collect();
    spans.sort_unstable();
    spans.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
    spans
}

fn contains(spans: &[(u64, u64)], at: u64) -> bool {
    let begun = spans.partition_point(|(from, _)| *from <= at);
    begun.checked_sub(1).is_some_and(|last| spans[last].1 >= at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tale::{broken, tale};

    fn rules(lines: &[&str]) -> Vec<&'static str> {
        broken(&check(&View::of(&tale(lines))))
    }

    #[test]
    fn a_run_needs_nine_tenths_of_its_planned_confirms() {
        let confirms: Vec<_> = (0..9).map(|n| format!("p publish queue=q msg=p/{n}")).collect();
        let mut lines: Vec<_> = confirms.iter().map(String::as_str).collect();
        lines.push("h plan name=confirms count=10");
        assert!(rules(&lines).is_empty());
        assert_eq!(rules(&lines[1..]), ["vacuity.confirms"]);
    }

    #[test]
    fn confirms_during_a_fault_do_not_count() {
        let lines = [
            "h plan name=confirms count=1",
            "h fault name=slow t0=1 t1=9000",
            "h fault name=slow t0=2 t1=3",
            "p publish queue=q msg=p/1",
        ];
        assert_eq!(rules(&lines), ["vacuity.confirms"]);
        assert!(rules(&[lines[0], lines[2], lines[3]]).is_empty());
    }

    #[test]
    fn a_planned_fault_must_have_happened_as_often_as_planned() {
        let plan = ["h plan name=confirms count=0", "h plan name=kill count=2"];
        let kill = "h fault name=kill";
        assert_eq!(rules(&[plan[0], plan[1], kill]), ["vacuity.fault"]);
        assert_eq!(rules(&[plan[0], plan[1], kill, "h fault name=pause"]), ["vacuity.fault"]);
        assert!(rules(&[plan[0], plan[1], kill, kill]).is_empty());
    }

    #[test]
    fn a_redelivery_test_must_have_seen_redeliveries() {
        let plan = ["h plan name=confirms count=0", "h plan name=redeliveries count=1"];
        assert_eq!(rules(&plan), ["vacuity.redeliveries"]);
        assert!(rules(&[plan[0], plan[1], "c deliver queue=q msg=p/1 redelivered"]).is_empty());
    }

    #[test]
    fn a_run_without_a_plan_proves_nothing() {
        assert_eq!(rules(&["p publish queue=q msg=p/1"]), ["vacuity.no_plan"]);
    }
}
