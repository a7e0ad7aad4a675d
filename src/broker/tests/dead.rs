//! Dead letters: rejected, expired, too many; from and to queues on disk and in memory; when batches are lost and leaders change.

use super::*;

/// The body as it was; its key is the queue's, or `key`. What was not rejected does not come back to the queue it died in.
pub(super) fn letter(message: &StoredMessage, death: &Death<'_>) -> Result<DeadLetter, Arc<str>> {
    let body: Vec<u8> = match &message.body {
        Some(pieces) => pieces.concat(),
        None => message.bytes.to_vec(),
    };
    let publish = Publish {
        channel: 0,
        exchange: Arc::clone(death.exchange),
        routing_key: death.routing_key.map_or_else(|| "key".into(), Arc::clone),
        also: Vec::new(),
        mandatory: false,
        confirm: 0,
        message: Message {
            origin: Origin::Amqp,
            body_len: u32::try_from(body.len()).unwrap(),
            bytes: body.into(),
            prefix_len: 0,
            tag_hash: 0,
            persistent: true,
            ttl: None,
        },
    };
    let barred = if death.cause == Cause::Rejected { Vec::new() } else { vec![death.queue.into()] };
    Ok(DeadLetter { publish, barred, same_body: true })
}

pub(super) fn with(name: &str, durable: bool, arguments: &'static str) -> Op {
    let Op::DeclareQueue(spec, passive) = queue(name, durable) else { unreachable!() };
    Op::DeclareQueue(QueueSpec { arguments: Bytes::from_static(arguments.as_bytes()), ..spec }, passive)
}

pub(super) fn look(name: &str) -> Op {
    let Op::DeclareQueue(spec, _) = queue(name, true) else { unreachable!() };
    Op::DeclareQueue(spec, true)
}

pub(super) fn count(h: &mut Harness, c: &mut Client, name: &str) -> u64 {
    match h.call(c, look(name)) {
        Ok(Reply::Queue { messages, .. }) => messages,
        other => panic!("{other:?}"),
    }
}

pub(super) fn get(h: &mut Harness, c: &mut Client, reader: ReaderId, name: &str) -> Option<(u64, Vec<u8>)> {
    match h.call(c, Op::Get { reader, channel: 1, queue: name.into(), no_ack: false }) {
        Ok(Reply::Got { delivery, .. }) => delivery.map(|d| {
            let message =
                super::super::message::resolve(&d.message, &h.log, &mut Default::default()).unwrap();
            (d.offset, message.body.map_or_else(|| message.bytes.to_vec(), |pieces| pieces.concat()))
        }),
        other => panic!("{other:?}"),
    }
}

pub(super) fn reject(reader: ReaderId, first: u64, last: u64) -> Op {
    Op::Settle { reader, ranges: vec![(first, last)], how: Settle::Discard }
}

/// Both ways of keeping a queue, for the source and for the target.
const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

#[test]
fn what_is_rejected_is_in_the_next_queue_when_its_client_looks() {
    for (source, target) in KINDS {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("dead", target)).unwrap();
        h.call(&mut c, with("q", source, "d:dead")).unwrap();
        for body in [b"0", b"1", b"2"] {
            h.send(&mut c, publish("", "q", 0, body));
        }
        h.send(&mut c, consume(5, "q", 0));
        h.run();
        h.send(&mut c, reject(5, 0, 1));
        h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(2, 2)], how: Settle::Ack });
        // Not another turn between the rejection and the look.
        assert_eq!(get(&mut h, &mut c, 9, "dead"), Some((0, b"0".to_vec())), "{source} {target}");
        assert_eq!(get(&mut h, &mut c, 10, "dead"), Some((1, b"1".to_vec())));
        assert_eq!(count(&mut h, &mut c, "q"), 0);
        h.core.audit().unwrap();
        h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(0, 0)], how: Settle::Ack });
        h.send(&mut c, Op::Settle { reader: 10, ranges: vec![(1, 1)], how: Settle::Ack });
        h.run();
        assert!(h.core.state.segments.is_empty() && h.core.memory_used == 0);
    }
}

