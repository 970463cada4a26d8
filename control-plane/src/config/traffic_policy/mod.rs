//! `TrafficPolicy`: how a service's requests and connections are spread over its endpoints, which of them count as
//! well, and how many requests there may be.
//!
//! - `balance`: the algorithm, stickiness, zones, weights and priorities
//! - `health`: active checks, and the ejection of outliers
//! - `limits`: rates and bounds, kept by callers' proxies or beside the service

mod balance;
mod health;
mod limits;
#[cfg(test)]
mod tests;

use super::document::{Reader, Resource, present};
use super::error::Place;
use super::gateway::Gateway;
use super::{ConfigError, Draft};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::service::{PROTOCOLS, is_label, protocol_from_name};
use sidewind_api::{ServiceName, duration, v1};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

pub use balance::EndpointRule;
pub(in crate::config) use balance::default_cookie;

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficPolicy {
    /// What is spoken, where the policy says so.
    pub protocol: Option<v1::Protocol>,
    /// What callers' proxies are told, but for the names that [`TrafficPolicy::caller_of`] fills in.
    pub(super) caller: v1::TrafficPolicy,
    /// What is said of single endpoints; the first that matches counts.
    pub endpoints: Vec<EndpointRule>,
    /// What is kept where requests come in, by the proxies beside the service or by a gateway for each of its listeners:
    /// bounds and rates.
    pub beside: Option<(v1::Bounds, Vec<v1::RateLimit>)>,
}

impl TrafficPolicy {
    /// What proxies of callers of a service's port are told.
    #[must_use]
    pub fn caller_of(&self, service: &ServiceName, port: u16) -> v1::TrafficPolicy {
        let mut policy = self.caller.clone();
        let balance = policy.balance.as_mut();
        if let Some(sticky) = balance.and_then(|balance| balance.stickiness.as_mut())
            && sticky.cookie.is_empty()
        {
            sticky.cookie = default_cookie(&format!("{service}:{port}"));
        }
        policy
    }
}

/// What a policy is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Service(ServiceName, Option<u16>),
    Namespace(String),
}

/// A gateway, and perhaps one of its listeners, that a policy is about.
#[derive(Debug, Clone)]
pub(super) struct GatewayTarget {
    namespace: String,
    name: String,
    section: Option<String>,
    at: Place,
}

impl GatewayTarget {
    /// Puts a policy's bounds and rates into the listeners that it is about. What one listener alone is named for comes
    /// before what its gateway is.
    ///
    /// # Errors
    /// When there is no such gateway or listener.
    fn apply(&self, policy: &TrafficPolicy, gateways: &mut [Gateway]) -> Result<(), ConfigError> {
        let Self {
            namespace,
            name,
            section,
            at,
        } = self;
        let mut gateways = gateways.iter_mut();
        let Some(gateway) = gateways.find(|it| (&it.namespace, &it.name) == (namespace, name))
        else {
            let message = format!("names Gateway {namespace}/{name}, which no document describes");
            return Err(at.error(message));
        };
        let listeners = gateway
            .listeners
            .iter_mut()
            .map(|listener| &mut listener.api);
        let mut meant = listeners
            .filter(|listener| {
                section
                    .as_ref()
                    .is_none_or(|section| *section == listener.name)
            })
            .peekable();
        if meant.peek().is_none() {
            let message = "names a listener that the Gateway does not have";
            return Err(at.error(message.to_owned()));
        }
        let (bounds, rates) = policy.beside.clone().unwrap_or_default();
        for listener in meant {
            listener.bounds = Some(bounds);
            listener.rate_limits.clone_from(&rates);
        }
        Ok(())
    }
}

