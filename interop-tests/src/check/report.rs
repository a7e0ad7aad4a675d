//! What all checkers found about one history, for people and for machines.
//!
//! Owns: the two written forms. Promises: evidence is shown as the history's own lines, so that a report can be read
//! without the file. Does not know: the rules.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::findings::{Findings, Violation};
use crate::history::History;
use crate::history::event::{Event, Op};

/// Lines of evidence shown for one violation.
const LINES_SHOWN: usize = 8;

/// The verdict on a history.
#[derive(Debug, Clone)]
pub struct Report {
    figures: Figures,
    findings: Findings,
    /// For each violation kept, its evidence as lines.
    lines: Vec<Vec<String>>,
}

/// How much the history holds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Figures {
    events: u64,
    publishes: u64,
    confirmed: u64,
    unknown: u64,
    deliveries: u64,
    crashes: u64,
}

impl Figures {
    fn of(events: &[Event]) -> Self {
        let mut figures = Self { events: events.len() as u64, ..Self::default() };
        for event in events {
            match event.op {
                Op::Publish(_) => {
                    figures.publishes += 1;
                    figures.confirmed += u64::from(event.happened());
                    figures.unknown += u64::from(event.may_have_happened() && !event.happened());
                }
                Op::Deliver(_) => figures.deliveries += 1,
                Op::Crash => figures.crashes += 1,
                _ => {}
            }
        }
        figures
    }
}

/// The machine's form.
#[derive(Serialize)]
struct Json<'a> {
    passed: bool,
    #[serde(flatten)]
    figures: Figures,
    violations: &'a BTreeMap<&'static str, u64>,
    notes: &'a BTreeMap<&'static str, u64>,
}

impl Report {
    pub(super) fn new(history: &History, findings: Findings) -> Self {
        let show = |violation: &Violation| -> Vec<String> {
            violation.evidence.iter().take(LINES_SHOWN).map(|index| history.line(*index)).collect()
        };
        let lines = findings.violations().iter().map(show).collect();
        Self { figures: Figures::of(history.events()), findings, lines }
    }

    /// Whether no promise was broken.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.is_clean()
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The verdict as one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let json = Json {
            passed: self.passed(),
            figures: self.figures,
            violations: self.findings.totals(),
            notes: self.findings.notes(),
        };
        serde_json::to_string(&json).expect("numbers and words always fit")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { events, publishes, confirmed, unknown, deliveries, crashes } = self.figures;
        writeln!(
            f,
            "{events} events: {publishes} publishes ({confirmed} confirmed, {unknown} unknown), \
             {deliveries} deliveries, {crashes} crashes"
        )?;
        for (what, count) in self.findings.notes() {
            writeln!(f, "  {what}: {count}")?;
        }
        for (violation, lines) in self.findings.violations().iter().zip(&self.lines) {
            writeln!(f, "{}: {}", violation.rule, violation.detail)?;
            for (index, line) in violation.evidence.iter().zip(lines) {
                writeln!(f, "  #{index} {line}")?;
            }
            if violation.evidence.len() > lines.len() {
                writeln!(f, "  and {} more events", violation.evidence.len() - lines.len())?;
            }
        }
        for (rule, total) in self.findings.totals() {
            writeln!(f, "{rule}: {total} in all")?;
        }
        write!(f, "{}", if self.passed() { "PASSED" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use crate::check::all;
    use crate::check::tale::tale;

    #[test]
    fn a_good_history_passes_in_both_forms() {
        let report = all(&tale(&[
            "h plan name=confirms count=1",
            "p publish queue=q msg=p/1",
            "c deliver queue=q msg=p/1 auto",
        ]));
        assert!(report.passed() && report.to_string().ends_with("PASSED"));
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(
            (&json["passed"], &json["events"], &json["confirmed"]),
            (&true.into(), &3.into(), &1.into())
        );
    }

    #[test]
    fn a_bad_history_fails_and_shows_its_evidence() {
        let report = all(&tale(&["h plan name=confirms count=1", "p publish queue=q msg=p/1"]));
        let text = report.to_string();
        assert!(text.contains("loss.lost: p/1 was confirmed for queue \"q\" and was never seen"), "{text}");
        assert!(text.contains("  #1 {\"t0\":2000,"), "{text}");
        assert!(text.ends_with("FAILED"));
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["violations"], serde_json::json!({"loss.lost": 1}));
    }
}
