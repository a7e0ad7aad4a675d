//! What is readable right now: the tail in memory, and the segments on disk with their sparse index.
//!
//! Owns: the view that the shard's thread, the writer and all readers share. Promises: a batch leaves the tail only when it
//! stands in a file; a segment is mapped only below the committed position; a segment taken out is handed back to its remover
//! alone, and says whether a reader still holds a slice of it. Locks are held for a lookup, never for a disk operation.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use bytes::Bytes;

use crate::disk::{File, damaged, fault};
use crate::format::{
    Batch, HEADER, Header, LogPoint, Uuid, damaged_log, decode, segment_of, segment_path, whole,
};
use crate::queue::lock;

/// Batches read last from the segment that is being written are kept: so many.
const LATELY_READ: usize = 4;
/// One entry of the sparse index stands for at least so many bytes of log.
const MARK_EVERY: u64 = 64 << 10;

pub(crate) struct Segment<F> {
    pub(crate) start: u64,
    pub(crate) file: F,
    map: OnceLock<Map>,
    marks: Mutex<Marks>,
}

/// The sparse index of a segment.
#[derive(Default)]
struct Marks {
    /// Index of the batch at the segment's first byte, once it is known.
    first: Option<u64>,
    /// (index, position), rising.
    more: Vec<(u64, u64)>,
}

struct Map {
    bytes: Bytes,
    /// Shared with the owner inside `bytes`: when only this one is left, no slice of the map lives.
    alive: Arc<()>,
}

