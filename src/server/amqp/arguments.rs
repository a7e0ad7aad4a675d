//! Arguments of declares, bindings and consumers: which have an effect here, which are refused.
//!
//! Owns: the list of the names that mean something to RabbitMQ, and which values they may have. Any other key is the client's own
//! remark and is kept, as there.
//! Promises: the texts of RabbitMQ for wrong values (it prints Erlang terms); nothing that has a meaning is accepted without its
//! effect: a right value whose effect is not there yet is refused by name. Does not know: what exists.

use dassie_amqp::reply::{Exception, ReplyCode};
use dassie_amqp::table::{RawTable, Value};

use crate::broker::api::QueueKind;

/// Where an argument stands, for the text of a refusal: "queue 'q' in vhost '/'".
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// "queue" or "exchange".
    pub(super) kind: &'static str,
    /// Its name.
    pub(super) name: &'a str,
    /// Its vhost.
    pub(super) vhost: &'a str,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} '{}' in vhost '{}'", self.kind, self.name, self.vhost)
    }
}

/// A 406 with RabbitMQ's name for it.
pub(super) fn precondition(explanation: impl std::fmt::Display) -> Exception {
    Exception::new(ReplyCode::PreconditionFailed, explanation)
}

/// What the properties of a queue.declare must be for its type.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueFlags {
    /// As sent.
    pub(super) durable: bool,
    /// As sent.
    pub(super) exclusive: bool,
    /// As sent.
    pub(super) auto_delete: bool,
    /// The name was empty.
    pub(super) server_named: bool,
}

/// Longest time, ms: RabbitMQ's ten years.
const TIME_MAX: i64 = 315_360_000_000;

/// Which values an argument may have; a wrong one is described as RabbitMQ prints it.
type Check = fn(Value<'_>, RawTable<'_>) -> Result<(), String>;

/// The arguments of queues, in the order in which RabbitMQ looks at them: name, whether classic and quorum queues have it, check.
const QUEUE_ARGUMENTS: [(&str, bool, bool, Check); 20] = [
    ("x-expires", true, true, |value, _| expiry(value)),
    ("x-message-ttl", true, true, |value, _| time_to_live(value)),
    ("x-dead-letter-exchange", true, true, |value, _| text(value)),
    ("x-dead-letter-routing-key", true, true, |value, all| {
        text(value)?;
        match all.get("x-dead-letter-exchange") {
            Some(_) => Ok(()),
            None => Err("routing_key_but_no_dlx_defined".to_owned()),
        }
    }),
    ("x-dead-letter-strategy", false, true, |value, _| {
        one_of(value, &["at-most-once", "at-least-once"], || "invalid_dlx_strategy".to_owned())
    }),
    ("x-max-length", true, true, |value, _| count(value).map(drop)),
    ("x-max-length-bytes", true, true, |value, _| count(value).map(drop)),
    ("x-max-in-memory-length", false, true, |value, _| count(value).map(drop)),
    ("x-max-in-memory-bytes", false, true, |value, _| count(value).map(drop)),
    ("x-max-priority", true, false, |value, _| match count(value)? {
        0..=255 => Ok(()),
        above => Err(format!("{{max_value_exceeded,{above}}}")),
    }),
    ("x-overflow", true, true, |value, _| {
        one_of(value, &["drop-head", "reject-publish", "reject-publish-dlx"], || {
            "invalid_overflow".to_owned()
        })
    }),
    ("x-queue-mode", true, false, |value, _| {
        one_of(value, &["default", "lazy"], || format!("\"unsupported queue mode '{value}'\""))
    }),
    ("x-queue-version", true, false, |value, _| match count(value)? {
        1 | 2 => Ok(()),
        other => Err(format!("\"unsupported queue version '{other}'\"")),
    }),
    ("x-single-active-consumer", true, true, |value, _| flag(value)),
    ("x-quorum-initial-group-size", false, true, |value, _| above_zero(value).map(drop)),
    ("x-delivery-limit", false, true, |value, _| count(value).map(drop)),
    ("x-max-age", false, false, |_, _| Ok(())),
    ("x-stream-max-segment-size-bytes", false, false, |_, _| Ok(())),
    ("x-initial-cluster-size", false, false, |_, _| Ok(())),
    ("x-queue-leader-locator", false, true, |value, _| {
        one_of(value, &["client-local", "random", "least-leaders", "balanced"], || {
            "invalid_queue_locator_arg".to_owned()
        })
    }),
];

/// Those that have their effect here; all queues that differ in them are different.
pub(in crate::server) const QUEUE_EFFECTS: [&str; 9] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-single-active-consumer",
];

