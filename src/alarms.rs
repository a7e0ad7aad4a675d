//! Alarms: the machine runs low on disk space or memory, or the node has lost its majority, so publishers must wait.
//!
//! Owns: which alarm is raised, the two limits, and how space and memory are measured. Promises: raising and clearing is one line of
//! the log each; an alarm that is raised clears only when there is clearly more than the limit, so that it does not flap; who
//! looks pays one atomic.
//! Does not know: who publishes, and what blocking is in a protocol.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::limits;
use crate::metrics::{Metrics, status_bytes};

/// What is raised now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raised {
    /// Too little space for the log.
    pub disk: bool,
    /// Too much memory in use.
    pub memory: bool,
    /// No leader with a majority is reached: nothing can be confirmed.
    pub minority: bool,
}

impl Raised {
    /// Must publishers wait?
    #[must_use]
    pub fn any(self) -> bool {
        self.disk || self.memory || self.minority
    }

    /// As `connection.blocked` carries it: in RabbitMQ's words, which has none for a lost majority.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match (self.disk, self.memory) {
            // Whatever else there is: without this nothing goes on.
            _ if self.minority => "no majority of the nodes is reached",
            (true, true) => "low on disk & memory",
            (true, false) => "low on disk",
            (false, true) => "low on memory",
            (false, false) => "",
        }
    }
}

/// When alarms are raised. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Raised with less free space than this.
    pub disk_free: u64,
    /// Raised with more memory in use than this; 0: always.
    pub memory: u64,
}

/// One look at the machine. `None`: the system does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Bytes that this process may still take on the file system of the data.
    pub disk_free: Option<u64>,
    /// Bytes of memory that are this process's own. What it maps from files goes by itself when others need memory, so it does
    /// not count.
    pub memory_used: Option<u64>,
}

impl Sample {
    /// Looks now. May wait for the file system of `data_dir`.
    #[must_use]
    pub fn take(data_dir: &Path) -> Self {
        let disk_free = rustix::fs::statvfs(data_dir).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        Self { disk_free, memory_used: status_bytes("RssAnon:") }
    }

    /// Is it worth while to look again soon? Space is near its limit and has changed.
    #[must_use]
    pub fn is_urgent(&self, before: &Self, limits: &Limits) -> bool {
        self.disk_free != before.disk_free
            && self.disk_free.is_some_and(|free| free < limits.disk_free.saturating_add(limits::DISK_NEAR))
    }
}

/// The alarms of a node. Shared.
#[derive(Debug)]
pub struct Alarms {
    raised: watch::Sender<Raised>,
    causes: Mutex<Causes>,
    no_segment: AtomicBool,
}

#[derive(Debug, Default)]
struct Causes {
    low_disk: bool,
    no_segment: bool,
    memory: bool,
    minority: bool,
}

