//! A control plane in this process: real TLS and gRPC on loopback, certificates by a real CA, and an answer to
//! everything in the test's hands. It can be killed and started again on its port.

#![expect(clippy::disallowed_methods, reason = "bounded by what the test sends")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use sidewind_api::v1;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::v1::control_message::Message;
use sidewind_api::v1::identity_service_server::{IdentityService, IdentityServiceServer};
use sidewind_api::v1::mesh_service_server::{MeshService, MeshServiceServer};
use sidewind_api::v1::proxy_message::Message as ProxyKind;
use sidewind_identity::{
    ClientAuth, PeerIdentity, PrivateKey, Svid, TaskId, TrustBundle, TrustBundles, tls,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub(super) use super::fake_authority::Authority;
use super::fake_io::{Caller, TlsIo};
use crate::capture;
use crate::control::clock::Simulated;
use crate::control::network::{Io, Memory};

const HOUR: Duration = Duration::from_secs(3600);
/// Of simulated time: whatever has not happened by then will not.
pub(super) const PATIENCE: Duration = Duration::from_secs(3 * 3600);
pub(super) const WORKLOAD: &str = "spiffe://sidewind.local/ns/data/sa/orders";
pub(super) const SERVER: &str = "sidewind://sidewind.local";
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
    StreamRefused,
    /// An SVID of a task was asked for.
    Task(v1::IssueTaskSvidRequest),
    GaveBack(v1::KnownBans),
}

pub(super) type Answers = mpsc::Sender<Result<v1::ControlMessage, Status>>;

/// Sends a message on a stream of the fake's.
pub(super) async fn send(answers: &Answers, message: Message) {
    let message = v1::ControlMessage {
        message: Some(message),
    };
    answers.send(Ok(message)).await.unwrap();
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
    /// Evidence that was taken, but for join tokens, and the signing requests that it came with.
    pub(super) brought: Vec<Evidence>,
    pub(super) requests: Vec<Vec<u8>>,
    /// Whether any other evidence than a join token is taken.
    pub(super) takes_evidence: bool,
    /// Whether renewals are refused because nobody is registered any more.
    pub(super) forgets: bool,
    /// How long whoever is refused is asked to stay away.
    pub(super) retry_after: Option<Duration>,
    /// By how many seconds the control plane's clock is ahead, where it says what it is.
    pub(super) clock_ahead: Option<i64>,
    /// Whose identity tasks get in place of their own.
    pub(super) tasks_as: Option<String>,
    /// Says that it has lost its store.
    pub(super) store_away: bool,
    /// How long after now SVIDs become valid.
    pub(super) svids_begin_in: Option<Duration>,
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
    /// Connections that were made to it.
    connections: Arc<AtomicUsize>,
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
            brought: Vec::new(),
            requests: Vec::new(),
            takes_evidence: true,
            forgets: false,
            retry_after: None,
            clock_ahead: None,
            tasks_as: None,
            store_away: false,
            svids_begin_in: None,
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
            connections: Arc::default(),
            running: JoinSet::new(),
        };
        fake.restart().await;
        fake
    }

    /// How many connections have been made to it.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
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
        self.running.spawn(serve(
            connections,
            config.into(),
            self.service.clone(),
            Arc::clone(&self.connections),
        ));
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
                let listener =
                    capture::listen(address.parse().unwrap(), capture::Peer::Any).unwrap();
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
    counted: Arc<AtomicUsize>,
) {
    let (accepted, incoming) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming).map(Ok::<TlsIo, std::io::Error>);
    let server = Server::builder()
        .add_service(IdentityServiceServer::new(service.clone()))
        .add_service(MeshServiceServer::new(service))
        .serve_with_incoming(incoming);
    let mut running = JoinSet::new();
    running.spawn(async move { server.await.unwrap() });
    let mut accepted_so_far = 0;
    while let Some(mut connection) = connections.recv().await {
        counted.fetch_add(1, Relaxed);
        let (mut near, far) = tokio::io::duplex(64 << 10);
        running.spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut connection, &mut near).await;
        });
        let acceptor = acceptor.clone();
        let accepted = accepted.clone();
        accepted_so_far += 1;
        let connection = accepted_so_far;
        running.spawn(async move {
            if let Ok(stream) = acceptor.accept(far).await {
                let _ = accepted.send(TlsIo::new(stream, connection));
            }
        });
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
        let behaviour = self.behaviour.lock().unwrap();
        let Some(reason) = behaviour.refuses_as else {
            return Ok(());
        };
        let mut status = reason.status("refused by the fake");
        if let Some(wait) = behaviour.retry_after {
            let value = (wait.as_millis() as u64).into();
            status
                .metadata_mut()
                .insert(sidewind_api::reason::RETRY_AFTER_KEY, value);
        }
        Err(status)
    }

    /// What the control plane says of its clock.
    fn clock(&self) -> i64 {
        let ahead = self.behaviour.lock().unwrap().clock_ahead;
        ahead.map_or(0, |ahead| {
            sidewind_api::clock::unix_ms(self.simulated.now()) + 1000 * ahead
        })
    }

    fn issue(&self, csr: &[u8], id: &str) -> Response<v1::SvidResponse> {
        let clock = self.clock();
        let behaviour = self.behaviour.lock().unwrap();
        let end = self.simulated.now() + behaviour.svid_ttl;
        Response::new(v1::SvidResponse {
            certificate_chain: match behaviour.svids_begin_in {
                Some(wait) => self
                    .authority
                    .sign_from(csr, id, SystemTime::now() + wait, end),
                None => self.authority.sign(csr, id, end),
            },
            trust_bundles: vec![self.authority.bundle(behaviour.bundle_sequence)],
            version: "9.9.9".to_owned(),
            now_unix_ms: clock,
            task_identities: None,
        })
    }
}

