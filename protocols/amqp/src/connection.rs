//! The server's side of one connection, without its socket (spec 2.2.4, 2.2.5, 4.2).
//!
//! ```text
//!   client                      server owes                    phase
//!   AMQP 0 0 9 1                start                          ExpectHeader   → OwesStart
//!   start-ok                    secure, tune or close          ExpectStartOk  → OwesVerdict
//!   (secure-ok                  secure, tune or close)         ExpectSecureOk → OwesVerdict
//!   tune-ok                     -                              ExpectTuneOk   → ExpectOpen
//!   open                        open-ok or close               ExpectOpen     → OwesOpenOk
//!   channels, content           their answers                  Running
//!   close                       close-ok                       OwesCloseOk    → Closed
//!   anything wrong              close, then only close-ok      OwesClose      → Closing → Closed
//! ```
//!
//! Owns the order of frames: handshake, negotiation, channels, content, closing. Promises that an [`Event`]
//! is only yielded when it may happen, that bytes are checked before they are waited for, that nothing is
//! allocated per message, and that an error leaves the connection in a state where nothing but closing is
//! possible. Does not know sockets, deadlines (handshake, heartbeats, how long to wait for a close-ok) or who
//! may log in.
//!
//! # Driving it
//!
//! Read from the socket into a buffer, hand the whole buffer to [`Connection::next_event`] until it has no
//! more, drop what was taken, write what was answered:
//!
//! ```
//! use dassie_amqp::client::{Handshake, Login};
//! use dassie_amqp::connection::{Connection, Event, Limits};
//! use dassie_amqp::content::Properties;
//! use dassie_amqp::method::{BasicPublish, ChannelOpen, ChannelOpenOk, Method};
//! use dassie_amqp::table::RawTable;
//! use dassie_amqp::{content, sasl};
//!
//! /// What a connection task does with everything it has read.
//! fn serve(connection: &mut Connection, read: &[u8], out: &mut Vec<u8>) -> usize {
//!     let mut input = read;
//!     loop {
//!         match connection.next_event(&mut input) {
//!             Ok(Some(event)) => handle(connection, event, out),
//!             Ok(None) => break, // wait until `connection.missing()` more bytes are there
//!             Err(exception) => {
//!                 connection.close(&exception, out);
//!             }
//!         }
//!     }
//!     read.len() - input.len() // the caller drops these bytes from the front of its buffer
//! }
//!
//! fn handle(connection: &mut Connection, event: Event<'_>, out: &mut Vec<u8>) {
//!     match event {
//!         Event::ProtocolHeader => connection.start(RawTable::EMPTY, "PLAIN", out),
//!         Event::StartOk(start_ok) => {
//!             let login = sasl::Credentials::from_plain(start_ok.response).expect("a PLAIN response");
//!             assert_eq!(login.user, b"guest"); // a real server checks the password, and takes its time
//!             connection.tune(out);
//!         }
//!         Event::Open(open) => {
//!             assert_eq!(open.virtual_host, "/");
//!             connection.open_ok(out);
//!         }
//!         Event::ChannelOpen { channel } => ChannelOpenOk::default().encode_frame(channel, out),
//!         Event::Publish { publish, .. } => assert_eq!(publish.routing_key, "q"),
//!         Event::Header { body_size, properties, .. } => {
//!             assert_eq!((body_size, properties.delivery_mode()), (5, None));
//!         }
//!         Event::Body { bytes, last, .. } => assert_eq!((bytes, last), (&b"hello"[..], true)),
//!         Event::Close(_) => connection.close_ok(out),
//!         _ => {}
//!     }
//! }
//!
//! // A client at the other end of the wire.
//! let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
//! let mut server = Connection::new(Limits::default());
//! let mut client = Handshake::new(Login::guest(), &mut to_server);
//! let tuning = loop {
//!     let taken = serve(&mut server, &to_server, &mut to_client);
//!     to_server.drain(..taken);
//!     let mut input = &to_client[..];
//!     let done = client.advance(&mut input, &mut to_server).expect("the server lets us in");
//!     let taken = to_client.len() - input.len();
//!     to_client.drain(..taken);
//!     if let Some(tuning) = done {
//!         break tuning;
//!     }
//! };
//! ChannelOpen::default().encode_frame(1, &mut to_server);
//! BasicPublish { routing_key: "q", ..Default::default() }.encode_frame(1, &mut to_server);
//! content::encode(1, Properties::EMPTY, b"hello", tuning.frame_max, &mut to_server);
//! assert_eq!(serve(&mut server, &to_server, &mut to_client), to_server.len());
//! ```

mod channels;
mod event;
mod limits;

use self::channels::Channels;
pub use self::event::Event;
use self::event::Yield;
pub use self::limits::{Limits, Tuning};
use crate::frame::{self, Frame, FrameKind, PROTOCOL_HEADER, ProtocolHeader, Split};
use crate::method::{
    ChannelCloseOk, ConnectionCloseOk, ConnectionOpenOk, ConnectionSecure, ConnectionStart, Method, MethodId,
};
use crate::reply::{Exception, ReplyCode};
use crate::table::RawTable;

