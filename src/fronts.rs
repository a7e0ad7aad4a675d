//! Joins the shard to the streams over which followers serve their clients (ADR 12).
//!
//! Owns: the stream to the leader, kept while this node follows one, and those that followers opened to this node. Promises: a stream
//! ends when either side of it does, and the shard hears of it; the way to a leader is tried again soon, and to a new one at once.
//! Does not know: what is said on them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::broker::link::Shard;
use crate::cluster::Role;
use crate::cluster::stream::{PeerStream, Purpose};
use crate::cluster::transport::Transport;

/// Waits between two attempts to reach the leader.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// Followers that knock at the same time.
const KNOCKING: usize = 8;

/// Serves followers, and keeps a stream to whoever `role` says leads.
pub fn attend(transport: &Arc<Transport>, shard: &Shard, role: watch::Receiver<Role>) {
    let (guests_in, mut guests) = mpsc::channel(KNOCKING);
    transport.on(Purpose::Front, guests_in);
    let serving = shard.clone();
    transport.runtime().spawn(async move {
        while let Some((node, stream)) = guests.recv().await {
            let shard = serving.clone();
            tokio::spawn(async move { carry(stream, node, false, &shard).await });
        }
    });
    transport.runtime().spawn(follow(Arc::clone(transport), shard.clone(), role));
}

async fn follow(transport: Arc<Transport>, shard: Shard, mut role: watch::Receiver<Role>) {
    let mut wait = FIRST_WAIT;
    loop {
        let now = *role.borrow_and_update();
        let Role::Follower { leader } = now else {
            if role.changed().await.is_err() {
                return;
            }
            wait = FIRST_WAIT;
            continue;
        };
        let serve = async {
            match transport.connect(leader, Purpose::Front).await {
                Ok(stream) => {
                    carry(stream, leader, true, &shard).await;
                    wait = FIRST_WAIT;
                }
                Err(error) => {
                    tracing::debug!("no way to the leader, node {leader}: {error}");
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
            sleep(wait).await;
        };
        tokio::select! {
            () = serve => {}
            changed = role.wait_for(|role| *role != now) => {
                if changed.is_err() {
                    return;
                }
                wait = FIRST_WAIT;
            }
        }
    }
}

/// Carries frames both ways until an end is gone.
async fn carry(stream: PeerStream, node: u64, leads: bool, shard: &Shard) {
    let PeerStream { mut reader, mut writer } = stream;
    let (frames_in, mut frames) = mpsc::unbounded_channel();
    let door = shard.attach(node, leads, frames_in);
    let arriving = async {
        while let Ok(Some(frame)) = reader.receive().await {
            if !door.frame(frame) {
                return;
            }
        }
    };
    let leaving = async {
        while let Some(frame) = frames.recv().await {
            if writer.send(&[frame]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = arriving => {}
        () = leaving => {}
    }
}
