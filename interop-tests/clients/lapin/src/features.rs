//! RabbitMQ's extensions of publishing and consuming: time to live, sender-selected distribution, direct reply-to.

use crate::kit::*;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldArray};
use lapin::{BasicProperties, Channel, ExchangeKind};
use std::time::Duration;

const REPLIES: &str = "amq.rabbitmq.reply-to";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("publish-then-count", publish_then_count),
        scenario("expiration", expiration),
        scenario("expiration-zero", expiration_zero),
        scenario("expiration-invalid", expiration_invalid),
        scenario("queue-times", queue_times),
        scenario("cc-bcc", copies),
        scenario("direct-reply-to", direct_reply_to),
        scenario("direct-reply-to-errors", direct_reply_to_errors),
    ]
}

fn lasting(ms: &str) -> BasicProperties {
    persistent().with_expiration(short(ms))
}

async fn declared(context: &Context, channel: &Channel, durable: bool) -> String {
    let queue = context.name("features");
    declare(channel, &queue, QueueDeclareOptions { durable, ..Default::default() }).await.unwrap();
    queue
}

async fn text_of(channel: &Channel, queue: &str) -> Option<String> {
    get(channel, queue).await.map(|message| outline(&message.delivery).0)
}

async fn publish_then_count(context: Context) {
    let channel = context.channel().await;
    let queue = declared(&context, &channel, true).await;
    for _ in 0..20 {
        publish_with(&channel, "", &queue, &persistent(), &["one", "two", "three"]).await;
        assert_eq!(text_of(&channel, &queue).await.as_deref(), Some("one"), "basic.get");
        assert_eq!(counts(&channel, &queue).await.0, 2, "passive declare");
        let purged = channel.queue_purge(short(&queue), QueuePurgeOptions::default()).await.unwrap();
        assert_eq!(purged, 2, "purge");
        assert_eq!(text_of(&channel, &queue).await, None, "after the purge");
    }
}

async fn expiration(context: Context) {
    for durable in [false, true] {
        let channel = context.confirming().await;
        let queue = declared(&context, &channel, durable).await;
        publish_with(&channel, "", &queue, &lasting("200"), &["short"]).await;
        publish_with(&channel, "", &queue, &persistent(), &["lasting"]).await;
        publish_with(&channel, "", &queue, &lasting("1"), &["behind"]).await;
        publish_with(&channel, "", &queue, &lasting("3600000"), &["later"]).await;
        wait_counts(&channel, &queue, 3, 0).await; // the head goes by itself, what stands behind a lasting one stays
        assert_eq!(text_of(&channel, &queue).await.as_deref(), Some("lasting"), "head");
        let next = get(&channel, &queue).await.unwrap();
        assert_eq!(outline(&next.delivery).0, "later", "next");
        assert_eq!(next.properties.expiration().as_ref().map(|e| e.as_str()), Some("3600000"), "property");
        // A message that expires while a consumer holds it does not come back.
        publish_with(&channel, "", &queue, &lasting("300"), &["held"]).await;
        publish_with(&channel, "", &queue, &persistent(), &["next"]).await;
        let held = take(&channel, &queue).await;
        tokio::time::sleep(Duration::from_millis(500)).await; // the time that passes is the subject
        channel.basic_reject(held.delivery_tag, BasicRejectOptions { requeue: true }).await.unwrap();
        assert_eq!(drain(&channel, &queue).await, ["next"], "after the requeue");
    }
}

async fn expiration_zero(context: Context) {
    let channel = context.confirming().await;
    let queue = declared(&context, &channel, true).await;
    publish_with(&channel, "", &queue, &lasting("0"), &["lost"]).await;
    wait_counts(&channel, &queue, 0, 0).await;
    let inbox = Inbox::auto_ack(&channel, &queue).await;
    publish_with(&channel, "", &queue, &lasting("0"), &["now"]).await;
    inbox.wait(1).await;
    assert_eq!(inbox.texts(), ["now"], "what a waiting consumer gets");
}

async fn queue_times(context: Context) {
    let times =
        |ttl: i32| table([("x-message-ttl", AMQPValue::LongInt(ttl)), ("x-expires", AMQPValue::LongInt(3_600_000))]);
    for durable in [false, true] {
        let options = QueueDeclareOptions { durable, ..Default::default() };
        let (channel, queue) = (context.confirming().await, context.name("times"));
        channel.queue_declare(short(&queue), options, times(300)).await.unwrap();
        publish_with(&channel, "", &queue, &persistent(), &["the queue's time"]).await;
        publish_with(&channel, "", &queue, &lasting("3600000"), &["longer"]).await;
        wait_counts(&channel, &queue, 0, 0).await;
        let idle = context.name("idle");
        let expires = table([("x-expires", AMQPValue::LongInt(300))]);
        channel.queue_declare(short(&idle), options, expires).await.unwrap();
        refused(
            channel.queue_declare(short(&queue), options, times(301)).await,
            406,
            &["inequivalent arg 'x-message-ttl'", "received '301' but current is '300'"],
        );
        tokio::time::sleep(Duration::from_secs(2)).await; // the time that passes is the subject
        assert!(!context.queue_exists(&idle).await, "an unused queue is still there");
    }
}

