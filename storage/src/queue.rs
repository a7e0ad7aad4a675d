//! What passes between the shard's thread and the writer: jobs one way, progress the other.
//!
//! Owns: the ordered job queue and the report slot. Promises: jobs keep their order, nothing here blocks (locks are held for a
//! push or a pop), and a wake-up is never lost. Does not know: what a job does.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Poll, Waker};

use bytes::Bytes;

use crate::format::{HEADER, LogPoint};

/// A batch on its way to the disk.
pub(crate) struct Frame {
    pub(crate) header: [u8; HEADER],
    pub(crate) point: LogPoint,
    pub(crate) payload: Bytes,
}

pub(crate) enum Work {
    Append(Vec<Frame>),
    Vote(Bytes),
    Floor(LogPoint),
    /// Everything from this end on goes.
    Truncate(u64),
    Close,
}

pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) bytes: usize,
    pub(crate) work: Work,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these short locks was held means that the log's invariants are unknown: go down with it.
    mutex.lock().expect("a log thread panicked")
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Bytes handed in and not yet reported done.
    bytes: usize,
    closed: bool,
    /// A job comes at once, see [`Queue::warn`].
    warned: bool,
    writer: Option<Waker>,
}

#[derive(Default)]
struct Report {
    /// All jobs below this number are done.
    done: u64,
    failed: Option<Arc<io::Error>>,
    ended: bool,
    shard: Option<Waker>,
}

/// The two directions between one `Log` and its writer.
#[derive(Default)]
pub(crate) struct Queue {
    jobs: Mutex<Jobs>,
    report: Mutex<Report>,
    /// Numbers behind the last job handed in and behind the last reported done, to be looked at without a lock.
    handed: AtomicU64,
    done: AtomicU64,
    /// Bytes handed in and not yet reported done.
    weight: AtomicUsize,
    /// See [`UnderWay::after_reports`].
    after_reports: AfterReports,
}

#[derive(Default)]
struct AfterReports(OnceLock<Box<dyn Fn(usize) + Send + Sync>>);

/// How often a writer that was warned looks for the job before it sleeps again: about 50 us.
const LOOKS: u32 = 1_500;

/// Tells any thread what is on its way to the writer and back; see [`Log::under_way`](crate::Log::under_way).
#[derive(Clone)]
pub struct UnderWay(pub(crate) Arc<Queue>);

impl UnderWay {
    /// Bytes handed to the writer and not yet reported done; `None`: it owes no report. On the shard's own thread the answer is
    /// exact but for reports that come at this moment.
    pub fn bytes(&self) -> Option<usize> {
        self.0.is_under_way().then(|| self.0.weight.load(Ordering::Relaxed))
    }

    /// How many jobs were ever handed to the writer.
    pub fn handed(&self) -> u64 {
        self.0.handed.load(Ordering::Relaxed)
    }

    /// Has the writer call this right after each report, with the bytes that it reports. It must not block. Said once.
    pub fn after_reports(&self, call: impl Fn(usize) + Send + Sync + 'static) {
        let _ = self.0.after_reports.0.set(Box::new(call));
    }

    /// Says that a job will probably follow within microseconds, so that a writer that sleeps is awake by then.
    pub fn warn(&self) {
        self.0.warn();
    }
}

/// What the writer has to say.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) done: u64,
    pub(crate) failed: Option<Arc<io::Error>>,
    pub(crate) ended: bool,
}

impl Queue {
    /// Hands a job over.
    pub(crate) fn push(&self, job: Job) {
        let mut jobs = lock(&self.jobs);
        jobs.bytes += job.bytes;
        self.handed.store(job.number + 1, Ordering::Relaxed);
        self.weight.store(jobs.bytes, Ordering::Relaxed);
        jobs.waiting.push_back(job);
        if let Some(writer) = jobs.writer.take() {
            drop(jobs);
            writer.wake();
        }
    }

    /// A job will probably come within microseconds: a writer that sleeps is woken, so that it is awake when the job comes.
    pub(crate) fn warn(&self) {
        let mut jobs = lock(&self.jobs);
        if let Some(writer) = jobs.writer.take() {
            jobs.warned = true;
            drop(jobs);
            writer.wake();
        }
    }

