//! Requests that are too large, or that two servers read differently.

use std::io::Read;
use std::time::SystemTime;

use http::Request;
use sidewind_tests::authority::TestAuthority;
use sidewind_tests::mesh::{MESH_PORT, Mesh, Sidecar};
use sidewind_tests::peer::{Peer, ask_h2c, header_list_bytes};

use crate::bad_input::{Story, admin_refusals, read_to_close, send};
use crate::support::{Pair, TASK_ID};

#[test]
fn an_oversized_header_is_refused_with_its_reason() {
    let mut story = Story::begin();
    story.unharmed_by("oversized headers", |story| {
        let large = format!(
            "GET /orders HTTP/1.1\r\nhost: orders-api.data\r\nx-large: {}\r\n\r\n",
            "x".repeat(200_000)
        );
        let asked = [
            (
                story.outside.place.clone(),
                story.pair.api.at(8080),
                Some("header-too-large"),
            ),
            (
                story.pair.task.place.clone(),
                story.pair.api.at(8080),
                Some("header-too-large"),
            ),
            (story.outside.place.clone(), story.pair.api.at(15020), None),
        ];
        for (place, port, code) in asked {
            let answer = read_to_close(send(&place, port, large.as_bytes()))
                .expect("the connection is closed");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            if let Some(code) = code {
                assert!(
                    answer.starts_with("HTTP/1.1 431") && answer.contains(code),
                    "{port}: {answer}"
                );
            }
            assert!(!answer.contains(" 200 "), "{port}: {answer}");
        }
    });
    let refused = |pair: &Pair, direction: &str| {
        let labels = [("direction", direction), ("code", "header-too-large")];
        let sidecar = if direction == "inbound" {
            &pair.api.sidecar
        } else {
            &pair.task.sidecar
        };
        sidecar.metrics().sum("sidewind_errors_total", &labels)
    };
    assert_eq!(
        (
            refused(&story.pair, "inbound"),
            refused(&story.pair, "outbound")
        ),
        (1.0, 1.0)
    );
    assert_eq!(
        admin_refusals(&story.pair.api.sidecar, "header-too-large"),
        1.0
    );
}

/// A request in HTTP/2 whose header list has so many bytes.
fn request_of(bytes: usize, path: &str, headers: &[(&str, String)]) -> Request<()> {
    let mut request = Request::get(format!("http://orders-api.data:8080{path}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let mut request = request.header("x-large", "").body(()).unwrap();
    let more = bytes - header_list_bytes(&request);
    let value = "x".repeat(more).parse().unwrap();
    request.headers_mut().insert("x-large", value);
    request
}

/// What is counted and logged of headers that are too large.
fn too_large(sidecar: &Sidecar, direction: &str) -> (f64, usize) {
    let labels = [("direction", direction), ("code", "header-too-large")];
    let said = sidecar.log();
    let said = said
        .lines()
        .filter(|line| line.contains("header-too-large"));
    (
        sidecar.metrics().sum("sidewind_errors_total", &labels),
        said.count(),
    )
}

/// `--max-header-bytes` where nothing is said.
const MAX_HEADER_BYTES: usize = 64 * 1024;

#[test]
fn an_oversized_header_of_http2_is_refused_with_its_reason_on_the_mesh_port() {
    let authority = TestAuthority::new();
    let mut pair = Pair::with(Mesh::plan().root(&authority));
    let outside = pair.mesh.outsider("outside");
    let destination = ("sidewind-destination", pair.api.at(8080).to_string());
    // What a sidecar adds itself does not count.
    let added = destination.0.len() + destination.1.len() + 32;
    let svid = authority.svid_files(&pair.mesh.scratch, "task", TASK_ID, SystemTime::now());
    let peer = |alpn| Peer::new(&outside.place, pair.api.at(MESH_PORT), alpn).with(&svid);
    let ask = |bytes: usize| {
        let request = request_of(bytes + added, "/orders", std::slice::from_ref(&destination));
        peer("sidewind/1").ask(request, "").unwrap()
    };
    assert_eq!(ask(MAX_HEADER_BYTES).status, 200);
    let reply = ask(MAX_HEADER_BYTES + 1);
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (431, Some("header-too-large")),
        "{reply:?}"
    );
    assert!(reply.text().contains("--max-header-bytes"), "{reply:?}");
    let record = pair
        .api
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "header-too-large");
    assert_eq!((record.status(), record.source_id()), (431, TASK_ID.into()));
    assert_eq!(too_large(&pair.api.sidecar, "inbound"), (1.0, 1));

    // A tunnel likewise.
    let mut connect = Request::connect(pair.api.at(8080).to_string())
        .header("x-large", "")
        .body(())
        .unwrap();
    let more = MAX_HEADER_BYTES + 1 - header_list_bytes(&connect);
    let value = "x".repeat(more).parse().unwrap();
    connect.headers_mut().insert("x-large", value);
    let reply = peer("h2").ask(connect, "").unwrap();
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (431, Some("header-too-large")),
        "{reply:?}"
    );
    assert_eq!(too_large(&pair.api.sidecar, "inbound"), (2.0, 1));

    // So large that HTTP/2 itself answers, which is counted all the same.
    let reply = ask(MAX_HEADER_BYTES * 2 + 10_000);
    assert_eq!(reply.status, 431, "{reply:?}");
    assert_eq!(too_large(&pair.api.sidecar, "inbound"), (3.0, 1));
    assert_eq!(ask(1000).status, 200);
}

