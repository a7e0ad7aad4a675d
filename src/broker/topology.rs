//! Exchanges, queues, bindings, topics and vhosts of a shard: a persistent map.
//!
//! Owns: names → things, and routing. Promises: cloning costs nothing and a change costs its own size, so that the leader can
//! decide on a copy that holds what is in flight, and connections can look at a snapshot; every change bumps `version`.
//! Does not know: messages in queues, consumers, the log. Changes come as [`Change`] values, which are what the log records.

use std::sync::Arc;

use bytes::Bytes;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::api::{
    BindingSpec, Destination, ExchangeKind, ExchangeSpec, Message, QueueKind, QueueSpec, QueueUid, Semantics,
    VhostId,
};
use super::pattern;

/// Where queues of waiting messages have their names: no client can name this vhost, it is not among the vhosts.
pub const WAITING_VHOST: VhostId = VhostId::MAX;
/// Name of the vhost with id 0.
pub use crate::security::DEFAULT_VHOST;
/// Prefix of the exchanges that stand for RocketMQ topics.
pub use crate::security::TOPIC_EXCHANGE_PREFIX;
use crate::security::queue_of_topic;

/// An exchange and what is bound to it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// As declared.
    pub spec: ExchangeSpec,
    /// Session of the declaring node, for one that is not durable.
    pub session: Option<u64>,
    /// Bindings from here, by binding key, then by binding number.
    by_key: HashTrieMapSync<Arc<str>, RedBlackTreeMapSync<u64, Arc<Binding>>>,
    /// How many.
    pub bindings: usize,
}

/// A binding and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// As asked.
    pub spec: BindingSpec,
    /// Never reused.
    pub uid: u64,
}

/// A queue's definition.
#[derive(Debug, Clone)]
pub struct QueueDefinition {
    /// Identity.
    pub uid: QueueUid,
    /// Where its name counts.
    pub vhost: VhostId,
    /// As declared.
    pub spec: QueueSpec,
    /// Declared by this connection of `owner_session`; only for exclusive and memory queues.
    pub owner: Option<Owner>,
}

impl QueueDefinition {
    /// Contents live in memory on the owner's node (D17).
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.spec.exclusive || !self.spec.durable
    }
}

/// Who declared a queue that can not outlive its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The node's incarnation.
    pub session: u64,
    /// The connection on that node.
    pub connection: u64,
}

/// A RocketMQ topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Name.
    pub name: Arc<str>,
    /// Message queues by id.
    pub queues: Arc<[QueueUid]>,
    /// Queues that producers use.
    pub write_queues: u32,
    /// Queues that consumers read.
    pub read_queues: u32,
    /// RocketMQ permission bits: 4 read, 2 write, 1 inherit.
    pub permission: u32,
}

/// One change of the topology: what a definition or removal record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new exchange; one that is not durable goes with the incarnation of the node where it was declared.
    Exchange(VhostId, ExchangeSpec, Option<u64>),
    /// An exchange goes, with the bindings from and to it.
    RemoveExchange(VhostId, Arc<str>),
    /// A new queue.
    Queue {
        /// Identity, from `next_uid`.
        uid: QueueUid,
        /// Vhost.
        vhost: VhostId,
        /// As declared.
        spec: QueueSpec,
        /// For exclusive and memory queues.
        owner: Option<Owner>,
    },
    /// A queue goes, with its bindings.
    RemoveQueue(QueueUid),
    /// A new binding.
    Binding {
        /// From `next_uid`.
        uid: u64,
        /// Vhost.
        vhost: VhostId,
        /// As asked.
        spec: BindingSpec,
    },
    /// A binding goes.
    RemoveBinding(VhostId, BindingSpec),
    /// A new or changed topic; `queues` are the identities of all its message queues, old ones first.
    Topic {
        /// The topic as it will be.
        topic: Topic,
    },
    /// A topic goes, with its queues.
    RemoveTopic(Arc<str>),
    /// A named value is kept for an adapter: space, name, value.
    Setting(Arc<str>, Arc<str>, Bytes),
    /// A named value goes: space, name.
    RemoveSetting(Arc<str>, Arc<str>),
    /// A new vhost with its standard exchanges; the number comes from `next_uid`.
    Vhost(VhostId, Arc<str>),
    /// A vhost goes, with its exchanges and bindings. Its queues went before.
    RemoveVhost(VhostId),
}

