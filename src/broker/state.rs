//! The replicated state of a shard, and the total function that applies records to it.
//!
//! Owns: topology, queues' indexes and cursors, sessions, group offsets, what lives in each segment, log time.
//! Promises: two replicas that applied the same batches hold the same state (`digest` compares them); applying reads nothing but
//! the state and the record (D6), and a void is a named outcome on every replica (D10).
//! Does not know: connections, leases, who leads, the clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dassie_storage::{Batch, LogPoint};
use hashbrown::HashMap;

use super::api::{Offset, Position, QueueKind, QueueUid};
use super::change;
use super::cursor::Cursor;
use super::fills::Fills;
use super::home::{self, Home};
use super::index::{Entry, Pages, QueueIndex};
use super::locks::{Held, LockChange, Locks, Place};
use super::message::{Reference, parse_reference};
use super::recent::{Decided, Recent, SendKey};
use super::record::{self, Kind, Malformed, Record, SectionHead};
use super::topology::{Change, Owner, Topology, WAITING_VHOST};

/// Batch kinds as `storage` carries them.
pub(crate) const OUTCOMES: u8 = 1;
/// A new leader's first entry.
pub(crate) const TERM_START: u8 = 2;
/// Voters and learners: the consensus driver's.
pub(crate) const MEMBERSHIP: u8 = 3;

/// Why a section that came twice does nothing.
pub(crate) const ALREADY_DELIVERED: &str = "already delivered";

/// One durable queue.
#[derive(Debug)]
pub(crate) struct QueueState {
    pub(crate) uid: QueueUid,
    pub(crate) kind: QueueKind,
    pub(crate) index: QueueIndex,
    pub(crate) cursor: Cursor,
    /// Live references into each segment, ascending.
    pub(crate) segments: VecDeque<(u64, u64)>,
    /// Other segments that hold parts of a live message's body, and how many bytes each.
    pub(crate) elsewhere: BTreeMap<Offset, Vec<(u64, u32)>>,
    /// Live messages that were moved since they came in.
    pub(crate) homes: BTreeMap<Offset, Home>,
    /// How often messages of a quorum queue went back.
    pub(crate) attempts: BTreeMap<Offset, u32>,
    /// A message with a deadline came in since it was empty last.
    pub(crate) may_expire: bool,
    /// Its messages wait for a time or an answer: no client sees it.
    hidden: bool,
    dirty: bool,
}

/// Bit of a kept queue's first byte.
const MAY_EXPIRE: u8 = 0x80;

impl QueueState {
    fn new(uid: QueueUid, kind: QueueKind) -> Self {
        Self {
            uid,
            kind,
            index: QueueIndex::new(),
            cursor: Cursor::default(),
            segments: VecDeque::new(),
            elsewhere: BTreeMap::new(),
            homes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            may_expire: false,
            hidden: false,
            dirty: true,
        }
    }

    /// Messages neither settled nor trimmed.
    pub(crate) fn depth(&self) -> u64 {
        match self.kind {
            QueueKind::Topic => self.index.next() - self.index.head(),
            QueueKind::Classic | QueueKind::Quorum => {
                self.index.next() - self.cursor.floor() - self.cursor.settled_ahead()
            }
        }
    }

    /// What [`State::messages`] counts of it.
    fn counted(&self) -> u64 {
        if self.hidden || self.kind == QueueKind::Topic { 0 } else { self.depth() }
    }

    /// All segments that the message at `offset` has bytes in, each as often as it is counted.
    pub(crate) fn segments_of(&self, offset: Offset, entry: &Entry, segment_size: u64) -> Vec<u64> {
        let own = match self.homes.get(&offset) {
            Some(home) => home.segment(segment_size),
            None => (entry.position - u64::from(entry.record_back)) / segment_size,
        };
        let elsewhere = self.elsewhere.get(&offset).into_iter().flatten().map(|(segment, _)| *segment);
        std::iter::once(own).chain(elsewhere).collect()
    }

    fn put(&self, buf: &mut BytesMut, assigned: &dyn Fn(u64) -> Option<u32>) {
        buf.put_u8(self.kind as u8 | if self.may_expire { MAY_EXPIRE } else { 0 });
        self.index.put(buf, assigned);
        self.cursor.put(buf);
        buf.put_u32_le(u32::try_from(self.segments.len()).unwrap_or(u32::MAX));
        for (segment, count) in &self.segments {
            buf.put_u64_le(*segment);
            buf.put_u64_le(*count);
        }
        buf.put_u32_le(u32::try_from(self.elsewhere.len()).unwrap_or(u32::MAX));
        for (offset, segments) in &self.elsewhere {
            buf.put_u64_le(*offset);
            buf.put_u32_le(u32::try_from(segments.len()).unwrap_or(u32::MAX));
            for (segment, bytes) in segments {
                buf.put_u64_le(*segment);
                buf.put_u32_le(*bytes);
            }
        }
        buf.put_u32_le(u32::try_from(self.attempts.len()).unwrap_or(u32::MAX));
        for (offset, count) in &self.attempts {
            buf.put_u64_le(*offset);
            buf.put_u32_le(*count);
        }
        home::put(buf, &self.homes);
    }

    fn read(uid: QueueUid, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = record::Cursor::new(bytes, 0);
        let first = cursor.u8()?;
        let kind = match first & !MAY_EXPIRE {
            1 => QueueKind::Classic,
            2 => QueueKind::Quorum,
            3 => QueueKind::Topic,
            _ => return Err(Malformed { at: 0, what: "unknown queue type" }),
        };
        let mut queue = Self { dirty: false, may_expire: first & MAY_EXPIRE != 0, ..Self::new(uid, kind) };
        queue.index = QueueIndex::read(&mut cursor)?;
        queue.cursor = Cursor::read(&mut cursor)?;
        for _ in 0..cursor.u32()? {
            queue.segments.push_back((cursor.u64()?, cursor.u64()?));
        }
        for _ in 0..cursor.u32()? {
            let offset = cursor.u64()?;
            let count = cursor.u32()?;
            let segments =
                (0..count).map(|_| Ok((cursor.u64()?, cursor.u32()?))).collect::<Result<Vec<_>, _>>()?;
            queue.elsewhere.insert(offset, segments);
        }
        for _ in 0..cursor.u32()? {
            queue.attempts.insert(cursor.u64()?, cursor.u32()?);
        }
        queue.homes = home::read(&mut cursor)?;
        Ok(queue)
    }
}

