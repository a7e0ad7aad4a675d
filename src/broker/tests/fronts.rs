//! Three cores on one log: clients of those that follow, and what becomes of them when the leader changes.

use super::*;
use crate::limits;

/// One node.
struct Member {
    core: Core,
    /// Batches of the log that it has applied.
    applied: usize,
    up: bool,
}

/// A stream between a front end (by node) and the leader.
struct Stream {
    number: u64,
    front: usize,
    leader: usize,
    up: mpsc::UnboundedReceiver<Bytes>,
    down: mpsc::UnboundedReceiver<Bytes>,
}

struct Cluster {
    members: Vec<Member>,
    batches: Vec<Batch>,
    log: MemoryLog,
    clock: Arc<HandClock>,
    leader: usize,
    term: u64,
    position: u64,
    streams: Vec<Stream>,
    next_stream: u64,
    /// Proposals of the leader that are not committed.
    proposed: Vec<Proposal>,
}

impl Cluster {
    fn new() -> Self {
        let (log, clock) = (MemoryLog::default(), Arc::new(HandClock::default()));
        let member = |node: u64| {
            let parts = Parts { node, ..parts(100 + node, &log, &clock) };
            let mut core = Core::new(parts, Core::recovered(SEGMENT, None).unwrap().0);
            core.set_others((1..=3).filter(|other| *other != node).collect());
            Member { core, applied: 0, up: true }
        };
        let mut cluster = Cluster {
            members: (1..=3).map(member).collect(),
            batches: Vec::new(),
            log,
            clock,
            leader: 0,
            term: 0,
            position: 0,
            streams: Vec::new(),
            next_stream: 1,
            proposed: Vec::new(),
        };
        cluster.lead(0);
        cluster
    }

    fn append(&mut self, kind: u8, payload: Bytes) {
        let len = 96 + payload.len() as u64;
        if self.position % SEGMENT + len > SEGMENT {
            self.position = self.position.next_multiple_of(SEGMENT);
        }
        let (position, end, index) = (self.position, self.position + len, self.batches.len() as u64);
        let leader = self.leader as u64 + 1;
        let point = LogPoint { index, term: self.term, leader, position, end, hash: 0 };
        let batch = Batch { point, kind, payload, payload_position: position + 96 };
        self.log.0.borrow_mut().insert(position, batch.clone());
        self.position = end;
        self.batches.push(batch);
    }

    fn apply(&mut self, node: usize) {
        let member = &mut self.members[node];
        while member.up && member.applied < self.batches.len() {
            member.core.apply(&self.batches[member.applied]);
            member.applied += 1;
        }
    }

    /// That node leads the next term; the others become its front ends.
    fn lead(&mut self, node: usize) {
        (self.leader, self.term) = (node, self.term + 1);
        self.proposed.clear();
        self.append(TERM_START, Bytes::new());
        for front in 0..3 {
            if front != node && self.members[front].up {
                self.connect(front);
            }
        }
        (0..3).for_each(|node| self.apply(node));
        self.members[node].core.lead(self.term);
        self.run();
    }

