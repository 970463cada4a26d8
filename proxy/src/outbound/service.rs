//! A service as one worker knows it: its endpoints with what has been measured of them, its timeouts and retries.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use sidewind_api::v1;

use super::destination::Declared;
use crate::{
    balance::{Balancer, EndpointDesc, Pick},
    config::Config,
    errors::{ErrorCode, ProxyError},
    retry::{RetryBudget, RetryLayer, RetryPolicy},
};

#[derive(Debug)]
pub(crate) struct Service {
    name: Rc<str>,
    port: u32,
    declared: Cell<Declared>,
    endpoints: Balancer,
    budget: Rc<RetryBudget>,
    policy: RefCell<Rc<RetryPolicy>>,
}

impl Service {
    pub(crate) fn new(service: &v1::Service, config: &Config) -> Self {
        Self {
            name: service.name.as_str().into(),
            port: service.port,
            declared: Cell::new(service.protocol().into()),
            endpoints: Balancer::new(&endpoints(service)),
            budget: Rc::default(),
            policy: RefCell::new(Rc::new(policy(service.route.as_ref(), config))),
        }
    }

    /// True for a newer state of this same service.
    pub(crate) fn is_same(&self, service: &v1::Service) -> bool {
        *self.name == *service.name && self.port == service.port
    }

    /// Takes over a newer state. What was measured of endpoints that are still there is kept.
    pub(crate) fn update(&self, service: &v1::Service, config: &Config) {
        self.declared.set(service.protocol().into());
        self.endpoints.update(&endpoints(service));
        *self.policy.borrow_mut() = Rc::new(policy(service.route.as_ref(), config));
    }

    pub(crate) fn name(&self) -> &Rc<str> {
        &self.name
    }

    pub(crate) fn declared(&self) -> Declared {
        self.declared.get()
    }

    /// The layer that tries this service's requests again.
    pub(crate) fn retry(&self) -> RetryLayer {
        RetryLayer::new(Rc::clone(&self.policy.borrow()), Rc::clone(&self.budget))
    }

    /// An endpoint for the next try, another than `tried` where there is one.
    pub(crate) fn pick(&self, tried: Option<SocketAddr>) -> Option<Pick> {
        self.endpoints.pick(tried)
    }

    pub(crate) fn no_endpoints(&self) -> ProxyError {
        let (name, port) = (&self.name, self.port);
        ProxyError::new(
            ErrorCode::NoEndpoints,
            format_args!(
                "The service {name} (port {port}) has no endpoint: no workload that serves it is connected."
            ),
        )
    }
}

/// What a route says, and what the configuration says where it does not.
fn policy(route: Option<&v1::RoutePolicy>, config: &Config) -> RetryPolicy {
    let defaults = &config.traffic;
    let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
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
        set.retry_codes = defaults
            .retry_codes
            .iter()
            .copied()
            .map(u32::from)
            .collect();
    }
    RetryPolicy::from(&route)
}

/// The endpoints that make sense. Above all, one with a mesh port and no readable identity is left out, and never
/// taken for a plaintext one.
fn endpoints(service: &v1::Service) -> Vec<EndpointDesc> {
    let readable = |endpoint| {
        EndpointDesc::try_from(endpoint)
            .inspect_err(|error| {
                tracing::warn!(service = service.name, %error, "an endpoint is left out");
            })
            .ok()
    };
    service.endpoints.iter().filter_map(readable).collect()
}
