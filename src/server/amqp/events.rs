//! What the shard says, and the frames that say it to the client.
//!
//! Owns: the encoding of answers, deliveries, confirms and returns. Promises: everything the shard said at once is encoded into one
//! output; a return goes before its confirm; a delivery never goes before its consumer's consume-ok.
//! Does not know: the socket.

use dassie_amqp::method::{
    AccessRequestOk, BasicAck, BasicCancel, BasicCancelOk, BasicConsumeOk, BasicGetEmpty, BasicNack,
    BasicPublish, BasicQosOk, BasicRecoverOk, ChannelFlowOk, ConfirmSelectOk, ExchangeBindOk,
    ExchangeDeclareOk, ExchangeDeleteOk, ExchangeUnbindOk, QueueBindOk, QueueDeclareOk, QueueDeleteOk,
    QueuePurgeOk, QueueUnbindOk, TxCommitOk, TxRollbackOk, TxSelectOk,
};
use dassie_amqp::reply::{Exception, ReplyCode};

use super::answers::{Answer, Owed};
use super::deliver::{Content, Envelope};
use super::refusals;
use super::session::Session;
use super::unacked::Lease;
use crate::broker::api::{
    ChannelId, Delivery, Event, Located, Origin, Publish, ReaderId, Refusal, Reply, StoredMessage,
};
use crate::broker::message::resolve;
use crate::server::across;

impl Session {
    /// Takes what the shard said at once.
    pub(super) fn on_events(&mut self, events: Vec<Event>) {
        let mut confirmed: Vec<ChannelId> = Vec::new();
        for event in events {
            match event {
                Event::Reply { request, result } => self.on_reply(request, result),
                Event::Confirmed { channel, first, last, accepted } => {
                    self.on_confirmed(channel, first, last, accepted);
                    if !confirmed.contains(&channel) {
                        confirmed.push(channel);
                    }
                }
                Event::Returned { channel, publish } => self.on_returned(channel, &publish),
                Event::PublishRefused { channel, refusal } => self.on_publish_refused(channel, &refusal),
                Event::Deliveries { reader, deliveries } => self.on_deliveries(reader, deliveries),
                Event::ReaderCancelled { reader } => self.on_reader_cancelled(reader),
                // Asked of RocketMQ producers only.
                Event::CheckBack(_) => {}
                Event::ShuttingDown => {
                    self.line
                        .close(&Exception::new(ReplyCode::ConnectionForced, "the broker is shutting down"));
                }
            }
        }
        for slot in confirmed {
            if let Some(number) = self.number_of(slot) {
                self.say_confirms(number);
            }
        }
    }

    fn on_confirmed(&mut self, slot: ChannelId, first: u64, last: u64, accepted: bool) {
        if let Some(channel) = self.number_of(slot).and_then(|number| self.channels.get_mut(&number)) {
            channel.confirms.answered(first, last, accepted);
        }
    }

    /// Writes the confirms that a channel's client does not know yet.
    pub(super) fn say_confirms(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if !self.line.is_open(number) {
            return;
        }
        let out = self.line.bytes();
        channel.confirms.say(|confirm| {
            let (delivery_tag, multiple) = (confirm.tag, confirm.multiple);
            match confirm.accepted {
                true => BasicAck { delivery_tag, multiple }.encode_frame(number, out),
                false => BasicNack { delivery_tag, multiple, requeue: false }.encode_frame(number, out),
            }
        });
    }

    fn on_returned(&mut self, slot: ChannelId, publish: &Publish) {
        if let Some(number) = self.number_of(slot).filter(|number| self.line.is_open(*number))
            && let Some(content) = Content::of_message(&publish.message)
        {
            self.line.frames(number).no_route(&content);
        }
    }

    fn on_publish_refused(&mut self, slot: ChannelId, refusal: &Refusal) {
        if let Some(number) = self.number_of(slot) {
            self.fail(number, &refusals::exception(refusal).during(BasicPublish::ID));
        }
    }

    fn on_deliveries(&mut self, reader: ReaderId, deliveries: Vec<Delivery>) {
        // A reader that is gone had its channel closed, and nothing follows a close: the shard takes these back when it hears of that.
        let line = &self.line;
        let Some(known) = self.readers.get_mut(&reader).filter(|known| line.is_open(known.channel)) else {
            self.undrained += deliveries.iter().map(|delivery| u64::from(delivery.weight)).sum::<u64>();
            return;
        };
        if !known.announced {
            known.early.extend(deliveries);
            return;
        }
        let cold = deliveries.iter().any(|delivery| !matches!(delivery.message, Located::Ready(_)));
        if cold {
            // Sealed segments may have to come from the disk: the runtime moves its other tasks elsewhere meanwhile.
            tokio::task::block_in_place(|| self.deliver_all(reader, &deliveries));
        } else {
            self.deliver_all(reader, &deliveries);
        }
    }

