//! Configuration: defaults, then the file, then the environment, then the command line.
//!
//! Owns: the shape of [`Config`], reading the TOML file, the environment and the arguments, and the words of every complaint about them.
//! Promises: a wrong key, value, file or argument is one line that names it and where it came from; nothing is ignored.
//! Does not know: what a setting does. The keys themselves, with default, unit and bound, are the table in [`keys`].

pub mod keys;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use keys::KEYS;

/// Everything that can be set. Built by [`load`]; field by field it is documented in [`keys::KEYS`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `data_dir`: relative to the working directory.
    pub data_dir: String,
    /// `disk_free_limit`: bytes.
    pub disk_free_limit: u64,
    /// `memory_high_watermark`
    pub memory_high_watermark: Watermark,
    /// `amqp.*`
    pub amqp: Amqp,
    /// `rocketmq.*`
    pub rocketmq: Rocketmq,
    /// `tls.*`
    pub tls: Tls,
    /// `cluster.*`
    pub cluster: Cluster,
    /// `http.listen`: health and management. Of every listener: empty for none.
    pub http_listen: Vec<Address>,
    /// `metrics.listen`
    pub metrics_listen: Vec<Address>,
    /// `log.level`
    pub log_level: LogLevel,
    /// `log.format`
    pub log_format: LogFormat,
    /// `storage.*`
    pub storage: Storage,
    /// `definitions.file`; "": none.
    pub definitions_file: String,
    /// `loopback_users`
    pub loopback_users: Vec<String>,
    /// The `[[users]]` tables of the file, as they stand there: who reads them knows what belongs into one.
    pub users: Vec<toml::Value>,
}

/// `memory_high_watermark`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watermark {
    /// Of all memory, in thousandths.
    PerMille(u32),
    /// As such.
    Bytes(u64),
}

impl Default for Watermark {
    fn default() -> Self {
        Self::PerMille(0)
    }
}

impl Watermark {
    /// In bytes, on a machine with `total` bytes of memory. Unknown: no limit.
    #[must_use]
    pub fn bytes(self, total: Option<u64>) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::PerMille(0) => 0,
            Self::PerMille(parts) => total.map_or(u64::MAX, |total| total / 1000 * u64::from(parts)),
        }
    }
}

/// `amqp.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Amqp {
    /// `amqp.listen`
    pub listen: Vec<Address>,
    /// `amqp.product`
    pub product: String,
    /// `amqp.version`; `auto`: the program's own.
    pub version: String,
    /// `amqp.heartbeat`: seconds, 0 = none.
    pub heartbeat: u64,
    /// `amqp.frame_max`: bytes.
    pub frame_max: u64,
    /// `amqp.channel_max`: channels of one connection.
    pub channel_max: u64,
}

/// `rocketmq.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rocketmq {
    /// `rocketmq.listen`
    pub listen: Vec<Address>,
    /// `rocketmq.vip_listen`, with `auto` resolved.
    pub vip_listen: Vec<Address>,
    /// `rocketmq.advertised_host`, with `auto` resolved: what routes tell clients to connect to; `None`: the address that the
    /// asking client came to.
    pub advertised_host: Option<String>,
    /// `rocketmq.name_server_listen`
    pub name_server_listen: Vec<Address>,
    /// `rocketmq.broker_name`
    pub broker_name: String,
    /// `rocketmq.cluster_name`
    pub cluster_name: String,
    /// `rocketmq.auto_create_topics`
    pub auto_create_topics: bool,
    /// `rocketmq.default_topic_queues`
    pub default_topic_queues: u64,
    /// `rocketmq.delay_levels`: ms of each, level 1 first.
    pub delay_levels: Vec<u64>,
    /// `rocketmq.transaction_timeout`: seconds.
    pub transaction_timeout: u64,
    /// `rocketmq.transaction_check_interval`: seconds.
    pub transaction_check_interval: u64,
    /// `rocketmq.transaction_check_max`
    pub transaction_check_max: u64,
    /// `rocketmq.retention_hours`: 0 for ever.
    pub retention_hours: u64,
    /// `rocketmq.retention_bytes`: 0 for no bound.
    pub retention_bytes: u64,
    /// `rocketmq.tls`
    pub tls: RocketmqTls,
    /// `rocketmq.anonymous_user`
    pub anonymous_user: String,
}

