//! Deep queues, slow disks, consumers that do not read and consumers that do not acknowledge.

use std::process::Command;
use std::time::Instant;

use dassie_amqp::content::Properties;
use dassie_interop::wire::{Client, Durability, Heard};

use crate::target::{PATIENCE, Target, wait_for};

const NO_ALARM: &str = "disk_free_limit = 0\nmemory_high_watermark = 1.0\n";
const KIB: usize = 1024;

/// A body of that size which begins with its number.
fn body(number: u64, size: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(size, 7);
    body
}

fn number(body: &[u8]) -> u64 {
    body.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes))
}

/// Publishes so many and waits until all are confirmed.
fn fill(client: &mut Client, queue: &str, count: u64, size: usize) {
    client.confirm().expect("it confirms");
    let mut confirmed = 0;
    for n in 0..count {
        client.publish("", queue, Properties::EMPTY, &body(n, size));
        if client.unsent() > 256 * KIB || n + 1 == count {
            client.flush().expect("it reads");
            // Never far ahead of the confirms, so that nobody waits for a full socket.
            while confirmed + 4096 < n || (n + 1 == count && confirmed < count) {
                confirmed = confirmed.max(wait_for(client, |heard| match heard {
                    Heard::Confirmed { tag, .. } => Some(tag),
                    other => panic!("{other:?}"),
                }));
            }
        }
    }
}

/// Reads so many in order and acknowledges them.
fn drain(client: &mut Client, queue: &str, count: u64, size: usize) {
    client.consume(queue, Some(1000)).expect("it consumes");
    for expected in 0..count {
        let tag = wait_for(client, |heard| match heard {
            Heard::Delivered(message) => {
                assert_eq!((number(&message.body), message.body.len()), (expected, size));
                Some(message.tag)
            }
            other => panic!("{other:?}"),
        });
        if expected % 500 == 499 || expected + 1 == count {
            client.ack(tag, true);
            client.flush().expect("it reads");
        }
    }
}

#[test]
fn a_deep_queue_in_memory_is_paged_out_and_comes_back_in_order() {
    let mut target = Target::start("paging", NO_ALARM);
    let mut client = target.connect();
    client.declare_queue("deep", Durability::Transient).expect("it declares");
    let count = 150_000;
    fill(&mut client, "deep", count, KIB);
    let memory = target.memory_mib("RssAnon:");
    assert!(memory < 130, "{memory} MiB for {count} KiB");
    drain(&mut target.connect(), "deep", count, KIB);
    target.assert_well();
}

#[test]
fn a_deep_backlog_costs_no_memory_for_a_client_that_does_not_read_or_not_acknowledge() {
    let mut target = Target::start("backlog", NO_ALARM);
    let mut client = target.connect();
    client.declare_queue("deep", Durability::Durable).expect("it declares");
    let count = 100_000;
    fill(&mut client, "deep", count, 100);
    let before = target.memory_mib("RssAnon:");
    let mut silent = target.connect();
    silent.consume("deep", None).expect("it consumes");
    // The answers of others show that the shard went on meanwhile.
    (0..500).for_each(|_| client.find_queue("deep").expect("it answers"));
    let held = target.memory_mib("RssAnon:").saturating_sub(before);
    assert!(held < 24, "{held} MiB for a client that does not read");
    // Reads everything, acknowledges nothing.
    for expected in 0..count {
        wait_for(&mut silent, |heard| match heard {
            Heard::Delivered(message) => {
                assert_eq!(number(&message.body), expected);
                Some(())
            }
            other => panic!("{other:?}"),
        });
    }
    let held = target.memory_mib("RssAnon:").saturating_sub(before);
    assert!(held < 40, "{held} MiB for {count} messages that nobody acknowledges");
    target.assert_well();
}

#[test]
fn a_publisher_that_outruns_the_disk_holds_up_nobody_else() {
    if Command::new("strace").arg("-V").output().is_err() {
        return eprintln!("not tested: strace makes the disk slow and is not installed");
    }
    let mut target = Target::start_behind(
        "flow",
        "strace -D -f -qq --seccomp-bpf -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_enter=200000",
        NO_ALARM,
    );
    let mut other = target.connect();
    other.declare_queue("fast", Durability::Transient).expect("it declares");
    let mut flood = target.connect();
    flood.declare_queue("slow", Durability::Durable).expect("it declares");
    flood.confirm().expect("it confirms");
    flood.consume("fast", None).expect("it consumes");
    let before = target.memory_mib("RssAnon:");
    let count = 800;
    (0..count).for_each(|n| flood.publish("", "slow", Properties::EMPTY, &body(n, 64 * KIB)));
    flood.set_polled().expect("a socket");
    let (mut confirmed, mut rounds, deadline) = (0, 0, Instant::now() + 8 * PATIENCE);
    while confirmed < count {
        other.publish("", "fast", Properties::EMPTY, b"beside it");
        other.flush().expect("it reads");
        other.find_queue("fast").expect("it answers");
        let mut delivered = false;
        while !delivered && confirmed < count {
            assert!(Instant::now() < deadline, "{confirmed} confirms");
            flood.poll().expect("it is there");
            while let Some(heard) = flood.hear().expect("it follows the protocol") {
                match heard {
                    Heard::Confirmed { tag, .. } => confirmed = confirmed.max(tag),
                    Heard::Delivered(_) => delivered = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        // It does not even read as fast as the other one is served.
        rounds += u64::from(flood.unsent() > 0);
    }
    assert!(rounds > 50, "{rounds} messages and answers beside the flood");
    let held = target.memory_mib("RssAnon:").saturating_sub(before);
    assert!(held < 100, "{held} MiB");
    target.assert_well();
}
