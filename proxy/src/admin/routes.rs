//! What the admin port answers.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};

use super::{Admin, guard};
use crate::errors::Chain;
use crate::telemetry::metrics::Format;

/// Longest body of a request in bytes.
const MAX_BODY_BYTES: usize = 8 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Metrics,
    Shutdown,
    Config,
    LogLevel,
    Endpoints,
    Tasks,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/live" => Self::Live,
            "/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/shutdown" => Self::Shutdown,
            "/config" => Self::Config,
            "/endpoints" => Self::Endpoints,
            "/tasks" => Self::Tasks,
            "/log-level" => Self::LogLevel,
            _ => return None,
        })
    }

    const fn is_public(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Metrics)
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Shutdown => "POST",
            Self::LogLevel => "GET, HEAD, PUT",
            Self::Live
            | Self::Ready
            | Self::Metrics
            | Self::Config
            | Self::Endpoints
            | Self::Tasks => "GET, HEAD",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allowed()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
    }
}

/// Answers a request of `remote`.
pub(super) async fn answer<B>(
    admin: &Admin,
    remote: SocketAddr,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Some(route) = Route::of(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "there is no such page");
    };
    if !route.is_public()
        && let Err(refusal) = guard::check(remote, request.uri(), request.headers())
    {
        return plain(StatusCode::FORBIDDEN, &refusal.to_string());
    }
    if !route.allows(request.method()) {
        let mut response = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "there is no such method here",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(route.allowed()));
        return response;
    }
    match route {
        Route::Live => plain(StatusCode::OK, "live"),
        Route::Ready => {
            let (ready, document) = admin.readiness.document();
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            response(status, JSON, document)
        }
        Route::Metrics => {
            let accept = request
                .headers()
                .get(ACCEPT)
                .and_then(|value| value.to_str().ok());
            let format = Format::for_accept(accept);
            response(
                StatusCode::OK,
                format.content_type(),
                admin.metrics.encode(format),
            )
        }
        Route::Shutdown => {
            (admin.shutdown)();
            plain(StatusCode::ACCEPTED, "shutting down")
        }
        Route::Config => response(StatusCode::OK, JSON, (admin.config)().to_string()),
        Route::Endpoints => response(StatusCode::OK, JSON, (admin.endpoints)().to_string()),
        Route::Tasks => response(StatusCode::OK, JSON, (admin.tasks)().to_string()),
        Route::LogLevel if request.method() == Method::PUT => set_log_level(admin, request).await,
        Route::LogLevel => plain(StatusCode::OK, &admin.logs.get()),
    }
}