/// A node's incarnation as the log knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Session {
    /// Whose.
    pub(crate) node: u64,
    /// Last sequence with a record in the log.
    pub(crate) last: u64,
    /// Pieces of large bodies that a reference may still name. They live until the session says that none will; a session has
    /// few: each of its connections puts one body at a time.
    pub(crate) pieces: BTreeSet<Position>,
}

impl Session {
    fn value(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(16 + self.pieces.len() * 8);
        value.put_u64_le(self.node);
        value.put_u64_le(self.last);
        self.pieces.iter().for_each(|piece| value.put_u64_le(*piece));
        value.freeze()
    }

    fn read(value: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = record::Cursor::new(value, 0);
        let (node, last) = (cursor.u64()?, cursor.u64()?);
        let pieces = (16..value.len()).step_by(8).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        Ok(Self { node, last, pieces })
    }
}

/// One message that entered one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enqueued {
    pub(crate) queue: QueueUid,
    pub(crate) offset: Offset,
    pub(crate) position: Position,
    /// Log time at which it is expired; 0: never.
    pub(crate) deadline: u64,
    pub(crate) priority: u8,
    /// Bytes of its body.
    pub(crate) body: u32,
}

/// What a record did, for the front end that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// A message is in its queues: `enqueued[first..first + count]`.
    Enqueued { first: usize, count: usize },
    /// A body piece stands at that position of the log, so far behind its batch header.
    Body { position: Position, batch_back: u32 },
    /// A send that is stored came again: `again[place]`.
    Repeated { place: usize },
    /// Anything else.
    Other,
}

/// What applying one batch did.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// (session, sequence, what), in log order.
    pub(crate) done: Vec<(u64, u64, Done)>,
    /// (session, sequence, front end's session, its number): whose verbs these were.
    pub(crate) origins: Vec<(u64, u64, u64, u64)>,
    /// All enqueues, in log order.
    pub(crate) enqueued: Vec<Enqueued>,
    /// What each repeated send had made.
    pub(crate) again: Vec<Vec<Enqueued>>,
    /// Queues that are gone.
    pub(crate) removed: Vec<QueueUid>,
    /// The topology changed.
    pub(crate) topology: bool,
    /// It was a batch of outcomes.
    pub(crate) outcomes: bool,
    /// A new leader's term began: (term, node).
    pub(crate) term_start: Option<(u64, u64)>,
    /// The whole batch was void, with the reason.
    pub(crate) void: Option<&'static str>,
    /// Sections that were void or already delivered: (session, last sequence, reason).
    pub(crate) void_sections: Vec<(u64, u64, &'static str)>,
}

/// A checkpoint to be written: the objects that changed since the last one.
#[derive(Debug)]
pub(crate) struct Delta {
    /// What it stands for.
    pub(crate) point: LogPoint,
    /// New values.
    pub(crate) puts: Vec<(Bytes, Bytes)>,
    /// Objects that are gone.
    pub(crate) removes: Vec<Bytes>,
    /// Index pages to write first: (page, owner, bytes).
    pub(crate) pages: Vec<(u32, u64, Bytes)>,
    /// For [`State::checkpointed`]: (queue, page number in it, page).
    pub(crate) assigned: Vec<(QueueUid, u64, u32)>,
    /// Disk pages that nothing names from this checkpoint on.
    pub(crate) freed: Vec<u32>,
}

/// See the module.
pub(crate) struct State {
    pub(crate) applied: Option<LogPoint>,
    /// Term of the last term start.
    pub(crate) term: u64,
    /// Ordinal that the term's next batch must have.
    pub(crate) ordinal: u64,
    /// All that comes from here on was decided when the leader had applied the term's batches before this ordinal. Not kept.
    pub(crate) leader_applied: u64,
    pub(crate) log_time: u64,
    /// Latest store time of a message, ms since 1970: the next leader's stamps do not fall behind it.
    pub(crate) store_time: u64,
    pub(crate) topology: Topology,
    pub(crate) queues: HashMap<QueueUid, QueueState, foldhash::fast::FixedState>,
    /// Messages in all durable queues that AMQP clients see.
    pub(crate) messages: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) group_offsets: HashMap<Arc<str>, BTreeMap<QueueUid, Offset>, foldhash::fast::RandomState>,
    /// Queue locks of ordered consumption.
    pub(crate) locks: Locks,
    /// Live references into each segment of the log, and pieces that wait for theirs.
    pub(crate) segments: BTreeMap<u64, u64>,
    /// When each segment was filled.
    pub(crate) fills: Fills,
    /// The last sends.
    pub(crate) recent: Recent,
    /// The send whose messages follow, and its sequence. Not kept: all of it stands in one batch.
    sending: Option<(u64, SendKey)>,
    /// The membership that the last checkpoint keeps, opaque.
    pub(crate) membership: Option<Bytes>,
    pub(crate) segment_size: u64,
    /// Small objects that changed since the last checkpoint began; `None`: gone.
    changed: BTreeMap<Bytes, Option<Bytes>>,
    /// Version under which a live definition is kept.
    definitions: HashMap<Thing, u64, foldhash::fast::RandomState>,
    pub(crate) dirty_queues: Vec<QueueUid>,
    freed_pages: Vec<u32>,
    /// Bytes of log applied since the last checkpoint began.
    pub(crate) since_checkpoint: u64,
}

/// What a definition defines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Thing {
    Exchange(u32, Arc<str>),
    Queue(QueueUid),
    Binding(u64),
    Topic(Arc<str>),
    Setting(Arc<str>, Arc<str>),
    Vhost(u32),
}

