//! The endpoint over connections in memory, in simulated time, with an authority and a signer of the tests' own.

mod bounds;
mod jwt;
mod sds;
mod sockets;
mod x509;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use sidewind_api::{BanList, v1};
use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::jwt::bundle::{JwtBundle, JwtBundles};
use sidewind_identity::jwt::signer::JwtSigner;
use sidewind_identity::{PrivateKey, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint as ClientEndpoint};
use tonic::{Request, Status};

use super::connections;
use super::gate::Gate;
use super::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use super::state::{self, Sources};
use super::tokens::Mint;
use crate::control::{ControlError, ControlStatus, Credentials, Simulated};
use crate::telemetry::metrics::{Format, Metrics};

const OWN: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// In simulated time; what has to happen happens at once.
const PATIENCE: Duration = Duration::from_secs(4);

type Intercepted = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;
type Client = SpiffeWorkloadApiClient<Intercepted>;

/// A trust domain.
struct Authority {
    root: RootAuthority,
    signing: SigningAuthority,
    jwt: JwtSigner,
}

impl Authority {
    fn new(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        let yesterday = SystemTime::now() - 24 * HOUR;
        let root = generate_root(&trust_domain, 1000 * HOUR, yesterday).unwrap();
        let signing = root.issue_intermediate(900 * HOUR, yesterday).unwrap();
        let jwt = signer();
        Self { root, signing, jwt }
    }

    fn svid(&self, id: &str, ttl: Duration) -> Svid {
        let key = PrivateKey::generate().unwrap();
        let template = SvidTemplate {
            id: SpiffeId::parse(id).unwrap(),
            ttl,
            dns_names: Vec::new(),
        };
        let csr = key.csr_der().unwrap();
        let chain = self
            .signing
            .sign(&csr, &template, SystemTime::now())
            .unwrap();
        Svid::new(chain, key).unwrap()
    }

    fn bundle(&self) -> TrustBundle {
        let root = self.root.certificate().to_vec();
        TrustBundle::from_der(self.root.trust_domain().clone(), 1, vec![root]).unwrap()
    }

    fn jwt_bundle(&self) -> JwtBundle {
        JwtBundle::new(
            self.root.trust_domain().clone(),
            vec![self.jwt.authority().clone()],
        )
        .unwrap()
    }
}

fn signer() -> JwtSigner {
    JwtSigner::new(
        &PrivateKey::generate().unwrap(),
        SystemTime::now() + 100 * HOUR,
    )
    .unwrap()
}

/// The control plane's part of JWT-SVIDs.
struct FakeMinter {
    authority: Arc<Authority>,
    minted: AtomicUsize,
    /// What it answers instead.
    refuses: std::sync::Mutex<Option<Status>>,
}

#[tonic::async_trait]
impl Mint for FakeMinter {
    async fn mint(&self, audience: &[String]) -> Result<v1::MintJwtSvidResponse, ControlError> {
        tokio::task::yield_now().await;
        if let Some(status) = self.refuses.lock().unwrap().clone() {
            return Err(ControlError::Refused {
                address: "https://control-plane:15010".to_owned(),
                status,
            });
        }
        self.minted.fetch_add(1, Ordering::Relaxed);
        let id = SpiffeId::parse(OWN).unwrap();
        let signed = self
            .authority
            .jwt
            .sign(&id, audience, 5 * MINUTE, SystemTime::now());
        let signed = signed.unwrap();
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            since.as_secs() as i64
        };
        Ok(v1::MintJwtSvidResponse {
            token: signed.token.clone(),
            spiffe_id: OWN.to_owned(),
            expires_at_unix: seconds(signed.expires),
            issued_at_unix: seconds(signed.issued_at),
        })
    }
}

