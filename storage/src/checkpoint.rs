//! Checkpoints: the state as it stood at one log point, as a base and the changes since.
//!
//! Owns: `checkpoint/base-<20 digits>` and `delta-<20 digits>`, named by the log index they stand for. Promises: a file under
//! such a name is whole (it is synced before it is renamed into place), so one that does not verify is damage and named; an
//! old file goes only when what replaces it is durable. Does not know: what the objects mean.
//!
//! A file is a header, blocks, a footer. Header, 128 bytes: magic `DCKP`, u16 version 1, u8 kind (1 base, 2 delta), u8 0, store
//! UUID (16), the point it stands for (six u64: index, term, leader, position, end, hash), index and hash of the point
//! the delta follows (zero in a base), zeros, CRC-64/NVME of bytes 0..120. Block: u32 length, u32 CRC-32C of block number
//! (8 bytes) and content, then entries in key order, each u8 operation (1 put, 2 remove), u8 key length, u16 0, u32 value
//! length, key, value. Footer, 24 bytes: u32 0xFFFF_FFFF, magic `DEND`, u64 number of entries, CRC-64/NVME of those 16
//! bytes and the header's checksum. Little-endian; nothing follows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;

use bytes::{Bytes, BytesMut};

use crate::disk::{Disk, File, damaged};
use crate::format::{LogPoint, Uuid, crc64};
use crate::real::RealDisk;

/// The longest key.
pub const MAX_KEY: usize = 64;
const HEADER: usize = 128;
const FOOTER: usize = 24;
const BLOCK: usize = 256 << 10;
const NEW: &str = "checkpoint/new";
/// Apart from [`NEW`]: a copy is taken in while this store's own checkpoints go on.
const ADOPTING: &str = "checkpoint/adopting";
/// More deltas than this are merged whatever their size: each is a file to open and a heap entry to carry.
const MAX_DELTAS: usize = 64;
const MAGIC: [u8; 4] = *b"DCKP";

/// Lets others go first: awaited between blocks, with the bytes just written.
#[allow(async_fn_in_trait)] // static dispatch only
pub trait Pace {
    /// Returns when more may be written.
    async fn pause(&self, bytes: usize);
}

/// No pause at all.
#[derive(Clone, Copy, Debug)]
pub struct FullSpeed;

impl Pace for FullSpeed {
    async fn pause(&self, _bytes: usize) {}
}

/// A state as loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What it stands for.
    pub point: LogPoint,
    /// The objects.
    pub objects: BTreeMap<Bytes, Bytes>,
    /// Newer files that did not verify; this state is older than they were, and more log is to be replayed. Index pages named here
    /// may have been reused since: read each once (the owner tells) before relying on this state.
    pub passed_over: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Base,
    Delta,
}

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    index: u64,
    bytes: u64,
}

impl Entry {
    fn path(&self) -> String {
        path(self.kind, self.index)
    }
}

fn path(kind: Kind, index: u64) -> String {
    match kind {
        Kind::Base => format!("checkpoint/base-{index:020}"),
        Kind::Delta => format!("checkpoint/delta-{index:020}"),
    }
}

/// The checkpoints of a store. For one task (maintenance).
pub struct CheckpointStore<D: Disk = RealDisk> {
    disk: D,
    store: Uuid,
    /// The base, then the deltas that follow it, oldest first.
    chain: Vec<Entry>,
    point: Option<LogPoint>,
    /// Damaged newer files.
    passed_over: Vec<Entry>,
}

impl<D: Disk> CheckpointStore<D> {
    /// Opens the store and loads the newest state; `None` when no checkpoint was ever written.
    ///
    /// `floor` is the index of the log floor ([`crate::read_floor`]). When the newest delta is damaged, the state before it
    /// serves if the log still has everything behind that one; else the damage is the answer.
    pub async fn load(
        disk: &D,
        store: Uuid,
        floor: Option<u64>,
    ) -> io::Result<(CheckpointStore<D>, Option<Loaded>)> {
        let (mut this, loaded, (bases, deltas)) = CheckpointStore::read(disk, store, floor).await?;
        this.sweep(&bases, &deltas).await?;
        Ok((this, loaded))
    }

