//! This node as one of a cluster: from the configuration to a store that belongs to it.
//!
//! Owns: the order of joining (look at the store, listen, find the cluster, write the genesis), what operators see and ask of the
//! membership. Promises: without `cluster.listen` nothing of this happens; a store is made only when it is clear whose it is.
//! Does not know: how nodes talk, how the log is replicated.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dassie_storage::Genesis;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::alarms::Alarms;
use crate::clock::Clock;
use crate::cluster::admin;
use crate::cluster::calls::asked;
use crate::cluster::formation::{self, Found};
use crate::cluster::handshake::{Card, Replicates};
use crate::cluster::keeper::{Command, Keeper};
use crate::cluster::status::status;
use crate::cluster::tls::TlsFiles;
use crate::cluster::transport::{Settings, Transport, until};
use crate::cluster::{Member, Node, Role, View};
use crate::config::{Address, Config};
use crate::data_dir::{self, DataDir, Identity, Opened};
use crate::metrics::Metrics;
use crate::process::Failure;
use crate::server::Stop;
use crate::server::health::Readiness;
use crate::server::http::management::ClusterDesk;
use crate::server::rocketmq;

/// What `/health/ready` calls it.
pub const PART: &str = "the cluster";

/// How long a new cluster waits for the nodes that it was founded with before it serves without them.
const FORMING: Duration = Duration::from_secs(10);
/// Without a leader that has a majority for so long, a node says so to its clients: elections are over sooner.
const ALONE: Duration = Duration::from_secs(4);
/// How long the others have to agree that a member goes.
const REMOVE: Duration = Duration::from_secs(10);
/// How long an ending node waits for its successor.
const HAND_OVER: Duration = Duration::from_millis(1_500);

/// A store, and what joins it to others.
pub struct Joined {
    /// Ours, with its identity.
    pub store: DataDir,
    /// `None`: this node stands alone.
    pub membership: Option<Membership>,
    /// For the shard's thread; there is one when there is a membership.
    pub keeper: Option<Keeper>,
}

/// The cluster as the rest of the process knows it.
#[derive(Clone)]
pub struct Membership {
    /// Connections to the others.
    pub transport: Arc<Transport>,
    /// Who is in it, who leads.
    pub view: watch::Receiver<Arc<View>>,
    commands: mpsc::UnboundedSender<Command>,
    /// How many nodes it was founded with, in this start.
    founded: usize,
}

/// Opens the store, or makes it when it is clear of which cluster it is. Waits for the others as long as that takes.
///
/// # Errors
/// Files that can not be used.
pub async fn join(
    config: &Config,
    identity: Identity,
    opened: Opened,
    listeners: Vec<TcpListener>,
    clock: Arc<dyn Clock>,
    servers: &mut JoinSet<()>,
    stop: &Stop,
) -> Result<Joined, Failure> {
    let make_new = |empty: data_dir::Empty| {
        let random = || data_dir::random().map_err(Failure::new);
        empty.make(identity.genesis(random()?, random()?, random()?, false)).map_err(Failure::new)
    };
    let Some(address) = config.cluster.address().filter(|_| !listeners.is_empty()) else {
        let store = match opened {
            Opened::Store(store) => store,
            Opened::Empty(empty) => make_new(empty)?,
        };
        return Ok(Joined { store, membership: None, keeper: None });
    };
    let port = listeners[0].local_addr().map_err(Failure::new)?.port();
    let transport = transport(config, identity.node, address, port, clock)?;
    let speak_for = |store: &DataDir| speak_for(&transport, &store.genesis);
    if let Opened::Store(store) = &opened {
        speak_for(store);
    }
    for listener in listeners {
        let (listening, stop) = (Arc::clone(&transport).listen(listener), stop.clone());
        servers.spawn(async move { until(listening, stop.requested()).await });
    }
    let mut founded = 0;
    let store = match opened {
        Opened::Store(store) => store,
        Opened::Empty(empty) => {
            let found = formation::find(&transport).await;
            let store = match found {
                Found::NewCluster => {
                    founded = config.cluster.peers.len();
                    make_new(empty)?
                }
                Found::Cluster(cluster, shard, segment_size) => {
                    let store = data_dir::random().map_err(Failure::new)?;
                    let identity = Identity { segment_size, ..identity };
                    empty.make(identity.genesis(cluster, shard, store, true)).map_err(Failure::new)?
                }
            };
            formation::announce(&transport, found, &store.genesis.cluster);
            speak_for(&store);
            store
        }
    };
    let asked = asked(&transport);
    let (commands, todo) = mpsc::unbounded_channel();
    let (seen, view) = watch::channel(Arc::default());
    admin::serve(&transport, commands.clone(), view.clone());
    let keeper = Keeper { transport: Arc::clone(&transport), asked, commands: todo, view: seen };
    let membership = Membership { transport, view, commands, founded };
    Ok(Joined { store, membership: Some(membership), keeper: Some(keeper) })
}

