//! When a client's connection has had nothing under way for too long.

use std::{cell::Cell, rc::Rc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;

use super::{BodyEnd, BodyWatcher};

/// How long after it was told that its connection ends a client may keep it.
const GOODBYE: Duration = Duration::from_secs(10);

/// What is under way on one connection.
#[derive(Debug)]
pub(crate) struct Idle {
    under_way: Cell<u32>,
    since: Cell<Instant>,
    limit: Duration,
}

/// A request that is under way, until its response is out.
#[derive(Debug)]
pub(crate) struct UnderWay(Rc<Idle>);

impl Idle {
    pub(crate) fn new(limit: Duration) -> Rc<Self> {
        Rc::new(Self {
            under_way: Cell::new(0),
            since: Cell::new(Instant::now()),
            limit,
        })
    }

    pub(crate) fn begin(self: &Rc<Self>) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(Rc::clone(self))
    }

    /// Resolves once the connection has been idle for as long as it may.
    pub(crate) async fn too_long(&self) {
        self.idle_for(self.limit).await;
    }

    /// Resolves once a client keeps its connection open although it was told to go.
    pub(crate) async fn overstayed(&self) {
        self.idle_for(self.limit + GOODBYE).await;
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let since = self.since.get();
            let idle = match self.under_way.get() {
                0 => since.elapsed(),
                _ => Duration::ZERO,
            };
            if idle >= limit {
                return;
            }
            tokio::time::sleep(limit - idle).await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0
            .under_way
            .set(self.0.under_way.get().saturating_sub(1));
        self.0.since.set(Instant::now());
    }
}

/// Under way for as long as the body is.
impl BodyWatcher for UnderWay {
    fn data(&self, _: usize) {}

    fn trailers(&self, _: &HeaderMap) {}

    fn end(&self, _: BodyEnd<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_the_end_of_its_last_request_on() {
        let idle = Idle::new(10 * SECOND);
        let began = Instant::now();
        let request = idle.begin();
        let ending = async {
            tokio::time::sleep(25 * SECOND).await;
            drop(request);
            tokio::time::sleep(5 * SECOND).await;
            drop(idle.begin());
        };
        let ((), ()) = tokio::join!(ending, idle.too_long());
        assert_eq!(began.elapsed(), 40 * SECOND);
        idle.overstayed().await;
        assert_eq!(began.elapsed(), 50 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_asks_for_anything_is_idle_from_the_start() {
        let idle = Idle::new(10 * SECOND);
        let began = Instant::now();
        idle.too_long().await;
        assert_eq!(began.elapsed(), 10 * SECOND);
    }
}
