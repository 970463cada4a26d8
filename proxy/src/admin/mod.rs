//! The admin port (15020): probes and metrics for everyone, control for programs beside the proxy.
//!
//! Everything here runs on the control thread and is bounded: connections, their life, header and
//! body. A connection carries one request, so that none can be held open.

mod guard;
mod readiness;
mod routes;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use readiness::{Component, Readiness};

use crate::telemetry::logs::{LogHandle, Throttle};
use crate::telemetry::metrics::Metrics;

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
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
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
        open.retain(|task| !task.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tasks.spawn(connection(stream, remote, Arc::clone(&admin))));
    }
}

async fn connection(stream: TcpStream, remote: std::net::SocketAddr, admin: Arc<Admin>) {
    let service = service_fn(|request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(routes::answer(&admin, remote, request).await) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%remote, %error, "an admin connection failed"),
        Err(_) => tracing::debug!(%remote, "an admin connection took too long"),
    }
}

#[cfg(test)]
mod tests;