#[derive(Debug, Clone)]
struct Vhost {
    name: Arc<str>,
    exchanges: HashTrieMapSync<Arc<str>, Arc<Exchange>>,
    queues: HashTrieMapSync<Arc<str>, QueueUid>,
    /// Bindings by destination, to find them when a queue or exchange goes.
    by_destination: HashTrieMapSync<Destination, RedBlackTreeMapSync<u64, Arc<Binding>>>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Number of changes ever.
    pub version: u64,
    /// Next identity for queues and bindings.
    pub next_uid: u64,
    vhosts: HashTrieMapSync<VhostId, Vhost>,
    vhost_ids: HashTrieMapSync<Arc<str>, VhostId>,
    queues: HashTrieMapSync<QueueUid, Arc<QueueDefinition>>,
    /// Queues of [`WAITING_VHOST`], by name.
    waiting: HashTrieMapSync<Arc<str>, QueueUid>,
    topics: RedBlackTreeMapSync<Arc<str>, Arc<Topic>>,
    settings: RedBlackTreeMapSync<(Arc<str>, Arc<str>), Bytes>,
    bindings: usize,
}

/// Where a message goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// AMQP queues, each once, in order of identity.
    pub queues: Vec<QueueUid>,
    /// RocketMQ topics reached through their exchanges, each once.
    pub topics: Vec<Arc<str>>,
    /// A headers exchange took part: the route holds for this message only.
    pub by_headers: bool,
}

impl Route {
    /// Reaches nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.topics.is_empty()
    }
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

impl Topology {
    /// The topology of an empty store: vhost `/` with its standard exchanges.
    #[must_use]
    pub fn new() -> Self {
        let mut topology = Self {
            version: 0,
            next_uid: 1,
            vhosts: HashTrieMapSync::new_sync(),
            vhost_ids: HashTrieMapSync::new_sync(),
            queues: HashTrieMapSync::new_sync(),
            waiting: HashTrieMapSync::new_sync(),
            topics: RedBlackTreeMapSync::new_sync(),
            settings: RedBlackTreeMapSync::new_sync(),
            bindings: 0,
        };
        topology.add_vhost(0, &DEFAULT_VHOST.into());
        topology
    }

    /// The vhost of that name.
    #[must_use]
    pub fn vhost_id(&self, name: &str) -> Option<VhostId> {
        self.vhost_ids.get(name).copied()
    }

    /// Its name; empty when it is gone.
    #[must_use]
    pub fn vhost_name(&self, vhost: VhostId) -> Arc<str> {
        self.vhosts.get(&vhost).map_or_else(|| "".into(), |vhost| Arc::clone(&vhost.name))
    }

    /// All vhosts.
    pub fn vhosts(&self) -> impl Iterator<Item = (VhostId, &Arc<str>)> {
        self.vhosts.iter().map(|(id, vhost)| (*id, &vhost.name))
    }

    /// Is there such a vhost, or is it the one of waiting messages?
    #[must_use]
    pub fn has_vhost(&self, vhost: VhostId) -> bool {
        vhost == WAITING_VHOST || self.vhosts.contains_key(&vhost)
    }

    /// How many vhosts there are.
    #[must_use]
    pub fn vhost_count(&self) -> usize {
        self.vhosts.size()
    }

    /// How many queues a vhost holds, topics' message queues not counted.
    #[must_use]
    pub fn queue_count_in(&self, vhost: VhostId) -> usize {
        self.vhosts.get(&vhost).map_or(0, |vhost| vhost.queues.size())
    }

    /// An exchange by name.
    #[must_use]
    pub fn exchange(&self, vhost: VhostId, name: &str) -> Option<&Arc<Exchange>> {
        self.vhosts.get(&vhost)?.exchanges.get(name)
    }

    /// A queue by name.
    #[must_use]
    pub fn queue(&self, vhost: VhostId, name: &str) -> Option<&Arc<QueueDefinition>> {
        self.queues.get(self.vhosts.get(&vhost)?.queues.get(name)?)
    }

    /// The queue that a topic of this name is another look at: one whose messages have offsets in the log.
    #[must_use]
    pub fn queue_behind(&self, topic: &str) -> Option<&Arc<QueueDefinition>> {
        // Most names are none, and cost one comparison.
        self.queue(0, &queue_of_topic(topic)?).filter(|queue| !queue.in_memory())
    }