const KEY_META: &[u8] = b"m";
const KEY_MEMBERSHIP: &[u8] = b"M";
const KEY_DEFINITION: u8 = b'd';
const KEY_QUEUE: u8 = b'q';
const KEY_SESSION: u8 = b's';
const KEY_OFFSET: u8 = b'o';
const KEY_LOCK: u8 = b'l';
const KEY_FILL: u8 = b'f';
const KEY_RECENT: u8 = b'k';
/// The offset in an offset commit that forgets the group's offset.
pub(crate) const FORGET: Offset = Offset::MAX;

impl State {
    /// The state of an empty log.
    pub(crate) fn new(segment_size: u64) -> Self {
        Self {
            applied: None,
            term: 0,
            ordinal: 0,
            leader_applied: 0,
            log_time: 0,
            store_time: 0,
            topology: Topology::new(),
            queues: HashMap::default(),
            messages: 0,
            sessions: BTreeMap::new(),
            group_offsets: HashMap::default(),
            locks: Locks::default(),
            segments: BTreeMap::new(),
            fills: Fills::default(),
            recent: Recent::default(),
            sending: None,
            membership: None,
            segment_size,
            changed: BTreeMap::new(),
            definitions: HashMap::default(),
            dirty_queues: Vec::new(),
            freed_pages: Vec::new(),
            since_checkpoint: 0,
        }
    }

    /// Applies the next committed batch.
    ///
    /// # Panics
    /// When the log holds what this program can not read (a newer format or damage that passed every checksum), or an index page
    /// can not be read: a state that might differ from the other replicas' must not live on.
    pub(crate) fn apply(&mut self, batch: &Batch, pages: &dyn Pages) -> Applied {
        assert!(
            self.applied.is_none_or(|a| batch.point.index == a.index + 1),
            "batches are applied in order, each once: {:?} after {:?}",
            batch.point,
            self.applied
        );
        let mut out = Applied::default();
        self.since_checkpoint += batch.point.end - batch.point.position;
        self.applied = Some(batch.point);
        self.fills.enter(batch.point.position / self.segment_size, self.log_time);
        match batch.kind {
            TERM_START => {
                assert!(batch.point.term >= self.term, "terms never go back");
                self.term = batch.point.term;
                self.ordinal = 0;
                self.leader_applied = 0;
                self.recent.begin_term();
                out.term_start = Some((batch.point.term, batch.point.leader));
            }
            OUTCOMES => {
                out.outcomes = true;
                if let Err(error) = self.apply_outcomes(batch, pages, &mut out) {
                    panic!("log position {}: {error}", batch.point.position);
                }
            }
            MEMBERSHIP => {}
            kind => {
                panic!("log position {}: batch kind {kind} is unknown to this program", batch.point.position)
            }
        }
        out
    }

    /// The membership as consensus wants it back with the checkpoint that is about to begin.
    pub(crate) fn keep_membership(&mut self, record: Bytes) {
        if self.membership.as_ref() != Some(&record) {
            self.changed.insert(Bytes::from_static(KEY_MEMBERSHIP), Some(record.clone()));
            self.membership = Some(record);
        }
    }

    fn apply_outcomes(
        &mut self,
        batch: &Batch,
        pages: &dyn Pages,
        out: &mut Applied,
    ) -> Result<(), Malformed> {
        let (head, sections) = record::parse(&batch.payload)?;
        if head.term != batch.point.term || head.term != self.term {
            out.void = Some("decided in another term");
            return Ok(());
        }
        if head.ordinal != self.ordinal {
            out.void = Some("a batch of this term before it is missing");
            return Ok(());
        }
        self.ordinal += 1;
        self.leader_applied = head.ordinal.saturating_sub(u64::from(head.lag));
        self.log_time = self.log_time.max(head.log_time);
        self.recent.forget_until(self.log_time);
        self.sending = None;
        for section in &sections {
            if let Some(reason) = self.refuses(&section.head, section.records.first()) {
                out.void_sections.push((section.head.session, section.head.last, reason));
                continue;
            }
            for record in &section.records {
                let done = self.apply_record(batch, record, section.head.session, pages, out)?;
                out.done.push((section.head.session, record.sequence, done));
            }
            if let Some(session) = self.sessions.get_mut(&section.head.session) {
                session.last = section.head.last;
                self.keep_session(section.head.session);
            }
        }
        Ok(())
    }

