//! Identities and servers for tests, over real loopback sockets.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use sidewind_api::BanList;
use sidewind_identity::authority::{SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{
    ClientAuth, PrivateKey, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain, tls,
};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Census, HandshakeGate, Proofs, ServerSettings, TunnelStream, accept};
use crate::control::MeshIdentity;

/// ALPN as Sidewind offers it.
pub(crate) const ALPN: &[&[u8]] = &[b"sidewind/1", b"h2"];

/// How long certificates live unless a test says so.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A trust domain with one signing CA.
pub(crate) struct Realm {
    signing: SigningAuthority,
    bundles: Arc<TrustBundles>,
}

impl Realm {
    pub(crate) fn new() -> Self {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let (year, now) = (Duration::from_secs(86_400 * 365), SystemTime::now());
        let root = generate_root(&trust_domain, year, now).unwrap();
        let signing = root
            .issue_intermediate(Duration::from_secs(86_400 * 30), now)
            .unwrap();
        let der = vec![root.certificate().to_vec()];
        let mut bundles = TrustBundles::new();
        bundles.insert(TrustBundle::from_der(trust_domain, 1, der).unwrap());
        Self {
            signing,
            bundles: Arc::new(bundles),
        }
    }

    /// The realm that most tests share.
    pub(crate) fn shared() -> &'static Self {
        static REALM: OnceLock<Realm> = OnceLock::new();
        REALM.get_or_init(Self::new)
    }

    pub(crate) fn identity(&self, name: &str, generation: u64) -> Arc<MeshIdentity> {
        self.identity_with_alpn(name, generation, ALPN)
    }

    pub(crate) fn identity_with_alpn(
        &self,
        name: &str,
        generation: u64,
        alpn: &[&[u8]],
    ) -> Arc<MeshIdentity> {
        self.sign(&self.bundles, name, generation, alpn, HOUR)
    }

    /// An identity whose certificate lives as long as that.
    pub(crate) fn identity_for(
        &self,
        name: &str,
        generation: u64,
        ttl: Duration,
    ) -> Arc<MeshIdentity> {
        self.sign(&self.bundles, name, generation, ALPN, ttl)
    }

    /// An identity of `other` that believes what this realm believes.
    pub(crate) fn identity_of(
        &self,
        other: &Self,
        name: &str,
        generation: u64,
        ttl: Duration,
    ) -> Arc<MeshIdentity> {
        other.sign(&self.bundles, name, generation, ALPN, ttl)
    }

    /// An identity that believes nobody of its own trust domain, as that of a distrusted one is not believed.
    pub(crate) fn distrusting(&self, name: &str, generation: u64) -> Arc<MeshIdentity> {
        let trust_domain = spiffe_id(name).trust_domain().clone();
        let empty = TrustBundle::from_der(trust_domain, 2, Vec::new()).unwrap();
        let bundles = Arc::new(TrustBundles::from(empty));
        self.sign(&bundles, name, generation, ALPN, HOUR)
    }

    /// An identity of a day that believes what these realms' roots vouch for.
    pub(crate) fn believing(
        &self,
        name: &str,
        generation: u64,
        realms: &[&Self],
    ) -> Arc<MeshIdentity> {
        let roots = realms.iter().flat_map(|realm| realm.bundles.iter());
        let roots = roots.flat_map(|bundle| bundle.authorities());
        let roots = roots.map(|root| root.certificate().to_vec()).collect();
        let trust_domain = spiffe_id(name).trust_domain().clone();
        let bundle = TrustBundle::from_der(trust_domain, generation, roots).unwrap();
        let bundles = Arc::new(TrustBundles::from(bundle));
        self.sign(&bundles, name, generation, ALPN, 24 * HOUR)
    }

    fn sign(
        &self,
        bundles: &Arc<TrustBundles>,
        name: &str,
        generation: u64,
        alpn: &[&[u8]],
        ttl: Duration,
    ) -> Arc<MeshIdentity> {
        let id = spiffe_id(name);
        let key = PrivateKey::generate().unwrap();
        let template = SvidTemplate {
            id: id.clone(),
            ttl,
            dns_names: Vec::new(),
        };
        let csr = key.csr_der().unwrap();
        let chain = self
            .signing
            .sign(&csr, &template, SystemTime::now())
            .unwrap();
        let svid = Svid::new(chain, key).unwrap();
        Arc::new(MeshIdentity {
            id,
            not_after: svid.not_after(),
            generation,
            bundles: bundles.clone(),
            tasks: None,
            client_tls: tls::client_config(&svid, bundles, alpn).unwrap(),
            server_tls: tls::server_config(&svid, bundles, alpn, ClientAuth::Required).unwrap(),
            serial_hex: svid.serial_hex().to_owned(),
        })
    }
}

