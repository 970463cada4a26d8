//! Outbound HTTP: the way of one request to a service.
//!
//! exchange (record, trace) → clean → [`Forward`]: route → retry → [`Balance`] → endpoint

use std::{
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::Instant;

use super::{
    destination::{Destination, Resolved},
    forward::Forward,
    outside::{Outside, outside_addresses},
    service::Service,
};
use crate::{
    airflow::{ConnectionTask, ExecutionCall, baggage, outage},
    balance::{Outcome, Pick, Tried},
    errors::{ErrorCode, ProxyError},
    exchange::{Exchange, Origin, Party},
    http::Body,
    retry::{
        Others, Progress, ReplayBuffer, RetryError, RetryPolicy, UNAVAILABLE, grpc_status,
        said_by_proxy,
    },
    route::Front,
    telemetry::Direction,
    worker::{READY_WAIT, Worker},
};

/// Serves the requests of one connection of the workload.
#[derive(Clone, Debug)]
pub(crate) struct OutboundHttp {
    worker: Rc<Worker>,
    origin: Origin,
    http2: bool,
}

impl OutboundHttp {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        client: SocketAddr,
        http2: bool,
        task: ConnectionTask,
    ) -> Self {
        let source = Party {
            address: Some(client),
            id: worker.identity().ok().map(|identity| identity.id.clone()),
        };
        Self {
            worker: Rc::clone(worker),
            origin: Origin {
                task,
                ..Origin::new(worker, Direction::Outbound, source)
            },
            http2,
        }
    }

    /// Answers a request that is refused before its destination is known.
    pub(crate) fn refuse(&self, mut request: Request<Body>, error: ProxyError) -> Response<Body> {
        let active = self.worker.drain.active();
        let exchange = Exchange::begin(&self.origin, &mut request, active);
        exchange.end(match ExecutionCall::of(&request) {
            Some(_) => outage::tell(Err(error)),
            None => Err(error),
        })
    }

    /// Answers one request that is for `destination`.
    pub(crate) async fn respond(
        &self,
        destination: Rc<Destination>,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let exchange = Exchange::begin(&self.origin, &mut request, self.worker.drain.active());
        let Some(call) = ExecutionCall::of(&request) else {
            let result = self.forward(&exchange, &destination, None, request).await;
            return exchange.end(result);
        };
        let until = self.worker.held_until(&exchange);
        let call = Some((&call, until));
        let result = self.forward(&exchange, &destination, call, request).await;
        let mut result = outage::tell(result);
        if let Some(until) = until {
            result = self.worker.kept_back.until(until, result).await;
        }
        if let Ok(response) = &result
            && !response.status().is_server_error()
        {
            exchange.note_if_saved();
        }
        exchange.end(result)
    }

    /// Sends a request. Of one to Airflow's Execution API it is said until when it is held, if it is.
    async fn forward(
        &self,
        exchange: &Rc<Exchange>,
        destination: &Destination,
        call: Option<(&ExecutionCall, Option<Instant>)>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let waits_until = call.and_then(|(_, until)| until);
        let call = call.map(|(call, _)| call);
        let overload = &self.worker.overload;
        exchange.keep_admission(match waits_until {
            Some(until) => overload.admit_by(until).await?,
            None => overload.admit()?,
        });
        exchange.clean(&mut request)?;
        // What a client says of its task is not believed; what is known of it goes to peers.
        baggage::take(request.headers_mut());
        let limit = self.worker.config.airflow.lookup_timeout;
        let task = exchange.task();
        task.within(limit).await;
        if let Some(parent) = task.trace_parent() {
            exchange.continue_trace(parent, request.headers_mut());
        }
        let wait = waits_until.map_or(READY_WAIT, |until| {
            until.saturating_duration_since(Instant::now())
        });
        let resolved = destination.resolve(&self.worker, wait).await?;
        let service = match &resolved {
            Resolved::Service(service) => Some(&**service.name()),
            Resolved::Outside => None,
        };
        let overheard =
            call.and_then(|call| (self.worker).overhear(call, service, exchange, &mut request));
        let sent = self.send(exchange, destination, resolved, call, request);
        let response = sent.await?;
        Ok(match overheard {
            Some(overheard) => overheard.answered(response, self.worker.answered_by(exchange)),
            None => response,
        })
    }

    async fn send(
        &self,
        exchange: &Rc<Exchange>,
        destination: &Destination,
        resolved: Resolved,
        call: Option<&ExecutionCall>,
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let service = match resolved {
            Resolved::Service(service) => service,
            Resolved::Outside => {
                let addresses = outside_addresses(&self.worker, destination).await?;
                let outside = Outside {
                    worker: Rc::clone(&self.worker),
                    exchange: Rc::clone(exchange),
                    addresses: Rc::new(addresses.into()),
                    http2: self.http2,
                };
                let policy = call.and_then(|call| {
                    let until = self.worker.held_until(exchange)?;
                    Some(call.policy(&RetryPolicy::default(), until, None))
                });
                return outside.send(policy, request).await;
            }
        };
        let forward = Forward {
            worker: &self.worker,
            origin: &self.origin,
            exchange,
            front: Front {
                tls: false,
                port: destination.target().port(),
            },
            http2: self.http2,
            call,
        };
        forward.by_service(&service, request).await
    }
}

