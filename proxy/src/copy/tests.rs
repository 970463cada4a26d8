#![expect(clippy::disallowed_methods, reason = "bounded by what the test sends")]

use std::rc::Rc;

use aws_lc_rs::digest::{Context as Digest, SHA256};
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::mesh::testing::Bouncer;
use crate::mesh::testing::{Realm, TestServer, into_tunnel, spiffe_id, until};
use crate::mesh::{MeshPool, PoolSettings, ServerSettings};

type Ended = (&'static str, Result<(), CopyError>, u64, u64);

/// A client and a backend with what is under test between them.
struct Path {
    client: TcpStream,
    backend: TcpStream,
    ended: mpsc::UnboundedReceiver<Ended>,
    server: Option<TestServer>,
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (one.unwrap(), other.unwrap().0)
}

/// client → copy → tunnel → copy → backend, as two sidecars do it.
async fn through_a_tunnel() -> Path {
    let realm = Realm::shared();
    let (report, ended) = mpsc::unbounded_channel();
    let (inbound, backend) = connected().await;
    let inbound = Rc::new(Cell::new(Some(inbound)));
    let server_report = report.clone();
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        move |request, respond| {
            let (inbound, report) = (inbound.take().unwrap(), server_report.clone());
            async move {
                let progress = Progress::default();
                let tunnel = into_tunnel(request, respond);
                let result = copy_tunnel(inbound, tunnel, None, &progress).await;
                let _ = report.send(("inbound", result, progress.sent(), progress.received()));
            }
        },
    )
    .await;

    let pool = MeshPool::new(
        PoolSettings::default(),
        Box::new(()),
        Bouncer::default().census(),
    );
    let (client, outbound) = connected().await;
    let tunnel = pool
        .tunnel(
            &realm.identity("client", 1),
            server.address,
            &spiffe_id("server"),
            "10.0.0.9:5432".parse().unwrap(),
            HeaderMap::new(),
        )
        .await
        .unwrap();
    tokio::task::spawn_local(async move {
        let progress = Progress::default();
        let result = copy_tunnel(outbound, tunnel, None, &progress).await;
        let _ = report.send(("outbound", result, progress.sent(), progress.received()));
        drop(pool);
    });
    Path {
        client,
        backend,
        ended,
        server: Some(server),
    }
}

/// client → copy → backend.
async fn through_a_relay() -> Path {
    let (report, ended) = mpsc::unbounded_channel();
    let (client, near) = connected().await;
    let (far, backend) = connected().await;
    tokio::task::spawn_local(async move {
        let progress = Progress::default();
        let result = copy_both(near, far, None, &progress).await;
        let _ = report.send(("relay", result, progress.sent(), progress.received()));
    });
    Path {
        client,
        backend,
        ended,
        server: None,
    }
}

impl Path {
    /// How each copy ended.
    async fn ended(&mut self) -> Vec<Ended> {
        let copies = if self.server.is_some() { 2 } else { 1 };
        let mut ended = Vec::new();
        for _ in 0..copies {
            ended.push(self.ended.recv().await.unwrap());
        }
        ended
    }
}

async fn send_numbered(mut to: impl AsyncWrite + Unpin, bytes: usize, seed: u64) -> Vec<u8> {
    let (mut digest, mut left, mut n) = (Digest::new(&SHA256), bytes, seed);
    let mut buffer = Vec::new();
    while left > 0 {
        // Pieces of many sizes, from one byte to more than any buffer.
        let piece = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44) as usize % 400_000 + 1;
        n = n.wrapping_add(1);
        buffer.clear();
        buffer.extend((0..piece.min(left)).map(|i| (i as u64 ^ n) as u8));
        digest.update(&buffer);
        to.write_all(&buffer).await.unwrap();
        left -= buffer.len();
    }
    to.shutdown().await.unwrap();
    digest.finish().as_ref().to_vec()
}

async fn digest_of(mut from: impl AsyncRead + Unpin) -> (usize, Vec<u8>) {
    let (mut digest, mut total, mut buffer) = (Digest::new(&SHA256), 0, vec![0; 100_000]);
    loop {
        let n = from.read(&mut buffer).await.unwrap();
        if n == 0 {
            return (total, digest.finish().as_ref().to_vec());
        }
        total += n;
        digest.update(&buffer[..n]);
    }
}

