//! How long the log keeps what: topics by time and size, and room made when it is wanted.
//!
//! ```text
//!   look (leader, now and then) ─► trims of topics, by whole segments ─► settlement records
//!                               └► moves of stragglers               ─► re-home records
//!   nothing lives in a segment, for a while ─► a checkpoint above it ─► its file goes
//! ```
//!
//! Owns: the decision what goes, and when an empty segment may. Promises: ages are log time (D21) and nothing but ages, counts and
//! places is looked at, never a message; a topic loses its oldest messages only, a message that an AMQP queue holds is never given
//! up; a turn's work is bounded; who does not lead decides nothing; a segment goes only when all that was decided while something
//! lived there is applied, on followers too: each batch says how far its leader was.
//! Does not know: files, the wall clock, which protocol asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::api::{ConnectionId, Offset, QueueKind, QueueUid};
use super::core::{Core, Work};
use super::decide::end_size;
use super::home;
use super::message::{Cache, Extent, body_elsewhere, put_copy, record_at};
use super::record::Kind;
use crate::limits;

/// The pieces of a large body that moves belong to no client's connection.
pub(crate) const HOME_PIECES: ConnectionId = ConnectionId::MAX;
/// Bytes of a re-home record beside its message.
const OVERHEAD: usize = 512;

/// Whose names the settings ([`super::api::Op::PutSetting`]) of topics are that keep messages for a time of their own: the name is the
/// topic's, the value hours as text, 0 for ever.
pub const TOPIC_HOURS: &str = "topic.retention_hours";
const HOUR_MS: u64 = 3_600_000;

/// What is kept. 0 everywhere: for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Topics keep messages for so long, ms of log time.
    pub topics_ms: u64,
    /// Topics keep what lies in so many newest bytes of the log.
    pub topics_bytes: u64,
    /// Beyond so many bytes on disk, room is made.
    pub max_bytes: u64,
}

/// What the log takes up. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Segment files: those that hold log, the prepared one, and those that wait to be recycled or removed.
    pub used: u64,
    /// Of these, what nothing needs any more and what only topics need: full segments without a message in an AMQP queue.
    pub reclaimable: u64,
}

/// What a look at the segments came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// Segments (numbers, ascending) that nothing will ask for again: their files can go as soon as the log does not need them.
    pub retire: Vec<u64>,
    /// A checkpoint would let some go.
    pub checkpoint: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    pub(crate) settings: Settings,
    pub(crate) space: Space,
    next_look: Duration,
    /// Topics keep nothing before this segment, as of the last look.
    below: u64,
    /// The same of the queues of topics with a time of their own.
    own: BTreeMap<QueueUid, u64>,
    steps: VecDeque<Step>,
    large: Option<Large>,
    dying: BTreeMap<u64, Dying>,
    /// Segments that were too full to be emptied, and how many live references queues had there then.
    full: BTreeMap<u64, u64>,
    /// Apart from what consumers read.
    cache: Cache,
}

#[derive(Debug)]
enum Step {
    /// Topic messages before that segment go.
    Trim { queue: QueueUid, below: u64 },
    /// The same, once it is known where that is.
    TrimTo { queue: QueueUid, from: Offset, to: Offset },
    /// What a queue has in that segment moves.
    Empty { queue: QueueUid, segment: u64 },
    /// These messages move.
    Move { queue: QueueUid, offsets: VecDeque<Offset> },
}

/// A large body on its way.
#[derive(Debug)]
struct Large {
    queue: QueueUid,
    offset: Offset,
    left: usize,
    extents: Vec<Extent>,
}

/// Since when nothing lives in a segment.
#[derive(Debug, Clone, Copy)]
struct Dying {
    since: Duration,
    /// Who leads: term, and the ordinal of the batch that was open then. Who follows: term, and the next ordinal to be applied.
    noted: (u64, u64),
    led: bool,
}

/// What a segment holds.
#[derive(Debug, Clone, Default)]
struct Share {
    /// Live references of queues that settle.
    queues: u64,
    /// Live references of topics.
    topics: u64,
    /// The queues that settle.
    holders: Vec<QueueUid>,
}

impl Core {
    /// The same core, which keeps what `settings` say.
    #[must_use]
    pub fn with_retention(mut self, settings: Settings) -> Self {
        self.retention.settings = settings;
        self
    }

