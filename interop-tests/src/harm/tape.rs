//! The one history of all threads of a run, on one clock.
//!
//! Owns: the clock, the file. Promises: an event's time is that of the run; what can not be written ends the run.
//! Does not know: protocols, rules.

use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use crate::body;
use crate::history::event::{Damaged, Event, Msg, Op, Outcome};
use crate::history::{Names, Recorder};

/// The one history of all threads, on one clock.
#[derive(Debug)]
pub struct Tape<W: Write> {
    recorder: Mutex<Recorder<W>>,
    start: Instant,
}

impl<W: Write> Tape<W> {
    /// A history that begins now.
    pub fn new(out: W) -> Self {
        Self { recorder: Mutex::new(Recorder::new(out)), start: Instant::now() }
    }

    /// Nanoseconds since the beginning.
    ///
    /// # Panics
    /// After five centuries.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run is shorter than five centuries")
    }

    /// Writes an event down.
    ///
    /// # Panics
    /// When it can not be written: without its history a run is worth nothing, and a full disk is no bug of the broker.
    pub fn record(
        &self,
        times: (u64, u64),
        client: &str,
        outcome: Outcome,
        op: impl FnOnce(&mut Names) -> Op,
    ) {
        let mut recorder = self.recorder.lock().expect("no thread panics while it writes");
        let (client, op) = (recorder.names().name(client), op(recorder.names()));
        let event = Event { t0: times.0, t1: times.1, client, outcome, op };
        recorder.record(&event).expect("the history can be written");
    }

    /// Writes down what the harness itself did.
    pub fn harness(&self, t0: u64, t1: u64, op: impl FnOnce(&mut Names) -> Op) {
        self.record((t0, t1), "harness", Outcome::Ok, op);
    }

    /// Whose body this is. One that does not prove itself is noted as damage, and is nobody's.
    pub(super) fn owner(
        &self,
        run: &str,
        client: &str,
        queue: &str,
        times: (u64, u64),
        body: &[u8],
    ) -> Option<Own> {
        match body::verify(body, run) {
            Ok(identity) => Some(Own { publisher: identity.publisher.to_owned(), seq: identity.seq }),
            Err(damage) => {
                self.damaged(client, queue, times, &damage.to_string());
                None
            }
        }
    }

    /// Writes down that something arrived that can not be right.
    pub(super) fn damaged(&self, client: &str, queue: &str, times: (u64, u64), why: &str) {
        self.record(times, client, Outcome::Ok, |names| {
            Op::Damaged(Damaged { queue: names.name(queue), why: names.name(why) })
        });
    }

    /// Gives back the file, whole.
    pub(super) fn finish(self) -> std::io::Result<W> {
        self.recorder.into_inner().expect("no thread panics while it writes").finish()
    }
}

/// A message's identity, free of the bytes it arrived in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) publisher: String,
    pub(super) seq: u32,
}

impl Own {
    pub(super) fn named(&self, names: &mut Names) -> Msg {
        Msg { publisher: names.name(&self.publisher), seq: self.seq }
    }
}
