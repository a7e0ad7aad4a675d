//! The log as the product runs it: shard, writer, preparer and readers on threads of their own, on the real disk.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)] // small numbers, whole disks

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::{genesis, payload, run};
use dassie_storage::{Genesis, Log, NewBatch, Options, RealDisk, block_on};

#[test]
fn many_groups_from_one_thread_are_read_by_others_while_they_are_written() {
    const COUNT: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let genesis = Genesis { segment_size: 64 << 10, ..genesis() };
    run(genesis.create(&disk)).unwrap();
    let options = Options { tail_bytes: 20_000, ..Options::default() };
    let opened = run(Log::open(&disk, options.clone(), &genesis, None)).unwrap();
    let (writer, preparer, log, reader) = (opened.writer, opened.preparer, opened.log, opened.reader);
    let writer = thread::spawn(move || block_on(writer.run()));
    let preparer = thread::spawn(move || block_on(preparer.run()));
    let read = Arc::new(AtomicU64::new(0));
    let (positions, readers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (send, receive) = mpsc::channel::<(u64, u64)>();
            let (reader, read) = (reader.clone(), read.clone());
            let join = thread::spawn(move || {
                let mut seen = Vec::new();
                for (index, position) in receive {
                    seen.push((index, position));
                    for &(index, position) in seen.iter().rev().step_by(97) {
                        let batch = reader.batch(position).unwrap();
                        assert_eq!(batch.payload, payload(index, (index % 700) as usize));
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            (send, join)
        })
        .unzip();
    let durable = Rc::new(Cell::new(0));
    let mut sent = 0;
    while durable.get() < COUNT {
        while sent < COUNT && sent < durable.get() + 50 {
            let payload = payload(sent, (sent % 700) as usize);
            let durable = durable.clone();
            let number = sent;
            let done = move |result: std::io::Result<()>| {
                result.unwrap();
                assert_eq!(durable.replace(number + 1), number, "completions come in order");
            };
            let batch = NewBatch { term: 1, leader: 1, index: sent, kind: 1, payload };
            let point = log.append([batch], Box::new(done)).unwrap();
            positions.iter().for_each(|send| send.send((sent, point.position)).unwrap());
            sent += 1;
        }
        let progress = block_on(log.completions()).unwrap().unwrap();
        log.committed(progress.durable);
    }
    drop(positions);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert!(read.load(Ordering::Relaxed) > COUNT);
    log.close(Box::new(|result| result.unwrap()));
    while block_on(log.completions()).unwrap().is_some() {}
    writer.join().unwrap().unwrap();
    preparer.join().unwrap().unwrap();
    let opened = run(Log::open(&disk, options, &genesis, None)).unwrap();
    assert!(opened.recovered.clean);
    assert_eq!(opened.recovered.walked, COUNT);
}

#[test]
fn readers_that_are_behind_share_what_they_read_from_the_segment_that_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let genesis = Genesis { segment_size: 1 << 20, ..genesis() };
    run(genesis.create(&disk)).unwrap();
    let options = Options { tail_bytes: 10_000, ..Options::default() };
    let opened = run(Log::open(&disk, options, &genesis, None)).unwrap();
    let (writer, preparer, log, reader) = (opened.writer, opened.preparer, opened.log, opened.reader);
    let writer = thread::spawn(move || block_on(writer.run()));
    let preparer = thread::spawn(move || block_on(preparer.run()));
    let append = |index| {
        let batch = NewBatch { term: 1, leader: 1, index, kind: 1, payload: payload(index, 500) };
        let point = log.append([batch], Box::new(|result| result.unwrap())).unwrap();
        while log.durable() < point.end {
            block_on(log.completions()).unwrap();
        }
        point.position
    };
    let positions: Vec<u64> = (0..100).map(append).collect();
    assert!(!reader.is_in_memory(positions[10]));
    let place = |n: usize| {
        let batch = reader.clone().batch(positions[n]).unwrap();
        assert_eq!(batch.payload, payload(n as u64, 500));
        batch.payload.as_ptr()
    };
    assert_eq!(place(10), place(10));
    // A few are kept, not all.
    let held = reader.batch(positions[10]).unwrap();
    (11..20).for_each(|n| assert!(!place(n).is_null()));
    assert_ne!(place(10), held.payload.as_ptr());
    drop(held);
    log.close(Box::new(|result| result.unwrap()));
    while block_on(log.completions()).unwrap().is_some() {}
    writer.join().unwrap().unwrap();
    preparer.join().unwrap().unwrap();
}
