use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::{read_head, run};
use crate::copy::pipe;
use crate::errors::{ErrorCode, ProxyError};
use crate::http::h1_server::H1ServerError;
use crate::http::{
    Body, BodyEnd, BodyError, BodyWatcher, Bound, BreakOff, H1Connection, H1ServerSettings,
    LEAST_BYTES, serve_h1,
};

type Served = JoinHandle<Result<(), H1ServerError>>;

/// Echoes bodies.
async fn echo(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(Response::new(Body::from(body)))
}

fn serve() -> (DuplexStream, oneshot::Sender<()>, Served) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (shutdown, told) = oneshot::channel::<()>();
    let served = spawn_local(async move {
        let settings = H1ServerSettings::default();
        serve_h1(server, &echo, &settings, async {
            if told.await.is_err() {
                std::future::pending().await
            }
        })
        .await
    });
    (client, shutdown, served)
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";

async fn read_response(client: &mut DuplexStream) -> (String, String) {
    let head = read_head(client).await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn requests_are_served_one_after_another_with_idle_times_between() {
    run(async {
        let (mut client, _shutdown, served) = serve();
        for pause in [0, 500, 1500, 5000, 60_000, 0] {
            sleep(Duration::from_millis(pause)).await;
            client.write_all(POST).await.unwrap();
            let (head, body) = read_response(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, "hello");
        }
        drop(client);
        served.await.unwrap().unwrap();
    });
}

#[test]
fn a_request_that_arrives_byte_by_byte_with_pauses_is_served() {
    run(async {
        let (mut client, _shutdown, _served) = serve();
        for byte in POST {
            sleep(Duration::from_millis(100)).await;
            client.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(read_response(&mut client).await.1, "hello");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let (mut client, _shutdown, _served) = serve();
        client.write_all(&POST.repeat(3)).await.unwrap();
        for _ in 0..3 {
            assert_eq!(read_response(&mut client).await.1, "hello");
        }
    });
}

#[test]
fn a_head_that_never_ends_is_answered_in_time_however_it_drips() {
    run(async {
        let (mut client, _shutdown, served) = serve();
        client.write_all(POST).await.unwrap();
        assert_eq!(read_response(&mut client).await.1, "hello");
        let (mut reader, mut writer) = tokio::io::split(client);
        let began = tokio::time::Instant::now();
        let trickle = spawn_local(async move {
            writer
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n")
                .await
                .unwrap();
            while writer.write_all(b"x: y\r\n").await.is_ok() {
                sleep(Duration::from_millis(700)).await;
            }
        });
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        for header in ["connection: close", "sidewind-error: client-timeout"] {
            assert!(answer.contains(&format!("\r\n{header}\r\n")), "{answer}");
        }
        let error = served.await.unwrap().unwrap_err();
        assert!(
            matches!(error, H1ServerError::HeaderTimeout(_)),
            "{error:?}"
        );
        assert!(
            began.elapsed() <= Duration::from_secs(13),
            "{:?}",
            began.elapsed()
        );
        drop(reader);
        trickle.await.unwrap();
    });
}

#[test]
fn a_client_of_which_no_byte_of_a_request_came_gets_no_answer() {
    for sent in ["", "\r\n", "\r\n\r\n"] {
        run(async {
            let (mut client, server) = tokio::io::duplex(1024);
            let settings = H1ServerSettings {
                idle_timeout: Duration::from_secs(60),
                ..H1ServerSettings::default()
            };
            client.write_all(sent.as_bytes()).await.unwrap();
            let serving = serve_h1(server, &echo, &settings, std::future::pending());
            let mut answer = Vec::new();
            let (_, read) = tokio::join!(serving, client.read_to_end(&mut answer));
            read.unwrap();
            assert!(answer.is_empty(), "{sent:?}");
        });
    }
}

#[test]
fn what_is_refused_behind_a_response_that_nobody_has_read_says_why_all_the_same() {
    for (bad, status) in [
        (TWO_LENGTHS, "400"),
        (b"nonsense\r\n\r\n".as_slice(), "400"),
        (b"GET / HTTP/9.9\r\n\r\n", "400"),
    ] {
        run(async {
            let (mut client, server) = tokio::io::duplex(100);
            let large =
                |_: Request<Body>| async { Ok(Response::new(Body::from("x".repeat(10_000)))) };
            let settings = H1ServerSettings::default();
            let serving = serve_h1(server, &large, &settings, std::future::pending());
            let test = async {
                let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
                client.write_all(&[get, bad].concat()).await.unwrap();
                sleep(Duration::from_secs(5)).await;
                assert_eq!(read_response(&mut client).await.1.len(), 10_000);
                let (head, _) = read_response(&mut client).await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
                assert!(
                    head.contains("\r\nsidewind-error: bad-request\r\n"),
                    "{head}"
                );
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it is closed");
            };
            let (served, ()) = tokio::join!(serving, test);
            served.unwrap_err();
        });
    }
}

#[test]
fn a_connection_that_stays_idle_is_closed_in_the_end() {
    run(async {
        let (client, server) = tokio::io::duplex(1024);
        let settings = H1ServerSettings {
            idle_timeout: Duration::from_secs(60),
            ..H1ServerSettings::default()
        };
        let began = tokio::time::Instant::now();
        serve_h1(server, &echo, &settings, std::future::pending())
            .await
            .unwrap();
        assert!(began.elapsed() >= Duration::from_secs(60));
        drop(client);
    });
}

#[test]
fn a_slow_response_and_a_slow_reader_are_not_idleness() {
    run(async {
        let (mut client, server) = tokio::io::duplex(100);
        let slow = |_: Request<Body>| async {
            sleep(Duration::from_secs(30)).await;
            Ok(Response::new(Body::from("x".repeat(10_000))))
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &slow, &settings, std::future::pending());
        let reading = async {
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            let head = read_head(&mut client).await;
            assert!(head.contains("content-length: 10000"), "{head}");
            for _ in 0..100 {
                sleep(Duration::from_secs(3)).await;
                client.read_exact(&mut [0; 100]).await.unwrap();
            }
            drop(client);
        };
        let (served, ()) = tokio::join!(serving, reading);
        served.unwrap();
    });
}

#[test]
fn a_request_body_that_is_still_being_read_after_the_response_is_not_idleness() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let kept = Rc::new(Cell::new(None));
        let keep = |request: Request<Body>| {
            kept.set(Some(request.into_body()));
            async { Ok(Response::new(Body::Empty)) }
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &keep, &settings, std::future::pending());
        let test = async {
            client
                .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe")
                .await
                .unwrap();
            read_head(&mut client).await;
            sleep(Duration::from_secs(30)).await;
            client.write_all(b"llo").await.unwrap();
            let body = kept.take().unwrap();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
            drop(client);
        };
        let (served, ()) = tokio::join!(serving, test);
        served.unwrap();
    });
}

