//! Requests that are not granted.
//!
//! Owns: which code says what, and the names of what this broker does not do yet.
//! Promises: one total match over the core's refusals; a text says what was asked.
//! Does not know: how an answer is written.

use dassie_rocketmq::body::BodyError;
use dassie_rocketmq::header::HeaderError;
use dassie_rocketmq::message::NameError;
use dassie_rocketmq::{RequestCode, ResponseCode};

use super::codes::why_not;
use crate::broker::api::Refusal;
use crate::security::Denied;

/// An answer that is no success: code and remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: ResponseCode,
    pub(super) remark: String,
}

/// Shorthand.
pub(super) fn refused(code: ResponseCode, remark: impl Into<String>) -> Refused {
    Refused { code, remark: remark.into() }
}

/// A request code that is not served. Clients and tools look for this wording.
pub(super) fn unsupported(code: i32) -> Refused {
    let mut text = format!(" request type {code} not supported");
    if let Some(known) = RequestCode::from_code(code) {
        let why = why_not(known).unwrap_or("it is not served here");
        text.push_str(&format!(": {}: {why}", known.name()));
    }
    refused(ResponseCode::RequestCodeNotSupported, text)
}

/// A name that no topic or group may have, in Apache's words. `kind`: topic or group.
pub(super) fn name_refused(kind: &str, name: &str, error: NameError) -> Refused {
    let text = match error {
        NameError::Blank => format!("The specified {kind} is blank."),
        NameError::IllegalCharacter => format!(
            "The specified {kind}: {name}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
        ),
        NameError::TooLong { .. } => {
            format!("The specified {kind}: {name}, is longer than {kind} max length.")
        }
    };
    refused(ResponseCode::InvalidParameter, text)
}

/// A message asks for something that is not done yet: nothing is stored. The code is one that no producer retries.
pub(super) fn missing(what: &str) -> Refused {
    refused(
        ResponseCode::MessageIllegal,
        format!("{what} is not supported by this broker yet; the message was not stored"),
    )
}

impl From<HeaderError> for Refused {
    fn from(error: HeaderError) -> Self {
        refused(ResponseCode::SystemError, error.to_string())
    }
}

impl From<BodyError> for Refused {
    fn from(error: BodyError) -> Self {
        refused(ResponseCode::SystemError, error.to_string())
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        refused(ResponseCode::NoPermission, denied.to_string())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NotFound { kind: "topic", name, .. } => {
                return refused(ResponseCode::TopicNotExist, format!("topic[{name}] not exist"));
            }
            Refusal::NotFound { .. } => ResponseCode::QueryNotFound,
            Refusal::Invalid(_) => ResponseCode::InvalidParameter,
            Refusal::Limit(_) | Refusal::Busy(_) => ResponseCode::SystemBusy,
            Refusal::Inequivalent { .. }
            | Refusal::Locked { .. }
            | Refusal::InExclusiveUse { .. }
            | Refusal::InUse { .. }
            | Refusal::NotEmpty { .. }
            | Refusal::Full { .. }
            | Refusal::Damaged(_)
            | Refusal::Internal { .. } => ResponseCode::SystemError,
        };
        refused(code, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_refused_in_apaches_words() {
        assert_eq!(unsupported(9_999).remark, " request type 9999 not supported");
        let known = " request type 316 not supported: CLEAN_UNUSED_TOPIC: what is expired goes by itself";
        assert!(unsupported(316).remark.starts_with(known));
    }

    #[test]
    fn a_missing_topic_makes_producers_look_for_a_route_and_a_full_shard_makes_them_wait() {
        let missing = Refusal::NotFound { kind: "topic", name: "T".into(), vhost: "/".into() };
        assert_eq!(Refused::from(missing).code, ResponseCode::TopicNotExist);
        assert_eq!(Refused::from(Refusal::Busy("later".into())).code, ResponseCode::SystemBusy);
    }
}
