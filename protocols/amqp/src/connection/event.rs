//! What a client said.

use super::limits::Tuning;
use crate::content::Properties;
use crate::method::{
    BasicPublish, ChannelClose, ConnectionClose, ConnectionOpen, ConnectionSecureOk, ConnectionStartOk,
    ConnectionUpdateSecret, Method,
};
use crate::reply::Exception;

/// What becomes of a frame; no event means that it is ignored.
// One type on the whole way out: an event is some 90 bytes, and each change of its wrapping would copy them
// again.
pub(super) type Yield<'a> = Result<Option<Event<'a>>, Exception>;

/// One thing a client said, borrowed from the bytes it came in. What the server owes in return stands beside
/// it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// The client speaks AMQP 0-9-1. Owed: [`Connection::start`](super::Connection::start).
    ProtocolHeader,
    /// It speaks something else; these are the first bytes (at most 8). Owed:
    /// [`PROTOCOL_HEADER`](crate::frame::PROTOCOL_HEADER), and the end of the socket.
    ForeignHeader(&'a [u8]),
    /// It logs in. Owed: [`Connection::secure`](super::Connection::secure),
    /// [`Connection::tune`](super::Connection::tune) or [`Connection::close`](super::Connection::close).
    StartOk(ConnectionStartOk<'a>),
    /// It answers a challenge. Owed: as for `StartOk`.
    SecureOk(ConnectionSecureOk<'a>),
    /// The limits are agreed.
    TuneOk(Tuning),
    /// It chooses a virtual host. Owed: [`Connection::open_ok`](super::Connection::open_ok) or
    /// [`Connection::close`](super::Connection::close).
    Open(ConnectionOpen<'a>),
    /// It renews its secret. Owed: `connection.update-secret-ok`, or the end.
    UpdateSecret(ConnectionUpdateSecret<'a>),
    /// A sign of life. (So is every other byte.)
    Heartbeat,
    /// It ends the connection; nothing else will be read. Owed:
    /// [`Connection::close_ok`](super::Connection::close_ok).
    Close(ConnectionClose<'a>),
    /// It has seen our `connection.close`: the socket may be closed.
    CloseOk,
    /// It opens a channel; from now on its methods arrive. Owed: `channel.open-ok`.
    ChannelOpen {
        /// Which one, from 1.
        channel: u16,
    },
    /// It ends a channel; content under way is void. Owed:
    /// [`Connection::close_channel_ok`](super::Connection::close_channel_ok). May also arrive after our own
    /// `channel.close`: both sides gave up at once.
    ChannelClose {
        /// Which one.
        channel: u16,
        /// Why.
        close: ChannelClose<'a>,
    },
    /// It has seen our `channel.close`: the number is free again.
    ChannelCloseOk {
        /// Which one.
        channel: u16,
    },
    /// Any other method of an open channel, without content.
    Method {
        /// Which one.
        channel: u16,
        /// What it asks for.
        method: Method<'a>,
    },
    /// A message begins; `Header` follows, then `Body` until the body is complete, on the same channel. The
    /// events of other channels may come in between, and later ones may borrow from another buffer: keep what
    /// the message needs.
    Publish {
        /// Which one.
        channel: u16,
        /// Where it goes.
        publish: BasicPublish<'a>,
    },
    /// The message's properties and how large it will be. Complete if `body_size` is 0.
    Header {
        /// Which one.
        channel: u16,
        /// Bytes of body to come: only the client's word, up to 2^64 - 1. A message too large is refused by
        /// [`Connection::close_channel`](super::Connection::close_channel); the rest of it is then ignored.
        body_size: u64,
        /// The properties, checked.
        properties: Properties<'a>,
    },
    /// A piece of the body.
    Body {
        /// Which one.
        channel: u16,
        /// The piece; may be empty.
        bytes: &'a [u8],
        /// The message is complete.
        last: bool,
    },
}
