//! Connections between nodes: who listens, who dials, and who is let in.
//!
//! Owns: the peers' addresses, the handshake over sockets, the complaints about strangers. Promises: behind [`Transport::connect`]
//! and [`Transport::on`] stands a node of this cluster with the store that the membership names, of that number (by its
//! certificate, unless nodes speak plaintext); a peer that does not introduce itself in [`limits::PEER_HANDSHAKE_MS`] is closed;
//! strangers cost a bounded amount of memory and of log lines, and nothing ends the accept loop.
//! Does not know: what is said on a stream, when connections are wanted.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::handshake::{Card, Replicates, Shown, Turned, VERSIONS, agree, receive, refuse, uuid_text};
use super::stream::{PeerStream, Purpose};
use super::tls::{TlsFiles, is_node};
use super::types::Node;
use crate::clock::Clock;
use crate::limits;

/// A peer that was let in: its number, and the stream.
pub type Guest = (u64, PeerStream);

/// What this node is told of itself and the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the cluster.
    pub name: String,
    /// This node.
    pub node: u64,
    /// Where the others reach it, `host:port`.
    pub address: String,
    /// The others that are listed, and where they are.
    pub peers: BTreeMap<u64, String>,
    /// `None`: plaintext, and a peer is believed.
    pub tls: Option<TlsFiles>,
}

/// See the module. Everything with a socket runs on the runtime that it was made on; its methods may be called from any.
pub struct Transport {
    settings: Settings,
    runtime: Handle,
    replicates: RwLock<Option<Replicates>>,
    members: RwLock<BTreeMap<u64, Node>>,
    handlers: Mutex<BTreeMap<Purpose, mpsc::Sender<Guest>>>,
    strangers: Arc<Semaphore>,
    guests: Arc<Semaphore>,
    /// Why there is no connection for requests to a node that was called; `None`: there is one.
    links: Mutex<BTreeMap<u64, Option<String>>>,
    complaints: Complaints,
}

