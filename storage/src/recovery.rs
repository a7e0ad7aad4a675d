//! Opening the log after anything: a clean stop, a kill, a power cut, a bad sector.
//!
//! Owns: the walk along the hash chain and the verdict where it ends: torn tail (cut) or damage (refused, named). Promises:
//! nothing that was acknowledged is cut, nothing stale is replayed, a damaged store is left as it was found, and a crash in
//! the middle is followed by the same verdict. Does not know: what the batches say.
//!
//! **How it tells.** Every header carries how far its node was synced when it was written, and the writer begins a segment
//! only when the one before is synced. So whatever stands behind the place where the chain ends is either part of one
//! unfinished group (nothing claims to be synced beyond the place, nothing stands in a later segment) or proof of damage.
//! The scan for such proof looks at every eighth byte for a header that verifies with shard UUID and position; a payload
//! could only pretend to be one by knowing both.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use crate::disk::{Disk, File, damaged};
use crate::format::{
    Batch, END_MARKER, HEADER, LogPoint, Uuid, damaged_log, decode, end_marker, segment_of, segment_path,
    segment_start, whole,
};
use crate::genesis::Genesis;
use crate::hard_state::{HardState, StateFile};
use crate::segments::Segment;
use crate::writer::zero;

/// Read at once while walking.
const WINDOW: usize = 1 << 20;

/// What opening the log found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The last entry (the floor when all is purged).
    pub last: Option<LogPoint>,
    /// The last purged entry.
    pub floor: Option<LogPoint>,
    /// The last vote saved; empty when none was.
    pub vote: Bytes,
    /// Whether the log was closed cleanly.
    pub clean: bool,
    /// The unfinished write that was cut off, if there was one.
    pub cut: Option<Cut>,
    /// Batches found behind the checkpoint: what is to be replayed (as far as it is committed).
    pub walked: u64,
    /// First positions of the segments that hold log, in order. Below the floor there may be holes, where segments were
    /// retired; whoever knows which must be there compares.
    pub segments: Vec<u64>,
    /// Names in the log's directory that are not ours. They are left alone.
    pub unknown: Vec<String>,
}

/// A tail that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where the log ends now.
    pub position: u64,
    /// Why it does not go on there.
    pub reason: String,
}

pub(crate) struct Found<F> {
    pub(crate) recovered: Recovered,
    pub(crate) segments: Vec<Segment<F>>,
    /// Prepared segments behind the end.
    pub(crate) spares: BTreeMap<u64, F>,
    /// Files to remove.
    pub(crate) leftovers: Vec<String>,
}

struct Walker<'a, F> {
    files: &'a BTreeMap<u64, Segment<F>>,
    shard: Uuid,
    size: u64,
    /// Position and bytes read last.
    window: (u64, Bytes),
}

/// Where the walk ended.
pub(crate) struct Walk {
    pub(crate) last: Option<LogPoint>,
    /// The first place that does not verify: behind `last`, or the next segment's first byte when an end marker leads there.
    stop: u64,
    reason: &'static str,
    walked: u64,
    /// Everything below was synced: proven by the headers.
    synced: u64,
}

/// A header that verifies somewhere behind the end of the chain.
struct Stray {
    position: u64,
    end: u64,
    synced_to: u64,
}

