//! What becomes of requests to the Execution API while no API server answers.
//!
//! Airflow's client gives a request five seconds and up to five tries, and waits a few seconds between them. Where an
//! outage makes each try fail at once, a task is lost after four to fifteen seconds; where each try hangs, after half a
//! minute and more. So the proxy lets them hang: it holds a request, tries inside, and says that it has failed just
//! before the client gives up by itself.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::execution_api::Call;
use crate::{
    errors::{ErrorCode, ProxyError, say_in_json},
    http::{Body, headers::SIDEWIND_ERROR},
    retry::{HoldLimits, RetryPolicy},
};

/// Bytes of a request that are kept so that it can be sent again: an XCom may be larger than most bodies.
const REPLAY_BYTES: usize = 256 * 1024;

/// Requests of one service that are held by one worker.
const HELD_REQUESTS: u32 = 2048;

/// What is kept of them.
const HELD_BYTES: u64 = 16 * 1024 * 1024;

/// Answers of one worker that are kept back.
const MAX_KEPT_BACK: usize = 4096;

/// What is kept of the body of one.
const MAX_KEPT_BODY_BYTES: usize = 4 * 1024;

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

/// What Airflow's client is told where a proxy of the mesh has answered in place of the API server. It takes 404 for a
/// variable that does not exist, and nearly every other status that is not explained in JSON for one that cannot be had
/// just now; for both it goes on with the default that the DAG gives. It tries again after a status from 500 on, and takes
/// 403 for what it is, but only in JSON.
pub(crate) fn tell(
    result: Result<Response<Body>, ProxyError>,
) -> Result<Response<Body>, ProxyError> {
    match result {
        Err(error) => {
            let status = told(error.status());
            Err(error.with_status(status).in_json())
        }
        Ok(mut response) => {
            if let Some(said) = response.headers().get(SIDEWIND_ERROR) {
                let said = said.to_str().unwrap_or_default();
                let detail = match ErrorCode::from_name(said) {
                    Some(code) => code.doc(),
                    None => "A proxy of the mesh has answered in place of the API server.",
                };
                say_in_json(&mut response, detail);
                *response.status_mut() = told(response.status());
            }
            Ok(response)
        }
    }
}

/// Answers that say of an outage what cannot be mended by another try, and are kept back until Airflow's client gives
/// up by itself. Those of one worker.
#[derive(Debug, Default)]
pub(crate) struct KeptBack(Cell<usize>);

/// A place among them.
struct Place<'k>(&'k KeptBack);

impl KeptBack {
    /// Gives back `result`, and not before `until` where it says that no API server can answer. The request that it is
    /// about is gone by then.
    pub(crate) async fn until(
        &self,
        until: Instant,
        result: Result<Response<Body>, ProxyError>,
    ) -> Result<Response<Body>, ProxyError> {
        let status = match &result {
            Ok(response) => response.status(),
            Err(error) => error.status(),
        };
        let Some(_place) = matches!(status.as_u16(), 502..=504)
            .then(|| self.place())
            .flatten()
        else {
            return result;
        };
        let result = match result {
            Ok(response) => Ok(without_its_server(response, until).await),
            Err(error) => Err(error),
        };
        sleep_until(until).await;
        result
    }

    fn place(&self) -> Option<Place<'_>> {
        let kept = self.0.get();
        (kept < MAX_KEPT_BACK).then(|| {
            self.0.set(kept + 1);
            Place(self)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get().saturating_sub(1));
    }
}

/// The same response with a body that is there, so that it takes up nothing of its server's. A long one is left out.
async fn without_its_server(response: Response<Body>, until: Instant) -> Response<Body> {
    let (mut head, mut body) = response.into_parts();
    let mut read = Vec::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            let data = frame.ok()?.into_data().unwrap_or_default();
            if read.len() + data.len() > MAX_KEPT_BODY_BYTES {
                return None;
            }
            read.extend_from_slice(&data);
        }
        Some(())
    };
    let is_whole = timeout_at(until, reading).await.ok().flatten().is_some();
    let body = match is_whole {
        true => Body::from(Bytes::from(read)),
        false => {
            for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_TYPE] {
                head.headers.remove(name);
            }
            Body::Empty
        }
    };
    Response::from_parts(head, body)
}

