//! Finds what a proxy must not pass on, and refuses messages that two readers could take differently.

use http::header::{
    self, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;
use http::{Method, Request, Response, Version};

use crate::detect::is_token_byte;

/// Why a request is refused with 400. Each of them is a request that two servers could read differently, or that
/// names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("the request has no host")]
    MissingHost,
    #[error("the request has more than one host header")]
    DuplicateHost,
    #[error("the request's host is not a valid authority")]
    InvalidHost,
    #[error("the request's host header differs from its :authority")]
    HostMismatch,
    #[error("the request has both content-length and transfer-encoding")]
    LengthAndEncoding,
    #[error("the request's content-length is not one number")]
    InvalidLength,
    #[error("the request's transfer-encoding is not \"chunked\"")]
    UnsupportedEncoding,
    #[error("the request's target has neither a path nor a host")]
    InvalidTarget,
    #[error("the value of a header begins or ends with white space")]
    PaddedValue,
    #[error("a line of the request's head ends without a carriage return")]
    BareLineFeed,
    #[error("a chunk of the request's body is not as it must be")]
    InvalidChunk,
    #[error("a header is a length or an encoding to servers that read \"_\" as \"-\"")]
    DisguisedFraming,
}

/// Why a response is refused with 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadResponse {
    #[error("the response's content-length is not one number")]
    InvalidLength,
    #[error("the response's transfer-encoding is not \"chunked\"")]
    UnsupportedEncoding,
    #[error("the value of a header begins or ends with white space")]
    PaddedValue,
}

/// Whether a message's `connection: upgrade` is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// Both sides speak HTTP/1.1, and the connection becomes a tunnel if the server agrees.
    Keep,
    /// The message goes on as an ordinary one.
    Strip,
}

/// What one pass over a message's header fields found.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    found: u8,
    wants_upgrade: bool,
    /// Servers that make variables of header names, as CGI does, would take one for a field of framing.
    disguised_framing: bool,
    /// Fields that `connection` names.
    named_by_connection: Vec<HeaderName>,
    /// Fields that only proxies may set.
    reserved: Vec<HeaderName>,
}

const FOUND_CONNECTION: u8 = 1;
const FOUND_KEEP_ALIVE: u8 = 1 << 1;
const FOUND_OTHER: u8 = 1 << 2;
const FOUND_TE: u8 = 1 << 3;
const FOUND_TRANSFER_ENCODING: u8 = 1 << 4;
const FOUND_UPGRADE: u8 = 1 << 5;
const FOUND_HOST: u8 = 1 << 6;
const FOUND_CONTENT_LENGTH: u8 = 1 << 7;

/// Fields that only concern one connection (RFC 9110, section 7.6.1, and what older software sends), beside
/// those with a bit of their own.
const OTHER_FIELDS: [&str; 5] = [
    "http2-settings",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
];

const DISGUISED_FRAMING: [&str; 2] = ["content_length", "transfer_encoding"];

/// Looks through a request that arrived and refuses what is ambiguous.
///
/// Much is settled before this: a request in HTTP/1 with both `content-length` and `transfer-encoding` is refused
/// below hyper, which would drop the length; hyper refuses lengths that differ, and h2 all fields of a connection.
/// What is checked here holds whatever came before.
///
/// # Errors
/// [`BadRequest`] says what is wrong; nothing of such a request may reach a server.
pub(crate) fn examine_request<B>(request: &Request<B>) -> Result<Examined, BadRequest> {
    let headers = request.headers();
    let examined = Examined::scan(headers);
    if examined.disguised_framing {
        return Err(BadRequest::DisguisedFraming);
    }
    if examined.has(FOUND_TRANSFER_ENCODING) {
        if examined.has(FOUND_CONTENT_LENGTH) {
            return Err(BadRequest::LengthAndEncoding);
        }
        if !is_chunked_alone(headers) {
            return Err(BadRequest::UnsupportedEncoding);
        }
    }
    if examined.has(FOUND_CONTENT_LENGTH) && !is_one_length(headers) {
        return Err(BadRequest::InvalidLength);
    }
    if request.version() == Version::HTTP_2 && has_padded_value(headers) {
        return Err(BadRequest::PaddedValue);
    }
    // Of the whole server only its options may be asked (RFC 9112, section 3.2.4).
    if request.uri().path() == "*" && request.method() != Method::OPTIONS {
        return Err(BadRequest::InvalidTarget);
    }
    examined.check_host(request)?;
    Ok(examined)
}

