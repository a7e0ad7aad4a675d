//! A node asks to be let in (`dassie cluster join`), or how the others are (`GET /cluster` of a follower).
//!
//! Owns: these questions and their answers on a stream of purpose `Admin`. Promises: only the leader lets somebody in; another node says who
//! leads and where; who asks is who the handshake said, and a number that is taken is refused.
//! Does not know: what the new node does with its store.
//!
//! To be let in: 1, the store (16), the address (the rest). The answers: 0: it is a learner now; 1 and a reason; 2, the number of
//! the leader (8), its address (the rest).
//! How the members are: 2. The answers: 3 and [`Figures`] in postcard's form, from the leader only; 1 and a reason. A release that does
//! not know the question answers 1.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use dassie_storage::Uuid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::keeper::Command;
use super::members::{Member, View};
use super::stream::{PeerStream, Purpose};
use super::transport::{Guest, Transport};
use super::types::Node;
use crate::limits;

const JOIN: u8 = 1;
const MEMBERS: u8 = 2;
const DONE: u8 = 0;
const REFUSED: u8 = 1;
const ELSEWHERE: u8 = 2;
const FIGURES: u8 = 3;

/// How long letting somebody in may take: a majority has to sync it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes that are let in at once.
const AT_ONCE: usize = 4;

/// How long a follower waits for its leader's figures: whoever looks at a cluster in trouble wants to see that soon.
const FIGURES_WITHIN: Duration = Duration::from_millis(700);

/// What only a leader knows of its members: number, `matched`, `lag_bytes`, `silent_ms`, as in [`Member`].
type Figures = Vec<(u64, Option<u64>, Option<u64>, Option<u64>)>;

/// Answers those who ask, from here on. Must be called on the transport's runtime.
pub fn serve(
    transport: &Arc<Transport>,
    commands: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<Arc<View>>,
) {
    let (guests, mut coming) = mpsc::channel::<Guest>(AT_ONCE);
    transport.on(Purpose::Admin, guests);
    let transport = Arc::clone(transport);
    tokio::spawn(async move {
        while let Some((node, mut stream)) = coming.recv().await {
            let question = timeout(Duration::from_millis(limits::PEER_HANDSHAKE_MS), stream.reader.receive());
            // Most only wanted to know who is here, and are gone.
            let Ok(Ok(Some(question))) = question.await else { continue };
            let answer = answer(&transport, &commands, &view, node, &question).await;
            let _ = timeout(PATIENCE, stream.writer.send(&[Bytes::from(answer)])).await;
        }
    });
}

fn refused(reason: &str) -> Vec<u8> {
    [&[REFUSED], reason.as_bytes()].concat()
}

fn figures(view: &View) -> Vec<u8> {
    if view.leader() != Some(view.node) {
        return refused("it does not lead");
    }
    let one = |(node, m): (&u64, &Member)| (*node, m.matched, m.lag_bytes, m.silent_ms);
    let figures: Figures = view.members.iter().map(one).collect();
    postcard::to_extend(&figures, vec![FIGURES]).unwrap_or_else(|error| refused(&error.to_string()))
}

/// Completes what a follower knows of the members with what its leader knows; leaves it as it is when that one does not say so soon.
pub async fn complete(transport: &Arc<Transport>, view: &mut View) {
    let Some(leader) = view.leader().filter(|leader| *leader != view.node) else { return };
    let Some(address) = transport.address(leader) else { return };
    let asked = async {
        let (_, mut stream) = transport.greet(leader, &address).await.ok()?;
        stream.writer.send(&[Bytes::from_static(&[MEMBERS])]).await.ok()?;
        let answer = stream.reader.receive().await.ok()??;
        let (_, figures) = answer.split_first().filter(|(kind, _)| **kind == FIGURES)?;
        postcard::from_bytes::<Figures>(figures).ok()
    };
    let Ok(Some(figures)) = timeout(FIGURES_WITHIN, asked).await else { return };
    for (node, matched, lag_bytes, silent_ms) in figures {
        if let Some(member) = view.members.get_mut(&node) {
            (member.matched, member.lag_bytes, member.silent_ms) = (matched, lag_bytes, silent_ms);
        }
    }
}

async fn answer(
    transport: &Arc<Transport>,
    commands: &mpsc::UnboundedSender<Command>,
    view: &watch::Receiver<Arc<View>>,
    node: u64,
    question: &[u8],
) -> Vec<u8> {
    if question == [MEMBERS] {
        return figures(&view.borrow());
    }
    let parsed = question.split_first().filter(|(kind, _)| **kind == JOIN);
    let parsed = parsed.and_then(|(_, rest)| rest.split_first_chunk::<16>());
    let Some((store, Ok(address))) = parsed.map(|(store, rest)| (*store, std::str::from_utf8(rest))) else {
        return refused("not a question that this release knows");
    };
    if address.is_empty() || address.len() > limits::PEER_CARD_MAX || address.chars().any(char::is_control) {
        return refused("its address is no address");
    }
    let (me, leader, known) = {
        let view = view.borrow();
        (view.node, view.leader(), view.members.get(&node).map(|member| member.node.store))
    };
    match leader {
        Some(leader) if leader == me => {}
        Some(leader) => {
            let mut elsewhere = vec![ELSEWHERE];
            elsewhere.put_u64_le(leader);
            elsewhere.extend_from_slice(transport.address(leader).unwrap_or_default().as_bytes());
            return elsewhere;
        }
        None => return refused("no leader is known"),
    }
    match known {
        Some(known) if known == store => return vec![DONE],
        Some(_) => return refused("another node has this number"),
        None => {}
    }
    let (done, waiting) = oneshot::channel();
    if commands.send(Command::Add(node, Node { address: address.to_owned(), store }, done)).is_err() {
        return refused("the node is ending");
    }
    match timeout(PATIENCE, waiting).await {
        Ok(Ok(Ok(()))) => vec![DONE],
        Ok(Ok(Err(error))) => refused(&error.to_string()),
        _ => refused("the others have not agreed in time: is there a majority?"),
    }
}

/// Asks the node behind `stream`, and whoever leads instead of it, to let this node with `store` in.
///
/// # Errors
/// What it says; `TimedOut` when nobody led for too long.
pub async fn join(transport: &Arc<Transport>, mut stream: PeerStream, store: Uuid) -> io::Result<()> {
    let address = transport.card().address;
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    for _ in 0..5 {
        let question = [&[JOIN], &store[..], address.as_bytes()].concat();
        stream.writer.send(&[Bytes::from(question)]).await?;
        let answer =
            timeout(2 * PATIENCE, stream.reader.receive()).await.map_err(|_| wrong("no answer"))??;
        let answer = answer.ok_or_else(|| wrong("no answer"))?;
        match answer.split_first() {
            Some((&DONE, _)) => return Ok(()),
            Some((&ELSEWHERE, rest)) => {
                let (leader, address) =
                    rest.split_first_chunk::<8>().ok_or_else(|| wrong("a broken answer"))?;
                let address = std::str::from_utf8(address).map_err(|_| wrong("a broken answer"))?;
                stream = transport.greet(u64::from_le_bytes(*leader), address).await?.1;
            }
            Some((&REFUSED, reason)) => {
                return Err(io::Error::other(format!("refused: {}", String::from_utf8_lossy(reason))));
            }
            _ => return Err(wrong("a broken answer")),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "nobody says that it leads"))
}
