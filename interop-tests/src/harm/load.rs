//! What the clients of a run do together: declare, send and consume until told to end, heal, drain.
//!
//! Owns: when traffic begins and ends, the first thing that went wrong beyond what the history can say.
//! Promises: a connection lost by a crash is a matter of course, anything else the server says is a failure; every wait ends.
//! Does not know: what a protocol's traffic is made of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::broker::Ports;
use super::tape::Tape;
use super::{amqp, later, rocketmq};
use crate::history::event::{Op, Outcome};
use crate::sim::dice::Dice;
use crate::wire::Error;

/// What the rest of a run may take once the harm is over.
const END_WITHIN: Duration = Duration::from_secs(120);
/// Silence after which consumers have what there is.
const SILENCE: Duration = Duration::from_millis(1_500);
/// The least that all clients together must have confirmed, for each harm.
const CONFIRMS_PER_HARM: u64 = 50;

/// Whose clients take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worlds {
    /// AMQP.
    Amqp,
    /// RocketMQ.
    Rocketmq,
    /// Both, and messages cross in both directions.
    Both,
}

impl Worlds {
    /// By its name on a command line.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "amqp" => Some(Self::Amqp),
            "rocketmq" => Some(Self::Rocketmq),
            "both" => Some(Self::Both),
            _ => None,
        }
    }

    pub(super) fn has_amqp(self) -> bool {
        self != Self::Rocketmq
    }

    pub(super) fn has_rocketmq(self) -> bool {
        self != Self::Amqp
    }
}

/// What all threads of a run share.
#[derive(Debug)]
pub struct Load<W: Write = BufWriter<File>> {
    /// The history.
    pub tape: Tape<W>,
    /// Whose clients take part.
    pub worlds: Worlds,
    pub(super) name: String,
    pub(super) ports: Ports,
    pub(super) publishing: AtomicBool,
    pub(super) consuming: AtomicBool,
    /// Confirmed copies in AMQP queues without first deliveries, roughly: a crash blurs it.
    pub(super) backlog: AtomicI64,
    /// Where RocketMQ records were seen.
    pub(super) places: rocketmq::Places,
    /// What must come later, or never.
    pub(super) ledger: later::Ledger,
    /// When a message last arrived, on the tape's clock.
    pub(super) last_arrival: AtomicU64,
    /// Publishers that have not ended.
    pub(super) publishers: AtomicU64,
    /// Consumers by the port that they connected from.
    consumers: Mutex<HashMap<u16, String>>,
    confirmed: AtomicU64,
    arrived: AtomicU64,
    blocked: AtomicU64,
    /// How long a publisher waits for any answer before that is a failure, in ms.
    patience: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Load {
    pub(super) fn new(tape: Tape<BufWriter<File>>, name: String, ports: Ports, worlds: Worlds) -> Self {
        Self {
            tape,
            worlds,
            name,
            ports,
            publishing: AtomicBool::new(true),
            consuming: AtomicBool::new(true),
            backlog: AtomicI64::new(0),
            places: rocketmq::Places::default(),
            ledger: later::Ledger::default(),
            last_arrival: AtomicU64::new(0),
            publishers: AtomicU64::new(0),
            consumers: Mutex::default(),
            confirmed: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            patience: AtomicU64::new(30_000),
            failure: Mutex::new(None),
        }
    }

    /// Messages confirmed to their publishers so far.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// Messages that arrived at consumers so far, each as often as it came.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }

    /// How often a publisher was told that it must wait.
    #[must_use]
    pub fn blocked(&self) -> u64 {
        self.blocked.load(Ordering::SeqCst)
    }

    pub(super) fn note_blocked(&self) {
        self.blocked.fetch_add(1, Ordering::SeqCst);
    }

    /// Publishers wait so long for any answer before that is a failure.
    pub fn be_patient(&self, patience: Duration) {
        self.patience.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.load(Ordering::SeqCst))
    }

    pub(super) fn note_confirms(&self, count: u64) {
        self.confirmed.fetch_add(count, Ordering::SeqCst);
    }

    pub(super) fn note_consumer(&self, port: u16, name: &str) {
        self.consumers.lock().expect("no thread panics here").insert(port, name.to_owned());
    }

