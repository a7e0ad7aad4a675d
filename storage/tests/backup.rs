//! A store backed up and restored: what a backup has, what is refused, and the power cut at every step of both ways.
#![allow(clippy::cast_possible_truncation)] // small numbers

mod common;

use std::io;

use bytes::Bytes;
use common::source::{Source, used};
use common::{Node, SEGMENT, genesis, options, payload, run};
use dassie_storage::sim::{Keep, SimDisk};
use dassie_storage::{
    BackupDir, BackupRequest, BackupSource, Batch, CheckpointStore, Findings, FullSpeed, Genesis, Going,
    Known, LogPoint, Manifest, NewBatch, PageStore, Restored, Until, read_floor, restore, verify_backup,
    verify_store,
};

/// 60 batches, checkpoints at 40 and 50, segments 1 and 2 retired.
fn source() -> Source {
    let mut source = Source::new(&SimDisk::new(), 41);
    source.checkpoint();
    source.write(10);
    source.checkpoint();
    source.raise_and_retire(45, &[1, 2]);
    source.write(9);
    source
}

fn hold(source: &Source, known: &Known) -> io::Result<Option<BackupSource<SimDisk>>> {
    let end = source.node.log.last().unwrap().end;
    let asked = BackupRequest { genesis: &genesis(), end, known, taken: 7 };
    run(BackupSource::open(asked, &source.checkpoints, &source.pages, &source.node.reader, |_| true))
}

/// Takes a backup; how many bytes were carried for it.
fn back_up(source: &Source, to: &SimDisk) -> io::Result<(Manifest, u64)> {
    let dir = run(BackupDir::open(to))?;
    let known = run(dir.known())?;
    let held = hold(source, &known)?.expect("all is durable");
    let mut target = run(dir.begin(held.manifest().clone()))?;
    let mut carried = 0;
    for number in 0..held.manifest().parts.len() {
        let mut at = match run(held.look(number, &known, &FullSpeed))? {
            Going::Not(digest) => {
                run(target.same(number, digest))?;
                continue;
            }
            Going::From(at) => at,
        };
        while at < held.manifest().parts[number].part.len {
            let bytes = run(held.read(number, at, 1500))?;
            let len = bytes.len() as u64;
            let zeros = bytes.iter().all(|byte| *byte == 0);
            carried += len;
            run(target.write(number, at, if zeros { Err(len) } else { Ok(bytes) }))?;
            at += len;
        }
    }
    Ok((run(target.finish())?, carried))
}

const CLOSING: &[u8] = b"who is in it from here on";

fn new_genesis() -> Genesis {
    Genesis { cluster: [7; 16], store: [8; 16], ..genesis() }
}

fn restore_until(from: &SimDisk, until: &Until<'_>, to: &SimDisk) -> io::Result<Restored> {
    let dir = run(BackupDir::open(from))?;
    let closing = |last: LogPoint| {
        let payload = Bytes::from_static(CLOSING);
        (
            NewBatch { term: 2, leader: 1, index: last.index + 1, kind: 3, payload },
            Bytes::from_static(b"a vote"),
        )
    };
    run(restore(&dir, until, to, |_| new_genesis(), used, closing, &mut |_, _| {}))
}

