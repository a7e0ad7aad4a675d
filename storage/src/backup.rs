//! Backups of a running store: what one consists of, and its source.
//!
//! Owns: the bytes of [`Manifest`] and [`Known`], the files of the store while they are read ([`BackupSource`]). Promises: a source holds
//! the newest checkpoint, the segments that it needs, and the log behind it up to the position that was asked for; nothing of that goes
//! away or changes until it is dropped. Does not know: the directory that a backup goes to (`backup_dir`), who carries the bytes.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use crate::checkpoint::{CheckpointStore, Pace, point_bytes};
use crate::copy::{CopySource, Offer, Part, PartKind, read_point};
use crate::disk::{Disk, File as _};
use crate::format::{LogPoint, Uuid, crc64, segment_of};
use crate::genesis::Genesis;
use crate::pages::PageStore;
use crate::reader::LogReader;
use crate::real::RealDisk;
use crate::segments::Segment;

const MANIFEST_MAGIC: [u8; 4] = *b"DBAK";
const KNOWN_MAGIC: [u8; 4] = *b"DKNW";
const VERSION: u32 = 1;
/// Read at once to see whether a file is there already.
const LOOK: usize = 256 << 10;

/// What one backup consists of. Its files may be shared with other backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The cluster it was taken from.
    pub cluster: Uuid,
    /// Whose log it is.
    pub shard: Uuid,
    /// The store that was read.
    pub store: Uuid,
    /// The node that it belonged to.
    pub node: u64,
    /// Number of the shard.
    pub shard_number: u32,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// When it began, ms since 1970.
    pub taken: u64,
    /// What its checkpoint stands for; `None`: it has none, and the log from its first batch.
    pub point: Option<LogPoint>,
    /// The last batch in it.
    pub end: LogPoint,
    /// Segments, page files, checkpoint files, each in order; a segment's length counts up to the end of the backup.
    pub parts: Vec<BackupPart>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPart {
    /// What it is.
    pub part: Part,
    /// CRC-64/NVME of its bytes; 0 for segments, which check themselves, and where nobody has read it yet.
    pub digest: u64,
}

/// What the directory of a backup has: none of it is to be carried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The cluster of the backups there; `None`: there is none.
    pub cluster: Option<Uuid>,
    /// The last batch of the newest one.
    pub end: Option<LogPoint>,
    /// First positions of segments, and how many bytes of each are there.
    pub segments: Vec<(u64, u64)>,
    /// Digests (see [`BackupPart`]) of the other files there.
    pub digests: Vec<u64>,
}

fn bad(what: &str, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {reason}"))
}

/// Takes fields off the front of bytes whose checksum matched.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn bytes(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(|| bad("backup", "cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().expect("eight bytes")))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }

    fn uuid(&mut self) -> io::Result<Uuid> {
        Ok(self.bytes(16)?.try_into().expect("sixteen bytes"))
    }

    /// `None` is a byte 0, then zeros.
    fn point(&mut self) -> io::Result<Option<LogPoint>> {
        let is_there = self.bytes(1)?[0] == 1;
        let point = read_point(self.bytes(48)?);
        Ok(is_there.then_some(point))
    }
}

fn put_point(bytes: &mut BytesMut, point: Option<LogPoint>) {
    bytes.put_u8(u8::from(point.is_some()));
    bytes.put_slice(&point.map_or([0; 48], |point| point_bytes(&point)));
}

fn sealed(mut bytes: BytesMut) -> Bytes {
    let crc = crc64(&bytes);
    bytes.put_u64_le(crc);
    bytes.freeze()
}

fn opened<'a>(what: &str, magic: [u8; 4], bytes: &'a [u8]) -> io::Result<Cut<'a>> {
    let Some((content, crc)) = bytes.split_last_chunk::<8>() else { return Err(bad(what, "cut short")) };
    if u64::from_le_bytes(*crc) != crc64(content) {
        return Err(bad(what, "does not match its checksum"));
    }
    let mut cut = Cut(content);
    if cut.bytes(4)? != magic || cut.u32()? != VERSION {
        return Err(bad(what, "of a version that this release does not read"));
    }
    Ok(cut)
}

