//! Pieces of large bodies: they live from their application to the last reference, or until nobody will name them.

use super::super::core::Work;
use super::super::topology::Change;
use super::*;

/// Small batches: a body above this goes in pieces.
const BATCH: usize = 16 << 10;

fn small() -> Harness {
    let mut h = Harness::new();
    h.core.batch_bytes = BATCH;
    h
}

/// A publish whose body goes in three pieces.
fn large(key: &str, confirm: u64) -> Op {
    let Op::Publish(mut publish) = publish("", key, confirm, b"") else { unreachable!() };
    let body = vec![7; 2 * BATCH + 100];
    publish.message.body_len = u32::try_from(body.len()).unwrap();
    publish.message.bytes = body.into();
    Op::Publish(publish)
}

impl Harness {
    /// Commits what is decided, once.
    fn commit_once(&mut self) {
        self.propose();
        for proposal in std::mem::take(&mut self.taken) {
            self.commit(OUTCOMES, proposal.payload);
        }
    }

    /// Until pieces wait; no reference names them yet.
    fn until_pieces_wait(&mut self, count: usize) {
        while self.pieces() < count {
            self.commit_once();
        }
        assert_eq!(self.pieces(), count);
    }

    fn pieces(&self) -> usize {
        self.core.state.sessions.values().map(|session| session.pieces.len()).sum()
    }

    /// References and pieces that keep segments.
    fn live(&self) -> u64 {
        self.core.state.segments.values().sum()
    }
}

#[test]
fn a_piece_lives_before_its_reference_and_as_long_as_that_one() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    assert_eq!(h.live(), 3);
    assert!(h.core.state.segments.contains_key(&0));
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 4));
    h.call(&mut c, consume(1, "q", 10)).unwrap();
    h.send(&mut c, Op::Settle { reader: 1, ranges: vec![(0, 0)], how: Settle::Ack });
    h.run();
    assert_eq!(h.live(), 0);
}

#[test]
fn a_checkpoint_knows_the_pieces_that_wait() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    let delta = h.core.state.begin_checkpoint(&mut |_| 0).unwrap();
    let (mut loaded, _) = State::load(1 << 20, delta.point, delta.puts).unwrap();
    assert_eq!(loaded.digest(&NoPages), h.core.state.digest(&NoPages));
    h.run();
    let behind: Vec<Batch> =
        h.log.0.borrow().values().filter(|b| b.point.index > delta.point.index).cloned().collect();
    for batch in behind {
        loaded.apply(&batch, &NoPages);
    }
    assert_eq!(loaded.digest(&NoPages), h.core.state.digest(&NoPages));
    assert_eq!(loaded.segments.values().sum::<u64>(), 4);
}

#[test]
fn pieces_of_what_reaches_no_queue_any_more_are_given_up() {
    let mut h = small();
    let (mut a, mut b) = (h.client(1), h.client(2));
    h.call(&mut a, queue("q", true)).unwrap();
    h.send(&mut a, large("q", 1));
    h.propose();
    h.call(&mut b, Op::DeleteQueue { name: "q".into(), if_unused: false, if_empty: false }).unwrap();
    assert_eq!(confirms(&a.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 0));
}

#[test]
fn pieces_outlive_a_lost_reference() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    assert_eq!(h.pieces(), 3);
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 4));
}

#[test]
fn who_sends_a_large_message_is_told_the_message_queue_that_it_went_to_in_the_end() {
    let mut h = small();
    let mut c = h.client(1);
    let topic: Arc<str> = "T".into();
    let create =
        Op::CreateTopic { topic: Arc::clone(&topic), write_queues: 3, read_queues: 3, permission: 6 };
    h.call(&mut c, create).unwrap();
    let Op::Publish(publish) = large("", 0) else { unreachable!() };
    let messages = vec![SendMessage { message: publish.message, tag: "".into() }];
    h.send(
        &mut c,
        Op::Send(Send {
            topic,
            queue_id: None,
            create_queues: None,
            messages,
            waits: None,
            key: 0,
            arrived: Duration::ZERO,
        }),
    );
    h.until_pieces_wait(3);
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    let sent = c.take().into_iter().find_map(|event| match event {
        Event::Reply { result: Ok(Reply::Sent { queue_id, offsets, .. }), .. } => Some((queue_id, offsets)),
        _ => None,
    });
    let Some((queue_id, offsets)) = sent else { panic!("no answer") };
    assert_eq!(offsets, [0]);
    let queues = &h.core.state.topology.topic("T").unwrap().queues;
    assert_eq!(h.core.state.queues[&queues[queue_id as usize]].index.next(), 1);
}

#[test]
fn a_lost_reference_to_a_queue_that_is_gone_gives_its_pieces_up() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    h.propose();
    h.taken.clear();
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.core.state.topology.apply(&Change::RemoveQueue(uid));
    h.core.state.queues.remove(&uid);
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 0));
}

#[test]
fn who_leads_again_gives_up_the_pieces_that_nobody_knows_any_more() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    // One behind them that is lost, and decided again.
    let mut other = h.client(2);
    h.send(&mut other, publish("", "q", 1, &[b'x'; 16_000]));
    h.propose();
    h.core.stop_leading();
    for proposal in std::mem::take(&mut h.taken).into_iter().take(3) {
        h.commit(OUTCOMES, proposal.payload);
    }
    assert_eq!(h.pieces(), 3);
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.other_leads(uid, 0);
    h.start_term();
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 5));
}

#[test]
fn pieces_end_with_their_session() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    let batches: Vec<Batch> = h.log.0.borrow().values().cloned().collect();
    let h = Harness::restarted(78, &batches);
    assert_eq!((h.pieces(), h.live()), (0, 0));
}

#[test]
fn a_part_of_a_fan_out_whose_queues_are_gone_leaves_the_pieces_to_the_others() {
    let mut h = small();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.send(&mut c, large("q", 1));
    h.until_pieces_wait(3);
    let pending = h.core.pending.back().unwrap();
    let (extents, Work::Verb { verb, .. }) = (pending.extents.clone(), &pending.work) else { panic!() };
    let Op::Publish(publish) = verb.op.clone() else { panic!() };
    let part = h.core.number(Work::Part { publish: Box::new(publish), targets: vec![999] });
    h.core.keep_extents(part, &extents);
    // A part stands before its publish.
    let [.., publish, part] = h.core.pending.make_contiguous() else { panic!() };
    std::mem::swap(&mut publish.work, &mut part.work);
    h.propose();
    h.taken.clear();
    h.core.refused(h.term);
    h.core.lead(h.term);
    h.run();
    assert_eq!(confirms(&c.take()), [(1, 1, true)]);
    assert_eq!((h.pieces(), h.live()), (0, 4));
}

#[test]
fn what_a_connection_held_is_free_when_it_went_with_pieces_on_their_way_and_another_led() {
    let mut h = small();
    let (mut gone, mut stays) = (h.client(1), h.client(2));
    h.call(&mut gone, queue("q", true)).unwrap();
    let uid = *h.core.state.queues.keys().next().unwrap();
    h.send(&mut gone, publish("", "q", 0, b"held"));
    h.send(&mut gone, consume(1, "q", 1));
    h.run();
    assert_eq!(gone.deliveries().len(), 1);
    h.send(&mut gone, large("q", 1));
    h.propose();
    h.taken.clear();
    h.core.input(Input::Disconnected(1));
    h.other_leads(uid, 0);
    h.start_term();
    h.run();
    h.send(&mut stays, consume(1, "q", 0));
    h.run();
    assert_eq!(stays.deliveries().iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, true)]);
}