/// Where a connection stands. `Expect…`: the client must speak; `Owes…`: we must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said yet.
    ExpectHeader,
    /// The protocol is agreed; we owe `connection.start`.
    OwesStart,
    /// We offered mechanisms.
    ExpectStartOk,
    /// The client sent its response; we owe a challenge, the limits, or the end.
    OwesVerdict,
    /// We sent a challenge.
    ExpectSecureOk,
    /// The login succeeded, and we offered limits.
    ExpectTuneOk,
    /// The limits are agreed.
    ExpectOpen,
    /// The client chose its virtual host; we owe the verdict.
    OwesOpenOk,
    /// The handshake is over.
    Running,
    /// The client broke the protocol; we owe it the exception.
    OwesClose,
    /// We sent `connection.close`; everything but its answer is ignored.
    Closing,
    /// The client sent `connection.close`; we owe it the answer.
    OwesCloseOk,
    /// Nothing will be read or written any more.
    Closed,
}

impl Phase {
    /// Whether input must wait until we have spoken.
    const fn is_our_turn(self) -> bool {
        matches!(self, Self::OwesStart | Self::OwesVerdict | Self::OwesOpenOk | Self::OwesClose)
    }

    /// Whether the bytes read count against the budget of the handshake.
    const fn is_handshake(self) -> bool {
        matches!(self, Self::ExpectStartOk | Self::ExpectSecureOk | Self::ExpectTuneOk | Self::ExpectOpen)
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    phase: Phase,
    /// Agreed limits; the offer until `tune-ok`.
    tuning: Tuning,
    /// The frame limit in force: the initial one until `tune-ok`.
    frame_max: u32,
    /// What is left of the handshake's budget in bytes.
    handshake_left: usize,
    /// See [`Connection::missing`].
    missing: usize,
    /// The stream can no longer be cut into frames.
    lost_sync: bool,
    channels: Channels,
}

impl Connection {
    /// A connection on which nothing was said yet.
    ///
    /// # Panics
    /// If the limits are no limits: `frame_max` or `initial_frame_max` below
    /// [`FRAME_MIN_SIZE`](frame::FRAME_MIN_SIZE), or `channel_max` 0.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        assert!(limits.frame_max >= frame::FRAME_MIN_SIZE, "frame_max below the minimum");
        assert!(limits.initial_frame_max >= frame::FRAME_MIN_SIZE, "initial_frame_max below the minimum");
        assert!(limits.channel_max > 0, "channel_max of 0");
        let Limits { frame_max, channel_max, heartbeat, initial_frame_max, handshake_bytes_max } = limits;
        Self {
            limits,
            phase: Phase::ExpectHeader,
            tuning: Tuning { frame_max, channel_max, heartbeat },
            frame_max: initial_frame_max,
            handshake_left: handshake_bytes_max,
            missing: PROTOCOL_HEADER.len(),
            lost_sync: false,
            channels: Channels::default(),
        }
    }

    /// Takes the next event off the front of `input`, which is advanced past what was taken.
    ///
    /// `None` means that nothing more can be said now: either [`missing`](Self::missing) bytes are needed, or
    /// (if that is 0) the server must speak first. Call it again after either. Input that is to be ignored is
    /// taken silently.
    ///
    /// # Errors
    /// The client broke the protocol; always the connection's end. Owed: [`close`](Self::close). Nothing else
    /// will be read before that.
    #[inline]
    pub fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Exception> {
        let result = self.take_event(input);
        if result.is_err() {
            self.phase = Phase::OwesClose;
            self.missing = 0;
        }
        result
    }

