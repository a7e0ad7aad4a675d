//! Principals and the one `authorize()`.
//!
//! Owns: who a connection is, the users as last loaded, how many connections and channels each has, and the only constructor of
//! [`Authorized`].
//! Promises: a broker verb can not be built without a decision made here (house D19); a decision that is remembered is forgotten
//! when users are loaded again; what is refused says what and to whom, never why a login failed.
//! Does not know: protocols, sockets, the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub mod definitions;
pub mod password;
pub mod permissions;
pub mod signature;
pub mod users;

use serde::{Deserialize, Serialize};

use crate::limits;
use password::PasswordHash;
use permissions::{Pattern, Rights};
use users::Users;

/// Name of the virtual host that every store has.
pub const DEFAULT_VHOST: &str = "/";
/// Prefix of the exchanges that stand for RocketMQ topics.
pub const TOPIC_EXCHANGE_PREFIX: &str = "amq.rmq.";

/// Begins the name of a topic that is another look at a queue of `/`, by offset; the rest is the queue's name as [`unescaped`] reads it.
pub const QUEUE_TOPIC_PREFIX: &str = "AMQP-Q-";

/// A name in which `|HH` stands for the byte HH; `None`: it stands for none.
#[must_use]
pub fn unescaped(text: &str) -> Option<String> {
    let mut rest = text.as_bytes();
    let mut name = Vec::with_capacity(rest.len());
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let [byte, later @ ..] = rest {
        rest = later;
        match (*byte, later) {
            (b'|', [high, low, later @ ..]) => {
                name.push(digit(*high)? << 4 | digit(*low)?);
                rest = later;
            }
            (b'|', _) => return None,
            (byte, _) => name.push(byte),
        }
    }
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// The queue that a topic is another look at.
#[must_use]
pub fn queue_of_topic(topic: &str) -> Option<String> {
    unescaped(topic.strip_prefix(QUEUE_TOPIC_PREFIX)?)
}

/// What a verb wants to do with a resource (RabbitMQ's three permissions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Declare, delete, create.
    Configure,
    /// Publish, send, be the destination of a binding.
    Write,
    /// Consume, get, pull, purge, be the source of a binding.
    Read,
}

/// On what: names are the client's, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    /// An AMQP exchange; the default one is judged as `amq.default`.
    Exchange(&'a str),
    /// An AMQP queue.
    Queue(&'a str),
    /// A routing key at a topic exchange: topic permissions, beside those on the exchange.
    RoutingKey {
        /// The exchange.
        exchange: &'a str,
        /// The key that a message or a binding has.
        key: &'a str,
    },
    /// A RocketMQ topic. Judged as the exchange `amq.rmq.<topic>` that it is to AMQP, or as the queue that it is a look at: one thing, one
    /// right.
    Topic(&'a str),
    /// A RocketMQ consumer group. Judged as a queue of that name.
    Group(&'a str),
    /// The connection's own state: channels, windows, its own leases.
    Own,
}

/// The key that every broker verb asks for. Only [`authorize`] makes one; it travels with its verb from the node that asked it to
/// the leader, over a link that only members of the cluster have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorized(());

/// A refused wish; adapters answer 403 or NO_PERMISSION with this text, which is RabbitMQ's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access to {resource} in vhost '{vhost}' refused for user '{user}'")]
pub struct Denied {
    /// Kind and name of the resource.
    pub resource: String,
    /// Where.
    pub vhost: Arc<str>,
    /// The login.
    pub user: Arc<str>,
}

/// A login that failed: for the log alone, a client is told nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// No such user, or another password.
    #[error("invalid credentials")]
    Invalid,
    /// RabbitMQ's rule: a blank password opens nothing.
    #[error("a blank password is prohibited")]
    Blank,
    /// `loopback_users` names the user.
    #[error("the user can only connect via localhost")]
    NotLocal,
}

/// A logged-in user may not enter a virtual host. The texts are RabbitMQ's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryRefused {
    /// No permission there.
    #[error("access to vhost '{vhost}' refused for user '{user}'")]
    NoAccess {
        /// Where to.
        vhost: Arc<str>,
        /// Who.
        user: Arc<str>,
    },
    /// It is full.
    #[error("access to vhost '{vhost}' refused for user '{user}': connection limit ({limit}) is reached")]
    VhostFull {
        /// Where to.
        vhost: Arc<str>,
        /// Who.
        user: Arc<str>,
        /// Connections.
        limit: u32,
    },
    /// The user has enough.
    #[error("connection refused for user '{user}': user connection limit ({limit}) is reached")]
    UserFull {
        /// Who.
        user: Arc<str>,
        /// Connections.
        limit: u32,
    },
}

/// A user has as many channels as it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})"
)]
pub struct ChannelsFull {
    /// Who.
    pub user: Arc<str>,
    /// Channels.
    pub limit: u32,
}

