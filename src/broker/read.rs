//! Reading: subscriptions, deliveries, gets, pulls.
//!
//! Owns: what is handed to whom, from applied state only. Promises: a message is handed out once until it is settled or comes
//! back; a reader never holds more than its windows; a slow connection is given no more than its delivery credit.
//! Does not know: sockets, layouts, how positions become bytes (that is `message`).

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::api::{
    ConnectionId, Delivery, Event, Fetch, FetchStatus, Fetched, Located, Op, QueueFigures, QueueKind,
    QueueUid, Refusal, Reply, Subscribe, Verb,
};
use super::core::{Core, Waiter, Work};
use super::decide::not_found;
use super::home::Found;
use super::message::resolve;
use super::reader::{Reader, ReaderKey, push_range};
use crate::limits;

/// The offsets of (first, count) ranges.
pub(crate) fn offsets<'a>(ranges: impl IntoIterator<Item = &'a (u64, u64)>) -> impl Iterator<Item = u64> {
    ranges.into_iter().flat_map(|(first, count)| *first..*first + *count)
}

impl Core {
    /// Verbs that only look, or change what no record holds.
    pub(crate) fn read(&mut self, id: ConnectionId, verb: Verb) {
        match &verb.op {
            Op::Subscribe(subscribe) => {
                let subscribe = subscribe.clone();
                self.subscribe(id, verb, &subscribe);
            }
            Op::SubscribeReplies { reader, channel, key } => {
                self.subscribe_replies(id, *reader, *channel, Arc::clone(key));
                self.reply(id, verb.request, Ok(Reply::Subscribed));
            }
            Op::Unsubscribe { reader } => {
                let key = (id, *reader);
                self.end_replies(id, |of, _| of == key.1);
                let queue = self.readers.get(&key).map(|r| r.queue);
                self.detach(key);
                self.reply(id, verb.request, Ok(Reply::Ok));
                if let Some(queue) = queue {
                    self.after_detach(queue);
                }
            }
            Op::Get { reader, channel, queue, no_ack } => {
                let (getter, queue, no_ack) = ((*reader, *channel), Arc::clone(queue), *no_ack);
                self.get(id, verb, getter, &queue, no_ack);
            }
            Op::SetChannelWindow { channel, limit } => {
                let (channel, limit) = (*channel, *limit);
                self.set_window(id, channel, limit);
                self.reply(id, verb.request, Ok(Reply::Ok));
            }
            Op::CloseChannel { channel } => {
                let channel = *channel;
                self.close_channel(id, channel);
                self.reply(id, verb.request, Ok(Reply::Ok));
            }
            Op::Drained { bytes } => {
                let bytes = *bytes as usize;
                self.drained(id, bytes);
            }
            Op::Fetch(fetch) => {
                let fetch = fetch.clone();
                self.fetch(id, verb, fetch);
            }
            Op::QueueOffsets { topic, queue_id } => {
                let place = (Arc::clone(topic), *queue_id);
                let result = self.with_topic_queue(&verb, &place, Self::offsets);
                self.answer_look(id, verb, result);
            }
            Op::SearchOffset { topic, queue_id, timestamp } => {
                let (place, timestamp) = ((Arc::clone(topic), *queue_id), *timestamp);
                let result = self.with_topic_queue(&verb, &place, |core, uid| {
                    core.offset_at(uid, timestamp).map(Reply::Offset)
                });
                self.answer_look(id, verb, result);
            }
            Op::GroupOffset { group, topic, queue_id } => {
                let (group, place) = (Arc::clone(group), (Arc::clone(topic), *queue_id));
                let result =
                    self.with_topic_queue(&verb, &place, |core, uid| Ok(core.group_offset(&group, uid)));
                self.answer_look(id, verb, result);
            }
            Op::TopicStats { topic, group } => {
                let result = self.stats(&verb, topic.as_ref(), group.as_deref());
                self.answer_look(id, verb, result);
            }
            Op::GroupsOf { topic } => {
                let names = self.groups_of(topic);
                self.reply(id, verb.request, Ok(Reply::Names(names)));
            }
            Op::View { queue, position } => {
                let result = self.view(*queue, *position);
                self.reply(id, verb.request, result);
            }
            Op::QueueFigures(queues) => {
                let figures = queues.iter().take(limits::FIGURES_MAX).map(|uid| self.figures(*uid)).collect();
                self.reply(id, verb.request, Ok(Reply::Figures(figures)));
            }
            _ => {}
        }
    }

