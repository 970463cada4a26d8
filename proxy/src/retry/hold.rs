//! Requests wait while no endpoint is up, instead of failing.
//!
//! One of those that wait tries now and then; when it gets through, or when discovery has something new, all others
//! go at once. However many wait, an endpoint that is coming up sees one attempt at a time of each worker.

use std::{cell::Cell, rc::Rc, time::Duration};

use sidewind_api::v1;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::backoff::Backoff;
use crate::balance::Random;

/// How long a request waits where its route does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How many wait.
const DEFAULT_REQUESTS: u32 = 1024;
/// How many bytes of their headers and bodies are kept.
const DEFAULT_BYTES: u64 = 16 * 1024 * 1024;

/// What all but a few of Airflow's requests have for a body, at most.
const SMALL_BODY_BYTES: u64 = 4 * 1024;

/// Between the attempts of the one that tries.
const TRIES: Backoff = Backoff {
    base: Duration::from_millis(100),
    cap: Duration::from_secs(1),
};

/// The longest wait between them where a client gives up within seconds: none of them should pass without one.
const CAP_OF_SHORT_WAITS: Duration = Duration::from_millis(250);

/// The bounds of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HoldLimits {
    pub(crate) timeout: Duration,
    /// Of the service on one worker.
    pub(crate) requests: u32,
    /// The same.
    pub(crate) bytes: u64,
    /// When waiting ends at the latest, whenever it began.
    pub(crate) ends: Option<Instant>,
}

impl From<&v1::Hold> for HoldLimits {
    fn from(hold: &v1::Hold) -> Self {
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        Self {
            timeout: match hold.timeout_ms {
                0 => DEFAULT_TIMEOUT,
                milliseconds => Duration::from_millis(milliseconds),
            },
            requests: match hold.max_requests {
                0 => DEFAULT_REQUESTS,
                requests => requests,
            },
            bytes: or(hold.max_bytes, DEFAULT_BYTES),
            ends: None,
        }
    }
}

impl HoldLimits {
    /// When a wait ends that begins now.
    fn until(&self) -> Instant {
        let end = Instant::now() + self.timeout;
        self.ends.map_or(end, |ends| ends.min(end))
    }
}

/// The requests of one service on one worker that wait.
#[derive(Debug, Default)]
pub(crate) struct HoldQueue {
    requests: Cell<u32>,
    bytes: Cell<u64>,
    trying: Cell<bool>,
    /// How often all were let go.
    releases: Cell<u64>,
    changed: Notify,
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Held {
    queue: Rc<HoldQueue>,
    bytes: u64,
    until: Instant,
    backoff: Backoff,
    tries: u32,
    /// Whether it is this one's turn to try.
    trying: bool,
}

impl HoldQueue {
    /// Something is up, or may be: whoever waits may go.
    pub(crate) fn release(&self) {
        if self.requests.get() > 0 {
            self.releases.set(self.releases.get() + 1);
            self.changed.notify_waiters();
        }
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> u32 {
        self.requests.get()
    }

    /// A place for a request of so many bytes; `None` when there is none.
    pub(super) fn enter(self: &Rc<Self>, limits: &HoldLimits, bytes: u64) -> Option<Held> {
        let (requests, held) = (self.requests.get(), self.bytes.get());
        if requests >= limits.requests || held.saturating_add(bytes) > limits.bytes {
            return None;
        }
        self.requests.set(requests + 1);
        self.bytes.set(held + bytes);
        Some(Held {
            queue: Rc::clone(self),
            bytes,
            until: limits.until(),
            backoff: match limits.ends {
                Some(_) => Backoff {
                    cap: CAP_OF_SHORT_WAITS,
                    ..TRIES
                },
                None => TRIES,
            },
            tries: 0,
            trying: false,
        })
    }
}

/// What one request keeps of the bytes that a queue's requests may keep in all, before it waits.
#[derive(Debug)]
pub(super) struct Share {
    queue: Rc<HoldQueue>,
    most: u64,
    bytes: u64,
}

impl Share {
    pub(super) fn of(queue: &Rc<HoldQueue>, limits: &HoldLimits) -> Self {
        Self {
            queue: Rc::clone(queue),
            most: limits.bytes,
            bytes: 0,
        }
    }

    /// Takes room for so many bytes more; false where there is none. Large bodies leave half of it to small ones.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let kept = self.queue.bytes.get().saturating_add(bytes);
        let most = match self.bytes.saturating_add(bytes) {
            0..=SMALL_BODY_BYTES => self.most,
            _ => self.most / 2,
        };
        if kept > most {
            return false;
        }
        self.queue.bytes.set(kept);
        self.bytes += bytes;
        true
    }

    /// Keeps nothing any more.
    pub(super) fn give_back(&mut self) {
        let kept = self.queue.bytes.get();
        self.queue.bytes.set(kept.saturating_sub(self.bytes));
        self.bytes = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Held {
    /// Waits until another attempt is due; false when the wait is over without one.
    pub(super) async fn wait(&mut self, deadline: Option<Instant>, random: &Random) -> bool {
        let until = deadline.map_or(self.until, |deadline| deadline.min(self.until));
        let releases = self.queue.releases.get();
        loop {
            // One that tried and failed keeps its turn.
            if !self.trying {
                self.trying = !self.queue.trying.replace(true);
            }
            let changed = self.queue.changed.notified();
            let next = self.trying.then(|| {
                self.tries += 1;
                // Half of it at least, so that a queue of one does not hammer.
                let backoff = self.backoff;
                let delay = backoff.delay(self.tries, random).max(backoff.base / 2);
                Instant::now() + delay
            });
            tokio::select! {
                // Or the one whose turn it was has gone, and somebody takes it over.
                () = changed => if self.queue.releases.get() != releases {
                    return true;
                },
                () = sleep_until(next.unwrap_or(until).min(until)) => {
                    return next.is_some_and(|next| next < until);
                }
            }
        }
    }

    /// An attempt got through.
    pub(super) fn passed(self) {
        self.queue.release();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let queue = &self.queue;
        queue.requests.set(queue.requests.get().saturating_sub(1));
        queue
            .bytes
            .set(queue.bytes.get().saturating_sub(self.bytes));
        if self.trying {
            queue.trying.set(false);
            // Another one takes the turn over.
            queue.changed.notify_waiters();
        }
    }
}
