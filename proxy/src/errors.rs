//! Every response that the proxy makes itself is made here, and nowhere else.
//!
//! A failure has one [`ErrorCode`]: stable, in kebab case, the value of the `sidewind-error`
//! response header, of the `error` field of the access log and of the `code` label of
//! `sidewind_errors_total`. `docs/errors.md` has a row for each; a test compares the two.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

/// The response header that carries the [`ErrorCode`] of a response that the proxy made itself.
pub(crate) const ERROR_HEADER: HeaderName = HeaderName::from_static("sidewind-error");

/// Longest message in bytes; names in it come from clients, so it is bounded.
const MAX_MESSAGE_BYTES: usize = 512;

/// Status codes of gRPC (`doc/statuscodes.md` of the gRPC repository) that the proxy answers with.
mod grpc {
    pub(super) const CANCELLED: u8 = 1;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
}

macro_rules! error_codes {
    ($($variant:ident, $code:literal, $http:expr, $grpc:ident, $sent:ident, $doc:literal;)+) => {
        /// Why the proxy answered in place of the workload. Codes are never renamed or reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum ErrorCode { $(#[doc = $doc] $variant,)+ }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The code of that name, as another proxy sent it.
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == name)
            }

            /// The HTTP status of the response.
            pub(crate) const fn http_status(self) -> StatusCode {
                match self { $(Self::$variant => $http,)+ }
            }

            /// The `grpc-status` of the response to a gRPC client.
            pub(crate) const fn grpc_status(self) -> u8 {
                match self { $(Self::$variant => grpc::$grpc,)+ }
            }

            /// Whether the workload surely saw nothing of the request, so that any method may be
            /// tried again elsewhere.
            #[cfg(test)]
            pub(crate) const fn is_unsent(self) -> bool {
                match self { $(Self::$variant => error_codes!(@$sent),)+ }
            }

            /// One line for people.
            pub(crate) const fn doc(self) -> &'static str {
                match self { $(Self::$variant => $doc,)+ }
            }
        }
    };
    (@unsent) => { true };
    (@maybe) => { false };
}

