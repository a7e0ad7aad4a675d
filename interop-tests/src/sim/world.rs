//! One run: nodes, clients, faults, and the judgement.
//!
//! Owns: the nodes' lives and disks, the plan of faults, the trace. Promises: everything that happens follows from the seed;
//! a crash takes all of a node at once, between two steps, and leaves its disk as a power cut would.
//! Does not know: what clients say, how a node is made.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dassie::broker::link::Shard;
use dassie::cluster::Role;
use dassie_storage::Apply;
use dassie_storage::sim::{Fault, Keep, OpKind, SimDisk};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::clients::{self, Client, Habits, TOPICS};
use super::desk::{Desk, PARTS, STEADY, Target};
use super::dice::{Dice, mix};
use super::life::{Dawn, Face, live};
use super::network::Network;
use super::oracle::Oracle;
use super::plant::Plant;
use super::story::Story;
use super::time::{self, NodeClock, now};
use super::waiting::{RETRY, Waiting};
use super::{Outcome, Plan};
use crate::check;
use crate::history::event;

pub(crate) const NODES: u64 = 3;
/// Longest life of a run, in simulated time.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a healed cluster may take to serve, and how long to answer everybody and to agree.
const HEALS: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(60);
/// Longer than any message of a calm cluster waits for its time, or for the last question about it.
const WAITS: Duration = Duration::from_secs(12);

/// Counted over all lives.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) refused: Cell<u64>,
    pub(crate) truncations: Cell<u64>,
    pub(crate) crashes: Cell<u64>,
    pub(crate) checkpoints: Cell<u64>,
    pub(crate) retired: Cell<u64>,
}

pub(crate) fn count(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// What all parts of a run share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) dice: Dice,
    pub(crate) network: Network,
    pub(crate) oracle: Rc<RefCell<Oracle>>,
    pub(crate) story: Story,
    pub(crate) counts: Rc<Counts>,
    pub(crate) plant: Plant,
    pub(crate) habits: Habits,
    pub(crate) waiting: Rc<RefCell<Waiting>>,
    /// Clients go home.
    pub(crate) over: Rc<Cell<bool>>,
    /// Living nodes, as clients see them.
    faces: Rc<RefCell<BTreeMap<u64, Rc<Face>>>>,
    trace: Rc<RefCell<Trace>>,
}

/// A hash over everything that was observed; loud when somebody wants to read it.
struct Trace {
    hash: u64,
    loud: bool,
}

impl Shared {
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        let mut trace = self.trace.borrow_mut();
        let line = format!("{:?} {}", now(), what());
        for byte in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..byte.len()].copy_from_slice(byte);
            trace.hash = mix(trace.hash ^ u64::from_le_bytes(word));
        }
        if trace.loud {
            println!("{line}");
        }
    }

    /// Where a client connects: mostly to a node that serves, now and then to any that lives.
    pub(crate) fn door(&self) -> Option<Shard> {
        let faces = self.faces.borrow();
        let any = self.dice.permille(50);
        let open: Vec<Shard> = faces
            .values()
            .filter(|face| any || face.ready.get())
            .filter_map(|face| face.shard.borrow().clone())
            .collect();
        let which = self.dice.below(open.len().max(1) as u64);
        open.into_iter().nth(usize::try_from(which).expect("few"))
    }
}

/// One life of a node: all its tasks live in a set of their own, so that a crash can drop them together.
struct Life {
    tasks: Rc<RefCell<Option<Pin<Box<LocalSet>>>>>,
    session: u64,
    face: Rc<Face>,
}

/// A place for lives: the node's disk and clock outlive them.
struct Seat {
    disk: SimDisk,
    slow: Rc<Cell<u64>>,
    clock: NodeClock,
    life: Option<Life>,
}

