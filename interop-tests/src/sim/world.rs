//! One run: nodes, clients, faults, and the judgement.
//!
//! Owns: the nodes' lives and disks, the plan of faults, the trace. Promises: everything that happens follows from the seed;
//! a crash takes all of a node at once, between two steps, and leaves its disk as a power cut would.
//! Does not know: what is replicated; see [`SimNode`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dassie::cluster::peer::{Answer, Request};
use dassie::cluster::{Birth, Node, Refused, Replica, Role, Start, Timing};
use dassie_storage::sim::{Fault, Keep, OpKind, SimDisk};
use dassie_storage::{Genesis, Log, LogPoint, Opened, Options, ReplicatedLog};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::dice::{Dice, mix};
use super::network::{Letter, Network, Wire};
use super::node::{SimNode, Verb};
use super::oracle::Oracle;
use super::plant::Plant;
use super::{Outcome, Plan};

const NODES: u64 = 3;
/// Small, so that a run fills several.
const SEGMENT: u64 = 32 << 10;
/// A node's own clock of work.
const TURN: Duration = Duration::from_millis(5);
/// Proposals refused on their way, in a thousand.
const REFUSED: u64 = 5;
/// Longest life of a run, in simulated time.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a healed cluster may take to agree and to answer everybody.
const REST: Duration = Duration::from_secs(60);

/// Counted over all lives.
#[derive(Default)]
pub(crate) struct Counts {
    refused: Cell<u64>,
    truncations: Cell<u64>,
    crashes: Cell<u64>,
}

fn count(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// What all parts of a run share.
#[derive(Clone)]
struct Shared {
    dice: Dice,
    network: Network,
    oracle: Rc<RefCell<Oracle>>,
    counts: Rc<Counts>,
    trace: Rc<RefCell<Trace>>,
    plant: Plant,
}

/// A hash over everything that was observed, and the words themselves when somebody wants to read them.
struct Trace {
    hash: u64,
    words: Option<Vec<String>>,
}

impl Shared {
    fn note(&self, what: impl FnOnce() -> String) {
        let mut trace = self.trace.borrow_mut();
        let line = format!("{:?} {}", now(), what());
        for byte in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..byte.len()].copy_from_slice(byte);
            trace.hash = mix(trace.hash ^ u64::from_le_bytes(word));
        }
        if let Some(words) = &mut trace.words {
            words.push(line);
        }
    }
}

thread_local! {
    static BEGAN: Cell<Option<tokio::time::Instant>> = const { Cell::new(None) };
}

/// Simulated time since the run began.
fn now() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

/// One life of a node: all its tasks live in a set of their own, so that a crash can drop them together.
struct Life<M> {
    tasks: Rc<RefCell<Option<Pin<Box<LocalSet>>>>>,
    machine: M,
    session: u64,
    role: Rc<Cell<Role>>,
}

/// A place for lives: the node's disk outlives them.
struct Seat<M> {
    disk: SimDisk,
    slow: Rc<Cell<u64>>,
    life: Option<Life<M>>,
}

/// The run.
struct World<M> {
    shared: Shared,
    seats: BTreeMap<u64, Seat<M>>,
    next_session: u64,
}

fn genesis(node: u64) -> Genesis {
    Genesis {
        cluster: [7; 16],
        shard: *b"simulated shard.",
        store: [u8::try_from(node).expect("few nodes"); 16],
        shard_number: 0,
        node,
        segment_size: SEGMENT,
        created: 0,
    }
}

