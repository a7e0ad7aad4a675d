//! A node that does not lead, serving its clients through the leader (ADR 12).
//!
//! Owns: the stream to the leader, and the verbs handed to it until they are done with. Promises: a verb is handed to one leader at a
//! time, and to the next one only when the log says that the one before did not commit it; events reach a client in the order in
//! which they became true, and not before this node has applied what they rest on; readers and what they hold are known here, so
//! that the next leader can be told.
//! Does not know: sockets, how verbs are decided.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::api::{ConnectionId, Delivery, Event, Offset, Op, Position, QueueUid, Reply, Settle, Verb};
use super::core::{Connection, Core, Work};
use super::dead::Dying;
use super::link::weight;
use super::reader::{Reader, ReaderKey, push_range};
use super::state::{Applied, Done, Enqueued};
use super::wire::{Presented, PresentedReader, ToFront, ToLeader, Turn, Unpacker, VERSION, pack};

/// Verbs for the leader leave in frames of about so many bytes.
const FLUSH_BYTES: usize = 1 << 20;

/// A verb that the leader has.
struct Sent {
    connection: ConnectionId,
    /// As the client gave it.
    verb: Verb,
    /// It is in the log, and so are these messages of it.
    applied: Option<Vec<Enqueued>>,
    /// The client has its answer.
    told: bool,
}

/// The stream to the leader.
struct ToIt {
    stream: u64,
    frames: mpsc::UnboundedSender<Bytes>,
    unpacker: Unpacker,
    /// The term in which it welcomed this node.
    term: Option<u64>,
    /// This node must have applied as much before it presents its connections.
    since: u64,
    /// It knows the connections of this node.
    live: bool,
    /// What it told before this node had applied as much.
    early: VecDeque<Turn>,
}

/// See the module.
pub(crate) struct Front {
    leader: Option<ToIt>,
    /// Verbs handed over and not done with; the first one has number `first`.
    sent: VecDeque<Sent>,
    first: u64,
    out: Vec<ToLeader>,
    /// Bytes of these, about.
    bytes: usize,
    /// What a leader knows of readers lies with this node's readers alone: queues forgot them.
    pub(crate) fronted: bool,
}

impl Front {
    /// Without a leader, without verbs. Numbers begin at 1: 0 is no number.
    pub(crate) fn new() -> Self {
        Front { leader: None, sent: VecDeque::new(), first: 1, out: Vec::new(), bytes: 0, fronted: false }
    }

    /// The leader knows the connections of this node, and takes their verbs.
    pub(crate) fn is_live(&self) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.live)
    }
}

impl Core {
    /// Verbs go to the leader now.
    #[must_use]
    pub fn is_front(&self) -> bool {
        self.front.is_live()
    }

    /// A stream to the leader opened.
    pub(crate) fn leader_attached(&mut self, stream: u64, frames: mpsc::UnboundedSender<Bytes>) {
        let to = ToIt {
            stream,
            frames,
            unpacker: Unpacker::default(),
            term: None,
            since: 0,
            live: false,
            early: VecDeque::new(),
        };
        to.say(&[ToLeader::Hello { version: VERSION, session: self.session }]);
        self.front.leader = Some(to);
    }

    /// It ended. What the leader has is not handed to another one before the log says what became of it.
    pub(crate) fn leader_detached(&mut self, stream: u64) {
        self.front.leader.take_if(|leader| leader.stream == stream);
        self.front.out.clear();
    }

    /// A frame from the leader.
    pub(crate) fn leader_frame(&mut self, stream: u64, frame: &[u8]) {
        let Some(leader) = self.front.leader.as_mut().filter(|leader| leader.stream == stream) else {
            return;
        };
        let Ok(messages) = leader.unpacker.take::<ToFront>(frame) else {
            return self.leader_detached(stream);
        };
        for message in messages {
            let Some(leader) = &mut self.front.leader else { return };
            match message {
                ToFront::Welcome { term, applied } => (leader.term, leader.since) = (Some(term), applied),
                ToFront::Turn(turn) => leader.early.push_back(turn),
            }
        }
        self.front_turn();
    }

