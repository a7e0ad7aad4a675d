//! Message ids: the broker's, which is an address and a place, and the producer's, which is a unique key.
//!
//! Owns both spellings, upper-case hexadecimal. Whatever makes a key unique (address, process, time, counter) comes
//! from the caller.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The broker's id of a message: where its record is. Written as 32 hexadecimal digits (IPv4) or 56 (IPv6).
///
/// Tools connect to the address in it, and an END_TRANSACTION takes the offset out of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MessageId {
    /// The broker that stores the message, as clients reach it.
    pub store_host: SocketAddr,
    /// The record's physical offset there.
    pub offset: i64,
}

/// A text that is no message id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdError;

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message id has 32 or 56 hexadecimal digits and a port below 65536")
    }
}

impl std::error::Error for IdError {}

impl MessageId {
    /// The id as text; the same as its `Display`, in one allocation.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(56);
        push_ip(&mut out, self.store_host.ip());
        push_hex(&mut out, &u32::from(self.store_host.port()).to_be_bytes());
        push_hex(&mut out, &self.offset.to_be_bytes());
        out
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encode())
    }
}

fn push_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => push_hex(out, &ip.octets()),
        IpAddr::V6(ip) => push_hex(out, &ip.octets()),
    }
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

impl std::str::FromStr for MessageId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(IdError);
        }
        let (ip, rest) = match text.len() {
            32 => (IpAddr::V4(parse(&text[..8], u32::from_str_radix)?.into()), &text[8..]),
            56 => (IpAddr::V6(parse(&text[..32], u128::from_str_radix)?.into()), &text[32..]),
            _ => return Err(IdError),
        };
        let port = u16::try_from(parse(&rest[..8], u32::from_str_radix)?).map_err(|_| IdError)?;
        let offset = parse(&rest[8..], u64::from_str_radix)?.cast_signed();
        Ok(Self { store_host: SocketAddr::new(ip, port), offset })
    }
}

fn parse<T>(digits: &str, radix: fn(&str, u32) -> Result<T, std::num::ParseIntError>) -> Result<T, IdError> {
    radix(digits, 16).map_err(|_| IdError)
}

/// A producer's key for a message, the property UNIQ_KEY, also given to messages that come without one. Written as 32
/// hexadecimal digits (IPv4) or 56 (IPv6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct UniqueKey {
    /// An address of the process.
    pub ip: IpAddr,
    /// Its process id, the lower bits.
    pub pid: u16,
    /// Tells two lives of one process id apart.
    pub instance: u32,
    /// When the message was made, in ms since 1970. Only the part since the month began (UTC) is written: tools
    /// compute an approximate time from it.
    pub unix_ms: u64,
    /// Counts messages.
    pub counter: u16,
}

impl UniqueKey {
    /// The key as text; the same as its `Display`, in one allocation.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(56);
        push_ip(&mut out, self.ip);
        push_hex(&mut out, &self.pid.to_be_bytes());
        push_hex(&mut out, &self.instance.to_be_bytes());
        // The upper half is zero: a month has less than 2^32 ms.
        push_hex(&mut out, &since_month_began(self.unix_ms).to_be_bytes()[4..]);
        push_hex(&mut out, &self.counter.to_be_bytes());
        out
    }
}

impl fmt::Display for UniqueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encode())
    }
}

/// Milliseconds since the first of the month, 0 h UTC; below 2^32, as a month has at most 31 days.
fn since_month_began(unix_ms: u64) -> u64 {
    const DAY: u64 = 86_400_000;
    // The civil date by the usual arithmetic on 400-year cycles of days counted from 0000-03-01.
    let day_of_era = (unix_ms / DAY + 719_468) % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // 0 = March
    let day_of_month = day_of_year - (153 * month + 2) / 5;
    day_of_month * DAY + unix_ms % DAY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    #[test]
    fn message_ids_are_javas() {
        let v4 = MessageId { store_host: "10.1.2.3:10911".parse().unwrap(), offset: 0x0123_4567_89AB_CDEF };
        assert_eq!(v4.to_string(), golden::misc("msgid_v4"));
        assert_eq!(golden::misc("msgid_v4").parse(), Ok(v4));
        let v6 = MessageId { store_host: "[2001:db8::1]:10911".parse().unwrap(), offset: -2 };
        assert_eq!(v6.to_string(), golden::misc("msgid_v6"));
        assert_eq!(golden::misc("msgid_v6").to_lowercase().parse(), Ok(v6));
    }

    #[test]
    fn what_is_no_message_id_is_refused() {
        let v4 = golden::misc("msgid_v4");
        for broken in [
            String::new(),
            v4[1..].to_owned(),
            format!("{v4}0"),
            v4.replace('A', "G"),
            v4.replace('A', "+"),
            format!("{}FFFFFFFF{}", &v4[..8], &v4[16..]),
            "é".repeat(16),
        ] {
            assert_eq!(broken.parse::<MessageId>(), Err(IdError), "{broken}");
        }
    }

    #[test]
    fn a_unique_key_has_its_parts_in_javas_order() {
        let key = UniqueKey {
            ip: "127.0.0.1".parse().unwrap(),
            pid: 0x2A13,
            instance: 0x9A55_150F,
            unix_ms: 1_709_251_200_000 - 1, // the last millisecond of February 2024
            counter: 7,
        };
        let since_month: u64 = 29 * 86_400_000 - 1;
        assert_eq!(key.to_string(), format!("7F0000012A139A55150F{since_month:08X}0007"));
        let v6 = UniqueKey { ip: "2001:db8::1".parse().unwrap(), ..key };
        assert_eq!(v6.to_string().len(), 56);
    }

    #[test]
    fn months_begin_at_their_first_day() {
        const DAY: u64 = 86_400_000;
        for (unix_days, days) in
            [(0, 0), (30, 30), (31, 0), (59, 0), (789, 28), (790, 0), (19_722, 30), (19_723, 0), (20_454, 0)]
        {
            assert_eq!(since_month_began(unix_days * DAY + 5), days * DAY + 5, "{unix_days}");
        }
    }

    proptest! {
        #[test]
        fn message_ids_survive_the_trip(ip in any::<IpAddr>(), port in any::<u16>(), offset in any::<i64>()) {
            let id = MessageId { store_host: SocketAddr::new(ip, port), offset };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn the_part_of_a_month_fits_its_eight_digits(unix_ms in any::<u64>()) {
            prop_assert!(since_month_began(unix_ms) < 31 * 86_400_000);
        }
    }
}
