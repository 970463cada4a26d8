//! Warnings that a stranger or a lasting fault can repeat: one line a minute for each cause.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a cause is silent after a line about it.
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one line of each cause through each minute and counts the others.
///
/// A cause is a word of this program's own and never a stranger's, so there are few of them.
///
/// ```ignore
/// static REFUSED: Throttle = Throttle::new();
/// if let Some(unsaid) = REFUSED.admit("not-tls") {
///     tracing::warn!(%error, unsaid, "a connection was refused");
/// }
/// ```
#[derive(Debug, Default)]
pub struct Throttle {
    causes: Mutex<BTreeMap<&'static str, Cause>>,
}

#[derive(Debug)]
struct Cause {
    said: Instant,
    unsaid: u64,
}

impl Throttle {
    /// Lets the next line of each cause through.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            causes: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether to say a line about a cause: how many were not said since the last one that was, or
    /// nothing where this one is not to be said either.
    pub fn admit(&self, cause: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match causes.get_mut(cause) {
            None => {
                causes.insert(
                    cause,
                    Cause {
                        said: now,
                        unsaid: 0,
                    },
                );
                Some(0)
            }
            Some(known) if now.duration_since(known.said) < INTERVAL => {
                known.unsaid = known.unsaid.saturating_add(1);
                None
            }
            Some(known) => {
                known.said = now;
                Some(std::mem::take(&mut known.unsaid))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cause_is_said_once_a_minute_with_the_number_of_those_unsaid() {
        let throttle = Throttle::new();
        assert_eq!(throttle.admit("garbage"), Some(0));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(throttle.admit("garbage"), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(throttle.admit("garbage"), Some(59));
        assert_eq!(throttle.admit("garbage"), None);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(throttle.admit("garbage"), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_cause_does_not_silence_another() {
        let throttle = Throttle::new();
        assert_eq!(throttle.admit("garbage"), Some(0));
        assert_eq!(throttle.admit("silence"), Some(0));
        assert_eq!(throttle.admit("garbage"), None);
    }
}
