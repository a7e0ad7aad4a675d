//! Topics, groups and clients of the RocketMQ side, under names of our own.
//!
//! Owns: their JSON. Promises: nothing here changes anything. Does not know: the protocol.

use serde_json::{Value, json};

use super::call::Call;
use super::{Answer, Answered, Management};

impl Management {
    pub(super) fn topics(&self, call: &Call) -> Answered {
        call.only_get()?;
        call.monitor()?;
        let topology = self.broker()?.shard.topology();
        let view = topology.topics().map(|topic| {
            json!({
                "name": &*topic.name,
                "write_queues": topic.write_queues,
                "read_queues": topic.read_queues,
                "permission": topic.permission,
                "readable": topic.permission & 4 != 0,
                "writable": topic.permission & 2 != 0,
            })
        });
        Ok(Answer::Json(view.collect()))
    }

    pub(super) fn groups(&self, call: &Call) -> Answered {
        call.only_get()?;
        call.monitor()?;
        let view = self.broker()?.front.group_facts().into_iter().map(|group| {
            let subscriptions: Vec<Value> = group
                .subscriptions
                .into_iter()
                .map(|(topic, filter)| json!({"topic": topic, "filter": filter}))
                .collect();
            json!({
                "name": &*group.name,
                "kind": if group.consumes { "consumer" } else { "producer" },
                "message_model": group.model,
                "clients": group.members.len(),
                "subscriptions": subscriptions,
            })
        });
        Ok(Answer::Json(view.collect()))
    }

    pub(super) fn clients(&self, call: &Call) -> Answered {
        call.only_get()?;
        call.monitor()?;
        let view = self.broker()?.front.group_facts().into_iter().flat_map(|group| {
            let (name, kind) = (group.name, if group.consumes { "consumer" } else { "producer" });
            group.members.into_iter().map(move |member| {
                json!({
                    "client_id": member.client,
                    "group": &*name,
                    "kind": kind,
                    "peer_host": member.peer.ip().to_string(),
                    "peer_port": member.peer.port(),
                    "language": member.language,
                    "version": member.version,
                })
            })
        });
        Ok(Answer::Json(view.collect()))
    }
}
