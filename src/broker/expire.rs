//! Messages whose time is up, messages beyond a queue's length, and queues that nobody uses.
//!
//! Owns: deadlines, the watch over the heads of queues, and the leader's knowledge of when a queue was used. Promises: a message behind its deadline is not handed out, except to a
//! reader that waited when it came in; an expired head goes without a consumer asking, by a settlement like any other, so that
//! counts and space are right; what stands behind a head that does not expire stays, as in RabbitMQ's classic queues. A queue that
//! expires is removed by a record like any other; when it was used stands in none: a new leader gives it all its time again.
//! Does not know: how arguments spell times.

use super::api::{Cause, Message, Offset, QueueKind, QueueLimits, QueueUid};
use super::core::Core;
use super::index::Entry;
use super::overflow::Coming;
use super::reader::push_range;
use super::state::Enqueued;
use super::topology::Change;
use crate::limits;

/// A queue whose arguments set limits.
#[derive(Debug)]
pub(crate) struct Limited {
    pub(crate) limits: QueueLimits,
    /// Log time at which it goes unless it is used before; 0: it has consumers, or does not expire.
    at: u64,
    /// On its way into it.
    pub(crate) coming: Coming,
}

impl Core {
    /// Log time (ms) at which a message that enters this queue now is expired; 0: never.
    pub(crate) fn deadline(&self, message: &Message, queue: QueueUid) -> u64 {
        let own = self.limited.get(&queue).and_then(|limited| limited.limits.message_ttl);
        let Some(ttl) = message.ttl.into_iter().chain(own).min() else { return 0 };
        // A topic keeps its messages for its own time.
        let topic = self.decided().queue_by_uid(queue).is_none_or(|q| q.spec.kind == QueueKind::Topic);
        if topic { 0 } else { self.now().saturating_add(ttl).min(Entry::DEADLINE_MAX) }
    }

    /// A message is in its queue.
    pub(crate) fn arrived(&mut self, enqueued: Enqueued) {
        let Enqueued { queue, offset, deadline, .. } = enqueued;
        self.note_ready(enqueued);
        if deadline > 0 && self.overlay.is_some() {
            let runtime = self.runtime(queue);
            if runtime.readers.is_empty() {
                if runtime.head_deadline == 0 {
                    self.watch_head(queue);
                }
            } else {
                // Who waits gets it, however short its time is; then its deadline counts.
                runtime.fresh.get_or_insert(offset);
            }
        }
        if self.limited.contains_key(&queue) && self.runtime(queue).readers.is_empty() {
            self.shorten(queue);
        }
        self.list(queue);
    }

    /// Is that message behind its deadline?
    pub(crate) fn is_expired(&self, queue: QueueUid, offset: Offset, deadline: u64) -> bool {
        let fresh = || self.runtimes.get(&queue).and_then(|r| r.fresh).is_some_and(|first| offset >= first);
        deadline != 0 && deadline <= self.now() && !fresh()
    }

    /// Settles what was found to be expired while this queue's messages were handed out.
    pub(crate) fn settle_expired(&mut self, queue: QueueUid) {
        self.bury(queue, Cause::Expired);
    }

    /// Ends what was taken off a queue.
    pub(crate) fn bury(&mut self, queue: QueueUid, cause: Cause) {
        if self.expired.is_empty() {
            return;
        }
        let mut ranges = Vec::new();
        for offset in std::mem::take(&mut self.expired) {
            push_range(&mut ranges, offset);
        }
        self.dead_letter(None, queue, ranges, cause);
    }

    /// Takes expired messages off the head of a queue, and remembers when the next one is due.
    pub(crate) fn watch_head(&mut self, queue: QueueUid) {
        self.shorten(queue);
        if self.overlay.is_none() || !self.may_expire(queue) {
            return;
        }
        let mut due = 0;
        for _ in 0..limits::EXPIRED_PER_TURN {
            let Some((offset, deadline)) = self.head(queue) else {
                due = 0;
                break;
            };
            due = deadline;
            if !self.is_expired(queue, offset, deadline) {
                break;
            }
            self.take_head(queue, offset);
            self.expired.push(offset);
        }
        self.settle_expired(queue);
        self.watch(queue, due);
    }

    fn may_expire(&self, queue: QueueUid) -> bool {
        match self.runtimes.get(&queue).and_then(|r| r.memory.as_ref()) {
            Some(memory) => memory.may_expire(),
            None => self.state.queues.get(&queue).is_some_and(|q| q.may_expire),
        }
    }

    /// The first message that nobody holds, and its deadline.
    pub(crate) fn head(&mut self, queue: QueueUid) -> Option<(Offset, u64)> {
        while let Some(offset) = self.runtime(queue).ready.first() {
            match self.deadline_of(queue, offset) {
                Some(deadline) => return Some((offset, deadline)),
                // Purged meanwhile.
                None => self.runtime(queue).ready.forget(offset),
            }
        }
        let next = self.runtime(queue).next;
        let memory = self.runtimes.get(&queue).and_then(|r| r.memory.as_ref());
        let (next, end) = match (memory, self.state.queues.get(&queue)) {
            (Some(memory), _) => (memory.next_unsettled(next), memory.next()),
            (None, Some(durable)) => (durable.cursor.next_unsettled(next), durable.index.next()),
            (None, None) => return None,
        };
        if next >= end {
            return None;
        }
        Some((next, self.deadline_of(queue, next).unwrap_or(0)))
    }

