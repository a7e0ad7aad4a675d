//! Requests to other replicas and answers to theirs, over connections of purpose `Consensus`.
//!
//! Owns: one connection to each peer for what this node asks, made again when it is lost; one from each peer for what they ask.
//! Promises: [`Calls`] costs the shard's thread a push and an answer's wake-up, bytes are made and read elsewhere; requests to a peer
//! arrive in order while a connection lasts; while there is none they are refused at once; a peer speaks for itself only; at most
//! [`limits::PEER_REQUESTS_MAX`] requests of a peer wait here.
//! Does not know: what is asked, who leads.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::peer::{Answer, NoAnswer, Peers, Request};
use super::stream::{PeerReader, PeerStream, PeerWriter, Purpose};
use super::transport::{Guest, Transport, plain};
use super::types::Node;
use super::wire::{decode_answer, decode_request, encode_answer, encode_request};
use crate::limits;

/// A connection on which the oldest request waits for longer than two of these is lost.
const SILENCE: Duration = Duration::from_millis(1500);

struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Answer, NoAnswer>>,
}

/// The way from the shard's thread to the other replicas. Clones are handles on one.
#[derive(Clone)]
pub struct Calls {
    transport: Arc<Transport>,
    links: Rc<RefCell<BTreeMap<u64, mpsc::UnboundedSender<Call>>>>,
}

impl Calls {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(transport: Arc<Transport>) -> Self {
        Calls { transport, links: Rc::default() }
    }

    /// Keeps connections to these nodes and to no others. An election finds them made.
    pub fn connect_to(&self, nodes: impl IntoIterator<Item = u64> + Clone) {
        self.links.borrow_mut().retain(|known, _| nodes.clone().into_iter().any(|node| node == *known));
        for node in nodes {
            self.link(node);
        }
    }

    fn link(&self, node: u64) -> mpsc::UnboundedSender<Call> {
        let mut links = self.links.borrow_mut();
        let link = links.entry(node).or_insert_with(|| {
            let (calls, todo) = mpsc::unbounded_channel();
            // One to itself would only ever be refused.
            if node != self.transport.settings().node {
                let link = Link { transport: Arc::clone(&self.transport), node, calls: todo };
                self.transport.runtime().spawn(link.run());
            }
            calls
        });
        link.clone()
    }
}

impl Peers for Calls {
    async fn call(
        &self,
        target: u64,
        _: &Node,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let unreachable = || NoAnswer::Unreachable(format!("the way to node {target} is closed"));
        self.link(target).send(Call { request, reply }).map_err(|_| unreachable())?;
        match timeout(patience, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(unreachable())),
            Err(_) => Err(NoAnswer::Lost(format!("no answer from node {target} in {patience:?}"))),
        }
    }
}

/// One peer, as this node asks it.
struct Link {
    transport: Arc<Transport>,
    node: u64,
    calls: mpsc::UnboundedReceiver<Call>,
}

impl Link {
    /// Until nobody calls any more.
    async fn run(mut self) {
        let shortest = Duration::from_millis(limits::PEER_BACKOFF_MIN_MS);
        let longest = Duration::from_millis(limits::PEER_BACKOFF_MAX_MS);
        let (mut wait, mut said) = (shortest, String::new());
        while !self.calls.is_closed() {
            // Calls wait for this attempt, as long as their callers have patience.
            let why = match self.transport.connect(self.node, Purpose::Consensus).await {
                Ok(stream) => {
                    tracing::info!("connected to node {}", self.node);
                    self.transport.link_is(self.node, None);
                    (wait, said) = (shortest, String::new());
                    let Err(why) = self.serve(stream).await else { return };
                    let why = format!("connection to node {} lost: {}", self.node, plain(&why));
                    tracing::warn!("{why}");
                    why
                }
                Err(error) => {
                    let why = error.to_string();
                    if said != why {
                        tracing::info!("waiting for {why}");
                        said.clone_from(&why);
                    }
                    why
                }
            };
            self.transport.link_is(self.node, Some(why.clone()));
            let mut pause = std::pin::pin!(sleep(wait));
            wait = (wait * 2).min(longest);
            loop {
                let call = tokio::select! {
                    () = &mut pause => break,
                    call = self.calls.recv() => call,
                };
                let Some(call) = call else { return };
                let _ = call.reply.send(Err(NoAnswer::Unreachable(why.clone())));
            }
        }
    }

