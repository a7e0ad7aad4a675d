//! A scripted life of a store, with the power cut before and after every operation, and every kind of image looked at.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)] // small numbers, whole disks

mod common;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use common::{Node, SEGMENT, genesis, options, payload, run};
use dassie_storage::sim::{Keep, SimDisk};
use dassie_storage::{
    CheckpointStore, Flush, FullSpeed, Genesis, LogPoint, NewPage, Options, PageStore, Uuid, read_floor,
};

#[derive(Clone, Debug)]
enum Event {
    Append(LogPoint),
    Truncate(Option<u64>),
    Vote(Bytes),
    Floor(u64),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// (index, hash) of what the log has above its floor.
    entries: Vec<(u64, u64)>,
    floor: Option<u64>,
    vote: Bytes,
}

type Objects = BTreeMap<Bytes, Bytes>;

/// What was asked for and what was answered.
#[derive(Default)]
struct Ledger {
    created: bool,
    events: Vec<Event>,
    acked: usize,
    checkpoints: Vec<Option<(u64, Objects)>>,
    acked_checkpoints: usize,
    finished: bool,
}

impl Ledger {
    fn states(&self) -> Vec<State> {
        let mut state = State::default();
        let mut states = vec![state.clone()];
        for event in &self.events {
            match event {
                Event::Append(point) => state.entries.push((point.index, point.hash)),
                Event::Truncate(after) => state.entries.retain(|(index, _)| Some(*index) <= *after),
                Event::Vote(vote) => state.vote = vote.clone(),
                Event::Floor(floor) => {
                    state.floor = Some(*floor);
                    state.entries.retain(|(index, _)| index > floor);
                }
            }
            states.push(state.clone());
        }
        states
    }
}

fn store() -> Uuid {
    genesis().store
}

fn bytes(text: String) -> Bytes {
    text.into_bytes().into()
}

struct Life<'a> {
    disk: SimDisk,
    ledger: &'a mut Ledger,
    node: Node<SimDisk>,
    pages: PageStore<SimDisk>,
    checkpoints: CheckpointStore<SimDisk>,
    objects: Objects,
}

impl Life<'_> {
    fn finish(&mut self) -> io::Result<()> {
        let done = self.node.finish();
        // Jobs that succeeded before the failure count as promised. Every job here is one event or several appends.
        self.ledger.acked = self.acked();
        done
    }

    fn acked(&self) -> usize {
        let results = self.node.results.borrow();
        let mut events = self.base();
        for (number, result) in results.iter() {
            if result.is_ok() {
                events = events.max(self.ends()[*number as usize]);
            }
        }
        events
    }

    fn base(&self) -> usize {
        self.ledger.acked
    }

    fn ends(&self) -> std::cell::Ref<'_, Vec<usize>> {
        self.node.ends.borrow()
    }

    fn submitted(&mut self) {
        let events = self.ledger.events.len();
        self.node.ends.borrow_mut().push(events);
    }

    fn append(&mut self, len: usize) {
        let index = self.node.next();
        let salt = self.ledger.events.len() as u64;
        let point = self.node.submit(payload(index + salt, len));
        self.ledger.events.push(Event::Append(point));
        self.submitted();
    }

    fn vote(&mut self, vote: &'static str) {
        let done = self.node.done();
        self.node.log.save_vote(Bytes::from_static(vote.as_bytes()), done);
        self.ledger.events.push(Event::Vote(Bytes::from_static(vote.as_bytes())));
        self.submitted();
    }

    fn truncate(&mut self, after: u64) {
        let done = self.node.done();
        self.node.log.truncate_after(Some(after), done).unwrap();
        self.ledger.events.push(Event::Truncate(Some(after)));
        self.submitted();
    }

    fn floor(&mut self, index: u64) {
        let done = self.node.done();
        self.node.log.raise_floor(index, done).unwrap();
        self.ledger.events.push(Event::Floor(index));
        self.submitted();
    }

    fn checkpoint(&mut self, index: u64) -> io::Result<()> {
        let point = self.node.log.point(index).unwrap().unwrap();
        let name = format!("queue {}", index % 3);
        let old = self.objects.get(name.as_bytes()).cloned();
        if let Some(old) = old {
            // The last durable checkpoint still names it: what is allocated next must not be this page.
            self.pages.free([page_of(&old).0]);
        }
        let id = run(self.pages.allocate(1))?;
        let content = payload(index, 100);
        run(self.pages.write(&[NewPage { id, owner: index, content }]))?;
        run(self.pages.sync())?;
        let value = bytes(format!("{id} {index}"));
        self.objects.insert(bytes(name.clone()), value.clone());
        let removed = bytes(format!("gone {}", index / 2));
        self.objects.remove(&removed);
        let extra = bytes(format!("gone {index}"));
        self.objects.insert(extra.clone(), Bytes::new());
        let freed = self.pages.checkpoint_started();
        self.ledger.checkpoints.push(Some((index, self.objects.clone())));
        let puts = [(bytes(name), value), (extra, Bytes::new())];
        run(self.checkpoints.write_delta(point, puts, [removed], &FullSpeed))?;
        self.ledger.acked_checkpoints = self.ledger.checkpoints.len() - 1;
        self.pages.checkpoint_durable(&freed);
        if self.checkpoints.wants_merge() {
            run(self.checkpoints.merge(&FullSpeed))?;
        }
        Ok(())
    }
}