impl Manifest {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.part.len).sum()
    }

    /// The checkpoint and what it needs, as it is offered to a store; `None` without one.
    #[must_use]
    pub fn offer(&self) -> Option<Offer> {
        let point = self.point?;
        let below = |part: &Part| match part.kind {
            PartKind::Segment if part.number >= point.end => None,
            PartKind::Segment => Some(Part { len: part.len.min(point.end - part.number), ..part.clone() }),
            PartKind::Pages | PartKind::Checkpoint => Some(part.clone()),
        };
        let parts = self.parts.iter().filter_map(|part| below(&part.part)).collect();
        let Manifest { shard, store, segment_size, .. } = *self;
        Some(Offer { shard, store, segment_size, point, parts })
    }

    /// As bytes, with a checksum.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&MANIFEST_MAGIC);
        bytes.put_u32_le(VERSION);
        for uuid in [&self.cluster, &self.shard, &self.store] {
            bytes.put_slice(uuid);
        }
        bytes.put_u64_le(self.node);
        bytes.put_u32_le(self.shard_number);
        bytes.put_u64_le(self.segment_size);
        bytes.put_u64_le(self.taken);
        put_point(&mut bytes, self.point);
        put_point(&mut bytes, Some(self.end));
        bytes.put_u64_le(self.parts.len() as u64);
        for BackupPart { part, digest } in &self.parts {
            bytes.put_u8(part.kind as u8);
            for field in [part.number, part.len, part.first.0, part.first.1, part.first.2, *digest] {
                bytes.put_u64_le(field);
            }
        }
        sealed(bytes)
    }

    /// What [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData` with the reason.
    pub fn decode(bytes: &[u8]) -> io::Result<Manifest> {
        let mut cut = opened("manifest", MANIFEST_MAGIC, bytes)?;
        let (cluster, shard, store) = (cut.uuid()?, cut.uuid()?, cut.uuid()?);
        let (node, shard_number) = (cut.u64()?, cut.u32()?);
        let (segment_size, taken) = (cut.u64()?, cut.u64()?);
        let point = cut.point()?;
        let end = cut.point()?.ok_or_else(|| bad("manifest", "without an end"))?;
        let mut parts = Vec::new();
        for _ in 0..cut.u64()? {
            let kind = match cut.bytes(1)?[0] {
                1 => PartKind::Segment,
                2 => PartKind::Pages,
                3 => PartKind::Checkpoint,
                _ => return Err(bad("manifest", "a part of no known kind")),
            };
            let (number, len) = (cut.u64()?, cut.u64()?);
            let first = (cut.u64()?, cut.u64()?, cut.u64()?);
            parts.push(BackupPart { part: Part { kind, number, len, first }, digest: cut.u64()? });
        }
        let manifest =
            Manifest { cluster, shard, store, node, shard_number, segment_size, taken, point, end, parts };
        manifest.check()?;
        Ok(manifest)
    }

    /// Refuses what no source says: the sum of what it names must be able to become a store.
    fn check(&self) -> io::Result<()> {
        let refuse = |reason: &str| Err(bad("manifest", reason));
        let (size, end) = (self.segment_size, self.end.end);
        if size == 0 || !size.is_multiple_of(4096) || end == 0 {
            return refuse("of no log");
        }
        let order = |part: &BackupPart| (part.part.kind as u8, part.part.number);
        if !self.parts.is_sorted_by(|a, b| order(a) < order(b)) {
            return refuse("parts out of order");
        }
        let segments: Vec<&Part> = self.of(PartKind::Segment).collect();
        let whole = |part: &&Part| {
            part.number.is_multiple_of(size) && part.number < end && part.len == size.min(end - part.number)
        };
        if !segments.iter().all(whole) {
            return refuse("a segment that is not of this log");
        }
        // Behind the checkpoint none may be missing.
        let first = segment_of(self.point.map_or(0, |point| point.end), size);
        let behind: Vec<u64> =
            segments.iter().map(|part| part.number).filter(|start| *start >= first).collect();
        let expected: Vec<u64> = (first..end).step_by(usize::try_from(size).unwrap_or(usize::MAX)).collect();
        if behind != expected {
            return refuse("a segment is missing");
        }
        match self.point {
            Some(point) if point.index > self.end.index || point.end > end => {
                refuse("it ends before its checkpoint")
            }
            Some(point)
                if self.of(PartKind::Checkpoint).last().is_none_or(|part| part.number != point.index) =>
            {
                refuse("without its checkpoint")
            }
            None if self.parts.len() != segments.len() => {
                refuse("files of a checkpoint that it does not have")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn of(&self, kind: PartKind) -> impl Iterator<Item = &Part> {
        self.parts.iter().map(|part| &part.part).filter(move |part| part.kind == kind)
    }
}

impl Known {
    /// As bytes, with a checksum.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&KNOWN_MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_slice(&self.cluster.unwrap_or_default());
        put_point(&mut bytes, self.end);
        bytes.put_u64_le(self.segments.len() as u64);
        for (start, len) in &self.segments {
            bytes.put_u64_le(*start);
            bytes.put_u64_le(*len);
        }
        bytes.put_u64_le(self.digests.len() as u64);
        self.digests.iter().for_each(|digest| bytes.put_u64_le(*digest));
        sealed(bytes)
    }

    /// What [`Known::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData` with the reason.
    pub fn decode(bytes: &[u8]) -> io::Result<Known> {
        let mut cut = opened("request", KNOWN_MAGIC, bytes)?;
        let cluster = Some(cut.uuid()?).filter(|cluster| *cluster != [0; 16]);
        let end = cut.point()?;
        let segments = (0..cut.u64()?).map(|_| Ok((cut.u64()?, cut.u64()?))).collect::<io::Result<_>>()?;
        let digests = (0..cut.u64()?).map(|_| cut.u64()).collect::<io::Result<_>>()?;
        Ok(Known { cluster, end, segments, digests })
    }
}

enum From<F> {
    Segment(Arc<Segment<F>>),
    /// Part of the copy.
    Copy(usize),
}

/// A store's newest checkpoint, what that needs, and the log behind it, held while they are read.
pub struct BackupSource<D: Disk = RealDisk> {
    manifest: Manifest,
    from: Vec<From<D::File>>,
    copy: Option<CopySource<D>>,
}

/// How a part goes to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Going {
    /// It is there; its digest (0: a segment).
    Not(u64),
    /// It goes from this offset on.
    From(u64),
}

