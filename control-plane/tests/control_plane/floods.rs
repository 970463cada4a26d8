//! Floods by clients that keep to TLS and break the spirit of HTTP/2, on the gRPC port.

use crate::support::{ControlPlane, limited, svid_of, until, within};
use rustix::process::{Resource, getrlimit, setrlimit};
use sidewind_api::Reason;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_identity::PrivateKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
/// What a connection is flooded with, many times over what HTTP/2 bounds.
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
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a call, by HPACK's static table and literals.
fn call() -> Vec<u8> {
    let path = "/sidewind.v1.IdentityService/Attest";
    let literal = |index: u8, value: &str| [&[index, value.len() as u8], value.as_bytes()].concat();
    // :method POST and :scheme https are whole entries; of :path and :authority only the names are.
    [vec![0x83, 0x87], literal(4, path), literal(1, "x")].concat()
}

/// Streams that are reset as soon as they are opened (CVE-2023-44487).
fn rapid_resets() -> Vec<u8> {
    let streams = (0..TIMES).map(|number| 2 * number + 1);
    let reset = |stream| {
        let cancel = 8_u32.to_be_bytes();
        let opened = frame(HEADERS, END_HEADERS, stream, &call());
        [opened, frame(RST_STREAM, 0, stream, &cancel)].concat()
    };
    streams.flat_map(reset).collect()
}

/// One header block that never ends (CVE-2024-27316).
fn endless_header() -> Vec<u8> {
    // A literal of 40 bytes, never the same twice, so that nothing of it can be kept short.
    let field = |number: u32| {
        let value = format!("{number:040}");
        [&[0x00, 1, b'x', 40], value.as_bytes()].concat()
    };
    let rest = (0..TIMES).flat_map(|number| frame(CONTINUATION, 0, 1, &field(number)));
    frame(HEADERS, 0, 1, &call())
        .into_iter()
        .chain(rest)
        .collect()
}

async fn connect(control_plane: &ControlPlane) -> TlsStream<TcpStream> {
    let client = &control_plane.client;
    let stream = TcpStream::connect(client.address).await.unwrap();
    let connector = TlsConnector::from(client.anonymous_tls());
    let name = sidewind_identity::tls::server_name();
    connector.connect(name, stream).await.unwrap()
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
async fn flood(stream: TlsStream<TcpStream>, bytes: Vec<u8>) -> Option<u8> {
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

/// Floods by eight connections at once, while a good client attests and renews.
async fn withstands(bytes: Vec<u8>) {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut floods = JoinSet::new();
    for _ in 0..8 {
        let stream = connect(&control_plane).await;
        floods.spawn(flood(stream, bytes.clone()));
    }
    let mut svid = within(client.svid(ORDERS, &[])).await;
    for _ in 0..5 {
        let key = PrivateKey::generate().unwrap();
        let renewed = within(client.renew(&svid, key.csr_der().unwrap())).await;
        svid = svid_of(renewed.unwrap(), key);
    }
    while let Some(ended) = within(floods.join_next()).await {
        assert_eq!(ended.unwrap(), Some(CALM));
    }
    control_plane.metric("sidewind_connections 0").await;
    assert_eq!(control_plane.get("/ready").await.0, "HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_end_their_connection_and_hold_up_nobody() {
    withstands(rapid_resets()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_without_end_ends_its_connection_and_holds_up_nobody() {
    withstands(endless_header()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_all_the_places_there_are_keep_nobody_out() {
    // Both ends of each are in this process.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let known = within(client.svid(ORDERS, &[])).await;
    let mut held = Vec::new();
    for _ in 0..4_200 {
        held.push(TcpStream::connect(client.address).await.unwrap());
    }
    within(client.svid(ORDERS, &[])).await;
    let key = PrivateKey::generate().unwrap();
    let renewed = within(client.renew(&known, key.csr_der().unwrap())).await;
    renewed.unwrap();
    // A quarter of all places is one address's: the others were turned away, or lost theirs once they had had their time.
    until(async || {
        let metrics = control_plane.get("/metrics").await.1;
        let refused = |reason: &str| {
            let line = format!("sidewind_connections_refused_total{{reason=\"{reason}\"}} ");
            let mut lines = metrics.lines();
            let number = lines.find_map(|it| it.strip_prefix(&line).map(str::to_owned));
            number.map_or(0, |number| number.parse::<u32>().unwrap())
        };
        let displaced = refused("displaced");
        displaced > 0 && displaced + refused("too-many") >= 4_200 - 1_024
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_certificate_is_let_in_from_an_address_that_owes_handshakes() {
    let control_plane = limited(1, 100).await;
    let client = &control_plane.client;
    let known = within(client.svid(ORDERS, &[])).await;
    until(async || {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(client.address).await.unwrap();
            // The server may have closed it already.
            let _ = stream.write_all(b"no TLS at all, but a line of text").await;
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
        let Ok(channel) = client.channel(client.anonymous_tls()).await else {
            return false;
        };
        let request = sidewind_api::v1::ChallengeRequest::default();
        let asked = IdentityServiceClient::new(channel).challenge(request).await;
        // Its connection was closed, once it had shown nothing.
        let is_closed = asked.is_err_and(|status| Reason::of(&status).is_none());
        let Ok(channel) = client.channel(client.tls(&known)).await else {
            return false;
        };
        let request = sidewind_api::v1::RenewRequest {
            csr: PrivateKey::generate().unwrap().csr_der().unwrap(),
            version: "test".to_owned(),
        };
        let renewed = IdentityServiceClient::new(channel).renew(request).await;
        is_closed && renewed.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_open_connections_do_not_hold_up_a_good_client() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    // Nothing at all, and the first eleven bytes of a ClientHello.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut half_open = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(client.address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(&hello).await.unwrap();
        }
        half_open.push(stream);
    }
    within(client.svid(ORDERS, &[])).await;
    // Nobody had to go first.
    let last = half_open.last().unwrap();
    let read = last.try_read(&mut [0; 1]);
    let open = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(open, "the good client came after all the others");
    until(async || {
        let refused = "sidewind_connections_refused_total{reason=\"handshake-timeout\"} 1000";
        control_plane.get("/metrics").await.1.contains(refused)
    })
    .await;
    control_plane.metric("sidewind_connections 0").await;
}
