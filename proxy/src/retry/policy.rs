//! What a route says about timeouts and retries, and of who keeps his endpoint.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use sidewind_api::v1;

use super::{backoff::Backoff, hold::HoldLimits, replay::MAX_REPLAY_BYTES};
use crate::{balance::StickySettings, config::TrafficConfig};

/// Most retries of one request, whatever is configured.
const MAX_RETRIES: u32 = 10;

/// Most bytes of one request that are kept for a retry, whatever is configured.
const MOST_REPLAY_BYTES: usize = 16 * 1024 * 1024;

/// gRPC's status of a server that cannot answer now.
pub(crate) const UNAVAILABLE: u8 = 14;

/// Timeouts and retries of a service's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// Retries after the first attempt.
    pub(crate) max_retries: u32,
    /// Responses to idempotent requests that are worth another attempt.
    pub(crate) statuses: Vec<StatusCode>,
    /// The same of gRPC.
    pub(crate) grpc_codes: Vec<u8>,
    /// Methods that may be repeated although they are not idempotent.
    pub(crate) methods: Vec<Method>,
    /// Waits between attempts.
    pub(crate) backoff: Backoff,
    /// What is waited at least after an answer, beside that: a route that names its backoff means the least (Gateway API,
    /// `HTTPRouteRetry`).
    pub(crate) least_backoff: Duration,
    /// Most bytes of a body that are kept for another attempt.
    pub(crate) replay_bytes: usize,
    /// How long one attempt may take to the head of its response.
    pub(crate) try_timeout: Option<Duration>,
    /// How long all attempts with the waits between them may take to the head of the response.
    pub(crate) request_timeout: Option<Duration>,
    /// Whether and how requests wait while no endpoint is up.
    pub(crate) hold: Option<HoldLimits>,
    /// What keeps clients with their endpoints; none where the service's own policy says it.
    pub(crate) sticky: Option<Arc<StickySettings>>,
    /// The name of the route, where this comes without its rule.
    pub(crate) route: Option<Rc<str>>,
    /// After how long without an answer another endpoint is asked as well, where the request may be repeated.
    pub(crate) hedge: Option<Duration>,
    /// Answers that are worth another attempt, and connections that break, count too as a service that is down.
    pub(crate) outage: bool,
}

impl Default for RetryPolicy {
    /// Two retries of 502, 503 and 504, and no timeout: the client's own is the only one known to be right. No status of
    /// gRPC: nothing says of a call that it may be made twice, but its route.
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_retries: 2,
            statuses: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            grpc_codes: Vec::new(),
            methods: Vec::new(),
            backoff: Backoff::default(),
            least_backoff: Duration::ZERO,
            replay_bytes: MAX_REPLAY_BYTES,
            try_timeout: None,
            request_timeout: None,
            hold: None,
            sticky: None,
            route: None,
            hedge: None,
            outage: false,
        }
    }
}

impl RetryPolicy {
    /// What a route says, and what the configuration says where it does not.
    pub(crate) fn new(route: Option<&v1::RoutePolicy>, defaults: &TrafficConfig) -> RetryPolicy {
        let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let least_backoff = route.and_then(|route| route.retry_backoff_ms);
        let mut route = route.cloned().unwrap_or_default();
        let set = &mut route;
        set.request_timeout_ms = set
            .request_timeout_ms
            .or(defaults.request_timeout.map(milliseconds));
        set.backend_request_timeout_ms = set
            .backend_request_timeout_ms
            .or(defaults.per_try_timeout.map(milliseconds));
        set.retry_attempts.get_or_insert(defaults.retry_attempts);
        set.retry_backoff_ms
            .get_or_insert(milliseconds(defaults.retry_backoff));
        if set.retry_codes.is_empty() {
            let codes = defaults.retry_codes.iter().copied();
            set.retry_codes = codes.map(u32::from).collect();
        }
        RetryPolicy {
            least_backoff: least_backoff.map(Duration::from_millis).unwrap_or_default(),
            ..RetryPolicy::from(&route)
        }
    }
}

impl From<&v1::RoutePolicy> for RetryPolicy {
    /// What the route leaves out is as in the default. A timeout of 0 means none, as in the Gateway API.
    fn from(route: &v1::RoutePolicy) -> RetryPolicy {
        let default = RetryPolicy::default();
        let timeout = |milliseconds: Option<u64>| {
            milliseconds
                .filter(|milliseconds| *milliseconds > 0)
                .map(Duration::from_millis)
        };
        let statuses: Vec<StatusCode> = route
            .retry_codes
            .iter()
            .filter_map(|code| StatusCode::from_u16(u16::try_from(*code).ok()?).ok())
            .collect();
        let grpc_codes = route.retry_grpc_codes.iter();
        let grpc_codes = grpc_codes.filter_map(|code| u8::try_from(*code).ok());
        let methods = route.retry_methods.iter();
        let methods = methods.filter_map(|method| Method::from_bytes(method.as_bytes()).ok());
        let backoff = match route.retry_backoff_ms {
            Some(milliseconds) => Backoff {
                base: Duration::from_millis(milliseconds),
                cap: Duration::from_millis(milliseconds.saturating_mul(10)),
            },
            None => default.backoff,
        };
        let replay_bytes = match route.retry_body_bytes {
            Some(bytes) => usize::try_from(bytes).unwrap_or(MOST_REPLAY_BYTES),
            None => default.replay_bytes,
        };
        RetryPolicy {
            max_retries: route
                .retry_attempts
                .unwrap_or(default.max_retries)
                .min(MAX_RETRIES),
            statuses: if route.retry_codes.is_empty() {
                default.statuses
            } else {
                statuses
            },
            grpc_codes: grpc_codes.collect(),
            methods: methods.collect(),
            backoff,
            least_backoff: Duration::ZERO,
            replay_bytes: replay_bytes.min(MOST_REPLAY_BYTES),
            try_timeout: timeout(route.backend_request_timeout_ms),
            request_timeout: timeout(route.request_timeout_ms),
            hold: route.hold.as_ref().map(HoldLimits::from),
            route: Some(route.route.as_str())
                .filter(|it| !it.is_empty())
                .map(Rc::from),
            sticky: (route.stickiness.as_ref()).map(|sticky| Arc::new(sticky.into())),
            hedge: None,
            outage: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_route_leaves_out_is_the_default() {
        assert_eq!(
            RetryPolicy::from(&v1::RoutePolicy::default()),
            RetryPolicy::default()
        );
    }

    #[test]
    fn a_routes_values_are_taken_over_within_bounds() {
        let policy = RetryPolicy::from(&v1::RoutePolicy {
            request_timeout_ms: Some(3000),
            backend_request_timeout_ms: Some(0),
            retry_attempts: Some(1000),
            retry_codes: vec![500, 70_000],
            retry_backoff_ms: Some(100),
            ..Default::default()
        });
        assert_eq!(policy.request_timeout, Some(Duration::from_secs(3)));
        assert_eq!(policy.try_timeout, None);
        assert_eq!(policy.max_retries, MAX_RETRIES);
        assert_eq!(policy.statuses, [StatusCode::INTERNAL_SERVER_ERROR]);
        assert_eq!(policy.backoff.cap, Duration::from_secs(1));
    }
}
