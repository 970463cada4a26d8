//! How long calls take, by method and code.

use crate::telemetry::Metrics;
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tower::{Layer, Service};

/// Measures the calls of a service.
#[derive(Debug, Clone)]
pub(super) struct MeasureLayer(pub(super) Arc<Metrics>);

#[derive(Debug, Clone)]
pub(super) struct Measure<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for MeasureLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Measure<S> {
        let metrics = Arc::clone(&self.0);
        Measure { inner, metrics }
    }
}

impl<S, B, R> Service<Request<B>> for Measure<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = method(request.uri().path());
        let metrics = Arc::clone(&self.metrics);
        let start = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(response) => code(response.headers()),
                Err(_) => "transport-error",
            };
            metrics.observe_rpc(method, code, start.elapsed());
            answer
        })
    }
}

/// The method of a path; a label must not take its value from a stranger.
fn method(path: &str) -> &'static str {
    match path {
        "/sidewind.v1.IdentityService/Attest" => "Attest",
        "/sidewind.v1.IdentityService/Renew" => "Renew",
        "/sidewind.v1.IdentityService/Challenge" => "Challenge",
        "/sidewind.v1.IdentityService/MintJwtSvid" => "MintJwtSvid",
        "/sidewind.v1.MeshService/Stream" => "Stream",
        _ => "other",
    }
}

/// The gRPC code of a response: an error stands in the headers, what succeeds says so in its trailers.
fn code(headers: &http::HeaderMap) -> &'static str {
    let Some(status) = headers.get("grpc-status") else {
        return "ok";
    };
    match tonic::Code::from_bytes(status.as_bytes()) {
        tonic::Code::Ok => "ok",
        tonic::Code::Cancelled => "cancelled",
        tonic::Code::InvalidArgument => "invalid-argument",
        tonic::Code::DeadlineExceeded => "deadline-exceeded",
        tonic::Code::NotFound => "not-found",
        tonic::Code::AlreadyExists => "already-exists",
        tonic::Code::PermissionDenied => "permission-denied",
        tonic::Code::ResourceExhausted => "resource-exhausted",
        tonic::Code::FailedPrecondition => "failed-precondition",
        tonic::Code::Aborted => "aborted",
        tonic::Code::OutOfRange => "out-of-range",
        tonic::Code::Unimplemented => "unimplemented",
        tonic::Code::Internal => "internal",
        tonic::Code::Unavailable => "unavailable",
        tonic::Code::DataLoss => "data-loss",
        tonic::Code::Unauthenticated => "unauthenticated",
        tonic::Code::Unknown => "unknown",
    }
}
