//! A store copied to another: what comes in, what is refused, and the power cut at every step of it.
#![allow(clippy::cast_possible_truncation)] // small numbers

mod common;

use std::io;

use bytes::Bytes;
use common::source::{Objects, Source, used};
use common::{Node, SEGMENT, genesis, options, payload, run};
use dassie_storage::sim::{Keep, SimDisk};
use dassie_storage::{
    CheckpointStore, CopySource, CopyTarget, FullSpeed, Genesis, LogPoint, LogReader, Offer, PageId,
    PageStore, PartKind, finish_install, read_floor,
};

/// The usual one: 60 batches, checkpoints at 40 and 50, segments 1 and 2 retired, more behind.
fn source() -> (Source, LogPoint) {
    let mut source = Source::new(&SimDisk::new(), 41);
    source.checkpoint();
    source.write(10);
    let point = source.checkpoint();
    source.raise_and_retire(45, &[1, 2]);
    source.write(9);
    (source, point)
}

fn target_genesis() -> Genesis {
    Genesis { store: [9; 16], node: 2, ..genesis() }
}

/// An empty store of node 2.
fn empty() -> SimDisk {
    let disk = SimDisk::new();
    run(target_genesis().create(&disk)).unwrap();
    disk
}

/// A store of node 2 that has the source's first batches and then something of its own.
fn behind(source: &Source, batches: u64, own: usize) -> SimDisk {
    let disk = empty();
    let mut node = Node::open(&disk, None).unwrap();
    for index in 0..batches {
        let batch = &source.node.reader.get(index, index + 1, 1);
        // Segments 1 and 2 are retired: what stood there is known from the rule.
        let payload = match batch {
            Ok(found) if !found.is_empty() => found[0].payload.clone(),
            _ => payload(index, 100 + (index as usize * 37) % 900),
        };
        node.append(payload).unwrap();
    }
    let committed = node.log.last().map_or(0, |last| last.end);
    node.log.committed(committed);
    for _ in 0..own {
        node.append(Bytes::from_static(b"nobody else has this")).unwrap();
    }
    let done = node.done();
    node.log.save_vote(Bytes::from_static(b"my vote"), done);
    node.finish().unwrap();
    node.close().unwrap();
    disk
}

fn take(
    target: &mut CopyTarget<SimDisk>,
    source: &CopySource<SimDisk>,
    mut most: usize,
    chunk: usize,
) -> io::Result<()> {
    for (part, from) in target.wanted() {
        let mut at = from;
        loop {
            let bytes = run(source.read(part, at, chunk))?;
            if bytes.is_empty() {
                break;
            }
            if most == 0 {
                return Ok(());
            }
            most -= 1;
            let len = bytes.len() as u64;
            let zeros = bytes.iter().all(|byte| *byte == 0);
            run(target.write(part, at, if zeros { Err(len) } else { Ok(bytes) }))?;
            at += len;
        }
    }
    Ok(())
}

/// A node, the checkpoint it stands on, its pages.
type Opened = (Node<SimDisk>, Option<(LogPoint, Objects)>, PageStore<SimDisk>);

fn open(disk: &SimDisk) -> io::Result<Opened> {
    let genesis = run(Genesis::load(disk))?.unwrap();
    run(finish_install(disk, &genesis))?;
    let floor = run(read_floor(disk, &genesis))?;
    let (_, loaded) = run(CheckpointStore::load(disk, genesis.store, floor.map(|f| f.index)))?;
    let pages = loaded.as_ref().map_or(Ok(Vec::new()), |l| used(l.point, l.objects.clone()))?;
    let pages = run(PageStore::open(disk, pages.iter().map(|(id, _)| *id)))?;
    let node = Node::open_with(disk, loaded.as_ref().map(|l| l.point), options())?;
    // A leader says so soon: all but what nobody else has.
    let batches = node.reader.get(node.log.floor().map_or(0, |f| f.index + 1), u64::MAX, usize::MAX)?;
    let committed = batches.iter().rfind(|batch| batch.payload != "nobody else has this");
    node.log.committed(committed.map_or(0, |batch| batch.point.end));
    Ok((node, loaded.map(|l| (l.point, l.objects)), pages))
}

