//! Dead letters: what is rejected, expires or is too much for its queue goes to another exchange.
//!
//! Owns: messages that died and are still in their queue, and their moves. Promises: the references in the next queues and the
//! settlement of the old entry stand in one batch, so that no crash loses or doubles a message; what came out of a queue in memory is
//! settled there when its records are applied; messages of a queue move in their order; a turn's work is bounded, the rest waits;
//! what has no exchange or no queue to go to is settled like any other.
//! Does not know: properties, what a death looks like in a message (it asks [`super::api::Semantics`]).

use std::collections::VecDeque;

use super::api::{Cause, ConnectionId, Death, Message, Offset, QueueUid, StoredMessage};
use super::core::{Core, Work};
use super::decide::{end_size, pieces, reference_size};
use super::later::Budget;
use super::memory;
use super::message::{Extent, resolve, resolve_placed};
use super::reader::ReaderKey;
use crate::limits;

/// The pieces of a large body on its way belong to no client's connection.
pub(crate) const DEAD_PIECES: ConnectionId = ConnectionId::MAX - 1;
/// Bytes of a move's records beside its references.
const OVERHEAD: usize = 512;

/// A message that died.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dying {
    pub(crate) queue: QueueUid,
    pub(crate) offset: Offset,
    pub(crate) cause: Cause,
    /// Who rejected it.
    pub(crate) by: Option<ReaderKey>,
}

/// One whose move is on its way into the log.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) dying: Dying,
    /// Queues in memory get it when the move is applied.
    to_memory: Option<(Message, Vec<QueueUid>)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    /// Not moved yet: oldest first, as (first, count) ranges.
    waiting: VecDeque<(Dying, u64)>,
    /// One whose body goes first, in pieces: how many are not in the log, and where the others are.
    large: Option<(Dying, usize, Vec<Extent>)>,
    budget: Option<Budget>,
    /// Somebody is at it: what dies by that waits.
    busy: bool,
    /// Dead letters of messages that no queue held.
    pub(crate) turned_away: u64,
}

/// Where a dead message goes.
struct Next {
    message: Message,
    durable: Vec<QueueUid>,
    memory: Vec<QueueUid>,
    /// Where its body lies; empty: it is written again.
    extents: Vec<Extent>,
}

/// What became of a message that died.
enum Fate {
    /// It is settled already, or can not be read.
    Gone,
    /// Nobody gets it.
    Dropped,
    Moves(Next),
}