/// `tls.*`. Paths are relative to the working directory; "" stands for none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// `tls.listen`, with `auto` resolved.
    pub listen: Vec<Address>,
    /// `tls.certificate`
    pub certificate: String,
    /// `tls.key`
    pub key: String,
    /// `tls.client_ca`
    pub client_ca: String,
    /// `tls.client_auth`
    pub client_auth: ClientAuth,
    /// `tls.min_version`
    pub min_version: MinTls,
    /// `tls.external_user_from`
    pub external_user_from: UserFrom,
}

/// `cluster.*`. Paths are relative to the working directory; "" stands for none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// `cluster.name`
    pub name: String,
    /// `cluster.node`
    pub node: u64,
    /// `cluster.listen`; empty: it stands alone.
    pub listen: Vec<Address>,
    /// `cluster.peers`, ascending.
    pub peers: Vec<(u64, Address)>,
    /// `cluster.insecure`
    pub insecure: bool,
    /// `cluster.tls.certificate`
    pub certificate: String,
    /// `cluster.tls.key`
    pub key: String,
    /// `cluster.tls.ca`
    pub ca: String,
    /// `cluster.copy_rate`, bytes a second.
    pub copy_rate: u64,
    /// `cluster.keep_log`, bytes.
    pub keep_log: u64,
}

impl Cluster {
    /// Where the others reach this node: its own entry among the peers, or where it listens.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        let listed = self.peers.iter().find(|(node, _)| *node == self.node).map(|(_, address)| address);
        listed.or(self.listen.first())
    }

    fn contradiction(&self) -> Option<&'static str> {
        let files = [&self.certificate, &self.key, &self.ca].map(|file| file.is_empty());
        let plain = files[0];
        let local = |address: &Address| {
            address.host == LOOPBACK
                || address.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        };
        let near = self.listen.iter().chain(self.peers.iter().map(|(_, address)| address)).all(local);
        if files.iter().any(|none| *none != plain) {
            Some(
                "configuration keys 'cluster.tls.certificate', 'cluster.tls.key' and 'cluster.tls.ca' go together: one of them is missing",
            )
        } else if self.listen.is_empty() && !self.peers.is_empty() {
            Some(
                "configuration key 'cluster.peers' needs 'cluster.listen': where the other nodes reach this one",
            )
        } else if !self.peers.is_empty() && self.peers.iter().all(|(node, _)| *node != self.node) {
            Some(
                "configuration key 'cluster.peers' lists all nodes of the cluster, and the one of 'cluster.node' is missing",
            )
        } else if !self.listen.is_empty() && plain && !near && !self.insecure {
            Some(
                "nodes speak plaintext over loopback only: set 'cluster.tls.certificate', 'cluster.tls.key' and 'cluster.tls.ca' (or 'cluster.insecure' = true where whoever reaches 'cluster.listen' may read and change everything)",
            )
        } else {
            None
        }
    }
}

/// `tls.client_auth`: must clients show a certificate?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They may; a wrong one is refused.
    Optional,
    /// They must.
    Required,
}

/// `tls.min_version`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MinTls {
    /// TLS 1.2
    #[default]
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// `tls.external_user_from`: where in a client's certificate its login stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserFrom {
    /// The common name of the subject.
    #[default]
    CommonName,
    /// The whole subject.
    DistinguishedName,
    /// The first DNS name.
    SubjectAlternativeName,
}

/// `rocketmq.tls`, in the words of Apache's `tls.server.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RocketmqTls {
    /// Plaintext only.
    Disabled,
    /// Both on one port; plaintext only while there is no certificate.
    #[default]
    Permissive,
    /// TLS only.
    Enforcing,
}

/// `storage.*`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Storage {
    /// `storage.segment_size`: bytes; counts only when the store is created.
    pub segment_size: u64,
    /// `storage.tail_memory`: bytes.
    pub tail_memory: u64,
    /// `storage.max_bytes`: 0 for none.
    pub max_bytes: u64,
    /// `storage.flush` is `ASYNC_FLUSH`.
    pub flush_async: bool,
    /// `storage.flush_interval_ms`
    pub flush_interval_ms: u64,
}

