//! Names that the server chooses and names that it keeps for itself.
//!
//! Owns: `amq.gen-…` and `amq.ctag-…`, the reserved prefix. Promises: 128 random bits a name, so that nobody guesses or meets
//! another's queue. Does not know: what exists.

use std::hash::{BuildHasher, RandomState};

use crate::broker::api::{REPLY_PREFIX, REPLY_QUEUE};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// `prefix` and 22 random characters.
pub(super) fn generate(prefix: &str) -> String {
    let mut bits = u128::from(random()) << 64 | u128::from(random());
    let mut name = String::with_capacity(prefix.len() + 22);
    name.push_str(prefix);
    for _ in 0..22 {
        name.push(char::from(ALPHABET[usize::from((bits & 63) as u8)]));
        bits >>= 6;
    }
    name
}

/// The standard library seeds its hash keys from the operating system; SipHash of nothing under them is as good as they are.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Only the server declares names that begin so.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with("amq.")
}

/// Names of direct replies: no queues, but clients may ask for them as if they were.
pub(super) fn is_reply(name: &str) -> bool {
    name == REPLY_QUEUE || name.starts_with(REPLY_PREFIX)
}

/// RabbitMQ removes line ends from the names of queues and exchanges; clients that log them rely on it.
pub(super) fn strip_line_ends(name: &str) -> std::borrow::Cow<'_, str> {
    if name.contains(['\r', '\n']) { name.replace(['\r', '\n'], "").into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_differ_and_carry_their_prefix() {
        let (a, b) = (generate("amq.gen-"), generate("amq.gen-"));
        assert!(a.starts_with("amq.gen-") && a.len() == 30 && a != b);
        assert!(is_reserved(&a));
    }

    #[test]
    fn line_ends_vanish_from_names() {
        assert_eq!(strip_line_ends("a\r\nb"), "ab");
        assert_eq!(strip_line_ends("ab"), "ab");
    }
}
