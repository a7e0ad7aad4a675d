//! Lets the disk of a real broker fail or fill up under load, again and again, and judges what its clients saw:
//! `fault --broker PATH --what eio|full --times N --out HISTORY [--protocol amqp|rocketmq|both] [--seconds-between LO..HI] [--seed N]`.
//!
//! `eio` (needs strace): the N-th write, sync, allocation or renaming of one life fails with EIO, and only that one; every second time
//! one of the log's segments, where nearly all of them are otherwise those that prepare the next one. The broker must
//! end within a second, with a code that is not 0 and one line that names the operation; what it had confirmed is there afterwards.
//!
//! `full` (needs root, loop devices, ext4): a ballast takes all space of the broker's file system. Publishers must be held up, not
//! refused and not lied to; logins, gets, acknowledgements and pulls go on; every third time the broker is killed and
//! started again while there is no space. When the ballast goes, confirms come again by themselves within ten seconds.
//!
//! Owns: the faults. Promises: see [`dassie_interop::harm`]. Exit status: 0 passed, 1 a promise is broken, 2 no verdict, for
//! example without root. Does not know: the rules, the traffic.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use dassie_amqp::content::{Properties, PropertyList};
use dassie_interop::harm::file_system::FileSystem;
use dassie_interop::harm::{Arguments, Broker, Load, Words, Worlds};
use dassie_interop::history::event::Op;
use dassie_interop::remoting::Remoting;
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Durability, Error, Heard};
use dassie_rocketmq::header::GetMaxOffset;
use dassie_rocketmq::{HeaderCodec, RequestCode};

const USAGE: &str = "usage: fault --broker PATH --what eio|full --times N --out HISTORY \
                     [--protocol amqp|rocketmq|both] [--seconds-between LO..HI] [--seed N] [--dir DIRECTORY]";
const WORDS: Words = Words {
    harm: "fault",
    times: "--times",
    own: &["--what"],
    worlds: Worlds::Both,
    between: Some((200, 1_000)),
};
/// What fails, and up to which call of one life.
const CALLS: [(&str, u64); 7] = [
    ("fdatasync", 300),
    ("pwritev", 300),
    ("pwritev2", 300),
    ("fsync", 12),
    ("fallocate", 6),
    ("rename", 8),
    ("fdatasync", 40),
];
/// How long one life may take to come to the call that fails.
const FAILS_WITHIN: Duration = Duration::from_secs(8);
/// How long a broker may take to end after the call failed.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The image is sparse: it costs what is written.
const DISK: u64 = 4 << 30;
/// Small segments: space runs out soon.
const SEGMENT: &str = "storage.segment_size=8MiB";
/// Confirms that stand still for so long are held up.
const STILL: Duration = Duration::from_millis(1_500);
/// How long the space that is left may last, and how long getting over it may take.
const HELD_UP_WITHIN: Duration = Duration::from_secs(60);
const RESUMES_WITHIN: Duration = Duration::from_secs(10);
/// A queue beside the load, asked while there is no space.
const PROBE: &str = "probe";

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(&WORDS, std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let ran = match arguments.own.get("--what").map(String::as_str) {
        Some("eio") => errors(&arguments),
        Some("full") => full(&arguments),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no verdict: {error}");
            ExitCode::from(2)
        }
    }
}

fn pause(arguments: &Arguments, dice: &Dice) {
    thread::sleep(Duration::from_millis(
        arguments.between.0 + dice.below(arguments.between.1 - arguments.between.0),
    ));
}