fn page_of(value: &Bytes) -> (u64, u64) {
    let text = std::str::from_utf8(value).unwrap();
    let (id, owner) = text.split_once(' ').unwrap();
    (id.parse().unwrap(), owner.parse().unwrap())
}

fn live(disk: &SimDisk, ledger: &mut Ledger) -> io::Result<()> {
    ledger.checkpoints.push(None);
    run(genesis().create(disk))?;
    ledger.created = true;
    let (checkpoints, _) = run(CheckpointStore::load(disk, store(), None))?;
    let pages = run(PageStore::open(disk, []))?;
    let node = Node::open(disk, None)?;
    let mut life = Life { disk: disk.clone(), ledger, node, pages, checkpoints, objects: Objects::new() };
    script(&mut life)
}

fn script(life: &mut Life<'_>) -> io::Result<()> {
    life.vote("term 1");
    life.finish()?;
    for i in 0..6 {
        life.append(200 + i * 150);
        life.finish()?;
    }
    for i in 0..9 {
        life.append(100 + i * 130); // one group over a segment's end
    }
    life.vote("term 2");
    life.append(10);
    life.finish()?;
    life.truncate(9);
    for i in 0..7 {
        life.append(150 + i * 100);
    }
    life.finish()?;
    life.node.log.committed(life.node.log.point(12)?.unwrap().end);
    life.checkpoint(8)?;
    life.floor(7);
    life.finish()?;
    for _ in 0..12 {
        life.append(700);
        life.finish()?;
    }
    life.node.log.committed(life.node.log.last().unwrap().end);
    life.checkpoint(11)?;
    life.floor(11);
    life.finish()?;
    life.node.log.retire(&[0]).unwrap();
    life.node.machine.settle();
    life.checkpoint(20)?;
    life.floor(20);
    life.finish()?;
    life.node.log.retire(&[SEGMENT, 2 * SEGMENT]).unwrap();
    for i in 0..20 {
        life.append(300 + i * 20);
        if i % 3 == 0 {
            life.finish()?;
        }
    }
    life.finish()?;
    life.node.log.committed(life.node.log.last().unwrap().end);
    life.checkpoint(30)?;
    life.checkpoint(33)?;
    life.append(50);
    let done = life.node.done();
    life.submitted();
    life.node.log.close(done);
    life.finish()?;
    life.node.machine.settle();
    assert!(!life.disk.is_down());
    life.ledger.finished = true;
    Ok(())
}

