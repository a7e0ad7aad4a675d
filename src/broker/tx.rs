//! Transactions: publishes and settlements of many queues that happen together or not at all.
//!
//! Owns: what a commit leads to, and what of it waits for the log. Promises: all records of a commit stand in one section of one
//! batch (D5), bodies that do not fit go before it in pieces; nothing of a commit is visible before it is committed, in memory
//! queues neither (D17); a refused commit changes nothing.
//! Does not know: what a client buffered and dropped before it committed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::api::{
    Cause, Commit, ConnectionId, Event, Op, Publish, QueueUid, Refusal, Reply, Settle, Settlement, Verb,
    VhostId,
};
use super::core::{Core, Work};
use super::decide::{REFERENCE_OVERHEAD, end_size, not_found};
use super::link::weight;
use super::memory;
use super::message::{ENTRY, Extent};
use super::reader::ReaderKey;
use super::record::SECTION_HEAD;
use super::topology::Route;
use crate::limits;
use crate::security::Authorized;

/// Bytes of a batch that are not for a commit's records.
const BATCH_OVERHEAD: usize = 2 * SECTION_HEAD + 1024;

/// (first, count) ranges of one queue.
type Ranges = Vec<(u64, u64)>;

/// A commit that is decided.
#[derive(Debug)]
pub(crate) struct Committing {
    connection: ConnectionId,
    /// The verb, but for what it did.
    key: Authorized,
    number: u64,
    request: u64,
    weight: usize,
    vhost: VhostId,
    publishes: Vec<Publish>,
    /// As the client gave them.
    settlements: Vec<Settlement>,
    /// Settled in durable queues, by records.
    settled: Vec<(QueueUid, Ranges)>,
    /// Settled in queues in memory, when it is committed.
    settled_in_memory: Vec<(QueueUid, Ranges)>,
    /// Goes back to its queue when it is committed.
    requeued: Vec<(QueueUid, Ranges)>,
    /// Rejected for good in queues with an exchange for dead letters: moves when it is committed. Held until then.
    rejected: Vec<(QueueUid, Ranges, ReaderKey)>,
    /// Publish and queue in memory that gets it when it is committed.
    to_memory: Vec<(usize, QueueUid)>,
    /// What these count in the budget of memory queues.
    memory_cost: usize,
    /// Mandatory and unroutable.
    returned: Vec<usize>,
}

impl Committing {
    /// Whose.
    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Its verb's number at the front end it came from.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Ranges of a durable queue that it settles.
    pub(crate) fn settled_of(&self, queue: QueueUid) -> impl Iterator<Item = &(u64, u64)> {
        self.settled.iter().filter(move |(of, _)| *of == queue).flat_map(|(_, ranges)| ranges)
    }

    /// Ranges of a queue that it gives back, or rejects for good.
    pub(crate) fn requeued_of(&self, queue: QueueUid) -> impl Iterator<Item = &(u64, u64)> {
        let requeued = self.requeued.iter().map(|(of, ranges)| (*of, ranges));
        let rejected = self.rejected.iter().map(|(of, ranges, _)| (*of, ranges));
        requeued.chain(rejected).filter(move |(of, _)| *of == queue).flat_map(|(_, ranges)| ranges)
    }
}

/// Where one publish of a commit goes.
struct Targets {
    durable: Vec<QueueUid>,
    memory: Vec<QueueUid>,
}

impl Core {
    /// Decides a commit.
    pub(crate) fn commit(&mut self, id: ConnectionId, verb: Verb) {
        let Op::Commit(commit) = &verb.op else { return };
        let routes = match self.commit_routes(verb.vhost, commit) {
            Ok(routes) => routes,
            Err(refusal) => return self.refuse_commit(id, verb, refusal),
        };
        if routes.iter().any(|route| route.is_empty()) && self.topology_in_flight() {
            return self.stall(id, verb);
        }
        let targets = self.commit_targets(commit, &routes);
        if goes_in_pieces(commit, self.commit_max()) && targets.iter().any(|t| !t.durable.is_empty()) {
            return self.put_large(id, verb);
        }
        self.decide_commit(id, verb, &targets, &[]);
    }

    /// The bodies of a commit are in the log.
    pub(crate) fn complete_commit(&mut self, id: ConnectionId, verb: Verb, extents: &[Extent]) {
        let Op::Commit(commit) = &verb.op else { return };
        match self.commit_routes(verb.vhost, commit) {
            Ok(routes) => {
                let targets = self.commit_targets(commit, &routes);
                self.decide_commit(id, verb, &targets, extents);
            }
            Err(refusal) => self.refuse_commit(id, verb, refusal),
        }
    }