/// The host that stands for both loopback addresses: 127.0.0.1, and ::1 where the machine has it.
pub const LOOPBACK: &str = "localhost";

/// host:port of a listener. The host is a name or an address (IPv6 in brackets); it is looked up when it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Without brackets.
    pub host: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// And what may soon.
    Warn,
    /// And what the broker does as a whole: the default.
    #[default]
    Info,
    /// And each connection.
    Debug,
    /// And everything.
    Trace,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: the default.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What the arguments ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum Invocation {
    /// Run the broker.
    Run(Box<Config>),
    /// Print this (help, version, the list of keys) and end well.
    Print(String),
}

/// Why there is no configuration: one line each, naming the key, value, file or argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No such key.
    #[error("unknown configuration key '{key}' in {source_name}; nearest known key: '{nearest}'")]
    UnknownKey {
        /// As written, dotted.
        key: String,
        /// The known key with the fewest differences.
        nearest: &'static str,
        /// File, variable or argument.
        source_name: String,
    },
    /// A known key with a value it can not have.
    #[error("bad value {value} for configuration key '{key}' in {source_name}: expected {expected}")]
    BadValue {
        /// Dotted.
        key: &'static str,
        /// As written, quoted.
        value: String,
        /// Form and bounds.
        expected: String,
        /// File, variable or argument.
        source_name: String,
    },
    /// A variable of a section that has no such key.
    #[error("unknown environment variable '{name}'; nearest known one: '{nearest}'")]
    UnknownVariable {
        /// As it is set.
        name: String,
        /// The variable of the nearest key.
        nearest: String,
    },
    /// The file can not be read.
    #[error("can not read configuration file '{path}': {cause}")]
    File {
        /// As given.
        path: String,
        /// The system's words.
        cause: String,
    },
    /// The file is not TOML.
    #[error("configuration file '{path}', line {line}, column {column}: {cause}")]
    Syntax {
        /// As given.
        path: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The parser's words.
        cause: String,
    },
    /// Values that are right one by one and do not go together.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The command line itself.
    #[error("{0} (dassie --help lists the arguments)")]
    Argument(String),
}

/// Reads arguments (the program's name first), the file they name, and the environment's variables.
///
/// # Errors
/// [`ConfigError`], the first thing that is wrong: arguments, then the file, then variables, then `--set` and `--data-dir` in the
/// order given.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return help_or_complaint(&error),
    };
    if matches.get_flag("list-keys") {
        return Ok(Invocation::Print(keys::reference()));
    }
    let mut config = defaults();
    if let Some(path) = matches.get_one::<PathBuf>("config") {
        read_file(&mut config, path)?;
    }
    for (name, value) in environment {
        read_variable(&mut config, &name, &value)?;
    }
    for setting in settings_in_order(&matches) {
        read_setting(&mut config, &setting)?;
    }
    Ok(Invocation::Run(Box::new(resolve(config)?)))
}

/// The configuration of a start without file or arguments, `auto` not yet resolved.
fn defaults() -> Draft {
    let mut draft = Draft::default();
    for key in KEYS {
        // A default that its own bounds refuse is our mistake; a unit test sets each of them.
        key.set(&mut draft, &keys::Given::Text(key.default.to_owned()))
            .expect("a key's default is a valid value");
    }
    draft
}

/// A configuration whose `auto` values still wait for the values they derive from.
#[derive(Debug, Default)]
pub struct Draft {
    config: Config,
    vip_listen: Derived<Vec<Address>>,
    advertised_host: Derived<String>,
    tls_listen: Derived<Vec<Address>>,
}

/// A value that is given, or follows from others.
#[derive(Debug, Default)]
pub enum Derived<T> {
    /// `auto`
    #[default]
    Auto,
    /// As given.
    Given(T),
}

