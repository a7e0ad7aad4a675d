//! The management API: RabbitMQ's paths and JSON over HTTP, and a few of our own for RocketMQ.
//!
//! ```text
//!   request ─► login (the realm) ─► route ─┬─► views    what is: topology snapshot, registry of connections, figures of the shard
//!                                          ├─► wishes   declare, delete, bind, purge, publish, get: verbs under authorize()
//!                                          └─► accounts users, permissions, definitions
//! ```
//!
//! Owns: who may look at what (RabbitMQ's tags), the paths, the errors' form.
//! Promises: a request is answered as RabbitMQ 3.10 answers it, or refused; nothing is taken without effect; lists are made page by
//! page while they are read, so that 100,000 queues cost a page of memory and stop nobody.
//! Does not know: how the broker does what is asked.

mod accounts;
mod call;
mod list;
mod messages;
mod rocketmq;
mod table;
mod views;
mod wishes;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::Body;
use crate::broker::link::Shard;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::security::Realm;
use crate::server::health::Readiness;
use crate::server::registry::Registry;
use crate::server::rocketmq::Front;
use call::{Call, Caller};

/// Whose management API this is: RabbitMQ's version of it. Tools read it to know what they may ask.
pub const API_VERSION: &str = "3.10.8";

/// What the listener of `http.listen` serves from.
pub struct Management {
    /// What is missing.
    pub ready: Arc<Readiness>,
    /// Who may log in.
    pub realm: Arc<Realm>,
    /// Who is connected.
    pub registry: Arc<Registry>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Name of this node, as RabbitMQ's nodes have one.
    pub node: String,
    /// Where RocketMQ clients find their name server, once it listens.
    pub name_server: Arc<OnceLock<String>>,
    /// The broker, once it serves.
    pub broker: OnceLock<Broker>,
    /// The cluster, once this node knows which.
    pub cluster: OnceLock<Arc<dyn ClusterDesk>>,
    /// Backups, once there is something to back up.
    pub backups: OnceLock<Arc<dyn BackupDesk>>,
}

/// Bytes that come until their sender goes.
pub type Bytestream = mpsc::Receiver<Bytes>;

/// Backups as management needs them.
pub trait BackupDesk: Send + Sync {
    /// Begins one for a directory that has what `known` says; the reason why not.
    fn begin(&self, known: Bytes) -> Pin<Box<dyn Future<Output = Result<Bytestream, String>> + Send + '_>>;
}

/// The cluster as management needs it.
pub trait ClusterDesk: Send + Sync {
    /// How it is, as `GET /cluster` shows it.
    fn status(&self) -> Pin<Box<dyn Future<Output = Value> + Send + '_>>;
    /// Takes a member out; the reason why not.
    fn remove(&self, node: u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// The broker as management needs it.
pub struct Broker {
    /// Its door.
    pub shard: Shard,
    /// What RocketMQ connections share.
    pub front: Arc<Front>,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
}

/// A port.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The configuration's name of it.
    pub key: &'static str,
    /// Where.
    pub address: SocketAddr,
}

impl Listener {
    /// RabbitMQ's name of the protocol; ours where it has none.
    fn protocol(&self) -> &'static str {
        match self.key {
            "amqp.listen" => "amqp",
            "tls.listen" => "amqp/ssl",
            "http.listen" => "http",
            "metrics.listen" => "http/prometheus",
            "rocketmq.name_server_listen" => "rocketmq/namesrv",
            _ => "rocketmq",
        }
    }
}

/// What a request leads to.
enum Answer {
    /// 200 with this.
    Json(Value),
    /// 200 with JSON that is being made.
    Made(Body),
    /// 200 with bytes that come for long.
    Bytes(Body),
    /// Nothing to say: 204, or 201 for something new.
    Done(StatusCode),
    /// 201, and the name of what was made.
    Created(String),
}

/// A request that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    status: StatusCode,
    error: &'static str,
    reason: String,
    /// Methods that work, for 405.
    allow: &'static str,
}

impl Problem {
    fn new(status: StatusCode, error: &'static str, reason: impl Into<String>) -> Self {
        Self { status, error, reason: reason.into(), allow: "" }
    }

    /// Nobody by that name and password; or the user may not.
    fn not_authorised(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not_authorised", reason)
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Object Not Found", "Not Found")
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", reason)
    }

    fn method(allow: &'static str) -> Self {
        let problem =
            Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("only {allow} here"));
        Self { allow, ..problem }
    }

    /// It may work in a moment.
    fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", reason)
    }
}

type Answered = Result<Answer, Problem>;

/// A refused login waits no longer here.
const GUESS_WAIT_MAX: Duration = Duration::from_secs(1);

