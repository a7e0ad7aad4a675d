//! What replicas say to each other, and the way there.
//!
//! Owns: the messages in plain types, so that a transport can encode them without knowing the consensus library; the trait
//! [`Peers`] it implements. Promises: a message converts to the library's and back without loss; entries keep their leader
//! and their payload's bytes, so that logs are equal on all nodes.
//! Does not know: sockets, encodings, who is leader.

use std::future::ready;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use dassie_storage::{Batch, LogPoint};
use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::vote::RaftLeaderId;

use super::copy::Holds;
use super::log_store::entry_of;
use super::membership::log_id;
use super::types::{Config, Entry, LeaderId, LogId, Node, Vote};
use crate::limits;

/// Who asks for the lead, or has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    /// Term.
    pub term: u64,
    /// Node voted for.
    pub node: u64,
    /// A quorum has granted it: the node leads.
    pub granted: bool,
}

/// Names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryId {
    /// Term of the leader that proposed it.
    pub term: u64,
    /// Its place in the log.
    pub index: u64,
}

/// An entry on its way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Its name.
    pub id: EntryId,
    /// The leader that proposed it; part of the batch header.
    pub leader: u64,
    /// Kind of the batch.
    pub kind: u8,
    /// Payload of the batch.
    pub payload: Bytes,
}

/// A question to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Take these entries; without any it is a heartbeat.
    Append {
        /// Who says so.
        ballot: Ballot,
        /// The entry before the first.
        previous: Option<EntryId>,
        /// Consecutive entries.
        entries: Vec<Carried>,
        /// What is committed.
        committed: Option<EntryId>,
    },
    /// Vote for me.
    Vote {
        /// The vote asked for.
        ballot: Ballot,
        /// The last entry of the one who asks.
        last: Option<EntryId>,
        /// The leader itself asked for it: its lease does not count.
        transfer: bool,
        /// Only whether it would be granted.
        pre: bool,
    },
    /// Take the lead over.
    Transfer {
        /// The leader that gives it up.
        ballot: Ballot,
        /// To whom.
        to: u64,
        /// What it must have.
        last: Option<EntryId>,
    },
}

/// A peer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All entries are durable there.
    Appended,
    /// Entries up to this one are.
    AppendedTo(Option<EntryId>),
    /// The entry before the first is another one there.
    Conflict,
    /// There is a later vote.
    HigherVote(Ballot),
    /// To a vote.
    Vote {
        /// The vote that stands there now.
        ballot: Ballot,
        /// Its last entry.
        last: Option<EntryId>,
        /// Whether it was (or would be) granted.
        granted: bool,
    },
    /// To a transfer: it tries.
    Transferring,
    /// To a transfer: it can not.
    NotTransferring,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nothing can be sent now; the caller backs off.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// What became of the request is not known.
    #[error("lost: {0}")]
    Lost(String),
}

/// The way to the other replicas.
#[allow(async_fn_in_trait)] // all of it lives on the shard's thread
pub trait Peers: 'static {
    /// Asks a peer and waits for its answer, at most `patience`. Requests to one peer may overtake each other; one that was
    /// not answered may still arrive.
    async fn call(
        &self,
        target: u64,
        node: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer>;

    /// Brings a peer that lacks entries below the log floor the newest checkpoint and what belongs to it; `Ok` when it has the entry
    /// `enough`, or all of that, durably. May take minutes; dropped, it stops and can be taken up again.
    async fn copy(&self, target: u64, _enough: EntryId) -> Result<(), NoAnswer> {
        Err(NoAnswer::Unreachable(format!(
            "node {target} lacks entries below the log floor, and has no way to a copy"
        )))
    }
}

/// For a node that stands alone.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    async fn call(&self, target: u64, _: &Node, _: Request, _: Duration) -> Result<Answer, NoAnswer> {
        Err(NoAnswer::Unreachable(format!("this node stands alone and has no way to node {target}")))
    }
}

/// A node that may stand alone.
impl<P: Peers> Peers for Option<P> {
    async fn call(
        &self,
        target: u64,
        node: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        match self {
            Some(peers) => peers.call(target, node, request, patience).await,
            None => NoPeers.call(target, node, request, patience).await,
        }
    }
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        Ballot { term: vote.leader_id.term, node: vote.leader_id.voted_for, granted: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        Vote { leader_id: LeaderId::new(ballot.term, ballot.node), committed: ballot.granted }
    }
}

impl From<LogId> for EntryId {
    fn from(id: LogId) -> Self {
        EntryId { term: **id.committed_leader_id(), index: id.index() }
    }
}

impl From<EntryId> for LogId {
    fn from(id: EntryId) -> Self {
        log_id(id.term, id.index)
    }
}

