//! What is: overview, vhosts, connections, channels, consumers, exchanges, queues, bindings.
//!
//! Owns: the JSON of each, in RabbitMQ's names. Promises: nothing here changes anything; a number that this broker does not keep is
//! left out, never invented. Does not know: where a number comes from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dassie_amqp::table::RawTable;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::call::{Call, encode};
use super::list::{self, Rows, plain};
use super::{API_VERSION, Answer, Answered, Management, Problem, table};
use crate::broker::api::{
    BindingSpec, Destination, Event, ExchangeKind, Op, QueueFigures, QueueKind, QueueUid, Refusal, Reply,
    Verb, VhostId,
};
use crate::broker::link::{Link, Shard};
use crate::broker::topology::{Exchange, QueueDefinition, Topology};
use crate::limits;
use crate::metrics;
use crate::security::{Action, Authorized, Realm, Resource, authorize};
use crate::server::registry::{Ask, ChannelFacts, Entry, Protocol};

/// Connections that describe their channels at the same time.
const DESCRIBED_AT_ONCE: usize = 256;

/// Asks the shard, one question at a time.
pub(super) struct Asker {
    link: Link,
    last: u64,
}

impl Asker {
    pub(super) fn new(shard: &Shard) -> Self {
        Self { link: shard.connect(), last: 0 }
    }

    /// The answer to a wish.
    pub(super) async fn ask(
        &mut self,
        vhost: VhostId,
        key: Authorized,
        op: Op,
    ) -> Result<Result<Reply, Refusal>, Problem> {
        self.last += 1;
        self.send(vhost, key, self.last, op)?;
        loop {
            for event in self.events().await? {
                if let Event::Reply { request, result } = event
                    && request == self.last
                {
                    return Ok(result);
                }
            }
        }
    }

    /// Hands a wish over. 0: it has no answer.
    pub(super) fn send(&self, vhost: VhostId, key: Authorized, request: u64, op: Op) -> Result<(), Problem> {
        let sent = self.link.send(vec![Verb { key, request, vhost, op, number: 0 }]);
        if sent { Ok(()) } else { Err(Problem::unavailable("the broker is ending")) }
    }

    /// The next events.
    pub(super) async fn events(&mut self) -> Result<Vec<Event>, Problem> {
        match timeout(Duration::from_millis(limits::HTTP_WAIT_MS), self.link.events()).await {
            Ok(Some(events)) => Ok(events),
            Ok(None) => Err(Problem::unavailable("the broker is ending")),
            Err(_) => Err(Problem::unavailable("the broker does not answer in time")),
        }
    }

    /// Figures of queues, in their order.
    async fn figures(&mut self, queues: Vec<QueueUid>) -> Option<Vec<Option<QueueFigures>>> {
        // What may be seen was decided by the tags of who asks; the core is asked in the operator's name.
        let key = authorize(&Realm::operator(), Action::Read, Resource::Own).ok()?;
        match self.ask(0, key, Op::QueueFigures(queues.into())).await {
            Ok(Ok(Reply::Figures(figures))) => Some(figures),
            _ => None,
        }
    }
}

/// Work that is too long for a thread that serves connections.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Problem::unavailable("the broker is ending"))
}

/// RabbitMQ's name of a type.
pub(super) fn kind_name(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Headers => "headers",
        ExchangeKind::RocketmqTopic => "x-rocketmq-topic",
    }
}

/// What tells a binding from others with the same ends: RabbitMQ's `properties_key`.
pub(super) fn properties_key(spec: &BindingSpec) -> String {
    let key = encode(&spec.key).replace('~', "%7E");
    if !spec.arguments.is_empty() {
        let digest = Sha256::digest(&spec.arguments);
        let hash: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        return format!("{key}~{hash}");
    }
    if key.is_empty() { "~".to_owned() } else { key }
}

