//! A lexer for the flat JSON of command headers and for fastjson's almost-JSON tables.
//!
//! Owns the rules: standard JSON, except that control characters may stand raw inside strings (old parsers write them
//! so). Borrows whatever needs no unescaping. Skips values it is not asked for without recursion, at most
//! [`MAX_DEPTH`] deep. Does not know any key.

/// How deep a skipped value may nest.
pub(crate) const MAX_DEPTH: u32 = 32;

/// A place in the text and what should have stood there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unexpected {
    pub(crate) at: usize,
    pub(crate) wanted: &'static str,
}

/// A string between its quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) text: &'a str,
    pub(crate) escaped: bool,
}

/// A value that is not a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scalar<'a> {
    Text(Raw<'a>),
    /// A number, `true` or `false`, as written.
    Bare(&'a str),
    Null,
}

/// What is left of a JSON text.
pub(crate) struct Lexer<'a> {
    rest: &'a str,
    length: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { rest: text, length: text.len() }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Steps over `bytes` that another parser has read from [`Lexer::rest`].
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    pub(crate) fn unexpected(&self, wanted: &'static str) -> Unexpected {
        Unexpected { at: self.length - self.rest.len(), wanted }
    }

    /// The next byte that is not blank, not yet taken.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.rest.bytes().next() {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(byte);
            }
            self.advance(1);
        }
        None
    }

    /// Takes `byte`, which is ASCII, if it comes next.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.advance(1);
        }
        found
    }

    #[inline]
    pub(crate) fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<(), Unexpected> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(wanted)) }
    }

    pub(crate) fn end(&mut self) -> Result<(), Unexpected> {
        if self.peek().is_none() { Ok(()) } else { Err(self.unexpected("the end")) }
    }

    /// After `{` or a pair: the next key with its colon, or `None` at the closing brace. `first` is set right after
    /// the opening brace and cleared here.
    #[inline]
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<Raw<'a>>, Unexpected> {
        if std::mem::take(first) {
            if self.take(b'}') {
                return Ok(None);
            }
        } else if !self.take(b',') {
            return self.expect(b'}', "a comma or a closing brace").map(|()| None);
        }
        let key = self.string()?;
        self.expect(b':', "a colon")?;
        Ok(Some(key))
    }

    /// As [`Lexer::next_key`], but only a key that is written without blanks and escapes: whatever is not stays in
    /// place for the slower way. The hot headers are written so.
    #[inline]
    pub(crate) fn plain_key(&mut self, first: &mut bool) -> Option<&'a str> {
        let (key, rest) = string_body(self.rest.strip_prefix(if *first { "\"" } else { ",\"" })?)?;
        self.rest = rest.strip_prefix(':').filter(|_| !key.escaped)?;
        *first = false;
        Some(key.text)
    }

    /// As [`Lexer::plain_key`], with a value that is a string and begins right after the colon.
    #[inline]
    pub(crate) fn plain_pair(&mut self, first: &mut bool) -> Option<(&'a str, Raw<'a>)> {
        let rest = self.rest.strip_prefix(if *first { "\"" } else { ",\"" })?;
        let (key, rest) = string_body(rest)?;
        if key.escaped {
            return None;
        }
        let (value, rest) = string_body(rest.strip_prefix(":\"")?)?;
        self.rest = rest;
        *first = false;
        Some((key.text, value))
    }

    pub(crate) fn string(&mut self) -> Result<Raw<'a>, Unexpected> {
        self.expect(b'"', "a string")?;
        let (raw, rest) = string_body(self.rest).ok_or(self.unexpected("a closing quote"))?;
        self.rest = rest;
        Ok(raw)
    }

    /// The next value if it is a 32-bit integer right here, up to a comma or brace; whatever is not stays in place.
    #[inline]
    pub(crate) fn plain_integer(&mut self) -> Option<i32> {
        let digits = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let mut value = 0i64;
        for (count, byte) in digits.bytes().enumerate() {
            match byte {
                b'0'..=b'9' if count < 10 => value = value * 10 + i64::from(byte - b'0'),
                b',' | b'}' if count > 0 => {
                    let negative = digits.len() < self.rest.len();
                    let value = i32::try_from(if negative { -value } else { value }).ok()?;
                    self.rest = digits.get(count..)?;
                    return Some(value);
                }
                _ => return None,
            }
        }
        None
    }

    #[inline]
    pub(crate) fn scalar(&mut self) -> Result<Scalar<'a>, Unexpected> {
        match self.peek() {
            Some(b'"') => self.string().map(Scalar::Text),
            Some(b'-' | b'0'..=b'9') => Ok(Scalar::Bare(self.run_of(is_number_byte))),
            Some(b't' | b'f' | b'n') => match self.run_of(|byte| byte.is_ascii_lowercase()) {
                "null" => Ok(Scalar::Null),
                word @ ("true" | "false") => Ok(Scalar::Bare(word)),
                _ => Err(self.unexpected("true, false or null")),
            },
            _ => Err(self.unexpected("a string, number, boolean or null")),
        }
    }

    /// Takes the bytes from here that belong together; they are ASCII.
    #[inline]
    fn run_of(&mut self, belongs: impl Fn(u8) -> bool) -> &'a str {
        let length = self.rest.bytes().position(|byte| !belongs(byte)).unwrap_or(self.rest.len());
        let (run, rest) = self.rest.split_at(length);
        self.rest = rest;
        run
    }

    /// Steps over one value of any shape. Inside containers only the nesting and the strings are checked: nobody
    /// reads them, and fastjson's maps with objects for keys pass.
    pub(crate) fn skip_value(&mut self) -> Result<(), Unexpected> {
        let mut open_objects = 0u32; // one bit a level: 1 = object, 0 = array
        let mut depth = 0u32;
        loop {
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == MAX_DEPTH {
                        return Err(self.unexpected("fewer nested values"));
                    }
                    open_objects = open_objects << 1 | u32::from(open == b'{');
                    depth += 1;
                    self.advance(1);
                }
                Some(close @ (b'}' | b']')) if depth > 0 => {
                    if (open_objects & 1 == 1) != (close == b'}') {
                        return Err(self.unexpected("the other bracket"));
                    }
                    open_objects >>= 1;
                    depth -= 1;
                    self.advance(1);
                }
                Some(b',' | b':') if depth > 0 => self.advance(1),
                _ => {
                    self.scalar()?;
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// The string that `text` begins with, after its opening quote, and what follows its closing quote.
#[inline(always)] // the heart of every header: a call would cost as much as the work
fn string_body(text: &str) -> Option<(Raw<'_>, &str)> {
    let end = find_quote_or_backslash(text.as_bytes());
    if text.as_bytes().get(end) == Some(&b'"') {
        return Some((Raw { text: text.get(..end)?, escaped: false }, text.get(end + 1..)?));
    }
    escaped_string_body(text, end)
}

/// The same from the first backslash on.
fn escaped_string_body(text: &str, first_backslash: usize) -> Option<(Raw<'_>, &str)> {
    let bytes = text.as_bytes();
    let mut end = first_backslash;
    while *bytes.get(end)? == b'\\' {
        let behind = end + 2;
        end = behind + find_quote_or_backslash(bytes.get(behind..)?);
    }
    Some((Raw { text: text.get(..end)?, escaped: true }, text.get(end + 1..)?))
}

const fn is_number_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// The place of the first quote or backslash, or the length.
#[inline]
fn find_quote_or_backslash(bytes: &[u8]) -> usize {
    find(bytes, quotes_and_backslashes)
}

/// The place of the first byte that can not stand in a string as it is, or the length.
#[inline]
fn find_unwritable(bytes: &[u8]) -> usize {
    find(bytes, |word| quotes_and_backslashes(word) | word.wrapping_sub(EVERY_BYTE * 0x20) & !word)
}

const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;

/// Sets the highest bit of the lowest byte that is a quote or a backslash; bits above it mean nothing.
#[inline]
const fn quotes_and_backslashes(word: u64) -> u64 {
    let quotes = word ^ (EVERY_BYTE * b'"' as u64);
    let backslashes = word ^ (EVERY_BYTE * b'\\' as u64);
    // A byte that is zero borrows, and its highest bit becomes set; so may those above it.
    (quotes.wrapping_sub(EVERY_BYTE) & !quotes) | (backslashes.wrapping_sub(EVERY_BYTE) & !backslashes)
}

/// The place of the first byte whose highest bit `hits` sets, or the length. Eight bytes at a time: property texts are
/// long. The rest is filled up with a byte that nobody looks for.
#[inline]
fn find(bytes: &[u8], hits: impl Fn(u64) -> u64) -> usize {
    let place = |word: u64| (hits(word) & (EVERY_BYTE * 0x80)).trailing_zeros() as usize / 8;
    let (words, tail) = bytes.as_chunks::<8>();
    let mut passed = 0;
    for word in words {
        match place(u64::from_le_bytes(*word)) {
            8 => passed += 8,
            within => return passed + within,
        }
    }
    let mut word = [b'.'; 8];
    word[..tail.len()].copy_from_slice(tail);
    passed + place(u64::from_le_bytes(word)).min(tail.len())
}

/// Appends `raw` without its escapes to `out`. Refuses unknown escapes and halves of surrogate pairs: a text that can
/// not be written back must not come in. `raw` comes from [`Lexer::string`].
pub(crate) fn unescape(raw: &str, out: &mut String) -> Result<(), &'static str> {
    out.reserve(raw.len());
    let mut rest = raw;
    loop {
        // No quote stands in `raw` but behind a backslash.
        let (plain, escape) =
            rest.split_at_checked(find_quote_or_backslash(rest.as_bytes())).unwrap_or((rest, ""));
        out.push_str(plain);
        // The separators of every property text are written so.
        if let [b'\\', b'u', b'0', b'0', b'0', low @ b'0'..=b'9', ..] = escape.as_bytes() {
            out.push(char::from(low - b'0'));
            rest = escape.get(6..).unwrap_or_default();
            continue;
        }
        let Some(&letter) = escape.as_bytes().get(1) else {
            return if escape.is_empty() { Ok(()) } else { Err("a letter after a backslash") };
        };
        let known = "a known escape";
        rest = escape.get(2..).ok_or(known)?;
        out.push(match letter {
            b'u' => unicode_escape(&mut rest)?,
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            _ => return Err(known),
        });
    }
}

/// Reads what follows `\u`: four digits, or a pair of surrogates.
fn unicode_escape(rest: &mut &str) -> Result<char, &'static str> {
    let first = four_hex_digits(rest)?;
    if let Some(plain) = char::from_u32(first) {
        return Ok(plain);
    }
    let wanted = "a pair of surrogates";
    *rest = rest.strip_prefix("\\u").ok_or(wanted)?;
    let second = four_hex_digits(rest)?;
    if !(0xD800..0xDC00).contains(&first) || !(0xDC00..0xE000).contains(&second) {
        return Err(wanted);
    }
    char::from_u32(0x1_0000 + ((first - 0xD800) << 10 | (second - 0xDC00))).ok_or(wanted)
}

