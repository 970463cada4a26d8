//! Interim responses and `expect: 100-continue`, by all that they pass: HTTP/1 to HTTP/2 to HTTP/1.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::{read_head, run};
use crate::http::h2_client::client_builder;
use crate::http::headers::{request_to_http1, request_to_http2};
use crate::http::{
    Body, H1Connection, H1ServerSettings, H2ServerSettings, send_h2, serve_h1, serve_h2,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A client's connection, and the server's at the other end of two proxies.
async fn chain() -> (DuplexStream, DuplexStream) {
    let (backend_io, backend) = tokio::io::duplex(64 * 1024);
    let connection = H1Connection::new(backend_io).await.unwrap();
    let connection = Cell::new(Some(connection));
    let to_server = move |request: Request<Body>| {
        let connection = connection.take().unwrap();
        async move {
            let (mut head, body) = request.into_parts();
            request_to_http1(&mut head, None).unwrap();
            let sent = connection.send(Request::from_parts(head, body)).await;
            Ok(sent.unwrap())
        }
    };
    let (between, far) = tokio::io::duplex(64 * 1024);
    spawn_local(async move {
        let settings = H2ServerSettings::default();
        let never = std::future::pending();
        serve_h2(far, Rc::new(to_server), &settings, never, || {}).await
    });
    let (sender, driver) = client_builder().handshake(between).await.unwrap();
    spawn_local(driver);
    let to_peer = move |request: Request<Body>| {
        let sender = sender.clone();
        async move {
            let (mut head, body) = request.into_parts();
            request_to_http2(&mut head, "a".parse().unwrap()).unwrap();
            let request = Request::from_parts(head, body);
            Ok(send_h2(sender, request, MINUTE).await.unwrap())
        }
    };
    let (client, near) = tokio::io::duplex(64 * 1024);
    spawn_local(async move {
        let settings = H1ServerSettings::default();
        serve_h1(near, &to_peer, &settings, std::future::pending()).await
    });
    (client, backend)
}

#[test]
fn interim_responses_pass_before_the_final_one_to_who_understands_them() {
    for (version, pause) in [("1.1", 1000), ("1.1", 0), ("1.0", 1000)] {
        run(async {
            let (mut client, mut backend) = chain().await;
            let get = format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n");
            client.write_all(get.as_bytes()).await.unwrap();
            read_head(&mut backend).await;
            for interim in [
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nsidewind-error: no-route\r\n\r\n",
                "HTTP/1.1 102 Processing\r\n\r\n",
            ] {
                backend.write_all(interim.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(pause)).await;
            }
            let last = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            backend.write_all(last).await.unwrap();
            if version == "1.1" {
                let hints = read_head(&mut client).await;
                assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
                let processing = read_head(&mut client).await;
                assert_eq!(processing, "HTTP/1.1 102 Processing\r\n\r\n");
            }
            let head = read_head(&mut client).await;
            assert!(
                head.starts_with(&format!("HTTP/{version} 200 OK\r\n")),
                "{head}"
            );
            let mut body = [0; 2];
            client.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"ok");
        });
    }
}

const ASKING: &[u8] =
    b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";

#[test]
fn a_body_that_its_server_refuses_by_the_head_is_never_asked_for() {
    run(async {
        let (mut client, mut backend) = chain().await;
        client.write_all(ASKING).await.unwrap();
        let asked = read_head(&mut backend).await;
        assert!(asked.contains("expect: 100-continue\r\n"), "{asked}");
        let refusal = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n";
        backend.write_all(refusal).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 417 "), "{head}");
        // Neither connection is used again, since nobody knows whether the body comes.
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn a_body_is_asked_for_when_its_server_does_or_says_nothing_for_a_while() {
    for says_so in [true, false] {
        run(async {
            let (mut client, mut backend) = chain().await;
            client.write_all(ASKING).await.unwrap();
            read_head(&mut backend).await;
            let began = Instant::now();
            if says_so {
                backend
                    .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                    .await
                    .unwrap();
            }
            assert_eq!(
                read_head(&mut client).await,
                "HTTP/1.1 100 Continue\r\n\r\n"
            );
            let waited = began.elapsed();
            assert_eq!(waited >= Duration::from_secs(1), !says_so, "{waited:?}");
            client.write_all(b"hello").await.unwrap();
            let mut body = [0; 5];
            backend.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"hello");
            backend
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
        });
    }
}
