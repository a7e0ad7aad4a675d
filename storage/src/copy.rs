//! A store on its way to a replica that is far behind: the newest checkpoint, its index pages, and the log's segments below it.
//!
//! Owns: what is offered ([`Offer`]), the files at the source while they are read ([`CopySource`]), and those that come in beside the
//! receiving store's own ([`CopyTarget`]). Promises: what the source holds stays readable and unchanged until it is dropped,
//! whatever retention and checkpoints do meanwhile; nothing that came in counts before all of it was verified, and then
//! only by [`CopyTarget::commit`] and [`finish_install`](crate::finish_install) on a closed store; what is here already is not copied again.
//! Does not know: who sends, over what, how fast.
//!
//! Names of what comes in: `log/incoming-<20 digits>` (`incoming-open-` the one that the log goes on in), `pages/incoming-<8 digits>`, `checkpoint/incoming-<20 digits>`, each under the
//! name `copying` in its directory until it is whole; `checkpoint/incoming` is the checkpoint as this store's own. The file `copying` in
//! the root says of which copy the pages and checkpoint files are; segments are the same in every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::checkpoint::{self, CheckpointStore, adopt, point_bytes, read_base};
use crate::disk::{Disk, File, damaged, fault};
use crate::format::{
    HEADER, LogPoint, Uuid, crc64, decode, end_marker, segment_of, segment_path, segment_start, whole,
};
use crate::genesis::Genesis;
use crate::install;
use crate::pages::{self, FILE_BYTES, FILE_PAGES, HeldPages, PageId, PageStore};
use crate::reader::LogReader;
use crate::real::RealDisk;
use crate::segments::Segment;

const OFFER_MAGIC: [u8; 4] = *b"DOFR";
const OFFER_HEAD: usize = 4 + 4 + 16 + 16 + 8 + 48 + 4;
const PART_BYTES: usize = 1 + 8 + 8 + 24;
/// Unsynced bytes of a file that comes in: a sync of more would stand in the way of the log's own.
const SYNC_EVERY: u64 = 8 << 20;
/// The root's note of which copy came in.
const COPYING: &str = "copying";
const COPYING_NEW: &str = "copying.new";
/// The checkpoint that came in, as this store's own.
pub(crate) const ADOPTED: &str = "checkpoint/incoming";

/// What a part of a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// A segment of the log; its number is its first position.
    Segment = 1,
    /// A page file.
    Pages = 2,
    /// A file of the checkpoint, the base first; its number is the index it stands for.
    Checkpoint = 3,
}

/// One file of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Its number.
    pub number: u64,
    /// Bytes of it that are carried; what follows is zero.
    pub len: u64,
    /// Of a segment's first batch: index, hash, and the hash of the batch before it. Zero for others.
    pub first: (u64, u64, u64),
}

/// All that a replica needs to go on behind a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Whose log it is.
    pub shard: Uuid,
    /// The store that offers.
    pub store: Uuid,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// What the checkpoint stands for.
    pub point: LogPoint,
    /// Segments, page files, checkpoint files, each in order.
    pub parts: Vec<Part>,
}

