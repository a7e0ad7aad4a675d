//! Queue locks of ordered consumption: which client of a group alone reads a message queue, and until when.
//!
//! Owns: the table of locks and its rules. Promises: at most one client of a group holds a queue at any log time; what a record
//! does depends on the table and the record alone; locks past their deadline are dropped by the next lock record, so the
//! table follows living clients; a clone costs nothing (the leader decides on one with everything in flight applied).
//! Does not know: connections, topics, the clock: times come from the log.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::api::{ConnectionId, LockQueues, Op, QueueUid, Refusal, Reply, Verb};
use super::core::{Core, Work};
use super::record::{Cursor, Kind, Malformed, put_text};
use crate::limits;

/// What is locked: a queue, for one group.
pub(crate) type Place = (QueueUid, Arc<str>);

/// Who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) client: Arc<str>,
    /// Log time from which on it counts no more, ms since 1970.
    pub(crate) until: u64,
}

/// A lock record: `until` 0 gives the lock up, if `client` holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockChange {
    pub(crate) queue: QueueUid,
    pub(crate) until: u64,
    pub(crate) group: Arc<str>,
    pub(crate) client: Arc<str>,
}

impl LockChange {
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        buf.put_u64_le(self.queue);
        buf.put_u64_le(self.until);
        put_text(buf, &self.group);
        put_text(buf, &self.client);
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let (queue, until) = (cursor.u64()?, cursor.u64()?);
        Ok(Self { queue, until, group: cursor.text()?.into(), client: cursor.text()?.into() })
    }

    /// Bytes of its record at most.
    fn size(&self) -> usize {
        48 + self.group.len() + self.client.len()
    }

    /// The record of a lock as checkpoints keep it.
    pub(crate) fn of((queue, group): &Place, held: &Held) -> Bytes {
        let mut buf = BytesMut::new();
        let (group, client) = (Arc::clone(group), Arc::clone(&held.client));
        Self { queue: *queue, until: held.until, group, client }.put(&mut buf);
        buf.freeze()
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locks {
    held: RedBlackTreeMapSync<Place, Held>,
    /// The same by deadline.
    ends: RedBlackTreeSetSync<(u64, Place)>,
}

impl Locks {
    /// Does what a record says, at that log time; returns every place that may have changed.
    pub(crate) fn apply(&mut self, change: &LockChange, now: u64) -> Vec<Place> {
        let mut touched = Vec::new();
        while let Some((_, place)) = self.ends.first().filter(|(until, _)| *until <= now).cloned() {
            self.remove(&place);
            touched.push(place);
        }
        let place = (change.queue, Arc::clone(&change.group));
        if change.until > 0 {
            self.set(place.clone(), Held { client: Arc::clone(&change.client), until: change.until });
        } else if self.held.get(&place).is_some_and(|held| held.client == change.client) {
            self.remove(&place);
        }
        touched.push(place);
        touched
    }

    /// Puts a lock in, as a checkpoint kept it.
    pub(crate) fn set(&mut self, place: Place, held: Held) {
        self.remove(&place);
        self.ends.insert_mut((held.until, place.clone()));
        self.held.insert_mut(place, held);
    }

    fn remove(&mut self, place: &Place) {
        if let Some(held) = self.held.get(place) {
            self.ends.remove_mut(&(held.until, place.clone()));
            self.held.remove_mut(place);
        }
    }

    /// A queue is gone; returns the places that went with it.
    pub(crate) fn forget(&mut self, queue: QueueUid) -> Vec<Place> {
        let from: Place = (queue, "".into());
        let gone: Vec<Place> =
            self.held.range(from..).map(|(place, _)| place).take_while(|p| p.0 == queue).cloned().collect();
        gone.iter().for_each(|place| self.remove(place));
        gone
    }

    pub(crate) fn get(&self, place: &Place) -> Option<&Held> {
        self.held.get(place)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Place, &Held)> {
        self.held.iter()
    }

    /// May `client` lock this, or does it hold it already?
    fn is_free_for(&self, place: &Place, client: &str, now: u64) -> bool {
        self.held.get(place).is_none_or(|held| &*held.client == client || held.until <= now)
    }

    fn is_held_by(&self, place: &Place, client: &str, now: u64) -> bool {
        self.held.get(place).is_some_and(|held| &*held.client == client && held.until > now)
    }
}

impl Core {
    /// A group's client wants queues for itself, or gives them back.
    pub(crate) fn lock_queues(&mut self, id: ConnectionId, verb: Verb) {
        let changes = match self.lock_changes(&verb.op) {
            Ok(changes) => changes,
            Err(refusal) => return self.reply(id, verb.request, Err(refusal)),
        };
        if changes.is_empty() {
            let reply = self.locked(&verb.op);
            return self.reply(id, verb.request, Ok(reply));
        }
        let sequence = self.number(Work::Verb { connection: id, verb, weight: 0 });
        self.write_locks(sequence, &changes);
    }

    /// Writes what the verb comes to now; false: there is nothing to write.
    pub(crate) fn redo_locks(&mut self, sequence: u64, op: &Op) -> bool {
        let changes = self.lock_changes(op).unwrap_or_default();
        self.write_locks(sequence, &changes);
        !changes.is_empty()
    }

    /// Decides on the applied locks with those in flight. Another client's lock refuses silently: what was not got is missing
    /// in the answer.
    fn lock_changes(&self, op: &Op) -> Result<Vec<LockChange>, Refusal> {
        let (Op::LockQueues(wish) | Op::UnlockQueues(wish)) = op else { return Ok(Vec::new()) };
        if wish.queues.len() > limits::LOCKED_QUEUES_MAX {
            let text = format!("at most {} queues are locked at once", limits::LOCKED_QUEUES_MAX);
            return Err(Refusal::Limit(text));
        }
        let Some(overlay) = self.overlay.as_ref() else { return Ok(Vec::new()) };
        let now = self.now();
        let locks = matches!(op, Op::LockQueues(_));
        let until = if locks { now + limits::QUEUE_LOCK_MS } else { 0 };
        let mut changes = Vec::with_capacity(wish.queues.len());
        for (topic, queue_id) in &wish.queues {
            let topic = overlay.topology.topic(topic);
            let Some(queue) = topic.and_then(|topic| topic.queues.get(*queue_id as usize)).copied() else {
                continue;
            };
            let place = (queue, Arc::clone(&wish.group));
            let writes = if locks {
                overlay.locks.is_free_for(&place, &wish.client, now)
            } else {
                overlay.locks.get(&place).is_some_and(|held| held.client == wish.client)
            };
            if writes {
                let (group, client) = (Arc::clone(&wish.group), Arc::clone(&wish.client));
                changes.push(LockChange { queue, until, group, client });
            }
        }
        Ok(changes)
    }

    fn write_locks(&mut self, sequence: u64, changes: &[LockChange]) {
        // One verb's records stand in one batch.
        self.make_room(changes.iter().map(LockChange::size).sum());
        let now = self.now();
        for change in changes {
            self.record(sequence, Kind::QueueLock, 0, |buf, _| change.put(buf));
            if let Some(overlay) = self.overlay.as_mut() {
                overlay.locks.apply(change, now);
            }
        }
    }

    /// What to answer, from what is applied.
    pub(crate) fn locked(&self, op: &Op) -> Reply {
        let Op::LockQueues(LockQueues { group, client, queues }) = op else { return Reply::Ok };
        let held = |(topic, queue_id): &&(Arc<str>, u32)| {
            self.topic_queue(topic, *queue_id).is_some_and(|queue| {
                self.state.locks.is_held_by(&(queue, Arc::clone(group)), client, self.state.log_time)
            })
        };
        Reply::Locked(queues.iter().filter(held).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(queue: u64, until: u64, client: &str) -> LockChange {
        LockChange { queue, until, group: "G".into(), client: client.into() }
    }

    #[test]
    fn a_lock_is_its_clients_until_it_is_given_up_or_its_time_has_come() {
        let mut locks = Locks::default();
        let place: Place = (1, "G".into());
        locks.apply(&change(1, 60, "a"), 0);
        assert!(locks.is_free_for(&place, "a", 59) && !locks.is_free_for(&place, "b", 59));
        assert!(locks.is_free_for(&place, "b", 60) && !locks.is_held_by(&place, "a", 60));
        locks.apply(&change(1, 0, "b"), 10);
        assert!(locks.is_held_by(&place, "a", 10), "nobody else can give it up");
        locks.apply(&change(1, 0, "a"), 10);
        assert!(locks.is_free_for(&place, "b", 10) && locks.iter().count() == 0);
    }

    #[test]
    fn what_is_past_its_deadline_goes_with_the_next_record() {
        let mut locks = Locks::default();
        for queue in 0..100 {
            locks.apply(&change(queue, 60 + queue, "a"), 0);
        }
        let touched = locks.apply(&change(500, 300, "b"), 200);
        assert_eq!((touched.len(), locks.iter().count(), locks.ends.size()), (101, 1, 1));
    }

    #[test]
    fn the_locks_of_a_gone_queue_go_for_every_group() {
        let mut locks = Locks::default();
        for group in ["A", "B"] {
            for queue in [1, 2, 3] {
                locks.apply(&LockChange { group: group.into(), ..change(queue, 60, "a") }, 0);
            }
        }
        assert_eq!(locks.forget(2).len(), 2);
        assert_eq!(locks.iter().map(|(place, _)| place.0).collect::<Vec<_>>(), [1, 1, 3, 3]);
        assert_eq!(locks.ends.size(), 4);
    }

    #[test]
    fn a_record_reads_back() {
        let mut buf = BytesMut::new();
        change(7, 9, "10.0.0.1@5").put(&mut buf);
        assert_eq!(LockChange::read(&mut Cursor::new(&buf, 0)).unwrap(), change(7, 9, "10.0.0.1@5"));
        for cut in 0..buf.len() {
            assert!(LockChange::read(&mut Cursor::new(&buf[..cut], 0)).is_err());
        }
    }
}
