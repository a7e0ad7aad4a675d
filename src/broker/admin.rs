//! What operators ask of topics and groups: removing a topic, named values, figures of all queues, moving a group.
//!
//! Owns: the rules of those verbs. Promises: a removed topic takes its messages, offsets and locks with it in one record; a
//! group is moved in all its queues in one batch.
//! Does not know: what a named value means, what tools make of the figures.

use std::sync::Arc;

use bytes::Bytes;

use super::api::{
    ConnectionId, Offset, Op, QueueStats, QueueUid, Refusal, Reply, ResetOffsets, ResetTo, Verb,
};
use super::core::{Core, Work};
use super::decide::{Outcome, Redone, answer, not_found};
use super::state::FORGET;
use super::topology::{Change, Topic};
use crate::limits;

/// A group's new offset in a queue.
type Move = (QueueUid, Offset);

impl Core {
    pub(crate) fn delete_topic(&self, topic: &Arc<str>) -> Outcome {
        if self.decided().topic(topic).is_none() {
            return answer(Ok(Reply::Ok));
        }
        Outcome::Changes(self.with_auto_delete(0, Change::RemoveTopic(Arc::clone(topic))), 0)
    }

    pub(crate) fn put_setting(&self, space: &Arc<str>, name: &Arc<str>, value: Option<&Bytes>) -> Outcome {
        let known = self.decided().setting(space, name);
        if known == value {
            return answer(Ok(Reply::Ok));
        }
        let (space, name) = (Arc::clone(space), Arc::clone(name));
        let Some(value) = value else {
            return Outcome::Changes(vec![Change::RemoveSetting(space, name)], 0);
        };
        if known.is_none() && self.decided().setting_count() >= limits::SETTINGS_MAX {
            let text = format!("a shard keeps at most {} settings", limits::SETTINGS_MAX);
            return answer(Err(Refusal::Limit(text)));
        }
        if space.len() + name.len() + value.len() > limits::SETTING_BYTES_MAX {
            let text = format!("a setting has at most {} bytes", limits::SETTING_BYTES_MAX);
            return answer(Err(Refusal::Invalid(text)));
        }
        Outcome::Changes(vec![Change::Setting(space, name, value.clone())], 0)
    }

    /// Figures of one topic, or of all in which the group has offsets.
    pub(crate) fn stats(
        &mut self,
        verb: &Verb,
        topic: Option<&Arc<str>>,
        group: Option<&str>,
    ) -> Result<Reply, Refusal> {
        let topology = &self.state.topology;
        let topics = match topic {
            Some(name) => match topology.topic(name) {
                Some(topic) => vec![Arc::clone(topic)],
                None => return Err(not_found("topic", name, &self.vhost_name(verb.vhost))),
            },
            None => {
                let offsets = group.and_then(|group| self.state.group_offsets.get(group));
                let knows = |topic: &&Arc<Topic>| {
                    offsets.is_some_and(|o| topic.queues.iter().any(|uid| o.contains_key(uid)))
                };
                topology.topics().filter(knows).cloned().collect()
            }
        };
        let stats = topics.iter().map(|topic| (Arc::clone(&topic.name), self.topic_stats(topic, group)));
        Ok(Reply::Stats(stats.collect()))
    }

    fn topic_stats(&mut self, topic: &Topic, group: Option<&str>) -> Vec<QueueStats> {
        let used = topic.write_queues.max(topic.read_queues) as usize;
        let mut stats = Vec::with_capacity(used);
        for uid in topic.queues.iter().take(used) {
            let (min, max) = self.bounds(*uid);
            let time_of = |core: &mut Self, offset: Offset| match (min..max).contains(&offset) {
                // Who asks how far a group is wants to know it of the other queues, too.
                true => core.store_time(*uid, offset).unwrap_or(0),
                false => 0,
            };
            let time_before =
                |core: &mut Self, offset: Offset| offset.checked_sub(1).map_or(0, |last| time_of(core, last));
            let latest = time_before(self, max);
            let mut stats_here =
                QueueStats { min, max, latest, group: None, reached: 0, waiting: 0, earliest: 0 };
            if let Some(group) = group {
                let offset = self.state.group_offsets.get(group).and_then(|o| o.get(uid)).copied();
                stats_here.group = offset;
                stats_here.reached = offset.map_or(0, |offset| time_before(self, offset));
                stats_here.waiting = time_of(self, offset.unwrap_or(min));
                stats_here.earliest = time_of(self, min);
            }
            stats.push(stats_here);
        }
        stats
    }

