//! The verbs that connections hand to a shard, and the events that come back.
//!
//! Owns: the vocabulary between `server` and `broker`; nothing here acts.
//! Promises: a verb carries the key that [`crate::security::authorize`] gave; every verb with a `request` number gets exactly
//! one [`Event::Reply`]; events of one connection arrive in the order in which they became true.
//! Does not know: frames, commands, sockets.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use dassie_storage::Spilled;
use serde::{Deserialize, Deserializer, Serialize};

use crate::security::Authorized;

/// A byte offset in the log of a shard.
pub type Position = u64;
/// One client connection on this node, unique while the process lives.
pub type ConnectionId = u64;
/// An AMQP channel, or 0 where the protocol has none.
pub type ChannelId = u16;
/// Identity of a queue for ever; never reused in a shard.
pub type QueueUid = u64;
/// A consumer or a channel's getter, unique within its connection; chosen by the connection.
pub type ReaderId = u32;
/// A vhost; 0 is `/`.
pub type VhostId = u32;
/// Dense number of a message in its queue, from 0.
pub type Offset = u64;

/// Stands for the queue of a message whose record is not at its public position any more: it was moved, or never was.
pub const MOVED: QueueUid = 0;
/// The name under which clients consume direct replies.
pub const REPLY_QUEUE: &str = "amq.rabbitmq.reply-to";
/// Everything that refusals are about.
const NOUNS: [Noun; 4] = ["exchange", "queue", "topic", "vhost"];
/// What the keys of direct replies begin with.
pub const REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";

/// Which layout a message's bytes have (D1: stored as born).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Origin {
    /// prefix = shortstr exchange, shortstr routing key, content header payload; body verbatim; suffix empty.
    Amqp = 1,
    /// prefix = stored layout up to and including the body length; suffix = topic and properties.
    Rocketmq = 2,
}

/// A message on its way in: `bytes` = prefix, body, suffix without gaps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// Who made the layout.
    pub origin: Origin,
    /// prefix ++ body ++ suffix.
    #[serde(with = "raw")]
    pub bytes: Bytes,
    /// Bytes before the body.
    pub prefix_len: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// Java `String.hashCode` of the RocketMQ tag (0: none); for AMQP-born ones of the routing key.
    pub tag_hash: u32,
    /// AMQP delivery mode 2, or any RocketMQ message.
    pub persistent: bool,
    /// How long it may wait in a queue, ms; `None`: for ever. Topics do not look at it.
    pub ttl: Option<u64>,
}

impl Message {
    /// Bytes behind the body.
    #[must_use]
    pub fn suffix_len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX) - self.prefix_len - self.body_len
    }
}

/// The four exchange types of AMQP 0-9-1 and the one that stands for a RocketMQ topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ExchangeKind {
    /// Routing key equals binding key.
    Direct = 1,
    /// Every binding.
    Fanout = 2,
    /// Patterns of words.
    Topic = 3,
    /// By header values.
    Headers = 4,
    /// `amq.rmq.<topic>`: matches like `Topic`, against the tag.
    RocketmqTopic = 5,
}

/// What exchange.declare asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeSpec {
    /// Name, not empty.
    pub name: Arc<str>,
    /// Type.
    pub kind: ExchangeKind,
    /// Survives a restart of the node.
    pub durable: bool,
    /// Goes when the last binding from it goes.
    pub auto_delete: bool,
    /// Clients may not publish to it.
    pub internal: bool,
    /// Field table, content only (without its length), as the client sent it.
    #[serde(with = "raw")]
    pub arguments: Bytes,
}

/// What kind of queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum QueueKind {
    /// `x-queue-type: classic`, or none given.
    Classic = 1,
    /// `x-queue-type: quorum`.
    Quorum = 2,
    /// One message queue of a RocketMQ topic; made by [`Op::CreateTopic`] or a first send.
    Topic = 3,
}

/// What queue.declare asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// Name, not empty: the adapter makes `amq.gen-…` names.
    pub name: Arc<str>,
    /// Type.
    pub kind: QueueKind,
    /// Contents are in the log. Exclusive or not durable: contents live in memory (D17).
    pub durable: bool,
    /// Belongs to the declaring connection and goes with it.
    pub exclusive: bool,
    /// Goes when its last consumer goes.
    pub auto_delete: bool,
    /// Field table, content only, as the client sent it.
    #[serde(with = "raw")]
    pub arguments: Bytes,
}

