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
//! Owns the order of frames: handshake, negotiation, channels, content, closing. Promises that an [`Event`] is only
//! yielded when it may happen, that bytes are checked before they are waited for, that nothing is allocated per message,
//! and that an error leaves the connection in a state where nothing but closing is possible. Does not know sockets,
//! deadlines (handshake, heartbeats, how long to wait for a close-ok) or who may log in.
//!
//! # Driving it
//!
//! Read from the socket into a buffer, hand the whole buffer to [`Connection::next_event`] until it has no more, drop what
//! was taken, write what was answered:
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
    Sender,
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
    /// `None` means that nothing more can be said now: either [`missing`](Self::missing) bytes are needed, or (if that is
    /// 0) the server must speak first. Call it again after either. Input that is to be ignored is taken silently.
    ///
    /// # Errors
    /// The client broke the protocol; always the connection's end. Owed: [`close`](Self::close). Nothing else will be read
    /// before that.
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
            *input = &input[frame.encoded_len()..];
            match self.accept(frame) {
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

    /// The least number of bytes that must arrive before [`next_event`](Self::next_event) can say more. 0 when it waits for
    /// the server instead: do not read from the socket then.
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

    /// Whether the client's bytes can no longer be understood, so that not even a close-ok will be recognised: after
    /// [`close`](Self::close), give the client a moment to read why, then drop the socket.
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

    /// Ends the connection: appends `connection.close` to `out`, after which everything but its answer is ignored.
    ///
    /// Whether it was written: not if the connection is closing or closed already, nor before `connection.start`, when a
    /// client could not understand it. In the last case the connection is closed without a word.
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

    /// Ends a channel: appends `channel.close` to `out`, after which everything but its answer is ignored there.
    ///
    /// Whether it was written: not if the channel is not open, which may well be when an outcome comes late.
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
    let is_ours = id.class == ConnectionStart::ID.class && method.sender() == Sender::Server;
    let code = if is_ours { ReplyCode::CommandInvalid } else { ReplyCode::ChannelError };
    Exception::new(code, format_args!("unexpected {id} on channel 0 in connection phase {phase:?}"))
        .during(id)
}
