//! One connection's task: the socket, the clock, and the link to the shard.
//!
//! Owns: the socket, the read buffer, when to read and when to write.
//! Promises: everything decoded from one read is handed over by one send; everything the shard said at once is written by one
//! vectored write if the socket takes it; the socket is not read while the shard is behind or the client does not read its answers;
//! a silent, slow or hostile peer costs bounded memory and time.
//! Does not know: what methods mean.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dassie_amqp::connection::{Event, Phase};
use dassie_amqp::frame::HEARTBEAT;
use dassie_amqp::method::{ConnectionBlocked, ConnectionUnblocked};
use dassie_amqp::reply::{Exception, ReplyCode};
use tokio::io::Interest;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::Offer;
use super::greeting::{Greeting, Progress};
use super::line::Line;
use super::presence::Presence;
use super::session::{Agreed, Session};
use crate::alarms::{Raised, Watch};
use crate::broker::api::Op;
use crate::broker::link::{Gate, Link, Shard};
use crate::limits;
use crate::security::{Authorized, Realm};
use crate::server::Stop;
use crate::server::input::Input;
use crate::server::registry::{Ask, Entry, Facts, Protocol};
use crate::server::spare;
use crate::server::transport::Transport;

/// From the first byte to connection.open.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to say close-ok.
const CLOSE_TIME: Duration = Duration::from_secs(3);
/// The same after it broke the protocol: time to read why.
const BROKEN_TIME: Duration = Duration::from_millis(900);
/// Frames that wait for a client who does not read, before we stop reading it. Bytes.
const OUTPUT_MAX: usize = 4 * 1024 * 1024;
/// Written deliveries are reported to the shard when they weigh this, or with other verbs.
const DRAIN_AT: u64 = (limits::DELIVERY_CREDIT / 4) as u64;
/// Housekeeping without heartbeats.
const IDLE_TICK: Duration = Duration::from_secs(30);

/// Serves one connection to its end.
#[allow(clippy::too_many_arguments)] // everything that a connection is joined to
pub(super) async fn serve<T: Transport>(
    mut stream: T,
    peer: SocketAddr,
    shard: &Shard,
    offer: Arc<Offer>,
    realm: Arc<Realm>,
    stop: &Stop,
    mut presence: Presence,
    alarms: Watch,
) {
    // The peer may be gone already: then nobody will see this name.
    let local = stream.local_addr().unwrap_or(peer);
    let mut input = Input::default();
    let tls = stream.facts().map(|facts| facts.session.clone());
    let certificate = stream.facts().and_then(|facts| facts.client.clone());
    let subject = certificate.as_ref().map(|certificate| certificate.subject.clone());
    let greeting = Greeting::new(offer, peer.ip(), realm, certificate);
    let deadline = Instant::now() + HANDSHAKE_TIME;
    let greeted = tokio::select! {
        greeted = timeout_at(deadline, greet(&mut stream, &mut input, greeting, shard, &presence)) => greeted,
        // Nobody who is not logged in is owed a word.
        () = stop.requested() => return,
    };
    match greeted {
        Ok(Ok(Greeted::Open(line, agreed, own))) => {
            let link = shard.connect();
            let mut session =
                Session::new(*line, *agreed, own, link.topology(), Box::new(link.log().clone()));
            let (user, vhost) =
                (Arc::clone(&session.agreed.principal.name), Arc::clone(&session.agreed.vhost_name));
            let tuning = session.line.wire.tuning();
            presence.opened(Facts {
                protocol: Protocol::Amqp,
                local,
                peer,
                user: Arc::clone(&user),
                vhost: Arc::clone(&vhost),
                mechanism: std::mem::take(&mut session.agreed.mechanism),
                tls: tls.clone(),
                subject: subject.clone(),
                client_properties: std::mem::take(&mut session.agreed.client_properties),
                channel_max: tuning.channel_max,
                frame_max: tuning.frame_max,
                heartbeat: tuning.heartbeat,
            });
            tracing::info!(%peer, ?user, ?vhost, tls, certificate = subject, "AMQP connection opened");
            let mut task = Task::new(stream, input, session, link, presence, alarms);
            if let Err(error) = task.run(stop).await {
                task.session.line.end(|| error.to_string());
            }
            tracing::info!(%peer, ?user, ?vhost, "AMQP connection closed: {}", task.session.line.why_ended());
        }
        Ok(Ok(Greeted::Left(why))) => {
            tracing::info!(%peer, tls, "AMQP connection closed before it was open: {why}");
        }
        Ok(Ok(Greeted::Silent)) => {}
        Ok(Err(error)) => tracing::info!(%peer, tls, "AMQP connection closed before it was open: {error}"),
        Err(_) => tracing::warn!("AMQP handshake with {peer} took longer than {HANDSHAKE_TIME:?}"),
    }
}

