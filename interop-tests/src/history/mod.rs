//! What happened in a run, as JSON lines that any client in any language can write, one writer per client.
//!
//! ```text
//! {"t0":10,"t1":25,"client":"p1","op":"publish","outcome":"ok","queue":"q","msg":"p1/1"}
//! {"t0":30,"t1":30,"client":"c1","op":"deliver","outcome":"ok","queue":"q","msg":"p1/1","tag":1,"redelivered":false}
//! {"t0":31,"t1":40,"client":"c1","op":"ack","outcome":"info","queue":"q","msg":"p1/1"}
//! ```
//!
//! Fields beside the first five: `queue` (a queue, or a topic with its queue id in `part`), `group` (RocketMQ's; absent
//! elsewhere), `msg` as publisher/seq, `offset`, `tag`, `token`, `redelivered`, `sum`, `ordered` (true unless said),
//! `asked`, `auto`, `from`, `name`, `what`, `count`, `term`, `index`, `hash`. [`event::Op`] says what each kind means.
//!
//! What a harness must write for the checkers to be right: each attempt to publish, each arrival, each settlement, with
//! `info` wherever no answer proves the outcome (AMQP answers no acknowledgement; only what follows on the channel shows
//! that it was heard). `lost` when a client closes or loses what it holds, `crash` from the blow until ready, also for a
//! change of leader. Topology and rules (`route`, `dead_letter`, `subscribe`, `single`, `allow`, `purge`) as they are
//! declared, `plan` for what the run was to see. At the end: `healed`, a message through every queue, then everything
//! drained and topics scanned; what is not drained counts as lost.
//!
//! Owns: events, their written form, reading and writing. Promises: the events of a [`History`] stand in the order in
//! which they began, events of one file that began at once in the file's order.
//! Does not know: what a history proves.

pub mod event;
mod line;
mod names;

use std::fmt;
use std::io::{self, BufRead, Write};

use event::Event;
use line::Line;
pub use names::Names;

/// All events of a run in the order in which they began.
#[derive(Debug, Clone, Default)]
pub struct History {
    names: Names,
    events: Vec<Event>,
}

impl History {
    /// A history of `events`, whose names are those of `names`.
    #[must_use]
    pub fn new(names: Names, mut events: Vec<Event>) -> Self {
        put_in_order(&mut events);
        Self { names, events }
    }

    /// Reads one file more; the files of all clients together are the history.
    ///
    /// # Errors
    /// A line that can not be read or is no event, with its number.
    pub fn read(&mut self, mut lines: impl BufRead) -> Result<(), ReadError> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let length = lines
                .read_until(b'\n', &mut line)
                .map_err(|error| ReadError { line: number, what: error.to_string() })?;
            if length == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                self.push_line(&line).map_err(|what| ReadError { line: number, what })?;
            }
        }
        put_in_order(&mut self.events);
        Ok(())
    }

    fn push_line(&mut self, line: &[u8]) -> Result<(), String> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        self.events.push(line.event(&mut self.names)?);
        Ok(())
    }

    /// The events; checkers name their evidence by its index here.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The words of the events.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The event as it is written, for people who look at evidence.
    #[must_use]
    pub fn line(&self, index: usize) -> String {
        serde_json::to_string(&Line::of(&self.events[index], &self.names)).expect("a line has no odd parts")
    }
}

/// By beginning; stable, so that one client's own order survives equal instants.
fn put_in_order(events: &mut [Event]) {
    if !events.is_sorted_by_key(|event| event.t0) {
        events.sort_by_key(|event| event.t0);
    }
}

/// Writes one client's events as they happen.
#[derive(Debug)]
pub struct Recorder<W: Write> {
    names: Names,
    out: W,
    line: Vec<u8>,
}

impl<W: Write> Recorder<W> {
    /// A recorder on `out`, which should be buffered.
    pub fn new(out: W) -> Self {
        Self::with_names(out, Names::default())
    }

    /// A recorder for events whose names come from `names`.
    pub fn with_names(out: W, names: Names) -> Self {
        Self { names, out, line: Vec::new() }
    }

    /// The words of this recorder's events.
    pub fn names(&mut self) -> &mut Names {
        &mut self.names
    }

