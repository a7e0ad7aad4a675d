//! UPDATE_AND_CREATE_TOPIC (17).
//!
//! Owns: which names and settings a topic may have. Promises: a setting without effect is refused by its name.
//! Does not know: what a topic is made of.

use dassie_rocketmq::header::CreateTopic;
use dassie_rocketmq::message::{check_topic, is_system_topic};
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::Op;
use crate::security::{Action, Resource};

/// The one attribute that asks for what is there anyway.
const NORMAL: &str = "+message.type=NORMAL";

/// UPDATE_AND_CREATE_TOPIC.
pub(super) fn on_create(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: CreateTopic<'_> = command.header()?;
    let op = judge(&header)?;
    session.ask(Action::Configure, Resource::Topic(header.topic), op, asked, Wait::Done)?;
    Ok(())
}

fn judge(header: &CreateTopic<'_>) -> Result<Op, Refused> {
    let invalid = |text: String| refused(ResponseCode::InvalidParameter, text);
    let topic = header.topic;
    check_topic(topic).map_err(|error| invalid(format!("topic[{topic}]: {error}")))?;
    if is_system_topic(topic) {
        return Err(invalid(format!("The topic[{topic}] is conflict with system topic.")));
    }
    let queues = |queues: i32| u32::try_from(queues).ok().filter(|queues| *queues > 0);
    let (Some(write_queues), Some(read_queues)) =
        (queues(header.write_queue_nums), queues(header.read_queue_nums))
    else {
        return Err(invalid(format!(
            "topic[{topic}]: a topic has at least one queue to read and one to write"
        )));
    };
    let permission = u32::try_from(header.perm).ok().filter(|bits| *bits < 8);
    let permission =
        permission.ok_or_else(|| invalid(format!("topic[{topic}]: perm {} is unknown", header.perm)))?;
    let unsupported = |what: &str| {
        refused(ResponseCode::InvalidParameter, format!("{what} is not supported by this broker yet"))
    };
    if header.order == Some(true) {
        return Err(unsupported("an ordered topic (order=true)"));
    }
    if let Some(attributes) =
        header.attributes.map(str::trim).filter(|text| !text.is_empty() && *text != NORMAL)
    {
        return Err(unsupported(&format!("the topic attribute {attributes}")));
    }
    Ok(Op::CreateTopic { topic: topic.into(), write_queues, read_queues, permission })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> CreateTopic<'static> {
        CreateTopic {
            topic: "T",
            default_topic: "TBW102",
            read_queue_nums: 8,
            write_queue_nums: 4,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        }
    }

    #[test]
    fn a_plain_topic_is_made_as_asked() {
        let made = judge(&CreateTopic { attributes: Some(NORMAL), order: Some(false), ..header() }).unwrap();
        assert!(matches!(made, Op::CreateTopic { write_queues: 4, read_queues: 8, permission: 6, .. }));
    }

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        let refused = |header| judge(&header).unwrap_err().remark;
        assert!(refused(CreateTopic { order: Some(true), ..header() }).contains("order"));
        assert!(refused(CreateTopic { attributes: Some("+message.type=FIFO"), ..header() }).contains("FIFO"));
        assert!(refused(CreateTopic { topic: "a b", ..header() }).contains("a b"));
        assert!(refused(CreateTopic { topic: "TBW102", ..header() }).contains("system topic"));
        assert!(refused(CreateTopic { write_queue_nums: 0, ..header() }).contains("queue"));
    }
}
