//! Consumer groups of this node: who is in, what they subscribe to.
//!
//! Owns: the registry, warmed by heartbeats and shared by all connections.
//! Promises: a member is in the list as soon as its first heartbeat was read; whenever members or topics of a group change, all its
//! members are told, the new one too (its first look may have been too early); a group without members is forgotten, so memory
//! follows live connections.
//! Does not know: sockets, offsets, what telling looks like on the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

/// Where a connection hears of changes.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Its number.
    pub(super) connection: u64,
    /// Takes the names of changed groups.
    pub(super) notices: mpsc::Sender<Arc<str>>,
}

/// What a group wants of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    /// Made so many ms after 1970: a later one counts.
    pub(super) version: i64,
    /// Wanted tag hashes; empty: all. `None`: not by tags (SQL92), which only a pull is refused for.
    pub(super) tags: Option<Arc<[u32]>>,
}

/// How a look for a subscription ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    NoGroup,
    NoTopic,
    Subscription(Subscription),
}

#[derive(Debug, Default)]
struct Group {
    /// By connection and client id: two clients with one id do not push each other out.
    members: BTreeMap<(u64, String), mpsc::Sender<Arc<str>>>,
    topics: HashMap<String, Subscription>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: HashMap<Arc<str>, Group>,
    /// Groups by connection.
    joined: HashMap<u64, BTreeSet<Arc<str>>>,
}

impl Groups {
    /// The registry is plain data: a panic elsewhere leaves it usable.
    fn state(&self) -> MutexGuard<'_, State> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A heartbeat: `client` is in `group` and wants exactly `topics`.
    pub(super) fn join(
        &self,
        group: &str,
        client: &str,
        member: &Member,
        topics: Vec<(String, Subscription)>,
    ) {
        let mut state = self.state();
        let name: Arc<str> =
            state.groups.get_key_value(group).map_or_else(|| group.into(), |(name, _)| Arc::clone(name));
        state.joined.entry(member.connection).or_default().insert(Arc::clone(&name));
        let entry = state.groups.entry(Arc::clone(&name)).or_default();
        let key = (member.connection, client.to_owned());
        let mut changed = entry.members.insert(key, member.notices.clone()).is_none();
        let before = entry.topics.len();
        entry.topics.retain(|topic, _| topics.iter().any(|(wanted, _)| wanted == topic));
        changed |= entry.topics.len() != before;
        for (topic, subscription) in topics {
            match entry.topics.get_mut(&topic) {
                Some(known) if known.version >= subscription.version => {}
                Some(known) => *known = subscription,
                None => {
                    changed = true;
                    entry.topics.insert(topic, subscription);
                }
            }
        }
        if changed {
            tell(&name, entry);
        }
    }

    /// A client leaves a group in good order.
    pub(super) fn leave(&self, group: &str, client: &str, connection: u64) {
        let mut state = self.state();
        let key = (connection, client.to_owned());
        state.remove(group, |member| *member == key);
        let stays = state
            .groups
            .get(group)
            .is_some_and(|g| g.members.keys().any(|(number, _)| *number == connection));
        if !stays && let Some(joined) = state.joined.get_mut(&connection) {
            joined.remove(group);
        }
    }

    /// A connection is gone.
    pub(super) fn leave_all(&self, connection: u64) {
        let mut state = self.state();
        for group in state.joined.remove(&connection).unwrap_or_default() {
            state.remove(&group, |(number, _)| *number == connection);
        }
    }

    /// The client ids of a group, in the order in which clients share queues.
    pub(super) fn clients(&self, group: &str) -> Vec<String> {
        let state = self.state();
        let Some(group) = state.groups.get(group) else { return Vec::new() };
        group.members.keys().map(|(_, client)| client.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What a group wants of a topic.
    pub(super) fn subscription(&self, group: &str, topic: &str) -> Found {
        match self.state().groups.get(group).map(|group| group.topics.get(topic)) {
            None => Found::NoGroup,
            Some(None) => Found::NoTopic,
            Some(Some(subscription)) => Found::Subscription(subscription.clone()),
        }
    }
}

impl State {
    fn remove(&mut self, group: &str, which: impl Fn(&(u64, String)) -> bool) {
        let Some(entry) = self.groups.get_mut(group) else { return };
        let before = entry.members.len();
        entry.members.retain(|member, _| !which(member));
        if entry.members.is_empty() {
            self.groups.remove(group);
        } else if entry.members.len() != before {
            tell(&group.into(), entry);
        }
    }
}

/// A connection with several members is told once.
fn tell(name: &Arc<str>, group: &Group) {
    let mut last = None;
    for ((connection, _), notices) in &group.members {
        if last != Some(connection) {
            // No room: the connection has so much to tell already that its client will look anyway.
            let _ = notices.try_send(Arc::clone(name));
        }
        last = Some(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(connection: u64) -> (Member, mpsc::Receiver<Arc<str>>) {
        let (notices, receiver) = mpsc::channel(16);
        (Member { connection, notices }, receiver)
    }

    fn wants(topic: &str, version: i64) -> Vec<(String, Subscription)> {
        vec![(topic.to_owned(), Subscription { version, tags: Some(Arc::from([])) })]
    }

    #[test]
    fn everybody_is_told_when_one_comes_or_goes_and_nobody_when_nothing_changed() {
        let groups = Groups::default();
        let ((a, mut a_hears), (b, mut b_hears)) = (member(1), member(2));
        groups.join("G", "a@1", &a, wants("T", 1));
        assert_eq!(a_hears.try_recv().as_deref(), Ok("G"));
        groups.join("G", "a@1", &a, wants("T", 1));
        assert!(a_hears.try_recv().is_err());
        groups.join("G", "b@2", &b, wants("T", 2));
        assert_eq!((a_hears.try_recv().as_deref(), b_hears.try_recv().as_deref()), (Ok("G"), Ok("G")));
        assert_eq!(groups.clients("G"), ["a@1", "b@2"]);
        groups.leave_all(2);
        assert_eq!((a_hears.try_recv().as_deref(), groups.clients("G")), (Ok("G"), vec!["a@1".to_owned()]));
        groups.leave("G", "a@1", 1);
        assert_eq!(groups.subscription("G", "T"), Found::NoGroup);
    }

    #[test]
    fn the_later_subscription_counts_and_a_dropped_topic_is_forgotten() {
        let groups = Groups::default();
        let (a, _hears) = member(1);
        groups.join("G", "a", &a, wants("T", 5));
        groups.join("G", "a", &a, wants("T", 4));
        assert!(matches!(groups.subscription("G", "T"), Found::Subscription(s) if s.version == 5));
        groups.join("G", "a", &a, wants("U", 6));
        assert_eq!(groups.subscription("G", "T"), Found::NoTopic);
    }

    #[test]
    fn two_clients_with_one_id_do_not_push_each_other_out() {
        let groups = Groups::default();
        let ((a, _a_hears), (b, _b_hears)) = (member(1), member(2));
        groups.join("G", "same", &a, Vec::new());
        groups.join("G", "same", &b, Vec::new());
        groups.leave_all(1);
        assert_eq!(groups.clients("G"), ["same"]);
    }
}
