//! What the fuzzers call: each function takes any bytes, and panics if a promise of this crate does not hold
//! for them.
//!
//! Owns the properties, so that `interop-tests/fuzz` and the bounded run in `tests/fuzz_targets.rs` check the same. Not part of the
//! public API.

use std::collections::BTreeMap;

use crate::connection::{Connection, Event, Limits, Phase};
use crate::content::{self, ContentHeader, Properties};
use crate::frame::{self, FRAME_MIN_SIZE, FRAME_OVERHEAD, Split};
use crate::method::{
    BasicPublish, ChannelOpen, ConnectionOpen, ConnectionStartOk, ConnectionTuneOk, Method, MethodError,
};
use crate::reply::{Exception, ReplyCode};
use crate::sasl::Credentials;
use crate::table::{RawArray, RawTable, TableBuilder};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target and its name: that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("frames", frames),
    ("method", method),
    ("table", table),
    ("content_header", content_header),
    ("connection", connection),
    ("sasl", sasl),
];

/// A stream gives the same frames however it is cut into reads. The first byte chooses the cuts.
pub fn frames(data: &[u8]) {
    let Some((&step, stream)) = data.split_first() else { return };
    let whole = all_frames(stream, stream.len().max(1));
    let cut = all_frames(stream, usize::from(step) + 1);
    assert_eq!(whole, cut);
    let _ = frame::protocol_header(stream);
}

/// The frames of a stream read in steps of so many bytes, printed, and the error that ended it.
fn all_frames(stream: &[u8], step: usize) -> (Vec<String>, Option<frame::FrameError>) {
    let (mut frames, mut start, mut end) = (Vec::new(), 0, 0);
    loop {
        match frame::split(&stream[start..end], FRAME_MIN_SIZE) {
            Ok(Split::Frame(frame)) => {
                assert!(frame.payload.len() <= FRAME_MIN_SIZE as usize);
                start += frame.encoded_len();
                frames.push(format!("{frame:?}"));
            }
            Ok(Split::NeedMore(missing)) => {
                assert!((1..=FRAME_MIN_SIZE as usize + FRAME_OVERHEAD).contains(&missing));
                if end == stream.len() {
                    return (frames, None);
                }
                end = stream.len().min(end + step);
            }
            Err(error) => return (frames, Some(error)),
        }
    }
}

/// A method that is read is written as it was, but for unused bits; one that is not has an exception to show
/// for it.
pub fn method(data: &[u8]) {
    let method = match Method::parse(data) {
        Ok(method) => method,
        Err(error) => {
            let exception = Exception::from(error);
            assert!(exception.text().len() <= 255);
            assert_eq!(error == MethodError::NoId, data.len() < 4);
            return;
        }
    };
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    method.encode(&mut once);
    let again = Method::parse(&once).expect("what was written can be read");
    again.encode(&mut twice);
    assert_eq!(once, twice);
    assert_eq!(once.len(), data.len());
    assert_eq!(method.id().name(), Some(method.name()));
    // By text, because a NaN in a table is not equal to itself.
    assert_eq!(format!("{method:?}"), format!("{again:?}"));
}

/// A table that passes the check can be read to its end, rebuilt, and is equivalent to its rebuilt self.
pub fn table(data: &[u8]) {
    if let Ok(array) = RawArray::parse(data) {
        assert_eq!(array.as_bytes(), data);
        assert!(array.iter().count() >= usize::from(!data.is_empty()));
    }
    let Ok(table) = RawTable::parse(data) else { return };
    assert_eq!(table.as_bytes(), data);
    let mut rebuilt = TableBuilder::new();
    for (name, value) in table {
        rebuilt.put(name, value);
        assert!(table.get(name).is_some());
        let _ = (value.to_string(), value.type_name());
    }
    let rebuilt = rebuilt.as_table().expect("no larger than what it was made from");
    assert_eq!(rebuilt.as_bytes().len(), data.len());
    let text = format!("{table:?}");
    assert_eq!(text, format!("{rebuilt:?}"));
    assert!(table.equivalent(rebuilt) || text.contains("NaN"));
}

/// A property block that passes the check is written as it was, property by property.
pub fn content_header(data: &[u8]) {
    let header = match ContentHeader::parse(data) {
        Ok(header) => header,
        Err(error) => {
            assert!(Exception::from(error).text().len() <= 255);
            return;
        }
    };
    let mut block = Vec::new();
    header.properties.to_list().encode(&mut block);
    assert_eq!(block, header.properties.as_bytes());
    let mut out = Vec::new();
    header.encode_frame(1, &mut out);
    let Ok(Split::Frame(frame)) = frame::split(&out, u32::MAX) else { panic!("a whole frame") };
    assert_eq!(frame.payload, data);
}

