//! What a gateway tells the service of its client: `x-forwarded-for`, `-proto`, `-host`, and `forwarded` (RFC 7239).
//!
//! They are set anew, so that no client can write them; behind a proxy that is trusted they are continued.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::config::Cidr;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers in which other proxies say the same, and which a server may believe.
const REMOVED: [HeaderName; 8] = [
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-forwarded-protocol"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-envoy-external-address"),
];

/// Most proxies before this one that are looked at.
const MAX_HOPS: usize = 32;

/// A gateway's client: who it is, and how it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Whether it speaks TLS, to this gateway or to the proxies in front.
    pub(super) tls: bool,
}

/// Sets the headers on a request for `host` from `peer`, and gives back the client: the peer, or the last that no trusted proxy
/// is, as the proxies say that it came.
pub(crate) fn apply(
    headers: &mut HeaderMap,
    host: Option<&HeaderValue>,
    peer: SocketAddr,
    tls: bool,
    trusted: &[Cidr],
) -> Client {
    let peer = peer.ip().to_canonical();
    for name in &REMOVED {
        headers.remove(name);
    }
    remove_disguised(headers);
    let is_trusted = |address: IpAddr| trusted.iter().any(|block| block.contains(address));
    let hops = if is_trusted(peer) {
        hops(headers)
    } else {
        None
    };
    let Some(hops) = hops else {
        headers.remove(FOR);
        headers.remove(HOST);
        headers.insert(PROTO, HeaderValue::from_static(scheme(tls)));
        append(headers, FOR, &peer.to_string());
        if let Some(host) = host {
            headers.insert(HOST, host.clone());
        }
        forwarded(headers, host, &[], peer, tls);
        return Client { address: peer, tls };
    };
    let client = hops.iter().rev().copied().find(|hop| !is_trusted(*hop));
    let address = client.or(hops.first().copied()).unwrap_or(peer);
    let text: Vec<String> = hops.iter().chain([&peer]).map(IpAddr::to_string).collect();
    headers.remove(FOR);
    append(headers, FOR, &text.join(", "));
    let client_tls = match headers.get(PROTO).map(HeaderValue::as_bytes) {
        Some(b"http") => false,
        Some(b"https") => true,
        _ => {
            headers.insert(PROTO, HeaderValue::from_static(scheme(tls)));
            tls
        }
    };
    if !headers.contains_key(HOST)
        && let Some(host) = host
    {
        headers.insert(HOST, host.clone());
    }
    forwarded(headers, host, &hops, peer, tls);
    Client {
        address,
        tls: client_tls,
    }
}

