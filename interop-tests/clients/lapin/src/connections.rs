//! Handshake, refusals at login, heartbeats, channels and what is left of a connection that was cut.

use crate::kit::*;
use lapin::options::*;
use std::time::{Duration, Instant};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("handshake", handshake),
        scenario("wrong-password", wrong_password),
        scenario("unknown-vhost", unknown_vhost),
        scenario("heartbeat-idle", heartbeat_idle),
        scenario("channel-lifecycle", channel_lifecycle),
        scenario("channel-error-isolation", channel_error_isolation),
        scenario("delivery-after-lost-connection", delivery_after_lost_connection),
        scenario("connection-blocked", connection_blocked),
    ]
}

async fn connection_blocked(context: Context) {
    needs_restart();
    let publisher = context.connect().await;
    let channel = publisher.create_channel().await.unwrap();
    let queue = context.queue(&channel, "queue").await;
    publish(&channel, "", &queue, &["before"]).await;
    let other = context.channel().await;
    restart("alarm").await;
    assert!(!publisher.status().blocked(), "a connection that did not publish under the alarm was blocked");
    publish(&channel, "", &queue, &["under the alarm"]).await;
    // lapin does not tell the reason.
    wait_until("connection.blocked", || publisher.status().blocked()).await;
    assert_eq!(drain(&other, &queue).await, ["before"], "what can be got under the alarm");
    restart("calm").await;
    wait_until("connection.unblocked", || !publisher.status().blocked()).await;
    let last = take(&channel, &queue).await;
    assert_eq!(last.delivery.data, b"under the alarm", "the queue after the alarm");
}

async fn handshake(context: Context) {
    // lapin keeps the server's properties to itself: what is left to see are the limits.
    let opened =
        open(&address(), "guest:guest", "%2f", "channel_max=100&frame_max=8192&heartbeat=7").await.unwrap();
    let connection = context.keep(opened);
    let limits = connection.configuration();
    assert_eq!(
        (limits.channel_max(), limits.frame_max(), limits.heartbeat()),
        (100, 8192, 7),
        "negotiated limits"
    );
}

async fn wrong_password(_context: Context) {
    refused(open(&address(), "guest:wrong", "%2f", "").await, 403, &["ACCESS_REFUSED", "Login was refused"]);
}

async fn unknown_vhost(_context: Context) {
    refused(
        open(&address(), "guest:guest", "no-such-vhost", "").await,
        530,
        &["NOT_ALLOWED", "no-such-vhost"],
    );
}

async fn heartbeat_idle(context: Context) {
    let connection = context.keep(open(&address(), "guest:guest", "%2f", "heartbeat=1").await.unwrap());
    assert_eq!(connection.configuration().heartbeat(), 1, "negotiated heartbeat");
    // The time is the subject here. Either side gives up after two silent intervals.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert!(connection.status().connected(), "an idle connection was closed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let channel = connection.create_channel().await.unwrap();
    let queue = private_queue(&channel).await;
    publish(&channel, "", &queue, &["still here"]).await;
    assert_eq!(drain(&channel, &queue).await, ["still here"], "queue after the idle time");
}

async fn channel_lifecycle(context: Context) {
    // As many channels as the connection may have: a new one must take the number of a closed one.
    let connection = context.keep(open(&address(), "guest:guest", "%2f", "channel_max=50").await.unwrap());
    let mut channels = Vec::new();
    for _ in 0..50 {
        channels.push(connection.create_channel().await.unwrap());
    }
    let mut numbers: Vec<_> = channels.iter().map(|channel| channel.id()).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 50, "different channel numbers");
    let queue = private_queue(&channels[0]).await;
    for (number, channel) in channels.iter().enumerate() {
        publish(channel, "", &queue, &[format!("{number:02}")]).await;
    }
    for channel in &channels[1..] {
        channel.close(200, "done".into()).await.unwrap();
    }
    // Every closed channel's publishes were processed before its close was answered.
    let mut bodies = drain(&channels[0], &queue).await;
    bodies.sort();
    assert_eq!(
        bodies,
        (0..50).map(|number| format!("{number:02}")).collect::<Vec<_>>(),
        "one message of each channel"
    );
    let again = connection.create_channel().await.unwrap();
    assert!(numbers.contains(&again.id()), "a used number");
    publish(&again, "", &queue, &["again"]).await;
    again.close(200, "done".into()).await.unwrap();
    assert_eq!(drain(&channels[0], &queue).await, ["again"], "message by a reused channel number");
}

async fn channel_error_isolation(context: Context) {
    let connection = context.connect().await;
    let (healthy, failing) =
        (connection.create_channel().await.unwrap(), connection.create_channel().await.unwrap());
    let queue = context.queue(&healthy, "isolation").await;
    Inbox::consume(&failing, &queue).await;
    assert_eq!(counts(&healthy, &queue).await, (0, 1), "counts before the error");
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    refused(declare(&failing, &context.name("missing"), passive).await, 404, &[]);
    assert!(
        !failing.status().connected() && healthy.status().connected() && connection.status().connected(),
        "only the failing channel is closed"
    );
    wait_counts(&healthy, &queue, 0, 0).await; // the closed channel's consumer goes
    publish(&healthy, "", &queue, &["fine"]).await;
    wait_counts(&healthy, &queue, 1, 0).await;
    let fresh = connection.create_channel().await.unwrap();
    assert_eq!(drain(&fresh, &queue).await, ["fine"], "message read on a new channel");
}

async fn delivery_after_lost_connection(context: Context) {
    let watcher = context.confirming().await;
    let queue = context.queue(&watcher, "lost").await;
    publish(&watcher, "", &queue, &sequence(5)).await;
    let proxy = Proxy::start().await;
    let doomed = context
        .keep(open(&proxy.address, "guest:guest", "%2f", "").await.unwrap())
        .create_channel()
        .await
        .unwrap();
    doomed.basic_qos(3, BasicQosOptions::default()).await.unwrap();
    let held = Inbox::consume(&doomed, &queue).await;
    ack(&doomed, held.wait(3).await[0].tag, false).await;
    held.wait(4).await; // the ack has arrived: a fourth message came for it
    proxy.cut();
    wait_counts(&watcher, &queue, 4, 0).await;
    let back = Inbox::auto_ack(&watcher, &queue).await;
    back.wait(4).await;
    let expected = [("m1", true), ("m2", true), ("m3", true), ("m4", false)];
    assert_eq!(back.outlines(), expected.map(|(body, flag)| (body.to_string(), flag)), "what came back");
}
