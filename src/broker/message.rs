//! Reference records, and messages read back from where they lie.
//!
//! Owns: the layout of a reference record (`src/docs/record-format.md`) and [`resolve`].
//! Promises: what was published is what is read, byte for byte; a position that does not hold what the index says is an
//! error with its place, never another message.
//! Does not know: queues, readers, protocols.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use dassie_storage::{Batch, LogReader};

use super::api::{Located, Message, Origin, Position, QueueUid, StoredMessage};
use super::record::{self, Cursor, Kind, Malformed};
use super::state::OUTCOMES;

/// Bytes before the entries.
const FIXED: usize = 40;
/// Bytes of one queue's entry.
pub(crate) const ENTRY: usize = 24;
/// Bytes of one extent.
const EXTENT: usize = 16;
/// Flag: the message is persistent.
const PERSISTENT: u8 = 1;

/// A piece of a body that lies elsewhere in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Position of the bytes.
    pub(crate) position: Position,
    /// How many.
    pub(crate) len: u32,
    /// Distance back to the header of their batch.
    pub(crate) batch_back: u32,
}

/// A reference record, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Reference<'a> {
    /// Log time, ms.
    pub(crate) store_time: u64,
    /// For filters.
    pub(crate) tag_hash: u32,
    /// Layout of the bytes.
    pub(crate) origin: Origin,
    /// Bytes before the body.
    pub(crate) prefix_len: u32,
    /// Bytes of the body.
    pub(crate) body_len: u32,
    /// The body's pieces when it lies elsewhere.
    pub(crate) extents: Vec<Extent>,
    entries: &'a [u8],
    /// First byte of the message bytes in the record.
    content: usize,
    /// How many.
    content_len: usize,
}

impl Reference<'_> {
    /// Queue of each entry, where in the record the entry stands, and the message's deadline and priority in that queue.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (QueueUid, u32, u64, u8)> + '_ {
        self.entries.chunks_exact(ENTRY).map(|entry| {
            let mut cursor = Cursor::new(entry, 0);
            let (queue, back) = (cursor.u64().unwrap_or(0), cursor.u32().unwrap_or(0));
            let priority = cursor.u32().unwrap_or(0).to_le_bytes()[0];
            (queue, back, cursor.u64().unwrap_or(0), priority)
        })
    }
}

/// Writes a reference record's body behind its 8-byte head; returns where the message bytes begin in `buf`.
/// `record` is the record's first byte in `buf`, `place` says until when a queue keeps the message (log time, 0: for ever), and its
/// priority there.
pub(crate) fn put_reference(
    buf: &mut BytesMut,
    record: usize,
    message: &Message,
    queues: &[QueueUid],
    extents: &[Extent],
    store_time: u64,
    mut place: impl FnMut(QueueUid) -> (u64, u8),
) -> usize {
    let entries = queues.len();
    buf.reserve(FIXED + entries * ENTRY + message.bytes.len() + 16);
    buf.put_u64_le(store_time);
    buf.put_u32_le(message.tag_hash);
    buf.put_u16_le(u16::try_from(entries).unwrap_or(u16::MAX));
    buf.put_u8(message.origin as u8);
    buf.put_u8(if message.persistent { PERSISTENT } else { 0 });
    buf.put_u32_le(message.prefix_len);
    buf.put_u32_le(message.suffix_len());
    buf.put_u32_le(message.body_len);
    buf.put_u32_le(u32::try_from(extents.len()).unwrap_or(u32::MAX));
    for queue in queues {
        let back = u32::try_from(buf.len() - record).unwrap_or(u32::MAX);
        let (deadline, priority) = place(*queue);
        buf.put_u64_le(*queue);
        buf.put_u32_le(back);
        buf.put_u32_le(u32::from(priority));
        buf.put_u64_le(deadline);
    }
    for extent in extents {
        buf.put_u64_le(extent.position);
        buf.put_u32_le(extent.len);
        buf.put_u32_le(extent.batch_back);
    }
    let content = buf.len();
    if extents.is_empty() {
        buf.put_slice(&message.bytes);
    } else {
        let (prefix, body) = (message.prefix_len as usize, message.body_len as usize);
        buf.put_slice(&message.bytes[..prefix]);
        buf.put_slice(&message.bytes[prefix + body..]);
    }
    content
}