impl Offer {
    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
    }

    /// As bytes, with a checksum.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(OFFER_HEAD + self.parts.len() * PART_BYTES + 8);
        bytes.put_slice(&OFFER_MAGIC);
        bytes.put_u32_le(1);
        bytes.put_slice(&self.shard);
        bytes.put_slice(&self.store);
        bytes.put_u64_le(self.segment_size);
        bytes.put_slice(&point_bytes(&self.point));
        bytes.put_u32_le(u32::try_from(self.parts.len()).expect("fewer files than that"));
        for part in &self.parts {
            bytes.put_u8(part.kind as u8);
            for field in [part.number, part.len, part.first.0, part.first.1, part.first.2] {
                bytes.put_u64_le(field);
            }
        }
        let crc = crc64(&bytes);
        bytes.put_u64_le(crc);
        bytes.freeze()
    }

    /// What [`Offer::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData` with the reason.
    pub fn decode(bytes: &[u8]) -> io::Result<Offer> {
        let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, format!("offer: {reason}"));
        let Some(parts_len) = bytes.len().checked_sub(OFFER_HEAD + 8) else { return Err(bad("cut short")) };
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != OFFER_MAGIC || u32_at(4) != 1 {
            return Err(bad("of another version"));
        }
        if u64_at(bytes.len() - 8) != crc64(&bytes[..bytes.len() - 8]) {
            return Err(bad("does not match its checksum"));
        }
        let uuid = |at: usize| -> Uuid { bytes[at..at + 16].try_into().expect("sixteen bytes") };
        let point = read_point(&bytes[48..96]);
        let count = u32_at(96) as usize;
        if parts_len != count * PART_BYTES {
            return Err(bad("cut short"));
        }
        let part = |i: usize| {
            let at = OFFER_HEAD + i * PART_BYTES;
            let kind = match bytes[at] {
                1 => PartKind::Segment,
                2 => PartKind::Pages,
                3 => PartKind::Checkpoint,
                _ => return Err(bad("a part of no known kind")),
            };
            let field = |n: usize| u64_at(at + 1 + n * 8);
            Ok(Part { kind, number: field(0), len: field(1), first: (field(2), field(3), field(4)) })
        };
        let parts = (0..count).map(part).collect::<io::Result<_>>()?;
        Ok(Offer { shard: uuid(8), store: uuid(24), segment_size: u64_at(40), point, parts })
    }

    /// Names the copy that its pages and checkpoint files belong to.
    fn identity(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(72);
        bytes.put_slice(&self.store);
        bytes.put_slice(&point_bytes(&self.point));
        let crc = crc64(&bytes);
        bytes.put_u64_le(crc);
        bytes.freeze()
    }

    fn of(&self, kind: PartKind) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.kind == kind)
    }

    /// Refuses what no honest source offers to this store.
    fn check(&self, genesis: &Genesis) -> io::Result<()> {
        let bad = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("offer: {reason}")));
        if self.shard != genesis.shard {
            return bad("the log of another shard");
        }
        if self.segment_size != genesis.segment_size {
            return bad("segments of another size");
        }
        let order = |part: &Part| (part.kind as u8, part.number);
        if !self.parts.is_sorted_by(|a, b| order(a) < order(b)) {
            return bad("parts out of order");
        }
        let (size, end) = (self.segment_size, self.point.end);
        let whole = |part: &Part| {
            part.number.is_multiple_of(size)
                && part.number < end
                && part.len == size.min(end - part.number)
                && part.len >= HEADER as u64
        };
        if !self.of(PartKind::Segment).all(whole) {
            return bad("a segment that is not of this log");
        }
        let open = segment_of(end, size);
        if end != open && self.of(PartKind::Segment).last().is_none_or(|part| part.number != open) {
            return bad("without the segment that the log goes on in");
        }
        if !self.of(PartKind::Pages).zip(0..).all(|(part, n)| part.number == n && part.len == FILE_BYTES) {
            return bad("page files with a gap");
        }
        let last = self.of(PartKind::Checkpoint).last();
        if last.is_none_or(|part| part.number != self.point.index) {
            return bad("without its checkpoint");
        }
        Ok(())
    }
}

pub(crate) fn read_point(bytes: &[u8]) -> LogPoint {
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    LogPoint {
        index: u64_at(0),
        term: u64_at(8),
        leader: u64_at(16),
        position: u64_at(24),
        end: u64_at(32),
        hash: u64_at(40),
    }
}

enum Handle<F> {
    Segment(Arc<Segment<F>>),
    Pages(Arc<F>),
    Checkpoint(F),
}

/// A store's newest checkpoint and what it needs, held while it is copied. Retired segments lose their names only, merged
/// checkpoints likewise, and no page is used again, until this is dropped.
pub struct CopySource<D: Disk = RealDisk> {
    offer: Offer,
    handles: Vec<Handle<D::File>>,
    _pages: HeldPages<D::File>,
}

