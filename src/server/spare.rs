//! Buffers that nobody uses at the moment.
//!
//! Owns: one shelf of empty buffers a thread. Promises: who has nothing to read or to write holds no buffer, so that thousands of
//! connections cost no more than those that are busy; what lies on a shelf is bounded. Does not know: what buffers are for.

use std::cell::RefCell;

/// Room of a buffer at least. Bytes.
pub(super) const ROOM: usize = 64 * 1024;
/// One that grew beyond this is given back to the system. Bytes.
const LARGEST: usize = 4 * ROOM;
/// Buffers on a shelf at most.
const SHELF: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with at least [`ROOM`].
pub(super) fn take() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(ROOM))
}

/// A buffer whose content nobody needs any more.
pub(super) fn give(mut buffer: Vec<u8>) {
    if !(ROOM..=LARGEST).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|shelf| {
        if shelf.len() < SHELF {
            shelf.push(buffer);
        }
    });
}

/// Everything before `at` is done with. What is left stays, in memory of its own if that is much less: who waits with a little does
/// not hold much.
pub(super) fn settle(buffer: &mut Vec<u8>, at: &mut usize) {
    let left = buffer.len() - *at;
    if left * 4 <= buffer.capacity() {
        let rest = buffer[*at..].to_vec();
        give(std::mem::replace(buffer, rest));
        *at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_shelf() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn a_buffer_comes_back_empty_and_what_is_too_small_or_too_large_goes() {
        let mut buffer = take();
        buffer.extend_from_slice(b"secret");
        let at = buffer.as_ptr();
        give(buffer);
        give(Vec::with_capacity(ROOM - 1));
        give(Vec::with_capacity(LARGEST + 1));
        assert_eq!(on_the_shelf(), 1);
        let again = take();
        assert_eq!((again.len(), again.as_ptr()), (0, at));
        (0..2 * SHELF).for_each(|_| give(Vec::with_capacity(ROOM)));
        assert_eq!(on_the_shelf(), SHELF);
    }

    #[test]
    fn a_little_that_is_left_holds_little() {
        let (mut buffer, mut at) = (take(), ROOM);
        buffer.resize(ROOM, 1);
        buffer.extend_from_slice(b"end");
        settle(&mut buffer, &mut at);
        assert_eq!((&buffer[..], at, on_the_shelf()), (&b"end"[..], 0, 1));
        assert!(buffer.capacity() < 64);
        (buffer, at) = (take(), 1_000);
        buffer.resize(ROOM, 1);
        settle(&mut buffer, &mut at);
        assert_eq!((buffer.len() - at, on_the_shelf()), (ROOM - 1_000, 0));
        at = ROOM;
        settle(&mut buffer, &mut at);
        assert_eq!((buffer.capacity(), at, on_the_shelf()), (0, 0, 1));
    }
}
