//! A service as one worker knows it: its endpoints with what has been measured of them, and its routes.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use http::HeaderMap;
use sidewind_api::v1;

use super::destination::Declared;
use crate::{
    balance::{
        self, Affinity, BalanceSettings, Balancer, EndpointDesc, HashSource, Pick, Plan, Selection,
        StickySettings, Tried,
    },
    config::Config,
    errors::{ErrorCode, ProxyError},
    exchange::{Exchange, Party},
    health::{HealthSettings, ServiceHealth},
    http::Body,
    limit::{Limits, ServiceLimits},
    retry::{self, HoldQueue, RetryBudget, RetryLayer, RetryPolicy},
    route::RouteTable,
};

#[derive(Debug)]
pub(crate) struct Service {
    name: Rc<str>,
    port: u32,
    declared: Cell<Declared>,
    http2: Cell<bool>,
    endpoints: Balancer,
    settings: RefCell<Rc<BalanceSettings>>,
    limits: RefCell<Option<Rc<ServiceLimits>>>,
    budget: Arc<RetryBudget>,
    queue: Rc<HoldQueue>,
    routes: RefCell<Routes>,
    /// What `routes` was read from.
    source: RefCell<(Option<v1::RouteTable>, Option<v1::RoutePolicy>)>,
}

impl Service {
    pub(crate) fn new(
        service: &v1::Service,
        config: &Config,
        health: Arc<ServiceHealth>,
        limits: &Limits,
    ) -> Self {
        let settings = BalanceSettings::of(service.traffic.as_ref(), &config.workload.zone);
        let endpoints = endpoints(service);
        Self {
            name: service.name.as_str().into(),
            port: service.port,
            declared: Cell::new(service.protocol().into()),
            http2: Cell::new(declares_http2(service)),
            endpoints: Balancer::new(health, &plan(service, &endpoints, &settings)),
            settings: RefCell::new(Rc::new(settings)),
            limits: RefCell::new(limits_of(service, limits)),
            budget: limits.budget(&service.name),
            queue: Rc::default(),
            routes: RefCell::new(Routes::read(service, config)),
            source: RefCell::new((service.routes.clone(), service.route.clone())),
        }
    }

    /// True for a newer state of this same service.
    pub(crate) fn is_same(&self, service: &v1::Service) -> bool {
        *self.name == *service.name && self.port == service.port
    }

    /// True where both are states of one port of one service, by whatever name each was reached.
    pub(crate) fn is_that_of(&self, other: &Self) -> bool {
        self.name == other.name && self.port == other.port
    }

