//! The JSON header codec, inwards.
//!
//! Owns what is tolerated: any order of keys, unknown keys, numbers and booleans where text belongs and text where
//! numbers belong (the C++ client writes both), `null` for absent. Refuses a key that stands twice: a signature check
//! and a handler must never read different values. Does not know any extension field.

use super::ext::{ExtFields, Text};
use super::{CommandError, Head};
use crate::code::Language;
use crate::json::{Lexer, Raw, Scalar, Unexpected, unescape};
use std::borrow::Cow;

impl From<Unexpected> for CommandError {
    fn from(Unexpected { at, wanted }: Unexpected) -> Self {
        Self::Json { at, wanted }
    }
}

/// Decodes into `ext`, which is empty; it is too large to be handed around by value.
pub(super) fn decode<'a>(header: &'a [u8], ext: &mut ExtFields<'a>) -> Result<Head<'a>, CommandError> {
    let text = std::str::from_utf8(header).map_err(|_| CommandError::NotUtf8)?;
    let mut lexer = Lexer::new(text);
    let (mut code, mut version, mut opaque, mut flag) = (None, None, None, None);
    let (mut sender, mut remark, mut ext_seen) = (None, None, None);
    lexer.expect(b'{', "an opening brace")?;
    let mut first = true;
    let mut copied = String::new();
    loop {
        let key = match lexer.plain_key(&mut first) {
            Some(key) => key,
            None => {
                let Some(key) = lexer.next_key(&mut first)? else { break };
                copied.clear();
                unescape(key.text, &mut copied).map_err(|wanted| lexer.unexpected(wanted))?;
                &copied
            }
        };
        match key {
            "code" => once(&mut code, integer(&mut lexer, "code")?)?,
            "version" => once(&mut version, integer(&mut lexer, "version")?)?,
            "opaque" => once(&mut opaque, integer(&mut lexer, "opaque")?)?,
            "flag" => once(&mut flag, integer(&mut lexer, "flag")?)?,
            "language" => once(&mut sender, language(&mut lexer)?)?,
            "remark" => once(&mut remark, text_or_null(&mut lexer)?)?,
            "extFields" => {
                once(&mut ext_seen, ())?;
                ext_fields(&mut lexer, ext)?;
            }
            _ => lexer.skip_value()?,
        }
    }
    lexer.end()?;
    Ok(Head {
        code: code.ok_or(CommandError::NoCode)?,
        language: sender.unwrap_or(Language::Other),
        version: version.unwrap_or(0),
        opaque: opaque.unwrap_or(0),
        flag: flag.unwrap_or(0),
        remark: remark.flatten(),
    })
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), CommandError> {
    if slot.replace(value).is_some() { Err(CommandError::Duplicate) } else { Ok(()) }
}

fn integer(lexer: &mut Lexer<'_>, field: &'static str) -> Result<i32, CommandError> {
    if let Some(value) = lexer.plain_integer() {
        return Ok(value);
    }
    let text = match lexer.scalar()? {
        Scalar::Text(Raw { text, .. }) | Scalar::Bare(text) => text,
        Scalar::Null => "",
    };
    text.parse().map_err(|_| CommandError::NotAnInteger { field })
}

/// A name, or the ordinal that some clients write.
fn language(lexer: &mut Lexer<'_>) -> Result<Language, CommandError> {
    Ok(match lexer.scalar()? {
        Scalar::Text(Raw { text, .. }) => Language::from_name(text),
        Scalar::Bare(number) => number.parse().map_or(Language::Other, Language::from_ordinal),
        Scalar::Null => Language::Other,
    })
}

fn text_or_null<'a>(lexer: &mut Lexer<'a>) -> Result<Option<Cow<'a, str>>, CommandError> {
    Ok(match lexer.scalar()? {
        Scalar::Text(Raw { text, escaped: false }) => Some(Cow::Borrowed(text)),
        Scalar::Text(Raw { text, escaped: true }) => {
            let mut copied = String::new();
            unescape(text, &mut copied).map_err(|wanted| lexer.unexpected(wanted))?;
            Some(Cow::Owned(copied))
        }
        Scalar::Bare(text) => Some(Cow::Borrowed(text)),
        Scalar::Null => None,
    })
}

fn ext_fields<'a>(lexer: &mut Lexer<'a>, ext: &mut ExtFields<'a>) -> Result<(), CommandError> {
    if lexer.peek() == Some(b'n') && lexer.scalar()? == Scalar::Null {
        return Ok(());
    }
    lexer.expect(b'{', "an opening brace")?;
    let mut first = true;
    loop {
        if let Some((name, value)) = lexer.plain_pair(&mut first) {
            let value = field_text(value, lexer, ext)?;
            ext.push(Text::Wire(name), value)?;
            continue;
        }
        let Some(key) = lexer.next_key(&mut first)? else { return Ok(()) };
        let name = field_text(key, lexer, ext)?;
        match lexer.scalar()? {
            Scalar::Text(raw) => {
                let value = field_text(raw, lexer, ext)?;
                ext.push(name, value)?;
            }
            Scalar::Bare(text) => ext.push(name, Text::Wire(text))?,
            Scalar::Null => {}
        }
    }
}

fn field_text<'a>(
    raw: Raw<'a>,
    lexer: &Lexer<'a>,
    ext: &mut ExtFields<'a>,
) -> Result<Text<'a>, CommandError> {
    if !raw.escaped {
        return Ok(Text::Wire(raw.text));
    }
    Ok(ext.copy(|out| unescape(raw.text, out)).map_err(|wanted| lexer.unexpected(wanted))?)
}
