//! Backups: taken from a running broker, restored into a new store.
//!
//! ```text
//!   dassie backup ──POST /api/backup, what the directory has──▶ serve: holds checkpoint and log, sends what is missing
//!                 ◀─────────────────frames────────────────────  take: writes the directory, its manifest last
//!   dassie restore: directory ─▶ a new store                    dassie verify: reads everything, changes nothing
//! ```
//!
//! Owns: the frames between the two sides, and the words of the commands. Promises: see the rooms' files. Does not know: what files
//! consist of (`dassie_storage`), who may ask (the management API).
//!
//! A frame is its kind (u8), the length of what follows (u32), and that:
//!
//! | kind | behind its head |
//! |---|---|
//! | 1 manifest | `Manifest`, without digests: what is offered |
//! | 2 not | part (u32), digest (u64): the directory has it |
//! | 3 chunk | part (u32), offset (u64), CRC-32C of part, offset and bytes (u32), bytes |
//! | 4 zeros | part (u32), offset (u64), CRC-32C of all three (u32), how many (u64) |
//! | 5 end | nothing: that was all |
//! | 6 failed | the reason, UTF-8 |

pub mod restore;
pub mod serve;
pub mod take;
pub mod verify;

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm::Crc32Iscsi;

use crate::process::Failure;

const MANIFEST: u8 = 1;
const NOT: u8 = 2;
const CHUNK: u8 = 3;
const ZEROS: u8 = 4;
const END: u8 = 5;
const FAILED: u8 = 6;

/// Bytes before what a frame holds.
const HEAD: usize = 5;

fn head(kind: u8, len: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(HEAD + 24);
    bytes.put_u8(kind);
    bytes.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX)); // chunks are small; manifests name files
    bytes
}

fn frame(kind: u8, content: &[u8]) -> Bytes {
    let mut bytes = head(kind, content.len());
    bytes.put_slice(content);
    bytes.freeze()
}

fn crc(part: u32, offset: u64, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(Crc32Iscsi);
    digest.update(&part.to_le_bytes());
    digest.update(&offset.to_le_bytes());
    digest.update(bytes);
    u32::try_from(digest.finalize()).unwrap_or(0) // a 32-bit algorithm
}

/// `2026-11-21 22:35:07 UTC`
#[must_use]
pub(crate) fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days since 0000-03-01; years begin in March, so that the odd day is their last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// ms since 1970 of `2026-11-21T22:35:07[.123]Z`, `2026-11-21 22:35[:07] [UTC]`: always UTC.
fn parse_utc(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches("UTC").trim_end_matches('Z').trim_end();
    let (date, time) = text.split_once(['T', ' '])?;
    let number = |text: &str, len: usize| {
        text.parse::<u64>().ok().filter(|_| text.len() == len && text.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut clock = clock.split(':');
    let (hour, minute) = (number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let second = clock.next().map_or(Some(0), |second| number(second, 2))?;
    let ms = if fraction.is_empty() { 0 } else { number(&format!("{fraction:0<3}"), 3)? };
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let last = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if date.next().is_some() || clock.next().is_some() {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1;
    Some((((days - 719_468) * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms)
}

/// `3 KiB`, `120 MiB`, `4.2 GiB`
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

/// A failure in a directory, in one line: damage has an exit code of its own.
fn said(error: &std::io::Error, at: &str) -> Failure {
    let text = format!("{at}: {error}");
    if error.kind() == std::io::ErrorKind::InvalidData { Failure::damaged(text) } else { Failure::new(text) }
}

/// Says on standard error how far long work is, now and then.
struct Progress {
    what: &'static str,
    clock: crate::clock::SystemClock,
    said: u64,
}

impl Progress {
    /// Seconds between two lines.
    const EVERY: u64 = 2;

    fn new(what: &'static str) -> Self {
        Progress { what, clock: crate::clock::SystemClock::new(), said: 0 }
    }

    /// `total` 0: it is not known.
    fn at(&mut self, done: u64, total: u64) {
        use crate::clock::Clock as _;
        let now = self.clock.monotonic().as_secs();
        if now >= self.said + Self::EVERY {
            self.said = now;
            let of = if total == 0 { String::new() } else { format!(" of {}", size(total)) };
            eprintln!("dassie: {}: {}{of}", self.what, size(done));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, ms) in [
            ("1970-01-01 00:00:00 UTC", 0),
            ("2000-02-29 23:59:59 UTC", 951_868_799_000),
            ("2026-11-21 22:35:07 UTC", 1_795_300_507_000),
            ("2100-03-01 00:00:00 UTC", 4_107_542_400_000),
        ] {
            assert_eq!(parse_utc(text), Some(ms), "{text}");
            assert_eq!(utc(ms), text);
        }
        assert_eq!(parse_utc("2026-11-21T22:35:07.25Z"), Some(1_795_300_507_250));
        assert_eq!(parse_utc("2026-11-21 22:35"), Some(1_795_300_500_000));
        for wrong in
            ["2026-02-29 00:00:00", "2026-11-21", "yesterday", "2026-11-21 24:00:00", "2026-13-01 00:00:00"]
        {
            assert_eq!(parse_utc(wrong), None, "{wrong}");
        }
    }
}