    /// A refusal that a change in flight may turn waits for it.
    fn answer_look(&mut self, id: ConnectionId, verb: Verb, result: Result<Reply, Refusal>) {
        if result.is_err() && self.topology_in_flight() {
            return self.stall(id, verb);
        }
        self.reply(id, verb.request, result);
    }

    // ---- consumers

    fn subscribe(&mut self, id: ConnectionId, verb: Verb, subscribe: &Subscribe) {
        let queue = match self.own_queue(id, verb.vhost, &subscribe.queue) {
            Ok(queue) if queue.in_memory() || self.state.queues.contains_key(&queue.uid) => queue,
            // Declared by somebody, not applied yet.
            Ok(_) => return self.stall(id, verb),
            Err(refusal) => return self.answer_look(id, verb, Err(refusal)),
        };
        let key = (id, subscribe.reader);
        let runtime = self.runtime(queue.uid);
        let taken = runtime.exclusive.is_some() || (subscribe.exclusive && !runtime.readers.is_empty());
        let single = self.limited.get(&queue.uid).is_some_and(|limited| limited.limits.single_active);
        if taken || (single && subscribe.exclusive) {
            let name = Arc::clone(&queue.spec.name);
            let vhost = self.state.topology.vhost_name(verb.vhost);
            return self.reply(id, verb.request, Err(Refusal::InExclusiveUse { name, vhost }));
        }
        let runtime = self.runtime(queue.uid);
        runtime.readers.push_back(key);
        runtime.was_read = true;
        self.used(queue.uid);
        let runtime = self.runtime(queue.uid);
        if subscribe.exclusive {
            runtime.exclusive = Some(key);
        }
        let reader = Reader {
            queue: queue.uid,
            no_ack: subscribe.no_ack,
            exclusive: subscribe.exclusive,
            priority: subscribe.priority,
            window: subscribe.window.reader,
            channel: subscribe.window.channel,
            got: false,
            attached: true,
            leases: std::collections::VecDeque::new(),
        };
        self.readers.insert(key, reader);
        self.readers_changed(queue.uid);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readers.insert(subscribe.reader);
        }
        self.reply(id, verb.request, Ok(Reply::Subscribed));
        self.list(queue.uid);
    }

    /// Takes a reader off its queue; it keeps what it holds.
    pub(crate) fn detach(&mut self, key: ReaderKey) {
        let Some(reader) = self.readers.get_mut(&key) else { return };
        if !reader.attached {
            return;
        }
        reader.attached = false;
        let (queue, empty) = (reader.queue, reader.leases.is_empty());
        if let Some(runtime) = self.runtimes.get_mut(&queue) {
            runtime.readers.retain(|k| *k != key);
            if runtime.exclusive == Some(key) {
                runtime.exclusive = None;
            }
        }
        self.readers_changed(queue);
        self.list(queue);
        if empty {
            self.readers.remove(&key);
            if let Some(connection) = self.connections.get_mut(&key.0) {
                connection.readers.remove(&key.1);
            }
        }
    }

    pub(crate) fn close_channel(&mut self, id: ConnectionId, channel: u16) {
        self.end_replies(id, |_, of| of == channel);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.windows.remove(&channel);
        connection.refused.remove(&channel);
        let keys: Vec<ReaderKey> = connection.readers.iter().map(|r| (id, *r)).collect();
        for key in keys {
            let Some(reader) = self.readers.get(&key).filter(|r| r.channel == channel) else { continue };
            let queue = reader.queue;
            self.drop_reader(key);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.readers.remove(&key.1);
            }
            self.after_detach(queue);
        }
    }

    pub(crate) fn set_window(&mut self, id: ConnectionId, channel: u16, limit: u16) {
        let held: usize = self
            .readers
            .iter()
            .filter(|(k, r)| k.0 == id && r.channel == channel)
            .map(|(_, r)| r.in_window(r.leases.len()))
            .sum();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.windows.insert(channel, (limit, u32::try_from(held).unwrap_or(u32::MAX)));
        self.list_readers_of(id);
    }

    /// Leases of a channel ended: its shared window has room again.
    pub(crate) fn window_freed(&mut self, id: ConnectionId, channel: u16, count: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some((_, held)) = connection.windows.get_mut(&channel) {
            *held = held.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            if count > 0 {
                self.list_readers_of(id);
            }
        }
    }

    /// Those first that did not get something last, so that each has its turn.
    fn list_readers_of(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (before, behind) = (..=connection.served, (Bound::Excluded(connection.served), Bound::Unbounded));
        let turns = connection.readers.range(behind).chain(connection.readers.range(before));
        let queues: Vec<QueueUid> =
            turns.filter_map(|r| self.readers.get(&(id, *r))).map(|r| r.queue).collect();
        queues.into_iter().for_each(|uid| self.list(uid));
    }

    fn drained(&mut self, id: ConnectionId, bytes: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let was_full = connection.outstanding >= limits::DELIVERY_CREDIT;
        connection.outstanding = connection.outstanding.saturating_sub(bytes);
        if was_full && connection.outstanding < limits::DELIVERY_CREDIT {
            self.list_readers_of(id);
        }
    }

    // ---- handing out

    /// Somebody else led meanwhile and handed out what was not settled. What the readers of this node hold still is theirs; what
    /// was settled elsewhere is not, and the rest goes out again.
    pub(crate) fn rebase_runtimes(&mut self) {
        let mut uids: Vec<QueueUid> = self.runtimes.keys().copied().collect();
        uids.sort_unstable();
        for uid in uids {
            let Some(cursor) = self.state.queues.get(&uid).map(|q| q.cursor.clone()) else { continue };
            let (mut taken, mut unacked) = self.in_flight(uid);
            let keys: Vec<ReaderKey> =
                self.readers.iter().filter(|(_, r)| r.queue == uid).map(|(key, _)| *key).collect();
            for key in keys {
                let Some(reader) = self.readers.get_mut(&key) else { continue };
                let before = reader.leases.len();
                reader.leases.retain(|offset| !cursor.is_settled(*offset));
                unacked += reader.leases.len() as u64;
                taken.extend(&reader.leases);
                let (channel, ended) = (reader.channel, reader.in_window(before - reader.leases.len()));
                self.window_freed(key.0, channel, ended);
            }
            let Some(runtime) = self.runtimes.get_mut(&uid) else { continue };
            runtime.unacked = unacked;
            runtime.next = runtime.next.max(cursor.floor());
            runtime.handed_before = runtime.handed_before.max(cursor.delivered_through);
            let (from, to) = (cursor.floor(), runtime.next);
            runtime.ready.clear();
            runtime.ready.extend((from..to).filter(|o| !cursor.is_settled(*o) && !taken.contains(o)));
        }
    }

    /// Offsets of a queue that verbs on their way settle or give back; how many of them count as held.
    pub(crate) fn in_flight(&self, uid: QueueUid) -> (BTreeSet<u64>, u64) {
        let (mut taken, mut held) = (BTreeSet::new(), 0);
        // What is done and waits for verbs before it has still to tell of it here.
        for pending in &self.pending {
            match &pending.work {
                Work::Settled { queue, ranges, .. } if *queue == uid => taken.extend(offsets(ranges)),
                Work::Dead(moving) if moving.dying.queue == uid => {
                    taken.insert(moving.dying.offset);
                }
                Work::Commit(commit) => {
                    taken.extend(offsets(commit.settled_of(uid)));
                    held += commit.requeued_of(uid).map(|(_, count)| count).sum::<u64>();
                    taken.extend(offsets(commit.requeued_of(uid)));
                }
                _ => {}
            }
        }
        taken.extend(
            self.dying()
                .filter(|(queue, ..)| *queue == uid)
                .flat_map(|(_, died, _)| offsets([&died]).collect::<Vec<_>>()),
        );
        (taken, held)
    }

    /// Gives a queue's messages to its readers and to the pulls that wait, for one turn.
    pub(crate) fn serve_queue(&mut self, uid: QueueUid) {
        if self.overlay.is_none() {
            // Who does not lead hands nothing out; the queue is listed again when a term starts.
            if let Some(runtime) = self.runtimes.get_mut(&uid) {
                runtime.fresh = None;
            }
            return;
        }
        self.wake_waiters(uid);
        let mut given = 0;
        // What front ends hold is not known yet: it must not go to somebody else.
        let may = !self.in_grace();
        while may && given < limits::DELIVERY_TURN {
            let Some(key) = self.next_reader(uid) else { break };
            let Some((offset, redelivered)) = self.next_message(uid) else { break };
            let no_ack = self.readers.get(&key).is_some_and(|r| r.no_ack);
            let Some(delivery) = self.load(uid, offset, redelivered, no_ack) else { continue };
            // What could not be read is not settled as it goes.
            let no_ack = no_ack && !matches!(delivery.message, Located::Stored { .. });
            given += delivery.weight as usize;
            self.counters.delivered += 1;
            self.counters.redelivered += u64::from(delivery.redelivered);
            self.take_lease(key, uid, offset, no_ack);
            self.hand_out(key, delivery);
        }
        self.settle_auto_acked(uid);
        self.settle_expired(uid);
        if given >= limits::DELIVERY_TURN {
            return self.list(uid);
        }
        if let Some(runtime) = self.runtimes.get_mut(&uid) {
            runtime.fresh = None;
        }
        self.watch_head(uid);
    }

    /// The next message to hand out: what came back first, then fresh ones.
    fn next_message(&mut self, uid: QueueUid) -> Option<(u64, bool)> {
        let runtime = self.runtimes.get_mut(&uid)?;
        if let Some((offset, out)) = runtime.ready.pop_first() {
            if runtime.keeps && offset >= runtime.top {
                runtime.top = offset + 1;
                if !runtime.handed && runtime.memory.is_none() {
                    runtime.handed = true;
                    self.handed.push(uid);
                }
            }
            return Some((offset, out || offset < runtime.handed_before));
        }
        let (next, end) = match (&runtime.memory, self.state.queues.get(&uid)) {
            (Some(memory), _) => (memory.next_unsettled(runtime.next), memory.next()),
            (None, Some(queue)) => (queue.cursor.next_unsettled(runtime.next), queue.index.next()),
            (None, None) => return None,
        };
        if next >= end {
            return None;
        }
        runtime.next = next + 1;
        if !runtime.handed && runtime.memory.is_none() {
            runtime.handed = true;
            self.handed.push(uid);
        }
        Some((next, next < runtime.handed_before))
    }

    /// A delivery of that message, or `None` when it is settled meanwhile (a purge).
    fn load(&mut self, uid: QueueUid, offset: u64, redelivered: bool, in_memory: bool) -> Option<Delivery> {
        if let Some(memory) = self.runtimes.get(&uid).and_then(|r| r.memory.as_ref()) {
            let (message, len) = memory.get(offset)?;
            if self.is_expired(uid, offset, memory.deadline(offset)) {
                self.expired.push(offset);
                return None;
            }
            let weight = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(64);
            return Some(Delivery { offset, position: 0, redelivered, attempts: 0, weight, message });
        }
        if self.state.queues.get(&uid)?.cursor.is_settled(offset) {
            return None;
        }
        let entry = self.entry(uid, offset)?;
        if self.is_expired(uid, offset, entry.deadline) {
            self.expired.push(offset);
            return None;
        }
        let attempts = self.state.queues.get(&uid)?.attempts.get(&offset).copied().unwrap_or(0);
        let mut delivery = located(offset, &entry, redelivered, attempts);
        let hot = self.cache_holds(&entry);
        if hot || in_memory {
            // What was just applied needs no reading; what is settled as it goes must be read before its segment may go.
            match resolve(&delivery.message, &*self.log, &mut self.cache) {
                Ok(message) => delivery.message = Located::Ready(message),
                // The connection finds the same, says so and ends.
                Err(error) => drop(self.damage(uid, offset, &error)),
            }
        }
        Some(delivery)
    }

    fn cache_holds(&self, entry: &Found) -> bool {
        self.cache.position() == Some(entry.place().0)
    }

    pub(crate) fn entry(&mut self, uid: QueueUid, offset: u64) -> Option<Found> {
        self.with_pages(|state, pages| {
            let queue = state.queues.get_mut(&uid)?;
            match queue.index.get(offset, uid, pages) {
                Ok(entry) => entry.map(|entry| Found::new(entry, queue.homes.get(&offset).copied())),
                Err(error) => panic!("index of queue {uid}, offset {offset}: {error}"),
            }
        })
    }

    fn take_lease(&mut self, key: ReaderKey, uid: QueueUid, offset: u64, no_ack: bool) {
        if no_ack {
            self.auto_acked.push((uid, offset));
            return;
        }
        let Some(reader) = self.readers.get_mut(&key) else { return };
        reader.lease(offset);
        let (channel, got) = (reader.channel, reader.got);
        if let Some(runtime) = self.runtimes.get_mut(&uid) {
            runtime.unacked += 1;
        }
        let Some(connection) = self.connections.get_mut(&key.0).filter(|_| !got) else { return };
        if let Some((_, held)) = connection.windows.get_mut(&channel) {
            *held += 1;
            connection.served = key.1;
        }
    }

    fn settle_auto_acked(&mut self, uid: QueueUid) {
        let acked = std::mem::take(&mut self.auto_acked);
        let mut ranges = Vec::new();
        acked
            .iter()
            .filter(|(queue, _)| *queue == uid)
            .for_each(|(_, offset)| push_range(&mut ranges, *offset));
        self.auto_acked = acked.into_iter().filter(|(queue, _)| *queue != uid).collect();
        self.counters.settled += ranges.iter().map(|(_, n)| n).sum::<u64>();
        self.settle_in(uid, ranges);
    }

    fn get(
        &mut self,
        id: ConnectionId,
        verb: Verb,
        (reader, channel): (u32, u16),
        queue: &Arc<str>,
        no_ack: bool,
    ) {
        let definition = match self.own_queue(id, verb.vhost, queue) {
            Ok(queue) if queue.in_memory() || self.state.queues.contains_key(&queue.uid) => queue,
            Ok(_) => return self.stall(id, verb),
            Err(refusal) => return self.answer_look(id, verb, Err(refusal)),
        };
        if self.in_grace() {
            return self.stall(id, verb);
        }
        let uid = definition.uid;
        self.runtime(uid);
        self.used(uid);
        // Who consumes waited before.
        self.serve_queue(uid);
        let mut delivery = None;
        while delivery.is_none() {
            let Some((offset, redelivered)) = self.next_message(uid) else { break };
            delivery = self.load(uid, offset, redelivered, no_ack);
        }
        self.settle_expired(uid);
        if delivery.is_none() && self.publishes_in_flight(id) {
            return self.stall_behind_publishes(id, verb);
        }
        if let Some(delivery) = &delivery {
            let no_ack = no_ack && !matches!(delivery.message, Located::Stored { .. });
            let key = (id, reader);
            if !no_ack && !self.readers.contains_key(&key) {
                self.readers.insert(key, Reader::getter(uid, channel));
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.readers.insert(reader);
                }
            }
            self.take_lease(key, uid, delivery.offset, no_ack);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.outstanding += delivery.weight as usize;
            }
            self.counters.delivered += 1;
            self.counters.redelivered += u64::from(delivery.redelivered);
        } else {
            self.counters.get_empty += 1;
        }
        self.settle_auto_acked(uid);
        self.watch_head(uid);
        let remaining = self.ready(uid);
        self.reply(id, verb.request, Ok(Reply::Got { delivery, remaining }));
    }

    // ---- counts

    /// Messages that nobody holds.
    pub(crate) fn ready(&self, uid: QueueUid) -> u64 {
        let runtime = self.runtimes.get(&uid);
        let depth = match (runtime.and_then(|r| r.memory.as_ref()), self.state.queues.get(&uid)) {
            (Some(memory), _) => memory.depth(),
            (None, Some(queue)) => queue.depth(),
            (None, None) => 0,
        };
        depth.saturating_sub(runtime.map_or(0, |r| r.unacked + r.settling))
    }

    /// Attached readers.
    pub(crate) fn consumers(&self, uid: QueueUid) -> u32 {
        u32::try_from(self.runtimes.get(&uid).map_or(0, |r| r.readers.len())).unwrap_or(u32::MAX)
    }

    /// What a purge takes: everything unsettled that nobody holds.
    pub(crate) fn ready_ranges(&mut self, uid: QueueUid) -> Vec<(u64, u64)> {
        let held: BTreeSet<u64> =
            self.readers.values().filter(|r| r.queue == uid).flat_map(|r| r.leases.iter().copied()).collect();
        let (start, end) =
            match (self.runtimes.get(&uid).and_then(|r| r.memory.as_ref()), self.state.queues.get(&uid)) {
                (Some(memory), _) => (memory.next_unsettled(0), memory.next()),
                (None, Some(queue)) => (queue.cursor.floor(), queue.index.next()),
                (None, None) => (0, 0),
            };
        let mut ranges = Vec::new();
        let mut from = start;
        for stop in held.into_iter().chain([end]) {
            self.unsettled_ranges(uid, from, stop, &mut ranges);
            from = stop + 1;
        }
        ranges
    }

    /// Adds what is unsettled in `from..stop`.
    fn unsettled_ranges(&self, uid: QueueUid, from: u64, stop: u64, ranges: &mut Vec<(u64, u64)>) {
        let memory = self.runtimes.get(&uid).and_then(|r| r.memory.as_ref());
        let cursor = self.state.queues.get(&uid).map(|q| &q.cursor);
        if memory.is_none() && cursor.is_some_and(|c| c.settled_ahead() == 0) {
            // Nothing is settled above the floor: no need to look at each of perhaps millions.
            if stop > from {
                ranges.push((from, stop - from));
            }
            return;
        }
        let unsettled = |offset| match (memory, cursor) {
            (Some(memory), _) => memory.holds(offset),
            (None, Some(cursor)) => !cursor.is_settled(offset),
            (None, None) => false,
        };
        (from..stop).filter(|offset| unsettled(*offset)).for_each(|offset| push_range(ranges, offset));
    }

    // ---- pulls

    fn with_topic_queue(
        &mut self,
        verb: &Verb,
        (topic, queue_id): &(Arc<str>, u32),
        act: impl FnOnce(&mut Self, QueueUid) -> Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        let topology = &self.state.topology;
        if topology.topic(topic).is_none() && topology.queue_behind(topic).is_none() {
            return Err(not_found("topic", topic, &self.state.topology.vhost_name(verb.vhost)));
        }
        match self.topic_queue(topic, *queue_id) {
            Some(uid) => act(self, uid),
            None => Err(Refusal::Invalid(format!("queueId[{queue_id}] is illegal, topic:[{topic}]"))),
        }
    }

    pub(crate) fn bounds(&self, uid: QueueUid) -> (u64, u64) {
        let Some(queue) = self.state.queues.get(&uid) else { return (0, 0) };
        // What is settled at the head of a queue may be gone, and is nothing to begin with.
        let settled = if queue.kind == QueueKind::Topic { 0 } else { queue.cursor.floor() };
        (queue.index.head().max(settled), queue.index.next())
    }

    fn offsets(&mut self, uid: QueueUid) -> Result<Reply, Refusal> {
        let (min, max) = self.bounds(uid);
        Ok(Reply::Offsets { min, max, earliest: if min < max { self.store_time(uid, min)? } else { 0 } })
    }

    fn group_offset(&mut self, group: &str, uid: QueueUid) -> Reply {
        let (min, max) = self.bounds(uid);
        let offset = self.state.group_offsets.get(group).and_then(|o| o.get(&uid)).copied();
        Reply::GroupOffset { offset, min, max }
    }

    pub(crate) fn store_time(&mut self, uid: QueueUid, offset: u64) -> Result<u64, Refusal> {
        let Some(entry) = self.entry(uid, offset) else { return Ok(0) };
        let delivery = located(offset, &entry, false, 0);
        match resolve(&delivery.message, &*self.log, &mut self.cache) {
            Ok(message) => Ok(message.store_time),
            Err(error) => Err(Refusal::Damaged(self.damage(uid, offset, &error))),
        }
    }

    /// Bodies lie where only their readers look: a damaged one is its readers' trouble, and a line for whoever runs the broker.
    pub(crate) fn damage(&self, uid: QueueUid, offset: u64, error: &std::io::Error) -> String {
        let queue = self.state.topology.queue_by_uid(uid).map_or("", |queue| &*queue.spec.name);
        let text = format!("message {offset} of queue '{queue}' can not be read: {error}");
        tracing::error!("{text}");
        text
    }

    /// First offset stored at or after `timestamp`: store times never decrease along a queue.
    pub(crate) fn offset_at(&mut self, uid: QueueUid, timestamp: u64) -> Result<u64, Refusal> {
        let (mut low, mut high) = self.bounds(uid);
        while low < high {
            let middle = low + (high - low) / 2;
            // Whose message is settled has no time any more: the next one counts.
            let queue = self.state.queues.get(&uid);
            let probe = queue.map_or(middle, |queue| queue.cursor.next_unsettled(middle));
            if probe < high && self.store_time(uid, probe)? < timestamp {
                low = probe + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn fetch(&mut self, id: ConnectionId, verb: Verb, fetch: Fetch) {
        let place = (Arc::clone(&fetch.topic), fetch.queue_id);
        let mut found = None;
        let result = self.with_topic_queue(&verb, &place, |core, uid| {
            found = Some(uid);
            Ok(Reply::Fetched(core.fetch_now(uid, &fetch)))
        });
        let (Some(uid), Ok(Reply::Fetched(fetched))) = (found, &result) else {
            return self.answer_look(id, verb, result);
        };
        let waits = fetched.status == FetchStatus::NotFound && fetch.wait_ms > 0;
        if !waits || self.runtime(uid).waiting.len() >= limits::FETCH_WAITERS_MAX {
            return self.reply(id, verb.request, result);
        }
        let wait = Duration::from_millis(u64::from(fetch.wait_ms.min(limits::FETCH_WAIT_MAX_MS)));
        let deadline = self.monotonic() + wait;
        let number = self.waiter_number();
        self.runtime(uid).waiting.push(number);
        self.deadlines.insert((deadline, number), ());
        self.waiters
            .insert(number, Waiter { connection: id, request: verb.request, queue: uid, fetch, deadline });
    }

    fn fetch_now(&mut self, uid: QueueUid, fetch: &Fetch) -> Fetched {
        let (min, max) = self.bounds(uid);
        let mut fetched =
            Fetched { status: FetchStatus::NotFound, next: fetch.offset, min, max, deliveries: Vec::new() };
        if fetch.offset < min || fetch.offset > max {
            fetched.status = FetchStatus::OffsetMoved;
            fetched.next = if fetch.offset < min { min } else { max };
            return fetched;
        }
        let mut bytes = 0;
        let mut offset = fetch.offset;
        while offset < max
            && fetched.deliveries.len() < fetch.max_messages.min(limits::FETCH_MESSAGES_MAX) as usize
        {
            let Some(entry) = self.entry(uid, offset) else { break };
            let settled = self.state.queues.get(&uid).is_some_and(|q| q.cursor.is_settled(offset));
            if !settled && (fetch.tags.is_empty() || fetch.tags.contains(&entry.tag)) {
                if !fetched.deliveries.is_empty() && bytes + entry.len as usize > fetch.max_bytes as usize {
                    break;
                }
                bytes += entry.len as usize;
                let mut delivery = located(offset, &entry, false, 0);
                if self.cache_holds(&entry)
                    && let Ok(message) = resolve(&delivery.message, &*self.log, &mut self.cache)
                {
                    delivery.message = Located::Ready(message);
                }
                fetched.deliveries.push(delivery);
            }
            offset += 1;
            if offset - fetch.offset > 8192 {
                // A filter that matches nothing must not hold the shard.
                break;
            }
        }
        fetched.next = offset;
        self.counters.pulled += fetched.deliveries.len() as u64;
        self.counters.pull_empty += u64::from(fetched.deliveries.is_empty());
        if !fetched.deliveries.is_empty() {
            fetched.status = FetchStatus::Found;
        } else if offset > fetch.offset {
            fetched.status = FetchStatus::NoneMatched;
        }
        fetched
    }

    fn wake_waiters(&mut self, uid: QueueUid) {
        let Some(runtime) = self.runtimes.get_mut(&uid) else { return };
        for number in std::mem::take(&mut runtime.waiting) {
            let Some(waiter) = self.waiters.get(&number) else { continue };
            let (fetch, connection, request) = (waiter.fetch.clone(), waiter.connection, waiter.request);
            let fetched = self.fetch_now(uid, &fetch);
            if fetched.status == FetchStatus::NotFound {
                self.runtime(uid).waiting.push(number);
                continue;
            }
            if fetched.status == FetchStatus::NoneMatched {
                // Its filter let nothing pass: it goes on waiting behind what it has seen.
                if let Some(waiter) = self.waiters.get_mut(&number) {
                    waiter.fetch.offset = fetched.next;
                }
                self.runtime(uid).waiting.push(number);
                continue;
            }
            self.forget_waiter(number);
            self.reply(connection, request, Ok(Reply::Fetched(fetched)));
        }
    }

    /// Ends waits whose time is up, and messages.
    pub fn expire(&mut self) {
        if !self.is_ready() {
            // What is here may be old: who waits goes on waiting.
            return;
        }
        let now = self.monotonic();
        if self.grace_deadline().is_some_and(|at| at <= now) {
            self.end_grace();
            self.give_up_lost();
        }
        while let Some(((at, number), ())) = self.deadlines.first_key_value().map(|(k, ())| (*k, ())) {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, number));
            self.end_wait(number);
        }
        self.expire_heads();
        self.expire_queues();
    }

    /// Answers a waiting pull with what is there.
    pub(crate) fn end_wait(&mut self, number: u64) {
        let Some(waiter) = self.waiters.get(&number) else { return };
        let (uid, fetch, connection, request) =
            (waiter.queue, waiter.fetch.clone(), waiter.connection, waiter.request);
        self.forget_waiter(number);
        let fetched = self.fetch_now(uid, &fetch);
        self.reply(connection, request, Ok(Reply::Fetched(fetched)));
    }

    pub(crate) fn forget_waiter(&mut self, number: u64) {
        if let Some(waiter) = self.waiters.remove(&number) {
            self.deadlines.remove(&(waiter.deadline, number));
            if let Some(runtime) = self.runtimes.get_mut(&waiter.queue) {
                runtime.waiting.retain(|n| *n != number);
            }
        }
    }

    // ---- looking

    fn figures(&self, uid: QueueUid) -> Option<QueueFigures> {
        self.state.topology.queue_by_uid(uid)?;
        let unacked = self.runtimes.get(&uid).map_or(0, |runtime| runtime.unacked);
        Some(QueueFigures { ready: self.ready(uid), unacked, consumers: self.consumers(uid) })
    }

    /// Tells every connection that the node is going down.
    pub fn shutting_down(&mut self) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.event(id, Event::ShuttingDown));
    }
}

/// A delivery of the message that an entry names.
pub(crate) fn located(offset: u64, entry: &Found, redelivered: bool, attempts: u32) -> Delivery {
    let (batch, record, len) = entry.place();
    Delivery {
        offset,
        position: entry.position,
        redelivered,
        attempts,
        weight: len,
        message: Located::Stored { batch, record, len },
    }
}
