//! Retention and space: what goes, what stays, and that a crash at any moment finds all of it.

use std::collections::BTreeSet;

use super::super::retention::{Settings, TOPIC_HOURS};
use super::*;

const HOUR: u64 = 3_600_000;

/// What is on the disk beside the log.
#[derive(Default)]
struct Disk {
    objects: BTreeMap<Bytes, Bytes>,
    point: Option<LogPoint>,
    /// Segments that went.
    retired: BTreeSet<u64>,
}

impl Disk {
    /// One tick of the shard's loop; true: something happened.
    fn tend(&mut self, h: &mut Harness) -> bool {
        let last = h.position / SEGMENT;
        let existing: Vec<u64> = (0..=last).filter(|s| !self.retired.contains(s)).collect();
        let below = self.point.map_or(0, |point| point.position / SEGMENT);
        let tended = h.core.tend(&existing, 1, below);
        for segment in &tended.retire {
            assert!(*segment < below, "a segment goes only below the durable checkpoint");
            h.log.0.borrow_mut().retain(|position, _| position / SEGMENT != *segment);
        }
        self.retired.extend(&tended.retire);
        if tended.checkpoint {
            let delta = h.core.state.begin_checkpoint(&mut |_| panic!("these queues fill no page")).unwrap();
            self.objects.extend(delta.puts);
            delta.removes.iter().for_each(|key| drop(self.objects.remove(key)));
            self.point = Some(delta.point);
        }
        tended.checkpoint || !tended.retire.is_empty()
    }

    /// The core that a restart would give, before it leads.
    fn recover(&self, h: &Harness) -> Core {
        let checkpoint = self.point.map(|point| (point, self.objects.clone()));
        let (state, _) = Core::recovered(SEGMENT, checkpoint).unwrap();
        let mut core = Core::new(parts(5, &h.log, &h.clock), state);
        let first = self.point.map_or(0, |point| point.index + 1);
        let batches: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
        for batch in batches.iter().filter(|batch| batch.point.index >= first) {
            core.apply(batch);
        }
        core
    }
}

/// Body and public position of every message that is there.
type Truth = BTreeMap<(QueueUid, Offset), (Position, Vec<u8>)>;

fn everything(core: &mut Core) -> Truth {
    let mut found = Truth::new();
    let bounds: Vec<(QueueUid, Offset, Offset)> =
        core.state.queues.values().map(|q| (q.uid, q.index.head(), q.index.next())).collect();
    for (uid, head, next) in bounds {
        for offset in head..next {
            let Some(position) = core.entry(uid, offset).map(|entry| entry.position) else { continue };
            let Some(source) = core.source(uid, offset) else { continue };
            let body = match &source.message.body {
                Some(pieces) => pieces.concat(),
                None => source.message.bytes[source.message.prefix_len as usize..].to_vec(),
            };
            found.insert((uid, offset), (position, body));
        }
    }
    found
}

fn body(seed: u64, len: usize) -> Bytes {
    let at = |i: usize| u8::try_from((seed * 31 + i as u64 * 7) % 251).unwrap();
    (0..len).map(at).collect::<Vec<u8>>().into()
}

fn keep(queue: &str, bytes: Bytes) -> Op {
    let Op::Publish(publish) = publish("", queue, 0, b"") else { unreachable!() };
    let body_len = u32::try_from(bytes.len()).unwrap();
    Op::Publish(Publish { message: Message { bytes, body_len, ..publish.message.clone() }, ..publish })
}

fn to_topic(bytes: &Bytes, waits: Option<Waits>) -> Op {
    let prefix = b"T 0 P 0|";
    let message = Message {
        origin: Origin::Rocketmq,
        body_len: u32::try_from(bytes.len()).unwrap(),
        bytes: [prefix, &bytes[..]].concat().into(),
        prefix_len: u32::try_from(prefix.len()).unwrap(),
        tag_hash: 0,
        persistent: true,
        ttl: None,
    };
    let messages = vec![SendMessage { message, tag: "".into() }];
    Op::Send(Send {
        topic: "T".into(),
        queue_id: Some(0),
        create_queues: Some(1),
        messages,
        waits,
        key: 0,
        arrived: Duration::ZERO,
    })
}

fn bounds(h: &mut Harness, c: &mut Client) -> (u64, u64, u64) {
    match h.call(c, Op::QueueOffsets { topic: "T".into(), queue_id: 0 }) {
        Ok(Reply::Offsets { min, max, earliest }) => (min, max, earliest),
        other => panic!("{other:?}"),
    }
}

fn with(settings: Settings) -> Harness {
    let mut h = Harness::new();
    h.core.retention.settings = settings;
    h
}

