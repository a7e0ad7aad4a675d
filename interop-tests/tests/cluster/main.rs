//! Three real processes are one broker: they form, lose their leader, refuse who does not belong to them.
//!
//! Owns: nothing. Promises: every test has ports and directories of its own and waits on conditions, within deadlines.
//! Does not know: how nodes talk; it looks at `GET /cluster`, at clients' protocols and at processes.

mod formation;
mod leader;
mod minority;
mod strangers;
mod three;
