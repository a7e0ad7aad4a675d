//! What a user may do in a virtual host: RabbitMQ's three patterns, and those on routing keys.
//!
//! Owns: compiling and matching them. Promises: matching takes time linear in the name; a pattern that RabbitMQ's engine (PCRE)
//! can do and ours can not (look-around, back-references) is refused when it is loaded, with its reason, never guessed.
//! Does not know: who asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::Action;
use crate::limits;

/// A permission's regular expression. As in RabbitMQ it matches anywhere in the name unless it is anchored, sees bytes, and the
/// empty one matches the empty name only.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// `.*`: nothing to run, nothing to remember.
    All,
    /// Anything else.
    Some(Regex),
}

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern '{pattern}': {reason}")]
pub struct BadPattern {
    /// As written, cut when it is long.
    pub pattern: String,
    /// In one line.
    pub reason: String,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`BadPattern`]: not a regular expression, one that can not be matched in linear time, or too large.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let bad = |reason: String| {
            let pattern = text.chars().take(80).flat_map(char::escape_debug).collect();
            BadPattern { pattern, reason }
        };
        if text.len() > limits::PATTERN_MAX {
            return Err(bad(format!("longer than {} bytes", limits::PATTERN_MAX)));
        }
        let text = match text {
            ".*" => return Ok(Self::All),
            "" => "^$",
            text => text,
        };
        RegexBuilder::new(text)
            .unicode(false)
            .size_limit(limits::PATTERN_COMPILED_MAX)
            .dfa_size_limit(limits::PATTERN_COMPILED_MAX)
            .build()
            .map(Self::Some)
            .map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or("not a regular expression");
                bad(last.strip_prefix("error: ").unwrap_or(last).to_owned())
            })
    }

    /// The pattern as it would be written.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::All => ".*",
            Self::Some(regex) => regex.as_str(),
        }
    }

    /// Does it let this name through?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(regex) => regex.is_match(name.as_bytes()),
        }
    }
}

/// The three patterns of a user in a virtual host, and those on routing keys of its topic exchanges.
#[derive(Debug, Clone)]
pub struct Rights {
    configure: Pattern,
    write: Pattern,
    read: Pattern,
    topics: HashMap<Arc<str>, TopicRights>,
}

#[derive(Debug, Clone)]
struct TopicRights {
    write: Pattern,
    read: Pattern,
}

impl Rights {
    /// Everything: what `guest` has in a store without users.
    #[must_use]
    pub fn all() -> Self {
        Self { configure: Pattern::All, write: Pattern::All, read: Pattern::All, topics: HashMap::new() }
    }

    /// From three patterns.
    ///
    /// # Errors
    /// [`BadPattern`], the first.
    pub fn parse(configure: &str, write: &str, read: &str) -> Result<Self, BadPattern> {
        Ok(Self {
            configure: Pattern::parse(configure)?,
            write: Pattern::parse(write)?,
            read: Pattern::parse(read)?,
            topics: HashMap::new(),
        })
    }

    /// Adds the patterns for routing keys of one exchange. `{username}` and `{vhost}` in them stand for the names given.
    ///
    /// # Errors
    /// [`BadPattern`], the first.
    pub fn add_topic(
        &mut self,
        exchange: &str,
        write: &str,
        read: &str,
        names: TopicNames<'_>,
    ) -> Result<(), BadPattern> {
        let rights = TopicRights {
            write: Pattern::parse(&names.fill(write))?,
            read: Pattern::parse(&names.fill(read))?,
        };
        self.topics.insert(exchange.into(), rights);
        Ok(())
    }

    /// The patterns of configure, write and read.
    #[must_use]
    pub fn texts(&self) -> [&str; 3] {
        [self.configure.text(), self.write.text(), self.read.text()]
    }

