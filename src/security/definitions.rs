//! RabbitMQ's definitions, as `rabbitmqctl export_definitions` writes them, and the users of our own configuration file.
//!
//! Owns: reading both, and making [`Users`] of them. Promises: what does not parse, or names something that does not exist, is one
//! line with its place, and nothing of it is used; what is understood and has no effect here is named.
//! Does not know: the broker: exchanges, queues and bindings are only carried to whoever declares them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::DEFAULT_VHOST;
use super::password::{Hashing, PasswordHash};
use super::permissions::{Rights, TopicNames};
use super::signature::SigningSecret;
use super::users::{User, Users, VhostLimits};

/// A definitions file. Fields that this version does not know stand in `other`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Definitions {
    #[serde(default)]
    users: Vec<UserEntry>,
    #[serde(default)]
    vhosts: Vec<VhostEntry>,
    #[serde(default)]
    permissions: Vec<PermissionEntry>,
    #[serde(default)]
    topic_permissions: Vec<TopicPermissionEntry>,
    /// To be declared.
    #[serde(default)]
    pub exchanges: Vec<ExchangeEntry>,
    /// To be declared.
    #[serde(default)]
    pub queues: Vec<QueueEntry>,
    /// To be made.
    #[serde(default)]
    pub bindings: Vec<BindingEntry>,
    #[serde(default)]
    parameters: Vec<Map<String, Value>>,
    #[serde(default)]
    rabbit_version: Option<Value>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
struct UserEntry {
    name: String,
    #[serde(default)]
    password_hash: Option<Secret>,
    #[serde(default)]
    password: Option<Secret>,
    #[serde(default)]
    hashing_algorithm: Option<String>,
    #[serde(default)]
    tags: Tags,
    #[serde(default)]
    limits: Limits,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A list; RabbitMQ before 3.8 wrote one text with commas.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Tags {
    List(Vec<String>),
    Text(String),
}

impl Default for Tags {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Tags {
    fn list(&self) -> Vec<String> {
        match self {
            Self::List(tags) => tags.clone(),
            Self::Text(text) => {
                text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
            }
        }
    }
}

/// An object; RabbitMQ 3.10 writes a vhost's as a list of pairs.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Limits {
    Object(HashMap<String, i64>),
    Pairs(Vec<(String, i64)>),
}

impl Default for Limits {
    fn default() -> Self {
        Self::Pairs(Vec::new())
    }
}

impl Limits {
    /// A negative number is no limit.
    fn get(&self, name: &str) -> Option<u32> {
        let value = match self {
            Self::Object(map) => map.get(name).copied(),
            Self::Pairs(pairs) => pairs.iter().find(|(key, _)| key == name).map(|(_, value)| *value),
        };
        value.and_then(|value| u32::try_from(value).ok())
    }
}

#[derive(Debug, Clone, Deserialize)]
struct VhostEntry {
    name: String,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Clone, Deserialize)]
struct PermissionEntry {
    user: String,
    vhost: String,
    configure: String,
    write: String,
    read: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TopicPermissionEntry {
    user: String,
    vhost: String,
    exchange: String,
    write: String,
    read: String,
}

/// An exchange of a definitions file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ExchangeEntry {
    /// Name.
    pub name: String,
    /// Where.
    pub vhost: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// As declared.
    #[serde(default)]
    pub durable: bool,
    /// As declared.
    #[serde(default)]
    pub auto_delete: bool,
    /// As declared.
    #[serde(default)]
    pub internal: bool,
    /// As declared, in JSON.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

/// A queue of a definitions file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QueueEntry {
    /// Name.
    pub name: String,
    /// Where.
    pub vhost: String,
    /// `classic` or `quorum`, when the file says it.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// As declared.
    #[serde(default)]
    pub durable: bool,
    /// As declared.
    #[serde(default)]
    pub auto_delete: bool,
    /// As declared, in JSON.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

/// A binding of a definitions file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BindingEntry {
    /// Source exchange.
    pub source: String,
    /// Where.
    pub vhost: String,
    /// Name of a queue or exchange.
    pub destination: String,
    /// Which of the two.
    pub destination_type: DestinationType,
    /// Binding key.
    #[serde(default)]
    pub routing_key: String,
    /// As bound, in JSON.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

/// What a binding leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestinationType {
    /// A queue.
    Queue,
    /// An exchange.
    Exchange,
}

