//! Exchange and queue methods: names, arguments and rights checked, then asked of the shard.
//!
//! Owns: the rules that hold whatever exists: reserved names, the default exchange, argument names, types' own limits.
//! Promises: the codes and texts of RabbitMQ. Does not know: what the shard will say; equality of a redeclare is decided there.

use std::sync::Arc;

use bytes::Bytes;
use dassie_amqp::method::{
    ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind, QueueBind, QueueDeclare, QueueDelete,
    QueuePurge, QueueUnbind,
};
use dassie_amqp::reply::{Exception, ReplyCode};
use dassie_amqp::table::RawTable;

use super::answers::Owed;
use super::arguments::{self, Place, QueueFlags, precondition};
use super::names;
use super::session::Session;
use crate::broker::api::{BindingSpec, Destination, ExchangeKind, ExchangeSpec, Op, QueueKind, QueueSpec};
use crate::security::{Action, Authorized, Resource};

/// From where on a queue bound to a topic would get its messages.
const START: &str = "x-start";

impl Session {
    pub(super) fn exchange_declare(&mut self, number: u16, m: &ExchangeDeclare<'_>) -> Result<(), Exception> {
        let name: Arc<str> = names::strip_line_ends(m.exchange).into();
        not_default(&name)?;
        let vhost_name = Arc::clone(&self.agreed.vhost_name);
        let place = Place { kind: "exchange", name: &name, vhost: &vhost_name };
        let mut kind = ExchangeKind::Direct;
        // RabbitMQ before 4.2 asks no permission of who only looks.
        let mut key = self.own();
        if !m.passive {
            kind = exchange_kind(m.kind)?;
            key = self.allow(Action::Configure, Resource::Exchange(&name))?;
            if self.topology.exchange(self.agreed.vhost, &name).is_none() {
                self.allow_detour(m.arguments, "alternate-exchange", Resource::Exchange(&name))?;
            }
            if names::is_reserved(&name) && self.topology.exchange(self.agreed.vhost, &name).is_none() {
                return Err(reserved("exchange", &name));
            }
            arguments::exchange(m.arguments, place)?;
        }
        let spec = ExchangeSpec {
            name,
            kind,
            durable: m.durable,
            auto_delete: m.auto_delete,
            internal: m.internal,
            arguments: Bytes::copy_from_slice(m.arguments.as_bytes()),
        };
        let op = Op::DeclareExchange(spec, m.passive);
        let id = self.next_id();
        self.ask(number, id, ExchangeDeclare::ID, m.nowait, Owed::ExchangeDeclare, key, op);
        Ok(())
    }

    pub(super) fn exchange_delete(&mut self, number: u16, m: &ExchangeDelete<'_>) -> Result<(), Exception> {
        let name: Arc<str> = names::strip_line_ends(m.exchange).into();
        not_default(&name)?;
        if names::is_reserved(&name) {
            return Err(Exception::new(
                ReplyCode::AccessRefused,
                format_args!(
                    "deletion of system exchange '{name}' in vhost '{}' not allowed",
                    self.agreed.vhost_name
                ),
            ));
        }
        let key = self.allow(Action::Configure, Resource::Exchange(&name))?;
        let op = Op::DeleteExchange { name, if_unused: m.if_unused };
        let id = self.next_id();
        self.ask(number, id, ExchangeDelete::ID, m.nowait, Owed::ExchangeDelete, key, op);
        Ok(())
    }

    pub(super) fn exchange_bind(&mut self, number: u16, m: &ExchangeBind<'_>) -> Result<(), Exception> {
        let (key, spec) = self.exchange_binding(m.destination, m.source, m.routing_key, m.arguments)?;
        let id = self.next_id();
        self.ask(number, id, ExchangeBind::ID, m.nowait, Owed::ExchangeBind, key, Op::Bind(spec));
        Ok(())
    }

    pub(super) fn exchange_unbind(&mut self, number: u16, m: &ExchangeUnbind<'_>) -> Result<(), Exception> {
        let (key, spec) = self.exchange_binding(m.destination, m.source, m.routing_key, m.arguments)?;
        let id = self.next_id();
        self.ask(number, id, ExchangeUnbind::ID, m.nowait, Owed::ExchangeUnbind, key, Op::Unbind(spec));
        Ok(())
    }

