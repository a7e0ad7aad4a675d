//! The properties of a published message: what the broker looks at, and what it refuses.
//!
//! Owns: the checks at the moment the content header arrives, before a byte of the body is kept.
//! Promises: a property whose effect is missing is refused by name; everything else passes through untouched.
//! Does not know: frames, routing.

use dassie_amqp::content::ContentHeader;
use dassie_amqp::reply::{Exception, ReplyCode};

use super::arguments::precondition;
use crate::limits;

/// What the broker needs to know of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checked {
    /// Delivery mode 2.
    pub(super) persistent: bool,
    /// Bytes of the body.
    pub(super) body_len: u32,
}

/// Checks the header of a message that `user` publishes.
pub(super) fn check(header: &ContentHeader<'_>, user: &str) -> Result<Checked, Exception> {
    let body_len =
        u32::try_from(header.body_size).ok().filter(|size| u64::from(*size) <= limits::MESSAGE_MAX);
    let Some(body_len) = body_len else {
        return Err(precondition(format_args!(
            "message size {} is larger than configured max size {}",
            header.body_size,
            limits::MESSAGE_MAX
        )));
    };
    let properties = &header.properties;
    if properties.expiration().is_some() {
        return Err(unsupported("property 'expiration'"));
    }
    if let Some(claimed) = properties.user_id()
        && claimed != user.as_bytes()
    {
        return Err(precondition(format_args!(
            "user_id property set to '{}' but authenticated user was '{user}'",
            String::from_utf8_lossy(claimed)
        )));
    }
    if properties.reply_to() == Some(b"amq.rabbitmq.reply-to") {
        return Err(precondition("fast reply consumer does not exist"));
    }
    if let Some(headers) = properties.headers()
        && let Some((name, _)) = headers.iter().find(|(name, _)| matches!(*name, "CC" | "BCC"))
    {
        return Err(unsupported(&format!("header '{name}'")));
    }
    let persistent = match properties.delivery_mode() {
        None | Some(1) => false,
        Some(2) => true,
        Some(other) => {
            return Err(precondition(format_args!("invalid delivery_mode {other}: 1 or 2 expected")));
        }
    };
    Ok(Checked { persistent, body_len })
}

fn unsupported(what: &str) -> Exception {
    Exception::new(ReplyCode::PreconditionFailed, format_args!("{what} is not supported yet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::content::{Properties, PropertyList};
    use dassie_amqp::table::TableBuilder;

    fn checked(list: &PropertyList<'_>, body_size: u64) -> Result<Checked, u16> {
        let mut block = Vec::new();
        list.encode(&mut block);
        let header =
            ContentHeader { class_id: 60, body_size, properties: Properties::parse(&block).unwrap() };
        check(&header, "guest").map_err(|exception| exception.code().number())
    }

    #[test]
    fn delivery_mode_is_one_or_two() {
        let mode = |mode| PropertyList { delivery_mode: mode, ..PropertyList::default() };
        assert_eq!(checked(&mode(None), 5), Ok(Checked { persistent: false, body_len: 5 }));
        assert_eq!(checked(&mode(Some(2)), 5), Ok(Checked { persistent: true, body_len: 5 }));
        assert_eq!(checked(&mode(Some(7)), 5), Err(406));
    }

    #[test]
    fn a_body_larger_than_the_limit_is_refused_at_its_header() {
        let none = PropertyList::default();
        assert!(checked(&none, limits::MESSAGE_MAX).is_ok());
        assert_eq!(checked(&none, limits::MESSAGE_MAX + 1), Err(406));
        assert_eq!(checked(&none, u64::MAX), Err(406));
    }

    #[test]
    fn properties_without_effect_are_refused() {
        let mut cc = TableBuilder::new();
        cc.put_array("CC", |keys| {
            keys.push("other");
        });
        for list in [
            PropertyList { expiration: Some(b"1000"), ..PropertyList::default() },
            PropertyList { headers: Some(cc.as_table().unwrap()), ..PropertyList::default() },
            PropertyList { user_id: Some(b"mallory"), ..PropertyList::default() },
        ] {
            assert_eq!(checked(&list, 0), Err(406));
        }
        let own = PropertyList { user_id: Some(b"guest"), priority: Some(3), ..PropertyList::default() };
        assert!(checked(&own, 0).is_ok());
    }
}