fn four_hex_digits(rest: &mut &str) -> Result<u32, &'static str> {
    let wanted = "four hexadecimal digits";
    let (digits, behind) = rest.split_at_checked(4).ok_or(wanted)?;
    *rest = behind;
    let mut value = 0;
    for digit in digits.bytes() {
        value = value << 4 | char::from(digit).to_digit(16).ok_or(wanted)?;
    }
    Ok(value)
}

/// Appends `text` as a JSON string, quotes included.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    out.push(b'"');
    loop {
        let (plain, special) = rest.split_at(find_unwritable(rest));
        out.extend_from_slice(plain);
        let Some((&byte, behind)) = special.split_first() else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = behind;
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unescaped(raw: &str) -> Result<String, &'static str> {
        let mut out = String::new();
        unescape(raw, &mut out).map(|()| out)
    }

    #[test]
    fn strings_end_at_the_first_quote_that_is_not_escaped() {
        let mut lexer = Lexer::new(r#""a\"b\\" "c""#);
        assert_eq!(lexer.string(), Ok(Raw { text: r#"a\"b\\"#, escaped: true }));
        assert_eq!(lexer.string(), Ok(Raw { text: "c", escaped: false }));
        assert_eq!(lexer.end(), Ok(()));
    }

    #[test]
    fn a_string_without_its_closing_quote_is_refused() {
        for text in [r#"""#, r#""abc"#, r#""abc\"#, r#""abc\""#, r#""abcdefghijklmnop"#] {
            assert!(Lexer::new(text).string().is_err(), "{text}");
        }
    }

    #[test]
    fn raw_control_characters_are_let_through() {
        assert_eq!(Lexer::new("\"a\u{1}b\"").string(), Ok(Raw { text: "a\u{1}b", escaped: false }));
    }

    #[test]
    fn a_plain_pair_is_read_at_once_and_anything_else_left_in_place() {
        let mut lexer = Lexer::new(r#""a":"1","b":"\u0001","c":2}"#);
        let mut first = true;
        assert_eq!(lexer.plain_pair(&mut first), Some(("a", Raw { text: "1", escaped: false })));
        assert_eq!(lexer.plain_pair(&mut first), Some(("b", Raw { text: r"\u0001", escaped: true })));
        assert_eq!((lexer.plain_pair(&mut first), lexer.rest()), (None, r#","c":2}"#));
        for other in
            ["", "}", r#""a""#, r#""a" :"1""#, r#""a": "1""#, r#" "a":"1""#, r#""\u0061":"1""#, r#""a":"1"#]
        {
            let mut lexer = Lexer::new(other);
            assert_eq!((lexer.plain_pair(&mut true), lexer.rest()), (None, other));
            let mut lexer = Lexer::new(other);
            assert_eq!((lexer.plain_pair(&mut false), lexer.rest()), (None, other));
        }
    }

    #[test]
    fn every_escape_is_undone() {
        assert_eq!(unescaped(r#"\"\\\/\b\f\n\r\tA\u0001\u00e9x"#).unwrap(), "\"\\/\u{8}\u{c}\n\r\tA\u{1}éx");
    }

    #[test]
    fn surrogate_pairs_are_joined_and_their_halves_refused() {
        assert_eq!(unescaped(r"\ud83d\ude00").unwrap(), "😀");
        for broken in
            [r"\ud83d", r"\ude00", r"\ud83dx", r"\ud83d\n", r"\ud83d\ud83d", r"\ude00\ud83d", r"\ud83d\u0041"]
        {
            assert!(unescaped(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn unknown_and_cut_escapes_are_refused() {
        for broken in [r"\x", r"\u", r"\u12", r"\u12g4", r"\u+123", "\\u00é0", "\\é"] {
            assert!(unescaped(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn scalars_keep_the_text_they_were_written_with() {
        for word in ["0", "-12", "1.50", "1e400", "99999999999999999999999999", "true", "false"] {
            assert_eq!(Lexer::new(word).scalar(), Ok(Scalar::Bare(word)));
        }
        assert_eq!(Lexer::new(" null").scalar(), Ok(Scalar::Null));
        for broken in ["", "nul", "truely", "{", "[", "NaN", "+1", "'a'"] {
            assert!(Lexer::new(broken).scalar().is_err(), "{broken}");
        }
    }

    #[test]
    fn a_skipped_value_may_be_an_object_with_objects_for_keys() {
        let mut lexer = Lexer::new(r#"{{"queueId":0,"t":"}"}:5,{"a":[1,{}]}:-1} tail"#);
        assert_eq!(lexer.skip_value(), Ok(()));
        assert_eq!(lexer.rest(), " tail");
    }

    #[test]
    fn a_skipped_value_nests_at_most_thirty_two_deep() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Lexer::new(&nested(32)).skip_value().is_ok());
        assert!(Lexer::new(&nested(33)).skip_value().is_err());
        assert!(Lexer::new(&"[".repeat(60_000)).skip_value().is_err());
    }

    #[test]
    fn brackets_of_a_skipped_value_must_match() {
        for broken in ["[}", "{]", "[[]", "{\"a\":", "]", "}", ",", ""] {
            assert!(Lexer::new(broken).skip_value().is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_as_a_string_is_read_back(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            let written = String::from_utf8(out).unwrap();
            let mut lexer = Lexer::new(&written);
            let raw = lexer.string().unwrap();
            prop_assert_eq!(unescaped(raw.text).unwrap(), text.clone());
            prop_assert_eq!(raw.escaped, raw.text != text);
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }

        #[test]
        fn the_word_wise_searches_agree_with_the_plain_ones(
            text in "[\"\\\\#!\\]\\[a-z é\u{1}\u{1f}\u{7f}\u{80}-\u{ff}]{0,40}"
        ) {
            let place = |found: fn(u8) -> bool| text.bytes().position(found).unwrap_or(text.len());
            let plain = place(|byte| matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(find_quote_or_backslash(text.as_bytes()), plain);
            let plain = place(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            prop_assert_eq!(find_unwritable(text.as_bytes()), plain);
        }

        #[test]
        fn no_text_makes_the_lexer_panic(text in "[\\[\\]{}:,\"\\\\a-z0-9é\u{1}]{0,60}") {
            let _ = Lexer::new(&text).skip_value();
            let _ = Lexer::new(&text).string();
            let _ = Lexer::new(&text).scalar();
            let _ = unescaped(&text);
        }
    }
}
