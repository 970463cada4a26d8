//! The crates `spiffe` and `spiffe-rustls`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use rustls_pki_types::ServerName;
use sidewind_tests::mesh::{MESH_PORT, Mesh};
use sidewind_tests::peer::converse;
use sidewind_tests::wait::PATIENCE;
use spiffe::{JwtSource, X509Source};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Ports, Story};
use crate::support::{API_ID, TASK_ID};

/// Runs on a thread in a workload's network.
fn block_on<T: Send>(
    place: &sidewind_tests::place::Place,
    work: impl Future<Output = T> + Send,
) -> T {
    place.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let work = tokio::time::timeout(3 * PATIENCE, work);
            work.await.expect("it takes too long")
        })
    })
}

fn endpoint(socket: &std::path::Path) -> String {
    format!("unix://{}", socket.display())
}

async fn source(socket: &std::path::Path) -> X509Source {
    let built = X509Source::builder().endpoint(endpoint(socket)).build();
    built.await.expect("a source")
}

#[test]
fn the_crate_spiffe_gets_the_identity_follows_a_rotation_and_gets_tokens() {
    let story = Story::begin(Mesh::plan().flag("--svid-ttl", "60s"), Ports::OfSidecars);
    block_on(&story.task.place, async {
        let source = source(&story.task_socket).await;
        let mut updates = source.updated();
        let first = source.svid().unwrap();
        assert_eq!(first.spiffe_id().to_string(), TASK_ID);
        assert_eq!(first.cert_chain().len(), 2);
        updates.changed().await.unwrap();
        let second = source.svid().unwrap();
        assert_ne!(first.leaf(), second.leaf());
        assert!(source.is_healthy());

        let tokens = JwtSource::builder().endpoint(endpoint(&story.task_socket));
        let tokens = tokens.build().await.unwrap();
        let token = tokens.fetch_jwt_svid(["billing"]).await.unwrap();
        assert_eq!(token.spiffe_id().to_string(), TASK_ID);
        assert_eq!(token.audience(), ["billing"]);
        let keys = tokens.bundle_set().unwrap();
        let own = keys.get(token.spiffe_id().trust_domain()).unwrap();
        assert!(own.find_jwt_authority(token.key_id()).is_some());
    });
}

#[test]
fn the_crate_spiffe_rustls_speaks_mutual_tls_with_a_sidecar() {
    let story = Story::begin(Mesh::plan(), Ports::OfSidecars);
    let _server = story.server();
    let destination = story.api.at(8080).to_string();
    let mesh_port = story.api.at(MESH_PORT);
    let reply = block_on(&story.task.place, async {
        let client = mtls_client(source(&story.task_socket).await)
            .authorize(authorizer::exact([API_ID]).unwrap())
            .with_alpn_protocols(["h2"])
            .build()
            .unwrap();
        let tcp = TcpStream::connect(mesh_port).await.unwrap();
        let name = ServerName::try_from("sidecar.test").unwrap();
        let tls = TlsConnector::from(Arc::new(client)).connect(name, tcp);
        let request = Request::connect(&destination).body(()).unwrap();
        let asked = "GET /orders HTTP/1.1\r\nhost: orders-api.data\r\nconnection: close\r\n\r\n";
        converse(
            tls.await.unwrap(),
            request,
            Bytes::from_static(asked.as_bytes()),
        )
        .await
    });
    assert!(reply.unwrap().text().contains("anemometer"));
    let record = story
        .api
        .sidecar
        .wait_for_access("the call", |record| record.tls());
    assert_eq!(record.source_id(), TASK_ID, "{record}");
}

#[test]
fn a_sidecar_speaks_mutual_tls_with_the_crate_spiffe_rustls() {
    let story = Story::begin(Mesh::plan(), Ports::ApiOfOthers);
    let mesh_port = story.api.at(MESH_PORT);
    let answered = std::thread::scope(|scope| {
        let (listening, listens) = std::sync::mpsc::sync_channel(1);
        let (done, answered) = tokio::sync::oneshot::channel::<()>();
        let server = scope.spawn(|| {
            let (story, listening, answered) = (&story, listening, answered);
            block_on(&story.api.place, async move {
                let server = mtls_server(source(&story.api_socket).await)
                    .authorize(authorizer::exact([TASK_ID]).unwrap())
                    .with_alpn_protocols(["h2"])
                    .build()
                    .unwrap();
                // The sidecar keeps its connection for the next call.
                tokio::select! {
                    () = serve(server, mesh_port, listening) => {}
                    _ = answered => {}
                }
            });
        });
        listens.recv_timeout(Duration::from_secs(20)).unwrap();
        let text = story.call_by_sidecar("/orders");
        done.send(()).unwrap();
        server.join().unwrap();
        text
    });
    assert_eq!(answered, "hello from spiffe-rustls");
    let record = story
        .task
        .sidecar
        .wait_for_access("the call", |record| record.tls());
    assert_eq!(record.destination_id(), API_ID, "{record}");
}

/// Answers what comes through the first tunnel of one connection.
async fn serve(
    config: rustls::ServerConfig,
    address: SocketAddr,
    listening: std::sync::mpsc::SyncSender<()>,
) {
    let listener = TcpListener::bind(address).await.unwrap();
    listening.send(()).unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let tls = TlsAcceptor::from(Arc::new(config)).accept(tcp);
    let mut connection = h2::server::handshake(tls.await.unwrap()).await.unwrap();
    let (request, mut answer) = connection.accept().await.unwrap().unwrap();
    assert_eq!(request.method(), http::Method::CONNECT);
    let mut tunnel = answer.send_response(Response::new(()), false).unwrap();
    let answering = async move {
        let mut body = request.into_body();
        let asked = body.data().await.unwrap().unwrap();
        assert!(asked.starts_with(b"GET /orders"));
        let text = "hello from spiffe-rustls";
        let length = text.len();
        let response = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
        );
        tunnel.send_data(response.into(), true).unwrap();
        while body.data().await.is_some_and(|data| data.is_ok()) {}
    };
    tokio::join!(answering, async {
        while let Some(Ok(_)) = connection.accept().await {}
    });
}
