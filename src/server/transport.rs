//! A socket as a connection's task uses it: plain TCP, or TLS over it.
//!
//! Owns: the one difference between the two. Promises: over plain TCP every call is the socket's own and costs nothing more; over
//! TLS a call does what it says to the plaintext, takes no more memory than one read and one write buffer of rustls, and tells a
//! peer that breaks TLS so before it ends.
//! Does not know: protocols, certificates; handshakes are `tls`'s.

use std::future::Future;
use std::io::{self, BufRead, IoSlice, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConnection;
use tokio::io::{AsyncWriteExt, Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limits;

/// Ciphertext taken from the socket at once: one record of TLS. Bytes.
const CHUNK: usize = 16 * 1024;
/// Plaintext given by one read, about. Bytes.
const READ_MAX: usize = 64 * 1024;

/// What is known of an encrypted connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Version and cipher suite, e.g. `TLSv1.3 TLS13_AES_256_GCM_SHA384`.
    pub(super) session: String,
    /// The peer's certificate, if it showed one; it is verified then.
    pub(super) client: Option<ClientCertificate>,
}

/// Who the verified certificate of a client says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    /// The distinguished name, as RFC 4514 writes it.
    pub(super) subject: String,
    /// The login that `tls.external_user_from` finds in it.
    pub(super) user: Option<Arc<str>>,
}

/// See the module. Calls that `try` never wait: they answer `WouldBlock`.
pub(super) trait Transport: Send + Sync + 'static {
    /// Waits until reading or writing is worth a try. Cancel safe.
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send;
    /// Appends what arrived. 0: the peer says no more.
    fn try_read_buf(&mut self, into: &mut Vec<u8>) -> io::Result<usize>;
    /// Takes a part of the slices, at least one byte.
    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Brings on its way what was taken and did not fit into the socket. That it does not fit now either is no error.
    fn try_flush(&mut self) -> io::Result<()>;
    /// Nothing that was taken waits for room in the socket.
    fn is_flushed(&self) -> bool;
    /// Says that no more will be said.
    fn shutdown(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// The address that the peer came to.
    fn local_addr(&self) -> io::Result<SocketAddr>;
    /// `None`: not encrypted.
    fn facts(&self) -> Option<&Facts>;

    /// Writes everything and waits until the socket has it.
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            let mut rest = bytes;
            while !rest.is_empty() || !self.is_flushed() {
                let written = match rest {
                    [] => self.try_flush().map(|()| 0),
                    rest => self.try_write_vectored(&[IoSlice::new(rest)]),
                };
                match written {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if !rest.is_empty() || !self.is_flushed() {
                    self.ready(Interest::WRITABLE).await?;
                }
            }
            Ok(())
        }
    }
}

impl Transport for TcpStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send {
        Self::ready(self, interest)
    }

    fn try_read_buf(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        Self::try_read_buf(self, into)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, slices)
    }

    fn try_flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        true
    }

    fn shutdown(&mut self) -> impl Future<Output = io::Result<()>> + Send {
        AsyncWriteExt::shutdown(self)
    }

    fn facts(&self) -> Option<&Facts> {
        None
    }
}

/// TLS over a socket. Made by `tls` when the handshake is done.
pub(super) struct Encrypted {
    stream: TcpStream,
    tls: Box<ServerConnection>,
    facts: Facts,
    /// Reading is worth a try whatever the socket says: the peer said behind its half of the handshake what rustls holds already,
    /// or that it will say no more.
    prompt: bool,
    /// The peer said that it will say no more.
    ended: bool,
}

impl Encrypted {
    /// Of a connection whose handshake is done.
    pub(super) fn new(stream: TcpStream, tls: Box<ServerConnection>, facts: Facts) -> Self {
        Self { stream, tls, facts, prompt: true, ended: false }
    }

    /// Decrypts what came from the socket, appends the plaintext.
    fn take(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() && !self.ended {
            self.tls.read_tls(&mut bytes)?;
            self.decrypt(into)?;
        }
        Ok(())
    }

    /// Appends the plaintext of what rustls holds already.
    fn decrypt(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let state = self.tls.process_new_packets().map_err(|error| {
            // Best effort: the alert that says why.
            let _ = flush(&mut self.tls, &self.stream);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        self.ended = state.peer_has_closed();
        let mut reader = self.tls.reader();
        while let Ok(plain @ [_, ..]) = reader.fill_buf() {
            let count = plain.len();
            into.extend_from_slice(plain);
            reader.consume(count);
        }
        Ok(())
    }
}

impl Transport for Encrypted {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        if self.prompt && interest.is_readable() {
            return Ok(Ready::READABLE);
        }
        self.stream.ready(interest).await
    }

    fn try_read_buf(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let before = into.len();
        if self.prompt {
            self.decrypt(into)?;
        }
        let mut chunk = [0; CHUNK];
        while !self.ended && into.len() - before < READ_MAX {
            match self.stream.try_read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.take(&chunk[..count], into)?;
                    if count < CHUNK && into.len() > before {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && into.len() > before => break,
                Err(error) => {
                    self.prompt = false;
                    return Err(error);
                }
            }
        }
        self.prompt = self.ended;
        Ok(into.len() - before)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        flush(&mut self.tls, &self.stream)?;
        let taken = self.tls.writer().write_vectored(slices)?;
        self.try_flush()?;
        Ok(taken)
    }

    fn try_flush(&mut self) -> io::Result<()> {
        match flush(&mut self.tls, &self.stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            done => done,
        }
    }

    fn is_flushed(&self) -> bool {
        !self.tls.wants_write()
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        self.tls.send_close_notify();
        // Who does not read this in time does not need it.
        let patience = Duration::from_millis(limits::TLS_GOODBYE_MS);
        let _ = timeout(patience, self.write_all(&[])).await;
        AsyncWriteExt::shutdown(&mut self.stream).await
    }

    fn facts(&self) -> Option<&Facts> {
        Some(&self.facts)
    }
}

/// Writes what TLS has ready; `WouldBlock` when not everything fits.
pub(super) fn flush(tls: &mut ServerConnection, stream: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        if tls.write_tls(&mut Socket(stream))? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// The socket as rustls writes to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
