//! Several routing keys, and replies that no queue keeps.

use super::*;

const KEY: &str = "amq.rabbitmq.reply-to.secret";

fn to(key: &str, also: &[&str]) -> Op {
    match publish("", key, 7, b"x") {
        Op::Publish(publish) => {
            Op::Publish(Publish { also: also.iter().map(|key| (*key).into()).collect(), ..publish })
        }
        _ => unreachable!(),
    }
}

#[test]
fn each_queue_gets_a_message_once_however_many_keys_lead_to_it() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    for name in ["a", "b"] {
        h.call(&mut c, queue(name, true)).unwrap();
    }
    h.send(&mut c, to("a", &["b", "a", "nowhere"]));
    h.send(&mut c, to("nowhere", &["b"]));
    h.run();
    let mut depths: Vec<u64> = h.core.state.queues.values().map(|q| q.depth()).collect();
    depths.sort_unstable();
    assert_eq!(depths, [1, 2]);
}

#[test]
fn a_reply_reaches_the_channel_that_waits_and_is_never_kept() {
    let mut h = Harness::new();
    let (mut asks, mut answers) = (h.client(1), h.client(2));
    h.call(&mut asks, queue("q", true)).unwrap();
    let subscribe = Op::SubscribeReplies { reader: 3, channel: 1, key: KEY.into() };
    h.call(&mut asks, subscribe).unwrap();
    h.send(&mut answers, to(KEY, &[]));
    h.send(&mut answers, to("q", &[KEY]));
    h.send(&mut answers, to(KEY, &["q"]));
    h.run();
    assert_eq!(asks.deliveries().len(), 3);
    assert_eq!(confirms(&answers.take()).len(), 3);
    assert_eq!(h.core.state.queues.values().next().unwrap().depth(), 2);
    let look = |name: &str| match queue(name, false) {
        Op::DeclareQueue(spec, _) => Op::DeclareQueue(spec, true),
        _ => unreachable!(),
    };
    assert!(matches!(h.call(&mut answers, look(KEY)), Ok(Reply::Queue { consumers: 1, .. })));
    h.call(&mut asks, Op::CloseChannel { channel: 1 }).unwrap();
    assert!(matches!(h.call(&mut answers, look(KEY)), Err(Refusal::NotFound { .. })));
    h.send(&mut answers, to(KEY, &[]));
    h.run();
    assert!(asks.deliveries().is_empty());
    assert_eq!(confirms(&answers.take()).len(), 1);
}

#[test]
fn replies_to_a_client_that_does_not_read_are_dropped() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, Op::SubscribeReplies { reader: 3, channel: 1, key: KEY.into() }).unwrap();
    let body: &'static [u8] = Box::leak(vec![0; 1 << 20].into_boxed_slice());
    for _ in 0..40 {
        h.send(&mut c, publish("", KEY, 0, body));
    }
    h.run();
    assert_eq!(c.deliveries().len(), 31);
    h.send(&mut c, Op::Drained { bytes: 40 << 20 });
    h.send(&mut c, publish("", KEY, 0, body));
    h.run();
    assert_eq!(c.deliveries().len(), 1);
}
