//! Transactions: all or nothing, across queues, leaders and memory.

use super::*;

fn large(byte: u8, len: usize) -> &'static [u8] {
    Box::leak(vec![byte; len].into_boxed_slice())
}

fn commit(publishes: &[(&str, &'static [u8])], settlements: Vec<Settlement>) -> Op {
    let publishes = publishes.iter().map(|(key, body)| match publish("", key, 0, body) {
        Op::Publish(publish) => Publish { mandatory: true, ..publish },
        _ => unreachable!(),
    });
    Op::Commit(Commit { publishes: publishes.collect(), settlements })
}

fn acked(reader: ReaderId, first: u64, last: u64) -> Settlement {
    Settlement { reader, ranges: vec![(first, last)], how: Settle::Ack }
}

fn two_queues(h: &mut Harness) -> Client {
    let mut c = h.client(1);
    h.call(&mut c, queue("a", true)).unwrap();
    h.call(&mut c, queue("b", true)).unwrap();
    c
}

fn depths(h: &Harness) -> Vec<u64> {
    let queues: BTreeMap<u64, u64> = h.core.state.queues.iter().map(|(uid, q)| (*uid, q.depth())).collect();
    queues.into_values().collect()
}

#[test]
fn publishes_and_acks_of_several_queues_stand_in_one_batch() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    h.send(&mut c, publish("", "a", 0, b"0"));
    h.call(&mut c, consume(7, "a", 0)).unwrap();
    c.take();
    h.send(&mut c, commit(&[("a", b"1"), ("b", b"2"), ("nowhere", b"3")], vec![acked(7, 0, 0)]));
    h.propose();
    assert_eq!(h.taken.len(), 1);
    assert!(c.take().is_empty(), "nothing leaves before the commit");
    assert_eq!(depths(&h), [1, 0]);
    h.run();
    assert_eq!(depths(&h), [1, 1]);
    let events = c.take();
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| match e {
            Event::Returned { .. } => "returned",
            Event::Reply { result: Ok(Reply::Ok), .. } => "committed",
            Event::Deliveries { .. } => "deliveries",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["returned", "committed", "deliveries"]);
}

#[test]
fn bodies_that_do_not_fit_go_first_and_their_references_stay_together() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    let bodies = [large(b'x', 1_700_000), large(b'y', 3_500_000), b"small", large(b'z', 1_700_000)];
    let publishes: Vec<(&str, &'static [u8])> = ["a", "b", "a", "a"].into_iter().zip(bodies).collect();
    h.send(&mut c, commit(&publishes, vec![]));
    loop {
        h.propose();
        let Some(proposal) = (!h.taken.is_empty()).then(|| h.taken.remove(0)) else { break };
        h.commit(OUTCOMES, proposal.payload);
        assert!([vec![0, 0], vec![3, 1]].contains(&depths(&h)), "{:?}", depths(&h));
    }
    assert_eq!(depths(&h), [3, 1]);
    h.send(&mut c, consume(1, "a", 0));
    h.run();
    let events = c.take();
    let deliveries = events.iter().find_map(|e| match e {
        Event::Deliveries { deliveries, .. } => Some(deliveries),
        _ => None,
    });
    let lens: Vec<(usize, u8)> = deliveries
        .unwrap()
        .iter()
        .map(|d| {
            let message = crate::broker::message::resolve(
                &d.message,
                &h.log,
                &mut super::super::message::Cache::default(),
            )
            .unwrap();
            let body: Vec<u8> = message.body.unwrap().concat();
            (body.len(), body[0])
        })
        .collect();
    assert_eq!(lens, [(1_700_000, b'x'), (5, b's'), (1_700_000, b'z')]);
}

#[test]
fn what_goes_to_memory_waits_for_the_log_and_a_commit_without_the_log_does_not() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    h.call(&mut c, queue("m", false)).unwrap();
    h.call(&mut c, consume(3, "m", 0)).unwrap();
    h.send(&mut c, commit(&[("m", b"early"), ("a", b"x")], vec![]));
    h.send(&mut c, commit(&[("m", b"late")], vec![]));
    h.propose();
    assert!(c.deliveries().is_empty());
    h.run();
    let bodies: Vec<Vec<u8>> = c.deliveries().into_iter().map(|d| d.2).collect();
    assert_eq!(bodies, [b"early".to_vec(), b"late".to_vec()]);
    let used = h.core.memory_used;
    h.send(&mut c, commit(&[("m", b"now")], vec![acked(3, 0, 1)]));
    h.propose();
    assert!(h.taken.is_empty());
    assert_eq!(c.deliveries().len(), 1);
    assert!(h.core.memory_used < used, "what was acked is freed");
}

