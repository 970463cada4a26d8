//! Waiting for something to become true, with a deadline and a sentence about what it is.

use std::time::Duration;

use tokio::time::Instant;

/// How long things that happen soon may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `probe` until it gives a value.
///
/// # Panics
/// When it gave none within `patience`; the message holds `what`.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match within(patience, probe) {
        Some(value) => value,
        None => panic!("not within {patience:?}: {what}"),
    }
}

/// Calls `probe` until it gives a value, or `patience` is over.
pub fn within<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause(INTERVAL);
    }
}

/// Checks that `holds` is true for the whole of `duration`.
///
/// # Panics
/// As soon as it is not.
#[track_caller]
pub fn throughout(what: &str, duration: Duration, mut holds: impl FnMut() -> bool) {
    let broken = within(duration, || (!holds()).then_some(()));
    assert!(broken.is_none(), "did not hold for {duration:?}: {what}");
}

/// Stands still between two looks at another process, which has no event to wait for.
pub(crate) fn pause(duration: Duration) {
    let deadline = Instant::now() + duration;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}
