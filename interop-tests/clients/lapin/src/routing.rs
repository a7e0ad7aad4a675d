//! The four exchange types and bindings between exchanges.

use crate::kit::*;
use lapin::options::QueueBindOptions;
use lapin::types::AMQPValue;
use lapin::{BasicProperties, ExchangeKind};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("exchange-direct", direct),
        scenario("exchange-fanout", fanout),
        scenario("exchange-topic", topic),
        scenario("exchange-headers", headers),
        scenario("exchange-to-exchange", exchange_to_exchange),
        scenario("unbind", unbinding),
    ]
}

async fn direct(context: Context) {
    let channel = context.confirming().await;
    let exchange = context.exchange(&channel, ExchangeKind::Direct).await;
    let (first, second) = (context.queue(&channel, "first").await, context.queue(&channel, "second").await);
    for (queue, key) in [(&first, "both"), (&second, "both"), (&second, "one")] {
        bind(&channel, queue, &exchange, key).await.unwrap();
    }
    for key in ["both", "one", "none", "BOTH", ""] {
        publish(&channel, &exchange, key, &[key]).await;
    }
    assert_eq!(drain(&channel, &first).await, ["both"], "first queue");
    assert_eq!(drain(&channel, &second).await, ["both", "one"], "second queue");
}

async fn fanout(context: Context) {
    let channel = context.confirming().await;
    let exchange = context.exchange(&channel, ExchangeKind::Fanout).await;
    let mut queues = Vec::new();
    for _ in 0..3 {
        let queue = context.queue(&channel, "bound").await;
        bind(&channel, &queue, &exchange, "ignored").await.unwrap();
        queues.push(queue);
    }
    publish(&channel, &exchange, "ignored", &["1"]).await;
    publish(&channel, &exchange, "", &["2"]).await;
    for queue in queues {
        assert_eq!(drain(&channel, &queue).await, ["1", "2"], "{queue}");
    }
}

/// The table shared with the other clients: lines `key: word word`, `""` for an empty word.
fn topic_table() -> Vec<(String, Vec<String>)> {
    let word = |text: &str| if text == "\"\"" { String::new() } else { text.to_string() };
    let file = std::path::Path::new(&std::env::var("INTEROP_TABLES").unwrap()).join("topic");
    let lines = std::fs::read_to_string(file).unwrap();
    let rows = lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| row.split_once(':').unwrap())
        .map(|(key, words)| (word(key.trim()), words.split_whitespace().map(word).collect()))
        .collect()
}

async fn topic(context: Context) {
    let channel = context.confirming().await;
    let exchange = context.exchange(&channel, ExchangeKind::Topic).await;
    let mut rows = topic_table();
    let (_, patterns) = rows.remove(0);
    let mut queues = Vec::new();
    for pattern in &patterns {
        let queue = context.queue(&channel, "pattern").await;
        bind(&channel, &queue, &exchange, pattern).await.unwrap();
        queues.push(queue);
    }
    for (key, _) in &rows {
        publish(&channel, &exchange, key, &[key]).await;
    }
    for (pattern, queue) in patterns.iter().zip(&queues) {
        let expected: Vec<_> = rows
            .iter()
            .filter(|(_, matching)| matching.contains(pattern))
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(drain(&channel, queue).await, expected, "keys that match '{pattern}'");
    }
}

async fn headers(context: Context) {
    let channel = context.confirming().await;
    let exchange = context.exchange(&channel, ExchangeKind::Headers).await;
    let (red, five) = (|| ("colour", text("red")), || ("size", AMQPValue::LongInt(5)));
    let bindings = [
        ("x-match all", table([("x-match", text("all")), red(), five()]), vec!["both"]),
        ("no x-match means all", table([red(), five()]), vec!["both"]),
        (
            "x-match any",
            table([("x-match", text("any")), red(), five()]),
            vec!["both", "colour", "wrong size"],
        ),
        // void: any value will do
        (
            "present",
            table([("x-match", text("all")), ("colour", AMQPValue::Void)]),
            vec!["both", "colour", "wrong size", "blue"],
        ),
    ];
    let mut expectations = Vec::new();
    for (what, arguments, bodies) in bindings {
        let queue = context.queue(&channel, "headers").await;
        channel
            .queue_bind(short(&queue), short(&exchange), short(""), QueueBindOptions::default(), arguments)
            .await
            .unwrap();
        expectations.push((what, queue, bodies));
    }
    let messages = [
        ("both", table([red(), five(), ("other", AMQPValue::Boolean(true))])),
        ("colour", table([red()])),
        ("wrong size", table([red(), ("size", AMQPValue::LongInt(6))])),
        ("text size", table([("size", text("5"))])),
        ("blue", table([("colour", text("blue"))])),
        ("nothing", table([])),
    ];
    for (body, headers) in messages {
        publish_with(
            &channel,
            &exchange,
            "ignored",
            &BasicProperties::default().with_headers(headers),
            &[body],
        )
        .await;
    }
    publish(&channel, &exchange, "ignored", &["no headers at all"]).await;
    for (what, queue, bodies) in expectations {
        assert_eq!(drain(&channel, &queue).await, bodies, "{what}");
    }
}

async fn exchange_to_exchange(context: Context) {
    let channel = context.confirming().await;
    let source = context.exchange(&channel, ExchangeKind::Topic).await;
    let middle = context.exchange(&channel, ExchangeKind::Direct).await;
    let queue = context.queue(&channel, "queue").await;
    bind_exchange(&channel, &middle, &source, "orders.#").await.unwrap();
    bind(&channel, &queue, &middle, "orders.new").await.unwrap();
    for key in ["orders.new", "orders.old", "bills.new"] {
        publish(&channel, &source, key, &[key]).await;
    }
    assert_eq!(drain(&channel, &queue).await, ["orders.new"], "the key must pass both exchanges");
    // A second way to the same queue and a cycle back: still one copy.
    bind(&channel, &queue, &source, "#").await.unwrap();
    bind_exchange(&channel, &source, &middle, "orders.new").await.unwrap();
    publish(&channel, &source, "orders.new", &["once"]).await;
    assert_eq!(drain(&channel, &queue).await, ["once"], "two ways and a cycle");
    unbind(&channel, &queue, &source, "#").await.unwrap();
    unbind_exchange(&channel, &middle, &source, "orders.#").await.unwrap();
    publish(&channel, &source, "orders.new", &["unrouted"]).await;
    publish(&channel, &middle, "orders.new", &["direct"]).await;
    assert_eq!(drain(&channel, &queue).await, ["direct"], "after the unbind");
}

async fn unbinding(context: Context) {
    let channel = context.confirming().await;
    let exchange = context.exchange(&channel, ExchangeKind::Direct).await;
    let queue = context.queue(&channel, "queue").await;
    for key in ["stays", "goes", "goes"] {
        bind(&channel, &queue, &exchange, key).await.unwrap();
    }
    publish(&channel, &exchange, "goes", &["before"]).await;
    unbind(&channel, &queue, &exchange, "goes").await.unwrap();
    publish(&channel, &exchange, "goes", &["after"]).await;
    publish(&channel, &exchange, "stays", &["stays"]).await;
    assert_eq!(drain(&channel, &queue).await, ["before", "stays"], "queue");
    unbind(&channel, &queue, &exchange, "never bound").await.unwrap();
}
