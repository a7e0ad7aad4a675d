//! The model's topic: messages stay at their offsets, each group's cursor moves over them.
//!
//! Owns: one topic's state. Promises: a group that restarts continues where its stored offset stands.
//! Does not know: events, time.

use crate::history::event::{Msg, Name};

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Name,
    pub(super) parts: Vec<Vec<Msg>>,
    pub(super) cursors: Vec<Cursor>,
}

/// One group's way through one part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    pub(super) group: Name,
    pub(super) consumer: Name,
    pub(super) part: u16,
    pub(super) next: u64,
    pub(super) stored: u64,
}

impl Topic {
    /// Stores a message; its offset.
    pub(super) fn put(&mut self, part: u16, msg: Msg) -> u64 {
        let messages = &mut self.parts[usize::from(part)];
        messages.push(msg);
        messages.len() as u64 - 1
    }

    /// Moves a cursor over its next message.
    pub(super) fn pull(&mut self, cursor: usize) -> Option<(u64, Msg)> {
        let cursor = &mut self.cursors[cursor];
        let at = usize::try_from(cursor.next).expect("below a length");
        let msg = *self.parts[usize::from(cursor.part)].get(at)?;
        cursor.next += 1;
        Some((cursor.next - 1, msg))
    }

    /// All groups restart from their stored offsets.
    pub(super) fn crash(&mut self) {
        for cursor in &mut self.cursors {
            cursor.next = cursor.stored;
        }
    }
}