impl<D: Disk> CopySource<D> {
    /// Holds the newest durable checkpoint; `None` when there is none. Call it where checkpoints are written, while none is. Segments
    /// (first positions) that are not `needed` are left out.
    ///
    /// # Errors
    /// What the disk says; `InvalidData` for a segment whose first batch is damaged.
    pub async fn open(
        checkpoints: &CheckpointStore<D>,
        pages: &PageStore<D>,
        log: &LogReader<D>,
        needed: impl Fn(u64) -> bool,
    ) -> io::Result<Option<CopySource<D>>> {
        let Some(held) = checkpoints.hold().await? else { return Ok(None) };
        let _pages = pages.hold();
        let (size, point) = (log.segments.segment_size, held.point);
        let open = segment_of(point.end, size);
        let (mut parts, mut handles) = (Vec::new(), Vec::new());
        for start in log.segments() {
            if start >= point.end || (start != open && !needed(start)) {
                continue;
            }
            let Some(segment) = log.segments.segment(start) else { continue };
            let header = log.segments.first_header(&segment)?;
            let first = (header.point.index, header.point.hash, header.previous);
            let len = size.min(point.end - start);
            parts.push(Part { kind: PartKind::Segment, number: start, len, first });
            handles.push(Handle::Segment(segment));
        }
        for (number, file) in (0..).zip(&_pages.files) {
            parts.push(Part { kind: PartKind::Pages, number, len: FILE_BYTES, first: (0, 0, 0) });
            handles.push(Handle::Pages(file.clone()));
        }
        for (number, file, len) in held.files {
            parts.push(Part { kind: PartKind::Checkpoint, number, len, first: (0, 0, 0) });
            handles.push(Handle::Checkpoint(file));
        }
        let offer = Offer { shard: log.segments.shard, store: held.store, segment_size: size, point, parts };
        Ok(Some(CopySource { offer, handles, _pages }))
    }

    /// What it holds.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Bytes of a part, as many as there are up to `len`.
    ///
    /// # Errors
    /// What the disk says; `InvalidInput` for a place that is not there.
    pub async fn read(&self, part: usize, offset: u64, len: usize) -> io::Result<Bytes> {
        let (Some(handle), Some(known)) = (self.handles.get(part), self.offer.parts.get(part)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no part {part}")));
        };
        let Some(rest) = known.len.checked_sub(offset) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("part {part} ends before {offset}"),
            ));
        };
        let len = len.min(usize::try_from(rest).unwrap_or(usize::MAX));
        match handle {
            Handle::Segment(segment) => segment.file.read_at(offset, len).await,
            Handle::Pages(file) => file.read_at(offset, len).await,
            Handle::Checkpoint(file) => file.read_at(offset, len).await,
        }
    }
}

/// Where a part stands at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be copied, from this offset.
    Wanted(u64),
    /// Came in, verified, durable.
    Here,
    /// The store has it.
    Kept,
}

/// A copy that comes in, beside the store's own files.
pub struct CopyTarget<D: Disk = RealDisk> {
    disk: D,
    genesis: Genesis,
    offer: Offer,
    stages: Vec<Stage>,
    /// The part that comes in now, and bytes of it that are not synced.
    open: Option<(usize, D::File, u64)>,
}

fn name_of(part: &Part, size: u64) -> (&'static str, String) {
    match part.kind {
        // The segment that the log goes on in is another one in every copy.
        PartKind::Segment if part.len < size => ("log", format!("log/incoming-open-{:020}", part.number)),
        PartKind::Segment => ("log", format!("log/incoming-{:020}", part.number)),
        PartKind::Pages => ("pages", format!("pages/incoming-{:08}", part.number)),
        PartKind::Checkpoint => ("checkpoint", format!("checkpoint/incoming-{:020}", part.number)),
    }
}

