//! Slows down who guesses passwords.
//!
//! Owns: how many logins of an address failed lately. Promises: a login that succeeds waits for nothing, whatever others at its
//! address do; each refusal beyond the first few waits longer, up to [`limits::LOGIN_DELAY_MAX_MS`]; memory is bounded.
//! Does not know: users, protocols, who waits.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use crate::limits;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Brake(Mutex<HashMap<IpAddr, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    /// When the count was right: one is forgotten each [`limits::LOGIN_FORGOTTEN_MS`].
    at: Duration,
}

impl Failures {
    fn at(self, now: Duration) -> Self {
        let step = Duration::from_millis(limits::LOGIN_FORGOTTEN_MS);
        let forgotten = u32::try_from(now.saturating_sub(self.at).as_millis() / step.as_millis());
        let forgotten = forgotten.unwrap_or(u32::MAX).min(self.count);
        Self { count: self.count - forgotten, at: self.at + step * forgotten }
    }
}

impl Brake {
    /// A login from `peer` failed at `now` (monotonic): how long its refusal waits.
    pub(super) fn failed(&self, peer: IpAddr, now: Duration) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        if failures.len() >= limits::LOGIN_ADDRESSES_MAX && !failures.contains_key(&peer) {
            failures.retain(|_, known| known.at(now).count > 0);
            if failures.len() >= limits::LOGIN_ADDRESSES_MAX {
                // So many at once are one attack.
                return Duration::from_millis(limits::LOGIN_DELAY_MAX_MS);
            }
        }
        let known = failures.entry(peer).or_insert(Failures { count: 0, at: now });
        *known = known.at(now);
        if known.count == 0 {
            known.at = now;
        }
        known.count = known.count.saturating_add(1);
        let Some(beyond) = known.count.checked_sub(limits::LOGIN_FAILURES_FREE + 1) else {
            return Duration::ZERO;
        };
        let most = limits::LOGIN_DELAY_MAX_MS;
        Duration::from_millis(limits::LOGIN_DELAY_MS.checked_shl(beyond).map_or(most, |ms| ms.min(most)))
    }
}

/// Who has one IPv6 address mostly has 2^64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "192.0.2.1";

    fn fail(brake: &Brake, peer: &str, seconds: u64) -> u128 {
        brake.failed(peer.parse().unwrap(), Duration::from_secs(seconds)).as_millis()
    }

    #[test]
    fn the_first_refusals_are_at_once_and_each_further_one_waits_longer_up_to_a_limit() {
        let brake = Brake::default();
        let waits: Vec<u128> = (0..100).map(|_| fail(&brake, HOST, 100)).collect();
        let free = limits::LOGIN_FAILURES_FREE as usize;
        assert!(waits[..free].iter().all(|ms| *ms == 0));
        assert_eq!(waits[free..free + 4], [100, 200, 400, 500]);
        assert_eq!(waits[99], u128::from(limits::LOGIN_DELAY_MAX_MS));
        assert_eq!(fail(&brake, "192.0.2.2", 100), 0, "another address");
    }

    #[test]
    fn what_failed_is_forgotten_with_time() {
        let brake = Brake::default();
        for _ in 0..12 {
            fail(&brake, HOST, 100);
        }
        assert_eq!(fail(&brake, HOST, 100), 500);
        assert_eq!(fail(&brake, HOST, 108), 200, "four were forgotten, one came");
        assert_eq!(fail(&brake, HOST, 1_000), 0);
    }

    #[test]
    fn addresses_of_one_network_count_together_and_their_number_is_bounded() {
        let brake = Brake::default();
        let waits: Vec<u128> = (0..12).map(|n| fail(&brake, &format!("2001:db8::{n:x}"), 1)).collect();
        assert_eq!(waits[11], 500);
        for n in 0..2 * limits::LOGIN_ADDRESSES_MAX {
            fail(&brake, &format!("2001:db8:{:x}:{:x}::1", n >> 16, n & 0xffff), 1);
        }
        assert!(brake.0.lock().unwrap().len() <= limits::LOGIN_ADDRESSES_MAX);
        assert_eq!(fail(&brake, HOST, 1), u128::from(limits::LOGIN_DELAY_MAX_MS));
        assert_eq!(fail(&brake, HOST, 1_000), 0, "room is made when they are forgotten");
    }
}
