//! What may be repeated.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response};

use super::policy::RetryPolicy;
use crate::errors::ErrorCode;
use crate::http::Body;
use crate::http::headers::SIDEWIND_ERROR;

/// How far a failed attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The server surely did nothing with the request: no connection, a refused stream, a GOAWAY that left it out.
    /// Any request may be repeated.
    Unsent,
    /// The server may have acted on the request, and no byte of a response came. Idempotent ones may be repeated.
    Sent,
    /// Another attempt is pointless or not allowed: a bad request, a policy's refusal, a response that broke off.
    Final,
}

/// An error of the service below the retries.
pub(crate) trait RetryError: Sized {
    /// How far the attempt got.
    fn progress(&self) -> Progress;

    /// One attempt took longer than `limit`. Its progress is [`Progress::Sent`].
    fn try_timeout(limit: Duration) -> Self;

    /// The request with all its attempts took longer than `limit`.
    fn request_timeout(limit: Duration) -> Self;

    /// Told how many attempts were made before the error is given back.
    fn set_attempts(&mut self, _attempts: u32) {}
}

/// What the service below the retries is called with: a request, and whatever goes with it.
pub(crate) trait Attempt: Sized {
    /// The request.
    fn request(&self) -> &Request<Body>;

    /// The request.
    fn request_mut(&mut self) -> &mut Request<Body>;

    /// Another attempt of the same call, with this request.
    fn with_request(&self, request: Request<Body>) -> Self;

    /// The attempt of this number, from 2 on, begins.
    fn begin(&mut self, number: u32);
}

/// Extension of a request that is being retried: which attempt it is, from 2 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptNumber(pub(crate) u32);

/// Extension of a response that came after retries: how many attempts there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempts(pub(crate) u32);

impl Attempt for Request<Body> {
    fn request(&self) -> &Request<Body> {
        self
    }

    fn request_mut(&mut self) -> &mut Request<Body> {
        self
    }

    fn with_request(&self, request: Request<Body>) -> Request<Body> {
        request
    }

    fn begin(&mut self, number: u32) {
        self.extensions_mut().insert(AttemptNumber(number));
    }
}

/// True for methods whose repetition has the effect of one request (RFC 9110, section 9.2.2). Unknown ones are not.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// What kind of request it is, as far as repeating it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Idempotent,
    Grpc,
    Other,
}

impl Kind {
    pub(super) fn of(request: &Request<Body>) -> Kind {
        if is_idempotent(request.method()) {
            Kind::Idempotent
        } else if is_grpc(request.headers()) {
            Kind::Grpc
        } else {
            Kind::Other
        }
    }

    /// Whether an attempt that failed this way may be repeated.
    pub(super) fn may_repeat_after(self, progress: Progress) -> bool {
        match progress {
            Progress::Unsent => true,
            Progress::Sent => self == Kind::Idempotent,
            Progress::Final => false,
        }
    }

    /// Whether the response says that another attempt may do better, and repeating the request is safe.
    pub(super) fn may_repeat_response(
        self,
        response: &Response<Body>,
        policy: &RetryPolicy,
    ) -> bool {
        match self {
            // The common response is none of these, and costs two comparisons.
            Kind::Idempotent => {
                policy.statuses.contains(&response.status()) || was_undelivered(response)
            }
            Kind::Grpc => is_grpc_unavailable(response) || was_undelivered(response),
            Kind::Other => was_undelivered(response),
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// True for a response with no message in it, whose status is UNAVAILABLE (14). Once messages have come, a repetition
/// would repeat those too.
fn is_grpc_unavailable(response: &Response<Body>) -> bool {
    response.body().is_empty()
        && response
            .headers()
            .get("grpc-status")
            .is_some_and(|status| status == "14")
}

/// True when the proxy beside the workload says that the request did not reach it. It takes the header away from
/// what workloads answer.
fn was_undelivered(response: &Response<Body>) -> bool {
    response.status().is_server_error()
        && response
            .headers()
            .get(SIDEWIND_ERROR)
            .is_some_and(|code| code == ErrorCode::WorkloadUnavailable.as_str())
}