    /// A term begins: what was planned in another one is planned again.
    pub(crate) fn restart_retention(&mut self) {
        self.retention.steps.clear();
        self.retention.large = None;
        self.retention.next_look = Duration::ZERO;
    }

    /// Looks at the segments that exist (numbers, ascending), about once a second. `spare`: files beside them; `below`: the durable
    /// checkpoint stands in that segment.
    pub fn tend(&mut self, existing: &[u64], spare: usize, below: u64) -> Tended {
        let size = self.state.segment_size;
        let Some(open) = self.state.applied.map(|point| point.position / size) else {
            return Tended::default();
        };
        let lives = |s: &u64| self.state.segments.contains_key(s);
        let dead: Vec<u64> = existing.iter().copied().filter(|s| *s < open && !lives(s)).collect();
        self.retention.space.used = (existing.len() + spare) as u64 * size;
        let now = self.monotonic();
        if now >= self.retention.next_look
            && self.retention.steps.is_empty()
            && self.retention.large.is_none()
        {
            self.plan(existing, &dead, spare, open);
        }
        let (term, ordinal, decided_from) = (self.state.term, self.state.ordinal, self.state.leader_applied);
        let (led, noted) = match &self.overlay {
            Some(overlay) => (true, (overlay.term, overlay.ordinal)),
            None => (false, (term, ordinal)),
        };
        let before = std::mem::take(&mut self.retention.dying);
        self.retention.dying = dead
            .iter()
            .map(|s| (*s, before.get(s).copied().unwrap_or(Dying { since: now, noted, led })))
            .collect();
        let idle = self.overlay.as_ref().is_some_and(|o| o.builder.is_empty() && o.ordinal == ordinal);
        let ripe = |dying: &Dying| {
            let waited = now.saturating_sub(dying.since) >= Duration::from_millis(limits::RETIRE_AFTER_MS);
            let (of, from) = dying.noted;
            let decided = if dying.led { ordinal > from } else { decided_from >= from };
            waited && (idle || of != term || decided)
        };
        let retire = self.retention.dying.iter().filter(|(_, dying)| ripe(dying));
        Tended { retire: retire.map(|(s, _)| *s).collect(), checkpoint: dead.iter().any(|s| *s >= below) }
    }

    // ---- planning

    fn plan(&mut self, existing: &[u64], dead: &[u64], spare: usize, open: u64) {
        let shares = self.shares(open);
        let size = self.state.segment_size;
        let only_topics = shares.values().filter(|share| share.queues == 0).count();
        self.retention.full.retain(|segment, _| shares.contains_key(segment));
        self.retention.space.reclaimable = (dead.len() + only_topics) as u64 * size;
        let mut wait = limits::RETENTION_LOOK_MS;
        if self.is_ready() {
            let settings = self.retention.settings.clone();
            let mut forced = 0;
            let mut empty = BTreeSet::new();
            // What is dead already goes by itself; the files of the pool stay.
            let needed = (existing.len() - dead.len() + spare.min(1)) as u64 * size;
            if settings.max_bytes > 0 && needed > settings.max_bytes {
                wait = limits::RETENTION_HURRY_MS;
                let excess = (needed - settings.max_bytes).div_ceil(size);
                forced = self.make_room_in(&shares, excess, &mut empty);
            }
            let old = self.now().saturating_sub(limits::REHOME_AGE_MS);
            let (mut most, mut walk) = (limits::REHOME_SEGMENTS, limits::REHOME_WALK);
            for (segment, share) in shares.iter().filter(|(_, share)| share.topics == 0) {
                let is_old = self.state.fills.ended(*segment).is_some_and(|ended| ended <= old);
                if most > 0 && is_old && self.is_sparse(*segment, share, &mut walk) {
                    empty.insert(*segment);
                    most -= 1;
                }
            }
            let least = self.oversized(&settings, open).max(forced);
            self.retention.below = self.aged(settings.topics_ms, open).max(least);
            self.retention.own = self.own_times(open, least);
            self.plan_steps(&empty);
        }
        self.retention.next_look = self.monotonic() + Duration::from_millis(wait);
    }

    /// What is older than so many ms lies before this segment. 0: nothing is too old.
    fn aged(&self, keep_ms: u64, open: u64) -> u64 {
        if keep_ms == 0 {
            return 0;
        }
        let expired = self.state.fills.last_until(self.now().saturating_sub(keep_ms));
        expired.map_or(0, |segment| segment + 1).min(open)
    }

