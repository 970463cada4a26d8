//! Notices what stands still.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// What a body must move in the time that it is given, so that a drip holds nothing for ever: no link is that slow.
pub(crate) const LEAST_BYTES: u64 = 1024;

/// How long something may be waited for, and how much of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) limit: Duration,
    /// Fewer bytes than this are none.
    pub(crate) least: u64,
}

/// Adds up how long bytes were waited for since enough of them came last. Time in which nobody waited does not count:
/// it is the other side that held up.
///
/// There is no timer before the first wait, and then one for as long as waits follow on each other.
pub(crate) struct Stall {
    bound: Bound,
    moved: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stall")
            .field("bound", &self.bound)
            .field("waited", &self.waited)
            .finish_non_exhaustive()
    }
}

impl Stall {
    pub(crate) fn new(bound: Bound) -> Self {
        Self {
            bound,
            moved: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            timer: None,
        }
    }

    /// So many bytes came.
    pub(crate) fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        self.moved = self.moved.saturating_add(bytes as u64);
        if self.moved >= self.bound.least {
            self.moved = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Called while more is waited for: ready, with the limit, once that took too long.
    pub(crate) fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let limit = self.bound.limit;
        let left = limit.saturating_sub(self.waited);
        let end = *self.waiting_since.get_or_insert_with(Instant::now) + left;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        // A timer that is early is set anew when it has run out, so that most waits cost none.
        while timer.as_mut().poll(cx).is_ready() {
            if end <= Instant::now() {
                return Poll::Ready(limit);
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stall() -> Stall {
        Stall::new(Bound {
            limit: 10 * SECOND,
            least: LEAST_BYTES,
        })
    }

    /// Waits for so long; true when that was too long.
    async fn wait(stall: &mut Stall, time: Duration) -> bool {
        tokio::time::timeout(time, poll_fn(|cx| stall.poll_waiting(cx)))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_is_given_up_after_the_limit() {
        let began = Instant::now();
        assert!(wait(&mut stall(), 60 * SECOND).await);
        assert_eq!(began.elapsed(), 10 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_moves_enough_in_time_goes_on_for_ever() {
        let mut stall = stall();
        for _ in 0..100 {
            assert!(!wait(&mut stall, 9 * SECOND).await);
            stall.moved(1024);
        }
        assert!(wait(&mut stall, 11 * SECOND).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drip_is_no_progress() {
        let mut stall = stall();
        let began = Instant::now();
        while !wait(&mut stall, SECOND).await {
            stall.moved(100);
        }
        assert_eq!(began.elapsed(), 10 * SECOND);
        let mut stall = self::stall();
        for _ in 0..100 {
            assert!(!wait(&mut stall, SECOND).await);
            stall.moved(150);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_in_which_it_was_waited_for_counts() {
        let mut stall = stall();
        for _ in 0..9 {
            assert!(!wait(&mut stall, SECOND).await);
            stall.moved(1);
            // Whoever reads is busy with something else.
            sleep(100 * SECOND).await;
        }
        let began = Instant::now();
        assert!(wait(&mut stall, 60 * SECOND).await);
        assert_eq!(began.elapsed(), SECOND);
    }
}
