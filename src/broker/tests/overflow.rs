//! Full queues, by number and by bytes, and queues with priorities: on disk and in memory, across leads.

use super::dead::{count, get, look, with};
use super::*;

fn bodies(h: &mut Harness, c: &mut Client, name: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    // A number that no reader has.
    let first = 1000 + u32::try_from(c.request).unwrap();
    while let Some((_, body)) = get(h, c, first + u32::try_from(all.len()).unwrap(), name) {
        all.push(body);
    }
    all
}

#[test]
fn a_queue_that_holds_too_many_bytes_loses_its_oldest_messages() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, with("q", durable, "b10")).unwrap();
        for body in [&b"aaaa"[..], b"bbb", b"ccc", b"dd"] {
            h.send(&mut c, publish_body("q", 0, body));
        }
        h.run();
        assert_eq!(count(&mut h, &mut c, "q"), 3, "durable: {durable}");
        // What is held does not count.
        let (first, _) = get(&mut h, &mut c, 9, "q").unwrap();
        h.send(&mut c, publish_body("q", 0, b"12345"));
        h.run();
        assert_eq!(count(&mut h, &mut c, "q"), 3);
        h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(first, first)], how: Settle::Requeue });
        h.run();
        assert_eq!(bodies(&mut h, &mut c, "q"), [&b"ccc"[..], b"dd", b"12345"]);
        h.core.audit().unwrap();
    }
}

fn publish_body(key: &str, confirm: u64, body: &'static [u8]) -> Op {
    let Op::Publish(publish) = publish("", key, confirm, body) else { unreachable!() };
    let body_len = u32::try_from(body.len()).unwrap();
    Op::Publish(Publish { message: Message { prefix_len: 0, body_len, ..publish.message }, ..publish })
}

#[test]
fn who_publishes_to_a_full_queue_is_told_however_fast_it_is() {
    for (durable, limit) in [(true, "l2;r"), (false, "l2;r"), (true, "b2;r"), (false, "b2;r")] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, with("q", durable, limit)).unwrap();
        for confirm in 1..=4 {
            h.send(&mut c, publish_body("q", confirm, b"x"));
        }
        h.run();
        let mut told = confirms(&c.take());
        told.sort_unstable();
        assert_eq!(told, [(1, 2, true), (3, 4, false)], "{durable} {limit}");
        assert_eq!(count(&mut h, &mut c, "q"), 2);
        assert!(get(&mut h, &mut c, 9, "q").is_some());
        h.send(&mut c, publish_body("q", 5, b"y"));
        h.run();
        assert_eq!(confirms(&c.take()), [(5, 5, true)]);
    }
}

#[test]
fn what_a_reader_takes_at_once_is_never_too_much() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with("q", true, "l1;r")).unwrap();
    h.call(&mut c, consume(5, "q", 0)).unwrap();
    for confirm in 1..=10 {
        h.send(&mut c, publish("", "q", confirm, b"x"));
    }
    h.run();
    assert!(confirms(&c.take()).iter().all(|(.., accepted)| *accepted));
}

#[test]
fn other_queues_get_what_a_full_one_turns_away_and_its_dead_letters_too() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        for op in [queue("other", true), queue("dead", durable), with("q", durable, "l1;R;d:dead")] {
            h.call(&mut c, op).unwrap();
        }
        for name in ["other", "q"] {
            let (destination, arguments) = (Destination::Queue(name.into()), Bytes::new());
            let bind = BindingSpec { source: "amq.fanout".into(), destination, key: "".into(), arguments };
            h.call(&mut c, Op::Bind(bind)).unwrap();
        }
        for confirm in 1..=2 {
            h.send(&mut c, publish("amq.fanout", "k", confirm, b"x"));
        }
        h.run();
        let mut told = confirms(&c.take());
        told.sort_unstable();
        assert_eq!(told, [(1, 1, true), (2, 2, false)], "durable: {durable}");
        let depths = ["other", "q", "dead"].map(|name| count(&mut h, &mut c, name));
        assert_eq!(depths, [2, 1, 1]);
    }
}

#[test]
fn a_lost_batch_does_not_fill_a_queue_twice() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with("q", true, "l2;r")).unwrap();
    h.send(&mut c, publish("", "q", 1, b"x"));
    h.send(&mut c, publish("", "q", 2, b"x"));
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 2, true)]);
    assert_eq!(count(&mut h, &mut c, "q"), 2);
}

#[test]
fn higher_priorities_go_first_and_what_comes_back_keeps_its_place() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, with("q", durable, "p5")).unwrap();
        for body in [b"0a", b"9a", b"3a", b"5b", b"0b"] {
            h.send(&mut c, publish("", "q", 0, body));
        }
        h.run();
        // 9 counts as 5.
        let (offset, body) = get(&mut h, &mut c, 9, "q").unwrap();
        assert_eq!((offset, &body[..]), (1, &b"9a"[..]), "durable: {durable}");
        h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(1, 1)], how: Settle::Requeue });
        h.run();
        assert_eq!(bodies(&mut h, &mut c, "q"), [b"9a", b"5b", b"3a", b"0a", b"0b"]);
        h.core.audit().unwrap();
        assert_eq!(count(&mut h, &mut c, "q"), 0);
    }
}

#[test]
fn a_new_leader_knows_priorities_sizes_and_who_was_handed_out() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with("q", true, "p9;b12")).unwrap();
    for body in [&b"1aaa"[..], b"7bbb", b"3ccc"] {
        h.send(&mut c, publish_body("q", 0, body));
    }
    h.run();
    let log: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let mut h = Harness::restarted(78, &log);
    let mut c = h.client(1);
    // The head goes, and again until there is room: that is the one with the highest priority, as in RabbitMQ.
    h.send(&mut c, publish_body("q", 0, b"5dddd"));
    h.run();
    assert_eq!(bodies(&mut h, &mut c, "q"), [b"3ccc", b"1aaa"]);
    h.core.audit().unwrap();
    let delta = h.core.state.begin_checkpoint(&mut |_| 0).unwrap();
    let (mut loaded, _) = State::load(SEGMENT, delta.point, delta.puts).unwrap();
    assert_eq!(loaded.digest(&NoPages), h.core.state.digest(&NoPages));
}

#[test]
fn a_purge_and_another_leader_leave_nothing_behind() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, with("q", true, "p9;b100")).unwrap();
    for body in [b"1", b"2", b"3", b"4"] {
        h.send(&mut c, publish("", "q", 0, body));
    }
    h.run();
    assert_eq!(get(&mut h, &mut c, 9, "q").unwrap().1, b"4");
    let uid = h.core.state.topology.queue(0, "q").unwrap().uid;
    h.other_leads(uid, 1);
    h.start_term();
    h.run();
    h.core.audit().unwrap();
    assert_eq!(count(&mut h, &mut c, "q"), 2);
    let Ok(Reply::Queue { messages: 2, .. }) = h.call(&mut c, Op::PurgeQueue { name: "q".into() }) else {
        panic!()
    };
    h.send(&mut c, Op::Settle { reader: 9, ranges: vec![(3, 3)], how: Settle::Ack });
    h.run();
    assert!(h.core.state.segments.is_empty());
    assert_eq!((h.call(&mut c, look("q")).is_ok(), h.core.ready_bytes(uid)), (true, 0));
    h.core.audit().unwrap();
}
