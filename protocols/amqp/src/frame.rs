//! The envelope: protocol header and frames (spec 2.3.5, 4.2.2, 4.2.3).
//!
//! ```text
//!   protocol header          frame
//!   ┌───┬───┬───┬───┬───────┐  ┌──────┬─────────┬──────┬─ size octets ─┬──────┐
//!   │'A'│'M'│'Q'│'P'│0 0 9 1│  │ kind │ channel │ size │    payload    │ 0xCE │
//!   └───┴───┴───┴───┴───────┘  └ u8 ──┴── u16 ──┴─ u32 ┴───────────────┴──────┘
//! ```
//!
//! Owns cutting a byte stream into frames. Promises that the size field is checked against the limit before
//! anybody waits, or makes room, for that many bytes, and that payloads are slices of the input. Does not
//! know what a payload means, nor which frame may come when.

use std::fmt;

use crate::reply::{Exception, ReplyCode};
use crate::wire::to_usize;

/// What a client sends first, and what a server answers to anything else.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// The older spelling of AMQP 0-9 that RabbitMQ serves as if it were 0-9-1.
const PROTOCOL_HEADER_0_9: [u8; 8] = *b"AMQP\x01\x01\x00\x09";

/// Ends every frame.
pub const FRAME_END: u8 = 0xCE;

/// Bytes before the payload: kind, channel, size.
pub const FRAME_HEAD: usize = 7;

/// Bytes of a frame that are not payload: the head and the end octet.
pub const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;

/// The smallest `frame_max` that may be negotiated (spec 4.2.3, frame-min-size).
pub const FRAME_MIN_SIZE: u32 = 4096;

/// A whole heartbeat frame (spec 4.2.7).
pub const HEARTBEAT: [u8; 8] = [FrameKind::Heartbeat as u8, 0, 0, 0, 0, 0, 0, FRAME_END];

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A method: class id, method id, arguments.
    Method = 1,
    /// A content header: class id, weight, body size, properties.
    Header = 2,
    /// A piece of a content body.
    Body = 3,
    /// Nothing: a sign of life.
    Heartbeat = 8,
}

impl FrameKind {
    const fn from_octet(octet: u8) -> Result<Self, FrameError> {
        match octet {
            1 => Ok(Self::Method),
            2 => Ok(Self::Header),
            3 => Ok(Self::Body),
            8 => Ok(Self::Heartbeat),
            other => Err(FrameError::UnknownKind(other)),
        }
    }
}

/// One frame; its payload lies in the input it was split from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameKind,
    /// The channel it belongs to; 0 is the connection itself.
    pub channel: u16,
    /// The bytes between head and end octet.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// The size of the whole frame in bytes, head and end octet included.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        self.payload.len() + FRAME_OVERHEAD
    }
}

/// What [`split`] found at the front of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split<'a> {
    /// A complete frame; the caller goes on [`Frame::encoded_len`] bytes further.
    Frame(Frame<'a>),
    /// No complete frame yet: at least this many more bytes must arrive (never 0, never more than the frame
    /// limit and its overhead).
    NeedMore(usize),
}

