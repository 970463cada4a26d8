//! Probes and metrics over plain HTTP.

use super::Shutdown;
use crate::issuance::authority::CertificateAuthority;
use crate::issuance::own::check_signing;
use crate::store::Store;
use crate::telemetry::{Metrics, chain};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

const MAX_CONNECTIONS: usize = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIME: Duration = Duration::from_secs(300);
/// A probe really signs; one that is asked more often than this gets the last answer again.
const READINESS_KEPT: Duration = Duration::from_secs(1);

/// What the probes look at.
#[derive(Debug)]
pub(super) struct AdminHttp {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
    pub(super) last: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// Serves until dropped.
pub(super) async fn serve(listener: TcpListener, admin: Arc<AdminHttp>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(&request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // What a prober does to its connection is its own affair.
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
            drop(place);
        });
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
            "/ready" => match self.ready().await {
                Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
                Err(why) => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {why}\n"),
                ),
            },
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.encode());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                let kind = header::HeaderValue::from_static(kind);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /live, /ready and /metrics\n".to_owned(),
            ),
        }
    }

    /// Whether certificates can be signed and tokens be used, found out by doing it.
    async fn ready(&self) -> Result<(), String> {
        if self.shutdown.has_begun() {
            return Err("stopping".to_owned());
        }
        let mut last = self.last.lock().await;
        if let Some((at, result)) = last
            .as_ref()
            .filter(|(at, _)| at.elapsed() < READINESS_KEPT)
        {
            let _ = at;
            return result.clone();
        }
        let signed = check_signing(&self.authority, SystemTime::now());
        let result = match signed {
            Err(error) => Err(format!("cannot sign: {}", chain(&error))),
            Ok(()) => match self.store.bundle_sequence().await {
                Err(error) => Err(format!("cannot read the store: {}", chain(&error))),
                Ok(_) => Ok(()),
            },
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
