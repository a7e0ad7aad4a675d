//! TLS: certificates, handshakes, and which of a listener's peers speak it.
//!
//! Owns: the files of `tls.*` and what rustls makes of them, the handshake, the first byte's meaning.
//! Promises: what is wrong with a file is one line that names key and file; a new certificate serves new connections without a
//! restart, a broken one changes nothing; a handshake is bounded in time, memory and number, and its failure is one line.
//! Does not know: protocols, logins. What a verified certificate says is handed on as [`Facts`].

mod certificate;

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, RootCertStore, ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio::signal::unix::Signal;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::certificate::Certificate;
use super::Stop;
use super::transport::{ClientCertificate, Encrypted, Facts, flush};
use crate::config::{ClientAuth, MinTls, Tls as Settings, UserFrom};
use crate::limits;

/// First byte of every TLS connection: a record with a handshake message.
const HANDSHAKE: u8 = 0x16;

/// What is wrong with a file of `tls.*`.
#[derive(Debug, thiserror::Error)]
#[error("can not use {key} '{file}': {cause}")]
pub struct TlsError {
    /// The configuration's key.
    pub key: &'static str,
    /// As configured.
    pub file: String,
    /// What to repair.
    pub cause: String,
}

/// One certificate with its key, for all listeners.
pub struct Tls {
    settings: Settings,
    current: RwLock<Arc<ServerConfig>>,
    handshakes: Semaphore,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: the first file that can not be used.
    pub fn load(settings: Settings) -> Result<Arc<Self>, TlsError> {
        let (config, leaf) = build(&settings)?;
        announce(&settings.certificate, leaf.as_ref());
        let current = RwLock::new(config);
        Ok(Arc::new(Self { settings, current, handshakes: Semaphore::new(limits::TLS_HANDSHAKES_MAX) }))
    }