/// The segment or page file that a name stands for which came in.
pub(crate) fn incoming(name: &str) -> Option<&str> {
    let digits = name.strip_prefix("incoming-")?;
    Some(digits.strip_prefix("open-").unwrap_or(digits))
}

/// Whether a name belongs to a copy that comes in.
pub(crate) fn is_ours(name: &str) -> bool {
    name == COPYING || incoming(name).is_some()
}

/// Whether the store has that entry: then it needs no copy up to it.
pub(crate) fn has<D: Disk>(log: &LogReader<D>, point: LogPoint) -> bool {
    let known = || log.batch(point.position).is_ok_and(|batch| batch.point == point);
    log.durable() >= point.end && (log.committed() >= point.end || known())
}

impl<D: Disk> CopyTarget<D> {
    /// Takes an offer up: looks which of its parts are here. `before` is a copy that was not finished; where it is the same copy,
    /// it goes on at the byte where it stopped. `None`: the store has all up to the offer's point, no copy is needed.
    ///
    /// # Errors
    /// `InvalidData` for an offer that is not for this store; what the disk says.
    pub async fn begin(
        disk: &D,
        genesis: &Genesis,
        log: &LogReader<D>,
        offer: Offer,
        before: Option<CopyTarget<D>>,
    ) -> io::Result<Option<CopyTarget<D>>> {
        offer.check(genesis)?;
        if has(log, offer.point) {
            return Ok(None);
        }
        let (mut stages, mut open) = (Vec::new(), None);
        let same = is_noted(disk, &offer).await?;
        if let Some(before) = before.filter(|before| same && before.offer == offer) {
            open = before.open.map(|(part, file, unsynced)| (part, file, unsynced, before.stages[part]));
        }
        tidy(disk, &offer, same, open.is_some()).await?;
        if !same {
            note(disk, &offer).await?;
        }
        let here = names(disk).await?;
        for (number, part) in offer.parts.iter().enumerate() {
            stages.push(match &open {
                _ if here.contains(&name_of(part, offer.segment_size).1) => Stage::Here,
                _ if is_kept(log, part, offer.segment_size) => Stage::Kept,
                Some((open, .., stage)) if *open == number => *stage,
                _ => Stage::Wanted(0),
            });
        }
        let (disk, genesis) = (disk.clone(), *genesis);
        let open = open.map(|(part, file, unsynced, _)| (part, file, unsynced));
        let open = open.filter(|(part, ..)| matches!(stages[*part], Stage::Wanted(_)));
        Ok(Some(CopyTarget { disk, genesis, offer, stages, open }))
    }

    /// What it copies.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The parts that are missing, and from which offset; in the order in which they are to come, each whole before the next.
    pub fn wanted(&self) -> Vec<(usize, u64)> {
        let first = self.open.as_ref().map(|(part, ..)| *part);
        let rest = (0..self.stages.len()).filter(|part| Some(*part) != first);
        let wanted = first.into_iter().chain(rest).map(|part| (part, self.stages[part]));
        wanted
            .filter_map(
                |(part, stage)| if let Stage::Wanted(from) = stage { Some((part, from)) } else { None },
            )
            .collect()
    }

