//! RocketMQ clients: producers of every kind of send, consumer groups that pull and commit, and a scan of every queue.
//!
//! Three producers send single messages (both spellings), batches and one-way messages, 100 under way at most, to four
//! queues of each of two topics, one made by a request and one by its first message. Three groups pull them, of changing
//! size, with and without waiting; they commit by request, with the next pull, or not at all before the next crash.
//!
//! Owns: this traffic, and where records were seen. Promises: a send of unknown outcome is not repeated; a record's place in the
//! log is held to what was told and seen of it before. Does not know: who harms the broker.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use dassie_rocketmq::header::{
    CreateTopic, GetMaxOffset, OffsetAnswer, PullAnswer, PullMessage, QueryConsumerOffset, QueueAddress,
    SendAnswer, SendMessage, ShortNames, UpdateConsumerOffset, pull_flag,
};
use dassie_rocketmq::message::{
    BatchMessage, MessageId, Properties, PropertiesText, StoredMessage, encode_batch_message,
};
use dassie_rocketmq::{Command, HeaderCodec, RequestCode, ResponseCode};

use super::load::Load;
use super::tape::Own;
use crate::body::{self, Identity};
use crate::history::Names;
use crate::history::event::{Cursor, Delivery, Edge, Msg, Offset, Op, Outcome, Publish, Scan};
use crate::remoting::{Remoting, refusal};
use crate::sim::dice::Dice;
use crate::wire::Error;

/// Before a send is tried again that was refused for now.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Made by a request. With AMQP beside it, an AMQP queue gets its messages, too.
pub(super) const TOPIC: &str = "orders";
/// Made by its first message. With AMQP beside it, it gets messages of an AMQP publisher, too.
pub(super) const TOPIC_OF_BOTH: &str = "events";
const TOPICS: [&str; 2] = [TOPIC, TOPIC_OF_BOTH];
const PARTS: u16 = 4;
const PRODUCERS: [(&str, &str); 3] = [("r1", TOPIC), ("r2", TOPIC), ("r3", TOPIC_OF_BOTH)];
const GROUPS: [(&str, &str); 3] = [("g1", TOPIC), ("g2", TOPIC), ("g1", TOPIC_OF_BOTH)];
/// Messages under way, at most.
const WINDOW: usize = 100;
/// The most that one producer sends in a second.
const RATE: u64 = 700;
/// How long a pull waits for messages, in ms, if it waits.
const WAIT: i64 = 100;
/// The property that names a message's producer and number once more, outside of its body.
const OWN: &str = "own";

/// Where in the log records were told or seen to lie. One place, one record, for ever.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    physical: HashMap<Spot, i64>,
    spots: HashMap<i64, Spot>,
}

/// Topic, queue, offset.
type Spot = (String, u16, i64);

impl Places {
    /// Notes one more sight of a record; says what is wrong with it.
    fn note(&self, topic: &str, part: u16, offset: i64, physical: i64) -> Option<String> {
        let mut seen = self.0.lock().expect("no thread panics here");
        let spot = (topic.to_owned(), part, offset);
        let before = *seen.physical.entry(spot.clone()).or_insert(physical);
        if before != physical {
            return Some(format!(
                "offset {offset} of queue {part} lay at {before} of the log, now at {physical}"
            ));
        }
        let other = seen.spots.entry(physical).or_insert_with(|| spot.clone()).clone();
        (other != spot).then(|| format!("{physical} of the log is {spot:?} and was {other:?}"))
    }
}

fn connect(load: &Load, dice: &Dice) -> Result<Remoting, Error> {
    let codec = if dice.below(2) == 0 { HeaderCodec::Json } else { HeaderCodec::Binary };
    Remoting::connect(load.ports.rocketmq, codec)
}

/// An offset of the wire in the history's terms.
fn offset(offset: i64) -> Result<Offset, Error> {
    let wrong = || Error::Broken(format!("{offset} as an offset"));
    u64::try_from(offset).ok().and_then(Offset::new).ok_or_else(wrong)
}

