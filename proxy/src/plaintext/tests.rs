use std::cell::Cell;

use http::{HeaderValue, Method, header::CONNECTION, header::UPGRADE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::*;
use crate::exchange::{Exchange, Origin, Party};
use crate::telemetry::Direction;
use crate::worker::{Worker, testing::worker};

fn cleaned(
    status: u16,
    switched: Option<&str>,
    asked: Option<&str>,
) -> Result<Response<Body>, ProxyError> {
    let upgrade = |protocols: &str| {
        let value = HeaderValue::from_str(protocols).unwrap();
        HeaderMap::from_iter([(UPGRADE, value)])
    };
    let mut response = Response::builder();
    if let (Some(switched), Some(headers)) = (switched, response.headers_mut()) {
        headers.extend(upgrade(switched));
    }
    let response = response
        .status(status)
        .header("sidewind-error", "connect-failed")
        .header("x-other", "stays")
        .body(Body::Empty)
        .unwrap();
    let asked = asked.map(upgrade);
    clean_response(([10, 0, 0, 2], 80).into(), response, asked.as_ref())
}

#[tokio::test]
async fn a_silent_server_has_vanished_when_several_probes_are_lost_and_not_one() {
    let listener = capture::listen(([127, 0, 0, 1], 0).into(), Peer::Any).unwrap();
    let address = listener.local_addr().unwrap();
    let stream = capture::connect(address, Duration::from_secs(5), None, Peer::Any)
        .await
        .unwrap();
    notice_vanished(&stream);
    let socket = SockRef::from(&stream);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED));
    let (after, interval) = (
        socket.tcp_keepalive_time().unwrap(),
        socket.tcp_keepalive_interval().unwrap(),
    );
    assert!(after + 3 * interval < VANISHED, "{after:?}, {interval:?}");
}

#[test]
fn a_server_cannot_speak_as_a_proxy() {
    let response = cleaned(503, None, None).unwrap();
    assert!(!response.headers().contains_key("sidewind-error"));
    assert!(response.headers().contains_key("x-other"));
}

#[test]
fn protocols_are_switched_only_where_the_client_asked_for_it() {
    for (switched, asked) in [("websocket", "websocket"), ("WebSocket", "a/1, websocket")] {
        let response = cleaned(101, Some(switched), Some(asked));
        assert!(response.is_ok(), "{switched} for {asked}: {response:?}");
    }
    for (switched, asked) in [
        (Some("websocket"), None),
        (None, None),
        (None, Some("websocket")),
        (Some(""), Some("websocket")),
        (Some("h2c"), Some("websocket")),
        (Some("websocket, h2c"), Some("websocket")),
        (Some("websocket/2"), Some("websocket")),
    ] {
        let error = cleaned(101, switched, asked).unwrap_err();
        let code = error.code();
        assert_eq!(
            code,
            ErrorCode::UpstreamProtocol,
            "{switched:?} for {asked:?}"
        );
    }
    assert!(cleaned(200, None, Some("websocket")).is_ok());
}

/// A request of a gateway's client, as it is sent to an endpoint.
fn begin(worker: &Rc<Worker>, request: &mut Request<Body>) -> Rc<Exchange> {
    let origin = Origin::new(worker, Direction::Gateway, Party::default());
    let exchange = Exchange::begin(&origin, request, worker.drain.active());
    exchange.clean(request).unwrap();
    exchange
}

fn get(headers: &[(http::HeaderName, &'static str)]) -> Request<Body> {
    let mut request = Request::get("http://orders.data/")
        .body(Body::Empty)
        .unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_static(value);
        request.headers_mut().append(name, value);
    }
    request
}

/// A server that says this to the first request of each connection, and closes it.
async fn server(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            spawn_local(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                // A client that has seen enough does not wait for the rest.
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "local")]
async fn what_is_no_answer_in_http_is_told_from_a_connection_that_breaks() {
    let worker = worker();
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(300_000));
    for (answer, code) in [
        (&b""[..], ErrorCode::UpstreamReset),
        (b"HTTP/1.1 200 OK\r\nx", ErrorCode::UpstreamReset),
        (b"SSH-2.0-server\r\n", ErrorCode::UpstreamProtocol),
        (b"HTTP/1.1 OK\r\n\r\n", ErrorCode::UpstreamProtocol),
        (
            b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            ErrorCode::UpstreamProtocol,
        ),
        (large.as_bytes(), ErrorCode::UpstreamProtocol),
    ] {
        let address = server(answer.to_vec()).await;
        let mut request = get(&[]);
        let exchange = begin(&worker, &mut request);
        let sent = worker.endpoints.send(address, &exchange, request, false);
        let error = sent.await.unwrap_err();
        let said = String::from_utf8_lossy(answer.get(..40).unwrap_or(answer)).into_owned();
        assert_eq!(error.code(), code, "{said:?}: {}", error.chain());
    }
}