    /// Bytes that the records of one commit may have: what one batch takes.
    fn commit_max(&self) -> usize {
        self.section_bytes - BATCH_OVERHEAD
    }

    fn refuse_commit(&mut self, id: ConnectionId, verb: Verb, refusal: Refusal) {
        if let Refusal::NotFound { name, .. } = &refusal {
            let new = self.new_topic(verb.vhost, name);
            if new.is_some() || self.topology_in_flight() {
                self.owe(new.as_slice());
                return self.stall(id, verb);
            }
        }
        self.reply(id, verb.request, Err(refusal));
        self.finished(id, &verb);
    }

    fn commit_routes(&mut self, vhost: VhostId, commit: &Commit) -> Result<Vec<Arc<Route>>, Refusal> {
        let mut routes = Vec::with_capacity(commit.publishes.len());
        for publish in &commit.publishes {
            let route = self.route_publish(vhost, publish);
            let Some(route) = route else {
                return Err(not_found("exchange", &publish.exchange, &self.vhost_name(vhost)));
            };
            routes.push(route);
        }
        self.all_have_room(commit.publishes.iter().zip(&routes))?;
        Ok(routes)
    }

    fn commit_targets(&mut self, commit: &Commit, routes: &[Arc<Route>]) -> Vec<Targets> {
        let targets = commit.publishes.iter().zip(routes).map(|(publish, route)| Targets {
            durable: self.durable_targets(route, publish),
            memory: self.memory_targets(route),
        });
        targets.collect()
    }

    fn decide_commit(&mut self, id: ConnectionId, verb: Verb, targets: &[Targets], extents: &[Extent]) {
        let (request, vhost, weight) = (verb.request, verb.vhost, weight(&verb));
        let (key, number) = (verb.key, verb.number);
        let Op::Commit(commit) = &verb.op else { return };
        let memory_cost = commit
            .publishes
            .iter()
            .zip(targets)
            .map(|(p, t)| memory::cost_of(p.message.bytes.len()) * t.memory.len())
            .sum::<usize>();
        if self.memory_used + memory_cost > limits::MEMORY_QUEUES_MAX {
            let text = format!("queues in memory hold {} bytes, their limit", limits::MEMORY_QUEUES_MAX);
            return self.refuse_commit(id, verb, Refusal::Limit(text));
        }
        let durable: Vec<&[QueueUid]> = targets.iter().map(|t| &t.durable[..]).collect();
        if let Err(refusal) = fits(&commit.publishes, &durable, extents, ranges_of(commit), self.commit_max())
        {
            return self.refuse_commit(id, verb, refusal);
        }
        let Op::Commit(commit) = verb.op else { return };
        let mut committing = Committing {
            connection: id,
            key,
            number,
            request,
            weight,
            vhost,
            publishes: commit.publishes,
            settlements: commit.settlements.clone(),
            settled: Vec::new(),
            settled_in_memory: Vec::new(),
            requeued: Vec::new(),
            rejected: Vec::new(),
            to_memory: Vec::new(),
            memory_cost,
            returned: Vec::new(),
        };
        self.memory_used += memory_cost;
        self.counters.published += committing.publishes.len() as u64;
        for (at, (publish, targets)) in committing.publishes.iter().zip(targets).enumerate() {
            committing.to_memory.extend(targets.memory.iter().map(|uid| (at, *uid)));
            let unroutable = targets.durable.is_empty() && targets.memory.is_empty();
            if unroutable {
                self.counters.no_route(publish.mandatory);
            }
            if unroutable && publish.mandatory {
                committing.returned.push(at);
            }
        }
        for settlement in commit.settlements {
            let key = (id, settlement.reader);
            let Some((queue, ranges)) = self.take_leases(key, &settlement.ranges) else { continue };
            if ranges.is_empty() {
                // What it held is gone: no record would answer this commit.
                continue;
            }
            if settlement.how == Settle::Requeue {
                committing.requeued.push((queue, ranges));
                continue;
            }
            if settlement.how == Settle::Discard && self.has_dead_letters(queue) {
                committing.rejected.push((queue, ranges, key));
                continue;
            }
            self.leases_settle(queue, &ranges);
            match self.runtimes.get(&queue).is_some_and(|r| r.memory.is_some()) {
                true => committing.settled_in_memory.push((queue, ranges)),
                false => committing.settled.push((queue, ranges)),
            }
        }
        if committing.settled.is_empty() && durable.iter().all(|queues| queues.is_empty()) {
            return self.committed(committing);
        }
        let in_memory = !committing.to_memory.is_empty();
        let sequence = self.next_sequence();
        self.write_commit(sequence, &committing, &durable, extents);
        self.number(Work::Commit(Box::new(committing)));
        self.keep_extents(sequence, extents);
        self.published(id, sequence);
        if in_memory && let Some(connection) = self.connections.get_mut(&id) {
            // What it publishes next must not overtake what waits here.
            connection.stalled_on = Some(sequence);
        }
    }