async fn large_transfers_arrive_whole(mut path: Path) {
    const BYTES: usize = 24 << 20;
    let (client, backend) = (&mut path.client, &mut path.backend);
    let (client_read, client_write) = client.split();
    let (backend_read, backend_write) = backend.split();
    let (up, down, (up_bytes, up_got), (down_bytes, down_got)) = tokio::join!(
        send_numbered(client_write, BYTES, 1),
        send_numbered(backend_write, BYTES + 17, 2),
        digest_of(backend_read),
        digest_of(client_read),
    );
    assert_eq!((up_bytes, down_bytes), (BYTES, BYTES + 17));
    assert!(up == up_got && down == down_got);
    for (which, result, sent, received) in path.ended().await {
        result.unwrap();
        let (up, down) = (BYTES as u64, BYTES as u64 + 17);
        let expected = if which == "inbound" {
            (down, up)
        } else {
            (up, down)
        };
        assert_eq!((sent, received), expected, "{which}");
    }
}

#[tokio::test(flavor = "local")]
async fn large_transfers_arrive_whole_both_ways_through_a_tunnel() {
    large_transfers_arrive_whole(through_a_tunnel().await).await;
}

#[tokio::test(flavor = "local")]
async fn large_transfers_arrive_whole_both_ways_through_a_relay() {
    large_transfers_arrive_whole(through_a_relay().await).await;
}

async fn either_side_may_close_its_direction_first(mut path: Path, client_first: bool) {
    let (first, second) = match client_first {
        true => (&mut path.client, &mut path.backend),
        false => (&mut path.backend, &mut path.client),
    };
    first.write_all(b"last words").await.unwrap();
    first.shutdown().await.unwrap();
    let mut heard = Vec::new();
    second.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    // The other direction is open still.
    for _ in 0..3 {
        second.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        first.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
    second.shutdown().await.unwrap();
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    for (_, result, ..) in path.ended().await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "local")]
async fn either_side_may_close_its_direction_first_through_a_tunnel() {
    either_side_may_close_its_direction_first(through_a_tunnel().await, true).await;
    either_side_may_close_its_direction_first(through_a_tunnel().await, false).await;
}

#[tokio::test(flavor = "local")]
async fn either_side_may_close_its_direction_first_through_a_relay() {
    either_side_may_close_its_direction_first(through_a_relay().await, true).await;
    either_side_may_close_its_direction_first(through_a_relay().await, false).await;
}

async fn a_reset_on_one_side_is_a_reset_on_the_other(mut path: Path, client_first: bool) {
    let (first, second) = match client_first {
        true => (path.client, &mut path.backend),
        false => (path.backend, &mut path.client),
    };
    second.write_all(b"hello").await.unwrap();
    first.readable().await.unwrap();
    first.set_zero_linger().unwrap();
    drop(first);
    let error = second.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    for _ in 0..if path.server.is_some() { 2 } else { 1 } {
        let (which, result, ..) = path.ended.recv().await.unwrap();
        let error = result.unwrap_err();
        let expected = match (which, client_first) {
            ("relay" | "outbound", true) | ("inbound", false) => Side::Near,
            _ => Side::Far,
        };
        assert_eq!(error.side(), Some(expected), "{which}: {error:?}");
    }
}

#[tokio::test(flavor = "local")]
async fn a_reset_on_one_side_is_a_reset_on_the_other_through_a_tunnel() {
    a_reset_on_one_side_is_a_reset_on_the_other(through_a_tunnel().await, true).await;
    a_reset_on_one_side_is_a_reset_on_the_other(through_a_tunnel().await, false).await;
}

#[tokio::test(flavor = "local")]
async fn a_reset_on_one_side_is_a_reset_on_the_other_through_a_relay() {
    a_reset_on_one_side_is_a_reset_on_the_other(through_a_relay().await, true).await;
    a_reset_on_one_side_is_a_reset_on_the_other(through_a_relay().await, false).await;
}

#[tokio::test(flavor = "local")]
async fn draining_the_mesh_connection_leaves_a_tunnel_alone() {
    let mut path = through_a_tunnel().await;
    path.client.write_all(b"one").await.unwrap();
    path.backend.read_exact(&mut [0; 3]).await.unwrap();
    path.server.as_ref().unwrap().drain();
    for _ in 0..5 {
        path.client.write_all(b"more").await.unwrap();
        path.backend.read_exact(&mut [0; 4]).await.unwrap();
        path.backend.write_all(b"back").await.unwrap();
        path.client.read_exact(&mut [0; 4]).await.unwrap();
    }
    drop(path.client);
    assert_eq!(path.backend.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "local")]
