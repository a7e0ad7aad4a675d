//! Is the broker ready?
//!
//! Owns: the list of what must stand before clients are served, and what of it is missing.
//! Promises: ready only when everything named at the start has been reported. Does not know: why something is missing.

use std::sync::{Arc, Mutex, PoisonError};

use crate::alarms::{Alarms, Raised};

/// What is still missing. Shared by those who bring it up and by `/health/ready`.
#[derive(Debug)]
pub struct Readiness {
    missing: Mutex<Vec<&'static str>>,
    alarms: Arc<Alarms>,
}

impl Readiness {
    /// Everything in `parts` is missing. Name parts as a person knows them: `log`, `amqp.listen`.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = &'static str>, alarms: Arc<Alarms>) -> Arc<Self> {
        Arc::new(Self { missing: Mutex::new(parts.into_iter().collect()), alarms })
    }

    /// What is raised. A broker with an alarm is ready: consumers must find it.
    #[must_use]
    pub fn raised(&self) -> Raised {
        self.alarms.raised()
    }

    /// `part` stands.
    pub fn up(&self, part: &str) {
        self.lock().retain(|missing| *missing != part);
    }

    /// `part` does not stand any more: the log lost its leader, the broker ends.
    pub fn down(&self, part: &'static str) {
        let mut missing = self.lock();
        if !missing.contains(&part) {
            missing.push(part);
        }
    }

    /// What is missing; empty: ready.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        // Nothing in here can panic half way.
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_part_was_reported() {
        let ready = Readiness::new(["log", "amqp.listen"], Alarms::new());
        ready.up("amqp.listen");
        assert_eq!(ready.missing(), ["log"]);
        ready.up("log");
        assert!(ready.missing().is_empty());
        ready.down("log");
        ready.down("log");
        assert_eq!(ready.missing(), ["log"]);
    }
}
