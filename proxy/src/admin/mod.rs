//! The admin port (15020): probes and metrics for everyone, control for programs beside the proxy.
//!
//! Everything here runs on the control thread and is bounded: connections, their life, header and
//! body. A connection carries one request, so that none can be held open.

mod connection;
mod guard;
mod readiness;
mod routes;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use readiness::{Component, Readiness};

use crate::telemetry::logs::{LogHandle, Throttle};
use crate::telemetry::metrics::{AdminRefusal, Metrics};

/// Connections at once. One more ends the oldest, so that clients that do nothing cannot keep the
/// kubelet's probes out.
const MAX_CONNECTIONS: usize = 64;

/// From accepting a connection to the last byte of its response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's header.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Fields of a request's header.
const MAX_HEADERS: usize = 64;

/// How long to wait after accepting failed, as it does while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the admin port shows and does.
pub(crate) struct Admin {
    /// Behind `/ready`.
    pub(crate) readiness: Readiness,
    /// Behind `/metrics`.
    pub(crate) metrics: Arc<Metrics>,
    /// Behind `/log-level`.
    pub(crate) logs: LogHandle,
    /// Called by `POST /shutdown`; begins the drain that SIGTERM begins.
    pub(crate) shutdown: Box<dyn Fn() + Send + Sync>,
    /// Gives what `GET /config` shows, without secrets.
    pub(crate) config: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Gives what `GET /endpoints` shows: which endpoints are well, and why others are not.
    pub(crate) endpoints: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Gives what `GET /tasks` shows: the Airflow tasks that have connections open.
    pub(crate) tasks: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

/// Serves the admin port for ever. Dropping the future ends all connections.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    static ACCEPT_FAILED: Throttle = Throttle::new();
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<(AbortHandle, SocketAddr)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(unsaid) = ACCEPT_FAILED.admit() {
                    tracing::warn!(%error, unsaid, "the admin port could not accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|(task, _)| !task.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some((oldest, its_remote)) = open.pop_front()
        {
            oldest.abort();
            connection::refused(&admin, its_remote, AdminRefusal::Displaced);
        }
        let serving = connection::serve(stream, remote, Arc::clone(&admin));
        open.push_back((tasks.spawn(serving), remote));
    }
}

#[cfg(test)]
mod tests;
