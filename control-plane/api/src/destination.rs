//! How a proxy names what its workload connects to.

use crate::service::is_host;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What a workload connects to: an address, or a host name, with a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// `ip:port` or `[ipv6]:port`.
    Address(SocketAddr),
    /// `host:port`; the host is in lower case and without the final dot of an absolute name.
    Host {
        /// The host name.
        host: String,
        /// The port, never 0.
        port: u16,
    },
}

/// Why a text is not a [`Destination`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a destination; it must be `ip:port`, `[ipv6]:port` or `host:port`")]
pub struct DestinationError {
    text: String,
}

impl Destination {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

/// An address in the form that two writings of it share: IPv4 in IPv6 is IPv4.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || DestinationError {
            text: text.chars().take(128).collect(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().map_err(|_| error())?;
        if port == 0 {
            return Err(error());
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        if let Some(inner) = bare {
            let address = inner.parse::<std::net::Ipv6Addr>().map_err(|_| error())?;
            let address = canonical(address.into());
            return Ok(Self::Address(SocketAddr::new(address, port)));
        }
        if let Ok(address) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(address.into(), port)));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        // A name that ends in a number is a mistyped address, never a host (WHATWG URL 3.5).
        let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        if !is_host(&host) || host.rsplit('.').next().is_none_or(numeric) {
            return Err(error());
        }
        Ok(Self::Host { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_of_a_destination_is_read() {
        let table = [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("Orders.Data:8080", "orders.data:8080"),
            ("example.org.:443", "example.org:443"),
        ];
        for (text, canonical) in table {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), canonical);
        }
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        let table = [
            "",
            ":",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "host:-1",
            "fd00::1:80",
            "[fd00::1:80",
            "[10.0.0.1]:80",
            "1.2.3:80",
            "1.2.3.4.5:80",
            "a b:80",
            "a..b:80",
            "user@host:80",
            "http://host:80",
            "..:80",
        ];
        for text in table {
            assert!(text.parse::<Destination>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,80}") {
            if let Ok(destination) = text.parse::<Destination>() {
                let again: Destination = destination.to_string().parse().unwrap();
                prop_assert_eq!(again, destination);
            }
        }
    }
}
