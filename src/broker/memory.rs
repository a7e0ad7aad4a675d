//! Contents of a queue that lives in memory (D17).
//!
//! Owns: the messages and their dense numbers. Promises: FIFO by number; a settled message's bytes are freed at once.
//! Does not know: the budget all memory queues share (the core counts it), readers.

use std::collections::VecDeque;

use super::api::{Offset, StoredMessage};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MemoryQueue {
    base: Offset,
    /// Message and deadline (log time; 0: none).
    items: VecDeque<Option<(StoredMessage, u64)>>,
    depth: u64,
    /// A message with a deadline came in since it was empty last.
    may_expire: bool,
}

/// Bytes a message counts against the budget: itself and its share of the tables.
pub(crate) fn cost(message: &StoredMessage) -> usize {
    cost_of(message.bytes.len())
}

/// The same of a message with so many bytes.
pub(crate) fn cost_of(bytes: usize) -> usize {
    bytes + 128
}

impl MemoryQueue {
    /// Number of the next message.
    pub(crate) fn next(&self) -> Offset {
        self.base + self.items.len() as u64
    }

    /// Messages in it.
    pub(crate) fn depth(&self) -> u64 {
        self.depth
    }

    /// Appends; its number.
    pub(crate) fn push(&mut self, message: StoredMessage, deadline: u64) -> Offset {
        let offset = self.next();
        self.items.push_back(Some((message, deadline)));
        self.depth += 1;
        self.may_expire |= deadline > 0;
        offset
    }

    /// May a message in it have a deadline?
    pub(crate) fn may_expire(&self) -> bool {
        self.may_expire
    }

    /// Log time at which that message is expired; 0: never.
    pub(crate) fn deadline(&self, offset: Offset) -> u64 {
        self.item(offset).map_or(0, |(_, deadline)| *deadline)
    }

    fn item(&self, offset: Offset) -> Option<&(StoredMessage, u64)> {
        let place = usize::try_from(offset.checked_sub(self.base)?).ok()?;
        self.items.get(place)?.as_ref()
    }

    pub(crate) fn get(&self, offset: Offset) -> Option<&StoredMessage> {
        self.item(offset).map(|(message, _)| message)
    }

    /// First message at or above `from`.
    pub(crate) fn next_unsettled(&self, from: Offset) -> Offset {
        let mut offset = from.max(self.base);
        while offset < self.next() && self.get(offset).is_none() {
            offset += 1;
        }
        offset
    }

    /// Takes a message out; gives back the bytes it counted.
    pub(crate) fn settle(&mut self, offset: Offset) -> usize {
        let Some(place) = offset.checked_sub(self.base).and_then(|p| usize::try_from(p).ok()) else {
            return 0;
        };
        let Some((message, _)) = self.items.get_mut(place).and_then(Option::take) else { return 0 };
        self.depth -= 1;
        self.may_expire &= self.depth > 0;
        while let Some(None) = self.items.front() {
            self.items.pop_front();
            self.base += 1;
        }
        if self.items.is_empty() && self.items.capacity() > 64 {
            self.items.shrink_to(0);
        }
        cost(&message)
    }

    /// Bytes counted by all messages.
    pub(crate) fn cost(&self) -> usize {
        self.items.iter().flatten().map(|(message, _)| cost(message)).sum()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broker::api::Origin;

    fn message() -> StoredMessage {
        StoredMessage {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(b"x"),
            prefix_len: 0,
            body_len: 1,
            body: None,
            store_time: 0,
        }
    }

    #[test]
    fn numbers_stay_dense_when_messages_leave_out_of_order() {
        let mut queue = MemoryQueue::default();
        (0..5).for_each(|n| {
            queue.push(message(), n % 2);
        });
        assert_eq!((queue.deadline(1), queue.deadline(2), queue.may_expire()), (1, 0, true));
        assert_eq!(queue.settle(2), 129);
        assert_eq!(queue.settle(2), 0);
        assert_eq!(queue.next_unsettled(2), 3);
        assert!(queue.settle(0) > 0 && queue.settle(1) > 0);
        assert_eq!((queue.base, queue.next(), queue.depth()), (3, 5, 2));
        assert_eq!(queue.cost(), 258);
    }
}
