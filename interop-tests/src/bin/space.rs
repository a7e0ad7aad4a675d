//! Writes more than the log may keep, behind two messages that must not go, and looks at the disk:
//! `space --broker PATH --limit MIB --write MIB --segment MIB --dir DIRECTORY`.
//!
//! At the head stand one AMQP message that is delivered and not acknowledged, and one RocketMQ message with the longest delay. Then
//! a topic is filled. The log must come back below 1.2 times its limit while both stand; the broker is killed
//! and started with short delays, and both must arrive, unchanged. One line of JSON says what was measured.
//!
//! Owns: the traffic and the verdict. Exit status: 0 passed, 1 a promise is broken, 2 no verdict. Does not know: how the broker does it.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use dassie_amqp::content::{Properties, PropertyList};
use dassie_interop::harm::Broker;
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::{PullMessage, SendMessage, pull_flag};
use dassie_rocketmq::message::{PropertiesText, StoredMessage};
use dassie_rocketmq::{HeaderCodec, RequestCode, ResponseCode};

const USAGE: &str = "usage: space --broker PATH --limit MIB --write MIB --segment MIB --dir DIRECTORY";
const MIB: u64 = 1 << 20;
/// Bytes of a message that fills.
const FILLING: usize = 64 << 10;
/// Sends on their way at once.
const WINDOW: usize = 32;
/// How long the space may take to come back once nothing is written any more.
const BACK_WITHIN: Duration = Duration::from_secs(120);
const QUEUE: &str = "kept";
const LATE: &str = "late";
const DELAYS: &str = "rocketmq.delay_levels=1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";
const SHORT_DELAYS: &str = "rocketmq.delay_levels=1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s";

/// What is to be done, sizes in MiB.
struct Task {
    broker: PathBuf,
    directory: PathBuf,
    limit: u64,
    write: u64,
    segment: u64,
}

impl Task {
    fn read(mut line: impl Iterator<Item = String>) -> Option<Self> {
        let (mut broker, mut directory, mut sizes) = (None, None, [None; 3]);
        while let Some(word) = line.next() {
            let value = line.next()?;
            match word.as_str() {
                "--broker" => broker = Some(value.into()),
                "--dir" => directory = Some(value.into()),
                "--limit" => sizes[0] = value.parse().ok(),
                "--write" => sizes[1] = value.parse().ok(),
                "--segment" => sizes[2] = value.parse().ok(),
                _ => return None,
            }
        }
        let [limit, write, segment] = sizes;
        Some(Self { broker: broker?, directory: directory?, limit: limit?, write: write?, segment: segment? })
    }
}

fn main() -> ExitCode {
    let Some(task) = Task::read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no verdict: {error}");
            ExitCode::from(2)
        }
    }
}

fn text(error: &Error) -> String {
    format!("{error:?}")
}

fn run(task: &Task) -> Result<bool, String> {
    fs::create_dir_all(&task.directory).map_err(|error| error.to_string())?;
    let mut broker = Broker::new(&task.broker, &task.directory, &Dice::new(u64::from(std::process::id())))?;
    broker.settings = vec![
        format!("storage.segment_size={}MiB", task.segment),
        format!("storage.max_bytes={}MiB", task.limit),
        DELAYS.to_owned(),
    ];
    broker.start()?;
    let log = broker.data.join("log");
    let (kept, late) = (body(1, 5_000), body(2, 300_000));
    let mut amqp = Client::connect(broker.ports.amqp).map_err(|e| text(&e))?;
    let mut rocketmq = Remoting::connect(broker.ports.rocketmq, HeaderCodec::Json).map_err(|e| text(&e))?;
    publish(&mut amqp, &kept).map_err(|e| text(&e))?;
    if consumed(&mut amqp).map_err(|e| text(&e))? != kept {
        return Err("the message did not even arrive the first time".to_owned());
    }
    let mut delay = PropertiesText::default();
    delay.push("DELAY", "18").map_err(|error| format!("{error:?}"))?;
    send(&mut rocketmq, LATE, &late, Some(delay.properties().text())).map_err(|e| text(&e))?;
    let begin = Instant::now();
    let peak = fill(&mut rocketmq, task.write * MIB, &log).map_err(|e| text(&e))?;
    let filled = begin.elapsed();
    let bound = task.limit * MIB * 12 / 10;
    let end = Instant::now() + BACK_WITHIN;
    let mut left = disk_use(&log)?;
    while left > bound && Instant::now() < end {
        broker.alive()?;
        thread::sleep(Duration::from_millis(100));
        left = disk_use(&log)?;
    }
    broker.kill();
    *broker.settings.last_mut().expect("three of them") = SHORT_DELAYS.to_owned();
    broker.start()?;
    let after = disk_use(&log)?;
    let mut amqp = Client::connect(broker.ports.amqp).map_err(|e| text(&e))?;
    let mut rocketmq = Remoting::connect(broker.ports.rocketmq, HeaderCodec::Json).map_err(|e| text(&e))?;
    let kept_is_there = consumed(&mut amqp).map_err(|e| text(&e))? == kept;
    let late_is_there = pulled(&mut rocketmq).map_err(|e| text(&e))? == late;
    broker.kill();
    let first = log.join(format!("{:020}", 0)).exists();
    let passed = left <= bound && kept_is_there && late_is_there && !first;
    println!(
        "{{\"written_mib\":{},\"limit_mib\":{},\"peak_mib\":{},\"left_mib\":{},\"after_restart_mib\":{},\
         \"first_segment_is_there\":{first},\"unacked_is_intact\":{kept_is_there},\"delayed_is_intact\":{late_is_there},\
         \"write_seconds\":{:.1},\"passed\":{passed}}}",
        task.write,
        task.limit,
        peak / MIB,
        left / MIB,
        after / MIB,
        filled.as_secs_f64()
    );
    Ok(passed)
}

