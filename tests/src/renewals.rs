//! Many identities that are renewed all the time, at whichever control plane answers.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use sidewind_api::v1::admin_service_client::AdminServiceClient;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, Svid, TrustBundle, TrustBundles, TrustDomain};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::mesh::TRUST_DOMAIN;

/// How long one try may take: a killed process answers nothing, a slow machine late.
const TRY_TIME: Duration = Duration::from_secs(5);
/// How long to wait before the next control plane is asked.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// The control planes, and what was seen of them.
#[derive(Debug)]
pub struct Issuers {
    addresses: Vec<SocketAddr>,
    bundles: Arc<TrustBundles>,
    seen: Mutex<Seen>,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Serial numbers of all certificates.
    pub serials: HashSet<String>,
    /// Serial numbers that came a second time.
    pub twice: Vec<String>,
    /// Certificates renewed in time.
    pub renewed: usize,
    /// Tries that failed, which others made good.
    pub failed_tries: usize,
    /// Renewals that no control plane gave in time, each with the last reason.
    pub missed: Vec<String>,
    /// The longest time from the first try to a certificate.
    pub slowest: Duration,
}

impl Issuers {
    /// Control planes that share a trust domain.
    ///
    /// # Panics
    /// When the roots cannot be read.
    pub fn new(addresses: Vec<SocketAddr>, trust_bundle: &str) -> Arc<Self> {
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).expect("a constant");
        let bundle = TrustBundle::from_pem(trust_domain, trust_bundle).expect("roots in PEM");
        Arc::new(Self {
            addresses,
            bundles: Arc::new(bundle.into()),
            seen: Mutex::default(),
        })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// One use of a token, at the control plane with this number.
    ///
    /// # Errors
    /// Why there is no certificate.
    pub async fn attest(&self, token: &str, at: usize) -> Result<Svid, Status> {
        let key = key();
        let token = token.to_owned();
        let request = v1::AttestRequest {
            csr: csr(&key),
            evidence: Some(Evidence::JoinToken(v1::JoinToken { token })),
            version: "test".to_owned(),
        };
        let tls = sidewind_identity::tls::anonymous_client_config(&self.bundles, &[b"h2"]);
        let tls = tls.map_err(|error| Status::internal(error.to_string()))?;
        let attest = async {
            let mut service = IdentityServiceClient::new(self.channel(at, tls).await?);
            Ok(service.attest(request).await?.into_inner())
        };
        self.take(in_time(attest).await?, key)
    }

    /// Renews an identity in an even rhythm until a time, beginning at a point of its own in the first interval.
    pub async fn keep_renewing(
        self: Arc<Self>,
        mut svid: Svid,
        interval: Duration,
        patience: Duration,
        until: Instant,
    ) {
        let mut due = Instant::now() + interval.mul_f64(rand::random());
        let mut at = rand::random_range(0..self.addresses.len());
        while due < until {
            tokio::time::sleep_until(due).await;
            let deadline = due + patience;
            loop {
                match self.renew(&svid, at).await {
                    Ok(renewed) => {
                        let mut seen = self.lock();
                        seen.renewed += 1;
                        seen.slowest = seen.slowest.max(due.elapsed());
                        drop(seen);
                        svid = renewed;
                        break;
                    }
                    Err(status) if Instant::now() < deadline => {
                        self.lock().failed_tries += 1;
                        let _ = status;
                        at = (at + 1) % self.addresses.len();
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                    Err(status) => {
                        let why = format!("{}: {:?} {status}", svid.id(), Reason::of(&status));
                        self.lock().missed.push(why);
                        break;
                    }
                }
            }
            due += interval;
        }
    }

    async fn renew(&self, svid: &Svid, at: usize) -> Result<Svid, Status> {
        let key = key();
        let request = v1::RenewRequest {
            csr: csr(&key),
            version: "test".to_owned(),
        };
        let tls = sidewind_identity::tls::client_config(svid, &self.bundles, &[b"h2"]);
        let tls = tls.map_err(|error| Status::internal(error.to_string()))?;
        let renew = async {
            let mut service = IdentityServiceClient::new(self.channel(at, tls).await?);
            Ok(service.renew(request).await?.into_inner())
        };
        self.take(in_time(renew).await?, key)
    }

    fn take(&self, response: v1::SvidResponse, key: PrivateKey) -> Result<Svid, Status> {
        let chain = response.certificate_chain.into_iter().map(Into::into);
        let svid = Svid::new(chain.collect(), key);
        let svid = svid.map_err(|error| Status::internal(error.to_string()))?;
        let serial = svid.serial_hex().to_owned();
        let mut seen = self.lock();
        if !seen.serials.insert(serial.clone()) {
            seen.twice.push(serial);
        }
        Ok(svid)
    }

    async fn channel(&self, at: usize, tls: Arc<rustls::ClientConfig>) -> Result<Channel, Status> {
        let address = self.addresses[at % self.addresses.len()];
        let connector = service_fn(move |_| {
            let connector = TlsConnector::from(Arc::clone(&tls));
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = sidewind_identity::tls::server_name();
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://sidewind.invalid");
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|error| Status::unavailable(error.to_string()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Join tokens for as many identities, made by the control plane of a state directory.
///
/// # Panics
/// When they are refused.
pub async fn tokens(state: &Path, number: usize) -> Vec<String> {
    let path: PathBuf = state.join("admin.sock");
    let connector = service_fn(move |_| {
        let path = path.clone();
        async { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://sidewind.invalid");
    let channel = endpoint.connect_with_connector(connector).await;
    let admin = AdminServiceClient::new(channel.expect("the control plane runs"));
    let mut tokens = Vec::with_capacity(number);
    for number in 0..number {
        let request = v1::CreateJoinTokenRequest {
            spiffe_id: format!("spiffe://{TRUST_DOMAIN}/ns/load/sa/workload-{number}"),
            ..v1::CreateJoinTokenRequest::default()
        };
        let token = admin.clone().create_join_token(request).await;
        tokens.push(token.expect("a token").into_inner().token);
    }
    tokens
}

/// Uses every token several times at once over all control planes, and gives back the certificates: of one token
/// one at most.
///
/// # Panics
/// When one token gave two certificates.
pub async fn use_tokens(issuers: &Arc<Issuers>, tokens: &[String], uses: usize) -> Vec<Svid> {
    let mut svids = Vec::with_capacity(tokens.len());
    // As many at once as a control plane takes.
    for some in tokens.chunks(16) {
        let mut attests = JoinSet::new();
        for token in some {
            for at in 0..uses {
                let (issuers, token) = (Arc::clone(issuers), token.clone());
                attests.spawn(async move { (issuers.attest(&token, at).await.ok(), token) });
            }
        }
        let mut used = HashSet::new();
        for (svid, token) in attests.join_all().await {
            if let Some(svid) = svid {
                assert!(used.insert(token), "a token was used twice");
                svids.push(svid);
            }
        }
    }
    svids
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let called = tokio::time::timeout(TRY_TIME, call).await;
    called.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

fn key() -> PrivateKey {
    PrivateKey::generate().expect("the system gives random bytes")
}

fn csr(key: &PrivateKey) -> Vec<u8> {
    key.csr_der().expect("a key that was just made")
}
