//! Three processes that are one broker, their network, and what each says of itself.
//!
//! Owns: the processes, the links between them, the doors of the clients, the look at `GET /cluster`. Promises: every wait ends; at a rest all
//! three have applied the same entries, and at the end their logs are compared byte by byte.
//! Does not know: what harm is done, the traffic.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::broker::{Broker, Ports};
use super::file_system::FileSystem;
use super::links::{Desk, Door, Links, NODES};
use super::load::Load;
use super::tape::Tape;
use super::trial::{Trial, judge};
use crate::check::Report;
use crate::history::event::Op;
use crate::sim::dice::Dice;

/// How long all may take to be level again.
const LEVEL_WITHIN: Duration = Duration::from_secs(90);
/// How long a node may take to end when it is told to.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// Small segments and little log kept: nodes that were away for long need a copy, and have it soon; those that were away for seconds do not.
const SETTINGS: [&str; 3] =
    ["storage.segment_size=4MiB", "cluster.keep_log=64MiB", "cluster.copy_rate=256MiB"];
/// A node that lacks no more log than this is as good as level while there is load: it needs no copy when the leader changes. Bytes.
const NEAR: u64 = 4 << 20;

/// Of a file system of one node's own. It is sparse: it costs what is written.
const DISK: u64 = 4 << 30;

/// What a node says of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// It leads.
    pub leads: bool,
    /// Its term.
    pub term: u64,
    /// Index of the last entry in its log, of the last that it knows as committed, of the last that it has applied.
    pub indices: [Option<u64>; 3],
    /// The most that a member lacks, as a leader says. Bytes.
    pub lag: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    /// Node 1 first.
    pub nodes: Vec<Broker>,
    /// Between them.
    pub links: Links,
    /// Whom clients are led to.
    pub desk: Arc<Desk>,
    doors: [Door; 2],
    /// The last node's file system, where the machine lets us make one.
    pub disk: Option<FileSystem>,
}