    /// The newest state as [`CheckpointStore::load`] loads it; changes nothing.
    pub(crate) async fn look(disk: &D, store: Uuid, floor: Option<u64>) -> io::Result<Option<Loaded>> {
        CheckpointStore::read(disk, store, floor).await.map(|(_, loaded, _)| loaded)
    }

    async fn read(
        disk: &D,
        store: Uuid,
        floor: Option<u64>,
    ) -> io::Result<(CheckpointStore<D>, Option<Loaded>, (Vec<Entry>, Vec<Entry>))> {
        let mut this = CheckpointStore {
            disk: disk.clone(),
            store,
            chain: Vec::new(),
            point: None,
            passed_over: Vec::new(),
        };
        let (bases, deltas) = this.files().await?;
        let Some(base) = bases.last().cloned() else {
            if let Some(delta) = deltas.first() {
                return Err(damaged(&delta.path(), 0, "a delta without its base"));
            }
            return match floor {
                // The first checkpoint is durable before the floor moves: it was here.
                Some(floor) => Err(damaged(
                    "checkpoint",
                    0,
                    format_args!("no checkpoint, yet the log is purged up to {floor}"),
                )),
                None => Ok((this, None, (bases, deltas))),
            };
        };
        let mut objects = BTreeMap::new();
        let mut point = this.read_into(&base, None, &mut objects).await?;
        this.chain.push(base.clone());
        let mut passed_over = Vec::new();
        for delta in deltas.iter().filter(|delta| delta.index > base.index) {
            let mut changes = BTreeMap::new();
            match this.read_changes(delta, Some(point), &mut changes).await {
                Ok(next) => {
                    for (key, change) in changes {
                        match change {
                            Some(value) => objects.insert(key, value),
                            None => objects.remove(&key),
                        };
                    }
                    point = next;
                    this.chain.push(delta.clone());
                }
                // Only the newest: a hole in the middle makes all that follow it useless, and that is for a human to see.
                Err(error) => {
                    let newest = deltas.last().is_some_and(|last| last.index == delta.index);
                    let damage = error.kind() == io::ErrorKind::InvalidData;
                    if !newest || !damage || floor.is_some_and(|floor| floor > point.index) {
                        return Err(error);
                    }
                    passed_over.push(error.to_string());
                }
            }
        }
        if let Some(floor) = floor.filter(|&floor| floor > point.index) {
            let reason =
                format!("the newest checkpoint stands for {}, the log is purged up to {floor}", point.index);
            return Err(damaged(&this.chain.last().expect("the base").path(), 0, reason));
        }
        this.point = Some(point);
        Ok((this, Some(Loaded { point, objects, passed_over }), (bases, deltas)))
    }

    /// What the newest durable state stands for.
    pub fn point(&self) -> Option<LogPoint> {
        self.point
    }

    /// Writes what changed since the last state: `puts` and `removes` have no key in common. The first call writes a base.
    /// Durable when it returns; on an error (a full disk) nothing has changed.
    pub async fn write_delta(
        &mut self,
        point: LogPoint,
        puts: impl IntoIterator<Item = (Bytes, Bytes)>,
        removes: impl IntoIterator<Item = Bytes>,
        pace: &impl Pace,
    ) -> io::Result<()> {
        if let Some(last) = self.point {
            assert!(point.index > last.index, "checkpoint {} after {}", point.index, last.index);
        }
        self.set_aside().await?;
        let mut changes: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        changes.extend(puts.into_iter().map(|(key, value)| (key, Some(value))));
        changes.extend(removes.into_iter().map(|key| (key, None)));
        let (kind, follows) = match self.point {
            None => (Kind::Base, None),
            Some(last) => (Kind::Delta, Some(last)),
        };
        let mut out = Output::begin(&self.disk, NEW, &self.store, kind, point, follows).await?;
        for (key, change) in &changes {
            if kind == Kind::Base && change.is_none() {
                continue;
            }
            out.entry(key, change.as_ref(), pace).await?;
        }
        let bytes = out.finish(&self.disk, &path(kind, point.index)).await?;
        self.chain.push(Entry { kind, index: point.index, bytes });
        self.point = Some(point);
        Ok(())
    }

