//! Topology changes as bytes: what definition and removal records hold, and what checkpoints keep.
//!
//! Owns: their encoding. Promises: [`read`] gives back what [`put`] wrote, names and tables byte for byte.
//! Does not know: what a change does.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::api::{BindingSpec, Destination, ExchangeKind, ExchangeSpec, QueueKind, QueueSpec};
use super::record::{Cursor, Malformed, put_blob, put_text};
use super::topology::{Change, Owner, Topic};

/// Is this change written as a removal record?
pub(crate) fn removes(change: &Change) -> bool {
    matches!(
        change,
        Change::RemoveExchange(..)
            | Change::RemoveQueue(_)
            | Change::RemoveBinding(..)
            | Change::RemoveTopic(_)
            | Change::RemoveSetting(..)
            | Change::RemoveVhost(_)
    )
}

/// Writes a change.
pub(crate) fn put(buf: &mut BytesMut, change: &Change) {
    match change {
        Change::Exchange(vhost, spec, session) => {
            buf.put_u8(1);
            buf.put_u32_le(*vhost);
            put_text(buf, &spec.name);
            buf.put_u8(spec.kind as u8);
            buf.put_u8(bits(&[spec.durable, spec.auto_delete, spec.internal, session.is_some()]));
            if let Some(session) = session {
                buf.put_u64_le(*session);
            }
            put_blob(buf, &spec.arguments);
        }
        Change::RemoveExchange(vhost, name) => {
            buf.put_u8(2);
            buf.put_u32_le(*vhost);
            put_text(buf, name);
        }
        Change::Queue { uid, vhost, spec, owner } => {
            buf.put_u8(3);
            buf.put_u64_le(*uid);
            buf.put_u32_le(*vhost);
            put_text(buf, &spec.name);
            buf.put_u8(spec.kind as u8);
            buf.put_u8(bits(&[spec.durable, spec.exclusive, spec.auto_delete, owner.is_some()]));
            if let Some(owner) = owner {
                buf.put_u64_le(owner.session);
                buf.put_u64_le(owner.connection);
            }
            put_blob(buf, &spec.arguments);
        }
        Change::RemoveQueue(uid) => {
            buf.put_u8(4);
            buf.put_u64_le(*uid);
        }
        Change::Binding { uid, vhost, spec } => {
            buf.put_u8(5);
            buf.put_u64_le(*uid);
            buf.put_u32_le(*vhost);
            put_binding(buf, spec);
        }
        Change::RemoveBinding(vhost, spec) => {
            buf.put_u8(6);
            buf.put_u32_le(*vhost);
            put_binding(buf, spec);
        }
        Change::Topic { topic } => {
            buf.put_u8(7);
            put_text(buf, &topic.name);
            buf.put_u32_le(topic.write_queues);
            buf.put_u32_le(topic.read_queues);
            buf.put_u32_le(topic.permission);
            buf.put_u32_le(u32::try_from(topic.queues.len()).unwrap_or(u32::MAX));
            topic.queues.iter().for_each(|uid| buf.put_u64_le(*uid));
        }
        Change::RemoveTopic(name) => {
            buf.put_u8(8);
            put_text(buf, name);
        }
        Change::Setting(space, name, value) => {
            buf.put_u8(20);
            put_text(buf, space);
            put_text(buf, name);
            put_blob(buf, value);
        }
        Change::RemoveSetting(space, name) => {
            buf.put_u8(21);
            put_text(buf, space);
            put_text(buf, name);
        }
        Change::Vhost(id, name) => {
            buf.put_u8(9);
            buf.put_u32_le(*id);
            put_text(buf, name);
        }
        Change::RemoveVhost(id) => {
            buf.put_u8(10);
            buf.put_u32_le(*id);
        }
    }
}

fn bits(flags: &[bool]) -> u8 {
    flags.iter().enumerate().map(|(i, set)| u8::from(*set) << i).sum()
}

fn put_binding(buf: &mut BytesMut, spec: &BindingSpec) {
    put_text(buf, &spec.source);
    match &spec.destination {
        Destination::Queue(name) => {
            buf.put_u8(1);
            put_text(buf, name);
        }
        Destination::Exchange(name) => {
            buf.put_u8(2);
            put_text(buf, name);
        }
    }
    put_text(buf, &spec.key);
    put_blob(buf, &spec.arguments);
}

fn read_binding(cursor: &mut Cursor<'_>) -> Result<BindingSpec, Malformed> {
    let source = text(cursor)?;
    let destination = match cursor.u8()? {
        1 => Destination::Queue(text(cursor)?),
        2 => Destination::Exchange(text(cursor)?),
        _ => return Err(Malformed { at: cursor.at(), what: "unknown kind of destination" }),
    };
    Ok(BindingSpec { source, destination, key: text(cursor)?, arguments: blob(cursor)? })
}

fn text(cursor: &mut Cursor<'_>) -> Result<Arc<str>, Malformed> {
    cursor.text().map(Arc::from)
}

fn blob(cursor: &mut Cursor<'_>) -> Result<Bytes, Malformed> {
    cursor.blob().map(Bytes::copy_from_slice)
}