pub(super) fn binding_view(vhost: &str, spec: &BindingSpec) -> Value {
    let (kind, destination) = match &spec.destination {
        Destination::Queue(name) => ("queue", name),
        Destination::Exchange(name) => ("exchange", name),
    };
    json!({
        "source": &*spec.source,
        "vhost": vhost,
        "destination": &**destination,
        "destination_type": kind,
        "routing_key": &*spec.key,
        "arguments": table::object(&spec.arguments),
        "properties_key": properties_key(spec),
    })
}

/// The binding that the default exchange has to every queue.
fn default_binding(queue: &Arc<str>) -> BindingSpec {
    BindingSpec {
        source: "".into(),
        destination: Destination::Queue(Arc::clone(queue)),
        key: Arc::clone(queue),
        arguments: Bytes::new(),
    }
}

pub(super) fn exchange_view(vhost: &str, exchange: &Exchange) -> Value {
    let spec = &exchange.spec;
    json!({
        "name": &*spec.name,
        "vhost": vhost,
        "type": kind_name(spec.kind),
        "durable": spec.durable,
        "auto_delete": spec.auto_delete,
        "internal": spec.internal,
        "arguments": table::object(&spec.arguments),
    })
}

fn default_exchange_view(vhost: &str) -> Value {
    json!({
        "name": "", "vhost": vhost, "type": "direct", "durable": true, "auto_delete": false, "internal": false,
        "arguments": {},
    })
}

pub(super) fn queue_kind(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Classic => "classic",
        QueueKind::Quorum => "quorum",
        QueueKind::Topic => "rocketmq",
    }
}

fn queue_view(vhost: &str, queue: &QueueDefinition, figures: Option<QueueFigures>, node: &str) -> Value {
    let spec = &queue.spec;
    let mut view = json!({
        "name": &*spec.name,
        "vhost": vhost,
        "type": queue_kind(spec.kind),
        "durable": spec.durable,
        "auto_delete": spec.auto_delete,
        "exclusive": spec.exclusive,
        "arguments": table::object(&spec.arguments),
        "node": node,
        "state": "running",
        "policy": null,
        "operator_policy": null,
        "effective_policy_definition": {},
    });
    if let (Some(figures), Value::Object(view)) = (figures, &mut view) {
        view.insert("messages".into(), (figures.ready + figures.unacked).into());
        view.insert("messages_ready".into(), figures.ready.into());
        view.insert("messages_unacknowledged".into(), figures.unacked.into());
        view.insert("consumers".into(), figures.consumers.into());
    }
    view
}

/// Rows of queues, with figures of the shard.
struct QueueRows {
    topology: Arc<Topology>,
    asker: Asker,
    node: String,
}

impl Rows for QueueRows {
    type Key = Arc<QueueDefinition>;

    fn name<'a>(&self, key: &'a Self::Key) -> std::borrow::Cow<'a, str> {
        (&*key.spec.name).into()
    }

    async fn make(&mut self, keys: Vec<Self::Key>) -> Option<Vec<Value>> {
        let mut rows = Vec::with_capacity(keys.len());
        for some in keys.chunks(limits::FIGURES_MAX) {
            let figures = self.asker.figures(some.iter().map(|queue| queue.uid).collect()).await?;
            rows.extend(some.iter().zip(figures).filter(|(_, figures)| figures.is_some()).map(
                |(queue, figures)| {
                    queue_view(&self.topology.vhost_name(queue.vhost), queue, figures, &self.node)
                },
            ));
        }
        Some(rows)
    }
}

