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
use tower::{Layer, ServiceExt};

use super::{
    destination::{Destination, Resolved},
    forward::Forward,
    service::Service,
    tcp::outside_address,
};
use crate::{
    airflow::{ConnectionTask, ExecutionCall, baggage, outage},
    balance::{EndpointDesc, Outcome, Tried},
    errors::{ErrorCode, ProxyError},
    exchange::{Exchange, Origin, Party},
    http::Body,
    retry::{Progress, RetryError, RetryObserver, RetryPolicy},
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
        Exchange::begin(&self.origin, &mut request, active).end(Err(error))
    }

    /// Answers one request that is for `destination`.
    pub(crate) async fn respond(
        &self,
        destination: Rc<Destination>,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let exchange = Exchange::begin(&self.origin, &mut request, self.worker.drain.active());
        let result = self.forward(&exchange, &destination, request).await;
        exchange.end(result)
    }

    async fn forward(
        &self,
        exchange: &Rc<Exchange>,
        destination: &Destination,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let waits_until = self.worker.waits_until(exchange, &request);
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
        let call = self.worker.execution_api_call(service, &request);
        let Some(call) = call else {
            return self
                .send(exchange, destination, resolved, None, request)
                .await;
        };
        let overheard = self.worker.overhear(&call, exchange, &mut request);
        let result = self
            .send(exchange, destination, resolved, Some(&call), request)
            .await;
        let response = outage::tell(result)?;
        if !response.status().is_server_error() {
            exchange.note_if_saved();
        }
        Ok(match overheard {
            Some(overheard) => overheard.answered(response),
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
                let address = outside_address(&self.worker, destination).await?;
                let outside = Outside {
                    worker: Rc::clone(&self.worker),
                    exchange: Rc::clone(exchange),
                    endpoint: EndpointDesc::plain(address),
                    http2: self.http2,
                };
                let policy = call.and_then(|call| {
                    let until = self.worker.held_until(exchange)?;
                    Some(call.policy(&RetryPolicy::default(), until))
                });
                let Some(policy) = policy else {
                    return outside.oneshot(request).await;
                };
                let retry = self.worker.outside.retry(policy);
                let observer = Rc::clone(exchange) as Rc<dyn RetryObserver>;
                return retry
                    .observed(observer)
                    .layer(outside)
                    .oneshot(request)
                    .await;
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

/// Sends each try of a request to an address outside the mesh.
#[derive(Clone, Debug)]
struct Outside {
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    endpoint: EndpointDesc,
    http2: bool,
}

impl tower::Service<Request<Body>> for Outside {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let sent = this
                .endpoint
                .send(&this.worker, &this.exchange, request, this.http2);
            sent.await
        })
    }
}

/// Sends each try of a request to an endpoint of the service: the better of two, and another than the last.
#[derive(Clone, Debug)]
pub(super) struct Balance {
    pub(super) worker: Rc<Worker>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) service: Rc<Service>,
    pub(super) http2: bool,
    pub(super) tried: Rc<Tried>,
    /// Whether the client came over TLS.
    pub(super) secure: bool,
    /// What the request's route says.
    pub(super) policy: Rc<RetryPolicy>,
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
            let (tried, policy) = (&this.tried, &this.policy);
            let chosen = (this.service).pick_for(&request, &this.exchange, tried, policy);
            let Some(chosen) = chosen else {
                return Err(this.service.no_endpoints());
            };
            let pick = &chosen.pick;
            let endpoint = pick.desc();
            this.tried.add(endpoint.address);
            // How long an answer is waited for.
            pick.wait_for(policy.try_timeout.or(policy.request_timeout));
            let sent = endpoint.send(&this.worker, &this.exchange, request, this.http2);
            let mut result = if chosen.repeatable {
                tokio::select! {
                    biased;
                    result = sent => result,
                    () = pick.died() => Err(died(endpoint.address)),
                }
            } else {
                sent.await
            };
            if let Some(outcome) = outcome(&result) {
                pick.finish(outcome);
            }
            if let Ok(response) = &mut result {
                chosen.tell(response, this.secure);
            }
            result
        })
    }
}

/// What ends a try whose endpoint has stopped answering.
fn died(endpoint: SocketAddr) -> ProxyError {
    ProxyError::new(
        ErrorCode::UpstreamReset,
        format_args!(
            "{endpoint} stopped answering its health checks before it answered the request."
        ),
    )
}

/// What the outcome of a request says of its endpoint; none where it is about this proxy.
fn outcome(result: &Result<Response<Body>, ProxyError>) -> Option<Outcome> {
    Some(match result {
        Ok(response) if matches!(response.status().as_u16(), 502..=504) => Outcome::Failure,
        Ok(_) => Outcome::Success,
        Err(error) => match error.code() {
            ErrorCode::ConnectFailed
            | ErrorCode::ConnectTimeout
            | ErrorCode::TlsFailed
            | ErrorCode::WrongIdentity
            | ErrorCode::PeerBanned => Outcome::ConnectFailed,
            ErrorCode::IdentityUnavailable
            | ErrorCode::IdentityExpired
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
