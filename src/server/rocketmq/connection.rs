//! One connection's task: the socket, the clock, and the link to the shard.
//!
//! Owns: the socket, the read buffer, when to read and when to write.
//! Promises: everything decoded from one read is handed over by one send; everything the shard said at once is written by one
//! vectored write if the socket takes it; the socket is not read while the shard is behind or the client does not read its answers;
//! bytes that are no command close the connection at once; silence of two minutes does too, and so does one frame that takes longer.
//! Does not know: what requests mean.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dassie_rocketmq::frame::MAX_FRAME;
use dassie_rocketmq::{Command, Split, split};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Front;
use super::group::{Groups, Member, Notice};
use super::session::{OUTPUT_MAX, Session};
use crate::broker::link::{Gate, Link, Shard};
use crate::metrics::Metrics;
use crate::security::DEFAULT_VHOST;
use crate::server::Stop;
use crate::server::input::Input;
use crate::server::registry::{Ask, Entry, Facts, Place, Protocol, Registry};
use crate::server::transport::Transport;

/// Silence in both directions after which a connection ends, as Apache's server does.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// Time for one frame to arrive, from its first byte that was read while nothing held it up: a peer that drips bytes is not
/// silent.
const FRAME_TIME: Duration = Duration::from_secs(120);
/// How often silence is looked for.
const TICK: Duration = Duration::from_secs(10);
/// How long sends on their way may take when the broker ends.
const GOODBYE: Duration = Duration::from_secs(2);
/// Longest frame of a peer that may do nothing here: room for any request without a body. Bytes.
const FRAME_STRANGER: usize = 64 * 1024;
/// Changes and requests of others that wait to be told. One that finds no room is found by the client itself within 20 s.
const NOTICES_MAX: usize = 1_024;

/// Serves one connection to its end.
pub(super) async fn serve<T: Transport>(
    stream: T,
    peer: SocketAddr,
    shard: &Shard,
    front: Arc<Front>,
    stop: &Stop,
    metrics: Arc<Metrics>,
) {
    let link = shard.connect();
    metrics.connections.inc();
    metrics.connections_opened.inc();
    let (notices_in, notices) = mpsc::channel(NOTICES_MAX);
    let member = Member::new(link.id(), notices_in, peer);
    let left = Left { groups: Arc::clone(&front.groups), connection: link.id(), metrics };
    let local = stream.local_addr().unwrap_or(peer);
    let registry = Arc::clone(&front.registry);
    let session =
        Session::new(front, (peer, local.ip()), link.topology(), Box::new(link.log().clone()), member);
    let gate = link.gate();
    let frame_max = if session.is_stranger() { FRAME_STRANGER } else { MAX_FRAME };
    let mut task = Task {
        stream,
        input: Input::default(),
        session,
        link,
        gate,
        notices,
        registry,
        local,
        place: None,
        octets: (0, 0),
        frame_max,
        last: Instant::now(),
        begun: None,
        heard: false,
        deadline: None,
    };
    let ended = task.run(stop).await;
    let heard = task.heard;
    drop(task);
    drop(left);
    // Who says nothing only looked whether somebody listens.
    match ended {
        Ok(why) if heard => tracing::info!(%peer, "RocketMQ connection closed: {why}"),
        Err(error) if heard => tracing::info!(%peer, "RocketMQ connection closed: {error}"),
        _ => {}
    }
}

/// Takes a connection's clients out of their groups however it ends, and it itself out of the count.
struct Left {
    groups: Arc<Groups>,
    connection: u64,
    metrics: Arc<Metrics>,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.groups.leave_all(self.connection);
        self.metrics.connections.dec();
        self.metrics.connections_closed.inc();
    }
}

struct Task<T> {
    stream: T,
    input: Input,
    session: Session,
    link: Link,
    gate: Gate,
    notices: mpsc::Receiver<Notice>,
    registry: Arc<Registry>,
    /// The broker's end.
    local: SocketAddr,
    /// Where operators see it, once it said something.
    place: Option<Place>,
    /// Read from the socket, and written to it. Bytes.
    octets: (u64, u64),
    /// Longest frame this peer may send. Bytes.
    frame_max: usize,
    /// When something was read or written last.
    last: Instant,
    /// When the first byte of the frame arrived that is not complete.
    begun: Option<Instant>,
    /// It said something.
    heard: bool,
    /// When the end is due.
    deadline: Option<Instant>,
}

/// Waits until an operator asks something. Cancel safe.
async fn asked(entry: Option<&Entry>) {
    match entry {
        Some(entry) => entry.asked().await,
        None => std::future::pending().await,
    }
}

/// Go on, or the connection's end was reached in good order; who ended it and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Done(&'static str),
}