    /// Acked, and not settled before the record says so.
    fn leases_settle(&mut self, queue: QueueUid, ranges: &[(u64, u64)]) {
        let count = count(ranges);
        self.counters.settled += count;
        self.unleased(queue, count);
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.settling += count;
        }
    }

    fn write_commit(
        &mut self,
        sequence: u64,
        committing: &Committing,
        durable: &[&[QueueUid]],
        extents: &[Extent],
    ) {
        self.make_room(self.commit_max().min(size(
            &committing.publishes,
            durable,
            extents,
            &committing.settled,
        )));
        let now = self.stamp();
        let mut rest = extents;
        for (publish, queues) in committing.publishes.iter().zip(durable) {
            let own = take_extents(&mut rest, publish.message.body_len);
            for some in queues.chunks(limits::TARGETS_PER_REFERENCE) {
                self.write_one(sequence, &publish.message, some, own, 0, now);
            }
        }
        for (queue, ranges) in &committing.settled {
            for some in ranges.chunks(limits::RANGES_PER_SETTLEMENT) {
                self.write_settlement(sequence, *queue, some);
            }
        }
        self.write_end_of_pieces(sequence, extents);
    }

    /// Writes a commit again whose records were lost; false: nothing of it needs a record any more.
    ///
    /// # Errors
    /// Its routes grew, and it does not fit any more, or one before it was refused for that: nothing of it happens.
    pub(crate) fn redo_commit(
        &mut self,
        sequence: u64,
        committing: &mut Committing,
        extents: &[Extent],
    ) -> Result<bool, Refusal> {
        self.refused_before(committing.connection, committing.request)?;
        let mut targets = Vec::with_capacity(committing.publishes.len());
        for publish in &committing.publishes {
            let route = self.route_publish(committing.vhost, publish);
            targets.push(route.map_or_else(Vec::new, |route| self.durable_targets(&route, publish)));
        }
        let durable: Vec<&[QueueUid]> = targets.iter().map(|t| &t[..]).collect();
        let ranges = committing.settled.iter().map(|(_, ranges)| ranges.len()).sum();
        fits(
            &committing.publishes,
            &durable,
            extents,
            (committing.settled.len(), ranges),
            self.commit_max(),
        )?;
        if committing.settled.is_empty() && durable.iter().all(|queues| queues.is_empty()) {
            return Ok(false);
        }
        self.write_commit(sequence, committing, &durable, extents);
        Ok(true)
    }

    /// A commit as the client gave it, with its leases; `None`: its client knows that it failed.
    pub(crate) fn uncommit(&mut self, committing: Committing) -> Option<(ConnectionId, Verb)> {
        let Committing { connection, key, request, vhost, publishes, settlements, .. } = committing;
        if request == 0 {
            return None;
        }
        let op = Op::Commit(Commit { publishes, settlements });
        let verb = Verb { key, request, vhost, op, number: 0 };
        self.hold_again(connection, &verb);
        Some((connection, verb))
    }

    /// A commit that can not be decided again: what it settled is not settled.
    pub(crate) fn abort(&mut self, committing: &mut Committing, refusal: Refusal) {
        self.reply(committing.connection, committing.request, Err(refusal));
        committing.request = 0;
        committing.publishes.clear();
        committing.to_memory.clear();
        committing.returned.clear();
        let rejected = std::mem::take(&mut committing.rejected);
        committing.requeued.extend(rejected.into_iter().map(|(queue, ranges, _)| (queue, ranges)));
        let settled = std::mem::take(&mut committing.settled);
        for (queue, ranges) in settled.into_iter().chain(std::mem::take(&mut committing.settled_in_memory)) {
            if let Some(runtime) = self.runtimes.get_mut(&queue) {
                runtime.settling -= count(&ranges);
                // `committed` gives the leases back.
                runtime.unacked += count(&ranges);
            }
            committing.requeued.push((queue, ranges));
        }
    }

    /// A commit is in the log and applied, or had nothing for the log: its other parts happen.
    pub(crate) fn committed(&mut self, committing: Committing) {
        let id = committing.connection;
        self.give(id, committing.weight);
        self.memory_used -= committing.memory_cost;
        let mut last = None;
        for (at, uid) in committing.to_memory {
            if self.decided_queue(uid) {
                let message = match last.take() {
                    Some((of, message)) if of == at => message,
                    _ => self.stored_in_memory(&committing.publishes[at].message),
                };
                last = Some((at, message.clone()));
                self.push_one_to_memory(uid, message, &committing.publishes[at].message);
            }
        }
        for (queue, ranges) in &committing.settled {
            self.no_longer_settling(*queue, ranges);
            self.no_longer_ready(*queue, ranges);
        }
        for (queue, ranges) in committing.settled_in_memory {
            self.no_longer_settling(queue, &ranges);
            self.settle_in(queue, ranges);
        }
        for (queue, ranges, by) in committing.rejected {
            self.counters.settled += count(&ranges);
            self.unleased(queue, count(&ranges));
            self.dead_letter(Some(by), queue, ranges, Cause::Rejected);
            self.list(queue);
        }
        for (queue, ranges) in committing.requeued {
            self.requeue(queue, &ranges);
            self.list(queue);
        }
        let mut publishes: VecDeque<(usize, Publish)> =
            committing.publishes.into_iter().enumerate().collect();
        for at in committing.returned {
            while let Some((n, publish)) = publishes.pop_front() {
                if n == at {
                    let channel = publish.channel;
                    self.event(id, Event::Returned { channel, publish: Box::new(publish) });
                    break;
                }
            }
        }
        self.reply(id, committing.request, Ok(Reply::Ok));
    }

    fn no_longer_settling(&mut self, queue: QueueUid, ranges: &[(u64, u64)]) {
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.settling = runtime.settling.saturating_sub(count(ranges));
        }
    }
}