#[test]
fn shutdown_closes_an_idle_connection_at_once() {
    for idle in [0, 500, 10_000] {
        run(async {
            let (mut client, shutdown, served) = serve();
            client.write_all(POST).await.unwrap();
            read_response(&mut client).await;
            sleep(Duration::from_millis(idle)).await;
            shutdown.send(()).unwrap();
            served.await.unwrap().unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        });
    }
}

#[test]
fn shutdown_lets_the_present_request_finish_and_says_close() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let (shutdown, told) = oneshot::channel::<()>();
        let slow = |_: Request<Body>| async {
            sleep(Duration::from_secs(5)).await;
            Ok(Response::new(Body::from("late")))
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &slow, &settings, async { told.await.unwrap() });
        let test = async {
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            sleep(Duration::from_secs(1)).await;
            shutdown.send(()).unwrap();
            let (head, body) = read_response(&mut client).await;
            assert!(head.contains("connection: close"), "{head}");
            assert_eq!(body, "late");
        };
        let (served, ()) = tokio::join!(serving, test);
        served.unwrap();
    });
}

#[test]
fn garbage_and_oversized_heads_are_refused_and_closed() {
    for (sent, status) in [
        (b"\x16\x03\x01\x02\x00\r\n\r\n".to_vec(), "400"),
        (
            [
                b"GET / HTTP/1.1\r\nx: ".to_vec(),
                vec![b'a'; 70_000],
                b"\r\n\r\n".to_vec(),
            ]
            .concat(),
            "431",
        ),
    ] {
        run(async {
            let (mut client, _shutdown, served) = serve();
            let (mut reader, mut writer) = tokio::io::split(&mut client);
            let mut answer = Vec::new();
            let (_, read) = tokio::join!(writer.write_all(&sent), reader.read_to_end(&mut answer));
            read.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            served.await.unwrap().unwrap_err();
        });
    }
}

