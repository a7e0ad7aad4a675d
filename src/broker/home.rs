//! Re-home: a message that outlives what was stored around it gets a copy behind the log's end, so that its segment may go (D14).
//!
//! Owns: the record, what it does to the state, and where a message lies. Promises: offset, public position and log time of a
//! message do not change; a record that comes twice, or for a message that is gone, changes nothing that matters; index
//! pages stay as they are: what moved stands in a table beside them until it is settled.
//! Does not know: when to move what (`retention`).

use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::{Buf, BufMut, BytesMut};
use dassie_storage::Batch;

use super::api::{Offset, Position, QueueUid};
use super::index::{Entry, Pages};
use super::message::parse_reference;
use super::record::{Cursor, Malformed, Record};
use super::state::{State, count_down, count_up, mark};

/// Bytes of the record before the copy of the reference record.
pub(crate) const HEAD: usize = 32;

/// Where a moved message lies now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// Header of the batch.
    pub(crate) batch: Position,
    /// From there to the copy.
    pub(crate) record: u32,
    /// Bytes of the copy.
    pub(crate) len: u32,
    /// Log time of the batch that held it first, ms since 1970.
    pub(crate) logged: u64,
}

impl Home {
    /// The segment that holds it.
    pub(crate) fn segment(&self, segment_size: u64) -> u64 {
        (self.batch + u64::from(self.record)) / segment_size
    }
}

/// An entry of a queue, and where its message lies if it moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    entry: Entry,
    pub(crate) home: Option<Home>,
}

impl Deref for Found {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Found {
    pub(crate) fn new(entry: Entry, home: Option<Home>) -> Self {
        Self { entry, home }
    }

    /// Header of the batch, from there to the record, bytes of the record.
    pub(crate) fn place(&self) -> (Position, u32, u32) {
        match self.home {
            Some(home) => (home.batch, home.record, home.len),
            None => (
                self.entry.position - u64::from(self.entry.batch_back),
                self.entry.batch_back - self.entry.record_back,
                self.entry.len,
            ),
        }
    }
}

/// Writes what stands before the copy, behind the record's own head.
pub(crate) fn put_head(buf: &mut BytesMut, queue: QueueUid, offset: Offset, logged: u64) {
    buf.put_u64_le(queue);
    buf.put_u64_le(offset);
    buf.put_u64_le(logged);
}

/// Writes a queue's table, for a checkpoint.
pub(crate) fn put(buf: &mut BytesMut, homes: &BTreeMap<Offset, Home>) {
    buf.put_u32_le(u32::try_from(homes.len()).unwrap_or(u32::MAX));
    for (offset, home) in homes {
        buf.put_u64_le(*offset);
        buf.put_u64_le(home.batch);
        buf.put_u32_le(home.record);
        buf.put_u32_le(home.len);
        buf.put_u64_le(home.logged);
    }
}

/// Reads it.
pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<BTreeMap<Offset, Home>, Malformed> {
    let mut homes = BTreeMap::new();
    for _ in 0..cursor.u32()? {
        let offset = cursor.u64()?;
        let home =
            Home { batch: cursor.u64()?, record: cursor.u32()?, len: cursor.u32()?, logged: cursor.u64()? };
        homes.insert(offset, home);
    }
    Ok(homes)
}

impl State {
    /// Applies a re-home record.
    pub(crate) fn rehome(
        &mut self,
        batch: &Batch,
        record: &Record<'_>,
        pages: &dyn Pages,
    ) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(record.bytes, super::record::RECORD_HEAD);
        let (uid, offset, logged) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let mut copy = record.bytes;
        copy.advance(HEAD);
        let reference = parse_reference(copy)?;
        let size = self.segment_size;
        let Some(queue) = self.queues.get_mut(&uid) else { return Ok(()) };
        if queue.cursor.is_settled(offset) {
            return Ok(());
        }
        let entry = match queue.index.get(offset, uid, pages) {
            Ok(entry) => entry,
            Err(error) => panic!("index of queue {uid}, offset {offset}: {error}"),
        };
        let Some(entry) = entry else { return Ok(()) };
        for segment in queue.segments_of(offset, &entry, size) {
            count_down(queue, &mut self.segments, segment);
        }
        let place = batch.payload_position + u64::from(record.start) + HEAD as u64;
        let home = Home {
            batch: batch.point.position,
            record: u32::try_from(place - batch.point.position).unwrap_or(u32::MAX),
            len: u32::try_from(copy.len()).unwrap_or(u32::MAX),
            logged,
        };
        queue.homes.insert(offset, home);
        let other: Vec<(u64, u32)> = reference.extents.iter().map(|e| (e.position / size, e.len)).collect();
        queue.elsewhere.remove(&offset);
        for segment in std::iter::once(home.segment(size)).chain(other.iter().map(|(s, _)| *s)) {
            count_up(queue, &mut self.segments, segment);
        }
        if !other.is_empty() {
            queue.elsewhere.insert(offset, other);
        }
        mark(&mut self.dirty_queues, queue);
        Ok(())
    }
}
