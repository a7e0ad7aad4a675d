//! The core as a whole, on a log that commits what it is given: rules of verbs, order, leases, resending.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use dassie_storage::{Batch, LogPoint};
use tokio::sync::{mpsc, watch};

use super::api::*;
use super::core::{Core, PageSource, Parts, Proposal};
use super::index::NoPages;
use super::link::{Credit, Input};
use super::message::Batches;
use super::record::{BatchBuilder, Kind, PayloadHead};
use super::state::{OUTCOMES, State, TERM_START, put_ranges};
use crate::clock::Clock;
use crate::security::{self, Action, Resource};

mod alternate;
mod dead;
mod expiration;
mod fronts;
mod later;
mod overflow;
mod pieces;
mod refused;
mod replies;
mod retention;
mod transactions;
mod turns;
mod views;

#[derive(Clone, Default)]
struct MemoryLog(Rc<RefCell<BTreeMap<u64, Batch>>>);

impl Batches for MemoryLog {
    fn batch(&self, position: u64) -> io::Result<Batch> {
        self.0.borrow().get(&position).cloned().ok_or_else(|| io::Error::other("no batch there"))
    }

    fn holding(&self, position: u64) -> io::Result<Batch> {
        let batches = self.0.borrow();
        let batch = batches.range(..=position).next_back().filter(|(_, batch)| position < batch.point.end);
        batch.map(|(_, batch)| batch.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_at_hand(&self, _: u64) -> bool {
        true
    }
}

impl PageSource for NoPages {
    fn read(&self, page: u32, owner: u64) -> io::Result<Bytes> {
        super::index::Pages::read(self, page, owner)
    }
}

/// Stands still until it is moved.
#[derive(Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(1000 + self.0.load(Ordering::Relaxed))
    }

    fn wall_ms(&self) -> u64 {
        1_800_000_000_000 + self.0.load(Ordering::Relaxed)
    }
}

struct Plain;

impl Semantics for Plain {
    fn headers_match(&self, _: &[u8], _: &Message) -> bool {
        true
    }

    fn arguments_differ(&self, _: &'static str, a: &[u8], b: &[u8]) -> Option<(String, String, String)> {
        (a != b).then(|| ("x".into(), "a".into(), "b".into()))
    }

    /// Split at ";": "t" and a number: how long messages may wait; "x": how long a queue may be unused; "l": its length; "b": its bytes; "d" and
    /// an exchange, perhaps with ":" and a key: where the dead go; "r", "R": it turns messages away, to where the dead go; "p": its highest
    /// priority; "s": one reader gets everything.
    fn queue_limits(&self, arguments: &[u8]) -> QueueLimits {
        let mut limits = QueueLimits::default();
        for one in std::str::from_utf8(arguments).unwrap().split(';').filter(|one| !one.is_empty()) {
            let (what, value) = one.split_at(1);
            match what {
                "t" => limits.message_ttl = value.parse().ok(),
                "x" => limits.expires = value.parse().ok(),
                "l" => limits.max_length = value.parse().ok(),
                "b" => limits.max_bytes = value.parse().ok(),
                "r" => limits.overflow = Overflow::Reject,
                "R" => limits.overflow = Overflow::RejectDeadLetter,
                "p" => limits.max_priority = value.parse().ok(),
                "s" => limits.single_active = true,
                "d" => {
                    let (exchange, key) = value.split_once(':').unwrap_or((value, ""));
                    limits.dead_letter = Some((exchange.into(), (!key.is_empty()).then(|| key.into())));
                }
                _ => {}
            }
        }
        limits
    }

    /// "a" and its name.
    fn alternate_exchange(&self, arguments: &[u8]) -> Option<Arc<str>> {
        std::str::from_utf8(arguments).unwrap().strip_prefix('a').map(Arc::from)
    }

    fn dead_letter(&self, message: &StoredMessage, death: &Death<'_>) -> Result<DeadLetter, Arc<str>> {
        dead::letter(message, death)
    }

    fn priority(&self, message: &Message) -> u8 {
        message.bytes.first().copied().unwrap_or(0).saturating_sub(b'0')
    }

    fn topic_queue(&self, _: &Message, _: u32) -> Option<u32> {
        Some(0)
    }

    fn step(&self, message: &StoredMessage, step: &Step<'_>) -> Result<Stepped, Arc<str>> {
        later::step(message, step)
    }

    fn half(&self, message: &StoredMessage) -> Option<Half> {
        later::half(message)
    }

    fn born_after(&self, first: &StoredMessage, again: &Message) -> Option<i64> {
        (first.bytes == again.bytes).then_some(0)
    }

    fn stamp(&self, _: &mut [u8], _: u32, _: u64) {}
}

/// Bytes of a segment of these tests' logs: the largest batch fits.
const SEGMENT: u64 = 2 << 20;

/// A core and the log it writes.
struct Harness {
    core: Core,
    clock: Arc<HandClock>,
    log: MemoryLog,
    index: u64,
    position: u64,
    term: u64,
    taken: Vec<Proposal>,
}

struct Client {
    id: ConnectionId,
    events: mpsc::UnboundedReceiver<Vec<Event>>,
    request: u64,
    vhost: u32,
}

fn guest() -> security::Principal {
    security::Realm::new(security::users::Users::only_guest()).anonymous("127.0.0.1".parse().unwrap())
}

fn key() -> security::Authorized {
    security::authorize(&guest(), Action::Write, Resource::Own).unwrap()
}

/// A core's surroundings on that log.
fn parts(session: u64, log: &MemoryLog, clock: &Arc<HandClock>) -> Parts {
    Parts {
        spill: None,
        node: 1,
        session,
        log: Box::new(log.clone()),
        pages: Box::new(NoPages),
        semantics: Arc::new(Plain),
        clock: clock.clone(),
        topology: watch::channel(Arc::default()).0,
        batch_bytes: crate::limits::BATCH_TARGET,
        section_bytes: crate::limits::SECTION_MAX,
    }
}

impl Harness {
    fn new() -> Self {
        Self::restarted(77, &[])
    }

