//! Runs the simulation over many seeds: `sim --seeds 0..1000 --batches 500`.
//!
//! Owns: arguments, progress, totals, the exit code. Promises: one JSON line per seed on the standard output, in order, totals
//! on the standard error; exit code 1 when anything was violated, with planted bugs when one of them was not found.
//! Does not know: what is simulated.

use std::process::ExitCode;

use dassie_interop::sim::plant::Plant;
use dassie_interop::sim::{Outcome, Plan, run};

const USAGE: &str = "sim --seeds FIRST..END [--batches 500] [--plant NAME|all] [--twice] [--trace] [--jobs N]

--plant all plants every bug in turn and ends each search with the first seed that finds it.";

struct Arguments {
    seeds: std::ops::Range<u64>,
    batches: u64,
    plants: Vec<Plant>,
    twice: bool,
    trace: bool,
    jobs: usize,
}

fn arguments() -> Option<Arguments> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut wanted =
        Arguments { seeds: 0..100, batches: 500, plants: Vec::new(), twice: false, trace: false, jobs };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let range = words.next()?;
                let (first, end) = range.split_once("..")?;
                wanted.seeds = first.parse().ok()?..end.parse().ok()?;
            }
            "--batches" => wanted.batches = words.next()?.parse().ok()?,
            "--plant" => match words.next()?.as_str() {
                "all" => wanted.plants.extend(Plant::ALL),
                name => wanted.plants.push(Plant::named(name)?),
            },
            "--twice" => wanted.twice = true,
            "--trace" => (wanted.trace, wanted.jobs) = (true, 1),
            "--jobs" => wanted.jobs = words.next()?.parse().ok().filter(|jobs| *jobs > 0)?,
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
    fn add(&mut self, outcome: &Outcome, repeats: bool) {
        self.seeds += 1;
        self.batches += outcome.batches;
        self.with_leader_change += u64::from(outcome.leader_changes > 0);
        self.with_truncation += u64::from(outcome.truncations > 0);
        self.violated += u64::from(!outcome.violations.is_empty());
        self.differing += u64::from(!repeats);
    }
}

/// Runs some seeds side by side; their outcomes in order, each with whether it repeats.
fn wave(wanted: &Arguments, plant: Plant, seeds: std::ops::Range<u64>) -> Vec<(Outcome, bool)> {
    let one = |seed| {
        let plan = Plan { seed, batches: wanted.batches, plant, loud: wanted.trace };
        let outcome = run(plan);
        let repeats = !wanted.twice || run(plan) == outcome;
        (outcome, repeats)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = seeds.map(|seed| scope.spawn(move || one(seed))).collect();
        running.into_iter().map(|run| run.join().expect("a run catches its own panics")).collect()
    })
}

/// All seeds, or with a planted bug all until it is found: the first that found something.
fn search(wanted: &Arguments, plant: Plant) -> (Totals, Option<u64>) {
    let (mut totals, mut found) = (Totals::default(), None);
    let mut next = wanted.seeds.start;
    while next < wanted.seeds.end && (plant == Plant::Nothing || found.is_none()) {
        let end = wanted.seeds.end.min(next + wanted.jobs as u64);
        for (outcome, repeats) in wave(wanted, plant, next..end) {
            println!("{}", outcome.line());
            totals.add(&outcome, repeats);
            if !outcome.violations.is_empty() {
                found = found.or(Some(outcome.seed));
            }
        }
        if totals.seeds % 100 < wanted.jobs as u64 {
            eprintln!("{} seeds, {} violated", totals.seeds, totals.violated);
        }
        next = end;
    }
    (totals, found)
}

fn main() -> ExitCode {
    let Some(wanted) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if wanted.plants.is_empty() {
        let (totals, _) = search(&wanted, Plant::Nothing);
        let Totals { seeds, batches, with_leader_change, with_truncation, violated, differing } = totals;
        eprintln!(
            "{seeds} seeds, {batches} batches: {with_leader_change} with a leader change, {with_truncation} with a \
             truncation; {violated} violated, {differing} not repeatable"
        );
        return ExitCode::from(u8::from(violated > 0 || differing > 0));
    }
    let mut missed = 0;
    for plant in &wanted.plants {
        match search(&wanted, *plant).1 {
            Some(seed) => eprintln!("{plant:?}: found with seed {seed}"),
            None => {
                missed += 1;
                eprintln!("{plant:?}: not found");
            }
        }
    }
    eprintln!("{} of {} planted bugs found", wanted.plants.len() - missed, wanted.plants.len());
    ExitCode::from(u8::from(missed > 0))
}