/// Names that mean something to releases after 3.10 or outside of its checks.
const NEWER_ARGUMENTS: [&str; 8] = [
    "x-queue-master-locator",
    "x-consumer-timeout",
    "x-consumer-disconnected-timeout",
    "x-delayed-retry-type",
    "x-delayed-retry-min",
    "x-delayed-retry-max",
    "x-stream-filter-size-bytes",
    "x-name-prefix",
];

/// Checks the arguments of queue.declare; the type they ask for.
pub(super) fn queue(
    arguments: RawTable<'_>,
    flags: QueueFlags,
    place: Place<'_>,
) -> Result<QueueKind, Exception> {
    let kind =
        arguments.get("x-queue-type").map_or(Ok(QueueKind::Classic), |value| queue_type(value, place))?;
    let module = if kind == QueueKind::Quorum { "rabbit_quorum_queue" } else { "rabbit_classic_queue" };
    let asked = || QUEUE_ARGUMENTS.iter().filter_map(|known| Some((known, arguments.get(known.0)?)));
    for ((name, classic, quorum, _), _) in asked() {
        if !(if kind == QueueKind::Quorum { *quorum } else { *classic }) {
            return Err(precondition(format_args!(
                "invalid arg '{name}' for {place} of queue type {module}"
            )));
        }
    }
    for ((name, _, _, check), value) in asked() {
        // The one check that RabbitMQ makes elsewhere, in other words.
        if *name == "x-dead-letter-exchange" {
            exchange_name(name, value, "in", place)?;
        }
        check(value, arguments).map_err(|why| invalid(name, place, why))?;
    }
    if kind == QueueKind::Quorum {
        quorum_flags(flags, place)?;
    }
    let mut without = asked().filter(|((name, ..), _)| !QUEUE_EFFECTS.contains(name));
    if let Some(((name, ..), _)) = without.next() {
        return Err(unsupported(name, place));
    }
    refuse(arguments, &NEWER_ARGUMENTS, place)?;
    Ok(kind)
}

fn queue_type(value: Value<'_>, place: Place<'_>) -> Result<QueueKind, Exception> {
    let refused = |why: String| invalid("x-queue-type", place, why);
    match value.as_str() {
        Some("classic") => Ok(QueueKind::Classic),
        Some("quorum") => Ok(QueueKind::Quorum),
        Some("stream") => Err(refused("queue type 'stream' is not supported yet".to_owned())),
        Some(other) => Err(refused(format!("\"unsupported queue type '{other}'\""))),
        None => Err(refused(unacceptable(value))),
    }
}

fn quorum_flags(flags: QueueFlags, place: Place<'_>) -> Result<(), Exception> {
    if flags.server_named {
        return Err(precondition("Cannot declare a server-named queue for type quorum"));
    }
    let wrong = [
        (!flags.durable, "non-durable"),
        (flags.exclusive, "exclusive-owner"),
        (flags.auto_delete, "auto-delete"),
    ];
    match wrong.iter().find(|(is, _)| *is) {
        Some((_, property)) => Err(precondition(format_args!("invalid property '{property}' for {place}"))),
        None => Ok(()),
    }
}

fn unacceptable(value: Value<'_>) -> String {
    format!("{{unacceptable_type,{}}}", value.type_name())
}

fn integer(value: Value<'_>) -> Result<i64, String> {
    value.as_integer().ok_or_else(|| format!("\"expected integer, got {}\"", value.type_name()))
}

fn count(value: Value<'_>) -> Result<i64, String> {
    match integer(value)? {
        negative @ ..0 => Err(format!("{{value_negative,{negative}}}")),
        count => Ok(count),
    }
}

fn above_zero(value: Value<'_>) -> Result<i64, String> {
    match count(value)? {
        0 => Err("{value_zero,0}".to_owned()),
        count => Ok(count),
    }
}

fn time_to_live(value: Value<'_>) -> Result<(), String> {
    match count(value)? {
        ..=TIME_MAX => Ok(()),
        above => Err(format!("{{value_too_large,{above}}}")),
    }
}

fn expiry(value: Value<'_>) -> Result<(), String> {
    above_zero(value)?;
    time_to_live(value)
}

fn text(value: Value<'_>) -> Result<(), String> {
    if matches!(value, Value::LongStr(_)) { Ok(()) } else { Err(unacceptable(value)) }
}

fn flag(value: Value<'_>) -> Result<(), String> {
    if matches!(value, Value::Bool(_)) { Ok(()) } else { Err(unacceptable(value)) }
}

