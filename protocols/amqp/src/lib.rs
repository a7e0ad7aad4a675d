//! The AMQP 0-9-1 wire protocol, without IO: bytes in, meaning out, and back.
//!
//! Owns the envelope (frames), the vocabulary (methods, tables, content headers, reply codes) and the grammar
//! (which frame may follow which: the connection state machine). Promises that nothing a peer sends can make
//! it panic, recurse without bound, or allocate before a length was checked, and that what passes through
//! (properties, tables) is re-emitted byte for byte. Knows no socket, no clock, no broker: authentication,
//! queues, credit and deadlines belong to whoever drives it.
//!
//! ```text
//!   socket bytes ─► frame::split ─► method::Method    ─┐
//!                                   content::…Header   ├─► connection::Connection ─► Event ─► broker verbs
//!                                   body bytes        ─┘
//!   socket bytes ◄─ Vec<u8> ◄─ Method::encode_frame, content::encode, Connection::{start, tune, close, …}
//! ```
//!
//! A server drives [`connection::Connection`]; see the example there. Load generators and tests speak the
//! other side with [`client`].
//!
//! Sources: the AMQP 0-9-1 specification ("spec" with a section number in these docs) with RabbitMQ's errata
//! and extensions (exchange.bind, basic.nack, confirm, blocked, update-secret, and its own reading of field
//! types).

pub mod client;
pub mod connection;
pub mod content;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod method;
pub mod reply;
pub mod sasl;
pub mod table;

#[cfg(test)]
mod testing;
mod wire;
