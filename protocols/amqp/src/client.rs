//! The client's side of the wire: the handshake, and the frames a server sends.
//!
//! Owns the answers a client must give until it may use a connection, for load generators and tests. Promises the same
//! checks of bytes as the server's side. Does not know a client's state (channels, consumers, confirms), and does not
//! check the order of what the server sends: it serves programs that know what they asked for.

use std::fmt;

use crate::connection::Tuning;
use crate::content::ContentHeader;
use crate::frame::{self, FrameKind, PROTOCOL_HEADER, Split};
use crate::method::{ConnectionOpen, ConnectionStartOk, ConnectionTune, ConnectionTuneOk, Method};
use crate::reply::{Exception, ReplyCode};
use crate::sasl::{self, Credentials};
use crate::table::RawTable;

/// The largest frame accepted before the limits are agreed. Servers send their properties in it.
const INITIAL_FRAME_MAX: u32 = 131_072;

/// How to log in, and what to ask for.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// User and password, sent by PLAIN.
    pub credentials: Credentials<'a>,
    /// The virtual host to open.
    pub virtual_host: &'a str,
    /// What to say about oneself, with the capabilities.
    pub client_properties: RawTable<'a>,
    /// Limits to ask for: the lower of these and the server's are taken; 0 is no wish (for the heartbeat: none).
    pub wishes: Tuning,
}

impl Login<'static> {
    /// `guest` with its usual password on `/`, with the server's limits and no heartbeat.
    #[must_use]
    pub const fn guest() -> Self {
        Self {
            credentials: Credentials { user: b"guest", password: b"guest" },
            virtual_host: "/",
            client_properties: RawTable::EMPTY,
            wishes: Tuning { frame_max: 0, channel_max: 0, heartbeat: 0 },
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The server said no: reply code and text.
    Refused(u16, String),
    /// The server broke the protocol, or speaks another one.
    Broken(Exception),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code, text) => write!(f, "the server refused: {code} {text}"),
            Self::Broken(exception) => write!(f, "the server broke the protocol: {exception}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<Exception> for HandshakeError {
    fn from(exception: Exception) -> Self {
        Self::Broken(exception)
    }
}

/// A handshake under way.
pub struct Handshake<'a> {
    login: Login<'a>,
    tuning: Option<Tuning>,
}

impl<'a> Handshake<'a> {
    /// Begins: appends the protocol header to `out`.
    #[must_use]
    pub fn new(login: Login<'a>, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&PROTOCOL_HEADER);
        Self { login, tuning: None }
    }

    /// Takes what the server said off the front of `input` and appends the answers to `out`. The agreed limits mean that
    /// the connection is open; until then, call it again when more bytes are there.
    ///
    /// # Errors
    /// The server refused, or does not speak AMQP 0-9-1.
    pub fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Tuning>, HandshakeError> {
        while let Some(incoming) = next_incoming(input, INITIAL_FRAME_MAX)? {
            match incoming {
                Incoming::Method { channel: 0, method: Method::ConnectionStart(_) } => self.start_ok(out),
                Incoming::Method { channel: 0, method: Method::ConnectionTune(tune) } => {
                    self.tune_ok(&tune, out)
                }
                Incoming::Method { channel: 0, method: Method::ConnectionOpenOk(_) }
                    if self.tuning.is_some() =>
                {
                    return Ok(self.tuning);
                }
                Incoming::Method { channel: 0, method: Method::ConnectionClose(close) } => {
                    return Err(HandshakeError::Refused(close.reply_code, close.reply_text.to_owned()));
                }
                Incoming::Heartbeat => {}
                other => {
                    let explanation = format_args!("{other:?} during the handshake");
                    return Err(Exception::new(ReplyCode::UnexpectedFrame, explanation).into());
                }
            }
        }
        Ok(None)
    }

    fn start_ok(&self, out: &mut Vec<u8>) {
        let mut response = Vec::new();
        self.login.credentials.encode_plain(&mut response);
        let start_ok = ConnectionStartOk {
            client_properties: self.login.client_properties,
            mechanism: sasl::PLAIN,
            response: &response,
            locale: "en_US",
        };
        start_ok.encode_frame(0, out);
    }

    /// Answers with the limits, and opens the virtual host in the same breath.
    fn tune_ok(&mut self, offer: &ConnectionTune, out: &mut Vec<u8>) {
        let wishes = self.login.wishes;
        let tuning = Tuning {
            frame_max: lower(wishes.frame_max, offer.frame_max),
            channel_max: lower(wishes.channel_max, offer.channel_max),
            heartbeat: wishes.heartbeat,
        };
        let Tuning { frame_max, channel_max, heartbeat } = tuning;
        ConnectionTuneOk { channel_max, frame_max, heartbeat }.encode_frame(0, out);
        ConnectionOpen { virtual_host: self.login.virtual_host, ..Default::default() }.encode_frame(0, out);
        self.tuning = Some(tuning);
    }
}

/// The lower of two limits, 0 being none.
fn lower<T: Ord + Default>(wish: T, offer: T) -> T {
    let none = T::default();
    if wish == none || (offer != none && offer < wish) { offer } else { wish }
}

/// One frame from a server, decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Incoming<'a> {
    /// A method; if it brings content, a header follows on its channel.
    Method {
        /// 0 for the connection itself.
        channel: u16,
        /// What it says.
        method: Method<'a>,
    },
    /// A content header.
    Header {
        /// Which channel.
        channel: u16,
        /// Body size and properties.
        header: ContentHeader<'a>,
    },
    /// A piece of a body.
    Body {
        /// Which channel.
        channel: u16,
        /// The piece.
        bytes: &'a [u8],
    },
    /// A sign of life.
    Heartbeat,
}

/// Takes the next frame off the front of `input`, which is advanced past it. `None`: it is not complete yet.
///
/// # Errors
/// The bytes are no frame within `frame_max`, or its payload is malformed.
pub fn next_incoming<'a>(input: &mut &'a [u8], frame_max: u32) -> Result<Option<Incoming<'a>>, Exception> {
    let Split::Frame(frame) = frame::split(input, frame_max)? else { return Ok(None) };
    *input = &input[frame.encoded_len()..];
    let channel = frame.channel;
    Ok(Some(match frame.kind {
        FrameKind::Method => Incoming::Method { channel, method: Method::parse(frame.payload)? },
        FrameKind::Header => Incoming::Header { channel, header: ContentHeader::parse(frame.payload)? },
        FrameKind::Body => Incoming::Body { channel, bytes: frame.payload },
        FrameKind::Heartbeat => Incoming::Heartbeat,
    }))
}
