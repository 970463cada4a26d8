//! A warning that repeats is said once a minute, with a count.

use std::time::Duration;

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(60);

/// When a warning was said last, and how often it was not said since.
#[derive(Debug, Default)]
pub(super) struct Occasionally {
    said: Option<Instant>,
    suppressed: u64,
}

impl Occasionally {
    /// Counts one occurrence. When it is to be said: how many there were since the last time, itself included.
    pub(super) fn count(&mut self) -> Option<u64> {
        self.suppressed += 1;
        if self.said.is_some_and(|said| said.elapsed() < INTERVAL) {
            return None;
        }
        self.said = Some(Instant::now());
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Lets the next occurrence be said at once, after things were well again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_repeated_warning_is_said_once_a_minute_with_a_count() {
        let mut warning = Occasionally::default();
        assert_eq!(warning.count(), Some(1));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(warning.count(), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(warning.count(), Some(60));
        warning.reset();
        assert_eq!(warning.count(), Some(1));
    }
}