/// Looks through a response that arrived from a server.
///
/// # Errors
/// [`BadResponse`] says what is wrong.
pub(crate) fn examine_response<B>(response: &Response<B>) -> Result<Examined, BadResponse> {
    let headers = response.headers();
    let examined = Examined::scan(headers);
    if examined.has(FOUND_TRANSFER_ENCODING) && !is_chunked_alone(headers) {
        return Err(BadResponse::UnsupportedEncoding);
    }
    if examined.has(FOUND_CONTENT_LENGTH)
        && !examined.has(FOUND_TRANSFER_ENCODING)
        && !is_one_length(headers)
    {
        return Err(BadResponse::InvalidLength);
    }
    if response.version() == Version::HTTP_2 && has_padded_value(headers) {
        return Err(BadResponse::PaddedValue);
    }
    Ok(examined)
}

/// Fields that have no meaning after a body, or one that a reader of the head has settled already (RFC 9110, section
/// 6.5.1). Servers that put trailers among the headers would believe them.
const NO_TRAILERS: [HeaderName; 11] = [
    CONTENT_LENGTH,
    HOST,
    header::AUTHORIZATION,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
];

/// Removes from trailers what belongs in a head or concerns one connection, what only proxies may set, and what
/// HTTP/2 forbids in a value.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let examined = Examined::scan(trailers);
    examined.strip_hop_by_hop(trailers, Upgrade::Strip);
    examined.strip_reserved(trailers);
    for name in DISGUISED_FRAMING {
        trailers.remove(name);
    }
    for name in &NO_TRAILERS {
        trailers.remove(name);
    }
    if has_padded_value(trailers) {
        let padded = trailers.iter().filter(|(_, value)| is_padded(value));
        let padded: Vec<HeaderName> = padded.map(|(name, _)| name.clone()).collect();
        for name in padded {
            trailers.remove(name);
        }
    }
}

/// HTTP/2 carries values as they are, and none may begin or end with white space (RFC 9113, section 8.2.1): in HTTP/1
/// it would not be part of the value.
fn has_padded_value(headers: &HeaderMap) -> bool {
    headers.values().any(is_padded)
}

fn is_padded(value: &HeaderValue) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    blank(value.as_bytes().first()) || blank(value.as_bytes().last())
}

impl Examined {
    fn scan(headers: &HeaderMap) -> Examined {
        let mut examined = Examined::default();
        for name in headers.keys() {
            examined.classify(name);
        }
        if examined.has(FOUND_CONNECTION) {
            examined.read_connection(headers);
        }
        examined
    }

    fn has(&self, bit: u8) -> bool {
        self.found & bit != 0
    }

    /// Most names are told apart by their first letter.
    fn classify(&mut self, name: &HeaderName) {
        let text = name.as_str();
        let bit = match text.as_bytes().first() {
            Some(b'c') if name == CONNECTION => FOUND_CONNECTION,
            Some(b'c') if name == CONTENT_LENGTH => FOUND_CONTENT_LENGTH,
            Some(b'c' | b't') if DISGUISED_FRAMING.contains(&text) => {
                self.disguised_framing = true;
                0
            }
            Some(b'h') if name == HOST => FOUND_HOST,
            Some(b'k') if text == "keep-alive" => FOUND_KEEP_ALIVE,
            Some(b'h' | b'p') if OTHER_FIELDS.contains(&text) => FOUND_OTHER,
            Some(b't') if name == TE => FOUND_TE,
            Some(b't') if name == TRANSFER_ENCODING => FOUND_TRANSFER_ENCODING,
            Some(b'u') if name == UPGRADE => FOUND_UPGRADE,
            Some(b's' | b'x') => {
                if is_reserved(text) {
                    self.reserved.push(name.clone());
                }
                0
            }
            _ => 0,
        };
        self.found |= bit;
    }

