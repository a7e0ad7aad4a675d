//! A connection as the metrics see it.
//!
//! Owns: this connection's share of the gauges. Promises: what was counted is taken back when the connection ends, in good order
//! or by a panic. Does not know: what the connection does.

use std::sync::Arc;

use crate::metrics::Metrics;

/// See the module.
pub(super) struct Presence {
    metrics: Arc<Metrics>,
    channels: i64,
}

impl Presence {
    /// A connection more.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.connections.inc();
        metrics.connections_opened.inc();
        Self { metrics, channels: 0 }
    }

    /// It has so many channels now.
    pub(super) fn channels(&mut self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        // Once a read, and most reads open none.
        if count != self.channels {
            self.metrics.channels.inc_by(count - self.channels);
            self.channels = count;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.channels(0);
        self.metrics.connections.dec();
        self.metrics.connections_closed.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_counted_is_taken_back_at_its_end() {
        let metrics = Metrics::new();
        let mut presence = Presence::new(Arc::clone(&metrics));
        presence.channels(3);
        presence.channels(2);
        assert_eq!((metrics.connections.get(), metrics.channels.get()), (1, 2));
        drop(presence);
        assert_eq!((metrics.connections.get(), metrics.channels.get()), (0, 0));
        assert_eq!((metrics.connections_opened.get(), metrics.connections_closed.get()), (1, 1));
    }
}