    /// Whether the deltas weigh more than the base (or are too many), so that [`merge`](CheckpointStore::merge) pays.
    pub fn wants_merge(&self) -> bool {
        let Some((base, deltas)) = self.chain.split_first() else { return false };
        deltas.len() > MAX_DELTAS || deltas.iter().map(|delta| delta.bytes).sum::<u64>() > base.bytes
    }

    /// Merges base and deltas into a new base, streaming from file to file, and removes the old files.
    pub async fn merge(&mut self, pace: &impl Pace) -> io::Result<()> {
        let Some(point) = self.point.filter(|_| self.chain.len() > 1) else { return Ok(()) };
        let mut inputs = Vec::new();
        let mut follows = None;
        for entry in &self.chain {
            let input = Input::open(&self.disk, &self.store, entry, entry.path(), follows).await?;
            follows = Some(input.point);
            inputs.push(input);
        }
        let to = path(Kind::Base, point.index);
        let bytes = join(&self.disk, inputs, &self.store, point, (NEW, &to), pace).await?;
        let old =
            std::mem::replace(&mut self.chain, vec![Entry { kind: Kind::Base, index: point.index, bytes }]);
        // The new base is durable; from here on a crash leaves files that the next start removes.
        for entry in old {
            self.disk.remove(&entry.path()).await?;
        }
        self.disk.sync_dir("checkpoint").await
    }

    async fn files(&self) -> io::Result<(Vec<Entry>, Vec<Entry>)> {
        let (mut bases, mut deltas) = (Vec::new(), Vec::new());
        for name in self.disk.list("checkpoint").await? {
            for (kind, prefix, list) in
                [(Kind::Base, "base-", &mut bases), (Kind::Delta, "delta-", &mut deltas)]
            {
                let digits = name.strip_prefix(prefix).filter(|digits| digits.len() == 20);
                if let Some(index) = digits.and_then(|digits| digits.parse().ok()) {
                    list.push(Entry { kind, index, bytes: 0 });
                }
            }
        }
        for entry in bases.iter_mut().chain(&mut deltas) {
            entry.bytes = self.disk.open(&entry.path()).await?.len()?;
        }
        Ok((bases, deltas)) // by name, hence by index
    }

    async fn read_into(
        &self,
        entry: &Entry,
        follows: Option<LogPoint>,
        objects: &mut BTreeMap<Bytes, Bytes>,
    ) -> io::Result<LogPoint> {
        let mut input = Input::open(&self.disk, &self.store, entry, entry.path(), follows).await?;
        while let Some((key, change)) = input.next().await? {
            let value = change.ok_or_else(|| damaged(&entry.path(), 0, "a base removes nothing"))?;
            objects.insert(key, value);
        }
        Ok(input.point)
    }

    async fn read_changes(
        &self,
        entry: &Entry,
        follows: Option<LogPoint>,
        changes: &mut BTreeMap<Bytes, Option<Bytes>>,
    ) -> io::Result<LogPoint> {
        let mut input = Input::open(&self.disk, &self.store, entry, entry.path(), follows).await?;
        while let Some((key, change)) = input.next().await? {
            changes.insert(key, change);
        }
        Ok(input.point)
    }

