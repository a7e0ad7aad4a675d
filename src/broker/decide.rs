//! Deciding verbs: what the leader makes of a wish, on the applied state plus what is in flight.
//!
//! Owns: the rules of every verb but reading. Promises: a verb is answered now, or written as records and answered when they are
//! applied, or waits; a wish refused because of a change that is still in flight waits for that change first (D7).
//! Does not know: reply codes, layouts of messages, threads.

use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::api::{
    BindingSpec, Cause, ChannelId, ConnectionId, Destination, Event, ExchangeKind, ExchangeSpec, Message, Op,
    Origin, Publish, QueueKind, QueueSpec, QueueUid, REPLY_QUEUE, Refusal, Reply, Send, SendMessage, Settle,
    StoredMessage, Verb, VhostId,
};
use super::change;
use super::core::{Core, Large, Pending, Work};
use super::dead::DEAD_PIECES;
use super::link::weight;
use super::memory;
use super::message::{ENTRY, Extent, put_reference};
use super::moving::{self, Need};
use super::reader::{ReaderKey, Runtime};
use super::record::{Kind, put_text};
use super::reply::is_reply_key;
use super::retention::HOME_PIECES;
use super::state::{Enqueued, put_ranges};
use super::topology::{Change, Route, TOPIC_EXCHANGE_PREFIX, Topic, Topology};
use crate::limits;

/// Bytes of a record beside its message.
pub(crate) const REFERENCE_OVERHEAD: usize = 256;
/// Bytes of a send's key, and what a record may need beside.
const KEY_OVERHEAD: usize = 64;

/// What a topology verb leads to.
pub(crate) enum Outcome {
    /// Answer now.
    Answer(Result<Reply, Refusal>),
    /// Make these changes; `messages` goes into the answer.
    Changes(Vec<Change>, u64),
    /// Purge.
    Settle(QueueUid, Vec<(u64, u64)>, u64),
}

/// What deciding a verb again came to.
pub(crate) enum Redone {
    /// Its records are in the open batch.
    Written,
    /// There is nothing to write any more; it is answered as done.
    Nothing,
    /// Answer this now.
    Answer(Result<Reply, Refusal>),
}

impl Core {
    /// Decides one verb. The node leads and its session is open.
    pub(crate) fn decide(&mut self, id: ConnectionId, verb: Verb) {
        // A pull may wait: it is done with when it is answered.
        let number = if let Op::Fetch(_) = verb.op { 0 } else { verb.number };
        if self.is_behind_refusal(id, &verb) {
            self.finished(id, &verb);
        } else {
            self.decide_one(id, verb);
        }
        if number != 0 {
            self.guest_decided(id, number);
        }
    }

    fn decide_one(&mut self, id: ConnectionId, verb: Verb) {
        match &verb.op {
            // What counts or takes messages sees what the same client published before it.
            Op::DeclareQueue(..) | Op::PurgeQueue { .. } | Op::DeleteQueue { .. }
                if self.publishes_in_flight(id) =>
            {
                self.stall_behind_publishes(id, verb);
            }
            Op::Publish(publish) if publish.exchange.is_empty() => {
                if let Some(verb) = self.publish_replies(id, verb) {
                    self.publish(id, verb);
                }
            }
            Op::Publish(_) => self.publish(id, verb),
            Op::Send(_) => self.send(id, verb),
            Op::Commit(_) => self.commit(id, verb),
            Op::CheckPublish { channel, exchange } => {
                let (channel, exchange) = (*channel, Arc::clone(exchange));
                self.check_publish(id, verb, channel, &exchange);
            }
            Op::SendBack(_) => self.send_back(id, verb),
            Op::EndTransaction(_) => self.end_transaction(id, verb),
            Op::AnswerFor { group, answers } => {
                let (group, answers) = (Arc::clone(group), *answers);
                self.answer_for(id, &group, answers);
            }
            Op::Settle { reader, ranges, how } => {
                let (reader, ranges, how) = (*reader, ranges.clone(), *how);
                self.settle((id, reader), &ranges, how);
            }
            Op::Subscribe(_)
            | Op::SubscribeReplies { .. }
            | Op::Unsubscribe { .. }
            | Op::Get { .. }
            | Op::SetChannelWindow { .. }
            | Op::CloseChannel { .. }
            | Op::Fetch(_)
            | Op::QueueOffsets { .. }
            | Op::SearchOffset { .. }
            | Op::GroupOffset { .. }
            | Op::TopicStats { .. }
            | Op::GroupsOf { .. }
            | Op::View { .. }
            | Op::QueueFigures(_)
            | Op::Drained { .. } => self.read(id, verb),
            Op::CommitOffset { group, topic, queue_id, offset, wait } => {
                let Some(queue) = self.topic_queue(topic, *queue_id) else {
                    return self.refuse_missing(id, verb);
                };
                let (group, offset, wait) = (Arc::clone(group), *offset, *wait);
                if self.connections.get(&id).is_some_and(|c| c.gone)
                    && self.offset_stands(&group, queue, offset)
                {
                    return self.finished(id, &verb);
                }
                let kept = Verb { request: if wait { verb.request } else { 0 }, ..verb };
                let sequence = self.number(Work::Verb { connection: id, verb: kept, weight: 0 });
                self.write_offset(sequence, &group, queue, offset);
            }
            Op::LockQueues(_) | Op::UnlockQueues(_) => self.lock_queues(id, verb),
            Op::ResetOffsets(_) | Op::ForgetOffsets { .. } => self.set_offsets(id, verb),
            Op::Disconnected => self.disconnected(id),
            _ => self.change_topology(id, verb),
        }
    }

    /// Decides a numbered verb again after its records were lost.
    pub(crate) fn redo(&mut self, sequence: u64) {
        let Some(pending) = self.pending(sequence) else { return };
        if pending.done {
            return;
        }
        pending.enqueued.clear();
        pending.in_memory = None;
        let mut extents = pending.extents.clone();
        let mut work = std::mem::replace(&mut pending.work, Work::Unanswered);
        self.name_origin(sequence, &work);
        let written = match &mut work {
            Work::Verb { connection, verb, .. } => {
                match self.redo_verb(sequence, *connection, verb, &extents) {
                    Redone::Written => true,
                    Redone::Nothing => false,
                    Redone::Answer(result) => {
                        self.reply(*connection, verb.request, result);
                        // It is answered: what is left is its credit and who waits for it.
                        verb.request = 0;
                        false
                    }
                }
            }
            Work::Internal(changes) => {
                self.write_changes(sequence, changes);
                true
            }
            Work::Settled { queue, ranges, .. } => {
                self.write_settlement(sequence, *queue, ranges);
                true
            }
            Work::Needed(need) => self.write_need(sequence, need),
            // Somebody else's by now: what moves is chosen again.
            Work::Piece { connection: HOME_PIECES | DEAD_PIECES, .. } => false,
            Work::Piece { bytes, .. } => {
                self.write_piece(sequence, bytes);
                true
            }
            Work::Part { publish, targets } => {
                let topology = self.decided().clone();
                targets.retain(|uid| topology.queue_by_uid(*uid).is_some());
                if !targets.is_empty() {
                    self.write_reference(sequence, publish, targets, &extents);
                }
                // The pieces of its body are given up by the publish that it is a part of.
                extents.clear();
                !targets.is_empty()
            }
            Work::Dead(moving) => match self.redo_dead(sequence, moving, &extents) {
                Some(written) => written,
                None => {
                    work = Work::Unanswered;
                    false
                }
            },
            Work::Commit(committing) => match self.redo_commit(sequence, committing, &extents) {
                Ok(written) => written,
                Err(refusal) => {
                    self.abort(committing, refusal);
                    false
                }
            },
            Work::Unanswered => false,
        };
        let written = written || {
            self.make_room(end_size(&extents));
            self.write_end_of_pieces(sequence, &extents);
            !extents.is_empty()
        };
        if let Some(pending) = self.pending(sequence) {
            pending.work = work;
            pending.done = !written;
        }
    }

