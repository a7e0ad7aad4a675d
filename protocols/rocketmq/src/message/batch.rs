//! The batch body: several messages in one send.
//!
//! ```text
//! i32 size | i32 magic = 0 | i32 crc = 0 | i32 flag | i32 n, body | i16 n, properties      (repeated)
//! ```
//!
//! Owns the reading, checked as a whole before the first message is used, and the writing. Topic, times and hosts are
//! the send's. Does not judge a body or a property.

use super::{Properties, PropertiesError};
use std::fmt;

/// Bytes of a message beside its body and properties.
const OVERHEAD: usize = 22;

/// A checked batch body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch<'a> {
    body: &'a [u8],
    messages: usize,
}

/// One message of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchMessage<'a> {
    /// The application's own flag.
    pub flag: i32,
    /// The body, compressed or not as the send's system flag says.
    pub body: &'a [u8],
    /// The properties, checked.
    pub properties: Properties<'a>,
}

/// A batch body that can not be read. Answer with MESSAGE_ILLEGAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// No message at all.
    Empty,
    /// More messages than the caller allows.
    TooMany {
        /// The caller's limit.
        limit: usize,
    },
    /// A message is cut, or its lengths contradict each other.
    Length {
        /// Where it begins.
        at: usize,
    },
    /// A message's properties are not UTF-8.
    NotUtf8 {
        /// Where the message begins.
        at: usize,
    },
    /// A message's properties are refused.
    Properties {
        /// Where the message begins.
        at: usize,
        /// Why.
        error: PropertiesError,
    },
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the batch is empty"),
            Self::TooMany { limit } => write!(f, "the batch has more than {limit} messages"),
            Self::Length { at } => {
                write!(f, "the lengths of the message at byte {at} of the batch are wrong")
            }
            Self::NotUtf8 { at } => {
                write!(f, "the properties of the message at byte {at} of the batch are not UTF-8")
            }
            Self::Properties { at, error } => write!(f, "the message at byte {at} of the batch: {error}"),
        }
    }
}

impl std::error::Error for BatchError {}

impl<'a> Batch<'a> {
    /// Checks a batch body of at most `limit` messages.
    pub fn check(body: &'a [u8], limit: usize) -> Result<Self, BatchError> {
        let mut at = 0;
        let mut messages = 0;
        while at < body.len() {
            if messages == limit {
                return Err(BatchError::TooMany { limit });
            }
            let (_, size) = message(body, at)?;
            at += size;
            messages += 1;
        }
        if messages == 0 { Err(BatchError::Empty) } else { Ok(Self { body, messages }) }
    }

    /// How many messages there are, at least one.
    pub fn message_count(&self) -> usize {
        self.messages
    }

    /// The messages.
    pub fn iter(&self) -> impl Iterator<Item = BatchMessage<'a>> {
        let body = self.body;
        let mut at = 0;
        std::iter::from_fn(move || {
            let (message, size) = message(body, at).ok()?;
            at += size;
            Some(message)
        })
    }
}

/// The message at byte `at` and its size.
fn message(batch: &[u8], at: usize) -> Result<(BatchMessage<'_>, usize), BatchError> {
    let wrong = BatchError::Length { at };
    let input = batch.get(at..).ok_or(wrong)?;
    let integer = |at: usize| input.get(at..)?.first_chunk().map(|bytes| i32::from_be_bytes(*bytes));
    let size = usize::try_from(integer(0).ok_or(wrong)?).map_err(|_| wrong)?;
    let flag = integer(12).ok_or(wrong)?;
    let body_length = usize::try_from(integer(16).ok_or(wrong)?).map_err(|_| wrong)?;
    let (body, rest) = input[20..].split_at_checked(body_length).ok_or(wrong)?;
    let (properties_length, rest) = rest.split_first_chunk().ok_or(wrong)?;
    let properties_length = usize::try_from(i16::from_be_bytes(*properties_length)).map_err(|_| wrong)?;
    let properties = rest.get(..properties_length).ok_or(wrong)?;
    if size != OVERHEAD + body_length + properties_length {
        return Err(wrong);
    }
    let properties = std::str::from_utf8(properties).map_err(|_| BatchError::NotUtf8 { at })?;
    let properties = Properties::check(properties).map_err(|error| BatchError::Properties { at, error })?;
    Ok((BatchMessage { flag, body, properties }, size))
}

