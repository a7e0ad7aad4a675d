//! Field tables and arrays (spec 4.2.5.5), as bytes that were checked once.
//!
//! ```text
//!   table    { shortstr name, tag octet, value } …        array    { tag octet, value } …
//!   t bool   b i8   B u8   s i16   u u16   I i32   i u32   l i64   L i64   f f32   d f64
//!   D decimal (u8 scale, u32)   T timestamp (u64 seconds)   S long string   x bytes   A array   F table   V void
//! ```
//!
//! The tags are RabbitMQ's reading, not the spec's: `s` is a 16-bit integer (not a short string), `l` and `L`
//! are both signed, `i` is unsigned, and `U` does not exist.
//!
//! Owns what a valid table is. A [`RawTable`] is a proof: its bytes were checked to the bottom (every length,
//! every tag, every name, nesting, counts), so reading it can not fail, and recursion over it is at most
//! [`MAX_DEPTH`] deep. Promises to re-emit exactly the bytes it was made from: order, duplicates, odd
//! booleans and all. The check itself keeps its own stack; it never recurses on what a peer sent. Does not
//! know what any key means.

use std::fmt;

use crate::wire::{Writer, to_usize};

/// Deepest nesting of tables and arrays, the outermost included.
pub const MAX_DEPTH: usize = 32;
/// Most entries in one table.
pub const MAX_ENTRIES: usize = 1024;
/// Most items in one array.
pub const MAX_ITEMS: usize = 4096;

/// Why some bytes are not a table or array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// A name, a value or a length reaches past the end.
    Truncated,
    /// A name is not UTF-8.
    NameNotUtf8,
    /// The octet is not the tag of a field type.
    UnknownType(u8),
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// More than [`MAX_ENTRIES`] in one table.
    TooManyEntries,
    /// More than [`MAX_ITEMS`] in one array.
    TooManyItems,
}

impl TableError {
    /// Whether the bytes could not even be decoded (`FRAME_ERROR`), as opposed to decoded and refused
    /// (`SYNTAX_ERROR`).
    #[must_use]
    pub const fn is_undecodable(self) -> bool {
        matches!(self, Self::Truncated | Self::NameNotUtf8)
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("cut short"),
            Self::NameNotUtf8 => f.write_str("malformed UTF-8 in a field name"),
            Self::UnknownType(tag) => write!(f, "unknown field type {tag}"),
            Self::TooDeep => write!(f, "nested deeper than {MAX_DEPTH}"),
            Self::TooManyEntries => write!(f, "more than {MAX_ENTRIES} entries"),
            Self::TooManyItems => write!(f, "more than {MAX_ITEMS} items in an array"),
        }
    }
}

impl std::error::Error for TableError {}