    fn redo_verb(&mut self, sequence: u64, id: ConnectionId, verb: &Verb, extents: &[Extent]) -> Redone {
        match &verb.op {
            Op::Publish(publish) => {
                let Some(route) = self.route_publish(verb.vhost, publish) else {
                    return Redone::Nothing;
                };
                let (route, full) = self.with_room(&route, &publish.message);
                self.note_refused(sequence, &full);
                let targets = self.durable_targets(&route, publish);
                // What goes beyond one record stands in parts before this verb.
                let last = targets.rchunks(limits::TARGETS_PER_REFERENCE).next().unwrap_or_default();
                if last.is_empty() {
                    return Redone::Nothing;
                }
                self.write_last(sequence, (&publish.message, 0), last, extents);
                Redone::Written
            }
            Op::Send(send) => self.redo_send(sequence, (id, verb), send, extents),
            Op::SendBack(back) => match self.judge_back(back).map(|step| self.write_move(sequence, &step)) {
                Ok(true) => Redone::Written,
                Ok(false) => Redone::Answer(Err(Refusal::Busy("its target changed meanwhile".into()))),
                Err(refusal) => Redone::Answer(Err(refusal)),
            },
            Op::EndTransaction(end) => match self.redo_end(sequence, end) {
                Ok(true) => Redone::Written,
                Ok(false) => Redone::Answer(Err(Refusal::Busy("its target changed meanwhile".into()))),
                Err(refusal) => Redone::Answer(Err(refusal)),
            },
            Op::CommitOffset { group, topic, queue_id, offset, .. } => {
                let Some(queue) = self.topic_queue(topic, *queue_id) else {
                    return Redone::Answer(Err(not_found("topic", topic, &self.vhost_name(verb.vhost))));
                };
                self.write_offset(sequence, group, queue, *offset);
                Redone::Written
            }
            Op::LockQueues(_) | Op::UnlockQueues(_) => {
                if self.redo_locks(sequence, &verb.op) {
                    Redone::Written
                } else {
                    Redone::Answer(Ok(self.locked(&verb.op)))
                }
            }
            Op::ResetOffsets(_) | Op::ForgetOffsets { .. } => self.redo_offsets(sequence, verb),
            _ => match self.topology_outcome(id, verb) {
                Outcome::Changes(changes, _) => {
                    self.write_changes(sequence, &changes);
                    Redone::Written
                }
                Outcome::Settle(queue, ranges, _) => {
                    self.write_settlement(sequence, queue, &ranges);
                    Redone::Written
                }
                Outcome::Answer(result) => Redone::Answer(result),
            },
        }
    }

    fn redo_send(
        &mut self,
        sequence: u64,
        (id, verb): (ConnectionId, &Verb),
        send: &Send,
        extents: &[Extent],
    ) -> Redone {
        if self.pending(sequence).is_some_and(|pending| pending.repeats)
            && self.write_repeated(sequence, id, send)
        {
            return Redone::Written;
        }
        let missing = self.decided().topic(&send.topic).is_none();
        let create = send
            .create_queues
            .filter(|_| missing)
            .map(|queues| (sequence, queues.clamp(1, limits::TOPIC_QUEUES_MAX)));
        let size = self.send_size(send);
        self.make_room(size + 16_384);
        let Some((queue_id, targets)) = self.send_targets(send, create) else {
            return Redone::Answer(Err(not_found("topic", &send.topic, &self.vhost_name(verb.vhost))));
        };
        self.write_send(sequence, (id, send), queue_id, &targets, extents);
        Redone::Written
    }

    // ---- publishing

    fn publish(&mut self, id: ConnectionId, verb: Verb) {
        let Op::Publish(publish) = &verb.op else { return };
        let route = self.route_publish(verb.vhost, publish);
        let Some(route) = route else { return self.no_exchange(id, verb) };
        if self.is_internal(verb.vhost, &publish.exchange) {
            let refusal =
                Refusal::Internal { name: Arc::clone(&publish.exchange), vhost: self.vhost_name(verb.vhost) };
            return self.refuse_publish(id, verb, refusal);
        }
        if route.is_empty() {
            return self.unroutable(id, verb);
        }
        self.counters.publish(publish.confirm != 0);
        let (route, full) = self.with_room(&route, &publish.message);
        if !full.is_empty() {
            self.turned_away(id, &verb, &full);
        }
        let Op::Publish(publish) = &verb.op else { return };
        let durable = self.durable_targets(&route, publish);
        if !durable.is_empty() && publish.message.bytes.len() + REFERENCE_OVERHEAD > self.batch_bytes {
            return self.put_large(id, verb);
        }
        if !self.push_to_memory(&route, publish) {
            return self.memory_full(id, verb);
        }
        if durable.is_empty() {
            if publish.confirm > 0 {
                self.confirm(id, publish.channel, publish.confirm, full.is_empty());
            }
            return self.finished(id, &verb);
        }
        let sequence = self.publish_durable(id, verb, &durable, &[]);
        self.note_refused(sequence, &full);
    }

    /// The message is kept until it is applied, to be decided again if this batch is lost: it is reference counted.
    fn publish_durable(
        &mut self,
        id: ConnectionId,
        verb: Verb,
        targets: &[QueueUid],
        extents: &[Extent],
    ) -> u64 {
        let Op::Publish(publish) = &verb.op else { return 0 };
        let weight = weight(&verb);
        let (first, last) = targets.split_at(targets.len() - targets.len() % limits::TARGETS_PER_REFERENCE);
        let (first, last) = if last.is_empty() {
            first.split_at(first.len() - limits::TARGETS_PER_REFERENCE)
        } else {
            (first, last)
        };
        for some in first.chunks(limits::TARGETS_PER_REFERENCE) {
            let part = Work::Part { publish: Box::new(publish.clone()), targets: some.to_vec() };
            self.write_reference(self.next_sequence(), publish, some, extents);
            let sequence = self.number(part);
            self.keep_extents(sequence, extents);
        }
        self.write_last(self.next_sequence(), (&publish.message, 0), last, extents);
        let sequence = self.number(Work::Verb { connection: id, verb, weight });
        self.published(id, sequence);
        self.keep_extents(sequence, extents);
        sequence
    }

    /// Some queue turned this publish away: whoever waits for its confirm is told so.
    fn note_refused(&mut self, sequence: u64, full: &[QueueUid]) {
        if let Some(pending) = self.pending(sequence) {
            pending.refused = !full.is_empty();
        }
    }

    /// The pieces of a large body are in the log whatever becomes of the reference to them.
    pub(crate) fn keep_extents(&mut self, sequence: u64, extents: &[Extent]) {
        if let Some(pending) = self.pending(sequence)
            && !extents.is_empty()
        {
            pending.extents = extents.to_vec();
        }
    }

    fn check_publish(&mut self, id: ConnectionId, verb: Verb, channel: ChannelId, exchange: &Arc<str>) {
        let (name, vhost) = (Arc::clone(exchange), self.vhost_name(verb.vhost));
        let refusal = match self.decided().exchange(verb.vhost, exchange) {
            _ if name.is_empty() || self.new_topic(verb.vhost, exchange).is_some() => {
                return self.reply(id, verb.request, Ok(Reply::Ok));
            }
            None if self.topology_in_flight() => return self.stall(id, verb),
            None => Refusal::NotFound { kind: "exchange", name, vhost },
            Some(known) if known.spec.internal => Refusal::Internal { name, vhost },
            Some(_) => return self.reply(id, verb.request, Ok(Reply::Ok)),
        };
        if self.publishes_in_flight(id) {
            return self.stall_behind_publishes(id, verb);
        }
        self.refuse_channel(id, channel);
        self.event(id, Event::PublishRefused { channel, refusal });
    }

    fn no_exchange(&mut self, id: ConnectionId, verb: Verb) {
        if self.topology_in_flight() {
            return self.stall(id, verb);
        }
        let Op::Publish(publish) = &verb.op else { return };
        if let Some(change) = self.new_topic(verb.vhost, &publish.exchange) {
            self.owe(&[change]);
            return self.stall(id, verb);
        }
        let refusal = not_found("exchange", &publish.exchange, &self.vhost_name(verb.vhost));
        self.refuse_publish(id, verb, refusal);
    }

    /// The change that makes the topic of this exchange, if there is none and publishing to it may make one.
    pub(crate) fn new_topic(&self, vhost: VhostId, exchange: &str) -> Option<Change> {
        let name = exchange.strip_prefix(TOPIC_EXCHANGE_PREFIX).filter(|_| vhost == 0)?;
        let missing = self.decided().exchange(vhost, exchange).is_none();
        let queues = self.semantics.new_topic(name).filter(|_| missing)?.clamp(1, limits::TOPIC_QUEUES_MAX);
        self.topic_change(&name.into(), queues, queues, 6)
    }

