//! Messages on their way out: basic.deliver, basic.get-ok, basic.return, with header and body.
//!
//! Owns: the bytes of content-bearing frames to clients. The prefix of an AMQP-born message is, byte for byte, what these frames
//! need: exchange and routing key as the last arguments of the method, then the payload of the header frame.
//! Promises: nothing is re-encoded, except that a redelivery from a quorum queue gains its `x-delivery-count`; large bodies are
//! referenced, not copied. Does not know: who gets it, delivery tags' meaning.

use bytes::{BufMut, Bytes, BytesMut};
use dassie_amqp::content::{ContentHeader, PropertyList, body_room};
use dassie_amqp::frame::{FRAME_END, FrameKind};
use dassie_amqp::method::{BasicDeliver, BasicGetOk, BasicReturn, MethodId};
use dassie_amqp::reply::ReplyCode;
use dassie_amqp::table::{RawTable, TableBuilder};

use super::output::Output;
use crate::broker::api::{Message, StoredMessage};

/// Header that counts the deliveries of a message that a quorum queue has given out before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// A message cut where its frames are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    /// Exchange and routing key, each a short string with its length.
    address: &'a [u8],
    /// Payload of the header frame.
    header: &'a [u8],
    body: Body<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Body<'a> {
    /// `len` bytes of these bytes, from `start`.
    Inline { bytes: &'a Bytes, start: usize, len: usize },
    /// These pieces, one after the other.
    Pieces(&'a [Bytes]),
}

impl<'a> Content<'a> {
    /// Cuts a stored AMQP-born message; `None`: its bytes are not one.
    pub(super) fn of_stored(message: &'a StoredMessage) -> Option<Self> {
        let (start, len) = (message.prefix_len as usize, message.body_len as usize);
        let body = match &message.body {
            Some(pieces) => Body::Pieces(pieces),
            None => Body::Inline { bytes: &message.bytes, start, len },
        };
        Self::cut(message.bytes.get(..start)?, body)
    }

    /// Cuts a message that is not stored (yet).
    pub(super) fn of_message(message: &'a Message) -> Option<Self> {
        let (start, len) = (message.prefix_len as usize, message.body_len as usize);
        Self::cut(message.bytes.get(..start)?, Body::Inline { bytes: &message.bytes, start, len })
    }

    fn cut(prefix: &'a [u8], body: Body<'a>) -> Option<Self> {
        let exchange = 1 + usize::from(*prefix.first()?);
        let key = 1 + usize::from(*prefix.get(exchange)?);
        let (address, header) = prefix.split_at_checked(exchange + key)?;
        Some(Self { address, header, body })
    }
}

/// What stands before exchange and routing key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope<'a> {
    /// The consumer.
    pub(super) consumer_tag: &'a str,
    /// Number in the channel.
    pub(super) delivery_tag: u64,
    /// Given out before.
    pub(super) redelivered: bool,
    /// `x-delivery-count`, if not 0.
    pub(super) attempts: u32,
}

/// Where frames go and how long they may be.
pub(super) struct Frames<'a> {
    /// Where they are appended.
    pub(super) output: &'a mut Output,
    /// Channel they belong to.
    pub(super) channel: u16,
    /// Negotiated limit.
    pub(super) frame_max: u32,
}

