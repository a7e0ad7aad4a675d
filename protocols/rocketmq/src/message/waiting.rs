//! What a message says of its own way: where it is really for, while it waits or is retried.
//!
//! Owns Apache's property conventions for delayed, half and retried messages. Does not know when something is due, or
//! who may do what.

use super::{Properties, PropertiesError, PropertiesText, property};

/// The delay level that a message asks for; 0: none, below: none either. `Err`: not a number.
pub fn delay_level(properties: Properties<'_>) -> Result<i32, std::num::ParseIntError> {
    properties.get(property::DELAY_TIME_LEVEL).map_or(Ok(0), str::parse)
}

/// Whether it is a half message, as its producer wrote it: Java's `parseBoolean`.
pub fn is_prepared(properties: Properties<'_>) -> bool {
    properties.get(property::TRANSACTION_PREPARED).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// Notes where a message is for, before it goes where it waits.
pub fn note_target(text: &mut PropertiesText, topic: &str, queue_id: u32) -> Result<(), PropertiesError> {
    text.set(property::REAL_TOPIC, topic)?;
    text.set(property::REAL_QUEUE_ID, &queue_id.to_string())
}

/// Where a message that waits is for.
pub fn target(properties: Properties<'_>) -> Option<(&str, u32)> {
    let queue_id = properties.get(property::REAL_QUEUE_ID)?.parse().ok()?;
    Some((properties.get(property::REAL_TOPIC)?, queue_id))
}

/// The milliseconds for which a half message is not asked about, if it says so in whole seconds; -1 is the usual time.
pub fn check_immunity_ms(properties: Properties<'_>) -> Option<u64> {
    let seconds: u64 = properties.get(property::CHECK_IMMUNITY_TIME_IN_SECONDS)?.trim().parse().ok()?;
    seconds.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_was_noted_is_found_again() {
        let mut text = PropertiesText::new();
        text.push("KEYS", "k").unwrap();
        note_target(&mut text, "T", 3).unwrap();
        note_target(&mut text, "%RETRY%g", 0).unwrap();
        assert_eq!(target(text.properties()), Some(("%RETRY%g", 0)));
        assert_eq!(text.properties().iter().count(), 3);
        assert_eq!(target(Properties::new("REAL_TOPIC\u{1}T\u{2}REAL_QID\u{1}-1\u{2}")), None);
        assert_eq!(target(Properties::new("REAL_QID\u{1}1\u{2}")), None);
    }

    #[test]
    fn levels_and_flags_are_read_as_java_reads_them() {
        let level = |value: &str| delay_level(Properties::new(&format!("DELAY\u{1}{value}\u{2}")));
        assert_eq!((level("3"), level("-1"), delay_level(Properties::new(""))), (Ok(3), Ok(-1), Ok(0)));
        assert!(level("x").is_err() && level("99999999999").is_err());
        assert!(is_prepared(Properties::new("TRAN_MSG\u{1}TRUE\u{2}")));
        assert!(!is_prepared(Properties::new("TRAN_MSG\u{1}1\u{2}")));
    }

    #[test]
    fn an_immunity_that_is_no_whole_number_of_seconds_is_the_usual_one() {
        let immunity = |value: &str| {
            check_immunity_ms(Properties::new(&format!("CHECK_IMMUNITY_TIME_IN_SECONDS\u{1}{value}\u{2}")))
        };
        assert_eq!((immunity("60"), immunity("0")), (Some(60_000), Some(0)));
        assert_eq!((immunity("-1"), immunity("x"), immunity("99999999999999999999")), (None, None, None));
        assert_eq!(immunity("18446744073709551615"), None);
    }
}
