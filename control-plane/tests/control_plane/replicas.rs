//! Several control planes on one PostgreSQL database.

use crate::postgres::PostgresServer;
use crate::support::{
    Client, ControlPlane, TRUST_DOMAIN, hello, port, refusal, root_in, svid_of, until, within,
};
use sidewind_api::v1::ban::Subject;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::{Reason, v1};
use sidewind_control_plane::issuance::authority::RootSource;
use sidewind_control_plane::issuance::authority::upstream::{Offer, Upstream, UpstreamError};
use sidewind_control_plane::store::{Location, StoreKey};
use sidewind_identity::authority::{SigningAuthority, generate_root};
use sidewind_identity::{PrivateKey, TrustDomain};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";

async fn replica(server: &PostgresServer) -> ControlPlane {
    let store = Location::parse(&server.url()).unwrap();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    ControlPlane::start_in(directory, |settings| settings.store = store).await
}

async fn query(server: &PostgresServer, statement: &'static str) -> Vec<String> {
    let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
    sqlx::query_scalar(statement)
        .fetch_all(&pool)
        .await
        .unwrap()
}

fn csr(key: &PrivateKey) -> Vec<u8> {
    key.csr_der().unwrap()
}

#[tokio::test]
async fn replicas_that_start_at_once_have_one_root() {
    let server = PostgresServer::start().await;
    let (one, two) = tokio::join!(replica(&server), replica(&server));
    let roots = |client: &Client| {
        let bundles = &client.bundles;
        let domain = sidewind_identity::TrustDomain::parse("sidewind.local").unwrap();
        bundles.get(&domain).unwrap().to_pem()
    };
    assert_eq!(roots(&one.client), roots(&two.client));
}

#[tokio::test]
async fn of_a_hundred_uses_of_a_token_over_two_replicas_one_gets_the_certificate() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let token = one.client.token(ORDERS, &["orders.data"]).await;
    let mut attests = JoinSet::new();
    for number in 0..100 {
        let client = if number % 2 == 0 { &one } else { &two }.client.clone();
        let token = token.clone();
        attests.spawn(async move {
            let key = PrivateKey::generate().unwrap();
            client.attest(&token, csr(&key)).await
        });
    }
    let (granted, refused): (Vec<_>, Vec<_>) = within(attests.join_all())
        .await
        .into_iter()
        .partition(Result::is_ok);
    assert_eq!((granted.len(), refused.len()), (1, 99));
    for result in refused {
        let (reason, message) = refusal(result);
        let allowed = [Reason::JoinTokenUsed, Reason::Overloaded];
        assert!(allowed.contains(&reason), "{reason:?}: {message}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_by_a_replica_that_did_not_issue_it() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let first = one.client.svid(ORDERS, &["orders.data"]).await;
    let mut svid = first.clone();
    let mut serials = BTreeSet::from([first.serial_hex().to_owned()]);
    for number in 0..20 {
        let client = if number % 2 == 0 { &two } else { &one }.client.clone();
        let key = PrivateKey::generate().unwrap();
        let response = client.renew(&svid, csr(&key)).await.unwrap();
        svid = svid_of(response, key);
        assert!(serials.insert(svid.serial_hex().to_owned()));
    }
    // What it is registered for goes with it.
    let mut proxy = two
        .client
        .stream(&svid, hello(vec![port(8080, "orders.data")]))
        .await
        .unwrap();
    assert!(proxy.hello().await.refused.is_empty());
}

#[tokio::test]
async fn a_service_that_is_registered_at_one_replica_belongs_to_the_mesh_at_all() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    assert!(worker.destination().await.service.is_none());
    one.client.svid(ORDERS, &["orders.data"]).await;
    let known = worker.destination().await.service.unwrap();
    assert!(known.endpoints.is_empty());
}

#[tokio::test]
async fn a_workload_of_one_replica_is_in_discovery_at_the_other_until_it_leaves() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let orders = one
        .client
        .proxy(ORDERS, vec![port(8080, "orders.data")])
        .await;
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    while worker.endpoints().await != ["127.0.0.1:8080"] {}
    drop(orders);
    while !worker.endpoints().await.is_empty() {}
}

