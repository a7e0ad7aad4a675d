//! Commands on their way out, in both header codecs.
//!
//! Owns the bytes of a frame. Promises standard JSON with every extension value a string and an `extFields` object
//! even when empty (the Java client dereferences it), answers whose code fits 16 bits (the Go client reads no more),
//! and that a failed write leaves the buffer as it was. Does not know any field.

use super::{ExtFields, Head};
use crate::frame::{HeaderCodec, MAX_FRAME, MAX_HEADER, PREAMBLE};
use crate::json::write_string;
use std::fmt;

/// Why a command can not be written. Always the caller's fault: nothing the peer sent forces it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EncodeError {
    /// The code does not fit 16 bits: of an answer, or in a binary header.
    CodeTooLarge {
        /// The code.
        code: i32,
    },
    /// The version does not fit 16 bits in a binary header.
    VersionTooLarge {
        /// The version.
        version: i32,
    },
    /// A field name of more than 32,767 bytes in a binary header.
    NameTooLong,
    /// The header would be above [`MAX_HEADER`].
    HeaderTooLarge {
        /// Its bytes.
        header: usize,
    },
    /// The frame would be above [`MAX_FRAME`].
    FrameTooLarge {
        /// Its bytes.
        frame: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CodeTooLarge { code } => write!(f, "code {code} does not fit 16 bits"),
            Self::VersionTooLarge { version } => write!(f, "version {version} does not fit 16 bits"),
            Self::NameTooLong => f.write_str("field name above 32767 bytes"),
            Self::HeaderTooLarge { header } => write!(f, "header of {header} bytes is above {MAX_HEADER}"),
            Self::FrameTooLarge { frame } => write!(f, "frame of {frame} bytes is above {MAX_FRAME}"),
        }
    }
}

impl std::error::Error for EncodeError {}

/// Something that writes extension fields: a typed header, `()` for none, pairs of text, or two of them together.
pub trait Fields {
    /// Writes every field that has a value.
    fn write_to(&self, out: &mut FieldWriter<'_>);
}

impl Fields for () {
    fn write_to(&self, _: &mut FieldWriter<'_>) {}
}

impl Fields for [(&str, &str)] {
    fn write_to(&self, out: &mut FieldWriter<'_>) {
        for (name, value) in self {
            out.text(name, value);
        }
    }
}

impl Fields for ExtFields<'_> {
    fn write_to(&self, out: &mut FieldWriter<'_>) {
        for (name, value) in self.iter() {
            out.text(name, value);
        }
    }
}

impl<A: Fields, B: Fields> Fields for (A, B) {
    fn write_to(&self, out: &mut FieldWriter<'_>) {
        self.0.write_to(out);
        self.1.write_to(out);
    }
}

impl<T: Fields + ?Sized> Fields for &T {
    fn write_to(&self, out: &mut FieldWriter<'_>) {
        (*self).write_to(out);
    }
}

/// Appends a whole frame to `out`.
pub fn encode(
    out: &mut Vec<u8>,
    codec: HeaderCodec,
    head: &Head<'_>,
    fields: &(impl Fields + ?Sized),
    body: &[u8],
) -> Result<(), EncodeError> {
    encode_head(out, codec, head, fields, body.len())?;
    out.extend_from_slice(body);
    Ok(())
}

/// Appends a frame up to its body, which the caller writes next: `body` bytes, from wherever they lie.
pub fn encode_head(
    out: &mut Vec<u8>,
    codec: HeaderCodec,
    head: &Head<'_>,
    fields: &(impl Fields + ?Sized),
    body: usize,
) -> Result<(), EncodeError> {
    let start = out.len();
    let result = write_head(out, codec, head, fields, body);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn write_head(
    out: &mut Vec<u8>,
    codec: HeaderCodec,
    head: &Head<'_>,
    fields: &(impl Fields + ?Sized),
    body: usize,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREAMBLE]);
    match codec {
        HeaderCodec::Json => json_header(out, head, fields)?,
        HeaderCodec::Binary => binary_header(out, head, fields)?,
    }
    let header = out.len() - start - PREAMBLE;
    if header > MAX_HEADER {
        return Err(EncodeError::HeaderTooLarge { header });
    }
    let frame = (header + PREAMBLE).saturating_add(body);
    if frame > MAX_FRAME {
        return Err(EncodeError::FrameTooLarge { frame });
    }
    let length = u32::try_from(frame - 4).map_err(|_| EncodeError::FrameTooLarge { frame })?;
    let header = u32::try_from(header).map_err(|_| EncodeError::HeaderTooLarge { header })?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + PREAMBLE].copy_from_slice(&(u32::from(codec as u8) << 24 | header).to_be_bytes());
    Ok(())
}

