//! Addresses as a person writes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use sidewind_identity::TrustDomain;

pub(crate) fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| {
        format!("{text:?} is not a trust domain ({error}); write a name such as sidewind.local")
    })
}

/// A port that something listens on.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(format!("{text:?} is not a port, 1 to 65535")),
    }
}

/// An address and port to listen on.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address to listen on; write IP:PORT, such as 127.0.0.1:15001 or [::1]:15001")
    })
}

/// An IP address that names one machine.
pub(crate) fn host_address(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            Err(format!("{text:?} is no address that one workload can have"))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(format!(
            "{text:?} is not an IP address, such as 10.0.0.7 or fd00::7"
        )),
    }
}

/// Where a control plane answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ControlPlaneAddress {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// TCP port, 15010 by default.
    pub port: u16,
}

impl FromStr for ControlPlaneAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("{text:?} is not a control plane's address ({why}); write https://HOST:15010")
        };
        let Some(authority) = text.strip_prefix("https://") else {
            return Err(wrong("it must begin with https://"));
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match split_port(authority) {
            Some((host, text)) => (host, port(text).map_err(|_| wrong("the port is wrong"))?),
            None => (strip_brackets(authority), 15010),
        };
        if !is_host(host) {
            return Err(wrong("the host is wrong"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for ControlPlaneAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", HostPort(&self.host, self.port))
    }
}

/// What a client calls: a host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    /// A service (`name.namespace`), a DNS name or an IP address, without brackets.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a destination; write HOST:PORT, such as postgres.data:5432")
        };
        let (host, port_text) = split_port(text).ok_or_else(wrong)?;
        if !is_host(host) {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port: port(port_text).map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HostPort(&self.host, self.port).fmt(f)
    }
}

struct HostPort<'a>(&'a str, u16);

impl fmt::Display for HostPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]:{}", self.0, self.1)
        } else {
            write!(f, "{}:{}", self.0, self.1)
        }
    }
}

/// A local port that stands for a service: `IP:PORT=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MappedListener {
    /// Where the workload connects to.
    pub listen: SocketAddr,
    /// What it is connected with.
    pub destination: Destination,
}

impl FromStr for MappedListener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, destination) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} has no =; write IP:PORT=HOST:PORT, such as 127.0.0.1:5432=postgres.data:5432")
        })?;
        Ok(Self {
            listen: listen_address(listen)?,
            destination: destination.parse()?,
        })
    }
}

/// A port that takes plaintext for a port of the workload: `IP:PORT=TARGETPORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlaintextListener {
    /// Where clients outside the mesh connect to.
    pub listen: SocketAddr,
    /// The workload's port.
    pub target_port: u16,
}

impl FromStr for PlaintextListener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, target) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} has no =; write IP:PORT=TARGETPORT, such as 0.0.0.0:8080=18080")
        })?;
        Ok(Self {
            listen: listen_address(listen)?,
            target_port: port(target)?,
        })
    }
}

/// Splits `host:port` or `[ipv6]:port`; none when there is no port.
pub(super) fn split_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    if host.starts_with('[') != host.ends_with(']')
        || (host.contains(':') && !host.starts_with('['))
    {
        return None;
    }
    Some((strip_brackets(host), port))
}

pub(super) fn strip_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Whether this is an IP address or a DNS name (RFC 1123 section 2.1; `_` occurs in compose service names).
pub(super) fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
        || (!host.is_empty()
            && host.len() <= 253
            && host
                .strip_suffix('.')
                .unwrap_or(host)
                .split('.')
                .all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && label.bytes().all(|byte| {
                            byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
                        })
                }))
}
