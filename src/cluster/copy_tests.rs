//! Three replicas on simulated disks, one of which lacks what the others gave up.
//!
//! Owns: nothing. Promises: every test owns its disks, its network and its clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use dassie_storage::sim::SimDisk;
use dassie_storage::{
    Apply, Batch, CheckpointStore, CopySource, CopyTarget, FullSpeed, Genesis, Log, LogPoint, LogReader,
    Opened, Options, PageStore, ProposalId, ReplicatedLog, finish_install, read_floor,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::copy::{Carried, Copying, Rate, Receiver, receive, send};
use super::peer::{Answer, EntryId, NoAnswer, Peers, Request};
use super::stream::PeerStream;
use super::tests::{in_a_paused_world, until};
use super::{Birth, Node, Replica, Role, Start, Timing};

const SEGMENT: u64 = 64 << 10;

fn genesis(node: u64) -> Genesis {
    Genesis {
        node,
        store: [u8::try_from(node).expect("small"); 16],
        segment_size: SEGMENT,
        ..super::tests::genesis()
    }
}

/// A state that depends on everything applied and on its order.
#[derive(Clone, Default)]
struct Sum(Rc<Cell<(Option<LogPoint>, u64)>>);

impl Apply for Sum {
    fn applied(&self) -> Option<LogPoint> {
        self.0.get().0
    }

    fn apply(&mut self, batch: &Batch) {
        let (_, sum) = self.0.get();
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&sum.to_le_bytes());
        digest.update(&batch.payload);
        digest.update(&batch.point.hash.to_le_bytes());
        self.0.set((Some(batch.point), digest.finalize()));
    }
}

struct Member {
    disk: SimDisk,
    log: Log<SimDisk>,
    replica: Replica<SimDisk, Sum>,
    sum: Sum,
    checkpoints: Rc<RefCell<CheckpointStore<SimDisk>>>,
    guests: mpsc::UnboundedSender<PeerStream>,
}

/// What lies between sender and receiver.
#[derive(Clone, Copy)]
enum Weather {
    Fair,
    /// The stream ends behind so many bytes, once.
    Cut(usize),
    /// One bit flips behind so many bytes, once.
    Flip(usize),
}

/// The nodes that are up.
#[derive(Clone)]
struct World(Rc<Inside>);

struct Inside {
    members: RefCell<BTreeMap<u64, Rc<Member>>>,
    weather: Cell<Weather>,
    /// Bytes that went through copies.
    carried: Cell<usize>,
    complaints: RefCell<Vec<String>>,
    starts: Cell<u32>,
}

impl Peers for World {
    async fn call(
        &self,
        target: u64,
        _: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        let member = self.member(target).ok_or_else(|| NoAnswer::Unreachable("it is down".into()))?;
        let answer = tokio::time::timeout(patience, member.replica.answer(request)).await;
        let lost = |why: String| NoAnswer::Lost(why);
        answer.map_err(|_| lost("no answer in time".into()))?.map_err(|error| lost(error.to_string()))
    }
}

async fn write_checkpoint(member: &Member) -> LogPoint {
    let (point, sum) = member.sum.0.get();
    let point = point.expect("something is applied");
    let puts = [
        (Bytes::from_static(b"M"), member.replica.membership_record()),
        (Bytes::from_static(b"sum"), Bytes::copy_from_slice(&sum.to_le_bytes())),
    ];
    let mut checkpoints = member.checkpoints.borrow_mut();
    checkpoints.write_delta(point, puts, [], &FullSpeed).await.expect("is written");
    point
}

impl World {
    fn new() -> Self {
        World(Rc::new(Inside {
            members: RefCell::default(),
            weather: Cell::new(Weather::Fair),
            carried: Cell::new(0),
            complaints: RefCell::default(),
            starts: Cell::new(0),
        }))
    }

    fn member(&self, id: u64) -> Option<Rc<Member>> {
        self.0.members.borrow().get(&id).cloned()
    }

    fn up(&self, id: u64) -> Rc<Member> {
        self.member(id).expect("it is up")
    }

