//! Clients that do not do as they should, and very many of them.

use bytes::Bytes;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::proto::{ValidateJwtsvidRequest, X509svidRequest};
use super::*;

/// A client of the connection alone: nobody reads for it unless it does.
struct RawClient {
    requests: h2::client::SendRequest<Bytes>,
}

impl RawClient {
    async fn new(world: &World, window: u32) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        let (requests, connection) = builder.handshake(world.dial()).await.unwrap();
        tokio::spawn(connection);
        Self { requests }
    }

    async fn call(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<http::Response<h2::RecvStream>, h2::Error> {
        let request = http::Request::post(format!("http://workload-api{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut stream) = requests.send_request(request.body(()).unwrap(), false)?;
        stream.send_data(body.into(), true)?;
        response.await
    }
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const SECURED: (&str, &str) = ("workload.spiffe.io", "true");
const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// An empty message, framed.
const EMPTY: &[u8] = &[0; 5];

#[tokio::test(start_paused = true)]
async fn http_1_gets_no_answer() {
    let world = World::new();
    let mut connection = world.dial();
    let request = b"POST /SpiffeWorkloadAPI/FetchX509SVID HTTP/1.1\r\nhost: localhost\r\n\
        workload.spiffe.io: true\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    connection.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A GOAWAY at most.
    let _ = connection.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("HTTP/1") && !answer.contains("sidewind.local"));
}

#[tokio::test(start_paused = true)]
async fn http_2_without_the_header_or_without_grpc_is_refused() {
    let world = World::new();
    let client = RawClient::new(&world, 65_535).await;
    let json = ("content-type", "application/json");
    let no_grpc = [vec![], vec![SECURED, json]];
    let no_header = [
        vec![GRPC],
        vec![GRPC, ("workload.spiffe.io", "True")],
        vec![GRPC, SECURED, SECURED],
    ];
    let cases = no_grpc.iter().map(|headers| (headers, 415));
    for (headers, status) in cases.chain(no_header.iter().map(|headers| (headers, 200))) {
        let answer = client.call(FETCH, headers, EMPTY).await.unwrap();
        assert_eq!(answer.status(), status, "{headers:?}");
        assert_eq!(answer.headers()["grpc-status"], "3", "{headers:?}");
    }
    let wit = "/SpiffeWorkloadAPI/FetchWITSVID";
    let answer = client.call(wit, &[GRPC, SECURED], EMPTY).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    let delta = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
    let answer = client.call(delta, &[GRPC], EMPTY).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    let line =
        "sidewind_workload_api_calls_total{method=\"FetchX509SVID\",code=\"invalid-argument\"}";
    assert_eq!(world.metric(line), Some(5.0));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_or_broken_is_refused() {
    let world = World::new();
    let client = RawClient::new(&world, 65_535).await;
    let path = "/SpiffeWorkloadAPI/ValidateJWTSVID";
    // A frame that announces more than is taken, and one that is no such message.
    for body in [
        &[0, 0x7f, 0xff, 0xff, 0xff][..],
        &[0, 0, 0, 0, 2, 0xff, 0xff],
    ] {
        let answer = client.call(path, &[GRPC, SECURED], body).await.unwrap();
        let code = answer.headers()["grpc-status"].to_str().unwrap().to_owned();
        assert!(["8", "11", "13", "3"].contains(&code.as_str()), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_has_256_kibibytes_at_most() {
    let world = World::new();
    let client = RawClient::new(&world, 65_535).await;
    let path = "/SpiffeWorkloadAPI/ValidateJWTSVID";
    let status = async |bytes: usize| {
        let mut request = ValidateJwtsvidRequest {
            audience: "a".to_owned(),
            svid: "x".repeat(bytes),
        };
        let beside = request.encoded_len() - bytes;
        request.svid.truncate(bytes - beside);
        assert_eq!(request.encoded_len(), bytes);
        let mut body = vec![0];
        body.extend(u32::try_from(bytes).unwrap().to_be_bytes());
        body.extend(request.encode_to_vec());
        let answer = client.call(path, &[GRPC, SECURED], body).await.unwrap();
        answer.headers()["grpc-status"].to_str().unwrap().to_owned()
    };
    // That it is no token is found by reading it.
    assert_eq!(status(256 * 1024).await, "3");
    assert_eq!(status(256 * 1024 + 1).await, "11");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_costs_one_message_and_is_dropped() {
    let world = World::new();
    let client = RawClient::new(&world, 0).await;
    let mut answers = Vec::new();
    for _ in 0..50 {
        answers.push(client.call(FETCH, &[GRPC, SECURED], EMPTY).await.unwrap());
    }
    let mut reader = world.client().await;
    let mut reading = reader
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut reading).await.unwrap();
    assert_eq!(world.metric("sidewind_workload_api_open_calls"), Some(51.0));
    for _ in 0..100 {
        world.rotate(HOUR);
        next(&mut reading).await.unwrap();
    }
    let dropped = "sidewind_workload_api_closed_connections_total{reason=\"not-reading\"}";
    world.wait_for_metric(dropped, 1.0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("sidewind_workload_api_open_calls"), Some(1.0));
    world.rotate(HOUR);
    next(&mut reading).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_finds_the_newest_state_and_not_all_before_it() {
    let world = World::new();
    let client = RawClient::new(&world, 100).await;
    let answer = client.call(FETCH, &[GRPC, SECURED], EMPTY).await.unwrap();
    let mut body = answer.into_body();
    let mut newest = world.rotate(HOUR);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        newest = world.rotate(HOUR);
    }
    let leaf: &[u8] = &newest.chain()[0];
    let mut received = Vec::new();
    while !received.windows(leaf.len()).any(|window| window == leaf) {
        let data = tokio::time::timeout(PATIENCE, body.data()).await;
        let data = data.expect("nothing arrives").unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        received.extend_from_slice(&data);
    }
    // The one that was on its way, the one that waited behind it, and the newest, which may not be whole yet.
    let messages = messages(&received);
    assert!(messages <= 3, "{messages} messages");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_streams_each_get_a_rotation() {
    let world = World::new();
    let mut streams = Vec::new();
    for _ in 0..10 {
        let client = world.client().await;
        for _ in 0..100 {
            let stream = client.clone().fetch_x509svid(X509svidRequest {}).await;
            streams.push(stream.unwrap().into_inner());
        }
    }
    for stream in &mut streams {
        next(stream).await.unwrap();
    }
    assert_eq!(
        world.metric("sidewind_workload_api_open_calls"),
        Some(1000.0)
    );
    let svid = world.rotate(HOUR);
    for stream in &mut streams {
        let message = next(stream).await.unwrap();
        assert!(message.svids[0].x509_svid.starts_with(&svid.chain()[0]));
    }
    drop(streams);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("sidewind_workload_api_open_calls"), Some(0.0));
}

#[tokio::test(start_paused = true)]
async fn more_calls_than_there_is_room_for_are_unavailable() {
    let world = World::new();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let client = world.client().await;
        for _ in 0..super::super::gate::MAX_CALLS / 4 {
            let stream = client.clone().fetch_x509svid(X509svidRequest {}).await;
            streams.push(stream.unwrap().into_inner());
        }
    }
    let mut client = world.client().await;
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    streams.pop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    next(&mut stream.into_inner()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn connections_without_calls_are_closed() {
    let world = World::new();
    let idle = "sidewind_workload_api_closed_connections_total{reason=\"idle\"}";
    let begun = tokio::time::Instant::now();
    let _silent = world.dial();
    world.wait_for_metric(idle, 1.0).await;
    assert!((10..20).contains(&begun.elapsed().as_secs()));

    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await.unwrap();
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(world.metric(idle), Some(1.0), "a stream is no idleness");
    let begun = tokio::time::Instant::now();
    drop(stream);
    world.wait_for_metric(idle, 2.0).await;
    assert!((300..320).contains(&begun.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_process_streams_end() {
    let world = World::new();
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await.unwrap();
    world.stop.send_replace(true);
    assert!(
        client.fetch_x509svid(X509svidRequest {}).await.is_err(),
        "no new ones"
    );
}

/// How many whole gRPC messages there are.
fn messages(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [_, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some(after) = rest.get(length..) else {
            break;
        };
        bytes = after;
        count += 1;
    }
    count
}
