//! The leader's side of front ends: connections of other nodes as guests of this core (ADR 12).
//!
//! Owns: the streams of front ends, which connection of theirs is which here, what of their verbs is done with. Promises: a guest
//! is decided for like a connection of this node; every verb's number is in the log with its records or is not at all; a new leader
//! waits a moment for what front ends hold before it hands messages out.
//! Does not know: sockets, what a front end does with events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::sync::mpsc;

use super::api::{ConnectionId, Event, QueueUid, Verb};
use super::core::{Connection, Core, Work};
use super::dead::DEAD_PIECES;
use super::link::{Credit, weight};
use super::reader::{Reader, ReaderKey};
use super::record::Kind;
use super::retention::HOME_PIECES;
use super::topology::{Change, Owner};
use super::wire::{Presented, PresentedReader, ToFront, ToLeader, Turn, Unpacker, VERSION, pack};
use crate::limits;

/// Guests' numbers in this core begin here; connections of this node have smaller ones.
const FIRST_GUEST: ConnectionId = 1 << 62;
/// So long a new leader waits for front ends before it hands out messages. Who comes later finds some of what it held handed to
/// others, as redelivered.
const GRACE: Duration = Duration::from_millis(700);
/// So long the connections of a front end whose stream broke are kept for it to come back.
const LOST_FOR: Duration = Duration::from_secs(5);
/// What a lost connection is said to have outstanding: nothing is handed to it.
const NOTHING_MORE: usize = usize::MAX / 2;
/// Who owes an answer for so long does not hand on what it is told.
const SILENT: Duration = Duration::from_millis(500);
/// A frame's worth of events.
const FLUSH_BYTES: usize = 1 << 20;

/// Whose connection a guest is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    /// The stream it came by.
    pub(crate) stream: u64,
    /// As it is named on its node.
    pub(crate) owner: Owner,
}

/// One front end.
struct FrontEnd {
    node: u64,
    frames: mpsc::UnboundedSender<Bytes>,
    unpacker: Unpacker,
    /// Its incarnation, once it has said hello.
    session: u64,
    welcome: bool,
    /// All verbs before this sequence are resolved before it is greeted.
    barrier: u64,
    /// It has presented its connections.
    ready: bool,
    /// Its number for a connection, and ours.
    connections: BTreeMap<ConnectionId, ConnectionId>,
    /// Verbs by number that are not done with: whose, and the last sequence that each waits for once it is decided.
    open: BTreeMap<u64, (ConnectionId, Option<u64>)>,
    /// The last verb that came.
    heard: u64,
    events: Vec<(ConnectionId, Vec<Event>)>,
    /// Bytes of these, about.
    bytes: usize,
    /// What it was told last.
    told: (u64, u64),
    /// What it was asked last, when, and what it answered; `tell`: that is still to be said.
    asked: Asked,
}

/// See [`Turn::asks`].
#[derive(Default)]
struct Asked {
    number: u64,
    at: Duration,
    seen: u64,
    tell: bool,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Guests {
    fronts: BTreeMap<u64, FrontEnd>,
    /// By incarnation: connections of front ends that are out of reach, and when they are given up.
    lost: BTreeMap<u64, (Duration, Vec<ConnectionId>)>,
    next: ConnectionId,
    /// Nodes that may have front ends with leases; until then.
    awaited: BTreeSet<u64>,
    until: Duration,
}

impl Core {
    /// A front end's stream opened.
    pub(crate) fn front_attached(&mut self, stream: u64, node: u64, frames: mpsc::UnboundedSender<Bytes>) {
        self.front_detached_of(node);
        let front = FrontEnd {
            node,
            frames,
            unpacker: Unpacker::default(),
            session: 0,
            welcome: false,
            barrier: 0,
            ready: false,
            connections: BTreeMap::new(),
            open: BTreeMap::new(),
            heard: 0,
            events: Vec::new(),
            bytes: 0,
            told: (0, 0),
            asked: Asked::default(),
        };
        self.guests.fronts.insert(stream, front);
    }

    /// A node has one stream: the one before ended, heard of or not.
    fn front_detached_of(&mut self, node: u64) {
        let old = self.guests.fronts.iter().find(|(_, front)| front.node == node).map(|(stream, _)| *stream);
        if let Some(stream) = old {
            self.front_detached(stream);
        }
    }

