//! A connection's channels and consumers, as operators see them.
//!
//! Owns: nothing. Promises: what it tells is how the connection's own task sees it. Does not know: who asks.

use super::session::Session;
use crate::server::registry::{ChannelFacts, ConsumerFacts};

impl Session {
    /// All channels, by number.
    pub(super) fn describe(&self) -> Vec<ChannelFacts> {
        let mut channels: Vec<ChannelFacts> = self
            .channels
            .iter()
            .map(|(number, channel)| ChannelFacts {
                number: *number,
                prefetch: channel.prefetch,
                global_prefetch: channel.global_prefetch,
                confirm: channel.confirms.is_enabled(),
                transactional: channel.transaction.is_some(),
                unacked: channel.unacked.len() as u64,
                unconfirmed: channel.confirms.open(),
                consumers: Vec::new(),
            })
            .collect();
        channels.sort_unstable_by_key(|channel| channel.number);
        for reader in self.readers.values() {
            // One that was cancelled lives on until the answer is written.
            let listed =
                self.channels.get(&reader.channel).is_some_and(|c| c.consumers.contains_key(&reader.tag));
            let Ok(at) = channels.binary_search_by_key(&reader.channel, |channel| channel.number) else {
                continue;
            };
            if listed {
                channels[at].consumers.push(ConsumerFacts {
                    tag: reader.tag.clone(),
                    queue: reader.queue.clone(),
                    no_ack: reader.no_ack,
                    exclusive: reader.exclusive,
                    prefetch: reader.prefetch,
                    arguments: reader.arguments.clone(),
                });
            }
        }
        channels
    }
}