/// Why the byte stream can no longer be cut into frames. Nothing after such an error can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The first octet is not a frame kind.
    UnknownKind(u8),
    /// The payload would be larger than agreed.
    TooLarge {
        /// The announced payload size in bytes.
        size: u32,
        /// The limit in force in bytes.
        frame_max: u32,
    },
    /// The octet after the payload is not [`FRAME_END`].
    BadEnd(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind(octet) => write!(f, "unknown frame type {octet}"),
            Self::TooLarge { size, frame_max } => {
                write!(f, "frame too large: {size} bytes of payload, frame_max is {frame_max}")
            }
            Self::BadEnd(octet) => write!(f, "invalid frame end marker {octet}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for Exception {
    fn from(error: FrameError) -> Self {
        Self::new(ReplyCode::FrameError, error)
    }
}

/// Cuts the first frame off `input`.
///
/// `frame_max` is the limit in force in bytes. It bounds the *payload*, not the whole frame: RabbitMQ
/// forgives the eight bytes by which some clients miscount, so Dassie does too.
///
/// # Errors
/// As soon as the first wrong byte is there; a frame that is too large is refused when its size field is
/// complete.
#[inline]
pub fn split(input: &[u8], frame_max: u32) -> Result<Split<'_>, FrameError> {
    let Some((&[kind, c1, c0, s3, s2, s1, s0], rest)) = input.split_first_chunk::<FRAME_HEAD>() else {
        if let Some(&kind) = input.first() {
            FrameKind::from_octet(kind)?;
        }
        return Ok(Split::NeedMore(FRAME_OVERHEAD - input.len()));
    };
    let kind = FrameKind::from_octet(kind)?;
    let size = u32::from_be_bytes([s3, s2, s1, s0]);
    if size > frame_max {
        return Err(FrameError::TooLarge { size, frame_max });
    }
    let size = to_usize(size);
    let Some((payload, [end, ..])) = rest.split_at_checked(size) else {
        return Ok(Split::NeedMore(size + 1 - rest.len()));
    };
    if *end != FRAME_END {
        return Err(FrameError::BadEnd(*end));
    }
    Ok(Split::Frame(Frame { kind, channel: u16::from_be_bytes([c1, c0]), payload }))
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolHeader {
    /// AMQP 0-9-1 (or 0-9): eight bytes, then frames.
    Accepted,
    /// The beginning of a protocol header: this many more bytes must arrive.
    NeedMore(usize),
    /// Something else: answer [`PROTOCOL_HEADER`] and close.
    Foreign,
}

/// Looks at the first bytes of a connection. They are refused at the first byte that does not fit.
#[must_use]
pub fn protocol_header(input: &[u8]) -> ProtocolHeader {
    let seen = &input[..input.len().min(PROTOCOL_HEADER.len())];
    if !PROTOCOL_HEADER.starts_with(seen) && !PROTOCOL_HEADER_0_9.starts_with(seen) {
        return ProtocolHeader::Foreign;
    }
    match PROTOCOL_HEADER.len() - seen.len() {
        0 => ProtocolHeader::Accepted,
        missing => ProtocolHeader::NeedMore(missing),
    }
}

/// A frame whose payload is being written; [`FrameStart::end`] fills in its size.
pub(crate) struct FrameStart {
    /// Where the payload begins in the output.
    payload: usize,
}

impl FrameStart {
    /// Appends the head of a frame, its size still open.
    #[inline]
    pub(crate) fn begin(kind: FrameKind, channel: u16, out: &mut Vec<u8>) -> Self {
        let [c1, c0] = channel.to_be_bytes();
        out.extend_from_slice(&[kind as u8, c1, c0, 0, 0, 0, 0]);
        Self { payload: out.len() }
    }

    /// Fills in the size and appends the end octet.
    ///
    /// # Panics
    /// If the payload has 4 GiB or more.
    #[inline]
    pub(crate) fn end(self, out: &mut Vec<u8>) {
        let size = u32::try_from(out.len() - self.payload).expect("a payload is shorter than 4 GiB");
        out[self.payload - 4..self.payload].copy_from_slice(&size.to_be_bytes());
        out.push(FRAME_END);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = FRAME_MIN_SIZE;

    fn frame_bytes(kind: u8, channel: u16, size: u32, payload: &[u8], end: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&channel.to_be_bytes());
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes.push(end);
        bytes
    }

    #[test]
    fn a_frame_is_found_wherever_the_stream_was_cut() {
        let bytes = frame_bytes(1, 0x0102, 5, b"hello", FRAME_END);
        for cut in 0..bytes.len() {
            let Ok(Split::NeedMore(missing)) = split(&bytes[..cut], MAX) else { panic!("cut at {cut}") };
            assert!((1..=bytes.len() - cut).contains(&missing), "cut at {cut}: {missing}");
        }
        let frame = Frame { kind: FrameKind::Method, channel: 0x0102, payload: b"hello" };
        assert_eq!(split(&bytes, MAX), Ok(Split::Frame(frame)));
        assert_eq!(frame.encoded_len(), bytes.len());
    }

    #[test]
    fn bytes_after_a_frame_are_left_alone() {
        let mut bytes = HEARTBEAT.to_vec();
        bytes.push(77);
        let heartbeat = Frame { kind: FrameKind::Heartbeat, channel: 0, payload: &[] };
        assert_eq!(split(&bytes, MAX), Ok(Split::Frame(heartbeat)));
    }

    #[test]
    fn an_unknown_kind_is_refused_at_its_first_byte() {
        for kind in [0, 4, 5, 7, 9, b'A', 255] {
            assert_eq!(split(&[kind], MAX), Err(FrameError::UnknownKind(kind)));
            assert_eq!(
                split(&frame_bytes(kind, 0, 0, &[], FRAME_END), MAX),
                Err(FrameError::UnknownKind(kind))
            );
        }
    }

    #[test]
    fn a_size_above_the_limit_is_refused_before_its_payload_arrives() {
        for size in [MAX + 1, u32::MAX] {
            let head = frame_bytes(3, 1, size, &[], 0);
            assert_eq!(split(&head[..FRAME_HEAD], MAX), Err(FrameError::TooLarge { size, frame_max: MAX }));
        }
    }

    #[test]
    fn a_client_may_miscount_by_the_overhead_of_a_frame() {
        let payload = vec![0; MAX as usize];
        assert!(matches!(split(&frame_bytes(3, 1, MAX, &payload, FRAME_END), MAX), Ok(Split::Frame(_))));
    }

    #[test]
    fn any_other_end_octet_is_refused() {
        for end in [0, 0xCD, 0xCF, 255] {
            assert_eq!(split(&frame_bytes(1, 1, 2, &[1, 2], end), MAX), Err(FrameError::BadEnd(end)));
        }
    }

    #[test]
    fn both_spellings_of_the_protocol_header_are_accepted() {
        assert_eq!(protocol_header(b"AMQP\x00\x00\x09\x01and more"), ProtocolHeader::Accepted);
        assert_eq!(protocol_header(b"AMQP\x01\x01\x00\x09"), ProtocolHeader::Accepted);
        for seen in 0..8 {
            assert_eq!(protocol_header(&PROTOCOL_HEADER[..seen]), ProtocolHeader::NeedMore(8 - seen));
        }
    }

    #[test]
    fn other_protocols_are_refused_at_the_first_byte_that_differs() {
        for header in [
            &b"G"[..],
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"AMQP\x00\x01\x00\x00",
            b"AMQP\x03\x01\x00\x00",
            b"AMQP\x00\x00\x09\x02",
            b"AMQP\x00\x00\x08",
            b"AMQPX",
            b"\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(protocol_header(header), ProtocolHeader::Foreign, "{header:?}");
        }
    }
}
