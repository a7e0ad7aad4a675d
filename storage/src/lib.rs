//! Dassie's storage: one durable log per shard, its recovery, index pages and checkpoints.
//!
//! Owns: everything in a store's directory (`src/docs/record-format.md`). Promises: what was reported durable is there after any
//! crash, in order and unchanged, or the store refuses to open and names file and offset. Does not know: messages, queues,
//! protocols, consensus.
//!
//! A store is made by [`Genesis::create`] and opened by [`Log::open`] under [`lock_store`]. `open` gives four parts: [`Log`] for the shard's thread,
//! [`Writer`] and [`Preparer`] for one thread each (`block_on(writer.run())`), [`LogReader`] for everybody.

mod backup;
mod backup_dir;
mod block_on;
mod checkpoint;
mod copy;
pub mod disk;
mod format;
#[cfg(feature = "sim")]
pub mod fuzz;
mod genesis;
mod hard_state;
mod install;
mod log;
mod map;
mod pages;
mod prepare;
mod queue;
mod reader;
mod real;
mod recovery;
mod seams;
mod segments;
#[cfg(feature = "sim")]
pub mod sim;
mod spill;
mod through;
mod verify;
mod writer;

use std::io;

pub use backup::{BackupPart, BackupRequest, BackupSource, Going, Known, Manifest};
pub use backup_dir::{BackupDir, BackupTarget, Restored, Until, is_unfinished, restore};
pub use block_on::block_on;
pub use checkpoint::{CheckpointStore, FullSpeed, Loaded, MAX_KEY, Pace};
pub use copy::{CopySource, CopyTarget, Offer, Part, PartKind};
pub use disk::{Disk, File};
pub use format::{Batch, HEADER, LogPoint, MAX_PAYLOAD, NewBatch, Uuid};
pub use genesis::Genesis;
pub use hard_state::MAX_VOTE;
pub use install::{finish_install, finish_pending};
pub use log::{Backlog, Done, Flush, Log, Opened, Options, Progress, Syncer};
pub use pages::{FILE_PAGES, FreedBefore, NewPage, PAGE, PAGE_CONTENT, PageId, PageReader, PageStore};
pub use prepare::Preparer;
pub use queue::UnderWay;
pub use reader::LogReader;
pub use real::{RealDisk, RealFile, RealLock};
pub use recovery::{Cut, Recovered};
pub use seams::{Apply, ProposalId, ReplicatedLog};
pub use spill::{Spill, SpillWriter, Spilled};
pub use verify::{Findings, PagesNamed, PagesRead, Sound, verify_backup, verify_store};
pub use writer::Writer;

/// Takes the store for this process; held until the answer is dropped. Do this before anything else is read.
pub async fn lock_store<D: Disk>(disk: &D) -> io::Result<D::Lock> {
    disk.lock("LOCK").await.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let reason = "the store is in use by another process (LOCK is held)";
            disk::fault("lock", "LOCK", None, io::Error::new(io::ErrorKind::WouldBlock, reason))
        }
        _ => error,
    })
}

/// The log floor of a store, before its log is opened: [`CheckpointStore::load`] wants to know it.
pub async fn read_floor<D: Disk>(disk: &D, genesis: &Genesis) -> io::Result<Option<LogPoint>> {
    Ok(hard_state::StateFile::open(disk, &genesis.store).await?.state.floor)
}