    /// Its stream ended: what its connections hold is kept for a while.
    pub(crate) fn front_detached(&mut self, stream: u64) {
        let Some(front) = self.guests.fronts.remove(&stream) else { return };
        let deadline = self.monotonic() + LOST_FOR;
        let ids: Vec<ConnectionId> = front.connections.into_values().collect();
        for id in &ids {
            self.producer_gone(*id);
            self.cut_off(*id);
        }
        if !ids.is_empty() {
            self.guests.lost.entry(front.session).or_insert((deadline, Vec::new())).1.extend(ids);
        }
    }

    /// Nothing is decided for it any more; it keeps what it holds.
    fn cut_off(&mut self, id: ConnectionId) {
        self.forget_stalled(id);
        let waiting: Vec<u64> =
            self.waiters.iter().filter(|(_, w)| w.connection == id).map(|(n, _)| *n).collect();
        waiting.into_iter().for_each(|waiter| self.forget_waiter(waiter));
        if let Some(large) = self.large.remove(&id) {
            self.give_up(&large.extents);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled.clear();
            connection.stalled_on = None;
            connection.outbox.clear();
            connection.outstanding = NOTHING_MORE;
        }
    }

    /// Front ends that did not come back in time.
    pub(crate) fn give_up_lost(&mut self) {
        let now = self.monotonic();
        let late: Vec<(u64, (Duration, Vec<ConnectionId>))> =
            self.guests.lost.extract_if(.., |_, (at, _)| *at <= now).collect();
        for id in late.into_iter().flat_map(|(_, (_, ids))| ids) {
            self.disconnect(id);
        }
    }

    /// It is back, and tells itself what its connections hold: what it does not tell of goes to others, after a moment.
    fn let_go_of_lost(&mut self, node: u64, session: u64) {
        let Some((_, ids)) = self.guests.lost.remove(&session) else { return };
        for id in ids {
            let readers =
                self.connections.remove(&id).map(|connection| connection.readers).unwrap_or_default();
            readers.into_iter().for_each(|reader| self.drop_reader((id, reader)));
            self.end_replies(id, |_, _| true);
            self.answers_nothing(id);
        }
        self.producers_are_back(session);
        self.guests.awaited.insert(node);
        self.guests.until = self.monotonic() + GRACE;
    }

    /// Another term began: front ends present themselves to whoever leads it.
    pub(crate) fn send_guests_away(&mut self) {
        let old = self.guests.fronts.extract_if(.., |_, front| front.welcome).collect::<Vec<_>>();
        for (_, front) in old {
            for id in front.connections.into_values() {
                self.forget_guest(id);
            }
        }
        for id in std::mem::take(&mut self.guests.lost).into_values().flat_map(|(_, ids)| ids) {
            self.forget_guest(id);
        }
        for pending in self.pending.iter_mut().filter(|pending| !pending.done) {
            let guest = match &pending.work {
                Work::Verb { connection, .. } | Work::Piece { connection, .. } => *connection >= FIRST_GUEST,
                Work::Commit(commit) => commit.connection() >= FIRST_GUEST,
                _ => false,
            };
            if guest && !matches!(pending.work, Work::Piece { connection: HOME_PIECES | DEAD_PIECES, .. }) {
                pending.work = Work::Unanswered;
            }
        }
    }

    /// Without any effect on queues: what it held is presented elsewhere.
    fn forget_guest(&mut self, id: ConnectionId) {
        let waiting: Vec<u64> =
            self.waiters.iter().filter(|(_, w)| w.connection == id).map(|(n, _)| *n).collect();
        waiting.into_iter().for_each(|waiter| self.forget_waiter(waiter));
        let readers = self.connections.remove(&id).map(|connection| connection.readers).unwrap_or_default();
        for reader in readers {
            self.detach((id, reader));
            self.readers.remove(&(id, reader));
        }
        self.large.remove(&id);
        self.end_replies(id, |_, _| true);
        self.answers_nothing(id);
    }

    /// A frame from a front end.
    pub(crate) fn front_frame(&mut self, stream: u64, frame: &[u8]) {
        let Some(front) = self.guests.fronts.get_mut(&stream) else { return };
        match front.unpacker.take::<ToLeader>(frame) {
            Ok(messages) => messages.into_iter().for_each(|message| self.front_message(stream, message)),
            Err(_) => self.front_detached(stream),
        }
    }

