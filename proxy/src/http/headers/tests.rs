use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use proptest::prelude::*;

use super::examine::BadResponse;
use super::*;

type Fields<'a> = &'a [(&'a str, &'a str)];

fn request(version: Version, uri: &str, headers: Fields<'_>) -> Request<()> {
    let mut request = Request::builder().version(version).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn http1(headers: Fields<'_>) -> Request<()> {
    request(Version::HTTP_11, "/", headers)
}

fn stripped(headers: Fields<'_>, upgrade: Upgrade) -> Vec<(String, String)> {
    let mut request = http1(headers);
    let examined = examine_request(&request).unwrap();
    examined.strip_hop_by_hop(request.headers_mut(), upgrade);
    examined.strip_reserved(request.headers_mut());
    fields(request.headers())
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    fields.sort();
    fields
}

fn owned(fields: Fields<'_>) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn fields_of_one_connection_do_not_pass() {
    let cases: &[(Fields<'_>, Fields<'_>)] = &[
        (
            &[
                ("host", "a"),
                ("connection", "keep-alive"),
                ("accept", "*/*"),
            ],
            &[("accept", "*/*"), ("host", "a")],
        ),
        (
            &[
                ("host", "a"),
                ("connection", "close, X-Hop"),
                ("x-hop", "1"),
                ("x-end", "2"),
            ],
            &[("host", "a"), ("x-end", "2")],
        ),
        (
            &[
                ("host", "a"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
            ],
            &[("host", "a")],
        ),
        (
            &[
                ("host", "a"),
                ("proxy-authorization", "Basic eA=="),
                ("http2-settings", "AAA"),
            ],
            &[("host", "a")],
        ),
        (
            &[
                ("host", "a"),
                ("transfer-encoding", "Chunked"),
                ("trailer", "x-sum"),
            ],
            &[("host", "a"), ("trailer", "x-sum")],
        ),
        (
            &[
                ("host", "a"),
                ("te", "gzip;q=0.5, Trailers"),
                ("connection", "TE"),
            ],
            &[("host", "a"), ("te", "trailers")],
        ),
        (&[("host", "a"), ("te", "gzip")], &[("host", "a")]),
        // What a proxy says of the client, which could take it out.
        (
            &[
                ("host", "a"),
                ("connection", "forwarded, x-forwarded-for, traceparent"),
                ("forwarded", "for=192.0.2.7"),
                ("x-forwarded-for", "192.0.2.7"),
                ("traceparent", "00-1-1-00"),
            ],
            &[
                ("forwarded", "for=192.0.2.7"),
                ("host", "a"),
                ("traceparent", "00-1-1-00"),
                ("x-forwarded-for", "192.0.2.7"),
            ],
        ),
        (
            &[
                ("host", "a"),
                ("connection", "host, content-length"),
                ("content-length", "0"),
            ],
            &[("content-length", "0"), ("host", "a")],
        ),
        (
            &[
                ("host", "a"),
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
            ],
            &[("host", "a")],
        ),
    ];
    for (given, expected) in cases {
        assert_eq!(
            stripped(given, Upgrade::Strip),
            owned(expected),
            "{given:?}"
        );
    }
}

#[test]
fn an_upgrade_that_is_passed_on_keeps_its_fields() {
    let given = [
        ("host", "a"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ];
    let expected = [
        ("connection", "upgrade"),
        ("host", "a"),
        ("upgrade", "websocket"),
    ];
    assert_eq!(stripped(&given, Upgrade::Keep), owned(&expected));
    let without_option = [("host", "a"), ("upgrade", "websocket")];
    assert_eq!(
        stripped(&without_option, Upgrade::Keep),
        owned(&[("host", "a")])
    );
}

#[test]
fn no_upgrade_leads_to_where_nobody_judges_requests() {
    for (protocols, passes) in [
        (&["websocket"][..], true),
        (&["WebSocket, a/1.0", "tcp"], true),
        (&[",websocket , "], true),
        (&["h2c"], false),
        (&["H2"], false),
        (&["h2c-14"], false),
        (&["HTTP/2.0"], false),
        (&["http"], false),
        (&["TLS/1.2"], false),
        (&["websocket, h2c"], false),
        (&["websocket", "h2c"], false),
        (&["h2c;q=1"], false),
        (&["\"h2c\""], false),
        (&["web socket"], false),
    ] {
        for option in ["upgrade", "Upgrade, HTTP2-Settings"] {
            let mut given = vec![
                ("host", "a"),
                ("connection", option),
                ("http2-settings", "AAMAAABk"),
            ];
            given.extend(protocols.iter().map(|protocol| ("upgrade", *protocol)));
            let examined = examine_request(&http1(&given)).unwrap();
            assert_eq!(examined.wants_upgrade(), passes, "{protocols:?}");
            let mut expected = vec![("host", "a")];
            if passes {
                expected.push(("connection", "upgrade"));
                expected.extend(protocols.iter().map(|protocol| ("upgrade", *protocol)));
            }
            expected.sort_unstable();
            assert_eq!(stripped(&given, Upgrade::Keep), owned(&expected));
        }
    }
}

#[test]
fn no_spelling_of_an_identity_field_passes() {
    for name in [
        "x-forwarded-client-cert",
        "X_Forwarded_Client_Cert",
        "x-forwarded_client-cert",
        "sidewind-destination",
        "Sidewind_Protocol",
        "sidewind-",
        "sidewind_anything",
    ] {
        assert_eq!(
            stripped(&[("host", "a"), (name, "x")], Upgrade::Strip),
            owned(&[("host", "a")]),
            "{name}"
        );
    }
    for name in [
        "sidewinder",
        "x-forwarded-for",
        "x-forwarded-client-certs",
        "side-wind",
    ] {
        assert_eq!(
            stripped(&[("host", "a"), (name, "x")], Upgrade::Strip).len(),
            2,
            "{name}"
        );
    }
}

#[test]
fn ambiguous_requests_are_refused() {
    let cases: &[(Fields<'_>, BadRequest)] = &[
        (&[], BadRequest::MissingHost),
        (&[("host", "a"), ("host", "b")], BadRequest::DuplicateHost),
        (&[("host", "a"), ("host", "a")], BadRequest::DuplicateHost),
        (&[("host", "")], BadRequest::InvalidHost),
        (&[("host", "a b")], BadRequest::InvalidHost),
        (&[("host", "a/b")], BadRequest::InvalidHost),
        (&[("host", "a@b")], BadRequest::InvalidHost),
        (&[("host", "a,b")], BadRequest::InvalidHost),
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("transfer-encoding", "chunked"),
            ],
            BadRequest::LengthAndEncoding,
        ),
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("content-length", "2"),
            ],
            BadRequest::InvalidLength,
        ),
        (
            &[("host", "a"), ("content-length", "+1")],
            BadRequest::InvalidLength,
        ),
        (
            &[("host", "a"), ("content-length", "1, 1")],
            BadRequest::InvalidLength,
        ),
        (
            &[("host", "a"), ("content-length", "")],
            BadRequest::InvalidLength,
        ),
        (
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            BadRequest::UnsupportedEncoding,
        ),
        (
            &[("host", "a"), ("transfer-encoding", "xchunked")],
            BadRequest::UnsupportedEncoding,
        ),
        (
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            BadRequest::UnsupportedEncoding,
        ),
    ];
    for (headers, expected) in cases {
        assert_eq!(
            examine_request(&http1(headers)).unwrap_err(),
            *expected,
            "{headers:?}"
        );
    }
}