    fn deliver_all(&mut self, reader: ReaderId, deliveries: &[Delivery]) {
        for delivery in deliveries {
            self.undrained += u64::from(delivery.weight);
            if let Err(exception) = self.deliver_one(reader, delivery) {
                self.line.close(&exception);
                return;
            }
        }
    }

    fn deliver_one(&mut self, reader: ReaderId, delivery: &Delivery) -> Result<(), Exception> {
        let Some(known) = self.readers.get(&reader) else { return Ok(()) };
        let Some(channel) = self.channels.get_mut(&known.channel) else { return Ok(()) };
        let loaded;
        let message = match &delivery.message {
            Located::Ready(message) if message.origin == Origin::Amqp => message,
            located => {
                loaded = amqp_message(located, &*self.log, &mut self.cache)?;
                &loaded
            }
        };
        let content = Content::of_stored(message).ok_or_else(|| unreadable("no AMQP message"))?;
        let envelope = Envelope {
            consumer_tag: &known.tag,
            delivery_tag: match known.no_ack {
                // As RabbitMQ counts: replies have no place in the channel's deliveries.
                true if channel.replies.as_ref().is_some_and(|(of, _)| *of == reader) => 1,
                true => channel.unacked.skip(),
                false => channel.unacked.push(Lease { reader, offset: delivery.offset }),
            },
            redelivered: delivery.redelivered,
            attempts: delivery.attempts,
        };
        self.line.frames(known.channel).deliver(&envelope, &content);
        Ok(())
    }

    fn on_reader_cancelled(&mut self, reader: ReaderId) {
        let Some(known) = self.readers.get_mut(&reader) else { return };
        known.cancelled = true;
        if known.announced {
            self.tell_cancelled(reader);
        }
    }

    fn tell_cancelled(&mut self, reader: ReaderId) {
        let Some(known) = self.readers.remove(&reader) else { return };
        let Some(channel) = self.channels.get_mut(&known.channel) else { return };
        // A client that is cancelling it itself gets its answer, and needs no second word.
        let standing = channel.consumers.get(&known.tag) == Some(&reader);
        if standing {
            channel.consumers.remove(&known.tag);
        }
        if standing && self.agreed.cancel_notify && self.line.is_open(known.channel) {
            BasicCancel { consumer_tag: &known.tag, nowait: true }
                .encode_frame(known.channel, self.line.bytes());
        }
    }

    /// Writes the answers of a channel whose turn has come.
    pub(super) fn write_answers(&mut self, number: u16) {
        while let Some((answer, result)) =
            self.channels.get_mut(&number).and_then(|channel| channel.answers.next())
        {
            match result {
                Ok(reply) => self.write_answer(number, answer, reply),
                Err(refusal) if forgives(&answer.owed, &refusal) => {
                    self.write_answer(number, answer, Reply::Queue { messages: 0, consumers: 0 });
                }
                Err(refusal) => self.fail(number, &refusals::exception(&refusal).during(answer.method)),
            }
        }
    }

    fn write_answer(&mut self, number: u16, answer: Answer, reply: Reply) {
        let quiet = answer.nowait;
        match (answer.owed, reply) {
            (Owed::Get { reader, no_ack }, Reply::Got { delivery, remaining }) => {
                self.write_got(number, reader, no_ack, delivery, remaining);
            }
            (Owed::Failure(exception), _) => self.fail(number, &exception),
            (Owed::Close, _) => {
                self.forget_channel(number);
                self.line.close_channel_ok(number);
            }
            (Owed::Consume(tag, reader), _) => self.announce(number, &tag, reader, quiet),
            (Owed::Cancel(tag, reader), _) => {
                reader.map(|reader| self.readers.remove(&reader));
                if !quiet {
                    BasicCancelOk { consumer_tag: &tag }.encode_frame(number, self.line.bytes());
                }
            }
            (owed, reply) if !quiet => write_plain(number, &owed, &reply, self.line.bytes()),
            _ => {}
        }
    }

    fn announce(&mut self, number: u16, tag: &str, reader: ReaderId, quiet: bool) {
        if !quiet {
            BasicConsumeOk { consumer_tag: tag }.encode_frame(number, self.line.bytes());
        }
        let Some(known) = self.readers.get_mut(&reader) else { return };
        known.announced = true;
        let early = std::mem::take(&mut known.early);
        let cancelled = known.cancelled;
        if !early.is_empty() {
            self.on_deliveries(reader, early);
        }
        if cancelled {
            self.tell_cancelled(reader);
        }
    }

