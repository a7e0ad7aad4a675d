//! Measures a running AMQP broker:
//! `bench --url HOST:PORT --pid PID [--seconds N] [--probe-dir DIRECTORY] [--tls AUTHORITY]`.
//!
//! What it costs to open a connection; latency of one confirmed persistent message at a time; rate of small transient messages through one queue; rate of
//! persistent messages with confirms and acknowledgements through four. With each the processor time that the broker
//! took, and at the end its memory. The disk below a directory is measured beside it.
//!
//! Owns: the load and the figures. Promises: a table for people, then one line of JSON with the same figures; queues are
//! deleted again; a client that costs little beside the broker, as both may share few cores: writes hold many messages,
//! and one thread serves all publishers and one all consumers.
//! Does not know: which broker it measures, or what is a good figure.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dassie_amqp::content::{Properties, PropertyList};
use dassie_interop::measure::{
    Figures, Histogram, Process, large_writes, per_message, probe, rate, small_writes,
};
use dassie_interop::wire::{Client, Durability, Error, Heard, trust};
use rustls::ClientConfig;

const USAGE: &str =
    "usage: bench --url HOST:PORT --pid PID [--seconds N] [--probe-dir DIRECTORY] [--tls AUTHORITY]";
const SMALL: usize = 16;
const LARGE: usize = 1_024;
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;
/// Connections opened one after the other.
const OPENED: u64 = 200;
/// Publishes that wait for confirms on one connection.
const WINDOW: usize = 200;
const PREFETCH: u16 = 500;
const QUEUES: [&str; 4] = ["bench-c1", "bench-c2", "bench-c3", "bench-c4"];
/// Messages that a publisher without confirms may be ahead of its consumer: the queue is measured, not its overflow.
const AHEAD: u64 = 20_000;
/// Messages that share one write.
const BATCH: u64 = 100;
/// How long a thread sleeps when none of its connections had anything to do.
const NAP: Duration = Duration::from_micros(100);
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
    probe: Option<PathBuf>,
    /// Over TLS, and whom to trust.
    trusted: Option<Arc<ClientConfig>>,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let (mut server, mut pid, mut seconds, mut probe, mut trusted) = (None, None, 5.0, None, None);
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word.as_str() {
                "--url" => server = value.to_socket_addrs().ok()?.next(),
                "--pid" => pid = Some(value.parse().ok()?),
                "--seconds" => seconds = value.parse().ok()?,
                "--probe-dir" => probe = Some(PathBuf::from(value)),
                "--tls" => trusted = Some(trust(value.as_ref()).inspect_err(|why| eprintln!("{why}")).ok()?),
                _ => return None,
            }
        }
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero())?;
        Some(Self { server: server?, pid: pid?, time, probe, trusted })
    }

    fn run(&self) -> Result<Figures, String> {
        let mut figures = Figures::default();
        if let Some(directory) = &self.probe {
            probe(directory, small_writes, &mut figures)?;
        }
        let process = Process::new(self.pid)?;
        let failed = |what: &'static str| move |error: Error| format!("{what}: {error}");
        self.open(&process, &mut figures).map_err(failed("opening connections"))?;
        self.one_at_a_time(&process, &mut figures).map_err(failed("one at a time"))?;
        self.small(&process, &mut figures).map_err(failed("small and transient"))?;
        self.durable(&process, &mut figures).map_err(failed("durable"))?;
        for (name, field) in [("memory_mib", "VmRSS:"), ("memory_peak_mib", "VmHWM:")] {
            figures.add(name, process.memory(field)?, "MiB after the load");
        }
        // Last: many bytes at once slow some disks down for a while, and with them the broker.
        if let Some(directory) = &self.probe {
            probe(directory, large_writes, &mut figures)?;
        }
        Ok(figures)
    }

    fn client(&self) -> Result<Client, Error> {
        Client::connect_by(self.server, self.trusted.as_ref())
    }

    /// Connections with a channel each, opened and closed one after the other.
    fn open(&self, process: &Process, figures: &mut Figures) -> Result<(), Error> {
        let mut latencies = Histogram::default();
        let busy = process.time();
        for _ in 0..OPENED {
            let begin = Instant::now();
            let client = self.client()?;
            latencies.add(begin.elapsed());
            client.close()?;
        }
        let busy = process.time() - busy;
        figures.add("open_p50_us", latencies.at(50.0), "us to open a connection and a channel");
        figures.add("open_cpu_us", per_message(busy, OPENED), "us of the broker's processors for it");
        Ok(())
    }

    /// (a) Each message is confirmed before the next is sent.
    fn one_at_a_time(&self, process: &Process, figures: &mut Figures) -> Result<(), Error> {
        let mut client = self.client()?;
        client.declare_queue("bench-a", Durability::Durable)?;
        client.confirm()?;
        let (load, mut latencies) = (Load::new(PERSISTENT, LARGE), Histogram::default());
        let busy = process.time();
        let begin = Instant::now();
        while begin.elapsed() < self.time {
            let sent = Instant::now();
            load.publish(&mut client, "bench-a");
            client.flush()?;
            wait_for_confirm(&mut client)?;
            latencies.add(sent.elapsed());
        }
        let busy = process.time() - busy;
        figures.add("single_p50_us", latencies.at(50.0), "us, 1 KiB persistent, confirmed one at a time");
        figures.add("single_p99_us", latencies.at(99.0), "us");
        figures.add(
            "single_cpu_us",
            per_message(busy, latencies.count),
            "us of the broker's processors a message",
        );
        client.delete_queue("bench-a")?;
        client.close()
    }

    /// (b) 16 bytes, a queue that is not durable, nothing confirmed or acknowledged.
    fn small(&self, process: &Process, figures: &mut Figures) -> Result<(), Error> {
        let mut publisher = self.client()?;
        publisher.declare_queue("bench-b", Durability::Transient)?;
        let mut consumer = self.client()?;
        consumer.consume("bench-b", None)?;
        let (over, consumed) = (AtomicBool::new(false), AtomicU64::new(0));
        let busy = process.time();
        let begin = Instant::now();
        let (count, time) = thread::scope(|scope| {
            let published = scope.spawn(|| publish_ahead(&mut publisher, begin, self.time, &consumed, &over));
            let counted = count_arrivals(&mut consumer, &consumed, &over);
            over.store(true, Ordering::SeqCst);
            published.join().expect("a publisher does not panic")?;
            counted.map(|count| (count, begin.elapsed()))
        })?;
        let busy = process.time() - busy;
        figures.add("small_rate", rate(count, time), "messages/s, 16 B transient, auto-ack, 1 to 1");
        figures.add("small_cpu_us", per_message(busy, count), "us of the broker's processors a message");
        publisher.delete_queue("bench-b")?;
        publisher.close()
    }

    /// (c) 1 KiB, durable, confirmed with a window, acknowledged in multiples; four queues.
    fn durable(&self, process: &Process, figures: &mut Figures) -> Result<(), Error> {
        let mut publishers = Vec::new();
        let mut consumers = Vec::new();
        for queue in QUEUES {
            let mut publisher = self.client()?;
            publisher.declare_queue(queue, Durability::Durable)?;
            publisher.confirm()?;
            publisher.set_polled()?;
            publishers.push(publisher);
            let mut consumer = self.client()?;
            consumer.consume(queue, Some(PREFETCH))?;
            consumer.set_polled()?;
            consumers.push(consumer);
        }
        let (over, consumed) = (AtomicBool::new(false), AtomicU64::new(0));
        let busy = process.time();
        let begin = Instant::now();
        let (latencies, confirmed_in, consumed_in) = thread::scope(|scope| {
            let consuming = scope.spawn(|| consume_durable(&mut consumers, &consumed, &over));
            let latencies = publish_durable(&mut publishers, begin, self.time);
            let confirmed_in = begin.elapsed();
            // What was confirmed must arrive, too; then the consumers are through.
            let wanted = latencies.as_ref().map_or(0, |latencies| latencies.count);
            while consumed.load(Ordering::SeqCst) < wanted
                && begin.elapsed() < self.time + STUCK
                && !consuming.is_finished()
            {
                thread::sleep(Duration::from_millis(1));
            }
            let consumed_in = begin.elapsed();
            over.store(true, Ordering::SeqCst);
            consuming.join().expect("a consumer does not panic")?;
            latencies.map(|latencies| (latencies, confirmed_in, consumed_in))
        })?;
        let busy = process.time() - busy;
        let arrived = consumed.load(Ordering::SeqCst);
        if arrived < latencies.count {
            return Err(Error::Broken(format!("{} were confirmed and {arrived} arrived", latencies.count)));
        }
        figures.add(
            "durable_rate",
            rate(latencies.count, confirmed_in),
            "confirms/s, 1 KiB persistent, window 200, 4 to 4",
        );
        figures.add(
            "durable_consumed_rate",
            rate(arrived, consumed_in),
            "acknowledged/s of the same, until the last",
        );
        figures.add(
            "durable_cpu_us",
            per_message(busy, latencies.count),
            "us of the broker's processors a message",
        );
        figures.add("durable_p50_us", latencies.at(50.0), "us to the confirm under this load");
        figures.add("durable_p99_us", latencies.at(99.0), "us");
        drop((publishers, consumers));
        let mut client = self.client()?;
        for queue in QUEUES {
            client.delete_queue(queue)?;
        }
        client.close()
    }
}

