//! What is changed over HTTP: connections closed, vhosts, exchanges, queues and bindings made and removed, queues purged.
//!
//! Owns: from JSON to verbs. Promises: every wish passes authorize() in its vhost, as over AMQP; what exists otherwise is a 400 with
//! AMQP's words; 201 means made, 204 that it was so already or is done.
//! Does not know: how the broker decides.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::call::{Call, encode};
use super::views::{Asker, binding_view, properties_key};
use super::{Answer, Answered, Management, Problem};
use crate::broker::api::{BindingSpec, Destination, ExchangeKind, Op, Refusal, Reply, VhostId};
use crate::broker::topology::Topology;
use crate::security::definitions::{BindingEntry, DestinationType, ExchangeEntry, QueueEntry};
use crate::security::{Action, Authorized, Principal, Resource};
use crate::server::amqp::import;
use crate::server::registry::Ask;

/// What is declared.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Declared {
    #[serde(rename = "type")]
    kind: Option<String>,
    durable: Flag,
    auto_delete: Flag,
    internal: Flag,
    arguments: Map<String, Value>,
    routing_key: String,
}

/// A boolean; RabbitMQ also takes it as text.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Text(String),
}

impl Default for Flag {
    fn default() -> Self {
        Self::Bool(false)
    }
}

impl Flag {
    fn get(&self) -> Result<bool, Problem> {
        match self {
            Self::Bool(flag) => Ok(*flag),
            Self::Text(text) => {
                text.parse().map_err(|_| Problem::bad_request(format!("'{text}' is neither true nor false")))
            }
        }
    }
}

/// What a refusal is over HTTP.
pub(super) fn problem(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::NotFound { .. } => Problem::not_found(),
        Refusal::Busy(_) | Refusal::Damaged(_) => Problem::unavailable(refusal.to_string()),
        Refusal::Internal { .. } | Refusal::InExclusiveUse { .. } => {
            Problem::not_authorised(format!("ACCESS_REFUSED - {refusal}"))
        }
        _ => Problem::bad_request(refusal.to_string()),
    }
}

/// A vhost that the caller entered.
pub(super) struct Inside {
    pub(super) principal: Principal,
    pub(super) id: VhostId,
    pub(super) topology: Arc<Topology>,
}

impl Management {
    /// Enters a vhost as the caller.
    pub(super) fn enter(&self, call: &Call, vhost: &str) -> Result<Inside, Problem> {
        let topology = self.broker()?.shard.topology();
        let id = topology.vhost_id(vhost).ok_or_else(Problem::not_found)?;
        let mut principal = call.caller.principal.again();
        principal.enter(vhost).map_err(|refused| Problem::not_authorised(refused.to_string()))?;
        Ok(Inside { principal, id, topology })
    }

    async fn wish(&self, vhost: VhostId, key: Authorized, op: Op) -> Result<Reply, Problem> {
        let mut asker = Asker::new(&self.broker()?.shard);
        asker.ask(vhost, key, op).await?.map_err(|refusal| problem(&refusal))
    }

