//! Bytes that are wrong: torn tails, flipped bits, stale segments, missing and foreign files, disks that lie.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)] // small numbers, whole disks

mod common;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use common::{Node, SEGMENT, genesis, options, payload, run};
use dassie_storage::sim::{Fault, Keep, OpKind, SimDisk};
use dassie_storage::{
    CheckpointStore, Disk, File, FullSpeed, Genesis, LogPoint, NewPage, Options, PageStore, RealDisk,
    lock_store, read_floor,
};

/// Entries of the log behind the floor, all read through every way there is.
fn entries<D: Disk>(node: &Node<D>) -> io::Result<Vec<(LogPoint, Bytes)>> {
    let first = node.log.floor().map_or(0, |floor| floor.index + 1);
    let mut all = Vec::new();
    for batch in node.log.get(first, u64::MAX, usize::MAX)? {
        assert_eq!(node.reader.batch(batch.point.position)?, batch);
        all.push((batch.point, batch.payload));
    }
    Ok(all)
}

#[test]
fn a_tail_torn_at_any_byte_of_the_last_batch_is_cut() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    for i in 0..3 {
        node.append(payload(i, 300)).unwrap();
    }
    let kept = entries(&node).unwrap();
    let before = disk.copy();
    let last = node.append(payload(3, 300)).unwrap();
    let whole =
        run(run(disk.open("log/00000000000000000000")).unwrap().read_at(0, SEGMENT as usize)).unwrap();
    for torn in last.position..last.end {
        let image = before.copy();
        let file = run(image.open("log/00000000000000000000")).unwrap();
        run(file.write_at(last.position, &[whole.slice(last.position as usize..torn as usize)])).unwrap();
        let node = Node::open(&image, None).unwrap();
        let seen = entries(&node).unwrap();
        // The padding is zero anyway: without it the batch is whole.
        let complete = torn >= last.position + 96 + 300;
        assert_eq!(seen.len(), if complete { 4 } else { 3 }, "torn at {torn}");
        assert_eq!(seen[..3], kept[..]);
        assert_eq!(node.recovered.cut.is_some(), !complete && torn >= last.position + 96);
        drop(node);
        // What was cut does not come back when the same batch is written before it again.
        let mut node = Node::open(&image, None).unwrap();
        assert_eq!(node.append(payload(9, 300)).unwrap().index, if complete { 4 } else { 3 });
    }
}

/// A small store with something of everything, cleanly closed.
fn small_store() -> SimDisk {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    let done = node.done();
    node.log.save_vote(Bytes::from_static(b"vote for 2"), done);
    for i in 0..30 {
        node.append(payload(i, 100 + 37 * (i as usize % 13))).unwrap();
    }
    node.log.committed(node.log.last().unwrap().end);
    let mut pages = run(PageStore::open(&disk, [])).unwrap();
    let first = run(pages.allocate(2)).unwrap();
    let new = [0, 1].map(|i| NewPage { id: first + i, owner: 70 + i, content: payload(i, 4080) });
    run(pages.write(&new)).unwrap();
    run(pages.sync()).unwrap();
    let (mut checkpoints, _) = run(CheckpointStore::load(&disk, genesis().store, None)).unwrap();
    for index in [12, 16, 21] {
        let point = node.log.point(index).unwrap().unwrap();
        let puts = [
            (Bytes::from(format!("key {index}")), payload(index, 60)),
            (Bytes::from("all"), payload(index, 9)),
        ];
        run(checkpoints.write_delta(point, puts, [Bytes::from("key 12")], &FullSpeed)).unwrap();
    }
    let done = node.done();
    node.log.raise_floor(12, done).unwrap();
    node.finish().unwrap();
    node.close().unwrap();
    disk
}

type Answers = (Vec<(LogPoint, Bytes)>, Bytes, BTreeMap<Bytes, Bytes>, Vec<Bytes>, Genesis);

