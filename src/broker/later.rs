//! What is to happen later: the queues of delayed messages, and the moment when the next thing is due.
//!
//! ```text
//!   send with a delay ─► delay.<level> ─(due)─► its topic, one batch: new reference + settlement
//! ```
//!
//! Owns: how far each level is, and when to look again. Promises: within a level deadlines are in order, so only its head is
//! looked at; a deadline is the log time of the message's batch plus the level's delay (D21); only the leader moves, and a new
//! one knows what is due from the state alone; a turn's work is bounded; nothing is done and nobody wakes while nothing waits.
//! Does not know: what a message says, how many levels a client believes in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;

use super::api::{ConnectionId, QueueUid, Step, Waits};
use super::core::{Core, Work};
use super::message::Cache;
use super::moving::waiting_name;
use super::record::Kind;
use super::transaction::Halves;
use crate::limits;

/// When things happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Delay of each level, ms; level 1 stands first. At least one.
    pub delay_levels_ms: Vec<u64>,
    /// A half message without end is asked about after so long, ms.
    pub transaction_timeout_ms: u64,
    /// And again after so long each, ms.
    pub transaction_check_interval_ms: u64,
    /// At most so often; then it is put aside.
    pub transaction_check_max: u32,
}

impl Default for Settings {
    /// Apache's.
    fn default() -> Self {
        let minutes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120];
        let seconds = [1, 5, 10, 30].into_iter().chain(minutes.map(|minutes| minutes * 60));
        Self {
            delay_levels_ms: seconds.map(|seconds| seconds * 1000).collect(),
            transaction_timeout_ms: 6_000,
            transaction_check_interval_ms: 30_000,
            transaction_check_max: 15,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Later {
    pub(crate) settings: Settings,
    levels: Vec<Level>,
    pub(crate) halves: Halves,
    /// Connections that answer for producer groups; the front is asked next.
    pub(crate) answering: BTreeMap<Arc<str>, VecDeque<ConnectionId>>,
    /// The same by connection.
    pub(crate) answers: BTreeMap<ConnectionId, BTreeSet<Arc<str>>>,
    /// Log time at which something is due.
    wake: Option<u64>,
    /// Something changed: look at once.
    pub(crate) look: bool,
    /// Batches read for this, apart from those that consumers read.
    pub(crate) cache: Cache,
}

/// One level's queue.
#[derive(Debug)]
struct Level {
    queue: QueueUid,
    delay_ms: u64,
    /// Everything before it is moved, or about to be.
    next: u64,
    /// When that one is due, once it was looked at.
    due: Option<u64>,
}

/// What is left of a turn.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) steps: usize,
    pub(crate) bytes: usize,
}

impl Budget {
    pub(crate) fn is_spent(&self) -> bool {
        self.steps == 0 || self.bytes == 0
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.steps -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Later {
    /// Delay levels there are.
    pub(crate) fn levels(&self) -> u32 {
        u32::try_from(self.settings.delay_levels_ms.len()).unwrap_or(u32::MAX)
    }
}

impl Core {
    /// The same core, with other times than Apache's.
    #[must_use]
    pub fn with_times(mut self, settings: Settings) -> Self {
        self.later.settings = settings;
        self
    }

    /// A term begins: what is owed is learned from the state again.
    pub(crate) fn restart_later(&mut self) {
        self.later.levels.clear();
        self.later.halves = Halves::default();
        self.later.cache = Cache::default();
        self.find_waiting_queues();
        self.later.look = true;
    }

    /// The topology changed: queues for waiting messages may be new.
    pub(crate) fn find_waiting_queues(&mut self) {
        let known = self.later.levels.len() + usize::from(self.later.halves.queue.is_some());
        if known == self.state.topology.waiting_queues().count() {
            return;
        }
        if self.later.halves.queue.is_none() {
            let name = waiting_name(Waits::Half);
            self.later.halves.queue = self.state.topology.waiting_queue(&name);
            self.later.halves.next = self.later.halves.queue.map_or(0, |uid| self.floor(uid));
        }
        for level in 1..=u32::try_from(limits::DELAY_LEVELS_MAX).unwrap_or(0) {
            let name = waiting_name(Waits::Delay(level));
            let Some(queue) = self.state.topology.waiting_queue(&name) else {
                continue;
            };
            if self.later.levels.iter().any(|known| known.queue == queue) {
                continue;
            }
            // A level that the configuration no longer has waits as long as the last one.
            let delays = &self.later.settings.delay_levels_ms;
            let delay_ms = delays.get(level as usize - 1).or(delays.last()).copied().unwrap_or(0);
            let next = self.floor(queue);
            self.later.levels.push(Level { queue, delay_ms, next, due: None });
        }
        self.later.look = true;
    }

    fn floor(&self, queue: QueueUid) -> u64 {
        self.state.queues.get(&queue).map_or(0, |queue| queue.cursor.floor())
    }

    /// A message entered a queue: was it one that only waits for somebody to look?
    pub(crate) fn waiting_enqueued(&mut self, queue: QueueUid) {
        let later = &mut self.later;
        later.look |= later.halves.queue == Some(queue)
            || later.levels.iter().any(|level| level.queue == queue && level.due.is_none());
    }

    /// When something is due, in monotonic time.
    pub(crate) fn later_deadline(&self) -> Option<Duration> {
        let wake = self.later.wake.filter(|_| self.is_ready())?;
        Some(self.monotonic() + Duration::from_millis(wake.saturating_sub(self.now()).max(1)))
    }

    /// Does what is due, for one turn; true: there is more to do at once.
    pub(crate) fn serve_later(&mut self) -> bool {
        let now = self.now();
        if !self.is_ready() || !(self.later.look || self.later.wake.is_some_and(|wake| wake <= now)) {
            return false;
        }
        self.later.wake = None;
        self.later.look = true;
        if self.overlay.as_ref().is_some_and(|o| o.closed.len() >= limits::BATCHES_IN_FLIGHT) {
            // The log is behind: the next applied batch looks again.
            return false;
        }
        let mut budget = Budget { steps: limits::STEPS_PER_TURN, bytes: limits::STEP_BYTES_PER_TURN };
        let mut wake = None;
        for place in 0..self.later.levels.len() {
            wake = sooner(wake, self.serve_level(place, now, &mut budget));
        }
        wake = sooner(wake, self.serve_halves(now, &mut budget));
        if budget.is_spent() {
            return true;
        }
        self.later.look = false;
        self.later.wake = wake.map(|wake| wake.min(self.keep_time(now)));
        false
    }

    /// Time that passes while nothing is written would be lost with this leader: while something waits, the log learns of it
    /// now and then. Answers when the next time is.
    fn keep_time(&mut self, now: u64) -> u64 {
        let next = self.state.log_time.saturating_add(limits::LOG_TIME_STEP_MS);
        if now < next {
            return next;
        }
        let waits = self.later.halves.queue.or(self.later.levels.first().map(|level| level.queue));
        if let Some(queue) = waits {
            let sequence = self.number(Work::Unanswered);
            self.record(sequence, Kind::DeliveredThrough, 32, |buf, _| {
                buf.put_u64_le(queue);
                buf.put_u64_le(0);
            });
        }
        now.saturating_add(limits::LOG_TIME_STEP_MS)
    }

    /// Moves what is due of one level; answers when the next one is.
    fn serve_level(&mut self, place: usize, now: u64, budget: &mut Budget) -> Option<u64> {
        while !budget.is_spent() {
            let (queue, delay_ms, due) = {
                let level = self.later.levels.get_mut(place)?;
                let state = self.state.queues.get(&level.queue)?;
                let next = state.cursor.next_unsettled(level.next);
                if next != level.next {
                    (level.next, level.due) = (next, None);
                }
                if next >= state.index.next() {
                    return None;
                }
                (level.queue, level.delay_ms, level.due)
            };
            let offset = self.later.levels.get(place)?.next;
            let due = match due {
                Some(due) => due,
                None => self.logged_at(queue, offset)?.saturating_add(delay_ms),
            };
            if due > now {
                self.later.levels.get_mut(place)?.due = Some(due);
                return Some(due);
            }
            self.move_due(queue, offset, budget);
            let level = self.later.levels.get_mut(place)?;
            (level.next, level.due) = (offset + 1, None);
        }
        None
    }

    /// Log time of an entry's batch.
    ///
    /// # Panics
    /// When the log does not hold what the index says.
    pub(crate) fn logged_at(&mut self, queue: QueueUid, offset: u64) -> Option<u64> {
        let entry = self.entry(queue, offset)?;
        if let Some(home) = entry.home {
            return Some(home.logged);
        }
        match self.later.cache.log_time(&*self.log, entry.place().0) {
            Ok(time) => Some(time),
            Err(error) => panic!("queue {queue}, offset {offset}: {error}"),
        }
    }

    fn move_due(&mut self, queue: QueueUid, offset: u64, budget: &mut Budget) {
        let Some(source) = self.source(queue, offset) else { return };
        budget.take(source.message.bytes.len() + source.message.body_len as usize);
        match self.step(source, &Step::Due, true) {
            Ok(step) => self.owe_move(&step),
            // Such a message was never taken from a client. It stays where it is, for somebody to look at.
            Err(reason) => tracing::error!("queue {queue}, offset {offset} can not be delivered: {reason}"),
        }
    }
}

fn sooner(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}
