//! The directory of backups, and the way back from it to a store.
//!
//! Owns: everything in that directory (`src/docs/record-format.md`). Promises: a backup counts when its manifest stands, and that is
//! renamed into place behind all that it names; dying at any step leaves every earlier backup as it was; what came in whole is not
//! wanted again; a restore counts when all of it is verified and durable, until then the directory that it goes to says so and is no
//! store. Does not know: who carries the bytes, what the log says.
//!
//! `backup` says whose backups these are: magic `DBKD`, u32 version 1, cluster and shard UUID, u64 segment size, CRC-64/NVME. Then
//! `backups/<20 digits>`, a manifest named by the index of its last batch; `log/<20 digits>`, the bytes of a segment as far as they are
//! backed up; `pages/<8 digits>-<16 hex>` and `checkpoint/<20 digits>-<16 hex>`, named by number and CRC-64/NVME. What comes in is called
//! `coming` until it is whole and synced. Backups share what is equal.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use crate::backup::{Known, Manifest};
use crate::checkpoint::read_chain;
use crate::copy::{CopyTarget, Part, PartKind, walk_segment};
use crate::disk::{Disk, File, damaged, fault};
use crate::format::{
    Batch, HEADER, LogPoint, NewBatch, Uuid, crc64, damaged_log, decode, encode, end_marker, framed, place,
    segment_of, segment_path, segment_start, stamp, whole,
};
use crate::genesis::Genesis;
use crate::hard_state::StateFile;
use crate::install::finish_install;
use crate::log::{Log, Options};
use crate::pages::PageId;
use crate::real::RealDisk;

const IDENTITY: &str = "backup";
const IDENTITY_NEW: &str = "backup.new";
const IDENTITY_MAGIC: [u8; 4] = *b"DBKD";
const IDENTITY_BYTES: usize = 4 + 4 + 16 + 16 + 8 + 8;
const DIRS: [&str; 4] = ["backups", "log", "pages", "checkpoint"];
const COMING: &str = "coming";
/// A store with this name in its directory is one that is being restored.
const RESTORING: &str = "restoring";
/// Read and written at once.
const CHUNK: usize = 1 << 20;
/// Unsynced bytes of a file that comes in.
const SYNC_EVERY: u64 = 32 << 20;

/// The directory of backups, held.
pub struct BackupDir<D: Disk = RealDisk> {
    disk: D,
    manifests: Vec<Manifest>,
    identity: Option<(Uuid, Uuid, u64)>,
    _lock: D::Lock,
}

fn manifest_path(manifest: &Manifest) -> String {
    format!("backups/{:020}", manifest.end.index)
}

/// Where a part lies.
pub(crate) fn part_path(part: &Part, digest: u64) -> String {
    match part.kind {
        PartKind::Segment => segment_path(part.number),
        PartKind::Pages => format!("pages/{:08}-{digest:016x}", part.number),
        PartKind::Checkpoint => format!("checkpoint/{:020}-{digest:016x}", part.number),
    }
}

fn dir_of(kind: PartKind) -> &'static str {
    match kind {
        PartKind::Segment => "log",
        PartKind::Pages => "pages",
        PartKind::Checkpoint => "checkpoint",
    }
}

fn refused(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason.to_string())
}

async fn read_whole<D: Disk>(disk: &D, path: &str) -> io::Result<Bytes> {
    let file = disk.open(path).await?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    file.read_at(0, len).await
}

/// Writes a small file under `by`, then gives it its name.
async fn put<D: Disk>(disk: &D, dir: &str, by: &str, path: &str, bytes: Bytes) -> io::Result<()> {
    if disk.list(dir).await?.iter().any(|name| by.ends_with(name) && by.len() <= dir.len() + 1 + name.len()) {
        disk.remove(by).await?; // left by an attempt that did not finish
    }
    let file = disk.create(by, 0).await?;
    file.write_at(0, &[bytes]).await?;
    file.sync().await?;
    disk.rename(by, path).await?;
    disk.sync_dir(dir).await
}

