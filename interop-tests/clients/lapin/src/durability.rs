//! What survives a restart of the broker.

use crate::kit::*;
use lapin::ExchangeKind;
use lapin::options::*;
use std::time::{Duration, Instant};

const SETTLED: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "m6"];
const UNACKED: &str = "m5";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("restart-graceful", |context| restart_by(context, "term")),
        scenario("restart-kill", |context| restart_by(context, "kill")),
    ]
}

fn kept() -> Vec<String> {
    sequence(20).into_iter().filter(|body| !SETTLED.contains(&body.as_str())).collect()
}

async fn restart_by(context: Context, how: &'static str) {
    needs_restart();
    let channel = context.confirming().await;
    let exchange = context.name("exchange");
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    declare_exchange(&channel, &exchange, ExchangeKind::Topic, durable).await.unwrap();
    let gone = context.exchange(&channel, ExchangeKind::Topic).await;
    declare(&channel, &gone, QueueDeclareOptions::default()).await.unwrap();
    let queues = [("classic", context.name("classic")), ("quorum", context.name("quorum"))];
    for (kind, queue) in &queues {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(short(queue), durable, table([("x-queue-type", text(kind))])).await.unwrap();
        bind(&channel, queue, &exchange, "orders.#").await.unwrap();
    }
    let properties = persistent().with_headers(table([("key", text("value"))]));
    publish_with(&channel, &exchange, "orders.new", &properties, &sequence(20)).await;
    for (_, queue) in &queues {
        let worker = context.channel().await;
        let mut tags = Vec::new();
        for _ in 0..7 {
            tags.push(take(&worker, queue).await.delivery_tag);
        }
        ack(&worker, tags[4], true).await;
        ack(&worker, tags[6], false).await;
        counts(&worker, queue).await; // the broker has read the acks when it answers
    }
    restart(how).await;

    for (kind, queue) in &queues {
        must_be_kept(consume_all(&context, queue).await, kind, how);
    }
    // Exchange, queues and bindings still work together.
    let channel = context.confirming().await;
    publish_with(&channel, &exchange, "orders.again", &persistent(), &["again"]).await;
    for (_, queue) in &queues {
        assert_eq!(drain(&channel, queue).await, ["again"], "{queue} after a new publish");
    }
    assert!(!context.queue_exists(&gone).await, "the transient queue is gone");
    assert!(!context.exchange_exists(&gone).await, "the transient exchange is gone");
}

fn must_be_kept(back: Vec<Message>, kind: &str, how: &str) {
    let mut bodies = Vec::new();
    for message in back {
        assert_eq!(*message.properties.delivery_mode(), Some(2), "delivery mode");
        // A quorum queue adds x-delivery-count to what it delivers again.
        let headers = message.properties.headers().clone().unwrap();
        assert_eq!(headers.inner().get("key"), Some(&text("value")), "header");
        let body = message.text();
        if how == "kill" && SETTLED.contains(&body.as_str()) {
            // Nobody promised that an ack is on disk the moment it was sent. What comes back of those must say so.
            assert!(message.redelivered, "a settled message came back as if it were new");
            continue;
        }
        if how == "term" {
            assert_eq!(message.redelivered, body == UNACKED, "redelivered flag of {body}");
        }
        bodies.push(body);
    }
    if kind == "quorum" {
        // RabbitMQ before 4.0 puts the unacked one behind the others.
        bodies.sort_by_key(|body| sequence(20).iter().position(|sent| sent == body));
    }
    assert_eq!(bodies, kept(), "{kind} queue after the restart");
}

/// Everything in the queue. A quorum queue may still be without a leader and refuse its first consumers.
async fn consume_all(context: &Context, queue: &str) -> Vec<Message> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let inbox = loop {
        match Inbox::open(&context.channel().await, queue, BasicConsumeOptions::default()).await {
            Ok(inbox) => break inbox,
            Err(error) => assert!(Instant::now() < deadline, "no consumer 30 s after the restart: {error}"),
        }
    };
    wait_until("the kept messages", || kept().iter().all(|body| inbox.texts().contains(body))).await;
    wait_counts(&inbox.channel, queue, 0, 1).await;
    ack(&inbox.channel, 0, true).await;
    inbox.channel.close(200, "done".into()).await.unwrap();
    inbox.messages()
}
