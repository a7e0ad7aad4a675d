//! Whose turn it is: which reader of a queue gets the next message.
//!
//! Owns: the order of a queue's readers. Promises: readers of one priority take turns, a higher one with room comes first; of a queue with a
//! single active consumer one reader gets everything until it goes, then the one that came next. Does not know: messages, windows' limits.

use super::api::QueueUid;
use super::core::Core;
use super::reader::ReaderKey;
use crate::limits;

impl Core {
    /// The next reader that may get a message.
    pub(crate) fn next_reader(&mut self, uid: QueueUid) -> Option<ReaderKey> {
        let runtime = self.runtimes.get(&uid)?;
        if let Some(active) = self.active_reader(uid) {
            return self.may_get(active).then_some(active);
        }
        if runtime.ranked {
            let free = runtime.readers.iter().filter(|key| self.may_get(**key));
            let rank = |key: &ReaderKey| self.readers.get(key).map_or(0, |reader| reader.priority);
            // The last of the greatest, seen from behind: the first in turn.
            let next = free.rev().max_by_key(|key| rank(key)).copied()?;
            let readers = &mut self.runtimes.get_mut(&uid)?.readers;
            readers.retain(|key| *key != next);
            readers.push_back(next);
            return Some(next);
        }
        for _ in 0..runtime.readers.len() {
            let readers = &mut self.runtimes.get_mut(&uid)?.readers;
            let key = *readers.front()?;
            readers.rotate_left(1);
            if self.may_get(key) {
                return Some(key);
            }
        }
        None
    }

    fn may_get(&self, key: ReaderKey) -> bool {
        let (Some(reader), Some(connection)) = (self.readers.get(&key), self.connections.get(&key.0)) else {
            return false;
        };
        let window = connection.windows.get(&reader.channel);
        // As in RabbitMQ: what needs no ack does not count in the channel's window, and waits for it all the same.
        let channel_room = window.is_none_or(|(limit, held)| *limit == 0 || *held < u32::from(*limit));
        reader.has_room() && channel_room && connection.outstanding < limits::DELIVERY_CREDIT
    }

    /// The one reader that gets everything, where the queue's arguments say so.
    pub(crate) fn active_reader(&self, uid: QueueUid) -> Option<ReaderKey> {
        let single = self.limited.get(&uid).is_some_and(|limited| limited.limits.single_active);
        if single { self.runtimes.get(&uid)?.active } else { None }
    }

    /// A reader was attached to its queue, or taken off it.
    pub(crate) fn readers_changed(&mut self, uid: QueueUid) {
        let Some(runtime) = self.runtimes.get(&uid) else { return };
        let rank = |key: &ReaderKey| self.readers.get(key).map_or(0, |reader| reader.priority);
        let ranked = runtime.readers.iter().any(|key| rank(key) != 0);
        let stays = runtime.active.filter(|active| runtime.readers.contains(active));
        // Their order is that of their coming while nobody takes turns.
        let active = stays.or_else(|| runtime.readers.iter().rev().max_by_key(|key| rank(key)).copied());
        if let Some(runtime) = self.runtimes.get_mut(&uid) {
            (runtime.ranked, runtime.active) = (ranked, active);
        }
    }
}