#[tokio::test]
async fn a_workload_that_changes_replicas_again_and_again_stays_in_discovery() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    let ports = hello(vec![port(8080, "orders.data")]);
    let mut stream = one.client.stream(&svid, ports.clone()).await.unwrap();
    let (mut at_one, mut at_two) = tokio::join!(
        one.client.proxy(WORKER, vec![]),
        two.client.proxy(WORKER, vec![])
    );
    for worker in [&mut at_one, &mut at_two] {
        worker.subscribe("orders.data:8080").await;
        while worker.endpoints().await != ["127.0.0.1:8080"] {}
    }
    let owners = "SELECT replica FROM workloads WHERE spiffe_id LIKE '%/orders'";
    let mut owner = query(&server, owners).await.remove(0);
    for number in 0..6 {
        let to = if number % 2 == 0 { &two } else { &one };
        let next = to.client.stream(&svid, ports.clone()).await.unwrap();
        until(async || {
            let now = query(&server, owners).await.remove(0);
            std::mem::replace(&mut owner, now.clone()) != now
        })
        .await;
        drop(std::mem::replace(&mut stream, next));
    }
    let other = one.client.svid(ORDERS, &["orders.data"]).await;
    let mut other_port = port(8081, "orders.data");
    other_port.service_port = 8080;
    let _other = one
        .client
        .stream(&other, hello(vec![other_port]))
        .await
        .unwrap();
    for worker in [&mut at_one, &mut at_two] {
        let both = BTreeSet::from(["127.0.0.1:8080".to_owned(), "127.0.0.1:8081".to_owned()]);
        while BTreeSet::from_iter(worker.endpoints().await) != both {}
    }
}

