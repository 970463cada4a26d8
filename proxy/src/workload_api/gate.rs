//! What every call passes first: is it a call at all, does its client mean this API, is there room.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::call::{Call, CallBody, Calls};
use crate::telemetry::logs::Throttle;
use crate::telemetry::metrics::Metrics;

/// Calls at once, over all connections. A stream is one, for as long as its client listens.
pub(super) const MAX_CALLS: usize = 4096;

/// Most bytes of a message from a client. An Envoy tells of all its extensions in its first one.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The metadata that shows that a client means a SPIFFE Workload Endpoint (SPIFFE_Workload_Endpoint section 3): what
/// somebody else's client is talked into requesting does not have it.
const SECURITY_HEADER: &str = "workload.spiffe.io";

const WORKLOAD_API: &str = "/SpiffeWorkloadAPI/";
const SDS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";

/// Routes, and what guards them. Clones share everything but the connection.
#[derive(Clone)]
pub(super) struct Gate {
    routes: Routes,
    room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A method that is served.
    Served(&'static str),
    /// None that is.
    Unknown,
}

impl Target {
    fn of(path: &str) -> Self {
        let methods: [(&str, &[&'static str]); 2] = [
            (
                WORKLOAD_API,
                &[
                    "FetchX509SVID",
                    "FetchX509Bundles",
                    "FetchJWTSVID",
                    "FetchJWTBundles",
                    "ValidateJWTSVID",
                ],
            ),
            (SDS, &["StreamSecrets", "FetchSecrets"]),
        ];
        if path.starts_with(REFLECTION) {
            return Self::Served("reflection");
        }
        for (service, methods) in methods {
            let name = path.strip_prefix(service);
            if let Some(method) = methods.iter().find(|method| Some(**method) == name) {
                return Self::Served(method);
            }
        }
        Self::Unknown
    }

    /// The metric's label.
    fn label(self) -> &'static str {
        match self {
            Self::Served(method) => method,
            Self::Unknown => "other",
        }
    }
}

impl Gate {
    pub(super) fn new(routes: Routes, metrics: Arc<Metrics>) -> Self {
        Self {
            routes,
            room: Arc::new(Semaphore::new(MAX_CALLS)),
            metrics,
        }
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Answers a call of a connection.
    pub(super) async fn call(
        &self,
        calls: &Calls,
        request: Request<Incoming>,
    ) -> Response<CallBody> {
        let target = Target::of(request.uri().path());
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        let has_room = permit.is_some();
        let call = Call::begin(target.label(), calls, permit, &self.metrics);
        if let Err(refusal) = check(&request, target) {
            return call.answer(refusal.response());
        }
        if !has_room {
            let problem = format!("{MAX_CALLS} calls are under way, try again later");
            return call.answer(Refusal::from(Status::unavailable(problem)).response());
        }
        let request = request.map(tonic::body::Body::new);
        match self.routes.clone().oneshot(request).await {
            Ok(response) => call.answer(response),
            Err(never) => match never {},
        }
    }
}

/// A call that goes no further.
#[derive(Debug)]
struct Refusal {
    http: StatusCode,
    status: Status,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self {
            http: StatusCode::OK,
            status,
        }
    }
}

impl Refusal {
    fn response(self) -> Response<tonic::body::Body> {
        let mut response = self.status.into_http();
        *response.status_mut() = self.http;
        response
    }
}

fn check<B>(request: &Request<B>, target: Target) -> Result<(), Refusal> {
    static NOT_MEANT: Throttle = Throttle::new();
    let path = request.uri().path();
    let meant = is_grpc(request).and_then(|()| {
        // Envoy sends no metadata of its own accord. That the call is gRPC at all already shows that nobody was talked
        // into it: its content type cannot be had by a URL alone.
        if path.starts_with(SDS) {
            return Ok(());
        }
        check_security_header(request.headers())
    });
    if let Err(refusal) = meant {
        if let Some(unsaid) = NOT_MEANT.admit() {
            tracing::warn!(
                method = target.label(),
                reason = refusal.status.message(),
                unsaid,
                "a call at the Workload API socket was refused"
            );
        }
        return Err(refusal);
    }
    if target == Target::Unknown {
        return Err(Status::unimplemented(
            "served here: the X.509 and JWT profiles of SpiffeWorkloadAPI, StreamSecrets and FetchSecrets of Envoy's SDS v3, \
             and gRPC reflection v1",
        )
        .into());
    }
    Ok(())
}

fn is_grpc<B>(request: &Request<B>) -> Result<(), Refusal> {
    let kind = request.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    let is_grpc = kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
    if request.method() == Method::POST && is_grpc {
        return Ok(());
    }
    Err(Refusal {
        http: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        status: Status::invalid_argument("this is a gRPC endpoint"),
    })
}

/// Exactly once, and exactly `true`.
fn check_security_header(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut values = headers.get_all(SECURITY_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "the metadata workload.spiffe.io: true must be there, once",
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::post(path).header(CONTENT_TYPE, "application/grpc");
        let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, add).body(()).unwrap()
    }

    fn refused(request: &Request<()>) -> Option<tonic::Code> {
        let target = Target::of(request.uri().path());
        check(request, target)
            .err()
            .map(|refusal| refusal.status.code())
    }

    #[test]
    fn the_header_must_be_there_once_and_be_true() {
        const NAME: &str = SECURITY_HEADER;
        let cases: [(&[(&str, &str)], bool); 8] = [
            (&[(NAME, "true")], true),
            (&[], false),
            (&[(NAME, "True")], false),
            (&[(NAME, "TRUE")], false),
            (&[(NAME, "true ")], false),
            (&[(NAME, "")], false),
            (&[(NAME, "true"), (NAME, "true")], false),
            (&[(NAME, "true,true")], false),
        ];
        for (headers, admitted) in cases {
            for path in [
                "/SpiffeWorkloadAPI/FetchX509SVID",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/SpiffeWorkloadAPI/FetchWITSVID",
                "/anything/Else",
            ] {
                let code = refused(&request(path, headers));
                let admitted_code = match Target::of(path) {
                    Target::Served(_) => None,
                    Target::Unknown => Some(tonic::Code::Unimplemented),
                };
                let expected = if admitted {
                    admitted_code
                } else {
                    Some(tonic::Code::InvalidArgument)
                };
                assert_eq!(code, expected, "{path} {headers:?}");
            }
        }
    }

    #[test]
    fn envoy_needs_no_header_but_must_speak_grpc() {
        let path = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
        assert_eq!(refused(&request(path, &[])), None);
        let delta = path.replace("StreamSecrets", "DeltaSecrets");
        assert_eq!(
            refused(&request(&delta, &[])),
            Some(tonic::Code::Unimplemented)
        );
        for (method, kind) in [
            (Method::GET, "application/grpc"),
            (Method::POST, "application/json"),
            (Method::POST, "application/grpc-web"),
            (Method::POST, "text/plain"),
        ] {
            let request = Request::builder().method(method).uri(path);
            let request = request.header(CONTENT_TYPE, kind).body(()).unwrap();
            assert_eq!(
                refused(&request),
                Some(tonic::Code::InvalidArgument),
                "{kind}"
            );
        }
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
        ] {
            let request = Request::post(path).header(CONTENT_TYPE, kind);
            assert_eq!(refused(&request.body(()).unwrap()), None, "{kind}");
        }
    }
}