    /// Goes on with what the leader said, as far as this node has applied what it rests on.
    pub(crate) fn front_turn(&mut self) {
        let applied = self.state.applied.map_or(0, |point| point.end);
        let Some(leader) = &self.front.leader else { return };
        if let Some(term) = leader.term.filter(|_| !leader.live) {
            if self.state.term > term {
                // Somebody else leads by now.
                return self.leader_detached(leader.stream);
            }
            if self.state.term == term && applied >= leader.since {
                self.present();
            }
        }
        while let Some(turn) = self
            .front
            .leader
            .as_mut()
            .filter(|leader| leader.live)
            .and_then(|leader| leader.early.pop_front_if(|turn| turn.applied <= applied))
        {
            for (connection, events) in turn.events {
                for event in events {
                    self.leader_event(connection, event);
                }
            }
            self.done_through(turn.through);
            if turn.asks != 0 {
                self.front.out.push(ToLeader::Seen(turn.asks));
            }
        }
    }

    /// Another term began: what the leader before it said is void, what it has is decided.
    pub(crate) fn leave_leader(&mut self, term: u64) {
        // One that was attached early may lead this very term.
        self.front.leader.take_if(|leader| leader.term.is_some_and(|known| known < term));
        self.front.out.clear();
        self.front.bytes = 0;
    }

    // ---- handing over

    /// Hands a verb of this node's client to the leader.
    pub(crate) fn hand_over(&mut self, id: ConnectionId, verb: Verb) {
        let number = self.front.first + self.front.sent.len() as u64;
        let (front_request, bytes) = (if verb.request == 0 { 0 } else { number }, weight(&verb) + 128);
        self.mirror(id, &verb);
        if let Op::Drained { .. } = verb.op {
            return self.push_out(id, verb, bytes);
        }
        let mut sent = Verb { number, request: front_request, ..verb.clone() };
        if let Op::Send(send) = &mut sent.op {
            send.arrived = self.monotonic().saturating_sub(send.arrived);
        }
        if let Op::Publish(publish) = &mut sent.op
            && publish.confirm > 0
        {
            publish.confirm = number;
        }
        self.front.sent.push_back(Sent { connection: id, verb, applied: None, told: false });
        self.push_out(id, sent, bytes);
    }

    fn push_out(&mut self, id: ConnectionId, verb: Verb, bytes: usize) {
        match self.front.out.last_mut() {
            Some(ToLeader::Verbs(last, verbs)) if *last == id => verbs.push(verb),
            _ => self.front.out.push(ToLeader::Verbs(id, vec![verb])),
        }
        self.front.bytes += bytes;
        if self.front.bytes >= FLUSH_BYTES {
            self.tell_leader();
        }
    }

    /// Sends what was gathered in this turn.
    pub(crate) fn tell_leader(&mut self) {
        self.front.bytes = 0;
        let out = std::mem::take(&mut self.front.out);
        if let Some(leader) = self.front.leader.as_ref().filter(|_| !out.is_empty()) {
            leader.say(&out);
        }
    }

    /// A client of this node is gone.
    pub(crate) fn front_gone(&mut self, id: ConnectionId) {
        self.disconnected(id);
        self.front.out.push(ToLeader::Gone(id));
    }

