//! tx.select, tx.commit, tx.rollback: what a channel did since its last commit.
//!
//! Owns: publishes and acknowledgements that are not committed. Promises: the shard hears nothing of them before the commit, and
//! everything at once then; after a rollback acknowledged deliveries are open again under their tags; what the uncommitted
//! publishes of a connection hold is bounded by [`limits::UNCOMMITTED_MAX`].
//! Does not know: routing, records.

use dassie_amqp::method::{TxCommit, TxRollback, TxSelect};
use dassie_amqp::reply::{Exception, ReplyCode};

use super::answers::Owed;
use super::arguments::precondition;
use super::session::Session;
use super::settlements::Settlements;
use super::unacked::{Lease, Open};
use crate::broker::api::{Commit, Op, Publish, REPLY_PREFIX, Settle, Settlement};
use crate::limits;
use crate::security::Authorized;

/// What a publish counts beside its bytes.
const PUBLISH_OVERHEAD: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    publishes: Vec<Publish>,
    /// What they hold.
    bytes: usize,
    settled: Vec<(Settle, Vec<Open>)>,
}

impl Transaction {
    /// Acknowledged, not committed.
    pub(super) fn settle(&mut self, how: Settle, deliveries: Vec<Open>) {
        self.settled.push((how, deliveries));
    }

    /// The leases that a commit would end.
    pub(super) fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        self.settled.iter().flat_map(|(_, deliveries)| deliveries.iter().map(Open::lease))
    }

    /// What its publishes hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn commit(self) -> Commit {
        let mut settlements = Vec::new();
        let mut emit = |op| {
            if let Op::Settle { reader, ranges, how } = op {
                settlements.push(Settlement { reader, ranges, how });
            }
        };
        let mut collected = Settlements::default();
        for (how, deliveries) in &self.settled {
            collected.collect(*how, &mut emit).extend(deliveries.iter().map(Open::lease));
        }
        collected.flush(&mut emit);
        Commit { publishes: self.publishes, settlements }
    }
}

impl Session {
    pub(super) fn tx_select(&mut self, number: u16) -> Result<(), Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        if channel.confirms.is_enabled() {
            return Err(precondition("cannot switch from confirm to tx mode"));
        }
        channel.transaction.get_or_insert_default();
        self.answer_now(number, TxSelect::ID, false, Owed::TxSelect);
        Ok(())
    }

    pub(super) fn tx_commit(&mut self, number: u16) -> Result<(), Exception> {
        let transaction = self.take_transaction(number)?;
        let id = self.next_id();
        self.ask(
            number,
            id,
            TxCommit::ID,
            false,
            Owed::TxCommit,
            self.own(),
            Op::Commit(transaction.commit()),
        );
        Ok(())
    }

    pub(super) fn tx_rollback(&mut self, number: u16) -> Result<(), Exception> {
        let transaction = self.take_transaction(number)?;
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(()) };
        channel.unacked.put_back(transaction.settled.into_iter().flat_map(|(_, deliveries)| deliveries));
        // The answer comes behind what the shard may still refuse of the publishes.
        let op = Op::CheckPublish { channel: channel.slot, exchange: "".into() };
        let id = self.next_id();
        self.ask(number, id, TxRollback::ID, false, Owed::TxRollback, self.own(), op);
        Ok(())
    }

    fn take_transaction(&mut self, number: u16) -> Result<Transaction, Exception> {
        let channel = self.channels.get_mut(&number);
        let Some(transaction) = channel.and_then(|channel| channel.transaction.as_mut()) else {
            return Err(precondition("channel is not transactional"));
        };
        let transaction = std::mem::take(transaction);
        self.uncommitted -= transaction.bytes;
        Ok(transaction)
    }

    /// Keeps a publish for the commit, or gives it back if the channel has no transactions.
    pub(super) fn keep_for_commit(
        &mut self,
        number: u16,
        key: Authorized,
        publish: Publish,
    ) -> Result<Option<Publish>, Exception> {
        let Some(channel) = self.channels.get_mut(&number) else { return Ok(None) };
        let Some(transaction) = channel.transaction.as_mut() else { return Ok(Some(publish)) };
        if publish.exchange.is_empty() && publish.routing_key.starts_with(REPLY_PREFIX) {
            // Direct replies do not wait for a commit, in RabbitMQ neither.
            return Ok(Some(publish));
        }
        let bytes = publish.message.bytes.len() + PUBLISH_OVERHEAD;
        if self.uncommitted + bytes > limits::UNCOMMITTED_MAX {
            let text = format_args!(
                "uncommitted transactions of this connection hold more than {} bytes",
                limits::UNCOMMITTED_MAX
            );
            return Err(Exception::new(ReplyCode::ResourceError, text));
        }
        self.uncommitted += bytes;
        transaction.bytes += bytes;
        let (slot, exchange) = (publish.channel, std::sync::Arc::clone(&publish.exchange));
        transaction.publishes.push(publish);
        // A missing exchange is refused at the publish. What we see of the topology may be behind the client's own
        // declares: the shard decides.
        if !self.takes_publishes(&exchange) {
            self.wish(key, 0, Op::CheckPublish { channel: slot, exchange });
        }
        Ok(None)
    }

    /// Is that an exchange that clients may publish to, as far as this connection knows?
    pub(super) fn takes_publishes(&self, exchange: &str) -> bool {
        let known = self.topology.exchange(self.agreed.vhost, exchange);
        exchange.is_empty() || known.is_some_and(|known| !known.spec.internal)
    }
}
