//! What must hold of the log at every step.
//!
//! Owns: the one true log as the first node to apply each entry saw it. Promises: pure; it is told everything and asks nobody.
//! Does not know: how nodes run, what clients saw (the checkers judge that by the history).

use std::collections::BTreeMap;

use dassie_storage::{Batch, LogPoint};

/// Violations kept; the first ones say what happened.
const KEPT: usize = 20;
const OUTCOMES: u8 = 1;
const TERM_START: u8 = 2;
/// A batch is decided before it is applied: what one waited on its way counts with the next, ms.
const SLACK_MS: u64 = 30_000;

/// The judge of one run.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Every committed entry.
    log: Vec<LogPoint>,
    /// Digest of the state behind an entry, where somebody made one.
    digests: BTreeMap<u64, u64>,
    /// Entry each life of a node applies next.
    next: BTreeMap<u64, u64>,
    /// Leader of each term.
    leaders: BTreeMap<u64, u64>,
    ordinal: u64,
    /// Log time of the last batch that counts, and when it was first applied, ms.
    time: Option<(u64, u64)>,
    pub(crate) batches: u64,
    pub(crate) voided: u64,
    pub(crate) compared: u64,
    pub(crate) violations: Vec<String>,
}

/// What an entry was to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Known already.
    Old,
    /// First seen.
    New,
    /// First seen, and it begins a term.
    Term,
}

impl Oracle {
    pub(crate) fn violated(&mut self, what: String) {
        if self.violations.len() < KEPT {
            self.violations.push(what);
        }
    }

    /// A life begins, with a checkpoint as of `from`.
    pub(crate) fn begins(&mut self, session: u64, from: Option<LogPoint>) {
        self.next.insert(session, from.map_or(0, |point| point.index + 1));
    }

    /// A node applied a batch, `now_ms` of simulated time.
    pub(crate) fn applied(&mut self, node: u64, session: u64, batch: &Batch, now_ms: u64) -> News {
        let point = batch.point;
        let next = self.next.entry(session).or_default();
        if point.index != *next {
            let what = format!("node {node} applied {} and not {next}", point.index);
            self.violated(what);
        }
        self.next.insert(session, point.index + 1);
        let at = usize::try_from(point.index).expect("a short log");
        if let Some(known) = self.log.get(at).copied() {
            if known != point {
                self.violated(format!("node {node} has {point:?} where {known:?} was committed"));
            }
            return News::Old;
        }
        if at != self.log.len() {
            self.violated(format!("node {node} applied {at}, but nobody the entry before"));
            return News::Old;
        }
        if let Some(before) = self.log.last().copied()
            && (before.term > point.term || before.end > point.position)
        {
            self.violated(format!("{point:?} does not follow {before:?}"));
        }
        if *self.leaders.entry(point.term).or_insert(point.leader) != point.leader {
            self.violated(format!("two leaders in term {}", point.term));
        }
        self.log.push(point);
        match batch.kind {
            TERM_START => {
                self.ordinal = 0;
                News::Term
            }
            OUTCOMES => {
                self.outcomes(batch, now_ms);
                News::New
            }
            _ => News::New,
        }
    }

    /// Log time never goes back, and never runs ahead of time by more than its slew, whatever the clocks do.
    fn outcomes(&mut self, batch: &Batch, now_ms: u64) {
        self.batches += 1;
        let word = |at: usize| u64::from_le_bytes(batch.payload[at..at + 8].try_into().expect("eight bytes"));
        let (term, ordinal, time) = (word(8), word(16), word(24));
        if term != batch.point.term || ordinal != self.ordinal {
            self.voided += 1;
            return;
        }
        self.ordinal += 1;
        if let Some((before, then)) = self.time {
            let passed = now_ms - then;
            if time < before {
                self.violated(format!("log time went back from {before} to {time}"));
            } else if time - before > passed + passed / 50 + SLACK_MS {
                self.violated(format!("log time ran {} ms in {passed} ms", time - before));
            }
        }
        self.time = Some((time, now_ms));
    }

    /// A replica's digest behind entry `index`.
    pub(crate) fn digest(&mut self, node: u64, index: u64, digest: u64) {
        match self.digests.insert(index, digest) {
            Some(known) if known != digest => {
                self.violated(format!("node {node} has another state at {index}"));
            }
            Some(_) => self.compared += 1,
            None => {}
        }
    }

    /// Entries known to be committed.
    pub(crate) fn length(&self) -> u64 {
        self.log.len() as u64
    }

    /// Entries this life has applied.
    pub(crate) fn progress(&self, session: u64) -> u64 {
        self.next.get(&session).copied().unwrap_or(0)
    }

    pub(crate) fn terms(&self) -> u64 {
        self.leaders.keys().filter(|term| **term > 0).count() as u64
    }
}
