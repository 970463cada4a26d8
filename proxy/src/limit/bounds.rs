//! Places for requests and connections. A request that finds none waits in a bounded queue, where there is one.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sidewind_api::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors::{ErrorCode, ProxyError};

/// When a client may try again that found every place taken: places become free all the time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The bounds of one service, shared by all workers.
#[derive(Debug)]
pub(crate) struct Bounds {
    given: v1::Bounds,
    requests: Option<Arc<Semaphore>>,
    pending: AtomicUsize,
    connections: Option<Arc<Semaphore>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl Bounds {
    pub(super) fn new(given: &v1::Bounds) -> Self {
        let places = |count: u32| (count > 0).then(|| Arc::new(Semaphore::new(count as usize)));
        Self {
            given: *given,
            requests: places(given.max_requests),
            pending: AtomicUsize::new(0),
            connections: places(given.max_connections),
        }
    }

    pub(super) fn is_of(&self, given: &v1::Bounds) -> bool {
        self.given == *given
    }

    pub(super) fn max_header_bytes(&self) -> usize {
        self.given.max_header_bytes as usize
    }

    pub(super) fn max_body_bytes(&self) -> u64 {
        self.given.max_body_bytes
    }

    /// A place for a request; none where there is no bound.
    pub(super) async fn enter(&self) -> Result<Option<Permit>, ProxyError> {
        let Some(places) = &self.requests else {
            return Ok(None);
        };
        if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
            return Ok(Some(Permit { _permit: permit }));
        }
        let full = || {
            let message = format_args!(
                "There are {} requests at once, which is as many as may be.",
                self.given.max_requests
            );
            ProxyError::new(ErrorCode::Overloaded, message).with_retry_after(RETRY_AFTER)
        };
        let _waiting = self.wait_in_line().ok_or_else(full)?;
        let limit = Duration::from_millis(self.given.pending_timeout_ms.max(1));
        match tokio::time::timeout(limit, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(Permit { _permit: permit })),
            _ => Err(full()),
        }
    }

    /// A place for an opaque connection; none where there is no bound.
    pub(super) fn connect(&self) -> Result<Option<Permit>, ProxyError> {
        let Some(places) = &self.connections else {
            return Ok(None);
        };
        match Arc::clone(places).try_acquire_owned() {
            Ok(permit) => Ok(Some(Permit { _permit: permit })),
            Err(_) => Err(ProxyError::new(
                ErrorCode::Overloaded,
                format_args!(
                    "There are {} connections at once, which is as many as may be.",
                    self.given.max_connections
                ),
            )),
        }
    }

    fn wait_in_line(&self) -> Option<Waiting<'_>> {
        let most = self.given.max_pending as usize;
        let more = |waiting: usize| (waiting < most).then_some(waiting + 1);
        self.pending.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Waiting(&self.pending))
    }
}

/// A place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
