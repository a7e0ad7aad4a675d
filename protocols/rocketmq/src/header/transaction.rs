//! The header of END_TRANSACTION (37). The check-back (39) is a callback.

use super::headers;

headers! {
    /// Ends a transaction; usually one-way. The offsets come from the client: they must be checked against the half
    /// message and its group before anything is done.
    pub struct EndTransaction<'a> {
        /// The topic.
        topic: Option<&'a str> = "topic",
        /// The producer group.
        producer_group: &'a str = "producerGroup",
        /// The half message's offset in its queue.
        tran_state_table_offset: i64 = "tranStateTableOffset",
        /// The half message's physical offset.
        commit_log_offset: i64 = "commitLogOffset",
        /// 0 unknown, 8 commit, 12 rollback ([`TransactionState`](crate::message::TransactionState)).
        commit_or_rollback: i32 = "commitOrRollback",
        /// Whether this answers a check-back.
        from_transaction_check: Option<bool> = "fromTransactionCheck",
        /// The message's unique key.
        msg_id: &'a str = "msgId",
        /// The transaction's id, mostly the unique key.
        transaction_id: Option<&'a str> = "transactionId",
        /// The broker name the client means to reach.
        broker_name: Option<&'a str> = "bname",
    }
}
