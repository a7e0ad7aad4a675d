//! The handshake: who is there, what both sides can, which vhost.
//!
//! Owns: what the server says of itself, and the login. Promises: a capability is announced only if it is true; a failed login
//! says nothing about why; a stranger costs no more than the codec's handshake budget.
//! Does not know: sockets, deadlines, the shard.

use std::net::IpAddr;
use std::sync::Arc;

use dassie_amqp::connection::{Connection, Event, declares};
use dassie_amqp::frame::PROTOCOL_HEADER;
use dassie_amqp::method::{ConnectionOpen, ConnectionStartOk};
use dassie_amqp::reply::{Exception, ReplyCode};
use dassie_amqp::sasl::{AMQPLAIN, Credentials, EXTERNAL, PLAIN};
use dassie_amqp::table::TableBuilder;

use super::Offer;
use super::line::Line;
use super::refusals;
use super::session::Agreed;
use crate::broker::topology::Topology;
use crate::security::{Action, Authorized, LoginRefused, Principal, Realm, Resource, authorize};
use crate::server::transport::ClientCertificate;

/// What a client sends first who takes the port for one that speaks TLS.
const TLS_HANDSHAKE: u8 = 0x16;
/// What this server can do that not every AMQP server can.
const CAPABILITIES: [&str; 7] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "authentication_failure_close",
    "per_consumer_qos",
];

/// A connection that is not open yet.
pub(super) struct Greeting {
    /// The codec's state and what is to be written.
    pub(super) line: Line,
    offer: Arc<Offer>,
    pub(super) peer: IpAddr,
    realm: Arc<Realm>,
    /// Verified; with it EXTERNAL is offered.
    certificate: Option<ClientCertificate>,
    principal: Option<Principal>,
    cancel_notify: bool,
    mechanism: String,
    client_properties: Box<[u8]>,
    /// A login was tried: did it work?
    pub(super) login: Option<bool>,
    blocked_notify: bool,
}

/// How a greeting goes on.
pub(super) enum Progress {
    /// The client's turn.
    Waiting,
    /// The connection is open. The key is for its own state.
    Open(Box<Agreed>, Authorized),
    /// Close the socket without another word.
    HangUp,
}

impl Greeting {
    /// A peer that said nothing yet.
    pub(super) fn new(
        offer: Arc<Offer>,
        peer: IpAddr,
        realm: Arc<Realm>,
        certificate: Option<ClientCertificate>,
    ) -> Self {
        let line = Line::new(Connection::new(offer.limits));
        Self {
            line,
            offer,
            peer,
            realm,
            certificate,
            principal: None,
            cancel_notify: false,
            blocked_notify: false,
            mechanism: String::new(),
            client_properties: Box::default(),
            login: None,
        }
    }

    /// One thing the peer said.
    pub(super) fn on_heard(&mut self, event: &Event<'_>, topology: &Topology) -> Result<Progress, Exception> {
        match event {
            Event::ProtocolHeader => self.introduce()?,
            Event::ForeignHeader(seen) => {
                // Header and close are the protocol's answer; who reads the log can be told more.
                let what = if seen.first() == Some(&TLS_HANDSHAKE) {
                    "TLS on a port that speaks plaintext only"
                } else {
                    "the client does not speak AMQP 0-9-1"
                };
                self.line.end(|| what.to_owned());
                self.line.bytes().extend_from_slice(&PROTOCOL_HEADER);
            }
            Event::StartOk(start_ok) => return self.log_in(start_ok),
            Event::Open(open) => return self.open(open, topology),
            Event::Close(close) => self.line.close_ok(close),
            // tune-ok and heartbeats need no answer; nothing else arrives in a handshake.
            _ => {}
        }
        Ok(Progress::Waiting)
    }