#[test]
fn http_2_needs_an_authority_or_a_host_that_agree() {
    let check = |uri: &str, headers: Fields<'_>| {
        examine_request(&request(Version::HTTP_2, uri, headers)).err()
    };
    assert_eq!(check("http://orders/x", &[]), None);
    assert_eq!(check("http://orders/x", &[("host", "Orders")]), None);
    assert_eq!(check("/x", &[("host", "orders")]), None);
    assert_eq!(check("/x", &[]), Some(BadRequest::MissingHost));
    assert_eq!(
        check("http://orders/x", &[("host", "users")]),
        Some(BadRequest::HostMismatch)
    );
    assert_eq!(
        check("http://me@orders/x", &[]),
        Some(BadRequest::InvalidHost)
    );
}

#[test]
fn http_1_0_may_have_no_host() {
    assert!(examine_request(&request(Version::HTTP_10, "/", &[])).is_ok());
}

#[test]
fn a_response_whose_length_is_unclear_is_refused() {
    let check = |headers: Fields<'_>| {
        let mut response = Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        examine_response(&response.body(()).unwrap()).err()
    };
    assert_eq!(check(&[("content-length", "1")]), None);
    assert_eq!(
        check(&[("content-length", "1"), ("transfer-encoding", "chunked")]),
        None
    );
    assert_eq!(
        check(&[("transfer-encoding", "gzip, chunked")]),
        Some(BadResponse::UnsupportedEncoding)
    );
    assert_eq!(
        check(&[("content-length", "1"), ("content-length", "2")]),
        Some(BadResponse::InvalidLength)
    );
}

