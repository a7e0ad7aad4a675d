//! Content: the header, its properties, and bodies cut into frames (spec 4.2.6).
//!
//! ```text
//!   header frame payload    │ class u16 │ weight u16 = 0 │ body size u64 │ flags u16 │ property … │
//!   flags                   bit 15 content-type … bit 2 cluster-id, bit 1 unused, bit 0 "more flags follow"
//! ```
//!
//! Owns the layout of the property block and the cutting of bodies. A [`Properties`] is a proof: the block
//! was checked once, headers table included, so its accessors can not fail. Promises to pass the block on
//! byte for byte. Does not know what a property means to a broker (which delivery modes exist, whether an
//! expiration is a number).

use std::fmt;
use std::ops::Range;

use crate::frame::{FRAME_END, FRAME_OVERHEAD, FrameKind, FrameStart};
use crate::reply::{Exception, ReplyCode};
use crate::table::RawTable;
use crate::wire::{Malformed, Reader, Writer, to_usize};

/// The class of every content: `basic`.
pub const BASIC_CLASS: u16 = 60;

/// What is wrong with a content header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Too short for class, weight and body size.
    Short,
    /// The weight, a relic, is not 0.
    Weight(u16),
    /// The flags announce more flags, or a property that `basic` does not have.
    Flags(u16),
    /// The property block is cut short, goes on after the last property, or has a malformed table.
    Properties(Malformed),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("content header cut short"),
            Self::Weight(weight) => write!(f, "content header with weight {weight}, must be 0"),
            Self::Flags(flags) => write!(f, "content header with unknown property flags {flags:#06x}"),
            Self::Properties(what) => write!(f, "cannot decode content properties: {what}"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// Blamed on no method; who knows which method the header belongs to adds it.
impl From<HeaderError> for Exception {
    fn from(error: HeaderError) -> Self {
        let code = match error {
            HeaderError::Weight(_) => ReplyCode::UnexpectedFrame,
            HeaderError::Properties(Malformed::Table(what)) if !what.is_undecodable() => {
                ReplyCode::SyntaxError
            }
            HeaderError::Short | HeaderError::Flags(_) | HeaderError::Properties(_) => ReplyCode::FrameError,
        };
        Self::new(code, error)
    }
}

/// A content header.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContentHeader<'a> {
    /// The class of the method that brought the content.
    pub class_id: u16,
    /// Bytes of body that follow. Up to 2^64 - 1: whoever collects a body compares this with its own limit
    /// first.
    pub body_size: u64,
    /// The properties.
    pub properties: Properties<'a>,
}

impl<'a> ContentHeader<'a> {
    /// Parses the payload of a content header frame.
    ///
    /// # Errors
    /// See [`HeaderError`].
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, HeaderError> {
        let mut r = Reader::new(payload);
        let (class_id, weight, body_size) =
            (|| Ok((r.short()?, r.short()?, r.longlong()?)))().map_err(|_: Malformed| HeaderError::Short)?;
        if weight != 0 {
            return Err(HeaderError::Weight(weight));
        }
        Ok(Self { class_id, body_size, properties: Properties::parse(r.rest())? })
    }

    /// Appends a whole content header frame on `channel` to `out`.
    pub fn encode_frame(&self, channel: u16, out: &mut Vec<u8>) {
        let frame = FrameStart::begin(FrameKind::Header, channel, out);
        let mut w = Writer::new(out);
        w.short(self.class_id);
        w.short(0);
        w.longlong(self.body_size);
        w.raw(self.properties.as_bytes());
        frame.end(out);
    }
}

