//! The broker's side of a backup: holds what it consists of, and sends what the directory lacks.
//!
//! Owns: one backup at a time, on a thread of its own. Promises: everything that was confirmed by any node before it was asked for is in
//! it, or it is refused; it takes nothing from the shard's thread, the log writer or maintenance but moments, and reads no faster than
//! `cluster.copy_rate`; what it holds is free again when it ends, its reader goes, or takes nothing for [`limits::COPY_PATIENCE_MS`].
//! Does not know: HTTP, files.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use dassie_storage::{BackupSource, Disk, Going, Known, Pace};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::{CHUNK, END, FAILED, MANIFEST, NOT, ZEROS, crc, frame, head};
use crate::clock::Clock;
use crate::cluster::copy::Rate;
use crate::copies;
use crate::limits;
use crate::server::http::management::BackupDesk;

/// Bytes of a file in one frame.
const CHUNK_BYTES: usize = 256 << 10;
/// Frames that wait for the reader.
const FRAMES: usize = 2;
/// Between two tries, while this node's disk or its lead is not yet there. ms.
const RETRY_MS: u64 = 20;

/// What maintenance is asked to hold.
pub struct Hold {
    /// Up to this position at least.
    pub end: u64,
    /// What the directory has.
    pub known: Known,
    /// Now, ms since 1970.
    pub taken: u64,
    /// `None`: that is not durable here yet.
    pub answer: oneshot::Sender<io::Result<Option<BackupSource>>>,
}

/// Why it is not clear what is confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unclear {
    /// It will be in a moment.
    Yet(&'static str),
    /// Not here.
    Here(String),
}

/// Where everything that was confirmed ends.
pub type Confirmed = oneshot::Sender<Result<u64, Unclear>>;

/// Backups that leave this node.
#[derive(Clone)]
pub struct Backups {
    /// Asks the shard's thread.
    pub confirmed: mpsc::UnboundedSender<Confirmed>,
    /// Asks where checkpoints are written.
    pub hold: Arc<dyn Fn(Hold) + Send + Sync>,
    /// Bytes a second.
    pub rate: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// One at a time.
    pub room: Arc<Semaphore>,
}

impl BackupDesk for Backups {
    fn begin(
        &self,
        known: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<mpsc::Receiver<Bytes>, String>> + Send + '_>> {
        Box::pin(self.begin_one(known))
    }
}

impl Backups {
    async fn begin_one(&self, known: Bytes) -> Result<mpsc::Receiver<Bytes>, String> {
        let known = Known::decode(&known).map_err(|error| error.to_string())?;
        let room = Arc::clone(&self.room).try_acquire_owned();
        let room = room.map_err(|_| "a backup of this node is under way".to_owned())?;
        let source = self.source(&known).await?;
        let (to, reader) = mpsc::channel(FRAMES);
        let rate = Rate::new(self.rate);
        let (end, bytes) = (source.manifest().end, source.manifest().bytes());
        tracing::info!("a backup begins: up to entry {}, {} MiB at most", end.index, bytes >> 20);
        let run = move |runtime: tokio::runtime::Runtime| {
            let sent = runtime.block_on(async {
                tokio::select! {
                    sent = send(&source, &known, &rate, &to) => sent,
                    () = to.closed() => Err(io::Error::new(io::ErrorKind::BrokenPipe, "its reader is gone")),
                }
            });
            drop((source, room));
            match sent {
                Ok(sent) => {
                    tracing::info!("the backup up to entry {} is done: {} MiB went", end.index, sent >> 20)
                }
                Err(error) => tracing::warn!("the backup was interrupted: {error}"),
            }
        };
        copies::spawn("backup", run).map_err(|error| error.to_string())?;
        Ok(reader)
    }

    /// Everything that is confirmed now, held.
    async fn source(&self, known: &Known) -> Result<BackupSource, String> {
        let ending = || "the broker is ending".to_owned();
        let mut tries = limits::HTTP_WAIT_MS / RETRY_MS;
        let mut again = async |why: &str| {
            tries = tries.checked_sub(1).ok_or_else(|| format!("{why}: try again"))?;
            sleep(Duration::from_millis(RETRY_MS)).await;
            Ok::<_, String>(())
        };
        let end = loop {
            let (answer, confirmed) = oneshot::channel();
            self.confirmed.send(answer).map_err(|_| ending())?;
            match confirmed.await.map_err(|_| ending())? {
                Ok(end) => break end,
                Err(Unclear::Here(reason)) => return Err(reason),
                Err(Unclear::Yet(reason)) => again(reason).await?,
            }
        };
        loop {
            let (answer, held) = oneshot::channel();
            (self.hold)(Hold { end, known: known.clone(), taken: self.clock.wall_ms(), answer });
            let held = held
                .await
                .map_err(|_| "nothing can be held now: is there room for a checkpoint?".to_owned())?;
            match held.map_err(|error| error.to_string())? {
                Some(source) => return Ok(source),
                None => again("what is confirmed is not on this node's disk yet").await?,
            }
        }
    }
}

async fn give(to: &mpsc::Sender<Bytes>, bytes: Bytes) -> io::Result<()> {
    match timeout(Duration::from_millis(limits::COPY_PATIENCE_MS), to.send(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "its reader is gone")),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its reader takes nothing")),
    }
}

/// Sends what the directory lacks; how many bytes of files.
async fn send<D: Disk>(
    source: &BackupSource<D>,
    known: &Known,
    pace: &impl Pace,
    to: &mpsc::Sender<Bytes>,
) -> io::Result<u64> {
    let sent = send_parts(source, known, pace, to).await;
    if let Err(error) = &sent {
        // Who is gone can not be told.
        let _ = give(to, frame(FAILED, error.to_string().as_bytes())).await;
    }
    sent
}

async fn send_parts<D: Disk>(
    source: &BackupSource<D>,
    known: &Known,
    pace: &impl Pace,
    to: &mpsc::Sender<Bytes>,
) -> io::Result<u64> {
    give(to, frame(MANIFEST, &source.manifest().encode())).await?;
    let mut sent = 0;
    for number in 0..source.manifest().parts.len() {
        let part = u32::try_from(number).map_err(io::Error::other)?;
        let mut at = match source.look(number, known, pace).await? {
            Going::From(at) => at,
            Going::Not(digest) => {
                let mut bytes = head(NOT, 12);
                bytes.put_u32_le(part);
                bytes.put_u64_le(digest);
                give(to, bytes.freeze()).await?;
                continue;
            }
        };
        loop {
            let bytes = source.read(number, at, CHUNK_BYTES).await?;
            if bytes.is_empty() {
                break;
            }
            pace.pause(bytes.len()).await;
            let len = bytes.len() as u64;
            let zeros = bytes.iter().all(|byte| *byte == 0);
            let content = if zeros { Bytes::copy_from_slice(&len.to_le_bytes()) } else { bytes };
            let mut front = head(if zeros { ZEROS } else { CHUNK }, 16 + content.len());
            front.put_u32_le(part);
            front.put_u64_le(at);
            front.put_u32_le(crc(part, at, &content));
            give(to, front.freeze()).await?;
            give(to, content).await?;
            at += len;
            sent += len;
        }
    }
    give(to, frame(END, &[])).await?;
    Ok(sent)
}
