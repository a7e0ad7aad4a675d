//! Users, permissions and definitions, to look at.
//!
//! Owns: their JSON. Promises: only administrators see them; hashes leave in definitions alone, as from RabbitMQ; what would change
//! them is refused by name: users come from the configuration. Does not know: where users are written down.

use serde_json::{Value, json};

use super::call::Call;
use super::views::{binding_view, exchange_view, queue_kind};
use super::{API_VERSION, Answer, Answered, Management, Problem, table};
use crate::broker::api::QueueKind;
use crate::security::permissions::Rights;
use crate::security::users::User;

fn user_view(name: &str, user: &User, secret: bool) -> Value {
    let mut view = json!({"name": name, "tags": user.tags, "limits": limits(user)});
    if let Value::Object(members) = &mut view {
        let hash = user.password.as_ref();
        let algorithm = hash.map_or("rabbit_password_hashing_sha256", |hash| hash.hashing().name());
        members.insert("hashing_algorithm".into(), algorithm.into());
        if secret {
            let text = hash.map_or_else(String::new, |hash| hash.export());
            members.insert("password_hash".into(), text.into());
        }
    }
    view
}

fn limits(user: &User) -> Value {
    let mut limits = serde_json::Map::new();
    for (name, limit) in [("max-connections", user.max_connections), ("max-channels", user.max_channels)] {
        if let Some(limit) = limit {
            limits.insert(name.to_owned(), limit.into());
        }
    }
    Value::Object(limits)
}