/// The endpoints of a service for one request.
#[derive(Debug)]
pub(super) struct Among {
    pub(super) service: Rc<Service>,
    pub(super) tried: Tried,
}

impl Others for Among {
    fn are_left(&self) -> bool {
        self.service.has_untried(&self.tried)
    }
}

/// Sends each try of a request to an endpoint of the service: the better of two, and another than the last.
#[derive(Clone, Debug)]
pub(super) struct Balance {
    pub(super) worker: Rc<Worker>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) among: Rc<Among>,
    pub(super) http2: bool,
    /// Whether the client came over TLS.
    pub(super) secure: bool,
    /// What the request's route says.
    pub(super) policy: Rc<RetryPolicy>,
    /// When the request ends, whatever has come of it.
    pub(super) ends: Option<Instant>,
}

impl tower::Service<Request<Body>> for Balance {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let Among { service, tried } = &*this.among;
            let policy = &this.policy;
            let chosen = service.pick_for(&request, &this.exchange, tried, policy);
            let Some(chosen) = chosen else {
                return Err(service.no_endpoints());
            };
            let pick = &chosen.pick;
            let endpoint = pick.desc();
            tried.add(endpoint.address);
            pick.wait_for(patience(policy, this.ends, Instant::now()));
            let waiting = Waiting::of(pick, request.body());
            let sent = endpoint.send(&this.worker, &this.exchange, request, this.http2);
            let mut result = if chosen.repeatable {
                tokio::select! {
                    biased;
                    result = sent => result,
                    // Under a policy that holds requests it is one of them from here on.
                    () = pick.died() => Err(match service.holds(policy) {
                        true => service.no_endpoints(),
                        false => died(endpoint.address),
                    }),
                }
            } else {
                sent.await
            };
            drop(waiting);
            match outcome(&result, this.exchange.is_grpc()) {
                Some(outcome) => pick.finish(outcome),
                // However long it is held from here on.
                None => pick.wait_for(None),
            }
            if let Ok(response) = &mut result {
                chosen.tell(response, this.secure);
                // The endpoint has it in hand until the response's end.
                this.exchange.hold_pick(chosen.pick);
            }
            result
        })
    }
}

/// What ends a try whose endpoint has stopped answering.
fn died(endpoint: SocketAddr) -> ProxyError {
    ProxyError::new(
        ErrorCode::UpstreamReset,
        format_args!("{endpoint} did not answer the request, nor its health checks."),
    )
}

/// An endpoint that is waited for. Given up meanwhile, it is not blamed where the client was the one to go on: its request
/// had not come whole.
struct Waiting<'a> {
    pick: &'a Pick,
    body: Option<ReplayBuffer>,
}

impl<'a> Waiting<'a> {
    fn of(pick: &'a Pick, body: &Body) -> Self {
        let body = match body {
            Body::Replay(body) => Some(body.buffer()),
            _ => None,
        };
        Self { pick, body }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.body.as_ref().is_some_and(ReplayBuffer::awaits_client) {
            self.pick.wait_for(None);
        }
    }
}

/// What is left to an endpoint of a client that waits for a second, whose answer has to come a tenth of it earlier. Less
/// says more about the client than about an endpoint that misses it.
const LEAST_TELLING: Duration = Duration::from_millis(850);

/// By how much timers may be late for what they end to have lasted as long as it was meant to.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// How long an answer of one endpoint is waited for: dropped after that, the endpoint has failed. Where the request itself
/// `ends` meanwhile, that is only when enough of its time was left to this one.
fn patience(policy: &RetryPolicy, ends: Option<Instant>, now: Instant) -> Option<Duration> {
    let least = match policy.request_timeout {
        Some(limit) => LEAST_TELLING.min(limit / 2),
        None => LEAST_TELLING,
    };
    let left = ends.map(|ends| ends.saturating_duration_since(now));
    let left = left.filter(|left| *left >= least);
    let limits = [policy.try_timeout, policy.hedge, left];
    let limit = limits.into_iter().flatten().min()?;
    Some(limit.saturating_sub(TIMER_STEP))
}

