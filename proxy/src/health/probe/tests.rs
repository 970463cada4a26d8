use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn prober() -> Prober {
    let (bans, identity) = (watch::channel(Arc::default()).1, watch::channel(None).1);
    let census = Census::new(bans, identity.clone(), Proofs::default());
    Prober {
        mesh: MeshPool::new(PoolSettings::default(), Box::new(()), census),
        identity,
    }
}

fn settings(kind: CheckKind) -> CheckSettings {
    CheckSettings {
        kind,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
        jitter_percent: 0,
    }
}

fn http(path: &str) -> CheckKind {
    CheckKind::Http {
        path: path.to_owned(),
        host: "api.example".to_owned(),
        statuses: vec![(200, 299)],
        body: None,
        http2: false,
    }
}

async fn found(address: SocketAddr, kind: CheckKind) -> Finding {
    let desc = EndpointDesc::plain(address);
    prober().check(&desc, &settings(kind)).await
}

/// A server that reads one request and answers with these bytes, and gives what it read.
async fn answering(answer: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::task::spawn_local(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer).await.unwrap();
        String::from_utf8(read).unwrap()
    });
    (address, server)
}

#[tokio::test(flavor = "local")]
async fn an_http_check_goes_by_the_status() {
    let (address, server) = answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(
        found(address, http("/health?deep=1")).await,
        Finding::Healthy
    );
    let request = server.await.unwrap();
    assert!(
        request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(request.contains("host: api.example\r\n"), "{request}");
    let (address, _server) = answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(
        found(address, http("/health")).await,
        Finding::Unhealthy("it answered 503".to_owned())
    );
}

#[tokio::test(flavor = "local")]
async fn a_service_that_speaks_http2_alone_is_asked_in_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let answer = Response::builder().status(204).body(()).unwrap();
        respond.send_response(answer, true).unwrap();
        let _ = std::future::poll_fn(|cx| connection.poll_closed(cx)).await;
        request
    });
    let kind = CheckKind::Http {
        path: "/health?deep=1".to_owned(),
        host: "api.example".to_owned(),
        statuses: vec![(200, 299)],
        body: None,
        http2: true,
    };
    assert_eq!(found(address, kind).await, Finding::Healthy);
    let request = server.await.unwrap();
    assert_eq!(request.uri(), "http://api.example/health?deep=1");
    assert_eq!(request.headers()[header::USER_AGENT], USER_AGENT);
}

#[tokio::test(flavor = "local")]
async fn what_does_not_accept_or_breaks_off_gave_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for kind in [CheckKind::Tcp, http("/")] {
        assert!(matches!(found(address, kind).await, Finding::NoAnswer(_)));
    }
    let (address, _server) = answering(b"").await;
    assert!(matches!(
        found(address, http("/")).await,
        Finding::NoAnswer(_)
    ));
}

#[tokio::test(flavor = "local")]
async fn what_accepts_passes_a_tcp_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(found(address, CheckKind::Tcp).await, Finding::Healthy);
}

/// A server of grpc.health.v1 that gives this message, and what it was asked.
async fn grpc_server(message: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<Bytes>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let answer = async {
            let mut asked = request.into_body();
            let body = asked.data().await.unwrap().unwrap();
            let head = Response::builder().header("content-type", "application/grpc");
            let mut stream = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            stream
                .send_data(Bytes::from_static(message), false)
                .unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
            body
        };
        tokio::pin!(answer);
        let body = tokio::select! {
            body = &mut answer => body,
            _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => panic!("closed"),
        };
        let _ = std::future::poll_fn(|cx| connection.poll_closed(cx)).await;
        body
    });
    (address, server)
}

#[tokio::test(flavor = "local")]
async fn a_grpc_check_asks_for_the_service_and_goes_by_what_it_says() {
    let kind = || CheckKind::Grpc {
        service: "a.B".to_owned(),
    };
    let (address, server) = grpc_server(b"\0\0\0\0\x02\x08\x01").await;
    assert_eq!(found(address, kind()).await, Finding::Healthy);
    assert_eq!(server.await.unwrap(), b"\0\0\0\0\x05\x0a\x03a.B"[..]);
    for not_serving in [&b"\0\0\0\0\x02\x08\x02"[..], b"\0\0\0\0\0"] {
        let (address, _server) = grpc_server(not_serving).await;
        assert!(matches!(
            found(address, kind()).await,
            Finding::Unhealthy(_)
        ));
    }
}

#[test]
fn what_the_proxy_beside_an_endpoint_says_is_told_apart_from_what_the_endpoint_does() {
    let of = |code: &'static str| of_proxy(&HeaderValue::from_static(code));
    assert!(matches!(of("workload-unavailable"), Finding::NoAnswer(_)));
    assert!(matches!(of("upstream-protocol"), Finding::Unhealthy(_)));
    for code in [
        "policy-denied",
        "rate-limited",
        "overloaded",
        "of-a-later-version",
    ] {
        assert!(matches!(of(code), Finding::Refused(_)), "{code}");
    }
}

#[test]
fn a_request_over_the_mesh_has_its_authority_and_destination() {
    let request = http_request(([10, 0, 0, 2], 80).into(), "/a?b", "api.example").unwrap();
    let request = to_mesh(request, ([10, 0, 0, 2], 80).into(), false);
    assert_eq!(request.uri(), "http://api.example/a?b");
    assert_eq!(request.headers()[SIDEWIND_DESTINATION], "10.0.0.2:80");
    assert!(!request.headers().contains_key("host"));
}
