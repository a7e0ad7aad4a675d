//! The basic class, confirm.select and channel.flow: publish, consume, get, settle.
//!
//! Owns: consumer tags and who reads what for whom. Promises: the codes and texts of RabbitMQ; a message is handed over when its
//! last byte is there, never before. Does not know: what the shard will say.

use std::sync::Arc;

use bytes::Bytes;
use dassie_amqp::content::{ContentHeader, Properties};
use dassie_amqp::method::{
    BasicCancel, BasicConsume, BasicGet, BasicPublish, BasicQos, ChannelFlow, ConfirmSelect, MethodId,
};
use dassie_amqp::reply::{Exception, ReplyCode};

use super::answers::Owed;
use super::arguments::{self, Place, precondition};
use super::channel::{Channel, Publishing, Reader};
use super::names;
use super::properties;
use super::publish::Address;
use super::session::Session;
use super::unacked::{Lease, UnknownTag};
use crate::broker::api::{
    Op, Publish, QueueKind, REPLY_PREFIX, REPLY_QUEUE, ReaderId, Settle, Subscribe, Window,
};
use crate::security::{Action, Resource};

/// Bytes of a content header's payload before its properties: class, weight, body size.
const HEADER_FIXED: usize = 12;

impl Session {
    pub(super) fn publish(&mut self, number: u16, m: &BasicPublish<'_>) -> Result<(), Exception> {
        if m.immediate {
            return Err(not_implemented("immediate=true"));
        }
        let key = self.allow(Action::Write, Resource::Exchange(m.exchange))?;
        if !m.exchange.is_empty() {
            self.allow_key(Action::Write, m.exchange, m.routing_key)?;
        }
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        channel.last_address = Some(Address::new(channel.last_address.as_ref(), m.exchange, m.routing_key));
        channel.publishing =
            Some(Publishing { key, also: Vec::new(), mandatory: m.mandatory, partial: None });
        Ok(())
    }

    pub(super) fn header(
        &mut self,
        number: u16,
        body_size: u64,
        properties: Properties<'_>,
    ) -> Result<(), Exception> {
        let header = ContentHeader { class_id: BasicPublish::ID.class, body_size, properties };
        let checked = properties::check(&header, &self.agreed.principal)?;
        let also = properties::further_keys(properties)?;
        if !also.is_empty() && self.agreed.principal.narrows_keys() {
            self.allow_further(number, &also)?;
        }
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let (Some(address), Some(publishing)) = (&channel.last_address, &mut channel.publishing) else {
            return Ok(());
        };
        publishing.also = also;
        let reply_key = channel.replies.as_ref().map(|(_, key)| &**key);
        let changed = properties::changed(properties, reply_key)?;
        let block = changed.as_deref().unwrap_or(properties.as_bytes());
        let mut fixed = [0; HEADER_FIXED];
        fixed[..2].copy_from_slice(&header.class_id.to_be_bytes());
        fixed[4..].copy_from_slice(&body_size.to_be_bytes());
        publishing.partial = Some(self.arena.begin(address, [&fixed, block], checked));
        if body_size == 0 { self.complete(number) } else { Ok(()) }
    }

    /// Topic permissions hold for the keys of CC and BCC as for the first one (RabbitMQ 3.10 forgets them).
    fn allow_further(&self, number: u16, keys: &[Arc<str>]) -> Result<(), Exception> {
        let address = self.channels.get(&number).and_then(|channel| channel.last_address.as_ref());
        let Some(address) = address.filter(|address| !address.exchange.is_empty()) else { return Ok(()) };
        keys.iter().try_for_each(|key| self.allow_key(Action::Write, &address.exchange, key))
    }