const TWO_LENGTHS: &[u8] =
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
    0\r\n\r\nPOST /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn a_request_with_two_lengths_is_refused_and_says_why() {
    // At once, in pieces, and after others on the same connection, with pauses in which buffers are given up.
    for (before, pieces, pause) in [
        (0, 1, 0),
        (0, 20, 100),
        (2, 1, 0),
        (2, 20, 100),
        (1, 3, 2500),
    ] {
        run(async {
            let (mut client, _shutdown, served) = serve();
            for _ in 0..before {
                client.write_all(POST).await.unwrap();
                assert_eq!(read_response(&mut client).await.1, "hello");
                sleep(Duration::from_millis(pause)).await;
            }
            for piece in TWO_LENGTHS.chunks(TWO_LENGTHS.len().div_ceil(pieces)) {
                // It may be refused before the last byte is there.
                let _ = client.write_all(piece).await;
                sleep(Duration::from_millis(pause)).await;
            }
            let (head, body) = read_response(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
            assert!(
                head.contains("\r\nsidewind-error: bad-request\r\n"),
                "{head}"
            );
            assert!(
                body.contains("both content-length and transfer-encoding"),
                "{body}"
            );
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it is closed");
            let error = served.await.unwrap().unwrap_err();
            assert!(
                matches!(&error, H1ServerError::Http(error) if error.is_parse()),
                "{error:?}"
            );
        });
    }
}

#[test]
fn what_follows_an_upgrade_is_no_request_however_it_looks() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let upgrade = |mut request: Request<Body>| {
            let upgrading = hyper::upgrade::on(&mut request);
            spawn_local(async move {
                let mut stream = hyper_util::rt::TokioIo::new(upgrading.await.unwrap());
                let mut bytes = vec![0; TWO_LENGTHS.len()];
                stream.read_exact(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            });
            async { Ok(Response::new(Body::Empty)) }
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &upgrade, &settings, std::future::pending());
        let test = async {
            client
                .write_all(b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n")
                .await
                .unwrap();
            read_head(&mut client).await;
            client.write_all(TWO_LENGTHS).await.unwrap();
            let mut echoed = vec![0; TWO_LENGTHS.len()];
            client.read_exact(&mut echoed).await.unwrap();
            assert_eq!(echoed, TWO_LENGTHS);
        };
        let (served, ()) = tokio::join!(serving, test);
        served.unwrap();
    });
}

#[test]
fn an_upgrade_passes_through_a_server_and_a_client_connection() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let (backend_io, mut backend) = tokio::io::duplex(1024);
        let connection = Cell::new(Some(H1Connection::new(backend_io).await.unwrap()));
        let forward = |mut request: Request<Body>| {
            let connection = connection.take().unwrap();
            async move {
                let from_client = hyper::upgrade::on(&mut request);
                let mut response = connection.send(request).await.unwrap();
                let to_backend = hyper::upgrade::on(&mut response);
                spawn_local(async move {
                    let (a, b) = tokio::try_join!(from_client, to_backend).unwrap();
                    let mut a = hyper_util::rt::TokioIo::new(a);
                    let mut b = hyper_util::rt::TokioIo::new(b);
                    tokio::io::copy_bidirectional(&mut a, &mut b).await.unwrap();
                });
                Ok(response)
            }
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &forward, &settings, std::future::pending());
        let backend = async {
            read_head(&mut backend).await;
            backend
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await
                .unwrap();
            let mut said = [0; 5];
            backend.read_exact(&mut said).await.unwrap();
            backend.write_all(&said).await.unwrap();
        };
        let test = async {
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello")
                .await
                .unwrap();
            let head = read_head(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            let mut echoed = [0; 5];
            client.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"hello");
        };
        let (served, (), ()) = tokio::join!(serving, backend, test);
        served.unwrap();
    });
}