/// A `[[users]]` table of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredUser {
    name: String,
    #[serde(default)]
    password_hash: Option<Secret>,
    #[serde(default)]
    password: Option<Secret>,
    #[serde(default)]
    hashing: Option<String>,
    #[serde(default)]
    rocketmq_secret: Option<Secret>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    max_connections: Option<u32>,
    #[serde(default)]
    max_channels: Option<u32>,
    #[serde(default)]
    permissions: Vec<ConfiguredPermission>,
}

/// What a configured user may do in a vhost. The vhost is made when it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredPermission {
    vhost: String,
    #[serde(default)]
    configure: String,
    #[serde(default)]
    write: String,
    #[serde(default)]
    read: String,
    #[serde(default)]
    topics: Vec<ConfiguredTopic>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredTopic {
    exchange: String,
    #[serde(default)]
    write: String,
    #[serde(default)]
    read: String,
}

/// What is wrong, in one line, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct DefinitionsError {
    /// File, and where in it.
    place: String,
    /// The reason.
    what: String,
}

fn wrong(place: impl Into<String>, what: impl Into<String>) -> DefinitionsError {
    DefinitionsError { place: place.into(), what: what.into() }
}

impl Definitions {
    /// Reads a definitions file. `path` is for complaints.
    ///
    /// # Errors
    /// [`DefinitionsError`] with line and column.
    pub fn parse(path: &str, text: &[u8]) -> Result<Self, DefinitionsError> {
        serde_json::from_slice(text)
            .map_err(|error| wrong(format!("definitions file '{path}'"), error.to_string()))
    }

    /// Names of the vhosts that must exist, `/` apart.
    #[must_use]
    pub fn vhosts(&self) -> Vec<Arc<str>> {
        self.vhosts
            .iter()
            .map(|v| Arc::from(&*v.name))
            .filter(|name: &Arc<str>| **name != *DEFAULT_VHOST)
            .collect()
    }

    /// What has no effect here: kind, and how many of it.
    #[must_use]
    pub fn ignored(&self) -> Vec<(String, usize)> {
        let parameters = self.parameters.iter().filter(|p| !is_vhost_limits(p)).count();
        let count = |value: &Value| match value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        let others = self.other.iter().map(|(kind, value)| (kind.clone(), count(value)));
        others.chain([("parameters".to_owned(), parameters)]).filter(|(_, count)| *count > 0).collect()
    }

    /// Hashes of RabbitMQ before 3.6 do not say their algorithm: it was MD5.
    fn default_hashing(&self) -> Hashing {
        let version = self.rabbit_version.as_ref().and_then(Value::as_str).unwrap_or("");
        let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) if (major, minor) < (3, 6) => Hashing::Md5,
            _ => Hashing::Sha256,
        }
    }
}

fn is_vhost_limits(parameter: &Map<String, Value>) -> bool {
    parameter.get("component").and_then(Value::as_str) == Some("vhost-limits")
}

/// Where users come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `definitions.file`, and its path.
    pub definitions: Option<(String, Definitions)>,
    /// `[[users]]`: they win over the file's of the same name.
    pub configured: Vec<ConfiguredUser>,
    /// `loopback_users`
    pub loopback: HashSet<String>,
    /// `rocketmq.anonymous_user`
    pub anonymous: String,
}

impl Sources {
    /// Makes the users. Without any source there is `guest` alone; as with RabbitMQ it is not made beside others.
    ///
    /// # Errors
    /// [`DefinitionsError`] with the place of the first thing that is wrong.
    pub fn users(&self, salt: &mut dyn FnMut() -> [u8; 4]) -> Result<Users, DefinitionsError> {
        let mut users = match (&self.definitions, self.configured.is_empty()) {
            (None, true) => Users::only_guest(),
            _ => Users::default(),
        };
        users.loopback.clone_from(&self.loopback);
        users.anonymous = Arc::from(&*self.anonymous);
        if let Some((path, definitions)) = &self.definitions {
            add_definitions(&mut users, path, definitions, salt)?;
        }
        for user in &self.configured {
            add_configured(&mut users, user, salt)?;
        }
        Ok(users)
    }