async fn many_small_frames_to_a_stalled_reader_are_joined_and_arrive() {
    const MESSAGES: u32 = 150_000;
    const WINDOW_BYTES: u32 = 256 * 1024;
    let realm = Realm::shared();
    let sent = Rc::new(Cell::new(0));
    let counting = Rc::clone(&sent);
    let server = TestServer::start(
        realm.identity("server", 1),
        ServerSettings::default(),
        move |request, respond| {
            let sent = Rc::clone(&counting);
            async move {
                let mut tunnel = into_tunnel(request, respond);
                for n in 0..MESSAGES {
                    tunnel.write_all(&n.to_be_bytes()).await.unwrap();
                    sent.set(n);
                }
                tunnel.shutdown().await.unwrap();
            }
        },
    )
    .await;
    let pool = MeshPool::new(
        PoolSettings::default(),
        Box::new(()),
        Bouncer::default().census(),
    );
    let (identity, expected) = (realm.identity("client", 1), spiffe_id("server"));
    let authority = "10.0.0.9:5432".parse().unwrap();
    let tunnel = pool
        .tunnel(
            &identity,
            server.address,
            &expected,
            authority,
            HeaderMap::new(),
        )
        .await
        .unwrap();
    let (near, mut client) = tokio::io::duplex(64);
    client.shutdown().await.unwrap();
    let copying = tokio::task::spawn_local(async move {
        copy_tunnel(near, tunnel, None, &Progress::default()).await
    });
    until("the window is full", || sent.get() + 1 == WINDOW_BYTES / 4).await;
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    copying.await.unwrap().unwrap();
    let expected: Vec<u8> = (0..MESSAGES).flat_map(u32::to_be_bytes).collect();
    assert!(
        received == expected,
        "{} of {} bytes",
        received.len(),
        expected.len()
    );
}

#[tokio::test(flavor = "local")]
async fn the_prefix_of_detection_goes_first() {
    let (near, mut client) = tokio::io::duplex(64);
    let (far, mut backend) = tokio::io::duplex(64);
    client.write_all(b" world").await.unwrap();
    client.shutdown().await.unwrap();
    let copy = async {
        let near = Prefixed::new(&b"hello"[..], near);
        copy_both(near, far, None, &Progress::default())
            .await
            .unwrap();
    };
    let read = async {
        let mut all = Vec::new();
        backend.read_to_end(&mut all).await.unwrap();
        backend.shutdown().await.unwrap();
        all
    };
    assert_eq!(tokio::join!(copy, read).1, b"hello world");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_idle_timeout_counts_from_the_last_byte() {
    let (near, mut client) = tokio::io::duplex(64);
    let (far, _backend) = tokio::io::duplex(64);
    let after = Duration::from_secs(60);
    let began = Instant::now();
    let copying = tokio::task::spawn_local(async move {
        copy_both(near, far, Some(after), &Progress::default()).await
    });
    tokio::time::sleep(after / 2).await;
    client.write_all(b"still here").await.unwrap();
    let error = copying.await.unwrap().unwrap_err();
    assert!(matches!(error, CopyError::Idle { .. }), "{error:?}");
    assert_eq!(began.elapsed(), after + after / 2);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_an_idle_timeout_a_silent_connection_lives_on() {
    let (near, mut client) = tokio::io::duplex(64);
    let (far, mut backend) = tokio::io::duplex(64);
    tokio::task::spawn_local(async move {
        copy_both(near, far, None, &Progress::default())
            .await
            .unwrap();
    });
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(backend.read(&mut [0; 8]).await.unwrap(), 1);
}

#[tokio::test(flavor = "local")]
async fn progress_is_seen_while_the_copy_runs() {
    let (near, mut client) = tokio::io::duplex(64);
    let (far, mut backend) = tokio::io::duplex(64);
    let progress = Rc::new(Progress::default());
    let counts = Rc::clone(&progress);
    tokio::task::spawn_local(async move { copy_both(near, far, None, &counts).await });
    client.write_all(b"12345").await.unwrap();
    backend.read_exact(&mut [0; 5]).await.unwrap();
    backend.write_all(b"123").await.unwrap();
    client.read_exact(&mut [0; 3]).await.unwrap();
    until("both counts", || {
        (progress.sent(), progress.received()) == (5, 3)
    })
    .await;
}

#[test]
fn a_copy_is_small() {
    fn size<F: Future>(_: impl FnOnce(TcpStream, TunnelStream, &'static Progress) -> F) -> usize {
        std::mem::size_of::<F>()
    }
    let bytes = size(|near, tunnel, progress| copy_tunnel(near, tunnel, None, progress));
    assert!(bytes <= 512, "{bytes}");
}
