//! The properties of a published message: what the broker looks at, and what it refuses.
//!
//! Owns: the checks at the moment the content header arrives, before a byte of the body is kept.
//! Promises: everything passes through untouched but a BCC header, which goes, and the pseudo-queue of direct replies as reply-to.
//! Does not know: frames, routing.

use std::sync::Arc;

use dassie_amqp::content::{ContentHeader, Properties};
use dassie_amqp::reply::{Exception, ReplyCode};
use dassie_amqp::table::{TableBuilder, Value};

use super::arguments::precondition;
use crate::broker::api::REPLY_QUEUE;
use crate::limits;
use crate::security::Principal;

/// Longest time to live, ms: RabbitMQ's ten years.
const EXPIRATION_MAX: u64 = 315_360_000_000;

/// What the broker needs to know of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checked {
    /// Delivery mode 2.
    pub(super) persistent: bool,
    /// ms.
    pub(super) ttl: Option<u64>,
    /// Bytes of the body.
    pub(super) body_len: u32,
}

/// Checks the header of a message that `principal` publishes.
pub(super) fn check(header: &ContentHeader<'_>, principal: &Principal) -> Result<Checked, Exception> {
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
    let ttl = properties.expiration().map(expiration).transpose()?;
    if let Some(claimed) = properties.user_id()
        && claimed != principal.name.as_bytes()
        && !principal.may_impersonate()
    {
        let user = &principal.name;
        return Err(precondition(format_args!(
            "user_id property set to '{}' but authenticated user was '{user}'",
            String::from_utf8_lossy(claimed)
        )));
    }
    let persistent = match properties.delivery_mode() {
        None | Some(1) => false,
        Some(2) => true,
        Some(other) => {
            return Err(precondition(format_args!("invalid message: {{delivery_mode_unknown,{other}}}")));
        }
    };
    Ok(Checked { persistent, ttl, body_len })
}

/// The property `expiration`: a decimal number of ms, at most ten years, with a sign if its author likes. Texts as RabbitMQ
/// prints its Erlang terms.
fn expiration(text: &[u8]) -> Result<u64, Exception> {
    let text = String::from_utf8_lossy(text);
    let invalid = |why: String| precondition(format_args!("invalid expiration '{text}': {why}"));
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let digits = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(invalid("no_integer".to_owned()));
    }
    if digits < unsigned.len() {
        return Err(invalid(format!("{{leftover_string,{:?}}}", &unsigned[digits..])));
    }
    let number = unsigned.trim_start_matches('0');
    if text.starts_with('-') && !number.is_empty() {
        return Err(invalid(format!("{{value_negative,-{number}}}")));
    }
    match number.parse::<u64>() {
        Ok(ms) if ms <= EXPIRATION_MAX => Ok(ms),
        Err(_) if number.is_empty() => Ok(0),
        _ => Err(invalid(format!("{{value_too_large,{number}}}"))),
    }
}

/// The routing keys in the headers CC and BCC.
pub(super) fn further_keys(properties: Properties<'_>) -> Result<Vec<Arc<str>>, Exception> {
    let mut keys = Vec::new();
    let Some(headers) = properties.headers() else { return Ok(keys) };
    for (name, value) in headers.iter().filter(|(name, _)| matches!(*name, "CC" | "BCC")) {
        let Value::Array(array) = value else {
            let kind = value.type_name();
            return Err(precondition(format_args!(
                "invalid message: {{unacceptable_type_in_header,\"{name}\",{kind}}}"
            )));
        };
        // What is no text leads nowhere, and neither does a text that no routing key could be.
        let texts = array.iter().filter_map(|key| key.as_str().map(Arc::from));
        keys.extend(texts.filter(|key: &Arc<str>| key.len() < 256));
    }
    Ok(keys)
}

