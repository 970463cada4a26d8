//! Whether the caller may do what it asks for.

use std::{
    cell::RefCell,
    future::{Ready, ready},
    rc::Rc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Method, Request, Response};
use sidewind_identity::SpiffeId;
use tower::{Layer, Service};

use crate::{
    errors::{ErrorCode, ProxyError},
    http::Body,
    policy::{CallerPolicy, Decision, Plaintext},
    worker::Worker,
};

/// Asks the policy in force, so that a change holds for open connections too. What holds for the caller on a port
/// is looked up once, and again when the policy has changed.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    worker: Rc<Worker>,
    caller: Option<SpiffeId>,
    known: Rc<RefCell<Option<(u16, CallerPolicy)>>>,
}

impl Gate {
    /// The gate of one connection.
    pub(crate) fn new(worker: &Rc<Worker>, caller: Option<&SpiffeId>) -> Self {
        Self {
            worker: Rc::clone(worker),
            caller: caller.cloned(),
            known: Rc::default(),
        }
    }

    /// Whether the caller may open a connection for opaque bytes to a port of the workload.
    pub(crate) fn connection(&self, port: u16) -> Result<(), ProxyError> {
        let policy = self.caller_policy(port)?;
        self.outcome(port, policy.authorize_connection())
    }

    /// Whether the caller may send a request to a port of the workload.
    pub(crate) fn request(&self, port: u16, method: &Method, path: &str) -> Result<(), ProxyError> {
        let policy = self.caller_policy(port)?;
        self.outcome(port, policy.authorize_request(method, path))
    }

    /// Whether there is any request that the caller may send to a port of the workload.
    pub(crate) fn any_request(&self, port: u16) -> Result<(), ProxyError> {
        let policy = self.caller_policy(port)?;
        self.outcome(port, policy.authorize_any_request())
    }

    fn caller_policy(&self, port: u16) -> Result<CallerPolicy, ProxyError> {
        let policy = self.worker.inbound_policy()?;
        if policy.plaintext() == Plaintext::Strict && self.caller.is_none() {
            return Err(ProxyError::new(
                ErrorCode::PlaintextRefused,
                format_args!(
                    "Port {port} of this workload takes callers with a mesh identity only, and this connection is plaintext."
                ),
            ));
        }
        let mut known = self.known.borrow_mut();
        if let Some((of_port, caller)) = &*known
            && *of_port == port
            && caller.is_of(&policy)
        {
            return Ok(caller.clone());
        }
        let caller = policy.for_caller(self.caller.as_ref(), port);
        *known = Some((port, caller.clone()));
        Ok(caller)
    }

    fn outcome(&self, port: u16, decision: Decision) -> Result<(), ProxyError> {
        let Decision::Deny(denial) = decision else {
            return Ok(());
        };
        let message = match &self.caller {
            Some(caller) => format!(
                "No policy lets {caller} do this on port {port} of this workload ({denial})."
            ),
            None => format!(
                "No policy lets a caller without a mesh identity do this on port {port} of this workload ({denial})."
            ),
        };
        Err(ProxyError::new(ErrorCode::PolicyDenied, message))
    }
}

/// Refuses requests that the gate does not let through.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizeLayer {
    pub(crate) gate: Gate,
    pub(crate) port: u16,
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            inner,
            gate: self.gate.clone(),
            port: self.port,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Authorize<S> {
    inner: S,
    gate: Gate,
    port: u16,
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Either<S::Future, Ready<Result<Response<Body>, ProxyError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let allowed = self
            .gate
            .request(self.port, request.method(), request.uri().path());
        match allowed {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}