async fn set_log_level<B>(admin: &Admin, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
    else {
        return plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is too long or incomplete",
        );
    };
    let body = body.to_bytes();
    let Ok(filter) = std::str::from_utf8(&body) else {
        return plain(StatusCode::BAD_REQUEST, "the filter is not UTF-8");
    };
    match admin.logs.set(filter) {
        Ok(()) => {
            let filter = admin.logs.get();
            tracing::info!(filter, "the log filter was changed");
            plain(StatusCode::OK, &filter)
        }
        Err(error) => plain(StatusCode::BAD_REQUEST, &Chain(&error).to_string()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, TEXT, format!("{text}\n"))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TestAdmin, test_admin};
    use super::*;
    use crate::admin::Component;

    const POD: &str = "10.0.0.1:40000";
    const LOOPBACK: &str = "127.0.0.1:40000";

    async fn ask(
        test: &TestAdmin,
        remote: &str,
        method: Method,
        path: &str,
        body: &str,
    ) -> (StatusCode, http::HeaderMap, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1:15020")
            .body(Full::<Bytes>::from(body.to_owned()))
            .unwrap();
        let response = answer(&test.admin, remote.parse().unwrap(), request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            parts.status,
            parts.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn probes_are_answered_from_anywhere() {
        let test = test_admin();
        assert_eq!(ask(&test, POD, Method::GET, "/live", "").await.0, 200);
        assert_eq!(ask(&test, POD, Method::HEAD, "/live?x=y", "").await.0, 200);
        let (status, headers, body) = ask(&test, POD, Method::GET, "/ready", "").await;
        assert_eq!(
            (status, &headers["content-type"]),
            (
                503.try_into().unwrap(),
                &"application/json".try_into().unwrap()
            )
        );
        assert!(body.contains("\"ready\":false"), "{body}");
        for component in [Component::Identity, Component::Policy, Component::Listeners] {
            test.admin.readiness.set(component, true, "");
        }
        assert_eq!(ask(&test, POD, Method::GET, "/ready", "").await.0, 200);
    }

    #[tokio::test]
    async fn metrics_are_served_with_their_content_type() {
        let test = test_admin();
        let (status, headers, body) = ask(&test, POD, Method::GET, "/metrics", "").await;
        assert_eq!(status, 200);
        assert_eq!(
            headers["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        assert!(body.contains("sidewind_build_info{"));
    }

    #[tokio::test]
    async fn what_changes_or_reveals_is_refused_from_other_machines() {
        let test = test_admin();
        for (method, path) in [
            (Method::POST, "/shutdown"),
            (Method::GET, "/config"),
            (Method::GET, "/endpoints"),
            (Method::GET, "/tasks"),
            (Method::GET, "/log-level"),
            (Method::PUT, "/log-level"),
        ] {
            assert_eq!(
                ask(&test, POD, method, path, "debug").await.0,
                403,
                "{path}"
            );
        }
        assert_eq!(test.shutdowns(), 0);
        assert_eq!(test.admin.logs.get(), "info");
    }

    #[tokio::test]
    async fn a_program_beside_the_proxy_may_shut_it_down() {
        let test = test_admin();
        assert_eq!(
            ask(&test, LOOPBACK, Method::GET, "/shutdown", "").await.0,
            405
        );
        assert_eq!(test.shutdowns(), 0);
        assert_eq!(
            ask(&test, LOOPBACK, Method::POST, "/shutdown", "").await.0,
            202
        );
        assert_eq!(test.shutdowns(), 1);
    }

    #[tokio::test]
    async fn the_log_filter_is_read_and_replaced() {
        let test = test_admin();
        let put = ask(
            &test,
            LOOPBACK,
            Method::PUT,
            "/log-level",
            "sidewind_proxy=debug\n",
        )
        .await;
        assert_eq!((put.0.as_u16(), &*put.2), (200, "sidewind_proxy=debug\n"));
        let get = ask(&test, LOOPBACK, Method::GET, "/log-level", "").await;
        assert_eq!(get.2, "sidewind_proxy=debug\n");
        let bad = ask(&test, LOOPBACK, Method::PUT, "/log-level", "a=b=c=d").await;
        assert_eq!(bad.0, 400);
        assert!(bad.2.contains("is not a log filter"), "{}", bad.2);
        let long = "x".repeat(MAX_BODY_BYTES + 1);
        assert_eq!(
            ask(&test, LOOPBACK, Method::PUT, "/log-level", &long)
                .await
                .0,
            413
        );
        assert_eq!(test.admin.logs.get(), "sidewind_proxy=debug");
    }

    #[tokio::test]
    async fn the_config_is_json() {
        let test = test_admin();
        let (status, headers, body) = ask(&test, LOOPBACK, Method::GET, "/config", "").await;
        assert_eq!(status, 200);
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(body, "{\"workers\":1}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_to_be_so() {
        let test = test_admin();
        for path in ["/", "/metrics/", "/debug", "/LIVE"] {
            assert_eq!(
                ask(&test, LOOPBACK, Method::GET, path, "").await.0,
                404,
                "{path}"
            );
        }
        let (status, headers, _) = ask(&test, POD, Method::DELETE, "/metrics", "").await;
        assert_eq!(status, 405);
        assert_eq!(headers["allow"], "GET, HEAD");
    }
}
