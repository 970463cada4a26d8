//! How long to wait before a retry.

use std::time::Duration;

use crate::balance::Random;

/// Exponential backoff with full jitter: before the n-th retry any time up to `base` · 2ⁿ⁻¹, and up to `cap`, is as
/// likely as any other, which spreads the retries of many clients best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Longest wait before the first retry.
    pub(crate) base: Duration,
    /// Longest wait before any.
    pub(crate) cap: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            base: Duration::from_millis(25),
            cap: Duration::from_millis(250),
        }
    }
}

impl Backoff {
    /// The wait before the `retry`-th retry, counted from 1.
    pub(crate) fn delay(&self, retry: u32, random: &Random) -> Duration {
        let doublings = retry.saturating_sub(1).min(20);
        let longest = self.base.saturating_mul(1 << doublings).min(self.cap);
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(random.below_u64(nanos + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_fill_the_whole_range_up_to_a_cap() {
        let backoff = Backoff {
            base: Duration::from_millis(100),
            cap: Duration::from_millis(300),
        };
        let random = Random::new(1);
        for (retry, longest) in [(1, 100), (2, 200), (3, 300), (4, 300), (u32::MAX, 300)] {
            let delays: Vec<u128> = (0..2000)
                .map(|_| backoff.delay(retry, &random).as_millis())
                .collect();
            assert!(delays.iter().all(|delay| *delay <= longest));
            assert!(delays.iter().any(|delay| *delay < longest / 20));
            assert!(delays.iter().any(|delay| *delay > longest * 19 / 20));
        }
    }
}
