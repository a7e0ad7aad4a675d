//! The program as somebody starts it: arguments, exit codes, health, metrics, signals.
//!
//! Owns: the real binary in a process. Promises: no sleeps: a test waits for a line of the log or for the end of the process.
//! Does not know: protocols.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

fn dassie(directory: &tempfile::TempDir, settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dassie"));
    command.arg("--data-dir").arg(directory.path().join("data"));
    for listener in LISTENERS {
        command.args(["--set", &format!("{listener}=")]);
    }
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Off unless a test wants them: tests run beside each other and beside a broker on the usual ports.
const LISTENERS: &[&str] = &[
    "amqp.listen",
    "rocketmq.listen",
    "rocketmq.vip_listen",
    "rocketmq.name_server_listen",
    "http.listen",
    "metrics.listen",
];

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

/// A start that must fail: its code and its one line.
fn complaint(command: &mut Command) -> (Option<i32>, String) {
    let output = run(command);
    let text = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("dassie: ")).collect();
    assert_eq!(lines.len(), 1, "one line for a person, not {text}");
    (output.status.code(), lines[0].to_owned())
}

/// A broker that is ready, and ends with the test.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut running = Self { child, log };
        running.wait_for("ready in ");
        running
    }

    /// Reads the log up to a line with `text`; gives the lines read.
    fn wait_for(&mut self, text: &str) -> String {
        let mut read = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.log.read_line(&mut line).expect("a readable log") > 0,
                "ended before '{text}':\n{read}"
            );
            read.push_str(&line);
            if line.contains(text) {
                return read;
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).expect("a readable log");
        (self.child.wait().expect("it ends").code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After an orderly end both only say that there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_wrong_key_value_file_or_argument_is_one_line_and_exit_code_2() {
    let directory = directory();
    for (arguments, named) in [
        (&["--set", "amqp.lisen=x"][..], "'amqp.lisen'"),
        (&["--set", "amqp.heartbeat=never"], "'amqp.heartbeat'"),
        (&["--config", "/no/such/file.toml"], "'/no/such/file.toml'"),
        (&["--verbose"], "'--verbose'"),
    ] {
        let (code, line) = complaint(dassie(&directory, &[]).args(arguments));
        assert_eq!(code, Some(2), "{line}");
        assert!(line.contains(named), "{line}");
    }
}

#[test]
fn the_environment_configures_and_a_wrong_variable_is_one_line() {
    let directory = directory();
    let (code, line) = complaint(dassie(&directory, &[]).env("DASSIE_AMQP_HEARTBEAT", "never"));
    assert_eq!(code, Some(2), "{line}");
    assert!(line.contains("DASSIE_AMQP_HEARTBEAT"), "{line}");
    let mut command = dassie(&directory, &[]);
    command.env("DASSIE_LOG_FORMAT", "json");
    let mut running = Running::start(command);
    running.signal("TERM");
    let text = running.wait_for("ended");
    for line in text.lines() {
        assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"message\":"), "{line}");
    }
}

#[test]
fn help_version_and_the_list_of_keys_go_to_standard_output() {
    for (argument, wanted) in
        [("--help", "Usage: dassie"), ("--version", "dassie "), ("--list-keys", "| `data_dir` |")]
    {
        let output = run(dassie(&directory(), &[]).arg(argument));
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).expect("text").contains(wanted));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn a_busy_port_is_one_line_naming_address_and_key_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (code, line) = complaint(&mut dassie(&directory(), &[&format!("metrics.listen={address}")]));
    assert_eq!(code, Some(1));
    assert!(line.contains(&address) && line.contains("metrics.listen") && line.contains("in use"), "{line}");
}

#[test]
fn health_and_metrics_answer_and_a_signal_ends_it_with_code_0() {
    for signal in ["TERM", "INT"] {
        let (http, metrics) = (free_port(), free_port());
        let listen = [format!("http.listen=127.0.0.1:{http}"), format!("metrics.listen=127.0.0.1:{metrics}")];
        let data = directory(); // lives as long as the broker
        let running = Running::start(dassie(&data, &[&listen[0], &listen[1]]));
        assert!(get(http, "/health/live").starts_with("HTTP/1.1 200"));
        assert!(get(http, "/health/ready").starts_with("HTTP/1.1 200"));
        assert!(get(metrics, "/metrics").contains("\nrabbitmq_connections 0\n"));
        running.signal(signal);
        let (code, rest) = running.end();
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("ended"), "{rest}");
    }
}

#[test]
fn the_first_lines_of_the_log_say_version_and_data_directory_without_colours() {
    let directory = directory();
    let mut child = dassie(&directory, &[]).spawn().expect("the program starts");
    let log = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut running = Running { child, log };
    let text = running.wait_for("ready in ");
    let first = text.lines().next().expect("a line");
    assert!(first.contains(env!("CARGO_PKG_VERSION")), "{text}");
    assert!(text.contains(&*directory.path().join("data").to_string_lossy()), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
