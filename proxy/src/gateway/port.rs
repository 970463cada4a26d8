//! A port as it is served: its listeners, told apart by host name, with their TLS configurations.

use std::{fmt, sync::Arc};

use http::HeaderValue;
use rustls::{
    ConfigBuilder, ServerConfig, WantsVerifier,
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use sidewind_api::v1;

use super::{
    certificates::{Certificates, ServedCertificate},
    hosts::{HostPattern, narrowest},
};
use crate::route::RuleError;

/// HTTP/2 first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What is served on one port.
#[derive(Debug)]
pub(super) struct Port {
    /// Whether its clients speak TLS.
    pub(super) tls: bool,
    listeners: Vec<Arc<Listener>>,
}

/// One listener of a Gateway document.
#[derive(Debug)]
pub(super) struct Listener {
    /// `namespace/gateway/listener`, which no two share.
    pub(super) name: String,
    hosts: HostPattern,
    pub(super) ends: TlsEnds,
    pub(super) hsts: Option<HeaderValue>,
    pub(super) routes: Option<v1::RouteTable>,
    pub(super) bounds: Option<v1::Bounds>,
    pub(super) rate_limits: Vec<v1::RateLimit>,
}

/// Where a listener's TLS ends.
#[derive(Debug)]
pub(super) enum TlsEnds {
    /// There is none.
    Plain,
    Here(Arc<ServerConfig>),
    /// Behind the gateway.
    Behind(Vec<TlsRoute>),
}

/// Where TLS for some server names goes.
#[derive(Debug)]
pub(super) struct TlsRoute {
    hosts: Vec<HostPattern>,
    /// Destinations with their weights.
    backends: Vec<(String, u32)>,
}

/// Why a listener is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenerError {
    #[error("its protocol is not one that this version knows")]
    Protocol,
    #[error("port {0} is none")]
    Port(u32),
    #[error("it speaks TLS and another listener of its port does not, or the reverse")]
    Mixed,
    #[error("another listener of its port has its host name")]
    Taken,
    #[error("none of its certificates can be used")]
    NoCertificate,
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("its routes cannot be read")]
    Routes(#[from] RuleError),
}

impl Port {
    pub(super) fn new(tls: bool) -> Self {
        Self {
            tls,
            listeners: Vec::new(),
        }
    }

    /// Adds a listener to those of its port.
    ///
    /// # Errors
    /// Where it does not go with the others.
    pub(super) fn add(&mut self, listener: Arc<Listener>) -> Result<(), ListenerError> {
        if self.tls != listener.speaks_tls() {
            return Err(ListenerError::Mixed);
        }
        if self
            .listeners
            .iter()
            .any(|other| other.hosts == listener.hosts)
        {
            return Err(ListenerError::Taken);
        }
        self.listeners.push(listener);
        Ok(())
    }

    pub(super) fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners
    }

    /// The only listener of the port, where there are no others.
    pub(super) fn only_listener(&self) -> Option<&Arc<Listener>> {
        match self.listeners.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The listener for a host in lower case; for none, that of all hosts.
    pub(super) fn listener(&self, host: &str) -> Option<&Arc<Listener>> {
        narrowest(
            self.listeners
                .iter()
                .map(|listener| (&listener.hosts, listener)),
            host,
        )
    }
}

impl Listener {
    /// Whether its clients speak TLS.
    pub(super) fn speaks_tls(&self) -> bool {
        !matches!(self.ends, TlsEnds::Plain)
    }

    /// Its name among those of all gateways.
    pub(super) fn name_of(listener: &v1::GatewayListener) -> String {
        format!("{}/{}", listener.gateway, listener.name)
    }

    pub(super) fn new(
        listener: &v1::GatewayListener,
        certificates: &Certificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, ListenerError> {
        let ends = match listener.protocol() {
            v1::GatewayProtocol::Http => TlsEnds::Plain,
            v1::GatewayProtocol::Https => {
                let served = listener.certificates.iter();
                let served: Vec<_> = served
                    .filter_map(|name| certificates.get(name).cloned())
                    .collect();
                let resolver = Resolver::new(served).ok_or(ListenerError::NoCertificate)?;
                TlsEnds::Here(server_config(resolver, listener.tls13_only, provider)?)
            }
            v1::GatewayProtocol::TlsPassthrough => {
                TlsEnds::Behind(listener.tls_routes.iter().map(TlsRoute::new).collect())
            }
            v1::GatewayProtocol::Unspecified => return Err(ListenerError::Protocol),
        };
        let hsts = listener.hsts_seconds.and_then(|seconds| {
            let subdomains = match listener.hsts_include_subdomains {
                true => "; includeSubDomains",
                false => "",
            };
            HeaderValue::try_from(format!("max-age={seconds}{subdomains}")).ok()
        });
        Ok(Self {
            name: Self::name_of(listener),
            hosts: HostPattern::new(&listener.hostname),
            // Browsers are to ignore it over plain HTTP (RFC 6797, section 8.1).
            hsts: hsts.filter(|_| matches!(ends, TlsEnds::Here(_))),
            ends,
            routes: listener.routes.clone(),
            bounds: listener.bounds,
            rate_limits: listener.rate_limits.clone(),
        })
    }
}

impl TlsRoute {
    fn new(route: &v1::GatewayTlsRoute) -> Self {
        let hosts = match route.hostnames.is_empty() {
            true => vec![HostPattern::Any],
            false => route
                .hostnames
                .iter()
                .map(|host| HostPattern::new(host))
                .collect(),
        };
        let backends = route.backends.iter();
        Self {
            hosts,
            backends: backends
                .map(|backend| (backend.destination.clone(), backend.weight))
                .collect(),
        }
    }

    /// The destination of a connection with this server name, `draw` being a random number.
    pub(super) fn destination<'a>(routes: &'a [Self], name: &str, draw: u32) -> Option<&'a str> {
        let candidates = routes
            .iter()
            .flat_map(|route| route.hosts.iter().map(move |host| (host, route)));
        let route = narrowest(candidates, name)?;
        let total: u64 = route
            .backends
            .iter()
            .map(|(_, weight)| u64::from(*weight))
            .sum();
        let mut left = (u64::from(draw) * total) >> u32::BITS;
        for (destination, weight) in &route.backends {
            let weight = u64::from(*weight);
            if left < weight {
                return Some(destination);
            }
            left -= weight;
        }
        None
    }
}

fn server_config(
    resolver: Resolver,
    tls13_only: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls13_only {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let builder: ConfigBuilder<ServerConfig, WantsVerifier> =
        ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)?;
    let mut config = builder
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    // As everywhere: no session is resumed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Chooses a listener's certificate by server name.
struct Resolver {
    certificates: Vec<ServedCertificate>,
    /// For names that none has, and for clients that name none.
    first: Arc<CertifiedKey>,
}

impl Resolver {
    fn new(certificates: Vec<ServedCertificate>) -> Option<Self> {
        let first = Arc::clone(&certificates.first()?.key);
        Some(Self {
            certificates,
            first,
        })
    }

    fn choose(&self, name: &str) -> Arc<CertifiedKey> {
        let candidates = self.certificates.iter().flat_map(|certificate| {
            let of = move |pattern| (pattern, &certificate.key);
            certificate.names.iter().map(of)
        });
        Arc::clone(narrowest(candidates, name).unwrap_or(&self.first))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default();
        Some(self.choose(&name.to_ascii_lowercase()))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
