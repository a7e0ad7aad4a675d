//! How old each segment of the log is.
//!
//! Owns: one line for each segment that still matters. Promises: a segment's end is the log time of its last batch; memory is
//! one line per segment with something alive.
//! Does not know: what lives there now (`state`), files.

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Fills {
    /// Log time of the segment's last batch, ms since 1970; 0: it is still open.
    ended: BTreeMap<u64, u64>,
    /// Those before did not change since the last checkpoint began.
    fresh: u64,
}

impl Fills {
    /// The log goes on in that segment; `log_time` is that of the batch before.
    pub(crate) fn enter(&mut self, segment: u64, log_time: u64) {
        if let Some(mut last) = self.ended.last_entry() {
            if *last.key() >= segment {
                return;
            }
            *last.get_mut() = log_time;
        }
        self.ended.insert(segment, 0);
    }

    /// When that segment ended, if that is known.
    pub(crate) fn ended(&self, segment: u64) -> Option<u64> {
        self.ended.get(&segment).copied().filter(|ended| *ended > 0)
    }

    /// The last segment that ended at or before that log time.
    pub(crate) fn last_until(&self, log_time: u64) -> Option<u64> {
        self.ended
            .iter()
            .rev()
            .find(|(_, ended)| (1..=log_time).contains(*ended))
            .map(|(segment, _)| *segment)
    }

    /// A checkpoint begins: what changed since the last one, and what is forgotten because nothing lives there.
    pub(crate) fn checkpoint(&mut self, is_alive: impl Fn(u64) -> bool) -> (Vec<(u64, u64)>, Vec<u64>) {
        let Some(open) = self.ended.last_key_value().map(|(open, _)| *open) else {
            return (Vec::new(), Vec::new());
        };
        let gone: Vec<u64> = self.ended.range(..open).map(|(s, _)| *s).filter(|s| !is_alive(*s)).collect();
        for segment in &gone {
            self.ended.remove(segment);
        }
        let changed = self.ended.range(self.fresh..).map(|(s, ended)| (*s, *ended)).collect();
        self.fresh = open;
        (changed, gone)
    }

    /// From a checkpoint.
    pub(crate) fn load(&mut self, segment: u64, ended: u64) {
        self.ended.insert(segment, ended);
        self.fresh = self.fresh.max(segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_ends_with_its_last_batch_and_is_forgotten_when_nothing_lives_there() {
        let mut fills = Fills::default();
        fills.enter(0, 0);
        fills.enter(0, 50);
        fills.enter(2, 70);
        assert_eq!((fills.ended(0), fills.ended(2)), (Some(70), None));
        fills.enter(3, 90);
        assert_eq!(
            (fills.last_until(69), fills.last_until(70), fills.last_until(500)),
            (None, Some(0), Some(2))
        );
        assert_eq!(fills.checkpoint(|segment| segment == 2), (vec![(2, 90), (3, 0)], vec![0]));
        assert_eq!(fills.checkpoint(|_| true).0.len(), 1, "only what can have changed is written again");
    }
}