fn answers(disk: &SimDisk) -> io::Result<Answers> {
    let genesis = run(Genesis::load(disk))?.ok_or(io::ErrorKind::NotFound)?;
    genesis.verify(&common::genesis().cluster, 1, 0)?;
    let floor = run(read_floor(disk, &genesis))?.map(|floor| floor.index);
    let (_, loaded) = run(CheckpointStore::load(disk, genesis.store, floor))?;
    let loaded = loaded.ok_or(io::ErrorKind::NotFound)?;
    if let Some(passed_over) = loaded.passed_over.first() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, passed_over.clone()));
    }
    let pages = run(PageStore::open(disk, [0, 1]))?.reader();
    let pages = vec![pages.read(0, 70)?, pages.read(1, 71)?];
    let node = Node::open(disk, Some(loaded.point))?;
    Ok((entries(&node)?, node.log.vote(), loaded.objects, pages, genesis))
}

#[test]
fn no_flipped_byte_of_a_store_goes_unnoticed() {
    let disk = small_store();
    let expected = answers(&disk.copy()).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for (path, len) in disk.files() {
        // Of the 16 MiB of a page file only two pages are in use; look at those and the first free one.
        for offset in 0..len.min(3 * 4096) {
            let image = disk.copy();
            image.corrupt(&path, offset, 1 << (offset % 8));
            match answers(&image) {
                Ok(seen) => {
                    assert!(seen == expected, "silent damage: {path} at {offset}");
                    harmless += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    let class = path.split(['/', '-']).next().unwrap();
                    assert!(text.contains(class), "{path} at {offset}: {text}");
                    refused += 1;
                }
            }
        }
    }
    println!("{refused} flips refused by name, {harmless} without effect on any answer");
    assert!(refused > 10_000 && harmless > 1000);
}

#[test]
fn recycled_segments_never_replay_their_old_life() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    // Batches of one length: in the next life the old ones lie exactly where new ones would.
    for i in 0..20 {
        node.append(payload(i, 300)).unwrap();
    }
    let floor = node.log.point(15).unwrap().unwrap();
    let done = node.done();
    node.log.committed(node.log.last().unwrap().end);
    node.log.raise_floor(15, done).unwrap();
    node.finish().unwrap();
    node.log.retire(&[0]).unwrap();
    node.machine.settle();
    let mut count = 20;
    while node.log.last().unwrap().end < 4 * SEGMENT {
        node.append(payload(count, 300)).unwrap();
        count += 1;
        let recycled =
            disk.ops().iter().any(|op| op.kind == OpKind::Rename && op.path == "log/00000000000000000000");
        let image = disk.after_crash(Keep::Nothing);
        let node = Node::open(&image, Some(floor)).unwrap();
        assert_eq!(entries(&node).unwrap().len() as u64, count - 16);
        assert!(recycled || count < 40);
    }
    let recycled =
        disk.ops().iter().any(|op| op.kind == OpKind::Rename && op.path == "log/00000000000000000000");
    assert!(recycled, "nothing was recycled: the test shows nothing");
}

#[test]
fn a_batch_of_another_history_does_not_follow() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    node.append(payload(0, 100)).unwrap();
    drop(node);
    // Two copies of one store go on differently, with batches of the same length and index.
    let lives = [1, 2].map(|life| {
        let disk = disk.copy();
        let mut node = Node::open(&disk, None).unwrap();
        node.append(payload(life, 100)).unwrap();
        let point = node.append(payload(9, 100)).unwrap();
        node.close().unwrap();
        (disk, point)
    });
    let path = "log/00000000000000000000";
    let [(here, point), (other, same)] = lives;
    assert_eq!((point.position, point.index), (same.position, same.index));
    let foreign = run(run(other.open(path)).unwrap().read_at(same.position, 200)).unwrap();
    run(run(here.open(path)).unwrap().write_at(point.position, &[foreign])).unwrap();
    let error = Node::open(&here, None).map(drop).unwrap_err().to_string();
    assert!(error.contains("does not follow") && error.contains("at 400"), "{error}");
}

