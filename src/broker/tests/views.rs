//! A queue looked at by offset, through the topic that stands for it.

use super::*;

const VIEW: &str = "AMQP-Q-a|2Eq";

fn fetch(topic: &str, queue_id: u32, offset: u64, wait_ms: u32) -> Op {
    Op::Fetch(Fetch {
        topic: topic.into(),
        queue_id,
        offset,
        max_messages: 32,
        max_bytes: 1 << 20,
        tags: [].into(),
        wait_ms,
    })
}

fn seen(reply: Result<Reply, Refusal>) -> (FetchStatus, Vec<u64>, u64) {
    let Ok(Reply::Fetched(fetched)) = reply else { panic!("{reply:?}") };
    (fetched.status, fetched.deliveries.iter().map(|d| d.offset).collect(), fetched.next)
}

#[test]
fn a_queue_is_read_by_offset_without_settling_and_what_is_settled_is_passed_over() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("a.q", true)).unwrap();
    for _ in 0..4 {
        h.send(&mut c, publish("", "a.q", 0, b"x"));
    }
    h.run();
    let look = |h: &mut Harness, c: &mut Client, from| seen(h.call(c, fetch(VIEW, 0, from, 0)));
    assert_eq!(look(&mut h, &mut c, 0), (FetchStatus::Found, vec![0, 1, 2, 3], 4));
    let Ok(Reply::Queue { messages: 4, .. }) = h.call(&mut c, queue("a.q", true)) else { panic!() };
    h.call(&mut c, consume(5, "a.q", 0)).unwrap();
    h.run();
    // Held by a consumer, they are there.
    assert_eq!(look(&mut h, &mut c, 0).1, [0, 1, 2, 3]);
    h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(2, 2)], how: Settle::Ack });
    h.run();
    assert_eq!(look(&mut h, &mut c, 1), (FetchStatus::Found, vec![1, 3], 4));
    h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(0, 1)], how: Settle::Ack });
    h.run();
    // Whoever stands before what is left is told where that begins.
    assert_eq!(look(&mut h, &mut c, 0), (FetchStatus::OffsetMoved, vec![], 3));
    let ends = Op::QueueOffsets { topic: VIEW.into(), queue_id: 0 };
    assert!(matches!(h.call(&mut c, ends.clone()), Ok(Reply::Offsets { min: 3, max: 4, .. })));
    let at = |timestamp| Op::SearchOffset { topic: VIEW.into(), queue_id: 0, timestamp };
    assert!(matches!(h.call(&mut c, at(0)), Ok(Reply::Offset(3))));
    assert!(matches!(h.call(&mut c, at(u64::MAX)), Ok(Reply::Offset(4))));
    h.send(&mut c, Op::Settle { reader: 5, ranges: vec![(3, 3)], how: Settle::Ack });
    h.run();
    assert!(matches!(h.call(&mut c, ends), Ok(Reply::Offsets { min: 4, max: 4, earliest: 0 })));
}

#[test]
fn a_pull_of_a_queue_waits_for_its_next_message_and_a_group_has_its_own_offset_there() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("a.q", true)).unwrap();
    h.send(&mut c, fetch(VIEW, 0, 0, 10_000));
    h.run();
    assert!(c.take().is_empty());
    h.send(&mut c, publish("", "a.q", 0, b"x"));
    h.run();
    let mut replies = c.take().into_iter().filter_map(|event| match event {
        Event::Reply { result, .. } => Some(result),
        _ => None,
    });
    assert_eq!(seen(replies.next().unwrap()).1, [0]);
    let group = || Op::GroupOffset { group: "G".into(), topic: VIEW.into(), queue_id: 0 };
    assert!(matches!(h.call(&mut c, group()), Ok(Reply::GroupOffset { offset: None, .. })));
    let (topic, offset) = (VIEW.into(), 1);
    h.call(&mut c, Op::CommitOffset { group: "G".into(), topic, queue_id: 0, offset, wait: true }).unwrap();
    assert!(matches!(h.call(&mut c, group()), Ok(Reply::GroupOffset { offset: Some(1), .. })));
    let Ok(Reply::Queue { messages: 1, .. }) = h.call(&mut c, queue("a.q", true)) else { panic!() };
    // Its offsets go with it.
    h.call(&mut c, Op::DeleteQueue { name: "a.q".into(), if_unused: false, if_empty: false }).unwrap();
    assert!(h.core.state.group_offsets.is_empty());
}

#[test]
fn there_is_no_look_at_a_queue_that_is_not_in_the_log() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("a.q", true)).unwrap();
    h.call(&mut c, queue("memory", false)).unwrap();
    for (topic, queue_id) in [("AMQP-Q-memory", 0), ("AMQP-Q-none", 0), ("AMQP-Q-", 0), ("AMQP-Q-a|2", 0)] {
        assert!(
            matches!(h.call(&mut c, fetch(topic, queue_id, 0, 0)), Err(Refusal::NotFound { .. })),
            "{topic}"
        );
    }
    assert!(matches!(h.call(&mut c, fetch(VIEW, 1, 0, 0)), Err(Refusal::Invalid(_))));
}