    fn refuses(&self, head: &SectionHead, first: Option<&Record<'_>>) -> Option<&'static str> {
        let opens = first.is_some_and(|r| r.kind == Kind::Session);
        match self.sessions.get(&head.session) {
            None if opens => {
                (head.topology != self.topology.version).then_some("decided on another topology")
            }
            None => Some("unknown session"),
            Some(_) if opens => Some(ALREADY_DELIVERED),
            Some(session) if head.last <= session.last => Some(ALREADY_DELIVERED),
            Some(session) if head.previous != session.last => Some("a gap in the session"),
            Some(_) => (head.topology != self.topology.version).then_some("decided on another topology"),
        }
    }

    fn apply_record(
        &mut self,
        batch: &Batch,
        record: &Record<'_>,
        session: u64,
        pages: &dyn Pages,
        out: &mut Applied,
    ) -> Result<Done, Malformed> {
        let mut cursor = record::Cursor::new(record.bytes, record::RECORD_HEAD);
        match record.kind {
            Kind::Body => {
                let position = batch.payload_position + u64::from(record.start) + record::RECORD_HEAD as u64;
                let batch_back = u32::try_from(position - batch.point.position).unwrap_or(u32::MAX);
                if let Some(session) = self.sessions.get_mut(&session)
                    && session.pieces.insert(position)
                {
                    *self.segments.entry(position / self.segment_size).or_default() += 1;
                }
                return Ok(Done::Body { position, batch_back });
            }
            Kind::Reference => {
                let reference = parse_reference(record.bytes)?;
                if reference.entries().next().is_some() {
                    let done = self.enqueue(batch, record, &reference, out);
                    self.enter_send(batch, record, session, done, out);
                    return Ok(done);
                }
                self.end_pieces(session, reference.extents.iter().map(|extent| extent.position));
            }
            Kind::Settlement => {
                let (queue, ranges) = read_ranges(&mut cursor)?;
                self.settle(queue, &ranges, pages);
            }
            Kind::Release => {
                let (queue, ranges) = read_ranges(&mut cursor)?;
                self.release(queue, &ranges);
            }
            Kind::DeliveredThrough => {
                let (queue, through) = (cursor.u64()?, cursor.u64()?);
                if let Some(queue) = self.queues.get_mut(&queue) {
                    queue.cursor.delivered_through = queue.cursor.delivered_through.max(through);
                    mark(&mut self.dirty_queues, queue);
                }
            }
            Kind::Definition | Kind::Removal => {
                let change = change::read(&mut cursor)?;
                self.change(&change, out);
            }
            Kind::OffsetCommit => {
                let (queue, offset) = (cursor.u64()?, cursor.u64()?);
                let group = cursor.text()?;
                if offset == FORGET {
                    self.forget_offset(group, queue);
                } else if self.queues.contains_key(&queue) {
                    // Its topic may have gone while the commit was on its way.
                    self.commit_offset(group, queue, offset);
                }
            }
            Kind::QueueLock => {
                let change = LockChange::read(&mut cursor)?;
                if self.queues.contains_key(&change.queue) {
                    let touched = self.locks.apply(&change, self.log_time);
                    self.keep_locks(&touched);
                }
            }
            Kind::Rehome => self.rehome(batch, record, pages)?,
            Kind::Origin => {
                let (front, number) = (cursor.u64()?, cursor.u64()?);
                out.origins.push((session, record.sequence, front, number));
            }
            Kind::SendKey => {
                let send = SendKey::read(&mut cursor)?;
                if send.messages == 0 {
                    return Ok(self.repeat_send(&send, session, pages, out));
                }
                self.sending = Some((record.sequence, send));
            }
            Kind::Answered => {
                let (before, count) = (cursor.u64()?, cursor.u64()?);
                let owner = |_| Ok(Owner { session: cursor.u64()?, connection: cursor.u64()? });
                let gone = (0..count).map(owner).collect::<Result<Vec<_>, _>>()?;
                self.recent.settle(self.term, before, &gone);
            }
            Kind::Session => {
                let node = cursor.u64()?;
                self.open_session(session, node, out);
            }
        }
        Ok(Done::Other)
    }

    fn enqueue(
        &mut self,
        batch: &Batch,
        record: &Record<'_>,
        reference: &Reference<'_>,
        out: &mut Applied,
    ) -> Done {
        self.store_time = self.store_time.max(reference.store_time);
        let record_position = batch.payload_position + u64::from(record.start);
        let batch_distance = u32::try_from(record_position - batch.point.position).unwrap_or(u32::MAX);
        let segment = record_position / self.segment_size;
        let other: Vec<(u64, u32)> =
            reference.extents.iter().map(|e| (e.position / self.segment_size, e.len)).collect();
        let first = out.enqueued.len();
        for (uid, back, deadline, priority) in reference.entries() {
            let Some(queue) = self.queues.get_mut(&uid) else {
                // The section's topology version was checked: the leader saw this queue.
                debug_assert!(false, "a reference names a queue that does not exist");
                continue;
            };
            let entry = Entry {
                position: record_position + u64::from(back),
                record_back: back,
                batch_back: batch_distance + back,
                len: u32::try_from(record.bytes.len()).unwrap_or(u32::MAX),
                tag: reference.tag_hash,
                flags: u16::from(priority) << 8 | if other.is_empty() { 0 } else { Entry::ELSEWHERE },
                deadline,
            };
            queue.may_expire |= deadline != 0;
            let before = queue.counted();
            let offset = queue.index.push(entry);
            self.messages += queue.counted() - before;
            count_up(queue, &mut self.segments, segment);
            for (segment, _) in &other {
                count_up(queue, &mut self.segments, *segment);
            }
            if !other.is_empty() {
                queue.elsewhere.insert(offset, other.clone());
            }
            mark(&mut self.dirty_queues, queue);
            let (position, body) = (entry.position, reference.body_len);
            out.enqueued.push(Enqueued { queue: uid, offset, position, deadline, priority, body });
        }
        Done::Enqueued { first, count: out.enqueued.len() - first }
    }

    /// The first messages behind a send's key are its own.
    fn enter_send(&mut self, batch: &Batch, record: &Record<'_>, session: u64, done: Done, out: &Applied) {
        let (Some((_, send)), Done::Enqueued { first, count: 1.. }) =
            (self.sending.take_if(|(of, _)| *of == record.sequence), done)
        else {
            return;
        };
        // The message queue it was sent to stands first; AMQP queues bound to the topic follow.
        let back = batch.payload_position + u64::from(record.start) - batch.point.position;
        let size = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let place = (batch.point.position, size(back), size(record.bytes.len() as u64));
        let by = self.decided_now(session);
        self.recent.enter(&send, &out.enqueued[first], place, &by);
    }

    fn repeat_send(&mut self, send: &SendKey, session: u64, pages: &dyn Pages, out: &mut Applied) -> Done {
        let by = self.decided_now(session);
        let mut again = Vec::new();
        if let Some(sent) = self.recent.repeat(send, &by) {
            again.push(Enqueued {
                queue: sent.queue,
                offset: sent.offset,
                position: sent.position,
                deadline: 0,
                priority: 0,
                body: 0,
            });
            let others = sent.offset + 1..sent.offset + u64::from(sent.messages);
            if let Some(queue) = self.queues.get_mut(&sent.queue) {
                for offset in others {
                    match queue.index.get(offset, sent.queue, pages) {
                        Ok(Some(Entry { position, deadline, .. })) => {
                            let queue = sent.queue;
                            // A topic has no priorities, and counts no bytes.
                            again.push(Enqueued { queue, offset, position, deadline, priority: 0, body: 0 });
                        }
                        // Trimmed since.
                        Ok(None) => {}
                        Err(error) => panic!("index of queue {}, offset {offset}: {error}", sent.queue),
                    }
                }
            }
        }
        out.again.push(again);
        Done::Repeated { place: out.again.len() - 1 }
    }

    /// The batch that is being applied.
    fn decided_now(&self, session: u64) -> Decided {
        Decided { term: self.term, ordinal: self.ordinal - 1, log_time: self.log_time, session }
    }

    fn settle(&mut self, uid: QueueUid, ranges: &[(Offset, u64)], pages: &dyn Pages) {
        let Some(queue) = self.queues.get_mut(&uid) else { return };
        let before = queue.counted();
        for (start, count) in ranges {
            let end = start.saturating_add(*count).min(queue.index.next());
            if *start <= queue.cursor.floor() && end == queue.index.next() {
                // Everything that is left: no need to look at each entry (a purge of a deep queue).
                drop_counts(queue, &mut self.segments);
                for offset in queue.cursor.floor()..end {
                    queue.cursor.settle(offset);
                }
                continue;
            }
            for offset in *start..end {
                if !queue.cursor.settle(offset) {
                    continue;
                }
                let entry = match queue.index.get(offset, uid, pages) {
                    Ok(entry) => entry,
                    Err(error) => panic!("index of queue {uid}, offset {offset}: {error}"),
                };
                let Some(entry) = entry else { continue };
                for segment in queue.segments_of(offset, &entry, self.segment_size) {
                    count_down(queue, &mut self.segments, segment);
                }
                queue.elsewhere.remove(&offset);
                queue.homes.remove(&offset);
            }
        }
        let floor = queue.cursor.floor();
        queue.index.trim(floor);
        self.freed_pages.append(&mut queue.index.take_freed());
        queue.attempts = queue.attempts.split_off(&floor);
        queue.may_expire &= floor < queue.index.next();
        self.messages -= before - queue.counted();
        mark(&mut self.dirty_queues, queue);
        assert!(queue.cursor.floor() <= queue.index.next(), "nothing is settled that was not enqueued");
    }

    fn release(&mut self, uid: QueueUid, ranges: &[(Offset, u64)]) {
        let Some(queue) = self.queues.get_mut(&uid) else { return };
        for (start, count) in ranges {
            for offset in *start..start.saturating_add(*count).min(queue.index.next()) {
                if !queue.cursor.is_settled(offset) {
                    *queue.attempts.entry(offset).or_default() += 1;
                }
            }
        }
        mark(&mut self.dirty_queues, queue);
    }

    fn commit_offset(&mut self, group: &str, queue: QueueUid, offset: Offset) {
        let group = match self.group_offsets.get_key_value(group) {
            Some((name, _)) => Arc::clone(name),
            None => group.into(),
        };
        self.group_offsets.entry(Arc::clone(&group)).or_default().insert(queue, offset);
        self.changed.insert(offset_key(&group, queue), Some(offset_value(&group, queue, offset)));
    }

    fn forget_offset(&mut self, group: &str, queue: QueueUid) {
        let Some(offsets) = self.group_offsets.get_mut(group) else { return };
        if offsets.remove(&queue).is_some() {
            self.changed.insert(offset_key(group, queue), None);
        }
        if offsets.is_empty() {
            self.group_offsets.remove(group);
        }
    }

    fn keep_locks(&mut self, places: &[Place]) {
        for place in places {
            let value = self.locks.get(place).map(|held| LockChange::of(place, held));
            self.changed.insert(scoped_key(KEY_LOCK, &place.1, place.0), value);
        }
    }

    fn open_session(&mut self, session: u64, node: u64, out: &mut Applied) {
        let old: Vec<u64> = self.sessions.iter().filter(|(_, s)| s.node == node).map(|(id, _)| *id).collect();
        for id in &old {
            let ended = self.sessions.remove(id).unwrap_or_default();
            for piece in ended.pieces {
                take_from(&mut self.segments, piece / self.segment_size, 1);
            }
            self.changed.insert(session_key(*id), None);
        }
        // Memory queues go with the incarnation that held them (D17).
        let orphans: Vec<QueueUid> = self
            .topology
            .queues()
            .filter(|q| q.owner.is_some_and(|o| !self.sessions.contains_key(&o.session)))
            .map(|q| q.uid)
            .collect();
        for uid in sorted(orphans) {
            self.change(&Change::RemoveQueue(uid), out);
        }
        let mut exchanges: Vec<(u32, Arc<str>)> = self
            .topology
            .exchanges()
            .filter(|(_, e)| e.session.is_some_and(|s| !self.sessions.contains_key(&s)))
            .map(|(vhost, e)| (vhost, Arc::clone(&e.spec.name)))
            .collect();
        exchanges.sort_unstable();
        for (vhost, name) in exchanges {
            self.change(&Change::RemoveExchange(vhost, name), out);
        }
        self.sessions.insert(session, Session { node, ..Session::default() });
        self.keep_session(session);
    }

    /// No reference will name these pieces any more: from now on they live by the references that did.
    fn end_pieces(&mut self, session: u64, pieces: impl Iterator<Item = Position>) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        for piece in pieces {
            if session.pieces.remove(&piece) {
                take_from(&mut self.segments, piece / self.segment_size, 1);
            }
        }
    }

