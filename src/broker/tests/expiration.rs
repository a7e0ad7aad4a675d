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
