//! The binary header codec (Apache's name: ROCKETMQ), inwards.
//!
//! ```text
//! i16 code | u8 language | i16 version | i32 opaque | i32 flag | i32 n, remark | i32 n, fields
//!                                                        field: i16 n, name | i32 n, value
//! ```
//!
//! Owns the checks: every length against what is left, and nothing left over, neither in a field nor after the
//! fields. Apache's reader would run on into the body there. Does not know any extension field.

use super::ext::{ExtFields, Text};
use super::{CommandError, Head};
use crate::code::Language;
use std::borrow::Cow;

/// Decodes into `ext`, which is empty; it is too large to be handed around by value.
pub(super) fn decode<'a>(header: &'a [u8], ext: &mut ExtFields<'a>) -> Result<Head<'a>, CommandError> {
    let mut input = Input { bytes: header, at: 0 };
    let code = input.i16("a code")?;
    let [language] = input.array("a language")?;
    let version = input.i16("a version")?;
    let opaque = input.i32("an opaque")?;
    let flag = input.i32("a flag")?;
    let remark = input.i32("the length of the remark")?;
    let remark = input.text(remark, "a remark")?;
    let fields = input.i32("the length of the fields")?;
    let fields_end = input.at + input.length(fields, "the fields")?;
    if fields_end != header.len() {
        return Err(CommandError::Binary { at: fields_end, wanted: "the end" });
    }
    while input.at < header.len() {
        let name = input.i16("the length of a name")?;
        let name = input.text(i32::from(name), "a name")?;
        let value = input.i32("the length of a value")?;
        let value = input.text(value, "a value")?;
        ext.push(Text::Wire(name), Text::Wire(value))?;
    }
    Ok(Head {
        code: i32::from(code),
        language: Language::from_ordinal(language),
        version: i32::from(version),
        opaque,
        flag,
        remark: Some(remark).filter(|remark| !remark.is_empty()).map(Cow::Borrowed),
    })
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self, wanted: &'static str) -> Result<[u8; N], CommandError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let array = rest.first_chunk::<N>().ok_or(CommandError::Binary { at: self.at, wanted })?;
        self.at += N;
        Ok(*array)
    }

    fn i16(&mut self, wanted: &'static str) -> Result<i16, CommandError> {
        self.array(wanted).map(i16::from_be_bytes)
    }

    fn i32(&mut self, wanted: &'static str) -> Result<i32, CommandError> {
        self.array(wanted).map(i32::from_be_bytes)
    }

    /// A claimed length, if so many bytes are left.
    fn length(&self, claimed: i32, wanted: &'static str) -> Result<usize, CommandError> {
        match usize::try_from(claimed) {
            Ok(length) if length <= self.bytes.len() - self.at => Ok(length),
            _ => Err(CommandError::Binary { at: self.at, wanted }),
        }
    }

    fn text(&mut self, claimed: i32, wanted: &'static str) -> Result<&'a str, CommandError> {
        let end = self.at + self.length(claimed, wanted)?;
        let text = std::str::from_utf8(&self.bytes[self.at..end]).map_err(|_| CommandError::NotUtf8)?;
        self.at = end;
        Ok(text)
    }
}
