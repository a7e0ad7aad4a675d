//! RocketMQ messages that come later: delayed ones, transactions, what a group sends back; and the locks of ordered consumption.
//!
//! One producer sends delayed messages. One sends half messages, ends some itself and answers for the rest when it is asked; what becomes
//! of each is decided by its number, so that every answer to a question is the same. One consumer sends messages back. One thread locks
//! a queue in the name of two clients.
//!
//! Owns: this traffic, and a ledger of what must come of it: so many copies for certain, so many more perhaps. Promises: a wish of unknown
//! outcome counts as perhaps; what comes too often, too early or never is found at the end, a lock held twice at once.
//! Does not know: who harms the broker.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dassie_rocketmq::body::{Heartbeat, LockAnswer, LockQueues, MessageQueue, Producer, from_json, to_json};
use dassie_rocketmq::command::Fields;
use dassie_rocketmq::header::{
    CheckTransactionState, ConsumerSendBack, CreateTopic, EndTransaction, PullAnswer, PullMessage,
    SendAnswer, SendMessage, ShortNames, pull_flag,
};
use dassie_rocketmq::message::{
    MessageId, PropertiesText, StoredMessage, SysFlag, TransactionState, property,
};
use dassie_rocketmq::{Command, HeaderCodec, RequestCode, ResponseCode};

use super::load::Load;
use crate::remoting::{Remoting, refusal};
use crate::sim::dice::Dice;
use crate::wire::Error;

/// How the broker is set: delays of the levels, and when transactions are asked about.
pub(super) const SETTINGS: [&str; 4] = [
    "rocketmq.delay_levels=1s 2s 3s",
    "rocketmq.transaction_timeout=1",
    "rocketmq.transaction_check_interval=1",
    // A question that a crash swallows counts, too: none is put aside here.
    "rocketmq.transaction_check_max=1000",
];
/// What the levels above mean, in ms.
const LEVELS: [i64; 3] = [1_000, 2_000, 3_000];
/// Log time follows the wall clock at a limited rate: what is due by one may be early by the other. In ms.
const EARLY: i64 = 300;

const TOPIC: &str = "later";
const PARTS: u16 = 2;
const PRODUCERS: &str = "later-producers";
const GROUP: &str = "later-group";
const RETRIES: &str = "%RETRY%later-group";
/// Which message it is.
const OWN: &str = "own";
/// A message is sent back so often, at most.
const BACKS: i32 = 3;
/// So long is waited for questions about half messages of which nobody knows whether they are there.
const QUESTIONS: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Locks end after 60 s; a test of one begins well before.
const LOCKED_FOR: Duration = Duration::from_secs(45);

/// Topic, message, number of the attempt.
type Key = (&'static str, String, i32);

/// What must be found in the end.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<BTreeMap<Key, Owed>>);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Owed {
    sure: u32,
    perhaps: u32,
}

impl Ledger {
    fn note(&self, topic: &'static str, own: &str, attempt: i32, is_sure: bool) {
        let mut owed = self.0.lock().expect("no thread panics here");
        let entry = owed.entry((topic, own.to_owned(), attempt)).or_default();
        if is_sure {
            entry.sure += 1;
        } else {
            entry.perhaps += 1;
        }
    }

    /// What is wrong with what was found; `None`: nothing, or only that some has not come yet (`true`).
    fn judge(&self, found: &BTreeMap<Key, u32>) -> Result<bool, String> {
        let owed = self.0.lock().expect("no thread panics here");
        for (key, count) in found {
            let most = owed.get(key).map_or(0, |owed| owed.sure + owed.perhaps);
            if *count > most {
                return Err(format!("{key:?} came {count} times, at most {most} was asked for"));
            }
        }
        Ok(owed.iter().all(|(key, owed)| found.get(key).copied().unwrap_or(0) >= owed.sure))
    }