    /// A core of a new incarnation that replays `batches`, leads the next term and has opened its session.
    fn restarted(session: u64, batches: &[Batch]) -> Self {
        let log = MemoryLog::default();
        let clock = Arc::new(HandClock::default());
        let parts = parts(session, &log, &clock);
        let (state, _) = Core::recovered(SEGMENT, None).unwrap();
        let mut harness = Self {
            core: Core::new(parts, state),
            clock,
            log,
            index: 0,
            position: 0,
            term: 0,
            taken: Vec::new(),
        };
        for batch in batches {
            harness.term = batch.point.term;
            harness.commit(batch.kind, batch.payload.clone());
            harness.propose();
            assert!(harness.taken.is_empty(), "who replays proposes nothing");
        }
        harness.start_term();
        harness.run();
        harness
    }

    fn start_term(&mut self) {
        self.term += 1;
        self.commit(TERM_START, Bytes::new());
        self.core.lead(self.term);
    }

    fn commit(&mut self, kind: u8, payload: Bytes) {
        self.commit_by(1, kind, payload);
    }

    /// Another node leads a term: it opens a session and settles the first `settled` messages of `queue`.
    fn other_leads(&mut self, queue: QueueUid, settled: u64) {
        self.term += 1;
        self.commit_by(2, TERM_START, Bytes::new());
        let version = self.core.state.topology.version;
        let mut builder = BatchBuilder::new();
        let start = builder.begin(500, 0, 0, version, Kind::Session, 0);
        builder.body().put_u64_le(2);
        builder.end(start);
        let start = builder.begin(500, 0, 1, version, Kind::Settlement, 0);
        put_ranges(builder.body(), queue, &[(0, settled)]);
        builder.end(start);
        let head = PayloadHead { term: self.term, ordinal: 0, log_time: 1, lag: 0 };
        self.commit_by(2, OUTCOMES, builder.close(head));
    }

    fn commit_by(&mut self, leader: u64, kind: u8, payload: Bytes) {
        let len = 96 + payload.len() as u64;
        // A batch does not cross a segment's end.
        if self.position % SEGMENT + len > SEGMENT {
            self.position = self.position.next_multiple_of(SEGMENT);
        }
        let end = self.position + len;
        let point =
            LogPoint { index: self.index, term: self.term, leader, position: self.position, end, hash: 0 };
        let batch = Batch { point, kind, payload, payload_position: self.position + 96 };
        self.log.0.borrow_mut().insert(self.position, batch.clone());
        self.index += 1;
        self.position = end;
        self.core.apply(&batch);
    }

    /// Takes what is to be proposed, without committing it.
    fn propose(&mut self) {
        self.core.turn();
        self.core.expire();
        while self.core.serve() {}
        let proposals = self.core.proposals();
        self.taken.extend(proposals);
        self.core.flush();
    }

    /// Commits until nothing is left to do.
    fn run(&mut self) {
        loop {
            self.propose();
            if self.taken.is_empty() {
                return;
            }
            for proposal in std::mem::take(&mut self.taken) {
                self.commit(OUTCOMES, proposal.payload);
            }
        }
    }

    /// Time passes.
    fn advance(&mut self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
        self.run();
    }

    fn client(&mut self, id: ConnectionId) -> Client {
        let (events_in, events) = mpsc::unbounded_channel();
        self.core.input(Input::Connected(id, events_in, Arc::new(Credit::default())));
        Client { id, events, request: 0, vhost: 0 }
    }

    fn send(&mut self, client: &mut Client, op: Op) {
        client.request += 1;
        let verb = Verb { key: key(), request: client.request, vhost: client.vhost, op, number: 0 };
        self.core.input(Input::Verbs(client.id, vec![verb]));
    }

    fn call(&mut self, client: &mut Client, op: Op) -> Result<Reply, Refusal> {
        self.send(client, op);
        self.run();
        let request = client.request;
        client
            .take()
            .into_iter()
            .find_map(|e| match e {
                Event::Reply { request: r, result } if r == request => Some(result),
                _ => None,
            })
            .expect("an answer")
    }
}

impl Client {
    fn take(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Ok(events) = self.events.try_recv() {
            all.extend(events);
        }
        all
    }

    fn deliveries(&mut self) -> Vec<(u64, bool, Vec<u8>)> {
        self.take()
            .into_iter()
            .flat_map(|e| match e {
                Event::Deliveries { deliveries, .. } => deliveries,
                _ => Vec::new(),
            })
            .map(|d| match d.message {
                Located::Ready(m) => (d.offset, d.redelivered, m.bytes.to_vec()),
                Located::Stored { .. } | Located::Paged(_) => (d.offset, d.redelivered, Vec::new()),
            })
            .collect()
    }
}

fn queue(name: &str, durable: bool) -> Op {
    Op::DeclareQueue(
        QueueSpec {
            name: name.into(),
            kind: QueueKind::Classic,
            durable,
            exclusive: false,
            auto_delete: false,
            arguments: Bytes::new(),
        },
        false,
    )
}

fn publish(exchange: &str, key: &str, confirm: u64, body: &'static [u8]) -> Op {
    Op::Publish(Publish {
        channel: 1,
        exchange: exchange.into(),
        routing_key: key.into(),
        also: Vec::new(),
        mandatory: false,
        confirm,
        message: Message {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(body),
            prefix_len: 0,
            body_len: u32::try_from(body.len()).unwrap(),
            tag_hash: 0,
            persistent: true,
            ttl: None,
        },
    })
}

fn consume(reader: ReaderId, name: &str, window: u16) -> Op {
    Op::Subscribe(Subscribe {
        reader,
        queue: name.into(),
        no_ack: false,
        exclusive: false,
        priority: 0,
        window: Window { reader: window, channel: 1 },
    })
}

