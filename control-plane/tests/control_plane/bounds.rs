//! What strangers can cost.

use crate::support::{ControlPlane, within};
use sidewind_identity::PrivateKey;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

#[tokio::test]
async fn a_client_that_stays_silent_is_closed() {
    let control_plane = ControlPlane::start().await;
    let mut stream = TcpStream::connect(control_plane.client.address)
        .await
        .unwrap();
    let begin = Instant::now();
    let read = within(stream.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(
        begin.elapsed() > Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
    control_plane
        .metric("sidewind_connections_refused_total{reason=\"handshake-timeout\"} 1")
        .await;
    control_plane.metric("sidewind_connections 0").await;
}

#[tokio::test]
async fn garbage_is_closed_at_once() {
    let control_plane = ControlPlane::start().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(control_plane.client.address)
            .await
            .unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is an answer, too.
        let _ = within(stream.read_to_end(&mut answer)).await;
        assert!(answer.len() < 100, "{answer:?}");
    }
    control_plane
        .metric("sidewind_connections_refused_total{reason=\"handshake-failed\"} 3")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_open_connections_do_not_hold_up_a_good_client() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut half_open = Vec::new();
    for _ in 0..1000 {
        half_open.push(TcpStream::connect(client.address).await.unwrap());
    }
    control_plane.metric("sidewind_connections 1000").await;
    let token = client.token(ORDERS, &[]).await;
    let key = PrivateKey::generate().unwrap();
    let begin = Instant::now();
    client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}