fn errors(arguments: &Arguments) -> Result<bool, String> {
    let trace = arguments.trial.directory.join("trace");
    let mut slowest = Duration::ZERO;
    let harm = |load: &Load, broker: &mut Broker, dice: &Dice| {
        let (mut lives, mut errors) = (0_u64, 0);
        while errors < arguments.trial.times {
            lives += 1;
            if lives > arguments.trial.times * 5 {
                return Err(format!("{errors} errors in {lives} lives: the calls are never made"));
            }
            pause(arguments, dice);
            load.well()?;
            let begin = load.tape.now();
            broker.kill();
            let (call, last) =
                CALLS[usize::try_from(dice.below(CALLS.len() as u64)).expect("a small number")];
            let aimed = lives.is_multiple_of(2) && ["fdatasync", "pwritev"].contains(&call);
            let number = 1 + dice.below(last);
            let took = one_error(broker, &trace, (call, number), aimed)
                .map_err(|error| format!("{call} {number}: {error}"))?;
            broker.launcher.clear();
            broker.start()?;
            let end = load.tape.now();
            // It ran in between: what it gave out then may come again, and what it confirmed is owed.
            load.tape.harness(begin, end, |_| Op::Crash);
            if let Some(took) = took {
                errors += 1;
                slowest = slowest.max(took);
                load.tape.harness(end, end, |names| Op::Fault { name: names.name("fault") });
            }
        }
        Ok(())
    };
    let verdict = arguments.trial.run(|_| Ok(()), harm, || ())?;
    println!("the slowest end took {} ms after its error", slowest.as_millis());
    Ok(verdict.passed)
}