error_codes! {
    // Reaching the service.
    NoEndpoints, "no-endpoints", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The service has no endpoint that could be used.";
    ConnectFailed, "connect-failed", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "No connection to the endpoint could be made.";
    ConnectTimeout, "connect-timeout", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The endpoint did not accept the connection within the connect timeout.";
    TlsFailed, "tls-failed", StatusCode::BAD_GATEWAY, UNAVAILABLE, unsent,
        "The TLS handshake with the endpoint's proxy failed.";
    WrongIdentity, "wrong-identity", StatusCode::BAD_GATEWAY, UNAVAILABLE, unsent,
        "The endpoint presented another SPIFFE ID than discovery named for it.";
    PeerBanned, "peer-banned", StatusCode::BAD_GATEWAY, UNAVAILABLE, unsent,
        "The endpoint, or the certificate that it presented, is banned.";
    WorkloadUnavailable, "workload-unavailable", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The workload beside the answering proxy did not accept a connection.";
    UpstreamReset, "upstream-reset", StatusCode::BAD_GATEWAY, UNAVAILABLE, maybe,
        "The connection ended before the response was complete.";
    UpstreamProtocol, "upstream-protocol", StatusCode::BAD_GATEWAY, INTERNAL, maybe,
        "The endpoint's response was not valid HTTP.";
    RequestTimeout, "request-timeout", StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, maybe,
        "No response came within the request's timeout.";
    UpstreamStalled, "upstream-stalled", StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, maybe,
        "The endpoint stood still within its response, or took no more of the request.";
    DiscoveryUnavailable, "discovery-unavailable", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The control plane has not yet said where the service is.";
    WrongDestination, "wrong-destination", StatusCode::MISDIRECTED_REQUEST, UNAVAILABLE, unsent,
        "The request names a destination that the answering proxy does not serve.";
    NoRoute, "no-route", StatusCode::NOT_FOUND, UNIMPLEMENTED, unsent,
        "The service has routes, and none of their rules matches the request.";
    BackendInvalid, "backend-invalid", StatusCode::INTERNAL_SERVER_ERROR, UNAVAILABLE, unsent,
        "The request's route leads to a backend that does not exist or may not be used, or cannot be read.";
    LoopDetected, "loop-detected", StatusCode::LOOP_DETECTED, INTERNAL, unsent,
        "The destination is the proxy itself.";

    // Identity and policy.
    PolicyDenied, "policy-denied", StatusCode::FORBIDDEN, PERMISSION_DENIED, unsent,
        "No rule of the destination's policy allows the caller.";
    PolicyNotReady, "policy-not-ready", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The answering proxy has not yet received its policy.";
    PlaintextRefused, "plaintext-refused", StatusCode::FORBIDDEN, PERMISSION_DENIED, unsent,
        "The destination accepts callers with a mesh identity only.";
    OutsideRefused, "outside-refused", StatusCode::FORBIDDEN, PERMISSION_DENIED, unsent,
        "The destination is outside the mesh, and the proxy is set to refuse such destinations.";
    IdentityUnavailable, "identity-unavailable", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The proxy has not yet been given a certificate.";
    IdentityExpired, "identity-expired", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The proxy's certificate has expired and could not be renewed.";

    TaskIdentityUnavailable, "task-identity-unavailable", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The proxy has no certificate just now for the Airflow task that the request comes from.";
    TaskIdentityRefused, "task-identity-refused", StatusCode::FORBIDDEN, PERMISSION_DENIED, unsent,
        "The Airflow task that the request comes from is given no identity, or is not known for sure where it must be.";

    // The client's message.
    BadRequest, "bad-request", StatusCode::BAD_REQUEST, INTERNAL, unsent,
        "The request was not valid HTTP, or names no destination.";
    HeaderTooLarge, "header-too-large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, RESOURCE_EXHAUSTED, unsent,
        "The request's header is larger than the proxy accepts.";
    ClientTimeout, "client-timeout", StatusCode::REQUEST_TIMEOUT, DEADLINE_EXCEEDED, maybe,
        "The client did not send its request in time, or took nothing of the response.";
    ClientClosed, "client-closed", CLIENT_CLOSED_REQUEST, CANCELLED, maybe,
        "The client went away before the response was complete; only logs and metrics say so.";
    BodyTooLarge, "body-too-large", StatusCode::PAYLOAD_TOO_LARGE, RESOURCE_EXHAUSTED, maybe,
        "The request's body is larger than the service takes.";
    RateLimited, "rate-limited", StatusCode::TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED, unsent,
        "A rate limit of the service is used up.";
    Unsupported, "unsupported", StatusCode::NOT_IMPLEMENTED, UNIMPLEMENTED, unsent,
        "The proxy does not support what the request asks for.";

    // The proxy itself.
    Overloaded, "overloaded", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, unsent,
        "The proxy has as many connections or requests as it may hold.";
    Stopped, "stopped", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, maybe,
        "The proxy ended before the connection or the response did; only logs and metrics say so.";
}

impl ErrorCode {
    /// Whether it is about a proxy that is not ready, or too busy, so that nothing was done with the request and the
    /// same request may get through a moment later.
    pub(crate) const fn may_pass(self) -> bool {
        matches!(
            self,
            Self::DiscoveryUnavailable
                | Self::IdentityUnavailable
                | Self::IdentityExpired
                | Self::TaskIdentityUnavailable
                | Self::PolicyNotReady
                | Self::WrongDestination
                | Self::Overloaded
        )
    }
}

/// 499, which nginx made customary for a client that went away. No response carries it.
const CLIENT_CLOSED_REQUEST: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure that ends a request or a connection: what a client, a log line and a metric are told.
///
/// The message is one sentence that names the service and the endpoint. It goes to clients, so it
/// never holds a secret or the text of a cause; causes are for the log, by [`ProxyError::chain`].
#[derive(Debug)]
pub(crate) struct ProxyError {
    code: ErrorCode,
    message: Box<str>,
    /// Another than its code's.
    status: Option<StatusCode>,
    /// Its text is said in JSON.
    in_json: bool,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl ProxyError {
    /// A failure with its one-sentence message. Control characters in the message, which names from
    /// clients may hold, are escaped, and its length is bounded.
    pub(crate) fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        let mut clean = CleanMessage(String::new());
        // The writer refuses what is beyond the bound, which ends the formatting early.
        let _ = write!(clean, "{message}");
        Self {
            code,
            message: clean.0.into_boxed_str(),
            status: None,
            in_json: false,
            retry_after: None,
            source: None,
        }
    }

