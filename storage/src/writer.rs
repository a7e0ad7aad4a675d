//! The writer: the only one that touches the log on disk.
//!
//! Owns: the open segment, the hard state file, and the order of everything that becomes durable. Promises: jobs take effect in
//! the order they were given; one write per contiguous range and one sync for all that wait (in one call when they are few bytes),
//! without a timer (a group closes when the previous sync has finished); nothing is reported before it is synced (with [`Flush::Written`]: before it is
//! written, and a segment is still begun only when the one before is synced); the first error is the last thing that happens.
//! Does not know: what is committed, who waits.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::disk::{Disk, File};
use crate::format::{HEADER, end_marker, segment_of, stamp};
use crate::hard_state::{HardState, StateFile, TruncationMark};
use crate::log::{Flush, Options};
use crate::prepare::Preparation;
use crate::queue::{Frame, Job, Queue, Work, copy_of};
use crate::real::RealDisk;
use crate::segments::{Segment, Segments};
use crate::through::Through;

/// Payloads up to this size are copied together: cheaper than one more part of a vectored write.
const COPY: usize = 8 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes the log. Run it on a thread of its own.
pub struct Writer<D: Disk = RealDisk> {
    queue: Arc<Queue>,
    segments: Arc<Segments<D::File>>,
    preparation: Arc<Preparation<D::File>>,
    state: StateFile<D::File>,
    group_bytes: usize,
    flush: Flush,
    /// Prepared segments behind the open one that are at hand.
    spares: BTreeMap<u64, Arc<Segment<D::File>>>,
    open: Option<Arc<Segment<D::File>>>,
    /// Where the last batch ends, pending ones included.
    end: u64,
    /// Where the last synced batch ends.
    synced: u64,
    /// The state must say how far the log goes: a new segment was begun.
    announce: bool,
    pending: Vec<Frame>,
    through: Through,
    next: HardState,
    /// Jobs worked on but not reported: the number behind the last, and their bytes.
    worked: u64,
    worked_bytes: usize,
}

impl<D: Disk> Drop for Writer<D> {
    fn drop(&mut self) {
        // Ended properly, this changes nothing; after a panic, or when it was never run, nobody must wait for ever.
        self.queue.end();
        self.preparation.close();
    }
}

impl<D: Disk> Writer<D> {
    pub(crate) fn new(
        queue: Arc<Queue>,
        segments: Arc<Segments<D::File>>,
        preparation: Arc<Preparation<D::File>>,
        state: StateFile<D::File>,
        spares: BTreeMap<u64, D::File>,
        options: &Options,
        end: u64,
    ) -> Writer<D> {
        let open = match end % segments.segment_size {
            0 => None,
            _ => segments.segment(segment_of(end, segments.segment_size)),
        };
        let spares =
            spares.into_iter().map(|(start, file)| (start, Arc::new(Segment::new(start, file)))).collect();
        let next = state.state.clone();
        Writer {
            queue,
            segments,
            preparation,
            state,
            group_bytes: options.group_bytes,
            flush: options.flush,
            spares,
            open,
            end,
            synced: end,
            announce: false,
            pending: Vec::new(),
            through: Through::new(),
            next,
            worked: 0,
            worked_bytes: 0,
        }
    }

    /// Works until the log is closed. An error names operation and place; the caller must exit the process, because what
    /// the page cache says after a failed write or sync is not what the disk has.
    pub async fn run(mut self) -> io::Result<()> {
        let result = self.work().await.map_err(Arc::new);
        if let Err(error) = &result {
            self.queue.fail(error.clone());
        }
        result.map_err(|error| copy_of(&error))
    }

    async fn work(&mut self) -> io::Result<()> {
        self.want_next();
        while let Some(jobs) = self.queue.take(self.group_bytes).await {
            for job in jobs {
                self.job(job).await?;
            }
            self.flush().await?;
            self.save().await?;
            self.report();
            // Only now: the preparer must not take the processor before those who waited have been told.
            if let Some(open) = &self.open {
                self.preparation.filled(self.end - open.start);
            }
        }
        Ok(())
    }