/// One end of a binding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// A queue by name.
    Queue(Arc<str>),
    /// An exchange by name.
    Exchange(Arc<str>),
}

/// A binding as clients name it: identity is all four parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BindingSpec {
    /// Source exchange.
    pub source: Arc<str>,
    /// Where matching messages go.
    pub destination: Destination,
    /// Binding key.
    pub key: Arc<str>,
    /// Field table, content only.
    #[serde(with = "raw")]
    pub arguments: Bytes,
}

/// How many messages a reader may hold unsettled. Several readers can share one window (channel-wide prefetch).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Per reader; 0 = no limit.
    pub reader: u16,
    /// Number of the channel whose shared window also limits this reader.
    pub channel: ChannelId,
}

/// basic.consume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Subscribe {
    /// Chosen by the connection, unused there.
    pub reader: ReaderId,
    /// Where to read.
    pub queue: Arc<str>,
    /// Settled when handed out.
    pub no_ack: bool,
    /// Nobody else may read.
    pub exclusive: bool,
    /// Readers with a higher one get messages first. 0: the usual one.
    pub priority: i64,
    /// Limits.
    pub window: Window,
}

/// What becomes of leased messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settle {
    /// Consumed.
    Ack,
    /// Back to its old place, flagged redelivered.
    Requeue,
    /// Rejected for good.
    Discard,
}

/// RocketMQ send: all messages go to one queue, in one batch, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Send {
    /// Target topic.
    pub topic: Arc<str>,
    /// Message queue, or `None`: the broker picks.
    pub queue_id: Option<u32>,
    /// If the topic is missing, make it with so many queues; `None`: refuse.
    pub create_queues: Option<u32>,
    /// One, or a batch. The shard writes the queue id it chose at [`Semantics::stamp`].
    pub messages: Vec<SendMessage>,
    /// Not to be seen in its topic yet: where it waits. Its layout says so already.
    pub waits: Option<Waits>,
    /// Of topic and unique key, when the producer may send it again without an answer to the first one; 0: it has none. Not
    /// trusted: messages of one key are compared.
    pub key: u64,
    /// When its node got it, by the node's monotonic clock; between nodes: how long ago that was. The shard fills it in.
    pub arrived: std::time::Duration,
}

/// Where a message stands before it is to be seen in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Waits {
    /// For the delay of this level, from 1.
    Delay(u32),
    /// For the end of its transaction.
    Half,
}

/// A consumer could not consume a message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendBack {
    /// The queue that the message's record names at its position ([`crate::broker::message::queue_at`]).
    pub queue: QueueUid,
    /// Public position.
    pub position: Position,
    /// Topic as the consumer knows it, if it said so.
    pub topic: Option<Arc<str>>,
    /// Consumer group.
    pub group: Arc<str>,
    /// Delay level until it comes again; 0: by the number of attempts; below: never again.
    pub level: i32,
    /// After so many attempts it never comes again.
    pub attempts_max: i32,
    /// Its id as clients spell it.
    pub id: Arc<str>,
}

/// The end of a transaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndTransaction {
    /// Producer group that sent the half message.
    pub group: Arc<str>,
    /// The half message's offset.
    pub offset: Offset,
    /// Its public position.
    pub position: Position,
    /// To be seen now; else never.
    pub commit: bool,
}

/// One message of a send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendMessage {
    /// The record.
    pub message: Message,
    /// Tag as text: what AMQP bindings of `amq.rmq.<topic>` match against.
    pub tag: Arc<str>,
}

/// RocketMQ pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetch {
    /// Topic.
    pub topic: Arc<str>,
    /// Message queue.
    pub queue_id: u32,
    /// First wanted offset.
    pub offset: Offset,
    /// At most so many messages.
    pub max_messages: u32,
    /// At most about so many bytes (at least one message is given).
    pub max_bytes: u32,
    /// Wanted tag hashes; empty: all.
    pub tags: Arc<[u32]>,
    /// If nothing is there, wait so long (ms) for something; 0: answer at once.
    pub wait_ms: u32,
}

