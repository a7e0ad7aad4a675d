//! The index of one queue: its references in order.
//!
//! Owns: entries from `head` to `next`, in pages of [`PAGE_ENTRIES`]. Promises: offsets are dense; a full page never changes, so
//! it can be written once and dropped from memory; an entry that was trimmed is gone for ever; memory does not grow with depth.
//! Does not know: who consumed what, what a message is, files (a page on disk is read through [`Pages`]).

use std::collections::VecDeque;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};

use super::api::Offset;
use super::record::{Cursor, Malformed};

/// Bytes of an entry on disk.
pub(crate) const ENTRY_BYTES: usize = 32;
/// Entries of a page: what fits into 4 KiB beside the page's own checks.
pub(crate) const PAGE_ENTRIES: usize = 127;
/// Bytes of a full page's entries.
const PAGE_BYTES: usize = PAGE_ENTRIES * ENTRY_BYTES;

/// Where one message of a queue lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Public position: of this queue's entry in the reference record.
    pub(crate) position: u64,
    /// From there back to the record.
    pub(crate) record_back: u32,
    /// From there back to the batch header.
    pub(crate) batch_back: u32,
    /// Bytes of the record.
    pub(crate) len: u32,
    /// Tag hash.
    pub(crate) tag: u32,
    /// Bits; see [`Entry::ELSEWHERE`].
    pub(crate) flags: u16,
    /// Log time at which the message is expired, ms since 1970, 48 bits; 0: never.
    pub(crate) deadline: u64,
}

impl Entry {
    /// Parts of the body lie elsewhere: the queue's `elsewhere` table counts them.
    pub(crate) const ELSEWHERE: u16 = 1;

    /// Priority in its queue: the upper byte of the flags.
    pub(crate) fn priority(&self) -> u8 {
        self.flags.to_be_bytes()[0]
    }
    /// Latest deadline: the year 10889.
    pub(crate) const DEADLINE_MAX: u64 = (1 << 48) - 1;

    /// As on disk, and in memory too: a full page is written as it lies there.
    pub(crate) fn put(&self, buf: &mut impl BufMut) {
        buf.put_u64_le(self.position);
        buf.put_u32_le(self.record_back);
        buf.put_u32_le(self.batch_back);
        buf.put_u32_le(self.len);
        buf.put_u32_le(self.tag);
        buf.put_u64_le(u64::from(self.flags) | self.deadline << 16);
    }

    /// From disk.
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (position, record_back, batch_back) = (cursor.u64()?, cursor.u32()?, cursor.u32()?);
        let (len, tag) = (cursor.u32()?, cursor.u32()?);
        let (flags, deadline) = (cursor.u16()?, u64::from(cursor.u16()?) | u64::from(cursor.u32()?) << 16);
        Ok(Self { position, record_back, batch_back, len, tag, flags, deadline })
    }
}

/// Reads index pages; pages are small and mostly cached by the kernel, so this is synchronous.
pub(crate) trait Pages {
    /// The page's entries as bytes.
    ///
    /// # Errors
    /// What the disk says; a page that belongs to another queue or fails its checksum is an error.
    fn read(&self, page: u32, owner: u64) -> io::Result<Bytes>;
}

/// No page was ever written.
#[cfg(test)]
pub(crate) struct NoPages;

#[cfg(test)]
impl Pages for NoPages {
    fn read(&self, page: u32, _owner: u64) -> io::Result<Bytes> {
        Err(io::Error::other(format!("index page {page} was never written")))
    }
}

/// A full page.
#[derive(Debug, Clone)]
enum Page {
    /// Not on disk yet: its entries.
    Memory(Bytes),
    /// On disk under that number.
    Disk(u32),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct QueueIndex {
    head: Offset,
    next: Offset,
    /// Number of the first page in `pages`.
    first_page: u64,
    pages: VecDeque<Page>,
    /// Entries behind the last full page.
    tail: Vec<u8>,
    /// Page read last and its entries.
    cached: Option<(u64, Bytes)>,
    /// Pages on disk that were trimmed since the last checkpoint began.
    freed: Vec<u32>,
}

impl QueueIndex {
    pub(crate) fn new() -> Self {
        Self {
            head: 0,
            next: 0,
            first_page: 0,
            pages: VecDeque::new(),
            tail: Vec::new(),
            cached: None,
            freed: Vec::new(),
        }
    }