/// What the outcome of a request says of its endpoint; none where it is about a proxy.
fn outcome(result: &Result<Response<Body>, ProxyError>, grpc: bool) -> Option<Outcome> {
    Some(match result {
        // The endpoint's proxy speaks for itself.
        Ok(response) if said_by_proxy(response) == Some(ErrorCode::Overloaded) => return None,
        Ok(response) if matches!(response.status().as_u16(), 502..=504) => Outcome::Failure,
        Ok(response) if grpc && grpc_status(response) == Some(UNAVAILABLE) => Outcome::Failure,
        Ok(_) => Outcome::Success,
        Err(error) => match error.code() {
            ErrorCode::ConnectFailed
            | ErrorCode::ConnectTimeout
            | ErrorCode::TlsFailed
            | ErrorCode::WrongIdentity
            | ErrorCode::PeerBanned => Outcome::ConnectFailed,
            ErrorCode::IdentityUnavailable
            | ErrorCode::IdentityExpired
            | ErrorCode::TaskIdentityUnavailable
            | ErrorCode::TaskIdentityRefused
            | ErrorCode::Overloaded
            | ErrorCode::BadRequest
            | ErrorCode::ClientTimeout
            | ErrorCode::ClientClosed => return None,
            _ => Outcome::Failure,
        },
    })
}

impl RetryError for ProxyError {
    fn progress(&self) -> Progress {
        match ProxyError::code(self) {
            ErrorCode::ConnectFailed
            | ErrorCode::ConnectTimeout
            | ErrorCode::TlsFailed
            | ErrorCode::WrongIdentity
            | ErrorCode::PeerBanned
            | ErrorCode::WorkloadUnavailable => Progress::Unsent,
            ErrorCode::UpstreamReset | ErrorCode::UpstreamStalled | ErrorCode::RequestTimeout => {
                Progress::Sent
            }
            _ => Progress::Final,
        }
    }

    fn is_down(&self) -> bool {
        matches!(
            ProxyError::code(self),
            ErrorCode::NoEndpoints
                | ErrorCode::ConnectFailed
                | ErrorCode::ConnectTimeout
                | ErrorCode::WorkloadUnavailable
        )
    }

    fn may_pass(&self) -> bool {
        ProxyError::code(self).may_pass()
    }

    fn code(&self) -> Option<ErrorCode> {
        Some(ProxyError::code(self))
    }

    fn try_timeout(limit: Duration) -> Self {
        let message = format_args!("No response came within {limit:?}, the limit of one try.");
        Self::new(ErrorCode::RequestTimeout, message)
    }

    fn request_timeout(limit: Duration) -> Self {
        let message = format_args!("No response came within {limit:?}, the limit of the request.");
        // What is over cannot be tried again, so that this error ends the request.
        Self::new(ErrorCode::RequestTimeout, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_failure_of_its_endpoint_where_it_says_that_it_cannot() {
        let answer = |status, field: Option<(&'static str, &str)>, body: Body| {
            let mut response = Response::builder().status(status);
            if let Some((name, value)) = field {
                response = response.header(name, value);
            }
            Ok(response.body(body).unwrap())
        };
        let (success, failure) = (Some(Outcome::Success), Some(Outcome::Failure));
        let unavailable = Some(("grpc-status", "14"));
        for (result, grpc, expected) in [
            (answer(200, None, Body::Empty), false, success),
            (answer(500, None, Body::Empty), false, success),
            (answer(503, None, Body::Empty), false, failure),
            (answer(200, unavailable, Body::Empty), true, failure),
            (
                answer(200, Some(("grpc-status", "5")), Body::Empty),
                true,
                success,
            ),
            // It is no gRPC, or its call has begun.
            (answer(200, unavailable, Body::Empty), false, success),
            (
                answer(200, unavailable, Body::from("message")),
                true,
                success,
            ),
            // Its proxy is too busy, which says nothing of it.
            (
                answer(503, Some(("sidewind-error", "overloaded")), Body::Empty),
                false,
                None,
            ),
            (
                answer(
                    503,
                    Some(("sidewind-error", "workload-unavailable")),
                    Body::Empty,
                ),
                false,
                failure,
            ),
        ] {
            assert_eq!(outcome(&result, grpc), expected, "{result:?} {grpc}");
        }
    }

    #[test]
    fn an_endpoint_has_failed_that_outlasts_the_earliest_of_all_limits() {
        let ms = Duration::from_millis;
        let now = Instant::now();
        // In milliseconds: of a try, of the request, what is left of it, and of that what says something.
        for (of_try, of_request, left, expected) in [
            (None, None, None, None),
            (Some(1000), Some(5000), Some(4990), Some(999)),
            (Some(5000), None, Some(2900), Some(2899)),
            // A client that waits for a second, and one that waits for less.
            (None, None, Some(899), Some(898)),
            (None, None, Some(810), None),
            // The route says how long an answer may take, but the last of several tries has not all of that.
            (None, Some(300), Some(299), Some(298)),
            (None, Some(300), Some(100), None),
            (Some(200), Some(300), Some(100), Some(199)),
        ] {
            let policy = RetryPolicy {
                try_timeout: of_try.map(ms),
                request_timeout: of_request.map(ms),
                ..RetryPolicy::default()
            };
            let found = patience(&policy, left.map(|left| now + ms(left)), now);
            assert_eq!(
                found,
                expected.map(ms),
                "{of_try:?} {of_request:?} {left:?}"
            );
        }
    }
}
