//! Messages that wait, come back or are committed: on time, once, and whatever is lost on the way.
//!
//! A message of these tests is `topic queue group attempts|` and its body.

use super::*;

const HOUR: u64 = 3_600_000;

/// Topic, queue, group, attempts.
fn fields(message: &StoredMessage) -> (String, u32, String, i32) {
    let prefix = String::from_utf8(message.bytes[..message.prefix_len as usize - 1].to_vec()).unwrap();
    let mut fields = prefix.split(' ').map(str::to_owned);
    let mut next = || fields.next().unwrap();
    (next(), next().parse().unwrap(), next(), next().parse().unwrap())
}

fn body(message: &StoredMessage) -> Vec<u8> {
    match &message.body {
        Some(pieces) => pieces.concat(),
        None => message.bytes[message.prefix_len as usize..].to_vec(),
    }
}

fn message((topic, queue, group, attempts): (&str, u32, &str, i32), body: &[u8]) -> SendMessage {
    let prefix = format!("{topic} {queue} {group} {attempts}|");
    SendMessage {
        message: Message {
            origin: Origin::Rocketmq,
            bytes: [prefix.as_bytes(), body].concat().into(),
            prefix_len: u32::try_from(prefix.len()).unwrap(),
            body_len: u32::try_from(body.len()).unwrap(),
            tag_hash: 0,
            persistent: true,
            ttl: None,
        },
        tag: "".into(),
    }
}

pub(super) fn step(old: &StoredMessage, step: &Step<'_>) -> Result<Stepped, Arc<str>> {
    let (topic, queue_id, group, attempts) = fields(old);
    let (topic, attempts, waits) = match step {
        Step::Due | Step::Committed { .. } => (topic, attempts, None),
        Step::GivenUp => ("given-up".to_owned(), attempts, None),
        Step::SentBack { back, .. } if attempts >= back.attempts_max => {
            (format!("%DLQ%{}", back.group), attempts + 1, None)
        }
        Step::SentBack { back, .. } => {
            let level = u32::try_from(back.level).unwrap();
            (format!("%RETRY%{}", back.group), attempts + 1, Some(Waits::Delay(level)))
        }
    };
    let send = message((&topic, queue_id, &group, attempts), &body(old));
    Ok(Stepped { send, topic: topic.into(), queue_id, waits })
}

pub(super) fn half(message: &StoredMessage) -> Option<Half> {
    Some(Half { group: fields(message).2.into(), not_before_ms: None })
}

fn send(topic: &str, body: &[u8], waits: Option<Waits>) -> Op {
    Op::Send(Send {
        topic: topic.into(),
        queue_id: Some(0),
        create_queues: Some(1),
        messages: vec![message((topic, 0, "P", 0), body)],
        waits,
        key: 0,
        arrived: Duration::ZERO,
    })
}

fn back(h: &Harness, topic: &str, position: Position, attempts_max: i32) -> Op {
    let queue = h.core.state.topology.topic(topic).unwrap().queues[0];
    Op::SendBack(SendBack {
        queue,
        position,
        topic: Some(topic.into()),
        group: "g".into(),
        level: 1,
        attempts_max,
        id: "id".into(),
    })
}

fn sent(reply: Result<Reply, Refusal>) -> (Offset, Position) {
    let Ok(Reply::Sent { offsets, positions, .. }) = reply else { panic!("{reply:?}") };
    (offsets[0], positions[0])
}

impl Harness {
    fn pass(&mut self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
        self.run();
    }

    /// What the decided batches hold is lost; the leader decides again.
    fn lose(&mut self) {
        self.propose();
        assert!(!self.taken.is_empty(), "something was decided");
        self.taken.clear();
        self.core.refused(self.term);
        self.core.lead(self.term);
    }

    fn batches(&self) -> Vec<Batch> {
        self.log.0.borrow().values().cloned().collect()
    }

    /// Attempts and bodies of a topic's messages.
    fn seen(&mut self, topic: &str) -> Vec<(i32, Vec<u8>)> {
        let Some(topic) = self.core.state.topology.topic(topic).cloned() else { return Vec::new() };
        let mut seen = Vec::new();
        for queue in topic.queues.iter().copied() {
            for offset in 0..self.core.state.queues[&queue].index.next() {
                let source = self.core.source(queue, offset).unwrap();
                seen.push((fields(&source.message).3, body(&source.message)));
            }
        }
        seen
    }