impl<D: Disk> BackupDir<D> {
    /// Takes the directory: one with backups, or an empty one.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it; `InvalidInput` when it holds something else; `InvalidData`, naming the file, when a
    /// manifest is damaged.
    pub async fn open(disk: &D) -> io::Result<BackupDir<D>> {
        let names = disk.list("").await?;
        let ours = names.iter().any(|name| name == IDENTITY);
        let foreign = names.iter().find(|name| !["LOCK", IDENTITY_NEW].contains(&name.as_str()));
        if let Some(name) = foreign.filter(|_| !ours) {
            return Err(refused(format_args!("it holds '{name}' and no backup: give an empty directory")));
        }
        let lock = disk.lock("LOCK").await.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another backup or restore is using it")
            }
            _ => error,
        })?;
        let mut dir = BackupDir { disk: disk.clone(), manifests: Vec::new(), identity: None, _lock: lock };
        if !ours {
            return Ok(dir);
        }
        dir.identity = Some(read_identity(&read_whole(disk, IDENTITY).await?)?);
        for name in disk.list("backups").await? {
            if name == COMING {
                continue;
            }
            let path = format!("backups/{name}");
            let manifest = Manifest::decode(&read_whole(disk, &path).await?)
                .map_err(|error| damaged(&path, 0, error))?;
            let whose = (manifest.cluster, manifest.shard, manifest.segment_size);
            if manifest_path(&manifest) != path || Some(whose) != dir.identity {
                return Err(damaged(&path, 0, "the manifest of another backup"));
            }
            dir.manifests.push(manifest);
        }
        Ok(dir) // by name, hence by index
    }

    /// The backups in it, oldest first.
    pub fn manifests(&self) -> &[Manifest] {
        &self.manifests
    }

    /// Where it lies.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// What need not come again.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn known(&self) -> io::Result<Known> {
        let Some((cluster, ..)) = self.identity else { return Ok(Known::default()) };
        let segments = segments_here(&self.disk).await?.into_iter().collect();
        let mut digests = Vec::new();
        for dir in ["pages", "checkpoint"] {
            let names = self.disk.list(dir).await?;
            digests.extend(
                names.iter().filter_map(|name| u64::from_str_radix(name.split_once('-')?.1, 16).ok()),
            );
        }
        Ok(Known {
            cluster: Some(cluster),
            end: self.manifests.last().map(|last| last.end),
            segments,
            digests,
        })
    }

    /// Begins a backup of what a source offers.
    ///
    /// # Errors
    /// `InvalidInput` when the backups here are of another log, or this one is older; what the disk says.
    pub async fn begin(self, manifest: Manifest) -> io::Result<BackupTarget<D>> {
        let disk = self.disk.clone();
        let whose = (manifest.cluster, manifest.shard, manifest.segment_size);
        if self.identity.is_some_and(|identity| identity != whose) {
            return Err(refused("it has backups of another cluster: give another directory"));
        }
        if self.manifests.last().is_some_and(|last| last.end.index > manifest.end.index) {
            return Err(refused("its newest backup has more than the broker: give another directory"));
        }
        for dir in DIRS {
            disk.create_dir(dir).await?;
            if disk.list(dir).await?.iter().any(|name| name == COMING) {
                disk.remove(&format!("{dir}/{COMING}")).await?;
            }
        }
        disk.sync_dir("").await?;
        if self.identity.is_none() {
            put(&disk, "", IDENTITY_NEW, IDENTITY, write_identity(whose)).await?;
        }
        let (segments, count) = (segments_here(&disk).await?, manifest.parts.len());
        Ok(BackupTarget { dir: self, manifest, segments, here: vec![false; count], coming: None })
    }
}

fn write_identity((cluster, shard, segment_size): (Uuid, Uuid, u64)) -> Bytes {
    let mut bytes = BytesMut::with_capacity(IDENTITY_BYTES);
    bytes.put_slice(&IDENTITY_MAGIC);
    bytes.put_u32_le(1);
    bytes.put_slice(&cluster);
    bytes.put_slice(&shard);
    bytes.put_u64_le(segment_size);
    let crc = crc64(&bytes);
    bytes.put_u64_le(crc);
    bytes.freeze()
}

fn read_identity(bytes: &[u8]) -> io::Result<(Uuid, Uuid, u64)> {
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if bytes.len() != IDENTITY_BYTES || u64_at(IDENTITY_BYTES - 8) != crc64(&bytes[..IDENTITY_BYTES - 8]) {
        return Err(damaged(IDENTITY, 0, "does not match its checksum"));
    }
    if bytes[..4] != IDENTITY_MAGIC || bytes[4..8] != 1_u32.to_le_bytes() {
        return Err(damaged(IDENTITY, 0, "backups of a version that this release does not read"));
    }
    let uuid = |at: usize| -> Uuid { bytes[at..at + 16].try_into().expect("sixteen bytes") };
    Ok((uuid(8), uuid(24), u64_at(40)))
}

