//! What an open connection means: methods and content in, verbs and frames out.
//!
//! Owns: channels, readers, the verbs of one socket read, the output. It is a value without IO: the connection's task feeds it what
//! it read and what the shard said, and takes from it what is to be handed over and written.
//! Promises: verbs are handed over in the order of the client's frames (settlements of one read may move behind its publishes,
//! never before them); an error ends a channel or, by its code, the connection, and says which.
//! Does not know: sockets, timers, frames' order (the codec's state machine has checked it).

use std::sync::Arc;

use dassie_amqp::connection::Event as Heard;
use dassie_amqp::method::{self, ChannelOpenOk, Method, MethodId};
use dassie_amqp::reply::{Exception, ReplyCode, Scope};
use hashbrown::HashMap;

use super::answers::{Answer, Owed};
use super::channel::{Channel, Reader};
use super::line::Line;
use super::publish::Arena;
use super::refusals;
use super::settlements::Settlements;
use super::unacked::Lease;
use crate::broker::api::{ChannelId, Op, ReaderId, Refusal, Reply, Settle, Verb, VhostId};
use crate::broker::message::{Batches, Cache};
use crate::broker::topology::Topology;
use crate::security::{Action, Authorized, Principal, Resource, authorize};

/// What a channel's client may be owed before the connection is closed: nobody asks that much without reading answers.
const OWED_MAX: usize = 65_536;

/// What the handshake settled.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    /// Who.
    pub(super) principal: Principal,
    /// The vhost.
    pub(super) vhost: VhostId,
    /// Its name.
    pub(super) vhost_name: Arc<str>,
    /// The client understands basic.cancel from the server.
    pub(super) cancel_notify: bool,
}

/// See the module.
pub(super) struct Session {
    /// The codec's state and what is to be written.
    pub(super) line: Line,
    pub(super) agreed: Agreed,
    /// Key for the connection's own state.
    own: Authorized,
    pub(super) channels: HashMap<u16, Channel>,
    /// Client's number of each slot.
    numbers: HashMap<ChannelId, u16>,
    pub(super) readers: HashMap<ReaderId, Reader>,
    last_slot: ChannelId,
    last_id: u32,
    pub(super) arena: Arena,
    pub(super) settlements: Settlements,
    verbs: Vec<Verb>,
    pub(super) topology: Arc<Topology>,
    pub(super) log: Box<dyn Batches + Send>,
    pub(super) cache: Cache,
    /// Weight of deliveries that were encoded and not reported as written.
    pub(super) undrained: u64,
}

impl Session {
    /// A session without channels. `own`: the key for the connection's own state.
    pub(super) fn new(
        line: Line,
        agreed: Agreed,
        own: Authorized,
        topology: Arc<Topology>,
        log: Box<dyn Batches + Send>,
    ) -> Self {
        Self {
            line,
            agreed,
            own,
            channels: HashMap::new(),
            numbers: HashMap::new(),
            readers: HashMap::new(),
            last_slot: 0,
            last_id: 0,
            arena: Arena::default(),
            settlements: Settlements::default(),
            verbs: Vec::new(),
            topology,
            log,
            cache: Cache::default(),
            undrained: 0,
        }
    }

    /// A look at what exists, taken once a read.
    pub(super) fn look(&mut self, topology: Arc<Topology>) {
        self.topology = topology;
    }

    /// One thing the client said after the handshake. Those about the connection itself are the task's.
    pub(super) fn on_heard(&mut self, heard: &Heard<'_>) {
        match heard {
            Heard::Publish { channel, publish } => self.blame(*channel, method::BasicPublish::ID, |s| s.publish(*channel, publish)),
            Heard::Header { channel, body_size, properties } => {
                self.blame(*channel, method::BasicPublish::ID, |s| s.header(*channel, *body_size, *properties));
            }
            Heard::Body { channel, bytes, last } => {
                self.blame(*channel, method::BasicPublish::ID, |s| s.body(*channel, bytes, *last));
            }
            Heard::Method { channel, method } => self.blame(*channel, method.id(), |s| s.dispatch(*channel, method)),
            Heard::ChannelOpen { channel } => self.open(*channel),
            Heard::ChannelClose { channel, .. } => self.close(*channel),
            Heard::UpdateSecret(_) => {
                let text = "connection.update-secret is not supported yet";
                self.line.close(&Exception::new(ReplyCode::NotImplemented, text).during(method::ConnectionUpdateSecret::ID));
            }
            // Handshake and end of the connection: the task has looked at them.
            _ => {}
        }
    }