    /// A queue by identity.
    #[must_use]
    pub fn queue_by_uid(&self, uid: QueueUid) -> Option<&Arc<QueueDefinition>> {
        self.queues.get(&uid)
    }

    /// All queues but those of waiting messages.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<QueueDefinition>> {
        self.queues.values().filter(|queue| queue.vhost != WAITING_VHOST)
    }

    /// How many that are.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.size() - self.waiting.size()
    }

    /// A queue of waiting messages by name.
    #[must_use]
    pub fn waiting_queue(&self, name: &str) -> Option<QueueUid> {
        self.waiting.get(name).copied()
    }

    /// All queues of waiting messages.
    pub fn waiting_queues(&self) -> impl Iterator<Item = QueueUid> {
        self.waiting.values().copied()
    }

    /// How many bindings there are (the default exchange's implied ones not counted).
    #[must_use]
    pub fn binding_count(&self) -> usize {
        self.bindings
    }

    /// All exchanges of all vhosts.
    pub fn exchanges(&self) -> impl Iterator<Item = (VhostId, &Arc<Exchange>)> {
        self.vhosts.iter().flat_map(|(id, vhost)| vhost.exchanges.values().map(move |e| (*id, e)))
    }

    /// A topic by name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// A value that an adapter keeps here.
    #[must_use]
    pub fn setting(&self, space: &str, name: &str) -> Option<&Bytes> {
        self.settings.get(&(Arc::from(space), Arc::from(name)))
    }

    /// All values of a space, by name.
    pub fn settings(&self, space: &str) -> impl Iterator<Item = (&Arc<str>, &Bytes)> {
        let space: Arc<str> = space.into();
        let from = (Arc::clone(&space), Arc::from(""));
        self.settings
            .range(from..)
            .take_while(move |((kept, _), _)| *kept == space)
            .map(|((_, name), value)| (name, value))
    }

    /// How many values there are.
    #[must_use]
    pub fn setting_count(&self) -> usize {
        self.settings.size()
    }

    /// The binding that equals `spec`.
    #[must_use]
    pub fn binding(&self, vhost: VhostId, spec: &BindingSpec) -> Option<&Arc<Binding>> {
        self.exchange(vhost, &spec.source)?.by_key.get(&spec.key)?.values().find(|b| b.spec == *spec)
    }

    /// Bindings whose destination is `destination`.
    pub fn bindings_to(
        &self,
        vhost: VhostId,
        destination: &Destination,
    ) -> impl Iterator<Item = &Arc<Binding>> {
        self.vhosts
            .get(&vhost)
            .and_then(|v| v.by_destination.get(destination))
            .into_iter()
            .flat_map(|m| m.values())
    }

    /// Where a message published to `exchange` goes; `None`: no such exchange. The default exchange is "". With several keys each
    /// exchange on its way looks at all of them.
    pub fn route(
        &self,
        vhost: VhostId,
        exchange: &str,
        keys: &[&str],
        message: &Message,
        semantics: &dyn Semantics,
    ) -> Option<Route> {
        let mut route = Route::default();
        if exchange.is_empty() {
            let queues = &self.vhosts.get(&vhost)?.queues;
            route.queues.extend(keys.iter().filter_map(|key| queues.get(*key)));
            route.queues.sort_unstable();
            route.queues.dedup();
            return Some(route);
        }
        let mut pending = vec![self.exchange(vhost, exchange)?];
        // Exchange-to-exchange cycles are legal: each exchange is visited once.
        let mut visited = vec![exchange];
        while let Some(exchange) = pending.pop() {
            if exchange.spec.kind == ExchangeKind::RocketmqTopic
                && let Some(topic) = exchange.spec.name.strip_prefix(TOPIC_EXCHANGE_PREFIX)
                && let Some(topic) = self.topics.get(topic)
            {
                route.topics.push(Arc::clone(&topic.name));
            }
            route.by_headers |= exchange.spec.kind == ExchangeKind::Headers;
            let mut visit = |name: &str| {
                if !visited.contains(&name)
                    && let Some(next) = self.exchange(vhost, name)
                {
                    visited.push(&next.spec.name);
                    pending.push(next);
                }
            };
            let mut leads_on = false;
            let mut matched = |binding: &Binding| {
                leads_on = true;
                match &binding.spec.destination {
                    Destination::Queue(name) => {
                        let known = self.vhosts.get(&vhost).and_then(|v| v.queues.get(name));
                        route.queues.extend(known.copied());
                    }
                    Destination::Exchange(name) => visit(name),
                }
            };
            for key in keys {
                exchange.for_each_match(key, message, semantics, &mut matched);
            }
            // As in RabbitMQ, a binding to an exchange that leads nowhere is enough, and the default exchange is no alternate.
            if !leads_on && !exchange.spec.arguments.is_empty() {
                semantics.alternate_exchange(&exchange.spec.arguments).iter().for_each(|name| visit(name));
            }
        }
        route.queues.sort_unstable();
        route.queues.dedup();
        Some(route)
    }

    /// Makes a change. Total: a change that does not fit the state (it can not come from a leader's decision on this
    /// version) changes nothing but the version.
    pub fn apply(&mut self, change: &Change) {
        self.version += 1;
        match change {
            Change::Exchange(vhost, spec, session) => self.add_exchange(*vhost, spec, *session),
            Change::RemoveExchange(vhost, name) => self.remove_exchange(*vhost, name),
            Change::Queue { uid, vhost, spec, owner } => self.add_queue(*uid, *vhost, spec, *owner),
            Change::RemoveQueue(uid) => self.remove_queue(*uid),
            Change::Binding { uid, vhost, spec } => self.add_binding(*uid, *vhost, spec),
            Change::RemoveBinding(vhost, spec) => self.remove_binding(*vhost, spec),
            Change::Topic { topic } => self.set_topic(topic),
            Change::RemoveTopic(name) => self.remove_topic(name),
            Change::Setting(space, name, value) => {
                self.settings.insert_mut((Arc::clone(space), Arc::clone(name)), value.clone());
            }
            Change::RemoveSetting(space, name) => {
                self.settings.remove_mut(&(Arc::clone(space), Arc::clone(name)));
            }
            Change::Vhost(id, name) => self.add_vhost(*id, name),
            Change::RemoveVhost(id) => self.remove_vhost(*id),
        }
    }

    /// All changes that lead from an empty store to this topology, in an order that can be applied.
    #[must_use]
    pub fn as_changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, vhost) in self.vhosts.iter() {
            if *id != 0 {
                changes.push(Change::Vhost(*id, Arc::clone(&vhost.name)));
            }
            for exchange in vhost.exchanges.values() {
                if !exchange.spec.name.starts_with("amq.") {
                    changes.push(Change::Exchange(*id, exchange.spec.clone(), exchange.session));
                }
            }
        }
        for queue in self.queues.values() {
            changes.push(Change::Queue {
                uid: queue.uid,
                vhost: queue.vhost,
                spec: queue.spec.clone(),
                owner: queue.owner,
            });
        }
        changes.extend(self.topics.values().map(|t| Change::Topic { topic: Topic::clone(t) }));
        changes.extend(self.settings.iter().map(|((space, name), value)| {
            Change::Setting(Arc::clone(space), Arc::clone(name), value.clone())
        }));
        for (id, vhost) in self.vhosts.iter() {
            for bindings in vhost.by_destination.values() {
                for binding in bindings.values() {
                    changes.push(Change::Binding {
                        uid: binding.uid,
                        vhost: *id,
                        spec: binding.spec.clone(),
                    });
                }
            }
        }
        changes
    }

    fn with_vhost(&mut self, vhost: VhostId, act: impl FnOnce(&mut Vhost)) {
        let Some(mut changed) = self.vhosts.get(&vhost).cloned() else { return };
        act(&mut changed);
        self.vhosts.insert_mut(vhost, changed);
    }

    fn add_vhost(&mut self, id: VhostId, name: &Arc<str>) {
        if self.vhosts.contains_key(&id) || self.vhost_ids.contains_key(name) {
            return;
        }
        if id > 0 {
            self.next_uid = self.next_uid.max(u64::from(id) + 1);
        }
        self.vhosts.insert_mut(id, Vhost::new(name));
        self.vhost_ids.insert_mut(Arc::clone(name), id);
    }

    fn remove_vhost(&mut self, id: VhostId) {
        let Some(vhost) = self.vhosts.get(&id).filter(|vhost| id != 0 && vhost.queues.is_empty()) else {
            return;
        };
        self.bindings -= vhost.exchanges.values().map(|exchange| exchange.bindings).sum::<usize>();
        let name = Arc::clone(&vhost.name);
        self.vhost_ids.remove_mut(&name);
        self.vhosts.remove_mut(&id);
    }

    fn add_exchange(&mut self, vhost: VhostId, spec: &ExchangeSpec, session: Option<u64>) {
        if self.exchange(vhost, &spec.name).is_none() {
            let exchange = Arc::new(Exchange { session, ..Exchange::new(spec.clone()) });
            self.with_vhost(vhost, |v| v.exchanges.insert_mut(Arc::clone(&spec.name), exchange));
        }
    }

    fn remove_exchange(&mut self, vhost: VhostId, name: &Arc<str>) {
        let Some(exchange) = self.exchange(vhost, name).cloned() else { return };
        let outgoing: Vec<_> = exchange.all_bindings().cloned().collect();
        let incoming: Vec<_> =
            self.bindings_to(vhost, &Destination::Exchange(Arc::clone(name))).cloned().collect();
        for binding in outgoing.iter().chain(&incoming) {
            self.remove_binding(vhost, &binding.spec);
        }
        self.with_vhost(vhost, |v| {
            v.exchanges.remove_mut(name);
        });
    }

    fn add_queue(&mut self, uid: QueueUid, vhost: VhostId, spec: &QueueSpec, owner: Option<Owner>) {
        if !self.has_vhost(vhost) {
            return;
        }
        if vhost == WAITING_VHOST {
            self.waiting.insert_mut(Arc::clone(&spec.name), uid);
        }
        self.next_uid = self.next_uid.max(uid + 1);
        if spec.kind != QueueKind::Topic {
            self.with_vhost(vhost, |v| v.queues.insert_mut(Arc::clone(&spec.name), uid));
        }
        self.queues.insert_mut(uid, Arc::new(QueueDefinition { uid, vhost, spec: spec.clone(), owner }));
    }

    fn remove_queue(&mut self, uid: QueueUid) {
        let Some(queue) = self.queues.get(&uid).cloned() else { return };
        let destination = Destination::Queue(Arc::clone(&queue.spec.name));
        if queue.spec.kind != QueueKind::Topic {
            let bindings: Vec<_> = self.bindings_to(queue.vhost, &destination).cloned().collect();
            for binding in &bindings {
                self.remove_binding(queue.vhost, &binding.spec);
            }
            self.with_vhost(queue.vhost, |v| {
                v.queues.remove_mut(&queue.spec.name);
            });
        }
        self.queues.remove_mut(&uid);
    }

    fn add_binding(&mut self, uid: u64, vhost: VhostId, spec: &BindingSpec) {
        self.next_uid = self.next_uid.max(uid + 1);
        if self.binding(vhost, spec).is_some() {
            return;
        }
        let Some(exchange) = self.exchange(vhost, &spec.source) else { return };
        let binding = Arc::new(Binding { spec: spec.clone(), uid });
        let mut exchange = Exchange::clone(exchange);
        exchange.insert(Arc::clone(&binding));
        self.bindings += 1;
        self.with_vhost(vhost, |v| {
            let mut known = v.by_destination.get(&spec.destination).cloned().unwrap_or_default();
            known.insert_mut(uid, binding);
            v.by_destination.insert_mut(spec.destination.clone(), known);
            v.exchanges.insert_mut(Arc::clone(&spec.source), Arc::new(exchange));
        });
    }

    /// An auto-delete exchange that loses its last binding is removed by the leader's own [`Change::RemoveExchange`].
    fn remove_binding(&mut self, vhost: VhostId, spec: &BindingSpec) {
        let Some(binding) = self.binding(vhost, spec).cloned() else { return };
        let Some(exchange) = self.exchange(vhost, &spec.source) else { return };
        let mut exchange = Exchange::clone(exchange);
        exchange.remove(&binding);
        self.bindings -= 1;
        self.with_vhost(vhost, |v| {
            v.exchanges.insert_mut(Arc::clone(&spec.source), Arc::new(exchange));
            if let Some(mut known) = v.by_destination.get(&spec.destination).cloned() {
                known.remove_mut(&binding.uid);
                if known.is_empty() {
                    v.by_destination.remove_mut(&spec.destination);
                } else {
                    v.by_destination.insert_mut(spec.destination.clone(), known);
                }
            }
        });
    }

    fn set_topic(&mut self, topic: &Topic) {
        for uid in topic.queues.iter() {
            if self.queues.get(uid).is_none() {
                self.add_queue(*uid, 0, &topic_queue_spec(&topic.name), None);
            }
        }
        self.topics.insert_mut(Arc::clone(&topic.name), Arc::new(topic.clone()));
        self.add_exchange(0, &topic_exchange_spec(&topic.name), None);
    }

    fn remove_topic(&mut self, name: &Arc<str>) {
        let Some(topic) = self.topics.get(name).cloned() else { return };
        for uid in topic.queues.iter() {
            self.remove_queue(*uid);
        }
        self.topics.remove_mut(name);
        self.remove_exchange(0, &topic_exchange_spec(name).name);
    }
}