/// What a connection asks of the shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Op {
    /// exchange.declare (passive: only look).
    DeclareExchange(ExchangeSpec, bool),
    /// exchange.delete.
    DeleteExchange {
        /// Name.
        name: Arc<str>,
        /// Refuse while bound.
        if_unused: bool,
    },
    /// queue.declare (passive: only look).
    DeclareQueue(QueueSpec, bool),
    /// queue.delete.
    DeleteQueue {
        /// Name.
        name: Arc<str>,
        /// Refuse while consumed.
        if_unused: bool,
        /// Refuse while it holds messages.
        if_empty: bool,
    },
    /// queue.purge.
    PurgeQueue {
        /// Name.
        name: Arc<str>,
    },
    /// Make a vhost, if it is missing. The verb's own vhost does not matter.
    CreateVhost {
        /// Name.
        name: Arc<str>,
    },
    /// Remove a vhost and all that is in it. The verb's own vhost does not matter.
    DeleteVhost {
        /// Name.
        name: Arc<str>,
    },
    /// queue.bind, exchange.bind.
    Bind(BindingSpec),
    /// queue.unbind, exchange.unbind.
    Unbind(BindingSpec),
    /// basic.publish. Answered by `Confirmed`, `Returned`, `PublishRefused` events, not by a reply.
    Publish(Publish),
    /// May a message be published there? Answered by `PublishRefused` when not, else by a reply: a transaction learns it before
    /// its commit.
    CheckPublish {
        /// For the event.
        channel: ChannelId,
        /// Exchange, "" is the default one.
        exchange: Arc<str>,
    },
    /// tx.commit: all of it or nothing.
    Commit(Commit),
    /// basic.consume.
    Subscribe(Subscribe),
    /// basic.consume of direct replies: messages published to the default exchange under `key` come to this reader, settled. They
    /// are kept nowhere: without the reader, or when its connection is too far behind, they are dropped.
    SubscribeReplies {
        /// Chosen by the connection, unused there.
        reader: ReaderId,
        /// Ends with this channel.
        channel: ChannelId,
        /// Begins with [`REPLY_PREFIX`], and nobody can guess the rest.
        key: Arc<str>,
    },
    /// basic.cancel: what the reader holds stays leased until settled.
    Unsubscribe {
        /// Which.
        reader: ReaderId,
    },
    /// basic.get; the lease belongs to `reader`, a getter that needs no subscription and lives until it is settled.
    Get {
        /// Holder of the lease, unused before.
        reader: ReaderId,
        /// Released with this channel.
        channel: ChannelId,
        /// Where.
        queue: Arc<str>,
        /// Settle at once.
        no_ack: bool,
    },
    /// basic.qos global: the shared window of a channel (0 = no limit).
    SetChannelWindow {
        /// Which.
        channel: ChannelId,
        /// Messages.
        limit: u16,
    },
    /// ack, nack, reject, recover: offsets that `reader` holds, ascending. No reply: an offset not held is ignored.
    Settle {
        /// Holder.
        reader: ReaderId,
        /// Inclusive ranges.
        ranges: Vec<(Offset, Offset)>,
        /// What becomes of them.
        how: Settle,
    },
    /// Channel closed: all readers with this window channel go, and what they hold is released.
    CloseChannel {
        /// Which.
        channel: ChannelId,
    },
    /// RocketMQ send.
    Send(Send),
    /// Make or change a RocketMQ topic.
    CreateTopic {
        /// Name.
        topic: Arc<str>,
        /// Message queues to write to.
        write_queues: u32,
        /// Message queues to read from.
        read_queues: u32,
        /// Permission bits, RocketMQ's.
        permission: u32,
    },
    /// RocketMQ pull.
    Fetch(Fetch),
    /// Where is this message queue?
    QueueOffsets {
        /// Topic.
        topic: Arc<str>,
        /// Message queue.
        queue_id: u32,
    },
    /// First offset stored at or after `timestamp` (ms since 1970).
    SearchOffset {
        /// Topic.
        topic: Arc<str>,
        /// Message queue.
        queue_id: u32,
        /// ms since 1970.
        timestamp: u64,
    },
    /// A group's stored offset.
    GroupOffset {
        /// Group.
        group: Arc<str>,
        /// Topic.
        topic: Arc<str>,
        /// Message queue.
        queue_id: u32,
    },
    /// Store a group's offset. `wait`: reply when durable, else no reply.
    CommitOffset {
        /// Group.
        group: Arc<str>,
        /// Topic.
        topic: Arc<str>,
        /// Message queue.
        queue_id: u32,
        /// Next offset to consume.
        offset: Offset,
        /// Wants an answer.
        wait: bool,
    },
    /// A client of a group wants these queues for itself; what others hold is missing in the answer.
    LockQueues(LockQueues),
    /// It gives them back.
    UnlockQueues(LockQueues),
    /// Remove a RocketMQ topic with its messages, offsets and locks. One that is not there is no error.
    DeleteTopic {
        /// Name.
        topic: Arc<str>,
    },
    /// Keep a named value with the topology, or drop it. The core never reads it.
    PutSetting {
        /// Whose names.
        space: Arc<str>,
        /// Name.
        name: Arc<str>,
        /// `None`: drop it.
        #[serde(with = "raw::option")]
        value: Option<Bytes>,
    },
    /// Where all queues of a topic are, and where a group is in them.
    TopicStats {
        /// Topic; `None`: those in which the group has offsets.
        topic: Option<Arc<str>>,
        /// Group.
        group: Option<Arc<str>>,
    },
    /// Groups that have offsets in a topic.
    GroupsOf {
        /// Topic.
        topic: Arc<str>,
    },
    /// Set a group's offsets in a topic.
    ResetOffsets(ResetOffsets),
    /// Forget all offsets of a group.
    ForgetOffsets {
        /// Group.
        group: Arc<str>,
    },
    /// Deliver again later, or put with the dead letters: a new reference to the old body.
    SendBack(SendBack),
    /// Commit or rollback of a half message.
    EndTransaction(EndTransaction),
    /// This connection answers for half messages of a producer group, or does not any more. No reply.
    AnswerFor {
        /// Producer group.
        group: Arc<str>,
        /// It does.
        answers: bool,
    },
    /// One message by its public position.
    View {
        /// The queue that its record names there ([`crate::broker::message::queue_at`]); [`MOVED`]: no record is there any more.
        queue: QueueUid,
        /// Public position.
        position: Position,
    },
    /// How many messages and readers these queues have; at most [`crate::limits::FIGURES_MAX`] of them.
    QueueFigures(Arc<[QueueUid]>),
    /// The connection is gone: release leases, remove exclusive queues, forget readers.
    Disconnected,
    /// Deliveries were written to the socket (events `Deliveries` and `Got` only; a `Fetched` reply is not counted).
    Drained {
        /// Sum of their `weight`.
        bytes: u32,
    },
}