/// How a backup is taken.
pub struct BackupRequest<'a> {
    /// Whose store it is.
    pub genesis: &'a Genesis,
    /// It reaches at least to here: a position that is committed.
    pub end: u64,
    /// What the directory has.
    pub known: &'a Known,
    /// Now, ms since 1970.
    pub taken: u64,
}

impl<D: Disk> BackupSource<D> {
    /// Holds what a backup up to `end` needs; `None`: that is not durable here yet. Call it where checkpoints are written, while none
    /// is. Segments (first positions) that are not `needed` are left out, but for those behind the backup before: with them any
    /// position since then can be restored.
    ///
    /// # Errors
    /// What the disk says; `InvalidInput` when the directory's backups are not of this log; `InvalidData` for a segment whose first
    /// batch is damaged.
    pub async fn open(
        asked: BackupRequest<'_>,
        checkpoints: &CheckpointStore<D>,
        pages: &PageStore<D>,
        log: &LogReader<D>,
        needed: impl Fn(u64) -> bool,
    ) -> io::Result<Option<BackupSource<D>>> {
        let (genesis, known, size) = (asked.genesis, asked.known, asked.genesis.segment_size);
        if known.cluster.is_some_and(|cluster| cluster != genesis.cluster) {
            return Err(not_ours("the directory has backups of another cluster"));
        }
        let since = known.end.map_or(u64::MAX, |end| segment_of(end.end, size));
        let wanted = |start: u64| start >= since || needed(start);
        let copy = CopySource::open(checkpoints, pages, log, wanted).await?;
        let point = copy.as_ref().map(|copy| copy.offer().point);
        let end = asked.end.max(point.map_or(0, |point| point.end));
        if log.durable() < end {
            return Ok(None);
        }
        let last = end.checked_sub(1).ok_or_else(|| not_ours("there is nothing in the log yet"))?;
        let end = match point.filter(|point| point.end == end) {
            Some(point) => point,
            None => log.holding(last)?.point,
        };
        follows(log, known.end, &end)?;
        let (mut parts, mut from) = (Vec::new(), Vec::new());
        let first = segment_of(point.map_or(0, |point| point.end), size);
        let below = copy.iter().flat_map(|copy| &copy.offer().parts);
        let below: Vec<u64> =
            below.filter(|part| part.kind == PartKind::Segment).map(|part| part.number).collect();
        for start in log.segments() {
            if start >= end.end || (start < first && !below.contains(&start)) {
                continue;
            }
            let Some(segment) = log.segments.segment(start) else { continue };
            let header = log.segments.first_header(&segment)?;
            let first = (header.point.index, header.point.hash, header.previous);
            let part = Part { kind: PartKind::Segment, number: start, len: size.min(end.end - start), first };
            parts.push(BackupPart { part, digest: 0 });
            from.push(From::Segment(segment));
        }
        let others = copy.iter().flat_map(|copy| copy.offer().parts.iter().enumerate());
        for (number, part) in others.filter(|(_, part)| part.kind != PartKind::Segment) {
            parts.push(BackupPart { part: part.clone(), digest: 0 });
            from.push(From::Copy(number));
        }
        let manifest = Manifest {
            cluster: genesis.cluster,
            shard: genesis.shard,
            store: genesis.store,
            node: genesis.node,
            shard_number: genesis.shard_number,
            segment_size: size,
            taken: asked.taken,
            point,
            end,
            parts,
        };
        manifest.check()?;
        Ok(Some(BackupSource { manifest, from, copy }))
    }

