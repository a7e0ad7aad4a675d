//! A checkpoint and the segments below it, on their way to a replica that lacks entries below the log floor.
//!
//! Owns: the frames of a stream of purpose `Copy`, how long each side waits for the other, how fast the sender may be. Promises:
//! every chunk carries its checksum, and what does not match, comes out of turn or does not verify is refused with the
//! reason: nothing of it counts; a copy that was interrupted goes on where it stopped; nothing is put in place here:
//! [`receive`] ends with a whole, verified copy, and whoever closes the log decides ([`CopyTarget::commit`]).
//! Does not know: who is leader, where the stream comes from, files.
//!
//! | frame | from | behind its first byte |
//! |---|---|---|
//! | 1 offer | sender | term and index (u64 each) of an entry: who has that needs no copy; [`Offer`] |
//! | 2 has | receiver | nothing: it has the entry |
//! | 3 wants | receiver | u32 count, then each: part (u32), offset (u64); in this order |
//! | 4 chunk | sender | part (u32), offset (u64), CRC-32C of part, offset and bytes (u32), bytes |
//! | 5 zeros | sender | part (u32), offset (u64), CRC-32C of all three (u32), how many (u64) |
//! | 6 ready | receiver | nothing: it has all, and starts again with it |
//! | 7 refused | receiver | the reason, UTF-8 |

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm::Crc32Iscsi;
use dassie_storage::{CopySource, CopyTarget, Disk, Genesis, LogPoint, LogReader, Offer, Pace, PageId};
use tokio::time::{Instant, sleep_until, timeout};

use super::peer::{Answer, EntryId, NoAnswer, Peers, Request};
use super::state_machine::SnapshotMeta;
use super::stream::{PeerReader, PeerStream, PeerWriter};
use super::types::Node;
use crate::limits;

const OFFER: u8 = 1;
const HAS: u8 = 2;
const WANTS: u8 = 3;
const CHUNK: u8 = 4;
const ZEROS: u8 = 5;
const READY: u8 = 6;
const REFUSED: u8 = 7;

/// Bytes of a file in one frame.
const CHUNK_BYTES: usize = 256 << 10;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// The peer has the entry that the checkpoint stands for.
    Has,
    /// The peer has the whole copy and starts again with it: asked once more, it will have the entry.
    Ready,
}

/// At most so many bytes a second, evenly.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    next: Cell<Option<Instant>>,
}

impl Rate {
    /// A pace of so many bytes a second.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Rate { bytes_per_second: bytes_per_second.max(1), next: Cell::new(None) }
    }
}

impl Pace for Rate {
    async fn pause(&self, bytes: usize) {
        let now = Instant::now();
        // Time that the peer or the disk took is not made up for, but for what timers are late.
        let from = self.next.get().map_or(now, |next| next.max(now - Duration::from_millis(20)));
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.bytes_per_second;
        self.next.set(Some(from + Duration::from_micros(micros)));
        sleep_until(from).await;
    }
}

fn bad(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("copy: {reason}"))
}

/// Both sides give up a peer from which nothing comes for so long; what a copy holds at its source is free again then.
async fn patient<T>(what: &str, ms: u64, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(Duration::from_millis(ms), future).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("copy: {what} for {ms} ms"))),
    }
}

async fn tell(writer: &mut PeerWriter, kind: u8, parts: &[Bytes]) -> io::Result<()> {
    let head = Bytes::copy_from_slice(&[kind]);
    let frame: Vec<Bytes> = std::iter::once(head).chain(parts.iter().cloned()).collect();
    patient("the peer takes nothing", limits::COPY_PATIENCE_MS, writer.send(&frame)).await
}

async fn hear(reader: &mut PeerReader, ms: u64) -> io::Result<(u8, Bytes)> {
    let frame = patient("the peer says nothing", ms, reader.receive()).await?;
    let mut frame = frame.ok_or_else(|| {
        io::Error::new(io::ErrorKind::UnexpectedEof, "copy: the peer ended the stream before its end")
    })?;
    if frame.is_empty() {
        return Err(bad("an empty frame"));
    }
    let kind = frame.get_u8();
    if kind == REFUSED {
        let reason = String::from_utf8_lossy(&frame).into_owned();
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("refused: {reason}")));
    }
    Ok((kind, frame))
}

fn crc(part: u32, offset: u64, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(Crc32Iscsi);
    digest.update(&part.to_le_bytes());
    digest.update(&offset.to_le_bytes());
    digest.update(bytes);
    u32::try_from(digest.finalize()).unwrap_or(0) // a 32-bit algorithm
}

/// Whether the log has that entry, durably: then it equals the sender's up to there.
fn has_entry<D: Disk>(log: &LogReader<D>, entry: EntryId) -> bool {
    let found =
        log.get(entry.index, entry.index + 1, 1).ok().and_then(|found| found.first().map(|b| b.point));
    found.is_some_and(|point| {
        (point.index, point.term) == (entry.index, entry.term) && point.end <= log.durable()
    })
}

