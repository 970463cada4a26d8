use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::run;
use crate::http::{Body, H2Place, H2Pool, H2PoolError, H2PoolLimits, PoolKey};

const PATIENCE: Duration = Duration::from_secs(2);

fn key() -> PoolKey {
    PoolKey::from(SocketAddr::from(([127, 0, 0, 1], 80)))
}

fn pool() -> H2Pool {
    H2Pool::new(H2PoolLimits {
        idle_timeout: Duration::from_secs(60),
        handshake_timeout: PATIENCE,
        patience: PATIENCE,
    })
}

/// A server that allows so many streams at a time and answers at once.
fn server(streams: u32, goes_away: bool) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 * 1024);
    spawn_local(async move {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(streams);
        let mut server = builder.handshake::<_, bytes::Bytes>(server).await.unwrap();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            respond.send_response(Response::new(()), true).unwrap();
            if goes_away {
                server.graceful_shutdown();
            }
        }
    });
    client
}

async fn ask(place: &H2Place) -> StatusCode {
    let request = Request::post("http://orders/").body(Body::Empty).unwrap();
    place.send(request, PATIENCE).await.unwrap().status()
}

#[test]
fn the_pool_shares_one_connection_and_replaces_one_that_goes_away() {
    run(async {
        let (pool, dials) = (pool(), Cell::new(0));
        let dial = || async {
            dials.set(dials.get() + 1);
            sleep(Duration::from_millis(10)).await;
            Ok(server(100, dials.get() == 1))
        };
        let (a, b) = tokio::join!(pool.place(key(), dial), pool.place(key(), dial));
        assert_eq!(dials.get(), 1, "one dial for both");
        assert_eq!(ask(&a.unwrap()).await, StatusCode::OK);
        drop(b);
        sleep(Duration::from_secs(1)).await;
        for _ in 0..3 {
            let place = pool.place(key(), dial).await.unwrap();
            assert_eq!(ask(&place).await, StatusCode::OK);
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(dials.get(), 2);
        spawn_local(pool.sweeper());
        sleep(Duration::from_secs(150)).await;
        pool.place(key(), dial).await.unwrap();
        assert_eq!(dials.get(), 3, "an unused connection is let go");
    });
}

#[test]
fn a_failed_dial_fails_for_all_who_waited_for_it_and_nobody_else() {
    run(async {
        let (pool, dials) = (pool(), Cell::new(0));
        let refused = || async {
            dials.set(dials.get() + 1);
            sleep(PATIENCE).await;
            Err::<DuplexStream, _>(io::Error::from(io::ErrorKind::TimedOut))
        };
        let began = Instant::now();
        let failed = tokio::join!(
            pool.place(key(), refused),
            pool.place(key(), refused),
            pool.place(key(), refused),
        );
        for failed in [failed.0, failed.1, failed.2] {
            assert!(matches!(*failed.unwrap_err(), H2PoolError::Connect(_)));
        }
        assert_eq!((dials.get(), began.elapsed()), (1, PATIENCE));
        let place = pool.place(key(), || async { Ok(server(1, false)) }).await;
        assert_eq!(ask(&place.unwrap()).await, StatusCode::OK);
    });
}

#[test]
fn a_server_that_allows_two_streams_gets_more_connections_and_then_requests_wait_for_a_while() {
    run(async {
        let (pool, dials) = (pool(), Rc::new(Cell::new(0)));
        let take = |hold: Duration| {
            let (pool, dials) = (pool.clone(), Rc::clone(&dials));
            async move {
                let dial = || async {
                    dials.set(dials.get() + 1);
                    Ok(server(2, false))
                };
                let place = pool.place(key(), dial).await?;
                assert_eq!(ask(&place).await, StatusCode::OK);
                sleep(hold).await;
                Ok::<_, std::sync::Arc<H2PoolError>>(())
            }
        };
        // Sixteen connections have 32 places, which come free a second later.
        let requests = (0..64).map(|_| spawn_local(take(Duration::from_secs(1))));
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap().unwrap();
        }
        assert_eq!(dials.get(), 16);
        for _ in 0..32 {
            spawn_local(take(Duration::from_secs(3600)));
        }
        sleep(Duration::from_millis(1)).await;
        let began = Instant::now();
        let refused = take(Duration::ZERO).await.unwrap_err();
        assert!(matches!(*refused, H2PoolError::Full(_)), "{refused:?}");
        assert_eq!((dials.get(), began.elapsed()), (16, PATIENCE));
    });
}

#[test]
fn a_server_that_never_says_how_many_streams_it_allows_is_given_up() {
    run(async {
        let (client, _server) = tokio::io::duplex(64 * 1024);
        let client = Cell::new(Some(client));
        let dial = || async { Ok(client.take().unwrap()) };
        let error = pool().place(key(), dial).await.unwrap_err();
        assert!(matches!(*error, H2PoolError::Silent(_)), "{error:?}");
    });
}
