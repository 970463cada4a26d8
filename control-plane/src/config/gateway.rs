//! `Gateway` of Gateway API: what a proxy with `--capture gateway` listens on.

use super::document::{GATEWAY_API, Metadata, Reader, Resource, present};
use super::error::Place;
use super::gateway_options;
use super::{ConfigError, Draft};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{service::is_host, v1};
use sidewind_identity::{SpiffeId, SpiffeIdPattern};
use std::collections::{BTreeMap, HashMap};

/// The class of gateways that are Sidewind's.
const CLASS: &str = "sidewind";
/// Names the proxies that serve a gateway, by patterns of SPIFFE IDs, where they are not `/ns/NAMESPACE/sa/NAME`.
const SPIFFE_IDS: &str = "sidewind.dev/spiffe-ids";
/// `"true"`: every HTTP listener redirects to the HTTPS listener for the same host.
const HTTPS_REDIRECT: &str = "sidewind.dev/https-redirect";
/// Gateway API's own bound.
const MAX_LISTENERS: usize = 64;
const MAX_CERTIFICATES: usize = 64;

/// A checked gateway.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Empty: `/ns/NAMESPACE/sa/NAME` of this trust domain.
    served_by: Vec<SpiffeIdPattern>,
    pub(super) listeners: Vec<Listener>,
}

/// A listener of a gateway, with what may be attached to it.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) api: v1::GatewayListener,
    /// Whether routes of other namespaces than the gateway's may be attached.
    all_namespaces: bool,
    /// Kinds of routes that may be; empty: those that the protocol has.
    kinds: Vec<String>,
    /// Requests are redirected to HTTPS, whatever routes say.
    pub(super) redirects: bool,
}

/// The gateway, and perhaps the listener, that a route wants to be attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GatewayParent {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) section: Option<String>,
    pub(super) port: Option<u16>,
    /// Of the reference, for messages.
    pub(super) at: Place,
}

impl Gateway {
    /// Whether a proxy of this identity serves the gateway.
    pub(super) fn is_served_by(&self, id: &SpiffeId) -> bool {
        if self.served_by.is_empty() {
            return id.path() == format!("/ns/{}/sa/{}", self.namespace, self.name);
        }
        self.served_by.iter().any(|pattern| pattern.matches(id))
    }
}

/// Where a route is attached: indices of gateways and of their listeners.
pub(super) type Attachment = (usize, usize);

/// Finds the listeners that a route of `kind` in `namespace` is attached to.
///
/// # Errors
/// When there are none, with the reason.
pub(super) fn attach(
    gateways: &[Gateway],
    parent: &GatewayParent,
    kind: &str,
    namespace: &str,
    hostnames: &[String],
) -> Result<Vec<Attachment>, ConfigError> {
    let named = |gateway: &Gateway| {
        (&gateway.namespace, &gateway.name) == (&parent.namespace, &parent.name)
    };
    let Some((index, gateway)) = gateways.iter().enumerate().find(|(_, g)| named(g)) else {
        let message = format!(
            "names Gateway {}/{}, which no document describes",
            parent.namespace, parent.name
        );
        return Err(parent.at.error(message));
    };
    let is_meant = |listener: &Listener| {
        let section = parent.section.as_ref();
        section.is_none_or(|section| *section == listener.api.name)
            && parent
                .port
                .is_none_or(|port| u32::from(port) == listener.api.port)
    };
    let meant = gateway.listeners.iter().enumerate();
    let meant: Vec<_> = meant.filter(|(_, listener)| is_meant(listener)).collect();
    if meant.is_empty() {
        let message = "names a listener that the Gateway does not have";
        return Err(parent.at.error(message.to_owned()));
    }
    let allowed = meant.iter().filter(|(_, listener)| {
        listener.allows(kind) && (listener.all_namespaces || namespace == gateway.namespace)
    });
    let allowed: Vec<_> = allowed.collect();
    if allowed.is_empty() {
        let message = format!(
            "names listeners that take no {kind} of namespace {namespace}; their `allowedRoutes` and protocols say what they take"
        );
        return Err(parent.at.error(message));
    }
    let meet = |listener: &Listener| {
        let of_listener = listener.api.hostname.as_str();
        hostnames.is_empty()
            || hostnames
                .iter()
                .any(|host| hosts::have_one_in_common(host, of_listener))
    };
    let met = allowed.iter().filter(|(_, listener)| meet(listener));
    let met: Vec<_> = met.map(|(listener, _)| (index, *listener)).collect();
    if met.is_empty() {
        let message = "names listeners for other hosts than all of the route's `hostnames`";
        return Err(parent.at.error(message.to_owned()));
    }
    Ok(met)
}

