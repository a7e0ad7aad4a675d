//! Checkpoints and pages under load: many deltas, merges, and the allocator against a model.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)] // small numbers, whole disks

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use common::{genesis, payload, run};
use dassie_storage::sim::{Fault, OpKind, SimDisk};
use dassie_storage::{
    CheckpointStore, Disk, FILE_PAGES, FullSpeed, Genesis, LogPoint, NewPage, PageStore, RealDisk,
};

fn point(index: u64) -> LogPoint {
    LogPoint { index, term: 1, leader: 1, position: index * 100, end: index * 100 + 96, hash: index * 7 + 1 }
}

fn key(number: u64) -> Bytes {
    format!("object {number:05}").into_bytes().into()
}

fn deltas_and_merges_equal_the_model<D: Disk>(disk: D) {
    run(Genesis { ..genesis() }.create(&disk)).unwrap();
    let (mut store, none) = run(CheckpointStore::load(&disk, genesis().store, None)).unwrap();
    assert!(none.is_none());
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut merges = 0;
    for round in 1..80_u64 {
        let puts: BTreeMap<Bytes, Bytes> = (0..round * 13 % 50)
            .map(|i| {
                let number = (round * 31 + i * 7) % 200;
                // Some larger than a block.
                let len = if number == 3 { 600_000 } else { (round * i % 300) as usize };
                (key(number), payload(round + i, len))
            })
            .collect();
        let removes: BTreeSet<Bytes> =
            (0..9).map(|i| key((round * 17 + i * 23) % 220)).filter(|key| !puts.contains_key(key)).collect();
        for key in &removes {
            model.remove(key);
        }
        model.extend(puts.clone());
        run(store.write_delta(point(round), puts, removes, &FullSpeed)).unwrap();
        if round % 5 == 0 && store.wants_merge() {
            run(store.merge(&FullSpeed)).unwrap();
            merges += 1;
            assert!(!store.wants_merge());
            assert_eq!(run(disk.list("checkpoint")).unwrap().len(), 1);
        }
        if round % 7 == 0 {
            let (again, loaded) = run(CheckpointStore::load(&disk, genesis().store, Some(round))).unwrap();
            let loaded = loaded.unwrap();
            assert_eq!((loaded.point, &loaded.objects), (point(round), &model));
            store = again;
        }
    }
    assert!(merges > 2, "{merges}");
}

#[test]
fn deltas_and_merges_equal_the_model_on_the_simulated_disk() {
    deltas_and_merges_equal_the_model(SimDisk::new());
}

#[test]
fn deltas_and_merges_equal_the_model_on_the_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    deltas_and_merges_equal_the_model(RealDisk::open(dir.path()).unwrap());
}

#[test]
fn a_checkpoint_that_finds_the_disk_full_leaves_the_old_state() {
    for (kind, skip) in [(OpKind::Create, 0), (OpKind::Write, 1), (OpKind::Sync, 0), (OpKind::Rename, 0)] {
        let disk = SimDisk::new();
        run(genesis().create(&disk)).unwrap();
        let (mut store, _) = run(CheckpointStore::load(&disk, genesis().store, None)).unwrap();
        run(store.write_delta(point(1), [(key(1), key(1))], [], &FullSpeed)).unwrap();
        run(store.write_delta(point(2), [(key(2), key(2))], [], &FullSpeed)).unwrap();
        for merge in [false, true] {
            disk.inject(kind, "checkpoint/", skip, Fault::Fail(io::ErrorKind::StorageFull));
            let failed = match merge {
                true => run(store.merge(&FullSpeed)),
                false => run(store.write_delta(point(3), [(key(3), key(3))], [], &FullSpeed)),
            };
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
            let (_, loaded) = run(CheckpointStore::load(&disk, genesis().store, Some(2))).unwrap();
            assert_eq!(loaded.unwrap().objects.len(), 2);
        }
        run(store.merge(&FullSpeed)).unwrap();
        run(store.write_delta(point(3), [(key(3), key(3))], [], &FullSpeed)).unwrap();
        let (_, loaded) = run(CheckpointStore::load(&disk, genesis().store, Some(3))).unwrap();
        assert_eq!(loaded.unwrap().objects.len(), 3);
    }
}

#[test]
fn pages_are_never_given_twice_and_come_back_only_after_a_checkpoint() {
    let disk = SimDisk::new();
    run(genesis().create(&disk)).unwrap();
    let mut store = run(PageStore::open(&disk, [])).unwrap();
    let (mut live, mut held) = (BTreeSet::new(), BTreeSet::new());
    let mut seed = 1_u64;
    for _ in 0..300 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let count = 1 + ((seed >> 40) & 63);
        let first = run(store.allocate(count)).unwrap();
        for id in first..first + count {
            assert!(live.insert(id) && !held.contains(&id), "page {id} was in use");
        }
        let gone: Vec<u64> = live.iter().copied().filter(|id| id % 5 == seed % 5).collect();
        for id in &gone {
            live.remove(id);
        }
        let early = store.checkpoint_started();
        store.free(gone.clone());
        match (seed >> 33) & 3 {
            0 => {
                let late = store.checkpoint_started();
                store.checkpoint_durable(&late);
                held.clear();
            }
            1 => {
                // It began before these were freed: it may name them, and them alone.
                store.checkpoint_durable(&early);
                held = gone.into_iter().collect();
            }
            _ => held.extend(gone),
        }
        let (size, free) = store.usage();
        assert_eq!(free + (live.len() + held.len()) as u64, size);
    }
    let (size, _) = store.usage();
    assert!(size < 3 * FILE_PAGES, "{size} pages for {}", live.len());
    let reopened = run(PageStore::open(&disk, live.iter().copied())).unwrap();
    assert_eq!(reopened.usage(), (size, size - live.len() as u64));
}

#[test]
fn a_page_at_the_wrong_place_or_of_another_owner_is_refused() {
    let disk = SimDisk::new();
    run(genesis().create(&disk)).unwrap();
    let mut store = run(PageStore::open(&disk, [])).unwrap();
    let first = run(store.allocate(4)).unwrap();
    let page = |id| NewPage { id, owner: id + 50, content: payload(id, 4000) };
    run(store.write(&[page(first), page(first + 1), page(first + 3)])).unwrap();
    run(store.sync()).unwrap();
    let reader = store.reader();
    assert_eq!(reader.read(first + 3, first + 53).unwrap()[..4000], payload(first + 3, 4000));
    assert!(reader.read(first, 9).unwrap_err().to_string().contains("page of owner"));
    assert!(reader.read(first + 2, 0).unwrap_err().to_string().contains("pages/00000000 at 8192"));
    disk.inject(OpKind::Write, "pages/", 0, Fault::Misdirect(4096));
    run(store.write(&[page(first)])).unwrap();
    assert!(reader.read(first + 1, first + 51).unwrap_err().to_string().contains("checksum"));
    assert_eq!(reader.read(9 * FILE_PAGES, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    let error = run(PageStore::open(&disk, [FILE_PAGES])).map(drop).unwrap_err();
    assert!(error.to_string().contains("pages/00000001"), "{error}");
}