/// The users as last loaded, and who of them is here. One per node.
#[derive(Debug)]
pub struct Realm {
    users: Mutex<Arc<Users>>,
    /// Changes with every load.
    version: AtomicU64,
    /// By name; entries whose count is 0 go when they are next met.
    counts: Mutex<Counts>,
    /// What unknown users are compared with: they cost as much time as others.
    nobody: PasswordHash,
}

type Counts = HashMap<(Counted, Arc<str>), Arc<AtomicU32>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Counted {
    UserConnections,
    UserChannels,
    VhostConnections,
}

/// One connection or channel that counts until this is dropped.
#[derive(Debug)]
pub struct Counter(Arc<AtomicU32>);

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Realm {
    /// A realm with these users.
    #[must_use]
    pub fn new(users: Users) -> Arc<Self> {
        Arc::new(Self {
            users: Mutex::new(Arc::new(users)),
            version: AtomicU64::new(1),
            counts: Mutex::default(),
            nobody: PasswordHash::new(b"", [0; 4]),
        })
    }

    /// The users were read again. Connections stay; what they may do changes with their next wish.
    pub fn load(&self, users: Users) {
        *lock(&self.users) = Arc::new(users);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The users as last loaded.
    #[must_use]
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&lock(&self.users))
    }

    /// Checks a login by password.
    ///
    /// # Errors
    /// [`LoginRefused`], for the log.
    pub fn authenticate(
        self: &Arc<Self>,
        name: &str,
        password: &[u8],
        peer: IpAddr,
    ) -> Result<Principal, LoginRefused> {
        let users = self.users();
        let hash = users.users.get(name).and_then(|user| user.password.as_ref());
        // The digest is made in any case: time tells nobody who exists.
        let right = hash.unwrap_or(&self.nobody).is(password);
        if password.is_empty() {
            return Err(LoginRefused::Blank);
        }
        if !right || hash.is_none() {
            return Err(LoginRefused::Invalid);
        }
        self.admit(&users, name, peer)
    }

    /// Checks a signed request: the access key is a user's name.
    ///
    /// # Errors
    /// [`LoginRefused`], for the log.
    pub fn check_signature<'a>(
        self: &Arc<Self>,
        name: &str,
        parts: impl IntoIterator<Item = &'a [u8]>,
        signature: &str,
        peer: IpAddr,
    ) -> Result<(), LoginRefused> {
        let users = self.users();
        let secret = users.users.get(name).and_then(|user| user.secret.as_ref());
        if !secret.is_some_and(|secret| secret.signed(parts, signature)) {
            return Err(LoginRefused::Invalid);
        }
        if users.loopback.contains(name) && !peer.to_canonical().is_loopback() {
            return Err(LoginRefused::NotLocal);
        }
        Ok(())
    }

    /// Does any user sign RocketMQ requests?
    #[must_use]
    pub fn has_signers(&self) -> bool {
        self.users().users.values().any(|user| user.secret.is_some())
    }

    /// Logs in who showed by other means (a verified certificate) that the name is theirs.
    ///
    /// # Errors
    /// [`LoginRefused`], for the log.
    pub fn authenticate_external(
        self: &Arc<Self>,
        name: &str,
        peer: IpAddr,
    ) -> Result<Principal, LoginRefused> {
        self.admit(&self.users(), name, peer)
    }

    fn admit(self: &Arc<Self>, users: &Users, name: &str, peer: IpAddr) -> Result<Principal, LoginRefused> {
        if !users.users.contains_key(name) {
            return Err(LoginRefused::Invalid);
        }
        let peer = peer.to_canonical();
        if users.loopback.contains(name) && !peer.is_loopback() {
            return Err(LoginRefused::NotLocal);
        }
        Ok(Principal::new(Arc::clone(self), name.into(), peer))
    }

    /// The principal of a connection that brings no credentials (RocketMQ without ACL), in `/`. What it may do is decided for
    /// the user that the configuration names (`guest`, so loopback only, unless told otherwise).
    #[must_use]
    pub fn anonymous(self: &Arc<Self>, peer: IpAddr) -> Principal {
        let name = Arc::clone(&self.users().anonymous);
        Principal::new(Arc::clone(self), name, peer.to_canonical())
    }

    /// The user who signed a request ([`Realm::check_signature`]), in `/`.
    #[must_use]
    pub fn signed(self: &Arc<Self>, name: &str, peer: IpAddr) -> Principal {
        Principal { signs: true, ..Principal::new(Arc::clone(self), name.into(), peer.to_canonical()) }
    }

    /// Who acts for the operator: what the process was told by its own files to declare, it may.
    #[must_use]
    pub fn operator() -> Principal {
        let peer = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        Self::new(Users::only_guest()).anonymous(peer)
    }

    /// Counts one more, unless there are `most` already.
    fn count(&self, what: Counted, name: &Arc<str>, most: Option<u32>) -> Option<Counter> {
        let mut counts = lock(&self.counts);
        // Names come from users and virtual hosts that exist; a reload can leave old ones behind, so that they are swept here.
        if counts.len() >= limits::COUNTED_NAMES_SWEEP {
            counts.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        }
        let count = counts.entry((what, Arc::clone(name))).or_default();
        if most.is_some_and(|most| count.load(Ordering::Relaxed) >= most) {
            return None;
        }
        // Only here it grows, under the lock: the limit holds exactly.
        count.fetch_add(1, Ordering::Relaxed);
        Some(Counter(Arc::clone(count)))
    }
}