    fn front_message(&mut self, stream: u64, message: ToLeader) {
        let barrier = self.next_sequence();
        let Some(front) = self.guests.fronts.get_mut(&stream) else { return };
        match message {
            ToLeader::Hello { version: VERSION, session } if session != 0 && front.session == 0 => {
                front.session = session;
                front.barrier = barrier;
                self.welcome_fronts();
            }
            // Nothing else is said before the welcome.
            _ if !front.welcome => self.front_detached(stream),
            ToLeader::Hello { .. } => self.front_detached(stream),
            ToLeader::Present(presented) => self.present_guest(stream, *presented),
            ToLeader::Ready => {
                front.ready = true;
                let node = front.node;
                self.guests.awaited.remove(&node);
                self.own_queues_of(stream);
                self.end_grace();
            }
            ToLeader::Verbs(connection, verbs) => {
                let id = self.guest(stream, connection);
                for verb in verbs {
                    self.guest_verb(stream, id, verb);
                }
            }
            ToLeader::Seen(number) => front.asked.seen = front.asked.seen.max(number),
            ToLeader::Gone(connection) => {
                if let Some(id) = front.connections.remove(&connection) {
                    self.disconnect(id);
                }
            }
        }
    }

    fn guest_verb(&mut self, stream: u64, id: ConnectionId, verb: Verb) {
        if let Some(front) = self.guests.fronts.get_mut(&stream)
            && verb.number != 0
        {
            front.open.insert(verb.number, (id, None));
            front.heard = front.heard.max(verb.number);
        }
        if let Some(connection) = self.connections.get(&id) {
            connection.credit.take(weight(&verb));
        }
        self.verb(id, verb);
    }

    /// Our number for a connection of theirs.
    fn guest(&mut self, stream: u64, theirs: ConnectionId) -> ConnectionId {
        let Some(front) = self.guests.fronts.get_mut(&stream) else { return 0 };
        if let Some(id) = front.connections.get(&theirs) {
            return *id;
        }
        self.guests.next += 1;
        let id = FIRST_GUEST + self.guests.next;
        front.connections.insert(theirs, id);
        let owner = Owner { session: front.session, connection: theirs };
        // Its events leave with the stream.
        let (events, _) = mpsc::unbounded_channel();
        let mut connection = Connection::new(events, Arc::new(Credit::default()));
        connection.guest = Some(Guest { stream, owner });
        self.connections.insert(id, connection);
        id
    }

    /// Greets front ends that said hello, as soon as this node leads.
    pub(crate) fn welcome_fronts(&mut self) {
        let Some(term) = self.overlay.as_ref().filter(|_| self.session_open).map(|overlay| overlay.term)
        else {
            return;
        };
        let resolved = self.first_pending();
        let new: Vec<(u64, u64, u64)> = self
            .guests
            .fronts
            .iter()
            .filter(|(_, front)| front.session != 0 && !front.welcome && front.barrier <= resolved)
            .map(|(stream, front)| (*stream, front.node, front.session))
            .collect();
        for (stream, node, session) in new {
            self.open_session_of(node, session);
            self.let_go_of_lost(node, session);
            let applied = self.state.applied.map_or(0, |point| point.end);
            let Some(front) = self.guests.fronts.get_mut(&stream) else { continue };
            front.welcome = true;
            front.say(&[ToFront::Welcome { term, applied }]);
        }
    }

    /// The session of a node that does not lead is opened for it, once an incarnation.
    fn open_session_of(&mut self, node: u64, session: u64) {
        if self.state.sessions.contains_key(&session) {
            return;
        }
        let ended: Vec<u64> =
            self.state.sessions.iter().filter(|(_, s)| s.node == node).map(|(id, _)| *id).collect();
        let ended = |owner: u64| ended.contains(&owner);
        // What the incarnation before it held goes first, so that opening the session changes no topology by itself.
        let mut queues: Vec<QueueUid> = self
            .decided()
            .queues()
            .filter(|queue| queue.owner.is_some_and(|owner| ended(owner.session)))
            .map(|queue| queue.uid)
            .collect();
        queues.sort_unstable();
        for uid in queues {
            self.owe(&[Change::RemoveQueue(uid)]);
        }
        let mut exchanges: Vec<(u32, Arc<str>)> = self
            .decided()
            .exchanges()
            .filter(|(_, exchange)| exchange.session.is_some_and(ended))
            .map(|(vhost, exchange)| (vhost, Arc::clone(&exchange.spec.name)))
            .collect();
        exchanges.sort_unstable();
        for (vhost, name) in exchanges {
            self.owe(&[Change::RemoveExchange(vhost, name)]);
        }
        self.put_origin();
        let Some(overlay) = self.overlay.as_mut() else { return };
        let version = overlay.topology.version;
        let start = overlay.builder.begin(session, 0, 0, version, Kind::Session, 0);
        overlay.builder.body().put_u64_le(node);
        overlay.builder.end(start);
    }

