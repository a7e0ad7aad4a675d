//! What every program that measures a broker shares: processor time and memory of a process, latencies, the disk's own speed.
//!
//! Owns: how a figure is taken and shown. Promises: a table for people, then one line of JSON with the same figures.
//! Does not know: loads, brokers, what is a good figure.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Latencies by the microsecond.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    /// How many.
    pub count: u64,
}

impl Histogram {
    /// Ten seconds; what takes longer counts as that.
    const MOST: usize = 10_000_000;

    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let bucket = usize::try_from(latency.as_micros()).unwrap_or(usize::MAX).min(Self::MOST);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// The latency that so many percent did not exceed.
    #[must_use]
    pub fn at(&self, percent: f64) -> f64 {
        let wanted = float(self.count) * percent / 100.0;
        let mut passed = 0;
        for (microseconds, count) in (0_u64..).zip(&self.buckets) {
            passed += count;
            if *count > 0 && float(passed) >= wanted {
                return float(microseconds);
            }
        }
        0.0
    }
}

/// Figures lose what 53 bits can not hold, and none is that large.
#[must_use]
pub fn float(number: u64) -> f64 {
    u32::try_from(number).map_or_else(|_| Duration::from_micros(number).as_secs_f64() * 1e6, f64::from)
}

/// A second.
#[must_use]
pub fn rate(count: u64, time: Duration) -> f64 {
    float(count) / time.as_secs_f64()
}

/// Microseconds of `busy` seconds for each.
#[must_use]
pub fn per_message(busy: f64, count: u64) -> f64 {
    busy * 1e6 / float(count.max(1))
}

/// The broker's process with its children, as Linux tells.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// Ticks in a second.
    ticks: f64,
}

impl Process {
    /// Of a process that runs.
    ///
    /// # Errors
    /// It does not, or this is not Linux.
    pub fn new(pid: u32) -> Result<Self, String> {
        let process = Self { pid, ticks: ticks_per_second().unwrap_or(100.0) };
        stat(pid).map(|_| process).ok_or_else(|| format!("no process {pid}, or no /proc"))
    }

    /// Seconds that it and its children, also those that ended, were on a processor.
    #[must_use]
    pub fn time(&self) -> f64 {
        let all: Vec<Stat> = fs::read_dir("/proc").map_or_else(
            |_| Vec::new(),
            |entries| {
                entries.filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
            },
        );
        let mut family = vec![self.pid];
        let mut ticks = 0;
        while let Some(pid) = family.pop() {
            family.extend(all.iter().filter(|stat| stat.parent == pid).map(|stat| stat.pid));
            ticks += all.iter().find(|stat| stat.pid == pid).map_or(0, |stat| stat.ticks);
        }
        float(ticks) / self.ticks
    }

    /// A field of its status that is a number of kB, in MiB.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(&self, field: &str) -> Result<f64, String> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid)).map_err(|error| error.to_string())?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no memory in its status")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| "no number of kB")?;
        Ok(kilobytes / 1_024.0)
    }

    /// How many files it has open.
    ///
    /// # Errors
    /// It is gone.
    pub fn open_files(&self) -> Result<u64, String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).map_err(|error| error.to_string())?;
        Ok(entries.count() as u64)
    }
}

struct Stat {
    pid: u32,
    parent: u32,
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(pid, &text)
}

/// The name in parentheses may hold anything, parentheses too.
fn parse_stat(pid: u32, text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let parent = fields.get(1)?.parse().ok()?;
    // utime, stime, and those of children that were waited for.
    let mut ticks = 0;
    for field in fields.get(11..15)? {
        ticks += field.parse::<u64>().ok()?;
    }
    Some(Stat { pid, parent, ticks })
}

/// From the auxiliary vector, entry `AT_CLKTCK`.
fn ticks_per_second() -> Option<f64> {
    let vector = fs::read("/proc/self/auxv").ok()?;
    let (words, _) = vector.as_chunks::<{ size_of::<usize>() }>();
    let words: Vec<usize> = words.iter().map(|word| usize::from_ne_bytes(*word)).collect();
    let entry = words.chunks_exact(2).find(|entry| entry[0] == 17)?;
    Some(float(entry[1] as u64))
}