/// Ticks until nothing happens any more.
fn settle(h: &mut Harness, disk: &mut Disk) {
    for _ in 0..40 {
        h.advance(5_000);
        disk.tend(h);
        h.run();
    }
}

#[test]
fn a_topic_loses_whole_old_segments_and_says_so() {
    let mut h = with(Settings { topics_ms: 72 * HOUR, ..Settings::default() });
    let (mut c, mut disk) = (h.client(1), Disk::default());
    let mut stored = Vec::new();
    for n in 0..30 {
        h.advance(HOUR);
        stored.push(h.core.stamp());
        h.call(&mut c, to_topic(&body(n, 200_000), None)).unwrap();
    }
    settle(&mut h, &mut disk);
    assert_eq!(bounds(&mut h, &mut c), (0, 30, stored[0]), "nothing is old enough");
    h.advance(55 * HOUR);
    settle(&mut h, &mut disk);
    let (min, max, earliest) = bounds(&mut h, &mut c);
    assert!(min > 0 && min < 12, "{min}");
    assert_eq!((max, earliest), (30, stored[usize::try_from(min).unwrap()]));
    assert!(!disk.retired.is_empty(), "its segments are gone");
    let uid = h.core.state.topology.topic("T").unwrap().queues[0];
    let first = h.core.entry(uid, min).unwrap().position / SEGMENT;
    assert!((0..first).all(|segment| disk.retired.contains(&segment)), "{:?}, {first}", disk.retired);
    let fetch = |offset| {
        let tags = [].into();
        Op::Fetch(Fetch {
            topic: "T".into(),
            queue_id: 0,
            offset,
            max_messages: 1,
            max_bytes: 1,
            tags,
            wait_ms: 0,
        })
    };
    let Ok(Reply::Fetched(fetched)) = h.call(&mut c, fetch(min - 1)) else { panic!() };
    assert_eq!((fetched.status, fetched.next), (FetchStatus::OffsetMoved, min));
    let Ok(Reply::Fetched(fetched)) = h.call(&mut c, fetch(min)) else { panic!() };
    assert_eq!((fetched.status, fetched.deliveries.len()), (FetchStatus::Found, 1));
    h.advance(100 * HOUR);
    settle(&mut h, &mut disk);
    let (min, max, _) = bounds(&mut h, &mut c);
    assert!(min < max, "the open segment stays, however old it is");
    let mut recovered = disk.recover(&h);
    assert_eq!(recovered.digest(), h.core.digest());
}

#[test]
fn a_topic_with_a_time_of_its_own_keeps_its_messages_shorter_or_longer_than_others() {
    let to = |topic: &str, bytes: &Bytes| match to_topic(bytes, None) {
        Op::Send(send) => Op::Send(Send { topic: topic.into(), ..send }),
        _ => unreachable!(),
    };
    let set = |topic: &str, hours: Option<&'static str>| Op::PutSetting {
        space: TOPIC_HOURS.into(),
        name: topic.into(),
        value: hours.map(|hours| Bytes::from_static(hours.as_bytes())),
    };
    let min = |h: &mut Harness, c: &mut Client, topic: &str| match h
        .call(c, Op::QueueOffsets { topic: topic.into(), queue_id: 0 })
    {
        Ok(Reply::Offsets { min, .. }) => min,
        other => panic!("{other:?}"),
    };
    let mut h = with(Settings { topics_ms: 72 * HOUR, ..Settings::default() });
    let (mut c, mut disk) = (h.client(1), Disk::default());
    for n in 0..30 {
        h.advance(HOUR);
        for topic in ["short", "usual", "long", "ever"] {
            h.call(&mut c, to(topic, &body(n, 50_000))).unwrap();
        }
    }
    for (topic, hours) in [("short", "12"), ("long", "1000"), ("ever", "0"), ("no topic", "1")] {
        h.call(&mut c, set(topic, Some(hours))).unwrap();
    }
    settle(&mut h, &mut disk);
    let all = |h: &mut Harness, c: &mut Client| ["short", "usual", "long", "ever"].map(|t| min(h, c, t));
    let [short, rest @ ..] = all(&mut h, &mut c);
    assert!(short > 10 && short < 20 && rest == [0, 0, 0], "{short} {rest:?}");
    h.advance(60 * HOUR);
    settle(&mut h, &mut disk);
    let [short, usual, rest @ ..] = all(&mut h, &mut c);
    assert!(short > 20 && usual > 4 && usual < short && rest == [0, 0], "{short} {usual} {rest:?}");
    // As all others again.
    h.call(&mut c, set("long", None)).unwrap();
    settle(&mut h, &mut disk);
    let [_, usual, long, ever] = all(&mut h, &mut c);
    assert!(long == usual && ever == 0, "{usual} {long} {ever}");
    assert_eq!(disk.recover(&h).digest(), h.core.digest());
}