fn confirms(events: &[Event]) -> Vec<(u64, u64, bool)> {
    events
        .iter()
        .filter_map(|e| match e {
            Event::Confirmed { first, last, accepted, .. } => Some((*first, *last, *accepted)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_confirm_comes_after_the_batch_is_applied_and_not_before() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 1, b"one"));
    h.propose();
    assert!(confirms(&c.take()).is_empty());
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
}

#[test]
fn messages_are_delivered_in_order_within_the_window_and_acks_make_room() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    for body in [b"0", b"1", b"2", b"3"] {
        h.send(&mut c, publish("", "q", 0, body));
    }
    h.call(&mut c, consume(5, "q", 2)).unwrap();
    let Ok(Reply::Queue { messages, consumers }) = h.call(&mut c, queue("q", true)) else { panic!() };
    assert_eq!((messages, consumers), (2, 1));
    h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(0, 0)], how: Settle::Ack });
    h.run();
    assert_eq!(c.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_requeued_message_returns_to_its_place_flagged() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", durable)).unwrap();
        for body in [b"0", b"1", b"2"] {
            h.send(&mut c, publish("", "q", 0, body));
        }
        h.send(&mut c, consume(5, "q", 2));
        h.run();
        assert_eq!(c.deliveries().len(), 2);
        h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(0, 1)], how: Settle::Requeue });
        h.run();
        assert_eq!(
            c.deliveries(),
            [(0, true, b"0".to_vec()), (1, true, b"1".to_vec())],
            "durable: {durable}"
        );
    }
}

#[test]
fn what_a_gone_connection_held_comes_to_another_redelivered() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, queue("q", true)).unwrap();
    h.send(&mut a, publish("", "q", 0, b"x"));
    h.send(&mut a, consume(1, "q", 0));
    h.run();
    assert_eq!(a.deliveries().len(), 1);
    h.core.input(Input::Disconnected(1));
    h.send(&mut b, consume(1, "q", 0));
    h.run();
    assert_eq!(b.deliveries(), [(0, true, b"x".to_vec())]);
}

#[test]
fn an_exclusive_queue_is_locked_for_others_and_goes_with_its_connection() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    let Op::DeclareQueue(spec, _) = queue("q", false) else { panic!() };
    h.call(&mut a, Op::DeclareQueue(QueueSpec { exclusive: true, ..spec }, false)).unwrap();
    assert!(matches!(h.call(&mut b, consume(1, "q", 0)), Err(Refusal::Locked { .. })));
    h.core.input(Input::Disconnected(1));
    h.run();
    assert!(matches!(h.call(&mut b, consume(1, "q", 0)), Err(Refusal::NotFound { .. })));
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_reader_and_not_before() {
    let mut h = Harness::new();
    let mut a = h.client(1);
    let Op::DeclareQueue(spec, _) = queue("q", true) else { panic!() };
    h.call(&mut a, Op::DeclareQueue(QueueSpec { auto_delete: true, ..spec }, false)).unwrap();
    h.call(&mut a, consume(1, "q", 0)).unwrap();
    h.call(&mut a, consume(2, "q", 0)).unwrap();
    h.call(&mut a, Op::Unsubscribe { reader: 1 }).unwrap();
    h.send(&mut a, publish("", "q", 1, b"x"));
    h.run();
    assert_eq!(h.core.state.queues.len(), 1);
    h.call(&mut a, Op::Unsubscribe { reader: 2 }).unwrap();
    h.run();
    assert_eq!(h.core.state.queues.len(), 0);
    assert!(h.core.state.segments.is_empty(), "its messages hold no segment any more");
}

#[test]
fn a_lost_batch_is_decided_again_with_one_confirm_and_no_duplicate() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 1, b"one"));
    h.propose();
    h.send(&mut c, publish("", "q", 2, b"two"));
    h.propose();
    // The batch with the first is refused, and nothing else is under way.
    assert_eq!(h.taken.len(), 1);
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 2, true)]);
    let queue = h.core.state.queues.values().next().unwrap();
    assert_eq!(queue.index.next(), 2);
}

#[test]
fn a_batch_behind_a_refused_one_is_void_and_comes_again_in_order() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    let large: &'static [u8] = Box::leak(vec![b'a'; 800_000].into_boxed_slice());
    let other: &'static [u8] = Box::leak(vec![b'b'; 800_000].into_boxed_slice());
    h.send(&mut c, publish("", "q", 1, large));
    h.send(&mut c, publish("", "q", 2, other));
    h.send(&mut c, publish("", "q", 3, large));
    h.propose();
    assert!(h.taken.len() >= 2, "two batches under way");
    let mut under_way = std::mem::take(&mut h.taken);
    // The first is refused, the second accepted in the same term: it must not count.
    h.core.refused(h.term);
    under_way.remove(0);
    for proposal in under_way {
        h.commit(OUTCOMES, proposal.payload);
    }
    assert!(confirms(&c.take()).is_empty());
    h.core.lead(h.term);
    h.run();
    let mut all = confirms(&c.take());
    all.sort_unstable();
    assert_eq!(all.iter().map(|(a, b, _)| b - a + 1).sum::<u64>(), 3);
    let queue = h.core.state.queues.values().next().unwrap();
    assert_eq!(queue.index.next(), 3);
}

#[test]
fn a_new_term_decides_what_was_pending_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 1, b"one"));
    h.propose();
    let lost = std::mem::take(&mut h.taken);
    assert_eq!(lost.len(), 1);
    h.start_term();
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    // The old leader's batch turning up in the new term is void.
    h.commit(OUTCOMES, lost[0].payload.clone());
    assert_eq!(h.core.state.queues.values().next().unwrap().index.next(), 1);
}

