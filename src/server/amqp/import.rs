//! What a definitions file declares, asked of the shard like any client's wishes.
//!
//! Owns: from RabbitMQ's JSON to broker verbs. Promises: what exists is left as it is (RabbitMQ's rule); what can not be declared is
//! named in the log with its reason, and the rest is declared; vhosts come first, then exchanges and queues, then bindings.
//! Does not know: users, files.

use std::sync::Arc;

use bytes::Bytes;
use dassie_amqp::table::{ArrayBuilder, RawTable, TableBuilder};
use serde_json::{Map, Value};

use super::arguments::{self, Place, QueueFlags};
use super::declare::exchange_kind;
use crate::broker::api::{
    BindingSpec, Destination, Event, ExchangeKind, ExchangeSpec, Op, QueueSpec, Refusal, Reply, Verb, VhostId,
};
use crate::broker::link::{Link, Shard};
use crate::broker::topology::Topology;
use crate::security::definitions::{BindingEntry, DestinationType, ExchangeEntry, QueueEntry, Sources};
use crate::security::{Action, Denied, Realm, Resource, authorize};

/// Connections that declare at the same time: each waits for the disk once per wish.
const LINKS: usize = 32;
/// Objects that are named in the log when they can not be declared; the rest is counted.
const NAMED_MAX: usize = 20;
/// Longest name in the protocol. Bytes.
const NAME_MAX: usize = 255;

/// Why nothing was declared.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The operator may not: a defect.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The shard ended.
    #[error("the broker ended while it declared what the definitions hold")]
    Ended,
    /// A vhost can not be made; users' permissions depend on it.
    #[error("can not make vhost '{0}': {1}")]
    Vhost(Arc<str>, Refusal),
}

/// A wish with what it is about, for the log.
pub(in crate::server) struct Wish {
    what: String,
    vhost: VhostId,
    /// What is wished.
    pub(in crate::server) op: Op,
}

/// Declares what is missing. The shard leads.
///
/// # Errors
/// [`ImportError`]: the broker ends, or a vhost can not be made.
pub async fn import(shard: &Shard, sources: &Sources) -> Result<(), ImportError> {
    let missing = |topology: &Topology| -> Vec<Arc<str>> {
        sources.vhosts().into_iter().filter(|name| topology.vhost_id(name).is_none()).collect()
    };
    let wishes = missing(&shard.topology()).into_iter().map(|name| Wish {
        what: name.to_string(),
        vhost: 0,
        op: Op::CreateVhost { name },
    });
    let (_, refused) = ask(shard, wishes.collect()).await?;
    if let Some((name, refusal)) = refused.into_iter().next() {
        return Err(ImportError::Vhost(name.into(), refusal));
    }
    let topology =
        shard.topology_when(|topology| missing(topology).is_empty()).await.ok_or(ImportError::Ended)?;
    let Some((path, definitions)) = &sources.definitions else { return Ok(()) };
    for (kind, count) in definitions.ignored() {
        tracing::warn!("definitions file '{path}': {count} {kind} have no effect yet");
    }
    let mut report = Report::default();
    let mut wishes = Vec::new();
    for entry in &definitions.exchanges {
        report.take(exchange(&topology, entry), &topology, &mut wishes);
    }
    for entry in &definitions.queues {
        report.take(queue(&topology, entry), &topology, &mut wishes);
    }
    report.add(ask(shard, wishes).await?);
    let mut wishes = Vec::new();
    // The default exchange's own exist as long as the queue.
    for entry in definitions.bindings.iter().filter(|entry| !entry.source.is_empty()) {
        report.take(binding(&topology, entry), &topology, &mut wishes);
    }
    report.add(ask(shard, wishes).await?);
    report.say(path);
    Ok(())
}

#[derive(Default)]
struct Report {
    done: usize,
    failed: Vec<(String, String)>,
}

impl Report {
    fn take(&mut self, made: Made, topology: &Topology, wishes: &mut Vec<Wish>) {
        match made {
            Ok(wish) if exists(topology, &wish) => {}
            Ok(wish) => wishes.push(wish),
            Err(failed) => self.failed.push(failed),
        }
    }

    fn add(&mut self, (done, refused): Asked) {
        self.done += done;
        self.failed.extend(refused.into_iter().map(|(what, refusal)| (what, refusal.to_string())));
    }

    fn say(&self, path: &str) {
        for (what, why) in self.failed.iter().take(NAMED_MAX) {
            tracing::warn!("definitions file '{path}': {what} was not declared: {why}");
        }
        if self.failed.len() > NAMED_MAX {
            let more = self.failed.len() - NAMED_MAX;
            tracing::warn!("definitions file '{path}': {more} more were not declared");
        }
        tracing::info!("definitions file '{path}': {} exchanges, queues and bindings made", self.done);
    }
}

