//! The stored record: Apache's CommitLog layout, which is also what pull, query and view answers are made of.
//!
//! ```text
//!   0  total size          4       48  born host         8 (IPv4 + port) or 20 (IPv6 + port)
//!   4  magic               4      +0  store time         8
//!   8  body CRC            4      +8  store host         8 or 20
//!  12  queue id            4     +16  reconsume times    4
//!  16  flag                4     +20  prepared offset    8
//!  20  queue offset        8     +28  body length        4     -- end of the prefix
//!  28  physical offset     8      ..  body               n
//!  36  system flag         4      ..  topic length       1 (v1) or 2 (v2)     -- start of the suffix
//!  40  born time           8      ..  topic, 2 bytes properties length, properties
//! ```
//!
//! All integers are big-endian. Owns the layout, both versions, and the positions that are patched after encoding.
//! Promises that an encoded record decodes to itself, and that no input makes decoding panic or allocate. Does not
//! know where a record lies: prefix, body and suffix may lie apart.

use super::{Properties, SysFlag};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// Begins a record whose topic length has one byte: topics up to 127 bytes.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Begins a record whose topic length has two bytes. The Go client misreads it.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;

/// Where an encoded record has its queue id (4 bytes).
pub const PATCH_QUEUE_ID: usize = 12;
/// Where an encoded record has its queue offset (8 bytes).
pub const PATCH_QUEUE_OFFSET: usize = 20;
/// Where an encoded record has its physical offset (8 bytes).
pub const PATCH_PHYSICAL_OFFSET: usize = 28;
/// Where an encoded record has its store time (8 bytes), if its born host is IPv4.
pub const PATCH_STORE_TIME_BORN_V4: usize = 56;
/// Where an encoded record has its store time (8 bytes), if its born host is IPv6.
pub const PATCH_STORE_TIME_BORN_V6: usize = 68;

const AT_SYS_FLAG: usize = 36;
const AT_BORN_HOST: usize = 48;

/// Topics up to this length are written as v1.
const MAX_V1_TOPIC: usize = 127;

/// Everything of a record but its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The queue.
    pub queue_id: i32,
    /// The application's own flag.
    pub flag: i32,
    /// The message's offset in the queue.
    pub queue_offset: i64,
    /// The message's place in the log.
    pub physical_offset: i64,
    /// The system flag. Encoding sets its two address bits to what the hosts are.
    pub sys_flag: SysFlag,
    /// When the producer made the message, in ms since 1970.
    pub born_time: i64,
    /// The producer's address, written as it is: give an IPv4 peer of an IPv6 socket as IPv4 (`to_canonical`).
    pub born_host: SocketAddr,
    /// When the broker stored the message, in ms since 1970.
    pub store_time: i64,
    /// The broker's address, as clients reach it.
    pub store_host: SocketAddr,
    /// How often the message was consumed in vain.
    pub reconsume_times: i32,
    /// Of a committed message, its half message's place.
    pub prepared_transaction_offset: i64,
    /// The topic.
    pub topic: &'a str,
    /// The properties.
    pub properties: Properties<'a>,
}

/// What a prefix says of the body that follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body {
    /// Its length in bytes.
    pub length: u32,
    /// Its [`body_crc`].
    pub crc: u32,
}

impl Body {
    /// Measures a body.
    pub fn of(body: &[u8]) -> Result<Self, RecordError> {
        let length = u32::try_from(body.len()).map_err(|_| RecordError::TooLarge)?;
        Ok(Self { length, crc: body_crc(body) })
    }
}

/// The checksum of a body: CRC-32 (IEEE) without its highest bit, which would make it negative for Java.
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7FFF_FFFF
}