    /// Puts what the failure is about before the sentence.
    pub(crate) fn about(self, subject: impl fmt::Display) -> Self {
        let message = format!("{subject}: {}", self.message);
        Self {
            message: Self::new(self.code, message).message,
            ..self
        }
    }

    /// Adds the cause, which logs show and clients do not.
    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Answers an HTTP client with another status than the code's own.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Answers an HTTP client in JSON, see [`say_in_json`].
    pub(crate) fn in_json(mut self) -> Self {
        self.in_json = true;
        self
    }

    /// Adds a `retry-after`, rounded up to whole seconds.
    pub(crate) fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// What failed.
    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// The HTTP status of its response.
    pub(crate) fn status(&self) -> StatusCode {
        self.status.unwrap_or(self.code.http_status())
    }

    /// The sentence that the client is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The message followed by every cause, for the log.
    pub(crate) fn chain(&self) -> Chain<'_> {
        Chain(self)
    }

    /// The response to the client: plain text or JSON, or for a gRPC client a trailers-only response.
    pub(crate) fn into_response<B: From<Bytes>>(self, grpc: bool) -> Response<B> {
        let mut response = if grpc {
            self.grpc_response()
        } else {
            self.http_response()
        };
        let headers = response.headers_mut();
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.code.as_str()));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn http_response<B: From<Bytes>>(&self) -> Response<B> {
        let body = Bytes::from(format!("{}\n", self.message));
        let length = body.len();
        let mut response = Response::new(B::from(body));
        *response.status_mut() = self.status.unwrap_or(self.code.http_status());
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        if self.in_json {
            say_in_json(&mut response, &self.message);
        }
        response
    }

    /// Trailers-Only of gRPC over HTTP/2: status 200 and the outcome in the header block.
    fn grpc_response<B: From<Bytes>>(&self) -> Response<B> {
        let mut response = Response::new(B::from(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            "grpc-status",
            HeaderValue::from(u16::from(self.code.grpc_status())),
        );
        if let Ok(message) = HeaderValue::try_from(percent_encode(&self.message)) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for ProxyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Has a response that a proxy has made say `detail` in the form in which Airflow's API servers refuse: an object with
/// that member, and a content type that is `application/json` to the letter, without which Airflow's client takes no
/// status for what it means.
pub(crate) fn say_in_json<B: From<Bytes>>(response: &mut Response<B>, detail: &str) {
    let body = Bytes::from(serde_json::json!({ "detail": detail }).to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.remove(CONTENT_ENCODING);
    *response.body_mut() = B::from(body);
}

/// The answer, as the bytes of HTTP/1.1, to a client that sent what cannot be read as a request. `refusal` is the
/// bare answer of the HTTP library that could not; none for any other. `reason` is what the proxy itself knows of it.
pub(crate) fn unreadable_request(refusal: &[u8], reason: Option<ProxyError>) -> Option<Bytes> {
    let code = match refusal.strip_prefix(b"HTTP/1.1 ")?.get(..3)? {
        b"431" | b"414" => ErrorCode::HeaderTooLarge,
        b"400" => ErrorCode::BadRequest,
        _ => return None,
    };
    Some(last_response(
        reason.unwrap_or_else(|| ProxyError::new(code, code.doc())),
    ))
}

/// A response that ends its connection, as the bytes of HTTP/1.1.
pub(crate) fn last_response(error: ProxyError) -> Bytes {
    let response: Response<Bytes> = error.into_response(false);
    let mut bytes = format!("HTTP/1.1 {}\r\nconnection: close\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    bytes.into()
}

/// Shows an error and each of its causes, joined by `: `. A cause whose text the line already ends
/// with is left out, since many errors repeat their source in their own text.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut next = self.0.source();
        // A bound, since nothing forbids an error to be its own source.
        for _ in 0..16 {
            let Some(cause) = next else { break };
            let text = cause.to_string();
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
                last = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bounded string without control characters.
struct CleanMessage(String);

impl fmt::Write for CleanMessage {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.len() >= MAX_MESSAGE_BYTES {
                self.0.push('…');
                return Err(fmt::Error);
            }
            if character.is_control() {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

/// Percent-encodes as `grpc-message` demands: all but printable ASCII, and `%` itself.
fn percent_encode(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