/// Opens an image and compares it with what may be there.
fn check(disk: &SimDisk, ledger: &Ledger, states: &[State]) -> io::Result<()> {
    let Some(genesis) = run(Genesis::load(disk))? else {
        assert!(!ledger.created, "the store is gone");
        return run(genesis().create(disk));
    };
    let floor = run(read_floor(disk, &genesis))?.map(|floor| floor.index);
    let (_, loaded) = run(CheckpointStore::load(disk, genesis.store, floor))?;
    let found = loaded.as_ref().map(|loaded| (loaded.point.index, loaded.objects.clone()));
    assert!(
        ledger.checkpoints[ledger.acked_checkpoints..].contains(&found),
        "an unknown checkpoint: {found:?}"
    );
    let objects = found.map(|(_, objects)| objects).unwrap_or_default();
    let used: Vec<(u64, u64)> = objects
        .iter()
        .filter(|(key, _)| key.starts_with(b"queue"))
        .map(|(_, value)| page_of(value))
        .collect();
    let pages = run(PageStore::open(disk, used.iter().map(|&(id, _)| id)))?;
    for (id, owner) in used {
        let content = pages.reader().read(id, owner)?;
        assert_eq!(content[..100], payload(owner, 100));
    }
    let mut node = Node::open(disk, loaded.map(|loaded| loaded.point))?;
    let first = node.log.floor().map_or(0, |floor| floor.index + 1);
    let batches = node.log.get(first, u64::MAX, usize::MAX)?;
    let seen = State {
        entries: batches.iter().map(|batch| (batch.point.index, batch.point.hash)).collect(),
        floor: node.log.floor().map(|floor| floor.index),
        vote: node.log.vote(),
    };
    let possible = &states[ledger.acked..];
    assert!(possible.contains(&seen), "not a state that may be: {seen:?}\nfirst possible: {:?}", possible[0]);
    // It must be good for more, across a segment's end.
    for i in 0..3 {
        node.append(payload(1000 + i, 1500))?;
    }
    let next = node.next();
    drop(node);
    assert!(
        disk.is_down() || Node::open(disk, None).is_ok_and(|node| node.next() == next) || floor.is_some()
    );
    Ok(())
}

fn images(seed: u64) -> impl Iterator<Item = Keep> {
    let plain = [Keep::Nothing, Keep::All, Keep::Sizes, Keep::Names];
    let random = [
        Keep::Subset(seed),
        Keep::Subset(seed + 1),
        Keep::Subset(seed + 2),
        Keep::Torn(seed),
        Keep::Torn(seed + 1),
        Keep::Garbage(seed),
        Keep::Garbage(seed + 1),
    ];
    plain.into_iter().chain(random)
}

fn lived(cut: Option<(u64, bool)>) -> (SimDisk, Ledger) {
    let disk = SimDisk::new();
    if let Some((op, after)) = cut {
        disk.cut_power_at(op, after);
    }
    let mut ledger = Ledger::default();
    let result = live(&disk, &mut ledger);
    assert!(result.is_ok() == ledger.finished, "{result:?}");
    assert!(ledger.finished || disk.is_down(), "{result:?}");
    (disk, ledger)
}

#[test]
fn the_same_life_gives_the_same_operations() {
    let (first, ledger) = lived(None);
    assert!(ledger.finished);
    assert_eq!(first.ops(), lived(None).0.ops());
    assert!(first.ops().len() > 200, "{} operations", first.ops().len());
}

#[test]
fn no_cut_of_power_at_any_operation_loses_or_invents_anything() {
    let total = lived(None).0.ops().len() as u64;
    let mut recoveries = 0;
    for op in 0..total {
        for after in [false, true] {
            let (disk, ledger) = lived(Some((op, after)));
            let states = ledger.states();
            for keep in images(op * 16) {
                let image = disk.after_crash(keep);
                let checked = check(&image, &ledger, &states);
                assert!(
                    checked.is_ok(),
                    "power cut at {op} (after: {after}), {keep:?}: {}",
                    checked.unwrap_err()
                );
                recoveries += 1;
            }
        }
    }
    println!("{total} operations, {recoveries} recoveries");
    assert!(recoveries > 4000);
}

#[test]
fn a_cut_of_power_during_recovery_changes_nothing() {
    let total = lived(None).0.ops().len() as u64;
    let mut recoveries = 0;
    for op in (0..total).step_by(5) {
        let (disk, ledger) = lived(Some((op, op % 2 == 0)));
        let states = ledger.states();
        for keep in [Keep::All, Keep::Subset(op), Keep::Torn(op), Keep::Garbage(op)] {
            let image = disk.after_crash(keep);
            nested(&image, &ledger, &states, op, 2, &mut recoveries);
        }
    }
    println!("{recoveries} recoveries cut short");
    assert!(recoveries > 2000);
}