/// A record that can not be written, or bytes that are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// Above 2 GiB.
    TooLarge,
    /// The topic is empty or above 32,767 bytes.
    Topic,
    /// The properties are above 32,767 bytes.
    Properties,
    /// Fewer bytes than a length claims.
    Truncated,
    /// Neither magic.
    Magic {
        /// As found.
        magic: u32,
    },
    /// The total size is not the sum of the parts.
    Size {
        /// As found.
        total: u32,
    },
    /// A length is negative.
    NegativeLength,
    /// A port above 65,535.
    Port,
    /// The topic or the properties are not UTF-8.
    NotUtf8,
    /// The body is not the one that was stored.
    BodyCrc,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("record above 2 GiB"),
            Self::Topic => f.write_str("record with a topic of 0 or above 32767 bytes"),
            Self::Properties => f.write_str("record with properties above 32767 bytes"),
            Self::Truncated => f.write_str("record is cut short"),
            Self::Magic { magic } => write!(f, "record with unknown magic {magic:#010x}"),
            Self::Size { total } => write!(f, "record size {total} is not the sum of its parts"),
            Self::NegativeLength => f.write_str("record with a negative length"),
            Self::Port => f.write_str("record with a port above 65535"),
            Self::NotUtf8 => f.write_str("record with a text that is not UTF-8"),
            Self::BodyCrc => f.write_str("record whose body does not match its checksum"),
        }
    }
}

impl std::error::Error for RecordError {}

impl Record<'_> {
    /// The length of the record with a body of `body` bytes. 91 more than topic, properties and body for v1 and IPv4.
    pub fn encoded_length(&self, body: usize) -> Result<usize, RecordError> {
        self.check_texts()?;
        let length = self.prefix_length() + self.suffix_length();
        let length = length.checked_add(body).ok_or(RecordError::TooLarge)?;
        i32::try_from(length).map(|_| length).map_err(|_| RecordError::TooLarge)
    }

    /// The length of the prefix, up to and including the body's length.
    pub fn prefix_length(&self) -> usize {
        AT_BORN_HOST + host_length(self.born_host) + 8 + host_length(self.store_host) + 16
    }

    /// The length of the suffix: topic and properties.
    pub fn suffix_length(&self) -> usize {
        let topic_length = if self.topic.len() > MAX_V1_TOPIC { 2 } else { 1 };
        topic_length + self.topic.len() + 2 + self.properties.text().len()
    }

    fn check_texts(&self) -> Result<(), RecordError> {
        if self.topic.is_empty() || i16::try_from(self.topic.len()).is_err() {
            return Err(RecordError::Topic);
        }
        if i16::try_from(self.properties.text().len()).is_err() {
            return Err(RecordError::Properties);
        }
        Ok(())
    }

    /// Appends the whole record.
    pub fn encode(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        out.reserve(self.encoded_length(body.len())?);
        self.encode_prefix(Body::of(body)?, out)?;
        out.extend_from_slice(body);
        self.encode_suffix(out)
    }

    /// Appends the prefix of a record with this body. Fixed positions in it may be patched later: see
    /// [`PATCH_QUEUE_OFFSET`] and its like, and [`patch_store_time`].
    pub fn encode_prefix(&self, body: Body, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let body_length = usize::try_from(body.length).map_err(|_| RecordError::TooLarge)?;
        let total = i32::try_from(self.encoded_length(body_length)?).map_err(|_| RecordError::TooLarge)?;
        let magic = if self.topic.len() > MAX_V1_TOPIC { MAGIC_V2 } else { MAGIC_V1 };
        let flags = self.sys_flag;
        let flags = flags.with(SysFlag::BORN_HOST_V6, self.born_host.is_ipv6());
        let flags = flags.with(SysFlag::STORE_HOST_V6, self.store_host.is_ipv6());
        out.reserve(self.prefix_length());
        out.extend_from_slice(&total.to_be_bytes());
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&body.crc.to_be_bytes());
        out.extend_from_slice(&self.queue_id.to_be_bytes());
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&self.queue_offset.to_be_bytes());
        out.extend_from_slice(&self.physical_offset.to_be_bytes());
        out.extend_from_slice(&flags.0.to_be_bytes());
        out.extend_from_slice(&self.born_time.to_be_bytes());
        push_host(self.born_host, out);
        out.extend_from_slice(&self.store_time.to_be_bytes());
        push_host(self.store_host, out);
        out.extend_from_slice(&self.reconsume_times.to_be_bytes());
        out.extend_from_slice(&self.prepared_transaction_offset.to_be_bytes());
        out.extend_from_slice(&body.length.to_be_bytes());
        Ok(())
    }

    /// Appends the suffix.
    pub fn encode_suffix(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.check_texts()?;
        let topic_length = i16::try_from(self.topic.len()).map_err(|_| RecordError::Topic)?.to_be_bytes();
        let properties = self.properties.text();
        let properties_length = i16::try_from(properties.len()).map_err(|_| RecordError::Properties)?;
        out.reserve(self.suffix_length());
        // A v1 length has only the lower byte.
        out.extend_from_slice(if self.topic.len() > MAX_V1_TOPIC {
            &topic_length
        } else {
            &topic_length[1..]
        });
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(&properties_length.to_be_bytes());
        out.extend_from_slice(properties.as_bytes());
        Ok(())
    }
}

