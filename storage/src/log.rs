//! The log as the shard's thread sees it.
//!
//! Owns: positions, the hash chain, the tail in memory, and who waits for what. Promises: no call here waits for a disk write;
//! what is appended is readable at once; jobs take effect in the order of the calls, and their `done` is called in that order,
//! with an error for everything after the first failure. Does not know: consensus, message semantics, or how bytes reach the
//! disk.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::format::{Batch, LogPoint, MAX_PAYLOAD, NewBatch, Uuid, encode, framed, place, segment_of};
use crate::genesis::Genesis;
use crate::hard_state::{MAX_VOTE, StateFile};
use crate::prepare::{Preparation, Preparer};
use crate::queue::{Frame, Job, Queue, UnderWay, Work, copy_of};
use crate::reader::LogReader;
use crate::real::RealDisk;
use crate::recovery::{self, Recovered};
use crate::segments::{Removed, Segments};
use crate::writer::Writer;

/// Called on the shard's thread, from [`Log::completions`], when the job is durable or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>)>;

/// How a log is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the newest batches kept in memory (more while they are not written yet).
    pub tail_bytes: usize,
    /// [`Backlog::is_full`] says so beyond this many bytes under way to the disk.
    pub backlog_bytes: usize,
    /// One write and one sync gather at most this many bytes.
    pub group_bytes: usize,
    /// Zero the next segment before it is needed. Costs each byte of a new (not recycled) segment twice, halves sync time.
    pub zero_ahead: bool,
    /// Dead segment files kept for recycling; the rest is removed.
    pub keep_dead: usize,
    /// When a confirm is given.
    pub flush: Flush,
}

/// When an append is reported done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flush {
    /// After fdatasync: what is reported survives a power cut.
    Synced,
    /// Once it is written: what is reported survives the process, and a power cut only after the next [`Syncer::sync`].
    /// Votes, the log floor and whole segments are synced as ever, and no header claims what was not.
    Written,
}

/// Syncs what is written, from any thread: for [`Flush::Written`].
pub struct Syncer<D: Disk = RealDisk> {
    segments: Arc<Segments<D::File>>,
}

impl<D: Disk> Syncer<D> {
    /// Syncs everything that is written now; it is durable when this returns. Nothing to do is cheap.
    ///
    /// # Errors
    /// A failed sync: the process must exit, as after any of the writer's.
    pub async fn sync(&self) -> io::Result<()> {
        self.segments.sync_written().await
    }

    /// The same, unless everything below `position` is durable.
    ///
    /// # Errors
    /// As [`Syncer::sync`].
    pub async fn sync_to(&self, position: u64) -> io::Result<()> {
        if self.segments.durable() >= position { Ok(()) } else { self.sync().await }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tail_bytes: 64 << 20,
            backlog_bytes: 32 << 20,
            group_bytes: 4 << 20,
            zero_ahead: true,
            keep_dead: 2,
            flush: Flush::Synced,
        }
    }
}

/// What is on its way to the disk.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// Bytes handed to the writer and not reported yet.
    pub bytes: usize,
    /// The bound from [`Options::backlog_bytes`]; appending beyond it is possible, deciding to is the caller's mistake.
    pub limit: usize,
    /// Why no segment can be prepared, while that is so (a full disk). The log works on until the open segment is full.
    pub blocked: Option<Arc<str>>,
}

impl Backlog {
    /// Whether the shard should decide nothing more for now.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }
}

/// How far the writer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Everything below this position is synced on this node.
    pub durable: u64,
    /// How many jobs this call completed.
    pub completed: usize,
}

/// Everything that [`Log::open`] gives.
pub struct Opened<D: Disk = RealDisk> {
    /// For the shard's thread.
    pub log: Log<D>,
    /// Run it on a thread of its own.
    pub writer: Writer<D>,
    /// Run it on a thread of its own (it creates files while the writer writes).
    pub preparer: Preparer<D>,
    /// For everyone else.
    pub reader: LogReader<D>,
    /// What was found.
    pub recovered: Recovered,
}

/// The log's handle on the shard's thread. Clones share one log.
pub struct Log<D: Disk = RealDisk> {
    inner: Rc<Inner<D>>,
}

impl<D: Disk> Clone for Log<D> {
    fn clone(&self) -> Self {
        Log { inner: self.inner.clone() }
    }
}