/// The store in it has the source's log from the checkpoint on up to `last`, then the batch that closes it, and goes on.
fn assert_restored(disk: &SimDisk, source: &Source, last: LogPoint) {
    let genesis = run(Genesis::load(disk)).unwrap().unwrap();
    assert_eq!(genesis, new_genesis());
    let floor = run(read_floor(disk, &genesis)).unwrap();
    let (_, loaded) = run(CheckpointStore::load(disk, genesis.store, floor.map(|f| f.index))).unwrap();
    let at = loaded.as_ref().map(|loaded| loaded.point);
    if let Some(loaded) = loaded {
        let named = used(loaded.point, loaded.objects).unwrap();
        let pages = run(PageStore::open(disk, named.iter().map(|(id, _)| *id))).unwrap();
        for (id, owner) in named {
            let theirs = source.pages.reader().read(id, owner).unwrap();
            assert_eq!(pages.reader().read(id, owner).unwrap(), theirs);
        }
    }
    let mut node = Node::open_with(disk, at, options()).unwrap();
    assert_eq!(node.log.vote(), "a vote");
    for index in at.map_or(0, |point| point.index + 1)..=last.index {
        let ours = node.reader.get(index, index + 1, usize::MAX).unwrap();
        assert_eq!(ours, source.node.reader.get(index, index + 1, usize::MAX).unwrap());
    }
    let closed = node.reader.get(last.index + 1, u64::MAX, usize::MAX).unwrap();
    assert_eq!(closed.len(), 1, "nothing stands behind it");
    assert_eq!((&closed[0].payload[..], closed[0].kind, closed[0].point.term), (CLOSING, 3, 2));
    node.append(Bytes::from_static(b"it goes on")).unwrap();
    node.close().unwrap();
}

fn last_of(source: &Source) -> LogPoint {
    source.node.log.last().unwrap()
}

#[test]
fn what_was_committed_before_a_backup_is_in_it_with_a_checkpoint_and_without() {
    let plain = Source::new(&SimDisk::new(), 33);
    for source in [plain, source()] {
        let (dir, disk) = (SimDisk::new(), SimDisk::new());
        let (manifest, _) = back_up(&source, &dir).unwrap();
        assert_eq!(manifest.end, last_of(&source));
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        restore_until(&dir, &Until::Newest, &disk).unwrap();
        assert_restored(&disk, &source, last_of(&source));
    }
}

#[test]
fn a_second_backup_takes_only_what_is_new_and_the_first_stays_whole() {
    let (mut source, dir) = (source(), SimDisk::new());
    let (first, carried) = back_up(&source, &dir).unwrap();
    assert!(carried > 5 * SEGMENT, "{carried}");
    let (again, nothing) = back_up(&source, &dir).unwrap();
    assert_eq!((nothing, again.end), (0, first.end));
    source.write(3);
    let (second, few) = back_up(&source, &dir).unwrap();
    assert!((1..2 * SEGMENT).contains(&few), "{few} of {carried}");
    assert!(second.end.index > first.end.index);
    let held = run(BackupDir::open(&dir)).unwrap();
    assert_eq!(held.manifests().len(), 2);
    drop(held);
    let disk = SimDisk::new();
    restore_until(&dir, &Until::Position(first.end.end), &disk).unwrap();
    assert_restored(&disk, &source, first.end);
}

