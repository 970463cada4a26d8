//! A destination into its service and endpoints.

use super::Topic;
use super::directory::Directory;
use super::workload::{Port, WorkloadRecord};
use crate::config::{Backend, Config, EntryEndpoint, EntryPort, MeshEndpoint, ServiceEntry};
use aws_lc_rs::hmac;
use sidewind_api::{Destination, ServiceName, v1};
use sidewind_identity::SpiffeId;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A destination as one workload means it: a host of one label is a service of its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Query {
    destination: Destination,
    /// Set where it makes a difference, so that all namespaces share every other answer.
    namespace: Option<Arc<str>>,
}

impl Query {
    /// The destination as a workload of this identity means it.
    #[must_use]
    pub fn new(destination: Destination, workload: &SpiffeId) -> Self {
        let one_label =
            matches!(&destination, Destination::Host { host, .. } if !host.contains('.'));
        let namespace = one_label.then(|| namespace_of(workload)).flatten();
        Self {
            destination,
            namespace,
        }
    }
}

/// The namespace in an ID of the form `/ns/<namespace>/…`.
fn namespace_of(workload: &SpiffeId) -> Option<Arc<str>> {
    let mut segments = workload.segments();
    (segments.next() == Some("ns")).then(|| segments.next().map(Arc::from))?
}

/// An answer, with what it depends on.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// Absent when the destination is outside the mesh.
    pub(super) service: Option<v1::Service>,
    pub(super) topics: HashSet<Topic>,
}

/// What destinations are resolved by.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    directory: &'a Directory,
    config: &'a Config,
    /// Of the own trust domain.
    bundles: &'a v1::TrustBundles,
}

impl<'a> View<'a> {
    pub(super) fn new(
        directory: &'a Directory,
        config: &'a Config,
        bundles: &'a v1::TrustBundles,
    ) -> Self {
        Self {
            directory,
            config,
            bundles,
        }
    }

    /// Resolves a destination. Resources come before what registered by itself: they are the operator's.
    pub(super) fn resolve(self, query: &Query) -> Answer {
        let mut topics = HashSet::new();
        let service = match &query.destination {
            Destination::Address(address) => match self.entry_of_address(*address) {
                Some((entry, port)) => Some(self.entry(entry, port, &mut topics)),
                None => self.address(*address, &mut topics),
            },
            Destination::Host { host, port } => match self.entry_of_host(host, *port) {
                Some((entry, port)) => Some(self.entry(entry, port, &mut topics)),
                None => {
                    let namespace = query.namespace.as_deref();
                    let name = ServiceName::from_host(host, namespace);
                    name.and_then(|name| self.service(&name, *port, &mut topics))
                }
            },
        };
        Answer { service, topics }
    }

    fn entry_of_address(self, address: SocketAddr) -> Option<(&'a ServiceEntry, &'a EntryPort)> {
        let entry = self.config.entry_of_address(address.ip(), address.port())?;
        Some((entry, entry.port(address.port())?))
    }

    fn entry_of_host(self, host: &str, port: u16) -> Option<(&'a ServiceEntry, &'a EntryPort)> {
        let entry = self.config.entry_of_host(host, port)?;
        Some((entry, entry.port(port)?))
    }

    /// A service that workloads offer, if it is one of the mesh: with no endpoints when nobody is there.
    fn service(
        self,
        name: &ServiceName,
        port: u16,
        topics: &mut HashSet<Topic>,
    ) -> Option<v1::Service> {
        topics.insert(Topic::Service(name.clone()));
        if !self.directory.knows_service(name) && !self.config.names_service(name) {
            return None;
        }
        let offers = |candidate: &Port| candidate.service == Some((name.clone(), port));
        Some(self.service_by(name, port, None, &offers))
    }

    fn service_by(
        self,
        name: &ServiceName,
        port: u16,
        protocol: Option<v1::Protocol>,
        offers: &dyn Fn(&Port) -> bool,
    ) -> v1::Service {
        // In an order of their own, so that the same endpoints make the same message.
        let mut endpoints = BTreeMap::new();
        let mut protocols = HashSet::new();
        for workload in self.directory.of_service(name) {
            for served in workload.ports.iter().filter(|port| offers(port)) {
                let place = (workload.address, served.target);
                // The newest comes first; an older one at the same place is a stale registration.
                if let Entry::Vacant(vacant) = endpoints.entry(place) {
                    vacant.insert(mesh_endpoint(workload, served.target));
                    protocols.insert(served.protocol);
                }
            }
        }
        // Workloads that disagree are told apart by what each connection carries.
        let mut protocols = protocols.into_iter();
        let agreed = protocols.next().filter(|_| protocols.next().is_none());
        let (route, routes) = self.config.routes(name, port);
        let mut service = v1::Service {
            name: name.to_string(),
            port: port.into(),
            protocol: protocol.or(agreed).unwrap_or_default().into(),
            endpoints: endpoints.into_values().collect(),
            route,
            routes,
            ..Default::default()
        };
        self.apply_traffic_policy(name, port, &mut service);
        service
    }

    /// A workload dialled by its address.
    fn address(self, address: SocketAddr, topics: &mut HashSet<Topic>) -> Option<v1::Service> {
        let (ip, port) = (address.ip(), address.port());
        topics.insert(Topic::Address(ip));
        let unnamed = |endpoints| v1::Service {
            name: ip.to_string(),
            port: port.into(),
            endpoints,
            ..Default::default()
        };
        let Some(workload) = self.directory.at(ip, port) else {
            let held = self.directory.holds(ip, port);
            return held.then(|| unnamed(Vec::new()));
        };
        let endpoints = vec![mesh_endpoint(workload, port)];
        let served = workload.ports.iter().find(|served| served.target == port);
        let Some(served) = served else {
            return Some(unnamed(endpoints));
        };
        let mut service = unnamed(endpoints);
        service.protocol = served.protocol.into();
        if let Some((name, service_port)) = &served.service {
            service.name = name.to_string();
            service.port = (*service_port).into();
            (service.route, service.routes) = self.config.routes(name, *service_port);
            self.apply_traffic_policy(name, *service_port, &mut service);
        }
        Some(service)
    }