/// Segments and how many bytes of each there are.
async fn segments_here<D: Disk>(disk: &D) -> io::Result<BTreeMap<u64, u64>> {
    let mut segments = BTreeMap::new();
    for name in disk.list("log").await? {
        if let Some(start) = segment_start(&name) {
            segments.insert(start, disk.open(&segment_path(start)).await?.len()?);
        }
    }
    Ok(segments)
}

/// A file that comes in.
struct Coming<F> {
    part: usize,
    file: F,
    at: u64,
    unsynced: u64,
    digest: Digest,
}

/// A backup that comes in.
pub struct BackupTarget<D: Disk = RealDisk> {
    dir: BackupDir<D>,
    manifest: Manifest,
    segments: BTreeMap<u64, u64>,
    here: Vec<bool>,
    coming: Option<Coming<D::File>>,
}

impl<D: Disk> BackupTarget<D> {
    /// What comes in.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn part(&self, number: usize) -> io::Result<Part> {
        let part = self.manifest.parts.get(number).filter(|_| !self.here[number]);
        part.map(|part| part.part.clone())
            .ok_or_else(|| refused(format_args!("part {number} was not asked for")))
    }

    /// The source says that this part is here already, a file other than a segment with that digest. It is looked at.
    ///
    /// # Errors
    /// `InvalidData` when it is not, or not the same.
    pub async fn same(&mut self, number: usize, digest: u64) -> io::Result<()> {
        let part = self.part(number)?;
        let path = part_path(&part, digest);
        let file = self.dir.disk.open(&path).await?;
        let len = file.len()?;
        if part.kind == PartKind::Segment {
            let head = file.read_at(0, HEADER).await?;
            let (shard, size) = (&self.manifest.shard, self.manifest.segment_size);
            let header =
                decode(&head, shard, part.number, size).map_err(|reason| damaged(&path, 0, reason))?;
            if len < part.len || (header.point.index, header.point.hash, header.previous) != part.first {
                return Err(damaged(&path, 0, "not the segment that the broker has"));
            }
        } else if len != part.len {
            return Err(damaged(&path, len.min(part.len), "not as long as it was"));
        }
        self.manifest.parts[number].digest = digest;
        self.here[number] = true;
        Ok(())
    }

    /// Takes bytes of a part; `None` stands for so many zeros. A part comes whole before the next, from its first byte or from where
    /// what is here of it ends. With its last byte it is verified, as far as it can be alone, and durable.
    ///
    /// # Errors
    /// `InvalidData`, naming file and offset, for what is damaged; what the disk says. What came in before stays.
    pub async fn write(&mut self, number: usize, offset: u64, bytes: Result<Bytes, u64>) -> io::Result<()> {
        let part = self.part(number)?;
        let len = bytes.as_ref().map_or_else(|zeros| *zeros, |bytes| bytes.len() as u64);
        if self.coming.is_none() {
            self.coming = Some(self.create(number, &part, offset).await?);
        }
        let Some(coming) = &mut self.coming else { unreachable!("set above") };
        if coming.part != number || coming.at != offset || len == 0 || len > part.len - offset {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{len} bytes at {offset} of part {number}, where {} of part {} is next",
                    coming.at, coming.part
                ),
            ));
        }
        match bytes {
            Ok(bytes) => {
                coming.digest.update(&bytes);
                coming.file.write_at(offset, &[bytes]).await?;
                coming.unsynced += len;
            }
            Err(mut zeros) => {
                while zeros > 0 {
                    let some = usize::try_from(zeros).unwrap_or(CHUNK).min(CHUNK);
                    coming.digest.update(&vec![0; some]);
                    zeros -= some as u64;
                }
            }
        }
        coming.at += len;
        if coming.unsynced >= SYNC_EVERY {
            coming.file.sync().await?;
            coming.unsynced = 0;
        }
        if coming.at == part.len { self.end_part(number, &part).await } else { Ok(()) }
    }

    /// A new file, with what is here of it already.
    async fn create(&self, number: usize, part: &Part, offset: u64) -> io::Result<Coming<D::File>> {
        let disk = &self.dir.disk;
        let path = format!("{}/{COMING}", dir_of(part.kind));
        if disk.list(dir_of(part.kind)).await?.iter().any(|name| name == COMING) {
            disk.remove(&path).await?;
        }
        let file = disk.create(&path, part.len).await?;
        let mut coming =
            Coming { part: number, file, at: 0, unsynced: 0, digest: Digest::new(CrcAlgorithm::Crc64Nvme) };
        let here = self.segments.get(&part.number).filter(|_| part.kind == PartKind::Segment);
        if offset > 0 && here == Some(&offset) {
            let before = disk.open(&segment_path(part.number)).await?;
            while coming.at < offset {
                let len = usize::try_from(offset - coming.at).unwrap_or(CHUNK).min(CHUNK);
                let bytes = before.read_at(coming.at, len).await?;
                coming.file.write_at(coming.at, &[bytes]).await?;
                coming.at += len as u64;
            }
        }
        Ok(coming)
    }

    async fn end_part(&mut self, number: usize, part: &Part) -> io::Result<()> {
        let Some(Coming { file, digest, .. }) = self.coming.take() else { return Ok(()) };
        file.sync().await?;
        let digest = match part.kind {
            PartKind::Segment => {
                let last =
                    walk_segment(&file, &self.manifest.shard, self.manifest.segment_size, part).await?;
                let next = self
                    .manifest
                    .of(PartKind::Segment)
                    .find(|next| next.number == part.number + self.manifest.segment_size);
                if next.is_some_and(|next| next.first.2 != last.hash) {
                    return Err(damaged_log(
                        last.position,
                        self.manifest.segment_size,
                        "the segment behind it follows another one",
                    ));
                }
                0
            }
            PartKind::Pages | PartKind::Checkpoint => digest.finalize(),
        };
        drop(file);
        let disk = &self.dir.disk;
        disk.rename(&format!("{}/{COMING}", dir_of(part.kind)), &part_path(part, digest)).await?;
        self.manifest.parts[number].digest = digest;
        self.here[number] = true;
        Ok(())
    }

    /// All parts are here: from here on the backup counts.
    ///
    /// # Errors
    /// `InvalidInput` while parts are missing; what the disk says.
    pub async fn finish(self) -> io::Result<Manifest> {
        if self.coming.is_some() || self.here.iter().any(|here| !here) {
            return Err(refused("the backup is not whole"));
        }
        let BackupTarget { mut dir, manifest, .. } = self;
        for name in &DIRS[1..] {
            dir.disk.sync_dir(name).await?;
        }
        let by = format!("backups/{COMING}");
        put(&dir.disk, "backups", &by, &manifest_path(&manifest), manifest.encode()).await?;
        dir.manifests.retain(|other| other.end.index != manifest.end.index);
        dir.manifests.push(manifest.clone());
        tidy(&dir.disk, &dir.manifests).await?;
        Ok(manifest)
    }
}

