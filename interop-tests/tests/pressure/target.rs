//! A broker of one's own with limits that can be changed.
//!
//! Owns: the process and its directory. Promises: the process ends with the test. Does not know: protocols.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use dassie_interop::harm::Broker;
use dassie_interop::sim::dice::Dice;
use dassie_interop::wire::{Client, Heard};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that is ready.
pub(crate) struct Target {
    pub(crate) broker: Broker,
    directory: PathBuf,
}

impl Target {
    /// `limits`: lines of its configuration file.
    pub(crate) fn start(name: &str, limits: &str) -> Self {
        Self::start_behind(name, "", limits)
    }

    /// Started by another program.
    pub(crate) fn start_behind(name: &str, launcher: &str, limits: &str) -> Self {
        let directory = env::temp_dir().join(format!("dassie-pressure-{name}-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory of its own");
        let seed = u64::from(std::process::id()) + name.len() as u64 * 31_337;
        let mut broker = Broker::new(&binary(), &directory, &Dice::new(seed)).expect("free ports");
        let config = directory.join("dassie.toml");
        fs::write(&config, limits).expect("a file");
        broker.config = Some(config);
        broker.launcher = launcher.split_whitespace().map(Into::into).collect();
        broker.start().expect("it starts");
        Self { broker, directory }
    }

    /// Writes the configuration file again and sends SIGHUP.
    pub(crate) fn reload(&self, limits: &str) {
        fs::write(self.directory.join("dassie.toml"), limits).expect("a file");
        let id = self.broker.id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
        let process = rustix::process::Pid::from_raw(id).expect("a process");
        rustix::process::kill_process(process, rustix::process::Signal::HUP).expect("it runs");
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.broker.ports.amqp).expect("it accepts")
    }

    /// Body of `/health/ready`.
    pub(crate) fn health(&self) -> String {
        let mut stream = TcpStream::connect(self.broker.ports.http).expect("it accepts");
        stream
            .write_all(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        text
    }

    /// A line of what the kernel says of it, in MiB.
    pub(crate) fn memory_mib(&self, which: &str) -> u64 {
        let status = format!("/proc/{}/status", self.broker.id().expect("it runs"));
        let text = fs::read_to_string(status).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(which)).expect("the system tells");
        let kib: Option<u64> = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
        kib.expect("a number") / 1024
    }

    pub(crate) fn assert_well(&mut self) {
        self.broker.alive().expect("it is up");
        assert_eq!(self.broker.panics(), [""; 0], "it panicked");
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

/// Waits until something is heard that `wanted` makes something of.
pub(crate) fn wait_for<T>(client: &mut Client, mut wanted: impl FnMut(Heard<'_>) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Some(heard) = client.hear().expect("it follows the protocol") {
            if let Some(found) = wanted(heard) {
                return found;
            }
        }
        assert!(Instant::now() < deadline, "not heard in time");
        client.receive(Duration::from_millis(100)).expect("it is there");
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
