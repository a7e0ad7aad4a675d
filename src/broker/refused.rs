//! Channels whose client does not know yet that a refusal ended them.
//!
//! Owns: the rule that nothing happens on a channel between a refusal and [`Op::CloseChannel`].
//! Promises: what a client sent behind a verb that was refused has no effect and no answer, however it was pipelined.
//! Does not know: which refusal ends what; on a channel, each one does.

use super::api::{ChannelId, ConnectionId, Op, Refusal, Verb, channel_of};
use super::core::Core;

impl Core {
    /// A verb of that channel was refused. 0: it has none.
    pub(crate) fn refuse_channel(&mut self, id: ConnectionId, channel: ChannelId) {
        if channel != 0
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.refused.insert(channel);
        }
    }

    /// Does the verb stand behind a refusal on its channel?
    pub(crate) fn is_behind_refusal(&self, id: ConnectionId, verb: &Verb) -> bool {
        let Some(connection) = self.connections.get(&id).filter(|c| !c.refused.is_empty()) else {
            return false;
        };
        let channel = match &verb.op {
            Op::CloseChannel { .. } => return false,
            Op::Publish(publish) => publish.channel,
            Op::CheckPublish { channel, .. } => *channel,
            // What was acknowledged behind a publish that was refused comes again.
            Op::Settle { reader, .. } => self.readers.get(&(id, *reader)).map_or(0, |reader| reader.channel),
            _ => channel_of(verb.request),
        };
        connection.refused.contains(&channel)
    }

    /// What a transaction is told whose channel ended before it was decided (again).
    pub(crate) fn refused_before(&self, id: ConnectionId, request: u64) -> Result<(), Refusal> {
        match self.connections.get(&id) {
            Some(connection) if connection.refused.contains(&channel_of(request)) => {
                Err(Refusal::Busy("what came before it was refused".into()))
            }
            _ => Ok(()),
        }
    }
}