pub(super) fn connection_view(entry: &Entry, node: &str) -> Value {
    let facts = &entry.facts;
    let (received, sent) = entry.octets();
    let protocol = match facts.protocol {
        Protocol::Amqp => "AMQP 0-9-1",
        Protocol::Rocketmq => "RocketMQ",
    };
    let (tls_version, cipher) = facts.tls.as_deref().map_or((None, None), |tls| match tls.split_once(' ') {
        Some((version, cipher)) => (Some(version), Some(cipher)),
        None => (Some(tls), None),
    });
    let properties = table::object(&facts.client_properties);
    let given = RawTable::parse(&facts.client_properties).ok();
    let user_provided_name =
        given.and_then(|table| table.get("connection_name").and_then(|v| v.as_str().map(str::to_owned)));
    let mut view = json!({
        "name": entry.name(),
        "node": node,
        "type": "network",
        "protocol": protocol,
        "state": if entry.is_held() { "flow" } else { "running" },
        "user": &*facts.user,
        "user_who_performed_action": &*facts.user,
        "vhost": &*facts.vhost,
        "auth_mechanism": facts.mechanism,
        "channels": entry.channels(),
        "channel_max": facts.channel_max,
        "frame_max": facts.frame_max,
        "timeout": facts.heartbeat,
        "connected_at": entry.connected_at,
        "host": facts.local.ip().to_string(),
        "port": facts.local.port(),
        "peer_host": facts.peer.ip().to_string(),
        "peer_port": facts.peer.port(),
        "ssl": facts.tls.is_some(),
        "ssl_protocol": tls_version,
        "ssl_cipher": cipher,
        "peer_cert_subject": facts.subject,
        "recv_oct": received,
        "send_oct": sent,
        "client_properties": properties,
    });
    if let (Some(name), Value::Object(view)) = (user_provided_name, &mut view) {
        view.insert("user_provided_name".into(), name.into());
    }
    view
}

fn connection_details(entry: &Entry) -> Value {
    json!({
        "name": entry.name(),
        "peer_host": entry.facts.peer.ip().to_string(),
        "peer_port": entry.facts.peer.port(),
    })
}

fn channel_view(entry: &Entry, channel: &ChannelFacts, node: &str) -> Value {
    json!({
        "name": format!("{} ({})", entry.name(), channel.number),
        "number": channel.number,
        "node": node,
        "state": if entry.is_held() { "flow" } else { "running" },
        "user": &*entry.facts.user,
        "user_who_performed_action": &*entry.facts.user,
        "vhost": &*entry.facts.vhost,
        "connection_details": connection_details(entry),
        "confirm": channel.confirm,
        "transactional": channel.transactional,
        "consumer_count": channel.consumers.len(),
        "prefetch_count": channel.prefetch,
        "global_prefetch_count": channel.global_prefetch,
        "messages_unacknowledged": channel.unacked,
        "messages_unconfirmed": channel.unconfirmed,
    })
}

/// Asks connections for their channels; one that does not answer in time is left out.
async fn describe(entries: &[Arc<Entry>]) -> Vec<(Arc<Entry>, Vec<ChannelFacts>)> {
    let mut found = Vec::new();
    let asked = entries.iter().filter_map(|entry| {
        let (sender, answer) = oneshot::channel();
        entry.ask(Ask::Describe(sender)).then(|| (Arc::clone(entry), answer))
    });
    let asked: Vec<_> = asked.collect();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(limits::CONNECTION_ASK_MS);
    for (entry, answer) in asked {
        if let Ok(Ok(channels)) = tokio::time::timeout_at(deadline, answer).await {
            found.push((entry, channels));
        }
    }
    found
}

/// One row for each channel, or each consumer, of connections.
struct ChannelRows {
    node: String,
    consumers: bool,
}

impl Rows for ChannelRows {
    type Key = Arc<Entry>;

