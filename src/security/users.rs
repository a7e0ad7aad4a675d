//! All users of a broker as one value.
//!
//! Owns: who exists, with which password, rights and limits. Promises: a value is never changed: a reload makes a new one.
//! Does not know: where users are written down, who is connected.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::password::PasswordHash;
use super::permissions::Rights;
use super::signature::SigningSecret;

/// The user that exists when nobody named any, and its password.
pub const DEFAULT_USER: &str = "guest";

/// Somebody who can log in.
#[derive(Debug, Clone, Default)]
pub struct User {
    /// `None`: no password opens this door (EXTERNAL may).
    pub password: Option<PasswordHash>,
    /// What RocketMQ requests of this user are signed with; `None`: it signs none.
    pub secret: Option<SigningSecret>,
    /// RabbitMQ's: `administrator`, `monitoring`, `impersonator`, …
    pub tags: Vec<String>,
    /// Rights by name of the virtual host; none: no access.
    pub vhosts: HashMap<Arc<str>, Arc<Rights>>,
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// Channels at once, of all connections.
    pub max_channels: Option<u32>,
}

/// What a virtual host may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VhostLimits {
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// Queues.
    pub max_queues: Option<u32>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// By name.
    pub users: HashMap<Arc<str>, User>,
    /// Who may come from a loopback peer only.
    pub loopback: HashSet<String>,
    /// Who RocketMQ connections without credentials speak as.
    pub anonymous: Arc<str>,
    /// By name; a virtual host that is not here has no limits of its own.
    pub vhosts: HashMap<Arc<str>, VhostLimits>,
}

impl Users {
    /// A broker without users: `guest`/`guest` with all rights in `/`, from loopback only.
    #[must_use]
    pub fn only_guest() -> Self {
        let guest = User {
            password: Some(PasswordHash::new(DEFAULT_USER.as_bytes(), *b"salt")),
            tags: vec!["administrator".to_owned()],
            vhosts: HashMap::from([("/".into(), Arc::new(Rights::all()))]),
            ..User::default()
        };
        Self {
            users: HashMap::from([(DEFAULT_USER.into(), guest)]),
            loopback: HashSet::from([DEFAULT_USER.to_owned()]),
            anonymous: DEFAULT_USER.into(),
            vhosts: HashMap::new(),
        }
    }
}