    /// What is beyond the newest bytes that topics keep lies before this segment.
    fn oversized(&self, settings: &Settings, open: u64) -> u64 {
        if settings.topics_bytes == 0 {
            return 0;
        }
        let end = self.state.applied.map_or(0, |point| point.end);
        (end.saturating_sub(settings.topics_bytes) / self.state.segment_size).min(open)
    }

    /// Before which segment topics with a time of their own keep nothing; `least`: where no topic keeps anything.
    fn own_times(&self, open: u64, least: u64) -> BTreeMap<QueueUid, u64> {
        let topology = &self.state.topology;
        let hours = |value: &Bytes| str::from_utf8(value).ok()?.parse::<u64>().ok();
        let mut own = BTreeMap::new();
        for (name, value) in topology.settings(TOPIC_HOURS) {
            let (Some(topic), Some(hours)) = (topology.topic(name), hours(value)) else { continue };
            let below = self.aged(hours.saturating_mul(HOUR_MS), open).max(least);
            own.extend(topic.queues.iter().map(|uid| (*uid, below)));
        }
        own
    }

    /// Before which segment a topic's queue keeps nothing, as of the last look.
    fn below(&self, queue: QueueUid) -> u64 {
        self.retention.own.get(&queue).copied().unwrap_or(self.retention.below)
    }

    /// Chooses segments, oldest first, until so many will be free: those with topic messages alone are trimmed away, those with a
    /// few others are emptied. Answers before which segment topics lose what they have.
    fn make_room_in(&mut self, shares: &BTreeMap<u64, Share>, excess: u64, empty: &mut BTreeSet<u64>) -> u64 {
        let (mut below, mut gain, mut walk) = (0, 0, limits::REHOME_WALK);
        for (segment, share) in shares {
            if gain >= excess {
                break;
            }
            if share.queues > 0 && !self.is_sparse(*segment, share, &mut walk) {
                // AMQP's messages are nobody's to give up, and what topics have beside them would free nothing.
                continue;
            }
            gain += 1;
            empty.insert(*segment);
            if share.topics > 0 {
                below = segment + 1;
            }
        }
        below
    }

    /// Does so little of a segment live in queues that moving it is worth while? Looks at no more than `walk` entries; a
    /// segment that was too full is looked at again when a tenth of that is gone.
    fn is_sparse(&mut self, segment: u64, share: &Share, walk: &mut usize) -> bool {
        let before = self.retention.full.get(&segment).copied();
        if before.is_some_and(|before| share.queues * 10 > before * 9) {
            return false;
        }
        let (size, mut bytes) = (self.state.segment_size, 0);
        for uid in &share.holders {
            let offsets = self.lives_in(*uid, segment, *walk);
            *walk -= offsets.len().min(*walk);
            bytes += offsets.into_iter().map(|offset| self.bytes_in(*uid, offset, segment)).sum::<u64>();
            if *walk == 0 || bytes * 100 > size * limits::REHOME_SHARE_PERCENT {
                self.retention.full.insert(segment, share.queues);
                return false;
            }
        }
        self.retention.full.remove(&segment);
        true
    }

    /// Bytes of a message in one segment.
    fn bytes_in(&mut self, uid: QueueUid, offset: Offset, segment: u64) -> u64 {
        let size = self.state.segment_size;
        let Some((batch, record, len)) = self.entry(uid, offset).map(|entry| entry.place()) else { return 0 };
        let own = if (batch + u64::from(record)) / size == segment { u64::from(len) } else { 0 };
        let elsewhere = self.state.queues.get(&uid).and_then(|queue| queue.elsewhere.get(&offset));
        own + elsewhere
            .into_iter()
            .flatten()
            .filter(|(s, _)| *s == segment)
            .map(|(_, n)| u64::from(*n))
            .sum::<u64>()
    }

    fn shares(&self, open: u64) -> BTreeMap<u64, Share> {
        let share = |live: &u64| Share { queues: *live, ..Share::default() };
        let mut shares: BTreeMap<u64, Share> =
            self.state.segments.range(..open).map(|(s, live)| (*s, share(live))).collect();
        for queue in self.state.queues.values() {
            for (segment, count) in &queue.segments {
                let Some(share) = shares.get_mut(segment) else { continue };
                if queue.kind == QueueKind::Topic {
                    share.queues -= count;
                    share.topics += count;
                } else {
                    share.holders.push(queue.uid);
                }
            }
        }
        shares
    }

