//! What routes of both kinds are made of.

use super::super::document::{Metadata, Reader, present};
use super::super::gateway::GatewayParent;
use super::filters::{self, FilterSpec, Level};
use super::{ExtensionReference, Parent};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::service::is_host;
use sidewind_api::{Expression, ServiceName, duration, v1};
use std::collections::HashSet;
use std::fmt;

/// Bounds that the Gateway API's own schema has.
const MAX_RULES: usize = 16;
pub(super) const MAX_MATCHES: usize = 64;
pub(super) const MAX_FIELDS: usize = 16;
const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
/// More retries than these help nobody; proxies make no more either.
pub(super) const MAX_ATTEMPTS: u32 = 10;

/// The API of gateways, which references name without its version.
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ParentReference {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    namespace: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    section_name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BackendReference {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    namespace: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
    #[serde(default, deserialize_with = "present")]
    weight: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    filters: Option<Spanned<Vec<Spanned<FilterSpec>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamedMatch {
    #[serde(default, deserialize_with = "present", rename = "type")]
    kind: Option<Spanned<String>>,
    name: Spanned<String>,
    value: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Timeouts {
    #[serde(default, deserialize_with = "present")]
    request: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    backend_request: Option<Spanned<String>>,
}

/// Refuses a list that is longer than the Gateway API's schema allows.
pub(super) fn at_most<T>(reader: &mut Reader<'_>, list: &Spanned<Vec<T>>, most: usize) {
    if list.value.len() > most {
        reader.refuse(list, format!("must have at most {most} entries"));
    }
}

/// What a route is attached to.
pub(super) fn parents(
    reader: &mut Reader<'_>,
    parents: &Spanned<Vec<Spanned<ParentReference>>>,
    namespace: &str,
) -> Vec<Parent> {
    if parents.value.is_empty() {
        reader.refuse(
            parents,
            "must name the service or gateway whose route this is",
        );
    }
    at_most(reader, parents, MAX_PARENTS);
    let mut found: Vec<Parent> = Vec::new();
    for reference in &parents.value {
        let Some(parent) = parent(reader, reference, namespace) else {
            continue;
        };
        if found.iter().any(|other| other.is_same(&parent)) {
            reader.refuse(reference, "is named twice");
        }
        found.push(parent);
    }
    found
}

fn parent(
    reader: &mut Reader<'_>,
    reference: &Spanned<ParentReference>,
    namespace: &str,
) -> Option<Parent> {
    let spec = &reference.value;
    let at = reader.place(reference);
    check_port(reader, spec.port.as_ref());
    let port = spec.port.as_ref().map(|port| port.value);
    let of = spec
        .namespace
        .as_ref()
        .map_or(namespace, |n| n.value.as_str());
    // The Gateway API's defaults for both.
    let group = spec.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = spec.kind.as_deref().unwrap_or("Gateway");
    match (group, kind) {
        ("", "Service") => {
            if let Some(section) = &spec.section_name {
                reader.refuse(
                    section,
                    "is for gateways; name the service's port by `port`",
                );
            }
            if of != namespace {
                let message = "must be the route's own: a route of another namespace would hold for every caller of the service";
                spec.namespace
                    .as_ref()
                    .inspect(|at| reader.refuse(at, message));
                return None;
            }
            let service = service(reader, &spec.name, of)?;
            Some(Parent::Service { service, port, at })
        }
        (GATEWAY_GROUP, "Gateway") => Some(Parent::Gateway(GatewayParent {
            namespace: of.to_owned(),
            name: spec.name.value.clone(),
            section: spec.section_name.as_ref().map(|name| name.value.clone()),
            port,
            at,
        })),
        _ => {
            reader.refuse(
                reference,
                format!(
                    "must be a service (`group: \"\"`, `kind: Service`) or a gateway (`group: {GATEWAY_GROUP}`, `kind: Gateway`)"
                ),
            );
            None
        }
    }
}

impl Parent {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Service { service, port, .. },
                Self::Service {
                    service: other,
                    port: other_port,
                    ..
                },
            ) => service == other && port == other_port,
            (Self::Gateway(one), Self::Gateway(other)) => {
                let key = |parent: &GatewayParent| {
                    let GatewayParent {
                        namespace,
                        name,
                        section,
                        port,
                        ..
                    } = parent.clone();
                    (namespace, name, section, port)
                };
                key(one) == key(other)
            }
            _ => false,
        }
    }
}

fn service(
    reader: &mut Reader<'_>,
    name: &Spanned<String>,
    namespace: &str,
) -> Option<ServiceName> {
    let service = ServiceName::new(&name.value, namespace);
    service.map_err(|error| reader.refuse(name, error)).ok()
}

pub(super) fn check_port(reader: &mut Reader<'_>, port: Option<&Spanned<u16>>) {
    if let Some(port) = port.filter(|port| port.value == 0) {
        reader.refuse(port, "must be a port from 1 to 65535");
    }
}

