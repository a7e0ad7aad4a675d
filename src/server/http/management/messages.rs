//! Single messages over HTTP: publish, get, and the test that both work.
//!
//! Owns: JSON of a message. Promises: a publish is answered when the broker confirmed it; what a get takes away is gone, what it puts
//! back is flagged redelivered. Does not know: layouts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dassie_amqp::content::{Properties, PropertyList};
use dassie_amqp::table::TableBuilder;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::views::{Asker, aside};
use super::wishes::{Inside, problem};
use super::{Answer, Answered, Management, Problem, table};
use crate::broker::api::{Event, Op, Publish, QueueKind, QueueSpec, Reply, Settle};
use crate::limits;
use crate::security::{Action, Resource};
use crate::server::amqp::{import, operate};

/// Most messages of one get.
const GET_MAX: u64 = 1_000;
/// The queue of the aliveness test.
const ALIVENESS: &str = "aliveness-test";
/// Bytes of bodies that one get gives.
const GET_BYTES_MAX: usize = limits::HTTP_BODY_MAX;

#[derive(Debug, Deserialize)]
struct Publishing {
    routing_key: String,
    payload: String,
    payload_encoding: String,
    #[serde(default)]
    properties: Value,
}

#[derive(Debug, Deserialize)]
struct Getting {
    count: Value,
    ackmode: String,
    encoding: String,
    #[serde(default)]
    truncate: Option<usize>,
}

impl Management {
    pub(super) async fn publish(&self, call: &Call, vhost: &str, exchange: &str) -> Answered {
        if call.method != Method::POST {
            return Err(Problem::method("POST"));
        }
        let inside = self.enter(call, vhost)?;
        let exchange = if exchange == "amq.default" { "" } else { exchange };
        let wanted: Publishing = call.body()?;
        let body = match wanted.payload_encoding.as_str() {
            "string" => wanted.payload.into_bytes(),
            "base64" => {
                STANDARD.decode(&wanted.payload).map_err(|_| Problem::bad_request("payload is not base64"))?
            }
            other => {
                return Err(Problem::bad_request(format!("payload_encoding '{other}' is not supported")));
            }
        };
        let routed =
            self.publish_one(call, &inside, (exchange, &wanted.routing_key), &wanted.properties, &body);
        Ok(Answer::Json(json!({"routed": routed.await?})))
    }

