//! Too much for the machine: alarms, slow disks, slow and silent consumers, against the real program.
//!
//! Owns: one broker a test, with a configuration file that can be changed while it runs. Promises: no sleeps: a test waits for an
//! answer within a deadline. Does not know: how the broker keeps itself small.

mod alarms;
mod queues;
mod target;