/// Takes a reference record apart.
///
/// # Errors
/// [`Malformed`] with the place in the record.
pub(crate) fn parse_reference(record: &[u8]) -> Result<Reference<'_>, Malformed> {
    let mut cursor = Cursor::new(record, 8);
    let store_time = cursor.u64()?;
    let tag_hash = cursor.u32()?;
    let entries = usize::from(cursor.u16()?);
    let origin = match cursor.u8()? {
        1 => Origin::Amqp,
        2 => Origin::Rocketmq,
        _ => return Err(Malformed { at: cursor.at(), what: "unknown origin" }),
    };
    cursor.u8()?; // flags: what they say stands in the message too
    let prefix_len = cursor.u32()?;
    let suffix_len = cursor.u32()?;
    let body_len = cursor.u32()?;
    let extent_count = cursor.u32()? as usize;
    let entries = cursor.take(entries * ENTRY)?;
    let mut extents = Vec::with_capacity(extent_count.min(record.len() / EXTENT));
    for _ in 0..extent_count {
        extents.push(Extent { position: cursor.u64()?, len: cursor.u32()?, batch_back: cursor.u32()? });
    }
    let content = cursor.at();
    let inline = if extents.is_empty() { body_len as usize } else { 0 };
    let content_len = prefix_len as usize + inline + suffix_len as usize;
    cursor.take(content_len)?;
    Ok(Reference {
        store_time,
        tag_hash,
        origin,
        prefix_len,
        body_len,
        extents,
        entries,
        content,
        content_len,
    })
}

/// Where batches are read from: the log, or its stand-in in a simulation.
pub trait Batches {
    /// The batch whose header stands at `position`, verified.
    ///
    /// # Errors
    /// What the disk says, with file and offset; damage is an error, never data.
    fn batch(&self, position: Position) -> io::Result<Batch>;
    /// The batch that the byte at `position` belongs to, verified: for positions that come from outside.
    ///
    /// # Errors
    /// As [`Batches::batch`]; `NotFound` when no batch holds it.
    fn holding(&self, position: Position) -> io::Result<Batch>;

    /// Whether reading it again would cost next to nothing, as it lies in memory anyway.
    fn is_at_hand(&self, position: Position) -> bool;
}

impl<D: dassie_storage::Disk> Batches for LogReader<D> {
    fn batch(&self, position: Position) -> io::Result<Batch> {
        LogReader::batch(self, position)
    }

    fn holding(&self, position: Position) -> io::Result<Batch> {
        LogReader::holding(self, position)
    }

    fn is_at_hand(&self, position: Position) -> bool {
        self.is_in_memory(position)
    }
}

impl<B: Batches + ?Sized> Batches for std::sync::Arc<B> {
    fn batch(&self, position: Position) -> io::Result<Batch> {
        (**self).batch(position)
    }

    fn holding(&self, position: Position) -> io::Result<Batch> {
        (**self).holding(position)
    }

    fn is_at_hand(&self, position: Position) -> bool {
        (**self).is_at_hand(position)
    }
}

/// Remembers the batch read last: readers mostly go on in the same one.
#[derive(Debug, Default)]
pub struct Cache {
    last: Option<Batch>,
}

impl Cache {
    /// Which batch is remembered.
    pub(crate) fn position(&self) -> Option<Position> {
        self.last.as_ref().map(|b| b.point.position)
    }

    /// The shard just applied this batch: most deliveries come from it.
    pub(crate) fn remember(&mut self, batch: &Batch) {
        self.last = Some(batch.clone());
    }

    /// Log time of the batch at `position`, ms since 1970.
    pub(crate) fn log_time(&mut self, log: &dyn Batches, position: Position) -> io::Result<u64> {
        let batch = self.batch(log, position)?;
        record::log_time(&batch.payload).map_err(|e| damaged(position, &e.to_string()))
    }

    /// Forgets a batch that the log itself remembers: a reader that rests must not be what keeps it in memory.
    pub(crate) fn let_go(&mut self, log: &dyn Batches) {
        if self.position().is_some_and(|position| log.is_at_hand(position)) {
            self.last = None;
        }
    }

