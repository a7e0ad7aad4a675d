//! Frames: where one command ends and the next begins.
//!
//! ```text
//!  4 bytes BE    1 byte   3 bytes BE      n        length - 4 - n
//! +------------+--------+---------------+--------+---------------+
//! | length     | codec  | n             | header | body          |
//! +------------+--------+---------------+--------+---------------+
//!   counts everything after itself
//! ```
//!
//! Owns the limits of a frame and of its header. Promises to refuse a bad length, an unknown codec and a header that
//! does not fit as soon as the eight leading bytes are there, so that a caller never makes room for a frame that will
//! be refused. Allocates nothing. Does not know what a header says.

use std::fmt;

/// The largest frame served by default, its length field included, as in Apache's server.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// The largest header accepted. Apache's bound is that of the 24-bit field; real headers are below 40 KiB, and
/// one whose properties are a few times too long is still told so.
pub const MAX_HEADER: usize = 128 * 1024;

/// Bytes of a frame before its header.
pub const PREAMBLE: usize = 8;

/// How a header is written. The two are mixed freely on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum HeaderCodec {
    /// A JSON object; every client's default.
    Json = 0,
    /// The fixed layout that Apache calls ROCKETMQ.
    Binary = 1,
}

impl HeaderCodec {
    /// The codec of a frame's fifth byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Json),
            1 => Some(Self::Binary),
            _ => None,
        }
    }
}

/// One whole frame, borrowed from the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// How the header is written.
    pub codec: HeaderCodec,
    /// The header, at most [`MAX_HEADER`] bytes.
    pub header: &'a [u8],
    /// Everything after the header.
    pub body: &'a [u8],
}

/// What [`split`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split<'a> {
    /// A whole frame; `consumed` bytes of the input belong to it.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Bytes of the input to drop before the next call.
        consumed: usize,
    },
    /// The frame is not complete: at least `missing` more bytes are needed (never zero).
    Incomplete {
        /// A lower bound below eight bytes of input, exact from there on.
        missing: usize,
    },
}

