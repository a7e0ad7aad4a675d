//! Principals and the one `authorize()`.
//!
//! Owns: who a connection is, and the only constructor of [`Authorized`].
//! Promises: a broker verb can not be built without a decision made here (house D19).
//! Does not know: protocols, sockets, the log.

use std::net::IpAddr;

/// Who a connection speaks as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Login name; RocketMQ clients without credentials speak as `guest`.
    pub name: std::sync::Arc<str>,
    /// Address of the *peer*, which decides what `guest` may do.
    pub peer: IpAddr,
}

/// What a verb wants to do with a resource (RabbitMQ's three permissions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// An AMQP exchange.
    Exchange(&'a str),
    /// An AMQP queue.
    Queue(&'a str),
    /// A RocketMQ topic.
    Topic(&'a str),
    /// A RocketMQ consumer group.
    Group(&'a str),
    /// The connection's own state: channels, windows, its own leases.
    Own,
}

/// The key that every broker verb asks for. Only [`authorize`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorized(());

/// A refused wish; adapters answer 403 or NO_PERMISSION with this text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access to {resource} refused for user '{user}'")]
pub struct Denied {
    /// The resource as the log and the client name it.
    pub resource: String,
    /// The login.
    pub user: String,
}

/// May `principal` do `action` on `resource`? The policy of this version: `guest`, from a loopback peer, may do everything.
///
/// # Errors
/// [`Denied`] for anybody else.
pub fn authorize(
    principal: &Principal,
    _action: Action,
    resource: Resource<'_>,
) -> Result<Authorized, Denied> {
    if &*principal.name == "guest" && principal.peer.is_loopback() {
        return Ok(Authorized(()));
    }
    Err(Denied { resource: format!("{resource:?}"), user: principal.name.to_string() })
}

/// Checks a login. The policy of this version: `guest`/`guest`, from a loopback peer only.
#[must_use]
pub fn authenticate(user: &str, password: &[u8], peer: IpAddr) -> Option<Principal> {
    (user == "guest" && password == b"guest" && peer.is_loopback())
        .then(|| Principal { name: "guest".into(), peer })
}

/// The principal of a connection that brings no credentials (RocketMQ without ACL): `guest`, so loopback only.
#[must_use]
pub fn anonymous(peer: IpAddr) -> Principal {
    Principal { name: "guest".into(), peer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_only_guest_on_loopback() {
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(authenticate("guest", b"guest", local).is_some());
        assert!(authenticate("guest", b"guest", far).is_none());
        assert!(authenticate("guest", b"wrong", local).is_none());
        assert!(authorize(&anonymous(far), Action::Read, Resource::Own).is_err());
        assert!(authorize(&anonymous(local), Action::Configure, Resource::Queue("q")).is_ok());
    }
}
