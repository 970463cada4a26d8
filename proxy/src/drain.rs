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

/// Starts the drain; held by the control thread.
#[derive(Debug)]
pub(crate) struct DrainTrigger {
    draining: watch::Sender<bool>,
    active: Arc<AtomicUsize>,
}

/// Tells the data path that the drain has begun, and counts what is in progress. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    draining: watch::Receiver<bool>,
    active: Arc<AtomicUsize>,
}

/// Something in progress: a request, a tunnel, a client connection. The drain waits until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn drain() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    let active = Arc::new(AtomicUsize::new(0));
    let trigger = DrainTrigger {
        draining: sender,
        active: Arc::clone(&active),
    };
    let drain = Drain {
        draining: receiver,
        active,
    };
    (trigger, drain)
}

impl DrainTrigger {
    /// Begins the drain and waits until nothing has been in progress for `quiet`, by which the workload counts as
    /// gone, or until `grace` is over. Returns how many were still in progress.
    pub(crate) async fn run(&self, grace: Duration, quiet: Duration) -> usize {
        self.draining.send_replace(true);
        let _ = tokio::time::timeout(grace, self.quiet(quiet)).await;
        self.active.load(Ordering::Relaxed)
    }

    async fn quiet(&self, quiet: Duration) {
        const CHECK: Duration = Duration::from_millis(50);
        let mut quiet_for = Duration::ZERO;
        while quiet_for < quiet {
            tokio::time::sleep(CHECK).await;
            quiet_for = match self.active.load(Ordering::Relaxed) {
                0 => quiet_for + CHECK,
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
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(&self.active))
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