pub(super) fn declare(load: &Load) -> Result<(), Error> {
    let dice = Dice::new(0);
    let mut client = connect(load, &dice)?;
    let topic = CreateTopic {
        topic: TOPIC,
        default_topic: "TBW102",
        read_queue_nums: PARTS.into(),
        write_queue_nums: PARTS.into(),
        perm: 6,
        topic_filter_type: "SINGLE_TAG",
        ..CreateTopic::default()
    };
    client.ask(RequestCode::UpdateAndCreateTopic, &topic, b"", succeeded)?;
    for (group, topic) in GROUPS {
        let now = load.tape.now();
        load.tape
            .harness(now, now, |names| Op::Subscribe { queue: names.name(topic), group: names.name(group) });
    }
    let mut first = Producer::new(load, "first", TOPIC_OF_BOTH, &dice);
    first.one(&[0])
}

fn succeeded(answer: &Command<'_>) -> Result<(), Error> {
    match answer.head.response_code() {
        Some(ResponseCode::Success) => Ok(()),
        _ => Err(refusal(answer)),
    }
}

pub(super) fn begin<'scope, 'env>(load: &'env Load, scope: &'scope Scope<'scope, 'env>, dice: &Dice) {
    for (name, topic) in PRODUCERS {
        let seed = dice.throw();
        load.publishers.fetch_add(1, Ordering::SeqCst);
        scope.spawn(move || produce(load, name, topic, &Dice::new(seed)));
    }
    for (group, topic) in GROUPS {
        let seed = dice.throw();
        scope.spawn(move || consume(load, group, topic, &Dice::new(seed)));
    }
}

fn produce(load: &Load, name: &str, topic: &str, dice: &Dice) {
    let mut producer = Producer::new(load, name, topic, dice);
    while load.is_publishing() {
        if let Err(error) = producer.live() {
            for sent in std::mem::take(&mut producer.pending) {
                producer.note(&sent, Outcome::Info, None);
            }
            load.ended(name, &error);
        }
    }
    load.publishers.fetch_sub(1, Ordering::SeqCst);
}

/// Each life of a consumer is a client of its own in the history.
fn consume(load: &Load, group: &str, topic: &str, dice: &Dice) {
    for life in 1_u64.. {
        if !load.is_consuming() {
            return;
        }
        let name = format!("{group}-{topic}.{life}");
        let mut consumer = Consumer { load, name: &name, group, topic, dice };
        if let Err(error) = consumer.live() {
            let now = load.tape.now();
            load.tape.record((now, now), &name, Outcome::Ok, |_| Op::Lost { queue: None });
            load.ended(&name, &error);
        }
    }
}

