//! The `dassie` program.
//!
//! Owns: arguments in, one line on standard error and an exit code out. Does not know: how the broker works.

use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dassie::alarms::Alarms;
use dassie::broker::later::Settings as Times;
use dassie::broker::retention;
use dassie::clock::{Clock, SystemClock};
use dassie::config::{self, Address, Config, Invocation, RocketmqTls};
use dassie::data_dir::{self, Identity};
use dassie::member::{self, Alone, Joined};
use dassie::metrics::Metrics;
use dassie::node::{Node, NodeParts};
use dassie::pressure::Pressure;
use dassie::process::{self, Failure};
use dassie::security::Realm;
use dassie::server::health::Readiness;
use dassie::server::http::management::{self, Management};
use dassie::server::registry::Registry;
use dassie::server::semantics::Layouts;
use dassie::server::tls::{Entrance, Tls};
use dassie::server::{self, Door, Stopper, amqp, http, rocketmq};
use dassie::{accounts, cli, cluster, limits, logging};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("dassie: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn start() -> Result<(), Failure> {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some((at, rest)) = cli::joins(&arguments) {
        return match config::load(rest, std::env::vars_os()).map_err(Failure::usage)? {
            Invocation::Print(text) => print(&text),
            Invocation::Run(config) => {
                logging::init(config.log_level, config.log_format);
                let runtime = connections().map_err(Failure::new)?;
                print(&runtime.block_on(enroll(&config, at))?)
            }
        };
    }
    if cli::is_meant(&arguments) {
        return print(&cli::run(&arguments)?);
    }
    let clock = SystemClock::new();
    match config::load(arguments, std::env::vars_os()).map_err(Failure::usage)? {
        Invocation::Print(text) => print(&text),
        Invocation::Run(config) => {
            logging::init(config.log_level, config.log_format);
            let runtime = connections().map_err(Failure::new)?;
            let ended = runtime.block_on(run(&config, &clock))?;
            drop(runtime);
            match ended {
                Ended::ForGood => Ok(()),
                Ended::ToStartAgain => Err(Failure::new(process::start_again())),
            }
        }
    }
}

/// The runtime of everything that has a socket: a worker per processor but one, which the shard and its log keep busy. More
/// would hand each other tasks, and sleep and wake for it, without getting more done.
fn connections() -> std::io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.saturating_sub(1).max(1))
        .enable_all()
        .build()
}

/// Text that the reader's end of a pipe does not want any more is no failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(error)),
        _ => Ok(()),
    }
}

/// `dassie cluster join`
async fn enroll(config: &Config, at: &str) -> Result<String, Failure> {
    let clock = SystemClock::new();
    let identity = identity(config, &clock);
    let opened = data_dir::look(config.data_dir.as_ref(), identity.node, identity.shard_number);
    member::enroll(config, identity, opened.map_err(Failure::new)?, at, Arc::new(clock)).await
}

fn identity(config: &Config, clock: &SystemClock) -> Identity {
    Identity {
        node: config.cluster.node,
        shard_number: 0,
        segment_size: config.storage.segment_size,
        wall_ms: clock.wall_ms(),
    }
}

/// How a run ended that did not fail.
enum Ended {
    /// Somebody asked for it.
    ForGood,
    /// The store is another one from here on.
    ToStartAgain,
}

