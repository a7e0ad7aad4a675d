//! Getting, acknowledging, refusing, recovering, prefetch, purge and the end of consumers.

use crate::kit::*;
use lapin::Channel;
use lapin::options::*;
use lapin::types::FieldTable;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("get", getting),
        scenario("ack-multiple", ack_multiple),
        scenario("nack-requeue", nack_requeue),
        scenario("reject-discard", reject_discard),
        scenario("unknown-delivery-tag", unknown_delivery_tag),
        scenario("recover", recover),
        scenario("qos-per-consumer", qos_per_consumer),
        scenario("qos-global", qos_global),
        scenario("purge-and-delete", purge_and_delete),
        scenario("cancel", cancel),
        scenario("cancel-notify", cancel_notify),
        scenario("consumer-exclusive", consumer_exclusive),
        scenario("consumer-duplicate-tag", consumer_duplicate_tag),
    ]
}

/// A new queue with m0, m1, …
async fn filled(context: &Context, channel: &Channel, count: usize) -> String {
    let queue = context.queue(channel, "queue").await;
    publish(channel, "", &queue, &sequence(count)).await;
    queue
}

/// Delivery tags of `count` messages taken without an ack.
async fn hold(channel: &Channel, queue: &str, count: usize) -> Vec<u64> {
    let mut tags = Vec::new();
    for _ in 0..count {
        tags.push(take(channel, queue).await.delivery_tag);
    }
    tags
}

fn outlines<const N: usize>(expected: [(&str, bool); N]) -> Vec<(String, bool)> {
    expected.map(|(body, redelivered)| (body.to_string(), redelivered)).into()
}

async fn rest(channel: &Channel, queue: &str) -> Vec<(String, bool)> {
    let mut rest = Vec::new();
    while let Some(message) = get(channel, queue).await {
        rest.push(outline(&message));
    }
    rest
}

async fn getting(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 3).await;
    let channel = context.channel().await;
    let first = take(&channel, &queue).await;
    assert_eq!((outline(&first), first.message_count), (("m0".into(), false), 2), "get-ok");
    assert_eq!(
        (first.exchange.as_str(), first.routing_key.as_str()),
        ("", queue.as_str()),
        "exchange and key"
    );
    assert_eq!(get(&channel, &queue).await.unwrap().message_count, 1, "messages left");
    channel.close(200, "done".into()).await.unwrap(); // the first was not acknowledged, the second needed no ack
    wait_counts(&watcher, &queue, 2, 0).await;
    assert_eq!(
        rest(&watcher, &queue).await,
        outlines([("m0", true), ("m2", false)]),
        "after the channel closed"
    );
}

async fn ack_multiple(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 10).await;
    let consumer = context.channel().await;
    let tags: Vec<u64> =
        Inbox::consume(&consumer, &queue).await.wait(10).await.iter().map(|message| message.tag).collect();
    assert_eq!(tags, (1..=10).collect::<Vec<_>>(), "delivery tags");
    ack(&consumer, tags[1], false).await;
    ack(&consumer, tags[4], true).await;
    consumer.close(200, "done".into()).await.unwrap();
    wait_counts(&watcher, &queue, 5, 0).await;
    let second = context.channel().await;
    let back = Inbox::consume(&second, &queue).await;
    back.wait(5).await;
    let expected = outlines([("m5", true), ("m6", true), ("m7", true), ("m8", true), ("m9", true)]);
    assert_eq!(back.outlines(), expected, "what the multiple ack left");
    ack(&second, 0, true).await;
    second.close(200, "done".into()).await.unwrap();
    assert_eq!(counts(&watcher, &queue).await.0, 0, "ready messages after an ack of all");
}

async fn nack_requeue(context: Context) {
    let channel = context.confirming().await;
    let queue = filled(&context, &channel, 6).await;
    let tags = hold(&channel, &queue, 4).await;
    ack(&channel, tags[0], false).await;
    channel.basic_nack(tags[2], BasicNackOptions { multiple: true, requeue: true }).await.unwrap();
    channel.basic_reject(tags[3], BasicRejectOptions { requeue: true }).await.unwrap();
    wait_counts(&channel, &queue, 5, 0).await;
    let expected = outlines([("m1", true), ("m2", true), ("m3", true), ("m4", false), ("m5", false)]);
    assert_eq!(rest(&channel, &queue).await, expected, "order and flags");
}

