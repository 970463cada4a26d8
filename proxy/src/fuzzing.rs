//! What reads the bytes of strangers, as `fuzz/` calls it. Each function panics where something does not hold that must
//! hold of any bytes. No part of the program.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};

use crate::airflow::baggage;
use crate::detect::{Detected, Verdict, classify};
use crate::gateway::proxy_protocol;
use crate::http::headers::{
    AuthorityCache, SIDEWIND_DESTINATION, SIDEWIND_PROTOCOL, Upgrade, clean_trailers,
    examine_request, examine_response, header_list_bytes, request_to_http1, request_to_http2,
};
use crate::http::heads::Heads;
use crate::http::interim;
use crate::inbound::{Forwarding, take_destination};

/// More bytes never change what a client was found to speak.
pub fn detection(bytes: &[u8]) {
    let whole = classify(bytes);
    for length in 0..bytes.len().min(600) {
        if let verdict @ Verdict::Is(_) = classify(&bytes[..length]) {
            assert_eq!(verdict, whole, "after {length} bytes");
        }
    }
}

/// However many bytes follow, the PROXY header is the same one; and no more is taken for it than it has.
pub fn proxy_header(bytes: &[u8]) {
    let whole = proxy_protocol::parse(bytes);
    if let Ok(Some((_, length))) = whole {
        assert!(length <= bytes.len());
    }
    for length in 0..bytes.len().min(600) {
        match proxy_protocol::parse(&bytes[..length]) {
            Ok(None) => {}
            // Refused or read as soon as it can be, and never otherwise by what comes later.
            decided => {
                assert_eq!(decided, whole, "after {length} bytes");
                return;
            }
        }
    }
}

/// What a TLS client calls the server: of letters, digits and what a name has besides, the same however many bytes follow, and
/// that of rustls where rustls reads the same hello.
pub fn tls_hello(bytes: &[u8]) {
    let mut record = bytes.to_vec();
    if let Some(first) = record.first_mut() {
        // A TLS record, whatever else it is.
        *first = 0x16;
    }
    let Verdict::Is(Detected::Tls { server_name }) = classify(&record) else {
        return;
    };
    let Some(name) = server_name else {
        return;
    };
    assert!((1..=253).contains(&name.len()), "{name:?}");
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    assert!(name.bytes().all(fits), "{name:?}");
    record.extend_from_slice(b"whatever follows");
    let longer = Verdict::Is(Detected::Tls {
        server_name: Some(name.clone()),
    });
    assert_eq!(classify(&record), longer);
    let mut acceptor = rustls::server::Acceptor::default();
    let read = acceptor.read_tls(&mut &record[..]);
    if read.is_ok()
        && let Ok(Some(accepted)) = acceptor.accept()
        && let Some(theirs) = accepted.client_hello().server_name()
    {
        assert_eq!(theirs.to_ascii_lowercase(), name);
    }
}

/// However a client's bytes are cut, the same ones are refused, for the same reason.
pub fn heads(bytes: &[u8]) {
    const LIMIT: usize = 4096;
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = Heads::new(LIMIT).read(bytes);
    let mut heads = Heads::new(LIMIT);
    let mut at = 0;
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        if let Err(refused) = heads.read(piece) {
            assert!(refused.good <= piece.len());
            let expected = whole.expect_err("what is refused in pieces is refused whole");
            assert_eq!(refused.why, expected.why);
            assert!(at + refused.good >= expected.good);
            return;
        }
        at += piece.len();
    }
    // A head that is too long is given up sooner in pieces than whole.
    assert!(whole.is_ok() || bytes.len() >= LIMIT, "{whole:?}");
}

/// A request that is not refused goes on with one host and one length at most, and with nothing of the connection that
/// it came by. The first line is method, version and target; each other one a field.
pub fn headers(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(mut request) = lines.next().and_then(request_line) else {
        return;
    };
    add_fields(request.headers_mut(), lines);
    clean_trailers(&mut request.headers().clone());
    let Ok(examined) = examine_request(&request) else {
        return;
    };
    let headers = request.headers_mut();
    examined.strip_reserved(headers);
    examined.strip_hop_by_hop(headers, Upgrade::Strip);
    assert_end_to_end(headers);
    for once in [HOST, CONTENT_LENGTH] {
        assert!(headers.get_all(&once).iter().count() <= 1, "{once}");
    }
    let mut authorities = AuthorityCache::default();
    let Ok(Some(authority)) = authorities.authority(request.uri(), request.headers()) else {
        return;
    };
    let (head, ()) = request.into_parts();
    let mut first = head.clone();
    if request_to_http1(&mut first, Some(&authority)).is_ok() {
        assert_eq!(first.headers.get_all(HOST).iter().count(), 1);
        assert!(first.uri.authority().is_none());
    }
    let mut second = head;
    if request_to_http2(&mut second, authority).is_ok() {
        assert!(!second.headers.contains_key(HOST) && second.uri.authority().is_some());
    }
}