#[test]
fn an_upgraded_connection_breaks_where_the_other_end_of_it_does() {
    run(async {
        let (mut client, server) = pipe(1024);
        let (backend_io, mut backend) = pipe(1024);
        let connection = Cell::new(Some(H1Connection::new(backend_io).await.unwrap()));
        let exchange_with = |mut request: Request<Body>| {
            let connection = connection.take().unwrap();
            async move {
                let from_client = hyper::upgrade::on(&mut request);
                let mut response = connection.send(request).await.unwrap();
                let to_backend = hyper::upgrade::on(&mut response);
                let extensions = response.extensions_mut();
                let of_backend = extensions.remove::<BreakOff>().unwrap();
                let of_client = BreakOff::default();
                extensions.insert(of_client.clone());
                spawn_local(async move {
                    let (client, backend) = tokio::try_join!(from_client, to_backend).unwrap();
                    let mut backend = hyper_util::rt::TokioIo::new(backend);
                    assert_eq!(backend.read_u8().await.unwrap(), b'!');
                    of_client.set();
                    of_backend.set();
                    drop((client, backend));
                });
                Ok(response)
            }
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &exchange_with, &settings, std::future::pending());
        let upgrading = "connection: upgrade\r\nupgrade: echo\r\n\r\n";
        let switch = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrading}!");
        let asked = format!("GET / HTTP/1.1\r\nhost: a\r\n{upgrading}");
        let backend = async {
            let mut head = [0; 1024];
            assert!(backend.read(&mut head).await.unwrap() > 0);
            backend.write_all(switch.as_bytes()).await.unwrap();
            backend.read(&mut head).await.unwrap_err().kind()
        };
        let client = async {
            client.write_all(asked.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            let error = client.read_to_end(&mut read).await.unwrap_err();
            assert!(read.starts_with(b"HTTP/1.1 101 "));
            error.kind()
        };
        let (served, backend, client) = tokio::join!(serving, backend, client);
        served.unwrap();
        let reset = std::io::ErrorKind::ConnectionReset;
        assert_eq!((backend, client), (reset, reset));
    });
}

#[test]
fn a_request_whose_body_stands_still_or_drips_is_answered_with_408() {
    for (length, drip) in [(100, b"".as_slice()), (100_000, b"x")] {
        run(async {
            let (client, server) = tokio::io::duplex(1024);
            let seen = Rc::new(Seen::default());
            let read = |request: Request<Body>| {
                let seen = seen.clone();
                async move {
                    let body = request.into_body().watched(seen);
                    let error = body.collect().await.unwrap_err();
                    assert!(matches!(error, BodyError::SenderStalled(_)), "{error:?}");
                    let error = ProxyError::new(ErrorCode::ClientTimeout, "Too slow.");
                    Ok(error.into_response(false))
                }
            };
            let settings = H1ServerSettings::default();
            let serving = serve_h1(server, &read, &settings, std::future::pending());
            let (mut reader, mut writer) = tokio::io::split(client);
            let test = async move {
                let head =
                    format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
                writer.write_all(head.as_bytes()).await.unwrap();
                let trickle = spawn_local(async move {
                    while writer.write_all(drip).await.is_ok() {
                        sleep(Duration::from_millis(500)).await;
                    }
                });
                let mut answer = String::new();
                reader.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
                assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
                trickle.abort();
            };
            let (served, ()) = tokio::join!(serving, test);
            served.unwrap();
            assert_eq!((seen.ends.get(), seen.complete.get()), (1, false));
        });
    }
}