impl Core {
    /// These (first, count) ranges of a queue, held by nobody any more, are dead.
    pub(crate) fn dead_letter(
        &mut self,
        by: Option<ReaderKey>,
        queue: QueueUid,
        ranges: Vec<(Offset, u64)>,
        cause: Cause,
    ) {
        if ranges.is_empty() {
            return;
        }
        if !self.has_dead_letters(queue) {
            return self.settle_by(by, queue, ranges);
        }
        self.no_longer_ready(queue, &ranges);
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.settling += ranges.iter().map(|(_, n)| n).sum::<u64>();
        }
        let died = |(offset, count)| (Dying { queue, offset, cause, by }, count);
        self.dead.waiting.extend(ranges.into_iter().map(died));
        self.move_dead();
    }

    /// Has that queue an exchange for its dead, and is that there?
    pub(crate) fn has_dead_letters(&self, queue: QueueUid) -> bool {
        let exchange = self.limited.get(&queue).and_then(|l| l.limits.dead_letter.as_ref());
        let (Some((exchange, _)), Some(of)) = (exchange, self.decided().queue_by_uid(queue)) else {
            return false;
        };
        exchange.is_empty() || self.decided().exchange(of.vhost, exchange).is_some()
    }

    /// Moves what died, for one turn; true: there is more to do at once.
    pub(crate) fn serve_dead(&mut self) -> bool {
        self.dead.budget = None;
        self.move_dead();
        let waits = self.overlay.as_ref().is_none_or(|o| o.closed.len() >= limits::BATCHES_IN_FLIGHT);
        !self.dead.waiting.is_empty() && self.dead.large.is_none() && !waits
    }

    fn move_dead(&mut self) {
        if self.dead.busy || self.dead.waiting.is_empty() || !self.is_ready() {
            return;
        }
        self.dead.busy = true;
        let full = || Budget { steps: limits::STEPS_PER_TURN, bytes: limits::STEP_BYTES_PER_TURN };
        let mut budget = self.dead.budget.take().unwrap_or_else(full);
        // The log may be behind: the next applied batch looks again.
        while !budget.is_spent()
            && self.dead.large.is_none()
            && self.overlay.as_ref().is_some_and(|o| o.closed.len() < limits::BATCHES_IN_FLIGHT)
        {
            let Some(dying) = self.next_dying() else { break };
            let bytes = self.move_one(dying, &[]);
            budget.take(bytes);
        }
        self.dead.budget = Some(budget);
        self.dead.busy = false;
    }

    fn next_dying(&mut self) -> Option<Dying> {
        let (dying, count) = self.dead.waiting.front_mut()?;
        let next = *dying;
        (dying.offset, *count) = (dying.offset + 1, *count - 1);
        if *count == 0 {
            self.dead.waiting.pop_front();
        }
        Some(next)
    }

    /// Decides one move; `extents`: its body was put there. Answers the bytes it looked at.
    fn move_one(&mut self, dying: Dying, extents: &[Extent]) -> usize {
        let next = match self.fate(dying, extents) {
            Fate::Gone => {
                self.no_longer_dying(dying.queue);
                self.give_up(extents);
                return 0;
            }
            Fate::Dropped => {
                self.no_longer_dying(dying.queue);
                self.settle_by(dying.by, dying.queue, vec![(dying.offset, 1)]);
                self.give_up(extents);
                return 0;
            }
            Fate::Moves(next) => next,
        };
        let bytes = next.message.bytes.len();
        if next.extents.is_empty() && self.is_large(&next) {
            self.put_dead_pieces(dying, &next.message);
            return bytes;
        }
        let written = self.write_dead(self.next_sequence(), dying, &next, extents);
        let to_memory = (!next.memory.is_empty()).then_some((next.message, next.memory));
        let moving = Moving { dying, to_memory };
        if !written {
            self.give_up(extents);
            self.dead_moved(moving, None);
            return bytes;
        }
        let sequence = self.number(Work::Dead(Box::new(moving)));
        self.keep_extents(sequence, extents);
        if let Some((connection, _)) = dying.by {
            // It may look for what it rejected.
            self.published(connection, sequence);
        }
        bytes
    }

    /// Does its reference need more than a batch?
    fn is_large(&self, next: &Next) -> bool {
        let some = &next.durable[..next.durable.len().min(limits::TARGETS_PER_REFERENCE)];
        !some.is_empty() && reference_size(&next.message, some, &[]) + OVERHEAD > self.batch_bytes
    }

    /// Where that message goes now.
    fn fate(&mut self, dying: Dying, extents: &[Extent]) -> Fate {
        let Some((message, place)) = self.dead_message(dying) else { return Fate::Gone };
        let Some(of) = self.decided().queue_by_uid(dying.queue).cloned() else { return Fate::Gone };
        let to = self.limited.get(&dying.queue).and_then(|l| l.limits.dead_letter.clone());
        let Some((exchange, routing_key)) = to else { return Fate::Dropped };
        let death = Death {
            cause: dying.cause,
            queue: &of.spec.name,
            exchange: &exchange,
            routing_key: routing_key.as_ref(),
            time: self.stamp() / 1000,
        };
        let letter = match self.semantics.dead_letter(&message, &death) {
            Ok(letter) => letter,
            Err(reason) => {
                // No reader could make sense of it either.
                tracing::error!(
                    "queue '{}', offset {}: no dead letter: {reason}",
                    of.spec.name,
                    dying.offset
                );
                return Fate::Dropped;
            }
        };
        let publish = letter.publish;
        let Some(route) = self.route_publish(of.vhost, &publish) else { return Fate::Dropped };
        let (route, _) = self.with_room(&route, &publish.message);
        let mut route = super::topology::Route::clone(&route);
        if !letter.barred.is_empty() {
            let topology = self.decided();
            let name = |uid: &QueueUid| topology.queue_by_uid(*uid).map(|queue| &queue.spec.name);
            let barred = |uid: &QueueUid| name(uid).is_some_and(|name| letter.barred.contains(name));
            route.queues.retain(|uid| !barred(uid));
        }
        let (durable, memory) = (self.durable_targets(&route, &publish), self.memory_targets(&route));
        if durable.is_empty() && memory.is_empty() {
            return Fate::Dropped;
        }
        let message = publish.message;
        let stays = letter.same_body && message.body_len > limits::MOVED_BODY_COPIED;
        let extents = match extents {
            [] if stays => place,
            written => written.to_vec(),
        };
        Fate::Moves(Next { message, durable, memory, extents })
    }

    /// A message that is still in its queue, and where its body lies if that is in the log.
    fn dead_message(&mut self, dying: Dying) -> Option<(StoredMessage, Vec<Extent>)> {
        let Dying { queue, offset, .. } = dying;
        let found = match self.runtimes.get(&queue).and_then(|r| r.memory.as_ref()) {
            Some(memory) => {
                let (located, _) = memory.get(offset)?;
                resolve(&located, &*self.log, &mut self.later.cache).map(|message| (message, Vec::new()))
            }
            None if self.state.queues.get(&queue)?.cursor.is_settled(offset) => return None,
            None => {
                let entry = self.entry(queue, offset)?;
                resolve_placed(entry.place(), &*self.log, &mut self.later.cache)
            }
        };
        // It stays where it is, for somebody to look at.
        found.inspect_err(|error| drop(self.damage(queue, offset, error))).ok()
    }

    /// Writes a move as verb `sequence`: its references, then the settlement; false: it needs no record. `pieces`: its body was
    /// put there for this.
    fn write_dead(&mut self, sequence: u64, dying: Dying, next: &Next, pieces: &[Extent]) -> bool {
        let durable_source = self.state.queues.contains_key(&dying.queue);
        if next.durable.is_empty() && !durable_source {
            return false;
        }
        let parts = next.durable.chunks(limits::TARGETS_PER_REFERENCE);
        let bytes =
            parts.clone().map(|some| reference_size(&next.message, some, &next.extents)).sum::<usize>();
        self.make_room(bytes + end_size(&next.extents) + OVERHEAD);
        let now = self.stamp();
        for some in parts {
            self.write_one(sequence, &next.message, some, &next.extents, 0, now);
        }
        if durable_source {
            self.write_settlement(sequence, dying.queue, &[(dying.offset, 1)]);
        }
        self.write_end_of_pieces(sequence, pieces);
        true
    }

    /// The same again after its records were lost; false: there is nothing to write. `None`: it needs now what it did not need
    /// before, and waits again as if it had just died.
    pub(crate) fn redo_dead(
        &mut self,
        sequence: u64,
        moving: &mut Moving,
        extents: &[Extent],
    ) -> Option<bool> {
        moving.to_memory = None;
        let dying = moving.dying;
        let next = match self.fate(dying, extents) {
            Fate::Gone => return Some(false),
            Fate::Dropped if self.state.queues.contains_key(&dying.queue) => {
                self.make_room(end_size(extents) + OVERHEAD);
                self.write_settlement(sequence, dying.queue, &[(dying.offset, 1)]);
                self.write_end_of_pieces(sequence, extents);
                return Some(true);
            }
            Fate::Dropped => return Some(false),
            Fate::Moves(next) => next,
        };
        if next.extents.is_empty() && self.is_large(&next) {
            self.dead.waiting.push_front((dying, 1));
            self.stalls_no_longer(dying, sequence);
            return None;
        }
        let written = self.write_dead(sequence, dying, &next, extents);
        moving.to_memory = (!next.memory.is_empty()).then_some((next.message, next.memory));
        Some(written)
    }

    /// A move is applied, or needed no record: queues in memory learn of it.
    pub(crate) fn dead_moved(&mut self, moving: Moving, sequence: Option<u64>) {
        let Moving { dying, to_memory } = moving;
        if let Some(sequence) = sequence {
            self.stalls_no_longer(dying, sequence);
        }
        self.no_longer_dying(dying.queue);
        if let Some(memory) = self.runtimes.get_mut(&dying.queue).and_then(|r| r.memory.as_mut()) {
            self.memory_used -= memory.settle(dying.offset);
        }
        let Some((message, queues)) = to_memory else { return };
        let stored = self.stored_in_memory(&message);
        for uid in queues.into_iter().filter(|uid| self.decided_queue(*uid)).collect::<Vec<_>>() {
            // A full one goes without.
            if self.memory_used + memory::cost(&stored) <= limits::MEMORY_QUEUES_MAX {
                self.push_one_to_memory(uid, stored.clone(), &message);
            }
        }
    }

    fn stalls_no_longer(&mut self, dying: Dying, sequence: u64) {
        if let Some((connection, _)) = dying.by {
            self.no_longer_stalled(connection, sequence);
        }
    }

    fn no_longer_dying(&mut self, queue: QueueUid) {
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.settling = runtime.settling.saturating_sub(1);
        }
    }

    /// (first, count) ranges of a queue that died and are not on their way yet; who rejected them.
    pub(crate) fn dying(&self) -> impl Iterator<Item = (QueueUid, (Offset, u64), Option<ReaderKey>)> {
        let large = self.dead.large.iter().map(|(dying, ..)| (*dying, 1));
        large
            .chain(self.dead.waiting.iter().copied())
            .map(|(dying, count)| (dying.queue, (dying.offset, count), dying.by))
    }

    /// Another leader finds out by itself, or is told.
    pub(crate) fn forget_dying(&mut self) {
        self.dead = Dead::default();
    }

    // ---- bodies that do not fit into a batch

    fn put_dead_pieces(&mut self, dying: Dying, message: &Message) {
        let size = self.batch_bytes - super::decide::REFERENCE_OVERHEAD;
        let pieces: Vec<bytes::Bytes> = pieces(message, size).collect();
        self.dead.large = Some((dying, pieces.len(), Vec::with_capacity(pieces.len())));
        for bytes in pieces {
            let sequence = self.number(Work::Piece { connection: DEAD_PIECES, bytes: bytes.clone() });
            self.write_piece(sequence, &bytes);
        }
    }

    /// One piece is in the log.
    pub(crate) fn dead_piece_stored(&mut self, extent: Extent) {
        let Some((_, left, extents)) = self.dead.large.as_mut() else { return self.give_up(&[extent]) };
        extents.push(extent);
        *left -= 1;
        if *left > 0 {
            return;
        }
        let Some((dying, _, extents)) = self.dead.large.take() else { return };
        if self.overlay.is_none() {
            // Not leading any more: the pieces are garbage, and it starts over with the next lead.
            return self.dead.waiting.push_front((dying, 1));
        }
        self.move_one(dying, &extents);
    }

    /// A term begins: pieces that are not named are given up.
    pub(crate) fn restart_dead(&mut self) {
        if let Some((dying, ..)) = self.dead.large.take() {
            self.dead.waiting.push_front((dying, 1));
        }
    }
}