    /// Removes what a crash left behind between a merge and the end of its tidying.
    async fn sweep(&mut self, bases: &[Entry], deltas: &[Entry]) -> io::Result<()> {
        if self.chain.is_empty() {
            return Ok(());
        }
        let newest = self.chain.last().map_or(0, |entry| entry.index);
        let mut removed = false;
        for entry in bases.iter().chain(deltas) {
            if self.chain.iter().any(|kept| kept.kind == entry.kind && kept.index == entry.index) {
                continue;
            }
            if entry.index > newest {
                self.passed_over.push(entry.clone());
                continue;
            }
            self.disk.remove(&entry.path()).await?;
            removed = true;
        }
        if removed { self.disk.sync_dir("checkpoint").await } else { Ok(()) }
    }

    /// A damaged newest delta keeps its name until the state goes on without it: a second start must see it as well.
    async fn set_aside(&mut self) -> io::Result<()> {
        for entry in std::mem::take(&mut self.passed_over) {
            self.disk.rename(&entry.path(), &format!("checkpoint/damaged-{:020}", entry.index)).await?;
            self.disk.sync_dir("checkpoint").await?;
        }
        Ok(())
    }
}

/// Writes one base of its own from a base and the deltas that follow it, oldest first; durable under the name `to` when it returns.
async fn join<D: Disk>(
    disk: &D,
    mut inputs: Vec<Input<D::File>>,
    store: &Uuid,
    point: LogPoint,
    (by, to): (&'static str, &str),
    pace: &impl Pace,
) -> io::Result<u64> {
    let mut heap = BinaryHeap::new();
    for (age, input) in inputs.iter_mut().enumerate() {
        if let Some((key, change)) = input.next().await? {
            heap.push(Reverse((key, Reverse(age), change)));
        }
    }
    let mut out = Output::begin(disk, by, store, Kind::Base, point, None).await?;
    let mut last: Option<Bytes> = None;
    while let Some(Reverse((key, Reverse(age), change))) = heap.pop() {
        if let Some((key, change)) = inputs[age].next().await? {
            heap.push(Reverse((key, Reverse(age), change)));
        }
        if last.as_ref() == Some(&key) {
            continue; // an older file's word on the same key
        }
        if change.is_some() {
            out.entry(&key, change.as_ref(), pace).await?;
        }
        last = Some(key);
    }
    out.finish(disk, to).await
}

/// The files of a durable checkpoint, open: they can be read whatever becomes of their names.
pub(crate) struct Held<F> {
    pub(crate) point: LogPoint,
    /// Whose they are.
    pub(crate) store: Uuid,
    /// Index that each stands for, its file, its length: the base, then the deltas that follow it.
    pub(crate) files: Vec<(u64, F, u64)>,
}

impl<D: Disk> CheckpointStore<D> {
    /// The newest durable state's files; `None` when there is none.
    pub(crate) async fn hold(&self) -> io::Result<Option<Held<D::File>>> {
        let Some(point) = self.point else { return Ok(None) };
        let mut files = Vec::new();
        for entry in &self.chain {
            let file = self.disk.open(&entry.path()).await?;
            let len = file.len()?;
            files.push((entry.index, file, len));
        }
        Ok(Some(Held { point, store: self.store, files }))
    }
}

/// Makes a base of the store `to.0` under the name `to.1` out of another store's files: the base, then its deltas, as (index, name).
/// They are verified on the way, and must end with `point`.
pub(crate) async fn adopt<D: Disk>(
    disk: &D,
    from: &Uuid,
    files: &[(u64, String)],
    to: (&Uuid, &str),
    point: LogPoint,
) -> io::Result<()> {
    let (mut inputs, mut follows) = (Vec::new(), None);
    for (age, (index, name)) in files.iter().enumerate() {
        let kind = if age == 0 { Kind::Base } else { Kind::Delta };
        let entry = Entry { kind, index: *index, bytes: 0 };
        let input = Input::open(disk, from, &entry, name.clone(), follows).await?;
        follows = Some(input.point);
        inputs.push(input);
    }
    if follows != Some(point) {
        return Err(damaged(to.1, 0, "the checkpoint does not stand for what was said"));
    }
    join(disk, inputs, to.0, point, (ADOPTING, to.1), &FullSpeed).await.map(drop)
}

/// The objects of one base file, whatever its name.
pub(crate) async fn read_base<D: Disk>(
    disk: &D,
    store: &Uuid,
    name: &str,
    index: u64,
) -> io::Result<(LogPoint, BTreeMap<Bytes, Bytes>)> {
    let entry = Entry { kind: Kind::Base, index, bytes: 0 };
    let mut input = Input::open(disk, store, &entry, name.to_owned(), None).await?;
    let mut objects = BTreeMap::new();
    while let Some((key, change)) = input.next().await? {
        let value = change.ok_or_else(|| damaged(name, 0, "a base removes nothing"))?;
        objects.insert(key, value);
    }
    Ok((input.point, objects))
}

/// The objects of a store's files, whatever their names: the base, then the deltas that follow it, as (index, name).
pub(crate) async fn read_chain<D: Disk>(
    disk: &D,
    store: &Uuid,
    files: &[(u64, String)],
) -> io::Result<(LogPoint, BTreeMap<Bytes, Bytes>)> {
    let (mut objects, mut follows) = (BTreeMap::new(), None);
    for (age, (index, name)) in files.iter().enumerate() {
        let kind = if age == 0 { Kind::Base } else { Kind::Delta };
        let entry = Entry { kind, index: *index, bytes: 0 };
        let mut input = Input::open(disk, store, &entry, name.clone(), follows).await?;
        while let Some((key, change)) = input.next().await? {
            match change {
                Some(value) => objects.insert(key, value),
                None => objects.remove(&key),
            };
        }
        follows = Some(input.point);
    }
    let point = follows.ok_or_else(|| damaged("checkpoint", 0, "there is none"))?;
    Ok((point, objects))
}

/// What [`CheckpointStore`] calls the base that stands for that index.
pub(crate) fn base_path(index: u64) -> String {
    path(Kind::Base, index)
}

pub(crate) fn point_bytes(point: &LogPoint) -> [u8; 48] {
    let mut bytes = [0; 48];
    let fields = [point.index, point.term, point.leader, point.position, point.end, point.hash];
    for (i, field) in fields.into_iter().enumerate() {
        bytes[i * 8..i * 8 + 8].copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn block_crc(number: u64, content: &[u8]) -> u32 {
    // The block's number is part of it: blocks can not change places.
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&number.to_le_bytes());
    digest.update(content);
    #[allow(clippy::cast_possible_truncation)] // a 32-bit algorithm
    let crc = digest.finalize() as u32;
    crc
}

fn footer(count: u64, header_crc: u64) -> [u8; FOOTER] {
    let mut bytes = [0; FOOTER];
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[4..8].copy_from_slice(b"DEND");
    bytes[8..16].copy_from_slice(&count.to_le_bytes());
    let mut covered = bytes[..16].to_vec();
    covered.extend_from_slice(&header_crc.to_le_bytes());
    bytes[16..].copy_from_slice(&crc64(&covered).to_le_bytes());
    bytes
}

/// A base whose blocks are pieces of `data`, with right checksums; each begins with its length in four bytes steps.
#[cfg(feature = "sim")]
pub(crate) fn fuzzed_file(store: &Uuid, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC);
    (bytes[4], bytes[6]) = (1, 1);
    bytes[8..24].copy_from_slice(store);
    let point = LogPoint { index: 7, term: 1, leader: 1, position: 64, end: 128, hash: 9 };
    bytes[24..72].copy_from_slice(&point_bytes(&point));
    let header_crc = crc64(&bytes[..120]);
    bytes[120..].copy_from_slice(&header_crc.to_le_bytes());
    let Some((count, mut rest)) = data.split_first() else { return bytes };
    for number in 0.. {
        let Some((steps, behind)) = rest.split_first() else { break };
        let (content, behind) = behind.split_at((usize::from(*steps) * 4).min(behind.len()));
        bytes.extend_from_slice(&u32::try_from(content.len()).expect("small").to_le_bytes());
        bytes.extend_from_slice(&block_crc(number, content).to_le_bytes());
        bytes.extend_from_slice(content);
        rest = behind;
    }
    bytes.extend_from_slice(&footer(u64::from(*count), header_crc));
    bytes
}

struct Output<F> {
    file: F,
    /// Its name until it is whole.
    name: &'static str,
    at: u64,
    block: BytesMut,
    blocks: u64,
    entries: u64,
    header_crc: u64,
    last: Bytes,
}

impl<F: File> Output<F> {
    async fn begin<D: Disk<File = F>>(
        disk: &D,
        name: &'static str,
        store: &Uuid,
        kind: Kind,
        point: LogPoint,
        follows: Option<LogPoint>,
    ) -> io::Result<Output<F>> {
        if disk.list("checkpoint").await?.iter().any(|known| name.ends_with(&format!("/{known}"))) {
            disk.remove(name).await?; // left by an attempt that did not finish
        }
        let file = disk.create(name, 0).await?;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = 1;
        header[6] = if kind == Kind::Base { 1 } else { 2 };
        header[8..24].copy_from_slice(store);
        header[24..72].copy_from_slice(&point_bytes(&point));
        if let Some(follows) = follows {
            header[72..80].copy_from_slice(&follows.index.to_le_bytes());
            header[80..88].copy_from_slice(&follows.hash.to_le_bytes());
        }
        let header_crc = crc64(&header[..120]);
        header[120..].copy_from_slice(&header_crc.to_le_bytes());
        file.write_at(0, &[Bytes::copy_from_slice(&header)]).await?;
        let (at, block, last) = (HEADER as u64, BytesMut::new(), Bytes::new());
        Ok(Output { file, name, at, block, blocks: 0, entries: 0, header_crc, last })
    }

    async fn entry(&mut self, key: &Bytes, value: Option<&Bytes>, pace: &impl Pace) -> io::Result<()> {
        assert!(self.entries == 0 || *key > self.last, "keys of a checkpoint file rise");
        let key_len =
            u8::try_from(key.len()).ok().filter(|_| key.len() <= MAX_KEY).expect("a key is too long");
        let value_len = u32::try_from(value.map_or(0, Bytes::len)).expect("a value is too long");
        self.block.extend_from_slice(&[if value.is_some() { 1 } else { 2 }, key_len, 0, 0]);
        self.block.extend_from_slice(&value_len.to_le_bytes());
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value.map_or(&[], |value| &value[..]));
        self.entries += 1;
        self.last = key.clone();
        if self.block.len() >= BLOCK { self.end_block(pace).await } else { Ok(()) }
    }

    async fn end_block(&mut self, pace: &impl Pace) -> io::Result<()> {
        let content = self.block.split().freeze();
        if content.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(content.len()).expect("a value is too long");
        let mut head = [0; 8];
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&block_crc(self.blocks, &content).to_le_bytes());
        let bytes = head.len() + content.len();
        self.file.write_at(self.at, &[Bytes::copy_from_slice(&head), content]).await?;
        self.at += bytes as u64;
        self.blocks += 1;
        pace.pause(bytes).await;
        Ok(())
    }

    async fn finish<D: Disk<File = F>>(mut self, disk: &D, path: &str) -> io::Result<u64> {
        self.end_block(&FullSpeed).await?;
        let footer = footer(self.entries, self.header_crc);
        self.file.write_at(self.at, &[Bytes::copy_from_slice(&footer)]).await?;
        self.file.sync().await?;
        disk.rename(self.name, path).await?;
        disk.sync_dir("checkpoint").await?;
        Ok(self.at + FOOTER as u64)
    }
}