    fn name<'a>(&self, key: &'a Self::Key) -> std::borrow::Cow<'a, str> {
        key.name().into()
    }

    async fn make(&mut self, keys: Vec<Self::Key>) -> Option<Vec<Value>> {
        let mut rows = Vec::new();
        for some in keys.chunks(DESCRIBED_AT_ONCE) {
            for (entry, channels) in describe(some).await {
                for channel in channels {
                    if !self.consumers {
                        rows.push(channel_view(&entry, &channel, &self.node));
                        continue;
                    }
                    let details = json!({
                        "name": format!("{} ({})", entry.name(), channel.number),
                        "number": channel.number,
                        "node": self.node,
                        "user": &*entry.facts.user,
                        "connection_name": entry.name(),
                        "peer_host": entry.facts.peer.ip().to_string(),
                        "peer_port": entry.facts.peer.port(),
                    });
                    rows.extend(channel.consumers.iter().map(|consumer| {
                        json!({
                            "consumer_tag": &*consumer.tag,
                            "queue": {"name": &*consumer.queue, "vhost": &*entry.facts.vhost},
                            "ack_required": !consumer.no_ack,
                            "exclusive": consumer.exclusive,
                            "prefetch_count": consumer.prefetch,
                            "active": true,
                            "activity_status": "up",
                            "arguments": table::object(&consumer.arguments),
                            "channel_details": details,
                        })
                    }));
                }
            }
        }
        Some(rows)
    }
}

impl Management {
    pub(super) fn whoami(&self, call: &Call) -> Result<Value, Problem> {
        Ok(json!({
            "name": &*call.caller.principal.name,
            "tags": call.caller.tags,
            "is_internal_user": true,
        }))
    }