    pub(super) fn queue_declare(&mut self, number: u16, m: &QueueDeclare<'_>) -> Result<(), Exception> {
        let server_named = m.queue.is_empty() && !m.passive;
        let name: Arc<str> = match server_named {
            true => names::generate("amq.gen-").into(),
            false => names::strip_line_ends(m.queue).into(),
        };
        let vhost_name = Arc::clone(&self.agreed.vhost_name);
        let place = Place { kind: "queue", name: &name, vhost: &vhost_name };
        let mut kind = QueueKind::Classic;
        let mut key = self.own();
        if !m.passive && !names::is_reply(&name) {
            let exists = self.topology.queue(self.agreed.vhost, &name).is_some();
            if names::is_reserved(&name) && !server_named && !exists {
                return Err(reserved("queue", &name));
            }
            key = self.allow(Action::Configure, Resource::Queue(&name))?;
            if !exists {
                self.check_room(&name)?;
                self.allow_detour(m.arguments, "x-dead-letter-exchange", Resource::Queue(&name))?;
            }
            let flags = QueueFlags {
                durable: m.durable,
                exclusive: m.exclusive,
                auto_delete: m.auto_delete,
                server_named,
            };
            kind = arguments::queue(m.arguments, flags, place)?;
        }
        let spec = QueueSpec {
            name: Arc::clone(&name),
            kind,
            // An exclusive queue goes with its connection: it can not outlive a restart, whatever was asked.
            durable: m.durable && !m.exclusive,
            exclusive: m.exclusive,
            auto_delete: m.auto_delete,
            arguments: Bytes::copy_from_slice(m.arguments.as_bytes()),
        };
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.default_queue = Some(Arc::clone(&name));
        }
        let op = Op::DeclareQueue(spec, m.passive);
        let id = self.next_id();
        self.ask(number, id, QueueDeclare::ID, m.nowait, Owed::QueueDeclare(name), key, op);
        Ok(())
    }

    pub(super) fn queue_bind(&mut self, number: u16, m: &QueueBind<'_>) -> Result<(), Exception> {
        let (key, spec) = self.queue_binding(number, m.queue, m.exchange, m.routing_key, m.arguments)?;
        let id = self.next_id();
        self.ask(number, id, QueueBind::ID, m.nowait, Owed::QueueBind, key, Op::Bind(spec));
        Ok(())
    }

    pub(super) fn queue_unbind(&mut self, number: u16, m: &QueueUnbind<'_>) -> Result<(), Exception> {
        let (key, spec) = self.queue_binding(number, m.queue, m.exchange, m.routing_key, m.arguments)?;
        let id = self.next_id();
        self.ask(number, id, QueueUnbind::ID, false, Owed::QueueUnbind, key, Op::Unbind(spec));
        Ok(())
    }

    pub(super) fn queue_purge(&mut self, number: u16, m: &QueuePurge<'_>) -> Result<(), Exception> {
        let name = self.queue_name(number, m.queue)?;
        let key = self.allow(Action::Read, Resource::Queue(&name))?;
        let id = self.next_id();
        self.ask(number, id, QueuePurge::ID, m.nowait, Owed::QueuePurge, key, Op::PurgeQueue { name });
        Ok(())
    }

    pub(super) fn queue_delete(&mut self, number: u16, m: &QueueDelete<'_>) -> Result<(), Exception> {
        let name = self.queue_name(number, &names::strip_line_ends(m.queue))?;
        let key = self.allow(Action::Configure, Resource::Queue(&name))?;
        let quorum =
            self.topology.queue(self.agreed.vhost, &name).is_some_and(|q| q.spec.kind == QueueKind::Quorum);
        if quorum && (m.if_unused || m.if_empty) {
            let flag = if m.if_unused { "if-unused" } else { "if-empty" };
            return Err(Exception::new(
                ReplyCode::NotImplemented,
                format_args!(
                    "cannot delete queue '{name}' in vhost '{}'. queue.delete operations with {flag} flag set are not \
                     supported by quorum queues",
                    self.agreed.vhost_name
                ),
            ));
        }
        let op = Op::DeleteQueue { name, if_unused: m.if_unused, if_empty: m.if_empty };
        let id = self.next_id();
        self.ask(number, id, QueueDelete::ID, m.nowait, Owed::QueueDelete, key, op);
        Ok(())
    }

    /// A declare that sends messages on to another exchange needs to read here and to write there.
    fn allow_detour(&self, arguments: RawTable<'_>, name: &str, from: Resource<'_>) -> Result<(), Exception> {
        if let Some(to) = arguments.get(name).and_then(|value| value.as_str()) {
            self.allow(Action::Read, from)?;
            self.allow(Action::Write, Resource::Exchange(to))?;
        }
        Ok(())
    }

    /// Topic permissions: they hold for exchanges that match words. One that is not there yet could become one.
    pub(super) fn allow_key(&self, action: Action, exchange: &str, key: &str) -> Result<(), Exception> {
        if !self.agreed.principal.narrows_keys() {
            return Ok(());
        }
        let kind = self.topology.exchange(self.agreed.vhost, exchange).map(|known| known.spec.kind);
        if matches!(kind, None | Some(ExchangeKind::Topic | ExchangeKind::RocketmqTopic)) {
            self.allow(action, Resource::RoutingKey { exchange, key })?;
        }
        Ok(())
    }

    /// `max-queues` of the vhost, on what is applied: declares in flight are not counted, as in RabbitMQ.
    fn check_room(&self, name: &str) -> Result<(), Exception> {
        let Some(limit) = self.agreed.principal.max_queues() else { return Ok(()) };
        if self.topology.queue_count_in(self.agreed.vhost) < usize::try_from(limit).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(precondition(format_args!(
            "cannot declare queue '{name}': queue limit in vhost '{}' ({limit}) is reached",
            self.agreed.vhost_name
        )))
    }

    /// The queue that a name means: the last declared one if it is empty. Line ends go where topology is made only.
    pub(super) fn queue_name(&self, number: u16, name: &str) -> Result<Arc<str>, Exception> {
        if !name.is_empty() {
            return Ok(name.into());
        }
        let declared = self.channels.get(&number).and_then(|channel| channel.default_queue.clone());
        declared.ok_or_else(|| Exception::new(ReplyCode::NotFound, "no previously declared queue"))
    }

    fn queue_binding(
        &self,
        number: u16,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: RawTable<'_>,
    ) -> Result<(Authorized, BindingSpec), Exception> {
        let name = self.queue_name(number, &names::strip_line_ends(queue))?;
        // RabbitMQ: an empty queue and an empty key mean the last declared queue under its own name.
        let routing_key = if queue.is_empty() && routing_key.is_empty() { &*name } else { routing_key };
        let source: Arc<str> = names::strip_line_ends(exchange).into();
        self.allow(Action::Write, Resource::Queue(&name))?;
        not_default(&source)?;
        let key = self.allow(Action::Read, Resource::Exchange(&source))?;
        self.allow_key(Action::Read, &source, routing_key)?;
        let spec = self.binding(source, Destination::Queue(Arc::clone(&name)), routing_key, arguments)?;
        Ok((key, spec))
    }

    fn exchange_binding(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: RawTable<'_>,
    ) -> Result<(Authorized, BindingSpec), Exception> {
        let destination: Arc<str> = names::strip_line_ends(destination).into();
        let source: Arc<str> = names::strip_line_ends(source).into();
        self.allow(Action::Write, Resource::Exchange(&destination))?;
        not_default(&destination)?;
        not_default(&source)?;
        let key = self.allow(Action::Read, Resource::Exchange(&source))?;
        self.allow_key(Action::Read, &source, routing_key)?;
        let spec = self.binding(source, Destination::Exchange(destination), routing_key, arguments)?;
        Ok((key, spec))
    }

    fn binding(
        &self,
        source: Arc<str>,
        destination: Destination,
        routing_key: &str,
        arguments: RawTable<'_>,
    ) -> Result<BindingSpec, Exception> {
        let exchange = self.topology.exchange(self.agreed.vhost, &source);
        let headers = exchange.is_some_and(|exchange| exchange.spec.kind == ExchangeKind::Headers);
        if exchange.is_some_and(|exchange| exchange.spec.kind == ExchangeKind::RocketmqTopic)
            && arguments.get(START).is_some()
        {
            // A binding that takes later messages only would look like one that took the earlier ones, too.
            return Err(precondition(format_args!(
                "binding argument '{START}' of exchange '{source}' is not supported yet"
            )));
        }
        let place = Place { kind: "exchange", name: &source, vhost: &self.agreed.vhost_name };
        arguments::binding(arguments, headers, place)?;
        let arguments = Bytes::copy_from_slice(arguments.as_bytes());
        Ok(BindingSpec { source, destination, key: routing_key.into(), arguments })
    }
}

pub(super) fn exchange_kind(name: &str) -> Result<ExchangeKind, Exception> {
    match name {
        "direct" => Ok(ExchangeKind::Direct),
        "fanout" => Ok(ExchangeKind::Fanout),
        "topic" => Ok(ExchangeKind::Topic),
        "headers" => Ok(ExchangeKind::Headers),
        other => Err(precondition(format_args!("unknown exchange type '{other}'"))),
    }
}

fn not_default(exchange: &str) -> Result<(), Exception> {
    match exchange {
        "" => {
            Err(Exception::new(ReplyCode::AccessRefused, "operation not permitted on the default exchange"))
        }
        _ => Ok(()),
    }
}

fn reserved(kind: &str, name: &str) -> Exception {
    Exception::new(
        ReplyCode::AccessRefused,
        format_args!("{kind} name '{name}' contains reserved prefix 'amq.*'"),
    )
}
