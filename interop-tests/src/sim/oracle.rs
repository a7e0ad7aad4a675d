//! What must hold at every step and at rest.
//!
//! Owns: the one true log as the first node to apply each entry saw it, and who was told what. Promises: pure; it is told
//! everything and asks nobody. Does not know: how nodes run.

use std::collections::{BTreeMap, BTreeSet};

use dassie_storage::LogPoint;

use super::node::{Told, Verb};

/// Violations kept; the first ones say what happened.
const KEPT: usize = 20;

/// The judge of one run.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Point and digest of every committed entry.
    log: Vec<(LogPoint, u64)>,
    /// Last verb of each session that took effect.
    accepted: BTreeMap<u64, u64>,
    values: BTreeMap<(u64, u64), u64>,
    confirmed: BTreeSet<(u64, u64)>,
    /// Entry each life of a node applies next.
    next: BTreeMap<u64, u64>,
    /// Leader of each term.
    leaders: BTreeMap<u64, u64>,
    pub(crate) batches: u64,
    pub(crate) voided: u64,
    pub(crate) violations: Vec<String>,
}

impl Oracle {
    pub(crate) fn violated(&mut self, what: String) {
        if self.violations.len() < KEPT {
            self.violations.push(what);
        }
    }

    /// A client gave this verb to a front end.
    pub(crate) fn wished(&mut self, verb: Verb) {
        self.values.insert((verb.session, verb.sequence), verb.value);
    }

    /// A node said something. `session` names its life.
    pub(crate) fn told(&mut self, node: u64, session: u64, told: &Told) {
        match told {
            Told::Applied { point, digest, kind, accepted, voided } => {
                let next = self.next.entry(session).or_default();
                if point.index != *next {
                    let what = format!("node {node} applied {} and not {next}", point.index);
                    self.violated(what);
                }
                self.next.insert(session, point.index + 1);
                self.applied(node, *point, *digest, *kind, accepted, *voided);
            }
            Told::Confirmed { session, sequence } => self.confirmed(node, *session, *sequence),
        }
    }

    fn applied(
        &mut self,
        node: u64,
        point: LogPoint,
        digest: u64,
        kind: u8,
        accepted: &[Verb],
        voided: bool,
    ) {
        let at = usize::try_from(point.index).expect("a short log");
        if let Some((known, known_digest)) = self.log.get(at).copied() {
            if known != point {
                self.violated(format!("node {node} has {point:?} where {known:?} was committed"));
            }
            if known_digest != digest {
                self.violated(format!("node {node} has another state at {}", point.index));
            }
            return;
        }
        if at != self.log.len() {
            self.violated(format!("node {node} applied {at}, but nobody the entry before"));
            return;
        }
        if let Some((before, _)) = self.log.last().copied()
            && (before.term > point.term || before.end > point.position)
        {
            self.violated(format!("{point:?} does not follow {before:?}"));
        }
        if *self.leaders.entry(point.term).or_insert(point.leader) != point.leader {
            self.violated(format!("two leaders in term {}", point.term));
        }
        self.log.push((point, digest));
        self.batches += u64::from(kind == 1);
        self.voided += u64::from(voided);
        for verb in accepted {
            self.took_effect(*verb);
        }
    }

    fn took_effect(&mut self, verb: Verb) {
        let last = self.accepted.insert(verb.session, verb.sequence).unwrap_or(0);
        if verb.sequence != last + 1 {
            self.violated(format!("{verb:?} took effect after {last}: lost or twice"));
        }
        if self.values.get(&(verb.session, verb.sequence)) != Some(&verb.value) {
            self.violated(format!("{verb:?} is not what was asked for"));
        }
    }

    fn confirmed(&mut self, node: u64, session: u64, sequence: u64) {
        if !self.confirmed.insert((session, sequence)) {
            self.violated(format!("node {node} confirmed {session}/{sequence} twice"));
        }
        if self.accepted.get(&session).is_none_or(|last| *last < sequence) {
            self.violated(format!("node {node} confirmed {session}/{sequence}, which is not committed"));
        }
    }

    /// All nodes are up and agree: what must be true now. `alive` are the sessions of living front ends, with the number of
    /// verbs each still waits for.
    pub(crate) fn rest(&mut self, alive: &[(u64, usize)]) {
        for (session, waiting) in alive {
            let (session, last) = (*session, self.accepted.get(session).copied().unwrap_or(0));
            if *waiting > 0 {
                self.violated(format!("session {session} still waits for {waiting} verbs"));
            }
            let confirmed = self.confirmed.range((session, 0)..=(session, u64::MAX)).count() as u64;
            if confirmed != last {
                self.violated(format!(
                    "session {session}: {last} verbs took effect, {confirmed} were confirmed"
                ));
            }
            let length = self.log.len() as u64;
            if self.next.get(&session) != Some(&length) {
                self.violated(format!("session {session} has not applied all of {length} entries"));
            }
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
