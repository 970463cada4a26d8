//! Which port of the workload an inbound connection or request is for.
//!
//! A peer names the workload's own address and port, in the `:authority` of a CONNECT (HBONE) or in
//! `sidewind-destination` of a request. The sidecar forwards to nothing else: it is no relay into the
//! workload's network, nor to its own ports.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::{
    config::Config,
    errors::{ErrorCode, ProxyError},
    http::headers::{SIDEWIND_DESTINATION, SIDEWIND_PROTOCOL},
};

/// How inbound connections reach the workload.
#[derive(Clone, Debug)]
pub(crate) struct Forwarding {
    /// Explicit capture, where connections are not redirected.
    explicit: Option<Explicit>,
    /// Ports of the sidecar itself. Above all, those that stand for services to the workload alone: whoever came in
    /// through them would be taken for the workload.
    own_ports: Box<[u16]>,
}

/// Where a workload without redirection is reached, and what of it.
#[derive(Clone, Debug)]
struct Explicit {
    /// Takes the place of the destination's address. Otherwise the workload is dialled at the address its peers
    /// dial, never at loopback: servers that trust loopback must not be opened to the network.
    dial: IpAddr,
    /// The address that its peers dial, where it is not the one that connections arrive at (published ports).
    address: Option<IpAddr>,
    /// The ports that it serves: what else listens on its loopback is not meant for the mesh.
    served: Box<[u16]>,
}

/// A port of the workload: what its peers call it, and where the sidecar dials it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadPort {
    pub(crate) address: SocketAddr,
    pub(crate) dial: SocketAddr,
}

impl Forwarding {
    /// Under redirection, beside a sidecar with these ports of its own.
    pub(crate) fn redirected(own_ports: &[u16]) -> Self {
        Self {
            explicit: None,
            own_ports: own_ports.into(),
        }
    }

    pub(crate) fn new(config: &Config) -> Self {
        let listeners = &config.listeners;
        let lists = [
            &listeners.outbound,
            &listeners.inbound,
            &listeners.mesh,
            &listeners.admin,
        ];
        let listening = lists.into_iter().flatten().map(|listen| listen.address);
        let mapped = listeners.mapped.iter().map(|mapped| mapped.listen);
        let explicit = listeners.forward_address.map(|dial| Explicit {
            dial,
            address: config.workload.address,
            served: config
                .workload
                .serve
                .iter()
                .map(|port| port.target_port)
                .chain(listeners.plaintext.iter().map(|port| port.target_port))
                .collect(),
        });
        Self {
            explicit,
            own_ports: listening
                .chain(mapped)
                .map(|address| address.port())
                .collect(),
        }
    }

    /// The workload's port at `destination`, named by a peer on a connection that arrived at `local`.
    pub(crate) fn for_peer(
        &self,
        destination: &str,
        local: IpAddr,
    ) -> Result<WorkloadPort, ProxyError> {
        let address: SocketAddr = destination.parse().map_err(|_| {
            ProxyError::new(
                ErrorCode::WrongDestination,
                format_args!("The destination {destination:?} is not of the form ip:port."),
            )
        })?;
        let configured = self.explicit.as_ref().and_then(|explicit| explicit.address);
        if address.ip() != local.to_canonical() && Some(address.ip()) != configured {
            return Err(ProxyError::new(
                ErrorCode::WrongDestination,
                format_args!(
                    "The destination {address} is not at {}, where the request arrived.",
                    local.to_canonical()
                ),
            ));
        }
        self.workload_port(address)
    }

    /// The workload's port at `address`, to which a connection was dialled before it was redirected.
    pub(crate) fn workload_port(&self, address: SocketAddr) -> Result<WorkloadPort, ProxyError> {
        if self.own_ports.contains(&address.port()) {
            return Err(ProxyError::new(
                ErrorCode::LoopDetected,
                format_args!("Port {} is the proxy's own.", address.port()),
            ));
        }
        let dial = match &self.explicit {
            None => address,
            Some(explicit) if explicit.served.contains(&address.port()) => {
                SocketAddr::new(explicit.dial, address.port())
            }
            Some(_) => {
                return Err(ProxyError::new(
                    ErrorCode::WrongDestination,
                    format_args!(
                        "The workload does not serve port {}; --serve names those that it does.",
                        address.port()
                    ),
                ));
            }
        };
        Ok(WorkloadPort { address, dial })
    }
}