    fn connect(&mut self, front: usize) {
        let (number, leader) = (self.next_stream, self.leader);
        self.next_stream += 1;
        let ((up, from_front), (down, from_leader)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        self.members[leader].core.input(Input::Attached {
            stream: number,
            node: front as u64 + 1,
            leads: false,
            frames: down,
        });
        self.members[front].core.input(Input::Attached {
            stream: number,
            node: leader as u64 + 1,
            leads: true,
            frames: up,
        });
        self.streams.retain(|stream| stream.front != front);
        self.streams.push(Stream { number, front, leader, up: from_front, down: from_leader });
    }

    /// The stream of that front end breaks; what was on its way is lost.
    fn cut(&mut self, front: usize) {
        for stream in self.streams.extract_if(.., |stream| stream.front == front) {
            self.members[stream.front].core.input(Input::Detached(stream.number));
            self.members[stream.leader].core.input(Input::Detached(stream.number));
        }
    }

    fn kill(&mut self, node: usize) {
        self.members[node].up = false;
        let ended: Vec<Stream> =
            self.streams.extract_if(.., |stream| stream.front == node || stream.leader == node).collect();
        for stream in ended {
            for end in [stream.front, stream.leader] {
                if self.members[end].up {
                    self.members[end].core.input(Input::Detached(stream.number));
                }
            }
        }
    }

    /// One turn of every node; true: something moved.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        for member in self.members.iter_mut().filter(|member| member.up) {
            member.core.turn();
            member.core.expire();
            while member.core.serve() {}
            self.proposed.extend(member.core.proposals());
            member.core.flush();
        }
        for stream in &mut self.streams {
            while let Ok(frame) = stream.up.try_recv() {
                moved = true;
                self.members[stream.leader].core.input(Input::Frame(stream.number, frame));
            }
            while let Ok(frame) = stream.down.try_recv() {
                moved = true;
                self.members[stream.front].core.input(Input::Frame(stream.number, frame));
            }
        }
        moved
    }

    /// Commits what is proposed.
    fn commit(&mut self) -> bool {
        let proposed = std::mem::take(&mut self.proposed);
        let any = !proposed.is_empty();
        for proposal in proposed {
            self.append(OUTCOMES, proposal.payload);
        }
        any
    }

    /// Until nothing is left to do.
    fn run(&mut self) {
        loop {
            let moved = self.turn();
            let committed = self.commit();
            (0..3).for_each(|node| self.apply(node));
            if !moved && !committed {
                return;
            }
        }
    }

    fn advance(&mut self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
        self.run();
    }

    fn client(&mut self, node: usize, id: ConnectionId) -> Client {
        let (events_in, events) = mpsc::unbounded_channel();
        self.members[node].core.input(Input::Connected(id, events_in, Arc::new(Credit::default())));
        Client { id, events, request: 0, vhost: 0 }
    }

    fn send(&mut self, node: usize, client: &mut Client, op: Op) {
        client.request += 1;
        let verb = Verb { key: key(), request: client.request, vhost: 0, op, number: 0 };
        let credit = &self.members[node].core.connections[&client.id].credit;
        credit.take(super::super::link::weight(&verb));
        self.members[node].core.input(Input::Verbs(client.id, vec![verb]));
    }

    fn call(&mut self, node: usize, client: &mut Client, op: Op) -> Result<Reply, Refusal> {
        self.send(node, client, op);
        self.run();
        reply(client).expect("an answer")
    }

    fn depth(&self, node: usize, name: &str) -> u64 {
        let state = &self.members[node].core.state;
        state.queues[&state.topology.queue(0, name).unwrap().uid].depth()
    }

    fn digests_are_equal(&mut self) {
        let digests: Vec<u64> = self.members.iter_mut().filter(|m| m.up).map(|m| m.core.digest()).collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    }
}

fn reply(client: &mut Client) -> Option<Result<Reply, Refusal>> {
    let wanted = client.request;
    client.take().into_iter().find_map(|event| match event {
        Event::Reply { request, result } if request == wanted => Some(result),
        _ => None,
    })
}

fn send_to(topic: &str) -> Op {
    let Op::Publish(Publish { message, .. }) = publish("", "", 0, b"rocket") else { unreachable!() };
    Op::Send(Send {
        topic: topic.into(),
        queue_id: Some(1),
        create_queues: Some(4),
        messages: vec![SendMessage {
            message: Message { origin: Origin::Rocketmq, ..message },
            tag: "t".into(),
        }],
        waits: None,
        key: 0,
        arrived: Duration::ZERO,
    })
}

// ---- producers that try again

/// A send with a key, as all attempts have it.
fn keyed(key: u64, body: &'static [u8]) -> Op {
    let Op::Publish(Publish { message, .. }) = publish("", "", 0, body) else { unreachable!() };
    let message = Message { origin: Origin::Rocketmq, ..message };
    let messages = vec![SendMessage { message, tag: "t".into() }];
    Op::Send(Send {
        topic: "T".into(),
        queue_id: Some(1),
        create_queues: Some(4),
        messages,
        waits: None,
        key,
        arrived: Duration::ZERO,
    })
}

fn offset_of(events: &[Event]) -> Vec<u64> {
    let offset = |event: &Event| match event {
        Event::Reply { result: Ok(Reply::Sent { offsets, queue_id: 1, positions }), .. } => {
            assert_eq!(positions.len(), offsets.len());
            offsets.first().copied()
        }
        _ => None,
    };
    events.iter().filter_map(offset).collect()
}

impl Cluster {
    fn topic_depth(&self) -> u64 {
        let state = &self.members[self.leader].core.state;
        let topic = state.topology.topic("T").unwrap();
        topic.queues.iter().map(|uid| state.queues[uid].depth()).sum()
    }