    /// Names of the vhosts that must exist, `/` apart, each once.
    #[must_use]
    pub fn vhosts(&self) -> Vec<Arc<str>> {
        let mut names = self.definitions.as_ref().map_or_else(Vec::new, |(_, d)| d.vhosts());
        for permission in self.configured.iter().flat_map(|user| &user.permissions) {
            if permission.vhost != DEFAULT_VHOST && !names.iter().any(|name| **name == *permission.vhost) {
                names.push(Arc::from(&*permission.vhost));
            }
        }
        names
    }
}

fn add_definitions(
    users: &mut Users,
    path: &str,
    definitions: &Definitions,
    salt: &mut dyn FnMut() -> [u8; 4],
) -> Result<(), DefinitionsError> {
    let file = format!("definitions file '{path}'");
    for entry in &definitions.users {
        let place = || format!("{file}, user '{}'", entry.name);
        let hashing = match &entry.hashing_algorithm {
            None => definitions.default_hashing(),
            Some(name) => Hashing::named(name)
                .ok_or_else(|| wrong(place(), format!("unknown hashing algorithm '{name}'")))?,
        };
        let password = password(entry.password_hash.as_ref(), entry.password.as_ref(), hashing, salt)
            .map_err(|what| wrong(place(), what))?;
        let user = User {
            password,
            tags: entry.tags.list(),
            max_connections: entry.limits.get("max-connections"),
            max_channels: entry.limits.get("max-channels"),
            ..User::default()
        };
        users.users.insert(Arc::from(&*entry.name), user);
    }
    for vhost in &definitions.vhosts {
        let limits = VhostLimits {
            max_connections: vhost.limits.get("max-connections"),
            max_queues: vhost.limits.get("max-queues"),
        };
        users.vhosts.insert(Arc::from(&*vhost.name), limits);
    }
    // The same limits once more, as parameters: what every version writes.
    for parameter in definitions.parameters.iter().filter(|parameter| is_vhost_limits(parameter)) {
        let vhost = parameter.get("vhost").and_then(Value::as_str).unwrap_or_default();
        let limit = |name| {
            let value = parameter.get("value").and_then(|value| value.get(name)).and_then(Value::as_i64);
            value.and_then(|value| u32::try_from(value).ok())
        };
        if let Some(known) = users.vhosts.get_mut(vhost) {
            known.max_connections = limit("max-connections").or(known.max_connections);
            known.max_queues = limit("max-queues").or(known.max_queues);
        }
    }
    let known: HashSet<&str> = definitions.vhosts.iter().map(|v| &*v.name).chain([DEFAULT_VHOST]).collect();
    for entry in &definitions.permissions {
        let place = || format!("{file}, permission of user '{}' in vhost '{}'", entry.user, entry.vhost);
        if !known.contains(&*entry.vhost) {
            return Err(wrong(place(), "no such vhost"));
        }
        let rights = Rights::parse(&entry.configure, &entry.write, &entry.read)
            .map_err(|error| wrong(place(), error.to_string()))?;
        let user = users.users.get_mut(&*entry.user).ok_or_else(|| wrong(place(), "no such user"))?;
        user.vhosts.insert(Arc::from(&*entry.vhost), Arc::new(rights));
    }
    for entry in &definitions.topic_permissions {
        let place =
            || format!("{file}, topic permission of user '{}' in vhost '{}'", entry.user, entry.vhost);
        let user = users.users.get_mut(&*entry.user).ok_or_else(|| wrong(place(), "no such user"))?;
        // Without a permission in the vhost nobody gets in: there is nothing to narrow.
        let Some(rights) = user.vhosts.get_mut(&*entry.vhost) else { continue };
        let names = TopicNames { user: &entry.user, vhost: &entry.vhost };
        Arc::make_mut(rights)
            .add_topic(&entry.exchange, &entry.write, &entry.read, names)
            .map_err(|error| wrong(place(), error.to_string()))?;
    }
    Ok(())
}

