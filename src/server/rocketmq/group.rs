//! Groups of this node: who produces, who consumes, what consumers subscribe to.
//!
//! Owns: the registry, warmed by heartbeats and shared by all connections.
//! Promises: a member is in the list as soon as its first heartbeat was read; whenever members or topics of a group change, all its
//! members are told, the new one too (its first look may have been too early); a group without members is forgotten, so memory
//! follows live connections.
//! Does not know: sockets, offsets, what telling looks like on the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dassie_rocketmq::body::{ConsumeFromWhere, ConsumeType, MessageModel, Subscription as Wish};
use dassie_rocketmq::{Language, RequestCode};
use tokio::sync::mpsc;

/// What one connection has for another's client.
#[derive(Debug, Clone)]
pub(super) enum Notice {
    /// The members of this group changed.
    Changed(Arc<str>),
    /// A request of ours.
    Push(Push),
    /// What the client asked another client of.
    Answer(Answer),
}

/// A request for a client.
#[derive(Debug, Clone)]
pub(super) struct Push {
    /// What.
    pub(super) code: RequestCode,
    /// Its header.
    pub(super) fields: Vec<(&'static str, String)>,
    /// Its body.
    pub(super) body: Bytes,
    /// Who wants the answer, and under which number; `None`: it is one-way.
    pub(super) back: Option<(mpsc::Sender<Notice>, u64)>,
}

/// A client's answer to a [`Push`].
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// The push's number.
    pub(super) number: u64,
    /// As the client said.
    pub(super) code: i32,
    /// As the client said.
    pub(super) remark: Option<String>,
    /// As the client said.
    pub(super) body: Bytes,
}

/// A connection as groups know it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Its number.
    pub(super) connection: u64,
    /// Where it hears of others.
    pub(super) notices: mpsc::Sender<Notice>,
    /// The client's address.
    pub(super) address: SocketAddr,
    /// As its last heartbeat said.
    pub(super) language: Language,
    /// Likewise.
    pub(super) version: i32,
}

impl Member {
    pub(super) fn new(connection: u64, notices: mpsc::Sender<Notice>, address: SocketAddr) -> Self {
        Self { connection, notices, address, language: Language::Other, version: 0 }
    }

    /// Hands it something; no room: it has so much to tell already that its client will look anyway.
    pub(super) fn tell(&self, notice: Notice) {
        let _ = self.notices.try_send(notice);
    }
}

/// What a group wants of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    /// Made so many ms after 1970: a later one counts.
    pub(super) version: i64,
    /// Wanted tag hashes; empty: all. `None`: not by tags (SQL92), which only a pull is refused for.
    pub(super) tags: Option<Arc<[u32]>>,
    /// As the client said it.
    pub(super) wish: Wish,
}

/// How a group consumes, as its members say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) consume_type: ConsumeType,
    pub(super) message_model: MessageModel,
    pub(super) consume_from_where: Option<ConsumeFromWhere>,
}

/// How a look for a subscription ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    NoGroup,
    NoTopic,
    Subscription(Subscription),
}

/// Members by connection and client id: two clients with one id do not push each other out.
type Members = BTreeMap<(u64, String), Member>;

/// A group as tools want it.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Client id and connection of each member.
    pub(super) members: Vec<(String, Member)>,
    /// How it consumes; `None` for producers.
    pub(super) manner: Option<Manner>,
    /// What it wants.
    pub(super) topics: Vec<Subscription>,
}

