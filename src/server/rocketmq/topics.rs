//! Topics: making, changing, removing, describing them (codes 17, 18, 21, 215, 216, 351).
//!
//! Owns: which names and settings a topic may have, and the place of those that the core does not know.
//! Promises: a setting without effect is refused by its name; a removed topic leaves nothing behind for a new one of its name.
//! Does not know: what a topic is made of.

use std::collections::BTreeMap;

use bytes::Bytes;
use dassie_rocketmq::body::{DataVersion, TopicConfig, TopicConfigs, TopicTable, from_json, to_json};
use dassie_rocketmq::header::{ByTopic, CreateTopic, DeleteTopic, TopicTableAnswer};
use dassie_rocketmq::message::{check_topic, is_system_topic};
use dassie_rocketmq::{Command, ResponseCode};

use super::clients;
use super::key_values::{ORDERS, space};
use super::refuse::{Refused, name_refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::Op;
use crate::broker::retention::TOPIC_HOURS;
use crate::broker::topology::{Topic, Topology};
use crate::security::{Action, Resource, authorize};
use crate::server::across::is_foreign;

/// What kind of messages a topic is meant for. Every topic takes all kinds, as with Apache for clients like these: it is for people.
const MESSAGE_TYPE: &str = "message.type";
const MESSAGE_TYPES: [&str; 6] = ["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "MIXED"];
/// For how many hours the topic keeps messages, if not for as long as others: this broker's own attribute.
const HOURS: &str = "retention.hours";
/// The longest such time: ten years.
const HOURS_MAX: u64 = 87_600;
/// Where the type of messages stands.
const TYPES: &str = "rocketmq.message_type";
/// Where it stands that a topic is ordered.
const ORDERED: &str = "rocketmq.ordered";

/// UPDATE_AND_CREATE_TOPIC.
pub(super) fn on_create(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: CreateTopic<'_> = command.header()?;
    let (op, settings) = judge(&header)?;
    create(session, header.topic, settings, op, (asked, Wait::Done))
}

/// UPDATE_AND_CREATE_TOPIC_LIST: all of them are judged before the first is made.
pub(super) fn on_create_all(
    session: &mut Session,
    command: &Command<'_>,
    asked: Asked,
) -> Result<(), Refused> {
    let TopicConfigs { topic_config_list } = from_json(command.body)?;
    let mut ops = Vec::with_capacity(topic_config_list.len());
    for config in &topic_config_list {
        let attributes: Vec<String> =
            config.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let attributes = attributes.join(",");
        let header = CreateTopic {
            topic: &config.topic_name,
            read_queue_nums: config.read_queue_nums,
            write_queue_nums: config.write_queue_nums,
            perm: config.perm,
            order: Some(config.order),
            attributes: Some(&attributes),
            ..CreateTopic::default()
        };
        ops.push(judge(&header)?);
        authorize(&session.principal, Action::Configure, Resource::Topic(&config.topic_name))?;
    }
    if ops.is_empty() {
        return Err(refused(ResponseCode::InvalidParameter, "the list of topics is empty"));
    }
    let join = clients::wait_for(session, asked, ops.len());
    for (config, (op, settings)) in topic_config_list.iter().zip(ops) {
        create(session, &config.topic_name, settings, op, (asked, Wait::Join(join)))?;
    }
    Ok(())
}

fn create(
    session: &mut Session,
    topic: &str,
    settings: Settings,
    op: Op,
    (asked, wait): (Asked, Wait),
) -> Result<(), Refused> {
    let resource = Resource::Topic(topic);
    let mut wanted = vec![(ORDERED, settings.ordered.then(|| Bytes::from_static(b"true")))];
    wanted.extend(settings.message_type.map(|value| (TYPES, value.map(Bytes::from_static))));
    let hours = |hours: u64| Bytes::from(hours.to_string());
    wanted.extend(settings.hours.map(|value| (TOPIC_HOURS, value.map(hours))));
    for (space, value) in wanted {
        if session.topology.setting(space, topic) != value.as_ref() {
            let op = Op::PutSetting { space: space.into(), name: topic.into(), value };
            session.tell(Action::Configure, resource, op)?;
        }
    }
    session.ask(Action::Configure, resource, op, asked, wait)?;
    Ok(())
}

/// What of a topic the core does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Settings {
    ordered: bool,
    /// `None`: it stays as it is; `Some(None)`: it is dropped.
    message_type: Option<Option<&'static [u8]>>,
    /// Likewise; 0: for ever.
    hours: Option<Option<u64>>,
}

fn is_ordered(topology: &Topology, topic: &str) -> bool {
    topology.setting(ORDERED, topic).is_some()
}

/// DELETE_TOPIC_IN_BROKER, DELETE_TOPIC_IN_NAMESRV: broker and name server are one, and tools send both.
pub(super) fn on_delete(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let DeleteTopic { topic } = command.header()?;
    let invalid = |text: String| refused(ResponseCode::InvalidParameter, text);
    if topic.trim().is_empty() {
        return Err(invalid("The specified topic is blank.".to_owned()));
    }
    if is_system_topic(topic) {
        return Err(invalid(format!("The topic[{topic}] is conflict with system topic.")));
    }
    for space in [ORDERED.to_owned(), TYPES.to_owned(), TOPIC_HOURS.to_owned(), space(ORDERS)] {
        if session.topology.setting(&space, topic).is_some() {
            let op = Op::PutSetting { space: space.into(), name: topic.into(), value: None };
            session.tell(Action::Configure, Resource::Topic(topic), op)?;
        }
    }
    let op = Op::DeleteTopic { topic: topic.into() };
    session.ask(Action::Configure, Resource::Topic(topic), op, asked, Wait::Done)?;
    Ok(())
}

fn config(topology: &Topology, topic: &Topic) -> TopicConfig {
    let [read_queue_nums, write_queue_nums, perm] = [topic.read_queues, topic.write_queues, topic.permission]
        .map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let kept = [(MESSAGE_TYPE, TYPES), (HOURS, TOPIC_HOURS)].into_iter().filter_map(|(attribute, space)| {
        let value = topology.setting(space, &topic.name)?;
        Some((attribute.to_owned(), String::from_utf8_lossy(value).into_owned()))
    });
    TopicConfig {
        topic_name: topic.name.to_string(),
        read_queue_nums,
        write_queue_nums,
        perm,
        topic_filter_type: "SINGLE_TAG".to_owned(),
        topic_sys_flag: 0,
        order: is_ordered(topology, &topic.name),
        attributes: kept.collect(),
    }
}

/// GET_ALL_TOPIC_CONFIG, all in one page.
pub(super) fn on_all(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let topology = &session.topology;
    let topic_config_table: BTreeMap<String, TopicConfig> =
        topology.topics().map(|topic| (topic.name.to_string(), config(topology, topic))).collect();
    let counter = i64::try_from(topology.version).unwrap_or(i64::MAX);
    let fields =
        TopicTableAnswer { total_topic_num: i32::try_from(topic_config_table.len()).unwrap_or(i32::MAX) };
    let table =
        TopicTable { topic_config_table, data_version: DataVersion { counter, ..DataVersion::default() } };
    session.answer(asked, &fields, &to_json(&table));
    Ok(())
}

/// GET_TOPIC_CONFIG.
pub(super) fn on_one(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ByTopic { topic } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    let Some(known) = session.topology.topic(topic) else {
        return Err(refused(ResponseCode::TopicNotExist, format!("No topic in this broker. topic: {topic}")));
    };
    let body = to_json(&config(&session.topology, known));
    session.answer(asked, &(), &body);
    Ok(())
}

fn judge(header: &CreateTopic<'_>) -> Result<(Op, Settings), Refused> {
    let invalid = |text: String| refused(ResponseCode::InvalidParameter, text);
    let topic = header.topic;
    check_topic(topic).map_err(|error| name_refused("topic", topic, error))?;
    if is_system_topic(topic) {
        return Err(invalid(format!("The topic[{topic}] is conflict with system topic.")));
    }
    if is_foreign(topic) {
        let text = format!(
            "topic[{topic}]: it is there with the exchange or queue of AMQP that it stands for, and is not made"
        );
        return Err(invalid(text));
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
    let settings = Settings {
        ordered: header.order == Some(true),
        ..attributes(header.attributes.unwrap_or_default()).map_err(invalid)?
    };
    Ok((Op::CreateTopic { topic: topic.into(), write_queues, read_queues, permission }, settings))
}

/// What `+name=value` and `-name` ask for; an attribute without effect is refused by name.
fn attributes(text: &str) -> Result<Settings, String> {
    let mut asked = Settings::default();
    for attribute in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let kind = MESSAGE_TYPES.iter().find(|kind| **kind == value).map(|kind| kind.as_bytes());
        let hours = value.parse().ok().filter(|hours| *hours <= HOURS_MAX);
        match (name.split_at_checked(1), kind, hours) {
            (Some(("+", MESSAGE_TYPE)), Some(kind), _) => asked.message_type = Some(Some(kind)),
            (Some(("-", MESSAGE_TYPE)), ..) => asked.message_type = Some(None),
            (Some(("+", HOURS)), _, Some(hours)) => asked.hours = Some(Some(hours)),
            (Some(("-", HOURS)), ..) => asked.hours = Some(None),
            _ => return Err(format!("the topic attribute {attribute} is not supported by this broker yet")),
        }
    }
    Ok(asked)
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
        let asked = Some("+message.type=TRANSACTION");
        let (made, settings) =
            judge(&CreateTopic { attributes: asked, order: Some(true), ..header() }).unwrap();
        let expected = Settings { ordered: true, message_type: Some(Some(b"TRANSACTION")), hours: None };
        assert_eq!(settings, expected);
        let hours = attributes("-message.type,+retention.hours=24").unwrap();
        assert_eq!((hours.message_type, hours.hours), (Some(None), Some(Some(24))));
        assert_eq!(attributes("-retention.hours").unwrap().hours, Some(None));
        assert_eq!(attributes(""), Ok(Settings::default()));
        assert!(
            attributes("+retention.hours=-1").is_err() && attributes("+retention.hours=99999999").is_err()
        );
        assert!(matches!(made, Op::CreateTopic { write_queues: 4, read_queues: 8, permission: 6, .. }));
    }

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        let refused = |header| judge(&header).unwrap_err().remark;
        assert!(
            refused(CreateTopic { attributes: Some("+queue.type=BatchCQ"), ..header() }).contains("BatchCQ")
        );
        assert!(refused(CreateTopic { attributes: Some("+message.type=LITE"), ..header() }).contains("LITE"));
        assert!(refused(CreateTopic { topic: "a b", ..header() }).contains("illegal characters"));
        assert!(refused(CreateTopic { topic: "TBW102", ..header() }).contains("system topic"));
        assert!(refused(CreateTopic { write_queue_nums: 0, ..header() }).contains("queue"));
    }
}