#[tokio::test]
async fn without_the_store_renewals_go_on_and_first_certificates_wait() {
    let mut server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let token = one.client.token(WORKER, &[]).await;
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    let stranger = two.client.svid(WORKER, &[]).await;
    server.stop();

    let key = PrivateKey::generate().unwrap();
    let response = one.client.renew(&svid, csr(&key)).await.unwrap();
    let renewed = svid_of(response, key);
    let key = PrivateKey::generate().unwrap();
    let (reason, _) = refusal(one.client.attest(&token, csr(&key)).await);
    assert_eq!(reason, Reason::StoreUnavailable);
    // It is not known whether this one was registered, which is no refusal for good.
    let (reason, _) = refusal(one.client.renew(&stranger, csr(&key)).await);
    assert_eq!(reason, Reason::StoreUnavailable);
    one.metric("sidewind_store_up 0").await;

    server.start_again().await;
    one.metric("sidewind_store_up 1").await;
    let key = PrivateKey::generate().unwrap();
    one.client.attest(&token, csr(&key)).await.unwrap();
    one.client.renew(&stranger, csr(&key)).await.unwrap();
    // What was issued meanwhile is written, once.
    let serial = renewed.serial_hex().to_owned();
    until(async || {
        let serials = query(
            &server,
            "SELECT serial FROM audit WHERE event = 'renew' AND outcome = 'granted'",
        )
        .await;
        serials.iter().filter(|known| **known == serial).count() == 1
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_alone_loses_the_store_takes_no_workload_out_of_discovery() {
    let server = PostgresServer::start().await;
    let mut way = Way::to(&server);
    let store = Location::parse(&way.url()).unwrap();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let one = ControlPlane::start_in(directory, |settings| settings.store = store).await;
    let two = replica(&server).await;
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    // One process, wherever its stream is.
    let hello = hello(vec![port(8080, "orders.data")]);
    let ports = || hello.clone();
    let mut orders = one.client.stream(&svid, ports()).await.unwrap();
    assert!(!orders.hello().await.store_away);
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    while worker.endpoints().await != ["127.0.0.1:8080"] {}
    two.metric("sidewind_replicas 2").await;

    way.cut();
    two.metric("sidewind_silent_replicas 1").await;
    two.metric("sidewind_unconfirmed_workloads 1").await;
    let mut other = two.client.proxy(WORKER, vec![]).await;
    other.subscribe("orders.data:8080").await;
    assert_eq!(other.endpoints().await, ["127.0.0.1:8080"]);
    // It goes on serving its own, and says to who comes that others would serve better.
    let key = PrivateKey::generate().unwrap();
    let renewed = one.client.renew(&svid, csr(&key)).await.unwrap();
    let renewed = svid_of(renewed, key);
    let mut again = one.client.stream(&renewed, ports()).await.unwrap();
    assert!(again.hello().await.store_away);

    // The proxy of the workload does as it is told. The stream that it leaves takes nothing with it.
    let mut moved = two.client.stream(&svid, ports()).await.unwrap();
    assert!(!moved.hello().await.store_away);
    two.metric("sidewind_unconfirmed_workloads 0").await;
    drop((orders, again));
    way.mend();
    two.metric("sidewind_silent_replicas 0").await;
    two.metric("sidewind_replicas 2").await;
    one.metric("sidewind_store_up 1").await;
    let mut at_one = one.client.proxy(WORKER, vec![]).await;
    at_one.subscribe("orders.data:8080").await;
    while at_one.endpoints().await != ["127.0.0.1:8080"] {}
    drop(moved);
    while !worker.endpoints().await.is_empty() {}
    while !at_one.endpoints().await.is_empty() {}
}

/// The way of one replica to the database, which can be cut.
struct Way {
    directory: tempfile::TempDir,
    to: std::path::PathBuf,
    carrying: JoinSet<()>,
}

impl Way {
    fn to(server: &PostgresServer) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let to = server.socket();
        let mut way = Self {
            directory,
            to,
            carrying: JoinSet::new(),
        };
        way.mend();
        way
    }

    fn url(&self) -> String {
        let directory = self.directory.path().display();
        format!("postgres://postgres@localhost/postgres?host={directory}")
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join(self.to.file_name().unwrap())
    }

    fn cut(&mut self) {
        self.carrying = JoinSet::new();
        std::fs::remove_file(self.socket()).unwrap();
    }

    fn mend(&mut self) {
        let listener = tokio::net::UnixListener::bind(self.socket()).unwrap();
        let to = self.to.clone();
        self.carrying.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let to = to.clone();
                connections.spawn(async move {
                    let mut far = tokio::net::UnixStream::connect(to).await.unwrap();
                    // An end is an end, whichever side makes it.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
    }
}

#[tokio::test]
async fn the_workloads_of_a_replica_that_died_stay_until_they_are_elsewhere() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    // One process, wherever its stream is.
    let hello = hello(vec![port(8080, "orders.data")]);
    let ports = || hello.clone();
    let _orders = one.client.stream(&svid, ports()).await.unwrap();
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    while worker.endpoints().await != ["127.0.0.1:8080"] {}
    two.metric("sidewind_replicas 2").await;
    one.abort();
    two.metric("sidewind_silent_replicas 1").await;
    two.metric("sidewind_replicas 1").await;
    two.metric("sidewind_workloads 2").await;
    let orders = two.client.stream(&svid, ports()).await.unwrap();
    // Nothing is left of the other one.
    two.metric("sidewind_silent_replicas 0").await;
    two.metric("sidewind_unconfirmed_workloads 0").await;
    drop(orders);
    while !worker.endpoints().await.is_empty() {}
}

#[tokio::test]
async fn a_replica_that_is_stopped_says_so_and_is_not_taken_for_one_that_died() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    two.metric("sidewind_replicas 2").await;
    one.stop().await;
    two.metric("sidewind_replicas 1").await;
    let left = query(&server, "SELECT id FROM replicas").await;
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn a_workload_whose_proxy_is_at_another_replica_is_explained_by_what_is_known_of_it_here() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let orders = one.client.proxy(ORDERS, vec![]).await;
    let explain = async |replica: &ControlPlane| {
        let request = v1::ExplainRequest {
            peer: ORDERS.to_owned(),
            from: WORKER.to_owned(),
            port: 0,
        };
        let mut admin = replica.client.admin_service().await;
        let answer = within(admin.explain(request)).await.ok()?.into_inner();
        Some(answer.explanations[0].findings.join("\n"))
    };
    until(async || {
        let there = explain(&two).await.unwrap_or_default();
        there.contains("is connected to replica")
    })
    .await;
    let (here, there) = (explain(&one).await.unwrap(), explain(&two).await.unwrap());
    let owner = query(&server, "SELECT replica FROM workloads")
        .await
        .remove(0);
    assert!(here.contains("has not said which trust bundle"), "{here}");
    assert!(!here.contains(&owner), "{here}");
    assert!(
        there.contains(&format!("is connected to replica {owner}")),
        "{there}"
    );
    // What only the other one can know.
    for unknown in ["has not said", "not connected", "has list"] {
        assert!(!there.contains(unknown), "{unknown}: {there}");
    }
    for known in ["ends in", "may call it: no AuthorizationPolicy"] {
        assert!(there.contains(known), "{known}: {there}");
    }
    drop(orders);
}

/// A root in files, which does not answer any more once it is told so.
#[derive(Debug)]
struct Hanging {
    files: Arc<dyn Upstream>,
    hangs: AtomicBool,
    asked: Semaphore,
}

#[tonic::async_trait]
impl Upstream for Hanging {
    async fn offer(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Arc<Offer>, UpstreamError> {
        if self.hangs.load(Ordering::Relaxed) {
            self.asked.add_permits(1);
            std::future::pending::<()>().await;
        }
        self.files.offer(trust_domain, now).await
    }

    async fn issue(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, UpstreamError> {
        self.files.issue(lifetime, now).await
    }

    fn name(&self) -> String {
        self.files.name()
    }
}

#[tokio::test]
async fn a_ban_reaches_the_proxies_of_another_replica_within_a_second_whatever_that_waits_for() {
    let server = PostgresServer::start().await;
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let year = Duration::from_secs(365 * 86_400);
    let root = generate_root(&trust_domain, year, SystemTime::now()).unwrap();
    let directories = [(); 2].map(|()| Arc::new(tempfile::tempdir().unwrap()));
    let sources = directories.each_ref().map(|it| root_in(it.path(), &root));
    let [RootSource::Upstream(of_one), RootSource::Upstream(of_two)] = sources else {
        panic!("files are an upstream");
    };
    let of_two = Arc::new(Hanging {
        files: of_two,
        hangs: AtomicBool::new(false),
        asked: Semaphore::new(0),
    });
    let [at_one, at_two] = directories;
    let location = || Location::parse(&server.url()).unwrap();
    let one = ControlPlane::start_in(at_one, |settings| {
        (settings.store, settings.root) = (location(), RootSource::Upstream(of_one));
    });
    let one = one.await;
    let upstream = Arc::clone(&of_two);
    let two = ControlPlane::start_in(at_two, |settings| {
        (settings.store, settings.root) = (location(), RootSource::Upstream(upstream));
    });
    let two = two.await;
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    of_two.hangs.store(true, Ordering::Relaxed);
    drop(within(of_two.asked.acquire()).await.unwrap());

    let mut admin = one.client.admin_service().await;
    let begun = Instant::now();
    for number in 0..BANS {
        let ban = v1::Ban {
            subject: Some(Subject::SpiffeId(format!("{ORDERS}-{number}"))),
            ..v1::Ban::default()
        };
        let request = v1::SetBanRequest {
            ban: Some(ban),
            lift: false,
        };
        let version = within(admin.set_ban(request))
            .await
            .unwrap()
            .into_inner()
            .version;
        let bans = |message| match message {
            ToProxy::Bans(bans) => Some(bans.version),
            _ => None,
        };
        while worker.next_of(bans).await < version {}
    }
    // The numbers of changes are read every two seconds anyhow, and the bans every five.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(BANS), "{took:?} for {BANS} bans");
}

const BANS: u64 = 12;

/// A certificate authority of a database's, and the certificate and key of its server for a name.
fn certificates_for(name: &str, authority: &str) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, authority);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&server_key, &issuer).unwrap().pem();
    [authority, certificate, server_key.serialize_pem()]
}

#[tokio::test]
async fn a_database_is_reached_over_tls_and_only_where_its_certificate_is_good() {
    let [authority, certificate, key] = certificates_for("localhost", "ours");
    let [stranger, ..] = certificates_for("localhost", "another");
    let server = PostgresServer::start_with_tls(&certificate, &key).await;
    let directory = tempfile::tempdir().unwrap();
    for (file, pem) in [("ca.pem", &authority), ("stranger.pem", &stranger)] {
        std::fs::write(directory.path().join(file), pem).unwrap();
    }
    let port = server.tls_port().unwrap();
    let url = |host: &str, mode: &str, file: &str| {
        let file = directory.path().join(file);
        format!(
            "postgres://postgres:canary@{host}:{port}/postgres?sslmode={mode}&sslrootcert={}",
            file.display()
        )
    };
    for (host, mode, file, expected) in [
        ("localhost", "verify-full", "stranger.pem", "UnknownIssuer"),
        ("localhost", "verify-ca", "stranger.pem", "UnknownIssuer"),
        // Its certificate is for another name.
        ("127.0.0.1", "verify-full", "ca.pem", "not valid for name"),
        ("localhost", "verify-full", "none.pem", "No such file"),
        ("localhost", "disable", "ca.pem", "no encryption"),
    ] {
        let own = tempfile::tempdir().unwrap();
        let mut settings = crate::support::settings(own.path());
        settings.store = Location::parse(&url(host, mode, file)).unwrap();
        let started = sidewind_control_plane::server::Server::start(settings).await;
        let error = sidewind_control_plane::telemetry::chain(&started.unwrap_err());
        assert!(error.contains(expected), "{host} {mode} {file}: {error}");
        assert!(!error.contains("canary"), "{error}");
    }
    let store = Location::parse(&url("localhost", "verify-full", "ca.pem")).unwrap();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let one = ControlPlane::start_in(directory, |settings| settings.store = store).await;
    one.client.svid(ORDERS, &[]).await;
    // Both kinds of connection, the pool's and the one that listens.
    let plain = "SELECT a.query FROM pg_stat_activity a LEFT JOIN pg_stat_ssl s USING (pid)
                 WHERE a.client_port > 0 AND NOT coalesce(s.ssl, false)";
    assert!(query(&server, plain).await.is_empty());
    let listening = "SELECT a.query FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)
                     WHERE a.client_port > 0 AND s.ssl AND a.query LIKE 'LISTEN%'";
    until(async || query(&server, listening).await.len() == 1).await;
}

#[tokio::test]
async fn keys_in_a_shared_store_are_sealed_and_every_replica_needs_the_key() {
    let server = PostgresServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, [7; 32]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
    let location = || Location::parse(&server.url()).unwrap();
    let one = ControlPlane::start_in(Arc::new(tempfile::tempdir().unwrap()), |settings| {
        settings.store = location();
        settings.store_key = Some(StoreKey::read(&file).unwrap());
    })
    .await;
    one.client.svid(ORDERS, &[]).await;
    let plain = query(
        &server,
        "SELECT role FROM authorities WHERE private_key IS NOT NULL
         AND substring(private_key FROM 1 FOR 4) <> 'swk1'",
    )
    .await;
    assert!(plain.is_empty(), "{plain:?}");
    let mut settings = crate::support::settings(directory.path());
    settings.store = location();
    let error = sidewind_control_plane::server::Server::start(settings)
        .await
        .unwrap_err();
    assert!(error.is_usage());
    assert!(error.to_string().contains("--store-key-file"), "{error}");
}
