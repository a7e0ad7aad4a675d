//! Acks of one socket read, put together to few verbs.
//!
//! Owns: the leases that the client settled and the shard was not told yet.
//! Promises: order between different kinds of settlement is kept; ranges of one reader are ascending, disjoint and as long as
//! possible. Does not know: tags, channels.

use super::unacked::Lease;
use crate::broker::api::{Offset, Op, Settle};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    how: Option<Settle>,
    leases: Vec<Lease>,
}

impl Settlements {
    /// Where the next leases of this kind go. What was collected of another kind is handed to `emit` first.
    pub(super) fn collect(&mut self, how: Settle, emit: impl FnMut(Op)) -> &mut Vec<Lease> {
        if self.how != Some(how) {
            self.flush(emit);
            self.how = Some(how);
        }
        &mut self.leases
    }

    /// Whether nothing is collected.
    pub(super) fn is_empty(&self) -> bool {
        self.how.is_none()
    }

    /// Hands out everything collected.
    pub(super) fn flush(&mut self, mut emit: impl FnMut(Op)) {
        let Some(how) = self.how.take() else { return };
        self.leases.sort_unstable_by_key(|lease| (lease.reader, lease.offset));
        for of_reader in self.leases.chunk_by(|a, b| a.reader == b.reader) {
            emit(Op::Settle { reader: of_reader[0].reader, ranges: ranges(of_reader), how });
        }
        self.leases.clear();
    }
}

fn ranges(leases: &[Lease]) -> Vec<(Offset, Offset)> {
    leases
        .chunk_by(|a, b| a.offset + 1 == b.offset)
        .map(|run| (run[0].offset, run[run.len() - 1].offset))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Settled = (u32, Vec<(Offset, Offset)>, Settle);

    fn settled(ops: &[Op]) -> Vec<Settled> {
        let parts = ops.iter().map(|op| match op {
            Op::Settle { reader, ranges, how } => (*reader, ranges.clone(), *how),
            other => panic!("{other:?}"),
        });
        parts.collect()
    }

    #[test]
    fn acks_of_many_deliveries_become_one_range_per_reader() {
        let mut settlements = Settlements::default();
        let mut ops = Vec::new();
        for (reader, offset) in [(1, 10), (2, 5), (1, 11), (1, 12), (2, 7), (1, 20)] {
            settlements.collect(Settle::Ack, |_| panic!("nothing to flush")).push(Lease { reader, offset });
        }
        settlements.flush(|op| ops.push(op));
        let expected = [(1, vec![(10, 12), (20, 20)], Settle::Ack), (2, vec![(5, 5), (7, 7)], Settle::Ack)];
        assert_eq!(settled(&ops), expected);
    }

    #[test]
    fn another_kind_comes_after_what_was_collected() {
        let mut settlements = Settlements::default();
        let mut ops = Vec::new();
        settlements.collect(Settle::Ack, |_| ()).push(Lease { reader: 1, offset: 1 });
        settlements.collect(Settle::Requeue, |op| ops.push(op)).push(Lease { reader: 1, offset: 2 });
        settlements.flush(|op| ops.push(op));
        settlements.flush(|op| ops.push(op));
        let expected = [(1, vec![(1, 1)], Settle::Ack), (1, vec![(2, 2)], Settle::Requeue)];
        assert_eq!(settled(&ops), expected);
    }
}