#[derive(Debug, Default)]
struct Group {
    members: Members,
    manner: Option<Manner>,
    topics: HashMap<String, Subscription>,
    /// It consumes in order, if nobody locks again, until this monotonic time.
    ordered_until: Option<Duration>,
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
    producers: HashMap<Arc<str>, Members>,
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
        manner: Manner,
        topics: Vec<(String, Subscription)>,
    ) {
        let mut state = self.state();
        let name: Arc<str> =
            state.groups.get_key_value(group).map_or_else(|| group.into(), |(name, _)| Arc::clone(name));
        state.joined.entry(member.connection).or_default().insert(Arc::clone(&name));
        let entry = state.groups.entry(Arc::clone(&name)).or_default();
        let key = (member.connection, client.to_owned());
        let mut changed = entry.members.insert(key, member.clone()).is_none();
        entry.manner = Some(manner);
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

    /// A heartbeat: `client` produces as `group`.
    pub(super) fn produce(&self, group: &str, client: &str, member: &Member) {
        let mut state = self.state();
        let key = (member.connection, client.to_owned());
        state.producers.entry(group.into()).or_default().insert(key, member.clone());
    }

    /// A client produces no more as `group`.
    pub(super) fn stop_producing(&self, group: &str, client: &str, connection: u64) {
        let mut state = self.state();
        let key = (connection, client.to_owned());
        if let Some(members) = state.producers.get_mut(group) {
            members.remove(&key);
            if members.is_empty() {
                state.producers.remove(group);
            }
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
        state.producers.retain(|_, members| {
            members.retain(|(number, _), _| *number != connection);
            !members.is_empty()
        });
    }

    /// A member locks queues: the group consumes in order for as long as locks hold.
    pub(super) fn note_order(&self, group: &str, until: Duration) {
        if let Some(group) = self.state().groups.get_mut(group) {
            group.ordered_until = Some(until);
        }
    }

    /// Does the group consume in order, at this monotonic time?
    pub(super) fn is_ordered(&self, group: &str, now: Duration) -> bool {
        let state = self.state();
        state.groups.get(group).and_then(|group| group.ordered_until).is_some_and(|until| now < until)
    }

    /// The client ids of a group, in the order in which clients share queues.
    pub(super) fn clients(&self, group: &str) -> Vec<String> {
        let state = self.state();
        let Some(group) = state.groups.get(group) else { return Vec::new() };
        group.members.keys().map(|(_, client)| client.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A group of consumers.
    pub(super) fn consumers(&self, group: &str) -> Option<View> {
        let state = self.state();
        let group = state.groups.get(group)?;
        let mut topics: Vec<Subscription> = group.topics.values().cloned().collect();
        topics.sort_by(|a, b| a.wish.topic.cmp(&b.wish.topic));
        Some(View { members: members(&group.members), manner: group.manner, topics })
    }

    /// Does the group give every message to every member?
    pub(super) fn broadcasts(&self, group: &str) -> bool {
        let manner = self.state().groups.get(group).and_then(|group| group.manner);
        manner.is_some_and(|manner| manner.message_model == MessageModel::Broadcasting)
    }

    /// A group of producers.
    pub(super) fn producers(&self, group: &str) -> Option<View> {
        let state = self.state();
        let found = state.producers.get(group)?;
        Some(View { members: members(found), manner: None, topics: Vec::new() })
    }

    /// A client by its id, if it produces.
    pub(super) fn client(&self, id: &str) -> Option<Member> {
        let state = self.state();
        let mut members = state.producers.values().flatten();
        members.find(|((_, client), _)| client == id).map(|(_, member)| member.clone())
    }

    /// Groups with members that want this topic, by name.
    pub(super) fn groups_of(&self, topic: &str) -> BTreeSet<String> {
        let state = self.state();
        state
            .groups
            .iter()
            .filter(|(_, g)| g.topics.contains_key(topic))
            .map(|(n, _)| n.to_string())
            .collect()
    }

    /// Groups with members, by name.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.state().groups.keys().map(ToString::to_string).collect()
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

impl Groups {
    /// Names of all groups: of consumers, of producers.
    pub(super) fn all_names(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let state = self.state();
        (state.groups.keys().cloned().collect(), state.producers.keys().cloned().collect())
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
    for ((connection, _), member) in &group.members {
        if last != Some(connection) {
            member.tell(Notice::Changed(Arc::clone(name)));
        }
        last = Some(connection);
    }
}

fn members(members: &Members) -> Vec<(String, Member)> {
    members.iter().map(|((_, client), member)| (client.clone(), member.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner = Manner {
        consume_type: ConsumeType::Passively,
        message_model: MessageModel::Clustering,
        consume_from_where: None,
    };

    /// A connection, and the groups it hears of.
    struct Hears(mpsc::Receiver<Notice>);

    impl Hears {
        fn next(&mut self) -> Option<String> {
            match self.0.try_recv() {
                Ok(Notice::Changed(group)) => Some(group.to_string()),
                _ => None,
            }
        }
    }

    fn member(connection: u64) -> (Member, Hears) {
        let (notices, receiver) = mpsc::channel(16);
        (Member::new(connection, notices, "127.0.0.1:1".parse().unwrap()), Hears(receiver))
    }

    fn wants(topic: &str, version: i64) -> Vec<(String, Subscription)> {
        let wish = Wish { topic: topic.to_owned(), ..Wish::default() };
        vec![(topic.to_owned(), Subscription { version, tags: Some(Arc::from([])), wish })]
    }

    #[test]
    fn everybody_is_told_when_one_comes_or_goes_and_nobody_when_nothing_changed() {
        let groups = Groups::default();
        let ((a, mut a_hears), (b, mut b_hears)) = (member(1), member(2));
        groups.join("G", "a@1", &a, MANNER, wants("T", 1));
        assert_eq!(a_hears.next().as_deref(), Some("G"));
        groups.join("G", "a@1", &a, MANNER, wants("T", 1));
        assert_eq!(a_hears.next(), None);
        groups.join("G", "b@2", &b, MANNER, wants("T", 2));
        assert_eq!((a_hears.next().as_deref(), b_hears.next().as_deref()), (Some("G"), Some("G")));
        assert_eq!(groups.clients("G"), ["a@1", "b@2"]);
        groups.leave_all(2);
        assert_eq!((a_hears.next().as_deref(), groups.clients("G")), (Some("G"), vec!["a@1".to_owned()]));
        groups.leave("G", "a@1", 1);
        assert_eq!(groups.subscription("G", "T"), Found::NoGroup);
    }

    #[test]
    fn the_later_subscription_counts_and_a_dropped_topic_is_forgotten() {
        let groups = Groups::default();
        let (a, _hears) = member(1);
        groups.join("G", "a", &a, MANNER, wants("T", 5));
        groups.join("G", "a", &a, MANNER, wants("T", 4));
        assert!(matches!(groups.subscription("G", "T"), Found::Subscription(s) if s.version == 5));
        groups.join("G", "a", &a, MANNER, wants("U", 6));
        assert_eq!(groups.subscription("G", "T"), Found::NoTopic);
    }

    #[test]
    fn two_clients_with_one_id_do_not_push_each_other_out() {
        let groups = Groups::default();
        let ((a, _a_hears), (b, _b_hears)) = (member(1), member(2));
        groups.join("G", "same", &a, MANNER, Vec::new());
        groups.join("G", "same", &b, MANNER, Vec::new());
        groups.leave_all(1);
        assert_eq!(groups.clients("G"), ["same"]);
    }

    #[test]
    fn producers_are_known_until_they_leave_or_their_connection_ends() {
        let groups = Groups::default();
        let ((a, _a_hears), (b, _b_hears)) = (member(1), member(2));
        groups.produce("P", "a", &a);
        groups.produce("P", "b", &b);
        assert_eq!(groups.producers("P").unwrap().members.len(), 2);
        groups.stop_producing("P", "a", 1);
        groups.leave_all(2);
        assert!(groups.producers("P").is_none());
    }
}
