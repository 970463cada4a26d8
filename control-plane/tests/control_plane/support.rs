//! A control plane, and a proxy's side of the API.

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use sidewind_api::v1::admin_service_client::AdminServiceClient;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::v1::mesh_service_client::MeshServiceClient;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{Reason, v1};
use sidewind_control_plane::issuance::authority::RootSource;
use sidewind_control_plane::issuance::authority::upstream::files::{Paths, UpstreamFiles};
use sidewind_control_plane::server::{
    BundleEndpoints, Limits, Server, Settings, ShutdownTrigger, StartError, shutdown,
};
use sidewind_control_plane::store::Location;
use sidewind_identity::authority::{RootAuthority, SigningAuthority};
use sidewind_identity::{PrivateKey, Svid, TrustBundle, TrustBundles, TrustDomain, peer_identity};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tower::service_fn;

pub(crate) const TRUST_DOMAIN: &str = "sidewind.local";
/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane in this process, on ports of the system's choice.
pub(crate) struct ControlPlane {
    pub(crate) client: Client,
    pub(crate) admin: SocketAddr,
    /// Where its bundle is served, by https_web first.
    pub(crate) bundle_endpoints: Vec<SocketAddr>,
    directory: Arc<tempfile::TempDir>,
    trigger: ShutdownTrigger,
    running: JoinHandle<Result<(), StartError>>,
}

pub(crate) fn settings(directory: &Path) -> Settings {
    Settings {
        state_dir: directory.join("state"),
        store: Location::StateDir,
        store_key: None,
        config: None,
        trust_domain: TrustDomain::parse(TRUST_DOMAIN).unwrap(),
        server_id: format!("sidewind://{TRUST_DOMAIN}"),
        listen: "127.0.0.1:0".parse().unwrap(),
        admin_listen: "127.0.0.1:0".parse().unwrap(),
        svid_ttl: Duration::from_secs(3600),
        jwt_ttl: Duration::from_secs(300),
        inbound_plaintext: v1::PlaintextMode::Permissive,
        root: RootSource::Generated,
        limits: Limits::default(),
        rotation_deadline: Duration::from_secs(3600),
        bundle_endpoints: BundleEndpoints::default(),
        trust_clock: false,
    }
}

/// A control plane that allows so many attestations from an address and certificates for a registration in
/// one second, and five times as many at once.
pub(crate) async fn limited(attest: u32, sign: u32) -> ControlPlane {
    let limits = Limits {
        attest_per_second: attest.try_into().unwrap(),
        sign_per_second: sign.try_into().unwrap(),
    };
    let directory = Arc::new(tempfile::tempdir().unwrap());
    ControlPlane::start_in(directory, |settings| settings.limits = limits).await
}

/// A root that is given as files.
pub(crate) fn root_in(directory: &Path, root: &RootAuthority) -> RootSource {
    let paths = Paths {
        certificate: directory.join("root.pem"),
        key: directory.join("root.key"),
        upstream_bundle: None,
    };
    write_root(&paths, root);
    RootSource::Upstream(Arc::new(UpstreamFiles::new(paths)))
}

/// A signing authority that is given as files, and the root above it.
pub(crate) fn signing_in(
    directory: &Path,
    signing: &SigningAuthority,
    root: &RootAuthority,
) -> RootSource {
    let bundle = directory.join("upstream.pem");
    std::fs::write(&bundle, root.certificate_pem()).unwrap();
    let paths = Paths {
        certificate: directory.join("signing.pem"),
        key: directory.join("signing.key"),
        upstream_bundle: Some(bundle),
    };
    write_pair(&paths, &signing.chain_pem(), signing.key());
    RootSource::Upstream(Arc::new(UpstreamFiles::new(paths)))
}

pub(crate) fn write_root(paths: &Paths, root: &RootAuthority) {
    write_pair(paths, &root.certificate_pem(), root.key());
}

