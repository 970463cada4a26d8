//! Whether the store works, as its last use has shown.

use super::StoreError;
use crate::telemetry::{Throttle, chain};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Whether the store works. Says so in the log when that changes, and once a minute while it does not.
#[derive(Debug, Default)]
pub struct Health {
    down: Mutex<Option<Down>>,
    said: Throttle,
    gauge: OnceLock<Gauge>,
}

#[derive(Debug)]
struct Down {
    since: Instant,
    why: Arc<str>,
}

impl Health {
    /// Keeps a gauge at 1 while the store works and at 0 while it does not.
    pub fn report_to(&self, gauge: Gauge) {
        gauge.set(i64::from(self.failing().is_none()));
        // A second one would belong to a second server on the same store, which there is none of.
        let _ = self.gauge.set(gauge);
    }

    /// Learns from the result of a use of the store.
    pub fn note<T>(&self, result: Result<T, StoreError>) {
        match result {
            Ok(_) => self.works(),
            Err(error) => self.fails(&error),
        }
    }

    /// The store has done what it was asked.
    pub fn works(&self) {
        let Some(down) = self.down().take() else {
            return;
        };
        let seconds = down.since.elapsed().as_secs();
        tracing::info!(seconds, "the store works again");
        self.set(1);
    }

    /// The store has failed.
    pub fn fails(&self, error: &StoreError) {
        let why: Arc<str> = chain(error).into();
        {
            let mut down = self.down();
            let since = down.as_ref().map_or_else(Instant::now, |down| down.since);
            let why = Arc::clone(&why);
            *down = Some(Down { since, why });
        }
        self.set(0);
        if let Some(unsaid) = self.said.admit("store") {
            tracing::error!(
                error = &*why,
                unsaid,
                "the store is away: renewals go on, first certificates wait, and what is to be written is kept"
            );
        }
    }

    /// For how long the store has failed, and how; nothing while it works.
    #[must_use]
    pub fn failing(&self) -> Option<(Duration, Arc<str>)> {
        let down = self.down();
        let down = down.as_ref()?;
        Some((down.since.elapsed(), Arc::clone(&down.why)))
    }

    fn set(&self, value: i64) {
        if let Some(gauge) = self.gauge.get() {
            gauge.set(value);
        }
    }

    fn down(&self) -> MutexGuard<'_, Option<Down>> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failing_store_is_told_apart_from_one_that_works_again() {
        let health = Health::default();
        let gauge = Gauge::default();
        health.report_to(gauge.clone());
        assert_eq!((health.failing(), gauge.get()), (None, 1));
        health.note::<()>(Err(StoreError::Slow));
        tokio::time::advance(Duration::from_secs(5)).await;
        health.note::<()>(Err(StoreError::Slow));
        let (since, why) = health.failing().unwrap();
        assert_eq!((since, gauge.get()), (Duration::from_secs(5), 0));
        assert!(why.contains("in time"), "{why}");
        health.note(Ok(()));
        assert_eq!((health.failing(), gauge.get()), (None, 1));
    }
}