/// A request for this API, its body complete.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) peer: SocketAddr,
}

impl Management {
    /// Answers a request whose path begins with `/api`.
    pub(super) async fn answer(self: &Arc<Self>, asked: Asked) -> Response<Body> {
        // Browsers ask without a login first.
        let guesses = call::credentials(&asked.headers).is_some().then(|| asked.peer.ip());
        let answered = match self.admit(&asked) {
            Ok(caller) => match Call::new(asked, caller) {
                Ok(call) => self.route(&call).await,
                Err(problem) => Err(problem),
            },
            Err(problem) => {
                // Few requests are served at once: none of them waits long.
                let wait = guesses.map(|peer| self.registry.login_failed(peer)).unwrap_or_default();
                if !wait.is_zero() {
                    tokio::time::sleep(wait.min(GUESS_WAIT_MAX)).await;
                }
                Err(problem)
            }
        };
        respond(answered)
    }

    /// Is it somebody whose body is worth reading? Decided again, and counted, when it is answered.
    pub(super) fn knows(&self, asked: &Asked) -> bool {
        call::credentials(&asked.headers).is_some_and(|(name, password)| {
            self.realm.authenticate(&name, &password, asked.peer.ip()).is_ok()
        })
    }

    /// Who asks? Everything here needs a login.
    fn admit(&self, asked: &Asked) -> Result<Caller, Problem> {
        let refused = |reason: &str| Err(Problem::not_authorised(reason));
        let Some((name, password)) = call::credentials(&asked.headers) else {
            return refused("Login failed");
        };
        let login = self.realm.authenticate(&name, &password, asked.peer.ip());
        self.metrics.auth_http.attempt(login.is_ok());
        let principal = match login {
            Ok(principal) => principal,
            Err(why) => {
                tracing::warn!(peer = %asked.peer, user = ?name, "HTTP access denied: {why}");
                return refused("Login failed");
            }
        };
        let caller = Caller::new(principal, &self.realm);
        if caller.may_look() {
            Ok(caller)
        } else {
            tracing::warn!(peer = %asked.peer, user = ?name, "HTTP access denied: not a management user");
            refused("Not management user")
        }
    }

    fn broker(&self) -> Result<&Broker, Problem> {
        self.broker.get().ok_or_else(|| Problem::unavailable("the broker is starting"))
    }

    /// DELETE takes a member out of the cluster.
    async fn member(&self, call: &Call, node: &str) -> Answered {
        if call.method != Method::DELETE {
            return Err(Problem::method("DELETE"));
        }
        if !call.caller.is_administrator() {
            return Err(Problem::not_authorised("Not administrator user"));
        }
        let desk = self.cluster.get().ok_or_else(|| Problem::unavailable("no cluster yet"))?;
        let node = node.parse().map_err(|_| Problem::not_found())?;
        desk.remove(node).await.map_err(Problem::bad_request)?;
        tracing::info!(user = %call.caller.principal.name, "member {node} was taken out of the cluster");
        Ok(Answer::Done(StatusCode::NO_CONTENT))
    }

    /// POST takes a backup: what its directory has goes in, what it lacks comes out.
    async fn back_up(&self, call: &Call) -> Answered {
        if call.method != Method::POST {
            return Err(Problem::method("POST"));
        }
        if !call.caller.is_administrator() {
            return Err(Problem::not_authorised("Not administrator user"));
        }
        let desk = self.backups.get().ok_or_else(|| Problem::unavailable("the broker is starting"))?;
        let pieces = desk.begin(call.bytes()).await.map_err(Problem::bad_request)?;
        tracing::info!(user = %call.caller.principal.name, "a backup was asked for");
        Ok(Answer::Bytes(Body::Long(pieces, None)))
    }