/// Queues of one client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LockQueues {
    /// Group.
    pub group: Arc<str>,
    /// Client id.
    pub client: Arc<str>,
    /// Topic and message queue of each.
    pub queues: Vec<(Arc<str>, u32)>,
}

/// Where a group shall go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResetOffsets {
    /// Group.
    pub group: Arc<str>,
    /// Topic.
    pub topic: Arc<str>,
    /// Only this message queue.
    pub queue_id: Option<u32>,
    /// Where.
    pub to: ResetTo,
    /// Also forwards; else only queues in which the group is further.
    pub force: bool,
}

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetTo {
    /// The first message stored at or after that time, ms since 1970.
    Time(u64),
    /// That offset.
    Offset(Offset),
    /// Behind the last message.
    End,
}

/// Everything a transaction did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Commit {
    /// In their order; none wants a confirm.
    pub publishes: Vec<Publish>,
    /// In their order. An offset not held is ignored.
    pub settlements: Vec<Settlement>,
}

/// Leases of one reader that end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Holder.
    pub reader: ReaderId,
    /// Inclusive ranges, ascending.
    pub ranges: Vec<(Offset, Offset)>,
    /// What becomes of them.
    pub how: Settle,
}

/// basic.publish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publish {
    /// For the events it causes.
    pub channel: ChannelId,
    /// Exchange, "" is the default one.
    pub exchange: Arc<str>,
    /// Routing key.
    pub routing_key: Arc<str>,
    /// Further routing keys (CC, BCC): the message goes wherever any of them leads, to each queue once.
    pub also: Vec<Arc<str>>,
    /// Return when it reaches no queue.
    pub mandatory: bool,
    /// Number of this publish in its channel, from 1 (confirm mode counts it; 0: no confirm wanted).
    pub confirm: u64,
    /// The message.
    pub message: Message,
}