/// A login is two slices of what was sent, or nothing.
pub fn sasl(data: &[u8]) {
    for credentials in [Credentials::from_plain(data), Credentials::from_amqplain(data)].into_iter().flatten()
    {
        let inside = |part: &[u8]| data.as_ptr_range().contains(&part.as_ptr()) || part.is_empty();
        assert!(inside(credentials.user) && inside(credentials.password));
    }
}

/// A connection yields events in an order that a naive model allows, the same ones however the stream is cut,
/// and stops when it said it would.
///
/// The first byte: bit 0 skips the handshake, bit 1 reads the rest as orders (see `Orders`) instead of wire
/// bytes.
pub fn connection(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else { return };
    let mut stream = Vec::new();
    if mode & 1 != 0 {
        handshake(&mut stream);
    }
    if mode & 2 != 0 {
        Orders(rest).write(&mut stream);
    } else {
        stream.extend_from_slice(rest);
    }
    let whole = Driver::run(&stream, stream.len().max(1));
    assert_eq!(whole, Driver::run(&stream, usize::from(mode >> 2) + 1));
}

/// What a client says until it may use the connection, and to open channel 1.
fn handshake(stream: &mut Vec<u8>) {
    stream.extend_from_slice(&frame::PROTOCOL_HEADER);
    ConnectionStartOk { mechanism: "PLAIN", response: b"\0a\0b", ..Default::default() }
        .encode_frame(0, stream);
    ConnectionTuneOk { channel_max: 9, frame_max: FRAME_MIN_SIZE, heartbeat: 0 }.encode_frame(0, stream);
    ConnectionOpen { virtual_host: "/", ..Default::default() }.encode_frame(0, stream);
    ChannelOpen::default().encode_frame(1, stream);
}

/// Bytes read as orders to write frames that are mostly well-formed: a fuzzer rarely finds a frame's end
/// octet itself.
struct Orders<'a>(&'a [u8]);

impl Orders<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn write(mut self, stream: &mut Vec<u8>) {
        while let (Some(what), Some(channel), Some(size)) = (self.next(), self.next(), self.next()) {
            let channel = u16::from(channel % 4);
            let size = usize::from(size);
            match what % 8 {
                0 => BasicPublish::default().encode_frame(channel, stream),
                1 => ContentHeader {
                    class_id: content::BASIC_CLASS,
                    body_size: size as u64,
                    properties: Properties::EMPTY,
                }
                .encode_frame(channel, stream),
                2 | 3 => self.frame(3, channel, size, stream),
                4 => content::encode(channel, Properties::EMPTY, &vec![0; size], FRAME_MIN_SIZE, stream),
                5 => self.method(channel, size, stream),
                6 => stream.extend_from_slice(&frame::HEARTBEAT),
                _ => self.frame(what, channel, size, stream),
            }
        }
    }

    /// A method without arguments worth mentioning: ids from the list of those that move the state.
    fn method(&self, channel: u16, which: usize, stream: &mut Vec<u8>) {
        const MOVING: &[&[u8]] = &[
            b"\0\x14\0\x0a\0",
            b"\0\x14\0\x28\0\xc8\0\0\0\0\0",
            b"\0\x14\0\x29",
            b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01\0",
            b"\0\x0a\0\x32\0\xc8\0\0\0\0\0",
            b"\0\x0a\0\x33",
            b"\0\x3c\0\x3c\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\0\x0a\0\x0b\0\0\0\0\0\0\0\0\0\0",
        ];
        let payload = MOVING[which % MOVING.len()];
        Orders(payload).frame(1, channel, payload.len(), stream);
    }

    /// A frame of any kind around the next bytes.
    fn frame(&mut self, kind: u8, channel: u16, size: usize, stream: &mut Vec<u8>) {
        let (payload, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        stream.push(kind);
        stream.extend_from_slice(&channel.to_be_bytes());
        stream.extend_from_slice(&u32::try_from(payload.len()).expect("at most 255").to_be_bytes());
        stream.extend_from_slice(payload);
        stream.push(frame::FRAME_END);
    }
}

/// A server that pays what it owes, sometimes closes a channel, and checks every event against a model.
#[derive(Default)]
struct Driver {
    channels: BTreeMap<u16, Model>,
    seen: Vec<String>,
    out: Vec<u8>,
    closed: bool,
}

/// What the model knows of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    Idle,
    Header,
    Body(u64),
    Closing,
}

