//! A producer's retry is told from a message that is sent twice on purpose (ADR 16).
//!
//! Owns: what the leader knows of answers that may not have reached their producer. Promises: a send whose answer has left is never
//! taken for lost; one whose answer was lost with a connection or a node is not stored again when it comes with the same key and the
//! same content; who can not be judged yet waits, at most [`limits::REPEAT_WAIT_MS`].
//! Does not know: layouts of messages, sockets.

use std::time::Duration;

use bytes::BufMut;

use super::api::{ConnectionId, Message, Op, Send, Verb};
use super::core::{Core, Map, Work};
use super::link::weight;
use super::message::resolve_placed;
use super::recent::{SendKey, Sent};
use super::record::Kind;
use super::topology::Owner;
use crate::limits;

/// From an answer's way out of the core to the certainty that its client has it.
const QUIET: Duration = Duration::from_millis(limits::SEND_SETTLED_MS);
/// So long who can not be judged waits.
const WAIT: Duration = Duration::from_millis(limits::REPEAT_WAIT_MS);
/// Shortest wait.
const STEP: Duration = Duration::from_millis(20);
/// A send that was born so long before the one that is stored was held up somewhere while its producer tried again. ms.
const LATE_MS: i64 = 2_000;
/// Clients wait three seconds by default, a little less on a busy machine's clock. ms.
const PATIENCE_MS: i64 = 2_900;
/// From arrival to arrival of two attempts with one birth: a message that is sent again on purpose has a birth of its own.
const ATTEMPT_MS: i64 = 1_000;
const ATTEMPT: Duration = Duration::from_millis(1_000);
/// Lost connections that one note names; further ones are named by the next.
const GONE_PER_NOTE: usize = 4_096;
const LATE: Duration = Duration::from_millis(2_000);
/// Who takes longer to be answered may have been given up: no client waits less by default.
const SLOW: Duration = Duration::from_millis(1_000);
/// What is remembered of connections and slow sends is looked through when there is so much.
const SWEEP: usize = 4_096;

/// A look at what is answered.
struct Look {
    /// All batches of the term before it were applied.
    before: u64,
    /// What front ends are asked.
    number: u64,
    /// When all of them had said that they are as far.
    since: Option<Duration>,
}

/// A connection that is gone.
struct Ended {
    term: u64,
    /// The answers of what was decided before that batch had left by then.
    settled_before: u64,
    at: Duration,
    /// Its last send was decided in that batch; no note has told of it yet.
    untold: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Repeats {
    /// Sends that are decided and not applied, by key: their numbers.
    deciding: Map<u64, u64>,
    /// Keys of sends on their way, of which a second attempt is here.
    awaited: Map<u64, ()>,
    /// Sends that were answered late, by key: when they arrived, and when that was.
    slow: Map<u64, (Duration, Duration)>,
    /// Producers' connections that went with answers that may not have left.
    ended: std::collections::BTreeMap<(u64, u64), Ended>,
    look: Option<Look>,
    looks: u64,
    /// The last note said: before that batch.
    noted: u64,
    /// Who waits, since when.
    held: Map<ConnectionId, (u64, Duration)>,
    /// When one of them is looked at again.
    wake: Option<Duration>,
    /// One of them may be judged now.
    retry: bool,
    /// When this node began to lead, or heard that another one does.
    since: Duration,
}

/// What a send is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    New,
    Repeated,
    Later,
}

