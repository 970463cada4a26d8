//! `ServiceEntry`: names and addresses that stand for a service of the mesh, or for fixed endpoints.

use super::Draft;
use super::document::{Reader, Resource, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::service::{PROTOCOLS, is_host, protocol_from_name};
use sidewind_api::{ServiceName, v1::Protocol};
use sidewind_identity::SpiffeId;
use std::net::IpAddr;

/// The mesh port where nothing else is said.
const MESH_PORT: u16 = 15008;

/// A checked entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `namespace/name`, for logs.
    pub name: String,
    /// Host names that clients call.
    pub hosts: Vec<String>,
    /// Addresses that clients call.
    pub addresses: Vec<IpAddr>,
    /// Ports that clients call.
    pub ports: Vec<EntryPort>,
    /// What stands behind.
    pub backend: Backend,
}

/// A port of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPort {
    /// What clients call.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The port of the endpoints, where it is another.
    pub target_port: Option<u16>,
}

/// What stands behind an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// The workloads of a service.
    Service(ServiceName),
    /// These endpoints.
    Endpoints(Vec<EntryEndpoint>),
}

/// A fixed endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port, where it is not the target port of the entry's.
    pub port: Option<u16>,
    /// Set where it is in the mesh though it does not register here: who must answer, and where.
    pub mesh: Option<MeshEndpoint>,
}

/// How an endpoint is called that is in the mesh of another control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshEndpoint {
    /// Who must answer.
    pub spiffe_id: SpiffeId,
    /// The port of its proxy's mesh listener.
    pub port: u16,
}

impl ServiceEntry {
    /// What the entry says of a port that clients call.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&EntryPort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// The name that the entry's service goes by when fixed endpoints stand behind it.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.hosts.first().cloned().unwrap_or_else(|| {
            let (namespace, name) = self.name.split_once('/').unwrap_or(("default", &self.name));
            format!("{name}.{namespace}")
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default, deserialize_with = "present")]
    hosts: Option<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    addresses: Option<Vec<Spanned<String>>>,
    ports: Spanned<Vec<Port>>,
    #[serde(default, deserialize_with = "present")]
    service: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    endpoints: Option<Spanned<Vec<Endpoint>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Port {
    port: Spanned<u16>,
    #[serde(default, deserialize_with = "present")]
    protocol: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    target_port: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    address: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Spanned<u16>>,
    #[serde(default, deserialize_with = "present")]
    spiffe_id: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    mesh_port: Option<Spanned<u16>>,
}

/// Reads an entry into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spanned<Spec>>>() else {
        return;
    };
    let (namespace, name) = resource.metadata.check("ServiceEntry", reader, draft);
    let spec = &resource.spec.value;
    let hosts = read_hosts(reader, spec);
    let addresses = read_addresses(reader, spec);
    if hosts.is_empty() && addresses.is_empty() {
        reader.refuse(
            &resource.spec,
            "must have hosts or addresses: what clients call",
        );
    }
    let ports = read_ports(reader, spec);
    for (host, at) in &hosts {
        for port in &ports {
            reader.take(draft, at, format!("{host}:{}", port.port));
        }
    }
    for (address, at) in &addresses {
        for port in &ports {
            reader.take(draft, at, format!("{address} port {}", port.port));
        }
    }
    let backend = read_backend(reader, draft, &resource.spec);
    let Some(backend) = backend.filter(|_| reader.is_sound()) else {
        return;
    };
    draft.add_entry(ServiceEntry {
        name: format!("{namespace}/{name}"),
        hosts: hosts.into_iter().map(|(host, _)| host).collect(),
        addresses: addresses.into_iter().map(|(address, _)| address).collect(),
        ports,
        backend,
    });
}

fn read_hosts<'s>(reader: &mut Reader<'_>, spec: &'s Spec) -> Vec<(String, &'s Spanned<String>)> {
    let mut hosts = Vec::new();
    for host in spec.hosts.iter().flatten() {
        if host.value.parse::<IpAddr>().is_ok() {
            reader.refuse(host, "is an address; give it under `addresses`");
        } else if !is_host(&host.value) {
            reader.refuse(
                host,
                format!("{:?} is not a host name in lower case", host.value),
            );
        } else {
            hosts.push((host.value.clone(), host));
        }
    }
    hosts
}

