use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{fetch, get, pool};
use crate::mesh::testing::{Bouncer, Realm, TestServer, answer, into_tunnel, spiffe_id, until};
use crate::mesh::*;

#[tokio::test(flavor = "local")]
async fn one_connection_carries_all_requests_and_one_dial_serves_all_who_wait() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        answer,
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let expected = spiffe_id("server");

    let fetches = (0..100).map(|n| {
        let (pool, identity, expected) = (&pool, &identity, &expected);
        async move {
            let mut place = pool
                .connect(identity, server.address, expected)
                .await
                .unwrap();
            assert_eq!(place.peer().id, *expected);
            assert_eq!(place.wire(), Wire::Sidewind);
            let path = format!("/{n}");
            assert_eq!(fetch(&mut place, &path).await.unwrap(), path);
        }
    });
    join_all(fetches).await;
    assert_eq!((server.accepted.get(), pool.connections()), (1, 1));
}

#[tokio::test(flavor = "local")]
async fn a_full_connection_gets_a_second_one_beside_it() {
    let realm = Realm::shared();
    let settings = ServerSettings {
        max_concurrent_streams: 3,
        ..ServerSettings::default()
    };
    let server = TestServer::start(realm.identity("server", 1), settings, answer).await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));

    let mut places = Vec::new();
    for _ in 0..7 {
        places.push(
            pool.connect(&identity, server.address, &spiffe_id("server"))
                .await
                .unwrap(),
        );
    }
    until("three connections", || server.accepted.get() == 3).await;
    for place in &mut places {
        assert_eq!(fetch(place, "/x").await.unwrap(), "/x");
    }
    assert_eq!(pool.connections(), 3);
    drop(places);
    // Places that were given back are used before anything is made.
    pool.connect(&identity, server.address, &spiffe_id("server"))
        .await
        .unwrap();
    assert_eq!(pool.connections(), 3);
}

#[tokio::test(flavor = "local")]
async fn a_peer_with_another_identity_gets_no_request() {
    let realm = Realm::shared();
    let requests = Rc::new(Cell::new(0));
    let seen = Rc::clone(&requests);
    let server = TestServer::start(
        realm.identity("impostor", 1),
        ServerSettings::default(),
        move |request, respond| {
            seen.set(seen.get() + 1);
            answer(request, respond)
        },
    )
    .await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));

    let error = pool
        .connect(&identity, server.address, &spiffe_id("server"))
        .await
        .map(drop)
        .unwrap_err();
    let ConnectError::WrongIdentity { expected, got, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        (expected, got),
        (&spiffe_id("server"), &spiffe_id("impostor"))
    );
    until("the connection ends", || {
        pool.connections() == 0 && server.open.get() == 0
    })
    .await;
    assert_eq!(requests.get(), 0);
}

#[tokio::test(flavor = "local")]
async fn a_peer_without_alpn_of_ours_is_refused_by_tls() {
    let realm = Realm::shared();
    let identity = realm.identity_with_alpn("server", 1, &[b"http/1.1"]);
    let server = TestServer::start(identity, ServerSettings::default(), answer).await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let error = pool
        .connect(&identity, server.address, &spiffe_id("server"))
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
}

#[tokio::test(flavor = "local")]
async fn an_hbone_peer_is_recognised() {
    let realm = Realm::shared();
    let identity = realm.identity_with_alpn("server", 1, &[b"h2"]);
    let server = TestServer::start(identity, ServerSettings::default(), answer).await;
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let place = pool
        .connect(&identity, server.address, &spiffe_id("server"))
        .await
        .unwrap();
    assert_eq!(place.wire(), Wire::Hbone);
}

#[tokio::test(flavor = "local")]
async fn a_renewed_svid_makes_new_connections_while_old_streams_live_on() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        answer,
    )
    .await;
    let pool = pool(PoolSettings::default());
    let expected = spiffe_id("server");
    let (old, new) = (realm.identity("client", 1), realm.identity("client", 2));

    let mut old_place = pool.connect(&old, server.address, &expected).await.unwrap();
    pool.retire_older(&new);
    let mut new_place = pool.connect(&new, server.address, &expected).await.unwrap();
    assert_eq!(server.open.get(), 2);
    assert_eq!(fetch(&mut old_place, "/old").await.unwrap(), "/old");
    assert_eq!(fetch(&mut new_place, "/new").await.unwrap(), "/new");
    drop(old_place);
    until("the old connection closes", || {
        server.open.get() == 1 && pool.connections() == 1
    })
    .await;
    drop(new_place);
    assert_eq!(pool.connections(), 1);
}

