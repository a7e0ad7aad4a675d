//! What is ready in a queue, where that is more than the end of its log: what came back, and the order of priorities.
//!
//! Owns: which offsets wait for a reader out of order, and what is known of each. Promises: the highest priority comes first, the oldest
//! of it before younger ones; what came back stands in its old place; `bytes` is the sum of what waits here. A new leader learns all of
//! it from the index, sizes from the messages.
//! Does not know: how arguments spell limits, who reads.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{Message, Offset, QueueKind, QueueUid};
use super::core::Core;
use super::message::{parse_reference, record_at};
use super::read::offsets;
use super::state::Enqueued;

/// Rank of a message without priority: lower ranks come first.
const LAST: u8 = u8::MAX;

/// Of a message in a queue that keeps all that is ready here.
#[derive(Debug, Clone, Copy)]
struct Known {
    rank: u8,
    size: u32,
    /// It was handed out.
    out: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    order: BTreeSet<(u8, Offset)>,
    /// Ready or held, where that matters.
    known: BTreeMap<Offset, Known>,
    bytes: u64,
}

impl Ready {
    /// A message that is new here.
    pub(crate) fn add(&mut self, offset: Offset, priority: u8, size: u32) {
        self.known.insert(offset, Known { rank: LAST - priority, size, out: false });
        self.put(offset);
    }

    /// It came back.
    pub(crate) fn give_back(&mut self, offset: Offset) {
        if let Some(known) = self.known.get_mut(&offset) {
            known.out = true;
        }
        self.put(offset);
    }

    fn put(&mut self, offset: Offset) {
        let (rank, size) = self.facts(offset);
        if self.order.insert((rank, offset)) {
            self.bytes += u64::from(size);
        }
    }

    fn facts(&self, offset: Offset) -> (u8, u32) {
        self.known.get(&offset).map_or((LAST, 0), |known| (known.rank, known.size))
    }

    /// Several came back.
    pub(crate) fn extend(&mut self, offsets: impl Iterator<Item = Offset>) {
        offsets.for_each(|offset| self.give_back(offset));
    }

    /// Who is next.
    pub(crate) fn first(&self) -> Option<Offset> {
        self.order.first().map(|(_, offset)| *offset)
    }

    /// Takes the next one; was it handed out before?
    pub(crate) fn pop_first(&mut self) -> Option<(Offset, bool)> {
        let offset = self.first()?;
        self.remove(offset);
        Some((offset, self.known.get(&offset).is_none_or(|known| known.out)))
    }

    /// Takes one; false: it is not here.
    pub(crate) fn remove(&mut self, offset: Offset) -> bool {
        let (rank, size) = self.facts(offset);
        let was = self.order.remove(&(rank, offset));
        if was {
            self.bytes -= u64::from(size);
        }
        was
    }

    /// It is settled.
    pub(crate) fn forget(&mut self, offset: Offset) {
        self.remove(offset);
        self.known.remove(&offset);
    }

    /// Takes all.
    pub(crate) fn clear(&mut self) {
        for (_, offset) in std::mem::take(&mut self.order) {
            self.known.remove(&offset);
        }
        self.bytes = 0;
    }

