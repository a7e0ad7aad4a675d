//! A message on its way in: basic.publish, its header, the pieces of its body.
//!
//! Owns: the bytes of messages that are not complete. Promises: each byte of a body is copied once, from the read buffer to where
//! the broker keeps it; small messages of one connection share chunks of memory; what incomplete bodies hold together is bounded
//! by [`PARTIAL_BODIES_MAX`], and memory grows with what arrived, never with what was announced.
//! Does not know: routing, confirms.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dassie_amqp::reply::{Exception, ReplyCode};

use super::deliver::put_prefix;
use super::properties::Checked;
use crate::broker::api::{Message, Origin};

/// Bytes that incomplete bodies of one connection may hold.
const PARTIAL_BODIES_MAX: usize = 32 * 1024 * 1024;
/// The largest chunk that small messages are cut from. Bytes.
const CHUNK: usize = 64 * 1024;
/// Messages up to this size share chunks. Bytes.
const SHARED_MAX: usize = 16 * 1024;
/// Room made for a larger message at once. Bytes.
const FIRST_ROOM: usize = 128 * 1024;

/// Memory for the messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunk: BytesMut,
    /// Bytes that were read at once: what a new chunk may have to hold.
    expected: usize,
    /// Held by incomplete bodies.
    partial: usize,
}

/// Where a message goes, from its method.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// "" is the default exchange.
    pub(super) exchange: Arc<str>,
    /// As sent.
    pub(super) routing_key: Arc<str>,
    /// Java's hash of the routing key.
    pub(super) key_hash: u32,
}

impl Address {
    /// From the method's arguments; shares the strings of `last` when they are the same, as they mostly are.
    pub(super) fn new(last: Option<&Self>, exchange: &str, routing_key: &str) -> Self {
        let exchange = match last {
            Some(last) if &*last.exchange == exchange => Arc::clone(&last.exchange),
            _ => exchange.into(),
        };
        match last {
            Some(last) if &*last.routing_key == routing_key => {
                Self { exchange, routing_key: Arc::clone(&last.routing_key), key_hash: last.key_hash }
            }
            _ => Self { exchange, routing_key: routing_key.into(), key_hash: java_hash(routing_key) },
        }
    }
}

/// `String.hashCode` of Java: what RocketMQ clients filter tags by.
pub(in crate::server) fn java_hash(text: &str) -> u32 {
    text.encode_utf16().fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(u32::from(unit)))
}

/// A message whose body is not complete.
#[derive(Debug)]
pub(super) struct Partial {
    bytes: BytesMut,
    prefix_len: usize,
    checked: Checked,
    key_hash: u32,
}

impl Arena {
    /// Begins a message when its header is there.
    pub(super) fn begin(&mut self, address: &Address, header: [&[u8]; 2], checked: Checked) -> Partial {
        let prefix_len =
            address.exchange.len() + address.routing_key.len() + 2 + header[0].len() + header[1].len();
        let total = prefix_len + checked.body_len as usize;
        let mut bytes = if total <= SHARED_MAX {
            self.cut(total)
        } else {
            BytesMut::with_capacity(total.min(FIRST_ROOM))
        };
        put_prefix(&mut bytes, &address.exchange, &address.routing_key, header);
        Partial { bytes, prefix_len, checked, key_hash: address.key_hash }
    }

