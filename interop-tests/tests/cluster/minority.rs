//! A leader that the others do not answer: its clients of both worlds are told, get nothing, and go on when it is over.
//!
//! Owns: nothing. Promises: processes that were stopped go on. Does not know: how a node finds out.

use std::time::{Duration, Instant};

use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::{SendMessage, ShortNames};
use dassie_rocketmq::{HeaderCodec, RequestCode, ResponseCode};
use rustix::process::{Pid, Signal, kill_process};

use crate::three::{PATIENCE, Three, persistent, publish};

/// The lease of a leader is over by then, and what was on its way has come.
const LEASE_IS_OVER: Duration = Duration::from_millis(2_500);
/// How long what must not come is waited for.
const NOTHING_FOR: Duration = Duration::from_secs(2);

/// The other nodes stand still while this lives.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn others(three: &Three, leader: u64) -> Self {
        let others = three.nodes.iter().filter(|(node, _)| **node != leader);
        let ids = others.filter_map(|(_, broker)| Pid::from_raw(i32::try_from(broker.id()?).ok()?)).collect();
        let stopped = Self(ids);
        stopped.signal(Signal::STOP);
        stopped
    }

    fn signal(&self, signal: Signal) {
        self.0.iter().for_each(|id| kill_process(*id, signal).expect("it runs"));
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

/// Everything that this client hears within `time`, in words.
fn hear(client: &mut Client, time: Duration, until: impl Fn(&[String]) -> bool) -> Vec<String> {
    let (begin, mut heard) = (Instant::now(), Vec::new());
    while begin.elapsed() < time && !until(&heard) {
        client.receive(Duration::from_millis(50)).expect("the connection lives");
        while let Some(one) = client.hear().expect("it follows the protocol") {
            heard.push(match one {
                Heard::Delivered(message) => format!("delivered {:?} {}", message.body, message.redelivered),
                other => format!("{other:?}"),
            });
        }
    }
    heard
}

fn send(client: &mut Remoting) -> Result<(), Error> {
    let header = SendMessage {
        producer_group: "p",
        topic: "topic",
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        ..SendMessage::default()
    };
    client.ask(RequestCode::SendMessageV2, &ShortNames(header), b"body", |answer| {
        match answer.head.response_code() {
            Some(ResponseCode::Success) => Ok(()),
            _ => Err(refusal(answer)),
        }
    })
}

#[test]
fn clients_of_a_leader_without_a_majority_are_told_get_nothing_and_go_on_afterwards() {
    let mut three = Three::started("minority");
    let leader = three.any_leader();
    let ports = three.nodes[&leader].ports;
    let connect = || Client::connect(ports.amqp).expect("it accepts");
    let (mut publisher, mut consumer, mut late) = (connect(), connect(), connect());
    let mut rocket = Remoting::connect(ports.rocketmq, HeaderCodec::Json).expect("it accepts");
    publisher.declare_queue("q", Durability::Durable).expect("it declares");
    publisher.confirm().expect("it confirms");
    publish(&mut publisher, "q", 0..3);
    send(&mut rocket).expect("it is stored");
    consumer.consume("q", Some(1)).expect("it consumes");
    consumer.flush().expect("it reads");
    let first = hear(&mut consumer, PATIENCE, |heard| !heard.is_empty());
    assert!(first[0].starts_with("delivered"), "{first:?}");

    let stopped = Stopped::others(&three, leader);
    publisher.publish("", "q", persistent(), &3_u64.to_be_bytes());
    publisher.flush().expect("it reads");
    // What is told within the lease was true; from here on nothing is.
    let early = hear(&mut publisher, LEASE_IS_OVER, |_| false);
    assert!(early.is_empty(), "confirmed by one of three: {early:?}");
    consumer.ack(1, false);
    consumer.flush().expect("it reads");
    late.get("q");
    late.flush().expect("it reads");
    // It publishes nothing more, and hears all the same why there is no confirm.
    let told = hear(&mut publisher, PATIENCE, |heard| !heard.is_empty());
    assert!(told[0].contains("Blocked") && told[0].contains("majority"), "{told:?}");
    match send(&mut rocket) {
        Err(Error::Refused(code, _)) => assert_eq!(i32::from(code), ResponseCode::SystemBusy.code()),
        other => panic!("{other:?}"),
    }
    let nothing = hear(&mut consumer, NOTHING_FOR, |_| false);
    assert!(nothing.is_empty(), "delivered without a majority: {nothing:?}");
    let nothing = hear(&mut late, Duration::from_millis(100), |_| false);
    assert!(nothing.is_empty(), "answered without a majority: {nothing:?}");

    drop(stopped);
    let again = hear(&mut publisher, PATIENCE, |heard| heard.len() >= 2);
    assert!(again.iter().any(|one| one == "Unblocked"), "{again:?}");
    let confirms = again.iter().filter(|one| one.starts_with("Confirmed { tag: 4")).count();
    assert_eq!(confirms, 1, "{again:?}");
    let next = hear(&mut consumer, PATIENCE, |heard| !heard.is_empty());
    assert!(next[0].starts_with("delivered") && next[0].ends_with("false"), "{next:?}");
    let got = hear(&mut late, PATIENCE, |heard| !heard.is_empty());
    assert!(got[0].starts_with("Got"), "{got:?}");
    let begin = Instant::now();
    while let Err(error) = send(&mut rocket) {
        assert!(begin.elapsed() < PATIENCE, "{error}");
    }
    let quiet = hear(&mut publisher, Duration::from_millis(500), |_| false);
    assert!(quiet.is_empty(), "confirmed once: {quiet:?}");
}
