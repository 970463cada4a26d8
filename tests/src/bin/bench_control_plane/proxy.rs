//! One simulated proxy: as much of a proxy as the control plane sees.
//!
//! Like the real one it attests on a connection without a certificate, opens its stream on one with it, pings every
//! five seconds, and waits longer after each failure. All proxies share one key, whose making is not what is measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use rustls_pki_types::CertificateDer;
use sidewind_api::v1;
use sidewind_api::v1::control_message::Message;
use sidewind_identity::{PrivateKey, Svid, TrustBundles, tls};
use tokio::net::TcpSocket;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsConnector;

use crate::grpc::{Connection, Failure, Stream};
use crate::tally::Tally;

const ALPN: &[&[u8]] = &[b"h2"];
/// As in the proxy, as are the waits after failures.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const CALL_TIME: Duration = Duration::from_secs(15);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const STABLE: Duration = Duration::from_secs(10);
const STREAM_WAITS: (f64, f64) = (0.2, 5.0);
const IDENTITY_WAITS: (f64, f64) = (0.5, 60.0);
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// What all proxies share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) server: SocketAddr,
    pub(crate) bundles: Arc<TrustBundles>,
    pub(crate) key: PrivateKey,
    pub(crate) csr: Vec<u8>,
    pub(crate) tally: Tally,
}

/// A proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    number: u32,
    common: Arc<Common>,
    /// Join tokens that were not used yet.
    tokens: Mutex<Vec<String>>,
    svid: Mutex<Option<Svid>>,
    /// The connection of its stream.
    connection: Mutex<Option<Connection>>,
}

impl Proxy {
    pub(crate) fn new(number: u32, common: Arc<Common>) -> Self {
        Self {
            number,
            common,
            tokens: Mutex::default(),
            svid: Mutex::default(),
            connection: Mutex::default(),
        }
    }

    /// Its SPIFFE ID.
    pub(crate) fn spiffe_id(&self) -> String {
        let domain = crate::server::TRUST_DOMAIN;
        format!("spiffe://{domain}/ns/bench/sa/proxy-{:05}", self.number)
    }

    /// Gives it evidence.
    pub(crate) fn give(&self, token: String) {
        lock(&self.tokens).push(token);
    }

    /// Forgets its certificate, as if it had ended: it must attest again.
    pub(crate) fn forget_svid(&self) {
        *lock(&self.svid) = None;
    }

    /// The connection of its stream, while that is open.
    pub(crate) fn connection(&self) -> Option<Connection> {
        lock(&self.connection).clone()
    }

    /// Stays connected until dropped: attests when it has no certificate, and keeps a stream open.
    pub(crate) async fn run(self: Arc<Self>) {
        let tally = &self.common.tally;
        let mut identity = Backoff::new(IDENTITY_WAITS);
        let mut stream = Backoff::new(STREAM_WAITS);
        loop {
            while lock(&self.svid).is_none() {
                match self.attest().await {
                    Ok(()) => identity.reset(),
                    Err(failure) => {
                        tally.failed(failure.reason);
                        tokio::time::sleep(identity.after(failure)).await;
                    }
                }
            }
            let opened = within(CALL_TIME, self.open_stream()).await;
            let failure = match opened {
                Err(failure) => failure,
                Ok(open) => {
                    let since = Instant::now();
                    tally.opened();
                    let failure = self.follow(open).await;
                    tally.closed();
                    *lock(&self.connection) = None;
                    if since.elapsed() >= STABLE {
                        stream.reset();
                    }
                    failure
                }
            };
            tally.failed(failure.reason);
            tokio::time::sleep(stream.after(failure)).await;
        }
    }

    /// Exchanges a token for a certificate.
    pub(crate) async fn attest(&self) -> Result<(), Failure> {
        let token = lock(&self.tokens).last().cloned();
        let request = v1::AttestRequest {
            csr: self.common.csr.clone(),
            evidence: Some(v1::attest_request::Evidence::JoinToken(v1::JoinToken {
                token: token.ok_or(Failure::of("no-token"))?,
            })),
            version: sidewind_api::VERSION.to_owned(),
        };
        let (connection, _) = self.connect(None).await?;
        let call = connection.call("IdentityService/Attest", &request);
        let answer: v1::SvidResponse = within(CALL_TIME, call).await?;
        lock(&self.tokens).pop();
        self.take(answer)
    }

    /// Has its key signed again, on the connection of its stream.
    pub(crate) async fn renew(&self) -> Result<(), Failure> {
        let connection = self.connection().ok_or(Failure::of("not-connected"))?;
        self.renew_on(&connection).await
    }

    /// Has its key signed again on a connection for that alone, as the real proxy does.
    pub(crate) async fn renew_anew(&self) -> Result<(), Failure> {
        let svid = lock(&self.svid).clone().ok_or(Failure::of("no-svid"))?;
        let (connection, _) = self.connect(Some(&svid)).await?;
        self.renew_on(&connection).await
    }

