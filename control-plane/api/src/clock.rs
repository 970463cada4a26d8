//! What each side says of its clock: milliseconds since 1970, 0 for nothing.
//!
//! Certificates and tokens are good between two moments of the wall clock, so two clocks that differ make good ones
//! bad. Nobody sets a clock by what the other says; it is for an alarm.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By how much the clocks of proxy and control plane may differ before that is an alarm. Certificates are backdated by
/// as much, so that a little less goes unnoticed.
pub const MAX_DIFFERENCE: Duration = Duration::from_secs(30);

/// A moment as it is sent. One before 1970 is sent as nothing.
#[must_use]
pub fn unix_ms(moment: SystemTime) -> i64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// By how many seconds the other's clock is ahead of `now`; negative where it is behind, none where it did not say.
#[must_use]
pub fn seconds_ahead(other_unix_ms: i64, now: SystemTime) -> Option<f64> {
    if other_unix_ms <= 0 {
        return None;
    }
    // Both are far below 2^53.
    #[expect(clippy::cast_precision_loss)]
    let difference = other_unix_ms.saturating_sub(unix_ms(now)) as f64;
    Some(difference / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_says_nothing_differs_by_nothing() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (other, expected) in [
            (0, None),
            (-5, None),
            (1_000_000_000, Some(0.0)),
            (1_000_030_500, Some(30.5)),
            (999_000_000, Some(-1000.0)),
        ] {
            assert_eq!(seconds_ahead(other, now), expected, "{other}");
        }
        assert_eq!(unix_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(unix_ms(now), 1_000_000_000);
    }
}