impl Transport {
    /// A transport that listens nowhere yet. Must be called on the runtime that is to have the sockets.
    ///
    /// # Errors
    /// Files of TLS that can not be used, by name.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> io::Result<Arc<Self>> {
        if let Some(tls) = &settings.tls {
            tls.check(settings.node, &settings.name)?;
        }
        Ok(Arc::new(Self {
            settings,
            runtime: Handle::current(),
            replicates: RwLock::default(),
            members: RwLock::default(),
            handlers: Mutex::default(),
            strangers: Arc::new(Semaphore::new(limits::PEER_HANDSHAKES_MAX)),
            guests: Arc::new(Semaphore::new(limits::PEER_CONNECTIONS_MAX)),
            links: Mutex::default(),
            complaints: Complaints { clock, last: Mutex::default() },
        }))
    }

    /// What it was told.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The store is there: from here on this node speaks for it.
    pub fn speak_for(&self, replicates: Replicates) {
        *self.replicates.write().unwrap_or_else(PoisonError::into_inner) = Some(replicates);
    }

    /// The membership as this node knows it now: who is reached where, with which store.
    pub fn members_are(&self, members: BTreeMap<u64, Node>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// The membership that [`Transport::members_are`] told last.
    #[must_use]
    pub fn members(&self) -> BTreeMap<u64, Node> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of the connection to `node` for this node's requests.
    pub(crate) fn link_is(&self, node: u64, trouble: Option<String>) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).insert(node, trouble);
    }

    /// The nodes that this one asks, and why it can not where it can not.
    #[must_use]
    pub fn links(&self) -> BTreeMap<u64, Option<String>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The runtime that has the sockets.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Who comes for this purpose is given to `guests` from here on. While there is nobody, and while the channel is full, peers
    /// are told to come again.
    pub fn on(&self, purpose: Purpose, guests: mpsc::Sender<Guest>) {
        self.lock_handlers().insert(purpose, guests);
    }

    fn lock_handlers(&self) -> std::sync::MutexGuard<'_, BTreeMap<Purpose, mpsc::Sender<Guest>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node as it introduces itself now.
    #[must_use]
    pub fn card(&self) -> Card {
        Card {
            node: self.settings.node,
            name: self.settings.name.clone(),
            address: self.settings.address.clone(),
            replicates: *self.replicates.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Where a node is reached: as listed, or else as the membership says.
    #[must_use]
    pub fn address(&self, node: u64) -> Option<String> {
        let listed = self.settings.peers.get(&node).cloned();
        let members = || {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            members.get(&node).map(|node| node.address.clone()).filter(|address| !address.is_empty())
        };
        listed.or_else(members)
    }

    // ---- going there

    /// A stream to a node of this cluster.
    ///
    /// # Errors
    /// Where it was tried and why it did not work, after [`limits::PEER_HANDSHAKE_MS`] at most; `ConnectionRefused` when it was
    /// the peer's word.
    pub async fn connect(self: &Arc<Self>, node: u64, purpose: Purpose) -> io::Result<PeerStream> {
        let address = self.address(node);
        let address = address.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("nobody has said where node {node} is"))
        })?;
        self.there(node, address, purpose).await.map(|(_, stream)| stream)
    }

    /// Asks who is at an address: `node`, or with 0 whoever it is.
    ///
    /// # Errors
    /// As [`Transport::connect`].
    pub async fn greet(self: &Arc<Self>, node: u64, address: &str) -> io::Result<(Card, PeerStream)> {
        self.there(node, address.to_owned(), Purpose::Admin).await
    }

    async fn there(
        self: &Arc<Self>,
        node: u64,
        address: String,
        purpose: Purpose,
    ) -> io::Result<(Card, PeerStream)> {
        let this = Arc::clone(self);
        let dialing = self.runtime.spawn(async move {
            let limit = Duration::from_millis(limits::PEER_HANDSHAKE_MS);
            let who = if node == 0 { "a node".to_owned() } else { format!("node {node}") };
            let failed = |kind: io::ErrorKind, why: &dyn std::fmt::Display| {
                io::Error::new(kind, format!("{who} at {address}: {why}"))
            };
            match timeout(limit, this.dial(node, &address, purpose)).await {
                Ok(Ok(peer)) => Ok(peer),
                Ok(Err(Turned::Lost(error))) => Err(failed(error.kind(), &plain(&error))),
                Ok(Err(turned)) => Err(failed(io::ErrorKind::ConnectionRefused, &turned)),
                Err(_) => Err(failed(io::ErrorKind::TimedOut, &"it did not answer in time")),
            }
        });
        dialing.await.map_err(io::Error::other)?
    }

    async fn dial(&self, node: u64, address: &str, purpose: Purpose) -> Result<(Card, PeerStream), Turned> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        match &self.settings.tls {
            None => self.introduce(socket, node, purpose).await,
            Some(_) if node == 0 => {
                Err(Turned::Said("with TLS its number must be said, to know its certificate".to_owned()))
            }
            Some(tls) => {
                let stream = tls.connect(socket, node, &self.settings.name).await?;
                self.introduce(stream, node, purpose).await
            }
        }
    }

    async fn introduce(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        node: u64,
        purpose: Purpose,
    ) -> Result<(Card, PeerStream), Turned> {
        let ours = Shown { purpose, versions: VERSIONS, to: node, card: self.card() };
        stream.write_all(&ours.bytes()).await?;
        stream.flush().await?;
        let theirs = receive(&mut stream).await?.card;
        if node != 0 && theirs.node != node {
            return Err(Turned::Said(format!("it is node {} that answers there", theirs.node)));
        }
        agree(&ours.card, &theirs, purpose).map_err(Turned::Said)?;
        self.is_the_member(&theirs).map_err(Turned::Said)?;
        let (reader, writer) = tokio::io::split(stream);
        Ok((theirs, PeerStream::new(reader, writer)))
    }

    /// A node that lost its data may not go on under its number: what it has confirmed as a voter is gone.
    fn is_the_member(&self, card: &Card) -> Result<(), String> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let Some(store) = members.get(&card.node).map(|node| node.store).filter(|store| *store != [0; 16])
        else {
            return Ok(());
        };
        let theirs = card.replicates.map(|replicates| replicates.store);
        if theirs == Some(store) {
            return Ok(());
        }
        let has =
            theirs.map_or("an empty store".to_owned(), |theirs| format!("store {}", uuid_text(&theirs)));
        Err(format!(
            "node {node} is a member with store {}, and comes with {has}: it has lost its data and can not go on under this number; \
             give it a new cluster.node, or take the old one out first (dassie cluster leave {node})",
            uuid_text(&store),
            node = card.node,
        ))
    }

    // ---- being there

    /// Lets peers in that come to `listener`, for ever.
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, from)) => {
                    // Their own guests do not count: members of the cluster are never kept out by strangers for longer than
                    // strangers may take.
                    let Ok(place) = Arc::clone(&self.strangers).try_acquire_owned() else {
                        self.complaints.say("too many connections are being made at once");
                        continue;
                    };
                    let this = Arc::clone(&self);
                    tokio::spawn(async move {
                        let limit = Duration::from_millis(limits::PEER_HANDSHAKE_MS);
                        let turned = match timeout(limit, this.let_in(socket)).await {
                            Ok(Ok(())) => None,
                            Ok(Err(Turned::Lost(error))) => Some(plain(&error)),
                            Ok(Err(turned)) => Some(turned.to_string()),
                            Err(_) => Some("it did not introduce itself in time".to_owned()),
                        };
                        drop(place);
                        if let Some(why) = turned {
                            this.complaints.say(&format!("{}: {why}", from.ip()));
                        }
                    });
                }
                Err(error) => {
                    self.complaints.say(&format!("accept: {}", plain(&error)));
                    tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }

    async fn let_in(&self, socket: TcpStream) -> Result<(), Turned> {
        socket.set_nodelay(true)?;
        match &self.settings.tls {
            None => self.welcome(socket, |_, _| Ok(())).await,
            Some(tls) => {
                let mut first = [0];
                if socket.peek(&mut first).await? == 1 && first[0] != 0x16 {
                    return Err(Turned::Garbage("no TLS where TLS is spoken"));
                }
                let stream = tls.accept(socket).await?;
                let name = &self.settings.name;
                self.welcome(stream, |stream, node| is_node(stream, node, name)).await
            }
        }
    }

    async fn welcome<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        mut stream: S,
        is_node: impl FnOnce(&S, u64) -> Result<(), String>,
    ) -> Result<(), Turned> {
        let theirs = match receive(&mut stream).await {
            Ok(shown) => shown,
            Err(turned) => {
                if let Turned::Said(why) = &turned {
                    refuse(&mut stream, why).await;
                }
                return Err(turned);
            }
        };
        match self.admit(&theirs, |node| is_node(&stream, node)) {
            Ok((place, handler)) => {
                let version = theirs.versions.1.min(VERSIONS.1);
                let ours = Shown {
                    purpose: theirs.purpose,
                    versions: (version, version),
                    to: theirs.card.node,
                    card: self.card(),
                };
                stream.write_all(&ours.bytes()).await?;
                stream.flush().await?;
                let (reader, writer) = tokio::io::split(stream);
                let stream = PeerStream::new(Counted { inner: reader, _place: place }, writer);
                if let Some(handler) = handler {
                    handler.send((theirs.card.node, stream));
                }
                Ok(())
            }
            Err((why, worth_a_line)) => {
                refuse(&mut stream, &why).await;
                if worth_a_line { Err(Turned::Said(why)) } else { Ok(()) }
            }
        }
    }

    /// The place of the new guest, and who takes it. Otherwise why not, and whether a person should know.
    #[allow(clippy::type_complexity)] // said in the line above
    fn admit(
        &self,
        theirs: &Shown,
        is_node: impl FnOnce(u64) -> Result<(), String>,
    ) -> Result<(OwnedSemaphorePermit, Option<mpsc::OwnedPermit<Guest>>), (String, bool)> {
        let ours = self.card();
        // Somebody who waits for us, or we for him, asks again in a moment.
        let waits = ours.replicates.is_none() || theirs.card.replicates.is_none();
        is_node(theirs.card.node).map_err(|why| (why, true))?;
        if theirs.to != 0 && theirs.to != ours.node {
            return Err((format!("this is node {}, not node {}", ours.node, theirs.to), true));
        }
        agree(&ours, &theirs.card, theirs.purpose).map_err(|why| (why, !waits))?;
        self.is_the_member(&theirs.card).map_err(|why| (why, true))?;
        let place = Arc::clone(&self.guests).try_acquire_owned();
        let place = place.map_err(|_| ("too many connections between nodes".to_owned(), true))?;
        let handler = self.lock_handlers().get(&theirs.purpose).cloned();
        let handler = match handler.map(mpsc::Sender::try_reserve_owned) {
            Some(Ok(handler)) => Some(handler),
            // To ask who somebody is needs nobody behind the door.
            None if theirs.purpose == Purpose::Admin => None,
            None => return Err((format!("node {} is still starting", ours.node), false)),
            Some(Err(_)) => return Err((format!("node {} is busy", ours.node), false)),
        };
        Ok((place, handler))
    }
}