struct Held {
    bytes: Bytes,
    _alive: Arc<()>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<F: File> Segment<F> {
    pub(crate) fn new(start: u64, file: F) -> Segment<F> {
        Segment { start, file, map: OnceLock::new(), marks: Mutex::default() }
    }

    /// Notes where a batch stands, when it is far enough from the last one noted.
    pub(crate) fn mark(&self, index: u64, position: u64) {
        let mut marks = lock(&self.marks);
        if position == self.start {
            marks.first = Some(index);
            return;
        }
        match marks.more.last() {
            Some(&(known, at)) if index <= known || position < at + MARK_EVERY => {}
            _ => marks.more.push((index, position)),
        }
    }

    /// Forgets what is noted at or behind `position`.
    pub(crate) fn unmark(&self, position: u64) {
        let mut marks = lock(&self.marks);
        marks.more.retain(|&(_, at)| at < position);
        if position <= self.start {
            marks.first = None;
        }
    }

    /// The nearest place known at or before the entry, at worst the segment's first byte.
    fn mark_before(&self, index: u64) -> u64 {
        let marks = lock(&self.marks);
        let after = marks.more.partition_point(|&(known, _)| known <= index);
        after.checked_sub(1).map_or(self.start, |i| marks.more[i].1)
    }

    /// The nearest place known at or before that position, at worst the segment's first byte.
    fn mark_at(&self, position: u64) -> u64 {
        let marks = lock(&self.marks);
        let after = marks.more.partition_point(|&(_, at)| at <= position);
        after.checked_sub(1).map_or(self.start, |i| marks.more[i].1)
    }

    fn first(&self) -> Option<u64> {
        lock(&self.marks).first
    }

    fn bytes(&self, sealed: bool, offset: u64, len: usize) -> io::Result<Bytes> {
        if !sealed {
            return self.file.read_at_sync(offset, len);
        }
        if self.map.get().is_none() {
            let alive = Arc::new(());
            let bytes = Bytes::from_owner(Held { bytes: self.file.map()?, _alive: alive.clone() });
            let _ = self.map.set(Map { bytes, alive }); // another reader may have been first: its map serves as well
        }
        let map = &self.map.get().expect("set above").bytes;
        let from = usize::try_from(offset).expect("a segment fits into memory");
        match from.checked_add(len).filter(|&to| to <= map.len()) {
            Some(to) => Ok(map.slice(from..to)),
            None => Err(fault("read", self.file.path(), Some(offset), io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Whether a reader still holds bytes of this segment's map. Consumes the segment: nobody can begin to.
    fn unread(self) -> bool {
        match self.map.into_inner() {
            None => true,
            Some(Map { bytes, alive }) => {
                drop(bytes);
                Arc::strong_count(&alive) == 1
            }
        }
    }
}

struct View<F> {
    tail: VecDeque<Batch>,
    /// The job that carries each batch of the tail to the disk.
    jobs: VecDeque<u64>,
    tail_bytes: usize,
    segments: BTreeMap<u64, Arc<Segment<F>>>,
    /// How often the writer took back what it wrote: a sync that began before says nothing of what came after.
    cuts: u64,
}

pub(crate) struct Segments<F> {
    pub(crate) shard: Uuid,
    pub(crate) segment_size: u64,
    view: RwLock<View<F>>,
    /// Everything below is committed: it stands still for ever.
    committed: AtomicU64,
    /// End of what stands in the files, readable there.
    written: AtomicU64,
    /// End of what is synced.
    durable: AtomicU64,
    /// Read from the segment that is being written, newest first. A thousand consumers that are as far behind share one copy; sealed
    /// segments are maps, which are shared anyway.
    lately_read: Mutex<VecDeque<Batch>>,
}

fn cost(batch: &Batch) -> usize {
    HEADER + batch.payload.len()
}

/// What becomes of the file of a removed segment.
pub(crate) enum Removed {
    /// Nobody reads it: its bytes may be overwritten.
    Free(String),
    /// A reader holds slices of its map: only the name may go.
    Held(String),
}

impl<F: File> Segments<F> {
    pub(crate) fn new(shard: Uuid, segment_size: u64, segments: Vec<Segment<F>>, end: u64) -> Segments<F> {
        let segments = segments.into_iter().map(|s| (s.start, Arc::new(s))).collect();
        Segments {
            shard,
            segment_size,
            view: RwLock::new(View {
                tail: VecDeque::new(),
                jobs: VecDeque::new(),
                tail_bytes: 0,
                segments,
                cuts: 0,
            }),
            committed: AtomicU64::new(0),
            written: AtomicU64::new(end),
            durable: AtomicU64::new(end),
            lately_read: Mutex::default(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, View<F>> {
        self.view.read().expect("a log thread panicked")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, View<F>> {
        self.view.write().expect("a log thread panicked")
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(crate) fn set_written(&self, end: u64) {
        self.written.store(end, Ordering::Release);
    }

    pub(crate) fn set_durable(&self, end: u64) {
        assert!(end <= self.written(), "durable {end} is ahead of written {}", self.written());
        self.durable.fetch_max(end, Ordering::AcqRel);
    }

    /// Syncs everything that is written when it is called. All segments before the one that is written last are synced.
    pub(crate) async fn sync_written(&self) -> io::Result<()> {
        let (cuts, end, segment) = {
            let view = self.read();
            let end = self.written();
            let Some(last) = end.checked_sub(1).filter(|_| end > self.durable()) else { return Ok(()) };
            (view.cuts, end, view.segments.get(&segment_of(last, self.segment_size)).cloned())
        };
        let Some(segment) = segment else { return Ok(()) };
        segment.file.sync().await?;
        let view = self.write();
        if view.cuts == cuts {
            self.set_durable(end);
        }
        Ok(())
    }

    pub(crate) fn set_committed(&self, position: u64) {
        self.committed.fetch_max(position, Ordering::AcqRel);
    }

    /// The writer took back what lies behind `end`.
    pub(crate) fn cut(&self, end: u64) {
        self.write().cuts += 1;
        lock(&self.lately_read).clear();
        self.durable.fetch_min(end, Ordering::AcqRel);
        self.written.fetch_min(end, Ordering::AcqRel);
    }

    /// Adds the batches of a job to the tail; lets go of the oldest that stand in a file while it holds more than `limit`
    /// bytes. All jobs below `done` are in their files. (The written position can not tell: behind a truncation that is
    /// still under way, new batches stand where the writer has old ones.)
    pub(crate) fn push(&self, batches: Vec<Batch>, job: u64, done: u64, limit: usize) {
        let mut view = self.write();
        for batch in batches {
            view.tail_bytes += cost(&batch);
            view.tail.push_back(batch);
            view.jobs.push_back(job);
        }
        while view.tail_bytes > limit && view.jobs.front().is_some_and(|&job| job < done) {
            view.jobs.pop_front();
            let gone = view.tail.pop_front().expect("a batch for every job");
            view.tail_bytes -= cost(&gone);
        }
    }

    /// Takes everything at or behind `end` out of the tail.
    pub(crate) fn cut_tail(&self, end: u64) {
        let mut view = self.write();
        while view.tail.back().is_some_and(|batch| batch.point.position >= end) {
            view.jobs.pop_back();
            let gone = view.tail.pop_back().expect("looked at above");
            view.tail_bytes -= cost(&gone);
        }
    }

    pub(crate) fn add(&self, segment: Arc<Segment<F>>) {
        self.write().segments.insert(segment.start, segment);
    }

    /// The header of the batch at a segment's first byte.
    pub(crate) fn first_header(&self, segment: &Segment<F>) -> io::Result<Header> {
        self.header_in(segment, segment.start)
    }

    pub(crate) fn segment(&self, start: u64) -> Option<Arc<Segment<F>>> {
        self.read().segments.get(&start).cloned()
    }

    pub(crate) fn starts(&self) -> Vec<u64> {
        self.read().segments.keys().copied().collect()
    }

    /// Takes the segments that begin at or behind `end` away from the readers (the tail was truncated).
    pub(crate) fn remove_from(&self, end: u64) -> BTreeMap<u64, Arc<Segment<F>>> {
        self.write().segments.split_off(&end)
    }

    /// Takes a dead segment away from the readers; `None` when there is none of that name.
    pub(crate) fn remove(&self, start: u64) -> Option<Removed> {
        let segment = self.write().segments.remove(&start)?;
        let path = segment_path(start);
        // Nobody can find it any more; whoever found it before counts here or holds a slice of the map.
        let free = Arc::try_unwrap(segment).is_ok_and(Segment::unread);
        Some(if free { Removed::Free(path) } else { Removed::Held(path) })
    }

    fn not_there(&self, position: u64) -> io::Error {
        let start = segment_of(position, self.segment_size);
        fault("read", &segment_path(start), Some(position - start), io::ErrorKind::NotFound.into())
    }

    /// Raw bytes of one segment, never past what was written.
    fn raw(&self, segment: &Segment<F>, position: u64, len: usize) -> io::Result<Bytes> {
        if position + len as u64 > self.written() {
            return Err(self.not_there(position));
        }
        segment.bytes(self.is_sealed(segment), position - segment.start, len)
    }

    /// Committed alone is not enough: a majority of others may be ahead of this disk, and its writer still busy here.
    fn is_sealed(&self, segment: &Segment<F>) -> bool {
        segment.start + self.segment_size <= self.committed().min(self.durable())
    }

    fn header_in(&self, segment: &Segment<F>, position: u64) -> io::Result<Header> {
        let bytes = self.raw(segment, position, HEADER)?;
        decode(&bytes, &self.shard, position, self.segment_size)
            .map_err(|reason| damaged_log(position, self.segment_size, reason))
    }

    fn batch_in(&self, segment: &Segment<F>, position: u64) -> io::Result<Batch> {
        let header = self.header_in(segment, position)?;
        let framed = usize::try_from(header.point.end - position).expect("bounded by the header's check");
        let bytes = self.raw(segment, position, framed)?;
        match whole(&bytes, &self.shard, position, self.segment_size) {
            Ok((_, batch)) => Ok(batch),
            Err(reason) => Err(damaged_log(position, self.segment_size, reason)),
        }
    }

    /// The same from what was lately read, if it is there.
    fn batch_again(&self, segment: &Segment<F>, cuts: u64, position: u64) -> io::Result<Batch> {
        if self.is_sealed(segment) {
            return self.batch_in(segment, position);
        }
        let read = |batch: &&Batch| batch.point.position == position;
        if let Some(batch) = lock(&self.lately_read).iter().find(read) {
            return Ok(batch.clone());
        }
        let batch = self.batch_in(segment, position)?;
        let mut lately = lock(&self.lately_read);
        // What the writer has taken back meanwhile must not be seen again.
        if self.read().cuts == cuts {
            lately.truncate(LATELY_READ - 1);
            lately.push_front(batch.clone());
        }
        Ok(batch)
    }

    /// The batch whose header stands at `position`.
    pub(crate) fn batch(&self, position: u64) -> io::Result<Batch> {
        let (segment, cuts) = {
            let view = self.read();
            if view.tail.front().is_some_and(|first| first.point.position <= position) {
                let at = view.tail.partition_point(|batch| batch.point.position < position);
                return match view.tail.get(at).filter(|batch| batch.point.position == position) {
                    Some(batch) => Ok(batch.clone()),
                    None => Err(self.not_there(position)),
                };
            }
            (view.segments.get(&segment_of(position, self.segment_size)).cloned(), view.cuts)
        };
        let Some(segment) = segment else { return Err(self.not_there(position)) };
        self.batch_again(&segment, cuts, position)
    }

    /// The batch that the byte at `position` belongs to.
    pub(crate) fn holding(&self, position: u64) -> io::Result<Batch> {
        let segment = {
            let view = self.read();
            if view.tail.front().is_some_and(|first| first.point.position <= position) {
                let behind = view.tail.partition_point(|batch| batch.point.position <= position);
                let batch = behind.checked_sub(1).and_then(|at| view.tail.get(at));
                return match batch.filter(|batch| position < batch.point.end) {
                    Some(batch) => Ok(batch.clone()),
                    None => Err(self.not_there(position)),
                };
            }
            view.segments.get(&segment_of(position, self.segment_size)).cloned()
        };
        let Some(segment) = segment else { return Err(self.not_there(position)) };
        let stop = self.written().min(segment.start + self.segment_size);
        let mut at = segment.mark_at(position);
        while at <= position && at + HEADER as u64 <= stop {
            let header = match self.header_in(&segment, at) {
                Ok(header) => header,
                Err(e) if self.ends_at(&segment, at)? => {
                    drop(e);
                    break;
                }
                Err(e) => return Err(e),
            };
            segment.mark(header.point.index, at);
            if position < header.point.end {
                return self.batch_in(&segment, at);
            }
            at = header.point.end;
        }
        Err(self.not_there(position))
    }

    /// Whether the tail in memory reaches back to `position`.
    pub(crate) fn is_in_tail(&self, position: u64) -> bool {
        self.read().tail.front().is_some_and(|first| first.point.position <= position)
    }

    fn in_tail(&self, index: u64) -> Option<Batch> {
        let view = self.read();
        let first = view.tail.front()?.point.index;
        view.tail.get(usize::try_from(index.checked_sub(first)?).ok()?).cloned()
    }

    /// The segment with the last first batch not behind `index`, and the nearest place known before it.
    fn find(&self, index: u64) -> io::Result<Option<(Arc<Segment<F>>, u64)>> {
        let (mut low, mut high) = (0, 0);
        let segments: Vec<Arc<Segment<F>>> = self.read().segments.values().cloned().collect();
        high += segments.len();
        while low < high {
            let middle = low.midpoint(high);
            let segment = &segments[middle];
            let first = match segment.first() {
                Some(first) => Some(first),
                None if segment.start >= self.written() => None, // prepared, nothing in it
                None => {
                    let header = self.header_in(segment, segment.start)?;
                    segment.mark(header.point.index, segment.start);
                    Some(header.point.index)
                }
            };
            if first.is_some_and(|first| first <= index) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(at) = low.checked_sub(1) else { return Ok(None) };
        let segment = segments[at].clone();
        let position = segment.mark_before(index);
        Ok(Some((segment, position)))
    }

    /// Where the entry `index` stands, if the log on disk or in memory has it.
    pub(crate) fn locate(&self, index: u64) -> io::Result<Option<LogPoint>> {
        if let Some(batch) = self.in_tail(index) {
            return Ok(Some(batch.point));
        }
        let Some((segment, mut position)) = self.find(index)? else { return Ok(None) };
        let stop = self.written().min(segment.start + self.segment_size);
        while position + HEADER as u64 <= stop {
            let header = match self.header_in(&segment, position) {
                Ok(header) => header,
                // Behind the segment's last batch stands an end marker: then the entry is simply not here.
                Err(e) if self.ends_at(&segment, position)? => {
                    drop(e);
                    return Ok(None);
                }
                Err(e) => return Err(e),
            };
            segment.mark(header.point.index, position);
            if header.point.index == index {
                return Ok(Some(header.point));
            }
            if header.point.index > index {
                return Err(damaged(
                    segment.file.path(),
                    position - segment.start,
                    format_args!("entry {} stands where {index} or an earlier one must", header.point.index),
                ));
            }
            position = header.point.end;
        }
        Ok(None)
    }

    fn ends_at(&self, segment: &Segment<F>, position: u64) -> io::Result<bool> {
        let marker = crate::format::end_marker(position);
        Ok(self.raw(segment, position, marker.len())? == marker[..])
    }

    /// Batches from `first` up to `end` (exclusive), at least one if there is one, then as many as fit into `budget` bytes.
    pub(crate) fn range(&self, first: u64, end: u64, budget: usize) -> io::Result<Vec<Batch>> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        let mut index = first;
        let mut position = None;
        while index < end {
            if position.is_some_and(|at| at >= self.written()) {
                break;
            }
            let batch = match self.in_tail(index) {
                Some(batch) => batch,
                None => {
                    let at = match position {
                        Some(at) => at,
                        None => match self.locate(index)? {
                            Some(point) => point.position,
                            None => break,
                        },
                    };
                    self.batch(at)?
                }
            };
            if batch.point.index != index {
                return Err(damaged_log(
                    batch.point.position,
                    self.segment_size,
                    "not the entry that follows",
                ));
            }
            bytes += cost(&batch);
            if !batches.is_empty() && bytes > budget {
                break;
            }
            // The next one stands right behind unless the segment ends there: then it is looked up.
            position =
                Some(batch.point.end).filter(|end| end % self.segment_size != 0 && *end < self.written());
            if let Some(at) = position
                && self.in_tail(index + 1).is_none()
            {
                let segment = self.segment(segment_of(at, self.segment_size));
                let ended = match &segment {
                    Some(segment) => self.ends_at(segment, at)?,
                    None => true,
                };
                if ended {
                    position = Some(segment_of(at, self.segment_size) + self.segment_size);
                }
            } else {
                position = None;
            }
            batches.push(batch);
            index += 1;
        }
        Ok(batches)
    }
}
