//! Judges the history of a run: `check FILE...` (all files together are one history), or its own speed on a legal
//! history made up by the model: `check --self-test-size EVENTS`.
//!
//! Prints a report for people, then one line of JSON. Exit status: 0 passed, 1 a promise is broken, 2 no verdict.
//!
//! Owns: the command line. Promises: a file that can not be read whole gives no verdict.
//! Does not know: the rules.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use dassie_interop::check;
use dassie_interop::history::{History, Recorder};
use dassie_interop::model;

const USAGE: &str = "usage: check FILE... | check --self-test-size EVENTS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let verdict = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Err(USAGE.to_owned()),
        ["--self-test-size", events] => self_test(events),
        [flag, ..] if flag.starts_with('-') => Err(USAGE.to_owned()),
        files => read(files).map(|history| judge(&history)),
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn read(files: &[&str]) -> Result<History, String> {
    let mut history = History::default();
    for file in files {
        let open = File::open(file).map_err(|error| format!("{file}: {error}"))?;
        history.read(BufReader::new(open)).map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(history)
}

fn judge(history: &History) -> bool {
    let report = check::all(history);
    println!("{report}");
    println!("{}", report.json());
    report.passed()
}

/// Tells a history into a pipe on one thread and reads and judges it on another, as if it came from a file, so that the
/// figures hold for reading too and the telling needs no memory.
fn self_test(events: &str) -> Result<bool, String> {
    let size = events.parse().map_err(|_| format!("{events:?} is no number of events"))?;
    let (lines, pipe) = io::pipe().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let mut history = History::default();
    thread::scope(|scope| {
        let teller = scope.spawn(|| tell(size, pipe));
        let read = history.read(BufReader::new(lines)).map_err(|error| error.to_string());
        let told = teller.join().expect("the model does not panic").map_err(|error| error.to_string());
        read.and(told)
    })?;
    let reading = start.elapsed().as_secs_f64();
    let (start, busy) = (Instant::now(), processor_time());
    let passed = judge(&history);
    let judging = start.elapsed().as_secs_f64();
    // On a machine shared with others the clock tells more about them.
    let busy = processor_time().zip(busy).map_or(judging, |(after, before)| after - before);
    let events = history.events().len();
    let memory = peak_memory().unwrap_or_else(|| "unknown".to_owned());
    println!(
        "{events} events told and read in {reading:.1} s, judged in {judging:.1} s \
         ({busy:.1} s of processor time), peak memory {memory}"
    );
    Ok(passed)
}

fn tell(size: usize, pipe: io::PipeWriter) -> io::Result<()> {
    let mut recorder = Recorder::with_names(BufWriter::new(pipe), model::names());
    let mut result = Ok(());
    model::tell(1, size, |event| {
        if result.is_ok() {
            result = recorder.record(&event);
        }
    });
    result?;
    recorder.finish().map(drop)
}

/// Seconds for which this thread ran; only Linux tells.
fn processor_time() -> Option<f64> {
    let schedule = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: u64 = schedule.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds).as_secs_f64())
}

/// The most memory this process ever had; only Linux tells.
fn peak_memory() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(format!("{} MiB", kilobytes / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legal_history_of_any_size_passes_the_self_test() {
        assert_eq!(self_test("500"), Ok(true));
        assert!(self_test("many").unwrap_err().contains("no number"));
    }

    #[test]
    fn a_file_that_can_not_be_read_is_named() {
        assert!(read(&["no/such/history"]).unwrap_err().starts_with("no/such/history: "));
    }
}