    /// Publishes and waits for the confirm; did it reach a queue?
    async fn publish_one(
        &self,
        call: &Call,
        inside: &Inside,
        (exchange, routing_key): (&str, &str),
        properties: &Value,
        body: &[u8],
    ) -> Result<bool, Problem> {
        let who = &inside.principal;
        let key = call.allow(who, Action::Write, Resource::Exchange(exchange))?;
        if !exchange.is_empty() {
            inside.topology.exchange(inside.id, exchange).ok_or_else(Problem::not_found)?;
            call.allow(who, Action::Write, Resource::RoutingKey { exchange, key: routing_key })?;
        }
        if routing_key.len() > 255 {
            return Err(Problem::bad_request("routing_key is longer than 255 bytes"));
        }
        let given = Given::of(properties)?;
        let table = given.headers.as_ref().map(TableBuilder::as_table).transpose();
        let table = table.map_err(|error| Problem::bad_request(format!("headers: {error}")))?;
        let list = PropertyList { headers: table, ..given.list() };
        let (message, also) = operate::message((exchange, routing_key), &list, body, who)
            .map_err(|exception| Problem::bad_request(exception.text()))?;
        for key in &also {
            if !exchange.is_empty() {
                call.allow(who, Action::Write, Resource::RoutingKey { exchange, key })?;
            }
        }
        let publish = Publish {
            channel: 1,
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            also,
            mandatory: true,
            confirm: 1,
            message,
        };
        let mut asker = Asker::new(&self.broker()?.shard);
        asker.send(inside.id, key, 0, Op::Publish(publish))?;
        let mut routed = true;
        loop {
            for event in asker.events().await? {
                match event {
                    Event::Returned { .. } => routed = false,
                    Event::PublishRefused { refusal, .. } => return Err(problem(&refusal)),
                    Event::Confirmed { accepted: true, .. } => return Ok(routed),
                    Event::Confirmed { .. } => {
                        return Err(Problem::unavailable("the broker did not take the message"));
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) async fn get_messages(&self, call: &Call, vhost: &str, queue: &str) -> Answered {
        if call.method != Method::POST {
            return Err(Problem::method("POST"));
        }
        let inside = self.enter(call, vhost)?;
        let wanted: Getting = call.body()?;
        let count = wanted.count.as_u64().or_else(|| wanted.count.as_str()?.parse().ok());
        let count = count.filter(|count| *count <= GET_MAX);
        let count =
            count.ok_or_else(|| Problem::bad_request(format!("count is a number up to {GET_MAX}")))?;
        let how = match wanted.ackmode.as_str() {
            "ack_requeue_true" | "reject_requeue_true" => Settle::Requeue,
            "ack_requeue_false" => Settle::Ack,
            "reject_requeue_false" => Settle::Discard,
            other => return Err(Problem::bad_request(format!("ackmode '{other}' is not supported"))),
        };
        let base64 = match wanted.encoding.as_str() {
            "auto" => false,
            "base64" => true,
            other => return Err(Problem::bad_request(format!("encoding '{other}' is not supported"))),
        };
        let got = self.get_some(call, &inside, queue, count, how).await?;
        let shown = |mut message: Value, body: &[u8]| {
            let cut = &body[..body.len().min(wanted.truncate.unwrap_or(usize::MAX))];
            let (text, encoding) = match std::str::from_utf8(cut) {
                Ok(text) if !base64 => (text.to_owned(), "string"),
                _ => (STANDARD.encode(cut), "base64"),
            };
            if let Value::Object(message) = &mut message {
                message.insert("payload_bytes".into(), body.len().into());
                message.insert("payload".into(), text.into());
                message.insert("payload_encoding".into(), encoding.into());
            }
            message
        };
        Ok(Answer::Json(got.into_iter().map(|(message, body)| shown(message, &body)).collect()))
    }

    /// Takes up to `count` messages, then settles all of them.
    async fn get_some(
        &self,
        call: &Call,
        inside: &Inside,
        queue: &str,
        count: u64,
        how: Settle,
    ) -> Result<Vec<(Value, bytes::Bytes)>, Problem> {
        let key = call.allow(&inside.principal, Action::Read, Resource::Queue(queue))?;
        let own = call.allow(&inside.principal, Action::Read, Resource::Own)?;
        let shard = &self.broker()?.shard;
        let mut asker = Asker::new(shard);
        let (mut got, mut bytes, mut leases) = (Vec::new(), 0, Vec::new());
        for number in 1..=count {
            let reader = u32::try_from(number).unwrap_or(u32::MAX);
            let op = Op::Get { reader, channel: 1, queue: queue.into(), no_ack: false };
            let reply = asker.ask(inside.id, key, op).await?.map_err(|refusal| problem(&refusal))?;
            let Reply::Got { delivery: Some(delivery), remaining } = reply else { break };
            asker.send(inside.id, own, 0, Op::Drained { bytes: delivery.weight })?;
            leases.push((reader, delivery.offset));
            let (located, log) = (delivery.message, shard.log().clone());
            let parts = aside(move || operate::parts(&located, &log)).await?;
            let parts = parts.map_err(|exception| Problem::unavailable(exception.text()))?;
            bytes += parts.body.len();
            let view = json!({
                "exchange": parts.exchange,
                "routing_key": parts.routing_key,
                "redelivered": delivery.redelivered,
                "message_count": remaining,
                "properties": properties_view(&parts.properties),
            });
            got.push((view, parts.body));
            if bytes >= GET_BYTES_MAX {
                break;
            }
        }
        for (reader, offset) in leases {
            asker.send(inside.id, own, 0, Op::Settle { reader, ranges: vec![(offset, offset)], how })?;
        }
        Ok(got)
    }

    /// Declares a queue, publishes to it and gets it back.
    pub(super) async fn aliveness(&self, call: &Call, vhost: &str) -> Answered {
        call.only_get()?;
        let inside = self.enter(call, vhost)?;
        let key = call.allow(&inside.principal, Action::Configure, Resource::Queue(ALIVENESS))?;
        let spec = QueueSpec {
            name: ALIVENESS.into(),
            kind: QueueKind::Classic,
            durable: false,
            exclusive: false,
            auto_delete: false,
            arguments: bytes::Bytes::new(),
        };
        let mut asker = Asker::new(&self.broker()?.shard);
        let declared = asker.ask(inside.id, key, Op::DeclareQueue(spec, false)).await?;
        declared.map_err(|refusal| problem(&refusal))?;
        let test = b"test_message";
        self.publish_one(call, &inside, ("", ALIVENESS), &Value::Null, test).await?;
        let got = self.get_some(call, &inside, ALIVENESS, 1, Settle::Ack).await?;
        match &got[..] {
            [(_, body)] if body[..] == test[..] => Ok(Answer::Json(json!({"status": "ok"}))),
            _ => {
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "failed", "the message did not come back"))
            }
        }
    }
}

/// Properties of a publish, as they were given.
#[derive(Default)]
struct Given {
    texts: [Option<Vec<u8>>; 9],
    headers: Option<TableBuilder>,
    delivery_mode: Option<u8>,
    priority: Option<u8>,
    timestamp: Option<u64>,
}

const TEXTS: [&str; 9] = [
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
];

impl Given {
    fn of(properties: &Value) -> Result<Self, Problem> {
        let mut given = Self::default();
        // RabbitMQ's tools write an empty list where there are none.
        let Value::Object(members) = properties else { return Ok(given) };
        let wrong =
            |name: &str| Problem::bad_request(format!("property '{name}' has a value of the wrong type"));
        for (name, value) in members {
            if let Some(at) = TEXTS.iter().position(|text| text == name) {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return Err(wrong(name)),
                };
                given.texts[at] = Some(text.into_bytes()).filter(|text| text.len() <= 255);
                given.texts[at].as_ref().ok_or_else(|| wrong(name))?;
                continue;
            }
            let small =
                || value.as_u64().and_then(|number| u8::try_from(number).ok()).ok_or_else(|| wrong(name));
            match name.as_str() {
                "headers" => {
                    let empty = Map::new();
                    let members = value.as_object().unwrap_or(&empty);
                    given.headers = Some(import::table(members).map_err(Problem::bad_request)?);
                }
                "delivery_mode" => given.delivery_mode = Some(small()?),
                "priority" => given.priority = Some(small()?),
                "timestamp" => given.timestamp = Some(value.as_u64().ok_or_else(|| wrong(name))?),
                _ => return Err(Problem::bad_request(format!("unknown property '{name}'"))),
            }
        }
        Ok(given)
    }

    fn list(&self) -> PropertyList<'_> {
        let text = |at: usize| self.texts[at].as_deref();
        PropertyList {
            content_type: text(0),
            content_encoding: text(1),
            correlation_id: text(2),
            reply_to: text(3),
            expiration: text(4),
            message_id: text(5),
            message_type: text(6),
            user_id: text(7),
            app_id: text(8),
            delivery_mode: self.delivery_mode,
            priority: self.priority,
            timestamp: self.timestamp,
            ..PropertyList::default()
        }
    }
}

