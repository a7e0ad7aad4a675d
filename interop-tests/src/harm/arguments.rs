//! The command lines of programs that harm a broker: what they have in common.
//!
//! Owns: the common words and their defaults. Promises: a word that nobody knows, or without a value, is refused.
//! Does not know: what a program adds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::load::Worlds;
use super::trial::Trial;

/// A command line.
#[derive(Debug)]
pub struct Arguments {
    /// The run that it asks for.
    pub trial: Trial,
    /// Milliseconds between two harms, at least and at most.
    pub between: (u64, u64),
    /// The values of the program's own words that were given.
    pub own: BTreeMap<&'static str, String>,
}

/// What the words are that a program does not share.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// What harm is called in the history, and in the names of directories.
    pub harm: &'static str,
    /// How often: the word for it.
    pub times: &'static str,
    /// Words more, each with a value.
    pub own: &'static [&'static str],
    /// Whose clients take part unless `--protocol` says it.
    pub worlds: Worlds,
    /// Pauses between two harms unless `--seconds-between` says it, in ms; none: it must be said.
    pub between: Option<(u64, u64)>,
}

impl Arguments {
    /// Reads what follows the program's name. None: the usage should be shown.
    pub fn read(words: &Words, mut line: impl Iterator<Item = String>) -> Option<Self> {
        let (mut broker, mut times, mut out, mut own) = (None, None, None, BTreeMap::new());
        let (mut worlds, mut between) = (words.worlds, words.between);
        let mut seed =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
        let name = format!("dassie-{}-{}", words.harm, std::process::id());
        let mut directory = std::env::temp_dir().join(name);
        while let Some(word) = line.next() {
            let value = line.next()?;
            match word.as_str() {
                "--broker" => broker = Some(PathBuf::from(value)),
                "--seconds-between" => {
                    let (low, high) = value.split_once("..")?;
                    between = Some((milliseconds(low)?, milliseconds(high)?));
                }
                "--out" => out = Some(PathBuf::from(value)),
                "--protocol" => worlds = Worlds::named(&value)?,
                "--seed" => seed = value.parse().ok()?,
                "--dir" => directory = PathBuf::from(value),
                word if word == words.times => times = Some(value.parse().ok()?),
                word => drop(own.insert(words.own.iter().copied().find(|known| *known == word)?, value)),
            }
        }
        let between = between.filter(|(low, high)| low < high)?;
        let (broker, out, times, harm) = (broker?, out?, times?, words.harm);
        Some(Self { trial: Trial { broker, out, seed, directory, worlds, harm, times }, between, own })
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    let time = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
    u64::try_from(time.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_needs_its_words_and_a_range_that_is_one() {
        let words =
            Words { harm: "kill", times: "--kills", own: &["--plant"], worlds: Worlds::Amqp, between: None };
        let read = |text: &str| Arguments::read(&words, text.split_whitespace().map(str::to_owned));
        let good = read("--broker b --kills 3 --seconds-between 0.5..2 --out o --seed 7").unwrap();
        assert_eq!((good.trial.times, good.between, good.trial.seed), (3, (500, 2_000), 7));
        assert_eq!((good.trial.worlds, good.own.len()), (Worlds::Amqp, 0));
        for bad in [
            "",
            "--broker b --kills 3 --out o",
            "--broker b --kills 3 --seconds-between 2..1 --out o",
            "--broker b --kills 3 --seconds-between 1..2 --out o --protocol mqtt",
            "--lie yes",
            "--kills",
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