#[test]
fn a_commit_whose_batch_was_lost_is_decided_again_once() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    h.call(&mut c, queue("m", false)).unwrap();
    for body in [b"0", b"1"] {
        h.send(&mut c, publish("", "a", 0, body));
    }
    h.call(&mut c, consume(7, "a", 0)).unwrap();
    let back = Settlement { reader: 7, ranges: vec![(1, 1)], how: Settle::Requeue };
    c.take();
    h.send(&mut c, commit(&[("b", b"x"), ("m", b"y")], vec![acked(7, 0, 0), back]));
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.propose();
    assert!(c.take().is_empty());
    h.start_term(); // and once more by a new term
    h.run();
    let replies = c.take();
    assert_eq!(replies.iter().filter(|e| matches!(e, Event::Reply { .. })).count(), 1);
    assert!(
        replies
            .iter()
            .any(|e| matches!(e, Event::Deliveries { deliveries, .. } if deliveries[0].redelivered))
    );
    assert_eq!(depths(&h), [1, 1]);
    let Ok(Reply::Queue { messages, .. }) = h.call(&mut c, queue("m", false)) else { panic!() };
    assert_eq!(messages, 1);
    let Ok(Reply::Queue { messages, .. }) = h.call(&mut c, queue("a", true)) else { panic!() };
    assert_eq!(messages, 0);
}

#[test]
fn a_large_commit_has_a_batch_of_its_own() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    let many: Vec<(&str, &'static [u8])> = vec![("a", b"a hundred bytes or so would be usual"); 10_000];
    h.send(&mut c, publish("", "b", 0, large(1, 500_000)));
    let before = h.log.0.borrow().len();
    h.send(&mut c, commit(&many, vec![]));
    h.send(&mut c, publish("", "b", 0, large(2, 500_000)));
    h.run();
    assert_eq!(depths(&h), [10_000, 2]);
    let batches = h.log.0.borrow().len() - before;
    assert!(batches <= 3, "{batches}: one before it, its own, one after");
}

#[test]
fn a_commit_that_can_not_stand_in_one_batch_is_refused_and_changes_nothing() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    let many: Vec<(&str, &'static [u8])> = vec![("a", b""); 30_000];
    let refused = h.call(&mut c, commit(&many, vec![]));
    assert!(matches!(refused, Err(Refusal::Limit(_))), "{refused:?}");
    assert_eq!(depths(&h), [0, 0]);
    // Acks of a refused commit stay leases.
    h.send(&mut c, publish("", "a", 0, b"0"));
    h.call(&mut c, consume(7, "a", 0)).unwrap();
    h.call(&mut c, commit(&many, vec![acked(7, 0, 0)])).unwrap_err();
    h.call(&mut c, commit(&[], vec![acked(7, 0, 0)])).unwrap();
    assert_eq!(depths(&h), [0, 0]);
}

#[test]
fn a_transaction_hears_of_a_missing_exchange_at_once() {
    let mut h = Harness::new();
    let mut c = two_queues(&mut h);
    h.send(&mut c, Op::CheckPublish { channel: 1, exchange: "nope".into() });
    h.send(&mut c, Op::CheckPublish { channel: 2, exchange: "amq.topic".into() });
    h.run();
    let events = c.take();
    assert!(matches!(
        &events[..],
        [Event::PublishRefused { refusal: Refusal::NotFound { .. }, .. }, Event::Reply { result: Ok(_), .. }]
    ));
}