impl<F: File> Walker<'_, F> {
    /// Up to `len` bytes at `position`, fewer at the segment's end.
    async fn read(&mut self, segment: &Segment<F>, position: u64, len: usize) -> io::Result<Bytes> {
        let rest = usize::try_from(segment.start + self.size - position).unwrap_or(usize::MAX);
        let len = len.min(rest);
        let held = position.checked_sub(self.window.0).and_then(|at| usize::try_from(at).ok());
        if let Some(at) = held.filter(|at| at + len <= self.window.1.len()) {
            return Ok(self.window.1.slice(at..at + len));
        }
        let bytes = segment.file.read_at(position - segment.start, len.max(WINDOW).min(rest)).await?;
        self.window = (position, bytes);
        Ok(self.window.1.slice(..len))
    }

    /// The batch that follows, or why there is none.
    async fn batch(
        &mut self,
        segment: &Segment<F>,
        position: u64,
        before: Option<&LogPoint>,
    ) -> io::Result<Result<(Batch, u64), &'static str>> {
        let head = self.read(segment, position, HEADER).await?;
        let header = match decode(&head, &self.shard, position, self.size) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        let (index, hash) = before.map_or((0, 0), |last| (last.index + 1, last.hash));
        if header.point.index != index || header.previous != hash {
            return Ok(Err("the batch does not follow from the one before"));
        }
        let framed = usize::try_from(header.point.end - position).expect("bounded by the header's check");
        let bytes = self.read(segment, position, framed).await?;
        Ok(whole(&bytes, &self.shard, position, self.size).map(|(header, batch)| (batch, header.synced_to)))
    }

    async fn walk(&mut self, from: Option<LogPoint>, limit: Option<u64>) -> io::Result<Walk> {
        let start = from.map_or(0, |point| point.end);
        let mut walk =
            Walk { last: from, stop: start, reason: "the log ends here", walked: 0, synced: start };
        let files = self.files;
        loop {
            if limit.is_some_and(|limit| walk.last.map_or(0, |last| last.end) >= limit) {
                return Ok(walk);
            }
            let Some(segment) = files.get(&segment_of(walk.stop, self.size)) else { return Ok(walk) };
            match self.batch(segment, walk.stop, walk.last.as_ref()).await? {
                Ok((batch, synced_to)) => {
                    segment.mark(batch.point.index, batch.point.position);
                    walk.synced = walk.synced.max(synced_to);
                    walk.stop = batch.point.end;
                    walk.last = Some(batch.point);
                    walk.walked += 1;
                }
                Err(reason) => {
                    let marker = self.read(segment, walk.stop, END_MARKER).await?;
                    if walk.stop == segment.start || marker != end_marker(walk.stop)[..] {
                        walk.reason = reason;
                        return Ok(walk);
                    }
                    walk.stop = segment.start + self.size;
                }
            }
        }
    }

    /// Everything behind `from` that verifies as a batch of this log at its own place.
    async fn strays(&mut self, from: u64) -> io::Result<Vec<Stray>> {
        let mut strays = Vec::new();
        let files = self.files;
        for segment in files.range(segment_of(from, self.size)..).map(|(_, segment)| segment) {
            let end = segment.start + self.size;
            let mut position = from.max(segment.start);
            while position + HEADER as u64 <= end {
                let bytes = self.read(segment, position, WINDOW).await?;
                let mut at = 0;
                while at + HEADER <= bytes.len() {
                    let here = position + at as u64;
                    if bytes[at..].starts_with(b"DBAT")
                        && let Ok(header) = decode(&bytes[at..], &self.shard, here, self.size)
                    {
                        let (end, synced_to) = (header.point.end, header.synced_to);
                        strays.push(Stray { position: here, end, synced_to });
                    }
                    at += 8;
                }
                position += at as u64;
            }
        }
        Ok(strays)
    }
}

/// What stands in a log's files.
pub(crate) struct Examined<F> {
    /// All segments, spare ones included.
    pub(crate) files: Files<F>,
    pub(crate) walk: Walk,
    unknown: Vec<String>,
    leftovers: Vec<String>,
    strays: Vec<Stray>,
}