impl<T: Transport> Task<T> {
    /// Gives who ended it and why.
    async fn run(&mut self, stop: &Stop) -> io::Result<&'static str> {
        let stopped = stop.requested();
        tokio::pin!(stopped);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.settle_up()?;
            if self.is_over() {
                self.stream.shutdown().await?;
                return Ok("by the broker: it is ending");
            }
            let entry = self.place.as_ref().map(Place::entry);
            let interest = self.interest();
            let deadline = self.deadline;
            let flow = tokio::select! {
                biased;
                events = self.link.events(), if self.takes_events() => self.on_events(events),
                Some(notice) = self.notices.recv(), if self.takes_events() => {
                    self.session.on_notice(notice);
                    Flow::Go
                }
                ready = self.stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    if ready?.is_readable() && interest.is_some_and(Interest::is_readable) { self.read()? } else { Flow::Go }
                }
                () = self.gate.ready(), if !self.gate.is_open() => Flow::Go,
                _ = ticks.tick() => self.tick(),
                () = asked(entry.as_deref()) => self.on_asked(),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Flow::Done("by the broker: it is ending"),
                () = &mut stopped, if deadline.is_none() => {
                    self.deadline = Some(Instant::now() + GOODBYE);
                    Flow::Go
                }
            };
            if let Flow::Done(why) = flow {
                return Ok(why);
            }
        }
    }

    fn takes_events(&self) -> bool {
        self.session.is_idle() && self.session.output.buffered() < OUTPUT_MAX
    }

    fn may_read(&self) -> bool {
        self.gate.is_open() && self.takes_events() && self.deadline.is_none()
    }

    /// What we wait for on the socket.
    fn interest(&self) -> Option<Interest> {
        match (self.may_read(), self.session.output.is_empty() && self.stream.is_flushed()) {
            (true, true) => Some(Interest::READABLE),
            (true, false) => Some(Interest::READABLE.add(Interest::WRITABLE)),
            (false, false) => Some(Interest::WRITABLE),
            (false, true) => None,
        }
    }

    fn read(&mut self) -> io::Result<Flow> {
        // Room grows with what has arrived, never with what a length field claims.
        match self.input.read(&mut self.stream, self.input.len()) {
            Ok(0) => Ok(Flow::Done("by the client")),
            Ok(count) => {
                self.octets.0 += count as u64;
                self.last = Instant::now();
                if !self.heard {
                    self.heard = true;
                    let tls = self.stream.facts().map(|facts| facts.session.as_str());
                    let certificate = self.stream.facts().and_then(|facts| facts.client.as_ref());
                    let subject = certificate.map(|certificate| certificate.subject.as_str());
                    tracing::info!(peer = %self.session.peer, tls, certificate = subject, "RocketMQ connection opened");
                    self.place = Some(self.registry.enter(self.facts()));
                }
                self.hear()?;
                Ok(Flow::Go)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Flow::Go),
            Err(error) => Err(error),
        }
    }

    /// Takes everything that is complete in the read buffer.
    fn hear(&mut self) -> io::Result<()> {
        self.session.topology = self.link.topology();
        let malformed =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let mut rest = &self.input[..];
        while let Split::Frame { frame, consumed } =
            split(rest, self.frame_max).map_err(|error| malformed(&error))?
        {
            let command = Command::decode(&frame).map_err(|error| malformed(&error))?;
            self.session.on_command(&command);
            rest = &rest[consumed..];
        }
        let taken = self.input.len() - rest.len();
        self.input.advance(taken);
        if taken > 0 || self.begun.is_none() {
            self.begun = (!self.input.is_empty()).then(Instant::now);
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let tls = self.stream.facts();
        Facts {
            protocol: Protocol::Rocketmq,
            local: self.local,
            peer: self.session.peer,
            user: Arc::clone(&self.session.principal.name),
            vhost: DEFAULT_VHOST.into(),
            mechanism: String::new(),
            tls: tls.map(|facts| facts.session.clone()),
            subject: tls.and_then(|facts| facts.client.as_ref()).map(|client| client.subject.clone()),
            client_properties: Box::default(),
            channel_max: 0,
            frame_max: 0,
            heartbeat: 0,
        }
    }

    /// Does what operators asked.
    fn on_asked(&mut self) -> Flow {
        for ask in self.place.as_ref().map(Place::asks).unwrap_or_default() {
            match ask {
                // The protocol has no word for it: its clients connect again.
                Ask::Close(reason) => {
                    let reason = reason.escape_debug();
                    tracing::info!(peer = %self.session.peer, "an operator closes a RocketMQ connection: {reason}");
                    return Flow::Done("by the broker: an operator closed it");
                }
                Ask::Describe(to) => drop(to.send(Vec::new())),
            }
        }
        Flow::Go
    }

    fn on_events(&mut self, events: Option<Vec<crate::broker::api::Event>>) -> Flow {
        let Some(events) = events else { return Flow::Done("by the broker: it is ending") };
        self.session.on_events(events);
        while let Some(more) = self.link.try_events() {
            self.session.on_events(more);
        }
        self.session.cache.let_go(&*self.session.log);
        Flow::Go
    }

    /// Hands over what is for the shard and writes what is for the client.
    fn settle_up(&mut self) -> io::Result<()> {
        loop {
            self.session.answer_events();
            if !self.link.send(self.session.take_verbs()) {
                return Err(io::Error::other("the broker is ending"));
            }
            if let Some(place) = &self.place {
                place.update(0, self.octets.0, self.octets.1, !self.gate.is_open());
            }
            let (stream, last, sent) = (&mut self.stream, &mut self.last, &mut self.octets.1);
            if self.session.output.is_empty() {
                return stream.try_flush();
            }
            let written = self.session.output.write_to(|slices| {
                let taken = stream.try_write_vectored(slices)?;
                *last = Instant::now();
                *sent += taken as u64;
                Ok(taken)
            });
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                done => done?,
            }
        }
    }

    /// The broker ends, and nothing that was promised an answer is on its way any more.
    fn is_over(&self) -> bool {
        (self.deadline.is_some() || self.session.is_ending())
            && self.session.sends_waiting() == 0
            && self.session.is_idle()
            && self.session.output.is_empty()
            && self.stream.is_flushed()
    }

    fn tick(&mut self) -> Flow {
        if self.last.elapsed() >= IDLE_MAX {
            return Flow::Done("by the broker: two minutes of silence");
        }
        // While we do not read, a frame that does not end is our doing.
        if !self.may_read() && self.begun.is_some() {
            self.begun = Some(Instant::now());
        }
        if self.begun.is_some_and(|begun| begun.elapsed() >= FRAME_TIME) {
            return Flow::Done("by the broker: one frame took two minutes");
        }
        if self.last.elapsed() >= TICK {
            self.session.rest();
        }
        Flow::Go
    }
}