/// Hosts that a gateway's requests may name.
pub(super) fn hostnames(
    reader: &mut Reader<'_>,
    hostnames: Option<&Spanned<Vec<Spanned<String>>>>,
) -> Vec<String> {
    let Some(hostnames) = hostnames else {
        return Vec::new();
    };
    at_most(reader, hostnames, MAX_HOSTNAMES);
    for name in &hostnames.value {
        let host = name.value.strip_prefix("*.").unwrap_or(&name.value);
        if !is_host(host) || host.parse::<std::net::IpAddr>().is_ok() {
            reader.refuse(
                name,
                "must be a host name in lower case, whose first label may be `*`",
            );
        }
    }
    hostnames
        .value
        .iter()
        .map(|name| name.value.clone())
        .collect()
}

/// The rules of a route. Where there are none it is `of_all`, which every request matches: so has the Gateway API's schema
/// it for an HTTPRoute.
pub(super) fn rule_specs<'a, R>(
    reader: &mut Reader<'_>,
    rules: Option<&'a Spanned<Vec<Spanned<R>>>>,
    of_all: &'a R,
) -> Vec<&'a R> {
    let Some(rules) = rules else {
        return vec![of_all];
    };
    at_most(reader, rules, MAX_RULES);
    if rules.value.is_empty() {
        reader.refuse(rules, "must have a rule, or be left out");
    }
    rules.value.iter().map(|rule| &rule.value).collect()
}

/// A rule's own name.
pub(super) fn rule_name(
    reader: &mut Reader<'_>,
    name: Option<&Spanned<String>>,
    taken: &mut HashSet<String>,
) -> String {
    let Some(name) = name else {
        return String::new();
    };
    if !is_host(&name.value) {
        reader.refuse(name, "must be of lower-case letters, digits, `-` and `.`");
    }
    if !taken.insert(name.value.clone()) {
        reader.refuse(name, "is the name of another rule of this route");
    }
    name.value.clone()
}

/// Matches of header fields or query parameters.
pub(super) fn named_matches(
    reader: &mut Reader<'_>,
    matches: Option<&Spanned<Vec<Spanned<NamedMatch>>>>,
    of_headers: bool,
) -> Vec<v1::RouteNamedMatch> {
    let Some(matches) = matches else {
        return Vec::new();
    };
    at_most(reader, matches, MAX_FIELDS);
    let mut names = HashSet::new();
    let mut read = Vec::new();
    for matched in &matches.value {
        let NamedMatch { kind, name, value } = &matched.value;
        let lower = match of_headers {
            true => name.value.to_ascii_lowercase(),
            false => name.value.clone(),
        };
        if lower.is_empty() || of_headers && !lower.bytes().all(is_token) {
            reader.refuse(name, "must be the name of a header field");
        }
        if !names.insert(lower.clone()) {
            reader.refuse(name, "is given twice");
        }
        use v1::route_named_match::Value;
        let value = match is_expression(reader, kind.as_ref()) {
            true => {
                expression(reader, value);
                Value::Regex(value.value.clone())
            }
            false => Value::Exact(value.value.clone()),
        };
        read.push(v1::RouteNamedMatch {
            name: lower,
            value: Some(value),
        });
    }
    read
}

/// A byte of a name of HTTP (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a match's type says that its value is an expression.
pub(super) fn is_expression(reader: &mut Reader<'_>, kind: Option<&Spanned<String>>) -> bool {
    let Some(kind) = kind else { return false };
    match kind.value.as_str() {
        "Exact" => false,
        "RegularExpression" => true,
        _ => {
            reader.refuse(kind, "must be Exact or RegularExpression");
            false
        }
    }
}

pub(super) fn expression(reader: &mut Reader<'_>, text: &Spanned<String>) {
    if let Err(error) = Expression::new(&text.value) {
        reader.refuse(text, error);
    }
}

/// Where a rule's requests go.
pub(super) fn backends(
    reader: &mut Reader<'_>,
    references: Option<&Spanned<Vec<Spanned<BackendReference>>>>,
    parents: &[Parent],
    namespace: &str,
) -> Vec<v1::RouteBackend> {
    let Some(references) = references else {
        return Vec::new();
    };
    if references.value.is_empty() {
        reader.refuse(
            references,
            "must not be empty; leave it out to send to the service of parentRefs",
        );
    }
    at_most(reader, references, MAX_BACKENDS);
    let mut backends = Vec::new();
    for reference in &references.value {
        let weight = reference.value.weight.as_ref();
        if let Some(weight) = weight.filter(|weight| weight.value > MAX_WEIGHT) {
            reader.refuse(weight, format!("must be at most {MAX_WEIGHT}"));
        }
        let weight = weight.map_or(1, |weight| weight.value);
        if let Some(mut backend) = backend(reader, reference, parents, namespace) {
            backend.weight = weight;
            let of_backend = filters::read(
                reader,
                reference.value.filters.as_ref(),
                Level::Backend,
                parents,
                namespace,
            );
            backend.filters = of_backend.filters;
            backends.push(backend);
        }
    }
    backends
}