/// A message through every queue of every topic.
pub(super) fn last_messages(load: &Load) -> Result<(), String> {
    for topic in TOPICS {
        let (name, dice) = (format!("last-{topic}"), Dice::new(0));
        let parts: Vec<_> = (0..PARTS).collect();
        Producer::new(load, &name, topic, &dice).one(&parts).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

struct Producer<'r> {
    load: &'r Load,
    name: &'r str,
    topic: &'r str,
    dice: &'r Dice,
    seq: u32,
    pending: VecDeque<Sent>,
}

/// A send that waits for its answer.
struct Sent {
    opaque: i32,
    part: u16,
    t0: u64,
    /// Number and checksum of each message.
    messages: Vec<(u32, u32)>,
}

impl<'r> Producer<'r> {
    fn new(load: &'r Load, name: &'r str, topic: &'r str, dice: &'r Dice) -> Self {
        Self { load, name, topic, dice, seq: 0, pending: VecDeque::new() }
    }

    /// One connection, until it is lost or enough was sent.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = connect(self.load, self.dice)?;
        let (begin, mut sent) = (Instant::now(), 0);
        let mut heard = Instant::now();
        loop {
            let goes_on = self.load.is_publishing();
            if !goes_on && self.pending.is_empty() {
                return Ok(());
            }
            let allowed =
                u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000;
            let mut burst = 1 + self.dice.below(20);
            while goes_on && burst > 0 && sent < allowed && self.under_way() < WINDOW {
                sent += self.send(&mut client)?;
                burst -= 1;
            }
            client.flush()?;
            let wait = Duration::from_millis(if self.under_way() < WINDOW { 2 } else { 100 });
            if client.receive(wait)? {
                heard = Instant::now();
            }
            self.hear(&mut client)?;
            if !self.pending.is_empty() && heard.elapsed() > self.load.patience() {
                return Err(Error::Broken(format!("no answer for {:?}", self.load.patience())));
            }
        }
    }

    /// A message to each of `parts`, answered.
    fn one(&mut self, parts: &[u16]) -> Result<(), Error> {
        let mut client = connect(self.load, self.dice)?;
        for part in parts {
            self.single(&mut client, *part, RequestCode::SendMessageV2)?;
        }
        client.flush()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.pending.is_empty() && Instant::now() < deadline {
            client.receive(Duration::from_secs(1))?;
            self.hear(&mut client)?;
        }
        if self.pending.is_empty() { Ok(()) } else { Err(Error::Broken("no answer for 30 s".to_owned())) }
    }

    fn under_way(&self) -> usize {
        self.pending.iter().map(|sent| sent.messages.len()).sum()
    }

    /// One request of any kind; gives how many messages it has.
    fn send(&mut self, client: &mut Remoting) -> Result<u64, Error> {
        let part = u16::try_from(self.dice.below(PARTS.into())).expect("a small number");
        match self.dice.below(10) {
            0 => self.one_way(client, part).map(|()| 1),
            1 => self.batch(client, part),
            2..6 => self.single(client, part, RequestCode::SendMessage).map(|()| 1),
            _ => self.single(client, part, RequestCode::SendMessageV2).map(|()| 1),
        }
    }

    fn single(&mut self, client: &mut Remoting, part: u16, code: RequestCode) -> Result<(), Error> {
        let (body, properties, message) = self.message(true);
        let t0 = self.load.tape.now();
        let header = self.header(part, Some(properties.properties().text()));
        let opaque = match code {
            RequestCode::SendMessage => client.say(code, &header, &body)?,
            _ => client.say(code, &ShortNames(header), &body)?,
        };
        self.pending.push_back(Sent { opaque, part, t0, messages: vec![message] });
        Ok(())
    }

    /// What is never answered is of unknown outcome from the beginning.
    fn one_way(&mut self, client: &mut Remoting, part: u16) -> Result<(), Error> {
        let (body, properties, message) = self.message(true);
        let t0 = self.load.tape.now();
        let header = self.header(part, Some(properties.properties().text()));
        self.note(&Sent { opaque: 0, part, t0, messages: vec![message] }, Outcome::Info, None);
        client.say_one_way(RequestCode::SendMessageV2, &ShortNames(header), &body)
    }

    fn batch(&mut self, client: &mut Remoting, part: u16) -> Result<u64, Error> {
        let count = 2 + self.dice.below(11);
        let (mut all, mut messages) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (body, properties, message) = self.message(false);
            let one = BatchMessage { flag: 7, body: &body, properties: properties.properties() };
            encode_batch_message(&mut all, &one).map_err(|error| Error::Broken(error.to_string()))?;
            messages.push(message);
        }
        let t0 = self.load.tape.now();
        let header = SendMessage { batch: Some(true), ..self.header(part, None) };
        let opaque = client.say(RequestCode::SendBatchMessage, &ShortNames(header), &all)?;
        self.pending.push_back(Sent { opaque, part, t0, messages });
        Ok(count)
    }

    fn header<'h>(&'h self, part: u16, properties: Option<&'h str>) -> SendMessage<'h> {
        SendMessage {
            producer_group: "producers",
            topic: self.topic,
            default_topic: "TBW102",
            default_topic_queue_nums: PARTS.into(),
            queue_id: part.into(),
            flag: 7,
            properties,
            ..SendMessage::default()
        }
    }

    /// The next message: body, properties, number with checksum.
    fn message(&mut self, may_be_large: bool) -> (Vec<u8>, PropertiesText, (u32, u32)) {
        self.seq += 1;
        // Mostly small, some larger, a few far beyond what goes in one piece.
        let size = match self.dice.below(1_000) {
            0 if may_be_large => 1_500_000,
            1..50 if may_be_large => 8_000,
            _ => 100 + usize::try_from(self.dice.below(400)).expect("a small number"),
        };
        let identity =
            Identity { run: &self.load.name, publisher: self.name, seq: self.seq, queue: self.topic };
        let body = identity.encode(size).expect("names without white space and a small size");
        let mut properties = PropertiesText::default();
        let own = format!("{}/{}", self.name, self.seq);
        for (name, value) in [("TAGS", "tag"), ("KEYS", own.as_str()), (OWN, own.as_str())] {
            properties.push(name, value).expect("short texts without separators");
        }
        let sum = sum_of(properties.properties(), 7);
        (body, properties, (self.seq, sum))
    }

    fn hear(&mut self, client: &mut Remoting) -> Result<(), Error> {
        while let Some(answer) = client.hear()? {
            let place = self.pending.iter().position(|sent| sent.opaque == answer.head.opaque);
            let sent = place.and_then(|place| self.pending.remove(place)).ok_or_else(|| {
                Error::Broken(format!("an answer to {}, which waits for none", answer.head.opaque))
            })?;
            match answer.head.response_code() {
                Some(ResponseCode::Success) => {
                    let told: SendAnswer<'_> =
                        answer.header().map_err(|error| Error::Broken(error.to_string()))?;
                    self.load.note_confirms(sent.messages.len() as u64);
                    self.note_told(&sent, &told)?;
                }
                // Not now: whether it was stored is not said.
                Some(
                    code @ (ResponseCode::SystemBusy
                    | ResponseCode::FlushDiskTimeout
                    | ResponseCode::ServiceNotAvailable),
                ) => {
                    self.note(&sent, Outcome::Info, None);
                    if code == ResponseCode::ServiceNotAvailable {
                        self.load.note_blocked();
                    }
                    // As clients do before they try again.
                    thread::sleep(BUSY_PAUSE);
                }
                _ => return Err(refusal(&answer)),
            }
        }
        Ok(())
    }

    fn note_told(&self, sent: &Sent, told: &SendAnswer<'_>) -> Result<(), Error> {
        let ids: Vec<_> = told.msg_id.split(',').collect();
        if told.queue_id != i32::from(sent.part) || ids.len() != sent.messages.len() {
            return Err(Error::Broken(format!("{told:?} to {} messages", sent.messages.len())));
        }
        self.note(sent, Outcome::Ok, Some(told.queue_offset));
        for (at, id) in (told.queue_offset..).zip(ids) {
            let id: MessageId = id.parse().map_err(|_| Error::Broken(format!("{id:?} as a message id")))?;
            if let Some(why) = self.load.places.note(self.topic, sent.part, at, id.offset) {
                self.load.tape.damaged(self.name, self.topic, (sent.t0, self.load.tape.now()), &why);
            }
        }
        Ok(())
    }

    fn note(&self, sent: &Sent, outcome: Outcome, first: Option<i64>) {
        let now = self.load.tape.now();
        for (at, (seq, sum)) in (0..).zip(&sent.messages) {
            self.load.tape.record((sent.t0, now), self.name, outcome, |names| {
                let (queue, publisher) = (names.name(self.topic), names.name(self.name));
                let offset = first.and_then(|first| offset(first + at).ok());
                let msg = Msg { publisher, seq: *seq };
                let (part, sum) = (Some(sent.part), Some(*sum));
                Op::Publish(Publish { queue, part, msg, offset, sum, ordered: true })
            });
        }
    }
}

