//! Repeatable chance for one run.
//!
//! Owns: SplitMix64, shared by all who throw in one run. Promises: the same seed, the same throws in the same order of asking.
//! Does not know: what is decided by it.

use std::cell::Cell;
use std::rc::Rc;

/// A generator; clones throw from the same sequence.
#[derive(Debug, Clone)]
pub struct Dice(Rc<Cell<u64>>);

impl Dice {
    /// A sequence of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Cell::new(seed ^ 0xD1CE_D1CE_D1CE_D1CE)))
    }

    /// The next number.
    #[must_use]
    pub fn throw(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        mix(state)
    }

    /// A number below `bound`, which is not zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.throw() % bound
    }

    /// True in so many of a thousand throws.
    #[must_use]
    pub fn permille(&self, chance: u64) -> bool {
        self.below(1000) < chance
    }
}

/// Spreads every bit of a number over all of them.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
