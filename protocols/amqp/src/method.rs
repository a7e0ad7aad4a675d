//! Every method of AMQP 0-9-1 and of RabbitMQ's extensions: the table below is the vocabulary of both sides.
//!
//! ```text
//!   method frame payload    │ class u16 │ method u16 │ arguments … │
//! ```
//!
//! Owns class and method ids, names, argument order and types, who may send a method, and which methods bring
//! content. Promises that parsing borrows everything and allocates nothing, and that each argument was
//! checked: strings are UTF-8, tables are valid to the bottom, nothing is missing and nothing follows. Does
//! not know when a method may come.
//!
//! Two sources differ about short strings in the methods that bring content: RabbitMQ does not check exchange
//! and routing key for UTF-8 there, the spec (4.2.5.3) demands it everywhere. Here they are text everywhere:
//! a key that is not text could not be bound anyway.

use std::fmt;

use crate::frame::{FrameKind, FrameStart};
use crate::reply::{Exception, ReplyCode};
use crate::table::RawTable;
pub use crate::wire::{Malformed, SHORTSTR_MAX};
use crate::wire::{Reader, Writer};

/// The class id and method id in front of a method's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MethodId {
    /// The class, for example 60 for `basic`.
    pub class: u16,
    /// The method within its class.
    pub method: u16,
}

impl MethodId {
    /// What a close carries when no method is to blame.
    pub const NONE: Self = Self { class: 0, method: 0 };

    /// The ids in front of a method frame's payload, if it is long enough to have them.
    #[must_use]
    pub fn peek(payload: &[u8]) -> Option<Self> {
        Self::split(payload).map(|(id, _)| id)
    }

    /// The ids and the arguments of a method frame's payload.
    #[inline]
    fn split(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (&[c1, c0, m1, m0], arguments) = payload.split_first_chunk()?;
        Some((Self { class: u16::from_be_bytes([c1, c0]), method: u16::from_be_bytes([m1, m0]) }, arguments))
    }
}

/// The method's name, or its ids if it has none.
impl fmt::Display for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "method {}.{}", self.class, self.method),
        }
    }
}

/// Who may send a method (spec 1.3, chassis). `Both` includes what RabbitMQ's extensions allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Clients only.
    Client,
    /// Servers only.
    Server,
    /// Either.
    Both,
}

/// Why a method frame's payload is no method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodError {
    /// Too short for class and method id.
    NoId,
    /// No method has these ids.
    Unknown(MethodId),
    /// The method exists, but its arguments are wrong.
    Malformed(MethodId, Malformed),
}

impl fmt::Display for MethodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoId => f.write_str("method frame without class and method id"),
            Self::Unknown(id) => write!(f, "unknown {id}"),
            Self::Malformed(id, what) => write!(f, "cannot decode {id}: {what}"),
        }
    }
}

impl std::error::Error for MethodError {}

/// The codes and ids are those a RabbitMQ client sees: malformed text is blamed on no method.
impl From<MethodError> for Exception {
    fn from(error: MethodError) -> Self {
        let (code, id) = match error {
            MethodError::NoId => (ReplyCode::FrameError, MethodId::NONE),
            MethodError::Unknown(id) => (ReplyCode::CommandInvalid, id),
            MethodError::Malformed(_, Malformed::NotUtf8) => (ReplyCode::FrameError, MethodId::NONE),
            MethodError::Malformed(id, Malformed::Table(what)) if !what.is_undecodable() => {
                (ReplyCode::SyntaxError, id)
            }
            MethodError::Malformed(id, _) => (ReplyCode::FrameError, id),
        };
        Self::new(code, error).during(id)
    }
}

