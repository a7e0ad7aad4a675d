//! AMQP clients: publishers with confirms, consumers that acknowledge, give back and hold, and a drain.
//!
//! Publishers (a window of 100; one a queue, two by way of a fanout) and two consumers a queue (prefetch 50, single and
//! multiple acknowledgements, some given back, some held). With RocketMQ beside it, one more publishes into a topic and
//! one more queue gets a topic's messages.
//!
//! Owns: this traffic. Promises: a publish of unknown outcome is not repeated. Does not know: who harms the broker.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use dassie_amqp::content::{Properties, PropertyList};

use super::load::{Load, Worlds};
use super::rocketmq::{TOPIC, TOPIC_OF_BOTH};
use super::tape::{Own, Tape};
use crate::body::{self, Identity};
use crate::history::event::{Delivery, Msg, Name, Op, Outcome, Publish, Settle};
use crate::sim::dice::Dice;
use crate::wire::{Client, Durability, Error, Heard, Message};

const QUEUES: [&str; 3] = ["one", "two", "three"];
const FANOUT: &str = "both";
/// The queues behind the fanout.
const BEHIND: [&str; 2] = ["two", "three"];
/// Gets each message of [`TOPIC`], when there is RocketMQ.
const ACROSS: &str = "across";
/// Who publishes where to, and to how many queues that leads.
const PUBLISHERS: [(&str, &str, i64); 5] =
    [("p1", "one", 1), ("p2", "two", 1), ("p3", "three", 1), ("p4", FANOUT, 2), ("p5", FANOUT, 2)];
/// Publishes into [`TOPIC_OF_BOTH`], when there is RocketMQ.
const CROSSING: &str = "p6";
const WINDOW: usize = 100;
const PREFETCH: u16 = 50;
/// So many messages may lie in the queues before publishers wait, so that the end comes soon.
const BACKLOG: i64 = 5_000;
/// The longest pause of a lazy consumer between two reads, in milliseconds.
const LAZY: u64 = 40;
/// The most that one publisher sends in a second: a run of hundreds of kills stays a file that can be judged.
const RATE: u64 = 2_000;

/// The exchange that a topic is for AMQP.
fn exchange_of(topic: &str) -> String {
    format!("amq.rmq.{topic}")
}

/// The queues of a run.
fn queues(worlds: Worlds) -> impl Iterator<Item = &'static str> {
    QUEUES.into_iter().chain((worlds == Worlds::Both).then_some(ACROSS))
}

pub(super) fn declare(load: &Load) -> Result<(), Error> {
    let mut client = Client::connect(load.ports.amqp)?;
    for queue in queues(load.worlds) {
        client.declare_queue(queue, Durability::Durable)?;
    }
    client.declare_fanout(FANOUT)?;
    for queue in BEHIND {
        let begin = load.tape.now();
        client.bind(queue, FANOUT, "")?;
        note_route(load, begin, FANOUT, queue);
    }
    if load.worlds == Worlds::Both {
        let begin = load.tape.now();
        client.bind(ACROSS, &exchange_of(TOPIC), "#")?;
        // The topic keeps what its exchange passes on.
        note_route(load, 0, TOPIC, TOPIC);
        note_route(load, begin, TOPIC, ACROSS);
        note_route(load, begin, &exchange_of(TOPIC_OF_BOTH), TOPIC_OF_BOTH);
    }
    client.close()
}

fn note_route(load: &Load, begin: u64, from: &str, queue: &str) {
    let end = if begin == 0 { 0 } else { load.tape.now() };
    load.tape.harness(begin, end, |names| Op::Route { from: names.name(from), queue: names.name(queue) });
}

pub(super) fn begin<'scope, 'env>(load: &'env Load, scope: &'scope Scope<'scope, 'env>, dice: &Dice) {
    let crossing = (CROSSING, TOPIC_OF_BOTH, 0);
    for (name, place, copies) in
        PUBLISHERS.into_iter().chain((load.worlds == Worlds::Both).then_some(crossing))
    {
        let place = if name == CROSSING { exchange_of(place) } else { place.to_owned() };
        let seed = dice.throw();
        load.publishers.fetch_add(1, Ordering::SeqCst);
        scope.spawn(move || publish(load, name, &place, copies, &Dice::new(seed)));
    }
    for queue in queues(load.worlds) {
        for which in ["a", "b"] {
            let seed = dice.throw();
            scope.spawn(move || consume(load, &format!("{queue}-{which}"), queue, &Dice::new(seed)));
        }
    }
}