#[test]
fn a_response_in_chunks_loses_its_content_length() {
    let mut response = Response::builder()
        .header("content-length", "1")
        .header("transfer-encoding", "chunked")
        .body(())
        .unwrap();
    let examined = examine_response(&response).unwrap();
    examined.strip_hop_by_hop(response.headers_mut(), Upgrade::Strip);
    assert!(response.headers().is_empty());
}

#[test]
fn an_http_1_request_becomes_an_http_2_one_and_back() {
    for (target, in_http2, in_http1) in [
        (
            "/orders?id=1",
            "http://orders.data:80/orders?id=1",
            "/orders?id=1",
        ),
        ("http://Other:1/x", "http://Other:1/x", "/x"),
        ("http://other", "http://other/", "/"),
    ] {
        let mut cache = AuthorityCache::default();
        let given = request(Version::HTTP_11, target, &[("host", "orders.data:80")]);
        let authority = cache
            .authority(given.uri(), given.headers())
            .unwrap()
            .unwrap();
        let (mut head, ()) = given.into_parts();
        request_to_http2(&mut head, authority.clone()).unwrap();
        assert_eq!(head.uri.to_string(), in_http2);
        assert_eq!(head.version, Version::HTTP_2);
        assert!(head.headers.is_empty());
        request_to_http1(&mut head, None).unwrap();
        assert_eq!(head.uri.to_string(), in_http1);
        assert_eq!(head.headers["host"], authority.as_str());
    }
}

#[test]
fn an_asterisk_target_survives_both_ways() {
    let (mut head, ()) = request(Version::HTTP_11, "*", &[("host", "a")]).into_parts();
    head.method = Method::OPTIONS;
    request_to_http2(&mut head, Authority::from_static("a")).unwrap();
    assert_eq!(head.uri.path(), "*");
    request_to_http1(&mut head, None).unwrap();
    assert_eq!(head.uri.to_string(), "*");
}

#[test]
fn a_request_without_host_gets_the_default_one() {
    let (mut head, ()) = request(Version::HTTP_10, "/", &[]).into_parts();
    assert_eq!(
        request_to_http1(&mut head, None),
        Err(BadRequest::MissingHost)
    );
    let default = Authority::from_static("10.0.0.1:80");
    request_to_http1(&mut head, Some(&default)).unwrap();
    assert_eq!(head.headers["host"], "10.0.0.1:80");
}

#[test]
fn cookie_crumbs_are_joined_and_te_is_announced() {
    let given = request(
        Version::HTTP_2,
        "http://a/",
        &[
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("cookie", "c=3"),
            ("te", "trailers"),
        ],
    );
    let (mut head, ()) = given.into_parts();
    request_to_http1(&mut head, None).unwrap();
    assert_eq!(
        head.headers.get_all("cookie").iter().collect::<Vec<_>>(),
        ["a=1; b=2; c=3"]
    );
    assert_eq!(head.headers["connection"], "te");
}

#[test]
fn the_authority_cache_follows_a_changing_host() {
    let mut cache = AuthorityCache::default();
    for host in ["a", "a", "b:1", "a"] {
        let given = http1(&[("host", host)]);
        let authority = cache
            .authority(given.uri(), given.headers())
            .unwrap()
            .unwrap();
        assert_eq!(authority.as_str(), host);
    }
    let bad = http1(&[("host", "a:b:c")]);
    assert_eq!(
        cache.authority(bad.uri(), bad.headers()),
        Err(BadRequest::InvalidHost)
    );
}