    fn write_got(
        &mut self,
        number: u16,
        reader: ReaderId,
        no_ack: bool,
        delivery: Option<Delivery>,
        remaining: u64,
    ) {
        let Some(delivery) = delivery else {
            return BasicGetEmpty::default().encode_frame(number, self.line.bytes());
        };
        self.undrained += u64::from(delivery.weight);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let delivery_tag = match no_ack {
            true => channel.unacked.skip(),
            false => channel.unacked.push(Lease { reader, offset: delivery.offset }),
        };
        let mut load = || amqp_message(&delivery.message, &*self.log, &mut self.cache);
        let loaded = match &delivery.message {
            Located::Stored { .. } | Located::Paged(_) => tokio::task::block_in_place(load),
            Located::Ready(_) => load(),
        };
        let message = match loaded {
            Ok(message) => message,
            Err(exception) => return self.line.close(&exception),
        };
        let Some(content) = Content::of_stored(&message) else {
            return self.line.close(&unreadable("no AMQP message"));
        };
        let envelope = Envelope {
            consumer_tag: "",
            delivery_tag,
            redelivered: delivery.redelivered,
            attempts: delivery.attempts,
        };
        self.line.frames(number).get_ok(&envelope, count(remaining), &content);
    }
}

/// The message as AMQP clients see it, from wherever it lies.
pub(super) fn amqp_message(
    located: &Located,
    log: &dyn crate::broker::message::Batches,
    cache: &mut crate::broker::message::Cache,
) -> Result<StoredMessage, Exception> {
    let message = resolve(located, log, cache).map_err(|error| unreadable(&error.to_string()))?;
    match message.origin {
        Origin::Amqp => Ok(message),
        Origin::Rocketmq => across::amqp_view(&message).map_err(|error| unreadable(&error.to_string())),
    }
}

/// The log does not hold what its index says, or can not be read. The message stays where it is; others may still be read.
fn unreadable(why: &str) -> Exception {
    tracing::error!("a stored message can not be delivered: {why}");
    Exception::new(ReplyCode::InternalError, "a stored message can not be read")
}

/// Deleting or unbinding what is not there is fine.
fn forgives(owed: &Owed, refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NotFound { .. })
        && matches!(
            owed,
            Owed::ExchangeDelete
                | Owed::ExchangeUnbind
                | Owed::QueueDelete
                | Owed::QueueUnbind
                | Owed::Close
                | Owed::Cancel(..)
        )
}

/// Counts on the wire have 32 bits.
fn count(messages: u64) -> u32 {
    u32::try_from(messages).unwrap_or(u32::MAX)
}

fn write_plain(number: u16, owed: &Owed, reply: &Reply, out: &mut Vec<u8>) {
    let (messages, consumers) = match reply {
        Reply::Queue { messages, consumers } => (count(*messages), *consumers),
        _ => (0, 0),
    };
    match owed {
        Owed::Access => AccessRequestOk { ticket: 1 }.encode_frame(number, out),
        Owed::ConfirmSelect => ConfirmSelectOk {}.encode_frame(number, out),
        Owed::ExchangeBind => ExchangeBindOk {}.encode_frame(number, out),
        Owed::ExchangeDeclare => ExchangeDeclareOk {}.encode_frame(number, out),
        Owed::ExchangeDelete => ExchangeDeleteOk {}.encode_frame(number, out),
        Owed::ExchangeUnbind => ExchangeUnbindOk {}.encode_frame(number, out),
        Owed::Flow => ChannelFlowOk { active: true }.encode_frame(number, out),
        Owed::Qos => BasicQosOk {}.encode_frame(number, out),
        Owed::QueueBind => QueueBindOk {}.encode_frame(number, out),
        Owed::QueueDeclare(name) => {
            QueueDeclareOk { queue: name, message_count: messages, consumer_count: consumers }
                .encode_frame(number, out);
        }
        Owed::QueueDelete => QueueDeleteOk { message_count: messages }.encode_frame(number, out),
        Owed::QueuePurge => QueuePurgeOk { message_count: messages }.encode_frame(number, out),
        Owed::QueueUnbind => QueueUnbindOk {}.encode_frame(number, out),
        Owed::Recover => BasicRecoverOk {}.encode_frame(number, out),
        Owed::TxSelect => TxSelectOk {}.encode_frame(number, out),
        Owed::TxCommit => TxCommitOk {}.encode_frame(number, out),
        Owed::TxRollback => TxRollbackOk {}.encode_frame(number, out),
        // Written where they are taken apart; a reply of another kind to them would be a defect of the shard.
        Owed::Cancel(..) | Owed::Close | Owed::Consume(..) | Owed::Failure(_) | Owed::Get { .. } => {
            tracing::error!("the shard answered {owed:?} with {reply:?}");
        }
    }
}
