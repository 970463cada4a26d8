//! How many retries a service may get.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

/// In thousandths of a retry, so that a share of a request is a whole number.
const RETRY: u64 = 1000;
/// What each request adds: a fifth of a retry.
const PER_REQUEST: u64 = RETRY / 5;
/// What each second adds, so that services with few requests get retries at all.
const PER_SECOND: u64 = 10 * RETRY;
/// Most that is saved up.
const MOST: u64 = 10 * PER_SECOND;

/// A token bucket for one service, which all workers share: retries are at most a fifth of the requests and ten a second
/// more. When a service is down, its clients' retries thus add 20 % to its load and do not multiply it.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    balance: AtomicU64,
    began: Instant,
    /// Milliseconds after `began`.
    refilled: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            balance: AtomicU64::new(PER_SECOND),
            began: Instant::now(),
            refilled: AtomicU64::new(0),
        }
    }
}

impl RetryBudget {
    /// A request began.
    pub(crate) fn deposit(&self) {
        self.add(PER_REQUEST);
    }

    /// Takes one retry; false when none is left.
    pub(crate) fn withdraw(&self) -> bool {
        self.refill();
        let take = |balance: u64| balance.checked_sub(RETRY);
        self.balance.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    fn refill(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Of two workers that come at once, one finds nothing left to add.
        let elapsed = now.saturating_sub(self.refilled.fetch_max(now, Relaxed));
        if elapsed > 0 {
            self.add(elapsed.saturating_mul(PER_SECOND / 1000));
        }
    }

    fn add(&self, amount: u64) {
        // A service that needs no retries has saved up all that it may, and its requests write nothing.
        let more =
            |balance: u64| (balance < MOST).then(|| balance.saturating_add(amount).min(MOST));
        let _ = self.balance.fetch_update(Relaxed, Relaxed, more);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn drain(budget: &RetryBudget) -> usize {
        std::iter::from_fn(|| budget.withdraw().then_some(())).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fifth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        drain(&budget);
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!(drain(&budget), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_retries_come_with_each_second_up_to_ten_seconds_worth() {
        let budget = RetryBudget::default();
        assert_eq!(drain(&budget), 10);
        for (milliseconds, expected) in [(50, 0), (50, 1), (1000, 10), (3_600_000, 100)] {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            assert_eq!(drain(&budget), expected, "{milliseconds}");
        }
    }
}