fn peer<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let caller = request.extensions().get::<Caller>().unwrap();
    caller
        .peer
        .clone()
        .ok_or_else(|| Status::unauthenticated("no client certificate"))
}

/// The one nonce of a connection: evidence over it has come over that connection alone.
fn nonce<T>(request: &Request<T>) -> String {
    let caller = request.extensions().get::<Caller>().unwrap();
    format!("nonce-of-connection-{}", caller.connection)
}

/// Whether evidence that is signed for the occasion is signed for this one.
fn is_over(evidence: &Evidence, nonce: &str) -> bool {
    match evidence {
        Evidence::AwsIam(signed) => {
            let named = |header: &v1::HttpHeader| header.name == "x-sidewind-nonce";
            let header = signed.headers.iter().find(|header| named(header));
            header.is_some_and(|header| header.value == nonce)
        }
        Evidence::X509(proof) => proof.nonce == nonce,
        _ => true,
    }
}

#[tonic::async_trait]
impl IdentityService for Service {
    async fn attest(
        &self,
        request: Request<v1::AttestRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        if self.behaviour.lock().unwrap().retry_after.is_some() {
            let refused = self.check_refusal();
            refused.inspect_err(|_| drop(self.events.send(Seen::AttestationRefused)))?;
        }
        let nonce = nonce(&request);
        let request = request.into_inner();
        let token = match request.evidence {
            Some(Evidence::JoinToken(token)) => token,
            Some(evidence) => {
                let mut behaviour = self.behaviour.lock().unwrap();
                if !behaviour.takes_evidence || !is_over(&evidence, &nonce) {
                    let _ = self.events.send(Seen::AttestationRefused);
                    return Err(Status::permission_denied("the evidence is not good"));
                }
                behaviour.brought.push(evidence);
                behaviour.requests.push(request.csr.clone());
                drop(behaviour);
                let _ = self.events.send(Seen::Attested);
                return Ok(self.issue(&request.csr, WORKLOAD));
            }
            None => return Err(Status::invalid_argument("no evidence")),
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
        if self.behaviour.lock().unwrap().forgets {
            return Err(sidewind_api::Reason::NotRegistered.status("forgotten"));
        }
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
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        Ok(Response::new(v1::ChallengeResponse {
            nonce: nonce(&request),
            server_id: SERVER.to_owned(),
            version: "9.9.9".to_owned(),
        }))
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

    async fn issue_task_svid(
        &self,
        request: Request<v1::IssueTaskSvidRequest>,
    ) -> Result<Response<v1::SvidResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        let _ = self.events.send(Seen::Task(request.clone()));
        self.check_refusal()?;
        let id = TaskId::derive(&peer.id, &request.dag_id, &request.task_id).unwrap();
        let tasks_as = self.behaviour.lock().unwrap().tasks_as.clone();
        let id = tasks_as.unwrap_or_else(|| id.to_string());
        Ok(self.issue(&request.csr, &id))
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
        if self.behaviour.lock().unwrap().retry_after.is_some() {
            let refused = self.check_refusal();
            refused.inspect_err(|_| drop(self.events.send(Seen::StreamRefused)))?;
        }
        let answer = v1::ControlHello {
            now_unix_ms: self.clock(),
            version: "9.9.9".to_owned(),
            refused: vec!["port 1 is not yours".to_owned()],
            store_away: self.behaviour.lock().unwrap().store_away,
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
                    Some(ProxyKind::KnownBans(it)) => events.send(Seen::GaveBack(it)),
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
