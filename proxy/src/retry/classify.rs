//! What may be repeated.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response};

use super::deadline::{AskAgain, ask_again};
use super::layer::Failed;
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

    /// Whether it says that the service has no endpoint that is up.
    fn is_down(&self) -> bool {
        false
    }

    /// Whether it is about a proxy that is not ready, or too busy: nothing was sent, and it passes.
    fn may_pass(&self) -> bool {
        false
    }

    /// Its code, for the log.
    fn code(&self) -> Option<ErrorCode> {
        None
    }

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

/// True where the request may be sent to another endpoint when the first breaks off: the effect of one request is that of
/// several, or its route says so.
pub(crate) fn is_repeatable(request: &Request<Body>, policy: &RetryPolicy) -> bool {
    Kind::of(request, policy).may_repeat_after(Some(ErrorCode::UpstreamReset), policy)
}

/// What kind of request it is, as far as repeating it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Idempotent, or named by the route.
    repeatable: bool,
    grpc: bool,
}

/// Another attempt may do better, and repeating the request is safe.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) failed: Failed,
    /// The server surely did nothing with the request.
    pub(super) unsent: bool,
    /// Once more whatever the policy says: it was not sent, or its connection broke off before a response.
    pub(super) always: bool,
    /// No endpoint is up, as far as this attempt shows.
    pub(super) down: bool,
    /// It helps only to wait for an endpoint.
    pub(super) only_held: bool,
    pub(super) ask_again: Option<AskAgain>,
}

impl Kind {
    pub(super) fn of(request: &Request<Body>, policy: &RetryPolicy) -> Kind {
        let method = request.method();
        let grpc = is_grpc(request.headers());
        Kind {
            // Each gRPC call is a POST, so that naming it says nothing of calls.
            repeatable: is_idempotent(method) || !grpc && policy.methods.contains(method),
            grpc,
        }
    }

    pub(super) fn is_repeatable(self) -> bool {
        self.repeatable
    }

    /// Whether what the server may have acted on is repeated after a failure of this code. Of gRPC the route names those
    /// by the status that its client would get, whether the proxy beside the server says it or this one.
    fn may_repeat_after(self, code: Option<ErrorCode>, policy: &RetryPolicy) -> bool {
        let named = || code.is_some_and(|code| policy.grpc_codes.contains(&code.grpc_status()));
        self.repeatable || self.grpc && named()
    }

    /// Whether and how the request is to be tried again after an attempt.
    pub(super) fn judge<E: RetryError>(
        self,
        result: &Result<Response<Body>, E>,
        policy: &RetryPolicy,
    ) -> Option<Again> {
        match result {
            Ok(response) => self.judge_response(response, policy),
            Err(error) => self.judge_error(error, policy),
        }
    }

    fn judge_error<E: RetryError>(self, error: &E, policy: &RetryPolicy) -> Option<Again> {
        let repeat = match error.progress() {
            Progress::Unsent => true,
            Progress::Sent => self.may_repeat_after(error.code(), policy),
            Progress::Final => false,
        };
        let down = error.is_down() || policy.outage && (repeat || error.may_pass());
        (repeat || down).then(|| Again {
            failed: Failed::Error(error.code()),
            unsent: error.progress() == Progress::Unsent,
            always: error.progress() == Progress::Unsent
                || self.repeatable && error.code() == Some(ErrorCode::UpstreamReset),
            down,
            only_held: !repeat,
            ask_again: None,
        })
    }

    fn judge_response(self, response: &Response<Body>, policy: &RetryPolicy) -> Option<Again> {
        // The common response is none of these, and costs two comparisons.
        let grpc_code = self.grpc.then(|| grpc_status(response)).flatten();
        let repeat = match (self.grpc, grpc_code) {
            (true, code) => code.is_some_and(|code| policy.grpc_codes.contains(&code)),
            (false, _) => self.repeatable && policy.statuses.contains(&response.status()),
        };
        let said = said_by_proxy(response);
        // A server that answers with what is no HTTP does so again.
        let repeat = repeat && said != Some(ErrorCode::UpstreamProtocol);
        let undelivered = said == Some(ErrorCode::WorkloadUnavailable);
        let reset = said == Some(ErrorCode::UpstreamReset) && self.repeatable;
        let not_ready = policy.outage && said.is_some_and(ErrorCode::may_pass);
        (repeat || undelivered || reset || not_ready).then(|| Again {
            failed: Failed::Response(response.status(), grpc_code),
            unsent: undelivered,
            always: undelivered || reset,
            down: undelivered || policy.outage,
            only_held: false,
            ask_again: ask_again(response.headers()),
        })
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The status of a response with no message in it. Once messages have come, a repetition would repeat those too.
pub(crate) fn grpc_status(response: &Response<Body>) -> Option<u8> {
    if !response.body().is_empty() {
        return None;
    }
    let status = response.headers().get("grpc-status")?;
    status.to_str().ok()?.parse().ok()
}

/// What the proxy beside the workload says of a request that got no response. It takes the header away from what
/// workloads answer.
pub(crate) fn said_by_proxy(response: &Response<Body>) -> Option<ErrorCode> {
    let said = response.headers().get(SIDEWIND_ERROR)?;
    ErrorCode::from_name(said.to_str().ok()?)
}
