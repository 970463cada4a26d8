//! What a proxy registers, checked before it is believed.

use crate::store::{Registration, from_unix_seconds, unix_seconds};
use sidewind_api::{MAX_NAME_BYTES, MAX_SERVED_PORTS, Reason, ServiceName, v1};
use sidewind_identity::{PeerIdentity, SpiffeId};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// Names a workload: its identity and its proxy's process. The identity is part of it, so that nobody
/// replaces another's registration by taking its instance's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The process.
    pub instance_id: Arc<str>,
}

/// A port that a workload serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Port on the workload's address.
    pub target: u16,
    /// What is spoken there.
    pub protocol: v1::Protocol,
    /// The service that it is offered under, with the port that its clients use.
    pub service: Option<(ServiceName, u16)>,
}

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadRecord {
    /// Its name in the registry.
    pub key: WorkloadKey,
    /// Its address, as peers dial it.
    pub address: IpAddr,
    /// Where its mesh listener is.
    pub mesh_port: u16,
    /// Whether it is a gateway: nobody's peer, so that its address is not one of the mesh.
    pub gateway: bool,
    /// What it serves.
    pub ports: Vec<Port>,
    /// Its name for people.
    pub workload_name: String,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Its proxy's version.
    pub version: String,
    /// Since when it is registered.
    pub connected_since: SystemTime,
    /// End of the certificate that it registered with.
    pub svid_not_after: SystemTime,
    /// Whether its stream is open; not so between a restart and its return.
    pub confirmed: bool,
}

/// Why a registration is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// A text is too long, missing or has characters that a name cannot have.
    #[error("{field} must be of 1 to {MAX_NAME_BYTES} printable ASCII characters")]
    Name {
        /// Which.
        field: &'static str,
    },
    /// A number is not a port.
    #[error("{field} must be a port from 1 to 65535, not {value}")]
    Port {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u32,
    },
    /// Too many ports.
    #[error("at most {MAX_SERVED_PORTS} ports may be declared, not {0}")]
    TooManyPorts(usize),
    /// A port is declared twice for the same service.
    #[error("port {0} is declared twice for the same service")]
    TwicePort(u16),
    /// The address is no address of one host.
    #[error("address {0:?} is not the IP address of one host")]
    Address(String),
    /// The address is another's.
    #[error(
        "the workload's address is given as {given}, but its connection comes from {peer}; a proxy may register the address that it connects from alone"
    )]
    OtherAddress {
        /// What the proxy said.
        given: IpAddr,
        /// Where the connection comes from.
        peer: IpAddr,
    },
}

impl RegistrationError {
    /// The word of the refusal.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Name { .. } | Self::Port { .. } | Self::Address(_) | Self::TwicePort(_) => {
                Reason::InvalidMessage
            }
            Self::TooManyPorts(_) => Reason::LimitExceeded,
            Self::OtherAddress { .. } => Reason::AddressRefused,
        }
    }
}

