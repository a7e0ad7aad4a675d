//! Moves: a message goes from one place to the next as a new reference to its old body (house D3).
//!
//! Owns: sending back, and the writing of a move, whoever owes it. Promises: the new reference and the settlement of the old entry
//! stand in one batch, so that no crash loses or doubles a message; a large body is not stored twice; a place named by a client
//! moves nothing unless an entry of an applied record stands exactly there.
//! Does not know: properties, layouts (they are asked of [`super::api::Semantics`]), when something is due.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use super::api::{
    ConnectionId, MOVED, Op, Publish, QueueKind, QueueSpec, QueueUid, Refusal, Reply, SendBack, Step,
    Stepped, StoredMessage, Verb, Waits,
};
use super::core::{Core, Work};
use super::link::weight;
use super::message::{Extent, resolve_placed};
use super::read::located;
use super::topology::{Change, TOPIC_EXCHANGE_PREFIX, WAITING_VHOST};
use crate::limits;

/// Read and write, in RocketMQ's bits.
const READ_WRITE: u32 = 6;
/// Bytes of a move's records beside its message.
const OVERHEAD: usize = 512;

/// One message where it stands now.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) queue: QueueUid,
    pub(crate) offset: u64,
    pub(crate) message: StoredMessage,
    /// Where its body lies.
    pub(crate) body: Vec<Extent>,
}

/// A message on its way.
#[derive(Debug)]
pub(crate) struct Move {
    /// Queue and offset of the old entry, if it is settled by this.
    pub(crate) settles: Option<(QueueUid, u64)>,
    /// Where its body lies; empty: it is written again.
    pub(crate) extents: Vec<Extent>,
    /// What it becomes.
    pub(crate) stepped: Stepped,
}

/// Something that must exist before a message can go there.
#[derive(Debug, Clone)]
pub(crate) enum Need {
    /// A queue for waiting messages.
    Waiting(Waits),
    /// A topic with at least so many message queues.
    Topic(Arc<str>, u32),
}

/// Name of the queue where such messages wait.
pub(crate) fn waiting_name(waits: Waits) -> Arc<str> {
    match waits {
        Waits::Delay(level) => format!("delay.{level}").into(),
        Waits::Half => "half".into(),
    }
}

impl Core {
    // ---- sending back, looking at one

    /// A message comes again later, or never.
    pub(crate) fn send_back(&mut self, id: ConnectionId, verb: Verb) {
        let Op::SendBack(back) = &verb.op else { return };
        match self.judge_back(back) {
            Ok(step) => self.take_move(id, verb, &step),
            Err(refusal) => {
                self.reply(id, verb.request, Err(refusal));
                self.finished(id, &verb);
            }
        }
    }

    /// What becomes of a message that is sent back.
    pub(crate) fn judge_back(&mut self, back: &SendBack) -> Result<Move, Refusal> {
        let lost = || Refusal::Invalid(format!("look message by offset failed, {}", back.position));
        // Its entry keeps the body alive. One whose removal is on its way does not: this move would come behind it.
        let definition = self.decided().queue_by_uid(back.queue).ok_or_else(lost)?;
        if definition.spec.kind != QueueKind::Topic {
            return Err(lost());
        }
        let topic = Arc::clone(&definition.spec.name);
        let offset = self.place_of(back.queue, back.position).ok_or_else(lost)?;
        if self.is_settling(back.queue, offset) {
            return Err(lost());
        }
        let source = self.source(back.queue, offset).ok_or_else(lost)?;
        let step = Step::SentBack { back, topic: &topic, levels: self.later.levels() };
        self.step(source, &step, false).map_err(|reason| Refusal::Invalid(reason.to_string()))
    }

