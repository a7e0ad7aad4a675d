//! `dassie restore`: a backup becomes the store of a new cluster of one node.
//!
//! Owns: the words of the command. Promises: nobody can mistake what is restored for what was backed up: cluster and store get new
//! names, its log ends with a membership of this node alone; until all of it is there the directory is no store. Does not know: files
//! (`dassie_storage`), consensus (`cluster`).

use std::path::Path;

use dassie_storage::{BackupDir, Batch, Genesis, RealDisk, Until, block_on, lock_store, restore};

use super::{Progress, parse_utc, said, utc};
use crate::broker::core::Core;
use crate::clock::{Clock, SystemClock};
use crate::cluster;
use crate::data_dir;
use crate::process::Failure;

/// Does it; what is to be said of it. `until` is a position of the log or a time, as given.
///
/// # Errors
/// One line: a damaged backup, a directory that is not empty, a place that the backup does not have.
pub(crate) fn run(from: &Path, to: &Path, node: u64, until: Option<&str>) -> Result<String, Failure> {
    let of_backup = |error: std::io::Error| said(&error, &format!("backup directory '{}'", from.display()));
    if !from.is_dir() {
        return Err(Failure::new(format!("backup directory '{}': there is none", from.display())));
    }
    let dir = block_on(BackupDir::open(&RealDisk::open(from).map_err(of_backup)?)).map_err(of_backup)?;
    let of_state = |point, objects| Ok(Core::recovered(1 << 26, Some((point, objects)))?.0.log_time());
    let of_batch = |batch: &Batch| Core::log_time_of(batch);
    let until = match until {
        None => Until::Newest,
        Some(text) => match (text.parse(), parse_utc(text)) {
            (Ok(position), _) => Until::Position(position),
            (_, Some(ms)) => Until::Time { ms, of_batch: &of_batch, of_state: &of_state },
            _ => {
                return Err(Failure::usage(format!(
                    "--until {text}: neither a position of the log nor a time such as 2026-11-21T22:35:07Z (UTC)"
                )));
            }
        },
    };
    let failed = |error: std::io::Error| said(&error, &format!("restore into '{}'", to.display()));
    if let Some(name) = data_dir::not_empty(to).map_err(failed)? {
        return Err(Failure::new(format!(
            "data directory '{}' holds '{name}': a restore makes a new one",
            to.display()
        )));
    }
    let disk = RealDisk::open(to).map_err(failed)?;
    let _lock = block_on(lock_store(&disk)).map_err(failed)?;
    let (cluster, store) = (data_dir::random().map_err(failed)?, data_dir::random().map_err(failed)?);
    let created = SystemClock::new().wall_ms();
    let mut progress = Progress::new("restore");
    let restored = block_on(restore(
        &dir,
        &until,
        &disk,
        |manifest| Genesis {
            cluster,
            shard: manifest.shard,
            store,
            shard_number: manifest.shard_number,
            node,
            segment_size: manifest.segment_size,
            created,
            joins: false,
        },
        |_, objects| Core::used_pages(&objects),
        |last| cluster::alone_behind(last, node, store),
        &mut |done, total| progress.at(done, total),
    ));
    let restored = restored.map_err(failed)?;
    Ok(format!(
        "restored up to position {} (entry {}), from the backup of {}: node {node} of a new cluster; start it with --data-dir '{}'\n",
        restored.last.end,
        restored.last.index,
        utc(restored.manifest.taken),
        to.display()
    ))
}
