//! Kills a real broker again and again under load, and judges what its clients saw:
//! `kill --broker PATH --kills N --seconds-between LO..HI --out HISTORY [--seed N]`.
//!
//! Publishers (confirms, a window of 100; one a queue, two by way of a fanout) and two consumers a queue (prefetch 50,
//! single and multiple acknowledgements, some given back, some held) work on while the process is killed without
//! warning, now and then once more while it recovers. At the end every queue is drained until it is empty twice.
//!
//! Owns: the process, its directory, the traffic, the history. Promises: a publish of unknown outcome is not repeated,
//! so that any second arrival has to have a cause; every wait ends; the verdict is that of the written file. Exit
//! status: 0 passed, 1 a promise is broken or the broker failed, 2 no verdict. What failed keeps its directory.
//! Does not know: the rules, nor anything of the broker but its command line, health page and AMQP.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dassie_amqp::content::{Properties, PropertyList};
use dassie_interop::body::{self, Identity};
use dassie_interop::check::{self, Report};
use dassie_interop::history::event::{Damaged, Delivery, Event, Msg, Name, Op, Outcome, Publish, Settle};
use dassie_interop::history::{History, Names, Recorder};
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Durability, Error, Heard, Message};

const USAGE: &str =
    "usage: kill --broker PATH --kills N --seconds-between LO..HI --out HISTORY [--seed N] [--dir DIRECTORY]";
const QUEUES: [&str; 3] = ["one", "two", "three"];
const FANOUT: &str = "both";
/// The queues behind the fanout.
const BEHIND: [&str; 2] = ["two", "three"];
/// Who publishes where to, and to how many queues that leads.
const PUBLISHERS: [(&str, &str, i64); 5] =
    [("p1", "one", 1), ("p2", "two", 1), ("p3", "three", 1), ("p4", FANOUT, 2), ("p5", FANOUT, 2)];
const WINDOW: usize = 100;
const PREFETCH: u16 = 50;
/// So many messages may lie in the queues before publishers wait, so that the end comes soon.
const BACKLOG: i64 = 5_000;
/// The longest pause of a lazy consumer between two reads, in milliseconds.
const LAZY: u64 = 40;
/// The most that one publisher sends in a second: a run of hundreds of kills stays a file that can be judged.
const RATE: u64 = 2_000;
/// What a restart may take, on a machine that does other things, too.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What the rest of a run may take once the killing is over.
const END_WITHIN: Duration = Duration::from_secs(120);
/// Silence after which consumers have what there is.
const SILENCE: Duration = Duration::from_millis(1_500);
/// One kill in so many is followed by another one during recovery.
const KILL_RECOVERY: u64 = 4;
const CONFIRMS_PER_KILL: u64 = 50;

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match arguments.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no verdict: {error}");
            ExitCode::from(2)
        }
    }
}