fn resolve(draft: Draft) -> Result<Config, ConfigError> {
    let Draft { mut config, vip_listen, advertised_host, tls_listen } = draft;
    let listen = config.rocketmq.listen.clone();
    config.rocketmq.vip_listen = match vip_listen {
        Derived::Given(address) => address,
        // Clients compute the VIP port themselves: always the broker's port minus two. There is none below port 3.
        Derived::Auto => listen
            .iter()
            .filter(|address| address.port > 2)
            .map(|address| Address { host: address.host.clone(), port: address.port - 2 })
            .collect(),
    };
    config.rocketmq.advertised_host = match advertised_host {
        Derived::Given(host) => Some(host),
        // Of several hosts, and of "everywhere", a client knows best which one it can reach: the one that it came to.
        Derived::Auto => match &listen[..] {
            [only] => match &*only.host {
                "0.0.0.0" | "::" => None,
                LOOPBACK => Some("127.0.0.1".to_owned()),
                host => Some(host.to_owned()),
            },
            _ => None,
        },
    };
    config.tls.listen = match tls_listen {
        Derived::Given(address) => address,
        Derived::Auto => {
            let wanted = !config.tls.certificate.is_empty();
            wanted.then(|| Address { host: LOOPBACK.to_owned(), port: 5671 }).into_iter().collect()
        }
    };
    match contradiction(&config) {
        Some(text) => Err(ConfigError::Contradiction(text)),
        None => Ok(config),
    }
}

fn contradiction(config: &Config) -> Option<&'static str> {
    let Tls { listen, certificate, key, client_ca, client_auth, .. } = &config.tls;
    if certificate.is_empty() != key.is_empty() {
        Some("configuration keys 'tls.certificate' and 'tls.key' go together: one of them is missing")
    } else if certificate.is_empty() && !listen.is_empty() {
        Some("configuration key 'tls.listen' needs 'tls.certificate' and 'tls.key'")
    } else if certificate.is_empty() && config.rocketmq.tls == RocketmqTls::Enforcing {
        Some("configuration key 'rocketmq.tls' = enforcing needs 'tls.certificate' and 'tls.key'")
    } else if client_ca.is_empty() && *client_auth != ClientAuth::None {
        Some("configuration key 'tls.client_auth' needs 'tls.client_ca': who may sign clients' certificates")
    } else {
        config.cluster.contradiction()
    }
}

fn read_file(draft: &mut Draft, path: &Path) -> Result<(), ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::File { path: shown.clone(), cause: error.to_string() })?;
    let table: toml::Table = text.parse().map_err(|error| syntax(&shown, &text, &error))?;
    read_table(draft, "", &table, &format!("file '{shown}'"))
}

fn syntax(path: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
    let cause = error.message().lines().next().unwrap_or("not TOML").to_owned();
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    ConfigError::Syntax { path: path.to_owned(), line: before.matches('\n').count() + 1, column, cause }
}

fn read_table(
    draft: &mut Draft,
    prefix: &str,
    table: &toml::Table,
    source_name: &str,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Array(tables) if key == "users" => draft.config.users.clone_from(tables),
            toml::Value::Table(inner) if is_section(&key) => read_table(draft, &key, inner, source_name)?,
            _ => set(draft, &key, &keys::Given::from_toml(value), source_name)?,
        }
    }
    Ok(())
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn read_variable(draft: &mut Draft, name: &OsStr, value: &OsStr) -> Result<(), ConfigError> {
    let Some(name) = name.to_str().filter(|name| name.starts_with(keys::VARIABLE_PREFIX)) else {
        return Ok(());
    };
    let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
        return if is_meant_for_us(name) {
            let dotted = name[keys::VARIABLE_PREFIX.len()..].to_ascii_lowercase().replacen('_', ".", 1);
            let near = KEYS.iter().find(|key| key.name == keys::nearest(&dotted));
            let nearest = near.map(keys::Key::variable).unwrap_or_default();
            Err(ConfigError::UnknownVariable { name: printable(name), nearest })
        } else {
            Ok(())
        };
    };
    // Text that is not UTF-8 is no value of any key; its printable form says so in the complaint.
    let value = value.to_str().map_or_else(
        || keys::Given::Other(format!("'{}' (not UTF-8)", value.to_string_lossy())),
        keys::Given::from_argument,
    );
    set(draft, key.name, &value, &format!("environment variable {name}"))
}

