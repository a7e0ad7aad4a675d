//! The consensus driver: the one place that knows the consensus library.
//!
//! Owns: one replica of the log ([`Replica`]), its membership, what replicas say to each other ([`peer`]). Promises: no type
//! of the consensus library leaves this module. Does not know: what the log says, sockets, files.

pub mod admin;
pub mod calls;
pub mod copy;
#[cfg(test)]
#[allow(clippy::await_holding_refcell_ref)] // one task at a time, on one thread
mod copy_tests;
mod driver;
pub mod formation;
pub mod handshake;
pub mod keeper;
mod log_store;
mod members;
mod membership;
pub mod peer;
mod runtime;
mod state_machine;
pub mod status;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod transport;
mod types;
mod wire;

pub use driver::{Birth, ELECTION, HEARTBEAT, Replica, Role, Start, Timing};
pub use members::{Member, View};
pub use membership::alone_behind;
pub use runtime::seed_thread;
pub use types::{Node, Refused};
