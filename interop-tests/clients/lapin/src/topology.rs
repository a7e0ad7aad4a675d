//! Declaring, comparing, refusing and removing queues and exchanges.

use crate::kit::*;
use lapin::ExchangeKind;
use lapin::options::*;

const PASSIVE: QueueDeclareOptions = QueueDeclareOptions {
    passive: true,
    durable: false,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};
const EXCHANGE_PASSIVE: ExchangeDeclareOptions = ExchangeDeclareOptions {
    passive: true,
    durable: false,
    auto_delete: false,
    internal: false,
    nowait: false,
};

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..Default::default() }
}

fn exclusive() -> QueueDeclareOptions {
    QueueDeclareOptions { exclusive: true, ..Default::default() }
}

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("queue-declare", queue_declare),
        scenario("queue-declare-mismatch", queue_declare_mismatch),
        scenario("queue-types", queue_types),
        scenario("not-found", not_found),
        scenario("exclusive-queue", exclusive_queue),
        scenario("server-named-queue", server_named_queue),
        scenario("auto-delete-queue", auto_delete_queue),
        scenario("auto-delete-exchange", auto_delete_exchange),
        scenario("reserved-names", reserved_names),
        scenario("default-exchange", default_exchange),
        scenario("exchange-declare", exchange_declare),
        scenario("internal-exchange", internal_exchange),
    ]
}

async fn queue_declare(context: Context) {
    let channel = context.confirming().await;
    let queue = context.name("declare");
    let shown =
        |answer: lapin::Queue| (answer.name().to_string(), answer.message_count(), answer.consumer_count());
    assert_eq!(
        shown(declare(&channel, &queue, durable()).await.unwrap()),
        (queue.clone(), 0, 0),
        "a new queue"
    );
    publish(&channel, "", &queue, &["one", "two"]).await;
    assert_eq!(
        shown(declare(&channel, &queue, durable()).await.unwrap()),
        (queue.clone(), 2, 0),
        "declared again"
    );
    Inbox::consume(&channel, &queue).await.wait(2).await;
    assert_eq!(
        shown(declare(&channel, &queue, PASSIVE).await.unwrap()),
        (queue.clone(), 0, 1),
        "held ones do not count"
    );
}

async fn queue_declare_mismatch(context: Context) {
    let queue = context.name("mismatch");
    declare(&context.channel().await, &queue, durable()).await.unwrap();
    for (argument, options) in [
        ("durable", QueueDeclareOptions::default()),
        ("auto_delete", QueueDeclareOptions { auto_delete: true, ..durable() }),
    ] {
        let text = format!("inequivalent arg '{argument}' for queue '{queue}' in vhost '/'");
        refused(
            declare(&context.channel().await, &queue, options).await,
            406,
            &["PRECONDITION_FAILED", &text],
        );
    }
    let options = QueueDeclareOptions { exclusive: true, ..durable() };
    refused(declare(&context.channel().await, &queue, options).await, 405, &["RESOURCE_LOCKED", &queue]);
    assert!(context.queue_exists(&queue).await, "the queue is untouched");
}

