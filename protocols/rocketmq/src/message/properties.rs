//! Properties: names and values of a message, as one text with separators.
//!
//! ```text
//! name 0x01 value 0x02 name 0x01 value 0x02      (the last 0x02 may be missing)
//! ```
//!
//! Owns the reading (lazy, as Java reads: the last of equal names counts, an entry without a value does not), the
//! check of what a client sends, and the writing. Promises that no name or value with a separator is written: it
//! would be read as another property, a system property at worst. Does not know who may write which name.

use std::fmt;

/// The longest property text, in bytes: its length is a signed 16-bit integer.
pub const MAX_PROPERTIES: usize = 32_767;

const NAME_END: char = '\u{1}';
const VALUE_END: char = '\u{2}';

/// Names that mean something to brokers or clients.
pub mod property {
    /// Blank-separated keys for queries.
    pub const KEYS: &str = "KEYS";
    /// The tag for filters.
    pub const TAGS: &str = "TAGS";
    /// Whether the producer waits until the message is stored.
    pub const WAIT_STORE_MSG_OK: &str = "WAIT";
    /// A delay level, 1 to 18.
    pub const DELAY_TIME_LEVEL: &str = "DELAY";
    /// The topic a retried message came from.
    pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
    /// The topic a delayed or half message is for.
    pub const REAL_TOPIC: &str = "REAL_TOPIC";
    /// The queue a delayed or half message is for.
    pub const REAL_QUEUE_ID: &str = "REAL_QID";
    /// `true` for a half message.
    pub const TRANSACTION_PREPARED: &str = "TRAN_MSG";
    /// The producer group.
    pub const PRODUCER_GROUP: &str = "PGROUP";
    /// Set by clients: the queue's first offset.
    pub const MIN_OFFSET: &str = "MIN_OFFSET";
    /// Set by clients: the queue's next offset.
    pub const MAX_OFFSET: &str = "MAX_OFFSET";
    /// The id of the message that is retried.
    pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
    /// How often it was consumed in vain.
    pub const RECONSUME_TIME: &str = "RECONSUME_TIME";
    /// After so many retries it is dead.
    pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
    /// Set by clients: when the application got it.
    pub const CONSUME_START_TIMESTAMP: &str = "CONSUME_START_TIME";
    /// The region that stored it.
    pub const MSG_REGION: &str = "MSG_REGION";
    /// Whether clients may trace it.
    pub const TRACE_SWITCH: &str = "TRACE_ON";
    /// The producer's own message id.
    pub const UNIQUE_KEY: &str = "UNIQ_KEY";
    /// Messages in a record that is a batch.
    pub const INNER_NUM: &str = "INNER_NUM";
    /// The first offset of a record that is a batch.
    pub const INNER_BASE: &str = "INNER_BASE";
    /// Seconds before the first check-back.
    pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    /// The half message's first offset, when it was put back.
    pub const TRANSACTION_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
    /// The transaction's id.
    pub const TRANSACTION_ID: &str = "__transactionId__";
    /// Check-backs so far.
    pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
    /// The namespace.
    pub const INSTANCE_ID: &str = "INSTANCE_ID";
    /// Pairs a reply with its request.
    pub const CORRELATION_ID: &str = "CORRELATION_ID";
    /// The client that awaits a reply.
    pub const REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
    /// How long a requester waits, in ms.
    pub const TTL: &str = "TTL";
    /// When a reply arrived.
    pub const REPLY_ARRIVE_TIME: &str = "ARRIVE_TIME";
    /// When a reply was pushed.
    pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
    /// The cluster.
    pub const CLUSTER: &str = "CLUSTER";
    /// `reply` for a reply.
    pub const MESSAGE_TYPE: &str = "MSG_TYPE";
    /// The handle of a leased message; set by clients.
    pub const POP_CHECK: &str = "POP_CK";
    /// Its place.
    pub const POP_CHECK_OFFSET: &str = "POP_CK_OFFSET";
    /// When it was first leased.
    pub const FIRST_POP_TIME: &str = "1ST_POP_TIME";
    /// What the queue was chosen by.
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    /// Further queues.
    pub const INNER_MULTI_DISPATCH: &str = "INNER_MULTI_DISPATCH";
    /// The offsets there.
    pub const INNER_MULTI_QUEUE_OFFSET: &str = "INNER_MULTI_QUEUE_OFFSET";
    /// A trace's context.
    pub const TRACE_CONTEXT: &str = "TRACE_CONTEXT";
    /// Deliver after so many seconds.
    pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
    /// Deliver after so many milliseconds.
    pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
    /// Deliver at this time, in ms since 1970.
    pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
    /// The same, decided by the broker.
    pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
    /// When the timer took it.
    pub const TIMER_ENQUEUE_MS: &str = "TIMER_ENQUEUE_MS";
    /// When the timer gave it.
    pub const TIMER_DEQUEUE_MS: &str = "TIMER_DEQUEUE_MS";
    /// How often the timer put it back.
    pub const TIMER_ROLL_TIMES: &str = "TIMER_ROLL_TIMES";
    /// The unique key of a delayed message to take back.
    pub const TIMER_DEL_UNIQUE_KEY: &str = "TIMER_DEL_UNIQKEY";
    /// A delay level served by the timer.
    pub const TIMER_DELAY_LEVEL: &str = "TIMER_DELAY_LEVEL";
    /// The producer's address.
    pub const BORN_HOST: &str = "__BORNHOST";
    /// The producer's time.
    pub const BORN_TIMESTAMP: &str = "BORN_TIMESTAMP";
    /// The topic a dead message came from.
    pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
    /// The id of the message that died.
    pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
    /// A checksum over the record; off by default in Apache.
    pub const CRC32: &str = "__CRC32#";
}

