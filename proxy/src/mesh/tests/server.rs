use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{fetch, get, pool};
use crate::mesh::testing::{HOUR, Realm, TestServer, answer, spiffe_id, until};
use crate::mesh::{error::is_surely_unprocessed, *};

#[tokio::test(flavor = "local")]
async fn a_server_of_another_authority_and_a_client_of_another_authority_fail_the_handshake() {
    let (realm, other) = (Realm::shared(), Realm::new());
    let pool = pool(PoolSettings::default());
    for (server, client) in [(realm, &other), (&other, realm)] {
        let identity = server.identity("server", 1);
        let server = TestServer::start(identity, ServerSettings::default(), answer).await;
        let identity = client.identity("client", 1);
        let error = pool
            .connect(&identity, server.address, &spiffe_id("server"))
            .await
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
        until("the server saw it", || *server.refused.borrow() == ["tls"]).await;
    }
}

#[tokio::test(flavor = "local")]
async fn a_client_whose_certificate_only_the_server_refuses_is_told_before_any_request() {
    // Both roots are known to the client, the server knows its own alone.
    let (realm, other) = (Realm::shared(), Realm::new());
    let server_identity = realm.identity("server", 1);
    let server = TestServer::start(server_identity, ServerSettings::default(), answer).await;
    let stranger = realm.identity_of(&other, "client", 1, HOUR);
    let pool = pool(PoolSettings::default());
    let error = pool
        .connect(&stranger, server.address, &spiffe_id("server"))
        .await
        .map(drop)
        .unwrap_err();
    let ConnectError::Handshake { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(source.to_string().contains("alert"), "{source}");
}

#[tokio::test(flavor = "local")]
async fn after_goaway_open_streams_finish_and_new_ones_go_elsewhere() {
    let realm = Realm::shared();
    let (release, released) = tokio::sync::watch::channel(false);
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        move |request: Request<RecvStream>, respond| {
            let mut released = released.clone();
            async move {
                if request.uri().path() == "/slow" {
                    let _ = released.wait_for(|released| *released).await;
                }
                answer(request, respond).await;
            }
        },
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let expected = spiffe_id("server");

    let mut slow_place = pool
        .connect(&identity, server.address, &expected)
        .await
        .unwrap();
    let slow = tokio::task::spawn_local(async move { fetch(&mut slow_place, "/slow").await });
    let mut warm = pool
        .connect(&identity, server.address, &expected)
        .await
        .unwrap();
    assert_eq!(fetch(&mut warm, "/warm").await.unwrap(), "/warm");
    drop(warm);
    server.drain();
    for n in 0..20 {
        let mut place = pool
            .connect(&identity, server.address, &expected)
            .await
            .unwrap();
        match fetch(&mut place, "/fast").await {
            Ok(body) => assert_eq!(body, "/fast"),
            Err(error) => assert!(is_surely_unprocessed(&error), "{n}: {error:?}"),
        }
    }
    until("another connection was made", || server.accepted.get() == 2).await;
    assert_eq!(server.open.get(), 2, "the slow stream keeps its connection");
    release.send_replace(true);
    assert_eq!(slow.await.unwrap().unwrap(), "/slow");
    until("the drained connection ends", || server.open.get() == 1).await;
}

#[tokio::test(flavor = "local")]
async fn stalled_readers_hold_up_nobody_and_hold_little() {
    const BODY: usize = 100 << 20;
    let realm = Realm::shared();
    let sent = Rc::new(Cell::new(0));
    let total = Rc::clone(&sent);
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
            let total = Rc::clone(&total);
            async move {
                if request.uri().path() != "/large" {
                    return answer(request, respond).await;
                }
                let body = respond.send_response(Response::new(()), false).unwrap();
                let mut tunnel = TunnelStream::new(request.into_body(), body, None);
                let piece = vec![7; 64 * 1024];
                for _ in 0..BODY / piece.len() {
                    if tunnel.write_all(&piece).await.is_err() {
                        return;
                    }
                    total.set(total.get() + piece.len());
                }
                let _ = tunnel.finish();
            }
        },
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let expected = spiffe_id("server");
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut place = pool
            .connect(&identity, server.address, &expected)
            .await
            .unwrap();
        let (response, _) = place
            .send_request()
            .send_request(get("/large"), true)
            .unwrap();
        let body = response.await.unwrap().into_body();
        stalled.push((place, body));
    }
    for _ in 0..200 {
        let mut place = pool
            .connect(&identity, server.address, &expected)
            .await
            .unwrap();
        assert_eq!(fetch(&mut place, "/small").await.unwrap(), "/small");
    }
    assert_eq!(server.accepted.get(), 1, "all share one connection");
    let window = STREAM_WINDOW_BYTES as usize + MAX_SEND_BUFFER_BYTES + 64 * 1024;
    assert!(
        sent.get() <= 40 * window,
        "{} bytes were taken for 40 stalled readers",
        sent.get()
    );
    // A reader that goes on gets everything.
    let (place, mut body) = stalled.pop().unwrap();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
        received += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(received, BODY);
    drop(place);
}

#[tokio::test(flavor = "local")]
async fn garbage_and_slow_handshakes_cost_bounded_connections_and_hold_up_nobody() {
    let realm = Realm::shared();
    let settings = ServerSettings {
        handshake_timeout: Duration::from_millis(300),
        ..ServerSettings::default()
    };
    let server = TestServer::start(realm.identity("server", 1), settings, answer).await;

    let mut garbage = TcpStream::connect(server.address).await.unwrap();
    garbage
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    garbage.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.first(), Some(&0x15), "a TLS alert: {answer:x?}");
    drop(garbage);
    until("the refusal is over", || server.gate.under_way() == 0).await;

    // The gate has eight places.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    until("eight handshakes are under way", || {
        server.gate.under_way() == 8
    })
    .await;
    let mut ninth = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(ninth.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(*server.refused.borrow(), ["tls", "too-many-handshakes"]);
    until("all have timed out", || server.gate.under_way() == 0).await;
    assert_eq!(
        server
            .refused
            .borrow()
            .iter()
            .filter(|cause| *cause == "timeout")
            .count(),
        8
    );

    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let mut place = pool
        .connect(&identity, server.address, &spiffe_id("server"))
        .await
        .unwrap();
    assert_eq!(fetch(&mut place, "/after").await.unwrap(), "/after");
}
