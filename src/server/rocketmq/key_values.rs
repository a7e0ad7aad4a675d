//! The name server's keys and values (codes 100, 101, 102, 219).
//!
//! Owns: their place among the topology's settings. Promises: what is put is durable before it is answered, on every node; a
//! namespace is only a part of the name. The order of a topic's queues (namespace ORDER_TOPIC_CONFIG) is what routes tell.
//! Does not know: what other values mean.

use std::collections::BTreeMap;

use bytes::Bytes;
use dassie_rocketmq::body::{KvTable, to_json};
use dassie_rocketmq::header::{GetKv, GetKvAnswer, ListKv, PutKv};
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::Op;
use crate::broker::topology::Topology;
use crate::security::{Action, Resource};

/// Namespace of the orders of topics' queues: `broker-a:8;broker-b:8` by topic.
pub(super) const ORDERS: &str = "ORDER_TOPIC_CONFIG";

pub(super) fn space(namespace: &str) -> String {
    format!("rocketmq.kv/{namespace}")
}

pub(super) fn value(topology: &Topology, namespace: &str, key: &str) -> Option<String> {
    let value = topology.setting(&space(namespace), key)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// PUT_KV_CONFIG.
pub(super) fn on_put(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let PutKv { namespace, key, value } = command.header()?;
    if namespace.is_empty() || key.is_empty() {
        return Err(refused(ResponseCode::SystemError, "namespace or key is null"));
    }
    put(session, namespace, key, Some(value), asked)
}

/// DELETE_KV_CONFIG.
pub(super) fn on_delete(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GetKv { namespace, key } = command.header()?;
    put(session, namespace, key, None, asked)
}

fn put(
    session: &mut Session,
    namespace: &str,
    key: &str,
    value: Option<&str>,
    asked: Asked,
) -> Result<(), Refused> {
    let value = value.map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let op = Op::PutSetting { space: space(namespace).into(), name: key.into(), value };
    session.ask(Action::Configure, Resource::Topic(key), op, asked, Wait::Done)?;
    Ok(())
}

/// GET_KV_CONFIG.
pub(super) fn on_get(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GetKv { namespace, key } = command.header()?;
    let Some(value) = value(&session.topology, namespace, key) else {
        let text = format!("No config item, Namespace: {namespace} Key: {key}");
        return Err(refused(ResponseCode::QueryNotFound, text));
    };
    session.answer(asked, &GetKvAnswer { value: Some(&value) }, &[]);
    Ok(())
}

/// GET_KVLIST_BY_NAMESPACE.
pub(super) fn on_list(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ListKv { namespace } = command.header()?;
    let space = space(namespace);
    let kept = session.topology.settings(&space);
    let table: BTreeMap<String, String> =
        kept.map(|(key, value)| (key.to_string(), String::from_utf8_lossy(value).into_owned())).collect();
    if table.is_empty() {
        let text = format!("No config item, Namespace: {namespace}");
        return Err(refused(ResponseCode::QueryNotFound, text));
    }
    session.answer(asked, &(), &to_json(&KvTable { table }));
    Ok(())
}