    /// Looks for one message by its position.
    pub(crate) fn view(&mut self, queue: QueueUid, position: u64) -> Result<Reply, Refusal> {
        let lost = || Refusal::Invalid(format!("can not find message by the offset, {position}"));
        let queue = if queue == MOVED { self.moved_from(position).ok_or_else(lost)? } else { queue };
        let definition = self.state.topology.queue_by_uid(queue).cloned().ok_or_else(lost)?;
        if definition.spec.kind != QueueKind::Topic && definition.vhost != WAITING_VHOST {
            return Err(lost());
        }
        let offset = self.place_of(queue, position).ok_or_else(lost)?;
        let entry = self.entry(queue, offset).ok_or_else(lost)?;
        let topic = Arc::clone(&definition.spec.name);
        let queues = self.state.topology.topic(&topic).map(|t| Arc::clone(&t.queues));
        let queue_id = queues.and_then(|queues| queues.iter().position(|uid| *uid == queue)).unwrap_or(0);
        let queue_id = u32::try_from(queue_id).unwrap_or(0);
        Ok(Reply::Viewed { delivery: located(offset, &entry, false, 0), topic, queue_id })
    }

    /// The queue with a message that was moved away from `position`, whose segment may be gone.
    fn moved_from(&mut self, position: u64) -> Option<QueueUid> {
        let mut queues: Vec<QueueUid> = self
            .state
            .queues
            .values()
            .filter(|queue| !queue.homes.is_empty())
            .map(|queue| queue.uid)
            .collect();
        queues.sort_unstable();
        queues.into_iter().find(|queue| self.place_of(*queue, position).is_some())
    }

