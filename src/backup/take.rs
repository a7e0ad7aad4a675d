//! `dassie backup`: what the broker sends, into a directory.
//!
//! Owns: reading the frames. Promises: what is damaged on its way is refused and named; whatever ends it, the earlier backups in the
//! directory are as they were. Does not know: the directory (`dassie_storage`), how the broker is reached.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use dassie_storage::{BackupDir, BackupTarget, Manifest, RealDisk, block_on};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{CHUNK, END, FAILED, HEAD, MANIFEST, NOT, Progress, ZEROS, crc, said, size};
use crate::cli::Broker;
use crate::process::Failure;

/// The broker may read long before it has something to say.
const SILENCE: Duration = Duration::from_secs(300);
/// The longest frame: manifests name files.
const FRAME_MAX: usize = 64 << 20;

/// Takes a backup of the broker into the directory `to`; what is to be said of it.
///
/// # Errors
/// One line: nobody answers, the broker refuses, something is damaged, the directory is another one's or can not be written.
pub(crate) async fn take(broker: &Broker, to: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| said(&error, &format!("backup directory '{}'", to.display()));
    let disk = RealDisk::open(to).map_err(failed)?;
    let dir = block_on(BackupDir::open(&disk)).map_err(failed)?;
    let known = block_on(dir.known()).map_err(failed)?;
    let mut frames =
        Frames { body: broker.post("/api/backup", known.encode()).await?, bytes: BytesMut::new() };
    let (kind, content) = frames.next().await?;
    if kind != MANIFEST {
        return Err(strange(kind, &content));
    }
    let manifest = Manifest::decode(&content).map_err(Failure::new)?;
    let mut target = block_on(dir.begin(manifest)).map_err(failed)?;
    let total = target.manifest().bytes();
    let (mut carried, mut done, mut progress) = (0, 0, Progress::new("backup"));
    loop {
        let (kind, content) = frames.next().await?;
        match kind {
            END => break,
            NOT | CHUNK | ZEROS => {
                let (there, came) = Said::read(&target, kind, content)?.enter(&mut target).map_err(failed)?;
                done += there;
                carried += came;
                progress.at(done, total);
            }
            _ => return Err(strange(kind, &content)),
        }
    }
    let manifest = block_on(target.finish()).map_err(failed)?;
    Ok(format!(
        "backup up to position {} (entry {}): {} of {} were new\n",
        manifest.end.end,
        manifest.end.index,
        size(carried),
        size(total)
    ))
}

/// What a frame says.
enum Said {
    Same { part: usize, digest: u64 },
    Bytes { part: usize, offset: u64, bytes: Result<Bytes, u64> },
}

impl Said {
    fn read(target: &BackupTarget, kind: u8, mut content: Bytes) -> Result<Said, Failure> {
        let cut = || Failure::new("the broker's answer is cut in the middle of a frame");
        if content.len() < 12 || (kind != NOT && content.len() < 16) {
            return Err(cut());
        }
        let (number, place) = (content.get_u32_le(), content.get_u64_le());
        let part = number as usize;
        if part >= target.manifest().parts.len() {
            return Err(Failure::new(format!("the broker sends part {number}, which it did not offer")));
        }
        if kind == NOT {
            return Ok(Said::Same { part, digest: place });
        }
        let sum = content.get_u32_le();
        if crc(number, place, &content) != sum {
            return Err(Failure::new(format!(
                "what came of part {number} at {place} does not match its checksum: damaged on its way"
            )));
        }
        let bytes = match kind {
            ZEROS if content.len() == 8 => Err(content.get_u64_le()),
            ZEROS => return Err(cut()),
            _ => Ok(content),
        };
        Ok(Said::Bytes { part, offset: place, bytes })
    }

    /// Does it: bytes that are there now, and those of them that came.
    fn enter(self, target: &mut BackupTarget) -> std::io::Result<(u64, u64)> {
        match self {
            Said::Same { part, digest } => {
                block_on(target.same(part, digest))?;
                Ok((target.manifest().parts[part].part.len, 0))
            }
            Said::Bytes { part, offset, bytes } => {
                let len = bytes.as_ref().map_or_else(|zeros| *zeros, |bytes| bytes.len() as u64);
                block_on(target.write(part, offset, bytes))?;
                Ok((len, len))
            }
        }
    }
}

fn strange(kind: u8, content: &[u8]) -> Failure {
    match kind {
        FAILED => Failure::new(format!("the broker gave up: {}", String::from_utf8_lossy(content))),
        _ => Failure::new(format!("the broker sends frames (kind {kind}) that this release does not know")),
    }
}

/// Frames out of an answer's body.
struct Frames {
    body: Incoming,
    bytes: BytesMut,
}

impl Frames {
    async fn next(&mut self) -> Result<(u8, Bytes), Failure> {
        self.fill(HEAD).await?;
        let kind = self.bytes.get_u8();
        let len = self.bytes.get_u32_le() as usize;
        if len > FRAME_MAX {
            return Err(Failure::new(format!("the broker sends a frame of {len} bytes")));
        }
        self.fill(len).await?;
        Ok((kind, self.bytes.split_to(len).freeze()))
    }

    async fn fill(&mut self, len: usize) -> Result<(), Failure> {
        while self.bytes.len() < len {
            let piece = timeout(SILENCE, self.body.frame()).await;
            match piece.map_err(|_| Failure::new("the broker says nothing any more"))? {
                Some(Ok(piece)) => {
                    if let Ok(bytes) = piece.into_data() {
                        self.bytes.extend_from_slice(&bytes);
                    }
                }
                Some(Err(error)) => {
                    return Err(Failure::new(format!("the connection to the broker: {error}")));
                }
                None => return Err(Failure::new("the broker ended before the backup was whole")),
            }
        }
        Ok(())
    }
}
