//! A thread that stays awake for a moment when it knows that it will be woken soon.
//!
//! Owns: how long the shard's thread looks for a wake-up before it sleeps, and when it wakes the log's writer, and the writer a
//! connections' worker, ahead of need.
//! Promises: it looks only while the writer has a little that was handed to it, and for at most [`LONGEST`] at a time;
//! whatever wakes the thread's future ends the look at once; looks that do not pay (a slow disk, processors that others want)
//! become rare within a few turns; a machine with one processor never looks, and an idle one sleeps.
//! Does not know: what is written, what runs on the thread.
//!
//! Why: to sleep and to be woken costs 20 to 50 us when the processor went to sleep as well (a virtual machine above all),
//! which is as much as everything else that a confirm needs besides its sync.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;

/// A write and a sync of a fast disk take half of this. What takes longer is not made slower by a wake-up that anybody would
/// notice.
const LONGEST: Duration = Duration::from_micros(400);
/// A look in vain lets the next ones be longer again, from here on.
const SHORTEST: Duration = Duration::from_micros(50);
/// Bytes whose write is waited for awake. With more than this under way it is not the single wake-up that counts but the
/// processor's time.
const LITTLE: usize = 16 << 10;
/// A gap like this between two looks means that somebody else had the processor.
const DRIVEN_OUT: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;
/// After looks in vain, up to two to this power opportunities are passed over.
const RAREST: u32 = 10;

/// Who works for the thread: the log's writer.
pub trait Helper: Send + Sync + 'static {
    /// It was given a little and has not answered: the answer comes soon.
    fn is_busy(&self) -> bool;
    /// How often it was ever given something.
    fn given(&self) -> u64;
    /// It will probably be given something within microseconds.
    fn warn(&self);
}

impl Helper for dassie_storage::UnderWay {
    fn is_busy(&self) -> bool {
        self.bytes().is_some_and(|bytes| bytes <= LITTLE)
    }

    fn given(&self) -> u64 {
        self.handed()
    }

    fn warn(&self) {
        Self::warn(self);
    }
}

/// See the module. One per thread; the runtime calls [`Awake::before_sleep`] before it parks the thread and
/// [`Awake::after_sleep`] when that is over.
#[derive(Default)]
pub struct Awake {
    /// Wakes the runtime.
    inner: OnceLock<Waker>,
    /// The future was woken after its last poll began.
    woken: AtomicBool,
    /// It sleeps, or is about to.
    sleeps: AtomicBool,
    /// A small write is synced, and who waits for it will be told within microseconds.
    synced: Notify,
    helped: OnceLock<(Arc<dyn Clock>, Box<dyn Helper>)>,
    habits: Mutex<Habits>,
}

/// What the thread has learned of itself. Only the thread looks at it.
#[derive(Debug, Default)]
struct Habits {
    success: Success,
    /// It went to sleep while nothing was on its way, when the helper had been given so much.
    slept_at: Option<u64>,
    /// When it was last woken from such a sleep, it gave the helper something to do.
    gives: bool,
}

/// Whether looking pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Success {
    failures: u32,
    pass_over: u32,
    /// How long the next look may be: half as long again as those that succeeded.
    limit: Duration,
}

impl Default for Success {
    fn default() -> Self {
        Self { failures: 0, pass_over: 0, limit: LONGEST }
    }
}

impl Success {
    fn may_look(&mut self) -> bool {
        let may = self.pass_over == 0;
        self.pass_over = self.pass_over.saturating_sub(1);
        may
    }

    /// `woken`: after how long, if at all.
    fn looked(&mut self, woken: Option<Duration>) {
        if let Some(after) = woken {
            self.failures /= 2;
            self.limit = (self.limit * 7 + after * 3 / 2) / 8;
        } else {
            self.failures = (self.failures + 1).min(RAREST);
            self.pass_over = 1 << self.failures;
            self.limit = (self.limit * 5 / 4).clamp(SHORTEST, LONGEST);
        }
    }
}

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // The runtime first: who sees `woken` finds its wake-up there and does not sleep.
        if let Some(inner) = self.inner.get() {
            inner.wake_by_ref();
        }
        self.woken.store(true, Ordering::Release);
    }
}