    /// Until the connection is lost; `Ok` when nobody calls any more.
    async fn serve(&mut self, stream: PeerStream) -> io::Result<()> {
        let waiting = Waiting::default();
        let PeerStream { reader, writer } = stream;
        let result = tokio::select! {
            done = ask(&mut self.calls, &waiting, writer) => done,
            error = hear(&waiting, reader) => Err(error),
        };
        let why = result.as_ref().err().map(plain).unwrap_or_default();
        for (_, reply) in waiting.lock().drain() {
            let _ = reply.send(Err(NoAnswer::Lost(why.clone())));
        }
        result
    }
}

/// Who waits for the answer to which request.
#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, oneshot::Sender<Result<Answer, NoAnswer>>>>);

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Answer, NoAnswer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> Option<u64> {
        self.lock().keys().min().copied()
    }
}

async fn ask(
    calls: &mut mpsc::UnboundedReceiver<Call>,
    waiting: &Waiting,
    mut writer: PeerWriter,
) -> io::Result<()> {
    let mut number = 0;
    while let Some(Call { request, reply }) = calls.recv().await {
        if reply.is_closed() {
            continue; // its caller has given up
        }
        number += 1;
        waiting.lock().insert(number, reply);
        writer.send(&encode_request(number, request)).await?;
    }
    Ok(())
}

