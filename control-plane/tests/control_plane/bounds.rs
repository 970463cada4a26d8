//! What strangers can cost on the gRPC port before their first call.

use crate::support::{ControlPlane, limited, until, within};
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
        .metric("sidewind_connections_refused_total{reason=\"not-tls\"} 3")
        .await;
}

#[tokio::test]
async fn half_a_handshake_is_counted_and_a_probe_that_says_nothing_is_not() {
    let control_plane = ControlPlane::start().await;
    let connect = async || {
        TcpStream::connect(control_plane.client.address)
            .await
            .unwrap()
    };
    drop(connect().await);
    let mut stream = connect().await;
    // A record of 256 bytes, of which six come.
    stream
        .write_all(&[0x16, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3])
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
    control_plane
        .metric("sidewind_connections_refused_total{reason=\"handshake-incomplete\"} 1")
        .await;
    control_plane.metric("sidewind_connections 0").await;
    let metrics = control_plane.get("/metrics").await.1;
    let refused = metrics
        .lines()
        .filter(|line| line.starts_with("sidewind_connections_refused_total"));
    assert_eq!(refused.count(), 1, "{metrics}");
}

#[tokio::test]
async fn what_is_no_http2_is_closed_after_its_handshake_and_so_is_silence() {
    let control_plane = ControlPlane::start().await;
    let connector = tokio_rustls::TlsConnector::from(control_plane.client.anonymous_tls());
    for (begin, reason) in [
        (&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], "not-http2"),
        (b"PRI * HT", "silent"),
    ] {
        let stream = TcpStream::connect(control_plane.client.address)
            .await
            .unwrap();
        let name = sidewind_identity::tls::server_name();
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(begin).await.unwrap();
        stream.flush().await.unwrap();
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
        let line = format!("sidewind_connections_refused_total{{reason=\"{reason}\"}} 1");
        control_plane.metric(&line).await;
    }
    control_plane.metric("sidewind_connections 0").await;
}

#[tokio::test]
async fn an_address_that_begins_too_many_handshakes_is_closed_and_recovers() {
    let control_plane = limited(1, 100).await;
    let refused = "sidewind_connections_refused_total{reason=\"rate-limited\"}";
    until(async || {
        let mut stream = TcpStream::connect(control_plane.client.address)
            .await
            .unwrap();
        // A connection that is refused may be gone already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
        control_plane.get("/metrics").await.1.contains(refused)
    })
    .await;
    let client = &control_plane.client;
    let token = client.token(ORDERS, &[]).await;
    until(async || {
        let Ok(channel) = client.channel(client.anonymous_tls()).await else {
            return false;
        };
        let key = PrivateKey::generate().unwrap();
        let request = crate::support::attest_request(&token, key.csr_der().unwrap());
        let mut service =
            sidewind_api::v1::identity_service_client::IdentityServiceClient::new(channel);
        service.attest(request).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn handshakes_with_a_certificate_cost_an_address_nothing() {
    let control_plane = limited(1, 100).await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    // Many more than the ten handshakes that the address may make without one.
    for _ in 0..40 {
        let key = PrivateKey::generate().unwrap();
        client.renew(&svid, key.csr_der().unwrap()).await.unwrap();
    }
}