/// Removes what is one of these headers to servers that read `_` as `-`, as those behind CGI and WSGI do.
fn remove_disguised(headers: &mut HeaderMap) {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let disguises = |name: &HeaderName| {
        let says = |said: &HeaderName| name.as_str().bytes().map(plain).eq(said.as_str().bytes());
        name.as_str().contains('_') && [FOR, PROTO, HOST].iter().chain(&REMOVED).any(says)
    };
    let disguised: Vec<HeaderName> = headers
        .keys()
        .filter(|name| disguises(name))
        .cloned()
        .collect();
    for name in disguised {
        headers.remove(name);
    }
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// The proxies that a trusted peer names, the client first; none where it names none, or anything else than addresses.
fn hops(headers: &HeaderMap) -> Option<Vec<IpAddr>> {
    let mut hops = Vec::new();
    for value in headers.get_all(FOR) {
        for hop in value.to_str().ok()?.split(',') {
            let hop = hop.trim().parse::<IpAddr>().ok()?.to_canonical();
            if hops.len() == MAX_HOPS {
                return None;
            }
            hops.push(hop);
        }
    }
    (!hops.is_empty()).then_some(hops)
}

/// One element for each hop, the last with what this gateway itself saw.
fn forwarded(
    headers: &mut HeaderMap,
    host: Option<&HeaderValue>,
    before: &[IpAddr],
    peer: IpAddr,
    tls: bool,
) {
    let node = |address: &IpAddr| match address {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    let mut elements: Vec<String> = before.iter().map(node).collect();
    let mut last = format!("{};proto={}", node(&peer), scheme(tls));
    let host = host.and_then(|host| host.to_str().ok());
    // A host is letters, digits and what stands between; anything else was refused, and has no place in quotes.
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        last.push_str(&format!(";host=\"{host}\""));
    }
    elements.push(last);
    headers.remove(header::FORWARDED);
    append(headers, header::FORWARDED, &elements.join(", "));
}

fn append(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    // Addresses, and a host that came as a header value.
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(
        given: &[(&'static str, &str)],
        peer: &str,
        tls: bool,
        trusted: &[&str],
    ) -> (Vec<(String, String)>, String) {
        let (headers, client) = applied_to(given, peer, tls, trusted);
        (headers, client.address.to_string())
    }

    fn applied_to(
        given: &[(&'static str, &str)],
        peer: &str,
        tls: bool,
        trusted: &[&str],
    ) -> (Vec<(String, String)>, Client) {
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_static("airflow.example.com");
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let trusted: Vec<Cidr> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let client = apply(
            &mut headers,
            Some(&host),
            peer.parse().unwrap(),
            tls,
            &trusted,
        );
        let mut all: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        all.sort();
        (all, client)
    }

    fn expected(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn what_a_client_claims_is_overwritten() {
        let claims = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=1.1.1.1;proto=https"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-ssl", "on"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded_proto", "https"),
            ("x_real-ip", "1.1.1.1"),
        ];
        for claims in [&claims[..], &[]] {
            let (headers, client) = applied(claims, "192.0.2.7:4000", false, &["10.0.0.0/8"]);
            assert_eq!(client, "192.0.2.7");
            assert_eq!(
                headers,
                expected(&[
                    (
                        "forwarded",
                        "for=192.0.2.7;proto=http;host=\"airflow.example.com\""
                    ),
                    ("x-forwarded-for", "192.0.2.7"),
                    ("x-forwarded-host", "airflow.example.com"),
                    ("x-forwarded-proto", "http"),
                ])
            );
        }
    }

    #[test]
    fn behind_a_trusted_proxy_the_client_is_the_last_that_is_not_trusted() {
        let claims = [
            // What the client wrote itself, then what two trusted proxies saw.
            ("x-forwarded-for", "1.1.1.1, fd00::7"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "www.example.com"),
        ];
        let (headers, client) = applied(&claims, "10.0.0.1:4000", false, &["10.0.0.0/8"]);
        assert_eq!(client, "fd00::7");
        assert_eq!(
            headers,
            expected(&[
                (
                    "forwarded",
                    "for=1.1.1.1, for=\"[fd00::7]\", for=10.0.0.2, for=10.0.0.1;proto=http;host=\"airflow.example.com\""
                ),
                ("x-forwarded-for", "1.1.1.1, fd00::7, 10.0.0.2, 10.0.0.1"),
                ("x-forwarded-host", "www.example.com"),
                ("x-forwarded-proto", "https"),
            ])
        );
    }

    #[test]
    fn what_a_trusted_proxy_says_that_is_no_address_counts_as_nothing() {
        for claim in ["unknown", "1.2.3.4:80", "", "1.1.1.1,", "1.1.1.1, evil"] {
            let (headers, client) = applied(
                &[("x-forwarded-for", claim)],
                "[::ffff:10.0.0.1]:1",
                true,
                &["10.0.0.0/8"],
            );
            assert_eq!(client, "10.0.0.1", "{claim:?}");
            assert!(
                headers.contains(&("x-forwarded-for".into(), "10.0.0.1".into())),
                "{headers:?}"
            );
            assert!(
                headers.contains(&("x-forwarded-proto".into(), "https".into())),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn a_trusted_proxy_says_whether_the_client_speaks_tls_and_nobody_else() {
        let https = [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
        ];
        let http = [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "http"),
        ];
        let silent = [("x-forwarded-for", "192.0.2.7")];
        for (claims, peer, tls, expected) in [
            (&https[..], "10.0.0.1:1", false, true),
            (&http, "10.0.0.1:1", true, false),
            (&silent, "10.0.0.1:1", true, true),
            (&silent, "10.0.0.1:1", false, false),
            (&https, "192.0.2.1:1", false, false),
            (&http, "192.0.2.1:1", true, true),
        ] {
            let (_, client) = applied_to(claims, peer, tls, &["10.0.0.0/8"]);
            assert_eq!(client.tls, expected, "{claims:?} {peer} {tls}");
        }
    }
}