/// The service that a mirror names. All that it gets is said beside the reference, by `percent` or `fraction`.
pub(super) fn mirrored(
    reader: &mut Reader<'_>,
    reference: &Spanned<BackendReference>,
    parents: &[Parent],
    namespace: &str,
) -> Option<v1::RouteBackend> {
    let BackendReference {
        weight, filters, ..
    } = &reference.value;
    if let Some(weight) = weight {
        let message = "does not go with a mirror, whose share is its `percent` or `fraction`";
        reader.refuse(weight, message);
    }
    if let Some(filters) = filters {
        let message =
            "do not go with a mirror, which gets the request after the rule's own filters";
        reader.refuse(filters, message);
    }
    backend(reader, reference, parents, namespace)
}

/// The service that a reference names.
fn backend(
    reader: &mut Reader<'_>,
    reference: &Spanned<BackendReference>,
    parents: &[Parent],
    namespace: &str,
) -> Option<v1::RouteBackend> {
    let spec = &reference.value;
    let kind = spec.kind.as_deref().unwrap_or("Service");
    if !spec.group.as_deref().unwrap_or_default().is_empty() || kind != "Service" {
        reader.refuse(
            reference,
            "must be a service: `group: \"\"` and `kind: Service`",
        );
        return None;
    }
    check_port(reader, spec.port.as_ref());
    let namespace = spec
        .namespace
        .as_ref()
        .map_or(namespace, |n| n.value.as_str());
    let service = service(reader, &spec.name, namespace)?;
    let port = match &spec.port {
        Some(port) => port.value,
        // The parent's own port is known without being said again.
        None => match own_port(parents, &service) {
            Some(port) => port,
            None => {
                reader.refuse(reference, "must have a `port`: that of the service");
                return None;
            }
        },
    };
    Some(v1::RouteBackend {
        weight: 1,
        target: Some(v1::route_backend::Target::Destination(format!(
            "{service}:{port}"
        ))),
        filters: Vec::new(),
    })
}

fn own_port(parents: &[Parent], named: &ServiceName) -> Option<u16> {
    match parents {
        [Parent::Service { service, port, .. }] if service == named => *port,
        _ => None,
    }
}

pub(super) fn timeouts(
    reader: &mut Reader<'_>,
    timeouts: Option<&Timeouts>,
    policy: &mut v1::RoutePolicy,
) {
    let Some(timeouts) = timeouts else { return };
    policy.request_timeout_ms = milliseconds(reader, timeouts.request.as_ref());
    policy.backend_request_timeout_ms = milliseconds(reader, timeouts.backend_request.as_ref());
    // 0 switches a timeout off (GEP-1742).
    let request = policy.request_timeout_ms.filter(|request| *request > 0);
    let longer = request.zip(policy.backend_request_timeout_ms);
    if let Some((request, backend)) = longer.filter(|(request, backend)| backend > request) {
        let at = timeouts.backend_request.as_ref();
        let message =
            format!("must not be longer than the request's ({backend} ms > {request} ms)");
        at.inspect(|at| reader.refuse(at, message));
    }
}

pub(super) fn milliseconds(reader: &mut Reader<'_>, text: Option<&Spanned<String>>) -> Option<u64> {
    let text = text?;
    match duration::parse(&text.value) {
        Ok(duration) => u64::try_from(duration.as_millis()).ok(),
        Err(error) => {
            reader.refuse(text, error);
            None
        }
    }
}

/// A route's extension: of its own namespace.
pub(super) fn extension(
    reader: &mut Reader<'_>,
    found: Option<&Spanned<String>>,
) -> Option<ExtensionReference> {
    let name = found?;
    Some(ExtensionReference {
        name: name.value.clone(),
        at: reader.place(name),
    })
}

/// Namespace, name and age of a document.
pub(super) fn identity(
    metadata: &Metadata,
    kind: &'static str,
    reader: &mut Reader<'_>,
    draft: &mut super::super::Draft,
) -> (String, String, Option<String>) {
    let (namespace, name) = metadata.check(kind, reader, draft);
    (namespace, name, metadata.created().map(str::to_owned))
}

/// One of a closed set of words.
pub(super) fn one_of<T: Copy>(
    reader: &mut Reader<'_>,
    text: &Spanned<String>,
    words: &[(&str, T)],
) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text.value);
    if found.is_none() {
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        reader.refuse(text, Words(&all));
    }
    found.map(|(_, value)| *value)
}

struct Words<'a>(&'a [&'a str]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be one of {}", self.0.join(", "))
    }
}