/// A property text, read where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Properties<'a>(&'a str);

/// A property text that can not be stored, or a property that can not be written. Answer with MESSAGE_ILLEGAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PropertiesError {
    /// The text would be above [`MAX_PROPERTIES`].
    TooLong,
    /// A name or value contains 0x01 or 0x02, or a name is empty.
    Malformed,
}

impl fmt::Display for PropertiesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the properties are above {MAX_PROPERTIES} bytes"),
            Self::Malformed => f.write_str("a property has no name, or a separator inside its name or value"),
        }
    }
}

impl std::error::Error for PropertiesError {}

impl<'a> Properties<'a> {
    /// Reads a stored text. Nothing is checked; what is no property is not found.
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// Checks a text that a client sent: its length, and that every entry is one name and one value.
    pub fn check(text: &'a str) -> Result<Self, PropertiesError> {
        if text.len() > MAX_PROPERTIES {
            return Err(PropertiesError::TooLong);
        }
        let well_formed = |entry: &str| match entry.split_once(NAME_END) {
            Some((name, value)) => !name.is_empty() && !value.contains(NAME_END),
            None => entry.is_empty(),
        };
        if text.split(VALUE_END).all(well_formed) { Ok(Self(text)) } else { Err(PropertiesError::Malformed) }
    }

    /// The text itself.
    pub const fn text(self) -> &'a str {
        self.0
    }

    /// The value of a name; of several, the last. An empty value counts as none, as in Java.
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.0.rsplit(VALUE_END).filter_map(entry).find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Every property, in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.split(VALUE_END).filter_map(entry)
    }
}