struct Arguments {
    broker: PathBuf,
    kills: u64,
    /// Milliseconds between two kills, at least and at most.
    between: (u64, u64),
    out: PathBuf,
    seed: u64,
    directory: PathBuf,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let (mut broker, mut kills, mut between, mut out) = (None, None, None, None);
        let mut seed =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
        let mut directory = std::env::temp_dir().join(format!("dassie-kill-{}", std::process::id()));
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word.as_str() {
                "--broker" => broker = Some(PathBuf::from(value)),
                "--kills" => kills = Some(value.parse().ok()?),
                "--seconds-between" => {
                    let (low, high) = value.split_once("..")?;
                    between = Some((milliseconds(low)?, milliseconds(high)?));
                }
                "--out" => out = Some(PathBuf::from(value)),
                "--seed" => seed = value.parse().ok()?,
                "--dir" => directory = PathBuf::from(value),
                _ => return None,
            }
        }
        let between = between.filter(|(low, high)| low < high)?;
        Some(Self { broker: broker?, kills: kills?, between, out: out?, seed, directory })
    }

    fn run(&self) -> Result<bool, String> {
        fs::create_dir(&self.directory).map_err(|error| format!("{}: {error}", self.directory.display()))?;
        let out = File::create(&self.out).map_err(|error| format!("{}: {error}", self.out.display()))?;
        let dice = Dice::new(self.seed);
        let mut broker = Broker::new(&self.broker, &self.directory, &dice)?;
        let run = Run::new(Tape::new(BufWriter::new(out)), format!("kill{}", self.seed), broker.amqp);
        println!("seed {}, broker in {}", self.seed, self.directory.display());
        let end = self.live(&run, &mut broker, &dice);
        let panics = broker.panics();
        let restarts = std::mem::take(&mut broker.restarts);
        drop(broker);
        if let Err(error) = &end {
            println!("the run ended early: {error}");
        }
        run.tape.finish().map_err(|error| format!("{}: {error}", self.out.display()))?;
        let report = judge(BufReader::new(File::open(&self.out).map_err(|error| error.to_string())?))?;
        println!("{report}");
        for line in &panics {
            println!("the broker panicked: {line}");
        }
        let passed = report.passed() && end.is_ok() && panics.is_empty();
        self.print(&report, restarts, passed);
        if passed {
            fs::remove_dir_all(&self.directory).map_err(|error| error.to_string())?;
        } else {
            println!("kept: {}", self.directory.display());
        }
        Ok(passed)
    }

    fn print(&self, report: &Report, mut restarts: Vec<Duration>, passed: bool) {
        restarts.sort_unstable();
        let at = |percent: usize| {
            let last = restarts.len().saturating_sub(1);
            restarts.get(last * percent / 100).map_or(0, Duration::as_millis)
        };
        let (p50, p99) = (at(50), at(99));
        println!(
            "{} kills asked, {} restarts, ready after p50 {p50} ms, p99 {p99} ms",
            self.kills,
            restarts.len()
        );
        println!(
            "{{\"kill\":{{\"passed\":{passed},\"seed\":{},\"kills\":{},\"restarts\":{},\"restart_p50_ms\":{p50},\
             \"restart_p99_ms\":{p99},\"report\":{}}}}}",
            self.seed,
            self.kills,
            restarts.len(),
            report.json()
        );
    }

    fn live(&self, run: &Run, broker: &mut Broker, dice: &Dice) -> Result<(), String> {
        broker.start(None)?;
        run.declare().map_err(|error| format!("can not declare: {error}"))?;
        run.plan(self.kills);
        thread::scope(|scope| {
            for (name, place, copies) in PUBLISHERS {
                let seed = dice.throw();
                scope.spawn(move || run.publisher(name, place, copies, &Dice::new(seed)));
            }
            for queue in QUEUES {
                for which in ["a", "b"] {
                    let seed = dice.throw();
                    scope.spawn(move || run.consumer(&format!("{queue}-{which}"), queue, &Dice::new(seed)));
                }
            }
            let lived = self.harm(run, broker, dice).and_then(|()| run.heal());
            // Whatever happened, the threads must end.
            run.publishing.store(false, Ordering::SeqCst);
            run.consuming.store(false, Ordering::SeqCst);
            lived
        })?;
        run.drain()?;
        run.first_failure().map_or_else(|| broker.alive(), Err)
    }

    fn harm(&self, run: &Run, broker: &mut Broker, dice: &Dice) -> Result<(), String> {
        let mut kills = 0;
        while kills < self.kills {
            thread::sleep(Duration::from_millis(
                self.between.0 + dice.below(self.between.1 - self.between.0),
            ));
            broker.alive()?;
            run.first_failure().map_or(Ok(()), Err)?;
            let begin = run.tape.now();
            broker.kill();
            kills += 1;
            if kills < self.kills && dice.below(KILL_RECOVERY) == 0 {
                let again = run.tape.now();
                broker.start(Some(Duration::from_millis(dice.below(120))))?;
                broker.kill();
                kills += 1;
                run.tape.harness(again, run.tape.now(), |names| Op::Fault { name: names.name("kill") });
            }
            broker.start(None)?;
            let end = run.tape.now();
            run.tape.harness(begin, end, |names| Op::Fault { name: names.name("kill") });
            run.tape.harness(begin, end, |_| Op::Crash);
        }
        thread::sleep(Duration::from_millis(self.between.1));
        Ok(())
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    let time = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
    u64::try_from(time.as_millis()).ok()
}