async fn queue_types(context: Context) {
    let of_type = |kind: &str| table([("x-queue-type", text(kind))]);
    for (kind, other) in [("classic", "quorum"), ("quorum", "classic")] {
        let (channel, queue) = (context.confirming().await, context.name(kind));
        for _ in 0..2 {
            channel.queue_declare(short(&queue), durable(), of_type(kind)).await.unwrap();
        }
        publish_with(&channel, "", &queue, &persistent(), &["one", "two"]).await;
        let first = take(&channel, &queue).await.delivery_tag;
        channel.basic_nack(first, BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
        wait_counts(&channel, &queue, 2, 0).await;
        // A quorum queue may put it behind the others (RabbitMQ before 4.0 does).
        let mut both =
            [outline(&get(&channel, &queue).await.unwrap()), outline(&get(&channel, &queue).await.unwrap())];
        both.sort();
        assert_eq!(
            both,
            [("one".into(), true), ("two".into(), false)],
            "messages of a {kind} queue after a requeue"
        );
        refused(
            channel.queue_declare(short(&queue), durable(), of_type(other)).await,
            406,
            &["inequivalent arg 'x-queue-type'", &format!("'{queue}'")],
        );
    }
    let nonsense = context
        .channel()
        .await
        .queue_declare(short(&context.name("nonsense")), durable(), of_type("nonsense"))
        .await;
    refused(nonsense, 406, &["PRECONDITION_FAILED", "x-queue-type"]);
    let transient = context
        .channel()
        .await
        .queue_declare(short(&context.name("transient")), QueueDeclareOptions::default(), of_type("quorum"))
        .await;
    refused(transient, 406, &["PRECONDITION_FAILED", "non-durable"]);
}

async fn not_found(context: Context) {
    let missing = context.name("missing");
    let present = context.queue(&context.channel().await, "present").await;
    let text = format!("no queue '{missing}' in vhost '/'");
    let no_queue = ["NOT_FOUND", &text];
    refused(declare(&context.channel().await, &missing, PASSIVE).await, 404, &no_queue);
    refused(Inbox::open(&context.channel().await, &missing, Default::default()).await, 404, &no_queue);
    refused(context.channel().await.basic_get(short(&missing), Default::default()).await, 404, &no_queue);
    refused(context.channel().await.queue_purge(short(&missing), Default::default()).await, 404, &no_queue);
    refused(bind(&context.channel().await, &missing, "amq.direct", "key").await, 404, &no_queue);
    let text = format!("no exchange '{missing}' in vhost '/'");
    let no_exchange = ["NOT_FOUND", &text];
    refused(
        declare_exchange(&context.channel().await, &missing, ExchangeKind::Direct, EXCHANGE_PASSIVE).await,
        404,
        &no_exchange,
    );
    refused(bind(&context.channel().await, &present, &missing, "key").await, 404, &no_exchange);
    refused(bind_exchange(&context.channel().await, "amq.fanout", &missing, "key").await, 404, &no_exchange);
    let channel = context.channel().await;
    let witness = Inbox::witness(&channel).await;
    publish(&channel, &missing, "key", &["lost"]).await;
    witness.sees_refusal(404, &no_exchange).await;
}

async fn exclusive_queue(context: Context) {
    let queue = context.name("exclusive");
    let connection = context.connect().await;
    let owner = connection.create_channel().await.unwrap();
    declare(&owner, &queue, exclusive()).await.unwrap();
    publish(&owner, "", &queue, &["mine"]).await;
    let text = format!("exclusive access to locked queue '{queue}'");
    let locked = ["RESOURCE_LOCKED", &text];
    for options in [PASSIVE, QueueDeclareOptions::default(), exclusive()] {
        refused(declare(&context.channel().await, &queue, options).await, 405, &locked);
    }
    refused(Inbox::open(&context.channel().await, &queue, Default::default()).await, 405, &locked);
    refused(context.channel().await.basic_get(short(&queue), Default::default()).await, 405, &locked);
    refused(bind(&context.channel().await, &queue, "amq.direct", "key").await, 405, &locked);
    refused(context.channel().await.queue_purge(short(&queue), Default::default()).await, 405, &locked);
    refused(context.channel().await.queue_delete(short(&queue), Default::default()).await, 405, &locked);
    let sibling = connection.create_channel().await.unwrap();
    wait_counts(&sibling, &queue, 1, 0).await;
    assert_eq!(drain(&sibling, &queue).await, ["mine"], "queue, by another channel of its owner");
    connection.close(200, "bye".into()).await.unwrap();
    context.wait_gone(&queue).await;
    let successor = declare(&context.channel().await, &queue, exclusive()).await.unwrap();
    assert_eq!(successor.message_count(), 0, "messages of its successor");
}

async fn server_named_queue(context: Context) {
    let channel = context.confirming().await;
    let names = [private_queue(&channel).await, private_queue(&channel).await, private_queue(&channel).await];
    assert!(names.iter().all(|name| name.starts_with("amq.gen-")), "names {names:?} begin with amq.gen-");
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "different names");
    let (last, key) = (&names[2], format!("{}.key", names[2]));
    bind(&channel, "", "amq.direct", &key).await.unwrap();
    publish(&channel, "amq.direct", &key, &["to the last"]).await;
    assert_eq!(outline(&get(&channel, "").await.unwrap()).0, "to the last", "message read by the empty name");
    // Empty queue name and empty key together: the queue's own name is the key.
    bind(&channel, "", "amq.direct", "").await.unwrap();
    publish(&channel, "amq.direct", last, &["by its name"]).await;
    assert_eq!(drain(&channel, last).await, ["by its name"], "message by the queue's name as key");
    refused(bind(&context.channel().await, "", "amq.direct", "key").await, 404, &["NOT_FOUND"]);
}

