//! Whole-product tests: what happened in a run, and whether it was right.
//!
//! Owns: the history of a run, the proof inside each message body, the checkers, and a model that lives legal histories.
//! Promises: checkers are pure; a history is judged the same however often and wherever it is read.
//! Does not know: how a broker is started, stopped or harmed, nor any client library.

pub mod body;
pub mod check;
pub mod history;
pub mod model;
pub mod sim;
pub mod wire;