#[test]
fn a_message_for_a_topic_reaches_its_queue_and_what_is_bound_to_it() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    let topic: Arc<str> = "T".into();
    h.call(
        &mut c,
        Op::CreateTopic { topic: Arc::clone(&topic), write_queues: 2, read_queues: 2, permission: 6 },
    )
    .unwrap();
    let binding = BindingSpec {
        source: "amq.rmq.T".into(),
        destination: Destination::Queue("q".into()),
        key: "red".into(),
        arguments: Bytes::new(),
    };
    h.call(&mut c, Op::Bind(binding)).unwrap();
    let message = |body: &'static [u8], tag: &str| SendMessage {
        message: Message {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(body),
            prefix_len: 0,
            body_len: 1,
            tag_hash: 9,
            persistent: true,
            ttl: None,
        },
        tag: tag.into(),
    };
    let send = Send {
        topic: Arc::clone(&topic),
        queue_id: Some(1),
        create_queues: None,
        messages: vec![message(b"r", "red"), message(b"b", "blue")],
        waits: None,
        key: 0,
        arrived: Duration::ZERO,
    };
    let Ok(Reply::Sent { queue_id, offsets, positions }) = h.call(&mut c, Op::Send(send)) else { panic!() };
    assert_eq!((queue_id, offsets), (1, vec![0, 1]));
    assert!(positions[0] < positions[1]);
    let fetch = |offset, wait_ms| {
        Op::Fetch(Fetch {
            topic: Arc::clone(&topic),
            queue_id: 1,
            offset,
            max_messages: 32,
            max_bytes: 1 << 20,
            tags: [].into(),
            wait_ms,
        })
    };
    let Ok(Reply::Fetched(fetched)) = h.call(&mut c, fetch(0, 0)) else { panic!() };
    assert_eq!((fetched.status, fetched.deliveries.len(), fetched.next), (FetchStatus::Found, 2, 2));
    let Ok(Reply::Queue { messages, .. }) = h.call(&mut c, queue("q", true)) else { panic!() };
    assert_eq!(messages, 1);
    // An AMQP publish to the topic's exchange is a message of the topic, and wakes who waits.
    h.send(&mut c, fetch(2, 1000));
    h.run();
    assert!(c.take().is_empty());
    h.send(&mut c, publish("amq.rmq.T", "red", 1, b"z"));
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
}

#[test]
fn a_checkpoint_and_the_log_behind_it_give_the_same_state() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    for name in ["a", "b", "c"] {
        h.call(&mut c, queue(name, true)).unwrap();
    }
    let binding = BindingSpec {
        source: "amq.fanout".into(),
        destination: Destination::Queue("a".into()),
        key: "".into(),
        arguments: Bytes::new(),
    };
    h.call(&mut c, Op::Bind(binding)).unwrap();
    for n in 0..200u64 {
        h.send(&mut c, publish(if n % 2 == 0 { "" } else { "amq.fanout" }, "b", 0, b"body"));
    }
    h.call(&mut c, consume(1, "b", 10)).unwrap();
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(0, 3), (6, 6)], how: Settle::Ack });
    h.run();
    let mut pages: BTreeMap<u32, Bytes> = BTreeMap::new();
    let mut next = 0;
    let delta = h.core.state.begin_checkpoint(&mut |n| {
        next += n;
        next - n
    });
    let delta = delta.unwrap();
    pages.extend(delta.pages.iter().map(|(id, _, bytes)| (*id, bytes.clone())));
    h.core.state.checkpointed(&delta.assigned);
    struct Kept(BTreeMap<u32, Bytes>);
    impl super::index::Pages for Kept {
        fn read(&self, page: u32, _: u64) -> io::Result<Bytes> {
            self.0.get(&page).cloned().ok_or_else(|| io::Error::other("no page"))
        }
    }
    let kept = Kept(pages);
    let objects: BTreeMap<Bytes, Bytes> = delta.puts.into_iter().collect();
    let (mut loaded, _) = State::load(SEGMENT, delta.point, objects).unwrap();
    assert_eq!(loaded.digest(&kept), h.core.state.digest(&kept));
    // Then both go on with the same batches.
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(4, 5)], how: Settle::Ack });
    h.call(&mut c, Op::DeleteQueue { name: "a".into(), if_unused: false, if_empty: false }).unwrap();
    h.run();
    let behind: Vec<Batch> =
        h.log.0.borrow().values().filter(|b| b.point.index > delta.point.index).cloned().collect();
    for batch in behind {
        loaded.apply(&batch, &kept);
    }
    assert_eq!(loaded.digest(&kept), h.core.state.digest(&kept));
}

#[test]
fn a_message_got_by_a_channel_returns_when_that_channel_closes() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.run();
    let get = |reader| Op::Get { reader, channel: 3, queue: "q".into(), no_ack: false };
    let Ok(Reply::Got { delivery: Some(first), .. }) = h.call(&mut c, get(70)) else { panic!() };
    assert!(!first.redelivered);
    h.call(&mut c, Op::CloseChannel { channel: 3 }).unwrap();
    let Ok(Reply::Got { delivery: Some(again), .. }) = h.call(&mut c, get(71)) else { panic!() };
    assert!(again.redelivered);
    h.send(&mut c, Op::Settle { reader: 71, ranges: vec![(0, 0)], how: Settle::Ack });
    h.run();
    assert!(h.core.readers.is_empty(), "a getter is forgotten with its lease");
}

#[test]
fn a_new_incarnation_goes_on_after_removing_what_the_old_one_held() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("volatile", false)).unwrap();
    h.call(&mut c, queue("durable", true)).unwrap();
    let batches: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut again = Harness::restarted(78, &batches);
    let mut c = again.client(1);
    again.call(&mut c, queue("volatile", false)).unwrap();
    let Ok(Reply::Queue { .. }) = again.call(&mut c, queue("durable", true)) else { panic!() };
    assert_eq!(again.core.state.topology.queue_count(), 2);
}