    /// Takes bytes of a part that is wanted; `None` stands for so many zeros. With the last byte of a part it is verified, and durable.
    ///
    /// # Errors
    /// `InvalidData`, naming file and offset, when the part is not what it must be: it is wanted again, from the start. What the disk
    /// says; `StorageFull` leaves all that came in so far.
    pub async fn write(&mut self, part: usize, offset: u64, bytes: Result<Bytes, u64>) -> io::Result<()> {
        let len = bytes.as_ref().map_or_else(|zeros| *zeros, |bytes| bytes.len() as u64);
        let wrong =
            |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, format!("copy: {reason}")));
        let (Some(Stage::Wanted(at)), Some(known)) = (self.stages.get(part), self.offer.parts.get(part))
        else {
            return wrong(format!("part {part} was not asked for"));
        };
        if *at != offset || len == 0 || offset.checked_add(len).is_none_or(|end| end > known.len) {
            return wrong(format!(
                "{len} bytes at {offset} of part {part}, where {at} is next of {}",
                known.len
            ));
        }
        if self.open.as_ref().is_some_and(|(open, ..)| *open != part) {
            return wrong(format!("part {part} before the one begun was whole"));
        }
        if self.open.is_none() {
            let file = self.create(part).await?;
            self.open = Some((part, file, 0));
        }
        let Some((_, file, unsynced)) = &mut self.open else { unreachable!("set above") };
        if let Ok(bytes) = bytes {
            file.write_at(offset, &[bytes]).await?;
            *unsynced += len;
        }
        if *unsynced >= SYNC_EVERY {
            file.sync().await?;
            *unsynced = 0;
        }
        self.stages[part] = Stage::Wanted(offset + len);
        if offset + len == self.offer.parts[part].len {
            self.end_part(part).await?;
        }
        Ok(())
    }

    fn name_of(&self, part: &Part) -> (&'static str, String) {
        name_of(part, self.offer.segment_size)
    }

    async fn create(&self, part: usize) -> io::Result<D::File> {
        let part = &self.offer.parts[part];
        let dir = self.name_of(part).0;
        let path = format!("{dir}/{COPYING}");
        if self.disk.list(dir).await?.iter().any(|name| name == COPYING) {
            self.disk.remove(&path).await?;
        }
        let len = match part.kind {
            PartKind::Segment => self.offer.segment_size,
            PartKind::Pages => FILE_BYTES,
            PartKind::Checkpoint => 0,
        };
        self.disk.create(&path, len).await
    }

    async fn end_part(&mut self, number: usize) -> io::Result<()> {
        let Some((_, file, _)) = self.open.take() else { return Ok(()) };
        self.stages[number] = Stage::Wanted(0); // until it is found good
        let part = self.offer.parts[number].clone();
        let (dir, path) = self.name_of(&part);
        file.sync().await?;
        if part.kind == PartKind::Segment {
            self.verify_segment(&file, &part).await?;
        }
        drop(file);
        self.disk.rename(&format!("{dir}/{COPYING}"), &path).await?;
        self.disk.sync_dir(dir).await?;
        self.stages[number] = Stage::Here;
        Ok(())
    }

    /// Walks the chain of a segment from its first byte to its end.
    async fn verify_segment(&self, file: &D::File, part: &Part) -> io::Result<()> {
        let (size, point) = (self.offer.segment_size, self.offer.point);
        let last = walk_segment(file, &self.offer.shard, size, part).await?;
        let (start, name) = (part.number, segment_path(part.number));
        if start + part.len == point.end && last != point {
            return Err(damaged(
                &name,
                last.position - start,
                "not the batch that the checkpoint stands for",
            ));
        }
        let next = self.offer.of(PartKind::Segment).find(|other| other.number == start + size);
        if next.is_some_and(|next| next.first.2 != last.hash) {
            return Err(damaged(&name, last.position - start, "the segment behind it follows another one"));
        }
        Ok(())
    }

    /// Verifies the whole: the checkpoint, and each index page that it names. `used` reads these (number, owner) from the checkpoint's
    /// objects. Afterwards [`CopyTarget::commit`] may follow.
    ///
    /// # Errors
    /// `InvalidData`, naming file and offset; what did not verify is wanted again. `InvalidInput` while parts are missing.
    pub async fn verify(
        &mut self,
        used: impl FnOnce(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>>,
    ) -> io::Result<()> {
        if !self.wanted().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the copy is not whole"));
        }
        let checked = self.verify_checkpoint(used).await;
        if checked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            // Which of them is wrong is not worth finding out: all of this copy but its segments comes again.
            for number in 0..self.offer.parts.len() {
                let part = &self.offer.parts[number];
                if part.kind != PartKind::Segment && self.stages[number] == Stage::Here {
                    self.disk.remove(&self.name_of(part).1).await?;
                    self.stages[number] = Stage::Wanted(0);
                }
            }
        }
        checked
    }

    async fn verify_checkpoint(
        &mut self,
        used: impl FnOnce(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>>,
    ) -> io::Result<()> {
        let (offer, disk) = (&self.offer, &self.disk);
        let files: Vec<(u64, String)> =
            offer.of(PartKind::Checkpoint).map(|part| (part.number, self.name_of(part).1)).collect();
        adopt(disk, &offer.store, &files, (&self.genesis.store, ADOPTED), offer.point).await?;
        let (point, objects) = read_base(disk, &self.genesis.store, ADOPTED, offer.point.index).await?;
        let mut by_file: BTreeMap<u64, Vec<(PageId, u64)>> = BTreeMap::new();
        for (id, owner) in used(point, objects)? {
            by_file.entry(id / FILE_PAGES).or_default().push((id, owner));
        }
        for (number, pages) in by_file {
            let Some(part) = offer.of(PartKind::Pages).find(|part| part.number == number) else {
                return Err(damaged(&pages::path(number), 0, "a page in use is missing"));
            };
            let file = disk.open(&self.name_of(part).1).await?;
            pages::verify(&file, &pages)?;
        }
        Ok(())
    }

    /// Decides that the store becomes the copy: from here on the next [`finish_install`](crate::finish_install) puts it in place, before
    /// anything else is opened. The log must be closed, and no longer hold the entry of the offer's point.
    ///
    /// # Errors
    /// `NotFound` when a segment that the store had is gone meanwhile; what the disk says. Nothing is decided then.
    pub async fn commit(&self) -> io::Result<()> {
        for (part, stage) in self.offer.parts.iter().zip(&self.stages) {
            let path = match stage {
                Stage::Kept => segment_path(part.number),
                Stage::Here | Stage::Wanted(_) => self.name_of(part).1,
            };
            let (dir, name) = path.split_once('/').expect("a file in a directory");
            if !self.disk.list(dir).await?.iter().any(|known| known == name) {
                return Err(fault("install", &path, None, io::ErrorKind::NotFound.into()));
            }
        }
        for dir in ["log", "pages", "checkpoint"] {
            self.disk.sync_dir(dir).await?;
        }
        let segments = self.offer.of(PartKind::Segment).map(|part| part.number).collect();
        let page_files = self.offer.of(PartKind::Pages).count() as u64;
        let plan = install::Plan { store: self.genesis.store, point: self.offer.point, page_files, segments };
        plan.save(&self.disk).await
    }
}

