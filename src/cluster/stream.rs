//! A stream of frames to one peer, whatever carries it.
//!
//! Owns: how frames follow each other: a length (4 bytes, little-endian), then so many bytes. Promises: a frame longer than
//! [`limits::PEER_FRAME`] is refused before anything is allocated for it; `receive` is cancel safe, `send` is not.
//! Does not know: who the peer is (a handshake came before), what a frame says, sockets.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits;

/// What a connection between two nodes is for. Each purpose has a connection of its own, so that a copy of gigabytes never
/// stands before a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Purpose {
    /// Requests of the consensus library and their answers.
    Consensus = 1,
    /// Verbs of a follower's clients to the leader, and events back.
    Front = 2,
    /// A checkpoint and sealed segments for a node that is far behind.
    Copy = 3,
    /// Joining, leaving, asking who is who.
    Admin = 4,
}

impl Purpose {
    /// What a byte of a handshake means.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Consensus, Self::Front, Self::Copy, Self::Admin]
            .into_iter()
            .find(|purpose| *purpose as u8 == byte)
    }
}

/// Both directions of a stream of frames.
pub struct PeerStream {
    /// From the peer.
    pub reader: PeerReader,
    /// To the peer.
    pub writer: PeerWriter,
}

/// What comes from the peer.
pub struct PeerReader {
    inner: Box<dyn AsyncRead + Unpin + Send>,
    buffer: BytesMut,
}

/// What goes to the peer.
pub struct PeerWriter(Box<dyn AsyncWrite + Unpin + Send>);

impl PeerStream {
    /// Frames over these two halves.
    #[must_use]
    pub fn new(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let reader = PeerReader { inner: Box::new(reader), buffer: BytesMut::new() };
        PeerStream { reader, writer: PeerWriter(Box::new(writer)) }
    }
}

impl PeerReader {
    /// The next frame; `None` when the peer has ended the stream behind a whole one. Cancel safe.
    ///
    /// # Errors
    /// What the connection says; `InvalidData` for a frame that is too long, `UnexpectedEof` for one that is cut.
    pub async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                let cut = !self.buffer.is_empty();
                return if cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
        }
    }

    fn whole(&mut self) -> io::Result<Option<Bytes>> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if len > limits::PEER_FRAME {
            let reason = format!("a frame of {len} bytes, at most {} are allowed", limits::PEER_FRAME);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if self.buffer.len() < 4 + len {
            self.buffer.reserve(4 + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }
}

impl PeerWriter {
    /// Sends one frame made of these parts. Not cancel safe: a frame that was begun must be ended.
    ///
    /// # Errors
    /// What the connection says; `InvalidInput` for a frame that is too long, nothing is sent then.
    pub async fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let Some(head) = u32::try_from(len).ok().filter(|_| len <= limits::PEER_FRAME) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {len} bytes")));
        };
        let mut small = BytesMut::with_capacity(4 + len.min(16 << 10));
        small.extend_from_slice(&head.to_le_bytes());
        for part in parts {
            // Small parts share a write, large ones are not copied.
            if small.len() + part.len() <= 16 << 10 {
                small.extend_from_slice(part);
            } else {
                self.0.write_all(&small).await?;
                small.clear();
                self.0.write_all(part).await?;
            }
        }
        self.0.write_all(&small).await?;
        self.0.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (PeerStream, PeerStream) {
        let (a, b) = tokio::io::duplex(1 << 20);
        let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
        (PeerStream::new(ar, aw), PeerStream::new(br, bw))
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order() {
        let (mut a, mut b) = pair();
        let long = Bytes::from(vec![7; 100_000]);
        a.writer.send(&[Bytes::from_static(b"one")]).await.unwrap();
        a.writer.send(&[Bytes::from_static(b"t"), long.clone(), Bytes::from_static(b"wo")]).await.unwrap();
        a.writer.send(&[]).await.unwrap();
        drop(a);
        assert_eq!(b.reader.receive().await.unwrap().unwrap(), "one");
        assert_eq!(b.reader.receive().await.unwrap().unwrap().len(), 100_003);
        assert!(b.reader.receive().await.unwrap().unwrap().is_empty());
        assert!(b.reader.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_or_cut_is_refused() {
        let (a, mut b) = pair();
        let PeerWriter(mut raw) = a.writer;
        raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert_eq!(b.reader.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (a, mut b) = pair();
        let PeerWriter(mut raw) = a.writer;
        raw.write_all(&[9, 0, 0, 0, 1, 2]).await.unwrap();
        drop((raw, a.reader));
        assert_eq!(b.reader.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
