//! A disk that keeps only what was synced, and loses the rest in every way a power cut can.
//!
//! Owns: files in memory, each with a durable image and the sector writes that are not synced; names likewise. Promises:
//! deterministic: the same calls, faults and seeds give the same bytes, the same operations, the same crash. Has no clock:
//! latency comes from an injected sleep. Does not know: what is stored.
//!
//! Only operations that change something are counted and traced; power may be cut before or after each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use crate::disk::{Disk, File, fault};
use crate::format::crc64;
use crate::queue::lock;

/// What a power cut can tear apart.
const SECTOR: usize = 512;
const CHUNK: usize = 4096;

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// `Disk::create`.
    Create,
    /// `File::write_at`.
    Write,
    /// `File::sync`.
    Sync,
    /// `Disk::rename`.
    Rename,
    /// `Disk::remove`.
    Remove,
    /// `Disk::create_dir`.
    CreateDir,
    /// `Disk::sync_dir`.
    SyncDir,
    /// A read: can fail or lie, is neither counted nor traced.
    Read,
}

/// One operation as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What.
    pub kind: OpKind,
    /// Where.
    pub path: String,
    /// Offset of a write, length of a creation.
    pub offset: u64,
    /// Bytes of a write.
    pub len: usize,
    /// Checksum of the bytes written.
    pub content: u64,
}

/// What a disk does instead of its duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails. A failed sync drops what it should have made durable, as page caches do.
    Fail(io::ErrorKind),
    /// A write stops after so many bytes, then fails.
    Short(usize),
    /// A sync answers well and makes nothing durable.
    Lie,
    /// A write lands so many bytes further on, and is reported as well done.
    Misdirect(u64),
    /// A read answers with this bit (of the bytes asked for) flipped.
    Flip(usize),
}

/// What is left of the unsynced after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// Every sector, size and name by the toss of a coin.
    Subset(u64),
    /// All, but the last write is cut at a random byte.
    Torn(u64),
    /// All, but one sector in flight has random bytes.
    Garbage(u64),
    /// Names and sizes; content reads as zero or as before.
    Sizes,
    /// Names alone: a renamed file without its content.
    Names,
}

/// Waits before an operation: the simulation's clock decides how long.
pub type Sleep = Arc<dyn Fn(OpKind, usize) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Content in chunks that clones share, so that an image of a crash costs only what differs.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    chunks: BTreeMap<u64, Arc<[u8; CHUNK]>>,
}

