//! A control plane in this process: real TLS and gRPC on loopback, certificates by a real CA, and an answer to
//! everything in the test's hands. It can be killed and started again on its port.

#![expect(clippy::disallowed_methods, reason = "bounded by what the test sends")]

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use sidewind_api::v1;
use sidewind_api::v1::control_message::Message;
use sidewind_api::v1::identity_service_server::{IdentityService, IdentityServiceServer};
use sidewind_api::v1::mesh_service_server::{MeshService, MeshServiceServer};
use sidewind_api::v1::proxy_message::Message as ProxyKind;
use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{
    ClientAuth, PeerIdentity, PrivateKey, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain,
    peer_identity, tls,
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::control::clock::Simulated;
use crate::control::network::{Io, Memory};

const HOUR: Duration = Duration::from_secs(3600);
/// Of simulated time: whatever has not happened by then will not.
pub(super) const PATIENCE: Duration = Duration::from_secs(3 * 3600);
pub(super) const WORKLOAD: &str = "spiffe://sidewind.local/ns/data/sa/orders";
pub(super) const CONTROL_PLANE: &str = "spiffe://sidewind.local/sidewind/control-plane";

/// What the fake saw, in order.
#[derive(Debug)]
pub(super) enum Seen {
    Attested,
    AttestationRefused,
    Renewed {
        old_serial: String,
    },
    /// A stream was opened; by which certificate, and the sender of its answers.
    Opened {
        hello: v1::ProxyHello,
        serial: String,
        answers: Answers,
    },
    Subscribed(String),
    Unsubscribed(String),
}

pub(super) type Answers = mpsc::Sender<Result<v1::ControlMessage, Status>>;

/// Sends a message on a stream of the fake's.
pub(super) async fn send(answers: &Answers, message: Message) {
    let message = v1::ControlMessage {
        message: Some(message),
    };
    answers.send(Ok(message)).await.unwrap();
}

pub(super) struct Authority {
    pub(super) root: RootAuthority,
    signing: Mutex<SigningAuthority>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let trust_domain = TrustDomain::parse("sidewind.local").unwrap();
        let now = SystemTime::now() - HOUR;
        let root = generate_root(&trust_domain, 1000 * HOUR, now).unwrap();
        let signing = root.issue_intermediate(900 * HOUR, now).unwrap();
        Self {
            root,
            signing: Mutex::new(signing),
        }
    }

    /// Signs by another authority from now on, and gives the key identifier of the one before.
    pub(super) fn rotate(&self) -> String {
        let now = SystemTime::now() - HOUR;
        let next = self.root.issue_intermediate(900 * HOUR, now).unwrap();
        let before = std::mem::replace(&mut *self.signing.lock().unwrap(), next);
        before.key_id().to_owned()
    }

    pub(super) fn bundle(&self, sequence: u64) -> v1::TrustBundle {
        v1::TrustBundle {
            trust_domain: "sidewind.local".to_owned(),
            sequence,
            authorities: vec![self.root.certificate().to_vec()],
            ..v1::TrustBundle::default()
        }
    }

    /// An SVID that real verifiers take now, and that ends at a moment of simulated time.
    fn sign(&self, csr: &[u8], id: &str, end: SystemTime) -> Vec<Vec<u8>> {
        // Simulated time may be behind real time by what the test has taken.
        let now = SystemTime::now() - Duration::from_secs(300);
        let template = SvidTemplate {
            id: SpiffeId::parse(id).unwrap(),
            ttl: end.duration_since(now).unwrap(),
            dns_names: Vec::new(),
        };
        let signing = self.signing.lock().unwrap();
        let chain = signing.sign(csr, &template, now).unwrap();
        chain
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect()
    }
}

/// What the fake does, changed by tests while it runs.
pub(super) struct Behaviour {
    pub(super) tokens: HashMap<String, bool>,
    pub(super) svid_ttl: Duration,
    pub(super) refuses_renewal: bool,
    pub(super) renews_as: Option<String>,
    pub(super) bundle_sequence: u64,
    /// What calls of workloads that are known are refused with.
    pub(super) refuses_as: Option<sidewind_api::Reason>,
}

pub(super) struct Fake {
    url: String,
    network: FakeNetwork,
    pub(super) authority: Arc<Authority>,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
    pub(super) seen: mpsc::UnboundedReceiver<Seen>,
    acknowledged: mpsc::UnboundedReceiver<v1::Acknowledge>,
    service: Service,
    /// The identity that its certificate says.
    id: String,
    running: JoinSet<()>,
}

