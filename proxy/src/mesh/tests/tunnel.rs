use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pool;
use crate::mesh::testing::{Realm, TestServer, into_tunnel, spiffe_id};
use crate::mesh::{tunnel::ERROR_HEADER, *};

#[tokio::test(flavor = "local")]
async fn a_tunnel_through_a_draining_connection_moves_silently() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        |request, respond| async move {
            let mut tunnel = into_tunnel(request, respond);
            let mut hello = [0; 5];
            tunnel.read_exact(&mut hello).await.unwrap();
            tunnel.write_all(&hello).await.unwrap();
            tunnel.shutdown().await.unwrap();
        },
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let authority: SocketAddr = "10.0.0.9:5432".parse().unwrap();
    for _ in 0..10 {
        let mut tunnel = pool
            .tunnel(
                &identity,
                server.address,
                &spiffe_id("server"),
                authority,
                HeaderMap::new(),
            )
            .await
            .unwrap();
        tunnel.write_all(b"hello").await.unwrap();
        let mut back = Vec::new();
        tunnel.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"hello");
        server.drain();
    }
    assert!(server.accepted.get() > 1);
}

#[tokio::test(flavor = "local")]
async fn a_refused_tunnel_says_why() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| async move {
            assert_eq!(request.method(), http::Method::CONNECT);
            assert_eq!(request.uri().authority().unwrap(), "10.0.0.9:5432");
            assert_eq!(request.headers()["baggage"], "a=b");
            let response = Response::builder()
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .header(ERROR_HEADER, "connect-failed")
                .body(())
                .unwrap();
            let mut body = respond.send_response(response, false).unwrap();
            body.send_data("could not connect to 10.0.0.9:5432\nmore".into(), true)
                .unwrap();
        },
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let mut headers = HeaderMap::new();
    headers.insert("baggage", "a=b".parse().unwrap());
    let authority = "10.0.0.9:5432".parse().unwrap();
    let error = pool
        .tunnel(
            &identity,
            server.address,
            &spiffe_id("server"),
            authority,
            headers,
        )
        .await
        .map(drop)
        .unwrap_err();
    let TunnelError::Refused {
        status,
        code,
        message,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code.as_deref(), Some("connect-failed"));
    assert_eq!(
        message.as_deref(),
        Some("could not connect to 10.0.0.9:5432")
    );
}

#[tokio::test(flavor = "local")]
async fn a_tunnel_that_is_not_answered_times_out() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        |request: Request<RecvStream>, respond: SendResponse<Bytes>| async move {
            let held = (request, respond);
            std::future::pending::<()>().await;
            drop(held);
        },
    )
    .await;
    let settings = PoolSettings {
        tunnel_timeout: Duration::from_millis(20),
        ..PoolSettings::default()
    };
    let (pool, identity) = (pool(settings), realm.identity("client", 1));
    let authority = "10.0.0.9:5432".parse().unwrap();
    let error = pool
        .tunnel(
            &identity,
            server.address,
            &spiffe_id("server"),
            authority,
            HeaderMap::new(),
        )
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, TunnelError::Timeout { .. }), "{error:?}");
}
