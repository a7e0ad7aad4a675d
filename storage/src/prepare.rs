//! The next segment, made before the writer needs it.
//!
//! Owns: creating, recycling and removing segment files. Promises: a file appears under a segment's name only when it has its
//! full length in real blocks, and the name is durable before the writer gets the file. A full disk is a state (`blocked`),
//! not an error. Does not know: what the log holds, nor the time: somebody calls `retry`.
//!
//! Why the whole segment is zeroed here, in chunks, and not a window of the open one by the writer: measured with one write
//! and fdatasync at a time (table in `storage/README.md`), a zeroed or recycled file halves the median against allocation
//! alone; a window zeroed by the writer has the same median but a tail ten to eighty times longer. And a file that is
//! handed over is never touched here again, so no zero can race with a batch: when the writer is waiting, zeroing stops
//! and it gets the allocated rest, which reads as zero as well.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use bytes::Bytes;

use crate::disk::{Disk, File};
use crate::format::segment_path;
use crate::queue::{copy_of, lock};
use crate::real::RealDisk;

/// The name of a file that is not a segment yet.
pub(crate) const PREPARING: &str = "log/preparing";
/// Small, so that the writer's sync never waits long behind one.
const CHUNK: usize = 256 << 10;
/// Zeroed at once; the rest in step with the open segment.
const HEAD_START: u64 = 4 << 20;

struct State<F> {
    /// The position the next segment is for.
    wanted: Option<u64>,
    /// The writer waits for it.
    urgent: bool,
    ready: BTreeMap<u64, F>,
    /// How much of the next segment may be zeroed by now.
    allowance: u64,
    /// The preparer waits for so much.
    needs: u64,
    /// Files whose bytes nobody needs.
    dead: VecDeque<String>,
    unlink: VecDeque<String>,
    blocked: Option<Arc<str>>,
    retry: bool,
    failed: Option<Arc<io::Error>>,
    closed: bool,
    preparer: Option<Waker>,
    writer: Option<Waker>,
}

/// What writer, preparer and shard share about segments to come.
pub(crate) struct Preparation<F> {
    state: Mutex<State<F>>,
}

enum Meanwhile {
    Zero,
    Unlink(String),
    Stop,
}

enum Task {
    Unlink(String),
    Recycle { from: String, to: u64 },
    Create(u64),
}

impl<F> Preparation<F> {
    pub(crate) fn new(unlink: Vec<String>) -> Preparation<F> {
        Preparation {
            state: Mutex::new(State {
                wanted: None,
                urgent: false,
                ready: BTreeMap::new(),
                allowance: u64::MAX, // before the first segment there is nobody to disturb
                needs: 0,
                dead: VecDeque::new(),
                unlink: unlink.into(),
                blocked: None,
                retry: false,
                failed: None,
                closed: false,
                preparer: None,
                writer: None,
            }),
        }
    }

    fn tell(&self, change: impl FnOnce(&mut State<F>)) {
        let mut state = lock(&self.state);
        change(&mut state);
        if let Some(preparer) = state.preparer.take() {
            drop(state);
            preparer.wake();
        }
    }

    /// Asks for the segment at `position`, which will be needed next.
    pub(crate) fn want(&self, position: u64) {
        self.tell(|state| {
            if !state.ready.contains_key(&position) {
                state.wanted = Some(position);
            }
        });
    }

    /// The open segment is filled so far. Zeroing goes on at twice that pace: it is done when half of the segment is
    /// left, and it never takes more of the disk than the log itself makes worth while.
    pub(crate) fn filled(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.allowance = HEAD_START + 2 * bytes;
        if state.needs <= state.allowance
            && let Some(preparer) = state.preparer.take()
        {
            drop(state);
            preparer.wake();
        }
    }