fn add_configured(
    users: &mut Users,
    entry: &ConfiguredUser,
    salt: &mut dyn FnMut() -> [u8; 4],
) -> Result<(), DefinitionsError> {
    let place = || format!("configuration, user '{}'", entry.name);
    let hashing = match &entry.hashing {
        None => Hashing::default(),
        Some(name) => {
            Hashing::named(name).ok_or_else(|| wrong(place(), format!("unknown hashing '{name}'")))?
        }
    };
    let password = password(entry.password_hash.as_ref(), entry.password.as_ref(), hashing, salt)
        .map_err(|what| wrong(place(), what))?;
    if entry.rocketmq_secret.as_ref().is_some_and(|secret| secret.0.is_empty()) {
        return Err(wrong(place(), "rocketmq_secret is empty"));
    }
    let mut vhosts = HashMap::new();
    for permission in &entry.permissions {
        let place = || format!("configuration, user '{}' in vhost '{}'", entry.name, permission.vhost);
        let mut rights = Rights::parse(&permission.configure, &permission.write, &permission.read)
            .map_err(|error| wrong(place(), error.to_string()))?;
        let names = TopicNames { user: &entry.name, vhost: &permission.vhost };
        for topic in &permission.topics {
            rights
                .add_topic(&topic.exchange, &topic.write, &topic.read, names)
                .map_err(|error| wrong(place(), error.to_string()))?;
        }
        vhosts.insert(Arc::from(&*permission.vhost), Arc::new(rights));
    }
    let user = User {
        password,
        secret: entry.rocketmq_secret.as_ref().map(|secret| SigningSecret::new(&secret.0)),
        tags: entry.tags.clone(),
        vhosts,
        max_connections: entry.max_connections,
        max_channels: entry.max_channels,
    };
    users.users.insert(Arc::from(&*entry.name), user);
    Ok(())
}

