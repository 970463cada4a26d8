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

use super::{
    destination::{Destination, Resolved},
    forward::Forward,
    service::Service,
    tcp::outside_address,
};
use crate::{
    airflow::{ConnectionTask, baggage},
    balance::{EndpointDesc, Outcome, Tried},
    errors::{ErrorCode, ProxyError},
    exchange::{Exchange, Origin, Party},
    http::Body,
    retry::{Progress, RetryError, RetryPolicy},
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
        exchange.keep_admission(self.worker.overload.admit()?);
        exchange.clean(&mut request)?;
        // What a client says of its task is not believed; what is known of it goes to peers.
        baggage::take(request.headers_mut());
        let limit = self.worker.config.airflow.lookup_timeout;
        let task = exchange.task();
        task.within(limit).await;
        if let Some(parent) = task.trace_parent() {
            exchange.continue_trace(parent, request.headers_mut());
        }
        let resolved = destination.resolve(&self.worker, READY_WAIT).await?;
        let service = match &resolved {
            Resolved::Service(service) => Some(&**service.name()),
            Resolved::Outside => None,
        };
        let call = self.worker.execution_api_call(service, &request);
        let overheard = call.and_then(|call| self.worker.overhear(&call, exchange, &mut request));
        let response = self.send(exchange, destination, resolved, request).await?;
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
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let service = match resolved {
            Resolved::Service(service) => service,
            Resolved::Outside => {
                let address = outside_address(&self.worker, destination).await?;
                let endpoint = EndpointDesc::plain(address);
                let worker = &self.worker;
                return endpoint.send(worker, exchange, request, self.http2).await;
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
        };
        forward.by_service(&service, request).await
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
