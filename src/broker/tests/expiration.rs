//! Messages with a time to live: at the head, behind it, with and without readers, across restarts.

use super::*;

fn short_lived(key: &str, ttl: u64, body: &'static [u8]) -> Op {
    match publish("", key, 0, body) {
        Op::Publish(publish) => {
            Op::Publish(Publish { message: Message { ttl: Some(ttl), ..publish.message }, ..publish })
        }
        _ => unreachable!(),
    }
}

fn count(h: &mut Harness, c: &mut Client, name: &str, durable: bool) -> u64 {
    match h.call(c, queue(name, durable)) {
        Ok(Reply::Queue { messages, .. }) => messages,
        other => panic!("{other:?}"),
    }
}

fn get(h: &mut Harness, c: &mut Client, reader: ReaderId) -> Option<u64> {
    let get = Op::Get { reader, channel: 1, queue: "q".into(), no_ack: false };
    match h.call(c, get) {
        Ok(Reply::Got { delivery, .. }) => delivery.map(|d| d.offset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_head_expires_by_itself_and_frees_its_space() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", durable)).unwrap();
        h.send(&mut c, short_lived("q", 100, b"short"));
        h.send(&mut c, short_lived("q", 300, b"longer"));
        h.run();
        h.advance(90);
        assert_eq!(count(&mut h, &mut c, "q", durable), 2, "durable: {durable}");
        h.advance(20);
        assert_eq!(count(&mut h, &mut c, "q", durable), 1);
        h.advance(300);
        assert_eq!(count(&mut h, &mut c, "q", durable), 0);
        assert!(h.core.state.segments.is_empty() && h.core.memory_used == 0 && h.core.due.is_empty());
    }
}

#[test]
fn what_stands_behind_a_lasting_message_expires_when_it_comes_to_the_head() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 0, b"lasting"));
    h.send(&mut c, short_lived("q", 10, b"short"));
    h.send(&mut c, publish("", "q", 0, b"last"));
    h.run();
    h.advance(1000);
    assert_eq!(count(&mut h, &mut c, "q", true), 3);
    assert_eq!(get(&mut h, &mut c, 9), Some(0));
    assert_eq!(count(&mut h, &mut c, "q", true), 1);
    assert_eq!(get(&mut h, &mut c, 10), Some(2));
}

#[test]
fn who_waits_gets_a_message_however_short_its_time_is_and_nobody_else_does() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", durable)).unwrap();
        h.send(&mut c, short_lived("q", 0, b"lost"));
        h.run();
        assert_eq!(count(&mut h, &mut c, "q", durable), 0, "durable: {durable}");
        h.call(&mut c, consume(5, "q", 1)).unwrap();
        h.send(&mut c, short_lived("q", 0, b"now"));
        h.send(&mut c, short_lived("q", 0, b"too much for the window"));
        h.run();
        let bodies: Vec<Vec<u8>> = c.deliveries().into_iter().map(|d| d.2).collect();
        assert_eq!(bodies, [b"now"], "durable: {durable}");
        assert_eq!(count(&mut h, &mut c, "q", durable), 0);
    }
}

#[test]
fn a_message_that_expired_while_it_was_held_does_not_come_back() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, short_lived("q", 100, b"x"));
    h.run();
    assert_eq!(get(&mut h, &mut c, 9), Some(0));
    h.advance(200);
    h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(0, 0)], how: Settle::Requeue });
    h.run();
    assert_eq!(get(&mut h, &mut c, 10), None);
    assert!(h.core.state.segments.is_empty());
}

#[test]
fn the_next_leader_settles_what_expired_meanwhile_and_a_topic_keeps_it() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    let topic = Op::CreateTopic { topic: "T".into(), write_queues: 1, read_queues: 1, permission: 6 };
    h.call(&mut c, topic).unwrap();
    h.send(&mut c, short_lived("q", 5_000, b"x"));
    h.run();
    let Op::Publish(mut to_topic) = short_lived("", 1, b"y") else { panic!() };
    to_topic.exchange = "amq.rmq.T".into();
    h.send(&mut c, Op::Publish(to_topic));
    h.run();
    let log: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut h = Harness::restarted(78, &log);
    let mut c = h.client(1);
    assert_eq!(count(&mut h, &mut c, "q", true), 1);
    h.advance(6_000);
    assert_eq!(count(&mut h, &mut c, "q", true), 0);
    assert_eq!(h.core.state.segments.values().sum::<u64>(), 1, "the topic's");
}

fn with_arguments(name: &str, durable: bool, arguments: &'static str) -> Op {
    let Op::DeclareQueue(spec, passive) = queue(name, durable) else { unreachable!() };
    Op::DeclareQueue(QueueSpec { arguments: Bytes::from_static(arguments.as_bytes()), ..spec }, passive)
}