#[test]
fn a_topic_keeps_so_many_newest_bytes() {
    let mut h = with(Settings { topics_bytes: 3 * SEGMENT, ..Settings::default() });
    let (mut c, mut disk) = (h.client(1), Disk::default());
    for n in 0..60 {
        h.call(&mut c, to_topic(&body(n, 200_000), None)).unwrap();
    }
    settle(&mut h, &mut disk);
    let (min, max, _) = bounds(&mut h, &mut c);
    let left = (max - min) * 200_000;
    assert!((2 * SEGMENT..5 * SEGMENT).contains(&left), "{left} bytes");
    let files = h.position / SEGMENT + 1 - disk.retired.len() as u64;
    assert!(files <= 5, "{files} files");
}

#[test]
fn amqp_messages_are_never_given_up_for_room() {
    let mut h = with(Settings { max_bytes: 4 * SEGMENT, ..Settings::default() });
    let (mut c, mut disk) = (h.client(1), Disk::default());
    h.call(&mut c, queue("q", true)).unwrap();
    for n in 0..40 {
        h.send(&mut c, keep("q", body(n, 200_000)));
        h.call(&mut c, to_topic(&body(n, 1000), None)).unwrap();
    }
    let before = everything(&mut h.core);
    settle(&mut h, &mut disk);
    assert!(disk.retired.is_empty());
    let after = everything(&mut h.core);
    assert_eq!(before, after, "nothing would come free, so topics lose nothing either");
}

#[test]
fn stragglers_move_on_and_the_log_comes_back_below_its_limit() {
    let mut h = with(Settings { max_bytes: 6 * SEGMENT, ..Settings::default() });
    // Small batches: large bodies go in pieces, and move in pieces.
    h.core.batch_bytes = 64 << 10;
    let (mut c, mut disk) = (h.client(1), Disk::default());
    h.call(&mut c, queue("q", true)).unwrap();
    h.call(&mut c, queue("work", true)).unwrap();
    h.send(&mut c, keep("q", body(1, 1000)));
    h.send(&mut c, keep("q", body(2, 150_000)));
    h.call(&mut c, to_topic(&body(3, 500), Some(Waits::Delay(18)))).unwrap();
    h.send(&mut c, consume(1, "q", 1));
    h.run();
    assert_eq!(c.deliveries().len(), 1, "one is out and not acknowledged");
    let waiting = h.core.state.topology.waiting_queues().next().unwrap();
    let logged = h.core.logged_at(waiting, 0);
    let before = everything(&mut h.core);
    for n in 0..100 {
        h.call(&mut c, to_topic(&body(n, 200_000), None)).unwrap();
        disk.tend(&mut h);
    }
    settle(&mut h, &mut disk);
    let files = h.position / SEGMENT + 1 - disk.retired.len() as u64;
    assert!(files <= 7, "{files} files of {}", h.position / SEGMENT);
    assert!(disk.retired.contains(&0), "where they lay first");
    let mut recovered = disk.recover(&h);
    assert_eq!(recovered.digest(), h.core.digest());
    for core in [&mut h.core, &mut recovered] {
        let after = everything(core);
        for (place, message) in &before {
            assert_eq!(after.get(place), Some(message), "place {place:?}");
        }
        assert_eq!(core.logged_at(waiting, 0), logged, "its time does not begin anew");
        assert_eq!(core.view(MOVED, before[&(waiting, 0)].0).map(|_| ()), Ok(()), "found by its id");
    }
    // Acknowledged, they leave nothing behind.
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(0, 0)], how: Settle::Ack });
    h.run();
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(1, 1)], how: Settle::Ack });
    h.advance(3 * HOUR);
    settle(&mut h, &mut disk);
    let mut queues = h.core.state.queues.values().filter(|queue| queue.kind != QueueKind::Topic);
    assert!(queues.all(|queue| queue.homes.is_empty() && queue.elsewhere.is_empty() && queue.depth() == 0));
}

