//! Bodies of answers: whole, or made while they are read.
//!
//! Owns: nothing. Promises: of a body that is made on the way at most a few pieces wait; when its reader goes, its maker is told by
//! the failed send. Does not know: what is in them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// Pieces that wait for the reader.
const PIECES: usize = 2;

/// See the module.
#[derive(Debug)]
pub(super) enum Body {
    /// Known; empty when it was given.
    Whole(Bytes),
    /// Made by a task.
    Made(mpsc::Receiver<Bytes>),
    /// Likewise, and it may take hours: its connection lives as long. Whoever makes it gives up a reader that takes nothing.
    Long(mpsc::Receiver<Bytes>, Option<Under>),
}

/// A long body is under way while this lives.
#[derive(Debug)]
pub(super) struct Under(Arc<AtomicBool>);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Body {
    /// A body, and where its pieces go. Dropping the sender ends it.
    pub(super) fn made() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(PIECES);
        (sender, Self::Made(receiver))
    }

    /// Says in `under_way` whether this is a long one, until it ends.
    pub(super) fn tell(&mut self, under_way: &Arc<AtomicBool>) {
        if let Self::Long(_, under) = self {
            under_way.store(true, Ordering::Relaxed);
            *under = Some(Under(Arc::clone(under_way)));
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Self::Made(pieces) | Self::Long(pieces, _) => match pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece,
            },
        };
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Made(_) | Self::Long(..) => SizeHint::default(),
        }
    }
}
