//! Offsets of groups and queues (codes 14, 15, 29, 30, 31, 32).
//!
//! Owns: how requests about them become verbs, and how replies are told.
//! Promises: a group that never committed starts at 0 while its queue still has everything, whatever the consumer's
//! CONSUME_FROM setting says, as with Apache; an update that is answered is durable.
//! Does not know: where offsets are kept.

use dassie_rocketmq::header::{
    Boundary, GetMaxOffset, OffsetAnswer, QueryConsumerOffset, QueueAddress, SearchOffset, TimestampAnswer,
    UpdateConsumerOffset,
};
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Op, Reply};
use crate::security::{Action, Resource, authorize};

/// What of a reply the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Max,
    Min,
    /// Store time of the first message.
    Earliest,
    /// The first offset at or after a time.
    From,
    /// The last offset at or before a time: what was found minus one.
    UpTo,
    /// A group's offset; `zero`: 0 may stand for none.
    Group {
        zero: bool,
    },
}

/// A queue id as the core counts.
pub(super) fn queue(queue_id: i32, topic: &str) -> Result<u32, Refused> {
    u32::try_from(queue_id).map_err(|_| {
        refused(ResponseCode::InvalidParameter, format!("queueId[{queue_id}] is illegal, topic:[{topic}]"))
    })
}

/// An offset as the wire has it.
pub(super) fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// QUERY_CONSUMER_OFFSET.
pub(super) fn on_query(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: QueryConsumerOffset<'_> = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(header.consumer_group))?;
    let op = Op::GroupOffset {
        group: header.consumer_group.into(),
        topic: header.topic.into(),
        queue_id: queue(header.queue_id, header.topic)?,
    };
    let wanted = Wanted::Group { zero: header.set_zero_if_not_found.unwrap_or(true) };
    session.ask(Action::Read, Resource::Topic(header.topic), op, asked, Wait::Offset(wanted))?;
    Ok(())
}

/// UPDATE_CONSUMER_OFFSET.
pub(super) fn on_update(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: UpdateConsumerOffset<'_> = command.header()?;
    let offset = u64::try_from(header.commit_offset).map_err(|_| {
        refused(ResponseCode::InvalidParameter, format!("commitOffset[{}] is below 0", header.commit_offset))
    })?;
    authorize(&session.principal, Action::Read, Resource::Group(header.consumer_group))?;
    let op = Op::CommitOffset {
        group: header.consumer_group.into(),
        topic: header.topic.into(),
        queue_id: queue(header.queue_id, header.topic)?,
        offset,
        wait: true,
    };
    session.ask(Action::Read, Resource::Topic(header.topic), op, asked, Wait::Commit)?;
    Ok(())
}

/// SEARCH_OFFSET_BY_TIMESTAMP.
pub(super) fn on_search(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: SearchOffset<'_> = command.header()?;
    let timestamp = u64::try_from(header.timestamp).unwrap_or(0);
    let (timestamp, wanted) = match header.boundary_type {
        Some(Boundary::Upper) => (timestamp.saturating_add(1), Wanted::UpTo),
        Some(Boundary::Lower) | None => (timestamp, Wanted::From),
    };
    let queue_id = queue(header.queue_id, header.topic)?;
    let op = Op::SearchOffset { topic: header.topic.into(), queue_id, timestamp };
    session.ask(Action::Read, Resource::Topic(header.topic), op, asked, Wait::Offset(wanted))?;
    Ok(())
}

/// GET_MAX_OFFSET.
pub(super) fn on_max(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: GetMaxOffset<'_> = command.header()?;
    look(session, header.topic, header.queue_id, asked, Wanted::Max)
}

/// GET_MIN_OFFSET.
pub(super) fn on_min(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: QueueAddress<'_> = command.header()?;
    look(session, header.topic, header.queue_id, asked, Wanted::Min)
}

/// GET_EARLIEST_MSG_STORETIME.
pub(super) fn on_earliest(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: QueueAddress<'_> = command.header()?;
    look(session, header.topic, header.queue_id, asked, Wanted::Earliest)
}

fn look(
    session: &mut Session,
    topic: &str,
    queue_id: i32,
    asked: Asked,
    wanted: Wanted,
) -> Result<(), Refused> {
    let op = Op::QueueOffsets { topic: topic.into(), queue_id: queue(queue_id, topic)? };
    session.ask(Action::Read, Resource::Topic(topic), op, asked, Wait::Offset(wanted))?;
    Ok(())
}

/// Answers one about a topic or queue that is not there, as Apache does: an empty queue, and a group that never committed.
pub(super) fn answer_missing(session: &mut Session, asked: Asked, wanted: Wanted) -> Result<(), Refused> {
    match wanted {
        Wanted::Group { .. } => return Err(first_boot()),
        Wanted::Earliest => session.answer(asked, &TimestampAnswer { timestamp: -1 }, &[]),
        Wanted::Max | Wanted::Min | Wanted::From | Wanted::UpTo => {
            session.answer(asked, &OffsetAnswer { offset: 0 }, &[]);
        }
    }
    Ok(())
}

fn first_boot() -> Refused {
    refused(ResponseCode::QueryNotFound, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first")
}

/// Answers any of them.
pub(super) fn answer(
    session: &mut Session,
    asked: Asked,
    wanted: Wanted,
    reply: &Reply,
) -> Result<(), Refused> {
    if wanted == Wanted::Earliest
        && let Reply::Offsets { earliest, .. } = reply
    {
        let timestamp = if *earliest == 0 { -1 } else { signed(*earliest) };
        session.answer(asked, &TimestampAnswer { timestamp }, &[]);
        return Ok(());
    }
    session.answer(asked, &OffsetAnswer { offset: signed(offset(wanted, reply)?) }, &[]);
    Ok(())
}

fn offset(wanted: Wanted, reply: &Reply) -> Result<u64, Refused> {
    match (wanted, reply) {
        (Wanted::Max, Reply::Offsets { max, .. }) => Ok(*max),
        (Wanted::Min, Reply::Offsets { min, .. }) => Ok(*min),
        (Wanted::From, Reply::Offset(offset)) => Ok(*offset),
        (Wanted::UpTo, Reply::Offset(offset)) => Ok(offset.saturating_sub(1)),
        (Wanted::Group { .. }, Reply::GroupOffset { offset: Some(offset), .. }) => Ok(*offset),
        (Wanted::Group { zero: true }, Reply::GroupOffset { offset: None, min: 0, .. }) => Ok(0),
        (Wanted::Group { .. }, Reply::GroupOffset { .. }) => Err(first_boot()),
        _ => Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_an_offset_starts_at_0_only_while_the_queue_has_everything() {
        let reply = |offset, min| Reply::GroupOffset { offset, min, max: 9 };
        let wanted = Wanted::Group { zero: true };
        assert_eq!(offset(wanted, &reply(Some(7), 5)), Ok(7));
        assert_eq!(offset(wanted, &reply(None, 0)), Ok(0));
        assert_eq!(offset(wanted, &reply(None, 5)).unwrap_err().code, ResponseCode::QueryNotFound);
        let not_zero = offset(Wanted::Group { zero: false }, &reply(None, 0));
        assert_eq!(not_zero.unwrap_err().code, ResponseCode::QueryNotFound);
    }
}