fn exchange_kind(byte: u8, at: usize) -> Result<ExchangeKind, Malformed> {
    Ok(match byte {
        1 => ExchangeKind::Direct,
        2 => ExchangeKind::Fanout,
        3 => ExchangeKind::Topic,
        4 => ExchangeKind::Headers,
        5 => ExchangeKind::RocketmqTopic,
        _ => return Err(Malformed { at, what: "unknown exchange type" }),
    })
}

fn queue_kind(byte: u8, at: usize) -> Result<QueueKind, Malformed> {
    Ok(match byte {
        1 => QueueKind::Classic,
        2 => QueueKind::Quorum,
        3 => QueueKind::Topic,
        _ => return Err(Malformed { at, what: "unknown queue type" }),
    })
}

/// Reads a change.
///
/// # Errors
/// [`Malformed`] with the place: a newer format, or a defect.
pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Change, Malformed> {
    let what = cursor.u8()?;
    Ok(match what {
        1 => {
            let (vhost, name) = (cursor.u32()?, text(cursor)?);
            let kind = exchange_kind(cursor.u8()?, cursor.at())?;
            let flags = cursor.u8()?;
            let session = if flags & 8 != 0 { Some(cursor.u64()?) } else { None };
            let spec = ExchangeSpec {
                name,
                kind,
                durable: flags & 1 != 0,
                auto_delete: flags & 2 != 0,
                internal: flags & 4 != 0,
                arguments: blob(cursor)?,
            };
            Change::Exchange(vhost, spec, session)
        }
        2 => Change::RemoveExchange(cursor.u32()?, text(cursor)?),
        3 => {
            let (uid, vhost, name) = (cursor.u64()?, cursor.u32()?, text(cursor)?);
            let kind = queue_kind(cursor.u8()?, cursor.at())?;
            let flags = cursor.u8()?;
            let owner = if flags & 8 != 0 {
                Some(Owner { session: cursor.u64()?, connection: cursor.u64()? })
            } else {
                None
            };
            let spec = QueueSpec {
                name,
                kind,
                durable: flags & 1 != 0,
                exclusive: flags & 2 != 0,
                auto_delete: flags & 4 != 0,
                arguments: blob(cursor)?,
            };
            Change::Queue { uid, vhost, spec, owner }
        }
        4 => Change::RemoveQueue(cursor.u64()?),
        5 => Change::Binding { uid: cursor.u64()?, vhost: cursor.u32()?, spec: read_binding(cursor)? },
        6 => Change::RemoveBinding(cursor.u32()?, read_binding(cursor)?),
        7 => {
            let name = text(cursor)?;
            let (write_queues, read_queues, permission) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
            let count = cursor.u32()?;
            let queues = (0..count).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
            Change::Topic {
                topic: Topic { name, queues: queues.into(), write_queues, read_queues, permission },
            }
        }
        8 => Change::RemoveTopic(text(cursor)?),
        20 => Change::Setting(text(cursor)?, text(cursor)?, blob(cursor)?),
        21 => Change::RemoveSetting(text(cursor)?, text(cursor)?),
        9 => Change::Vhost(cursor.u32()?, text(cursor)?),
        10 => Change::RemoveVhost(cursor.u32()?),
        _ => return Err(Malformed { at: cursor.at(), what: "unknown topology change" }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_reads_back() {
        let binding = BindingSpec {
            source: "x".into(),
            destination: Destination::Exchange("y".into()),
            key: "k.#".into(),
            arguments: Bytes::from_static(b"\x01aS\x00\x00\x00\x00"),
        };
        let queue = QueueSpec {
            name: "ключ".into(),
            kind: QueueKind::Quorum,
            durable: true,
            exclusive: false,
            auto_delete: true,
            arguments: Bytes::from_static(b"zz"),
        };
        let exchange = ExchangeSpec {
            name: "x".into(),
            kind: ExchangeKind::Headers,
            durable: false,
            auto_delete: true,
            internal: true,
            arguments: Bytes::new(),
        };
        let topic =
            Topic { name: "t".into(), queues: [4, 5].into(), write_queues: 2, read_queues: 2, permission: 6 };
        for change in [
            Change::Exchange(0, exchange.clone(), None),
            Change::Exchange(0, exchange, Some(5)),
            Change::RemoveExchange(3, "x".into()),
            Change::Queue { uid: 9, vhost: 0, spec: queue.clone(), owner: None },
            Change::Queue { uid: 9, vhost: 0, spec: queue, owner: Some(Owner { session: 1, connection: 2 }) },
            Change::RemoveQueue(9),
            Change::Binding { uid: 10, vhost: 0, spec: binding.clone() },
            Change::RemoveBinding(0, binding),
            Change::Topic { topic },
            Change::RemoveTopic("t".into()),
            Change::Setting("s".into(), "n".into(), Bytes::from_static(b"v")),
            Change::RemoveSetting("s".into(), "n".into()),
            Change::Vhost(7, "staging".into()),
            Change::RemoveVhost(7),
        ] {
            let mut buf = BytesMut::new();
            put(&mut buf, &change);
            assert_eq!(read(&mut Cursor::new(&buf, 0)).unwrap(), change);
            for cut in 0..buf.len() {
                assert!(read(&mut Cursor::new(&buf[..cut], 0)).is_err());
            }
        }
    }
}
