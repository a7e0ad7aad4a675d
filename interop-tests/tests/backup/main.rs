//! Backups of the real program under load of both worlds, and what comes back of them.
//!
//! Owns: a broker with two publishers, the program's commands. Promises: no sleeps: a test waits for an answer or a file within a
//! deadline. Does not know: what a backup consists of.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dassie_amqp::content::Properties;
use dassie_interop::harm::Broker;
use dassie_interop::remoting::{Remoting, refusal};
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::{PullAnswer, PullMessage, SendMessage, ShortNames, pull_flag};
use dassie_rocketmq::message::StoredMessage;
use dassie_rocketmq::{HeaderCodec, RequestCode};

const PATIENCE: Duration = Duration::from_secs(120);
const QUEUE: &str = "kept";
const TOPIC: &str = "kept";
const BODY: usize = 2048;

/// The program beside the tests, or the one that `DASSIE_BIN` names.
fn binary() -> PathBuf {
    if let Some(binary) = env::var_os("DASSIE_BIN") {
        return binary.into();
    }
    let test = env::current_exe().expect("the system tells");
    let binary = test.ancestors().nth(2).expect("in target/*/deps").join("dassie");
    assert!(binary.exists(), "{} is missing: cargo build", binary.display());
    binary
}

/// A directory of the test's own, gone when it passed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("dassie-backup-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory of its own");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn broker(scratch: &Scratch, data: &str, settings: &[&str]) -> Broker {
    let seed = u64::from(std::process::id()) + data.len() as u64 * 31_337;
    let mut broker = Broker::new(&binary(), &scratch.0, &Dice::new(seed)).expect("free ports");
    broker.data = scratch.0.join(data);
    broker.settings.extend(settings.iter().map(|setting| (*setting).to_owned()));
    broker
}

fn dassie(words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    dassie(words).output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn done(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

fn refused(words: &[&str], code: i32) -> String {
    let output = run(words);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
    text(&output)
}

/// Publishers of both worlds, each with messages 0, 1, 2... one after the other, until told to stop.
struct Publishers {
    stop: Arc<AtomicBool>,
    /// Confirmed to AMQP, stored for RocketMQ: so many.
    confirmed: [Arc<AtomicU64>; 2],
    /// AMQP goes no further.
    goal: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(BODY, 7);
    body
}

fn number(body: &[u8]) -> u64 {
    body.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes))
}

impl Publishers {
    fn start(broker: &Broker) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let confirmed = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let goal = Arc::new(AtomicU64::new(0));
        let (amqp, rocketmq) = (broker.ports.amqp, broker.ports.rocketmq);
        let (ended, count, most) = (Arc::clone(&stop), Arc::clone(&confirmed[0]), Arc::clone(&goal));
        let one = thread::spawn(move || {
            let mut client = Client::connect(amqp).expect("it accepts");
            client.declare_queue(QUEUE, Durability::Durable).expect("it declares");
            client.confirm().expect("it confirms");
            let mut next = 0;
            while !ended.load(Ordering::SeqCst) {
                while next < most.load(Ordering::SeqCst).min(count.load(Ordering::SeqCst) + 200) {
                    client.publish("", QUEUE, Properties::EMPTY, &body(next));
                    next += 1;
                }
                // The broker is killed at last.
                if client.flush().is_err() || client.receive(Duration::from_millis(100)).is_err() {
                    return;
                }
                while let Ok(Some(heard)) = client.hear() {
                    if let Heard::Confirmed { tag, .. } = heard {
                        count.fetch_max(tag, Ordering::SeqCst);
                    }
                }
            }
        });
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&confirmed[1]));
        let two = thread::spawn(move || {
            let mut producer = Remoting::connect(rocketmq, HeaderCodec::Json).expect("it accepts");
            while !ended.load(Ordering::SeqCst) {
                let next = count.load(Ordering::SeqCst);
                let header = SendMessage {
                    producer_group: "P",
                    topic: TOPIC,
                    default_topic_queue_nums: 1,
                    ..SendMessage::default()
                };
                let sent =
                    producer.ask(RequestCode::SendMessageV2, &ShortNames(header), &body(next), |answer| {
                        if answer.head.code == 0 { Ok(()) } else { Err(refusal(answer)) }
                    });
                match sent {
                    Ok(()) => drop(count.fetch_add(1, Ordering::SeqCst)),
                    Err(Error::Refused(code, why)) => panic!("{code}: {why}"),
                    Err(_) => return,
                }
            }
        });
        Publishers { stop, confirmed, goal, threads: vec![one, two] }
    }

    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|world: usize| self.confirmed[world].load(Ordering::SeqCst))
    }

    /// Waits until both worlds have so many.
    fn reach(&self, counts: [u64; 2]) {
        // And some more, so that it goes on while a backup is taken.
        self.goal.store(counts[0] + 3_000, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while self.counts().iter().zip(&counts).any(|(is, wanted)| is < wanted) {
            assert!(Instant::now() < deadline, "{:?} of {counts:?}", self.counts());
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a publisher ended");
            thread::yield_now();
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("it did not panic");
        }
    }
}

