//! One RocketMQ connection of a test: blocking, on nothing but a socket and the codec.
//!
//! Owns: the socket, what was read and not yet heard, what was said and not yet sent. Promises: whatever waits, waits
//! for a bounded time; what is said leaves with [`Remoting::flush`] only, so that many commands share one write.
//! Does not know: histories, retries, routes, what a test wants.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dassie_rocketmq::code::version;
use dassie_rocketmq::command::Fields;
use dassie_rocketmq::{Command, Head, HeaderCodec, Language, RequestCode, Split, encode, frame, split};

use crate::wire::{Error, is_pause};

/// How long an answer may take before the connection counts as gone.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes asked of the socket at once.
const READ_SIZE: usize = 256 * 1024;

/// A connection.
pub struct Remoting {
    stream: TcpStream,
    timeout: Duration,
    codec: HeaderCodec,
    input: Vec<u8>,
    /// Where in `input` the first byte lies that was not heard yet.
    heard: usize,
    chunk: Box<[u8]>,
    out: Vec<u8>,
    opaque: i32,
}

impl fmt::Debug for Remoting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remoting").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Remoting {
    /// Connects; headers are written with `codec`.
    ///
    /// # Errors
    /// There is no server.
    pub fn connect(server: SocketAddr, codec: HeaderCodec) -> Result<Self, Error> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let chunk = vec![0; READ_SIZE].into_boxed_slice();
        let (input, out) = (Vec::new(), Vec::new());
        Ok(Self { stream, timeout: PATIENCE, codec, input, heard: 0, chunk, out, opaque: 0 })
    }

    /// The port that it connected from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.stream.local_addr().map_or(0, |address| address.port())
    }

    /// Says a request; gives the number that its answer will have.
    ///
    /// # Errors
    /// It does not fit a frame.
    pub fn say(&mut self, code: RequestCode, fields: &impl Fields, body: &[u8]) -> Result<i32, Error> {
        let head = self.head(code);
        encode(&mut self.out, self.codec, &head, fields, body).map_err(unfit)?;
        Ok(head.opaque)
    }

    /// Says a request that is never answered.
    ///
    /// # Errors
    /// It does not fit a frame.
    pub fn say_one_way(&mut self, code: RequestCode, fields: &impl Fields, body: &[u8]) -> Result<(), Error> {
        let head = self.head(code).one_way();
        encode(&mut self.out, self.codec, &head, fields, body).map_err(unfit)
    }

    fn head(&mut self, code: RequestCode) -> Head<'static> {
        self.opaque += 1;
        Head::request(code, Language::Rust, version::V4_9_8, self.opaque)
    }

    /// Sends what was said.
    ///
    /// # Errors
    /// The server is gone, or does not read.
    pub fn flush(&mut self) -> Result<(), Error> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        Ok(sent?)
    }

    /// Reads what the server sent, waiting for it at most so long; false if there was nothing.
    ///
    /// # Errors
    /// The server is gone.
    pub fn receive(&mut self, wait: Duration) -> Result<bool, Error> {
        if self.timeout != wait {
            self.stream.set_read_timeout(Some(wait))?;
            self.timeout = wait;
        }
        self.read()
    }

    /// From now on nothing waits: [`Remoting::poll`] takes the place of [`Remoting::flush`] and [`Remoting::receive`], so that
    /// one thread can serve several connections.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn set_polled(&mut self) -> Result<(), Error> {
        Ok(self.stream.set_nonblocking(true)?)
    }

    /// Sends what goes and reads what is there; false if nothing moved.
    ///
    /// # Errors
    /// The server is gone.
    pub fn poll(&mut self) -> Result<bool, Error> {
        if !self.out.is_empty() {
            let sent = match self.stream.write(&self.out) {
                Ok(sent) => sent,
                Err(error) if is_pause(&error) => 0,
                Err(error) => return Err(error.into()),
            };
            self.out.drain(..sent);
            return Ok(self.read()? || sent > 0);
        }
        self.read()
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

    /// The next answer of what was read; none until more is read. Requests of the server are passed over.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn hear(&mut self) -> Result<Option<Command<'_>>, Error> {
        let Self { input, heard, .. } = self;
        loop {
            match next(input, heard)? {
                Some(command) if !command.head.is_response() => {}
                answer => return Ok(answer),
            }
        }
    }

    /// The next answer or request of the server, of what was read; none until more is read.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn hear_all(&mut self) -> Result<Option<Command<'_>>, Error> {
        next(&self.input, &mut self.heard)
    }

    /// Says a request, sends all that was said, and gives what `read` makes of its answer. Answers to others are lost.
    ///
    /// # Errors
    /// The server is gone, is silent, or broke the protocol.
    pub fn ask<T>(
        &mut self,
        code: RequestCode,
        fields: &impl Fields,
        body: &[u8],
        read: impl Fn(&Command<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let opaque = self.say(code, fields, body)?;
        self.flush()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            while let Some(answer) = self.hear()? {
                if answer.head.opaque == opaque {
                    return read(&answer);
                }
            }
            self.receive(Duration::from_secs(1))?;
        }
        Err(Error::Gone(io::ErrorKind::TimedOut.into()))
    }
}

fn next<'i>(input: &'i [u8], heard: &mut usize) -> Result<Option<Command<'i>>, Error> {
    let broken = |error: &dyn fmt::Display| Error::Broken(error.to_string());
    match split(&input[*heard..], frame::MAX_FRAME).map_err(|error| broken(&error))? {
        Split::Incomplete { .. } => Ok(None),
        Split::Frame { frame, consumed } => {
            *heard += consumed;
            Command::decode(&frame).map(Some).map_err(|error| broken(&error))
        }
    }
}

fn unfit(error: impl fmt::Display) -> Error {
    Error::Broken(format!("can not say it: {error}"))
}

/// What the server refused with.
#[must_use]
pub fn refusal(answer: &Command<'_>) -> Error {
    let code = u16::try_from(answer.head.code).unwrap_or(u16::MAX);
    Error::Refused(code, answer.head.remark.as_deref().unwrap_or_default().to_owned())
}