impl Fake {
    pub(super) async fn start_as(
        network: FakeNetwork,
        simulated: &Simulated,
        id: &str,
        authority: Arc<Authority>,
    ) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour {
            tokens: HashMap::from([("token".to_owned(), false)]),
            svid_ttl: Duration::from_secs(60),
            refuses_renewal: false,
            renews_as: None,
            bundle_sequence: 1,
            refuses_as: None,
        }));
        let (events, seen) = mpsc::unbounded_channel();
        let (acknowledgements, acknowledged) = mpsc::unbounded_channel();
        let service = Service {
            authority: authority.clone(),
            behaviour: behaviour.clone(),
            simulated: simulated.clone(),
            events,
            acknowledgements,
        };
        let mut fake = Self {
            url: String::new(),
            network,
            authority,
            behaviour,
            seen,
            acknowledged,
            service,
            id: id.to_owned(),
            running: JoinSet::new(),
        };
        fake.restart().await;
        fake
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Ends all connections and the listener at once.
    pub(super) async fn kill(&mut self) {
        self.running.shutdown().await;
        while self.seen.try_recv().is_ok() {}
    }

    pub(super) async fn restart(&mut self) {
        let connections = self.listen();
        let key = PrivateKey::generate().unwrap();
        let end = SystemTime::now() + 20 * HOUR;
        let chain = self.authority.sign(&key.csr_der().unwrap(), &self.id, end);
        let svid = Svid::new(chain.into_iter().map(Into::into).collect(), key).unwrap();
        let bundle = self.authority.bundle(0);
        let bundle = TrustBundle::from_der(
            self.authority.root.trust_domain().clone(),
            0,
            bundle.authorities,
        );
        let bundles = Arc::new(TrustBundles::from(bundle.unwrap()));
        let config = tls::server_config(&svid, &bundles, &[b"h2"], ClientAuth::Optional).unwrap();
        self.running
            .spawn(serve(connections, config.into(), self.service.clone()));
    }

    /// At the same place as before, when there was one.
    fn listen(&mut self) -> mpsc::UnboundedReceiver<Box<dyn Io>> {
        match &self.network {
            FakeNetwork::Memory(memory) => {
                if self.url.is_empty() {
                    self.url = format!("https://control-plane-{}:15010", uuid::Uuid::new_v4());
                }
                memory.listen(&self.url)
            }
            FakeNetwork::Tcp => {
                let address = self.url.strip_prefix("https://").unwrap_or("127.0.0.1:0");
                let listener = crate::capture::listen(address.parse().unwrap()).unwrap();
                self.url = format!("https://{}", listener.local_addr().unwrap());
                let (sender, connections) = mpsc::unbounded_channel::<Box<dyn Io>>();
                self.running.spawn(async move {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let _ = sender.send(Box::new(tcp));
                    }
                });
                connections
            }
        }
    }

    pub(super) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    pub(super) fn add_token(&self, token: &str) {
        self.behave(|behaviour| {
            behaviour.tokens.insert(token.to_owned(), false);
        });
    }

    pub(super) async fn next(&mut self) -> Seen {
        let seen = tokio::time::timeout(PATIENCE, self.seen.recv());
        seen.await.expect("nothing more happens").unwrap()
    }

    /// The next acknowledgement: the sequence of the own bundle, and the serial number of the SVID in use.
    pub(super) async fn next_acknowledgement(&mut self) -> (u64, String) {
        let next = tokio::time::timeout(PATIENCE, self.acknowledged.recv());
        let it = next.await.expect("nothing more is acknowledged").unwrap();
        assert_eq!(it.bundles[0].trust_domain, "sidewind.local");
        (it.bundles[0].sequence, it.svid_serial)
    }

    /// The next stream that is opened, past everything else.
    pub(super) async fn next_stream(&mut self) -> (v1::ProxyHello, String, Answers) {
        loop {
            if let Seen::Opened {
                hello,
                serial,
                answers,
            } = self.next().await
            {
                return (hello, serial, answers);
            }
        }
    }
}

/// Where a fake is reached.
pub(super) enum FakeNetwork {
    Memory(Memory),
    Tcp,
}

/// Aborting this closes every connection, as the death of a process does.
async fn serve(
    mut connections: mpsc::UnboundedReceiver<Box<dyn Io>>,
    acceptor: TlsAcceptor,
    service: Service,
) {
    let (accepted, incoming) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming).map(Ok::<TlsIo, std::io::Error>);
    let server = Server::builder()
        .add_service(IdentityServiceServer::new(service.clone()))
        .add_service(MeshServiceServer::new(service))
        .serve_with_incoming(incoming);
    let mut running = JoinSet::new();
    running.spawn(async move { server.await.unwrap() });
    while let Some(mut connection) = connections.recv().await {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        running.spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut connection, &mut near).await;
        });
        let acceptor = acceptor.clone();
        let accepted = accepted.clone();
        running.spawn(async move {
            if let Ok(stream) = acceptor.accept(far).await {
                let peer = peer_identity(stream.get_ref().1.peer_certificates()).ok();
                let _ = accepted.send(TlsIo { stream, peer });
            }
        });
    }
}