/// What the disk below `directory` can do: a small write made durable, and large ones one after the other. The files
/// hold zeros before, so that no size or extent changes with the write.
///
/// # Errors
/// What the disk says, with the file.
pub fn probe(directory: &Path, ask: Probe, figures: &mut Figures) -> Result<(), String> {
    let path = directory.join(format!("bench-probe-{}", std::process::id()));
    let asked = ask(&path, figures).and_then(|()| fs::remove_file(&path));
    asked.map_err(|error| format!("{}: {error}", path.display()))
}

/// A measurement on a file that does not exist yet.
pub type Probe = fn(&Path, &mut Figures) -> std::io::Result<()>;

const SMALL_WRITE: usize = 4 * 1_024;
const LARGE_WRITE: usize = 256 * 1_024;
const WRITES: u64 = 256;

/// 4 KiB each, synced.
///
/// # Errors
/// What the disk says.
pub fn small_writes(path: &Path, figures: &mut Figures) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all_at(&vec![0; LARGE_WRITE], 0)?;
    file.sync_all()?;
    let mut latencies = Histogram::default();
    for place in 0..WRITES {
        let begin = Instant::now();
        file.write_all_at(&[1; SMALL_WRITE], place % 64 * SMALL_WRITE as u64)?;
        file.sync_data()?;
        latencies.add(begin.elapsed());
    }
    figures.add("disk_sync_p50_us", latencies.at(50.0), "us, 4 KiB write and fdatasync");
    Ok(())
}

/// 256 KiB each, synced.
///
/// # Errors
/// What the disk says.
pub fn large_writes(path: &Path, figures: &mut Figures) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    for place in 0..WRITES {
        file.write_all_at(&vec![0; LARGE_WRITE], place * LARGE_WRITE as u64)?;
    }
    file.sync_all()?;
    let begin = Instant::now();
    for place in 0..WRITES {
        file.write_all_at(&vec![1; LARGE_WRITE], place * LARGE_WRITE as u64)?;
        file.sync_data()?;
    }
    let speed = rate(WRITES * LARGE_WRITE as u64, begin.elapsed()) / 1e6;
    figures.add("disk_append_mb_s", speed, "MB/s, 256 KiB writes, each with fdatasync");
    Ok(())
}

/// What was measured, in order: name, value, what it is.
#[derive(Debug, Default)]
pub struct Figures(Vec<(&'static str, f64, &'static str)>);

impl Figures {
    /// One more.
    pub fn add(&mut self, name: &'static str, value: f64, what: &'static str) {
        self.0.push((name, value, what));
    }

    /// For people.
    ///
    /// # Panics
    /// Never: a string takes everything.
    #[must_use]
    pub fn table(&self) -> String {
        self.0.iter().fold(String::new(), |mut table, (name, value, what)| {
            writeln!(table, "{name:<24}{value:>12.1}  {what}").expect("a string takes everything");
            table
        })
    }

    /// One line.
    #[must_use]
    pub fn json(&self) -> String {
        let fields: serde_json::Map<_, _> =
            self.0.iter().map(|(name, value, _)| ((*name).to_owned(), (*value).into())).collect();
        serde_json::json!({ "bench": fields }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latencies_added() {
        let mut latencies = Histogram::default();
        assert_eq!(latencies.at(50.0).to_bits(), 0.0_f64.to_bits());
        (1..=100).for_each(|us| latencies.add(Duration::from_micros(us)));
        assert_eq!([50.0, 99.0, 100.0].map(|percent| latencies.at(percent)), [50.0, 99.0, 100.0]);
        latencies.add(Duration::from_secs(3_600));
        assert_eq!(latencies.buckets.len(), Histogram::MOST + 1);
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5 6";
        let stat = parse_stat(7, text).unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 100));
        assert!(parse_stat(7, "7 (cut").is_none());
    }

    #[test]
    fn the_figures_are_one_line_of_json() {
        let mut figures = Figures::default();
        figures.add("rate", 1.5, "messages/s");
        assert_eq!(figures.json(), r#"{"bench":{"rate":1.5}}"#);
        assert!(figures.table().starts_with("rate "));
    }
}
