use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::spawn_local;

use super::{answer, collect, read_head, run, run_for, run_with_sockets};
use crate::http::{Body, BodyError, H1Connection, H1Pool, PoolKey, PoolLimits};

const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

fn get() -> Request<Body> {
    Request::get("/")
        .header("host", "orders")
        .body(Body::Empty)
        .unwrap()
}

fn post(body: Body) -> Request<Body> {
    Request::post("/")
        .header("host", "orders")
        .body(body)
        .unwrap()
}

async fn pooled(pool: &H1Pool) -> (H1Connection, DuplexStream) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let connection = H1Connection::new(client).await.unwrap();
    (pool.adopt(ADDRESS.into(), connection), server)
}

#[test]
fn a_response_that_came_whole_is_full_and_its_connection_is_idle_at_once() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            answer(
                server,
                &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"; 2],
            )
            .await
        });
        let response = connection.send(get()).await.unwrap();
        assert!(matches!(response.body(), Body::Full(_)), "{response:?}");
        assert_eq!(response.body().size_hint().exact(), Some(2));
        assert_eq!(pool.idle_count(), 1);
        let again = pool.checkout(ADDRESS.into()).unwrap();
        let response = again.send(get()).await.unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap().0, "ok");
        assert_eq!(pool.idle_count(), 1);
        drop(server.await);
    });
}

#[test]
fn a_chunked_response_that_came_whole_is_full_too() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            let wire = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            answer(server, &[wire, wire]).await
        });
        let response = connection.send(get()).await.unwrap();
        assert!(matches!(response.body(), Body::Full(_)), "{response:?}");
        assert_eq!(pool.idle_count(), 1);
    });
}

#[test]
fn chunks_and_trailers_come_through_in_order() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            let wire = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                        2\r\nok\r\n3\r\nyes\r\n0\r\nx-sum: 5\r\n\r\n";
            answer(server, &[wire, wire]).await
        });
        let response = connection.send(get()).await.unwrap();
        let (data, trailers) = collect(response.into_body()).await.unwrap();
        assert_eq!(data, "okyes");
        assert_eq!(trailers.unwrap()["x-sum"], "5");
        assert_eq!(pool.idle_count(), 1);
        drop(server);
    });
}

#[test]
fn a_long_body_returns_its_connection_when_it_is_read_to_its_end() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, mut server) = pooled(&pool).await;
        let length = 3_000_000;
        let server = spawn_local(async move {
            read_head(&mut server).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            server.write_all(head.as_bytes()).await.unwrap();
            server.write_all(&vec![7; length]).await.unwrap();
            server
        });
        let response = connection.send(get()).await.unwrap();
        assert_eq!(pool.idle_count(), 0);
        assert_eq!(response.body().size_hint().exact(), Some(length as u64));
        let (data, _) = collect(response.into_body()).await.unwrap();
        assert_eq!(data.len(), length);
        assert_eq!(pool.idle_count(), 1);
        drop(server.await);
    });
}

#[test]
fn a_body_dropped_before_its_end_closes_the_connection() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, mut server) = pooled(&pool).await;
        let server = spawn_local(async move {
            read_head(&mut server).await;
            server
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
                .await
                .unwrap();
            server.read(&mut [0]).await.unwrap()
        });
        let response = connection.send(get()).await.unwrap();
        drop(response);
        assert_eq!(server.await.unwrap(), 0);
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn a_truncated_body_is_an_error() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            answer(
                server,
                &["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"],
            )
            .await
        });
        let response = connection.send(get()).await.unwrap();
        let error = collect(response.into_body()).await.unwrap_err();
        assert!(matches!(error, BodyError::Http1(_)), "{error:?}");
    });
}

#[test]
fn a_reused_connection_that_dies_says_that_nothing_was_received() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            let mut io = answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
            read_head(&mut io).await;
        });
        connection.send(get()).await.unwrap();
        let connection = pool.checkout(ADDRESS.into()).unwrap();
        let error = connection.send(get()).await.unwrap_err();
        assert!(
            error.reused && error.nothing_received && !error.unsent,
            "{error:?}"
        );
        server.await.unwrap();
    });
}

#[test]
fn a_connection_that_the_server_closed_while_idle_is_not_handed_out() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await
        });
        connection.send(get()).await.unwrap();
        assert_eq!(pool.idle_count(), 1);
        drop(server.await.unwrap());
        assert!(pool.checkout(ADDRESS.into()).is_none());
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn a_connection_over_which_the_server_spoke_unasked_is_not_handed_out() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await
        });
        connection.send(get()).await.unwrap();
        let mut server = server.await.unwrap();
        server
            .write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            .await
            .unwrap();
        assert!(pool.checkout(ADDRESS.into()).is_none());
    });
}