#[test]
fn what_expires_and_what_is_too_much_goes_on_in_its_order() {
    for (source, target) in KINDS {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("dead", target)).unwrap();
        h.call(&mut c, with("q", source, "t100;l2;d:dead")).unwrap();
        for body in [b"0", b"1", b"2", b"3"] {
            h.send(&mut c, publish("", "q", 0, body));
        }
        h.run();
        assert_eq!((count(&mut h, &mut c, "q"), count(&mut h, &mut c, "dead")), (2, 2), "{source} {target}");
        h.advance(110);
        assert_eq!((count(&mut h, &mut c, "q"), count(&mut h, &mut c, "dead")), (0, 4));
        let bodies: Vec<_> = (10..14).map(|reader| get(&mut h, &mut c, reader, "dead").unwrap().1).collect();
        assert_eq!(bodies, [b"0", b"1", b"2", b"3"]);
        h.core.audit().unwrap();
    }
}

#[test]
fn without_an_exchange_or_a_queue_behind_it_a_message_is_gone() {
    for arguments in ["dmissing", "damq.direct", "d:nobody"] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, with("q", true, arguments)).unwrap();
        h.send(&mut c, publish("", "q", 0, b"x"));
        assert!(get(&mut h, &mut c, 9, "q").is_some());
        h.send(&mut c, reject(9, 0, 0));
        h.run();
        assert!(h.core.state.segments.is_empty(), "{arguments}");
        assert_eq!(h.core.pending.len(), 0);
        h.core.audit().unwrap();
    }
}

#[test]
fn a_circle_ends_unless_somebody_rejects() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with("q", true, "t100;d:q")).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.send(&mut c, publish("", "q", 0, b"y"));
    assert!(get(&mut h, &mut c, 9, "q").is_some());
    h.send(&mut c, reject(9, 0, 0));
    h.run();
    assert_eq!(count(&mut h, &mut c, "q"), 2);
    h.advance(110);
    assert_eq!(count(&mut h, &mut c, "q"), 0);
    assert!(h.core.state.segments.is_empty());
}

#[test]
fn one_batch_holds_the_new_place_and_the_end_of_the_old_one() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("dead", true)).unwrap();
    h.call(&mut c, with("q", true, "d:dead")).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    assert!(get(&mut h, &mut c, 9, "q").is_some());
    let before = h.core.counters().batches;
    h.send(&mut c, reject(9, 0, 0));
    h.run();
    assert_eq!(h.core.counters().batches, before + 1);
    let depths: Vec<u64> = h.core.state.queues.values().map(super::super::state::QueueState::depth).collect();
    assert_eq!(depths.iter().sum::<u64>(), 1);
}

#[test]
fn a_lost_batch_moves_a_message_once() {
    for (source, target) in KINDS {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("dead", target)).unwrap();
        h.call(&mut c, with("q", source, "d:dead")).unwrap();
        h.send(&mut c, publish("", "q", 0, b"x"));
        assert!(get(&mut h, &mut c, 9, "q").is_some());
        h.send(&mut c, reject(9, 0, 0));
        h.propose();
        if !h.taken.is_empty() {
            h.taken.clear();
            h.core.refused(h.term);
            h.core.lead(h.term);
        }
        assert_eq!(count(&mut h, &mut c, "q"), 0, "{source} {target}");
        assert_eq!(get(&mut h, &mut c, 10, "dead"), Some((0, b"x".to_vec())));
        assert_eq!(get(&mut h, &mut c, 11, "dead"), None);
        h.core.audit().unwrap();
    }
}

#[test]
fn a_target_that_goes_while_the_move_is_on_its_way_drops_the_message() {
    let mut h = Harness::new();
    let (mut c, mut other) = (h.client(1), h.client(2));
    h.call(&mut c, queue("dead", true)).unwrap();
    h.call(&mut c, with("q", true, "d:dead")).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    assert!(get(&mut h, &mut c, 9, "q").is_some());
    h.send(&mut other, Op::DeleteQueue { name: "dead".into(), if_unused: false, if_empty: false });
    h.send(&mut c, reject(9, 0, 0));
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert_eq!(count(&mut h, &mut c, "q"), 0);
    assert!(h.core.state.segments.is_empty());
    assert_eq!(h.core.pending.len(), 0);
}

#[test]
fn the_next_leader_moves_what_expired_meanwhile_and_what_was_rejected_comes_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("dead", true)).unwrap();
    h.call(&mut c, with("q", true, "t5000;d:dead")).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.send(&mut c, publish("", "q", 0, b"y"));
    assert!(get(&mut h, &mut c, 9, "q").is_some());
    h.send(&mut c, reject(9, 0, 0));
    h.propose();
    // Its batch never gets into the log.
    let log: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut h = Harness::restarted(78, &log);
    let mut c = h.client(1);
    assert_eq!((count(&mut h, &mut c, "q"), count(&mut h, &mut c, "dead")), (2, 0));
    h.advance(6_000);
    assert_eq!((count(&mut h, &mut c, "q"), count(&mut h, &mut c, "dead")), (0, 2));
    h.core.audit().unwrap();
}