impl Driver {
    /// What was seen, printed, when a stream is read in steps of so many bytes.
    fn run(stream: &[u8], step: usize) -> Vec<String> {
        let mut driver = Self::default();
        let mut connection = Connection::new(Limits::default());
        let (mut start, mut end) = (0, 0);
        loop {
            let mut input = &stream[start..end];
            let had = input.len();
            let result = connection.next_event(&mut input);
            start += had - input.len();
            match result {
                Ok(Some(event)) => driver.take(&mut connection, event),
                Ok(None) if end == stream.len() => break,
                Ok(None) => end = stream.len().min(end + step),
                Err(exception) => {
                    driver.seen.push(exception.to_string());
                    connection.close(&exception, &mut driver.out);
                    driver.closed = true;
                }
            }
        }
        for (&channel, &model) in &driver.channels {
            assert_eq!(
                connection.is_open(channel),
                !driver.closed && model != Model::Closing,
                "{channel} {model:?}"
            );
        }
        driver.answers_are_frames();
        driver.seen
    }

    fn take(&mut self, connection: &mut Connection, event: Event<'_>) {
        self.seen.push(match event {
            // How much of it is seen depends on the reads.
            Event::ForeignHeader(_) => "ForeignHeader".to_owned(),
            event => format!("{event:?}"),
        });
        let refusal = Exception::new(ReplyCode::PreconditionFailed, "by chance");
        match event {
            Event::ProtocolHeader => connection.start(RawTable::EMPTY, "PLAIN", &mut self.out),
            Event::StartOk(start_ok) if start_ok.response.is_empty() => {
                connection.secure(b"?", &mut self.out)
            }
            Event::StartOk(_) | Event::SecureOk(_) => connection.tune(&mut self.out),
            Event::Open(_) => connection.open_ok(&mut self.out),
            Event::Close(_) => {
                connection.close_ok(&mut self.out);
                self.closed = true;
            }
            Event::CloseOk => assert!(self.closed && connection.phase() == Phase::Closed),
            Event::ForeignHeader(_) => assert_eq!(self.seen.len(), 1),
            Event::TuneOk(_) | Event::UpdateSecret(_) | Event::Heartbeat => {}
            Event::ChannelOpen { channel } => self.moves(channel, None, Some(Model::Idle)),
            Event::ChannelClose { channel, .. } => {
                let answered = connection.close_channel_ok(channel, &mut self.out);
                assert!(answered && self.channels.contains_key(&channel));
                if self.channels[&channel] != Model::Closing {
                    self.channels.remove(&channel);
                }
            }
            Event::ChannelCloseOk { channel } => self.moves(channel, Some(Model::Closing), None),
            Event::Method { channel, .. } => {
                self.moves(channel, Some(Model::Idle), Some(Model::Idle));
                if self.seen.len().is_multiple_of(3) {
                    assert!(connection.close_channel(channel, &refusal, &mut self.out));
                    self.channels.insert(channel, Model::Closing);
                }
            }
            Event::Publish { channel, .. } => self.moves(channel, Some(Model::Idle), Some(Model::Header)),
            Event::Header { channel, body_size: 0, .. } => {
                self.moves(channel, Some(Model::Header), Some(Model::Idle));
            }
            Event::Header { channel, body_size, .. } => {
                self.moves(channel, Some(Model::Header), Some(Model::Body(body_size)));
                if self.seen.len().is_multiple_of(5) {
                    assert!(connection.close_channel(channel, &refusal, &mut self.out));
                    self.channels.insert(channel, Model::Closing);
                }
            }
            Event::Body { channel, bytes, last } => {
                let Some(&Model::Body(left)) = self.channels.get(&channel) else {
                    panic!("body out of order")
                };
                let left = left.checked_sub(bytes.len() as u64).expect("no more than announced");
                assert_eq!(last, left == 0);
                self.channels.insert(channel, if last { Model::Idle } else { Model::Body(left) });
            }
        }
    }

    fn moves(&mut self, channel: u16, from: Option<Model>, to: Option<Model>) {
        assert!(!self.closed && channel != 0);
        assert_eq!(self.channels.get(&channel).copied(), from);
        match to {
            Some(model) => self.channels.insert(channel, model),
            None => self.channels.remove(&channel),
        };
    }

    /// Whatever the client did, what it gets to read is well-formed.
    fn answers_are_frames(&self) {
        let mut out = &self.out[..];
        while !out.is_empty() {
            let Ok(Split::Frame(frame)) = frame::split(out, u32::MAX) else { panic!("not a frame") };
            Method::parse(frame.payload).expect("a method");
            out = &out[frame.encoded_len()..];
        }
    }
}