impl Frames<'_> {
    /// basic.deliver.
    pub(super) fn deliver(&mut self, envelope: &Envelope<'_>, content: &Content<'_>) {
        self.method(BasicDeliver::ID, |out| {
            put_shortstr(out, envelope.consumer_tag);
            out.extend_from_slice(&envelope.delivery_tag.to_be_bytes());
            out.push(u8::from(envelope.redelivered));
            out.extend_from_slice(content.address);
        });
        self.content(envelope.attempts, content);
    }

    /// basic.get-ok. `remaining`: messages left in the queue.
    pub(super) fn get_ok(&mut self, envelope: &Envelope<'_>, remaining: u32, content: &Content<'_>) {
        self.method(BasicGetOk::ID, |out| {
            out.extend_from_slice(&envelope.delivery_tag.to_be_bytes());
            out.push(u8::from(envelope.redelivered));
            out.extend_from_slice(content.address);
            out.extend_from_slice(&remaining.to_be_bytes());
        });
        self.content(envelope.attempts, content);
    }

    /// basic.return of a mandatory message that no queue takes.
    pub(super) fn no_route(&mut self, content: &Content<'_>) {
        self.method(BasicReturn::ID, |out| {
            out.extend_from_slice(&ReplyCode::NoRoute.number().to_be_bytes());
            put_shortstr(out, ReplyCode::NoRoute.name());
            out.extend_from_slice(content.address);
        });
        self.content(0, content);
    }

    fn method(&mut self, id: MethodId, arguments: impl FnOnce(&mut Vec<u8>)) {
        self.frame(FrameKind::Method, |out| {
            out.extend_from_slice(&id.class.to_be_bytes());
            out.extend_from_slice(&id.method.to_be_bytes());
            arguments(out);
        });
    }

    fn frame(&mut self, kind: FrameKind, payload: impl FnOnce(&mut Vec<u8>)) {
        let out = self.output.bytes();
        out.push(kind as u8);
        out.extend_from_slice(&self.channel.to_be_bytes());
        let size_at = out.len();
        out.extend_from_slice(&[0; 4]);
        payload(out);
        let size = u32::try_from(out.len() - size_at - 4).unwrap_or(u32::MAX);
        out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
        out.push(FRAME_END);
    }

    fn content(&mut self, attempts: u32, content: &Content<'_>) {
        if attempts == 0 {
            self.frame(FrameKind::Header, |out| out.extend_from_slice(content.header));
        } else {
            let header = with_delivery_count(content.header, attempts);
            self.frame(FrameKind::Header, |out| out.extend_from_slice(&header));
        }
        match content.body {
            Body::Inline { bytes, start, len } => {
                let mut rest = Rest { pieces: std::slice::from_ref(bytes), at: start };
                self.body(&mut rest, len);
            }
            Body::Pieces(pieces) => {
                let len = pieces.iter().map(Bytes::len).sum();
                self.body(&mut Rest { pieces, at: 0 }, len);
            }
        }
    }

    fn body(&mut self, rest: &mut Rest<'_>, len: usize) {
        let room = body_room(self.frame_max);
        let mut left = len;
        while left > 0 {
            let size = left.min(room);
            let out = self.output.bytes();
            out.push(FrameKind::Body as u8);
            out.extend_from_slice(&self.channel.to_be_bytes());
            out.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
            rest.move_to(self.output, size);
            self.output.bytes().push(FRAME_END);
            left -= size;
        }
    }
}

/// What is left of a body that lies in pieces.
struct Rest<'a> {
    pieces: &'a [Bytes],
    at: usize,
}

impl Rest<'_> {
    fn move_to(&mut self, output: &mut Output, mut size: usize) {
        while let Some((piece, later)) = self.pieces.split_first().filter(|_| size > 0) {
            let part = size.min(piece.len() - self.at);
            output.push(piece, self.at..self.at + part);
            self.at += part;
            size -= part;
            if self.at == piece.len() {
                self.pieces = later;
                self.at = 0;
            }
        }
    }
}

/// The header with its delivery count set; everything else as it was.
fn with_delivery_count(payload: &[u8], attempts: u32) -> Vec<u8> {
    let Ok(header) = ContentHeader::parse(payload) else { return payload.to_vec() };
    let old = header.properties.headers().unwrap_or(RawTable::EMPTY);
    let mut count = TableBuilder::new();
    count.put(DELIVERY_COUNT, i64::from(attempts));
    let Ok(count) = count.as_table() else { return payload.to_vec() };
    let mut table = Vec::with_capacity(old.as_bytes().len() + count.as_bytes().len());
    if old.get(DELIVERY_COUNT).is_none() {
        table.extend_from_slice(old.as_bytes());
    } else {
        // Sent by a client, or by a queue this one came from: ours counts.
        let mut others = TableBuilder::new();
        for (name, value) in old.iter().filter(|(name, _)| *name != DELIVERY_COUNT) {
            others.put(name, value);
        }
        table.extend_from_slice(others.as_table().map_or(&[][..], |others| others.as_bytes()));
    }
    table.extend_from_slice(count.as_bytes());
    let Ok(headers) = RawTable::parse(&table) else { return payload.to_vec() };
    let mut changed = payload[..12].to_vec();
    PropertyList { headers: Some(headers), ..header.properties.to_list() }.encode(&mut changed);
    changed
}

fn put_shortstr(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(255)];
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text);
}

/// The prefix of an AMQP-born message: exchange, routing key, header payload (in two parts). Names are at most 255 bytes: they were, or are to
/// be, short strings.
pub(in crate::server) fn put_prefix(
    out: &mut BytesMut,
    exchange: &str,
    routing_key: &str,
    header: [&[u8]; 2],
) {
    for text in [exchange, routing_key] {
        let text = &text.as_bytes()[..text.len().min(255)];
        out.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX));
        out.put_slice(text);
    }
    header.iter().for_each(|part| out.put_slice(part));
}

#[cfg(test)]
mod tests {
    use dassie_amqp::frame::{Frame, Split, split};
    use dassie_amqp::method::Method;

