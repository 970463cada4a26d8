//! Inbound HTTP: the way of one request to the workload.
//!
//! exchange (record, trace) → overload → clean → [`AuthorizeLayer`] → [`LimitLayer`] → [`Forward`]

use std::{
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use tower::{Layer, Service, ServiceExt};

use super::{
    Caller,
    authorize::{AuthorizeLayer, Gate},
    destination::{WorkloadPort, take_destination},
};
use crate::{
    airflow::{baggage, told},
    errors::ProxyError,
    exchange::{Exchange, Origin},
    http::{Body, headers::FORWARDED_CLIENT_CERT},
    limit::LimitLayer,
    telemetry::TaskContext,
    worker::Worker,
};

/// Serves the requests of one inbound connection, which share it.
#[derive(Debug)]
pub(crate) struct InboundHttp {
    pub(super) worker: Rc<Worker>,
    pub(super) caller: Caller,
    pub(super) gate: Gate,
    origin: Origin,
    /// Whether the caller is believed when it says which Airflow task a request comes from.
    believes_tasks: bool,
    /// The task that the caller's certificate names, if it is believed.
    task: Option<TaskContext>,
}

impl InboundHttp {
    pub(crate) fn new(worker: &Rc<Worker>, caller: Caller) -> Self {
        let believes_tasks = worker.believes_tasks_of(caller.id());
        Self {
            worker: Rc::clone(worker),
            gate: Gate::new(worker, caller.id()),
            origin: caller.origin(worker),
            believes_tasks,
            task: caller
                .id()
                .filter(|_| believes_tasks)
                .and_then(TaskContext::of_certificate),
            caller,
        }
    }

    /// Answers a request from a mesh peer, which names its destination in a header.
    pub(crate) async fn answer_peer(&self, mut request: Request<Body>) -> Response<Body> {
        let exchange = self.begin(&mut request);
        let destination = take_destination(request.headers_mut());
        let local = self.caller.local.ip();
        let port = destination.and_then(|(destination, http2)| {
            let port = self.worker.forwarding.for_peer(&destination, local)?;
            Ok((port, http2))
        });
        let result = match port {
            Ok((port, http2)) => self.forward(port, http2, request, &exchange).await,
            Err(error) => Err(error),
        };
        exchange.end(result)
    }

    /// Answers a request of a redirected plaintext connection, which was for `port`.
    pub(crate) async fn answer_outside(
        &self,
        port: WorkloadPort,
        http2: bool,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let exchange = self.begin(&mut request);
        let result = self.forward(port, http2, request, &exchange).await;
        exchange.end(result)
    }

    /// The task that a request or connection comes from, by what its headers say and the caller's certificate. The mesh's
    /// members of `baggage` are taken out.
    pub(super) fn take_task(&self, headers: &mut HeaderMap) -> Option<TaskContext> {
        let said = baggage::take(headers).filter(|_| self.believes_tasks);
        TaskContext::confirm(self.task.as_ref(), said)
    }

    fn begin(&self, request: &mut Request<Body>) -> Rc<Exchange> {
        Exchange::begin(&self.origin, request, self.worker.drain.active())
    }

    async fn forward(
        &self,
        port: WorkloadPort,
        http2: bool,
        mut request: Request<Body>,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<Body>, ProxyError> {
        if let Some(service) = self.worker.served(port.address.port()) {
            exchange.set_service(&service);
        }
        exchange.keep_admission(self.worker.overload.admit()?);
        // Takes out what the caller says of itself; what its certificate says is put in.
        exchange.clean(&mut request)?;
        if let Some(task) = self.take_task(request.headers_mut()) {
            baggage::put(request.headers_mut(), &task);
            told::tell(request.headers_mut(), &task);
            exchange.set_task(task);
        }
        if let Some(client_cert) = &self.caller.client_cert {
            let headers = request.headers_mut();
            headers.insert(FORWARDED_CLIENT_CERT, client_cert.clone());
        }
        let forward = Forward {
            worker: Rc::clone(&self.worker),
            exchange: Rc::clone(exchange),
            port,
            http2,
        };
        let authorize = AuthorizeLayer {
            gate: self.gate.clone(),
            port: port.address.port(),
        };
        // As the policy has them that the gate asks.
        let _ = self.worker.inbound_policy();
        match self.worker.limits_of(port.address.port()) {
            None => authorize.layer(forward).oneshot(request).await,
            limits => {
                let limit = LimitLayer {
                    limits,
                    exchange: Rc::clone(exchange),
                    route: None,
                };
                authorize.layer(limit.layer(forward)).oneshot(request).await
            }
        }
    }
}

/// Sends a request to the workload in the protocol that its client spoke.
#[derive(Clone, Debug)]
struct Forward {
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    port: WorkloadPort,
    http2: bool,
}

impl Service<Request<Body>> for Forward {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let worker = Rc::clone(&self.worker);
        let exchange = Rc::clone(&self.exchange);
        let (dial, http2) = (self.port.dial, self.http2);
        Box::pin(async move {
            exchange.sent_to(dial, None);
            let sending = pin!(worker.workload.send(dial, &exchange, request, http2));
            exchange.head_within(dial, sending).await
        })
    }
}