#[test]
fn a_response_that_asks_to_close_is_not_pooled() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            let wire = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
            answer(server, &[wire]).await
        });
        let response = connection.send(get()).await.unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap().0, "ok");
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn a_response_before_the_end_of_the_request_closes_the_connection() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            answer(
                server,
                &["HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"],
            )
            .await
        });
        // A request body that never ends: the body of a response that never comes.
        let endless = {
            let (io, mut peer) = tokio::io::duplex(1024);
            spawn_local(async move {
                read_head(&mut peer).await;
                peer.write_all(b"HTTP/1.1 200 OK\r\n\r\nx").await.unwrap();
                std::future::pending::<()>().await;
            });
            let connection = H1Connection::new(io).await.unwrap();
            connection.send(get()).await.unwrap().into_body()
        };
        let response = connection.send(post(endless)).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn idle_connections_leave_the_pool_when_their_time_is_up() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            let mut io = answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
            assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        });
        spawn_local(pool.sweeper());
        connection.send(get()).await.unwrap();
        assert_eq!(pool.idle_count(), 1);
        tokio::time::sleep(Duration::from_millis(1400)).await;
        assert_eq!(pool.idle_count(), 1);
        tokio::time::sleep(Duration::from_millis(1700)).await;
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn the_pool_keeps_no_more_connections_than_its_bounds() {
    run(async {
        let pool = H1Pool::new(PoolLimits {
            max_idle: 2,
            ..PoolLimits::default()
        });
        let mut servers = Vec::new();
        for _ in 0..3 {
            let (connection, server) = pooled(&pool).await;
            servers.push(spawn_local(async {
                answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await
            }));
            connection.send(get()).await.unwrap();
        }
        assert_eq!(pool.idle_count(), 2);
        let mut first = servers.remove(0).await.unwrap();
        assert_eq!(
            first.read(&mut [0]).await.unwrap(),
            0,
            "the oldest is closed"
        );
    });
}

#[test]
fn an_upgrade_hands_the_connection_over_with_what_was_read_ahead() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        let server = spawn_local(async {
            let wire = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                        upgrade: websocket\r\n\r\nahead";
            let mut io = answer(server, &[wire]).await;
            let mut said = [0; 5];
            io.read_exact(&mut said).await.unwrap();
            said
        });
        let mut request = get();
        request
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "websocket".parse().unwrap());
        let response = connection.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        let mut upgraded = hyper_util::rt::TokioIo::new(upgraded);
        let mut ahead = [0; 5];
        upgraded.read_exact(&mut ahead).await.unwrap();
        assert_eq!(&ahead, b"ahead");
        upgraded.write_all(b"hello").await.unwrap();
        assert_eq!(&server.await.unwrap(), b"hello");
        assert_eq!(pool.idle_count(), 0);
    });
}

#[test]
fn a_head_response_keeps_its_length_and_has_no_body() {
    run(async {
        let pool = H1Pool::new(PoolLimits::default());
        let (connection, server) = pooled(&pool).await;
        spawn_local(async {
            let mut io = answer(server, &["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"]).await;
            assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        });
        let mut request = get();
        *request.method_mut() = http::Method::HEAD;
        let response = connection.send(request).await.unwrap();
        assert!(response.body().is_end_stream());
        assert_eq!(response.headers()["content-length"], "10");
        assert_eq!(pool.idle_count(), 1);
    });
}

#[test]
fn a_thousand_requests_go_over_one_socket_to_a_real_server() {
    run_with_sockets(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    Ok::<_, std::convert::Infallible>(Response::new(Body::from(body)))
                });
            hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(socket), service)
                .await
                .unwrap();
        });
        let pool = H1Pool::new(PoolLimits::default());
        let key = PoolKey::from(address);
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut connection = pool.adopt(key, H1Connection::new(socket).await.unwrap());
        for size in 0..1000_usize {
            let body = Bytes::from(vec![b'x'; size * 97]);
            let response = connection
                .send(post(Body::from(body.clone())))
                .await
                .unwrap();
            assert_eq!(collect(response.into_body()).await.unwrap().0, body);
            connection = pool.checkout(key).expect("reusable");
        }
    });
}

#[test]
fn a_response_whose_head_drips_is_given_up_and_one_that_is_long_in_coming_is_not() {
    let hour = Duration::from_secs(60 * 60);
    for (pieces, pause, given_up) in [
        ("HTTP/1.1 200 OK\r\nx: y\r\n|z: z\r\n\r\n", hour, true),
        ("HTTP/1.1 200 OK\r\n\r\n", hour, false),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n|HTTP/1.1 200 OK\r\n\r\n",
            hour,
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\n|content-length: 0\r\n\r\n",
            Duration::from_secs(9),
            false,
        ),
    ] {
        run_for(Duration::from_secs(3 * 60 * 60), async {
            let (client, mut server) = tokio::io::duplex(1024);
            let connection = H1Connection::new(client).await.unwrap();
            let serving = spawn_local(async move {
                read_head(&mut server).await;
                if !pieces.contains('|') {
                    tokio::time::sleep(pause).await;
                }
                for piece in pieces.split('|') {
                    let _ = server.write_all(piece.as_bytes()).await;
                    tokio::time::sleep(pause).await;
                }
            });
            let result = connection.send(get()).await;
            match result {
                Err(error) if given_up => assert!(error.stalled && !error.unsent, "{error:?}"),
                Ok(response) if !given_up => assert_eq!(response.status(), 200, "{pieces:?}"),
                other => panic!("{pieces:?}: {other:?}"),
            }
            serving.abort();
        });
    }
}