    /// First retained offset.
    pub(crate) fn head(&self) -> Offset {
        self.head
    }

    /// Offset of the next message.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }

    /// Appends; returns the message's offset.
    pub(crate) fn push(&mut self, entry: Entry) -> Offset {
        let offset = self.next;
        if self.tail.is_empty() && !self.pages.is_empty() {
            // It will be filled like the page before; a queue of few messages grows step by step.
            self.tail.reserve_exact(PAGE_BYTES);
        }
        entry.put(&mut self.tail);
        self.next += 1;
        if self.tail.len() == PAGE_BYTES {
            self.pages.push_back(Page::Memory(std::mem::take(&mut self.tail).into()));
        }
        offset
    }

    /// The entry of `offset`, or `None` outside of `head..next`.
    ///
    /// # Errors
    /// When its page can not be read.
    pub(crate) fn get(&mut self, offset: Offset, owner: u64, pages: &dyn Pages) -> io::Result<Option<Entry>> {
        if offset < self.head || offset >= self.next {
            return Ok(None);
        }
        let page = offset / PAGE_ENTRIES as u64;
        let within = usize::try_from(offset % PAGE_ENTRIES as u64).unwrap_or(0);
        let full = usize::try_from(page - self.first_page).unwrap_or(usize::MAX);
        if full == self.pages.len() {
            return entry_at(&self.tail, within).map(Some);
        }
        if let Some((cached, entries)) = &self.cached
            && *cached == page
        {
            return entry_at(entries, within).map(Some);
        }
        let entries = match self.pages.get(full) {
            Some(Page::Memory(entries)) => return entry_at(entries, within).map(Some),
            Some(Page::Disk(id)) => pages.read(*id, owner)?,
            None => return Ok(None),
        };
        let entry = entry_at(&entries, within)?;
        self.cached = Some((page, entries));
        Ok(Some(entry))
    }

    /// Forgets everything before `floor`.
    pub(crate) fn trim(&mut self, floor: Offset) {
        let floor = floor.min(self.next);
        if floor <= self.head {
            return;
        }
        self.head = floor;
        while let Some(page) = self.pages.front() {
            if (self.first_page + 1) * PAGE_ENTRIES as u64 > floor {
                break;
            }
            if let Page::Disk(id) = page {
                self.freed.push(*id);
            }
            self.pages.pop_front();
            self.first_page += 1;
        }
        if self.cached.as_ref().is_some_and(|(page, _)| *page < self.first_page) {
            self.cached = None;
        }
        if self.pages.is_empty() && self.head == self.next && self.tail.capacity() > 16 * ENTRY_BYTES {
            // An idle queue keeps no page in memory; the entries of a half-full page stay for their numbers.
            self.tail.shrink_to_fit();
        }
    }

    /// Full pages that are not on disk yet: (page number in this queue, bytes).
    pub(crate) fn unwritten_pages(&self) -> Vec<(u64, Bytes)> {
        let pages = (self.first_page..).zip(&self.pages);
        let in_memory = pages.filter_map(|(number, page)| match page {
            Page::Memory(entries) => Some((number, entries.clone())),
            Page::Disk(_) => None,
        });
        in_memory.collect()
    }

    /// Page `number` of this queue is on disk as `id`: its entries need not stay in memory. If it was trimmed meanwhile, the
    /// disk page is free again.
    pub(crate) fn written(&mut self, number: u64, id: u32) {
        let place = number.checked_sub(self.first_page).and_then(|i| usize::try_from(i).ok());
        match place.and_then(|i| self.pages.get_mut(i)) {
            Some(page @ Page::Memory(_)) => *page = Page::Disk(id),
            _ => self.freed.push(id),
        }
    }

    /// Disk pages trimmed since this was last asked.
    pub(crate) fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// All disk pages named here.
    pub(crate) fn disk_pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.iter().filter_map(|p| match p {
            Page::Disk(id) => Some(*id),
            Page::Memory(_) => None,
        })
    }

