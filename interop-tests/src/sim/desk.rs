//! One connection of a simulated client: what it asked, what it holds, what it was told, written into the story.
//!
//! Owns: requests, confirms and leases of one link. Promises: every publish, delivery and settlement is an event; an
//! acknowledgement counts as certain once a publish behind it was confirmed. Does not know: what the client wants next.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use dassie::broker::api::{
    Commit, Delivery, EndTransaction, Event, Fetch, FetchStatus, Message, Op, Origin, Publish, Reply, Send,
    SendBack, SendMessage, Settle, Settlement, StoredMessage, Subscribe, Verb, Waits, Window,
};
use dassie::broker::link::Link;
use dassie::broker::message::{Cache, queue_at, resolve};
use dassie::security::users::Users;
use dassie::security::{Action, Authorized, Realm, Resource, authorize};

use super::plant::Plant;
use super::time::now;
use super::waiting::{self, PRODUCERS, RETRY};
use super::world::Shared;
use crate::body::{self, Identity};
use crate::history::event::{self, Msg, Name, Offset, Outcome};

/// A request without an answer for so long: the client tries elsewhere.
const PATIENCE: Duration = Duration::from_secs(4);
/// The group that consumes all topics.
pub(crate) const GROUP: &str = "g";
/// Messages that a member may send back.
const RECENT: usize = 32;
/// A topic's message queues.
pub(crate) const PARTS: u32 = 3;

/// Queues whose places are checked: declared once and for ever.
pub(crate) const STEADY: [&str; 4] = ["q0", "q1", "q2", "q3"];

fn key() -> Authorized {
    let guest = Realm::new(Users::only_guest()).anonymous("127.0.0.1".parse().expect("an address"));
    authorize(&guest, Action::Write, Resource::Own).expect("guest may all")
}

/// Where a publish goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) exchange: &'static str,
    pub(crate) key: &'static str,
    /// Its place in the story.
    pub(crate) place: &'static str,
    /// It certainly reaches a durable queue.
    pub(crate) sure: bool,
    /// Confirms are wanted: the exchange is there for ever.
    pub(crate) confirmed: bool,
}

/// Something asked for.
enum Call {
    Plain,
    Purge,
    Got {
        queue: &'static str,
        reader: u32,
        auto: bool,
        t0: u64,
    },
    Subscribed {
        reader: u32,
    },
    Sent {
        places: Vec<usize>,
    },
    /// A message with a delay, which is in its topic at that time.
    Delayed {
        place: usize,
        due: u64,
    },
    /// A half message.
    Prepared {
        msg: Msg,
    },
    /// The end of a transaction.
    Ended {
        msg: Msg,
    },
    SentBack {
        msg: Msg,
    },
    Fetched {
        topic: &'static str,
        part: u32,
        t0: u64,
    },
    /// An offset, or a transaction: where the story tells of its parts.
    Committed {
        places: Vec<usize>,
    },
    Resumed {
        topic: &'static str,
        part: u32,
        t0: u64,
    },
}

struct Sent {
    place: usize,
    at: Duration,
    /// Acknowledgements that were sent before it.
    fence: usize,
    sure: bool,
    returned: bool,
}

/// Offsets, and the messages there.
type Held = Vec<(u64, Msg)>;

struct Reader {
    queue: &'static str,
    auto: bool,
    leases: VecDeque<(u64, Msg)>,
}

/// See the module.
pub(crate) struct Desk {
    shared: Shared,
    link: Link,
    pub(crate) me: Name,
    publisher: Name,
    publisher_text: String,
    requests: u64,
    calls: BTreeMap<u64, (Duration, Call)>,
    confirms: BTreeMap<u16, u64>,
    published: BTreeMap<(u16, u64), Sent>,
    acks: Vec<usize>,
    acks_known: usize,
    readers: BTreeMap<u32, Reader>,
    next_reader: u32,
    cache: Cache,
    pub(crate) cursors: BTreeMap<(&'static str, u32), Cursor>,
    /// Messages of topics are noted as lying there, not as consumed.
    pub(crate) scans: bool,
    pub(crate) fetched_nothing: u64,
    pub(crate) got_nothing: u64,
    tags: u64,
    /// Fetched lately: topic, position.
    recent: VecDeque<(&'static str, u64, Msg)>,
    broken: bool,
}

/// How far a group's member has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    pub(crate) next: Option<u64>,
    pub(crate) busy: bool,
}

impl Desk {
    pub(crate) fn new(shared: &Shared, link: Link, actor: &str, incarnation: u64) -> Self {
        let story = &shared.story;
        Self {
            link,
            me: story.name(&format!("{actor}.{incarnation}")),
            publisher: story.name(actor),
            publisher_text: actor.to_owned(),
            shared: shared.clone(),
            requests: 0,
            calls: BTreeMap::new(),
            confirms: BTreeMap::new(),
            published: BTreeMap::new(),
            acks: Vec::new(),
            acks_known: 0,
            readers: BTreeMap::new(),
            next_reader: 1,
            cache: Cache::default(),
            cursors: BTreeMap::new(),
            scans: false,
            fetched_nothing: 0,
            got_nothing: 0,
            tags: 0,
            recent: VecDeque::new(),
            broken: false,
        }
    }