/// How many messages the queue has: 0, 1, 2... without a hole.
fn drain(broker: &Broker) -> u64 {
    let mut client = Client::connect(broker.ports.amqp).expect("it accepts");
    client.consume(QUEUE, None).expect("it consumes");
    let (mut next, deadline) = (0, Instant::now() + PATIENCE);
    // What the consumer has not got yet would be got.
    client.get(QUEUE);
    client.flush().expect("it reads");
    loop {
        assert!(Instant::now() < deadline, "after {next}");
        client.receive(Duration::from_secs(1)).expect("it is there");
        let mut again = false;
        while let Some(heard) = client.hear().expect("it follows the protocol") {
            let message = match heard {
                Heard::Delivered(message) => message,
                Heard::Got(message) => {
                    again = true;
                    message
                }
                Heard::Nothing => return next,
                other => panic!("{other:?}"),
            };
            assert_eq!(number(&message.body), next);
            assert_eq!(message.body.len(), BODY);
            next += 1;
        }
        if again {
            client.get(QUEUE);
            client.flush().expect("it reads");
        }
    }
}

/// How many messages the topic has: 0, 1, 2... without a hole.
fn pull_all(broker: &Broker) -> u64 {
    let mut client = Remoting::connect(broker.ports.rocketmq, HeaderCodec::Json).expect("it accepts");
    let mut next = 0;
    loop {
        let header = PullMessage {
            consumer_group: "C",
            topic: TOPIC,
            queue_offset: i64::try_from(next).expect("small"),
            max_msg_nums: 32,
            sys_flag: pull_flag::SUBSCRIPTION,
            subscription: Some("*"),
            ..PullMessage::default()
        };
        let found = client.ask(RequestCode::PullMessage, &header, b"", |answer| {
            if answer.head.code != 0 {
                return Ok(None);
            }
            let told: PullAnswer = answer.header().map_err(|error| Error::Broken(error.to_string()))?;
            let (mut rest, mut at) = (answer.body, next);
            while !rest.is_empty() {
                let (message, used) =
                    StoredMessage::decode(rest).map_err(|error| Error::Broken(error.to_string()))?;
                message.check_body().map_err(|error| Error::Broken(error.to_string()))?;
                assert_eq!(number(message.body), at);
                rest = &rest[used..];
                at += 1;
            }
            assert_eq!(told.next_begin_offset, i64::try_from(at).expect("small"));
            Ok(Some(at))
        });
        match found.expect("it answers") {
            Some(at) => next = at,
            None => return next,
        }
    }
}