impl WorkloadRecord {
    /// Checks what a proxy says of its workload. Services that its registration does not list are taken
    /// out and named in the sentences beside the record; everything else that is wrong refuses the whole.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(
        hello: &v1::ProxyHello,
        identity: &PeerIdentity,
        registration: &Registration,
        peer: IpAddr,
        now: SystemTime,
    ) -> Result<(Self, Vec<String>), RegistrationError> {
        if hello.ports.len() > MAX_SERVED_PORTS {
            return Err(RegistrationError::TooManyPorts(hello.ports.len()));
        }
        let mut refused = Vec::new();
        let mut ports: Vec<Port> = Vec::with_capacity(hello.ports.len());
        for served in &hello.ports {
            let port = check_port(served, registration, &mut refused)?;
            let twice =
                |other: &&Port| other.target == port.target && other.service == port.service;
            if ports.iter().find(twice).is_some() {
                return Err(RegistrationError::TwicePort(port.target));
            }
            ports.push(port);
        }
        let record = Self {
            key: WorkloadKey {
                spiffe_id: identity.id.clone(),
                instance_id: check_name("instance_id", &hello.instance_id)?.into(),
            },
            address: check_address(&hello.address, peer)?,
            mesh_port: check_port_number("mesh_port", hello.mesh_port)?,
            gateway: hello.gateway,
            ports,
            workload_name: check_name("workload_name", &hello.workload_name)?.to_owned(),
            zone: match hello.zone.as_str() {
                "" => String::new(),
                zone => check_name("zone", zone)?.to_owned(),
            },
            version: check_name("version", &hello.version)?.to_owned(),
            connected_since: now,
            svid_not_after: identity.not_after,
            confirmed: true,
        };
        Ok((record, refused))
    }

    /// Reads a workload as it was persisted; `None` when it holds what this version cannot read.
    #[must_use]
    pub fn from_api(workload: &v1::Workload) -> Option<Self> {
        let port = |served: &v1::ServedPort| {
            let service = match served.service.as_str() {
                "" => None,
                name => Some((name.parse().ok()?, u16::try_from(served.service_port).ok()?)),
            };
            Some(Port {
                target: u16::try_from(served.target_port).ok()?,
                protocol: served.protocol(),
                service,
            })
        };
        Some(Self {
            key: WorkloadKey {
                spiffe_id: SpiffeId::parse(&workload.spiffe_id).ok()?,
                instance_id: workload.instance_id.as_str().into(),
            },
            address: workload.address.parse().ok()?,
            mesh_port: u16::try_from(workload.mesh_port).ok()?,
            gateway: workload.gateway,
            ports: workload.ports.iter().map(port).collect::<Option<_>>()?,
            workload_name: workload.workload_name.clone(),
            zone: workload.zone.clone(),
            version: workload.version.clone(),
            connected_since: from_unix_seconds(workload.connected_since_unix),
            svid_not_after: from_unix_seconds(workload.svid_expires_at_unix),
            confirmed: false,
        })
    }

    /// The workload in the API's form.
    #[must_use]
    pub fn to_api(&self) -> v1::Workload {
        let port = |port: &Port| v1::ServedPort {
            target_port: port.target.into(),
            protocol: port.protocol.into(),
            service: port
                .service
                .as_ref()
                .map_or_else(String::new, |(name, _)| name.to_string()),
            service_port: port.service.as_ref().map_or(0, |(_, port)| (*port).into()),
        };
        v1::Workload {
            spiffe_id: self.key.spiffe_id.to_string(),
            workload_name: self.workload_name.clone(),
            zone: self.zone.clone(),
            address: self.address.to_string(),
            mesh_port: self.mesh_port.into(),
            gateway: self.gateway,
            ports: self.ports.iter().map(port).collect(),
            connected_since_unix: unix_seconds(self.connected_since),
            svid_expires_at_unix: unix_seconds(self.svid_not_after),
            version: self.version.clone(),
            confirmed: self.confirmed,
            instance_id: self.key.instance_id.to_string(),
        }
    }

    /// The services that the workload offers, each as often as it has ports for it. A gateway has no peers to offer
    /// any to.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        let offered = self.ports.iter().filter(|_| !self.gateway);
        offered.filter_map(|port| Some(&port.service.as_ref()?.0))
    }
}

fn check_port(
    served: &v1::ServedPort,
    registration: &Registration,
    refused: &mut Vec<String>,
) -> Result<Port, RegistrationError> {
    let target = check_port_number("target_port", served.target_port)?;
    let service_port = match served.service_port {
        0 => target,
        port => check_port_number("service_port", port)?,
    };
    let allowed = registration
        .services
        .iter()
        .find(|name| name.as_str() == served.service);
    if allowed.is_none() && !served.service.is_empty() {
        let name: String = served.service.chars().take(128).collect();
        refused.push(format!(
            "service {name:?} is not one that {} is registered for, so port {target} belongs to no service; list it with `sidewind token create --service`",
            registration.spiffe_id
        ));
    }
    Ok(Port {
        target,
        protocol: served.protocol(),
        service: allowed.map(|name| (name.clone(), service_port)),
    })
}

fn check_port_number(field: &'static str, value: u32) -> Result<u16, RegistrationError> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(RegistrationError::Port { field, value })
}

fn check_name<'a>(field: &'static str, text: &'a str) -> Result<&'a str, RegistrationError> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if (1..=MAX_NAME_BYTES).contains(&text.len()) && printable {
        Ok(text)
    } else {
        Err(RegistrationError::Name { field })
    }
}

/// An empty address is the one that the connection comes from; another must be the same, or both loopback,
/// where every process of the host can connect from every address.
fn check_address(given: &str, peer: IpAddr) -> Result<IpAddr, RegistrationError> {
    let peer = peer.to_canonical();
    if given.is_empty() {
        return Ok(peer);
    }
    let not_one = || RegistrationError::Address(given.chars().take(64).collect());
    let given = given
        .parse::<IpAddr>()
        .map_err(|_| not_one())?
        .to_canonical();
    if given.is_unspecified() || given.is_multicast() {
        return Err(not_one());
    }
    if given == peer || (given.is_loopback() && peer.is_loopback()) {
        Ok(given)
    } else {
        Err(RegistrationError::OtherAddress { given, peer })
    }
}