    fn batch(&mut self, log: &dyn Batches, position: Position) -> io::Result<&Batch> {
        if self.last.as_ref().is_none_or(|b| b.point.position != position) {
            self.last = Some(log.batch(position)?);
        }
        self.last.as_ref().ok_or_else(|| io::Error::other("batch cache"))
    }
}

/// Brings a message into memory. May read from disk.
///
/// # Errors
/// What the log says, with its place; `InvalidData` when the place holds no such record.
pub fn resolve(message: &Located, log: &dyn Batches, cache: &mut Cache) -> io::Result<StoredMessage> {
    match message {
        Located::Ready(message) => Ok(message.clone()),
        Located::Paged(paged) => super::memory::page_in(paged),
        Located::Stored { batch, record, len } => {
            let bytes = record_at((*batch, *record, *len), log, cache)?;
            read_record(&bytes, *batch, log)
        }
    }
}

/// The bytes of a record: (its batch's header, from there to the record, length). May read from disk.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn record_at(
    (batch, record, len): (Position, u32, u32),
    log: &dyn Batches,
    cache: &mut Cache,
) -> io::Result<Bytes> {
    let found = cache.batch(log, batch)?;
    let head = u32::try_from(found.payload_position - batch).unwrap_or(u32::MAX);
    let bytes = record.checked_sub(head).and_then(|start| slice(&found.payload, start, len));
    bytes.ok_or_else(|| damaged(batch, "a record beyond its batch"))
}

/// The body of a reference record that lies elsewhere: its pieces in order.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn body_elsewhere(record: &Bytes, log: &dyn Batches) -> io::Result<Vec<Bytes>> {
    Ok(read_record(record, 0, log)?.body.unwrap_or_default())
}

/// Writes a reference record again, for one of its queues alone: with its body, taken from `body` where it is not in the record,
/// or with `extents` when those are some.
///
/// # Errors
/// [`Malformed`]: it is none.
pub(crate) fn put_copy(
    buf: &mut BytesMut,
    record: &Bytes,
    (queue, deadline): (QueueUid, u64),
    body: &[Bytes],
    extents: &[Extent],
) -> Result<(), Malformed> {
    let reference = parse_reference(record)?;
    let start = buf.len();
    buf.put_slice(&record[..FIXED]);
    buf.put_u64_le(queue);
    buf.put_u32_le(u32::try_from(FIXED).unwrap_or(u32::MAX));
    buf.put_u32_le(0);
    buf.put_u64_le(deadline);
    for extent in extents {
        buf.put_u64_le(extent.position);
        buf.put_u32_le(extent.len);
        buf.put_u32_le(extent.batch_back);
    }
    let content = &record[reference.content..][..reference.content_len];
    let (prefix, rest) = content.split_at(reference.prefix_len as usize);
    buf.put_slice(prefix);
    if extents.is_empty() {
        body.iter().for_each(|piece| buf.put_slice(piece));
    }
    buf.put_slice(rest);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let len = count(buf.len() - start);
    buf[start + 2..start + 4].fill(0); // its sequence is that of the record around it
    buf[start + 4..start + 8].copy_from_slice(&len);
    buf[start + 20..start + 22].copy_from_slice(&1_u16.to_le_bytes());
    buf[start + 36..start + 40].copy_from_slice(&count(extents.len()));
    Ok(())
}

/// A message, and where its body lies in the log.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn resolve_placed(
    (batch, record, len): (Position, u32, u32),
    log: &dyn Batches,
    cache: &mut Cache,
) -> io::Result<(StoredMessage, Vec<Extent>)> {
    let message = resolve(&Located::Stored { batch, record, len }, log, cache)?;
    let bytes = record_at((batch, record, len), log, cache)?;
    let reference = parse_reference(&bytes).map_err(|e| damaged(batch, &e.to_string()))?;
    if !reference.extents.is_empty() || reference.body_len == 0 {
        return Ok((message, reference.extents));
    }
    let content = u32::try_from(reference.content).unwrap_or(u32::MAX);
    let batch_back = record + content + reference.prefix_len;
    let position = batch + u64::from(batch_back);
    Ok((message, vec![Extent { position, len: reference.body_len, batch_back }]))
}

