//! Index pages: immutable pages of 4096 bytes in shared files, so that no queue needs a file of its own.
//!
//! Owns: `pages/<8 digits>`, files of [`FILE_PAGES`] pages, and which pages are in use. Promises: a page read is the page that was
//! written under that number and owner, or an error naming file and offset; a page is reused only when no durable checkpoint
//! names it. Does not know: what a page holds, which queue it belongs to, where checkpoints are.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | CRC-64/NVME of the page number (8 bytes) and bytes 8..4096 |
//! | 8 | 8 | owner |
//! | 16 | 4080 | content, opaque; a shorter one is followed by zeros |
//!
//! The owner should never be given twice for different content (a queue's unique id and the first entry of the page, say): it is
//! what tells a reused page from the one an old checkpoint meant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};

use crate::disk::{Disk, File, damaged, fault};
use crate::format::crc64;
use crate::queue::lock;
use crate::real::RealDisk;

/// Bytes of a page on disk.
pub const PAGE: usize = 4096;
/// Bytes of a page that are the caller's.
pub const PAGE_CONTENT: usize = PAGE - 16;
/// Pages in one file (16 MiB).
pub const FILE_PAGES: u64 = 4096;
const PREPARING: &str = "pages/preparing";

/// The number of a page. Page 0 is the first one of the first file.
pub type PageId = u64;

/// A page about to be written.
#[derive(Clone, Debug)]
pub struct NewPage {
    /// From [`PageStore::allocate`].
    pub id: PageId,
    /// Checked on every read.
    pub owner: u64,
    /// At most [`PAGE_CONTENT`] bytes.
    pub content: Bytes,
}

/// Pages freed before a checkpoint began; see [`PageStore::checkpoint_started`].
#[derive(Debug)]
#[must_use]
pub struct FreedBefore {
    stage: u64,
}

struct Shared<F> {
    files: RwLock<BTreeMap<u64, Arc<F>>>,
    space: std::sync::Mutex<Space>,
}

#[derive(Default)]
struct Space {
    /// Pages in the files there are.
    size: u64,
    /// Free runs: first page -> number of pages. Runs do not touch.
    free: BTreeMap<PageId, u64>,
    /// Freed, but a durable checkpoint may still name them: (stage, pages), oldest first.
    freed: VecDeque<(u64, Vec<PageId>)>,
    stage: u64,
    /// Copies that are being read: what the newest checkpoint names stays.
    holds: usize,
}

impl Space {
    fn release(&mut self, first: PageId, count: u64) {
        let (mut first, mut count) = (first, count);
        if let Some((&before, &length)) = self.free.range(..first).next_back() {
            assert!(before + length <= first, "page {first} freed twice");
            if before + length == first {
                self.free.remove(&before);
                (first, count) = (before, length + count);
            }
        }
        if let Some((&after, &length)) = self.free.range(first..).next() {
            assert!(first + count <= after, "page {after} freed twice");
            if first + count == after {
                self.free.remove(&after);
                count += length;
            }
        }
        self.free.insert(first, count);
    }

    /// The first run long enough: keeps the files dense at their beginning.
    fn take(&mut self, count: u64) -> Option<PageId> {
        let (&first, &length) = self.free.iter().find(|&(_, &length)| length >= count)?;
        self.free.remove(&first);
        if length > count {
            self.free.insert(first + count, length - count);
        }
        Some(first)
    }
}

/// The pages of a store. Writing is for one task (maintenance); [`PageReader`] is for everybody.
pub struct PageStore<D: Disk = RealDisk> {
    disk: D,
    shared: Arc<Shared<D::File>>,
    /// Files written to since the last sync.
    dirty: BTreeSet<u64>,
}

/// Page files that a copy reads.
pub(crate) struct HeldPages<F> {
    /// By number, from 0.
    pub(crate) files: Vec<Arc<F>>,
    shared: Arc<Shared<F>>,
}

impl<F> Drop for HeldPages<F> {
    fn drop(&mut self) {
        lock(&self.shared.space).holds -= 1;
    }
}

/// Reads pages; cheap to clone, usable on every thread, never waits for anything but the disk.
pub struct PageReader<D: Disk = RealDisk> {
    shared: Arc<Shared<D::File>>,
}

impl<D: Disk> Clone for PageReader<D> {
    fn clone(&self) -> Self {
        PageReader { shared: self.shared.clone() }
    }
}

/// Bytes of a page file.
pub(crate) const FILE_BYTES: u64 = FILE_PAGES * PAGE as u64;