    pub(super) fn body(&mut self, number: u16, bytes: &[u8], last: bool) -> Result<(), Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let partial = channel.publishing.as_mut().and_then(|publishing| publishing.partial.as_mut());
        if let Some(partial) = partial {
            self.arena.extend(partial, bytes)?;
        }
        if last { self.complete(number) } else { Ok(()) }
    }

    fn complete(&mut self, number: u16) -> Result<(), Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let Some(Publishing { key, also, mandatory, partial: Some(partial) }) = channel.publishing.take()
        else {
            return Ok(());
        };
        let Some(address) = &channel.last_address else { return Ok(()) };
        channel.unsure = true;
        let publish = Publish {
            channel: channel.slot,
            exchange: Arc::clone(&address.exchange),
            routing_key: Arc::clone(&address.routing_key),
            also,
            mandatory,
            confirm: channel.confirms.next(),
            message: self.arena.finish(partial),
        };
        if let Some(publish) = self.keep_for_commit(number, key, publish)? {
            if !self.settlements.is_empty() && !self.takes_publishes(&publish.exchange) {
                // It will be refused: what was acknowledged before it must be in front of it.
                self.flush_settlements();
            }
            self.wish(key, 0, Op::Publish(publish));
        }
        Ok(())
    }

    pub(super) fn settle(
        &mut self,
        number: u16,
        tag: u64,
        multiple: bool,
        how: Settle,
    ) -> Result<(), Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let unknown = |UnknownTag(tag)| precondition(format_args!("unknown delivery tag {tag}"));
        if let Some(transaction) = &mut channel.transaction {
            transaction.settle(how, channel.unacked.take_open(tag, multiple).map_err(unknown)?);
            return Ok(());
        }
        // One ack of one message is the common case: no list in between.
        if let Some(lease) = channel.unacked.take_one(tag, multiple).map_err(unknown)? {
            self.collect(how, [lease]);
            return Ok(());
        }
        let mut leases = Vec::new();
        channel.unacked.take(tag, multiple, &mut leases).map_err(unknown)?;
        self.collect(how, leases);
        Ok(())
    }

    pub(super) fn recover(
        &mut self,
        number: u16,
        requeue: bool,
        answer: Option<MethodId>,
    ) -> Result<(), Exception> {
        if !requeue {
            return Err(not_implemented("requeue=false"));
        }
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let leases: Vec<Lease> = channel.unacked.take_all().collect();
        self.collect(Settle::Requeue, leases);
        if let Some(method) = answer {
            self.answer_now(number, method, false, Owed::Recover);
        }
        Ok(())
    }

    pub(super) fn consume(&mut self, number: u16, m: &BasicConsume<'_>) -> Result<(), Exception> {
        if m.queue == REPLY_QUEUE {
            return self.consume_replies(number, m);
        }
        let queue = self.queue_name(number, m.queue)?;
        let key = self.allow(Action::Read, Resource::Queue(&queue))?;
        let vhost_name = Arc::clone(&self.agreed.vhost_name);
        let priority =
            arguments::consume(m.arguments, Place { kind: "queue", name: &queue, vhost: &vhost_name })?;
        let reader: ReaderId = self.next_id();
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let tag = new_tag(channel, m.consumer_tag)?;
        channel.consumers.insert(Arc::clone(&tag), reader);
        let window = Window { reader: channel.prefetch, channel: channel.slot };
        let known = Reader {
            channel: number,
            tag: Arc::clone(&tag),
            queue: Arc::clone(&queue),
            exclusive: m.exclusive,
            prefetch: channel.prefetch,
            arguments: Bytes::copy_from_slice(m.arguments.as_bytes()),
            no_ack: m.no_ack,
            announced: false,
            cancelled: false,
            early: Vec::new(),
        };
        self.readers.insert(reader, known);
        let (no_ack, exclusive) = (m.no_ack, m.exclusive);
        let op = Op::Subscribe(Subscribe { reader, queue, no_ack, exclusive, priority, window });
        self.ask(number, reader, BasicConsume::ID, m.nowait, Owed::Consume(tag, reader), key, op);
        Ok(())
    }

    /// Direct reply-to: a consumer without a queue.
    fn consume_replies(&mut self, number: u16, m: &BasicConsume<'_>) -> Result<(), Exception> {
        let reader: ReaderId = self.next_id();
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        let tag = new_tag(channel, m.consumer_tag)?;
        if channel.replies.is_some() {
            return Err(precondition("reply consumer already set"));
        }
        if !m.no_ack {
            return Err(precondition("reply consumer cannot acknowledge"));
        }
        let key: Arc<str> = names::generate(REPLY_PREFIX).into();
        channel.replies = Some((reader, Arc::clone(&key)));
        channel.consumers.insert(Arc::clone(&tag), reader);
        let op = Op::SubscribeReplies { reader, channel: channel.slot, key };
        let known = Reader {
            channel: number,
            tag: Arc::clone(&tag),
            queue: REPLY_QUEUE.into(),
            exclusive: false,
            prefetch: 0,
            arguments: Bytes::new(),
            no_ack: true,
            announced: false,
            cancelled: false,
            early: Vec::new(),
        };
        self.readers.insert(reader, known);
        let owed = Owed::Consume(tag, reader);
        self.ask(number, reader, BasicConsume::ID, m.nowait, owed, self.own(), op);
        Ok(())
    }

    pub(super) fn cancel(&mut self, number: u16, m: &BasicCancel<'_>) -> Result<(), Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        match channel.consumers.remove(m.consumer_tag) {
            Some(reader) => {
                channel.replies.take_if(|(of, _)| *of == reader);
                // Deliveries on their way are still the consumer's: it ends with the answer.
                let id = self.next_id();
                let owed = Owed::Cancel(m.consumer_tag.into(), Some(reader));
                self.ask(number, id, BasicCancel::ID, m.nowait, owed, self.own(), Op::Unsubscribe { reader });
            }
            None => {
                self.answer_now(number, BasicCancel::ID, m.nowait, Owed::Cancel(m.consumer_tag.into(), None))
            }
        }
        Ok(())
    }

    pub(super) fn get(&mut self, number: u16, m: &BasicGet<'_>) -> Result<(), Exception> {
        let queue = self.queue_name(number, m.queue)?;
        let key = self.allow(Action::Read, Resource::Queue(&queue))?;
        let known = self.topology.queue(self.agreed.vhost, &queue);
        if known.is_some_and(|known| {
            known.spec.kind == QueueKind::Quorum && arguments::is_single_active(&known.spec.arguments)
        }) {
            return Err(Exception::new(
                ReplyCode::ResourceLocked,
                format_args!(
                    "cannot obtain access to locked queue '{queue}' in vhost '{}'. basic.get operations are not \
                     supported by quorum queues with single active consumer",
                    self.agreed.vhost_name
                ),
            ));
        }
        // A reader of its own for each get: offsets of different queues never meet, and a queue may go and come again.
        let reader: ReaderId = self.next_id();
        let Some(channel) = self.channels.get(&number).map(|c| c.slot) else { return Ok(()) };
        let owed = Owed::Get { reader, no_ack: m.no_ack };
        let op = Op::Get { reader, channel, queue, no_ack: m.no_ack };
        self.ask(number, reader, BasicGet::ID, false, owed, key, op);
        Ok(())
    }

    pub(super) fn qos(&mut self, number: u16, m: &BasicQos) -> Result<(), Exception> {
        if m.prefetch_size != 0 {
            return Err(not_implemented(format_args!("prefetch_size!=0 ({})", m.prefetch_size)));
        }
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        if m.global {
            channel.global_prefetch = m.prefetch_count;
            let op = Op::SetChannelWindow { channel: channel.slot, limit: m.prefetch_count };
            let id = self.next_id();
            self.ask(number, id, BasicQos::ID, false, Owed::Qos, self.own(), op);
        } else {
            channel.prefetch = m.prefetch_count;
            self.answer_now(number, BasicQos::ID, false, Owed::Qos);
        }
        Ok(())
    }

    pub(super) fn confirm_select(&mut self, number: u16, m: &ConfirmSelect) -> Result<(), Exception> {
        if let Some(channel) = self.channels.get_mut(&number) {
            if channel.transaction.is_some() {
                return Err(precondition("cannot switch from tx to confirm mode"));
            }
            channel.confirms.enable();
            self.answer_now(number, ConfirmSelect::ID, m.nowait, Owed::ConfirmSelect);
        }
        Ok(())
    }

    pub(super) fn flow(&mut self, number: u16, active: bool) -> Result<(), Exception> {
        if !active {
            return Err(not_implemented("active=false"));
        }
        self.answer_now(number, ChannelFlow::ID, false, Owed::Flow);
        Ok(())
    }
}

/// The tag of a new consumer.
fn new_tag(channel: &Channel, asked: &str) -> Result<Arc<str>, Exception> {
    let tag: Arc<str> = match asked {
        "" => names::generate("amq.ctag-").into(),
        given => given.into(),
    };
    if channel.consumers.contains_key(&tag) {
        let text = format_args!("attempt to reuse consumer tag '{tag}'");
        return Err(Exception::new(ReplyCode::NotAllowed, text));
    }
    Ok(tag)
}

fn not_implemented(what: impl std::fmt::Display) -> Exception {
    Exception::new(ReplyCode::NotImplemented, what)
}