/// An entry that goes to a peer was read from this node's log.
fn carried(entry: Entry) -> io::Result<Carried> {
    let id = entry.id.into();
    let batch = entry
        .batch
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an entry that is not in the log"))?;
    Ok(Carried { id, leader: batch.point.leader, kind: batch.kind, payload: batch.payload })
}

fn arrived(carried: Carried) -> io::Result<Entry> {
    let Carried { id, leader, kind, payload } = carried;
    let nowhere = LogPoint { index: id.index, term: id.term, leader, position: 0, end: 0, hash: 0 };
    let entry = entry_of(Batch { point: nowhere, kind, payload, payload_position: 0 })?;
    // It is in no log here yet; only its leader is known.
    Ok(Entry { batch: None, ..entry })
}

/// Appends on their way to one peer at once: the next leaves while the peer syncs the one before, and what is committed is told
/// at once. At most so many times the log store's 4 MiB.
const PIPELINE: usize = 4;

/// How long an append may take: a peer answers when its disk has synced. Far longer than a leader's lease, which ends first.
const APPEND_PATIENCE: Duration = Duration::from_secs(5);

/// The library's request for ours.
pub(crate) enum Question {
    Append(AppendEntriesRequest<Config>),
    Vote(VoteRequest<Config>),
    PreVote(VoteRequest<Config>),
    Transfer(TransferLeaderRequest<Config>),
}

impl Request {
    pub(crate) fn question(self) -> io::Result<Question> {
        Ok(match self {
            Request::Append { ballot, previous, entries, committed } => {
                Question::Append(AppendEntriesRequest {
                    vote: ballot.into(),
                    prev_log_id: previous.map(LogId::from),
                    entries: entries.into_iter().map(arrived).collect::<io::Result<_>>()?,
                    leader_commit: committed.map(LogId::from),
                })
            }
            Request::Vote { ballot, last, transfer, pre } => {
                let mut request = VoteRequest::new(ballot.into(), last.map(LogId::from));
                request.leadership_transfer = transfer;
                if pre { Question::PreVote(request) } else { Question::Vote(request) }
            }
            Request::Transfer { ballot, to, last } => {
                Question::Transfer(TransferLeaderRequest::new(ballot.into(), to, last.map(LogId::from)))
            }
        })
    }
}

fn vote_request(request: &VoteRequest<Config>, pre: bool) -> Request {
    Request::Vote {
        ballot: request.vote.into(),
        last: request.last_log_id.map(EntryId::from),
        transfer: request.leadership_transfer,
        pre,
    }
}

impl From<AppendEntriesResponse<Config>> for Answer {
    fn from(response: AppendEntriesResponse<Config>) -> Self {
        match response {
            AppendEntriesResponse::Success => Answer::Appended,
            AppendEntriesResponse::PartialSuccess(id) => Answer::AppendedTo(id.map(EntryId::from)),
            AppendEntriesResponse::Conflict => Answer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(vote.into()),
        }
    }
}

impl From<VoteResponse<Config>> for Answer {
    fn from(response: VoteResponse<Config>) -> Self {
        Answer::Vote {
            ballot: response.vote.into(),
            last: response.last_log_id.map(EntryId::from),
            granted: response.vote_granted,
        }
    }
}

/// Makes the library's clients.
pub(crate) struct Network<P> {
    pub(crate) peers: Rc<P>,
    pub(crate) holds: Rc<Holds>,
}

/// The library's client to one peer.
pub(crate) struct Client<P> {
    peers: Rc<P>,
    holds: Rc<Holds>,
    target: u64,
    node: Node,
}

impl<P: Peers> RaftNetworkFactory<Config> for Network<P> {
    type Network = Client<P>;

    async fn new_client(&mut self, target: u64, node: &Node) -> Client<P> {
        Client { peers: self.peers.clone(), holds: self.holds.clone(), target, node: node.clone() }
    }
}

impl From<NoAnswer> for RPCError<Config> {
    fn from(reason: NoAnswer) -> Self {
        match reason {
            NoAnswer::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&reason)),
            NoAnswer::Lost(_) => RPCError::Network(NetworkError::new(&reason)),
        }
    }
}

/// The answers to appends, in the order of the appends.
type Appending<'s> = BoxFuture<
    's,
    Result<BoxStream<'s, Result<StreamAppendResult<Config>, RPCError<Config>>>, RPCError<Config>>,
>;

impl<P: Peers> Client<P> {
    async fn append(
        &self,
        rpc: AppendEntriesRequest<Config>,
        patience: Duration,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        let entries = rpc.entries.into_iter().map(carried).collect::<io::Result<_>>();
        let request = Request::Append {
            ballot: rpc.vote.into(),
            previous: rpc.prev_log_id.map(EntryId::from),
            entries: entries.map_err(|error| RPCError::Network(NetworkError::new(&error)))?,
            committed: rpc.leader_commit.map(EntryId::from),
        };
        match self.call(request, patience).await? {
            Answer::Appended => Ok(AppendEntriesResponse::Success),
            Answer::AppendedTo(id) => Ok(AppendEntriesResponse::PartialSuccess(id.map(LogId::from))),
            Answer::Conflict => Ok(AppendEntriesResponse::Conflict),
            Answer::HigherVote(ballot) => Ok(AppendEntriesResponse::HigherVote(ballot.into())),
            other => Err(foreign(&other)),
        }
    }