    use super::*;
    use crate::broker::api::Origin;

    fn header(list: &PropertyList<'_>, size: u64) -> Vec<u8> {
        let mut payload = [&[0, 60, 0, 0][..], &size.to_be_bytes()].concat();
        list.encode(&mut payload);
        payload
    }

    fn stored(list: &PropertyList<'_>, body: &[u8], pieces: Option<Vec<Bytes>>) -> StoredMessage {
        let mut bytes = BytesMut::new();
        put_prefix(&mut bytes, "ex", "a.b", [&header(list, body.len() as u64), &[]]);
        let prefix_len = u32::try_from(bytes.len()).unwrap();
        if pieces.is_none() {
            bytes.put_slice(body);
        }
        StoredMessage {
            origin: Origin::Amqp,
            bytes: bytes.freeze(),
            prefix_len,
            body_len: u32::try_from(body.len()).unwrap(),
            body: pieces,
            store_time: 0,
        }
    }

    fn written(message: &StoredMessage, attempts: u32, frame_max: u32) -> Vec<u8> {
        let mut output = Output::default();
        let envelope = Envelope { consumer_tag: "ct", delivery_tag: 9, redelivered: true, attempts };
        Frames { output: &mut output, channel: 3, frame_max }
            .deliver(&envelope, &Content::of_stored(message).unwrap());
        let mut bytes = Vec::new();
        output
            .write_to(|slices| {
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                Ok(slices.iter().map(|slice| slice.len()).sum())
            })
            .unwrap();
        bytes
    }

    fn frames(mut bytes: &[u8], frame_max: u32) -> Vec<Frame<'_>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let Ok(Split::Frame(frame)) = split(bytes, frame_max) else { panic!("cut or damaged") };
            bytes = &bytes[frame.encoded_len()..];
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn a_delivery_is_a_method_a_header_and_the_body_in_pieces_that_fit() {
        let body: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let cut = vec![Bytes::copy_from_slice(&body[..9_000]), Bytes::copy_from_slice(&body[9_000..])];
        for pieces in [None, Some(cut)] {
            let list = PropertyList { content_type: Some(b"text"), ..PropertyList::default() };
            let bytes = written(&stored(&list, &body, pieces), 0, 4096);
            let frames = frames(&bytes, 4096);
            let Ok(Method::BasicDeliver(deliver)) = Method::parse(frames[0].payload) else {
                panic!("{:?}", frames[0])
            };
            assert_eq!((deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered), ("ct", 9, true));
            assert_eq!((deliver.exchange, deliver.routing_key, frames[0].channel), ("ex", "a.b", 3));
            assert_eq!(frames[1].payload, header(&list, 50_000));
            assert!(frames.iter().all(|frame| frame.encoded_len() <= 4096));
            let seen: Vec<u8> = frames[2..].iter().flat_map(|frame| frame.payload.to_vec()).collect();
            assert!(seen == body);
        }
    }

    #[test]
    fn an_empty_body_has_no_body_frame() {
        let bytes = written(&stored(&PropertyList::default(), b"", None), 0, 131_072);
        assert_eq!(frames(&bytes, 131_072).len(), 2);
    }

    #[test]
    fn a_redelivery_of_a_quorum_queue_counts_in_a_header_and_keeps_the_others() {
        let mut table = TableBuilder::new();
        table.put("k", "v").put(DELIVERY_COUNT, 99_i64);
        let headers = Some(table.as_table().unwrap());
        for list in
            [PropertyList { headers, priority: Some(4), ..PropertyList::default() }, PropertyList::default()]
        {
            let bytes = written(&stored(&list, b"x", None), 2, 131_072);
            let all = frames(&bytes, 131_072);
            let parsed = ContentHeader::parse(all[1].payload).unwrap();
            let table = parsed.properties.headers().unwrap();
            assert_eq!(table.get(DELIVERY_COUNT).and_then(|v| v.as_integer()), Some(2));
            assert_eq!(table.get("k").is_some(), list.headers.is_some());
            assert_eq!((parsed.body_size, parsed.properties.priority()), (1, list.priority));
        }
    }

    #[test]
    fn bytes_that_are_no_prefix_are_not_cut() {
        for prefix in [&b""[..], b"\x05ab", b"\x01a\x09b"] {
            let message = StoredMessage {
                origin: Origin::Amqp,
                bytes: Bytes::copy_from_slice(prefix),
                prefix_len: u32::try_from(prefix.len()).unwrap(),
                body_len: 0,
                body: None,
                store_time: 0,
            };
            assert!(Content::of_stored(&message).is_none());
        }
    }
}