fn password(
    hash: Option<&Secret>,
    clear: Option<&Secret>,
    hashing: Hashing,
    salt: &mut dyn FnMut() -> [u8; 4],
) -> Result<Option<PasswordHash>, String> {
    match (hash, clear) {
        (Some(_), Some(_)) => Err("has both password and password_hash".to_owned()),
        (Some(Secret(hash)), None) if !hash.is_empty() => PasswordHash::parse(hash, hashing)
            .map(Some)
            .ok_or_else(|| "the password hash is not base64 of salt and digest".to_owned()),
        (None, Some(Secret(clear))) if !clear.is_empty() => {
            Ok(Some(PasswordHash::new(clear.as_bytes(), salt())))
        }
        // No password: EXTERNAL alone opens.
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Realm, Resource, authorize};
    use super::*;

    /// Written by `rabbitmqctl export_definitions` of RabbitMQ 3.10.8.
    const EXPORTED: &[u8] = include_bytes!("fixtures/definitions.json");

    fn sources(text: &[u8]) -> Result<Sources, DefinitionsError> {
        let definitions = Some(("d.json".to_owned(), Definitions::parse("d.json", text)?));
        let loopback = HashSet::from(["guest".to_owned()]);
        Ok(Sources { definitions, loopback, anonymous: "guest".into(), ..Sources::default() })
    }

    fn complaint(text: &str) -> String {
        match sources(text.as_bytes()).and_then(|s| s.users(&mut || [0; 4])) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text} should be refused"),
        }
    }

    #[test]
    fn a_file_that_rabbitmq_exported_gives_its_users_their_passwords_rights_and_limits() {
        let sources = sources(EXPORTED).unwrap();
        let realm = Realm::new(sources.users(&mut || [0; 4]).unwrap());
        let far = "192.0.2.1".parse().unwrap();
        for (name, password) in [
            ("alice", "al1ce secret"),
            ("bob", "bobpass"),
            ("carol", "carol"),
            ("dave", "dave5"),
            ("erin", "π-pass"),
        ] {
            assert!(realm.authenticate(name, password.as_bytes(), far).is_ok(), "{name}");
            assert!(realm.authenticate(name, b"other", far).is_err(), "{name}");
        }
        assert!(realm.authenticate("guest", b"guest", far).is_err());
        let mut alice = realm.authenticate("alice", b"al1ce secret", far).unwrap();
        assert!(alice.may_impersonate());
        alice.enter("/").unwrap();
        let key = |key| Resource::RoutingKey { exchange: "amq.topic", key };
        assert!(authorize(&alice, Action::Write, key("w.x")).is_ok());
        assert!(authorize(&alice, Action::Write, key("x")).is_err());
        assert!(alice.enter("tiny").is_err());
        let mut carol = realm.authenticate("carol", b"carol", far).unwrap();
        carol.enter("staging").unwrap();
        assert!(authorize(&carol, Action::Write, key("carol.x")).is_ok());
        assert!(authorize(&carol, Action::Write, key("x.x")).is_err());
        let users = realm.users();
        assert_eq!(
            (users.users["carol"].max_connections, users.users["carol"].max_channels),
            (Some(2), Some(3))
        );
        assert_eq!(users.vhosts["tiny"], VhostLimits { max_connections: Some(1), max_queues: Some(2) });
        let mut vhosts = sources.vhosts();
        vhosts.sort();
        assert_eq!(vhosts, ["staging".into(), "tiny".into()] as [Arc<str>; 2]);
        let (_, definitions) = sources.definitions.as_ref().unwrap();
        assert_eq!(definitions.ignored(), [("policies".to_owned(), 1)]);
        assert_eq!(
            (definitions.exchanges.len(), definitions.queues.len(), definitions.bindings.len()),
            (2, 7, 2)
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, says) in [
            ("{", "definitions file 'd.json': EOF while parsing an object at line 1 column 1"),
            ("{\"users\":\n [{}]}", "missing field `name` at line 2"),
            (
                "{\"users\": [{\"name\": \"u\", \"password_hash\": \"x\"}]}",
                "user 'u': the password hash is not base64",
            ),
            (
                "{\"users\": [{\"name\": \"u\", \"hashing_algorithm\": \"plain\"}]}",
                "user 'u': unknown hashing algorithm 'plain'",
            ),
            (
                "{\"permissions\": [{\"user\":\"u\",\"vhost\":\"v\",\"configure\":\"\",\"write\":\"\",\"read\":\"\"}]}",
                "permission of user 'u' in vhost 'v': no such vhost",
            ),
            (
                "{\"permissions\": [{\"user\":\"u\",\"vhost\":\"/\",\"configure\":\"\",\"write\":\"\",\"read\":\"\"}]}",
                "permission of user 'u' in vhost '/': no such user",
            ),
            (
                "{\"users\": [{\"name\":\"u\"}], \"permissions\": \
                 [{\"user\":\"u\",\"vhost\":\"/\",\"configure\":\"\",\"write\":\"(?!a)\",\"read\":\"\"}]}",
                "permission of user 'u' in vhost '/': pattern '(?!a)': look-around",
            ),
        ] {
            let line = complaint(text);
            assert!(line.contains(says), "{line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn older_files_are_read_too() {
        let text = "{\"rabbit_version\": \"3.5.7\", \"users\": [{\"name\": \"dave\", \
                    \"password_hash\": \"FceloC5mMk1/Gfl90J2/JHgDkE0=\", \"tags\": \"administrator, monitoring\"}]}";
        let users = sources(text.as_bytes()).unwrap().users(&mut || [0; 4]).unwrap();
        let dave = &users.users["dave"];
        assert!(dave.password.as_ref().unwrap().is(b"dave5"));
        assert_eq!(dave.tags, ["administrator", "monitoring"]);
    }

    #[test]
    fn guest_exists_only_while_nobody_else_was_named() {
        let none = Sources { anonymous: "guest".into(), ..Sources::default() };
        assert!(none.users(&mut || [0; 4]).unwrap().users.contains_key("guest"));
        let users = sources(b"{}").unwrap().users(&mut || [0; 4]).unwrap();
        assert!(users.users.is_empty());
    }
}