struct Input<F> {
    file: F,
    path: String,
    len: u64,
    point: LogPoint,
    header_crc: u64,
    at: u64,
    block: Bytes,
    blocks: u64,
    entries: u64,
    last: Option<Bytes>,
}

impl<F: File> Input<F> {
    async fn open<D: Disk<File = F>>(
        disk: &D,
        store: &Uuid,
        entry: &Entry,
        path: String,
        follows: Option<LogPoint>,
    ) -> io::Result<Input<F>> {
        let file = disk.open(&path).await?;
        let len = file.len()?;
        if len < (HEADER + FOOTER) as u64 {
            return Err(damaged(&path, len, "the file is cut short"));
        }
        let header = file.read_at(0, HEADER).await?;
        let header_crc = u64_at(&header, 120);
        if header[..4] != MAGIC || header_crc != crc64(&header[..120]) {
            return Err(damaged(&path, 0, "header does not match its checksum"));
        }
        if header[4..6] != [1, 0] {
            return Err(damaged(&path, 4, "checkpoint format version is not supported by this release"));
        }
        if header[8..24] != store[..] {
            return Err(damaged(&path, 8, "the checkpoint belongs to another store"));
        }
        let point = LogPoint {
            index: u64_at(&header, 24),
            term: u64_at(&header, 32),
            leader: u64_at(&header, 40),
            position: u64_at(&header, 48),
            end: u64_at(&header, 56),
            hash: u64_at(&header, 64),
        };
        let kind = if header[6] == 1 { Kind::Base } else { Kind::Delta };
        if kind != entry.kind || point.index != entry.index {
            return Err(damaged(&path, 24, "the file has another checkpoint's name"));
        }
        let before = (u64_at(&header, 72), u64_at(&header, 80));
        if before != follows.map_or((0, 0), |point| (point.index, point.hash)) {
            return Err(damaged(&path, 72, "the delta does not follow from the state before it"));
        }
        let at = HEADER as u64;
        let (block, last) = (Bytes::new(), None);
        Ok(Input { file, path, len, point, header_crc, at, block, blocks: 0, entries: 0, last })
    }

