//! Who does not belong to the cluster: a wiped node, another cluster's, and what no node ever said.
//!
//! Owns: nothing. Promises: each is turned away with a line that names the reason, and the cluster goes on.
//! Does not know: the bytes of a handshake.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dassie_interop::wire::{Client, Durability};

use crate::three::{Three, publish};

#[test]
fn a_wiped_node_is_refused_under_its_old_number() {
    let mut three = Three::started("wiped");
    let leader = three.any_leader();
    let wiped = if leader == 3 { 2 } else { 3 };
    let broker = three.nodes.get_mut(&wiped).expect("a node");
    broker.kill();
    fs::remove_dir_all(&broker.data).expect("it is ours");
    broker.spawn().expect("it starts");
    three.wait("the refusal", |three| three.nodes[&wiped].log_text().contains("it has lost its data"));
    assert!(!three.nodes[&wiped].data.join("genesis").exists(), "{}", three.logs());
    let mut client = Client::connect(three.nodes[&leader].ports.amqp).expect("it accepts");
    client.declare_queue("q", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    publish(&mut client, "q", 0..10);
}

#[test]
fn a_node_of_another_cluster_of_the_same_name_is_refused() {
    let mut three = Three::started("foreign");
    // It founds its own, alone, and is then told of ours.
    let listed = [format!("7@{}", three.port())];
    let mut foreign = three.node_of(7, "foreign", "dassie", &listed);
    let at = listed[0].split_once('@').expect("an address").1.to_owned();
    foreign.settings.retain(|setting| !setting.starts_with("cluster.listen"));
    foreign.settings.push(format!("cluster.listen={at}"));
    foreign.start().expect("it founds");
    foreign.kill();
    let all: Vec<String> =
        three.peers.iter().map(|(node, at)| format!("{node}@{at}")).chain(listed).collect();
    foreign.settings.retain(|setting| !setting.starts_with("cluster.peers"));
    foreign.settings.push(format!("cluster.peers={}", all.join(",")));
    foreign.spawn().expect("it starts");
    three.wait("the refusal", |_| foreign.log_text().contains("which only has the same name"));
    assert!(three.leader().is_some());
}

#[test]
fn garbage_on_the_peer_port_is_closed_within_a_second_and_harms_nobody() {
    let mut three = Three::started("garbage");
    let leader = three.any_leader();
    let address = three.peers[&leader];
    let mut zeros = vec![0; 4096];
    zeros[..8].copy_from_slice(b"DASSIE-P");
    let strange: [&[u8]; 7] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"AMQP\0\0\x09\x01",
        b"DASSIE-P\xff\xff",
        b"DASSIE-P\x04\0\x01",
        &zeros,
        &[0x16, 3, 1, 2, 0, 1],
    ];
    for bytes in strange.iter().cycle().take(200) {
        let mut socket = TcpStream::connect(address).expect("it accepts");
        let _ = socket.write_all(bytes);
        drop(socket);
    }
    for bytes in strange {
        let mut socket = TcpStream::connect(address).expect("it accepts");
        let begin = Instant::now();
        let _ = socket.write_all(bytes);
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        let _ = socket.read_to_end(&mut Vec::new());
        assert!(begin.elapsed() < Duration::from_secs(2), "{bytes:?} was endured for {:?}", begin.elapsed());
    }
    three.wait("a line about it", |three| three.nodes[&leader].log_text().contains("turned a peer away"));
    let lines = three.nodes[&leader].log_text().matches("turned a peer away").count();
    assert!(lines < 20, "{lines} lines");
    assert_eq!(three.leader(), Some(leader), "{}", three.logs());
    assert_eq!(three.nodes[&leader].panics(), [""; 0]);
    let mut client = Client::connect(three.nodes[&leader].ports.amqp).expect("it accepts");
    client.declare_queue("q", Durability::Durable).expect("it declares");
    client.confirm().expect("it confirms");
    publish(&mut client, "q", 0..10);
    assert!(three.directory().exists());
}
