//! The core of one shard set: what both protocols call, and nothing else.

pub mod api;
pub mod link;
pub mod pattern;
pub mod topology;