    async fn job(&mut self, job: Job) -> io::Result<()> {
        match job.work {
            Work::Append(frames) => {
                // A vote must be durable before any entry written under it, and the floor before what follows it.
                self.save().await?;
                for frame in frames {
                    self.frame(frame).await?;
                }
            }
            Work::Vote(vote) => {
                self.flush().await?;
                self.next.vote = vote;
            }
            Work::Floor(floor) => {
                self.flush().await?;
                self.next.floor = Some(floor);
            }
            Work::Truncate(end) => {
                self.flush().await?;
                self.save().await?;
                self.truncate(end).await?;
            }
            Work::Close => {
                self.flush().await?;
                self.segments.sync_written().await?;
                self.synced = self.segments.durable();
                self.next.clean = true;
                self.next.synced_to = self.synced;
            }
        }
        self.worked = job.number + 1;
        self.worked_bytes += job.bytes;
        Ok(())
    }

    async fn frame(&mut self, frame: Frame) -> io::Result<()> {
        let start = segment_of(frame.point.position, self.segments.segment_size);
        if self.open.as_ref().is_none_or(|open| open.start != start) {
            self.roll(start).await?;
        }
        assert!(frame.point.position == self.end || frame.point.position == start, "a gap in the log");
        self.end = frame.point.end;
        self.pending.push(frame);
        Ok(())
    }

    /// Seals the open segment and goes on to the one at `start`.
    async fn roll(&mut self, start: u64) -> io::Result<()> {
        // All of the old segment is synced before a byte of the next is written. Recovery relies on it: a batch found in a
        // later segment proves that everything in the earlier ones was durable. And those who wait for what is synced
        // now must not wait for a full disk to get room for the next segment.
        let size = self.segments.segment_size;
        if let Some(open) = self.open.clone() {
            let rest = (!self.end.is_multiple_of(size)).then(|| end_marker(self.end));
            if rest.is_some() || !self.pending.is_empty() {
                self.write(&open, rest.as_ref().map(|marker| &marker[..]), true).await?;
            } else if self.segments.durable() < self.end {
                self.segments.sync_written().await?;
            }
            open.file.end_through();
            self.synced = self.segments.durable();
        }
        self.report();
        let next = match self.spares.remove(&start) {
            Some(next) => next,
            None => Arc::new(Segment::new(start, self.preparation.take(start).await?)),
        };
        self.segments.add(next.clone());
        self.open = Some(next);
        self.end = start;
        self.announce = true;
        self.want_next();
        Ok(())
    }

    fn want_next(&self) {
        let size = self.segments.segment_size;
        let mut next = match &self.open {
            Some(open) => open.start + size,
            None => self.end,
        };
        while self.spares.contains_key(&next) {
            next += size;
        }
        // One ahead is enough.
        if next <= self.end + size {
            self.preparation.want(next);
        }
    }

