//! Measures a running RocketMQ broker: `rocketmq_bench --url HOST:PORT --pid PID [--seconds N] [--mib N] [--probe-dir DIRECTORY]`.
//!
//! 1 KiB messages to one topic of eight queues: one at a time, 64 connections with one under way each, four connections with 64
//! each, and batches of 16; then all that the batches left is pulled, 32 a pull. With each the processor time that the broker
//! took, and at the end its memory.
//!
//! Owns: the load and the figures. Promises: a client that costs little beside the broker: one thread serves all connections,
//! records are counted, not decoded.
//! Does not know: which broker it measures, or what is a good figure.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dassie_interop::measure::{
    Figures, Histogram, Process, large_writes, per_message, probe, rate, small_writes,
};
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::wire::Error;
use dassie_rocketmq::header::{CreateTopic, PullAnswer, PullMessage, SendMessage, ShortNames, pull_flag};
use dassie_rocketmq::message::{BatchMessage, PropertiesText, encode_batch_message};
use dassie_rocketmq::{HeaderCodec, RequestCode, ResponseCode};

const USAGE: &str =
    "usage: rocketmq_bench --url HOST:PORT --pid PID [--seconds N] [--mib N] [--probe-dir DIRECTORY]";
const SIZE: usize = 1_024;
const QUEUES: u16 = 8;
const BATCH: u64 = 16;
const PULL: i32 = 32;
/// How long the thread sleeps when none of its connections had anything to do.
const NAP: Duration = Duration::from_micros(50);
/// After which a broker that says nothing counts as stuck.
const STUCK: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match arguments.run() {
        Ok(figures) => {
            print!("{}", figures.table());
            println!("{}", figures.json());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    server: SocketAddr,
    pid: u32,
    time: Duration,
    mib: u64,
    probe: Option<PathBuf>,
}

/// Connections, requests under way on each, messages in each.
#[derive(Clone, Copy)]
struct Shape {
    connections: usize,
    window: usize,
    batch: u64,
}

/// When a load ends.
#[derive(Clone, Copy)]
enum End {
    Time(Duration),
    Messages(u64),
}

/// What a load did: its requests' latencies, messages, seconds of the broker, time.
struct Done {
    latencies: Histogram,
    messages: u64,
    busy: f64,
    time: Duration,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let (mut server, mut pid, mut seconds, mut mib, mut probe) = (None, None, 5.0, 1_024, None);
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word.as_str() {
                "--url" => server = value.to_socket_addrs().ok()?.next(),
                "--pid" => pid = Some(value.parse().ok()?),
                "--seconds" => seconds = value.parse().ok()?,
                "--mib" => mib = value.parse().ok()?,
                "--probe-dir" => probe = Some(PathBuf::from(value)),
                _ => return None,
            }
        }
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero())?;
        Some(Self { server: server?, pid: pid?, time, mib, probe })
    }

    fn run(&self) -> Result<Figures, String> {
        let mut figures = Figures::default();
        let process = Process::new(self.pid)?;
        figures.add("memory_idle_mib", process.memory("VmRSS:")?, "MiB before the load");
        if let Some(directory) = &self.probe {
            probe(directory, small_writes, &mut figures)?;
        }
        self.measure(&process, &mut figures).map_err(|error| error.to_string())?;
        for (name, field) in
            [("memory_mib", "VmRSS:"), ("memory_anon_mib", "RssAnon:"), ("memory_peak_mib", "VmHWM:")]
        {
            figures.add(name, process.memory(field)?, "MiB after the load");
        }
        if let Some(directory) = &self.probe {
            probe(directory, large_writes, &mut figures)?;
        }
        Ok(figures)
    }

    fn measure(&self, process: &Process, figures: &mut Figures) -> Result<(), Error> {
        for topic in ["bench-sends", "bench-fill"] {
            self.create(topic)?;
        }
        let end = End::Time(self.time);
        let one = Shape { connections: 1, window: 1, batch: 1 };
        // Not measured: code of the peer that is compiled while it runs should be.
        self.send("bench-sends", Shape { connections: 4, window: 64, ..one }, end, process)?;
        let done = self.send("bench-sends", one, end, process)?;
        figures.add("single_p50_us", done.latencies.at(50.0), "us, 1 KiB, one at a time");
        figures.add("single_p99_us", done.latencies.at(99.0), "us");
        figures.add(
            "single_cpu_us",
            per_message(done.busy, done.messages),
            "us of the broker's processors a message",
        );
        let done = self.send("bench-sends", Shape { connections: 64, ..one }, end, process)?;
        figures.add(
            "many_rate",
            rate(done.messages, done.time),
            "messages/s, 1 KiB, 64 connections with 1 under way",
        );
        figures.add("many_p50_us", done.latencies.at(50.0), "us");
        figures.add("many_p99_us", done.latencies.at(99.0), "us");
        figures.add(
            "many_cpu_us",
            per_message(done.busy, done.messages),
            "us of the broker's processors a message",
        );
        let done = self.send("bench-sends", Shape { connections: 4, window: 64, ..one }, end, process)?;
        figures.add(
            "window_rate",
            rate(done.messages, done.time),
            "messages/s, 1 KiB, 4 connections with 64 under way",
        );
        figures.add("window_p50_us", done.latencies.at(50.0), "us");
        figures.add("window_p99_us", done.latencies.at(99.0), "us");
        figures.add(
            "window_cpu_us",
            per_message(done.busy, done.messages),
            "us of the broker's processors a message",
        );
        let count = self.mib * 1_024;
        let shape = Shape { connections: 4, window: 8, batch: BATCH };
        let done = self.send("bench-fill", shape, End::Messages(count), process)?;
        figures.add(
            "batch_rate",
            rate(done.messages, done.time),
            "messages/s, 1 KiB in batches of 16, 4 connections with 8 under way",
        );
        figures.add("batch_p99_us", done.latencies.at(99.0), "us a batch");
        figures.add(
            "batch_cpu_us",
            per_message(done.busy, done.messages),
            "us of the broker's processors a message",
        );
        let done = self.catch_up("bench-fill", done.messages, process)?;
        figures.add("pull_rate", rate(done.messages, done.time), "messages/s pulled, 8 queues, 32 a pull");
        figures.add(
            "pull_cpu_us",
            per_message(done.busy, done.messages),
            "us of the broker's processors a message",
        );
        Ok(())
    }

    fn connect(&self) -> Result<Remoting, Error> {
        Remoting::connect(self.server, HeaderCodec::Json)
    }

    fn create(&self, topic: &str) -> Result<(), Error> {
        let queues = i32::from(QUEUES);
        let header = CreateTopic {
            topic,
            default_topic: "TBW102",
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        };
        self.connect()?.ask(RequestCode::UpdateAndCreateTopic, &header, b"", |answer| {
            match answer.head.response_code() {
                Some(ResponseCode::Success) => Ok(()),
                _ => Err(refusal(answer)),
            }
        })
    }

    fn send(&self, topic: &str, shape: Shape, end: End, process: &Process) -> Result<Done, Error> {
        let mut senders = Vec::new();
        for _ in 0..shape.connections {
            let mut client = self.connect()?;
            if shape.connections > 1 {
                client.set_polled()?;
            }
            senders.push((client, VecDeque::with_capacity(shape.window)));
        }
        let mut load = Load::new(topic, shape.batch);
        let (mut latencies, mut answered, mut said) = (Histogram::default(), 0, 0);
        let (busy, begin) = (process.time(), Instant::now());
        let mut heard_at = begin;
        loop {
            let goes_on = match end {
                End::Time(time) => begin.elapsed() < time,
                End::Messages(count) => said * shape.batch < count,
            };
            let mut moved = false;
            for (client, waiting) in &mut senders {
                while goes_on && waiting.len() < shape.window {
                    waiting.push_back((load.say(client)?, Instant::now()));
                    said += 1;
                }
                if shape.connections > 1 {
                    moved |= client.poll()?;
                } else {
                    client.flush()?;
                    moved |= !waiting.is_empty() && client.receive(STUCK)?;
                }
                while let Some(answer) = client.hear()? {
                    if answer.head.response_code() != Some(ResponseCode::Success) {
                        return Err(refusal(&answer));
                    }
                    let place = waiting.iter().position(|(opaque, _)| *opaque == answer.head.opaque);
                    let place = place.ok_or_else(|| Error::Broken("an answer to nothing".to_owned()))?;
                    let sent: Option<(i32, Instant)> = waiting.remove(place);
                    latencies.add(sent.expect("it was just found").1.elapsed());
                    answered += 1;
                }
            }
            if !goes_on && answered == said {
                let (busy, messages) = (process.time() - busy, answered * shape.batch);
                return Ok(Done { latencies, messages, busy, time: begin.elapsed() });
            }
            if moved {
                heard_at = Instant::now();
            } else if heard_at.elapsed() > STUCK {
                return Err(Error::Broken("answers are missing".to_owned()));
            } else {
                thread::sleep(NAP);
            }
        }
    }

    /// Pulls all that is in the queues, four connections with a pull for each of two queues.
    fn catch_up(&self, topic: &str, count: u64, process: &Process) -> Result<Done, Error> {
        let mut pullers = Vec::new();
        for _ in 0..4 {
            let mut client = self.connect()?;
            client.set_polled()?;
            // (pull under way, queue, next offset)
            pullers.push((client, [(0, 0, 0_i64); 2]));
        }
        let mut messages = 0;
        let (busy, begin) = (process.time(), Instant::now());
        let mut heard_at = begin;
        for ((client, pulls), first) in pullers.iter_mut().zip((0..).step_by(2)) {
            for (pull, queue) in pulls.iter_mut().zip(first..) {
                *pull = (say_pull(client, topic, queue, 0)?, queue, 0);
            }
        }
        while messages < count {
            let mut moved = false;
            for (client, pulls) in &mut pullers {
                moved |= client.poll()?;
                while let Some(answer) = client.hear()? {
                    let pull = pulls.iter_mut().find(|(opaque, ..)| *opaque == answer.head.opaque);
                    let pull = pull.ok_or_else(|| Error::Broken("an answer to nothing".to_owned()))?;
                    match answer.head.response_code() {
                        Some(ResponseCode::Success) => messages += count_records(answer.body),
                        // Nothing more in this queue: asked again until the others are through.
                        Some(ResponseCode::PullNotFound | ResponseCode::PullRetryImmediately) => {}
                        _ => return Err(refusal(&answer)),
                    }
                    let told: PullAnswer =
                        answer.header().map_err(|error| Error::Broken(error.to_string()))?;
                    let found = told.next_begin_offset > pull.2;
                    pull.2 = told.next_begin_offset;
                    let (queue, next) = (pull.1, pull.2);
                    if found {
                        pull.0 = say_pull(client, topic, queue, next)?;
                    }
                }
            }
            if moved {
                heard_at = Instant::now();
            } else if heard_at.elapsed() > STUCK {
                return Err(Error::Broken(format!("of {count} messages {messages} arrived")));
            } else {
                thread::sleep(NAP);
            }
        }
        let busy = process.time() - busy;
        Ok(Done { latencies: Histogram::default(), messages, busy, time: begin.elapsed() })
    }
}