    /// Adds a piece of a body.
    pub(super) fn extend(&mut self, partial: &mut Partial, piece: &[u8]) -> Result<(), Exception> {
        if self.partial + piece.len() > PARTIAL_BODIES_MAX {
            return Err(Exception::new(
                ReplyCode::ResourceError,
                format_args!(
                    "incomplete messages of this connection hold more than {PARTIAL_BODIES_MAX} bytes"
                ),
            ));
        }
        self.partial += piece.len();
        partial.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The message whose body is complete.
    pub(super) fn finish(&mut self, partial: Partial) -> Message {
        self.forget(&partial);
        Message {
            origin: Origin::Amqp,
            bytes: Bytes::from(partial.bytes),
            prefix_len: u32::try_from(partial.prefix_len).unwrap_or(u32::MAX),
            body_len: partial.checked.body_len,
            tag_hash: partial.key_hash,
            persistent: partial.checked.persistent,
            ttl: partial.checked.ttl,
        }
    }

    /// The rest will not come.
    pub(super) fn forget(&mut self, partial: &Partial) {
        self.partial -= partial.bytes.len() - partial.prefix_len;
    }

    /// An empty buffer with exactly this much room.
    fn cut(&mut self, room: usize) -> BytesMut {
        if self.chunk.capacity() < room {
            self.chunk = BytesMut::with_capacity(self.expected.min(CHUNK).max(room));
        }
        let later = self.chunk.split_off(room);
        std::mem::replace(&mut self.chunk, later)
    }

    /// So many bytes were read: the messages in them, and so the chunk that they need, are not larger.
    pub(super) fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// Gives the free part of the chunk back: nothing was published for a while.
    pub(super) fn rest(&mut self) {
        self.chunk = BytesMut::new();
    }
}

#[cfg(test)]
impl Partial {
    fn is_complete(&self) -> bool {
        self.bytes.len() - self.prefix_len == self.checked.body_len as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(arena: &mut Arena, body_len: u32) -> Partial {
        let address = Address::new(None, "ex", "key");
        arena.begin(&address, [b"HEAD", b"ER"], Checked { persistent: true, ttl: None, body_len })
    }

    #[test]
    fn bodies_of_two_channels_may_interleave() {
        let mut arena = Arena::default();
        let (mut a, mut b) = (begin(&mut arena, 6), begin(&mut arena, 4));
        for (partial, piece) in [(&mut a, "aaa"), (&mut b, "bb")] {
            arena.extend(partial, piece.as_bytes()).unwrap();
            assert!(!partial.is_complete());
        }
        arena.extend(&mut b, b"BB").unwrap();
        arena.extend(&mut a, b"AAA").unwrap();
        assert!(a.is_complete() && b.is_complete());
        let (a, b) = (arena.finish(a), arena.finish(b));
        assert_eq!(&a.bytes[..], b"\x02ex\x03keyHEADERaaaAAA");
        assert_eq!(&b.bytes[..], b"\x02ex\x03keyHEADERbbBB");
        assert_eq!((a.prefix_len, a.body_len, a.suffix_len(), a.persistent), (13, 6, 0, true));
        assert_eq!(arena.partial, 0);
    }

    #[test]
    fn small_messages_share_a_chunk_and_never_move() {
        let mut arena = Arena::default();
        arena.expect(100 * 113);
        let mut place = None;
        for _ in 0..100 {
            let mut partial = begin(&mut arena, 100);
            arena.extend(&mut partial, &[7; 100]).unwrap();
            let message = arena.finish(partial);
            let start = message.bytes.as_ptr() as usize;
            assert!(place.is_none_or(|last| last + 113 == start));
            place = Some(start);
        }
    }

    #[test]
    fn incomplete_bodies_of_a_connection_are_bounded_together() {
        let mut arena = Arena::default();
        let piece = vec![0; 1024 * 1024];
        let mut partials: Vec<Partial> = (0..4).map(|_| begin(&mut arena, 16 * 1024 * 1024)).collect();
        for n in 0..32 {
            arena.extend(&mut partials[n % 4], &piece).unwrap();
        }
        let refused = arena.extend(&mut partials[0], &piece).unwrap_err();
        assert_eq!(refused.code(), ReplyCode::ResourceError);
        partials.drain(..).for_each(|partial| arena.forget(&partial));
        assert_eq!(arena.partial, 0);
    }

    #[test]
    fn the_hash_of_a_key_is_javas() {
        // Values of java.lang.String.hashCode.
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("TagA"), 2_598_919);
        assert_eq!(java_hash("hello"), 99_162_322);
    }

    #[test]
    fn an_address_seen_before_shares_its_strings() {
        let first = Address::new(None, "ex", "key");
        let second = Address::new(Some(&first), "ex", "key");
        assert!(
            Arc::ptr_eq(&first.routing_key, &second.routing_key)
                && Arc::ptr_eq(&first.exchange, &second.exchange)
        );
        let third = Address::new(Some(&first), "ex", "other");
        assert_eq!((&*third.routing_key, third.key_hash), ("other", java_hash("other")));
    }
}