fn size(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

impl Content {
    fn read(&self, offset: u64, len: usize) -> Option<Bytes> {
        if offset + len as u64 > self.len {
            return None;
        }
        let mut out = BytesMut::zeroed(len);
        let mut at = 0;
        while at < len {
            let here = offset + at as u64;
            let inside = size(here % CHUNK as u64);
            let n = (CHUNK - inside).min(len - at);
            if let Some(chunk) = self.chunks.get(&(here / CHUNK as u64)) {
                out[at..at + n].copy_from_slice(&chunk[inside..inside + n]);
            }
            at += n;
        }
        Some(out.freeze())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        let mut at = 0;
        while at < bytes.len() {
            let here = offset + at as u64;
            let inside = size(here % CHUNK as u64);
            let n = (CHUNK - inside).min(bytes.len() - at);
            let chunk = self.chunks.entry(here / CHUNK as u64).or_insert_with(|| Arc::new([0; CHUNK]));
            Arc::make_mut(chunk)[inside..inside + n].copy_from_slice(&bytes[at..at + n]);
            at += n;
        }
    }
}

/// A part of one sector, written and not synced.
#[derive(Clone)]
struct SectorWrite {
    op: u64,
    offset: u64,
    bytes: Bytes,
}

#[derive(Clone, Default)]
struct Inode {
    /// What a read sees.
    now: Content,
    /// What a power cut leaves for sure.
    durable: Content,
    unsynced: Vec<SectorWrite>,
}

#[derive(Clone)]
enum NameOp {
    Dir(String),
    Link(String, u64),
    Rename(String, String, u64),
    Unlink(String),
}

impl NameOp {
    fn dir(&self) -> &str {
        match self {
            NameOp::Dir(path) | NameOp::Link(path, _) | NameOp::Rename(path, ..) | NameOp::Unlink(path) => {
                parent(path)
            }
        }
    }

    fn apply(&self, tree: &mut Tree) {
        match self {
            NameOp::Dir(path) => {
                tree.dirs.insert(path.clone());
            }
            NameOp::Link(path, inode) => {
                tree.files.insert(path.clone(), *inode);
            }
            NameOp::Rename(from, to, inode) => {
                // A rename may survive when the creation before it did not.
                tree.files.remove(from);
                tree.files.insert(to.clone(), *inode);
            }
            NameOp::Unlink(path) => {
                tree.files.remove(path);
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[derive(Clone, Default)]
struct Tree {
    dirs: BTreeSet<String>,
    files: BTreeMap<String, u64>,
}

struct Planned {
    kind: OpKind,
    path: String,
    skip: u64,
    fault: Fault,
}

#[derive(Default)]
struct World {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    now: Tree,
    durable: Tree,
    unsynced: Vec<NameOp>,
    locks: BTreeSet<String>,
    ops: Vec<Op>,
    /// Power goes before (false) or after (true) the operation of this number.
    cut: Option<(u64, bool)>,
    down: bool,
    faults: Vec<Planned>,
    capacity: Option<u64>,
}

/// The simulated disk. Clones share one disk.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    sleep: Option<Sleep>,
}

/// A file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    path: String,
}

/// A lock of a [`SimDisk`]; gone with the power.
pub struct SimLock {
    disk: SimDisk,
    path: String,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        lock(&self.disk.world).locks.remove(&self.path);
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk after {} operations", lock(&self.world).ops.len())
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        SimDisk::new()
    }
}

/// The generator splitmix64: a few lines, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        size(self.next() % bound.max(1) as u64)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

fn power_lost() -> io::Error {
    io::Error::other("power lost")
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk { world: Arc::default(), sleep: None }
    }

    /// The same disk, where every operation waits first.
    pub fn with_sleep(mut self, sleep: Sleep) -> SimDisk {
        self.sleep = Some(sleep);
        self
    }

    /// Everything that was asked to change, in order.
    pub fn ops(&self) -> Vec<Op> {
        lock(&self.world).ops.clone()
    }

    /// Cuts the power before or after the operation with this number (from 0). From then on every operation fails.
    pub fn cut_power_at(&self, op: u64, after: bool) {
        lock(&self.world).cut = Some((op, after));
    }

    /// Cuts the power now.
    pub fn cut_power(&self) {
        lock(&self.world).down = true;
    }

    /// Whether the power is gone.
    pub fn is_down(&self) -> bool {
        lock(&self.world).down
    }

    /// Plans a fault for an operation of this kind on a path that begins so, after `skip` others like it.
    pub fn inject(&self, kind: OpKind, path: &str, skip: u64, fault: Fault) {
        lock(&self.world).faults.push(Planned { kind, path: path.to_owned(), skip, fault });
    }

    /// Faults planned that have not happened yet.
    pub fn faults_left(&self) -> usize {
        lock(&self.world).faults.len()
    }

    /// Lets the disk hold at most so many bytes of files.
    pub fn limit(&self, capacity: Option<u64>) {
        lock(&self.world).capacity = capacity;
    }

    /// Flips bits of a file on the medium: `byte ^= mask`.
    pub fn corrupt(&self, path: &str, offset: u64, mask: u8) {
        let mut world = lock(&self.world);
        let inode = world.now.files[path];
        let inode = world.inodes.get_mut(&inode).expect("a named file exists");
        for content in [&mut inode.now, &mut inode.durable] {
            if let Some(byte) = content.read(offset, 1) {
                content.write(offset, &[byte[0] ^ mask]);
            }
        }
    }

    /// All files with their lengths.
    pub fn files(&self) -> Vec<(String, u64)> {
        let world = lock(&self.world);
        world.now.files.iter().map(|(path, inode)| (path.clone(), world.inodes[inode].now.len)).collect()
    }

    /// An independent copy: the image as a read sees it, all of it durable.
    pub fn copy(&self) -> SimDisk {
        self.after_crash(Keep::All)
    }

    /// What the disk holds when the power comes back. This one is not changed: many outcomes can be looked at.
    pub fn after_crash(&self, keep: Keep) -> SimDisk {
        let world = lock(&self.world);
        let mut random = Random(match keep {
            Keep::Subset(seed) | Keep::Torn(seed) | Keep::Garbage(seed) => seed,
            _ => 0,
        });
        let mut tree = world.durable.clone();
        for op in &world.unsynced {
            let kept = match keep {
                Keep::Nothing => false,
                Keep::Subset(_) => random.coin(),
                _ => true,
            };
            if kept {
                op.apply(&mut tree);
            }
        }
        let dirs = tree.dirs.clone();
        tree.files.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
        let flying: Vec<(u64, usize)> = world
            .inodes
            .iter()
            .flat_map(|(&inode, file)| (0..file.unsynced.len()).map(move |i| (inode, i)))
            .collect();
        let victim = flying.get(random.below(flying.len())).copied();
        let last = world.inodes.values().flat_map(|file| file.unsynced.iter().map(|w| w.op)).max();
        let torn: usize = world
            .inodes
            .values()
            .flat_map(|file| &file.unsynced)
            .filter(|write| Some(write.op) == last)
            .map(|write| write.bytes.len())
            .sum();
        let mut left = random.below(torn);
        let mut inodes = BTreeMap::new();
        for &number in tree.files.values() {
            let file = &world.inodes[&number];
            let mut content = file.durable.clone();
            let grown = match keep {
                Keep::Nothing | Keep::Names => false,
                Keep::Subset(_) => random.coin(),
                _ => true,
            };
            if grown {
                content.len = content.len.max(file.now.len);
            }
            for (i, write) in file.unsynced.iter().enumerate() {
                match keep {
                    Keep::Nothing | Keep::Sizes | Keep::Names => {}
                    Keep::Subset(_) if random.coin() => {}
                    Keep::Torn(_) if Some(write.op) == last => {
                        let n = left.min(write.bytes.len());
                        left -= n;
                        if n > 0 {
                            content.write(write.offset, &write.bytes[..n]);
                        }
                    }
                    Keep::Garbage(_) if victim == Some((number, i)) => {
                        let noise: Vec<u8> =
                            write.bytes.iter().map(|_| random.next().to_le_bytes()[0]).collect();
                        content.write(write.offset, &noise);
                    }
                    _ => content.write(write.offset, &write.bytes),
                }
            }
            inodes.insert(number, Inode { now: content.clone(), durable: content, unsynced: Vec::new() });
        }
        let fresh = World {
            inodes,
            next_inode: world.next_inode,
            now: tree.clone(),
            durable: tree,
            capacity: world.capacity,
            ..World::default()
        };
        SimDisk { world: Arc::new(Mutex::new(fresh)), sleep: self.sleep.clone() }
    }

    async fn pause(&self, kind: OpKind, len: usize) {
        if let Some(sleep) = &self.sleep {
            sleep(kind, len).await;
        }
    }

    /// Counts an operation, performs it unless the power or a fault says otherwise.
    fn perform<T>(
        &self,
        op: Op,
        name: &'static str,
        work: impl FnOnce(&mut World, u64, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut world = lock(&self.world);
        let (path, offset) = (op.path.clone(), (op.kind == OpKind::Write).then_some(op.offset));
        let attempt = || {
            if world.down {
                return Err(power_lost());
            }
            let number = world.ops.len() as u64;
            if world.cut == Some((number, false)) {
                world.down = true;
                return Err(power_lost());
            }
            let planned = world.fault(op.kind, &op.path);
            world.ops.push(op);
            if let Some(Fault::Fail(kind)) = planned {
                if matches!(world.ops.last(), Some(op) if op.kind == OpKind::Sync) {
                    let _ = work(&mut world, number, planned);
                }
                return Err(kind.into());
            }
            let result = work(&mut world, number, planned);
            if world.cut == Some((number, true)) {
                world.down = true;
                return Err(power_lost()); // it happened, but nobody was told
            }
            result
        };
        attempt().map_err(|e| fault(name, &path, offset, e))
    }
}

impl World {
    fn fault(&mut self, kind: OpKind, path: &str) -> Option<Fault> {
        let mut due = None;
        for (i, planned) in self.faults.iter_mut().enumerate() {
            if planned.kind != kind || !path.starts_with(&planned.path) {
                continue;
            }
            match planned.skip.checked_sub(1) {
                Some(skip) => planned.skip = skip,
                None => due = due.or(Some(i)),
            }
        }
        due.map(|i| self.faults.remove(i).fault)
    }

    fn used(&self) -> u64 {
        self.now.files.values().map(|inode| self.inodes[inode].now.len).sum()
    }

    fn rename_in(&mut self, op: NameOp) {
        op.apply(&mut self.now);
        self.unsynced.push(op);
    }
}

fn op(kind: OpKind, path: &str) -> Op {
    Op { kind, path: path.to_owned(), offset: 0, len: 0, content: 0 }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    async fn create(&self, path: &str, len: u64) -> io::Result<SimFile> {
        self.pause(OpKind::Create, 0).await;
        let inode =
            self.perform(Op { offset: len, ..op(OpKind::Create, path) }, "create", |world, _, _| {
                if world.now.files.contains_key(path) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                if !parent(path).is_empty() && !world.now.dirs.contains(parent(path)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                if world.capacity.is_some_and(|capacity| world.used() + len > capacity) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let number = world.next_inode;
                world.next_inode += 1;
                let now = Content { len, ..Content::default() };
                world.inodes.insert(number, Inode { now, ..Inode::default() });
                world.rename_in(NameOp::Link(path.to_owned(), number));
                Ok(number)
            })?;
        Ok(SimFile { disk: self.clone(), inode, path: path.to_owned() })
    }

    async fn open(&self, path: &str) -> io::Result<SimFile> {
        let world = lock(&self.world);
        if world.down {
            return Err(fault("open", path, None, power_lost()));
        }
        match world.now.files.get(path) {
            Some(&inode) => Ok(SimFile { disk: self.clone(), inode, path: path.to_owned() }),
            None => Err(fault("open", path, None, io::ErrorKind::NotFound.into())),
        }
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        assert_eq!(parent(from), parent(to), "renames stay in their directory");
        self.pause(OpKind::Rename, 0).await;
        self.perform(op(OpKind::Rename, from), "rename", |world, _, _| {
            let Some(&inode) = world.now.files.get(from) else { return Err(io::ErrorKind::NotFound.into()) };
            world.rename_in(NameOp::Rename(from.to_owned(), to.to_owned(), inode));
            Ok(())
        })
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        self.pause(OpKind::Remove, 0).await;
        self.perform(op(OpKind::Remove, path), "remove", |world, _, _| {
            if !world.now.files.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            world.rename_in(NameOp::Unlink(path.to_owned()));
            Ok(())
        })
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let world = lock(&self.world);
        if world.down {
            return Err(fault("list", dir, None, power_lost()));
        }
        if !dir.is_empty() && !world.now.dirs.contains(dir) {
            return Err(fault("list", dir, None, io::ErrorKind::NotFound.into()));
        }
        let inside = world.now.files.keys().filter(|path| parent(path) == dir);
        Ok(inside.map(|path| path.rsplit('/').next().unwrap_or(path).to_owned()).collect())
    }

    async fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.pause(OpKind::CreateDir, 0).await;
        self.perform(op(OpKind::CreateDir, dir), "create directory", |world, _, _| {
            if !world.now.dirs.contains(dir) {
                world.rename_in(NameOp::Dir(dir.to_owned()));
            }
            Ok(())
        })
    }

    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.pause(OpKind::SyncDir, 0).await;
        self.perform(op(OpKind::SyncDir, dir), "sync directory", |world, _, planned| {
            let (due, rest) = std::mem::take(&mut world.unsynced).into_iter().partition(|op| op.dir() == dir);
            world.unsynced = rest;
            if planned != Some(Fault::Lie) {
                let due: Vec<NameOp> = due;
                due.iter().for_each(|op| op.apply(&mut world.durable));
            }
            Ok(())
        })
    }

    async fn lock(&self, path: &str) -> io::Result<SimLock> {
        if !lock(&self.world).locks.insert(path.to_owned()) {
            return Err(fault("lock", path, None, io::ErrorKind::WouldBlock.into()));
        }
        Ok(SimLock { disk: self.clone(), path: path.to_owned() })
    }
}

impl File for SimFile {
    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.world).inodes[&self.inode].now.len)
    }

    fn read_at_sync(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut world = lock(&self.disk.world);
        let failed = |e: io::Error| fault("read", &self.path, Some(offset), e);
        if world.down {
            return Err(failed(power_lost()));
        }
        let planned = world.fault(OpKind::Read, &self.path);
        let read = world.inodes[&self.inode].now.read(offset, len);
        let bytes = read.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        match planned {
            Some(Fault::Fail(kind)) => Err(failed(kind.into())),
            Some(Fault::Flip(bit)) if !bytes.is_empty() => {
                let mut bytes = BytesMut::from(bytes);
                let bit = bit % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                Ok(bytes.freeze())
            }
            _ => Ok(bytes),
        }
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let bytes = Bytes::from(parts.concat());
        self.disk.pause(OpKind::Write, bytes.len()).await;
        let (len, content) = (bytes.len(), crc64(&bytes));
        let asked = Op { kind: OpKind::Write, path: self.path.clone(), offset, len, content };
        self.disk.perform(asked, "write", |world, number, planned| {
            let (mut at, mut bytes) = (offset, bytes);
            match planned {
                Some(Fault::Short(n)) => bytes.truncate(n),
                Some(Fault::Misdirect(by)) => at += by,
                _ => {}
            }
            let grows = (at + bytes.len() as u64).saturating_sub(world.inodes[&self.inode].now.len);
            if world.capacity.is_some_and(|capacity| grows > 0 && world.used() + grows > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let file = world.inodes.get_mut(&self.inode).expect("an open file exists");
            file.now.write(at, &bytes);
            let mut done = 0;
            while done < bytes.len() {
                let here = at + done as u64;
                let n = (SECTOR - size(here % SECTOR as u64)).min(bytes.len() - done);
                let bytes = bytes.slice(done..done + n);
                file.unsynced.push(SectorWrite { op: number, offset: here, bytes });
                done += n;
            }
            if matches!(planned, Some(Fault::Short(_))) {
                Err(io::ErrorKind::WriteZero.into())
            } else {
                Ok(())
            }
        })
    }

    async fn sync(&self) -> io::Result<()> {
        self.disk.pause(OpKind::Sync, 0).await;
        self.disk.perform(op(OpKind::Sync, &self.path), "sync", |world, _, planned| {
            let file = world.inodes.get_mut(&self.inode).expect("an open file exists");
            // After a failed sync the page cache counts these as clean: nothing will ever write them again.
            let writes = std::mem::take(&mut file.unsynced);
            if planned.is_none() {
                file.durable.len = file.durable.len.max(file.now.len);
                writes.iter().for_each(|write| file.durable.write(write.offset, &write.bytes));
            }
            Ok(())
        })
    }

    fn map(&self) -> io::Result<Bytes> {
        self.read_at_sync(0, size(self.len()?))
    }
}
