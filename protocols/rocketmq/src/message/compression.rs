//! Compressed bodies: what they are, and the only bounded way to open one.
//!
//! A broker never opens a body for a RocketMQ client, and never packs one: the Go client reads zlib only. Opening
//! is for readers of another protocol. Promises: a body that would be larger than the caller allows costs no more memory than
//! that, and one window of its format.

use super::SysFlag;
use std::fmt;

/// How a body is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// zlib (RFC 1950); also what a flag without a kind means.
    Zlib,
}

impl SysFlag {
    /// How the body is compressed; `None` if it is not. Kinds 4 to 7 are nobody's.
    pub const fn compression(self) -> Result<Option<Compression>, DecompressError> {
        if !self.has(Self::COMPRESSED) {
            return Ok(None);
        }
        match (self.0 & Self::COMPRESSION) >> 8 {
            1 => Ok(Some(Compression::Lz4)),
            2 => Ok(Some(Compression::Zstd)),
            0 | 3 => Ok(Some(Compression::Zlib)),
            kind => Err(DecompressError::UnknownKind { kind }),
        }
    }
}

/// Why a body can not be opened. It can still be handed to RocketMQ clients as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecompressError {
    /// The flag names a kind that nobody defines.
    UnknownKind {
        /// As in the flag.
        kind: i32,
    },
    /// A kind that this build does not open.
    Unsupported(Compression),
    /// The opened body would be above the limit.
    TooLarge {
        /// The caller's limit.
        limit: usize,
    },
    /// The body is not what its flag says, or was cut.
    Corrupt,
}

impl fmt::Display for DecompressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(f, "unknown kind of compression {kind}"),
            Self::Unsupported(kind) => write!(f, "{kind:?} bodies are not opened here"),
            Self::TooLarge { limit } => write!(f, "the body is above {limit} bytes when opened"),
            Self::Corrupt => f.write_str("the compressed body is corrupt"),
        }
    }
}

impl std::error::Error for DecompressError {}

/// Opens a body of a kind, at most `limit` bytes of it.
pub fn decompress_bounded(kind: Compression, body: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    #[cfg(feature = "compression")]
    return match kind {
        Compression::Zlib => inflate_bounded(body, limit),
        // A stream that does not begin as a frame is read as one that has ended.
        Compression::Lz4 if !body.starts_with(&LZ4_MAGIC) => Err(DecompressError::Corrupt),
        Compression::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(body), limit),
        Compression::Zstd => {
            let stream = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(body, ZSTD_WINDOW_MAX);
            read_bounded(stream.map_err(|_| DecompressError::Corrupt)?, limit)
        }
    };
    #[cfg(not(feature = "compression"))]
    {
        let _ = (body, limit);
        Err(DecompressError::Unsupported(kind))
    }
}

/// How an LZ4 frame begins.
#[cfg(feature = "compression")]
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];
/// The largest window that every reader of ZSTD has to have (RFC 8878), bytes. What a producer packs at the levels that
/// Apache's clients offer stays below it.
#[cfg(feature = "compression")]
const ZSTD_WINDOW_MAX: u64 = 8 * 1024 * 1024;

/// Opens a zlib body, at most `limit` bytes of it. What follows the zlib stream is ignored, as Java does.
#[cfg(feature = "compression")]
pub fn inflate_bounded(body: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    read_bounded(flate2::read::ZlibDecoder::new(body), limit)
}