fn host_length(host: SocketAddr) -> usize {
    if host.is_ipv4() { 8 } else { 20 }
}

fn push_host(host: SocketAddr, out: &mut Vec<u8>) {
    match host.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&u32::from(host.port()).to_be_bytes());
}

/// Sets the store time in an encoded record, or in its prefix.
pub fn patch_store_time(record: &mut [u8], store_time: i64) -> Result<(), RecordError> {
    let flags = Input { bytes: record, at: AT_SYS_FLAG }.i32().map(SysFlag)?;
    let at =
        if flags.has(SysFlag::BORN_HOST_V6) { PATCH_STORE_TIME_BORN_V6 } else { PATCH_STORE_TIME_BORN_V4 };
    record.get_mut(at..at + 8).ok_or(RecordError::Truncated)?.copy_from_slice(&store_time.to_be_bytes());
    Ok(())
}

/// Where the three parts of a record lie. Nothing but the lengths has been looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    /// The prefix ends where the body begins.
    pub body: Range<usize>,
    /// The suffix ends with the record.
    pub total: usize,
}

impl Parts {
    /// Finds the parts of the record that `input` begins with.
    pub fn of(input: &[u8]) -> Result<Self, RecordError> {
        let total = length(Input { bytes: input, at: 0 }.i32()?)?;
        let record = input.get(..total).ok_or(RecordError::Truncated)?;
        let flags = Input { bytes: record, at: AT_SYS_FLAG }.i32().map(SysFlag)?;
        let host = |bit| if flags.has(bit) { 20 } else { 8 };
        let start = AT_BORN_HOST + host(SysFlag::BORN_HOST_V6) + 8 + host(SysFlag::STORE_HOST_V6) + 16;
        let body = length(Input { bytes: record, at: start - 4 }.i32()?)?;
        let end = start.checked_add(body).filter(|end| *end <= total).ok_or(RecordError::Truncated)?;
        Ok(Self { body: start..end, total })
    }
}

fn length(claimed: i32) -> Result<usize, RecordError> {
    usize::try_from(claimed).map_err(|_| RecordError::NegativeLength)
}

