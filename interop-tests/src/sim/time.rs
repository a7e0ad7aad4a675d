//! Simulated time, and what the nodes' clocks make of it.
//!
//! Owns: when the run began, each node's error. Promises: a monotonic clock runs on; a wall clock is fast or slow by up to
//! 2 % and jumps when it is told to. Does not know: who asks.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dassie::clock::Clock;

/// What the wall clocks said when the run began, ms since 1970.
const EPOCH: u64 = 1_800_000_000_000;

thread_local! {
    static BEGAN: Cell<Option<tokio::time::Instant>> = const { Cell::new(None) };
}

/// The run begins.
pub(crate) fn begin() {
    BEGAN.set(Some(tokio::time::Instant::now()));
}

/// Simulated time since the run began.
pub(crate) fn now() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

/// The same as a history counts it.
pub(crate) fn nanos() -> u64 {
    u64::try_from(now().as_nanos()).unwrap_or(u64::MAX)
}

/// A node's clocks; they survive its crashes. Clones are one clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeClock(Arc<Error>);

#[derive(Debug, Default)]
struct Error {
    /// Parts in a thousand that it is fast.
    drift: AtomicI64,
    /// How far it is off, ms.
    off: AtomicI64,
}

impl NodeClock {
    pub(crate) fn drifting(drift: i64) -> Self {
        let clock = Self::default();
        clock.0.drift.store(drift, Ordering::Relaxed);
        clock
    }

    pub(crate) fn jump(&self, millis: i64) {
        self.0.off.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for NodeClock {
    fn monotonic(&self) -> Duration {
        now()
    }

    fn wall_ms(&self) -> u64 {
        let passed = i64::try_from(now().as_millis()).unwrap_or(i64::MAX);
        let drift = self.0.drift.load(Ordering::Relaxed) * passed / 1000;
        EPOCH.saturating_add_signed(passed + drift + self.0.off.load(Ordering::Relaxed))
    }
}