fn topic_queue_spec(topic: &Arc<str>) -> QueueSpec {
    QueueSpec {
        name: Arc::clone(topic),
        kind: QueueKind::Topic,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: Bytes::new(),
    }
}

fn topic_exchange_spec(topic: &str) -> ExchangeSpec {
    ExchangeSpec {
        name: format!("{TOPIC_EXCHANGE_PREFIX}{topic}").into(),
        kind: ExchangeKind::RocketmqTopic,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Bytes::new(),
    }
}

impl Vhost {
    /// As every vhost begins: with the standard exchanges.
    fn new(name: &Arc<str>) -> Self {
        let mut vhost = Self {
            name: Arc::clone(name),
            exchanges: HashTrieMapSync::new_sync(),
            queues: HashTrieMapSync::new_sync(),
            by_destination: HashTrieMapSync::new_sync(),
        };
        for (name, kind) in [
            ("amq.direct", ExchangeKind::Direct),
            ("amq.fanout", ExchangeKind::Fanout),
            ("amq.topic", ExchangeKind::Topic),
            ("amq.headers", ExchangeKind::Headers),
            ("amq.match", ExchangeKind::Headers),
        ] {
            let spec = ExchangeSpec {
                name: name.into(),
                kind,
                durable: true,
                auto_delete: false,
                internal: false,
                arguments: Bytes::new(),
            };
            vhost.exchanges.insert_mut(Arc::clone(&spec.name), Arc::new(Exchange::new(spec)));
        }
        vhost
    }
}