    /// As a checkpoint keeps it. `assigned` gives the disk page of each page that is being written with this checkpoint.
    pub(crate) fn put(&self, buf: &mut BytesMut, assigned: &dyn Fn(u64) -> Option<u32>) {
        buf.put_u64_le(self.head);
        buf.put_u64_le(self.next);
        buf.put_u64_le(self.first_page);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (i, page) in self.pages.iter().enumerate() {
            let id = match page {
                Page::Disk(id) => *id,
                Page::Memory(_) => assigned(self.first_page + i as u64).unwrap_or(u32::MAX),
            };
            match runs.last_mut() {
                Some((start, count)) if start.checked_add(*count) == Some(id) => *count += 1,
                _ => runs.push((id, 1)),
            }
        }
        buf.put_u32_le(u32::try_from(runs.len()).unwrap_or(u32::MAX));
        for (start, count) in runs {
            buf.put_u32_le(start);
            buf.put_u32_le(count);
        }
        buf.put_u32_le(u32::try_from(self.tail.len() / ENTRY_BYTES).unwrap_or(u32::MAX));
        buf.put_slice(&self.tail);
    }

    /// From a checkpoint.
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut index = Self::new();
        index.head = cursor.u64()?;
        index.next = cursor.u64()?;
        index.first_page = cursor.u64()?;
        for _ in 0..cursor.u32()? {
            let (start, count) = (cursor.u32()?, cursor.u32()?);
            for id in start..start.saturating_add(count) {
                index.pages.push_back(Page::Disk(id));
            }
        }
        let tail = cursor.u32()? as usize;
        index.tail = cursor.take(tail.saturating_mul(ENTRY_BYTES))?.to_vec();
        Ok(index)
    }
}

/// The entry with that number in a page or its begin.
fn entry_at(entries: &[u8], within: usize) -> io::Result<Entry> {
    let damaged = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    Entry::read(&mut Cursor::new(entries, within * ENTRY_BYTES)).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct MapPages(RefCell<HashMap<u32, Bytes>>);

    impl Pages for MapPages {
        fn read(&self, page: u32, _owner: u64) -> io::Result<Bytes> {
            self.0.borrow().get(&page).cloned().ok_or_else(|| io::Error::other("missing"))
        }
    }

    fn entry(n: u64) -> Entry {
        Entry {
            position: n * 100,
            record_back: 40,
            batch_back: 200,
            len: 64,
            tag: 3,
            flags: 1,
            deadline: n << 38,
        }
    }

    #[test]
    fn entries_survive_being_written_and_dropped_from_memory() {
        let mut index = QueueIndex::new();
        let disk = MapPages::default();
        for n in 0..400 {
            assert_eq!(index.push(entry(n)), n);
        }
        for (number, bytes) in index.unwritten_pages() {
            let id = u32::try_from(number).unwrap() + 10;
            disk.0.borrow_mut().insert(id, bytes);
            index.written(number, id);
        }
        assert!(index.unwritten_pages().is_empty());
        for n in 0..400 {
            assert_eq!(index.get(n, 1, &disk).unwrap(), Some(entry(n)));
        }
        assert_eq!(index.get(400, 1, &disk).unwrap(), None);
        index.trim(300);
        assert_eq!(index.get(299, 1, &disk).unwrap(), None);
        assert_eq!(index.get(300, 1, &disk).unwrap(), Some(entry(300)));
        assert_eq!(index.take_freed(), [10, 11]);
    }

    #[test]
    fn a_checkpoint_keeps_the_index_and_names_pages_as_runs() {
        let mut index = QueueIndex::new();
        for n in 0..700 {
            index.push(entry(n));
        }
        index.trim(130);
        let mut buf = BytesMut::new();
        index.put(&mut buf, &|number| u32::try_from(number + 50).ok());
        let mut read = QueueIndex::read(&mut Cursor::new(&buf, 0)).unwrap();
        assert_eq!((read.head(), read.next()), (130, 700));
        assert_eq!(read.disk_pages().collect::<Vec<_>>(), [51, 52, 53, 54]);
        assert_eq!(read.get(699, 1, &NoPages).unwrap(), Some(entry(699)));
    }

    #[test]
    fn a_page_written_after_it_was_trimmed_is_free_at_once() {
        let mut index = QueueIndex::new();
        (0..200).for_each(|n| {
            index.push(entry(n));
        });
        index.trim(200);
        index.written(0, 9);
        assert_eq!(index.take_freed(), [9]);
    }
}