/// What must arrive as it left, beside the body: a broker adds properties of its own.
fn sum_of(properties: Properties<'_>, flag: i32) -> u32 {
    let ours = ["TAGS", "KEYS", OWN].map(|name| properties.get(name).unwrap_or("-"));
    body::checksum(format!("{flag} {}", ours.join(" ")).as_bytes())
}

/// A record of a pull's answer.
struct Pulled {
    own: Option<Own>,
    offset: Offset,
    /// None for a message of the other world, which was given other properties.
    sum: Option<u32>,
}

/// What a pull found: records, and where to go on.
struct Found {
    records: Vec<Pulled>,
    next: i64,
}

/// Pulls once. `reader` is client, group, topic; `flags` are those of the wire with the offset to commit.
fn pull(
    load: &Load,
    client: &mut Remoting,
    reader: (&str, &str, &str),
    (part, from): (u16, i64),
    flags: (i32, i64),
    most: i32,
) -> Result<Found, Error> {
    let (name, group, topic) = reader;
    let header = PullMessage {
        consumer_group: group,
        topic,
        queue_id: part.into(),
        queue_offset: from,
        max_msg_nums: most,
        sys_flag: flags.0 | pull_flag::SUBSCRIPTION,
        commit_offset: flags.1,
        suspend_timeout_millis: WAIT,
        subscription: Some("*"),
        ..PullMessage::default()
    };
    let begin = load.tape.now();
    client.ask(RequestCode::PullMessage, &header, b"", |answer| {
        let code = answer.head.response_code();
        let nothing = [ResponseCode::PullNotFound, ResponseCode::PullRetryImmediately];
        if code.is_some_and(|code| nothing.contains(&code)) {
            return Ok(Found { records: Vec::new(), next: from });
        }
        if code != Some(ResponseCode::Success) {
            return Err(refusal(answer));
        }
        let told: PullAnswer = answer.header().map_err(|error| Error::Broken(error.to_string()))?;
        let times = (begin, load.tape.now());
        let mut records = Vec::new();
        let mut rest = answer.body;
        while !rest.is_empty() {
            let (message, used) =
                StoredMessage::decode(rest).map_err(|error| Error::Broken(error.to_string()))?;
            rest = &rest[used..];
            let record = &message.record;
            let wrong = [
                message.check_body().err().map(|error| error.to_string()),
                (record.topic != topic || record.queue_id != i32::from(part))
                    .then(|| format!("a record of {} {} from {topic} {part}", record.topic, record.queue_id)),
                load.places.note(topic, part, record.queue_offset, record.physical_offset),
            ];
            for why in wrong.into_iter().flatten() {
                load.tape.damaged(name, topic, times, &why);
            }
            let own = load.tape.owner(&load.name, name, topic, times, message.body);
            let is_ours = record.properties.get(OWN).is_some();
            let sum = is_ours.then(|| sum_of(record.properties, record.flag));
            records.push(Pulled { own, offset: offset(record.queue_offset)?, sum });
        }
        Ok(Found { records, next: told.next_begin_offset })
    })
}