/// Removes what no backup needs: left by one that was interrupted.
async fn tidy<D: Disk>(disk: &D, manifests: &[Manifest]) -> io::Result<()> {
    let parts = manifests.iter().flat_map(|manifest| &manifest.parts);
    let needed: BTreeSet<String> = parts.map(|part| part_path(&part.part, part.digest)).collect();
    for dir in &DIRS[1..] {
        for name in disk.list(dir).await? {
            let path = format!("{dir}/{name}");
            if !needed.contains(&path) {
                disk.remove(&path).await?;
            }
        }
    }
    Ok(())
}

/// The log of a backup, batch by batch, across all that the directory has.
pub(crate) struct Chain<'a, D: Disk> {
    disk: &'a D,
    shard: Uuid,
    size: u64,
    open: Option<(u64, D::File, u64)>,
    pub(crate) last: Option<LogPoint>,
}

impl<'a, D: Disk> Chain<'a, D> {
    pub(crate) fn new(disk: &'a D, manifest: &Manifest, from: Option<LogPoint>) -> Chain<'a, D> {
        Chain { disk, shard: manifest.shard, size: manifest.segment_size, open: None, last: from }
    }

    /// The batch that follows; `None` where what the directory has ends. It is passed by [`Chain::pass`] only.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Batch>> {
        let (index, hash) = self.last.map_or((0, 0), |last| (last.index + 1, last.hash));
        let mut position = self.last.map_or(0, |last| last.end);
        loop {
            let start = segment_of(position, self.size);
            if self.open.as_ref().is_none_or(|(open, ..)| *open != start) {
                let file = match self.disk.open(&segment_path(start)).await {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    file => file?,
                };
                let len = file.len()?;
                self.open = Some((start, file, len));
            }
            let Some((_, file, len)) = &self.open else { unreachable!("set above") };
            let at = position - start;
            let Some(rest) = len.checked_sub(at).filter(|rest| *rest > 0) else { return Ok(None) };
            let rest = usize::try_from(rest).unwrap_or(usize::MAX);
            let bad = |reason: &str| Err(damaged_log(position, self.size, reason));
            let head = file.read_at(at, HEADER.min(rest)).await?;
            let header = match decode(&head, &self.shard, position, self.size) {
                Ok(header) => header,
                Err(_) if at > 0 && head.starts_with(&end_marker(position)) => {
                    position = start + self.size;
                    continue;
                }
                Err(reason) => return bad(reason),
            };
            if (header.point.index, header.previous) != (index, hash) {
                return bad("the batch does not follow from the one before");
            }
            let framed = usize::try_from(header.point.end - position).unwrap_or(usize::MAX);
            if framed > rest {
                return bad("the batch is cut short");
            }
            let bytes = file.read_at(at, framed).await?;
            return match whole(&bytes, &self.shard, position, self.size) {
                Ok((_, batch)) => Ok(Some(batch)),
                Err(reason) => bad(reason),
            };
        }
    }