    fn blame(&mut self, number: u16, method: MethodId, act: impl FnOnce(&mut Self) -> Result<(), Exception>) {
        if let Err(exception) = act(self) {
            self.fail(number, &exception.during(method));
        }
    }

    fn open(&mut self, number: u16) {
        let mut slot = self.last_slot;
        loop {
            slot = slot.wrapping_add(1);
            // 0 means "none"; there are fewer channels than slots, so that this ends.
            if slot != 0 && !self.numbers.contains_key(&slot) {
                break;
            }
        }
        self.last_slot = slot;
        self.numbers.insert(slot, number);
        self.channels.insert(number, Channel::new(slot));
        ChannelOpenOk::default().encode_frame(number, self.line.bytes());
    }

    fn dispatch(&mut self, number: u16, method: &Method<'_>) -> Result<(), Exception> {
        match method {
            Method::BasicAck(m) => self.settle(number, m.delivery_tag, m.multiple, Settle::Ack),
            Method::BasicNack(m) => self.settle(number, m.delivery_tag, m.multiple, refused(m.requeue)),
            Method::BasicReject(m) => self.settle(number, m.delivery_tag, false, refused(m.requeue)),
            Method::BasicConsume(m) => self.consume(number, m),
            Method::BasicCancel(m) => self.cancel(number, m),
            Method::BasicGet(m) => self.get(number, m),
            Method::BasicQos(m) => self.qos(number, m),
            Method::BasicRecover(m) => self.recover(number, m.requeue, Some(method::BasicRecover::ID)),
            Method::BasicRecoverAsync(m) => self.recover(number, m.requeue, None),
            Method::ConfirmSelect(m) => self.confirm_select(number, m),
            Method::ChannelFlow(m) => self.flow(number, m.active),
            Method::ExchangeDeclare(m) => self.exchange_declare(number, m),
            Method::ExchangeDelete(m) => self.exchange_delete(number, m),
            Method::ExchangeBind(m) => self.exchange_bind(number, m),
            Method::ExchangeUnbind(m) => self.exchange_unbind(number, m),
            Method::QueueDeclare(m) => self.queue_declare(number, m),
            Method::QueueBind(m) => self.queue_bind(number, m),
            Method::QueueUnbind(m) => self.queue_unbind(number, m),
            Method::QueuePurge(m) => self.queue_purge(number, m),
            Method::QueueDelete(m) => self.queue_delete(number, m),
            Method::AccessRequest(_) => {
                self.answer_now(number, method::AccessRequest::ID, false, Owed::Access);
                Ok(())
            }
            // Answers to what the server asked; nothing depends on them.
            Method::BasicCancelOk(_) | Method::ChannelFlowOk(_) => Ok(()),
            other => Err(Exception::new(ReplyCode::NotImplemented, format_args!("{} is not supported", other.name()))),
        }
    }

    /// The client closes a channel: answered when the shard has released what it held. Until then the number is taken.
    fn close(&mut self, number: u16) {
        if self.channels.contains_key(&number) {
            self.release(number, Some(method::ChannelClose::ID));
        } else {
            // It crossed our own channel.close: nothing is held any more.
            self.line.close_channel_ok(number);
        }
    }

    /// Ends a channel, or by the exception's scope the connection, and says why.
    pub(super) fn fail(&mut self, number: u16, exception: &Exception) {
        if exception.scope() == Scope::Connection {
            self.line.close(exception);
        } else if self.line.is_open(number) {
            self.say_confirms(number);
            self.release(number, None);
            self.forget_channel(number);
            self.line.close_channel(number, exception);
        }
    }