    /// What it waits for longest is overdue, or its node is gone.
    pub(crate) fn is_lost(&self) -> bool {
        let late = |at: &Duration| now() >= *at + PATIENCE;
        self.broken
            || self.calls.values().next().is_some_and(|(at, _)| late(at))
            || self.published.values().any(|sent| late(&sent.at))
    }

    /// Nothing is unanswered.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.published.is_empty()
    }

    /// The connection ends: what it does not know now it never will.
    pub(crate) fn end(self) {
        self.shared.story.note(self.me, event::Op::Lost { queue: None });
    }

    fn send(&mut self, request: u64, op: Op) {
        self.broken |= !self.link.send(vec![Verb { key: key(), request, vhost: 0, op, number: 0 }]);
    }

    fn call(&mut self, op: Op, call: Call) {
        self.requests += 1;
        self.calls.insert(self.requests, (now(), call));
        self.send(self.requests, op);
    }

    pub(crate) fn ask(&mut self, op: Op) {
        self.call(op, Call::Plain);
    }

    pub(crate) fn purge(&mut self, queue: &'static str) {
        self.call(Op::PurgeQueue { name: queue.into() }, Call::Purge);
    }

    // ---- publishing

    fn body(&self, seq: u32, place: &str, size: usize) -> Vec<u8> {
        let publisher = &self.publisher_text;
        Identity { run: "sim", publisher, seq, queue: place }.encode(size).expect("sound names")
    }

    fn begin_publish(&self, place: &str, seq: u32, sum: u32) -> usize {
        let publish = event::Publish {
            queue: self.shared.story.name(place),
            part: None,
            msg: Msg { publisher: self.publisher, seq },
            offset: None,
            sum: Some(sum),
            ordered: true,
        };
        self.shared.story.begin(self.me, event::Op::Publish(publish))
    }

    /// A publish as the product's connections make it, and its place in the story.
    fn composed(&self, target: Target, seq: u32, size: usize, confirm: u64) -> (Publish, usize) {
        let body = self.body(seq, target.place, size);
        let mut bytes = BytesMut::new();
        for text in [target.exchange, target.key] {
            bytes.put_u8(u8::try_from(text.len()).expect("short"));
            bytes.put_slice(text.as_bytes());
        }
        bytes.put_u16(60);
        bytes.put_u16(0);
        bytes.put_u64(body.len() as u64);
        bytes.put_u16(0);
        let prefix = bytes.len();
        let place = self.begin_publish(target.place, seq, body::checksum(&bytes));
        bytes.put_slice(&body);
        let publish = Publish {
            channel: channel_of(seq),
            exchange: target.exchange.into(),
            routing_key: target.key.into(),
            also: Default::default(),
            mandatory: true,
            confirm,
            message: Message {
                origin: Origin::Amqp,
                prefix_len: u32::try_from(prefix).expect("short"),
                body_len: u32::try_from(body.len()).expect("short"),
                bytes: bytes.freeze(),
                tag_hash: 0,
                persistent: true,
                ttl: None,
            },
        };
        (publish, place)
    }

    pub(crate) fn publish(&mut self, target: Target, seq: u32, size: usize) {
        let channel = channel_of(seq);
        let number = if target.confirmed {
            let confirm = self.confirms.entry(channel).or_default();
            *confirm += 1;
            *confirm
        } else {
            0
        };
        let (publish, place) = self.composed(target, seq, size, number);
        if target.confirmed {
            let fence = self.acks.len();
            let sent = Sent { place, at: now(), fence, sure: target.sure, returned: false };
            self.published.insert((channel, number), sent);
        }
        if self.shared.plant == Plant::EarlyConfirm {
            self.shared.story.end(place, Outcome::Ok);
        }
        self.send(0, Op::Publish(publish));
    }