async fn hear(waiting: &Waiting, mut reader: PeerReader) -> io::Error {
    let mut oldest = None;
    loop {
        let frame = match timeout(SILENCE, reader.receive()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer"),
            Ok(Err(error)) => return error,
            Err(_) => {
                let now = waiting.oldest();
                if now.is_some() && now == oldest {
                    return io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
                }
                oldest = now;
                continue;
            }
        };
        match decode_answer(frame) {
            Ok((number, answer)) => {
                if let Some(reply) = waiting.lock().remove(&number) {
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(reason) => return io::Error::new(io::ErrorKind::InvalidData, reason),
        }
    }
}

/// What a peer asks.
pub struct Asked {
    /// Who.
    pub from: u64,
    /// What.
    pub request: Request,
    /// Where the answer goes; dropped, there is none.
    pub answer: oneshot::Sender<Answer>,
}

/// What peers ask from here on. Must be called on the transport's runtime.
#[must_use]
pub fn asked(transport: &Transport) -> mpsc::UnboundedReceiver<Asked> {
    let (questions, asked) = mpsc::unbounded_channel();
    let (guests, mut coming) = mpsc::channel::<Guest>(limits::PEER_REQUESTS_MAX);
    transport.on(Purpose::Consensus, guests);
    tokio::spawn(async move {
        // A peer that comes again has lost its earlier connection, whether that is known here or not.
        let mut here: BTreeMap<u64, tokio::task::JoinHandle<()>> = BTreeMap::new();
        while let Some((node, stream)) = coming.recv().await {
            let serving = tokio::spawn(listen_to(node, stream, questions.clone()));
            if let Some(earlier) = here.insert(node, serving) {
                earlier.abort();
            }
        }
    });
    asked
}

async fn listen_to(node: u64, stream: PeerStream, questions: mpsc::UnboundedSender<Asked>) {
    let PeerStream { mut reader, mut writer } = stream;
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            frame = reader.receive(), if open.len() < limits::PEER_REQUESTS_MAX => {
                let Ok(Some(frame)) = frame else { return };
                let (number, request) = match decode_request(frame) {
                    Ok((number, request)) if speaker(&request) == node => (number, request),
                    Ok(_) => return tracing::warn!("node {node} spoke in another node's name: connection closed"),
                    Err(reason) => return tracing::warn!("node {node} sent a broken request, connection closed: {reason}"),
                };
                let (answer, answered) = oneshot::channel();
                if questions.send(Asked { from: node, request, answer }).is_err() {
                    return;
                }
                open.push(async move { (number, answered.await) });
            }
            Some((number, answered)) = open.next() => {
                if let Ok(answer) = answered
                    && writer.send(&[encode_answer(number, &answer)]).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// In whose name a request is made.
fn speaker(request: &Request) -> u64 {
    match request {
        Request::Append { ballot, .. } | Request::Vote { ballot, .. } | Request::Transfer { ballot, .. } => {
            ballot.node
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::cluster::handshake::Replicates;
    use crate::cluster::peer::Ballot;
    use crate::cluster::transport::Settings;
    use tokio::net::TcpListener;

    fn transport(node: u64, peers: BTreeMap<u64, String>) -> Arc<Transport> {
        let settings = Settings { name: "t".into(), node, address: String::new(), peers, tls: None };
        let transport = Transport::new(settings, Arc::new(SystemClock::new())).unwrap();
        let store = [u8::try_from(node).unwrap(); 16];
        transport.speak_for(Replicates { cluster: [7; 16], shard: [8; 16], store, segment_size: 1 });
        transport
    }

    fn vote(node: u64, term: u64) -> Request {
        let ballot = Ballot { term, node, granted: false };
        Request::Vote { ballot, last: None, transfer: false, pre: true }
    }

    #[tokio::test]
    async fn several_requests_are_on_their_way_and_each_gets_its_own_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let one = transport(1, BTreeMap::new());
        let mut questions = asked(&one);
        tokio::spawn(Arc::clone(&one).listen(listener));
        let two = Calls::new(transport(2, BTreeMap::from([(1, address)])));
        let (node, patience) = (Node::default(), Duration::from_secs(10));
        let answering = async {
            let mut open = Vec::new();
            for _ in 0..3 {
                open.push(questions.recv().await.unwrap());
            }
            for Asked { from, request, answer } in open.into_iter().rev() {
                let Request::Vote { ballot, .. } = request else { panic!("{request:?}") };
                assert_eq!(from, 2);
                let _ = answer.send(Answer::HigherVote(Ballot { term: ballot.term * 10, ..ballot }));
            }
        };
        let call = |term| two.call(1, &node, vote(2, term), patience);
        let (a, b, c, ()) = tokio::join!(call(1), call(2), call(3), answering);
        for (answer, term) in [(a, 10), (b, 20), (c, 30)] {
            assert_eq!(answer.unwrap(), Answer::HigherVote(Ballot { term, node: 2, granted: false }));
        }
        // In another's name: the connection ends, and the next one works again.
        let lost = two.call(1, &node, vote(3, 1), patience).await.unwrap_err();
        assert!(matches!(lost, NoAnswer::Lost(_)), "{lost}");
        assert!(questions.try_recv().is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_said_at_once_and_a_peer_that_comes_later_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let two = Calls::new(transport(2, BTreeMap::from([(1, address.to_string())])));
        let (node, patience) = (Node::default(), Duration::from_secs(10));
        let error = two.call(1, &node, vote(2, 1), patience).await.unwrap_err();
        assert!(matches!(error, NoAnswer::Unreachable(_)), "{error}");
        let listener = TcpListener::bind(address).await.unwrap();
        let one = transport(1, BTreeMap::new());
        let mut questions = asked(&one);
        tokio::spawn(Arc::clone(&one).listen(listener));
        let answering = async {
            let _ = questions.recv().await.unwrap().answer.send(Answer::Conflict);
        };
        let calling = async {
            loop {
                match two.call(1, &node, vote(2, 1), patience).await {
                    Ok(answer) => break answer,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let (answer, ()) = tokio::join!(calling, answering);
        assert_eq!(answer, Answer::Conflict);
    }
}