#[test]
fn a_first_batch_of_messages_for_a_new_topic_is_one_batch_or_refused() {
    for (each, fits) in [(200_000usize, true), (1_500_000, true), (1_600_000, false)] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", true)).unwrap();
        // Something else is in the open batch already.
        let filler: &'static [u8] = Box::leak(vec![b'f'; 500_000].into_boxed_slice());
        h.send(&mut c, publish("", "q", 1, filler));
        let body: &'static [u8] = Box::leak(vec![b'm'; each].into_boxed_slice());
        let message = || SendMessage {
            message: Message {
                origin: Origin::Amqp,
                bytes: Bytes::from_static(body),
                prefix_len: 0,
                body_len: u32::try_from(each).unwrap(),
                tag_hash: 0,
                persistent: true,
                ttl: None,
            },
            tag: "".into(),
        };
        let send = Send {
            topic: "T".into(),
            queue_id: None,
            create_queues: Some(4),
            messages: (0..4).map(|_| message()).collect(),
            waits: None,
            key: 0,
            arrived: Duration::ZERO,
        };
        let result = h.call(&mut c, Op::Send(send));
        let stored: u64 =
            h.core.state.queues.values().filter(|q| q.kind == QueueKind::Topic).map(|q| q.index.next()).sum();
        match result {
            Ok(Reply::Sent { offsets, .. }) => {
                assert_eq!((fits, offsets, stored), (true, vec![0, 1, 2, 3], 4))
            }
            Err(Refusal::Limit(_)) => assert_eq!((fits, stored), (false, 0)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_automatically_acknowledged_get_does_not_count_as_ready() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.run();
    let get = Op::Get { reader: 9, channel: 1, queue: "q".into(), no_ack: true };
    let Ok(Reply::Got { delivery: Some(_), remaining }) = h.call(&mut c, get) else { panic!() };
    assert_eq!(remaining, 0);
    let Ok(Reply::Queue { messages: 0, .. }) = h.call(&mut c, queue("q", true)) else { panic!() };
}

#[test]
fn a_client_finds_what_it_published_before_without_waiting_for_a_confirm() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    let get = || Op::Get { reader: 9, channel: 1, queue: "q".into(), no_ack: true };
    h.send(&mut c, publish("", "q", 0, b"x"));
    let Ok(Reply::Got { delivery: Some(_), .. }) = h.call(&mut c, get()) else { panic!() };
    h.send(&mut c, publish("", "q", 0, b"y"));
    let Ok(Reply::Queue { messages: 1, .. }) = h.call(&mut c, queue("q", true)) else { panic!() };
    h.send(&mut c, publish("", "q", 0, b"z"));
    let purged = h.call(&mut c, Op::PurgeQueue { name: "q".into() });
    assert!(matches!(purged, Ok(Reply::Queue { messages: 2, .. })), "{purged:?}");
    let Ok(Reply::Got { delivery: None, .. }) = h.call(&mut c, get()) else { panic!() };
}

#[test]
fn a_first_send_whose_batch_was_lost_makes_its_topic_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let message = SendMessage {
        message: Message {
            origin: Origin::Amqp,
            bytes: Bytes::from_static(b"m"),
            prefix_len: 0,
            body_len: 1,
            tag_hash: 0,
            persistent: true,
            ttl: None,
        },
        tag: "".into(),
    };
    let send = Send {
        topic: "T".into(),
        queue_id: Some(2),
        create_queues: Some(4),
        messages: vec![message],
        waits: None,
        key: 0,
        arrived: Duration::ZERO,
    };
    h.send(&mut c, Op::Send(send));
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    let replies = c.take();
    let [Event::Reply { result: Ok(Reply::Sent { queue_id: 2, offsets, .. }), .. }] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!(offsets, &[0]);
    assert_eq!(h.core.state.topology.topic("T").map(|t| t.queues.len()), Some(4));
}

#[test]
fn a_declare_that_somebody_else_made_meanwhile_is_answered_once() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.send(&mut a, queue("q", true));
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.send(&mut b, queue("q", true));
    h.core.lead(h.term);
    h.run();
    for client in [&mut a, &mut b] {
        let events = client.take();
        assert!(matches!(&events[..], [Event::Reply { result: Ok(Reply::Queue { .. }), .. }]), "{events:?}");
    }
    assert_eq!(h.core.state.queues.len(), 1);
}

fn topic(name: &str, queues: u32) -> Op {
    Op::CreateTopic { topic: name.into(), write_queues: queues, read_queues: queues, permission: 6 }
}

fn wants(client: &str, queues: &[u32]) -> LockQueues {
    let queues = queues.iter().map(|id| ("T".into(), *id)).collect();
    LockQueues { group: "G".into(), client: client.into(), queues }
}

fn locked(reply: Result<Reply, Refusal>) -> Vec<u32> {
    let Ok(Reply::Locked(queues)) = reply else { panic!("{reply:?}") };
    queues.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn a_queue_is_locked_for_one_client_of_a_group_and_a_restart_keeps_that() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, topic("T", 4)).unwrap();
    assert_eq!(locked(h.call(&mut a, Op::LockQueues(wants("a", &[0, 1, 9])))), [0, 1]);
    assert_eq!(locked(h.call(&mut b, Op::LockQueues(wants("b", &[0, 1, 2])))), [2]);
    h.call(&mut b, Op::UnlockQueues(wants("b", &[0, 1]))).unwrap();
    assert_eq!(locked(h.call(&mut b, Op::LockQueues(wants("b", &[0])))), [0_u32; 0]);
    let batches: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut again = Harness::restarted(78, &batches);
    let (mut a, mut b) = (again.client(1), again.client(2));
    assert_eq!(locked(again.call(&mut b, Op::LockQueues(wants("b", &[0, 1, 2, 3])))), [2, 3]);
    again.call(&mut a, Op::UnlockQueues(wants("a", &[1]))).unwrap();
    assert_eq!(locked(again.call(&mut b, Op::LockQueues(wants("b", &[0, 1])))), [1]);
}

#[test]
fn locks_decided_in_one_turn_see_each_other_and_a_lost_batch_is_decided_again() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, topic("T", 2)).unwrap();
    h.send(&mut a, Op::LockQueues(wants("a", &[0])));
    h.send(&mut b, Op::LockQueues(wants("b", &[0, 1])));
    h.propose();
    assert!(!h.taken.is_empty() && a.take().is_empty() && b.take().is_empty(), "nothing before commit");
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    let answer = |client: &mut Client| match client.take().as_slice() {
        [Event::Reply { result, .. }] => locked(result.clone()),
        events => panic!("{events:?}"),
    };
    assert_eq!((answer(&mut a), answer(&mut b)), (vec![0], vec![1]));
    assert_eq!(h.core.state.locks.iter().count(), 2);
}