    /// Once it stands at the head of the connection's publishes: what was taken before it is confirmed before its channel ends.
    fn refuse_publish(&mut self, id: ConnectionId, verb: Verb, refusal: Refusal) {
        let Op::Publish(publish) = &verb.op else { return };
        if self.publishes_in_flight(id) {
            return self.stall_behind_publishes(id, verb);
        }
        self.refuse_channel(id, publish.channel);
        self.event(id, Event::PublishRefused { channel: publish.channel, refusal });
        self.finished(id, &verb);
    }

    fn unroutable(&mut self, id: ConnectionId, verb: Verb) {
        if self.topology_in_flight() {
            return self.stall(id, verb);
        }
        self.finished(id, &verb);
        let Op::Publish(publish) = verb.op else { return };
        self.counters.publish(publish.confirm != 0);
        self.counters.no_route(publish.mandatory);
        let (channel, confirm, mandatory) = (publish.channel, publish.confirm, publish.mandatory);
        if mandatory {
            self.event(id, Event::Returned { channel, publish: Box::new(publish) });
        }
        if confirm > 0 {
            self.confirm(id, channel, confirm, true);
        }
    }

    fn memory_full(&mut self, id: ConnectionId, verb: Verb) {
        let Op::Publish(publish) = &verb.op else { return };
        if publish.confirm > 0 {
            self.confirm(id, publish.channel, publish.confirm, false);
            self.finished(id, &verb);
        } else {
            let text = format!("queues in memory hold {} bytes, their limit", limits::MEMORY_QUEUES_MAX);
            self.refuse_publish(id, verb, Refusal::Limit(text));
        }
    }

    /// A body too large for one batch goes first in pieces, each its own verb; the reference follows when they are applied (D5).
    /// The connection waits meanwhile, so that nothing overtakes.
    pub(crate) fn put_large(&mut self, id: ConnectionId, verb: Verb) {
        let size = self.batch_bytes - REFERENCE_OVERHEAD;
        let pieces: Vec<Bytes> = match &verb.op {
            Op::Publish(publish) => pieces(&publish.message, size).collect(),
            Op::Send(send) => pieces(&send.messages[0].message, size).collect(),
            Op::Commit(commit) => commit.publishes.iter().flat_map(|p| pieces(&p.message, size)).collect(),
            _ => return,
        };
        let left = pieces.len();
        self.large.insert(id, Large { verb, left, extents: Vec::with_capacity(left) });
        let mut last = 0;
        for bytes in pieces {
            last = self.number(Work::Piece { connection: id, bytes: bytes.clone() });
            self.write_piece(last, &bytes);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled_on = Some(last);
        }
    }

    pub(crate) fn write_piece(&mut self, sequence: u64, bytes: &Bytes) {
        self.record(sequence, Kind::Body, bytes.len() + 64, |buf, _| buf.put_slice(bytes));
    }

    /// Writes the last reference to a body; if that lies in pieces, the end of their wait in the same batch.
    fn write_last(
        &mut self,
        sequence: u64,
        (message, queue_id): (&Message, u32),
        targets: &[QueueUid],
        extents: &[Extent],
    ) {
        if !extents.is_empty() {
            self.make_room(reference_size(message, targets, extents) + end_size(extents));
        }
        let now = self.stamp();
        self.write_one(sequence, message, targets, extents, queue_id, now);
        self.write_end_of_pieces(sequence, extents);
    }

    /// Writes that no reference behind this record names these pieces: one without entries. Who writes one in front of it made room
    /// for both.
    pub(crate) fn write_end_of_pieces(&mut self, sequence: u64, extents: &[Extent]) {
        if extents.is_empty() {
            return;
        }
        let nothing = Message {
            origin: Origin::Amqp,
            bytes: Bytes::new(),
            prefix_len: 0,
            body_len: 0,
            tag_hash: 0,
            persistent: false,
            ttl: None,
        };
        let now = self.stamp();
        self.record(sequence, Kind::Reference, 0, |buf, record| {
            put_reference(buf, record, &nothing, &[], extents, now, |_| (0, 0));
        });
    }

    /// Nobody will name these pieces.
    pub(crate) fn give_up(&mut self, extents: &[Extent]) {
        if self.overlay.is_none() || extents.is_empty() {
            // Who does not lead looks for them when it does again.
            return;
        }
        self.make_room(end_size(extents));
        let sequence = self.number(Work::Unanswered);
        self.write_end_of_pieces(sequence, extents);
    }

    /// This node leads again: pieces that nobody here knows any more are given up.
    pub(crate) fn give_up_unnamed(&mut self) {
        let Some(session) = self.state.sessions.get(&self.session) else { return };
        let mut unnamed = session.pieces.clone();
        let waiting =
            self.pending.iter().filter(|pending| !pending.done).flat_map(|pending| &pending.extents);
        for extent in waiting.chain(self.large.values().flat_map(|large| &large.extents)) {
            unnamed.remove(&extent.position);
        }
        let extent = |position| Extent { position, len: 0, batch_back: 0 };
        self.give_up(&unnamed.into_iter().map(extent).collect::<Vec<_>>());
    }

