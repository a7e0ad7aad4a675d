//! TLS as clients and operators meet it: ports, versions, certificates, and what happens to those who do it wrong.
//!
//! Owns: certificates made for each test, and the real binary in a process. Promises: no sleeps: a test waits for an answer, a
//! line of the log or the end of a process, within a deadline. Does not know: how handshakes are done.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

const AMQP_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
const PATIENCE: Duration = Duration::from_secs(20);

type Client = StreamOwned<ClientConnection, TcpStream>;

/// An authority and a directory for what it signs.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self { directory, issuer: Issuer::new(params, key) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Writes `name.pem` and `name.key` for somebody with that common name.
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::OrganizationName, "Test");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("a file");
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
    }

    fn set(&self, key: &str, file: &str) -> String {
        format!("{key}={}", self.path(file).display())
    }

    /// A client that trusts this authority only.
    fn client(
        &self,
        port: u16,
        version: &'static SupportedProtocolVersion,
        certificate: Option<&str>,
    ) -> std::io::Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).expect("PEM")).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("PEM");
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("PEM");
                builder.with_client_auth_cert(vec![chain], key).expect("a certificate with its key")
            }
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut stream = StreamOwned::new(connection, tcp(port));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A broker that is ready, and ends with the test.
struct Broker {
    child: Child,
    log: BufReader<ChildStderr>,
    amqps: u16,
    amqp: u16,
    rocketmq: u16,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn command(authority: &Authority, settings: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dassie"));
    command.arg("--data-dir").arg(authority.path("data"));
    let off = ["amqp", "rocketmq", "http", "metrics"].map(|section| format!("{section}.listen="));
    let certificate =
        [authority.set("tls.certificate", "server.pem"), authority.set("tls.key", "server.key")];
    let more = ["rocketmq.vip_listen=".to_owned(), "rocketmq.name_server_listen=".to_owned()];
    for setting in off.iter().chain(&certificate).chain(&more).chain(settings) {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Broker {
    fn start(authority: &Authority, settings: &[String]) -> Self {
        let (amqps, amqp, rocketmq) = (free_port(), free_port(), free_port());
        let mut all = settings.to_vec();
        for (key, port) in [("tls", amqps), ("amqp", amqp), ("rocketmq", rocketmq)] {
            all.push(format!("{key}.listen=127.0.0.1:{port}"));
        }
        let mut child = command(authority, &all).spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut broker = Self { child, log, amqps, amqp, rocketmq };
        broker.wait_for("ready in ");
        broker
    }

    /// Reads the log up to a line with `text`; gives that line.
    fn wait_for(&mut self, text: &str) -> String {
        let mut read = String::new();
        loop {
            let mut line = String::new();
            let count = self.log.read_line(&mut line).expect("a readable log");
            assert!(count > 0, "ended before '{text}':\n{read}");
            if line.contains(text) {
                return line;
            }
            read.push_str(&line);
        }
    }

    fn hang_up(&self) {
        let status = Command::new("kill").args(["-s", "HUP", &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads one AMQP method frame: its payload.
fn method(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let [_, _, _, size @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}

/// Says the header, gives connection.start.
fn introduce(stream: &mut (impl Read + Write)) -> std::io::Result<String> {
    stream.write_all(AMQP_HEADER)?;
    let payload = method(stream)?;
    assert_eq!(payload[..4], [0, 10, 0, 10], "connection.start");
    Ok(String::from_utf8_lossy(&payload).into_owned())
}

/// Logs in with EXTERNAL and gives class and method of the answer.
fn external(stream: &mut (impl Read + Write)) -> std::io::Result<Vec<u8>> {
    let payload = b"\0\x0a\0\x0b\0\0\0\0\x08EXTERNAL\0\0\0\0\x05en_US";
    let size = u32::try_from(payload.len()).expect("short").to_be_bytes();
    stream.write_all(&[b"\x01\0\0", &size[..], payload, b"\xce"].concat())?;
    method(stream).map(|answer| answer[..4].to_vec())
}

/// Asks the name server for all topics, gives whether an answer came.
fn rocketmq_answers(stream: &mut (impl Read + Write)) -> bool {
    let head = br#"{"code":206,"language":"JAVA","version":401,"opaque":7,"flag":0,"serializeTypeCurrentRPC":"JSON"}"#;
    let length = u32::try_from(head.len()).expect("short");
    let frame = [&(length + 4).to_be_bytes()[..], &length.to_be_bytes(), head].concat();
    let mut size = [0; 4];
    if stream.write_all(&frame).is_err() || stream.read_exact(&mut size).is_err() {
        return false;
    }
    let mut answer = vec![0; u32::from_be_bytes(size) as usize];
    stream.read_exact(&mut answer).is_ok() && String::from_utf8_lossy(&answer).contains("\"opaque\":7")
}

/// The other side says no more.
fn is_closed(stream: &mut impl Read) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn amqp_is_spoken_over_both_versions_and_the_log_says_over_which() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let mut broker = Broker::start(&authority, &[]);
    for (version, name) in [(&TLS12, "TLSv1.2"), (&TLS13, "TLSv1.3")] {
        let mut client = authority.client(broker.amqps, version, None).expect("a handshake");
        let start = introduce(&mut client).expect("connection.start");
        assert!(start.contains("PLAIN AMQPLAIN") && !start.contains("EXTERNAL"), "{start}");
        drop(client);
        broker.wait_for(name);
    }
}

#[test]
fn the_oldest_version_can_be_raised() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let mut broker = Broker::start(&authority, &["tls.min_version=1.3".to_owned()]);
    assert!(authority.client(broker.amqps, &TLS12, None).is_err());
    broker.wait_for("tls.listen turned a connection away: the TLS handshake failed");
    assert!(authority.client(broker.amqps, &TLS13, None).is_ok());
}

#[test]
fn external_is_for_verified_certificates_only_and_takes_the_login_from_them() {
    let authority = Authority::new();
    for name in ["server", "guest", "mallory"] {
        authority.sign(name, |_| {});
    }
    let optional = [authority.set("tls.client_ca", "ca.pem"), "tls.client_auth=optional".to_owned()];
    let broker = Broker::start(&authority, &optional);
    let mut nobody = authority.client(broker.amqps, &TLS13, None).expect("a handshake");
    assert!(!introduce(&mut nobody).expect("connection.start").contains("EXTERNAL"));
    assert!(external(&mut nobody).is_err(), "what was not offered is refused");
    for version in [&TLS12, &TLS13] {
        let mut guest = authority.client(broker.amqps, version, Some("guest")).expect("a handshake");
        assert!(introduce(&mut guest).expect("connection.start").contains("PLAIN AMQPLAIN EXTERNAL"));
        assert_eq!(external(&mut guest).expect("an answer"), [0, 10, 0, 30], "connection.tune");
    }
    let mut mallory = authority.client(broker.amqps, &TLS13, Some("mallory")).expect("a handshake");
    introduce(&mut mallory).expect("connection.start");
    assert!(external(&mut mallory).is_err(), "a certificate is not yet a user");
}

#[test]
fn a_certificate_of_strangers_is_refused_and_none_when_one_is_required() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    authority.sign("server", |_| {});
    authority.sign("guest", |_| {});
    strangers.sign("guest", |_| {});
    let required = [authority.set("tls.client_ca", "ca.pem"), "tls.client_auth=required".to_owned()];
    let broker = Broker::start(&authority, &required);
    // With TLS 1.3 a client has finished before it hears of it.
    let talks =
        |client: std::io::Result<Client>| client.is_ok_and(|mut client| introduce(&mut client).is_ok());
    assert!(talks(authority.client(broker.amqps, &TLS13, Some("guest"))));
    assert!(!talks(authority.client(broker.amqps, &TLS13, None)));
    assert!(!talks(authority.client(broker.amqps, &TLS12, None)));
    for file in ["guest.pem", "guest.key"] {
        fs::copy(strangers.path(file), authority.path(file)).expect("a copy");
    }
    assert!(!talks(authority.client(broker.amqps, &TLS13, Some("guest"))));
}

#[test]
fn the_wrong_kind_of_client_is_closed_at_once_with_a_line_in_the_log() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let mut broker = Broker::start(&authority, &["rocketmq.tls=disabled".to_owned()]);
    let mut plain = tcp(broker.amqps);
    plain.write_all(AMQP_HEADER).expect("it reads");
    assert!(is_closed(&mut plain));
    broker.wait_for("tls.listen turned a connection away: plaintext on a port for TLS");
    // As RabbitMQ does: its own header, then the end.
    let mut hello = tcp(broker.amqp);
    hello.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").expect("it reads");
    let mut header = [0; 8];
    hello.read_exact(&mut header).expect("a header");
    assert_eq!(header, AMQP_HEADER);
    assert!(is_closed(&mut hello));
    broker.wait_for("TLS on a port that speaks plaintext only");
    assert!(authority.client(broker.rocketmq, &TLS13, None).is_err());
    broker.wait_for("rocketmq.listen turned a connection away: TLS on a port that speaks plaintext only");
    assert!(rocketmq_answers(&mut tcp(broker.rocketmq)));
}

#[test]
fn rocketmq_tells_tls_from_plaintext_by_the_first_byte_unless_tls_is_enforced() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let permissive = Broker::start(&authority, &[]);
    assert!(rocketmq_answers(&mut tcp(permissive.rocketmq)));
    for version in [&TLS12, &TLS13] {
        let mut client = authority.client(permissive.rocketmq, version, None).expect("a handshake");
        assert!(rocketmq_answers(&mut client));
    }
    drop(permissive);
    let mut enforcing = Broker::start(&authority, &["rocketmq.tls=enforcing".to_owned()]);
    assert!(!rocketmq_answers(&mut tcp(enforcing.rocketmq)));
    enforcing.wait_for("rocketmq.listen turned a connection away: plaintext on a port for TLS");
    let mut client = authority.client(enforcing.rocketmq, &TLS13, None).expect("a handshake");
    assert!(rocketmq_answers(&mut client));
}

#[test]
fn a_new_certificate_serves_new_connections_and_a_broken_one_changes_nothing() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let mut broker = Broker::start(&authority, &[]);
    let mut old = authority.client(broker.amqps, &TLS13, None).expect("a handshake");
    let shown = |client: &Client| client.conn.peer_certificates().map(<[_]>::to_vec);
    let first = shown(&old);

    fs::write(authority.path("server.pem"), "-----BEGIN CERTIFICATE-----\nrubbish").expect("a file");
    broker.hang_up();
    let line = broker.wait_for("the certificate in use stays");
    assert!(line.contains("tls.certificate") && line.contains("server.pem"), "{line}");
    assert_eq!(shown(&authority.client(broker.amqps, &TLS13, None).expect("a handshake")), first);

    authority.sign("server", |_| {});
    broker.hang_up();
    broker.wait_for("is valid for");
    assert_ne!(shown(&authority.client(broker.amqps, &TLS13, None).expect("a handshake")), first);
    introduce(&mut old).expect("the old connection goes on");

    // And without being told.
    authority.sign("server", |_| {});
    broker.wait_for("is valid for");
}

#[test]
fn what_is_wrong_with_a_file_is_one_line_with_key_and_file() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    authority.sign("other", |_| {});
    fs::write(authority.path("empty.pem"), "").expect("a file");
    let required = "tls.client_auth=required".to_owned();
    for (settings, key, file) in [
        (vec![authority.set("tls.key", "other.key")], "tls.key", "other.key"),
        (vec![authority.set("tls.key", "server.pem")], "tls.key", "server.pem"),
        (vec![authority.set("tls.certificate", "missing.pem")], "tls.certificate", "missing.pem"),
        (vec![authority.set("tls.certificate", "empty.pem")], "tls.certificate", "empty.pem"),
        (vec![authority.set("tls.client_ca", "empty.pem"), required], "tls.client_ca", "empty.pem"),
    ] {
        let output = command(&authority, &settings).output().expect("the program runs");
        let text = String::from_utf8(output.stderr).expect("text");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("dassie: ")).collect();
        assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{text}");
        assert!(
            lines[0].starts_with(&format!("dassie: can not use {key} '")) && lines[0].contains(file),
            "{text}"
        );
    }
}