#[test]
fn a_new_term_goes_on_with_the_locks_that_were_applied() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, topic("T", 2)).unwrap();
    assert_eq!(locked(h.call(&mut a, Op::LockQueues(wants("a", &[0])))), [0]);
    h.send(&mut b, Op::LockQueues(wants("b", &[1])));
    h.propose();
    h.taken.clear();
    h.start_term();
    h.run();
    assert_eq!(b.take().len(), 1);
    assert_eq!(locked(h.call(&mut b, Op::LockQueues(wants("b", &[0, 1])))), [1]);
    assert_eq!(locked(h.call(&mut a, Op::LockQueues(wants("a", &[0, 1])))), [0]);
}

#[test]
fn a_removed_topic_takes_everything_along_and_a_new_one_of_that_name_begins_anew() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, topic("T", 1)).unwrap();
    let message = Message {
        origin: Origin::Amqp,
        bytes: Bytes::from_static(b"x"),
        prefix_len: 0,
        body_len: 1,
        tag_hash: 0,
        persistent: true,
        ttl: None,
    };
    let send = || {
        let messages = vec![SendMessage { message: message.clone(), tag: "".into() }];
        Op::Send(Send {
            topic: "T".into(),
            queue_id: Some(0),
            create_queues: None,
            messages,
            waits: None,
            key: 0,
            arrived: Duration::ZERO,
        })
    };
    let commit =
        |wait| Op::CommitOffset { group: "G".into(), topic: "T".into(), queue_id: 0, offset: 1, wait };
    h.call(&mut c, send()).unwrap();
    h.call(&mut c, commit(true)).unwrap();
    h.call(&mut c, Op::LockQueues(wants("a", &[0]))).unwrap();
    // A commit on its way behind the removal leaves nothing behind.
    h.send(&mut c, Op::DeleteTopic { topic: "T".into() });
    let mut other = h.client(2);
    h.send(&mut other, commit(false));
    h.run();
    let state = &h.core.state;
    assert!(state.queues.is_empty() && state.segments.is_empty() && state.group_offsets.is_empty());
    assert_eq!((state.locks.iter().count(), state.topology.queue_count()), (0, 0));
    assert!(matches!(h.call(&mut c, send()), Err(Refusal::NotFound { .. })));
    h.call(&mut c, topic("T", 1)).unwrap();
    let Ok(Reply::Sent { offsets, .. }) = h.call(&mut c, send()) else { panic!() };
    assert_eq!(offsets, [0]);
    let group = Op::GroupOffset { group: "G".into(), topic: "T".into(), queue_id: 0 };
    assert!(matches!(h.call(&mut c, group), Ok(Reply::GroupOffset { offset: None, .. })));
}

#[test]
fn a_message_that_can_not_be_read_is_an_error_for_who_asks_and_stops_nobody() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, topic("T", 1)).unwrap();
    h.call(&mut c, queue("q", true)).unwrap();
    for body in [b"x", b"y"] {
        h.send(&mut c, publish("amq.rmq.T", "", 0, body));
        h.send(&mut c, publish("", "q", 0, body));
        h.run();
    }
    h.log.0.borrow_mut().clear();
    let search = Op::SearchOffset { topic: "T".into(), queue_id: 0, timestamp: 1 };
    assert!(matches!(h.call(&mut c, search), Err(Refusal::Damaged(_))));
    let offsets = Op::QueueOffsets { topic: "T".into(), queue_id: 0 };
    assert!(matches!(h.call(&mut c, offsets), Err(Refusal::Damaged(_))));
    // What a consumer settles as it gets stays unsettled.
    let get = Op::Get { reader: 9, channel: 1, queue: "q".into(), no_ack: true };
    let Ok(Reply::Got { delivery: Some(delivery), .. }) = h.call(&mut c, get) else { panic!() };
    assert!(matches!(delivery.message, Located::Stored { .. }));
    let uid = h.core.state.topology.queue(0, "q").unwrap().uid;
    assert_eq!(h.core.state.queues[&uid].depth(), 2);
}

#[test]
fn a_group_is_moved_back_without_force_and_anywhere_with_it() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, topic("T", 2)).unwrap();
    for _ in 0..3 {
        h.send(&mut c, publish("amq.rmq.T", "", 0, b"m"));
    }
    h.run();
    let reset = |to, force| {
        Op::ResetOffsets(ResetOffsets { group: "G".into(), topic: "T".into(), queue_id: None, to, force })
    };
    let mut moved = |h: &mut Harness, op| match h.call(&mut c, op) {
        Ok(Reply::GroupOffsets(offsets)) => offsets,
        other => panic!("{other:?}"),
    };
    assert_eq!(moved(&mut h, reset(ResetTo::End, false)), [(0, 3), (1, 0)]);
    assert_eq!(moved(&mut h, reset(ResetTo::Time(0), false)), [(0, 0), (1, 0)]);
    assert_eq!(moved(&mut h, reset(ResetTo::Offset(2), false)), [(0, 0), (1, 0)]);
    assert_eq!(moved(&mut h, reset(ResetTo::Offset(2), true)), [(0, 2), (1, 0)]);
    let stats = Op::TopicStats { topic: None, group: Some("G".into()) };
    let Ok(Reply::Stats(topics)) = h.call(&mut c, stats) else { panic!() };
    let [(name, stats)] = &topics[..] else { panic!("{topics:?}") };
    assert_eq!(&**name, "T");
    let groups = h.call(&mut c, Op::GroupsOf { topic: "T".into() });
    assert!(matches!(groups, Ok(Reply::Names(names)) if names == ["G".into()]));
    assert_eq!((stats[0].min, stats[0].max, stats[0].group), (0, 3, Some(2)));
    assert!(stats[0].latest > 0 && stats[0].reached > 0 && stats[1].latest == 0);
    h.call(&mut c, Op::ForgetOffsets { group: "G".into() }).unwrap();
    assert!(h.core.state.group_offsets.is_empty());
}