fn permission_view(user: &str, vhost: &str, rights: &Rights) -> Value {
    let [configure, write, read] = rights.texts();
    json!({"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read})
}

impl Management {
    pub(super) fn users(&self, call: &Call) -> Answered {
        read_only(call)?;
        call.administrator()?;
        let users = self.realm.users();
        let mut names: Vec<_> = users.users.iter().collect();
        names.sort_by(|a, b| a.0.cmp(b.0));
        Ok(Answer::Json(names.into_iter().map(|(name, user)| user_view(name, user, false)).collect()))
    }

    pub(super) fn user(&self, call: &Call, name: &str) -> Answered {
        read_only(call)?;
        call.administrator()?;
        let users = self.realm.users();
        let user = users.users.get(name).ok_or_else(Problem::not_found)?;
        Ok(Answer::Json(user_view(name, user, false)))
    }

    /// Permissions of (user, vhost) that `wanted` takes.
    pub(super) fn permissions_where(&self, call: &Call, wanted: impl Fn(&str, &str) -> bool) -> Answered {
        read_only(call)?;
        call.administrator()?;
        Ok(Answer::Json(self.permission_list(wanted)))
    }

    fn permission_list(&self, wanted: impl Fn(&str, &str) -> bool) -> Value {
        let users = self.realm.users();
        let mut found: Vec<_> = users
            .users
            .iter()
            .flat_map(|(user, entry)| entry.vhosts.iter().map(move |(vhost, rights)| (vhost, user, rights)))
            .filter(|(vhost, user, _)| wanted(user, vhost))
            .collect();
        found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        found.into_iter().map(|(vhost, user, rights)| permission_view(user, vhost, rights)).collect()
    }

    pub(super) fn permission(&self, call: &Call, vhost: &str, user: &str) -> Answered {
        read_only(call)?;
        call.administrator()?;
        let users = self.realm.users();
        let rights = users.users.get(user).and_then(|entry| entry.vhosts.get(vhost));
        Ok(Answer::Json(permission_view(user, vhost, rights.ok_or_else(Problem::not_found)?)))
    }

    pub(super) fn topic_permissions(&self, call: &Call) -> Answered {
        read_only(call)?;
        call.administrator()?;
        Ok(Answer::Json(self.topic_permission_list(|_| true)))
    }

    fn topic_permission_list(&self, wanted: impl Fn(&str) -> bool) -> Value {
        let users = self.realm.users();
        let mut found = Vec::new();
        for (user, entry) in &users.users {
            for (vhost, rights) in entry.vhosts.iter().filter(|(vhost, _)| wanted(vhost)) {
                for (exchange, [write, read]) in rights.topic_texts() {
                    found.push((vhost.to_string(), user.to_string(), exchange, write, read));
                }
            }
        }
        found.sort();
        let view = |(vhost, user, exchange, write, read)| json!({"vhost": vhost, "user": user, "exchange": exchange, "write": write, "read": read});
        found.into_iter().map(view).collect()
    }

    /// Everything that another broker needs to be as this one; of one vhost without users.
    pub(super) fn definitions(&self, call: &Call, vhost: Option<&str>) -> Answered {
        if !call.is_get() {
            let text =
                "definitions are read from definitions.file at the start; over HTTP they are only exported";
            return Err(Problem { reason: text.to_owned(), ..Problem::method("GET, HEAD") });
        }
        call.administrator()?;
        let topology = self.broker()?.shard.topology();
        if let Some(name) = vhost {
            topology.vhost_id(name).ok_or_else(Problem::not_found)?;
        }
        let here = |name: &str| vhost.is_none_or(|wanted| wanted == name);
        let mut exchanges: Vec<Value> = Vec::new();
        let mut bindings: Vec<Value> = Vec::new();
        for (id, exchange) in topology.exchanges() {
            let of = topology.vhost_name(id);
            if !here(&of) {
                continue;
            }
            let own = !exchange.spec.name.starts_with("amq.");
            if own && exchange.spec.durable {
                exchanges.push(exchange_view(&of, exchange));
            }
            let durable = |spec: &crate::broker::api::BindingSpec| match &spec.destination {
                crate::broker::api::Destination::Queue(name) => {
                    topology.queue(id, name).is_some_and(|queue| !queue.in_memory())
                }
                crate::broker::api::Destination::Exchange(name) => {
                    topology.exchange(id, name).is_some_and(|exchange| exchange.spec.durable)
                }
            };
            let kept =
                exchange.all_bindings().filter(|binding| exchange.spec.durable && durable(&binding.spec));
            bindings.extend(kept.map(|binding| {
                let mut view = binding_view(&of, &binding.spec);
                if let Value::Object(members) = &mut view {
                    members.remove("properties_key");
                }
                view
            }));
        }
        let queues = topology.queues().filter(|queue| {
            queue.spec.kind != QueueKind::Topic
                && !queue.in_memory()
                && here(&topology.vhost_name(queue.vhost))
        });
        let queues: Vec<Value> = queues
            .map(|queue| {
                json!({
                    "name": &*queue.spec.name,
                    "vhost": &*topology.vhost_name(queue.vhost),
                    "type": queue_kind(queue.spec.kind),
                    "durable": queue.spec.durable,
                    "auto_delete": queue.spec.auto_delete,
                    "arguments": table::object(&queue.spec.arguments),
                })
            })
            .collect();
        let mut view = json!({
            "rabbit_version": API_VERSION,
            "rabbitmq_version": API_VERSION,
            "product_name": "Dassie",
            "product_version": env!("CARGO_PKG_VERSION"),
            "queues": queues,
            "exchanges": exchanges,
            "bindings": bindings,
            "policies": [],
            "parameters": [],
        });
        if let (None, Value::Object(members)) = (vhost, &mut view) {
            let users = self.realm.users();
            let vhosts: Vec<Value> = topology.vhosts().map(|(_, name)| json!({"name": &**name})).collect();
            let list: Vec<Value> =
                users.users.iter().map(|(name, user)| user_view(name, user, true)).collect();
            members.insert("users".into(), list.into());
            members.insert("vhosts".into(), vhosts.into());
            members.insert("permissions".into(), self.permission_list(|_, _| true));
            members.insert("topic_permissions".into(), self.topic_permission_list(|_| true));
            members.insert("global_parameters".into(), json!([]));
        }
        Ok(Answer::Json(view))
    }
}

fn read_only(call: &Call) -> Result<(), Problem> {
    if call.is_get() {
        return Ok(());
    }
    let text = "users and permissions come from the configuration: change them there and send SIGHUP";
    Err(Problem { reason: text.to_owned(), ..Problem::method("GET, HEAD") })
}