fn read_addresses<'s>(
    reader: &mut Reader<'_>,
    spec: &'s Spec,
) -> Vec<(IpAddr, &'s Spanned<String>)> {
    let read = |text| Some((read_address(reader, text)?, text));
    spec.addresses.iter().flatten().filter_map(read).collect()
}

fn read_address(reader: &mut Reader<'_>, text: &Spanned<String>) -> Option<IpAddr> {
    match text.value.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            reader.refuse(text, format!("{address} is not the address of one host"));
            None
        }
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            let message = format!(
                "{:?} is not an IP address; names go under `hosts`",
                text.value
            );
            reader.refuse(text, message);
            None
        }
    }
}

fn read_ports(reader: &mut Reader<'_>, spec: &Spec) -> Vec<EntryPort> {
    if spec.ports.value.is_empty() {
        reader.refuse(&spec.ports, "must name at least one port");
    }
    let mut ports: Vec<EntryPort> = Vec::new();
    for port in &spec.ports.value {
        check_port(reader, &port.port);
        if let Some(target) = &port.target_port {
            check_port(reader, target);
        }
        if ports.iter().any(|other| other.port == port.port.value) {
            reader.refuse(&port.port, "is given twice");
        }
        let protocol = port.protocol.as_ref().map(|name| {
            protocol_from_name(&name.value).unwrap_or_else(|| {
                let known: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
                let known = known.join(", ");
                reader.refuse(name, format!("{:?} is not one of {known}", name.value));
                Protocol::Unspecified
            })
        });
        ports.push(EntryPort {
            port: port.port.value,
            protocol: protocol.unwrap_or(Protocol::Unspecified),
            target_port: port.target_port.as_ref().map(|target| target.value),
        });
    }
    ports
}

/// Who must answer at an endpoint, where that is said.
fn read_mesh(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    endpoint: &Endpoint,
) -> Option<MeshEndpoint> {
    if let Some(port) = &endpoint.mesh_port {
        check_port(reader, port);
        if endpoint.spiffe_id.is_none() {
            reader.refuse(port, "needs `spiffeId`: who must answer there");
        }
    }
    let text = endpoint.spiffe_id.as_ref()?;
    let spiffe_id = match SpiffeId::parse(&text.value) {
        Ok(id) if id.is_workload() => id,
        Ok(_) => {
            reader.refuse(
                text,
                "is a trust domain's and no workload's: it needs a path",
            );
            return None;
        }
        Err(error) => {
            reader.refuse(text, error);
            return None;
        }
    };
    let (place, domain) = (reader.place(text), spiffe_id.trust_domain().clone());
    draft.endpoint_identities.push((place, domain));
    let port = endpoint.mesh_port.as_ref().map_or(MESH_PORT, |it| it.value);
    Some(MeshEndpoint { spiffe_id, port })
}

fn read_backend(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    spec: &Spanned<Spec>,
) -> Option<Backend> {
    match (&spec.value.service, &spec.value.endpoints) {
        (Some(service), None) => match service.value.parse() {
            Ok(name) => Some(Backend::Service(name)),
            Err(error) => {
                reader.refuse(service, error);
                None
            }
        },
        (None, Some(endpoints)) => {
            if endpoints.value.is_empty() {
                reader.refuse(endpoints, "must name at least one endpoint");
            }
            let mut read = Vec::new();
            for endpoint in &endpoints.value {
                if let Some(port) = &endpoint.port {
                    check_port(reader, port);
                }
                let mesh = read_mesh(reader, draft, endpoint);
                if let Some(address) = read_address(reader, &endpoint.address) {
                    let port = endpoint.port.as_ref().map(|port| port.value);
                    read.push(EntryEndpoint {
                        address,
                        port,
                        mesh,
                    });
                }
            }
            Some(Backend::Endpoints(read))
        }
        _ => {
            reader.refuse(
                spec,
                "must have either `service` or `endpoints`: what stands behind",
            );
            None
        }
    }
}

fn check_port(reader: &mut Reader<'_>, port: &Spanned<u16>) {
    if port.value == 0 {
        reader.refuse(port, "must be a port from 1 to 65535");
    }
}
