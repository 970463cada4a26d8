//! `HTTPRoute`, `GRPCRoute` and `RouteExtension`: where the requests of services and of gateways' listeners go.
//!
//! - `http_route`, `grpc_route`: one kind each, from its text to a [`Route`]
//! - `parts`: what the two kinds share; `filters`: what rules do to requests
//! - `session`: which requests go to one endpoint
//! - `extension`: what the Gateway API has no field for
//! - [`Routes`]: which routes are attached where, in the order that the Gateway API prescribes
//!
//! The documents are read by types of our own: those of the `gateway-api` crate pass over unknown fields, and know no
//! line of what is wrong.

mod extension;
mod filters;
mod grpc_route;
mod http_route;
mod parts;
mod session;

pub(super) use extension::read as read_extension;
pub(super) use grpc_route::read as read_grpc;
pub(super) use http_route::read as read_http;

use super::ConfigError;
use super::error::Place;
use super::gateway::{Attachment, Gateway, GatewayParent, attach};
use extension::Extension;
use sidewind_api::{ServiceName, v1};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A route, checked by itself.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// `HTTPRoute` or `GRPCRoute`.
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    /// When its cluster has it from, by Kubernetes' own writing, which sorts like time; none in files.
    pub(super) created: Option<String>,
    pub(super) name: String,
    pub(super) parents: Vec<Parent>,
    pub(super) rules: Vec<Rule>,
}

/// What a route is attached to.
#[derive(Debug, Clone)]
pub(super) enum Parent {
    Service {
        service: ServiceName,
        /// None: every port of it.
        port: Option<u16>,
        at: Place,
    },
    Gateway(GatewayParent),
}

/// A rule as it goes to proxies, and what is still to be filled in.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// With its backends named, the parent's own service too.
    pub(super) api: v1::RouteRule,
    extension: Option<ExtensionReference>,
}

#[derive(Debug, Clone)]
struct ExtensionReference {
    name: String,
    at: Place,
}

/// Every route, by what it is attached to.
#[derive(Debug, Default)]
pub(super) struct Routes {
    routes: Vec<Arc<Route>>,
    by_service: HashMap<ServiceName, Vec<Attached>>,
}

/// A route of a service: of one port of it, or of all.
type Attached = (Option<u16>, Arc<Route>);

/// The routes and extensions of a draft.
#[derive(Debug, Default)]
pub(super) struct RouteDraft {
    routes: Vec<Route>,
    extensions: HashMap<(String, String), Extension>,
}

impl RouteDraft {
    fn add(&mut self, route: Route) {
        self.routes.push(route);
    }

    fn add_extension(&mut self, namespace: String, name: String, extension: Extension) {
        self.extensions.insert((namespace, name), extension);
    }

    /// What proxies call routes, and those of their rules that have a name.
    pub(super) fn names(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for route in &self.routes {
            let name = format!("{}/{}", route.namespace, route.name);
            let named = route.rules.iter().filter(|rule| !rule.api.name.is_empty());
            names.extend(named.map(|rule| format!("{name}/{}", rule.api.name)));
            names.insert(name);
        }
        names
    }

    /// Fills in extensions, and says what is wrong with routes and what they name together.
    pub(super) fn complete(&mut self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for route in &mut self.routes {
            for rule in &mut route.rules {
                let Some(reference) = &rule.extension else {
                    continue;
                };
                let key = (route.namespace.clone(), reference.name.clone());
                let applied = match self.extensions.get(&key) {
                    Some(extension) => extension.apply(&mut rule.api),
                    None => Err(format!(
                        "names RouteExtension {}/{}, which no document describes",
                        key.0, key.1
                    )),
                };
                errors.extend(applied.err().map(|message| reference.at.error(message)));
            }
        }
        self.check_kinds(&mut errors);
        self.sort();
        errors
    }

    /// Routes of both kinds at one service's port would leave open which one a request is for.
    fn check_kinds(&self, errors: &mut Vec<ConfigError>) {
        let attached = |kind| {
            let routes = self.routes.iter().filter(move |route| route.kind == kind);
            routes.flat_map(|route| route.parents.iter().map(move |parent| (route, parent)))
        };
        let grpc: Vec<_> = attached("GRPCRoute").collect();
        for (_, parent) in attached("HTTPRoute") {
            let Parent::Service { service, port, at } = parent else {
                continue;
            };
            let clash = grpc.iter().find(|(_, other)| {
                matches!(other, Parent::Service { service: named, port: other, .. }
                    if named == service && (port == other || port.is_none() || other.is_none()))
            });
            if let Some((other, _)) = clash {
                let message = format!(
                    "has GRPCRoute {}/{} attached already; one service's port takes routes of one kind",
                    other.namespace, other.name
                );
                errors.push(at.error(message));
            }
        }
    }

    /// Puts routes in the order of their age, those of files first, and then of their names (Gateway API,
    /// HTTPRouteRule.matches).
    fn sort(&mut self) {
        self.routes.sort_by_cached_key(|route| {
            let name = format!("{}/{}", route.namespace, route.name);
            (route.created.clone(), name)
        });
    }

