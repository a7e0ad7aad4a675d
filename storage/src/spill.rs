//! What does not fit into memory and need not survive: a private place on the disk.
//!
//! Owns: files without a name, which the system frees when this process ends however it ends, and the thread that writes them.
//! Promises: [`Spill::put`] never blocks on the disk and never loses what it took: until it is written it stays in memory, bounded
//! by 32 MiB; with a disk that is slow, full or broken it takes nothing more. A file's space comes back when the last thing
//! in it is forgotten. Everything is written in order; who reads in order reads in order.
//! Does not know: what the bytes mean. Nothing here is part of the log, so no error of it ends the process.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::disk::fault;

/// A file takes no more when it holds so much. Bytes.
const FILE: usize = 64 << 20;
/// Written at once. Bytes.
const CHUNK: usize = 256 << 10;
/// Taken and not written yet, at most. Bytes.
const BEHIND_MAX: usize = 32 << 20;
/// The name that a file has for a moment.
const NAME: &str = "paging";
/// How often a full or broken disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes bytes and says where they are. One owner.
#[derive(Debug)]
pub struct Spill {
    file: Option<Arc<SpillFile>>,
    jobs: Sender<Job>,
    behind: Arc<AtomicUsize>,
}

/// Writes what a [`Spill`] took. Run it on a thread of its own.
#[derive(Debug)]
pub struct SpillWriter {
    directory: PathBuf,
    jobs: Receiver<Job>,
    behind: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Job {
    /// The oldest chunk of that file.
    Write(Arc<SpillFile>),
    /// Giving a file back takes the system a while.
    Close(File),
}

/// Where something lies. Dropping the last one of a file gives the space back.
#[derive(Debug, Clone)]
pub struct Spilled {
    file: Arc<SpillFile>,
    at: u32,
    len: u32,
}

#[derive(Debug)]
struct SpillFile {
    /// Made by the writer with the first chunk.
    file: OnceLock<File>,
    waiting: Mutex<Waiting>,
    jobs: Sender<Job>,
}

/// What is not written yet.
#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<(usize, Bytes)>,
    /// The last chunk, still growing.
    open: Vec<u8>,
    open_at: usize,
}

impl Spill {
    /// Files go to the file system of `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> (Self, SpillWriter) {
        let (jobs, todo) = channel();
        let behind = Arc::new(AtomicUsize::new(0));
        let writer = SpillWriter { directory: directory.to_owned(), jobs: todo, behind: Arc::clone(&behind) };
        (Self { file: None, jobs, behind }, writer)
    }

    /// Takes the parts as one piece. `None`: not now, because the disk is behind or gives no space.
    pub fn put(&mut self, parts: &[&[u8]]) -> Option<Spilled> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.behind.load(Ordering::Relaxed) + len > BEHIND_MAX || len > FILE {
            return None;
        }
        self.behind.fetch_add(len, Ordering::Relaxed);
        let full = |file: &mut Arc<SpillFile>| {
            let waiting = file.lock();
            waiting.open_at + waiting.open.len() + len > FILE
        };
        if let Some(file) = self.file.take_if(full) {
            self.close_chunk(&file);
        }
        let jobs = &self.jobs;
        let file = Arc::clone(self.file.get_or_insert_with(|| {
            let (file, waiting, jobs) = (OnceLock::new(), Mutex::default(), jobs.clone());
            Arc::new(SpillFile { file, waiting, jobs })
        }));
        let (at, is_full) = {
            let mut waiting = file.lock();
            let at = waiting.open_at + waiting.open.len();
            parts.iter().for_each(|part| waiting.open.extend_from_slice(part));
            (at, waiting.open.len() >= CHUNK)
        };
        if is_full {
            self.close_chunk(&file);
        }
        Some(Spilled { file, at: u32::try_from(at).ok()?, len: u32::try_from(len).ok()? })
    }

    fn close_chunk(&self, file: &Arc<SpillFile>) {
        let mut waiting = file.lock();
        if waiting.open.is_empty() {
            return;
        }
        let chunk = Bytes::from(std::mem::take(&mut waiting.open));
        let at = waiting.open_at;
        waiting.open_at += chunk.len();
        waiting.chunks.push_back((at, chunk));
        drop(waiting);
        // Without a writer the chunk stays where it is, and `behind` says so.
        let _ = self.jobs.send(Job::Write(Arc::clone(file)));
    }
}

impl Spilled {
    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Is there nothing of it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads it back. May wait for the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&self) -> io::Result<Bytes> {
        let (at, len) = (self.at as usize, self.len as usize);
        if let Some(bytes) = self.file.lock().find(at, len) {
            return Ok(bytes);
        }
        // What does not wait is written, so that there is a file.
        let Some(file) = self.file.file.get() else {
            return Err(io::Error::other("a paging file is missing"));
        };
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, u64::from(self.at))
            .map_err(|error| fault("read", NAME, Some(u64::from(self.at)), error))?;
        Ok(bytes.into())
    }
}

