//! Connections to the socket, and what bounds them: their number, how long one may do nothing, and how long a client may
//! leave what it asked for unread.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::authority::WithAuthority;
use super::call::Calls;
use super::gate::Gate;
use crate::telemetry::logs::Throttle;
use crate::telemetry::metrics::{ClosedConnection, Metrics};

/// Connections at once. Some clients open one for each stream.
const MAX_CONNECTIONS: usize = 1024;

/// Calls at once on one connection.
const MAX_STREAMS: u32 = 2048;

/// From the connection to its first call.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept on which there is no call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a client may leave a message unread that waits for it. It is dropped then, and may come again.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the three times above are looked at.
const CHECK: Duration = Duration::from_secs(5);

/// A client that has stopped altogether does not answer pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a client may send on one stream, and on all, before it is read.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// What waits on one stream for a client that has room for it.
const SEND_BUFFER_BYTES: usize = 64 << 10;

const MAX_HEADER_BYTES: u32 = 16 << 10;

/// How long to wait after accepting failed, as it does while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections have to say goodbye at the end of the process.
const GOODBYE: Duration = Duration::from_millis(200);

/// Accepts connections.
pub(super) struct Endpoint {
    gate: Gate,
    stopped: watch::Receiver<bool>,
    room: Arc<Semaphore>,
}

impl Endpoint {
    pub(super) fn new(gate: Gate, stopped: watch::Receiver<bool>) -> Self {
        Self {
            gate,
            stopped,
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Serves the listener until it is told to stop.
    pub(super) async fn accept(self, listener: std::os::unix::net::UnixListener) {
        static FAILED: Throttle = Throttle::new();
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the Workload API socket cannot be served");
                return;
            }
        };
        let mut stopped = self.stopped.clone();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                // An error means that nobody is left to say it.
                _ = stopped.wait_for(|stopped| *stopped) => break,
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream, &mut connections),
                Err(error) => {
                    if let Some(unsaid) = FAILED.admit() {
                        tracing::warn!(%error, unsaid, "the Workload API socket could not accept");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        let goodbyes = async { while connections.join_next().await.is_some() {} };
        // Whoever is slow finds the connection closed.
        let _ = tokio::time::timeout(GOODBYE, goodbyes).await;
    }

    fn admit(&self, stream: UnixStream, connections: &mut JoinSet<()>) {
        static TOO_MANY: Throttle = Throttle::new();
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            let metrics = &self.gate.metrics().workload_api;
            metrics.connection_closed(ClosedConnection::TooMany);
            if let Some(unsaid) = TOO_MANY.admit() {
                let most = MAX_CONNECTIONS;
                tracing::warn!(most, unsaid, "the Workload API has too many connections");
            }
            return;
        };
        if let Ok(peer) = stream.peer_cred() {
            tracing::debug!(uid = peer.uid(), pid = peer.pid(), "a Workload API client");
        }
        let open = Open::new(permit, Arc::clone(self.gate.metrics()));
        let serving = serve(stream, self.gate.clone(), self.stopped.clone());
        connections.spawn(async move {
            let _open = open;
            serving.await;
        });
    }
}

/// A connection's place within the bound, and in the metric.
struct Open {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(permit: OwnedSemaphorePermit, metrics: Arc<Metrics>) -> Self {
        metrics.workload_api.connections.add(1);
        Self {
            metrics,
            _permit: permit,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.workload_api.connections.add(-1);
    }
}

/// Serves one connection to its end: HTTP/2 alone, so that what speaks HTTP/1 gets no further than its first line.
pub(super) async fn serve<T>(io: T, gate: Gate, mut stopped: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let calls = Arc::new(Calls::new());
    let metrics = Arc::clone(gate.metrics());
    let answering = Arc::clone(&calls);
    let service = service_fn(move |request| {
        let (gate, calls) = (gate.clone(), Arc::clone(&answering));
        async move { Ok::<_, Infallible>(gate.call(&calls, request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES);
    let io = TokioIo::new(WithAuthority::new(io));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut stopping = false;
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a Workload API connection failed");
                }
                return;
            }
            _ = stopped.wait_for(|stopped| *stopped), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(CHECK) => {
                if let Some(reason) = overdue(&calls) {
                    closed(&metrics, reason);
                    return;
                }
            }
        }
    }
}

/// Why a connection is to be closed, if it is.
fn overdue(calls: &Calls) -> Option<ClosedConnection> {
    if calls.longest_wait() >= UNREAD_TIMEOUT {
        return Some(ClosedConnection::NotReading);
    }
    let patience = if calls.had_any() {
        IDLE_TIMEOUT
    } else {
        FIRST_CALL_TIMEOUT
    };
    (calls.idle()? >= patience).then_some(ClosedConnection::Idle)
}

fn closed(metrics: &Metrics, reason: ClosedConnection) {
    static NOT_READING: Throttle = Throttle::new();
    metrics.workload_api.connection_closed(reason);
    if reason == ClosedConnection::NotReading
        && let Some(unsaid) = NOT_READING.admit()
    {
        tracing::warn!(
            unsaid,
            "a Workload API client does not read what it asked for; its connection was closed"
        );
    }
}