/// The Rust type of a property type of the spec. Short strings are bytes here: RabbitMQ does not check
/// properties for UTF-8, and passes them on as they came.
macro_rules! property {
    (octet) => { u8 };
    (timestamp) => { u64 };
    (shortstr) => { &'a [u8] };
    (table) => { RawTable<'a> };
}

/// Reads a property that may be anything yet.
macro_rules! check_property {
    ($r:ident table) => { $r.table().map(drop) };
    ($r:ident $kind:ident) => { read_property!($r $kind).map(drop) };
}

/// Reads a property of a block that was checked: nobody looks into the headers a second time.
macro_rules! read_property {
    ($r:ident octet) => {
        $r.octet()
    };
    ($r:ident timestamp) => {
        $r.longlong()
    };
    ($r:ident shortstr) => {
        $r.shortstr_bytes()
    };
    ($r:ident table) => {
        $r.longstr().map(RawTable::of_checked)
    };
}

macro_rules! write_property {
    ($w:ident octet $value:ident) => {
        $w.octet($value)
    };
    ($w:ident timestamp $value:ident) => {
        $w.longlong($value)
    };
    ($w:ident shortstr $value:ident) => {
        $w.shortstr_bytes($value)
    };
    ($w:ident table $value:ident) => {
        $w.table($value)
    };
}

macro_rules! properties {
    ($($(#[$doc:meta])* $bit:literal $name:ident: $kind:ident;)+) => {
        /// All flags that `basic` defines.
        const KNOWN_FLAGS: u16 = $(1 << $bit)|+;

        impl<'a> Properties<'a> {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> Option<property!($kind)> {
                    let mut r = self.seek($bit)?;
                    read_property!(r $kind).ok()
                }
            )+

            /// Checks and skips the property with this flag bit.
            fn check(r: &mut Reader<'a>, bit: u32) -> Result<(), Malformed> {
                match bit {
                    $($bit => check_property!(r $kind),)+
                    _ => Ok(()),
                }
            }

            /// Skips the property with this flag bit, in a block that was checked.
            fn skip(r: &mut Reader<'a>, bit: u32) -> Result<(), Malformed> {
                match bit {
                    $($bit => read_property!(r $kind).map(drop),)+
                    _ => Ok(()),
                }
            }

            /// All properties at once, to change some of them.
            #[must_use]
            pub fn to_list(&self) -> PropertyList<'a> {
                PropertyList { $($name: self.$name()),+ }
            }
        }

        /// The properties one by one, to write a block from.
        ///
        /// ```
        /// use dassie_amqp::content::{Properties, PropertyList};
        ///
        /// let reply_to = Some(&b"answers"[..]);
        /// let list = PropertyList { delivery_mode: Some(2), reply_to, ..Default::default() };
        /// let mut block = Vec::new();
        /// list.encode(&mut block);
        /// let properties = Properties::parse(&block).expect("just written");
        /// assert_eq!(properties.delivery_mode(), Some(2));
        /// assert_eq!(properties.priority(), None);
        /// ```
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct PropertyList<'a> {
            $($(#[$doc])* pub $name: Option<property!($kind)>,)+
        }

        impl PropertyList<'_> {
            /// Appends the property block (flags and properties) to `out`.
            ///
            /// # Panics
            /// If a short string has more than 255 bytes.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let mut w = Writer::new(out);
                w.short($(if self.$name.is_some() { 1 << $bit } else { 0 })|+);
                $(if let Some(value) = self.$name {
                    write_property!(w $kind value);
                })+
            }
        }
    };
}

properties! {
    /// The MIME type of the body.
    15 content_type: shortstr;
    /// The MIME encoding of the body.
    14 content_encoding: shortstr;
    /// The application's headers, and what headers exchanges match.
    13 headers: table;
    /// 1 transient, 2 persistent; not checked here.
    12 delivery_mode: octet;
    /// 0 to 255; not checked here.
    11 priority: octet;
    /// Which request this answers.
    10 correlation_id: shortstr;
    /// The queue to answer to.
    9 reply_to: shortstr;
    /// Milliseconds to live, as decimal text; not checked here.
    8 expiration: shortstr;
    /// The application's id of the message.
    7 message_id: shortstr;
    /// Seconds since 1970.
    6 timestamp: timestamp;
    /// The application's type of the message.
    5 message_type: shortstr;
    /// The user who sent it; the broker compares it with the login.
    4 user_id: shortstr;
    /// The application that sent it.
    3 app_id: shortstr;
    /// Reserved.
    2 cluster_id: shortstr;
}

/// A checked property block: flags and properties, as they stand in a content header.
#[derive(Clone, Copy)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// The block without properties: flags that announce nothing.
    pub const EMPTY: Properties<'static> = Properties(&[0, 0]);

    /// Checks a property block to its end.
    ///
    /// # Errors
    /// Cut short, continued after the last property, flags that `basic` does not define, a malformed headers
    /// table.
    #[inline]
    pub fn parse(block: &'a [u8]) -> Result<Self, HeaderError> {
        let mut r = Reader::new(block);
        let flags = r.short().map_err(HeaderError::Properties)?;
        // The lowest bit says that another flag word follows. A client could go on for ever; `basic` never
        // does.
        if flags & !KNOWN_FLAGS != 0 {
            return Err(HeaderError::Flags(flags));
        }
        for bit in set_bits(flags) {
            Self::check(&mut r, bit).map_err(HeaderError::Properties)?;
        }
        r.finish().map_err(HeaderError::Properties)?;
        Ok(Self(block))
    }

    /// The bytes it was made from.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// A reader in front of the property with this flag bit, if it is there.
    fn seek(&self, wanted: u32) -> Option<Reader<'a>> {
        let mut r = Reader::new(self.0);
        let flags = r.short().ok()?;
        for bit in set_bits(flags) {
            if bit <= wanted {
                return (bit == wanted).then_some(r);
            }
            Self::skip(&mut r, bit).ok()?;
        }
        None
    }
}