/// What a handshake leaves.
enum Greeted {
    /// An open connection.
    Open(Box<Line>, Box<Agreed>, Authorized),
    /// None, and who ended it why.
    Left(String),
    /// Somebody looked whether there is anybody.
    Silent,
}

async fn greet<T: Transport>(
    stream: &mut T,
    input: &mut Input,
    mut greeting: Greeting,
    shard: &Shard,
    presence: &Presence,
) -> io::Result<Greeted> {
    let mut said_anything = false;
    loop {
        let progress = hear_greeting(input, &mut greeting, shard);
        if let Some(accepted) = greeting.login.take() {
            let wait = presence.login(accepted, greeting.peer);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        let bytes = greeting.line.output.take();
        stream.write_all(&bytes).await?;
        spare::give(bytes);
        match progress {
            Progress::Open(agreed, own) => return Ok(Greeted::Open(Box::new(greeting.line), agreed, own)),
            Progress::HangUp => return Ok(Greeted::Left("login refused".to_owned())),
            Progress::Waiting => {}
        }
        match greeting.line.wire.phase() {
            Phase::Closed => return Ok(Greeted::Left(greeting.line.why_ended().to_owned())),
            Phase::Closing => {
                let why = greeting.line.why_ended().to_owned();
                return linger(stream, greeting.line).await.map(|()| Greeted::Left(why));
            }
            _ => {}
        }
        if receive(stream, input).await? == 0 {
            let left = Greeted::Left(greeting.line.why_ended().to_owned());
            return Ok(if said_anything { left } else { Greeted::Silent });
        }
        said_anything = true;
    }
}

fn hear_greeting(input: &mut Input, greeting: &mut Greeting, shard: &Shard) -> Progress {
    let mut rest = &input[..];
    let mut progress = Progress::Waiting;
    while matches!(progress, Progress::Waiting) {
        let heard = match greeting.line.wire.next_event(&mut rest) {
            Ok(Some(event)) => greeting.on_heard(&event, &shard.topology()),
            Ok(None) => break,
            Err(exception) => Err(exception),
        };
        match heard {
            Ok(step) => progress = step,
            Err(exception) => {
                greeting.line.close(&exception);
                break;
            }
        }
    }
    let taken = input.len() - rest.len();
    input.advance(taken);
    progress
}

/// Lets a refused stranger read why.
async fn linger<T: Transport>(stream: &mut T, mut line: Line) -> io::Result<()> {
    let deadline = Instant::now() + BROKEN_TIME;
    let mut input = Input::default();
    while line.wire.phase() != Phase::Closed {
        match timeout_at(deadline, receive(stream, &mut input)).await {
            Ok(Ok(1..)) => {}
            _ => break,
        }
        let mut rest = &input[..];
        while let Ok(Some(_)) = line.wire.next_event(&mut rest) {}
        let taken = input.len() - rest.len();
        input.advance(taken);
    }
    Ok(())
}

async fn receive<T: Transport>(stream: &mut T, input: &mut Input) -> io::Result<usize> {
    loop {
        stream.ready(Interest::READABLE).await?;
        match input.read(stream, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// An open connection.
struct Task<T> {
    stream: T,
    input: Input,
    session: Session,
    link: Link,
    gate: Gate,
    presence: Presence,
    alarms: Watch,
    /// It publishes while an alarm is raised: nothing more of it is taken until that ends.
    blocked: bool,
    /// It has published: its confirms may be what a lost majority holds up.
    publishes: bool,
    /// Weight of deliveries written and not reported.
    drained: u64,
    ticks: Interval,
    pulse: Option<Pulse>,
    /// Since the last tick.
    wrote: bool,
    /// Since the last tick.
    heard: bool,
    /// The peer broke the protocol.
    broken: bool,
    /// What is in the read buffer waits for the shard's answers.
    held: bool,
    /// When patience with a close ends.
    deadline: Option<Instant>,
}

/// Heartbeats were agreed on; a tick is half an interval.
#[derive(Debug, Default)]
struct Pulse {
    silent_ticks: u8,
}

/// Waits until an operator asks something. Cancel safe.
async fn entry_asked(entry: Option<&Entry>) {
    match entry {
        Some(entry) => entry.asked().await,
        None => std::future::pending().await,
    }
}

/// Go on, or the connection's end was reached in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Done,
}

impl<T: Transport> Task<T> {
    fn new(stream: T, input: Input, session: Session, link: Link, presence: Presence, alarms: Watch) -> Self {
        let heartbeat = session.line.wire.tuning().heartbeat;
        let period =
            if heartbeat == 0 { IDLE_TICK } else { Duration::from_millis(u64::from(heartbeat) * 500) };
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let gate = link.gate();
        Self {
            stream,
            input,
            session,
            link,
            gate,
            presence,
            alarms,
            blocked: false,
            publishes: false,
            drained: 0,
            ticks,
            pulse: (heartbeat != 0).then(Pulse::default),
            wrote: false,
            heard: false,
            broken: false,
            held: false,
            deadline: None,
        }
    }

    async fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let stopped = stop.requested();
        tokio::pin!(stopped);
        let entry = self.presence.place().map(|place| place.entry());
        let mut running = true;
        // What came in one piece with connection.open.
        self.hear();
        loop {
            self.settle_up()?;
            if self.is_over() {
                return self.stream.shutdown().await;
            }
            let interest = self.interest();
            let deadline = self.deadline;
            let flow = tokio::select! {
                biased;
                events = self.link.events(), if self.takes_events() => self.on_events(events),
                ready = self.stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    if ready?.is_readable() && interest.is_some_and(Interest::is_readable) { self.read()? } else { Flow::Go }
                }
                () = self.gate.ready(), if !self.gate.is_open() => Flow::Go,
                raised = self.alarms.changed() => self.on_alarm(raised),
                _ = self.ticks.tick() => self.tick()?,
                () = entry_asked(entry.as_deref()) => self.on_asked(),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Flow::Done,
                () = &mut stopped, if running => {
                    running = false;
                    self.end(ReplyCode::ConnectionForced, "the broker is shutting down");
                    Flow::Go
                }
            };
            if flow == Flow::Done {
                return Ok(());
            }
        }
    }

    fn takes_events(&self) -> bool {
        self.session.line.output.buffered() < OUTPUT_MAX
    }

    /// What we wait for on the socket.
    fn interest(&self) -> Option<Interest> {
        let may_read = self.may_read();
        match (may_read, self.session.line.output.is_empty() && self.stream.is_flushed()) {
            (true, true) => Some(Interest::READABLE),
            (true, false) => Some(Interest::READABLE.add(Interest::WRITABLE)),
            (false, false) => Some(Interest::WRITABLE),
            (false, true) => None,
        }
    }

    fn may_read(&self) -> bool {
        self.gate.is_open()
            && !self.held
            && !self.is_blocked()
            && self.session.line.output.buffered() < OUTPUT_MAX
    }

    /// A connection that ends is read also under an alarm: close-ok must be heard.
    fn is_blocked(&self) -> bool {
        self.blocked && self.deadline.is_none()
    }

    /// Who publishes under an alarm waits with all that follows: as in RabbitMQ, and because what a client sends behind a publish
    /// (its ack of what led to it) must not overtake it.
    fn block(&mut self) {
        self.blocked = true;
        let reason = self.alarms.raised().reason();
        if self.session.agreed.blocked_notify && self.session.line.wire.phase() == Phase::Running {
            ConnectionBlocked { reason }.encode_frame(0, self.session.line.bytes());
        }
    }

    fn on_alarm(&mut self, raised: Raised) -> Flow {
        // Who waits for confirms that do not come must not have to publish again to hear why.
        if raised.minority && self.publishes && !self.blocked {
            self.block();
        }
        if self.blocked && !raised.any() {
            self.blocked = false;
            if self.session.agreed.blocked_notify && self.session.line.wire.phase() == Phase::Running {
                ConnectionUnblocked {}.encode_frame(0, self.session.line.bytes());
            }
            self.hear();
        }
        Flow::Go
    }

    fn read(&mut self) -> io::Result<Flow> {
        match self.input.read(&mut self.stream, self.session.line.wire.missing()) {
            Ok(0) => return Ok(Flow::Done),
            Ok(count) => {
                self.presence.octets.0 += count as u64;
                self.heard = true;
                self.hear();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(Flow::Go)
    }

    /// Takes everything that is complete in the read buffer.
    fn hear(&mut self) {
        self.session.look(self.link.topology());
        self.session.arena.expect(self.input.len());
        let mut rest = &self.input[..];
        let mut publishes = false;
        loop {
            if publishes || self.is_blocked() {
                self.held = false;
                break;
            }
            let before = rest;
            match self.session.line.wire.next_event(&mut rest) {
                Ok(Some(Event::Close(close))) => self.session.line.close_ok(&close),
                Ok(Some(event)) => {
                    if !self.session.on_heard(&event) {
                        // Methods change nothing in the codec: it can read this one again.
                        rest = before;
                        self.held = true;
                        break;
                    }
                    let publish = matches!(event, Event::Publish { .. });
                    self.publishes |= publish;
                    publishes = publish && self.alarms.raised().any();
                }
                Ok(None) => {
                    self.held = self.session.line.wire.missing() == 0;
                    break;
                }
                Err(exception) => {
                    self.broken = true;
                    self.session.line.close(&exception);
                }
            }
        }
        let taken = self.input.len() - rest.len();
        self.input.advance(taken);
        if publishes {
            self.block();
        }
    }

    fn on_events(&mut self, events: Option<Vec<crate::broker::api::Event>>) -> Flow {
        let Some(events) = events else {
            self.end(ReplyCode::ConnectionForced, "the broker is shutting down");
            return if self.session.line.wire.phase() == Phase::Closing && self.deadline.is_none() {
                Flow::Go
            } else {
                Flow::Done
            };
        };
        self.session.on_events(events);
        while self.takes_events()
            && let Some(more) = self.link.try_events()
        {
            self.session.on_events(more);
        }
        self.session.let_go();
        if self.held {
            self.hear();
        }
        Flow::Go
    }

    /// Hands over what is for the shard and writes what is for the client.
    fn settle_up(&mut self) -> io::Result<()> {
        let opened = std::mem::take(&mut self.session.opened);
        self.presence.update(self.session.channels.len(), opened, !self.gate.is_open());
        let mut verbs = self.session.take_verbs();
        if self.drained > 0 && (!verbs.is_empty() || self.drained >= DRAIN_AT) {
            let bytes = u32::try_from(std::mem::take(&mut self.drained)).unwrap_or(u32::MAX);
            verbs.push(self.session.own_verb(Op::Drained { bytes }));
        }
        if !self.link.send(verbs) {
            self.end(ReplyCode::ConnectionForced, "the broker is shutting down");
        }
        self.write()?;
        if self.session.line.output.is_empty() {
            self.drained += std::mem::take(&mut self.session.undrained);
            if self.drained >= DRAIN_AT {
                let bytes = u32::try_from(std::mem::take(&mut self.drained)).unwrap_or(u32::MAX);
                self.link.send(vec![self.session.own_verb(Op::Drained { bytes })]);
            }
        }
        if self.deadline.is_none() && matches!(self.session.line.wire.phase(), Phase::Closing | Phase::Closed)
        {
            let patience = if self.broken { BROKEN_TIME } else { CLOSE_TIME };
            self.deadline = Some(Instant::now() + patience);
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let (output, stream) = (&mut self.session.line.output, &mut self.stream);
        if output.is_empty() {
            return stream.try_flush();
        }
        self.wrote = true;
        let sent = &mut self.presence.octets.1;
        let write = |slices: &[io::IoSlice<'_>]| {
            let taken = stream.try_write_vectored(slices)?;
            *sent += taken as u64;
            Ok(taken)
        };
        match output.write_to(write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            done => done,
        }
    }

    fn is_over(&self) -> bool {
        self.session.line.wire.phase() == Phase::Closed
            && self.session.line.output.is_empty()
            && self.stream.is_flushed()
    }

    /// Does what operators asked.
    fn on_asked(&mut self) -> Flow {
        for ask in self.presence.place().map(|place| place.asks()).unwrap_or_default() {
            match ask {
                Ask::Close(reason) => self.end(ReplyCode::ConnectionForced, &reason),
                // Nobody waits any more: nothing is lost.
                Ask::Describe(to) => drop(to.send(self.session.describe())),
            }
        }
        Flow::Go
    }

    fn end(&mut self, code: ReplyCode, text: &str) {
        self.session.line.close(&Exception::new(code, text));
    }

    fn tick(&mut self) -> io::Result<Flow> {
        let idle = !self.heard && !self.wrote;
        let may_read = self.may_read();
        if let Some(pulse) = &mut self.pulse {
            // While we do not read, the peer's silence is our doing.
            let deaf = !may_read;
            pulse.silent_ticks = if self.heard || deaf { 0 } else { pulse.silent_ticks.saturating_add(1) };
            if pulse.silent_ticks > 4 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "two heartbeats were missed"));
            }
            if !self.wrote && self.session.line.output.is_empty() && self.deadline.is_none() {
                self.session.line.bytes().extend_from_slice(&HEARTBEAT);
            }
        }
        self.session.rest(self.link.topology(), idle);
        self.heard = false;
        self.wrote = false;
        Ok(Flow::Go)
    }
}