    fn repeated(&self) -> u64 {
        self.members[self.leader].core.counters().repeated
    }
}

#[test]
fn a_send_whose_answer_died_with_the_leader_is_answered_once_more_and_stored_once() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(0, 1), c.client(1, 1));
    c.send(0, &mut a, keyed(7, b"one"));
    c.run();
    c.kill(0);
    c.lead(1);
    c.send(1, &mut b, keyed(7, b"one"));
    c.run();
    assert_eq!(offset_of(&b.take()), [0]);
    assert_eq!((c.topic_depth(), c.repeated()), (1, 1));
    // It has its answer: the same message once more is one of its own. Another body under that key always is.
    c.advance(limits::SEND_SETTLED_MS + 1);
    c.send(1, &mut b, keyed(7, b"one"));
    c.run();
    assert_eq!(offset_of(&b.take()), [1]);
    assert_eq!((c.topic_depth(), c.repeated()), (2, 1));
}

#[test]
fn another_message_under_the_same_key_is_stored() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(0, 1), c.client(1, 1));
    c.send(0, &mut a, keyed(7, b"one"));
    c.run();
    c.kill(0);
    c.lead(1);
    c.send(1, &mut b, keyed(7, b"two"));
    c.run();
    assert_eq!((offset_of(&b.take()), c.topic_depth()), (vec![1], 2));
}

#[test]
fn a_send_that_was_answered_before_its_node_died_comes_again_as_another_message() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(0, 1), c.client(1, 1));
    c.send(0, &mut a, keyed(7, b"one"));
    c.run();
    // The note that its answer has left is in the log, though nobody sends anything else.
    c.advance(limits::SEND_SETTLED_MS + 1);
    c.kill(0);
    c.lead(1);
    c.send(1, &mut b, keyed(7, b"one"));
    c.run();
    assert_eq!((offset_of(&b.take()), c.topic_depth()), (vec![1], 2));
}

#[test]
fn a_message_sent_twice_on_purpose_stays_two_whichever_way_it_comes() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(0, 1), c.client(1, 1));
    // By the same connection at once, even before the first one is answered.
    c.send(0, &mut a, keyed(7, b"one"));
    c.send(0, &mut a, keyed(7, b"one"));
    c.run();
    assert_eq!(offset_of(&a.take()), [0, 1]);
    // By another one it waits until the first one is known to be answered.
    c.send(0, &mut a, keyed(8, b"one"));
    c.run();
    c.send(1, &mut b, keyed(8, b"one"));
    c.run();
    assert_eq!((offset_of(&a.take()), offset_of(&b.take())), (vec![2], vec![]));
    // The first look was taken before it.
    c.advance(limits::SEND_SETTLED_MS + 1);
    c.advance(limits::SEND_SETTLED_MS + 1);
    assert_eq!((offset_of(&b.take()), c.topic_depth(), c.repeated()), (vec![3], 4, 0));
}

#[test]
fn a_retry_that_overtakes_the_news_of_its_dead_node_waits_for_it() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(2, 1));
    c.send(1, &mut a, keyed(7, b"one"));
    c.run();
    assert_eq!(offset_of(&a.take()), [0]);
    c.send(2, &mut b, keyed(7, b"one"));
    c.run();
    assert!(offset_of(&b.take()).is_empty());
    c.kill(1);
    c.run();
    assert_eq!((offset_of(&b.take()), c.topic_depth(), c.repeated()), (vec![0], 1, 1));
}

#[test]
fn sends_are_told_apart_after_a_checkpoint_too() {
    let mut c = Cluster::new();
    let mut a = c.client(0, 1);
    c.send(0, &mut a, keyed(7, b"one"));
    c.run();
    let state = &mut c.members[0].core.state;
    let delta = state.begin_checkpoint(&mut |_| 1).unwrap();
    let (loaded, _) = State::load(SEGMENT, delta.point, delta.puts).unwrap();
    assert_eq!(loaded.recent.last_of(7), state.recent.last_of(7));
    assert!(loaded.recent.last_of(7).is_some_and(|sent| !sent.settled));
}

