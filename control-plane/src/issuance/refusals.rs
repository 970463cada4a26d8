//! How many refusals are recorded. Anybody can cause them, and their records must fill no disk; so of a flood the rest is
//! counted. Each caller has a part of what is recorded, so that one that makes thousands does not hide the others'.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// Of all callers together: records at once, and in each second after those.
const OF_ALL: (f64, f64) = (1000.0, 20.0);
/// Of one.
const OF_CALLER: (f64, f64) = (200.0, 4.0);
/// Most callers that are remembered. Who is forgotten begins anew, within what all have.
const MAX_CALLERS: usize = 4096;

/// What may still be recorded.
#[derive(Debug)]
pub(super) struct Refusals(Mutex<Records>);

#[derive(Debug)]
struct Records {
    all: Allowance,
    by_caller: HashMap<String, Allowance>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self(Mutex::new(Records {
            all: Allowance::full(OF_ALL),
            by_caller: HashMap::new(),
        }))
    }
}

impl Refusals {
    /// Whether a refusal of this caller's is recorded.
    pub(super) fn record(&self, caller: &str) -> bool {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Records { all, by_caller } = &mut *records;
        if by_caller.len() >= MAX_CALLERS && !by_caller.contains_key(caller) {
            by_caller.clear();
        }
        let own = by_caller
            .entry(caller.to_owned())
            .or_insert_with(|| Allowance::full(OF_CALLER));
        own.take(OF_CALLER) && all.take(OF_ALL)
    }
}

/// A token bucket of records.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn full((at_once, _): (f64, f64)) -> Self {
        Self {
            left: at_once,
            at: Instant::now(),
        }
    }

    fn take(&mut self, (at_once, per_second): (f64, f64)) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * per_second;
        self.at = now;
        self.left = (self.left + earned).min(at_once);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_recorded_in_part_and_hides_nobody_elses() {
        let refusals = Refusals::default();
        let recorded = |caller: &str| (0..2000).filter(|_| refusals.record(caller)).count();
        assert_eq!(recorded("192.0.2.1"), 200);
        assert!(refusals.record("192.0.2.2"));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(recorded("192.0.2.1"), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn all_callers_together_have_no_more_however_many_they_are() {
        let refusals = Refusals::default();
        let recorded = || {
            let callers = (0..2 * MAX_CALLERS).map(|number| number.to_string());
            callers.filter(|caller| refusals.record(caller)).count()
        };
        assert_eq!(recorded(), 1000);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(recorded(), 40);
        let records = refusals.0.lock().unwrap();
        assert!(records.by_caller.len() <= MAX_CALLERS);
    }
}