    fn keep_session(&mut self, id: u64) {
        let value = self.sessions.get(&id).map(Session::value);
        self.changed.insert(session_key(id), value);
    }

    fn change(&mut self, change: &Change, out: &mut Applied) {
        self.forget_definitions(change);
        match change {
            Change::Queue { uid, vhost, spec, owner: None } if self.topology.has_vhost(*vhost) => {
                self.add_queue(*uid, spec.kind, *vhost == WAITING_VHOST);
            }
            Change::Topic { topic } => {
                for uid in
                    topic.queues.iter().filter(|u| !self.queues.contains_key(*u)).copied().collect::<Vec<_>>()
                {
                    self.add_queue(uid, QueueKind::Topic, false);
                }
            }
            Change::RemoveQueue(uid) => {
                self.remove_queue(*uid);
                out.removed.push(*uid);
            }
            Change::RemoveTopic(name) => {
                let queues = self.topology.topic(name).map(|t| t.queues.to_vec()).unwrap_or_default();
                for uid in queues {
                    self.remove_queue(uid);
                    out.removed.push(uid);
                }
            }
            _ => {}
        }
        self.topology.apply(change);
        self.keep_definition(change);
        out.topology = true;
    }

    fn add_queue(&mut self, uid: QueueUid, kind: QueueKind, hidden: bool) {
        self.queues.insert(uid, QueueState { hidden, ..QueueState::new(uid, kind) });
        self.dirty_queues.push(uid);
    }