/// The name and value of an entry that has both.
fn entry(entry: &str) -> Option<(&str, &str)> {
    entry.split_once(NAME_END).filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

/// A property text being written. Never above [`MAX_PROPERTIES`]; an operation that fails changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PropertiesText(String);

impl PropertiesText {
    /// An empty text.
    pub const fn new() -> Self {
        Self(String::new())
    }

    /// Begins with what is there.
    pub fn from_properties(properties: Properties<'_>) -> Result<Self, PropertiesError> {
        // Room for what a broker adds to a send: a unique key, a region, a cluster, the trace switch.
        let mut text = Self(String::with_capacity(properties.0.len() + 128));
        text.0.push_str(properties.0);
        text.close();
        text.within_limit()
    }

    /// Ends the last entry, so that the next one can follow.
    fn close(&mut self) {
        if !self.0.is_empty() && !self.0.ends_with(VALUE_END) {
            self.0.push(VALUE_END);
        }
    }

    fn within_limit(self) -> Result<Self, PropertiesError> {
        if self.0.len() > MAX_PROPERTIES { Err(PropertiesError::TooLong) } else { Ok(self) }
    }

    /// Appends a property whose name is not there yet.
    pub fn push(&mut self, name: &str, value: &str) -> Result<(), PropertiesError> {
        let separates = |text: &str| text.contains([NAME_END, VALUE_END]);
        if name.is_empty() || separates(name) || separates(value) {
            return Err(PropertiesError::Malformed);
        }
        let length = self.0.len() + name.len() + value.len() + 2;
        if length > MAX_PROPERTIES {
            return Err(PropertiesError::TooLong);
        }
        self.0.reserve(name.len() + value.len() + 2);
        self.0.push_str(name);
        self.0.push(NAME_END);
        self.0.push_str(value);
        self.0.push(VALUE_END);
        Ok(())
    }

    /// Replaces or adds a property.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), PropertiesError> {
        let mut changed = self.clone();
        changed.remove(name);
        changed.push(name, value)?;
        *self = changed;
        Ok(())
    }

    /// Removes a property, wherever and however often it stands.
    pub fn remove(&mut self, name: &str) {
        let is_name = |entry: &str| entry.split_once(NAME_END).is_some_and(|(known, _)| known == name);
        if self.0.split(VALUE_END).any(is_name) {
            self.0 = self.0.split_inclusive(VALUE_END).filter(|entry| !is_name(entry)).collect();
        }
    }

    /// What has been written.
    pub fn properties(&self) -> Properties<'_> {
        Properties(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    fn java() -> String {
        String::from_utf8(golden::unhex(golden::misc("properties"))).unwrap()
    }

    #[test]
    fn javas_text_is_read_and_passes_the_check() {
        let text = java();
        let properties = Properties::check(&text).unwrap();
        assert_eq!(properties.get("KEYS"), Some("key1 key2"));
        assert_eq!(properties.get("名前"), Some("värde"));
        assert_eq!(properties.get("TAGS"), Some("TagA"));
        assert_eq!(properties.get("KEY"), None);
        assert_eq!(properties.iter().count(), 5);
    }

    #[test]
    fn the_last_separator_may_be_missing() {
        assert_eq!(Properties::check("a\u{1}b\u{2}c\u{1}d").unwrap().get("c"), Some("d"));
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        assert_eq!(Properties::new("a\u{1}1\u{2}a\u{1}2\u{2}").get("a"), Some("2"));
    }

    #[test]
    fn entries_without_name_or_value_are_not_there() {
        let properties = Properties::new("\u{1}v\u{2}n\u{1}\u{2}junk\u{2}\u{2}a\u{1}b\u{2}");
        assert_eq!(properties.iter().collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(properties.get("n"), None);
    }

    #[test]
    fn a_clients_text_with_a_second_separator_or_without_any_is_refused() {
        for broken in ["a\u{1}b\u{1}c\u{2}", "junk", "a\u{1}b\u{2}junk\u{2}", "\u{1}v\u{2}"] {
            assert_eq!(Properties::check(broken), Err(PropertiesError::Malformed), "{broken:?}");
        }
        for fine in ["", "\u{2}", "a\u{1}\u{2}", "a\u{1}b\u{2}\u{2}"] {
            assert!(Properties::check(fine).is_ok(), "{fine:?}");
        }
    }

    #[test]
    fn a_text_of_the_limit_passes_and_one_byte_more_is_refused() {
        let text = |length: usize| format!("a\u{1}{}", "v".repeat(length - 2));
        assert!(Properties::check(&text(MAX_PROPERTIES)).is_ok());
        assert_eq!(Properties::check(&text(MAX_PROPERTIES + 1)), Err(PropertiesError::TooLong));
    }

    #[test]
    fn nothing_with_a_separator_is_written() {
        let mut text = PropertiesText::new();
        for (name, value) in
            [("", "v"), ("a\u{1}", "v"), ("a", "v\u{2}REAL_TOPIC\u{1}x"), ("a\u{2}", "v"), ("a", "\u{1}")]
        {
            assert_eq!(text.push(name, value), Err(PropertiesError::Malformed));
            assert_eq!(text.set(name, value), Err(PropertiesError::Malformed));
        }
        assert_eq!(text.properties().text(), "");
    }

    #[test]
    fn setting_replaces_and_removing_removes_every_occurrence() {
        let mut text =
            PropertiesText::from_properties(Properties::new("a\u{1}1\u{2}b\u{1}2\u{2}a\u{1}3")).unwrap();
        text.set("a", "4").unwrap();
        assert_eq!(text.properties().text(), "b\u{1}2\u{2}a\u{1}4\u{2}");
        text.remove("b");
        text.remove("unknown");
        assert_eq!(text.properties().text(), "a\u{1}4\u{2}");
    }

    #[test]
    fn a_write_above_the_limit_fails_and_changes_nothing() {
        let mut text = PropertiesText::new();
        text.push("a", &"v".repeat(MAX_PROPERTIES - 3)).unwrap();
        let full = text.clone();
        assert_eq!(text.push("b", ""), Err(PropertiesError::TooLong));
        assert_eq!(text.set("a", &"v".repeat(MAX_PROPERTIES - 2)), Err(PropertiesError::TooLong));
        assert_eq!(text, full);
        let open = format!("a\u{1}{}", "v".repeat(MAX_PROPERTIES - 2));
        assert_eq!(PropertiesText::from_properties(Properties::new(&open)), Err(PropertiesError::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_passes_the_check(
            entries in proptest::collection::btree_map("[^\u{1}\u{2}]{1,8}", "[^\u{1}\u{2}]{1,8}", 0..8)
        ) {
            let mut text = PropertiesText::new();
            for (name, value) in &entries {
                text.push(name, value).unwrap();
            }
            let read = Properties::check(text.properties().text()).unwrap();
            prop_assert!(read.iter().eq(entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))));
            for (name, value) in &entries {
                prop_assert_eq!(read.get(name), Some(value.as_str()));
            }
        }

        #[test]
        fn whatever_passes_the_check_can_be_extended(text in "[ab\u{1}\u{2}]{0,12}") {
            if let Ok(properties) = Properties::check(&text) {
                let mut longer = PropertiesText::from_properties(properties).unwrap();
                longer.set("UNIQ_KEY", "k").unwrap();
                prop_assert!(Properties::check(longer.properties().text()).is_ok());
                let mut expected: Vec<_> = properties.iter().collect();
                expected.push(("UNIQ_KEY", "k"));
                prop_assert_eq!(longer.properties().iter().collect::<Vec<_>>(), expected);
            }
        }
    }
}