    async fn renew_on(&self, connection: &Connection) -> Result<(), Failure> {
        let request = v1::RenewRequest {
            csr: self.common.csr.clone(),
            version: sidewind_api::VERSION.to_owned(),
        };
        let call = connection.call("IdentityService/Renew", &request);
        let answer: v1::SvidResponse = within(CALL_TIME, call).await?;
        match answer.certificate_chain.is_empty() {
            true => Err(Failure::of("no-certificate")),
            false => Ok(()),
        }
    }

    fn take(&self, answer: v1::SvidResponse) -> Result<(), Failure> {
        let chain = answer.certificate_chain.into_iter();
        let chain = chain.map(CertificateDer::from).collect();
        let svid = Svid::new(chain, self.common.key.clone());
        *lock(&self.svid) = Some(svid.map_err(|_| Failure::of("bad-svid"))?);
        Ok(())
    }

    async fn open_stream(&self) -> Result<Stream, Failure> {
        let svid = lock(&self.svid).clone().ok_or(Failure::of("no-svid"))?;
        let (connection, pings) = self.connect(Some(&svid)).await?;
        let hello = v1::ProxyHello {
            version: sidewind_api::VERSION.to_owned(),
            instance_id: format!("instance-{:05}", self.number),
            address: self.source().to_string(),
            mesh_port: 15008,
            workload_name: format!("proxy-{:05}", self.number),
            ..v1::ProxyHello::default()
        };
        let first = v1::ProxyMessage {
            message: Some(v1::proxy_message::Message::Hello(hello)),
        };
        let stream = connection.stream("MeshService/Stream", &first, pings);
        let mut stream = stream.await?;
        let answer: v1::ControlMessage = stream.next().await?;
        if !matches!(answer.message, Some(Message::Hello(_))) {
            return Err(Failure::of("no-hello"));
        }
        *lock(&self.connection) = Some(connection);
        Ok(stream)
    }

    /// Reads a stream to its end, and gives back why it ended.
    async fn follow(&self, mut stream: Stream) -> Failure {
        let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                message = stream.next() => message.map(Some),
                _ = pings.tick() => Ok(None),
            };
            let outcome = match event {
                Ok(Some(message)) => {
                    self.note(message);
                    Ok(())
                }
                Ok(None) => within(CALL_TIME, stream.ping()).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = outcome {
                return failure;
            }
        }
    }

    fn note(&self, message: v1::ControlMessage) {
        let tally = &self.common.tally;
        match message.message {
            Some(Message::Bans(bans)) => tally.bans(bans.version),
            Some(Message::TrustBundles(message)) => {
                let sequences = message.bundles.iter().map(|bundle| bundle.sequence);
                tally.bundle(sequences.max().unwrap_or_default());
            }
            _ => {}
        }
    }

    async fn connect(&self, svid: Option<&Svid>) -> Result<(Connection, h2::PingPong), Failure> {
        self.common.tally.attempt();
        let (server, bundles) = (self.common.server, &self.common.bundles);
        let config = match svid {
            Some(svid) => tls::client_config(svid, bundles, ALPN),
            None => tls::anonymous_client_config(bundles, ALPN),
        };
        let config = config.map_err(|_| Failure::of("bad-svid"))?;
        let socket = TcpSocket::new_v4().map_err(|_| Failure::of("no-socket"))?;
        let source = SocketAddr::from((self.source(), 0));
        socket.bind(source).map_err(|_| Failure::of("no-port"))?;
        let connecting = async {
            let connected = socket.connect(server).await;
            let tcp = connected.map_err(|_| Failure::of("not-connected"))?;
            tcp.set_nodelay(true)
                .map_err(|_| Failure::of("no-socket"))?;
            let connector = TlsConnector::from(config);
            let tls = connector.connect(tls::server_name(), tcp).await;
            tls.map_err(|_| Failure::of("handshake-failed"))
        };
        Connection::open(within(HANDSHAKE_TIME, connecting).await?).await
    }

    /// An address of its own: what strangers may cost is counted by address.
    fn source(&self) -> Ipv4Addr {
        let first = u32::from(Ipv4Addr::new(127, 64, 0, 1));
        Ipv4Addr::from(first + self.number)
    }
}

/// The proxy's waits after failures.
struct Backoff {
    first: f64,
    longest: f64,
    next: f64,
}

impl Backoff {
    fn new((first, longest): (f64, f64)) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    fn after(&mut self, failure: Failure) -> Duration {
        if failure.retry_after.is_some() {
            self.reset();
        }
        let wait = self.next;
        self.next = (wait * 2.0).min(self.longest);
        let mut rng = rand::rng();
        let own = Duration::from_secs_f64(wait * rng.random_range(0.8..=1.2));
        let asked = failure.retry_after.unwrap_or_default();
        own.max(
            asked
                .min(LONGEST_ASKED)
                .mul_f64(rng.random_range(1.0..=1.5)),
        )
    }

    fn reset(&mut self) {
        self.next = self.first;
    }
}

async fn within<T>(
    time: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = tokio::time::timeout(time, work).await;
    done.unwrap_or(Err(Failure::of("timed-out")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
