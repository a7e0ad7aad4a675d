//! Contents of a queue that lives in memory (D17).
//!
//! Owns: the messages and their dense numbers, and the form of a message that was paged out. Promises: FIFO by number; a settled
//! message's bytes are freed at once, in memory or on the disk; a message that was paged out costs [`PAGED_COST`] bytes of memory.
//! Does not know: the budget all memory queues share (the core counts it), readers, when to page.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes};
use dassie_storage::{Spill, Spilled};

use super::api::{Located, Offset, Origin, StoredMessage};
use super::message::damaged;

/// Bytes that a message counts which was paged out.
pub(crate) const PAGED_COST: usize = 48;
/// Before the bytes of a paged message: origin, prefix length, body length, store time.
const HEAD: usize = 1 + 4 + 4 + 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MemoryQueue {
    base: Offset,
    items: VecDeque<Item>,
    depth: u64,
    /// A message with a deadline came in since it was empty last.
    may_expire: bool,
}

#[derive(Debug)]
enum Item {
    Settled,
    /// With its deadline (log time; 0: none). Boxed: most items of a deep queue are not here.
    Here(Box<(StoredMessage, u64)>),
    Paged(Spilled, u64),
}

const _: () = assert!(size_of::<Item>() <= 32);

impl Item {
    fn cost(&self) -> usize {
        match self {
            Self::Settled => 0,
            Self::Here(item) => cost(&item.0),
            Self::Paged(..) => PAGED_COST,
        }
    }
}

/// Bytes a message counts against the budget: itself and its share of the tables.
pub(crate) fn cost(message: &StoredMessage) -> usize {
    cost_of(message.bytes.len())
}

/// The same of a message with so many bytes.
pub(crate) fn cost_of(bytes: usize) -> usize {
    bytes + 176
}

/// Puts a message out of memory; `None`: the disk does not take it now.
fn page_out(message: &StoredMessage, spill: &mut Spill) -> Option<Spilled> {
    let origin = match (message.origin, &message.body) {
        (Origin::Amqp, None) => 0,
        (Origin::Rocketmq, None) => 1,
        _ => return None,
    };
    let mut head = [0; HEAD];
    head[0] = origin;
    head[1..5].copy_from_slice(&message.prefix_len.to_le_bytes());
    head[5..9].copy_from_slice(&message.body_len.to_le_bytes());
    head[9..].copy_from_slice(&message.store_time.to_le_bytes());
    spill.put(&[&head, &message.bytes])
}