/// An endpoint, and what it depends on.
struct World {
    authority: Arc<Authority>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    status: watch::Sender<ControlStatus>,
    bans: watch::Sender<Arc<BanList>>,
    time: Simulated,
    minter: Arc<FakeMinter>,
    metrics: Arc<Metrics>,
    gate: Gate,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl World {
    /// Without an identity.
    fn waiting() -> Self {
        let authority = Arc::new(Authority::new("sidewind.local"));
        let (credentials, following_credentials) = watch::channel(None);
        let (status, following_status) = watch::channel(ControlStatus::default());
        let (bans, following_bans) = watch::channel(Arc::default());
        let time = Simulated::new();
        let (present, following) = state::follow(Sources {
            credentials: following_credentials,
            status: following_status,
            bans: following_bans,
            clock: time.clock(),
        });
        tokio::spawn(following);
        let minter = Arc::new(FakeMinter {
            authority: Arc::clone(&authority),
            minted: AtomicUsize::new(0),
            refuses: std::sync::Mutex::default(),
        });
        let metrics = Arc::new(Metrics::new());
        let routes = super::routes(&present, minter.clone()).unwrap();
        let (stop, stopped) = watch::channel(false);
        Self {
            authority,
            credentials,
            status,
            bans,
            time,
            minter,
            gate: Gate::new(routes, Arc::clone(&metrics)),
            metrics,
            stop,
            stopped,
        }
    }

    /// With an SVID for an hour.
    fn new() -> Self {
        let world = Self::waiting();
        world.rotate(HOUR);
        world
    }

    /// A new SVID; the bundles stay.
    fn rotate(&self, ttl: Duration) -> Svid {
        let svid = self.authority.svid(OWN, ttl);
        let present = self.credentials.borrow().clone();
        let (bundles, jwt_bundles) = present.map_or_else(
            || {
                let bundles = TrustBundles::from(self.authority.bundle());
                let jwt = JwtBundles::from_iter([self.authority.jwt_bundle()]);
                (Arc::new(bundles), Arc::new(jwt))
            },
            |present| (present.bundles.clone(), present.jwt_bundles.clone()),
        );
        self.publish(svid.clone(), bundles, jwt_bundles);
        svid
    }

    fn publish(&self, svid: Svid, bundles: Arc<TrustBundles>, jwt_bundles: Arc<JwtBundles>) {
        self.credentials.send_replace(Some(Arc::new(Credentials {
            svid,
            bundles,
            jwt_bundles,
        })));
    }

    /// The same SVID with other bundles.
    fn change_bundles(&self, bundles: TrustBundles, jwt_bundles: JwtBundles) {
        let present = self.credentials.borrow().clone().unwrap();
        self.publish(
            present.svid.clone(),
            Arc::new(bundles),
            Arc::new(jwt_bundles),
        );
    }

    fn ban(&self, banned: &[&str]) {
        let banned = banned.iter().map(|text| text.parse().unwrap());
        self.bans.send_replace(Arc::new(BanList::new(1, banned)));
    }

    fn refuse(&self, reason: &str) {
        self.status
            .send_modify(|status| status.identity_refusal = Some(reason.to_owned()));
    }

    /// The far end of a new connection.
    fn dial(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(connections::serve(
            far,
            self.gate.clone(),
            self.stopped.clone(),
        ));
        near
    }

    async fn channel(&self) -> Channel {
        let mut connection = Some(TokioIo::new(self.dial()));
        let connector = tower::service_fn(move |_: http::Uri| {
            let connection = connection.take();
            async move { connection.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        ClientEndpoint::from_static("http://workload-api")
            .connect_with_connector(connector)
            .await
            .unwrap()
    }

    /// A client that says that it means a Workload Endpoint.
    async fn client(&self) -> Client {
        SpiffeWorkloadApiClient::with_interceptor(self.channel().await, secured)
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let page = self.metrics.encode(Format::PrometheusText);
        let found = page.lines().find_map(|each| each.strip_prefix(line));
        found.map(|value| value.trim().parse().unwrap())
    }

    async fn wait_for_metric(&self, line: &str, value: f64) {
        let found = tokio::time::timeout(10 * MINUTE, async {
            while self.metric(line).unwrap_or_default() < value {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("{line}: {:?}", self.metric(line)));
    }
}

fn secured(mut request: Request<()>) -> Result<Request<()>, Status> {
    let value = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    Ok(request)
}

/// The next message of a stream, which has one.
async fn next<T>(stream: &mut tonic::Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message());
    let message = message.await.expect("nothing arrives")?;
    Ok(message.expect("the stream has ended"))
}

/// Whether nothing arrives on a stream for a while.
async fn is_quiet<T>(stream: &mut tonic::Streaming<T>) -> bool {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .is_err()
}
