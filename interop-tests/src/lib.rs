//! Whole-product tests: what happened in a run, and whether it was right.
//!
//! Owns: the history of a run, the proof inside each message body, the checkers, a model that lives legal histories, and the
//! clients, the load and the judging that every program which harms a real broker shares.
//! Promises: checkers are pure; a history is judged the same however often and wherever it is read.
//! Does not know: what harm is done (the programs in `bin` do), nor any client library.

pub mod body;
pub mod check;
pub mod harm;
pub mod history;
pub mod measure;
pub mod model;
pub mod remoting;
pub mod sim;
pub mod wire;