    /// Attaches routes to the listeners that they name; says which cannot be.
    pub(super) fn attach_all(&self, gateways: &mut [Gateway]) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for route in &self.routes {
            for parent in &route.parents {
                let Parent::Gateway(parent) = parent else {
                    continue;
                };
                match attach(
                    gateways,
                    parent,
                    route.kind,
                    &route.namespace,
                    route.hostnames(),
                ) {
                    Ok(attachments) => attachments
                        .into_iter()
                        .for_each(|place| route.attach_to(gateways, place)),
                    Err(error) => errors.push(error),
                }
            }
        }
        errors
    }

    pub(super) fn finish(self) -> Routes {
        let routes: Vec<_> = self.routes.into_iter().map(Arc::new).collect();
        let mut by_service: HashMap<ServiceName, Vec<_>> = HashMap::new();
        for route in &routes {
            for parent in &route.parents {
                if let Parent::Service { service, port, .. } = parent {
                    let attached = by_service.entry(service.clone()).or_default();
                    attached.push((*port, Arc::clone(route)));
                }
            }
        }
        Routes { routes, by_service }
    }
}

impl Route {
    /// The hosts that its requests may name, which are those of each of its rules; none for all.
    fn hostnames(&self) -> &[String] {
        self.rules.first().map_or(&[], |rule| &rule.api.hostnames)
    }

    fn attach_to(&self, gateways: &mut [Gateway], (gateway, listener): Attachment) {
        let listener = gateways
            .get_mut(gateway)
            .and_then(|gateway| gateway.listeners.get_mut(listener));
        // What redirects every request has no use for rules.
        if let Some(listener) = listener.filter(|listener| !listener.redirects) {
            let table = listener.api.routes.get_or_insert_default();
            let rules = self.rules.iter().map(|rule| rule.api.clone());
            table.rules.extend(rules);
        }
    }
}

impl Routes {
    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    /// What holds for requests to a service's port: the policy of those that no rule treats in its own way, and the
    /// table where there is more to it.
    pub(super) fn of_service(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> (Option<v1::RoutePolicy>, Option<v1::RouteTable>) {
        let Some(attached) = self.by_service.get(service) else {
            return (None, None);
        };
        let here = |(of, _): &&Attached| of.is_none_or(|of| of == port);
        let own = format!("{service}:{port}");
        let rules: Vec<v1::RouteRule> = attached
            .iter()
            .filter(here)
            .flat_map(|(_, route)| &route.rules)
            .map(|rule| with_own(rule.api.clone(), &own))
            .collect();
        if rules.is_empty() {
            return (None, None);
        }
        let policy = rules.iter().find(|rule| is_for_all(rule));
        let policy = policy.and_then(|rule| rule.policy.clone());
        match rules.as_slice() {
            [only] if is_plain(only) => {
                let mut policy = policy.unwrap_or_default();
                policy.route = match only.name.as_str() {
                    "" => only.route.clone(),
                    name => format!("{}/{name}", only.route),
                };
                (Some(policy), None)
            }
            _ => (policy, Some(v1::RouteTable { rules })),
        }
    }
}

/// Names the service that a table is of as itself. Hosts are for gateways: who calls a service has found it.
fn with_own(mut rule: v1::RouteRule, own: &str) -> v1::RouteRule {
    use v1::route_backend::Target;
    use v1::route_filter::Filter;
    rule.hostnames.clear();
    session::name_cookie(rule.policy.as_mut(), own);
    let mirrors = rule
        .filters
        .iter_mut()
        .filter_map(|filter| match &mut filter.filter {
            Some(Filter::Mirror(mirror)) => mirror.backend.as_mut(),
            _ => None,
        });
    for backend in rule.backends.iter_mut().chain(mirrors) {
        if matches!(&backend.target, Some(Target::Destination(name)) if name == own) {
            backend.target = Some(Target::Own(true));
        }
    }
    rule
}

/// Whether every request matches.
fn is_for_all(rule: &v1::RouteRule) -> bool {
    let trivial = |matched: &v1::RouteMatch| {
        let path = match &matched.path {
            None => true,
            Some(v1::route_match::Path::Prefix(prefix)) => prefix == "/",
            Some(_) => false,
        };
        let v1::RouteMatch {
            method,
            headers,
            query_params,
            grpc,
            ..
        } = matched;
        path && method.is_empty() && headers.is_empty() && query_params.is_empty() && grpc.is_none()
    };
    rule.matches.is_empty() || rule.matches.iter().any(trivial)
}

/// Whether a rule does nothing but time and retry.
fn is_plain(rule: &v1::RouteRule) -> bool {
    let own = |backend: &v1::RouteBackend| {
        let own = matches!(backend.target, Some(v1::route_backend::Target::Own(_)));
        own && backend.filters.is_empty() && backend.weight > 0
    };
    is_for_all(rule)
        && rule.filters.is_empty()
        && rule.backends.len() < 2
        && rule.backends.iter().all(own)
}

#[cfg(test)]
mod tests;
