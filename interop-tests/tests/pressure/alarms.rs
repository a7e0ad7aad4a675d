//! Alarms as clients of both protocols see them.

use dassie_amqp::content::Properties;
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::{SendMessage, ShortNames};
use dassie_rocketmq::{HeaderCodec, RequestCode};

use crate::target::{Target, wait_for};

const NO_ALARM: &str = "disk_free_limit = 0\nmemory_high_watermark = 1.0\n";

fn send(target: &Target) -> Result<(), Error> {
    let mut producer = Remoting::connect(target.broker.ports.rocketmq, HeaderCodec::Json)?;
    let header = SendMessage {
        producer_group: "P",
        topic: "pressed",
        default_topic_queue_nums: 4,
        ..SendMessage::default()
    };
    producer.ask(RequestCode::SendMessageV2, &ShortNames(header), b"x", |answer| match answer.head.code {
        0 => Ok(()),
        _ => Err(refusal(answer)),
    })
}

fn refused_with(result: Result<(), Error>) -> (u16, String) {
    match result {
        Err(Error::Refused(code, text)) => (code, text),
        other => panic!("{other:?}"),
    }
}

/// A queue with one message in it.
fn filled(target: &Target) -> Client {
    let mut client = target.connect();
    client.declare_queue("q", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    client.publish("", "q", Properties::EMPTY, b"before");
    client.flush().expect("it reads");
    wait_for(&mut client, |heard| matches!(heard, Heard::Confirmed { tag: 1, .. }).then_some(()));
    client
}

fn alarm(name: &str, limits: &str, reason: &str) -> (u16, String) {
    let mut target = Target::start(name, NO_ALARM);
    let mut publisher = filled(&target);
    let mut other = target.connect();
    send(&target).expect("there is no alarm");
    target.reload(limits);
    // The first publish under the alarm is not taken.
    loop {
        publisher.publish("", "q", Properties::EMPTY, b"under the alarm");
        publisher.flush().expect("it reads");
        let blocked = wait_for(&mut publisher, |heard| match heard {
            Heard::Blocked(why) => Some(Some(why.to_owned())),
            Heard::Confirmed { .. } => Some(None),
            _ => None,
        });
        if let Some(why) = blocked {
            assert_eq!(why, reason);
            break;
        }
    }
    assert!(target.health().contains(&format!("ready, but {reason}")), "{}", target.health());
    // Who does not publish is served: a look, a get, an ack, a new queue and its end, a login.
    other.find_queue("q").expect("it answers");
    other.get("q");
    other.flush().expect("it reads");
    let tag = wait_for(&mut other, |heard| match heard {
        Heard::Got(message) => {
            assert_eq!(&*message.body, b"before");
            Some(message.tag)
        }
        _ => None,
    });
    other.ack(tag, false);
    other.declare_queue("another", Durability::Durable).expect("it declares");
    other.delete_queue("another").expect("it deletes");
    target.connect().close().expect("it closes");
    let refused = refused_with(send(&target));
    target.reload(NO_ALARM);
    let mut unblocked = false;
    wait_for(&mut publisher, |heard| {
        unblocked |= matches!(heard, Heard::Unblocked);
        matches!(heard, Heard::Confirmed { .. }).then_some(())
    });
    assert!(unblocked, "confirmed before connection.unblocked");
    send(&target).expect("the alarm ended");
    target.assert_well();
    refused
}

#[test]
fn low_on_memory_blocks_publishers_and_nobody_else() {
    let (code, text) = alarm("memory", "disk_free_limit = 0\nmemory_high_watermark = 0.0\n", "low on memory");
    assert_eq!(code, 2, "{text}");
    assert!(text.starts_with("[PCBUSY_CLEAN_QUEUE]broker busy"), "{text}");
}

#[test]
fn low_on_disk_blocks_publishers_and_nobody_else() {
    let limits = "disk_free_limit = \"1048576GiB\"\nmemory_high_watermark = 1.0\n";
    let (code, text) = alarm("disk", limits, "low on disk");
    assert_eq!(code, 14, "{text}");
    assert!(text.contains("the broker's disk is full"), "{text}");
}