/// Looks for the log's end and judges what stands behind it. Changes nothing.
pub(crate) async fn examine<D: Disk>(
    disk: &D,
    genesis: &Genesis,
    known: &HardState,
    from: Option<LogPoint>,
) -> io::Result<Examined<D::File>> {
    let size = genesis.segment_size;
    let (files, unknown, leftovers) = segment_files(disk, size).await?;
    check_floor(known.floor, from)?;
    check_holes(&files, known.floor, from.map_or(0, |point| point.end).max(known.synced_to), size)?;
    let mut walker = Walker { files: &files, shard: genesis.shard, size, window: (0, Bytes::new()) };
    if let Some(from) = from {
        check_checkpoint(&mut walker, from).await?;
    }
    let limit = known.mark.as_ref().map(|mark| mark.position);
    let walk = walker.walk(from, limit).await?;
    let end = walk.last.map_or(0, |last| last.end);
    let strays = walker.strays(if limit.is_some() { end } else { walk.stop }).await?;
    if let Some(limit) = limit {
        // All before the mark was synced when the mark was made, and the checkpoint stands only for committed batches.
        if end != limit {
            return Err(damaged_log(
                walk.stop,
                size,
                &format!("{} (truncation to {limit} pending)", walk.reason),
            ));
        }
    } else {
        judge(&walk, end, known.synced_to, &strays, size)?;
    }
    Ok(Examined { files, walk, unknown, leftovers, strays })
}

/// Finds the log's end. On an error nothing was changed.
pub(crate) async fn recover<D: Disk>(
    disk: &D,
    genesis: &Genesis,
    state: &mut StateFile<D::File>,
    from: Option<LogPoint>,
) -> io::Result<Found<D::File>> {
    let (size, known) = (genesis.segment_size, state.state.clone());
    let examined = examine(disk, genesis, &known, from).await?;
    let Examined { mut files, walk, unknown, leftovers, strays } = examined;
    let end = walk.last.map_or(0, |last| last.end);
    erase(&files, end, &strays, size).await?;
    settle(&files, walk.synced.max(known.synced_to), end, size).await?;
    let mut now = known.clone();
    now.mark = None;
    now.clean = false;
    now.synced_to = end;
    // Written even when nothing changed: what was read may stand only in the page cache, left by a killed process.
    state.save(now).await?;
    let cut = (!strays.is_empty()).then(|| Cut { position: end, reason: walk.reason.to_owned() });
    let spares = files.split_off(&end.next_multiple_of(size));
    let recovered = Recovered {
        last: walk.last,
        floor: known.floor,
        vote: known.vote,
        clean: known.clean,
        cut,
        walked: walk.walked,
        segments: files.keys().copied().collect(),
        unknown,
    };
    let spares = spares.into_iter().map(|(start, segment)| (start, segment.file)).collect();
    Ok(Found { recovered, segments: files.into_values().collect(), spares, leftovers })
}

pub(crate) type Files<F> = BTreeMap<u64, Segment<F>>;

async fn segment_files<D: Disk>(
    disk: &D,
    size: u64,
) -> io::Result<(Files<D::File>, Vec<String>, Vec<String>)> {
    let (mut files, mut unknown, mut leftovers) = (BTreeMap::new(), Vec::new(), Vec::new());
    for name in disk.list("log").await? {
        let Some(start) = segment_start(&name) else {
            let path = format!("log/{name}");
            if path == crate::prepare::PREPARING {
                leftovers.push(path)
            } else if !crate::copy::is_ours(&name) {
                unknown.push(name)
            }
            continue;
        };
        let path = segment_path(start);
        if start % size != 0 {
            return Err(damaged(
                &path,
                0,
                format_args!("a segment of {size} bytes can not begin at {start}"),
            ));
        }
        let file = disk.open(&path).await?;
        let len = file.len()?;
        if len != size {
            // A file gets a segment's name only after its length is synced: no crash leaves this.
            return Err(damaged(&path, len.min(size), format_args!("{len} bytes instead of {size}")));
        }
        files.insert(start, Segment::new(start, file));
    }
    Ok((files, unknown, leftovers))
}

