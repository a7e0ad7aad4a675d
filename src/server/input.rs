//! What was read from one socket and not yet understood.
//!
//! Owns: the bytes that were read. Promises: each read has room for all that waits in the socket; what was understood holds no
//! memory, and of what was not little more than its length. Thousands of connections depend on it.
//! Does not know: frames, sockets.

use std::io;
use std::ops::Deref;

use super::spare;
use super::transport::Transport;

/// See the module. It reads as the bytes that are there.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// So many of them are understood.
    at: usize,
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

impl Input {
    /// Reads once. `missing`: bytes that the thing at the front still lacks, as far as it may be trusted.
    ///
    /// # Errors
    /// The socket's, would block among them.
    pub(super) fn read(&mut self, stream: &mut impl Transport, missing: usize) -> io::Result<usize> {
        self.make_room(missing);
        let read = stream.try_read_buf(&mut self.bytes);
        if read.is_err() {
            // A look at a socket that had nothing.
            self.advance(0);
        }
        read
    }

    fn make_room(&mut self, missing: usize) {
        if self.bytes.capacity() < spare::ROOM {
            let mut buffer = spare::take();
            buffer.extend_from_slice(self);
            (self.bytes, self.at) = (buffer, 0);
        }
        if self.bytes.capacity() - self.bytes.len() < spare::ROOM / 4 {
            self.bytes.drain(..std::mem::take(&mut self.at));
            self.bytes.reserve(missing.max(spare::ROOM / 4));
        }
    }

    /// So many bytes at the front are understood.
    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
        spare::settle(&mut self.bytes, &mut self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_holds_no_memory_and_a_rest_little() {
        let mut input = Input::default();
        for _ in 0..100 {
            input.make_room(0);
            assert!(input.bytes.capacity() - input.len() >= spare::ROOM / 4);
            input.bytes.extend_from_slice(&[7; 1_100]);
            input.advance(1_000);
        }
        assert_eq!(input.len(), 10_000);
        assert!(input.bytes.capacity() < spare::ROOM);
        input.advance(10_000);
        assert_eq!(input.bytes.capacity(), 0);
    }

    #[test]
    fn a_large_thing_gets_the_room_that_it_lacks() {
        let mut input = Input::default();
        input.make_room(0);
        input.bytes.extend_from_slice(&[7; spare::ROOM]);
        input.advance(8);
        input.make_room(1_000_000);
        assert!(input.bytes.capacity() - input.len() >= 1_000_000);
        assert_eq!(input.len(), spare::ROOM - 8);
    }
}
