//! Reading the log from any thread.
//!
//! Owns: nothing; a [`LogReader`] is a handle on the shared view. Promises: bytes from memory are those that were appended, bytes
//! from disk are verified (identity, place, header hash, payload checksum) before they are answered; errors name file and
//! offset. Does not know: what is committed; callers ask for positions they got from applied batches.

use std::io;
use std::sync::Arc;

use crate::disk::Disk;
use crate::format::Batch;
use crate::real::RealDisk;
use crate::segments::Segments;

/// Reads batches by position. Cheap to clone, usable on every thread.
pub struct LogReader<D: Disk = RealDisk> {
    pub(crate) segments: Arc<Segments<D::File>>,
}

impl<D: Disk> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        LogReader { segments: self.segments.clone() }
    }
}

impl<D: Disk> LogReader<D> {
    /// The batch whose header stands at `position`: from memory, else a slice of a map, else read and verified.
    /// `NotFound` where no batch is or its segment was retired, `InvalidData` where it is damaged.
    pub fn batch(&self, position: u64) -> io::Result<Batch> {
        self.segments.batch(position)
    }

    /// The batch that the byte at `position` belongs to: for positions that come from outside and may name anything.
    /// `NotFound` where no batch is, `InvalidData` where it is damaged.
    pub fn holding(&self, position: u64) -> io::Result<Batch> {
        self.segments.holding(position)
    }

    /// Whether [`batch`](LogReader::batch) would answer it from memory.
    pub fn is_in_memory(&self, position: u64) -> bool {
        self.segments.is_in_tail(position)
    }

    /// Batches from index `first` up to `end` (exclusive) as far as they are in the log: at least one if there is one,
    /// then as many as fit into `budget` bytes. May read from disk: the place for a follower that lags far behind.
    pub fn get(&self, first: u64, end: u64, budget: usize) -> io::Result<Vec<Batch>> {
        self.segments.range(first, end, budget)
    }

    /// The first positions of the segments that are there, in order.
    pub fn segments(&self) -> Vec<u64> {
        self.segments.starts()
    }

    /// Everything below this position is committed, as far as this node knows.
    pub fn committed(&self) -> u64 {
        self.segments.committed()
    }

    /// Everything below this position is synced on this node.
    pub fn durable(&self) -> u64 {
        self.segments.durable()
    }
}