/// Appends one message to a batch body; nothing if it does not fit its length fields. Only the length of the
/// properties is checked, not their text.
pub fn encode_batch_message(out: &mut Vec<u8>, message: &BatchMessage<'_>) -> Result<(), BatchError> {
    let at = out.len();
    let properties = message.properties.text().as_bytes();
    let error = PropertiesError::TooLong;
    let properties_length =
        i16::try_from(properties.len()).map_err(|_| BatchError::Properties { at, error })?;
    let size = i32::try_from(OVERHEAD + message.body.len() + properties.len());
    let (Ok(size), Ok(body_length)) = (size, i32::try_from(message.body.len())) else {
        return Err(BatchError::Length { at });
    };
    for integer in [size, 0, 0, message.flag, body_length] {
        out.extend_from_slice(&integer.to_be_bytes());
    }
    out.extend_from_slice(message.body);
    out.extend_from_slice(&properties_length.to_be_bytes());
    out.extend_from_slice(properties);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    fn java() -> Vec<u8> {
        golden::unhex(golden::misc("batch"))
    }

    fn encoded(messages: &[BatchMessage<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            encode_batch_message(&mut out, message).unwrap();
        }
        out
    }

    #[test]
    fn javas_batch_is_read_and_written_byte_for_byte() {
        let java = java();
        let batch = Batch::check(&java, 10).unwrap();
        let messages: Vec<_> = batch.iter().collect();
        assert_eq!((batch.message_count(), messages.len()), (3, 3));
        assert_eq!((messages[2].flag, messages[2].body), (2, &b"body-2"[..]));
        assert_eq!(messages[1].properties.get("UNIQ_KEY"), Some("U1"));
        assert_eq!(encoded(&messages), java);
    }

    #[test]
    fn a_batch_cut_anywhere_but_between_messages_is_refused() {
        let java = java();
        for cut in 0..java.len() {
            assert_eq!(Batch::check(&java[..cut], 10).is_ok(), cut > 0 && cut % 58 == 0, "cut at {cut}");
        }
    }

    #[test]
    fn an_empty_batch_and_one_of_too_many_messages_are_refused() {
        assert_eq!(Batch::check(b"", 10), Err(BatchError::Empty));
        assert_eq!(Batch::check(&java(), 3).map(|batch| batch.message_count()), Ok(3));
        assert_eq!(Batch::check(&java(), 2), Err(BatchError::TooMany { limit: 2 }));
    }

    #[test]
    fn sizes_that_are_zero_negative_or_contradict_the_parts_are_refused() {
        let one = encoded(&[BatchMessage { flag: 0, body: b"x", properties: Properties::new("") }]);
        for (at, bytes) in [
            (0, 0i32.to_be_bytes()),
            (0, (-1i32).to_be_bytes()),
            (0, i32::MAX.to_be_bytes()),
            (0, 22i32.to_be_bytes()),
            (16, (-1i32).to_be_bytes()),
            (16, i32::MAX.to_be_bytes()),
            (16, 0i32.to_be_bytes()),
        ] {
            let mut broken = one.clone();
            broken[at..at + 4].copy_from_slice(&bytes);
            assert_eq!(Batch::check(&broken, 10), Err(BatchError::Length { at: 0 }), "{at} {bytes:?}");
        }
        let mut negative_properties = one;
        negative_properties[21] = 0xff;
        assert_eq!(Batch::check(&negative_properties, 10), Err(BatchError::Length { at: 0 }));
    }

    #[test]
    fn a_batch_within_a_message_is_only_its_body() {
        let inner = java();
        let outer = encoded(&[BatchMessage { flag: 1, body: &inner, properties: Properties::new("") }]);
        let batch = Batch::check(&outer, 10).unwrap();
        assert_eq!(batch.iter().map(|message| message.body.len()).collect::<Vec<_>>(), [inner.len()]);
    }

    #[test]
    fn properties_of_a_batch_are_checked_like_those_of_a_send() {
        let with = |text| encoded(&[BatchMessage { flag: 0, body: b"x", properties: Properties::new(text) }]);
        let error = PropertiesError::Malformed;
        assert_eq!(Batch::check(&with("a\u{1}b\u{1}c"), 10), Err(BatchError::Properties { at: 0, error }));
        let mut broken = with("ab");
        *broken.last_mut().unwrap() = 0xff;
        assert_eq!(Batch::check(&broken, 10), Err(BatchError::NotUtf8 { at: 0 }));
    }

    #[test]
    fn properties_above_their_length_field_are_not_written() {
        let long = "v".repeat(32_768);
        let message = BatchMessage { flag: 0, body: b"x", properties: Properties::new(&long) };
        let mut out = vec![7];
        assert!(encode_batch_message(&mut out, &message).is_err());
        assert_eq!(out, [7]);
    }

    proptest! {
        #[test]
        fn batches_survive_the_trip(
            parts in proptest::collection::vec((any::<i32>(), proptest::collection::vec(any::<u8>(), 0..50), "[a-z]{1,9}\u{1}[^\u{1}\u{2}]{0,20}\u{2}"), 1..6)
        ) {
            let messages: Vec<_> = parts
                .iter()
                .map(|(flag, body, text)| BatchMessage { flag: *flag, body, properties: Properties::new(text) })
                .collect();
            let body = encoded(&messages);
            let batch = Batch::check(&body, 10).unwrap();
            prop_assert_eq!(batch.iter().collect::<Vec<_>>(), messages);
        }
    }
}
