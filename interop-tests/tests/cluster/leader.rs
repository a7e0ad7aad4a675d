//! The leader goes: by kill -9, and in peace.
//!
//! Owns: nothing. Promises: what was confirmed is there afterwards, once and in order. Does not know: how a leader is elected.

use std::time::{Duration, Instant};

use dassie_interop::wire::{Client, Durability};
use rustix::process::{Pid, Signal, kill_process};

use crate::three::{Three, cluster, drain, publish};

/// House D25 says two seconds for a first confirm; a busy test machine gets one more.
const ELECTED_WITHIN: Duration = Duration::from_secs(3);

fn wait_for_another(three: &mut Three, old: u64) -> (u64, Duration) {
    let mut next = None;
    let took = three.wait("another leader", |three| {
        next = three.leader().filter(|leader| *leader != old);
        next.is_some()
    });
    (next.expect("it was just seen"), took)
}

#[test]
fn after_a_kill_of_the_leader_another_leads_soon_and_has_everything_that_was_confirmed() {
    let mut three = Three::started("kill");
    let leader = three.any_leader();
    let mut client = Client::connect(three.nodes[&leader].ports.amqp).expect("it accepts");
    client.declare_queue("kept", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    publish(&mut client, "kept", 0..2_000);
    three.nodes.get_mut(&leader).expect("a node").kill();
    let (next, took) = wait_for_another(&mut three, leader);
    assert!(took < ELECTED_WITHIN, "{took:?}\n{}", three.logs());
    let mut client = Client::connect(three.nodes[&next].ports.amqp).expect("it accepts");
    assert_eq!(drain(&mut client, "kept"), (0..2_000).collect::<Vec<u64>>());
    // The two that are left confirm; who was killed comes back, and gets what it missed.
    let mut client = Client::connect(three.nodes[&next].ports.amqp).expect("it accepts");
    client.confirm().expect("it confirms");
    publish(&mut client, "kept", 2_000..2_500);
    three.nodes.get_mut(&leader).expect("a node").spawn().expect("it starts");
    three.wait("the killed one has all", |three| {
        let (Some(ahead), Some(back)) = (cluster(&three.nodes[&next]), cluster(&three.nodes[&leader])) else {
            return false;
        };
        back["applied"].is_u64() && back["applied"] == ahead["applied"] && back["role"] == "follower"
    });
}

#[test]
fn a_leader_that_is_told_to_end_hands_the_lead_over_first() {
    let mut three = Three::started("peace");
    let leader = three.any_leader();
    // Everybody must have answered lately to be asked.
    three.wait("contact", |three| {
        cluster(&three.nodes[&leader]).is_some_and(|status| {
            let members = status["members"].as_array().expect("members").clone();
            members.iter().all(|member| member["last_contact_ms"].as_u64().is_some_and(|ms| ms < 2_000))
        })
    });
    let id = three.nodes[&leader].id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
    let begin = Instant::now();
    kill_process(Pid::from_raw(id).expect("a process"), Signal::TERM).expect("it runs");
    let (_, took) = wait_for_another(&mut three, leader);
    // An election after a silence takes 1.5 s at the least.
    assert!(took < Duration::from_millis(1_200), "{took:?}\n{}", three.logs());
    let status = three.nodes.get_mut(&leader).expect("a node").ended_within(Duration::from_secs(20));
    assert!(status.is_some_and(|status| status.success()), "{status:?} after {:?}", begin.elapsed());
}

#[test]
fn every_node_shows_how_far_each_is_behind() {
    let mut three = Three::started("lags");
    three.wait("figures of all, from all", |three| {
        three.nodes.values().all(|broker| {
            let status = cluster(broker).unwrap_or_default();
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let known = |member: &serde_json::Value| {
                member["lag_bytes"].is_u64()
                    && member["last_contact_ms"].as_u64().is_some_and(|ms| ms < 2_000)
            };
            members.len() == 3 && members.iter().all(known)
        })
    });
}

#[test]
fn followers_have_the_leaders_log_byte_for_byte() {
    let mut three = Three::started("bytes");
    let leader = three.any_leader();
    let mut client = Client::connect(three.nodes[&leader].ports.amqp).expect("it accepts");
    client.declare_queue("q", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    publish(&mut client, "q", 0..2_000);
    three.wait("the same applied everywhere", |three| {
        let applied = |node: &u64| cluster(&three.nodes[node]).map(|status| status["applied"].clone());
        [1, 2, 3].iter().map(applied).collect::<std::collections::HashSet<_>>().len() == 1
    });
    for broker in three.nodes.values_mut() {
        broker.kill();
    }
    let log = |node: u64| {
        let file = three.nodes[&node].data.join("log/00000000000000000000");
        std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    let first = log(1);
    for node in 2..=3 {
        let other = log(node);
        // `synced to` in the batch headers is each node's own, and so is the checksum over it (record format).
        let differing = first.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert!(differing * 10 < first.len(), "{differing} bytes differ");
        assert_eq!(first.len(), other.len());
    }
}
