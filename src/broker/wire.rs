//! What a front end and the leader say to each other (ADR 12), as bytes.
//!
//! Owns: the messages and their packing into frames. Promises: what was packed unpacks to itself; a message of any length goes in
//! frames of at most [`FRAME`] bytes; bytes that are no message are an error, never a panic, and never cost more memory than
//! they are long, up to [`limits::FRONT_MESSAGE_MAX`].
//! Does not know: streams, who leads, what a verb means.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::api::{ChannelId, ConnectionId, Event, Offset, QueueUid, ReaderId, Verb};
use crate::limits;

/// Bytes of a frame, at most, its first byte included.
const FRAME: usize = 4 << 20;
/// First byte of a frame: more of the message follows, or not.
const MORE: u8 = 1;
const LAST: u8 = 0;
/// Both sides must speak the same: a newer one waits until all are as new.
pub(crate) const VERSION: u16 = 2;

/// From a front end to the leader.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToLeader {
    /// First of all: who it is.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// The incarnation of its node.
        session: u64,
    },
    /// A connection that was there before this leader was.
    Present(Box<Presented>),
    /// All connections are presented.
    Ready,
    /// Verbs of a connection; one that was not heard of before is new.
    Verbs(ConnectionId, Vec<Verb>),
    /// The client is gone.
    Gone(ConnectionId),
    /// The answer to [`Turn::asks`]: all that was told before is handed on.
    Seen(u64),
}

/// From the leader to a front end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToFront {
    /// It leads that term, and wants to know the connections.
    Welcome {
        /// Term.
        term: u64,
        /// End of the last batch that it has applied: all that it decided for this front end before stands in front of it.
        applied: u64,
    },
    /// What happened in a turn.
    Turn(Turn),
}

/// See [`ToFront::Turn`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// End of the last batch that the leader had applied.
    pub(crate) applied: u64,
    /// All verbs up to this number are done with.
    pub(crate) through: u64,
    /// In the order in which they became true.
    pub(crate) events: Vec<(ConnectionId, Vec<Event>)>,
    /// The leader wants to know when that is handed on; 0: it does not.
    pub(crate) asks: u64,
}

/// What a new leader must know of a connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Presented {
    /// Its number on its node.
    pub(crate) connection: ConnectionId,
    /// Shared windows of channels.
    pub(crate) windows: Vec<(ChannelId, u16)>,
    pub(crate) readers: Vec<PresentedReader>,
    /// Keys of direct replies, who takes them, and that one's channel.
    pub(crate) replies: Vec<(Arc<str>, ReaderId, ChannelId)>,
    /// Producer groups it answers for.
    pub(crate) groups: Vec<Arc<str>>,
    /// Weight of deliveries not written to the client yet.
    pub(crate) outstanding: u64,
}

/// One reader of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PresentedReader {
    pub(crate) reader: ReaderId,
    pub(crate) queue: QueueUid,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) priority: i64,
    pub(crate) window: u16,
    pub(crate) channel: ChannelId,
    pub(crate) got: bool,
    pub(crate) attached: bool,
    /// What it holds: (first, count).
    pub(crate) leases: Vec<(Offset, u64)>,
}

/// Bytes that are no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Foreign {
    /// They do not decode.
    #[error("{0}")]
    Encoding(#[from] postcard::Error),
    /// No frame is empty, and each begins with what it is.
    #[error("not a frame of this protocol")]
    Frame,
    /// Nobody sends that much at once.
    #[error("a message of more than {} bytes", limits::FRONT_MESSAGE_MAX)]
    TooLong,
}

/// Packs messages into frames.
pub(crate) fn pack<M: Serialize>(messages: &[M]) -> Result<Vec<Bytes>, Foreign> {
    let bytes = Bytes::from(postcard::to_stdvec(messages)?);
    let chunks = bytes.len().div_ceil(FRAME - 1).max(1);
    let chunk = |n: usize| {
        let part = bytes.slice(n * (FRAME - 1)..bytes.len().min((n + 1) * (FRAME - 1)));
        let mut frame = BytesMut::with_capacity(part.len() + 1);
        frame.extend_from_slice(&[if n + 1 < chunks { MORE } else { LAST }]);
        frame.extend_from_slice(&part);
        frame.freeze()
    };
    Ok((0..chunks).map(chunk).collect())
}

/// Puts the frames of one direction together again.
#[derive(Debug, Default)]
pub(crate) struct Unpacker(BytesMut);

impl Unpacker {
    /// Takes a frame; the messages that it ends, if it ends some.
    pub(crate) fn take<M: for<'de> Deserialize<'de>>(&mut self, frame: &[u8]) -> Result<Vec<M>, Foreign> {
        let (kind, part) = frame.split_first().ok_or(Foreign::Frame)?;
        if self.0.len() + part.len() > limits::FRONT_MESSAGE_MAX {
            return Err(Foreign::TooLong);
        }
        match *kind {
            LAST if self.0.is_empty() => Ok(postcard::from_bytes(part)?),
            LAST => {
                self.0.extend_from_slice(part);
                let whole = std::mem::take(&mut self.0);
                Ok(postcard::from_bytes(&whole)?)
            }
            MORE => {
                self.0.extend_from_slice(part);
                Ok(Vec::new())
            }
            _ => Err(Foreign::Frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(len: usize) -> Vec<ToLeader> {
        let key: Arc<str> = "k".repeat(len).into();
        let presented = Presented { connection: 7, groups: vec![key], ..Presented::default() };
        vec![ToLeader::Hello { version: VERSION, session: 9 }, ToLeader::Present(Box::new(presented))]
    }

    #[test]
    fn messages_of_any_length_come_back() {
        for len in [0, 100, FRAME, 3 * FRAME + 5] {
            let frames = pack(&long(len)).unwrap();
            assert_eq!(frames.len(), len / FRAME + 1);
            let mut unpacker = Unpacker::default();
            let mut got = Vec::new();
            for frame in frames {
                assert!(frame.len() <= FRAME);
                got.extend(unpacker.take::<ToLeader>(&frame).unwrap());
            }
            let [ToLeader::Hello { session: 9, .. }, ToLeader::Present(presented)] = &got[..] else {
                panic!("{got:?}");
            };
            assert_eq!(presented.groups[0].len(), len);
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let frame = pack(&long(50)).unwrap().remove(0);
        for len in 0..frame.len() {
            assert!(Unpacker::default().take::<ToLeader>(&frame[..len]).is_err(), "{len} bytes");
        }
        assert!(matches!(Unpacker::default().take::<ToLeader>(&[9, 1]), Err(Foreign::Frame)));
        // A length that promises more than there is costs nothing.
        assert!(Unpacker::default().take::<ToLeader>(&[LAST, 255, 255, 255, 255, 255, 1]).is_err());
    }

    #[test]
    fn a_message_without_end_is_refused() {
        let mut unpacker = Unpacker::default();
        let frame = [&[MORE][..], &vec![0; FRAME - 1]].concat();
        let refused = (0..100).find_map(|_| unpacker.take::<ToLeader>(&frame).err());
        assert!(matches!(refused, Some(Foreign::TooLong)));
    }
}
