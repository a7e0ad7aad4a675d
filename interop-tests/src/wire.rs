//! One AMQP connection of a test: blocking, one channel, on nothing but a socket (or TLS over it) and the codec.
//!
//! Owns: the socket, what was read and not yet heard, what was said and not yet sent. Promises: whatever waits, waits
//! for a bounded time; a message is heard whole or not at all; what is said leaves with [`Client::flush`] only, so that
//! many messages share one write. Does not know: histories, retries, what a test wants.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dassie_amqp::client::{Handshake, Incoming, Login, next_incoming};
use dassie_amqp::content::{self, Properties};
use dassie_amqp::method::{
    BasicAck, BasicConsume, BasicGet, BasicNack, BasicPublish, BasicQos, ChannelClose, ChannelOpen,
    ConfirmSelect, ExchangeDeclare, Method, QueueBind, QueueDeclare, QueueDelete, TxCommit, TxSelect,
};
use dassie_amqp::table::TableBuilder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The only channel.
const CHANNEL: u16 = 1;
/// How long an answer may take before the connection counts as gone.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes asked of the socket at once.
const READ_SIZE: usize = 256 * 1024;

/// Why a connection is of no more use.
#[derive(Debug)]
pub enum Error {
    /// The socket failed, was closed, or an answer did not come in time.
    Gone(io::Error),
    /// The server closed channel or connection: reply code and text.
    Refused(u16, String),
    /// The server broke the protocol.
    Broken(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(error) => write!(f, "the connection is gone: {error}"),
            Self::Refused(code, text) => write!(f, "the server closed: {code} {text}"),
            Self::Broken(what) => write!(f, "the server broke the protocol: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// A message that arrived.
#[derive(Debug)]
pub struct Message<'a> {
    /// The delivery tag.
    pub tag: u64,
    /// Whether it says that it was delivered before.
    pub redelivered: bool,
    /// Its properties, as they came.
    pub properties: Properties<'a>,
    /// Its body; of one frame, the bytes where they were read.
    pub body: Cow<'a, [u8]>,
}

/// What the server said.
#[derive(Debug)]
pub enum Heard<'a> {
    /// Publishes are confirmed: this one, or all up to it.
    Confirmed {
        /// The number of the publish on this channel, from 1.
        tag: u64,
        /// Whether all before it are meant, too.
        multiple: bool,
    },
    /// Publishes were not taken.
    Refused {
        /// The number of the publish on this channel, from 1.
        tag: u64,
        /// Whether all before it are meant, too.
        multiple: bool,
    },
    /// A message for a consumer.
    Delivered(Message<'a>),
    /// The message that was asked for.
    Got(Message<'a>),
    /// There is no message to get.
    Nothing,
    /// The server takes no publishes for now, and why.
    Blocked(&'a str),
    /// It takes them again.
    Unblocked,
    /// The answer to any other request.
    Answer,
}

/// How a queue or exchange is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives its server.
    Durable,
    /// Lives as long as its server.
    Transient,
}

/// Whom a client with TLS trusts: the authorities of a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn trust(authorities: &Path) -> Result<Arc<ClientConfig>, String> {
    let said = |error: &dyn fmt::Display| format!("{}: {error}", authorities.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authorities).map_err(|error| said(&error))? {
        roots.add(certificate.map_err(|error| said(&error))?).map_err(|error| said(&error))?;
    }
    let versions = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions();
    let config = versions.map_err(|error| said(&error))?.with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A connection with one open channel.
pub struct Client {
    stream: Stream,
    timeout: Duration,
    input: Vec<u8>,
    /// Where in `input` the first byte lies that was not heard yet.
    heard: usize,
    chunk: Box<[u8]>,
    out: Vec<u8>,
    frame_max: u32,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects as `guest`, and opens the channel.
    ///
    /// # Errors
    /// There is no server, or it refuses.
    pub fn connect(server: SocketAddr) -> Result<Self, Error> {
        Self::connect_by(server, None)
    }

    /// As [`Client::connect`], with TLS if it is said whom to trust.
    ///
    /// # Errors
    /// There is no server, it is not to be trusted, or it refuses.
    pub fn connect_by(server: SocketAddr, trusted: Option<&Arc<ClientConfig>>) -> Result<Self, Error> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let stream = match trusted {
            None => Stream::Plain(stream),
            Some(config) => {
                let tls = ClientConnection::new(Arc::clone(config), server.ip().into());
                let tls = tls.map_err(|error| Error::Broken(error.to_string()))?;
                Stream::Tls(Box::new(StreamOwned::new(tls, stream)))
            }
        };
        let chunk = vec![0; READ_SIZE].into_boxed_slice();
        let (input, out) = (Vec::new(), Vec::new());
        let mut client = Self { stream, timeout: PATIENCE, input, heard: 0, chunk, out, frame_max: 0 };
        client.shake_hands()?;
        ChannelOpen::default().encode_frame(CHANNEL, &mut client.out);
        client.answer()?;
        Ok(client)
    }

    /// The port that it connected from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.stream.socket().local_addr().map_or(0, |address| address.port())
    }

    fn shake_hands(&mut self) -> Result<(), Error> {
        let mut properties = TableBuilder::new();
        properties.put_table("capabilities", |table| {
            table.put("connection.blocked", true);
        });
        let client_properties = properties.as_table().map_err(|error| Error::Broken(error.to_string()))?;
        let mut handshake = Handshake::new(Login { client_properties, ..Login::guest() }, &mut self.out);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.flush()?;
            if !self.receive(PATIENCE)? || Instant::now() > deadline {
                return Err(Error::Gone(io::ErrorKind::TimedOut.into()));
            }
            let mut rest = &self.input[self.heard..];
            let tuning = handshake.advance(&mut rest, &mut self.out);
            self.heard = self.input.len() - rest.len();
            if let Some(tuning) = tuning.map_err(|error| Error::Broken(error.to_string()))? {
                self.frame_max = tuning.frame_max;
                return Ok(());
            }
        }
    }

