//! Batch payloads, sections and records as bytes (`src/docs/record-format.md`).
//!
//! Owns: their encoding. Promises: what [`BatchBuilder`] writes, [`parse`] reads back; a payload that this version can not read
//! is an error that names the place, never a guess.
//! Does not know: what a record does to the state.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of the payload head.
pub(crate) const PAYLOAD_HEAD: usize = 32;
/// Bytes of a section head.
pub(crate) const SECTION_HEAD: usize = 48;
/// Bytes that every record begins with.
pub(crate) const RECORD_HEAD: usize = 8;
const PAYLOAD_VERSION: u8 = 1;

/// Kinds of records; numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A piece of a large body.
    Body = 1,
    /// One enqueue of a message into all its queues.
    Reference = 2,
    /// Messages are done with.
    Settlement = 3,
    /// Messages went back to their queue, once more.
    Release = 4,
    /// A queue's messages up to here were handed out.
    DeliveredThrough = 6,
    /// A topology change that adds.
    Definition = 7,
    /// A topology change that removes.
    Removal = 8,
    /// A consumer group's offset.
    OffsetCommit = 9,
    /// A client of a group alone reads a queue, or not any more.
    QueueLock = 10,
    /// A message has a new place in the log.
    Rehome = 14,
    /// A node's new incarnation.
    Session = 15,
    /// The verb of this sequence is that front end's verb of that number (ADR 12). Changes no state.
    Origin = 16,
    /// The verb of this sequence is a send of that key (ADR 16).
    SendKey = 17,
    /// The answers of all that the term decided before that batch have left.
    Answered = 18,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Body,
            2 => Self::Reference,
            3 => Self::Settlement,
            4 => Self::Release,
            6 => Self::DeliveredThrough,
            7 => Self::Definition,
            8 => Self::Removal,
            9 => Self::OffsetCommit,
            10 => Self::QueueLock,
            14 => Self::Rehome,
            15 => Self::Session,
            16 => Self::Origin,
            17 => Self::SendKey,
            18 => Self::Answered,
            _ => return None,
        })
    }
}

/// What stands before the sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PayloadHead {
    /// Term in which the leader decided.
    pub(crate) term: u64,
    /// Which batch of that term, from 0.
    pub(crate) ordinal: u64,
    /// ms since 1970.
    pub(crate) log_time: u64,
    /// Batches of the term before this one that the leader had not applied when it decided the first record here.
    pub(crate) lag: u32,
}

/// What stands before a section's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHead {
    /// Whose verbs.
    pub(crate) session: u64,
    /// Last sequence of that session in the log before.
    pub(crate) previous: u64,
    /// First verb with a record here.
    pub(crate) first: u64,
    /// Last one.
    pub(crate) last: u64,
    /// Topology on which it was decided.
    pub(crate) topology: u64,
}

/// Writes one batch payload.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    buf: BytesMut,
    sections: u16,
    section: Option<OpenSection>,
}

#[derive(Debug)]
struct OpenSection {
    start: usize,
    head: SectionHead,
    records: u32,
    any: bool,
}