    /// The patterns of write and read on routing keys, by exchange; names are filled in.
    #[must_use]
    pub fn topic_texts(&self) -> Vec<(String, [String; 2])> {
        let texts = |rights: &TopicRights| [rights.write.text().to_owned(), rights.read.text().to_owned()];
        self.topics.iter().map(|(exchange, rights)| (exchange.to_string(), texts(rights))).collect()
    }

    /// The pattern for an action on a resource.
    pub(super) fn pattern(&self, action: Action) -> &Pattern {
        match action {
            Action::Configure => &self.configure,
            Action::Write => &self.write,
            Action::Read => &self.read,
        }
    }

    /// Is there any pattern for routing keys?
    pub(super) fn narrows_keys(&self) -> bool {
        !self.topics.is_empty()
    }

    /// May this routing key be used at that topic exchange? An exchange without patterns takes all.
    pub(super) fn allows_key(&self, action: Action, exchange: &str, key: &str) -> bool {
        self.topics.get(exchange).is_none_or(|topic| match action {
            Action::Write => topic.write.matches(key),
            Action::Read => topic.read.matches(key),
            Action::Configure => true,
        })
    }
}

/// What the variables in a topic permission stand for.
#[derive(Debug, Clone, Copy)]
pub struct TopicNames<'a> {
    /// `{username}`
    pub user: &'a str,
    /// `{vhost}`
    pub vhost: &'a str,
}

impl TopicNames<'_> {
    fn fill(self, pattern: &str) -> String {
        // MQTT's variable has no value here: it stands for itself, as in RabbitMQ.
        pattern
            .replace("{username}", self.user)
            .replace("{vhost}", self.vhost)
            .replace("{client_id}", r"\{client_id\}")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_rabbitmqs_do() {
        // Each line was tried on RabbitMQ 3.10.8: pattern, name, let through.
        for (pattern, name, allowed) in [
            ("", "q", false),
            ("", "", true),
            (".*", "", true),
            (".*", "anything\nat all", true),
            ("q", "a queue", true),
            ("^q", "a queue", false),
            ("^q$", "q", true),
            ("^q$", "qq", false),
            ("^(a|b)-", "b-1", true),
            ("^amq\\.", "amqp", false),
            ("^[[:alpha:]]+$", "abc", true),
            ("^\\w+$", "schön", false),
            ("ö", "schön", true),
            ("(?i)^Q$", "q", true),
            ("^.$", "ö", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), allowed, "{pattern} on {name}");
        }
    }

    #[test]
    fn what_can_not_be_matched_in_linear_time_is_refused_with_its_reason() {
        for (pattern, reason) in [
            ("(?=a)", "look-around"),
            ("(?!amq)", "look-around"),
            ("(a)\\1", "backreference"),
            ("(", "unclosed group"),
            ("((a{1000}){1000}){1000}", "size limit"),
        ] {
            let error = Pattern::parse(pattern).unwrap_err();
            assert!(error.reason.contains(reason), "{pattern}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
        assert!(Pattern::parse(&"a".repeat(limits::PATTERN_MAX + 1)).is_err());
    }

    #[test]
    fn routing_keys_are_judged_where_a_topic_permission_stands_and_nowhere_else() {
        let mut rights = Rights::all();
        let names = TopicNames { user: "carol", vhost: "staging" };
        rights.add_topic("amq.topic", "^{username}\\.", "^{vhost}\\.", names).unwrap();
        assert!(rights.allows_key(Action::Write, "amq.topic", "carol.x"));
        assert!(!rights.allows_key(Action::Write, "amq.topic", "bob.x"));
        assert!(rights.allows_key(Action::Read, "amq.topic", "staging.x"));
        assert!(!rights.allows_key(Action::Read, "amq.topic", "carol.x"));
        assert!(rights.allows_key(Action::Write, "other", "bob.x"));
        rights.add_topic("mqtt", "{client_id}", "", names).unwrap();
        assert!(rights.allows_key(Action::Write, "mqtt", "a{client_id}"));
        assert!(!rights.allows_key(Action::Read, "mqtt", "x"));
    }
}