    /// Takes over a newer state. What was measured of endpoints that are still there is kept.
    pub(crate) fn update(&self, service: &v1::Service, config: &Config, limits: &Limits) {
        *self.limits.borrow_mut() = limits_of(service, limits);
        self.declared.set(service.protocol().into());
        self.http2.set(declares_http2(service));
        let settings = BalanceSettings::of(service.traffic.as_ref(), &config.workload.zone);
        let endpoints = endpoints(service);
        self.endpoints.update(&plan(service, &endpoints, &settings));
        // One that has just come is another to go to.
        self.endpoints.wake_the_hopeless();
        *self.settings.borrow_mut() = Rc::new(settings);
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

    /// Whether the service is declared to speak HTTP/2, and nothing else.
    pub(crate) fn declares_http2(&self) -> bool {
        self.http2.get()
    }

    /// Where requests for it go.
    pub(crate) fn routes(&self) -> Routes {
        self.routes.borrow().clone()
    }

    /// Whether whatever comes for it now must fail: there is no endpoint, no route that leads elsewhere, and no request is
    /// held until there is one.
    pub(crate) fn leads_nowhere(&self) -> bool {
        let holds_nothing = match &*self.routes.borrow() {
            Routes::None(policy) => policy.hold.is_none(),
            Routes::Table(_) | Routes::Unreadable(_) => false,
        };
        holds_nothing && !self.has_untried(&Tried::default())
    }

    /// The layer that tries requests that are sent to this service again, as `policy` says.
    pub(crate) fn retry(&self, policy: Rc<RetryPolicy>) -> RetryLayer {
        RetryLayer::new(policy, Arc::clone(&self.budget), Rc::clone(&self.queue))
    }

    /// An endpoint for a connection of `source`, whom `address` tells apart, another than those `tried` where there is one.
    pub(crate) fn pick(
        &self,
        source: &Party,
        address: Option<IpAddr>,
        tried: &Tried,
    ) -> Option<Pick> {
        let settings = Rc::clone(&self.settings.borrow());
        self.endpoints.pick(&Selection {
            tried: Some(tried),
            hash: settings
                .hash
                .as_ref()
                .and_then(|it| hash_of(it, source, address, None)),
            // Nothing was sent yet, so that another endpoint is as good.
            repeatable: true,
            ..Selection::default()
        })
    }

    /// An endpoint for a try of a request, by what the service's policy and that of the request's route look at.
    ///
    /// While active checks find that none of them answers, one is still asked, since it may be back before the next check:
    /// but only where the request may go to another after that, or waits for none.
    pub(crate) fn pick_for(
        &self,
        request: &http::Request<Body>,
        exchange: &Exchange,
        tried: &Tried,
        policy: &RetryPolicy,
    ) -> Option<Chosen> {
        let settings = Rc::clone(&self.settings.borrow());
        let headers = request.headers();
        let hash = settings.hash.as_ref();
        let (source, address) = (exchange.source(), exchange.client_address());
        let hash = hash.and_then(|it| hash_of(it, source, address, Some(headers)));
        let sticky = policy.sticky.as_ref().or(settings.sticky.as_ref());
        let named = sticky.and_then(|sticky| Affinity::of_request(headers, sticky));
        let repeatable = retry::is_repeatable(request, policy);
        let holds = self.holds(policy);
        if holds && !repeatable {
            return None;
        }
        let pick = self.endpoints.pick(&Selection {
            tried: Some(tried),
            hash,
            affinity: named,
            repeatable,
        })?;
        if holds {
            pick.limit_chance();
        }
        let news = sticky.filter(|_| named != Some(pick.affinity()));
        Some(Chosen {
            repeatable,
            news: news.cloned(),
            pick,
        })
    }

    /// Whether requests under a policy wait, since active checks find that no endpoint answers.
    pub(crate) fn holds(&self, policy: &RetryPolicy) -> bool {
        policy.hold.is_some() && self.endpoints.is_dead()
    }

    /// Whether there is more than one endpoint that active checks have nothing against.
    pub(crate) fn has_choice(&self) -> bool {
        self.endpoints.has_choice()
    }

    /// Whether there is an endpoint that was not tried, and that active checks have nothing against.
    pub(crate) fn has_untried(&self, tried: &Tried) -> bool {
        self.endpoints.has_untried(tried)
    }

    /// What callers' proxies keep for it, if anything.
    pub(crate) fn limits(&self) -> Option<Rc<ServiceLimits>> {
        self.limits.borrow().clone()
    }

    /// Tells those who wait for an answer of endpoints that do not answer.
    pub(crate) fn wake_the_hopeless(&self) {
        self.endpoints.wake_the_hopeless();
    }

    pub(crate) fn no_endpoints(&self) -> ProxyError {
        let (name, port) = (&self.name, self.port);
        let why = match self.endpoints.is_dead() {
            true => "none of those that serve it answers its health checks",
            false => "no workload that serves it is connected",
        };
        ProxyError::new(
            ErrorCode::NoEndpoints,
            format_args!("The service {name} (port {port}) has no endpoint: {why}."),
        )
    }
}

fn declares_http2(service: &v1::Service) -> bool {
    matches!(service.protocol(), v1::Protocol::Http2 | v1::Protocol::Grpc)
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

/// An endpoint for one try of a request.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) pick: Pick,
    /// Whether the request may be sent to another when this one gives no answer.
    pub(crate) repeatable: bool,
    /// Set where the client is to be told its endpoint.
    news: Option<Arc<StickySettings>>,
}

impl Chosen {
    /// Tells the client, with a response, to name its endpoint from now on.
    pub(crate) fn tell(&self, response: &mut http::Response<Body>, secure: bool) {
        if let Some(sticky) = &self.news {
            let affinity = self.pick.affinity();
            affinity.tell(response.headers_mut(), sticky, secure);
        }
    }
}

/// What a policy hashes of a request, or of a connection that has no headers; none where it has nothing of the kind.
fn hash_of(
    what: &HashSource,
    source: &Party,
    address: Option<IpAddr>,
    headers: Option<&HeaderMap>,
) -> Option<u64> {
    Some(match what {
        HashSource::Header(name) => balance::hash(headers?.get(name)?.as_bytes()),
        HashSource::Cookie(name) => balance::hash(balance::cookie(headers?, name)?),
        HashSource::Identity => balance::hash(source.id.as_ref()?.as_str().as_bytes()),
        HashSource::Address => match address? {
            IpAddr::V4(ip) => balance::hash(&ip.octets()),
            IpAddr::V6(ip) => balance::hash(&ip.octets()),
        },
    })
}

fn limits_of(service: &v1::Service, limits: &Limits) -> Option<Rc<ServiceLimits>> {
    let policy = service.traffic.as_ref()?;
    let place = format!("outbound {} {}", service.name, service.port);
    limits.of(
        &place,
        &service.name,
        policy.bounds.as_ref(),
        &policy.rate_limits,
    )
}

fn plan<'a>(
    service: &'a v1::Service,
    endpoints: &'a [EndpointDesc],
    settings: &BalanceSettings,
) -> Plan<'a> {
    let policy = service.traffic.as_ref();
    Plan {
        name: &service.name,
        port: service.port,
        policy: policy.map_or("", |policy| &policy.name),
        endpoints,
        settings: settings.clone(),
        health: policy
            .map(|policy| HealthSettings::of(policy, declares_http2(service)))
            .unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u8) -> Party {
        Party {
            address: Some(([10, 0, 0, number], 40_000 + u16::from(number)).into()),
            id: format!("spiffe://sidewind.local/ns/airflow/sa/task-{number}")
                .parse()
                .ok(),
        }
    }

    fn address(source: &Party) -> Option<IpAddr> {
        source.address.map(|address| address.ip())
    }

    #[test]
    fn clients_are_told_apart_by_identity_and_address_and_requests_by_what_they_say() {
        let headers = HeaderMap::from_iter([
            (http::header::COOKIE, "key=a".parse().unwrap()),
            (http::HeaderName::from_static("x-key"), "a".parse().unwrap()),
        ]);
        for what in [HashSource::Identity, HashSource::Address] {
            let hashes: std::collections::HashSet<_> = (0..100)
                .map(|number| {
                    hash_of(&what, &source(number), address(&source(number)), None).unwrap()
                })
                .collect();
            assert_eq!(hashes.len(), 100, "{what:?}");
            // Another connection of the same client.
            let mut again = source(7);
            again.address = Some(([10, 0, 0, 7], 50_000).into());
            let of = |source: &Party| hash_of(&what, source, address(source), Some(&headers));
            assert_eq!(of(&again), of(&source(7)), "{what:?}");
            let by_nothing_else = hash_of(&what, &again, address(&again), None);
            assert_eq!(of(&again), by_nothing_else, "{what:?}");
            assert_eq!(of(&Party::default()), None, "{what:?}");
        }
        let by_header = HashSource::Header(http::HeaderName::from_static("x-key"));
        for what in [by_header, HashSource::Cookie("key".into())] {
            let of = |number| hash_of(&what, &source(number), None, Some(&headers));
            assert_eq!(of(1), of(2), "{what:?}");
            assert_eq!(of(1), Some(balance::hash(b"a")), "{what:?}");
            assert_eq!(hash_of(&what, &source(1), None, None), None, "{what:?}");
        }
    }
}