    /// Reads the files again. New connections are served with what they hold now; if that is unusable, with what was used before.
    pub fn reload(&self) {
        match build(&self.settings) {
            Ok((config, leaf)) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                // Said when it is true: whoever reads the line may connect at once.
                announce(&self.settings.certificate, leaf.as_ref());
            }
            Err(error) => tracing::error!("the certificate in use stays: {error}"),
        }
    }

    /// Reloads when the process is told to, and when the files change, until `stop`.
    pub async fn keep_current(self: Arc<Self>, mut hangups: Signal, stop: Stop) {
        let mut ticks = interval(Duration::from_millis(limits::TLS_RELOAD_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut loaded = self.stamps().await;
        let mut before = loaded.clone();
        loop {
            let asked = tokio::select! {
                () = stop.requested() => return,
                hangup = hangups.recv() => hangup.is_some(),
                _ = ticks.tick() => false,
            };
            let now = self.stamps().await;
            // Certificate and key are seldom replaced in the same instant: a change counts when it is a tick old.
            if asked || (now != loaded && now == before) {
                loaded.clone_from(&now);
                let this = Arc::clone(&self);
                let _ = tokio::task::spawn_blocking(move || this.reload()).await;
            }
            before = now;
        }
    }

    /// What tells one content of the files from another without reading them.
    async fn stamps(self: &Arc<Self>) -> Vec<Option<Stamp>> {
        let this = Arc::clone(self);
        let look = move || {
            let Settings { certificate, key, client_ca, .. } = &this.settings;
            [certificate, key, client_ca].map(|file| stamp(file)).to_vec()
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Does the handshake with a peer that has said nothing yet.
    ///
    /// # Errors
    /// [`Refused`]: the peer got an alert if it speaks TLS, and may be forgotten.
    async fn accept(&self, stream: TcpStream) -> Result<Encrypted, Refused> {
        let limit = Duration::from_millis(limits::TLS_HANDSHAKE_MS);
        timeout(limit, self.handshake(stream)).await.unwrap_or(Err(Refused::Slow))
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Encrypted, Refused> {
        match first_byte(&stream).await? {
            Some(HANDSHAKE) => {}
            Some(_) => return Err(Refused::Plaintext),
            None => return Err(Refused::Silent),
        }
        // From here on a peer costs memory.
        let _permit = self.handshakes.acquire().await;
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let mut tls = Box::new(ServerConnection::new(config)?);
        loop {
            match flush(&mut tls, &stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                done => done?,
            }
            if tls.wants_write() {
                continue;
            }
            if !tls.is_handshaking() {
                break;
            }
            stream.readable().await?;
            match tls.read_tls(&mut Socket(&stream)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            if let Err(error) = tls.process_new_packets() {
                // Best effort: the alert that says why.
                let _ = flush(&mut tls, &stream);
                return Err(error.into());
            }
        }
        let facts = facts(&tls, self.settings.external_user_from);
        Ok(Encrypted::new(stream, tls, facts))
    }
}

/// Who may come through a listener.
#[derive(Debug, Clone)]
pub enum Entrance {
    /// Everybody, as they are: the protocol itself tells those who speak TLS from others.
    Open,
    /// Who speaks TLS is turned away.
    PlainOnly,
    /// The first byte decides.
    Either(Arc<Tls>),
    /// Who does not speak TLS is turned away.
    TlsOnly(Arc<Tls>),
}

/// A peer that came in.
pub(super) enum Entered {
    /// Nothing was read yet.
    Plain(TcpStream),
    /// The handshake is done.
    Encrypted(Encrypted),
}

impl Entrance {
    /// Lets a peer in, or logs in one line why not.
    pub(super) async fn enter(
        &self,
        key: &str,
        stream: TcpStream,
        peer: SocketAddr,
        stop: &Stop,
    ) -> Option<Entered> {
        let entered = async {
            match self {
                Self::Open => Ok(Entered::Plain(stream)),
                Self::TlsOnly(tls) => tls.accept(stream).await.map(Entered::Encrypted),
                Self::PlainOnly | Self::Either(_) => {
                    let patience = Duration::from_millis(limits::FIRST_BYTE_MS);
                    let first =
                        timeout(patience, first_byte(&stream)).await.map_err(|_| Refused::Silent)??;
                    match (first, self) {
                        (None, _) => Err(Refused::Silent),
                        (Some(HANDSHAKE), Self::Either(tls)) => {
                            tls.accept(stream).await.map(Entered::Encrypted)
                        }
                        (Some(HANDSHAKE), _) => Err(Refused::Encrypted),
                        _ => Ok(Entered::Plain(stream)),
                    }
                }
            }
        };
        let entered = tokio::select! {
            entered = entered => entered,
            // Nobody who did not introduce himself is owed a word.
            () = stop.requested() => return None,
        };
        match entered {
            Ok(entered) => Some(entered),
            // Port scans and load balancers that only look whether somebody listens.
            Err(Refused::Silent) => None,
            Err(refused) => {
                tracing::info!(%peer, "{key} turned a connection away: {refused}");
                None
            }
        }
    }
}

/// Why a peer does not come in.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it said nothing")]
    Silent,
    #[error("plaintext on a port for TLS")]
    Plaintext,
    #[error("TLS on a port that speaks plaintext only")]
    Encrypted,
    #[error("the TLS handshake took longer than {} ms", limits::TLS_HANDSHAKE_MS)]
    Slow,
    #[error("the TLS handshake failed: {0}")]
    Broken(#[from] rustls::Error),
    #[error("the TLS handshake was not finished: {0}")]
    Lost(#[from] io::Error),
}

/// Looks at the first byte and leaves it where it is. `None`: there will be none.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((stream.peek(&mut byte).await? == 1).then_some(byte[0]))
}

/// The socket as rustls reads from it.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

fn facts(tls: &ServerConnection, user_from: UserFrom) -> Facts {
    let version = match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let suite = tls.negotiated_cipher_suite().map(|suite| format!(" {:?}", suite.suite()));
    let client = tls.peer_certificates().and_then(<[_]>::first).map(|der| match Certificate::read(der) {
        Some(certificate) => {
            let user = match user_from {
                UserFrom::CommonName => certificate.common_name,
                UserFrom::DistinguishedName => Some(certificate.subject.clone()),
                UserFrom::SubjectAlternativeName => certificate.dns_name,
            };
            let user = user.filter(|user| !user.is_empty()).map(Arc::from);
            ClientCertificate { subject: certificate.subject, user }
        }
        None => ClientCertificate { subject: "(unreadable)".to_owned(), user: None },
    });
    Facts { session: format!("{version}{}", suite.unwrap_or_default()), client }
}

// ---- files

/// Device, file, time of change (s, ns), length.
type Stamp = (u64, u64, i64, i64, u64);

fn stamp(file: &str) -> Option<Stamp> {
    let data = fs::metadata(file).ok()?;
    Some((data.dev(), data.ino(), data.mtime(), data.mtime_nsec(), data.len()))
}

/// What serves new connections, and the certificate that they will see.
fn build(settings: &Settings) -> Result<(Arc<ServerConfig>, Option<CertificateDer<'static>>), TlsError> {
    let Settings { certificate, key, client_ca, client_auth, min_version, .. } = settings;
    let provider = Arc::new(ring::default_provider());
    let chain = certificates("tls.certificate", certificate)?;
    let certified = certified_key(&provider, chain.clone(), certificate, key)?;
    let fail = |cause: rustls::Error| error("tls.certificate", certificate, &cause);
    let versions = match min_version {
        MinTls::V1_2 => &[&TLS13, &TLS12][..],
        MinTls::V1_3 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(fail)?;
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => {
            let roots = Arc::new(roots(client_ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match client_auth {
                ClientAuth::Required => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(
                verifier.build().map_err(|why| error("tls.client_ca", client_ca, &why))?,
            )
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.session_storage = ServerSessionMemoryCache::new(limits::TLS_SESSIONS_MAX);
    Ok((Arc::new(config), chain.into_iter().next()))
}

fn error(key: &'static str, file: &str, cause: &dyn fmt::Display) -> TlsError {
    TlsError { key, file: file.to_owned(), cause: cause.to_string() }
}

fn certificates(key: &'static str, file: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = fs::read(file).map_err(|cause| error(key, file, &cause))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|cause| error(key, file, &format!("it is not PEM: {cause}")))?;
    if chain.is_empty() {
        return Err(error(key, file, &"it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(chain)
}

fn certified_key(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    certificate: &str,
    file: &str,
) -> Result<CertifiedKey, TlsError> {
    let pem = fs::read(file).map_err(|cause| error("tls.key", file, &cause))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let wanted = "it holds no private key in PEM without password (PKCS#8, PKCS#1 or SEC1)";
        error("tls.key", file, &wanted)
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|cause| match cause {
        rustls::Error::InconsistentKeys(_) => {
            error("tls.key", file, &format!("it is not the key of the certificate in '{certificate}'"))
        }
        rustls::Error::InvalidCertificate(_) => error("tls.certificate", certificate, &cause),
        cause => error("tls.key", file, &cause),
    })
}

fn roots(file: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.client_ca", file)? {
        roots.add(certificate).map_err(|cause| error("tls.client_ca", file, &cause))?;
    }
    Ok(roots)
}

/// Says which certificate serves from now on. One that clients will refuse is served all the same: some do not check dates.
fn announce(file: &str, der: Option<&CertificateDer<'_>>) {
    let Some(certificate) = der.and_then(|der| Certificate::read(der)) else {
        tracing::warn!("tls.certificate '{file}': its dates can not be read");
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let days = (certificate.not_after - now).div_euclid(86_400);
    let subject = &certificate.subject;
    if now > certificate.not_after {
        tracing::warn!("tls.certificate '{file}' ({subject}) has expired {} days ago", -days - 1);
    } else if now < certificate.not_before {
        let days = (certificate.not_before - now).div_euclid(86_400);
        tracing::warn!("tls.certificate '{file}' ({subject}) is not valid yet, only in {days} days");
    } else if days < limits::TLS_EXPIRES_SOON_DAYS {
        tracing::warn!("tls.certificate '{file}' ({subject}) expires in {days} days");
    } else {
        tracing::info!("tls.certificate '{file}' ({subject}) is valid for {days} more days");
    }
}