/// One life with an error in it. Gives how long the broker took to end after it; none if the call was never made: then it is killed.
/// `aimed`: only calls on the log's segments that exist now count.
fn one_error(
    broker: &mut Broker,
    trace: &Path,
    (call, number): (&str, u64),
    aimed: bool,
) -> Result<Option<Duration>, String> {
    let _ = fs::remove_file(trace);
    let words = format!(
        "strace -D -f -qq --seccomp-bpf -o {} -e trace={call} -e inject={call}:error=EIO:when={number}",
        trace.display()
    );
    broker.launcher = words.split_whitespace().map(Into::into).collect();
    if aimed {
        let log = broker.data.join("log");
        let files = fs::read_dir(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        for file in files.flatten().filter(|file| file.file_name() != "preparing") {
            broker.launcher.extend(["-P".into(), file.path().into_os_string()]);
        }
    }
    let said = broker.log_text().len();
    broker.spawn()?;
    let deadline = Instant::now() + FAILS_WITHIN;
    let failed = || fs::read_to_string(trace).is_ok_and(|text| text.contains("(INJECTED)"));
    while !failed() {
        if Instant::now() > deadline {
            broker.kill();
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let begin = Instant::now();
    let status = broker.ended_within(ENDS_WITHIN).ok_or("the broker goes on after the error")?;
    let took = begin.elapsed();
    let log = broker.log_text();
    let lines: Vec<_> = log[said..].lines().filter(|line| line.starts_with("dassie: ")).collect();
    let [line] = lines[..] else { return Err(format!("{} last lines: {lines:?}", lines.len())) };
    if !line.contains("Input/output error") || status.code().is_none_or(|code| code == 0) {
        return Err(format!("ended with {status}, saying {line:?}"));
    }
    println!("{call} {number}: code {:?}, {line}", status.code().unwrap_or_default());
    Ok(Some(took))
}

fn full(arguments: &Arguments) -> Result<bool, String> {
    // Shared by preparing and harming, and dropped after the broker has ended.
    let disk = RefCell::new(None);
    let prepare = |broker: &mut Broker| {
        let made = FileSystem::make(&arguments.trial.directory, DISK)?;
        broker.data = made.root.join("data");
        broker.settings.push(SEGMENT.to_owned());
        disk.replace(Some(made));
        Ok(())
    };
    let mut slowest = Duration::ZERO;
    let harm = |load: &Load, broker: &mut Broker, dice: &Dice| {
        let disk = disk.borrow();
        let disk = disk.as_ref().expect("it was prepared");
        load.be_patient(Duration::from_secs(180));
        for time in 1..=arguments.trial.times {
            pause(arguments, dice);
            let begin = load.tape.now();
            if load.worlds != Worlds::Rocketmq {
                fill_probe(broker).map_err(|error| format!("{time}: filling the probe: {error}"))?;
            }
            let told_before = load.blocked();
            disk.fill()?;
            held_up(load, broker).map_err(|error| format!("{time}: {error}"))?;
            told(load, told_before).map_err(|error| format!("{time}: {error}"))?;
            if load.worlds != Worlds::Rocketmq {
                ask_probe(broker)
                    .map_err(|error| format!("{time}: AMQP while there is no space: {error}"))?;
            }
            if load.worlds != Worlds::Amqp {
                ask_topic(broker)
                    .map_err(|error| format!("{time}: RocketMQ while there is no space: {error}"))?;
            }
            let killed = time.is_multiple_of(3);
            if killed {
                broker.kill();
                broker.start().map_err(|error| format!("{time}: starting without space: {error}"))?;
            }
            let confirmed = load.confirmed();
            let freed = Instant::now();
            disk.empty()?;
            while load.confirmed() == confirmed {
                broker.alive()?;
                load.well()?;
                if freed.elapsed() > RESUMES_WITHIN {
                    return Err(format!("{time}: no confirm after there is space again"));
                }
                thread::sleep(Duration::from_millis(5));
            }
            slowest = slowest.max(freed.elapsed());
            let end = load.tape.now();
            load.tape.harness(begin, end, |names| Op::Fault { name: names.name("fault") });
            if killed {
                load.tape.harness(begin, end, |_| Op::Crash);
            }
        }
        Ok(())
    };
    let end = || {
        disk.replace(None);
    };
    let verdict = arguments.trial.run(prepare, harm, end)?;
    println!("the slowest first confirm came {} ms after there was space again", slowest.as_millis());
    Ok(verdict.passed)
}

/// Waits until confirms stand still. The broker lives on, and refuses nobody.
fn held_up(load: &Load, broker: &mut Broker) -> Result<(), String> {
    let deadline = Instant::now() + HELD_UP_WITHIN;
    let (mut confirmed, mut since) = (load.confirmed(), Instant::now());
    while since.elapsed() < STILL {
        broker.alive()?;
        load.well()?;
        if Instant::now() > deadline {
            return Err("publishers are not held up".to_owned());
        }
        thread::sleep(Duration::from_millis(20));
        if load.confirmed() != confirmed {
            (confirmed, since) = (load.confirmed(), Instant::now());
        }
    }
    Ok(())
}

/// Waits until a publisher was told that it must wait: by `connection.blocked`, or SERVICE_NOT_AVAILABLE.
fn told(load: &Load, before: u64) -> Result<(), String> {
    let deadline = Instant::now() + HELD_UP_WITHIN;
    while load.blocked() == before {
        load.well()?;
        if Instant::now() > deadline {
            return Err("no publisher was told that it must wait".to_owned());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Two confirmed messages for [`ask_probe`].
fn fill_probe(broker: &Broker) -> Result<(), Error> {
    let mut client = Client::connect(broker.ports.amqp)?;
    client.declare_queue(PROBE, Durability::Durable)?;
    client.confirm()?;
    let mut block = Vec::new();
    PropertyList { delivery_mode: Some(2), ..Default::default() }.encode(&mut block);
    let properties = Properties::parse(&block).expect("just written");
    for _ in 0..2 {
        client.publish("", PROBE, properties, b"there is space");
    }
    client.flush()?;
    let mut confirmed = 0;
    let deadline = Instant::now() + Duration::from_secs(15);
    while confirmed < 2 && Instant::now() < deadline {
        client.receive(Duration::from_millis(100))?;
        while let Some(heard) = client.hear()? {
            if let Heard::Confirmed { tag, .. } = heard {
                confirmed = tag;
            }
        }
    }
    client.close()
}

/// A login, and two messages got and acknowledged.
fn ask_probe(broker: &Broker) -> Result<(), Error> {
    let mut client = Client::connect(broker.ports.amqp)?;
    client.find_queue(PROBE)?;
    for _ in 0..2 {
        client.get(PROBE);
        client.flush()?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let tag = loop {
            client.receive(Duration::from_millis(100))?;
            match client.hear()? {
                Some(Heard::Got(message)) => break message.tag,
                Some(other) => return Err(Error::Broken(format!("{other:?} to a get"))),
                None if Instant::now() > deadline => return Err(Error::Broken("no answer".to_owned())),
                None => {}
            }
        };
        client.ack(tag, false);
    }
    client.flush()?;
    client.close()
}

/// A connection, and where a queue ends.
fn ask_topic(broker: &Broker) -> Result<(), Error> {
    let mut client = Remoting::connect(broker.ports.rocketmq, HeaderCodec::Json)?;
    let queue = GetMaxOffset { topic: "orders", ..GetMaxOffset::default() };
    client.ask(RequestCode::GetMaxOffset, &queue, b"", |answer| match answer.head.code {
        0 => Ok(()),
        _ => Err(dassie_interop::remoting::refusal(answer)),
    })
}
