//! Every key of the configuration: the one table.
//!
//! Owns: name, default, unit, bound and meaning of each key, and how its text becomes a value.
//! Promises: `src/docs/configuration.md` is this table printed ([`reference`]), and a test compares them.
//! Does not know: where a value came from.

use std::fmt;

use super::{
    Address, ClientAuth, Derived, Draft, LogFormat, LogLevel, MinTls, RocketmqTls, UserFrom, Watermark,
};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted, as in `--set`.
    pub name: &'static str,
    /// As it would be written in `--set`.
    pub default: &'static str,
    /// What it does and when one changes it.
    pub meaning: &'static str,
    kind: Kind,
}

/// What a key's value looks like, and where it goes.
#[derive(Debug)]
enum Kind {
    /// host:port, several of them, or "" for none.
    Listen(fn(&mut Draft) -> &mut Vec<Address>),
    /// The same, or `auto`.
    DerivedListen(fn(&mut Draft) -> &mut Derived<Vec<Address>>),
    /// A host name or address without port, or `auto`.
    DerivedHost(fn(&mut Draft) -> &mut Derived<String>),
    /// Members of a cluster and where they are reached.
    Peers(fn(&mut Draft) -> &mut Vec<(u64, Address)>),
    /// Anything but nothing.
    Path(fn(&mut Draft) -> &mut String),
    /// A file, or "" for none.
    File(fn(&mut Draft) -> &mut String),
    /// Names of users.
    Users(fn(&mut Draft) -> &mut Vec<String>),
    /// Name of a user.
    User(fn(&mut Draft) -> &mut String),
    /// A name as RocketMQ takes them.
    Name(fn(&mut Draft) -> &mut String),
    /// What something is called for others to read.
    Label(fn(&mut Draft) -> &mut String),
    /// true or false.
    Flag(fn(&mut Draft) -> &mut bool),
    /// Whole, both bounds included.
    Number { unit: &'static str, min: u64, max: u64, place: fn(&mut Draft) -> &mut u64 },
    /// Bytes, with or without KiB, MiB, GiB, both bounds included, a multiple of `step`.
    Size { min: u64, max: u64, step: u64, place: fn(&mut Draft) -> &mut u64 },
    /// Durations with their unit, separated by spaces.
    Delays(fn(&mut Draft) -> &mut Vec<u64>),
    /// Bytes as a size, or a fraction from 0 to 1 of all memory.
    Watermark(fn(&mut Draft) -> &mut Watermark),
    /// One of these words; its number in the list is what is put.
    Word { words: &'static [&'static str], put: fn(&mut Draft, usize) -> Option<()> },
}

/// What the environment's variables for us begin with.
pub(super) const VARIABLE_PREFIX: &str = "DASSIE_";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const PIB: u64 = 1024 * 1024 * GIB;
/// Longest name of a broker or cluster: RocketMQ's clients keep it in fields of one byte length.
const NAME_MAX: usize = 127;

/// Longest name of a user: AMQP messages carry it as a short string. Bytes.
const USER_MAX: usize = 255;