fn count(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, n)| n).sum()
}

/// The bodies of a commit that is too large for one batch go before it.
fn goes_in_pieces(commit: &Commit, max: usize) -> bool {
    let bytes: usize = commit.publishes.iter().map(|p| p.message.bytes.len() + REFERENCE_OVERHEAD).sum();
    bytes > max / 2 && commit.publishes.iter().any(|p| p.message.body_len > 0)
}

/// Settlements, and ranges in them.
fn ranges_of(commit: &Commit) -> (usize, usize) {
    (commit.settlements.len(), commit.settlements.iter().map(|s| s.ranges.len()).sum())
}

/// The pieces of the next body.
fn take_extents<'a>(rest: &mut &'a [Extent], body_len: u32) -> &'a [Extent] {
    let mut left = body_len;
    let own = rest.iter().take_while(|extent| {
        let more = left > 0;
        left = left.saturating_sub(extent.len);
        more
    });
    let (own, later) = rest.split_at(own.count());
    *rest = later;
    own
}

fn size(
    publishes: &[Publish],
    durable: &[&[QueueUid]],
    extents: &[Extent],
    settled: &[(QueueUid, Ranges)],
) -> usize {
    let ranges = settled.iter().map(|(_, ranges)| ranges.len()).sum();
    published_size(publishes, durable, extents) + settled_size((settled.len(), ranges))
}

fn published_size(publishes: &[Publish], durable: &[&[QueueUid]], extents: &[Extent]) -> usize {
    let one = |(publish, queues): (&Publish, &&[QueueUid])| {
        let body = if extents.is_empty() { publish.message.body_len as usize } else { 0 };
        let other = publish.message.bytes.len() - publish.message.body_len as usize;
        let records = queues.len().div_ceil(limits::TARGETS_PER_REFERENCE);
        (other + body + REFERENCE_OVERHEAD) * records + queues.len() * ENTRY
    };
    publishes.iter().zip(durable).map(one).sum::<usize>() + size_of_val(extents) + end_size(extents)
}

fn settled_size((settlements, ranges): (usize, usize)) -> usize {
    // A settlement with many ranges stands in several records.
    (settlements + ranges / limits::RANGES_PER_SETTLEMENT) * 32 + ranges * 16
}

fn fits(
    publishes: &[Publish],
    durable: &[&[QueueUid]],
    extents: &[Extent],
    settled: (usize, usize),
    max: usize,
) -> Result<(), Refusal> {
    let bytes = published_size(publishes, durable, extents) + settled_size(settled);
    if bytes <= max {
        return Ok(());
    }
    Err(Refusal::Limit(format!(
        "the transaction has {} publishes and {} acknowledgements: {bytes} bytes beside bodies, at most {max} fit",
        publishes.len(),
        settled.0,
    )))
}
