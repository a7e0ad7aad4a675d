//! The process under test: started, asked whether it is ready, killed, watched while it ends.
//!
//! Owns: the process, its directory, its ports, its log. Promises: it ends with its owner; every wait ends.
//! Does not know: traffic, nor anything of the broker but its command line and its health page.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::later;
use crate::sim::dice::Dice;

/// What a restart may take, on a machine that does other things, too.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The process under test and where it lives.
#[derive(Debug)]
pub struct Broker {
    binary: PathBuf,
    directory: PathBuf,
    /// Its data directory: below `directory` unless somebody gives it a file system of its own.
    pub data: PathBuf,
    /// Put in front of its command line, for example a tracer that injects faults. It must become the broker, or run
    /// beside it: the child that is started is the one that is killed.
    pub launcher: Vec<OsString>,
    /// Settings beyond the ports, as `section.key=value`.
    pub settings: Vec<String>,
    /// A configuration file, below the settings.
    pub config: Option<PathBuf>,
    /// Where it listens.
    pub ports: Ports,
    child: Option<Child>,
    /// How long each start took until it was ready.
    pub restarts: Vec<Duration>,
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// AMQP.
    pub amqp: SocketAddr,
    /// RocketMQ remoting.
    pub rocketmq: SocketAddr,
    /// Health.
    pub http: SocketAddr,
}

impl Broker {
    /// Nothing runs yet. Its log and data lie in `directory`.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(binary: &Path, directory: &Path, dice: &Dice) -> Result<Self, String> {
        let ports = Ports { amqp: free_port(dice)?, rocketmq: free_port(dice)?, http: free_port(dice)? };
        Ok(Self {
            binary: binary.to_owned(),
            directory: directory.to_owned(),
            data: directory.join("data"),
            launcher: Vec::new(),
            settings: later::SETTINGS.map(str::to_owned).to_vec(),
            config: None,
            ports,
            child: None,
            restarts: Vec::new(),
        })
    }

    /// Starts and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or takes too long.
    pub fn start(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        self.spawn()?;
        while !self.is_ready() {
            self.alive()?;
            if begin.elapsed() > READY_WITHIN {
                return Err(format!("not ready after {} s: {}", READY_WITHIN.as_secs(), self.last_line()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.restarts.push(begin.elapsed());
        Ok(())
    }

    /// Starts and waits for so long only, ready or not.
    ///
    /// # Errors
    /// It ends meanwhile.
    pub fn start_for(&mut self, time: Duration) -> Result<(), String> {
        self.spawn()?;
        thread::sleep(time);
        self.alive()
    }

    /// Starts and does not wait at all.
    ///
    /// # Errors
    /// There is no such program, or no log can be written.
    pub fn spawn(&mut self) -> Result<(), String> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|error| format!("{}: {error}", self.log().display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let mut words = self.launcher.iter().cloned().chain([self.binary.clone().into_os_string()]);
        let mut command = Command::new(words.next().expect("at least the broker itself"));
        command.args(words).arg("--data-dir").arg(&self.data);
        let Ports { amqp, rocketmq, http } = self.ports;
        let ports = [("amqp", amqp), ("rocketmq", rocketmq), ("http", http)];
        let listening = ports.map(|(what, at)| format!("{what}.listen={at}"));
        let silent =
            ["metrics.listen=", "rocketmq.vip_listen=", "rocketmq.name_server_listen="].map(str::to_owned);
        for setting in listening.iter().chain(&silent).chain(&self.settings) {
            command.args(["--set", setting]);
        }
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().map_err(|error| format!("{}: {error}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether it says that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let ask = || {
            let mut page = TcpStream::connect_timeout(&self.ports.http, Duration::from_secs(1))?;
            page.set_read_timeout(Some(Duration::from_secs(2)))?;
            page.write_all(b"GET /health/ready HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n")?;
            let mut answer = [0; 12];
            page.read_exact(&mut answer)?;
            std::io::Result::Ok(answer == *b"HTTP/1.1 200")
        };
        ask().unwrap_or(false)
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// It ended on its own.
    pub fn alive(&mut self) -> Result<(), String> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(status))) => {
                Err(format!("the broker ended by itself, {status}: {}", self.last_line()))
            }
            other => Err(format!("no broker: {other:?}")),
        }
    }

    /// Waits until it has ended by itself; none if it still runs then.
    pub fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                self.child = None;
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Without a warning. One that is gone already can not be hurt.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// The process, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("broker.log")
    }

    /// All that it said in all its lives.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read(self.log())
            .map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned())
    }

    fn last_line(&self) -> String {
        self.log_text().lines().next_back().unwrap_or("it said nothing").to_owned()
    }

    /// The lines in which it says that it panicked.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        self.log_text().lines().filter(|line| line.contains("panicked")).map(str::to_owned).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that this process has given away; whoever got one may not listen yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Below the ephemeral range: no client's own socket takes it while the broker is down. Never the same twice in one
/// process.
///
/// # Errors
/// Nothing is free.
pub fn free_port(dice: &Dice) -> Result<SocketAddr, String> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..200 {
        let port = u16::try_from(20_000 + dice.below(12_000)).map_err(|error| error.to_string())?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if !given.contains(&port) && TcpListener::bind(address).is_ok() {
            given.insert(port);
            return Ok(address);
        }
    }
    Err("no free port".to_owned())
}
