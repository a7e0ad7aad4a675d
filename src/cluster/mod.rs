//! The consensus driver: the one place that knows the consensus library.