    // ---- what they held before

    fn present_guest(&mut self, stream: u64, presented: Presented) {
        let id = self.guest(stream, presented.connection);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outstanding = usize::try_from(presented.outstanding).unwrap_or(usize::MAX / 2);
        connection
            .windows
            .extend(presented.windows.into_iter().map(|(channel, limit)| (channel, (limit, 0))));
        for reader in presented.readers {
            self.adopt(id, &reader);
        }
        for (key, reader, channel) in presented.replies {
            self.subscribe_replies(id, reader, channel, key);
        }
        for group in presented.groups {
            self.answer_for(id, &group, true);
        }
    }

    /// A reader that was there before this leader goes on with what it held.
    pub(crate) fn adopt(&mut self, id: ConnectionId, known: &PresentedReader) {
        let key: ReaderKey = (id, known.reader);
        let uid = known.queue;
        if self.decided().queue_by_uid(uid).is_none() {
            if known.attached {
                self.event(id, Event::ReaderCancelled { reader: known.reader });
            }
            return;
        }
        let leases = self.leases_to_adopt(uid, &known.leases);
        if !known.attached && leases.is_empty() {
            return;
        }
        let runtime = self.runtime(uid);
        runtime.unacked += leases.len() as u64;
        if known.attached {
            runtime.readers.push_back(key);
            runtime.was_read = true;
            runtime.exclusive = runtime.exclusive.or(known.exclusive.then_some(key));
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readers.insert(known.reader);
            if let Some((_, held)) = connection.windows.get_mut(&known.channel) {
                *held += u32::try_from(leases.len()).unwrap_or(u32::MAX);
            }
        }
        let reader = Reader {
            queue: uid,
            no_ack: known.no_ack,
            exclusive: known.exclusive,
            priority: known.priority,
            window: known.window,
            channel: known.channel,
            got: known.got,
            attached: known.attached,
            leases: leases.into(),
        };
        self.readers.insert(key, reader);
        self.readers_changed(uid);
        self.list(uid);
    }

    /// Takes what was held, and is neither settled nor somebody else's, out of what is handed out.
    fn leases_to_adopt(&mut self, uid: QueueUid, held: &[(u64, u64)]) -> Vec<u64> {
        if held.is_empty() {
            return Vec::new();
        }
        // What a queue in memory held went with the leader that had it.
        let Some(queue) = self.state.queues.get(&uid) else { return Vec::new() };
        let (cursor, end) = (queue.cursor.clone(), queue.index.next());
        let (mut taken, _) = self.in_flight(uid);
        for reader in self.readers.values().filter(|reader| reader.queue == uid) {
            taken.extend(&reader.leases);
        }
        let offsets = held.iter().flat_map(|(first, count)| *first..first.saturating_add(*count).min(end));
        let leases: Vec<u64> =
            offsets.filter(|offset| !cursor.is_settled(*offset) && !taken.contains(offset)).collect();
        let runtime = self.runtime(uid);
        if let Some(last) = leases.last().filter(|last| **last >= runtime.next) {
            // What lies between was handed to somebody who is gone.
            let between = runtime.next..*last;
            runtime.ready.extend(between.filter(|o| !cursor.is_settled(*o) && !taken.contains(o)));
            runtime.next = *last + 1;
        }
        for offset in &leases {
            runtime.ready.remove(*offset);
        }
        leases
    }

    /// Exclusive queues belong to the connections that were presented; those of others go.
    fn own_queues_of(&mut self, stream: u64) {
        let Some(front) = self.guests.fronts.get(&stream) else { return };
        let (session, connections) = (front.session, front.connections.clone());
        self.own_queues(session, |connection| connections.get(&connection).copied());
    }

