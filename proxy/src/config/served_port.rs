//! Ports that the workload serves, as a person writes them.

use std::str::FromStr;

use sidewind_api::v1;

use super::addresses::port;

/// A port that the workload serves: `[SERVICE[:PORT]=]TARGETPORT[/PROTOCOL]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedPort {
    /// Port on the workload's address.
    pub target_port: u16,
    /// What is spoken there; [`v1::Protocol::Unspecified`] means that it is detected.
    pub protocol: v1::Protocol,
    /// The service it is offered under, `name.namespace`.
    pub service: Option<String>,
    /// The port that the service's clients use.
    pub service_port: u16,
}

impl FromStr for ServedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, target) = match text.split_once('=') {
            Some((service, target)) => (Some(service), target),
            None => (None, text),
        };
        let (target, protocol) = match target.split_once('/') {
            Some((target, protocol)) => (target, parse_protocol(protocol)?),
            None => (target, v1::Protocol::Unspecified),
        };
        let target_port = port(target).map_err(|problem| {
            format!("{problem}; write [SERVICE[:PORT]=]TARGETPORT[/PROTOCOL], such as orders-api.data:80=8080/http")
        })?;
        let (service, service_port) = match service {
            None => (None, target_port),
            Some(service) => match service.split_once(':') {
                Some((service, text)) => (Some(service), port(text)?),
                None => (Some(service), target_port),
            },
        };
        if let Some(service) = service.filter(|service| !is_service_name(service)) {
            return Err(format!(
                "{service:?} is not a service; write name.namespace in lower case, such as orders-api.data"
            ));
        }
        Ok(Self {
            target_port,
            protocol,
            service: service.map(ToOwned::to_owned),
            service_port,
        })
    }
}

fn parse_protocol(text: &str) -> Result<v1::Protocol, String> {
    Ok(match text {
        "auto" => v1::Protocol::Unspecified,
        "http" => v1::Protocol::Http,
        "http2" => v1::Protocol::Http2,
        "grpc" => v1::Protocol::Grpc,
        "tls" => v1::Protocol::Tls,
        "tcp" => v1::Protocol::Tcp,
        _ => {
            return Err(format!(
                "{text:?} is not a protocol; write auto, http, http2, grpc, tls or tcp"
            ));
        }
    })
}

/// Whether this is `name.namespace`, both labels of RFC 1123.
fn is_service_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    matches!(text.split_once('.'), Some((name, namespace)) if label(name) && label(namespace))
}
