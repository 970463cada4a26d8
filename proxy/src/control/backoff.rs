//! How long to wait after a failure.

use std::time::Duration;

/// Doubling waits up to a cap, each changed by up to a fifth at random so that a fleet never tries in step.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    base: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            next: base,
        }
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.cap);
        jittered(wait)
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.next = self.base;
    }
}

/// No control plane is waited for longer because it asks for that: its word is no reason to let a certificate end.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// The wait that a control plane has asked for, and up to half as much again: those who were refused together must not
/// come back together.
pub(super) fn as_asked(asked: Duration) -> Duration {
    asked
        .min(LONGEST_ASKED)
        .mul_f64(rand::random_range(1.0..=1.5))
}

/// The wait, changed by up to a fifth.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..=1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_waited_for_and_spread_and_bounded() {
        let seconds = Duration::from_secs;
        for (asked, shortest, longest) in [
            (seconds(10), seconds(10), seconds(15)),
            (seconds(60), seconds(60), seconds(90)),
            (Duration::MAX, seconds(60), seconds(90)),
            (Duration::ZERO, Duration::ZERO, Duration::ZERO),
        ] {
            let draws: Vec<_> = (0..1000).map(|_| as_asked(asked)).collect();
            let bounds = shortest..=longest;
            assert!(draws.iter().all(|draw| bounds.contains(draw)), "{asked:?}");
            let spread = *draws.iter().max().unwrap() - *draws.iter().min().unwrap();
            assert!(spread >= (longest - shortest) / 2, "{asked:?}");
        }
    }

    #[test]
    fn waits_double_up_to_the_cap_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let wait = backoff.next().as_secs_f64();
            assert!((expected * 0.8..=expected * 1.2).contains(&wait), "{wait}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(600));
    }
}