    /// What a verb does to what this node knows of its readers, when it is sent.
    fn mirror(&mut self, id: ConnectionId, verb: &Verb) {
        match &verb.op {
            Op::Drained { bytes } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.outstanding = connection.outstanding.saturating_sub(*bytes as usize);
                }
            }
            Op::Settle { reader, ranges, .. } => drop(self.take_leases((id, *reader), ranges)),
            Op::Commit(commit) => {
                for settlement in &commit.settlements {
                    drop(self.take_leases((id, settlement.reader), &settlement.ranges));
                }
            }
            Op::CloseChannel { channel } => self.close_channel(id, *channel),
            Op::SetChannelWindow { channel, limit } => self.set_window(id, *channel, *limit),
            Op::AnswerFor { group, answers } => self.answer_for(id, group, *answers),
            _ => {}
        }
    }

    // ---- what comes back

    fn leader_event(&mut self, id: ConnectionId, event: Event) {
        match event {
            Event::Reply { request: number, result } => {
                let Some(sent) = self.sent(number) else { return };
                sent.told = true;
                let verb = sent.verb.clone();
                if let Ok(reply) = &result {
                    self.mirror_reply(id, &verb, reply);
                }
                self.event(id, Event::Reply { request: verb.request, result });
            }
            Event::Confirmed { first, last, accepted, .. } => {
                for number in first..=last {
                    let Some(sent) = self.sent(number) else { continue };
                    sent.told = true;
                    let Op::Publish(publish) = &sent.verb.op else { continue };
                    let (channel, confirm) = (publish.channel, publish.confirm);
                    self.confirm(id, channel, confirm, accepted);
                }
            }
            Event::Returned { channel, mut publish } => {
                if publish.confirm > 0
                    && let Some(sent) = self.sent(publish.confirm)
                    && let Op::Publish(original) = &sent.verb.op
                {
                    publish.confirm = original.confirm;
                }
                self.event(id, Event::Returned { channel, publish });
            }
            Event::Deliveries { reader, deliveries } => {
                for delivery in &deliveries {
                    self.mirror_delivery(id, reader, delivery);
                }
                self.event(id, Event::Deliveries { reader, deliveries });
            }
            Event::ReaderCancelled { reader } => {
                self.readers.remove(&(id, reader));
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.readers.remove(&reader);
                }
                self.event(id, Event::ReaderCancelled { reader });
            }
            // Its node goes down, not this one.
            Event::ShuttingDown => {}
            Event::PublishRefused { .. } | Event::CheckBack(_) => self.event(id, event),
        }
    }

    fn sent(&mut self, number: u64) -> Option<&mut Sent> {
        let place = usize::try_from(number.checked_sub(self.front.first)?).ok()?;
        self.front.sent.get_mut(place)
    }

    fn mirror_reply(&mut self, id: ConnectionId, verb: &Verb, reply: &Reply) {
        match (&verb.op, reply) {
            (Op::Subscribe(subscribe), Reply::Subscribed) => {
                let queue = self.state.topology.queue(verb.vhost, &subscribe.queue).map(|queue| queue.uid);
                let Some(queue) = queue else { return };
                let reader = Reader {
                    queue,
                    no_ack: subscribe.no_ack,
                    exclusive: subscribe.exclusive,
                    priority: subscribe.priority,
                    window: subscribe.window.reader,
                    channel: subscribe.window.channel,
                    got: false,
                    attached: true,
                    leases: VecDeque::new(),
                };
                self.mirror_reader(id, subscribe.reader, reader);
            }
            (Op::SubscribeReplies { reader, channel, key }, _) => {
                self.subscribe_replies(id, *reader, *channel, key.clone());
            }
            (Op::Unsubscribe { reader }, _) => {
                self.end_replies(id, |of, _| of == *reader);
                self.detach((id, *reader));
            }
            (Op::Get { reader, channel, queue, no_ack }, Reply::Got { delivery: Some(delivery), .. }) => {
                let queue = self.state.topology.queue(verb.vhost, queue).map(|queue| queue.uid);
                let key = (id, *reader);
                if let Some(queue) = queue.filter(|_| !no_ack && !self.readers.contains_key(&key)) {
                    let getter = Reader::getter(queue, *channel);
                    self.mirror_reader(id, *reader, getter);
                }
                self.mirror_delivery(id, *reader, delivery);
            }
            _ => {}
        }
    }

    fn mirror_reader(&mut self, id: ConnectionId, number: u32, reader: Reader) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readers.insert(number);
            self.readers.insert((id, number), reader);
        }
    }

    fn mirror_delivery(&mut self, id: ConnectionId, reader: u32, delivery: &Delivery) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outstanding += delivery.weight as usize;
        let Some(reader) = self.readers.get_mut(&(id, reader)).filter(|reader| !reader.no_ack) else {
            return;
        };
        reader.lease(delivery.offset);
        if let Some((_, held)) = connection.windows.get_mut(&reader.channel) {
            *held += 1;
        }
    }

    /// The leader is done with all verbs up to that number.
    fn done_through(&mut self, through: u64) {
        while self.front.first <= through
            && let Some(sent) = self.front.sent.pop_front()
        {
            self.front.first += 1;
            self.give(sent.connection, weight(&sent.verb));
        }
    }

    /// What a batch says of verbs of this node.
    pub(crate) fn origins_applied(&mut self, applied: &Applied) {
        for (session, sequence, front, number) in &applied.origins {
            if *front != self.session {
                continue;
            }
            let messages: Vec<Enqueued> = applied
                .done
                .iter()
                .filter(|(by, of, _)| (by, of) == (session, sequence))
                .flat_map(|(.., done)| match done {
                    Done::Enqueued { first, count: 1.. } => &applied.enqueued[*first..=*first],
                    Done::Repeated { place } => &applied.again[*place],
                    Done::Enqueued { .. } | Done::Body { .. } | Done::Other => &[],
                })
                .copied()
                .collect();
            if let Some(sent) = self.sent(*number) {
                sent.applied = Some(messages);
            }
        }
    }

    // ---- a new leader

    /// Everything of the terms before is decided: answers what is in the log and was not answered, keeps the rest to be decided
    /// again, in order.
    pub(crate) fn take_back_sent(&mut self) {
        let sent = std::mem::take(&mut self.front.sent);
        self.front.first += sent.len() as u64;
        let mut again: Vec<(ConnectionId, Verb)> = Vec::new();
        for Sent { connection, verb, applied, told } in sent {
            match applied {
                Some(messages) => {
                    if !told {
                        self.answer_applied(connection, &verb, &messages);
                    }
                    self.give(connection, weight(&verb));
                }
                // Answered without a record: a look, a refusal, a queue in memory.
                None if told => self.give(connection, weight(&verb)),
                None if self.is_settled(connection, &verb) => {}
                // What was given back nobody holds; if the leader had done it, somebody may by now: it is not given back twice.
                None if matches!(verb.op, Op::Settle { how: Settle::Requeue, .. }) => {}
                None => {
                    self.hold_again(connection, &verb);
                    again.push((connection, verb));
                }
            }
        }
        for (id, verb) in again.into_iter().rev() {
            self.take_back(id, verb);
        }
    }

    /// Puts a verb in front of those that wait.
    fn take_back(&mut self, id: ConnectionId, verb: Verb) {
        // What a client that is gone had asked is not done any more: it would come late, behind what it asked elsewhere since.
        if self.connections.get(&id).is_some_and(|connection| !connection.gone) {
            self.stall(id, verb);
        }
    }

    /// A settlement has no answer; the queue tells whether it is in the log.
    fn is_settled(&self, id: ConnectionId, verb: &Verb) -> bool {
        let Op::Settle { reader, ranges, how: Settle::Ack | Settle::Discard } = &verb.op else {
            return false;
        };
        let Some(reader) = self.readers.get(&(id, *reader)) else { return false };
        let Some(queue) = self.state.queues.get(&reader.queue) else { return false };
        ranges.iter().all(|(first, last)| (*first..=*last).all(|offset| queue.cursor.is_settled(offset)))
    }

    /// What a settlement that is not in the log let go is held again until it is decided.
    pub(crate) fn hold_again(&mut self, id: ConnectionId, verb: &Verb) {
        let one;
        let settlements: &[(u32, &[(Offset, Offset)])] = match &verb.op {
            Op::Settle { reader, ranges, .. } => {
                one = [(*reader, &ranges[..])];
                &one
            }
            Op::Commit(commit) => {
                let all: Vec<_> = commit.settlements.iter().map(|s| (s.reader, &s.ranges[..])).collect();
                return all.into_iter().for_each(|(reader, ranges)| self.hold(id, reader, ranges));
            }
            _ => return,
        };
        settlements.iter().for_each(|(reader, ranges)| self.hold(id, *reader, ranges));
    }

    fn hold(&mut self, id: ConnectionId, reader: u32, ranges: &[(Offset, Offset)]) {
        let Some(reader) = self.readers.get_mut(&(id, reader)) else { return };
        let Some(queue) = self.state.queues.get(&reader.queue) else { return };
        let end = queue.index.next();
        for (first, last) in ranges {
            for offset in *first..=(*last).min(end.saturating_sub(1)) {
                if !queue.cursor.is_settled(offset) && reader.leases.binary_search(&offset).is_err() {
                    reader.lease(offset);
                }
            }
        }
    }

    /// It is in the log, and its answer was lost with the leader that had it.
    fn answer_applied(&mut self, id: ConnectionId, verb: &Verb, messages: &[Enqueued]) {
        match &verb.op {
            Op::Publish(publish) if publish.confirm > 0 => {
                self.confirm(id, publish.channel, publish.confirm, true);
            }
            Op::Publish(_) => {}
            Op::Send(send) => {
                let queue = messages.first().map(|message| message.queue);
                let queue_id = queue.and_then(|uid| self.queue_id_of(&send.topic, uid)).or(send.queue_id);
                let reply = Reply::Sent {
                    queue_id: queue_id.unwrap_or(0),
                    offsets: messages.iter().map(|message| message.offset).collect::<Vec<Offset>>(),
                    positions: messages.iter().map(|message| message.position).collect::<Vec<Position>>(),
                };
                self.reply(id, verb.request, Ok(reply));
            }
            Op::DeclareQueue(..) | Op::DeleteQueue { .. } | Op::PurgeQueue { .. } => {
                self.reply(id, verb.request, Ok(Reply::Queue { messages: 0, consumers: 0 }));
            }
            Op::LockQueues(_) => {
                let reply = self.locked(&verb.op);
                self.reply(id, verb.request, Ok(reply));
            }
            Op::ResetOffsets(reset) => {
                let reply = self.group_offsets(reset);
                self.reply(id, verb.request, Ok(reply));
            }
            _ => self.reply(id, verb.request, Ok(Reply::Ok)),
        }
    }

    /// Tells the leader of all connections, then hands over what waits.
    fn present(&mut self) {
        self.become_front();
        self.take_back_sent();
        let mut ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        ids.sort_unstable();
        for id in &ids {
            if let Some(presented) = self.presented(*id) {
                self.front.out.push(ToLeader::Present(Box::new(presented)));
            }
        }
        self.front.out.push(ToLeader::Ready);
        if let Some(leader) = &mut self.front.leader {
            leader.live = true;
        }
        self.tell_leader();
        for id in ids {
            self.hand_over_stalled(id);
        }
    }

    /// Verbs that waited for a leader.
    fn hand_over_stalled(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.stalled_on = None;
        let (verbs, gone) = (std::mem::take(&mut connection.stalled), connection.gone);
        self.forget_stalled(id);
        for verb in verbs {
            self.hand_over(id, verb);
        }
        if gone {
            self.front_gone(id);
        }
    }

    fn presented(&self, id: ConnectionId) -> Option<Presented> {
        let connection = self.connections.get(&id)?;
        let readers = connection.readers.iter().filter_map(|number| {
            let reader = self.readers.get(&(id, *number))?;
            let mut leases = Vec::new();
            reader.leases.iter().for_each(|offset| push_range(&mut leases, *offset));
            Some(PresentedReader {
                reader: *number,
                queue: reader.queue,
                no_ack: reader.no_ack,
                exclusive: reader.exclusive,
                priority: reader.priority,
                window: reader.window,
                channel: reader.channel,
                got: reader.got,
                attached: reader.attached,
                leases,
            })
        });
        Some(Presented {
            connection: id,
            windows: connection.windows.iter().map(|(channel, (limit, _))| (*channel, *limit)).collect(),
            readers: readers.collect(),
            replies: self.replies_of(id),
            groups: self.later.answers.get(&id).into_iter().flatten().cloned().collect(),
            outstanding: connection.outstanding as u64,
        })
    }

    /// A node that led before: what it had decided and is not in the log waits again, what its queues knew of readers lies with the
    /// readers.
    fn become_front(&mut self) {
        self.stop_leading();
        let mut again: Vec<(ConnectionId, Verb)> = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        self.nothing_is_deciding();
        self.drop_numbers(pending.len() as u64);
        for pending in pending.into_iter().filter(|pending| !pending.done) {
            match pending.work {
                Work::Verb { connection, verb, .. } => again.push((connection, verb)),
                Work::Commit(commit) => again.extend(self.uncommit(*commit)),
                Work::Settled { queue, ranges, by: Some(key) } => {
                    again.extend(self.unsettle(key, queue, &ranges, Settle::Ack));
                }
                Work::Dead(moving) => {
                    let Dying { queue, offset, by, .. } = moving.dying;
                    let Some(key) = by else { continue };
                    again.extend(self.unsettle(key, queue, &[(offset, 1)], Settle::Discard));
                }
                Work::Settled { .. }
                | Work::Internal(_)
                | Work::Needed(_)
                | Work::Piece { .. }
                | Work::Part { .. }
                | Work::Unanswered => {}
            }
        }
        let dying: Vec<_> = self.dying().filter_map(|(queue, died, by)| Some((by?, queue, died))).collect();
        for (key, queue, died) in dying {
            again.extend(self.unsettle(key, queue, &[died], Settle::Discard));
        }
        self.forget_dying();
        let large = std::mem::take(&mut self.large);
        again.extend(large.into_iter().map(|(id, large)| (id, large.verb)));
        let waiters = std::mem::take(&mut self.waiters);
        self.deadlines.clear();
        for waiter in waiters.into_values() {
            let auth = self.connections.get(&waiter.connection).and_then(|connection| connection.key);
            if let Some(key) = auth {
                let op = Op::Fetch(waiter.fetch);
                let verb = Verb { key, request: waiter.request, vhost: 0, op, number: 0 };
                again.push((waiter.connection, verb));
            }
        }
        for (id, verb) in again.into_iter().rev() {
            self.take_back(id, verb);
        }
        self.forget_runtimes();
        self.front.fronted = true;
    }

    /// A settlement as its reader gave it, which holds (first, count) `ranges` again; `None`: its connection is gone.
    fn unsettle(
        &mut self,
        key: ReaderKey,
        queue: QueueUid,
        ranges: &[(u64, u64)],
        how: Settle,
    ) -> Option<(ConnectionId, Verb)> {
        let connection = self.connections.get_mut(&key.0)?;
        let auth = connection.key?;
        connection.readers.insert(key.1);
        let ranges: Vec<(u64, u64)> =
            ranges.iter().map(|(first, count)| (*first, first + count - 1)).collect();
        self.readers.entry(key).or_insert_with(|| Reader::getter(queue, 0));
        self.hold(key.0, key.1, &ranges);
        let op = Op::Settle { reader: key.1, ranges, how };
        Some((key.0, Verb { key: auth, request: 0, vhost: 0, op, number: 0 }))
    }

    /// This node leads after it was a front end: its queues learn of its readers again.
    pub(crate) fn stop_fronting(&mut self) {
        self.front.fronted = false;
        self.forget_runtimes();
        self.take_back_sent();
        let mut ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        ids.sort_unstable();
        for id in &ids {
            let Some(presented) = self.presented(*id) else { continue };
            if let Some(connection) = self.connections.get_mut(id) {
                connection.readers.clear();
                connection.windows.values_mut().for_each(|(_, held)| *held = 0);
            }
            for reader in presented.readers {
                self.readers.remove(&(*id, reader.reader));
                self.adopt(*id, &reader);
            }
        }
        let session = self.session;
        let known: std::collections::BTreeSet<ConnectionId> = ids.into_iter().collect();
        self.own_queues(session, |connection| known.contains(&connection).then_some(connection));
    }
}

impl ToIt {
    fn say(&self, messages: &[ToLeader]) {
        for frame in pack(messages).unwrap_or_default() {
            let _ = self.frames.send(frame);
        }
    }
}

impl Connection {
    /// Its client is on this node.
    pub(crate) fn is_here(&self) -> bool {
        self.guest.is_none()
    }
}