    /// Messages that wait, in all such queues.
    fn waiting(&self) -> u64 {
        self.core.state.topology.waiting_queues().map(|uid| self.core.state.queues[&uid].depth()).sum()
    }
}

#[test]
fn a_delayed_message_is_in_its_topic_after_its_level_and_not_before() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    sent(h.call(&mut c, send("T", b"two", Some(Waits::Delay(2)))));
    sent(h.call(&mut c, send("T", b"one", Some(Waits::Delay(1)))));
    h.pass(999);
    assert_eq!((h.seen("T").len(), h.waiting()), (0, 2));
    assert_eq!(h.core.next_deadline(), Some(h.core.monotonic() + Duration::from_millis(1)));
    h.pass(1);
    assert_eq!((h.seen("T"), h.waiting()), (vec![(0, b"one".to_vec())], 1));
    h.pass(4000);
    assert_eq!((h.seen("T").len(), h.waiting(), h.core.next_deadline()), (2, 0, None));
}

#[test]
fn many_messages_that_are_due_at_once_come_in_their_order_over_several_turns() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    for number in 0..1000_u32 {
        h.send(&mut c, send("T", &number.to_be_bytes(), Some(Waits::Delay(1))));
    }
    h.run();
    h.pass(1000);
    let expected: Vec<_> = (0..1000_u32).map(|number| (0, number.to_be_bytes().to_vec())).collect();
    assert_eq!(h.seen("T"), expected);
    assert_eq!(h.waiting(), 0);
}

#[test]
fn what_is_due_and_lost_on_its_way_into_the_log_is_moved_again_once() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("memory", false)).unwrap();
    h.call(&mut c, Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 })
        .unwrap();
    let binding = BindingSpec {
        source: "amq.rmq.T".into(),
        destination: Destination::Queue("memory".into()),
        key: "#".into(),
        arguments: Bytes::new(),
    };
    h.call(&mut c, Op::Bind(binding)).unwrap();
    sent(h.call(&mut c, send("T", b"x", Some(Waits::Delay(1)))));
    h.clock.0.fetch_add(1000, Ordering::Relaxed);
    h.lose();
    h.lose();
    h.run();
    assert_eq!((h.seen("T").len(), h.waiting()), (1, 0));
    // Queues in memory got it once too, when it was committed.
    let Ok(Reply::Queue { messages, .. }) = h.call(&mut c, queue("memory", false)) else { panic!() };
    assert_eq!(messages, 1);
}

/// Restarts after each batch of a history, lets an hour pass and looks.
fn after_each_crash(batches: &[Batch], look: impl Fn(&mut Harness, usize)) {
    for cut in 1..=batches.len() {
        let mut h = Harness::restarted(1000 + cut as u64, &batches[..cut]);
        h.pass(HOUR);
        h.pass(HOUR);
        look(&mut h, cut);
    }
}

#[test]
fn a_new_leader_moves_what_is_due_wherever_the_old_one_ended() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let before = h.batches().len();
    sent(h.call(&mut c, send("T", b"x", Some(Waits::Delay(1)))));
    let stored = h.batches().len();
    h.pass(1000);
    let batches = h.batches();
    assert!(batches.len() > stored && stored > before);
    after_each_crash(&batches, |h, cut| {
        // Its queue may be made by a batch before its own.
        let expected = usize::from(cut >= stored);
        assert_eq!((h.seen("T").len(), h.waiting()), (expected, 0), "{cut} batches");
    });
}

#[test]
fn a_message_sent_back_comes_again_with_its_count_and_dies_in_the_end() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let (_, position) = sent(h.call(&mut c, send("T", b"x", None)));
    let op = back(&h, "T", position, 2);
    h.call(&mut c, op).unwrap();
    assert_eq!((h.seen("T").len(), h.seen("%RETRY%g").len(), h.waiting()), (1, 0, 1));
    h.pass(1000);
    for attempts in 1..=2 {
        let (retry, offset) = {
            let retry = h.core.state.topology.topic("%RETRY%g").unwrap().queues[0];
            (retry, h.core.state.queues[&retry].index.next() - 1)
        };
        assert_eq!(h.seen("%RETRY%g").last(), Some(&(attempts, b"x".to_vec())));
        let position = h.core.entry(retry, offset).unwrap().position;
        let op = back(&h, "%RETRY%g", position, 2);
        h.call(&mut c, op).unwrap();
        h.pass(1000);
    }
    assert_eq!(h.seen("%DLQ%g"), [(3, b"x".to_vec())]);
    assert_eq!((h.seen("%RETRY%g").len(), h.waiting(), h.core.next_deadline()), (2, 0, None));
}

