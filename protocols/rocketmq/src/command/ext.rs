//! Extension fields: the flat name-to-text map of a command.
//!
//! Owns the storage of decoded fields: twenty inline, more on the heap, so that an ordinary request costs at most one
//! allocation (for its escaped texts). Promises unique names, and the order of the wire. Does not know any name.

use super::CommandError;
use std::fmt;

/// How many extension fields a command may carry. The richest known request has about twenty.
pub const MAX_EXT_FIELDS: usize = 256;

/// A SEND_MESSAGE_V2 with credentials and trace fields has 13 to 18.
const INLINE: usize = 20;

/// A text of the header: borrowed from the frame, or a range of the texts that had to be copied.
#[derive(Clone, Copy)]
pub(super) enum Text<'a> {
    Wire(&'a str),
    Copied { start: u32, end: u32 },
}

#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) name: Text<'a>,
    pub(super) value: Text<'a>,
}

const EMPTY: Field<'static> = Field { name: Text::Wire(""), value: Text::Wire("") };

/// The extension fields of a command, in the order of the wire; names are unique, values are text.
#[derive(Clone)]
pub struct ExtFields<'a> {
    inline: [Field<'a>; INLINE],
    /// All fields, once they no longer fit inline.
    spilled: Vec<Field<'a>>,
    len: usize,
    /// Texts that stood escaped in the header.
    copied: String,
    /// One bit for each name's fingerprint: a clear bit proves that a name is new.
    fingerprints: u64,
}

impl<'a> ExtFields<'a> {
    pub(super) fn new() -> Self {
        Self { inline: [EMPTY; INLINE], spilled: Vec::new(), len: 0, copied: String::new(), fingerprints: 0 }
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.reader().get(name)
    }

    /// The value of a field unless it is blank. The C++ client always sends its credentials fields, blank when unset:
    /// `Signature`, `AccessKey`, `OnsChannel`.
    pub fn get_nonblank(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.trim().is_empty())
    }

    /// All fields as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields().iter().map(|field| (self.text(field.name), self.text(field.value)))
    }

    /// A reader that is quick for fields asked in about the order of the wire.
    pub fn reader(&self) -> FieldReader<'_> {
        FieldReader { ext: self, next: 0 }
    }

    #[inline]
    fn fields(&self) -> &[Field<'a>] {
        if self.spilled.is_empty() { &self.inline[..self.len] } else { &self.spilled }
    }

    #[inline]
    fn text(&self, text: Text<'a>) -> &str {
        match text {
            Text::Wire(text) => text,
            Text::Copied { start, end } => self.copied.get(start as usize..end as usize).unwrap_or_default(),
        }
    }

    /// Adds a field whose texts are in the frame or were copied by [`ExtFields::copy`].
    #[inline]
    pub(super) fn push(&mut self, name: Text<'a>, value: Text<'a>) -> Result<(), CommandError> {
        let text = self.text(name);
        let bit = fingerprint(text.as_bytes());
        if self.fingerprints & bit != 0 && self.contains(text) {
            return Err(CommandError::Duplicate);
        }
        self.fingerprints |= bit;
        let field = Field { name, value };
        match self.inline.get_mut(self.len) {
            Some(free) => *free = field,
            None => self.spill(field)?,
        }
        self.len += 1;
        Ok(())
    }

    #[inline(never)] // rare enough to keep it out of the loop over the fields
    fn contains(&self, name: &str) -> bool {
        self.fields().iter().any(|field| self.text(field.name) == name)
    }

    #[cold]
    fn spill(&mut self, field: Field<'a>) -> Result<(), CommandError> {
        if self.len == MAX_EXT_FIELDS {
            return Err(CommandError::TooManyFields);
        }
        if self.spilled.is_empty() {
            self.spilled.extend_from_slice(&self.inline);
        }
        self.spilled.push(field);
        Ok(())
    }

    /// Lets `write` append a text to the copied ones and names it.
    pub(super) fn copy<E>(
        &mut self,
        write: impl FnOnce(&mut String) -> Result<(), E>,
    ) -> Result<Text<'a>, E> {
        // A header has at most 128 KiB and unescaping never lengthens it: 32 bits hold every place.
        let place = |copied: &String| u32::try_from(copied.len()).unwrap_or(u32::MAX);
        let start = place(&self.copied);
        write(&mut self.copied)?;
        Ok(Text::Copied { start, end: place(&self.copied) })
    }
}

