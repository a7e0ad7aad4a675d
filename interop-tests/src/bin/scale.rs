//! Measures how Dassie grows: `scale MODE [--bin DASSIE] [--dir DIRECTORY] [--count N] [--seconds N]`.
//!
//! Modes: `connections` (many with a message a second each), `depth` (a backlog, and the restart with it), `width` (many
//! durable queues, and the restart), `topics` (of RocketMQ, eight queues each), `fanout` (what a message to many queues
//! costs in the log), `idle` (memory and processor time of a broker that has nothing to do, fresh and after transactions).
//! `connections --url HOST:PORT --pid PID` measures any AMQP broker that runs already.
//!
//! Owns: the load, the broker's life. Promises: a broker of its own on a directory that was empty, ended however this ends;
//! counts, bytes and restart times: what hardly depends on what else the machine does.
//! Does not know: what is a good figure.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use dassie_amqp::content::{Properties, PropertyList};
use dassie_interop::harm::broker::Broker;
use dassie_interop::measure::{Figures, Histogram, Process, float, per_message, probe, rate, small_writes};
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::CreateTopic;
use dassie_rocketmq::{HeaderCodec, RequestCode, ResponseCode};

const USAGE: &str = "usage: scale connections|depth|width|topics|fanout|idle \
    [--bin DASSIE] [--dir DIRECTORY] [--count N] [--seconds N] [--url HOST:PORT --pid PID]";
/// Publishes that wait for confirms.
const WINDOW: u64 = 2_000;
/// After which a broker that says nothing counts as stuck.
const STUCK: Duration = Duration::from_secs(60);
/// The metrics follow what happens once a second.
const SETTLE: Duration = Duration::from_secs(3);

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
    mode: String,
    binary: PathBuf,
    directory: PathBuf,
    count: Option<u64>,
    time: Duration,
    peer: Option<(SocketAddr, u32)>,
}

type Result<T> = std::result::Result<T, String>;

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mode = words.next()?;
        let (mut binary, mut directory) = (PathBuf::from("target/release/dassie"), std::env::temp_dir());
        let (mut count, mut seconds, mut server, mut pid) = (None, 60, None, None);
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word.as_str() {
                "--bin" => binary = PathBuf::from(value),
                "--dir" => directory = PathBuf::from(value),
                "--count" => count = Some(value.parse().ok()?),
                "--seconds" => seconds = value.parse().ok()?,
                "--url" => server = value.to_socket_addrs().ok()?.next(),
                "--pid" => pid = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(Self {
            mode,
            binary,
            directory,
            count,
            time: Duration::from_secs(seconds),
            peer: server.zip(pid),
        })
    }

    fn run(&self) -> Result<Figures> {
        let mut figures = Figures::default();
        if let (Some((server, pid)), "connections") = (self.peer, self.mode.as_str()) {
            let count = self.count.unwrap_or(2_000);
            connections(server, &Process::new(pid)?, count, self.time, &mut figures)?;
            return Ok(figures);
        }
        let directory = self.directory.join(format!("dassie-scale-{}", std::process::id()));
        fs::create_dir_all(&directory).map_err(said)?;
        let mut subject = Subject::new(&self.binary, &directory)?;
        let done = self.measure(&mut subject, &mut figures);
        subject.broker.kill();
        fs::remove_dir_all(&directory).map_err(said)?;
        done.map(|()| figures)
    }

    fn measure(&self, subject: &mut Subject, figures: &mut Figures) -> Result<()> {
        let count = |usual| self.count.unwrap_or(usual);
        match self.mode.as_str() {
            "connections" => {
                let process = subject.process()?;
                connections(subject.broker.ports.amqp, &process, count(2_000), self.time, figures)
            }
            "depth" => depth(subject, count(1_000_000), figures),
            "width" => width(subject, count(10_000), figures),
            "topics" => topics(subject, count(5_000), figures),
            "fanout" => fanout(subject, count(100), figures),
            "idle" => idle(subject, count(10_000), self.time, figures),
            _ => Err(USAGE.to_owned()),
        }
    }
}

