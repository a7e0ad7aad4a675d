//! The bytes of the log: batch header, end marker, and the arithmetic of positions.
//!
//! Owns: the layout in `src/docs/record-format.md` ("Log segments"). Promises: what is encoded here verifies here, and nothing
//! that was moved, cut, flipped or left over from another life of the file does. Does not know: files, payload contents.

use std::io;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use crate::disk::damaged;

/// Bytes of a batch header.
pub const HEADER: usize = 96;
/// The longest payload of a batch.
pub const MAX_PAYLOAD: usize = (6 << 20) + (64 << 10);
pub(crate) const MAGIC: [u8; 4] = *b"DBAT";
const END_MAGIC: [u8; 4] = *b"DEND";
pub(crate) const VERSION: u16 = 1;
/// Bytes of an end marker.
pub(crate) const END_MARKER: usize = 8;

/// A 16-byte identity.
pub type Uuid = [u8; 16];

/// One place in the log: a batch, everything that identifies it, and all before it through `hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// Consecutive from 0.
    pub index: u64,
    /// Term in which a leader proposed it.
    pub term: u64,
    /// Node id of that leader.
    pub leader: u64,
    /// Position of the batch header.
    pub position: u64,
    /// Position just behind the batch, padding included. Where the next batch stands if it fits into the segment.
    pub end: u64,
    /// Hash of the header: covers the payload and, through the previous hash, the whole log before it.
    pub hash: u64,
}

/// One consensus entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Where it stands.
    pub point: LogPoint,
    /// 1 outcomes, 2 term start, 3 membership; opaque to storage.
    pub kind: u8,
    /// The payload, without padding.
    pub payload: Bytes,
    /// Position of the payload's first byte.
    pub payload_position: u64,
}

/// One consensus entry about to be appended.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// Term of the entry.
    pub term: u64,
    /// Node id of the leader who proposed it.
    pub leader: u64,
    /// Must be the log's next index.
    pub index: u64,
    /// 1 outcomes, 2 term start, 3 membership.
    pub kind: u8,
    /// At most [`MAX_PAYLOAD`] bytes, and it must fit into a segment.
    pub payload: Bytes,
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's width is 32 bits: nothing is cut off.
    #[allow(clippy::cast_possible_truncation)]
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc
}

pub(crate) fn crc64(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// Bytes a batch with this payload takes.
pub(crate) fn framed(payload: usize) -> u64 {
    (HEADER + payload.next_multiple_of(8)) as u64
}

/// First position of the segment that holds `position`.
pub(crate) fn segment_of(position: u64, segment_size: u64) -> u64 {
    position - position % segment_size
}

/// Where a batch of `length` framed bytes goes when the log ends at `end`.
pub(crate) fn place(end: u64, length: u64, segment_size: u64) -> u64 {
    let room = (segment_size - end % segment_size) % segment_size; // 0: `end` is already a segment's first byte
    if room == 0 || length <= room { end } else { end + room }
}

pub(crate) fn end_marker(position: u64) -> [u8; END_MARKER] {
    let mut marker = [0; END_MARKER];
    marker[..4].copy_from_slice(&END_MAGIC);
    marker[4..].copy_from_slice(&crc32c(&position.to_le_bytes()).to_le_bytes());
    marker
}

/// A header that verified: `hash`, place and identity are right; the payload is not checked yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) point: LogPoint,
    pub(crate) previous: u64,
    pub(crate) synced_to: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Encodes everything but `synced to`, which the writer stamps just before the write; answers the header and its point.
pub(crate) fn encode(
    batch: &NewBatch,
    shard: &Uuid,
    position: u64,
    previous: u64,
) -> ([u8; HEADER], LogPoint) {
    let mut bytes = [0; HEADER];
    let length = u32::try_from(batch.payload.len()).expect("payload length was checked");
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[6] = batch.kind;
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..16].copy_from_slice(&crc32c(&batch.payload).to_le_bytes());
    bytes[16..32].copy_from_slice(shard);
    bytes[32..40].copy_from_slice(&position.to_le_bytes());
    bytes[40..48].copy_from_slice(&batch.term.to_le_bytes());
    bytes[48..56].copy_from_slice(&batch.leader.to_le_bytes());
    bytes[56..64].copy_from_slice(&batch.index.to_le_bytes());
    bytes[64..72].copy_from_slice(&previous.to_le_bytes());
    let hash = crc64(&bytes[..72]);
    bytes[72..80].copy_from_slice(&hash.to_le_bytes());
    let end = position + framed(batch.payload.len());
    let point = LogPoint { index: batch.index, term: batch.term, leader: batch.leader, position, end, hash };
    (bytes, point)
}

/// Stamps what this node knows to be synced.
pub(crate) fn stamp(header: &mut [u8; HEADER], synced_to: u64) {
    header[80..88].copy_from_slice(&synced_to.to_le_bytes());
    let crc = crc64(&header[72..88]);
    header[88..96].copy_from_slice(&crc.to_le_bytes());
}