#[test]
fn a_place_where_no_message_begins_moves_nothing() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let (_, position) = sent(h.call(&mut c, send("T", b"x", None)));
    let end = h.position;
    let queue = h.core.state.topology.topic("T").unwrap().queues[0];
    let log = h.log.clone();
    for place in (0..end + 100).chain([u64::MAX]) {
        let found = super::super::message::queue_at(place, &log).unwrap();
        assert_eq!(found, (place == position).then_some(queue), "{place}");
    }
    for wrong in [0, position - 1, position + 1, end, u64::MAX] {
        let op = back(&h, "T", wrong, 16);
        assert!(h.call(&mut c, op).is_err());
        assert!(h.call(&mut c, Op::View { queue, position: wrong }).is_err());
    }
    let Ok(Reply::Viewed { delivery, topic, queue_id: 0 }) = h.call(&mut c, Op::View { queue, position })
    else {
        panic!()
    };
    assert_eq!((delivery.offset, delivery.position, &*topic), (0, position, "T"));
    // A queue that is none of a topic.
    let Op::SendBack(mut other) = back(&h, "T", position, 16) else { panic!() };
    other.queue = 999;
    assert!(h.call(&mut c, Op::SendBack(other)).is_err());
    assert_eq!((h.waiting(), h.seen("T").len()), (0, 1));
}

#[test]
fn a_message_of_a_topic_whose_removal_is_on_its_way_does_not_come_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let (_, position) = sent(h.call(&mut c, send("T", &[b'x'; 100_000], None)));
    let op = back(&h, "T", position, 16);
    h.send(&mut c, Op::DeleteTopic { topic: "T".into() });
    assert!(h.call(&mut c, op).is_err(), "nothing keeps its body alive until the move is applied");
    assert!(h.core.state.segments.is_empty());
}

#[test]
fn a_message_whose_trim_is_on_its_way_does_not_come_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let (offset, position) = sent(h.call(&mut c, send("T", &[b'x'; 100_000], None)));
    let queue = h.core.state.topology.topic("T").unwrap().queues[0];
    let op = back(&h, "T", position, 16);
    h.core.settle_in(queue, vec![(offset, 1)]);
    assert!(h.call(&mut c, op).is_err(), "nothing keeps its body alive until the move is applied");
    assert!(h.core.state.segments.is_empty());
}

#[test]
fn a_send_back_whose_batch_was_lost_is_stored_once_and_answered_once() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let (_, position) = sent(h.call(&mut c, send("T", b"x", None)));
    for attempts_max in [16, 0] {
        let op = back(&h, "T", position, attempts_max);
        h.send(&mut c, op);
        h.lose();
        h.run();
        let events = c.take();
        assert!(matches!(&events[..], [Event::Reply { result: Ok(Reply::Ok), .. }]), "{events:?}");
    }
    h.pass(1000);
    assert_eq!((h.seen("%RETRY%g").len(), h.seen("%DLQ%g").len(), h.waiting()), (1, 1, 0));
}

#[test]
fn a_large_body_is_stored_once_however_often_its_message_moves() {
    for size in [4096, 5000, 900_000, 1_500_000] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        let topic = Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 };
        h.call(&mut c, topic).unwrap();
        let text: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        sent(h.call(&mut c, send("T", &text, Some(Waits::Delay(1)))));
        let stored = h.position;
        h.pass(1000);
        let grown = h.position - stored;
        assert!(grown < if size > 4096 { 2000 } else { 6000 }, "{size}: {grown}");
        assert_eq!(h.seen("T"), [(0, text.clone())]);
        let queue = h.core.state.topology.topic("T").unwrap().queues[0];
        let position = h.core.entry(queue, 0).unwrap().position;
        let op = back(&h, "T", position, 16);
        h.call(&mut c, op).unwrap();
        h.pass(1000);
        assert_eq!(h.seen("%RETRY%g"), [(1, text)]);
    }
}

