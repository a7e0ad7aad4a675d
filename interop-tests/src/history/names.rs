//! The words of one run, each as a small number.
//!
//! Owns: the table. Promises: the same word always gets the same [`Name`]; the empty word is [`Name::NONE`].
//! Does not know: what the words stand for.

use std::collections::HashMap;

use super::event::{Msg, Name};

/// The words of one history or one recorder; a [`Name`] means nothing beside its table.
#[derive(Debug, Clone)]
pub struct Names {
    by_text: HashMap<Box<str>, Name>,
    texts: Vec<Box<str>>,
}

impl Default for Names {
    fn default() -> Self {
        let mut names = Self { by_text: HashMap::new(), texts: Vec::new() };
        assert_eq!(names.name(""), Name::NONE);
        names
    }
}

impl Names {
    /// The name for `text`.
    ///
    /// # Panics
    /// With more than four billion different words.
    pub fn name(&mut self, text: &str) -> Name {
        if let Some(name) = self.by_text.get(text) {
            return *name;
        }
        let name = Name(u32::try_from(self.texts.len()).expect("fewer than 2^32 words in a run"));
        self.by_text.insert(text.into(), name);
        self.texts.push(text.into());
        name
    }

    /// The name for `text`, if it occurs in this history.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Name> {
        self.by_text.get(text).copied()
    }

    /// The word behind a name.
    ///
    /// # Panics
    /// With a name of another table that has more words.
    #[must_use]
    pub fn text(&self, name: Name) -> &str {
        &self.texts[name.0 as usize]
    }

    /// The message as `publisher/seq`.
    #[must_use]
    pub fn msg(&self, msg: Msg) -> String {
        format!("{}/{}", self.text(msg.publisher), msg.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_word_gets_the_same_name_and_the_name_the_word() {
        let mut names = Names::default();
        let (a, b) = (names.name("a"), names.name("b"));
        assert_ne!(a, b);
        assert_eq!(names.name("a"), a);
        assert_eq!(names.text(b), "b");
        assert_eq!(names.find("c"), None);
    }
}
