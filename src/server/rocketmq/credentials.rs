//! Who a request speaks as: a user that signed it, as Apache's ACL does, or the one for requests without credentials.
//!
//! Owns: which bytes a signature covers. Promises: where users sign, a request with an access key is that user's or nobody's; one without speaks as
//! `rocketmq.anonymous_user`, whatever came before it on the connection.
//! Does not know: what a user may do.

use dassie_rocketmq::code::version;
use dassie_rocketmq::{Command, ResponseCode};

use super::refuse::{Refused, refused};
use super::session::Session;
use crate::security::LoginRefused;

const ACCESS_KEY: &str = "AccessKey";
const SIGNATURE: &str = "Signature";
/// What clients up to 4.9.3 added behind the signature.
const UNSIGNED: &str = "_UNIQUE_KEY_QUERY";

/// Makes the session speak as whoever this request is from.
pub(super) fn check(session: &mut Session, command: &Command<'_>) -> Result<(), Refused> {
    // The C++ client sends both fields blank when it was given none. Where nobody has a secret, signatures are not looked at, as with
    // Apache's ACL switched off: some clients always sign.
    let signer = command.ext.get_nonblank(ACCESS_KEY).filter(|_| session.front.realm.has_signers());
    let Some(name) = signer else {
        session.speak_as(None);
        return Ok(());
    };
    let signature = command.ext.get_nonblank(SIGNATURE).unwrap_or_default();
    let old = command.head.version <= version::V4_9_3;
    let mut fields: Vec<(&str, &str)> =
        command.ext.iter().filter(|(name, _)| *name != SIGNATURE && !(old && *name == UNSIGNED)).collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    let parts = fields.iter().map(|(_, value)| value.as_bytes()).chain([command.body]);
    let realm = &session.front.realm;
    if let Err(error) = realm.check_signature(name, parts, signature, session.peer.ip()) {
        let hint = match error {
            LoginRefused::NotLocal => "it may only come from this machine",
            _ => "no such user, no rocketmq_secret, or another one",
        };
        tracing::warn!(
            "a RocketMQ request of {} with access key '{}' is refused: {hint}",
            session.peer,
            name.escape_debug().take(64).collect::<String>()
        );
        return Err(refused(ResponseCode::NoPermission, "Check signature failed for accessKey"));
    }
    session.speak_as(Some(name));
    Ok(())
}
