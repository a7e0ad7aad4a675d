//! Reading and writing the elementary types of method arguments (spec 4.2.5): integers, bits, strings,
//! tables.
//!
//! Owns the packing of consecutive bits into octets and every length check. Promises not to allocate while
//! reading, and to read nothing outside its input. Does not know what the values mean.
//!
//! The names of the reading and writing methods are the type names of the spec, so that the table in `method`
//! can be written in the spec's own words.

use std::fmt;

use crate::table::{RawTable, TableError};

/// Longest short string in bytes (spec 4.2.5.3): its length is one octet.
pub const SHORTSTR_MAX: usize = 255;

// Lengths on the wire have up to 32 bits; below, they become `usize` without a check.
const _: () = assert!(usize::BITS >= 32);

/// A length or size from the wire as a count of bytes in memory.
pub(crate) const fn to_usize(length: u32) -> usize {
    length as usize
}

/// What is wrong with the arguments of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The payload ends before the arguments do.
    Truncated,
    /// The payload goes on after the last argument.
    Trailing,
    /// A short string is not UTF-8.
    NotUtf8,
    /// A table argument is not one.
    Table(TableError),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the arguments are cut short"),
            Self::Trailing => f.write_str("bytes follow the last argument"),
            Self::NotUtf8 => f.write_str("malformed UTF-8 in a short string"),
            Self::Table(error) => write!(f, "invalid table: {error}"),
        }
    }
}

/// All eight bits of the current octet are spent, or there is no current octet.
const NO_BITS: u8 = 8;

/// Takes values from the front of a payload.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    bits: u8,
    bits_used: u8,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, bits: 0, bits_used: NO_BITS }
    }

    /// The end of the arguments must be the end of the payload.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }

    /// What has not been read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bits_used = NO_BITS;
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn octet(&mut self) -> Result<u8, Malformed> {
        self.fixed().map(u8::from_be_bytes)
    }

    #[inline]
    pub(crate) fn short(&mut self) -> Result<u16, Malformed> {
        self.fixed().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn long(&mut self) -> Result<u32, Malformed> {
        self.fixed().map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn longlong(&mut self) -> Result<u64, Malformed> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// The next bit, lowest first; consecutive bits share octets (spec 4.2.5.2). Unused high bits are
    /// ignored, as RabbitMQ does.
    #[inline]
    pub(crate) fn bit(&mut self) -> Result<bool, Malformed> {
        if self.bits_used == NO_BITS {
            self.bits = self.octet()?;
            self.bits_used = 0;
        }
        let bit = self.bits & (1 << self.bits_used) != 0;
        self.bits_used += 1;
        Ok(bit)
    }

    /// A short string as bytes, for places where RabbitMQ does not insist on UTF-8.
    #[inline]
    pub(crate) fn shortstr_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.octet()?);
        self.bytes(length)
    }

    #[inline]
    pub(crate) fn shortstr(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.shortstr_bytes()?).map_err(|_| Malformed::NotUtf8)
    }

    #[inline]
    pub(crate) fn longstr(&mut self) -> Result<&'a [u8], Malformed> {
        let length = to_usize(self.long()?);
        self.bytes(length)
    }

    pub(crate) fn table(&mut self) -> Result<RawTable<'a>, Malformed> {
        RawTable::parse(self.longstr()?).map_err(Malformed::Table)
    }
}

/// Appends values to a caller's buffer.
pub(crate) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    bits_used: u8,
}

impl<'o> Writer<'o> {
    pub(crate) const fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, bits_used: NO_BITS }
    }

    #[inline]
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bits_used = NO_BITS;
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn octet(&mut self, value: u8) {
        self.raw(&[value]);
    }

    #[inline]
    pub(crate) fn short(&mut self, value: u16) {
        self.raw(&value.to_be_bytes());
    }

    #[inline]
    pub(crate) fn long(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    #[inline]
    pub(crate) fn longlong(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    #[inline]
    pub(crate) fn bit(&mut self, value: bool) {
        if self.bits_used == NO_BITS {
            self.out.push(0);
            self.bits_used = 0;
        }
        if let Some(octet) = self.out.last_mut() {
            *octet |= u8::from(value) << self.bits_used;
        }
        self.bits_used += 1;
    }

    /// # Panics
    /// If the string has more than 255 bytes: our own names are checked where they enter the broker.
    #[inline]
    pub(crate) fn shortstr_bytes(&mut self, value: &[u8]) {
        let length = u8::try_from(value.len()).expect("a short string has at most 255 bytes");
        self.octet(length);
        self.raw(value);
    }

    #[inline]
    pub(crate) fn shortstr(&mut self, value: &str) {
        self.shortstr_bytes(value.as_bytes());
    }

    /// # Panics
    /// If the string has 4 GiB or more.
    pub(crate) fn longstr(&mut self, value: &[u8]) {
        self.long(u32::try_from(value.len()).expect("a long string is shorter than 4 GiB"));
        self.raw(value);
    }

    pub(crate) fn table(&mut self, value: RawTable<'_>) {
        self.longstr(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_bits_take_two_octets_lowest_bit_first() {
        let bits = [true, false, true, true, false, false, false, true, true];
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        bits.iter().for_each(|&bit| writer.bit(bit));
        assert_eq!(out, [0b1000_1101, 0b0000_0001]);
        let mut reader = Reader::new(&out);
        assert!(bits.iter().all(|&bit| reader.bit() == Ok(bit)));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_value_between_two_bits_separates_their_octets() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer.bit(true);
        writer.octet(9);
        writer.bit(true);
        assert_eq!(out, [1, 9, 1]);
        let mut reader = Reader::new(&out);
        assert_eq!((reader.bit(), reader.octet(), reader.bit()), (Ok(true), Ok(9), Ok(true)));
    }

    #[test]
    fn a_string_may_not_reach_past_the_end() {
        assert_eq!(Reader::new(&[3, b'a', b'b']).shortstr(), Err(Malformed::Truncated));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, b'a']).longstr(), Err(Malformed::Truncated));
        assert_eq!(Reader::new(&[]).bit(), Err(Malformed::Truncated));
    }

    #[test]
    fn a_short_string_must_be_utf8() {
        assert_eq!(Reader::new(&[2, 0xc3, 0x28]).shortstr(), Err(Malformed::NotUtf8));
        assert_eq!(Reader::new(&[2, 0xc3, 0xa9]).shortstr(), Ok("é"));
    }
}