    fn read_connection(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(CONNECTION) {
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                if option.eq_ignore_ascii_case(b"upgrade") {
                    self.wants_upgrade = self.has(FOUND_UPGRADE);
                } else if !is_harmless_option(option)
                    && let Ok(name) = HeaderName::from_bytes(option)
                    && headers.contains_key(&name)
                    && !is_essential(&name)
                {
                    self.named_by_connection.push(name);
                }
            }
        }
        self.wants_upgrade = self.wants_upgrade && leaves_http(headers);
    }

    fn check_host<B>(&self, request: &Request<B>) -> Result<(), BadRequest> {
        let authority = request.uri().authority();
        if !self.has(FOUND_HOST) {
            return match authority {
                Some(authority) => check_authority(authority),
                // HTTP/1.0 knows no host.
                None if request.version() < Version::HTTP_11 => Ok(()),
                None => Err(BadRequest::MissingHost),
            };
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().ok_or(BadRequest::MissingHost)?;
        if hosts.next().is_some() {
            return Err(BadRequest::DuplicateHost);
        }
        if !is_plain_host(host) {
            return Err(BadRequest::InvalidHost);
        }
        match authority {
            Some(authority) => {
                check_authority(authority)?;
                // In HTTP/1 the target wins (RFC 9112, section 3.2.2); in HTTP/2 the two must agree (RFC 9113,
                // section 8.3.1).
                let same = authority
                    .as_str()
                    .as_bytes()
                    .eq_ignore_ascii_case(host.as_bytes());
                if request.version() == Version::HTTP_2 && !same {
                    return Err(BadRequest::HostMismatch);
                }
                Ok(())
            }
            None if request.method() == Method::CONNECT => Err(BadRequest::InvalidTarget),
            None => Ok(()),
        }
    }

    /// True for a request that asks to switch to a protocol in which nothing is asked that this proxy would judge
    /// (WebSocket, mostly).
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.wants_upgrade
    }

    /// Removes what concerned only the connection that the message came by. Of `te` only `trailers` stays,
    /// which HTTP/2 allows and gRPC needs.
    pub(crate) fn strip_hop_by_hop(&self, headers: &mut HeaderMap, upgrade: Upgrade) {
        const ANY: u8 = FOUND_CONNECTION
            | FOUND_KEEP_ALIVE
            | FOUND_OTHER
            | FOUND_TE
            | FOUND_TRANSFER_ENCODING
            | FOUND_UPGRADE;
        if !self.has(ANY) {
            return;
        }
        for name in &self.named_by_connection {
            headers.remove(name);
        }
        if self.has(FOUND_KEEP_ALIVE) {
            headers.remove("keep-alive");
        }
        if self.has(FOUND_OTHER) {
            for name in OTHER_FIELDS {
                headers.remove(name);
            }
        }
        if self.has(FOUND_TE) {
            keep_te_trailers(headers);
        }
        if self.has(FOUND_TRANSFER_ENCODING) {
            headers.remove(TRANSFER_ENCODING);
            // The chunks decide (RFC 9112, section 6.3).
            headers.remove(CONTENT_LENGTH);
        }
        if upgrade == Upgrade::Keep && self.wants_upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            return;
        }
        if self.has(FOUND_CONNECTION) {
            headers.remove(CONNECTION);
        }
        if self.has(FOUND_UPGRADE) {
            headers.remove(UPGRADE);
        }
    }

    /// Removes the fields that only proxies may set: `sidewind-*`, `x-airflow-*` and `x-forwarded-client-cert`, in every
    /// spelling that some server takes for them.
    pub(crate) fn strip_reserved(&self, headers: &mut HeaderMap) {
        for name in &self.reserved {
            headers.remove(name);
        }
    }
}