/// The Rust type of an argument type of the spec.
macro_rules! argument {
    (bit) => { bool };
    (octet) => { u8 };
    (short) => { u16 };
    (long) => { u32 };
    (longlong) => { u64 };
    (shortstr) => { &'a str };
    (longstr) => { &'a [u8] };
    (table) => { RawTable<'a> };
}

macro_rules! has_content {
    () => {
        false
    };
    (content) => {
        true
    };
}

/// Makes of each row a struct with its fields, a variant of [`Method`], and the code to read and write it.
macro_rules! methods {
    ($(
        $(#[$doc:meta])*
        $class:literal $method:literal $name:literal $sender:ident $([$content:ident])?
        $ty:ident $(<$life:lifetime>)? { $($field:ident: $kind:ident),* $(,)? }
    )+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            pub struct $ty $(<$life>)? {
                $(
                    #[doc = concat!("Argument of type `", stringify!($kind), "`.")]
                    pub $field: argument!($kind),
                )*
            }

            impl $(<$life>)? $ty $(<$life>)? {
                /// Class id and method id.
                pub const ID: MethodId = MethodId { class: $class, method: $method };

                /// Appends a whole method frame on `channel` to `out`.
                ///
                /// # Panics
                /// If a short string has more than 255 bytes. Names are checked where they enter the broker.
                #[inline]
                pub fn encode_frame(&self, channel: u16, out: &mut Vec<u8>) {
                    let frame = FrameStart::begin(FrameKind::Method, channel, out);
                    self.encode(out);
                    frame.end(out);
                }

                /// Appends the payload of a method frame (ids and arguments) to `out`.
                ///
                /// # Panics
                /// If a short string has more than 255 bytes.
                #[inline]
                pub fn encode(&self, out: &mut Vec<u8>) {
                    let mut w = Writer::new(out);
                    w.short($class);
                    w.short($method);
                    $(w.$kind(self.$field);)*
                }
            }

            impl<'a> From<$ty $(<$life>)?> for Method<'a> {
                #[inline]
                fn from(method: $ty $(<$life>)?) -> Self {
                    Self::$ty(method)
                }
            }
        )+

        /// Any method, with its arguments borrowed from the frame it came in.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Method<'a> {
            $($(#[$doc])* $ty($ty $(<$life>)?),)+
        }

        impl<'a> Method<'a> {
            /// Parses the payload of a method frame.
            ///
            /// # Errors
            /// Unknown ids; arguments cut short, followed by more bytes, or with malformed text or tables.
            #[inline]
            pub fn parse(payload: &'a [u8]) -> Result<Self, MethodError> {
                let (id, arguments) = MethodId::split(payload).ok_or(MethodError::NoId)?;
                Self::parse_arguments(id, arguments).map_err(|what| match what {
                    Some(what) => MethodError::Malformed(id, what),
                    None => MethodError::Unknown(id),
                })
            }

            /// No error means unknown ids.
            #[inline]
            fn parse_arguments(id: MethodId, arguments: &'a [u8]) -> Result<Self, Option<Malformed>> {
                let mut r = Reader::new(arguments);
                let method = match (id.class, id.method) {
                    $(($class, $method) => Self::$ty($ty { $($field: r.$kind()?),* }),)+
                    _ => return Err(None),
                };
                r.finish()?;
                Ok(method)
            }

            /// Appends the payload of a method frame (ids and arguments) to `out`.
            ///
            /// # Panics
            /// If a short string has more than 255 bytes.
            pub fn encode(&self, out: &mut Vec<u8>) {
                match self { $(Self::$ty(method) => method.encode(out),)+ }
            }

            /// Appends a whole method frame on `channel` to `out`.
            ///
            /// # Panics
            /// If a short string has more than 255 bytes.
            pub fn encode_frame(&self, channel: u16, out: &mut Vec<u8>) {
                match self { $(Self::$ty(method) => method.encode_frame(channel, out),)+ }
            }

            /// Class id and method id.
            #[must_use]
            pub const fn id(&self) -> MethodId {
                match self { $(Self::$ty(_) => $ty::ID,)+ }
            }

            /// The name in the spec, for example `"basic.publish"`.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$ty(_) => $name,)+ }
            }

            /// Who may send it.
            #[must_use]
            pub const fn sender(&self) -> Sender {
                match self { $(Self::$ty(_) => Sender::$sender,)+ }
            }

            /// Whether a content header and a body follow.
            #[must_use]
            pub const fn has_content(&self) -> bool {
                match self { $(Self::$ty(_) => has_content!($($content)?),)+ }
            }
        }

        impl MethodId {
            /// The name in the spec, if a method has these ids.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match (self.class, self.method) {
                    $(($class, $method) => Some($name),)+
                    _ => None,
                }
            }
        }

        /// The rows of the table: what the tests write frames from, without the code above.
        #[cfg(test)]
        pub(crate) const ROWS: &[crate::testing::Row] = &[$(crate::testing::Row {
            id: $ty::ID,
            name: $name,
            arguments: &[$((stringify!($field), stringify!($kind))),*],
        }),+];
    };
}

// Fields the spec reserved, and clients fill with zeros or nothing: ticket, capabilities, insist,
// known_hosts, out_of_band, channel_id (of open-ok), cluster_id. They are carried, so that a method encodes
// to what it was read from.
methods! {
    /// Opens the handshake: what the server is, and how one may log in.
    10 10 "connection.start" Server
    ConnectionStart<'a> {
        version_major: octet, version_minor: octet, server_properties: table, mechanisms: longstr,
        locales: longstr,
    }
    /// What the client is, the mechanism it chose, and its first words.
    10 11 "connection.start-ok" Client
    ConnectionStartOk<'a> {
        client_properties: table, mechanism: shortstr, response: longstr, locale: shortstr,
    }
    /// Asks for more, when a mechanism takes several rounds.
    10 20 "connection.secure" Server
    ConnectionSecure<'a> { challenge: longstr }
    /// Answers a challenge.
    10 21 "connection.secure-ok" Client
    ConnectionSecureOk<'a> { response: longstr }
    /// The server's limits; sent when the login succeeded.
    10 30 "connection.tune" Server
    ConnectionTune { channel_max: short, frame_max: long, heartbeat: short }
    /// The limits in force: no higher than the server's. Heartbeat in seconds, 0 for none.
    10 31 "connection.tune-ok" Client
    ConnectionTuneOk { channel_max: short, frame_max: long, heartbeat: short }
    /// Chooses the virtual host.
    10 40 "connection.open" Client
    ConnectionOpen<'a> { virtual_host: shortstr, capabilities: shortstr, insist: bit }
    /// Ends the handshake: the connection may be used.
    10 41 "connection.open-ok" Server
    ConnectionOpenOk<'a> { known_hosts: shortstr }
    /// Ends the connection: orderly (200), or with the code and the method that failed.
    10 50 "connection.close" Both
    ConnectionClose<'a> { reply_code: short, reply_text: shortstr, class_id: short, method_id: short }
    /// Nothing follows on this connection.
    10 51 "connection.close-ok" Both
    ConnectionCloseOk {}
    /// The server reads no more publishes for now. Only to clients that declared `connection.blocked`.
    10 60 "connection.blocked" Server
    ConnectionBlocked<'a> { reason: shortstr }
    /// The server reads publishes again.
    10 61 "connection.unblocked" Server
    ConnectionUnblocked {}
    /// Renews the secret of the login, for example a token about to expire.
    10 70 "connection.update-secret" Client
    ConnectionUpdateSecret<'a> { new_secret: longstr, reason: shortstr }
    /// The new secret is in force.
    10 71 "connection.update-secret-ok" Server
    ConnectionUpdateSecretOk {}

    /// Opens a channel.
    20 10 "channel.open" Client
    ChannelOpen<'a> { out_of_band: shortstr }
    /// The channel is open.
    20 11 "channel.open-ok" Server
    ChannelOpenOk<'a> { channel_id: longstr }
    /// Asks the peer to pause or resume sending content.
    20 20 "channel.flow" Both
    ChannelFlow { active: bit }
    /// The flow asked for is in force.
    20 21 "channel.flow-ok" Both
    ChannelFlowOk { active: bit }
    /// Ends a channel: orderly (200), or with the code and the method that failed.
    20 40 "channel.close" Both
    ChannelClose<'a> { reply_code: short, reply_text: shortstr, class_id: short, method_id: short }
    /// Nothing follows on this channel; its number is free.
    20 41 "channel.close-ok" Both
    ChannelCloseOk {}

    /// Asks for an access ticket. Of AMQP 0-8; answered for old clients.
    30 10 "access.request" Client
    AccessRequest<'a> { realm: shortstr, exclusive: bit, passive: bit, active: bit, write: bit, read: bit }
    /// A ticket; nobody looks at it.
    30 11 "access.request-ok" Server
    AccessRequestOk { ticket: short }

    /// Creates an exchange, or (passive) asks whether it exists.
    40 10 "exchange.declare" Client
    ExchangeDeclare<'a> {
        ticket: short, exchange: shortstr, kind: shortstr, passive: bit, durable: bit, auto_delete: bit,
        internal: bit, nowait: bit, arguments: table,
    }
    /// The exchange exists.
    40 11 "exchange.declare-ok" Server
    ExchangeDeclareOk {}
    /// Deletes an exchange.
    40 20 "exchange.delete" Client
    ExchangeDelete<'a> { ticket: short, exchange: shortstr, if_unused: bit, nowait: bit }
    /// The exchange is gone.
    40 21 "exchange.delete-ok" Server
    ExchangeDeleteOk {}
    /// Binds one exchange to another (RabbitMQ).
    40 30 "exchange.bind" Client
    ExchangeBind<'a> {
        ticket: short, destination: shortstr, source: shortstr, routing_key: shortstr, nowait: bit,
        arguments: table,
    }
    /// The binding exists.
    40 31 "exchange.bind-ok" Server
    ExchangeBindOk {}
    /// Removes a binding between exchanges (RabbitMQ).
    40 40 "exchange.unbind" Client
    ExchangeUnbind<'a> {
        ticket: short, destination: shortstr, source: shortstr, routing_key: shortstr, nowait: bit,
        arguments: table,
    }
    /// The binding is gone. Its method id really is 51.
    40 51 "exchange.unbind-ok" Server
    ExchangeUnbindOk {}

    /// Creates a queue, or (passive) asks whether it exists.
    50 10 "queue.declare" Client
    QueueDeclare<'a> {
        ticket: short, queue: shortstr, passive: bit, durable: bit, exclusive: bit, auto_delete: bit,
        nowait: bit, arguments: table,
    }
    /// The queue exists: its name, ready messages, consumers.
    50 11 "queue.declare-ok" Server
    QueueDeclareOk<'a> { queue: shortstr, message_count: long, consumer_count: long }
    /// Binds a queue to an exchange.
    50 20 "queue.bind" Client
    QueueBind<'a> {
        ticket: short, queue: shortstr, exchange: shortstr, routing_key: shortstr, nowait: bit,
        arguments: table,
    }
    /// The binding exists.
    50 21 "queue.bind-ok" Server
    QueueBindOk {}
    /// Drops the ready messages of a queue.
    50 30 "queue.purge" Client
    QueuePurge<'a> { ticket: short, queue: shortstr, nowait: bit }
    /// So many messages were dropped.
    50 31 "queue.purge-ok" Server
    QueuePurgeOk { message_count: long }
    /// Deletes a queue.
    50 40 "queue.delete" Client
    QueueDelete<'a> { ticket: short, queue: shortstr, if_unused: bit, if_empty: bit, nowait: bit }
    /// The queue is gone, with so many messages.
    50 41 "queue.delete-ok" Server
    QueueDeleteOk { message_count: long }
    /// Removes a binding of a queue. It has no nowait.
    50 50 "queue.unbind" Client
    QueueUnbind<'a> {
        ticket: short, queue: shortstr, exchange: shortstr, routing_key: shortstr, arguments: table,
    }
    /// The binding is gone.
    50 51 "queue.unbind-ok" Server
    QueueUnbindOk {}

    /// Limits how many deliveries may be unacknowledged.
    60 10 "basic.qos" Client
    BasicQos { prefetch_size: long, prefetch_count: short, global: bit }
    /// The limit is in force.
    60 11 "basic.qos-ok" Server
    BasicQosOk {}
    /// Starts a consumer.
    60 20 "basic.consume" Client
    BasicConsume<'a> {
        ticket: short, queue: shortstr, consumer_tag: shortstr, no_local: bit, no_ack: bit, exclusive: bit,
        nowait: bit, arguments: table,
    }
    /// The consumer exists under this tag.
    60 21 "basic.consume-ok" Server
    BasicConsumeOk<'a> { consumer_tag: shortstr }
    /// Ends a consumer; from the server when its queue is gone (RabbitMQ, `consumer_cancel_notify`).
    60 30 "basic.cancel" Both
    BasicCancel<'a> { consumer_tag: shortstr, nowait: bit }
    /// The consumer is gone.
    60 31 "basic.cancel-ok" Both
    BasicCancelOk<'a> { consumer_tag: shortstr }
    /// Sends a message to an exchange.
    60 40 "basic.publish" Client [content]
    BasicPublish<'a> {
        ticket: short, exchange: shortstr, routing_key: shortstr, mandatory: bit, immediate: bit,
    }
    /// Gives back a message that was mandatory and reached no queue.
    60 50 "basic.return" Server [content]
    BasicReturn<'a> { reply_code: short, reply_text: shortstr, exchange: shortstr, routing_key: shortstr }
    /// Brings a message to a consumer.
    60 60 "basic.deliver" Server [content]
    BasicDeliver<'a> {
        consumer_tag: shortstr, delivery_tag: longlong, redelivered: bit, exchange: shortstr,
        routing_key: shortstr,
    }
    /// Asks for one message.
    60 70 "basic.get" Client
    BasicGet<'a> { ticket: short, queue: shortstr, no_ack: bit }
    /// Brings the one message, and how many remain.
    60 71 "basic.get-ok" Server [content]
    BasicGetOk<'a> {
        delivery_tag: longlong, redelivered: bit, exchange: shortstr, routing_key: shortstr,
        message_count: long,
    }
    /// There is none.
    60 72 "basic.get-empty" Server
    BasicGetEmpty<'a> { cluster_id: shortstr }
    /// Settles deliveries; from the server: confirms publishes (RabbitMQ, confirm.select).
    60 80 "basic.ack" Both
    BasicAck { delivery_tag: longlong, multiple: bit }
    /// Gives one delivery back, to be requeued or dropped.
    60 90 "basic.reject" Client
    BasicReject { delivery_tag: longlong, requeue: bit }
    /// Gives all deliveries of the channel back, without an answer.
    60 100 "basic.recover-async" Client
    BasicRecoverAsync { requeue: bit }
    /// Gives all deliveries of the channel back.
    60 110 "basic.recover" Client
    BasicRecover { requeue: bit }
    /// They are back.
    60 111 "basic.recover-ok" Server
    BasicRecoverOk {}
    /// Gives deliveries back; from the server: it could not take publishes (RabbitMQ).
    60 120 "basic.nack" Both
    BasicNack { delivery_tag: longlong, multiple: bit, requeue: bit }

    /// Asks for publisher confirms on this channel (RabbitMQ).
    85 10 "confirm.select" Client
    ConfirmSelect { nowait: bit }
    /// Publishes on this channel are confirmed from now on.
    85 11 "confirm.select-ok" Server
    ConfirmSelectOk {}

    /// Makes the channel transactional.
    90 10 "tx.select" Client
    TxSelect {}
    /// The channel is transactional.
    90 11 "tx.select-ok" Server
    TxSelectOk {}
    /// Commits all publishes and settlements since the last commit or rollback.
    90 20 "tx.commit" Client
    TxCommit {}
    /// They are in force.
    90 21 "tx.commit-ok" Server
    TxCommitOk {}
    /// Forgets them.
    90 30 "tx.rollback" Client
    TxRollback {}
    /// They are forgotten.
    90 31 "tx.rollback-ok" Server
    TxRollbackOk {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::TableError;
    use crate::testing::{Row, Tables, oracle, row};

    fn parsed(payload: &[u8]) -> Method<'_> {
        Method::parse(payload).expect("a well-formed method")
    }

    fn rows() -> impl Strategy<Value = &'static Row> {
        (0..ROWS.len()).prop_map(|at| &ROWS[at])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_method_encodes_to_the_bytes_it_was_read_from(
            (row, payload) in rows().prop_flat_map(|row| (Just(row), row.payload(Tables::Any, "")))
        ) {
            let method = parsed(&payload);
            let mut encoded = Vec::new();
            method.encode(&mut encoded);
            prop_assert_eq!((method.id(), method.name()), (row.id, row.name));
            prop_assert_eq!(&encoded, &payload);
            prop_assert_eq!(parsed(&encoded), method);
        }

        #[test]
        fn the_oracle_reads_what_we_write_and_we_read_what_it_writes(
            payload in rows().prop_flat_map(|row| row.payload(Tables::Canonical, Row::DROPPED))
        ) {
            let method = parsed(&payload);
            let mut frame = Vec::new();
            method.encode_frame(7, &mut frame);
            let theirs = oracle::rewrite(&frame);
            prop_assert_eq!(&theirs, &frame, "{:?}", method);
            let payload = &theirs[crate::frame::FRAME_HEAD..theirs.len() - 1];
            prop_assert_eq!(parsed(payload), method);
        }

        #[test]
        fn arguments_that_are_cut_or_continued_are_refused_with_the_ids_of_the_method(
            (row, payload, cut) in rows()
                .prop_flat_map(|row| (Just(row), row.payload(Tables::Any, "")))
                .prop_flat_map(|(row, payload)| {
                    let all = payload.len();
                    (Just(row), Just(payload), 4..all.max(5))
                })
        ) {
            if cut < payload.len() {
                let error = Method::parse(&payload[..cut]).expect_err("cut short");
                prop_assert_eq!(error, MethodError::Malformed(row.id, Malformed::Truncated));
                let exception = Exception::from(error);
                prop_assert_eq!((exception.code(), exception.method()), (ReplyCode::FrameError, row.id));
            }
            let longer = [&payload[..], &[0]].concat();
            prop_assert_eq!(Method::parse(&longer), Err(MethodError::Malformed(row.id, Malformed::Trailing)));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for row in ROWS {
                let id = [row.id.class, row.id.method].map(u16::to_be_bytes).concat();
                let _ = Method::parse(&[&id[..], &bytes].concat());
            }
            let _ = Method::parse(&bytes);
        }
    }

    #[test]
    fn the_table_has_every_method_the_oracle_knows_and_no_other() {
        let ours: Vec<(u16, u16)> = ROWS.iter().map(|row| (row.id.class, row.id.method)).collect();
        for class in 0..=100 {
            for method in 0..=130 {
                assert_eq!(oracle::knows(class, method), ours.contains(&(class, method)), "{class}.{method}");
            }
        }
    }

    #[test]
    fn ids_and_names_are_unique() {
        for (at, row) in ROWS.iter().enumerate() {
            assert!(
                ROWS[..at].iter().all(|earlier| earlier.id != row.id && earlier.name != row.name),
                "{}",
                row.name
            );
            assert_eq!(row.id.name(), Some(row.name));
        }
    }

    #[test]
    fn only_the_four_methods_of_the_spec_bring_content() {
        let with_content: Vec<&str> =
            ROWS.iter().filter(|row| parsed(&row.smallest()).has_content()).map(|row| row.name).collect();
        assert_eq!(with_content, ["basic.publish", "basic.return", "basic.deliver", "basic.get-ok"]);
    }

    #[test]
    fn answers_are_sent_by_the_other_side() {
        for row in ROWS.iter().filter(|row| row.name.ends_with("-ok")) {
            let asked = row.name.trim_end_matches("-ok");
            let Some(asked) = ROWS.iter().find(|row| row.name == asked) else { continue };
            let expected = match parsed(&asked.smallest()).sender() {
                Sender::Client => Sender::Server,
                Sender::Server => Sender::Client,
                Sender::Both => Sender::Both,
            };
            assert_eq!(parsed(&row.smallest()).sender(), expected, "{}", row.name);
        }
    }

    #[test]
    fn a_publish_is_these_bytes() {
        let publish =
            BasicPublish { exchange: "amq.topic", routing_key: "a.b", mandatory: true, ..Default::default() };
        let mut frame = Vec::new();
        publish.encode_frame(1, &mut frame);
        assert_eq!(frame, b"\x01\0\x01\0\0\0\x15\0\x3c\0\x28\0\0\x09amq.topic\x03a.b\x01\xce");
    }

    #[test]
    fn a_deliver_is_these_bytes() {
        let deliver = BasicDeliver {
            consumer_tag: "ct",
            delivery_tag: 0x0102_0304_0506_0708,
            redelivered: true,
            exchange: "",
            routing_key: "q",
        };
        let mut payload = Vec::new();
        deliver.encode(&mut payload);
        assert_eq!(payload, b"\0\x3c\0\x3c\x02ct\x01\x02\x03\x04\x05\x06\x07\x08\x01\0\x01q");
    }

    #[test]
    fn the_flags_of_a_declare_lie_lowest_bit_first() {
        let declare = QueueDeclare { queue: "q", durable: true, nowait: true, ..Default::default() };
        let mut payload = Vec::new();
        declare.encode(&mut payload);
        assert_eq!(payload, b"\0\x32\0\x0a\0\0\x01q\x12\0\0\0\0");
    }

    #[test]
    fn unused_bits_of_a_flag_octet_are_ignored() {
        let ack = Method::parse(b"\0\x3c\0\x50\0\0\0\0\0\0\0\x07\xff");
        assert_eq!(ack, Ok(Method::BasicAck(BasicAck { delivery_tag: 7, multiple: true })));
    }

    #[test]
    fn unknown_ids_are_a_command_that_does_not_exist() {
        for (class, method) in [(0, 0), (60, 41), (61, 40), (10, 12), (0xffff, 0xffff)] {
            let payload = [class, method].map(u16::to_be_bytes).concat();
            let exception = Exception::from(Method::parse(&payload).expect_err("no such method"));
            assert_eq!(exception.code(), ReplyCode::CommandInvalid);
            assert_eq!(exception.method(), MethodId { class, method });
        }
        assert_eq!(Method::parse(&[0, 60, 0]), Err(MethodError::NoId));
    }

    #[test]
    fn malformed_text_is_a_frame_error_that_blames_no_method() {
        let payload = b"\0\x32\0\x0a\0\0\x02\xc3\x28\0\0\0\0\0";
        let exception = Exception::from(Method::parse(payload).expect_err("not UTF-8"));
        assert_eq!((exception.code(), exception.method()), (ReplyCode::FrameError, MethodId::NONE));
    }

    #[test]
    fn an_illegal_table_is_a_syntax_error_and_a_cut_one_a_frame_error() {
        let declare = |arguments: &[u8]| {
            let mut payload = b"\0\x32\0\x0a\0\0\x01q\0".to_vec();
            payload.extend_from_slice(&u32::try_from(arguments.len()).unwrap().to_be_bytes());
            payload.extend_from_slice(arguments);
            Exception::from(Method::parse(&payload).expect_err("no table")).code()
        };
        assert_eq!(declare(b"\x01kU\0\0"), ReplyCode::SyntaxError);
        assert_eq!(declare(b"\x01kI\0\0"), ReplyCode::FrameError);
        let error = MethodError::Malformed(QueueDeclare::ID, Malformed::Table(TableError::TooDeep));
        assert_eq!(Exception::from(error).method(), QueueDeclare::ID);
    }

    #[test]
    #[should_panic(expected = "at most 255 bytes")]
    fn a_name_too_long_for_a_short_string_is_our_own_mistake() {
        QueueDeclareOk { queue: &"q".repeat(256), ..Default::default() }.encode(&mut Vec::new());
    }

    #[test]
    fn a_name_of_255_bytes_is_carried() {
        let name = "q".repeat(SHORTSTR_MAX);
        let mut payload = row("queue.purge").smallest();
        payload.splice(6..7, [&[255], name.as_bytes()].concat());
        assert_eq!(parsed(&payload), QueuePurge { queue: &name, ..Default::default() }.into());
    }
}
