//! Who has consumed what of one queue: a floor, and what is settled ahead of it.
//!
//! Owns: the settled set. Promises: settling is idempotent; the floor only rises; memory is one bit per message between the floor
//! and the highest settled one.
//! Does not know: leases (they are the leader's, not the log's), positions, time.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::api::Offset;
use super::record::{Cursor as Bytes, Malformed};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Everything below is settled; a multiple of 64 below or equal to `floor` begins `ahead`.
    floor: Offset,
    /// Bits from `floor & !63` on.
    ahead: VecDeque<u64>,
    /// Bits set at or above the floor.
    set: u64,
    /// Everything below was handed out at least once (it comes again as redelivered after a crash).
    pub(crate) delivered_through: Offset,
}

impl Cursor {
    /// Everything below is settled.
    pub(crate) fn floor(&self) -> Offset {
        self.floor
    }

    /// How many are settled at or above the floor.
    pub(crate) fn settled_ahead(&self) -> u64 {
        self.set
    }

    /// Is it settled?
    pub(crate) fn is_settled(&self, offset: Offset) -> bool {
        offset < self.floor || self.bit(offset)
    }

    fn base(&self) -> Offset {
        self.floor & !63
    }

    fn bit(&self, offset: Offset) -> bool {
        let word = usize::try_from((offset - self.base()) / 64).unwrap_or(usize::MAX);
        self.ahead.get(word).is_some_and(|w| w >> (offset % 64) & 1 == 1)
    }

    /// Settles one; true if it was not before. The floor follows.
    pub(crate) fn settle(&mut self, offset: Offset) -> bool {
        if self.is_settled(offset) {
            return false;
        }
        if offset == self.floor && self.ahead.is_empty() {
            // The common case: consumed in order.
            self.floor += 1;
            return true;
        }
        let word = usize::try_from((offset - self.base()) / 64).unwrap_or(usize::MAX);
        while self.ahead.len() <= word {
            self.ahead.push_back(0);
        }
        self.ahead[word] |= 1 << (offset % 64);
        self.set += 1;
        while !self.ahead.is_empty() && self.bit(self.floor) {
            self.floor += 1;
            self.set -= 1;
            if self.floor.is_multiple_of(64) {
                self.ahead.pop_front();
            }
        }
        if self.set == 0 {
            self.ahead.clear();
        }
        true
    }

    /// First unsettled offset at or above `from`.
    pub(crate) fn next_unsettled(&self, from: Offset) -> Offset {
        let mut offset = from.max(self.floor);
        while self.bit(offset) {
            // Skip whole words where everything is settled.
            let word = usize::try_from((offset - self.base()) / 64).unwrap_or(usize::MAX);
            let rest = self.ahead.get(word).map_or(0, |w| (!w) >> (offset % 64));
            if rest == 0 {
                offset = (offset & !63) + 64;
            } else {
                offset += u64::from(rest.trailing_zeros());
            }
        }
        offset
    }

    /// As a checkpoint keeps it.
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        buf.put_u64_le(self.floor);
        buf.put_u64_le(self.delivered_through);
        buf.put_u32_le(u32::try_from(self.ahead.len()).unwrap_or(u32::MAX));
        self.ahead.iter().for_each(|w| buf.put_u64_le(*w));
    }

    /// From a checkpoint.
    pub(crate) fn read(cursor: &mut Bytes<'_>) -> Result<Self, Malformed> {
        let mut read = Self { floor: cursor.u64()?, delivered_through: cursor.u64()?, ..Self::default() };
        for _ in 0..cursor.u32()? {
            read.ahead.push_back(cursor.u64()?);
        }
        let below = read.floor % 64;
        read.set = read
            .ahead
            .iter()
            .enumerate()
            .map(|(i, w)| u64::from(if i == 0 { (w >> below).count_ones() } else { w.count_ones() }))
            .sum();
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settling_in_order_needs_no_memory() {
        let mut cursor = Cursor::default();
        (0..1000).for_each(|n| assert!(cursor.settle(n)));
        assert_eq!(cursor.floor(), 1000);
        assert!(cursor.ahead.is_empty());
        assert!(!cursor.settle(5));
    }

    proptest! {
        #[test]
        fn the_settled_set_equals_a_plain_set(offsets in proptest::collection::vec(0u64..400, 0..600)) {
            let mut cursor = Cursor::default();
            let mut model = BTreeSet::new();
            for offset in offsets {
                prop_assert_eq!(cursor.settle(offset), model.insert(offset));
                let floor = (0..).find(|n| !model.contains(n)).unwrap();
                prop_assert_eq!(cursor.floor(), floor);
                prop_assert_eq!(cursor.settled_ahead(), model.range(floor..).count() as u64);
            }
            for from in 0..420 {
                prop_assert_eq!(cursor.next_unsettled(from), (from..).find(|n| !model.contains(n)).unwrap());
            }
            let mut buf = BytesMut::new();
            cursor.put(&mut buf);
            let read = Cursor::read(&mut Bytes::new(&buf, 0)).unwrap();
            prop_assert_eq!(&read, &cursor);
        }
    }
}