/// Is a variable that is no key a slip of the pen? Only in our sections: `DASSIE_BIN` and the like belong to others, and so do
/// the variables that Kubernetes sets in every container beside a service called `dassie-amqp`.
fn is_meant_for_us(name: &str) -> bool {
    let own = KEYS.iter().any(|key| {
        key.name.split_once('.').is_some_and(|(section, _)| {
            let section = keys::variable(section);
            name.strip_prefix(&section).is_some_and(|rest| rest.starts_with('_'))
        })
    });
    own && !name.contains("_SERVICE_") && !name.ends_with("_PORT") && !name.contains("_PORT_")
}

fn read_setting(draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
    let (key, value) = match setting {
        Setting::DataDir(path) => ("data_dir", path.as_str()),
        Setting::Set(text) => text.split_once('=').ok_or_else(|| {
            ConfigError::Argument(format!("--set '{text}' has no '=': write --set section.key=value"))
        })?,
    };
    let source_name = match setting {
        Setting::DataDir(_) => "argument --data-dir",
        Setting::Set(_) => "argument --set",
    };
    set(draft, key.trim(), &keys::Given::from_argument(value), source_name)
}

fn set(draft: &mut Draft, name: &str, value: &keys::Given, source_name: &str) -> Result<(), ConfigError> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        return Err(ConfigError::UnknownKey {
            key: printable(name),
            nearest: keys::nearest(name),
            source_name: source_name.to_owned(),
        });
    };
    key.set(draft, value).map_err(|expected| ConfigError::BadValue {
        key: key.name,
        value: printable(&value.to_string()),
        expected,
        source_name: source_name.to_owned(),
    })
}

/// A complaint stays on one line, whatever the input held.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// One override, in the order of the command line.
enum Setting {
    DataDir(String),
    Set(String),
}

fn settings_in_order(matches: &ArgMatches) -> Vec<Setting> {
    let mut found: Vec<(usize, Setting)> = Vec::new();
    let mut collect = |id: &str, make: fn(String) -> Setting| {
        let indices = matches.indices_of(id).into_iter().flatten();
        let values = matches.get_many::<String>(id).into_iter().flatten();
        found.extend(indices.zip(values).map(|(index, value)| (index, make(value.clone()))));
    };
    collect("data-dir", Setting::DataDir);
    collect("set", Setting::Set);
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, setting)| setting).collect()
}

fn help_or_complaint(error: &clap::Error) -> Result<Invocation, ConfigError> {
    use clap::error::ErrorKind;
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Ok(Invocation::Print(text));
    }
    let first = text.lines().next().unwrap_or("bad arguments");
    Err(ConfigError::Argument(first.strip_prefix("error: ").unwrap_or(first).to_owned()))
}

fn command() -> Command {
    Command::new("dassie")
        .version(env!("CARGO_PKG_VERSION"))
        .about("One message broker for unchanged RabbitMQ and RocketMQ clients, over one durable log.")
        .override_usage("dassie [--config FILE] [--data-dir DIR] [--set section.key=value]...")
        .after_help(HELP)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(ValueParser::path_buf())
                .help("Read settings from this TOML file; without it only defaults and --set count"),
        )
        .arg(Arg::new("data-dir").long("data-dir").value_name("DIR").action(ArgAction::Append).help(
            "Where the log lives (default ./dassie-data, made when missing); short for --set data_dir=DIR",
        ))
        .arg(
            Arg::new("set").long("set").value_name("section.key=value").action(ArgAction::Append).help(
                "Change one setting; may be repeated, the last one wins; wins over environment and file",
            ),
        )
        .arg(
            Arg::new("list-keys")
                .long("list-keys")
                .action(ArgAction::SetTrue)
                .help("Print every setting with its default, unit and bounds, and end"),
        )
}

const HELP: &str = "\
Without arguments it listens on loopback and keeps its data in ./dassie-data:
  AMQP 0-9-1             127.0.0.1:5672    amqp://guest:guest@127.0.0.1:5672
  RocketMQ name server   127.0.0.1:9876    give this address to RocketMQ clients
  RocketMQ broker        127.0.0.1:10911   and 10909, the VIP port
  management API         http://127.0.0.1:15672/api/overview
  health                 http://127.0.0.1:15672/health/ready
  metrics                http://127.0.0.1:15692/metrics