    async fn start(&self, id: u64, disk: &SimDisk, birth: Birth) -> io::Result<()> {
        let genesis = match Genesis::load(disk).await? {
            Some(genesis) => genesis,
            None => {
                genesis(id).create(disk).await?;
                genesis(id)
            }
        };
        finish_install(disk, &genesis).await?;
        let floor = read_floor(disk, &genesis).await?.map(|floor| floor.index);
        let (checkpoints, loaded) = CheckpointStore::load(disk, genesis.store, floor).await?;
        let sum = Sum::default();
        let mut membership = None;
        if let Some(loaded) = &loaded {
            let value = u64::from_le_bytes(loaded.objects[&b"sum"[..]][..].try_into().expect("eight bytes"));
            sum.0.set((Some(loaded.point), value));
            membership = loaded.objects.get(&b"M"[..]).cloned();
        }
        let options = Options { tail_bytes: 100_000, ..Options::default() };
        let opened = Log::open(disk, options, &genesis, loaded.map(|loaded| loaded.point)).await?;
        let Opened { log, writer, preparer, reader, .. } = opened;
        spawn_local(writer.run());
        spawn_local(preparer.run());
        let (here, world) = (self.clone(), self.clone());
        let carry = Box::new(move |target, enough| {
            let world = world.clone();
            let carried: std::pin::Pin<Box<dyn Future<Output = Result<Carried, NoAnswer>>>> =
                Box::pin(async move { world.carry(id, target, enough).await });
            carried
        });
        let replica = Replica::start(Start {
            node: id,
            myself: Node::default(),
            log: log.clone(),
            apply: sum.clone(),
            membership,
            peers: Copying { peers: here, carry },
            birth,
            timing: Timing::default(),
        })
        .await?;
        replica.keep_log(2 * SEGMENT);
        let (guests, streams) = mpsc::unbounded_channel();
        let checkpoints = Rc::new(RefCell::new(checkpoints));
        let disk = disk.clone();
        let to = Receiver { disk: disk.clone(), genesis, log: reader, used: Box::new(|_, _| Ok(Vec::new())) };
        spawn_local(self.clone().take_in(id, to, streams));
        let member = Member { disk, log, replica, sum, checkpoints, guests };
        self.0.members.borrow_mut().insert(id, Rc::new(member));
        self.0.starts.set(self.0.starts.get() + 1);
        Ok(())
    }

    async fn stop(&self, id: u64) -> SimDisk {
        let member = self.0.members.borrow_mut().remove(&id).expect("it is up");
        member.replica.shutdown().await.expect("closes");
        member.disk.clone()
    }

    /// As the product does: the newest checkpoint is held, a stream made, what the peer lacks sent.
    async fn carry(&self, from: u64, to: u64, enough: EntryId) -> Result<Carried, NoAnswer> {
        let unreachable = |why: &dyn std::fmt::Display| NoAnswer::Unreachable(why.to_string());
        let member = self.member(from).ok_or_else(|| unreachable(&"this node is down"))?;
        let guest = self.member(to).ok_or_else(|| unreachable(&"the peer is down"))?;
        let pages = PageStore::open(&member.disk, []).await.map_err(|e| unreachable(&e))?;
        let source = {
            let checkpoints = member.checkpoints.borrow();
            CopySource::open(&checkpoints, &pages, &member.log.reader(), |_| true).await
        };
        let source = source.map_err(|e| unreachable(&e))?.ok_or_else(|| unreachable(&"no checkpoint"))?;
        let (ours, theirs) = self.pipe();
        guest.guests.send(theirs).map_err(|e| unreachable(&e))?;
        drop((member, guest));
        send(&source, enough, ours, &Rate::new(64 << 20))
            .await
            .map_err(|error| NoAnswer::Lost(error.to_string()))
    }