    pub(super) fn node_view(&self) -> Value {
        let alarms = false;
        json!({
            "name": self.node,
            "type": "disc",
            "running": true,
            "os_pid": std::process::id().to_string(),
            "uptime": u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX),
            "mem_used": metrics::resident_bytes(),
            "mem_alarm": alarms,
            "disk_free": self.metrics.disk_free(),
            "disk_free_alarm": alarms,
            "fd_used": metrics::open_fds(),
            "fd_total": metrics::max_fds(),
            "sockets_used": self.registry.count(),
            "processors": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "rates_mode": "none",
            "exchange_types": exchange_types(),
            "auth_mechanisms": (["PLAIN", "AMQPLAIN", "EXTERNAL"].map(|name| json!({"name": name, "enabled": true}))),
            "applications": [{"name": "dassie", "version": env!("CARGO_PKG_VERSION"), "description": "Dassie"}],
            "enabled_plugins": [],
            "partitions": [],
        })
    }

    pub(super) async fn overview(&self, call: &Call) -> Answered {
        call.only_get()?;
        let broker = self.broker()?;
        let topology = broker.shard.topology();
        let listeners: Vec<Value> = broker
            .listeners
            .iter()
            .map(|listener| {
                json!({
                    "node": self.node,
                    "protocol": listener.protocol(),
                    "ip_address": listener.address.ip().to_string(),
                    "port": listener.address.port(),
                })
            })
            .collect();
        let mut view = json!({
            "management_version": API_VERSION,
            "rabbitmq_version": API_VERSION,
            "product_name": "Dassie",
            "product_version": env!("CARGO_PKG_VERSION"),
            "erlang_version": "none",
            "erlang_full_version": "none: written in Rust",
            "cluster_name": self.node,
            "node": self.node,
            "rates_mode": "none",
            "statistics_db_event_queue": 0,
            "exchange_types": exchange_types(),
            "contexts": [],
        });
        let m = &self.metrics;
        // Consumers of AMQP and waiting clients alike: what the gauges say, at most a second old.
        if let Value::Object(view) = &mut view
            && call.caller.is_monitor()
        {
            let exchanges = topology.exchanges().count() + topology.vhost_count();
            view.insert("listeners".into(), listeners.into());
            view.insert(
                "object_totals".into(),
                json!({
                    "connections": self.registry.count(),
                    "channels": m.channels.get(),
                    "queues": topology.queues().filter(|queue| queue.spec.kind != QueueKind::Topic).count(),
                    "exchanges": exchanges,
                    "consumers": m.consumers.get(),
                    "rocketmq_topics": topology.topics().count(),
                }),
            );
            view.insert(
                "queue_totals".into(),
                json!({
                    "messages": m.messages.get(),
                    "messages_ready": m.messages_ready.get(),
                    "messages_unacknowledged": m.messages_unacked.get(),
                }),
            );
            view.insert(
                "message_stats".into(),
                json!({
                    "publish": m.amqp.received.get(),
                    "confirm": m.amqp.confirmed.get(),
                    "deliver_get": m.amqp.delivered.get(),
                    "redeliver": m.amqp.redelivered.get(),
                    "ack": m.amqp.acknowledged.get(),
                    "drop_unroutable": m.amqp.unroutable_dropped.get(),
                    "rocketmq_send": m.rocketmq.received.get(),
                    "rocketmq_pull": m.rocketmq.delivered.get(),
                }),
            );
        }
        Ok(Answer::Json(view))
    }

    /// Health checks of load balancers and operators.
    pub(super) fn check(&self, check: &[&str]) -> Result<Value, Problem> {
        let ok = || Ok(json!({"status": "ok"}));
        match check {
            [
                "alarms"
                | "local-alarms"
                | "virtual-hosts"
                | "node-is-mirror-sync-critical"
                | "node-is-quorum-critical",
            ] => {
                let missing = self.ready.missing();
                if missing.is_empty() {
                    ok()
                } else {
                    Err(failed(format!("missing: {}", missing.join(", "))))
                }
            }
            ["port-listener", port] => {
                let port: u16 = port.parse().map_err(|_| Problem::bad_request("not a port"))?;
                match self.broker()?.listeners.iter().any(|listener| listener.address.port() == port) {
                    true => Ok(json!({"status": "ok", "port": port})),
                    false => Err(failed("No active listener")),
                }
            }
            ["protocol-listener", protocol] => {
                let wanted = match *protocol {
                    "amqp091" => "amqp",
                    "amqps" => "amqp/ssl",
                    other => other,
                };
                match self.broker()?.listeners.iter().any(|listener| listener.protocol() == wanted) {
                    true => Ok(json!({"status": "ok", "protocol": protocol})),
                    false => Err(failed("No active listener")),
                }
            }
            _ => Err(Problem::not_found()),
        }
    }

    /// Number of a vhost that the caller may see.
    pub(super) fn seen_vhost(
        &self,
        call: &Call,
        topology: &Topology,
        name: &str,
    ) -> Result<VhostId, Problem> {
        let vhost = topology.vhost_id(name).ok_or_else(Problem::not_found)?;
        call.sees(name).map(|()| vhost)
    }

    /// Vhosts that are looked at: the one named, or all that the caller may see.
    fn looked_at(
        &self,
        call: &Call,
        topology: &Topology,
        named: Option<&str>,
    ) -> Result<Vec<(VhostId, Arc<str>)>, Problem> {
        if let Some(name) = named {
            return Ok(vec![(self.seen_vhost(call, topology, name)?, name.into())]);
        }
        let mut seen: Vec<_> = topology
            .vhosts()
            .filter(|(_, name)| call.caller.sees(name))
            .map(|(id, name)| (id, Arc::clone(name)))
            .collect();
        seen.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(seen)
    }

    pub(super) async fn vhosts(&self, call: &Call) -> Answered {
        let topology = self.broker()?.shard.topology();
        let keys = self.looked_at(call, &topology, None)?;
        let node = self.node.clone();
        let rows = plain(
            |(_, name): &(VhostId, Arc<str>)| name.to_string(),
            move |(_, name)| vhost_view(&name, &node),
        );
        list::answer(call, keys, rows).await
    }

    pub(super) fn vhost_view(&self, call: &Call, name: &str) -> Answered {
        let topology = self.broker()?.shard.topology();
        self.seen_vhost(call, &topology, name)?;
        Ok(Answer::Json(vhost_view(name, &self.node)))
    }

    /// Connections that the caller may see: its own, or with the tags for it all.
    fn seen_connections(&self, call: &Call, vhost: Option<&str>) -> Vec<Arc<Entry>> {
        let mut entries = self.registry.list();
        entries.retain(|entry| {
            (call.caller.is_monitor() || entry.facts.user == call.caller.principal.name)
                && vhost.is_none_or(|vhost| *entry.facts.vhost == *vhost)
        });
        entries
    }

    pub(super) async fn connections(&self, call: &Call, vhost: Option<&str>) -> Answered {
        if let Some(name) = vhost {
            self.seen_vhost(call, &self.broker()?.shard.topology(), name)?;
        }
        let node = self.node.clone();
        let rows = plain(|entry: &Arc<Entry>| entry.name(), move |entry| connection_view(&entry, &node));
        list::answer(call, self.seen_connections(call, vhost), rows).await
    }

    pub(super) fn found_connection(&self, call: &Call, name: &str) -> Result<Arc<Entry>, Problem> {
        let entry = self.registry.find(name).ok_or_else(Problem::not_found)?;
        if call.caller.is_monitor() || entry.facts.user == call.caller.principal.name {
            Ok(entry)
        } else {
            Err(Problem::not_authorised("User not authorised to access object"))
        }
    }

    pub(super) async fn channels(&self, call: &Call, vhost: Option<&str>, of: Option<&str>) -> Answered {
        let entries = match of {
            Some(name) => vec![self.found_connection(call, name)?],
            None => self.seen_connections(call, vhost),
        };
        list::answer(call, entries, ChannelRows { node: self.node.clone(), consumers: false }).await
    }

    /// A channel by its name: the connection's and the number in brackets.
    pub(super) async fn channel(&self, call: &Call, name: &str) -> Answered {
        call.only_get()?;
        let parts = name.strip_suffix(')').and_then(|rest| rest.rsplit_once(" ("));
        let (connection, number) = parts.ok_or_else(Problem::not_found)?;
        let entry = self.found_connection(call, connection)?;
        for (entry, channels) in describe(&[entry]).await {
            if let Some(channel) = channels.iter().find(|channel| channel.number.to_string() == number) {
                return Ok(Answer::Json(channel_view(&entry, channel, &self.node)));
            }
        }
        Err(Problem::not_found())
    }

    pub(super) async fn consumers(&self, call: &Call, vhost: Option<&str>) -> Answered {
        if let Some(name) = vhost {
            self.seen_vhost(call, &self.broker()?.shard.topology(), name)?;
        }
        let entries = self.seen_connections(call, vhost);
        list::answer(call, entries, ChannelRows { node: self.node.clone(), consumers: true }).await
    }

    pub(super) async fn exchanges(&self, call: &Call, vhost: Option<&str>) -> Answered {
        let topology = self.broker()?.shard.topology();
        let vhosts = self.looked_at(call, &topology, vhost)?;
        // `None`: the default exchange.
        let keys = aside(move || {
            let mut keys: Vec<(Arc<str>, Option<Arc<Exchange>>)> = Vec::new();
            for (id, name) in vhosts {
                let mut here: Vec<_> =
                    topology.exchanges().filter(|(of, _)| *of == id).map(|(_, e)| Arc::clone(e)).collect();
                here.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
                keys.push((Arc::clone(&name), None));
                keys.extend(here.into_iter().map(|exchange| (Arc::clone(&name), Some(exchange))));
            }
            keys
        });
        let rows = plain(
            |(_, exchange): &(Arc<str>, Option<Arc<Exchange>>)| {
                exchange.as_ref().map_or_else(String::new, |exchange| exchange.spec.name.to_string())
            },
            |(vhost, exchange)| match exchange {
                Some(exchange) => exchange_view(&vhost, &exchange),
                None => default_exchange_view(&vhost),
            },
        );
        list::answer(call, keys.await?, rows).await
    }

    pub(super) fn exchange_view(&self, call: &Call, vhost: &str, name: &str) -> Answered {
        let topology = self.broker()?.shard.topology();
        let id = self.seen_vhost(call, &topology, vhost)?;
        if name.is_empty() || name == "amq.default" {
            return Ok(Answer::Json(default_exchange_view(vhost)));
        }
        let exchange = topology.exchange(id, name).ok_or_else(Problem::not_found)?;
        Ok(Answer::Json(exchange_view(vhost, exchange)))
    }

    pub(super) async fn queues(&self, call: &Call, vhost: Option<&str>) -> Answered {
        call.only_get()?;
        let shard = &self.broker()?.shard;
        let topology = shard.topology();
        let vhosts = self.looked_at(call, &topology, vhost)?;
        let seen = Arc::clone(&topology);
        let keys = aside(move || {
            let mut keys: Vec<(usize, Arc<QueueDefinition>)> = seen
                .queues()
                .filter(|queue| queue.spec.kind != QueueKind::Topic)
                .filter_map(|queue| {
                    let at = vhosts.iter().position(|(id, _)| *id == queue.vhost)?;
                    Some((at, Arc::clone(queue)))
                })
                .collect();
            keys.sort_by(|a, b| (a.0, &a.1.spec.name).cmp(&(b.0, &b.1.spec.name)));
            keys.into_iter().map(|(_, queue)| queue).collect()
        });
        let keys = keys.await?;
        let rows = QueueRows { topology, asker: Asker::new(shard), node: self.node.clone() };
        list::answer(call, keys, rows).await
    }

    pub(super) async fn queue_view(&self, call: &Call, vhost: &str, name: &str) -> Answered {
        let shard = &self.broker()?.shard;
        let topology = shard.topology();
        let id = self.seen_vhost(call, &topology, vhost)?;
        let queue = topology.queue(id, name).ok_or_else(Problem::not_found)?;
        let figures = Asker::new(shard).figures(vec![queue.uid]).await;
        let figures = figures.ok_or_else(|| Problem::unavailable("the broker is ending"))?;
        let figures = figures.into_iter().next().flatten();
        if figures.is_none() {
            return Err(Problem::not_found());
        }
        Ok(Answer::Json(queue_view(vhost, queue, figures, &self.node)))
    }

    pub(super) async fn bindings(&self, call: &Call, vhost: Option<&str>) -> Answered {
        let topology = self.broker()?.shard.topology();
        let vhosts = self.looked_at(call, &topology, vhost)?;
        let keys = aside(move || {
            let mut keys: Vec<(Arc<str>, BindingSpec)> = Vec::new();
            for (id, name) in vhosts {
                let default = topology
                    .queues()
                    .filter(|queue| queue.vhost == id && queue.spec.kind != QueueKind::Topic)
                    .map(|queue| default_binding(&queue.spec.name));
                let bound = topology
                    .exchanges()
                    .filter(|(of, _)| *of == id)
                    .flat_map(|(_, exchange)| exchange.all_bindings().map(|binding| binding.spec.clone()));
                let mut here: Vec<BindingSpec> = default.chain(bound).collect();
                sort(&mut here);
                keys.extend(here.into_iter().map(|spec| (Arc::clone(&name), spec)));
            }
            keys
        });
        list::answer(call, keys.await?, binding_rows()).await
    }

    pub(super) async fn bindings_from(&self, call: &Call, vhost: &str, source: &str) -> Answered {
        let topology = self.broker()?.shard.topology();
        let id = self.seen_vhost(call, &topology, vhost)?;
        let name: Arc<str> = vhost.into();
        let mut specs: Vec<BindingSpec> = if source.is_empty() || source == "amq.default" {
            let queues = topology.queues().filter(|q| q.vhost == id && q.spec.kind != QueueKind::Topic);
            queues.map(|queue| default_binding(&queue.spec.name)).collect()
        } else {
            let exchange = topology.exchange(id, source).ok_or_else(Problem::not_found)?;
            exchange.all_bindings().map(|binding| binding.spec.clone()).collect()
        };
        sort(&mut specs);
        list::answer(call, specs.into_iter().map(|spec| (Arc::clone(&name), spec)).collect(), binding_rows())
            .await
    }

    pub(super) async fn bindings_to(&self, call: &Call, vhost: &str, name: &str, queue: bool) -> Answered {
        let topology = self.broker()?.shard.topology();
        let id = self.seen_vhost(call, &topology, vhost)?;
        let there =
            if queue { topology.queue(id, name).is_some() } else { topology.exchange(id, name).is_some() };
        if !there {
            return Err(Problem::not_found());
        }
        let vhost: Arc<str> = vhost.into();
        let keys = specs_to(&topology, id, name, queue).into_iter().map(|spec| (Arc::clone(&vhost), spec));
        list::answer(call, keys.collect(), binding_rows()).await
    }

    pub(super) fn specs_between(
        &self,
        call: &Call,
        vhost: &str,
        source: &str,
        (queue, destination): (bool, &str),
    ) -> Result<Vec<BindingSpec>, Problem> {
        let topology = self.broker()?.shard.topology();
        let id = self.seen_vhost(call, &topology, vhost)?;
        let source = if source == "amq.default" { "" } else { source };
        let mut specs = specs_to(&topology, id, destination, queue);
        specs.retain(|spec| *spec.source == *source);
        Ok(specs)
    }
}