struct Consumer<'r> {
    load: &'r Load,
    name: &'r str,
    group: &'r str,
    topic: &'r str,
    dice: &'r Dice,
}

impl Consumer<'_> {
    /// One connection, until it is lost or consuming is over.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = connect(self.load, self.dice)?;
        self.load.note_consumer(client.port(), self.name);
        let mut next = [0_i64; PARTS as usize];
        let mut committed = next;
        for part in 0..PARTS {
            look_at_ends(self.load, &mut client, self.name, self.topic, part)?;
            if let Some(stored) =
                stored_offset(self.load, &mut client, (self.name, self.group, self.topic), part)?
            {
                next[usize::from(part)] = stored;
                committed[usize::from(part)] = stored;
            }
        }
        let lazy = self.dice.below(3) > 0;
        while self.load.is_consuming() {
            let mut found = 0;
            for part in 0..PARTS {
                let at = usize::from(part);
                let flags = self.flags(part, next[at], &mut committed[at]);
                let most = 1 + i32::try_from(self.dice.below(64)).expect("a small number");
                found += self.pull(&mut client, part, &mut next[at], flags, most)?;
                if next[at] > committed[at] && self.dice.below(10) < 3 {
                    self.commit(&mut client, part, next[at])?;
                    committed[at] = next[at];
                }
            }
            if lazy && self.load.is_publishing() {
                thread::sleep(Duration::from_millis(self.dice.below(30)));
            } else if found == 0 {
                thread::sleep(Duration::from_millis(5));
            }
        }
        for part in 0..PARTS {
            self.commit(&mut client, part, next[usize::from(part)])?;
        }
        // What is pulled again from here on is somebody else's.
        let now = self.load.tape.now();
        self.load.tape.record((now, now), self.name, Outcome::Ok, |_| Op::Lost { queue: None });
        Ok(())
    }

    /// Some pulls wait, some bring the offset along. What is brought along is not answered.
    fn flags(&self, part: u16, next: i64, committed: &mut i64) -> (i32, i64) {
        let wait = if self.dice.below(8) == 0 { pull_flag::SUSPEND } else { 0 };
        if next <= *committed || self.dice.below(10) > 2 {
            return (wait, 0);
        }
        let now = self.load.tape.now();
        self.load.tape.record((now, now), self.name, Outcome::Info, |names| {
            Op::Commit(cursor(names, (self.group, self.topic), part, next))
        });
        *committed = next;
        (wait | pull_flag::COMMIT_OFFSET, next)
    }

    fn pull(
        &self,
        client: &mut Remoting,
        part: u16,
        next: &mut i64,
        flags: (i32, i64),
        most: i32,
    ) -> Result<usize, Error> {
        let begin = self.load.tape.now();
        let reader = (self.name, self.group, self.topic);
        let found = pull(self.load, client, reader, (part, *next), flags, most)?;
        let times = (begin, self.load.tape.now());
        for Pulled { own, offset, sum } in &found.records {
            let Some(own) = own else { continue };
            self.load.note_arrival();
            self.load.tape.record(times, self.name, Outcome::Ok, |names| {
                Op::Deliver(Delivery {
                    queue: names.name(self.topic),
                    group: names.name(self.group),
                    part,
                    msg: own.named(names),
                    offset: Some(*offset),
                    tag: None,
                    token: None,
                    redelivered: None,
                    sum: *sum,
                    asked: true,
                    auto: false,
                })
            });
        }
        *next = found.next;
        Ok(found.records.len())
    }

    fn commit(&self, client: &mut Remoting, part: u16, next: i64) -> Result<(), Error> {
        let begin = self.load.tape.now();
        let header = UpdateConsumerOffset {
            consumer_group: self.group,
            topic: self.topic,
            queue_id: part.into(),
            commit_offset: next,
            broker_name: None,
        };
        let done = client.ask(RequestCode::UpdateConsumerOffset, &header, b"", succeeded);
        let outcome = if done.is_ok() { Outcome::Ok } else { Outcome::Info };
        self.load.tape.record((begin, self.load.tape.now()), self.name, outcome, |names| {
            Op::Commit(cursor(names, (self.group, self.topic), part, next))
        });
        done
    }
}

