//! Three nodes on this machine.
//!
//! Owns: the processes, their ports and directories. Promises: they end with the test; a wait ends.
//! Does not know: what a test wants of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use dassie_amqp::content::Properties;
use dassie_interop::harm::{Broker, free_port};
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Heard};
use serde_json::Value;

/// Longest wait for anything that has no bar of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes 1, 2 and 3, and whoever else a test wants.
pub(crate) struct Three {
    pub(crate) nodes: BTreeMap<u64, Broker>,
    pub(crate) peers: BTreeMap<u64, SocketAddr>,
    directory: PathBuf,
    dice: Dice,
    _turn: MutexGuard<'static, ()>,
}

/// One test at a time: elections are timed, and nine processes on two processors are slow.
static TURN: Mutex<()> = Mutex::new(());

impl Three {
    /// Nothing runs yet.
    pub(crate) fn new(name: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = env::temp_dir().join(format!("dassie-cluster-{name}-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory of its own");
        let dice = Dice::new(u64::from(std::process::id()) * 131 + name.len() as u64 * 31_337);
        let peers = (1..=3).map(|node| (node, free_port(&dice).expect("a free port"))).collect();
        let mut three = Three { nodes: BTreeMap::new(), peers, directory, dice, _turn: turn };
        for node in 1..=3 {
            let broker = three.node(node, &format!("n{node}"), "dassie");
            three.nodes.insert(node, broker);
        }
        three
    }

    /// Another process that calls itself `node` and knows the three, with its data below `place`.
    pub(crate) fn node(&self, node: u64, place: &str, cluster: &str) -> Broker {
        let listed: Vec<String> = self.peers.iter().map(|(node, at)| format!("{node}@{at}")).collect();
        self.node_of(node, place, cluster, &listed)
    }

    /// The same, with a list of its own.
    pub(crate) fn node_of(&self, node: u64, place: &str, cluster: &str, listed: &[String]) -> Broker {
        let directory = self.directory.join(place);
        fs::create_dir_all(&directory).expect("a directory");
        let mut broker = Broker::new(&binary(), &directory, &self.dice).expect("free ports");
        let listen = self.peers.get(&node).copied().unwrap_or_else(|| self.port());
        broker.settings = vec![
            format!("cluster.node={node}"),
            format!("cluster.name={cluster}"),
            format!("cluster.listen={listen}"),
            format!("cluster.peers={}", listed.join(",")),
            "storage.segment_size=4MiB".to_owned(),
        ];
        broker
    }

    /// One that nobody else here has.
    pub(crate) fn port(&self) -> SocketAddr {
        free_port(&self.dice).expect("a free port")
    }

    /// All three run and vote.
    pub(crate) fn started(name: &str) -> Self {
        let mut three = Self::new(name);
        for broker in three.nodes.values_mut() {
            broker.spawn().expect("it starts");
        }
        three.wait("three voters under one leader", |three| {
            three.nodes.values().all(|broker| {
                let Some(status) = cluster(broker) else { return false };
                voters(&status) == 3 && status["leader"].is_u64()
            })
        });
        three
    }

    /// Waits until `condition` holds.
    pub(crate) fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Duration {
        let begin = Instant::now();
        while !condition(self) {
            assert!(begin.elapsed() < PATIENCE, "not seen in time: {what}\n{}", self.logs());
            thread::sleep(Duration::from_millis(5));
        }
        begin.elapsed()
    }

    /// The node that says of itself that it leads.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |broker: &&Broker| cluster(broker).is_some_and(|status| status["role"] == "leader");
        self.nodes.iter().find(|(_, broker)| broker.id().is_some() && leads(broker)).map(|(node, _)| *node)
    }

    /// Waits for a leader.
    pub(crate) fn any_leader(&mut self) -> u64 {
        let mut found = None;
        self.wait("a leader", |three| {
            found = three.leader();
            found.is_some()
        });
        found.expect("it was just seen")
    }

    /// What all of them said.
    pub(crate) fn logs(&self) -> String {
        self.nodes.iter().map(|(node, broker)| format!("== node {node}\n{}", broker.log_text())).collect()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        for broker in self.nodes.values_mut() {
            broker.kill();
        }
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// `GET /cluster`; `None`: nobody answers, or not yet.
pub(crate) fn cluster(broker: &Broker) -> Option<Value> {
    let mut stream = TcpStream::connect_timeout(&broker.ports.http, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /cluster HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).ok())?
}

/// How many vote, as this status says; none while that changes: the voters of before can not be done without yet.
pub(crate) fn voters(status: &Value) -> usize {
    if status["changing"] == true {
        return 0;
    }
    let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    members.iter().filter(|member| member["role"] == "leader" || member["role"] == "follower").count()
}

/// Publishes and waits for every confirm.
pub(crate) fn publish(client: &mut Client, queue: &str, bodies: impl Iterator<Item = u64>) {
    let mut last = 0;
    for body in bodies {
        client.publish("", queue, persistent(), &body.to_be_bytes());
        last += 1;
    }
    client.flush().expect("it reads");
    let mut open: std::collections::BTreeSet<u64> = (1..=last).collect();
    let begin = Instant::now();
    while !open.is_empty() {
        while let Some(heard) = client.hear().expect("it follows the protocol") {
            match heard {
                Heard::Confirmed { tag, multiple: true } => open.retain(|open| *open > tag),
                Heard::Confirmed { tag, multiple: false } => drop(open.remove(&tag)),
                Heard::Refused { tag, .. } => panic!("publish {tag} was refused"),
                _ => {}
            }
        }
        if !open.is_empty() {
            assert!(begin.elapsed() < PATIENCE, "no confirms in time");
            client.receive(Duration::from_millis(100)).expect("it is there");
        }
    }
}

/// All bodies of a queue, taken out in order.
pub(crate) fn drain(client: &mut Client, queue: &str) -> Vec<u64> {
    let mut bodies = Vec::new();
    loop {
        client.get(queue);
        client.flush().expect("it reads");
        let begin = Instant::now();
        let got = loop {
            match client.hear().expect("it follows the protocol") {
                Some(Heard::Got(message)) => {
                    let body = message.body.as_ref().try_into().expect("eight bytes");
                    break Some((message.tag, u64::from_be_bytes(body)));
                }
                Some(Heard::Nothing) => break None,
                Some(_) => {}
                None => {
                    assert!(begin.elapsed() < PATIENCE, "no answer in time");
                    client.receive(Duration::from_millis(100)).expect("it is there");
                }
            }
        };
        let Some((tag, body)) = got else { return bodies };
        bodies.push(body);
        client.ack(tag, false);
    }
}

pub(crate) fn persistent() -> Properties<'static> {
    // Delivery mode 2 and nothing else.
    Properties::parse(&[0x10, 0, 2]).expect("a block of properties")
}

/// The program beside the tests, or the one that `DASSIE_BIN` names.
pub(crate) fn binary() -> PathBuf {
    if let Some(binary) = env::var_os("DASSIE_BIN") {
        return binary.into();
    }
    let test = env::current_exe().expect("the system tells");
    let binary = test.ancestors().nth(2).expect("in target/*/deps").join("dassie");
    assert!(binary.exists(), "{} is missing: cargo build", binary.display());
    binary
}
