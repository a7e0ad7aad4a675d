//! Topic patterns: words separated by dots, `*` one word, `#` any number of words.
//!
//! Owns: matching. Promises: time O(words of the key × words of the pattern) whatever the pattern (a set of states, no
//! backtracking: hostile patterns with many `#` cost other brokers exponential time). An empty key has no words.
//! Does not know: exchanges.

/// Does `key` match `pattern`?
#[must_use]
pub fn matches(pattern: &str, key: &str) -> bool {
    if !pattern.contains(['*', '#']) {
        return pattern == key;
    }
    let words: Vec<&str> = if pattern.is_empty() { Vec::new() } else { pattern.split('.').collect() };
    // `states[i]`: the first i pattern words can have matched what was read so far.
    let mut states = vec![false; words.len() + 1];
    states[0] = true;
    skip_hashes(&words, &mut states);
    if !key.is_empty() {
        for word in key.split('.') {
            let mut next = vec![false; words.len() + 1];
            for (i, pattern_word) in words.iter().enumerate() {
                if !states[i] {
                    continue;
                }
                match *pattern_word {
                    "#" => next[i] = true,
                    "*" => next[i + 1] = true,
                    literal => next[i + 1] |= literal == word,
                }
            }
            skip_hashes(&words, &mut next);
            states = next;
        }
    }
    states[words.len()]
}

/// `#` also matches nothing.
fn skip_hashes(words: &[&str], states: &mut [bool]) {
    for (i, word) in words.iter().enumerate() {
        if states[i] && *word == "#" {
            states[i + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn words_stars_and_hashes_match_as_in_amqp() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("#", "", true),
            ("#", "a.b.c", true),
            ("*", "", false),
            ("", "", true),
            ("", "a", false),
            ("a.#", "a", true),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.x.y.b", true),
            ("a.#.b", "a.x.y.c", false),
            ("*.#", "a", true),
            ("#.#", "a", true),
            ("*.*", "a..", false),
            ("*.*", "a.", true),
            ("*.orange.*", "quick.orange.rabbit", true),
            ("lazy.#", "lazy.pink.rabbit.male", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} against {key}");
        }
    }

    #[test]
    fn a_pattern_of_many_hashes_is_not_exponential() {
        let pattern = vec!["#.a"; 60].join(".");
        let key = vec!["a"; 120].join(".") + ".b";
        assert!(!matches(&pattern, &key));
    }
}
