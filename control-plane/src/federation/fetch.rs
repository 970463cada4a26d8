//! One bundle document from its endpoint, by either profile (SPIFFE Federation, section 5.2).

use crate::config::{EndpointProfile, FederatedTrustDomain};
use crate::https::{HttpsError, HttpsRequest, HttpsUrl, HttpsUrlError, Server, send_to};
use bytes::Bytes;
use http::header::{ACCEPT, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use sidewind_identity::bundle::document::MAX_DOCUMENT_BYTES;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// From the connection to the last byte, of each server that is asked.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer, or none that can be believed.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// The server did not give the document.
    #[error("{url} answered with status {status}")]
    Status {
        /// What was asked for.
        url: HttpsUrl,
        /// The answer.
        status: StatusCode,
    },
    /// A redirect names no place.
    #[error("{url} redirects without saying where to")]
    NoLocation {
        /// What was asked for.
        url: HttpsUrl,
    },
    /// A redirect leads where a bundle must not come from.
    #[error("{url} redirects to what no bundle may come from: {source}")]
    Location {
        /// What was asked for.
        url: HttpsUrl,
        /// What is wrong with it.
        source: HttpsUrlError,
    },
    /// A redirect leads back.
    #[error("{url} redirects in a circle, back to {to}")]
    Circle {
        /// What was asked for.
        url: HttpsUrl,
        /// Where it leads.
        to: HttpsUrl,
    },
    /// There are more redirects than are followed.
    #[error("more than {MAX_REDIRECTS} redirects, the last by {url}")]
    TooManyRedirects {
        /// Who sent the last.
        url: HttpsUrl,
    },
}

/// How much closer to this control plane an address is than the world: a redirect never leads closer than the address that
/// the operator named, since its sender is outside and would choose whom this process talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Nearness {
    World,
    /// Private networks (RFC 1918, RFC 6598, RFC 4193).
    Site,
    /// This host, its link, and what is nobody's address: cloud metadata services are there.
    Host,
}

fn nearness(address: IpAddr) -> Nearness {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            if address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || first == 0
                || first >= 240
            {
                Nearness::Host
            } else if address.is_private() || (first == 100 && second & 0xc0 == 64) {
                Nearness::Site
            } else {
                Nearness::World
            }
        }
        IpAddr::V6(address) => {
            if address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
            {
                Nearness::Host
            } else if address.is_unique_local() {
                Nearness::Site
            } else {
                Nearness::World
            }
        }
    }
}

/// Fetches the document of a trust domain from a server that proves itself as its profile says.
///
/// # Errors
/// When there is none; the present one stays in use.
pub async fn fetch(relation: &FederatedTrustDomain, server: &Server) -> Result<Bytes, FetchError> {
    let ca_file = match &relation.profile {
        EndpointProfile::Web { ca_file } => ca_file.as_deref(),
        EndpointProfile::Spiffe { .. } => None,
    };
    let mut url = relation.url.clone();
    let mut asked: Vec<HttpsUrl> = Vec::new();
    let mut nearest = None;
    loop {
        let (first, limit) = (asked.is_empty(), nearest);
        let may_connect = |address: SocketAddr| {
            first || limit.is_some_and(|limit| nearness(address.ip()) <= limit)
        };
        let (response, address) = send_to(request(&url, ca_file), server, &may_connect).await?;
        if first {
            nearest = Some(nearness(address.ip()));
        }
        match response.status {
            StatusCode::OK => return Ok(response.body),
            status if is_redirect(status) => {
                let next = redirected(&url, &response.headers)?;
                asked.push(url.clone());
                if asked.contains(&next) {
                    return Err(FetchError::Circle { url, to: next });
                }
                if asked.len() > MAX_REDIRECTS {
                    return Err(FetchError::TooManyRedirects { url });
                }
                tracing::debug!(%url, %next, "a bundle endpoint redirects");
                url = next;
            }
            status => return Err(FetchError::Status { url, status }),
        }
    }
}

fn request<'a>(url: &'a HttpsUrl, ca_file: Option<&'a Path>) -> HttpsRequest<'a> {
    HttpsRequest {
        method: Method::GET,
        url,
        headers: vec![(ACCEPT, HeaderValue::from_static("application/json"))],
        body: Bytes::new(),
        ca_file,
        timeout: TIMEOUT,
        max_body_bytes: MAX_DOCUMENT_BYTES,
    }
}

/// Permanent ones are followed like the others, and not remembered: the standard leaves the URL to the operator.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads: what it names must be such a URL as an operator could name.
fn redirected(url: &HttpsUrl, headers: &HeaderMap) -> Result<HttpsUrl, FetchError> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| FetchError::NoLocation { url: url.clone() })?;
    // A path of the same server (RFC 3986 section 4.2); two slashes would name another.
    let same_server = location.starts_with('/') && !location.starts_with("//");
    if same_server && let Some(next) = url.with_path(location) {
        return Ok(next);
    }
    HttpsUrl::parse_exact(location).map_err(|source| FetchError::Location {
        url: url.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_near_as_what_can_be_reached_there() {
        for (address, expected) in [
            ("203.0.113.1", Nearness::World),
            ("2001:db8::1", Nearness::World),
            ("10.0.0.1", Nearness::Site),
            ("172.31.0.1", Nearness::Site),
            ("192.168.1.1", Nearness::Site),
            ("100.64.0.1", Nearness::Site),
            ("100.128.0.1", Nearness::World),
            ("fd00::1", Nearness::Site),
            ("::ffff:10.0.0.1", Nearness::Site),
            ("127.0.0.1", Nearness::Host),
            ("127.8.8.8", Nearness::Host),
            ("::ffff:127.0.0.1", Nearness::Host),
            ("169.254.169.254", Nearness::Host),
            ("0.0.0.0", Nearness::Host),
            ("255.255.255.255", Nearness::Host),
            ("224.0.0.1", Nearness::Host),
            ("::1", Nearness::Host),
            ("::", Nearness::Host),
            ("fe80::1", Nearness::Host),
        ] {
            assert_eq!(nearness(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_redirect_leads_to_https_without_a_user_or_nowhere() {
        let url = HttpsUrl::parse_exact("https://a:444/b").unwrap();
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_str(location).unwrap());
            redirected(&url, &headers)
        };
        for (location, expected) in [
            ("https://c/d?e", "https://c/d?e"),
            ("/d?e", "https://a:444/d?e"),
        ] {
            assert_eq!(to(location).unwrap().to_string(), expected);
        }
        for refused in [
            "http://a/b",
            "https://user@a/b",
            "https://user:secret@a/b",
            "https://a/b#c",
            "//a/b",
            "ftp://a",
            "b",
            "",
        ] {
            assert!(
                matches!(to(refused), Err(FetchError::Location { .. })),
                "{refused}"
            );
        }
        let none = redirected(&url, &HeaderMap::new());
        assert!(matches!(none, Err(FetchError::NoLocation { .. })));
    }
}
