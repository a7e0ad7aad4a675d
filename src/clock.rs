//! Time, injected.
//!
//! Owns: the [`Clock`] that everything but the connections' own timeouts is given, and [`LogTime`], the time that deadlines
//! are measured in (house D20, D21).
//! Promises: with the product's clock replaced, a simulation decides what time it is; log time never decreases, and a wall
//! clock that jumps moves it by at most [`SLEW`] of the time that really passed.
//! Does not know: what has a deadline.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Since a fixed moment of this process; never decreases.
    fn monotonic(&self) -> Duration;
    /// The machine's idea of the time, ms since 1970. May jump either way.
    fn wall_ms(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock that counts from now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        // A clock before 1970 is a broken clock: log time then simply does not follow it.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
    }
}

/// Log time follows the wall clock by at most one part in this many of the elapsed time: 1 %. A deadline of a minute comes at
/// most 0.6 s early or late, whatever the wall clock does.
pub const SLEW: u64 = 100;

/// The wall clock is looked at once per so much elapsed time.
const STEP_US: u64 = 100_000;

/// The leader's log time: the last committed one plus monotonic elapsed, slewed toward the wall clock.
///
/// Pure: it is told what the clocks say. Kept in microseconds, because 1 % of a short step would vanish in milliseconds.
#[derive(Debug, Clone)]
pub struct LogTime {
    /// Log time at the end of the last step, µs since 1970.
    base: u64,
    /// Monotonic time at the end of the last step.
    stepped: Duration,
    /// The last answer, µs.
    last: u64,
}

impl LogTime {
    /// Begins a term. `committed_ms` is the log time of the last committed batch (0: there is none, then the wall clock is
    /// believed once), `monotonic` and `wall_ms` what the clocks say now.
    #[must_use]
    pub fn begin(committed_ms: u64, monotonic: Duration, wall_ms: u64) -> Self {
        let base = if committed_ms == 0 { wall_ms } else { committed_ms }.saturating_mul(1000);
        Self { base, stepped: monotonic, last: base }
    }

    /// Log time now, ms since 1970; never less than the last answer or than a time [`LogTime::observe`]d.
    pub fn now_ms(&mut self, monotonic: Duration, wall_ms: u64) -> u64 {
        let elapsed = micros(monotonic.saturating_sub(self.stepped));
        let plain = self.base.saturating_add(elapsed);
        if elapsed >= STEP_US {
            let most = elapsed / SLEW;
            self.base =
                wall_ms.saturating_mul(1000).clamp(plain.saturating_sub(most), plain.saturating_add(most));
            self.stepped = monotonic;
            self.last = self.last.max(self.base);
        } else {
            self.last = self.last.max(plain);
        }
        self.last / 1000
    }

    /// A batch with this log time was committed: time does not fall behind it.
    pub fn observe(&mut self, committed_ms: u64) {
        let committed = committed_ms.saturating_mul(1000);
        if committed > self.last {
            self.base = self.base.saturating_add(committed - self.last);
            self.last = committed;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_800_000_000_000;
    const HOUR_MS: i64 = 3_600_000;
    const TEN_YEARS_MS: i64 = 10 * 365 * 24 * HOUR_MS;

    /// Runs for `seconds`, asking every 10 ms, with a wall clock that is off by `jump` ms from the first moment on.
    fn run(seconds: u64, jump: i64) -> (u64, LogTime) {
        let mut time = LogTime::begin(START, Duration::ZERO, START);
        let mut last = START;
        for step in 0..=seconds * 100 {
            let elapsed = step * 10;
            let now =
                time.now_ms(Duration::from_millis(elapsed), (START + elapsed).saturating_add_signed(jump));
            assert!(now >= last, "log time went back");
            last = now;
        }
        (last, time)
    }

    #[test]
    fn a_wall_clock_that_jumps_ahead_expires_nothing_early() {
        for jump in [HOUR_MS, TEN_YEARS_MS, i64::MAX] {
            // A lease of 30 s: after 29.7 s of real time it still stands.
            let (now, _) = run(29, jump);
            assert!(now < START + 30_000, "jump {jump}: {}", now - START);
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_back_stops_nothing() {
        for jump in [-HOUR_MS, -TEN_YEARS_MS, i64::MIN] {
            let (now, _) = run(31, jump);
            assert!(now >= START + 30_000, "jump {jump}: {}", now - START);
            assert!(now <= START + 31_000);
        }
    }

    #[test]
    fn a_right_wall_clock_is_followed_exactly() {
        assert_eq!(run(100, 0).0, START + 100_000);
    }

    #[test]
    fn a_small_difference_is_gone_in_a_hundred_times_its_length() {
        for jump in [500, -500] {
            let (now, _) = run(60, jump);
            let off = (START + 60_000).saturating_add_signed(jump).abs_diff(now);
            assert!(off <= 11, "still off by {off} ms");
        }
    }

    #[test]
    fn a_new_leader_begins_where_the_old_one_ended_whatever_its_own_clock_says() {
        let far = START + 10 * 365 * 24 * 3_600_000;
        let mut time = LogTime::begin(START, Duration::from_secs(5), far);
        assert_eq!(time.now_ms(Duration::from_secs(5), far), START);
        assert_eq!(time.now_ms(Duration::from_secs(6), far), START + 1010);
    }

    #[test]
    fn an_empty_log_believes_the_wall_clock_once() {
        assert_eq!(LogTime::begin(0, Duration::ZERO, START).now_ms(Duration::ZERO, START), START);
    }

    #[test]
    fn a_committed_time_ahead_is_never_undercut() {
        let (now, mut time) = run(1, 0);
        time.observe(now + 5_000);
        assert_eq!(time.now_ms(Duration::from_millis(1010), START + 1010), now + 5_000 + 10);
        time.observe(START);
        assert!(time.now_ms(Duration::from_millis(1020), START + 1020) >= now + 5_000);
    }

    #[test]
    fn a_monotonic_clock_that_stands_still_or_a_pause_of_days_breaks_nothing() {
        let mut time = LogTime::begin(START, Duration::from_secs(9), START);
        assert_eq!(time.now_ms(Duration::from_secs(1), START), START);
        assert_eq!(time.now_ms(Duration::from_secs(9), START), START);
        let days = 3 * 24 * 3600;
        assert_eq!(time.now_ms(Duration::from_secs(9 + days), START + days * 1000), START + days * 1000);
    }

    #[test]
    fn the_machines_clocks_move_forward() {
        let clock = SystemClock::new();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
        assert!(clock.wall_ms() > START - 10 * 365 * 24 * 3_600_000);
    }
}
