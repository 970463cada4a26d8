//! What is refused when this proxy itself is too busy.
//!
//! A worker looks a few times a second how late its own timer comes: that is how long whatever is ready waits for its
//! turn, be it for want of CPU or for too much work. When that is too long twice in a row, a growing share of new requests
//! is refused at once; what is under way goes on. Once alone is a burst, a thousand requests that end together say, which
//! is over by the time that anybody could be refused for it. Requests at once have a bound besides, so that memory has one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::Random;
use crate::errors::{ErrorCode, ProxyError};

/// How often a worker looks.
const PERIOD: Duration = Duration::from_millis(100);
/// From when on waiting is too long.
const TOO_LATE: Duration = Duration::from_millis(200);
/// Below which it is short again.
const IN_TIME: Duration = Duration::from_millis(50);
/// How fast the refused share grows, and shrinks, with each look. In thousandths.
const STEP_UP: u64 = 100;
const STEP_DOWN: u64 = 50;
/// Some are always let through: they show whether it is over.
const MAX_SHARE: u64 = 950;
/// When a client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How busy one worker is.
#[derive(Debug)]
pub(crate) struct Overload {
    /// Of new requests that are refused, in thousandths.
    share: Cell<u64>,
    /// Whether the last look was too late.
    was_late: Cell<bool>,
    requests: Rc<Cell<usize>>,
    max_requests: usize,
    random: Random,
}

/// One of the requests at once, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Rc<Cell<usize>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

fn refused(why: &str) -> ProxyError {
    let message = format_args!("This proxy {why}; try again in a moment.");
    ProxyError::new(ErrorCode::Overloaded, message).with_retry_after(RETRY_AFTER)
}

impl Overload {
    /// A worker that may have so many requests at once.
    pub(crate) fn new(max_requests: usize) -> Self {
        Self {
            share: Cell::new(0),
            was_late: Cell::new(false),
            requests: Rc::default(),
            max_requests,
            random: Random::new(rand::random()),
        }
    }

    /// Lets a new request in, or refuses it.
    ///
    /// # Errors
    /// 503, when this proxy is too busy.
    pub(crate) fn admit(&self) -> Result<Admitted, ProxyError> {
        if self.sheds() {
            return Err(refused("has more to do than it can"));
        }
        self.take_place()
    }

    fn sheds(&self) -> bool {
        let share = self.share.get();
        share > 0 && self.random.below_u64(1000) < share
    }

    fn take_place(&self) -> Result<Admitted, ProxyError> {
        let requests = self.requests.get();
        if requests >= self.max_requests {
            return Err(refused("has as many requests as it may have at once"));
        }
        self.requests.set(requests + 1);
        Ok(Admitted(Rc::clone(&self.requests)))
    }

    /// The same for a request that is better answered late than refused: while this proxy has more to do than it can, it
    /// waits until `until`, and counts as one of the requests at once.
    ///
    /// # Errors
    /// 503, when that is over, or there are as many requests as there may be.
    pub(crate) async fn admit_by(&self, until: Instant) -> Result<Admitted, ProxyError> {
        let admitted = self.take_place()?;
        while self.sheds() {
            let next = Instant::now() + PERIOD;
            if next >= until {
                return Err(refused("has more to do than it can"));
            }
            tokio::time::sleep_until(next).await;
        }
        Ok(admitted)
    }

    /// Looks how late the worker is, for as long as it lives.
    pub(crate) async fn watch(&self) {
        loop {
            let due = Instant::now() + PERIOD;
            tokio::time::sleep_until(due).await;
            self.observe(due.elapsed());
        }
    }

    /// Learns by how much a timer was late.
    pub(super) fn observe(&self, late: Duration) {
        let share = self.share.get();
        let was_late = self.was_late.replace(late >= TOO_LATE);
        if late >= TOO_LATE && was_late {
            self.share.set((share + STEP_UP).min(MAX_SHARE));
        } else if late < IN_TIME {
            self.share.set(share.saturating_sub(STEP_DOWN));
        }
    }
}