async fn expiration_invalid(context: Context) {
    for (value, why) in [
        ("", "no_integer"),
        ("ten", "no_integer"),
        ("-1", "{value_negative,-1}"),
        ("1.5", "{leftover_string,\".5\"}"),
        ("315360000001", "{value_too_large,315360000001}"),
    ] {
        let channel = context.channel().await;
        let witness = Inbox::witness(&channel).await;
        publish_with(&channel, "", "anything", &lasting(value), &[""]).await;
        witness.sees_refusal(406, &[&format!("invalid expiration '{value}': {why}")]).await;
    }
}

fn keys(keys: &[&str]) -> AMQPValue {
    let keys: Vec<AMQPValue> = keys.iter().map(|key| text(key)).collect();
    AMQPValue::FieldArray(FieldArray::from(keys))
}

async fn copies(context: Context) {
    let channel = context.confirming().await;
    let mut queues = Vec::new();
    for _ in 0..3 {
        queues.push(context.queue(&channel, "cc").await);
    }
    let [first, second, third] = &queues[..] else { unreachable!() };
    let headers = table([("CC", keys(&[second, first])), ("BCC", keys(&[third])), ("other", text("x"))]);
    let properties = BasicProperties::default().with_headers(headers);
    publish_with(&channel, "", first, &properties, &["all"]).await;
    for queue in &queues {
        let message = get(&channel, queue).await.unwrap();
        let seen: Vec<String> =
            message.properties.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(seen, ["CC", "other"], "headers");
        assert!(get(&channel, queue).await.is_none(), "each queue once");
    }
    let exchange = context.exchange(&channel, ExchangeKind::Topic).await;
    bind(&channel, first, &exchange, "a.*").await.unwrap();
    let properties = BasicProperties::default().with_headers(table([("CC", keys(&["a.b", "a.c"]))]));
    publish_with(&channel, &exchange, "no.match", &properties, &["topic"]).await;
    assert_eq!(drain(&channel, first).await, ["topic"], "by a copy's key");
    for name in ["CC", "BCC"] {
        let refusing = context.channel().await;
        let witness = Inbox::witness(&refusing).await;
        let properties = BasicProperties::default().with_headers(table([(name, text(second))]));
        publish_with(&refusing, "", first, &properties, &[""]).await;
        witness.sees_refusal(406, &[&format!("{{unacceptable_type_in_header,\"{name}\",longstr}}")]).await;
    }
}

async fn direct_reply_to(context: Context) {
    let (client, server) = (context.channel().await, context.channel().await);
    let queue = context.queue(&server, "rpc").await;
    let replies = Inbox::auto_ack(&client, REPLIES).await;
    let mut last = String::new();
    for number in 0..3_usize {
        let properties = BasicProperties::default()
            .with_reply_to(short(REPLIES))
            .with_correlation_id(short(&number.to_string()));
        publish_with(&client, "", &queue, &properties, &["question"]).await;
        wait_counts(&server, &queue, 1, 0).await;
        let question = get(&server, &queue).await.unwrap();
        last = question.properties.reply_to().as_ref().unwrap().to_string();
        assert!(last.starts_with("amq.rabbitmq.reply-to."), "{last}");
        assert_eq!(counts(&server, &last).await, (0, 1), "as the server sees it");
        let id = question.properties.correlation_id().clone().unwrap();
        let properties = BasicProperties::default().with_correlation_id(id);
        publish_with(&server, "", &last, &properties, &["answer"]).await;
        let message = replies.wait(number + 1).await.pop().unwrap();
        let id = message.properties.correlation_id().as_ref().unwrap().to_string();
        assert_eq!((message.text(), id, &message.routing_key), ("answer".into(), number.to_string(), &last));
    }
    replies.cancel().await;
    assert!(!context.queue_exists(&last).await, "the key ends with its consumer");
}

async fn direct_reply_to_errors(context: Context) {
    let channel = context.channel().await;
    let refusal = Inbox::open(&channel, REPLIES, BasicConsumeOptions::default()).await;
    refused(refusal.map(|_| ()), 406, &["reply consumer cannot acknowledge"]);
    let channel = context.channel().await;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    Inbox::open(&channel, REPLIES, options).await.unwrap();
    let refusal = Inbox::open(&channel, REPLIES, options).await;
    refused(refusal.map(|_| ()), 406, &["reply consumer already set"]);
    let channel = context.channel().await;
    let witness = Inbox::witness(&channel).await;
    let properties = BasicProperties::default().with_reply_to(short(REPLIES));
    publish_with(&channel, "", "anything", &properties, &[""]).await;
    witness.sees_refusal(406, &["fast reply consumer does not exist"]).await;
    let channel = context.channel().await;
    refused(channel.basic_get(short(REPLIES), BasicGetOptions::default()).await, 404, &["no queue"]);
}
