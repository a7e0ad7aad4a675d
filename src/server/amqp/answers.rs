//! What a channel owes its client: one answer to each synchronous method, in the order of the methods.
//!
//! Owns: the queue of answers that are not written yet. The shard may answer a later wish before an earlier one (a get from memory
//! before a declare that waits for the disk); clients match answers by order, so an early one waits here.
//! Promises: an answer leaves once, after all before it. Does not know: how answers are encoded.

use std::collections::VecDeque;
use std::sync::Arc;

use dassie_amqp::method::MethodId;
use dassie_amqp::reply::Exception;

use crate::broker::api::{ReaderId, Refusal, Reply};

/// Which answer.
#[derive(Debug, Clone)]
pub(super) enum Owed {
    /// access.request-ok
    Access,
    /// basic.cancel-ok; the reader goes, if there was one under the tag.
    Cancel(Arc<str>, Option<ReaderId>),
    /// channel.close-ok
    Close,
    /// confirm.select-ok
    ConfirmSelect,
    /// basic.consume-ok
    Consume(Arc<str>, ReaderId),
    /// exchange.bind-ok
    ExchangeBind,
    /// exchange.declare-ok
    ExchangeDeclare,
    /// exchange.delete-ok
    ExchangeDelete,
    /// exchange.unbind-ok
    ExchangeUnbind,
    /// The end of the channel or of the connection, behind the answers to what came before the mistake.
    Failure(Exception),
    /// channel.flow-ok
    Flow,
    /// basic.get-ok or basic.get-empty; what it brings belongs to this reader.
    Get {
        /// Holder of the lease.
        reader: ReaderId,
        /// Settled already.
        no_ack: bool,
    },
    /// basic.qos-ok
    Qos,
    /// queue.bind-ok
    QueueBind,
    /// queue.declare-ok, with the queue's name
    QueueDeclare(Arc<str>),
    /// queue.delete-ok
    QueueDelete,
    /// queue.purge-ok
    QueuePurge,
    /// queue.unbind-ok
    QueueUnbind,
    /// basic.recover-ok
    Recover,
    /// tx.select-ok
    TxSelect,
    /// tx.commit-ok
    TxCommit,
    /// tx.rollback-ok
    TxRollback,
}

/// An answer that is owed.
#[derive(Debug)]
pub(super) struct Answer {
    /// Number of the wish.
    pub(super) id: u32,
    /// The method to blame for a refusal.
    pub(super) method: MethodId,
    /// The client wants none, but a refusal still closes the channel.
    pub(super) nowait: bool,
    /// Which.
    pub(super) owed: Owed,
    /// What the shard said.
    pub(super) result: Option<Result<Reply, Refusal>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    owed: VecDeque<Answer>,
    /// How many of them are those of gets.
    gets: usize,
}

impl Answers {
    /// Adds an answer behind all others.
    pub(super) fn push(&mut self, answer: Answer) {
        self.gets += usize::from(matches!(answer.owed, Owed::Get { .. }));
        self.owed.push_back(answer);
    }

    /// The shard has answered wish `id`; given back if nobody waits for it.
    pub(super) fn resolve(
        &mut self,
        id: u32,
        result: Result<Reply, Refusal>,
    ) -> Option<Result<Reply, Refusal>> {
        match self.owed.iter_mut().find(|answer| answer.id == id) {
            Some(answer) => {
                answer.result = Some(result);
                None
            }
            None => Some(result),
        }
    }

    /// Gives back the memory of answers that were given.
    pub(super) fn rest(&mut self) {
        self.owed.shrink_to_fit();
    }

    /// The next answer whose turn has come.
    pub(super) fn next(&mut self) -> Option<(Answer, Result<Reply, Refusal>)> {
        let result = self.owed.front_mut()?.result.take()?;
        let answer = self.owed.pop_front()?;
        self.gets -= usize::from(matches!(answer.owed, Owed::Get { .. }));
        Some((answer, result))
    }

    /// Whether the last one is an end: nothing that comes now is heard.
    pub(super) fn end_in_failure(&self) -> bool {
        matches!(self.owed.back(), Some(Answer { owed: Owed::Failure(_), .. }))
    }

    /// How many are owed.
    pub(super) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether a message may be on its way that its client could already settle by its tag.
    pub(super) fn owes_message(&self) -> bool {
        self.gets > 0
    }

    /// Forgets all but the answer to the client's own close: the channel ended before them.
    pub(super) fn keep_close(&mut self) {
        self.gets = 0;
        self.owed.retain(|answer| matches!(answer.owed, Owed::Close));
    }

    /// All of them: the channel is going.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Answer> + '_ {
        self.gets = 0;
        self.owed.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owe(answers: &mut Answers, id: u32, result: Option<Reply>) {
        let result = result.map(Ok);
        answers.push(Answer { id, method: MethodId::NONE, nowait: false, owed: Owed::Qos, result });
    }

    #[test]
    fn an_early_answer_waits_for_the_ones_before_it() {
        let mut answers = Answers::default();
        owe(&mut answers, 1, None);
        owe(&mut answers, 2, None);
        owe(&mut answers, 3, Some(Reply::Ok));
        assert!(answers.resolve(2, Ok(Reply::Ok)).is_none());
        assert!(answers.next().is_none());
        assert!(answers.resolve(1, Ok(Reply::Ok)).is_none());
        let order: Vec<u32> = std::iter::from_fn(|| answers.next()).map(|(answer, _)| answer.id).collect();
        assert_eq!(order, [1, 2, 3]);
        assert!(answers.resolve(9, Ok(Reply::Ok)).is_some());
    }
}
