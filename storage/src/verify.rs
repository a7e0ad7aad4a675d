//! Reading everything there is of a store or a backup, to know that it is as it was written.
//!
//! Owns: what is looked at: each batch of each segment (chain and checksums), the checkpoint's files, each index page that it names.
//! Promises: changes nothing; every place that is wrong is named, not only the first; what was read can be looked at further
//! ([`Sound`]). Does not know: what batches and objects say; whoever calls follows the references in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::backup::Manifest;
use crate::backup_dir::{BackupDir, part_path, read_state};
use crate::checkpoint::CheckpointStore;
use crate::copy::{Part, PartKind, walk_segment};
use crate::disk::{Disk, File, damaged};
use crate::format::{HEADER, LogPoint, decode, segment_path};
use crate::genesis::Genesis;
use crate::hard_state::StateFile;
use crate::pages::{self, FILE_PAGES, PageId};
use crate::reader::LogReader;
use crate::real::RealDisk;
use crate::recovery;
use crate::segments::{Segment, Segments};

const CHUNK: usize = 1 << 20;

/// Reads the index pages (number, owner) that a checkpoint's objects name.
pub type PagesNamed<'a> = dyn Fn(&BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>> + 'a;

/// What a verification finds, and how far it is.
#[derive(Default)]
pub struct Findings<'a> {
    /// What is wrong, each with its place.
    pub wrong: Vec<String>,
    /// Segments, checkpoint files and index pages that were read.
    pub read: (u64, u64, u64),
    /// Bytes that were read.
    pub bytes: u64,
    progress: Option<Box<dyn FnMut(u64) + 'a>>,
    /// Files of a backup that were read already, with their lengths.
    seen: BTreeSet<(String, u64)>,
}

impl<'a> Findings<'a> {
    /// None yet; `progress` is told the bytes read so far.
    pub fn told(progress: impl FnMut(u64) + 'a) -> Self {
        Findings { progress: Some(Box::new(progress)), ..Findings::default() }
    }

