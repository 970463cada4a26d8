//! Who may use the endpoints that change or reveal something.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Uri};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("only programs beside the proxy may use this, by its loopback address")]
    NotLoopback,
    #[error("the host must be an IP address or localhost")]
    Host,
    #[error("web pages may not use this")]
    Origin,
}

/// Lets a request through that a program in the same network namespace made by itself: it comes
/// over loopback; it names the proxy by address, which a browser that was led here by a rebound DNS
/// name does not; and it was not made by a web page, whose cross-site requests say their origin.
pub(super) fn check(remote: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    // A listener on [::] sees IPv4 peers as mapped addresses.
    if !remote.ip().to_canonical().is_loopback() {
        return Err(Refusal::NotLoopback);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| Refusal::Host)?,
        _ => return Err(Refusal::Host),
    };
    let authority = uri.authority().map(http::uri::Authority::as_str);
    if !is_local_name(host) || !authority.is_none_or(is_local_name) {
        return Err(Refusal::Host);
    }
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::Origin);
    }
    Ok(())
}

/// Whether `host` or `host:port` is an IP address or `localhost`.
fn is_local_name(authority: &str) -> bool {
    if authority.parse::<SocketAddr>().is_ok() || authority.parse::<IpAddr>().is_ok() {
        return true;
    }
    let bare = authority
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if bare.is_some_and(|address| address.parse::<IpAddr>().is_ok()) {
        return true;
    }
    let (name, port) = authority.split_once(':').unwrap_or((authority, "0"));
    name.eq_ignore_ascii_case("localhost") && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn asked(remote: &str, uri: &str, headers: &[(http::HeaderName, &str)]) -> Result<(), Refusal> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::try_from(*value).unwrap()))
            .collect();
        check(remote.parse().unwrap(), &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn programs_on_loopback_are_let_through() {
        for remote in [
            "127.0.0.1:9",
            "127.9.9.9:9",
            "[::1]:9",
            "[::ffff:127.0.0.1]:9",
        ] {
            for host in [
                "127.0.0.1",
                "127.0.0.1:15020",
                "[::1]",
                "[::1]:15020",
                "LOCALHOST:1",
            ] {
                assert_eq!(
                    asked(remote, "/", &[(HOST, host)]),
                    Ok(()),
                    "{remote} {host}"
                );
            }
        }
    }

    #[test]
    fn other_machines_are_refused() {
        for remote in [
            "10.0.0.1:9",
            "[fd00::1]:9",
            "[::ffff:10.0.0.1]:9",
            "0.0.0.0:9",
        ] {
            let answer = asked(remote, "/", &[(HOST, "127.0.0.1")]);
            assert_eq!(answer, Err(Refusal::NotLoopback), "{remote}");
        }
    }

    #[test]
    fn rebound_names_and_web_pages_are_refused() {
        let loopback = "127.0.0.1:9";
        for host in [
            "evil.example",
            "evil.example:15020",
            "localhost.evil",
            "",
            "localhost:x",
        ] {
            assert_eq!(
                asked(loopback, "/", &[(HOST, host)]),
                Err(Refusal::Host),
                "{host}"
            );
        }
        assert_eq!(asked(loopback, "/", &[]), Err(Refusal::Host));
        let twice = [(HOST, "127.0.0.1"), (HOST, "evil.example")];
        assert_eq!(asked(loopback, "/", &twice), Err(Refusal::Host));
        let absolute = asked(loopback, "http://evil.example/", &[(HOST, "127.0.0.1")]);
        assert_eq!(absolute, Err(Refusal::Host));
        let page = [(HOST, "127.0.0.1"), (ORIGIN, "https://evil.example")];
        assert_eq!(asked(loopback, "/", &page), Err(Refusal::Origin));
    }
}