    fn take_event<'a>(&mut self, input: &mut &'a [u8]) -> Yield<'a> {
        loop {
            if self.phase.is_our_turn() {
                self.missing = 0;
                return Ok(None);
            }
            if self.lost_sync || matches!(self.phase, Phase::OwesCloseOk | Phase::Closed) {
                *input = &[];
                self.missing = 1;
                return Ok(None);
            }
            if self.phase == Phase::ExpectHeader {
                return Ok(self.take_header(input));
            }
            let frame = match frame::split(input, self.frame_max) {
                Ok(Split::Frame(frame)) => frame,
                Ok(Split::NeedMore(missing)) => {
                    self.missing = missing;
                    return Ok(None);
                }
                Err(error) => {
                    self.lost_sync = true;
                    return Err(error.into());
                }
            };
            let before = *input;
            *input = &input[frame.encoded_len()..];
            match self.accept(frame) {
                Ok(None) if self.phase == Phase::Running && self.channels.opens_too_early(frame) => {
                    // The number is used again at once: first the answer to the close.
                    *input = before;
                    self.missing = 0;
                    return Ok(None);
                }
                Ok(None) => {} // ignored
                done => return done,
            }
        }
    }

    fn take_header<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        match frame::protocol_header(input) {
            ProtocolHeader::Accepted => {
                *input = &input[PROTOCOL_HEADER.len()..];
                self.phase = Phase::OwesStart;
                Some(Event::ProtocolHeader)
            }
            ProtocolHeader::NeedMore(missing) => {
                self.missing = missing;
                None
            }
            ProtocolHeader::Foreign => {
                let seen = &input[..input.len().min(PROTOCOL_HEADER.len())];
                *input = &[];
                self.phase = Phase::Closed;
                Some(Event::ForeignHeader(seen))
            }
        }
    }

    #[inline]
    fn accept<'a>(&mut self, frame: Frame<'a>) -> Yield<'a> {
        match self.phase {
            Phase::Running if frame.channel != 0 => self.channels.accept(frame, self.tuning.channel_max),
            Phase::Closing => Ok(self.accept_while_closing(frame)),
            _ => self.accept_on_channel_0(frame),
        }
    }

    fn accept_on_channel_0<'a>(&mut self, frame: Frame<'a>) -> Yield<'a> {
        if self.phase.is_handshake() {
            self.spend(frame.encoded_len())?;
        }
        match frame.kind {
            FrameKind::Method if frame.channel == 0 => self.method(frame.payload),
            FrameKind::Heartbeat if frame.channel == 0 && frame.payload.is_empty() => {
                Ok(Some(Event::Heartbeat))
            }
            FrameKind::Heartbeat if frame.channel == 0 => {
                Err(Exception::new(ReplyCode::FrameError, "heartbeat frame with a payload"))
            }
            kind => {
                let channel = frame.channel;
                let explanation =
                    format!("{kind:?} frame on channel {channel} in connection phase {:?}", self.phase);
                Err(Exception::new(ReplyCode::UnexpectedFrame, explanation))
            }
        }
    }

    /// A stranger may cost no more than the budget, however it is cut into frames.
    fn spend(&mut self, bytes: usize) -> Result<(), Exception> {
        self.handshake_left = self.handshake_left.checked_sub(bytes).ok_or_else(|| {
            let explanation =
                format!("more than {} bytes before connection.open", self.limits.handshake_bytes_max);
            Exception::new(ReplyCode::ResourceError, explanation)
        })?;
        Ok(())
    }

    /// A method on channel 0.
    fn method<'a>(&mut self, payload: &'a [u8]) -> Yield<'a> {
        let method = Method::parse(payload)?;
        let (next, event) = match (self.phase, method) {
            (Phase::ExpectStartOk, Method::ConnectionStartOk(start_ok)) => {
                (Phase::OwesVerdict, Event::StartOk(start_ok))
            }
            (Phase::ExpectSecureOk, Method::ConnectionSecureOk(secure_ok)) => {
                (Phase::OwesVerdict, Event::SecureOk(secure_ok))
            }
            (Phase::ExpectTuneOk, Method::ConnectionTuneOk(tune_ok)) => {
                self.tuning = self.limits.agree(&tune_ok)?;
                self.frame_max = self.tuning.frame_max;
                (Phase::ExpectOpen, Event::TuneOk(self.tuning))
            }
            (Phase::ExpectOpen, Method::ConnectionOpen(open)) => (Phase::OwesOpenOk, Event::Open(open)),
            (Phase::Running, Method::ConnectionUpdateSecret(update)) => {
                (Phase::Running, Event::UpdateSecret(update))
            }
            (_, Method::ConnectionClose(close)) => (Phase::OwesCloseOk, Event::Close(close)),
            (phase, method) => return Err(misplaced(&method, phase)),
        };
        self.phase = next;
        Ok(Some(event))
    }

    fn accept_while_closing<'a>(&mut self, frame: Frame<'a>) -> Option<Event<'a>> {
        if frame.channel != 0 || frame.kind != FrameKind::Method {
            return None;
        }
        match Method::parse(frame.payload) {
            Ok(Method::ConnectionCloseOk(_)) => {
                self.phase = Phase::Closed;
                Some(Event::CloseOk)
            }
            // Both sides closed at once: answer, and go on waiting for the answer to ours.
            Ok(Method::ConnectionClose(close)) => Some(Event::Close(close)),
            _ => None,
        }
    }

    /// The least number of bytes that must arrive before [`next_event`](Self::next_event) can say more. 0
    /// when it waits for the server instead: do not read from the socket then.
    #[must_use]
    pub const fn missing(&self) -> usize {
        self.missing
    }

    /// Where the connection stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The limits in force; before [`Event::TuneOk`], those that will be offered.
    #[must_use]
    pub const fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Whether the client's bytes can no longer be understood, so that not even a close-ok will be
    /// recognised: after [`close`](Self::close), give the client a moment to read why, then drop the socket.
    #[must_use]
    pub const fn lost_sync(&self) -> bool {
        self.lost_sync
    }

    /// Whether the client may use this channel: opened, and closed by neither side.
    #[must_use]
    pub fn is_open(&self, channel: u16) -> bool {
        self.phase == Phase::Running && self.channels.is_open(channel)
    }

    /// Appends `connection.start` to `out`. `mechanisms` are separated by spaces.
    ///
    /// # Panics
    /// If it is not owed.
    pub fn start(&mut self, server_properties: RawTable<'_>, mechanisms: &str, out: &mut Vec<u8>) {
        self.settle(&[Phase::OwesStart], Phase::ExpectStartOk);
        let start = ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties,
            mechanisms: mechanisms.as_bytes(),
            locales: b"en_US",
        };
        start.encode_frame(0, out);
    }

    /// Appends `connection.secure` to `out`: the login goes on.
    ///
    /// # Panics
    /// If no verdict is owed.
    pub fn secure(&mut self, challenge: &[u8], out: &mut Vec<u8>) {
        self.settle(&[Phase::OwesVerdict], Phase::ExpectSecureOk);
        ConnectionSecure { challenge }.encode_frame(0, out);
    }

    /// Appends `connection.tune` to `out`: the login succeeded.
    ///
    /// # Panics
    /// If no verdict is owed.
    pub fn tune(&mut self, out: &mut Vec<u8>) {
        self.settle(&[Phase::OwesVerdict], Phase::ExpectTuneOk);
        self.limits.offer().encode_frame(0, out);
    }

    /// Appends `connection.open-ok` to `out`: the connection may be used.
    ///
    /// # Panics
    /// If it is not owed.
    pub fn open_ok(&mut self, out: &mut Vec<u8>) {
        self.settle(&[Phase::OwesOpenOk], Phase::Running);
        ConnectionOpenOk::default().encode_frame(0, out);
    }

    /// Ends the connection: appends `connection.close` to `out`, after which everything but its answer is
    /// ignored.
    ///
    /// Whether it was written: not if the connection is closing or closed already, nor before
    /// `connection.start`, when a client could not understand it. In the last case the connection is closed
    /// without a word.
    pub fn close(&mut self, exception: &Exception, out: &mut Vec<u8>) -> bool {
        match self.phase {
            Phase::Closing | Phase::OwesCloseOk | Phase::Closed => return false,
            Phase::ExpectHeader | Phase::OwesStart => {
                self.phase = Phase::Closed;
                return false;
            }
            _ => self.phase = Phase::Closing,
        }
        self.channels = Channels::default();
        exception.to_connection_close().encode_frame(0, out);
        true
    }

    /// Appends `connection.close-ok` to `out`.
    ///
    /// # Panics
    /// If the client has not closed the connection.
    pub fn close_ok(&mut self, out: &mut Vec<u8>) {
        if self.phase != Phase::Closing {
            self.settle(&[Phase::OwesCloseOk], Phase::Closed);
        }
        ConnectionCloseOk {}.encode_frame(0, out);
    }

    /// Ends a channel: appends `channel.close` to `out`, after which everything but its answer is ignored
    /// there.
    ///
    /// Whether it was written: not if there is no such channel or we have closed it, which may well be when an outcome comes late.
    /// A client that has closed it is still told what was wrong before, and then gets its answer.
    pub fn close_channel(&mut self, channel: u16, exception: &Exception, out: &mut Vec<u8>) -> bool {
        let closing = self.phase == Phase::Running && self.channels.start_closing(channel);
        if closing {
            exception.to_channel_close().encode_frame(channel, out);
        }
        closing
    }

    /// Answers a client's `channel.close`: appends `channel.close-ok` to `out`; the number is free again.
    ///
    /// Whether it was written: not if there is nothing to answer any more.
    pub fn close_channel_ok(&mut self, channel: u16, out: &mut Vec<u8>) -> bool {
        let answered = self.phase == Phase::Running && self.channels.finish_closing(channel);
        if answered {
            ChannelCloseOk {}.encode_frame(channel, out);
        }
        answered
    }

    /// Pays what is owed.
    fn settle(&mut self, owed: &[Phase], next: Phase) {
        assert!(owed.contains(&self.phase), "{owed:?} expected, the connection is in {:?}", self.phase);
        self.phase = next;
    }
}

