//! Single messages for operators: made of their parts, and taken apart.
//!
//! Owns: nothing. Promises: a message made here passed the checks of basic.publish; one taken apart is what an AMQP client would
//! get. Does not know: who asks, in which form.

use std::sync::Arc;

use bytes::Bytes;
use dassie_amqp::content::{BASIC_CLASS, ContentHeader, Properties, PropertyList};
use dassie_amqp::reply::Exception;

use super::events::amqp_message;
use super::properties;
use super::publish::{Address, Arena};
use crate::broker::api::{Located, Message};
use crate::broker::message::{Batches, Cache};
use crate::security::Principal;

/// A message as basic.publish would hand it over, and its further routing keys (CC, BCC).
///
/// # Errors
/// What basic.publish would refuse.
///
/// # Panics
/// If a short string of the properties has more than 255 bytes.
pub(in crate::server) fn message(
    (exchange, routing_key): (&str, &str),
    list: &PropertyList<'_>,
    body: &[u8],
    principal: &Principal,
) -> Result<(Message, Vec<Arc<str>>), Exception> {
    let mut block = Vec::new();
    list.encode(&mut block);
    let given = Properties::parse(&block)?;
    let body_size = body.len() as u64;
    let header = ContentHeader { class_id: BASIC_CLASS, body_size, properties: given };
    let checked = properties::check(&header, principal)?;
    let also = properties::further_keys(given)?;
    let changed = properties::changed(given, None)?;
    let mut fixed = [0; 12];
    fixed[..2].copy_from_slice(&BASIC_CLASS.to_be_bytes());
    fixed[4..].copy_from_slice(&body_size.to_be_bytes());
    let mut arena = Arena::default();
    let address = Address::new(None, exchange, routing_key);
    let block = changed.as_deref().unwrap_or(given.as_bytes());
    let mut partial = arena.begin(&address, [&fixed, block], checked);
    arena.extend(&mut partial, body)?;
    Ok((arena.finish(partial), also))
}

/// A message taken apart.
pub(in crate::server) struct Parts {
    /// Where it was published; "" is the default exchange.
    pub(in crate::server) exchange: String,
    /// With this key.
    pub(in crate::server) routing_key: String,
    /// A property block.
    pub(in crate::server) properties: Bytes,
    /// The body.
    pub(in crate::server) body: Bytes,
}

/// What an AMQP client would get. Reads the log: not for a thread that serves connections.
///
/// # Errors
/// The message can not be read.
pub(in crate::server) fn parts(located: &Located, log: &dyn Batches) -> Result<Parts, Exception> {
    let unreadable = || Exception::new(dassie_amqp::reply::ReplyCode::InternalError, "not an AMQP message");
    let message = amqp_message(located, log, &mut Cache::default())?;
    let prefix = message.bytes.slice(..message.prefix_len as usize);
    let text = |at: usize| -> Option<(String, usize)> {
        let end = at + 1 + usize::from(*prefix.get(at)?);
        Some((String::from_utf8_lossy(prefix.get(at + 1..end)?).into_owned(), end))
    };
    let (exchange, at) = text(0).ok_or_else(unreadable)?;
    let (routing_key, at) = text(at).ok_or_else(unreadable)?;
    // Class, weight and body size stand before the properties.
    let properties = (at + 12 <= prefix.len()).then(|| prefix.slice(at + 12..)).ok_or_else(unreadable)?;
    let start = message.prefix_len as usize;
    let body = match &message.body {
        Some(pieces) => Bytes::from(pieces.concat()),
        None => message.bytes.slice(start..start + message.body_len as usize),
    };
    Ok(Parts { exchange, routing_key, properties, body })
}
