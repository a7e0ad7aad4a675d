//! What a person reads while the broker runs.
//!
//! Owns: the subscriber, its format and filter, and how a panic looks in the log.
//! Promises: one line per event on standard error, as text (coloured only on a terminal) or as one JSON object; libraries speak from `warn` up unless
//! `log.level` is `trace`. Does not know: who logs what.

use std::io::{IsTerminal, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{LogFormat, LogLevel};

/// Installs the subscriber and the panic hook. Only the first call of a process counts.
pub fn init(level: LogLevel, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(format == LogFormat::Text && stderr().is_terminal())
        .with_target(matches!(level, LogLevel::Debug | LogLevel::Trace));
    let lines = match format {
        LogFormat::Text => lines.compact().boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    };
    // A second call (tests in one process) finds a subscriber in place, which is what it wanted.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter(level))).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("(no text)");
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!(target: "dassie", "panic in thread '{}' at {place}: {what}\n{trace}", thread.name().unwrap_or("?"));
    }));
}

fn filter(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The consensus library tells its life story at info.
    let others = if level == LogLevel::Trace { ours } else { ours.min(LevelFilter::WARN) };
    // It warns of every lost request to a peer that is down; we say once that the peer is.
    let consensus = if level == LogLevel::Trace { ours } else { others.min(LevelFilter::ERROR) };
    Targets::new().with_default(others).with_target("dassie", ours).with_target("openraft", consensus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_unless_everything_is_wanted() {
        let info = filter(LogLevel::Info);
        assert!(info.would_enable("dassie::node", &Level::INFO));
        assert!(info.would_enable("dassie_storage::log", &Level::INFO));
        assert!(!info.would_enable("dassie::node", &Level::DEBUG));
        assert!(info.would_enable("hyper::proto", &Level::WARN));
        assert!(info.would_enable("openraft::core", &Level::ERROR));
        assert!(!info.would_enable("openraft::core", &Level::WARN));
        assert!(!info.would_enable("openraft::core", &Level::INFO));
        assert!(filter(LogLevel::Trace).would_enable("openraft::core", &Level::TRACE));
        assert!(!filter(LogLevel::Error).would_enable("openraft::core", &Level::WARN));
    }
}