/// True for `sidewind-*`, `x-airflow-*` and `x-forwarded-client-cert`. CGI-like servers read `_` as `-`, so that both
/// count.
fn is_reserved(name: &str) -> bool {
    const PREFIXES: [&[u8]; 2] = [b"sidewind-", b"x-airflow-"];
    const CLIENT_CERT: &[u8] = b"x-forwarded-client-cert";
    let name = name.as_bytes();
    let spelled = |name: &[u8], like: &[u8]| {
        name.len() == like.len()
            && name
                .iter()
                .zip(like)
                .all(|(byte, like)| byte == like || (*byte == b'_' && *like == b'-'))
    };
    spelled(name, CLIENT_CERT)
        || PREFIXES.into_iter().any(|prefix| {
            name.get(..prefix.len())
                .is_some_and(|start| spelled(start, prefix))
        })
}

/// The protocols that `upgrade` names (RFC 9110, section 7.8).
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(UPGRADE).iter();
    let listed = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    listed
        .map(<[u8]>::trim_ascii)
        .filter(|protocol| !protocol.is_empty())
}

/// Whether `upgrade` names no protocol that carries requests: after a switch to HTTP/2 or TLS nobody would judge them.
/// What is no name at all might be read as one.
fn leaves_http(headers: &HeaderMap) -> bool {
    protocols(headers).all(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next();
        let name = name.unwrap_or_default();
        let carries_requests = name.eq_ignore_ascii_case(b"http")
            || name.eq_ignore_ascii_case(b"tls")
            // With `h2c` the drafts' `h2c-14`.
            || matches!(name, [b'h' | b'H', b'2', ..]);
        let is_name = |byte: &u8| is_token_byte(*byte) || *byte == b'/';
        protocol.iter().all(is_name) && !carries_requests
    })
}

/// Whether a response of 101 switches to one protocol, and that one is among those that a request's `upgrade` asked for.
pub(crate) fn switches_as_asked(asked: &HeaderMap, response: &HeaderMap) -> bool {
    let mut switched = protocols(response);
    match (switched.next(), switched.next()) {
        (Some(to), None) => protocols(asked).any(|protocol| protocol.eq_ignore_ascii_case(to)),
        _ => false,
    }
}

/// Options of `connection` that name no field, or a field that is dealt with anyway.
fn is_harmless_option(option: &[u8]) -> bool {
    option.is_empty()
        || option.eq_ignore_ascii_case(b"keep-alive")
        || option.eq_ignore_ascii_case(b"close")
        || option.eq_ignore_ascii_case(b"te")
}

/// Fields that a sender must not name in `connection` (RFC 9110, section 7.6.1): without them the message means
/// something else, or a client could have what a proxy says of it taken out again on the way.
fn is_essential(name: &HeaderName) -> bool {
    name == HOST
        || name == CONTENT_LENGTH
        || name == TRANSFER_ENCODING
        || name == http::header::CONTENT_TYPE
        || name == http::header::AUTHORIZATION
        || name == http::header::COOKIE
        || name == http::header::FORWARDED
        || name.as_str().starts_with("x-forwarded-")
        || name == "traceparent"
        || name == "tracestate"
}

fn keep_te_trailers(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// True when `chunked` is the only transfer coding. Others would have to be undone here, which nobody uses.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = values.next().is_some_and(|value| {
        value
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked")
    });
    chunked && values.next().is_none()
}

fn is_one_length(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let one = values.next().is_some_and(|value| {
        let digits = value.as_bytes();
        !digits.is_empty() && digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit)
    });
    one && values.next().is_none()
}

fn check_authority(authority: &Authority) -> Result<(), BadRequest> {
    // A user's name and password in a target are a way to make two readers see different hosts.
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(BadRequest::InvalidHost);
    }
    Ok(())
}

/// True when a host is a name or address with an optional port, in a first reading; converting to an authority
/// reads it fully.
fn is_plain_host(host: &HeaderValue) -> bool {
    let host = host.as_bytes();
    !host.is_empty()
        && host.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'.' | b'-'
                        | b':'
                        | b'_'
                        | b'['
                        | b']'
                        | b'~'
                        | b'%'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b';'
                        | b'='
                )
        })
}