fn add_fields<'b>(headers: &mut HeaderMap, lines: impl Iterator<Item = &'b [u8]>) {
    for line in lines.take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().map(HeaderName::from_bytes);
        let value = parts.next().map(HeaderValue::from_bytes);
        if let (Some(Ok(name)), Some(Ok(value))) = (name, value) {
            headers.append(name, value);
        }
    }
}

/// Nothing of the connection that a message came by, and nothing that only proxies may say.
fn assert_end_to_end(headers: &HeaderMap) {
    for gone in [header::CONNECTION, header::UPGRADE, TRANSFER_ENCODING] {
        assert!(!headers.contains_key(&gone), "{gone}");
    }
    let reserved = |name: &str| name.starts_with("sidewind-") || name.starts_with("x-airflow-");
    assert!(!headers.keys().any(|name| reserved(name.as_str())));
}

/// A response that is not refused goes on with one length at most, and with nothing of the connection that it came by. The
/// first line is status and version; each other one a field.
pub fn response(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut response = Response::new(());
    let mut words = lines
        .next()
        .unwrap_or_default()
        .splitn(2, |byte| *byte == b' ');
    let status = words
        .next()
        .and_then(|text| http::StatusCode::from_bytes(text).ok());
    *response.status_mut() = status.unwrap_or_default();
    *response.version_mut() = match words.next() {
        Some(b"2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    add_fields(response.headers_mut(), lines);
    let Ok(examined) = examine_response(&response) else {
        return;
    };
    let headers = response.headers_mut();
    examined.strip_reserved(headers);
    examined.strip_hop_by_hop(headers, Upgrade::Strip);
    assert_end_to_end(headers);
    assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
}

/// What a server says before its response goes on as whole interim responses and as nothing else, however it is cut. The
/// first byte says how.
pub fn interim(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    for passed in interim::at_the_beginning(bytes, usize::from(*size)) {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(&passed);
        assert_eq!(parsed, Ok(httparse::Status::Complete(passed.len())));
        let code = response.code.unwrap_or_default();
        assert!((100..200).contains(&code) && code != 101, "{code}");
        let mut headers = HeaderMap::new();
        for field in response.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(field.value);
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        assert_end_to_end(&headers);
    }
}

fn request_line(line: &[u8]) -> Option<Request<()>> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
    *request.version_mut() = match words.next()? {
        b"0" => Version::HTTP_10,
        b"1" => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    *request.uri_mut() = Uri::try_from(words.next()?).ok()?;
    Some(request)
}

/// A peer's destination is taken only where it is this workload's, and none of the sidecar's own ports.
pub fn destination(bytes: &[u8]) {
    const OWN: [u16; 2] = [15001, 15008];
    let local = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let forwarding = Forwarding::redirected(&OWN);
    // As an HBONE peer's `:authority`, once the library has read it.
    let authority = Uri::try_from(bytes).ok();
    let authority = authority.as_ref().and_then(|uri| uri.authority());
    let texts = [
        authority.map(|authority| authority.as_str()),
        std::str::from_utf8(bytes).ok(),
    ];
    for text in texts.into_iter().flatten() {
        if let Ok(port) = forwarding.for_peer(text, local) {
            assert_eq!(port.address.ip(), local);
            assert!(!OWN.contains(&port.address.port()));
        }
    }
}

/// The head of an HBONE peer's CONNECT: its authority as the first line, each other line a field. What it says of the task
/// that it comes from, and of where it goes, is in nothing that goes on.
pub fn connect(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let authority = lines.next().unwrap_or_default();
    destination(authority);
    let Ok(uri) = Uri::try_from(authority) else {
        return;
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    add_fields(request.headers_mut(), lines);
    let counted = header_list_bytes(&request);
    let headers = request.headers_mut();
    // What a proxy adds itself on the way does not count.
    let added = [&SIDEWIND_DESTINATION, &SIDEWIND_PROTOCOL];
    let fields: usize = headers
        .iter()
        .filter(|(name, _)| !added.contains(name) && *name != "traceparent")
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    assert!(counted >= fields);
    let _ = baggage::take(headers);
    assert_eq!(baggage::take(headers), None);
    let _ = take_destination(headers);
    assert!(
        !headers.contains_key(SIDEWIND_DESTINATION) && !headers.contains_key(SIDEWIND_PROTOCOL)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_corpus_breaks_nothing() {
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 9] = [
            ("connect", connect),
            ("destination", destination),
            ("detection", detection),
            ("headers", headers),
            ("heads", heads),
            ("interim", interim),
            ("proxy_header", proxy_header),
            ("response", response),
            ("tls_hello", tls_hello),
        ];
        for (name, target) in targets {
            let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
            let files = std::fs::read_dir(format!("{corpus}/{name}")).unwrap();
            let mut count = 0;
            for file in files {
                let bytes = std::fs::read(file.unwrap().path()).unwrap();
                target(&bytes);
                // However it is cut off.
                for length in 0..bytes.len().min(600) {
                    target(&bytes[..length]);
                }
                count += 1;
            }
            assert!(count > 0, "{name}");
        }
    }
}