struct TlsIo {
    stream: TlsStream<DuplexStream>,
    peer: Option<PeerIdentity>,
}

impl Connected for TlsIo {
    type ConnectInfo = Option<PeerIdentity>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    behaviour: Arc<Mutex<Behaviour>>,
    simulated: Simulated,
    events: mpsc::UnboundedSender<Seen>,
    acknowledgements: mpsc::UnboundedSender<v1::Acknowledge>,
}

impl Service {
    fn check_refusal(&self) -> Result<(), Status> {
        match self.behaviour.lock().unwrap().refuses_as {
            Some(reason) => Err(reason.status("refused by the fake")),
            None => Ok(()),
        }
    }

    fn issue(&self, csr: &[u8], id: &str) -> Response<v1::SvidResponse> {
        let behaviour = self.behaviour.lock().unwrap();
        let end = self.simulated.now() + behaviour.svid_ttl;
        Response::new(v1::SvidResponse {
            certificate_chain: self.authority.sign(csr, id, end),
            trust_bundles: vec![self.authority.bundle(behaviour.bundle_sequence)],
            version: "9.9.9".to_owned(),
        })
    }
}

fn peer<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = request.extensions().get::<Option<PeerIdentity>>().unwrap();
    peer.clone()
        .ok_or_else(|| Status::unauthenticated("no client certificate"))
}

#[tonic::async_trait]
impl IdentityService for Service {
    async fn attest(
        &self,
        request: Request<v1::AttestRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let request = request.into_inner();
        let Some(v1::attest_request::Evidence::JoinToken(token)) = request.evidence else {
            return Err(Status::invalid_argument("no evidence"));
        };
        let used = self
            .behaviour
            .lock()
            .unwrap()
            .tokens
            .insert(token.token, true);
        if used == Some(false) {
            let response = self.issue(&request.csr, WORKLOAD);
            let _ = self.events.send(Seen::Attested);
            return Ok(response);
        }
        let _ = self.events.send(Seen::AttestationRefused);
        Err(Status::permission_denied(
            "the join token is used or unknown",
        ))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let peer = peer(&request)?;
        self.check_refusal()?;
        let (refuses, renews_as) = {
            let behaviour = self.behaviour.lock().unwrap();
            (behaviour.refuses_renewal, behaviour.renews_as.clone())
        };
        if refuses || peer.not_after < self.simulated.now() {
            return Err(Status::permission_denied("not renewed"));
        }
        let id = renews_as.unwrap_or_else(|| peer.id.to_string());
        let response = self.issue(&request.into_inner().csr, &id);
        let _ = self.events.send(Seen::Renewed {
            old_serial: peer.serial_hex,
        });
        Ok(response)
    }

    async fn challenge(
        &self,
        _request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        Err(Status::unimplemented("challenge"))
    }

    async fn mint_jwt_svid(
        &self,
        request: Request<v1::MintJwtSvidRequest>,
    ) -> Result<Response<v1::MintJwtSvidResponse>, Status> {
        let peer = peer(&request)?;
        self.check_refusal()?;
        let renews_as = self.behaviour.lock().unwrap().renews_as.clone();
        Ok(Response::new(v1::MintJwtSvidResponse {
            token: format!(
                "{} {}",
                peer.serial_hex,
                request.into_inner().audience.join(",")
            ),
            spiffe_id: renews_as.unwrap_or_else(|| peer.id.to_string()),
            ..v1::MintJwtSvidResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl MeshService for Service {
    type StreamStream = ReceiverStream<Result<v1::ControlMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ProxyMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = peer(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|first| first.message);
        let Some(ProxyKind::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (answers, stream) = mpsc::channel(64);
        let answer = v1::ControlHello {
            version: "9.9.9".to_owned(),
            refused: vec!["port 1 is not yours".to_owned()],
            ..v1::ControlHello::default()
        };
        send(&answers, Message::Hello(answer)).await;
        let _ = self.events.send(Seen::Opened {
            hello,
            serial: peer.serial_hex,
            answers,
        });
        let events = self.events.clone();
        let acknowledgements = self.acknowledgements.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                let _ = match message.message {
                    Some(ProxyKind::Subscribe(it)) => events.send(Seen::Subscribed(it.destination)),
                    Some(ProxyKind::Unsubscribe(it)) => {
                        events.send(Seen::Unsubscribed(it.destination))
                    }
                    Some(ProxyKind::Acknowledge(it)) => {
                        let _ = acknowledgements.send(it);
                        Ok(())
                    }
                    _ => Ok(()),
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
