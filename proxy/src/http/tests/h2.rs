use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::{collect, read_head, run, run_for, run_with_sockets};
use crate::http::h2_client::client_builder;
use crate::http::{
    Body, H1Connection, H2ServerError, H2ServerSettings, send_body, send_h2, serve_h2,
    slow_over_a_head,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn request(body: Body) -> Request<Body> {
    Request::post("http://orders/").body(body).unwrap()
}

async fn echo(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(request.into_body()))
}

/// A sender connected to `serve_h2` with this service, over a pipe of `size` bytes.
async fn connect<S, F>(size: usize, service: S) -> h2::client::SendRequest<Bytes>
where
    S: Fn(Request<Body>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let (client, server) = tokio::io::duplex(size);
    spawn_local(async move {
        let settings = H2ServerSettings::default();
        let never = std::future::pending();
        serve_h2(server, Rc::new(service), &settings, never, || {}).await
    });
    let (sender, connection) = client_builder().handshake(client).await.unwrap();
    spawn_local(connection);
    sender
}

/// A body in chunks with trailers, as an HTTP/1 server sends it.
async fn chunked(wire: &'static str) -> Body {
    let (client, mut server) = tokio::io::duplex(64 * 1024);
    let connection = H1Connection::new(client).await.unwrap();
    spawn_local(async move {
        read_head(&mut server).await;
        server
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
            .await
            .unwrap();
        for piece in wire.split('|') {
            tokio::time::sleep(Duration::from_secs(1)).await;
            server.write_all(piece.as_bytes()).await.unwrap();
        }
    });
    let request = Request::get("/")
        .header("host", "a")
        .body(Body::Empty)
        .unwrap();
    connection.send(request).await.unwrap().into_body()
}

#[test]
fn bodies_of_every_size_are_echoed_with_their_length() {
    run(async {
        let sender = connect(8 * 1024, echo).await;
        for size in [0, 1, 100, 16_384, 65_536, 3_000_000] {
            let body = Bytes::from(vec![b'x'; size]);
            let mut request = request(Body::from(body.clone()));
            request.headers_mut().insert("content-length", size.into());
            let response = send_h2(sender.clone(), request, PATIENCE).await.unwrap();
            assert_eq!(response.body().is_end_stream(), size == 0);
            assert_eq!(collect(response.into_body()).await.unwrap().0, body);
        }
    });
}

/// The DATA frames in which a body goes out, and whether each ends the stream.
async fn frames_of(wire: &'static str) -> Vec<(usize, bool)> {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let frames = spawn_local(async move {
        let mut server = h2::server::handshake(server).await.unwrap();
        let (request, mut respond) = server.accept().await.unwrap().unwrap();
        spawn_local(async move { while server.accept().await.is_some() {} });
        let mut body = request.into_body();
        let mut frames = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            let _ = body.flow_control().release_capacity(data.len());
            frames.push((data.len(), body.is_end_stream()));
        }
        respond.send_response(Response::new(()), true).unwrap();
        frames
    });
    let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
    spawn_local(connection);
    let request = Request::post("http://a/").body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    let sent = send_body::send_body(chunked(wire).await, &mut stream, PATIENCE).await;
    response.await.unwrap();
    let frames = frames.await.unwrap();
    let bytes: usize = frames.iter().map(|(bytes, _)| bytes).sum();
    assert_eq!(sent.unwrap(), bytes as u64);
    frames
}

#[test]
fn a_body_that_ends_without_trailers_ends_with_its_last_data_frame() {
    run(async {
        let frames = frames_of("2\r\nok\r\n|3\r\nyes\r\n0\r\n\r\n").await;
        assert_eq!(frames, [(2, false), (3, true)]);
    });
}

#[test]
fn small_pieces_that_are_there_at_once_go_out_as_one() {
    run(async {
        let frames = frames_of("2\r\nok\r\n3\r\nyes\r\n1\r\n.\r\n|0\r\n\r\n").await;
        assert_eq!(frames, [(6, false), (0, true)]);
    });
}