    /// Publishes, and settles some of what one reader holds: all of it or nothing.
    pub(crate) fn transact(
        &mut self,
        publishes: impl Iterator<Item = (Target, u32, usize)>,
        which: u64,
        count: usize,
        how: Settle,
    ) {
        let mut places = Vec::new();
        let mut commit = Commit { publishes: Vec::new(), settlements: Vec::new() };
        for (target, seq, size) in publishes {
            let (publish, place) = self.composed(target, seq, size, 0);
            commit.publishes.push(publish);
            if target.sure {
                places.push(place);
            }
        }
        if let Some((reader, queue, taken)) = self.taken(which, count) {
            places.extend(taken.iter().map(|(_, msg)| self.begin_settle(queue, *msg, how)));
            commit.settlements.push(Settlement { reader, ranges: ranges(&taken), how });
        }
        self.call(Op::Commit(commit), Call::Committed { places });
    }

    fn rmq_message(
        &self,
        topic: &str,
        queue_id: u32,
        seq: u32,
        size: usize,
        waits: Option<Waits>,
    ) -> (SendMessage, usize) {
        let body = self.body(seq, topic, size);
        let place = self.begin_publish(topic, seq, body::checksum(waiting::name(topic, seq).as_bytes()));
        if waits.is_some() {
            self.shared.story.change(place, |op| {
                if let event::Op::Publish(publish) = op {
                    publish.ordered = false;
                }
            });
        }
        (waiting::record(topic, queue_id, seq, &body, waits), place)
    }

    pub(crate) fn send_rmq(
        &mut self,
        topic: &'static str,
        queue_id: Option<u32>,
        seqs: std::ops::Range<u32>,
        size: usize,
    ) {
        let (messages, places) = seqs.map(|seq| self.rmq_message(topic, 0, seq, size, None)).unzip();
        let send = Send {
            topic: topic.into(),
            queue_id,
            create_queues: Some(PARTS),
            messages,
            waits: None,
            key: 0,
            arrived: Duration::ZERO,
        };
        self.call(Op::Send(send), Call::Sent { places });
    }

    /// Sends a message that its topic gets later, or never.
    pub(crate) fn send_waiting(
        &mut self,
        topic: &'static str,
        queue_id: u32,
        seq: u32,
        size: usize,
        waits: Waits,
    ) {
        let (message, place) = self.rmq_message(topic, queue_id, seq, size, Some(waits));
        let msg = Msg { publisher: self.publisher, seq };
        let call = match waits {
            Waits::Delay(level) => {
                self.shared.waiting.borrow_mut().delayed(msg, level, now());
                Call::Delayed { place, due: super::time::nanos() + 1_000_000_000 * 30 }
            }
            Waits::Half => {
                self.shared.waiting.borrow_mut().prepared(msg, place);
                Call::Prepared { msg }
            }
        };
        let send = Send {
            topic: topic.into(),
            queue_id: Some(queue_id),
            create_queues: Some(PARTS),
            messages: vec![message],
            waits: Some(waits),
            key: 0,
            arrived: Duration::ZERO,
        };
        self.call(Op::Send(send), call);
    }

    /// Questions about transactions may come here.
    pub(crate) fn answer_for_halves(&mut self) {
        self.send(0, Op::AnswerFor { group: PRODUCERS.into(), answers: true });
    }

    fn end_transaction(&mut self, msg: Msg, offset: u64, position: u64) {
        let half = self.shared.waiting.borrow().half(msg);
        let Some((_, commit)) = half else {
            let what = format!("a question about {}, which was never prepared", msg.seq);
            return self.shared.oracle.borrow_mut().violated(what);
        };
        let commit = commit || self.shared.plant == Plant::CommittedRollback;
        let end = EndTransaction { group: PRODUCERS.into(), offset, position, commit };
        self.call(Op::EndTransaction(end), Call::Ended { msg });
    }

