//! What is to be written to one socket.
//!
//! Owns: encoded frames, and references to large bodies between them, in order.
//! Promises: small pieces are copied into one buffer, large ones ([`REFERENCE_FROM`] and up) never; one call writes everything in
//! one vectored system call if the socket takes it; a write that takes only a part goes on where it stopped.
//! Does not know: commands, tokio.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};

/// Pieces from this size on are referenced. Bytes.
const REFERENCE_FROM: usize = 8 * 1024;
/// Slices in one system call.
const SLICES: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Closed pieces, in order.
    pieces: VecDeque<Bytes>,
    /// Bytes of them.
    waiting: usize,
    /// What comes after them. Append freely.
    pub(super) tail: Vec<u8>,
}

impl Output {
    /// Appends a part of a body, by copy or by reference.
    pub(super) fn push(&mut self, part: &Bytes) {
        if part.len() < REFERENCE_FROM {
            self.tail.extend_from_slice(part);
        } else {
            self.close();
            self.waiting += part.len();
            self.pieces.push_back(part.clone());
        }
    }

    /// Everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn buffered(&self) -> usize {
        self.waiting + self.tail.len()
    }

    fn close(&mut self) {
        if !self.tail.is_empty() {
            self.waiting += self.tail.len();
            self.pieces.push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }

    /// Writes as much as `write` takes; an error (would block among them) leaves the rest for later.
    pub(super) fn write_to(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.close();
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let taken = write(&slices[..count])?;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(taken);
        }
        Ok(())
    }

    fn advance(&mut self, mut taken: usize) {
        self.waiting -= taken;
        while let Some(piece) = self.pieces.front_mut() {
            if taken < piece.len() {
                piece.advance(taken);
                return;
            }
            taken -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_in_order_however_little_the_socket_takes() {
        for most in [1, 3, 8_191, 100_000] {
            let mut output = Output::default();
            output.tail.extend_from_slice(b"head");
            output.push(&Bytes::from(vec![7; REFERENCE_FROM]));
            output.push(&Bytes::from_static(b"small"));
            output.tail.extend_from_slice(b"end");
            assert_eq!(output.buffered(), REFERENCE_FROM + 12);
            let mut seen = Vec::new();
            while !output.is_empty() {
                let mut calls = 0;
                let written = output.write_to(|slices| {
                    calls += 1;
                    if calls > 2 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    let part = &slices[0][..slices[0].len().min(most)];
                    seen.extend_from_slice(part);
                    Ok(part.len())
                });
                assert!(written.is_ok() || calls > 2);
            }
            let mut expected = b"head".to_vec();
            expected.extend_from_slice(&[7; REFERENCE_FROM]);
            expected.extend_from_slice(b"smallend");
            assert_eq!((seen, output.buffered()), (expected, 0));
        }
    }
}