    fn plan_steps(&mut self, empty: &BTreeSet<u64>) {
        let mut steps = Vec::new();
        for queue in self.state.queues.values() {
            let below = self.below(queue.uid);
            let has = |s: &u64| queue.segments.binary_search_by_key(s, |(segment, _)| *segment).is_ok();
            if queue.kind == QueueKind::Topic && queue.segments.front().is_some_and(|(s, _)| *s < below) {
                steps.push((queue.uid, 0, Step::Trim { queue: queue.uid, below }));
            }
            for segment in empty.iter().filter(|s| has(s)) {
                steps.push((queue.uid, segment + 1, Step::Empty { queue: queue.uid, segment: *segment }));
            }
        }
        steps.sort_by_key(|(queue, order, _)| (*queue, *order));
        self.retention.steps = steps.into_iter().map(|(_, _, step)| step).collect();
    }

    // ---- doing

    /// Does what is planned, for one turn; true: there is more to do at once.
    pub(crate) fn serve_retention(&mut self) -> bool {
        let (mut trims, mut bytes) = (limits::TRIMS_PER_TURN, limits::STEP_BYTES_PER_TURN);
        while trims > 0 && bytes > 0 {
            let behind = self.overlay.as_ref().is_none_or(|o| o.closed.len() >= limits::BATCHES_IN_FLIGHT);
            if behind || !self.is_ready() || self.retention.large.is_some() {
                // The next applied batch looks again.
                return false;
            }
            let Some(step) = self.retention.steps.pop_front() else { return false };
            match step {
                Step::Trim { queue, below } => self.begin_trim(queue, below),
                Step::TrimTo { queue, from, to } => {
                    let count = (to - from).min(trims);
                    trims -= count;
                    self.settle_in(queue, vec![(from, count)]);
                    if from + count < to {
                        self.retention.steps.push_front(Step::TrimTo { queue, from: from + count, to });
                    }
                }
                Step::Empty { queue, segment } => {
                    let offsets = self.lives_in(queue, segment, limits::REHOMED_PER_QUEUE);
                    self.retention.steps.push_front(Step::Move { queue, offsets });
                }
                Step::Move { queue, mut offsets } => {
                    let Some(offset) = offsets.pop_front() else { continue };
                    self.retention.steps.push_front(Step::Move { queue, offsets });
                    bytes = bytes.saturating_sub(self.move_home(queue, offset));
                }
            }
        }
        true
    }