/// The message that is sent over and over.
struct Load {
    properties: Vec<u8>,
    body: Vec<u8>,
}

impl Load {
    fn new(delivery_mode: u8, size: usize) -> Self {
        let mut properties = Vec::new();
        PropertyList { delivery_mode: Some(delivery_mode), ..Default::default() }.encode(&mut properties);
        // No two neighbours are alike: what compresses well would flatter a broker that compresses.
        let body = (0..=u8::MAX).cycle().map(|byte| byte.wrapping_mul(167) ^ 0x5A).take(size).collect();
        Self { properties, body }
    }

    fn publish(&self, client: &mut Client, queue: &str) {
        let properties = Properties::parse(&self.properties).expect("a block that was just written");
        client.publish("", queue, properties, &self.body);
    }
}

fn wait_for_confirm(client: &mut Client) -> Result<(), Error> {
    loop {
        match client.hear()? {
            Some(Heard::Confirmed { .. }) => return Ok(()),
            Some(other) => return Err(Error::Broken(format!("{other:?} to a publisher"))),
            None => {}
        }
        if !client.receive(STUCK)? {
            return Err(Error::Broken("no confirm".to_owned()));
        }
    }
}

/// Publishes for a time, never too far ahead of the consumer; then the consumer may stop.
fn publish_ahead(
    client: &mut Client,
    begin: Instant,
    time: Duration,
    consumed: &AtomicU64,
    over: &AtomicBool,
) -> Result<(), Error> {
    let load = Load::new(TRANSIENT, SMALL);
    let mut published = 0;
    let mut publish = || {
        while begin.elapsed() < time && !over.load(Ordering::Relaxed) {
            if published > consumed.load(Ordering::Relaxed) + AHEAD {
                thread::sleep(NAP);
                continue;
            }
            for _ in 0..BATCH {
                load.publish(client, "bench-b");
            }
            client.flush()?;
            published += BATCH;
        }
        Ok(())
    };
    let published = publish();
    over.store(true, Ordering::SeqCst);
    published
}