fn one_of(value: Value<'_>, right: &[&str], wrong: impl FnOnce() -> String) -> Result<(), String> {
    text(value)?;
    if value.as_str().is_some_and(|given| right.contains(&given)) { Ok(()) } else { Err(wrong()) }
}

/// An argument that names an exchange. `joint`: "in" or "for".
fn exchange_name(name: &str, value: Value<'_>, joint: &str, place: Place<'_>) -> Result<(), Exception> {
    if matches!(value, Value::LongStr(_)) {
        return Ok(());
    }
    let kind = value.type_name();
    Err(precondition(format_args!("invalid type '{kind}' for arg '{name}' {joint} {place}")))
}

/// Do a queue's arguments ask for a single active consumer?
pub(in crate::server) fn is_single_active(arguments: &[u8]) -> bool {
    let arguments = RawTable::parse(arguments);
    arguments.is_ok_and(|arguments| arguments.get("x-single-active-consumer") == Some(Value::Bool(true)))
}

/// Checks the arguments of exchange.declare.
pub(super) fn exchange(arguments: RawTable<'_>, place: Place<'_>) -> Result<(), Exception> {
    match arguments.get("alternate-exchange") {
        Some(value) => exchange_name("alternate-exchange", value, "in", place),
        None => Ok(()),
    }
}

/// Checks the arguments of a binding. `headers`: its source is a headers exchange, where keys are what to match.
pub(super) fn binding(arguments: RawTable<'_>, headers: bool, place: Place<'_>) -> Result<(), Exception> {
    if headers {
        let Some(value) = arguments.get("x-match") else { return Ok(()) };
        return match value.as_str() {
            Some("all" | "any" | "all-with-x" | "any-with-x") => Ok(()),
            Some(other) => Err(precondition(format_args!(
                "Invalid x-match field value <<\"{other}\">>; expected all, any, all-with-x, or any-with-x"
            ))),
            None => Err(precondition(format_args!(
                "Invalid x-match field type {} (value {value}); expected longstr",
                value.type_name()
            ))),
        };
    }
    // x-match and the like on other exchanges: RabbitMQ keeps and ignores them, and so do bindings' identities here.
    refuse(arguments, &["x-start"], place)
}

/// Checks the arguments of basic.consume; the consumer's priority.
pub(super) fn consume(arguments: RawTable<'_>, place: Place<'_>) -> Result<i64, Exception> {
    let refused = |name: &str, why: Result<(), String>| match why {
        Err(why) => Err(invalid(name, place, why)),
        Ok(()) => Err(unsupported(name, place)),
    };
    let priority = match arguments.get("x-priority") {
        Some(value) => integer(value).map_err(|why| invalid("x-priority", place, why))?,
        None => 0,
    };
    if let Some(value) = arguments.get("x-cancel-on-ha-failover") {
        refused("x-cancel-on-ha-failover", flag(value))?;
    }
    refuse(arguments, &["x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered"], place)?;
    Ok(priority)
}

/// Refuses arguments that have no effect yet.
fn refuse(arguments: RawTable<'_>, names: &[&str], place: Place<'_>) -> Result<(), Exception> {
    match names.iter().find(|name| arguments.get(name).is_some()) {
        Some(name) => Err(unsupported(name, place)),
        None => Ok(()),
    }
}

fn invalid(name: &str, place: Place<'_>, why: impl std::fmt::Display) -> Exception {
    precondition(format_args!("invalid arg '{name}' for {place}: {why}"))
}