fn publish(load: &Load, name: &str, place: &str, copies: i64, dice: &Dice) {
    let mut publisher = Publisher { load, name, place, copies, dice, seq: 0, pending: VecDeque::new() };
    while load.is_publishing() {
        if let Err(error) = publisher.live() {
            for sent in publisher.pending.drain(..) {
                note_publish(&load.tape, &sent, name, place, Outcome::Info);
            }
            load.ended(name, &error);
        }
    }
    load.publishers.fetch_sub(1, Ordering::SeqCst);
}

/// Each life of a consumer is a client of its own in the history: its channel is a new one.
fn consume(load: &Load, name: &str, queue: &str, dice: &Dice) {
    for life in 1_u64.. {
        if !load.is_consuming() {
            return;
        }
        let client = format!("{name}.{life}");
        let mut consumer =
            Consumer { load, name: &client, queue, dice, heard: load.tape.now(), open: Vec::new() };
        if let Err(error) = consumer.live() {
            let now = load.tape.now();
            load.tape.record((consumer.heard, now), &client, Outcome::Ok, |_| Op::Lost { queue: None });
            load.ended(name, &error);
        }
    }
}

/// A message through every place.
pub(super) fn last_messages(load: &Load) -> Result<(), String> {
    let crossing = (load.worlds == Worlds::Both).then(|| exchange_of(TOPIC_OF_BOTH));
    for place in QUEUES.into_iter().chain([FANOUT]).chain(crossing.as_deref()) {
        let (name, dice) = (format!("last-{place}"), Dice::new(0));
        let mut last =
            Publisher { load, name: &name, place, copies: 1, dice: &dice, seq: 0, pending: VecDeque::new() };
        last.one().map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Gets what consumers gave back or never got. An answer on the channel proves the acknowledgement before it.
pub(super) fn drain(load: &Load, deadline: Instant) -> Result<(), String> {
    for queue in queues(load.worlds) {
        drain_queue(load, queue, deadline).map_err(|error| format!("draining {queue:?}: {error}"))?;
    }
    Ok(())
}

fn drain_queue(load: &Load, queue: &str, deadline: Instant) -> Result<(), Error> {
    let name = format!("drain-{queue}");
    let tape = &load.tape;
    let mut client = Client::connect(load.ports.amqp)?;
    client.find_queue(queue)?;
    let mut empty = 0;
    let mut acked: Option<(u64, Own)> = None;
    while empty < 2 {
        if Instant::now() > deadline {
            return Err(Error::Broken("it is never empty".to_owned()));
        }
        let begin = tape.now();
        client.get(queue);
        let got = answer_to_get(load, &mut client, &name, queue, begin)?;
        if let Some((t0, msg)) = acked.take() {
            note_settled(tape, (t0, tape.now()), &name, Outcome::Ok, (queue, &msg), Op::Ack);
        }
        match got {
            None => {
                tape.record((begin, tape.now()), &name, Outcome::Ok, |names| Op::Empty {
                    queue: names.name(queue),
                });
                empty += 1;
                thread::sleep(Duration::from_millis(200));
            }
            Some((tag, own)) => {
                empty = 0;
                acked = own.map(|own| (tape.now(), own));
                client.ack(tag, false);
            }
        }
    }
    client.close()
}

/// What a get brought: none if there is nothing; no identity if it is damaged.
fn answer_to_get(
    load: &Load,
    client: &mut Client,
    name: &str,
    queue: &str,
    asked: u64,
) -> Result<Option<(u64, Option<Own>)>, Error> {
    client.flush()?;
    for _ in 0..15 {
        if let Some(heard) = client.hear()? {
            match heard {
                Heard::Nothing => return Ok(None),
                Heard::Got(message) => {
                    let own = note_arrival(&load.tape, &load.name, name, queue, Some(asked), &message);
                    return Ok(Some((message.tag, own)));
                }
                other => return Err(Error::Broken(format!("{other:?} to a get"))),
            }
        }
        client.receive(Duration::from_secs(1))?;
    }
    Err(Error::Broken("no answer to a get".to_owned()))
}

/// A publish that waits for its confirm.
struct Sent {
    tag: u64,
    seq: u32,
    t0: u64,
    /// Of the properties; none where they change on the way.
    sum: Option<u32>,
}

fn note_publish<W: std::io::Write>(
    tape: &Tape<W>,
    sent: &Sent,
    publisher: &str,
    place: &str,
    outcome: Outcome,
) {
    let &Sent { seq, t0, sum, .. } = sent;
    tape.record((t0, tape.now()), publisher, outcome, |names| {
        let (queue, publisher) = (names.name(place), names.name(publisher));
        let msg = Msg { publisher, seq };
        Op::Publish(Publish { queue, part: None, msg, offset: None, sum, ordered: true })
    });
}

fn note_settled<W: std::io::Write>(
    tape: &Tape<W>,
    times: (u64, u64),
    client: &str,
    outcome: Outcome,
    (queue, msg): (&str, &Own),
    how: fn(Settle) -> Op,
) {
    tape.record(times, client, outcome, |names| {
        let queue = names.name(queue);
        how(Settle { queue, group: Name::NONE, msg: msg.named(names), token: None })
    });
}

/// Notes an arrival; none when the body does not prove itself.
fn note_arrival<W: std::io::Write>(
    tape: &Tape<W>,
    run: &str,
    client: &str,
    queue: &str,
    asked: Option<u64>,
    message: &Message<'_>,
) -> Option<Own> {
    let now = tape.now();
    let times = (asked.unwrap_or(now), now);
    let own = tape.owner(run, client, queue, times, &message.body)?;
    tape.record(times, client, Outcome::Ok, |names| {
        Op::Deliver(Delivery {
            queue: names.name(queue),
            group: Name::NONE,
            part: 0,
            msg: own.named(names),
            offset: None,
            tag: message.tag.try_into().ok(),
            token: None,
            redelivered: Some(message.redelivered),
            // What comes from the other world was given other properties.
            sum: (queue != ACROSS).then(|| body::checksum(message.properties.as_bytes())),
            asked: asked.is_some(),
            auto: false,
        })
    });
    Some(own)
}

struct Publisher<'r> {
    load: &'r Load,
    name: &'r str,
    place: &'r str,
    copies: i64,
    dice: &'r Dice,
    seq: u32,
    pending: VecDeque<Sent>,
}

impl Publisher<'_> {
    /// One connection, until it is lost or enough was published.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.load.ports.amqp)?;
        client.confirm()?;
        let (begin, mut tag) = (Instant::now(), 0);
        let mut heard = Instant::now();
        loop {
            let goes_on = self.load.is_publishing();
            if !goes_on && self.pending.is_empty() {
                return client.close();
            }
            let allowed =
                u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000;
            let mut burst = 1 + self.dice.below(30);
            while goes_on
                && burst > 0
                && tag < allowed
                && self.pending.len() < WINDOW
                && self.load.backlog.load(Ordering::Relaxed) < BACKLOG
            {
                tag += 1;
                burst -= 1;
                self.publish(&mut client, tag);
            }
            client.flush()?;
            let wait = Duration::from_millis(if self.pending.len() < WINDOW { 2 } else { 100 });
            if client.receive(wait)? {
                heard = Instant::now();
            }
            self.hear(&mut client)?;
            if !self.pending.is_empty() && heard.elapsed() > self.load.patience() {
                return Err(Error::Broken(format!("no confirm for {:?}", self.load.patience())));
            }
        }
    }

    /// A single message, confirmed.
    fn one(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.load.ports.amqp)?;
        client.confirm()?;
        self.publish(&mut client, 1);
        client.flush()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.pending.is_empty() && Instant::now() < deadline {
            client.receive(Duration::from_secs(1))?;
            self.hear(&mut client)?;
        }
        client.close()
    }

    fn publish(&mut self, client: &mut Client, tag: u64) {
        self.seq += 1;
        // Mostly small, some larger, a few of several frames.
        let size = match self.dice.below(1_000) {
            0..3 => 200_000,
            3..50 => 8_000,
            _ => 100 + usize::try_from(self.dice.below(400)).expect("a small number"),
        };
        let identity =
            Identity { run: &self.load.name, publisher: self.name, seq: self.seq, queue: self.place };
        let body = identity.encode(size).expect("names without white space and a small size");
        let id = format!("{}/{}", self.name, self.seq);
        let mut block = Vec::new();
        PropertyList { delivery_mode: Some(2), message_id: Some(id.as_bytes()), ..Default::default() }
            .encode(&mut block);
        let properties = Properties::parse(&block).expect("just written");
        let crosses = self.place.starts_with("amq.rmq.");
        let (exchange, key) = match self.place {
            FANOUT => (FANOUT, ""),
            place if crosses => (place, "tag"),
            queue => ("", queue),
        };
        let t0 = self.load.tape.now();
        client.publish(exchange, key, properties, &body);
        self.pending.push_back(Sent {
            tag,
            seq: self.seq,
            t0,
            sum: (!crosses).then(|| body::checksum(&block)),
        });
    }

    fn hear(&mut self, client: &mut Client) -> Result<(), Error> {
        while let Some(heard) = client.hear()? {
            let (tag, multiple, outcome) = match heard {
                Heard::Confirmed { tag, multiple } => (tag, multiple, Outcome::Ok),
                // Not taken, says the server; in a fanout one queue may have it all the same.
                Heard::Refused { tag, multiple } => (tag, multiple, Outcome::Info),
                // Told by the broker that it must wait: confirms do not come meanwhile.
                Heard::Blocked(_) => {
                    self.load.note_blocked();
                    continue;
                }
                Heard::Unblocked => continue,
                other => return Err(Error::Broken(format!("{other:?} to a publisher"))),
            };
            let end = self.pending.partition_point(|sent| sent.tag <= tag);
            let begin = if multiple { 0 } else { self.pending.partition_point(|sent| sent.tag < tag) };
            if begin == end {
                return Err(Error::Broken(format!("a confirm of {tag}, which waits for none")));
            }
            for sent in self.pending.drain(begin..end) {
                self.load.backlog.fetch_add(self.copies, Ordering::Relaxed);
                if outcome == Outcome::Ok {
                    self.load.note_confirms(1);
                }
                note_publish(&self.load.tape, &sent, self.name, self.place, outcome);
            }
        }
        Ok(())
    }
}