#[test]
fn a_retry_of_who_waited_in_vain_on_a_living_connection_is_the_first_attempt() {
    for retries_by in [1, 2] {
        let mut c = Cluster::new();
        let (mut a, mut b) = (c.client(1, 1), c.client(2, 1));
        c.kill(0);
        c.send(1, &mut a, keyed(7, b"one"));
        c.advance(3_000);
        let retrying = if retries_by == 1 { &mut a } else { &mut b };
        c.send(retries_by, retrying, keyed(7, b"one"));
        c.run();
        c.lead(1);
        c.advance(1);
        let mut offsets = offset_of(&a.take());
        offsets.extend(offset_of(&b.take()));
        assert_eq!((offsets, c.topic_depth(), c.repeated()), (vec![0, 0], 1, 1));
    }
}

// ---- other clients of followers

#[test]
fn a_client_of_a_follower_publishes_consumes_and_acks_through_the_leader() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(2, 1));
    c.call(1, &mut a, queue("q", true)).unwrap();
    for n in 1..=3 {
        c.send(1, &mut a, publish("", "q", n, b"body"));
    }
    c.run();
    assert_eq!(confirms(&a.take()), [(1, 3, true)]);
    c.send(2, &mut b, consume(5, "q", 2));
    c.run();
    assert_eq!(b.deliveries().len(), 2);
    c.send(2, &mut b, Op::Settle { reader: 5, ranges: vec![(0, 1)], how: Settle::Ack });
    c.run();
    assert_eq!(b.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [2]);
    assert_eq!(c.depth(0, "q"), 1);
    c.digests_are_equal();
    for node in [1, 2] {
        let connections = &c.members[node].core.connections;
        assert!(connections.values().all(|connection| connection.credit.is_open()));
    }
}

#[test]
fn a_publish_that_the_dead_leader_committed_is_confirmed_once_and_stored_once() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    c.call(1, &mut a, queue("q", true)).unwrap();
    c.send(1, &mut a, publish("", "q", 1, b"committed"));
    c.turn();
    c.turn();
    assert!(!c.proposed.is_empty());
    c.commit();
    // It dies before it can say so; the second one never reaches the log.
    c.kill(0);
    c.send(1, &mut a, publish("", "q", 2, b"lost on the way"));
    c.run();
    assert!(confirms(&a.take()).is_empty());
    c.lead(1);
    c.advance(1000);
    assert_eq!(confirms(&a.take()), [(1, 1, true), (2, 2, true)]);
    assert_eq!((c.depth(1, "q"), c.depth(2, "q")), (2, 2));
    c.digests_are_equal();
}

#[test]
fn the_same_through_another_node_that_leads_then() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    c.call(1, &mut a, queue("q", true)).unwrap();
    for n in 1..=4 {
        c.send(1, &mut a, publish("", "q", n, b"x"));
    }
    c.turn();
    c.turn();
    c.commit();
    c.kill(0);
    c.send(1, &mut a, publish("", "q", 5, b"y"));
    c.run();
    c.lead(2);
    c.advance(1000);
    let told = confirms(&a.take());
    assert_eq!(told.iter().map(|(first, last, _)| last - first + 1).sum::<u64>(), 5, "{told:?}");
    assert_eq!(c.depth(2, "q"), 5);
    c.digests_are_equal();
}

#[test]
fn a_send_whose_answer_died_with_the_leader_is_answered_with_its_own_place() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    let Ok(Reply::Sent { offsets, .. }) = c.call(1, &mut a, send_to("T")) else { panic!() };
    assert_eq!(offsets, [0]);
    c.send(1, &mut a, send_to("T"));
    c.turn();
    c.turn();
    c.commit();
    c.kill(0);
    c.lead(2);
    let Some(Ok(Reply::Sent { queue_id, offsets, positions })) = reply(&mut a) else { panic!() };
    assert_eq!((queue_id, offsets), (1, vec![1]));
    assert!(positions[0] > 0);
    let state = &c.members[2].core.state;
    assert_eq!(state.queues.values().map(|queue| queue.index.next()).max(), Some(2));
}

