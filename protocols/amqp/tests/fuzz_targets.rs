//! Every fuzz target on the stable toolchain: over its corpus, and over mutations of it from a fixed seed.
//!
//! The same targets run guided by coverage under `interop-tests/fuzz`. A failure here prints the input; give it a name and put
//! it into the corpus.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use dassie_amqp::fuzz::TARGETS;

/// Mutated inputs per target.
const MUTATIONS: u32 = 10_000;

/// Inputs do not grow beyond this.
const SIZE_MAX: usize = 8 * 1024;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a readable file")).collect()
}

fn run(target: fn(&[u8]), input: &[u8]) {
    if catch_unwind(|| target(input)).is_err() {
        panic!("this input breaks a promise: {}", input.escape_ascii());
    }
}

/// Xorshift: the same inputs on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).expect("below a usize")
    }

    fn octet(&mut self) -> u8 {
        const EDGES: [u8; 12] = [0, 1, 2, 3, 8, 9, 32, 0x7f, 0x80, 0xce, 0xfe, 0xff];
        let any = u8::try_from(self.below(256)).expect("an octet");
        if self.below(2) == 0 { any } else { EDGES[self.below(EDGES.len())] }
    }

    /// One to four changes: flip, set, insert, remove, repeat, or splice in another input.
    fn mutate(&mut self, mut input: Vec<u8>, others: &[Vec<u8>]) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let until = at + self.below(input.len() - at + 1).min(64);
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.octet(),
                2 => input.insert(at, self.octet()),
                3 => drop(input.drain(at..until)),
                4 => drop(input.splice(at..at, input[at..until].to_vec())),
                _ => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len() + 1);
                    input.splice(at..until, other[from..].iter().copied());
                }
            }
            input.truncate(SIZE_MAX);
        }
        input
    }
}

#[test]
fn every_target_holds_on_its_corpus() {
    for &(name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for input in corpus {
            run(target, &input);
        }
    }
}

#[test]
fn every_target_holds_on_mutations_of_its_corpus() {
    for &(name, target) in TARGETS {
        let corpus = corpus(name);
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        for _ in 0..MUTATIONS {
            let input = corpus[chance.below(corpus.len())].clone();
            run(target, &chance.mutate(input, &corpus));
        }
    }
}