/// Who a connection speaks as, and where.
#[derive(Debug)]
pub struct Principal {
    /// Login name.
    pub name: Arc<str>,
    /// Address of the *peer*, which decides what `guest` may do.
    pub peer: IpAddr,
    vhost: Arc<str>,
    /// It signs its requests: not to be taken for the one without credentials, who may have the same name.
    signs: bool,
    realm: Arc<Realm>,
    /// Not shared between connections: held for the time of a decision, by one task.
    seen: Mutex<Seen>,
    counters: Vec<Counter>,
}

/// What was decided on one version of the users.
#[derive(Debug, Default)]
struct Seen {
    version: u64,
    /// None: the user is unknown, too far away, or has no right in this virtual host.
    rights: Option<Arc<Rights>>,
    /// Verdicts by name, one map for each action: exchanges and queues are judged by the same patterns.
    verdicts: [HashMap<String, bool>; 3],
}

impl Principal {
    fn new(realm: Arc<Realm>, name: Arc<str>, peer: IpAddr) -> Self {
        let vhost = DEFAULT_VHOST.into();
        Self { name, peer, vhost, signs: false, realm, seen: Mutex::default(), counters: Vec::new() }
    }

    /// Enters a virtual host that exists. It counts there until this principal is dropped.
    ///
    /// # Errors
    /// [`EntryRefused`], in the order in which RabbitMQ looks: the virtual host's limit, the user's, the permission.
    pub fn enter(&mut self, vhost: &str) -> Result<(), EntryRefused> {
        let (vhost, user): (Arc<str>, _) = (vhost.into(), Arc::clone(&self.name));
        let users = self.realm.users();
        let of_vhost = users.vhosts.get(&vhost).and_then(|limits| limits.max_connections);
        let of_user = users.users.get(&user).and_then(|user| user.max_connections);
        let in_vhost = self.realm.count(Counted::VhostConnections, &vhost, of_vhost).ok_or_else(|| {
            let (vhost, user) = (Arc::clone(&vhost), Arc::clone(&user));
            EntryRefused::VhostFull { vhost, user, limit: of_vhost.unwrap_or(0) }
        })?;
        let by_user = self
            .realm
            .count(Counted::UserConnections, &user, of_user)
            .ok_or_else(|| EntryRefused::UserFull { user: Arc::clone(&user), limit: of_user.unwrap_or(0) })?;
        self.vhost = Arc::clone(&vhost);
        *lock(&self.seen) = Seen::default();
        if authorize(self, Action::Read, Resource::Own).is_err() {
            return Err(EntryRefused::NoAccess { vhost, user });
        }
        self.counters = vec![in_vhost, by_user];
        Ok(())
    }

