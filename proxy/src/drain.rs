//! Draining: what happens between SIGTERM and the end of the process.
//!
//! Inbound stops taking new work (HTTP/2 GOAWAY, `connection: close`) while what it has accepted ends in its
//! own time. Outbound goes on for the workload, which may still have calls to make while it terminates. The
//! process ends when nothing is in progress any more, or when the grace period is over.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

/// For how long nothing may be in progress at least: the end of a body that has just ended may still lie in a
/// connection's buffers, and would go down with the process.
const LEAVING: Duration = Duration::from_millis(200);

/// Starts the drain; held by the control thread.
#[derive(Debug)]
pub(crate) struct DrainTrigger {
    draining: watch::Sender<bool>,
    counts: Arc<Counts>,
}

/// Tells the data path that the drain has begun, and counts what is in progress. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    draining: watch::Receiver<bool>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    active: AtomicUsize,
    /// How many have begun so far, modulo the type's range: what is short is not missed between two looks.
    begun: AtomicUsize,
}

/// Something in progress: a request, a tunnel, a client connection. The drain waits until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<Counts>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn drain() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    let counts = Arc::<Counts>::default();
    let trigger = DrainTrigger {
        draining: sender,
        counts: Arc::clone(&counts),
    };
    let drain = Drain {
        draining: receiver,
        counts,
    };
    (trigger, drain)
}

impl DrainTrigger {
    /// Begins the drain, and waits for nothing.
    pub(crate) fn begin(&self) {
        self.draining.send_replace(true);
    }

    /// Begins the drain and waits until nothing has been in progress for `quiet`, by which the workload counts as
    /// gone, or until `grace` is over. Whatever is in progress is waited for, were `quiet` zero. Returns how many were still in progress.
    pub(crate) async fn run(&self, grace: Duration, quiet: Duration) -> usize {
        self.begin();
        let _ = tokio::time::timeout(grace, self.quiet(quiet)).await;
        self.counts.active.load(Ordering::Relaxed)
    }

    async fn quiet(&self, quiet: Duration) {
        const CHECK: Duration = Duration::from_millis(50);
        let quiet = quiet.max(LEAVING);
        let mut quiet_for = Duration::ZERO;
        let mut begun = self.counts.begun.load(Ordering::Relaxed);
        while quiet_for < quiet {
            tokio::time::sleep(CHECK).await;
            let before = std::mem::replace(&mut begun, self.counts.begun.load(Ordering::Relaxed));
            quiet_for = match self.counts.active.load(Ordering::Relaxed) {
                0 if begun == before => quiet_for + CHECK,
                _ => Duration::ZERO,
            };
        }
    }
}

impl Drain {
    #[cfg(test)]
    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Resolves when the drain has begun; never when the process ends without one.
    pub(crate) fn begun(&self) -> impl Future<Output = ()> + 'static {
        let mut draining = self.draining.clone();
        async move {
            if draining.wait_for(|draining| *draining).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Counts something as in progress until the guard is dropped.
    pub(crate) fn active(&self) -> Active {
        self.counts.active.fetch_add(1, Ordering::Relaxed);
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(&self.counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(500);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_once_nothing_is_in_progress() {
        let (trigger, drain) = drain();
        let active = drain.active();
        let ended = tokio::spawn(async move { trigger.run(Duration::from_secs(30), QUIET).await });
        drain.begun().await;
        assert!(drain.is_draining());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!ended.is_finished());
        drop(active);
        assert_eq!(ended.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_grace_period_and_says_what_was_left() {
        let (trigger, drain) = drain();
        let _stuck = drain.active();
        assert_eq!(trigger.run(Duration::from_secs(30), QUIET).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn with_no_quiet_wanted_what_is_in_progress_still_ends() {
        let (trigger, drain) = drain();
        let active = drain.active();
        let grace = Duration::from_secs(30);
        let ended = tokio::spawn(async move { trigger.run(grace, Duration::ZERO).await });
        drain.begun().await;
        tokio::time::sleep(Duration::from_secs(25)).await;
        assert!(!ended.is_finished());
        drop(active);
        assert_eq!(ended.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_over_at_once_begins_the_quiet_anew() {
        let (trigger, drain) = drain();
        let ended = tokio::spawn(async move { trigger.run(Duration::from_secs(30), QUIET).await });
        drain.begun().await;
        for _ in 0..20 {
            tokio::time::sleep(QUIET - Duration::from_millis(60)).await;
            drop(drain.active());
        }
        assert!(!ended.is_finished());
        assert_eq!(ended.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_pause_between_two_calls_does_not_end_the_drain() {
        let (trigger, drain) = drain();
        let first = drain.active();
        let ended = tokio::spawn(async move { trigger.run(Duration::from_secs(30), QUIET).await });
        drain.begun().await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let second = drain.active();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!ended.is_finished());
        drop(second);
        assert_eq!(ended.await.unwrap(), 0);
    }
}