impl BatchBuilder {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        let mut builder = Self { buf: BytesMut::new(), sections: 0, section: None };
        builder.buf.put_bytes(0, PAYLOAD_HEAD);
        builder
    }

    /// Nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.sections == 0 && self.section.is_none()
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    /// Begins a record of verb `sequence`; finish it with [`BatchBuilder::end`]. Opens a new section when the session
    /// or too wide a gap of sequences asks for it. `previous` is the session's last logged sequence, `topology` the version on
    /// which a section that opens here is decided.
    pub(crate) fn begin(
        &mut self,
        session: u64,
        previous: u64,
        sequence: u64,
        topology: u64,
        kind: Kind,
        flags: u8,
    ) -> usize {
        let fits = self
            .section
            .as_ref()
            .is_some_and(|s| s.head.session == session && sequence - s.head.last <= u64::from(u16::MAX));
        if !fits {
            self.close_section();
            let head = SectionHead { session, previous, first: sequence, last: sequence, topology };
            self.section = Some(OpenSection { start: self.buf.len(), head, records: 0, any: false });
            self.buf.put_bytes(0, SECTION_HEAD);
        }
        let Some(section) = self.section.as_mut() else { unreachable!("a section was just opened") };
        let step = if section.any { sequence - section.head.last } else { 0 };
        section.any = true;
        section.head.last = sequence;
        section.records += 1;
        let start = self.buf.len();
        self.buf.put_u8(kind as u8);
        self.buf.put_u8(flags);
        self.buf.put_u16_le(u16::try_from(step).unwrap_or(u16::MAX));
        self.buf.put_u32_le(0);
        start
    }

    /// The bytes, for the record's author.
    pub(crate) fn body(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// Ends the record that began at `start`: pads it and writes its length.
    pub(crate) fn end(&mut self, start: usize) {
        while !(self.buf.len() - start).is_multiple_of(8) {
            self.buf.put_u8(0);
        }
        let len = u32::try_from(self.buf.len() - start).unwrap_or(u32::MAX);
        self.buf[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    }

    fn close_section(&mut self) {
        let Some(section) = self.section.take() else { return };
        let len = u32::try_from(self.buf.len() - section.start - SECTION_HEAD).unwrap_or(u32::MAX);
        let mut head = &mut self.buf[section.start..section.start + SECTION_HEAD];
        head.put_u64_le(section.head.session);
        head.put_u64_le(section.head.previous);
        head.put_u64_le(section.head.first);
        head.put_u64_le(section.head.last);
        head.put_u64_le(section.head.topology);
        head.put_u32_le(section.records);
        head.put_u32_le(len);
        self.sections += 1;
    }

    /// The finished payload.
    pub(crate) fn close(mut self, head: PayloadHead) -> Bytes {
        self.close_section();
        let mut place = &mut self.buf[..PAYLOAD_HEAD];
        place.put_u8(PAYLOAD_VERSION);
        place.put_u8(0);
        place.put_u16_le(self.sections);
        place.put_u32_le(head.lag);
        place.put_u64_le(head.term);
        place.put_u64_le(head.ordinal);
        place.put_u64_le(head.log_time);
        // It doubled as it grew, and stays in memory with the tail of the log, which counts its length alone.
        if self.buf.capacity() - self.buf.len() > self.buf.len() / 8 {
            let mut bytes = Vec::from(self.buf);
            bytes.shrink_to_fit();
            return bytes.into();
        }
        self.buf.freeze()
    }
}

/// A payload that this version does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch payload, byte {at}: {what}")]
pub(crate) struct Malformed {
    /// Where in the payload.
    pub(crate) at: usize,
    /// What is wrong.
    pub(crate) what: &'static str,
}

/// One record in its batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// What it is.
    pub(crate) kind: Kind,
    /// The verb it belongs to.
    pub(crate) sequence: u64,
    /// First byte in the payload.
    pub(crate) start: u32,
    /// All bytes, head included.
    pub(crate) bytes: &'a [u8],
}

/// One section of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Section<'a> {
    /// Its head.
    pub(crate) head: SectionHead,
    /// Its records.
    pub(crate) records: Vec<Record<'a>>,
}

/// Little-endian reads with a place for errors.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).filter(|e| *e <= self.bytes.len());
        let Some(end) = end else { return Err(Malformed { at: self.at, what: "cut short" }) };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// u16 length and UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u16()?;
        let at = self.at;
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| Malformed { at, what: "not UTF-8" })
    }

    /// u32 length and bytes.
    pub(crate) fn blob(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }
}

/// Writes [`Cursor::text`].
pub(crate) fn put_text(buf: &mut BytesMut, text: &str) {
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    buf.put_u16_le(len);
    buf.put_slice(&text.as_bytes()[..usize::from(len)]);
}

/// Writes [`Cursor::blob`].
pub(crate) fn put_blob(buf: &mut BytesMut, blob: &[u8]) {
    buf.put_u32_le(u32::try_from(blob.len()).unwrap_or(u32::MAX));
    buf.put_slice(blob);
}

