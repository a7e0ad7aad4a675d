//! Direct replies: messages for one waiting channel, past all queues.
//!
//! Owns: which keys lead to which reader. Promises: a reply is handed over at once or dropped, never kept (RabbitMQ's direct
//! reply-to); a reader that does not keep up costs its own replies only.
//! Does not know: who asked what, how a key is made.

use std::sync::Arc;

use super::api::{
    ChannelId, ConnectionId, Delivery, Event, Located, Op, Publish, REPLY_PREFIX, ReaderId, Verb,
};
use super::core::Core;
use super::reader::ReaderKey;
use crate::limits;

/// A channel that takes replies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReplyReader {
    reader: ReaderKey,
    channel: ChannelId,
}

/// Does that key lead to a channel, and not to a queue?
pub(crate) fn is_reply_key(key: &str) -> bool {
    key.starts_with(REPLY_PREFIX)
}

impl Core {
    pub(crate) fn subscribe_replies(
        &mut self,
        id: ConnectionId,
        reader: ReaderId,
        channel: ChannelId,
        key: Arc<str>,
    ) {
        self.replies.insert(key, ReplyReader { reader: (id, reader), channel });
    }

    /// Is somebody there for that key?
    pub(crate) fn takes_replies(&self, key: &str) -> bool {
        self.replies.contains_key(key)
    }

    /// Keys, readers and channels of one connection.
    pub(crate) fn replies_of(&self, id: ConnectionId) -> Vec<(Arc<str>, ReaderId, ChannelId)> {
        let own = self.replies.iter().filter(|(_, known)| known.reader.0 == id);
        own.map(|(key, known)| (Arc::clone(key), known.reader.1, known.channel)).collect()
    }

    /// Forgets readers of replies of one connection: that one, those of a channel, or all.
    pub(crate) fn end_replies(&mut self, id: ConnectionId, ends: impl Fn(ReaderId, ChannelId) -> bool) {
        if !self.replies.is_empty() {
            self.replies.retain(|_, known| known.reader.0 != id || !ends(known.reader.1, known.channel));
        }
    }

    /// Hands replies out, and gives the publish back without their keys; `None`: that was all of it.
    pub(crate) fn publish_replies(&mut self, id: ConnectionId, mut verb: Verb) -> Option<Verb> {
        let Op::Publish(publish) = &mut verb.op else { return Some(verb) };
        if !publish.exchange.is_empty() {
            return Some(verb);
        }
        for key in publish.also.extract_if(.., |key| is_reply_key(key)).collect::<Vec<_>>() {
            self.reply_to(&key, publish);
        }
        if !is_reply_key(&publish.routing_key) {
            return Some(verb);
        }
        self.reply_to(&publish.routing_key, publish);
        if !publish.also.is_empty() {
            publish.routing_key = publish.also.remove(0);
            return Some(verb);
        }
        // To RabbitMQ too it reached no queue.
        self.finished(id, &verb);
        let Op::Publish(publish) = verb.op else { return None };
        self.counters.publish(publish.confirm != 0);
        self.counters.no_route(publish.mandatory);
        let (channel, confirm) = (publish.channel, publish.confirm);
        if publish.mandatory {
            self.event(id, Event::Returned { channel, publish: Box::new(publish) });
        }
        if confirm > 0 {
            self.confirm(id, channel, confirm, true);
        }
        None
    }

    fn reply_to(&mut self, key: &str, publish: &Publish) {
        let Some(reader) = self.replies.get(key).map(|known| known.reader) else { return };
        let weight = u32::try_from(publish.message.bytes.len()).unwrap_or(u32::MAX).saturating_add(64);
        let held = self.connections.get(&reader.0).map_or(usize::MAX, |connection| connection.outstanding);
        if held.saturating_add(weight as usize) > limits::REPLIES_MAX {
            return;
        }
        let message = Located::Ready(self.stored_in_memory(&publish.message));
        self.counters.delivered += 1;
        self.hand_out(
            reader,
            Delivery { offset: 0, position: 0, redelivered: false, attempts: 0, weight, message },
        );
    }
}
