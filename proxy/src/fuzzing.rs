//! What reads the bytes of strangers, as `fuzz/` calls it. Each function panics where something does not hold that must
//! hold of any bytes. No part of the program.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::detect::{Detected, Verdict, classify};
use crate::gateway::proxy_protocol;
use crate::http::headers::{
    AuthorityCache, Upgrade, clean_trailers, examine_request, request_to_http1, request_to_http2,
};
use crate::http::heads::Heads;
use crate::inbound::Forwarding;

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
    for line in lines.take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().map(HeaderName::from_bytes);
        let value = parts.next().map(HeaderValue::from_bytes);
        if let (Some(Ok(name)), Some(Ok(value))) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    clean_trailers(&mut request.headers().clone());
    let Ok(examined) = examine_request(&request) else {
        return;
    };
    let headers = request.headers_mut();
    examined.strip_reserved(headers);
    examined.strip_hop_by_hop(headers, Upgrade::Strip);
    for gone in [header::CONNECTION, header::UPGRADE, TRANSFER_ENCODING] {
        assert!(!headers.contains_key(&gone), "{gone}");
    }
    let reserved = |name: &str| name.starts_with("sidewind-") || name.starts_with("x-airflow-");
    assert!(!headers.keys().any(|name| reserved(name.as_str())));
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