#[test]
fn a_certificate_out_of_its_time_is_served_with_a_warning() {
    let authority = Authority::new();
    for (years, said) in [((2001, 2002), "has expired"), ((2101, 2102), "is not valid yet")] {
        authority.sign("server", |params| {
            params.not_before = date_time_ymd(years.0, 1, 1);
            params.not_after = date_time_ymd(years.1, 1, 1);
        });
        let mut child =
            command(&authority, &["tls.listen=127.0.0.1:0".to_owned()]).spawn().expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let told = log
            .lines()
            .map_while(Result::ok)
            .take_while(|line| !line.contains("ready in "))
            .any(|line| line.contains("WARN") && line.contains(said) && line.contains("CN=server"));
        let _ = child.kill();
        let _ = child.wait();
        assert!(told, "{said}");
    }
}

#[test]
fn who_does_not_finish_the_handshake_is_closed_in_time_and_holds_up_nobody() {
    let authority = Authority::new();
    authority.sign("server", |_| {});
    let broker = Broker::start(&authority, &[]);
    let begun = Instant::now();
    // The beginning of a hello, a hello that never ends, nothing at all.
    let mut slow: Vec<_> = [&b"\x16"[..], b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", b""]
        .into_iter()
        .cycle()
        .take(60)
        .map(|bytes| {
            let mut stream = tcp(broker.amqps);
            stream.write_all(bytes).expect("it reads");
            stream
        })
        .collect();
    let mut client = authority.client(broker.amqps, &TLS13, None).expect("a handshake");
    introduce(&mut client).expect("connection.start");
    assert!(begun.elapsed() < Duration::from_secs(4), "others are not held up");
    assert!(slow.iter_mut().all(is_closed), "all are closed");
}