#[test]
fn any_position_since_the_oldest_checkpoint_can_be_restored_across_backups() {
    let (mut source, dir) = (source(), SimDisk::new());
    let (first, _) = back_up(&source, &dir).unwrap();
    source.write(20);
    source.checkpoint();
    source.write(5);
    back_up(&source, &dir).unwrap();
    let from = first.point.unwrap();
    for index in from.index..=last_of(&source).index {
        let point = match source.node.reader.get(index, index + 1, 1) {
            Ok(found) => found[0].point,
            Err(error) => panic!("{index}: {error}"),
        };
        let disk = SimDisk::new();
        // A position inside of the next batch stands for the one before it.
        let restored = restore_until(&dir, &Until::Position(point.end), &disk).unwrap();
        assert_eq!(restored.last, point);
        if index % 7 == 0 {
            assert_restored(&disk, &source, point);
        }
    }
    let refused = |position| {
        let error = restore_until(&dir, &Until::Position(position), &SimDisk::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        error.to_string()
    };
    assert!(refused(from.end - 1).contains("oldest state"));
    assert!(refused(last_of(&source).end + 1).contains("ends at position"));
}

#[test]
fn a_time_is_between_batches() {
    let (mut source, dir) = (source(), SimDisk::new());
    back_up(&source, &dir).unwrap();
    source.write(20);
    source.checkpoint();
    back_up(&source, &dir).unwrap();
    let of_batch = |batch: &Batch| (!batch.point.index.is_multiple_of(3)).then_some(batch.point.index * 10);
    let of_state = |point: LogPoint, _| Ok(point.index * 10);
    for (ms, last) in [(505, 51), (620, 63), (100_000, 80)] {
        let disk = SimDisk::new();
        let until = Until::Time { ms, of_batch: &of_batch, of_state: &of_state };
        let restored = restore_until(&dir, &until, &disk).unwrap();
        assert_eq!(restored.last.index, last.min(last_of(&source).index), "{ms}");
    }
    let until = Until::Time { ms: 1, of_batch: &of_batch, of_state: &of_state };
    assert!(restore_until(&dir, &until, &SimDisk::new()).is_err());
}

#[test]
fn what_was_given_up_between_two_backups_is_named() {
    let (mut source, dir) = (source(), SimDisk::new());
    let (first, _) = back_up(&source, &dir).unwrap();
    source.write(60);
    let point = source.checkpoint();
    source.write(3);
    let gone: Vec<u64> = (first.end.end / SEGMENT + 1..point.position / SEGMENT).collect();
    source.raise_and_retire(point.index, &gone);
    back_up(&source, &dir).unwrap();
    let hole = restore_until(&dir, &Until::Position(point.end - 1), &SimDisk::new()).unwrap_err();
    assert!(hole.to_string().contains("was given up before the next backup"), "{hole}");
    for end in [first.end, last_of(&source)] {
        let disk = SimDisk::new();
        restore_until(&dir, &Until::Position(end.end), &disk).unwrap();
        assert_restored(&disk, &source, end);
    }
}

#[test]
fn another_log_and_a_foreign_or_busy_directory_are_refused() {
    let (source, dir) = (source(), SimDisk::new());
    back_up(&source, &dir).unwrap();
    let mut other = Source::new(&SimDisk::new(), 3);
    let error = back_up(&other, &dir).unwrap_err();
    assert!(error.to_string().contains("not of this log's past"), "{error}");
    for index in 0..70 {
        other.node.append(payload(index + 1, 300)).unwrap();
    }
    other.node.log.committed(last_of(&other).end);
    assert!(back_up(&other, &dir).unwrap_err().to_string().contains("not of this log's past"));
    let known = Known { cluster: Some([9; 16]), ..Known::default() };
    assert_eq!(Known::decode(&known.encode()).unwrap(), known);
    assert!(hold(&source, &known).err().unwrap().to_string().contains("another cluster"));
    let store = SimDisk::new();
    run(genesis().create(&store)).unwrap();
    assert!(back_up(&source, &store).unwrap_err().to_string().contains("no backup"));
    assert!(restore_until(&dir, &Until::Newest, &store).unwrap_err().to_string().contains("holds 'genesis'"));
    let held = run(BackupDir::open(&dir)).unwrap();
    assert_eq!(back_up(&source, &dir).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(held);
    assert!(restore_until(&SimDisk::new(), &Until::Newest, &SimDisk::new()).is_err());
}

#[test]
fn no_flipped_byte_of_a_backup_is_restored() {
    let (source, dir) = (source(), SimDisk::new());
    back_up(&source, &dir).unwrap();
    for (path, len) in dir.files() {
        if path == "LOCK" {
            continue;
        }
        for place in [0, len / 3, len / 2, len - 1] {
            let damaged = dir.copy();
            damaged.corrupt(&path, place, 0x20);
            let disk = SimDisk::new();
            match restore_until(&damaged, &Until::Newest, &disk) {
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{path} at {place}: {error}")
                }
                // Behind an end marker lie bytes that mean nothing.
                Ok(_) if path.starts_with("log/") => assert_restored(&disk, &source, last_of(&source)),
                Ok(_) => panic!("{path} at {place}"),
            }
        }
    }
}

#[test]
fn a_full_disk_leaves_the_earlier_backup_and_the_next_try_goes_on() {
    let (mut source, dir) = (source(), SimDisk::new());
    let (first, _) = back_up(&source, &dir).unwrap();
    source.write(30);
    let used: u64 = dir.files().iter().map(|(_, len)| len).sum();
    dir.limit(Some(used + 3 * SEGMENT));
    assert_eq!(back_up(&source, &dir).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let disk = SimDisk::new();
    restore_until(&dir, &Until::Newest, &disk).unwrap();
    assert_restored(&disk, &source, first.end);
    dir.limit(None);
    back_up(&source, &dir).unwrap();
    let disk = SimDisk::new();
    restore_until(&dir, &Until::Newest, &disk).unwrap();
    assert_restored(&disk, &source, last_of(&source));
}

fn named(objects: &common::source::Objects) -> io::Result<Vec<(u64, u64)>> {
    used(LogPoint { index: 0, term: 0, leader: 0, position: 0, end: 0, hash: 0 }, objects.clone())
}

#[test]
fn a_verification_of_a_store_names_each_damaged_file_and_changes_nothing() {
    let disk = SimDisk::new();
    let mut source = Source::new(&disk, 41);
    source.checkpoint();
    source.write(30);
    let end = last_of(&source);
    source.node.close().unwrap();
    let look = |disk: &SimDisk| {
        let mut findings = Findings::default();
        let sound = run(verify_store(disk, &genesis(), &named, &mut findings)).unwrap();
        (findings.wrong, sound.map(|sound| (sound.end, sound.log.batch(end.position).map(|b| b.point).ok())))
    };
    let before = disk.files();
    assert_eq!(look(&disk), (Vec::new(), Some((Some(end), Some(end)))));
    assert_eq!(disk.files(), before);
    for (path, _) in before {
        // The first batch, header or entry of each; the page in use is the first.
        let spare = path.strip_prefix("log/").is_some_and(|start| start.parse::<u64>().unwrap() >= end.end);
        if spare || path == "LOCK" || path == "genesis" || path == "state" {
            continue;
        }
        let damaged = disk.copy();
        damaged.corrupt(&path, 20, 0x10);
        let (wrong, _) = look(&damaged);
        assert!(wrong.iter().any(|line| line.contains(&path)), "{path}: {wrong:?}");
    }
    let last = disk.copy();
    last.corrupt(&format!("log/{:020}", end.position / SEGMENT * SEGMENT), end.position % SEGMENT + 97, 1);
    assert!(!look(&last).0.is_empty(), "the last batch of a log that was closed");
}

#[test]
fn a_verification_of_backups_names_each_damaged_file() {
    let (mut source, dir) = (source(), SimDisk::new());
    back_up(&source, &dir).unwrap();
    source.write(20);
    source.checkpoint();
    back_up(&source, &dir).unwrap();
    let look = |disk: &SimDisk| {
        let held = run(BackupDir::open(disk)).unwrap();
        let mut findings = Findings::default();
        for manifest in held.manifests() {
            let sound = run(verify_backup(&held, manifest, &named, &mut findings)).unwrap();
            if let Some(sound) = sound {
                assert_eq!(sound.log.batch(manifest.end.position).unwrap().point, manifest.end);
            }
        }
        findings.wrong
    };
    assert_eq!(look(&dir), [""; 0]);
    for (path, _) in dir.files() {
        if !["log/", "pages/", "checkpoint/"].iter().any(|dir| path.starts_with(dir)) {
            continue;
        }
        let damaged = dir.copy();
        damaged.corrupt(&path, 20, 0x10);
        let wrong = look(&damaged);
        assert!(wrong.iter().any(|line| line.contains(&path)), "{path}: {wrong:?}");
        let gone = dir.copy();
        run(dassie_storage::Disk::remove(&gone, &path)).unwrap();
        let wrong = look(&gone);
        assert!(wrong.iter().any(|line| line.contains(&path)), "{path}: {wrong:?}");
    }
}

/// Power goes before and after each operation of a second backup.
#[test]
fn a_crash_at_any_step_of_a_backup_leaves_the_earlier_one_or_both() {
    let (mut source, dir) = (source(), SimDisk::new());
    let (first, _) = back_up(&source, &dir).unwrap();
    source.write(15);
    source.checkpoint();
    source.write(2);
    let whole = dir.copy();
    let (second, _) = back_up(&source, &whole).unwrap();
    let ops = whole.ops().len() as u64;
    let mut seen = [0, 0];
    for op in 0..ops {
        for after in [false, true] {
            let disk = dir.copy();
            disk.cut_power_at(op, after);
            assert!(back_up(&source, &disk).is_err(), "operation {op}");
            let seed = op * 2 + u64::from(after);
            let others = [Keep::All, Keep::Subset(seed), Keep::Torn(seed)];
            for keep in [Keep::Nothing, others[op as usize % others.len()]] {
                let image = disk.after_crash(keep);
                let held =
                    run(BackupDir::open(&image)).unwrap_or_else(|e| panic!("{op} {after} {keep:?}: {e}"));
                let ends: Vec<LogPoint> = held.manifests().iter().map(|manifest| manifest.end).collect();
                drop(held);
                assert!(
                    ends == [first.end] || ends == [first.end, second.end],
                    "{op} {after} {keep:?}: {ends:?}"
                );
                seen[ends.len() - 1] += 1;
                // A page file has 16 MiB: not each image is read to its last byte.
                for end in ends.into_iter().filter(|_| seed % 6 == 0) {
                    let restored = SimDisk::new();
                    restore_until(&image, &Until::Position(end.end), &restored)
                        .unwrap_or_else(|e| panic!("{op} {after} {keep:?}: {e}"));
                    assert_restored(&restored, &source, end);
                }
                if seed % 18 == 0 {
                    back_up(&source, &image).unwrap_or_else(|e| panic!("{op} {after} {keep:?}: {e}"));
                    restore_until(&image, &Until::Newest, &SimDisk::new()).unwrap();
                }
            }
        }
    }
    assert!(seen[0] > 30 && seen[1] > 0, "{seen:?} of {ops} operations");
}

/// Power goes before and after each operation of a restore.
#[test]
fn a_crash_at_any_step_of_a_restore_leaves_no_store_or_the_whole_one() {
    let (source, dir) = (source(), SimDisk::new());
    back_up(&source, &dir).unwrap();
    let whole = SimDisk::new();
    restore_until(&dir, &Until::Newest, &whole).unwrap();
    let ops = whole.ops().len() as u64;
    let mut seen = [0, 0];
    for op in 0..ops {
        for after in [false, true] {
            let disk = SimDisk::new();
            disk.cut_power_at(op, after);
            assert!(restore_until(&dir, &Until::Newest, &disk).is_err(), "operation {op}");
            let seed = op * 2 + u64::from(after);
            let others = [Keep::All, Keep::Subset(seed), Keep::Torn(seed)];
            for keep in [Keep::Nothing, others[op as usize % others.len()]] {
                let image = disk.after_crash(keep);
                let names = run(dassie_storage::Disk::list(&image, "")).unwrap();
                let is_store =
                    names.iter().any(|name| name == "genesis") && !dassie_storage::is_unfinished(&names);
                seen[usize::from(is_store)] += 1;
                if !is_store && seed % 10 != 0 {
                    continue;
                }
                if !is_store {
                    restore_until(&dir, &Until::Newest, &image)
                        .unwrap_or_else(|e| panic!("{op} {after} {keep:?}: {e}"));
                }
                assert_restored(&image, &source, last_of(&source));
            }
        }
    }
    assert!(seen[0] > 30 && seen[1] > 0, "{seen:?} of {ops} operations");
}