fn check_floor(floor: Option<LogPoint>, from: Option<LogPoint>) -> io::Result<()> {
    let Some(floor) = floor else { return Ok(()) };
    match from {
        Some(from) if from.index > floor.index || from == floor => Ok(()),
        Some(from) => Err(damaged(
            "state",
            96,
            format_args!(
                "the checkpoint stands for entry {}, but the log is purged up to {}",
                from.index, floor.index
            ),
        )),
        None => Err(damaged(
            "state",
            96,
            format_args!("the log is purged up to {} and there is no checkpoint", floor.index),
        )),
    }
}

/// From the floor on no segment may be missing, and the log must reach `reach`.
fn check_holes<F>(files: &Files<F>, floor: Option<LogPoint>, reach: u64, size: u64) -> io::Result<()> {
    let mut expected = segment_of(floor.map_or(0, |floor| floor.end), size);
    let behind = files.range(expected..).next_back().map_or(0, |(&start, _)| start + size);
    while expected < behind.max(reach) {
        if !files.contains_key(&expected) {
            return Err(damaged(&segment_path(expected), 0, "the segment is missing"));
        }
        expected += size;
    }
    Ok(())
}

async fn check_checkpoint<F: File>(walker: &mut Walker<'_, F>, from: LogPoint) -> io::Result<()> {
    let files = walker.files;
    // It may be retired, when the log is purged exactly to the end of its segment; then the next batch's hash binds it.
    let Some(segment) = files.get(&segment_of(from.position, walker.size)) else { return Ok(()) };
    let head = walker.read(segment, from.position, HEADER).await?;
    let reason = match decode(&head, &walker.shard, from.position, walker.size) {
        Ok(header) if header.point == from => return Ok(()),
        Ok(_) => "this is not the batch that the checkpoint stands for",
        Err(reason) => reason,
    };
    Err(damaged_log(from.position, walker.size, reason))
}

/// Torn or corrupt?
fn judge(walk: &Walk, end: u64, synced_to: u64, strays: &[Stray], size: u64) -> io::Result<()> {
    let damage = |proof: String| Err(damaged_log(walk.stop, size, &format!("{}; yet {proof}", walk.reason)));
    if synced_to > end {
        return damage(format!("the state says that the log is synced to {synced_to}"));
    }
    for stray in strays {
        if stray.synced_to > end {
            let (at, to) = (stray.position, stray.synced_to);
            return damage(format!("the batch at {at} says that the log is synced to {to}"));
        }
        if segment_of(stray.position, size) > segment_of(walk.stop, size) {
            let at = stray.position;
            return damage(format!(
                "a batch stands at {at}, in a segment begun only when this one was synced"
            ));
        }
    }
    Ok(())
}

/// Wipes what stands behind the end, so that no later batch can make it follow again.
async fn erase<F: File>(files: &Files<F>, end: u64, strays: &[Stray], size: u64) -> io::Result<()> {
    let mut to: BTreeMap<u64, u64> = BTreeMap::new();
    for stray in strays {
        let upto = to.entry(segment_of(stray.position, size)).or_default();
        *upto = stray.end.max(*upto);
    }
    for (start, upto) in to.into_iter().rev() {
        zero(&files[&start].file, end.max(start) - start, upto - start).await?;
    }
    Ok(())
}

/// Writes the batches that nothing proves to be synced once more, and syncs. They were read through the page cache, which
/// after a failed sync of the process before may hold, as clean, what the disk never got.
async fn settle<F: File>(files: &Files<F>, synced: u64, end: u64, size: u64) -> io::Result<()> {
    let Some(last) = end.checked_sub(1) else { return Ok(()) };
    let start = segment_of(last, size);
    let Some(segment) = files.get(&start) else { return Ok(()) };
    let mut at = synced.max(start);
    if at >= end {
        return Ok(());
    }
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(WINDOW).min(WINDOW);
        let bytes = segment.file.read_at(at - start, len).await?;
        segment.file.write_at(at - start, &[bytes]).await?;
        at += len as u64;
    }
    segment.file.sync().await
}