/// Sends what the peer lacks of `source`, unless it has the entry `enough`.
///
/// # Errors
/// `ConnectionRefused` with the peer's reason; what the disk or the connection says; `TimedOut` when the peer stalls.
pub async fn send<D: Disk>(
    source: &CopySource<D>,
    enough: EntryId,
    stream: PeerStream,
    pace: &impl Pace,
) -> io::Result<Carried> {
    let PeerStream { mut reader, mut writer } = stream;
    let mut entry = BytesMut::with_capacity(16);
    entry.put_u64_le(enough.term);
    entry.put_u64_le(enough.index);
    tell(&mut writer, OFFER, &[entry.freeze(), source.offer().encode()]).await?;
    let wants = match hear(&mut reader, limits::COPY_PATIENCE_MS).await? {
        (HAS, _) => return Ok(Carried::Has),
        (WANTS, list) => read_wants(list)?,
        (kind, _) => return Err(bad(format_args!("frame {kind} is no answer to an offer"))),
    };
    if let Err(error) = send_parts(source, &wants, &mut writer, pace).await {
        // It may have said why before it closed.
        let heard = hear(&mut reader, limits::COPY_LAST_WORDS_MS).await;
        return Err(heard.err().filter(|e| e.kind() == io::ErrorKind::ConnectionRefused).unwrap_or(error));
    }
    match hear(&mut reader, limits::COPY_VERIFY_MS).await? {
        (READY, _) => Ok(Carried::Ready),
        (kind, _) => Err(bad(format_args!("frame {kind} at the end of a copy"))),
    }
}

fn read_wants(mut list: Bytes) -> io::Result<Vec<(u32, u64)>> {
    if list.len() < 4 {
        return Err(bad("a list that is cut"));
    }
    let count = list.get_u32_le() as usize;
    if list.len() != count.saturating_mul(12) {
        return Err(bad("a list that is cut"));
    }
    Ok((0..count).map(|_| (list.get_u32_le(), list.get_u64_le())).collect())
}

async fn send_parts<D: Disk>(
    source: &CopySource<D>,
    wants: &[(u32, u64)],
    writer: &mut PeerWriter,
    pace: &impl Pace,
) -> io::Result<()> {
    for &(part, from) in wants {
        let mut at = from;
        loop {
            let bytes = source.read(part as usize, at, CHUNK_BYTES).await?;
            if bytes.is_empty() {
                break;
            }
            pace.pause(bytes.len()).await;
            let len = bytes.len() as u64;
            let mut head = BytesMut::with_capacity(24);
            head.put_u32_le(part);
            head.put_u64_le(at);
            if bytes.iter().all(|byte| *byte == 0) {
                head.put_u32_le(crc(part, at, &len.to_le_bytes()));
                head.put_u64_le(len);
                tell(writer, ZEROS, &[head.freeze()]).await?;
            } else {
                head.put_u32_le(crc(part, at, &bytes));
                tell(writer, CHUNK, &[head.freeze(), bytes]).await?;
            }
            at += len;
        }
    }
    Ok(())
}

/// Reads the index pages (number, owner) that a checkpoint's objects name.
pub type UsedPages = dyn Fn(LogPoint, BTreeMap<Bytes, Bytes>) -> io::Result<Vec<(PageId, u64)>> + Send;

/// Where a copy comes in.
pub struct Receiver<D: Disk> {
    /// The store's disk.
    pub disk: D,
    /// Who the store is.
    pub genesis: Genesis,
    /// Its log as it is now.
    pub log: LogReader<D>,
    /// See there.
    pub used: Box<UsedPages>,
}

/// Takes in what a sender has. `before` is a copy that was interrupted, and afterwards what there is of this one. `Ready`: it is whole
/// and verified.
///
/// # Errors
/// `InvalidData` for what is damaged or not a copy of this log, after the sender was told; what the disk or the connection says;
/// `TimedOut` when the sender stalls.
pub async fn receive<D: Disk>(
    to: &Receiver<D>,
    stream: PeerStream,
    before: &mut Option<CopyTarget<D>>,
) -> io::Result<Carried> {
    let PeerStream { mut reader, mut writer } = stream;
    let result = take_in(to, &mut reader, &mut writer, before).await;
    if let Err(error) = &result {
        // The stream may be gone: then there is nobody to be told.
        let _ = tell(&mut writer, REFUSED, &[Bytes::from(error.to_string())]).await;
    }
    result
}

