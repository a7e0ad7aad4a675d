//! The core of one shard set: what both protocols call, and nothing else.
