//! Transactions of RocketMQ: half messages, their end, and the question what became of them.
//!
//! ```text
//!   prepared send ─► half ─┬─(commit)───► its topic, one batch: new reference + settlement
//!                          ├─(rollback)─► settlement
//!                          └─(no word)──► CheckBack to a producer; after the last time to its own topic
//! ```
//!
//! Owns: who may end what, and when who is asked. Promises: a transaction ends once, by its own group, with the exact place of its
//! half message; how often was asked is in the log (release records), so that a new leader goes on counting.
//! Does not know: what a message says, sockets.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::api::{ConnectionId, EndTransaction, Event, Op, QueueUid, Refusal, Reply, Step, Verb};
use super::core::{Core, Work};
use super::later::Budget;
use super::link::weight;
use super::moving::Move;
use super::read::located;
use super::record::Kind;
use super::state::put_ranges;

/// The half messages that are open, as the leader sees them.
#[derive(Debug, Default)]
pub(crate) struct Halves {
    pub(crate) queue: Option<QueueUid>,
    /// Everything before it stands in `due`, unless it is settled.
    pub(crate) next: u64,
    /// Log time and offset of those to ask about. Ended ones leave when their time comes.
    due: BTreeSet<(u64, u64)>,
    /// Their end is on its way into the log.
    pub(crate) ending: BTreeSet<u64>,
}

impl Core {
    // ---- the end

    /// A producer says how its transaction ended.
    pub(crate) fn end_transaction(&mut self, id: ConnectionId, verb: Verb) {
        let Op::EndTransaction(end) = &verb.op else { return };
        match self.judge_end(end) {
            Err(refusal) => {
                self.reply(id, verb.request, Err(refusal));
                self.finished(id, &verb);
            }
            Ok((queue, step)) => {
                let offset = end.offset;
                self.later.halves.ending.insert(offset);
                match step {
                    Some(step) => self.take_move(id, verb, &step),
                    None => {
                        let weight = weight(&verb);
                        let sequence = self.number(Work::Verb { connection: id, verb, weight });
                        self.write_settlement(sequence, queue, &[(offset, 1)]);
                    }
                }
            }
        }
    }

    /// The same again after its records were lost; false: its target is gone.
    ///
    /// # Errors
    /// Why it can not end any more.
    pub(crate) fn redo_end(&mut self, sequence: u64, end: &EndTransaction) -> Result<bool, Refusal> {
        let (queue, step) = self.judge_end(end)?;
        self.later.halves.ending.insert(end.offset);
        match step {
            Some(step) => Ok(self.write_move(sequence, &step)),
            None => {
                self.write_settlement(sequence, queue, &[(end.offset, 1)]);
                Ok(true)
            }
        }
    }

    /// Nothing is changed unless place and group are right: both come from a client.
    fn judge_end(&mut self, end: &EndTransaction) -> Result<(QueueUid, Option<Move>), Refusal> {
        let refusal = |text: &str| Refusal::Invalid(text.to_owned());
        let lost = || refusal("Find prepared transaction message failed");
        let queue = self.later.halves.queue.ok_or_else(lost)?;
        let entry = self.entry(queue, end.offset).ok_or_else(lost)?;
        if entry.position != end.position {
            return Err(refusal("The commit log offset wrong"));
        }
        if self.later.halves.ending.contains(&end.offset) {
            return Err(lost());
        }
        let source = self.source(queue, end.offset).ok_or_else(lost)?;
        let half = self.semantics.half(&source.message).ok_or_else(lost)?;
        if half.group != end.group {
            return Err(refusal("The producer group wrong"));
        }
        if !end.commit {
            return Ok((queue, None));
        }
        let asked = self.asked(queue, end.offset);
        let step = Step::Committed { position: end.position, asked, levels: self.later.levels() };
        match self.step(source, &step, true) {
            Ok(step) => Ok((queue, Some(step))),
            Err(reason) => Err(Refusal::Invalid(reason.to_string())),
        }
    }

    fn asked(&self, queue: QueueUid, offset: u64) -> u32 {
        self.state.queues.get(&queue).and_then(|q| q.attempts.get(&offset)).copied().unwrap_or(0)
    }

    // ---- asking

    /// A connection answers for a producer group, or does not any more.
    pub(crate) fn answer_for(&mut self, id: ConnectionId, group: &Arc<str>, answers: bool) {
        let later = &mut self.later;
        let known = later.answers.entry(id).or_default();
        if answers {
            if known.insert(Arc::clone(group)) {
                later.answering.entry(Arc::clone(group)).or_default().push_back(id);
            }
            return;
        }
        known.remove(group);
        if known.is_empty() {
            later.answers.remove(&id);
        }
        self.answers_no_more(id, group);
    }