async fn run(config: &Config, clock: &SystemClock) -> Result<Ended, Failure> {
    let mut asked = pin!(process::termination().map_err(Failure::new)?);
    let hangups = process::hangups().map_err(Failure::new)?;
    tracing::info!("dassie {} with data in {}", env!("CARGO_PKG_VERSION"), config.data_dir);
    let identity = identity(config, clock);
    let opened = data_dir::look(config.data_dir.as_ref(), identity.node, identity.shard_number);
    let opened = opened.map_err(Failure::new)?;
    let sources = accounts::sources(config).map_err(Failure::usage)?;
    let realm = Realm::new(accounts::users(&sources).map_err(Failure::usage)?);
    if config.storage.flush_async {
        let ms = config.storage.flush_interval_ms;
        tracing::warn!(
            "storage.flush = ASYNC_FLUSH: a power cut loses what was confirmed in the {ms} ms before it"
        );
    }
    let (stopper, stop) = Stopper::new();
    let metrics = Metrics::new();
    let alarms = Alarms::new();
    let ready = Readiness::new(
        [
            member::PART,
            "the log",
            "amqp.listen",
            "tls.listen",
            "rocketmq.listen",
            "rocketmq.vip_listen",
            "rocketmq.name_server_listen",
            "http.listen",
            "metrics.listen",
        ],
        Arc::clone(&alarms),
    );
    let name_server = Arc::new(OnceLock::new());
    let mut servers = tokio::task::JoinSet::new();
    let tls = match config.tls.certificate.as_str() {
        "" => None,
        _ => Some(Tls::load(config.tls.clone()).map_err(Failure::new)?),
    };
    if let Some(tls) = &tls {
        let hangups = process::hangups().map_err(Failure::new)?;
        servers.spawn(Arc::clone(tls).keep_current(hangups, stop.clone()));
    }
    let pressure = Pressure::begin(config, Arc::clone(&alarms), Arc::clone(&metrics)).await;
    servers.spawn(pressure.keep_watch(process::hangups().map_err(Failure::new)?, stop.clone()));
    metrics.watch_disk(config.data_dir.as_str().into());
    let shared: Arc<dyn Clock> = Arc::new(*clock);
    let registry = Registry::new(Arc::clone(&shared));
    let management = Arc::new(Management {
        ready: Arc::clone(&ready),
        realm: Arc::clone(&realm),
        registry: Arc::clone(&registry),
        metrics: Arc::clone(&metrics),
        clock: shared,
        node: node_name(),
        name_server: Arc::clone(&name_server),
        broker: OnceLock::new(),
        cluster: OnceLock::new(),
        backups: OnceLock::new(),
    });
    let mut ports = Vec::new();
    for listener in bind(&config.http_listen, "http.listen", &mut ports).await? {
        let (management, metrics) = (Arc::clone(&management), Arc::clone(&metrics));
        servers.spawn(http::serve_management(listener, management, metrics, stop.clone()));
    }
    ready.up("http.listen");
    for listener in bind(&config.metrics_listen, "metrics.listen", &mut ports).await? {
        servers.spawn(http::serve_metrics(listener, Arc::clone(&metrics), stop.clone()));
    }
    ready.up("metrics.listen");
    // Ports are taken before the log is opened: a busy one must not cost a recovery.
    let mut amqp_doors = Vec::new();
    let encrypted = tls.clone().map_or(Entrance::PlainOnly, Entrance::TlsOnly);
    for (key, addresses, entrance) in
        [("amqp.listen", &config.amqp.listen, Entrance::Open), ("tls.listen", &config.tls.listen, encrypted)]
    {
        for listener in bind(addresses, key, &mut ports).await? {
            amqp_doors.push(Door {
                listener,
                key,
                most: limits::CONNECTIONS_MAX,
                entrance: entrance.clone(),
            });
        }
    }
    let rocketmq = [
        ("rocketmq.listen", &config.rocketmq.listen),
        ("rocketmq.vip_listen", &config.rocketmq.vip_listen),
        ("rocketmq.name_server_listen", &config.rocketmq.name_server_listen),
    ];
    let mut rocketmq_listeners = Vec::new();
    for (key, addresses) in rocketmq {
        let bound = bind(addresses, key, &mut ports).await?;
        rocketmq_listeners.extend(bound.into_iter().map(|listener| (key, listener)));
    }
    let peers = bind(&config.cluster.listen, "cluster.listen", &mut ports).await?;
    let shared_clock: Arc<dyn Clock> = Arc::new(*clock);
    // Who waits for others can be told to end.
    let joined = tokio::select! {
        joined = member::join(config, identity, opened, peers, shared_clock, &mut servers, &stop) => joined?,
        signal = &mut asked => {
            tracing::info!("{signal}: ending, before this node has joined a cluster");
            return Ok(Ended::ForGood);
        }
    };
    let Joined { store, membership, keeper } = joined;
    let genesis = store.genesis;
    let auto_topic_queues = config
        .rocketmq
        .auto_create_topics
        .then(|| u32::try_from(config.rocketmq.default_topic_queues).unwrap_or(u32::MAX));
    if let Some(address) = name_server_address(config, &rocketmq_listeners) {
        let _ = name_server.set(address);
    }
    let mut node = Node::start(NodeParts {
        store,
        tail_memory: usize::try_from(config.storage.tail_memory).unwrap_or(usize::MAX),
        semantics: Arc::new(Layouts { auto_topic_queues, cluster: config.rocketmq.cluster_name.clone() }),
        clock: Arc::new(*clock),
        times: times(config),
        retention: retention::Settings {
            topics_ms: config.rocketmq.retention_hours * 3_600_000,
            topics_bytes: config.rocketmq.retention_bytes,
            max_bytes: config.storage.max_bytes,
        },
        flush_every: config
            .storage
            .flush_async
            .then(|| Duration::from_millis(config.storage.flush_interval_ms)),
        metrics: Arc::clone(&metrics),
        alarms: Arc::clone(&alarms),
        keeper,
        copy_rate: config.cluster.copy_rate,
        keep_log: config.cluster.keep_log,
        incarnation: random(),
    })
    .await
    .map_err(Failure::log)?;
    let desk: Arc<dyn management::ClusterDesk> = match &membership {
        Some(membership) => Arc::new(membership.clone()),
        None => Arc::new(Alone { name: config.cluster.name.clone(), genesis, leads: node.ready.clone() }),
    };
    let _ = management.cluster.set(desk);
    let _ = management.backups.set(Arc::new(node.backups.clone()));
    if let Some(membership) = &membership {
        let counted = membership.clone().count(Arc::clone(&metrics));
        let count_stop = stop.clone();
        servers.spawn(async move { cluster::transport::until(counted, count_stop.requested()).await });
        tokio::select! {
            () = membership.formed() => {}
            signal = &mut asked => {
                tracing::info!("{signal}: ending, before the cluster was formed");
                tokio::task::spawn_blocking(move || node.stop()).await.map_err(Failure::log)?;
                return Ok(Ended::ForGood);
            }
        }
        let (shard, import_stop) = (node.shard.clone(), stop.clone());
        servers.spawn(async move {
            // Done by whoever leads; here when that is this node, or through it.
            let import = async {
                if let Err(error) = amqp::import(&shard, &sources).await {
                    tracing::error!("definitions: {error}");
                }
            };
            cluster::transport::until(import, import_stop.requested()).await;
        });
        let watched = membership.clone().watch(Arc::clone(&ready), Arc::clone(&alarms), node.ready.clone());
        let stop = stop.clone();
        servers.spawn(async move { cluster::transport::until(watched, stop.requested()).await });
    } else {
        if node.ready.wait_for(|ready| *ready).await.is_err() {
            return Err(Failure::log("the shard ended while it started"));
        }
        amqp::import(&node.shard, &sources).await.map_err(Failure::new)?;
        ready.up(member::PART);
    }
    ready.up("the log");
    servers.spawn(accounts::keep_current(Arc::clone(&realm), hangups, stop.clone()));
    let limits = amqp::Limits {
        frame_max: u32::try_from(config.amqp.frame_max).unwrap_or(u32::MAX),
        channel_max: u16::try_from(config.amqp.channel_max).unwrap_or(u16::MAX),
        heartbeat: u16::try_from(config.amqp.heartbeat).unwrap_or(u16::MAX),
        ..amqp::Limits::default()
    };
    let version = Some(&*config.amqp.version).filter(|version| *version != "auto");
    let offer = Arc::new(amqp::Offer {
        limits,
        product: config.amqp.product.clone(),
        version: version.unwrap_or(env!("CARGO_PKG_VERSION")).to_owned(),
    });
    for door in amqp_doors {
        let (shard, realm, registry) = (node.shard.clone(), Arc::clone(&realm), Arc::clone(&registry));
        let (metrics, alarms) = (Arc::clone(&metrics), Arc::clone(&alarms));
        let offer = Arc::clone(&offer);
        servers.spawn(amqp::listen(door, shard, offer, realm, registry, stop.clone(), metrics, alarms));
    }
    ready.up("amqp.listen");
    ready.up("tls.listen");
    let nodes = membership.as_ref().map(|membership| membership.as_brokers(config));
    let front =
        rocketmq_front(config, &rocketmq_listeners, nodes, Arc::clone(&realm), registry, clock, alarms).await;
    let (announced, ending) = (rocketmq::announce(node.shard.clone(), Arc::clone(&front)), stop.clone());
    servers.spawn(async move { cluster::transport::until(announced, ending.requested()).await });
    for (key, listener) in rocketmq_listeners {
        let entrance = rocketmq_entrance(config.rocketmq.tls, tls.as_ref());
        let door = Door { listener, key, most: limits::CONNECTIONS_MAX, entrance };
        let (shard, front, stop) = (node.shard.clone(), Arc::clone(&front), stop.clone());
        servers.spawn(rocketmq::listen(door, shard, front, stop, Arc::clone(&metrics)));
    }
    for (key, _) in rocketmq {
        ready.up(key);
    }
    let broker = management::Broker { shard: node.shard.clone(), front, listeners: ports };
    let _ = management.broker.set(broker);
    tracing::info!("ready in {} ms", clock.monotonic().as_millis());
    let ended = tokio::select! {
        signal = asked => {
            tracing::info!("{signal}: ending");
            Ended::ForGood
        }
        Ok(_) = node.again.wait_for(|again| *again) => Ended::ToStartAgain,
    };
    ready.down("the broker is ending");
    if let Some(membership) = &membership {
        membership.hand_over().await;
    }
    stopper.stop();
    let all = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(limits::SHUTDOWN_MS), all).await.is_err() {
        tracing::warn!("some connections did not end in time and were cut");
    }
    tokio::task::spawn_blocking(move || node.stop()).await.map_err(Failure::log)?;
    tracing::info!("ended");
    Ok(ended)
}

