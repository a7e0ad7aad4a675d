//! What the log adds to a bare write and fdatasync: `cargo run --release -p dassie-storage --example group_commit -- <dir>`.
//!
//! Owns: a throw-away store in the given directory. Prints microseconds for one batch at a time, by turns bare and
//! through the log with its own writer thread, then throughput with 16 under way.
#![allow(clippy::cast_possible_truncation)] // statistics

use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dassie_storage::{Disk, File, Genesis, Log, NewBatch, Options, RealDisk, RealFile, block_on};

const SEGMENT: u64 = 128 << 20;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("{what:<28} p50 {:>6}  p99 {:>6}  max {:>6} us", at(0.5), at(0.99), at(1.0));
}

fn zeroed(disk: &RealDisk, path: &str) -> Result<RealFile, Box<dyn Error>> {
    let file = block_on(disk.create(path, SEGMENT))?;
    let zeros = Bytes::from(vec![0; 1 << 20]);
    for at in (0..SEGMENT).step_by(1 << 20) {
        block_on(file.write_at(at, std::slice::from_ref(&zeros)))?;
    }
    block_on(file.sync())?;
    Ok(file)
}

/// One batch at a time, by turns bare and through the log, so that both see the same disk; then many under way.
fn measure(disk: &RealDisk, size: usize, count: u64) -> Result<(), Box<dyn Error>> {
    let genesis = Genesis {
        cluster: [1; 16],
        shard: [2; 16],
        store: [3; 16],
        shard_number: 0,
        node: 1,
        segment_size: SEGMENT,
        created: 0,
        joins: false,
    };
    block_on(genesis.create(disk))?;
    let file = zeroed(disk, "bare")?;
    let opened = block_on(Log::open(disk, Options::default(), &genesis, None))?;
    let writer = thread::spawn(move || block_on(opened.writer.run()));
    let preparer = thread::spawn(move || block_on(opened.preparer.run()));
    let log = opened.log;
    thread::sleep(Duration::from_secs(3)); // the first segment is prepared: steady state is what is measured
    let payload = Bytes::from(vec![7; size]);
    let done = Rc::new(Cell::new(0));
    let append = |index| {
        let done = done.clone();
        let batch = NewBatch { term: 1, leader: 1, index, kind: 1, payload: payload.clone() };
        log.append([batch], Box::new(move |result| done.set(done.get() + u64::from(result.is_ok()))));
    };
    let (mut bare, mut through) = (Vec::new(), Vec::new());
    for i in 0..count {
        let start = Instant::now();
        block_on(file.write_at(i * (size as u64 + 96), std::slice::from_ref(&payload)))?;
        block_on(file.sync())?;
        bare.push(start.elapsed());
        let start = Instant::now();
        append(i);
        while done.get() <= i {
            block_on(log.completions())?;
        }
        through.push(start.elapsed());
    }
    report(&format!("{size} B, write + fdatasync"), bare);
    report(&format!("{size} B, through the log"), through);
    let (mut sent, start) = (count, Instant::now());
    while done.get() < 2 * count {
        while sent < 2 * count && sent - done.get() < 16 {
            append(sent);
            sent += 1;
        }
        block_on(log.completions())?;
    }
    let speed = count as f64 / start.elapsed().as_secs_f64();
    println!("{size} B, 16 under way: {speed:.0} batches/s, {:.0} MB/s", speed * size as f64 / 1e6);
    log.close(Box::new(|_| ()));
    while block_on(log.completions())?.is_some() {}
    writer.join().expect("the writer does not panic")?;
    preparer.join().expect("the preparer does not panic")?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args().nth(1).ok_or("which directory?")?;
    for (size, count) in [(4 << 10, 2000), (64 << 10, 800), (256 << 10, 300)] {
        fs::create_dir_all(&root)?;
        measure(&RealDisk::open(&root)?, size, count)?;
        fs::remove_dir_all(&root)?;
    }
    Ok(())
}
