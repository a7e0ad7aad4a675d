//! Looks after the membership: shows it, says what changes in it, and lets listed nodes in.
//!
//! Owns: the [`View`] that other threads see, one log line per event, the leader's steps toward the cluster that is listed.
//! Promises: a listed node that has a store of this cluster becomes a learner, and learners that have caught up become voters, all
//! of them together, so that a cluster never stands on two voters on its way to three; a change of voters that a leader began
//! and did not end is ended; commands of operators are carried out here or refused with the reason.
//! Does not know: how a store is born ([`super::formation`]), what a checkpoint copies.
//!
//! Runs on the shard's thread.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dassie_storage::{Apply, Disk};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::calls::{Asked, Calls};
use super::driver::{Replica, Role};
use super::members::View;
use super::transport::Transport;
use super::types::Node;

/// How often lags and silences are looked at, and the leader looks for somebody to let in.
const LOOK: Duration = Duration::from_secs(1);
/// The same while somebody is on his way in.
const BUSY: Duration = Duration::from_millis(100);
/// A learner that lacks no more than this counts as caught up: less than a second of a slow link. Bytes.
const CAUGHT_UP: u64 = 1 << 20;
/// Who has answered so lately is there. ms.
const AWAKE_MS: u64 = 2_000;
/// How long one of them has to take the lead.
const HAND_OVER: Duration = Duration::from_millis(600);
/// How many are asked to take the lead before the node ends all the same.
const CANDIDATES: usize = 2;

/// What somebody asks of this node's replica.
pub enum Command {
    /// Hand the lead to another voter, if this node has it. Answered when it is done, or will not be.
    HandOver(oneshot::Sender<()>),
    /// Let a node with a store of this cluster in.
    Add(u64, Node, oneshot::Sender<io::Result<()>>),
    /// Take a member out.
    Remove(u64, oneshot::Sender<io::Result<()>>),
}

/// What joins a replica to its cluster.
pub struct Keeper {
    /// The way to the others.
    pub transport: Arc<Transport>,
    /// What they ask.
    pub asked: mpsc::UnboundedReceiver<Asked>,
    /// What operators ask.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Told what is seen.
    pub view: watch::Sender<Arc<View>>,
}

impl Keeper {
    /// Starts the tasks that look after `replica`, which reaches its peers by `calls`.
    pub fn attend<D: Disk, A: Apply + 'static>(self, replica: &Replica<D, A>, calls: Calls) {
        let Keeper { transport, mut asked, mut commands, view } = self;
        let (answering, commanded) = (replica.clone(), replica.clone());
        let ways = Arc::clone(&transport);
        spawn_local(async move {
            while let Some(Asked { request, answer, .. }) = asked.recv().await {
                let replica = answering.clone();
                // Begun in the order of arrival, which is what appends want; each waits for its own sync.
                spawn_local(async move {
                    if !replica.is_closing()
                        && let Ok(answered) = replica.answer(request).await
                    {
                        let _ = answer.send(answered);
                    }
                });
            }
        });
        spawn_local(async move {
            while let Some(command) = commands.recv().await {
                match command {
                    Command::HandOver(done) => {
                        hand_over(&commanded, &ways).await;
                        let _ = done.send(());
                    }
                    Command::Add(id, node, done) => {
                        let _ = done.send(commanded.add_learner(id, node).await);
                    }
                    Command::Remove(node, done) => {
                        let _ = done.send(commanded.remove(node).await);
                    }
                }
            }
        });
        spawn_local(show(replica.clone(), calls, Arc::clone(&transport), view));
        spawn_local(let_in(replica.clone(), transport));
    }
}

/// The lead goes to the voter that has the most, so that it has the rest soon; when that one does not take it, to the next.
async fn hand_over<D: Disk, A: Apply + 'static>(replica: &Replica<D, A>, transport: &Transport) {
    let mut role = replica.role();
    if !matches!(*role.borrow_and_update(), Role::Leader { .. }) {
        return;
    }
    let (view, links) = (replica.view(), transport.links());
    let is_there = |id: u64, silent: Option<u64>| {
        id != view.node
            && silent.is_some_and(|ms| ms < AWAKE_MS)
            && links.get(&id).is_some_and(Option::is_none)
    };
    let others = view.members.iter().filter(|(id, one)| one.voter && is_there(**id, one.silent_ms));
    let mut others: Vec<(u64, Option<u64>)> = others.map(|(id, one)| (*id, one.matched)).collect();
    others.sort_by_key(|(_, matched)| std::cmp::Reverse(*matched));
    for (next, _) in others.into_iter().take(CANDIDATES) {
        tracing::info!("handing the lead to node {next}");
        let handing = async {
            replica.transfer_lead(next).await?;
            role.wait_for(|role| matches!(role, Role::Follower { .. })).await.map_err(io::Error::other)?;
            io::Result::Ok(())
        };
        if matches!(timeout(HAND_OVER, handing).await, Ok(Ok(()))) {
            return;
        }
        tracing::warn!("node {next} did not take the lead in time");
    }
}