impl Waiting {
    fn find(&self, at: usize, len: usize) -> Option<Bytes> {
        if let Some(start) = at.checked_sub(self.open_at) {
            return self.open.get(start..start + len).map(Bytes::copy_from_slice);
        }
        let place = self.chunks.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, chunk) = &self.chunks[place];
        (at - start + len <= chunk.len()).then(|| chunk.slice(at - start..at - start + len))
    }
}

impl SpillFile {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, directory: &Path, at: usize, chunk: &Bytes) -> io::Result<()> {
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = nameless(directory)?;
                self.file.get_or_init(|| file)
            }
        };
        file.write_all_at(chunk, at as u64).map_err(|error| fault("write", NAME, Some(at as u64), error))
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Without a writer it is closed here.
            let _ = self.jobs.send(Job::Close(file));
        }
    }
}

/// A file that is gone with its last handle. The name is there for a moment only; one that a crash left is taken over.
fn nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(NAME);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(|error| fault("create", NAME, None, error))?;
    std::fs::remove_file(&path).map_err(|error| fault("remove", NAME, None, error))?;
    Ok(file)
}

impl SpillWriter {
    /// Works until the [`Spill`] and all that it gave are gone. `report` is told of an error when it begins, and `None` when it
    /// is over.
    pub fn run(self, mut report: impl FnMut(Option<&io::Error>)) {
        let (mut todo, mut failing) = (VecDeque::new(), false);
        loop {
            if todo.is_empty() {
                let Ok(job) = self.jobs.recv() else { return };
                take(job, &mut todo);
            }
            match self.step(&mut todo) {
                Ok(()) if failing => {
                    failing = false;
                    report(None);
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        report(Some(&error));
                    }
                    failing = true;
                    // Files that are given back meanwhile may make room.
                    while let Ok(job) = self.jobs.recv_timeout(RETRY) {
                        take(job, &mut todo);
                    }
                }
            }
        }
    }

    /// Writes the oldest chunk of the first file.
    fn step(&self, todo: &mut VecDeque<Arc<SpillFile>>) -> io::Result<()> {
        let Some(file) = todo.front() else { return Ok(()) };
        if let Some((at, chunk)) = self.next(file) {
            file.write(&self.directory, at, &chunk)?;
            file.lock().chunks.pop_front();
            self.behind.fetch_sub(chunk.len(), Ordering::Relaxed);
        }
        todo.pop_front();
        Ok(())
    }

    /// The oldest chunk of the file; `None` when nobody wants it any more.
    fn next(&self, file: &Arc<SpillFile>) -> Option<(usize, Bytes)> {
        let mut waiting = file.lock();
        if Arc::strong_count(file) == 1 {
            let rest: usize = waiting.chunks.drain(..).map(|(_, chunk)| chunk.len()).sum();
            self.behind.fetch_sub(rest, Ordering::Relaxed);
        }
        waiting.chunks.front().cloned()
    }
}

fn take(job: Job, todo: &mut VecDeque<Arc<SpillFile>>) {
    match job {
        Job::Write(file) => todo.push_back(file),
        Job::Close(file) => drop(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: usize) -> Vec<u8> {
        n.to_le_bytes().repeat(1 + n % 300)
    }

    fn spill() -> (Spill, SpillWriter, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let (spill, writer) = Spill::new(directory.path());
        (spill, writer, directory)
    }

    #[test]
    fn what_was_taken_is_read_back_before_and_after_it_is_written() {
        let (mut spill, writer, directory) = spill();
        let places: Vec<Spilled> =
            (0..4000).map(|n| spill.put(&[&message(n)[..3], &message(n)[3..]]).unwrap()).collect();
        let check = || (0..4000).for_each(|n| assert_eq!(places[n].read().unwrap(), message(n)));
        check();
        let mut todo = VecDeque::new();
        writer.jobs.try_iter().for_each(|job| take(job, &mut todo));
        assert!(todo.len() > 4, "several chunks");
        while !todo.is_empty() {
            writer.step(&mut todo).unwrap();
        }
        assert!(places[0].file.lock().chunks.is_empty());
        check();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "no name is left");
        drop((spill, places));
        writer.run(|error| panic!("{error:?}"));
    }

    #[test]
    fn a_disk_that_does_not_keep_up_is_given_no_more() {
        let (mut spill, _writer, _directory) = spill();
        let piece = vec![7; 1 << 20];
        let taken: Vec<_> = (0..40).map_while(|_| spill.put(&[&piece])).collect();
        assert_eq!(taken.len(), BEHIND_MAX >> 20);
        assert!(taken.iter().all(|place| place.read().unwrap() == piece));
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_written() {
        let (mut spill, writer, _directory) = spill();
        let place = spill.put(&[&vec![1; CHUNK]]).unwrap();
        let behind = Arc::clone(&spill.behind);
        drop((place, spill));
        writer.run(|error| panic!("{error:?}"));
        assert_eq!(behind.load(Ordering::Relaxed), 0);
    }
}