    fn introduce(&mut self) -> Result<(), Exception> {
        let mut properties = TableBuilder::new();
        properties
            .put("product", &*self.offer.product)
            .put("version", &*self.offer.version)
            .put("platform", concat!("Dassie ", env!("CARGO_PKG_VERSION"), ", Rust"))
            .put("information", env!("CARGO_PKG_REPOSITORY"))
            .put_table("capabilities", |table| {
                for capability in CAPABILITIES {
                    table.put(capability, true);
                }
            });
        let table = properties.as_table().map_err(|error| Exception::new(ReplyCode::InternalError, error))?;
        let external = if self.certificate.is_some() { format!(" {EXTERNAL}") } else { String::new() };
        self.line.wire.start(table, &format!("{PLAIN} {AMQPLAIN}{external}"), self.line.output.bytes());
        Ok(())
    }

    fn log_in(&mut self, start_ok: &ConnectionStartOk<'_>) -> Result<Progress, Exception> {
        let credentials = match start_ok.mechanism {
            PLAIN => Credentials::from_plain(start_ok.response),
            AMQPLAIN => Credentials::from_amqplain(start_ok.response),
            _ => None,
        };
        let certificate = self.certificate.as_ref().filter(|_| start_ok.mechanism == EXTERNAL);
        self.cancel_notify = declares(start_ok.client_properties, "consumer_cancel_notify");
        self.mechanism = start_ok.mechanism.to_owned();
        self.client_properties = start_ok.client_properties.as_bytes().into();
        self.blocked_notify = declares(start_ok.client_properties, "connection.blocked");
        let named = credentials.as_ref().and_then(|credentials| std::str::from_utf8(credentials.user).ok());
        let certified = certificate.and_then(|certificate| certificate.user.as_deref());
        let login = match (&credentials, named, certified) {
            (Some(credentials), Some(user), _) => {
                self.realm.authenticate(user, credentials.password, self.peer)
            }
            (_, _, Some(user)) => self.realm.authenticate_external(user, self.peer),
            _ => Err(LoginRefused::Invalid),
        };
        self.login = Some(login.is_ok());
        match login {
            Ok(principal) => {
                self.principal = Some(principal);
                self.line.wire.tune(self.line.output.bytes());
                return Ok(Progress::Waiting);
            }
            Err(reason) => tracing::warn!(
                peer = %self.peer,
                user = ?named.or(certified),
                mechanism = ?start_ok.mechanism,
                certificate = certificate.map(|certificate| certificate.subject.as_str()),
                "AMQP login refused: {reason}"
            ),
        }
        if declares(start_ok.client_properties, "authentication_failure_close") {
            let text = format_args!(
                "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                start_ok.mechanism
            );
            return Err(Exception::new(ReplyCode::AccessRefused, text));
        }
        Ok(Progress::HangUp)
    }

    fn open(&mut self, open: &ConnectionOpen<'_>, topology: &Topology) -> Result<Progress, Exception> {
        let Some(mut principal) = self.principal.take() else { return Ok(Progress::HangUp) };
        let Some(vhost) = topology.vhost_id(open.virtual_host) else {
            let text = format_args!("vhost {} not found", open.virtual_host);
            return Err(Exception::new(ReplyCode::NotAllowed, text).during(ConnectionOpen::ID));
        };
        principal.enter(open.virtual_host).map_err(|refused| {
            tracing::warn!("AMQP connection from {}: {refused}", self.peer);
            Exception::new(ReplyCode::NotAllowed, refused).during(ConnectionOpen::ID)
        })?;
        let own =
            authorize(&principal, Action::Read, Resource::Own).map_err(|denied| refusals::denied(&denied))?;
        self.line.wire.open_ok(self.line.output.bytes());
        let vhost_name: Arc<str> = open.virtual_host.into();
        let agreed = Agreed {
            principal,
            vhost,
            vhost_name,
            cancel_notify: self.cancel_notify,
            blocked_notify: self.blocked_notify,
            mechanism: std::mem::take(&mut self.mechanism),
            client_properties: std::mem::take(&mut self.client_properties),
        };
        Ok(Progress::Open(Box::new(agreed), own))
    }
}