    /// One piece of a large body is in the log.
    pub(crate) fn piece_stored(&mut self, id: ConnectionId, extent: Extent) {
        if id == HOME_PIECES {
            return self.home_piece_stored(extent);
        }
        if id == DEAD_PIECES {
            return self.dead_piece_stored(extent);
        }
        let Some(large) = self.large.get_mut(&id) else { return self.give_up(&[extent]) };
        large.extents.push(extent);
        large.left -= 1;
        if large.left > 0 {
            return;
        }
        let Some(large) = self.large.remove(&id) else { return };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled_on = None;
        }
        self.complete_large(id, large);
    }

    fn complete_large(&mut self, id: ConnectionId, large: Large) {
        if self.overlay.is_none() {
            // Not leading any more: the pieces are garbage, the verb starts over when it leads again.
            return self.stall(id, large.verb);
        }
        let (first, extents, number) = (self.next_sequence(), large.extents.clone(), large.verb.number);
        self.put_references(id, large);
        self.guest_decided(id, number);
        let named = |core: &mut Self, sequence| core.pending(sequence).is_some_and(|p| !p.extents.is_empty());
        if !(first..self.next_sequence()).any(|sequence| named(self, sequence)) {
            self.give_up(&extents);
        }
    }

    /// Writes the references to a large body, or tells that there are none.
    fn put_references(&mut self, id: ConnectionId, large: Large) {
        match &large.verb.op {
            Op::Commit(_) => self.complete_commit(id, large.verb, &large.extents),
            Op::Publish(publish) => {
                let Some(route) = self.route_publish(large.verb.vhost, publish) else {
                    return self.no_exchange(id, large.verb);
                };
                let (route, full) = self.with_room(&route, &publish.message);
                let durable = self.durable_targets(&route, publish);
                if !self.push_to_memory(&route, publish) {
                    return self.memory_full(id, large.verb);
                }
                if durable.is_empty() && full.is_empty() {
                    return self.unroutable(id, large.verb);
                }
                if durable.is_empty() {
                    self.confirm(id, publish.channel, publish.confirm, false);
                    return self.finished(id, &large.verb);
                }
                let sequence = self.publish_durable(id, large.verb, &durable, &large.extents);
                self.note_refused(sequence, &full);
            }
            Op::Send(send) => {
                let send = send.clone();
                let Some((queue_id, targets)) = self.send_targets(&send, None) else {
                    return self.refuse_missing(id, large.verb);
                };
                let weight = weight(&large.verb);
                let sequence = self.number(Work::Verb { connection: id, verb: large.verb, weight });
                self.keep_extents(sequence, &large.extents);
                self.write_send(sequence, (id, &send), queue_id, &targets, &large.extents);
            }
            _ => {}
        }
    }

    /// Durable queues of a route, and one message queue of each topic it reaches.
    pub(crate) fn durable_targets(&mut self, route: &Route, publish: &Publish) -> Vec<QueueUid> {
        let Some(overlay) = self.overlay.as_ref() else { return Vec::new() };
        let topology = &overlay.topology;
        let mut targets: Vec<QueueUid> = Vec::with_capacity(route.queues.len() + route.topics.len());
        for topic in &route.topics {
            let Some(topic) = topology.topic(topic) else { continue };
            let count = topic.write_queues.max(1);
            let chosen = self.semantics.topic_queue(&publish.message, count).unwrap_or_else(|| {
                self.round_robin += 1;
                u32::try_from(self.round_robin % u64::from(count)).unwrap_or(0)
            });
            targets.extend(topic.queues.get(chosen as usize).copied());
        }
        let durable = |uid: &QueueUid| topology.queue_by_uid(*uid).is_some_and(|q| !q.in_memory());
        targets.extend(route.queues.iter().copied().filter(durable));
        targets
    }

    /// Hands a message to the memory queues of a route; false: their budget is used up, and none got it.
    fn push_to_memory(&mut self, route: &Route, publish: &Publish) -> bool {
        if self.again {
            return true;
        }
        let memory = self.memory_targets(route);
        if memory.is_empty() {
            return true;
        }
        let stored = self.stored_in_memory(&publish.message);
        let cost = memory::cost(&stored) * memory.len();
        if self.memory_used + cost > limits::MEMORY_QUEUES_MAX {
            return false;
        }
        for uid in memory {
            self.push_one_to_memory(uid, stored.clone(), &publish.message);
        }
        true
    }

    /// Queues in memory of a route.
    pub(crate) fn memory_targets(&self, route: &Route) -> Vec<QueueUid> {
        let Some(overlay) = self.overlay.as_ref() else { return Vec::new() };
        let in_memory = |uid: &QueueUid| overlay.topology.queue_by_uid(*uid).is_some_and(|q| q.in_memory());
        route.queues.iter().copied().filter(in_memory).collect()
    }

    /// A message as queues in memory keep it.
    pub(crate) fn stored_in_memory(&self, message: &Message) -> StoredMessage {
        StoredMessage {
            origin: message.origin,
            // A copy of its own: a small message must not pin the whole read it came with.
            bytes: Bytes::copy_from_slice(&message.bytes),
            prefix_len: message.prefix_len,
            body_len: message.body_len,
            body: None,
            store_time: self.stamp(),
        }
    }

    pub(crate) fn push_one_to_memory(&mut self, uid: QueueUid, stored: StoredMessage, message: &Message) {
        let (deadline, priority) = (self.deadline(message, uid), self.priority(message, uid));
        let pressed = self.memory_used > limits::MEMORY_RESIDENT;
        let pressed_hard = self.memory_used > 2 * limits::MEMORY_RESIDENT;
        self.runtime(uid);
        let Some(runtime) = self.runtimes.get_mut(&uid) else { return };
        let memory = runtime.memory.get_or_insert_default();
        // Under pressure the end of a queue goes to the disk. What is short is about to be read.
        let pages = pressed_hard || (pressed && memory.depth() >= limits::PAGING_DEPTH);
        let (offset, cost) = memory.push(stored, deadline, self.spill.as_mut().filter(|_| pages));
        self.memory_used += cost;
        let body = message.body_len;
        self.arrived(Enqueued { queue: uid, offset, position: 0, deadline, priority, body });
    }

    fn write_reference(
        &mut self,
        sequence: u64,
        publish: &Publish,
        targets: &[QueueUid],
        extents: &[Extent],
    ) {
        let now = self.stamp();
        self.write_one(sequence, &publish.message, targets, extents, 0, now);
    }

    pub(crate) fn write_one(
        &mut self,
        sequence: u64,
        message: &Message,
        targets: &[QueueUid],
        extents: &[Extent],
        queue_id: u32,
        now: u64,
    ) {
        let semantics = Arc::clone(&self.semantics);
        let size = reference_size(message, targets, extents);
        // Most messages need none.
        let places: Vec<(u64, u8)> = if message.ttl.is_some() || !self.limited.is_empty() {
            targets.iter().map(|uid| self.note_coming(message, *uid)).collect()
        } else {
            Vec::new()
        };
        let mut places = places.into_iter();
        let place = |_| places.next().unwrap_or((0, 0));
        self.record(sequence, Kind::Reference, size, |buf, record| {
            let content = put_reference(buf, record, message, targets, extents, now, place);
            if message.origin == Origin::Rocketmq {
                semantics.stamp(&mut buf[content..content + message.prefix_len as usize], queue_id, now);
            }
        });
    }

    // ---- RocketMQ sends

    fn send(&mut self, id: ConnectionId, verb: Verb) {
        let Some(verb) = self.unless_repeated(id, verb) else { return };
        let Op::Send(send) = &verb.op else { return };
        let send = send.clone();
        let known = self.decided().topic(&send.topic).map(|t| t.write_queues);
        let (queues, created) = match (known, send.create_queues) {
            (Some(queues), _) => (queues, None),
            (None, Some(queues)) => {
                (queues.clamp(1, limits::TOPIC_QUEUES_MAX), Some(queues.clamp(1, limits::TOPIC_QUEUES_MAX)))
            }
            (None, None) => return self.refuse_missing(id, verb),
        };
        if let Some(wanted) = send.queue_id
            && wanted >= queues
        {
            let text = format!(
                "request queueId[{wanted}] is illegal, topic {} has {queues} write queues",
                send.topic
            );
            self.reply(id, verb.request, Err(Refusal::Invalid(text)));
            return self.finished(id, &verb);
        }
        if let Some(waits) = send.waits {
            self.ensure(&Need::Waiting(waits));
        }
        if send.messages.len() == 1
            && created.is_none()
            && send.messages[0].message.bytes.len() + REFERENCE_OVERHEAD > self.batch_bytes - 1024
        {
            return self.put_large(id, verb);
        }
        // All of a send, and the creation of its topic, stand in one batch: it is atomic.
        let total = self.send_size(&send) + created.map_or(0, |queues| 512 + queues as usize * 8);
        if total > self.section_bytes - 1024 {
            let text = format!(
                "a batch of messages has {total} bytes as stored, at most {} fit",
                self.section_bytes - 1024
            );
            self.reply(id, verb.request, Err(Refusal::Limit(text)));
            return self.finished(id, &verb);
        }
        self.make_room(total);
        let weight = weight(&verb);
        let sequence = self.number(Work::Verb { connection: id, verb, weight });
        match self.send_targets(&send, created.map(|queues| (sequence, queues))) {
            Some((queue_id, targets)) => self.write_send(sequence, (id, &send), queue_id, &targets, &[]),
            None => unreachable!("the topic and its queue were looked up on the same topology"),
        }
    }

    /// The message queue a send goes to, and for each message all its queues: that one first, then AMQP queues bound to the
    /// topic. `create`: (sequence, queues) if the topic must be made first. `None`: no such topic.
    fn send_targets(&mut self, send: &Send, create: Option<(u64, u32)>) -> Option<(u32, Vec<Vec<QueueUid>>)> {
        if let Some((sequence, queues)) = create {
            let change = self.topic_change(&send.topic, queues, queues, 6)?;
            self.write_changes(sequence, &[change]);
        }
        let topic = self.overlay.as_ref()?.topology.topic(&send.topic).cloned()?;
        let count = topic.write_queues.max(1);
        let queue_id = send.queue_id.unwrap_or_else(|| {
            self.round_robin += 1;
            u32::try_from(self.round_robin % u64::from(count)).unwrap_or(0)
        });
        let queue = *topic.queues.get(queue_id as usize)?;
        if let Some(waits) = send.waits {
            return Some((queue_id, vec![vec![self.waiting_queue(waits)?]; send.messages.len()]));
        }
        let exchange: Arc<str> = format!("{TOPIC_EXCHANGE_PREFIX}{}", send.topic).into();
        let mut targets = Vec::with_capacity(send.messages.len());
        for message in &send.messages {
            let publish = Publish {
                channel: 0,
                exchange: Arc::clone(&exchange),
                routing_key: Arc::clone(&message.tag),
                also: Vec::new(),
                mandatory: false,
                confirm: 0,
                message: message.message.clone(),
            };
            let (queues, in_memory) = self.topic_targets(queue, &publish);
            if in_memory {
                self.hand_to_memory(&publish);
            }
            targets.push(queues);
        }
        Some((queue_id, targets))
    }

    /// Durable queues that a message of a topic reaches, its message queue first; and whether it reaches queues in memory too.
    pub(crate) fn topic_targets(&mut self, queue: QueueUid, publish: &Publish) -> (Vec<QueueUid>, bool) {
        let mut targets = vec![queue];
        let route = self.route(0, &publish.exchange, &publish.routing_key, &publish.message);
        let Some(route) = route else { return (targets, false) };
        let (route, _) = self.with_room(&route, &publish.message);
        let Some(overlay) = self.overlay.as_ref() else { return (targets, false) };
        let known = |uid: &&QueueUid| overlay.topology.queue_by_uid(**uid).is_some();
        let durable = |uid: &QueueUid| overlay.topology.queue_by_uid(*uid).is_some_and(|q| !q.in_memory());
        targets.extend(route.queues.iter().copied().filter(durable));
        let in_memory = route.queues.iter().filter(known).any(|uid| !durable(uid));
        (targets, in_memory)
    }

    /// Bytes that the records of a send have at the most.
    fn send_size(&mut self, send: &Send) -> usize {
        let exchange: Arc<str> = format!("{TOPIC_EXCHANGE_PREFIX}{}", send.topic).into();
        let mut total = KEY_OVERHEAD;
        for SendMessage { message, tag } in &send.messages {
            let bound = self.route(0, &exchange, tag, message).map_or(0, |route| route.queues.len());
            total += message.bytes.len() + REFERENCE_OVERHEAD + (1 + bound) * ENTRY;
        }
        total
    }

    /// Hands a message of a topic to the queues in memory that it reaches; a full one goes without.
    pub(crate) fn hand_to_memory(&mut self, publish: &Publish) {
        if let Some(route) = self.route(0, &publish.exchange, &publish.routing_key, &publish.message) {
            self.push_to_memory(&route, publish);
        }
    }

    /// `extents`: where the body of its only message lies, if that was too large.
    fn write_send(
        &mut self,
        sequence: u64,
        (id, send): (ConnectionId, &Send),
        queue_id: u32,
        targets: &[Vec<QueueUid>],
        extents: &[Extent],
    ) {
        // Which queue that is may differ each time it is decided: the sender is told the last one.
        if let Some(pending) = self.pending(sequence) {
            pending.queue_id = queue_id;
        }
        if !extents.is_empty() {
            let shown = shown_queue(send, queue_id);
            let size = reference_size(&send.messages[0].message, &targets[0], extents) + end_size(extents);
            self.make_room(size + KEY_OVERHEAD);
            self.write_send_key(sequence, id, send);
            return self.write_last(sequence, (&send.messages[0].message, shown), &targets[0], extents);
        }
        // All messages of a send stand in one batch: it is atomic and its offsets adjoin.
        let size = self.send_size(send);
        self.make_room(size);
        self.write_send_key(sequence, id, send);
        let (now, shown) = (self.stamp(), shown_queue(send, queue_id));
        for (message, queues) in send.messages.iter().zip(targets) {
            self.write_one(sequence, &message.message, queues, &[], shown, now);
        }
    }

    /// In front of its messages, in the same batch.
    fn write_send_key(&mut self, sequence: u64, id: ConnectionId, send: &Send) {
        let messages = u32::try_from(send.messages.len()).unwrap_or(u32::MAX);
        if send.key != 0 && messages > 0 {
            self.write_key(sequence, id, send.key, messages);
        }
    }

    pub(crate) fn topic_queue(&self, topic: &str, queue_id: u32) -> Option<QueueUid> {
        match self.state.topology.topic(topic) {
            Some(topic) => topic.queues.get(queue_id as usize).copied(),
            None => self.state.topology.queue_behind(topic).filter(|_| queue_id == 0).map(|queue| queue.uid),
        }
    }

    fn refuse_missing(&mut self, id: ConnectionId, verb: Verb) {
        if self.topology_in_flight() {
            return self.stall(id, verb);
        }
        let (Op::Send(Send { topic, .. }) | Op::CommitOffset { topic, .. }) = &verb.op else { return };
        let refusal = not_found("topic", topic, &self.vhost_name(verb.vhost));
        self.reply(id, verb.request, Err(refusal));
        self.finished(id, &verb);
    }

    /// Has somebody stored, or is storing, an offset of that group that a late wish must not take back? Who waited for a leader in
    /// vain may have stored a later one over another connection meanwhile.
    fn offset_stands(&self, group: &str, queue: QueueUid, offset: u64) -> bool {
        let stored = self.state.group_offsets.get(group).and_then(|offsets| offsets.get(&queue));
        let on_its_way = |pending: &Pending| match &pending.work {
            Work::Verb {
                verb: Verb { op: Op::CommitOffset { group: of, topic, queue_id, .. }, .. }, ..
            } => &**of == group && self.topic_queue(topic, *queue_id) == Some(queue),
            _ => false,
        };
        stored.is_some_and(|stored| *stored > offset) || self.pending.iter().any(on_its_way)
    }

    pub(crate) fn write_offset(&mut self, sequence: u64, group: &str, queue: QueueUid, offset: u64) {
        self.record(sequence, Kind::OffsetCommit, 64 + group.len(), |buf, _| {
            buf.put_u64_le(queue);
            buf.put_u64_le(offset);
            put_text(buf, group);
        });
    }

    // ---- settling

    fn settle(&mut self, key: (ConnectionId, u32), ranges: &[(u64, u64)], how: Settle) {
        let Some((queue, taken)) = self.take_leases(key, ranges) else { return };
        match how {
            Settle::Requeue => self.requeue(queue, &taken),
            Settle::Ack | Settle::Discard => {
                let count = taken.iter().map(|(_, n)| n).sum();
                self.counters.settled += count;
                self.unleased(queue, count);
                match how {
                    Settle::Discard => self.dead_letter(Some(key), queue, taken, Cause::Rejected),
                    _ => self.settle_by(Some(key), queue, taken),
                }
            }
        }
        self.list(queue);
    }

    /// Takes leases away from a reader: its queue, and (first, count) ranges of what it held.
    pub(crate) fn take_leases(
        &mut self,
        key: (ConnectionId, u32),
        ranges: &[(u64, u64)],
    ) -> Option<(QueueUid, Vec<(u64, u64)>)> {
        let mut taken = Vec::new();
        let mut count = 0;
        let reader = self.readers.get_mut(&key)?;
        for (first, last) in ranges {
            count += reader.take(*first, *last, &mut taken);
        }
        let count = reader.in_window(count);
        let (queue, channel, idle) =
            (reader.queue, reader.channel, !reader.attached && reader.leases.is_empty());
        if idle {
            self.readers.remove(&key);
            if let Some(connection) = self.connections.get_mut(&key.0) {
                connection.readers.remove(&key.1);
            }
        }
        self.window_freed(key.0, channel, count);
        self.list(queue);
        Some((queue, taken))
    }

    /// Settles (first, count) ranges of a queue that nobody holds any more.
    pub(crate) fn settle_in(&mut self, queue: QueueUid, ranges: Vec<(u64, u64)>) {
        self.settle_by(None, queue, ranges);
    }

    /// The same; `by` held them and said so.
    pub(crate) fn settle_by(&mut self, by: Option<ReaderKey>, queue: QueueUid, ranges: Vec<(u64, u64)>) {
        if ranges.is_empty() {
            return;
        }
        self.no_longer_ready(queue, &ranges);
        if let Some(memory) = self.runtimes.get_mut(&queue).and_then(|r| r.memory.as_mut()) {
            let mut freed = 0;
            for (first, count) in ranges {
                freed += (first..first + count).map(|offset| memory.settle(offset)).sum::<usize>();
            }
            self.memory_used -= freed;
            return;
        }
        for some in ranges.chunks(limits::RANGES_PER_SETTLEMENT) {
            if let Some(runtime) = self.runtimes.get_mut(&queue) {
                runtime.settling += some.iter().map(|(_, n)| n).sum::<u64>();
            }
            let sequence = self.number(Work::Settled { queue, ranges: some.to_vec(), by });
            if self.overlay.is_some() {
                self.write_settlement(sequence, queue, some);
            }
        }
    }

    pub(crate) fn write_settlement(&mut self, sequence: u64, queue: QueueUid, ranges: &[(u64, u64)]) {
        self.record(sequence, Kind::Settlement, 32 + ranges.len() * 16, |buf, _| {
            put_ranges(buf, queue, ranges)
        });
    }

    pub(crate) fn requeue(&mut self, queue: QueueUid, ranges: &[(u64, u64)]) {
        let count: u64 = ranges.iter().map(|(_, n)| n).sum();
        self.unleased(queue, count);
        let quorum = self.state.queues.get(&queue).is_some_and(|q| q.kind == QueueKind::Quorum);
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.ready.extend(ranges.iter().flat_map(|(first, n)| *first..*first + *n));
        }
        self.watch_head(queue);
        if quorum && self.overlay.is_some() && !ranges.is_empty() {
            let ranges = ranges.to_vec();
            let sequence = self.number(Work::Unanswered);
            self.record(sequence, Kind::Release, 32 + ranges.len() * 16, |buf, _| {
                put_ranges(buf, queue, &ranges)
            });
        }
    }

    pub(crate) fn unleased(&mut self, queue: QueueUid, count: u64) {
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            assert!(runtime.unacked >= count, "a queue has no more leases to give back than it gave");
            runtime.unacked -= count;
        }
    }

    /// Releases everything a reader holds and forgets it.
    pub(crate) fn drop_reader(&mut self, key: (ConnectionId, u32)) {
        self.detach(key);
        let Some(reader) = self.readers.remove(&key) else { return };
        let mut ranges = Vec::new();
        let mut leases = reader.leases;
        let count = leases.len();
        leases.drain(..).for_each(|offset| super::reader::push_range(&mut ranges, offset));
        self.window_freed(key.0, reader.channel, if reader.got { 0 } else { count });
        self.requeue(reader.queue, &ranges);
        self.list(reader.queue);
    }

    // ---- topology

    pub(crate) fn vhost_name(&self, vhost: VhostId) -> Arc<str> {
        self.state.topology.vhost_name(vhost)
    }

    fn is_internal(&self, vhost: VhostId, exchange: &str) -> bool {
        self.overlay
            .as_ref()
            .and_then(|o| o.topology.exchange(vhost, exchange))
            .is_some_and(|exchange| exchange.spec.internal)
    }

    fn change_topology(&mut self, id: ConnectionId, verb: Verb) {
        match self.topology_outcome(id, &verb) {
            Outcome::Answer(Err(_)) if self.topology_in_flight() => self.stall(id, verb),
            Outcome::Answer(result) => {
                // What an answer rests on may still be in flight: a look at something that is not applied yet waits.
                if self.topology_in_flight() {
                    return self.stall(id, verb);
                }
                self.reply(id, verb.request, result);
            }
            Outcome::Changes(changes, messages) => {
                let sequence = self.number(Work::Verb { connection: id, verb, weight: 0 });
                if let Some(pending) = self.pending(sequence) {
                    pending.queue_id = u32::try_from(messages).unwrap_or(u32::MAX);
                }
                self.write_changes(sequence, &changes);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.stalled_on = Some(sequence);
                    connection.owned.extend(changes.iter().filter_map(|change| match change {
                        Change::Queue { uid, spec, .. } if spec.exclusive => Some(*uid),
                        _ => None,
                    }));
                }
            }
            Outcome::Settle(queue, ranges, messages) => {
                let in_memory = self.runtimes.get(&queue).is_some_and(|r| r.memory.is_some());
                if let Some(runtime) = self.runtimes.get_mut(&queue) {
                    runtime.ready.clear();
                }
                if in_memory || ranges.is_empty() {
                    self.settle_in(queue, ranges);
                    return self.reply(id, verb.request, Ok(Reply::Queue { messages, consumers: 0 }));
                }
                let (first, last) =
                    ranges.split_at(ranges.len().saturating_sub(limits::RANGES_PER_SETTLEMENT));
                self.settle_in(queue, first.to_vec());
                let sequence = self.number(Work::Verb { connection: id, verb, weight: 0 });
                if let Some(pending) = self.pending(sequence) {
                    pending.queue_id = u32::try_from(messages).unwrap_or(u32::MAX);
                }
                self.write_settlement(sequence, queue, last);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.stalled_on = Some(sequence);
                }
            }
        }
    }

    fn topology_outcome(&mut self, id: ConnectionId, verb: &Verb) -> Outcome {
        let vhost = verb.vhost;
        if !self.decided().has_vhost(vhost) {
            return answer(Err(Refusal::Invalid("the vhost is gone".into())));
        }
        match &verb.op {
            Op::CreateVhost { name } => self.create_vhost(name),
            Op::DeleteVhost { name } => self.delete_vhost(name),
            Op::DeclareExchange(spec, passive) => self.declare_exchange(id, vhost, spec, *passive),
            Op::DeleteExchange { name, if_unused } => self.delete_exchange(vhost, name, *if_unused),
            Op::DeclareQueue(spec, passive) => self.declare_queue(id, vhost, spec, *passive),
            Op::DeleteQueue { name, if_unused, if_empty } => {
                self.delete_queue(id, vhost, name, *if_unused, *if_empty)
            }
            Op::PurgeQueue { name } => self.purge_queue(id, vhost, name),
            Op::Bind(spec) => self.bind(id, vhost, spec),
            Op::Unbind(spec) => self.unbind(id, vhost, spec),
            Op::CreateTopic { topic, write_queues, read_queues, permission } => {
                if *write_queues > limits::TOPIC_QUEUES_MAX || *read_queues > limits::TOPIC_QUEUES_MAX {
                    return answer(Err(Refusal::Limit(format!(
                        "a topic has at most {} message queues",
                        limits::TOPIC_QUEUES_MAX
                    ))));
                }
                match self.topic_change(topic, *write_queues, *read_queues, *permission) {
                    Some(change) => Outcome::Changes(vec![change], 0),
                    None => answer(Ok(Reply::Ok)),
                }
            }
            Op::DeleteTopic { topic } => self.delete_topic(topic),
            Op::PutSetting { space, name, value } => self.put_setting(space, name, value.as_ref()),
            _ => answer(Err(Refusal::Invalid("not a topology verb".into()))),
        }
    }

    pub(crate) fn decided(&self) -> &Topology {
        self.overlay.as_ref().map_or(&self.state.topology, |o| &o.topology)
    }

    /// Is that queue still there, as far as is decided?
    pub(crate) fn decided_queue(&self, uid: QueueUid) -> bool {
        self.decided().queue_by_uid(uid).is_some()
    }

    fn create_vhost(&self, name: &Arc<str>) -> Outcome {
        if self.decided().vhost_id(name).is_some() {
            return answer(Ok(Reply::Ok));
        }
        let free = VhostId::try_from(self.decided().next_uid).ok();
        match free.filter(|_| self.decided().vhost_count() < limits::VHOSTS_MAX) {
            Some(id) => Outcome::Changes(vec![Change::Vhost(id, Arc::clone(name))], 0),
            None => answer(Err(Refusal::Limit(format!("a shard has at most {} vhosts", limits::VHOSTS_MAX)))),
        }
    }

    /// All of it goes in one batch: a vhost that is half gone is never seen.
    fn delete_vhost(&self, name: &Arc<str>) -> Outcome {
        let topology = self.decided();
        let id = match topology.vhost_id(name) {
            None => return answer(Ok(Reply::Ok)),
            // Topics live there.
            Some(0) => return answer(Err(Refusal::Invalid(format!("vhost '{name}' can not be deleted")))),
            Some(id) => id,
        };
        if topology.queue_count_in(id) > limits::VHOST_DELETE_QUEUES_MAX {
            let text = format!(
                "vhost '{name}' has more than {} queues: delete queues first",
                limits::VHOST_DELETE_QUEUES_MAX
            );
            return answer(Err(Refusal::Limit(text)));
        }
        let mut queues: Vec<QueueUid> =
            topology.queues().filter(|queue| queue.vhost == id).map(|queue| queue.uid).collect();
        queues.sort_unstable();
        let mut changes: Vec<Change> = queues.into_iter().map(Change::RemoveQueue).collect();
        changes.push(Change::RemoveVhost(id));
        Outcome::Changes(changes, 0)
    }

    fn declare_exchange(
        &mut self,
        id: ConnectionId,
        vhost: VhostId,
        spec: &ExchangeSpec,
        passive: bool,
    ) -> Outcome {
        let name = self.vhost_name(vhost);
        let Some(known) = self.decided().exchange(vhost, &spec.name) else {
            if passive {
                return answer(Err(not_found("exchange", &spec.name, &name)));
            }
            let session = (!spec.durable).then(|| self.owner_of(id).session);
            return Outcome::Changes(vec![Change::Exchange(vhost, spec.clone(), session)], 0);
        };
        if passive {
            return answer(Ok(Reply::Ok));
        }
        let known = &known.spec;
        let differs = [
            ("type", kind_name(spec.kind), kind_name(known.kind)),
            ("durable", text(spec.durable), text(known.durable)),
            ("auto_delete", text(spec.auto_delete), text(known.auto_delete)),
            ("internal", text(spec.internal), text(known.internal)),
        ]
        .into_iter()
        .find(|(_, received, current)| received != current)
        .map(|(a, r, c)| (a.to_string(), format!("'{r}'"), format!("'{c}'")))
        .or_else(|| self.semantics.arguments_differ("exchange", &spec.arguments, &known.arguments));
        match differs {
            Some(differs) => answer(Err(inequivalent("exchange", &spec.name, &name, differs))),
            None => answer(Ok(Reply::Ok)),
        }
    }

    fn delete_exchange(&mut self, vhost: VhostId, name: &Arc<str>, if_unused: bool) -> Outcome {
        let vhost_name = self.vhost_name(vhost);
        let Some(exchange) = self.decided().exchange(vhost, name) else { return answer(Ok(Reply::Ok)) };
        if if_unused && exchange.bindings > 0 {
            return answer(Err(Refusal::InUse {
                kind: "exchange",
                name: Arc::clone(name),
                vhost: vhost_name,
            }));
        }
        Outcome::Changes(self.with_auto_delete(vhost, Change::RemoveExchange(vhost, Arc::clone(name))), 0)
    }

    /// The change, and the removal of every auto-delete exchange that loses its last binding by it.
    pub(crate) fn with_auto_delete(&self, vhost: VhostId, change: Change) -> Vec<Change> {
        let mut topology = self.decided().clone();
        let mut changes = vec![change];
        let mut at = 0;
        while at < changes.len() {
            let sources: Vec<Arc<str>> = match &changes[at] {
                Change::RemoveQueue(uid) => topology.queue_by_uid(*uid).map_or_else(Vec::new, |queue| {
                    let destination = Destination::Queue(Arc::clone(&queue.spec.name));
                    topology
                        .bindings_to(queue.vhost, &destination)
                        .map(|b| Arc::clone(&b.spec.source))
                        .collect()
                }),
                Change::RemoveExchange(_, name) => {
                    let destination = Destination::Exchange(Arc::clone(name));
                    topology.bindings_to(vhost, &destination).map(|b| Arc::clone(&b.spec.source)).collect()
                }
                Change::RemoveTopic(name) => {
                    let destination = Destination::Exchange(format!("{TOPIC_EXCHANGE_PREFIX}{name}").into());
                    topology.bindings_to(vhost, &destination).map(|b| Arc::clone(&b.spec.source)).collect()
                }
                Change::RemoveBinding(_, spec) => vec![Arc::clone(&spec.source)],
                _ => Vec::new(),
            };
            topology.apply(&changes[at]);
            for source in sources {
                let goes =
                    topology.exchange(vhost, &source).is_some_and(|e| e.spec.auto_delete && e.bindings == 0);
                let removal = Change::RemoveExchange(vhost, source);
                if goes && !changes.contains(&removal) {
                    changes.push(removal);
                }
            }
            at += 1;
        }
        changes
    }

    /// May this connection touch the queue? Exclusive queues belong to their declarer.
    pub(crate) fn check_owner(
        &self,
        id: ConnectionId,
        queue: &super::topology::QueueDefinition,
    ) -> Result<(), Refusal> {
        if queue.spec.exclusive && queue.owner != Some(self.owner_of(id)) {
            return Err(Refusal::Locked {
                name: Arc::clone(&queue.spec.name),
                vhost: self.vhost_name(queue.vhost),
            });
        }
        Ok(())
    }

    fn declare_queue(
        &mut self,
        id: ConnectionId,
        vhost: VhostId,
        spec: &QueueSpec,
        passive: bool,
    ) -> Outcome {
        let vhost_name = self.vhost_name(vhost);
        if &*spec.name == REPLY_QUEUE || self.takes_replies(&spec.name) {
            return answer(Ok(Reply::Queue { messages: 0, consumers: 1 }));
        }
        let passive = passive || is_reply_key(&spec.name);
        let Some(known) = self.decided().queue(vhost, &spec.name).cloned() else {
            if passive {
                return answer(Err(not_found("queue", &spec.name, &vhost_name)));
            }
            if self.decided().queue_count() >= limits::QUEUES_MAX {
                return answer(Err(Refusal::Limit(format!(
                    "a shard has at most {} queues",
                    limits::QUEUES_MAX
                ))));
            }
            let bound = spec.exclusive || !spec.durable;
            let owner = bound.then(|| self.owner_of(id));
            let uid = self.decided().next_uid;
            return Outcome::Changes(vec![Change::Queue { uid, vhost, spec: spec.clone(), owner }], 0);
        };
        if let Err(refusal) = self.check_owner(id, &known) {
            return answer(Err(refusal));
        }
        if !passive && let Some(differs) = self.queue_differs(spec, &known.spec) {
            if differs.0 == "exclusive" {
                return answer(Err(Refusal::Locked { name: Arc::clone(&spec.name), vhost: vhost_name }));
            }
            return answer(Err(inequivalent("queue", &spec.name, &vhost_name, differs)));
        }
        self.used(known.uid);
        answer(Ok(Reply::Queue { messages: self.ready(known.uid), consumers: self.consumers(known.uid) }))
    }

    fn queue_differs(&self, asked: &QueueSpec, known: &QueueSpec) -> Option<(String, String, String)> {
        [
            // First: who is not the owner learns nothing else.
            ("exclusive", asked.exclusive, known.exclusive),
            ("durable", asked.durable, known.durable),
            ("auto_delete", asked.auto_delete, known.auto_delete),
        ]
        .into_iter()
        .find(|(_, asked, known)| asked != known)
        .map(|(name, asked, known)| (name.to_string(), format!("'{asked}'"), format!("'{known}'")))
        .or_else(|| self.semantics.arguments_differ("queue", &asked.arguments, &known.arguments))
    }

    /// The queue of that name, if this connection may touch it.
    pub(crate) fn own_queue(
        &self,
        id: ConnectionId,
        vhost: VhostId,
        name: &Arc<str>,
    ) -> Result<Arc<super::topology::QueueDefinition>, Refusal> {
        let queue = self.decided().queue(vhost, name).cloned();
        let queue = queue.ok_or_else(|| not_found("queue", name, &self.vhost_name(vhost)))?;
        self.check_owner(id, &queue)?;
        Ok(queue)
    }

    fn delete_queue(
        &mut self,
        id: ConnectionId,
        vhost: VhostId,
        name: &Arc<str>,
        if_unused: bool,
        if_empty: bool,
    ) -> Outcome {
        let queue = match self.own_queue(id, vhost, name) {
            Ok(queue) => queue,
            Err(Refusal::NotFound { .. }) => return answer(Ok(Reply::Queue { messages: 0, consumers: 0 })),
            Err(refusal) => return answer(Err(refusal)),
        };
        let vhost_name = self.vhost_name(vhost);
        if if_unused && self.consumers(queue.uid) > 0 {
            return answer(Err(Refusal::InUse { kind: "queue", name: Arc::clone(name), vhost: vhost_name }));
        }
        let messages = self.ready(queue.uid);
        if if_empty && messages > 0 {
            return answer(Err(Refusal::NotEmpty { name: Arc::clone(name), vhost: vhost_name }));
        }
        Outcome::Changes(self.with_auto_delete(vhost, Change::RemoveQueue(queue.uid)), messages)
    }

    fn purge_queue(&mut self, id: ConnectionId, vhost: VhostId, name: &Arc<str>) -> Outcome {
        let queue = match self.own_queue(id, vhost, name) {
            Ok(queue) => queue,
            Err(refusal) => return answer(Err(refusal)),
        };
        let ranges = self.ready_ranges(queue.uid);
        // What is settled already by records on their way stands in the ranges, but is not counted again.
        Outcome::Settle(queue.uid, ranges, self.ready(queue.uid))
    }

    fn bind(&mut self, id: ConnectionId, vhost: VhostId, spec: &BindingSpec) -> Outcome {
        if let Err(refusal) = self.check_ends(id, vhost, spec) {
            return answer(Err(refusal));
        }
        if self.decided().binding(vhost, spec).is_some() {
            return answer(Ok(Reply::Ok));
        }
        if self.decided().binding_count() >= limits::BINDINGS_MAX {
            return answer(Err(Refusal::Limit(format!(
                "a shard has at most {} bindings",
                limits::BINDINGS_MAX
            ))));
        }
        let uid = self.decided().next_uid;
        Outcome::Changes(vec![Change::Binding { uid, vhost, spec: spec.clone() }], 0)
    }

    fn check_ends(&self, id: ConnectionId, vhost: VhostId, spec: &BindingSpec) -> Result<(), Refusal> {
        match &spec.destination {
            Destination::Queue(name) => {
                self.own_queue(id, vhost, name)?;
            }
            Destination::Exchange(name) => {
                if self.decided().exchange(vhost, name).is_none() {
                    return Err(not_found("exchange", name, &self.vhost_name(vhost)));
                }
            }
        }
        if self.decided().exchange(vhost, &spec.source).is_none() {
            return Err(not_found("exchange", &spec.source, &self.vhost_name(vhost)));
        }
        Ok(())
    }

    fn unbind(&mut self, id: ConnectionId, vhost: VhostId, spec: &BindingSpec) -> Outcome {
        // Unbinding what is not there succeeds, whichever part is missing; an exclusive queue of another connection does not.
        if let Err(refusal @ Refusal::Locked { .. }) = self.check_ends(id, vhost, spec) {
            return answer(Err(refusal));
        }
        if self.decided().binding(vhost, spec).is_none() {
            return answer(Ok(Reply::Ok));
        }
        Outcome::Changes(self.with_auto_delete(vhost, Change::RemoveBinding(vhost, spec.clone())), 0)
    }

    /// The change that makes or alters a topic; `None`: it is so already. Queues are only ever added.
    pub(crate) fn topic_change(
        &self,
        name: &Arc<str>,
        write_queues: u32,
        read_queues: u32,
        permission: u32,
    ) -> Option<Change> {
        let topology = self.decided();
        let known = topology.topic(name);
        let mut queues = known.map_or_else(Vec::new, |t| t.queues.to_vec());
        let mut uid = topology.next_uid;
        while queues.len() < write_queues.max(read_queues) as usize {
            queues.push(uid);
            uid += 1;
        }
        let topic =
            Topic { name: Arc::clone(name), queues: queues.into(), write_queues, read_queues, permission };
        (known.map(|t| &**t) != Some(&topic)).then_some(Change::Topic { topic })
    }

    pub(crate) fn write_changes(&mut self, sequence: u64, changes: &[Change]) {
        // One verb's changes stand in one batch: they are atomic.
        self.make_room(changes.len() * 256);
        for change in changes {
            let kind = if change::removes(change) { Kind::Removal } else { Kind::Definition };
            self.record(sequence, kind, 0, |buf, _| change::put(buf, change));
            if let Some(overlay) = self.overlay.as_mut() {
                overlay.topology.apply(change);
            }
            self.note_limits(change);
        }
    }

    /// A queue of this shard was removed: readers are told, its memory is freed.
    pub(crate) fn queue_gone(&mut self, uid: QueueUid) {
        let Some(runtime) = self.runtimes.remove(&uid) else { return };
        self.due.remove(&(runtime.head_deadline, uid));
        self.memory_used -= runtime.memory.as_ref().map_or(0, memory::MemoryQueue::cost);
        let keys: Vec<_> = self.readers.iter().filter(|(_, r)| r.queue == uid).map(|(k, _)| *k).collect();
        for key in keys {
            let Some(reader) = self.readers.remove(&key) else { continue };
            self.window_freed(key.0, reader.channel, reader.in_window(reader.leases.len()));
            if let Some(connection) = self.connections.get_mut(&key.0) {
                connection.readers.remove(&key.1);
            }
            if reader.attached {
                self.event(key.0, Event::ReaderCancelled { reader: key.1 });
            }
        }
        for waiter in runtime.waiting {
            self.end_wait(waiter);
        }
    }

    /// Changes that the leader owes without being asked.
    pub(crate) fn owe(&mut self, changes: &[Change]) {
        if self.overlay.is_none() || changes.is_empty() {
            return;
        }
        let sequence = self.number(Work::Internal(changes.to_vec()));
        self.write_changes(sequence, changes);
    }

    /// A connection ended: what it held is released, what was its alone is removed.
    pub(crate) fn disconnected(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (readers, owned) =
            (std::mem::take(&mut connection.readers), std::mem::take(&mut connection.owned));
        self.producer_gone(id);
        for reader in readers {
            let queue = self.readers.get(&(id, reader)).map(|r| r.queue);
            self.drop_reader((id, reader));
            if let Some(queue) = queue {
                self.after_detach(queue);
            }
        }
        let waiting: Vec<u64> =
            self.waiters.iter().filter(|(_, w)| w.connection == id).map(|(n, _)| *n).collect();
        for waiter in waiting {
            self.forget_waiter(waiter);
        }
        self.end_replies(id, |_, _| true);
        self.answers_nothing(id);
        self.remove_owned(owned);
        self.forget(id);
    }

    /// Exclusive queues whose connection is gone.
    pub(crate) fn remove_owned(&mut self, owned: Vec<QueueUid>) {
        if self.overlay.is_none() {
            return self.orphans.extend(owned);
        }
        for uid in owned {
            let Some(queue) = self.decided().queue_by_uid(uid).cloned() else { continue };
            if queue.spec.exclusive {
                let changes = self.with_auto_delete(queue.vhost, Change::RemoveQueue(uid));
                self.owe(&changes);
            }
        }
    }

    /// An auto-delete queue that lost its last reader goes.
    pub(crate) fn after_detach(&mut self, uid: QueueUid) {
        self.used(uid);
        let unread = self.runtimes.get(&uid).is_some_and(|r| r.was_read && r.readers.is_empty());
        let Some(queue) = self.decided().queue_by_uid(uid).cloned() else { return };
        if unread && queue.spec.auto_delete {
            let changes = self.with_auto_delete(queue.vhost, Change::RemoveQueue(uid));
            self.owe(&changes);
        }
    }

    /// The volatile side of a queue, made when it is first needed.
    pub(crate) fn runtime(&mut self, uid: QueueUid) -> &mut Runtime {
        if !self.runtimes.contains_key(&uid) {
            let durable = self.state.queues.get(&uid).map(|q| (q.cursor.floor(), q.cursor.delivered_through));
            let runtime = match durable {
                Some((floor, handed)) => Runtime { next: floor, handed_before: handed, ..Runtime::default() },
                None => Runtime { memory: Some(memory::MemoryQueue::default()), ..Runtime::default() },
            };
            self.runtimes.insert(uid, runtime);
            self.fill_ready(uid);
        }
        self.runtimes.entry(uid).or_default()
    }
}