#[tokio::test(flavor = "local")]
async fn a_renewed_identitys_connection_takes_the_place_of_its_older_ones_and_of_nobody_elses() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        answer,
    )
    .await;
    let pool = pool(PoolSettings::default());
    let expected = spiffe_id("server");
    let [old, worker, new] = [("task", 1), ("worker", 1), ("task", 2)]
        .map(|(name, generation)| realm.identity(name, generation));
    for identity in [&old, &worker] {
        let place = pool.connect(identity, server.address, &expected).await;
        drop(place.unwrap());
    }
    assert_eq!(server.accepted.get(), 2, "each has its own");
    let mut place = pool.connect(&new, server.address, &expected).await.unwrap();
    until("the old connection closes", || server.open.get() == 2).await;
    assert_eq!(fetch(&mut place, "/new").await.unwrap(), "/new");
    let others = pool.connect(&worker, server.address, &expected).await;
    drop(others.unwrap());
    assert_eq!(server.accepted.get(), 3, "the worker's is still there");
}

#[tokio::test(flavor = "local")]
async fn unused_connections_close_and_used_ones_do_not() {
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        answer,
    )
    .await;
    let idle_timeout = Duration::from_millis(30);
    let keepalive = KeepaliveSettings {
        idle_timeout,
        ..KeepaliveSettings::default()
    };
    let settings = PoolSettings {
        keepalive,
        ..PoolSettings::default()
    };
    let (pool, identity) = (pool(settings), realm.identity("client", 1));
    let expected = spiffe_id("server");
    let mut held = pool
        .connect(&identity, server.address, &expected)
        .await
        .unwrap();
    let used = tokio::time::Instant::now();
    until("several idle times", || used.elapsed() > idle_timeout * 4).await;
    assert_eq!((pool.connections(), server.open.get()), (1, 1));
    assert_eq!(fetch(&mut held, "/still").await.unwrap(), "/still");
    drop(held);
    until("the unused connection closes", || {
        pool.connections() == 0 && server.open.get() == 0
    })
    .await;
}

#[tokio::test(flavor = "local")]
async fn a_full_pool_closes_what_is_unused_longest_and_refuses_when_all_are_used() {
    let realm = Realm::shared();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let identity = realm.identity("server", 1);
        servers.push(TestServer::start(identity, ServerSettings::default(), answer).await);
    }
    let settings = PoolSettings {
        max_connections: 2,
        ..PoolSettings::default()
    };
    let (pool, identity) = (pool(settings), realm.identity("client", 1));
    let expected = spiffe_id("server");
    let first = pool
        .connect(&identity, servers[0].address, &expected)
        .await
        .unwrap();
    let second = pool
        .connect(&identity, servers[1].address, &expected)
        .await
        .unwrap();
    let error = pool
        .connect(&identity, servers[2].address, &expected)
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, ConnectError::PoolFull { .. }), "{error:?}");
    drop(second);
    let third = pool
        .connect(&identity, servers[2].address, &expected)
        .await
        .unwrap();
    until("the unused one closes", || servers[1].open.get() == 0).await;
    assert_eq!((servers[0].open.get(), servers[2].open.get()), (1, 1));
    drop((first, third));
}

#[tokio::test(flavor = "local")]
async fn a_peer_that_went_silent_is_noticed_and_its_streams_fail() {
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
    let relay = SilentRelay::start(server.address).await;
    let keepalive = KeepaliveSettings {
        ping_after: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(40),
        ..KeepaliveSettings::default()
    };
    let settings = PoolSettings {
        keepalive,
        ..PoolSettings::default()
    };
    let (pool, identity) = (pool(settings), realm.identity("client", 1));
    let mut place = pool
        .connect(&identity, relay.address, &spiffe_id("server"))
        .await
        .unwrap();
    let (response, _) = place.send_request().send_request(get("/"), true).unwrap();
    // While the peer answers PINGs the stream may wait for as long as it likes.
    let waited = tokio::time::Instant::now();
    until("some keepalive times", || {
        waited.elapsed() > Duration::from_millis(200)
    })
    .await;
    assert_eq!(pool.connections(), 1);
    relay.silent.set(true);
    assert!(response.await.unwrap_err().is_io());
    until("the connection is gone", || pool.connections() == 0).await;
}

/// Passes bytes both ways until told to be silent, without closing anything.
struct SilentRelay {
    address: SocketAddr,
    silent: Rc<Cell<bool>>,
}