/// All bindings to a queue (the default exchange's first) or an exchange.
fn specs_to(topology: &Topology, vhost: VhostId, name: &str, queue: bool) -> Vec<BindingSpec> {
    let name: Arc<str> = name.into();
    let mut specs = Vec::new();
    if queue && topology.queue(vhost, &name).is_some() {
        specs.push(default_binding(&name));
    }
    let destination = if queue { Destination::Queue(name) } else { Destination::Exchange(name) };
    specs.extend(topology.bindings_to(vhost, &destination).map(|binding| binding.spec.clone()));
    sort(&mut specs);
    specs
}

fn sort(specs: &mut [BindingSpec]) {
    let destination = |spec: &BindingSpec| match &spec.destination {
        Destination::Queue(name) | Destination::Exchange(name) => Arc::clone(name),
    };
    specs.sort_by(|a, b| (&a.source, destination(a), &a.key).cmp(&(&b.source, destination(b), &b.key)));
}

fn binding_rows() -> impl Rows<Key = (Arc<str>, BindingSpec)> {
    plain(
        |(_, spec): &(Arc<str>, BindingSpec)| spec.source.to_string(),
        |(vhost, spec)| binding_view(&vhost, &spec),
    )
}

fn vhost_view(name: &str, node: &str) -> Value {
    json!({"name": name, "description": "", "tags": [], "tracing": false, "cluster_state": {node: "running"}})
}

fn exchange_types() -> Value {
    let kinds = [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Headers, ExchangeKind::Topic];
    kinds.map(|kind| json!({"name": kind_name(kind), "enabled": true})).into_iter().collect()
}

/// A health check that failed: 503, and why.
fn failed(reason: impl Into<String>) -> Problem {
    Problem::new(hyper::StatusCode::SERVICE_UNAVAILABLE, "failed", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_told_from_others_by_its_key_and_arguments() {
        let mut spec = default_binding(&"a/b~c".into());
        assert_eq!(properties_key(&spec), "a%2Fb%7Ec");
        spec.key = "".into();
        assert_eq!(properties_key(&spec), "~");
        spec.arguments = Bytes::from_static(b"\x01xt\x01");
        let with = properties_key(&spec);
        assert!(with.starts_with('~') && with.len() == 25, "{with}");
    }
}