/// Copies all that is missing, decides, puts it in place.
fn copy_to(disk: &SimDisk, from: &Source) -> io::Result<()> {
    let held = from.hold();
    let (node, ..) = open(disk)?;
    let target = begin(disk, &node.reader, held.offer().clone(), None)?;
    let Some(mut target) = target else { return Ok(()) };
    take(&mut target, &held, usize::MAX, 700)?;
    run(target.verify(used))?;
    node.close()?;
    run(target.commit())?;
    open(disk).map(drop)
}

fn begin(
    disk: &SimDisk,
    reader: &LogReader<SimDisk>,
    offer: Offer,
    before: Option<CopyTarget<SimDisk>>,
) -> io::Result<Option<CopyTarget<SimDisk>>> {
    run(CopyTarget::begin(disk, &target_genesis(), reader, offer, before))
}

/// The store is the source's as of its checkpoint, and goes on with what follows.
fn assert_copied(disk: &SimDisk, source: &Source, point: LogPoint) {
    let (mut node, loaded, pages) = open(disk).unwrap();
    let (at, objects) = loaded.expect("a checkpoint");
    assert_eq!(at, point);
    for (id, owner) in used(at, objects).unwrap() {
        assert_eq!(pages.reader().read(id, owner).unwrap(), source.pages.reader().read(id, owner).unwrap());
    }
    assert_eq!(node.log.last(), Some(point));
    assert_eq!(node.log.floor(), Some(point));
    let starts: Vec<u64> = source.node.reader.segments().into_iter().filter(|s| *s < point.end).collect();
    assert_eq!(node.reader.segments(), starts, "holes stay holes");
    let mut position = 0;
    while position < point.end {
        let (ours, theirs) = (node.reader.batch(position), source.node.reader.batch(position));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert_eq!(ours, theirs);
                position = ours.point.end;
            }
            (Err(_), Err(_)) => position = (position / SEGMENT + 1) * SEGMENT,
            (ours, theirs) => panic!("at {position}: {ours:?} and {theirs:?}"),
        }
    }
    // What follows gets the same places.
    let rest = source.node.reader.get(point.index + 1, u64::MAX, usize::MAX).unwrap();
    for batch in rest {
        assert_eq!(node.append(batch.payload).unwrap(), batch.point);
    }
    node.close().unwrap();
}

#[test]
fn an_empty_store_becomes_the_copy_with_positions_and_holes_as_they_were() {
    let (source, point) = source();
    let disk = empty();
    copy_to(&disk, &source).unwrap();
    assert_copied(&disk, &source, point);
}

#[test]
fn a_store_that_is_behind_keeps_what_is_the_same_and_loses_what_nobody_else_has() {
    let (source, point) = source();
    let disk = behind(&source, 30, 5);
    let held = source.hold();
    let (node, ..) = open(&disk).unwrap();
    let target = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
    let wanted = target.wanted();
    let segments = held.offer().parts.iter().filter(|part| part.kind == PartKind::Segment).count();
    let missing =
        wanted.iter().filter(|(part, _)| held.offer().parts[*part].kind == PartKind::Segment).count();
    assert!(missing < segments, "{missing} of {segments}");
    node.close().unwrap();
    drop((held, target));
    copy_to(&disk, &source).unwrap();
    assert_copied(&disk, &source, point);
    let (node, ..) = open(&disk).unwrap();
    assert_eq!(node.log.vote(), "my vote");
}

#[test]
fn a_store_that_has_the_entry_needs_no_copy() {
    let (source, _) = source();
    let disk = behind(&source, 55, 0);
    let (node, ..) = open(&disk).unwrap();
    assert!(begin(&disk, &node.reader, source.hold().offer().clone(), None).unwrap().is_none());
}

