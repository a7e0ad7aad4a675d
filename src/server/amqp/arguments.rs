//! Arguments of declares, bindings and consumers: which have an effect here, which are refused.
//!
//! Owns: the list of known argument names and the rule for all others: names that begin with `x-` ask for behaviour, so an unknown
//! one is refused by name; any other key is the client's own remark and is kept.
//! Promises: nothing is accepted without its effect. Does not know: what exists.

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

/// Checks the arguments of queue.declare; the type they ask for.
pub(super) fn queue(
    arguments: RawTable<'_>,
    flags: QueueFlags,
    place: Place<'_>,
) -> Result<QueueKind, Exception> {
    let mut kind = QueueKind::Classic;
    for (name, value) in arguments.iter() {
        match name {
            "x-queue-type" => kind = queue_type(value, place)?,
            _ => refuse_unknown(name, place)?,
        }
    }
    if kind == QueueKind::Quorum {
        quorum_flags(flags, place)?;
    }
    Ok(kind)
}

fn queue_type(value: Value<'_>, place: Place<'_>) -> Result<QueueKind, Exception> {
    match value.as_str() {
        Some("classic") => Ok(QueueKind::Classic),
        Some("quorum") => Ok(QueueKind::Quorum),
        Some("stream") => Err(precondition(format_args!(
            "invalid arg 'x-queue-type' for {place}: queue type 'stream' is not supported yet"
        ))),
        Some(other) => Err(precondition(format_args!(
            "invalid arg 'x-queue-type' for {place}: unsupported queue type '{other}'"
        ))),
        None => Err(precondition(format_args!(
            "invalid arg 'x-queue-type' for {place}: unacceptable type {}, expected longstr",
            value.type_name()
        ))),
    }
}

fn quorum_flags(flags: QueueFlags, place: Place<'_>) -> Result<(), Exception> {
    if flags.server_named {
        return Err(precondition("Cannot declare a server-named queue for type quorum"));
    }
    let wrong =
        [(!flags.durable, "non-durable"), (flags.exclusive, "exclusive"), (flags.auto_delete, "auto-delete")];
    match wrong.iter().find(|(is, _)| *is) {
        Some((_, property)) => Err(precondition(format_args!("invalid property '{property}' for {place}"))),
        None => Ok(()),
    }
}

/// Checks the arguments of exchange.declare.
pub(super) fn exchange(arguments: RawTable<'_>, place: Place<'_>) -> Result<(), Exception> {
    if arguments.get("alternate-exchange").is_some() {
        return Err(unsupported("alternate-exchange", place));
    }
    arguments.iter().try_for_each(|(name, _)| refuse_unknown(name, place))
}

/// Checks the arguments of a binding. `headers`: its source is a headers exchange, where keys are what to match.
pub(super) fn binding(arguments: RawTable<'_>, headers: bool, place: Place<'_>) -> Result<(), Exception> {
    if headers {
        return match arguments.get("x-match").map(|value| value.as_str()) {
            None | Some(Some("all" | "any" | "all-with-x" | "any-with-x")) => Ok(()),
            Some(Some(other)) => Err(precondition(format_args!(
                "Invalid x-match field value {other}; expected all, any, all-with-x, or any-with-x"
            ))),
            Some(None) => Err(precondition("Invalid x-match field type; expected longstr")),
        };
    }
    match arguments.get("x-start") {
        Some(_) => Err(unsupported("x-start", place)),
        // x-match and the like on other exchanges: RabbitMQ keeps and ignores them, and so do bindings' identities here.
        None => Ok(()),
    }
}

/// Checks the arguments of basic.consume.
pub(super) fn consume(arguments: RawTable<'_>, place: Place<'_>) -> Result<(), Exception> {
    arguments.iter().try_for_each(|(name, _)| refuse_unknown(name, place))
}

fn refuse_unknown(name: &str, place: Place<'_>) -> Result<(), Exception> {
    if name.starts_with("x-") { Err(unsupported(name, place)) } else { Ok(()) }
}

fn unsupported(name: &str, place: Place<'_>) -> Exception {
    precondition(format_args!("invalid arg '{name}' for {place}: this argument is not supported yet"))
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
            "PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'q' in vhost '/': unsupported queue type 'mirrored'"
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
        for name in ["x-message-ttl", "x-max-length", "x-anything"] {
            let arguments = table(name, "1");
            let refused = queue(arguments.as_table().unwrap(), DURABLE, PLACE).unwrap_err();
            assert_eq!(refused.code(), ReplyCode::PreconditionFailed);
            assert!(refused.text().contains(&format!("'{name}'")), "{}", refused.text());
        }
        let remark = table("owner", "team-a");
        assert_eq!(queue(remark.as_table().unwrap(), DURABLE, PLACE), Ok(QueueKind::Classic));
        assert!(exchange(table("alternate-exchange", "ae").as_table().unwrap(), PLACE).is_err());
        assert!(consume(table("x-priority", "5").as_table().unwrap(), PLACE).is_err());
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