/// One field value, borrowed from its table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`; any octet but 0 is true.
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`, and `L` too
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: `value` divided by ten to the power of `scale`
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// All digits.
        value: u32,
    },
    /// `T`: seconds since 1970
    Timestamp(u64),
    /// `S`: usually text, but nobody promises UTF-8
    LongStr(&'a [u8]),
    /// `x`
    Bytes(&'a [u8]),
    /// `A`
    Array(RawArray<'a>),
    /// `F`
    Table(RawTable<'a>),
    /// `V`
    Void,
}

impl<'a> Value<'a> {
    /// The value of any of the integer types (not of a timestamp).
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value.into()),
            Self::U8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            _ => None,
        }
    }

    /// The value of a boolean.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// A long string, if it is UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::LongStr(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// A nested table.
    #[must_use]
    pub const fn as_table(&self) -> Option<RawTable<'a>> {
        if let Self::Table(table) = self { Some(*table) } else { None }
    }

    /// A nested array.
    #[must_use]
    pub const fn as_array(&self) -> Option<RawArray<'a>> {
        if let Self::Array(array) = self { Some(*array) } else { None }
    }

    /// The name RabbitMQ gives the type in its reply texts ("the value '1' of type 'signedint'").
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::I8(_) => "byte",
            Self::U8(_) => "unsignedbyte",
            Self::I16(_) => "short",
            Self::U16(_) => "unsignedshort",
            Self::I32(_) => "signedint",
            Self::U32(_) => "unsignedint",
            Self::I64(_) => "long",
            Self::F32(_) => "float",
            Self::F64(_) => "double",
            Self::Decimal { .. } => "decimal",
            Self::Timestamp(_) => "timestamp",
            Self::LongStr(_) => "longstr",
            Self::Bytes(_) => "binary",
            Self::Array(_) => "array",
            Self::Table(_) => "table",
            Self::Void => "void",
        }
    }

    /// Whether two arguments mean the same when an object is declared again: integers of any width compare by
    /// value, and so do the two floating-point types; everything else must have the same type (RabbitMQ,
    /// argument equivalence).
    #[must_use]
    pub fn equivalent(&self, other: &Value<'_>) -> bool {
        match (self.as_integer(), other.as_integer()) {
            (Some(ours), Some(theirs)) => return ours == theirs,
            (None, None) => {}
            _ => return false,
        }
        match (self.as_float(), other.as_float()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, None) => self == other,
            _ => false,
        }
    }

    fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    fn write(&self, w: &mut Writer<'_>) {
        let (tag, number): (u8, &[u8]) = match *self {
            Self::Bool(value) => (b't', &[u8::from(value)]),
            Self::I8(value) => (b'b', &value.to_be_bytes()),
            Self::U8(value) => (b'B', &[value]),
            Self::I16(value) => (b's', &value.to_be_bytes()),
            Self::U16(value) => (b'u', &value.to_be_bytes()),
            Self::I32(value) => (b'I', &value.to_be_bytes()),
            Self::U32(value) => (b'i', &value.to_be_bytes()),
            Self::I64(value) => (b'l', &value.to_be_bytes()),
            Self::F32(value) => (b'f', &value.to_be_bytes()),
            Self::F64(value) => (b'd', &value.to_be_bytes()),
            Self::Timestamp(value) => (b'T', &value.to_be_bytes()),
            Self::Void => (b'V', &[]),
            Self::Decimal { scale, value } => {
                w.raw(&[b'D', scale]);
                return w.long(value);
            }
            Self::LongStr(bytes) => return write_tagged(w, b'S', bytes),
            Self::Bytes(bytes) => return write_tagged(w, b'x', bytes),
            Self::Array(array) => return write_tagged(w, b'A', array.as_bytes()),
            Self::Table(table) => return write_tagged(w, b'F', table.as_bytes()),
        };
        w.octet(tag);
        w.raw(number);
    }
}

fn write_tagged(w: &mut Writer<'_>, tag: u8, bytes: &[u8]) {
    w.octet(tag);
    w.longstr(bytes);
}

/// Only the bare value, as RabbitMQ prints it inside "the value '…' of type '…'".
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Decimal { scale, value } => write!(f, "{value}e-{scale}"),
            Self::Timestamp(value) => value.fmt(f),
            Self::LongStr(bytes) => String::from_utf8_lossy(bytes).fmt(f),
            Self::Bytes(bytes) => write!(f, "{bytes:?}"),
            Self::Array(array) => write!(f, "{array:?}"),
            Self::Table(table) => write!(f, "{table:?}"),
            Self::Void => f.write_str("undefined"),
            integer => integer.as_integer().unwrap_or_default().fmt(f),
        }
    }
}

macro_rules! values_from {
    ($($from:ty => $variant:ident;)+) => {
        $(impl<'a> From<$from> for Value<'a> {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })+
    };
}

values_from! {
    bool => Bool;
    u8 => U8;
    u16 => U16;
    i32 => I32;
    u32 => U32;
    i64 => I64;
    f64 => F64;
    RawArray<'a> => Array;
    RawTable<'a> => Table;
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::LongStr(text.as_bytes())
    }
}

/// A checked field table: its entries, without the length in front.
#[derive(Clone, Copy, Default)]
pub struct RawTable<'a>(&'a [u8]);

impl<'a> RawTable<'a> {
    /// The table without entries.
    pub const EMPTY: RawTable<'static> = RawTable(&[]);

    /// Checks the entries of a table (without the length in front), nested ones included.
    ///
    /// # Errors
    /// At the first byte that breaks a rule of [`TableError`].
    pub fn parse(entries: &'a [u8]) -> Result<Self, TableError> {
        check(entries, Shape::Table)?;
        Ok(Self(entries))
    }

    /// Entries that passed [`RawTable::parse`] before. Should they not have, reading ends at the first mistake.
    pub(crate) const fn of_checked(entries: &'a [u8]) -> Self {
        Self(entries)
    }

    /// The bytes it was made from: entries without the length in front.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries in their order on the wire, duplicates included.
    #[must_use]
    pub const fn iter(&self) -> TableIter<'a> {
        TableIter(self.0)
    }

    /// The first entry with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        let mut rest = self.0;
        while let Ok(seen) = take_name(&mut rest) {
            if seen == name.as_bytes() {
                return take_value(&mut rest).ok();
            }
            take_raw_value(&mut rest).ok()?;
        }
        None
    }

    /// Whether both tables have the same names with equivalent values ([`Value::equivalent`]), in whatever
    /// order; of a duplicate name the first counts.
    #[must_use]
    pub fn equivalent(&self, other: RawTable<'_>) -> bool {
        fn sorted<'t>(table: &RawTable<'t>) -> Vec<(&'t str, Value<'t>)> {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|&(name, _)| name); // stable: the first of a name stays first
            entries.dedup_by_key(|&mut (name, _)| name);
            entries
        }
        let (ours, theirs) = (sorted(self), sorted(&other));
        ours.len() == theirs.len()
            && ours
                .iter()
                .zip(&theirs)
                .all(|(ours, theirs)| ours.0 == theirs.0 && ours.1.equivalent(&theirs.1))
    }
}

/// The same entries in the same order, decoded: `l` equals `L`, and every true equals every other.
impl PartialEq for RawTable<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for RawTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for RawTable<'a> {
    type Item = (&'a str, Value<'a>);
    type IntoIter = TableIter<'a>;

    fn into_iter(self) -> TableIter<'a> {
        self.iter()
    }
}

/// The entries of a [`RawTable`].
#[derive(Clone, Debug)]
pub struct TableIter<'a>(&'a [u8]);

impl<'a> Iterator for TableIter<'a> {
    type Item = (&'a str, Value<'a>);

    // The bytes were checked, so that `ok()?` means the end of the table and nothing else.
    fn next(&mut self) -> Option<Self::Item> {
        let name = std::str::from_utf8(take_name(&mut self.0).ok()?).ok()?;
        Some((name, take_value(&mut self.0).ok()?))
    }
}

/// A checked field array: its items, without the length in front.
#[derive(Clone, Copy, Default)]
pub struct RawArray<'a>(&'a [u8]);

impl<'a> RawArray<'a> {
    /// Checks the items of an array (without the length in front), nested ones included.
    ///
    /// # Errors
    /// At the first byte that breaks a rule of [`TableError`].
    pub fn parse(items: &'a [u8]) -> Result<Self, TableError> {
        check(items, Shape::Array)?;
        Ok(Self(items))
    }

    /// The bytes it was made from: items without the length in front.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether there is no item.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The items in order.
    #[must_use]
    pub const fn iter(&self) -> ArrayIter<'a> {
        ArrayIter(self.0)
    }
}

/// The same items in the same order, decoded.
impl PartialEq for RawArray<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for RawArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for RawArray<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// The items of a [`RawArray`].
#[derive(Clone, Debug)]
pub struct ArrayIter<'a>(&'a [u8]);

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        take_value(&mut self.0).ok()
    }
}

/// The name in front of `rest`.
#[inline]
fn take_name<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], TableError> {
    let (&length, after) = rest.split_first().ok_or(TableError::Truncated)?;
    let (name, after) = after.split_at_checked(length.into()).ok_or(TableError::Truncated)?;
    *rest = after;
    Ok(name)
}

/// The tag and the bytes of the value in front of `rest`; for strings, arrays and tables without their
/// length.
#[inline]
fn take_raw_value<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), TableError> {
    let (&tag, mut after) = rest.split_first().ok_or(TableError::Truncated)?;
    let width = match tag {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let (&length, value) = after.split_first_chunk().ok_or(TableError::Truncated)?;
            after = value;
            to_usize(u32::from_be_bytes(length))
        }
        unknown => return Err(TableError::UnknownType(unknown)),
    };
    let (value, after) = after.split_at_checked(width).ok_or(TableError::Truncated)?;
    *rest = after;
    Ok((tag, value))
}

/// The value in front of `rest`, which was checked.
fn take_value<'a>(rest: &mut &'a [u8]) -> Result<Value<'a>, TableError> {
    fn number<const N: usize>(bytes: &[u8]) -> Result<[u8; N], TableError> {
        bytes.try_into().map_err(|_| TableError::Truncated)
    }
    let (tag, bytes) = take_raw_value(rest)?;
    Ok(match tag {
        b't' => Value::Bool(bytes != [0]),
        b'b' => Value::I8(i8::from_be_bytes(number(bytes)?)),
        b'B' => Value::U8(u8::from_be_bytes(number(bytes)?)),
        b's' => Value::I16(i16::from_be_bytes(number(bytes)?)),
        b'u' => Value::U16(u16::from_be_bytes(number(bytes)?)),
        b'I' => Value::I32(i32::from_be_bytes(number(bytes)?)),
        b'i' => Value::U32(u32::from_be_bytes(number(bytes)?)),
        b'l' | b'L' => Value::I64(i64::from_be_bytes(number(bytes)?)),
        b'f' => Value::F32(f32::from_be_bytes(number(bytes)?)),
        b'd' => Value::F64(f64::from_be_bytes(number(bytes)?)),
        b'D' => {
            let [scale, value @ ..] = number::<5>(bytes)?;
            Value::Decimal { scale, value: u32::from_be_bytes(value) }
        }
        b'T' => Value::Timestamp(u64::from_be_bytes(number(bytes)?)),
        b'S' => Value::LongStr(bytes),
        b'x' => Value::Bytes(bytes),
        b'A' => Value::Array(RawArray(bytes)),
        b'F' => Value::Table(RawTable(bytes)),
        b'V' => Value::Void,
        unknown => return Err(TableError::UnknownType(unknown)),
    })
}

#[derive(Clone, Copy)]
enum Shape {
    Table,
    Array,
}

/// A table or array whose check is under way.
#[derive(Clone, Copy)]
struct Level<'a> {
    rest: &'a [u8],
    shape: Shape,
    seen: usize,
}

impl<'a> Level<'a> {
    const fn new(bytes: &'a [u8], shape: Shape) -> Self {
        Self { rest: bytes, shape, seen: 0 }
    }

    /// Checks the next entry; a nested table or array is handed back unchecked.
    #[inline]
    fn check_next(&mut self) -> Result<Option<Self>, TableError> {
        self.seen += 1;
        match self.shape {
            Shape::Array if self.seen > MAX_ITEMS => return Err(TableError::TooManyItems),
            Shape::Array => {}
            Shape::Table if self.seen > MAX_ENTRIES => return Err(TableError::TooManyEntries),
            Shape::Table => {
                std::str::from_utf8(take_name(&mut self.rest)?).map_err(|_| TableError::NameNotUtf8)?;
            }
        }
        Ok(match take_raw_value(&mut self.rest)? {
            (b'F', nested) => Some(Self::new(nested, Shape::Table)),
            (b'A', nested) => Some(Self::new(nested, Shape::Array)),
            _ => None,
        })
    }
}

/// Checks a table or array to the bottom. Iterative: 2,500 nested tables fit in 15 KB that a stranger may
/// send before logging in, and would overflow the stack of a parser that recurses.
fn check(bytes: &[u8], shape: Shape) -> Result<(), TableError> {
    let mut level = Level::new(bytes, shape);
    // Most tables are flat: do not pay for the stack before there is something to put on it.
    while !level.rest.is_empty() {
        if let Some(nested) = level.check_next()? {
            return check_nested(level, nested);
        }
    }
    Ok(())
}

fn check_nested<'a>(outer: Level<'a>, nested: Level<'a>) -> Result<(), TableError> {
    let mut stack = [outer; MAX_DEPTH - 1];
    let mut below: usize = 1; // levels on the stack
    let mut level = nested;
    loop {
        if level.rest.is_empty() {
            let Some(left) = below.checked_sub(1) else { return Ok(()) };
            below = left;
            level = stack[below];
        } else if let Some(nested) = level.check_next()? {
            *stack.get_mut(below).ok_or(TableError::TooDeep)? = level;
            below += 1;
            level = nested;
        }
    }
}

/// Writes a table.
///
/// ```
/// use dassie_amqp::table::TableBuilder;
///
/// let mut properties = TableBuilder::new();
/// properties.put("product", "Dassie").put_table("capabilities", |capabilities| {
///     capabilities.put("publisher_confirms", true);
/// });
/// let table = properties.as_table().expect("small and flat");
/// assert_eq!(table.get("product").and_then(|product| product.as_str()), Some("Dassie"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct TableBuilder(Vec<u8>);

