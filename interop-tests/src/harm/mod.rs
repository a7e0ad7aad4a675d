//! A real broker under load while somebody harms it, and what its clients saw of it.
//!
//! ```text
//!  trial  = broker::Broker + load::Load (amqp, rocketmq, both) + somebody's harm ─▶ tape::Tape ─▶ history file
//!  verdict = check::all(history file), the broker's end, its panics
//! ```
//!
//! Owns: the shape of a run: start, declare, load, harm, heal, drain, judge. Promises: a send of unknown outcome is not
//! repeated, so that any second arrival has to have a cause; every wait ends; the verdict is that of the written file.
//! Does not know: what harm is done; the programs in `src/bin` do.

mod amqp;
mod arguments;
pub mod broker;
pub mod cluster;
pub mod file_system;
mod later;
pub mod links;
mod load;
mod rocketmq;
mod tape;
mod trial;

pub use arguments::{Arguments, Words};
pub use broker::{Broker, free_port};
pub use load::{Load, Worlds};
pub use tape::Tape;
pub use trial::{Trial, Verdict};