/// All keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "data_dir",
        default: "./dassie-data",
        meaning: "Directory of the log and everything else that survives a restart. Made when missing; one process at a time.",
        kind: Kind::Path(|d| &mut d.config.data_dir),
    },
    Key {
        name: "loopback_users",
        default: "guest",
        meaning: "Users that may come from this machine only.",
        kind: Kind::Users(|d| &mut d.config.loopback_users),
    },
    Key {
        name: "disk_free_limit",
        default: "192MiB",
        meaning: "With less free space on the file system of `data_dir` publishers of both protocols wait (AMQP: `connection.blocked`, RocketMQ: SERVICE_NOT_AVAILABLE), while consumers, acknowledgements and deletions go on. The default leaves room for segments and checkpoints that those need. Read again on SIGHUP.",
        kind: Kind::Size {
            min: 0,
            max: 1024 * 1024 * GIB,
            step: 1,
            place: |d| &mut d.config.disk_free_limit,
        },
    },
    Key {
        name: "memory_high_watermark",
        default: "0.4",
        meaning: "With more memory of its own in use than this, in bytes or as a part of what the machine or the control group has, publishers wait likewise (RocketMQ: SYSTEM_BUSY). Files that are mapped do not count. 0: always. Read again on SIGHUP.",
        kind: Kind::Watermark(|d| &mut d.config.memory_high_watermark),
    },
    Key {
        name: "amqp.listen",
        default: "localhost:5672",
        meaning: "Where AMQP 0-9-1 clients (RabbitMQ's) connect.",
        kind: Kind::Listen(|d| &mut d.config.amqp.listen),
    },
    Key {
        name: "amqp.heartbeat",
        default: "60",
        meaning: "Offered to clients at the start of a connection; the smaller wish counts. A peer silent for two intervals is cut off. 0: none.",
        kind: Kind::Number { unit: "seconds", min: 0, max: 65535, place: |d| &mut d.config.amqp.heartbeat },
    },
    Key {
        name: "amqp.frame_max",
        default: "128KiB",
        meaning: "Largest AMQP frame in both directions. Larger messages travel in several frames.",
        kind: Kind::Size { min: 8 * KIB, max: 16 * MIB, step: 1, place: |d| &mut d.config.amqp.frame_max },
    },
    Key {
        name: "amqp.channel_max",
        default: "2047",
        meaning: "Channels that one connection may have open.",
        kind: Kind::Number {
            unit: "channels",
            min: 1,
            max: 65535,
            place: |d| &mut d.config.amqp.channel_max,
        },
    },
    Key {
        name: "amqp.product",
        default: "Dassie",
        meaning: "What this server calls itself in connection.start. Some clients behave as for other brokers unless it is `RabbitMQ`: Celery then uses the channel's prefetch.",
        kind: Kind::Label(|d| &mut d.config.amqp.product),
    },
    Key {
        name: "amqp.version",
        default: "auto",
        meaning: "The version beside it, for clients that choose by RabbitMQ's; `3.10.8` is what it behaves like. `auto`: the program's own.",
        kind: Kind::Label(|d| &mut d.config.amqp.version),
    },
    Key {
        name: "rocketmq.listen",
        default: "localhost:10911",
        meaning: "Where RocketMQ clients send and pull.",
        kind: Kind::Listen(|d| &mut d.config.rocketmq.listen),
    },
    Key {
        name: "rocketmq.vip_listen",
        default: "auto",
        meaning: "The second door that RocketMQ clients with `vipChannelEnabled` use. They compute its port themselves, so anything but `auto` (the port of `rocketmq.listen` minus two; none when that port is below 3) only makes sense behind a port mapping.",
        kind: Kind::DerivedListen(|d| &mut d.vip_listen),
    },
    Key {
        name: "rocketmq.advertised_host",
        default: "auto",
        meaning: "Host that the name server gives to clients as the broker's. `auto`: the host of `rocketmq.listen`; when that is everywhere, the address that the asking client came to. Set it when clients come through NAT or a port mapping.",
        kind: Kind::DerivedHost(|d| &mut d.advertised_host),
    },
    Key {
        name: "rocketmq.name_server_listen",
        default: "localhost:9876",
        meaning: "Where RocketMQ clients ask for routes: their `namesrvAddr`.",
        kind: Kind::Listen(|d| &mut d.config.rocketmq.name_server_listen),
    },
    Key {
        name: "rocketmq.broker_name",
        default: "broker-a",
        meaning: "Name of this broker in routes. Clients keep it beside offsets: do not change it once consumers have run.",
        kind: Kind::Name(|d| &mut d.config.rocketmq.broker_name),
    },
    Key {
        name: "rocketmq.cluster_name",
        default: "DefaultCluster",
        meaning: "Name of the cluster in routes and admin answers.",
        kind: Kind::Name(|d| &mut d.config.rocketmq.cluster_name),
    },
    Key {
        name: "rocketmq.auto_create_topics",
        default: "true",
        meaning: "A send to a topic that does not exist makes it. false: such a send is refused with TOPIC_NOT_EXIST.",
        kind: Kind::Flag(|d| &mut d.config.rocketmq.auto_create_topics),
    },
    Key {
        name: "rocketmq.default_topic_queues",
        default: "8",
        meaning: "Message queues of a topic that a send makes; a client that asks for fewer gets fewer.",
        kind: Kind::Number {
            unit: "message queues",
            min: 1,
            max: crate::limits::TOPIC_QUEUES_MAX as u64,
            place: |d| &mut d.config.rocketmq.default_topic_queues,
        },
    },
    Key {
        name: "rocketmq.anonymous_user",
        default: "guest",
        meaning: "User that RocketMQ clients speak as: they bring no credentials. `guest` is kept to loopback by `loopback_users`; name another user, with rights in `/`, to let clients of other machines and containers in.",
        kind: Kind::User(|d| &mut d.config.rocketmq.anonymous_user),
    },
    Key {
        name: "rocketmq.delay_levels",
        default: "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h",
        meaning: "How long a message of delay level 1, 2, ... waits; retries use the levels from the third on. Shortening a level moves what waits there already, too.",
        kind: Kind::Delays(|d| &mut d.config.rocketmq.delay_levels),
    },
    Key {
        name: "rocketmq.transaction_timeout",
        default: "6",
        meaning: "A half message that its producer neither committed nor rolled back is asked about after so long.",
        kind: Kind::Number {
            unit: "seconds",
            min: 1,
            max: 86_400,
            place: |d| &mut d.config.rocketmq.transaction_timeout,
        },
    },
    Key {
        name: "rocketmq.transaction_check_interval",
        default: "30",
        meaning: "And again after so long each, until somebody knows.",
        kind: Kind::Number {
            unit: "seconds",
            min: 1,
            max: 86_400,
            place: |d| &mut d.config.rocketmq.transaction_check_interval,
        },
    },
    Key {
        name: "rocketmq.transaction_check_max",
        default: "15",
        meaning: "At most so often; then the half message is put into the topic `TRANS_CHECK_MAX_TIME_TOPIC`.",
        kind: Kind::Number {
            unit: "questions",
            min: 1,
            max: 10_000,
            place: |d| &mut d.config.rocketmq.transaction_check_max,
        },
    },
    Key {
        name: "rocketmq.retention_hours",
        default: "72",
        meaning: "Topics keep messages for so long (Apache's `fileReservedTime`), whether they were consumed or not. They go by whole segments of the log: a message goes when the newest one of its segment is that old. 0: for ever. AMQP queues keep theirs until they are settled.",
        kind: Kind::Number {
            unit: "hours",
            min: 0,
            max: 87_600,
            place: |d| &mut d.config.rocketmq.retention_hours,
        },
    },
    Key {
        name: "rocketmq.retention_bytes",
        default: "0",
        meaning: "Topics keep what lies in so many newest bytes of the log, rounded up to whole segments. 0: no bound.",
        kind: Kind::Size { min: 0, max: PIB, step: 1, place: |d| &mut d.config.rocketmq.retention_bytes },
    },
    Key {
        name: "rocketmq.tls",
        default: "permissive",
        meaning: "TLS on the RocketMQ ports, all of them, as Apache's `tls.server.mode`: with `permissive` the first byte of a connection tells (plaintext only while `tls.certificate` is not set), `enforcing` turns plaintext away, `disabled` turns TLS away.",
        kind: Kind::Word {
            words: &["disabled", "permissive", "enforcing"],
            put: |d, word| {
                use RocketmqTls::{Disabled, Enforcing, Permissive};
                d.config.rocketmq.tls = *[Disabled, Permissive, Enforcing].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "tls.listen",
        default: "auto",
        meaning: "Where AMQP clients connect with TLS (amqps). `auto`: localhost:5671 once `tls.certificate` is set, none before.",
        kind: Kind::DerivedListen(|d| &mut d.tls_listen),
    },
    Key {
        name: "tls.certificate",
        default: "",
        meaning: "PEM file with the broker's certificate, and behind it those that lead to the authority. Read again on SIGHUP and when it, the key or the authorities change: new connections get the new one, a broken one is logged and changes nothing.",
        kind: Kind::File(|d| &mut d.config.tls.certificate),
    },
    Key {
        name: "tls.key",
        default: "",
        meaning: "PEM file with its private key (PKCS#8, PKCS#1 or SEC1, without password).",
        kind: Kind::File(|d| &mut d.config.tls.key),
    },
    Key {
        name: "tls.client_ca",
        default: "",
        meaning: "PEM file with the authorities that sign clients' certificates.",
        kind: Kind::File(|d| &mut d.config.tls.client_ca),
    },
    Key {
        name: "tls.client_auth",
        default: "none",
        meaning: "Must clients of both protocols show a certificate of `tls.client_ca`? With `optional` they may; a wrong one is refused.",
        kind: Kind::Word {
            words: &["none", "optional", "required"],
            put: |d, word| {
                use ClientAuth::{None as Never, Optional, Required};
                d.config.tls.client_auth = *[Never, Optional, Required].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "tls.min_version",
        default: "1.2",
        meaning: "Oldest version of TLS that is spoken.",
        kind: Kind::Word {
            words: &["1.2", "1.3"],
            put: |d, word| {
                d.config.tls.min_version = *[MinTls::V1_2, MinTls::V1_3].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "tls.external_user_from",
        default: "common_name",
        meaning: "Where in a client's verified certificate the login of SASL EXTERNAL stands: common name, whole subject (as RFC 4514 writes it), or first DNS name. RabbitMQ's `ssl_cert_login_from`.",
        kind: Kind::Word {
            words: &["common_name", "distinguished_name", "subject_alternative_name"],
            put: |d, word| {
                use UserFrom::{CommonName, DistinguishedName, SubjectAlternativeName};
                d.config.tls.external_user_from =
                    *[CommonName, DistinguishedName, SubjectAlternativeName].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "cluster.name",
        default: "dassie",
        meaning: "Name of the cluster. Nodes of another name are turned away, and certificates of nodes carry it.",
        kind: Kind::Name(|d| &mut d.config.cluster.name),
    },
    Key {
        name: "cluster.node",
        default: "1",
        meaning: "Number of this node in its cluster. Fixed when the data directory is first made: no two nodes have the same, and a node that lost its data comes back under a new one.",
        kind: Kind::Number { unit: "node", min: 1, max: NODE_MAX, place: |d| &mut d.config.cluster.node },
    },
    Key {
        name: "cluster.listen",
        default: "",
        meaning: "Where the other nodes of the cluster connect; 7673 is the usual port. \"\": this node stands alone.",
        kind: Kind::Listen(|d| &mut d.config.cluster.listen),
    },
    Key {
        name: "cluster.peers",
        default: "",
        meaning: "All nodes of the cluster, this one too: `1@a:7673,2@b:7673,3@c:7673`. The empty ones among them form a cluster, or join the one that there is ([cluster](cluster.md)).",
        kind: Kind::Peers(|d| &mut d.config.cluster.peers),
    },
    Key {
        name: "cluster.insecure",
        default: "false",
        meaning: "true: nodes speak to each other over other networks than loopback without encryption and believe whoever says that he is a node. Whoever can reach `cluster.listen` can then read and change everything.",
        kind: Kind::Flag(|d| &mut d.config.cluster.insecure),
    },
    Key {
        name: "cluster.copy_rate",
        default: "64MiB",
        meaning: "A node that lacks more of the log than the others have kept gets a copy of the leader's store, at so many bytes a second: more is sooner done and leaves clients less of disk and network. Backups are read at this rate, too.",
        kind: Kind::Size { min: 1 << 20, max: PIB, step: 1, place: |d| &mut d.config.cluster.copy_rate },
    },
    Key {
        name: "cluster.keep_log",
        default: "1GiB",
        meaning: "So much of the log below the newest checkpoint is kept for nodes that lack it, whatever it holds. One that lacks more gets a copy of the store, so a dead node does not fill the disks of the others.",
        kind: Kind::Size { min: 1 << 20, max: PIB, step: 1, place: |d| &mut d.config.cluster.keep_log },
    },
    Key {
        name: "cluster.tls.certificate",
        default: "",
        meaning: "PEM file with the certificate that this node shows to the others, as client and as server, and behind it those that lead to the authority. It must name `node-<number>.<cluster.name>` (DNS), `node-2.dassie` for node 2. Read at every new connection.",
        kind: Kind::File(|d| &mut d.config.cluster.certificate),
    },
    Key {
        name: "cluster.tls.key",
        default: "",
        meaning: "PEM file with its private key.",
        kind: Kind::File(|d| &mut d.config.cluster.key),
    },
    Key {
        name: "cluster.tls.ca",
        default: "",
        meaning: "PEM file with the authorities that sign nodes' certificates; nothing else should be signed by them.",
        kind: Kind::File(|d| &mut d.config.cluster.ca),
    },
    Key {
        name: "definitions.file",
        default: "",
        meaning: "Definitions in RabbitMQ's JSON (`rabbitmqctl export_definitions`): users with their password hashes, vhosts, permissions, topic permissions, limits, exchanges, queues, bindings. Users are read again on SIGHUP.",
        kind: Kind::File(|d| &mut d.config.definitions_file),
    },
    Key {
        name: "http.listen",
        default: "localhost:15672",
        meaning: "The management API under `/api`, `/health/live` and `/health/ready`, and `/rocketmq/nsaddr`.",
        kind: Kind::Listen(|d| &mut d.config.http_listen),
    },
    Key {
        name: "metrics.listen",
        default: "localhost:15692",
        meaning: "`/metrics`, for Prometheus.",
        kind: Kind::Listen(|d| &mut d.config.metrics_listen),
    },
    Key {
        name: "log.level",
        default: "info",
        meaning: "How much goes to standard error. `debug` and `trace` are for developers: a release build has no more than `info`.",
        kind: Kind::Word {
            words: &["error", "warn", "info", "debug", "trace"],
            put: |d, word| {
                use LogLevel::{Debug, Error, Info, Trace, Warn};
                d.config.log_level = *[Error, Warn, Info, Debug, Trace].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "log.format",
        default: "text",
        meaning: "`text` is for people; `json` is one object a line, with the same fields, for log collectors.",
        kind: Kind::Word {
            words: &["text", "json"],
            put: |d, word| {
                d.config.log_format = *[LogFormat::Text, LogFormat::Json].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "storage.segment_size",
        default: "64MiB",
        meaning: "Size of one file of the log. Fixed when the data directory is first made (it stands in its genesis record); later values of this key are without effect.",
        kind: Kind::Size {
            min: 4 * MIB,
            max: GIB,
            step: 4 * KIB,
            place: |d| &mut d.config.storage.segment_size,
        },
    },
    Key {
        name: "storage.tail_memory",
        default: "8MiB",
        meaning: "Newest part of the log that is kept in memory, so that consumers who keep up never cause a read.",
        kind: Kind::Size {
            min: 4 * MIB,
            max: 64 * GIB,
            step: 1,
            place: |d| &mut d.config.storage.tail_memory,
        },
    },
    Key {
        name: "storage.max_bytes",
        default: "0",
        meaning: "When the files of the log take up more, room is made: what lives alone in an old segment moves on, and topics lose their oldest messages before their time. Messages in AMQP queues are never given up, so it is no hard bound; leave a quarter of the disk free beside it. 0: none.",
        kind: Kind::Size { min: 0, max: PIB, step: 1, place: |d| &mut d.config.storage.max_bytes },
    },
    Key {
        name: "storage.flush",
        default: "SYNC_FLUSH",
        meaning: "When a message is confirmed, in the words of Apache's `flushDiskType`. `SYNC_FLUSH`: when it is synced to the disk. `ASYNC_FLUSH`: when it is written; a killed process loses nothing then, but a power cut or a crash of the machine loses what came since the last `storage.flush_interval_ms`, confirmed or not. It holds for everything in this data directory, AMQP's confirms too.",
        kind: Kind::Word {
            words: &["SYNC_FLUSH", "ASYNC_FLUSH"],
            put: |d, word| {
                d.config.storage.flush_async = *[false, true].get(word)?;
                Some(())
            },
        },
    },
    Key {
        name: "storage.flush_interval_ms",
        default: "500",
        meaning: "How often `ASYNC_FLUSH` syncs: what a power cut can take, and the time of one sync.",
        kind: Kind::Number {
            unit: "ms",
            min: 10,
            max: 10_000,
            place: |d| &mut d.config.storage.flush_interval_ms,
        },
    },
];

/// A value as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A string of the file, or anything from the command line.
    Text(String),
    /// A whole number of the file.
    Number(i64),
    /// A number of the file that is not whole.
    Fraction(String),
    /// A boolean of the file.
    Flag(bool),
    /// Anything else of the file, which no key takes.
    Other(String),
}

impl Given {
    /// From the file.
    #[must_use]
    pub fn from_toml(value: &toml::Value) -> Self {
        match value {
            toml::Value::String(text) => Self::Text(text.clone()),
            toml::Value::Integer(number) => Self::Number(*number),
            toml::Value::Float(fraction) => Self::Fraction(fraction.to_string()),
            toml::Value::Boolean(flag) => Self::Flag(*flag),
            toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => {
                let texts: Vec<&str> = list.iter().filter_map(toml::Value::as_str).collect();
                Self::Text(texts.join(","))
            }
            other => Self::Other(format!("of type {}", other.type_str())),
        }
    }

    /// From the command line, where quotes around the whole are taken off: both spellings are common.
    #[must_use]
    pub fn from_argument(text: &str) -> Self {
        let bare = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        Self::Text(bare.unwrap_or(text).to_owned())
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// From 0 to 1, in thousandths.
    fn fraction(&self) -> Option<u32> {
        let fraction = match self {
            Self::Fraction(text) | Self::Text(text) => text.parse::<f64>().ok()?,
            Self::Number(number @ 0..=1) => return u32::try_from(number * 1000).ok(),
            _ => return None,
        };
        let thousandths = (0..=1000_u32).find(|n| f64::from(*n) >= fraction * 1000.0);
        thousandths.filter(|_| fraction >= 0.0)
    }

    fn size(&self) -> Option<u64> {
        let Self::Text(text) = self else { return self.number() };
        let units = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB)];
        match units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes))) {
            Some((number, bytes)) => number.trim_end().parse::<u64>().ok()?.checked_mul(*bytes),
            None => self.number(),
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "'{text}'"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Fraction(text) => f.write_str(text),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// The environment's name of a key or section.
pub(super) fn variable(name: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", name.to_ascii_uppercase().replace('.', "_"))
}

impl Key {
    /// Its environment variable: `DASSIE_AMQP_LISTEN` for `amqp.listen`.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(self.name)
    }

    /// Puts a value in its place.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn set(&self, draft: &mut Draft, given: &Given) -> Result<(), String> {
        self.kind.put(draft, given).ok_or_else(|| self.kind.expected())
    }
}

impl Kind {
    fn put(&self, draft: &mut Draft, given: &Given) -> Option<()> {
        match self {
            Self::Listen(place) => *place(draft) = listen(given.text()?)?,
            Self::DerivedListen(place) => {
                *place(draft) = match given.text()? {
                    "auto" => Derived::Auto,
                    text => Derived::Given(listen(text)?),
                }
            }
            Self::DerivedHost(place) => {
                *place(draft) = match given.text()? {
                    "auto" => Derived::Auto,
                    text => Derived::Given(Some(text).filter(|t| is_host(t))?.to_owned()),
                }
            }
            Self::Peers(place) => *place(draft) = peers(given.text()?)?,
            Self::Path(place) => {
                *place(draft) = given.text().filter(|t| !t.is_empty() && !t.contains('\0'))?.to_owned()
            }
            Self::File(place) => *place(draft) = given.text().filter(|t| !t.contains('\0'))?.to_owned(),
            Self::Users(place) => {
                let names = given.text()?.split(',').map(str::trim).filter(|name| !name.is_empty());
                *place(draft) = names.map(str::to_owned).collect();
            }
            Self::User(place) => {
                let fits = |name: &&str| !name.is_empty() && name.len() <= USER_MAX;
                *place(draft) = given.text().filter(fits)?.to_owned();
            }
            Self::Name(place) => *place(draft) = given.text().filter(|t| is_name(t))?.to_owned(),
            Self::Label(place) => {
                *place(draft) =
                    given.text().filter(|t| t.split('.').all(is_name) && t.len() <= NAME_MAX)?.to_owned();
            }
            Self::Flag(place) => *place(draft) = given.flag()?,
            Self::Number { min, max, place, .. } => {
                *place(draft) = given.number().filter(|n| (min..=max).contains(&n))?;
            }
            Self::Size { min, max, step, place } => {
                *place(draft) =
                    given.size().filter(|n| (min..=max).contains(&n) && n.is_multiple_of(*step))?;
            }
            Self::Delays(place) => *place(draft) = delays(given.text()?)?,
            Self::Watermark(place) => {
                *place(draft) = match given.fraction() {
                    Some(fraction) => Watermark::PerMille(fraction),
                    None => Watermark::Bytes(given.size().filter(|bytes| *bytes > 1)?),
                };
            }
            Self::Word { words, put } => {
                let text = given.text()?;
                put(draft, words.iter().position(|word| *word == text)?)?;
            }
        }
        Some(())
    }

    /// Form and bounds, as both the documentation and a complaint say them.
    fn expected(&self) -> String {
        match self {
            Self::Listen(_) => "host:port, several with commas between (in the file also a list), or \"\" for no such listener".to_owned(),
            Self::DerivedListen(_) => "host:port, several with commas between (in the file also a list), `auto`, or \"\" for no such listener".to_owned(),
            Self::DerivedHost(_) => "a host name or address without port, or `auto`".to_owned(),
            Self::Peers(_) => format!("number@host:port with commas between (in the file also a list), each number once from 1 to {NODE_MAX}, or \"\" for none"),
            Self::Path(_) => "a path".to_owned(),
            Self::File(_) => "a path, or \"\" for none".to_owned(),
            Self::Users(_) => "names with commas between, or \"\" for nobody".to_owned(),
            Self::User(_) => format!("1 to {USER_MAX} bytes"),
            Self::Name(_) => format!("1 to {NAME_MAX} letters, digits, '-' or '_'"),
            Self::Label(_) => {
                format!("1 to {NAME_MAX} letters, digits, '-' or '_', with single dots between")
            }
            Self::Flag(_) => "true or false".to_owned(),
            Self::Number { unit, min, max, .. } => format!("a number of {unit} from {min} to {max}"),
            Self::Size { min, max, step: 1, .. } => {
                format!("a number of bytes (or KiB, MiB, GiB) from {} to {}", bytes(*min), bytes(*max))
            }
            Self::Size { min, max, step, .. } => format!(
                "a number of bytes (or KiB, MiB, GiB) from {} to {}, a multiple of {}",
                bytes(*min),
                bytes(*max),
                bytes(*step)
            ),
            Self::Delays(_) => {
                format!(
                    "1 to {} durations of at most {DELAY_DAYS_MAX} days like 500ms, 1s, 2m, 3h or 1d, separated by spaces",
                    crate::limits::DELAY_LEVELS_MAX
                )
            }
            Self::Watermark(_) => {
                "a fraction of the memory from 0 to 1, or a number of bytes (or KiB, MiB, GiB)".to_owned()
            }
            Self::Word { words, .. } => match words {
                [all @ .., last] => format!("{} or {last}", all.join(", ")),
                [] => String::new(),
            },
        }
    }
}

/// Highest number of a node: a name for people, not an index.
const NODE_MAX: u64 = 1_000;

fn peers(text: &str) -> Option<Vec<(u64, Address)>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let peer = |text: &str| {
        let (number, at) = text.trim().split_once('@')?;
        let number = number.parse().ok().filter(|number| (1..=NODE_MAX).contains(number))?;
        Some((number, address(at).filter(|address| address.port != 0)?))
    };
    let mut peers: Vec<_> = text.split(',').map(peer).collect::<Option<_>>()?;
    peers.sort_by_key(|(number, _)| *number);
    peers.windows(2).all(|pair| pair[0].0 != pair[1].0).then_some(peers)
}

/// Longest delay of a level. Days.
const DELAY_DAYS_MAX: u64 = 365;

fn delays(text: &str) -> Option<Vec<u64>> {
    let delays: Option<Vec<u64>> = text.split_ascii_whitespace().map(delay).collect();
    delays.filter(|delays| (1..=crate::limits::DELAY_LEVELS_MAX).contains(&delays.len()))
}

/// ms.
fn delay(text: &str) -> Option<u64> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let (number, unit) = units.iter().find_map(|(name, unit)| {
        let number = text.strip_suffix(name)?;
        number.bytes().all(|b| b.is_ascii_digit()).then_some((number, unit))
    })?;
    number.parse::<u64>().ok()?.checked_mul(*unit).filter(|ms| *ms <= DELAY_DAYS_MAX * 86_400_000)
}

fn bytes(count: u64) -> String {
    match [("GiB", GIB), ("MiB", MIB), ("KiB", KIB)]
        .iter()
        .find(|(_, unit)| count >= *unit && count.is_multiple_of(*unit))
    {
        Some((name, unit)) => format!("{} {name}", count / unit),
        None => count.to_string(),
    }
}

/// `None`: not a listener. Empty: no listener wanted.
fn listen(text: &str) -> Option<Vec<Address>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|one| address(one.trim())).collect()
}

fn address(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|h| h.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => Some(host).filter(|h| is_host(h) && !h.contains(':'))?,
    };
    Some(Address { host: host.to_owned(), port })
}

fn is_host(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.parse::<std::net::Ipv6Addr>().is_ok()
        || (!text.is_empty() && text.len() <= 253 && text.chars().all(is_part))
}

fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !text.is_empty() && text.len() <= NAME_MAX && text.chars().all(is_part)
}

/// The known key that differs least from `name`.
#[must_use]
pub fn nearest(name: &str) -> &'static str {
    // A key written without its section, or a section without its key, counts as near as its own part is.
    let distance = |key: &Key| {
        let (section, last) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        let whole = edits(name, key.name) * 2;
        whole.min(edits(name, last) * 2 + 1).min(edits(name, section) * 2 + 1)
    };
    KEYS.iter().min_by_key(|key| distance(key)).map_or("", |key| key.name)
}