    /// What consumers that connected from there held may have been given to others, in that span.
    pub fn may_have_lost(&self, ports: &[u16], span: (u64, u64)) {
        let consumers = self.consumers.lock().expect("no thread panics here");
        for name in ports.iter().filter_map(|port| consumers.get(port)) {
            self.tape.record(span, name, Outcome::Ok, |_| Op::Lost { queue: None });
        }
    }

    pub(super) fn note_arrival(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.last_arrival.store(self.tape.now(), Ordering::SeqCst);
    }

    pub(super) fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::SeqCst)
    }

    pub(super) fn is_consuming(&self) -> bool {
        self.consuming.load(Ordering::SeqCst)
    }

    /// Keeps the first thing that went wrong beyond what the history can say.
    pub(super) fn fail(&self, what: String) {
        self.failure.lock().expect("no thread panics here").get_or_insert(what);
    }

    /// Whether everything is as it should be, as far as the clients can say at once.
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn well(&self) -> Result<(), String> {
        self.failure.lock().expect("no thread panics here").clone().map_or(Ok(()), Err)
    }

    /// What a client thread makes of the end of a connection.
    pub(super) fn ended(&self, who: &str, error: &Error) {
        // 320: somebody told the broker to end.
        if !matches!(error, Error::Gone(_) | Error::Refused(320, _)) {
            self.fail(format!("{who}: {error}"));
        }
        thread::sleep(Duration::from_millis(10));
    }

    pub(super) fn declare(&self) -> Result<(), String> {
        if self.worlds.has_rocketmq() {
            let refused = |error| format!("RocketMQ: can not declare: {error}");
            rocketmq::declare(self).map_err(refused)?;
            later::declare(self).map_err(refused)?;
        }
        if self.worlds.has_amqp() {
            amqp::declare(self).map_err(|error| format!("AMQP: can not declare: {error}"))?;
        }
        Ok(())
    }

    /// What must have happened for the run to prove anything: so many harms of this name.
    pub(super) fn plan(&self, harm: &str, count: u64) {
        let redeliveries = if self.worlds.has_amqp() { count } else { 0 };
        let plans = [("confirms", count * CONFIRMS_PER_HARM), ("redeliveries", redeliveries), (harm, count)];
        for (what, count) in plans {
            let now = self.tape.now();
            self.tape.harness(now, now, |names| Op::Plan { what: names.name(what), count });
        }
    }

    /// Starts all clients.
    pub(super) fn begin<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, dice: &Dice) {
        if self.worlds.has_amqp() {
            amqp::begin(self, scope, dice);
        }
        if self.worlds.has_rocketmq() {
            rocketmq::begin(self, scope, dice);
            later::begin(self, scope, dice);
        }
    }

    pub(super) fn end(&self) {
        self.publishing.store(false, Ordering::SeqCst);
        self.consuming.store(false, Ordering::SeqCst);
    }

    /// The end of all harm: publishers finish, a message goes through every place, consumers take what there is.
    pub(super) fn heal(&self) -> Result<(), String> {
        let deadline = Instant::now() + END_WITHIN;
        self.publishing.store(false, Ordering::SeqCst);
        while self.publishers.load(Ordering::SeqCst) > 0 {
            self.wait(deadline, "publishers wait for their confirms")?;
        }
        let now = self.tape.now();
        self.tape.harness(now, now, |_| Op::Healed);
        if self.worlds.has_amqp() {
            amqp::last_messages(self)?;
        }
        if self.worlds.has_rocketmq() {
            rocketmq::last_messages(self)?;
        }
        let silence = u64::try_from(SILENCE.as_nanos()).expect("a short time");
        let healed = self.tape.now();
        while self.tape.now() < self.last_arrival.load(Ordering::SeqCst).max(healed) + silence {
            self.wait(deadline, "messages still come")?;
        }
        Ok(())
    }

    fn wait(&self, deadline: Instant, what: &str) -> Result<(), String> {
        self.well()?;
        if Instant::now() > deadline {
            return Err(format!("after {} s {what}", END_WITHIN.as_secs()));
        }
        thread::sleep(Duration::from_millis(10));
        Ok(())
    }

    /// Empties every AMQP queue; reads every topic from its first message to its last.
    pub(super) fn drain(&self) -> Result<(), String> {
        let deadline = Instant::now() + END_WITHIN;
        if self.worlds.has_amqp() {
            amqp::drain(self, deadline)?;
        }
        if self.worlds.has_rocketmq() {
            rocketmq::scan(self, deadline)?;
            later::settle(self, deadline)?;
        }
        self.well()
    }
}