    /// A connection is gone.
    pub(crate) fn answers_nothing(&mut self, id: ConnectionId) {
        for group in self.later.answers.remove(&id).unwrap_or_default() {
            self.answers_no_more(id, &group);
        }
    }

    fn answers_no_more(&mut self, id: ConnectionId, group: &Arc<str>) {
        if let Some(connections) = self.later.answering.get_mut(group) {
            connections.retain(|known| *known != id);
            if connections.is_empty() {
                self.later.answering.remove(group);
            }
        }
    }

    /// Asks about half messages whose time has come; answers when the next one's comes.
    pub(crate) fn serve_halves(&mut self, now: u64, budget: &mut Budget) -> Option<u64> {
        let queue = self.later.halves.queue?;
        self.note_halves(queue, now, budget);
        while let Some((due, offset)) = self.later.halves.due.first().copied() {
            let settled = self.state.queues.get(&queue).is_none_or(|q| q.cursor.is_settled(offset));
            if settled {
                self.later.halves.due.pop_first();
                continue;
            }
            if due > now {
                return Some(due);
            }
            if budget.is_spent() {
                return None;
            }
            self.later.halves.due.pop_first();
            if self.later.halves.ending.contains(&offset) {
                continue;
            }
            self.ask(queue, offset, now, budget);
        }
        None
    }

    /// Takes half messages that are new, or that an earlier leader knew, into the order of their times.
    fn note_halves(&mut self, queue: QueueUid, now: u64, budget: &mut Budget) {
        loop {
            let Some(state) = self.state.queues.get(&queue) else { return };
            let offset = state.cursor.next_unsettled(self.later.halves.next);
            self.later.halves.next = offset;
            if offset >= state.index.next() || budget.is_spent() {
                return;
            }
            self.later.halves.next = offset + 1;
            let Some(stored) = self.logged_at(queue, offset) else { continue };
            let Some(source) = self.source(queue, offset) else { continue };
            budget.take(0);
            let asked = u64::from(self.asked(queue, offset));
            let settings = &self.later.settings;
            let wait = match self.semantics.half(&source.message).and_then(|half| half.not_before_ms) {
                Some(wait) => wait,
                None => settings.transaction_timeout_ms,
            };
            let due = stored
                .saturating_add(wait)
                .saturating_add(asked.saturating_mul(settings.transaction_check_interval_ms));
            // One that was asked about before this leader began: not all of them at once now.
            let due =
                if asked > 0 { due.max(now.saturating_add(settings.transaction_timeout_ms)) } else { due };
            self.later.halves.due.insert((due, offset));
        }
    }

    /// One question more, or the last one is over.
    fn ask(&mut self, queue: QueueUid, offset: u64, now: u64, budget: &mut Budget) {
        let Some(source) = self.source(queue, offset) else { return };
        budget.take(source.message.bytes.len());
        if self.asked(queue, offset) >= self.later.settings.transaction_check_max {
            match self.step(source, &Step::GivenUp, true) {
                Ok(step) => {
                    self.later.halves.ending.insert(offset);
                    self.owe_move(&step);
                }
                Err(reason) => tracing::error!("half message {offset} can not be put aside: {reason}"),
            }
            return;
        }
        let next = now.saturating_add(self.later.settings.transaction_check_interval_ms);
        self.later.halves.due.insert((next, offset));
        let sequence = self.number(Work::Unanswered);
        self.record(sequence, Kind::Release, 64, |buf, _| put_ranges(buf, queue, &[(offset, 1)]));
        let group = self.semantics.half(&source.message).map(|half| half.group);
        let asked = self.asked(queue, offset);
        let connection = group.and_then(|group| {
            let connections = self.later.answering.get_mut(&group)?;
            connections.rotate_left(1);
            connections.back().copied()
        });
        if let (Some(connection), Some(entry)) = (connection, self.entry(queue, offset)) {
            self.event(connection, Event::CheckBack(located(offset, &entry, true, asked + 1)));
        }
    }

    /// A look by whoever tests this: open half messages that stand in the order of their times.
    #[cfg(test)]
    pub(crate) fn halves_noted(&self) -> usize {
        self.later.halves.due.len()
    }

    /// The end of a transaction is applied.
    pub(crate) fn ended(&mut self, end: &EndTransaction) -> Result<Reply, Refusal> {
        self.later.halves.ending.remove(&end.offset);
        Ok(Reply::Ok)
    }
}