/// Is something there by that name? It is left as it is.
fn exists(topology: &Topology, wish: &Wish) -> bool {
    match &wish.op {
        Op::DeclareExchange(spec, _) => topology.exchange(wish.vhost, &spec.name).is_some(),
        Op::DeclareQueue(spec, _) => topology.queue(wish.vhost, &spec.name).is_some(),
        Op::Bind(spec) => topology.binding(wish.vhost, spec).is_some(),
        _ => false,
    }
}

/// How many were done, and which were refused.
type Asked = (usize, Vec<(String, Refusal)>);

async fn ask(shard: &Shard, wishes: Vec<Wish>) -> Result<Asked, ImportError> {
    let key = authorize(&Realm::operator(), Action::Configure, Resource::Own)?;
    let mut shares: Vec<Vec<Wish>> = Vec::new();
    shares.resize_with(LINKS.min(wishes.len()), Vec::new);
    for (number, wish) in wishes.into_iter().enumerate() {
        shares[number % LINKS].push(wish);
    }
    let mut links: Vec<(Link, Vec<String>)> = Vec::new();
    for share in shares {
        let link = shard.connect();
        let mut names = Vec::with_capacity(share.len());
        let verbs = share.into_iter().zip(1..).map(|(wish, request)| {
            names.push(wish.what);
            Verb { key, request, vhost: wish.vhost, op: wish.op, number: 0 }
        });
        let verbs = verbs.collect();
        if !link.send(verbs) {
            return Err(ImportError::Ended);
        }
        links.push((link, names));
    }
    let (mut done, mut refused) = (0, Vec::new());
    for (mut link, names) in links {
        let mut left = names.len();
        while left > 0 {
            for event in link.events().await.ok_or(ImportError::Ended)? {
                let Event::Reply { request, result } = event else { continue };
                left -= 1;
                match result {
                    Ok(Reply::Ok | Reply::Queue { .. }) => done += 1,
                    Ok(_) => {}
                    Err(refusal) => {
                        let at = usize::try_from(request).unwrap_or(0).saturating_sub(1);
                        refused.push((names.get(at).cloned().unwrap_or_default(), refusal));
                    }
                }
            }
        }
        link.send(vec![Verb { key, request: 0, vhost: 0, op: Op::Disconnected, number: 0 }]);
    }
    Ok((done, refused))
}

/// A wish; or what it is about, and why it can not be.
type Made = Result<Wish, (String, String)>;

/// Declares an exchange.
pub(in crate::server) fn exchange(topology: &Topology, entry: &ExchangeEntry) -> Made {
    let what = format!("exchange '{}' in vhost '{}'", entry.name, entry.vhost);
    let fail = |why: String| (what.clone(), why);
    let vhost = topology.vhost_id(&entry.vhost).ok_or_else(|| fail("no such vhost".into()))?;
    check_name(&entry.name).map_err(fail)?;
    let kind = exchange_kind(&entry.kind).map_err(|error| fail(error.text().to_owned()))?;
    let table = table(&entry.arguments).map_err(fail)?;
    let raw = table.as_table().map_err(|error| fail(error.to_string()))?;
    let place = Place { kind: "exchange", name: &entry.name, vhost: &entry.vhost };
    arguments::exchange(raw, place).map_err(|error| fail(error.text().to_owned()))?;
    let spec = ExchangeSpec {
        name: Arc::from(&*entry.name),
        kind,
        durable: entry.durable,
        auto_delete: entry.auto_delete,
        internal: entry.internal,
        arguments: content(raw),
    };
    Ok(Wish { what, vhost, op: Op::DeclareExchange(spec, false) })
}

/// Declares a queue.
pub(in crate::server) fn queue(topology: &Topology, entry: &QueueEntry) -> Made {
    let what = format!("queue '{}' in vhost '{}'", entry.name, entry.vhost);
    let fail = |why: String| (what.clone(), why);
    let vhost = topology.vhost_id(&entry.vhost).ok_or_else(|| fail("no such vhost".into()))?;
    check_name(&entry.name).map_err(fail)?;
    let mut table = table(&entry.arguments).map_err(fail)?;
    if let Some(kind) = entry.kind.as_deref().filter(|kind| *kind != "classic")
        && !entry.arguments.contains_key("x-queue-type")
    {
        table.put("x-queue-type", kind);
    }
    let raw = table.as_table().map_err(|error| fail(error.to_string()))?;
    let place = Place { kind: "queue", name: &entry.name, vhost: &entry.vhost };
    let flags = QueueFlags {
        durable: entry.durable,
        exclusive: false,
        auto_delete: entry.auto_delete,
        server_named: false,
    };
    let kind = arguments::queue(raw, flags, place).map_err(|error| fail(error.text().to_owned()))?;
    let spec = QueueSpec {
        name: Arc::from(&*entry.name),
        kind,
        durable: entry.durable,
        exclusive: false,
        auto_delete: entry.auto_delete,
        arguments: content(raw),
    };
    Ok(Wish { what, vhost, op: Op::DeclareQueue(spec, false) })
}