/// One of 64 bits. One-letter names, of which SEND_MESSAGE_V2 has thirteen, never share one.
#[inline]
fn fingerprint(name: &[u8]) -> u64 {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return 1 };
    let length = name.len().to_le_bytes()[0];
    1 << ((first ^ last << 1 ^ length << 3) & 63)
}

impl PartialEq for ExtFields<'_> {
    /// Equal names and values, in whatever order.
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for ExtFields<'_> {}

impl fmt::Debug for ExtFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Looks fields up by name, trying first the one after the last found: typed headers ask in the order in which most
/// clients write.
#[derive(Clone)]
pub struct FieldReader<'c> {
    ext: &'c ExtFields<'c>,
    next: usize,
}

impl<'c> FieldReader<'c> {
    /// The value of a field.
    #[inline]
    pub fn get(&mut self, name: &str) -> Option<&'c str> {
        if self.ext.fingerprints & fingerprint(name.as_bytes()) == 0 {
            return None; // as most optional fields are
        }
        match self.ext.fields().get(self.next) {
            Some(field) if self.ext.text(field.name) == name => {
                self.next += 1;
                Some(self.ext.text(field.value))
            }
            _ => self.search(name),
        }
    }

    fn search(&mut self, name: &str) -> Option<&'c str> {
        let fields = self.ext.fields();
        let at = fields.iter().position(|field| self.ext.text(field.name) == name)?;
        self.next = at + 1;
        Some(self.ext.text(fields[at].value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn wire<'a>(fields: &[(&'a str, &'a str)]) -> ExtFields<'a> {
        let mut ext = ExtFields::new();
        for &(name, value) in fields {
            ext.push(Text::Wire(name), Text::Wire(value)).unwrap();
        }
        ext
    }

    #[test]
    fn fields_are_found_in_any_order() {
        let ext = wire(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let mut reader = ext.reader();
        assert_eq!(reader.get("b"), Some("2"));
        assert_eq!(reader.get("c"), Some("3"));
        assert_eq!(reader.get("x"), None);
        assert_eq!(reader.get("a"), Some("1"));
        assert_eq!(reader.get("a"), Some("1"));
        assert_eq!(ext.get("c"), Some("3"));
    }

    #[test]
    fn more_fields_than_fit_inline_spill_and_stay_in_order() {
        let names: Vec<String> = (0..MAX_EXT_FIELDS).map(|at| format!("name{at}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        let mut ext = wire(&pairs);
        assert_eq!(ext.len(), MAX_EXT_FIELDS);
        assert!(ext.iter().eq(pairs.iter().copied()));
        assert_eq!(ext.get("name255"), Some("name255"));
        assert_eq!(ext.push(Text::Wire("one more"), Text::Wire("")), Err(CommandError::TooManyFields));
    }

    #[test]
    fn a_name_stands_only_once_wherever_its_text_lies() {
        let mut ext = wire(&[("Signature", "x")]);
        assert_eq!(ext.push(Text::Wire("Signature"), Text::Wire("y")), Err(CommandError::Duplicate));
        let copied = ext.copy(|out| write!(out, "Signature")).unwrap();
        assert_eq!(ext.push(copied, Text::Wire("y")), Err(CommandError::Duplicate));
        assert_eq!(ext.push(Text::Wire("SignaturE"), Text::Wire("y")), Ok(()));
        assert_eq!(ext.push(Text::Wire(""), Text::Wire("")), Ok(()));
        assert_eq!(ext.push(Text::Wire(""), Text::Wire("")), Err(CommandError::Duplicate));
    }

    #[test]
    fn blank_credentials_count_as_absent() {
        let ext = wire(&[("AccessKey", ""), ("Signature", " "), ("OnsChannel", "x")]);
        assert_eq!(ext.get("AccessKey"), Some(""));
        assert_eq!(ext.get_nonblank("AccessKey"), None);
        assert_eq!(ext.get_nonblank("Signature"), None);
        assert_eq!(ext.get_nonblank("OnsChannel"), Some("x"));
    }

    #[test]
    fn equality_does_not_depend_on_the_order() {
        assert_eq!(wire(&[("a", "1"), ("b", "2")]), wire(&[("b", "2"), ("a", "1")]));
        assert_ne!(wire(&[("a", "1")]), wire(&[("a", "2")]));
        assert_ne!(wire(&[("a", "1")]), wire(&[("a", "1"), ("b", "")]));
    }
}
