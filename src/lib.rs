//! Dassie: one broker, two protocols, one log.
//!
//! Owns: the product. `node` wires the rooms below together and holds no logic.
//! Promises: the arrows of `src/docs/architecture.md`; `tests/arrows.rs` fails when one is broken.

pub mod accounts;
pub mod alarms;
pub mod awake;
pub mod backup;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod copies;
pub mod data_dir;
pub mod fronts;
pub mod limits;
pub mod logging;
pub mod member;
pub mod metrics;
pub mod node;
pub mod pressure;
pub mod process;
pub mod security;
pub mod server;
