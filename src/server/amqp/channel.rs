//! One channel: the state that its methods share.
//!
//! Owns: consumer tags, delivery tags, confirms, the message being published, answers that are owed.
//! Promises: a channel is a value; when it is dropped, nothing of it is left. Does not know: the socket, the shard, other channels.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::answers::Answers;
use super::confirms::Confirms;
use super::publish::{Address, Partial};
use super::transaction::Transaction;
use super::unacked::Unacked;
use crate::broker::api::{ChannelId, Delivery, ReaderId};
use crate::security::{Authorized, Counter};

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    /// Its name for the broker. Not the client's number: a client may open a number again while events of its last use are on
    /// the way.
    pub(super) slot: ChannelId,
    /// Last declared queue: what an empty queue name means.
    pub(super) default_queue: Option<Arc<str>>,
    /// For consumers to come; 0 = no limit.
    pub(super) prefetch: u16,
    /// Of all its consumers together; 0 = no limit.
    pub(super) global_prefetch: u16,
    /// The consumer of direct replies, and the key that leads to it.
    pub(super) replies: Option<(ReaderId, Arc<str>)>,
    /// By tag.
    pub(super) consumers: HashMap<Arc<str>, ReaderId>,
    /// Delivered, not settled.
    pub(super) unacked: Unacked,
    /// Published, not confirmed.
    pub(super) confirms: Confirms,
    /// tx.select was seen: what is not committed.
    pub(super) transaction: Option<Transaction>,
    /// Asked, not answered.
    pub(super) answers: Answers,
    /// Where the last publish went.
    pub(super) last_address: Option<Address>,
    /// It published what the shard may refuse, and nothing behind it was answered yet.
    pub(super) unsure: bool,
    /// A publish whose header or body is missing.
    pub(super) publishing: Option<Publishing>,
    /// It counts against the user's limit until it is gone.
    _counted: Counter,
}

/// A publish that is not complete.
#[derive(Debug)]
pub(super) struct Publishing {
    /// Proof that it may.
    pub(super) key: Authorized,
    /// Further routing keys.
    pub(super) also: Vec<Arc<str>>,
    /// Wants it back when no queue takes it.
    pub(super) mandatory: bool,
    /// The bytes, once the header was there.
    pub(super) partial: Option<Partial>,
}

/// A consumer.
#[derive(Debug)]
pub(super) struct Reader {
    /// Number of its channel.
    pub(super) channel: u16,
    /// Its tag.
    pub(super) tag: Arc<str>,
    /// Its queue.
    pub(super) queue: Arc<str>,
    /// Nobody else may read.
    pub(super) exclusive: bool,
    /// Unsettled deliveries it may hold; 0 = no limit.
    pub(super) prefetch: u16,
    /// Field table, content only, as the client sent it.
    pub(super) arguments: Bytes,
    /// Deliveries need no ack.
    pub(super) no_ack: bool,
    /// consume-ok was written: deliveries may follow.
    pub(super) announced: bool,
    /// Its queue went before consume-ok was written.
    pub(super) cancelled: bool,
    /// Deliveries that came before consume-ok was written.
    pub(super) early: Vec<Delivery>,
}

impl Channel {
    /// A channel as channel.open leaves it.
    pub(super) fn new(slot: ChannelId, counted: Counter) -> Self {
        Self {
            slot,
            default_queue: None,
            prefetch: 0,
            global_prefetch: 0,
            replies: None,
            consumers: HashMap::new(),
            unacked: Unacked::default(),
            confirms: Confirms::default(),
            transaction: None,
            answers: Answers::default(),
            last_address: None,
            unsure: false,
            publishing: None,
            _counted: counted,
        }
    }
}
