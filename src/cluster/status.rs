//! The cluster in JSON, for `GET /cluster` and `dassie cluster status`.
//!
//! Owns: names and meaning of the members of that object. Promises: what a node does not know is `null`, never a guess.
//! Does not know: who asks.
//!
//! | member | meaning |
//! |---|---|
//! | `name`, `cluster` | name and UUID of the cluster |
//! | `node`, `role` | the node that answers: `leader`, `follower`, or `looking` for one |
//! | `leader`, `term` | as that node knows them; `leader` is `null` while there is none |
//! | `last`, `committed`, `applied` | log indices of that node |
//! | `changing` | the voters are being changed |
//! | `members[]` | `node`, `address`, `store`, `role` (`leader`, `follower`, `learner`); known to a leader, which another node asks for it: `matched` (log index), `lag_bytes`, `last_contact_ms`; `connection`: `null`, or why the answering node can not reach it |
//! | `trouble[]` | what keeps the cluster from being what it should be, for people |

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::driver::Role;
use super::handshake::{Card, uuid_text};
use super::members::View;

/// A leader that has not heard of a member for so long says so. ms.
const SILENT_MS: u64 = 2_000;

/// The object. `links`: the nodes that this one asks, and why it can not where it can not; `listed`: those of the configuration.
#[must_use]
pub fn status(
    view: &View,
    card: &Card,
    links: &BTreeMap<u64, Option<String>>,
    listed: impl IntoIterator<Item = u64>,
) -> Value {
    let leader = view.leader();
    let members = view.members.iter().map(|(id, member)| {
        let role = match member.voter {
            _ if leader == Some(*id) => "leader",
            true => "follower",
            false => "learner",
        };
        json!({
            "node": id,
            "address": member.node.address,
            "store": uuid_text(&member.node.store),
            "role": role,
            "matched": member.matched,
            "lag_bytes": member.lag_bytes,
            "last_contact_ms": member.silent_ms,
            "connection": links.get(id).cloned().flatten(),
        })
    });
    let members: Vec<Value> = members.collect();
    let role = match view.role {
        Role::Leader { .. } => "leader",
        Role::Follower { .. } => "follower",
        Role::Looking => "looking",
    };
    json!({
        "name": card.name,
        "cluster": card.replicates.map(|replicates| uuid_text(&replicates.cluster)),
        "node": view.node,
        "role": role,
        "leader": leader,
        "term": view.term,
        "last": view.last,
        "committed": view.committed,
        "applied": view.applied,
        "changing": view.changing,
        "members": members,
        "trouble": trouble(view, links, listed),
    })
}

fn trouble(
    view: &View,
    links: &BTreeMap<u64, Option<String>>,
    listed: impl IntoIterator<Item = u64>,
) -> Vec<String> {
    let mut trouble = Vec::new();
    if view.role == Role::Looking {
        trouble.push("no leader is known: nothing is confirmed".to_owned());
    }
    let heard = view.members.iter().filter(|(id, one)| {
        one.voter && (**id == view.node || one.silent_ms.is_some_and(|ms| ms <= SILENT_MS))
    });
    if matches!(view.role, Role::Leader { .. }) && heard.count() * 2 <= view.voters() {
        trouble.push("a majority of the voters does not answer: nothing is confirmed".to_owned());
    }
    if view.voters() == 2 {
        trouble.push(
            "two voters are not highly available: when either is down, nothing is confirmed".to_owned(),
        );
    }
    for (id, member) in view.members.iter().filter(|(id, _)| **id != view.node) {
        if let Some(Some(why)) = links.get(id) {
            trouble.push(why.clone());
        } else if let Some(ms) = member.silent_ms.filter(|ms| *ms > SILENT_MS) {
            trouble.push(format!("node {id} has not answered for {ms} ms"));
        }
    }
    for id in listed.into_iter().filter(|id| !view.members.contains_key(id)) {
        trouble.push(format!("node {id} is listed in cluster.peers and is no member"));
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Member, Node};

    #[test]
    fn what_only_a_leader_knows_is_null_elsewhere_and_trouble_is_in_words() {
        let member = |voter, lag_bytes: Option<u64>| Member {
            node: Node { address: "a:1".into(), store: [1; 16] },
            voter,
            matched: None,
            lag_bytes,
            silent_ms: lag_bytes.map(|_| 3_000),
        };
        let members = BTreeMap::from([
            (1, member(true, Some(0))),
            (2, member(true, Some(7))),
            (3, member(false, None)),
        ]);
        let role = Role::Leader { term: 4 };
        let view = View { node: 1, role, term: 4, members, ..View::default() };
        let card = Card { node: 1, name: "n".into(), address: "a:1".into(), replicates: None };
        let links = BTreeMap::from([(3, Some("node 3 at a:1: connection refused".to_owned()))]);
        let status = status(&view, &card, &links, [1, 2, 3, 4]);
        assert_eq!(status["leader"], 1);
        let roles: Vec<&Value> = status["members"].as_array().unwrap().iter().map(|m| &m["role"]).collect();
        assert_eq!(roles, ["leader", "follower", "learner"]);
        assert_eq!(status["members"][1]["lag_bytes"], 7);
        assert!(status["members"][2]["lag_bytes"].is_null());
        let trouble: Vec<&str> =
            status["trouble"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let words = ["a majority", "two voters", "3000 ms", "refused", "node 4"];
        assert_eq!(trouble.len(), words.len(), "{trouble:?}");
        assert!(trouble.iter().zip(words).all(|(line, word)| line.contains(word)), "{trouble:?}");
    }
}