async fn auto_delete_queue(context: Context) {
    let (channel, queue) = (context.confirming().await, context.name("auto-delete"));
    declare(&channel, &queue, QueueDeclareOptions { auto_delete: true, ..Default::default() }).await.unwrap();
    publish(&channel, "", &queue, &["one"]).await;
    assert_eq!(drain(&channel, &queue).await, ["one"], "basic.get before the first consumer");
    assert!(context.queue_exists(&queue).await, "the queue stays before its first consumer");
    let (first, second) = (Inbox::consume(&channel, &queue).await, Inbox::consume(&channel, &queue).await);
    first.cancel().await;
    assert!(context.queue_exists(&queue).await, "the queue stays while one consumer is left");
    second.cancel().await;
    context.wait_gone(&queue).await;
}

async fn auto_delete_exchange(context: Context) {
    let (channel, source) = (context.channel().await, context.name("source"));
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    declare_exchange(&channel, &source, ExchangeKind::Fanout, options).await.unwrap();
    let target = context.exchange(&channel, ExchangeKind::Fanout).await;
    let queue = context.queue(&channel, "queue").await;
    bind_exchange(&channel, &target, &source, "").await.unwrap();
    bind(&channel, &queue, &source, "").await.unwrap();
    unbind(&channel, &queue, &source, "").await.unwrap();
    assert!(context.exchange_exists(&source).await, "the exchange stays while something is bound to it");
    unbind_exchange(&channel, &target, &source, "").await.unwrap();
    assert!(!context.exchange_exists(&source).await, "the exchange goes with its last binding");
    assert!(context.exchange_exists(&target).await, "the other exchange stays");
}

async fn reserved_names(context: Context) {
    let reserved = ["ACCESS_REFUSED", "amq.", "reserved prefix"];
    refused(
        declare(&context.channel().await, "amq.interop", QueueDeclareOptions::default()).await,
        403,
        &reserved,
    );
    let options = ExchangeDeclareOptions::default();
    refused(
        declare_exchange(&context.channel().await, "amq.interop", ExchangeKind::Direct, options).await,
        403,
        &reserved,
    );
    refused(declare(&context.channel().await, "amq.interop", PASSIVE).await, 404, &["NOT_FOUND"]);
    let channel = context.channel().await;
    for (name, kind) in [
        ("amq.direct", ExchangeKind::Direct),
        ("amq.fanout", ExchangeKind::Fanout),
        ("amq.topic", ExchangeKind::Topic),
        ("amq.headers", ExchangeKind::Headers),
        ("amq.match", ExchangeKind::Headers),
    ] {
        declare_exchange(&channel, name, kind.clone(), EXCHANGE_PASSIVE).await.unwrap();
        declare_exchange(
            &channel,
            name,
            kind,
            ExchangeDeclareOptions { durable: true, ..Default::default() },
        )
        .await
        .unwrap();
    }
    refused(
        channel.exchange_delete(short("amq.direct"), Default::default()).await,
        403,
        &["ACCESS_REFUSED", "amq.direct"],
    );
}