/// Verifies that a file holds these pages (id, owner), all of them its own.
pub(crate) fn verify<F: File>(file: &F, pages: &[(PageId, u64)]) -> io::Result<()> {
    pages.iter().try_for_each(|&(id, owner)| read(file, id, owner).map(drop))
}

/// Reads a page's content from its file.
pub(crate) fn read<F: File>(file: &F, id: PageId, owner: u64) -> io::Result<Bytes> {
    let bytes = file.read_at_sync(offset(id), PAGE)?;
    check(&bytes, id, owner).map_err(|reason| damaged(file.path(), offset(id), reason))?;
    Ok(bytes.slice(16..))
}

/// Names a page file.
pub(crate) fn path(file: u64) -> String {
    format!("pages/{file:08}")
}

fn offset(id: PageId) -> u64 {
    id % FILE_PAGES * PAGE as u64
}

fn checksum(id: PageId, bytes: &[u8]) -> u64 {
    // The number is part of it: a page written to, or read from, the wrong place does not verify.
    let mut covered = Vec::with_capacity(PAGE);
    covered.extend_from_slice(&id.to_le_bytes());
    covered.extend_from_slice(&bytes[8..]);
    crc64(&covered)
}

fn encode(page: &NewPage) -> Bytes {
    let mut bytes = BytesMut::zeroed(PAGE);
    bytes[8..16].copy_from_slice(&page.owner.to_le_bytes());
    bytes[16..16 + page.content.len()].copy_from_slice(&page.content);
    let crc = checksum(page.id, &bytes);
    bytes[..8].copy_from_slice(&crc.to_le_bytes());
    bytes.freeze()
}

impl<D: Disk> PageStore<D> {
    /// Opens the page files. `used` are the pages the loaded checkpoint names; all others are free.
    pub async fn open(disk: &D, used: impl IntoIterator<Item = PageId>) -> io::Result<PageStore<D>> {
        let mut files = BTreeMap::new();
        for name in disk.list("pages").await? {
            let full = format!("pages/{name}");
            if full == PREPARING {
                disk.remove(&full).await?;
                continue;
            }
            let number = name.parse::<u64>().ok().filter(|&number| path(number) == full);
            let Some(number) = number else { continue };
            let file = disk.open(&full).await?;
            let len = file.len()?;
            if len != FILE_PAGES * PAGE as u64 {
                return Err(damaged(&full, len, format_args!("not a file of {FILE_PAGES} pages")));
            }
            files.insert(number, Arc::new(file));
        }
        let size = files.len() as u64 * FILE_PAGES;
        if let Some(missing) = (0..files.len() as u64).find(|number| !files.contains_key(number)) {
            return Err(damaged(&path(missing), 0, "the page file is missing"));
        }
        let used: BTreeSet<PageId> = used.into_iter().collect();
        if let Some(&beyond) = used.range(size..).next() {
            return Err(damaged(&path(beyond / FILE_PAGES), offset(beyond), "a page in use is missing"));
        }
        let mut space = Space { size, ..Space::default() };
        let mut next = 0;
        for id in used.into_iter().chain([size]) {
            if id > next {
                space.free.insert(next, id - next);
            }
            next = id + 1;
        }
        let shared = Arc::new(Shared { files: RwLock::new(files), space: space.into() });
        Ok(PageStore { disk: disk.clone(), shared, dirty: BTreeSet::new() })
    }

    /// A reader for other threads.
    pub fn reader(&self) -> PageReader<D> {
        PageReader { shared: self.shared.clone() }
    }

    /// Takes `count` consecutive pages and answers the first. Makes a new file when needed: `StorageFull` means that the
    /// disk is full and nothing has changed.
    pub async fn allocate(&mut self, count: u64) -> io::Result<PageId> {
        assert!((1..=FILE_PAGES).contains(&count), "{count} pages do not fit into a file");
        loop {
            let size = {
                let mut space = lock(&self.shared.space);
                if let Some(first) = space.take(count) {
                    return Ok(first);
                }
                space.size
            };
            self.grow(size / FILE_PAGES).await?;
            let mut space = lock(&self.shared.space);
            space.size += FILE_PAGES;
            space.release(size, FILE_PAGES);
        }
    }

    async fn grow(&self, number: u64) -> io::Result<()> {
        if self.disk.list("pages").await?.iter().any(|name| name == "preparing") {
            self.disk.remove(PREPARING).await?; // left by an attempt that failed half-way
        }
        let file = self.disk.create(PREPARING, FILE_PAGES * PAGE as u64).await?;
        // The length before the name: a short file under a page file's name counts as damage.
        file.sync().await?;
        self.disk.rename(PREPARING, &path(number)).await?;
        self.disk.sync_dir("pages").await?;
        let file = self.disk.open(&path(number)).await?;
        self.shared.files.write().expect("a log thread panicked").insert(number, Arc::new(file));
        Ok(())
    }