    /// See [`Core::own_queues_of`]; `ours` tells our number for an owner.
    pub(crate) fn own_queues(&mut self, session: u64, ours: impl Fn(ConnectionId) -> Option<ConnectionId>) {
        let mut exclusive: Vec<(QueueUid, ConnectionId)> = self
            .decided()
            .queues()
            .filter(|queue| queue.spec.exclusive)
            .filter_map(|queue| queue.owner.map(|owner| (queue.uid, owner)))
            .filter(|(_, owner)| owner.session == session)
            .map(|(uid, owner)| (uid, owner.connection))
            .collect();
        exclusive.sort_unstable();
        for (uid, owner) in exclusive {
            match ours(owner).and_then(|id| self.connections.get_mut(&id)) {
                Some(connection) if connection.owned.contains(&uid) => {}
                Some(connection) => connection.owned.push(uid),
                None => {
                    let Some(vhost) = self.decided().queue_by_uid(uid).map(|queue| queue.vhost) else {
                        continue;
                    };
                    let changes = self.with_auto_delete(vhost, Change::RemoveQueue(uid));
                    self.owe(&changes);
                }
            }
        }
    }

    // ---- the first moment of a lead

    /// This node begins to lead; `others` may have clients with leases.
    pub(crate) fn begin_grace(&mut self) {
        self.guests.awaited = self.others.iter().copied().collect();
        self.guests.until = self.monotonic() + GRACE;
    }

    /// Is it too early to hand messages out?
    pub(crate) fn in_grace(&self) -> bool {
        !self.guests.awaited.is_empty() && self.monotonic() < self.guests.until
    }

    /// When a wait for front ends is over.
    pub(crate) fn grace_deadline(&self) -> Option<Duration> {
        let grace = (!self.guests.awaited.is_empty()).then_some(self.guests.until);
        grace.into_iter().chain(self.guests.lost.values().map(|(at, _)| *at)).min()
    }

    /// Serves what waited, if the wait is over.
    pub(crate) fn end_grace(&mut self) {
        if self.in_grace() {
            return;
        }
        self.guests.awaited.clear();
        let uids: Vec<QueueUid> = self.runtimes.keys().copied().collect();
        uids.into_iter().for_each(|uid| self.list(uid));
        self.retry_stalled();
    }

    // ---- what became of verbs

    /// As which owner this connection declares.
    pub(crate) fn owner_of(&self, id: ConnectionId) -> Owner {
        let guest = self.connections.get(&id).and_then(|connection| connection.guest);
        guest.map_or(Owner { session: self.session, connection: id }, |guest| guest.owner)
    }

    /// A guest's verb was decided, unless it waits.
    pub(crate) fn guest_decided(&mut self, id: ConnectionId, number: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let Some(guest) = connection.guest else { return };
        let waits = connection.stalled.front().is_some_and(|verb| verb.number == number)
            || self.large.get(&id).is_some_and(|large| large.verb.number == number);
        let last = self.next_sequence() - 1;
        if let Some(front) = self.guests.fronts.get_mut(&guest.stream)
            && let Some((_, open)) = front.open.get_mut(&number)
        {
            *open = (!waits).then_some(last);
        }
    }

    /// Nothing more is decided for a guest that is gone: a pull of it that waited is done with.
    pub(crate) fn guest_forgotten(&mut self, id: ConnectionId) {
        let last = self.next_sequence() - 1;
        for front in self.guests.fronts.values_mut().filter(|_| id >= FIRST_GUEST) {
            let waiting = front.open.values_mut().filter(|(of, open)| *of == id && open.is_none());
            waiting.for_each(|(_, open)| *open = Some(last));
        }
    }

    /// The front end and number of a verb of that connection; `None` for one of this node.
    pub(crate) fn origin_of(&self, id: ConnectionId, number: u64) -> Option<(u64, u64)> {
        let guest = self.connections.get(&id).filter(|_| number != 0)?.guest?;
        Some((guest.owner.session, number))
    }

    /// Events of a guest, on their way to its front end.
    pub(crate) fn guest_events(&mut self, guest: Guest, mut events: Vec<Event>) {
        for event in &mut events {
            if let Event::Deliveries { deliveries, .. } = event {
                deliveries.iter_mut().for_each(|delivery| self.bring_in(delivery));
            } else if let Event::Reply {
                result: Ok(super::api::Reply::Got { delivery: Some(delivery), .. }),
                ..
            } = event
            {
                self.bring_in(delivery);
            }
        }
        let Some(front) = self.guests.fronts.get_mut(&guest.stream) else { return };
        for event in &events {
            // What is answered waits for nothing: its records are applied.
            if let Event::Reply { request, .. } = event
                && let Some((_, open)) = front.open.get_mut(request)
            {
                *open = Some(0);
            }
        }
        front.bytes += events.iter().map(cost).sum::<usize>();
        front.events.push((guest.owner.connection, events));
        if front.bytes >= FLUSH_BYTES {
            self.tell_front(guest.stream);
        }
    }

