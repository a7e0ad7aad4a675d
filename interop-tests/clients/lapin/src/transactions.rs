//! Transactions: what a commit and a rollback do to publishes and acknowledgements.

use crate::kit::*;
use lapin::Channel;
use lapin::options::*;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("tx-commit", commit),
        scenario("tx-rollback", rollback),
        scenario("tx-large", large),
        scenario("tx-mandatory", mandatory),
        scenario("tx-errors", errors),
    ]
}

async fn durable(context: &Context, channel: &Channel) -> String {
    let queue = context.name("tx");
    declare(channel, &queue, QueueDeclareOptions { durable: true, ..Default::default() }).await.unwrap();
    queue
}

async fn commit(context: Context) {
    let (channel, observer) = (context.channel().await, context.channel().await);
    let queue = durable(&context, &channel).await;
    let other = context.queue(&channel, "tx").await;
    channel.tx_select().await.unwrap();
    publish_with(&channel, "", &queue, &persistent(), &["one", "two"]).await;
    publish(&channel, "", &other, &["three"]).await;
    let ready = async || (counts(&observer, &queue).await.0, counts(&observer, &other).await.0);
    assert_eq!(ready().await, (0, 0), "ready messages before the commit");
    channel.tx_commit().await.unwrap();
    assert_eq!(ready().await, (2, 1), "ready messages after the commit");
    // An ack counts when it is committed, together with what is published.
    let message = take(&channel, &queue).await;
    ack(&channel, message.delivery_tag, false).await;
    publish(&channel, "", &other, &["four"]).await;
    channel.tx_commit().await.unwrap();
    channel.close(200, "done".into()).await.unwrap();
    assert_eq!(drain(&observer, &queue).await, ["two"], "what was not acknowledged");
    assert_eq!(drain(&observer, &other).await, ["three", "four"], "what was published");
}

async fn rollback(context: Context) {
    let (channel, observer) = (context.channel().await, context.channel().await);
    let queue = durable(&context, &channel).await;
    publish(&channel, "", &queue, &["one", "two"]).await;
    wait_counts(&observer, &queue, 2, 0).await;
    channel.tx_select().await.unwrap();
    let (first, second) = (take(&channel, &queue).await, take(&channel, &queue).await);
    publish(&channel, "", &queue, &["never"]).await;
    ack(&channel, first.delivery_tag, false).await;
    channel.basic_reject(second.delivery_tag, BasicRejectOptions { requeue: true }).await.unwrap();
    channel.tx_rollback().await.unwrap();
    assert_eq!(counts(&observer, &queue).await.0, 0, "ready messages after the rollback");
    // After a rollback the deliveries are open again under their tags.
    ack(&channel, first.delivery_tag, false).await;
    channel.tx_commit().await.unwrap();
    let back = BasicNackOptions { requeue: true, ..Default::default() };
    channel.basic_nack(second.delivery_tag, back).await.unwrap();
    channel.close(200, "done".into()).await.unwrap(); // nothing of an open transaction happens
    wait_counts(&observer, &queue, 1, 0).await;
    let message = get(&observer, &queue).await.unwrap();
    assert_eq!(outline(&message.delivery), ("two".into(), true), "what comes back");
}

async fn large(context: Context) {
    let channel = context.channel().await;
    let queue = durable(&context, &channel).await;
    channel.tx_select().await.unwrap();
    let sizes = [1, 3 << 20, 700_000, 0, 900_000, 5];
    publish_with(&channel, "", &queue, &persistent(), &sizes.map(|size| vec![b'x'; size])).await;
    channel.tx_commit().await.unwrap();
    let lens: Vec<usize> = drain(&channel, &queue).await.iter().map(String::len).collect();
    assert_eq!(lens, sizes, "sizes in order");
    publish_with(&channel, "", &queue, &persistent(), &sequence(500)).await;
    channel.tx_commit().await.unwrap();
    assert_eq!(drain(&channel, &queue).await, sequence(500), "bodies in order");
}

async fn mandatory(_context: Context) {
    skip("lapin hands a returned message over with a confirm, and there is none in a transaction")
}

async fn errors(context: Context) {
    const NOT: &[&str] = &["channel is not transactional"];
    refused(context.channel().await.tx_commit().await, 406, NOT);
    refused(context.channel().await.tx_rollback().await, 406, NOT);
    let confirming = context.confirming().await;
    refused(confirming.tx_select().await, 406, &["cannot switch from confirm to tx mode"]);
    let channel = context.channel().await;
    channel.tx_select().await.unwrap();
    channel.tx_select().await.unwrap(); // again is fine
    let refusal = channel.confirm_select(ConfirmSelectOptions::default()).await;
    refused(refusal, 406, &["cannot switch from tx to confirm mode"]);
    // Known before the commit: an exchange that is not there, a tag that is not open.
    let channel = context.channel().await;
    channel.tx_select().await.unwrap();
    let witness = Inbox::witness(&channel).await;
    publish(&channel, &context.name("missing"), "key", &["lost"]).await;
    witness.sees_refusal(404, &["no exchange"]).await;
    let channel = context.channel().await;
    channel.tx_select().await.unwrap();
    let witness = Inbox::witness(&channel).await;
    ack(&channel, 7, false).await;
    witness.sees_refusal(406, &["unknown delivery tag 7"]).await;
}
