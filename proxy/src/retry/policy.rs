//! What a service's route says about timeouts and retries.

use std::time::Duration;

use http::StatusCode;
use sidewind_api::v1;

use super::backoff::Backoff;

/// Most retries of one request, whatever is configured.
const MAX_RETRIES: u32 = 10;

/// Timeouts and retries of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// Retries after the first attempt.
    pub(crate) max_retries: u32,
    /// Responses to idempotent requests that are worth another attempt.
    pub(crate) statuses: Vec<StatusCode>,
    /// Waits between attempts.
    pub(crate) backoff: Backoff,
    /// How long one attempt may take to the head of its response.
    pub(crate) try_timeout: Option<Duration>,
    /// How long all attempts with the waits between them may take to the head of the response.
    pub(crate) request_timeout: Option<Duration>,
}

impl Default for RetryPolicy {
    /// Two retries of 502, 503 and 504, and no timeout: the client's own is the only one known to be right.
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_retries: 2,
            statuses: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            backoff: Backoff::default(),
            try_timeout: None,
            request_timeout: None,
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
        let backoff = match route.retry_backoff_ms {
            Some(milliseconds) => Backoff {
                base: Duration::from_millis(milliseconds),
                cap: Duration::from_millis(milliseconds.saturating_mul(10)),
            },
            None => default.backoff,
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
            backoff,
            try_timeout: timeout(route.backend_request_timeout_ms),
            request_timeout: timeout(route.request_timeout_ms),
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
