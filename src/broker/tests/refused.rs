//! What stands behind a refusal on its channel does not happen.

use super::*;

/// Hands verbs of channel 1 over at once, numbered from 1.
fn pipelined(h: &mut Harness, c: &Client, ops: impl IntoIterator<Item = Op>) {
    let verb = |(op, wish)| Verb { key: key(), request: request_of(1, wish), vhost: 0, op, number: 0 };
    h.core.input(Input::Verbs(c.id, ops.into_iter().zip(1..).map(verb).collect()));
}

fn missing_queue() -> Op {
    let Op::DeclareQueue(spec, _) = queue("missing", true) else { unreachable!() };
    Op::DeclareQueue(spec, true)
}

fn delete(name: &str) -> Op {
    Op::DeleteQueue { name: name.into(), if_unused: false, if_empty: false }
}

/// Wishes that were answered, with success or not; refused publishes are 0.
fn answers(events: &[Event]) -> Vec<(u64, bool)> {
    let answers = events.iter().filter_map(|event| match event {
        Event::Reply { request, result } => Some((request & 0xffff_ffff, result.is_ok())),
        Event::PublishRefused { .. } => Some((0, false)),
        _ => None,
    });
    answers.collect()
}

fn depth(h: &mut Harness, c: &mut Client) -> u64 {
    match h.call(c, queue("q", true)) {
        Ok(Reply::Queue { messages, .. }) => messages,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_behind_a_refusal_happens_or_is_answered_until_the_channel_is_closed() {
    for refused in [missing_queue(), publish("missing", "q", 0, b"x")] {
        let mut h = Harness::new();
        let (mut c, mut other) = (h.client(1), h.client(2));
        h.call(&mut other, queue("q", true)).unwrap();
        let number = u64::from(matches!(refused, Op::DeclareQueue(..)));
        let get = Op::Get { reader: 9, channel: 1, queue: "q".into(), no_ack: true };
        let behind = [publish("", "q", 1, b"x"), get, consume(8, "q", 0), delete("q"), queue("r", false)];
        pipelined(&mut h, &c, [refused].into_iter().chain(behind));
        h.run();
        let events = c.take();
        assert_eq!(answers(&events), [(number, false)], "{events:?}");
        assert!(confirms(&events).is_empty());
        pipelined(&mut h, &c, [delete("q")]);
        h.run();
        assert!(c.take().is_empty(), "a later read is behind it too");
        assert_eq!(depth(&mut h, &mut other), 0);
        pipelined(&mut h, &c, [Op::CloseChannel { channel: 1 }, delete("q")]);
        h.run();
        assert_eq!(answers(&c.take()), [(1, true), (2, true)]);
    }
}

#[test]
fn other_channels_and_connections_go_on() {
    let mut h = Harness::new();
    let (mut c, mut other) = (h.client(1), h.client(2));
    h.call(&mut other, queue("q", true)).unwrap();
    pipelined(&mut h, &c, [missing_queue()]);
    let Op::Publish(elsewhere) = publish("", "q", 1, b"x") else { unreachable!() };
    let elsewhere = Op::Publish(Publish { channel: 2, ..elsewhere });
    h.send(&mut c, elsewhere);
    h.send(&mut other, publish("", "q", 1, b"y"));
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!(depth(&mut h, &mut other), 2);
}

#[test]
fn an_ack_in_front_of_a_refusal_counts_and_one_behind_it_comes_again() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    (0..2).for_each(|_| h.send(&mut c, publish("", "q", 0, b"x")));
    h.call(&mut c, consume(5, "q", 0)).unwrap();
    let ack = |offset| Op::Settle { reader: 5, ranges: vec![(offset, offset)], how: Settle::Ack };
    pipelined(&mut h, &c, [ack(0), publish("missing", "", 0, b"x"), ack(1)]);
    h.run();
    pipelined(&mut h, &c, [Op::CloseChannel { channel: 1 }]);
    h.run();
    assert_eq!(depth(&mut h, &mut c), 1);
}

#[test]
fn what_was_published_before_a_refused_publish_is_confirmed_first() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    c.take();
    pipelined(&mut h, &c, [publish("", "q", 1, b"x"), publish("missing", "q", 2, b"x")]);
    h.propose();
    assert!(c.take().is_empty(), "the refusal waits");
    h.run();
    let events = c.take();
    assert!(
        matches!(events[..], [Event::Confirmed { last: 1, .. }, Event::PublishRefused { .. }]),
        "{events:?}"
    );
}

#[test]
fn a_commit_behind_a_refused_publish_is_dropped_with_what_it_settles() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, publish("", "q", 0, b"x"));
    h.call(&mut c, consume(5, "q", 0)).unwrap();
    c.take();
    let settlements = vec![Settlement { reader: 5, ranges: vec![(0, 0)], how: Settle::Ack }];
    let commit = Op::Commit(Commit { publishes: Vec::new(), settlements });
    pipelined(&mut h, &c, [Op::CheckPublish { channel: 1, exchange: "missing".into() }, commit]);
    h.run();
    assert_eq!(answers(&c.take()), [(0, false)]);
    pipelined(&mut h, &c, [Op::CloseChannel { channel: 1 }]);
    h.run();
    assert_eq!(depth(&mut h, &mut c), 1);
}