impl Exchange {
    fn new(spec: ExchangeSpec) -> Self {
        Self { spec, session: None, by_key: HashTrieMapSync::new_sync(), bindings: 0 }
    }

    /// All bindings from here.
    pub fn all_bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.by_key.values().flat_map(|m| m.values())
    }

    fn insert(&mut self, binding: Arc<Binding>) {
        let mut same_key = self.by_key.get(&binding.spec.key).cloned().unwrap_or_default();
        let key = Arc::clone(&binding.spec.key);
        same_key.insert_mut(binding.uid, binding);
        self.by_key.insert_mut(key, same_key);
        self.bindings += 1;
    }

    fn remove(&mut self, binding: &Binding) {
        let Some(mut same_key) = self.by_key.get(&binding.spec.key).cloned() else { return };
        same_key.remove_mut(&binding.uid);
        if same_key.is_empty() {
            self.by_key.remove_mut(&binding.spec.key);
        } else {
            self.by_key.insert_mut(Arc::clone(&binding.spec.key), same_key);
        }
        self.bindings -= 1;
    }

    fn for_each_match<'a>(
        &'a self,
        key: &str,
        message: &Message,
        semantics: &dyn Semantics,
        act: &mut impl FnMut(&'a Binding),
    ) {
        match self.spec.kind {
            ExchangeKind::Direct => {
                self.by_key.get(key).into_iter().flat_map(|m| m.values()).for_each(|b| act(b));
            }
            ExchangeKind::Fanout => self.all_bindings().for_each(|b| act(b)),
            ExchangeKind::Topic | ExchangeKind::RocketmqTopic => {
                for (binding_key, bindings) in self.by_key.iter() {
                    if pattern::matches(binding_key, key) {
                        bindings.values().for_each(|b| act(b));
                    }
                }
            }
            ExchangeKind::Headers => {
                for binding in self.all_bindings() {
                    if semantics.headers_match(&binding.spec.arguments, message) {
                        act(binding);
                    }
                }
            }
        }
    }
}