/// Walks the chain of a segment, or of the part of it that is there, from its first byte to its end; its last batch.
pub(crate) async fn walk_segment<F: File>(
    file: &F,
    shard: &Uuid,
    size: u64,
    part: &Part,
) -> io::Result<LogPoint> {
    let (start, stop) = (part.number, part.number + part.len);
    let name = segment_path(start);
    let (mut at, mut last) = (start, None::<LogPoint>);
    let (index, hash, previous) = part.first;
    while at < stop {
        let room = usize::try_from(stop - at).unwrap_or(usize::MAX);
        let head = file.read_at(at - start, HEADER.min(room)).await?;
        let header = match decode(&head, shard, at, size) {
            Ok(header) if header.point.end <= stop => header,
            Ok(_) => return Err(damaged(&name, at - start, "a batch that goes on behind the copy's end")),
            Err(_) if last.is_some() && head.starts_with(&end_marker(at)) && stop == start + size => break,
            Err(reason) => return Err(damaged(&name, at - start, reason)),
        };
        let follows = match &last {
            None => header.point.index == index && header.point.hash == hash && header.previous == previous,
            Some(last) => header.point.index == last.index + 1 && header.previous == last.hash,
        };
        if !follows {
            return Err(damaged(&name, at - start, "the batch does not follow from the one before"));
        }
        let framed = usize::try_from(header.point.end - at).unwrap_or(usize::MAX);
        let bytes = file.read_at(at - start, framed).await?;
        whole(&bytes, shard, at, size).map_err(|reason| damaged(&name, at - start, reason))?;
        at = header.point.end;
        last = Some(header.point);
    }
    last.ok_or_else(|| damaged(&name, 0, "no batch stands in it"))
}

