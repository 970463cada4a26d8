//! How many attestations may wait for others at once: whoever does not answer must not take every place in the line that
//! other attestors need, too.

use crate::issuance::Refusal;
use sidewind_api::Reason;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Requests to STS.
pub(super) const STS: usize = 24;
/// Requests to API servers of Kubernetes clusters.
pub(super) const API_SERVERS: usize = 24;
/// Tokens that wait for keys which are being fetched for another.
pub(super) const KEYS: usize = 12;
/// All of them; what is left in the line is for evidence that asks nobody.
pub const ASKING_AT_ONCE: usize = STS + API_SERVERS + KEYS;

/// How long a place is waited for, which takes up one in the line: many times what somebody who is well takes to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Places for those who wait.
#[derive(Debug)]
pub(super) struct Places(Semaphore);

impl Places {
    pub(super) fn new(number: usize) -> Self {
        Self(Semaphore::new(number))
    }

    /// A place; none where there is none in time.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        let place = tokio::time::timeout(PATIENCE, self.0.acquire()).await;
        place.ok()?.ok()
    }

    /// A place to ask somebody.
    ///
    /// # Errors
    /// `overloaded` when there is none in time.
    pub(super) async fn to_ask(&self, whom: &str) -> Result<SemaphorePermit<'_>, Refusal> {
        self.take().await.ok_or_else(|| {
            let message = format!("too many requests wait for {whom}; try again");
            Refusal::new(Reason::Overloaded, message)
        })
    }
}