    /// One of the messages fetched lately shall come again.
    pub(crate) fn send_back(&mut self) {
        let Some((topic, position, msg)) = self.recent.pop_front() else { return };
        // As the product's connections do: the record itself says in which queue it is.
        let Ok(Some(queue)) = queue_at(position, &**self.link.log()) else { return };
        let back = SendBack {
            queue,
            position,
            topic: Some(topic.into()),
            group: GROUP.into(),
            level: 1,
            attempts_max: 16,
            id: format!("7F00000100002A9F{position:016X}").into(),
        };
        self.shared.waiting.borrow_mut().sent_back(msg);
        self.call(Op::SendBack(back), Call::SentBack { msg });
    }

    // ---- reading

    pub(crate) fn subscribe(&mut self, queue: &'static str, window: u16, auto: bool) {
        let reader = self.next_reader;
        self.next_reader += 1;
        let channel = 10 + u16::try_from(reader % 50).expect("small");
        let subscribe = Subscribe {
            reader,
            queue: queue.into(),
            no_ack: auto,
            exclusive: false,
            priority: 0,
            window: Window { reader: window, channel },
        };
        self.readers.insert(reader, Reader { queue, auto, leases: VecDeque::new() });
        self.call(Op::Subscribe(subscribe), Call::Subscribed { reader });
    }

    pub(crate) fn get(&mut self, queue: &'static str, auto: bool) {
        let reader = self.next_reader;
        self.next_reader += 1;
        let t0 = super::time::nanos();
        let op = Op::Get { reader, channel: 5, queue: queue.into(), no_ack: auto };
        self.call(op, Call::Got { queue, reader, auto, t0 });
    }

    pub(crate) fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Cancels one; what it holds stays held.
    pub(crate) fn unsubscribe(&mut self, which: u64) {
        let which = usize::try_from(which).unwrap_or(0) % self.readers.len().max(1);
        if let Some(reader) = self.readers.keys().nth(which).copied() {
            self.call(Op::Unsubscribe { reader }, Call::Plain);
        }
    }

    /// Takes some of what one reader holds.
    fn taken(&mut self, which: u64, count: usize) -> Option<(u32, Name, Held)> {
        let holders: Vec<u32> =
            self.readers.iter().filter(|(_, r)| !r.leases.is_empty()).map(|(id, _)| *id).collect();
        let reader = *holders.get(usize::try_from(which).unwrap_or(0) % holders.len().max(1))?;
        let held = self.readers.get_mut(&reader)?;
        let taken = held.leases.drain(..count.min(held.leases.len())).collect();
        Some((reader, self.shared.story.name(held.queue), taken))
    }

    fn begin_settle(&self, queue: Name, msg: Msg, how: Settle) -> usize {
        let settle = event::Settle { queue, group: Name::NONE, msg, token: None };
        let op = match how {
            Settle::Ack => event::Op::Ack(settle),
            Settle::Requeue => event::Op::Requeue(settle),
            Settle::Discard => event::Op::Reject(settle),
        };
        self.shared.story.begin(self.me, op)
    }

    /// Settles some of what one reader holds.
    pub(crate) fn settle(&mut self, which: u64, count: usize, how: Settle) {
        let Some((reader, queue, taken)) = self.taken(which, count) else { return };
        for (_, msg) in &taken {
            let place = self.begin_settle(queue, *msg, how);
            if how != Settle::Requeue {
                self.acks.push(place);
            }
        }
        let how = match (self.shared.plant, how) {
            (Plant::DropOnRequeue, Settle::Requeue) => Settle::Discard,
            (Plant::ForgottenAck, Settle::Ack) if which.is_multiple_of(8) => return,
            (_, how) => how,
        };
        self.send(0, Op::Settle { reader, ranges: ranges(&taken), how });
    }

    // ---- topics

    pub(crate) fn resume(&mut self, topic: &'static str, part: u32) {
        let cursor = self.cursors.entry((topic, part)).or_default();
        if cursor.busy {
            return;
        }
        cursor.busy = true;
        let op = Op::GroupOffset { group: GROUP.into(), topic: topic.into(), queue_id: part };
        self.call(op, Call::Resumed { topic, part, t0: super::time::nanos() });
    }

    pub(crate) fn fetch(&mut self, topic: &'static str, part: u32, wait_ms: u32) {
        let cursor = self.cursors.entry((topic, part)).or_default();
        let Some(offset) = cursor.next.filter(|_| !cursor.busy) else { return };
        cursor.busy = true;
        let fetch = Fetch {
            topic: topic.into(),
            queue_id: part,
            offset,
            max_messages: 16,
            max_bytes: 64 << 10,
            tags: [].into(),
            wait_ms,
        };
        self.call(Op::Fetch(fetch), Call::Fetched { topic, part, t0: super::time::nanos() });
    }