fn cursor(names: &mut Names, (group, topic): (&str, &str), part: u16, at: i64) -> Cursor {
    let offset = offset(at).expect("an offset that was pulled");
    Cursor { queue: names.name(topic), group: names.name(group), part, offset }
}

/// What the group had committed, noted; none if it never did.
fn stored_offset(
    load: &Load,
    client: &mut Remoting,
    (name, group, topic): (&str, &str, &str),
    part: u16,
) -> Result<Option<i64>, Error> {
    let begin = load.tape.now();
    let header = QueryConsumerOffset {
        consumer_group: group,
        topic,
        queue_id: part.into(),
        set_zero_if_not_found: Some(false),
        broker_name: None,
    };
    let stored = client.ask(RequestCode::QueryConsumerOffset, &header, b"", |answer| {
        if answer.head.response_code() == Some(ResponseCode::QueryNotFound) {
            return Ok(None);
        }
        told_offset(answer).map(Some)
    })?;
    if let Some(stored) = stored {
        offset(stored)?;
        load.tape.record((begin, load.tape.now()), name, Outcome::Ok, |names| {
            Op::Committed(cursor(names, (group, topic), part, stored))
        });
    }
    Ok(stored)
}

fn told_offset(answer: &Command<'_>) -> Result<i64, Error> {
    succeeded(answer)?;
    let told: OffsetAnswer = answer.header().map_err(|error| Error::Broken(error.to_string()))?;
    Ok(told.offset)
}