/// A server that answers the first request of each connection, and the second with this and its end; how many it has read.
async fn forgetful(second: &'static str) -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read = Rc::new(Cell::new(0));
    let count = Rc::clone(&read);
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Rc::clone(&count);
            spawn_local(async move {
                for answer in ["HTTP/1.1 204 No Content\r\n\r\n", second] {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    count.set(count.get() + 1);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (address, read)
}

#[tokio::test(flavor = "local")]
async fn a_request_that_a_kept_connection_ended_with_goes_to_a_new_one_where_it_may_be_repeated() {
    let reset = Err(ErrorCode::UpstreamReset);
    for (method, body, second, expected, read) in [
        (Method::GET, "", "", Ok(204), 3),
        (Method::DELETE, "", "", Ok(204), 3),
        (Method::POST, "", "", reset, 2),
        (Method::PUT, "hello", "", reset, 2),
        // It had begun to answer.
        (Method::GET, "", "HTTP/1.1 2", reset, 2),
    ] {
        let worker = worker();
        let (address, count) = forgetful(second).await;
        let send = async |method: &Method, body: &str| {
            let mut request = get(&[]);
            request.method_mut().clone_from(method);
            *request.body_mut() = Body::from(body.to_owned());
            let exchange = begin(&worker, &mut request);
            let sent = worker.endpoints.send(address, &exchange, request, false);
            let sent = sent.await.map(|answer| answer.status().as_u16());
            sent.map_err(|error| error.code())
        };
        assert_eq!(send(&Method::GET, "").await, Ok(204));
        let name = format!("{method} {second:?}");
        assert_eq!(send(&method, body).await, expected, "{name}");
        assert_eq!(count.get(), read, "{name}");
    }
}

#[tokio::test(flavor = "local")]
async fn a_request_for_an_upgrade_that_is_ignored_is_one_that_http2_can_carry() {
    let worker = worker();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            assert!(!request.headers().contains_key(UPGRADE));
            respond.send_response(Response::new(()), true).unwrap();
        }
    });
    let upgrade = [(CONNECTION, "upgrade"), (UPGRADE, "websocket")];
    for (ignored, expected) in [
        (true, Ok(StatusCode::OK)),
        (false, Err(ErrorCode::BadRequest)),
    ] {
        let mut request = get(&upgrade);
        let exchange = begin(&worker, &mut request);
        assert!(exchange.wants_upgrade());
        if ignored {
            exchange.ignore_upgrade(&mut request);
            assert!(!exchange.wants_upgrade());
        }
        let sent = worker
            .endpoints
            .send(address, &exchange, request, true)
            .await;
        // What HTTP/2 has no words for is nobody's failure but this proxy's.
        let found = sent
            .map(|answer| answer.status())
            .map_err(|error| error.code());
        assert_eq!(found, expected);
    }
}

#[tokio::test(flavor = "local")]
async fn the_first_request_goes_by_the_connection_that_was_made_in_advance() {
    let worker = worker();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stream = worker.workload.connect(address).await.unwrap();
    worker.workload.keep(address, stream).await;
    let (mut accepted, _) = listener.accept().await.unwrap();
    spawn_local(async move {
        accepted.read_u8().await.unwrap();
        accepted
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        // Nobody else is accepted.
        std::future::pending::<()>().await;
    });
    let mut request = get(&[]);
    *request.method_mut() = Method::POST;
    let exchange = begin(&worker, &mut request);
    let answer = worker
        .workload
        .send(address, &exchange, request, false)
        .await;
    assert_eq!(answer.unwrap().status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_endpoint_that_never_begins_to_answer_is_not_waited_for_without_end() {
    let worker = worker();
    let began = tokio::time::Instant::now();
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    for (content_type, ends) in [("application/json", true), ("application/grpc", false)] {
        let mut request = get(&[(http::header::CONTENT_TYPE, content_type)]);
        *request.version_mut() = http::Version::HTTP_2;
        let exchange = begin(&worker, &mut request);
        let never = std::pin::pin!(std::future::pending());
        let waiting = exchange.head_within(address, never);
        let day = Duration::from_secs(24 * 3600);
        match tokio::time::timeout(day, waiting).await {
            Ok(result) => {
                assert!(ends);
                assert_eq!(result.unwrap_err().code(), ErrorCode::UpstreamStalled);
                assert_eq!(began.elapsed(), Duration::from_secs(3600));
            }
            Err(_) => assert!(!ends),
        }
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_endpoint_that_still_takes_the_request_is_waited_for() {
    let worker = worker();
    let mut request = get(&[]);
    let exchange = begin(&worker, &mut request);
    let sent = std::pin::pin!(async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(3000)).await;
            exchange.count_request_bytes(1);
        }
        Ok(Response::new(Body::Empty))
    });
    let answer = exchange.head_within(([10, 0, 0, 1], 80).into(), sent).await;
    assert!(answer.is_ok());
}