struct Consumer<'r> {
    load: &'r Load,
    name: &'r str,
    queue: &'r str,
    dice: &'r Dice,
    /// The connection lived then, on the tape's clock.
    heard: u64,
    /// Delivered and not settled.
    open: Vec<(u64, Own)>,
}

impl Consumer<'_> {
    /// One connection, until it is lost or consuming is over.
    fn live(&mut self) -> Result<(), Error> {
        let mut client = Client::connect(self.load.ports.amqp)?;
        self.load.note_consumer(client.port(), self.name);
        client.consume(self.queue, Some(PREFETCH))?;
        // What is settled at once can not be lost: some lives are slow, so that a crash finds messages in the queues.
        let pause = Duration::from_millis(if self.dice.below(3) == 0 { 0 } else { self.dice.below(LAZY) });
        while self.load.is_consuming() {
            if self.load.is_publishing() {
                thread::sleep(pause);
            }
            let asked = self.load.tape.now();
            let idle = !client.receive(Duration::from_millis(50))?;
            self.heard = asked;
            let arrived = self.hear(&mut client)?;
            self.give_back(&mut client, arrived);
            // Some are held, so that a crash finds messages at consumers; never so many that the queue stands still.
            if idle || self.open.len() > usize::from(PREFETCH) / 2 || self.dice.below(5) > 0 {
                self.acknowledge(&mut client);
            }
            client.flush()?;
        }
        // What was delivered and not heard goes back from here on.
        let now = self.load.tape.now();
        self.load.tape.record((now, now), self.name, Outcome::Ok, |_| Op::Lost { queue: None });
        client.close()
    }

    fn hear(&self, client: &mut Client) -> Result<Vec<(u64, Own)>, Error> {
        let mut arrived = Vec::new();
        while let Some(heard) = client.hear()? {
            let message = match heard {
                Heard::Delivered(message) => message,
                other => return Err(Error::Broken(format!("{other:?} to a consumer"))),
            };
            if !message.redelivered && self.queue != ACROSS {
                self.load.backlog.fetch_sub(1, Ordering::Relaxed);
            }
            self.load.note_arrival();
            let own = note_arrival(&self.load.tape, &self.load.name, self.name, self.queue, None, &message);
            // A damaged one is in the history, which settles nothing: it may be acknowledged by the next of several.
            arrived.extend(own.map(|own| (message.tag, own)));
        }
        Ok(arrived)
    }

    fn give_back(&mut self, client: &mut Client, arrived: Vec<(u64, Own)>) {
        for (tag, own) in arrived {
            if self.dice.permille(20) {
                let now = self.load.tape.now();
                note_settled(
                    &self.load.tape,
                    (now, now),
                    self.name,
                    Outcome::Info,
                    (self.queue, &own),
                    Op::Requeue,
                );
                client.requeue(tag);
            } else {
                self.open.push((tag, own));
            }
        }
    }

    /// Settles all that is open, one by one or at once.
    fn acknowledge(&mut self, client: &mut Client) {
        let at_once = self.dice.below(2) == 0;
        let last = self.open.last().map(|(tag, _)| *tag);
        for (tag, own) in self.open.drain(..) {
            let now = self.load.tape.now();
            note_settled(&self.load.tape, (now, now), self.name, Outcome::Info, (self.queue, &own), Op::Ack);
            if !at_once {
                client.ack(tag, false);
            }
        }
        if let Some(tag) = last.filter(|_| at_once) {
            client.ack(tag, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::judge;
    use super::*;

    /// A short run as the clients record it: three messages confirmed, delivered, settled.
    fn recorded() -> String {
        let tape = Tape::new(Vec::new());
        tape.harness(0, 0, |names| Op::Plan { what: names.name("confirms"), count: 3 });
        for seq in 1..=3 {
            let body = Identity { run: "r", publisher: "p1", seq, queue: "one" }.encode(100).unwrap();
            let properties = Properties::EMPTY;
            let sum = Some(body::checksum(properties.as_bytes()));
            let sent = Sent { tag: seq.into(), seq, t0: tape.now(), sum };
            note_publish(&tape, &sent, "p1", "one", Outcome::Ok);
            let message = Message { tag: seq.into(), redelivered: false, properties, body: body.into() };
            let own = note_arrival(&tape, "r", "c.1", "one", None, &message).unwrap();
            let now = tape.now();
            note_settled(&tape, (now, now), "c.1", Outcome::Info, ("one", &own), Op::Ack);
        }
        String::from_utf8(tape.finish().unwrap()).unwrap()
    }

    #[test]
    fn a_confirmed_message_dropped_from_a_recorded_history_is_a_loss() {
        let whole = recorded();
        let report = judge(whole.as_bytes()).unwrap();
        assert!(report.passed(), "{report}");
        let is_kept = |line: &&str| line.contains("\"op\":\"publish\"") || !line.contains("\"p1/2\"");
        let without: Vec<_> = whole.lines().filter(is_kept).collect();
        assert_eq!(whole.lines().count() - without.len(), 2, "one delivery and its settlement are gone");
        let report = judge(without.join("\n").as_bytes()).unwrap();
        assert!(!report.passed());
        assert_eq!(report.findings().totals().keys().copied().collect::<Vec<_>>(), ["loss.lost"]);
    }

    #[test]
    fn a_damaged_body_is_recorded_as_such() {
        let tape = Tape::new(Vec::new());
        let message = Message {
            tag: 1,
            redelivered: false,
            properties: Properties::EMPTY,
            body: b"nonsense"[..].into(),
        };
        assert!(note_arrival(&tape, "r", "c.1", "one", None, &message).is_none());
        let report = judge(&tape.finish().unwrap()[..]).unwrap();
        assert!(report.findings().totals().contains_key("phantom.damaged"), "{report}");
    }
}