    /// What was paged out on this node goes as bytes.
    fn bring_in(&mut self, delivery: &mut super::api::Delivery) {
        if matches!(delivery.message, super::api::Located::Paged(_))
            && let Ok(message) = super::message::resolve(&delivery.message, &*self.log, &mut self.cache)
        {
            delivery.message = super::api::Located::Ready(message);
        }
    }

    /// Tells every front end what happened in this turn.
    pub(crate) fn tell_fronts(&mut self) {
        if self.guests.fronts.is_empty() {
            return;
        }
        let streams: Vec<u64> = self.guests.fronts.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.tell_front(stream));
    }

    fn tell_front(&mut self, stream: u64) {
        let applied = self.state.applied.map_or(0, |point| point.end);
        let first_pending = self.first_pending();
        let Some(front) = self.guests.fronts.get_mut(&stream).filter(|front| front.welcome) else { return };
        while let Some(entry) = front.open.first_entry() {
            if entry.get().1.is_none_or(|last| last >= first_pending) {
                break;
            }
            entry.remove();
        }
        let through = front.open.first_key_value().map_or(front.heard, |(number, _)| number - 1);
        let asks = if std::mem::take(&mut front.asked.tell) { front.asked.number } else { 0 };
        if front.events.is_empty() && front.told.1 == through && asks == 0 {
            return;
        }
        front.told = (applied, through);
        front.bytes = 0;
        let events = std::mem::take(&mut front.events);
        front.say(&[ToFront::Turn(Turn { applied, through, events, asks })]);
    }

    // ---- what has reached their clients

    /// Asks every front end when it has handed on what it was told until now.
    pub(crate) fn ask_fronts(&mut self, number: u64) {
        let at = self.monotonic();
        for front in self.guests.fronts.values_mut().filter(|front| front.ready) {
            // One that has not answered yet is silent since then.
            let at = if front.asked.seen < front.asked.number { front.asked.at } else { at };
            front.asked = Asked { number, at, seen: front.asked.seen, tell: true };
        }
    }

    /// Have all front ends that were asked answered? Who came since was told nothing before.
    pub(crate) fn fronts_have_seen(&self, number: u64) -> bool {
        self.guests
            .fronts
            .values()
            .all(|front| front.asked.number < number || front.asked.seen >= front.asked.number)
    }

    /// Is that connection of a front end here?
    pub(crate) fn guest_is_here(&self, owner: &Owner) -> bool {
        self.guests
            .fronts
            .values()
            .any(|front| front.session == owner.session && front.connections.contains_key(&owner.connection))
    }

    /// May that node's connections still be presented?
    pub(crate) fn front_is_awaited(&self, session: u64) -> bool {
        let node = self.state.sessions.get(&session).map(|session| session.node);
        self.in_grace() && node.is_some_and(|node| self.guests.awaited.contains(&node))
    }

    /// A front end that owes an answer for longer than any of them should.
    pub(crate) fn is_silent(&self, owner: &Owner) -> bool {
        let now = self.monotonic();
        self.guests
            .fronts
            .values()
            .filter(|front| front.session == owner.session)
            .any(|front| front.asked.seen < front.asked.number && front.asked.at + SILENT <= now)
    }

    fn disconnect(&mut self, id: ConnectionId) {
        self.input(super::link::Input::Disconnected(id));
    }
}

impl FrontEnd {
    fn say(&self, messages: &[ToFront]) {
        // Everything that is said here can be encoded: what lies in pages was brought in.
        for frame in pack(messages).unwrap_or_default() {
            let _ = self.frames.send(frame);
        }
    }
}

/// Bytes of an event on the wire, about.
fn cost(event: &Event) -> usize {
    match event {
        Event::Deliveries { deliveries, .. } => deliveries.iter().map(|d| d.weight as usize + 32).sum(),
        Event::Returned { publish, .. } => publish.message.bytes.len() + 64,
        _ => 64,
    }
}

const _: () = assert!(limits::FRONT_MESSAGE_MAX > FLUSH_BYTES);