/// The status that says to Airflow's client what one of the mesh's own means: that another try may help, or that none does.
fn told(status: StatusCode) -> StatusCode {
    match status.as_u16() {
        408 | 421 | 429 => StatusCode::SERVICE_UNAVAILABLE,
        502..=504 => status,
        _ => StatusCode::FORBIDDEN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_said_when_the_client_gives_up_and_everything_else_at_once() {
        let kept = KeptBack::default();
        let answer = |status: u16, body: &str| {
            let mut response = Response::new(Body::from(body.to_owned()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        };
        let failure = |code| Err(ProxyError::new(code, "no"));
        for (result, waits) in [
            (answer(200, "yes"), false),
            (answer(404, "no"), false),
            (answer(500, "oh"), false),
            (answer(502, "x"), true),
            (answer(503, "not now"), true),
            (failure(ErrorCode::UpstreamReset), true),
            (failure(ErrorCode::ConnectFailed), true),
            (failure(ErrorCode::PolicyDenied), false),
            (tell(failure(ErrorCode::RateLimited)), true),
        ] {
            let said = format!("{result:?}");
            let began = Instant::now();
            let until = began + Duration::from_millis(4500);
            let told = kept.until(until, result).await;
            assert_eq!(Instant::now() == until, waits, "{said}");
            assert_eq!(began.elapsed().is_zero(), !waits, "{said}");
            if let Ok(response) = told {
                assert!(!response.body().is_empty(), "{said}");
            }
            assert_eq!(kept.0.get(), 0);
        }
        // What is long is not kept, and its length not said.
        let mut long = answer(503, &"x".repeat(MAX_KEPT_BODY_BYTES + 1)).unwrap();
        let length = (MAX_KEPT_BODY_BYTES + 1).into();
        long.headers_mut().insert(CONTENT_LENGTH, length);
        let told = kept.until(Instant::now(), Ok(long)).await.unwrap();
        assert!(told.body().is_empty() && told.headers().is_empty());
        // Nor are more answers than there are places.
        kept.0.set(MAX_KEPT_BACK);
        let began = Instant::now();
        let late = began + Duration::from_secs(4);
        let told = kept.until(late, answer(503, "")).await;
        assert!(told.is_ok() && began.elapsed().is_zero());
    }

    /// Whether Airflow's client takes a response for what it says: its `ServerResponseError` knows no other form.
    fn is_airflows_form(response: &Response<Body>) -> bool {
        response.headers().get(CONTENT_TYPE).map(AsRef::as_ref) == Some(b"application/json")
    }

    #[tokio::test]
    async fn what_a_proxy_refuses_is_never_taken_for_a_variable_that_does_not_exist() {
        for code in ErrorCode::ALL {
            let refusal = tell(Err(ProxyError::new(*code, "no"))).unwrap_err();
            let response: Response<Body> = refusal.into_response(false);
            assert!(is_airflows_form(&response), "{code}");
            let status = response.status().as_u16();
            // Another try helps after these alone; after any other the client would try five times in vain.
            let passes = matches!(code.http_status().as_u16(), 408 | 421 | 429 | 502..=504);
            match passes {
                true => assert!((502..=504).contains(&status), "{code}"),
                false => assert_eq!(status, 403, "{code}"),
            }
        }
        for (said, status, expected) in [
            (Some("rate-limited"), 429, 503),
            (Some("wrong-destination"), 421, 503),
            (Some("no-route"), 404, 403),
            (Some("policy-denied"), 403, 403),
            (Some("backend-invalid"), 500, 403),
            (Some("loop-detected"), 508, 403),
            (Some("workload-unavailable"), 503, 503),
            // Of a proxy that knows more codes.
            (Some("of-tomorrow"), 418, 403),
            // Airflow's own word.
            (None, 429, 429),
            (None, 404, 404),
            (None, 500, 500),
        ] {
            let mut response = Response::new(Body::from("in plain words".to_owned()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, "text/plain".parse().unwrap());
            if let Some(said) = said {
                headers.insert(SIDEWIND_ERROR, said.parse().unwrap());
            }
            let told = tell(Ok(response)).unwrap();
            assert_eq!(told.status().as_u16(), expected, "{said:?} {status}");
            assert_eq!(is_airflows_form(&told), said.is_some(), "{said:?} {status}");
            let body = told.into_body().collect().await.unwrap().to_bytes();
            match said {
                Some(_) => assert!(body.starts_with(br#"{"detail":""#), "{said:?}"),
                None => assert_eq!(&body[..], b"in plain words"),
            }
        }
    }
}