/// The number behind `what`.
fn figure(text: &str, what: &str) -> u64 {
    let rest = text.split_once(what).unwrap_or_else(|| panic!("no '{what}' in {text}")).1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn at(path: &Path) -> &str {
    path.to_str().expect("it is text")
}

#[test]
fn what_was_confirmed_before_a_backup_comes_back_in_both_worlds() {
    let scratch = Scratch::new("load");
    let mut source = broker(&scratch, "data", &["storage.segment_size=4MiB"]);
    source.start().expect("it starts");
    let url = format!("http://{}", source.ports.http);
    let (to, restored, earlier) =
        (scratch.0.join("backup"), scratch.0.join("restored"), scratch.0.join("earlier"));
    let publishers = Publishers::start(&source);
    publishers.reach([6_000, 300]);
    let before_first = publishers.counts();
    let first = done(&["backup", "--to", at(&to), "--url", &url]);
    let position = figure(&first, "position ");
    let after_first = publishers.counts();
    // Far enough for checkpoints in between.
    publishers.reach([after_first[0] + 16_000, after_first[1] + 300]);
    let before_second = publishers.counts();
    let second = done(&["backup", "--to", at(&to), "--url", &url]);
    assert!(figure(&second, "position ") > position, "{second}");
    publishers.reach(before_second.map(|count| count + 50));
    source.kill();
    let published = publishers.counts();
    publishers.end();

    let verified = done(&["verify", "--backup", at(&to)]);
    assert!(verified.contains("all as it was written"), "{verified}");
    done(&["verify", "--data-dir", at(&source.data)]);
    done(&["restore", "--from", at(&to), "--data-dir", at(&restored)]);
    refused(&["restore", "--from", at(&to), "--data-dir", at(&restored)], 1);
    done(&["verify", "--data-dir", at(&restored)]);
    let mut new = broker(&scratch, "restored", &[]);
    new.start().expect("it starts");
    let found = [drain(&new), pull_all(&new)];
    for world in [0, 1] {
        let bounds = before_second[world]..=published[world] + 200;
        assert!(bounds.contains(&found[world]), "{found:?}, {before_second:?} before, {published:?} in all");
    }
    // It is another cluster's: its backups go elsewhere.
    let other = format!("http://{}", new.ports.http);
    let text = refused(&["backup", "--to", at(&to), "--url", &other], 1);
    assert!(text.contains("backups of another cluster"), "{text}");
    new.kill();

    done(&["restore", "--from", at(&to), "--data-dir", at(&earlier), "--until", &position.to_string()]);
    let mut old = broker(&scratch, "earlier", &[]);
    old.start().expect("it starts");
    let found = [drain(&old), pull_all(&old)];
    for world in [0, 1] {
        let bounds = before_first[world]..=after_first[world] + 200;
        assert!(bounds.contains(&found[world]), "{found:?}, {before_first:?} to {after_first:?}");
    }
    old.kill();

    // One byte in the middle of the log.
    let segment =
        fs::read_dir(to.join("log")).expect("it is there").map(|file| file.expect("a file").path()).max();
    let segment = segment.expect("at least one");
    let mut bytes = fs::read(&segment).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&segment, bytes).expect("it can be written");
    let name = at(segment.file_name().map(Path::new).expect("a file")).to_owned();
    assert!(refused(&["verify", "--backup", at(&to)], 4).contains(&name));
    let nowhere = scratch.0.join("nowhere");
    assert!(refused(&["restore", "--from", at(&to), "--data-dir", at(&nowhere)], 4).contains(&name));
}

#[test]
fn a_backup_whose_client_vanishes_leaves_nothing_behind_and_the_next_one_goes_on() {
    let scratch = Scratch::new("vanish");
    let mut source = broker(&scratch, "data", &["storage.segment_size=4MiB", "cluster.copy_rate=2MiB"]);
    source.start().expect("it starts");
    let url = format!("http://{}", source.ports.http);
    let publishers = Publishers::start(&source);
    publishers.reach([6_000, 10]);
    publishers.end();
    let to = scratch.0.join("backup");
    let mut client = dassie(&["backup", "--to", at(&to), "--url", &url]).spawn().expect("it runs");
    let deadline = Instant::now() + PATIENCE;
    while !to.join("log").read_dir().is_ok_and(|mut names| names.next().is_some()) {
        assert!(Instant::now() < deadline, "nothing comes in");
        thread::yield_now();
    }
    // One at a time: here, and there.
    assert!(refused(&["backup", "--to", at(&to), "--url", &url], 1).contains("another backup or restore"));
    let elsewhere = scratch.0.join("elsewhere");
    assert!(refused(&["backup", "--to", at(&elsewhere), "--url", &url], 1).contains("under way"));
    client.kill().expect("it runs");
    client.wait().expect("it ends");
    assert!(
        refused(&["restore", "--from", at(&to), "--data-dir", at(&elsewhere)], 1).contains("no backup in it")
    );
    loop {
        let output = run(&["backup", "--to", at(&to), "--url", &url]);
        if output.status.success() {
            break;
        }
        assert!(text(&output).contains("under way"), "{}", text(&output));
        assert!(Instant::now() < deadline, "what the client held is held still");
    }
    done(&["verify", "--backup", at(&to)]);
    assert_eq!(source.panics(), [""; 0], "it panicked");
}