fn judge(lines: impl std::io::BufRead) -> Result<Report, String> {
    let mut history = History::default();
    history.read(lines).map_err(|error| error.to_string())?;
    Ok(check::all(&history))
}

/// The process under test and where it lives.
struct Broker {
    binary: PathBuf,
    directory: PathBuf,
    amqp: SocketAddr,
    http: SocketAddr,
    child: Option<Child>,
    restarts: Vec<Duration>,
}

impl Broker {
    fn new(binary: &Path, directory: &Path, dice: &Dice) -> Result<Self, String> {
        let (amqp, http) = (free_port(dice)?, free_port(dice)?);
        let (binary, directory) = (binary.to_owned(), directory.to_owned());
        Ok(Self { binary, directory, amqp, http, child: None, restarts: Vec::new() })
    }

    /// Starts and waits: until it is ready, or only so long.
    fn start(&mut self, only: Option<Duration>) -> Result<(), String> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|error| error.to_string())?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new(&self.binary);
        command.arg("--data-dir").arg(self.directory.join("data"));
        let [amqp, http] =
            [("amqp", self.amqp), ("http", self.http)].map(|(what, at)| format!("{what}.listen={at}"));
        let silent = ["metrics.listen=", "rocketmq.listen=", "rocketmq.name_server_listen="];
        for setting in [amqp.as_str(), http.as_str()].into_iter().chain(silent) {
            command.args(["--set", setting]);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let begin = Instant::now();
        let child = command.spawn().map_err(|error| format!("{}: {error}", self.binary.display()))?;
        self.child = Some(child);
        if let Some(time) = only {
            thread::sleep(time);
            return self.alive();
        }
        while !self.is_ready() {
            self.alive()?;
            if begin.elapsed() > READY_WITHIN {
                return Err(format!("not ready after {} s: {}", READY_WITHIN.as_secs(), self.last_line()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.restarts.push(begin.elapsed());
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let ask = || {
            let mut page = TcpStream::connect_timeout(&self.http, Duration::from_secs(1))?;
            page.set_read_timeout(Some(Duration::from_secs(2)))?;
            page.write_all(b"GET /health/ready HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n")?;
            let mut answer = [0; 12];
            page.read_exact(&mut answer)?;
            std::io::Result::Ok(answer == *b"HTTP/1.1 200")
        };
        ask().unwrap_or(false)
    }

    /// An error when the process ended on its own.
    fn alive(&mut self) -> Result<(), String> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(status))) => {
                Err(format!("the broker ended by itself, {status}: {}", self.last_line()))
            }
            other => Err(format!("no broker: {other:?}")),
        }
    }

    /// Without a warning. One that is gone already can not be hurt.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("broker.log")
    }

    fn log_text(&self) -> String {
        fs::read(self.log())
            .map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
    }

    fn last_line(&self) -> String {
        self.log_text().lines().next_back().unwrap_or("it said nothing").to_owned()
    }

    fn panics(&self) -> Vec<String> {
        self.log_text().lines().filter(|line| line.contains("panicked")).map(str::to_owned).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Below the ephemeral range: no client's own socket takes it while the broker is down.
fn free_port(dice: &Dice) -> Result<SocketAddr, String> {
    for _ in 0..200 {
        let port = u16::try_from(20_000 + dice.below(12_000)).map_err(|error| error.to_string())?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err("no free port".to_owned())
}

/// The one history of all threads, on one clock.
struct Tape<W: Write> {
    recorder: Mutex<Recorder<W>>,
    start: Instant,
}

impl<W: Write> Tape<W> {
    fn new(out: W) -> Self {
        Self { recorder: Mutex::new(Recorder::new(out)), start: Instant::now() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run is shorter than five centuries")
    }

    fn record(&self, times: (u64, u64), client: &str, outcome: Outcome, op: impl FnOnce(&mut Names) -> Op) {
        let mut recorder = self.recorder.lock().expect("no thread panics while it writes");
        let (client, op) = (recorder.names().name(client), op(recorder.names()));
        let event = Event { t0: times.0, t1: times.1, client, outcome, op };
        // Without its history a run is worth nothing, and a full disk is no bug of the broker.
        recorder.record(&event).expect("the history can be written");
    }

    fn harness(&self, t0: u64, t1: u64, op: impl FnOnce(&mut Names) -> Op) {
        self.record((t0, t1), "harness", Outcome::Ok, op);
    }

    fn publish(&self, sent: &Sent, publisher: &str, place: &str, outcome: Outcome) {
        let &Sent { seq, t0, sum, .. } = sent;
        self.record((t0, self.now()), publisher, outcome, |names| {
            let (queue, publisher) = (names.name(place), names.name(publisher));
            let msg = Msg { publisher, seq };
            Op::Publish(Publish { queue, part: None, msg, offset: None, sum: Some(sum), ordered: true })
        });
    }

    fn settle(
        &self,
        times: (u64, u64),
        client: &str,
        outcome: Outcome,
        queue: &str,
        msg: &Own,
        how: fn(Settle) -> Op,
    ) {
        self.record(times, client, outcome, |names| {
            let queue = names.name(queue);
            how(Settle { queue, group: Name::NONE, msg: msg.named(names), token: None })
        });
    }

    /// Notes an arrival; none when the body does not prove itself.
    fn arrive(
        &self,
        run: &str,
        client: &str,
        queue: &str,
        asked: Option<u64>,
        message: &Message<'_>,
    ) -> Option<Own> {
        let now = self.now();
        let times = (asked.unwrap_or(now), now);
        match body::verify(&message.body, run) {
            Ok(identity) => {
                let own = Own { publisher: identity.publisher.to_owned(), seq: identity.seq };
                self.record(times, client, Outcome::Ok, |names| {
                    Op::Deliver(Delivery {
                        queue: names.name(queue),
                        group: Name::NONE,
                        part: 0,
                        msg: own.named(names),
                        offset: None,
                        tag: message.tag.try_into().ok(),
                        token: None,
                        redelivered: Some(message.redelivered),
                        sum: Some(body::checksum(message.properties.as_bytes())),
                        asked: asked.is_some(),
                        auto: false,
                    })
                });
                Some(own)
            }
            Err(damage) => {
                self.record(times, client, Outcome::Ok, |names| {
                    Op::Damaged(Damaged { queue: names.name(queue), why: names.name(&damage.to_string()) })
                });
                None
            }
        }
    }

    fn finish(self) -> std::io::Result<W> {
        self.recorder.into_inner().expect("no thread panics while it writes").finish()
    }
}

/// A message's identity, free of the bytes it arrived in.
#[derive(Debug, Clone)]
struct Own {
    publisher: String,
    seq: u32,
}

impl Own {
    fn named(&self, names: &mut Names) -> Msg {
        Msg { publisher: names.name(&self.publisher), seq: self.seq }
    }
}

/// A publish that waits for its confirm.
struct Sent {
    tag: u64,
    seq: u32,
    t0: u64,
    sum: u32,
}

/// What all threads of a run share.
struct Run<W: Write = BufWriter<File>> {
    tape: Tape<W>,
    name: String,
    server: SocketAddr,
    publishing: AtomicBool,
    consuming: AtomicBool,
    /// Confirmed copies without first deliveries, roughly: a crash blurs it.
    backlog: AtomicI64,
    /// When a message last arrived, on the tape's clock.
    last_arrival: AtomicU64,
    publishers: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Run {
    fn new(tape: Tape<BufWriter<File>>, name: String, server: SocketAddr) -> Self {
        Self {
            tape,
            name,
            server,
            publishing: AtomicBool::new(true),
            consuming: AtomicBool::new(true),
            backlog: AtomicI64::new(0),
            last_arrival: AtomicU64::new(0),
            publishers: AtomicU64::new(PUBLISHERS.len() as u64),
            failure: Mutex::new(None),
        }
    }

    /// Keeps the first thing that went wrong beyond what the history can say.
    fn fail(&self, what: String) {
        self.failure.lock().expect("no thread panics here").get_or_insert(what);
    }

    fn first_failure(&self) -> Option<String> {
        self.failure.lock().expect("no thread panics here").clone()
    }

    /// A connection lost by a crash is a matter of course; anything else the server says is a failure.
    fn ended(&self, who: &str, error: &Error) {
        if !matches!(error, Error::Gone(_)) {
            self.fail(format!("{who}: {error}"));
        }
        thread::sleep(Duration::from_millis(10));
    }

    fn declare(&self) -> Result<(), Error> {
        let mut client = Client::connect(self.server)?;
        for queue in QUEUES {
            client.declare_queue(queue, Durability::Durable)?;
        }
        client.declare_fanout(FANOUT)?;
        for queue in BEHIND {
            let begin = self.tape.now();
            client.bind(queue, FANOUT)?;
            self.tape.harness(begin, self.tape.now(), |names| Op::Route {
                from: names.name(FANOUT),
                queue: names.name(queue),
            });
        }
        client.close()
    }

    fn plan(&self, kills: u64) {
        for (what, count) in
            [("confirms", kills * CONFIRMS_PER_KILL), ("redeliveries", kills), ("kill", kills)]
        {
            let now = self.tape.now();
            self.tape.harness(now, now, |names| Op::Plan { what: names.name(what), count });
        }
    }

    fn publisher(&self, name: &str, place: &str, copies: i64, dice: &Dice) {
        let mut publisher =
            Publisher { run: self, name, place, copies, dice, seq: 0, pending: VecDeque::new() };
        while self.publishing.load(Ordering::SeqCst) {
            if let Err(error) = publisher.live() {
                for sent in publisher.pending.drain(..) {
                    self.tape.publish(&sent, name, place, Outcome::Info);
                }
                self.ended(name, &error);
            }
        }
        self.publishers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Each life of a consumer is a client of its own in the history: its channel is a new one.
    fn consumer(&self, name: &str, queue: &str, dice: &Dice) {
        for life in 1_u64.. {
            if !self.consuming.load(Ordering::SeqCst) {
                return;
            }
            let client = format!("{name}.{life}");
            let mut consumer = Consumer { run: self, name: &client, queue, dice, open: Vec::new() };
            if let Err(error) = consumer.live() {
                let now = self.tape.now();
                self.tape.record((now, now), &client, Outcome::Ok, |_| Op::Lost { queue: None });
                self.ended(name, &error);
            }
        }
    }

    /// The end of all harm: publishers finish, a message goes through every place, consumers take what there is.
    fn heal(&self) -> Result<(), String> {
        let deadline = Instant::now() + END_WITHIN;
        self.publishing.store(false, Ordering::SeqCst);
        while self.publishers.load(Ordering::SeqCst) > 0 {
            self.wait(deadline, "publishers wait for their confirms")?;
        }
        let now = self.tape.now();
        self.tape.harness(now, now, |_| Op::Healed);
        for place in QUEUES.into_iter().chain([FANOUT]) {
            let name = format!("last-{place}");
            let dice = Dice::new(0);
            let mut last = Publisher {
                run: self,
                name: &name,
                place,
                copies: 1,
                dice: &dice,
                seq: 0,
                pending: VecDeque::new(),
            };
            last.one().map_err(|error| format!("{name}: {error}"))?;
        }
        let silence = u64::try_from(SILENCE.as_nanos()).expect("a short time");
        let healed = self.tape.now();
        while self.tape.now() < self.last_arrival.load(Ordering::SeqCst).max(healed) + silence {
            self.wait(deadline, "messages still come")?;
        }
        Ok(())
    }

    fn wait(&self, deadline: Instant, what: &str) -> Result<(), String> {
        self.first_failure().map_or(Ok(()), Err)?;
        if Instant::now() > deadline {
            return Err(format!("after {} s {what}", END_WITHIN.as_secs()));
        }
        thread::sleep(Duration::from_millis(10));
        Ok(())
    }

    /// Gets what consumers gave back or never got. An answer on the channel proves the acknowledgement before it.
    fn drain(&self) -> Result<(), String> {
        let deadline = Instant::now() + END_WITHIN;
        for queue in QUEUES {
            self.drain_queue(queue, deadline).map_err(|error| format!("draining {queue:?}: {error}"))?;
        }
        Ok(())
    }

    fn drain_queue(&self, queue: &str, deadline: Instant) -> Result<(), Error> {
        let name = format!("drain-{queue}");
        let mut client = Client::connect(self.server)?;
        client.find_queue(queue)?;
        let mut empty = 0;
        let mut acked: Option<(u64, Own)> = None;
        while empty < 2 {
            if Instant::now() > deadline {
                return Err(Error::Broken("it is never empty".to_owned()));
            }
            let begin = self.tape.now();
            client.get(queue);
            let got = self.answer_to_get(&mut client, &name, queue, begin)?;
            if let Some((t0, msg)) = acked.take() {
                self.tape.settle((t0, self.tape.now()), &name, Outcome::Ok, queue, &msg, Op::Ack);
            }
            match got {
                None => {
                    self.tape.record((begin, self.tape.now()), &name, Outcome::Ok, |names| Op::Empty {
                        queue: names.name(queue),
                    });
                    empty += 1;
                    thread::sleep(Duration::from_millis(200));
                }
                Some((tag, own)) => {
                    empty = 0;
                    acked = own.map(|own| (self.tape.now(), own));
                    client.ack(tag, false);
                }
            }
        }
        client.close()
    }

    /// What a get brought: none if there is nothing; no identity if it is damaged.
    fn answer_to_get(
        &self,
        client: &mut Client,
        name: &str,
        queue: &str,
        asked: u64,
    ) -> Result<Option<(u64, Option<Own>)>, Error> {
        client.flush()?;
        for _ in 0..15 {
            if let Some(heard) = client.hear()? {
                match heard {
                    Heard::Nothing => return Ok(None),
                    Heard::Got(message) => {
                        let own = self.tape.arrive(&self.name, name, queue, Some(asked), &message);
                        return Ok(Some((message.tag, own)));
                    }
                    other => return Err(Error::Broken(format!("{other:?} to a get"))),
                }
            }
            client.receive(Duration::from_secs(1))?;
        }
        Err(Error::Broken("no answer to a get".to_owned()))
    }
}

struct Publisher<'r> {
    run: &'r Run,
    name: &'r str,
    place: &'r str,
    copies: i64,
    dice: &'r Dice,
    seq: u32,
    pending: VecDeque<Sent>,
}

impl Publisher<'_> {
    /// One connection, until it is lost or enough was published.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.run.server)?;
        client.confirm()?;
        let (begin, mut tag) = (Instant::now(), 0);
        let mut heard = Instant::now();
        loop {
            let goes_on = self.run.publishing.load(Ordering::SeqCst);
            if !goes_on && self.pending.is_empty() {
                return client.close();
            }
            let allowed =
                u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000;
            let mut burst = 1 + self.dice.below(30);
            while goes_on
                && burst > 0
                && tag < allowed
                && self.pending.len() < WINDOW
                && self.run.backlog.load(Ordering::Relaxed) < BACKLOG
            {
                tag += 1;
                burst -= 1;
                self.publish(&mut client, tag);
            }
            client.flush()?;
            let wait = Duration::from_millis(if self.pending.len() < WINDOW { 2 } else { 100 });
            if client.receive(wait)? {
                heard = Instant::now();
            }
            self.hear(&mut client)?;
            if !self.pending.is_empty() && heard.elapsed() > Duration::from_secs(30) {
                return Err(Error::Broken("no confirm for 30 s".to_owned()));
            }
        }
    }

    /// A single message, confirmed.
    fn one(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.run.server)?;
        client.confirm()?;
        self.publish(&mut client, 1);
        client.flush()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.pending.is_empty() && Instant::now() < deadline {
            client.receive(Duration::from_secs(1))?;
            self.hear(&mut client)?;
        }
        client.close()
    }

    fn publish(&mut self, client: &mut Client, tag: u64) {
        self.seq += 1;
        // Mostly small, some larger, a few of several frames.
        let size = match self.dice.below(1_000) {
            0..3 => 200_000,
            3..50 => 8_000,
            _ => 100 + usize::try_from(self.dice.below(400)).expect("a small number"),
        };
        let identity =
            Identity { run: &self.run.name, publisher: self.name, seq: self.seq, queue: self.place };
        let body = identity.encode(size).expect("names without white space and a small size");
        let id = format!("{}/{}", self.name, self.seq);
        let mut block = Vec::new();
        PropertyList { delivery_mode: Some(2), message_id: Some(id.as_bytes()), ..Default::default() }
            .encode(&mut block);
        let properties = Properties::parse(&block).expect("just written");
        let (exchange, key) = if self.place == FANOUT { (FANOUT, "") } else { ("", self.place) };
        let t0 = self.run.tape.now();
        client.publish(exchange, key, properties, &body);
        self.pending.push_back(Sent { tag, seq: self.seq, t0, sum: body::checksum(&block) });
    }

    fn hear(&mut self, client: &mut Client) -> Result<(), Error> {
        while let Some(heard) = client.hear()? {
            let (tag, multiple, outcome) = match heard {
                Heard::Confirmed { tag, multiple } => (tag, multiple, Outcome::Ok),
                // Not taken, says the server; in a fanout one queue may have it all the same.
                Heard::Refused { tag, multiple } => (tag, multiple, Outcome::Info),
                other => return Err(Error::Broken(format!("{other:?} to a publisher"))),
            };
            let end = self.pending.partition_point(|sent| sent.tag <= tag);
            let begin = if multiple { 0 } else { self.pending.partition_point(|sent| sent.tag < tag) };
            if begin == end {
                return Err(Error::Broken(format!("a confirm of {tag}, which waits for none")));
            }
            for sent in self.pending.drain(begin..end) {
                self.run.backlog.fetch_add(self.copies, Ordering::Relaxed);
                self.run.tape.publish(&sent, self.name, self.place, outcome);
            }
        }
        Ok(())
    }
}

struct Consumer<'r> {
    run: &'r Run,
    name: &'r str,
    queue: &'r str,
    dice: &'r Dice,
    /// Delivered and not settled.
    open: Vec<(u64, Own)>,
}