    fn missing(&self, found: &BTreeMap<Key, u32>) -> Vec<Key> {
        let owed = self.0.lock().expect("no thread panics here");
        let missing = |(key, owed): &(&Key, &Owed)| found.get(*key).copied().unwrap_or(0) < owed.sure;
        owed.iter().filter(missing).map(|(key, _)| key.clone()).collect()
    }

    /// How many messages, how many of them for certain.
    pub(super) fn sums(&self) -> (u64, u64) {
        let owed = self.0.lock().expect("no thread panics here");
        owed.values().fold((0, 0), |(all, sure), owed| {
            (all + u64::from(owed.sure + owed.perhaps), sure + u64::from(owed.sure))
        })
    }
}

fn connect(load: &Load) -> Result<Remoting, Error> {
    Remoting::connect(load.ports.rocketmq, HeaderCodec::Json)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Broken(error.to_string())
}

fn succeeded(answer: &Command<'_>) -> Result<(), Error> {
    match answer.head.response_code() {
        Some(ResponseCode::Success) => Ok(()),
        _ => Err(refusal(answer)),
    }
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn declare(load: &Load) -> Result<(), Error> {
    let mut client = connect(load)?;
    for (topic, parts) in [(TOPIC, PARTS), (RETRIES, 1)] {
        let topic = CreateTopic {
            topic,
            default_topic: "TBW102",
            read_queue_nums: parts.into(),
            write_queue_nums: parts.into(),
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        };
        client.ask(RequestCode::UpdateAndCreateTopic, &topic, b"", succeeded)?;
    }
    Ok(())
}

pub(super) fn begin<'scope, 'env>(load: &'env Load, scope: &'scope Scope<'scope, 'env>, dice: &Dice) {
    let seeds = [dice.throw(), dice.throw(), dice.throw()];
    load.publishers.fetch_add(3, Ordering::SeqCst);
    scope.spawn(move || {
        delay(load, &Dice::new(seeds[0]));
        load.publishers.fetch_sub(1, Ordering::SeqCst);
    });
    scope.spawn(move || {
        transact(load, &Dice::new(seeds[1]));
        load.publishers.fetch_sub(1, Ordering::SeqCst);
    });
    scope.spawn(move || {
        lock(load);
        load.publishers.fetch_sub(1, Ordering::SeqCst);
    });
    scope.spawn(move || send_back(load, &Dice::new(seeds[2])));
}

/// The end of a connection, and what was refused for now, are worth another try; anything else is a failure.
fn goes_on(load: &Load, who: &str, error: &Error) {
    let not_now =
        [ResponseCode::SystemBusy, ResponseCode::FlushDiskTimeout, ResponseCode::ServiceNotAvailable];
    match error {
        // Whether it was stored is not said.
        Error::Refused(code, _) if not_now.iter().any(|busy| busy.code() == i32::from(*code)) => {}
        error => load.ended(who, error),
    }
    thread::sleep(Duration::from_millis(20));
}

/// A connection that minds what the broker asks while it is asked something.
struct Minding {
    client: Remoting,
    /// A half message's own text, offset and position.
    questions: Vec<(String, i64, i64)>,
}

impl Minding {
    fn connect(load: &Load) -> Result<Self, Error> {
        Ok(Self { client: connect(load)?, questions: Vec::new() })
    }

    /// Like [`Remoting::ask`], but no question is passed over.
    fn ask<T>(
        &mut self,
        code: RequestCode,
        fields: &impl Fields,
        body: &[u8],
        read: impl Fn(&Command<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let opaque = self.client.say(code, fields, body)?;
        self.client.flush()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            while let Some(command) = self.client.hear_all()? {
                if command.head.is_response() && command.head.opaque == opaque {
                    return read(&command);
                }
                self.questions.extend(question(&command)?);
            }
            self.client.receive(Duration::from_secs(1))?;
        }
        Err(Error::Gone(std::io::ErrorKind::TimedOut.into()))
    }

    /// Hears what is asked within so long.
    fn listen(&mut self, wait: Duration) -> Result<(), Error> {
        self.client.receive(wait)?;
        while let Some(command) = self.client.hear_all()? {
            self.questions.extend(question(&command)?);
        }
        Ok(())
    }
}

/// A send of one message: which, into which queue, with which properties.
fn send(
    client: &mut Minding,
    own: &str,
    part: u16,
    sys_flag: i32,
    properties: &[(&str, &str)],
) -> Result<(MessageId, i64), Error> {
    let mut text = PropertiesText::default();
    for (name, value) in [(OWN, own), (property::UNIQUE_KEY, own)].iter().chain(properties) {
        text.push(name, value).map_err(broken)?;
    }
    let header = SendMessage {
        producer_group: PRODUCERS,
        topic: TOPIC,
        default_topic: "TBW102",
        default_topic_queue_nums: PARTS.into(),
        queue_id: part.into(),
        sys_flag,
        born_timestamp: wall_ms(),
        properties: Some(text.properties().text()),
        ..SendMessage::default()
    };
    client.ask(RequestCode::SendMessageV2, &ShortNames(header), own.as_bytes(), |answer| {
        succeeded(answer)?;
        let told: SendAnswer<'_> = answer.header().map_err(broken)?;
        Ok((told.msg_id.parse().map_err(broken)?, told.queue_offset))
    })
}

// ---- delays

fn delay(load: &Load, dice: &Dice) {
    let mut number = 0_u32;
    while load.is_publishing() {
        let mut lives = || -> Result<(), Error> {
            let mut client = Minding::connect(load)?;
            while load.is_publishing() {
                number += 1;
                let level = 1 + usize::try_from(dice.below(3)).expect("a small number");
                let own = format!("d{level}/{number}");
                let part = u16::try_from(dice.below(PARTS.into())).expect("a small number");
                let level = level.to_string();
                let sent = send(&mut client, &own, part, 0, &[(property::DELAY_TIME_LEVEL, &level)]);
                load.ledger.note(TOPIC, &own, 0, sent.is_ok());
                sent?;
                load.note_confirms(1);
                thread::sleep(Duration::from_millis(dice.below(20)));
            }
            Ok(())
        };
        if let Err(error) = lives() {
            goes_on(load, "later-delays", &error);
        }
    }
}

// ---- transactions

/// Is there more to send, or to answer? A run that failed ends at once.
fn owes(load: &Load, open: &Open, asked: Instant) -> bool {
    load.is_consuming() && (load.is_publishing() || !open.is_empty() || asked.elapsed() < QUESTIONS)
}

/// What becomes of a transaction, whoever says it.
fn commits(own: &str) -> bool {
    own.ends_with(['0', '2', '4', '6', '8'])
}

fn end_of(own: &str) -> i32 {
    let state = if commits(own) { TransactionState::Commit } else { TransactionState::Rollback };
    state as i32
}

/// Halves that are there for certain and have not ended for certain: their offset and position, and whether an end was tried.
type Open = BTreeMap<String, ((i64, i64), bool)>;

fn transact(load: &Load, dice: &Dice) {
    let mut number = 0_u32;
    let mut open = Open::new();
    let mut asked = Instant::now();
    while owes(load, &open, asked) {
        let mut lives = || -> Result<(), Error> {
            let mut client = Minding::connect(load)?;
            heartbeat(&mut client)?;
            // Nobody asks about what has ended, and whether it has the lost answer would have said.
            let tried: Vec<_> =
                open.iter().filter(|(_, (_, tried))| *tried).map(|(o, (p, _))| (o.clone(), *p)).collect();
            for (own, place) in tried {
                end(&mut client, &own, place, false)?;
                open.remove(&own);
            }
            while owes(load, &open, asked) {
                if load.is_publishing() {
                    number += 1;
                    let own = format!("t/{number}");
                    half(load, dice, &mut client, &own, &mut open)?;
                    asked = Instant::now();
                }
                client.listen(Duration::from_millis(10))?;
                while let Some((own, offset, position)) = client.questions.pop() {
                    asked = Instant::now();
                    if let Some((_, tried)) = open.get_mut(&own) {
                        *tried = true;
                    }
                    end(&mut client, &own, (offset, position), true)?;
                    open.remove(&own);
                }
            }
            Ok(())
        };
        if let Err(error) = lives() {
            goes_on(load, "later-transactions", &error);
        }
    }
}

fn heartbeat(client: &mut Minding) -> Result<(), Error> {
    let beat = Heartbeat {
        client_id: "later-producer".to_owned(),
        producer_data_set: vec![Producer { group_name: PRODUCERS.to_owned() }],
        ..Heartbeat::default()
    };
    let none: &[(&str, &str)] = &[];
    client.ask(RequestCode::HeartBeat, &none, &to_json(&beat), succeeded)
}

/// Sends a half message, and ends two of three at once.
fn half(load: &Load, dice: &Dice, client: &mut Minding, own: &str, open: &mut Open) -> Result<(), Error> {
    let part = u16::try_from(dice.below(PARTS.into())).expect("a small number");
    let properties = [(property::TRANSACTION_PREPARED, "true"), (property::PRODUCER_GROUP, PRODUCERS)];
    let prepared = SysFlag(0).with_transaction(TransactionState::Prepared).0;
    let sent = send(client, own, part, prepared, &properties);
    if commits(own) {
        load.ledger.note(TOPIC, own, 0, sent.is_ok());
    }
    let (id, offset) = sent?;
    load.note_confirms(1);
    let ends = dice.below(3) > 0;
    open.insert(own.to_owned(), ((offset, id.offset), ends));
    if ends {
        end(client, own, (offset, id.offset), false)?;
        open.remove(own);
    }
    Ok(())
}

/// An end that comes a second time, because an answer was lost, is refused: then it has ended, too.
fn end(
    client: &mut Minding,
    own: &str,
    (offset, position): (i64, i64),
    was_asked: bool,
) -> Result<(), Error> {
    let header = EndTransaction {
        topic: Some(TOPIC),
        producer_group: PRODUCERS,
        tran_state_table_offset: offset,
        commit_log_offset: position,
        commit_or_rollback: end_of(own),
        from_transaction_check: Some(was_asked),
        msg_id: own,
        transaction_id: Some(own),
        broker_name: None,
    };
    client.ask(RequestCode::EndTransaction, &header, b"", |answer| match answer.head.response_code() {
        Some(ResponseCode::Success | ResponseCode::SystemError) => Ok(()),
        _ => Err(refusal(answer)),
    })
}

/// Which half message the broker asks about: its number and its two offsets.
fn question(command: &Command<'_>) -> Result<Option<(String, i64, i64)>, Error> {
    if command.head.request_code() != Some(RequestCode::CheckTransactionState) {
        return Ok(None);
    }
    let header: CheckTransactionState<'_> = command.header().map_err(broken)?;
    let (message, _) = StoredMessage::decode(command.body).map_err(broken)?;
    let own = message.record.properties.get(OWN).unwrap_or_default().to_owned();
    Ok(Some((own, header.tran_state_table_offset, header.commit_log_offset)))
}

// ---- sending back

/// One pulled record: which message, which attempt, where it lies, and when it was born, stored.
struct Seen {
    own: String,
    attempt: i32,
    offset: i64,
    position: i64,
    times: (i64, i64),
}

fn pull(client: &mut Remoting, topic: &'static str, part: u16, from: i64) -> Result<(Vec<Seen>, i64), Error> {
    let header = PullMessage {
        consumer_group: GROUP,
        topic,
        queue_id: part.into(),
        queue_offset: from,
        max_msg_nums: 32,
        sys_flag: pull_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessage::default()
    };
    client.ask(RequestCode::PullMessage, &header, b"", |answer| {
        match answer.head.response_code() {
            Some(ResponseCode::Success) => {}
            Some(ResponseCode::PullNotFound | ResponseCode::PullRetryImmediately) => {
                return Ok((Vec::new(), from));
            }
            _ => return Err(refusal(answer)),
        }
        let told: PullAnswer = answer.header().map_err(broken)?;
        let (mut seen, mut rest) = (Vec::new(), answer.body);
        while !rest.is_empty() {
            let (message, used) = StoredMessage::decode(rest).map_err(broken)?;
            rest = &rest[used..];
            message.check_body().map_err(broken)?;
            let record = message.record;
            let own = record.properties.get(OWN).unwrap_or_default().to_owned();
            if own.as_bytes() != message.body {
                return Err(Error::Broken(format!("{own} has another message's body")));
            }
            seen.push(Seen {
                own,
                attempt: record.reconsume_times,
                offset: record.queue_offset,
                position: record.physical_offset,
                times: (record.born_time, record.store_time),
            });
        }
        Ok((seen, told.next_begin_offset))
    })
}

/// Consumes everything over and over from the beginning of each life, and sends some of it back.
fn send_back(load: &Load, dice: &Dice) {
    let queues: Vec<(&'static str, u16)> =
        (0..PARTS).map(|part| (TOPIC, part)).chain([(RETRIES, 0)]).collect();
    let mut next = vec![0_i64; queues.len()];
    while load.is_consuming() {
        let mut lives = || -> Result<(), Error> {
            let mut client = connect(load)?;
            while load.is_consuming() {
                for (at, (topic, part)) in queues.iter().enumerate() {
                    let (seen, behind) = pull(&mut client, topic, *part, next[at])?;
                    for message in seen {
                        if message.attempt < BACKS && dice.below(4) == 0 && load.is_publishing() {
                            one_back(load, &mut client, topic, &message)?;
                        }
                        next[at] = message.offset + 1;
                    }
                    next[at] = behind;
                }
                thread::sleep(Duration::from_millis(dice.below(40)));
            }
            Ok(())
        };
        if let Err(error) = lives() {
            goes_on(load, "later-consumer", &error);
        }
    }
}

fn one_back(load: &Load, client: &mut Remoting, topic: &str, message: &Seen) -> Result<(), Error> {
    let header = ConsumerSendBack {
        offset: message.position,
        group: GROUP,
        delay_level: 1,
        origin_msg_id: Some(&message.own),
        origin_topic: Some(topic),
        unit_mode: None,
        max_reconsume_times: Some(16),
        broker_name: None,
    };
    let back = client.ask(RequestCode::ConsumerSendMsgBack, &header, b"", succeeded);
    load.ledger.note(RETRIES, &message.own, message.attempt + 1, back.is_ok());
    back
}

// ---- locks

/// Two clients of one group want one queue. What one holds the other never gets, whatever happens to the broker.
fn lock(load: &Load) {
    let clients = ["later-a", "later-b"];
    let mut holder = 0;
    while load.is_publishing() {
        let [mine, other] = [clients[holder], clients[1 - holder]];
        let Some(true) = until_told(load, mine, RequestCode::LockBatchMq) else {
            load.fail(format!("the lock of {mine} was refused, and nobody else has it"));
            return;
        };
        let since = Instant::now();
        for _ in 0..20 {
            if since.elapsed() > LOCKED_FOR || !load.is_publishing() {
                break;
            }
            let told =
                connect(load).and_then(|mut client| ask_lock(&mut client, other, RequestCode::LockBatchMq));
            if matches!(told, Ok(true)) && since.elapsed() < LOCKED_FOR {
                load.fail(format!("{other} got the lock that {mine} holds"));
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        if since.elapsed() < LOCKED_FOR && until_told(load, mine, RequestCode::LockBatchMq) == Some(false) {
            load.fail(format!("{mine} lost its lock"));
            return;
        }
        if until_told(load, mine, RequestCode::UnlockBatchMq).is_none() {
            return;
        }
        holder = 1 - holder;
    }
}

/// Asks until there is an answer; `None`: the run is over.
fn until_told(load: &Load, client: &str, code: RequestCode) -> Option<bool> {
    let deadline = Instant::now() + LOCKED_FOR;
    while Instant::now() < deadline {
        match connect(load).and_then(|mut connection| ask_lock(&mut connection, client, code)) {
            Ok(told) => return Some(told),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
    None
}

fn ask_lock(connection: &mut Remoting, client: &str, code: RequestCode) -> Result<bool, Error> {
    let queue = MessageQueue { topic: TOPIC.to_owned(), broker_name: "any".to_owned(), queue_id: 0 };
    let wish = LockQueues {
        consumer_group: GROUP.to_owned(),
        client_id: client.to_owned(),
        only_this_broker: false,
        mq_set: vec![queue],
    };
    let none: &[(&str, &str)] = &[];
    connection.ask(code, &none, &to_json(&wish), |answer| {
        succeeded(answer)?;
        if code == RequestCode::UnlockBatchMq {
            return Ok(true);
        }
        let told: LockAnswer = from_json(answer.body).map_err(broken)?;
        Ok(!told.locked.is_empty())
    })
}

// ---- the end

/// Reads all that came, until everything owed is there.
pub(super) fn settle(load: &Load, deadline: Instant) -> Result<(), String> {
    loop {
        let found = found(load).map_err(|error| format!("reading what came later: {error}"))?;
        if load.ledger.judge(&found)? {
            let (all, sure) = load.ledger.sums();
            println!(
                "later: {all} delayed, transactional and sent back, {sure} for certain, all there, none twice"
            );
            return Ok(());
        }
        if Instant::now() > deadline {
            let missing = load.ledger.missing(&found);
            return Err(format!("{} messages never came, e.g. {:?}", missing.len(), missing.first()));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn found(load: &Load) -> Result<BTreeMap<Key, u32>, Error> {
    let mut client = connect(load)?;
    let mut found = BTreeMap::new();
    for (topic, part) in (0..PARTS).map(|part| (TOPIC, part)).chain([(RETRIES, 0)]) {
        let mut next = 0;
        loop {
            let (seen, behind) = pull(&mut client, topic, part, next)?;
            for message in &seen {
                check_time(topic, message)?;
                *found.entry((topic, message.own.clone(), message.attempt)).or_default() += 1;
            }
            if behind <= next {
                break;
            }
            next = behind;
        }
    }
    Ok(found)
}

/// A delayed message is stored in its topic when it is due.
fn check_time(topic: &str, message: &Seen) -> Result<(), Error> {
    let level = message.own.strip_prefix('d').and_then(|rest| rest.split('/').next()?.parse::<usize>().ok());
    let Some(wait) = level.and_then(|level| LEVELS.get(level - 1)).filter(|_| topic == TOPIC) else {
        return Ok(());
    };
    let (born, stored) = message.times;
    if stored - born < wait - EARLY {
        let early = wait - (stored - born);
        return Err(Error::Broken(format!("{} came {early} ms before its time", message.own)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_often_is_wrong_and_what_is_missing_is_waited_for() {
        let ledger = Ledger::default();
        ledger.note(TOPIC, "d1/1", 0, true);
        ledger.note(TOPIC, "d1/2", 0, false);
        let key = |own: &str| (TOPIC, own.to_owned(), 0);
        assert_eq!(ledger.judge(&BTreeMap::new()), Ok(false));
        assert_eq!(ledger.missing(&BTreeMap::new()), [key("d1/1")]);
        assert_eq!(ledger.judge(&BTreeMap::from([(key("d1/1"), 1)])), Ok(true));
        assert_eq!(ledger.judge(&BTreeMap::from([(key("d1/1"), 1), (key("d1/2"), 1)])), Ok(true));
        assert!(ledger.judge(&BTreeMap::from([(key("d1/1"), 2)])).is_err());
        assert!(ledger.judge(&BTreeMap::from([(key("t/1"), 1)])).is_err());
    }
}
