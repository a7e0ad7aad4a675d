//! The core of one shard set: what both protocols call, and nothing else.

pub mod api;
mod change;
mod cursor;
mod index;
pub mod link;
pub mod message;
pub mod pattern;
mod record;
mod state;
pub mod topology;