    pub(crate) fn commit(&mut self, topic: &'static str, part: u32) {
        let Some(offset) = self.cursors.get(&(topic, part)).and_then(|c| c.next) else { return };
        let story = &self.shared.story;
        let cursor = event::Cursor {
            queue: story.name(topic),
            group: story.name(GROUP),
            part: u16::try_from(part).expect("few parts"),
            offset: Offset::new(offset).expect("a small offset"),
        };
        let place = story.begin(self.me, event::Op::Commit(cursor));
        let op =
            Op::CommitOffset { group: GROUP.into(), topic: topic.into(), queue_id: part, offset, wait: true };
        self.call(op, Call::Committed { places: vec![place] });
    }

    // ---- what comes back

    /// Waits so long for events, and takes in all that come.
    pub(crate) async fn listen(&mut self, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        loop {
            tokio::select! {
                biased;
                events = self.link.events() => match events {
                    Some(events) => self.take_in(events),
                    None => {
                        self.broken = true;
                        return;
                    }
                },
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn take_in(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Reply { request, result } => {
                    let Some((_, call)) = self.calls.remove(&request) else {
                        let what = format!("request {request} was answered twice: {result:?}");
                        self.shared.oracle.borrow_mut().violated(what);
                        continue;
                    };
                    self.answered(call, result.ok());
                }
                Event::Confirmed { channel, first, last, accepted } => {
                    (first..=last).for_each(|number| self.confirmed(channel, number, accepted));
                }
                Event::Returned { channel, publish } => {
                    if let Some(sent) = self.published.get_mut(&(channel, publish.confirm)) {
                        sent.returned = true;
                    }
                }
                Event::Deliveries { reader, deliveries } => {
                    let Some((queue, auto)) = self.readers.get(&reader).map(|r| (r.queue, r.auto)) else {
                        continue;
                    };
                    for delivery in deliveries {
                        self.delivered(reader, queue, auto, &delivery);
                    }
                }
                Event::ReaderCancelled { reader } => {
                    self.readers.remove(&reader);
                }
                Event::CheckBack(delivery) => {
                    if let Some((msg, _)) = self.read("half", &delivery) {
                        self.end_transaction(msg, delivery.offset, delivery.position);
                    }
                }
                Event::PublishRefused { .. } | Event::ShuttingDown => {}
            }
        }
    }

    fn confirmed(&mut self, channel: u16, number: u64, accepted: bool) {
        let Some(sent) = self.published.remove(&(channel, number)) else {
            let what = format!("publish {number} of channel {channel} was confirmed twice");
            return self.shared.oracle.borrow_mut().violated(what);
        };
        let stored = accepted && !sent.returned;
        self.shared.story.end(sent.place, if stored { Outcome::Ok } else { Outcome::Fail });
        if !stored && sent.sure {
            let what =
                format!("publish {number} was not taken: accepted {accepted}, returned {}", sent.returned);
            self.shared.oracle.borrow_mut().violated(what);
        }
        if stored && sent.sure && self.acks_known < sent.fence {
            // It stands behind them in the log.
            for place in &self.acks[self.acks_known..sent.fence] {
                self.shared.story.end(*place, Outcome::Ok);
            }
            self.acks_known = sent.fence;
        }
    }

    fn answered(&mut self, call: Call, reply: Option<Reply>) {
        match (call, reply) {
            (Call::Got { queue, reader, auto, .. }, Some(Reply::Got { delivery: Some(delivery), .. })) => {
                self.readers.insert(reader, Reader { queue, auto, leases: VecDeque::new() });
                // A get may wait for a leader longer than others hold the message: its arrival counts, as of a push.
                self.delivered(reader, queue, auto, &delivery);
                if auto {
                    self.readers.remove(&reader);
                }
            }
            (Call::Got { queue, t0, .. }, Some(Reply::Got { delivery: None, .. })) => {
                self.got_nothing += 1;
                let queue = self.shared.story.name(queue);
                let op = event::Op::Empty { queue };
                self.shared.story.put(self.me, op, Outcome::Ok, t0, super::time::nanos());
            }
            (Call::Subscribed { reader }, None) => {
                self.readers.remove(&reader);
            }
            (Call::Sent { places }, Some(Reply::Sent { queue_id, offsets, .. })) => {
                self.sent(&places, queue_id, &offsets);
            }
            (Call::Sent { places }, None) => {
                places.iter().for_each(|place| self.shared.story.end(*place, Outcome::Fail));
            }
            (Call::Delayed { place, due }, Some(_)) => self.shared.story.end_at(place, Outcome::Ok, due),
            (Call::Delayed { place, .. }, None) => self.shared.story.end(place, Outcome::Fail),
            (Call::Prepared { msg }, Some(Reply::Sent { offsets, positions, .. })) => {
                // The others forget it, and are asked.
                if let (Some(offset), Some(position)) = (offsets.first(), positions.first())
                    && self.shared.dice.permille(700)
                {
                    self.end_transaction(msg, *offset, *position);
                }
            }
            (Call::Ended { msg }, Some(_)) => {
                if let Some((place, commit)) = self.shared.waiting.borrow().half(msg) {
                    self.shared.story.end(place, if commit { Outcome::Ok } else { Outcome::Fail });
                }
            }
            (Call::SentBack { msg }, Some(_)) => {
                self.shared.waiting.borrow_mut().certainly_sent_back(msg);
            }
            (Call::Fetched { topic, part, t0 }, reply) => self.fetched(topic, part, t0, reply),
            (Call::Committed { places }, reply) => {
                let outcome = if reply.is_some() { Outcome::Ok } else { Outcome::Fail };
                places.iter().for_each(|place| self.shared.story.end(*place, outcome));
            }
            (Call::Resumed { topic, part, t0 }, reply) => self.resumed(topic, part, t0, reply.as_ref()),
            _ => {}
        }
    }

    fn sent(&mut self, places: &[usize], queue_id: u32, offsets: &[u64]) {
        if places.len() != offsets.len() {
            let what = format!("{} messages were sent, {} offsets came back", places.len(), offsets.len());
            return self.shared.oracle.borrow_mut().violated(what);
        }
        let wrong = u64::from(self.shared.plant == Plant::WrongOffset);
        for (place, offset) in places.iter().zip(offsets) {
            self.shared.story.end(*place, Outcome::Ok);
            self.shared.story.change(*place, |op| {
                if let event::Op::Publish(publish) = op {
                    publish.part = u16::try_from(queue_id).ok();
                    publish.offset = Offset::new(*offset + wrong);
                }
            });
        }
    }

    fn resumed(&mut self, topic: &'static str, part: u32, t0: u64, reply: Option<&Reply>) {
        let cursor = self.cursors.entry((topic, part)).or_default();
        cursor.busy = false;
        let Some(Reply::GroupOffset { offset, .. }) = reply else { return };
        let offset = *offset;
        cursor.next = Some(offset.unwrap_or(0));
        let Some(offset) = offset.and_then(Offset::new) else { return };
        let story = &self.shared.story;
        let (queue, group) = (story.name(topic), story.name(GROUP));
        let part = u16::try_from(part).expect("few parts");
        let op = event::Op::Committed(event::Cursor { queue, group, part, offset });
        story.put(self.me, op, Outcome::Ok, t0, super::time::nanos());
    }

    fn fetched(&mut self, topic: &'static str, part: u32, t0: u64, reply: Option<Reply>) {
        let cursor = self.cursors.entry((topic, part)).or_default();
        cursor.busy = false;
        let Some(Reply::Fetched(fetched)) = reply else {
            self.fetched_nothing += 1;
            return;
        };
        let trimmed = self.shared.habits.trims() && cursor.next.is_some_and(|next| next < fetched.next);
        if fetched.status == FetchStatus::OffsetMoved && !trimmed {
            let what = format!("offset {:?} of {topic} {part} moved to {}", cursor.next, fetched.next);
            self.shared.oracle.borrow_mut().violated(what);
        }
        cursor.next = Some(fetched.next);
        // Whose offset moved looks again.
        let moved = fetched.status == FetchStatus::OffsetMoved;
        self.fetched_nothing += u64::from(fetched.deliveries.is_empty() && !moved);
        for delivery in &fetched.deliveries {
            let Some((msg, sum)) = self.read(topic, delivery) else { continue };
            if topic == RETRY {
                self.shared.waiting.borrow_mut().came_again(msg);
                continue;
            }
            self.recent.push_back((topic, delivery.position, msg));
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
            let (queue, part) = (self.shared.story.name(topic), u16::try_from(part).expect("few parts"));
            let offset = Offset::new(delivery.offset).expect("a small offset");
            let op = if self.scans {
                event::Op::Scan(event::Scan { queue, part, offset, msg, sum: Some(sum) })
            } else {
                event::Op::Deliver(event::Delivery {
                    queue,
                    group: self.shared.story.name(GROUP),
                    part,
                    msg,
                    offset: Some(offset),
                    tag: None,
                    token: None,
                    redelivered: None,
                    sum: Some(sum),
                    asked: true,
                    auto: false,
                })
            };
            self.shared.story.put(self.me, op, Outcome::Ok, t0, super::time::nanos());
        }
    }

    fn delivered(&mut self, reader: u32, queue: &'static str, auto: bool, delivery: &Delivery) {
        self.send(0, Op::Drained { bytes: delivery.weight });
        let Some((msg, sum)) = self.read(queue, delivery) else { return };
        self.tags += 1;
        let lost = self.shared.plant == Plant::LostFlag;
        let op = event::Op::Deliver(event::Delivery {
            queue: self.shared.story.name(queue),
            group: Name::NONE,
            part: 0,
            msg,
            // Others are deleted and declared anew: their places begin again.
            offset: Offset::new(delivery.offset).filter(|_| STEADY.contains(&queue)),
            tag: NonZeroU64::new(self.tags),
            token: None,
            redelivered: Some(delivery.redelivered && !lost),
            sum: Some(sum),
            asked: false,
            auto,
        });
        self.shared.story.note(self.me, op);
        if !auto && let Some(held) = self.readers.get_mut(&reader) {
            held.leases.push_back((delivery.offset, msg));
        }
    }

    /// The message and the checksum of what goes with its body; `None`: it does not prove itself.
    fn read(&mut self, queue: &'static str, delivery: &Delivery) -> Option<(Msg, u32)> {
        let log = self.link.log().clone();
        let stored = match resolve(&delivery.message, &log, &mut self.cache) {
            Ok(stored) => stored,
            Err(error) => {
                self.damaged(queue, &format!("{error}"));
                return None;
            }
        };
        let (body, rest) = parts(&stored);
        let sum = body::checksum(&rest);
        match body::verify(&body, "sim") {
            Ok(identity) => {
                let publisher = self.shared.story.name(identity.publisher);
                let msg = Msg { publisher, seq: identity.seq };
                if let Err(early) = self.shared.waiting.borrow().arrived(msg, now()) {
                    self.shared.oracle.borrow_mut().violated(format!("{queue}: {early}"));
                }
                Some((msg, sum))
            }
            Err(error) => {
                self.damaged(queue, &format!("{error:?}"));
                None
            }
        }
    }

    fn damaged(&self, queue: &'static str, why: &str) {
        let story = &self.shared.story;
        self.shared.note(|| format!("damaged in {queue}: {why}"));
        story.note(
            self.me,
            event::Op::Damaged(event::Damaged { queue: story.name(queue), why: story.name(why) }),
        );
    }
}

/// One of two.
fn channel_of(seq: u32) -> u16 {
    1 + u16::try_from(seq % 2).expect("two channels")
}

fn ranges(taken: &[(u64, Msg)]) -> Vec<(u64, u64)> {
    let mut offsets: Vec<u64> = taken.iter().map(|(offset, _)| *offset).collect();
    offsets.sort_unstable();
    offsets.into_iter().map(|offset| (offset, offset)).collect()
}

/// The body, and what of the rest nobody may change.
fn parts(stored: &StoredMessage) -> (Vec<u8>, Vec<u8>) {
    let (prefix, body) = (stored.prefix_len as usize, stored.body_len as usize);
    let (body, suffix) = match &stored.body {
        Some(pieces) => (pieces.concat(), stored.bytes.slice(prefix..)),
        None => (stored.bytes[prefix..prefix + body].to_vec(), stored.bytes.slice(prefix + body..)),
    };
    match stored.origin {
        Origin::Amqp => (body, stored.bytes[..prefix].to_vec()),
        Origin::Rocketmq => (body, waiting::name_in(&stored.bytes[..prefix], &suffix)),
    }
}
