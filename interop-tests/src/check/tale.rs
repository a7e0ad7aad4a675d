//! Histories told in short lines, for the tests of checkers: `client op field=value... flag`.
//!
//! Owns: this shorthand. Promises: a tale goes the way of a real file, through the written form and its reader; a line
//! without `t0` and `t1` begins and ends after all lines before it, and is ok unless it says otherwise.
//! Does not know: what the tales are about.

use serde_json::{Map, Value};

use crate::history::History;

/// The history that `lines` tell.
pub(super) fn tale(lines: &[&str]) -> History {
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        text.push_str(&event(number, line).to_string());
        text.push('\n');
    }
    let mut history = History::default();
    history.read(text.as_bytes()).unwrap_or_else(|error| panic!("{error} in {text}"));
    history
}

fn event(number: usize, line: &str) -> Value {
    let mut words = line.split_whitespace();
    let mut fields = Map::new();
    fields.insert("client".into(), words.next().expect("a client").into());
    fields.insert("op".into(), words.next().expect("an op").into());
    for word in words {
        let (field, value) = word.split_once('=').unwrap_or((word, "true"));
        fields.insert(field.into(), serde_json::from_str(value).unwrap_or_else(|_| value.into()));
    }
    let begin = (number + 1) * 1_000;
    fields.entry("t0").or_insert_with(|| begin.into());
    fields.entry("t1").or_insert_with(|| (begin + 500).into());
    fields.entry("outcome").or_insert_with(|| "ok".into());
    fields.into()
}

/// The rules that `findings` say are broken, in order, each once.
pub(super) fn broken(findings: &super::Findings) -> Vec<&'static str> {
    findings.totals().keys().copied().collect()
}