impl SilentRelay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = Rc::new(Cell::new(false));
        let is_silent = Rc::clone(&silent);
        tokio::task::spawn_local(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(to).await.unwrap();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            for (mut from, mut to) in [(near_read, far_write), (far_read, near_write)] {
                let silent = Rc::clone(&is_silent);
                tokio::task::spawn_local(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = from.read(&mut buffer).await {
                        if !silent.get() && to.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { address, silent }
    }
}

#[tokio::test(flavor = "local")]
async fn an_endpoint_that_refuses_or_never_answers_is_told_apart() {
    let realm = Realm::shared();
    let settings = PoolSettings {
        connect_timeout: Duration::from_millis(500),
        handshake_timeout: Duration::from_millis(50),
        ..PoolSettings::default()
    };
    let (pool, identity) = (pool(settings), realm.identity("client", 1));
    let expected = spiffe_id("server");

    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = pool
        .connect(&identity, closed, &expected)
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error:?}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let error = pool
        .connect(&identity, address, &expected)
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::HandshakeTimeout { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "local")]
async fn the_pool_tells_what_happens() {
    #[derive(Clone, Default)]
    struct Log(Rc<RefCell<Vec<&'static str>>>);
    impl PoolEvents for Log {
        fn connected(&self, _: SocketAddr, _: Duration) {
            self.0.borrow_mut().push("connected");
        }
        fn connect_failed(&self, error: &ConnectError) {
            self.0.borrow_mut().push(match error {
                ConnectError::WrongIdentity { .. } => "wrong identity",
                _ => "another error",
            });
        }
        fn closed(&self, _: SocketAddr, error: Option<&DriverError>) {
            self.0
                .borrow_mut()
                .push(if error.is_some() { "broken" } else { "closed" });
        }
    }
    let realm = Realm::shared();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        answer,
    )
    .await;
    let log = Log::default();
    let pool = MeshPool::new(
        PoolSettings::default(),
        Box::new(log.clone()),
        Bouncer::default().census(),
    );
    let identity = realm.identity("client", 1);
    pool.connect(&identity, server.address, &spiffe_id("other"))
        .await
        .unwrap_err();
    drop(
        pool.connect(&identity, server.address, &spiffe_id("server"))
            .await
            .unwrap(),
    );
    pool.retire_older(&realm.identity("client", 2));
    until("it closes", || pool.connections() == 0).await;
    assert_eq!(*log.0.borrow(), ["wrong identity", "connected", "closed"]);
}

/// Pours without end into a tunnel to port 1, and echoes in any other.
async fn pour_or_echo(request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let pours = request.uri().port_u16() == Some(1);
    let tunnel = into_tunnel(request, respond);
    let (mut read, mut write) = tokio::io::split(tunnel);
    if !pours {
        let _ = tokio::io::copy(&mut read, &mut write).await;
        return;
    }
    let bytes = [0; 16 * 1024];
    while write.write_all(&bytes).await.is_ok() {}
}

#[tokio::test(flavor = "local")]
async fn however_many_give_up_what_they_read_the_others_on_the_connection_go_on() {
    let realm = Realm::shared();
    let identity = realm.identity("server", 1);
    let server = TestServer::start(identity, ServerSettings::default(), pour_or_echo).await;
    let (pool, client) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let open = async |port: u16| {
        let authority = format!("10.0.0.9:{port}").parse().unwrap();
        let expected = spiffe_id("server");
        let headers = HeaderMap::new();
        let opening = pool.tunnel(&client, server.address, &expected, authority, headers);
        opening.await.unwrap()
    };
    let mut other = open(2).await;
    for _ in 0..2 {
        let (mut readers, read) = (JoinSet::new(), Rc::new(Cell::new(0_usize)));
        for _ in 0..200 {
            let (mut tunnel, read) = (open(1).await, Rc::clone(&read));
            readers.spawn_local(async move {
                let mut buffer = [0; 1024];
                while tunnel.read_exact(&mut buffer).await.is_ok() {
                    read.set(read.get() + buffer.len());
                }
            });
        }
        // More than their windows: it is under way when all are given up.
        until("much was read", || read.get() > 60 << 20).await;
        readers.shutdown().await;
        let mut back = [0; 4];
        other.write_all(b"ping").await.unwrap();
        other.read_exact(&mut back).await.unwrap();
    }
    assert_eq!(server.accepted.get(), 1);
}