/// The positions of the bits that are set, highest first: the order of the properties.
fn set_bits(mut flags: u16) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = flags.checked_ilog2()?;
        flags ^= 1 << bit;
        Some(bit)
    })
}

impl Default for Properties<'_> {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// The same properties with equal values.
impl PartialEq for Properties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || self.to_list() == other.to_list()
    }
}

impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_list().fmt(f)
    }
}

/// Bytes of body that fit in one frame.
///
/// A `frame_max` of 0 means no limit (a client may have agreed on that with a server that has none); one that
/// leaves no room counts as one byte of room, so that cutting always ends.
#[must_use]
pub fn body_room(frame_max: u32) -> usize {
    match frame_max {
        0 => to_usize(u32::MAX),
        _ => to_usize(frame_max).saturating_sub(FRAME_OVERHEAD).max(1),
    }
}

/// The pieces of a body of `len` bytes that go into one frame each, in order. None for an empty body.
pub fn body_pieces(len: usize, frame_max: u32) -> impl Iterator<Item = Range<usize>> {
    let room = body_room(frame_max);
    (0..len).step_by(room).map(move |start| start..len.min(start.saturating_add(room)))
}

/// Appends content header and body frames to `out`, copying the body: for small bodies.
///
/// The method frame (deliver, get-ok, return, publish) goes before it:
/// ```
/// use dassie_amqp::{content, method::BasicDeliver};
///
/// let mut out = Vec::new();
/// let deliver = BasicDeliver { consumer_tag: "c", delivery_tag: 1, routing_key: "q", ..Default::default() };
/// deliver.encode_frame(1, &mut out);
/// content::encode(1, content::Properties::EMPTY, b"hello", 131_072, &mut out);
/// ```
#[inline]
pub fn encode(channel: u16, properties: Properties<'_>, body: &[u8], frame_max: u32, out: &mut Vec<u8>) {
    encode_header(channel, properties, body.len(), out);
    for piece in body_pieces(body.len(), frame_max) {
        let frame = FrameStart::begin(FrameKind::Body, channel, out);
        out.extend_from_slice(&body[piece]);
        frame.end(out);
    }
}

/// A place in an output buffer where a piece of a body belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    /// The piece goes between `out[..at]` and `out[at..]`.
    pub at: usize,
    /// Which bytes of the body.
    pub body: Range<usize>,
}

