//! A broker of one's own, and raw sockets to it.
//!
//! Owns: the process and its directory, what a raw peer says and hears. Promises: every wait ends; the process ends with the test.
//! Does not know: protocols.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use dassie_interop::harm::Broker;
use dassie_interop::sim::dice::Dice;

/// What a broker may hold in memory at the worst moment, in KiB: what the system says of an idle one is about 35 MiB.
const MEMORY_MAX_KIB: u64 = 700 * 1024;
/// How soon somebody who breaks the protocol is answered or cut off.
pub(crate) const SOON: Duration = Duration::from_secs(1);
/// What a machine that does other things too may add.
pub(crate) const GRACE: Duration = Duration::from_secs(4);

/// A broker that is ready.
pub(crate) struct Target {
    pub(crate) broker: Broker,
    directory: PathBuf,
}

impl Target {
    pub(crate) fn start(name: &str) -> Self {
        let directory = env::temp_dir().join(format!("dassie-hostile-{name}-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory of its own");
        let seed = u64::from(std::process::id()) + name.len() as u64 * 65_537;
        let mut broker = Broker::new(&binary(), &directory, &Dice::new(seed)).expect("free ports");
        broker.start().expect("it starts");
        Self { broker, directory }
    }

    /// Up, without a panic, within its memory.
    pub(crate) fn assert_well(&mut self) {
        self.broker.alive().expect("it is up");
        assert_eq!(self.broker.panics(), [""; 0], "it panicked");
        let peak = self.memory_kib("VmHWM:");
        assert!(peak < MEMORY_MAX_KIB, "{peak} KiB at the worst moment");
    }

    fn memory_kib(&self, which: &str) -> u64 {
        let status = format!("/proc/{}/status", self.broker.id().expect("it runs"));
        let text = fs::read_to_string(status).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(which)).expect("the system tells");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.broker.kill();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// The program beside the tests, or the one that `DASSIE_BIN` names.
fn binary() -> PathBuf {
    if let Some(binary) = env::var_os("DASSIE_BIN") {
        return binary.into();
    }
    let test = env::current_exe().expect("the system tells");
    let binary = test.ancestors().nth(2).expect("in target/*/deps").join("dassie");
    assert!(binary.exists(), "{} is missing: cargo build", binary.display());
    binary
}

/// A socket without manners.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    pub(crate) heard: Vec<u8>,
}

impl Peer {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        stream.set_write_timeout(Some(Duration::from_secs(5))).expect("a socket");
        Self { stream, heard: Vec::new() }
    }

    /// Says it; who was cut off before the end is told by the next read.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads until `done` likes what was heard; false at the end of the connection or of the time.
    pub(crate) fn hear_until(&mut self, within: Duration, done: impl Fn(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + within;
        let mut chunk = vec![0; 64 * 1024];
        while !done(&self.heard) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("a socket");
            match self.stream.read(&mut chunk) {
                Ok(0) => return done(&self.heard),
                Ok(length) => self.heard.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return done(&self.heard),
            }
        }
        true
    }

    /// Whether the other end closes in time. What it says meanwhile is kept.
    pub(crate) fn is_closed(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("a socket");
            match self.stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(length) => self.heard.extend_from_slice(&chunk[..length]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return false,
                    _ => return true,
                },
            }
        }
    }

    pub(crate) fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