fn write_pair(paths: &Paths, certificates: &str, key: &PrivateKey) {
    std::fs::write(&paths.certificate, certificates).unwrap();
    std::fs::write(&paths.key, key.to_pkcs8_pem().as_bytes()).unwrap();
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&paths.key, private).unwrap();
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), |_| {}).await
    }

    /// Starts with resources; `config()` is their directory.
    pub(crate) async fn start_with(resources: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("mesh.yaml"), resources).unwrap();
        Self::start_in(directory, |settings| settings.config = Some(config)).await
    }

    pub(crate) async fn start_in(
        directory: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = settings(directory.path());
        change(&mut settings);
        let server = Server::start(settings).await.unwrap();
        let address = server.grpc_address().unwrap();
        let admin = server.admin_address().unwrap();
        let bundle_endpoints = server.bundle_endpoint_addresses().unwrap();
        let (trigger, shutdown) = shutdown();
        Self {
            client: Client::new(address, &directory.path().join("state")),
            admin,
            bundle_endpoints,
            running: tokio::spawn(server.run(shutdown)),
            directory,
            trigger,
        }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config/mesh.yaml")
    }

    /// Stops it gracefully and gives its directory back for the next.
    pub(crate) async fn stop(self) -> Arc<tempfile::TempDir> {
        self.trigger.trigger();
        within(self.running).await.unwrap().unwrap();
        self.directory
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(self) -> Result<(), StartError> {
        within(self.running).await.unwrap()
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn abort(self) {
        self.running.abort();
    }

    /// The store, beside the control plane's own use of it.
    pub(crate) async fn database(&self) -> sqlx::SqlitePool {
        let database = self.directory.path().join("state/sidewind.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
        sqlx::SqlitePool::connect_with(options).await.unwrap()
    }

    /// What the audit holds of identities: event, outcome and SPIFFE ID of each record, the oldest first.
    pub(crate) async fn audit(&self) -> Vec<(String, String, Option<String>)> {
        let rows = sqlx::query_as(
            "SELECT event, outcome, spiffe_id FROM audit WHERE event NOT LIKE 'ca-%' ORDER BY id",
        );
        rows.fetch_all(&self.database().await).await.unwrap()
    }

    /// A page of the admin port: its status line and body.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        http_get(self.admin, path).await
    }

    /// Reads the metrics until a line is there.
    pub(crate) async fn metric(&self, line: &str) {
        until(async || {
            self.get("/metrics")
                .await
                .1
                .lines()
                .any(|known| known == line)
        })
        .await;
    }
}

/// Asks again until it is so.
pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    within(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub(crate) async fn http_get(address: SocketAddr, path: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Waits, but not for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("this took too long")
}

/// Everything that asks a control plane.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) bundles: Arc<TrustBundles>,
    state: PathBuf,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, state: &Path) -> Self {
        let pem = std::fs::read_to_string(state.join("trust-bundle.pem")).unwrap();
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
        Self {
            address,
            bundles: Arc::new(TrustBundle::from_pem(trust_domain, &pem).unwrap().into()),
            state: state.to_owned(),
        }
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.state.join("admin.sock")
    }

    pub(crate) async fn admin_service(&self) -> AdminServiceClient<Channel> {
        let path = self.admin_socket();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://sidewind.invalid");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        AdminServiceClient::new(channel)
    }

    /// A new join token.
    pub(crate) async fn token(&self, id: &str, services: &[&str]) -> String {
        let request = v1::CreateJoinTokenRequest {
            spiffe_id: id.to_owned(),
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        self.token_for(request).await.unwrap()
    }

    pub(crate) async fn token_for(
        &self,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<String, Status> {
        let mut admin = self.admin_service().await;
        Ok(admin.create_join_token(request).await?.into_inner().token)
    }

    pub(crate) async fn workloads(&self) -> Vec<v1::Workload> {
        let mut admin = self.admin_service().await;
        let answer = admin.list_workloads(v1::ListWorkloadsRequest {}).await;
        answer.unwrap().into_inner().workloads
    }

    pub(crate) fn anonymous_tls(&self) -> Arc<ClientConfig> {
        sidewind_identity::tls::anonymous_client_config(&self.bundles, &[b"h2"]).unwrap()
    }

    pub(crate) fn tls(&self, svid: &Svid) -> Arc<ClientConfig> {
        sidewind_identity::tls::client_config(svid, &self.bundles, &[b"h2"]).unwrap()
    }

    /// A connection of its own; fails when the handshake does.
    pub(crate) async fn channel(
        &self,
        tls: Arc<ClientConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        channel_to(self.address, tls).await
    }

    pub(crate) async fn identity_service(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel(self.anonymous_tls()).await.unwrap())
    }

    /// Attests with a token and a signing request.
    pub(crate) async fn attest(
        &self,
        token: &str,
        csr: Vec<u8>,
    ) -> Result<v1::SvidResponse, Status> {
        let mut service = self.identity_service().await;
        let response = service.attest(attest_request(token, csr)).await?;
        Ok(response.into_inner())
    }

    /// Renews over a connection of this SVID.
    pub(crate) async fn renew(
        &self,
        svid: &Svid,
        csr: Vec<u8>,
    ) -> Result<v1::SvidResponse, Status> {
        let channel = self.channel(self.tls(svid)).await.unwrap();
        let request = v1::RenewRequest {
            csr,
            version: "test".to_owned(),
        };
        let response = IdentityServiceClient::new(channel).renew(request).await?;
        Ok(response.into_inner())
    }

    /// A first SVID for an identity.
    pub(crate) async fn svid(&self, id: &str, services: &[&str]) -> Svid {
        let token = self.token(id, services).await;
        let key = PrivateKey::generate().unwrap();
        let response = self.attest(&token, key.csr_der().unwrap()).await.unwrap();
        svid_of(response, key)
    }

    /// A first SVID and a stream of it.
    pub(crate) async fn proxy(&self, id: &str, ports: Vec<v1::ServedPort>) -> Proxy {
        let services: Vec<&str> = ports.iter().map(|port| port.service.as_str()).collect();
        let services: Vec<&str> = services
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        let svid = self.svid(id, &services).await;
        self.stream(&svid, hello(ports)).await.unwrap()
    }

    /// A stream that has begun with this hello.
    pub(crate) async fn stream(&self, svid: &Svid, hello: v1::ProxyHello) -> Result<Proxy, Status> {
        self.stream_to(self.address, svid, hello).await
    }

    pub(crate) async fn stream_to(
        &self,
        address: SocketAddr,
        svid: &Svid,
        hello: v1::ProxyHello,
    ) -> Result<Proxy, Status> {
        let channel = channel_to(address, self.tls(svid)).await.unwrap();
        let (sender, receiver) = mpsc::channel(16);
        sender
            .send(from_proxy(FromProxy::Hello(hello)))
            .await
            .unwrap();
        let mut service = MeshServiceClient::new(channel);
        let stream = service.stream(ReceiverStream::new(receiver)).await?;
        Ok(Proxy {
            sender,
            inbound: stream.into_inner(),
            svid: svid.clone(),
        })
    }
}

async fn channel_to(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = service_fn(move |_| {
        let connector = TlsConnector::from(Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = sidewind_identity::tls::server_name();
            let stream = connector.connect(name, stream).await?;
            let server = peer_identity(stream.get_ref().1.peer_certificates());
            let expected = format!("spiffe://{TRUST_DOMAIN}/sidewind/control-plane");
            assert_eq!(server.unwrap().id.as_str(), expected);
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://sidewind.invalid");
    endpoint.connect_with_connector(connector).await
}

pub(crate) fn attest_request(token: &str, csr: Vec<u8>) -> v1::AttestRequest {
    let token = token.to_owned();
    v1::AttestRequest {
        csr,
        evidence: Some(Evidence::JoinToken(v1::JoinToken { token })),
        version: "test".to_owned(),
    }
}

pub(crate) fn svid_of(response: v1::SvidResponse, key: PrivateKey) -> Svid {
    let chain = response.certificate_chain.into_iter().map(Into::into);
    Svid::new(chain.collect(), key).unwrap()
}

/// Why a call was refused; panics when it was not.
pub(crate) fn refusal<T>(result: Result<T, Status>) -> (Reason, String) {
    match result {
        Ok(_) => panic!("the call was not refused"),
        Err(status) => {
            let reason = Reason::of(&status);
            (
                reason.unwrap_or_else(|| panic!("{status:?}")),
                status.message().to_owned(),
            )
        }
    }
}

pub(crate) fn hello(ports: Vec<v1::ServedPort>) -> v1::ProxyHello {
    v1::ProxyHello {
        version: "1.2.3".to_owned(),
        instance_id: format!("{:016x}", rand::random::<u64>()),
        address: String::new(),
        mesh_port: 15008,
        ports,
        workload_name: "workload".to_owned(),
        zone: String::new(),
        gateway: false,
    }
}

pub(crate) fn port(target_port: u32, service: &str) -> v1::ServedPort {
    v1::ServedPort {
        target_port,
        protocol: v1::Protocol::Http.into(),
        service: service.to_owned(),
        service_port: 0,
    }
}

pub(crate) fn from_proxy(message: FromProxy) -> v1::ProxyMessage {
    v1::ProxyMessage {
        message: Some(message),
    }
}

/// A proxy's end of a stream.
pub(crate) struct Proxy {
    pub(crate) sender: mpsc::Sender<v1::ProxyMessage>,
    pub(crate) inbound: Streaming<v1::ControlMessage>,
    pub(crate) svid: Svid,
}

impl Proxy {
    pub(crate) async fn subscribe(&self, destination: &str) {
        let destination = destination.to_owned();
        let message = FromProxy::Subscribe(v1::Subscribe { destination });
        self.sender.send(from_proxy(message)).await.unwrap();
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<Option<ToProxy>, Status> {
        let message = within(self.inbound.message()).await?;
        Ok(message.map(|message| message.message.expect("a message of a kind")))
    }

    /// The next message of a kind; others are passed over.
    pub(crate) async fn next_of<T>(&mut self, kind: impl Fn(ToProxy) -> Option<T>) -> T {
        loop {
            let message = self.next().await.unwrap().expect("the stream ended");
            if let Some(wanted) = kind(message) {
                return wanted;
            }
        }
    }

    pub(crate) async fn hello(&mut self) -> v1::ControlHello {
        self.next_of(|message| match message {
            ToProxy::Hello(hello) => Some(hello),
            _ => None,
        })
        .await
    }

    pub(crate) async fn policy(&mut self) -> v1::InboundPolicy {
        self.next_of(|message| match message {
            ToProxy::InboundPolicy(policy) => Some(policy),
            _ => None,
        })
        .await
    }

    pub(crate) async fn destination(&mut self) -> v1::DestinationUpdate {
        self.next_of(|message| match message {
            ToProxy::Destination(update) => Some(update),
            _ => None,
        })
        .await
    }

    /// The endpoints of the next answer, as `address:port`.
    pub(crate) async fn endpoints(&mut self) -> Vec<String> {
        let service = self.destination().await.service.expect("outside the mesh");
        let text = |endpoint: &v1::Endpoint| format!("{}:{}", endpoint.address, endpoint.port);
        service.endpoints.iter().map(text).collect()
    }

    /// Why the stream ends.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}