impl TableBuilder {
    /// A table without entries.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends an entry.
    ///
    /// # Panics
    /// If the name has more than 255 bytes.
    pub fn put<'v>(&mut self, name: &str, value: impl Into<Value<'v>>) -> &mut Self {
        let mut w = Writer::new(&mut self.0);
        w.shortstr(name);
        value.into().write(&mut w);
        self
    }

    /// Appends a table that `fill` writes.
    ///
    /// # Panics
    /// If the name has more than 255 bytes.
    pub fn put_table(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut nested = Self::new();
        fill(&mut nested);
        self.put(name, RawTable(&nested.0))
    }

    /// Appends an array that `fill` writes.
    ///
    /// # Panics
    /// If the name has more than 255 bytes.
    pub fn put_array(&mut self, name: &str, fill: impl FnOnce(&mut ArrayBuilder)) -> &mut Self {
        let mut nested = ArrayBuilder::default();
        fill(&mut nested);
        self.put(name, RawArray(&nested.0))
    }

    /// The table so far.
    ///
    /// # Errors
    /// If what was put together exceeds [`MAX_DEPTH`], [`MAX_ENTRIES`] or [`MAX_ITEMS`]: parts that came from
    /// a peer may be that large already.
    pub fn as_table(&self) -> Result<RawTable<'_>, TableError> {
        RawTable::parse(&self.0)
    }
}

