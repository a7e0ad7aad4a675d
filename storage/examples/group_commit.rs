//! What the log adds to a bare write and fdatasync: `cargo run --release -p dassie-storage --example group_commit -- <dir>`.
//!
//! Owns: a throw-away store in the given directory. Prints microseconds for one batch at a time (bare, then through the log with
//! its own writer thread), then throughput with many under way.
#![allow(clippy::cast_possible_truncation)] // statistics

use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dassie_storage::{Disk, File, Genesis, Log, NewBatch, Options, RealDisk, block_on};

const SEGMENT: u64 = 128 << 20;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("{what:<28} p50 {:>6}  p99 {:>6}  max {:>6} us", at(0.5), at(0.99), at(1.0));
}

fn bare(disk: &RealDisk, size: usize, count: u64) -> Result<(), Box<dyn Error>> {
    let file = block_on(disk.create("bare", SEGMENT))?;
    let zeros = Bytes::from(vec![0; 1 << 20]);
    for at in (0..SEGMENT).step_by(1 << 20) {
        block_on(file.write_at(at, std::slice::from_ref(&zeros)))?;
    }
    block_on(file.sync())?;
    let payload = Bytes::from(vec![7; size]);
    let mut times = Vec::new();
    for i in 0..count {
        let start = Instant::now();
        block_on(file.write_at(i * (size as u64 + 96), std::slice::from_ref(&payload)))?;
        block_on(file.sync())?;
        times.push(start.elapsed());
    }
    report(&format!("{size} B bare"), times);
    Ok(block_on(disk.remove("bare"))?)
}

fn through_the_log(disk: &RealDisk, size: usize, count: u64, under_way: u64) -> Result<(), Box<dyn Error>> {
    let genesis = Genesis {
        cluster: [1; 16],
        shard: [2; 16],
        store: [3; 16],
        shard_number: 0,
        node: 1,
        segment_size: SEGMENT,
        created: 0,
    };
    block_on(genesis.create(disk))?;
    let opened = block_on(Log::open(disk, Options::default(), &genesis, None))?;
    let writer = thread::spawn(move || block_on(opened.writer.run()));
    let preparer = thread::spawn(move || block_on(opened.preparer.run()));
    let log = opened.log;
    thread::sleep(Duration::from_millis(600)); // the first segment is prepared: steady state is what is measured
    let payload = Bytes::from(vec![7; size]);
    let done = Rc::new(Cell::new(0));
    let mut times = Vec::new();
    let (mut sent, start) = (0, Instant::now());
    while done.get() < count {
        while sent < count && sent - done.get() < under_way {
            let done = done.clone();
            let batch = NewBatch { term: 1, leader: 1, index: sent, kind: 1, payload: payload.clone() };
            log.append([batch], Box::new(move |result| done.set(done.get() + u64::from(result.is_ok()))));
            sent += 1;
        }
        let waiting = Instant::now();
        block_on(log.completions())?;
        times.push(waiting.elapsed());
    }
    let rate = (count * size as u64) as f64 / start.elapsed().as_secs_f64() / 1e6;
    let speed = count as f64 / start.elapsed().as_secs_f64();
    report(&format!("{size} B log, {under_way} under way"), times);
    println!("{:<28} {speed:.0} batches/s, {rate:.1} MB/s", "");
    log.close(Box::new(|_| ()));
    while block_on(log.completions())?.is_some() {}
    writer.join().expect("the writer does not panic")?;
    preparer.join().expect("the preparer does not panic")?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args().nth(1).ok_or("which directory?")?;
    for (size, count) in [(4 << 10, 2000), (64 << 10, 1000), (256 << 10, 400)] {
        for under_way in [0, 1, 16] {
            fs::create_dir_all(&root)?;
            let disk = RealDisk::open(&root)?;
            match under_way {
                0 => bare(&disk, size, count)?,
                _ => through_the_log(&disk, size, count, under_way)?,
            }
            fs::remove_dir_all(&root)?;
        }
    }
    Ok(())
}
