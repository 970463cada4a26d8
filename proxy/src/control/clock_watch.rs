//! Notices when the wall clock has jumped: the machine slept, or the clock was set.
//!
//! What waits for a moment of the wall clock looks at it again by itself ([`super::Clock::sleep`]). This is for people,
//! who otherwise see certificates expire with no reason.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Shared;
use super::clock::LONGEST_SLEEP;

/// A smaller step is what keeping a clock right looks like.
const JUMP: Duration = Duration::from_secs(10);

/// Watches for as long as the process runs.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut last = (shared.clock.now(), Instant::now());
    loop {
        tokio::time::sleep(LONGEST_SLEEP).await;
        let present = (shared.clock.now(), Instant::now());
        if let Some((seconds, direction)) = jump(last, present) {
            tracing::warn!(
                seconds,
                "the wall clock has jumped {direction}: the machine slept, or the clock was set; certificates are \
                 held against it as it is now"
            );
            shared.status.send_modify(|status| status.clock_jumps += 1);
        }
        last = present;
    }
}

/// By how many seconds more or less the wall clock went than the monotonic one, where that is a jump.
fn jump(
    last: (SystemTime, Instant),
    present: (SystemTime, Instant),
) -> Option<(u64, &'static str)> {
    let expected = last.0 + present.1.duration_since(last.1);
    let (distance, direction) = match present.0.duration_since(expected) {
        Ok(ahead) => (ahead, "forward"),
        Err(behind) => (behind.duration(), "back"),
    };
    (distance >= JUMP).then_some((distance.as_secs(), direction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_kept_right_has_not_jumped() {
        let seconds = Duration::from_secs;
        let last = (SystemTime::now(), Instant::now());
        let after = last.1 + seconds(30);
        for (wall, expected) in [
            (last.0 + seconds(30), None),
            (last.0 + seconds(39), None),
            (last.0 + seconds(21), None),
            (last.0 + seconds(3630), Some((3600, "forward"))),
            (last.0 - seconds(3570), Some((3600, "back"))),
        ] {
            assert_eq!(jump(last, (wall, after)), expected);
        }
    }
}