/// Takes a payload apart.
///
/// # Errors
/// [`Malformed`] with the place; the log's checksums passed, so this is a newer format or a defect.
pub(crate) fn parse(payload: &[u8]) -> Result<(PayloadHead, Vec<Section<'_>>), Malformed> {
    let mut cursor = Cursor::new(payload, 0);
    if cursor.u8()? != PAYLOAD_VERSION {
        return Err(Malformed { at: 0, what: "payload version is newer than this program" });
    }
    cursor.u8()?;
    let count = cursor.u16()?;
    let lag = cursor.u32()?;
    let head = PayloadHead { term: cursor.u64()?, ordinal: cursor.u64()?, log_time: cursor.u64()?, lag };
    let mut sections = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        sections.push(parse_section(&mut cursor, payload)?);
    }
    if cursor.at() != payload.len() {
        return Err(Malformed { at: cursor.at(), what: "bytes behind the last section" });
    }
    Ok((head, sections))
}

/// Log time of a batch, without taking the rest apart.
pub(crate) fn log_time(payload: &[u8]) -> Result<u64, Malformed> {
    Cursor::new(payload, 24).u64()
}

fn parse_section<'a>(cursor: &mut Cursor<'a>, payload: &'a [u8]) -> Result<Section<'a>, Malformed> {
    let head = SectionHead {
        session: cursor.u64()?,
        previous: cursor.u64()?,
        first: cursor.u64()?,
        last: cursor.u64()?,
        topology: cursor.u64()?,
    };
    let count = cursor.u32()?;
    let len = cursor.u32()? as usize;
    let begin = cursor.at();
    cursor.take(len)?;
    let end = cursor.at();
    let mut inner = Cursor::new(&payload[..end], begin);
    let mut records = Vec::with_capacity((count as usize).min(len / RECORD_HEAD));
    let mut sequence = head.first;
    for _ in 0..count {
        let start = inner.at();
        let kind = inner.u8()?;
        inner.u8()?; // flags: no kind of this version has any
        sequence += u64::from(inner.u16()?);
        let record_len = inner.u32()? as usize;
        let Some(kind) = Kind::from_byte(kind) else {
            return Err(Malformed { at: start, what: "record kind is unknown to this program" });
        };
        if record_len < RECORD_HEAD {
            return Err(Malformed { at: start, what: "record length" });
        }
        inner.take(record_len - RECORD_HEAD)?;
        let start = u32::try_from(start).map_err(|_| Malformed { at: start, what: "payload length" })?;
        let bytes = &payload[start as usize..inner.at()];
        records.push(Record { kind, sequence, start, bytes });
    }
    if inner.at() != end || sequence != head.last {
        return Err(Malformed { at: inner.at(), what: "section length or last sequence" });
    }
    Ok(Section { head, records })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_several_sections_reads_back() {
        let mut builder = BatchBuilder::new();
        for (session, previous, sequence, topology, body) in [
            (7, 0, 1, 3, "one"),
            (7, 1, 4, 4, "two and a bit"),
            (7, 4, 100_000, 4, ""),
            (9, 0, 100_000, 4, "x"),
        ] {
            let start = builder.begin(session, previous, sequence, topology, Kind::Body, 5);
            builder.body().put_slice(body.as_bytes());
            builder.end(start);
        }
        let head = PayloadHead { term: 2, ordinal: 3, log_time: 4, lag: 2 };
        let bytes = builder.close(head);
        let (read, sections) = parse(&bytes).unwrap();
        assert_eq!(read, head);
        assert_eq!(sections.len(), 3);
        assert_eq!(sections[0].head, SectionHead { session: 7, previous: 0, first: 1, last: 4, topology: 3 });
        assert_eq!(sections[0].records.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(&sections[0].records[1].bytes[RECORD_HEAD..RECORD_HEAD + 13], b"two and a bit");
        assert_eq!(sections[1].head.previous, 4);
        assert_eq!(sections[2].records[0].sequence, 100_000);
    }

    #[test]
    fn every_cut_payload_is_refused() {
        let mut builder = BatchBuilder::new();
        let start = builder.begin(1, 0, 1, 0, Kind::Settlement, 0);
        builder.body().put_u64_le(1);
        builder.end(start);
        let bytes = builder.close(PayloadHead { term: 1, ordinal: 0, log_time: 1, lag: 0 });
        assert!(parse(&bytes).is_ok());
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
