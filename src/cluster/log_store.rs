//! The durable log as the consensus library's log store.
//!
//! Owns: the translation between entries and batches. Promises: nothing here blocks the shard's thread on a disk write; an
//! entry is readable when `append` returns and reported when it is durable; votes and entries become durable in the order
//! they were given (the log has one writer); a purge raises the log floor and deletes no byte; no read answers more than
//! [`READ_BYTES`] at once where the library allows less.
//! Does not know: what a payload says, who is leader.

use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::rc::Rc;

use bytes::Bytes;
use dassie_storage::{Batch, Disk, Done, Log, NewBatch};
use futures_util::Stream;
use futures_util::stream::unfold;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::membership::{decode_membership, decode_vote, encode_membership, encode_vote, log_id};
use super::types::{Config, Entry, LogId, Proposed, Vote};

/// Read at once for a peer or for apply. Four entries of the largest size: enough to fill a link, little enough that ten
/// lagging peers do not matter.
pub(crate) const READ_BYTES: usize = 4 << 20;

/// Kinds of batches; see `src/docs/record-format.md`.
pub(crate) const OUTCOMES: u8 = 1;
pub(crate) const TERM_START: u8 = 2;
pub(crate) const MEMBERSHIP: u8 = 3;

/// The store. Clones share one log.
pub(crate) struct LogStore<D: Disk> {
    log: Log<D>,
    node: u64,
    /// In memory only: after a restart the leader's commits tell, and a single voter's own election does.
    committed: Rc<Cell<Option<LogId>>>,
}

impl<D: Disk> Clone for LogStore<D> {
    fn clone(&self) -> Self {
        LogStore { log: self.log.clone(), node: self.node, committed: self.committed.clone() }
    }
}

impl<D: Disk> LogStore<D> {
    pub(crate) fn new(log: Log<D>, node: u64) -> Self {
        LogStore { log, node, committed: Rc::default() }
    }

    fn batch_of(&self, entry: Entry) -> NewBatch {
        let term = **entry.id.committed_leader_id();
        // An entry without an origin was proposed here. Term 0 is the first membership, the same on every node that writes it.
        let origin = entry.batch.map(|batch| batch.point.leader).or(entry.leader);
        let leader = origin.unwrap_or(if term == 0 { 0 } else { self.node });
        let (kind, payload) = match entry.payload {
            EntryPayload::Blank => (TERM_START, Bytes::new()),
            EntryPayload::Normal(Proposed(payload)) => (OUTCOMES, payload),
            EntryPayload::Membership(members) => (MEMBERSHIP, encode_membership(&members).into()),
        };
        NewBatch { term, leader, index: entry.id.index(), kind, payload }
    }

    /// The entries of `range` that are there, up to the budget.
    fn read(&self, first: u64, end: u64, budget: usize) -> io::Result<Vec<Entry>> {
        let first = self.log.floor().map_or(first, |floor| first.max(floor.index + 1));
        if first >= end {
            return Ok(Vec::new());
        }
        self.log.get(first, end, budget)?.into_iter().map(entry_of).collect()
    }

    fn vote(&self) -> io::Result<Option<Vote>> {
        let bytes = self.log.vote();
        if bytes.is_empty() {
            return Ok(None);
        }
        decode_vote(&bytes).map(Some).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    /// The id of an entry or of the floor.
    fn id(&self, index: u64) -> io::Result<LogId> {
        let point = self.log.point(index)?;
        let point = point.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the log does not have entry {index}"))
        })?;
        Ok(log_id(point.term, point.index))
    }
}

/// The entry a batch stands for.
pub(crate) fn entry_of(batch: Batch) -> io::Result<Entry> {
    let point = batch.point;
    let payload = match batch.kind {
        OUTCOMES => EntryPayload::Normal(Proposed(batch.payload.clone())),
        TERM_START => EntryPayload::Blank,
        MEMBERSHIP => EntryPayload::Membership(
            decode_membership(&batch.payload).map_err(|reason| unknown(&batch, reason))?,
        ),
        _ => return Err(unknown(&batch, "a kind of batch this release does not know")),
    };
    Ok(Entry { id: log_id(point.term, point.index), payload, leader: Some(point.leader), batch: Some(batch) })
}