    async fn route(self: &Arc<Self>, call: &Call) -> Answered {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        match &path[..] {
            ["whoami"] => call.get(|| self.whoami(call)),
            ["overview"] => self.overview(call).await,
            ["cluster-name"] => call.get(|| Ok(json!({"name": self.node}))),
            ["nodes"] => call.get(|| call.monitor().map(|()| json!([self.node_view()]))),
            ["nodes", name] if *name == self.node => call.get(|| call.monitor().map(|()| self.node_view())),
            [
                "extensions" | "policies" | "operator-policies" | "parameters" | "global-parameters"
                | "federation-links" | "shovels" | "feature-flags",
            ] => call.get(|| Ok(json!([]))),
            ["cluster"] => {
                call.monitor()?;
                let desk = self.cluster.get().ok_or_else(|| Problem::unavailable("no cluster yet"))?;
                let status = desk.status().await;
                call.get(|| Ok(status))
            }
            ["backup"] => self.back_up(call).await,
            ["cluster", "members", node] => self.member(call, node).await,
            ["aliveness-test", vhost] => self.aliveness(call, vhost).await,
            ["health", "checks", check @ ..] => call.get(|| self.check(check)),
            ["vhosts"] => self.vhosts(call).await,
            ["vhosts", name] => self.vhost(call, name).await,
            ["vhosts", name, "permissions"] => self.permissions_where(call, |_, vhost| vhost == *name),
            ["vhosts", name, "connections"] => self.connections(call, Some(name)).await,
            ["vhosts", name, "channels"] => self.channels(call, Some(name), None).await,
            ["connections"] => self.connections(call, None).await,
            ["connections", name] => self.connection(call, name),
            ["connections", name, "channels"] => self.channels(call, None, Some(name)).await,
            ["channels"] => self.channels(call, None, None).await,
            ["channels", name] => self.channel(call, name).await,
            ["consumers"] => self.consumers(call, None).await,
            ["consumers", vhost] => self.consumers(call, Some(vhost)).await,
            ["exchanges"] => self.exchanges(call, None).await,
            ["exchanges", vhost] => self.exchanges(call, Some(vhost)).await,
            ["exchanges", vhost, name] => self.exchange(call, vhost, name).await,
            ["exchanges", vhost, name, "publish"] => self.publish(call, vhost, name).await,
            ["exchanges", vhost, name, "bindings", "source"] => self.bindings_from(call, vhost, name).await,
            ["exchanges", vhost, name, "bindings", "destination"] => {
                self.bindings_to(call, vhost, name, false).await
            }
            ["queues"] => self.queues(call, None).await,
            ["queues", vhost] => self.queues(call, Some(vhost)).await,
            ["queues", vhost, name] => self.queue(call, vhost, name).await,
            ["queues", vhost, name, "contents"] => self.purge(call, vhost, name).await,
            ["queues", vhost, name, "get"] => self.get_messages(call, vhost, name).await,
            ["queues", vhost, name, "bindings"] => self.bindings_to(call, vhost, name, true).await,
            ["bindings"] => self.bindings(call, None).await,
            ["bindings", vhost] => self.bindings(call, Some(vhost)).await,
            ["bindings", vhost, "e", source, kind @ ("q" | "e"), destination] => {
                self.bindings_between(call, vhost, source, (*kind == "q", destination)).await
            }
            ["bindings", vhost, "e", source, kind @ ("q" | "e"), destination, properties] => {
                self.binding(call, vhost, source, (*kind == "q", destination), properties).await
            }
            ["users"] => self.users(call),
            ["users", name] => self.user(call, name),
            ["users", name, "permissions"] => self.permissions_where(call, |user, _| user == *name),
            ["permissions"] => self.permissions_where(call, |_, _| true),
            ["permissions", vhost, user] => self.permission(call, vhost, user),
            ["topic-permissions"] => self.topic_permissions(call),
            ["definitions"] => self.definitions(call, None),
            ["definitions", vhost] => self.definitions(call, Some(vhost)),
            ["rocketmq", "topics"] => self.topics(call),
            ["rocketmq", "groups"] => self.groups(call),
            ["rocketmq", "clients"] => self.clients(call),
            _ => Err(Problem::not_found()),
        }
    }
}

fn respond(answered: Answered) -> Response<Body> {
    let whole = |value: &Value| Body::Whole(Bytes::from(value.to_string()));
    let (status, body) = match &answered {
        Ok(Answer::Json(value)) => (StatusCode::OK, whole(value)),
        Ok(Answer::Made(_) | Answer::Bytes(_)) => (StatusCode::OK, Body::Whole(Bytes::new())),
        Ok(Answer::Done(status)) => (*status, Body::Whole(Bytes::new())),
        Ok(Answer::Created(_)) => (StatusCode::CREATED, Body::Whole(Bytes::new())),
        Err(problem) => (problem.status, whole(&json!({"error": problem.error, "reason": problem.reason}))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match answered {
        Ok(Answer::Made(made)) => *response.body_mut() = made,
        Ok(Answer::Bytes(made)) => {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            *response.body_mut() = made;
        }
        Ok(Answer::Created(location)) => {
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(LOCATION, location);
            }
        }
        Err(Problem { status: StatusCode::UNAUTHORIZED, .. }) => {
            let realm = HeaderValue::from_static("Basic realm=\"RabbitMQ Management\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, realm);
        }
        Err(Problem { allow, .. }) if !allow.is_empty() => {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        _ => {}
    }
    response
}
