//! How three stores become one cluster, and how a broker that stood alone grows.
//!
//! Owns: nothing. Promises: nothing is lost on the way. Does not know: who founds.

use dassie_interop::wire::{Client, Durability};

use crate::three::{Three, cluster, drain, publish, voters};

#[test]
fn a_broker_that_stood_alone_takes_two_empty_nodes_in_without_losing_a_message() {
    let mut three = Three::new("grow");
    let clustered = std::mem::take(&mut three.nodes.get_mut(&1).expect("a node").settings);
    let first = three.nodes.get_mut(&1).expect("a node");
    first.settings = vec!["storage.segment_size=4MiB".to_owned()];
    first.start().expect("it starts alone");
    let mut client = Client::connect(first.ports.amqp).expect("it accepts");
    client.declare_queue("old", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    publish(&mut client, "old", 0..500);
    drop(client);
    assert_eq!(cluster(first).map(|status| voters(&status)), Some(1));
    first.kill();
    first.settings = clustered;
    for broker in three.nodes.values_mut() {
        broker.spawn().expect("it starts");
    }
    three.wait("three voters", |three| {
        three.nodes.values().all(|broker| cluster(broker).is_some_and(|status| voters(&status) == 3))
    });
    three.nodes.get_mut(&1).expect("a node").kill();
    let mut leader = None;
    three.wait("another leader", |three| {
        leader = three.leader().filter(|leader| *leader != 1);
        leader.is_some()
    });
    let leader = leader.expect("it was just seen");
    let mut client = Client::connect(three.nodes[&leader].ports.amqp).expect("it accepts");
    assert_eq!(drain(&mut client, "old"), (0..500).collect::<Vec<u64>>());
}

#[test]
fn nobody_founds_before_all_listed_nodes_were_there() {
    let mut three = Three::new("patience");
    for node in [1, 2] {
        three.nodes.get_mut(&node).expect("a node").spawn().expect("it starts");
    }
    three.wait("who is missing is said", |three| {
        three.nodes[&1].log_text().contains("waiting for node 3 at")
            && three.nodes[&2].log_text().contains("waiting for node 3 at")
    });
    assert!(!three.nodes[&1].data.join("genesis").exists());
    three.nodes.get_mut(&3).expect("a node").spawn().expect("it starts");
    three.wait("three voters", |three| {
        three.nodes.values().all(|broker| cluster(broker).is_some_and(|status| voters(&status) == 3))
    });
}