fn unsupported(name: &str, place: Place<'_>) -> Exception {
    invalid(name, place, "this argument is not supported yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::table::TableBuilder;

    const PLACE: Place<'static> = Place { kind: "queue", name: "q", vhost: "/" };
    const DURABLE: QueueFlags =
        QueueFlags { durable: true, exclusive: false, auto_delete: false, server_named: false };

    fn table(key: &str, value: &str) -> TableBuilder {
        let mut table = TableBuilder::new();
        table.put(key, value);
        table
    }

    #[test]
    fn the_queue_type_is_classic_or_quorum() {
        assert_eq!(queue(RawTable::EMPTY, DURABLE, PLACE), Ok(QueueKind::Classic));
        let quorum = table("x-queue-type", "quorum");
        assert_eq!(queue(quorum.as_table().unwrap(), DURABLE, PLACE), Ok(QueueKind::Quorum));
        let odd = table("x-queue-type", "mirrored");
        let text = queue(odd.as_table().unwrap(), DURABLE, PLACE).unwrap_err();
        assert_eq!(
            text.text(),
            "PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'q' in vhost '/': \"unsupported queue type 'mirrored'\""
        );
    }

    #[test]
    fn a_quorum_queue_is_durable_shared_lasting_and_named() {
        let quorum = table("x-queue-type", "quorum");
        for flags in [
            QueueFlags { durable: false, ..DURABLE },
            QueueFlags { exclusive: true, ..DURABLE },
            QueueFlags { auto_delete: true, ..DURABLE },
            QueueFlags { server_named: true, ..DURABLE },
        ] {
            let refused = queue(quorum.as_table().unwrap(), flags, PLACE).unwrap_err();
            assert_eq!(refused.code(), ReplyCode::PreconditionFailed);
        }
    }

    #[test]
    fn an_argument_without_effect_is_refused_by_name_and_a_remark_is_kept() {
        let mut arguments = TableBuilder::new();
        arguments.put("x-delivery-limit", 5).put("x-queue-type", "quorum").put("owner", "team-a");
        let refused = queue(arguments.as_table().unwrap(), DURABLE, PLACE).unwrap_err();
        assert_eq!(refused.code(), ReplyCode::PreconditionFailed);
        assert!(refused.text().contains("'x-delivery-limit'"), "{}", refused.text());
        for overflow in ["drop-head", "reject-publish", "reject-publish-dlx"] {
            assert!(queue(table("x-overflow", overflow).as_table().unwrap(), DURABLE, PLACE).is_ok());
        }
        let effects =
            [("x-message-ttl", 0), ("x-message-ttl", 60_000), ("x-expires", 1), ("x-max-length", 0)];
        for (name, value) in effects {
            let mut arguments = TableBuilder::new();
            arguments.put(name, value);
            assert_eq!(queue(arguments.as_table().unwrap(), DURABLE, PLACE), Ok(QueueKind::Classic));
        }
        assert!(
            queue(table("x-queue-master-locator", "min-masters").as_table().unwrap(), DURABLE, PLACE)
                .is_err()
        );
        for remark in ["owner", "x-owner"] {
            let remark = table(remark, "team-a");
            let remark = remark.as_table().unwrap();
            assert_eq!(queue(remark, DURABLE, PLACE), Ok(QueueKind::Classic));
            assert_eq!((exchange(remark, PLACE), consume(remark, PLACE)), (Ok(()), Ok(0)));
        }
        assert_eq!(exchange(table("alternate-exchange", "ae").as_table().unwrap(), PLACE), Ok(()));
        let mut priority = TableBuilder::new();
        priority.put("x-priority", 5);
        assert_eq!(consume(priority.as_table().unwrap(), PLACE), Ok(5));
        let mut failover = TableBuilder::new();
        failover.put("x-cancel-on-ha-failover", true);
        assert!(
            consume(failover.as_table().unwrap(), PLACE).unwrap_err().text().ends_with("not supported yet")
        );
    }

    #[test]
    fn a_wrong_value_is_described_as_rabbitmq_prints_it() {
        let wrong = |name: &str, value: Value<'_>| {
            let mut arguments = TableBuilder::new();
            arguments.put(name, value);
            let refused = queue(arguments.as_table().unwrap(), DURABLE, PLACE).unwrap_err();
            let prefix = format!("PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/'");
            refused.text().strip_prefix(&prefix).unwrap_or_else(|| panic!("{}", refused.text())).to_owned()
        };
        for (name, value, why) in [
            ("x-message-ttl", Value::from("60000"), ": \"expected integer, got longstr\""),
            ("x-message-ttl", Value::from(-1), ": {value_negative,-1}"),
            ("x-expires", Value::from(0), ": {value_zero,0}"),
            ("x-expires", Value::from(TIME_MAX + 1), ": {value_too_large,315360000001}"),
            ("x-max-priority", Value::from(256), ": {max_value_exceeded,256}"),
            ("x-overflow", Value::from("none"), ": invalid_overflow"),
            ("x-single-active-consumer", Value::from("yes"), ": {unacceptable_type,longstr}"),
            ("x-dead-letter-routing-key", Value::from("k"), ": routing_key_but_no_dlx_defined"),
            ("x-delivery-limit", Value::from(1), " of queue type rabbit_classic_queue"),
        ] {
            assert_eq!(wrong(name, value), why);
        }
    }

    #[test]
    fn x_match_has_four_values() {
        for value in ["all", "any", "all-with-x", "any-with-x"] {
            assert_eq!(binding(table("x-match", value).as_table().unwrap(), true, PLACE), Ok(()));
        }
        assert!(binding(table("x-match", "some").as_table().unwrap(), true, PLACE).is_err());
        assert_eq!(binding(table("x-match", "some").as_table().unwrap(), false, PLACE), Ok(()));
    }
}