#[test]
fn what_a_surviving_connection_holds_stays_its_own_and_its_ack_counts() {
    for next in [1, 2] {
        let mut c = Cluster::new();
        let (mut a, mut b) = (c.client(1, 1), c.client(2, 7));
        c.call(1, &mut a, queue("q", true)).unwrap();
        for _ in 0..6 {
            c.send(1, &mut a, publish("", "q", 0, b"x"));
        }
        c.send(1, &mut a, consume(5, "q", 2));
        c.run();
        c.send(2, &mut b, consume(9, "q", 2));
        c.run();
        c.advance(1000);
        let held: Vec<u64> = a.deliveries().iter().map(|d| d.0).collect();
        assert_eq!(held, [0, 1]);
        assert_eq!(b.deliveries().len(), 2);
        c.kill(0);
        c.lead(next);
        c.advance(1000);
        assert!(a.deliveries().is_empty() && b.deliveries().is_empty(), "all windows are full");
        c.send(1, &mut a, Op::Settle { reader: 5, ranges: vec![(0, 1)], how: Settle::Ack });
        c.run();
        let fresh: Vec<(u64, bool)> = a.deliveries().iter().map(|d| (d.0, d.1)).collect();
        assert_eq!(fresh, [(4, false), (5, false)]);
        assert_eq!(c.depth(next, "q"), 4);
        c.digests_are_equal();
    }
}

#[test]
fn what_a_client_of_the_dead_node_held_comes_again_redelivered() {
    let mut c = Cluster::new();
    let (mut dead, mut alive) = (c.client(0, 1), c.client(1, 1));
    c.call(0, &mut dead, queue("q", true)).unwrap();
    for _ in 0..2 {
        c.send(0, &mut dead, publish("", "q", 0, b"x"));
    }
    c.send(0, &mut dead, consume(5, "q", 2));
    c.run();
    c.run();
    c.advance(1000);
    assert_eq!(dead.deliveries().len(), 2);
    // The mark rides with the next batch.
    c.call(1, &mut alive, queue("other", true)).unwrap();
    c.kill(0);
    c.lead(2);
    c.send(1, &mut alive, consume(6, "q", 0));
    c.run();
    c.advance(1000);
    assert_eq!(alive.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, true), (1, true)]);
}

#[test]
fn a_leader_that_is_deposed_and_lives_serves_its_clients_through_the_next_one() {
    let mut c = Cluster::new();
    let mut a = c.client(0, 1);
    c.call(0, &mut a, queue("q", true)).unwrap();
    for _ in 0..3 {
        c.send(0, &mut a, publish("", "q", 0, b"x"));
    }
    c.send(0, &mut a, consume(5, "q", 1));
    c.run();
    c.advance(1000);
    assert_eq!(a.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [0]);
    // Decided and proposed, but it never gets into the log: somebody else leads.
    c.send(0, &mut a, publish("", "q", 1, b"late"));
    c.send(0, &mut a, Op::Settle { reader: 5, ranges: vec![(0, 0)], how: Settle::Ack });
    c.turn();
    assert!(!c.proposed.is_empty());
    c.lead(1);
    c.advance(1000);
    let events = a.take();
    assert_eq!(confirms(&events), [(1, 1, true)]);
    assert!(
        events.iter().any(|e| matches!(e, Event::Deliveries { deliveries, .. } if deliveries[0].offset == 1))
    );
    assert_eq!((c.depth(1, "q"), c.depth(0, "q")), (3, 3));
    // And back again.
    c.lead(0);
    c.advance(1000);
    c.send(0, &mut a, Op::Settle { reader: 5, ranges: vec![(1, 1)], how: Settle::Ack });
    c.run();
    assert_eq!(a.deliveries().iter().map(|d| d.0).collect::<Vec<_>>(), [2]);
    c.digests_are_equal();
}

#[test]
fn an_exclusive_queue_lives_with_its_connection_whoever_leads() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(2, 2));
    let exclusive = |name: &str| match queue(name, false) {
        Op::DeclareQueue(spec, passive) => Op::DeclareQueue(QueueSpec { exclusive: true, ..spec }, passive),
        _ => unreachable!(),
    };
    c.call(1, &mut a, exclusive("mine")).unwrap();
    assert!(matches!(c.call(2, &mut b, exclusive("mine")), Err(Refusal::Locked { .. })));
    c.kill(0);
    c.lead(2);
    c.advance(1000);
    assert!(matches!(c.call(2, &mut b, exclusive("mine")), Err(Refusal::Locked { .. })));
    c.send(1, &mut a, consume(3, "mine", 0));
    c.run();
    c.send(2, &mut b, publish("", "mine", 1, b"hello"));
    c.run();
    assert_eq!(a.deliveries().len(), 1);
    assert_eq!(confirms(&b.take()), [(1, 1, true)]);
    c.members[1].core.input(Input::Disconnected(1));
    c.run();
    c.call(2, &mut b, exclusive("mine")).unwrap();
}

