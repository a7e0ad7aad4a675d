//! `dassie verify`: reads everything of a store or of a backup, and says what is wrong and where.
//!
//! Owns: the words of the command; following each reference to its message. Promises: changes nothing; every damaged place is a line on
//! standard error, with file and offset; exit code 4 then. Does not know: formats of files (`dassie_storage`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dassie_storage::{
    BackupDir, Disk, Findings, Genesis, PagesRead, RealDisk, Sound, block_on, finish_pending, is_unfinished,
    lock_store, verify_backup, verify_store,
};
use tokio::sync::watch;

use super::{Progress, said, size, utc};
use crate::broker::core::{Core, PageSource, Parts};
use crate::clock::SystemClock;
use crate::limits;
use crate::process::Failure;
use crate::server::semantics::Layouts;

/// Batches behind the checkpoint are read in pieces of so many bytes.
const REPLAY_BYTES: usize = 8 << 20;

struct Pages(PagesRead);

impl PageSource for Pages {
    fn read(&self, page: u32, owner: u64) -> std::io::Result<Bytes> {
        self.0.read(u64::from(page), owner)
    }
}

fn named(objects: &BTreeMap<Bytes, Bytes>) -> std::io::Result<Vec<(u64, u64)>> {
    Core::used_pages(objects)
}

fn findings(what: &'static str) -> Findings<'static> {
    let mut progress = Progress::new(what);
    Findings::told(move |bytes| progress.at(bytes, 0))
}

/// Follows every reference of the state at the end of the log to its message; how many queues and messages there are.
fn follow(sound: Sound, segment_size: u64, node: u64) -> std::io::Result<(u64, u64)> {
    let Sound { log, pages, state, end } = sound;
    let damaged = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
    let from = state.as_ref().map(|(point, _)| *point);
    let (recovered, _) = Core::recovered(segment_size, state)?;
    let (topology, _kept) = watch::channel(Arc::default());
    let parts = Parts {
        node,
        session: 1,
        log: Box::new(log.clone()),
        pages: Box::new(Pages(pages)),
        semantics: Arc::new(Layouts::default()),
        spill: None,
        clock: Arc::new(SystemClock::new()),
        topology,
        batch_bytes: limits::BATCH_TARGET,
        section_bytes: limits::SECTION_MAX,
    };
    let mut core = Core::new(parts, recovered);
    let mut next = from.map_or(0, |point| point.index + 1);
    let last = end.map_or(0, |end| end.index + 1);
    while next < last {
        let batches = log.get(next, last, REPLAY_BYTES)?;
        if batches.is_empty() {
            return Err(damaged(format!("entry {next} is not in the log")));
        }
        for batch in batches {
            core.apply(&batch);
            next = batch.point.index + 1;
        }
    }
    core.audit().map_err(damaged)?;
    core.audit_messages().map_err(damaged)?;
    Ok(core.totals())
}

fn end_of(text: &str, findings: &Findings<'_>) -> Result<String, Failure> {
    let (segments, checkpoints, pages) = findings.read;
    for wrong in &findings.wrong {
        eprintln!("dassie: {wrong}");
    }
    match findings.wrong.len() {
        0 => Ok(format!(
            "{text}{} read: {segments} segments, {checkpoints} checkpoints, {pages} index pages: all as it was written\n",
            size(findings.bytes)
        )),
        1 => Err(Failure::damaged("one place is damaged")),
        count => Err(Failure::damaged(format!("{count} places are damaged"))),
    }
}

/// Verifies a data directory whose broker is stopped; what is to be said of it.
///
/// # Errors
/// One line; exit code 4 for damage, whose places are lines on standard error by then.
pub(crate) fn store(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| said(&error, &format!("data directory '{}'", path.display()));
    if !path.is_dir() {
        return Err(Failure::new(format!("data directory '{}': there is none", path.display())));
    }
    let disk = RealDisk::open(path).map_err(failed)?;
    let names = block_on(disk.list("")).map_err(failed)?;
    let Some(genesis) = block_on(Genesis::load(&disk)).map_err(failed)? else {
        return Err(Failure::new(format!("data directory '{}': there is no store in it", path.display())));
    };
    let _lock = block_on(lock_store(&disk)).map_err(failed)?;
    if is_unfinished(&names) || finish_pending(&names) {
        return Err(Failure::new(format!(
            "data directory '{}': a restore or a copy from another node was not finished in it",
            path.display()
        )));
    }
    let mut findings = findings("verify");
    let sound = block_on(verify_store(&disk, &genesis, &named, &mut findings)).map_err(failed)?;
    let mut text = String::new();
    if let Some(sound) = sound.filter(|_| findings.wrong.is_empty()) {
        let end = sound.end.map_or(0, |end| end.end);
        match follow(sound, genesis.segment_size, genesis.node) {
            Ok((queues, messages)) => {
                let _ = writeln!(
                    text,
                    "log up to position {end}: {messages} messages in {queues} queues, all there"
                );
            }
            Err(error) => findings.wrong.push(error.to_string()),
        }
    }
    end_of(&text, &findings)
}

/// Verifies all backups in a directory.
///
/// # Errors
/// As [`store`].
pub(crate) fn backup(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| said(&error, &format!("backup directory '{}'", path.display()));
    if !path.is_dir() {
        return Err(Failure::new(format!("backup directory '{}': there is none", path.display())));
    }
    let dir = block_on(BackupDir::open(&RealDisk::open(path).map_err(failed)?)).map_err(failed)?;
    if dir.manifests().is_empty() {
        return Err(Failure::new(format!("backup directory '{}': there is no backup in it", path.display())));
    }
    let mut findings = findings("verify");
    let mut text = String::new();
    for manifest in dir.manifests() {
        let end = manifest.end;
        let sound = block_on(verify_backup(&dir, manifest, &named, &mut findings)).map_err(failed)?;
        let found = sound.map(|sound| follow(sound, manifest.segment_size, manifest.node));
        let (taken, from) = (utc(manifest.taken), manifest.point.map_or(0, |point| point.end));
        match found {
            Some(Ok((queues, messages))) => {
                let _ = writeln!(
                    text,
                    "{taken}: positions {from} to {}: {messages} messages in {queues} queues, all there",
                    end.end
                );
            }
            Some(Err(error)) => findings.wrong.push(format!("backup up to entry {}: {error}", end.index)),
            None => {
                findings
                    .wrong
                    .push(format!("backup of {taken}, up to entry {}: can not be restored", end.index));
            }
        }
    }
    end_of(&text, &findings)
}