impl Core {
    /// A send that is none of its own is done with here; any other comes back.
    pub(crate) fn unless_repeated(&mut self, id: ConnectionId, verb: Verb) -> Option<Verb> {
        let Op::Send(send) = &verb.op else { return Some(verb) };
        if send.key == 0 {
            return Some(verb);
        }
        match self.judge(id, send) {
            Verdict::New => {
                self.repeats.held.remove(&id);
                Some(verb)
            }
            Verdict::Later => {
                let now = self.monotonic();
                let key = send.key;
                let since = self.repeats.held.get(&id).filter(|(of, _)| *of == key).map(|(_, since)| *since);
                let since = since.unwrap_or(now);
                self.repeats.held.insert(id, (key, since));
                // What is on its way has no time of its own: it is asked about again and again.
                let wake = (since + WAIT).max(now + STEP);
                self.repeats.wake = Some(self.repeats.wake.map_or(wake, |before| before.min(wake)));
                self.stall(id, verb);
                None
            }
            Verdict::Repeated => {
                self.repeats.held.remove(&id);
                let send = send.clone();
                let weight = weight(&verb);
                let sequence = self.number(Work::Verb { connection: id, verb, weight });
                self.write_repeated(sequence, id, &send);
                None
            }
        }
    }

    /// Writes that a send is the one that is stored; false: that is forgotten.
    pub(crate) fn write_repeated(&mut self, sequence: u64, id: ConnectionId, send: &Send) -> bool {
        let Some(first) = self.state.recent.last_of(send.key).copied() else {
            if let Some(pending) = self.pending(sequence) {
                pending.repeats = false;
            }
            return false;
        };
        let queue_id = match send.waits {
            None => self.queue_id_of(&send.topic, first.queue),
            Some(_) => None,
        };
        if let Some(pending) = self.pending(sequence) {
            pending.repeats = true;
            pending.queue_id = queue_id.or(send.queue_id).unwrap_or(0);
        }
        self.write_key(sequence, id, send.key, 0);
        self.counters.repeated += 1;
        true
    }

