//! What must hold at every moment, looked for by whoever tests the broker.
//!
//! Owns: the counting. Promises: changes nothing; what is wrong has a name. Does not know: how it could come to that.

use std::collections::BTreeMap;

use super::api::{Offset, Op, QueueKind, QueueUid, Verb};
use super::core::{Core, Work};
use super::message::{Cache, resolve_placed};
use super::read::offsets;

impl Core {
    /// Counts again what the state counts as it goes, and looks whether the leader has lost a message or holds one twice. Walks
    /// the whole state.
    ///
    /// # Errors
    /// What does not fit.
    pub fn audit(&mut self) -> Result<(), String> {
        let counted = self.with_pages(|state, pages| state.count_live(pages));
        if counted != self.state.segments {
            return Err(format!("live in segments: {:?}, counted {counted:?}", self.state.segments));
        }
        let (messages, all) = (self.state.messages, self.state.count_messages());
        if messages != all {
            return Err(format!("{messages} messages, counted {all}"));
        }
        if self.is_ready() {
            for uid in self.runtimes.keys() {
                self.audit_queue(*uid)?;
            }
        }
        Ok(())
    }

    /// Reads every message that lives, from this node's own log.
    ///
    /// # Errors
    /// The first that can not be read.
    pub fn audit_messages(&mut self) -> Result<(), String> {
        let mut cache = Cache::default();
        let uids: Vec<QueueUid> = self.state.queues.keys().copied().collect();
        for uid in uids {
            let Some(queue) = self.state.queues.get(&uid) else { continue };
            let (cursor, end) = (queue.cursor.clone(), queue.index.next());
            let mut offset = cursor.next_unsettled(cursor.floor());
            while offset < end {
                let Some(entry) = self.entry(uid, offset) else {
                    return Err(format!("queue {uid}: {offset} has no entry"));
                };
                resolve_placed(entry.place(), &*self.log, &mut cache)
                    .map_err(|error| format!("queue {uid}: {offset} can not be read: {error}"))?;
                offset = cursor.next_unsettled(offset + 1);
            }
        }
        Ok(())
    }

    /// How many queues there are, and live messages in them.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.state.queues.len() as u64, self.state.count_messages())
    }

    /// Every message handed out and not settled is held by one reader, came back, or is about to be settled.
    fn audit_queue(&self, uid: QueueUid) -> Result<(), String> {
        let (Some(queue), Some(runtime)) = (self.state.queues.get(&uid), self.runtimes.get(&uid)) else {
            return Ok(());
        };
        if queue.kind == QueueKind::Topic {
            return Ok(());
        }
        let mut places: BTreeMap<Offset, &str> = BTreeMap::new();
        let mut twice = None;
        let mut put = |offset: Offset, place| {
            if let Some(other) = places.insert(offset, place) {
                twice = twice.take().or(Some(format!("queue {uid}: {offset} is {other} and {place}")));
            }
        };
        let mut leased = 0;
        for reader in self.readers.values().filter(|reader| reader.queue == uid) {
            leased += reader.leases.len() as u64;
            reader.leases.iter().for_each(|offset| put(*offset, "leased"));
        }
        runtime.ready.iter().for_each(|offset| put(offset, "ready"));
        let (mut giving_back, mut purged) = (0, false);
        for pending in &self.pending {
            match &pending.work {
                // It settles what came back, and is decided anew with all that nobody holds if its record is lost.
                // The name may be another queue's already, or nobody's, when its deletion is on its way, too.
                Work::Verb { verb: Verb { op: Op::PurgeQueue { name }, vhost, .. }, .. } if !pending.done => {
                    purged |= self.state.topology.queue(*vhost, name).is_some_and(|queue| queue.uid == uid);
                }
                Work::Settled { queue, ranges, .. } if *queue == uid && !pending.done => {
                    offsets(ranges).for_each(|offset| put(offset, "settling"));
                }
                Work::Dead(moving) if moving.dying.queue == uid && !pending.done => {
                    put(moving.dying.offset, "dying");
                }
                Work::Commit(commit) => {
                    if !pending.done {
                        offsets(commit.settled_of(uid)).for_each(|offset| put(offset, "settling"));
                    }
                    offsets(commit.requeued_of(uid)).for_each(|offset| {
                        giving_back += 1;
                        put(offset, "given back");
                    });
                }
                _ => {}
            }
        }
        for (_, died, _) in self.dying().filter(|(queue, ..)| *queue == uid) {
            offsets([&died]).for_each(|offset| put(offset, "dead"));
        }
        if let Some(twice) = twice {
            return Err(twice);
        }
        if runtime.unacked != leased + giving_back {
            return Err(format!(
                "queue {uid}: {} unacked, {leased} leased, {giving_back} given back",
                runtime.unacked
            ));
        }
        let mut offset = queue.cursor.next_unsettled(queue.cursor.floor());
        while offset < runtime.next {
            if !purged && !places.contains_key(&offset) {
                return Err(format!("queue {uid}: {offset} was handed out and is nowhere"));
            }
            offset = queue.cursor.next_unsettled(offset + 1);
        }
        Ok(())
    }
}