fn unknown(batch: &Batch, reason: &str) -> io::Error {
    let reason =
        format!("batch {} (kind {}) at {}: {reason}", batch.point.index, batch.kind, batch.point.position);
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// A `done` and the future of its result.
pub(crate) fn completion() -> (Done, impl Future<Output = io::Result<()>> + use<>) {
    let (sender, receiver) = oneshot::channel();
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    let result = async move {
        receiver
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::BrokenPipe, "the log was dropped")))
    };
    (done, result)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(&first) => first,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (first, end)
}

/// Where a stream of entries stands.
struct Reading<D: Disk> {
    store: LogStore<D>,
    next: u64,
    end: u64,
    chunk: std::vec::IntoIter<Entry>,
}

impl<D: Disk> Reading<D> {
    /// The next entry; `None` at the end of the range or of the log.
    fn step(&mut self) -> io::Result<Option<Entry>> {
        if let Some(entry) = self.chunk.next() {
            return Ok(Some(entry));
        }
        self.chunk = self.store.read(self.next, self.end, READ_BYTES)?.into_iter();
        let Some(last) = self.chunk.as_slice().last() else { return Ok(None) };
        self.next = last.id.index() + 1;
        Ok(self.chunk.next())
    }
}

impl<D: Disk> RaftLogReader<Config> for LogStore<D> {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (first, end) = bounds(&range);
        self.read(first, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.vote()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES)
    }

    /// Reads piece by piece: after a restart the range is everything since the checkpoint.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (next, end) = bounds(&range);
        let reading = Reading { store: self.clone(), next, end, chunk: Vec::new().into_iter() };
        // After an error the stream ends: what would follow it is a hole.
        unfold(Some(reading), |reading| async move {
            let mut reading = reading?;
            match reading.step() {
                Ok(entry) => entry.map(|entry| (Ok(entry), Some(reading))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The last entry of each term, found by halving: `k log n` looks at headers, no payload is read.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let (mut first, last) = (*range.start(), *range.end());
        let mut ends = Vec::new();
        while first.committed_leader_id() != last.committed_leader_id() {
            let (mut same, mut other) = (first, last.index());
            while same.index() + 1 < other {
                let middle = self.id(same.index() + (other - same.index()) / 2)?;
                if middle.committed_leader_id() == first.committed_leader_id() {
                    same = middle;
                } else {
                    other = middle.index();
                }
            }
            ends.push(same);
            first = self.id(other)?;
        }
        ends.push(last);
        Ok(ends)
    }
}

impl<D: Disk> RaftLogStorage<Config> for LogStore<D> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Config>> {
        let id = |point: dassie_storage::LogPoint| log_id(point.term, point.index);
        Ok(LogState { last_purged_log_id: self.log.floor().map(id), last_log_id: self.log.last().map(id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = completion();
        self.log.save_vote(Bytes::copy_from_slice(&encode_vote(vote)), done);
        saved.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.committed.set(committed);
        // The last one needs no look into the log, and under load it is nearly always the one.
        if let Some(point) = committed.map(|id| self.log.point(id.index())).transpose()?.flatten() {
            self.log.committed(point.end);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed.get())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let batches = entries.into_iter().map(|entry| self.batch_of(entry));
        self.log.append(batches, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        // Nothing behind it: the log refuses an entry it does not have.
        if last.is_some_and(|id| self.log.last().is_none_or(|end| end.index <= id.index())) {
            return Ok(());
        }
        let (done, cut) = completion();
        self.log.truncate_after(last.map(|id| id.index()), done)?;
        cut.await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let (done, raised) = completion();
        self.log.raise_floor(upto.index(), done)?;
        raised.await
    }
}
