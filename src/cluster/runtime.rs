//! The runtime as the consensus library sees it: tokio's, with randomness and watches of our own.
//!
//! Owns: the thread's generator for election timeouts and tick phases, and a watch channel for one thread. Promises: on one
//! thread, with one seed and tokio's paused clock, everything the library does happens in the same order every time.
//! Does not know: consensus, storage, sockets.
//!
//! tokio's own watch picks one of eight wait lists at random, so that two waiting tasks wake in a random order; the library
//! waits on watches everywhere. This one wakes in the order of waiting, and needs no atomics on the shard's thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft_rt::OptionalSend;
use openraft_rt_tokio::TokioRuntime;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Fixes what this thread's elections throw from here on. A product thread that never calls it is seeded by the system.
pub fn seed_thread(seed: u64) {
    STATE.set(Some(seed));
}

/// SplitMix64 over the thread's state: uniform, tiny, and the same on every machine.
fn throw() -> u64 {
    // The standard library's hasher keys come from the system's entropy; that is all an election timeout needs.
    let seed = STATE.get().unwrap_or_else(|| RandomState::new().hash_one(0_u64));
    let state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(Some(state));
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The thread's generator; see [`seed_thread`].
#[derive(Debug)]
pub(crate) struct ThreadDice;

impl rand_core::TryRng for ThreadDice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        // The upper half: nothing is lost that matters.
        #[allow(clippy::cast_possible_truncation)]
        Ok((throw() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(throw())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&throw().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// tokio on the shard's thread. Tasks are local: they live on the `LocalSet` that is being polled.
#[derive(Debug)]
pub(crate) struct ShardRuntime(TokioRuntime);

impl AsyncRuntime for ShardRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = ThreadDice;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = LocalWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> ThreadDice {
        ThreadDice
    }

    fn new(threads: usize) -> Self {
        ShardRuntime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Watch channels of one thread.
#[derive(Debug)]
pub(crate) struct LocalWatch;

struct Channel<T> {
    value: RefCell<T>,
    version: Cell<u64>,
    senders: Cell<usize>,
    receivers: Cell<usize>,
    /// Who waits, in the order of waiting. The number tells a waiter that gave up.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next_waiter: Cell<u64>,
}

impl<T> Channel<T> {
    fn changed(&self) {
        self.version.set(self.version.get() + 1);
        self.wake();
    }

    fn wake(&self) {
        // Taken out first: a waker may run code that waits again.
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

/// The sending side of a [`LocalWatch`].
pub(crate) struct LocalSender<T>(Rc<Channel<T>>);

/// The receiving side of a [`LocalWatch`].
pub(crate) struct LocalReceiver<T> {
    channel: Rc<Channel<T>>,
    seen: u64,
}

impl Watch for LocalWatch {
    type Sender<T: OptionalSend + openraft_rt::OptionalSync> = LocalSender<T>;
    type Receiver<T: OptionalSend + openraft_rt::OptionalSync> = LocalReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + openraft_rt::OptionalSync>(init: T) -> (LocalSender<T>, LocalReceiver<T>) {
        let channel = Rc::new(Channel {
            value: RefCell::new(init),
            version: Cell::new(0),
            senders: Cell::new(1),
            receivers: Cell::new(1),
            waiting: RefCell::default(),
            next_waiter: Cell::new(0),
        });
        (LocalSender(channel.clone()), LocalReceiver { channel, seen: 0 })
    }
}

impl<T> Clone for LocalSender<T> {
    fn clone(&self) -> Self {
        self.0.senders.set(self.0.senders.get() + 1);
        LocalSender(self.0.clone())
    }
}

impl<T> Drop for LocalSender<T> {
    fn drop(&mut self) {
        self.0.senders.set(self.0.senders.get() - 1);
        if self.0.senders.get() == 0 {
            self.0.wake();
        }
    }
}

impl<T> WatchSender<LocalWatch, T> for LocalSender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.get() == 0 {
            return Err(SendError(value));
        }
        let old = self.0.value.replace(value);
        drop(old); // not inside the borrow: a value may own a sender
        self.0.changed();
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = modify(&mut self.0.value.borrow_mut());
        if modified {
            self.0.changed();
        }
        modified
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.value.borrow()
    }

    fn subscribe(&self) -> LocalReceiver<T> {
        self.0.receivers.set(self.0.receivers.get() + 1);
        LocalReceiver { channel: self.0.clone(), seen: self.0.version.get() }
    }
}

impl<T> Clone for LocalReceiver<T> {
    fn clone(&self) -> Self {
        self.channel.receivers.set(self.channel.receivers.get() + 1);
        LocalReceiver { channel: self.channel.clone(), seen: self.seen }
    }
}

impl<T> Drop for LocalReceiver<T> {
    fn drop(&mut self) {
        self.channel.receivers.set(self.channel.receivers.get() - 1);
    }
}

/// Leaves the line when its future is dropped: a task that waits for one of many things in a loop must not leave a waker
/// behind for every turn.
struct Place<'a, T> {
    channel: &'a Channel<T>,
    number: u64,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.channel.waiting.borrow_mut().retain(|(number, _)| *number != self.number);
    }
}

impl<T> WatchReceiver<LocalWatch, T> for LocalReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let channel = &*self.channel;
        let number = channel.next_waiter.get();
        channel.next_waiter.set(number + 1);
        let place = Place { channel, number };
        let seen = self.seen;
        let version = poll_fn(|context| {
            if channel.version.get() != seen {
                return Poll::Ready(Ok(channel.version.get()));
            }
            if channel.senders.get() == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            let mut waiting = channel.waiting.borrow_mut();
            match waiting.iter_mut().find(|(known, _)| *known == number) {
                Some((_, waker)) => waker.clone_from(context.waker()),
                None => waiting.push_back((number, context.waker().clone())),
            }
            Poll::Pending
        })
        .await?;
        drop(place);
        self.seen = version;
        Ok(())
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.channel.value.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.channel.version.get();
        self.channel.value.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_throws_one_sequence() {
        seed_thread(7);
        let first: Vec<u64> = (0..5).map(|_| throw()).collect();
        seed_thread(7);
        let second: Vec<u64> = (0..5).map(|_| throw()).collect();
        assert_eq!(first, second);
        seed_thread(8);
        assert_ne!(first[0], throw());
    }

    #[test]
    fn a_watch_tells_every_receiver_once_and_ends_with_its_senders() {
        ShardRuntime::new(1).block_on(async {
            let (sender, mut one) = LocalWatch::channel(1);
            let mut two = sender.subscribe();
            sender.send(2).expect("there are receivers");
            sender.send(3).expect("there are receivers");
            assert!(one.changed().await.is_ok());
            assert_eq!(*one.borrow_watched(), 3);
            assert_eq!(*two.borrow_and_update(), 3);
            drop(sender);
            assert!(one.changed().await.is_err());
            assert!(two.changed().await.is_err());
        });
    }

    #[test]
    fn a_waiter_that_gave_up_leaves_nothing_behind() {
        let (sender, mut receiver) = LocalWatch::channel(1);
        for _ in 0..3 {
            let mut changed = Box::pin(receiver.changed());
            let mut context = std::task::Context::from_waker(Waker::noop());
            assert!(changed.as_mut().poll(&mut context).is_pending());
        }
        assert!(sender.0.waiting.borrow().is_empty());
    }

    #[test]
    fn the_library_accepts_this_runtime() {
        openraft_rt::testing::Suite::<ShardRuntime>::test_all();
    }
}
