//! One run: a broker, its load, somebody's harm, and the verdict.
//!
//! Owns: the order of things and what is printed. Promises: threads end whatever happened; what failed keeps its directory;
//! the verdict is that of the written file. Does not know: what the harm is.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::broker::Broker;
use super::load::{Load, Worlds};
use super::tape::Tape;
use crate::check::{self, Report};
use crate::history::History;
use crate::sim::dice::Dice;

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The program under test.
    pub broker: PathBuf,
    /// Where the history goes.
    pub out: PathBuf,
    /// Decides everything that chance decides; the threads' turns are the system's.
    pub seed: u64,
    /// Made for the run, removed when it passed.
    pub directory: PathBuf,
    /// Whose clients take part.
    pub worlds: Worlds,
    /// What harm is called in the history.
    pub harm: &'static str,
    /// How often it is done.
    pub times: u64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Verdict {
    /// Nothing is wrong.
    pub passed: bool,
    /// It went to its end: what is missing in the history is gone, and not just unread.
    pub whole: bool,
    /// Median and 99th percentile of the time from start to ready, in ms.
    pub restart_ms: (u128, u128),
    restarts: usize,
    report: Report,
}

impl Verdict {
    /// How many confirmed messages are gone, or changed, or moved.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let harmed = |rule: &&str| ["loss.", "offset.", "phantom."].iter().any(|kind| rule.starts_with(kind));
        let totals = self.report.findings().totals();
        totals.iter().filter(|(rule, _)| harmed(rule)).map(|(_, count)| count).sum()
    }
}

impl Trial {
    /// Starts the broker and its load, lets `harm` do what it does, and judges. `prepare` may change how the broker is
    /// started; it runs once, before the first start. `end` runs when the broker has ended.
    ///
    /// # Errors
    /// No verdict: the machine failed, not the broker.
    pub fn run(
        &self,
        prepare: impl FnOnce(&mut Broker) -> Result<(), String>,
        harm: impl FnOnce(&Load, &mut Broker, &Dice) -> Result<(), String>,
        end: impl FnOnce(),
    ) -> Result<Verdict, String> {
        fs::create_dir(&self.directory).map_err(|error| format!("{}: {error}", self.directory.display()))?;
        let out = File::create(&self.out).map_err(|error| format!("{}: {error}", self.out.display()))?;
        let dice = Dice::new(self.seed);
        let mut broker = Broker::new(&self.broker, &self.directory, &dice)?;
        prepare(&mut broker)?;
        let name = format!("{}{}", self.harm, self.seed);
        let load = Load::new(Tape::new(BufWriter::new(out)), name, broker.ports, self.worlds);
        println!("seed {}, broker in {}", self.seed, self.directory.display());
        let lived = self.live(&load, &mut broker, &dice, harm);
        let panics = broker.panics();
        let restarts = std::mem::take(&mut broker.restarts);
        drop(broker);
        end();
        if let Err(error) = &lived {
            println!("the run ended early: {error}");
        }
        load.tape.finish().map_err(|error| format!("{}: {error}", self.out.display()))?;
        let report = judge(BufReader::new(File::open(&self.out).map_err(|error| error.to_string())?))?;
        println!("{report}");
        for line in &panics {
            println!("the broker panicked: {line}");
        }
        let passed = report.passed() && lived.is_ok() && panics.is_empty();
        let verdict = Verdict {
            passed,
            whole: lived.is_ok(),
            restart_ms: percentiles(&restarts),
            restarts: restarts.len(),
            report,
        };
        self.print(&verdict);
        if passed {
            fs::remove_dir_all(&self.directory).map_err(|error| error.to_string())?;
        } else {
            println!("kept: {}", self.directory.display());
        }
        Ok(verdict)
    }

    fn live(
        &self,
        load: &Load,
        broker: &mut Broker,
        dice: &Dice,
        harm: impl FnOnce(&Load, &mut Broker, &Dice) -> Result<(), String>,
    ) -> Result<(), String> {
        broker.start()?;
        load.declare()?;
        load.plan(self.harm, self.times);
        thread::scope(|scope| {
            load.begin(scope, dice);
            let lived = harm(load, broker, dice).and_then(|()| load.heal());
            // Whatever happened, the threads must end.
            load.end();
            lived
        })?;
        load.drain()?;
        broker.alive()
    }

    fn print(&self, verdict: &Verdict) {
        let Verdict { passed, whole: _, restart_ms: (p50, p99), restarts, report } = verdict;
        let (what, seed, times) = (self.harm, self.seed, self.times);
        println!("{times} times {what}, {restarts} starts, ready after p50 {p50} ms, p99 {p99} ms");
        println!(
            "{{\"{what}\":{{\"passed\":{passed},\"seed\":{seed},\"times\":{times},\"starts\":{restarts},\
             \"restart_p50_ms\":{p50},\"restart_p99_ms\":{p99},\"report\":{}}}}}",
            report.json()
        );
    }
}

fn percentiles(times: &[Duration]) -> (u128, u128) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |percent: usize| {
        let last = times.len().saturating_sub(1);
        times.get(last * percent / 100).map_or(0, Duration::as_millis)
    };
    (at(50), at(99))
}

/// Judges a written history.
pub(super) fn judge(lines: impl BufRead) -> Result<Report, String> {
    let mut history = History::default();
    history.read(lines).map_err(|error| error.to_string())?;
    Ok(check::all(&history))
}