impl<'a> Record<'a> {
    /// Decodes a prefix and a suffix, wherever the body between them lies. Every byte of both is accounted for.
    pub fn decode_parts(prefix: &'a [u8], suffix: &'a [u8]) -> Result<(Self, Body), RecordError> {
        let mut input = Input { bytes: prefix, at: 0 };
        let total = input.i32()?.cast_unsigned();
        let magic = input.i32()?.cast_unsigned();
        let crc = input.i32()?.cast_unsigned();
        let queue_id = input.i32()?;
        let flag = input.i32()?;
        let queue_offset = input.i64()?;
        let physical_offset = input.i64()?;
        let sys_flag = SysFlag(input.i32()?);
        let born_time = input.i64()?;
        let born_host = input.host(sys_flag.has(SysFlag::BORN_HOST_V6))?;
        let store_time = input.i64()?;
        let store_host = input.host(sys_flag.has(SysFlag::STORE_HOST_V6))?;
        let reconsume_times = input.i32()?;
        let prepared_transaction_offset = input.i64()?;
        let body =
            Body { length: u32::try_from(input.i32()?).map_err(|_| RecordError::NegativeLength)?, crc };
        let prefix_length = input.at;

        let mut input = Input { bytes: suffix, at: 0 };
        let topic_length = match magic {
            MAGIC_V1 => i32::from(i8::from_be_bytes(input.array()?)),
            MAGIC_V2 => i32::from(i16::from_be_bytes(input.array()?)),
            _ => return Err(RecordError::Magic { magic }),
        };
        let topic = input.text(length(topic_length)?)?;
        if topic.is_empty() {
            return Err(RecordError::Topic);
        }
        let properties_length = i32::from(i16::from_be_bytes(input.array()?));
        let properties = Properties::new(input.text(length(properties_length)?)?);
        let parts = [prefix_length, body.length as usize, input.at];
        if prefix_length != prefix.len()
            || input.at != suffix.len()
            || parts.iter().try_fold(0usize, |sum, part| sum.checked_add(*part)) != Some(total as usize)
        {
            return Err(RecordError::Size { total });
        }
        let record = Self {
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_time,
            born_host,
            store_time,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            topic,
            properties,
        };
        Ok((record, body))
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let rest = self.bytes.get(self.at..).ok_or(RecordError::Truncated)?;
        let array = rest.first_chunk::<N>().ok_or(RecordError::Truncated)?;
        self.at += N;
        Ok(*array)
    }

    fn i32(&mut self) -> Result<i32, RecordError> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, RecordError> {
        self.array().map(i64::from_be_bytes)
    }

    fn host(&mut self, v6: bool) -> Result<SocketAddr, RecordError> {
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))
        };
        let port = u16::try_from(self.i32()?).map_err(|_| RecordError::Port)?;
        Ok(SocketAddr::new(ip, port))
    }

    fn text(&mut self, length: usize) -> Result<&'a str, RecordError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let text = rest.get(..length).ok_or(RecordError::Truncated)?;
        self.at += length;
        std::str::from_utf8(text).map_err(|_| RecordError::NotUtf8)
    }
}

/// A whole record, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredMessage<'a> {
    /// All but the body.
    pub record: Record<'a>,
    /// The body, compressed or not as the system flag says.
    pub body: &'a [u8],
    /// The checksum the body should have.
    pub body_crc: u32,
}

impl<'a> StoredMessage<'a> {
    /// Decodes the record that `input` begins with, and says how many bytes it has. The body's checksum is not
    /// computed: see [`StoredMessage::check_body`].
    pub fn decode(input: &'a [u8]) -> Result<(Self, usize), RecordError> {
        let Parts { body, total } = Parts::of(input)?;
        let (record, Body { crc, .. }) = Record::decode_parts(&input[..body.start], &input[body.end..total])?;
        Ok((Self { record, body: &input[body], body_crc: crc }, total))
    }

    /// Decodes the concatenated records of an answer's body. Ends after the first error.
    pub fn decode_all(mut input: &'a [u8]) -> impl Iterator<Item = Result<Self, RecordError>> {
        std::iter::from_fn(move || {
            if input.is_empty() {
                return None;
            }
            let decoded = Self::decode(input);
            input = decoded.as_ref().map_or(&[], |(_, consumed)| &input[*consumed..]);
            Some(decoded.map(|(message, _)| message))
        })
    }