    /// The next entry: a value, or `None` for a removed key.
    async fn next(&mut self) -> io::Result<Option<(Bytes, Option<Bytes>)>> {
        if self.block.is_empty() && !self.next_block().await? {
            return Ok(None);
        }
        let bad = |reason: &str| damaged(&self.path, self.at, reason);
        if self.block.len() < 8 {
            return Err(bad("an entry is cut short"));
        }
        let head = self.block.split_to(8);
        let key_len = usize::from(head[1]);
        let value_len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if key_len > MAX_KEY || self.block.len() < key_len + value_len {
            return Err(bad("an entry is out of bounds"));
        }
        let key = self.block.split_to(key_len);
        let value = self.block.split_to(value_len);
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(bad("keys do not rise"));
        }
        self.entries += 1;
        self.last = Some(key.clone());
        match head[0] {
            1 => Ok(Some((key, Some(value)))),
            2 if value_len == 0 => Ok(Some((key, None))),
            _ => Err(bad("an entry is neither put nor remove")),
        }
    }

    async fn next_block(&mut self) -> io::Result<bool> {
        let rest = self.len - self.at;
        if rest == FOOTER as u64 {
            let found = self.file.read_at(self.at, FOOTER).await?;
            if found != footer(self.entries, self.header_crc)[..] {
                return Err(damaged(&self.path, self.at, "footer does not match the file"));
            }
            return Ok(false);
        }
        if rest < 8 + FOOTER as u64 {
            return Err(damaged(&self.path, self.at, "the file is cut short"));
        }
        let head = self.file.read_at(self.at, 8).await?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length == 0 || u64::from(length) > rest - 8 - FOOTER as u64 {
            return Err(damaged(&self.path, self.at, "block length is out of bounds"));
        }
        let content = self.file.read_at(self.at + 8, length as usize).await?;
        if block_crc(self.blocks, &content) != crc {
            return Err(damaged(&self.path, self.at, "block does not match its checksum"));
        }
        self.at += 8 + u64::from(length);
        self.blocks += 1;
        self.block = content;
        Ok(true)
    }
}
