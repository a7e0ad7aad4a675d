//! Numbers for whoever watches the broker.
//!
//! Owns: every metric, its name and its meaning. Where RabbitMQ has a metric of the same meaning it has RabbitMQ's name, so that
//! its dashboards work; what only Dassie has begins with `dassie_`.
//! Promises: updating is one relaxed atomic; reading never stops anybody. Connections and the shard update once per read, turn
//! or batch, never per message.
//! Does not know: who updates, and over what it is served.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// All metrics of a process. Shared by `Arc`; fields are atomics, their help texts in [`Metrics::new`] say what they mean.
#[derive(Debug)]
pub struct Metrics {
    /// Client connections of both protocols that stand now.
    pub connections: Gauge,
    /// Since the start.
    pub connections_opened: Counter,
    /// Since the start.
    pub connections_closed: Counter,
    /// AMQP channels open now.
    pub channels: Gauge,
    /// Since the start.
    pub channels_opened: Counter,
    /// Since the start.
    pub channels_closed: Counter,
    /// Logins of AMQP connections.
    pub auth: Logins,
    /// Logins of requests over HTTP.
    pub auth_http: Logins,
    /// Queues that exist: AMQP queues and RocketMQ message queues.
    pub queues: Gauge,
    /// Attached readers of both protocols.
    pub consumers: Gauge,
    /// Ready and unacknowledged together.
    pub messages: Gauge,
    /// Messages that wait for a reader.
    pub messages_ready: Gauge,
    /// Messages that were handed out and are not settled.
    pub messages_unacked: Gauge,
    /// What AMQP clients did.
    pub amqp: Traffic,
    /// What RocketMQ clients did.
    pub rocketmq: Traffic,
    /// The log of this node's shard.
    pub log: LogMetrics,
    /// The cluster, where there is one.
    pub cluster: ClusterMetrics,
    /// Alarms, and what they watch.
    pub alarms: AlarmMetrics,
    /// Connection tasks that ended in a panic: each is a defect.
    pub connection_panics: Counter,
    data_dir: Arc<OnceLock<PathBuf>>,
    registry: Registry,
}

/// Logins by how they ended.
#[derive(Debug, Clone)]
pub struct Logins {
    attempts: Counter,
    succeeded: Counter,
    failed: Counter,
}

impl Logins {
    /// One more.
    pub fn attempt(&self, accepted: bool) {
        self.attempts.inc();
        if accepted { &self.succeeded } else { &self.failed }.inc();
    }
}

/// Messages by what became of them, for one protocol. Counters only grow, from 0 at each start.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Taken from publishers.
    pub received: Counter,
    /// Of those: with an answer wanted.
    pub received_confirm: Counter,
    /// Reached at least one queue.
    pub routed: Counter,
    /// Reached none and were dropped.
    pub unroutable_dropped: Counter,
    /// Reached none and went back.
    pub unroutable_returned: Counter,
    /// Confirmed to publishers: durable where they must be.
    pub confirmed: Counter,
    /// Handed to readers; a message counts each time.
    pub delivered: Counter,
    /// Of those: not the first time.
    pub redelivered: Counter,
    /// Settled by readers for good.
    pub acknowledged: Counter,
    /// Gets and pulls that found nothing.
    pub get_empty: Counter,
}

/// Watermarks are positions in bytes: applied ≤ committed ≤ position, synced ≤ position.
#[derive(Debug, Default)]
pub struct LogMetrics {
    /// End of what is written.
    pub position: Gauge,
    /// End of what is on the disk for certain.
    pub synced: Gauge,
    /// End of what is committed.
    pub committed: Gauge,
    /// End of what queues and topology show.
    pub applied: Gauge,
    /// Batches appended.
    pub batches: Counter,
    /// Syncs that those took.
    pub syncs: Counter,
    /// Files of the log on disk. Bytes.
    pub bytes: Gauge,
    /// Of these: segments that hold no message of an AMQP queue. Bytes.
    pub reclaimable: Gauge,
    /// 1 where a confirm waits for the disk, 0 with `storage.flush = ASYNC_FLUSH`.
    pub synchronous: Gauge,
    /// 1 while this node leads the log.
    pub leader: Gauge,
}