fn end(place: (Offset, Position), group: &str, commit: bool) -> Op {
    let (offset, position) = place;
    Op::EndTransaction(EndTransaction { group: group.into(), offset, position, commit })
}

#[test]
fn a_half_message_is_seen_when_it_is_committed_and_never_when_it_is_rolled_back() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let first = sent(h.call(&mut c, send("T", b"yes", Some(Waits::Half))));
    let second = sent(h.call(&mut c, send("T", b"no", Some(Waits::Half))));
    assert_eq!((h.seen("T").len(), h.waiting()), (0, 2));
    for (place, group) in [
        (first, "Q"),
        ((first.0, second.1), "P"),
        ((second.0, first.1), "P"),
        ((99, first.1), "P"),
        ((first.0, first.1 + 8), "P"),
    ] {
        assert!(matches!(h.call(&mut c, end(place, group, true)), Err(Refusal::Invalid(_))));
    }
    assert_eq!((h.seen("T").len(), h.waiting()), (0, 2));
    h.call(&mut c, end(first, "P", true)).unwrap();
    h.call(&mut c, end(second, "P", false)).unwrap();
    for place in [first, second] {
        assert!(h.call(&mut c, end(place, "P", true)).is_err(), "it ended");
    }
    assert_eq!((h.seen("T"), h.waiting()), (vec![(0, b"yes".to_vec())], 0));
    h.pass(HOUR);
    assert_eq!((h.seen("T").len(), h.core.halves_noted(), h.core.next_deadline()), (1, 0, None));
}

#[test]
fn two_ends_on_their_way_at_once_are_one() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    let half = sent(h.call(&mut a, send("T", b"x", Some(Waits::Half))));
    h.send(&mut a, end(half, "P", true));
    h.send(&mut b, end(half, "P", true));
    h.lose();
    h.run();
    assert!(matches!(&a.take()[..], [Event::Reply { result: Ok(Reply::Ok), .. }]));
    assert!(matches!(&b.take()[..], [Event::Reply { result: Err(_), .. }]));
    assert_eq!((h.seen("T").len(), h.waiting()), (1, 0));
}

#[test]
fn a_commit_is_there_or_not_wherever_a_crash_comes() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let half = sent(h.call(&mut c, send("T", b"x", Some(Waits::Half))));
    let stored = h.batches().len();
    h.call(&mut c, end(half, "P", true)).unwrap();
    let batches = h.batches();
    for cut in stored..=batches.len() {
        let mut h = Harness::restarted(1000 + cut as u64, &batches[..cut]);
        let mut c = h.client(1);
        let again = h.call(&mut c, end(half, "P", true));
        assert_eq!(again.is_ok(), cut < batches.len());
        assert_eq!((h.seen("T").len(), h.waiting()), (1, 0), "{cut} batches");
    }
}