async fn reject_discard(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 6).await;
    let channel = context.channel().await;
    let tags = hold(&channel, &queue, 5).await;
    channel.basic_reject(tags[1], BasicRejectOptions { requeue: false }).await.unwrap();
    channel.basic_nack(tags[0], BasicNackOptions { multiple: false, requeue: false }).await.unwrap();
    channel.basic_nack(tags[3], BasicNackOptions { multiple: true, requeue: false }).await.unwrap();
    channel.close(200, "done".into()).await.unwrap();
    wait_counts(&watcher, &queue, 2, 0).await;
    assert_eq!(
        rest(&watcher, &queue).await,
        outlines([("m4", true), ("m5", false)]),
        "what was not discarded"
    );
}

async fn unknown_delivery_tag(context: Context) {
    for answer in ["ack", "nack", "reject"] {
        let channel = context.channel().await;
        let witness = Inbox::witness(&channel).await;
        match answer {
            "ack" => channel.basic_ack(77, BasicAckOptions::default()).await.unwrap(),
            "nack" => channel.basic_nack(77, BasicNackOptions::default()).await.unwrap(),
            _ => channel.basic_reject(77, BasicRejectOptions::default()).await.unwrap(),
        }
        witness.sees_refusal(406, &["PRECONDITION_FAILED", "unknown delivery tag 77"]).await;
    }
    let connection = context.connect().await;
    let channel = connection.create_channel().await.unwrap();
    let queue = context.queue(&channel, "queue").await;
    publish(&channel, "", &queue, &["once"]).await;
    wait_counts(&channel, &queue, 1, 0).await;
    let witness = Inbox::witness(&channel).await;
    let tag = hold(&channel, &queue, 1).await[0];
    ack(&channel, tag, false).await;
    ack(&channel, tag, false).await;
    witness.sees_refusal(406, &["PRECONDITION_FAILED", &format!("unknown delivery tag {tag}")]).await;
    assert!(connection.status().connected(), "the connection stays open");
}

async fn recover(context: Context) {
    let channel = context.confirming().await;
    let inbox = Inbox::consume(&channel, &filled(&context, &channel, 4).await).await;
    ack(&channel, inbox.wait(4).await[1].tag, false).await;
    channel.basic_recover(BasicRecoverOptions { requeue: true }).await.unwrap();
    inbox.wait(7).await;
    assert_eq!(inbox.outlines()[4..], outlines([("m0", true), ("m2", true), ("m3", true)]), "recovered");
}

async fn qos_per_consumer(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 20).await;
    let channel = context.channel().await;
    channel.basic_qos(3, BasicQosOptions::default()).await.unwrap();
    let three = Inbox::consume(&channel, &queue).await;
    channel.basic_qos(5, BasicQosOptions::default()).await.unwrap();
    let five = Inbox::consume(&channel, &queue).await;
    wait_until("3 + 5 messages", || three.len() + five.len() >= 8).await;
    assert_eq!((three.len(), five.len(), counts(&watcher, &queue).await.0), (3, 5, 12), "held, held, ready");
    ack(&channel, three.messages()[0].tag, false).await;
    wait_until("one more for one ack", || three.len() == 4).await;
    assert_eq!(
        (five.len(), counts(&watcher, &queue).await.0),
        (5, 11),
        "the other consumer's and the ready ones"
    );
    ack(&channel, 0, true).await;
    wait_until("a full window each", || three.len() + five.len() == 17).await;
}

async fn qos_global(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 10).await;
    let channel = context.channel().await;
    channel.basic_qos(4, BasicQosOptions { global: true }).await.unwrap();
    let (first, second) = (Inbox::consume(&channel, &queue).await, Inbox::consume(&channel, &queue).await);
    let received = || first.len() + second.len();
    wait_until("4 messages", || received() >= 4).await;
    assert_eq!((counts(&watcher, &queue).await.0, received()), (6, 4), "ready and held");
    let mut tags: Vec<u64> =
        first.messages().iter().chain(&second.messages()).map(|message| message.tag).collect();
    tags.sort();
    ack(&channel, tags[1], true).await;
    wait_until("two more for two acks", || received() >= 6).await;
    assert_eq!((counts(&watcher, &queue).await.0, received()), (4, 6), "ready and received");
}

