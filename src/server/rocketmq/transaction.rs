//! Transactions (37), and the question what became of one (39).
//!
//! Owns: what a producer says and is asked. Promises: a question is a request without answer on a connection of the half message's
//! own group; its answer is an END_TRANSACTION like any other.
//! Does not know: when who is asked, who may end what.

use dassie_rocketmq::header::{CheckTransactionState, EndTransaction};
use dassie_rocketmq::message::{
    MessageId, PropertiesText, Record, StoredMessage, TransactionState, property, waiting,
};
use dassie_rocketmq::{Command, RequestCode, ResponseCode};

use super::offsets::signed;
use super::pull;
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Delivery, EndTransaction as End, Op};
use crate::security::{Action, Resource};

/// END_TRANSACTION.
pub(super) fn on_end(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: EndTransaction<'_> = command.header()?;
    let commit = match TransactionState::from_bits(header.commit_or_rollback) {
        Some(TransactionState::Commit) => true,
        Some(TransactionState::Rollback) => false,
        // Nobody knows yet: the producers are asked later. Apache answers nothing; who waits learns it here.
        _ => {
            session.answer(asked, &(), &[]);
            return Ok(());
        }
    };
    let wrong = |what: &str| refused(ResponseCode::SystemError, format!("The {what} wrong"));
    let offset =
        u64::try_from(header.tran_state_table_offset).map_err(|_| wrong("transaction state table offset"))?;
    let position = u64::try_from(header.commit_log_offset).map_err(|_| wrong("commit log offset"))?;
    let end = End { group: header.producer_group.into(), offset, position, commit };
    session.ask(Action::Write, Resource::Own, Op::EndTransaction(end), asked, Wait::Step)?;
    Ok(())
}

/// Asks the client what became of a half message.
pub(super) fn ask(session: &mut Session, delivery: &Delivery) {
    if let Err(error) = try_ask(session, delivery) {
        tracing::error!("half message {}: {error}", delivery.offset);
    }
}

fn try_ask(session: &mut Session, delivery: &Delivery) -> Result<(), String> {
    let bytes = pull::one(session, delivery, "", 0).map_err(|error| error.to_string())?;
    let (stored, _) = StoredMessage::decode(&bytes).map_err(|error| error.to_string())?;
    let properties = stored.record.properties;
    let (topic, queue_id) = waiting::target(properties).ok_or("it does not say where it is for")?;
    let unique_key = properties.get(property::UNIQUE_KEY);
    let mut text = PropertiesText::from_properties(properties).map_err(|error| error.to_string())?;
    // It informs only: a message that leaves no room for it is asked about without.
    let _ = text.set(property::TRANSACTION_CHECK_TIMES, &delivery.attempts.to_string());
    let record = Record {
        topic,
        queue_id: i32::try_from(queue_id).unwrap_or(0),
        properties: text.properties(),
        ..stored.record
    };
    let mut body = Vec::new();
    record.encode(stored.body, &mut body).map_err(|error| error.to_string())?;
    let id =
        MessageId { store_host: session.front.store_host, offset: signed(delivery.position) }.to_string();
    let fields = CheckTransactionState {
        topic: Some(topic),
        tran_state_table_offset: signed(delivery.offset),
        commit_log_offset: signed(delivery.position),
        msg_id: unique_key,
        transaction_id: unique_key,
        offset_msg_id: Some(&id),
    };
    session.request(RequestCode::CheckTransactionState, true, &fields, &body);
    Ok(())
}