impl Alarms {
    /// None is raised.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            raised: watch::Sender::new(Raised::default()),
            causes: Mutex::default(),
            no_segment: AtomicBool::new(false),
        })
    }

    /// What is raised now.
    #[must_use]
    pub fn raised(&self) -> Raised {
        *self.raised.borrow()
    }

    /// For one who wants to hear of changes.
    #[must_use]
    pub fn follow(&self) -> Watch {
        Watch(self.raised.subscribe())
    }

    /// Judges a look at the machine, and writes it down.
    pub fn judge(&self, sample: &Sample, limits: &Limits, metrics: &Metrics) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut causes = self.lock();
        metrics.alarms.disk_limit.set(gauge(limits.disk_free));
        metrics.alarms.memory_limit.set(gauge(limits.memory));
        if let Some(free) = sample.disk_free {
            // Once raised: 5 % more than the limit, at least a little, must be free.
            let enough = limits.disk_free.saturating_add(limits.disk_free / 20);
            let low = free < if causes.low_disk { enough } else { limits.disk_free };
            if low != causes.low_disk {
                let (free, limit) = (mib(free), mib(limits.disk_free));
                if low {
                    tracing::warn!(
                        "alarm: {free} MiB of disk space are free, less than disk_free_limit ({limit} MiB): publishers wait, consumers go on"
                    );
                } else {
                    tracing::info!(
                        "alarm ended: {free} MiB of disk space are free (disk_free_limit: {limit} MiB)"
                    );
                }
            }
            causes.low_disk = low;
        }
        if let Some(used) = sample.memory_used {
            let few = limits.memory - limits.memory / 20;
            let high = used > if causes.memory { few } else { limits.memory };
            if high != causes.memory {
                let (used, limit) = (mib(used), mib(limits.memory));
                if high {
                    tracing::warn!(
                        "alarm: {used} MiB of memory are in use, more than memory_high_watermark ({limit} MiB): publishers wait, consumers go on"
                    );
                } else {
                    tracing::info!(
                        "alarm ended: {used} MiB of memory are in use (memory_high_watermark: {limit} MiB)"
                    );
                }
            }
            causes.memory = high;
        }
        self.tell(&causes);
        metrics.alarms.disk.set(i64::from(self.raised().disk));
        metrics.alarms.memory.set(i64::from(self.raised().memory));
    }

    /// The log found no space for its next segment, or has found it again: an alarm that does not wait for the next look. Cheap
    /// when nothing changed.
    pub fn no_segment(&self, none: bool) {
        if self.no_segment.load(Ordering::Relaxed) == none {
            return;
        }
        self.no_segment.store(none, Ordering::Relaxed);
        let mut causes = self.lock();
        causes.no_segment = none;
        if none {
            tracing::warn!(
                "alarm: no disk space for the log's next segment: publishers wait, consumers go on"
            );
        } else {
            tracing::info!("alarm ended: there is disk space for the log's next segment");
        }
        self.tell(&causes);
    }

    /// This node reaches no leader that has a majority, or does again.
    pub fn minority(&self, lost: bool) {
        let mut causes = self.lock();
        if causes.minority == lost {
            return;
        }
        causes.minority = lost;
        if lost {
            tracing::warn!(
                "alarm: no majority of the nodes is reached: nothing is confirmed or delivered, publishers wait"
            );
        } else {
            tracing::info!("alarm ended: a majority of the nodes is reached");
        }
        self.tell(&causes);
    }

    fn tell(&self, causes: &Causes) {
        let disk = causes.low_disk || causes.no_segment;
        let now = Raised { disk, memory: causes.memory, minority: causes.minority };
        self.raised.send_if_modified(|raised| std::mem::replace(raised, now) != now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Causes> {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// A connection's view of the alarms.
#[derive(Debug, Clone)]
pub struct Watch(watch::Receiver<Raised>);

impl Watch {
    /// What is raised now.
    #[must_use]
    pub fn raised(&self) -> Raised {
        *self.0.borrow()
    }

    /// Waits for a change. Cancel safe; never returns once nobody can raise anything any more.
    pub async fn changed(&mut self) -> Raised {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.raised()
    }
}

/// Memory that this process may use: the machine's, or less where a control group says so. Bytes; `None`: unknown.
#[must_use]
pub fn memory_total() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").as_deref().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    });
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limit = group_files(&groups).iter().filter_map(|path| read(path)?.trim().parse().ok()).min();
    [machine, limit].into_iter().flatten().min()
}

/// Where limits of memory may stand: the process's control group and all above it, version 2 and 1. Inside a container the
/// first existing one is the container's root.
fn group_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{file}"));
            match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => break,
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { disk_free: 1000, memory: 2000 };

    fn judge(alarms: &Alarms, disk_free: u64, memory_used: u64) -> &'static str {
        let sample = Sample { disk_free: Some(disk_free), memory_used: Some(memory_used) };
        alarms.judge(&sample, &LIMITS, &Metrics::new());
        alarms.raised().reason()
    }

    #[test]
    fn an_alarm_ends_only_when_there_is_clearly_enough() {
        let alarms = Alarms::new();
        assert_eq!(judge(&alarms, 1000, 2000), "");
        assert_eq!(judge(&alarms, 999, 2000), "low on disk");
        assert_eq!(judge(&alarms, 1049, 2001), "low on disk & memory");
        assert_eq!(judge(&alarms, 1050, 1901), "low on memory");
        assert_eq!(judge(&alarms, 1050, 1900), "");
    }

    #[tokio::test]
    async fn no_segment_is_a_disk_alarm_of_its_own_and_followers_hear_of_it() {
        let alarms = Alarms::new();
        let mut watch = alarms.follow();
        alarms.no_segment(true);
        assert_eq!(watch.changed().await.reason(), "low on disk");
        assert_eq!(judge(&alarms, 5000, 0), "low on disk");
        alarms.no_segment(false);
        assert!(!watch.changed().await.any());
    }

    #[test]
    fn a_lost_majority_is_an_alarm_that_says_so_and_ends() {
        let alarms = Alarms::new();
        alarms.minority(true);
        assert_eq!(judge(&alarms, 999, 0), "no majority of the nodes is reached");
        alarms.minority(false);
        assert_eq!(alarms.raised().reason(), "low on disk");
    }

    #[test]
    fn a_watermark_of_0_is_always_raised() {
        let alarms = Alarms::new();
        let sample = Sample { disk_free: None, memory_used: Some(1) };
        alarms.judge(&sample, &Limits { disk_free: 0, memory: 0 }, &Metrics::new());
        assert!(alarms.raised().memory);
    }

    #[test]
    fn limits_of_every_group_above_the_process_count() {
        let files = group_files("0::/a/b\n4:memory:/x\n3:cpu:/y\n");
        let expected = [
            "/sys/fs/cgroup/a/b/memory.max",
            "/sys/fs/cgroup/a/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn the_machine_says_how_much_there_is() {
        let sample = Sample::take(Path::new("/"));
        assert!(sample.disk_free.is_some() && sample.memory_used.unwrap() > 0);
        assert!(memory_total().unwrap() > sample.memory_used.unwrap());
    }
}