async fn purge_and_delete(context: Context) {
    let channel = context.confirming().await;
    let queue = filled(&context, &channel, 5).await;
    hold(&channel, &queue, 1).await;
    for (count, what) in [(4, "purged: ready ones only"), (0, "purged again")] {
        assert_eq!(
            channel.queue_purge(short(&queue), QueuePurgeOptions::default()).await.unwrap(),
            count,
            "{what}"
        );
    }
    publish(&channel, "", &queue, &["one", "two"]).await;
    let if_empty = QueueDeleteOptions { if_empty: true, ..Default::default() };
    let text = format!("queue '{queue}' in vhost '/' not empty");
    refused(
        context.channel().await.queue_delete(short(&queue), if_empty).await,
        406,
        &["PRECONDITION_FAILED", &text],
    );
    let inbox = Inbox::auto_ack(&channel, &queue).await;
    inbox.wait(2).await;
    let if_unused = QueueDeleteOptions { if_unused: true, ..Default::default() };
    let text = format!("queue '{queue}' in vhost '/' in use");
    refused(
        context.channel().await.queue_delete(short(&queue), if_unused).await,
        406,
        &["PRECONDITION_FAILED", &text],
    );
    inbox.cancel().await;
    publish(&channel, "", &queue, &["three"]).await;
    assert_eq!(
        channel.queue_delete(short(&queue), if_unused).await.unwrap(),
        1,
        "messages deleted with the queue"
    );
    assert_eq!(
        channel.queue_delete(short(&queue), Default::default()).await.unwrap(),
        0,
        "deleting a missing queue"
    );
    assert!(!context.queue_exists(&queue).await, "the queue is gone");
}

async fn cancel(context: Context) {
    let watcher = context.confirming().await;
    let queue = filled(&context, &watcher, 2).await;
    let channel = context.channel().await;
    let inbox = Inbox::consume(&channel, &queue).await;
    inbox.wait(2).await;
    inbox.cancel().await;
    publish(&watcher, "", &queue, &["later"]).await;
    assert_eq!(counts(&watcher, &queue).await, (1, 0), "the later one waits");
    assert_eq!(inbox.len(), 2, "deliveries after the cancel");
    ack(&channel, inbox.messages()[0].tag, false).await;
    channel.close(200, "done".into()).await.unwrap();
    wait_counts(&watcher, &queue, 2, 0).await;
    assert_eq!(
        rest(&watcher, &queue).await,
        outlines([("m1", true), ("later", false)]),
        "the unacked one came back when the channel closed"
    );
}

async fn cancel_notify(context: Context) {
    let watcher = context.channel().await;
    let queue = context.queue(&watcher, "queue").await;
    let inbox = Inbox::consume(&context.channel().await, &queue).await;
    watcher.queue_delete(short(&queue), QueueDeleteOptions::default()).await.unwrap();
    wait_until("basic.cancel", || inbox.ended()).await;
    assert!(inbox.channel.status().connected(), "the channel stays open");
}

async fn consumer_exclusive(context: Context) {
    let channel = context.channel().await;
    let queue = context.queue(&channel, "queue").await;
    let exclusive = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let text = format!("queue '{queue}' in vhost '/' in exclusive use");
    let in_use = ["ACCESS_REFUSED", &text];
    let only = Inbox::open(&channel, &queue, exclusive).await.unwrap();
    for options in [BasicConsumeOptions::default(), exclusive] {
        refused(Inbox::open(&context.channel().await, &queue, options).await, 403, &in_use);
    }
    only.cancel().await;
    Inbox::consume(&channel, &queue).await;
    refused(Inbox::open(&context.channel().await, &queue, exclusive).await, 403, &in_use);
}

async fn consumer_duplicate_tag(context: Context) {
    let connection = context.connect().await;
    let channel = connection.create_channel().await.unwrap();
    let queue = context.queue(&channel, "queue").await;
    let consume = async || {
        channel.basic_consume(short(&queue), short("same"), Default::default(), FieldTable::default()).await
    };
    let _first = consume().await.unwrap();
    refused(consume().await, 530, &["NOT_ALLOWED", "attempt to reuse consumer tag 'same'"]);
    wait_until("the connection to be closed", || !connection.status().connected()).await;
}
