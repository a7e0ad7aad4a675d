//! A small state machine for the harness: numbered verbs of sessions, in batches of the product's record format.
//!
//! Owns: which verbs took effect, the leader's overlay on it, what a front end waits for. Promises: the rules of
//! `src/docs/record-format.md` ("Voiding") and of house D10: ordinals, skips, gaps, deciding again after a refusal.
//! Does not know: time but what it is told, the network, the log.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use dassie::cluster::Refused;
use dassie_storage::{Apply, Batch, LogPoint, ProposalId};

use super::dice::mix;
use super::node::{SimNode, Told, Verb};
use super::plant::Plant;

const OUTCOMES: u8 = 1;
const TERM_START: u8 = 2;
const HEAD: usize = 32;
const SECTION: usize = 48;
/// A body record: eight bytes of head, eight of value.
const RECORD: usize = 16;

/// Batches under way at once: enough that a refusal in the middle leaves accepted ones behind it.
const IN_FLIGHT: usize = 4;
/// Verbs of a section: few, so that several batches are under way when one of them is refused.
const VERBS: usize = 2;
/// Wait before deciding again after a refusal.
const RETRY: Duration = Duration::from_millis(20);
/// A verb not applied after this is sent again.
const RESEND: Duration = Duration::from_millis(400);

/// Verbs of one session, consecutive.
struct Section {
    session: u64,
    previous: u64,
    first: u64,
    values: Vec<u64>,
}

fn encode(id: ProposalId, sections: &[Section]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(1);
    out.put_u8(0);
    out.put_u16_le(u16::try_from(sections.len()).expect("few sections"));
    out.put_u32_le(0);
    out.put_u64_le(id.term);
    out.put_u64_le(id.ordinal);
    out.put_u64_le(0);
    for section in sections {
        let count = section.values.len();
        out.put_u64_le(section.session);
        out.put_u64_le(section.previous);
        out.put_u64_le(section.first);
        out.put_u64_le(section.first + count as u64 - 1);
        out.put_u64_le(0);
        out.put_u32_le(u32::try_from(count).expect("few records"));
        out.put_u32_le(u32::try_from(count * RECORD).expect("few records"));
        for (at, value) in section.values.iter().enumerate() {
            out.put_u8(1);
            out.put_u8(0);
            out.put_u16_le(u16::from(at > 0));
            out.put_u32_le(u32::try_from(RECORD).expect("a constant"));
            out.put_u64_le(*value);
        }
    }
    out.freeze()
}

fn decode(payload: &[u8]) -> (ProposalId, Vec<Section>) {
    let u64_at = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().expect("four bytes"));
    let id = ProposalId { term: u64_at(8), ordinal: u64_at(16) };
    let (mut at, mut sections) = (HEAD, Vec::new());
    for _ in 0..u16::from_le_bytes([payload[2], payload[3]]) {
        let count = u32_at(at + 40) as usize;
        let records = at + SECTION;
        let values = (0..count).map(|n| u64_at(records + n * RECORD + 8)).collect();
        sections.push(Section {
            session: u64_at(at),
            previous: u64_at(at + 8),
            first: u64_at(at + 16),
            values,
        });
        at = records + count * RECORD;
    }
    assert_eq!(at, payload.len(), "bytes behind the last section");
    (id, sections)
}

/// What the log says.
#[derive(Default)]
struct State {
    applied: Option<LogPoint>,
    term: u64,
    leader: u64,
    next_ordinal: u64,
    /// Last sequence in the log per session.
    sessions: BTreeMap<u64, u64>,
    digest: u64,
}

/// What the leader decided on top of it.
struct Overlay {
    term: u64,
    ordinal: u64,
    sessions: BTreeMap<u64, u64>,
    in_flight: BTreeSet<u64>,
    /// A proposal was refused or voided: nothing is decided until everything under way is known.
    broken: bool,
}

/// A verb whose client waits.
struct Wish {
    sequence: u64,
    value: u64,
    sent: Option<(u64, Duration)>,
    confirmed: bool,
}

struct Inner {
    node: u64,
    session: u64,
    plant: Plant,
    state: State,
    overlay: Option<Overlay>,
    retry: Duration,
    next_sequence: u64,
    wishes: VecDeque<Wish>,
    inbox: BTreeMap<u64, BTreeMap<u64, u64>>,
    told: Vec<Told>,
}

/// See the module. Clones are handles on one.
#[derive(Clone)]
pub struct Ledger(Rc<RefCell<Inner>>);

impl Apply for Ledger {
    fn applied(&self) -> Option<LogPoint> {
        self.0.borrow().state.applied
    }

    fn apply(&mut self, batch: &Batch) {
        self.0.borrow_mut().apply(batch);
    }
}