#[test]
fn an_oversized_header_of_http2_is_refused_with_its_reason_on_the_outbound_port() {
    let pair = Pair::start();
    let ask = |bytes: usize, headers: &[(&str, String)]| {
        let request = request_of(bytes, "/orders", headers);
        ask_h2c(&pair.task.place, pair.api.at(8080), request, "").unwrap()
    };
    // The API speaks HTTP/1 alone; that it gets the request shows that the sidecars let it through.
    let whole = ask(MAX_HEADER_BYTES, &[]);
    assert_ne!(whole.header("sidewind-error"), Some("header-too-large"));
    assert_eq!(too_large(&pair.task.sidecar, "outbound"), (0.0, 0));
    assert_eq!(too_large(&pair.api.sidecar, "inbound"), (0.0, 0));
    let reply = ask(MAX_HEADER_BYTES + 1, &[]);
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (431, Some("header-too-large")),
        "{reply:?}"
    );
    pair.task
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "header-too-large");
    assert_eq!(too_large(&pair.task.sidecar, "outbound"), (1.0, 1));
    // gRPC clients are told in their own way.
    let grpc = [("content-type", "application/grpc".to_owned())];
    let reply = ask(MAX_HEADER_BYTES + 1, &grpc);
    assert_eq!(
        (
            reply.status,
            reply.header("grpc-status"),
            reply.header("sidewind-error")
        ),
        (200, Some("8"), Some("header-too-large")),
        "{reply:?}"
    );
    // So large that HTTP/2 itself answers, which is counted all the same.
    let reply = ask(MAX_HEADER_BYTES * 2 + 10_000, &[]);
    assert_eq!(reply.status, 431, "{reply:?}");
    assert_eq!(too_large(&pair.task.sidecar, "outbound"), (3.0, 1));
    assert_eq!(too_large(&pair.api.sidecar, "inbound"), (0.0, 0));
}

#[test]
fn ambiguous_requests_are_refused() {
    let story = Story::begin();
    // RFC 9112, sections 3.2, 5.1, 6.1 and 6.3.
    let ambiguous = [
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /orders HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        "GET /orders HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /orders HTTP/1.1\r\n\r\n",
    ];
    let mut served = Vec::new();
    for request in ambiguous {
        for place in [&story.outside.place, &story.pair.task.place] {
            let mut stream = send(place, story.pair.api.at(8080), request.as_bytes());
            let mut answer = [0; 12];
            let read = stream.read(&mut answer).unwrap_or_default();
            let answer = String::from_utf8_lossy(answer.get(..read).unwrap_or_default());
            if answer.starts_with("HTTP/1.1 2") {
                served.push(request);
            }
        }
    }
    assert!(served.is_empty(), "{served:#?}");
}

#[test]
fn a_request_with_two_lengths_is_refused_before_anything_of_it_goes_on() {
    let story = Story::begin();
    // What one server reads as one request and another as two (RFC 9112, section 6.3).
    let smuggled = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
                    0\r\n\r\nPOST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    for place in [&story.outside.place, &story.pair.task.place] {
        let stream = send(place, story.pair.api.at(8080), smuggled.as_bytes());
        let answer = read_to_close(stream).expect("the connection is closed");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(
            answer.contains("sidewind-error: bad-request")
                && answer.contains("both content-length and transfer-encoding"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(story.pair.curl("/posts", &[]), "0");
    let refused = [("code", "bad-request")];
    for sidecar in [&story.pair.api.sidecar, &story.pair.task.sidecar] {
        let counted = sidecar.metrics().sum("sidewind_errors_total", &refused);
        assert_eq!(counted, 1.0, "{}", sidecar.log());
    }
}