#[test]
fn a_stream_that_breaks_and_comes_back_loses_and_doubles_nothing() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(2, 2));
    c.call(1, &mut a, queue("q", true)).unwrap();
    c.send(1, &mut a, consume(5, "q", 1));
    c.run();
    c.send(2, &mut b, consume(5, "q", 1));
    c.run();
    for n in 1..=3 {
        c.send(1, &mut a, publish("", "q", n, b"x"));
    }
    c.run();
    c.advance(1000);
    assert_eq!(confirms(&a.take()), [(1, 3, true)]);
    b.take();
    // Decided and in flight, and one that only the front end knows.
    c.send(1, &mut a, publish("", "q", 4, b"in flight"));
    c.turn();
    c.turn();
    c.cut(1);
    c.send(1, &mut a, publish("", "q", 5, b"waits"));
    c.connect(1);
    c.run();
    c.advance(1000);
    let events = a.take();
    let told = confirms(&events);
    assert_eq!(told.iter().map(|(first, last, _)| last - first + 1).sum::<u64>(), 2, "{told:?}");
    assert_eq!(c.depth(0, "q"), 5);
    c.send(1, &mut a, Op::Settle { reader: 5, ranges: vec![(1, 1)], how: Settle::Ack });
    c.run();
    assert_eq!(a.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(2, false)]);
    c.digests_are_equal();
}

#[test]
fn a_front_end_that_stays_away_is_given_up() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(2, 2));
    c.call(1, &mut a, queue("q", true)).unwrap();
    c.send(1, &mut a, publish("", "q", 0, b"x"));
    c.send(1, &mut a, consume(5, "q", 1));
    c.run();
    c.advance(1000);
    c.kill(1);
    c.send(2, &mut b, consume(5, "q", 1));
    c.run();
    c.advance(4000);
    assert!(b.deliveries().is_empty());
    c.advance(2000);
    assert_eq!(b.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, true)]);
}

#[test]
fn a_pull_and_a_get_wait_for_the_next_leader() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    c.call(1, &mut a, queue("q", true)).unwrap();
    let _ = c.call(1, &mut a, send_to("T"));
    let fetch = |offset| {
        Op::Fetch(Fetch {
            topic: "T".into(),
            queue_id: 1,
            offset,
            max_messages: 8,
            max_bytes: 1000,
            tags: Arc::default(),
            wait_ms: 10_000,
        })
    };
    c.send(1, &mut a, fetch(1));
    c.run();
    assert!(reply(&mut a).is_none());
    let pull = a.request;
    c.kill(0);
    c.send(1, &mut a, Op::Get { reader: 8, channel: 1, queue: "q".into(), no_ack: false });
    c.lead(2);
    c.advance(1000);
    assert!(matches!(reply(&mut a), Some(Ok(Reply::Got { delivery: None, .. }))));
    let mut d = c.client(2, 4);
    c.call(2, &mut d, send_to("T")).unwrap();
    let pulled = a.take().into_iter().any(|event| {
        matches!(event, Event::Reply { request, result: Ok(Reply::Fetched(Fetched { status: FetchStatus::Found, .. })) }
            if request == pull)
    });
    assert!(pulled);
}

fn used(c: &Cluster, node: usize, client: &Client) -> usize {
    c.members[node].core.connections[&client.id].credit.used()
}

#[test]
fn a_large_send_that_wants_no_answer_holds_up_nothing_behind_it() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    c.call(1, &mut a, send_to("T")).unwrap();
    let Op::Send(mut large) = send_to("T") else { unreachable!() };
    large.messages[0].message.bytes = vec![b'x'; 3 * limits::BATCH_TARGET].into();
    let verb = Verb { key: key(), request: 0, vhost: 0, op: Op::Send(large), number: 0 };
    c.members[1].core.connections[&a.id].credit.take(super::super::link::weight(&verb));
    c.members[1].core.input(Input::Verbs(a.id, vec![verb]));
    c.run();
    c.call(1, &mut a, send_to("T")).unwrap();
    c.run();
    assert_eq!(used(&c, 1, &a), 0, "all of it is done with");
}