    fn remove_queue(&mut self, uid: QueueUid) {
        let Some(mut queue) = self.queues.remove(&uid) else { return };
        self.messages -= queue.counted();
        drop_counts(&mut queue, &mut self.segments);
        self.freed_pages.extend(queue.index.disk_pages());
        self.freed_pages.append(&mut queue.index.take_freed());
        self.changed.insert(numbered_key(KEY_QUEUE, uid), None);
        let unlocked = self.locks.forget(uid);
        self.keep_locks(&unlocked);
        let groups: Vec<Arc<str>> = self
            .group_offsets
            .iter()
            .filter(|(_, o)| o.contains_key(&uid))
            .map(|(g, _)| Arc::clone(g))
            .collect();
        for group in groups {
            self.forget_offset(&group, uid);
        }
    }

    /// Drops the kept definitions of everything that `change` takes away.
    fn forget_definitions(&mut self, change: &Change) {
        let mut gone: Vec<Thing> = Vec::new();
        let topology = &self.topology;
        let mut exchange_goes = |vhost: u32, name: &Arc<str>| {
            gone.push(Thing::Exchange(vhost, Arc::clone(name)));
            if let Some(exchange) = topology.exchange(vhost, name) {
                gone.extend(exchange.all_bindings().map(|b| Thing::Binding(b.uid)));
            }
            let destination = super::api::Destination::Exchange(Arc::clone(name));
            gone.extend(topology.bindings_to(vhost, &destination).map(|b| Thing::Binding(b.uid)));
        };
        match change {
            Change::RemoveExchange(vhost, name) => exchange_goes(*vhost, name),
            Change::RemoveTopic(name) => {
                exchange_goes(0, &format!("{}{name}", super::topology::TOPIC_EXCHANGE_PREFIX).into());
                gone.push(Thing::Topic(Arc::clone(name)));
            }
            Change::RemoveQueue(uid) => {
                if let Some(queue) = topology.queue_by_uid(*uid)
                    && queue.spec.kind != QueueKind::Topic
                {
                    let destination = super::api::Destination::Queue(Arc::clone(&queue.spec.name));
                    gone.extend(
                        topology.bindings_to(queue.vhost, &destination).map(|b| Thing::Binding(b.uid)),
                    );
                }
                gone.push(Thing::Queue(*uid));
            }
            Change::RemoveBinding(vhost, spec) => {
                gone.extend(topology.binding(*vhost, spec).map(|b| Thing::Binding(b.uid)));
            }
            Change::Topic { topic } => gone.push(Thing::Topic(Arc::clone(&topic.name))),
            Change::Setting(space, name, _) | Change::RemoveSetting(space, name) => {
                gone.push(Thing::Setting(Arc::clone(space), Arc::clone(name)));
            }
            Change::RemoveVhost(id) => {
                for (_, exchange) in topology.exchanges().filter(|(vhost, _)| vhost == id) {
                    exchange_goes(*id, &exchange.spec.name);
                }
                gone.push(Thing::Vhost(*id));
            }
            Change::Exchange(..) | Change::Queue { .. } | Change::Binding { .. } | Change::Vhost(..) => {}
        }
        for thing in gone {
            if let Some(version) = self.definitions.remove(&thing) {
                self.changed.insert(numbered_key(KEY_DEFINITION, version), None);
            }
        }
    }

    fn keep_definition(&mut self, change: &Change) {
        let thing = match change {
            Change::Exchange(vhost, spec, _) => Thing::Exchange(*vhost, Arc::clone(&spec.name)),
            Change::Queue { uid, .. } => Thing::Queue(*uid),
            Change::Binding { uid, .. } => Thing::Binding(*uid),
            Change::Topic { topic } => Thing::Topic(Arc::clone(&topic.name)),
            Change::Setting(space, name, _) => Thing::Setting(Arc::clone(space), Arc::clone(name)),
            Change::Vhost(id, _) => Thing::Vhost(*id),
            _ => return,
        };
        let mut value = BytesMut::new();
        change::put(&mut value, change);
        let version = self.topology.version;
        self.definitions.insert(thing, version);
        self.changed.insert(numbered_key(KEY_DEFINITION, version), Some(value.freeze()));
    }

    /// Takes what a checkpoint at the applied point must write. `allocate(n)` gives the first of `n` adjoining free pages.
    pub(crate) fn begin_checkpoint(&mut self, allocate: &mut dyn FnMut(u32) -> u32) -> Option<Delta> {
        let point = self.applied?;
        let mut delta = Delta {
            point,
            puts: Vec::new(),
            removes: Vec::new(),
            pages: Vec::new(),
            assigned: Vec::new(),
            freed: std::mem::take(&mut self.freed_pages),
        };
        for uid in sorted(std::mem::take(&mut self.dirty_queues)) {
            let Some(queue) = self.queues.get_mut(&uid) else { continue };
            queue.dirty = false;
            let pages = queue.index.unwritten_pages();
            let first =
                if pages.is_empty() { 0 } else { allocate(u32::try_from(pages.len()).unwrap_or(u32::MAX)) };
            let mut ids: HashMap<u64, u32> = HashMap::new();
            for (i, (number, bytes)) in pages.into_iter().enumerate() {
                let id = first + u32::try_from(i).unwrap_or(0);
                ids.insert(number, id);
                delta.assigned.push((uid, number, id));
                delta.pages.push((id, uid, bytes));
            }
            let mut value = BytesMut::new();
            queue.put(&mut value, &|number| ids.get(&number).copied());
            delta.puts.push((numbered_key(KEY_QUEUE, uid), value.freeze()));
        }
        let (fills, empty) = self.fills.checkpoint(|segment| self.segments.contains_key(&segment));
        for (segment, ended) in fills {
            let value = Bytes::copy_from_slice(&ended.to_le_bytes());
            delta.puts.push((numbered_key(KEY_FILL, segment), value));
        }
        delta.removes.extend(empty.into_iter().map(|segment| numbered_key(KEY_FILL, segment)));
        for (chunk, value) in self.recent.checkpoint() {
            match value {
                Some(value) => delta.puts.push((numbered_key(KEY_RECENT, chunk), value)),
                None => delta.removes.push(numbered_key(KEY_RECENT, chunk)),
            }
        }
        for (key, value) in std::mem::take(&mut self.changed) {
            match value {
                Some(value) => delta.puts.push((key, value)),
                None => delta.removes.push(key),
            }
        }
        delta.puts.push((Bytes::from_static(KEY_META), self.meta()));
        self.since_checkpoint = 0;
        Some(delta)
    }