impl Inner {
    fn apply(&mut self, batch: &Batch) {
        let point = batch.point;
        let (mut accepted, mut voided) = (Vec::new(), false);
        match batch.kind {
            TERM_START => {
                (self.state.term, self.state.leader, self.state.next_ordinal) = (point.term, point.leader, 0);
            }
            OUTCOMES => (accepted, voided) = self.outcomes(batch),
            _ => {}
        }
        self.state.applied = Some(point);
        let mut digest = mix(self.state.digest ^ point.hash ^ u64::from(voided));
        if self.plant == Plant::OwnMind && self.node == 2 && point.index % 97 == 50 {
            digest ^= 1;
        }
        for verb in &accepted {
            digest = mix(digest ^ mix(verb.session) ^ verb.sequence ^ verb.value);
        }
        self.state.digest = digest;
        self.told.push(Told::Applied { point, digest, kind: batch.kind, accepted, voided });
        self.confirm();
    }

    fn outcomes(&mut self, batch: &Batch) -> (Vec<Verb>, bool) {
        let (id, sections) = decode(&batch.payload);
        if let Some(overlay) = self.overlay.as_mut().filter(|overlay| overlay.term == id.term) {
            overlay.in_flight.remove(&id.ordinal);
        }
        let state = &mut self.state;
        let lax = self.plant == Plant::NoVoid;
        if (id.term != batch.point.term || id.ordinal != state.next_ordinal) && !lax {
            self.broken(id.term);
            return (Vec::new(), true);
        }
        state.next_ordinal = id.ordinal + 1;
        let (mut accepted, mut voided) = (Vec::new(), false);
        for section in sections {
            let Section { session, previous, first, values } = section;
            let last = first + values.len() as u64 - 1;
            let known = state.sessions.get(&session).copied().unwrap_or(0);
            if last <= known && self.plant != Plant::NoSkip {
                continue;
            }
            if previous != known && !lax && self.plant != Plant::NoSkip {
                voided = true;
                continue;
            }
            state.sessions.insert(session, last.max(known));
            accepted.extend((first..).zip(values).map(|(sequence, value)| Verb { session, sequence, value }));
        }
        if voided {
            self.broken(id.term);
        }
        (accepted, voided)
    }

    fn broken(&mut self, term: u64) {
        if let Some(overlay) = self.overlay.as_mut().filter(|overlay| overlay.term == term) {
            overlay.broken = true;
        }
    }

    /// Tells the clients whose verbs are in the log.
    fn confirm(&mut self) {
        let last = self.state.sessions.get(&self.session).copied().unwrap_or(0);
        while self.wishes.front().is_some_and(|wish| wish.sequence <= last) {
            let wish = self.wishes.pop_front().expect("looked at");
            if !wish.confirmed {
                self.told.push(Told::Confirmed { session: self.session, sequence: wish.sequence });
            }
        }
    }

    /// The overlay of the term this node leads, ready to decide on.
    fn overlay(&mut self, term: u64, now: Duration) -> Option<&mut Overlay> {
        let state = &self.state;
        // Everything of earlier terms stands below the term's first batch.
        if state.term != term || state.leader != self.node {
            return None;
        }
        let fresh = match &self.overlay {
            Some(overlay) if overlay.term == term && !overlay.broken => false,
            Some(overlay) if overlay.term == term => {
                if !overlay.in_flight.is_empty() || now < self.retry {
                    return None;
                }
                true
            }
            Some(_) | None => true,
        };
        if fresh {
            self.overlay = Some(Overlay {
                term,
                ordinal: state.next_ordinal,
                sessions: state.sessions.clone(),
                in_flight: BTreeSet::new(),
                broken: false,
            });
        }
        self.overlay.as_mut()
    }

