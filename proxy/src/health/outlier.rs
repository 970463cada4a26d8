//! When requests eject an endpoint.

use std::sync::atomic::Ordering::Relaxed;

use super::endpoint::EndpointHealth;
use super::settings::OutlierSettings;
use crate::balance::Outcome;
use crate::telemetry::metrics::Ejection;

/// Learns how a request went, and says why the endpoint is to be ejected now, if it is.
pub(super) fn judge(
    settings: &OutlierSettings,
    cell: &EndpointHealth,
    outcome: Outcome,
    now: u64,
) -> Option<Ejection> {
    let failed = outcome != Outcome::Success;
    let by_rate = count(settings, cell, failed, now);
    if !failed {
        // A write would take the cache line from other workers; most of the time there is nothing to write.
        if cell.consecutive_failures.load(Relaxed) != 0 {
            cell.consecutive_failures.store(0, Relaxed);
        }
        return None;
    }
    // An ejected one that is picked all the same, since others are no better, is not ejected for longer by that.
    if cell.is_ejected() && !cell.is_probing() {
        return None;
    }
    if cell.is_probing() {
        return Some(Ejection::FailedProbe);
    }
    let failures = cell.consecutive_failures.fetch_add(1, Relaxed) + 1;
    let in_a_row = settings.consecutive_failures;
    if in_a_row != 0 && failures >= in_a_row {
        return Some(Ejection::ConsecutiveFailures);
    }
    by_rate.then_some(Ejection::SuccessRate)
}

/// Counts an answer in the endpoint's interval, and says whether too few succeeded.
fn count(settings: &OutlierSettings, cell: &EndpointHealth, failed: bool, now: u64) -> bool {
    if settings.min_success_percent == 0 {
        return false;
    }
    let window = &cell.window;
    if now.saturating_sub(window.began.load(Relaxed)) >= settings.interval {
        window.begin(now);
    }
    let counter = if failed {
        &window.failures
    } else {
        &window.successes
    };
    counter.fetch_add(1, Relaxed);
    let successes = u64::from(window.successes.load(Relaxed));
    let all = successes + u64::from(window.failures.load(Relaxed));
    all >= u64::from(settings.min_requests)
        && successes * 100 < all * u64::from(settings.min_success_percent)
}

/// Whether one more of `all` endpoints may be ejected when `ejected` others are: within the share, and never the last.
pub(super) fn may_eject(settings: &OutlierSettings, ejected: usize, all: usize) -> bool {
    let after = ejected + 1;
    after < all && after * 100 <= all * settings.max_ejected_percent as usize
}
