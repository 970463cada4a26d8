//! Floods by a peer whose certificate is good: they end its connection, and hold up nobody else.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use h2::RecvStream;
use http::Request;
use sidewind_identity::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{fetch, pool};
use crate::mesh::testing::{Realm, TestServer, answer, spiffe_id, until};
use crate::mesh::*;

/// Many times over what HTTP/2 bounds.
const TIMES: u32 = 20_000;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// The error code ENHANCE_YOUR_CALM.
const CALM: u8 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// `GET https:///`, by HPACK's static table, and the authority `x`.
const REQUEST: &[u8] = &[0x82, 0x87, 0x84, 0x01, 1, b'x'];

/// Streams that are reset as soon as they are opened (CVE-2023-44487).
fn rapid_resets() -> Vec<u8> {
    let streams = (0..TIMES).map(|number| 2 * number + 1);
    let reset = |stream| {
        let cancel = 8_u32.to_be_bytes();
        let opened = frame(HEADERS, END_HEADERS, stream, REQUEST);
        [opened, frame(RST_STREAM, 0, stream, &cancel)].concat()
    };
    streams.flat_map(reset).collect()
}

/// One header block that never ends (CVE-2024-27316).
fn endless_header() -> Vec<u8> {
    let field = |number: u32| {
        let value = format!("{number:040}");
        [&[0x00, 1, b'x', 40], value.as_bytes()].concat()
    };
    let rest = (0..TIMES).flat_map(|number| frame(CONTINUATION, 0, 1, &field(number)));
    let begin = frame(HEADERS, 0, 1, REQUEST);
    begin.into_iter().chain(rest).collect()
}

/// The error code of the frame by which the server ended a connection, of all that it sent.
fn goaway(mut received: &[u8]) -> Option<u8> {
    while let [a, b, c, kind, rest @ ..] = received {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let payload = rest.get(5..5 + length)?;
        if *kind == GOAWAY {
            return payload.get(7).copied();
        }
        received = &rest[5 + length..];
    }
    None
}

/// Sends all of it, and waits until the server has ended the connection; it is never ended from here. Gives the error
/// code of its goodbye.
async fn flood(
    address: std::net::SocketAddr,
    identity: &crate::control::MeshIdentity,
    bytes: Vec<u8>,
) -> Option<u8> {
    let connector = TlsConnector::from(Arc::clone(&identity.client_tls));
    let tcp = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(tls::server_name(), tcp).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);
    let begin = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ];
    let sending = async move {
        // The server may be gone before the end of it.
        let _ = to.write_all(&begin.concat()).await;
        let _ = to.write_all(&bytes).await;
        let _ = to.flush().await;
        to
    };
    let reading = async move {
        let mut received = Vec::new();
        // What was left unread turns the close into a reset.
        let _ = from.read_to_end(&mut received).await;
        goaway(&received)
    };
    tokio::join!(sending, reading).1
}

/// Floods by four connections at once while a good peer asks on, and gives how many of the flood's requests were
/// begun with.
async fn withstands(bytes: Vec<u8>) -> usize {
    let realm = Realm::shared();
    let begun = Rc::new(Cell::new(0));
    let count = Rc::clone(&begun);
    let handler = move |request: Request<RecvStream>, respond| {
        if request.uri().path() == "/" {
            count.set(count.get() + 1);
        }
        answer(request, respond)
    };
    let server = realm.identity("server", 1);
    let server = TestServer::start(server, ServerSettings::default(), handler).await;
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let (address, bytes) = (server.address, bytes.clone());
            let identity = realm.identity("flooder", 1);
            tokio::task::spawn_local(async move { flood(address, &identity, bytes).await })
        })
        .collect();
    let (pool, identity) = (pool(PoolSettings::default()), realm.identity("client", 1));
    let mut place = pool
        .connect(&identity, server.address, &spiffe_id("server"))
        .await
        .unwrap();
    for _ in 0..100 {
        assert_eq!(fetch(&mut place, "/good").await.unwrap(), "/good");
    }
    until("the floods are over", || {
        floods.iter().all(|flood| flood.is_finished())
    })
    .await;
    for flood in floods {
        assert_eq!(flood.await.unwrap(), Some(CALM));
    }
    until("their connections are closed", || server.open.get() == 1).await;
    assert_eq!(fetch(&mut place, "/after").await.unwrap(), "/after");
    begun.get()
}

#[tokio::test(flavor = "local")]
async fn streams_that_are_reset_at_once_end_their_connection_and_hold_up_nobody() {
    let begun = withstands(rapid_resets()).await;
    assert!(
        begun < TIMES as usize / 10,
        "{begun} requests were begun with"
    );
}

#[tokio::test(flavor = "local")]
async fn a_header_without_end_ends_its_connection_and_holds_up_nobody() {
    assert_eq!(withstands(endless_header()).await, 0);
}