/// The queue whose entry stands exactly at `position`; `None`: no entry does. May read from disk. That the entry is committed
/// and still there is for the shard to say.
///
/// # Errors
/// What the log says, with its place.
pub fn queue_at(position: Position, log: &dyn Batches) -> io::Result<Option<QueueUid>> {
    let batch = match log.holding(position) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    if batch.kind != OUTCOMES {
        return Ok(None);
    }
    let Some(place) = position.checked_sub(batch.payload_position) else { return Ok(None) };
    let (_, sections) =
        record::parse(&batch.payload).map_err(|e| damaged(batch.point.position, &e.to_string()))?;
    let mut records = sections.iter().flat_map(|section| &section.records);
    let holds = |r: &&record::Record<'_>| {
        (u64::from(r.start)..u64::from(r.start) + r.bytes.len() as u64).contains(&place)
    };
    let Some(record) = records.find(holds).filter(|r| r.kind == Kind::Reference) else { return Ok(None) };
    let reference =
        parse_reference(record.bytes).map_err(|e| damaged(batch.point.position, &e.to_string()))?;
    let back = place - u64::from(record.start);
    Ok(reference.entries().find(|(_, at, ..)| u64::from(*at) == back).map(|(queue, ..)| queue))
}

fn read_record(record: &Bytes, position: Position, log: &dyn Batches) -> io::Result<StoredMessage> {
    let reference = parse_reference(record).map_err(|e| damaged(position, &e.to_string()))?;
    let content = record.slice(reference.content..reference.content + reference.content_len);
    let mut message = StoredMessage {
        origin: reference.origin,
        bytes: content,
        prefix_len: reference.prefix_len,
        body_len: reference.body_len,
        body: None,
        store_time: reference.store_time,
    };
    if !reference.extents.is_empty() {
        let mut pieces = Vec::with_capacity(reference.extents.len());
        for extent in &reference.extents {
            let batch = log.batch(extent.position - u64::from(extent.batch_back))?;
            let start = u32::try_from(extent.position - batch.payload_position)
                .map_err(|_| damaged(extent.position, "a body piece outside its batch"))?;
            let piece = slice(&batch.payload, start, extent.len)
                .ok_or_else(|| damaged(extent.position, "a body piece beyond its batch"))?;
            pieces.push(piece);
        }
        message.body = Some(pieces);
    }
    Ok(message)
}

fn slice(bytes: &Bytes, start: u32, len: u32) -> Option<Bytes> {
    let end = start.checked_add(len)?;
    (end as usize <= bytes.len()).then(|| bytes.slice(start as usize..end as usize))
}

pub(super) fn damaged(position: Position, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("log position {position}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(b"PREFbodySUF"),
            prefix_len: 4,
            body_len: 4,
            tag_hash: 7,
            persistent: true,
            ttl: None,
        }
    }

    #[test]
    fn a_reference_names_its_queues_and_keeps_the_bytes() {
        let mut buf = BytesMut::new();
        buf.put_bytes(0, 8);
        put_reference(&mut buf, 0, &message(), &[5, 9], &[], 77, |queue| (queue * 10, 3));
        let reference = parse_reference(&buf).unwrap();
        assert_eq!(reference.entries().collect::<Vec<_>>(), [(5, 40, 50, 3), (9, 64, 90, 3)]);
        assert_eq!((reference.store_time, reference.tag_hash), (77, 7));
        assert_eq!(&buf[reference.content..][..reference.content_len], b"PREFbodySUF");
    }

    #[test]
    fn a_body_that_lies_elsewhere_is_left_out() {
        let mut buf = BytesMut::new();
        buf.put_bytes(0, 8);
        let extent = Extent { position: 4096, len: 4, batch_back: 128 };
        put_reference(&mut buf, 0, &message(), &[5], &[extent], 77, |_| (0, 0));
        let reference = parse_reference(&buf).unwrap();
        assert_eq!(reference.extents, [extent]);
        assert_eq!(&buf[reference.content..][..reference.content_len], b"PREFSUF");
    }

    #[test]
    fn a_cut_reference_is_refused_at_every_length() {
        let mut buf = BytesMut::new();
        buf.put_bytes(0, 8);
        put_reference(&mut buf, 0, &message(), &[5], &[], 77, |_| (0, 0));
        for cut in 8..buf.len() {
            assert!(parse_reference(&buf[..cut]).is_err());
        }
    }
}
