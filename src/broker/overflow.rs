//! Room in queues: what a queue that is full does with the next message.
//!
//! Owns: the limits by number and by bytes of bodies, and what is on its way into such queues. Promises: messages that readers hold do
//! not count; a queue that turns messages away never holds more than its limit, however fast they come, but for what comes back;
//! what a queue turns away is not confirmed. Does not know: how arguments spell limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{
    Cause, ConnectionId, Death, Message, Op, Overflow, Publish, QueueUid, Refusal, StoredMessage, Verb,
};
use super::core::Core;
use super::topology::Route;

/// Whose publishes the dead letters of messages are that no queue held. They have no client: nobody hears of them.
const NOBODY: ConnectionId = ConnectionId::MAX - (1 << 32);

/// Messages on their way into a queue, decided and not applied, and bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Coming {
    messages: u64,
    bytes: u64,
}

impl Coming {
    /// One more.
    pub(crate) fn add(&mut self, bytes: u32) {
        self.messages += 1;
        self.bytes += u64::from(bytes);
    }

    /// It is there.
    pub(crate) fn take(&mut self, bytes: u32) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(bytes));
    }
}

impl Core {
    /// Takes the oldest messages off a queue that holds more than it may. Who waits for one got it before.
    pub(crate) fn shorten(&mut self, queue: QueueUid) {
        let Some(limits) = self.limited.get(&queue).map(|limited| &limited.limits) else { return };
        let (messages, bytes) = (limits.max_length, limits.max_bytes);
        if self.overlay.is_none()
            || limits.overflow != Overflow::DropHead
            || (messages, bytes) == (None, None)
        {
            return;
        }
        let mut excess = self.ready(queue).saturating_sub(messages.unwrap_or(u64::MAX));
        while excess > 0 || self.ready_bytes(queue) > bytes.unwrap_or(u64::MAX) {
            let Some((offset, _)) = self.head(queue) else { break };
            self.take_head(queue, offset);
            self.expired.push(offset);
            excess = excess.saturating_sub(1);
        }
        self.bury(queue, Cause::Length);
    }

    /// Does that queue turn such a message away, behind so many others?
    fn is_full(&self, queue: QueueUid, body: u32, before: Coming) -> bool {
        let Some(limited) = self.limited.get(&queue) else { return false };
        let limits = &limited.limits;
        if limits.overflow == Overflow::DropHead {
            return false;
        }
        // What readers take at once never waits here.
        let coming = (limited.coming.messages + before.messages).saturating_sub(self.room_of_readers(queue));
        let bytes = if coming == 0 { 0 } else { limited.coming.bytes + before.bytes };
        let messages = self.ready(queue) + coming + 1;
        messages > limits.max_length.unwrap_or(u64::MAX)
            || self.ready_bytes(queue) + bytes + u64::from(body) > limits.max_bytes.unwrap_or(u64::MAX)
    }

    /// So many messages more the readers of a queue would take.
    fn room_of_readers(&self, queue: QueueUid) -> u64 {
        let readers = self.runtimes.get(&queue).into_iter().flat_map(|runtime| &runtime.readers);
        readers.filter_map(|key| self.readers.get(key)).map(super::reader::Reader::room).sum()
    }

    /// The route without queues that turn this message away, and those.
    pub(crate) fn with_room(&self, route: &Arc<Route>, message: &Message) -> (Arc<Route>, Vec<QueueUid>) {
        if self.limited.is_empty() {
            return (Arc::clone(route), Vec::new());
        }
        let is_full = |uid: &QueueUid| self.is_full(*uid, message.body_len, Coming::default());
        let full: Vec<QueueUid> = route.queues.iter().copied().filter(is_full).collect();
        if full.is_empty() {
            return (Arc::clone(route), full);
        }
        let mut left = Route::clone(route);
        left.queues.retain(|uid| !full.contains(uid));
        (Arc::new(left), full)
    }

    /// Do all queues take what a transaction publishes?
    ///
    /// # Errors
    /// The first that does not.
    pub(crate) fn all_have_room<'a>(
        &self,
        publishes: impl Iterator<Item = (&'a Publish, &'a Arc<Route>)>,
    ) -> Result<(), Refusal> {
        if self.limited.is_empty() {
            return Ok(());
        }
        let mut before: BTreeMap<QueueUid, Coming> = BTreeMap::new();
        for (publish, route) in publishes {
            for uid in &route.queues {
                let before = before.entry(*uid).or_default();
                let body = publish.message.body_len;
                if self.is_full(*uid, body, *before)
                    && let Some(queue) = self.decided().queue_by_uid(*uid)
                {
                    let (name, vhost) = (Arc::clone(&queue.spec.name), self.vhost_name(queue.vhost));
                    return Err(Refusal::Full { name, vhost });
                }
                before.add(body);
            }
        }
        Ok(())
    }

    /// These queues turned a publish away: where they have an exchange for such messages, and shall use it, it goes there.
    pub(crate) fn turned_away(&mut self, id: ConnectionId, verb: &Verb, full: &[QueueUid]) {
        let Op::Publish(publish) = &verb.op else { return };
        for uid in full {
            let Some(limited) = self.limited.get(uid) else { continue };
            let to = limited.limits.dead_letter.clone();
            let wanted = limited.limits.overflow == Overflow::RejectDeadLetter && id < NOBODY;
            let (Some((exchange, key)), true) = (to, wanted) else { continue };
            let Some(letter) = self.letter_of(publish, *uid, &exchange, key.as_ref()) else { continue };
            let known = exchange.is_empty() || self.decided().exchange(verb.vhost, &exchange).is_some();
            if known {
                self.dead.turned_away += 1;
                // A large one waits for its pieces under a number of its own.
                let id = NOBODY + self.dead.turned_away % (1 << 16);
                let verb =
                    Verb { key: verb.key, request: 0, vhost: verb.vhost, op: Op::Publish(letter), number: 0 };
                self.decide(id, verb);
            }
        }
    }

    fn letter_of(
        &self,
        publish: &Publish,
        queue: QueueUid,
        exchange: &Arc<str>,
        routing_key: Option<&Arc<str>>,
    ) -> Option<Publish> {
        let of = self.decided().queue_by_uid(queue)?;
        let message: StoredMessage = self.stored_in_memory(&publish.message);
        let time = self.stamp() / 1000;
        let death = Death { cause: Cause::Length, queue: &of.spec.name, exchange, routing_key, time };
        self.semantics.dead_letter(&message, &death).ok().map(|letter| letter.publish)
    }
}