/// Verifies the header that should stand at `position`; the reason is for a human.
pub(crate) fn decode(
    bytes: &[u8],
    shard: &Uuid,
    position: u64,
    segment_size: u64,
) -> Result<Header, &'static str> {
    if bytes.len() < HEADER {
        return Err("no room for a batch header before the segment's end");
    }
    if bytes[..4] != MAGIC {
        return Err("no batch begins here");
    }
    let hash = u64_at(bytes, 72);
    if hash != crc64(&bytes[..72]) {
        return Err("batch header does not match its hash");
    }
    if u64_at(bytes, 88) != crc64(&bytes[72..88]) {
        return Err("the header's synced-to does not match its checksum");
    }
    if u16::from_le_bytes([bytes[4], bytes[5]]) != VERSION {
        return Err("batch format version is not supported by this release");
    }
    if bytes[16..32] != shard[..] {
        return Err("the batch belongs to another shard");
    }
    if u64_at(bytes, 32) != position {
        return Err("the batch was written for another position");
    }
    if bytes[7] != 0 {
        return Err("reserved byte of the batch header is not zero");
    }
    let payload_len = u32_at(bytes, 8);
    let end = position + framed(payload_len as usize);
    if payload_len as usize > MAX_PAYLOAD || end > segment_of(position, segment_size) + segment_size {
        return Err("batch length is out of bounds");
    }
    let synced_to = u64_at(bytes, 80);
    if synced_to > position {
        return Err("batch claims to have been synced before it was written");
    }
    let point = LogPoint {
        index: u64_at(bytes, 56),
        term: u64_at(bytes, 40),
        leader: u64_at(bytes, 48),
        position,
        end,
        hash,
    };
    Ok(Header {
        kind: bytes[6],
        payload_len,
        payload_crc: u32_at(bytes, 12),
        point,
        previous: u64_at(bytes, 64),
        synced_to,
    })
}

impl Header {
    /// Checks payload and padding (`body`: everything behind the header) and makes the batch of it.
    pub(crate) fn batch(&self, body: &Bytes) -> Result<Batch, &'static str> {
        let length = self.payload_len as usize;
        if body.len() as u64 != self.point.end - self.point.position - HEADER as u64 {
            return Err("the batch is cut short");
        }
        if crc32c(&body[..length]) != self.payload_crc {
            return Err("payload does not match its checksum");
        }
        if body[length..].iter().any(|&byte| byte != 0) {
            return Err("padding of the batch is not zero");
        }
        Ok(Batch {
            point: self.point,
            kind: self.kind,
            payload: body.slice(..length),
            payload_position: self.point.position + HEADER as u64,
        })
    }
}

/// Names a segment file.
pub(crate) fn segment_path(start: u64) -> String {
    format!("log/{start:020}")
}

/// The position a file name stands for, if it is a segment's name.
pub(crate) fn segment_start(name: &str) -> Option<u64> {
    if name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit()) { name.parse().ok() } else { None }
}

/// Verifies a whole framed batch at `bytes[0]` as found at `position`.
pub(crate) fn whole(
    bytes: &Bytes,
    shard: &Uuid,
    position: u64,
    segment_size: u64,
) -> Result<(Header, Batch), &'static str> {
    let header = decode(bytes, shard, position, segment_size)?;
    let framed = usize::try_from(header.point.end - position).map_err(|_| "batch length is out of bounds")?;
    if bytes.len() < framed {
        return Err("the batch is cut short");
    }
    let batch = header.batch(&bytes.slice(HEADER..framed))?;
    Ok((header, batch))
}

/// The error for a place in the log that does not hold what it must.
pub(crate) fn damaged_log(position: u64, segment_size: u64, reason: &str) -> io::Error {
    let start = segment_of(position, segment_size);
    damaged(&segment_path(start), position - start, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 4096;

    fn sample() -> (Vec<u8>, LogPoint) {
        let new = NewBatch { term: 3, leader: 7, index: 9, kind: 1, payload: Bytes::from_static(b"hello") };
        let (mut header, point) = encode(&new, &[5; 16], 512, 77);
        stamp(&mut header, 400);
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(b"hello\0\0\0");
        (bytes, point)
    }

    #[test]
    fn a_batch_survives_the_round_trip() {
        let (bytes, point) = sample();
        let (header, batch) = whole(&bytes.into(), &[5; 16], 512, SEGMENT).unwrap();
        assert_eq!(batch.point, point);
        assert_eq!((header.previous, header.synced_to, batch.kind), (77, 400, 1));
        assert_eq!((&batch.payload[..], batch.payload_position), (&b"hello"[..], 608));
    }

    #[test]
    fn no_bit_of_a_batch_flips_unnoticed() {
        let (bytes, _) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&flipped.into(), &[5; 16], 512, SEGMENT).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_at_another_place_or_of_another_shard_is_refused() {
        let bytes = Bytes::from(sample().0);
        assert!(whole(&bytes, &[5; 16], 520, SEGMENT).unwrap_err().contains("another position"));
        assert!(whole(&bytes, &[6; 16], 512, SEGMENT).unwrap_err().contains("another shard"));
    }

    #[test]
    fn a_batch_that_does_not_fit_goes_to_the_next_segment() {
        assert_eq!(place(4000, 96, 4096), 4000);
        assert_eq!(place(4000, 104, 4096), 4096);
        assert_eq!(place(4096, 104, 4096), 4096);
        assert_eq!(place(0, 4096, 4096), 0);
    }
}