    /// Whether the body is the one that was stored.
    pub fn check_body(&self) -> Result<(), RecordError> {
        if body_crc(self.body) == self.body_crc { Ok(()) } else { Err(RecordError::BodyCrc) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    fn sample(properties: &str) -> Record<'_> {
        Record {
            queue_id: 3,
            flag: 7,
            queue_offset: 41,
            physical_offset: 0,
            sys_flag: SysFlag(0),
            born_time: 1_700_000_000_123,
            born_host: "127.0.0.1:50123".parse().unwrap(),
            store_time: 1_700_000_000_456,
            store_host: "10.1.2.3:10911".parse().unwrap(),
            reconsume_times: 2,
            prepared_transaction_offset: 77,
            topic: "TopicTest",
            properties: Properties::new(properties),
        }
    }

    fn java_properties() -> String {
        String::from_utf8(golden::unhex(golden::misc("properties"))).unwrap()
    }

    fn encoded(record: &Record<'_>, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(body, &mut out).unwrap();
        assert_eq!(out.len(), record.encoded_length(body.len()).unwrap());
        out
    }

    fn check_golden(name: &str, record: Record<'_>, body: &[u8]) {
        let java = golden::record(name);
        assert_eq!(encoded(&record, body), java, "{name}");
        let (message, consumed) = StoredMessage::decode(&java).unwrap();
        assert_eq!((message.record, message.body, consumed), (record, body, java.len()), "{name}");
        assert_eq!(message.check_body(), Ok(()), "{name}");
    }

    #[test]
    fn records_are_javas_byte_for_byte() {
        let text = java_properties();
        check_golden("v1_ipv4", sample(&text), b"hello");
        let v6 = "[2001:db8::1]:50123".parse().unwrap();
        let both = SysFlag(SysFlag::COMPRESSED | 3 << 8 | SysFlag::BORN_HOST_V6 | SysFlag::STORE_HOST_V6);
        let store_host = "[fe80::2]:10911".parse().unwrap();
        check_golden(
            "v1_ipv6_both",
            Record { born_host: v6, store_host, sys_flag: both, ..sample(&text) },
            b"hello",
        );
        let born =
            SysFlag(SysFlag::BORN_HOST_V6).with_transaction(crate::message::TransactionState::Prepared);
        check_golden("v1_born_ipv6", Record { born_host: v6, sys_flag: born, ..sample("") }, b"x");
        let topic = format!("%RETRY%{}_{}", "g".repeat(120), "t".repeat(100));
        check_golden("v2_ipv4", Record { topic: &topic, ..sample(&text) }, b"hello");
        check_golden("v1_empty_properties", Record { topic: "T", ..sample("") }, b"b");
    }

    #[test]
    fn the_overhead_is_ninety_one_bytes() {
        assert_eq!(sample("p").encoded_length(1).unwrap(), 91 + "TopicTest".len() + 1 + 1);
    }

    #[test]
    fn checksums_are_javas() {
        let ours = [&b"123456789"[..], b"hello", b"body-3"].map(|body| body_crc(body).to_string());
        assert_eq!(ours.join(" "), golden::misc("crc"));
    }

    #[test]
    fn patched_positions_are_those_of_the_fields() {
        for born_host in ["127.0.0.1:1", "[::1]:1"] {
            let record = Record { born_host: born_host.parse().unwrap(), ..sample("") };
            let mut bytes = Vec::new();
            record.encode_prefix(Body::of(b"body").unwrap(), &mut bytes).unwrap();
            bytes[PATCH_QUEUE_ID..][..4].copy_from_slice(&11i32.to_be_bytes());
            bytes[PATCH_QUEUE_OFFSET..][..8].copy_from_slice(&12i64.to_be_bytes());
            bytes[PATCH_PHYSICAL_OFFSET..][..8].copy_from_slice(&13i64.to_be_bytes());
            patch_store_time(&mut bytes, 14).unwrap();
            let mut suffix = Vec::new();
            record.encode_suffix(&mut suffix).unwrap();
            let (patched, body) = Record::decode_parts(&bytes, &suffix).unwrap();
            assert_eq!(body, Body { length: 4, crc: body_crc(b"body") });
            let expected =
                Record { queue_id: 11, queue_offset: 12, physical_offset: 13, store_time: 14, ..record };
            assert_eq!(Record { sys_flag: record.sys_flag, ..patched }, expected);
        }
        assert_eq!(patch_store_time(&mut [0; 63], 1), Err(RecordError::Truncated));
    }

    #[test]
    fn the_three_parts_together_are_the_record() {
        let record = sample("a\u{1}b\u{2}");
        let whole = encoded(&record, b"some body");
        let parts = Parts::of(&whole).unwrap();
        assert_eq!(&whole[parts.body.clone()], b"some body");
        assert_eq!((parts.body.start, parts.total), (record.prefix_length(), whole.len()));
        assert_eq!(whole.len() - parts.body.end, record.suffix_length());
        let (again, body) =
            Record::decode_parts(&whole[..parts.body.start], &whole[parts.body.end..]).unwrap();
        assert_eq!((again, body.length), (record, 9));
    }

    #[test]
    fn the_address_bits_of_a_clients_flag_do_not_count() {
        let lying = Record { sys_flag: SysFlag(SysFlag::COMPRESSED | 0x30), ..sample("") };
        let bytes = encoded(&lying, b"x");
        let (message, _) = StoredMessage::decode(&bytes).unwrap();
        assert_eq!(message.record.sys_flag, SysFlag(SysFlag::COMPRESSED));
    }

    #[test]
    fn a_short_record_that_claims_long_addresses_is_refused() {
        let mut bytes = encoded(&Record { topic: "T", ..sample("") }, b"");
        bytes[AT_SYS_FLAG + 3] |= 0x30;
        assert!(StoredMessage::decode(&bytes).is_err());
        assert!(Parts::of(&bytes).is_err());
    }

    #[test]
    fn topics_and_properties_beyond_their_length_fields_are_not_written() {
        let long = "x".repeat(32_768);
        let mut out = vec![9];
        assert_eq!(Record { topic: &long, ..sample("") }.encode(b"b", &mut out), Err(RecordError::Topic));
        assert_eq!(Record { topic: "", ..sample("") }.encode(b"b", &mut out), Err(RecordError::Topic));
        assert_eq!(sample(&long).encode(b"b", &mut out), Err(RecordError::Properties));
        assert_eq!(sample(&long).encode_suffix(&mut out), Err(RecordError::Properties));
        let huge = Body { length: i32::MAX.cast_unsigned(), crc: 0 };
        assert_eq!(sample("").encode_prefix(huge, &mut out), Err(RecordError::TooLarge));
        assert_eq!(out, [9]);
        assert!(Record { topic: &long[1..], ..sample(&long[1..]) }.encode(b"b", &mut out).is_ok());
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let whole = encoded(&sample("a\u{1}b\u{2}"), b"body");
        for cut in 0..whole.len() {
            assert!(StoredMessage::decode(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn each_damaged_length_is_refused() {
        let whole = encoded(&sample("a\u{1}b\u{2}"), b"body");
        let total = u32::try_from(whole.len()).unwrap();
        let topic_at = whole.len() - 2 - 4 - 9 - 1;
        let damaged = |at: usize, bytes: &[u8]| {
            let mut damaged = whole.clone();
            damaged[at..at + bytes.len()].copy_from_slice(bytes);
            StoredMessage::decode(&damaged).map(|_| ())
        };
        assert_eq!(damaged(0, &[0xff; 4]), Err(RecordError::NegativeLength));
        assert_eq!(damaged(0, &[0; 4]), Err(RecordError::Truncated));
        assert_eq!(damaged(4, &[0xCB, 0xD4, 0x31, 0x94]), Err(RecordError::Magic { magic: 0xCBD4_3194 }));
        assert_eq!(damaged(4, &MAGIC_V2.to_be_bytes()), Err(RecordError::Truncated));
        assert_eq!(damaged(52, &[0, 1, 0, 0]), Err(RecordError::Port));
        assert_eq!(damaged(84, &[0xff; 4]), Err(RecordError::NegativeLength));
        assert_eq!(damaged(84, &[0, 0, 0, 3]), Err(RecordError::Truncated));
        assert_eq!(damaged(84, &[0x7f, 0xff, 0xff, 0xff]), Err(RecordError::Truncated));
        assert_eq!(damaged(topic_at, &[0x80]), Err(RecordError::NegativeLength));
        assert_eq!(damaged(topic_at, &[0]), Err(RecordError::Topic));
        assert_eq!(damaged(topic_at + 1, &[0xff]), Err(RecordError::NotUtf8));
        assert_eq!(damaged(topic_at + 10, &[0xff, 0xff]), Err(RecordError::NegativeLength));
        assert_eq!(damaged(topic_at + 10, &[0, 3]), Err(RecordError::Size { total }));
        assert_eq!(damaged(topic_at + 10, &[0, 5]), Err(RecordError::Truncated));
    }

    #[test]
    fn a_damaged_body_is_found_by_its_checksum() {
        let mut bytes = encoded(&sample(""), b"body");
        bytes[90] ^= 1;
        assert_eq!(StoredMessage::decode(&bytes).unwrap().0.check_body(), Err(RecordError::BodyCrc));
    }

    #[test]
    fn an_answers_records_are_read_one_after_another_up_to_the_first_error() {
        let mut bytes = encoded(&sample(""), b"1");
        bytes.extend(encoded(&sample("a\u{1}b\u{2}"), b"2"));
        let bodies = |bytes: &[u8]| -> Vec<Option<u8>> {
            StoredMessage::decode_all(bytes)
                .map(|message| message.ok().map(|message| message.body[0]))
                .collect()
        };
        assert_eq!(bodies(&bytes), [Some(b'1'), Some(b'2')]);
        bytes.extend([0, 0, 0, 9]);
        assert_eq!(bodies(&bytes), [Some(b'1'), Some(b'2'), None]);
    }

    proptest! {
        #[test]
        fn records_survive_the_trip(
            numbers in any::<(i32, i32, i64, i64, i32, i64, i64, i32, i64)>(),
            born_host in any::<(IpAddr, u16)>(),
            store_host in any::<(IpAddr, u16)>(),
            topic in "[a-zA-Z%|_-]{1,300}",
            properties in "[a-z\u{1}\u{2}名]{0,60}",
            body in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let (queue_id, flag, queue_offset, physical_offset, flags, born_time, store_time, reconsume_times, prepared) = numbers;
            let born_host = SocketAddr::from(born_host);
            let store_host = SocketAddr::from(store_host);
            let sys_flag = SysFlag(flags)
                .with(SysFlag::BORN_HOST_V6, born_host.is_ipv6())
                .with(SysFlag::STORE_HOST_V6, store_host.is_ipv6());
            let record = Record {
                queue_id, flag, queue_offset, physical_offset, sys_flag, born_time, born_host, store_time, store_host,
                reconsume_times, prepared_transaction_offset: prepared, topic: &topic, properties: Properties::new(&properties),
            };
            let bytes = encoded(&record, &body);
            let (message, consumed) = StoredMessage::decode(&bytes).unwrap();
            prop_assert_eq!(message.record, record);
            prop_assert_eq!(message.body, &body[..]);
            prop_assert_eq!(consumed, bytes.len());
            prop_assert_eq!(message.check_body(), Ok(()));
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() > 8 {
                let total = u32::try_from(bytes.len()).unwrap();
                bytes[..4].copy_from_slice(&total.to_be_bytes());
                bytes[4..8].copy_from_slice(&MAGIC_V1.to_be_bytes());
            }
            for _ in StoredMessage::decode_all(&bytes) {}
        }
    }
}