    /// Groups with an offset in the topic, by name.
    pub(crate) fn groups_of(&self, topic: &str) -> Vec<Arc<str>> {
        let Some(topic) = self.state.topology.topic(topic) else { return Vec::new() };
        let offsets = self.state.group_offsets.iter();
        let has = |kept: &std::collections::BTreeMap<QueueUid, Offset>| {
            topic.queues.iter().any(|uid| kept.contains_key(uid))
        };
        let mut names: Vec<Arc<str>> = offsets.filter(|(_, o)| has(o)).map(|(g, _)| Arc::clone(g)).collect();
        names.sort_unstable();
        names
    }

    /// Moves a group, or forgets where it is.
    pub(crate) fn set_offsets(&mut self, id: ConnectionId, verb: Verb) {
        let moves = match self.moves(&verb) {
            Ok(moves) => moves,
            Err(_) if self.topology_in_flight() => return self.stall(id, verb),
            Err(refusal) => return self.reply(id, verb.request, Err(refusal)),
        };
        if moves.is_empty() {
            let reply = self.moved(&verb.op);
            return self.reply(id, verb.request, Ok(reply));
        }
        let group = group_of(&verb.op);
        let sequence = self.number(Work::Verb { connection: id, verb, weight: 0 });
        self.write_moves(sequence, &group, &moves);
    }

    pub(crate) fn redo_offsets(&mut self, sequence: u64, verb: &Verb) -> Redone {
        match self.moves(verb) {
            Ok(moves) if moves.is_empty() => Redone::Answer(Ok(self.moved(&verb.op))),
            Ok(moves) => {
                self.write_moves(sequence, &group_of(&verb.op), &moves);
                Redone::Written
            }
            Err(refusal) => Redone::Answer(Err(refusal)),
        }
    }

    fn write_moves(&mut self, sequence: u64, group: &str, moves: &[Move]) {
        self.make_room((moves.len() * (64 + group.len())).min(limits::BATCH_TARGET / 2));
        for (queue, offset) in moves {
            self.write_offset(sequence, group, *queue, *offset);
        }
    }

    fn moves(&mut self, verb: &Verb) -> Result<Vec<Move>, Refusal> {
        match &verb.op {
            Op::ResetOffsets(reset) => self.reset_moves(verb, reset),
            Op::ForgetOffsets { group } => {
                let kept = self.state.group_offsets.get(group).into_iter().flat_map(|o| o.keys());
                Ok(kept.map(|queue| (*queue, FORGET)).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn reset_moves(&mut self, verb: &Verb, reset: &ResetOffsets) -> Result<Vec<Move>, Refusal> {
        let mut moves = Vec::new();
        for (_, uid) in
            self.meant(reset).ok_or_else(|| not_found("topic", &reset.topic, &self.vhost_name(verb.vhost)))?
        {
            let (min, max) = self.bounds(uid);
            let wanted = match reset.to {
                ResetTo::Time(time) => self.offset_at(uid, time)?,
                ResetTo::Offset(offset) => offset.clamp(min, max),
                ResetTo::End => max,
            };
            let known = self.state.group_offsets.get(&reset.group).and_then(|o| o.get(&uid)).copied();
            let further = known.is_some_and(|known| wanted > known);
            if known != Some(wanted) && (reset.force || !further) {
                moves.push((uid, wanted));
            }
        }
        Ok(moves)
    }

    /// Message queue and identity of each queue that is meant; `None`: there is no such topic or queue.
    fn meant(&self, reset: &ResetOffsets) -> Option<Vec<(u32, QueueUid)>> {
        let topic = self.state.topology.topic(&reset.topic)?;
        let all =
            (0..).zip(topic.queues.iter().copied()).take(topic.read_queues.max(topic.write_queues) as usize);
        let meant: Vec<_> = all.filter(|(id, _)| reset.queue_id.is_none_or(|only| only == *id)).collect();
        (!meant.is_empty()).then_some(meant)
    }

    fn moved(&self, op: &Op) -> Reply {
        match op {
            Op::ResetOffsets(reset) => self.group_offsets(reset),
            _ => Reply::Ok,
        }
    }

    /// Where the group is now.
    pub(crate) fn group_offsets(&self, reset: &ResetOffsets) -> Reply {
        let offsets = self.state.group_offsets.get(&reset.group);
        let queues = self.meant(reset).unwrap_or_default();
        let known = |(id, uid): (u32, QueueUid)| Some((id, *offsets?.get(&uid)?));
        Reply::GroupOffsets(queues.into_iter().filter_map(known).collect())
    }
}

fn group_of(op: &Op) -> Arc<str> {
    match op {
        Op::ResetOffsets(reset) => Arc::clone(&reset.group),
        Op::ForgetOffsets { group } => Arc::clone(group),
        _ => "".into(),
    }
}