#[test]
fn a_pull_that_waits_for_a_client_that_is_gone_holds_up_nothing_behind_it() {
    let mut c = Cluster::new();
    let (mut a, mut b) = (c.client(1, 1), c.client(1, 2));
    c.call(1, &mut a, send_to("T")).unwrap();
    let fetch = Fetch {
        topic: "T".into(),
        queue_id: 1,
        offset: 1,
        max_messages: 8,
        max_bytes: 1000,
        tags: Arc::default(),
        wait_ms: 10_000,
    };
    c.send(1, &mut a, Op::Fetch(fetch));
    c.run();
    c.members[1].core.input(Input::Disconnected(a.id));
    c.run();
    c.call(1, &mut b, send_to("T")).unwrap();
    c.run();
    assert_eq!(used(&c, 1, &b), 0, "all of it is done with");
}

#[test]
fn what_was_given_back_and_came_again_stays_with_whom_it_came_to_whoever_leads() {
    let mut c = Cluster::new();
    let (mut a, mut other) = (c.client(1, 1), c.client(1, 2));
    c.call(1, &mut a, queue("q", true)).unwrap();
    c.send(1, &mut a, publish("", "q", 0, b"x"));
    c.send(1, &mut a, consume(5, "q", 2));
    c.run();
    c.advance(1000);
    assert_eq!(a.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, false)]);
    // A publish before it is not committed, so the leader does not say either that it is done with the other.
    c.send(1, &mut a, publish("", "q", 1, b"y"));
    c.send(1, &mut a, Op::Settle { reader: 5, ranges: vec![(0, 0)], how: Settle::Requeue });
    for _ in 0..6 {
        c.turn();
    }
    assert_eq!(a.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, true)]);
    c.kill(0);
    c.lead(2);
    c.send(1, &mut other, consume(6, "q", 2));
    c.advance(1000);
    let again: Vec<u64> = a.deliveries().iter().chain(&other.deliveries()).map(|d| d.0).collect();
    assert!(!again.contains(&0), "it is held");
    c.send(1, &mut a, Op::Settle { reader: 5, ranges: vec![(0, 0)], how: Settle::Ack });
    c.run();
    assert_eq!(c.depth(2, "q"), 1);
}

#[test]
fn a_large_publish_through_a_follower_gives_its_credit_back() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    c.call(1, &mut a, queue("q", true)).unwrap();
    let size = 3 * limits::BATCH_TARGET;
    for confirm in 1..=2 {
        let Op::Publish(mut large) = publish("", "q", confirm, b"") else { unreachable!() };
        large.message.body_len = u32::try_from(size).unwrap();
        large.message.bytes = vec![7; size].into();
        c.send(1, &mut a, Op::Publish(large));
        c.run();
        assert_eq!(confirms(&a.take()), [(confirm, confirm, true)]);
        assert!(c.members[1].core.connections[&1].credit.is_open(), "after {confirm}");
    }
    assert_eq!(c.depth(2, "q"), 2);
}

/// A queue with a place for its dead, and a message that its only client holds.
fn one_held(c: &mut Cluster, node: usize, a: &mut Client) {
    c.call(node, a, queue("dead", true)).unwrap();
    c.call(node, a, dead::with("q", true, "d:dead")).unwrap();
    c.send(node, a, publish("", "q", 1, b"x"));
    c.send(node, a, consume(5, "q", 0));
    c.run();
    assert_eq!(a.deliveries().len(), 1);
}

#[test]
fn a_rejection_that_the_dead_leader_had_not_written_is_made_by_the_next_one() {
    let mut c = Cluster::new();
    let mut a = c.client(1, 1);
    one_held(&mut c, 1, &mut a);
    c.send(1, &mut a, dead::reject(5, 0, 0));
    c.turn();
    c.turn();
    c.kill(0);
    c.lead(1);
    c.advance(20_000);
    assert_eq!((c.depth(1, "q"), c.depth(1, "dead")), (0, 1));
    c.members[1].core.audit().unwrap();
    c.digests_are_equal();
}

#[test]
fn a_deposed_leader_hands_the_rejections_of_its_clients_on() {
    let mut c = Cluster::new();
    let mut a = c.client(0, 1);
    one_held(&mut c, 0, &mut a);
    c.send(0, &mut a, dead::reject(5, 0, 0));
    // Decided, and never in the log.
    c.turn();
    c.lead(1);
    c.advance(20_000);
    assert_eq!((c.depth(1, "q"), c.depth(1, "dead")), (0, 1));
    c.members[1].core.audit().unwrap();
    c.digests_are_equal();
}