/// One wish with its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verb {
    /// Proof that it may.
    pub key: Authorized,
    /// Echoed in the reply; 0: the connection wants none. Names the channel too ([`request_of`]): a refusal ends that, and what
    /// comes behind it there is dropped without a word until [`Op::CloseChannel`].
    pub request: u64,
    /// In which vhost names are looked up.
    pub vhost: VhostId,
    /// The wish.
    pub op: Op,
    /// Its number among all verbs that the client's node handed to the leader (ADR 12); 0: the node leads itself.
    pub number: u64,
}

/// The number of a channel's wish. Channel 0: whoever has none; a refusal ends nothing then.
#[must_use]
pub const fn request_of(channel: ChannelId, wish: u32) -> u64 {
    (channel as u64) << 32 | wish as u64
}

/// The channel in the number of a wish.
#[must_use]
pub fn channel_of(request: u64) -> ChannelId {
    ChannelId::try_from(request >> 32).unwrap_or(0)
}

/// A message where it lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Located {
    /// In memory.
    Ready(StoredMessage),
    /// In the log: `len` bytes, `record` bytes behind the batch header at `batch`. Read with [`crate::broker::message::resolve`].
    Stored {
        /// Position of the batch header.
        batch: Position,
        /// From the batch header to the record.
        record: u32,
        /// Bytes of the record.
        len: u32,
    },
    /// Paged out of a queue in memory. Read likewise. It does not leave its node.
    #[serde(skip)]
    Paged(Spilled),
}

/// A message ready to be written out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredMessage {
    /// Layout.
    pub origin: Origin,
    /// prefix (++ body when `body` is `None`) ++ suffix.
    #[serde(with = "raw")]
    pub bytes: Bytes,
    /// Bytes before the body.
    pub prefix_len: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// The body when it lies elsewhere: pieces in order.
    #[serde(with = "raw::pieces")]
    pub body: Option<Vec<Bytes>>,
    /// Log time of the enqueue, ms since 1970.
    pub store_time: u64,
}

/// A message handed to a reader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delivery {
    /// Its number in the queue: what `Settle` names.
    pub offset: Offset,
    /// Public position (RocketMQ physical offset).
    pub position: Position,
    /// Handed out before.
    pub redelivered: bool,
    /// `x-delivery-count` of a quorum queue; 0 on the first delivery.
    pub attempts: u32,
    /// What it counts against the connection's delivery credit: [`Op::Drained`] gives back the sum of these.
    pub weight: u32,
    /// The bytes.
    pub message: Located,
}

/// Bytes on their way between nodes.
mod raw {
    use bytes::Bytes;
    use serde::de::{Deserialize, Deserializer, Error, Visitor};
    use serde::ser::{Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    struct Copied;

    impl Visitor<'_> for Copied {
        type Value = Bytes;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_bytes(Copied)
    }

    /// One of those inside of something else.
    struct Raw(Bytes);

