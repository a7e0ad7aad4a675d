//! The client's side of the wire: the handshake, and the frames a server sends.
//!
//! Owns the answers a client must give until it may use a connection, for load generators and tests. Promises
//! the same checks of bytes as the server's side. Does not know a client's state (channels, consumers,
//! confirms), and does not check the order of what the server sends: it serves programs that know what they
//! asked for.

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
    /// Limits to ask for: the lower of these and the server's are taken; 0 is no wish (for the heartbeat:
    /// none).
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

    /// Takes what the server said off the front of `input` and appends the answers to `out`. The agreed
    /// limits mean that the connection is open; until then, call it again when more bytes are there.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{ConnectionOpenOk, ConnectionStart};

    fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        ConnectionStart { version_minor: 9, mechanisms: b"PLAIN", ..Default::default() }
            .encode_frame(0, &mut bytes);
        ConnectionTune { channel_max, frame_max, heartbeat }.encode_frame(0, &mut bytes);
        bytes
    }

    fn agreed(offer: (u16, u32, u16), wishes: Tuning) -> Tuning {
        let mut bytes = tune(offer.0, offer.1, offer.2);
        ConnectionOpenOk::default().encode_frame(0, &mut bytes);
        let mut client = Handshake::new(Login { wishes, ..Login::guest() }, &mut Vec::new());
        client.advance(&mut &bytes[..], &mut Vec::new()).unwrap().expect("the handshake is over")
    }

    #[test]
    fn the_lower_limit_wins_and_0_is_no_limit() {
        let tuning = |channel_max, frame_max, heartbeat| Tuning { frame_max, channel_max, heartbeat };
        assert_eq!(agreed((2047, 131_072, 60), tuning(0, 0, 0)), tuning(2047, 131_072, 0));
        assert_eq!(agreed((2047, 131_072, 60), tuning(9, 4096, 5)), tuning(9, 4096, 5));
        assert_eq!(agreed((2047, 131_072, 60), tuning(u16::MAX, u32::MAX, 0)), tuning(2047, 131_072, 0));
        assert_eq!(agreed((0, 0, 60), tuning(9, 0, 0)), tuning(9, 0, 0));
    }

    #[test]
    fn the_handshake_may_arrive_byte_by_byte() {
        let mut bytes = tune(2047, 131_072, 60);
        ConnectionOpenOk::default().encode_frame(0, &mut bytes);
        let mut out = Vec::new();
        let mut client = Handshake::new(Login::guest(), &mut out);
        let mut start = 0;
        for end in 1..=bytes.len() {
            let mut input = &bytes[start..end];
            let done = client.advance(&mut input, &mut out).unwrap();
            assert_eq!(done.is_some(), end == bytes.len());
            start = end - input.len();
        }
        let said = b"AMQP\0\0\x09\x01\
            \x01\0\0\0\0\0\x24\0\x0a\0\x0b\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0guest\x05en_US\xce\
            \x01\0\0\0\0\0\x0c\0\x0a\0\x1f\x07\xff\0\x02\0\0\0\0\xce\
            \x01\0\0\0\0\0\x08\0\x0a\0\x28\x01/\0\0\xce";
        assert_eq!(out, said);
    }

    #[test]
    fn a_server_that_refuses_is_quoted() {
        let mut bytes = Vec::new();
        Exception::new(ReplyCode::AccessRefused, "login refused")
            .to_connection_close()
            .encode_frame(0, &mut bytes);
        let mut client = Handshake::new(Login::guest(), &mut Vec::new());
        let error = client.advance(&mut &bytes[..], &mut Vec::new()).unwrap_err();
        assert_eq!(error, HandshakeError::Refused(403, "ACCESS_REFUSED - login refused".to_owned()));
    }

    #[test]
    fn a_server_that_speaks_something_else_is_noticed() {
        let mut client = Handshake::new(Login::guest(), &mut Vec::new());
        assert!(matches!(
            client.advance(&mut &b"AMQP\0\0\x09\x01"[..], &mut Vec::new()),
            Err(HandshakeError::Broken(_))
        ));
        let mut bytes = Vec::new();
        ConnectionOpenOk::default().encode_frame(0, &mut bytes);
        let error = client.advance(&mut &bytes[..], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("UNEXPECTED_FRAME"), "{error}");
    }

    #[test]
    fn frames_of_a_server_are_decoded_one_by_one() {
        let mut bytes = Vec::new();
        crate::content::encode(5, crate::content::Properties::EMPTY, b"body", 4096, &mut bytes);
        bytes.extend(frame::HEARTBEAT);
        let mut input = &bytes[..];
        let mut next = || next_incoming(&mut input, 4096).unwrap();
        assert!(matches!(next(), Some(Incoming::Header { channel: 5, header }) if header.body_size == 4));
        assert_eq!(next(), Some(Incoming::Body { channel: 5, bytes: b"body" }));
        assert_eq!(next(), Some(Incoming::Heartbeat));
        assert_eq!(next(), None);
    }
}