/// Shows the cluster to other threads, and says what changed.
async fn show<D: Disk, A: Apply + 'static>(
    replica: Replica<D, A>,
    calls: Calls,
    transport: Arc<Transport>,
    shown: watch::Sender<Arc<View>>,
) {
    let mut metrics = replica.raft().server_metrics();
    loop {
        metrics.borrow_and_update();
        let view = replica.view();
        let before = shown.borrow().clone();
        tell(&before, &view);
        let nodes = |view: &View| view.members.iter().map(|(id, one)| (*id, one.node.clone())).collect();
        if before.members.len() != view.members.len()
            || view
                .members
                .iter()
                .any(|(id, one)| before.members.get(id).is_none_or(|old| old.node != one.node))
        {
            transport.members_are(nodes(&view));
            calls.connect_to(view.members.keys().copied());
        }
        shown.send_replace(Arc::new(view));
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

fn tell(before: &View, now: &View) {
    if before.role != now.role {
        match now.role {
            Role::Leader { term } => tracing::info!("this node leads, term {term}"),
            Role::Follower { leader } => tracing::info!("node {leader} leads, term {}", now.term),
            Role::Looking => tracing::warn!("no leader is known"),
        }
    }
    for (id, member) in &now.members {
        let kind = if member.voter { "a voter" } else { "a learner" };
        match before.members.get(id) {
            None => tracing::info!("member {id} at '{}': {kind}", member.node.address),
            Some(old) if old.voter != member.voter => tracing::info!("member {id} is {kind} now"),
            Some(old) if old.node.address != member.node.address => {
                tracing::info!("member {id} is at '{}' now", member.node.address);
            }
            Some(_) => {}
        }
    }
    for id in before.members.keys().filter(|id| !now.members.contains_key(id)) {
        tracing::info!("member {id} is out");
    }
    if now.voters() == 2 && (before.voters() != 2) {
        tracing::warn!(
            "two voters are not highly available: when either is down, nothing is confirmed; three are"
        );
    }
}

/// While this node leads: makes the cluster the one that is listed.
async fn let_in<D: Disk, A: Apply + 'static>(replica: Replica<D, A>, transport: Arc<Transport>) {
    let mut said = String::new();
    loop {
        let pause = if replica.leads().is_some() {
            match step(&replica, &transport).await {
                Ok(true) => BUSY,
                Ok(false) => LOOK,
                Err(why) => {
                    let why = why.to_string();
                    if why != said {
                        tracing::info!("waiting for {why}");
                        said = why;
                    }
                    LOOK
                }
            }
        } else {
            LOOK
        };
        sleep(pause).await;
    }
}

/// One step; true: there is more to do soon.
async fn step<D: Disk, A: Apply + 'static>(
    replica: &Replica<D, A>,
    transport: &Arc<Transport>,
) -> io::Result<bool> {
    let view = replica.view();
    let card = transport.card();
    if view.changing && !view.joint {
        return Ok(true);
    }
    if view.joint {
        replica.promote(BTreeSet::new()).await?;
        return Ok(true);
    }
    let store = card.replicates.map_or([0; 16], |replicates| replicates.store);
    let myself = Node { address: card.address, store };
    if view.members.get(&view.node).is_some_and(|member| member.node != myself) {
        replica.describe(view.node, myself).await?;
        return Ok(true);
    }
    let listed = &transport.settings().peers;
    let mut missing = None;
    for (id, address) in listed.iter().filter(|(id, _)| **id != view.node) {
        if view.members.contains_key(id) {
            continue;
        }
        match transport.greet(*id, address).await {
            Ok((theirs, _)) => {
                let Some(theirs) = theirs.replicates else {
                    missing = Some(Ok(())); // it will ask us who we are, make its store and be here soon
                    continue;
                };
                replica.add_learner(*id, Node { address: address.clone(), store: theirs.store }).await?;
                return Ok(true);
            }
            Err(error) => missing = Some(Err(error)),
        }
    }
    if let Some(missing) = missing {
        return missing.map(|()| true);
    }
    let learners = || view.members.iter().filter(|(_, member)| !member.voter);
    if learners().next().is_none() {
        return Ok(false);
    }
    let is_here = |lag: Option<u64>, silent: Option<u64>| {
        lag.is_some_and(|lag| lag <= CAUGHT_UP) && silent.is_some_and(|ms| ms < AWAKE_MS)
    };
    if learners().all(|(_, member)| is_here(member.lag_bytes, member.silent_ms)) {
        replica.promote(learners().map(|(id, _)| *id).collect()).await?;
    }
    Ok(true)
}