#[test]
fn a_move_that_is_lost_or_late_or_comes_twice_does_no_harm() {
    let mut h = with(Settings { max_bytes: 2 * SEGMENT, ..Settings::default() });
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, keep("q", body(1, 1000)));
    h.call(&mut c, consume(1, "q", 1)).unwrap();
    for n in 0..20 {
        h.call(&mut c, to_topic(&body(n, 200_000), None)).unwrap();
    }
    let before = everything(&mut h.core);
    let uid = h.core.state.queues.values().find(|q| q.kind == QueueKind::Classic).unwrap().uid;
    let all: Vec<u64> = (0..=h.position / SEGMENT).collect();
    let again = |h: &mut Harness| {
        h.clock.0.fetch_add(20_000, Ordering::Relaxed);
        h.core.turn();
        let _ = h.core.tend(&all, 1, 0);
        h.propose();
        assert!(!h.taken.is_empty(), "a move was decided");
    };
    again(&mut h);
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert!(h.core.state.queues[&uid].homes.is_empty(), "lost: nothing happened, and nothing is owed");
    again(&mut h);
    let first =
        h.taken.iter().find(|p| p.payload.len() > 900 && p.payload.len() < 4000).unwrap().payload.clone();
    h.run();
    let home = h.core.state.queues[&uid].homes[&0];
    assert_eq!(everything(&mut h.core).get(&(uid, 0)), before.get(&(uid, 0)));
    let counts = h.core.state.segments.clone();
    // The same record again, as one of a batch of its own would be.
    let (_, sections) = super::super::record::parse(&first).unwrap();
    let record = *sections[0].records.iter().find(|r| r.kind == Kind::Rehome).unwrap();
    let batch = h.log.0.borrow().get(&home.batch).cloned().unwrap();
    let apply = |h: &mut Harness| {
        h.core.with_pages(|state, pages| state.rehome(&batch, &record, pages)).unwrap();
    };
    apply(&mut h);
    assert_eq!(h.core.state.segments, counts);
    assert_eq!(h.core.state.queues[&uid].homes[&0], home);
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(0, 0)], how: Settle::Ack });
    h.run();
    let counts = h.core.state.segments.clone();
    apply(&mut h);
    assert_eq!(h.core.state.segments, counts, "it is settled: too late");
    assert!(h.core.state.queues[&uid].homes.is_empty());
}

/// Publishes, acknowledges, trims, moves and retires; after every batch and every tick it crashes and looks.
#[test]
fn a_crash_at_any_moment_finds_every_message_at_its_place() {
    let mut h = with(Settings { max_bytes: 3 * SEGMENT, topics_bytes: 20 * SEGMENT, ..Settings::default() });
    h.core.batch_bytes = 64 << 10;
    let (mut c, mut disk) = (h.client(1), Disk::default());
    let (mut truth, mut crashes, mut moved) = (Truth::new(), 0, 0);
    let mut step = |h: &mut Harness, disk: &mut Disk, op: Option<(&mut Client, Op)>| {
        let mut look = |h: &mut Harness, disk: &Disk| {
            let now = everything(&mut h.core);
            for (place, message) in &now {
                let known = truth.entry(*place).or_insert_with(|| message.clone());
                assert_eq!(known, message, "place {place:?}");
            }
            let mut recovered = disk.recover(h);
            assert_eq!(recovered.digest(), h.core.digest());
            assert_eq!(everything(&mut recovered), now);
            moved = moved.max(h.core.state.queues.values().map(|q| q.homes.len()).sum());
            crashes += 1;
        };
        if let Some((client, op)) = op {
            h.send(client, op);
        }
        loop {
            h.propose();
            if h.taken.is_empty() {
                break;
            }
            for proposal in std::mem::take(&mut h.taken) {
                h.commit(OUTCOMES, proposal.payload);
                look(h, disk);
            }
        }
        if disk.tend(h) {
            look(h, disk);
        }
    };
    for name in ["q", "work"] {
        step(&mut h, &mut disk, Some((&mut c, queue(name, true))));
    }
    step(&mut h, &mut disk, Some((&mut c, consume(1, "q", 0))));
    step(&mut h, &mut disk, Some((&mut c, consume(2, "work", 0))));
    for n in 0..48 {
        h.clock.0.fetch_add(4_000, Ordering::Relaxed);
        if n % 16 == 0 {
            step(&mut h, &mut disk, Some((&mut c, keep("q", body(n, if n == 16 { 100_000 } else { 700 })))));
            step(&mut h, &mut disk, Some((&mut c, to_topic(&body(n, 300), Some(Waits::Delay(18))))));
        }
        step(&mut h, &mut disk, Some((&mut c, keep("work", body(n, 300_000)))));
        let ack = Op::Settle { reader: 2, ranges: vec![(n, n)], how: Settle::Ack };
        step(&mut h, &mut disk, Some((&mut c, ack)));
        step(&mut h, &mut disk, Some((&mut c, to_topic(&body(n, 200_000), None))));
    }
    for n in 0..12 {
        h.clock.0.fetch_add(4_000, Ordering::Relaxed);
        step(&mut h, &mut disk, None);
        if n == 6 {
            let ack = Op::Settle { reader: 1, ranges: vec![(0, 1)], how: Settle::Ack };
            step(&mut h, &mut disk, Some((&mut c, ack)));
        }
    }
    assert!(crashes > 100 && moved >= 3 && disk.retired.len() > 5, "{crashes} {moved} {:?}", disk.retired);
}