    /// The checkpoint that [`State::begin_checkpoint`] gave is durable: its pages can leave memory.
    pub(crate) fn checkpointed(&mut self, assigned: &[(QueueUid, u64, u32)]) {
        for (uid, number, id) in assigned {
            match self.queues.get_mut(uid) {
                Some(queue) => {
                    queue.index.written(*number, *id);
                    self.freed_pages.append(&mut queue.index.take_freed());
                }
                None => self.freed_pages.push(*id),
            }
        }
    }

    fn meta(&self) -> Bytes {
        let mut buf = BytesMut::new();
        let topology = &self.topology;
        for value in
            [self.term, self.ordinal, self.log_time, self.store_time, topology.version, topology.next_uid]
        {
            buf.put_u64_le(value);
        }
        buf.freeze()
    }

    /// The state that a checkpoint stands for, and the index pages it uses.
    ///
    /// # Errors
    /// [`Malformed`]: a newer format, or a defect (checksums passed).
    pub(crate) fn load(
        segment_size: u64,
        point: LogPoint,
        objects: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<(Self, Vec<u32>), Malformed> {
        let mut state = Self::new(segment_size);
        let mut meta = None;
        // Keys sort definitions by version, so that what a binding needs stands before it.
        for (key, value) in objects {
            match (key.first().copied(), key.len()) {
                (Some(b'm'), 1) => meta = Some(value),
                (Some(b'M'), 1) => state.membership = Some(value),
                (Some(KEY_DEFINITION), 9) => {
                    let change = change::read(&mut record::Cursor::new(&value, 0))?;
                    state.topology.apply(&change);
                    state.topology.version = (&key[1..]).get_u64();
                    state.keep_definition(&change);
                }
                (Some(KEY_QUEUE), 9) => {
                    let uid = (&key[1..]).get_u64();
                    let queue = QueueState::read(uid, &value)?;
                    for (segment, count) in &queue.segments {
                        *state.segments.entry(*segment).or_default() += count;
                    }
                    state.queues.insert(uid, queue);
                }
                (Some(KEY_FILL), 9) => {
                    let ended = record::Cursor::new(&value, 0).u64()?;
                    state.fills.load((&key[1..]).get_u64(), ended);
                }
                (Some(KEY_RECENT), 9) => state.recent.load(&value)?,
                (Some(KEY_SESSION), 9) => {
                    let session = Session::read(&value)?;
                    for piece in &session.pieces {
                        *state.segments.entry(piece / segment_size).or_default() += 1;
                    }
                    state.sessions.insert((&key[1..]).get_u64(), session);
                }
                (Some(KEY_OFFSET), _) => {
                    let mut cursor = record::Cursor::new(&value, 0);
                    let (queue, offset) = (cursor.u64()?, cursor.u64()?);
                    state.commit_offset(cursor.text()?, queue, offset);
                }
                (Some(KEY_LOCK), _) => {
                    let lock = LockChange::read(&mut record::Cursor::new(&value, 0))?;
                    let held = Held { client: lock.client, until: lock.until };
                    state.locks.set((lock.queue, lock.group), held);
                }
                _ => return Err(Malformed { at: 0, what: "unknown object in the checkpoint" }),
            }
        }
        let Some(meta) = meta else { return Err(Malformed { at: 0, what: "the checkpoint has no head" }) };
        let mut cursor = record::Cursor::new(&meta, 0);
        state.term = cursor.u64()?;
        state.ordinal = cursor.u64()?;
        state.log_time = cursor.u64()?;
        state.store_time = cursor.u64()?;
        state.topology.version = cursor.u64()?;
        state.topology.next_uid = cursor.u64()?;
        state.recent.loaded(state.term);
        state.applied = Some(point);
        state.changed.clear();
        for uid in state.topology.waiting_queues() {
            if let Some(queue) = state.queues.get_mut(&uid) {
                queue.hidden = true;
            }
        }
        state.messages = state.count_messages();
        let pages = state.queues.values().flat_map(|q| q.index.disk_pages()).collect();
        Ok((state, pages))
    }

    /// All objects, sorted: equal on replicas that applied the same batches (index pages as entries, wherever they lie).
    pub(crate) fn digest(&mut self, pages: &dyn Pages) -> u64 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&self.meta());
        for change in canonical(&self.topology) {
            digest.update(&change);
        }
        for (id, session) in &self.sessions {
            digest.update(&id.to_le_bytes());
            digest.update(&session.value());
        }
        let mut groups: Vec<_> = self.group_offsets.iter().collect();
        groups.sort();
        for (group, offsets) in groups {
            for (queue, offset) in offsets {
                digest.update(&offset_value(group, *queue, *offset));
            }
        }
        for (place, held) in self.locks.iter() {
            digest.update(&LockChange::of(place, held));
        }
        let mut recent = BytesMut::new();
        self.recent.put(&mut recent);
        digest.update(&recent);
        for (segment, count) in &self.segments {
            digest.update(&[segment.to_le_bytes(), count.to_le_bytes()].concat());
        }
        for uid in sorted(self.queues.keys().copied().collect()) {
            let Some(queue) = self.queues.get_mut(&uid) else { continue };
            let mut buf = BytesMut::new();
            buf.put_u64_le(uid);
            queue.cursor.put(&mut buf);
            home::put(&mut buf, &queue.homes);
            for offset in queue.index.head()..queue.index.next() {
                if let Ok(Some(entry)) = queue.index.get(offset, uid, pages) {
                    entry.put(&mut buf);
                }
            }
            digest.update(&buf);
        }
        digest.finalize()
    }

    /// What [`State::messages`] must be, counted queue by queue.
    pub(crate) fn count_messages(&self) -> u64 {
        self.queues.values().map(QueueState::counted).sum()
    }

    /// What lives in each segment, counted by looking at every message and piece.
    pub(crate) fn count_live(&mut self, pages: &dyn Pages) -> BTreeMap<u64, u64> {
        let mut live: Vec<u64> = self
            .sessions
            .values()
            .flat_map(|session| session.pieces.iter().map(|piece| piece / self.segment_size))
            .collect();
        for (uid, queue) in &mut self.queues {
            for offset in queue.index.head()..queue.index.next() {
                if !queue.cursor.is_settled(offset)
                    && let Ok(Some(entry)) = queue.index.get(offset, *uid, pages)
                {
                    live.extend(queue.segments_of(offset, &entry, self.segment_size));
                }
            }
        }
        let mut counts = BTreeMap::new();
        live.into_iter().for_each(|segment| *counts.entry(segment).or_default() += 1);
        counts
    }
}