#[cfg(feature = "compression")]
fn read_bounded(stream: impl std::io::Read, limit: usize) -> Result<Vec<u8>, DecompressError> {
    use std::io::Read;

    // One byte beyond the limit tells a body of exactly the limit from a longer one.
    let beyond = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut opened = Vec::new();
    stream.take(beyond).read_to_end(&mut opened).map_err(|_| DecompressError::Corrupt)?;
    if opened.len() > limit { Err(DecompressError::TooLarge { limit }) } else { Ok(opened) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_stands_in_three_bits_and_zero_means_zlib() {
        let kind = |bits: i32| SysFlag(SysFlag::COMPRESSED | bits << 8).compression();
        assert_eq!(kind(0), Ok(Some(Compression::Zlib)));
        assert_eq!(kind(1), Ok(Some(Compression::Lz4)));
        assert_eq!(kind(2), Ok(Some(Compression::Zstd)));
        assert_eq!(kind(3), Ok(Some(Compression::Zlib)));
        assert_eq!(kind(4), Err(DecompressError::UnknownKind { kind: 4 }));
        assert_eq!(SysFlag(3 << 8).compression(), Ok(None));
    }

    #[cfg(not(feature = "compression"))]
    #[test]
    fn kinds_are_named_as_unsupported() {
        for kind in [Compression::Lz4, Compression::Zstd, Compression::Zlib] {
            assert_eq!(decompress_bounded(kind, b"", 10), Err(DecompressError::Unsupported(kind)));
        }
    }

    /// As the compressors of the Java client 5.4.0 write them.
    #[cfg(feature = "compression")]
    #[test]
    fn javas_lz4_and_zstd_bodies_are_opened() {
        for (kind, hex) in [
            (Compression::Lz4, "04224d186070730f0000006e68656c6c6f2006005068656c6c6f00000000"),
            (Compression::Zstd, "28b52ffd00586400003068656c6c6f200100a94b11010000"),
        ] {
            let body = crate::golden::unhex(hex);
            let opened = b"hello hello hello hello hello";
            assert_eq!(decompress_bounded(kind, &body, 29).unwrap(), opened, "{kind:?}");
            let too_large = Err(DecompressError::TooLarge { limit: 28 });
            assert_eq!(decompress_bounded(kind, &body, 28), too_large, "{kind:?}");
            for cut in 1..body.len() - 4 {
                let read = decompress_bounded(kind, &body[..cut], 100);
                assert_ne!(read.as_deref(), Ok(&opened[..]), "{kind:?} cut at {cut}");
            }
            assert_eq!(decompress_bounded(kind, b"junk", 100), Err(DecompressError::Corrupt), "{kind:?}");
        }
    }

    /// A window of 2 GiB, as its header says.
    #[cfg(feature = "compression")]
    #[test]
    fn a_window_beyond_every_readers_is_refused_before_it_is_made() {
        let body = crate::golden::unhex("28b52ffd00a86400003068656c6c6f200100a94b11010000");
        assert_eq!(decompress_bounded(Compression::Zstd, &body, 100), Err(DecompressError::Corrupt));
    }

    #[cfg(feature = "compression")]
    #[test]
    fn javas_zlib_body_is_opened() {
        let body = crate::golden::unhex(crate::golden::misc("zlib"));
        assert_eq!(
            decompress_bounded(Compression::Zlib, &body, 29).unwrap(),
            b"hello hello hello hello hello"
        );
        assert_eq!(inflate_bounded(&body, 28), Err(DecompressError::TooLarge { limit: 28 }));
        assert_eq!(inflate_bounded(&body[..8], 100), Err(DecompressError::Corrupt));
        assert_eq!(inflate_bounded(b"junk", 100), Err(DecompressError::Corrupt));
        assert_eq!(inflate_bounded(b"", 100), Err(DecompressError::Corrupt));
    }

    #[cfg(feature = "compression")]
    #[test]
    fn a_bomb_is_opened_no_further_than_the_limit() {
        use std::io::Write;
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&vec![0; 50_000_000]).unwrap();
        let bomb = packer.finish().unwrap();
        assert!(bomb.len() < 60_000);
        assert_eq!(inflate_bounded(&bomb, 1_000), Err(DecompressError::TooLarge { limit: 1_000 }));
        // One block of ZSTD that repeats one byte 128 KiB often, a thousand times; the last bit of each header says when it ends.
        let mut bomb = crate::golden::unhex("28b52ffd0058");
        for block in 0..1_000_u32 {
            let header = u32::from(block == 999) | 1 << 1 | (128 * 1024) << 3;
            bomb.extend_from_slice(&header.to_le_bytes()[..3]);
            bomb.push(0);
        }
        let opened = decompress_bounded(Compression::Zstd, &bomb, 1_000);
        assert_eq!(opened, Err(DecompressError::TooLarge { limit: 1_000 }));
    }
}