#[test]
fn a_held_map_keeps_its_file_from_being_recycled() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let mut node = Node::create(&disk);
    let points: Vec<_> = (0..60).map(|i| node.append(payload(i, 300)).unwrap()).collect();
    node.log.committed(points[59].end);
    let held = node.reader.batch(points[0].position).unwrap();
    let done = node.done();
    node.log.raise_floor(40, done).unwrap();
    node.finish().unwrap();
    assert_eq!(node.log.retire(&[6 * SEGMENT]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    node.log.retire(&[0, SEGMENT]).unwrap();
    node.machine.settle();
    assert_eq!(node.reader.batch(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    for i in 60..120 {
        node.append(payload(i, 300)).unwrap();
    }
    assert_eq!(held.payload, payload(0, 300));
    let names = run(disk.list("log")).unwrap();
    assert!(!names.contains(&format!("{:020}", 0)) && !names.contains(&format!("{SEGMENT:020}")));
}

#[test]
fn a_failed_sync_poisons_the_log_for_good() {
    for skip in 0..12 {
        let disk = SimDisk::new();
        let mut node = Node::create(&disk);
        disk.inject(OpKind::Sync, "log/0", skip, Fault::Fail(io::ErrorKind::Other));
        let mut acked = 0;
        let error = loop {
            match node.append(payload(acked, 500)) {
                Ok(_) => acked += 1,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("sync log/"), "{error}");
        assert_eq!(disk.faults_left(), 0);
        node.submit(payload(0, 10));
        node.finish().unwrap_err(); // the disk would work again: too late
        assert!(
            node.results
                .borrow()
                .iter()
                .skip(usize::try_from(acked).unwrap())
                .all(|(_, result)| result.is_err())
        );
        node.machine.settle();
        assert!(node.machine.writer_result().unwrap().is_err());
        drop(node);
        // The page cache still shows what never reached the disk; after the restart it must not be believed unwritten.
        let node = Node::open(&disk, None).unwrap();
        let believed = entries(&node).unwrap().len() as u64;
        assert!(believed >= acked);
        drop(node);
        let node = Node::open(&disk.after_crash(Keep::Nothing), None).unwrap();
        assert_eq!(entries(&node).unwrap().len() as u64, believed);
    }
}

#[test]
fn a_failed_or_short_write_is_named_and_nothing_of_it_counts() {
    for fault in [Fault::Fail(io::ErrorKind::StorageFull), Fault::Short(0), Fault::Short(77)] {
        let disk = SimDisk::new();
        let mut node = Node::create(&disk);
        node.append(payload(0, 100)).unwrap();
        disk.inject(OpKind::Write, "log/0", 1, fault);
        node.append(payload(1, 100)).unwrap();
        let error = node.append(payload(2, 100)).unwrap_err();
        assert!(error.to_string().contains("write log/00000000000000000000 at 400"), "{error}");
        let node = Node::open(&disk.after_crash(Keep::All), None).unwrap();
        assert_eq!(entries(&node).unwrap().len(), 2);
    }
}

#[test]
fn a_failed_vote_is_an_error_and_the_old_vote_stands() {
    for kind in [OpKind::Write, OpKind::Sync] {
        let disk = SimDisk::new();
        let mut node = Node::create(&disk);
        let done = node.done();
        node.log.save_vote(Bytes::from_static(b"one"), done);
        node.finish().unwrap();
        disk.inject(kind, "state", 0, Fault::Fail(io::ErrorKind::Other));
        let done = node.done();
        node.log.save_vote(Bytes::from_static(b"two"), done);
        assert!(node.finish().unwrap_err().to_string().contains("state"));
        let node = Node::open(&disk.after_crash(Keep::Nothing), None).unwrap();
        assert_eq!(node.log.vote(), "one");
    }
}

#[test]
fn a_full_disk_is_back_pressure_and_clears_itself() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    node.append(payload(0, 100)).unwrap();
    node.machine.settle();
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.limit(Some(used));
    let mut acked = 1;
    // The open and the prepared segment can be filled; then appends wait, and those that fit are still acknowledged.
    let stuck = loop {
        node.submit(payload(acked, 900));
        let log = node.log.clone();
        match node.machine.try_drive(log.completions()) {
            Some(progress) => {
                progress.unwrap();
                acked += 1;
            }
            None => break acked,
        }
    };
    assert!(stuck >= 8, "{stuck}");
    assert!(node.log.backlog().blocked.unwrap().contains("log/preparing"));
    assert_eq!(node.reader.batch(node.log.last().unwrap().position).unwrap().payload, payload(stuck, 900));
    node.log.retry_preparation();
    let log = node.log.clone();
    assert!(node.machine.try_drive(log.completions()).is_none(), "still full");
    disk.limit(None);
    node.log.retry_preparation();
    node.finish().unwrap();
    assert!(node.log.backlog().blocked.is_none());
    node.append(payload(0, 900)).unwrap();
    let seen = entries(&node).unwrap().len();
    node.close().unwrap();
    assert_eq!(entries(&Node::open(&disk, None).unwrap()).unwrap().len(), seen);
}

#[test]
fn a_retired_segment_gives_a_full_disk_room() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    for i in 0..20 {
        node.append(payload(i, 300)).unwrap();
    }
    node.machine.settle();
    let floor = node.log.point(15).unwrap().unwrap();
    let done = node.done();
    node.log.raise_floor(15, done).unwrap();
    node.finish().unwrap();
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.limit(Some(used));
    for i in 20..60 {
        node.submit(payload(i, 300));
    }
    let log = node.log.clone();
    while node.machine.try_drive(log.completions()).is_some() {}
    assert!(node.log.backlog().blocked.is_some());
    node.log.retire(&[0]).unwrap();
    assert!(node.machine.try_drive(log.completions()).is_some());
    drop(node);
    assert!(Node::open(&disk, Some(floor)).is_ok());
}

#[test]
fn a_disk_that_lies_about_a_sync_is_found_out_and_named() {
    let mut found = 0;
    for skip in 1..12 {
        let disk = SimDisk::new();
        let mut node = Node::create(&disk);
        disk.inject(OpKind::Sync, "log/0", skip, Fault::Lie);
        for i in 0..20 {
            node.append(payload(i, 400)).unwrap();
        }
        assert_eq!(disk.faults_left(), 0);
        match Node::open(&disk.after_crash(Keep::Nothing), None) {
            Err(error) => {
                assert!(
                    error.to_string().contains("log/") && error.to_string().contains("synced"),
                    "{error}"
                );
                found += 1;
            }
            Ok(node) => assert_eq!(entries(&node).unwrap().len(), 20, "lie {skip} cost data silently"),
        }
    }
    assert!(found >= 8, "{found}");
}

#[test]
fn a_misdirected_write_is_found_out() {
    for skip in 0..6 {
        let disk = SimDisk::new();
        let mut node = Node::create(&disk);
        disk.inject(OpKind::Write, "log/0", skip, Fault::Misdirect(512));
        for i in 0..8 {
            node.append(payload(i, 200)).unwrap();
        }
        let last = node.log.last().unwrap();
        node.close().unwrap();
        let error = Node::open(&disk, None).map(|node| node.log.last()).unwrap_err();
        assert!(error.to_string().contains(&format!("synced to {}", last.end)), "{error}");
    }
}

#[test]
fn a_flipped_bit_on_the_way_from_the_disk_is_an_error_not_data() {
    let disk = SimDisk::new();
    let mut node = Node::create(&disk);
    let points: Vec<_> = (0..12).map(|i| node.append(payload(i, 300)).unwrap()).collect();
    for bit in 0..(96 + 304) * 8 {
        // The header is read first, then the batch: both reads get their turn.
        disk.inject(OpKind::Read, "log/0", u64::from(bit % 2 == 0), Fault::Flip(bit));
        let error = node.reader.batch(points[1].position).expect_err("a flipped bit");
        assert!(error.to_string().contains("log/00000000000000000000 at"), "{error}");
        assert_eq!(disk.faults_left(), 0);
    }
    disk.inject(OpKind::Read, "log/0", 0, Fault::Fail(io::ErrorKind::Other));
    assert!(node.reader.batch(points[1].position).unwrap_err().to_string().contains("read log/"));
    assert_eq!(node.reader.batch(points[1].position).unwrap().point, points[1]);
    assert_eq!(node.reader.batch(points[1].position + 8).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn missing_short_and_foreign_files_are_refused_by_name() {
    let store = small_store();
    let expect = |image: &SimDisk, text: &str| {
        let error = answers(image).map(drop).unwrap_err().to_string();
        assert!(error.contains(text), "{error} should contain {text}");
    };
    for (path, len) in store.files() {
        let prepared = path == "log/00000000000000016384" || path.starts_with("checkpoint/damaged");
        // The floor is 12: what lies wholly below may be gone, and of two deltas the older state serves only if asked.
        if !prepared && path != "log/00000000000000000000" && !path.contains("delta-00000000000000000021") {
            let image = store.copy();
            run(image.remove(&path)).unwrap();
            let error = answers(&image).map(drop);
            assert!(error.is_err(), "{path} may not be missing");
        }
        if len > 8 {
            let image = store.copy();
            let whole = run(run(image.open(&path)).unwrap().read_at(0, 8)).unwrap();
            run(image.remove(&path)).unwrap();
            let file = run(image.create(&path, 0)).unwrap();
            run(file.write_at(0, &[whole])).unwrap();
            let name = path.split('-').next().unwrap();
            expect(&image, name);
        }
    }
    let image = store.copy();
    run(image.rename("log/00000000000000004096", "log/00000000000000004100")).unwrap();
    expect(&image, "can not begin at 4100");
    let image = store.copy();
    run(image.remove("genesis")).unwrap();
    let error = run(genesis().create(&image)).unwrap_err().to_string();
    assert!(error.contains("a log without genesis"), "{error}");
    let image = store.copy();
    run(run(image.create("log/preparing", 100)).unwrap().sync()).unwrap();
    run(run(image.create("log/notes.txt", 100)).unwrap().sync()).unwrap();
    let mut node =
        Node::open(&image, answers(&store.copy()).ok().and_then(|a| a.0.get(8).map(|e| e.0))).unwrap();
    assert_eq!(node.recovered.unknown, ["notes.txt"]);
    node.machine.settle();
    assert!(!image.files().iter().any(|(path, _)| path == "log/preparing"));
}

#[test]
fn foreign_and_newer_stores_are_refused_clearly() {
    let disk = small_store();
    let found = run(Genesis::load(&disk)).unwrap().unwrap();
    assert!(found.verify(&[9; 16], 1, 0).unwrap_err().to_string().contains("another cluster"));
    assert!(found.verify(&genesis().cluster, 2, 0).unwrap_err().to_string().contains("node 1, not 2"));
    assert!(found.verify(&genesis().cluster, 1, 3).unwrap_err().to_string().contains("shard 0, not 3"));
    assert!(run(genesis().create(&disk)).is_err());
    let mut foreign = found;
    foreign.store = [7; 16];
    let error =
        run(dassie_storage::Log::open(&disk, Options::default(), &foreign, None)).map(drop).unwrap_err();
    assert!(error.to_string().contains("another store"), "{error}");
    foreign = Genesis { shard: [7; 16], ..found };
    let error = run(dassie_storage::Log::open(&disk, options(), &foreign, None)).map(drop).unwrap_err();
    assert!(error.to_string().contains("no checkpoint"), "{error}");
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let held = run(lock_store(&disk)).unwrap();
    let other = RealDisk::open(dir.path()).unwrap();
    assert!(run(lock_store(&other)).map(drop).unwrap_err().to_string().contains("in use by another process"));
    drop(held);
    run(lock_store(&other)).unwrap();
}

#[test]
fn a_damaged_newest_delta_gives_way_to_the_state_before_it_only_if_the_log_reaches() {
    let disk = small_store();
    let path = "checkpoint/delta-00000000000000000021";
    disk.corrupt(path, 200, 4);
    let (mut store, loaded) = run(CheckpointStore::load(&disk, genesis().store, Some(12))).unwrap();
    let loaded = loaded.unwrap();
    assert_eq!(loaded.point.index, 16);
    assert!(loaded.passed_over[0].contains(path), "{:?}", loaded.passed_over);
    let error = run(CheckpointStore::load(&disk, genesis().store, Some(17))).map(drop).unwrap_err();
    assert!(error.to_string().contains(path), "{error}");
    let mut node = Node::open(&disk, Some(loaded.point)).unwrap();
    node.append(payload(0, 9)).unwrap();
    let point = node.log.last().unwrap();
    run(store.write_delta(point, [(Bytes::from("new"), Bytes::new())], [], &FullSpeed)).unwrap();
    let (_, loaded) = run(CheckpointStore::load(&disk, genesis().store, Some(17))).unwrap();
    assert_eq!(loaded.unwrap().point, point);
    disk.corrupt("checkpoint/delta-00000000000000000016", 200, 4);
    let error = run(CheckpointStore::load(&disk, genesis().store, None)).map(drop).unwrap_err();
    assert!(error.to_string().contains("delta-00000000000000000016"), "{error}");
}