fn count_arrivals(client: &mut Client, consumed: &AtomicU64, over: &AtomicBool) -> Result<u64, Error> {
    let (mut count, mut heard) = (0, Instant::now());
    while !over.load(Ordering::Relaxed) {
        if client.receive(Duration::from_millis(100))? {
            heard = Instant::now();
        } else if heard.elapsed() > STUCK {
            return Err(Error::Broken("nothing arrives".to_owned()));
        }
        while let Some(heard) = client.hear()? {
            match heard {
                Heard::Delivered(message) if message.body.len() == SMALL => count += 1,
                other => return Err(Error::Broken(format!("{other:?} to a consumer"))),
            }
        }
        consumed.store(count, Ordering::Relaxed);
    }
    Ok(count)
}

/// Keeps the window of each publisher full for a time, then waits for what is open.
fn publish_durable(clients: &mut [Client], begin: Instant, time: Duration) -> Result<Histogram, Error> {
    let load = Load::new(PERSISTENT, LARGE);
    let mut latencies = Histogram::default();
    let mut open: Vec<Open> = clients.iter().map(|_| Open::default()).collect();
    loop {
        let goes_on = begin.elapsed() < time;
        let mut moved = false;
        for ((client, open), queue) in clients.iter_mut().zip(&mut open).zip(QUEUES) {
            // A full socket is no reason to pile up what has not left.
            if goes_on && client.unsent() < WINDOW * LARGE {
                let now = Instant::now();
                while open.waiting.len() < WINDOW {
                    load.publish(client, queue);
                    open.publish(now);
                }
            }
            moved |= client.poll()?;
            while let Some(heard) = client.hear()? {
                let Heard::Confirmed { tag, multiple } = heard else {
                    return Err(Error::Broken(format!("{heard:?} to a publisher")));
                };
                open.confirm(tag, multiple, &mut latencies);
            }
        }
        if !goes_on && open.iter().all(|open| open.waiting.is_empty()) {
            return Ok(latencies);
        }
        if begin.elapsed() > time + STUCK {
            return Err(Error::Broken("confirms are missing".to_owned()));
        }
        if !moved {
            thread::sleep(NAP);
        }
    }
}