    fn is_under_way(&self) -> bool {
        self.handed.load(Ordering::Relaxed) > self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        lock(&self.jobs).bytes
    }

    /// No more jobs will come: the writer ends when it has done those that wait.
    pub(crate) fn close(&self) {
        let mut jobs = lock(&self.jobs);
        jobs.closed = true;
        if let Some(writer) = jobs.writer.take() {
            writer.wake();
        }
    }

    /// Everything that waits, up to `limit` bytes but at least one job; `None` when closed and empty.
    pub(crate) async fn take(&self, limit: usize) -> Option<VecDeque<Job>> {
        std::future::poll_fn(|context| {
            let mut jobs = lock(&self.jobs);
            if jobs.waiting.is_empty() && std::mem::take(&mut jobs.warned) {
                drop(jobs);
                // All that was taken is reported, so what is under way is what comes now.
                (0..LOOKS).take_while(|_| !self.is_under_way()).for_each(|_| std::hint::spin_loop());
                jobs = lock(&self.jobs);
            }
            if jobs.waiting.is_empty() {
                if jobs.closed {
                    return Poll::Ready(None);
                }
                jobs.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            let mut bytes = 0;
            let mut count = 0;
            for job in &jobs.waiting {
                if count > 0 && bytes + job.bytes > limit {
                    break;
                }
                bytes += job.bytes;
                count += 1;
            }
            if count == jobs.waiting.len() {
                Poll::Ready(Some(std::mem::take(&mut jobs.waiting)))
            } else {
                Poll::Ready(Some(jobs.waiting.drain(..count).collect()))
            }
        })
        .await
    }

    /// Tells the shard that all jobs below `done` are through, `bytes` of them in all.
    pub(crate) fn done(&self, done: u64, bytes: usize) {
        let mut jobs = lock(&self.jobs);
        jobs.bytes -= bytes;
        self.weight.store(jobs.bytes, Ordering::Relaxed);
        drop(jobs);
        self.done.store(done, Ordering::Relaxed);
        self.tell(|report| {
            assert!(done >= report.done, "completions out of order: {done} after {}", report.done);
            report.done = done;
        });
        if let Some(call) = self.after_reports.0.get() {
            call(bytes);
        }
    }

    /// The first failure is the last word: everything not done by now fails with it.
    pub(crate) fn fail(&self, error: Arc<io::Error>) {
        self.tell(|report| {
            report.failed.get_or_insert(error);
        });
    }

    /// The writer is gone. What still waits for it will not happen.
    pub(crate) fn end(&self) {
        let left = lock(&self.jobs).bytes > 0 || !lock(&self.jobs).waiting.is_empty();
        self.tell(|report| {
            report.ended = true;
            if left && report.failed.is_none() {
                report.failed =
                    Some(Arc::new(io::Error::other("the log's writer ended before its work was done")));
            }
        });
    }

    fn tell(&self, change: impl FnOnce(&mut Report)) {
        let mut report = lock(&self.report);
        change(&mut report);
        if let Some(shard) = report.shard.take() {
            drop(report);
            shard.wake();
        }
    }

    /// All jobs below this number are done.
    pub(crate) fn completed(&self) -> u64 {
        lock(&self.report).done
    }

    /// Waits until there is something beyond `seen`: more done, a failure, or the writer's end.
    pub(crate) async fn more_than(&self, seen: u64) -> News {
        std::future::poll_fn(|context| {
            let mut report = lock(&self.report);
            if report.done > seen || report.failed.is_some() || report.ended {
                return Poll::Ready(News {
                    done: report.done,
                    failed: report.failed.clone(),
                    ended: report.ended,
                });
            }
            report.shard = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// An error that many waiters get.
#[derive(Debug)]
struct Shared(Arc<io::Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// One more copy of an error that `io::Error` can not clone.
pub(crate) fn copy_of(error: &Arc<io::Error>) -> io::Error {
    io::Error::new(error.kind(), Shared(error.clone()))
}