/// Cuts the power at every operation of the recovery itself, then of the recovery after that.
fn nested(image: &SimDisk, ledger: &Ledger, states: &[State], seed: u64, depth: u32, recoveries: &mut u64) {
    for op in 0..8 {
        let again = image.copy();
        again.cut_power_at(op, true);
        let opened = reopen(&again);
        if !again.is_down() {
            opened.unwrap();
            return;
        }
        *recoveries += 1;
        for keep in [Keep::Nothing, Keep::Subset(seed + op), Keep::Torn(seed + op)] {
            let crashed = again.after_crash(keep);
            if depth > 1 && op % 3 == seed % 3 {
                nested(&crashed, ledger, states, seed + 1, depth - 1, recoveries);
            }
            check(&crashed, ledger, states).unwrap_or_else(|e| panic!("nested at {op}, {keep:?}: {e}"));
        }
    }
}

fn reopen(disk: &SimDisk) -> io::Result<()> {
    let Some(genesis) = run(Genesis::load(disk))? else { return run(genesis().create(disk)) };
    let floor = run(read_floor(disk, &genesis))?.map(|floor| floor.index);
    let (_, loaded) = run(CheckpointStore::load(disk, genesis.store, floor))?;
    Node::open(disk, loaded.map(|loaded| loaded.point)).map(drop)
}

/// What a log with [`Flush::Written`] promised: entries that a sync covered, and all that were appended.
#[derive(Default)]
struct Relaxed {
    created: bool,
    synced: u64,
    appended: Vec<LogPoint>,
    finished: bool,
}

fn live_relaxed(disk: &SimDisk, ledger: &mut Relaxed) -> io::Result<()> {
    run(genesis().create(disk))?;
    let options = Options { flush: Flush::Written, ..options() };
    let mut node = Node::open_with(disk, None, options)?;
    ledger.created = true;
    for i in 0..60 {
        let point = node.submit(payload(i, 100 + usize::try_from(i).unwrap() * 37 % 900));
        ledger.appended.push(point);
        node.finish()?;
        if i % 11 == 10 {
            let syncer = node.log.syncer();
            node.machine.drive(syncer.sync())?;
            assert_eq!(node.log.durable(), point.end);
            ledger.synced = i + 1;
        }
        if i == 40 {
            let done = node.done();
            node.log.save_vote(Bytes::from_static(b"a vote"), done);
            node.finish()?;
        }
    }
    node.close()?;
    ledger.synced = 60;
    ledger.finished = true;
    Ok(())
}

#[test]
fn what_is_only_written_may_go_with_the_power_and_never_more_than_that() {
    let lived = |cut: Option<(u64, bool)>| {
        let disk = SimDisk::new();
        if let Some((op, after)) = cut {
            disk.cut_power_at(op, after);
        }
        let mut ledger = Relaxed::default();
        let result = live_relaxed(&disk, &mut ledger);
        assert!(ledger.finished || disk.is_down(), "{result:?}");
        (disk, ledger)
    };
    let (total, mut lost) = (lived(None).0.ops().len() as u64, 0);
    for op in 0..total {
        for after in [false, true] {
            let (disk, ledger) = lived(Some((op, after)));
            for keep in images(op * 16).filter(|_| ledger.created) {
                let node = match Node::open(&disk.after_crash(keep), None) {
                    Ok(node) => node,
                    Err(error) => panic!("power cut at {op} (after: {after}), {keep:?}: {error}"),
                };
                let last = node.recovered.last;
                let found = last.map_or(0, |last| last.index + 1);
                assert!(found >= ledger.synced, "power cut at {op}: {found} of {} synced", ledger.synced);
                assert!(last.is_none_or(|last| ledger.appended.contains(&last)), "power cut at {op}");
                lost += ledger.appended.len() as u64 - found;
            }
        }
    }
    assert!(lost > 0, "nothing was ever at stake");
}