fn questions(client: &mut Client) -> Vec<(Offset, u32)> {
    let events = client.take().into_iter();
    events
        .filter_map(|event| match event {
            Event::CheckBack(delivery) => Some((delivery.offset, delivery.attempts)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_producer_of_the_group_is_asked_after_a_time_and_again_and_then_no_more() {
    let mut h = Harness::new();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.send(&mut a, Op::AnswerFor { group: "P".into(), answers: true });
    h.send(&mut b, Op::AnswerFor { group: "Q".into(), answers: true });
    sent(h.call(&mut a, send("T", b"x", Some(Waits::Half))));
    h.pass(5_999);
    assert_eq!(questions(&mut a), []);
    h.pass(1);
    assert_eq!(questions(&mut a), [(0, 1)]);
    for count in 2..=15 {
        h.pass(29_999);
        assert_eq!(questions(&mut a), []);
        h.pass(1);
        assert_eq!(questions(&mut a), [(0, count)]);
    }
    assert_eq!((h.waiting(), questions(&mut b)), (1, vec![]));
    h.pass(30_000);
    assert_eq!((questions(&mut a), h.waiting()), (vec![], 0));
    assert_eq!((h.seen("given-up"), h.seen("T").len()), (vec![(0, b"x".to_vec())], 0));
    assert_eq!(h.core.next_deadline(), None);
}

#[test]
fn a_new_leader_goes_on_counting_and_asks_whoever_is_there() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let half = sent(h.call(&mut c, send("T", b"x", Some(Waits::Half))));
    // Nobody answers for the group: it counts, as with Apache.
    h.pass(6_000);
    h.pass(30_000);
    let mut again = Harness::restarted(78, &h.batches());
    let (mut a, mut b) = (again.client(1), again.client(2));
    for client in [&mut a, &mut b] {
        again.send(client, Op::AnswerFor { group: "P".into(), answers: true });
    }
    again.core.input(Input::Disconnected(1));
    again.run();
    assert_eq!(again.core.halves_noted(), 1);
    // Its wall clock is behind: log time follows it by 1 %.
    again.pass(31_000);
    assert_eq!(questions(&mut b), [(0, 3)]);
    again.call(&mut b, end(half, "P", false)).unwrap();
    again.pass(HOUR);
    assert_eq!((again.waiting(), again.seen("T").len(), questions(&mut b)), (0, 0, vec![]));
}

#[test]
fn a_half_message_is_put_aside_once_wherever_a_crash_comes() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.core.later.settings.transaction_check_max = 1;
    sent(h.call(&mut c, send("T", b"x", Some(Waits::Half))));
    let stored = h.batches().len();
    h.pass(6_000);
    h.clock.0.fetch_add(30_000, Ordering::Relaxed);
    h.lose();
    // Who begins to lead does not ask about everything at once.
    h.run();
    h.pass(6_000);
    assert_eq!((h.seen("given-up").len(), h.waiting()), (1, 0));
    let batches = h.batches();
    for cut in stored..=batches.len() {
        let mut h = Harness::restarted(1000 + cut as u64, &batches[..cut]);
        h.core.later.settings.transaction_check_max = 1;
        (0..3).for_each(|_| h.pass(HOUR));
        assert_eq!((h.seen("given-up").len(), h.waiting()), (1, 0), "{cut} batches");
    }
}

#[test]
fn a_thousand_ended_transactions_leave_nothing_to_do() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    for number in 0..1000_u32 {
        let half = sent(h.call(&mut c, send("T", b"x", Some(Waits::Half))));
        h.call(&mut c, end(half, "P", number.is_multiple_of(2))).unwrap();
    }
    assert_eq!((h.seen("T").len(), h.waiting()), (500, 0));
    h.pass(6_000);
    assert_eq!((h.core.halves_noted(), h.core.next_deadline()), (0, None));
}

#[test]
fn what_passed_while_nothing_was_written_still_counts_after_a_crash() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    sent(h.call(&mut c, send("T", b"x", Some(Waits::Delay(5)))));
    for _ in 0..59 {
        h.pass(1000);
    }
    let mut again = Harness::restarted(78, &h.batches());
    again.pass(29_000);
    assert_eq!(again.seen("T").len(), 0);
    again.pass(3_000);
    assert_eq!(again.seen("T").len(), 1);
    let end = h.batches().len();
    h.pass(HOUR);
    let settled = h.batches().len();
    h.pass(HOUR);
    assert!(settled > end && h.batches().len() == settled, "nothing is written when nothing waits");
}

#[test]
fn a_batch_of_messages_stands_in_one_batch_of_the_log_however_many_queues_are_bound() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    let topic = Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 };
    h.call(&mut c, topic).unwrap();
    for n in 0..40 {
        let name = format!("q{n}");
        h.call(&mut c, queue(&name, true)).unwrap();
        let binding = BindingSpec {
            source: "amq.rmq.T".into(),
            destination: Destination::Queue(name.into()),
            key: "#".into(),
            arguments: Bytes::new(),
        };
        h.call(&mut c, Op::Bind(binding)).unwrap();
    }
    let before = h.log.0.borrow().len();
    let messages = (0..2_000).map(|_| message(("T", 0, "P", 0), b"a hundred bytes")).collect();
    let send = Send {
        topic: "T".into(),
        queue_id: Some(0),
        create_queues: None,
        messages,
        waits: None,
        key: 0,
        arrived: Duration::ZERO,
    };
    let Ok(Reply::Sent { offsets, .. }) = h.call(&mut c, Op::Send(send)) else { panic!() };
    assert_eq!(offsets.len(), 2_000);
    assert_eq!(h.log.0.borrow().len() - before, 1);
    assert!(h.core.state.queues.values().all(|queue| queue.index.next() == 2_000));
}
