//! Cuts the power of a real broker's disk again and again under load, and judges what its clients saw:
//! `power --broker PATH --cuts N --out HISTORY [--protocol amqp|rocketmq|both] [--seconds-between LO..HI] [--seed N]
//! [--plant no-sync]`. Needs root, loop devices, ext4 and Python.
//!
//! The broker's data lie on an ext4 file system of its own, in a file. At each cut the file system is shut down without
//! flushing its journal: nothing that was not synced survives, which two files prove each time. The process is given a moment to
//! notice (it must end with the code of a failed log, or be killed while idle), then the file system is mounted again.
//! With `--plant no-sync` the syncs of the broker do nothing (through strace): the run must then find losses.
//!
//! Owns: the cutting. Promises: see [`dassie_interop::harm`]. Exit status: 0 passed (with a plant: it was found), 1 a
//! promise is broken, 2 no verdict, for example without root. Does not know: the rules, the traffic.

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use dassie_interop::harm::file_system::FileSystem;
use dassie_interop::harm::{Arguments, Broker, Load, Words, Worlds};
use dassie_interop::history::event::Op;
use dassie_interop::sim::dice::Dice;

const USAGE: &str = "usage: power --broker PATH --cuts N --out HISTORY [--protocol amqp|rocketmq|both] \
                     [--seconds-between LO..HI] [--seed N] [--dir DIRECTORY] [--plant no-sync]";
/// The image is sparse: it costs what is written.
const DISK: u64 = 16 << 30;
/// Small segments: a cut finds the log between two of them more often.
const SEGMENT: &str = "storage.segment_size=8MiB";
/// A broker that writes must notice that its disk is gone.
const NOTICES_WITHIN: Duration = Duration::from_secs(2);
/// The exit code of a failed log.
const LOG_FAILED: i32 = 3;

const WORDS: Words = Words {
    harm: "power",
    times: "--cuts",
    own: &["--plant"],
    worlds: Worlds::Both,
    between: Some((300, 2_000)),
};
/// The one bug that can be planted.
const NO_SYNC: &str = "no-sync";
/// How it is planted. Writes that are synced in the same call are refused: the broker then writes and syncs.
const SYNC_NOTHING: &str = "strace -D -f -qq -o /dev/null -e trace=fsync,fdatasync,pwritev2 \
     -e inject=fsync,fdatasync:retval=0 -e inject=pwritev2:error=EOPNOTSUPP";

fn main() -> ExitCode {
    let arguments = Arguments::read(&WORDS, std::env::args().skip(1));
    let Some(arguments) = arguments.filter(|a| a.own.get("--plant").is_none_or(|plant| plant == NO_SYNC))
    else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let cuts = Cuts { no_sync: !arguments.own.is_empty(), arguments, named: Cell::new(false) };
    match cuts.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no verdict: {error}");
            ExitCode::from(2)
        }
    }
}

struct Cuts {
    arguments: Arguments,
    /// Syncs do nothing.
    no_sync: bool,
    /// The broker itself named the damage that came of it.
    named: Cell<bool>,
}

impl Cuts {
    fn run(&self) -> Result<bool, String> {
        // Shared by preparing and harming, and dropped after the broker has ended.
        let disk = RefCell::new(None);
        let prepare = |broker: &mut Broker| {
            let made = FileSystem::make(&self.arguments.trial.directory, DISK)?;
            broker.data = made.root.join("data");
            broker.settings.push(SEGMENT.to_owned());
            if self.no_sync {
                broker.launcher = SYNC_NOTHING.split_whitespace().map(Into::into).collect();
            }
            disk.replace(Some(made));
            Ok(())
        };
        let harm = |load: &Load, broker: &mut Broker, dice: &Dice| {
            self.harm(load, broker, dice, disk.borrow_mut().as_mut().expect("it was prepared"))
        };
        let end = || {
            disk.replace(None);
        };
        let verdict = self.arguments.trial.run(prepare, harm, end)?;
        if self.no_sync {
            let found = self.named.get() || (verdict.whole && verdict.lost() > 0);
            println!("planted: syncs that do nothing: {}", if found { "found" } else { "NOT FOUND" });
            return Ok(found);
        }
        Ok(verdict.passed)
    }

    fn harm(
        &self,
        load: &Load,
        broker: &mut Broker,
        dice: &Dice,
        disk: &mut FileSystem,
    ) -> Result<(), String> {
        let (mut noticed, mut unsynced_gone) = (0, 0);
        for cut in 1..=self.arguments.trial.times {
            let pause =
                self.arguments.between.0 + dice.below(self.arguments.between.1 - self.arguments.between.0);
            thread::sleep(Duration::from_millis(pause));
            broker.alive()?;
            load.well()?;
            let begin = load.tape.now();
            disk.cut()?;
            match broker.ended_within(NOTICES_WITHIN).map(|status| status.code()) {
                Some(Some(LOG_FAILED)) => noticed += 1,
                Some(code) => return Err(format!("cut {cut}: the broker ended with code {code:?}, not 3")),
                None if self.no_sync => broker.kill(),
                None => return Err(format!("cut {cut}: the broker goes on without its disk")),
            }
            let control = disk.restore()?;
            if !control.synced_is_there {
                return Err(format!("cut {cut}: this machine's file system loses what was synced"));
            }
            unsynced_gone += u64::from(control.unsynced_is_gone);
            // Without its syncs it may rightly find damage that it can not start with: enough was seen.
            match broker.start() {
                Err(error) if self.no_sync => {
                    println!("cut {cut}: {error}");
                    self.named.set(true);
                    return Err("the broker itself found damage".to_owned());
                }
                started => started?,
            }
            let end = load.tape.now();
            load.tape.harness(begin, end, |names| Op::Fault { name: names.name("power") });
            load.tape.harness(begin, end, |_| Op::Crash);
        }
        println!(
            "{noticed} of {} cuts noticed by the broker (exit code 3); {unsynced_gone} unsynced control files gone",
            self.arguments.trial.times
        );
        if unsynced_gone < self.arguments.trial.times {
            return Err("an unsynced control file survived: the cuts prove nothing".to_owned());
        }
        thread::sleep(Duration::from_millis(self.arguments.between.1));
        Ok(())
    }
}