    async fn call(&self, request: Request, patience: Duration) -> Result<Answer, RPCError<Config>> {
        Ok(self.peers.call(self.target, &self.node, request, patience).await?)
    }

    async fn vote_or(
        &self,
        request: &VoteRequest<Config>,
        pre: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        match self.call(vote_request(request, pre), option.hard_ttl()).await? {
            Answer::Vote { ballot, last, granted } => {
                Ok(VoteResponse::new(Vote::from(ballot), last.map(LogId::from), granted))
            }
            other => Err(foreign(&other)),
        }
    }
}

fn foreign(answer: &Answer) -> RPCError<Config> {
    RPCError::Network(NetworkError::from_string(format!("not an answer to the question: {answer:?}")))
}

impl<P: Peers> RaftNetworkV2<Config> for Client<P> {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Config>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        self.append(rpc, option.hard_ttl()).await
    }

    /// Several at once. Their order is that of the first polls, which `buffered` keeps, and so is the order of the results.
    fn stream_append<'s, S>(&'s mut self, input: S, _option: RPCOption) -> Appending<'s>
    where
        S: Stream<Item = AppendEntriesRequest<Config>> + openraft::OptionalSend + Unpin + 'static,
    {
        let client = &*self;
        let one = async move |rpc: AppendEntriesRequest<Config>| {
            let previous = rpc.prev_log_id;
            let last = rpc.entries.last().map(|entry| entry.id).or(previous);
            let answer = client.append(rpc, APPEND_PATIENCE).await?;
            let whole = match &answer {
                AppendEntriesResponse::Success => true,
                AppendEntriesResponse::PartialSuccess(upto) => *upto == last,
                AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
            };
            Ok((answer.into_stream_result(previous, last), whole))
        };
        let answers = input.map(one).buffered(PIPELINE).scan((true, false), |(go_on, taken), answer| {
            let answer = match answer {
                // One that overtook the one before it found a gap, where now there is none. The library would take that for a log
                // that went back: it is told of a lost answer, and sends it again.
                Ok((Err(StreamAppendError::Conflict(_)), _)) if *taken => {
                    Err(RPCError::Network(NetworkError::from_string("an append overtook the one before it")))
                }
                answer => answer,
            };
            // Behind one that was not taken whole, those that follow it were not taken either.
            let answer = go_on.then_some(answer);
            *go_on = matches!(answer, Some(Ok((_, true))));
            *taken |= *go_on;
            ready(answer.map(|answer| answer.map(|(result, _)| result)))
        });
        Box::pin(ready(Ok(Box::pin(answers) as BoxStream<'s, _>)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.vote_or(&rpc, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.vote_or(&rpc, true, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Config, ()>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let Some(enough) = snapshot.meta.last_log_id.map(EntryId::from) else {
            return Err(StreamingError::Unreachable(Unreachable::from_string("there is no checkpoint yet")));
        };
        let held = self.holds.hold(self.target, snapshot.meta);
        let mut cancel = std::pin::pin!(cancel);
        let copied = tokio::select! {
            closed = &mut cancel => return Err(closed.into()),
            copied = self.peers.copy(self.target, enough) => copied,
        };
        let reason = match copied {
            Ok(()) => {
                drop(held);
                self.holds.release(self.target);
                // What it has is at least this: the checkpoint that was carried is the same or a later one.
                return Ok(SnapshotResponse::new(vote));
            }
            Err(NoAnswer::Unreachable(reason)) => {
                held.in_vain();
                reason
            }
            Err(NoAnswer::Lost(reason)) => reason,
        };
        // Asked again at once it would say the same.
        tokio::select! {
            closed = &mut cancel => Err(closed.into()),
            () = tokio::time::sleep(Duration::from_millis(limits::COPY_RETRY_MS)) => {
                Err(StreamingError::Unreachable(Unreachable::from_string(reason)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Config>,
        option: RPCOption,
    ) -> Result<openraft::raft::TransferLeaderResponse<Config>, RPCError<Config>> {
        let ours = Request::Transfer {
            ballot: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(EntryId::from),
        };
        match self.call(ours, option.hard_ttl()).await? {
            Answer::Transferring => Ok(Ok(())),
            Answer::NotTransferring => Err(RPCError::Network(NetworkError::from_string("transfer refused"))),
            other => Err(foreign(&other)),
        }
    }
}
