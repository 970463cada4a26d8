//! A service as one worker knows it: its endpoints with what has been measured of them, and its routes.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
};

use sidewind_api::v1;

use super::destination::Declared;
use crate::{
    balance::{Balancer, EndpointDesc, Pick},
    config::Config,
    errors::{ErrorCode, ProxyError},
    retry::{HoldQueue, RetryBudget, RetryLayer, RetryPolicy},
    route::RouteTable,
};

#[derive(Debug)]
pub(crate) struct Service {
    name: Rc<str>,
    port: u32,
    declared: Cell<Declared>,
    endpoints: Balancer,
    budget: Rc<RetryBudget>,
    queue: Rc<HoldQueue>,
    routes: RefCell<Routes>,
    /// What `routes` was read from.
    source: RefCell<(Option<v1::RouteTable>, Option<v1::RoutePolicy>)>,
}

impl Service {
    pub(crate) fn new(service: &v1::Service, config: &Config) -> Self {
        Self {
            name: service.name.as_str().into(),
            port: service.port,
            declared: Cell::new(service.protocol().into()),
            endpoints: Balancer::new(&endpoints(service)),
            budget: Rc::default(),
            queue: Rc::default(),
            routes: RefCell::new(Routes::read(service, config)),
            source: RefCell::new((service.routes.clone(), service.route.clone())),
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
        self.update_routes(service, config);
        self.queue.release();
    }

    /// Endpoints change often and routes seldom. A new version that cannot be read does not replace one that can.
    fn update_routes(&self, service: &v1::Service, config: &Config) {
        let mut source = self.source.borrow_mut();
        if source.0 == service.routes && source.1 == service.route {
            return;
        }
        *source = (service.routes.clone(), service.route.clone());
        let mut routes = self.routes.borrow_mut();
        match Routes::read(service, config) {
            Routes::Unreadable(_) if !matches!(*routes, Routes::Unreadable(_)) => {}
            new => *routes = new,
        }
    }

    pub(crate) fn name(&self) -> &Rc<str> {
        &self.name
    }

    pub(crate) fn declared(&self) -> Declared {
        self.declared.get()
    }

    /// Where requests for it go.
    pub(crate) fn routes(&self) -> Routes {
        self.routes.borrow().clone()
    }

    /// The layer that tries requests that are sent to this service again, as `policy` says.
    pub(crate) fn retry(&self, policy: Rc<RetryPolicy>) -> RetryLayer {
        RetryLayer::new(policy, Rc::clone(&self.budget), Rc::clone(&self.queue))
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

/// Where a service's requests go.
#[derive(Clone, Debug)]
pub(crate) enum Routes {
    /// To the service itself, by this policy.
    None(Rc<RetryPolicy>),
    /// Where the rules say.
    Table(Rc<RouteTable>),
    /// Nowhere: the rules cannot be read.
    Unreadable(Rc<str>),
}

impl Routes {
    fn read(service: &v1::Service, config: &Config) -> Self {
        let policy = |route: Option<&_>| RetryPolicy::new(route, &config.traffic);
        let Some(table) = &service.routes else {
            return Self::None(Rc::new(policy(service.route.as_ref())));
        };
        match RouteTable::compile(table, &policy) {
            Ok(table) => Self::Table(Rc::new(table)),
            Err(error) => {
                let error = error.to_string();
                tracing::error!(service = service.name, error, "a route cannot be read");
                Self::Unreadable(error.into())
            }
        }
    }
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