#[test]
fn a_queues_own_time_to_live_holds_for_all_its_messages_and_the_shorter_one_wins() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("other", durable)).unwrap();
        h.call(&mut c, with_arguments("q", durable, "t100")).unwrap();
        h.send(&mut c, publish("", "other", 0, b"x"));
        h.send(&mut c, short_lived("q", 50, b"shorter"));
        h.send(&mut c, publish("", "q", 0, b"x"));
        h.send(&mut c, short_lived("q", 500, b"longer"));
        h.run();
        let depth = |h: &mut Harness, c: &mut Client| match h.call(c, with_arguments("q", durable, "t100")) {
            Ok(Reply::Queue { messages, .. }) => messages,
            other => panic!("{other:?}"),
        };
        h.advance(60);
        assert_eq!(depth(&mut h, &mut c), 2, "durable: {durable}");
        h.advance(60);
        assert_eq!(depth(&mut h, &mut c), 0);
        assert_eq!(count(&mut h, &mut c, "other", durable), 1);
    }
}

#[test]
fn a_queue_that_nobody_uses_goes_and_every_use_gives_it_its_time_again() {
    let exists = |h: &Harness| h.core.state.topology.queue(0, "q").is_some();
    let mut h = Harness::new();
    let mut c = h.client(1);
    let declare = || with_arguments("q", true, "x100");
    h.call(&mut c, declare()).unwrap();
    h.advance(90);
    h.call(&mut c, declare()).unwrap();
    h.advance(90);
    let Op::DeclareQueue(spec, _) = declare() else { unreachable!() };
    h.call(&mut c, Op::DeclareQueue(spec, true)).unwrap();
    h.advance(90);
    assert_eq!(get(&mut h, &mut c, 9), None);
    h.advance(90);
    h.call(&mut c, consume(5, "q", 1)).unwrap();
    h.advance(1_000);
    h.call(&mut c, Op::Unsubscribe { reader: 5 }).unwrap();
    h.advance(90);
    assert!(exists(&h));
    // A publish is no use.
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.advance(20);
    assert!(!exists(&h) && h.core.unused.is_empty() && h.core.limited.is_empty());
    assert!(h.core.state.segments.is_empty());
}

#[test]
fn the_next_leader_gives_an_unused_queue_its_time_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with_arguments("q", true, "x100")).unwrap();
    h.call(&mut c, with_arguments("kept", true, "t100")).unwrap();
    h.advance(90);
    let log: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut h = Harness::restarted(78, &log);
    h.advance(90);
    assert_eq!(h.core.state.queues.len(), 2);
    let mut c = h.client(1);
    h.send(&mut c, publish("", "kept", 0, b"x"));
    h.advance(20);
    assert_eq!(h.core.state.queues.len(), 1);
    h.advance(100);
    assert!(h.core.state.segments.is_empty(), "a time to live is known again too");
}

#[test]
fn a_queue_beyond_its_length_loses_its_oldest_messages_but_none_that_somebody_holds() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        let declare = || with_arguments("q", durable, "l2");
        h.call(&mut c, declare()).unwrap();
        for body in [b"0", b"1", b"2", b"3"] {
            h.send(&mut c, publish("", "q", 0, body));
        }
        h.run();
        let depth = |h: &mut Harness, c: &mut Client| match h.call(c, declare()) {
            Ok(Reply::Queue { messages, .. }) => messages,
            other => panic!("{other:?}"),
        };
        assert_eq!(depth(&mut h, &mut c), 2, "durable: {durable}");
        assert_eq!(get(&mut h, &mut c, 9), Some(2));
        h.send(&mut c, publish("", "q", 0, b"4"));
        h.run();
        assert_eq!(depth(&mut h, &mut c), 2, "what is held does not count");
        // It comes back as the oldest one.
        h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(2, 2)], how: Settle::Requeue });
        h.run();
        assert_eq!(depth(&mut h, &mut c), 2);
        assert_eq!((get(&mut h, &mut c, 10), get(&mut h, &mut c, 11)), (Some(3), Some(4)));
    }
}

#[test]
fn who_waits_gets_what_a_queue_of_no_length_does_not_keep() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with_arguments("q", false, "l0")).unwrap();
    h.send(&mut c, publish("", "q", 1, b"lost"));
    h.call(&mut c, consume(5, "q", 1)).unwrap();
    h.send(&mut c, publish("", "q", 2, b"taken"));
    h.run();
    assert_eq!(c.deliveries().into_iter().map(|d| d.2).collect::<Vec<_>>(), [b"taken"]);
}
