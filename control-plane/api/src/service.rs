//! Names of services and of protocols.

use crate::v1::Protocol;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A service's name, `name.namespace`: two labels of RFC 1123, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// Why a text is not a [`ServiceName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a service name; it must be `name.namespace`, each of lower-case letters, digits and `-`, at most 63 characters"
)]
pub struct ServiceNameError {
    name: String,
}

impl ServiceName {
    /// The name made of its two labels.
    ///
    /// # Errors
    /// When either is not a label of RFC 1123 in lower case.
    pub fn new(name: &str, namespace: &str) -> Result<Self, ServiceNameError> {
        if is_label(name) && is_label(namespace) {
            Ok(Self(format!("{name}.{namespace}").into()))
        } else {
            let name = format!("{name}.{namespace}");
            Err(ServiceNameError { name })
        }
    }

    /// `name.namespace`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The label after the dot.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0
            .split_once('.')
            .map_or("", |(_, namespace)| namespace)
    }

    /// The service that a host name stands for: `name.namespace`, `name.namespace.svc` or
    /// `name.namespace.svc.cluster.local`, in any case; and `name` alone in the namespace given.
    #[must_use]
    pub fn from_host(host: &str, namespace: Option<&str>) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix(".cluster.local").unwrap_or(&host);
        match host.split('.').collect::<Vec<_>>()[..] {
            [name] => Self::new(name, namespace?).ok(),
            [name, namespace] | [name, namespace, "svc"] => Self::new(name, namespace).ok(),
            _ => None,
        }
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, namespace) = text.split_once('.').ok_or_else(|| ServiceNameError {
            name: text.chars().take(128).collect(),
        })?;
        Self::new(name, namespace)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a label of RFC 1123: 1 to 63 of lower-case letters, digits and `-`, with no `-` at
/// either end.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a text is a host name: labels of RFC 1123 joined by dots, at most 253 characters.
#[must_use]
pub fn is_host(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The protocols' names in flags and resources, with their values; the first is the default.
pub const PROTOCOLS: &[(&str, Protocol)] = &[
    ("auto", Protocol::Unspecified),
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("grpc", Protocol::Grpc),
    ("tls", Protocol::Tls),
    ("tcp", Protocol::Tcp),
];

/// The protocol of a name, if there is one.
#[must_use]
pub fn protocol_from_name(name: &str) -> Option<Protocol> {
    let find = |(known, protocol): &(&str, Protocol)| (*known == name).then_some(*protocol);
    PROTOCOLS.iter().find_map(find)
}

/// The name of a protocol.
#[must_use]
pub fn protocol_name(protocol: Protocol) -> &'static str {
    let find = |(name, known): &(&'static str, Protocol)| (*known == protocol).then_some(*name);
    PROTOCOLS.iter().find_map(find).unwrap_or("auto")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_is_two_labels() {
        for good in ["orders-api.data", "a.b", "x1.y-2"] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        let long = format!("{}.data", "a".repeat(64));
        for bad in [
            "", ".", "orders", "orders.", ".data", "a.b.c", "A.b", "-a.b", "a_.b", &long,
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_host_stands_for_its_service_in_each_form_that_kubernetes_resolves() {
        let hosts = [
            "orders.data",
            "orders.data.svc",
            "orders.data.svc.cluster.local",
            "Orders.Data.SVC.cluster.LOCAL",
            "orders",
        ];
        for host in hosts {
            let name = ServiceName::from_host(host, Some("data")).unwrap();
            assert_eq!(name.as_str(), "orders.data", "{host}");
        }
        assert_eq!(ServiceName::from_host("orders", None), None);
        for host in [
            "www.example.org.",
            "a.b.c",
            "orders.data.pod",
            "10.0.0.1",
            "",
        ] {
            assert_eq!(ServiceName::from_host(host, Some("data")), None, "{host}");
        }
    }

    #[test]
    fn protocols_and_their_names_go_both_ways() {
        for (name, protocol) in PROTOCOLS {
            assert_eq!(protocol_from_name(name), Some(*protocol));
            assert_eq!(protocol_name(*protocol), *name);
        }
        assert_eq!(protocol_from_name("udp"), None);
    }
}
