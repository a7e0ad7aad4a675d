//! Settings of consumer groups (codes 200, 201, 207, 225, 352).
//!
//! Owns: which settings have an effect here, and their place among the topology's settings. Promises: a setting without effect is
//! refused by its name; one that is answered is durable. A group without settings has Apache's defaults.
//! Does not know: members, offsets.

use std::collections::BTreeMap;

use dassie_rocketmq::body::{
    DataVersion, GroupConfig, GroupConfigs, GroupTable, RetryPolicy, from_json, to_json,
};
use dassie_rocketmq::header::{ByGroup, DeleteGroup};
use dassie_rocketmq::message::check_group;
use dassie_rocketmq::{Command, ResponseCode};

use super::clients;
use super::refuse::{Refused, name_refused, refused};
use super::session::{Asked, Session, Wait};
use crate::broker::api::Op;
use crate::broker::topology::Topology;
use crate::security::{Action, Resource, authorize};

/// Whose names they are.
const SPACE: &str = "rocketmq.group";

/// A group's settings; its defaults when it has none of its own.
pub(super) fn config(topology: &Topology, group: &str) -> GroupConfig {
    own_config(topology, group)
        .unwrap_or_else(|| GroupConfig { group_name: group.to_owned(), ..GroupConfig::default() })
}

/// Retries after which a message of the group is dead: as the client says, else as the group is set.
pub(super) fn retries_max(topology: &Topology, group: &str, said: Option<i32>) -> i32 {
    said.filter(|times| *times >= 0).unwrap_or_else(|| config(topology, group).retry_max_times.max(0))
}

fn own_config(topology: &Topology, group: &str) -> Option<GroupConfig> {
    // Most brokers have none: a pull does not pay for looking then.
    if topology.setting_count() == 0 {
        return None;
    }
    topology.setting(SPACE, group).and_then(|value| from_json(value).ok())
}

/// May the group pull at all, and in the manner in which it does?
pub(super) fn check_pull(session: &Session, group: &str) -> Result<(), Refused> {
    if check_group(group).is_err() {
        let text = format!(
            "subscription group [{group}] does not exist, \nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
        );
        return Err(refused(ResponseCode::SubscriptionGroupNotExist, text));
    }
    let Some(config) = own_config(&session.topology, group) else { return Ok(()) };
    if !config.consume_enable {
        let text = format!("subscription group no permission, {group}");
        return Err(refused(ResponseCode::NoPermission, text));
    }
    if !config.consume_broadcast_enable && session.front.groups.broadcasts(group) {
        let text = format!("the consumer group[{group}] can not consume by broadcast way");
        return Err(refused(ResponseCode::NoPermission, text));
    }
    Ok(())
}

/// UPDATE_AND_CREATE_SUBSCRIPTIONGROUP.
pub(super) fn on_put(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let config: GroupConfig = from_json(command.body)?;
    judge(&config)?;
    put(session, &config, asked, Wait::Done)
}

/// UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: all of them are judged before the first is kept.
pub(super) fn on_put_all(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let GroupConfigs { group_config_list } = from_json(command.body)?;
    for config in &group_config_list {
        judge(config)?;
        authorize(&session.principal, Action::Configure, Resource::Group(&config.group_name))?;
    }
    if group_config_list.is_empty() {
        return Err(refused(ResponseCode::InvalidParameter, "the list of groups is empty"));
    }
    let join = clients::wait_for(session, asked, group_config_list.len());
    for config in &group_config_list {
        put(session, config, asked, Wait::Join(join))?;
    }
    Ok(())
}

fn put(session: &mut Session, config: &GroupConfig, asked: Asked, wait: Wait) -> Result<(), Refused> {
    let (group, value) = (&config.group_name, to_json(config).into());
    let op = Op::PutSetting { space: SPACE.into(), name: group.as_str().into(), value: Some(value) };
    session.ask(Action::Configure, Resource::Group(group), op, asked, wait)?;
    Ok(())
}

fn judge(config: &GroupConfig) -> Result<(), Refused> {
    let group = &config.group_name;
    check_group(group).map_err(|error| name_refused("group", group, error))?;
    let defaults = GroupConfig::default();
    let without_effect = [
        ("consumeMessageOrderly", config.consume_message_orderly),
        ("retryQueueNums", config.retry_queue_nums != defaults.retry_queue_nums),
        ("groupRetryPolicy", config.group_retry_policy != RetryPolicy::default()),
        (
            "notifyConsumerIdsChangedEnable",
            config.notify_consumer_ids_changed_enable != defaults.notify_consumer_ids_changed_enable,
        ),
        ("brokerId", config.broker_id != defaults.broker_id),
        ("groupSysFlag", config.group_sys_flag != defaults.group_sys_flag),
        ("attributes", !config.attributes.is_empty()),
    ];
    match without_effect.into_iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((name, _)) => {
            let text =
                format!("group[{group}]: {name} other than the default is not supported by this broker yet");
            Err(refused(ResponseCode::InvalidParameter, text))
        }
    }
}

/// GET_ALL_SUBSCRIPTIONGROUP_CONFIG: groups with settings of their own, and those with members.
pub(super) fn on_all(session: &mut Session, asked: Asked) -> Result<(), Refused> {
    let topology = &session.topology;
    let own = topology.settings(SPACE).map(|(group, _)| group.to_string());
    let names: std::collections::BTreeSet<String> = own.chain(session.front.groups.names()).collect();
    let subscription_group_table: BTreeMap<String, GroupConfig> =
        names.into_iter().map(|group| (group.clone(), config(topology, &group))).collect();
    let counter = i64::try_from(topology.version).unwrap_or(i64::MAX);
    let data_version = DataVersion { counter, ..DataVersion::default() };
    let table = GroupTable { subscription_group_table, data_version };
    session.answer(asked, &(), &to_json(&table));
    Ok(())
}

/// GET_SUBSCRIPTIONGROUP_CONFIG: a group that nobody made has the defaults, as it would have with its first member.
pub(super) fn on_one(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let ByGroup { group } = command.header()?;
    authorize(&session.principal, Action::Read, Resource::Group(group))?;
    check_group(group).map_err(|error| name_refused("group", group, error))?;
    session.answer(asked, &(), &to_json(&config(&session.topology, group)));
    Ok(())
}

/// DELETE_SUBSCRIPTIONGROUP.
pub(super) fn on_delete(session: &mut Session, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
    let DeleteGroup { group_name: group, clean_offset } = command.header()?;
    let drop = Op::PutSetting { space: SPACE.into(), name: group.into(), value: None };
    if clean_offset == Some(true) {
        session.tell(Action::Configure, Resource::Group(group), drop)?;
        let forget = Op::ForgetOffsets { group: group.into() };
        session.ask(Action::Configure, Resource::Group(group), forget, asked, Wait::Done)?;
    } else {
        session.ask(Action::Configure, Resource::Group(group), drop, asked, Wait::Done)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_effect_is_refused_by_name() {
        let config = GroupConfig { group_name: "G".into(), ..GroupConfig::default() };
        assert_eq!(judge(&config), Ok(()));
        assert_eq!(
            judge(&GroupConfig { consume_enable: false, retry_max_times: 3, ..config.clone() }),
            Ok(())
        );
        let refused = |config| judge(&config).unwrap_err().remark;
        assert!(refused(GroupConfig { consume_message_orderly: true, ..config.clone() }).contains("Orderly"));
        assert!(refused(GroupConfig { retry_queue_nums: 2, ..config.clone() }).contains("retryQueueNums"));
        assert!(refused(GroupConfig { group_name: "a b".into(), ..config }).contains("illegal characters"));
    }
}