/// Puts what policies say of gateways into them; gives what names none.
pub(super) fn apply_to_gateways(
    policies: &[(GatewayTarget, Arc<TrafficPolicy>)],
    gateways: &mut [Gateway],
) -> Vec<ConfigError> {
    let (whole, single): (Vec<_>, Vec<_>) = policies
        .iter()
        .partition(|(target, _)| target.section.is_none());
    let all = whole.into_iter().chain(single);
    all.filter_map(|(target, policy)| target.apply(policy, gateways).err())
        .collect()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, None) => write!(f, "service {name}"),
            Self::Service(name, Some(port)) => write!(f, "service {name} port {port}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default, deserialize_with = "present")]
    target_refs: Option<Spanned<Vec<Spanned<Reference>>>>,
    #[serde(default, deserialize_with = "present")]
    protocol: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    balance: Option<balance::Balance>,
    #[serde(default, deserialize_with = "present")]
    health_check: Option<Spanned<health::HealthCheck>>,
    #[serde(default, deserialize_with = "present")]
    outlier_detection: Option<Spanned<health::OutlierDetection>>,
    #[serde(default, deserialize_with = "present")]
    limits: Option<limits::Limits>,
    #[serde(default, deserialize_with = "present")]
    rate_limits: Option<Spanned<Vec<Spanned<limits::RateLimit>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reference {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: String,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
    #[serde(default, deserialize_with = "present")]
    section_name: Option<Spanned<String>>,
}

/// What the targets of a policy are.
#[derive(Debug, Default)]
struct Targets {
    services: Vec<Target>,
    gateways: Vec<GatewayTarget>,
}

/// Reads a policy into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spanned<Spec>>>() else {
        return;
    };
    let (namespace, name) = resource.metadata.check("TrafficPolicy", reader, draft);
    let spec = &resource.spec.value;
    let targets = read_targets(reader, draft, &resource.spec, &namespace);
    let mut policy = TrafficPolicy {
        protocol: spec.protocol.as_ref().map(|name| protocol(reader, name)),
        ..TrafficPolicy::default()
    };
    policy.caller.name = format!("{namespace}/{name}");
    if let Some(balance) = &spec.balance {
        policy.caller.balance = Some(balance.read(reader));
        policy.endpoints = balance.read_endpoints(reader);
    }
    policy.caller.health_check = spec
        .health_check
        .as_ref()
        .map(|it| health::check(reader, it));
    policy.caller.outlier_detection = spec
        .outlier_detection
        .as_ref()
        .map(|it| health::outliers(reader, it));
    let of_gateway = !targets.gateways.is_empty();
    limits::read(
        reader,
        spec.limits.as_ref(),
        spec.rate_limits.as_ref(),
        of_gateway,
        &mut policy,
    );
    if of_gateway {
        check_of_gateway(reader, &resource.spec);
    }
    for route in limits::named_routes(spec.rate_limits.as_ref()) {
        draft
            .limited_routes
            .push((reader.place(route), route.value.clone()));
    }
    if reader.is_sound() {
        draft.add_traffic_policy(targets.services, targets.gateways, policy);
    }
}

/// Refuses what says something of endpoints, which a gateway's listener has none of.
fn check_of_gateway(reader: &mut Reader<'_>, spec: &Spanned<Spec>) {
    let message = "is for services; a gateway has `limits.listener` and `rateLimits` alone";
    let Spec {
        protocol,
        balance,
        health_check,
        outlier_detection,
        ..
    } = &spec.value;
    if let Some(at) = protocol {
        reader.refuse(at, message);
    }
    if balance.is_some() {
        reader.refuse(spec, format!("`balance` {message}"));
    }
    if let Some(at) = health_check {
        reader.refuse(at, message);
    }
    if let Some(at) = outlier_detection {
        reader.refuse(at, message);
    }
}