    fn entry(
        self,
        entry: &ServiceEntry,
        port: &EntryPort,
        topics: &mut HashSet<Topic>,
    ) -> v1::Service {
        let declared = Some(port.protocol).filter(|p| *p != v1::Protocol::Unspecified);
        match &entry.backend {
            Backend::Service(name) => {
                topics.insert(Topic::Service(name.clone()));
                let offers = |candidate: &Port| {
                    let of_service = candidate.service.as_ref().filter(|(n, _)| n == name);
                    of_service.is_some_and(|(_, service_port)| match port.target_port {
                        Some(target) => candidate.target == target,
                        None => *service_port == port.port,
                    })
                };
                self.service_by(name, port.port, declared, &offers)
            }
            Backend::Endpoints(endpoints) => {
                let endpoint = |endpoint: &EntryEndpoint| {
                    let target = endpoint.port.or(port.target_port).unwrap_or(port.port);
                    if let Some(mesh) = &endpoint.mesh {
                        return Some(self.foreign_endpoint(endpoint.address, target, mesh));
                    }
                    topics.insert(Topic::Address(endpoint.address));
                    self.entry_endpoint(endpoint.address, target)
                };
                let endpoints = endpoints.iter().filter_map(endpoint).collect();
                let name = entry.display_name();
                let known = name.parse().ok();
                let (route, routes) = known
                    .as_ref()
                    .map(|name| self.config.routes(name, port.port))
                    .unwrap_or_default();
                let mut service = v1::Service {
                    name,
                    port: port.port.into(),
                    protocol: port.protocol.into(),
                    endpoints,
                    route,
                    routes,
                    ..Default::default()
                };
                if let Some(known) = &known {
                    self.apply_traffic_policy(known, port.port, &mut service);
                }
                service
            }
        }
    }

    /// Puts into a service what the policy for it says.
    fn apply_traffic_policy(self, name: &ServiceName, port: u16, service: &mut v1::Service) {
        let Some(policy) = self.config.traffic(name, port) else {
            return;
        };
        if let Some(protocol) = policy.protocol {
            service.set_protocol(protocol);
        }
        for endpoint in &mut service.endpoints {
            let rule = policy.endpoints.iter().find(|rule| rule.matches(endpoint));
            let Some(rule) = rule else { continue };
            endpoint.weight = rule.weight.unwrap_or(endpoint.weight);
            endpoint.priority = rule.priority.unwrap_or(endpoint.priority);
        }
        service.traffic = Some(policy.caller_of(name, port));
    }

    /// A fixed endpoint: in the mesh when a workload is there, plain when none ever was.
    fn entry_endpoint(self, address: IpAddr, port: u16) -> Option<v1::Endpoint> {
        match self.directory.at(address, port) {
            Some(workload) => Some(mesh_endpoint(workload, port)),
            None if self.directory.holds(address, port) => None,
            None => Some(v1::Endpoint {
                address: address.to_string(),
                port: port.into(),
                affinity: self.fixed_affinity(SocketAddr::new(address, port)),
                ..Default::default()
            }),
        }
    }

    /// A fixed endpoint of which the entry itself says who must answer there.
    fn foreign_endpoint(self, address: IpAddr, port: u16, mesh: &MeshEndpoint) -> v1::Endpoint {
        v1::Endpoint {
            address: address.to_string(),
            port: port.into(),
            mesh_port: mesh.port.into(),
            spiffe_id: mesh.spiffe_id.to_string(),
            affinity: self.fixed_affinity(SocketAddr::new(address, port)),
            ..Default::default()
        }
    }

    /// What clients' cookies call an endpoint that no workload of the trust domain registered. It comes from the address, and
    /// is keyed by the first root certificate, so that no browser finds out which by trying all there are: every replica has
    /// that, also after a restart, and no client outside.
    fn fixed_affinity(self, endpoint: SocketAddr) -> Vec<u8> {
        let roots = self.bundles.bundles.first().map(|own| &own.authorities);
        let Some(root) = roots.and_then(|roots| roots.first()) else {
            return Vec::new();
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, root);
        let text = format!("sidewind fixed endpoint affinity v1 {endpoint}");
        let tag = hmac::sign(&key, text.as_bytes());
        tag.as_ref().iter().copied().take(16).collect()
    }
}

fn mesh_endpoint(workload: &WorkloadRecord, port: u16) -> v1::Endpoint {
    v1::Endpoint {
        address: workload.address.to_string(),
        port: port.into(),
        mesh_port: workload.mesh_port.into(),
        spiffe_id: workload.key.spiffe_id.to_string(),
        workload_name: workload.workload_name.clone(),
        zone: workload.zone.clone(),
        affinity: affinity(workload, port),
        ..Default::default()
    }
}

/// What clients' cookies call an endpoint: the same at every replica and after a restart, and nothing that tells an
/// address, since the instance's random name is known to the proxy itself and to control planes alone.
fn affinity(workload: &WorkloadRecord, port: u16) -> Vec<u8> {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    hash.update(b"sidewind endpoint affinity v1\0");
    hash.update(workload.key.instance_id.as_bytes());
    hash.update(&port.to_be_bytes());
    hash.finish().as_ref().iter().copied().take(16).collect()
}