#[test]
fn what_is_left_of_a_body_that_nobody_read_is_never_the_next_request() {
    let next = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n";
    for framing in ["content-length: 1000", "transfer-encoding: chunked"] {
        run(async {
            let (mut client, server) = tokio::io::duplex(1024);
            let asked = Cell::new(0);
            let refuse = |_: Request<Body>| {
                asked.set(asked.get() + 1);
                async { Ok(Response::new(Body::from("no"))) }
            };
            let settings = H1ServerSettings::default();
            let serving = serve_h1(server, &refuse, &settings, std::future::pending());
            let test = async {
                let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
                client.write_all(head.as_bytes()).await.unwrap();
                assert_eq!(read_response(&mut client).await.1, "no");
                sleep(Duration::from_millis(2500)).await;
                let _ = client.write_all(next).await;
                let mut rest = Vec::new();
                client.read_to_end(&mut rest).await.unwrap();
                assert!(rest.is_empty(), "{rest:?}");
            };
            let (served, ()) = tokio::join!(serving, test);
            served.unwrap();
            assert_eq!(asked.get(), 1, "{framing}");
        });
    }
    // Of one that has come whole, the connection is kept.
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let refuse = |_: Request<Body>| async { Ok(Response::new(Body::from("no"))) };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &refuse, &settings, std::future::pending());
        let test = async {
            for _ in 0..2 {
                client.write_all(POST).await.unwrap();
                assert_eq!(read_response(&mut client).await.1, "no");
                sleep(Duration::from_millis(2500)).await;
            }
            drop(client);
        };
        let (served, ()) = tokio::join!(serving, test);
        served.unwrap();
    });
}

#[derive(Default)]
struct Seen {
    bytes: Cell<usize>,
    ends: Cell<u32>,
    complete: Cell<bool>,
}

impl BodyWatcher for Seen {
    fn data(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn patience(&self) -> Option<Bound> {
        Some(Bound {
            limit: Duration::from_secs(60),
            least: LEAST_BYTES,
        })
    }

    fn end(&self, end: BodyEnd<'_>) {
        self.ends.set(self.ends.get() + 1);
        self.complete.set(matches!(end, BodyEnd::Complete));
    }
}

#[test]
fn a_watched_body_tells_of_its_bytes_and_its_end_once() {
    run(async {
        for body in [Body::Empty, Body::from("hello")] {
            let (mut client, server) = tokio::io::duplex(1024);
            let seen = Rc::new(Seen::default());
            let body = Cell::new(Some(body));
            let service = |_: Request<Body>| {
                let body = body.take().unwrap().watched(seen.clone());
                async { Ok(Response::new(body)) }
            };
            let settings = H1ServerSettings::default();
            let serving = serve_h1(server, &service, &settings, std::future::pending());
            let test = async {
                client
                    .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                    .await
                    .unwrap();
                let (head, body) = read_response(&mut client).await;
                assert!(
                    head.contains(&format!("content-length: {}", body.len())),
                    "{head}"
                );
                drop(client);
                body.len()
            };
            let (served, length) = tokio::join!(serving, test);
            served.unwrap();
            assert_eq!(
                (seen.bytes.get(), seen.ends.get(), seen.complete.get()),
                (length, 1, true)
            );
        }
    });
}

#[test]
fn a_response_whose_body_fails_breaks_the_connection_off() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1024);
        let (backend_io, mut backend) = tokio::io::duplex(1024);
        let connection = Cell::new(Some(H1Connection::new(backend_io).await.unwrap()));
        let forward = |request: Request<Body>| {
            let connection = connection.take().unwrap();
            async move { Ok(connection.send(request).await.unwrap()) }
        };
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &forward, &settings, std::future::pending());
        let backend = async move {
            read_head(&mut backend).await;
            backend
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
                .await
                .unwrap();
            sleep(Duration::from_secs(1)).await;
        };
        let test = async {
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            let head = read_head(&mut client).await;
            assert!(
                head.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK)),
                "{head}"
            );
            let mut rest = String::new();
            client.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "2\r\nok\r\n", "no end of the body may be made up");
        };
        let (served, (), ()) = tokio::join!(serving, backend, test);
        served.unwrap_err();
    });
}

/// Each connection and request holds one of these; a figure that grows is memory that every idle connection pays.
#[test]
fn the_futures_of_connections_stay_small() {
    run(async {
        let (client, server) = tokio::io::duplex(64);
        let settings = H1ServerSettings::default();
        let serving = serve_h1(server, &echo, &settings, std::future::pending());
        let size = size_of_val(&serving);
        assert!(size <= 640, "serve_h1: {size} bytes");
        let connection = H1Connection::new(client).await.unwrap();
        let size = size_of_val(&connection.send(Request::new(Body::Empty)));
        assert!(size <= 1024, "send: {size} bytes");
        let size = size_of::<Body>();
        assert!(size <= 64, "Body: {size} bytes");
    });
}