    pub(super) fn connection(&self, call: &Call, name: &str) -> Answered {
        let entry = self.found_connection(call, name)?;
        match call.method {
            Method::GET | Method::HEAD => Ok(Answer::Json(super::views::connection_view(&entry, &self.node))),
            Method::DELETE => {
                if entry.facts.user != call.caller.principal.name {
                    call.administrator()?;
                }
                let reason = call.reason.clone().unwrap_or_else(|| "Closed via management plugin".to_owned());
                let user = &call.caller.principal.name;
                tracing::info!(connection = %entry.name(), ?user, "an operator closes a connection: {}", reason.escape_debug());
                entry.ask(Ask::Close(reason));
                Ok(Answer::Done(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem::method("GET, HEAD, DELETE")),
        }
    }

    pub(super) async fn vhost(&self, call: &Call, name: &str) -> Answered {
        match call.method {
            Method::GET | Method::HEAD => self.vhost_view(call, name),
            Method::PUT => {
                call.administrator()?;
                let there = self.broker()?.shard.topology().vhost_id(name).is_some();
                self.wish(0, operator()?, Op::CreateVhost { name: name.into() }).await?;
                Ok(Answer::Done(if there { StatusCode::NO_CONTENT } else { StatusCode::CREATED }))
            }
            Method::DELETE => {
                call.administrator()?;
                self.broker()?.shard.topology().vhost_id(name).ok_or_else(Problem::not_found)?;
                self.wish(0, operator()?, Op::DeleteVhost { name: name.into() }).await?;
                Ok(Answer::Done(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem::method("GET, HEAD, PUT, DELETE")),
        }
    }

    pub(super) async fn exchange(&self, call: &Call, vhost: &str, name: &str) -> Answered {
        match call.method {
            Method::GET | Method::HEAD => self.exchange_view(call, vhost, name),
            Method::PUT => {
                let inside = self.enter(call, vhost)?;
                let key = call.allow(&inside.principal, Action::Configure, Resource::Exchange(name))?;
                let declared: Declared = call.body()?;
                let known = inside.topology.exchange(inside.id, name).is_some();
                not_reserved("exchange", name, known)?;
                if !known && let Some(to) = text(&declared, "alternate-exchange") {
                    call.allow(&inside.principal, Action::Read, Resource::Exchange(name))?;
                    call.allow(&inside.principal, Action::Write, Resource::Exchange(to))?;
                }
                let entry = ExchangeEntry {
                    name: name.to_owned(),
                    vhost: vhost.to_owned(),
                    kind: declared.kind.clone().unwrap_or_else(|| "direct".to_owned()),
                    durable: declared.durable.get()?,
                    auto_delete: declared.auto_delete.get()?,
                    internal: declared.internal.get()?,
                    arguments: declared.arguments,
                };
                let wish = import::exchange(&inside.topology, &entry)
                    .map_err(|(_, why)| Problem::bad_request(why))?;
                self.wish(inside.id, key, wish.op).await?;
                Ok(made(known))
            }
            Method::DELETE => {
                let inside = self.enter(call, vhost)?;
                let key = call.allow(&inside.principal, Action::Configure, Resource::Exchange(name))?;
                inside.topology.exchange(inside.id, name).ok_or_else(Problem::not_found)?;
                not_reserved("exchange", name, false)?;
                let if_unused = call.parameter("if-unused") == Some("true");
                self.wish(inside.id, key, Op::DeleteExchange { name: name.into(), if_unused }).await?;
                Ok(Answer::Done(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem::method("GET, HEAD, PUT, DELETE")),
        }
    }

    pub(super) async fn queue(&self, call: &Call, vhost: &str, name: &str) -> Answered {
        match call.method {
            Method::GET | Method::HEAD => self.queue_view(call, vhost, name).await,
            Method::PUT => {
                let inside = self.enter(call, vhost)?;
                let key = call.allow(&inside.principal, Action::Configure, Resource::Queue(name))?;
                let declared: Declared = call.body()?;
                let known = inside.topology.queue(inside.id, name).is_some();
                not_reserved("queue", name, known)?;
                // As over AMQP: who sends messages on needs to read here and to write there.
                if !known && let Some(to) = text(&declared, "x-dead-letter-exchange") {
                    call.allow(&inside.principal, Action::Read, Resource::Queue(name))?;
                    call.allow(&inside.principal, Action::Write, Resource::Exchange(to))?;
                }
                let count = inside.topology.queue_count_in(inside.id);
                if let Some(most) = inside.principal.max_queues()
                    && !known
                    && count >= most as usize
                {
                    let text = format!(
                        "cannot declare queue '{name}': queue limit in vhost '{vhost}' ({most}) is reached"
                    );
                    return Err(Problem::bad_request(text));
                }
                let entry = QueueEntry {
                    name: name.to_owned(),
                    vhost: vhost.to_owned(),
                    kind: None,
                    durable: declared.durable.get()?,
                    auto_delete: declared.auto_delete.get()?,
                    arguments: declared.arguments,
                };
                let wish =
                    import::queue(&inside.topology, &entry).map_err(|(_, why)| Problem::bad_request(why))?;
                self.wish(inside.id, key, wish.op).await?;
                Ok(made(known))
            }
            Method::DELETE => {
                let inside = self.enter(call, vhost)?;
                let key = call.allow(&inside.principal, Action::Configure, Resource::Queue(name))?;
                inside.topology.queue(inside.id, name).ok_or_else(Problem::not_found)?;
                let (if_unused, if_empty) =
                    (call.parameter("if-unused") == Some("true"), call.parameter("if-empty") == Some("true"));
                let op = Op::DeleteQueue { name: name.into(), if_unused, if_empty };
                self.wish(inside.id, key, op).await?;
                Ok(Answer::Done(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem::method("GET, HEAD, PUT, DELETE")),
        }
    }

    pub(super) async fn purge(&self, call: &Call, vhost: &str, name: &str) -> Answered {
        if call.method != Method::DELETE {
            return Err(Problem::method("DELETE"));
        }
        let inside = self.enter(call, vhost)?;
        let key = call.allow(&inside.principal, Action::Read, Resource::Queue(name))?;
        self.wish(inside.id, key, Op::PurgeQueue { name: name.into() }).await?;
        Ok(Answer::Done(StatusCode::NO_CONTENT))
    }

    pub(super) async fn bindings_between(
        &self,
        call: &Call,
        vhost: &str,
        source: &str,
        to: (bool, &str),
    ) -> Answered {
        match call.method {
            Method::GET | Method::HEAD => {
                let specs = self.specs_between(call, vhost, source, to)?;
                Ok(Answer::Json(specs.iter().map(|spec| binding_view(vhost, spec)).collect()))
            }
            Method::POST => {
                let inside = self.enter(call, vhost)?;
                let declared: Declared = call.body()?;
                let (queue, destination) = to;
                let entry = BindingEntry {
                    source: source.to_owned(),
                    vhost: vhost.to_owned(),
                    destination: destination.to_owned(),
                    destination_type: if queue { DestinationType::Queue } else { DestinationType::Exchange },
                    routing_key: declared.routing_key,
                    arguments: declared.arguments,
                };
                if source.is_empty() || source == "amq.default" {
                    let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
                    return Err(Problem::not_authorised(text));
                }
                let wish = import::binding(&inside.topology, &entry)
                    .map_err(|(_, why)| Problem::bad_request(why))?;
                let Op::Bind(spec) = &wish.op else { return Err(Problem::not_found()) };
                let key = may_bind(call, &inside, spec)?;
                let kind = if queue { "q" } else { "e" };
                let ends = [vhost, "e", source, kind, destination].map(encode).join("/");
                let location = format!("/api/bindings/{ends}/{}", encode(&properties_key(spec)));
                self.wish(inside.id, key, wish.op).await?;
                Ok(Answer::Created(location))
            }
            _ => Err(Problem::method("GET, HEAD, POST")),
        }
    }

    pub(super) async fn binding(
        &self,
        call: &Call,
        vhost: &str,
        source: &str,
        to: (bool, &str),
        properties: &str,
    ) -> Answered {
        let specs = self.specs_between(call, vhost, source, to)?;
        // Tools send the key as it was given, or encoded once more.
        let is_it = |key: &str| key == properties || key == encode(properties).replace('~', "%7E");
        let found = specs.into_iter().find(|spec| is_it(&properties_key(spec)));
        let spec = found.ok_or_else(Problem::not_found)?;
        match call.method {
            Method::GET | Method::HEAD => Ok(Answer::Json(binding_view(vhost, &spec))),
            Method::DELETE => {
                let inside = self.enter(call, vhost)?;
                if spec.source.is_empty() {
                    let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
                    return Err(Problem::not_authorised(text));
                }
                let key = may_bind(call, &inside, &spec)?;
                self.wish(inside.id, key, Op::Unbind(spec)).await?;
                Ok(Answer::Done(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem::method("GET, HEAD, DELETE")),
        }
    }
}

/// Write on the destination, read on the source, and the key for topic exchanges: as queue.bind.
fn may_bind(call: &Call, inside: &Inside, spec: &BindingSpec) -> Result<Authorized, Problem> {
    let destination = match &spec.destination {
        Destination::Queue(name) => Resource::Queue(name),
        Destination::Exchange(name) => Resource::Exchange(name),
    };
    let who = &inside.principal;
    call.allow(who, Action::Write, destination)?;
    let topic =
        inside.topology.exchange(inside.id, &spec.source).is_some_and(|e| e.spec.kind == ExchangeKind::Topic);
    if topic {
        call.allow(who, Action::Read, Resource::RoutingKey { exchange: &spec.source, key: &spec.key })?;
    }
    call.allow(who, Action::Read, Resource::Exchange(&spec.source))
}

/// Administrators make and remove vhosts in the operator's name: no user has rights in one that is not there.
fn operator() -> Result<Authorized, Problem> {
    let operator = crate::security::Realm::operator();
    crate::security::authorize(&operator, Action::Configure, Resource::Own)
        .map_err(|denied| Problem::not_authorised(denied.to_string()))
}

/// An argument that is a text.
fn text<'a>(declared: &'a Declared, name: &str) -> Option<&'a str> {
    declared.arguments.get(name)?.as_str()
}

fn not_reserved(kind: &str, name: &str, known: bool) -> Result<(), Problem> {
    if name.starts_with("amq.") && !known {
        let text = format!("ACCESS_REFUSED - {kind} name '{name}' contains reserved prefix 'amq.*'");
        return Err(Problem::not_authorised(text));
    }
    Ok(())
}

fn made(known: bool) -> Answer {
    Answer::Done(if known { StatusCode::NO_CONTENT } else { StatusCode::CREATED })
}