/// Bytes of a reference record, at most.
pub(crate) fn reference_size(message: &Message, targets: &[QueueUid], extents: &[Extent]) -> usize {
    let elsewhere = if extents.is_empty() { 0 } else { message.body_len as usize };
    message.bytes.len() - elsewhere + REFERENCE_OVERHEAD + targets.len() * ENTRY + size_of_val(extents)
}

/// Bytes of the record that ends the wait of pieces.
pub(crate) fn end_size(extents: &[Extent]) -> usize {
    if extents.is_empty() { 0 } else { REFERENCE_OVERHEAD + size_of_val(extents) }
}

/// A body in pieces that fit into batches.
pub(crate) fn pieces(message: &Message, size: usize) -> impl Iterator<Item = Bytes> + use<> {
    let (start, len) = (message.prefix_len as usize, message.body_len as usize);
    let body = message.bytes.slice(start..start + len);
    (0..len).step_by(size).map(move |at| body.slice(at..len.min(at + size)))
}

/// The message queue that the records of a send name.
fn shown_queue(send: &Send, queue_id: u32) -> u32 {
    send.waits.map_or(queue_id, moving::shown_queue)
}

pub(crate) fn answer(result: Result<Reply, Refusal>) -> Outcome {
    Outcome::Answer(result)
}

pub(crate) fn not_found(kind: &'static str, name: &Arc<str>, vhost: &Arc<str>) -> Refusal {
    Refusal::NotFound { kind, name: Arc::clone(name), vhost: Arc::clone(vhost) }
}

fn inequivalent(
    kind: &'static str,
    name: &Arc<str>,
    vhost: &Arc<str>,
    differs: (String, String, String),
) -> Refusal {
    let (argument, received, current) = differs;
    Refusal::Inequivalent {
        kind,
        name: Arc::clone(name),
        vhost: Arc::clone(vhost),
        argument,
        received,
        current,
    }
}

fn text(value: bool) -> String {
    value.to_string()
}

fn kind_name(kind: ExchangeKind) -> String {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Headers => "headers",
        ExchangeKind::RocketmqTopic => "rocketmq-topic",
    }
    .to_string()
}