fn read_targets(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    spec: &Spanned<Spec>,
    namespace: &str,
) -> Targets {
    let Some(references) = &spec.value.target_refs else {
        if !is_label(namespace) {
            let message = format!("{namespace:?} is no namespace that services can be in");
            reader.refuse(spec, message);
        }
        let target = Target::Namespace(namespace.to_owned());
        reader.take(draft, spec, format!("the traffic policy of {target}"));
        return Targets {
            services: vec![target],
            ..Targets::default()
        };
    };
    if references.value.is_empty() {
        let message =
            "must not be empty; leave it out to mean every service of the namespace".to_owned();
        reader.refuse(references, message);
    }
    let mut targets = Targets::default();
    for reference in &references.value {
        let Reference {
            group,
            kind,
            name,
            port,
            section_name,
        } = &reference.value;
        match (group.as_deref().unwrap_or_default(), kind.as_deref()) {
            ("", Some("Service")) => {}
            ("gateway.networking.k8s.io", Some("Gateway")) => {
                if let Some(target) = read_gateway(reader, draft, reference, namespace) {
                    targets.gateways.push(target);
                }
                continue;
            }
            _ => {
                let message = "must be `kind: Service`, or `kind: Gateway` with `group: gateway.networking.k8s.io`";
                reader.refuse(reference, message);
                continue;
            }
        }
        if let Some(section) = section_name {
            reader.refuse(section, "is for gateways; a service has `port`");
        }
        if let Some(port) = port.as_ref().filter(|port| port.value == 0) {
            reader.refuse(port, "must be a port from 1 to 65535");
        }
        match ServiceName::new(name, namespace) {
            Ok(service) => {
                let target = Target::Service(service, port.as_ref().map(|port| port.value));
                reader.take(draft, reference, format!("the traffic policy of {target}"));
                targets.services.push(target);
            }
            Err(error) => reader.refuse(reference, error),
        }
    }
    if !targets.services.is_empty() && !targets.gateways.is_empty() {
        let message = "must be services or gateways, not both";
        reader.refuse(references, message);
    }
    targets
}

fn read_gateway(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    reference: &Spanned<Reference>,
    namespace: &str,
) -> Option<GatewayTarget> {
    let Reference {
        name,
        port,
        section_name,
        ..
    } = &reference.value;
    if let Some(port) = port {
        reader.refuse(port, "is for services; a gateway has `sectionName`");
        return None;
    }
    let section = section_name.as_ref().map(|section| section.value.clone());
    let listener = section
        .as_ref()
        .map_or_else(String::new, |section| format!(" listener {section}"));
    let what = format!("the traffic policy of gateway {namespace}/{name}{listener}");
    reader.take(draft, reference, what);
    Some(GatewayTarget {
        namespace: namespace.to_owned(),
        name: name.clone(),
        section,
        at: reader.place(reference),
    })
}

fn protocol(reader: &mut Reader<'_>, name: &Spanned<String>) -> v1::Protocol {
    protocol_from_name(&name.value).unwrap_or_else(|| {
        let known: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        reader.refuse(name, format!("{:?} is not one of {known}", name.value));
        v1::Protocol::Unspecified
    })
}

/// A number within bounds, or `absent`.
fn number(
    reader: &mut Reader<'_>,
    given: Option<&Spanned<u32>>,
    bounds: RangeInclusive<u32>,
    absent: u32,
) -> u32 {
    let Some(given) = given else { return absent };
    if !bounds.contains(&given.value) {
        let message = format!("must be from {} to {}", bounds.start(), bounds.end());
        reader.refuse(given, message);
    }
    given.value
}

/// A duration within bounds in milliseconds, or `absent`.
fn milliseconds(
    reader: &mut Reader<'_>,
    given: Option<&Spanned<String>>,
    bounds: RangeInclusive<Duration>,
    absent: Duration,
) -> u64 {
    let whole = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let Some(given) = given else {
        return whole(absent);
    };
    match duration::parse(&given.value) {
        Ok(duration) if bounds.contains(&duration) => return whole(duration),
        Ok(_) => {
            let (least, most) = (bounds.start(), bounds.end());
            reader.refuse(given, format!("must be from {least:?} to {most:?}"));
        }
        Err(error) => reader.refuse(given, error),
    }
    0
}

/// A name that the header of a request may have, in lower case.
fn header_name(reader: &mut Reader<'_>, name: &Spanned<String>) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !(1..=128).contains(&name.value.len()) || !name.value.bytes().all(fits) {
        reader.refuse(
            name,
            "must be the name of a header or cookie (a token of RFC 9110)",
        );
    }
    name.value.clone()
}
