//! From what the core refuses to what an AMQP client reads.
//!
//! Owns: the one total match from [`Refusal`] to a reply code. Promises: no wildcard, so a new refusal does not compile before
//! somebody chose its code. Does not know: which method was refused.

use dassie_amqp::reply::{Exception, ReplyCode};

use crate::broker::api::Refusal;
use crate::security::Denied;

/// The exception a client gets for a refusal.
pub(super) fn exception(refusal: &Refusal) -> Exception {
    Exception::new(code(refusal), refusal)
}

/// The exception for a wish that the client has no right to.
pub(super) fn denied(denied: &Denied) -> Exception {
    Exception::new(ReplyCode::AccessRefused, denied)
}

fn code(refusal: &Refusal) -> ReplyCode {
    match refusal {
        Refusal::NotFound { .. } => ReplyCode::NotFound,
        Refusal::Inequivalent { .. }
        | Refusal::InUse { .. }
        | Refusal::NotEmpty { .. }
        | Refusal::Full { .. } => ReplyCode::PreconditionFailed,
        Refusal::Locked { .. } => ReplyCode::ResourceLocked,
        Refusal::InExclusiveUse { .. } | Refusal::Internal { .. } => ReplyCode::AccessRefused,
        Refusal::Invalid(_) => ReplyCode::NotAllowed,
        Refusal::Limit(_) => ReplyCode::ResourceError,
        Refusal::Busy(_) | Refusal::Damaged(_) => ReplyCode::InternalError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_in_rabbitmq() {
        let vhost = || "/".into();
        for (refusal, number, text) in [
            (
                Refusal::NotFound { kind: "queue", name: "x".into(), vhost: vhost() },
                404,
                "NOT_FOUND - no queue 'x' in vhost '/'",
            ),
            (
                Refusal::Inequivalent {
                    kind: "queue",
                    name: "x".into(),
                    vhost: vhost(),
                    argument: "durable".into(),
                    received: "'false'".into(),
                    current: "'true'".into(),
                },
                406,
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x' in vhost '/': received 'false' but \
                 current is 'true'",
            ),
            (
                Refusal::InExclusiveUse { name: "x".into(), vhost: vhost() },
                403,
                "ACCESS_REFUSED - queue 'x' in vhost '/' in exclusive use",
            ),
        ] {
            let exception = exception(&refusal);
            assert_eq!((exception.code().number(), exception.text()), (number, text));
        }
    }
}