pub(crate) fn spiffe_id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org/ns/test/sa/{name}")).unwrap()
}

/// Bans for a census of its own.
#[derive(Clone)]
pub(crate) struct Bouncer {
    bans: watch::Sender<Arc<BanList>>,
    identity: watch::Sender<Option<Arc<MeshIdentity>>>,
    proofs: Proofs,
}

impl Default for Bouncer {
    fn default() -> Self {
        Self {
            bans: watch::Sender::new(Arc::default()),
            identity: watch::Sender::new(None),
            proofs: Proofs::default(),
        }
    }
}

impl Bouncer {
    pub(crate) fn census(&self) -> Census {
        let identity = self.identity.subscribe();
        Census::new(self.bans.subscribe(), identity, self.proofs.clone())
    }

    /// Believes those that this identity does.
    pub(crate) fn believe(&self, identity: &Arc<MeshIdentity>) {
        self.identity.send_replace(Some(identity.clone()));
    }

    pub(crate) fn ban(&self, banned: &str) {
        let list = BanList::new(1, [banned.parse().unwrap()]);
        self.bans.send_replace(Arc::new(list));
    }
}

/// A mesh server whose state the test sees.
#[derive(Clone)]
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) gate: HandshakeGate,
    pub(crate) accepted: Rc<Cell<usize>>,
    pub(crate) open: Rc<Cell<usize>>,
    pub(crate) refused: Rc<RefCell<Vec<String>>>,
    pub(crate) bouncer: Bouncer,
    pub(crate) census: Census,
    drain: watch::Sender<u64>,
}

impl TestServer {
    /// Serves streams with `handler` on a free loopback port until the runtime ends.
    pub(crate) async fn start<H, F>(
        identity: Arc<MeshIdentity>,
        settings: ServerSettings,
        handler: H,
    ) -> Self
    where
        H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bouncer = Bouncer::default();
        let server = Self {
            census: bouncer.census(),
            bouncer,
            address: listener.local_addr().unwrap(),
            gate: HandshakeGate::new(8, 8),
            accepted: Rc::default(),
            open: Rc::default(),
            refused: Rc::default(),
            drain: watch::channel(0).0,
        };
        let this = server.clone();
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (server, identity) = (this.clone(), Arc::clone(&identity));
                let handler = handler.clone();
                tokio::task::spawn_local(async move {
                    match accept(tcp, &identity, &server.gate, &settings, &server.census).await {
                        Ok(connection) => {
                            server.accepted.set(server.accepted.get() + 1);
                            server.open.set(server.open.get() + 1);
                            let mut drain = server.drain.subscribe();
                            let drained = async move {
                                let _ = drain.changed().await;
                            };
                            let _ = connection.serve(drained, handler).await;
                            server.open.set(server.open.get() - 1);
                        }
                        Err(error) => server.refused.borrow_mut().push(error.cause().to_owned()),
                    }
                });
            }
        });
        server
    }

    /// Asks the clients of all connections to go; later connections are served again.
    pub(crate) fn drain(&self) {
        self.drain.send_modify(|drains| *drains += 1);
    }
}

/// Answers every request with 200 and its path.
pub(crate) async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    if let Ok(mut body) = respond.send_response(Response::new(()), false) {
        let _ = body.send_data(path.into(), true);
    }
}

/// Answers CONNECT with 200 and gives the tunnel.
pub(crate) fn into_tunnel(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> TunnelStream {
    let send = respond.send_response(Response::new(()), false).unwrap();
    TunnelStream::new(request.into_body(), send, None)
}

/// Waits until `condition` holds; the tasks that make it so run meanwhile.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}
