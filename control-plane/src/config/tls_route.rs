//! `TLSRoute` of Gateway API: where TLS that a gateway passes through goes, by server name.

use super::ConfigError;
use super::Draft;
use super::document::{Reader, Resource, present};
use super::gateway::{Gateway, GatewayParent, attach, read_hostname};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{ServiceName, v1};

/// A checked route.
#[derive(Debug, Clone)]
pub(super) struct TlsRoute {
    namespace: String,
    parents: Vec<GatewayParent>,
    api: v1::GatewayTlsRoute,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    parent_refs: Spanned<Vec<Spanned<Parent>>>,
    #[serde(default, deserialize_with = "present")]
    hostnames: Option<Vec<Spanned<String>>>,
    rules: Spanned<Vec<Spanned<Rule>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Parent {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    section_name: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    backend_refs: Spanned<Vec<Spanned<Backend>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Backend {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    port: Spanned<u16>,
    #[serde(default, deserialize_with = "present")]
    weight: Option<Spanned<u32>>,
}

/// Gateway API's bound.
const MAX_WEIGHT: u32 = 1_000_000;

/// Reads a route into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let Resource { metadata, spec, .. } = &resource;
    let (namespace, name) = metadata.check("TLSRoute", reader, draft);
    if spec.parent_refs.value.is_empty() {
        reader.refuse(&spec.parent_refs, "must name a gateway");
    }
    let mut parents = Vec::new();
    for parent in &spec.parent_refs.value {
        let Parent {
            group,
            kind,
            name,
            namespace: own,
            section_name,
            port,
        } = &parent.value;
        let is_gateway = group
            .as_deref()
            .is_none_or(|group| group == "gateway.networking.k8s.io")
            && kind.as_deref().is_none_or(|kind| kind == "Gateway");
        if !is_gateway {
            reader.refuse(parent, "must be a Gateway");
        }
        parents.push(GatewayParent {
            namespace: own.clone().unwrap_or_else(|| namespace.clone()),
            name: name.clone(),
            section: section_name.clone(),
            port: *port,
            at: reader.place(parent),
        });
    }
    let hostnames = spec.hostnames.iter().flatten();
    let api = v1::GatewayTlsRoute {
        route: format!("{namespace}/{name}"),
        hostnames: hostnames.map(|host| read_hostname(reader, host)).collect(),
        backends: read_backends(reader, &spec.rules, &namespace),
    };
    if reader.is_sound() {
        draft.add_tls_route(TlsRoute {
            namespace,
            parents,
            api,
        });
    }
}

fn read_backends(
    reader: &mut Reader<'_>,
    rules: &Spanned<Vec<Spanned<Rule>>>,
    namespace: &str,
) -> Vec<v1::GatewayTlsBackend> {
    let [rule] = rules.value.as_slice() else {
        reader.refuse(rules, "must be one rule");
        return Vec::new();
    };
    let refs = &rule.value.backend_refs;
    if refs.value.is_empty() || refs.value.len() > 16 {
        reader.refuse(refs, "must be 1 to 16");
    }
    let mut backends = Vec::new();
    for backend in &refs.value {
        let Backend {
            group,
            kind,
            name,
            namespace: own,
            port,
            weight,
        } = &backend.value;
        let is_service = group.as_deref().unwrap_or_default().is_empty()
            && kind.as_deref().is_none_or(|kind| kind == "Service");
        if !is_service {
            reader.refuse(backend, "must be a Service");
        }
        if port.value == 0 {
            reader.refuse(port, "must be a port from 1 to 65535");
        }
        if let Some(weight) = weight.as_ref().filter(|weight| weight.value > MAX_WEIGHT) {
            reader.refuse(weight, format!("must be at most {MAX_WEIGHT}"));
        }
        match ServiceName::new(name, own.as_deref().unwrap_or(namespace)) {
            Ok(service) => backends.push(v1::GatewayTlsBackend {
                destination: format!("{service}:{}", port.value),
                weight: weight.as_ref().map_or(1, |weight| weight.value),
            }),
            Err(error) => reader.refuse(backend, error),
        }
    }
    backends
}

/// Attaches the routes to the listeners that they name; says which cannot be.
pub(super) fn attach_all(routes: &[TlsRoute], gateways: &mut [Gateway]) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for route in routes {
        for parent in &route.parents {
            let hostnames = &route.api.hostnames;
            match attach(gateways, parent, "TLSRoute", &route.namespace, hostnames) {
                Ok(attachments) => {
                    for (gateway, listener) in attachments {
                        let listener = gateways
                            .get_mut(gateway)
                            .and_then(|gateway| gateway.listeners.get_mut(listener));
                        if let Some(listener) = listener {
                            listener.api.tls_routes.push(route.api.clone());
                        }
                    }
                }
                Err(error) => errors.push(error),
            }
        }
    }
    errors
}
