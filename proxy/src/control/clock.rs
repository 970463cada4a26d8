//! Time that survives a suspended machine: certificates end by the wall clock, timers count monotonic time, and
//! the two part when a laptop sleeps or a clock is set.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How long a timer may run before the wall clock is looked at again.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The wall clock, and sleeping by it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    #[cfg(test)]
    simulated: Option<Simulated>,
}

impl Clock {
    pub(crate) fn now(&self) -> SystemTime {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.now();
        }
        SystemTime::now()
    }

    /// Sleeps until the time has passed by either clock: after a suspension the wall clock says so first, after the
    /// wall clock was set back the monotonic one does.
    pub(crate) async fn sleep(&self, duration: Duration) {
        let monotonic_end = Instant::now() + duration;
        let wall_end = self.now() + duration;
        loop {
            let monotonic_left = monotonic_end.saturating_duration_since(Instant::now());
            let wall_left = wall_end.duration_since(self.now()).unwrap_or_default();
            let left = monotonic_left.min(wall_left);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}

#[cfg(test)]
pub(crate) use simulated::Simulated;

#[cfg(test)]
mod simulated {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// A wall clock that goes with tokio's clock, and jumps when told.
    #[derive(Debug, Clone)]
    pub(crate) struct Simulated {
        start: SystemTime,
        origin: Instant,
        jumped_seconds: Arc<AtomicI64>,
    }

    impl Simulated {
        pub(crate) fn new() -> Self {
            Self {
                start: SystemTime::now(),
                origin: Instant::now(),
                jumped_seconds: Arc::default(),
            }
        }

        pub(crate) fn clock(&self) -> Clock {
            Clock {
                simulated: Some(self.clone()),
            }
        }

        pub(crate) fn now(&self) -> SystemTime {
            let jumped = self.jumped_seconds.load(Ordering::Relaxed);
            let now = self.start + self.origin.elapsed();
            let distance = Duration::from_secs(jumped.unsigned_abs());
            if jumped < 0 {
                now - distance
            } else {
                now + distance
            }
        }

        pub(crate) fn jump(&self, seconds: i64) {
            self.jumped_seconds.fetch_add(seconds, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_by_the_monotonic_clock_when_the_wall_clock_is_set_back() {
        let simulated = Simulated::new();
        let clock = simulated.clock();
        let begun = Instant::now();
        let sleep = tokio::spawn(async move { clock.sleep(Duration::from_secs(100)).await });
        tokio::time::sleep(Duration::from_secs(10)).await;
        simulated.jump(-3600);
        sleep.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_within_half_a_minute_after_the_machine_was_suspended() {
        let simulated = Simulated::new();
        let clock = simulated.clock();
        let begun = Instant::now();
        let sleep = tokio::spawn(async move { clock.sleep(Duration::from_secs(3600)).await });
        tokio::time::sleep(Duration::from_secs(10)).await;
        simulated.jump(3 * 24 * 3600);
        sleep.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 30);
    }
}