/// The system's words without its number.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// A guest's place is free again when nobody reads from it any more.
struct Counted<R> {
    inner: R,
    _place: OwnedSemaphorePermit,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

/// Lines about strangers: not more than one in [`limits::PEER_COMPLAINT_MS`], and the same one rarely.
struct Complaints {
    clock: Arc<dyn Clock>,
    last: Mutex<Option<Last>>,
}

struct Last {
    at: Duration,
    text: String,
    unsaid: u64,
}

/// The same line comes again after so many times [`limits::PEER_COMPLAINT_MS`].
const SAME_AGAIN: u32 = 30;

impl Complaints {
    fn say(&self, text: &str) {
        let now = self.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsaid = 0;
        if let Some(last) = &mut *last {
            let pause = Duration::from_millis(limits::PEER_COMPLAINT_MS);
            let pause = if last.text == text { pause * SAME_AGAIN } else { pause };
            if now < last.at + pause {
                last.unsaid += 1;
                return;
            }
            unsaid = last.unsaid;
        }
        *last = Some(Last { at: now, text: text.to_owned(), unsaid: 0 });
        let before = if unsaid == 0 { String::new() } else { format!(" ({unsaid} more before it)") };
        tracing::warn!("cluster.listen turned a peer away: {text}{before}");
    }
}

/// Ends when `task` does or `stop` says so.
pub async fn until(task: impl Future<Output = ()>, stop: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = stop => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use tokio::io::AsyncReadExt;

    fn replicates(store: u8) -> Replicates {
        Replicates { cluster: [7; 16], shard: [8; 16], store: [store; 16], segment_size: 1 << 22 }
    }

    /// Node 1 listens; the others know where.
    async fn first(tls: Option<TlsFiles>) -> (Arc<Transport>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let settings =
            Settings { name: "test".into(), node: 1, address: address.clone(), peers: BTreeMap::new(), tls };
        let transport = Transport::new(settings, Arc::new(SystemClock::new())).unwrap();
        transport.speak_for(replicates(1));
        tokio::spawn(Arc::clone(&transport).listen(listener));
        (transport, address)
    }

    fn other(node: u64, first: &str, tls: Option<TlsFiles>) -> Arc<Transport> {
        let settings = Settings {
            name: "test".into(),
            node,
            address: "127.0.0.1:1".into(),
            peers: BTreeMap::from([(1, first.to_owned())]),
            tls,
        };
        let transport = Transport::new(settings, Arc::new(SystemClock::new())).unwrap();
        transport.speak_for(replicates(u8::try_from(node).unwrap()));
        transport
    }

    #[tokio::test]
    async fn a_stream_leads_to_who_takes_its_purpose_and_says_who_comes() {
        let (one, address) = first(None).await;
        let two = other(2, &address, None);
        let (to, mut guests) = mpsc::channel(1);
        let early = two.connect(1, Purpose::Front).await.map(drop).unwrap_err();
        assert!(early.to_string().ends_with("refused: node 1 is still starting"), "{early}");
        one.on(Purpose::Front, to);
        let mut there = two.connect(1, Purpose::Front).await.unwrap();
        let (node, mut here) = guests.recv().await.unwrap();
        assert_eq!(node, 2);
        there.writer.send(&[bytes::Bytes::from_static(b"hello")]).await.unwrap();
        assert_eq!(here.reader.receive().await.unwrap().unwrap(), "hello");
        here.writer.send(&[bytes::Bytes::from_static(b"too")]).await.unwrap();
        assert_eq!(there.reader.receive().await.unwrap().unwrap(), "too");
    }

    #[tokio::test]
    async fn a_wiped_node_and_one_of_another_cluster_are_told_why() {
        let (one, address) = first(None).await;
        let (to, _guests) = mpsc::channel(1);
        one.on(Purpose::Consensus, to);
        let known = Node { address: String::new(), store: [2; 16] };
        one.members_are(BTreeMap::from([(2, known)]));
        let two = other(2, &address, None);
        assert!(two.connect(1, Purpose::Consensus).await.is_ok());
        two.speak_for(Replicates { store: [9; 16], ..replicates(2) });
        let error = two.connect(1, Purpose::Consensus).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("it has lost its data"), "{error}");
        let stranger = other(3, &address, None);
        stranger.speak_for(Replicates { cluster: [9; 16], ..replicates(3) });
        let error = stranger.connect(1, Purpose::Consensus).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("only has the same name"), "{error}");
        let error = two.greet(5, &address).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("this is node 1, not node 5"), "{error}");
    }

    #[tokio::test]
    async fn garbage_and_silence_are_closed_within_a_second() {
        let (_one, address) = first(None).await;
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"AMQP\0\0\x09\x01", b"DASSIE-P\xff\xff", b"DASSIE-P", b""]
        {
            let mut socket = TcpStream::connect(&address).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let limit = Duration::from_millis(limits::PEER_HANDSHAKE_MS + 500);
            let read = timeout(limit, socket.read_to_end(&mut rest)).await;
            let ended = read.expect("it is closed in time");
            assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
        }
    }

    struct Authority(tempfile::TempDir, rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut parameters = rcgen::CertificateParams::default();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
            Self(tempfile::tempdir().unwrap(), issuer)
        }

        fn files(&self, name: &str) -> TlsFiles {
            let key = rcgen::KeyPair::generate().unwrap();
            let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            let certificate = parameters.signed_by(&key, &self.1).unwrap();
            let file = |kind: &str, text: String| {
                let path = self.0.path().join(format!("{name}.{kind}"));
                std::fs::write(&path, text).unwrap();
                path.to_str().unwrap().to_owned()
            };
            TlsFiles {
                certificate: file("crt", certificate.pem()),
                key: file("key", key.serialize_pem()),
                ca: file("ca", self.1.pem()),
            }
        }
    }

    #[tokio::test]
    async fn with_tls_a_node_is_who_its_certificate_says() {
        let authority = Authority::new();
        let (one, address) = first(Some(authority.files("node-1.test"))).await;
        let (to, mut guests) = mpsc::channel(1);
        one.on(Purpose::Copy, to);
        let two = other(2, &address, Some(authority.files("node-2.test")));
        let mut there = two.connect(1, Purpose::Copy).await.unwrap();
        let (_, mut here) = guests.recv().await.unwrap();
        there.writer.send(&[bytes::Bytes::from(vec![5; 100_000])]).await.unwrap();
        assert_eq!(here.reader.receive().await.unwrap().unwrap().len(), 100_000);
        // A forged number, a forged authority, none at all.
        let liar = Settings { tls: Some(authority.files("node-3.test")), ..two.settings().clone() };
        assert!(Transport::new(liar, Arc::new(SystemClock::new())).is_err());
        let forged = other(2, &address, Some(Authority::new().files("node-2.test")));
        assert!(forged.connect(1, Purpose::Copy).await.is_err());
        assert!(other(2, &address, None).connect(1, Purpose::Copy).await.is_err());
        let third = other(3, &address, Some(authority.files("node-3.test")));
        *third.replicates.write().unwrap() = Some(replicates(3));
        let claims_two = Transport {
            settings: Settings { node: 2, ..third.settings().clone() },
            runtime: Handle::current(),
            replicates: RwLock::new(Some(replicates(2))),
            members: RwLock::default(),
            handlers: Mutex::default(),
            strangers: Arc::new(Semaphore::new(1)),
            guests: Arc::new(Semaphore::new(1)),
            links: Mutex::default(),
            complaints: Complaints { clock: Arc::new(SystemClock::new()), last: Mutex::default() },
        };
        let error = Arc::new(claims_two).connect(1, Purpose::Copy).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("does not name node-2.test"), "{error}");
    }
}