/// Brings a message back that was paged out. May wait for the disk.
pub(crate) fn page_in(paged: &Spilled) -> io::Result<StoredMessage> {
    let mut bytes: Bytes = paged.read()?;
    if bytes.len() < HEAD {
        return Err(damaged(0, "a paged message without its head"));
    }
    Ok(StoredMessage {
        origin: if bytes.get_u8() == 0 { Origin::Amqp } else { Origin::Rocketmq },
        prefix_len: bytes.get_u32_le(),
        body_len: bytes.get_u32_le(),
        store_time: bytes.get_u64_le(),
        bytes,
        body: None,
    })
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

    /// Appends, out of memory if `spill` is given and takes it; number and cost.
    pub(crate) fn push(
        &mut self,
        message: StoredMessage,
        deadline: u64,
        spill: Option<&mut Spill>,
    ) -> (Offset, usize) {
        let offset = self.next();
        let item = match spill.and_then(|spill| page_out(&message, spill)) {
            Some(paged) => Item::Paged(paged, deadline),
            None => Item::Here(Box::new((message, deadline))),
        };
        let cost = item.cost();
        self.items.push_back(item);
        self.depth += 1;
        self.may_expire |= deadline > 0;
        (offset, cost)
    }

    /// May a message in it have a deadline?
    pub(crate) fn may_expire(&self) -> bool {
        self.may_expire
    }

    /// Log time at which that message is expired; 0: never.
    pub(crate) fn deadline(&self, offset: Offset) -> u64 {
        match self.item(offset) {
            Some(Item::Here(item)) => item.1,
            Some(Item::Paged(_, deadline)) => *deadline,
            Some(Item::Settled) | None => 0,
        }
    }

    fn item(&self, offset: Offset) -> Option<&Item> {
        let place = usize::try_from(offset.checked_sub(self.base)?).ok()?;
        self.items.get(place)
    }

    /// Is that message in it?
    pub(crate) fn holds(&self, offset: Offset) -> bool {
        !matches!(self.item(offset), Some(Item::Settled) | None)
    }

    /// That message where it is, and its length.
    pub(crate) fn get(&self, offset: Offset) -> Option<(Located, usize)> {
        match self.item(offset)? {
            Item::Here(item) => Some((Located::Ready(item.0.clone()), item.0.bytes.len())),
            Item::Paged(paged, _) => Some((Located::Paged(paged.clone()), paged.len() as usize - HEAD)),
            Item::Settled => None,
        }
    }

    /// First message at or above `from`.
    pub(crate) fn next_unsettled(&self, from: Offset) -> Offset {
        let mut offset = from.max(self.base);
        while offset < self.next() && !self.holds(offset) {
            offset += 1;
        }
        offset
    }

    /// Takes a message out; gives back the bytes it counted.
    pub(crate) fn settle(&mut self, offset: Offset) -> usize {
        let Some(place) = offset.checked_sub(self.base).and_then(|p| usize::try_from(p).ok()) else {
            return 0;
        };
        let Some(item) = self.items.get_mut(place) else { return 0 };
        let cost = std::mem::replace(item, Item::Settled).cost();
        if cost == 0 {
            return 0;
        }
        self.depth -= 1;
        self.may_expire &= self.depth > 0;
        while let Some(Item::Settled) = self.items.front() {
            self.items.pop_front();
            self.base += 1;
        }
        // A queue that was deep once does not keep its table.
        if self.items.capacity() > 1024 && self.items.len() < self.items.capacity() / 4 {
            self.items.shrink_to(self.items.len() * 2);
        }
        cost
    }

    /// Bytes counted by all messages.
    pub(crate) fn cost(&self) -> usize {
        self.items.iter().map(Item::cost).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &'static [u8]) -> StoredMessage {
        StoredMessage {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(bytes),
            prefix_len: 0,
            body_len: 1,
            body: None,
            store_time: 7,
        }
    }

    #[test]
    fn numbers_stay_dense_when_messages_leave_out_of_order() {
        let mut queue = MemoryQueue::default();
        (0..5).for_each(|n| {
            queue.push(message(b"x"), n % 2, None);
        });
        assert_eq!((queue.deadline(1), queue.deadline(2), queue.may_expire()), (1, 0, true));
        assert_eq!(queue.settle(2), 177);
        assert_eq!(queue.settle(2), 0);
        assert_eq!(queue.next_unsettled(2), 3);
        assert!(queue.settle(0) > 0 && queue.settle(1) > 0);
        assert_eq!((queue.base, queue.next(), queue.depth()), (3, 5, 2));
        assert_eq!(queue.cost(), 354);
    }

    #[test]
    fn what_was_paged_out_comes_back_whole_and_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (mut spill, _writer) = Spill::new(directory.path());
        let mut queue = MemoryQueue::default();
        queue.push(message(b"here"), 0, None);
        assert_eq!(queue.push(message(b"paged"), 9, Some(&mut spill)), (1, PAGED_COST));
        assert_eq!((queue.deadline(1), queue.depth(), queue.cost()), (9, 2, 180 + PAGED_COST));
        let Some((Located::Paged(paged), 5)) = queue.get(1) else { panic!("{queue:?}") };
        let back = page_in(&paged).unwrap();
        assert_eq!((&back.bytes[..], back.body_len, back.store_time), (&b"paged"[..], 1, 7));
        assert_eq!(queue.settle(1), PAGED_COST);
        assert!(!queue.holds(1) && queue.holds(0));
    }
}