    /// What it holds, without digests.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How a part goes to a directory that has what is `known`.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn look(&self, part: usize, known: &Known, pace: &impl Pace) -> io::Result<Going> {
        let Some(BackupPart { part: what, .. }) = self.manifest.parts.get(part) else {
            return Ok(Going::From(0));
        };
        if what.kind == PartKind::Segment {
            let here =
                known.segments.iter().find(|(start, _)| *start == what.number).map_or(0, |(_, len)| *len);
            return Ok(if here >= what.len { Going::Not(0) } else { Going::From(here) });
        }
        if known.digests.is_empty() {
            return Ok(Going::From(0));
        }
        // Its name says nothing: pages are used again, and who else has a checkpoint of that index is not known.
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        let mut at = 0;
        while at < what.len {
            let bytes = self.read(part, at, LOOK).await?;
            pace.pause(bytes.len()).await;
            digest.update(&bytes);
            at += bytes.len() as u64;
        }
        let digest = digest.finalize();
        Ok(if known.digests.contains(&digest) { Going::Not(digest) } else { Going::From(0) })
    }

    /// Bytes of a part, as many as there are up to `len`.
    ///
    /// # Errors
    /// What the disk says; `InvalidInput` for a place that is not there.
    pub async fn read(&self, part: usize, offset: u64, len: usize) -> io::Result<Bytes> {
        let known = self.manifest.parts.get(part).and_then(|known| known.part.len.checked_sub(offset));
        let (Some(rest), Some(from)) = (known, self.from.get(part)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no byte {offset} of part {part}"),
            ));
        };
        let len = len.min(usize::try_from(rest).unwrap_or(usize::MAX));
        match (from, &self.copy) {
            (From::Segment(segment), _) => segment.file.read_at(offset, len).await,
            (From::Copy(number), Some(copy)) => copy.read(*number, offset, len).await,
            (From::Copy(_), None) => unreachable!("its parts are a copy's"),
        }
    }
}

fn not_ours(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{reason}: give another directory"))
}

/// Refuses a directory whose newest backup has something that this log has not, as far as that can be seen.
fn follows<D: Disk>(log: &LogReader<D>, before: Option<LogPoint>, end: &LogPoint) -> io::Result<()> {
    let Some(before) = before else { return Ok(()) };
    let same = || match log.batch(before.position) {
        Ok(batch) => batch.point == before,
        // Retention may have taken it.
        Err(_) => log.segments.segment(segment_of(before.position, log.segments.segment_size)).is_none(),
    };
    if before.index > end.index || before.end > end.end || !same() {
        return Err(not_ours("the directory's newest backup is not of this log's past"));
    }
    Ok(())
}
