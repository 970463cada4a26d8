//! Both bodies of an exchange as they pass: how much of them, how long they stand still, and how they end.

use std::{net::SocketAddr, pin::Pin, rc::Rc};

use http::{HeaderMap, Response};
use tokio::time::timeout;

use super::Exchange;
use crate::{
    complaints::complain,
    errors::{Chain, ErrorCode, ProxyError},
    http::{Body, BodyEnd, BodyError, BodyWatcher, Bound, LEAST_BYTES},
    limit::ServiceLimits,
};

impl Exchange {
    /// Waits for the head of a response for as long as a stream may say nothing, since the last byte of the request. Calls of
    /// gRPC have deadlines instead, since their servers may have nothing to say for longer. It is pinned already, since room
    /// for it would be kept here for each time that it moved.
    pub(crate) async fn head_within(
        &self,
        endpoint: SocketAddr,
        mut sent: Pin<&mut impl Future<Output = Result<Response<Body>, ProxyError>>>,
    ) -> Result<Response<Body>, ProxyError> {
        let Some(limit) = self.patience.stream.filter(|_| !self.is_grpc()) else {
            return sent.await;
        };
        loop {
            let before = self.request_bytes.get();
            if let Ok(result) = timeout(limit, sent.as_mut()).await {
                return result;
            }
            if self.request_bytes.get() == before {
                let message = format_args!("{endpoint} has not begun to answer within {limit:?}.");
                return Err(ProxyError::new(ErrorCode::UpstreamStalled, message));
            }
        }
    }

    /// How long more of a response's body may be waited for.
    pub(super) fn bound_of(&self, body: &Body) -> Option<Bound> {
        if self.is_grpc() || matches!(body, Body::Empty | Body::Full(_)) {
            return None;
        }
        match http_body::Body::size_hint(body).exact() {
            Some(_) => self.patience.body.map(|limit| Bound {
                limit,
                least: LEAST_BYTES,
            }),
            None => self.patience.stream.map(|limit| Bound { limit, least: 1 }),
        }
    }

    /// Whether the request's body was longer than it may be, and was cut off for that.
    pub(crate) fn body_was_cut(&self) -> bool {
        let limit = self.max_request_bytes.get();
        limit != 0 && self.request_bytes.get() > limit
    }

    /// Whether it was cut off for a bound of these limits.
    pub(crate) fn body_was_cut_by(&self, limits: &ServiceLimits) -> bool {
        self.body_was_cut() && self.max_request_bytes.get() == limits.max_body_bytes()
    }

    /// Counts bytes of the request's body.
    pub(crate) fn count_request_bytes(&self, bytes: u64) {
        self.request_bytes.set(self.request_bytes.get() + bytes);
    }

    /// Counts bytes of the response's body.
    pub(crate) fn count_response_bytes(&self, bytes: u64) {
        self.response_bytes.set(self.response_bytes.get() + bytes);
    }

    pub(super) fn note_grpc_status(&self, headers: &HeaderMap) {
        let status = headers
            .get("grpc-status")
            .and_then(|value| value.to_str().ok());
        if let Some(status) = status.and_then(|status| status.parse().ok()) {
            self.grpc_status.set(Some(status));
        }
    }
}

/// Counts the bytes of the request's body.
pub(super) struct RequestWatcher(pub(super) Rc<Exchange>);

impl BodyWatcher for RequestWatcher {
    fn data(&self, bytes: usize) {
        self.0.count_request_bytes(bytes as u64);
    }

    fn is_too_long(&self) -> bool {
        self.0.body_was_cut()
    }

    fn patience(&self) -> Option<Bound> {
        // Of calls that stream, either side may be silent for as long as it likes.
        let limit = self.0.patience.body.filter(|_| !self.0.is_grpc())?;
        Some(Bound {
            limit,
            least: LEAST_BYTES,
        })
    }

    fn end(&self, end: BodyEnd<'_>) {
        if let BodyEnd::Failed(error) = end {
            let code = match error {
                BodyError::TooLong => ErrorCode::BodyTooLarge,
                BodyError::SenderStalled(_) => ErrorCode::ClientTimeout,
                BodyError::ReaderStalled => ErrorCode::UpstreamStalled,
                error if error.is_malformed() => ErrorCode::BadRequest,
                _ => ErrorCode::ClientClosed,
            };
            self.0.broken_request.set(Some(code));
        }
    }
}

impl BodyWatcher for Exchange {
    fn data(&self, bytes: usize) {
        self.count_response_bytes(bytes as u64);
    }

    fn patience(&self) -> Option<Bound> {
        self.response_bound.get()
    }

    fn trailers(&self, trailers: &HeaderMap) {
        if self.is_grpc() {
            self.note_grpc_status(trailers);
        }
    }

    fn end(&self, end: BodyEnd<'_>) {
        match end {
            BodyEnd::Complete => {}
            BodyEnd::Failed(error) => {
                let code = match (error, self.broken_request.get()) {
                    (BodyError::SenderStalled(_), _) => ErrorCode::UpstreamStalled,
                    (BodyError::ReaderStalled, _) => ErrorCode::ClientTimeout,
                    (_, Some(ErrorCode::ClientTimeout)) => ErrorCode::ClientTimeout,
                    _ => ErrorCode::UpstreamReset,
                };
                if code == ErrorCode::ClientTimeout {
                    complain(self.direction, code, error);
                }
                self.fail(code, || format!("the response broke off: {}", Chain(error)));
            }
            BodyEnd::Dropped => self.cut_off("the response was complete"),
        }
        self.record();
    }
}