#[test]
fn the_authority_cache_does_not_keep_the_buffer_that_a_head_was_read_into() {
    let read = Bytes::from(b"GET / HTTP/1.1\r\nhost: orders.data:80\r\n\r\n".to_vec());
    let mut cache = AuthorityCache::default();
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_maybe_shared(read.slice(22..36)).unwrap();
    assert_eq!(host, "orders.data:80");
    headers.insert("host", host);
    cache
        .authority(&Uri::from_static("/"), &headers)
        .unwrap()
        .unwrap();
    drop(headers);
    assert!(read.is_unique());
}

const NAMES: [&str; 16] = [
    "accept",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "sidewind-destination",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded_client_cert",
];
const VALUES: [&str; 9] = [
    "",
    "close",
    "keep-alive, x-a",
    "upgrade",
    "chunked",
    "gzip",
    "5",
    "trailers",
    "accept, cookie",
];

proptest! {
    /// Whatever comes in, what goes out by HTTP/2 has no field of a connection and none that only proxies set.
    #[test]
    fn nothing_forbidden_ever_passes(fields in proptest::collection::vec((0..NAMES.len(), 0..VALUES.len()), 0..12)) {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("a"));
        for (name, value) in fields {
            headers.append(NAMES[name], HeaderValue::from_static(VALUES[value]));
        }
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_static("/");
        *request.headers_mut() = headers;
        if let Ok(examined) = examine_request(&request) {
            examined.strip_hop_by_hop(request.headers_mut(), Upgrade::Strip);
            examined.strip_reserved(request.headers_mut());
            for (name, value) in request.headers() {
                let allowed = ["accept", "content-length", "cookie", "expect", "host", "trailer"].contains(&name.as_str())
                    || (name == "te" && value == "trailers");
                prop_assert!(allowed, "{name}: {value:?}");
            }
        }
    }
}

#[test]
fn trailers_lose_what_belongs_in_a_head_and_what_only_proxies_may_set() {
    let cases: &[(Fields<'_>, Fields<'_>)] = &[
        (
            &[
                ("grpc-status", "0"),
                ("grpc-message", "fine"),
                ("x-end", "a b"),
            ],
            &[
                ("grpc-message", "fine"),
                ("grpc-status", "0"),
                ("x-end", "a b"),
            ],
        ),
        (
            &[
                ("content-length", "5"),
                ("transfer-encoding", "chunked"),
                ("host", "other"),
                ("authorization", "Bearer forged"),
                ("cookie", "session=forged"),
                ("trailer", "x"),
                ("te", "trailers"),
                ("x-end", "1"),
            ],
            &[("x-end", "1")],
        ),
        (
            &[
                ("x-forwarded-client-cert", "URI=forged"),
                ("x_forwarded_client_cert", "URI=forged"),
                ("sidewind-destination", "10.0.0.1:80"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("x-end", "1"),
            ],
            &[("x-end", "1")],
        ),
        (
            &[("x-padded", " 1"), ("x-tabbed", "1\t"), ("x-empty", "")],
            &[("x-empty", "")],
        ),
    ];
    for (given, expected) in cases {
        let mut trailers = http1(given).headers().clone();
        clean_trailers(&mut trailers);
        assert_eq!(fields(&trailers), owned(expected), "{given:?}");
    }
}

#[test]
fn white_space_around_a_value_is_no_http2() {
    for (value, right) in [
        (" a", false),
        ("a ", false),
        ("\ta", false),
        ("a\t", false),
        ("a b", true),
        ("", true),
    ] {
        let request = request(Version::HTTP_2, "http://a/", &[("x-value", value)]);
        assert_eq!(
            examine_request(&request).err(),
            (!right).then_some(BadRequest::PaddedValue),
            "{value:?}"
        );
        let response = Response::builder()
            .version(Version::HTTP_2)
            .header("x-value", value);
        assert_eq!(
            examine_response(&response.body(()).unwrap()).err(),
            (!right).then_some(BadResponse::PaddedValue),
            "{value:?}"
        );
    }
}

#[test]
fn only_options_are_asked_of_a_whole_server() {
    for (method, right) in [
        (Method::OPTIONS, true),
        (Method::GET, false),
        (Method::POST, false),
    ] {
        let mut request = http1(&[("host", "a")]);
        *request.uri_mut() = Uri::from_static("*");
        *request.method_mut() = method;
        assert_eq!(examine_request(&request).is_ok(), right, "{request:?}");
    }
}