async fn take_in<D: Disk>(
    to: &Receiver<D>,
    reader: &mut PeerReader,
    writer: &mut PeerWriter,
    before: &mut Option<CopyTarget<D>>,
) -> io::Result<Carried> {
    let (kind, mut offer) = hear(reader, limits::COPY_PATIENCE_MS).await?;
    if kind != OFFER || offer.len() < 16 {
        return Err(bad(format_args!("frame {kind} where an offer must be")));
    }
    let enough = EntryId { term: offer.get_u64_le(), index: offer.get_u64_le() };
    let offer = Offer::decode(&offer)?;
    if has_entry(&to.log, enough) {
        tell(writer, HAS, &[]).await?;
        return Ok(Carried::Has);
    }
    let begun = CopyTarget::begin(&to.disk, &to.genesis, &to.log, offer, before.take()).await?;
    let Some(target) = begun else {
        tell(writer, HAS, &[]).await?;
        return Ok(Carried::Has);
    };
    let target = before.insert(target);
    let wanted = target.wanted();
    let mut list = BytesMut::with_capacity(4 + wanted.len() * 12);
    list.put_u32_le(u32::try_from(wanted.len()).unwrap_or(u32::MAX));
    for (part, from) in &wanted {
        list.put_u32_le(u32::try_from(*part).unwrap_or(u32::MAX));
        list.put_u64_le(*from);
    }
    tell(writer, WANTS, &[list.freeze()]).await?;
    while !target.wanted().is_empty() {
        let (kind, mut frame) = hear(reader, limits::COPY_PATIENCE_MS).await?;
        if !matches!(kind, CHUNK | ZEROS) || frame.len() < 16 {
            return Err(bad(format_args!("frame {kind} where a chunk must be")));
        }
        let (part, offset, said) = (frame.get_u32_le(), frame.get_u64_le(), frame.get_u32_le());
        if crc(part, offset, &frame) != said {
            return Err(bad(format_args!(
                "the chunk at {offset} of part {part} does not match its checksum"
            )));
        }
        let bytes = match kind {
            ZEROS if frame.len() == 8 => Err(frame.get_u64_le()),
            ZEROS => return Err(bad("a number that is cut")),
            _ => Ok(frame),
        };
        target.write(part as usize, offset, bytes).await?;
    }
    target.verify(&to.used).await?;
    tell(writer, READY, &[]).await?;
    Ok(Carried::Ready)
}

/// Carries the newest checkpoint to a peer. `Unreachable`: there was no stream to it; `Lost`: it ended early.
/// The entry is one that suffices: who has it needs no copy.
pub type Carry = dyn Fn(u64, EntryId) -> Pin<Box<dyn Future<Output = Result<Carried, NoAnswer>>>>;

/// The way to the others, with copies.
pub struct Copying<P> {
    /// The way for requests.
    pub peers: P,
    /// The way for copies.
    pub carry: Box<Carry>,
}

impl<P: Peers> Peers for Copying<P> {
    async fn call(
        &self,
        target: u64,
        node: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        self.peers.call(target, node, request, patience).await
    }

    async fn copy(&self, target: u64, enough: EntryId) -> Result<(), NoAnswer> {
        match (self.carry)(target, enough).await {
            Ok(Carried::Has) => Ok(()),
            Ok(Carried::Ready) => Err(NoAnswer::Lost(format!("node {target} starts again with the copy"))),
            Err(error) => Err(error),
        }
    }
}

/// Entries that copies under way need: the log floor stays at or below them.
#[derive(Debug, Default)]
pub(crate) struct Holds(RefCell<BTreeMap<u64, Hold>>);

#[derive(Debug)]
struct Hold {
    /// What the first copy's checkpoint stands for.
    meta: SnapshotMeta,
    /// `None`: the copy is under way.
    until: Option<Instant>,
}

/// Held until dropped, and a while longer: who got a copy starts again with it, then asks for what follows.
pub(crate) struct Held {
    holds: Rc<Holds>,
    target: u64,
    /// What an earlier copy still holds.
    before: Option<Instant>,
    /// Nobody was there.
    in_vain: bool,
}

impl Held {
    /// The peer was not reached: what is dead must not hold the log.
    pub(crate) fn in_vain(mut self) {
        self.in_vain = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let until = match self.in_vain {
            true => self.before,
            false => Some(Instant::now() + Duration::from_millis(limits::COPY_HOLD_MS)),
        };
        let mut holds = self.holds.0.borrow_mut();
        match until {
            None => drop(holds.remove(&self.target)),
            until => {
                if let Some(hold) = holds.get_mut(&self.target) {
                    hold.until = until;
                }
            }
        }
    }
}

impl Holds {
    /// A copy of the checkpoint of `meta`, or of a later one, goes to `target`. A later try holds what the first one held, for as long as that lasts: the
    /// peer may be starting with it.
    pub(crate) fn hold(self: &Rc<Self>, target: u64, meta: SnapshotMeta) -> Held {
        self.expire();
        let mut holds = self.0.borrow_mut();
        let hold = holds.entry(target).or_insert(Hold { meta, until: None });
        let before = hold.until.take();
        Held { holds: self.clone(), target, before, in_vain: false }
    }

    /// The peer has it: from here on it holds the floor by what it has.
    pub(crate) fn release(&self, target: u64) {
        self.0.borrow_mut().remove(&target);
    }

    /// The lowest that is held.
    pub(crate) fn lowest(&self) -> Option<SnapshotMeta> {
        self.expire();
        self.0.borrow().values().map(|hold| hold.meta.clone()).min_by_key(|meta| meta.last_log_id)
    }

    fn expire(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, hold| hold.until.is_none_or(|until| until > now));
    }
}