/// Whether a client declared a capability (`client_properties` of start-ok, table `capabilities`).
#[must_use]
pub fn declares(client_properties: RawTable<'_>, capability: &str) -> bool {
    let capabilities = client_properties.get("capabilities").and_then(|value| value.as_table());
    capabilities.and_then(|table| table.get(capability)).and_then(|value| value.as_bool()) == Some(true)
}

/// A method on channel 0 that may not come now.
fn misplaced(method: &Method<'_>, phase: Phase) -> Exception {
    let id: MethodId = method.id();
    let explanation = format_args!("unexpected {id} on channel 0 in connection phase {phase:?}");
    Exception::new(ReplyCode::ChannelError, explanation).during(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{self, Properties};
    use crate::frame::HEARTBEAT;
    use crate::method::{
        BasicPublish, ChannelClose, ChannelOpen, ConnectionClose, ConnectionOpen, ConnectionSecureOk,
        ConnectionStartOk, ConnectionTuneOk, ConnectionUpdateSecret, QueueDeclare,
    };
    use crate::table::TableBuilder;

    const HEADER: &[u8] = &PROTOCOL_HEADER;

    fn on<'a>(channel: u16, method: impl Into<Method<'a>>) -> Vec<u8> {
        let mut frame = Vec::new();
        method.into().encode_frame(channel, &mut frame);
        frame
    }

    fn start_ok() -> Vec<u8> {
        on(
            0,
            ConnectionStartOk {
                mechanism: "PLAIN",
                response: b"\0a\0b",
                locale: "en_US",
                ..Default::default()
            },
        )
    }

    fn tune_ok() -> Vec<u8> {
        on(0, ConnectionTuneOk { channel_max: 100, frame_max: 4096, heartbeat: 0 })
    }

    fn open() -> Vec<u8> {
        on(0, ConnectionOpen { virtual_host: "/", ..Default::default() })
    }

    /// Does what the server owes, if it is part of a handshake that goes well.
    fn pay(connection: &mut Connection, out: &mut Vec<u8>) {
        match connection.phase() {
            Phase::OwesStart => connection.start(RawTable::EMPTY, "PLAIN", out),
            Phase::OwesVerdict => connection.tune(out),
            Phase::OwesOpenOk => connection.open_ok(out),
            _ => {}
        }
    }

    /// Everything the client said, with the handshake's answers given.
    fn say<'a>(connection: &mut Connection, mut input: &'a [u8]) -> Result<Vec<Event<'a>>, Exception> {
        let mut events = Vec::new();
        while let Some(event) = connection.next_event(&mut input)? {
            events.push(event);
            pay(connection, &mut Vec::new());
        }
        assert!(input.is_empty() || connection.missing() > 0, "waits for input it already has");
        Ok(events)
    }

    /// A connection that has heard so much of a handshake.
    fn after(said: &[&[u8]]) -> Connection {
        let mut connection = Connection::new(Limits::default());
        say(&mut connection, &said.concat()).expect("a proper handshake");
        connection
    }

    fn running() -> Connection {
        let connection = after(&[HEADER, &start_ok(), &tune_ok(), &open()]);
        assert_eq!(connection.phase(), Phase::Running);
        connection
    }

    /// Code, class id and method id of the error that `bytes` cause.
    fn refused(mut connection: Connection, bytes: &[u8]) -> (u16, u16, u16) {
        let exception = say(&mut connection, bytes).expect_err("refused");
        assert_eq!(connection.phase(), Phase::OwesClose);
        (exception.code().number(), exception.method().class, exception.method().method)
    }

    #[test]
    fn a_handshake_goes_from_the_protocol_header_to_a_running_connection() {
        let (mut connection, mut out) = (Connection::new(Limits::default()), Vec::new());
        let said = [HEADER, &start_ok(), &tune_ok(), &open()].concat();
        let (mut input, mut seen) = (&said[..], Vec::new());
        while let Some(event) = connection.next_event(&mut input).unwrap() {
            seen.push(event);
            pay(&mut connection, &mut out);
        }
        let tuning = Tuning { frame_max: 4096, channel_max: 100, heartbeat: 0 };
        assert!(matches!(
            seen[..],
            [Event::ProtocolHeader, Event::StartOk(_), Event::TuneOk(agreed), Event::Open(_)] if agreed == tuning
        ));
        assert_eq!((connection.phase(), connection.tuning()), (Phase::Running, tuning));
        let start = b"\x01\0\0\0\0\0\x1c\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US\xce";
        let tune = b"\x01\0\0\0\0\0\x0c\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c\xce";
        let open_ok = b"\x01\0\0\0\0\0\x05\0\x0a\0\x29\0\xce";
        assert_eq!(out, [&start[..], tune, open_ok].concat());
    }

    #[test]
    fn the_same_events_come_out_wherever_the_stream_is_cut() {
        let mut said = [HEADER, &start_ok(), &tune_ok(), &open(), &on(3, ChannelOpen::default())].concat();
        said.extend(on(3, BasicPublish { routing_key: "q", ..Default::default() }));
        content::encode(3, Properties::EMPTY, &[1; 5000], 4096, &mut said);
        said.extend(HEARTBEAT);
        said.extend(on(0, ConnectionClose { reply_code: 200, ..Default::default() }));
        let whole: Vec<String> = say(&mut Connection::new(Limits::default()), &said)
            .unwrap()
            .iter()
            .map(|event| format!("{event:?}"))
            .collect();

        let mut connection = Connection::new(Limits::default());
        let (mut pieces, mut start) = (Vec::new(), 0);
        for end in 1..=said.len() {
            let mut input = &said[start..end];
            let too_early = input.len() < connection.missing();
            while let Some(event) = connection.next_event(&mut input).unwrap() {
                assert!(!too_early, "{event:?} came although more bytes were said to be missing");
                pieces.push(format!("{event:?}"));
                pay(&mut connection, &mut Vec::new());
            }
            start = end - input.len();
        }
        assert_eq!(pieces, whole);
        assert_eq!(whole.len(), 11);
    }

    #[test]
    fn another_protocol_is_shown_and_then_ignored() {
        let mut connection = Connection::new(Limits::default());
        let events = say(&mut connection, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(events, [Event::ForeignHeader(b"GET / HT")]);
        assert_eq!(connection.phase(), Phase::Closed);
        assert_eq!(say(&mut connection, HEADER), Ok(vec![]));
        assert_eq!(
            say(&mut Connection::new(Limits::default()), b"\x16\x03"),
            Ok(vec![Event::ForeignHeader(b"\x16\x03")])
        );
    }

    #[test]
    fn what_a_client_says_in_advance_waits_until_the_server_has_spoken() {
        let mut connection = Connection::new(Limits::default());
        let said = [HEADER, &start_ok(), &tune_ok()].concat();
        let mut input = &said[..];
        assert_eq!(connection.next_event(&mut input), Ok(Some(Event::ProtocolHeader)));
        for _ in 0..3 {
            assert_eq!(connection.next_event(&mut input), Ok(None));
            assert_eq!((connection.missing(), input.len()), (0, said.len() - 8));
        }
        connection.start(RawTable::EMPTY, "PLAIN", &mut Vec::new());
        assert!(matches!(connection.next_event(&mut input), Ok(Some(Event::StartOk(_)))));
        assert_eq!(connection.next_event(&mut input), Ok(None));
        connection.secure(b"more?", &mut Vec::new());
        let exception = connection.next_event(&mut input).expect_err("tune-ok instead of secure-ok");
        assert_eq!((exception.code(), exception.method()), (ReplyCode::ChannelError, ConnectionTuneOk::ID));
    }

    #[test]
    fn a_login_may_take_several_rounds() {
        let mut connection = Connection::new(Limits::default());
        let mut out = Vec::new();
        let said = [HEADER, &start_ok()].concat();
        let mut input = &said[..];
        connection.next_event(&mut input).unwrap();
        connection.start(RawTable::EMPTY, "X", &mut out);
        connection.next_event(&mut input).unwrap();
        for round in [&b"1"[..], b"2"] {
            connection.secure(round, &mut out);
            let secure_ok = on(0, ConnectionSecureOk { response: round });
            let event = connection.next_event(&mut &secure_ok[..]).unwrap();
            assert!(matches!(event, Some(Event::SecureOk(answer)) if answer.response == round));
        }
        connection.tune(&mut out);
        assert_eq!(connection.phase(), Phase::ExpectTuneOk);
    }

    #[test]
    fn methods_out_of_turn_are_channel_errors_with_their_ids() {
        assert_eq!(refused(running(), &open()), (504, 10, 40));
        assert_eq!(refused(running(), &tune_ok()), (504, 10, 31));
        assert_eq!(refused(running(), &start_ok()), (504, 10, 11));
        assert_eq!(refused(running(), &on(0, ConnectionCloseOk {})), (504, 10, 51));
        assert_eq!(refused(after(&[HEADER]), &open()), (504, 10, 40));
        assert_eq!(refused(after(&[HEADER, &start_ok()]), &open()), (504, 10, 40));
        assert_eq!(refused(after(&[HEADER]), &on(0, ConnectionUpdateSecret::default())), (504, 10, 70));
    }

    #[test]
    fn methods_of_channels_do_not_belong_on_channel_0() {
        for connection in [running(), after(&[HEADER])] {
            assert_eq!(refused(connection, &on(0, QueueDeclare::default())), (504, 50, 10));
        }
        assert_eq!(refused(running(), &on(0, ChannelOpen::default())), (504, 20, 10));
    }

    #[test]
    fn methods_of_servers_are_commands_no_client_may_give() {
        assert_eq!(refused(running(), &on(0, ConnectionStart::default())), (504, 10, 10));
        assert_eq!(refused(running(), &on(1, ConnectionStart::default())), (504, 10, 10));
        assert_eq!(refused(running(), b"\x01\0\0\0\0\0\x04\0\x0a\0\x63\xce"), (503, 10, 99));
    }

    #[test]
    fn frames_of_channels_before_the_connection_is_open_are_unexpected() {
        for connection in
            [after(&[HEADER]), after(&[HEADER, &start_ok()]), after(&[HEADER, &start_ok(), &tune_ok()])]
        {
            assert_eq!(refused(connection, &on(1, ChannelOpen::default())), (505, 0, 0));
        }
    }

    #[test]
    fn content_and_odd_heartbeats_on_channel_0_are_refused() {
        assert_eq!(refused(running(), b"\x02\0\0\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\0\0\0\xce"), (505, 0, 0));
        assert_eq!(refused(running(), b"\x03\0\0\0\0\0\x01x\xce"), (505, 0, 0));
        assert_eq!(refused(running(), b"\x08\0\x01\0\0\0\0\xce"), (505, 0, 0));
        assert_eq!(refused(running(), b"\x08\0\0\0\0\0\x01x\xce"), (501, 0, 0));
        assert_eq!(say(&mut running(), &HEARTBEAT), Ok(vec![Event::Heartbeat]));
    }

    #[test]
    fn limits_out_of_range_are_not_allowed() {
        for (channel_max, frame_max) in
            [(2047, 131_073), (2047, 0), (2047, 1), (2047, 100), (0, 131_072), (2048, 4096)]
        {
            let tune_ok = on(0, ConnectionTuneOk { channel_max, frame_max, heartbeat: 60 });
            assert_eq!(refused(after(&[HEADER, &start_ok()]), &tune_ok), (530, 10, 31));
        }
    }

    #[test]
    fn the_agreed_limits_are_in_force_after_tune_ok() {
        let publish = on(1, BasicPublish::default());
        let header = b"\x02\0\x01\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\x01\0\0\0\0\xce";
        let body_head = b"\x03\0\x01\0\0\x10\x01";
        let mut connection = running();
        let said = [&on(1, ChannelOpen::default()), &publish, &header[..], body_head].concat();
        let exception = say(&mut connection, &said).expect_err("4097 bytes where 4096 were agreed");
        assert_eq!(exception.code(), ReplyCode::FrameError);
        assert_eq!(refused(running(), &on(101, ChannelOpen::default())), (530, 0, 0));
    }

    #[test]
    fn the_first_frames_may_have_8192_bytes() {
        let start_ok = |size: usize| {
            let mut properties = TableBuilder::new();
            properties.put("token", &*"x".repeat(size));
            on(
                0,
                ConnectionStartOk { client_properties: properties.as_table().unwrap(), ..Default::default() },
            )
        };
        let overhead = start_ok(0).len() - frame::FRAME_OVERHEAD;
        let mut connection = after(&[HEADER]);
        assert_eq!(say(&mut connection, &start_ok(8192 - overhead)).map(|events| events.len()), Ok(1));
        let mut connection = after(&[HEADER]);
        let too_large = start_ok(8193 - overhead);
        let exception =
            say(&mut connection, &too_large[..frame::FRAME_HEAD]).expect_err("refused by its size alone");
        assert_eq!(exception.code(), ReplyCode::FrameError);
        assert!(connection.lost_sync());
    }

    #[test]
    fn a_stranger_may_send_64_kib_and_no_more() {
        let mut connection = after(&[HEADER]);
        let heartbeats = HEARTBEAT.repeat(8192);
        assert_eq!(say(&mut connection, &heartbeats).map(|events| events.len()), Ok(8192));
        assert_eq!(refused(connection, &HEARTBEAT), (506, 0, 0));
        assert!(say(&mut running(), &HEARTBEAT.repeat(10_000)).is_ok(), "later there is no such budget");
    }

    #[test]
    fn a_client_may_close_at_any_time_and_is_not_heard_after_that() {
        let close = on(0, ConnectionClose { reply_code: 200, ..Default::default() });
        for mut connection in [
            after(&[HEADER]),
            after(&[HEADER, &start_ok()]),
            after(&[HEADER, &start_ok(), &tune_ok()]),
            running(),
        ] {
            let said = [&close[..], b"whatever"].concat();
            let events = say(&mut connection, &said).unwrap();
            assert!(matches!(events[..], [Event::Close(_)]));
            assert_eq!(connection.phase(), Phase::OwesCloseOk);
            let mut out = Vec::new();
            assert!(!connection.close(&Exception::new(ReplyCode::ConnectionForced, "too late"), &mut out));
            connection.close_ok(&mut out);
            assert_eq!(out, on(0, ConnectionCloseOk {}));
            assert_eq!(connection.phase(), Phase::Closed);
        }
    }

    #[test]
    fn after_our_close_everything_but_its_answer_is_ignored() {
        let mut connection = running();
        say(&mut connection, &on(1, ChannelOpen::default())).unwrap();
        assert!(connection.is_open(1));
        let mut out = Vec::new();
        let forced = Exception::new(ReplyCode::ConnectionForced, "an operator said so");
        assert!(connection.close(&forced, &mut out));
        assert_eq!(out, on(0, forced.to_connection_close()));
        assert!(!connection.close(&forced, &mut out) && !connection.is_open(1));
        assert!(!connection.close_channel(1, &forced, &mut out) && !connection.close_channel_ok(1, &mut out));
        let said = [
            &on(1, BasicPublish::default())[..],
            b"\x03\0\x09\0\0\0\x01x\xce",
            &HEARTBEAT,
            &on(0, QueueDeclare::default()),
            b"\x01\0\0\0\0\0\x04\0\x0a\0\x63\xce",
            &on(0, ConnectionClose::default()),
        ]
        .concat();
        let events = say(&mut connection, &said).unwrap();
        assert_eq!(events, [Event::Close(ConnectionClose::default())], "both closed at once");
        connection.close_ok(&mut out);
        assert_eq!(connection.phase(), Phase::Closing, "the answer to ours is still to come");
        assert_eq!(say(&mut connection, &on(0, ConnectionCloseOk {})), Ok(vec![Event::CloseOk]));
        assert_eq!(connection.phase(), Phase::Closed);
        assert_eq!(say(&mut connection, &HEARTBEAT), Ok(vec![]));
    }

    #[test]
    fn after_an_error_nothing_is_read_until_the_client_was_told() {
        let mut connection = running();
        let said = [on(0, QueueDeclare::default()), on(0, ConnectionCloseOk {})].concat();
        let mut input = &said[..];
        let exception = connection.next_event(&mut input).expect_err("wrong channel");
        let left = input.len();
        assert_eq!((connection.next_event(&mut input), input.len()), (Ok(None), left));
        assert_eq!(connection.missing(), 0);
        assert!(connection.close(&exception, &mut Vec::new()));
        assert_eq!(connection.next_event(&mut input), Ok(Some(Event::CloseOk)));
    }

    #[test]
    fn once_the_stream_can_not_be_cut_nothing_in_it_is_believed() {
        let mut connection = running();
        let exception = say(&mut connection, b"AMQP\0\0\x09\x01").expect_err("no frame");
        assert_eq!(exception.code(), ReplyCode::FrameError);
        assert!(connection.lost_sync() && connection.close(&exception, &mut Vec::new()));
        assert_eq!(say(&mut connection, &on(0, ConnectionCloseOk {})), Ok(vec![]));
        assert_eq!(connection.phase(), Phase::Closing);
    }

    #[test]
    fn before_connection_start_there_is_no_way_to_say_why() {
        let forced = Exception::new(ReplyCode::ConnectionForced, "shutting down");
        let mut connection = Connection::new(Limits::default());
        let mut out = Vec::new();
        assert!(!connection.close(&forced, &mut out));
        assert_eq!((connection.phase(), out.len()), (Phase::Closed, 0));
    }

    #[test]
    fn a_channel_is_closed_by_either_side_and_opened_again() {
        let mut connection = running();
        let mut out = Vec::new();
        let not_found = Exception::new(ReplyCode::NotFound, "no exchange 'x'").during(BasicPublish::ID);
        assert!(!connection.close_channel(1, &not_found, &mut out), "not open yet");
        say(&mut connection, &on(1, ChannelOpen::default())).unwrap();
        assert!(connection.close_channel(1, &not_found, &mut out));
        assert_eq!(out, on(1, not_found.to_channel_close()));
        say(&mut connection, &on(1, ChannelCloseOk {})).unwrap();
        say(&mut connection, &on(1, ChannelOpen::default())).unwrap();
        let said = [on(1, ChannelClose::default()), on(1, ChannelOpen::default())].concat();
        let mut input = &said[..];
        assert!(matches!(connection.next_event(&mut input), Ok(Some(Event::ChannelClose { .. }))));
        let left = input.len();
        assert_eq!((connection.next_event(&mut input), input.len()), (Ok(None), left));
        assert_eq!(connection.missing(), 0, "the answer to the close comes first");
        out.clear();
        assert!(connection.close_channel_ok(1, &mut out) && !connection.close_channel_ok(1, &mut out));
        assert_eq!(out, on(1, ChannelCloseOk {}));
        assert!(!connection.is_open(1));
        assert_eq!(connection.next_event(&mut input), Ok(Some(Event::ChannelOpen { channel: 1 })));
    }

    #[test]
    fn a_secret_is_renewed_on_a_running_connection() {
        let update = ConnectionUpdateSecret { new_secret: b"token", reason: "expires" };
        assert_eq!(say(&mut running(), &on(0, update)), Ok(vec![Event::UpdateSecret(update)]));
    }

    #[test]
    fn capabilities_are_declared_by_a_true_in_the_nested_table() {
        let mut properties = TableBuilder::new();
        properties.put("basic.nack", true).put_table("capabilities", |capabilities| {
            capabilities
                .put("connection.blocked", true)
                .put("publisher_confirms", false)
                .put("basic.nack", 1_i32);
        });
        let table = properties.as_table().unwrap();
        assert!(declares(table, "connection.blocked"));
        assert!(
            !declares(table, "publisher_confirms") && !declares(table, "basic.nack") && !declares(table, "x")
        );
        assert!(!declares(RawTable::EMPTY, "connection.blocked"));
    }

    #[test]
    #[should_panic(expected = "OwesVerdict")]
    fn paying_what_is_not_owed_is_our_own_mistake() {
        Connection::new(Limits::default()).tune(&mut Vec::new());
    }
}