/// All names in the three directories.
async fn names<D: Disk>(disk: &D) -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for dir in ["log", "pages", "checkpoint"] {
        all.extend(disk.list(dir).await?.into_iter().map(|name| format!("{dir}/{name}")));
    }
    Ok(all)
}

/// Whether the store's own log has this segment for good, and the same.
fn is_kept<D: Disk>(log: &LogReader<D>, part: &Part, size: u64) -> bool {
    let settled = log.committed().min(log.durable());
    if part.kind != PartKind::Segment || part.len != size || part.number + size > settled {
        return false;
    }
    let Some(segment) = log.segments.segment(part.number) else { return false };
    // What is committed is the same on all; the first batch binds what stands before it, so this is a look at the rule.
    log.segments.first_header(&segment).is_ok_and(|header| header.point.hash == part.first.1)
}

async fn is_noted<D: Disk>(disk: &D, offer: &Offer) -> io::Result<bool> {
    if !disk.list("").await?.iter().any(|name| name == COPYING) {
        return Ok(false);
    }
    let file = disk.open(COPYING).await?;
    let len = usize::try_from(file.len()?).unwrap_or(0);
    Ok(file.read_at(0, len).await? == offer.identity())
}

async fn note<D: Disk>(disk: &D, offer: &Offer) -> io::Result<()> {
    if disk.list("").await?.iter().any(|name| name == COPYING_NEW) {
        disk.remove(COPYING_NEW).await?;
    }
    let file = disk.create(COPYING_NEW, 0).await?;
    file.write_at(0, &[offer.identity()]).await?;
    file.sync().await?;
    disk.rename(COPYING_NEW, COPYING).await?;
    disk.sync_dir("").await
}

/// Removes what came in and serves this copy no more.
async fn tidy<D: Disk>(disk: &D, offer: &Offer, same: bool, goes_on: bool) -> io::Result<()> {
    let whole: BTreeSet<u64> = offer
        .of(PartKind::Segment)
        .filter(|part| part.len == offer.segment_size)
        .map(|part| part.number)
        .collect();
    for dir in ["log", "pages", "checkpoint"] {
        let mut removed = false;
        for name in disk.list(dir).await? {
            let stale = match incoming(&name) {
                None if name == COPYING => !goes_on,
                None => dir == "checkpoint" && name == "incoming" && !same,
                // A whole segment is the same in every copy.
                Some(digits) if dir == "log" && name.len() == "incoming-".len() + digits.len() => {
                    segment_start(digits).is_none_or(|start| !whole.contains(&start))
                }
                Some(_) => !same,
            };
            if stale {
                disk.remove(&format!("{dir}/{name}")).await?;
                removed = true;
            }
        }
        if removed {
            disk.sync_dir(dir).await?;
        }
    }
    Ok(())
}

/// Removes all that came in; after the copy was put in place, or when none is to come.
pub(crate) async fn forget<D: Disk>(disk: &D) -> io::Result<()> {
    for dir in ["log", "pages", "checkpoint"] {
        for name in disk.list(dir).await? {
            if is_ours(&name) || (dir == "checkpoint" && name == "incoming") {
                disk.remove(&format!("{dir}/{name}")).await?;
            }
        }
        disk.sync_dir(dir).await?;
    }
    if disk.list("").await?.iter().any(|name| name == COPYING) {
        disk.remove(COPYING).await?;
    }
    disk.sync_dir("").await
}

/// The name under which the adopted checkpoint belongs into the store.
pub(crate) fn checkpoint_path(point: &LogPoint) -> String {
    checkpoint::base_path(point.index)
}