/// Writes an array, inside [`TableBuilder::put_array`].
#[derive(Clone, Debug, Default)]
pub struct ArrayBuilder(Vec<u8>);

impl ArrayBuilder {
    /// Appends an item.
    pub fn push<'v>(&mut self, value: impl Into<Value<'v>>) -> &mut Self {
        value.into().write(&mut Writer::new(&mut self.0));
        self
    }

    /// Appends a table that `fill` writes.
    pub fn push_table(&mut self, fill: impl FnOnce(&mut TableBuilder)) -> &mut Self {
        let mut nested = TableBuilder::new();
        fill(&mut nested);
        self.push(RawTable(&nested.0))
    }

    /// Appends an array that `fill` writes.
    pub fn push_array(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut nested = Self::default();
        fill(&mut nested);
        self.push(RawArray(&nested.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use amq_protocol::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::testing::{Tables, array, longstr, oracle, shortstr, table};

    fn entry(name: &str, value: &[u8]) -> Vec<u8> {
        [shortstr(name.as_bytes()), value.to_vec()].concat()
    }

    fn parsed(bytes: &[u8]) -> RawTable<'_> {
        RawTable::parse(bytes).expect("a valid table")
    }

    /// Whether the oracle reads the same type and value.
    fn agree(ours: &Value<'_>, theirs: &AMQPValue) -> bool {
        match (*ours, theirs) {
            (Value::Bool(ours), AMQPValue::Boolean(theirs)) => ours == *theirs,
            (Value::I8(ours), AMQPValue::ShortShortInt(theirs)) => ours == *theirs,
            (Value::U8(ours), AMQPValue::ShortShortUInt(theirs)) => ours == *theirs,
            (Value::I16(ours), AMQPValue::ShortInt(theirs)) => ours == *theirs,
            (Value::U16(ours), AMQPValue::ShortUInt(theirs)) => ours == *theirs,
            (Value::I32(ours), AMQPValue::LongInt(theirs)) => ours == *theirs,
            (Value::U32(ours), AMQPValue::LongUInt(theirs)) => ours == *theirs,
            (Value::I64(ours), AMQPValue::LongLongInt(theirs)) => ours == *theirs,
            (Value::F32(ours), AMQPValue::Float(theirs)) => ours == *theirs,
            (Value::F64(ours), AMQPValue::Double(theirs)) => ours == *theirs,
            (Value::Decimal { scale, value }, AMQPValue::DecimalValue(theirs)) => {
                (scale, value) == (theirs.scale, theirs.value)
            }
            (Value::Timestamp(ours), AMQPValue::Timestamp(theirs)) => ours == *theirs,
            (Value::LongStr(ours), AMQPValue::LongString(theirs)) => ours == theirs.as_bytes(),
            (Value::Bytes(ours), AMQPValue::ByteArray(theirs)) => ours == theirs.as_slice(),
            (Value::Void, AMQPValue::Void) => true,
            (Value::Table(ours), AMQPValue::FieldTable(theirs)) => tables_agree(ours, theirs),
            (Value::Array(ours), AMQPValue::FieldArray(theirs)) => {
                ours.iter().count() == theirs.as_slice().len()
                    && ours.iter().zip(theirs.as_slice()).all(|(ours, theirs)| agree(&ours, theirs))
            }
            _ => false,
        }
    }

    fn tables_agree(ours: RawTable<'_>, theirs: &FieldTable) -> bool {
        let theirs = theirs.inner();
        ours.iter().count() == theirs.len()
            && ours.iter().all(|(name, value)| theirs.get(name).is_some_and(|theirs| agree(&value, theirs)))
    }

    /// `levels` tables or arrays around nothing.
    fn nested(tag: u8, levels: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 1..levels {
            let name: &[u8] = if tag == b'F' { &[0] } else { &[] };
            bytes = [name, &[tag], &longstr(&bytes)].concat();
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_table_gives_back_the_bytes_it_was_made_from(bytes in table(Tables::Any)) {
            prop_assert_eq!(parsed(&bytes).as_bytes(), &bytes[..]);
        }

        #[test]
        fn a_table_built_from_the_entries_of_another_is_equal_to_it(bytes in table(Tables::Any)) {
            let original = parsed(&bytes);
            let mut copy = TableBuilder::new();
            for (name, value) in original {
                copy.put(name, value);
            }
            prop_assert_eq!(copy.as_table().expect("as valid as the original"), original);
            prop_assert!(copy.as_table().unwrap().equivalent(original));
        }

        #[test]
        fn a_canonical_table_is_rebuilt_byte_for_byte(bytes in table(Tables::Canonical)) {
            let mut copy = TableBuilder::new();
            for (name, value) in parsed(&bytes) {
                copy.put(name, value);
            }
            prop_assert_eq!(copy.0, bytes);
        }

        #[test]
        fn the_oracle_reads_the_same_types_and_values(bytes in table(Tables::Canonical)) {
            prop_assert!(tables_agree(parsed(&bytes), &oracle::table(&longstr(&bytes))));
        }

        #[test]
        fn an_array_is_rebuilt_item_by_item(bytes in array(Tables::Canonical)) {
            let mut copy = ArrayBuilder::default();
            for value in RawArray::parse(&bytes).expect("a valid array") {
                copy.push(value);
            }
            prop_assert_eq!(copy.0, bytes);
        }

        #[test]
        fn looking_up_a_name_finds_its_first_entry(bytes in table(Tables::Any)) {
            let table = parsed(&bytes);
            for (name, _) in table {
                let first = table.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
                prop_assert_eq!(format!("{:?}", table.get(name)), format!("{first:?}"));
            }
            prop_assert_eq!(table.get("A NAME OF CAPITALS"), None);
        }

        #[test]
        fn a_table_cut_anywhere_but_between_entries_is_refused(bytes in table(Tables::Any)) {
            let mut whole = vec![0];
            let mut rest = TableIter(&bytes);
            while rest.next().is_some() {
                whole.push(bytes.len() - rest.0.len());
            }
            for cut in 0..=bytes.len() {
                let accepted = RawTable::parse(&bytes[..cut]).is_ok();
                prop_assert_eq!(accepted, whole.contains(&cut), "cut at {}", cut);
            }
        }

        #[test]
        fn whatever_passes_the_check_can_be_read_to_its_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            if let Ok(table) = RawTable::parse(&bytes) {
                let mut iter = table.iter();
                while iter.next().is_some() {}
                prop_assert_eq!(iter.0, b"");
            }
        }
    }

    #[test]
    fn every_field_type_is_read_as_rabbitmq_reads_it() {
        let bytes = [
            entry("t", b"t\x02"),
            entry("b", b"b\xff"),
            entry("B", b"B\xff"),
            entry("s", b"s\xff\xfe"),
            entry("u", b"u\xff\xfe"),
            entry("I", b"I\xff\xff\xff\xfd"),
            entry("i", b"i\xff\xff\xff\xfd"),
            entry("l", b"l\xff\xff\xff\xff\xff\xff\xff\xfc"),
            entry("L", b"L\xff\xff\xff\xff\xff\xff\xff\xfc"),
            entry("f", b"f\x3f\xc0\0\0"),
            entry("d", b"d\x3f\xf8\0\0\0\0\0\0"),
            entry("D", b"D\xff\0\0\x01\0"),
            entry("T", b"T\xff\xff\xff\xff\xff\xff\xff\xff"),
            entry("S", b"S\0\0\0\x02\xc3\x28"),
            entry("x", b"x\0\0\0\x01\0"),
            entry("A", b"A\0\0\0\x03VB\x07"),
            entry("F", b"F\0\0\0\x03\x01nV"),
            entry("V", b"V"),
        ]
        .concat();
        let inner = [entry("n", b"V")].concat();
        let expected = [
            ("t", Value::Bool(true), "bool"),
            ("b", Value::I8(-1), "byte"),
            ("B", Value::U8(255), "unsignedbyte"),
            ("s", Value::I16(-2), "short"),
            ("u", Value::U16(65_534), "unsignedshort"),
            ("I", Value::I32(-3), "signedint"),
            ("i", Value::U32(u32::MAX - 2), "unsignedint"),
            ("l", Value::I64(-4), "long"),
            ("L", Value::I64(-4), "long"),
            ("f", Value::F32(1.5), "float"),
            ("d", Value::F64(1.5), "double"),
            ("D", Value::Decimal { scale: 255, value: 256 }, "decimal"),
            ("T", Value::Timestamp(u64::MAX), "timestamp"),
            ("S", Value::LongStr(b"\xc3\x28"), "longstr"),
            ("x", Value::Bytes(b"\0"), "binary"),
            ("A", Value::Array(RawArray(b"VB\x07")), "array"),
            ("F", Value::Table(RawTable(&inner)), "table"),
            ("V", Value::Void, "void"),
        ];
        let read: Vec<_> =
            parsed(&bytes).iter().map(|(name, value)| (name, value, value.type_name())).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_tag_that_rabbitmq_does_not_know_is_refused() {
        let known = b"tbBsuIilLfdDTSxAFV";
        for tag in (0..=255).filter(|tag| !known.contains(tag)) {
            let bytes = [&[0, tag], &[0; 16][..]].concat();
            assert_eq!(RawTable::parse(&bytes), Err(TableError::UnknownType(tag)));
        }
    }

    #[test]
    fn a_name_or_value_past_the_end_is_refused() {
        for bytes in
            [&b"\x05abc"[..], b"\x01a", b"\x01aI\0\0", b"\x01aS\xff\xff\xff\xffx", b"\x01aF\0\0\0\x09\x01bV"]
        {
            assert_eq!(RawTable::parse(bytes), Err(TableError::Truncated), "{bytes:?}");
        }
    }

    #[test]
    fn a_nested_table_may_not_borrow_bytes_from_its_surroundings() {
        let bytes = [entry("f", b"F\0\0\0\x02\x01b"), entry("c", b"V")].concat();
        assert_eq!(RawTable::parse(&bytes), Err(TableError::Truncated));
    }

    #[test]
    fn a_name_must_be_utf8_and_a_long_string_need_not() {
        assert_eq!(RawTable::parse(b"\x02\xc3\x28V"), Err(TableError::NameNotUtf8));
        let bytes = entry("k", b"S\0\0\0\x02\xc3\x28");
        assert_eq!(parsed(&bytes).get("k").and_then(|value| value.as_str()), None);
    }

    #[test]
    fn thirty_two_levels_are_accepted_and_one_more_is_not() {
        assert!(RawTable::parse(&nested(b'F', MAX_DEPTH)).is_ok());
        assert_eq!(RawTable::parse(&nested(b'F', MAX_DEPTH + 1)), Err(TableError::TooDeep));
        assert!(RawArray::parse(&nested(b'A', MAX_DEPTH)).is_ok());
        assert_eq!(RawArray::parse(&nested(b'A', MAX_DEPTH + 1)), Err(TableError::TooDeep));
    }

    #[test]
    fn ten_thousand_levels_are_refused_without_recursion() {
        assert_eq!(RawTable::parse(&nested(b'F', 10_000)), Err(TableError::TooDeep));
        assert_eq!(RawArray::parse(&nested(b'A', 10_000)), Err(TableError::TooDeep));
    }

    #[test]
    fn siblings_do_not_add_to_the_depth() {
        let deep = nested(b'F', MAX_DEPTH);
        let bytes = [&deep[..], &deep, &deep].concat();
        assert_eq!(parsed(&bytes).iter().count(), 3);
    }

    #[test]
    fn entries_and_items_are_counted_per_table_and_per_array() {
        let entries = |count| entry("", b"V").repeat(count);
        assert!(RawTable::parse(&entries(MAX_ENTRIES)).is_ok());
        assert_eq!(RawTable::parse(&entries(MAX_ENTRIES + 1)), Err(TableError::TooManyEntries));
        assert!(RawArray::parse(&vec![b'V'; MAX_ITEMS]).is_ok());
        assert_eq!(RawArray::parse(&vec![b'V'; MAX_ITEMS + 1]), Err(TableError::TooManyItems));
        let nested = entry("a", &[b"A", &longstr(&vec![b'V'; MAX_ITEMS + 1])[..]].concat());
        assert_eq!(RawTable::parse(&nested), Err(TableError::TooManyItems));
    }

    #[test]
    fn of_duplicate_names_the_first_is_found_and_both_are_kept() {
        let bytes = [entry("k", b"B\x01"), entry("k", b"B\x02")].concat();
        let table = parsed(&bytes);
        assert_eq!(table.get("k"), Some(Value::U8(1)));
        assert_eq!(table.iter().count(), 2);
    }

    #[test]
    fn integers_of_any_width_are_equivalent_and_nothing_else_is() {
        let five = [
            Value::I8(5),
            Value::U8(5),
            Value::I16(5),
            Value::U16(5),
            Value::I32(5),
            Value::U32(5),
            Value::I64(5),
        ];
        for a in five {
            assert!(five.iter().all(|b| a.equivalent(b)));
            let others = [
                Value::Timestamp(5),
                Value::F64(5.0),
                "5".into(),
                Value::Decimal { scale: 0, value: 5 },
                Value::I8(6),
                Value::Void,
            ];
            assert!(others.iter().all(|b| !a.equivalent(b) && !b.equivalent(&a)), "{a:?}");
        }
        assert!(Value::F32(1.5).equivalent(&Value::F64(1.5)));
        assert!(!Value::F64(f64::NAN).equivalent(&Value::F64(f64::NAN)));
        assert!(!Value::LongStr(b"a").equivalent(&Value::Bytes(b"a")));
    }

    #[test]
    fn tables_are_equivalent_in_any_order_but_nested_ones_must_be_equal() {
        let (mut a, mut b) = (TableBuilder::new(), TableBuilder::new());
        a.put("x", 1_i32).put("y", "z");
        b.put("y", "z").put("x", 1_i64).put("x", 2_i64);
        assert!(a.as_table().unwrap().equivalent(b.as_table().unwrap()));
        a.put_table("n", |n| _ = n.put("x", 1_i32));
        b.put_table("n", |n| _ = n.put("x", 1_i64));
        assert!(!a.as_table().unwrap().equivalent(b.as_table().unwrap()));
        assert!(!RawTable::EMPTY.equivalent(a.as_table().unwrap()));
    }

    #[test]
    fn a_builder_nests_tables_and_arrays() {
        let mut built = TableBuilder::new();
        built.put_array("list", |list| {
            list.push(1_u8).push_table(|t| _ = t.put("k", true)).push_array(|a| _ = a.push("s"));
        });
        let expected = entry("list", b"A\0\0\0\x16B\x01F\0\0\0\x04\x01kt\x01A\0\0\0\x06S\0\0\0\x01s");
        assert_eq!(built.0, expected);
        assert_eq!(
            format!("{:?}", built.as_table().unwrap()),
            r#"{"list": Array([U8(1), Table({"k": Bool(true)}), Array([LongStr([115])])])}"#
        );
    }

    #[test]
    fn values_print_as_in_a_reply_text() {
        assert_eq!(
            format!("the value '{}' of type '{}'", Value::I32(-7), Value::I32(-7).type_name()),
            "the value '-7' of type 'signedint'"
        );
        assert_eq!(Value::from("é").to_string(), "é");
        assert_eq!(Value::Bool(true).to_string(), "true");
    }
}