    /// Damage is noted; what the disk refuses ends it.
    fn note<T>(&mut self, found: io::Result<T>) -> io::Result<Option<T>> {
        match found {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) =>
            {
                self.wrong.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn passed(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(progress) = &mut self.progress {
            progress(self.bytes);
        }
    }
}

/// Index pages, for reading only.
pub struct PagesRead<D: Disk = RealDisk>(BTreeMap<u64, D::File>);

impl<D: Disk> PagesRead<D> {
    /// A page's content.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged or another owner's; `NotFound`.
    pub fn read(&self, id: PageId, owner: u64) -> io::Result<Bytes> {
        match self.0.get(&(id / FILE_PAGES)) {
            Some(file) => pages::read(file, id, owner),
            None => Err(damaged(&pages::path(id / FILE_PAGES), 0, "the page file is missing")),
        }
    }
}

/// A store or backup whose files are as they were written.
pub struct Sound<D: Disk = RealDisk> {
    /// Its log.
    pub log: LogReader<D>,
    /// Its index pages.
    pub pages: PagesRead<D>,
    /// Its checkpoint.
    pub state: Option<(LogPoint, BTreeMap<Bytes, Bytes>)>,
    /// The last batch.
    pub end: Option<LogPoint>,
}

fn reader<D: Disk>(
    genesis: (&crate::format::Uuid, u64),
    files: Vec<Segment<D::File>>,
    end: u64,
) -> LogReader<D> {
    let segments = Segments::new(*genesis.0, genesis.1, files, end);
    segments.set_committed(end);
    LogReader { segments: Arc::new(segments) }
}

/// The first batch of a segment, as a part says it.
async fn first_of<F: File>(
    file: &F,
    shard: &crate::format::Uuid,
    size: u64,
    start: u64,
) -> io::Result<(u64, u64, u64)> {
    let head = file.read_at(0, HEADER).await?;
    let header =
        decode(&head, shard, start, size).map_err(|reason| damaged(&segment_path(start), 0, reason))?;
    Ok((header.point.index, header.point.hash, header.previous))
}

/// Reads a segment up to `len`; `before` is the last batch of the one in front of it, if that is there.
async fn look_at_segment<F: File>(
    file: &F,
    (shard, size): (&crate::format::Uuid, u64),
    (start, len): (u64, u64),
    before: Option<(u64, LogPoint)>,
) -> io::Result<LogPoint> {
    let first = first_of(file, shard, size, start).await?;
    if let Some((_, last)) = before.filter(|(segment, _)| segment + size == start)
        && (first.0, first.2) != (last.index + 1, last.hash)
    {
        return Err(damaged(&segment_path(start), 0, "it does not follow from the segment before"));
    }
    walk_segment(file, shard, size, &Part { kind: PartKind::Segment, number: start, len, first }).await
}

async fn look_at_pages<D: Disk>(
    files: &PagesRead<D>,
    named: Vec<(PageId, u64)>,
    findings: &mut Findings<'_>,
) -> io::Result<()> {
    for (id, owner) in named {
        findings.note(files.read(id, owner))?;
        findings.read.2 += 1;
        if id % 256 == 0 {
            findings.passed(256 * pages::PAGE as u64);
        }
    }
    Ok(())
}

/// Reads all of a closed store; `None`: its files alone are too wrong to go on.
///
/// # Errors
/// What the disk says, other than damage.
pub async fn verify_store<D: Disk>(
    disk: &D,
    genesis: &Genesis,
    named: &PagesNamed<'_>,
    findings: &mut Findings<'_>,
) -> io::Result<Option<Sound<D>>> {
    let Some(state) = findings.note(StateFile::open(disk, &genesis.store).await)? else { return Ok(None) };
    let state = state.state;
    let loaded = CheckpointStore::look(disk, genesis.store, state.floor.map(|floor| floor.index)).await;
    let Some(loaded) = findings.note(loaded)? else { return Ok(None) };
    let mut files = BTreeMap::new();
    for name in disk.list("pages").await? {
        let path = format!("pages/{name}");
        if let Some(number) = name.parse::<u64>().ok().filter(|number| pages::path(*number) == path) {
            files.insert(number, disk.open(&path).await?);
        }
    }
    let (files, mut point) = (PagesRead(files), None);
    if let Some(loaded) = &loaded {
        findings.wrong.extend(loaded.passed_over.iter().cloned());
        findings.read.1 += 1;
        point = Some(loaded.point);
        if let Some(named) = findings.note(named(&loaded.objects))? {
            look_at_pages(&files, named, findings).await?;
        }
    }
    let Some(found) = findings.note(recovery::examine(disk, genesis, &state, point).await)? else {
        return Ok(None);
    };
    let (end, size) = (found.walk.last, genesis.segment_size);
    let stop = end.map_or(0, |end| end.end);
    let mut before = None;
    for (start, segment) in found.files.range(..stop) {
        let len = size.min(stop - start);
        let looked = look_at_segment(&segment.file, (&genesis.shard, size), (*start, len), before).await;
        before = findings.note(looked)?.map(|last| (*start, last));
        findings.read.0 += 1;
        findings.passed(len);
    }
    let segments = found.files.into_values().filter(|segment| segment.start < stop).collect();
    let log = reader((&genesis.shard, size), segments, stop);
    Ok(Some(Sound { log, pages: files, state: loaded.map(|l| (l.point, l.objects)), end }))
}

/// Reads all of one backup; files that it shares with one that was read with the same `findings` are not read again. `None`: its
/// files alone are too wrong to go on.
///
/// # Errors
/// What the disk says, other than damage.
pub async fn verify_backup<D: Disk>(
    dir: &BackupDir<D>,
    manifest: &Manifest,
    named: &PagesNamed<'_>,
    findings: &mut Findings<'_>,
) -> io::Result<Option<Sound<D>>> {
    let (disk, size, wrong) = (dir.disk(), manifest.segment_size, findings.wrong.len());
    let (mut segments, mut files, mut before) = (Vec::new(), BTreeMap::new(), None);
    for known in &manifest.parts {
        let (part, path) = (&known.part, part_path(&known.part, known.digest));
        let Some(file) = findings.note(disk.open(&path).await)? else { continue };
        let is_new = findings.seen.insert((path.clone(), part.len));
        match part.kind {
            PartKind::Segment => {
                let looked =
                    look_at_segment(&file, (&manifest.shard, size), (part.number, part.len), before).await;
                let last = findings.note(looked)?;
                if last.is_some_and(|last| part.number + part.len == manifest.end.end && last != manifest.end)
                {
                    findings.wrong.push(format!("{path}: not the batch that the backup ends with"));
                }
                before = last.map(|last| (part.number, last));
                findings.read.0 += u64::from(is_new);
                segments.push(Segment::new(part.number, file));
            }
            PartKind::Pages | PartKind::Checkpoint => {
                if is_new {
                    let looked = digest_of(&file, part.len).await;
                    if findings.note(looked)?.is_some_and(|digest| digest != known.digest) {
                        findings.wrong.push(damaged(&path, 0, "does not match its checksum").to_string());
                    }
                }
                match part.kind {
                    PartKind::Pages => drop(files.insert(part.number, file)),
                    _ => findings.read.1 += u64::from(is_new),
                }
            }
        }
        if is_new {
            findings.passed(part.len);
        }
    }
    let files = PagesRead(files);
    let Some(state) = findings.note(read_state(disk, manifest).await)? else { return Ok(None) };
    if let Some((_, objects)) = &state
        && let Some(named) = findings.note(named(objects))?
    {
        look_at_pages(&files, named, findings).await?;
    }
    if findings.wrong.len() > wrong {
        return Ok(None);
    }
    let log = reader((&manifest.shard, size), segments, manifest.end.end);
    Ok(Some(Sound { log, pages: files, state, end: Some(manifest.end) }))
}

async fn digest_of<F: File>(file: &F, len: u64) -> io::Result<u64> {
    if file.len()? != len {
        return Err(damaged(file.path(), len, "not as long as it was"));
    }
    let (mut digest, mut at) = (Digest::new(CrcAlgorithm::Crc64Nvme), 0);
    while at < len {
        let some = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        digest.update(&file.read_at(at, some).await?);
        at += some as u64;
    }
    Ok(digest.finalize())
}