/// Listens, and adds where to `ports`.
async fn bind(
    addresses: &[Address],
    key: &'static str,
    ports: &mut Vec<management::Listener>,
) -> Result<Vec<TcpListener>, Failure> {
    let listeners = server::bind(addresses, key).await.map_err(Failure::new)?;
    for listener in &listeners {
        let address = listener.local_addr().map_err(Failure::new)?;
        tracing::info!("{key} {address}");
        ports.push(management::Listener { key, address });
    }
    Ok(listeners)
}

/// As RabbitMQ names nodes.
fn node_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("dassie@{}", Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("localhost"))
}

fn rocketmq_entrance(wanted: RocketmqTls, tls: Option<&Arc<Tls>>) -> Entrance {
    match (wanted, tls) {
        (RocketmqTls::Disabled, _) | (_, None) => Entrance::PlainOnly,
        (RocketmqTls::Permissive, Some(tls)) => Entrance::Either(Arc::clone(tls)),
        (RocketmqTls::Enforcing, Some(tls)) => Entrance::TlsOnly(Arc::clone(tls)),
    }
}

/// Where clients find the name server: its own host, or the broker's when it listens everywhere.
fn name_server_address(config: &Config, listeners: &[(&'static str, TcpListener)]) -> Option<String> {
    let (_, listener) = listeners.iter().find(|(key, _)| *key == "rocketmq.name_server_listen")?;
    let address = listener.local_addr().ok()?;
    let host = match &config.rocketmq.advertised_host {
        Some(host) if address.ip().is_unspecified() => host.clone(),
        _ if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        _ => address.ip().to_string(),
    };
    let port = address.port();
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// When delayed messages are due, and transactions asked about.
fn times(config: &Config) -> Times {
    Times {
        delay_levels_ms: config.rocketmq.delay_levels.clone(),
        transaction_timeout_ms: config.rocketmq.transaction_timeout * 1000,
        transaction_check_interval_ms: config.rocketmq.transaction_check_interval * 1000,
        transaction_check_max: u32::try_from(config.rocketmq.transaction_check_max).unwrap_or(u32::MAX),
    }
}

/// What RocketMQ connections share. Routes name the port that really listens: the configured one may be 0.
async fn rocketmq_front(
    config: &Config,
    listeners: &[(&'static str, TcpListener)],
    nodes: Option<rocketmq::Nodes>,
    realm: Arc<Realm>,
    registry: Arc<Registry>,
    clock: &SystemClock,
    alarms: Arc<Alarms>,
) -> Arc<rocketmq::Front> {
    // Every port answers every request: without a broker port, clients may come to another.
    let port = listeners.iter().find_map(|(_, listener)| listener.local_addr().ok()).map_or(0, |a| a.port());
    let settings = rocketmq::Settings {
        advertised_host: config.rocketmq.advertised_host.clone(),
        advertised_port: port,
        broker_name: config.rocketmq.broker_name.clone(),
        cluster_name: config.rocketmq.cluster_name.clone(),
        auto_create_topics: config.rocketmq.auto_create_topics,
        default_topic_queues: u32::try_from(config.rocketmq.default_topic_queues).unwrap_or(u32::MAX),
        delay_levels: u32::try_from(config.rocketmq.delay_levels.len()).unwrap_or(u32::MAX),
    };
    // The lower half of a random number is one.
    let [_, _, _, _, a, b, c, d] = random().to_be_bytes();
    rocketmq::Front::new(
        settings,
        nodes,
        realm,
        registry,
        Arc::new(*clock),
        alarms,
        u32::from_be_bytes([a, b, c, d]),
    )
    .await
}

/// A random number that is not 0, from the system's randomness that seeds hash maps.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}