impl Awake {
    /// Names the helper. Said once; before that the thread sleeps whenever it can.
    pub fn helped_by(&self, helper: impl Helper, clock: Arc<dyn Clock>) {
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
            let _ = self.helped.set((clock, Box::new(helper)));
        }
    }

    /// Runs `future` so that wake-ups of it are noticed here. It must be the one future that the thread's runtime blocks on.
    pub async fn notice<F: Future>(self: Arc<Self>, future: F) -> F::Output {
        let waker = Waker::from(Arc::clone(&self));
        let mut future = pin!(future);
        poll_fn(move |context| {
            // The same one every time: the runtime's own, and it lives as long as the future.
            self.inner.get_or_init(|| context.waker().clone());
            self.woken.store(false, Ordering::Release);
            future.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await
    }

    /// The log's writer has just reported so many bytes. Called by the writer.
    pub fn reported(&self, bytes: usize) {
        // A shard that has to wake up first is not faster than a worker that has to.
        if bytes <= LITTLE && !self.sleeps.load(Ordering::Acquire) {
            self.synced.notify_one();
        }
    }

    /// Runs among the connections' tasks, for ever: keeps their worker awake from the end of a small sync until the shard has told
    /// whoever waited for it. Meanwhile all other tasks of the worker have their turns, and all sockets are looked at.
    pub async fn keep_a_worker_awake(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let mut success = Success::default();
        loop {
            self.synced.notified().await;
            if success.may_look() {
                success.looked(self.await_rest(&*clock, success.limit).await);
            }
        }
    }

    /// Returns when the shard goes to sleep: it has nothing more to tell.
    async fn await_rest(&self, clock: &dyn Clock, limit: Duration) -> Option<Duration> {
        let begin = clock.monotonic();
        let mut last = begin;
        loop {
            if self.sleeps.load(Ordering::Acquire) {
                return Some(last - begin);
            }
            tokio::task::yield_now().await;
            let now = clock.monotonic();
            if now - begin > limit || now - last > DRIVEN_OUT {
                return None;
            }
            last = now;
        }
    }

    /// Returns when the future was woken, or when it is better to sleep.
    pub fn before_sleep(&self) {
        self.look_around();
        self.sleeps.store(!self.is_woken(), Ordering::Release);
    }

    fn look_around(&self) {
        let Some((clock, helper)) = self.helped.get() else { return };
        if self.is_woken() {
            return;
        }
        let mut habits = self.habits();
        let given = helper.given();
        if let Some(before) = habits.slept_at.take() {
            habits.gives = given != before;
        }
        if !helper.is_busy() {
            habits.slept_at = Some(given);
        } else if habits.success.may_look() {
            let woken = self.look(&**clock, habits.success.limit);
            habits.success.looked(woken);
        }
    }

    /// The thread was woken: the helper wakes up at the same time if it will be needed.
    pub fn after_sleep(&self) {
        self.sleeps.store(false, Ordering::Release);
        let Some((_, helper)) = self.helped.get() else { return };
        let habits = self.habits();
        if habits.gives && habits.slept_at.is_some() {
            helper.warn();
        }
    }

    fn habits(&self) -> std::sync::MutexGuard<'_, Habits> {
        self.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    fn look(&self, clock: &dyn Clock, limit: Duration) -> Option<Duration> {
        let begin = clock.monotonic();
        let mut last = begin;
        loop {
            for _ in 0..LOOKS {
                if self.is_woken() {
                    return Some(last - begin);
                }
                std::hint::spin_loop();
            }
            let now = clock.monotonic();
            if now - begin > limit || now - last > DRIVEN_OUT {
                return self.is_woken().then(|| now - begin);
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use super::*;
    use crate::clock::SystemClock;

    /// A runtime's waker that counts.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[derive(Default)]
    struct Writer {
        busy: AtomicBool,
        given: AtomicU64,
        warned: AtomicUsize,
    }

    impl Helper for Arc<Writer> {
        fn is_busy(&self) -> bool {
            self.busy.load(Ordering::SeqCst)
        }

        fn given(&self) -> u64 {
            self.given.load(Ordering::SeqCst)
        }

        fn warn(&self) {
            self.warned.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn helped() -> (Arc<Awake>, Arc<Writer>) {
        let (awake, writer) = (Arc::new(Awake::default()), Arc::new(Writer::default()));
        let _ = awake.helped.set((Arc::new(SystemClock::new()), Box::new(Arc::clone(&writer))));
        (awake, writer)
    }

    #[test]
    fn looks_in_vain_become_rare_and_successful_ones_frequent_again() {
        let mut success = Success::default();
        let looks = |success: &mut Success, woken| {
            (0..2_000).filter(|_| success.may_look().then(|| success.looked(woken)).is_some()).count()
        };
        let soon = Some(Duration::from_micros(100));
        assert!(looks(&mut success, None) < 15);
        assert!(looks(&mut success, None) <= 2);
        assert_eq!(success.limit, LONGEST);
        assert!(looks(&mut success, soon) > 900);
        assert_eq!(looks(&mut success, soon), 2_000);
        assert!(success.limit.abs_diff(Duration::from_micros(150)) < Duration::from_micros(1));
    }

    #[test]
    fn a_wake_up_reaches_the_runtime_and_ends_the_look() {
        let (awake, writer) = helped();
        writer.busy.store(true, Ordering::SeqCst);
        let count = Arc::new(Count::default());
        let runtime = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&runtime);
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<u32>();
        let mut future = pin!(Arc::clone(&awake).notice(async move { receiver.recv().await }));
        assert!(future.as_mut().poll(&mut context).is_pending());
        // Nobody comes: it gives up in good time.
        awake.before_sleep();
        assert!(!awake.is_woken());
        std::thread::spawn(move || sender.send(7)).join().expect("it does not panic").expect("it is awaited");
        assert!(awake.is_woken());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        awake.before_sleep();
        assert_eq!(future.as_mut().poll(&mut context), std::task::Poll::Ready(Some(7)));
        assert!(!awake.is_woken());
    }

    #[test]
    fn nothing_on_its_way_is_not_waited_for() {
        let (awake, _) = helped();
        awake.before_sleep();
        assert_eq!(awake.habits().success, Success::default());
        Awake::default().before_sleep();
    }

    #[test]
    fn a_worker_is_kept_awake_after_a_small_report_until_the_shard_sleeps() {
        let (awake, _) = helped();
        let clock = SystemClock::new();
        let is_told = || {
            let mut told = pin!(awake.synced.notified());
            told.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            awake.reported(LITTLE + 1);
            assert!(!is_told());
            awake.reported(LITTLE);
            assert!(is_told());
            assert_eq!(awake.await_rest(&clock, Duration::ZERO).await, None);
            awake.before_sleep();
            awake.reported(LITTLE);
            assert!(!is_told(), "the shard has to be woken itself");
            assert!(awake.await_rest(&clock, LONGEST).await.is_some());
            awake.after_sleep();
            assert_eq!(awake.await_rest(&clock, Duration::ZERO).await, None);
        });
    }

    #[test]
    fn the_writer_is_warned_as_long_as_waking_up_means_work_for_it() {
        let (awake, writer) = helped();
        let turn = |work: u64| {
            awake.before_sleep();
            awake.after_sleep();
            writer.given.fetch_add(work, Ordering::SeqCst);
            // Its sync is waited for, too, and that is no reason to warn.
            writer.busy.store(work > 0, Ordering::SeqCst);
            awake.before_sleep();
            awake.after_sleep();
            writer.busy.store(false, Ordering::SeqCst);
            writer.warned.swap(0, Ordering::SeqCst)
        };
        assert_eq!([turn(1), turn(1), turn(2)], [0, 1, 1]);
        assert_eq!([turn(0), turn(0)][1], 0);
        assert_eq!([turn(1), turn(1)], [0, 1]);
    }
}