/// The publishes of one channel that wait for their confirms, and when they were said.
#[derive(Default)]
struct Open {
    waiting: VecDeque<(u64, Instant)>,
    last: u64,
}

impl Open {
    fn publish(&mut self, now: Instant) {
        self.last += 1;
        self.waiting.push_back((self.last, now));
    }

    /// Confirms come in any order, and one of several may pass over what was confirmed before.
    fn confirm(&mut self, tag: u64, multiple: bool, latencies: &mut Histogram) {
        let end = self.waiting.partition_point(|(waiting, _)| *waiting <= tag);
        let begin = if multiple { 0 } else { self.waiting.partition_point(|(waiting, _)| *waiting < tag) };
        for (_, sent) in self.waiting.drain(begin..end) {
            latencies.add(sent.elapsed());
        }
    }
}

fn consume_durable(clients: &mut [Client], consumed: &AtomicU64, over: &AtomicBool) -> Result<(), Error> {
    while !over.load(Ordering::Relaxed) {
        let mut moved = false;
        for client in &mut *clients {
            moved |= client.poll()?;
            let (mut last, mut count) = (None, 0);
            while let Some(heard) = client.hear()? {
                match heard {
                    Heard::Delivered(message) if message.body.len() == LARGE => last = Some(message.tag),
                    other => return Err(Error::Broken(format!("{other:?} to a consumer"))),
                }
                count += 1;
            }
            if let Some(tag) = last {
                client.ack(tag, true);
                client.poll()?;
                consumed.fetch_add(count, Ordering::SeqCst);
            }
        }
        if !moved {
            thread::sleep(NAP);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_out_of_order_count_each_publish_once() {
        let (mut open, mut latencies) = (Open::default(), Histogram::default());
        (0..5).for_each(|_| open.publish(Instant::now()));
        for (tag, multiple, left) in [(1, false, 4), (5, false, 3), (3, true, 1), (3, true, 1), (4, false, 0)]
        {
            open.confirm(tag, multiple, &mut latencies);
            assert_eq!(open.waiting.len(), left);
        }
        assert_eq!(latencies.count, 5);
    }
}
