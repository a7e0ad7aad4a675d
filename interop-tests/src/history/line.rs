//! One event as one line of JSON: flat, with the same few field names for every kind of event.
//!
//! Owns: the written form. Promises: what is written is read back equal; a field that an event needs and does not have,
//! or a field nobody knows, is an error that names it, so that a slip in a client's writer can not weaken a check.
//! Does not know: files, order, what events mean.

use std::borrow::Cow;
use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

use super::event::{
    Allowance, Cursor, Damaged, Delivery, Edge, Event, Msg, Name, Offset, Op, Outcome, Publish, Scan, Settle,
};
use super::names::Names;

/// The written form; `op` decides which of the optional fields are needed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    t0: u64,
    t1: u64,
    #[serde(borrow)]
    client: Text<'a>,
    op: Kind,
    outcome: Outcome,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    from: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    queue: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    group: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<u16>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    msg: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<NonZeroU64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redelivered: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<u32>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    ordered: bool,
    #[serde(default, skip_serializing_if = "is_no")]
    asked: bool,
    #[serde(default, skip_serializing_if = "is_no")]
    auto: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    name: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    what: Option<Allowance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<u64>,
}

/// Borrowed from the line where it needs no unescaping; five million lines would feel the copies.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Publish,
    Deliver,
    Damaged,
    Scan,
    Ack,
    Requeue,
    Reject,
    Empty,
    Commit,
    Committed,
    Reset,
    MinOffset,
    MaxOffset,
    Lost,
    Crash,
    Leader,
    Fault,
    Healed,
    Converged,
    Digest,
    Route,
    DeadLetter,
    Subscribe,
    Single,
    Allow,
    Purge,
    Plan,
}

fn yes() -> bool {
    true
}

// serde's `skip_serializing_if` hands over references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_yes(value: &bool) -> bool {
    *value
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_no(value: &bool) -> bool {
    !*value
}

fn missing(field: &str) -> String {
    format!("needs the field {field:?}")
}