struct Inner<D: Disk> {
    shard: Uuid,
    segment_size: u64,
    options: Options,
    segments: Arc<Segments<D::File>>,
    queue: Arc<Queue>,
    preparation: Arc<Preparation<D::File>>,
    state: RefCell<State>,
}

struct State {
    last: Option<LogPoint>,
    floor: Option<LogPoint>,
    durable_floor: Option<LogPoint>,
    vote: Bytes,
    next_job: u64,
    pending: VecDeque<(u64, Option<LogPoint>, Done)>,
}

impl<D: Disk> Drop for Inner<D> {
    fn drop(&mut self) {
        // The threads must not outlive their shard: the writer finishes what waits and ends.
        self.queue.close();
        self.preparation.abandon();
    }
}

impl<D: Disk> Log<D> {
    /// Opens the log of the store, recovering it from `from` (the last batch the checkpoint stands for).
    ///
    /// Refuses, naming file and offset, when synced bytes are missing or damaged, or when the checkpoint is older than the log
    /// floor; cuts the torn tail of an unfinished write. May be interrupted and repeated at any point.
    pub async fn open(
        disk: &D,
        options: Options,
        genesis: &Genesis,
        from: Option<LogPoint>,
    ) -> io::Result<Opened<D>> {
        let mut state = StateFile::open(disk, &genesis.store).await?;
        let found = recovery::recover(disk, genesis, &mut state, from).await?;
        let recovered = found.recovered;
        let end = recovered.last.map_or(0, |last| last.end);
        let segments = Arc::new(Segments::new(genesis.shard, genesis.segment_size, found.segments, end));
        // A checkpoint stands for committed batches only.
        segments.set_committed(from.map_or(0, |point| point.end));
        let queue = Arc::new(Queue::default());
        let preparation = Arc::new(Preparation::new(found.leftovers));
        let shard_state = State {
            last: recovered.last,
            floor: recovered.floor,
            durable_floor: recovered.floor,
            vote: recovered.vote.clone(),
            next_job: 0,
            pending: VecDeque::new(),
        };
        let writer = Writer::new(
            queue.clone(),
            segments.clone(),
            preparation.clone(),
            state,
            found.spares,
            &options,
            end,
        );
        let preparer =
            Preparer::new(disk.clone(), preparation.clone(), genesis.segment_size, options.zero_ahead);
        let log = Log {
            inner: Rc::new(Inner {
                shard: genesis.shard,
                segment_size: genesis.segment_size,
                options,
                segments: segments.clone(),
                queue,
                preparation,
                state: RefCell::new(shard_state),
            }),
        };
        Ok(Opened { log, writer, preparer, reader: LogReader { segments }, recovered })
    }

    /// Appends batches of consecutive indexes behind the last one and answers the new last point. They are readable at once
    /// and durable when `done` is called. Never blocks; heed [`backlog`](Log::backlog).
    ///
    /// Panics when an index does not follow or a payload is longer than [`max_payload`](Log::max_payload): the caller is wrong.
    pub fn append(&self, batches: impl IntoIterator<Item = NewBatch>, done: Done) -> Option<LogPoint> {
        let inner = &*self.inner;
        let mut state = inner.state.borrow_mut();
        let (mut frames, mut tail, mut bytes) = (Vec::new(), Vec::new(), 0);
        for new in batches {
            assert!(
                new.payload.len() <= self.max_payload(),
                "payload of {} bytes is too long",
                new.payload.len()
            );
            let (next, end, hash) = match state.last.or(state.floor) {
                Some(last) => (last.index + 1, last.end, last.hash),
                None => (0, 0, 0),
            };
            assert_eq!(new.index, next, "the log's next index is {next}");
            let length = framed(new.payload.len());
            let position = place(end, length, inner.segment_size);
            let (header, point) = encode(&new, &inner.shard, position, hash);
            state.last = Some(point);
            let payload_position = position + header.len() as u64;
            tail.push(Batch { point, kind: new.kind, payload: new.payload.clone(), payload_position });
            bytes += header.len() + new.payload.len();
            frames.push(Frame { header, point, payload: new.payload });
        }
        inner.segments.push(tail, state.next_job, inner.queue.completed(), inner.options.tail_bytes);
        inner.submit(&mut state, bytes, Work::Append(frames), None, done);
        state.last
    }