/// Asks where a queue begins and ends, and notes both.
fn look_at_ends(
    load: &Load,
    client: &mut Remoting,
    name: &str,
    topic: &str,
    part: u16,
) -> Result<(i64, i64), Error> {
    let begin = load.tape.now();
    let queue = QueueAddress { topic, queue_id: part.into(), broker_name: None };
    let min = client.ask(RequestCode::GetMinOffset, &queue, b"", told_offset)?;
    let between = load.tape.now();
    let queue = GetMaxOffset { topic, queue_id: part.into(), ..GetMaxOffset::default() };
    let max = client.ask(RequestCode::GetMaxOffset, &queue, b"", told_offset)?;
    let edge = |names: &mut Names, at: Offset| Edge { queue: names.name(topic), part, offset: at };
    let (low, high) = (offset(min)?, offset(max)?);
    load.tape.record((begin, between), name, Outcome::Ok, |names| Op::MinOffset(edge(names, low)));
    load.tape.record((between, load.tape.now()), name, Outcome::Ok, |names| Op::MaxOffset(edge(names, high)));
    Ok((min, max))
}

/// Reads every queue from its first message to its last, and holds the groups to what they had.
pub(super) fn scan(load: &Load, deadline: Instant) -> Result<(), String> {
    for topic in TOPICS {
        for part in 0..PARTS {
            let end = scan_queue(load, topic, part, deadline)
                .map_err(|error| format!("reading {topic:?} {part}: {error}"))?;
            for (group, _) in GROUPS.into_iter().filter(|(_, of)| *of == topic) {
                let stored = connect(load, &Dice::new(1))
                    .and_then(|mut client| stored_offset(load, &mut client, ("scan", group, topic), part))
                    .map_err(|error| format!("the offset of {group:?}: {error}"))?;
                if stored != Some(end) {
                    return Err(format!("group {group:?} stands at {stored:?} of {end} in {topic:?} {part}"));
                }
            }
        }
    }
    Ok(())
}

fn scan_queue(load: &Load, topic: &str, part: u16, deadline: Instant) -> Result<i64, Error> {
    let mut client = connect(load, &Dice::new(0))?;
    let (min, max) = look_at_ends(load, &mut client, "scan", topic, part)?;
    if min != 0 {
        return Err(Error::Broken(format!("it begins at {min}, and nothing was to be removed")));
    }
    let mut next = min;
    while next < max {
        if Instant::now() > deadline {
            return Err(Error::Broken(format!("it has not ended at {next} of {max}")));
        }
        let begin = load.tape.now();
        let found = pull(load, &mut client, ("scan", "scan", topic), (part, next), (0, 0), 64)?;
        if found.next <= next {
            return Err(Error::Broken(format!("nothing at {next} of {max}")));
        }
        next = found.next;
        let times = (begin, load.tape.now());
        for Pulled { own, offset, sum } in found.records {
            let Some(own) = own else { continue };
            load.tape.record(times, "scan", Outcome::Ok, |names| {
                let (queue, msg) = (names.name(topic), own.named(names));
                Op::Scan(Scan { queue, part, offset, msg, sum })
            });
        }
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_moves_in_the_log_or_shares_its_place_is_found() {
        let places = Places::default();
        assert_eq!(places.note("t", 0, 5, 4_096), None);
        assert_eq!(places.note("t", 0, 5, 4_096), None);
        assert!(places.note("t", 0, 5, 8_192).unwrap().contains("lay at 4096"));
        assert!(places.note("t", 1, 5, 4_096).unwrap().contains("4096 of the log"));
    }

    #[test]
    fn properties_that_a_broker_adds_change_no_checksum_and_a_lost_key_does() {
        let sum = |text: &str| sum_of(Properties::new(text), 0);
        let ours = "TAGS\u{1}a\u{2}KEYS\u{1}k\u{2}own\u{1}p/1\u{2}";
        let added = format!("{ours}CLUSTER\u{1}c\u{2}");
        assert_eq!(sum(ours), sum(&added));
        assert_ne!(sum(ours), sum("TAGS\u{1}a\u{2}own\u{1}p/1\u{2}"));
    }
}