fn json_header(
    out: &mut Vec<u8>,
    head: &Head<'_>,
    fields: &(impl Fields + ?Sized),
) -> Result<(), EncodeError> {
    if head.is_response() {
        short(head.code).ok_or(EncodeError::CodeTooLarge { code: head.code })?;
    }
    out.extend_from_slice(b"{\"code\":");
    push_integer(out, head.code.into());
    out.extend_from_slice(b",\"language\":");
    write_string(out, head.language.name());
    out.extend_from_slice(b",\"version\":");
    push_integer(out, head.version.into());
    out.extend_from_slice(b",\"opaque\":");
    push_integer(out, head.opaque.into());
    out.extend_from_slice(b",\"flag\":");
    push_integer(out, head.flag.into());
    if let Some(remark) = &head.remark {
        out.extend_from_slice(b",\"remark\":");
        write_string(out, remark);
    }
    out.extend_from_slice(b",\"extFields\":{");
    let mut writer = FieldWriter { out, codec: HeaderCodec::Json, any: false, error: None };
    fields.write_to(&mut writer);
    out.extend_from_slice(b"}}");
    Ok(())
}

fn binary_header(
    out: &mut Vec<u8>,
    head: &Head<'_>,
    fields: &(impl Fields + ?Sized),
) -> Result<(), EncodeError> {
    let code = short(head.code).ok_or(EncodeError::CodeTooLarge { code: head.code })?;
    let version = short(head.version).ok_or(EncodeError::VersionTooLarge { version: head.version })?;
    out.extend_from_slice(&code);
    out.push(head.language.ordinal());
    out.extend_from_slice(&version);
    out.extend_from_slice(&head.opaque.to_be_bytes());
    out.extend_from_slice(&head.flag.to_be_bytes());
    push_long_text(out, head.remark.as_deref().unwrap_or_default())?;
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut writer = FieldWriter { out, codec: HeaderCodec::Binary, any: false, error: None };
    fields.write_to(&mut writer);
    if let Some(error) = writer.error {
        return Err(error);
    }
    let length = long_length(out.len() - length_at - 4)?;
    out[length_at..length_at + 4].copy_from_slice(&length);
    Ok(())
}

fn short(value: i32) -> Option<[u8; 2]> {
    i16::try_from(value).ok().map(i16::to_be_bytes)
}

fn long_length(length: usize) -> Result<[u8; 4], EncodeError> {
    i32::try_from(length).map(i32::to_be_bytes).map_err(|_| EncodeError::HeaderTooLarge { header: length })
}

fn push_long_text(out: &mut Vec<u8>, text: &str) -> Result<(), EncodeError> {
    out.extend_from_slice(&long_length(text.len())?);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Writes extension fields in the codec of the frame.
pub struct FieldWriter<'o> {
    out: &'o mut Vec<u8>,
    codec: HeaderCodec,
    any: bool,
    error: Option<EncodeError>,
}

impl FieldWriter<'_> {
    /// Writes a text.
    pub fn text(&mut self, name: &str, value: &str) {
        match self.codec {
            HeaderCodec::Json => {
                self.json_name(name);
                write_string(self.out, value);
            }
            HeaderCodec::Binary => self.binary(name, |out| out.extend_from_slice(value.as_bytes())),
        }
    }

    /// Writes an integer, as text.
    pub fn integer(&mut self, name: &str, value: i64) {
        match self.codec {
            HeaderCodec::Json => {
                self.json_name(name);
                self.out.push(b'"');
                push_integer(self.out, value);
                self.out.push(b'"');
            }
            HeaderCodec::Binary => self.binary(name, |out| push_integer(out, value)),
        }
    }

    fn json_name(&mut self, name: &str) {
        if std::mem::replace(&mut self.any, true) {
            self.out.push(b',');
        }
        write_string(self.out, name);
        self.out.push(b':');
    }

    fn binary(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        let Ok(length) = i16::try_from(name.len()) else {
            self.error = Some(EncodeError::NameTooLong);
            return;
        };
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.extend_from_slice(name.as_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        value(self.out);
        match long_length(self.out.len() - length_at - 4) {
            Ok(length) => self.out[length_at..length_at + 4].copy_from_slice(&length),
            Err(error) => self.error = Some(error),
        }
    }
}

/// Appends `value` in decimal.
fn push_integer(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}