/// What this node knows of its cluster; 0 where it stands alone.
#[derive(Debug, Default)]
pub struct ClusterMetrics {
    /// The leader's number, 0: none is known.
    pub leader: Gauge,
    /// Term.
    pub term: Gauge,
    /// Members that count for the majority.
    pub voters: Gauge,
    /// Bytes of the leader's log that a member has not synced; only a leader has them.
    lag: Family<MemberLabel, Gauge>,
}

impl ClusterMetrics {
    /// All lags that are known; others are forgotten.
    pub fn set_lags(&self, lags: impl Iterator<Item = (u64, Option<i64>)>) {
        self.lag.clear();
        for (node, lag) in lags {
            if let Some(lag) = lag {
                self.lag.get_or_create(&MemberLabel { node }).set(lag);
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabel {
    node: u64,
}

/// Bytes, and 1 for an alarm that is raised.
#[derive(Debug, Default)]
pub struct AlarmMetrics {
    /// 1 while publishers wait for disk space.
    pub disk: Gauge,
    /// 1 while publishers wait for memory.
    pub memory: Gauge,
    /// `disk_free_limit`
    pub disk_limit: Gauge,
    /// `memory_high_watermark`
    pub memory_limit: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Protocol {
    protocol: &'static str,
}

impl Metrics {
    /// Registers everything; all values are 0.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut r = Registry::default();
        let (amqp, rocketmq) = traffic(&mut r);
        r.register(
            "dassie_build",
            "Version of this broker",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register(
            "rabbitmq_build",
            "Version of this broker, under the name that dashboards look for",
            Info::new([("rabbitmq_version", env!("CARGO_PKG_VERSION")), ("product_name", "Dassie")]),
        );
        let [auth, auth_http] = logins(&mut r);
        let data_dir = Arc::new(OnceLock::new());
        r.register_collector(Box::new(Process { data_dir: Arc::clone(&data_dir) }));
        Arc::new(Self {
            connections: gauge(
                &mut r,
                "rabbitmq_connections",
                "Client connections that stand now, both protocols",
            ),
            connections_opened: counter(&mut r, "rabbitmq_connections_opened", "Client connections opened"),
            connections_closed: counter(&mut r, "rabbitmq_connections_closed", "Client connections closed"),
            channels: gauge(&mut r, "rabbitmq_channels", "AMQP channels open now"),
            channels_opened: counter(&mut r, "rabbitmq_channels_opened", "AMQP channels opened"),
            channels_closed: counter(&mut r, "rabbitmq_channels_closed", "AMQP channels closed"),
            auth,
            auth_http,
            queues: gauge(&mut r, "rabbitmq_queues", "AMQP queues and RocketMQ message queues that exist"),
            consumers: gauge(&mut r, "rabbitmq_consumers", "Attached consumers, both protocols"),
            messages: gauge(&mut r, "rabbitmq_queue_messages", "Messages ready and unacknowledged"),
            messages_ready: gauge(&mut r, "rabbitmq_queue_messages_ready", "Messages ready to be delivered"),
            messages_unacked: gauge(
                &mut r,
                "rabbitmq_queue_messages_unacked",
                "Messages delivered and not yet settled",
            ),
            amqp,
            rocketmq,
            log: LogMetrics {
                position: gauge(&mut r, "dassie_log_position", "Bytes: end of what is written to the log"),
                synced: gauge(&mut r, "dassie_log_synced", "Bytes: end of what is synced to the disk"),
                committed: gauge(&mut r, "dassie_log_committed", "Bytes: end of what is committed"),
                applied: gauge(
                    &mut r,
                    "dassie_log_applied",
                    "Bytes: end of what is applied to queues and topology",
                ),
                batches: counter(&mut r, "dassie_log_batches", "Batches appended to the log"),
                syncs: counter(&mut r, "dassie_log_syncs", "Disk syncs of the log"),
                bytes: gauge(&mut r, "dassie_log_bytes", "Bytes: files of the log on disk"),
                reclaimable: gauge(
                    &mut r,
                    "dassie_log_reclaimable_bytes",
                    "Bytes: full segments of the log that hold no message of an AMQP queue",
                ),
                synchronous: gauge(
                    &mut r,
                    "dassie_log_synchronous",
                    "1 where a confirm waits for the disk, 0 with ASYNC_FLUSH",
                ),
                leader: gauge(&mut r, "dassie_log_leader", "1 while this node leads the log"),
            },
            cluster: ClusterMetrics {
                leader: gauge(
                    &mut r,
                    "dassie_cluster_leader",
                    "Number of the leading node, 0 while none is known",
                ),
                term: gauge(&mut r, "dassie_cluster_term", "Term of the consensus"),
                voters: gauge(&mut r, "dassie_cluster_voters", "Members that count for the majority"),
                lag: {
                    let lag = Family::default();
                    let help = "Bytes of the leader's log that a member has not synced, known to the leader";
                    r.register("dassie_cluster_lag_bytes", help, lag.clone());
                    lag
                },
            },
            alarms: AlarmMetrics {
                disk: gauge(
                    &mut r,
                    "rabbitmq_alarms_free_disk_space_watermark",
                    "1 while publishers wait because disk space is low",
                ),
                memory: gauge(
                    &mut r,
                    "rabbitmq_alarms_memory_used_watermark",
                    "1 while publishers wait because memory is low",
                ),
                disk_limit: gauge(
                    &mut r,
                    "rabbitmq_disk_space_available_limit_bytes",
                    "Free space below which publishers wait",
                ),
                memory_limit: gauge(
                    &mut r,
                    "rabbitmq_resident_memory_limit_bytes",
                    "Memory of the process's own above which publishers wait",
                ),
            },
            connection_panics: counter(
                &mut r,
                "dassie_connection_panics",
                "Connections closed by a defect of the broker",
            ),
            data_dir,
            registry: r,
        })
    }

    /// Whose disk is meant by the free space. The first call counts.
    pub fn watch_disk(&self, data_dir: PathBuf) {
        let _ = self.data_dir.set(data_dir);
    }

    /// Free bytes of the data directory's disk for this process; `None`: unknown.
    #[must_use]
    pub fn disk_free(&self) -> Option<u64> {
        disk_free(&self.data_dir)
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    ///
    /// # Errors
    /// Only a metric of ours that can not be encoded; a unit test encodes all of them.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// The encoding adds `_total` to the name.
fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

/// One family per name with both protocols in it: two families of one name would be two TYPE lines, which scrapers refuse.
fn traffic(registry: &mut Registry) -> (Traffic, Traffic) {
    let mut family = |name: &str, help: &str| {
        let family = Family::<Protocol, Counter>::default();
        registry.register(format!("rabbitmq_global_messages_{name}"), help, family.clone());
        family
    };
    let received = family("received", "Messages taken from publishers");
    let received_confirm = family("received_confirm", "Messages taken from publishers that want an answer");
    let routed = family("routed", "Messages that reached at least one queue");
    let unroutable_dropped = family("unroutable_dropped", "Messages that reached no queue and were dropped");
    let unroutable_returned = family("unroutable_returned", "Messages that reached no queue and went back");
    let confirmed = family("confirmed", "Messages confirmed to publishers");
    let delivered = family("delivered", "Messages handed to consumers, each time");
    let redelivered = family("redelivered", "Messages handed to consumers again");
    let acknowledged = family("acknowledged", "Messages settled for good by consumers");
    let get_empty = family("get_empty", "Gets and pulls that found nothing");
    let of = |protocol: &'static str| {
        let take = |family: &Family<Protocol, Counter>| family.get_or_create(&Protocol { protocol }).clone();
        Traffic {
            received: take(&received),
            received_confirm: take(&received_confirm),
            routed: take(&routed),
            unroutable_dropped: take(&unroutable_dropped),
            unroutable_returned: take(&unroutable_returned),
            confirmed: take(&confirmed),
            delivered: take(&delivered),
            redelivered: take(&redelivered),
            acknowledged: take(&acknowledged),
            get_empty: take(&get_empty),
        }
    };
    (of("amqp091"), of("rocketmq"))
}

/// Attempts over AMQP, and over HTTP.
fn logins(registry: &mut Registry) -> [Logins; 2] {
    let mut family = |name: &str, help: &str| {
        let family = Family::<Protocol, Counter>::default();
        registry.register(format!("rabbitmq_auth_attempts{name}"), help, family.clone());
        family
    };
    let attempts = family("", "Logins tried");
    let succeeded = family("_succeeded", "Logins that were accepted");
    let failed = family("_failed", "Logins that were refused");
    ["amqp091", "http"].map(|protocol| {
        let take = |family: &Family<Protocol, Counter>| family.get_or_create(&Protocol { protocol }).clone();
        Logins { attempts: take(&attempts), succeeded: take(&succeeded), failed: take(&failed) }
    })
}

/// What the kernel knows about this process, read when asked.
#[derive(Debug)]
struct Process {
    data_dir: Arc<OnceLock<PathBuf>>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: Option<u64>| {
            // A kernel that hides a value gets no line rather than a wrong one.
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let (memory, files, most) = (resident_bytes(), open_fds(), max_fds());
        gauge("process_resident_memory_bytes", "Resident memory", memory)?;
        gauge("rabbitmq_process_resident_memory_bytes", "Resident memory", memory)?;
        gauge("process_open_fds", "Open file descriptors", files)?;
        gauge("rabbitmq_process_open_fds", "Open file descriptors", files)?;
        gauge("process_max_fds", "File descriptors that may be open", most)?;
        gauge("rabbitmq_process_max_fds", "File descriptors that may be open", most)?;
        let free = disk_free(&self.data_dir);
        gauge("rabbitmq_disk_space_available_bytes", "Free space of the data directory's disk", free)?;
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let name = encoder.encode_descriptor(
                "process_cpu_seconds",
                "CPU time, user and system",
                None,
                counter.metric_type(),
            )?;
            counter.encode(name)?;
        }
        Ok(())
    }
}

fn disk_free(data_dir: &OnceLock<PathBuf>) -> Option<u64> {
    let disk = rustix::fs::statvfs(data_dir.get()?).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Limit of open files. `None`: unlimited or unknown.
#[must_use]
pub fn max_fds() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Resident memory of this process in bytes. `None`: the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// A size among what the kernel says of this process, e.g. `VmRSS:`. Bytes.
pub(crate) fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Open file descriptors of this process. `None`: the kernel does not tell.
#[must_use]
pub fn open_fds() -> Option<u64> {
    // One of them is the directory being read.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may hold anything, so count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
    // Linux shows 100 ticks a second on every architecture.
    Some((user + system) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_find_the_names_they_know() {
        let metrics = Metrics::new();
        metrics.connections.set(3);
        metrics.amqp.received.inc_by(7);
        metrics.rocketmq.received.inc_by(2);
        metrics.log.synced.set(4096);
        metrics.auth.attempt(true);
        metrics.auth.attempt(false);
        metrics.watch_disk(std::env::temp_dir());
        assert!(metrics.disk_free().unwrap() > 0);
        let text = metrics.render().unwrap();
        for line in [
            "rabbitmq_connections 3",
            "rabbitmq_global_messages_received_total{protocol=\"amqp091\"} 7",
            "rabbitmq_global_messages_received_total{protocol=\"rocketmq\"} 2",
            "rabbitmq_queue_messages_ready 0",
            "rabbitmq_auth_attempts_total{protocol=\"amqp091\"} 2",
            "rabbitmq_auth_attempts_failed_total{protocol=\"amqp091\"} 1",
            "rabbitmq_auth_attempts_total{protocol=\"http\"} 0",
            "dassie_log_synced 4096",
            "dassie_log_batches_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(text.contains("dassie_build_info{version=\""));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn no_metric_is_described_twice() {
        let text = Metrics::new().render().unwrap();
        let mut types: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), all);
    }

    #[test]
    fn the_kernel_tells_memory_files_and_cpu() {
        assert!(status_bytes("VmRSS:").unwrap() > 1024 * 1024);
        assert!(open_fds().unwrap() >= 3);
        assert!(cpu_seconds().unwrap() >= 0.0);
    }
}