/// Writes and syncs take the time the seat says.
fn timed(disk: SimDisk, dice: &Dice, slow: &Rc<Cell<u64>>) -> SimDisk {
    // The disk wants to be shared between threads; here is only one, so the two cells are reached through its own local.
    let key = SLOW.with_borrow_mut(|all| {
        all.push((dice.clone(), slow.clone()));
        all.len() - 1
    });
    disk.with_sleep(std::sync::Arc::new(move |kind, _| {
        let micros = SLOW.with_borrow(|all| {
            let (dice, slow) = &all[key];
            match kind {
                OpKind::Sync | OpKind::SyncDir => 100 + dice.below(300 + slow.get()),
                OpKind::Read => 0,
                _ => 10 + dice.below(40),
            }
        });
        Box::pin(async move {
            if micros > 0 {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
        })
    }))
}

thread_local! {
    static SLOW: RefCell<Vec<(Dice, Rc<Cell<u64>>)>> = const { RefCell::new(Vec::new()) };
}

/// The tasks of one life, begun inside its own set.
struct Living<M: SimNode> {
    shared: Shared,
    node: u64,
    session: u64,
    machine: M,
    replica: Replica<SimDisk, M::Apply>,
    log: Log<SimDisk>,
    /// The end of the log when it was looked at last: an end that is gone was truncated.
    end: Cell<Option<LogPoint>>,
    /// Proposals that were refused on the way to the replica and not said so yet.
    withheld: RefCell<Vec<Refused>>,
}

async fn open(disk: &SimDisk, node: u64) -> std::io::Result<Opened<SimDisk>> {
    if Genesis::load(disk).await?.is_none() {
        genesis(node).create(disk).await?;
    }
    let options = Options { tail_bytes: 16 << 10, ..Options::default() };
    Log::open(disk, options, &genesis(node), None).await
}

async fn begin<M: SimNode>(
    shared: &Shared,
    node: u64,
    disk: &SimDisk,
    machine: &M,
) -> std::io::Result<(Replica<SimDisk, M::Apply>, Log<SimDisk>)> {
    let Opened { log, writer, preparer, .. } = open(disk, node).await?;
    spawn_local(writer.run());
    spawn_local(preparer.run());
    let member = |id: u64| (id, Node { address: format!("node-{id}") });
    let replica = Replica::start(Start {
        node,
        address: format!("node-{node}"),
        log: log.clone(),
        apply: machine.apply(),
        membership: None,
        peers: Wire { network: shared.network.clone(), node },
        birth: if node == 1 { Birth::Founds((1..=NODES).map(member).collect()) } else { Birth::Joins },
        timing: Timing::default(),
    });
    Ok((replica.await?, log))
}

impl<M: SimNode> Living<M> {
    /// Everything a node does on its own clock, until its set is dropped.
    async fn work(self: Rc<Self>, roles: Rc<Cell<Role>>) {
        let role = self.replica.role();
        loop {
            let known = *role.borrow();
            if roles.replace(known) != known {
                self.shared.note(|| format!("node {} is {known:?}", self.node));
            }
            self.turn(known);
            tokio::time::sleep(TURN).await;
        }
    }

    fn turn(&self, role: Role) {
        for told in self.machine.told() {
            self.shared.note(|| format!("node {} {told:?}", self.node));
            self.shared.oracle.borrow_mut().told(self.node, self.session, &told);
        }
        if let Role::Follower { leader } = role {
            let verbs = self.machine.forward(leader, now());
            if !verbs.is_empty() {
                self.shared.network.send_verbs(self.node, leader, verbs);
            }
        }
        let mut refused = self.replica.take_refused();
        refused.append(&mut self.withheld.borrow_mut());
        count(&self.shared.counts.refused, refused.len() as u64);
        for (payload, id) in self.machine.turn(self.replica.leads(), &refused, now()) {
            // The library may refuse one proposal and take the next in the same term. That is rare, and what follows from
            // it is where confirms were lost elsewhere: so it is made to happen.
            if self.shared.dice.permille(REFUSED) {
                self.withheld.borrow_mut().push(Refused { id, certain: true });
            } else {
                self.replica.propose(payload, id);
            }
        }
    }

    async fn receive(self: Rc<Self>, mut letters: mpsc::UnboundedReceiver<Letter>) {
        while let Some(letter) = letters.recv().await {
            match letter {
                Letter::Verbs(verbs) => self.machine.deliver(&verbs),
                Letter::Request { request, reply } => {
                    spawn_local(self.clone().answer(request, reply));
                }
            }
        }
    }

    async fn answer(self: Rc<Self>, request: Request, reply: mpsc::UnboundedSender<Answer>) {
        let answer = self.replica.answer(request).await;
        self.look_for_truncation();
        if let Ok(answer) = answer {
            drop(reply.send(answer));
        }
    }

    fn look_for_truncation(&self) {
        if let Some(end) = self.end.get()
            && self.log.point(end.index).ok().flatten() != Some(end)
        {
            count(&self.shared.counts.truncations, 1);
            self.shared.note(|| format!("node {} truncated {}", self.node, end.index));
        }
        self.end.set(self.log.last());
    }

    async fn watch_failure(self: Rc<Self>) {
        let error = self.replica.failed().await;
        let what = format!("node {} failed: {error}", self.node);
        self.shared.oracle.borrow_mut().violated(what);
    }
}

/// What a life is begun with.
struct Dawn<M> {
    shared: Shared,
    node: u64,
    session: u64,
    disk: SimDisk,
    machine: M,
    roles: Rc<Cell<Role>>,
    letters: mpsc::UnboundedReceiver<Letter>,
}

async fn live<M: SimNode>(dawn: Dawn<M>) {
    let Dawn { shared, node, session, disk, machine, roles, letters } = dawn;
    let (replica, log) = match begin(&shared, node, &disk, &machine).await {
        Ok(begun) => begun,
        Err(error) => {
            let what = format!("node {node} does not start: {error}");
            return shared.oracle.borrow_mut().violated(what);
        }
    };
    let living = Rc::new(Living {
        shared,
        node,
        session,
        machine,
        replica,
        log,
        end: Cell::new(None),
        withheld: RefCell::default(),
    });
    spawn_local(living.clone().receive(letters));
    spawn_local(living.clone().watch_failure());
    living.work(roles).await;
}

impl<M: SimNode> World<M> {
    fn start(&mut self, node: u64) {
        self.next_session += 1;
        let session = self.next_session;
        let seat = self.seats.get_mut(&node).expect("a seat");
        let machine = M::born(node, session, self.shared.plant);
        let role = Rc::new(Cell::new(Role::Looking));
        let (door, letters) = mpsc::unbounded_channel();
        self.shared.network.open_door(node, door);
        self.shared.note(|| format!("node {node} starts as {session}"));
        let set = LocalSet::new();
        set.spawn_local(live(Dawn {
            shared: self.shared.clone(),
            node,
            session,
            disk: seat.disk.clone(),
            machine: machine.clone(),
            roles: role.clone(),
            letters,
        }));
        let tasks = Rc::new(RefCell::new(Some(Box::pin(set))));
        let driven = tasks.clone();
        spawn_local(poll_fn(move |context| match driven.borrow_mut().as_mut() {
            Some(set) => set.as_mut().poll(context),
            None => Poll::Ready(()),
        }));
        seat.life = Some(Life { tasks, machine, session, role });
    }

    fn crash(&mut self, node: u64) {
        let shared = self.shared.clone();
        let seat = self.seats.get_mut(&node).expect("a seat");
        let Some(life) = seat.life.take() else { return };
        shared.network.close_door(node);
        seat.disk.cut_power();
        let tasks = life.tasks.borrow_mut().take();
        drop(tasks);
        let seed = shared.dice.throw();
        let keep = match (shared.plant, shared.dice.below(6)) {
            (Plant::LyingSync | Plant::ForgottenVote, _) | (_, 0) => Keep::Nothing,
            (_, 1) => Keep::All,
            (_, 2 | 3) => Keep::Subset(seed),
            (_, 4) => Keep::Torn(seed),
            _ => Keep::Garbage(seed),
        };
        seat.disk = seat.disk.after_crash(keep);
        lie(&seat.disk, shared.plant, 0);
        seat.slow.set(0);
        count(&shared.counts.crashes, 1);
        shared.note(|| format!("node {node} loses power: {keep:?}"));
    }

    /// A leader as it sees itself, else any node.
    fn leader(&self) -> u64 {
        let leads = |(node, seat): (&u64, &Seat<M>)| {
            let life = seat.life.as_ref()?;
            matches!(life.role.get(), Role::Leader { .. }).then_some(*node)
        };
        self.seats.iter().find_map(leads).unwrap_or_else(|| self.any())
    }

    fn any(&self) -> u64 {
        1 + self.shared.dice.below(NODES)
    }

    /// Clients of living nodes wish something now and then.
    fn wish(&self) {
        let dice = &self.shared.dice;
        for seat in self.seats.values() {
            let Some(life) = &seat.life else { continue };
            if life.machine.waiting() >= 32 || !dice.permille(120) {
                continue;
            }
            for _ in 0..=dice.below(6) {
                let value = dice.throw();
                let sequence = life.machine.submit(value);
                self.shared.oracle.borrow_mut().wished(Verb { session: life.session, sequence, value });
            }
        }
    }

    fn isolate(&self, node: u64, inward: bool, outward: bool) {
        for other in (1..=NODES).filter(|other| *other != node) {
            if inward {
                self.shared.network.cut(other, node);
            }
            if outward {
                self.shared.network.cut(node, other);
            }
        }
    }

    fn harm(&mut self) {
        let dice = self.shared.dice.clone();
        let what = match self.shared.plant {
            Plant::LyingSync | Plant::ForgottenVote => 9,
            _ => dice.below(10),
        };
        let leader = self.leader();
        self.shared.note(|| format!("harm {what}, leader {leader}"));
        match what {
            0 | 1 => self.isolate(leader, true, true),
            2 => self.isolate(leader, true, false),
            3 => self.isolate(leader, false, true),
            4 => self.isolate(self.any(), true, true),
            5 => self.crash(leader),
            6 => self.crash(self.any()),
            7 => self.shared.network.weather(20 + dice.below(200), 2_000 + dice.below(60_000)),
            8 => {
                let node = self.any();
                self.seats[&node].slow.set(50_000 + dice.below(900_000));
            }
            _ => (1..=NODES).for_each(|node| self.crash(node)),
        }
    }

    fn heal(&mut self) {
        self.shared.network.heal();
        for node in 1..=NODES {
            self.seats[&node].slow.set(0);
            if self.seats[&node].life.is_none() {
                self.start(node);
            }
        }
        self.shared.note(|| "healed".to_owned());
    }

    /// Runs until enough was committed under changing weather.
    async fn storm(&mut self, batches: u64) {
        let dice = self.shared.dice.clone();
        let millis = |least: u64, more: u64| Duration::from_millis(least + dice.below(more));
        let (mut change, mut harmed) = (now() + millis(2_000, 2_000), false);
        while self.shared.oracle.borrow().batches < batches && now() < LIMIT {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.wish();
            if now() < change {
                continue;
            }
            if harmed {
                self.heal();
            } else {
                self.harm();
            }
            harmed = !harmed;
            change = now() + if harmed { millis(200, 4_000) } else { millis(1_500, 3_000) };
        }
        if now() >= LIMIT {
            let done = self.shared.oracle.borrow().batches;
            self.shared.oracle.borrow_mut().violated(format!("only {done} batches in {LIMIT:?}"));
        }
        self.heal();
    }

    /// Waits until all agree and everybody was answered, then judges.
    async fn rest(&self) {
        let until = now() + REST;
        let all = |done: &dyn Fn(&Life<M>) -> bool| {
            self.seats.values().all(|seat| seat.life.as_ref().is_some_and(done))
        };
        let settled = || {
            let oracle = self.shared.oracle.borrow();
            all(&|life| life.machine.waiting() == 0 && oracle.progress(life.session) == oracle.length())
        };
        while now() < until && !settled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let lives = self.seats.values().filter_map(|seat| seat.life.as_ref());
        let alive: Vec<(u64, usize)> = lives.map(|life| (life.session, life.machine.waiting())).collect();
        self.shared.oracle.borrow_mut().rest(&alive);
    }
}

/// Lets a disk report syncs that it does not make, after so many honest ones.
fn lie(disk: &SimDisk, plant: Plant, honest: u64) {
    let path = match plant {
        Plant::LyingSync => "log/",
        Plant::ForgottenVote => "state",
        _ => return,
    };
    for _ in 0..2_000 {
        disk.inject(OpKind::Sync, path, honest, Fault::Lie);
    }
}

/// One run on this thread, which must be fresh: seeds and clocks are its own.
pub(crate) fn run<M: SimNode>(plan: &Plan) -> Outcome {
    dassie::cluster::seed_thread(mix(plan.seed));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime needs no help");
    LocalSet::new().block_on(&runtime, async {
        BEGAN.set(Some(tokio::time::Instant::now()));
        let dice = Dice::new(plan.seed);
        let words = plan.words.then(Vec::new);
        let shared = Shared {
            dice: dice.clone(),
            network: Network::new(dice.clone(), plan.plant),
            oracle: Rc::default(),
            counts: Rc::default(),
            trace: Rc::new(RefCell::new(Trace { hash: 0, words })),
            plant: plan.plant,
        };
        let seat = |node| {
            let slow = Rc::new(Cell::new(0));
            let disk = timed(SimDisk::new(), &dice, &slow);
            lie(&disk, plan.plant, 8);
            (node, Seat { disk, slow, life: None })
        };
        let mut world: World<M> = World { shared, seats: (1..=NODES).map(seat).collect(), next_session: 0 };
        (1..=NODES).for_each(|node| world.start(node));
        world.storm(plan.batches).await;
        world.rest().await;
        outcome(plan, &world.shared)
    })
}

fn outcome(plan: &Plan, shared: &Shared) -> Outcome {
    let oracle = shared.oracle.borrow();
    let mut trace = shared.trace.borrow_mut();
    Outcome {
        seed: plan.seed,
        batches: oracle.batches,
        leader_changes: oracle.terms().saturating_sub(1),
        truncations: shared.counts.truncations.get(),
        refused: shared.counts.refused.get(),
        voided: oracle.voided,
        crashes: shared.counts.crashes.get(),
        violations: oracle.violations.clone(),
        trace_hash: trace.hash,
        simulated: now(),
        words: trace.words.take().unwrap_or_default(),
    }
}
