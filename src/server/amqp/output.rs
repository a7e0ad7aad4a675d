//! What is to be written to one socket.
//!
//! Owns: the bytes of encoded frames, and references to large bodies between them, in order.
//! Promises: small pieces are copied into one buffer, large ones ([`REFERENCE_FROM`] and up) never; one call writes everything in
//! one vectored system call if the socket takes it; a write that takes only a part goes on where it stopped; nothing to be written
//! holds no buffer.
//! Does not know: frames, tokio.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;

use bytes::Bytes;

use crate::server::spare;

/// Pieces from this size on are referenced. Bytes.
const REFERENCE_FROM: usize = 8 * 1024;
/// Slices in one system call.
const SLICES: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Encoded frames, without the referenced pieces.
    bytes: Vec<u8>,
    /// Referenced pieces and where in `bytes` they belong, ascending.
    large: VecDeque<(usize, Bytes)>,
    /// Of `bytes`, so much is written.
    written: usize,
    /// Of the first referenced piece, so much is written (only when `written` has reached its place).
    large_written: usize,
}

impl Output {
    /// Where encoded frames are appended.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = spare::take();
        }
        &mut self.bytes
    }

    /// All bytes, when nothing large is among them.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Appends a part of `bytes`, by copy or by reference.
    pub(super) fn push(&mut self, bytes: &Bytes, part: Range<usize>) {
        if part.len() < REFERENCE_FROM {
            self.bytes().extend_from_slice(&bytes[part]);
        } else {
            self.large.push_back((self.bytes.len(), bytes.slice(part)));
        }
    }

    /// Everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.written == self.bytes.len() && self.large.is_empty()
    }

    /// Bytes that wait in the buffer (referenced pieces are not ours and do not count).
    pub(super) fn buffered(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Writes as much as `write` takes; an error (would block among them) leaves the rest for later.
    pub(super) fn write_to(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.slices(&mut slices);
            match write(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.advance(taken),
                Err(error) => {
                    self.rest();
                    return Err(error);
                }
            }
        }
        self.rest();
        Ok(())
    }

    fn slices<'a>(&'a self, into: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut count, mut at, mut skip) = (0, self.written, self.large_written);
        for (place, piece) in self.large.iter().take(SLICES / 2 - 1) {
            if *place > at {
                into[count] = IoSlice::new(&self.bytes[at..*place]);
                count += 1;
                at = *place;
            }
            into[count] = IoSlice::new(&piece[skip..]);
            count += 1;
            skip = 0;
        }
        let end = self.large.get(SLICES / 2 - 1).map_or(self.bytes.len(), |(place, _)| *place);
        if end > at {
            into[count] = IoSlice::new(&self.bytes[at..end]);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut taken: usize) {
        while taken > 0 {
            let place = self.large.front().map_or(self.bytes.len(), |(place, _)| *place);
            let small = taken.min(place - self.written);
            self.written += small;
            taken -= small;
            let Some((_, piece)) = self.large.front().filter(|_| taken > 0) else { continue };
            let part = taken.min(piece.len() - self.large_written);
            self.large_written += part;
            taken -= part;
            if self.large_written == piece.len() {
                self.large.pop_front();
                self.large_written = 0;
            }
        }
    }

    /// Lets go of what is written. Places count from the buffer's begin.
    fn rest(&mut self) {
        if self.large.is_empty() {
            spare::settle(&mut self.bytes, &mut self.written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> (Output, Vec<u8>) {
        let mut output = Output::default();
        let mut expected = Vec::new();
        for n in 0..200_u8 {
            output.bytes().extend_from_slice(&[n; 5]);
            expected.extend_from_slice(&[n; 5]);
            let piece = Bytes::from(vec![n; if n % 3 == 0 { REFERENCE_FROM + usize::from(n) } else { 100 }]);
            output.push(&piece, 0..piece.len());
            expected.extend_from_slice(&piece);
        }
        output.bytes().push(0xce);
        expected.push(0xce);
        (output, expected)
    }

    #[test]
    fn everything_is_written_in_order_whatever_a_write_takes() {
        for step in [1_000, 7_777, 8_197, usize::MAX] {
            let (mut output, expected) = mixed();
            let mut seen = Vec::new();
            output
                .write_to(|slices| {
                    let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                    let taken = all.len().min(step);
                    seen.extend_from_slice(&all[..taken]);
                    Ok(taken)
                })
                .unwrap();
            assert!(seen == expected, "step {step}");
            assert!(output.is_empty() && output.buffered() == 0);
            assert_eq!(output.bytes.capacity(), 0);
        }
    }

    #[test]
    fn a_socket_that_is_full_keeps_the_rest_for_later() {
        let (mut output, expected) = mixed();
        let mut seen = Vec::new();
        let mut blocked = false;
        while !output.is_empty() {
            let result = output.write_to(|slices| {
                blocked = !blocked;
                if blocked {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let taken = slices[0].len().min(3_000);
                seen.extend_from_slice(&slices[0][..taken]);
                Ok(taken)
            });
            assert!(result.is_ok() || result.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
        }
        assert!(seen == expected);
    }
}
