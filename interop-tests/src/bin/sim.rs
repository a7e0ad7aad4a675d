//! Runs the simulation over many seeds: `sim --seeds 0..1000 --batches 500`.
//!
//! Owns: arguments, progress, totals, the exit code. Promises: one JSON line per seed on the standard output, totals on the
//! standard error, exit code 1 when anything was violated (with a planted bug: when it was not found).
//! Does not know: what is simulated.

use std::process::ExitCode;

use dassie_interop::sim::ledger::Ledger;
use dassie_interop::sim::plant::Plant;
use dassie_interop::sim::{Outcome, Plan, run};

const USAGE: &str = "sim --seeds FIRST..END [--batches 500] [--plant NAME] [--twice] [--trace]";

struct Arguments {
    seeds: std::ops::Range<u64>,
    batches: u64,
    plant: Plant,
    twice: bool,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let mut wanted =
        Arguments { seeds: 0..100, batches: 500, plant: Plant::Nothing, twice: false, trace: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let range = words.next()?;
                let (first, end) = range.split_once("..")?;
                wanted.seeds = first.parse().ok()?..end.parse().ok()?;
            }
            "--batches" => wanted.batches = words.next()?.parse().ok()?,
            "--plant" => wanted.plant = Plant::named(&words.next()?)?,
            "--twice" => wanted.twice = true,
            "--trace" => wanted.trace = true,
            _ => return None,
        }
    }
    Some(wanted)
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    batches: u64,
    with_leader_change: u64,
    with_truncation: u64,
    violated: u64,
    differing: u64,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.batches += outcome.batches;
        self.with_leader_change += u64::from(outcome.leader_changes > 0);
        self.with_truncation += u64::from(outcome.truncations > 0);
        self.violated += u64::from(!outcome.violations.is_empty());
    }
}

fn main() -> ExitCode {
    let Some(wanted) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut totals = Totals::default();
    let mut first = None;
    for seed in wanted.seeds.clone() {
        let plan = Plan { seed, batches: wanted.batches, plant: wanted.plant, words: wanted.trace };
        let outcome = run::<Ledger>(plan);
        if wanted.twice {
            totals.differing += u64::from(run::<Ledger>(plan) != outcome);
        }
        for word in &outcome.words {
            println!("{word}");
        }
        println!("{}", outcome.line());
        totals.add(&outcome);
        if !outcome.violations.is_empty() {
            first.get_or_insert(seed);
        }
        if totals.seeds.is_multiple_of(100) {
            eprintln!("{} seeds, {} violated", totals.seeds, totals.violated);
        }
    }
    let Totals { seeds, batches, with_leader_change, with_truncation, violated, differing } = totals;
    eprintln!(
        "{seeds} seeds, {batches} batches: {with_leader_change} with a leader change, {with_truncation} with a truncation; \
         {violated} violated, {differing} not repeatable"
    );
    if wanted.plant == Plant::Nothing {
        return ExitCode::from(u8::from(violated > 0 || differing > 0));
    }
    match first {
        Some(seed) => eprintln!("{:?}: first found with seed {seed}, in {violated} of {seeds}", wanted.plant),
        None => eprintln!("{:?} was not found", wanted.plant),
    }
    ExitCode::from(u8::from(first.is_none()))
}
