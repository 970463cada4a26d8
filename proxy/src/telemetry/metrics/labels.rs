//! Label values and label sets.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::family::Labels;
use crate::errors::ErrorCode;
use crate::telemetry::record::{Direction, Protocol};

/// The value of what is not known or not there.
pub(super) const NONE: &str = "none";

/// The value of what came after the bound on the series of a family.
const OVERFLOW: &str = "overflow";

/// Longest label value in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// A label value made of a name from outside: bounded, and with nothing in it that could break a
/// line of the exposition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// Takes a name; an empty one becomes `none`.
    pub(super) fn new(name: &str) -> Self {
        if name.is_empty() {
            return Self(NONE.into());
        }
        let clean = name.len() <= MAX_VALUE_BYTES
            && name
                .bytes()
                .all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\');
        if clean {
            return Self(name.into());
        }
        let mut value = String::with_capacity(MAX_VALUE_BYTES);
        for character in name.chars() {
            let character = match character {
                '"' | '\\' => '_',
                other if other.is_control() => '_',
                other => other,
            };
            if value.len() + character.len_utf8() > MAX_VALUE_BYTES {
                break;
            }
            value.push(character);
        }
        Self(value.into())
    }

    pub(super) fn overflow() -> Self {
        Self(OVERFLOW.into())
    }

    /// Whether this is what `name` becomes. May say no of names that are cut or cleaned.
    fn is_of(&self, name: &str) -> bool {
        *self.0 == *name || (name.is_empty() && *self.0 == *NONE)
    }
}

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(&self.0)
    }
}

macro_rules! encode_as_str {
    ($($type:ty),+) => { $(
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(self.as_str())
            }
        }
    )+ };
}
pub(super) use encode_as_str;
encode_as_str!(
    Direction,
    Protocol,
    ErrorCode,
    MethodLabel,
    StatusClass,
    ErrorLabel
);

/// A method of RFC 9110 section 9 or `PATCH` (RFC 5789); everything else is one value, since a
/// client may invent methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum MethodLabel {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
    Connect,
    Trace,
    Other,
    Overflow,
}

impl MethodLabel {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Trace => "TRACE",
            Self::Other => "other",
            Self::Overflow => OVERFLOW,
        }
    }
}

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::DELETE => Self::Delete,
            Method::PATCH => Self::Patch,
            Method::OPTIONS => Self::Options,
            Method::CONNECT => Self::Connect,
            Method::TRACE => Self::Trace,
            _ => Self::Other,
        }
    }
}

/// The class of a status, or none where no response was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum StatusClass {
    Informational,
    Success,
    Redirection,
    ClientError,
    ServerError,
    Other,
    None,
}

impl StatusClass {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Other => "other",
            Self::None => NONE,
        }
    }
}

impl From<Option<StatusCode>> for StatusClass {
    fn from(status: Option<StatusCode>) -> Self {
        match status.map(|status| status.as_u16() / 100) {
            Some(1) => Self::Informational,
            Some(2) => Self::Success,
            Some(3) => Self::Redirection,
            Some(4) => Self::ClientError,
            Some(5) => Self::ServerError,
            Some(_) => Self::Other,
            None => Self::None,
        }
    }
}

/// A `grpc-status`: 0 to 16, `other` for what gRPC does not define, `none` where it is not gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GrpcStatus(u8);

impl GrpcStatus {
    const OTHER: u8 = 17;
    const NONE: u8 = 18;

    /// A small number that is different for each value, below 32.
    pub(super) const fn index(self) -> u8 {
        self.0
    }
}

impl From<Option<u8>> for GrpcStatus {
    fn from(status: Option<u8>) -> Self {
        Self(status.map_or(Self::NONE, |status| status.min(Self::OTHER)))
    }
}

impl EncodeLabelValue for GrpcStatus {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            Self::NONE => encoder.write_str(NONE),
            Self::OTHER => encoder.write_str("other"),
            status => write!(encoder, "{status}"),
        }
    }
}

/// The proxy's own failure or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ErrorLabel {
    None,
    Code(ErrorCode),
    Overflow,
}

impl ErrorLabel {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => NONE,
            Self::Code(code) => code.as_str(),
            Self::Overflow => OVERFLOW,
        }
    }
}

impl From<Option<ErrorCode>> for ErrorLabel {
    fn from(code: Option<ErrorCode>) -> Self {
        code.map_or(Self::None, Self::Code)
    }
}

/// Labels of `sidewind_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(super) direction: Direction,
    pub(super) service: Name,
    pub(super) peer: Name,
    pub(super) tls: bool,
    pub(super) method: MethodLabel,
    pub(super) status: StatusClass,
    pub(super) grpc_status: GrpcStatus,
    pub(super) error: ErrorLabel,
}

impl Labels for RequestLabels {
    fn overflow(&self) -> Self {
        let error = match self.error {
            ErrorLabel::None => ErrorLabel::None,
            ErrorLabel::Code(_) | ErrorLabel::Overflow => ErrorLabel::Overflow,
        };
        Self {
            direction: self.direction,
            service: Name::overflow(),
            peer: Name::overflow(),
            tls: self.tls,
            method: MethodLabel::Overflow,
            status: self.status,
            grpc_status: GrpcStatus::from(None),
            error,
        }
    }
}

/// Labels of what is measured for each pair of workloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct PairLabels {
    pub(super) direction: Direction,
    pub(super) service: Name,
    pub(super) peer: Name,
    pub(super) tls: bool,
}

impl PairLabels {
    /// Whether these are the labels of such requests.
    pub(super) fn is_of(&self, direction: Direction, service: &str, peer: &str, tls: bool) -> bool {
        self.direction == direction
            && self.tls == tls
            && self.service.is_of(service)
            && self.peer.is_of(peer)
    }
}

impl Labels for PairLabels {
    fn overflow(&self) -> Self {
        Self {
            direction: self.direction,
            service: Name::overflow(),
            peer: Name::overflow(),
            tls: self.tls,
        }
    }
}

/// Labels of the connection families.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct ConnectionLabels {
    pub(super) direction: Direction,
    pub(super) protocol: Protocol,
    pub(super) service: Name,
    pub(super) peer: Name,
    pub(super) tls: bool,
}

impl Labels for ConnectionLabels {
    fn overflow(&self) -> Self {
        Self {
            direction: self.direction,
            protocol: self.protocol,
            service: Name::overflow(),
            peer: Name::overflow(),
            tls: self.tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_that_is_not_there_is_none() {
        assert_eq!(&*Name::new("").0, "none");
    }

    #[test]
    fn an_invented_method_is_other() {
        let method = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(MethodLabel::from(&method), MethodLabel::Other);
        assert_eq!(MethodLabel::from(&Method::PATCH).as_str(), "PATCH");
    }

    #[test]
    fn every_grpc_status_has_an_index_below_32() {
        for status in 0..=u8::MAX {
            assert!(GrpcStatus::from(Some(status)).index() < 32);
        }
        assert_ne!(GrpcStatus::from(None), GrpcStatus::from(Some(0)));
    }

    proptest! {
        #[test]
        fn any_name_becomes_a_short_value_that_needs_no_escaping(name in any::<String>()) {
            let value = Name::new(&name).0;
            prop_assert!(!value.is_empty());
            prop_assert!(value.len() <= MAX_VALUE_BYTES);
            prop_assert!(!value.chars().any(|c| c.is_control() || c == '"' || c == '\\'));
        }
    }
}