/// Levenshtein distance: insertions, deletions and changes of one character.
fn edits(a: &str, b: &str) -> usize {
    // A key can not be longer than this by a slip of the finger; keeps the cost of absurd input small.
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(80).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The table as Markdown: what `dassie --list-keys` prints and `src/docs/configuration.md` holds.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
        Printed by `dassie --list-keys` from the table in `src/config/keys.rs`; a test keeps this page equal to it.\n\n\
        Defaults first, then the file of `--config`, then environment variables, then `--data-dir` and\n\
        `--set section.key=value` in the order given. The variable of a key is its name in capitals with `_` for dots and\n\
        `DASSIE_` before: `amqp.listen` is `DASSIE_AMQP_LISTEN`.\n\
        In the file a dot is a TOML table: `amqp.listen` is `listen` in `[amqp]`. Sizes are whole numbers of bytes, or\n\
        text such as `\"64MiB\"`. As the host of a listener `localhost` stands for 127.0.0.1, and ::1 where the machine has it. A key, value, file, variable or argument that is wrong ends the start with one line that names it\n\
        and exit code 2. Users, the files of `tls.*`, `disk_free_limit` and `memory_high_watermark` are read again on SIGHUP, all\n\
        else at the next start.\n\n\
        | key | default | value | meaning |\n|---|---|---|---|\n",
    );
    for key in KEYS {
        let row =
            format!("| `{}` | `{}` | {} | {} |\n", key.name, key.default, key.kind.expected(), key.meaning);
        text.push_str(&row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_valid_value_of_its_key() {
        let mut draft = Draft::default();
        for key in KEYS {
            assert_eq!(key.set(&mut draft, &Given::Text(key.default.to_owned())), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn keys_are_unique_and_every_section_stands_together() {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        let mut sections: Vec<_> = names.iter().map(|n| n.rsplit_once('.').map_or("", |(s, _)| s)).collect();
        sections.dedup();
        let mut unique = sections.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(sections.len(), unique.len());
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len());
    }

    #[test]
    fn the_documentation_is_the_table() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/configuration.md");
        let written = std::fs::read_to_string(page).unwrap_or_default();
        assert!(
            written == reference(),
            "write it again: cargo run -- --list-keys > src/docs/configuration.md"
        );
    }

    #[test]
    fn addresses_take_names_and_both_families() {
        for good in ["localhost:1", "127.0.0.1:65535", "[::1]:5672", "mq-1.example:0"] {
            assert_eq!(address(good).map(|a| a.to_string()).as_deref(), Some(good));
        }
        for bad in [
            "5672",
            ":5672",
            "host",
            "host:",
            "host:65536",
            "::1:5672",
            "[::1]",
            "a b:1",
            "[host]:1",
            "host:+1x",
        ] {
            assert_eq!(listen(bad), None, "{bad}");
        }
        assert_eq!(listen(""), Some(Vec::new()));
    }

    #[test]
    fn peers_are_numbered_once_each_and_come_sorted() {
        let read = peers("2@b:2,1@a:1 , 3@[::1]:3").expect("peers");
        assert_eq!(
            read.iter().map(|(n, a)| format!("{n}@{a}")).collect::<Vec<_>>(),
            ["1@a:1", "2@b:2", "3@[::1]:3"]
        );
        assert_eq!(peers(""), Some(Vec::new()));
        for bad in ["a:1", "0@a:1", "1@a:1,1@b:1", "1@a", "1@a:0", "1001@a:1", "x@a:1", ","] {
            assert_eq!(peers(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_watermark_is_a_fraction_or_a_size() {
        let key = KEYS.iter().find(|key| key.name == "memory_high_watermark").expect("a key");
        let set = |given: Given| {
            let mut draft = Draft::default();
            key.set(&mut draft, &given).map(|()| draft.config.memory_high_watermark)
        };
        let text = |text: &str| set(Given::Text(text.to_owned()));
        assert_eq!(text("0.4"), Ok(Watermark::PerMille(400)));
        assert_eq!(text("0"), Ok(Watermark::PerMille(0)));
        assert_eq!(set(Given::Fraction("0.25".into())), Ok(Watermark::PerMille(250)));
        assert_eq!(set(Given::Number(1)), Ok(Watermark::PerMille(1000)));
        assert_eq!(text("2GiB"), Ok(Watermark::Bytes(2 * GIB)));
        for bad in ["-0.1", "1.5", "NaN", "much"] {
            assert!(text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_take_units_and_never_overflow() {
        let size = |text: &str| Given::Text(text.to_owned()).size();
        assert_eq!(size("64MiB"), Some(64 * MIB));
        assert_eq!(size("4 KiB"), Some(4096));
        assert_eq!(size("17"), Some(17));
        assert_eq!(size("99999999999GiB"), None);
        assert_eq!(size("64MB"), None);
        assert_eq!(Given::Number(-1).size(), None);
    }
}