#[test]
fn named_values_and_locks_are_in_a_checkpoint() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let put = |name: &str, value: Option<&'static [u8]>| Op::PutSetting {
        space: "s".into(),
        name: name.into(),
        value: value.map(Bytes::from_static),
    };
    for (name, value) in [("a", Some(b"1")), ("b", Some(b"2")), ("a", Some(b"3")), ("b", None)] {
        h.call(&mut c, put(name, value.map(|v| &v[..]))).unwrap();
    }
    h.call(&mut c, topic("T", 2)).unwrap();
    h.call(&mut c, Op::LockQueues(wants("a", &[0, 1]))).unwrap();
    h.call(&mut c, Op::UnlockQueues(wants("a", &[1]))).unwrap();
    let delta = h.core.state.begin_checkpoint(&mut |_| 0).unwrap();
    let objects: BTreeMap<Bytes, Bytes> = delta.puts.into_iter().collect();
    let (mut loaded, _) = State::load(SEGMENT, delta.point, objects).unwrap();
    assert_eq!(loaded.digest(&NoPages), h.core.state.digest(&NoPages));
    assert_eq!(loaded.topology.setting("s", "a").map(|v| &v[..]), Some(&b"3"[..]));
    assert_eq!(loaded.topology.settings("s").count(), 1);
    assert_eq!(loaded.locks.iter().count(), 1);
}

#[test]
fn a_vhost_is_a_world_of_its_own_and_takes_everything_with_it() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, Op::CreateVhost { name: "staging".into() }).unwrap();
    h.call(&mut c, Op::CreateVhost { name: "staging".into() }).unwrap();
    let id = h.core.state.topology.vhost_id("staging").unwrap();
    h.call(&mut c, queue("q", true)).unwrap();
    c.vhost = id;
    let missing = h.call(&mut c, Op::PurgeQueue { name: "q".into() }).unwrap_err();
    assert_eq!(missing.to_string(), "no queue 'q' in vhost 'staging'");
    h.call(&mut c, queue("q", true)).unwrap();
    let spec = BindingSpec {
        source: "amq.direct".into(),
        destination: Destination::Queue("q".into()),
        key: "k".into(),
        arguments: Bytes::new(),
    };
    h.call(&mut c, Op::Bind(spec)).unwrap();
    assert_eq!(h.core.state.topology.queue_count_in(id), 1);
    let batches: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let replayed = Harness::restarted(78, &batches);
    assert_eq!(replayed.core.state.topology.vhost_id("staging"), Some(id));
    assert_eq!(replayed.core.state.topology.binding_count(), 1);

    h.call(&mut c, Op::DeleteVhost { name: "staging".into() }).unwrap();
    let topology = &h.core.state.topology;
    assert_eq!(
        (topology.vhost_id("staging"), topology.binding_count(), topology.queue_count()),
        (None, 0, 1)
    );
    let gone = h.call(&mut c, queue("q", true)).unwrap_err();
    assert!(matches!(gone, Refusal::Invalid(_)), "{gone}");
    c.vhost = 0;
    h.call(&mut c, Op::CreateVhost { name: "staging".into() }).unwrap();
    assert_ne!(h.core.state.topology.vhost_id("staging"), Some(id), "a number is never given twice");
    let refused = h.call(&mut c, Op::DeleteVhost { name: "/".into() }).unwrap_err();
    assert!(matches!(refused, Refusal::Invalid(_)), "{refused}");
}

#[test]
fn who_is_not_sure_to_lead_reads_and_hands_out_nothing() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, queue("q", true)).unwrap();
    h.call(&mut a, consume(1, "q", 1)).unwrap();
    for body in [b"0", b"1"] {
        h.send(&mut b, publish("", "q", 0, body));
    }
    h.run();
    assert_eq!(a.deliveries().len(), 1);
    h.core.lease(None);
    h.send(&mut a, Op::Settle { reader: 1, ranges: vec![(0, 0)], how: Settle::Ack });
    h.send(&mut b, Op::Get { reader: 7, channel: 1, queue: "q".into(), no_ack: false });
    h.run();
    assert!(a.take().is_empty() && b.take().is_empty(), "another node may have handed it out");
    h.core.lease(Some(h.term));
    h.run();
    assert_eq!(
        (a.take().len(), b.take().len()),
        (1, 1),
        "who consumes gets the other one, the get learns so"
    );
}

#[test]
fn who_leads_again_goes_on_from_what_another_leader_settled() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    for body in [b"0", b"1", b"2", b"3"] {
        h.send(&mut c, publish("", "q", 0, body));
    }
    h.call(&mut c, consume(5, "q", 2)).unwrap();
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.other_leads(uid, 1);
    h.start_term();
    h.run();
    // It held 0 and 1; 0 was settled elsewhere, which makes room for 2.
    assert_eq!(c.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [2]);
    h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(0, 2)], how: Settle::Ack });
    h.run();
    assert_eq!(c.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [3]);
    let Ok(Reply::Queue { messages: 0, .. }) = h.call(&mut c, queue("q", true)) else { panic!() };
    assert_eq!((h.core.runtimes[&uid].unacked, h.core.runtimes[&uid].settling), (1, 0));
}

#[test]
fn a_commit_on_its_way_past_another_leader_settles_and_gives_back_once() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    for body in [b"0", b"1", b"2"] {
        h.send(&mut c, publish("", "q", 0, body));
    }
    h.call(&mut c, consume(5, "q", 10)).unwrap();
    c.take();
    let settlement = |offset, how| Settlement { reader: 5, ranges: vec![(offset, offset)], how };
    let settlements = vec![settlement(0, Settle::Ack), settlement(1, Settle::Requeue)];
    let Op::Publish(publish) = publish("", "q", 0, b"3") else { panic!() };
    h.send(&mut c, Op::Commit(Commit { publishes: vec![publish], settlements }));
    h.propose();
    h.taken.clear();
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.other_leads(uid, 0);
    h.start_term();
    h.core.audit().unwrap();
    h.run();
    h.core.audit().unwrap();
    assert_eq!(c.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((h.core.runtimes[&uid].unacked, h.core.state.queues[&uid].depth()), (3, 3));
}

