//! What stands between the log and a node's state: it sees every batch applied, and plants bugs of applying.
//!
//! Owns: nothing of the state. Promises: the oracle is told of each batch, and of the digest behind every
//! [`DIGEST_EVERY`]th. Does not know: what batches mean.

use std::collections::BTreeMap;

use dassie::broker::shard::Applier;
use dassie::clock::Clock;
use dassie_storage::{Apply, Batch, LogPoint};

use super::oracle::News;
use super::payload::Payload;
use super::plant::Plant;
use super::time::{NodeClock, now};
use super::world::Shared;
use crate::history::event::Op;

/// Digests walk the whole state: not behind every batch.
const DIGEST_EVERY: u64 = 8;
const OUTCOMES: u8 = 1;
const TERM_START: u8 = 2;
/// After a new leader was seen, what the old one held may still turn up for so long.
const CHANGE: u64 = 2_000_000_000;

/// See the module.
pub(crate) struct Witness {
    pub(crate) shared: Shared,
    pub(crate) node: u64,
    pub(crate) session: u64,
    pub(crate) inner: Applier,
    pub(crate) clock: NodeClock,
    pub(crate) lax: Lax,
}

/// What applying without the rules of voiding remembers.
#[derive(Default)]
pub(crate) struct Lax {
    ordinal: u64,
    sessions: BTreeMap<u64, u64>,
}

impl Lax {
    /// Makes the batch fit, whatever is missing before it.
    fn bend(&mut self, batch: &Batch) -> Batch {
        let mut bent = batch.clone();
        match batch.kind {
            TERM_START => self.ordinal = 0,
            OUTCOMES => {
                let mut payload = Payload::of(&batch.payload);
                payload.set_place(batch.point.term, self.ordinal);
                self.ordinal += 1;
                for section in &mut payload.sections {
                    if let Some(last) = self.sessions.get(&section.session()) {
                        section.set_previous(*last);
                    }
                    let last = self.sessions.entry(section.session()).or_default();
                    *last = section.last().max(*last);
                }
                bent.payload = payload.bytes();
            }
            _ => {}
        }
        bent
    }
}

impl Witness {
    fn planted(&mut self, batch: &Batch) -> Option<Batch> {
        if self.shared.plant == Plant::NoVoid {
            return Some(self.lax.bend(batch));
        }
        if batch.kind != OUTCOMES {
            return None;
        }
        let mut payload = Payload::of(&batch.payload);
        match self.shared.plant {
            Plant::OwnMind if self.node == 2 && batch.point.index % 97 == 50 => {
                payload.set_log_time(payload.log_time() + 1);
            }
            Plant::LocalClock => payload.set_log_time(self.clock.wall_ms()),
            _ => return None,
        }
        Some(Batch { payload: payload.bytes(), ..batch.clone() })
    }
}

impl Apply for Witness {
    fn applied(&self) -> Option<LogPoint> {
        self.inner.applied()
    }

    fn apply(&mut self, batch: &Batch) {
        match self.planted(batch) {
            Some(bent) => self.inner.apply(&bent),
            None => self.inner.apply(batch),
        }
        let shared = &self.shared;
        let (point, millis) = (batch.point, u64::try_from(now().as_millis()).unwrap_or(u64::MAX));
        let news = shared.oracle.borrow_mut().applied(self.node, self.session, batch, millis);
        let digest = point.index.is_multiple_of(DIGEST_EVERY).then(|| self.inner.digest());
        if let Some(digest) = digest {
            shared.oracle.borrow_mut().digest(self.node, point.index, digest);
            if let Err(wrong) = self.inner.audit() {
                shared
                    .oracle
                    .borrow_mut()
                    .violated(format!("node {} at {}: {wrong}", self.node, point.index));
            }
        }
        if news == News::Term {
            let at = super::time::nanos();
            let (story, node) = (&shared.story, format!("node {}", point.leader));
            story.put(story.name(&node), Op::Crash, crate::history::event::Outcome::Ok, at, at + CHANGE);
        }
        shared.note(|| format!("node {} applied {point:?} {digest:?}", self.node));
    }
}