    /// Writes whose send the records that follow are.
    pub(crate) fn write_key(&mut self, sequence: u64, id: ConnectionId, key: u64, messages: u32) {
        let key = SendKey { key, owner: self.owner_of(id), messages };
        self.record(sequence, Kind::SendKey, 64, |buf, _| key.put(buf));
        let ordinal = self.overlay.as_ref().map_or(0, |overlay| overlay.ordinal);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.last_send = Some(ordinal);
        }
        if messages > 0 {
            self.repeats.deciding.insert(key.key, sequence);
        }
    }

    /// That send is applied.
    pub(crate) fn send_resolved(&mut self, key: u64, arrived: Duration, sequence: u64) {
        let now = self.monotonic();
        let awaited = self.repeats.awaited.remove(&key).is_some();
        if key != 0 && (awaited || arrived + SLOW <= now) {
            if self.repeats.slow.len() >= SWEEP {
                self.repeats.slow.retain(|_, (_, answered)| *answered + LATE > now);
            }
            self.repeats.slow.insert(key, (arrived, now));
        }
        if key != 0 && self.repeats.deciding.get(&key) == Some(&sequence) {
            self.repeats.deciding.remove(&key);
        }
    }

    fn judge(&mut self, id: ConnectionId, send: &Send) -> Verdict {
        let first = self.state.recent.last_of(send.key).copied();
        if first.is_some_and(|first| first.reused) {
            return Verdict::New;
        }
        let deciding = self.repeats.deciding.get(&send.key).copied();
        if let Some(pending) = deciding.and_then(|sequence| self.pending(sequence)).filter(|p| !p.done) {
            let Work::Verb { connection, verb: Verb { op: Op::Send(before), .. }, .. } = &pending.work else {
                return Verdict::New;
            };
            let (by, arrived, before) = (*connection, before.arrived, before.messages.first().cloned());
            // By one connection at once: on purpose. Long behind it: the client waits for the first one no more.
            if by == id && !before.is_some_and(|before| self.is_long_behind(&before.message, arrived, send)) {
                return Verdict::New;
            }
            self.repeats.awaited.insert(send.key, ());
            return Verdict::Later;
        }
        let Some(first) = first else { return Verdict::New };
        if first.messages as usize != send.messages.len() {
            return Verdict::New;
        }
        let Some(after) = self.born_after(&first, send) else { return Verdict::New };
        if after <= -LATE_MS || self.was_given_up(&first, send, after) {
            return Verdict::Repeated;
        }
        // Who has the connection still has all its answers.
        if first.owner == self.owner_of(id) {
            return Verdict::New;
        }
        let (ended, here, silent) =
            (self.ended_unsettled(&first), self.is_here(&first), self.is_silent(&first.owner));
        if !ended.unwrap_or(!first.settled) {
            return Verdict::New;
        }
        if !here {
            return Verdict::Repeated;
        }
        let since = self.repeats.held.get(&id).filter(|(of, _)| *of == send.key).map(|(_, since)| *since);
        if since.is_none_or(|since| self.monotonic() < since + WAIT) {
            return Verdict::Later;
        }
        if silent { Verdict::Repeated } else { Verdict::New }
    }

    /// Was `send` born long after `first`, which arrived then? Java's async sends have one birth for all attempts.
    fn is_long_behind(&self, first: &Message, arrived: Duration, send: &Send) -> bool {
        let Some(again) = send.messages.first() else { return false };
        match self.semantics.born_after(&self.stored_in_memory(first), &again.message) {
            Some(0) => send.arrived >= arrived + ATTEMPT,
            after => after.is_some_and(|after| after >= LATE_MS),
        }
    }

    /// Had its producer given the first one up when it sent this one, born `after` ms later? All times are how long ago something
    /// was, ms.
    fn was_given_up(&self, first: &Sent, send: &Send, after: i64) -> bool {
        let now = self.monotonic();
        let ago = |at: Duration| i64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(i64::MAX);
        let slow = self.repeats.slow.get(&send.key);
        let decided = i64::try_from(self.now().saturating_sub(first.log_time)).unwrap_or(i64::MAX);
        // What the leader before had stored is answered by its front end when this one begins.
        let taken_over = !first.settled && first.term != self.state.term;
        let (arrived, answered) = match slow {
            Some((arrived, answered)) => (ago(*arrived), ago(*answered)),
            None if taken_over => (decided, ago(self.repeats.since)),
            None => (decided, decided),
        };
        let this = ago(send.arrived);
        if after == 0 {
            return arrived - this >= ATTEMPT_MS;
        }
        // Log time does not count how long nobody led.
        let unknown = slow.is_none() && first.settled && first.term != self.state.term;
        if unknown {
            return false;
        }
        let sent_before_the_answer = this >= answered && (slow.is_some() || taken_over);
        let waited = after - (answered - this).max(0);
        (after >= LATE_MS && sent_before_the_answer)
            || waited >= PATIENCE_MS
            || (after >= PATIENCE_MS && !first.settled && answered - this <= PATIENCE_MS)
    }

    /// Did its connection end before its answer had certainly left? `None`: it did not end, as far as this leader knows.
    fn ended_unsettled(&self, first: &Sent) -> Option<bool> {
        let ended = self.repeats.ended.get(&(first.owner.session, first.owner.connection))?;
        (ended.term == first.term).then_some(first.ordinal >= ended.settled_before)
    }

    /// Its connection is here, or may be about to be presented.
    fn is_here(&self, first: &Sent) -> bool {
        let Owner { session, connection } = first.owner;
        if session == self.session {
            return self.connections.get(&connection).is_some_and(|connection| !connection.gone);
        }
        self.guest_is_here(&first.owner) || (first.by_guest && self.front_is_awaited(session))
    }

    /// How long after the first one all of `send` was born, ms; `None`: it is another one.
    fn born_after(&mut self, first: &Sent, send: &Send) -> Option<i64> {
        let mut after = None;
        for (offset, again) in (first.offset..).zip(&send.messages) {
            // What waited may have left its queue.
            let written = (offset == first.offset).then_some(first.place);
            let place = self.entry(first.queue, offset).map(|entry| entry.place()).or(written)?;
            let (message, _) = resolve_placed(place, &*self.log, &mut self.later.cache).ok()?;
            after = Some(self.semantics.born_after(&message, &again.message)?);
        }
        after
    }

    /// A connection is gone, or its node can not be reached.
    pub(crate) fn producer_gone(&mut self, id: ConnectionId) {
        let settled_before = self.state.recent.settled_before;
        let (Some(connection), Some(overlay)) = (self.connections.get(&id), &self.overlay) else { return };
        self.repeats.held.remove(&id);
        let last = connection.last_send.filter(|ordinal| *ordinal >= settled_before);
        if last.is_none() {
            return;
        }
        let (term, at, owner) = (overlay.term, self.monotonic(), self.owner_of(id));
        if self.repeats.ended.len() >= SWEEP {
            let window = Duration::from_millis(limits::RECENT_SEND_MS);
            self.repeats.ended.retain(|_, ended| ended.at + window > at);
        }
        self.repeats.ended.entry((owner.session, owner.connection)).or_insert(Ended {
            term,
            settled_before,
            at,
            untold: last,
        });
        self.repeats.retry = true;
    }

    /// A node that could not be reached came back, and says itself what it answered.
    pub(crate) fn producers_are_back(&mut self, session: u64) {
        self.repeats.ended.retain(|(of, _), _| *of != session);
    }

    /// Another term: what this leader knew is in the state, or lost.
    pub(crate) fn forget_repeats(&mut self) {
        let deciding = std::mem::take(&mut self.repeats.deciding);
        let looks = self.repeats.looks;
        let since = self.monotonic();
        self.repeats = Repeats { deciding, looks, since, ..Repeats::default() };
    }

    /// Verbs that were decided wait again.
    pub(crate) fn nothing_is_deciding(&mut self) {
        self.repeats.deciding.clear();
    }

    /// Judges who waits, and notes which answers have left.
    pub(crate) fn serve_repeats(&mut self) {
        let now = self.monotonic();
        if std::mem::take(&mut self.repeats.retry) || self.repeats.wake.is_some_and(|at| at <= now) {
            self.repeats.wake = None;
            self.retry_stalled();
        }
        let (term, ordinal) = (self.state.term, self.state.ordinal);
        let Some(look) = &self.repeats.look else {
            let open = |sent: &Sent| sent.term == term && sent.ordinal >= self.repeats.noted;
            if self.state.recent.last().is_some_and(open) {
                self.repeats.looks += 1;
                let number = self.repeats.looks;
                self.repeats.look = Some(Look { before: ordinal, number, since: None });
                self.ask_fronts(number);
                self.serve_repeats();
            }
            return;
        };
        let (number, before) = (look.number, look.before);
        match look.since {
            None if self.fronts_have_seen(number) => {
                if let Some(look) = &mut self.repeats.look {
                    look.since = Some(now);
                }
            }
            Some(since) if since + QUIET <= now => {
                self.repeats.look = None;
                self.repeats.noted = before;
                self.note_answered(before);
            }
            _ => {}
        }
    }

    /// Writes that the answers of all before that batch have left, but for those of connections that are gone.
    fn note_answered(&mut self, before: u64) {
        let mut gone = Vec::new();
        for ((session, connection), ended) in &mut self.repeats.ended {
            if ended.untold.is_some() && gone.len() < GONE_PER_NOTE {
                ended.untold.take_if(|last| *last < before);
                gone.push((*session, *connection));
            }
        }
        let sequence = self.number(Work::Unanswered);
        self.record(sequence, Kind::Answered, 24 + gone.len() * 16, |buf, _| {
            buf.put_u64_le(before);
            buf.put_u64_le(gone.len() as u64);
            for (session, connection) in gone {
                buf.put_u64_le(session);
                buf.put_u64_le(connection);
            }
        });
    }

    /// When [`Core::serve_repeats`] has something to do.
    pub(crate) fn repeats_deadline(&self) -> Option<Duration> {
        let look = self.repeats.look.as_ref().and_then(|look| look.since).map(|since| since + QUIET);
        self.repeats.wake.into_iter().chain(look).min()
    }

    /// Number of a queue in its topic.
    pub(crate) fn queue_id_of(&self, topic: &str, uid: u64) -> Option<u32> {
        let topic = self.state.topology.topic(topic)?;
        topic.queues.iter().position(|queue| *queue == uid).and_then(|place| u32::try_from(place).ok())
    }
}