#[test]
fn many_dead_wait_for_their_turn_and_nobody_gets_them_meanwhile() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("dead", true)).unwrap();
    h.call(&mut c, with("q", true, "d:dead")).unwrap();
    let most = u64::try_from(crate::limits::STEPS_PER_TURN).unwrap();
    for _ in 0..3 * most {
        h.send(&mut c, publish("", "q", 0, b"x"));
    }
    h.send(&mut c, consume(5, "q", 0));
    h.run();
    c.take();
    h.send(&mut c, reject(5, 0, 3 * most - 1));
    assert_eq!(h.core.dying().map(|(_, (_, count), _)| count).sum::<u64>(), 2 * most);
    h.core.audit().unwrap();
    h.run();
    assert_eq!((count(&mut h, &mut c, "q"), count(&mut h, &mut c, "dead")), (0, 3 * most));
    h.core.audit().unwrap();
}

#[test]
fn a_body_that_fits_into_no_batch_stays_where_it_is_or_goes_in_pieces() {
    for (source, target) in KINDS {
        let mut h = Harness::new();
        h.core.batch_bytes = 16 << 10;
        let mut c = h.client(1);
        h.call(&mut c, queue("dead", target)).unwrap();
        h.call(&mut c, with("q", source, "d:dead")).unwrap();
        let Op::Publish(mut large) = publish("", "q", 1, b"") else { unreachable!() };
        let body: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        large.message.body_len = 40_000;
        large.message.bytes = body.clone().into();
        h.send(&mut c, Op::Publish(large));
        h.send(&mut c, publish("", "q", 2, b"behind"));
        assert!(get(&mut h, &mut c, 9, "q").is_some());
        assert!(get(&mut h, &mut c, 10, "q").is_some());
        h.send(&mut c, reject(9, 0, 0));
        h.send(&mut c, reject(10, 1, 1));
        h.run();
        let dead: Vec<_> = (11..13).map(|reader| get(&mut h, &mut c, reader, "dead").unwrap().1).collect();
        assert!(dead == [body.clone(), b"behind".to_vec()], "{source} {target}");
        let waiting: usize = h.core.state.sessions.values().map(|session| session.pieces.len()).sum();
        assert_eq!(waiting, 0);
        h.core.audit().unwrap();
        h.core.audit_messages().unwrap();
        h.send(&mut c, Op::PurgeQueue { name: "dead".into() });
        for (reader, offset) in [(11, 0), (12, 1)] {
            h.send(&mut c, Op::Settle { reader, ranges: vec![(offset, offset)], how: Settle::Ack });
        }
        h.run();
        assert!(h.core.state.segments.is_empty());
    }
}

#[test]
fn what_a_transaction_rejects_moves_with_its_commit() {
    for (source, target) in KINDS {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("dead", target)).unwrap();
        h.call(&mut c, with("q", source, "d:dead")).unwrap();
        h.send(&mut c, publish("", "q", 0, b"x"));
        assert!(get(&mut h, &mut c, 9, "q").is_some());
        let settlement = Settlement { reader: 9, ranges: vec![(0, 0)], how: Settle::Discard };
        h.call(&mut c, Op::Commit(Commit { publishes: Vec::new(), settlements: vec![settlement] })).unwrap();
        h.core.audit().unwrap();
        assert_eq!(get(&mut h, &mut c, 10, "dead"), Some((0, b"x".to_vec())), "{source} {target}");
        assert_eq!(count(&mut h, &mut c, "q"), 0);
    }
}

#[test]
fn a_chain_of_queues_in_memory_is_walked_without_depth() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    for n in 0..1000 {
        let arguments: &'static str = Box::leak(format!("l0;d:{}", n + 1).into_boxed_str());
        h.call(&mut c, with(&n.to_string(), false, arguments)).unwrap();
    }
    h.call(&mut c, queue("1000", false)).unwrap();
    h.send(&mut c, publish("", "0", 0, b"x"));
    h.run();
    assert_eq!(count(&mut h, &mut c, "1000"), 1);
}