    impl Serialize for Raw {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            serialize(&self.0, to)
        }
    }

    impl<'de> Deserialize<'de> for Raw {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            deserialize(from).map(Raw)
        }
    }

    pub(super) mod option {
        use super::{Bytes, Deserialize, Deserializer, Raw, Serialize, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            bytes: &Option<Bytes>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            bytes.clone().map(Raw).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Bytes>, D::Error> {
            Ok(Option::<Raw>::deserialize(from)?.map(|raw| raw.0))
        }
    }

    pub(super) mod pieces {
        use super::{Bytes, Deserialize, Deserializer, Raw, Serialize, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            pieces: &Option<Vec<Bytes>>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            let pieces = pieces.as_ref().map(|all| all.iter().cloned().map(Raw).collect::<Vec<_>>());
            pieces.serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Vec<Bytes>>, D::Error> {
            let pieces = Option::<Vec<Raw>>::deserialize(from)?;
            Ok(pieces.map(|all| all.into_iter().map(|raw| raw.0).collect()))
        }
    }
}

/// What a refusal is about: "exchange", "queue", "topic", ...
pub type Noun = &'static str;

/// A noun from another node, which runs this program too; one of a newer release is "thing".
fn noun<'de, D: Deserializer<'de>>(from: D) -> Result<Noun, D::Error> {
    let said = <Cow<'de, str>>::deserialize(from)?;
    Ok(NOUNS.into_iter().find(|noun| *noun == said).unwrap_or("thing"))
}

/// Why a verb was refused; adapters choose the code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// What the log holds can not be read. (541; SYSTEM_ERROR)
    #[error("{0}")]
    Damaged(String),
    /// No such thing. (404; TOPIC_NOT_EXIST)
    #[error("no {kind} '{name}' in vhost '{vhost}'")]
    NotFound {
        /// "exchange", "queue", "topic".
        #[serde(deserialize_with = "noun")]
        kind: Noun,
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// Redeclared differently. (406)
    #[error(
        "inequivalent arg '{argument}' for {kind} '{name}' in vhost '{vhost}': received {received} but current is {current}"
    )]
    Inequivalent {
        /// "exchange" or "queue".
        #[serde(deserialize_with = "noun")]
        kind: Noun,
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
        /// Which argument.
        argument: String,
        /// As asked.
        received: String,
        /// As it is.
        current: String,
    },
    /// Another connection's exclusive queue. (405)
    #[error(
        "cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."
    )]
    Locked {
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// Exclusive consumer rules. (403)
    #[error("queue '{name}' in vhost '{vhost}' in exclusive use")]
    InExclusiveUse {
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// if-unused. (406)
    #[error("{kind} '{name}' in vhost '{vhost}' in use")]
    InUse {
        /// "exchange" or "queue".
        #[serde(deserialize_with = "noun")]
        kind: Noun,
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// if-empty. (406)
    #[error("queue '{name}' in vhost '{vhost}' not empty")]
    NotEmpty {
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// A queue that turns messages away when it is full. (406)
    #[error("queue '{name}' in vhost '{vhost}' is full")]
    Full {
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// Publishing to an internal exchange. (403)
    #[error("cannot publish to internal exchange '{name}' in vhost '{vhost}'")]
    Internal {
        /// Name.
        name: Arc<str>,
        /// Vhost.
        vhost: Arc<str>,
    },
    /// A reader id or queue number that does not fit. (530; INVALID_PARAMETER)
    #[error("{0}")]
    Invalid(String),
    /// A limit of `limits.rs`. (506; SYSTEM_BUSY)
    #[error("{0}")]
    Limit(String),
    /// Not now; the same wish may succeed in a moment. (541; SYSTEM_BUSY)
    #[error("{0}")]
    Busy(String),
}

/// Answers of verbs with a `request` number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Ok,
    /// DeclareQueue, PurgeQueue, DeleteQueue.
    Queue {
        /// Ready messages (purge, delete: how many went).
        messages: u64,
        /// Consumers.
        consumers: u32,
    },
    /// Subscribed.
    Subscribed,
    /// basic.get: `None` = empty; `remaining` ready messages.
    Got {
        /// The message.
        delivery: Option<Delivery>,
        /// Its queue's ready messages left.
        remaining: u64,
    },
    /// RocketMQ send: durable.
    Sent {
        /// Chosen message queue.
        queue_id: u32,
        /// Offset of each message.
        offsets: Vec<Offset>,
        /// Public position of each.
        positions: Vec<Position>,
    },
    /// View.
    Viewed {
        /// The message.
        delivery: Delivery,
        /// Its topic; of one that waits, the name of where it waits.
        topic: Arc<str>,
        /// Its message queue there.
        queue_id: u32,
    },
    /// RocketMQ pull.
    Fetched(Fetched),
    /// QueueOffsets.
    Offsets {
        /// First retained.
        min: Offset,
        /// Next to be written.
        max: Offset,
        /// Store time of the first retained message, ms; 0 when empty.
        earliest: u64,
    },
    /// SearchOffset.
    Offset(Offset),
    /// GroupOffset: `None` = none stored; `min` and `max` as in `Offsets`.
    GroupOffset {
        /// Stored.
        offset: Option<Offset>,
        /// First retained.
        min: Offset,
        /// Next to be written.
        max: Offset,
    },
    /// LockQueues: what the client holds now, of what it asked for.
    Locked(Vec<(Arc<str>, u32)>),
    /// TopicStats: the queues of each topic, by message queue.
    Stats(Vec<(Arc<str>, Vec<QueueStats>)>),
    /// GroupsOf.
    Names(Vec<Arc<str>>),
    /// ResetOffsets: message queue and the group's offset there, for every queue that was meant.
    GroupOffsets(Vec<(u32, Offset)>),
    /// QueueFigures, in the order of the question; `None`: it is gone.
    Figures(Vec<Option<QueueFigures>>),
}

/// What is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueFigures {
    /// Messages that wait for a reader.
    pub ready: u64,
    /// Handed out, not settled.
    pub unacked: u64,
    /// Attached readers.
    pub consumers: u32,
}

/// Where a message queue is, and a group in it. Times are ms since 1970, 0: there is no such message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// First retained.
    pub min: Offset,
    /// Next to be written.
    pub max: Offset,
    /// Store time of the last message.
    pub latest: u64,
    /// What the group has stored.
    pub group: Option<Offset>,
    /// Store time of the message before that.
    pub reached: u64,
    /// Store time of the message there; 0 when no group was asked for, too.
    pub waiting: u64,
    /// Store time of the first retained message; 0 when no group was asked for, too.
    pub earliest: u64,
}

/// Result of a pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetched {
    /// What was found.
    pub status: FetchStatus,
    /// Where to go on.
    pub next: Offset,
    /// First retained.
    pub min: Offset,
    /// Next to be written.
    pub max: Offset,
    /// Messages in offset order.
    pub deliveries: Vec<Delivery>,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchStatus {
    /// Messages are there.
    Found,
    /// At the end, nothing came in time.
    NotFound,
    /// There were messages, none matched; go on at `next`.
    NoneMatched,
    /// The offset lies outside of what is retained; `next` says where to go.
    OffsetMoved,
}

/// What the shard tells a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// Answer to a verb.
    Reply {
        /// The verb's number.
        request: u64,
        /// Outcome.
        result: Result<Reply, Refusal>,
    },
    /// Publishes `first..=last` of `channel` are durable where they must be (`accepted`), or were not taken.
    Confirmed {
        /// Channel.
        channel: ChannelId,
        /// First confirm number.
        first: u64,
        /// Last confirm number.
        last: u64,
        /// false: basic.nack.
        accepted: bool,
    },
    /// Mandatory and unroutable; its confirm follows.
    Returned {
        /// Channel.
        channel: ChannelId,
        /// The publish.
        publish: Box<Publish>,
    },
    /// The publish breaks a rule: close the channel.
    PublishRefused {
        /// Channel.
        channel: ChannelId,
        /// Why.
        refusal: Refusal,
    },
    /// Messages for a reader, in order.
    Deliveries {
        /// Which.
        reader: ReaderId,
        /// Messages.
        deliveries: Vec<Delivery>,
    },
    /// The reader's queue is gone.
    ReaderCancelled {
        /// Which.
        reader: ReaderId,
    },
    /// What became of the transaction of this half message? Asked of one connection that answers for its group.
    CheckBack(Delivery),
    /// The node is going down.
    ShuttingDown,
}

