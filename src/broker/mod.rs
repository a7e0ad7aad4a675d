//! The core of one shard set: what both protocols call, and nothing else.

mod admin;
pub mod api;
mod audit;
mod change;
pub mod core;
mod cursor;
mod dead;
mod decide;
mod expire;
mod fills;
mod front;
mod guests;
mod home;
mod index;
pub mod later;
pub mod link;
mod locks;
mod memory;
pub mod message;
pub mod moving;
mod overflow;
pub mod pattern;
mod read;
mod reader;
mod ready;
mod recent;
mod record;
mod refused;
mod repeats;
mod reply;
pub mod retention;
pub mod shard;
mod state;
pub mod topology;
mod transaction;
mod turns;
mod tx;
mod wire;

#[cfg(test)]
mod tests;