/// Why an input can not be a frame. The connection has lost its place: close it, there is nothing to answer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The length does not even cover the header's own length field, or is negative.
    Length {
        /// As sent.
        length: i32,
    },
    /// The frame is above the caller's limit.
    TooLarge {
        /// Bytes of the frame, its length field included.
        frame: usize,
        /// The caller's limit.
        limit: usize,
    },
    /// Neither JSON nor binary. Usually another protocol on this port.
    Codec {
        /// The fifth byte.
        byte: u8,
    },
    /// The header is longer than its frame.
    HeaderBeyondFrame {
        /// Bytes of the header.
        header: usize,
        /// Bytes left for it.
        room: usize,
    },
    /// The header is above [`MAX_HEADER`].
    HeaderTooLarge {
        /// Bytes of the header.
        header: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { length } => write!(f, "frame length {length} is below 4"),
            Self::TooLarge { frame, limit } => {
                write!(f, "frame of {frame} bytes is above the limit of {limit}")
            }
            Self::Codec { byte } => write!(f, "unknown header codec {byte}"),
            Self::HeaderBeyondFrame { header, room } => {
                write!(f, "header of {header} bytes in a frame with room for {room}")
            }
            Self::HeaderTooLarge { header } => {
                write!(f, "header of {header} bytes is above the limit of {MAX_HEADER}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// Finds the first frame of `input`, which begins where a frame begins. `limit` bounds the whole frame in bytes
/// ([`MAX_FRAME`], or less before a peer is known).
///
/// Call again with what is left after `consumed` until the answer is [`Split::Incomplete`].
pub fn split(input: &[u8], limit: usize) -> Result<Split<'_>, FrameError> {
    let Some(length) = input.first_chunk::<4>() else {
        return Ok(Split::Incomplete { missing: PREAMBLE - input.len() });
    };
    let length = i32::from_be_bytes(*length);
    let after_length = match usize::try_from(length) {
        Ok(after_length) if after_length >= 4 => after_length,
        _ => return Err(FrameError::Length { length }),
    };
    let frame = after_length + 4;
    if frame > limit {
        return Err(FrameError::TooLarge { frame, limit });
    }
    let Some(&[_, _, _, _, codec, high, middle, low]) = input.first_chunk::<PREAMBLE>() else {
        return Ok(Split::Incomplete { missing: PREAMBLE - input.len() });
    };
    let codec = HeaderCodec::from_byte(codec).ok_or(FrameError::Codec { byte: codec })?;
    let header = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    let room = frame - PREAMBLE;
    if header > room {
        return Err(FrameError::HeaderBeyondFrame { header, room });
    }
    if header > MAX_HEADER {
        return Err(FrameError::HeaderTooLarge { header });
    }
    match input.get(PREAMBLE..frame) {
        Some(content) => {
            let (header, body) = content.split_at(header);
            Ok(Split::Frame { frame: Frame { codec, header, body }, consumed: frame })
        }
        None => Ok(Split::Incomplete { missing: frame - input.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(codec: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(4 + header.len() + body.len()).unwrap().to_be_bytes().to_vec();
        out.push(codec);
        out.extend_from_slice(&u32::try_from(header.len()).unwrap().to_be_bytes()[1..]);
        out.extend_from_slice(header);
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn a_whole_frame_is_cut_into_header_and_body() {
        let mut input = frame(1, b"head", b"body");
        input.extend_from_slice(b"next");
        let expected = Frame { codec: HeaderCodec::Binary, header: b"head", body: b"body" };
        assert_eq!(split(&input, MAX_FRAME), Ok(Split::Frame { frame: expected, consumed: 16 }));
    }

    #[test]
    fn a_frame_without_header_and_body_is_a_frame() {
        let input = frame(0, b"", b"");
        let expected = Frame { codec: HeaderCodec::Json, header: b"", body: b"" };
        assert_eq!(split(&input, MAX_FRAME), Ok(Split::Frame { frame: expected, consumed: 8 }));
    }

    #[test]
    fn a_length_below_four_is_refused() {
        for length in [0, 1, 3] {
            assert_eq!(
                split(&[0, 0, 0, length], MAX_FRAME),
                Err(FrameError::Length { length: length.into() })
            );
        }
    }

    #[test]
    fn a_negative_length_is_refused() {
        assert_eq!(split(&[0xff; 4], MAX_FRAME), Err(FrameError::Length { length: -1 }));
        assert_eq!(split(&[0x80, 0, 0, 0], MAX_FRAME), Err(FrameError::Length { length: i32::MIN }));
    }

    #[test]
    fn a_frame_of_the_limit_passes_and_one_byte_more_is_refused_from_its_length_alone() {
        let at_limit = u32::try_from(MAX_FRAME - 4).unwrap();
        assert_eq!(split(&at_limit.to_be_bytes(), MAX_FRAME), Ok(Split::Incomplete { missing: 4 }));
        assert_eq!(
            split(&(at_limit + 1).to_be_bytes(), MAX_FRAME),
            Err(FrameError::TooLarge { frame: MAX_FRAME + 1, limit: MAX_FRAME })
        );
    }

    #[test]
    fn a_header_longer_than_its_frame_is_refused_before_the_rest_arrives() {
        assert_eq!(
            split(&[0, 0, 0, 10, 0, 0, 0, 7], MAX_FRAME),
            Err(FrameError::HeaderBeyondFrame { header: 7, room: 6 })
        );
        assert_eq!(
            split(&[0, 0, 0, 4, 0, 0xff, 0xff, 0xff], MAX_FRAME),
            Err(FrameError::HeaderBeyondFrame { header: 0xff_ffff, room: 0 })
        );
    }

    #[test]
    fn a_header_above_its_limit_is_refused_before_the_rest_arrives() {
        assert_eq!(
            split(&[0, 0x10, 0, 0, 0, 2, 0, 1], MAX_FRAME),
            Err(FrameError::HeaderTooLarge { header: 0x2_0001 })
        );
    }

    #[test]
    fn every_unknown_codec_byte_is_refused() {
        for byte in 2..=255 {
            assert_eq!(split(&frame(byte, b"h", b"b"), MAX_FRAME), Err(FrameError::Codec { byte }));
        }
    }

    #[test]
    fn other_protocols_are_refused_by_their_first_bytes() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n",
            b"AMQP\x00\x00\x09\x01",
            b"\x16\x03\x01\x02\x00\x01",
        ] {
            assert!(split(other, MAX_FRAME).is_err());
        }
    }

    proptest! {
        #[test]
        fn an_incomplete_frame_says_how_much_is_missing(
            header in proptest::collection::vec(any::<u8>(), 0..40),
            body in proptest::collection::vec(any::<u8>(), 0..40),
            codec in 0u8..2,
        ) {
            let whole = frame(codec, &header, &body);
            for cut in 0..whole.len() {
                let Ok(Split::Incomplete { missing }) = split(&whole[..cut], MAX_FRAME) else {
                    panic!("cut at {cut}");
                };
                prop_assert!(missing > 0);
                prop_assert!(cut + missing <= whole.len());
                if cut >= PREAMBLE {
                    prop_assert_eq!(cut + missing, whole.len());
                }
            }
            let expected = Frame { codec: HeaderCodec::from_byte(codec).unwrap(), header: &header, body: &body };
            prop_assert_eq!(split(&whole, MAX_FRAME), Ok(Split::Frame { frame: expected, consumed: whole.len() }));
        }

        #[test]
        fn no_input_makes_the_splitter_panic(input in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = split(&input, MAX_FRAME);
        }
    }
}
