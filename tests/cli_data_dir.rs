//! What the program makes of its data directory.
//!
//! Owns: the real binary on good, foreign, used and damaged directories. Promises: no sleeps; every process ends with its test.
//! Does not know: what the store holds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn dassie(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dassie"));
    command.arg("--data-dir").arg(data);
    for listener in
        ["amqp.listen", "rocketmq.listen", "rocketmq.name_server_listen", "http.listen", "metrics.listen"]
    {
        command.args(["--set", &format!("{listener}=")]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A broker that is ready.
struct Running(Child);

impl Running {
    fn start(data: &Path) -> Self {
        let mut child = dassie(data).spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut lines = log.lines();
        let mut read = Vec::new();
        let ready = lines.any(|line| {
            read.push(line.expect("a readable log"));
            read.last().is_some_and(|line| line.contains("ready in "))
        });
        assert!(ready, "it ended: {read:?}");
        // Nobody may block on a full pipe.
        std::thread::spawn(move || lines.count());
        Self(child)
    }

    fn end(mut self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        self.0.wait().expect("it ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A start that must fail with exit code 1 and one line, which is returned.
fn complaint(data: &Path) -> String {
    let output = dassie(data).output().expect("the program runs");
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("dassie: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains(&*data.to_string_lossy()), "{text}");
    lines[0].to_owned()
}

#[test]
fn a_second_process_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let top = tempfile::tempdir().expect("a temporary directory");
    let data = top.path().join("data");
    let first = Running::start(&data);
    assert!(complaint(&data).contains("in use by another process"));
    first.end("TERM");
}

#[test]
fn a_directory_is_taken_up_again_after_a_graceful_end_and_after_a_kill() {
    let top = tempfile::tempdir().expect("a temporary directory");
    let data = top.path().join("data");
    for signal in ["TERM", "KILL", "TERM"] {
        Running::start(&data).end(signal);
    }
    assert!(data.join("genesis").exists());
}

#[test]
fn a_foreign_directory_is_refused_and_left_as_it_was() {
    let top = tempfile::tempdir().expect("a temporary directory");
    fs::write(top.path().join("mnesia.DAT"), "somebody else's").expect("a file");
    assert!(complaint(top.path()).contains("'mnesia.DAT'"));
    assert_eq!(fs::read_dir(top.path()).expect("a directory").count(), 1);
}

#[test]
fn a_file_where_the_directory_should_be_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    assert!(complaint(file.path()).contains("data_dir"));
}

#[test]
fn a_damaged_genesis_is_named() {
    let top = tempfile::tempdir().expect("a temporary directory");
    let data = top.path().join("data");
    Running::start(&data).end("TERM");
    let genesis = data.join("genesis");
    let mut bytes = fs::read(&genesis).expect("a genesis");
    bytes[20] ^= 1;
    fs::write(&genesis, bytes).expect("written");
    let line = complaint(&data);
    assert!(line.contains("genesis") && line.contains("checksum"), "{line}");
}
