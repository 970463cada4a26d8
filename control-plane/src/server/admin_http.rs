//! Probes and metrics over plain HTTP.
//!
//! A connection carries one request and lives for ten seconds at most, so that none can be held open.
//! Whoever comes while all places are taken ends the connection that has waited longest with no request,
//! so that strangers that do nothing cannot keep probes out.

use super::health::Health;
use crate::telemetry::{Metrics, Throttle};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 128;
/// From accepting a connection to the last byte of its response.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to send its request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's header.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Fields of a request's header.
const MAX_HEADERS: usize = 64;
/// How long to wait after accepting failed, as it does while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the probes look at.
#[derive(Debug)]
pub(super) struct AdminHttp {
    pub(super) health: Health,
    pub(super) metrics: Arc<Metrics>,
}

/// A connection that is open.
struct Open {
    task: AbortHandle,
    asked: Arc<AtomicBool>,
}

/// Serves until dropped.
pub(super) async fn serve(listener: TcpListener, admin: Arc<AdminHttp>) {
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(&admin.metrics, "accept-failed", None, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let excess = format_args!("more than {MAX_CONNECTIONS} connections at once");
            refused(&admin.metrics, "too-many", Some(remote), &excess);
            end_longest_idle(&mut open);
        }
        let asked = Arc::new(AtomicBool::new(false));
        let serving = connection(stream, remote, Arc::clone(&admin), Arc::clone(&asked));
        let task = tasks.spawn(serving);
        open.push_back(Open { task, asked });
    }
}

/// Ends the oldest connection that has asked nothing yet, or the oldest where all have.
fn end_longest_idle(open: &mut VecDeque<Open>) {
    let idle = |connection: &Open| !connection.asked.load(Ordering::Relaxed);
    let ended = open.iter().position(idle).unwrap_or(0);
    if let Some(connection) = open.remove(ended) {
        connection.task.abort();
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    admin: Arc<AdminHttp>,
    asked: Arc<AtomicBool>,
) {
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.answer(&request).await) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if asked.load(Ordering::Relaxed) => {
            tracing::debug!(%remote, %error, "a client of the admin port went away");
        }
        Ok(Err(error)) => refused(&admin.metrics, cause(&error), Some(remote), &error),
        Err(elapsed) => refused(&admin.metrics, "timeout", Some(remote), &elapsed),
    }
}

/// What is wrong with a request whose header never came to its end.
fn cause(error: &hyper::Error) -> &'static str {
    if error.is_parse_too_large() {
        "header-too-large"
    } else if error.is_parse() {
        "not-http"
    } else if error.is_timeout() {
        "timeout"
    } else {
        "incomplete"
    }
}

fn refused(
    metrics: &Metrics,
    reason: &'static str,
    remote: Option<SocketAddr>,
    error: &dyn std::fmt::Display,
) {
    static REFUSED: Throttle = Throttle::new();
    metrics.count_admin_connection_refused("http", reason);
    if let Some(unsaid) = REFUSED.admit(reason) {
        let remote = remote.map(tracing::field::display);
        tracing::warn!(reason, remote, %error, unsaid, "a connection to the admin port was refused");
    }
}

impl AdminHttp {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET is answered here\n".to_owned(),
            );
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "live\n".to_owned()),
            "/ready" => {
                let (ready, document) = self.health.document().await;
                let status = if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                of_kind("application/json", text(status, document))
            }
            "/metrics" => of_kind(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text(StatusCode::OK, self.metrics.encode()),
            ),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /live, /ready and /metrics\n".to_owned(),
            ),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    of_kind("text/plain; charset=utf-8", response)
}

fn of_kind(kind: &'static str, mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
