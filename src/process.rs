//! The process as the system sees it: exit codes, signals, and the guard of threads that must not die alone.
//!
//! Owns: the exit code convention. Promises: every failed end is one line on standard error and one of these codes.
//! Does not know: what the broker was doing.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Could not start, or could not go on: a busy port, an unreadable, foreign or used data directory.
pub const EXIT_FAILED: u8 = 1;
/// Wrong arguments or configuration.
pub const EXIT_USAGE: u8 = 2;
/// The log could not be written or synced (house D18): a restart is right, the disk needs a person.
pub const EXIT_LOG: u8 = 3;

/// `dassie verify`, `restore` or `backup` found bytes that are not what was written.
pub const EXIT_DAMAGED: u8 = 4;

/// Why the process ends badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of the codes above.
    pub code: u8,
    line: String,
}

impl Failure {
    /// The start failed, or the broker can not go on. `why` names what and where.
    pub fn new(why: impl fmt::Display) -> Self {
        Self { code: EXIT_FAILED, line: one_line(&why.to_string()) }
    }

    /// Wrong arguments or configuration.
    pub fn usage(why: impl fmt::Display) -> Self {
        Self { code: EXIT_USAGE, ..Self::new(why) }
    }

    /// Bytes are not what was written. `why` names the place.
    pub fn damaged(why: impl fmt::Display) -> Self {
        Self { code: EXIT_DAMAGED, ..Self::new(why) }
    }

    /// The log failed. `why` names operation and place.
    pub fn log(why: impl fmt::Display) -> Self {
        Self { code: EXIT_LOG, ..Self::new(why) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}

fn one_line(text: &str) -> String {
    text.split(['\r', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Ends the process because the log failed: `why` names operation and place. Peers and supervisors take over at once; a broker that
/// stayed up could only pretend.
pub fn die(why: &str) -> ! {
    // A disk that fails, fails for several threads at once: the first one's line is the cause.
    static DYING: AtomicBool = AtomicBool::new(false);
    while DYING.swap(true, Ordering::SeqCst) {
        std::thread::park();
    }
    tracing::error!("{why}");
    eprintln!("dassie: {}", one_line(why));
    #[allow(clippy::exit)] // other threads must not get another turn
    std::process::exit(i32::from(EXIT_LOG))
}

/// The program takes this process over anew, with the same arguments and environment: whoever watches the process sees no end. Files
/// and sockets are closed. Returns only when that fails.
#[must_use]
pub fn start_again() -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    // Its own path says more in a list of processes; when that is another file by now, the one that runs still has this name.
    let program = std::env::current_exe().ok().filter(|path| path.is_file());
    let program = program.unwrap_or_else(|| "/proc/self/exe".into());
    let error = std::process::Command::new(&program).arg0(name).args(words).exec();
    io::Error::new(error.kind(), format!("starting {} again: {error}", program.display()))
}

/// SIGHUPs from now on: none of them ends the process any more.
///
/// # Errors
/// The system refuses a handler.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Waits for SIGTERM or SIGINT and says which. The handlers stand when this returns, before the future is polled, so that a
/// signal during the start is not lost. Needs a tokio runtime.
///
/// # Errors
/// The system refuses a handler.
pub fn termination() -> io::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Held by a thread that the log depends on: when it unwinds from a panic, the process aborts. A broker whose writer or shard is
/// gone would go on accepting messages that it can never confirm; peers and supervisors act on a dead process at once.
#[derive(Debug)]
pub struct AbortOnPanic(&'static str);

impl AbortOnPanic {
    /// `thread` is what the last line on standard error calls it.
    #[must_use]
    pub fn new(thread: &'static str) -> Self {
        Self(thread)
    }
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dassie: thread '{}' panicked; the log can not go on without it", self.0);
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_carries_its_code() {
        let failure = Failure::log("write failed\n  at segment 3\n");
        assert_eq!(failure.to_string(), "write failed; at segment 3");
        assert_eq!((failure.code, Failure::new("x").code, Failure::usage("x").code), (3, 1, 2));
    }

    #[test]
    fn a_guarded_thread_that_ends_well_ends_nothing_else() {
        std::thread::spawn(|| drop(AbortOnPanic::new("test"))).join().unwrap();
    }
}