    pub(crate) fn pass(&mut self, batch: &Batch) {
        self.last = Some(batch.point);
    }
}

/// How far a restore goes.
pub enum Until<'a> {
    /// All of the newest backup.
    Newest,
    /// Batches that end at this position of the log or before it.
    Position(u64),
    /// Batches up to this time, ms since 1970.
    Time {
        /// The time.
        ms: u64,
        /// Time of a batch, where it has one.
        of_batch: &'a dyn Fn(&Batch) -> Option<u64>,
        /// Time of a checkpoint's objects.
        of_state: &'a dyn Fn(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<u64>,
    },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The backup whose checkpoint it began with.
    pub manifest: Manifest,
    /// The last batch that was restored.
    pub last: LogPoint,
}

/// Checkpoint files of a manifest, by their names here.
pub(crate) fn checkpoint_files(manifest: &Manifest) -> Vec<(u64, String)> {
    let parts = manifest.parts.iter().filter(|part| part.part.kind == PartKind::Checkpoint);
    parts.map(|part| (part.part.number, part_path(&part.part, part.digest))).collect()
}

/// The checkpoint of a backup; `None` without one.
pub(crate) async fn read_state<D: Disk>(
    disk: &D,
    manifest: &Manifest,
) -> io::Result<Option<(LogPoint, BTreeMap<Bytes, Bytes>)>> {
    let Some(point) = manifest.point else { return Ok(None) };
    let (found, objects) = read_chain(disk, &manifest.store, &checkpoint_files(manifest)).await?;
    if found != point {
        return Err(damaged(&manifest_path(manifest), 0, "its checkpoint stands for something else"));
    }
    Ok(Some((point, objects)))
}

/// The backup to begin with.
async fn choose<'a, D: Disk>(dir: &'a BackupDir<D>, until: &Until<'_>) -> io::Result<&'a Manifest> {
    let Some(newest) = dir.manifests.last() else { return Err(refused("there is no backup in it")) };
    match until {
        Until::Newest => Ok(newest),
        Until::Position(position) => {
            if *position > newest.end.end {
                return Err(refused(format_args!("the newest backup ends at position {}", newest.end.end)));
            }
            let begins = |manifest: &&Manifest| manifest.point.map_or(0, |point| point.end) <= *position;
            dir.manifests.iter().rfind(begins).ok_or_else(|| {
                let first = dir.manifests.first().and_then(|first| first.point).map_or(0, |point| point.end);
                refused(format_args!("the oldest state in it stands at position {first}"))
            })
        }
        Until::Time { ms, of_state, .. } => {
            let mut oldest = 0;
            for manifest in dir.manifests.iter().rev() {
                let Some((point, objects)) = read_state(&dir.disk, manifest).await? else {
                    return Ok(manifest);
                };
                oldest = of_state(point, objects)?;
                if oldest <= *ms {
                    return Ok(manifest);
                }
            }
            Err(refused(format_args!("the oldest state in it is of {oldest} ms since 1970")))
        }
    }
}

