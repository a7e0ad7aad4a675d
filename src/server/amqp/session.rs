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
use crate::broker::api::{
    ChannelId, Op, ReaderId, Refusal, Reply, Settle, Verb, VhostId, channel_of, request_of,
};
use crate::broker::message::{Batches, Cache};
use crate::broker::topology::Topology;
use crate::security::{Action, Authorized, Principal, Resource, authorize};

/// What a channel's client may be owed before the connection is closed: nobody asks that much without reading answers.
const OWED_MAX: usize = 65_536;

/// What the handshake settled.
#[derive(Debug)]
pub(super) struct Agreed {
    /// Who.
    pub(super) principal: Principal,
    /// The vhost.
    pub(super) vhost: VhostId,
    /// Its name.
    pub(super) vhost_name: Arc<str>,
    /// The client understands basic.cancel from the server.
    pub(super) cancel_notify: bool,
    /// How it logged in.
    pub(super) mechanism: String,
    /// What it said of itself: a field table, content only.
    pub(super) client_properties: Box<[u8]>,
    /// The client understands connection.blocked.
    pub(super) blocked_notify: bool,
}

/// See the module.
pub(super) struct Session {
    /// The codec's state and what is to be written.
    pub(super) line: Line,
    pub(super) agreed: Agreed,
    /// Key for the connection's own state.
    own: Authorized,
    pub(super) channels: HashMap<u16, Box<Channel>>,
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
    /// What the publishes of uncommitted transactions hold.
    pub(super) uncommitted: usize,
    /// Channels opened since the task asked last.
    pub(super) opened: u64,
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
            uncommitted: 0,
            undrained: 0,
            opened: 0,
        }
    }

    /// A look at what exists, taken once a read.
    pub(super) fn look(&mut self, topology: Arc<Topology>) {
        self.topology = topology;
    }

    /// One thing the client said after the handshake. Those about the connection itself are the task's.
    ///
    /// False: not now, it settles what a get before it brings. Nothing has happened; say it again after the shard's next word.
    #[must_use]
    pub(super) fn on_heard(&mut self, heard: &Heard<'_>) -> bool {
        match heard {
            Heard::Publish { channel, publish } => {
                self.blame(*channel, method::BasicPublish::ID, |s| s.publish(*channel, publish))
            }
            Heard::Header { channel, body_size, properties } => {
                self.blame(*channel, method::BasicPublish::ID, |s| {
                    s.header(*channel, *body_size, *properties)
                });
            }
            Heard::Body { channel, bytes, last } => {
                self.blame(*channel, method::BasicPublish::ID, |s| s.body(*channel, bytes, *last));
            }
            Heard::Method { channel, method } => {
                if self.channels.get(channel).is_some_and(|c| c.answers.owes_message() && settles(method)) {
                    return false;
                }
                self.blame(*channel, method.id(), |s| s.dispatch(*channel, method));
            }
            Heard::ChannelOpen { channel } => self.open(*channel),
            Heard::ChannelClose { channel, .. } => self.close(*channel),
            // Passwords do not expire: like RabbitMQ with users of its own, any new one is taken and has no effect.
            Heard::UpdateSecret(_) => {
                method::ConnectionUpdateSecretOk {}.encode_frame(0, self.line.bytes());
            }
            // Handshake and end of the connection: the task has looked at them.
            _ => {}
        }
        true
    }

    /// What was to be delivered for now is encoded.
    pub(super) fn let_go(&mut self) {
        self.cache.let_go(&*self.log);
    }

    /// Gives back, once in a while, what memory is not needed. Old views of the topology and batches that left the log's tail
    /// would else live as long as the silence of the one who saw them.
    pub(super) fn rest(&mut self, topology: Arc<Topology>, idle: bool) {
        self.look(topology);
        self.cache = Cache::default();
        self.channels.values_mut().for_each(|channel| channel.answers.rest());
        if idle {
            self.arena.rest();
        }
    }

    /// Does something for a channel, if it is still heard. A mistake ends it behind what is owed for the methods before.
    fn blame(&mut self, number: u16, method: MethodId, act: impl FnOnce(&mut Self) -> Result<(), Exception>) {
        if self.channels.get(&number).is_some_and(|channel| channel.answers.end_in_failure()) {
            return;
        }
        let Err(exception) = act(self) else { return };
        let exception = exception.during(method);
        match self.channels.get(&number) {
            Some(channel) if channel.answers.len() > 0 || channel.unsure => {
                self.answer_now(number, method, false, Owed::Failure(exception));
            }
            _ => self.fail(number, &exception),
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
        let counted = match self.agreed.principal.open_channel() {
            Ok(counted) => counted,
            Err(full) => {
                let exception = Exception::new(ReplyCode::NotAllowed, full);
                return self.line.close(&exception.during(method::ChannelOpen::ID));
            }
        };
        self.last_slot = slot;
        self.opened += 1;
        self.numbers.insert(slot, number);
        self.channels.insert(number, Box::new(Channel::new(slot, counted)));
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
            Method::TxSelect(_) => self.tx_select(number),
            Method::TxCommit(_) => self.tx_commit(number),
            Method::TxRollback(_) => self.tx_rollback(number),
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
            other => Err(Exception::new(
                ReplyCode::NotImplemented,
                format_args!("{} is not supported", other.name()),
            )),
        }
    }

    /// The client closes a channel: answered when the shard has released what it held. Until then the number is taken.
    fn close(&mut self, number: u16) {
        if let Some(slot) = self.channels.get(&number).map(|channel| channel.slot) {
            let (id, returned) = (self.next_id(), self.release(number));
            let op = Op::CloseChannel { channel: slot };
            self.ask(number, id, method::ChannelClose::ID, false, Owed::Close, self.own, op);
            self.collect(Settle::Requeue, returned);
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
            let returned = self.release(number);
            let Some(channel) = self.channels.get_mut(&number) else { return };
            let slot = channel.slot;
            let owed = channel.answers.drain().filter_map(|answer| match answer.owed {
                Owed::Cancel(_, Some(reader)) => Some(reader),
                _ => None,
            });
            owed.for_each(|reader| {
                self.readers.remove(&reader);
            });
            self.wish(self.own, 0, Op::CloseChannel { channel: slot });
            // Gets have no subscription that the channel's end would end. For all others this names what is no longer held.
            self.collect(Settle::Requeue, returned);
            self.forget_channel(number);
            self.line.close_channel(number, exception);
        } else if let Some(channel) = self.channels.get_mut(&number) {
            // The client has closed it meanwhile: both closes are answered.
            channel.answers.keep_close();
            self.line.close_channel(number, exception);
            self.write_answers(number);
        }
    }

    /// Lets go of all that a channel holds; the leases that nobody will settle.
    fn release(&mut self, number: u16) -> Vec<Lease> {
        let Some(channel) = self.channels.get_mut(&number) else { return Vec::new() };
        if let Some(partial) = channel.publishing.take().and_then(|publishing| publishing.partial) {
            self.arena.forget(&partial);
        }
        for (_, reader) in channel.consumers.drain() {
            self.readers.remove(&reader);
        }
        let mut returned: Vec<Lease> = channel.unacked.take_all().collect();
        if let Some(transaction) = channel.transaction.take() {
            self.uncommitted -= transaction.bytes();
            returned.extend(transaction.leases());
        }
        returned
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
        self.verbs.push(Verb { key, request, vhost: self.agreed.vhost, op, number: 0 });
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
        let request = request_of(channel.slot, id);
        channel.unsure = false;
        if channel.answers.len() > OWED_MAX {
            let text = format_args!("{OWED_MAX} methods of channel {number} wait for an answer");
            self.line.close(&Exception::new(ReplyCode::ResourceError, text).during(method));
        }
        self.wish(key, request, op);
    }

    /// Owes an answer that needs nobody else, behind those that are owed already, and behind publishes that the shard may refuse.
    pub(super) fn answer_now(&mut self, number: u16, method: MethodId, nowait: bool, owed: Owed) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if channel.unsure {
            let nothing = Op::CheckPublish { channel: channel.slot, exchange: "".into() };
            let id = self.next_id();
            return self.ask(number, id, method, nowait, owed, self.own, nothing);
        }
        channel.answers.push(Answer { id: 0, method, nowait, owed, result: Some(Ok(Reply::Ok)) });
        self.write_answers(number);
    }

    /// The shard answered a wish.
    pub(super) fn on_reply(&mut self, request: u64, result: Result<Reply, Refusal>) {
        let id = u32::try_from(request & u64::from(u32::MAX)).unwrap_or(0);
        let number = self.number_of(channel_of(request));
        let channel = number.and_then(|number| Some((number, self.channels.get_mut(&number)?)));
        let unclaimed = match channel {
            Some((_, channel)) => channel.answers.resolve(id, result),
            None => Some(result),
        };
        match (unclaimed, number) {
            (None, Some(number)) => self.write_answers(number),
            // A get of a channel that is gone: nobody will settle it. The reader of a get has the number of its wish.
            (Some(Ok(Reply::Got { delivery: Some(delivery), .. })), _) => {
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
        let emit = |op| verbs.push(Verb { key: own, request: 0, vhost, op, number: 0 });
        self.settlements.collect(how, emit).extend(leases);
    }

    pub(super) fn flush_settlements(&mut self) {
        let (own, vhost, verbs) = (self.own, self.agreed.vhost, &mut self.verbs);
        self.settlements.flush(|op| verbs.push(Verb { key: own, request: 0, vhost, op, number: 0 }));
    }

    /// A verb about the connection itself.
    pub(super) fn own_verb(&self, op: Op) -> Verb {
        Verb { key: self.own, request: 0, vhost: self.agreed.vhost, op, number: 0 }
    }

    /// Everything for the shard since the last call.
    pub(super) fn take_verbs(&mut self) -> Vec<Verb> {
        self.flush_settlements();
        std::mem::take(&mut self.verbs)
    }
}

/// Whether a method is about messages that were delivered before.
fn settles(method: &Method<'_>) -> bool {
    matches!(
        method,
        Method::BasicAck(_)
            | Method::BasicNack(_)
            | Method::BasicReject(_)
            | Method::BasicRecover(_)
            | Method::BasicRecoverAsync(_)
    )
}

fn refused(requeue: bool) -> Settle {
    if requeue { Settle::Requeue } else { Settle::Discard }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use bytes::Bytes;
    use dassie_amqp::connection::Limits;
    use dassie_amqp::content::{self, Properties};
    use dassie_amqp::frame::{FrameKind, Split, split};
    use dassie_amqp::method::{
        BasicAck, BasicCancel, BasicConsume, BasicGet, BasicPublish, BasicQos, BasicRecover, ChannelClose,
        ChannelCloseOk, ChannelOpen, ConfirmSelect, ConnectionOpen, ConnectionStartOk, ConnectionTuneOk,
        QueueDeclare,
    };

    use super::super::Offer;
    use super::super::greeting::{Greeting, Progress};
    use super::*;
    use crate::broker::api::{Delivery, Event, Located, Message, Origin, StoredMessage};
    use crate::security::Realm;
    use crate::security::users::Users;

    struct NoLog;

    impl Batches for NoLog {
        fn batch(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
            Err(std::io::Error::other(format!("nothing at {position}")))
        }

        fn holding(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
            self.batch(position)
        }

        fn is_at_hand(&self, _: u64) -> bool {
            true
        }
    }

    /// A client's bytes, and what came back.
    struct Test(Session);

    fn open() -> Test {
        let mut greeting = Greeting::new(
            Arc::new(Offer { limits: Limits::default(), product: "p".into(), version: "1".into() }),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            Realm::new(Users::only_guest()),
            None,
        );
        let mut bytes = b"AMQP\x00\x00\x09\x01".to_vec();
        let start_ok = ConnectionStartOk {
            mechanism: "PLAIN",
            response: b"\0guest\0guest",
            locale: "en_US",
            ..Default::default()
        };
        start_ok.encode_frame(0, &mut bytes);
        ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 0 }.encode_frame(0, &mut bytes);
        ConnectionOpen { virtual_host: "/", ..Default::default() }.encode_frame(0, &mut bytes);
        let mut rest = &bytes[..];
        let topology = Topology::new();
        while let Ok(Some(event)) = greeting.line.wire.next_event(&mut rest) {
            match greeting.on_heard(&event, &topology) {
                Ok(Progress::Open(mut agreed, own)) => {
                    agreed.cancel_notify = true;
                    let mut test =
                        Test(Session::new(greeting.line, *agreed, own, Arc::new(topology), Box::new(NoLog)));
                    test.written();
                    test.hear(|out| ChannelOpen::default().encode_frame(1, out));
                    test.written();
                    return test;
                }
                Ok(_) => {}
                Err(exception) => panic!("{exception}"),
            }
        }
        panic!("the handshake did not end");
    }

    impl Test {
        fn hear(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Vec<Verb> {
            let mut bytes = Vec::new();
            write(&mut bytes);
            let mut rest = &bytes[..];
            while let Some(heard) = self.0.line.wire.next_event(&mut rest).expect("well-formed") {
                assert!(self.0.on_heard(&heard), "no answer is awaited");
            }
            self.0.take_verbs()
        }

        /// What was written, as method names with their first lines, and header and body frames.
        fn written(&mut self) -> Vec<String> {
            let mut bytes = Vec::new();
            let output = &mut self.0.line.output;
            output
                .write_to(|slices| {
                    slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                    Ok(slices.iter().map(|slice| slice.len()).sum())
                })
                .unwrap();
            let mut frames = Vec::new();
            let mut rest = &bytes[..];
            while let Ok(Split::Frame(frame)) = split(rest, u32::MAX) {
                rest = &rest[frame.encoded_len()..];
                frames.push(match frame.kind {
                    FrameKind::Method => match Method::parse(frame.payload).unwrap() {
                        Method::ChannelClose(close) => format!("channel.close {}", close.reply_text),
                        Method::ConnectionClose(close) => format!("connection.close {}", close.reply_text),
                        Method::BasicAck(ack) => format!("ack {} {}", ack.delivery_tag, ack.multiple),
                        Method::BasicDeliver(m) => {
                            format!("deliver {} {} {}", m.consumer_tag, m.delivery_tag, m.routing_key)
                        }
                        other => other.name().to_owned(),
                    },
                    FrameKind::Body => String::from_utf8_lossy(frame.payload).into_owned(),
                    _ => "header".to_owned(),
                });
            }
            assert!(rest.is_empty());
            frames
        }

        fn answer(&mut self, verb: &Verb, result: Result<Reply, Refusal>) {
            self.0.on_events(vec![Event::Reply { request: verb.request, result }]);
        }

        /// Consumes from `q` as `tag`, answered.
        fn consume(&mut self, tag: &str) -> ReaderId {
            let consume = BasicConsume { queue: "q", consumer_tag: tag, ..Default::default() };
            let verbs = self.hear(|out| consume.encode_frame(1, out));
            let [Verb { op: Op::Subscribe(subscribe), .. }] = &verbs[..] else { panic!("{verbs:?}") };
            self.answer(&verbs[0], Ok(Reply::Subscribed));
            assert_eq!(self.written(), ["basic.consume-ok"]);
            subscribe.reader
        }
    }

    fn message(body: &[u8]) -> Message {
        let mut bytes = vec![0, 1, b'q', 0, 60, 0, 0];
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        let prefix_len = u32::try_from(bytes.len()).unwrap();
        bytes.extend_from_slice(body);
        let body_len = u32::try_from(body.len()).unwrap();
        Message {
            origin: Origin::Amqp,
            bytes: bytes.into(),
            prefix_len,
            body_len,
            tag_hash: 0,
            persistent: false,
            ttl: None,
        }
    }

    fn delivery(offset: u64, body: &[u8]) -> Delivery {
        let Message { bytes, prefix_len, body_len, .. } = message(body);
        let stored =
            StoredMessage { origin: Origin::Amqp, bytes, prefix_len, body_len, body: None, store_time: 0 };
        Delivery {
            offset,
            position: 0,
            redelivered: false,
            attempts: 0,
            weight: 10,
            message: Located::Ready(stored),
        }
    }

    fn publish(out: &mut Vec<u8>, channel: u16, key: &str, body: &[u8]) {
        BasicPublish { routing_key: key, ..Default::default() }.encode_frame(channel, out);
        content::encode(channel, Properties::EMPTY, body, 131_072, out);
    }

    #[test]
    fn publishes_of_one_read_are_handed_over_with_their_numbers_and_bytes() {
        let mut test = open();
        test.hear(|out| ConfirmSelect::default().encode_frame(1, out));
        assert_eq!(test.written(), ["confirm.select-ok"]);
        let verbs = test.hear(|out| (0..3).for_each(|_| publish(out, 1, "q", b"hello")));
        let seen = verbs.iter().map(|verb| match &verb.op {
            Op::Publish(p) => (p.confirm, &*p.routing_key, p.message.bytes.clone()),
            other => panic!("{other:?}"),
        });
        assert_eq!(seen.collect::<Vec<_>>(), [1, 2, 3].map(|n| (n, "q", message(b"hello").bytes)));
        let slot = test.0.channels[&1].slot;
        test.0.on_events(vec![
            Event::Confirmed { channel: slot, first: 1, last: 2, accepted: true },
            Event::Confirmed { channel: slot, first: 3, last: 3, accepted: true },
        ]);
        assert_eq!(test.written(), ["ack 3 true"]);
    }

    #[test]
    fn deliveries_are_numbered_and_acks_name_what_was_delivered() {
        let mut test = open();
        let reader = test.consume("c");
        let deliveries = (10..14).map(|offset| delivery(offset, b"x")).collect();
        test.0.on_events(vec![Event::Deliveries { reader, deliveries }]);
        assert_eq!(test.written()[9..], ["deliver c 4 q", "header", "x"]);
        assert_eq!(test.0.undrained, 40);
        let verbs = test.hear(|out| {
            BasicAck { delivery_tag: 1, multiple: false }.encode_frame(1, out);
            BasicAck { delivery_tag: 3, multiple: true }.encode_frame(1, out);
        });
        let [Verb { op: Op::Settle { ranges, how: Settle::Ack, .. }, .. }] = &verbs[..] else {
            panic!("{verbs:?}")
        };
        assert_eq!(ranges[..], [(10, 12)]);
        test.hear(|out| BasicAck { delivery_tag: 3, multiple: false }.encode_frame(1, out));
        assert_eq!(test.written(), ["channel.close PRECONDITION_FAILED - unknown delivery tag 3"]);
    }

    #[test]
    fn a_delivery_does_not_overtake_its_consume_ok() {
        let mut test = open();
        let verbs = test.hear(|out| {
            QueueDeclare { queue: "q", ..Default::default() }.encode_frame(1, out);
            BasicConsume { queue: "q", consumer_tag: "c", ..Default::default() }.encode_frame(1, out);
        });
        let Op::Subscribe(subscribe) = &verbs[1].op else { panic!("{verbs:?}") };
        test.answer(&verbs[1], Ok(Reply::Subscribed));
        test.0.on_events(vec![Event::Deliveries {
            reader: subscribe.reader,
            deliveries: vec![delivery(0, b"x")],
        }]);
        assert!(test.written().is_empty());
        test.answer(&verbs[0], Ok(Reply::Queue { messages: 0, consumers: 0 }));
        let expected = ["queue.declare-ok", "basic.consume-ok", "deliver c 1 q", "header", "x"];
        assert_eq!(test.written(), expected);
    }

    #[test]
    fn an_answer_that_needs_nobody_waits_for_the_ones_before_it() {
        let mut test = open();
        let verbs = test.hear(|out| {
            QueueDeclare { queue: "q", ..Default::default() }.encode_frame(1, out);
            BasicQos { prefetch_count: 5, ..Default::default() }.encode_frame(1, out);
        });
        assert!(test.written().is_empty());
        test.answer(&verbs[0], Ok(Reply::Queue { messages: 0, consumers: 0 }));
        assert_eq!(test.written(), ["queue.declare-ok", "basic.qos-ok"]);
    }

    #[test]
    fn a_refusal_closes_the_channel_and_what_follows_on_it_is_ignored() {
        let mut test = open();
        let verbs = test.hear(|out| {
            QueueDeclare { queue: "q", passive: true, ..Default::default() }.encode_frame(1, out)
        });
        let refusal = Refusal::NotFound { kind: "queue", name: "q".into(), vhost: "/".into() };
        test.answer(&verbs[0], Err(refusal));
        assert_eq!(test.written(), ["channel.close NOT_FOUND - no queue 'q' in vhost '/'"]);
        let verbs = test.hear(|out| {
            publish(out, 1, "q", b"ignored");
            ChannelCloseOk {}.encode_frame(1, out);
            ChannelOpen::default().encode_frame(1, out);
        });
        assert!(matches!(&verbs[..], [Verb { op: Op::CloseChannel { .. }, .. }]), "{verbs:?}");
        assert_eq!(test.written(), ["channel.open-ok"]);
    }

    #[test]
    fn an_answer_of_our_own_does_not_overtake_a_publish_that_may_be_refused() {
        for mistake in [false, true] {
            let mut test = open();
            let verbs = test.hear(|out| {
                publish(out, 1, "q", b"x");
                if mistake {
                    BasicAck { delivery_tag: 9, multiple: false }.encode_frame(1, out);
                } else {
                    BasicQos { prefetch_count: 5, ..Default::default() }.encode_frame(1, out);
                }
            });
            assert!(test.written().is_empty());
            let slot = test.0.channels[&1].slot;
            if mistake {
                test.answer(&verbs[1], Ok(Reply::Ok));
                let expected = "channel.close PRECONDITION_FAILED - unknown delivery tag 9";
                assert_eq!(test.written(), [expected]);
            } else {
                let refusal = Refusal::NotFound { kind: "exchange", name: "x".into(), vhost: "/".into() };
                test.0.on_events(vec![Event::PublishRefused { channel: slot, refusal }]);
                assert_eq!(test.written(), ["channel.close NOT_FOUND - no exchange 'x' in vhost '/'"]);
            }
            let verbs = test.0.take_verbs();
            assert!(matches!(verbs[..], [Verb { op: Op::CloseChannel { .. }, .. }]), "{verbs:?}");
        }
    }

    #[test]
    fn a_late_event_does_not_reach_a_channel_opened_again() {
        let mut test = open();
        let old = test.0.channels[&1].slot;
        let verbs =
            test.hear(|out| ChannelClose { reply_code: 200, ..Default::default() }.encode_frame(1, out));
        assert!(test.written().is_empty());
        test.answer(&verbs[0], Ok(Reply::Ok));
        assert_eq!(test.written(), ["channel.close-ok"]);
        test.hear(|out| {
            ChannelOpen::default().encode_frame(1, out);
            ConfirmSelect::default().encode_frame(1, out);
        });
        test.written();
        test.0.on_events(vec![Event::Confirmed { channel: old, first: 1, last: 1, accepted: true }]);
        assert!(test.written().is_empty());
    }

    #[test]
    fn the_answer_of_a_get_whose_channel_is_gone_goes_back_to_its_queue() {
        let mut test = open();
        let verbs = test.hear(|out| {
            BasicGet { queue: "q", ..Default::default() }.encode_frame(1, out);
            ChannelClose { reply_code: 200, ..Default::default() }.encode_frame(1, out);
        });
        let Op::Get { reader, .. } = verbs[0].op else { panic!("{verbs:?}") };
        let slot = test.0.channels[&1].slot;
        let refusal = Refusal::NotFound { kind: "exchange", name: "x".into(), vhost: "/".into() };
        test.0.on_events(vec![Event::PublishRefused { channel: slot, refusal }]);
        assert_eq!(test.written(), ["channel.close NOT_FOUND - no exchange 'x' in vhost '/'"]);
        test.answer(&verbs[1], Ok(Reply::Ok));
        test.answer(&verbs[0], Ok(Reply::Got { delivery: Some(delivery(7, b"x")), remaining: 0 }));
        assert_eq!(test.written(), ["channel.close-ok"]);
        let back = test.0.take_verbs();
        let [Verb { op: Op::Settle { reader: holder, ranges, how: Settle::Requeue }, .. }] = &back[..] else {
            panic!("{back:?}")
        };
        assert_eq!((*holder, &ranges[..]), (reader, &[(7, 7)][..]));
    }

    #[test]
    fn an_ack_right_behind_its_get_waits_for_the_message() {
        let mut test = open();
        let verbs = test.hear(|out| BasicGet { queue: "q", ..Default::default() }.encode_frame(1, out));
        let ack = Method::BasicAck(BasicAck { delivery_tag: 1, multiple: false });
        let ack = Heard::Method { channel: 1, method: ack };
        assert!(!test.0.on_heard(&ack) && test.0.take_verbs().is_empty());
        test.answer(&verbs[0], Ok(Reply::Got { delivery: Some(delivery(7, b"x")), remaining: 0 }));
        assert!(test.0.on_heard(&ack));
        assert!(matches!(&test.0.take_verbs()[..], [Verb { op: Op::Settle { how: Settle::Ack, .. }, .. }]));
    }

    #[test]
    fn a_mistake_ends_the_channel_behind_the_answers_to_what_came_before_it() {
        let mut test = open();
        let verbs = test.hear(|out| {
            QueueDeclare { queue: "q", ..Default::default() }.encode_frame(1, out);
            BasicAck { delivery_tag: 9, multiple: false }.encode_frame(1, out);
            BasicGet { queue: "q", ..Default::default() }.encode_frame(1, out);
        });
        assert!(matches!(verbs[..], [Verb { op: Op::DeclareQueue(..), .. }]), "nothing after it is heard");
        assert!(test.written().is_empty());
        test.answer(&verbs[0], Ok(Reply::Queue { messages: 0, consumers: 0 }));
        let expected = "channel.close PRECONDITION_FAILED - unknown delivery tag 9";
        assert_eq!(test.written(), ["queue.declare-ok", expected]);
    }

    #[test]
    fn cancelling_ends_a_consumer_when_it_is_answered_and_its_messages_stay_settleable() {
        let mut test = open();
        let reader = test.consume("c");
        let verbs = test.hear(|out| BasicCancel { consumer_tag: "c", nowait: false }.encode_frame(1, out));
        test.0.on_events(vec![Event::Deliveries { reader, deliveries: vec![delivery(0, b"x")] }]);
        test.answer(&verbs[0], Ok(Reply::Ok));
        assert_eq!(test.written(), ["deliver c 1 q", "header", "x", "basic.cancel-ok"]);
        let verbs = test.hear(|out| BasicAck { delivery_tag: 1, multiple: false }.encode_frame(1, out));
        assert!(matches!(&verbs[..], [Verb { op: Op::Settle { how: Settle::Ack, .. }, .. }]), "{verbs:?}");
    }

    #[test]
    fn a_consumer_hears_that_its_queue_is_gone() {
        let mut test = open();
        let reader = test.consume("c");
        test.0.on_events(vec![Event::ReaderCancelled { reader }]);
        assert_eq!(test.written(), ["basic.cancel"]);
        test.consume("c");
    }

    #[test]
    fn recover_gives_everything_back_in_order() {
        let mut test = open();
        let reader = test.consume("c");
        test.0.on_events(vec![Event::Deliveries {
            reader,
            deliveries: (3..6).map(|o| delivery(o, b"")).collect(),
        }]);
        test.written();
        let verbs = test.hear(|out| BasicRecover { requeue: true }.encode_frame(1, out));
        let [Verb { op: Op::Settle { ranges, how: Settle::Requeue, .. }, .. }] = &verbs[..] else {
            panic!("{verbs:?}")
        };
        assert_eq!(ranges[..], [(3, 5)]);
        assert_eq!(test.written(), ["basic.recover-ok"]);
    }

    #[test]
    fn what_is_not_supported_ends_the_connection_by_name() {
        for (write, text) in [
            (
                (|out: &mut Vec<u8>| BasicQos { prefetch_size: 1, ..Default::default() }.encode_frame(1, out))
                    as fn(&mut Vec<u8>),
                "connection.close NOT_IMPLEMENTED - prefetch_size!=0 (1)",
            ),
            (
                |out| BasicPublish { immediate: true, ..Default::default() }.encode_frame(1, out),
                "connection.close NOT_IMPLEMENTED - immediate=true",
            ),
            (
                |out| {
                    BasicConsume { queue: "q", consumer_tag: "c", ..Default::default() }.encode_frame(1, out);
                },
                "connection.close NOT_ALLOWED - attempt to reuse consumer tag 'c'",
            ),
        ] {
            let mut test = open();
            test.consume("c");
            test.written();
            test.hear(write);
            assert_eq!(test.written(), [text]);
        }
    }

    #[test]
    fn a_large_body_is_referenced_and_arrives_whole() {
        let mut test = open();
        let reader = test.consume("c");
        let body = Bytes::from(vec![b'z'; 300_000]);
        test.0.on_events(vec![Event::Deliveries { reader, deliveries: vec![delivery(0, &body)] }]);
        assert!(test.0.line.output.buffered() < 200);
        assert_eq!(test.written()[2..].concat().len(), 300_000);
    }
}