/// A frame as it is on the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags][..], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

#[test]
fn a_client_whose_tiny_frames_nobody_reads_is_ended_before_they_fill_the_memory() {
    run(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let served = spawn_local(async move {
            let settings = H2ServerSettings::default();
            let unread: RefCell<Vec<Body>> = RefCell::default();
            let service = Rc::new(move |request: Request<Body>| {
                unread.borrow_mut().push(request.into_body());
                std::future::pending::<Result<Response<Body>, Infallible>>()
            });
            serve_h2(server, service, &settings, std::future::pending(), || {}).await
        });
        let settings = frame(4, 0, 0, &[]);
        let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
        client.write_all(&begin).await.unwrap();
        let mut said = Vec::new();
        // The connection's window, which is opened wide.
        while !said.windows(5).any(|bytes| bytes == [0, 0, 4, 8, 0]) {
            client.read_buf(&mut said).await.unwrap();
        }
        // POST http://a/, then as many bytes as a stream may send at first.
        let flood = |stream| {
            let head = frame(1, 4, stream, b"\x83\x86\x84\x41\x01a");
            [head, frame(0, 0, stream, b"x").repeat(65_000)].concat()
        };
        let mut floods = 0;
        while client.write_all(&flood(2 * floods + 1)).await.is_ok() {
            floods += 1;
            assert!(floods < 20, "all of them are kept");
        }
        served.await.unwrap().unwrap_err();
        client.read_to_end(&mut said).await.unwrap();
        let calm = [&0xb_u32.to_be_bytes()[..], b"too_many_data_frames"].concat();
        assert!(said.ends_with(&calm), "{said:?}");
    });
}

#[test]
fn trailers_pass_through_both_ways() {
    run(async {
        let sender = connect(64 * 1024, echo).await;
        let body = chunked("2\r\nok\r\n|0\r\nx-sum: 2\r\n\r\n").await;
        let response = send_h2(sender, request(body), PATIENCE).await.unwrap();
        let (data, trailers) = collect(response.into_body()).await.unwrap();
        assert_eq!(data, "ok");
        assert_eq!(trailers.unwrap()["x-sum"], "2");
    });
}

#[test]
fn a_response_comes_before_the_request_has_ended() {
    run(async {
        let sender = connect(64 * 1024, echo).await;
        let body = chunked("2\r\nok\r\n|3\r\nyes\r\n|0\r\n\r\n").await;
        let began = tokio::time::Instant::now();
        let response = send_h2(sender, request(body), PATIENCE).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(collect(response.into_body()).await.unwrap().0, "okyes");
    });
}

#[test]
fn a_request_whose_body_fails_resets_its_stream_and_says_why() {
    run(async {
        let sender = connect(64 * 1024, |request: Request<Body>| async {
            let failed = request.into_body().collect().await.is_err();
            assert!(failed, "a truncated body must not look whole");
            Ok(Response::new(Body::Empty))
        })
        .await;
        let body = chunked("2\r\nok\r\n|").await;
        let error = send_h2(sender, request(body), PATIENCE).await.unwrap_err();
        assert!(!error.unprocessed);
        assert!(error.body.is_some(), "{error:?}");
    });
}

#[test]
fn a_client_that_resets_its_stream_stops_the_service() {
    run(async {
        struct Dropped(Rc<Cell<bool>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let stopped = Rc::new(Cell::new(false));
        let seen = stopped.clone();
        let mut sender = connect(64 * 1024, move |_| {
            let guard = Dropped(seen.clone());
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                Ok(Response::new(Body::Empty))
            }
        })
        .await;
        let (response, _stream) = sender
            .send_request(Request::get("http://a/").body(()).unwrap(), true)
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!stopped.get());
        drop(response);
        drop(_stream);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(stopped.get());
    });
}