impl Cluster {
    /// Three processes that do not run yet, in directories below `directory`.
    ///
    /// # Errors
    /// No free port; a directory that can not be made.
    pub fn new(binary: &Path, directory: &Path, dice: &Dice, through_all: bool) -> Result<Self, String> {
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let own = directory.join(format!("node{number}"));
            fs::create_dir(&own).map_err(|error| format!("{}: {error}", own.display()))?;
            nodes.push(Broker::new(binary, &own, dice)?);
        }
        let mut listening = Vec::new();
        while listening.len() < NODES {
            let port = super::free_port(dice)?;
            let taken = nodes
                .iter()
                .any(|node| [node.ports.amqp, node.ports.rocketmq, node.ports.http].contains(&port));
            if !taken && !listening.contains(&port) {
                listening.push(port);
            }
        }
        let all: [_; NODES] = listening.clone().try_into().expect("so many were found");
        let links = Links::new(all)?;
        for (number, node) in nodes.iter_mut().enumerate() {
            let peer = |other: usize| {
                let at = if other == number { listening[other] } else { links.way(number, other) };
                format!("{}@{at}", other + 1)
            };
            let peers: Vec<String> = (0..NODES).map(peer).collect();
            node.settings = vec![
                format!("cluster.node={}", number + 1),
                format!("cluster.listen={}", listening[number]),
                format!("cluster.peers={}", peers.join(",")),
            ];
            node.settings.extend(SETTINGS.map(str::to_owned));
        }
        // Root only, with loop devices: without them one kind of fault is left out.
        let disk = FileSystem::make(&directory.join(format!("node{NODES}")), DISK).ok();
        if let (Some(disk), Some(node)) = (&disk, nodes.last_mut()) {
            node.data = disk.root.join("data");
        }
        let desk = Desk::new(through_all);
        let at = |port: fn(&Ports) -> std::net::SocketAddr| -> [_; NODES] {
            std::array::from_fn(|number| port(&nodes[number].ports))
        };
        let doors =
            [Door::new(at(|ports| ports.amqp), &desk)?, Door::new(at(|ports| ports.rocketmq), &desk)?];
        Ok(Self { nodes, links, desk, doors, disk })
    }

    /// Where clients connect.
    #[must_use]
    pub fn ports(&self) -> Ports {
        Ports { amqp: self.doors[0].address, rocketmq: self.doors[1].address, http: self.nodes[0].ports.http }
    }

    /// Starts all, and waits until they are level.
    ///
    /// # Errors
    /// One ends, or they do not come together.
    pub fn start(&mut self) -> Result<(), String> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        self.level()
    }

    /// What a node says, if it answers.
    #[must_use]
    pub fn ask(&self, number: usize) -> Option<Said> {
        said(&self.nodes[number].ports)
    }

    /// Who leads, as the one of the highest term says.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        leader_of(&self.nodes.iter().map(|node| node.ports).collect::<Vec<_>>())
    }

    /// Waits until somebody leads.
    ///
    /// # Errors
    /// Nobody does.
    pub fn led(&self) -> Result<usize, String> {
        let deadline = Instant::now() + LEVEL_WITHIN;
        while Instant::now() < deadline {
            if let Some(leader) = self.leader() {
                return Ok(leader);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("nobody leads after {} s", LEVEL_WITHIN.as_secs()))
    }

    /// Waits until all run, one leads, and all have applied what any of them has: with load, as of some moment.
    ///
    /// # Errors
    /// One has ended; they are not level in time.
    pub fn level(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LEVEL_WITHIN;
        let mut goal = None;
        loop {
            for (number, node) in self.nodes.iter_mut().enumerate() {
                node.alive().map_err(|error| format!("node {}: {error}", number + 1))?;
            }
            let all: Vec<Option<Said>> = (0..NODES).map(|number| self.ask(number)).collect();
            if let Some(all) = all.iter().cloned().collect::<Option<Vec<Said>>>() {
                // A new cluster has nothing at first.
                goal = goal.or_else(|| all.iter().filter_map(|said| said.indices[1]).max());
                let one_leads = all.iter().filter(|said| said.leads).count() == 1;
                if goal.is_some()
                    && one_leads
                    && all.iter().all(|said| said.indices[2] >= goal && said.lag <= NEAR)
                {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Err(format!("not level after {} s: {all:?}", LEVEL_WITHIN.as_secs()));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often each node has started again with a copy of a store.
    #[must_use]
    pub fn copies(&self) -> [usize; NODES] {
        std::array::from_fn(|node| self.nodes[node].log_text().matches("starting again with it").count())
    }

    /// The term, as the leader says.
    #[must_use]
    pub fn term(&self) -> u64 {
        (0..NODES).filter_map(|number| self.ask(number)).map(|said| said.term).max().unwrap_or(0)
    }

    /// A signal to a node.
    pub fn signal(&self, number: usize, signal: Signal) {
        let id = self.nodes[number].id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, signal);
        }
    }

    /// Ends a node as an operator does, and waits for it.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn end(&mut self, number: usize) -> Result<(), String> {
        self.signal(number, Signal::TERM);
        match self.nodes[number].ended_within(ENDS_WITHIN) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("node {} ended with {status}", number + 1)),
            None => Err(format!("node {} does not end", number + 1)),
        }
    }

    /// Looks for the leader until the desk is closed: run it beside the load.
    pub fn watch(desk: &Desk, ports: &[Ports], until: impl Fn() -> bool) {
        while !until() {
            desk.leader.store(leader_of(ports).unwrap_or(NODES), Ordering::SeqCst);
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// Ends all and compares what they wrote. Answers the bytes of log that two or three of them have.
    ///
    /// # Errors
    /// Where two logs differ.
    pub fn compare(&mut self) -> Result<u64, String> {
        self.level()?;
        for number in 0..NODES {
            self.end(number)?;
        }
        let logs: Vec<Log> = self.nodes.iter().map(|node| Log::read(&node.data)).collect::<Result<_, _>>()?;
        let mut common = 0;
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            common += logs[a]
                .compare(&logs[b])
                .map_err(|error| format!("nodes {} and {}: {error}", a + 1, b + 1))?;
        }
        Ok(common)
    }
}

fn leader_of(ports: &[Ports]) -> Option<usize> {
    let all = ports.iter().enumerate().filter_map(|(number, ports)| Some((number, said(ports)?)));
    all.filter(|(_, said)| said.leads).max_by_key(|(_, said)| said.term).map(|(number, _)| number)
}

fn said(ports: &Ports) -> Option<Said> {
    let mut page = TcpStream::connect_timeout(&ports.http, Duration::from_millis(300)).ok()?;
    page.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
    page.write_all(b"GET /cluster HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    page.read_to_string(&mut answer).ok()?;
    let json: Value = serde_json::from_str(&answer[answer.find('{')?..=answer.rfind('}')?]).ok()?;
    let index = |name: &str| json[name].as_u64();
    let members = json["members"].as_array().into_iter().flatten();
    Some(Said {
        leads: json["role"] == "leader",
        term: index("term").unwrap_or(0),
        indices: [index("last"), index("committed"), index("applied")],
        lag: members.filter_map(|member| member["lag_bytes"].as_u64()).max().unwrap_or(0),
    })
}

/// The segments of a closed log, without what is private to its node.
struct Log(BTreeMap<String, Vec<u8>>);

impl Log {
    fn read(data: &Path) -> Result<Self, String> {
        let mut segments = BTreeMap::new();
        let dir = data.join("log");
        for entry in fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))? {
            let path = entry.map_err(|error| error.to_string())?.path();
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            if name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit()) {
                let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                segments.insert(name, batches(bytes));
            }
        }
        Ok(Self(segments))
    }

    /// Both have the same in the segments that both have, up to where the shorter one ends.
    fn compare(&self, other: &Self) -> Result<u64, String> {
        let mut common = 0;
        for (name, ours) in &self.0 {
            let Some(theirs) = other.0.get(name) else { continue };
            let len = ours.len().min(theirs.len());
            if let Some(at) = (0..len).find(|at| ours[*at] != theirs[*at]) {
                return Err(format!("segment {name} differs at {at}"));
            }
            common += len as u64;
        }
        Ok(common)
    }
}