impl Line<'_> {
    /// The event that the line tells.
    pub(super) fn event(&self, names: &mut Names) -> Result<Event, String> {
        if self.t1 < self.t0 {
            return Err(format!("ends at {} before it begins at {}", self.t1, self.t0));
        }
        let op = self.op(names)?;
        Ok(Event { t0: self.t0, t1: self.t1, client: names.name(&self.client.0), outcome: self.outcome, op })
    }

    fn op(&self, names: &mut Names) -> Result<Op, String> {
        Ok(match self.op {
            Kind::Publish => Op::Publish(self.publish(names)?),
            Kind::Deliver => Op::Deliver(self.delivery(names)?),
            Kind::Damaged => Op::Damaged(Damaged { queue: self.queue(names)?, why: self.name(names)? }),
            Kind::Scan => Op::Scan(self.scan(names)?),
            Kind::Ack => Op::Ack(self.settle(names)?),
            Kind::Requeue => Op::Requeue(self.settle(names)?),
            Kind::Reject => Op::Reject(self.settle(names)?),
            Kind::Empty => Op::Empty { queue: self.queue(names)? },
            Kind::Commit => Op::Commit(self.cursor(names)?),
            Kind::Committed => Op::Committed(self.cursor(names)?),
            Kind::Reset => Op::Reset(self.cursor(names)?),
            Kind::MinOffset => Op::MinOffset(self.edge(names)?),
            Kind::MaxOffset => Op::MaxOffset(self.edge(names)?),
            Kind::Lost => Op::Lost { queue: optional(self.queue.as_ref(), names) },
            Kind::Crash => Op::Crash,
            Kind::Leader => Op::Leader { term: self.term.ok_or_else(|| missing("term"))? },
            Kind::Fault => Op::Fault { name: self.name(names)? },
            Kind::Healed => Op::Healed,
            Kind::Converged => Op::Converged,
            Kind::Digest => self.digest(names)?,
            Kind::Route => Op::Route { from: self.from(names)?, queue: self.queue(names)? },
            Kind::DeadLetter => Op::DeadLetter { from: self.from(names)?, queue: self.queue(names)? },
            Kind::Subscribe => Op::Subscribe { queue: self.queue(names)?, group: self.group(names)? },
            Kind::Single => Op::Single { queue: self.queue(names)? },
            Kind::Allow => self.allow(names)?,
            Kind::Purge => Op::Purge { queue: self.queue(names)? },
            Kind::Plan => {
                Op::Plan { what: self.name(names)?, count: self.count.ok_or_else(|| missing("count"))? }
            }
        })
    }

    fn publish(&self, names: &mut Names) -> Result<Publish, String> {
        Ok(Publish {
            queue: self.queue(names)?,
            part: self.part,
            msg: self.msg(names)?,
            offset: self.offset.map(place).transpose()?,
            sum: self.sum,
            ordered: self.ordered,
        })
    }

    fn delivery(&self, names: &mut Names) -> Result<Delivery, String> {
        Ok(Delivery {
            queue: self.queue(names)?,
            group: optional(self.group.as_ref(), names).unwrap_or(Name::NONE),
            part: self.part.unwrap_or(0),
            msg: self.msg(names)?,
            offset: self.offset.map(place).transpose()?,
            tag: self.tag,
            token: self.token,
            redelivered: self.redelivered,
            sum: self.sum,
            asked: self.asked,
            auto: self.auto,
        })
    }

    fn scan(&self, names: &mut Names) -> Result<Scan, String> {
        let Edge { queue, part, offset } = self.edge(names)?;
        Ok(Scan { queue, part, offset, msg: self.msg(names)?, sum: self.sum })
    }

    fn settle(&self, names: &mut Names) -> Result<Settle, String> {
        Ok(Settle {
            queue: self.queue(names)?,
            group: optional(self.group.as_ref(), names).unwrap_or(Name::NONE),
            msg: self.msg(names)?,
            token: self.token,
        })
    }

    fn cursor(&self, names: &mut Names) -> Result<Cursor, String> {
        let Edge { queue, part, offset } = self.edge(names)?;
        Ok(Cursor { queue, group: self.group(names)?, part, offset })
    }

    fn edge(&self, names: &mut Names) -> Result<Edge, String> {
        let offset = place(self.offset.ok_or_else(|| missing("offset"))?)?;
        Ok(Edge { queue: self.queue(names)?, part: self.part.unwrap_or(0), offset })
    }

    fn digest(&self, names: &mut Names) -> Result<Op, String> {
        Ok(Op::Digest {
            scope: optional(self.queue.as_ref(), names).unwrap_or(Name::NONE),
            index: self.index.ok_or_else(|| missing("index"))?,
            hash: self.hash.ok_or_else(|| missing("hash"))?,
        })
    }

    fn allow(&self, names: &mut Names) -> Result<Op, String> {
        let what = self.what.ok_or_else(|| missing("what"))?;
        Ok(Op::Allow { queue: self.queue(names)?, what, count: self.count })
    }

    fn queue(&self, names: &mut Names) -> Result<Name, String> {
        optional(self.queue.as_ref(), names).ok_or_else(|| missing("queue"))
    }

    fn group(&self, names: &mut Names) -> Result<Name, String> {
        optional(self.group.as_ref(), names).ok_or_else(|| missing("group"))
    }

    fn from(&self, names: &mut Names) -> Result<Name, String> {
        optional(self.from.as_ref(), names).ok_or_else(|| missing("from"))
    }

    fn name(&self, names: &mut Names) -> Result<Name, String> {
        optional(self.name.as_ref(), names).ok_or_else(|| missing("name"))
    }

    fn msg(&self, names: &mut Names) -> Result<Msg, String> {
        let text = &self.msg.as_ref().ok_or_else(|| missing("msg"))?.0;
        let wrong = || format!("msg {text:?} is not publisher/seq");
        // From the right: a publisher's own name may have slashes.
        let (publisher, seq) = text.rsplit_once('/').ok_or_else(wrong)?;
        Ok(Msg { publisher: names.name(publisher), seq: seq.parse().map_err(|_| wrong())? })
    }
}

fn optional(text: Option<&Text<'_>>, names: &mut Names) -> Option<Name> {
    text.map(|text| names.name(&text.0))
}

fn place(value: u64) -> Result<Offset, String> {
    Offset::new(value).ok_or_else(|| format!("offset {value} is no place"))
}