    /// Writes one event.
    ///
    /// # Errors
    /// Those of the output.
    pub fn record(&mut self, event: &Event) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &Line::of(event, &self.names))?;
        self.line.push(b'\n');
        self.out.write_all(&self.line)
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A line that is no event.
#[derive(Debug)]
pub struct ReadError {
    line: u64,
    what: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn read(text: &str) -> Result<History, String> {
        let mut history = History::default();
        history.read(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(history)
    }

    /// Of each kind one with all its fields, as clients write them.
    const EVERY_KIND: [&str; 29] = [
        r#""op":"publish","outcome":"info","queue":"q","part":3,"msg":"p/1","offset":0,"sum":7,"ordered":false"#,
        r#""op":"deliver","outcome":"ok","queue":"q","group":"g","part":1,"msg":"p/1","offset":9,"tag":1,"token":2,"redelivered":false,"sum":7,"asked":true,"auto":true"#,
        r#""op":"deliver","outcome":"ok","queue":"q","msg":"a/b/4294967295""#,
        r#""op":"damaged","outcome":"ok","queue":"q","name":"checksum differs""#,
        r#""op":"scan","outcome":"ok","queue":"q","part":0,"msg":"p/1","offset":1,"sum":7"#,
        r#""op":"ack","outcome":"fail","queue":"q","group":"g","msg":"p/1","token":1"#,
        r#""op":"requeue","outcome":"ok","queue":"q","msg":"p/1""#,
        r#""op":"reject","outcome":"ok","queue":"q","msg":"p/1""#,
        r#""op":"empty","outcome":"ok","queue":"q""#,
        r#""op":"commit","outcome":"ok","queue":"q","group":"g","part":0,"offset":1"#,
        r#""op":"committed","outcome":"ok","queue":"q","group":"g","part":0,"offset":1"#,
        r#""op":"reset","outcome":"ok","queue":"q","group":"g","part":0,"offset":1"#,
        r#""op":"min_offset","outcome":"ok","queue":"q","part":0,"offset":1"#,
        r#""op":"max_offset","outcome":"ok","queue":"q","part":0,"offset":1"#,
        r#""op":"lost","outcome":"ok""#,
        r#""op":"lost","outcome":"ok","queue":"q""#,
        r#""op":"crash","outcome":"ok""#,
        r#""op":"leader","outcome":"ok","term":4"#,
        r#""op":"fault","outcome":"ok","name":"kill""#,
        r#""op":"healed","outcome":"ok""#,
        r#""op":"converged","outcome":"ok""#,
        r#""op":"digest","outcome":"ok","queue":"","index":5,"hash":18446744073709551615"#,
        r#""op":"route","outcome":"ok","from":"x","queue":"q""#,
        r#""op":"dead_letter","outcome":"ok","from":"q","queue":"d""#,
        r#""op":"subscribe","outcome":"ok","queue":"q","group":"g""#,
        r#""op":"single","outcome":"ok","queue":"q""#,
        r#""op":"allow","outcome":"ok","queue":"q","what":"delivery_limit","count":2"#,
        r#""op":"purge","outcome":"ok","queue":"q""#,
        r#""op":"plan","outcome":"ok","name":"confirms","count":2"#,
    ];

    #[test]
    fn every_kind_of_event_is_written_as_it_was_read() {
        for fields in EVERY_KIND {
            let line = format!(r#"{{"t0":1,"t1":2,"client":"c",{fields}}}"#);
            assert_eq!(read(&line).unwrap().line(0), line);
        }
    }

    #[test]
    fn a_recorded_history_is_read_back_event_by_event() {
        let history = model::live(7, 2_000);
        let mut recorder = Recorder::with_names(Vec::new(), history.names().clone());
        for event in history.events() {
            recorder.record(event).unwrap();
        }
        let text = String::from_utf8(recorder.finish().unwrap()).unwrap();
        let again = read(&text).unwrap();
        assert_eq!(again.events().len(), history.events().len());
        for (index, line) in text.lines().enumerate() {
            assert_eq!(again.line(index), line);
        }
    }

    #[test]
    fn events_of_several_files_stand_in_the_order_in_which_they_began() {
        let mut history = History::default();
        let line = |t0: u64, client: &str| {
            format!(r#"{{"t0":{t0},"t1":{t0},"client":"{client}","op":"crash","outcome":"ok"}}"#)
        };
        history.read(format!("{}\n{}\n", line(10, "a"), line(30, "a")).as_bytes()).unwrap();
        history.read(format!("{}\n\n{}", line(20, "b"), line(10, "b")).as_bytes()).unwrap();
        let order: Vec<_> = history.events().iter().map(|e| (e.t0, history.names().text(e.client))).collect();
        assert_eq!(order, [(10, "a"), (10, "b"), (20, "b"), (30, "a")]);
    }

    #[test]
    fn escaped_words_are_read_too() {
        let history =
            read(r#"{"t0":1,"t1":2,"client":"caf\u00e9 \"1\"","op":"empty","outcome":"ok","queue":"a\\b"}"#);
        let history = history.unwrap();
        assert_eq!(history.names().text(history.events()[0].client), "café \"1\"");
        assert!(history.names().find("a\\b").is_some());
    }

    #[test]
    fn a_line_that_is_no_event_is_named_with_what_is_wrong() {
        let good = r#"{"t0":1,"t1":2,"client":"c","op":"crash","outcome":"ok"}"#;
        let cases = [
            (
                r#"{"t0":1,"t1":2,"client":"c","op":"ack","outcome":"ok","queue":"q"}"#,
                "needs the field \"msg\"",
            ),
            (r#"{"t0":3,"t1":2,"client":"c","op":"crash","outcome":"ok"}"#, "before it begins"),
            (r#"{"t0":1,"t1":2,"client":"c","op":"crash"}"#, "missing field `outcome`"),
            (
                r#"{"t0":1,"t1":2,"client":"c","op":"crash","outcome":"ok","redeliverd":true}"#,
                "unknown field",
            ),
            (
                r#"{"t0":1,"t1":2,"client":"c","op":"ack","outcome":"ok","queue":"q","msg":"m"}"#,
                "not publisher/seq",
            ),
            ("nonsense", "expected"),
        ];
        for (line, what) in cases {
            let error = read(&format!("{good}\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 2: ") && error.contains(what), "{error}");
        }
    }
}