    /// Looks for the first message of a topic's queue that stays. Positions rise along a queue.
    fn begin_trim(&mut self, queue: QueueUid, below: u64) {
        let Some(state) = self.state.queues.get(&queue) else { return };
        let (from, mut high) = (state.index.head(), state.index.next());
        let mut low = from;
        if self.born_in(queue, from).is_none_or(|segment| segment >= below) {
            // What keeps an old segment are bodies of younger messages.
            return;
        }
        while low < high {
            let middle = low.midpoint(high);
            let Some(segment) = self.born_in(queue, middle) else { return };
            if segment < below {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.retention.steps.push_front(Step::TrimTo { queue, from, to: low });
    }

    /// Segment of the record that an entry came with.
    fn born_in(&mut self, queue: QueueUid, offset: Offset) -> Option<u64> {
        let entry = self.entry(queue, offset)?;
        Some((entry.position - u64::from(entry.record_back)) / self.state.segment_size)
    }

    /// What a queue has in that segment. Of a topic only bodies of younger messages: the rest is trimmed, not moved.
    fn lives_in(&mut self, uid: QueueUid, segment: u64, most: usize) -> VecDeque<Offset> {
        let size = self.state.segment_size;
        let Some(queue) = self.state.queues.get(&uid) else { return VecDeque::new() };
        let (kind, floor, end) = (queue.kind, queue.cursor.floor(), queue.index.next());
        let elsewhere = queue.elsewhere.iter().filter(|(_, parts)| parts.iter().any(|(s, _)| *s == segment));
        let moved = queue.homes.iter().filter(|(_, home)| home.segment(size) == segment);
        let mut found: BTreeSet<Offset> = elsewhere.map(|(o, _)| *o).chain(moved.map(|(o, _)| *o)).collect();
        if kind == QueueKind::Topic {
            let stays = (segment + 1).max(self.below(uid));
            found.retain(|offset| self.born_in(uid, *offset).is_some_and(|born| born >= stays));
            return found.into_iter().collect();
        }
        let (mut low, mut high) = (floor, end);
        while low < high {
            let middle = low.midpoint(high);
            match self.born_in(uid, middle) {
                Some(born) if born < segment => low = middle + 1,
                _ => high = middle,
            }
        }
        while found.len() < most {
            let Some(queue) = self.state.queues.get(&uid) else { break };
            let offset = queue.cursor.next_unsettled(low);
            let moved = queue.homes.contains_key(&offset);
            if offset >= end || self.born_in(uid, offset) != Some(segment) {
                break;
            }
            if !moved {
                found.insert(offset);
            }
            low = offset + 1;
        }
        found.into_iter().collect()
    }

    /// Writes a copy of one message behind the log's end; answers its bytes.
    ///
    /// # Panics
    /// When the log does not hold what the index says.
    fn move_home(&mut self, uid: QueueUid, offset: Offset) -> usize {
        let Some(queue) = self.state.queues.get(&uid) else { return 0 };
        let full = queue.homes.len() >= limits::REHOMED_PER_QUEUE && !queue.homes.contains_key(&offset);
        if full || queue.cursor.is_settled(offset) {
            return 0;
        }
        let Some((record, body)) = self.whole(uid, offset) else { return 0 };
        let bytes = record.len() + body.iter().map(Bytes::len).sum::<usize>();
        if bytes + OVERHEAD <= self.batch_bytes {
            self.write_home(uid, offset, &record, &body, &[]);
            return bytes;
        }
        // Too large for one batch: its body goes first, in pieces (D5).
        let large = Large { queue: uid, offset, left: body.len(), extents: Vec::with_capacity(body.len()) };
        self.retention.large = Some(large);
        for bytes in body {
            let sequence = self.number(Work::Piece { connection: HOME_PIECES, bytes: bytes.clone() });
            self.write_piece(sequence, &bytes);
        }
        bytes
    }

    /// A message's record, and its body if that lies elsewhere.
    fn whole(&mut self, queue: QueueUid, offset: Offset) -> Option<(Bytes, Vec<Bytes>)> {
        let place = self.entry(queue, offset)?.place();
        let record = record_at(place, &*self.log, &mut self.retention.cache);
        let found = record.and_then(|record| body_elsewhere(&record, &*self.log).map(|body| (record, body)));
        match found {
            Ok(found) => Some(found),
            Err(error) => panic!("queue {queue}, offset {offset}: {error}"),
        }
    }

    fn write_home(
        &mut self,
        queue: QueueUid,
        offset: Offset,
        record: &Bytes,
        body: &[Bytes],
        extents: &[Extent],
    ) {
        let (Some(entry), Some(logged)) = (self.entry(queue, offset), self.logged_at(queue, offset)) else {
            return;
        };
        let size =
            OVERHEAD + record.len() + body.iter().map(Bytes::len).sum::<usize>() + size_of_val(extents);
        self.make_room(size + end_size(extents));
        let sequence = self.number(Work::Unanswered);
        self.record(sequence, Kind::Rehome, size, |buf, _| {
            home::put_head(buf, queue, offset, logged);
            if let Err(error) = put_copy(buf, record, (queue, entry.deadline), body, extents) {
                panic!("queue {queue}, offset {offset}: {error}");
            }
        });
        self.write_end_of_pieces(sequence, extents);
    }

    /// One piece of a large body is in the log.
    pub(crate) fn home_piece_stored(&mut self, extent: Extent) {
        let Some(large) = self.retention.large.as_mut() else { return self.give_up(&[extent]) };
        large.extents.push(extent);
        large.left -= 1;
        if large.left > 0 {
            return;
        }
        let Some(large) = self.retention.large.take() else { return };
        let (queue, offset) = (large.queue, large.offset);
        let lives = self.state.queues.get(&queue).is_some_and(|q| !q.cursor.is_settled(offset));
        match self.whole(queue, offset).filter(|_| lives && self.is_ready()) {
            Some((record, _)) => self.write_home(queue, offset, &record, &[], &large.extents),
            None => self.give_up(&large.extents),
        }
    }
}
