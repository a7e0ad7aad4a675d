//! Hostile input against the real program over live sockets, while a well-behaved client works on.
//!
//! Owns: one broker a test, the table-driven cases in `amqp` and `rocketmq`. Promises: each case ends with the right code
//! or a closed connection within a second; the bystander's messages flow meanwhile; memory stays bounded; the process stays up.
//! Does not know: how the broker defends itself.

mod amqp;
mod bystander;
mod peer;
mod rocketmq;