/// The index pages that the objects of a checkpoint name: (page, its owner).
pub(crate) fn used_pages(objects: &BTreeMap<Bytes, Bytes>) -> Result<Vec<(u64, u64)>, Malformed> {
    let mut pages = Vec::new();
    for (key, value) in objects {
        if key.first() == Some(&KEY_QUEUE) && key.len() == 9 {
            let uid = (&key[1..]).get_u64();
            let queue = QueueState::read(uid, value)?;
            pages.extend(queue.index.disk_pages().map(|page| (u64::from(page), uid)));
        }
    }
    Ok(pages)
}

fn canonical(topology: &Topology) -> Vec<Bytes> {
    let mut changes: Vec<Bytes> = topology
        .as_changes()
        .iter()
        .map(|c| {
            let mut buf = BytesMut::new();
            change::put(&mut buf, c);
            buf.freeze()
        })
        .collect();
    changes.sort();
    changes
}

pub(crate) fn mark(dirty: &mut Vec<QueueUid>, queue: &mut QueueState) {
    if !queue.dirty {
        queue.dirty = true;
        dirty.push(queue.uid);
    }
}

fn sorted(mut uids: Vec<QueueUid>) -> Vec<QueueUid> {
    uids.sort_unstable();
    uids.dedup();
    uids
}

pub(crate) fn count_up(queue: &mut QueueState, all: &mut BTreeMap<u64, u64>, segment: u64) {
    *all.entry(segment).or_default() += 1;
    match queue.segments.back_mut() {
        Some((last, count)) if *last == segment => *count += 1,
        Some((last, _)) if *last < segment => queue.segments.push_back((segment, 1)),
        None => queue.segments.push_back((segment, 1)),
        Some(_) => match queue.segments.binary_search_by_key(&segment, |(s, _)| *s) {
            Ok(i) => queue.segments[i].1 += 1,
            Err(i) => queue.segments.insert(i, (segment, 1)),
        },
    }
}

pub(crate) fn count_down(queue: &mut QueueState, all: &mut BTreeMap<u64, u64>, segment: u64) {
    if let Ok(i) = queue.segments.binary_search_by_key(&segment, |(s, _)| *s) {
        queue.segments[i].1 -= 1;
        if queue.segments[i].1 == 0 {
            queue.segments.remove(i);
        }
        take_from(all, segment, 1);
    }
}

fn drop_counts(queue: &mut QueueState, all: &mut BTreeMap<u64, u64>) {
    for (segment, count) in std::mem::take(&mut queue.segments) {
        take_from(all, segment, count);
    }
    queue.elsewhere.clear();
    queue.homes.clear();
}

fn take_from(all: &mut BTreeMap<u64, u64>, segment: u64, count: u64) {
    let Some(live) = all.get_mut(&segment) else {
        panic!("segment {segment} has no live reference left to drop")
    };
    *live -= count;
    if *live == 0 {
        all.remove(&segment);
    }
}

fn numbered_key(tag: u8, number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(tag);
    key.put_u64(number); // big-endian: keys sort by number
    key.freeze()
}

fn session_key(id: u64) -> Bytes {
    numbered_key(KEY_SESSION, id)
}

/// Names can be longer than a key may be: the key holds a hash, the value the name.
fn offset_key(group: &str, queue: QueueUid) -> Bytes {
    scoped_key(KEY_OFFSET, group, queue)
}

fn scoped_key(tag: u8, group: &str, queue: QueueUid) -> Bytes {
    let mut key = BytesMut::with_capacity(21);
    key.put_u8(tag);
    key.put_u64(queue);
    key.put_u64(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, group.as_bytes()));
    key.put_u32(crc32(group));
    key.freeze()
}

fn crc32(text: &str) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, text.as_bytes())).unwrap_or(0)
}

fn offset_value(group: &str, queue: QueueUid, offset: Offset) -> Bytes {
    let mut value = BytesMut::new();
    value.put_u64_le(queue);
    value.put_u64_le(offset);
    record::put_text(&mut value, group);
    value.freeze()
}

/// Reads the ranges of a settlement or release: (first, count).
fn read_ranges(cursor: &mut record::Cursor<'_>) -> Result<(QueueUid, Vec<(Offset, u64)>), Malformed> {
    let queue = cursor.u64()?;
    let count = cursor.u32()?;
    cursor.u32()?;
    let ranges = (0..count).map(|_| Ok((cursor.u64()?, cursor.u64()?))).collect::<Result<Vec<_>, _>>()?;
    Ok((queue, ranges))
}

/// Writes them.
pub(crate) fn put_ranges(buf: &mut BytesMut, queue: QueueUid, ranges: &[(Offset, u64)]) {
    buf.put_u64_le(queue);
    buf.put_u32_le(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
    buf.put_u32_le(0);
    for (start, count) in ranges {
        buf.put_u64_le(*start);
        buf.put_u64_le(*count);
    }
}
