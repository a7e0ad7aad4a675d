//! Groups and clients of this node, for operators.
//!
//! Owns: plain values made of the registry of groups. Promises: a copy; nobody waits while it is looked at.
//! Does not know: who asks.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Front;
use super::group::View;

/// A group of producers or consumers with members here.
#[derive(Debug, Clone)]
pub struct GroupFacts {
    /// Name.
    pub name: Arc<str>,
    /// Does it consume? Else it produces.
    pub consumes: bool,
    /// `CLUSTERING` or `BROADCASTING`; `None` for producers.
    pub model: Option<String>,
    /// Subscribed topics and filters.
    pub subscriptions: Vec<(String, String)>,
    /// Its clients.
    pub members: Vec<MemberFacts>,
}

/// A client of a group.
#[derive(Debug, Clone)]
pub struct MemberFacts {
    /// Client id.
    pub client: String,
    /// Its address.
    pub peer: SocketAddr,
    /// As it says.
    pub language: String,
    /// As it says: RocketMQ's number of the version.
    pub version: i32,
}

impl Front {
    /// All groups that have members on this node, by name.
    #[must_use]
    pub fn group_facts(&self) -> Vec<GroupFacts> {
        let (consumers, producers) = self.groups.all_names();
        let consuming = consumers
            .into_iter()
            .filter_map(|name| self.groups.consumers(&name).map(|view| facts(name, true, view)));
        let producing = producers
            .into_iter()
            .filter_map(|name| self.groups.producers(&name).map(|view| facts(name, false, view)));
        let mut groups: Vec<GroupFacts> = consuming.chain(producing).collect();
        groups.sort_by(|a, b| (&a.name, a.consumes).cmp(&(&b.name, b.consumes)));
        groups
    }
}

fn facts(name: Arc<str>, consumes: bool, view: View) -> GroupFacts {
    let members = view.members.into_iter().map(|(client, member)| MemberFacts {
        client,
        peer: member.address,
        language: format!("{:?}", member.language).to_uppercase(),
        version: member.version,
    });
    GroupFacts {
        name,
        consumes,
        model: view.manner.map(|manner| format!("{:?}", manner.message_model).to_uppercase()),
        subscriptions: view.topics.into_iter().map(|s| (s.wish.topic, s.wish.sub_string)).collect(),
        members: members.collect(),
    }
}
