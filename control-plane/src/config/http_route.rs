//! `HTTPRoute` of Gateway API, as far as this version goes: timeouts and retries of a service.

use super::Draft;
use super::document::{Metadata, Reader, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{ServiceName, duration, v1};

/// More retries than these help nobody; proxies make no more either.
const MAX_ATTEMPTS: u32 = 10;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resource {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    parent_refs: Spanned<Vec<Spanned<Reference>>>,
    rules: Spanned<Vec<Spanned<Rule>>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reference {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    timeouts: Option<Timeouts>,
    #[serde(default)]
    retry: Option<Retry>,
    #[serde(default, deserialize_with = "present")]
    backend_refs: Option<Spanned<Vec<Spanned<Reference>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Timeouts {
    #[serde(default, deserialize_with = "present")]
    request: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    backend_request: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retry {
    #[serde(default, deserialize_with = "present")]
    attempts: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    codes: Option<Vec<Spanned<u16>>>,
    #[serde(default, deserialize_with = "present")]
    backoff: Option<Spanned<String>>,
}

/// Reads a route into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource>() else {
        return;
    };
    let (namespace, _name) = resource.metadata.check("HTTPRoute", reader, draft);
    let rules = &resource.spec.rules;
    let [rule] = rules.value.as_slice() else {
        reader.refuse(
            rules,
            "must have exactly one rule; this version routes by service alone",
        );
        return;
    };
    let route = read_rule(reader, &rule.value);
    let parents = &resource.spec.parent_refs;
    if parents.value.is_empty() {
        reader.refuse(parents, "must name the service whose route this is");
    }
    for parent in &parents.value {
        let Some((service, port)) = read_reference(reader, parent, &namespace) else {
            continue;
        };
        check_backends(reader, &rule.value, (&service, port), &namespace);
        let of_port = port.map_or(String::new(), |port| format!(" port {port}"));
        reader.take(
            draft,
            parent,
            format!("the route of service {service}{of_port}"),
        );
        if reader.is_sound() {
            draft.add_route(service, port, route.clone());
        }
    }
}

fn read_reference(
    reader: &mut Reader<'_>,
    reference: &Spanned<Reference>,
    namespace: &str,
) -> Option<(ServiceName, Option<u16>)> {
    let Reference {
        group,
        kind,
        name,
        namespace: own,
        port,
    } = &reference.value;
    if !group.as_deref().unwrap_or_default().is_empty() || kind.as_deref() != Some("Service") {
        reader.refuse(
            reference,
            "must be a service: `group: \"\"` and `kind: Service`; this version has no routes of gateways",
        );
        return None;
    }
    if let Some(port) = port.as_ref().filter(|port| port.value == 0) {
        reader.refuse(port, "must be a port from 1 to 65535");
    }
    match ServiceName::new(name, own.as_deref().unwrap_or(namespace)) {
        Ok(service) => Some((service, port.as_ref().map(|port| port.value))),
        Err(error) => {
            reader.refuse(reference, error);
            None
        }
    }
}

/// The only backend that this version can send to is the service itself.
fn check_backends(
    reader: &mut Reader<'_>,
    rule: &Rule,
    parent: (&ServiceName, Option<u16>),
    namespace: &str,
) {
    let Some(backends) = &rule.backend_refs else {
        return;
    };
    let [backend] = backends.value.as_slice() else {
        reader.refuse(
            backends,
            "must be one: the service of parentRefs; this version does not split traffic",
        );
        return;
    };
    let mut named = backend.clone();
    named.value.kind.get_or_insert_with(|| "Service".to_owned());
    let Some((service, port)) = read_reference(reader, &named, namespace) else {
        return;
    };
    let other_port = matches!((port, parent.1), (Some(port), Some(parent)) if port != parent);
    if &service != parent.0 || other_port {
        reader.refuse(
            backend,
            "must be the service of parentRefs; this version does not send elsewhere",
        );
    }
}

fn read_rule(reader: &mut Reader<'_>, rule: &Rule) -> v1::RoutePolicy {
    let mut route = v1::RoutePolicy::default();
    if let Some(timeouts) = &rule.timeouts {
        route.request_timeout_ms = milliseconds(reader, timeouts.request.as_ref());
        route.backend_request_timeout_ms = milliseconds(reader, timeouts.backend_request.as_ref());
        // 0 switches a timeout off (GEP-1742).
        let request = route.request_timeout_ms.filter(|request| *request > 0);
        let longer = request.zip(route.backend_request_timeout_ms);
        if let Some((request, backend)) = longer.filter(|(request, backend)| backend > request) {
            let at = timeouts.backend_request.as_ref();
            let message =
                format!("must not be longer than the request's ({backend} ms > {request} ms)");
            at.inspect(|at| reader.refuse(at, message));
        }
    }
    if let Some(retry) = &rule.retry {
        route.retry_attempts = retry.attempts.as_ref().map(|attempts| attempts.value);
        if let Some(attempts) = retry.attempts.as_ref().filter(|a| a.value > MAX_ATTEMPTS) {
            reader.refuse(attempts, format!("must be at most {MAX_ATTEMPTS}"));
        }
        for code in retry.codes.iter().flatten() {
            if !(400..=599).contains(&code.value) {
                reader.refuse(code, "must be a status code from 400 to 599");
            }
            route.retry_codes.push(code.value.into());
        }
        route.retry_backoff_ms = milliseconds(reader, retry.backoff.as_ref());
    }
    route
}

fn milliseconds(reader: &mut Reader<'_>, text: Option<&Spanned<String>>) -> Option<u64> {
    let text = text?;
    match duration::parse(&text.value) {
        Ok(duration) => u64::try_from(duration.as_millis()).ok(),
        Err(error) => {
            reader.refuse(text, error);
            None
        }
    }
}
