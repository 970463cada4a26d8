//! The endpoint on a real socket.

use std::path::PathBuf;

use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tonic::transport::Uri;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

use super::super::connections::Endpoint;
use super::super::proto::X509svidRequest;
use super::super::socket::Socket;
use super::*;

/// A served socket in a directory of its own.
struct Served {
    socket: Socket,
    serving: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new(world: &World) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workload.sock");
        let (socket, listener) = Socket::bind(&path, 0o600).unwrap();
        let endpoint = Endpoint::new(world.gate.clone(), world.stopped.clone());
        Self {
            socket,
            serving: tokio::spawn(endpoint.accept(listener)),
            _directory: directory,
        }
    }

    fn path(&self) -> PathBuf {
        self.socket.path().to_owned()
    }

    async fn channel(&self) -> Channel {
        let path = self.path();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        ClientEndpoint::from_static("http://workload-api")
            .connect_with_connector(connector)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_client_of_the_socket_gets_the_svid_and_loses_the_stream_in_the_end() {
    let world = World::new();
    let served = Served::new(&world);
    let mut client = SpiffeWorkloadApiClient::with_interceptor(served.channel().await, secured);
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    let mut stream = stream.into_inner();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.svids[0].spiffe_id, OWN);
    assert_eq!(world.metric("sidewind_workload_api_connections"), Some(1.0));
    world.stop.send_replace(true);
    served.serving.await.unwrap();
    assert!(stream.message().await.is_err());
    assert!(UnixStream::connect(served.socket.path()).await.is_err());
    let path = served.socket.path().to_owned();
    drop(served.socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_the_others_go_on() {
    // Both ends of each are in this process.
    crate::capture::raise_nofile_limit(4096).unwrap();
    let world = World::new();
    let served = Served::new(&world);
    let mut client = SpiffeWorkloadApiClient::with_interceptor(served.channel().await, secured);
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    let mut stream = stream.into_inner();
    next(&mut stream).await.unwrap();
    let too_many = "sidewind_workload_api_closed_connections_total{reason=\"too-many\"}";
    let mut connections = Vec::new();
    while world.metric(too_many).is_none() {
        connections.push(UnixStream::connect(served.path()).await.unwrap());
        assert!(connections.len() < 2000, "nothing bounds them");
        tokio::task::yield_now().await;
    }
    world.rotate(HOUR);
    next(&mut stream).await.unwrap();
    drop(connections);
}

#[tokio::test]
async fn reflection_shows_what_is_served_to_whoever_has_the_header() {
    let world = World::new();
    let served = Served::new(&world);
    let request = || {
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        tokio_stream::once(list)
    };
    let channel = served.channel().await;
    let mut client = ServerReflectionClient::with_interceptor(channel.clone(), secured);
    let answers = client.server_reflection_info(request()).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(ListServiceResponse { service })) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = service.iter().map(|it| it.name.as_str()).collect();
    assert!(names.contains(&"SpiffeWorkloadAPI"), "{names:?}");
    assert!(
        names.contains(&"envoy.service.secret.v3.SecretDiscoveryService"),
        "{names:?}"
    );
    let refused = ServerReflectionClient::new(channel)
        .server_reflection_info(request())
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);
}