/// The broker that is measured.
struct Subject {
    broker: Broker,
    metrics: SocketAddr,
    directory: PathBuf,
}

impl Subject {
    fn new(binary: &std::path::Path, directory: &std::path::Path) -> Result<Self> {
        let mut broker = Broker::new(binary, directory, &Dice::new(u64::from(std::process::id())))?;
        let metrics = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let metrics = metrics.map_err(said)?;
        broker.settings.push(format!("metrics.listen={metrics}"));
        broker.start()?;
        Ok(Self { broker, metrics, directory: directory.to_owned() })
    }

    fn process(&self) -> Result<Process> {
        Process::new(self.broker.id().ok_or("no broker")?)
    }

    fn client(&self) -> Result<Client> {
        Client::connect(self.broker.ports.amqp).map_err(said)
    }

    /// A metric without labels.
    fn metric(&self, name: &str) -> Result<f64> {
        let ask = || {
            let mut page = TcpStream::connect(self.metrics)?;
            page.write_all(b"GET /metrics HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            page.read_to_string(&mut text)?;
            std::io::Result::Ok(text)
        };
        let text = ask().map_err(said)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(|| format!("no metric {name}"))
    }

    /// Kills the broker and starts it again; the time until it is ready.
    fn restart(&mut self) -> Result<Duration> {
        self.broker.kill();
        let begin = Instant::now();
        self.broker.start()?;
        Ok(begin.elapsed())
    }
}

/// With the tags of the last delivery that is not acknowledged and of the last confirm.
type Connection = (Client, u64, u64);

fn properties(delivery_mode: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    PropertyList { delivery_mode: Some(delivery_mode), ..Default::default() }.encode(&mut bytes);
    bytes
}

fn body(size: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().map(|byte| byte.wrapping_mul(167) ^ 0x5A).take(size).collect()
}

/// A message a second on each connection, 1 KiB, persistent, confirmed, to a durable queue of its own that the connection
/// consumes, acknowledged with the next publish.
fn connections(
    server: SocketAddr,
    process: &Process,
    count: u64,
    time: Duration,
    figures: &mut Figures,
) -> Result<()> {
    let before = process.memory("VmRSS:")?;
    let mut clients: Vec<Connection> = Vec::new();
    for number in 0..count {
        let open = || {
            let mut client = Client::connect(server)?;
            let queue = format!("scale-{number}");
            client.declare_queue(&queue, Durability::Durable)?;
            client.consume(&queue, Some(10))?;
            client.confirm()?;
            client.set_polled()?;
            Ok::<_, Error>(client)
        };
        clients.push((open().map_err(|error| format!("connection {number}: {error}"))?, 0, 0));
    }
    figures.add(
        "connections_idle_kib",
        (process.memory("VmRSS:")? - before) * 1_024.0 / float(count),
        "KiB each, when all stand",
    );
    let (properties, body) = (properties(2), body(1_024));
    let properties = Properties::parse(&properties).map_err(said)?;
    let step = Duration::from_secs(1).div_f64(float(count));
    let (mut confirmed, mut arrived, mut published) = (0, 0, 0_u64);
    let (busy, begin) = (process.time(), Instant::now());
    let seconds = time.as_secs();
    for turn in 0..seconds * count {
        let due = begin + step * u32::try_from(turn).map_err(said)?;
        // A tenth of a second after its turn a connection has its answers.
        let late = usize::try_from((turn + count - count / 10) % count).map_err(said)?;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (client, last, _) = &mut clients[usize::try_from(turn % count).map_err(said)?];
        if *last > 0 {
            client.ack(std::mem::take(last), true);
        }
        client.publish("", &format!("scale-{}", turn % count), properties, &body);
        client.poll().map_err(said)?;
        published += 1;
        let each = &mut clients[late];
        drain(each, &mut confirmed, &mut arrived)?;
    }
    let busy = process.time() - busy;
    let after = process.memory("VmRSS:")?;
    let deadline = Instant::now() + STUCK;
    while (confirmed < published || arrived < published) && Instant::now() < deadline {
        for each in &mut clients {
            drain(each, &mut confirmed, &mut arrived)?;
        }
    }
    if confirmed < published || arrived < published {
        return Err(format!("of {published} messages {confirmed} were confirmed and {arrived} arrived"));
    }
    figures.add(
        "connections_rate",
        rate(published, begin.elapsed()),
        "messages/s, 1 KiB persistent, 1 a connection",
    );
    figures.add(
        "connections_cpu_us",
        per_message(busy, published),
        "us of the broker's processors a message",
    );
    figures.add("connections_kib", (after - before) * 1_024.0 / float(count), "KiB of memory a connection");
    figures.add("memory_mib", after, "MiB with all connections");
    drop(clients);
    let mut client = Client::connect(server).map_err(said)?;
    for number in 0..count {
        client.delete_queue(&format!("scale-{number}")).map_err(said)?;
    }
    thread::sleep(SETTLE);
    figures.add("memory_after_mib", process.memory("VmRSS:")?, "MiB when they are gone");
    client.close().map_err(said)
}

fn drain((client, last, told): &mut Connection, confirmed: &mut u64, arrived: &mut u64) -> Result<()> {
    client.poll().map_err(said)?;
    while let Some(heard) = client.hear().map_err(said)? {
        match heard {
            // Each channel's come in order, some for several.
            Heard::Confirmed { tag, .. } => *confirmed += tag - std::mem::replace(told, tag),
            Heard::Delivered(message) => (*last, *arrived) = (message.tag, *arrived + 1),
            other => return Err(format!("{other:?} to a client")),
        }
    }
    Ok(())
}

/// Publishes so many, confirmed with a window.
fn publish_many(client: &mut Client, exchange: &str, key: &str, size: usize, count: u64) -> Result<()> {
    let (properties, body) = (properties(2), body(size));
    let properties = Properties::parse(&properties).map_err(said)?;
    client.confirm().map_err(said)?;
    let (mut said_now, mut confirmed) = (0, 0);
    while confirmed < count {
        while said_now < count && said_now < confirmed + WINDOW {
            client.publish(exchange, key, properties, &body);
            said_now += 1;
        }
        client.flush().map_err(said)?;
        if !client.receive(STUCK).map_err(said)? {
            return Err("no confirm".to_owned());
        }
        while let Some(heard) = client.hear().map_err(said)? {
            match heard {
                Heard::Confirmed { tag, multiple: true } => confirmed = tag,
                // One by one, they come in order here: a single queue.
                Heard::Confirmed { tag, .. } => confirmed = confirmed.max(tag),
                other => return Err(format!("{other:?} to a publisher")),
            }
        }
    }
    Ok(())
}

/// A backlog of 100 B messages, and how long a broker that was killed takes until it delivers the first.
fn depth(subject: &mut Subject, count: u64, figures: &mut Figures) -> Result<()> {
    let process = subject.process()?;
    let mut client = subject.client()?;
    client.declare_queue("scale-depth", Durability::Durable).map_err(said)?;
    let before = process.memory("RssAnon:")?;
    let begin = Instant::now();
    publish_many(&mut client, "", "scale-depth", 100, count)?;
    figures.add(
        "depth_rate",
        rate(count, begin.elapsed()),
        "confirms/s, 100 B persistent, window 2000, 1 queue",
    );
    thread::sleep(SETTLE);
    figures.add(
        "depth_anon_mib",
        process.memory("RssAnon:")? - before,
        "MiB of anonymous memory above empty",
    );
    figures.add("depth_rss_mib", process.memory("VmRSS:")?, "MiB resident, with mapped files");
    drop(client);
    for (ready_name, first_name) in
        [("depth_ready_ms", "depth_first_ms"), ("depth_ready_again_ms", "depth_first_again_ms")]
    {
        let begin = Instant::now();
        let ready = subject.restart()?;
        let mut client = subject.client()?;
        client.consume("scale-depth", Some(1)).map_err(said)?;
        loop {
            match client.hear().map_err(said)? {
                Some(Heard::Delivered(_)) => break,
                Some(other) => return Err(format!("{other:?} to a consumer")),
                None if begin.elapsed() > STUCK => return Err("nothing arrives".to_owned()),
                None => drop(client.receive(Duration::from_secs(1)).map_err(said)?),
            }
        }
        figures.add(ready_name, ready.as_secs_f64() * 1e3, "ms from the start after kill -9 to ready");
        figures.add(first_name, begin.elapsed().as_secs_f64() * 1e3, "ms from kill -9 to the first delivery");
    }
    thread::sleep(SETTLE);
    figures.add(
        "depth_restarted_anon_mib",
        subject.process()?.memory("RssAnon:")?,
        "MiB of anonymous memory after the restart",
    );
    Ok(())
}

/// Durable queues, declared one after the other.
fn width(subject: &mut Subject, count: u64, figures: &mut Figures) -> Result<()> {
    probe(&subject.directory, small_writes, figures)?;
    let process = subject.process()?;
    let (before, files) = (process.memory("VmRSS:")?, process.open_files()?);
    let mut client = subject.client()?;
    let (mut latencies, begin) = (Histogram::default(), Instant::now());
    for number in 0..count {
        let asked = Instant::now();
        client.declare_queue(&format!("scale-{number}"), Durability::Durable).map_err(said)?;
        latencies.add(asked.elapsed());
    }
    figures.add("width_declare_s", begin.elapsed().as_secs_f64(), "s to declare all, one at a time");
    figures.add("width_declare_p50_us", latencies.at(50.0), "us a declare");
    let each =
        |process: &Process| Ok::<_, String>((process.memory("VmRSS:")? - before) * 1_024.0 / float(count));
    thread::sleep(SETTLE);
    figures.add("width_kib", each(&process)?, "KiB of memory a queue");
    let begin = Instant::now();
    let (properties, body) = (properties(2), body(100));
    let properties = Properties::parse(&properties).map_err(said)?;
    client.confirm().map_err(said)?;
    for number in 0..count {
        client.publish("", &format!("scale-{number}"), properties, &body);
        if number % 100 == 99 || number + 1 == count {
            client.flush().map_err(said)?;
        }
    }
    let mut confirmed = 0;
    while confirmed < count {
        if !client.receive(STUCK).map_err(said)? {
            return Err("no confirm".to_owned());
        }
        while let Some(heard) = client.hear().map_err(said)? {
            match heard {
                Heard::Confirmed { tag, .. } => confirmed = confirmed.max(tag),
                other => return Err(format!("{other:?} to a publisher")),
            }
        }
    }
    figures.add("width_publish_rate", rate(count, begin.elapsed()), "confirms/s, a 100 B message to each");
    thread::sleep(SETTLE);
    figures.add("width_full_kib", each(&process)?, "KiB of memory a queue, with a message in each");
    // This client is one of them.
    figures.add(
        "width_files",
        float(process.open_files()?) - float(files) - 1.0,
        "more open files than without",
    );
    drop(client);
    let ready = subject.restart()?;
    figures.add("width_restart_ms", ready.as_secs_f64() * 1e3, "ms from kill -9 to ready");
    let process = subject.process()?;
    figures.add("width_restarted_kib", each(&process)?, "KiB of memory a queue after the restart");
    figures.add("memory_mib", process.memory("VmRSS:")?, "MiB");
    Ok(())
}

/// Topics of eight queues.
fn topics(subject: &mut Subject, count: u64, figures: &mut Figures) -> Result<()> {
    let process = subject.process()?;
    let before = process.memory("VmRSS:")?;
    let mut client = Remoting::connect(subject.broker.ports.rocketmq, HeaderCodec::Json).map_err(said)?;
    let begin = Instant::now();
    for number in 0..count {
        let name = format!("scale-{number}");
        let topic = CreateTopic {
            topic: &name,
            default_topic: "TBW102",
            read_queue_nums: 8,
            write_queue_nums: 8,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        };
        client
            .ask(RequestCode::UpdateAndCreateTopic, &topic, b"", |answer| match answer.head.response_code() {
                Some(ResponseCode::Success) => Ok(()),
                _ => Err(refusal(answer)),
            })
            .map_err(said)?;
    }
    figures.add("topics_rate", rate(count, begin.elapsed()), "topics of 8 queues made/s, one at a time");
    thread::sleep(SETTLE);
    figures.add(
        "topics_kib",
        (process.memory("VmRSS:")? - before) * 1_024.0 / float(count),
        "KiB of memory a topic",
    );
    figures.add("memory_mib", process.memory("VmRSS:")?, "MiB with all topics");
    let ready = subject.restart()?;
    figures.add("topics_restart_ms", ready.as_secs_f64() * 1e3, "ms from kill -9 to ready");
    figures.add("restarted_memory_mib", subject.process()?.memory("VmRSS:")?, "MiB after the restart");
    Ok(())
}

/// 1,000 messages of 4 KiB, each to so many durable queues.
fn fanout(subject: &mut Subject, count: u64, figures: &mut Figures) -> Result<()> {
    const MESSAGES: u64 = 1_000;
    const SIZE: usize = 4_096;
    let mut client = subject.client()?;
    client.declare_fanout("scale-all").map_err(said)?;
    for number in 0..count {
        let queue = format!("scale-{number}");
        client.declare_queue(&queue, Durability::Durable).map_err(said)?;
        client.bind(&queue, "scale-all", "").map_err(said)?;
    }
    thread::sleep(SETTLE);
    let (before, process) = (subject.metric("dassie_log_position ")?, subject.process()?);
    let (busy, begin) = (process.time(), Instant::now());
    publish_many(&mut client, "scale-all", "", SIZE, MESSAGES)?;
    figures.add("fanout_rate", rate(MESSAGES * count, begin.elapsed()), "messages into queues/s");
    figures.add(
        "fanout_cpu_us",
        per_message(process.time() - busy, MESSAGES * count),
        "us of the broker's processors for each",
    );
    thread::sleep(SETTLE);
    let bytes = subject.metric("dassie_log_position ")? - before;
    let wanted = float(MESSAGES * SIZE as u64 + MESSAGES * count * 48);
    figures.add("fanout_log_mib", bytes / 1_048_576.0, "MiB of log");
    figures.add("fanout_log_ratio", bytes / wanted, "times the bodies and 48 B a queue");
    Ok(())
}

/// What a broker needs that has nothing to do.
fn idle(subject: &mut Subject, count: u64, time: Duration, figures: &mut Figures) -> Result<()> {
    let process = subject.process()?;
    let still = |name, figures: &mut Figures| {
        thread::sleep(SETTLE);
        let busy = process.time();
        thread::sleep(time);
        figures.add(name, (process.time() - busy) / time.as_secs_f64() * 100.0, "% of a core");
    };
    figures.add("idle_mib", process.memory("VmRSS:")?, "MiB, fresh");
    still("idle_cpu_percent", figures);
    let mut client = subject.client()?;
    client.declare_queue("scale-idle", Durability::Durable).map_err(said)?;
    client.select_transactions().map_err(said)?;
    client.consume("scale-idle", Some(0)).map_err(said)?;
    let (properties, body) = (properties(2), body(1_024));
    let properties = Properties::parse(&properties).map_err(said)?;
    let begin = Instant::now();
    for _ in 0..count {
        client.publish("", "scale-idle", properties, &body);
        let delivered = client.commit().map_err(said)?;
        if let Some(tag) = delivered {
            client.ack(tag, true);
        }
    }
    if let Some(tag) = client.commit().map_err(said)? {
        client.ack(tag, true);
        client.commit().map_err(said)?;
    }
    figures.add(
        "transactions_rate",
        rate(count, begin.elapsed()),
        "transactions/s: a publish and an ack, one at a time",
    );
    still("settled_cpu_percent", figures);
    figures.add("settled_mib", process.memory("VmRSS:")?, "MiB after the transactions");
    Ok(())
}