    /// Writes and syncs what is pending.
    async fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let open = self.open.clone().expect("a frame opened it");
        self.write(&open, None, self.flush == Flush::Synced).await?;
        if self.announce {
            // Once per segment: a restart then knows at least that this segment existed and the one before was whole.
            self.announce = false;
            self.report();
            self.next.synced_to = self.synced;
        }
        Ok(())
    }

    /// One write, and one sync if asked for: the pending frames and, when the segment is full, its end marker.
    async fn write(&mut self, open: &Segment<D::File>, marker: Option<&[u8]>, sync: bool) -> io::Result<()> {
        self.synced = self.segments.durable();
        let frames = std::mem::take(&mut self.pending);
        let from = frames.first().map_or(self.end, |frame| frame.point.position);
        for frame in &frames {
            open.mark(frame.point.index, frame.point.position);
        }
        assert!(self.synced <= self.end, "synced {} is ahead of the log's end {}", self.synced, self.end);
        let (parts, offset) = (parts(frames, self.synced, marker), from - open.start);
        let segment = (open.start, &open.file, self.segments.segment_size);
        // What goes past the cache syncs only itself: nothing unsynced may stand before it, as at the end of a segment it does when
        // groups are not synced one by one.
        let alone = sync && self.flush == Flush::Synced;
        if alone && self.through.write(segment, offset, &parts)? {
            self.segments.set_written(self.end);
        } else {
            self.through.forget();
            open.file.write_at(offset, &parts).await?;
            self.segments.set_written(self.end);
            if !sync {
                return Ok(());
            }
            open.file.sync().await?;
        }
        self.synced = self.end;
        self.segments.set_durable(self.end);
        Ok(())
    }

    async fn save(&mut self) -> io::Result<()> {
        if self.next != self.state.state {
            self.state.save(self.next.clone()).await?;
        }
        Ok(())
    }

    fn report(&mut self) {
        // Only what is synced: jobs still pending are told with their own sync.
        if self.pending.is_empty() && self.next == self.state.state {
            self.queue.done(self.worked, std::mem::take(&mut self.worked_bytes));
        }
    }

    async fn truncate(&mut self, end: u64) -> io::Result<()> {
        let old = self.end;
        if end >= old {
            return Ok(());
        }
        self.through.forget();
        // What stays stands for good: recovery takes all before the mark for synced.
        self.segments.sync_written().await?;
        let size = self.segments.segment_size;
        // The mark first: from here on, what claims to be synced behind `end` does not count, and a crash on the way
        // finishes the cut instead of finding a hole.
        self.next.mark = Some(TruncationMark { position: end, vote: self.next.vote.clone() });
        self.next.synced_to = self.next.synced_to.min(end);
        self.save().await?;
        // Zeroed and not just forgotten: left-over batches carry right positions and could be replayed behind an equal
        // predecessor. The last segment first: a hole in front of batches that stand would look like damage.
        let gone = self.segments.remove_from(end);
        for (start, segment) in gone.into_iter().rev() {
            segment.unmark(start);
            zero(&segment.file, 0, old.saturating_sub(start).min(size)).await?;
            self.spares.insert(start, segment);
        }
        self.open = None;
        if !end.is_multiple_of(size) {
            let start = segment_of(end, size);
            let segment = self.segments.segment(start).expect("the batch before the cut stands in it");
            segment.unmark(end);
            // To the segment's end when the log went beyond it: its end marker goes too.
            let to = if old - start > size { size } else { old - start };
            zero(&segment.file, end - start, to).await?;
            self.open = Some(segment);
        }
        self.segments.cut(end);
        (self.end, self.synced) = (end, end);
        self.next.mark = None;
        self.save().await
    }
}

/// Zeroes `from..to` of a file and syncs it.
pub(crate) async fn zero<F: File>(file: &F, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let len = (ZEROS.len() as u64).min(to - at);
        let len = usize::try_from(len).expect("at most the length of ZEROS");
        file.write_at(at, &[Bytes::from_static(&ZEROS[..len])]).await?;
        at += len as u64;
    }
    if from < to { file.sync().await } else { Ok(()) }
}

/// The bytes of a group, stamped with what is synced at this moment.
fn parts(frames: Vec<Frame>, synced: u64, marker: Option<&[u8]>) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut together = BytesMut::new();
    for mut frame in frames {
        stamp(&mut frame.header, synced);
        together.extend_from_slice(&frame.header);
        let length = frame.payload.len();
        if length <= COPY {
            together.extend_from_slice(&frame.payload);
        } else {
            parts.push(together.split().freeze());
            parts.push(frame.payload);
        }
        let padding = length.next_multiple_of(8) - length;
        together.extend_from_slice(&ZEROS[..padding]);
    }
    together.extend_from_slice(marker.unwrap_or_default());
    if !together.is_empty() {
        parts.push(together.freeze());
    }
    debug_assert!(HEADER.is_multiple_of(8));
    parts
}