/// A message on its way from one place to the next.
#[derive(Debug, Clone)]
pub enum Step<'a> {
    /// Its delay is over.
    Due,
    /// A consumer sent it back.
    SentBack {
        /// How.
        back: &'a SendBack,
        /// Topic it was consumed from.
        topic: &'a str,
        /// Delay levels there are.
        levels: u32,
    },
    /// Its transaction was committed.
    Committed {
        /// The half message's public position.
        position: Position,
        /// How often its producers were asked.
        asked: u32,
        /// Delay levels there are.
        levels: u32,
    },
    /// Its producers were asked too often.
    GivenUp,
}

/// What a message becomes by a [`Step`].
#[derive(Debug, Clone)]
pub struct Stepped {
    /// All bytes, body included.
    pub send: SendMessage,
    /// Topic it is for.
    pub topic: Arc<str>,
    /// Message queue it is for; taken modulo the topic's.
    pub queue_id: u32,
    /// Where it waits before that.
    pub waits: Option<Waits>,
}

/// What a half message says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// The producers that know.
    pub group: Arc<str>,
    /// They are not asked before, ms after it was stored; `None`: the usual time.
    pub not_before_ms: Option<u64>,
}

/// Why a message left its queue without an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its reader discarded it.
    Rejected,
    /// Its time to live was over.
    Expired,
    /// Its queue holds no more.
    Length,
}