fn body(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((seed * 131 + i * 17 + i / 251) % 256).unwrap_or(0)).collect()
}

/// Bytes that the files really take up.
fn disk_use(log: &Path) -> Result<u64, String> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for file in fs::read_dir(log).map_err(|error| format!("{}: {error}", log.display()))? {
        // It may go while it is looked at.
        bytes += file.and_then(|file| file.metadata()).map_or(0, |data| data.blocks() * 512);
    }
    Ok(bytes)
}

fn publish(client: &mut Client, body: &[u8]) -> Result<(), Error> {
    client.declare_queue(QUEUE, Durability::Durable)?;
    client.confirm()?;
    let mut block = Vec::new();
    PropertyList { delivery_mode: Some(2), ..Default::default() }.encode(&mut block);
    let properties = Properties::parse(&block).expect("just written");
    client.publish("", QUEUE, properties, body);
    client.flush()?;
    loop {
        while let Some(heard) = client.hear()? {
            match heard {
                Heard::Confirmed { .. } => return Ok(()),
                Heard::Refused { .. } => return Err(Error::Broken("the publish was refused".to_owned())),
                _ => {}
            }
        }
        if !client.receive(Duration::from_secs(20))? {
            return Err(Error::Broken("no confirm".to_owned()));
        }
    }
}

/// The next message of the queue, which is not acknowledged.
fn consumed(client: &mut Client) -> Result<Vec<u8>, Error> {
    client.consume(QUEUE, Some(10))?;
    client.flush()?;
    loop {
        while let Some(heard) = client.hear()? {
            if let Heard::Delivered(message) = heard {
                return Ok(message.body.into_owned());
            }
        }
        if !client.receive(Duration::from_secs(20))? {
            return Ok(Vec::new());
        }
    }
}

fn header<'h>(topic: &'h str, properties: Option<&'h str>) -> SendMessage<'h> {
    SendMessage {
        producer_group: "fillers",
        topic,
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        properties,
        ..SendMessage::default()
    }
}

fn send(client: &mut Remoting, topic: &str, body: &[u8], properties: Option<&str>) -> Result<(), Error> {
    client.ask(RequestCode::SendMessage, &header(topic, properties), body, |answer| {
        match answer.head.response_code() {
            Some(ResponseCode::Success) => Ok(()),
            _ => Err(refusal(answer)),
        }
    })
}

/// Writes that much into a topic; answers the most that the log took up meanwhile.
fn fill(client: &mut Remoting, bytes: u64, log: &Path) -> Result<u64, Error> {
    let body = body(3, FILLING);
    let (mut left, mut peak) = (bytes.div_ceil(FILLING as u64), 0);
    let mut waiting = VecDeque::new();
    while left > 0 || !waiting.is_empty() {
        while left > 0 && waiting.len() < WINDOW {
            waiting.push_back(client.say(RequestCode::SendMessage, &header("load", None), &body)?);
            left -= 1;
        }
        client.flush()?;
        while let Some(answer) = client.hear()? {
            if answer.head.response_code() != Some(ResponseCode::Success) {
                return Err(refusal(&answer));
            }
            let opaque = answer.head.opaque;
            waiting.retain(|said| *said != opaque);
        }
        peak = peak.max(disk_use(log).map_err(Error::Broken)?);
        if !waiting.is_empty() && !client.receive(Duration::from_secs(60))? {
            return Err(Error::Broken("a send was not answered".to_owned()));
        }
    }
    Ok(peak)
}

/// The first message of the delayed one's topic, once it is there.
fn pulled(client: &mut Remoting) -> Result<Vec<u8>, Error> {
    let request = PullMessage {
        consumer_group: "readers",
        topic: LATE,
        max_msg_nums: 1,
        sys_flag: pull_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessage::default()
    };
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let found = client.ask(RequestCode::PullMessage, &request, b"", |answer| {
            if answer.head.response_code() != Some(ResponseCode::Success) {
                return Ok(None);
            }
            let read =
                StoredMessage::decode(answer.body).map_err(|error| Error::Broken(error.to_string()))?;
            Ok(Some(read.0.body.to_vec()))
        })?;
        if let Some(body) = found {
            return Ok(body);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Vec::new())
}