#[test]
fn a_commit_that_settles_nothing_any_more_is_answered_and_holds_nobody_up() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.call(&mut c, consume(5, "q", 10)).unwrap();
    let settlements = vec![Settlement { reader: 5, ranges: vec![(0, 3)], how: Settle::Ack }];
    h.call(&mut c, Op::Commit(Commit { publishes: Vec::new(), settlements })).unwrap();
    assert!(h.core.pending.is_empty());
}

#[test]
fn an_offset_of_a_gone_connection_is_not_stored_after_another_leader() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let topic = Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 };
    h.call(&mut c, topic).unwrap();
    let uid = *h.core.state.queues.keys().next().unwrap();
    let commit =
        |wait| Op::CommitOffset { group: "g".into(), topic: "T".into(), queue_id: 0, offset: 7, wait };
    h.send(&mut c, commit(false));
    h.propose();
    h.taken.clear();
    h.core.input(Input::Disconnected(1));
    h.other_leads(uid, 0);
    h.start_term();
    h.run();
    assert!(h.core.state.group_offsets.is_empty(), "by now its client may have stored a later one elsewhere");
}

#[test]
fn an_offset_that_waited_while_its_connection_went_takes_no_later_one_back() {
    let mut h = Harness::new();
    let (mut old, mut new) = (h.client(1), h.client(2));
    let topic = Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 };
    h.call(&mut old, topic).unwrap();
    let uid = *h.core.state.queues.keys().next().unwrap();
    let commit =
        |offset| Op::CommitOffset { group: "g".into(), topic: "T".into(), queue_id: 0, offset, wait: true };
    // Its connection waits for a topic that is not there yet.
    let other = Op::CreateTopic { topic: "U".into(), write_queues: 1, read_queues: 1, permission: 6 };
    h.send(&mut old, other);
    h.send(&mut old, commit(3));
    h.core.input(Input::Disconnected(1));
    h.call(&mut new, commit(8)).unwrap();
    h.run();
    assert_eq!(h.core.state.group_offsets["g"][&uid], 8);
}

#[test]
fn a_publish_of_a_gone_connection_is_not_stored_after_another_leader() {
    let mut h = Harness::new();
    let (mut gone, mut stays) = (h.client(1), h.client(2));
    h.call(&mut gone, queue("q", true)).unwrap();
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.send(&mut gone, publish("", "q", 1, b"old"));
    h.send(&mut stays, publish("", "q", 1, b"kept"));
    h.propose();
    h.taken.clear();
    h.core.input(Input::Disconnected(1));
    h.other_leads(uid, 0);
    h.start_term();
    h.run();
    assert_eq!(confirms(&stays.take()), [(1, 1, true)]);
    assert_eq!(h.core.state.queues[&uid].depth(), 1, "its client may have sent newer ones by now");
    assert!(h.core.pending.is_empty());
}

#[test]
fn every_exchange_on_its_way_looks_at_all_keys_of_a_message() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    let bind = |source: &str, destination, key: &str| {
        let (source, key) = (source.into(), key.into());
        Op::Bind(BindingSpec { source, destination, key, arguments: Bytes::new() })
    };
    h.call(&mut c, bind("amq.direct", Destination::Exchange("amq.topic".into()), "first")).unwrap();
    h.call(&mut c, bind("amq.topic", Destination::Queue("q".into()), "second")).unwrap();
    let Op::Publish(message) = publish("amq.direct", "", 0, b"x") else { unreachable!() };
    let also = vec!["first".into(), "second".into()];
    h.send(&mut c, Op::Publish(Publish { also, ..message }));
    h.send(&mut c, publish("amq.direct", "first", 0, b"y"));
    let Ok(Reply::Queue { messages, .. }) = h.call(&mut c, queue("q", true)) else { panic!() };
    assert_eq!(messages, 1);
}

fn get(reader: ReaderId, name: &str) -> Op {
    Op::Get { reader, channel: 1, queue: name.into(), no_ack: false }
}

#[test]
fn a_get_does_not_take_from_who_waits_nor_from_a_channels_window() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", durable)).unwrap();
        h.call(&mut c, Op::SetChannelWindow { channel: 1, limit: 1 }).unwrap();
        h.call(&mut c, consume(5, "q", 0)).unwrap();
        h.send(&mut c, publish("", "q", 0, b"0"));
        let got = h.call(&mut c, get(6, "q"));
        assert!(matches!(got, Ok(Reply::Got { delivery: None, .. })), "{got:?}");
        (0..2).for_each(|_| h.send(&mut c, publish("", "q", 0, b"1")));
        let got = h.call(&mut c, get(7, "q"));
        assert!(matches!(got, Ok(Reply::Got { delivery: Some(_), .. })), "{got:?}");
        c.take();
        h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(0, 0)], how: Settle::Ack });
        h.run();
        assert_eq!(c.deliveries().len(), 1, "what was got does not count");
        h.send(&mut c, Op::Settle { reader: 7, ranges: vec![(1, 1)], how: Settle::Ack });
        h.send(&mut c, publish("", "q", 0, b"2"));
        h.run();
        assert!(c.deliveries().is_empty(), "and makes no room");
    }
}

#[test]
fn room_in_a_shared_window_goes_round_the_readers() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, Op::SetChannelWindow { channel: 1, limit: 1 }).unwrap();
    for name in ["a", "b", "c"] {
        h.call(&mut c, queue(name, false)).unwrap();
        (0..3).for_each(|_| h.send(&mut c, publish("", name, 0, b"x")));
    }
    (1..).zip(["a", "b", "c"]).for_each(|(reader, name)| h.send(&mut c, consume(reader, name, 0)));
    h.run();
    let mut order = Vec::new();
    for _ in 0..6 {
        let (reader, offset) = c
            .take()
            .into_iter()
            .find_map(|event| match event {
                Event::Deliveries { reader, deliveries } => Some((reader, deliveries[0].offset)),
                _ => None,
            })
            .expect("a delivery");
        order.push(reader);
        h.send(&mut c, Op::Settle { reader, ranges: vec![(offset, offset)], how: Settle::Ack });
        h.run();
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
}