    /// In the order in which they go out.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Offset> {
        self.order.iter().map(|(_, offset)| *offset)
    }

    /// Bytes of bodies.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Core {
    /// Does that queue keep all that is ready in its [`Ready`]?
    fn keeps_ready(&self, queue: QueueUid) -> bool {
        let limits = self.limited.get(&queue).map(|limited| &limited.limits);
        limits.is_some_and(|limits| limits.max_priority.is_some() || limits.max_bytes.is_some())
    }

    /// Priority of a message in that queue.
    pub(crate) fn priority(&self, message: &Message, queue: QueueUid) -> u8 {
        let most = self.limited.get(&queue).and_then(|limited| limited.limits.max_priority);
        most.map_or(0, |most| self.semantics.priority(message).min(most))
    }

    /// A reference of that message to that queue is about to be written: its deadline and its priority there.
    pub(crate) fn note_coming(&mut self, message: &Message, queue: QueueUid) -> (u64, u8) {
        let place = (self.deadline(message, queue), self.priority(message, queue));
        if let Some(limited) = self.limited.get_mut(&queue) {
            limited.coming.add(message.body_len);
        }
        place
    }

    /// A message is in its queue.
    pub(crate) fn note_ready(&mut self, enqueued: Enqueued) {
        let Enqueued { queue, offset, priority, body, .. } = enqueued;
        let Some(limited) = self.limited.get_mut(&queue) else { return };
        if self.state.queues.contains_key(&queue) {
            limited.coming.take(body);
        }
        if self.overlay.is_none() || !self.keeps_ready(queue) {
            return;
        }
        // Made now, it holds the message already.
        let runtime = self.runtime(queue);
        if offset >= runtime.next {
            runtime.ready.add(offset, priority, body);
            (runtime.keeps, runtime.next) = (true, offset + 1);
        }
    }

    /// Bytes of the bodies that are ready in a queue that counts them.
    pub(crate) fn ready_bytes(&self, queue: QueueUid) -> u64 {
        self.runtimes.get(&queue).filter(|runtime| runtime.keeps).map_or(0, |runtime| runtime.ready.bytes())
    }

    /// Settled, or about to be: these (first, count) ranges do not come back.
    pub(crate) fn no_longer_ready(&mut self, queue: QueueUid, ranges: &[(Offset, u64)]) {
        if let Some(runtime) = self.runtimes.get_mut(&queue).filter(|runtime| runtime.keeps) {
            offsets(ranges).for_each(|offset| runtime.ready.forget(offset));
        }
    }

    /// A term begins: what came in meanwhile was not noted.
    pub(crate) fn refill_ready(&mut self) {
        let mut queues: Vec<QueueUid> =
            self.runtimes.keys().copied().filter(|queue| self.keeps_ready(*queue)).collect();
        queues.sort_unstable();
        queues.into_iter().for_each(|queue| self.fill_ready(queue));
    }

    /// Finds what is ready in a queue on disk, if it is to be kept. Looks at every message that is there.
    pub(crate) fn fill_ready(&mut self, queue: QueueUid) {
        let Some(state) = self.state.queues.get(&queue).filter(|_| self.keeps_ready(queue)) else { return };
        if state.kind == QueueKind::Topic {
            return;
        }
        let (cursor, end) = (state.cursor.clone(), state.index.next());
        let counts = self.limited.get(&queue).is_some_and(|limited| limited.limits.max_bytes.is_some());
        let (mut taken, _) = self.in_flight(queue);
        let readers = self.readers.values().filter(|reader| reader.queue == queue);
        taken.extend(readers.flat_map(|reader| &reader.leases));
        let mut ready = Ready::default();
        let mut offset = cursor.next_unsettled(cursor.floor());
        while offset < end {
            if let Some(entry) = self.entry(queue, offset) {
                let size = if counts { self.body_len(entry.place()) } else { 0 };
                ready.add(offset, entry.priority(), size);
                if taken.contains(&offset) {
                    ready.remove(offset);
                }
            }
            offset = cursor.next_unsettled(offset + 1);
        }
        let Some(runtime) = self.runtimes.get_mut(&queue) else { return };
        runtime.handed_before = runtime.handed_before.max(cursor.delivered_through).max(runtime.top);
        (runtime.top, runtime.next) = (runtime.handed_before, end);
        (runtime.ready, runtime.keeps) = (ready, true);
    }

    /// Bytes of a stored message's body; 0 if it can not be read.
    fn body_len(&mut self, place: (u64, u32, u32)) -> u32 {
        let record = record_at(place, &*self.log, &mut self.later.cache);
        record.ok().and_then(|record| Some(parse_reference(&record).ok()?.body_len)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_priority_goes_first_and_in_it_the_oldest() {
        let mut ready = Ready::default();
        for (offset, priority) in [(0, 0), (1, 5), (2, 9), (3, 5), (4, 0)] {
            ready.add(offset, priority, 10);
        }
        assert_eq!(ready.iter().collect::<Vec<_>>(), [2, 1, 3, 0, 4]);
        assert_eq!((ready.pop_first(), ready.pop_first()), (Some((2, false)), Some((1, false))));
        ready.give_back(1);
        assert_eq!(ready.pop_first(), Some((1, true)));
        assert_eq!(ready.bytes(), 30);
        assert!(ready.remove(4) && !ready.remove(4));
        ready.forget(3);
        assert_eq!((ready.iter().collect::<Vec<_>>(), ready.bytes()), (vec![0], 10));
        ready.clear();
        // Held ones are known still.
        assert_eq!((ready.first(), ready.bytes(), ready.known.len()), (None, 0, 3));
    }

    #[test]
    fn what_is_not_known_came_back_and_goes_in_its_order() {
        let mut ready = Ready::default();
        ready.extend([7, 3].into_iter());
        assert_eq!(
            (ready.pop_first(), ready.pop_first(), ready.pop_first()),
            (Some((3, true)), Some((7, true)), None)
        );
    }
}
