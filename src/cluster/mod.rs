//! The consensus driver: the one place that knows the consensus library.
//!
//! Owns: one replica of the log ([`Replica`]), its membership, what replicas say to each other ([`peer`]). Promises: no type
//! of the consensus library leaves this module. Does not know: what the log says, sockets, files.

mod driver;
mod log_store;
mod membership;
pub mod peer;
mod runtime;
mod state_machine;
pub mod stream;
#[cfg(test)]
mod tests;
mod types;

pub use driver::{Birth, ELECTION, HEARTBEAT, Replica, Role, Start, Timing};
pub use runtime::seed_thread;
pub use types::{Node, Refused};