    fn decide(&mut self, term: u64, now: Duration) -> Option<(Bytes, ProposalId)> {
        let mut inbox = std::mem::take(&mut self.inbox);
        let (applied, blind) = (self.state.sessions.clone(), self.plant == Plant::NoSkip);
        let proposal = self.overlay(term, now).and_then(|overlay| {
            let mut sections = Vec::new();
            if overlay.in_flight.len() >= IN_FLIGHT {
                return None;
            }
            for (&session, verbs) in &mut inbox {
                let mut previous = overlay.sessions.get(&session).copied().unwrap_or(0);
                if let Some((first, _)) = verbs.first_key_value().filter(|_| blind) {
                    previous = first - 1;
                }
                // Kept until applied: what is under way may be refused and is decided again then.
                let done = if blind { previous } else { applied.get(&session).copied().unwrap_or(0) };
                *verbs = verbs.split_off(&(done + 1));
                let follow = verbs.range(previous + 1..).zip(previous + 1..);
                let follow = follow.take_while(|((have, _), want)| *have == want);
                let values: Vec<u64> = follow.map(|((_, value), _)| *value).take(VERBS).collect();
                if blind {
                    *verbs = verbs.split_off(&(previous + 1 + values.len() as u64));
                }
                if !values.is_empty() {
                    overlay.sessions.insert(session, previous + values.len() as u64);
                    sections.push(Section { session, previous, first: previous + 1, values });
                }
            }
            if sections.is_empty() {
                return None;
            }
            let id = ProposalId { term, ordinal: overlay.ordinal };
            overlay.ordinal += 1;
            overlay.in_flight.insert(id.ordinal);
            Some((id, sections))
        });
        self.inbox = inbox;
        let (id, sections) = proposal?;
        if self.plant == Plant::EarlyConfirm {
            self.confirm_early(&sections);
        }
        Some((encode(id, &sections), id))
    }

    fn confirm_early(&mut self, sections: &[Section]) {
        for section in sections.iter().filter(|section| section.session == self.session) {
            let last = section.first + section.values.len() as u64 - 1;
            for wish in self.wishes.iter_mut().filter(|wish| wish.sequence <= last && !wish.confirmed) {
                wish.confirmed = true;
                self.told.push(Told::Confirmed { session: self.session, sequence: wish.sequence });
            }
        }
    }

    fn take_in(&mut self, verbs: &[Verb]) {
        for verb in verbs {
            let known = self.state.sessions.get(&verb.session).copied().unwrap_or(0);
            if verb.sequence > known || self.plant == Plant::NoSkip {
                self.inbox.entry(verb.session).or_default().insert(verb.sequence, verb.value);
            }
        }
    }

    /// Verbs that were not sent to this leader, or so long ago that they may be lost.
    fn due(&mut self, leader: u64, now: Duration) -> Vec<Verb> {
        let session = self.session;
        let late = |wish: &Wish| wish.sent.is_none_or(|(to, at)| to != leader || now >= at + RESEND);
        let Some(first) = self.wishes.iter().position(late) else { return Vec::new() };
        self.wishes
            .iter_mut()
            .skip(first)
            .map(|wish| {
                wish.sent = Some((leader, now));
                Verb { session, sequence: wish.sequence, value: wish.value }
            })
            .collect()
    }
}

impl SimNode for Ledger {
    type Apply = Ledger;

    fn born(node: u64, session: u64, plant: Plant) -> Self {
        Ledger(Rc::new(RefCell::new(Inner {
            node,
            session,
            plant,
            state: State::default(),
            overlay: None,
            retry: Duration::ZERO,
            next_sequence: 1,
            wishes: VecDeque::new(),
            inbox: BTreeMap::new(),
            told: Vec::new(),
        })))
    }

    fn apply(&self) -> Ledger {
        self.clone()
    }

    fn submit(&self, value: u64) -> u64 {
        let mut inner = self.0.borrow_mut();
        let sequence = inner.next_sequence;
        inner.next_sequence += 1;
        inner.wishes.push_back(Wish { sequence, value, sent: None, confirmed: false });
        sequence
    }

    fn waiting(&self) -> usize {
        self.0.borrow().wishes.len()
    }

    fn deliver(&self, verbs: &[Verb]) {
        self.0.borrow_mut().take_in(verbs);
    }

    fn forward(&self, leader: u64, now: Duration) -> Vec<Verb> {
        self.0.borrow_mut().due(leader, now)
    }

    fn turn(&self, leads: Option<u64>, refused: &[Refused], now: Duration) -> Vec<(Bytes, ProposalId)> {
        let mut inner = self.0.borrow_mut();
        for refused in refused {
            if let Some(overlay) = inner.overlay.as_mut().filter(|overlay| overlay.term == refused.id.term) {
                overlay.in_flight.remove(&refused.id.ordinal);
                overlay.broken = true;
                inner.retry = now + RETRY;
            }
        }
        let Some(term) = leads else { return Vec::new() };
        let own = inner.node;
        let own = inner.due(own, now);
        inner.take_in(&own);
        std::iter::from_fn(|| inner.decide(term, now)).collect()
    }

    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.borrow_mut().told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_its_bytes() {
        let id = ProposalId { term: 3, ordinal: 9 };
        let section = || Section { session: 5, previous: 6, first: 7, values: vec![1, 2, 3] };
        let (read, sections) = decode(&encode(id, &[section(), section()]));
        assert_eq!((read, sections.len()), (id, 2));
        assert_eq!((sections[1].session, sections[1].first), (5, 7));
        assert_eq!(sections[1].values, [1, 2, 3]);
    }
}