    /// Makes a vote (at most 64 bytes, opaque) durable, in order with the appends around it.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        assert!(vote.len() <= MAX_VOTE, "a vote of {} bytes is too long", vote.len());
        let mut state = self.inner.state.borrow_mut();
        state.vote = vote.clone();
        self.inner.submit(&mut state, 0, Work::Vote(vote), None, done);
    }

    /// Moves the Raft floor up to the entry `index` (purge). Deletes nothing; see [`retire`](Log::retire).
    pub fn raise_floor(&self, index: u64, done: Done) -> io::Result<()> {
        if self.floor().is_some_and(|floor| floor.index >= index) {
            let mut state = self.inner.state.borrow_mut();
            self.inner.submit(&mut state, 0, Work::Append(Vec::new()), None, done);
            return Ok(());
        }
        let point = self.require(index)?;
        let mut state = self.inner.state.borrow_mut();
        state.floor = Some(point);
        self.inner.submit(&mut state, 0, Work::Floor(point), Some(point), done);
        Ok(())
    }

    /// Drops all entries behind `after` (`None`: all above the floor). What is dropped must not be committed.
    pub fn truncate_after(&self, after: Option<u64>, done: Done) -> io::Result<()> {
        let floor = self.floor();
        let to = match after {
            None => floor,
            Some(index) => Some(self.require(index)?),
        };
        let end = to.map_or(0, |point| point.end);
        let committed = self.inner.segments.committed();
        assert!(end >= committed, "truncating to {end} below committed {committed}");
        assert!(to.map(|p| p.index) >= floor.map(|f| f.index), "truncating below the log floor");
        let mut state = self.inner.state.borrow_mut();
        state.last = to;
        self.inner.segments.cut_tail(end);
        self.inner.submit(&mut state, 0, Work::Truncate(end), None, done);
        Ok(())
    }

    /// Says that everything below `position` is committed: it stands still, so segments wholly below may be mapped.
    pub fn committed(&self, position: u64) {
        let end = self.last().map_or(0, |last| last.end);
        assert!(position <= end, "committed {position} is behind the log's end {end}");
        self.inner.segments.set_committed(position);
    }

    /// Gives up segments (named by their first position) that nothing durable refers to any more. Each must lie wholly at
    /// or below the durable log floor; else `InvalidInput` and none is touched. Unknown ones are passed over.
    /// Readers lose them at once; the files are recycled, or removed while a reader still holds bytes of them.
    pub fn retire(&self, segments: &[u64]) -> io::Result<()> {
        let inner = &*self.inner;
        let below = {
            let state = inner.state.borrow();
            // The open segment stays, even when all of it is purged.
            let open = segment_of(state.last.map_or(0, |last| last.end), inner.segment_size);
            state.durable_floor.map_or(0, |floor| floor.end).min(open)
        };
        if let Some(start) = segments.iter().find(|&&start| start + inner.segment_size > below) {
            let reason = format!("segment {start} is not wholly below the durable log floor ({below})");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        for &start in segments {
            match inner.segments.remove(start) {
                None => {}
                Some(Removed::Free(path)) => inner.preparation.dead(path, inner.options.keep_dead),
                Some(Removed::Held(path)) => inner.preparation.unlink(path),
            }
        }
        Ok(())
    }

    /// Batches from index `first` up to `end` (exclusive): at least one if there is one, then as many as fit into `budget`
    /// bytes. From memory where possible; older ones are read from disk on this thread.
    pub fn get(&self, first: u64, end: u64, budget: usize) -> io::Result<Vec<Batch>> {
        let end = end.min(self.next_index());
        let floor = self.floor();
        if floor.is_some_and(|floor| first <= floor.index) && first < end {
            let reason = format!("entry {first} is purged");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.inner.segments.range(first, end, budget)
    }

    /// The point of an entry; `None` below the floor and behind the end.
    pub fn point(&self, index: u64) -> io::Result<Option<LogPoint>> {
        let (last, floor) = (self.last(), self.floor());
        if let Some(known) = [last, floor].into_iter().flatten().find(|point| point.index == index) {
            return Ok(Some(known));
        }
        if index >= self.next_index() || floor.is_some_and(|floor| index < floor.index) {
            return Ok(None);
        }
        self.inner.segments.locate(index)
    }

    /// The last entry; after a purge of everything, the floor.
    pub fn last(&self) -> Option<LogPoint> {
        self.inner.state.borrow().last
    }

    /// The last purged entry.
    pub fn floor(&self) -> Option<LogPoint> {
        self.inner.state.borrow().floor
    }

    /// The last vote saved; empty when none was.
    pub fn vote(&self) -> Bytes {
        self.inner.state.borrow().vote.clone()
    }

    /// The longest payload that fits.
    pub fn max_payload(&self) -> usize {
        let segment = usize::try_from(self.inner.segment_size).unwrap_or(usize::MAX);
        MAX_PAYLOAD.min(segment - crate::format::HEADER)
    }

    /// Bytes of a segment.
    pub fn segment_size(&self) -> u64 {
        self.inner.segment_size
    }

    /// A reader for other threads.
    pub fn reader(&self) -> LogReader<D> {
        LogReader { segments: self.inner.segments.clone() }
    }

    /// What is under way, and whether a full disk holds it up.
    pub fn backlog(&self) -> Backlog {
        Backlog {
            bytes: self.inner.queue.bytes(),
            limit: self.inner.options.backlog_bytes,
            blocked: self.inner.preparation.blocked(),
        }
    }

    /// What the runtime's hooks of the shard's thread want to know of the writer.
    pub fn under_way(&self) -> UnderWay {
        UnderWay(self.inner.queue.clone())
    }

    /// Tries again to prepare a segment after a full disk. The shard calls it from its clock while `blocked` is set.
    pub fn retry_preparation(&self) {
        self.inner.preparation.retry();
    }

    /// Syncs what is written, on another thread.
    pub fn syncer(&self) -> Syncer<D> {
        Syncer { segments: self.inner.segments.clone() }
    }

    /// The first positions of the segments that hold log, in order.
    pub fn segments(&self) -> Vec<u64> {
        self.inner.segments.starts()
    }

    /// Files in the log's directory beside those: prepared ones, and dead ones that are recycled or removed next.
    pub fn spare_files(&self) -> usize {
        self.inner.preparation.files()
    }

    /// Everything below this position is synced.
    pub fn durable(&self) -> u64 {
        self.inner.segments.durable()
    }

    /// Waits for the writer, then calls the `done` of every job that is through, in order. `None`: the writer has ended and
    /// nothing is left. An error is the log's first failure; everything that waited has been told, and nothing will ever
    /// succeed again: the process must exit.
    ///
    /// Only one caller at a time. Dropping the future loses nothing.
    pub async fn completions(&self) -> io::Result<Option<Progress>> {
        let waiting = self.inner.state.borrow().pending.front().map(|&(number, ..)| number);
        let next = self.inner.state.borrow().next_job;
        let news = self.inner.queue.more_than(waiting.unwrap_or(next)).await;
        let mut completed = 0;
        while let Some(done) = self.inner.pop(news.done) {
            done(Ok(()));
            completed += 1;
        }
        if let Some(error) = news.failed {
            while let Some(done) = self.inner.pop(u64::MAX) {
                done(Err(copy_of(&error)));
            }
            return Err(copy_of(&error));
        }
        if news.ended && completed == 0 {
            return Ok(None);
        }
        Ok(Some(Progress { durable: self.durable(), completed }))
    }

    /// Closes the log cleanly: when `done` is called, everything appended is synced and a restart will know that. Nothing may
    /// be appended afterwards.
    pub fn close(&self, done: Done) {
        let mut state = self.inner.state.borrow_mut();
        self.inner.submit(&mut state, 0, Work::Close, None, done);
        self.inner.queue.close();
    }

    fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn require(&self, index: u64) -> io::Result<LogPoint> {
        self.point(index)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("the log does not have entry {index}"))
        })
    }
}

impl<D: Disk> Inner<D> {
    fn submit(&self, state: &mut State, bytes: usize, work: Work, floor: Option<LogPoint>, done: Done) {
        let number = state.next_job;
        state.next_job += 1;
        state.pending.push_back((number, floor, done));
        self.queue.push(Job { number, bytes, work });
    }

    /// The next job below `done`, its effect on this side made. The borrow ends before the callback runs: it may append.
    fn pop(&self, done: u64) -> Option<Done> {
        let mut state = self.state.borrow_mut();
        if state.pending.front()?.0 >= done {
            return None;
        }
        let (_, floor, callback) = state.pending.pop_front()?;
        if let Some(floor) = floor.filter(|_| done != u64::MAX) {
            assert!(
                state.durable_floor.is_none_or(|known| known.index < floor.index),
                "the log floor went back"
            );
            state.durable_floor = Some(floor);
        }
        Some(callback)
    }
}