#[test]
fn stalled_readers_hold_up_nobody_else() {
    run(async {
        let sender = connect(64 * 1024, |request: Request<Body>| async move {
            let size = if request.uri().path() == "/big" {
                4_000_000
            } else {
                100
            };
            Ok(Response::new(Body::from("x".repeat(size))))
        })
        .await;
        let get = |path: &str| {
            Request::get(format!("http://a{path}"))
                .body(Body::Empty)
                .unwrap()
        };
        let mut stalled = Vec::new();
        for _ in 0..40 {
            stalled.push(
                send_h2(sender.clone(), get("/big"), PATIENCE)
                    .await
                    .unwrap(),
            );
        }
        for _ in 0..100 {
            let response = send_h2(sender.clone(), get("/small"), PATIENCE)
                .await
                .unwrap();
            assert_eq!(collect(response.into_body()).await.unwrap().0.len(), 100);
        }
    });
}

#[test]
fn a_header_that_h2_itself_refuses_is_noticed_and_others_reach_the_service() {
    run(async {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (served, noticed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (serving, noticing) = (Rc::clone(&served), Rc::clone(&noticed));
        spawn_local(async move {
            let service = move |request: Request<Body>| {
                serving.set(serving.get() + 1);
                async move { Ok(Response::new(request.into_body())) }
            };
            let settings = H2ServerSettings {
                max_header_bytes: 1000,
                ..H2ServerSettings::default()
            };
            let never = std::future::pending();
            let notice = move || noticing.set(noticing.get() + 1);
            serve_h2(server, Rc::new(service), &settings, never, notice).await
        });
        let (sender, connection) = client_builder().handshake(client).await.unwrap();
        spawn_local(connection);
        let ask = async |bytes: usize| {
            let mut request = request(Body::from("body"));
            let value = "x".repeat(bytes).parse().unwrap();
            request.headers_mut().insert("x-large", value);
            let response = send_h2(sender.clone(), request, PATIENCE).await.unwrap();
            response.status().as_u16()
        };
        let asked = [10, 1500, 3000, 1500, 3000, 3000, 10];
        let mut answers = Vec::new();
        for bytes in asked {
            answers.push(ask(bytes).await);
        }
        assert_eq!(answers, [200, 200, 431, 200, 431, 431, 200]);
        assert_eq!((served.get(), noticed.get()), (4, 3));
    });
}

#[test]
fn shutdown_says_goaway_and_lets_open_streams_finish() {
    run(async {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (shutdown, told) = oneshot::channel::<()>();
        let served = spawn_local(async move {
            let slow = |_: Request<Body>| async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(Response::new(Body::from("late")))
            };
            let settings = H2ServerSettings::default();
            let told = async { told.await.unwrap() };
            serve_h2(server, Rc::new(slow), &settings, told, || {}).await
        });
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        spawn_local(connection);
        let open = spawn_local(send_h2(sender.clone(), request(Body::Empty), PATIENCE));
        tokio::time::sleep(Duration::from_secs(1)).await;
        shutdown.send(()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = send_h2(sender, request(Body::Empty), PATIENCE)
            .await
            .unwrap_err();
        assert!(refused.unprocessed);
        let response = open.await.unwrap().unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap().0, "late");
        served.await.unwrap().unwrap();
    });
}

#[test]
fn hypers_client_gets_grpc_like_trailers_only_and_streams() {
    run_with_sockets(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let service = |request: Request<Body>| async move {
                if request.uri().path() == "/unavailable" {
                    return Ok(Response::builder()
                        .header("grpc-status", "14")
                        .body(Body::Empty)
                        .unwrap());
                }
                Ok(Response::new(request.into_body()))
            };
            let settings = H2ServerSettings::default();
            let never = std::future::pending();
            serve_h2(socket, Rc::new(service), &settings, never, || {})
                .await
                .unwrap();
        });
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(
            LocalExecutor,
            hyper_util::rt::TokioIo::new(socket),
        )
        .await
        .unwrap();
        spawn_local(connection);
        let get = Request::get("http://a/unavailable").body(empty()).unwrap();
        let response = sender.send_request(get).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.body().is_end_stream());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let body = http_body_util::Full::new(Bytes::from(vec![1; 500_000]))
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed_unsync();
        let post = Request::post("http://a/").body(body).unwrap();
        let response = sender.send_request(post).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes().len(), 500_000);
    });
}