    /// Lets go of all that a channel holds. With a method to answer, the answer is owed.
    fn release(&mut self, number: u16, answer: Option<MethodId>) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let slot = channel.slot;
        if let Some(partial) = channel.publishing.take().and_then(|publishing| publishing.partial) {
            self.arena.forget(&partial);
        }
        for (_, reader) in channel.consumers.drain() {
            self.readers.remove(&reader);
        }
        let returned: Vec<Lease> = channel.unacked.take_all().collect();
        let owed = channel.answers.drain().filter_map(|answer| match answer.owed {
            Owed::Cancel(_, Some(reader)) => Some(reader),
            _ => None,
        });
        owed.for_each(|reader| {
            self.readers.remove(&reader);
        });
        let id = self.next_id();
        match answer {
            Some(method) => self.ask(number, id, method, false, Owed::Close, self.own, Op::CloseChannel { channel: slot }),
            None => self.wish(self.own, 0, Op::CloseChannel { channel: slot }),
        }
        // Gets have no subscription that the channel's end would end. For all others this names what is no longer held.
        self.collect(Settle::Requeue, returned);
    }

    /// May the client do that?
    pub(super) fn allow(&self, action: Action, resource: Resource<'_>) -> Result<Authorized, Exception> {
        authorize(&self.agreed.principal, action, resource).map_err(|denied| refusals::denied(&denied))
    }

    /// The key for the connection's own state.
    pub(super) fn own(&self) -> Authorized {
        self.own
    }

    /// A number for a wish or a reader. They share one sequence, so that the reader of a get can be told from its answer; it
    /// comes round after 2^32, when no wish or consumer of then can be open.
    pub(super) fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// Hands a verb over that wants no answer.
    pub(super) fn wish(&mut self, key: Authorized, request: u64, op: Op) {
        // Acks may move behind later publishes, which is safe, but never behind what could depend on them.
        if !matches!(op, Op::Publish(_)) {
            self.flush_settlements();
        }
        self.verbs.push(Verb { key, request, vhost: self.agreed.vhost, op });
    }

    /// Hands a verb over whose answer is owed to the client.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn ask(
        &mut self,
        number: u16,
        id: u32,
        method: MethodId,
        nowait: bool,
        owed: Owed,
        key: Authorized,
        op: Op,
    ) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.answers.push(Answer { id, method, nowait, owed, result: None });
        let request = u64::from(channel.slot) << 32 | u64::from(id);
        if channel.answers.len() > OWED_MAX {
            let text = format_args!("{OWED_MAX} methods of channel {number} wait for an answer");
            self.line.close(&Exception::new(ReplyCode::ResourceError, text).during(method));
        }
        self.wish(key, request, op);
    }

    /// Owes an answer that needs nobody else, behind those that are owed already.
    pub(super) fn answer_now(&mut self, number: u16, method: MethodId, nowait: bool, owed: Owed) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.answers.push(Answer { id: 0, method, nowait, owed, result: Some(Ok(Reply::Ok)) });
        self.write_answers(number);
    }

    /// The shard answered a wish.
    pub(super) fn on_reply(&mut self, request: u64, result: Result<Reply, Refusal>) {
        let id = u32::try_from(request & u64::from(u32::MAX)).unwrap_or(0);
        let slot = ChannelId::try_from(request >> 32).unwrap_or(0);
        let number = self.numbers.get(&slot).copied();
        let channel = number.and_then(|number| Some((number, self.channels.get_mut(&number)?)));
        let unclaimed = match channel {
            Some((_, channel)) => channel.answers.resolve(id, result),
            None => Err(result),
        };
        match (unclaimed, number) {
            (Ok(()), Some(number)) => self.write_answers(number),
            // A get of a channel that is gone: nobody will settle it. The reader of a get has the number of its wish.
            (Err(Ok(Reply::Got { delivery: Some(delivery), .. })), _) => {
                self.undrained += u64::from(delivery.weight);
                self.collect(Settle::Requeue, vec![Lease { reader: id, offset: delivery.offset }]);
            }
            _ => {}
        }
    }

    /// Number of the channel in this slot.
    pub(super) fn number_of(&self, slot: ChannelId) -> Option<u16> {
        self.numbers.get(&slot).copied()
    }

    /// The number is free.
    pub(super) fn forget_channel(&mut self, number: u16) {
        if let Some(channel) = self.channels.remove(&number) {
            self.numbers.remove(&channel.slot);
        }
    }

    /// Puts settlements to the others of this read.
    pub(super) fn collect(&mut self, how: Settle, leases: impl IntoIterator<Item = Lease>) {
        let (own, vhost, verbs) = (self.own, self.agreed.vhost, &mut self.verbs);
        let emit = |op| verbs.push(Verb { key: own, request: 0, vhost, op });
        self.settlements.collect(how, emit).extend(leases);
    }

    fn flush_settlements(&mut self) {
        let (own, vhost, verbs) = (self.own, self.agreed.vhost, &mut self.verbs);
        self.settlements.flush(|op| verbs.push(Verb { key: own, request: 0, vhost, op }));
    }

    /// A verb about the connection itself.
    pub(super) fn own_verb(&self, op: Op) -> Verb {
        Verb { key: self.own, request: 0, vhost: self.agreed.vhost, op }
    }

    /// Everything for the shard since the last call.
    pub(super) fn take_verbs(&mut self) -> Vec<Verb> {
        self.flush_settlements();
        std::mem::take(&mut self.verbs)
    }
}

fn refused(requeue: bool) -> Settle {
    if requeue { Settle::Requeue } else { Settle::Discard }
}