    /// Writes pages (not durable before [`sync`](PageStore::sync)). Consecutive ones go in one write.
    pub async fn write(&mut self, pages: &[NewPage]) -> io::Result<()> {
        let mut rest = pages;
        while let Some(first) = rest.first() {
            let number = first.id / FILE_PAGES;
            let run = (1..rest.len())
                .find(|&i| rest[i].id != first.id + i as u64 || rest[i].id / FILE_PAGES != number)
                .unwrap_or(rest.len());
            let (now, later) = rest.split_at(run);
            for page in now {
                assert!(page.content.len() <= PAGE_CONTENT, "a page holds {PAGE_CONTENT} bytes");
            }
            let file = self.shared.file(number).ok_or_else(|| not_there(first.id))?;
            let parts: Vec<Bytes> = now.iter().map(encode).collect();
            self.dirty.insert(number);
            file.write_at(offset(first.id), &parts).await?;
            rest = later;
        }
        Ok(())
    }

    /// Makes everything written durable. Do this before the checkpoint that names the pages is written.
    ///
    /// After an error the pages count as lost; the process should exit, as for the log.
    pub async fn sync(&mut self) -> io::Result<()> {
        while let Some(&number) = self.dirty.first() {
            let file = self.shared.file(number).expect("written to");
            file.sync().await?;
            self.dirty.remove(&number);
        }
        Ok(())
    }

    /// Gives up pages. They are reused only after the next checkpoint that begins from now on is durable.
    pub fn free(&mut self, ids: impl IntoIterator<Item = PageId>) {
        let mut space = lock(&self.shared.space);
        let stage = space.stage;
        let ids = ids.into_iter();
        match space.freed.back_mut() {
            Some((last, list)) if *last == stage => list.extend(ids),
            _ => space.freed.push_back((stage, ids.collect())),
        }
    }

    /// A checkpoint begins: its content is fixed now, so it names no page freed before.
    pub fn checkpoint_started(&mut self) -> FreedBefore {
        let mut space = lock(&self.shared.space);
        space.stage += 1;
        FreedBefore { stage: space.stage }
    }

    /// That checkpoint is durable: what was freed before its start may be reused.
    pub fn checkpoint_durable(&mut self, checkpoint: &FreedBefore) {
        let mut space = lock(&self.shared.space);
        if space.holds > 0 {
            return; // the next one releases these as well
        }
        while space.freed.front().is_some_and(|&(stage, _)| stage < checkpoint.stage) {
            let (_, mut ids) = space.freed.pop_front().expect("looked at above");
            ids.sort_unstable();
            for id in ids {
                assert!(id < space.size, "page {id} does not exist");
                space.release(id, 1);
            }
        }
    }

    /// Keeps every page that the newest durable checkpoint names as it is, until the answer is dropped. Call it while no checkpoint
    /// is being written.
    pub(crate) fn hold(&self) -> HeldPages<D::File> {
        lock(&self.shared.space).holds += 1;
        let files = self.shared.files.read().expect("a log thread panicked");
        HeldPages { files: files.values().cloned().collect(), shared: self.shared.clone() }
    }

    /// Pages in the files, and how many of them are free now.
    pub fn usage(&self) -> (u64, u64) {
        let space = lock(&self.shared.space);
        (space.size, space.free.values().sum())
    }
}

fn not_there(id: PageId) -> io::Error {
    fault("read", &path(id / FILE_PAGES), Some(offset(id)), io::ErrorKind::NotFound.into())
}

impl<F> Shared<F> {
    fn file(&self, number: u64) -> Option<Arc<F>> {
        self.files.read().expect("a log thread panicked").get(&number).cloned()
    }
}

impl<D: Disk> PageReader<D> {
    /// Reads a page's content ([`PAGE_CONTENT`] bytes) on this thread. `InvalidData` when it is damaged or another owner's.
    pub fn read(&self, id: PageId, owner: u64) -> io::Result<Bytes> {
        let file = self.shared.file(id / FILE_PAGES).ok_or_else(|| not_there(id))?;
        read(&*file, id, owner)
    }
}

fn check(bytes: &[u8], id: PageId, owner: u64) -> Result<(), String> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if word(0) != checksum(id, bytes) {
        return Err("page does not match its checksum".to_owned());
    }
    if word(8) != owner { Err(format!("page of owner {:#x}, not {owner:#x}", word(8))) } else { Ok(()) }
}