impl Listener {
    fn allows(&self, kind: &str) -> bool {
        let of_protocol = match self.api.protocol() {
            v1::GatewayProtocol::TlsPassthrough => kind == "TLSRoute",
            _ => kind != "TLSRoute",
        };
        of_protocol && (self.kinds.is_empty() || self.kinds.iter().any(|allowed| allowed == kind))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    gateway_class_name: Spanned<String>,
    listeners: Spanned<Vec<Spanned<ListenerSpec>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListenerSpec {
    name: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    hostname: Option<Spanned<String>>,
    port: Spanned<u16>,
    protocol: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    tls: Option<Spanned<Tls>>,
    #[serde(default, deserialize_with = "present")]
    allowed_routes: Option<AllowedRoutes>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tls {
    #[serde(default, deserialize_with = "present")]
    mode: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    certificate_refs: Option<Spanned<Vec<Spanned<CertificateRef>>>>,
    #[serde(default, deserialize_with = "present")]
    options: Option<Spanned<BTreeMap<String, Spanned<String>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CertificateRef {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    namespace: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AllowedRoutes {
    #[serde(default, deserialize_with = "present")]
    namespaces: Option<RouteNamespaces>,
    #[serde(default, deserialize_with = "present")]
    kinds: Option<Vec<Spanned<RouteKind>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RouteNamespaces {
    from: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RouteKind {
    #[serde(default)]
    group: Option<String>,
    kind: String,
}

/// Reads a gateway into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let Resource { metadata, spec, .. } = &resource;
    let (namespace, name) = metadata.check("Gateway", reader, draft);
    if spec.gateway_class_name.value != CLASS {
        reader.refuse(
            &spec.gateway_class_name,
            format!("must be {CLASS}; others are not this control plane's"),
        );
    }
    let served_by = read_served_by(reader, metadata);
    let redirects = match metadata.annotation(HTTPS_REDIRECT) {
        None => false,
        Some(value) if value.value == "true" => true,
        Some(value) if value.value == "false" => false,
        Some(value) => {
            reader.refuse(value, "must be \"true\" or \"false\"");
            false
        }
    };
    let specs = &spec.listeners;
    if specs.value.is_empty() || specs.value.len() > MAX_LISTENERS {
        reader.refuse(specs, format!("must be 1 to {MAX_LISTENERS} listeners"));
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for spec in &specs.value {
        let mut listener = read_listener(reader, spec, &namespace);
        listener.api.gateway = format!("{namespace}/{name}");
        check_beside(reader, &spec.value, &listener, &listeners);
        listeners.push(listener);
    }
    if let Some(at) = metadata.annotation(HTTPS_REDIRECT).filter(|_| redirects)
        && let Err(problem) = redirect_to_https(&mut listeners)
    {
        reader.refuse(at, problem);
    }
    if reader.is_sound() {
        draft.add_gateway(Gateway {
            namespace,
            name,
            served_by,
            listeners,
        });
    }
}

fn read_served_by(reader: &mut Reader<'_>, metadata: &Metadata) -> Vec<SpiffeIdPattern> {
    let Some(annotation) = metadata.annotation(SPIFFE_IDS) else {
        return Vec::new();
    };
    let mut patterns = Vec::new();
    for text in annotation.value.split(',').map(str::trim) {
        match SpiffeIdPattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => reader.refuse(
                annotation,
                format!("{text:?} is not a SPIFFE ID pattern: {error}"),
            ),
        }
    }
    patterns
}

fn read_listener(
    reader: &mut Reader<'_>,
    spec: &Spanned<ListenerSpec>,
    namespace: &str,
) -> Listener {
    let ListenerSpec {
        name,
        hostname,
        port,
        protocol,
        tls,
        allowed_routes,
    } = &spec.value;
    if !is_host(&name.value) {
        reader.refuse(name, "must be of lower-case letters, digits, `-` and `.`");
    }
    if port.value == 0 {
        reader.refuse(port, "must be a port from 1 to 65535");
    }
    let mut api = v1::GatewayListener {
        name: name.value.clone(),
        port: port.value.into(),
        hostname: hostname
            .as_ref()
            .map_or_else(String::new, |host| read_hostname(reader, host)),
        ..v1::GatewayListener::default()
    };
    let mode = tls.as_ref().and_then(|tls| tls.value.mode.as_ref());
    let passthrough = match mode.map(|mode| (mode, mode.value.as_str())) {
        None | Some((_, "Terminate")) => false,
        Some((_, "Passthrough")) => true,
        Some((mode, _)) => {
            reader.refuse(mode, "must be Terminate or Passthrough");
            false
        }
    };
    let kind = match (protocol.value.as_str(), passthrough) {
        ("HTTP", _) => v1::GatewayProtocol::Http,
        ("HTTPS", false) => v1::GatewayProtocol::Https,
        ("TLS", true) => v1::GatewayProtocol::TlsPassthrough,
        ("HTTPS", true) => {
            reader.refuse(protocol, "is TLS where TLS is passed through");
            v1::GatewayProtocol::Unspecified
        }
        ("TLS", false) => {
            reader.refuse(
                protocol,
                "is for TLS that is passed through, with `tls: { mode: Passthrough }`; where TLS ends here it is HTTPS",
            );
            v1::GatewayProtocol::Unspecified
        }
        _ => {
            reader.refuse(protocol, "must be HTTP, HTTPS or TLS");
            v1::GatewayProtocol::Unspecified
        }
    };
    api.set_protocol(kind);
    match (kind, tls) {
        (v1::GatewayProtocol::Http, Some(tls)) => {
            reader.refuse(tls, "has no meaning with protocol HTTP");
        }
        (v1::GatewayProtocol::Https, None) => {
            reader.refuse(spec, "must have `tls` with `certificateRefs`");
        }
        (v1::GatewayProtocol::Https, Some(tls)) => {
            read_termination(reader, tls, namespace, &mut api);
        }
        (v1::GatewayProtocol::TlsPassthrough, Some(tls)) => {
            let unused = "has no meaning where TLS is passed through";
            if let Some(refs) = &tls.value.certificate_refs {
                reader.refuse(refs, unused);
            }
            if let Some(options) = &tls.value.options {
                reader.refuse(options, unused);
            }
        }
        _ => {}
    }
    let (all_namespaces, kinds) = read_allowed(reader, allowed_routes.as_ref());
    Listener {
        api,
        all_namespaces,
        kinds,
        redirects: false,
    }
}

/// A host name, or `*.` and one.
pub(super) fn read_hostname(reader: &mut Reader<'_>, host: &Spanned<String>) -> String {
    let name = host.value.strip_prefix("*.").unwrap_or(&host.value);
    if !is_host(name) || name.parse::<std::net::IpAddr>().is_ok() {
        let message = "must be a host name in lower case, or `*.` and one, like *.example.com";
        reader.refuse(host, message);
    }
    host.value.clone()
}

fn read_termination(
    reader: &mut Reader<'_>,
    tls: &Spanned<Tls>,
    namespace: &str,
    api: &mut v1::GatewayListener,
) {
    match &tls.value.certificate_refs {
        None => reader.refuse(tls, "must have `certificateRefs`"),
        Some(refs) => {
            if refs.value.is_empty() || refs.value.len() > MAX_CERTIFICATES {
                reader.refuse(refs, format!("must be 1 to {MAX_CERTIFICATES}"));
            }
            for reference in &refs.value {
                read_certificate(reader, reference, namespace);
                api.certificates.push(reference.value.name.value.clone());
            }
        }
    }
    for (option, value) in tls.value.options.iter().flat_map(|options| &options.value) {
        if let Err(problem) = gateway_options::apply(option, &value.value, api) {
            reader.refuse(value, problem);
        }
    }
}

/// The name becomes a directory beside the gateway, so it must be one.
fn read_certificate(reader: &mut Reader<'_>, reference: &Spanned<CertificateRef>, namespace: &str) {
    let CertificateRef {
        group,
        kind,
        name,
        namespace: own,
    } = &reference.value;
    let is_secret = group.as_deref().unwrap_or_default().is_empty()
        && kind.as_deref().is_none_or(|kind| kind == "Secret");
    if !is_secret {
        reader.refuse(reference, "must be a Secret: `kind: Secret`, or no kind");
    }
    if !is_host(&name.value) {
        reader.refuse(name, "must be of lower-case letters, digits, `-` and `.`");
    }
    if let Some(other) = own.as_ref().filter(|own| own.value != namespace) {
        reader.refuse(other, "must be the gateway's own, or left out");
    }
}

fn read_allowed(reader: &mut Reader<'_>, allowed: Option<&AllowedRoutes>) -> (bool, Vec<String>) {
    let Some(allowed) = allowed else {
        return (false, Vec::new());
    };
    let from = allowed
        .namespaces
        .as_ref()
        .map(|namespaces| &namespaces.from);
    let all = match from.map(|from| (from, from.value.as_str())) {
        None | Some((_, "Same")) => false,
        Some((_, "All")) => true,
        Some((from, _)) => {
            reader.refuse(from, "must be Same or All");
            false
        }
    };
    let mut kinds = Vec::new();
    for kind in allowed.kinds.iter().flatten() {
        let group = kind.value.group.as_deref();
        let of_gateway_api = group.is_none_or(|group| GATEWAY_API.starts_with(group));
        let known = ["HTTPRoute", "GRPCRoute", "TLSRoute"];
        if !of_gateway_api || !known.contains(&kind.value.kind.as_str()) {
            reader.refuse(kind, format!("must be one of {}", known.join(", ")));
        }
        kinds.push(kind.value.kind.clone());
    }
    (all, kinds)
}

/// Listeners of one port differ in their host names, and all speak TLS or none does.
fn check_beside(
    reader: &mut Reader<'_>,
    spec: &ListenerSpec,
    listener: &Listener,
    others: &[Listener],
) {
    let api = &listener.api;
    for other in others.iter().map(|other| &other.api) {
        if other.name == api.name {
            reader.refuse(&spec.name, "is another listener's too");
        }
        if other.port != api.port {
            continue;
        }
        let plain =
            |listener: &v1::GatewayListener| listener.protocol() == v1::GatewayProtocol::Http;
        if plain(other) != plain(api) {
            let message = format!(
                "is another than that of listener {} on the same port: a port speaks TLS or not",
                other.name
            );
            reader.refuse(&spec.protocol, message);
        } else if other.hostname == api.hostname {
            let message = format!("has the port and host name of listener {}", other.name);
            reader.refuse(&spec.port, message);
        }
    }
}

/// Requests to HTTP listeners are sent on to the HTTPS listener for the same host, or to any.
fn redirect_to_https(listeners: &mut [Listener]) -> Result<(), &'static str> {
    let https: HashMap<String, u32> = listeners
        .iter()
        .filter(|listener| listener.api.protocol() == v1::GatewayProtocol::Https)
        .map(|listener| (listener.api.hostname.clone(), listener.api.port))
        .collect();
    let any = https.values().min().copied();
    let any =
        any.ok_or("needs a listener with protocol HTTPS, to which requests are redirected")?;
    for listener in listeners {
        if listener.api.protocol() == v1::GatewayProtocol::Http {
            let port = https.get(&listener.api.hostname).copied().unwrap_or(any);
            listener.api.routes = Some(redirect(&listener.api.gateway, port));
            listener.redirects = true;
        }
    }
    Ok(())
}

/// One rule for every request.
fn redirect(gateway: &str, port: u32) -> v1::RouteTable {
    let redirect = v1::RequestRedirect {
        scheme: "https".to_owned(),
        port,
        // Clients repeat the method and the body of what they sent (RFC 9110, section 15.4.9).
        status: 308,
        ..v1::RequestRedirect::default()
    };
    let filter = v1::RouteFilter {
        filter: Some(v1::route_filter::Filter::Redirect(redirect)),
    };
    v1::RouteTable {
        rules: vec![v1::RouteRule {
            route: gateway.to_owned(),
            name: "https-redirect".to_owned(),
            filters: vec![filter],
            ..v1::RouteRule::default()
        }],
    }
}

mod hosts;
#[cfg(test)]
mod tests;