/// The last batch to be restored.
async fn find_end<D: Disk>(
    dir: &BackupDir<D>,
    manifest: &Manifest,
    until: &Until<'_>,
) -> io::Result<LogPoint> {
    let mut chain = Chain::new(&dir.disk, manifest, manifest.point);
    let newest = dir.manifests.last().map_or(manifest.end, |newest| newest.end);
    loop {
        let here = chain.last.map_or(0, |last| last.end);
        let enough = match until {
            Until::Newest => here >= manifest.end.end,
            Until::Position(position) => here >= *position,
            Until::Time { .. } => here >= newest.end,
        };
        if enough {
            break;
        }
        let Some(batch) = chain.next().await? else {
            return Err(match until {
                Until::Newest => damaged_log(here, manifest.segment_size, "the backup's log ends early"),
                _ => refused(format_args!(
                    "the log behind position {here} was given up before the next backup: earlier positions and those \
                     behind its checkpoint can be restored"
                )),
            });
        };
        let beyond = match until {
            Until::Newest => false,
            Until::Position(position) => batch.point.end > *position,
            Until::Time { ms, of_batch, .. } => of_batch(&batch).is_some_and(|time| time > *ms),
        };
        if beyond {
            break;
        }
        chain.pass(&batch);
    }
    let last = chain.last.ok_or_else(|| refused("nothing stands before that"))?;
    if matches!(until, Until::Newest) && last != manifest.end {
        return Err(damaged_log(
            last.position,
            manifest.segment_size,
            "not the batch that the backup ends with",
        ));
    }
    Ok(last)
}

/// Empties a directory in which a restore did not finish, or refuses one that holds something.
async fn clear<D: Disk>(to: &D) -> io::Result<()> {
    let names = to.list("").await?;
    let unfinished = is_unfinished(&names);
    if let Some(name) = names.iter().find(|name| *name != "LOCK" && !unfinished) {
        return Err(refused(format_args!("the data directory holds '{name}': a restore makes a new one")));
    }
    if !unfinished {
        let file = to.create(RESTORING, 0).await?;
        file.sync().await?;
        to.sync_dir("").await?;
    }
    for dir in ["log", "pages", "checkpoint"] {
        to.create_dir(dir).await?;
        for name in to.list(dir).await? {
            to.remove(&format!("{dir}/{name}")).await?;
        }
    }
    for name in names.iter().filter(|name| !["LOCK", RESTORING].contains(&name.as_str())) {
        to.remove(name).await?;
    }
    Ok(())
}

/// Whether a directory with these files is one that a restore did not finish: no store, whatever else is in it.
#[must_use]
pub fn is_unfinished(names: &[String]) -> bool {
    names.iter().any(|name| name == RESTORING)
}

