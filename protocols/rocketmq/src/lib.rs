//! The Apache RocketMQ remoting protocol without sockets: bytes in, values out, and back.
//!
//! ```text
//!  socket bytes ─▶ frame::split ─▶ Command::decode ─▶ command.header::<PullMessage>() ─▶ (the broker)
//!  socket bytes ◀─ command::encode(head, typed header, body)                          ◀─
//!                                                     body::*     JSON bodies of heartbeats, routes, locks ...
//!                                                     message::*  the stored record, properties, ids, names
//! ```
//!
//! Owns the shape of the protocol: frames, the two header codecs, codes, typed headers, bodies, and the record layout
//! that doubles as the body of a pull answer. Both directions are served, so that a server, a load generator and tests
//! share one codec.
//!
//! Promises: no byte from the wire causes a panic; lengths are checked against what has arrived before anything is
//! allocated; a value that cannot be represented is an error and never silently changed. Every source of entropy
//! (time, process id, addresses) is an argument.
//!
//! Does not know: sockets, tasks, brokers, permissions, what any request *does*.
//!
//! The facts behind the code are those of Apache RocketMQ 4.9 to 5.5 and its Java, Go and C++ clients.

#![forbid(unsafe_code)]

pub mod body;
pub mod code;
pub mod command;
pub mod frame;
pub mod header;
pub mod message;

#[doc(hidden)]
pub mod fuzz;

mod json;

#[cfg(test)]
mod golden;

pub use code::{Language, RequestCode, ResponseCode};
pub use command::{Command, Head, encode, encode_head};
pub use frame::{Frame, HeaderCodec, Split, split};