    /// Says that `exchange` shall exist, a fanout.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn declare_fanout(&mut self, exchange: &str) -> Result<(), Error> {
        ExchangeDeclare { exchange, kind: "fanout", durable: true, ..Default::default() }
            .encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Says that `queue` shall exist.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn declare_queue(&mut self, queue: &str, durability: Durability) -> Result<(), Error> {
        let durable = durability == Durability::Durable;
        QueueDeclare { queue, durable, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Asks whether `queue` exists.
    ///
    /// # Errors
    /// It does not, or the server is gone.
    pub fn find_queue(&mut self, queue: &str) -> Result<(), Error> {
        QueueDeclare { queue, passive: true, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Deletes `queue` with all that is in it.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn delete_queue(&mut self, queue: &str) -> Result<(), Error> {
        QueueDelete { queue, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Binds `queue` to `exchange` with `routing_key`.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn bind(&mut self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), Error> {
        QueueBind { queue, exchange, routing_key, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Asks for confirms.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn confirm(&mut self) -> Result<(), Error> {
        ConfirmSelect::default().encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// From now on publishes and acknowledgements wait for [`Client::commit`].
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn select_transactions(&mut self) -> Result<(), Error> {
        TxSelect::default().encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Commits what was said; gives the tag of the last message that was delivered before the answer.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn commit(&mut self) -> Result<Option<u64>, Error> {
        TxCommit::default().encode_frame(CHANNEL, &mut self.out);
        self.answer()
    }

    /// Consumes from `queue`, with so many messages at most under way (0 for any number); without a number, delivery
    /// settles.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn consume(&mut self, queue: &str, prefetch: Option<u16>) -> Result<(), Error> {
        if let Some(prefetch_count) = prefetch {
            BasicQos { prefetch_count, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
            self.answer()?;
        }
        BasicConsume { queue, no_ack: prefetch.is_none(), ..Default::default() }
            .encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Says a message.
    pub fn publish(&mut self, exchange: &str, routing_key: &str, properties: Properties<'_>, body: &[u8]) {
        BasicPublish { exchange, routing_key, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
        content::encode(CHANNEL, properties, body, self.frame_max, &mut self.out);
    }

    /// Says that a delivery is done, or all up to it.
    pub fn ack(&mut self, delivery_tag: u64, multiple: bool) {
        BasicAck { delivery_tag, multiple }.encode_frame(CHANNEL, &mut self.out);
    }

    /// Gives a delivery back to its queue.
    pub fn requeue(&mut self, delivery_tag: u64) {
        BasicNack { delivery_tag, multiple: false, requeue: true }.encode_frame(CHANNEL, &mut self.out);
    }

    /// Asks for one message, to be acknowledged.
    pub fn get(&mut self, queue: &str) {
        BasicGet { queue, ..Default::default() }.encode_frame(CHANNEL, &mut self.out);
    }

    /// Closes the channel and waits until the server has done so; what still arrives is dropped.
    ///
    /// # Errors
    /// The server is gone.
    pub fn close(mut self) -> Result<(), Error> {
        ChannelClose { reply_code: 200, reply_text: "bye", ..Default::default() }
            .encode_frame(CHANNEL, &mut self.out);
        self.answer().map(drop)
    }

    /// Bytes said and not sent yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Sends what was said.
    ///
    /// # Errors
    /// The server is gone, or does not read.
    pub fn flush(&mut self) -> Result<(), Error> {
        let sent = self.stream.write_all(&self.out).and_then(|()| self.stream.flush());
        self.out.clear();
        Ok(sent?)
    }

    /// Reads what the server sent, waiting for it at most so long; false if there was nothing.
    ///
    /// # Errors
    /// The server is gone.
    pub fn receive(&mut self, wait: Duration) -> Result<bool, Error> {
        if self.timeout != wait {
            self.stream.socket().set_read_timeout(Some(wait))?;
            self.timeout = wait;
        }
        self.read()
    }

    /// From now on nothing waits: [`Client::poll`] takes the place of [`Client::flush`] and [`Client::receive`], so that
    /// one thread can serve several connections.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn set_polled(&mut self) -> Result<(), Error> {
        Ok(self.stream.socket().set_nonblocking(true)?)
    }

    /// Sends what goes and reads what is there; false if nothing moved.
    ///
    /// # Errors
    /// The server is gone.
    pub fn poll(&mut self) -> Result<bool, Error> {
        let sent = match self.stream.write(&self.out) {
            Ok(sent) => sent,
            Err(error) if is_pause(&error) => 0,
            Err(error) => return Err(error.into()),
        };
        self.out.drain(..sent);
        Ok(self.read()? || sent > 0)
    }

    fn read(&mut self) -> Result<bool, Error> {
        self.input.drain(..self.heard);
        self.heard = 0;
        match self.stream.read(&mut self.chunk) {
            Ok(0) => Err(Error::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                self.input.extend_from_slice(&self.chunk[..length]);
                Ok(true)
            }
            Err(error) if is_pause(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next thing of what was read; none until more is read.
    ///
    /// # Errors
    /// The server closed, or broke the protocol.
    pub fn hear(&mut self) -> Result<Option<Heard<'_>>, Error> {
        let Self { input, heard, frame_max, .. } = self;
        let mut rest = &input[*heard..];
        let thing = hear(&mut rest, *frame_max)?;
        if thing.is_some() {
            *heard = input.len() - rest.len();
        }
        Ok(thing)
    }

    /// Sends what was said and waits for an answer that is not about messages; gives the tag of the last message that was
    /// delivered before it.
    fn answer(&mut self) -> Result<Option<u64>, Error> {
        self.flush()?;
        let deadline = Instant::now() + PATIENCE;
        let mut delivered = None;
        while Instant::now() < deadline {
            // What was heard before may hold the answer already.
            while let Some(thing) = self.hear()? {
                match thing {
                    Heard::Answer => return Ok(delivered),
                    Heard::Delivered(message) => delivered = Some(message.tag),
                    _ => {}
                }
            }
            self.receive(Duration::from_secs(1))?;
        }
        Err(Error::Gone(io::ErrorKind::TimedOut.into()))
    }
}

/// Whether the socket works and only has nothing to do.
pub(crate) fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Takes one whole thing off the front of `input`.
fn hear<'a>(input: &mut &'a [u8], frame_max: u32) -> Result<Option<Heard<'a>>, Error> {
    loop {
        let method = match next(input, frame_max)? {
            None => return Ok(None),
            Some(Incoming::Heartbeat) => continue,
            Some(Incoming::Method { method, .. }) => method,
            Some(other) => return Err(Error::Broken(format!("{other:?} without its method"))),
        };
        return Ok(match method {
            Method::BasicAck(BasicAck { delivery_tag: tag, multiple }) => {
                Some(Heard::Confirmed { tag, multiple })
            }
            Method::BasicNack(BasicNack { delivery_tag: tag, multiple, .. }) => {
                Some(Heard::Refused { tag, multiple })
            }
            Method::BasicGetEmpty(_) => Some(Heard::Nothing),
            Method::BasicDeliver(deliver) => {
                message(input, frame_max, deliver.delivery_tag, deliver.redelivered)?.map(Heard::Delivered)
            }
            Method::BasicGetOk(got) => {
                message(input, frame_max, got.delivery_tag, got.redelivered)?.map(Heard::Got)
            }
            Method::ChannelClose(close) => {
                return Err(Error::Refused(close.reply_code, close.reply_text.to_owned()));
            }
            Method::ConnectionClose(close) => {
                return Err(Error::Refused(close.reply_code, close.reply_text.to_owned()));
            }
            Method::BasicCancel(cancel) => {
                return Err(Error::Broken(format!("consumer {:?} was cancelled", cancel.consumer_tag)));
            }
            Method::BasicReturn(_) => return Err(Error::Broken("a message was returned".to_owned())),
            Method::ConnectionBlocked(blocked) => Some(Heard::Blocked(blocked.reason)),
            Method::ConnectionUnblocked(_) => Some(Heard::Unblocked),
            _ => Some(Heard::Answer),
        });
    }
}

/// The content after its method; none if it is not all there.
fn message<'a>(
    input: &mut &'a [u8],
    frame_max: u32,
    tag: u64,
    redelivered: bool,
) -> Result<Option<Message<'a>>, Error> {
    let header = match next(input, frame_max)? {
        None => return Ok(None),
        Some(Incoming::Header { header, .. }) => header,
        Some(other) => return Err(Error::Broken(format!("{other:?} instead of a content header"))),
    };
    let mut body = Cow::Borrowed(&[][..]);
    while (body.len() as u64) < header.body_size {
        match next(input, frame_max)? {
            None => return Ok(None),
            Some(Incoming::Body { bytes, .. }) if body.is_empty() => body = Cow::Borrowed(bytes),
            Some(Incoming::Body { bytes, .. }) => body.to_mut().extend_from_slice(bytes),
            Some(other) => return Err(Error::Broken(format!("{other:?} instead of a body"))),
        }
    }
    Ok(Some(Message { tag, redelivered, properties: header.properties, body }))
}

fn next<'a>(input: &mut &'a [u8], frame_max: u32) -> Result<Option<Incoming<'a>>, Error> {
    next_incoming(input, frame_max).map_err(|error| Error::Broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::method::BasicDeliver;

    #[test]
    fn a_message_of_several_frames_is_heard_when_it_is_whole() {
        let body: Vec<u8> = (0..=u8::MAX).cycle().take(10_000).collect();
        let mut bytes = Vec::new();
        BasicDeliver { delivery_tag: 7, redelivered: true, ..Default::default() }
            .encode_frame(CHANNEL, &mut bytes);
        content::encode(CHANNEL, Properties::EMPTY, &body, 4096, &mut bytes);
        for length in 0..bytes.len() {
            assert!(hear(&mut &bytes[..length], 4096).unwrap().is_none(), "cut to {length}");
        }
        let mut input = &bytes[..];
        let Some(Heard::Delivered(message)) = hear(&mut input, 4096).unwrap() else { panic!("no message") };
        assert_eq!((message.tag, message.redelivered, &*message.body), (7, true, &body[..]));
        assert!(input.is_empty());
    }

    #[test]
    fn a_close_is_quoted() {
        let mut bytes = Vec::new();
        ChannelClose { reply_code: 404, reply_text: "no queue", ..Default::default() }
            .encode_frame(CHANNEL, &mut bytes);
        let error = hear(&mut &bytes[..], 4096).unwrap_err();
        assert_eq!(error.to_string(), "the server closed: 404 no queue");
    }
}