#[test]
fn an_interrupted_copy_goes_on_at_the_byte_and_after_a_restart_at_the_file() {
    let (source, point) = source();
    let disk = empty();
    let (node, ..) = open(&disk).unwrap();
    let held = source.hold();
    let mut target = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
    take(&mut target, &held, 10, 700).unwrap();
    let before = target.wanted();
    assert!(before[0].1 > 0, "inside a file");
    let again = begin(&disk, &node.reader, held.offer().clone(), Some(target)).unwrap().unwrap();
    assert_eq!(again.wanted(), before);
    node.close().unwrap();
    drop(again);
    let (node, ..) = open(&disk).unwrap();
    let again = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
    assert_eq!(again.wanted().len(), before.len());
    assert_eq!(again.wanted()[0], (before[0].0, 0));
    node.close().unwrap();
    copy_to(&disk, &source).unwrap();
    assert_copied(&disk, &source, point);
}

#[test]
fn another_copy_takes_over_the_whole_segments_and_nothing_else() {
    let (mut source, _) = source();
    let disk = empty();
    let (node, ..) = open(&disk).unwrap();
    let held = source.hold();
    let mut target = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
    take(&mut target, &held, usize::MAX, 4096).unwrap();
    drop((held, target));
    let point = source.checkpoint();
    let held = source.hold();
    let target = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
    let whole = |part: usize| held.offer().parts[part].kind == PartKind::Segment;
    let missing: Vec<usize> =
        target.wanted().into_iter().map(|(part, _)| part).filter(|p| whole(*p)).collect();
    assert!((1..=3).contains(&missing.len()), "{missing:?}");
    node.close().unwrap();
    copy_to(&disk, &source).unwrap();
    assert_copied(&disk, &source, point);
}

#[test]
fn retention_and_checkpoints_take_nothing_away_from_a_copy_under_way() {
    let (mut source, point) = source();
    let held = source.hold();
    let before: Vec<Bytes> =
        (0..held.offer().parts.len()).map(|part| run(held.read(part, 0, usize::MAX)).unwrap()).collect();
    source.write(40);
    // Pages of old checkpoints are given up, and new ones want room.
    let old: Vec<PageId> = used(point, source.objects.clone()).unwrap().iter().map(|(id, _)| *id).collect();
    source.pages.free(old.clone());
    for _ in 0..5 {
        source.checkpoint();
        source.write(5);
    }
    run(source.checkpoints.merge(&FullSpeed)).unwrap();
    source.raise_and_retire(90, &[0, 3, 4, 5]);
    source.write(40);
    for (part, before) in before.iter().enumerate() {
        let now = run(held.read(part, 0, usize::MAX)).unwrap();
        if held.offer().parts[part].kind == PartKind::Pages {
            for id in &old {
                let at = *id as usize * 4096;
                assert_eq!(now[at..at + 4096], before[at..at + 4096], "page {id}");
            }
        } else {
            assert!(now == *before, "part {part}");
        }
    }
    drop(held);
    let freed = source.pages.usage().1;
    source.checkpoint();
    assert!(source.pages.usage().1 >= freed, "what was held is free again");
}

#[test]
fn no_flipped_byte_of_a_copy_is_installed() {
    let (source, _) = source();
    let held = source.hold();
    for (part, known) in held.offer().parts.iter().enumerate() {
        // The middle and both ends of each file; pages: one in use.
        let places = match known.kind {
            PartKind::Pages => vec![100, 4096 + 9],
            PartKind::Segment | PartKind::Checkpoint => vec![0, 75, known.len / 2],
        };
        for place in places {
            let disk = empty();
            let (node, ..) = open(&disk).unwrap();
            let mut target = begin(&disk, &node.reader, held.offer().clone(), None).unwrap().unwrap();
            let mut refused = None;
            for (number, _) in target.wanted() {
                let mut bytes = run(held.read(number, 0, usize::MAX)).unwrap().to_vec();
                if number == part {
                    bytes[place as usize] ^= 0x40;
                }
                refused = refused.or(run(target.write(number, 0, Ok(bytes.into()))).err());
            }
            let error = refused.or_else(|| run(target.verify(used)).err()).expect("it is refused");
            // Behind a segment's end marker lie bytes that mean nothing: a copy of them may differ.
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{known:?} at {place}: {error}");
            assert!(!target.wanted().is_empty(), "it is wanted again");
            assert!(run(target.verify(used)).is_err());
        }
    }
}

