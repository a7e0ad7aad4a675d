//! Readers, their leases and windows, and the volatile side of a queue: what the leader knows and no record holds.
//!
//! Owns: who waits at which queue, what each holds, what came back. Promises: a lease is held by one reader; a returned message
//! goes out again before fresh ones, from its old place. Does not know: the log, topology, connections' sockets.

use std::collections::VecDeque;

use super::api::{ChannelId, ConnectionId, Offset, QueueUid, ReaderId};
use super::memory::MemoryQueue;
use super::ready::Ready;
use crate::limits;

/// A reader of this node.
pub(crate) type ReaderKey = (ConnectionId, ReaderId);

/// A consumer, or a channel's getter.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) queue: QueueUid,
    pub(crate) no_ack: bool,
    /// Nobody else may read.
    pub(crate) exclusive: bool,
    /// Higher ones come first.
    pub(crate) priority: i64,
    /// Unsettled messages it may hold; 0: no limit.
    pub(crate) window: u16,
    pub(crate) channel: ChannelId,
    /// A get's: what it holds is not limited by windows and does not count in them.
    pub(crate) got: bool,
    /// Attached to its queue. A cancelled one only keeps its leases.
    pub(crate) attached: bool,
    /// Offsets it holds, ascending.
    pub(crate) leases: VecDeque<Offset>,
}

impl Reader {
    /// One that is not attached: it holds what it holds until that is settled.
    pub(crate) fn getter(queue: QueueUid, channel: ChannelId) -> Self {
        let leases = VecDeque::new();
        Reader {
            queue,
            no_ack: false,
            exclusive: false,
            priority: 0,
            window: 0,
            channel,
            got: true,
            attached: false,
            leases,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Messages that it may get.
    pub(crate) fn room(&self) -> u64 {
        // Without a window there is a bound all the same: who never acks must not take all memory.
        let most = if self.window == 0 { limits::LEASES_MAX } else { usize::from(self.window) };
        if self.no_ack { limits::LEASES_MAX as u64 } else { most.saturating_sub(self.leases.len()) as u64 }
    }

    /// Of so many leases, those that count in the channel's window.
    pub(crate) fn in_window(&self, leases: usize) -> usize {
        if self.got { 0 } else { leases }
    }

    pub(crate) fn lease(&mut self, offset: Offset) {
        match self.leases.back() {
            Some(last) if *last > offset => {
                let place = self.leases.partition_point(|o| *o < offset);
                self.leases.insert(place, offset);
            }
            _ => self.leases.push_back(offset),
        }
    }

    /// Takes the leases in `first..=last` away and returns them as (first, count) ranges.
    pub(crate) fn take(&mut self, first: Offset, last: Offset, out: &mut Vec<(Offset, u64)>) -> usize {
        let start = self.leases.partition_point(|o| *o < first);
        let end = self.leases.partition_point(|o| *o <= last);
        for offset in self.leases.drain(start..end) {
            push_range(out, offset);
        }
        end - start
    }
}

/// Appends one offset to ascending (first, count) ranges.
pub(crate) fn push_range(ranges: &mut Vec<(Offset, u64)>, offset: Offset) {
    match ranges.last_mut() {
        Some((first, count)) if *first + *count == offset => *count += 1,
        _ => ranges.push((offset, 1)),
    }
}

/// The volatile side of one queue.
#[derive(Debug, Default)]
pub(crate) struct Runtime {
    /// Attached readers; the front is served next.
    pub(crate) readers: VecDeque<ReaderKey>,
    /// What goes out before fresh messages: what came back, lowest first; or all that is ready, see `keeps`.
    pub(crate) ready: Ready,
    /// Everything that is ready stands in `ready`, by priority or to be counted; `next` is the end.
    pub(crate) keeps: bool,
    /// Behind the last message handed out of a queue that `keeps`.
    pub(crate) top: Offset,
    /// Next fresh offset to hand out.
    pub(crate) next: Offset,
    /// Below this, messages were handed out by an earlier leader or incarnation.
    pub(crate) handed_before: Offset,
    /// Leased messages.
    pub(crate) unacked: u64,
    /// Settled by records that are not applied yet.
    pub(crate) settling: u64,
    /// A reader was attached once: an auto-delete queue may go.
    pub(crate) was_read: bool,
    /// Some reader has a priority of its own.
    pub(crate) ranked: bool,
    /// The one that gets everything, where one does.
    pub(crate) active: Option<ReaderKey>,
    /// The one that reads exclusively.
    pub(crate) exclusive: Option<ReaderKey>,
    /// Contents, for a memory queue.
    pub(crate) memory: Option<MemoryQueue>,
    /// Pulls that wait for a message.
    pub(crate) waiting: Vec<u64>,
    /// Messages from here on came in since readers were served last: their deadlines do not count yet.
    pub(crate) fresh: Option<Offset>,
    /// Log time at which its head is looked at; 0: not by itself.
    pub(crate) head_deadline: u64,
    /// In the work list.
    pub(crate) listed: bool,
    /// `next` moved since the last delivered-through record.
    pub(crate) handed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        Reader { window: 3, attached: true, ..Reader::getter(1, 1) }
    }

    #[test]
    fn leases_stay_ordered_and_leave_as_ranges() {
        let mut reader = reader();
        for offset in [5, 6, 9, 2, 7] {
            reader.lease(offset);
        }
        assert!(!reader.has_room());
        let mut ranges = Vec::new();
        assert_eq!(reader.take(5, 8, &mut ranges), 3);
        assert_eq!(ranges, [(5, 3)]);
        assert_eq!(reader.take(5, 8, &mut ranges), 0);
        assert_eq!(reader.leases, [2, 9]);
        assert!(reader.has_room());
    }
}