fn empty() -> http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible> {
    http_body_util::Full::new(Bytes::new()).boxed_unsync()
}

#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

/// Remembers how a body ended.
#[derive(Default)]
struct Ended(std::cell::RefCell<String>);

impl crate::http::BodyWatcher for Ended {
    fn data(&self, _: usize) {}

    fn end(&self, end: crate::http::BodyEnd<'_>) {
        *self.0.borrow_mut() = format!("{end:?}");
    }
}

#[test]
fn a_stream_whose_reader_takes_nothing_is_reset_in_time() {
    run_for(Duration::from_secs(2 * 60 * 60), async {
        let ended = Rc::new(Ended::default());
        let watcher = ended.clone();
        let large = move |_: Request<Body>| {
            let watcher = watcher.clone();
            async move {
                let chunks = "10000\r\n".to_owned() + &"x".repeat(65_536) + "\r\n";
                let body = chunked(Box::leak(chunks.repeat(8).into_boxed_str())).await;
                Ok(Response::new(body.watched(watcher)))
            }
        };
        let sender = connect(1024 * 1024, large).await;
        let began = tokio::time::Instant::now();
        let response = send_h2(sender.clone(), request(Body::Empty), PATIENCE);
        let mut body = response.await.unwrap().into_body();
        // Some of it is read, late; then none any more.
        tokio::time::sleep(Duration::from_secs(10 * 60)).await;
        let first = body.frame().await.unwrap().unwrap();
        assert!(first.is_data());
        tokio::time::sleep(Duration::from_secs(20 * 60)).await;
        assert_eq!(*ended.0.borrow(), "Failed(ReaderStalled)");
        assert!(began.elapsed() < Duration::from_secs(60 * 60));
        let mut rest = body;
        let error = loop {
            match rest.frame().await {
                Some(Ok(_)) => {}
                other => break other.unwrap().unwrap_err(),
            }
        };
        let crate::http::BodyError::Http2(error) = error else {
            panic!("{error:?}");
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        // Others on the same connection are not concerned.
        let response = send_h2(sender, request(Body::Empty), PATIENCE).await;
        assert!(response.is_ok());
    });
}

#[test]
fn a_connection_without_streams_is_told_to_go_and_closed_in_the_end() {
    run_for(Duration::from_secs(2 * 60 * 60), async {
        let (client, server) = tokio::io::duplex(1024);
        let settings = H2ServerSettings::default();
        let serving = serve_h2(
            server,
            Rc::new(echo),
            &settings,
            std::future::pending(),
            || {},
        );
        // One that stays silent.
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let mut client = client;
        client.write_all(opening).await.unwrap();
        serving.await.unwrap();
    });
}

#[test]
fn half_a_head_ends_its_connection_however_much_else_is_open_on_it() {
    run_for(Duration::from_secs(2 * 60 * 60), async {
        let begun = tokio::time::Instant::now();
        let (mut client, server) = tokio::io::duplex(1024);
        let settings = H2ServerSettings::default();
        let asked = Rc::new(Cell::new(0));
        let counting = Rc::clone(&asked);
        let silent = move |_: Request<Body>| {
            counting.set(counting.get() + 1);
            std::future::pending()
        };
        let never = std::future::pending();
        let serving = serve_h2(server, Rc::new(silent), &settings, never, || {});
        // GET / on stream 1, and of the same on stream 3 all but the flag that ends the head.
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
            \0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a\0\0\x06\x01\x01\0\0\0\x03\x82\x86\x84\x41\x01a";
        client.write_all(opening).await.unwrap();
        let Err(H2ServerError::Http2(error)) = serving.await else {
            panic!("the connection ended in order");
        };
        assert!(slow_over_a_head(&error), "{error}");
        assert_eq!(asked.get(), 1);
        let limit = settings.handshake_timeout;
        assert!(begun.elapsed() >= limit && begun.elapsed() < 2 * limit);
    });
}