/// The run.
struct World {
    shared: Shared,
    seats: BTreeMap<u64, Seat>,
    next_session: u64,
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

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A task of a node that panics ends alone here, where the product's thread would end the process: it must not go unseen.
pub(crate) fn note_panic(what: &str) {
    PANICS.with_borrow_mut(|all| all.push(what.replace('\n', " ")));
}

impl World {
    fn start(&mut self, node: u64) {
        self.next_session += 1;
        let session = self.next_session;
        let seat = self.seats.get_mut(&node).expect("a seat");
        let face = Rc::<Face>::default();
        let (door, letters) = mpsc::unbounded_channel();
        self.shared.network.open_door(node, door);
        self.shared.faces.borrow_mut().insert(node, face.clone());
        self.shared.note(|| format!("node {node} starts as {session}"));
        let set = LocalSet::new();
        set.spawn_local(live(Dawn {
            shared: self.shared.clone(),
            node,
            session,
            disk: timed(seat.disk.clone(), &self.shared.dice, &seat.slow),
            prompt: seat.disk.clone(),
            clock: seat.clock.clone(),
            face: face.clone(),
            letters,
        }));
        let tasks = Rc::new(RefCell::new(Some(Box::pin(set))));
        let driven = tasks.clone();
        spawn_local(poll_fn(move |context| match driven.borrow_mut().as_mut() {
            Some(set) => set.as_mut().poll(context),
            None => Poll::Ready(()),
        }));
        seat.life = Some(Life { tasks, session, face });
    }

