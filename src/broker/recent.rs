//! The last sends of producers that name their messages (ADR 16).
//!
//! Owns: which send made which messages, whose it was, and whether its answer has certainly left. Promises: at most
//! [`limits::RECENT_SENDS`] of them, none older than [`limits::RECENT_SEND_MS`] of log time; equal on every replica.
//! Does not know: what stands in a message, who is connected, the clock.

use std::collections::{BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::api::{Offset, Position, QueueUid};
use super::core::Map;
use super::record::{Cursor, Malformed};
use super::state::Enqueued;
use super::topology::Owner;
use crate::limits;

/// Sends of one object in a checkpoint.
const CHUNK: u64 = 256;
const SETTLED: u8 = 1;
const REUSED: u8 = 2;
const BY_GUEST: u8 = 4;
const LOST: u8 = 8;

/// A send as its record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendKey {
    /// Of topic and unique key.
    pub(crate) key: u64,
    /// The producer's connection.
    pub(crate) owner: Owner,
    /// Messages of it; 0: it repeats the last send of that key, and stands for it from now on.
    pub(crate) messages: u32,
}

impl SendKey {
    /// Behind the record's head.
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        buf.put_u64_le(self.key);
        buf.put_u64_le(self.owner.session);
        buf.put_u64_le(self.owner.connection);
        buf.put_u32_le(self.messages);
        buf.put_u32_le(0);
    }

    /// As [`SendKey::put`] wrote it.
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let key = cursor.u64()?;
        let owner = Owner { session: cursor.u64()?, connection: cursor.u64()? };
        Ok(Self { key, owner, messages: cursor.u32()? })
    }
}

/// A send that is in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) key: u64,
    pub(crate) owner: Owner,
    /// Of its first message; the others follow.
    pub(crate) queue: QueueUid,
    pub(crate) offset: Offset,
    /// Of its first message, and where that was written: what waited may have left its queue when the retry comes.
    pub(crate) position: Position,
    pub(crate) place: (Position, u32, u32),
    pub(crate) messages: u32,
    /// Batch in which it, or its repetition, was decided.
    pub(crate) term: u64,
    pub(crate) ordinal: u64,
    pub(crate) log_time: u64,
    /// Its answer has left.
    pub(crate) settled: bool,
    /// There was one with that key before: its program uses keys more than once.
    pub(crate) reused: bool,
    /// Its connection was gone before its answer had left.
    pub(crate) lost: bool,
    /// Its connection was not at the node that led.
    pub(crate) by_guest: bool,
}

impl Sent {
    fn put(&self, buf: &mut BytesMut) {
        for value in [
            self.key,
            self.owner.session,
            self.owner.connection,
            self.queue,
            self.offset,
            self.position,
            self.place.0,
            self.term,
            self.ordinal,
            self.log_time,
        ] {
            buf.put_u64_le(value);
        }
        buf.put_u32_le(self.place.1);
        buf.put_u32_le(self.place.2);
        buf.put_u32_le(self.messages);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        buf.put_u8(
            flag(self.settled, SETTLED)
                | flag(self.reused, REUSED)
                | flag(self.by_guest, BY_GUEST)
                | flag(self.lost, LOST),
        );
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let key = cursor.u64()?;
        let owner = Owner { session: cursor.u64()?, connection: cursor.u64()? };
        let (queue, offset) = (cursor.u64()?, cursor.u64()?);
        let (position, batch) = (cursor.u64()?, cursor.u64()?);
        let (term, ordinal, log_time) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let place = (batch, cursor.u32()?, cursor.u32()?);
        let (messages, flags) = (cursor.u32()?, cursor.u8()?);
        let (settled, reused) = (flags & SETTLED != 0, flags & REUSED != 0);
        let (by_guest, lost) = (flags & BY_GUEST != 0, flags & LOST != 0);
        Ok(Self {
            key,
            owner,
            queue,
            offset,
            position,
            place,
            messages,
            term,
            ordinal,
            log_time,
            settled,
            reused,
            by_guest,
            lost,
        })
    }
}

/// Where something is decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decided {
    pub(crate) term: u64,
    pub(crate) ordinal: u64,
    pub(crate) log_time: u64,
    /// Session of the node that led.
    pub(crate) session: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// The first one has number `first`.
    sends: VecDeque<Sent>,
    first: u64,
    /// Number of the last send of each key.
    by_key: Map<u64, u64>,
    /// All sends of this term before that number are settled.
    settled: u64,
    /// Likewise: all that were decided before that batch of the term.
    pub(crate) settled_before: u64,
    /// Chunks that differ from the last checkpoint.
    changed: BTreeSet<u64>,
}

