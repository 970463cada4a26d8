//! What becomes of requests to the Execution API while no API server answers.
//!
//! Airflow's client gives a request five seconds and up to five tries, and waits a few seconds between them. Where an
//! outage makes each try fail at once, a task is lost after four to fifteen seconds; where each try hangs, after half a
//! minute and more. So the proxy lets them hang: it holds a request, tries inside, and says that it has failed just
//! before the client gives up by itself.

use std::{rc::Rc, time::Duration};

use http::{Method, Response, StatusCode};
use tokio::time::Instant;

use super::execution_api::Call;
use crate::{
    errors::ProxyError,
    http::{Body, headers::SIDEWIND_ERROR},
    retry::{HoldLimits, RetryPolicy},
};

/// Bytes of a request that are kept so that it can be sent again: an XCom may be larger than most bodies.
const REPLAY_BYTES: usize = 256 * 1024;

/// Requests of one service that are held by one worker.
const HELD_REQUESTS: u32 = 2048;

/// What is kept of them.
const HELD_BYTES: u64 = 16 * 1024 * 1024;

impl Call {
    /// How this request is tried again, by what its route says otherwise: until `until`, and at another API server too
    /// when one has not answered for as long as `hedge` says.
    pub(crate) fn policy(
        &self,
        of_route: &RetryPolicy,
        until: Instant,
        hedge: Option<Duration>,
    ) -> Rc<RetryPolicy> {
        let mut policy = of_route.clone();
        // GET, PUT and DELETE need not be named.
        policy.methods = match self.repeatable {
            true => vec![Method::PATCH, Method::POST],
            false => Vec::new(),
        };
        for status in RetryPolicy::default().statuses {
            if !policy.statuses.contains(&status) {
                policy.statuses.push(status);
            }
        }
        policy.replay_bytes = policy.replay_bytes.max(REPLAY_BYTES);
        policy.outage = true;
        policy.hedge = hedge;
        let limits = policy.hold.unwrap_or(HoldLimits {
            timeout: until.saturating_duration_since(Instant::now()),
            requests: HELD_REQUESTS,
            bytes: HELD_BYTES,
            ends: None,
        });
        policy.hold = Some(HoldLimits {
            ends: Some(until),
            ..limits
        });
        Rc::new(policy)
    }
}

/// What the client is told where a proxy of the mesh has refused its request. Airflow takes 404 for a variable that does
/// not exist and, at once, any other status below 500 for one that cannot be had; for both it goes on with the default
/// that the DAG gives. It tries again after a status from 500 on, and takes 403 for what it is.
pub(crate) fn tell(
    result: Result<Response<Body>, ProxyError>,
) -> Result<Response<Body>, ProxyError> {
    match result {
        Err(error) => match told(error.code().http_status()) {
            Some(status) => Err(error.with_status(status)),
            None => Err(error),
        },
        Ok(mut response) => {
            if response.headers().contains_key(SIDEWIND_ERROR)
                && let Some(status) = told(response.status())
            {
                *response.status_mut() = status;
            }
            Ok(response)
        }
    }
}

/// What is said in place of a refusal of the mesh's own; none where it can be said as it is.
fn told(status: StatusCode) -> Option<StatusCode> {
    match status {
        StatusCode::FORBIDDEN => None,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::MISDIRECTED_REQUEST
        | StatusCode::REQUEST_TIMEOUT => Some(StatusCode::SERVICE_UNAVAILABLE),
        refusal if refusal.is_client_error() => Some(StatusCode::FORBIDDEN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::ErrorCode;

    fn call(method: &Method, path: &str) -> Call {
        Call::read(method, path).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_as_the_server_allows_and_held_until_its_client_gives_up() {
        let until = Instant::now() + Duration::from_millis(4500);
        let hedge = Some(Duration::from_secs(2));
        let default = RetryPolicy::default();
        let xcom = call(&Method::POST, "/execution/xcoms/d/r/t/k").policy(&default, until, hedge);
        assert_eq!(xcom.methods, [Method::PATCH, Method::POST]);
        assert!(xcom.outage);
        assert_eq!(xcom.try_timeout, None);
        assert_eq!(xcom.hedge, hedge);
        assert_eq!(xcom.hold.unwrap().ends, Some(until));
        let trigger = call(&Method::POST, "/execution/dag-runs/d/r");
        assert!(trigger.policy(&default, until, hedge).methods.is_empty());

        let of_route = RetryPolicy {
            methods: vec![Method::POST],
            statuses: vec![StatusCode::INTERNAL_SERVER_ERROR],
            hold: Some(HoldLimits {
                timeout: Duration::from_secs(30),
                requests: 7,
                bytes: 8,
                ends: None,
            }),
            ..RetryPolicy::default()
        };
        let trigger = trigger.policy(&of_route, until, None);
        assert!(trigger.methods.is_empty());
        assert_eq!(trigger.statuses.len(), 4);
        assert_eq!(trigger.hold.unwrap().requests, 7);
        assert_eq!(trigger.hold.unwrap().ends, Some(until));
    }

    #[test]
    fn what_a_proxy_refuses_is_never_taken_for_a_variable_that_does_not_exist() {
        for code in ErrorCode::ALL {
            let refusal = tell(Err(ProxyError::new(*code, "no"))).unwrap_err();
            let response: Response<Body> = refusal.into_response(false);
            let status = response.status();
            assert!(status == 403 || status.is_server_error(), "{code}");
        }
        for (said, status, expected) in [
            (Some("rate-limited"), 429, 503),
            (Some("wrong-destination"), 421, 503),
            (Some("no-route"), 404, 403),
            (Some("policy-denied"), 403, 403),
            (Some("workload-unavailable"), 503, 503),
            // Airflow's own word.
            (None, 429, 429),
            (None, 404, 404),
        ] {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(said) = said {
                let said = said.parse().unwrap();
                response.headers_mut().insert(SIDEWIND_ERROR, said);
            }
            let told = tell(Ok(response)).unwrap();
            assert_eq!(told.status().as_u16(), expected, "{said:?} {status}");
        }
    }
}
