//! A store becomes the copy that came in beside it.
//!
//! Owns: the file `install`, which decides it, and the steps behind it. Promises: before `install` stands, the store is the old one;
//! from then on the next start makes it the new one, and a crash at any step is followed by the same steps; the vote, the
//! store's identity and the segments that old and new share stay. Does not know: where the copy came from.
//!
//! `install`: magic `DINS`, u32 version 1, store UUID (16), the point of the checkpoint (six u64), number of page files (u64), number of
//! segments (u64), their first positions (u64 each), CRC-64/NVME of all before.

use std::collections::BTreeSet;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};

use crate::checkpoint::point_bytes;
use crate::copy::{self, ADOPTED, incoming};
use crate::disk::{Disk, File, damaged};
use crate::format::{LogPoint, Uuid, crc64, segment_path, segment_start};
use crate::genesis::Genesis;
use crate::hard_state::StateFile;
use crate::pages;

const PATH: &str = "install";
const NEW_PATH: &str = "install.new";
const MAGIC: [u8; 4] = *b"DINS";
const HEAD: usize = 4 + 4 + 16 + 48 + 8 + 8;

/// What the store is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) store: Uuid,
    pub(crate) point: LogPoint,
    pub(crate) page_files: u64,
    /// First positions of the segments that it has, ascending.
    pub(crate) segments: Vec<u64>,
}

impl Plan {
    /// Decides it: durable when this returns.
    pub(crate) async fn save<D: Disk>(&self, disk: &D) -> io::Result<()> {
        if disk.list("").await?.iter().any(|name| name == NEW_PATH) {
            disk.remove(NEW_PATH).await?; // left by an attempt that did not finish
        }
        let file = disk.create(NEW_PATH, 0).await?;
        file.write_at(0, &[self.encode()]).await?;
        file.sync().await?;
        disk.rename(NEW_PATH, PATH).await?;
        disk.sync_dir("").await
    }

    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD + self.segments.len() * 8 + 8);
        bytes.put_slice(&MAGIC);
        bytes.put_u32_le(1);
        bytes.put_slice(&self.store);
        bytes.put_slice(&point_bytes(&self.point));
        bytes.put_u64_le(self.page_files);
        bytes.put_u64_le(self.segments.len() as u64);
        self.segments.iter().for_each(|start| bytes.put_u64_le(*start));
        let crc = crc64(&bytes);
        bytes.put_u64_le(crc);
        bytes.freeze()
    }

    fn decode(bytes: &[u8]) -> io::Result<Plan> {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes.len() < HEAD + 8 || u64_at(bytes.len() - 8) != crc64(&bytes[..bytes.len() - 8]) {
            return Err(damaged(PATH, 0, "does not match its checksum"));
        }
        if bytes[..4] != MAGIC || bytes[4..8] != 1_u32.to_le_bytes() {
            return Err(damaged(PATH, 0, "not a decision that this release reads"));
        }
        let starts = bytes[HEAD..bytes.len() - 8].chunks_exact(8);
        if starts.len() as u64 != u64_at(HEAD - 8) || !starts.remainder().is_empty() {
            return Err(damaged(PATH, HEAD as u64, "segments are missing"));
        }
        Ok(Plan {
            store: bytes[8..24].try_into().expect("sixteen bytes"),
            point: copy::read_point(&bytes[24..72]),
            page_files: u64_at(72),
            segments: starts
                .map(|start| u64::from_le_bytes(start.try_into().expect("eight bytes")))
                .collect(),
        })
    }
}

/// Whether a directory with these files waits for [`finish_install`].
#[must_use]
pub fn finish_pending(names: &[String]) -> bool {
    names.iter().any(|name| name == PATH)
}

/// Puts a copy in place whose coming was decided, and answers what its checkpoint stands for; `None` when none was. Call it with the
/// store locked, before anything of it is opened.
///
/// # Errors
/// What the disk says; `InvalidData` when the decision is damaged or of another store. The next start tries again.
pub async fn finish_install<D: Disk>(disk: &D, genesis: &Genesis) -> io::Result<Option<LogPoint>> {
    if !finish_pending(&disk.list("").await?) {
        return Ok(None);
    }
    let file = disk.open(PATH).await?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    let plan = Plan::decode(&file.read_at(0, len).await?)?;
    drop(file);
    if plan.store != genesis.store {
        return Err(damaged(PATH, 8, "the decision of another store"));
    }
    // Renames first: what stands under its own name afterwards is new, or shared, or not in the plan. So each step can be repeated.
    let kept: BTreeSet<u64> = plan.segments.iter().copied().collect();
    for name in disk.list("log").await? {
        let Some(start) = incoming(&name).and_then(segment_start) else { continue };
        if kept.contains(&start) {
            disk.rename(&format!("log/{name}"), &segment_path(start)).await?;
        }
    }
    disk.sync_dir("log").await?;
    for name in disk.list("log").await? {
        if segment_start(&name).is_some_and(|start| !kept.contains(&start)) {
            disk.remove(&format!("log/{name}")).await?;
        }
    }
    disk.sync_dir("log").await?;
    install_pages(disk, plan.page_files).await?;
    install_checkpoint(disk, &plan.point).await?;
    let mut state = StateFile::open(disk, &genesis.store).await?;
    let mut now = state.state.clone();
    (now.floor, now.mark, now.clean) = (Some(plan.point), None, false);
    now.synced_to = plan.point.end;
    state.save(now).await?;
    drop(state);
    copy::forget(disk).await?;
    disk.remove(PATH).await?;
    disk.sync_dir("").await?;
    Ok(Some(plan.point))
}

async fn install_pages<D: Disk>(disk: &D, count: u64) -> io::Result<()> {
    let number = |digits: &str| digits.parse::<u64>().ok().filter(|_| digits.len() == 8);
    for name in disk.list("pages").await? {
        if let Some(number) = incoming(&name).and_then(number).filter(|number| *number < count) {
            disk.rename(&format!("pages/{name}"), &pages::path(number)).await?;
        }
    }
    disk.sync_dir("pages").await?;
    for name in disk.list("pages").await? {
        if number(&name).is_some_and(|number| number >= count) {
            disk.remove(&format!("pages/{name}")).await?;
        }
    }
    disk.sync_dir("pages").await
}

async fn install_checkpoint<D: Disk>(disk: &D, point: &LogPoint) -> io::Result<()> {
    let path = copy::checkpoint_path(point);
    if disk.list("checkpoint").await?.iter().any(|name| ADOPTED.ends_with(&format!("/{name}"))) {
        disk.rename(ADOPTED, &path).await?;
        disk.sync_dir("checkpoint").await?;
    }
    for name in disk.list("checkpoint").await? {
        let old = name.starts_with("base-") || name.starts_with("delta-");
        if old && !path.ends_with(&format!("/{name}")) {
            disk.remove(&format!("checkpoint/{name}")).await?;
        }
    }
    disk.sync_dir("checkpoint").await
}
