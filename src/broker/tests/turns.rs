//! Readers with priorities, and queues with a single active one.

use super::dead::with;
use super::*;

fn consume_as(reader: ReaderId, priority: i64, window: u16) -> Op {
    let Op::Subscribe(subscribe) = consume(reader, "q", window) else { unreachable!() };
    Op::Subscribe(Subscribe { priority, ..subscribe })
}

/// How many messages each reader got since it was asked last.
fn shares<const N: usize>(c: &mut Client, readers: [ReaderId; N]) -> [usize; N] {
    let events = c.take();
    readers.map(|wanted| {
        let got = events.iter().filter_map(|event| match event {
            Event::Deliveries { reader, deliveries } if *reader == wanted => Some(deliveries.len()),
            _ => None,
        });
        got.sum()
    })
}

fn put(h: &mut Harness, c: &mut Client, count: usize) {
    for _ in 0..count {
        h.send(c, publish("", "q", 0, b"x"));
    }
    h.run();
}

#[test]
fn a_reader_of_higher_priority_gets_what_it_has_room_for_and_equals_take_turns() {
    for durable in [true, false] {
        let mut h = Harness::new();
        let mut c = h.client(1);
        h.call(&mut c, queue("q", durable)).unwrap();
        for (reader, priority, window) in [(1, 0, 0), (2, 5, 2), (3, 5, 2), (4, -1, 0)] {
            h.call(&mut c, consume_as(reader, priority, window)).unwrap();
        }
        put(&mut h, &mut c, 3);
        assert_eq!(shares(&mut c, [1, 2, 3, 4]).iter().sum::<usize>(), 3);
        put(&mut h, &mut c, 3);
        assert_eq!(shares(&mut c, [1, 4]), [2, 0], "the others are full");
        let held = |h: &Harness, reader| h.core.readers.get(&(1, reader)).map_or(0, |r| r.leases.len());
        assert_eq!([1, 2, 3, 4].map(|reader| held(&h, reader)), [2, 2, 2, 0], "durable: {durable}");
        // Without those of a priority, all take turns again.
        for reader in [2, 3, 4] {
            h.call(&mut c, Op::Unsubscribe { reader }).unwrap();
        }
        put(&mut h, &mut c, 2);
        assert_eq!(held(&h, 1), 4);
    }
}

#[test]
fn one_reader_gets_everything_until_it_goes_and_then_the_next() {
    let mut h = Harness::new();
    let (mut c, mut other) = (h.client(1), h.client(2));
    h.call(&mut c, with("q", true, "s")).unwrap();
    h.call(&mut c, consume_as(1, 0, 1)).unwrap();
    h.call(&mut other, consume_as(1, 0, 0)).unwrap();
    h.call(&mut c, consume_as(2, 0, 0)).unwrap();
    put(&mut h, &mut c, 3);
    let held = |h: &Harness, key| h.core.readers.get(&key).map_or(0, |r| r.leases.len());
    // It is full, and nobody else gets anything.
    assert_eq!([(1, 1), (2, 1), (1, 2)].map(|key| held(&h, key)), [1, 0, 0]);
    h.call(&mut c, Op::Unsubscribe { reader: 1 }).unwrap();
    assert_eq!([(1, 1), (2, 1), (1, 2)].map(|key| held(&h, key)), [1, 2, 0]);
    h.core.input(Input::Disconnected(2));
    h.run();
    assert_eq!([(1, 1), (1, 2)].map(|key| held(&h, key)), [1, 2]);
    let Op::Subscribe(subscribe) = consume_as(9, 0, 0) else { unreachable!() };
    let exclusive = Op::Subscribe(Subscribe { exclusive: true, ..subscribe });
    assert!(matches!(h.call(&mut c, exclusive), Err(Refusal::InExclusiveUse { .. })));
}