    /// The offset of the entry that stands exactly at `position`: positions rise along a queue.
    fn place_of(&mut self, queue: QueueUid, position: u64) -> Option<u64> {
        let index = &self.state.queues.get(&queue)?.index;
        let (mut low, mut high) = (index.head(), index.next());
        while low < high {
            let middle = low.midpoint(high);
            match self.entry(queue, middle)?.position.cmp(&position) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Is a settlement of this message on its way?
    fn is_settling(&self, queue: QueueUid, offset: u64) -> bool {
        let settled = |work: &Work| match work {
            Work::Settled { queue: of, ranges, .. } if *of == queue => {
                ranges.iter().any(|(first, count)| (*first..*first + *count).contains(&offset))
            }
            _ => false,
        };
        self.pending.iter().any(|pending| !pending.done && settled(&pending.work))
    }

    // ---- moves

    /// The message at `offset`, unless it is settled. May read from disk.
    ///
    /// # Panics
    /// When the log does not hold what the index says.
    pub(crate) fn source(&mut self, queue: QueueUid, offset: u64) -> Option<Source> {
        if self.state.queues.get(&queue)?.cursor.is_settled(offset) {
            return None;
        }
        let entry = self.entry(queue, offset)?;
        match resolve_placed(entry.place(), &*self.log, &mut self.later.cache) {
            Ok((message, body)) => Some(Source { queue, offset, message, body }),
            Err(error) => panic!("queue {queue}, offset {offset}: {error}"),
        }
    }

    /// What becomes of a message by `step`.
    pub(crate) fn step(&self, source: Source, step: &Step<'_>, settle: bool) -> Result<Move, Arc<str>> {
        let stepped = self.semantics.step(&source.message, step)?;
        let copied = stepped.send.message.body_len <= limits::MOVED_BODY_COPIED;
        Ok(Move {
            settles: settle.then_some((source.queue, source.offset)),
            extents: if copied { Vec::new() } else { source.body },
            stepped,
        })
    }

    /// Decides a client's move; it is answered when it is applied.
    pub(crate) fn take_move(&mut self, id: ConnectionId, verb: Verb, step: &Move) {
        self.prepare(&step.stepped);
        let weight = weight(&verb);
        let sequence = self.number(Work::Verb { connection: id, verb, weight });
        self.write_move(sequence, step);
    }

    /// Decides a move that the leader owes. If its records are lost, the state still says that it is owed.
    pub(crate) fn owe_move(&mut self, step: &Move) {
        self.prepare(&step.stepped);
        let sequence = self.number(Work::Unanswered);
        self.write_move(sequence, step);
    }

    /// Makes what a message needs at its next place, in front of it.
    fn prepare(&mut self, stepped: &Stepped) {
        let need = match stepped.waits {
            Some(waits) => Need::Waiting(waits),
            None => Need::Topic(Arc::clone(&stepped.topic), stepped.queue_id.saturating_add(1)),
        };
        self.ensure(&need);
    }

    /// Makes what is needed, unless it is there.
    pub(crate) fn ensure(&mut self, need: &Need) {
        if !self.need_change(need).is_empty() {
            let sequence = self.number(Work::Needed(need.clone()));
            self.write_need(sequence, need);
        }
    }

    /// Writes what a need lacks; false: nothing.
    pub(crate) fn write_need(&mut self, sequence: u64, need: &Need) -> bool {
        let changes = self.need_change(need);
        if !changes.is_empty() {
            self.write_changes(sequence, &changes);
        }
        !changes.is_empty()
    }

    fn need_change(&self, need: &Need) -> Vec<Change> {
        match need {
            Need::Waiting(waits) => {
                let name = waiting_name(*waits);
                if self.decided().waiting_queue(&name).is_some() {
                    return Vec::new();
                }
                let spec = QueueSpec {
                    name,
                    kind: QueueKind::Classic,
                    durable: true,
                    exclusive: false,
                    auto_delete: false,
                    arguments: Bytes::new(),
                };
                let uid = self.decided().next_uid;
                vec![Change::Queue { uid, vhost: WAITING_VHOST, spec, owner: None }]
            }
            // One that is there keeps its size: the message goes to one of its queues.
            Need::Topic(name, _) if self.decided().topic(name).is_some() => Vec::new(),
            Need::Topic(name, queues) => {
                let queues = (*queues).clamp(1, limits::TOPIC_QUEUES_MAX);
                self.topic_change(name, queues, queues, READ_WRITE).into_iter().collect()
            }
        }
    }

    /// Queue where such messages wait, once it is made.
    pub(crate) fn waiting_queue(&self, waits: Waits) -> Option<QueueUid> {
        self.decided().waiting_queue(&waiting_name(waits))
    }

    /// Writes a move's records as those of verb `sequence`; false: its target is gone.
    pub(crate) fn write_move(&mut self, sequence: u64, step: &Move) -> bool {
        let stepped = &step.stepped;
        let message = &stepped.send.message;
        let (targets, queue_id, publish) = match stepped.waits {
            Some(waits) => {
                let Some(queue) = self.waiting_queue(waits) else { return false };
                (vec![queue], shown_queue(waits), None)
            }
            None => {
                let Some(topic) = self.decided().topic(&stepped.topic).cloned() else { return false };
                let queue_id = stepped.queue_id % topic.write_queues.max(1);
                let Some(queue) = topic.queues.get(queue_id as usize) else { return false };
                let publish = Publish {
                    channel: 0,
                    exchange: format!("{TOPIC_EXCHANGE_PREFIX}{}", stepped.topic).into(),
                    routing_key: Arc::clone(&stepped.send.tag),
                    also: Vec::new(),
                    mandatory: false,
                    confirm: 0,
                    message: message.clone(),
                };
                let (targets, in_memory) = self.topic_targets(*queue, &publish);
                (targets, queue_id, in_memory.then_some(publish))
            }
        };
        let inline = if step.extents.is_empty() { message.body_len as usize } else { 0 };
        let bytes = message.bytes.len() - message.body_len as usize + inline;
        self.make_room(bytes + targets.len() * 24 + OVERHEAD);
        let now = self.stamp();
        self.write_one(sequence, message, &targets, &step.extents, queue_id, now);
        if let Some((queue, offset)) = step.settles {
            self.write_settlement(sequence, queue, &[(offset, 1)]);
        }
        if let Some(pending) = self.pending(sequence) {
            pending.queue_id = queue_id;
            pending.in_memory = publish.map(Box::new);
        }
        true
    }
}

/// Message queue that the record of a waiting message names.
pub(crate) fn shown_queue(waits: Waits) -> u32 {
    match waits {
        Waits::Delay(level) => level.saturating_sub(1),
        Waits::Half => 0,
    }
}