impl<'a> Line<'a> {
    /// The written form of `event`.
    pub(super) fn of(event: &Event, names: &'a Names) -> Self {
        match event.op {
            Op::Publish(publish) => Self::bare(event, Kind::Publish, names).published(&publish, names),
            Op::Deliver(delivery) => Self::bare(event, Kind::Deliver, names).delivered(&delivery, names),
            Op::Damaged(Damaged { queue, why }) => {
                Self::bare(event, Kind::Damaged, names).at(queue, names).named(why, names)
            }
            Op::Scan(scan) => Self::bare(event, Kind::Scan, names).scanned(&scan, names),
            Op::Ack(settle) => Self::bare(event, Kind::Ack, names).settled(&settle, names),
            Op::Requeue(settle) => Self::bare(event, Kind::Requeue, names).settled(&settle, names),
            Op::Reject(settle) => Self::bare(event, Kind::Reject, names).settled(&settle, names),
            Op::Commit(cursor) => Self::bare(event, Kind::Commit, names).moved(&cursor, names),
            Op::Committed(cursor) => Self::bare(event, Kind::Committed, names).moved(&cursor, names),
            Op::Reset(cursor) => Self::bare(event, Kind::Reset, names).moved(&cursor, names),
            Op::MinOffset(edge) => Self::bare(event, Kind::MinOffset, names).ended(&edge, names),
            Op::MaxOffset(edge) => Self::bare(event, Kind::MaxOffset, names).ended(&edge, names),
            Op::Empty { queue } => Self::bare(event, Kind::Empty, names).at(queue, names),
            Op::Single { queue } => Self::bare(event, Kind::Single, names).at(queue, names),
            Op::Purge { queue } => Self::bare(event, Kind::Purge, names).at(queue, names),
            Op::Crash => Self::bare(event, Kind::Crash, names),
            Op::Healed => Self::bare(event, Kind::Healed, names),
            Op::Converged => Self::bare(event, Kind::Converged, names),
            Op::Fault { name } => Self::bare(event, Kind::Fault, names).named(name, names),
            Op::Lost { queue } => {
                let bare = Self::bare(event, Kind::Lost, names);
                Self { queue: queue.map(|queue| text(queue, names)), ..bare }
            }
            Op::Leader { term } => Self { term: Some(term), ..Self::bare(event, Kind::Leader, names) },
            Op::Digest { scope, index, hash } => {
                let bare = Self::bare(event, Kind::Digest, names).at(scope, names);
                Self { index: Some(index), hash: Some(hash), ..bare }
            }
            Op::Route { from, queue } => Self::bare(event, Kind::Route, names).between(from, queue, names),
            Op::DeadLetter { from, queue } => {
                Self::bare(event, Kind::DeadLetter, names).between(from, queue, names)
            }
            Op::Subscribe { queue, group } => {
                Self::bare(event, Kind::Subscribe, names).at(queue, names).of_group(group, names)
            }
            Op::Allow { queue, what, count } => {
                let bare = Self::bare(event, Kind::Allow, names).at(queue, names);
                Self { what: Some(what), count, ..bare }
            }
            Op::Plan { what, count } => {
                let bare = Self::bare(event, Kind::Plan, names).named(what, names);
                Self { count: Some(count), ..bare }
            }
        }
    }

    fn bare(event: &Event, op: Kind, names: &'a Names) -> Self {
        Self {
            t0: event.t0,
            t1: event.t1,
            client: text(event.client, names),
            op,
            outcome: event.outcome,
            from: None,
            queue: None,
            group: None,
            part: None,
            msg: None,
            offset: None,
            tag: None,
            token: None,
            redelivered: None,
            sum: None,
            ordered: true,
            asked: false,
            auto: false,
            name: None,
            what: None,
            count: None,
            term: None,
            index: None,
            hash: None,
        }
    }

    fn at(self, queue: Name, names: &'a Names) -> Self {
        Self { queue: Some(text(queue, names)), ..self }
    }

    fn between(self, from: Name, queue: Name, names: &'a Names) -> Self {
        Self { from: Some(text(from, names)), ..self.at(queue, names) }
    }

    fn named(self, name: Name, names: &'a Names) -> Self {
        Self { name: Some(text(name, names)), ..self }
    }

    fn of_group(self, group: Name, names: &'a Names) -> Self {
        Self { group: (group != Name::NONE).then(|| text(group, names)), ..self }
    }

    fn about(self, msg: Msg, names: &'a Names) -> Self {
        Self { msg: Some(Text(Cow::Owned(names.msg(msg)))), ..self }
    }

    fn published(self, publish: &Publish, names: &'a Names) -> Self {
        Self {
            part: publish.part,
            offset: publish.offset.map(Offset::get),
            sum: publish.sum,
            ordered: publish.ordered,
            ..self.at(publish.queue, names).about(publish.msg, names)
        }
    }

    fn delivered(self, delivery: &Delivery, names: &'a Names) -> Self {
        Self {
            part: Some(delivery.part).filter(|part| *part > 0),
            offset: delivery.offset.map(Offset::get),
            tag: delivery.tag,
            token: delivery.token,
            redelivered: delivery.redelivered,
            sum: delivery.sum,
            asked: delivery.asked,
            auto: delivery.auto,
            ..self.at(delivery.queue, names).of_group(delivery.group, names).about(delivery.msg, names)
        }
    }

    fn scanned(self, scan: &Scan, names: &'a Names) -> Self {
        let Scan { queue, part, offset, msg, sum } = *scan;
        Self { sum, ..self.ended(&Edge { queue, part, offset }, names).about(msg, names) }
    }

    fn settled(self, settle: &Settle, names: &'a Names) -> Self {
        let line = self.at(settle.queue, names).of_group(settle.group, names).about(settle.msg, names);
        Self { token: settle.token, ..line }
    }

    fn moved(self, cursor: &Cursor, names: &'a Names) -> Self {
        let Cursor { queue, group, part, offset } = *cursor;
        // Written even when empty: a cursor without a group would not be read back.
        Self { group: Some(text(group, names)), ..self.ended(&Edge { queue, part, offset }, names) }
    }

    fn ended(self, edge: &Edge, names: &'a Names) -> Self {
        Self { part: Some(edge.part), offset: Some(edge.offset.get()), ..self.at(edge.queue, names) }
    }
}

fn text(name: Name, names: &Names) -> Text<'_> {
    Text(Cow::Borrowed(names.text(name)))
}
