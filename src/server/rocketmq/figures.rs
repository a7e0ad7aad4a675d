//! What tools ask of topics, groups and the broker (codes 26, 28, 202, 208, 222, 300).
//!
//! Owns: how those requests become verbs, and how replies are told. Promises: offsets and times are the shard's own; a rate that
//! is not measured is 0; a moved group is told, so that its members do not write their old offsets again.
//! Does not know: where offsets are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dassie_rocketmq::body::{
    ConsumeOffset, GroupList, KvTable, MessageQueue, OffsetTable, TopicOffset, consume_stats, to_json,
    topic_stats,
};
use dassie_rocketmq::header::{ByTopic, ConsumeStats, ResetConsumerOffset};
use dassie_rocketmq::{Command, Language, RequestCode, ResponseCode};

use super::group::{Notice, Push};
use super::offsets::{queue, signed};
use super::refuse::{Refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::{Op, QueueStats, Reply, ResetOffsets, ResetTo};
use crate::security::{Action, Resource, authorize};

/// What is done with the shard's reply.
#[derive(Debug)]
pub(super) enum Wanted {
    /// A topic's queues.
    Topic,
    /// A group's offsets.
    Group,
    /// The names of a topic's groups; these have members.
    Groups(BTreeSet<String>),
    /// A group was moved.
    Moved { group: String, topic: String, timestamp: i64, force: bool },
}

/// GET_TOPIC_STATS_INFO.
pub(super) fn on_topic(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ByTopic { topic } = command.header()?;
    let op = Op::TopicStats { topic: Some(topic.into()), group: None };
    session.ask(Action::Read, Resource::Topic(topic), op, asked, Wait::Figures(Wanted::Topic))?;
    Ok(())
}

/// GET_CONSUME_STATS.
pub(super) fn on_group(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ConsumeStats { consumer_group: group, topic } = command.header()?;
    let topic = topic.filter(|topic| !topic.is_empty());
    if let Some(topic) = topic {
        authorize(&session.principal, Action::Read, Resource::Topic(topic))?;
    }
    let op = Op::TopicStats { topic: topic.map(Into::into), group: Some(group.into()) };
    session.ask(Action::Read, Resource::Group(group), op, asked, Wait::Figures(Wanted::Group))?;
    Ok(())
}

/// QUERY_TOPIC_CONSUME_BY_WHO.
pub(super) fn on_groups(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ByTopic { topic } = command.header()?;
    let members = session.front.groups.groups_of(topic);
    let op = Op::GroupsOf { topic: topic.into() };
    session.ask(Action::Read, Resource::Topic(topic), op, asked, Wait::Figures(Wanted::Groups(members)))?;
    Ok(())
}

/// INVOKE_BROKER_TO_RESET_OFFSET.
pub(super) fn on_reset(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let header: ResetConsumerOffset<'_> = command.header()?;
    let (topic, group) = (header.topic, header.group);
    authorize(&session.principal, Action::Configure, Resource::Group(group))?;
    let given = header.offset.filter(|offset| *offset >= 0).and_then(|offset| u64::try_from(offset).ok());
    let to = match (given, u64::try_from(header.timestamp)) {
        (Some(offset), _) => ResetTo::Offset(offset),
        (None, Ok(time)) => ResetTo::Time(time),
        (None, Err(_)) => ResetTo::End,
    };
    let queue_id = match header.queue_id {
        Some(id) if id >= 0 => Some(queue(id, topic)?),
        _ => None,
    };
    if given.is_some() && queue_id.is_none() {
        return Err(refused(
            ResponseCode::InvalidParameter,
            "an offset is meant for one queue: queueId is missing",
        ));
    }
    let force = header.is_force || given.is_some();
    let op = Op::ResetOffsets(ResetOffsets { group: group.into(), topic: topic.into(), queue_id, to, force });
    let wanted = Wanted::Moved {
        group: group.to_owned(),
        topic: topic.to_owned(),
        timestamp: header.timestamp,
        force: header.is_force,
    };
    session.ask(Action::Configure, Resource::Topic(topic), op, asked, Wait::Figures(wanted))?;
    Ok(())
}

/// Answers any of them.
pub(super) fn answer(
    session: &mut Session,
    asked: Asked,
    wanted: Wanted,
    reply: Reply,
) -> Result<(), Refused> {
    let body = match (wanted, reply) {
        (Wanted::Topic, Reply::Stats(topics)) => {
            topic_stats(&by_queue(session, &topics, |stats| TopicOffset {
                min_offset: signed(stats.min),
                max_offset: signed(stats.max),
                last_update_timestamp: signed(stats.latest),
            }))
        }
        (Wanted::Group, Reply::Stats(topics)) => {
            consume_stats(&by_queue(session, &topics, |stats| ConsumeOffset {
                broker_offset: signed(stats.max),
                consumer_offset: stats.group.map_or(0, signed),
                pull_offset: stats.group.map_or(0, signed),
                last_timestamp: signed(stats.reached),
            }))
        }
        (Wanted::Groups(mut groups), Reply::Names(names)) => {
            groups.extend(names.iter().map(ToString::to_string));
            to_json(&GroupList { group_list: groups.into_iter().collect() })
        }
        (Wanted::Moved { group, topic, timestamp, force }, Reply::GroupOffsets(offsets)) => {
            let named = |(id, offset): &(u32, u64)| (message_queue(session, &topic, *id), signed(*offset));
            let table = OffsetTable(offsets.iter().map(named).collect());
            tell(session, &group, &topic, (timestamp, force), &table);
            table.to_reset_body()
        }
        _ => return Err(refused(ResponseCode::SystemError, "the broker gave an answer to another question")),
    };
    session.answer(asked, &(), &body);
    Ok(())
}

fn message_queue(session: &Session, topic: &str, queue_id: u32) -> MessageQueue {
    MessageQueue {
        topic: topic.to_owned(),
        broker_name: session.front.settings.broker_name.clone(),
        queue_id: i32::try_from(queue_id).unwrap_or(i32::MAX),
    }
}

fn by_queue<T>(
    session: &Session,
    topics: &[(Arc<str>, Vec<QueueStats>)],
    value: impl Fn(&QueueStats) -> T,
) -> Vec<(MessageQueue, T)> {
    let queues = topics.iter().flat_map(|(topic, stats)| (0..).zip(stats).map(move |(id, s)| (topic, id, s)));
    queues.map(|(topic, id, stats)| (message_queue(session, topic, id), value(stats))).collect()
}

/// Tells all members of a group where they go on.
fn tell(session: &Session, group: &str, topic: &str, (timestamp, force): (i64, bool), table: &OffsetTable) {
    let Some(view) = session.front.groups.consumers(group) else { return };
    for (_, member) in view.members {
        let body = match member.language {
            Language::Cpp => table.to_reset_body_for_cpp(),
            _ => table.to_reset_body(),
        };
        let fields = vec![
            ("topic", topic.to_owned()),
            ("group", group.to_owned()),
            ("timestamp", timestamp.to_string()),
            ("isForce", force.to_string()),
        ];
        let code = RequestCode::ResetConsumerClientOffset;
        member.tell(Notice::Push(Push { code, fields, body: Bytes::from(body), back: None }));
    }
}

/// GET_BROKER_RUNTIME_INFO.
pub(super) fn on_runtime(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let front = &session.front;
    let up = front.clock.wall_ms().saturating_sub(front.started_ms);
    let seconds = up / 1000;
    let texts = [
        ("brokerActive", "true".to_owned()),
        ("brokerVersionDesc", format!("Dassie {}", env!("CARGO_PKG_VERSION"))),
        ("brokerVersion", dassie_rocketmq::code::version::V4_9_8.to_string()),
        ("bootTimestamp", front.started_ms.to_string()),
        (
            "runtime",
            format!(
                "[ {} days, {} hours, {} minutes, {} seconds ]",
                seconds / 86_400,
                seconds / 3_600 % 24,
                seconds / 60 % 60,
                seconds % 60
            ),
        ),
    ];
    let table: BTreeMap<String, String> =
        texts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    session.answer(asked, &(), &to_json(&KvTable { table }));
    Ok(())
}

/// GET_BROKER_CONFIG: what Apache's tools look for, under Apache's names.
pub(super) fn on_config(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let settings = &session.front.settings;
    let text = format!(
        "brokerName={}\nbrokerClusterName={}\nbrokerId=0\nbrokerIP1={}\nlistenPort={}\nautoCreateTopicEnable={}\ndefaultTopicQueueNums={}\nflushDiskType=SYNC_FLUSH\nmaxMessageSize=4194304\n",
        settings.broker_name,
        settings.cluster_name,
        settings.advertised_host.clone().unwrap_or_else(|| session.local.to_canonical().to_string()),
        settings.advertised_port,
        settings.auto_create_topics,
        settings.default_topic_queues
    );
    session.answer(asked, &(), text.as_bytes());
    Ok(())
}
