//! Queue locks of ordered consumption (codes 41, 42).
//!
//! Owns: how requests about them become verbs, and the answer's body. Promises: a lock that is answered is durable, and no
//! other client of the group has it before its time is up.
//! Does not know: where locks are kept, how long they hold.

use std::sync::Arc;
use std::time::Duration;

use dassie_rocketmq::body::{LockAnswer, LockQueues as Wish, MessageQueue, from_json, to_json};
use dassie_rocketmq::message::check_group;
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{LockQueues, Op, Reply};
use crate::limits;
use crate::security::{Action, Resource, authorize};

/// LOCK_BATCH_MQ.
pub(super) fn on_lock(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let (wish, broker) = judge(session, command)?;
    let group = Arc::clone(&wish.group);
    let until = session.front.clock.monotonic() + Duration::from_millis(limits::QUEUE_LOCK_MS);
    session.front.groups.note_order(&group, until);
    session.ask(Action::Read, Resource::Group(&group), Op::LockQueues(wish), asked, Wait::Lock(broker))?;
    Ok(())
}

/// UNLOCK_BATCH_MQ.
pub(super) fn on_unlock(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let (wish, _) = judge(session, command)?;
    let group = Arc::clone(&wish.group);
    session.ask(Action::Read, Resource::Group(&group), Op::UnlockQueues(wish), asked, Wait::Done)?;
    Ok(())
}

/// The wish, and the broker name that the client knows its queues by.
fn judge(session: &Session, command: &Command<'_>) -> Result<(LockQueues, String), Refused> {
    let wish: Wish = from_json(command.body)?;
    let invalid = |text: String| refused(ResponseCode::InvalidParameter, text);
    check_group(&wish.consumer_group)
        .map_err(|error| invalid(format!("consumer group [{}]: {error}", wish.consumer_group)))?;
    if wish.client_id.is_empty() || wish.client_id.len() > 255 {
        return Err(invalid("a client id has 1 to 255 bytes".to_owned()));
    }
    let broker = wish
        .mq_set
        .first()
        .map_or_else(|| session.front.settings.broker_name.clone(), |q| q.broker_name.clone());
    let mut topics: Vec<Arc<str>> = Vec::new();
    let mut queues = Vec::with_capacity(wish.mq_set.len());
    for queue in &wish.mq_set {
        // What can not be a queue is simply not locked, like a queue that is not there.
        let Ok(queue_id) = u32::try_from(queue.queue_id) else { continue };
        let topic = match topics.iter().find(|known| ***known == *queue.topic) {
            Some(known) => Arc::clone(known),
            None => {
                authorize(&session.principal, Action::Read, Resource::Topic(&queue.topic))?;
                topics.push(queue.topic.as_str().into());
                Arc::clone(&topics[topics.len() - 1])
            }
        };
        queues.push((topic, queue_id));
    }
    let (group, client) = (wish.consumer_group.as_str().into(), wish.client_id.as_str().into());
    Ok((LockQueues { group, client, queues }, broker))
}

/// Answers a lock.
pub(super) fn answer(session: &mut Session, asked: Asked, broker: &str, reply: Reply) -> Result<(), Refused> {
    let Reply::Locked(queues) = reply else {
        return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question"));
    };
    let named = |(topic, queue_id): (Arc<str>, u32)| MessageQueue {
        topic: topic.to_string(),
        broker_name: broker.to_owned(),
        queue_id: i32::try_from(queue_id).unwrap_or(i32::MAX),
    };
    let locked = queues.into_iter().map(named).collect();
    session.answer(asked, &(), &to_json(&LockAnswer { locked }));
    Ok(())
}
