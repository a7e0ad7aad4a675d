//! Copies of the store between nodes: to one that is far behind, and from the leader when this node is that one.
//!
//! Owns: the threads that copy, what is held meanwhile, the whole copy that waits for the log to be closed. Promises: a copy takes
//! nothing from the shard's thread, the log writer or maintenance but a moment to hold the newest checkpoint; one copy comes in at a
//! time, the newest; a copy that came in whole makes the process start again ([`Incoming::again`]), orderly.
//! Does not know: what is copied (`cluster::copy`, storage), when a copy is needed.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dassie_storage::{CopySource, CopyTarget, Log, RealDisk, block_on};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::cluster::copy::{Carried, Carry, Rate, Receiver, receive, send};
use crate::cluster::peer::{EntryId, NoAnswer};
use crate::cluster::stream::{PeerStream, Purpose};
use crate::cluster::transport::{Guest, Transport};
use crate::limits;

/// The newest checkpoint, held; `None` when there is none.
pub type HeldIn = oneshot::Sender<io::Result<Option<CopySource>>>;

/// Copies that leave this node.
#[derive(Clone)]
pub struct Outgoing {
    /// The way to the others.
    pub transport: Arc<Transport>,
    /// Asks where checkpoints are written.
    pub hold: Arc<dyn Fn(HeldIn) + Send + Sync>,
    /// Bytes a second.
    pub rate: u64,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// For a node that stands alone.
#[must_use]
pub fn nowhere() -> Box<Carry> {
    Box::new(|_, _| {
        Box::pin(std::future::ready(Err(NoAnswer::Unreachable("this node stands alone".to_owned()))))
    })
}

/// Runs on a thread of its own with timers; the process ends when it panics.
pub(crate) fn spawn(
    name: &'static str,
    run: impl FnOnce(tokio::runtime::Runtime) + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let guard = move || {
        let _guard = crate::process::AbortOnPanic::new(name);
        run(runtime);
    };
    std::thread::Builder::new().name(name.into()).spawn(guard).map(drop)
}

impl Outgoing {
    /// What the cluster calls when a node needs a copy.
    #[must_use]
    pub fn carry(self) -> Box<Carry> {
        Box::new(move |target, enough| {
            let this = self.clone();
            Box::pin(async move { this.carry_to(target, enough).await })
        })
    }

    async fn carry_to(self, target: u64, enough: EntryId) -> Result<Carried, NoAnswer> {
        let unreachable = |why: &dyn std::fmt::Display| NoAnswer::Unreachable(why.to_string());
        let stream = self.transport.connect(target, Purpose::Copy).await.map_err(|e| unreachable(&e))?;
        let (held_in, held) = oneshot::channel();
        (self.hold)(held_in);
        let held = held.await.map_err(|_| unreachable(&"no checkpoint can be held now"))?;
        let Some(source) = held.map_err(|e| unreachable(&e))? else {
            return Err(unreachable(&"there is no checkpoint yet"));
        };
        let (index, bytes, began) =
            (source.offer().point.index, source.offer().bytes(), self.clock.monotonic());
        match self.send(source, enough, stream).await {
            Ok(Carried::Has) => Ok(Carried::Has),
            Ok(Carried::Ready) => {
                let seconds = self.clock.monotonic().saturating_sub(began).as_secs_f64();
                tracing::info!(
                    "node {target} lacked what is below the log floor and has a copy now: up to entry {index}, {} MiB at most, \
                     in {seconds:.1} s; it starts again with it",
                    bytes >> 20
                );
                Ok(Carried::Ready)
            }
            Err(error) => {
                tracing::warn!(
                    "node {target} lacks what is below the log floor; its copy was interrupted: {error}"
                );
                Err(NoAnswer::Lost(error.to_string()))
            }
        }
    }

    /// Reads and sends on a thread of its own. Dropped, it stops.
    async fn send(&self, source: CopySource, enough: EntryId, stream: PeerStream) -> io::Result<Carried> {
        let (mut done, result) = oneshot::channel();
        let rate = Rate::new(self.rate);
        spawn("copy out", move |runtime| {
            runtime.block_on(async move {
                let sent = tokio::select! {
                    sent = send(&source, enough, stream, &rate) => Some(sent),
                    () = done.closed() => None,
                };
                drop(source);
                if let Some(sent) = sent {
                    let _ = done.send(sent);
                }
            });
        })?;
        result.await.unwrap_or_else(|_| Err(io::Error::other("the copy's thread ended")))
    }
}

/// A whole copy that waits for the log to be closed.
#[derive(Default)]
pub struct Whole(Mutex<Option<CopyTarget>>);

impl Whole {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<CopyTarget>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides that the store becomes the copy, if one came in. `log` must be closed.
    pub fn commit(&self, log: &Log<RealDisk>) {
        let Some(target) = self.lock().take() else { return };
        let point = target.offer().point;
        if log.point(point.index).is_ok_and(|known| known == Some(point)) {
            // A later leader has sent what was missing as entries: these are worth more.
            return tracing::info!("the copy up to entry {} is not needed any more", point.index);
        }
        match block_on(target.commit()) {
            Ok(()) => tracing::info!("this node's store becomes the copy up to entry {}", point.index),
            Err(error) => {
                tracing::warn!("the copy up to entry {} can not be put in place: {error}", point.index)
            }
        }
    }
}

/// Copies that come to this node.
pub struct Incoming {
    /// Where they come in.
    pub to: Receiver<RealDisk>,
    /// Keeps one that is whole.
    pub whole: Arc<Whole>,
    /// Told when one is whole: the node must end, and start again.
    pub again: watch::Sender<bool>,
}

impl Incoming {
    /// Takes copies in from here on.
    ///
    /// # Errors
    /// What the system says when there can be no thread.
    pub fn begin(self, transport: &Transport) -> io::Result<()> {
        let (guests_in, guests) = mpsc::channel(limits::COPIES_WAITING);
        transport.on(Purpose::Copy, guests_in);
        spawn("copy in", move |runtime| runtime.block_on(self.take_in(guests)))
    }

    async fn take_in(self, mut guests: mpsc::Receiver<Guest>) {
        let (mut copy, mut next) = (None, guests.recv().await);
        while let Some((node, stream)) = next.take() {
            let received = tokio::select! {
                received = receive(&self.to, stream, &mut copy) => received,
                // Who offers now is the leader now; the one before is gone, or will see that he is.
                newer = guests.recv() => {
                    next = newer;
                    continue;
                }
            };
            match received {
                Ok(Carried::Has) => {}
                Ok(Carried::Ready) => {
                    tracing::info!("node {node} has sent a whole copy of its store: starting again with it");
                    *self.whole.lock() = copy.take();
                    self.again.send_replace(true);
                    return;
                }
                Err(error) => tracing::warn!("the copy from node {node}: {error}"),
            }
            next = guests.recv().await;
        }
    }
}

/// Segments (first positions) that nothing will ask for again: no copy carries them.
#[derive(Default)]
pub struct Dead(Mutex<BTreeSet<u64>>);

impl Dead {
    /// These are all there are now.
    pub fn are(&self, segments: impl IntoIterator<Item = u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = segments.into_iter().collect();
    }

    /// Whether a copy must have this one.
    #[must_use]
    pub fn lacks(&self, segment: u64) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&segment)
    }
}