Looking at a running broker (dassie status --help, dassie list --help):
  dassie status
  dassie list queues
  dassie cluster status

Examples:
  dassie --data-dir /var/lib/dassie
  dassie --set amqp.listen=127.0.0.1:5673 --set http.listen=
  dassie --config /etc/dassie.toml

A config file has the same keys:
  data_dir = \"/var/lib/dassie\"
  [rocketmq]
  listen = \"10.0.0.5:10911\"

Every key is an environment variable too: rocketmq.listen is DASSIE_ROCKETMQ_LISTEN. It wins over the file,
and --set wins over it.

Ctrl-C or SIGTERM ends it gracefully. Exit codes: 0 ended as asked, 1 could not start or go on,
2 wrong arguments or configuration, 3 the log could not be written.\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Config, ConfigError> {
        run_with(&[], arguments)
    }

    fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> Result<Config, ConfigError> {
        let all = std::iter::once("dassie").chain(arguments.iter().copied()).map(OsString::from);
        match load(all, variables.iter().map(|(name, value)| (name.into(), value.into())))? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => panic!("expected a configuration, got {text}"),
        }
    }

    fn complaint(arguments: &[&str]) -> String {
        run(arguments).expect_err("arguments should be refused").to_string()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn without_arguments_everything_is_on_loopback_with_the_contracts_ports() {
        let config = run(&[]).unwrap();
        let shown = |all: &[Address]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(config.data_dir, "./dassie-data");
        assert_eq!(shown(&config.amqp.listen), "localhost:5672");
        assert_eq!(shown(&config.rocketmq.listen), "localhost:10911");
        assert_eq!(shown(&config.rocketmq.vip_listen), "localhost:10909");
        assert_eq!(shown(&config.rocketmq.name_server_listen), "localhost:9876");
        assert_eq!(shown(&config.http_listen), "localhost:15672");
        assert_eq!(shown(&config.metrics_listen), "localhost:15692");
        assert_eq!(config.rocketmq.advertised_host.as_deref(), Some("127.0.0.1"));
        assert_eq!(config.storage.segment_size, 64 * 1024 * 1024);
    }

    #[test]
    fn the_file_wins_over_defaults_and_arguments_win_over_the_file_in_their_order() {
        let file = file(
            "data_dir = 'from-file'\n[amqp]\nheartbeat = 10\nframe_max = '64KiB'\n[rocketmq]\nauto_create_topics = false\n",
        );
        let path = file.path().to_str().unwrap();
        let config = run(&["--set", "data_dir=first", "--config", path, "--data-dir", "last"]).unwrap();
        assert_eq!(config.data_dir, "last");
        assert_eq!(config.amqp.heartbeat, 10);
        assert_eq!(config.amqp.frame_max, 65536);
        assert!(!config.rocketmq.auto_create_topics);
        assert_eq!(run(&["--config", path]).unwrap().data_dir, "from-file");
        assert_eq!(run(&["--data-dir", "first", "--set", "data_dir=last"]).unwrap().data_dir, "last");
    }

    #[test]
    fn variables_win_over_the_file_and_arguments_over_them() {
        let file = file("[amqp]\nheartbeat = 10\nchannel_max = 10\n[log]\nformat = 'text'\n");
        let path = file.path().to_str().unwrap();
        let variables = [
            ("DASSIE_AMQP_HEARTBEAT", "20"),
            ("DASSIE_AMQP_CHANNEL_MAX", "20"),
            ("DASSIE_LOG_FORMAT", "json"),
        ];
        let config = run_with(&variables, &["--set", "amqp.heartbeat=30", "--config", path]).unwrap();
        assert_eq!((config.amqp.heartbeat, config.amqp.channel_max), (30, 20));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(run_with(&[("DASSIE_DATA_DIR", "d")], &[]).unwrap().data_dir, "d");
    }

    #[test]
    fn every_key_has_a_variable_of_its_own() {
        let mut names: Vec<_> = KEYS.iter().map(keys::Key::variable).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
        assert!(names.contains(&"DASSIE_ROCKETMQ_NAME_SERVER_LISTEN".to_owned()));
    }

    #[test]
    fn a_wrong_variable_is_named_and_others_variables_are_left_alone() {
        let text = run_with(&[("DASSIE_AMQP_HEARTBEAT", "no")], &[]).unwrap_err().to_string();
        assert_eq!(
            text,
            "bad value 'no' for configuration key 'amqp.heartbeat' in environment variable DASSIE_AMQP_HEARTBEAT: expected a number of seconds from 0 to 65535"
        );
        let text = run_with(&[("DASSIE_AMQP_HEARTBEATS", "1")], &[]).unwrap_err().to_string();
        assert_eq!(
            text,
            "unknown environment variable 'DASSIE_AMQP_HEARTBEATS'; nearest known one: 'DASSIE_AMQP_HEARTBEAT'"
        );
        for others in ["DASSIE_BIN", "PATH", "DASSIE_AMQP_SERVICE_HOST", "DASSIE_AMQP_PORT_5672_TCP_ADDR"] {
            assert!(run_with(&[(others, "tcp://10.0.0.1:5672")], &[]).is_ok(), "{others}");
        }
    }

    #[test]
    fn tls_listens_once_there_is_a_certificate_and_halves_of_it_are_refused() {
        let certificate = ["--set", "tls.certificate=c.pem"];
        let both = [&certificate[..], &["--set", "tls.key=k.pem"]].concat();
        assert_eq!(run(&[]).unwrap().tls.listen, []);
        assert_eq!(run(&both).unwrap().tls.listen[0].to_string(), "localhost:5671");
        assert_eq!(run(&[&both[..], &["--set", "tls.listen="]].concat()).unwrap().tls.listen, []);
        for (arguments, named) in [
            (&certificate[..], "'tls.key'"),
            (&["--set", "tls.listen=127.0.0.1:1"], "'tls.listen'"),
            (&["--set", "rocketmq.tls=enforcing"], "'rocketmq.tls'"),
            (&[&both[..], &["--set", "tls.client_auth=required"]].concat(), "'tls.client_ca'"),
        ] {
            let text = complaint(arguments);
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn nodes_speak_plaintext_over_loopback_only_unless_somebody_insists() {
        let set = |all: &[&'static str]| all.iter().flat_map(|one| ["--set", one]).collect::<Vec<_>>();
        let near = set(&["cluster.listen=127.0.0.1:1", "cluster.peers=2@localhost:2,1@127.0.0.1:1"]);
        let config = run(&near).unwrap();
        assert_eq!(config.cluster.address().map(ToString::to_string).as_deref(), Some("127.0.0.1:1"));
        let far = set(&["cluster.listen=0.0.0.0:1", "cluster.peers=1@a:1,2@b:2"]);
        assert!(complaint(&far).contains("plaintext"), "{}", complaint(&far));
        assert!(run(&[&far[..], &set(&["cluster.insecure=true"])].concat()).is_ok());
        let tls = set(&["cluster.tls.certificate=c", "cluster.tls.key=k", "cluster.tls.ca=a"]);
        assert!(run(&[&far[..], &tls].concat()).is_ok());
        for (arguments, named) in [
            (set(&["cluster.tls.key=k"]), "'cluster.tls.ca'"),
            (set(&["cluster.peers=1@localhost:1"]), "'cluster.listen'"),
            ([&near[..], &set(&["cluster.node=3"])].concat(), "'cluster.node'"),
        ] {
            let text = complaint(&arguments);
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn a_listener_may_have_several_addresses() {
        let config = run(&["--set", "amqp.listen=127.0.0.1:1, [::1]:2"]).unwrap();
        let shown: Vec<String> = config.amqp.listen.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:1", "[::1]:2"]);
        let file = file("[amqp]\nlisten = [\"127.0.0.1:1\", \"[::1]:2\"]\n");
        assert_eq!(
            run(&["--config", file.path().to_str().unwrap()]).unwrap().amqp.listen,
            config.amqp.listen
        );
        let config = run(&["--set", "rocketmq.listen=127.0.0.1:11,10.0.0.1:12"]).unwrap();
        let shown: Vec<String> = config.rocketmq.vip_listen.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:9", "10.0.0.1:10"]);
        assert_eq!(config.rocketmq.advertised_host, None);
        assert!(complaint(&["--set", "amqp.listen=127.0.0.1:1,,"]).starts_with("bad value"));
    }

    #[test]
    fn the_vip_port_and_the_advertised_host_follow_the_broker_listener() {
        let config = run(&["--set", "rocketmq.listen=0.0.0.0:20911"]).unwrap();
        assert_eq!(config.rocketmq.vip_listen[0].to_string(), "0.0.0.0:20909");
        assert_eq!(config.rocketmq.advertised_host, None);
        let config =
            run(&["--set", "rocketmq.listen=[::1]:0", "--set", "rocketmq.advertised_host=mq.example"])
                .unwrap();
        assert_eq!(config.rocketmq.vip_listen, []);
        assert_eq!(config.rocketmq.advertised_host.as_deref(), Some("mq.example"));
        assert_eq!(run(&["--set", "rocketmq.vip_listen="]).unwrap().rocketmq.vip_listen, []);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_nearest_neighbour() {
        assert_eq!(
            complaint(&["--set", "amqp.lisen=1"]),
            "unknown configuration key 'amqp.lisen' in argument --set; nearest known key: 'amqp.listen'"
        );
        let file = file("[storag]\nsegment_size = 1\n");
        let path = file.path().to_str().unwrap();
        assert_eq!(
            complaint(&["--config", path]),
            format!(
                "unknown configuration key 'storag' in file '{path}'; nearest known key: 'storage.segment_size'"
            )
        );
        let file = self::file("amqp = 5\n");
        assert!(
            complaint(&["--config", file.path().to_str().unwrap()])
                .contains("unknown configuration key 'amqp'")
        );
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected() {
        let text = complaint(&["--set", "amqp.heartbeat=70000"]);
        assert_eq!(
            text,
            "bad value '70000' for configuration key 'amqp.heartbeat' in argument --set: expected a number of seconds from 0 to 65535"
        );
        for wrong in [
            "amqp.listen=nowhere",
            "amqp.listen=127.0.0.1:99999",
            "log.level=loud",
            "rocketmq.auto_create_topics=yes",
            "storage.segment_size=5000001",
            "storage.segment_size=1KiB",
            "data_dir=",
            "amqp.heartbeat=-1",
        ] {
            let key = wrong.split('=').next().unwrap();
            let text = complaint(&["--set", wrong]);
            assert!(text.starts_with("bad value") && text.contains(key) && !text.contains('\n'), "{text}");
        }
        let file = file("[amqp]\nlisten = 5672\n");
        let text = complaint(&["--config", file.path().to_str().unwrap()]);
        assert!(text.contains("bad value 5672 for configuration key 'amqp.listen'"), "{text}");
    }

    #[test]
    fn a_missing_or_broken_file_is_named_with_its_place() {
        assert!(
            complaint(&["--config", "/no/such/file"])
                .starts_with("can not read configuration file '/no/such/file'")
        );
        let file = file("[amqp]\nlisten = = 1\n");
        let text = complaint(&["--config", file.path().to_str().unwrap()]);
        assert!(text.contains("line 2, column 10") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn a_complaint_is_one_line_even_about_a_value_with_line_breaks() {
        let text = complaint(&["--set", "log.level=a\nb"]);
        assert!(!text.contains('\n') && text.contains("a\\nb"), "{text}");
    }

    #[test]
    fn wrong_arguments_are_one_line_and_help_and_version_are_no_error() {
        assert!(complaint(&["--port", "1"]).starts_with("unexpected argument '--port'"));
        assert!(complaint(&["--set", "amqp.listen"]).contains("has no '='"));
        let print = |argument: &str| match load(["dassie".into(), argument.into()], []) {
            Ok(Invocation::Print(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(print("--help").contains("guest:guest@127.0.0.1:5672"));
        assert_eq!(print("--version"), format!("dassie {}\n", env!("CARGO_PKG_VERSION")));
        assert!(print("--list-keys").contains("| `amqp.heartbeat` |"));
    }
}