impl Recent {
    /// The last send of that key.
    pub(crate) fn last_of(&self, key: u64) -> Option<&Sent> {
        self.at(*self.by_key.get(&key)?)
    }

    /// The last send of all.
    pub(crate) fn last(&self) -> Option<&Sent> {
        self.sends.back()
    }

    fn at(&self, number: u64) -> Option<&Sent> {
        self.sends.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn next(&self) -> u64 {
        self.first + self.sends.len() as u64
    }

    /// A send's first message is in its queue.
    pub(crate) fn enter(
        &mut self,
        send: &SendKey,
        first: &Enqueued,
        place: (Position, u32, u32),
        by: &Decided,
    ) {
        self.push(Sent {
            key: send.key,
            owner: send.owner,
            queue: first.queue,
            offset: first.offset,
            position: first.position,
            place,
            messages: send.messages,
            term: by.term,
            ordinal: by.ordinal,
            log_time: by.log_time,
            settled: false,
            reused: self.by_key.contains_key(&send.key),
            lost: false,
            by_guest: send.owner.session != by.session,
        });
    }

    /// A send was repeated: it has another owner, who waits for its answer now. `None`: it is forgotten.
    pub(crate) fn repeat(&mut self, send: &SendKey, by: &Decided) -> Option<Sent> {
        let before = *self.last_of(send.key)?;
        let again = Sent {
            owner: send.owner,
            term: by.term,
            ordinal: by.ordinal,
            log_time: by.log_time,
            settled: false,
            lost: false,
            by_guest: send.owner.session != by.session,
            ..before
        };
        self.push(again);
        Some(again)
    }

    fn push(&mut self, sent: Sent) {
        let number = self.next();
        self.by_key.insert(sent.key, number);
        self.sends.push_back(sent);
        self.changed.insert(number / CHUNK);
        if self.sends.len() > limits::RECENT_SENDS {
            self.forget_first();
        }
    }

    /// The answers of all that this term decided before batch `ordinal` have left, but for those of connections that are gone.
    pub(crate) fn settle(&mut self, term: u64, ordinal: u64, gone: &[Owner]) {
        self.settled_before = self.settled_before.max(ordinal);
        self.settled = self.settled.max(self.first);
        while let Some(sent) =
            usize::try_from(self.settled - self.first).ok().and_then(|place| self.sends.get_mut(place))
            && sent.term == term
            && sent.ordinal < ordinal
        {
            sent.lost = gone.contains(&sent.owner);
            sent.settled = !sent.lost;
            self.changed.insert(self.settled / CHUNK);
            self.settled += 1;
        }
    }

    /// Another term begins: what is not settled stays so.
    pub(crate) fn begin_term(&mut self) {
        self.settled = self.next();
        self.settled_before = 0;
    }

    /// Time went on.
    pub(crate) fn forget_until(&mut self, log_time: u64) {
        while self.sends.front().is_some_and(|s| s.log_time + limits::RECENT_SEND_MS < log_time) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(sent) = self.sends.pop_front() else { return };
        if self.by_key.get(&sent.key) == Some(&self.first) {
            self.by_key.remove(&sent.key);
        }
        self.changed.insert(self.first / CHUNK);
        self.first += 1;
    }

    /// A checkpoint begins: chunks that changed, and what stands in them now; `None`: nothing.
    pub(crate) fn checkpoint(&mut self) -> Vec<(u64, Option<Bytes>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|chunk| (chunk, self.chunk(chunk))).collect()
    }

    fn chunk(&self, chunk: u64) -> Option<Bytes> {
        let numbers = (chunk * CHUNK).max(self.first)..((chunk + 1) * CHUNK).min(self.next());
        let mut buf = BytesMut::new();
        buf.put_u64_le(numbers.start);
        let head = buf.len();
        numbers.filter_map(|number| self.at(number)).for_each(|sent| sent.put(&mut buf));
        (buf.len() > head).then(|| buf.freeze())
    }