#[test]
fn a_foreign_or_cut_offer_is_refused_by_its_reason() {
    let (source, _) = source();
    let offer = source.hold().offer().clone();
    let bytes = offer.encode();
    assert_eq!(Offer::decode(&bytes).unwrap(), offer);
    for len in [0, 10, 99, bytes.len() - 1] {
        assert!(Offer::decode(&bytes[..len]).is_err());
    }
    let disk = empty();
    let (node, ..) = open(&disk).unwrap();
    let refused = |change: &dyn Fn(&mut Offer)| {
        let mut other = offer.clone();
        change(&mut other);
        begin(&disk, &node.reader, other, None).err().expect("refused").to_string()
    };
    assert!(refused(&|o| o.shard = [8; 16]).contains("another shard"));
    assert!(refused(&|o| o.segment_size *= 2).contains("another size"));
    assert!(refused(&|o| o.parts.truncate(o.parts.len() - 1)).contains("without its checkpoint"));
    assert!(refused(&|o| o.parts.swap(0, 1)).contains("out of order"));
    assert!(refused(&|o| o.parts[0].number = 8).contains("not of this log"));
}

/// Power goes before and after each operation of a copy that comes in; whatever image is left opens as the old store or the new one.
#[test]
fn a_crash_at_any_step_leaves_the_old_store_or_the_new_one() {
    let (source, point) = source();
    let first = behind(&source, 30, 5);
    let old = open(&first.copy()).unwrap().0.log.last();
    let whole = first.copy();
    copy_to(&whole, &source).unwrap();
    let ops = whole.ops().len() as u64;
    let mut seen = [0, 0];
    for op in 0..ops {
        for after in [false, true] {
            let disk = first.copy();
            disk.cut_power_at(op, after);
            assert!(copy_to(&disk, &source).is_err(), "operation {op}");
            let seed = op * 2 + u64::from(after);
            let others = [Keep::All, Keep::Names, Keep::Torn(seed), Keep::Sizes];
            for keep in [Keep::Nothing, Keep::Subset(seed), others[op as usize % others.len()]] {
                let image = disk.after_crash(keep);
                let (node, ..) = open(&image).unwrap_or_else(|e| panic!("{op} {after} {keep:?}: {e}"));
                let last = node.log.last();
                assert!(last == old || last == Some(point), "{op} {after} {keep:?}: {last:?}");
                assert_eq!(node.log.vote(), "my vote");
                seen[usize::from(last == Some(point))] += 1;
                drop(node);
                if op % 13 == 0 {
                    copy_to(&image, &source).unwrap();
                    assert_copied(&image, &source, point);
                }
            }
        }
    }
    assert!(seen[0] > 100 && seen[1] > 20, "{seen:?} of {ops} operations");
}

#[test]
fn a_full_disk_leaves_the_old_store_and_what_came_in() {
    let (source, point) = source();
    let disk = behind(&source, 30, 0);
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.limit(Some(used + 3 * SEGMENT));
    let error = copy_to(&disk, &source).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    disk.limit(None);
    copy_to(&disk, &source).unwrap();
    assert_copied(&disk, &source, point);
    let left: Vec<String> =
        disk.files().into_iter().map(|(name, _)| name).filter(|n| n.contains("incoming")).collect();
    assert!(left.is_empty(), "{left:?}");
}