/// The batches of a segment (`src/docs/record-format.md`), with `synced to` and its checksum as zeros: those are each node's own.
fn batches(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + 96 <= bytes.len() && bytes[at..].starts_with(b"DBAT") {
        let len = u32::from_le_bytes([bytes[at + 8], bytes[at + 9], bytes[at + 10], bytes[at + 11]]) as usize;
        bytes[at + 80..at + 96].fill(0);
        at += 96 + len.next_multiple_of(8);
    }
    bytes.truncate(at);
    bytes
}

/// What a run under load came to.
#[derive(Debug)]
pub struct Outcome {
    /// What the history says.
    pub report: Report,
    /// Why it ended early, if it did.
    pub early: Option<String>,
    /// The lines in which a node says that it panicked.
    pub panics: Vec<String>,
    /// Bytes of log that were compared.
    pub compared: Option<u64>,
    /// Messages confirmed.
    pub confirmed: u64,
    /// The nodes' logs, for who looks for a line.
    pub said: String,
}

impl Outcome {
    /// Nothing is wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.report.passed() && self.early.is_none() && self.panics.is_empty() && self.compared.is_some()
    }
}

/// One run: a cluster, its load, somebody's harm, so many times, and the verdict.
///
/// # Errors
/// No verdict: the machine failed.
pub fn run(
    trial: &Trial,
    through_all: bool,
    harm: impl FnOnce(&Load, &mut Cluster, &Dice) -> Result<(), String>,
) -> Result<Outcome, String> {
    fs::create_dir(&trial.directory).map_err(|error| format!("{}: {error}", trial.directory.display()))?;
    let out = File::create(&trial.out).map_err(|error| format!("{}: {error}", trial.out.display()))?;
    let dice = Dice::new(trial.seed);
    let mut cluster = Cluster::new(&trial.broker, &trial.directory, &dice, through_all)?;
    let name = format!("{}{}", trial.harm, trial.seed);
    let load = Load::new(Tape::new(BufWriter::new(out)), name, cluster.ports(), trial.worlds);
    println!("seed {}, nodes in {}", trial.seed, trial.directory.display());
    let mut compared = Err("not compared".to_owned());
    let lived = live(trial, &load, &mut cluster, &dice, harm).and_then(|()| {
        compared = cluster.compare();
        compared.clone().map(drop)
    });
    cluster.desk.end();
    let panics = cluster.nodes.iter().flat_map(Broker::panics).collect();
    let said = cluster.nodes.iter().map(Broker::log_text).collect();
    let confirmed = load.confirmed();
    drop(cluster);
    load.tape.finish().map_err(|error| format!("{}: {error}", trial.out.display()))?;
    let written = File::open(&trial.out).map_err(|error| error.to_string())?;
    let report = judge(BufReader::new(written))?;
    Ok(Outcome { report, early: lived.err(), panics, compared: compared.ok(), confirmed, said })
}

fn live(
    trial: &Trial,
    load: &Load,
    cluster: &mut Cluster,
    dice: &Dice,
    harm: impl FnOnce(&Load, &mut Cluster, &Dice) -> Result<(), String>,
) -> Result<(), String> {
    cluster.start()?;
    let over = AtomicBool::new(false);
    let (desk, ports) =
        (Arc::clone(&cluster.desk), cluster.nodes.iter().map(|n| n.ports).collect::<Vec<_>>());
    thread::scope(|watching| {
        watching.spawn(|| Cluster::watch(&desk, &ports, || over.load(Ordering::SeqCst)));
        let lived = load.declare().and_then(|()| {
            load.plan(trial.harm, trial.times);
            thread::scope(|scope| {
                load.begin(scope, dice);
                let lived = harm(load, cluster, dice).and_then(|()| load.heal()).and_then(|()| {
                    let begin = load.tape.now();
                    cluster.level()?;
                    load.tape.harness(begin, load.tape.now(), |_| Op::Converged);
                    Ok(())
                });
                // Whatever happened, the threads must end.
                load.end();
                if lived.is_err() {
                    cluster.links.clear();
                    cluster.desk.end();
                }
                lived
            })?;
            load.drain()
        });
        over.store(true, Ordering::SeqCst);
        lived
    })
}