/// A message dies in a queue that has an exchange for such messages.
#[derive(Debug, Clone, Copy)]
pub struct Death<'a> {
    /// Why.
    pub cause: Cause,
    /// Name of the queue.
    pub queue: &'a str,
    /// Where it goes.
    pub exchange: &'a Arc<str>,
    /// Under this key; `None`: under those that it came with.
    pub routing_key: Option<&'a Arc<str>>,
    /// s since 1970.
    pub time: u64,
}

/// What a dead message becomes.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// All of it, body included.
    pub publish: Publish,
    /// Names of queues that must not get it: it was there, and went in a circle that nobody's doing is part of.
    pub barred: Vec<Arc<str>>,
    /// Its body is, byte for byte, the stored one.
    pub same_body: bool,
}

/// What a queue does that holds all it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest messages go.
    #[default]
    DropHead,
    /// New ones are turned away.
    Reject,
    /// They are turned away, and go where the dead go.
    RejectDeadLetter,
}

/// What a queue's arguments ask of the core.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueLimits {
    /// How long a message may wait in it, ms.
    pub message_ttl: Option<u64>,
    /// Messages that may wait in it.
    pub max_length: Option<u64>,
    /// Bytes of their bodies that may.
    pub max_bytes: Option<u64>,
    /// What happens when there would be more.
    pub overflow: Overflow,
    /// One reader gets everything until it goes; then the next one.
    pub single_active: bool,
    /// Messages go out by priority; higher ones count as this.
    pub max_priority: Option<u8>,
    /// It goes when nobody used it for so long, ms, above 0. Its use: a consumer, a get, a declare.
    pub expires: Option<u64>,
    /// Exchange and routing key of what dies in it; no key: those that the message came with.
    pub dead_letter: Option<(Arc<str>, Option<Arc<str>>)>,
}

/// What the core must ask of those who know the layouts. Implemented in `server`, given by `node`.
pub trait Semantics: std::marker::Send + Sync + 'static {
    /// Does a headers binding match the message?
    fn headers_match(&self, arguments: &[u8], message: &Message) -> bool;
    /// First argument, among those that matter for `kind` ("queue" or "exchange"), in which two tables differ:
    /// (name, received, current).
    fn arguments_differ(
        &self,
        kind: &'static str,
        received: &[u8],
        current: &[u8],
    ) -> Option<(String, String, String)>;
    /// The exchange that an exchange's arguments name for messages that it leads nowhere.
    fn alternate_exchange(&self, _arguments: &[u8]) -> Option<Arc<str>> {
        None
    }
    /// What a queue's arguments ask for.
    fn queue_limits(&self, _arguments: &[u8]) -> QueueLimits {
        QueueLimits::default()
    }
    /// What a stored message becomes that dies; the text says why nothing.
    ///
    /// # Errors
    /// Its bytes are not what they should be.
    fn dead_letter(&self, _message: &StoredMessage, _death: &Death<'_>) -> Result<DeadLetter, Arc<str>> {
        Err("this core knows no dead letters".into())
    }
    /// The priority that a message asks for.
    fn priority(&self, _message: &Message) -> u8 {
        0
    }
    /// Which of `queues` message queues an AMQP-born message goes to when it is sent to a topic; `None`: the broker picks.
    fn topic_queue(&self, message: &Message, queues: u32) -> Option<u32>;
    /// With how many message queues a topic of that name is made when somebody publishes to its exchange; `None`: it is not.
    fn new_topic(&self, _name: &str) -> Option<u32> {
        None
    }
    /// What a stored RocketMQ message becomes by `step`; the text says why it can not.
    ///
    /// # Errors
    /// The reason, for the client's eyes.
    fn step(&self, message: &StoredMessage, step: &Step<'_>) -> Result<Stepped, Arc<str>>;
    /// Of a stored half message. `None`: it is none.
    fn half(&self, message: &StoredMessage) -> Option<Half>;
    /// How long after `first` the message `again` was born, ms, when both are one message that its producer sent twice.
    fn born_after(&self, _first: &StoredMessage, _again: &Message) -> Option<i64> {
        None
    }
    /// Writes what only the shard knows into a RocketMQ-born prefix: queue id and store time (ms).
    fn stamp(&self, prefix: &mut [u8], queue_id: u32, store_time: u64);
}
