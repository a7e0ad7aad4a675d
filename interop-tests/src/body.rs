//! A message body that proves itself: who sent it, in which run, in which order, whither, and that no byte of it changed.
//!
//! ```text
//! dassie1 <run> <publisher> <seq> <queue> <length, 8 digits> <checksum, 8 hex digits>\n<filler up to length>
//! ```
//!
//! The checksum is the CRC-32 of gzip and PNG over the body without its eight checksum digits, so that every language a
//! client is written in can make and verify a body in a few lines. The filler walks through all byte values: a path that
//! mistakes bytes for text can not carry it unharmed.
//!
//! Owns: this layout. Promises: a body with any bit flipped, cut or appended does not verify.
//! Does not know: histories, queues' owners, protocols.

use std::fmt;

use crc32fast::Hasher;

const MAGIC: &str = "dassie1";
const LENGTH_MAX: usize = 99_999_999;
const CHECKSUM_DIGITS: usize = 8;

/// What a body says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The run it belongs to; a body of another run is a phantom.
    pub run: &'a str,
    /// Its publisher, unique in the run.
    pub publisher: &'a str,
    /// Its number among the publisher's messages, ascending.
    pub seq: u32,
    /// The queue, exchange or topic it was published to.
    pub queue: &'a str,
}

impl Identity<'_> {
    /// A body of `size` bytes, or as many more as the identity itself takes.
    ///
    /// # Errors
    /// A name that is empty or has white space, and a size of more than eight digits, can not be written.
    pub fn encode(&self, size: usize) -> Result<Vec<u8>, Unfit> {
        for name in [self.run, self.publisher, self.queue] {
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(Unfit::Name(name.to_owned()));
            }
        }
        let Self { run, publisher, seq, queue } = self;
        let names = format!("{MAGIC} {run} {publisher} {seq} {queue} ");
        let rest_of_header = "00000000 ".len() + CHECKSUM_DIGITS + "\n".len();
        let length = size.max(names.len() + rest_of_header);
        if length > LENGTH_MAX {
            return Err(Unfit::Length(length));
        }
        let mut tail = Vec::with_capacity(length);
        tail.push(b'\n');
        tail.extend(filler(*seq).take(length - names.len() - rest_of_header));
        let head = format!("{names}{length:08} ");
        let sum = checksum_of(&[head.as_bytes(), &tail]);
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(format!("{sum:08x}").as_bytes());
        body.extend_from_slice(&tail);
        Ok(body)
    }
}

/// All byte values in turn, starting elsewhere for each message so that a neighbour's filler does not fit.
fn filler(seq: u32) -> impl Iterator<Item = u8> {
    let [first, ..] = seq.to_le_bytes();
    (0..=u8::MAX).cycle().map(move |step| first.wrapping_add(step.wrapping_mul(31)))
}

/// The checksum of anything else that must arrive as it left, for example a message's properties.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    checksum_of(&[bytes])
}

fn checksum_of(parts: &[&[u8]]) -> u32 {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Reads a body's identity after proving that it is whole and of this run.
///
/// # Errors
/// The first [`Damage`] found; its text is what a history notes as the reason.
pub fn verify<'a>(body: &'a [u8], run: &str) -> Result<Identity<'a>, Damage> {
    let end = body.iter().position(|byte| *byte == b'\n').ok_or(Damage::Header)?;
    let header = std::str::from_utf8(&body[..end]).map_err(|_| Damage::Header)?;
    let fields: Vec<&str> = header.split(' ').collect();
    let &[MAGIC, of_run, publisher, seq, queue, length, sum] = fields.as_slice() else {
        return Err(Damage::Header);
    };
    let named: usize = length.parse().map_err(|_| Damage::Header)?;
    if named != body.len() {
        return Err(Damage::Length { named, found: body.len() });
    }
    let found = checksum_of(&[&body[..end - sum.len()], &body[end..]]);
    // Compared as text: "ABCD" for "abcd" is a changed byte too.
    if format!("{found:08x}") != sum {
        return Err(Damage::Checksum);
    }
    let seq = seq.parse().map_err(|_| Damage::Header)?;
    if of_run != run {
        return Err(Damage::ForeignRun);
    }
    Ok(Identity { run: of_run, publisher, seq, queue })
}

/// Why a body can not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// An empty name, or one with white space.
    Name(String),
    /// More bytes than the header can name.
    Length(usize),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name:?} can not be a name in a body"),
            Self::Length(length) => write!(f, "a body of {length} bytes is too long"),
        }
    }
}

impl std::error::Error for Unfit {}

/// Why a body does not prove itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The first line is not a header of ours.
    Header,
    /// Bytes are missing or were added.
    Length {
        /// Length by the header.
        named: usize,
        /// Length that arrived.
        found: usize,
    },
    /// The bytes are not those that were sent.
    Checksum,
    /// Sound, but of another run: something survived that should be gone.
    ForeignRun,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "no header"),
            Self::Length { named, found } => write!(f, "{found} bytes instead of {named}"),
            Self::Checksum => write!(f, "checksum differs"),
            Self::ForeignRun => write!(f, "of another run"),
        }
    }
}

impl std::error::Error for Damage {}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity<'_> = Identity { run: "r1", publisher: "p1", seq: 42, queue: "q" };

    #[test]
    fn a_body_has_the_size_asked_for_and_tells_who_it_is() {
        let body = IDENTITY.encode(1024).unwrap();
        assert_eq!(body.len(), 1024);
        assert_eq!(verify(&body, "r1"), Ok(IDENTITY));
    }

    #[test]
    fn a_size_too_small_for_the_header_still_gives_a_body_that_verifies() {
        let body = IDENTITY.encode(0).unwrap();
        assert_eq!(body, b"dassie1 r1 p1 42 q 00000037 0f0e306a\n");
        assert_eq!(verify(&body, "r1"), Ok(IDENTITY));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let body = IDENTITY.encode(300).unwrap();
        for at in 0..body.len() {
            for bit in 0..8 {
                let mut flipped = body.clone();
                flipped[at] ^= 1 << bit;
                assert!(verify(&flipped, "r1").is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn every_cut_and_every_added_byte_is_found() {
        let body = IDENTITY.encode(300).unwrap();
        for length in 0..body.len() {
            assert!(verify(&body[..length], "r1").is_err(), "cut to {length}");
        }
        let longer = [body, vec![0]].concat();
        assert_eq!(verify(&longer, "r1"), Err(Damage::Length { named: 300, found: 301 }));
    }

    #[test]
    fn a_body_of_another_run_is_refused() {
        let body = IDENTITY.encode(64).unwrap();
        assert_eq!(verify(&body, "r2"), Err(Damage::ForeignRun));
    }

    #[test]
    fn names_that_would_blur_the_header_are_refused() {
        for name in ["", "two words", "line\nbreak", "tab\t"] {
            let identity = Identity { queue: name, ..IDENTITY };
            assert_eq!(identity.encode(64), Err(Unfit::Name(name.to_owned())));
        }
        assert_eq!(IDENTITY.encode(LENGTH_MAX + 1), Err(Unfit::Length(LENGTH_MAX + 1)));
    }

    #[test]
    fn retry_topics_of_rocketmq_are_good_names() {
        let identity = Identity { queue: "%RETRY%group", ..IDENTITY };
        let body = identity.encode(128).unwrap();
        assert_eq!(verify(&body, "r1"), Ok(identity));
    }
}
