//! Looks at the machine, and raises alarms.
//!
//! Owns: when it is looked, and the limits as they are configured now. Promises: the first look is taken before anybody can
//! publish; an idle machine is looked at once a second, on a thread that holds up nobody.
//! Does not know: what an alarm leads to.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use crate::alarms::{Alarms, Limits, Sample, memory_total};
use crate::config::{self, Config, Invocation};
use crate::limits;
use crate::metrics::Metrics;
use crate::server::Stop;

/// See the module.
pub struct Pressure {
    data_dir: String,
    alarms: Arc<Alarms>,
    metrics: Arc<Metrics>,
    limits: Limits,
    last: Sample,
}

impl Pressure {
    /// Takes the first look.
    pub async fn begin(config: &Config, alarms: Arc<Alarms>, metrics: Arc<Metrics>) -> Self {
        let (data_dir, limits) = (config.data_dir.clone(), limits_of(config));
        let mut pressure = Self { data_dir, alarms, metrics, limits, last: Sample::default() };
        pressure.look().await;
        pressure
    }

    /// Looks until `stop`. SIGHUP reads the limits again.
    pub async fn keep_watch(mut self, mut hangups: Signal, stop: Stop) {
        let mut wait = limits::ALARM_TICK_MS;
        loop {
            tokio::select! {
                () = stop.requested() => return,
                _ = hangups.recv() => self.reload(),
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            }
            // A disk that fills up is full within a second; one that is not written to is left alone.
            let urgent = self.look().await;
            wait = if urgent { limits::ALARM_TICK_MS / 10 } else { limits::ALARM_TICK_MS };
        }
    }

    /// True: soon again.
    async fn look(&mut self) -> bool {
        let data_dir = self.data_dir.clone();
        // A file system that does not answer must not hold up connections.
        let sample = tokio::task::spawn_blocking(move || Sample::take(data_dir.as_ref())).await;
        let sample = sample.unwrap_or_default();
        self.alarms.judge(&sample, &self.limits, &self.metrics);
        sample.is_urgent(&std::mem::replace(&mut self.last, sample), &self.limits)
    }

    fn reload(&mut self) {
        match config::load(std::env::args_os(), std::env::vars_os()) {
            Ok(Invocation::Run(config)) => {
                self.limits = limits_of(&config);
                let Limits { disk_free, memory } = self.limits;
                tracing::info!(
                    "SIGHUP: disk_free_limit is {disk_free}, memory_high_watermark {memory} bytes"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!("SIGHUP: the limits stay as they are: {error}"),
        }
    }
}

fn limits_of(config: &Config) -> Limits {
    let memory = config.memory_high_watermark.bytes(memory_total());
    Limits { disk_free: config.disk_free_limit, memory }
}