    /// What to do while a segment is being zeroed: go on up to `bytes`, remove a file, or stop because the writer waits.
    async fn meanwhile(&self, bytes: u64) -> Meanwhile {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.state);
            if state.urgent || state.closed {
                return Poll::Ready(Meanwhile::Stop);
            }
            // An idle log may leave this segment half zeroed for days: dead files must not wait for it.
            if let Some(path) = state.unlink.pop_front() {
                return Poll::Ready(Meanwhile::Unlink(path));
            }
            if bytes <= state.allowance {
                state.needs = 0;
                return Poll::Ready(Meanwhile::Zero);
            }
            state.needs = bytes;
            state.preparer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits for the segment at `position`.
    pub(crate) async fn take(&self, position: u64) -> io::Result<F> {
        self.want(position);
        self.tell(|state| state.urgent = true);
        std::future::poll_fn(|context| {
            let mut state = lock(&self.state);
            if let Some(file) = state.ready.remove(&position) {
                state.urgent = false;
                return Poll::Ready(Ok(file));
            }
            if let Some(error) = &state.failed {
                return Poll::Ready(Err(copy_of(error)));
            }
            if state.closed {
                let reason = "the log was closed while it waited for a segment";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::Interrupted, reason)));
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    pub(crate) fn dead(&self, path: String, keep: usize) {
        self.tell(|state| {
            if state.dead.len() < keep {
                state.dead.push_back(path);
            } else {
                state.unlink.push_back(path);
            }
            state.retry = true; // a full disk may have room now
        });
    }

    pub(crate) fn unlink(&self, path: String) {
        self.tell(|state| {
            state.unlink.push_back(path);
            state.retry = true;
        });
    }

    pub(crate) fn retry(&self) {
        self.tell(|state| state.retry = true);
    }

    pub(crate) fn blocked(&self) -> Option<Arc<str>> {
        lock(&self.state).blocked.clone()
    }

    /// Files that stand ready or wait for their end.
    pub(crate) fn files(&self) -> usize {
        let state = lock(&self.state);
        state.ready.len() + state.dead.len() + state.unlink.len() + usize::from(state.wanted.is_some())
    }

    pub(crate) fn close(&self) {
        self.tell(|state| {
            state.closed = true;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
        });
    }

    /// The shard is gone: a writer that waits for a full disk must not wait for ever.
    pub(crate) fn abandon(&self) {
        if self.blocked().is_some() {
            self.close();
        }
    }

    async fn next(&self) -> Option<Task> {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.state);
            if let Some(path) = state.unlink.pop_front() {
                return Poll::Ready(Some(Task::Unlink(path)));
            }
            if state.closed || state.failed.is_some() {
                return Poll::Ready(None);
            }
            if let Some(position) = state.wanted {
                if let Some(from) = state.dead.pop_front() {
                    return Poll::Ready(Some(Task::Recycle { from, to: position }));
                }
                if state.blocked.is_none() || state.retry {
                    state.retry = false;
                    return Poll::Ready(Some(Task::Create(position)));
                }
            }
            state.preparer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn prepared(&self, position: u64, file: F) {
        let mut state = lock(&self.state);
        state.ready.insert(position, file);
        state.blocked = None;
        if state.wanted == Some(position) {
            state.wanted = None;
        }
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }

    fn fail(&self, error: Arc<io::Error>) {
        let mut state = lock(&self.state);
        state.failed = Some(error);
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }
}

/// Makes segments. Run it on a thread of its own.
pub struct Preparer<D: Disk = RealDisk> {
    disk: D,
    shared: Arc<Preparation<D::File>>,
    segment_size: u64,
    zero: bool,
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<D: Disk> Preparer<D> {
    pub(crate) fn new(
        disk: D,
        shared: Arc<Preparation<D::File>>,
        segment_size: u64,
        zero: bool,
    ) -> Preparer<D> {
        Preparer { disk, shared, segment_size, zero }
    }

    /// Works until the log is closed. An error other than a full disk is passed on to the writer and ends it.
    pub async fn run(self) -> io::Result<()> {
        while let Some(task) = self.shared.next().await {
            let done = match task {
                Task::Unlink(path) => self.unlink(&path).await,
                Task::Recycle { from, to } => self.recycle(&from, to).await,
                Task::Create(position) => self.create(position).await,
            };
            match done {
                Err(error) if is_full(&error) => {
                    lock(&self.shared.state).blocked = Some(error.to_string().into());
                }
                Err(error) => {
                    let error = Arc::new(error);
                    self.shared.fail(error.clone());
                    return Err(copy_of(&error));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn unlink(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path).await?;
        self.disk.sync_dir("log").await
    }

    /// The old bytes stay: every batch names its position and shard, so none of them can pass for one of the new life.
    async fn recycle(&self, from: &str, position: u64) -> io::Result<()> {
        self.hand_over(from, position).await
    }

    async fn create(&self, position: u64) -> io::Result<()> {
        if self.disk.list("log").await?.iter().any(|name| name == "preparing") {
            self.disk.remove(PREPARING).await?; // left by an attempt that found the disk full
        }
        let file = self.disk.create(PREPARING, self.segment_size).await?;
        if let Err(error) = self.fill(&file).await {
            drop(file);
            // A full disk must get its blocks back. Where that fails, too, the first error is the cause; the next attempt begins
            // by removing what is left.
            let _ = self.disk.remove(PREPARING).await;
            return Err(error);
        }
        self.hand_over(PREPARING, position).await
    }

    async fn fill(&self, file: &D::File) -> io::Result<()> {
        let chunk = Bytes::from(vec![0; if self.zero { CHUNK } else { 0 }]);
        let mut at = 0;
        while self.zero && at < self.segment_size {
            let len = CHUNK.min(usize::try_from(self.segment_size - at).unwrap_or(CHUNK));
            match self.shared.meanwhile(at + len as u64).await {
                Meanwhile::Stop => break,
                Meanwhile::Unlink(path) => self.unlink(&path).await?,
                Meanwhile::Zero => {
                    file.write_at(at, &[chunk.slice(..len)]).await?;
                    file.sync().await?;
                    at += len as u64;
                }
            }
        }
        // The length must be durable before the name is: a short file under a segment's name counts as damage.
        file.sync().await
    }

    async fn hand_over(&self, from: &str, position: u64) -> io::Result<()> {
        let path = segment_path(position);
        self.disk.rename(from, &path).await?;
        self.disk.sync_dir("log").await?;
        let file = self.disk.open(&path).await?;
        self.shared.prepared(position, file);
        Ok(())
    }
}