fn properties_view(block: &[u8]) -> Value {
    let Ok(properties) = Properties::parse(block) else { return json!({}) };
    let list = properties.to_list();
    let mut view = Map::new();
    let texts: [Option<&[u8]>; 9] = [
        list.content_type,
        list.content_encoding,
        list.correlation_id,
        list.reply_to,
        list.expiration,
        list.message_id,
        list.message_type,
        list.user_id,
        list.app_id,
    ];
    for (name, text) in TEXTS.iter().zip(texts) {
        if let Some(text) = text {
            view.insert((*name).to_owned(), String::from_utf8_lossy(text).into());
        }
    }
    for (name, number) in [
        ("delivery_mode", list.delivery_mode.map(u64::from)),
        ("priority", list.priority.map(u64::from)),
        ("timestamp", list.timestamp),
    ] {
        if let Some(number) = number {
            view.insert(name.to_owned(), number.into());
        }
    }
    if let Some(headers) = list.headers {
        view.insert("headers".to_owned(), table::of(headers));
    }
    Value::Object(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_back_as_they_were_given() {
        let json = json!({
            "content_type": "text/plain", "delivery_mode": 2, "priority": 3, "timestamp": 1_700_000_000,
            "type": "t", "headers": {"a": 1, "b": "x"},
        });
        let given = Given::of(&json).ok().unwrap();
        let headers = given.headers.as_ref().unwrap().as_table().unwrap();
        let mut block = Vec::new();
        PropertyList { headers: Some(headers), ..given.list() }.encode(&mut block);
        assert_eq!(properties_view(&block), json);
        for bad in [json!({"delivery_mode": 300}), json!({"content_type": []}), json!({"colour": 1})] {
            assert!(Given::of(&bad).is_err(), "{bad}");
        }
        assert!(Given::of(&json!([])).is_ok());
    }

    #[test]
    fn a_text_longer_than_a_short_string_is_refused() {
        let long = "x".repeat(256);
        assert!(Given::of(&json!({"message_id": long})).is_err());
    }
}