    /// Deadline of a message that is not settled.
    fn deadline_of(&mut self, queue: QueueUid, offset: Offset) -> Option<u64> {
        if let Some(memory) = self.runtimes.get(&queue).and_then(|r| r.memory.as_ref()) {
            return memory.holds(offset).then(|| memory.deadline(offset));
        }
        if self.state.queues.get(&queue)?.cursor.is_settled(offset) {
            return None;
        }
        self.entry(queue, offset).map(|entry| entry.deadline)
    }

    pub(crate) fn take_head(&mut self, queue: QueueUid, offset: Offset) {
        let runtime = self.runtime(queue);
        if !runtime.ready.remove(offset) {
            runtime.next = offset + 1;
        }
    }

    /// Looks at the head of a queue again at that log time; 0: not by itself.
    fn watch(&mut self, queue: QueueUid, due: u64) {
        let Some(runtime) = self.runtimes.get_mut(&queue) else { return };
        let before = std::mem::replace(&mut runtime.head_deadline, due);
        if before != due {
            self.due.remove(&(before, queue));
            if due != 0 {
                self.due.insert((due, queue));
            }
        }
    }

    /// Looks at the heads whose time has come.
    pub(crate) fn expire_heads(&mut self) {
        if self.overlay.is_none() {
            return;
        }
        let due: Vec<(u64, QueueUid)> = self.due.range(..=(self.now(), QueueUid::MAX)).copied().collect();
        for (at, queue) in due {
            self.due.remove(&(at, queue));
            if let Some(runtime) = self.runtimes.get_mut(&queue) {
                runtime.head_deadline = 0;
                self.watch_head(queue);
            }
        }
    }

    /// A queue's definition is decided, or its removal.
    pub(crate) fn note_limits(&mut self, change: &Change) {
        match change {
            Change::Queue { uid, spec, .. } => self.set_limits(*uid, &spec.arguments),
            Change::RemoveQueue(uid) => self.forget_limits(*uid),
            Change::RemoveVhost(_) => self.restart_limits(),
            _ => {}
        }
    }

    /// A term begins, or many queues went: which of those that there are set times.
    pub(crate) fn restart_limits(&mut self) {
        self.limited.clear();
        self.unused.clear();
        let given = self.decided().queues().filter(|queue| !queue.spec.arguments.is_empty());
        let mut given: Vec<(QueueUid, bytes::Bytes)> =
            given.map(|queue| (queue.uid, queue.spec.arguments.clone())).collect();
        given.sort_unstable_by_key(|(uid, _)| *uid);
        for (uid, arguments) in given {
            self.set_limits(uid, &arguments);
        }
    }

    fn set_limits(&mut self, uid: QueueUid, arguments: &[u8]) {
        if arguments.is_empty() {
            return;
        }
        let limits = self.semantics.queue_limits(arguments);
        if limits != QueueLimits::default() {
            self.limited.insert(uid, Limited { limits, at: 0, coming: Coming::default() });
            self.used(uid);
        }
    }

    fn forget_limits(&mut self, uid: QueueUid) {
        if let Some(limited) = self.limited.remove(&uid) {
            self.unused.remove(&(limited.at, uid));
        }
    }

    /// Somebody uses that queue, or has just ceased to.
    pub(crate) fn used(&mut self, uid: QueueUid) {
        let consumed = self.runtimes.get(&uid).is_some_and(|runtime| !runtime.readers.is_empty());
        let now = self.now();
        let Some(limited) = self.limited.get_mut(&uid) else { return };
        let Some(expires) = limited.limits.expires else { return };
        self.unused.remove(&(limited.at, uid));
        limited.at = if consumed { 0 } else { now.saturating_add(expires) };
        if !consumed {
            self.unused.insert((limited.at, uid));
        }
    }

    /// Removes the queues that nobody used for their time.
    pub(crate) fn expire_queues(&mut self) {
        while let Some((at, uid)) = self.unused.first().copied().filter(|(at, _)| *at <= self.now()) {
            self.unused.remove(&(at, uid));
            if let Some(queue) = self.decided().queue_by_uid(uid).cloned() {
                let changes = self.with_auto_delete(queue.vhost, Change::RemoveQueue(uid));
                self.owe(&changes);
            }
        }
    }

    /// A term begins: heads that expired meanwhile are this leader's to settle.
    pub(crate) fn watch_all(&mut self) {
        let mut queues: Vec<QueueUid> =
            self.state.queues.iter().filter(|(_, q)| q.may_expire).map(|(uid, _)| *uid).collect();
        queues.sort_unstable();
        for queue in queues {
            self.runtime(queue);
            self.watch_head(queue);
        }
    }
}