/// Makes a store of a backup in an empty directory that the caller has locked. `genesis` says who the new store is, `used` reads the
/// index pages (number, owner) that a checkpoint's objects name, `closing` makes the batch that goes behind the last one restored, and
/// the vote that goes with it. `progress` is told bytes done and bytes to do.
///
/// # Errors
/// `InvalidInput` for what the backup does not have, or a directory that is not empty; `InvalidData`, naming file and offset, for
/// what is damaged; what the disk says. The directory is no store then, and may be restored into again.
pub async fn restore<D: Disk, T: Disk>(
    dir: &BackupDir<D>,
    until: &Until<'_>,
    to: &T,
    genesis: impl FnOnce(&Manifest) -> Genesis,
    used: impl FnOnce(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>>,
    closing: impl FnOnce(LogPoint) -> (NewBatch, Bytes),
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Restored> {
    let manifest = choose(dir, until).await?;
    let last = find_end(dir, manifest, until).await?;
    clear(to).await?;
    let genesis = genesis(manifest);
    genesis.create(to).await?;
    let from = manifest.point.map_or(0, |point| point.end);
    let total = manifest.offer().map_or(0, |offer| offer.bytes()) + (last.end - from);
    let mut done = 0;
    if manifest.point.is_some() {
        install(dir, manifest, to, &genesis, used, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })
        .await?;
    }
    let (batch, vote) = closing(last);
    let mut tail = Tail { to, size: manifest.segment_size, open: None };
    let mut at = from;
    while at < last.end {
        let start = segment_of(at, manifest.segment_size);
        let source = dir.disk.open(&segment_path(start)).await?;
        let stop = last.end.min(start + manifest.segment_size);
        while at < stop {
            let len = usize::try_from(stop - at).unwrap_or(CHUNK).min(CHUNK);
            tail.write(at, source.read_at(at - start, len).await?).await?;
            at += len as u64;
            done += len as u64;
            progress(done, total);
        }
    }
    let end = tail.close(&genesis.shard, last, &batch).await?;
    let mut state = StateFile::open(to, &genesis.store).await?;
    let mut now = state.state.clone();
    (now.vote, now.synced_to) = (vote, end);
    state.save(now).await?;
    to.remove(RESTORING).await?;
    to.sync_dir("").await?;
    Ok(Restored { manifest: manifest.clone(), last })
}

/// Puts the checkpoint and what it needs in place, verified, as a copy from another node is.
async fn install<D: Disk, T: Disk>(
    dir: &BackupDir<D>,
    manifest: &Manifest,
    to: &T,
    genesis: &Genesis,
    used: impl FnOnce(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>>,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let Some(offer) = manifest.offer() else { return Ok(()) };
    let opened = Log::open(to, Options::default(), genesis, None).await?;
    let begun = CopyTarget::begin(to, genesis, &opened.reader, offer, None).await?;
    drop(opened);
    let mut target = begun.ok_or_else(|| refused("the new store is not empty"))?;
    for (number, from) in target.wanted() {
        let part = target.offer().parts[number].clone();
        let same = |other: &&crate::backup::BackupPart| {
            (other.part.kind, other.part.number) == (part.kind, part.number)
        };
        let digest = manifest.parts.iter().find(same).map_or(0, |part| part.digest);
        let path = part_path(&part, digest);
        let file = dir.disk.open(&path).await?;
        let mut found = Digest::new(CrcAlgorithm::Crc64Nvme);
        let mut at = from;
        while at < part.len {
            let len = usize::try_from(part.len - at).unwrap_or(CHUNK).min(CHUNK);
            let bytes = file.read_at(at, len).await?;
            found.update(&bytes);
            let zeros = bytes.iter().all(|byte| *byte == 0);
            at += len as u64;
            if at == part.len && part.kind != PartKind::Segment && found.finalize() != digest {
                return Err(damaged(&path, 0, "does not match its checksum"));
            }
            target.write(number, at - len as u64, if zeros { Err(len as u64) } else { Ok(bytes) }).await?;
            progress(len as u64);
        }
    }
    target.verify(used).await?;
    target.commit().await?;
    finish_install(to, genesis).await.map(drop)
}

/// Writes the end of a log whose beginning is in place.
struct Tail<'a, T: Disk> {
    to: &'a T,
    size: u64,
    open: Option<(u64, T::File)>,
}

impl<T: Disk> Tail<'_, T> {
    /// The segment of that position; a new one where there is none.
    async fn segment(&mut self, position: u64) -> io::Result<&T::File> {
        let start = segment_of(position, self.size);
        if self.open.as_ref().is_none_or(|(open, _)| *open != start) {
            if let Some((_, file)) = self.open.take() {
                file.sync().await?;
            }
            let path = segment_path(start);
            let file = match self.to.open(&path).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.to.create(&path, self.size).await
                }
                file => file,
            }?;
            self.open = Some((start, file));
        }
        self.open
            .as_ref()
            .map(|(_, file)| file)
            .ok_or_else(|| fault("open", "log", None, io::ErrorKind::NotFound.into()))
    }

    async fn write(&mut self, position: u64, bytes: Bytes) -> io::Result<()> {
        let at = position % self.size;
        self.segment(position).await?.write_at(at, &[bytes]).await
    }

    /// Puts a batch behind the last one and makes all durable; where the log ends then.
    async fn close(mut self, shard: &Uuid, last: LogPoint, batch: &NewBatch) -> io::Result<u64> {
        let position = place(last.end, framed(batch.payload.len()), self.size);
        if position != last.end {
            self.write(last.end, Bytes::copy_from_slice(&end_marker(last.end))).await?;
        }
        let (mut header, point) = encode(batch, shard, position, last.hash);
        stamp(&mut header, last.end);
        let mut bytes = BytesMut::from(&header[..]);
        bytes.put_slice(&batch.payload);
        bytes.resize(usize::try_from(point.end - position).unwrap_or(bytes.len()), 0);
        self.write(position, bytes.freeze()).await?;
        if let Some((_, file)) = self.open.take() {
            file.sync().await?;
        }
        self.to.sync_dir("log").await?;
        Ok(point.end)
    }
}