/// Takes the headers that name destination and protocol out of a request from a mesh peer.
pub(crate) fn take_destination(headers: &mut HeaderMap) -> Result<(String, bool), ProxyError> {
    let http2 = headers
        .remove(SIDEWIND_PROTOCOL)
        .is_some_and(|value| value.as_bytes() == b"h2");
    let destination = headers
        .remove(SIDEWIND_DESTINATION)
        .and_then(|value| value.to_str().ok().map(str::to_owned))
        .ok_or_else(|| {
            ProxyError::new(
                ErrorCode::WrongDestination,
                "The request has no sidewind-destination header, which names the workload's address and port.",
            )
        })?;
    Ok((destination, http2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(dial: Option<&str>) -> Forwarding {
        Forwarding {
            explicit: dial.map(|dial| Explicit {
                dial: dial.parse().unwrap(),
                address: Some("192.0.2.7".parse().unwrap()),
                served: Box::new([8080]),
            }),
            own_ports: Box::new([15001, 15006, 15008, 15020, 16379]),
        }
    }

    #[test]
    fn a_peer_reaches_the_workload_at_the_address_it_dialled() {
        let local = "10.0.0.2".parse().unwrap();
        let port = forwarding(None).for_peer("10.0.0.2:8080", local).unwrap();
        assert_eq!(port.dial, "10.0.0.2:8080".parse().unwrap());
    }

    #[test]
    fn without_redirection_the_workload_is_dialled_where_it_listens() {
        let local = "10.0.0.2".parse().unwrap();
        let port = forwarding(Some("127.0.0.1"))
            .for_peer("10.0.0.2:8080", local)
            .unwrap();
        assert_eq!(port.address, "10.0.0.2:8080".parse().unwrap());
        assert_eq!(port.dial, "127.0.0.1:8080".parse().unwrap());
    }

    #[test]
    fn without_redirection_only_served_ports_are_opened_at_either_address() {
        let forwarding = forwarding(Some("127.0.0.1"));
        let local = "10.0.0.2".parse().unwrap();
        let published = forwarding.for_peer("192.0.2.7:8080", local).unwrap();
        assert_eq!(published.dial, "127.0.0.1:8080".parse().unwrap());
        for (destination, code) in [
            ("10.0.0.2:6379", ErrorCode::WrongDestination),
            ("192.0.2.7:5432", ErrorCode::WrongDestination),
            ("192.0.2.8:8080", ErrorCode::WrongDestination),
            ("10.0.0.2:16379", ErrorCode::LoopDetected),
        ] {
            let error = forwarding.for_peer(destination, local).unwrap_err();
            assert_eq!(error.code(), code, "{destination}");
        }
    }

    #[test]
    fn a_sidecar_relays_to_no_other_address_and_to_none_of_its_own_ports() {
        let local = "10.0.0.2".parse().unwrap();
        for (destination, code) in [
            ("10.0.0.3:8080", ErrorCode::WrongDestination),
            ("127.0.0.1:8080", ErrorCode::WrongDestination),
            ("169.254.169.254:80", ErrorCode::WrongDestination),
            ("localhost:8080", ErrorCode::WrongDestination),
            ("10.0.0.2", ErrorCode::WrongDestination),
            ("", ErrorCode::WrongDestination),
            ("10.0.0.2:15020", ErrorCode::LoopDetected),
            ("10.0.0.2:15001", ErrorCode::LoopDetected),
        ] {
            let error = forwarding(None).for_peer(destination, local).unwrap_err();
            assert_eq!(error.code(), code, "{destination}");
        }
    }

    #[test]
    fn a_mapped_ipv4_address_is_the_address_itself() {
        let local = "::ffff:10.0.0.2".parse().unwrap();
        assert!(forwarding(None).for_peer("10.0.0.2:8080", local).is_ok());
    }
}
