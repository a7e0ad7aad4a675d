//! Messages named by their physical offset: sending one back (36), looking at one (33).
//!
//! Owns: how such a place becomes a queue of ours, and the record of one message as an answer.
//! Promises: a place where no message begins is refused and nothing is done; what is sent back is stored when it is answered.
//! Does not know: when a retry is due.

use std::io;

use dassie_rocketmq::header::{ConsumerSendBack, ViewMessage};
use dassie_rocketmq::message::{MessageId, check_group};
use dassie_rocketmq::{Command, ResponseCode};

use super::group_configs;
use super::offsets::signed;
use super::pull;
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{MOVED, Op, QueueUid, Reply, SendBack};
use crate::broker::message::queue_at;
use crate::security::{Action, Resource, authorize};

/// CONSUMER_SEND_MSG_BACK.
pub(super) fn on_back(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: ConsumerSendBack<'_> = command.header()?;
    let group = header.group;
    check_group(group).map_err(|error| {
        refused(ResponseCode::InvalidParameter, format!("consumer group [{group}]: {error}"))
    })?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    let lost = format!("look message by offset failed, {}", header.offset);
    let lost = || refused(ResponseCode::SystemError, lost.clone());
    let (position, queue) = find(session, header.offset)?.ok_or_else(lost)?;
    let id = MessageId { store_host: session.front.store_host, offset: header.offset };
    let back = SendBack {
        queue,
        position,
        topic: header.origin_topic.filter(|topic| !topic.is_empty()).map(Into::into),
        group: group.into(),
        level: header.delay_level,
        attempts_max: group_configs::retries_max(&session.topology, group, header.max_reconsume_times),
        id: id.to_string().into(),
    };
    session.ask(Action::Read, Resource::Group(group), Op::SendBack(back), asked, Wait::Step)?;
    Ok(())
}

/// VIEW_MESSAGE_BY_ID.
pub(super) fn on_view(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: ViewMessage<'_> = command.header()?;
    look(session, header.offset, asked, Wait::View)
}

/// Asks for the message at that place of the log.
pub(super) fn look(session: &mut Session, offset: i64, asked: Asked, wait: Wait) -> Result<(), Refused> {
    // A message that was moved is not found there any more; the shard knows which those are.
    let found = find(session, offset)?;
    let moved = || u64::try_from(offset).ok().map(|position| (position, MOVED));
    let Some((position, queue)) = found.or_else(moved) else {
        let text = format!("can not find message by the offset, {offset}");
        return Err(refused(ResponseCode::SystemError, text));
    };
    session.ask(Action::Read, Resource::Own, Op::View { queue, position }, asked, wait)?;
    Ok(())
}

/// Which queue has an entry at that place of the log.
fn find(session: &Session, offset: i64) -> Result<Option<(u64, QueueUid)>, Refused> {
    let Ok(position) = u64::try_from(offset) else { return Ok(None) };
    let found: io::Result<Option<QueueUid>> =
        tokio::task::block_in_place(|| queue_at(position, &*session.log));
    match found {
        Ok(queue) => Ok(queue.map(|queue| (position, queue))),
        Err(error) => {
            tracing::error!("the log can not be read at {position}: {error}");
            Err(refused(ResponseCode::SystemError, format!("the log can not be read: {error}")))
        }
    }
}

/// Answers a look.
pub(super) fn answer_view(session: &mut Session, asked: Asked, reply: &Reply) -> Result<(), Refused> {
    let record = record(session, reply)?;
    session.answer(asked, &(), &record);
    Ok(())
}

/// The record that was looked for, if the client may see it.
pub(super) fn record(session: &mut Session, reply: &Reply) -> Result<Vec<u8>, Refused> {
    let Reply::Viewed { delivery, topic, queue_id } = reply else {
        return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"));
    };
    authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    pull::one(session, delivery, topic, *queue_id).map_err(|error| {
        tracing::error!("message {}: {error}", signed(delivery.position));
        refused(ResponseCode::SystemError, format!("the log can not be read: {error}"))
    })
}
