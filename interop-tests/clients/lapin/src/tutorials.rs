//! The six first programs of every newcomer.

use crate::kit::*;
use lapin::options::*;
use lapin::{BasicProperties, Channel, ExchangeKind};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("tutorial-hello", hello),
        scenario("tutorial-work-queues", work_queues),
        scenario("tutorial-publish-subscribe", publish_subscribe),
        scenario("tutorial-routing", routing),
        scenario("tutorial-topics", topics),
        scenario("tutorial-rpc", rpc),
    ]
}

async fn hello(context: Context) {
    let (sender, receiver) = (context.channel().await, context.channel().await);
    let queue = context.queue(&sender, "hello").await;
    // Both sides declare, as neither knows who is first.
    declare(&receiver, &queue, QueueDeclareOptions::default()).await.unwrap();
    publish(&sender, "", &queue, &["Hello, rock!"]).await;
    let message = Inbox::auto_ack(&receiver, &queue).await.wait(1).await.remove(0);
    assert_eq!(message.outline(), ("Hello, rock!".into(), false));
    assert_eq!(
        (message.exchange.as_str(), &message.routing_key),
        ("", &queue),
        "exchange and key of the delivery"
    );
    assert!(get(&sender, &queue).await.is_none(), "the queue is empty after the delivery");
}

async fn work_queues(context: Context) {
    let sender = context.confirming().await;
    let queue = context.name("tasks");
    declare(&sender, &queue, QueueDeclareOptions { durable: true, ..Default::default() }).await.unwrap();
    let (slow_connection, quick_connection) = (context.connect().await, context.connect().await);
    let mut inboxes = Vec::new();
    for connection in [&slow_connection, &quick_connection] {
        let worker = connection.create_channel().await.unwrap();
        worker.basic_qos(1, BasicQosOptions::default()).await.unwrap();
        inboxes.push(Inbox::consume(&worker, &queue).await);
    }
    let (slow, quick) = (&inboxes[0], &inboxes[1]);
    publish_with(&sender, "", &queue, &persistent(), &sequence(6)).await;
    wait_until("one task for each worker", || slow.len() > 0 && quick.len() > 0).await;
    for done in 0..5 {
        let task = quick.wait(done + 1).await.remove(done);
        assert_eq!(*task.properties.delivery_mode(), Some(2), "delivery mode");
        ack(&quick.channel, task.tag, false).await;
    }
    // The slow worker never finished its first and so got no second. Now it dies: its task goes to the other one.
    let abandoned = slow.wait(1).await.remove(0);
    slow_connection.close(200, "bye".into()).await.unwrap();
    let moved = quick.wait(6).await.remove(5);
    assert_eq!(moved.outline(), (abandoned.text(), true), "the abandoned task");
    ack(&quick.channel, moved.tag, false).await;
    let mut done = quick.texts();
    done.sort();
    assert_eq!(done, sequence(6), "tasks done");
}

async fn subscribe(channel: &Channel, exchange: &str, keys: &[&str]) -> String {
    let queue = private_queue(channel).await;
    for key in keys {
        bind(channel, &queue, exchange, key).await.unwrap();
    }
    queue
}

async fn publish_subscribe(context: Context) {
    let channel = context.confirming().await;
    let logs = context.exchange(&channel, ExchangeKind::Fanout).await;
    let early = [subscribe(&channel, &logs, &[""]).await, subscribe(&channel, &logs, &[""]).await];
    publish(&channel, &logs, "", &["one", "two"]).await;
    let late = subscribe(&channel, &logs, &[""]).await;
    publish(&channel, &logs, "", &["three"]).await;
    for queue in early {
        assert_eq!(drain(&channel, &queue).await, ["one", "two", "three"], "log of an early subscriber");
    }
    assert_eq!(drain(&channel, &late).await, ["three"], "log of a late subscriber");
}

async fn routing(context: Context) {
    let channel = context.channel().await;
    let exchange = context.exchange(&channel, ExchangeKind::Direct).await;
    let most =
        Inbox::auto_ack(&channel, &subscribe(&channel, &exchange, &["info", "warning", "error"]).await).await;
    let errors = Inbox::auto_ack(&channel, &subscribe(&channel, &exchange, &["error"]).await).await;
    for severity in ["info", "debug", "error", "warning"] {
        publish(&channel, &exchange, severity, &[severity]).await;
    }
    let keys: Vec<_> = most.wait(3).await.into_iter().map(|message| message.routing_key).collect();
    assert_eq!(keys, ["info", "error", "warning"]);
    errors.wait(1).await;
    assert_eq!(errors.texts(), ["error"]);
}

async fn topics(context: Context) {
    let channel = context.channel().await;
    let exchange = context.exchange(&channel, ExchangeKind::Topic).await;
    let keys = ["kern.critical", "kern.info", "cron.critical", "cron.info.more"];
    let expected: [(&[&str], &[&str]); 4] = [
        (&["#"], &keys),
        (&["kern.*"], &keys[..2]),
        (&["*.critical"], &["kern.critical", "cron.critical"]),
        (&["kern.*", "*.critical"], &keys[..3]),
    ];
    let mut inboxes = Vec::new();
    for (patterns, bodies) in expected {
        let queue = subscribe(&channel, &exchange, patterns).await;
        inboxes.push((Inbox::auto_ack(&channel, &queue).await, bodies));
    }
    for key in keys {
        publish(&channel, &exchange, key, &[key]).await;
    }
    for (inbox, bodies) in inboxes {
        inbox.wait(bodies.len()).await;
        assert_eq!(inbox.texts(), bodies);
    }
}

async fn rpc(context: Context) {
    let (server, client) = (context.channel().await, context.channel().await);
    let requests = context.queue(&server, "rpc").await;
    server.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let work = Inbox::consume(&server, &requests).await;
    let replies_to = private_queue(&client).await;
    let replies = Inbox::auto_ack(&client, &replies_to).await;
    for number in ["3", "30"] {
        let correlation = short(&format!("call-{number}"));
        let properties =
            BasicProperties::default().with_reply_to(short(&replies_to)).with_correlation_id(correlation);
        publish_with(&client, "", &requests, &properties, &[number]).await;
    }
    for call in 0..2 {
        let request = work.wait(call + 1).await.remove(call);
        let answer = 2 * request.text().parse::<u32>().unwrap();
        let properties = BasicProperties::default()
            .with_correlation_id(request.properties.correlation_id().clone().unwrap());
        let reply_to = request.properties.reply_to().clone().unwrap();
        publish_with(&server, "", reply_to.as_str(), &properties, &[answer.to_string()]).await;
        ack(&server, request.tag, false).await;
    }
    let mut answers: Vec<_> = replies
        .wait(2)
        .await
        .iter()
        .map(|reply| (reply.properties.correlation_id().clone().unwrap().to_string(), reply.text()))
        .collect();
    answers.sort();
    assert_eq!(
        answers,
        [("call-3".to_string(), "6".to_string()), ("call-30".into(), "60".into())],
        "answers by correlation id"
    );
}