    fn crash(&mut self, node: u64) {
        let shared = self.shared.clone();
        let seat = self.seats.get_mut(&node).expect("a seat");
        let Some(life) = seat.life.take() else { return };
        shared.network.close_door(node);
        shared.faces.borrow_mut().remove(&node);
        seat.disk.cut_power();
        life.face.shard.take();
        life.face.applier.take();
        let tasks = life.tasks.borrow_mut().take();
        drop(tasks);
        let seed = shared.dice.throw();
        let keep = match (shared.plant, shared.dice.below(6)) {
            (Plant::LyingSync | Plant::ForgottenVote | Plant::LyingPages | Plant::LyingDirectory, _)
            | (_, 0) => Keep::Nothing,
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

    fn leads(&self, node: u64) -> bool {
        let life = self.seats[&node].life.as_ref();
        life.is_some_and(|life| matches!(life.face.role.get(), Role::Leader { .. }))
    }

    /// A leader as it sees itself, else any node.
    fn leader(&self) -> u64 {
        (1..=NODES).find(|node| self.leads(*node)).unwrap_or_else(|| self.any())
    }

    fn any(&self) -> u64 {
        1 + self.shared.dice.below(NODES)
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

    fn jump_clocks(&self) {
        let dice = &self.shared.dice;
        for seat in self.seats.values() {
            let far =
                [3_000, 3_600_000, 10 * 365 * 24 * 3_600_000][usize::try_from(dice.below(3)).expect("few")];
            let millis =
                i64::try_from(dice.below(2 * far)).expect("small") - i64::try_from(far).expect("small");
            seat.clock.jump(millis);
        }
    }

    fn harm(&mut self) {
        let dice = self.shared.dice.clone();
        let what = match self.shared.plant {
            Plant::LyingSync | Plant::ForgottenVote | Plant::LyingPages | Plant::LyingDirectory => 9,
            _ => dice.below(13),
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
            9 => (1..=NODES).for_each(|node| self.crash(node)),
            10 | 11 => {
                if let Some(life) = &self.seats[&leader].life {
                    life.face.transfer.set(Some(1 + leader % NODES));
                }
            }
            _ => self.jump_clocks(),
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

    fn violated(&self, what: String) {
        self.shared.oracle.borrow_mut().violated(what);
    }

    /// Runs until enough was committed under changing weather.
    async fn storm(&mut self, batches: u64) {
        let dice = self.shared.dice.clone();
        let millis = |least: u64, more: u64| Duration::from_millis(least + dice.below(more));
        let (mut change, mut harmed) = (now() + millis(1_000, 3_000), false);
        while self.shared.oracle.borrow().batches < batches && now() < LIMIT {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if now() < change {
                continue;
            }
            if harmed {
                self.heal();
            } else {
                self.harm();
            }
            harmed = !harmed;
            change = now() + if harmed { millis(200, 4_500) } else { millis(1_500, 4_000) };
        }
        if now() >= LIMIT {
            let done = self.shared.oracle.borrow().batches;
            self.violated(format!("only {done} batches in {LIMIT:?}"));
        }
        self.heal();
    }

    /// A connection to a node that serves, once there is one.
    async fn desk(&self, name: &str, incarnation: u64) -> Option<Desk> {
        let until = now() + HEALS;
        while now() < until {
            let faces: Vec<Rc<Face>> = self.shared.faces.borrow().values().cloned().collect();
            let serving = faces.iter().filter(|face| face.ready.get());
            let leads = |face: &&Rc<Face>| matches!(face.role.get(), Role::Leader { .. });
            if let [face] = serving.filter(leads).collect::<Vec<_>>()[..]
                && let Some(shard) = face.shard.borrow().clone()
            {
                return Some(Desk::new(&self.shared, shard.connect(), name, incarnation));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.violated(format!("nobody serves {HEALS:?} after healing"));
        None
    }

    async fn answered(&self, desk: &mut Desk, what: &str) -> bool {
        while !desk.is_idle() && !desk.is_lost() {
            desk.listen(Duration::from_millis(5)).await;
        }
        if desk.is_lost() {
            self.violated(format!("{what}: a healthy cluster does not answer"));
        }
        !desk.is_lost()
    }

    /// Declares what is there for ever.
    async fn declare(&self) {
        clients::tell(&self.shared);
        let Some(mut desk) = self.desk("harness", 0).await else { return };
        for op in clients::declarations() {
            desk.ask(op);
            if !self.answered(&mut desk, "declaring").await {
                return;
            }
        }
        desk.end();
    }

    /// A message through every queue, then everything is drained and every topic read from its beginning.
    async fn drain(&self) {
        let story = &self.shared.story;
        let Some(mut desk) = self.desk("last", 1).await else { return };
        desk.answer_for_halves();
        let until = now() + WAITS;
        while now() < until && !desk.is_lost() {
            desk.listen(until - now()).await;
        }
        story.note(story.name("harness"), event::Op::Healed);
        for (seq, name) in (0..).zip(STEADY) {
            let target = Target { exchange: "", key: name, place: name, sure: true, confirmed: true };
            desk.publish(target, seq, 200);
        }
        for (seq, topic) in (100..).zip(TOPICS) {
            desk.send_rmq(topic, None, seq..seq + 1, 200);
        }
        if !self.answered(&mut desk, "publishing").await {
            return;
        }
        // What others held comes back when the node has seen that they are gone.
        for round in 0..2_000_u64 {
            let before = desk.got_nothing;
            STEADY.iter().for_each(|name| desk.get(name, false));
            if round == 0 {
                TOPICS.iter().for_each(|topic| (0..PARTS).for_each(|part| desk.resume(topic, part)));
            }
            if !self.answered(&mut desk, "draining").await {
                return;
            }
            (0..STEADY.len() as u64).for_each(|_| desk.settle(0, 1, dassie::broker::api::Settle::Ack));
            if desk.got_nothing == before + STEADY.len() as u64 {
                break;
            }
        }
        self.read_topics(&mut desk, "consuming").await;
        TOPICS.iter().for_each(|topic| (0..PARTS).for_each(|part| desk.commit(topic, part)));
        if !self.answered(&mut desk, "committing").await {
            return;
        }
        desk.scans = true;
        desk.cursors.values_mut().for_each(|cursor| cursor.next = Some(0));
        self.read_topics(&mut desk, "scanning").await;
        // Offsets of a topic that is not there yet begin at 0, too.
        desk.cursors.entry((RETRY, 0)).or_default().next = Some(0);
        loop {
            let before = desk.fetched_nothing;
            desk.fetch(RETRY, 0, 0);
            if !self.answered(&mut desk, "what was sent back").await {
                return;
            }
            if desk.fetched_nothing > before {
                break;
            }
        }
        let waiting = self.shared.waiting.borrow();
        waiting.wrong_returns(self.shared.habits.trims()).for_each(|wrong| self.violated(wrong));
        desk.end();
    }

    async fn read_topics(&self, desk: &mut Desk, what: &str) {
        loop {
            let before = desk.fetched_nothing;
            TOPICS.iter().for_each(|topic| (0..PARTS).for_each(|part| desk.fetch(topic, part, 0)));
            if !self.answered(desk, what).await {
                return;
            }
            if desk.fetched_nothing == before + TOPICS.len() as u64 * u64::from(PARTS) {
                return;
            }
        }
    }

    /// Waits until all have applied everything, and compares.
    async fn agree(&self) {
        let until = now() + REST;
        let settled = || {
            let oracle = self.shared.oracle.borrow();
            let done = |life: &Life| oracle.progress(life.session) == oracle.length();
            self.seats.values().all(|seat| seat.life.as_ref().is_some_and(done))
        };
        while now() < until && !settled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !settled() {
            self.violated(format!("the nodes did not agree in {REST:?}"));
        }
        for (node, seat) in &self.seats {
            let applier = seat.life.as_ref().and_then(|life| life.face.applier.take());
            if let Some(applier) = applier
                && let Some(point) = applier.applied()
            {
                self.shared.oracle.borrow_mut().digest(*node, point.index, applier.digest());
                if let Err(wrong) = applier.audit_messages() {
                    self.violated(format!("node {node}: {wrong}"));
                }
            }
        }
        let compared = self.shared.oracle.borrow().compared;
        if compared < 2 {
            self.violated("no states were compared".to_owned());
        }
    }

    fn judge(&self) {
        PANICS.take().into_iter().for_each(|panic| self.violated(panic));
        let history = self.shared.story.history();
        let report = check::all(&history);
        for violation in report.findings().violations() {
            self.violated(format!("{}: {}", violation.rule, violation.detail));
        }
        if self.shared.trace.borrow().loud {
            (0..history.events().len()).for_each(|index| println!("#{index} {}", history.line(index)));
            println!("{report}");
        }
    }
}

/// Lets a disk report syncs that it does not make, after so many honest ones.
fn lie(disk: &SimDisk, plant: Plant, honest: u64) {
    let path = match plant {
        Plant::LyingSync => "log/",
        Plant::ForgottenVote => "state",
        Plant::LyingPages => "pages/",
        Plant::LyingDirectory => "",
        _ => return,
    };
    let kind = if plant == Plant::LyingDirectory { OpKind::SyncDir } else { OpKind::Sync };
    for _ in 0..2_000 {
        disk.inject(kind, path, honest, Fault::Lie);
    }
}

/// One run on this thread, which must be fresh: seeds and clocks are its own.
pub(crate) fn run(plan: &Plan) -> Outcome {
    dassie::cluster::seed_thread(mix(plan.seed));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime needs no help");
    LocalSet::new().block_on(&runtime, async {
        time::begin();
        let dice = Dice::new(plan.seed);
        let shared = Shared {
            dice: dice.clone(),
            network: Network::new(dice.clone(), plan.plant),
            oracle: Rc::default(),
            story: Story::default(),
            counts: Rc::default(),
            trace: Rc::new(RefCell::new(Trace { hash: 0, loud: plan.loud })),
            plant: plan.plant,
            over: Rc::default(),
            habits: Habits::thrown(&dice),
            waiting: Rc::default(),
            faces: Rc::default(),
        };
        let seat = |node| {
            let disk = SimDisk::new();
            lie(&disk, plan.plant, 8);
            let clock = NodeClock::drifting(i64::try_from(dice.below(41)).expect("small") - 20);
            (node, Seat { disk, slow: Rc::default(), clock, life: None })
        };
        let mut world = World { shared, seats: (1..=NODES).map(seat).collect(), next_session: 0 };
        (1..=NODES).for_each(|node| world.start(node));
        world.declare().await;
        let clients: Vec<_> = (1..)
            .zip(world.shared.habits.trades())
            .map(|(number, trade)| {
                let shared = world.shared.clone();
                spawn_local(Client { shared, trade, name: format!("p{number}"), seq: 0 }.live())
            })
            .collect();
        world.storm(plan.batches).await;
        world.shared.over.set(true);
        for client in clients {
            drop(client.await);
        }
        world.drain().await;
        world.agree().await;
        world.judge();
        outcome(plan, &world.shared)
    })
}

fn outcome(plan: &Plan, shared: &Shared) -> Outcome {
    let oracle = shared.oracle.borrow();
    Outcome {
        seed: plan.seed,
        batches: oracle.batches,
        leader_changes: oracle.terms().saturating_sub(1),
        truncations: shared.counts.truncations.get(),
        refused: shared.counts.refused.get(),
        voided: oracle.voided,
        crashes: shared.counts.crashes.get(),
        checkpoints: shared.counts.checkpoints.get(),
        retired: shared.counts.retired.get(),
        violations: oracle.violations.clone(),
        trace_hash: shared.trace.borrow().hash,
        simulated: now(),
    }
}