fn transport(
    config: &Config,
    node: u64,
    address: &Address,
    port: u16,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Transport>, Failure> {
    let tls = (!config.cluster.certificate.is_empty()).then(|| TlsFiles {
        certificate: config.cluster.certificate.clone(),
        key: config.cluster.key.clone(),
        ca: config.cluster.ca.clone(),
    });
    if config.cluster.insecure && tls.is_none() {
        tracing::warn!(
            "cluster.insecure: nodes speak plaintext, and whoever reaches cluster.listen can read and change everything"
        );
    }
    // A port that the system chose is known only now; such an address is of use on one machine only.
    let port = if address.port == 0 { port } else { address.port };
    let peers = config.cluster.peers.iter().map(|(node, at)| (*node, at.to_string()));
    let settings = Settings {
        name: config.cluster.name.clone(),
        node,
        address: Address { port, ..address.clone() }.to_string(),
        peers: peers.collect::<BTreeMap<_, _>>(),
        tls,
    };
    Transport::new(settings, clock).map_err(Failure::new)
}

fn speak_for(transport: &Transport, genesis: &Genesis) {
    let Genesis { cluster, shard, store, segment_size, .. } = *genesis;
    transport.speak_for(Replicates { cluster, shard, store, segment_size });
}

/// `dassie cluster join`: makes the store of a node that is not listed anywhere, and asks the cluster behind `at` to let it in. The
/// node is started afterwards.
///
/// # Errors
/// What is in the way, here or there. It may be asked again.
pub async fn enroll(
    config: &Config,
    identity: Identity,
    opened: Opened,
    at: &str,
    clock: Arc<dyn Clock>,
) -> Result<String, Failure> {
    let (member, at) = at.split_once('@').unwrap_or(("0", at));
    let member = member.parse::<u64>().map_err(|_| Failure::usage("write NODE@HOST:PORT of a member"))?;
    let address = config.cluster.address().filter(|address| address.port != 0);
    let address = address.ok_or_else(|| {
        Failure::usage("cluster.listen (or its own entry in cluster.peers) must name a port")
    })?;
    let transport = transport(config, identity.node, address, address.port, clock)?;
    let mine = match &opened {
        Opened::Store(store) if !store.genesis.joins => {
            return Err(Failure::new(
                "the data directory has a store of its own: a node joins with an empty one",
            ));
        }
        Opened::Store(store) => Some(store.genesis),
        Opened::Empty(_) => None,
    };
    if let Some(genesis) = &mine {
        speak_for(&transport, genesis);
    }
    let (card, _) = transport.greet(member, at).await.map_err(Failure::new)?;
    let there = card.replicates.ok_or_else(|| Failure::new("that node has no cluster itself yet"))?;
    let store = match opened {
        Opened::Store(store) => store,
        Opened::Empty(empty) => {
            let identity = Identity { segment_size: there.segment_size, ..identity };
            let store = data_dir::random().map_err(Failure::new)?;
            let genesis = identity.genesis(there.cluster, there.shard, store, true);
            empty.make(genesis).map_err(Failure::new)?
        }
    };
    speak_for(&transport, &store.genesis);
    let (_, stream) = transport.greet(member, at).await.map_err(Failure::new)?;
    admin::join(&transport, stream, store.genesis.store).await.map_err(Failure::new)?;
    let name = &config.cluster.name;
    Ok(format!("node {} is a member of '{name}' now: start it, and it catches up\n", identity.node))
}

impl Membership {
    /// The nodes as RocketMQ clients see them.
    #[must_use]
    pub fn as_brokers(&self, config: &Config) -> rocketmq::Nodes {
        let card = self.transport.card();
        let transport = Arc::clone(&self.transport);
        let reached = move || {
            transport
                .links()
                .into_iter()
                .filter(|(_, trouble)| trouble.is_none())
                .map(|(node, _)| node)
                .collect()
        };
        let host = config.cluster.address().map_or(card.address, |address| address.host.clone());
        rocketmq::Nodes { own: config.cluster.node, host, reached: Box::new(reached) }
    }

    /// Waits until a cluster that was founded just now stands on all its nodes: what is confirmed before is on one disk only.
    pub async fn formed(&self) {
        let mut view = self.view.clone();
        let all = view.wait_for(|view| self.founded == 0 || view.voters() >= self.founded && !view.changing);
        if tokio::time::timeout(FORMING, all).await.is_err() {
            tracing::warn!(
                "the new cluster has not got all its nodes yet, and serves: what is confirmed is on fewer disks"
            );
        }
    }

    /// Says whether this node can serve, for ever: it leads and its shard serves, or it follows a leader that it reaches and has
    /// applied what it knows to be committed. When neither is so for longer than an election takes, clients are told.
    pub async fn watch(self, ready: Arc<Readiness>, alarms: Arc<Alarms>, mut shard: watch::Receiver<bool>) {
        let mut view = self.view.clone();
        // Runs while nobody leads; gone when that was told.
        let mut alone = None;
        let mut told = false;
        loop {
            let (is_led, is_level) = {
                let view = view.borrow_and_update();
                let is_led = match view.role {
                    Role::Leader { .. } => *shard.borrow_and_update(),
                    Role::Follower { leader } => {
                        self.transport.links().get(&leader).is_some_and(Option::is_none)
                    }
                    Role::Looking => false,
                };
                (is_led, matches!(view.role, Role::Leader { .. }) || view.applied >= view.committed)
            };
            if is_led && is_level {
                ready.up(PART)
            } else {
                ready.down(PART)
            }
            if is_led {
                (alone, told) = (None, false);
                alarms.minority(false);
            } else if !told && alone.is_none() {
                alone = Some(Box::pin(sleep(ALONE)));
            }
            let long = async {
                match alone.as_mut() {
                    Some(alone) => alone.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = shard.changed() => if changed.is_err() { return },
                () = long => {
                    (alone, told) = (None, true);
                    alarms.minority(true);
                }
            }
        }
    }

    /// Keeps the metrics of the cluster, for ever.
    pub async fn count(self, metrics: Arc<Metrics>) {
        let mut view = self.view.clone();
        loop {
            {
                let view = view.borrow_and_update();
                let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
                metrics.cluster.leader.set(number(view.leader().unwrap_or(0)));
                metrics.cluster.term.set(number(view.term));
                metrics.cluster.voters.set(number(view.voters() as u64));
                let lags = view.members.iter().map(|(node, member)| (*node, member.lag_bytes.map(number)));
                metrics.cluster.set_lags(lags);
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Gives the lead to another node, if this one has it, and waits for that a little.
    pub async fn hand_over(&self) {
        let (done, waiting) = oneshot::channel();
        if self.commands.send(Command::HandOver(done)).is_ok() {
            let _ = tokio::time::timeout(HAND_OVER, waiting).await;
        }
    }
}

impl ClusterDesk for Membership {
    fn status(&self) -> Pin<Box<dyn Future<Output = Value> + Send + '_>> {
        Box::pin(async {
            let mut view = View::clone(&self.view.borrow());
            admin::complete(&self.transport, &mut view).await;
            let listed = self.transport.settings().peers.keys().copied();
            status(&view, &self.transport.card(), &self.transport.links(), listed)
        })
    }

    fn remove(&self, node: u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let (leader, known) = {
                let view = self.view.borrow();
                (view.leader(), view.members.get(&node).cloned())
            };
            let me = self.transport.settings().node;
            match leader {
                Some(leader) if leader == me => {}
                Some(leader) => return Err(format!("node {leader} leads: ask there")),
                None => return Err("no leader is known".to_owned()),
            }
            let member = known.ok_or_else(|| format!("node {node} is no member"))?;
            if node == me {
                return Err("this node leads: stop it, then ask the one that leads then".to_owned());
            }
            // A listed node that runs would be let in again at once.
            let address = self.transport.address(node).unwrap_or(member.node.address);
            if self.transport.greet(node, &address).await.is_ok() {
                return Err(format!("node {node} runs: stop it first"));
            }
            let (done, waiting) = oneshot::channel();
            let ended = "the node is ending";
            self.commands.send(Command::Remove(node, done)).map_err(|_| ended)?;
            match tokio::time::timeout(REMOVE, waiting).await {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(error))) => Err(error.to_string()),
                Ok(Err(_)) => Err(ended.to_owned()),
                Err(_) => Err("the others have not agreed in time: is there a majority?".to_owned()),
            }
        })
    }
}

/// A node that stands alone, as the only member of its cluster.
pub struct Alone {
    /// `cluster.name`
    pub name: String,
    /// Whose store it is.
    pub genesis: Genesis,
    /// Its shard serves.
    pub leads: watch::Receiver<bool>,
}

impl ClusterDesk for Alone {
    fn status(&self) -> Pin<Box<dyn Future<Output = Value> + Send + '_>> {
        let Genesis { cluster, shard, store, segment_size, node, .. } = self.genesis;
        let replicates = Some(Replicates { cluster, shard, store, segment_size });
        let card = Card { node, name: self.name.clone(), address: String::new(), replicates };
        let member = Member {
            node: Node { address: String::new(), store },
            voter: true,
            matched: None,
            lag_bytes: Some(0),
            silent_ms: Some(0),
        };
        let role = if *self.leads.borrow() { Role::Leader { term: 0 } } else { Role::Looking };
        let view = View { node, role, members: BTreeMap::from([(node, member)]), ..View::default() };
        Box::pin(std::future::ready(status(&view, &card, &BTreeMap::new(), [])))
    }

    fn remove(&self, _: u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Err("this node stands alone".to_owned()) })
    }
}