async fn default_exchange(context: Context) {
    let channel = context.confirming().await;
    let queue = context.queue(&channel, "default").await;
    let text = ["ACCESS_REFUSED", "operation not permitted on the default exchange"];
    refused(bind(&context.channel().await, &queue, "", "key").await, 403, &text);
    refused(unbind(&context.channel().await, &queue, "", &queue).await, 403, &text);
    refused(bind_exchange(&context.channel().await, "amq.fanout", "", "key").await, 403, &text);
    refused(bind_exchange(&context.channel().await, "", "amq.fanout", "key").await, 403, &text);
    refused(context.channel().await.exchange_delete(short(""), Default::default()).await, 403, &text);
    publish(&channel, "", &queue, &["still routed"]).await;
    assert_eq!(drain(&channel, &queue).await, ["still routed"], "queue after the refusals");
}

async fn exchange_declare(context: Context) {
    let (channel, exchange) = (context.channel().await, context.name("exchange"));
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for options in [durable, durable, EXCHANGE_PASSIVE] {
        declare_exchange(&channel, &exchange, ExchangeKind::Direct, options).await.unwrap();
    }
    for (argument, kind, options) in [
        ("type", ExchangeKind::Topic, durable),
        ("durable", ExchangeKind::Direct, ExchangeDeclareOptions::default()),
        ("auto_delete", ExchangeKind::Direct, ExchangeDeclareOptions { auto_delete: true, ..durable }),
        ("internal", ExchangeKind::Direct, ExchangeDeclareOptions { internal: true, ..durable }),
    ] {
        let text = format!("inequivalent arg '{argument}' for exchange '{exchange}' in vhost '/'");
        refused(
            declare_exchange(&context.channel().await, &exchange, kind, options).await,
            406,
            &["PRECONDITION_FAILED", &text],
        );
    }
    let queue = context.queue(&channel, "queue").await;
    bind(&channel, &queue, &exchange, "key").await.unwrap();
    let if_unused = ExchangeDeleteOptions { if_unused: true, nowait: false };
    let text = format!("exchange '{exchange}' in vhost '/' in use");
    refused(
        context.channel().await.exchange_delete(short(&exchange), if_unused).await,
        406,
        &["PRECONDITION_FAILED", &text],
    );
    unbind(&channel, &queue, &exchange, "key").await.unwrap();
    channel.exchange_delete(short(&exchange), if_unused).await.unwrap();
    assert!(!context.exchange_exists(&exchange).await, "the exchange is gone");
    channel.exchange_delete(short(&exchange), Default::default()).await.unwrap();
}

async fn internal_exchange(context: Context) {
    let (channel, internal) = (context.confirming().await, context.name("internal"));
    let front = context.exchange(&channel, ExchangeKind::Fanout).await;
    let options = ExchangeDeclareOptions { internal: true, ..Default::default() };
    declare_exchange(&channel, &internal, ExchangeKind::Fanout, options).await.unwrap();
    let queue = context.queue(&channel, "queue").await;
    bind_exchange(&channel, &internal, &front, "").await.unwrap();
    bind(&channel, &queue, &internal, "").await.unwrap();
    publish(&channel, &front, "", &["through"]).await;
    let refusing = context.channel().await;
    let witness = Inbox::witness(&refusing).await;
    publish(&refusing, &internal, "", &["directly"]).await;
    witness.sees_refusal(403, &["ACCESS_REFUSED", &format!("internal exchange '{internal}'")]).await;
    assert_eq!(drain(&channel, &queue).await, ["through"], "queue behind the internal exchange");
}