/// The properties as consumers get them, if that is not as they were sent: without BCC, and with the key of the channel's
/// reply consumer in place of the pseudo-queue's name.
pub(super) fn changed(
    properties: Properties<'_>,
    reply_key: Option<&str>,
) -> Result<Option<Vec<u8>>, Exception> {
    let reply = properties.reply_to() == Some(REPLY_QUEUE.as_bytes());
    let blind = properties.headers().filter(|headers| headers.get("BCC").is_some());
    if !reply && blind.is_none() {
        return Ok(None);
    }
    let mut list = properties.to_list();
    if reply {
        let key = reply_key.ok_or_else(|| precondition("fast reply consumer does not exist"))?;
        list.reply_to = Some(key.as_bytes());
    }
    let mut others = TableBuilder::new();
    if let Some(headers) = blind {
        for (name, value) in headers.iter().filter(|(name, _)| *name != "BCC") {
            others.put(name, value);
        }
        let others = others.as_table();
        list.headers = Some(others.map_err(|error| Exception::new(ReplyCode::SyntaxError, error))?);
    }
    let mut block = Vec::new();
    list.encode(&mut block);
    Ok(Some(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dassie_amqp::content::{Properties, PropertyList};
    use dassie_amqp::table::TableBuilder;

    use crate::security::Realm;

    fn checked(list: &PropertyList<'_>, body_size: u64) -> Result<Checked, u16> {
        let mut block = Vec::new();
        list.encode(&mut block);
        let header =
            ContentHeader { class_id: 60, body_size, properties: Properties::parse(&block).unwrap() };
        check(&header, &Realm::operator()).map_err(|exception| exception.code().number())
    }

    #[test]
    fn delivery_mode_is_one_or_two() {
        let mode = |mode| PropertyList { delivery_mode: mode, ..PropertyList::default() };
        assert_eq!(checked(&mode(None), 5), Ok(Checked { persistent: false, ttl: None, body_len: 5 }));
        assert_eq!(checked(&mode(Some(2)), 5), Ok(Checked { persistent: true, ttl: None, body_len: 5 }));
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
    fn a_claimed_user_must_be_the_one_who_publishes() {
        let user = |name| PropertyList { user_id: Some(name), ..PropertyList::default() };
        assert_eq!(checked(&user(b"mallory"), 0), Err(406));
        assert!(checked(&user(b"guest"), 0).is_ok());
    }

    #[test]
    fn an_expiration_is_read_and_refused_as_rabbitmq_does() {
        for (text, ms) in [("0", 0), ("0010", 10), ("+5", 5), ("-0", 0), ("315360000000", EXPIRATION_MAX)] {
            assert_eq!(expiration(text.as_bytes()), Ok(ms), "{text}");
        }
        for (text, why) in [
            ("", "no_integer"),
            (" 10", "no_integer"),
            ("-1", "{value_negative,-1}"),
            ("1.5", "{leftover_string,\".5\"}"),
            ("315360000001", "{value_too_large,315360000001}"),
        ] {
            let refused = expiration(text.as_bytes()).unwrap_err();
            assert_eq!(refused.text(), format!("PRECONDITION_FAILED - invalid expiration '{text}': {why}"));
        }
    }

    fn with_headers(table: &TableBuilder, reply_to: Option<&[u8]>) -> Vec<u8> {
        let mut block = Vec::new();
        PropertyList { headers: Some(table.as_table().unwrap()), reply_to, ..PropertyList::default() }
            .encode(&mut block);
        block
    }

    #[test]
    fn copies_are_found_and_only_the_blind_ones_vanish() {
        let mut table = TableBuilder::new();
        for name in ["CC", "BCC"] {
            table.put_array(name, |keys| {
                keys.push(1_i32).push(name);
            });
        }
        let block = with_headers(&table, None);
        let properties = Properties::parse(&block).unwrap();
        let keys = further_keys(properties).unwrap();
        assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), ["CC", "BCC"]);
        let seen = changed(properties, None).unwrap().unwrap();
        let headers = Properties::parse(&seen).unwrap().headers().unwrap();
        assert!(headers.get("CC").is_some() && headers.get("BCC").is_none());
        let mut text = TableBuilder::new();
        text.put("CC", "q");
        let block = with_headers(&text, None);
        let refused = further_keys(Properties::parse(&block).unwrap()).unwrap_err();
        assert!(
            refused.text().ends_with("{unacceptable_type_in_header,\"CC\",longstr}"),
            "{}",
            refused.text()
        );
    }

    #[test]
    fn the_reply_queue_becomes_the_key_of_who_waits() {
        let block = with_headers(&TableBuilder::new(), Some(REPLY_QUEUE.as_bytes()));
        let properties = Properties::parse(&block).unwrap();
        assert_eq!(changed(properties, None).unwrap_err().code(), ReplyCode::PreconditionFailed);
        let seen = changed(properties, Some("key")).unwrap().unwrap();
        assert_eq!(Properties::parse(&seen).unwrap().reply_to(), Some(&b"key"[..]));
        let other = with_headers(&TableBuilder::new(), Some(b"other"));
        assert_eq!(changed(Properties::parse(&other).unwrap(), None), Ok(None));
    }
}
