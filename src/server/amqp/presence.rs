//! A connection as the metrics and operators see it.
//!
//! Owns: this connection's share of the gauges, and its place in the registry. Promises: what was counted is taken back when the connection ends, in good order
//! or by a panic. Does not know: what the connection does.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::server::registry::{Facts, Place, Registry};

/// See the module.
pub(super) struct Presence {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    place: Option<Place>,
    channels: i64,
    /// Read from the socket, and written to it. Bytes.
    pub(super) octets: (u64, u64),
}

impl Presence {
    /// A connection more.
    pub(super) fn new(metrics: Arc<Metrics>, registry: Arc<Registry>) -> Self {
        metrics.connections.inc();
        metrics.connections_opened.inc();
        Self { metrics, registry, place: None, channels: 0, octets: (0, 0) }
    }

    /// It is open: operators see it.
    pub(super) fn opened(&mut self, facts: Facts) {
        self.place = Some(self.registry.enter(facts));
    }

    /// Its place among the others, once it is open.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// A login was tried: how long its answer waits.
    pub(super) fn login(&self, accepted: bool, peer: IpAddr) -> Duration {
        self.metrics.auth.attempt(accepted);
        if accepted { Duration::ZERO } else { self.registry.login_failed(peer) }
    }

    /// It has so many channels now. `opened`: since the last call; `held`: the client is not listened to.
    pub(super) fn update(&mut self, channels: usize, opened: u64, held: bool) {
        let count = i64::try_from(channels).unwrap_or(i64::MAX);
        // Once a read, and most reads open none.
        if count != self.channels || opened != 0 {
            let closed = self.channels + i64::try_from(opened).unwrap_or(0) - count;
            self.metrics.channels.inc_by(count - self.channels);
            self.metrics.channels_opened.inc_by(opened);
            self.metrics.channels_closed.inc_by(u64::try_from(closed).unwrap_or(0));
            self.channels = count;
        }
        if let Some(place) = &self.place {
            place.update(channels, self.octets.0, self.octets.1, held);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.update(0, 0, false);
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
        let registry = Registry::new(Arc::new(crate::clock::SystemClock::new()));
        let mut presence = Presence::new(Arc::clone(&metrics), Arc::clone(&registry));
        presence.update(3, 3, false);
        presence.opened(crate::server::registry::tests::facts(1));
        presence.update(2, 1, false);
        assert_eq!((metrics.channels_opened.get(), metrics.channels_closed.get()), (4, 2));
        assert_eq!((registry.count(), registry.list()[0].channels()), (1, 2));
        assert_eq!((metrics.connections.get(), metrics.channels.get()), (1, 2));
        drop(presence);
        assert_eq!((metrics.channels_opened.get(), metrics.channels_closed.get()), (4, 4));
        assert_eq!((registry.count(), metrics.connections.get(), metrics.channels.get()), (0, 0, 0));
        assert_eq!((metrics.connections_opened.get(), metrics.connections_closed.get()), (1, 1));
    }
}
