//! What a checker found: broken promises with their evidence, and how often a promise's exceptions were used.
//!
//! Owns: the list and its bound. Promises: every violation is counted; of each rule only the first are kept, because a
//! broken run of millions of events would otherwise drown its reader and its machine.
//! Does not know: the rules.

use std::collections::BTreeMap;

const KEPT_PER_RULE: u64 = 20;

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule, as checker.rule.
    pub rule: &'static str,
    /// What is wrong, for people.
    pub detail: String,
    /// The events that show it, by index in the history.
    pub evidence: Vec<usize>,
}

/// Everything a checker found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    kept: Vec<Violation>,
    totals: BTreeMap<&'static str, u64>,
    notes: BTreeMap<&'static str, u64>,
}

impl Findings {
    pub(super) fn add(&mut self, rule: &'static str, evidence: &[usize], detail: impl FnOnce() -> String) {
        let total = self.totals.entry(rule).or_default();
        *total += 1;
        if *total <= KEPT_PER_RULE {
            self.kept.push(Violation { rule, detail: detail(), evidence: evidence.to_vec() });
        }
    }

    /// Counts something that is no violation but worth a figure.
    pub(super) fn note(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.notes.entry(what).or_default() += count;
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.kept.extend(other.kept);
        for (rule, total) in other.totals {
            *self.totals.entry(rule).or_default() += total;
        }
        for (what, count) in other.notes {
            self.note(what, count);
        }
    }

    /// The first violations of each rule.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.kept
    }

    /// How many violations of each rule there are.
    #[must_use]
    pub fn totals(&self) -> &BTreeMap<&'static str, u64> {
        &self.totals
    }

    /// How often exceptions were used, and other figures.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<&'static str, u64> {
        &self.notes
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.totals.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_violation_is_counted_and_only_the_first_of_a_rule_are_kept() {
        let mut findings = Findings::default();
        for index in 0..1_000 {
            findings.add("a.rule", &[index], || format!("number {index}"));
        }
        findings.add("another.rule", &[7], String::new);
        assert_eq!(findings.totals()["a.rule"], 1_000);
        assert_eq!(findings.violations().len(), 21);
        assert_eq!(findings.violations()[0].evidence, [0]);
    }
}
