//! What was read from one socket and not yet understood.
//!
//! Owns: the read buffer and its size. Promises: room follows what arrives: a few KiB for who says little, more for who fills it,
//! and again less a while after the burst; who has been silent costs nothing. Thousands of connections depend on it.
//! Does not know: frames, sockets.

use std::io;
use std::ops::Deref;

use bytes::{Buf, BytesMut};

use super::transport::Transport;

/// Room for one read at first. Bytes.
const ROOM_MIN: usize = 4 * 1024;
/// The most that one read is given room for, unless one thing is larger. Bytes.
const ROOM_MAX: usize = 64 * 1024;

/// See the module. It reads as the bytes that are there.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: BytesMut,
    /// Room for one read; 0 is [`ROOM_MIN`].
    room: usize,
    /// Largest read since the last look.
    largest: usize,
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Input {
    /// Reads once. `missing`: bytes that the thing at the front still lacks, as far as it may be trusted.
    ///
    /// # Errors
    /// The socket's, would block among them.
    pub(super) fn read(&mut self, stream: &mut impl Transport, missing: usize) -> io::Result<usize> {
        self.make_room(missing);
        let spare = self.bytes.capacity() - self.bytes.len();
        let count = stream.try_read_buf(&mut self.bytes)?;
        self.heard(count, spare);
        Ok(count)
    }

    fn make_room(&mut self, missing: usize) {
        let room = self.room.max(ROOM_MIN);
        if self.bytes.capacity() - self.bytes.len() < room / 4 {
            self.bytes.reserve(room.max(missing));
        }
    }

    fn heard(&mut self, count: usize, spare: usize) {
        let room = self.room.max(ROOM_MIN);
        self.largest = self.largest.max(count);
        if count >= spare && count >= room / 2 {
            self.room = (room * 4).min(ROOM_MAX);
        }
    }

    /// So many bytes at the front are understood.
    pub(super) fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    /// Looks, once in a while, whether so much room is still needed.
    pub(super) fn rest(&mut self) {
        let largest = std::mem::take(&mut self.largest);
        if largest < self.room / 8 {
            self.room = ROOM_MIN;
        }
        if self.bytes.is_empty() && (largest == 0 || self.bytes.capacity() > self.room.max(ROOM_MIN)) {
            self.bytes = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrives(input: &mut Input, count: usize) {
        input.make_room(0);
        let spare = input.bytes.capacity() - input.bytes.len();
        let count = count.min(spare);
        input.bytes.extend_from_slice(&vec![7; count]);
        input.heard(count, spare);
    }

    #[test]
    fn who_says_little_keeps_a_small_buffer() {
        let mut input = Input::default();
        for _ in 0..1_000 {
            arrives(&mut input, 1_100);
            input.advance(1_100);
            assert!(input.bytes.capacity() <= ROOM_MIN);
        }
    }

    #[test]
    fn room_follows_a_burst_and_goes_after_it() {
        let mut input = Input::default();
        for _ in 0..10 {
            arrives(&mut input, usize::MAX);
            input.advance(input.len());
        }
        assert_eq!(input.room, ROOM_MAX);
        input.rest();
        assert_eq!(input.room, ROOM_MAX, "the burst was just now");
        arrives(&mut input, 100);
        input.rest();
        assert_eq!((input.room, input.len()), (ROOM_MIN, 100), "what was not understood stays");
        input.advance(100);
        input.rest();
        assert_eq!(input.bytes.capacity(), 0);
    }
}
