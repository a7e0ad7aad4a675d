//! What a publisher learns of its messages, and that they arrive as they were sent.

use crate::kit::*;
use lapin::options::*;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("mandatory-return", mandatory_return),
        scenario("confirm-single", confirm_single),
        scenario("confirm-batch", |context| confirm_many(context, 100)),
        scenario("confirm-in-flight", |context| confirm_many(context, 1000)),
        scenario("immediate", immediate),
        scenario("bodies", bodies),
        scenario("properties", properties),
        scenario("property-expiration", property_expiration),
        scenario("header-types", header_types),
    ]
}

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..Default::default() }
}

async fn mandatory_return(context: Context) {
    let channel = context.confirming().await;
    let (missing, queue) = (context.name("missing"), context.queue(&channel, "present").await);
    let publish = async |key: &str, mandatory: bool, body: &str| {
        let options = BasicPublishOptions { mandatory, ..Default::default() };
        channel
            .basic_publish(short(""), short(key), options, body.as_bytes(), persistent())
            .await
            .unwrap()
            .await
            .unwrap()
    };
    // lapin hands over a return with the confirm that follows it.
    let Confirmation::Ack(Some(returned)) = publish(&missing, true, "come back").await else {
        panic!("no return before the ack")
    };
    assert_eq!((returned.reply_code, returned.reply_text.as_str()), (312, "NO_ROUTE"), "basic.return");
    assert_eq!(
        (returned.exchange.as_str(), returned.routing_key.as_str()),
        ("", missing.as_str()),
        "where it was to go"
    );
    assert_eq!(
        (returned.data.as_slice(), *returned.properties.delivery_mode()),
        (b"come back".as_slice(), Some(2)),
        "returned message"
    );
    assert_eq!(publish(&queue, true, "routed").await, Confirmation::Ack(None), "a routed mandatory message");
    assert_eq!(
        publish(&missing, false, "dropped").await,
        Confirmation::Ack(None),
        "an unroutable one, not mandatory"
    );
    assert_eq!(counts(&channel, &queue).await.0, 1, "ready messages");
}

async fn confirm_single(context: Context) {
    let (channel, queue) = (context.confirming().await, context.name("confirm"));
    declare(&channel, &queue, durable()).await.unwrap();
    publish_with(&channel, "", &queue, &persistent(), &["safe"]).await;
    assert_eq!(counts(&channel, &queue).await.0, 1, "ready messages after the confirm");
    // Unroutable and not mandatory: dropped, and confirmed.
    publish_with(&channel, "", &context.name("missing"), &persistent(), &["dropped"]).await;
}

async fn confirm_many(context: Context, count: usize) {
    let (channel, queue) = (context.confirming().await, context.name("confirm"));
    declare(&channel, &queue, durable()).await.unwrap();
    let mut confirms = Vec::new();
    for body in sequence(count) {
        let options = BasicPublishOptions::default();
        confirms.push(
            channel
                .basic_publish(short(""), short(&queue), options, body.as_bytes(), persistent())
                .await
                .unwrap(),
        );
    }
    for confirm in confirms {
        assert_eq!(confirm.await.unwrap(), Confirmation::Ack(None));
    }
    let inbox = Inbox::auto_ack(&channel, &queue).await;
    inbox.wait(count).await;
    assert_eq!(inbox.texts(), sequence(count), "bodies in the queue");
}

async fn immediate(context: Context) {
    let connection = context.connect().await;
    let channel = connection.create_channel().await.unwrap();
    let queue = context.queue(&channel, "immediate").await;
    let witness = Inbox::witness(&channel).await;
    let options = BasicPublishOptions { immediate: true, ..Default::default() };
    channel
        .basic_publish(short(""), short(&queue), options, b"now", BasicProperties::default())
        .await
        .unwrap();
    witness.sees_refusal(540, &["NOT_IMPLEMENTED", "immediate=true"]).await;
    wait_until("the connection to be closed", || !connection.status().connected()).await;
}