    /// Counts one channel of this user until the counter is dropped.
    ///
    /// # Errors
    /// [`ChannelsFull`]: `max-channels` of the user.
    pub fn open_channel(&self) -> Result<Counter, ChannelsFull> {
        let most = self.realm.users().users.get(&self.name).and_then(|user| user.max_channels);
        self.realm
            .count(Counted::UserChannels, &self.name, most)
            .ok_or_else(|| ChannelsFull { user: Arc::clone(&self.name), limit: most.unwrap_or(0) })
    }

    /// Is it this signer; or, without a name, one that does not sign?
    #[must_use]
    pub fn is(&self, signer: Option<&str>) -> bool {
        signer == self.signs.then_some(&*self.name)
    }

    /// The same user once more, who entered nowhere yet.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::new(Arc::clone(&self.realm), Arc::clone(&self.name), self.peer)
    }

    /// How many queues the virtual host may hold.
    #[must_use]
    pub fn max_queues(&self) -> Option<u32> {
        self.realm.users().vhosts.get(&self.vhost).and_then(|limits| limits.max_queues)
    }

    /// Does any topic permission hold for it here? Without one no routing key needs a look.
    #[must_use]
    pub fn narrows_keys(&self) -> bool {
        self.seen().rights.as_ref().is_some_and(|rights| rights.narrows_keys())
    }

    /// May it publish with another user's name in `user-id`?
    #[must_use]
    pub fn may_impersonate(&self) -> bool {
        let users = self.realm.users();
        users.users.get(&self.name).is_some_and(|user| user.tags.iter().any(|tag| tag == "impersonator"))
    }

    fn denied(&self, resource: String) -> Denied {
        Denied { resource, vhost: Arc::clone(&self.vhost), user: Arc::clone(&self.name) }
    }

    /// What was seen, brought up to the users as they are now.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        let mut seen = lock(&self.seen);
        let version = self.realm.version.load(Ordering::Acquire);
        if seen.version != version {
            let users = self.realm.users();
            let here = self.peer.is_loopback() || !users.loopback.contains(&*self.name);
            let user = users.users.get(&self.name).filter(|_| here);
            let rights = user.and_then(|user| user.vhosts.get(&self.vhost)).cloned();
            *seen = Seen { version, rights, verdicts: Default::default() };
        }
        seen
    }
}