/// Like [`encode`], but leaves the body where it is: for large bodies and scattered output.
///
/// `out` gets everything but the body; for each frame `splices` gets the place in `out` where a piece of the
/// body goes. The stream is then: `out` up to the first `at`, that piece of the body, `out` up to the next
/// `at`, and so on, and the rest of `out`. Splices of several messages may follow each other in one `out`.
pub fn encode_spliced(
    channel: u16,
    properties: Properties<'_>,
    body_len: usize,
    frame_max: u32,
    out: &mut Vec<u8>,
    splices: &mut Vec<Splice>,
) {
    encode_header(channel, properties, body_len, out);
    for body in body_pieces(body_len, frame_max) {
        let [c1, c0] = channel.to_be_bytes();
        let size = u32::try_from(body.len()).expect("a piece of a body is shorter than 4 GiB").to_be_bytes();
        out.extend_from_slice(&[FrameKind::Body as u8, c1, c0]);
        out.extend_from_slice(&size);
        splices.push(Splice { at: out.len(), body });
        out.push(FRAME_END);
    }
}

fn encode_header(channel: u16, properties: Properties<'_>, body_len: usize, out: &mut Vec<u8>) {
    ContentHeader { class_id: BASIC_CLASS, body_size: body_len as u64, properties }
        .encode_frame(channel, out);
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::AMQPFrame;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Split, split};
    use crate::table::TableError;
    use crate::testing::{self, Tables, longstr, oracle, shortstr};

    fn header_payload(class: u16, weight: u16, body_size: u64, block: &[u8]) -> Vec<u8> {
        [&class.to_be_bytes()[..], &weight.to_be_bytes(), &body_size.to_be_bytes(), block].concat()
    }

    /// Property blocks written without the code under test; texts are UTF-8, because the oracle insists.
    fn block(tables: Tables) -> impl Strategy<Value = Vec<u8>> {
        let text = || testing::short_text().prop_map(|text| shortstr(text.as_bytes())).boxed();
        let octets = |count| vec(any::<u8>(), count).boxed();
        let headers = testing::table(tables).prop_map(|entries| longstr(&entries)).boxed();
        let values =
            [text(), text(), headers, octets(1), octets(1), text(), text(), text(), text(), octets(8)]
                .into_iter()
                .chain((0..4).map(|_| text()))
                .collect::<Vec<_>>();
        (any::<u16>(), values).prop_map(|(flags, values)| {
            let flags = flags & KNOWN_FLAGS;
            let present = (0..14).filter(|at| flags & (1 << (15 - at)) != 0);
            [flags.to_be_bytes().to_vec(), present.flat_map(|at| values[at].clone()).collect()].concat()
        })
    }

    proptest! {
        #[test]
        fn a_property_block_gives_back_the_bytes_it_was_made_from(block in block(Tables::Any)) {
            let properties = Properties::parse(&block).expect("well-formed");
            prop_assert_eq!(properties.as_bytes(), &block[..]);
            let mut rewritten = Vec::new();
            properties.to_list().encode(&mut rewritten);
            prop_assert_eq!(rewritten, block);
        }

        #[test]
        fn a_block_cut_anywhere_or_continued_is_refused(block in block(Tables::Any)) {
            for cut in 0..block.len() {
                prop_assert!(Properties::parse(&block[..cut]).is_err(), "cut at {}", cut);
            }
            let longer = [&block[..], &[0]].concat();
            prop_assert_eq!(Properties::parse(&longer), Err(HeaderError::Properties(Malformed::Trailing)));
        }

        #[test]
        fn the_oracle_reads_the_headers_we_write_and_we_read_what_it_writes(
            block in block(Tables::Canonical), body_size: u64
        ) {
            let properties = Properties::parse(&block).expect("well-formed");
            let header = ContentHeader { class_id: BASIC_CLASS, body_size, properties };
            let mut frame = Vec::new();
            header.encode_frame(3, &mut frame);
            let AMQPFrame::Header(3, theirs) = oracle::parse(&frame) else { panic!("not a header") };
            let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            let p = &theirs.properties;
            prop_assert_eq!((theirs.class_id, theirs.body_size), (BASIC_CLASS, body_size));
            prop_assert_eq!(p.delivery_mode(), &properties.delivery_mode());
            prop_assert_eq!(p.priority(), &properties.priority());
            prop_assert_eq!(p.timestamp(), &properties.timestamp());
            prop_assert_eq!(p.headers().is_some(), properties.headers().is_some());
            for (theirs, ours) in [
                (p.content_type(), properties.content_type()),
                (p.content_encoding(), properties.content_encoding()),
                (p.correlation_id(), properties.correlation_id()),
                (p.reply_to(), properties.reply_to()),
                (p.expiration(), properties.expiration()),
                (p.message_id(), properties.message_id()),
                (p.kind(), properties.message_type()),
                (p.user_id(), properties.user_id()),
                (p.app_id(), properties.app_id()),
                (p.cluster_id(), properties.cluster_id()),
            ] {
                prop_assert_eq!(theirs.as_ref().map(ToString::to_string), text(ours));
            }
            prop_assert_eq!(oracle::write(&AMQPFrame::Header(3, theirs)), frame);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..80)) {
            let _ = ContentHeader::parse(&bytes);
            if let Ok(properties) = Properties::parse(&bytes) {
                let _ = format!("{properties:?}");
            }
        }

        #[test]
        fn spliced_and_copied_output_are_the_same_stream(
            body in vec(any::<u8>(), 0..40_000), frame_max in 4096_u32..20_000
        ) {
            let mut copied = Vec::new();
            encode(9, Properties::EMPTY, &body, frame_max, &mut copied);
            let (mut out, mut splices) = (Vec::new(), Vec::new());
            encode_spliced(9, Properties::EMPTY, body.len(), frame_max, &mut out, &mut splices);
            let (mut stream, mut written) = (Vec::new(), 0);
            for splice in splices {
                stream.extend_from_slice(&out[written..splice.at]);
                stream.extend_from_slice(&body[splice.body]);
                written = splice.at;
            }
            stream.extend_from_slice(&out[written..]);
            prop_assert_eq!(&stream, &copied);

            let (mut rest, mut collected) = (&copied[..], Vec::new());
            while let Ok(Split::Frame(frame)) = split(rest, frame_max) {
                prop_assert!(frame.encoded_len() <= to_usize(frame_max));
                if frame.kind == FrameKind::Body {
                    collected.extend_from_slice(frame.payload);
                }
                rest = &rest[frame.encoded_len()..];
            }
            prop_assert_eq!((rest, collected), (&[][..], body));
        }
    }

    #[test]
    fn the_fourteen_properties_lie_in_the_order_of_their_flags() {
        let list = PropertyList {
            content_type: Some(b"text/plain"),
            delivery_mode: Some(2),
            priority: Some(9),
            timestamp: Some(1),
            cluster_id: Some(b"c"),
            ..Default::default()
        };
        let mut block = Vec::new();
        list.encode(&mut block);
        assert_eq!(block, b"\x98\x44\x0atext/plain\x02\x09\0\0\0\0\0\0\0\x01\x01c");
        assert_eq!(Properties::parse(&block).unwrap().to_list(), list);
    }

    #[test]
    fn a_block_without_properties_is_two_zero_bytes() {
        assert_eq!(Properties::parse(&[0, 0]).unwrap().to_list(), PropertyList::default());
        assert_eq!(Properties::parse(&[0]), Err(HeaderError::Properties(Malformed::Truncated)));
        assert_eq!(Properties::parse(&[]), Err(HeaderError::Properties(Malformed::Truncated)));
    }

    #[test]
    fn flags_that_announce_more_flags_are_refused_at_once() {
        for flags in [1_u16, 2, 0x8001, 0xffff] {
            let endless = flags.to_be_bytes().repeat(1000);
            let error = Properties::parse(&endless).unwrap_err();
            assert_eq!(error, HeaderError::Flags(flags));
            assert_eq!(Exception::from(error).code(), ReplyCode::FrameError);
        }
    }

    #[test]
    fn properties_are_bytes_and_need_not_be_utf8() {
        let block = b"\x04\0\x02\xff\xfe";
        assert_eq!(Properties::parse(block).unwrap().correlation_id(), Some(&b"\xff\xfe"[..]));
    }

    #[test]
    fn negative_priorities_and_odd_delivery_modes_are_for_the_broker_to_judge() {
        let properties = Properties::parse(b"\x18\0\x07\xff").unwrap();
        assert_eq!((properties.delivery_mode(), properties.priority()), (Some(7), Some(255)));
    }

    #[test]
    fn headers_with_arrays_are_passed_on_untouched() {
        let entries =
            [&shortstr(b"CC")[..], b"A", &longstr(b"S\0\0\0\x01aL\0\0\0\0\0\0\0\x01t\x09")].concat();
        let block = [b"\x20\0", &longstr(&entries)[..]].concat();
        let properties = Properties::parse(&block).unwrap();
        let mut rewritten = Vec::new();
        properties.to_list().encode(&mut rewritten);
        assert_eq!(rewritten, block);
        assert_eq!(properties.headers().unwrap().get("CC").unwrap().as_array().unwrap().iter().count(), 3);
    }

    #[test]
    fn a_bad_headers_table_is_refused_with_the_code_of_its_fault() {
        let header = |entries: &[u8]| {
            let block = [b"\x20\0", &longstr(entries)[..]].concat();
            Properties::parse(&block).unwrap_err()
        };
        let unknown = header(b"\x01kU\0\0");
        assert_eq!(unknown, HeaderError::Properties(Malformed::Table(TableError::UnknownType(b'U'))));
        assert_eq!(Exception::from(unknown).code(), ReplyCode::SyntaxError);
        assert_eq!(Exception::from(header(b"\x01kI\0\0")).code(), ReplyCode::FrameError);
        assert_eq!(
            Properties::parse(b"\x20\0\0\0\0\x09\x01k"),
            Err(HeaderError::Properties(Malformed::Truncated))
        );
    }

    #[test]
    fn weight_and_length_of_a_header_are_checked() {
        let payload = header_payload(60, 1, 0, &[0, 0]);
        let error = ContentHeader::parse(&payload).unwrap_err();
        assert_eq!(
            (error, Exception::from(error).code()),
            (HeaderError::Weight(1), ReplyCode::UnexpectedFrame)
        );
        let payload = header_payload(60, 0, 0, &[]);
        assert_eq!(ContentHeader::parse(&payload), Err(HeaderError::Properties(Malformed::Truncated)));
        assert_eq!(ContentHeader::parse(&payload[..11]), Err(HeaderError::Short));
    }

    #[test]
    fn a_body_size_beyond_signed_numbers_is_only_a_number() {
        for body_size in [1 << 63, u64::MAX] {
            let payload = header_payload(60, 0, body_size, &[0, 0]);
            assert_eq!(ContentHeader::parse(&payload).unwrap().body_size, body_size);
        }
    }

    #[test]
    fn an_empty_body_has_no_frame() {
        let mut out = Vec::new();
        encode(1, Properties::EMPTY, b"", 4096, &mut out);
        assert_eq!(out, b"\x02\0\x01\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\0\0\0\xce");
    }

    #[test]
    fn a_body_is_cut_so_that_whole_frames_fit_the_limit() {
        let sizes = |len, frame_max| body_pieces(len, frame_max).map(|piece| piece.len()).collect::<Vec<_>>();
        assert_eq!(sizes(4088, 4096), [4088]);
        assert_eq!(sizes(4089, 4096), [4088, 1]);
        assert!(sizes(0, 4096).is_empty());
        assert_eq!(sizes(100_000, 0), [100_000]);
        assert_eq!(sizes(3, 7), [1, 1, 1]);
    }
}