/// Binds.
pub(in crate::server) fn binding(topology: &Topology, entry: &BindingEntry) -> Made {
    let what =
        format!("binding from '{}' to '{}' in vhost '{}'", entry.source, entry.destination, entry.vhost);
    let fail = |why: String| (what.clone(), why);
    let vhost = topology.vhost_id(&entry.vhost).ok_or_else(|| fail("no such vhost".into()))?;
    for name in [&entry.source, &entry.destination, &entry.routing_key] {
        check_length(name).map_err(fail)?;
    }
    let table = table(&entry.arguments).map_err(fail)?;
    let raw = table.as_table().map_err(|error| fail(error.to_string()))?;
    let headers =
        topology.exchange(vhost, &entry.source).is_some_and(|x| x.spec.kind == ExchangeKind::Headers);
    let place = Place { kind: "exchange", name: &entry.source, vhost: &entry.vhost };
    arguments::binding(raw, headers, place).map_err(|error| fail(error.text().to_owned()))?;
    let name = Arc::from(&*entry.destination);
    let spec = BindingSpec {
        source: Arc::from(&*entry.source),
        destination: match entry.destination_type {
            DestinationType::Queue => Destination::Queue(name),
            DestinationType::Exchange => Destination::Exchange(name),
        },
        key: Arc::from(&*entry.routing_key),
        arguments: content(raw),
    };
    Ok(Wish { what, vhost, op: Op::Bind(spec) })
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it has no name".into());
    }
    check_length(name)
}

fn check_length(name: &str) -> Result<(), String> {
    if name.len() > NAME_MAX { Err(format!("longer than {NAME_MAX} bytes")) } else { Ok(()) }
}

fn content(table: RawTable<'_>) -> Bytes {
    Bytes::copy_from_slice(table.as_bytes())
}

/// JSON as a field table, with the types that RabbitMQ gives it: whole numbers are `l`, texts `S`.
pub(in crate::server) fn table(arguments: &Map<String, Value>) -> Result<TableBuilder, String> {
    let mut table = TableBuilder::new();
    for (name, value) in arguments {
        check_length(name)?;
        match value {
            Value::Null => table.put(name, dassie_amqp::table::Value::Void),
            Value::Bool(flag) => table.put(name, *flag),
            Value::Number(number) => table.put(name, numeric(number)),
            Value::String(text) => table.put(name, text.as_str()),
            Value::Array(items) => {
                let items = array(items)?;
                table.put_array(name, |nested| *nested = items)
            }
            Value::Object(inner) => {
                let inner = self::table(inner)?;
                table.put_table(name, |nested| *nested = inner)
            }
        };
    }
    Ok(table)
}

fn array(items: &[Value]) -> Result<ArrayBuilder, String> {
    let mut array = ArrayBuilder::default();
    for item in items {
        match item {
            Value::Null => array.push(dassie_amqp::table::Value::Void),
            Value::Bool(flag) => array.push(*flag),
            Value::Number(number) => array.push(numeric(number)),
            Value::String(text) => array.push(text.as_str()),
            Value::Array(items) => {
                let items = self::array(items)?;
                array.push_array(|nested| *nested = items)
            }
            Value::Object(inner) => {
                let inner = table(inner)?;
                array.push_table(|nested| *nested = inner)
            }
        };
    }
    Ok(array)
}

fn numeric(number: &serde_json::Number) -> dassie_amqp::table::Value<'static> {
    match number.as_i64() {
        Some(whole) => dassie_amqp::table::Value::I64(whole),
        None => dassie_amqp::table::Value::F64(number.as_f64().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_the_types_that_rabbitmq_gives_them() {
        let json = r#"{"a": 5, "b": "text", "c": true, "d": 1.5, "e": [1, {"f": null}]}"#;
        let built = table(&serde_json::from_str(json).unwrap()).unwrap();
        let raw = built.as_table().unwrap();
        assert_eq!(raw.get("a").unwrap().as_integer(), Some(5));
        assert_eq!(raw.get("b").unwrap().as_str(), Some("text"));
        assert_eq!(raw.get("c"), Some(dassie_amqp::table::Value::Bool(true)));
        assert_eq!(raw.get("d"), Some(dassie_amqp::table::Value::F64(1.5)));
        assert!(matches!(raw.get("e"), Some(dassie_amqp::table::Value::Array(_))));
    }

    #[test]
    fn what_can_not_be_declared_says_why() {
        let topology = Topology::new();
        let why = |json: &str| {
            let entry: QueueEntry = serde_json::from_str(json).unwrap();
            match queue(&topology, &entry) {
                Err((what, why)) => format!("{what}: {why}"),
                Ok(_) => panic!("{json} should be refused"),
            }
        };
        assert_eq!(why(r#"{"name": "q", "vhost": "x"}"#), "queue 'q' in vhost 'x': no such vhost");
        assert!(why(r#"{"name": "", "vhost": "/"}"#).ends_with("it has no name"));
        let stream = why(r#"{"name": "q", "vhost": "/", "type": "stream", "durable": true}"#);
        assert!(stream.contains("stream"), "{stream}");
    }
}