fn say_pull(client: &mut Remoting, topic: &str, queue: i32, from: i64) -> Result<i32, Error> {
    let header = PullMessage {
        consumer_group: "bench",
        topic,
        queue_id: queue,
        queue_offset: from,
        max_msg_nums: PULL,
        sys_flag: pull_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessage::default()
    };
    client.say(RequestCode::PullMessage, &header, b"")
}

/// Each record begins with its size.
fn count_records(mut body: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(size) = body.first_chunk::<4>() {
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX).max(4);
        body = body.get(size..).unwrap_or_default();
        count += 1;
    }
    count
}

/// The messages that are sent.
struct Load<'t> {
    topic: &'t str,
    batch: u64,
    body: Vec<u8>,
    requests: u64,
    messages: u64,
}

impl<'t> Load<'t> {
    fn new(topic: &'t str, batch: u64) -> Self {
        let body = (0..=u8::MAX).cycle().map(|byte| byte.wrapping_mul(167) ^ 0x5A).take(SIZE).collect();
        Self { topic, batch, body, requests: 0, messages: 0 }
    }

    /// Says one request, as the Java client would: to each queue in turn, with a key for each message.
    fn say(&mut self, client: &mut Remoting) -> Result<i32, Error> {
        let broken = |error: &dyn std::fmt::Display| Error::Broken(error.to_string());
        self.requests += 1;
        let queue = u16::try_from(self.requests % u64::from(QUEUES)).expect("a small number");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut header = SendMessage {
            producer_group: "bench",
            topic: self.topic,
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: queue.into(),
            born_timestamp: i64::try_from(now.as_millis()).unwrap_or(0),
            ..SendMessage::default()
        };
        if self.batch == 1 {
            let properties = self.properties();
            header.properties = Some(properties.properties().text());
            return client.say(RequestCode::SendMessageV2, &ShortNames(header), &self.body);
        }
        let mut all = Vec::with_capacity(20 * 1_024);
        for _ in 0..self.batch {
            let properties = self.properties();
            let one = BatchMessage { flag: 0, body: &self.body, properties: properties.properties() };
            encode_batch_message(&mut all, &one).map_err(|error| broken(&error))?;
        }
        header.batch = Some(true);
        client.say(RequestCode::SendBatchMessage, &ShortNames(header), &all)
    }

    fn properties(&mut self) -> PropertiesText {
        self.messages += 1;
        let mut properties = PropertiesText::default();
        let key = format!("7F000001{:024X}", self.messages);
        for (name, value) in [("UNIQ_KEY", key.as_str()), ("WAIT", "true")] {
            properties.push(name, value).expect("short texts without separators");
        }
        properties
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_by_their_sizes() {
        let mut body = Vec::new();
        for size in [4_u32, 90, 17] {
            body.extend_from_slice(&size.to_be_bytes());
            body.resize(body.len() + size as usize - 4, 7);
        }
        assert_eq!(count_records(&body), 3);
        assert_eq!(count_records(&[]), 0);
    }
}