impl Consumer<'_> {
    /// One connection, until it is lost or consuming is over.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.run.server)?;
        client.consume(self.queue, Some(PREFETCH))?;
        // What is settled at once can not be lost: some lives are slow, so that a crash finds messages in the queues.
        let pause = Duration::from_millis(if self.dice.below(3) == 0 { 0 } else { self.dice.below(LAZY) });
        while self.run.consuming.load(Ordering::SeqCst) {
            if self.run.publishing.load(Ordering::SeqCst) {
                thread::sleep(pause);
            }
            let idle = !client.receive(Duration::from_millis(50))?;
            let arrived = self.hear(&mut client)?;
            self.give_back(&mut client, arrived);
            // Some are held, so that a crash finds messages at consumers; never so many that the queue stands still.
            if idle || self.open.len() > usize::from(PREFETCH) / 2 || self.dice.below(5) > 0 {
                self.acknowledge(&mut client);
            }
            client.flush()?;
        }
        // What was delivered and not heard goes back from here on.
        let now = self.run.tape.now();
        self.run.tape.record((now, now), self.name, Outcome::Ok, |_| Op::Lost { queue: None });
        client.close()
    }

    fn hear(&self, client: &mut Client) -> Result<Vec<(u64, Own)>, Error> {
        let mut arrived = Vec::new();
        while let Some(heard) = client.hear()? {
            let message = match heard {
                Heard::Delivered(message) => message,
                other => return Err(Error::Broken(format!("{other:?} to a consumer"))),
            };
            if !message.redelivered {
                self.run.backlog.fetch_sub(1, Ordering::Relaxed);
            }
            self.run.last_arrival.store(self.run.tape.now(), Ordering::SeqCst);
            let own = self.run.tape.arrive(&self.run.name, self.name, self.queue, None, &message);
            // A damaged one is in the history, which settles nothing: it may be acknowledged by the next of several.
            arrived.extend(own.map(|own| (message.tag, own)));
        }
        Ok(arrived)
    }

    fn give_back(&mut self, client: &mut Client, arrived: Vec<(u64, Own)>) {
        for (tag, own) in arrived {
            if self.dice.permille(20) {
                let now = self.run.tape.now();
                self.run.tape.settle((now, now), self.name, Outcome::Info, self.queue, &own, Op::Requeue);
                client.requeue(tag);
            } else {
                self.open.push((tag, own));
            }
        }
    }

    /// Settles all that is open, one by one or at once.
    fn acknowledge(&mut self, client: &mut Client) {
        let at_once = self.dice.below(2) == 0;
        let last = self.open.last().map(|(tag, _)| *tag);
        for (tag, own) in self.open.drain(..) {
            let now = self.run.tape.now();
            self.run.tape.settle((now, now), self.name, Outcome::Info, self.queue, &own, Op::Ack);
            if !at_once {
                client.ack(tag, false);
            }
        }
        if let Some(tag) = last.filter(|_| at_once) {
            client.ack(tag, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short run as the clients record it: three messages confirmed, delivered, settled.
    fn recorded() -> String {
        let tape = Tape::new(Vec::new());
        tape.harness(0, 0, |names| Op::Plan { what: names.name("confirms"), count: 3 });
        for seq in 1..=3 {
            let body = Identity { run: "r", publisher: "p1", seq, queue: "one" }.encode(100).unwrap();
            let properties = Properties::EMPTY;
            let sent =
                Sent { tag: seq.into(), seq, t0: tape.now(), sum: body::checksum(properties.as_bytes()) };
            tape.publish(&sent, "p1", "one", Outcome::Ok);
            let message = Message { tag: seq.into(), redelivered: false, properties, body: body.into() };
            let own = tape.arrive("r", "c.1", "one", None, &message).unwrap();
            let now = tape.now();
            tape.settle((now, now), "c.1", Outcome::Info, "one", &own, Op::Ack);
        }
        String::from_utf8(tape.finish().unwrap()).unwrap()
    }

    #[test]
    fn a_confirmed_message_dropped_from_a_recorded_history_is_a_loss() {
        let whole = recorded();
        let report = judge(whole.as_bytes()).unwrap();
        assert!(report.passed(), "{report}");
        let is_kept = |line: &&str| line.contains("\"op\":\"publish\"") || !line.contains("\"p1/2\"");
        let without: Vec<_> = whole.lines().filter(is_kept).collect();
        assert_eq!(whole.lines().count() - without.len(), 2, "one delivery and its settlement are gone");
        let report = judge(without.join("\n").as_bytes()).unwrap();
        assert!(!report.passed());
        assert_eq!(report.findings().totals().keys().copied().collect::<Vec<_>>(), ["loss.lost"]);
    }

    #[test]
    fn a_damaged_body_is_recorded_as_such() {
        let tape = Tape::new(Vec::new());
        let message = Message {
            tag: 1,
            redelivered: false,
            properties: Properties::EMPTY,
            body: b"nonsense"[..].into(),
        };
        assert!(tape.arrive("r", "c.1", "one", None, &message).is_none());
        let report = judge(&tape.finish().unwrap()[..]).unwrap();
        assert!(report.findings().totals().contains_key("phantom.damaged"), "{report}");
    }

    #[test]
    fn arguments_need_a_range_that_is_one() {
        let read = |text: &str| Arguments::read(text.split_whitespace().map(str::to_owned));
        let good = read("--broker b --kills 3 --seconds-between 0.5..2 --out o --seed 7").unwrap();
        assert_eq!((good.kills, good.between, good.seed), (3, (500, 2_000), 7));
        for bad in ["", "--broker b --kills 3 --seconds-between 2..1 --out o", "--lie yes", "--kills"] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
