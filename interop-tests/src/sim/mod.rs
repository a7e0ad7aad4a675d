//! Deterministic simulation: three nodes of the product (core, state, consensus driver, log, checkpoints) on one thread, under
//! faults.
//!
//! Owns: the world around them (network, disks, clients, time), the judge, the planted bugs. Promises: one seed is one run,
//! byte for byte; the product's code is the product's, without a line for this. Does not know: sockets, real disks, protocols.
//!
//! Clients hand broker verbs to the link of a node, as the product's connections do; what they saw is a history that the
//! checkers of [`crate::check`] judge, what the nodes applied is judged by an oracle.

mod clients;
mod desk;
pub mod dice;
mod life;
mod network;
mod oracle;
mod payload;
pub mod plant;
mod story;
mod time;
mod waiting;
mod witness;
mod world;

use std::fmt::Write as _;
use std::time::Duration;

use plant::Plant;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// All chance comes from it.
    pub seed: u64,
    /// Batches to be committed before the weather calms down.
    pub batches: u64,
    /// A bug on purpose.
    pub plant: Plant,
    /// Print what happens while it happens.
    pub loud: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The plan's.
    pub seed: u64,
    /// Batches of outcomes committed.
    pub batches: u64,
    /// Terms that committed something, but the first.
    pub leader_changes: u64,
    /// Times a node dropped a suffix that was not committed.
    pub truncations: u64,
    /// Proposals the log did not take.
    pub refused: u64,
    /// Batches voided, wholly or in part.
    pub voided: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Checkpoints that became durable.
    pub checkpoints: u64,
    /// Segments given up for recycling.
    pub retired: u64,
    /// What must not have happened; empty in a good run.
    pub violations: Vec<String>,
    /// Over everything that was observed, with its time.
    pub trace_hash: u64,
    /// Simulated time.
    pub simulated: Duration,
}

impl Outcome {
    /// One line of JSON.
    #[must_use]
    pub fn line(&self) -> String {
        let mut violations = String::new();
        for violation in &self.violations {
            let comma = if violations.is_empty() { "" } else { "," };
            // Debug quoting of these ASCII words is JSON quoting.
            write!(violations, "{comma}{violation:?}").expect("a string takes everything");
        }
        format!(
            r#"{{"seed":{},"batches":{},"leader_changes":{},"truncations":{},"refused":{},"voided":{},"crashes":{},"checkpoints":{},"retired":{},"violations":[{violations}],"trace_hash":"{:016x}","simulated_ms":{}}}"#,
            self.seed,
            self.batches,
            self.leader_changes,
            self.truncations,
            self.refused,
            self.voided,
            self.crashes,
            self.checkpoints,
            self.retired,
            self.trace_hash,
            self.simulated.as_millis()
        )
    }
}

/// Runs one plan on a thread of its own: clocks, seeds and tasks of one run can not touch those of another.
#[must_use]
pub fn run(plan: Plan) -> Outcome {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| world::note_panic(&panic.to_string()))));
    let thread = std::thread::Builder::new().name(format!("seed {}", plan.seed)).stack_size(16 << 20);
    let running = thread.spawn(move || world::run(&plan)).expect("a thread can be made");
    running.join().unwrap_or_else(|_| Outcome {
        seed: plan.seed,
        batches: 0,
        leader_changes: 0,
        truncations: 0,
        refused: 0,
        voided: 0,
        crashes: 0,
        checkpoints: 0,
        retired: 0,
        violations: vec!["the run itself panicked".to_owned()],
        trace_hash: 0,
        simulated: Duration::ZERO,
    })
}