    /// A chunk from a checkpoint; they come in order.
    pub(crate) fn load(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(value, 0);
        let first = cursor.u64()?;
        if self.sends.is_empty() {
            self.first = first;
        } else if first != self.next() {
            return Err(Malformed { at: 0, what: "sends of the checkpoint do not adjoin" });
        }
        while cursor.at() < value.len() {
            let sent = Sent::read(&mut cursor)?;
            self.by_key.insert(sent.key, self.next());
            self.sends.push_back(sent);
        }
        Ok(())
    }

    /// All is loaded; that is the term.
    pub(crate) fn loaded(&mut self, term: u64) {
        let open = self
            .sends
            .iter()
            .rev()
            .take_while(|sent| sent.term == term && !sent.settled && !sent.lost)
            .count();
        self.settled = self.next() - open as u64;
        let last = self.sends.iter().rev().nth(open).filter(|sent| sent.term == term);
        self.settled_before = last.map_or(0, |sent| sent.ordinal + 1);
    }

    /// All of it.
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        buf.put_u64_le(self.first);
        self.sends.iter().for_each(|sent| sent.put(buf));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: u64, connection: u64) -> SendKey {
        SendKey { key, owner: Owner { session: 1, connection }, messages: 1 }
    }

    const PLACE: (Position, u32, u32) = (4096, 96, 400);

    fn to(offset: Offset) -> Enqueued {
        Enqueued { queue: 5, offset, position: 4200 + offset, deadline: 0, priority: 0, body: 0 }
    }

    fn at(ordinal: u64, log_time: u64) -> Decided {
        Decided { term: 1, ordinal, log_time, session: 1 }
    }

    #[test]
    fn a_key_that_comes_again_is_reused_and_a_repetition_is_not() {
        let mut recent = Recent::default();
        recent.enter(&key(7, 1), &to(0), PLACE, &at(0, 10));
        assert!(recent.repeat(&key(8, 2), &at(1, 10)).is_none());
        let again = recent.repeat(&key(7, 2), &at(1, 10)).unwrap();
        assert_eq!((again.queue, again.offset, again.owner.connection, again.reused), (5, 0, 2, false));
        recent.enter(&key(7, 2), &to(1), PLACE, &at(2, 10));
        assert!(recent.last_of(7).unwrap().reused);
    }

    #[test]
    fn what_a_term_left_open_is_never_settled_by_the_next() {
        let mut recent = Recent::default();
        recent.enter(&key(1, 1), &to(0), PLACE, &at(0, 10));
        recent.enter(&key(2, 1), &to(1), PLACE, &at(3, 10));
        recent.settle(1, 3, &[]);
        assert!(recent.last_of(1).unwrap().settled && !recent.last_of(2).unwrap().settled);
        recent.begin_term();
        recent.enter(&key(3, 1), &to(2), PLACE, &Decided { term: 2, ..at(0, 10) });
        recent.settle(2, 1, &[]);
        assert!(!recent.last_of(2).unwrap().settled && recent.last_of(3).unwrap().settled);
    }

    #[test]
    fn the_oldest_go_by_count_and_by_age() {
        let mut recent = Recent::default();
        for n in 0..=limits::RECENT_SENDS as u64 {
            recent.enter(&key(n, 1), &to(n), PLACE, &at(0, n));
        }
        assert!(recent.last_of(0).is_none() && recent.last_of(1).is_some());
        recent.forget_until(limits::RECENT_SEND_MS + 3);
        assert!(recent.last_of(2).is_none() && recent.last_of(3).is_some());
    }

    #[test]
    fn checkpoints_that_follow_each_other_hold_what_is_there() {
        let (mut recent, mut kept) = (Recent::default(), std::collections::BTreeMap::new());
        for round in 0..40_u64 {
            for n in 0..100 {
                recent.enter(&key(round * 70 + n, n), &to(n), PLACE, &at(round, round * 4_000));
            }
            let gone = Owner { session: 1, connection: round };
            recent.settle(1, round, &[gone]);
            recent.forget_until(round * 4_000);
            for (chunk, value) in recent.checkpoint() {
                match value {
                    Some(value) => kept.insert(chunk, value),
                    None => kept.remove(&chunk),
                };
            }
            let mut loaded = Recent::default();
            kept.values().for_each(|value| loaded.load(value).unwrap());
            loaded.loaded(1);
            assert_eq!((loaded.first, &loaded.sends), (recent.first, &recent.sends));
            assert_eq!((loaded.settled, &loaded.by_key), (recent.settled, &recent.by_key));
        }
    }
}