    /// Two ends, and the weather between them.
    fn pipe(&self) -> (PeerStream, PeerStream) {
        let (a, mut near) = tokio::io::duplex(64 << 10);
        let (mut far, b) = tokio::io::duplex(64 << 10);
        let world = self.clone();
        spawn_local(async move {
            let (mut forth, mut back) = (vec![0; 8 << 10], vec![0; 8 << 10]);
            let mut passed = 0;
            loop {
                tokio::select! {
                    n = near.read(&mut forth) => {
                        let Ok(n @ 1..) = n else { break };
                        let before = passed;
                        passed += n;
                        world.0.carried.set(world.0.carried.get() + n);
                        match world.0.weather.get() {
                            Weather::Cut(at) if passed > at => {
                                world.0.weather.set(Weather::Fair);
                                break;
                            }
                            Weather::Flip(at) if passed > at => {
                                forth[at.saturating_sub(before)] ^= 16;
                                world.0.weather.set(Weather::Fair);
                            }
                            Weather::Fair | Weather::Cut(_) | Weather::Flip(_) => {}
                        }
                        if far.write_all(&forth[..n]).await.is_err() {
                            break;
                        }
                    }
                    n = far.read(&mut back) => {
                        let Ok(n @ 1..) = n else { break };
                        if near.write_all(&back[..n]).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
        (PeerStream::new(ar, aw), PeerStream::new(br, bw))
    }

    /// As the product does: takes copies in, and with a whole one starts again.
    async fn take_in(self, id: u64, to: Receiver<SimDisk>, mut streams: mpsc::UnboundedReceiver<PeerStream>) {
        let mut copy: Option<CopyTarget<SimDisk>> = None;
        while let Some(stream) = streams.recv().await {
            match receive(&to, stream, &mut copy).await {
                Ok(Carried::Has) => {}
                Ok(Carried::Ready) => {
                    let disk = self.stop(id).await;
                    copy.take().expect("it is whole").commit().await.expect("is decided");
                    return self.start(id, &disk, Birth::Joins).await.expect("starts with the copy");
                }
                Err(error) => self.0.complaints.borrow_mut().push(error.to_string()),
            }
        }
    }

    async fn leader(&self) -> Rc<Member> {
        let mut found = None;
        until(|| {
            found = self.0.members.borrow().values().find(|member| member.replica.leads().is_some()).cloned();
            found.is_some()
        })
        .await;
        found.expect("looked for")
    }

    /// Proposes through whoever leads, and waits until all that are up have applied it.
    async fn write(&self, batches: u64) {
        let leader = self.leader().await;
        let Role::Leader { term } = *leader.replica.role().borrow() else { panic!("it leads") };
        for n in 0..batches {
            let next = leader.log.last().map_or(0, |last| last.index + 1);
            let payload = Bytes::from(vec![u8::try_from(n % 251).expect("small") + 1; 4000]);
            leader.replica.propose(payload, ProposalId { term, ordinal: n });
            until(|| leader.sum.applied().is_some_and(|point| point.index >= next)).await;
        }
        self.level().await;
    }

    /// Waits until all that are up have applied the same, and compares what became of it.
    async fn level(&self) {
        let leader = self.leader().await;
        until(|| {
            let members = self.0.members.borrow();
            let target = leader.log.last().map(|last| last.index);
            members.values().all(|member| member.sum.applied().map(|point| point.index) == target)
        })
        .await;
        let states: Vec<_> = self.0.members.borrow().values().map(|member| member.sum.0.get()).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
    }
}

/// Three nodes of which the third lacks what the others gave up; the first leads. Answers the disk of the third.
async fn with_one_behind(world: &World, third_begins: bool) -> SimDisk {
    let founders = (1..=3).map(|id| (id, Node::default())).collect();
    let third = SimDisk::new();
    world.start(2, &SimDisk::new(), Birth::Joins).await.expect("starts");
    if third_begins {
        world.start(3, &third, Birth::Joins).await.expect("starts");
    }
    world.start(1, &SimDisk::new(), Birth::Founds(founders)).await.expect("starts");
    world.write(40).await;
    if third_begins {
        world.stop(3).await;
    }
    world.write(120).await;
    for id in [1, 2] {
        let member = world.up(id);
        let point = write_checkpoint(&member).await;
        let floor = member.replica.checkpointed(point).await.expect("rises").expect("a floor");
        let end = member.log.point(floor).expect("reads").expect("the floor").end;
        assert!(point.end - end <= 3 * SEGMENT, "the floor is {} below the checkpoint", point.end - end);
        // Something lives in the first segment; what else is whole below the floor goes.
        let dead: Vec<u64> =
            member.log.segments().into_iter().filter(|s| *s > 0 && s + SEGMENT <= end).collect();
        assert!(dead.len() > 3, "{dead:?}");
        member.log.retire(&dead).expect("goes");
    }
    world.write(5).await;
    third
}

async fn comes_back(world: &World, third: &SimDisk) {
    world.start(3, third, Birth::Joins).await.expect("starts");
    let before = world.0.starts.get();
    until(|| world.0.starts.get() > before).await;
    world.level().await;
    world.write(5).await;
    let (first, third) = (world.leader().await, world.up(3));
    let checkpoint = third.log.floor().expect("a floor").end;
    let below = |log: &Log<SimDisk>| -> Vec<u64> {
        log.segments().into_iter().filter(|start| *start < checkpoint).collect()
    };
    assert_eq!(below(&first.log), below(&third.log), "holes stay holes");
    assert_eq!(batches(&first.log.reader(), 0), batches(&third.log.reader(), 0), "what lives is there");
}

/// All batches of one segment, from its first byte.
fn batches(log: &LogReader<SimDisk>, start: u64) -> Vec<Batch> {
    let mut at = start;
    std::iter::from_fn(|| {
        let batch = log.batch(at).ok().filter(|batch| batch.point.position < start + SEGMENT)?;
        at = batch.point.end;
        Some(batch)
    })
    .collect()
}

#[test]
fn a_node_that_comes_back_below_the_floor_gets_a_copy_and_catches_up() {
    in_a_paused_world(async {
        let world = World::new();
        let third = with_one_behind(&world, true).await;
        comes_back(&world, &third).await;
        assert_eq!(*world.0.complaints.borrow(), Vec::<String>::new());
        // And it is as good as the others: one of them goes, it votes.
        world.stop(2).await;
        world.write(5).await;
    });
}

#[test]
fn an_empty_node_gets_a_copy() {
    in_a_paused_world(async {
        let world = World::new();
        let third = with_one_behind(&world, false).await;
        comes_back(&world, &third).await;
    });
}

#[test]
fn a_copy_that_is_cut_goes_on_where_it_stopped() {
    in_a_paused_world(async {
        let world = World::new();
        let third = with_one_behind(&world, false).await;
        world.0.weather.set(Weather::Cut(200_000));
        comes_back(&world, &third).await;
        assert!(!world.0.complaints.borrow().is_empty(), "it was cut");
        // What came in before the cut did not come again, but for one chunk.
        let all: u64 = {
            let member = world.leader().await;
            let checkpoints = member.checkpoints.borrow();
            let pages = PageStore::open(&member.disk, []).await.expect("opens");
            let held = CopySource::open(&checkpoints, &pages, &member.log.reader(), |_| true).await;
            held.expect("holds").expect("a checkpoint").offer().bytes()
        };
        let carried = world.0.carried.get() as u64;
        assert!(carried < all + 300_000, "{carried} bytes for {all}");
    });
}

#[test]
fn a_flipped_bit_is_refused_by_name_and_nothing_of_it_counts() {
    in_a_paused_world(async {
        for at in [50, 1_000, 70_000, 150_000] {
            let world = World::new();
            let third = with_one_behind(&world, false).await;
            world.0.weather.set(Weather::Flip(at));
            comes_back(&world, &third).await;
            let complaints = world.0.complaints.borrow();
            assert!(!complaints.is_empty(), "bit {at} was flipped");
        }
    });
}

#[test]
fn a_dead_node_does_not_hold_the_log() {
    in_a_paused_world(async {
        let world = World::new();
        let third = with_one_behind(&world, true).await;
        for _ in 0..3 {
            world.write(60).await;
            let leader = world.leader().await;
            let point = write_checkpoint(&leader).await;
            let floor = leader.replica.checkpointed(point).await.expect("rises").expect("a floor");
            let end = leader.log.point(floor).expect("reads").expect("the floor").end;
            assert!(point.end - end <= 3 * SEGMENT);
        }
        comes_back(&world, &third).await;
    });
}
