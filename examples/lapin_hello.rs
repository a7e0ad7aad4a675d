//! A confirm means that the message is on the disk and in its queue: publish, wait for the confirm, consume, acknowledge.
//!
//!     cargo run -p dassie-examples --bin lapin-hello [amqp://guest:guest@127.0.0.1:5672]

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

const PERSISTENT: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "amqp://guest:guest@127.0.0.1:5672".into());
    let connection = Connection::connect(&address, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("hello".into(), durable, FieldTable::default()).await?;

    let confirm = channel
        .basic_publish(
            "".into(),
            "hello".into(),
            BasicPublishOptions::default(),
            b"Hello World!",
            BasicProperties::default().with_delivery_mode(PERSISTENT),
        )
        .await? // sent
        .await?; // on the disk: kill -9 the broker here, and the message is still delivered
    println!("confirmed: {}", confirm.is_ack());

    let message = channel
        .basic_get("hello".into(), BasicGetOptions::default())
        .await?
        .ok_or("the queue is empty: somebody else consumed the message")?;
    println!("got: {}", String::from_utf8_lossy(&message.delivery.data));
    message.delivery.acker.ack(BasicAckOptions::default()).await?;
    connection.close(200, "bye".into()).await?;
    Ok(())
}