async fn bodies(context: Context) {
    let (connection, queue) = (context.connect().await, context.name("bodies"));
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    declare(&channel, &queue, durable()).await.unwrap();
    let frame = connection.configuration().frame_max() as usize - 8; // the largest body frame
    for size in [0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20] {
        // Not random, but without a period that a mixed-up frame could hide in.
        let body: Vec<u8> =
            (0..size as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        publish_with(&channel, "", &queue, &persistent(), &[&body, &body]).await;
        assert!(
            get(&channel, &queue).await.unwrap().data == body,
            "a body of {size} bytes came back different"
        );
        let inbox = Inbox::auto_ack(&channel, &queue).await;
        assert!(inbox.wait(1).await[0].body == body, "a body of {size} bytes was delivered different");
        inbox.cancel().await;
    }
}

async fn properties(context: Context) {
    let channel = context.confirming().await;
    let queue = context.queue(&channel, "properties").await;
    let none = BasicProperties::default;
    // One at a time as well: an absent property must stay absent.
    let all = [
        none()
            .with_content_type("text/plain".into())
            .with_content_encoding("utf-8".into())
            .with_headers(table([("key", text("value"))]))
            .with_delivery_mode(2)
            .with_priority(7)
            .with_correlation_id("correlation".into())
            .with_reply_to("reply.to".into())
            .with_message_id("message-ü".into())
            .with_timestamp(1_700_000_000)
            .with_type("kind".into())
            .with_user_id("guest".into())
            .with_app_id("interop".into())
            .with_cluster_id("cluster".into()),
        none(),
        none().with_content_type("text/plain".into()),
        none().with_content_encoding("utf-8".into()),
        none().with_headers(FieldTable::default()),
        none().with_delivery_mode(1),
        none().with_priority(0),
        none().with_correlation_id("".into()),
        none().with_reply_to("reply.to".into()),
        none().with_message_id("message-ü".into()),
        none().with_timestamp(0),
        none().with_type("kind".into()),
        none().with_user_id("guest".into()),
        none().with_app_id("interop".into()),
        none().with_cluster_id("cluster".into()),
    ];
    for sent in all {
        same_properties(&channel, &queue, sent).await;
    }
}

async fn same_properties(channel: &Channel, queue: &str, sent: BasicProperties) {
    publish_with(channel, "", queue, &sent, &[""]).await;
    assert_eq!(get(channel, queue).await.unwrap().properties, sent, "properties");
}

async fn property_expiration(context: Context) {
    let channel = context.confirming().await;
    let queue = context.queue(&channel, "expiration").await;
    same_properties(&channel, &queue, persistent().with_expiration("600000".into())).await;
}

async fn header_types(context: Context) {
    let channel = context.confirming().await;
    let queue = context.queue(&channel, "headers").await;
    let simple = table([
        ("text", text("ünïcode")),
        ("empty", text("")),
        ("long text", text(&"a".repeat(20_000))),
        ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("true", AMQPValue::Boolean(true)),
        ("false", AMQPValue::Boolean(false)),
        ("i8", AMQPValue::ShortShortInt(i8::MIN)),
        ("u8", AMQPValue::ShortShortUInt(u8::MAX)),
        ("i16", AMQPValue::ShortInt(i16::MIN)),
        ("u16", AMQPValue::ShortUInt(u16::MAX)),
        ("i32", AMQPValue::LongInt(i32::MIN)),
        ("u32", AMQPValue::LongUInt(u32::MAX)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("float", AMQPValue::Float(1.5)),
        ("double", AMQPValue::Double(-1e300)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 12345 })),
        ("timestamp", AMQPValue::Timestamp(1_709_210_000)),
        ("void", AMQPValue::Void),
    ]);
    let array: FieldArray = vec![
        AMQPValue::FieldTable(simple.clone()),
        AMQPValue::LongInt(1),
        text("two"),
        AMQPValue::Void,
        AMQPValue::FieldArray(FieldArray::default()),
        AMQPValue::FieldArray(vec![AMQPValue::LongLongInt(3)].into()),
    ]
    .into();
    let mut headers = simple.clone();
    headers.insert(
        "table".into(),
        AMQPValue::FieldTable(table([
            ("inner", AMQPValue::FieldTable(simple)),
            ("empty", AMQPValue::FieldTable(FieldTable::default())),
        ])),
    );
    headers.insert("array".into(), AMQPValue::FieldArray(array));
    publish_with(&channel, "", &queue, &BasicProperties::default().with_headers(headers.clone()), &[""])
        .await;
    let got = get(&channel, &queue).await.unwrap().properties.headers().clone().unwrap();
    for (key, value) in headers.inner() {
        assert_eq!(got.inner().get(key.as_str()), Some(value), "header {key}");
    }
    assert_eq!(got, headers, "headers");
}
