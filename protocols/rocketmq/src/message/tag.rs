//! Tags: Java's hash of them, and the expressions that select by them.
//!
//! A broker compares hashes only and lets collisions pass; the client compares the texts. Owns both the hash and the
//! reading of `A || B`. Does not know SQL92.

use std::collections::BTreeSet;
use std::fmt;

/// The longest tag expression accepted, in bytes.
pub const MAX_EXPRESSION: usize = 32 * 1024;

/// How many tags one expression may name.
const MAX_TAGS: usize = 1_024;

/// `String.hashCode` of Java: over UTF-16 units.
pub fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The tag code of a message: the hash of its TAGS property, sign-extended; 0 without one.
pub fn tag_hash(tags: Option<&str>) -> i64 {
    tags.map_or(0, |tags| i64::from(java_hash(tags)))
}

/// Which tags a subscription lets through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TagFilter {
    /// Every message: the expression was empty or `*`.
    All,
    /// Messages with one of these tags. Of blanks only, it lets nothing through, as in Apache.
    Tags {
        /// The tags, ascending, each once.
        tags: Vec<String>,
        /// Their hashes, ascending, each once.
        hashes: Vec<i32>,
    },
}

/// An expression that is no tag expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscriptionError {
    /// Nothing but separators.
    NoTag,
    /// Above [`MAX_EXPRESSION`].
    TooLong,
    /// More than 1,024 tags.
    TooManyTags,
}

impl fmt::Display for SubscriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTag => f.write_str("the expression names no tag"),
            Self::TooLong => write!(f, "the expression is above {MAX_EXPRESSION} bytes"),
            Self::TooManyTags => write!(f, "the expression names more than {MAX_TAGS} tags"),
        }
    }
}

impl std::error::Error for SubscriptionError {}

impl TagFilter {
    /// Reads an expression: empty or `*` for everything, else tags between `||`.
    pub fn parse(expression: &str) -> Result<Self, SubscriptionError> {
        if expression.is_empty() || expression == "*" {
            return Ok(Self::All);
        }
        if expression.len() > MAX_EXPRESSION {
            return Err(SubscriptionError::TooLong);
        }
        if expression.split("||").all(str::is_empty) {
            return Err(SubscriptionError::NoTag);
        }
        let mut tags = BTreeSet::new();
        for tag in expression.split("||").map(str::trim).filter(|tag| !tag.is_empty()) {
            tags.insert(tag);
            if tags.len() > MAX_TAGS {
                return Err(SubscriptionError::TooManyTags);
            }
        }
        let tags: Vec<String> = tags.into_iter().map(str::to_owned).collect();
        let mut hashes: Vec<i32> = tags.iter().map(|tag| java_hash(tag)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        Ok(Self::Tags { tags, hashes })
    }

    /// Whether a message with this [`tag_hash`] passes.
    pub fn matches(&self, hash: i64) -> bool {
        match self {
            Self::All => true,
            Self::Tags { hashes, .. } => {
                i32::try_from(hash).is_ok_and(|hash| hashes.binary_search(&hash).is_ok())
            }
        }
    }

    /// The tags named; none for everything.
    pub fn tags(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::Tags { tags, .. } => tags,
        }
    }

    /// Their hashes, ascending.
    pub fn hashes(&self) -> &[i32] {
        match self {
            Self::All => &[],
            Self::Tags { hashes, .. } => hashes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn the_hash_is_javas_also_beyond_the_basic_plane() {
        let mut cases = 0;
        for line in golden::all_misc("hash") {
            let (hash, text) = line.split_once(' ').unwrap();
            let text = String::from_utf8(golden::unhex(text)).unwrap();
            assert_eq!(java_hash(&text), hash.parse::<i32>().unwrap(), "{text}");
            cases += 1;
        }
        assert_eq!(cases, 7);
    }

    #[test]
    fn a_message_without_tags_has_the_hash_zero() {
        assert_eq!(tag_hash(None), 0);
        assert_eq!(tag_hash(Some("")), 0);
        assert_eq!(tag_hash(Some("polygenelubricants")), -2_147_483_648);
    }

    #[test]
    fn an_empty_expression_and_a_star_let_everything_through() {
        for all in ["", "*"] {
            let filter = TagFilter::parse(all).unwrap();
            assert!(filter.matches(0) && filter.matches(-5));
        }
    }

    #[test]
    fn tags_are_trimmed_and_deduplicated() {
        let filter = TagFilter::parse(" TagA||TagB || TagA ||").unwrap();
        assert_eq!(filter.tags(), ["TagA", "TagB"]);
        assert_eq!(filter.hashes(), [2_598_919, 2_598_920]);
        assert!(filter.matches(tag_hash(Some("TagB"))));
        assert!(!filter.matches(tag_hash(Some("TagC"))) && !filter.matches(0) && !filter.matches(1 << 40));
    }

    #[test]
    fn single_bars_belong_to_tags() {
        assert_eq!(TagFilter::parse("a|b").unwrap().tags(), ["a|b"]);
        assert_eq!(TagFilter::parse("a|||b").unwrap().tags(), ["a", "|b"]);
        assert_eq!(TagFilter::parse("a || *").unwrap().tags(), ["*", "a"]);
    }

    #[test]
    fn separators_alone_are_refused_and_blanks_alone_match_nothing() {
        assert_eq!(TagFilter::parse("||"), Err(SubscriptionError::NoTag));
        assert_eq!(TagFilter::parse("||||"), Err(SubscriptionError::NoTag));
        assert!(!TagFilter::parse("  ").unwrap().matches(0));
    }

    #[test]
    fn long_expressions_are_refused() {
        assert_eq!(TagFilter::parse(&"a".repeat(MAX_EXPRESSION + 1)), Err(SubscriptionError::TooLong));
        let tags: Vec<String> = (0..=MAX_TAGS).map(|at| at.to_string()).collect();
        assert!(TagFilter::parse(&tags[1..].join("||")).is_ok());
        assert_eq!(TagFilter::parse(&tags.join("||")), Err(SubscriptionError::TooManyTags));
    }
}