/// May `principal` do `action` on `resource`, in the virtual host that it entered?
///
/// # Errors
/// [`Denied`]: no permission of the user lets it through.
pub fn authorize(
    principal: &Principal,
    action: Action,
    resource: Resource<'_>,
) -> Result<Authorized, Denied> {
    let mut seen = principal.seen();
    let Seen { rights, verdicts, .. } = &mut *seen;
    let mut allowed = |name: &str| {
        let Some(rights) = rights else { return false };
        let pattern = match rights.pattern(action) {
            Pattern::All => return true,
            pattern => pattern,
        };
        let verdicts = &mut verdicts[action as usize];
        if let Some(verdict) = verdicts.get(name) {
            return *verdict;
        }
        if verdicts.len() >= limits::VERDICTS_MAX {
            verdicts.clear();
        }
        let verdict = pattern.matches(name);
        verdicts.insert(name.to_owned(), verdict);
        verdict
    };
    let (verdict, shown) = match resource {
        Resource::Own => (rights.is_some(), None),
        Resource::Exchange("") => (allowed("amq.default"), Some(("exchange", "amq.default"))),
        Resource::Exchange(name) => (allowed(name), Some(("exchange", name))),
        Resource::Queue(name) => (allowed(name), Some(("queue", name))),
        Resource::Group(name) => (allowed(name), Some(("consumer group", name))),
        Resource::Topic(name) if name.starts_with(QUEUE_TOPIC_PREFIX) => {
            (queue_of_topic(name).is_some_and(|queue| allowed(&queue)), Some(("topic", name)))
        }
        Resource::Topic(name) => (allowed(&format!("{TOPIC_EXCHANGE_PREFIX}{name}")), Some(("topic", name))),
        Resource::RoutingKey { exchange, key } => {
            let allowed = rights.as_ref().is_some_and(|rights| rights.allows_key(action, exchange, key));
            if !allowed {
                return Err(principal.denied(format!("topic '{key}' in exchange '{exchange}'")));
            }
            (true, None)
        }
    };
    if verdict {
        return Ok(Authorized(()));
    }
    let resource = shown.map_or_else(|| "the broker".to_owned(), |(kind, name)| format!("{kind} '{name}'"));
    Err(principal.denied(resource))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves half a change behind: a panic elsewhere does not make the value wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::users::{User, VhostLimits};
    use super::*;

    const LOCAL: &str = "127.0.0.1";
    const FAR: &str = "192.0.2.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rights(configure: &str, write: &str, read: &str) -> Arc<Rights> {
        Arc::new(Rights::parse(configure, write, read).unwrap())
    }

    fn alice() -> User {
        User {
            password: Some(PasswordHash::new(b"secret", [1; 4])),
            vhosts: HashMap::from([
                ("/".into(), rights("^alice-", "^(alice-|amq\\.default$)", "^alice-")),
                ("empty".into(), rights("", "", "")),
            ]),
            max_connections: Some(2),
            max_channels: Some(1),
            ..User::default()
        }
    }

    fn realm() -> Arc<Realm> {
        let mut users = Users::only_guest();
        users.users.insert("alice".into(), alice());
        users.vhosts.insert("empty".into(), VhostLimits { max_connections: Some(1), max_queues: Some(3) });
        Realm::new(users)
    }

    #[test]
    fn guest_is_only_guest_on_loopback() {
        let realm = realm();
        for local in [LOCAL, "::1", "::ffff:127.0.0.1", "127.8.9.1"] {
            assert!(realm.authenticate("guest", b"guest", ip(local)).is_ok(), "{local}");
        }
        let refused =
            |name: &str, password: &[u8], from| realm.authenticate(name, password, ip(from)).unwrap_err();
        assert_eq!(refused("guest", b"guest", FAR), LoginRefused::NotLocal);
        assert_eq!(refused("guest", b"wrong", LOCAL), LoginRefused::Invalid);
        assert_eq!(refused("nobody", b"guest", LOCAL), LoginRefused::Invalid);
        assert_eq!(refused("guest", b"", LOCAL), LoginRefused::Blank);
        assert_eq!(refused("nobody", b"", LOCAL), LoginRefused::Blank);
        assert!(realm.authenticate("alice", b"secret", ip(FAR)).is_ok());
        assert!(authorize(&realm.anonymous(ip(FAR)), Action::Read, Resource::Own).is_err());
        assert!(authorize(&realm.anonymous(ip(LOCAL)), Action::Configure, Resource::Queue("q")).is_ok());
    }

    #[test]
    fn a_certificate_opens_the_door_of_a_user_that_exists() {
        let realm = realm();
        assert_eq!(&*realm.authenticate_external("alice", ip(FAR)).unwrap().name, "alice");
        assert_eq!(realm.authenticate_external("mallory", ip(FAR)).unwrap_err(), LoginRefused::Invalid);
        assert_eq!(realm.authenticate_external("guest", ip(FAR)).unwrap_err(), LoginRefused::NotLocal);
    }

    #[test]
    fn each_action_asks_its_own_pattern() {
        let realm = realm();
        let mut alice = realm.authenticate("alice", b"secret", ip(FAR)).unwrap();
        alice.enter("/").unwrap();
        for (action, resource, allowed) in [
            (Action::Configure, Resource::Queue("alice-q"), true),
            (Action::Configure, Resource::Queue("bob-q"), false),
            (Action::Write, Resource::Exchange(""), true),
            (Action::Read, Resource::Exchange(""), false),
            (Action::Write, Resource::Exchange("alice-x"), true),
            (Action::Write, Resource::Topic("alice-x"), false),
            (Action::Read, Resource::Topic("AMQP-Q-alice|2Dq"), true),
            (Action::Read, Resource::Topic("AMQP-Q-bob-q"), false),
            (Action::Read, Resource::Topic("AMQP-Q-"), false),
            (Action::Read, Resource::Group("alice-g"), true),
            (Action::Read, Resource::Own, true),
        ] {
            // Twice: the second verdict is remembered.
            for _ in 0..2 {
                assert_eq!(authorize(&alice, action, resource).is_ok(), allowed, "{action} {resource:?}");
            }
        }
        let text = authorize(&alice, Action::Write, Resource::Queue("x")).unwrap_err().to_string();
        assert_eq!(text, "access to queue 'x' in vhost '/' refused for user 'alice'");
        alice.enter("empty").unwrap();
        assert!(authorize(&alice, Action::Configure, Resource::Queue("alice-q")).is_err());
    }

    #[test]
    fn a_reload_counts_from_the_next_wish_on() {
        let realm = realm();
        let mut alice = realm.authenticate("alice", b"secret", ip(FAR)).unwrap();
        alice.enter("/").unwrap();
        assert!(authorize(&alice, Action::Read, Resource::Queue("alice-q")).is_ok());
        realm.load(Users::only_guest());
        assert!(authorize(&alice, Action::Read, Resource::Queue("alice-q")).is_err());
        assert!(authorize(&alice, Action::Read, Resource::Own).is_err());
    }

    #[test]
    fn limits_are_exact_and_give_back() {
        let realm = realm();
        let enter = |vhost| {
            let mut alice = realm.authenticate("alice", b"secret", ip(FAR)).unwrap();
            alice.enter(vhost).map(|()| alice)
        };
        assert!(matches!(enter("other"), Err(EntryRefused::NoAccess { .. })));
        let one = enter("empty").unwrap();
        assert!(matches!(enter("empty"), Err(EntryRefused::VhostFull { limit: 1, .. })));
        let two = enter("/").unwrap();
        assert!(matches!(enter("/"), Err(EntryRefused::UserFull { limit: 2, .. })));
        drop(one);
        let channel = two.open_channel().unwrap();
        assert_eq!(enter("/").unwrap().open_channel().unwrap_err().limit, 1);
        drop(channel);
        assert!(two.open_channel().is_ok());
    }
}
