//! Foreign trust domains: their bundles fetched from real servers, and the own one served to others.

use crate::stub::{Reply, Stub};
use crate::support::{ControlPlane, Proxy, hello, svid_of, until, within};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use sidewind_api::v1;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_control_plane::server::{BundleEndpoints, WebEndpoint};
use sidewind_identity::authority::generate_root;
use sidewind_identity::bundle::document::BundleDocument;
use sidewind_identity::jwt::bundle::JwtBundle;
use sidewind_identity::{PrivateKey, TrustBundle, TrustDomain};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PARTNER: &str = "partner.example";
const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A root of the partner.
fn root() -> Vec<u8> {
    let root = generate_root(
        &domain(PARTNER),
        Duration::from_secs(86_400),
        SystemTime::now(),
    );
    root.unwrap().certificate().to_vec()
}

fn document(sequence: u64, roots: &[Vec<u8>]) -> String {
    let x509 = TrustBundle::from_der(domain(PARTNER), sequence, roots.to_vec()).unwrap();
    let jwt = JwtBundle::new(domain(PARTNER), Vec::new()).unwrap();
    let document = BundleDocument::new(x509, jwt, Duration::from_secs(300));
    document.unwrap().to_json()
}

/// A partner's bundle endpoint of profile https_web, and a control plane that federates with it.
struct Story {
    partner: Stub,
    control_plane: ControlPlane,
}

impl Story {
    async fn begin(answer: impl Fn() -> Reply + Send + Sync + 'static) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let ca_file = directory.path().join("partner-ca.pem");
        let partner = Stub::start(&ca_file, move |_| answer()).await;
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let written = web(&partner.url(), &ca_file);
        std::fs::write(config.join("mesh.yaml"), written).unwrap();
        let control_plane =
            ControlPlane::start_in(directory, |settings| settings.config = Some(config)).await;
        Self {
            partner,
            control_plane,
        }
    }

    async fn restart(self) -> Self {
        let directory = self.control_plane.stop().await;
        let config = directory.path().join("config");
        let control_plane =
            ControlPlane::start_in(directory, |settings| settings.config = Some(config));
        Self {
            control_plane: control_plane.await,
            ..self
        }
    }

    fn serve(&self, text: String) {
        self.partner.set(move |_| Reply::ok(text.clone()));
    }

    async fn relation(&self) -> v1::FederationRelation {
        relation(&self.control_plane).await
    }

    async fn has(&self, sequence: u64) {
        until(async || self.relation().await.sequence == Some(sequence)).await;
    }

    async fn last_error(&self, expected: &str) {
        let mut last = String::new();
        within(async {
            while !last.contains(expected) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                last = self.relation().await.last_error;
            }
        })
        .await;
    }
}

async fn relation(control_plane: &ControlPlane) -> v1::FederationRelation {
    let mut admin = control_plane.client.admin_service().await;
    let listed = admin.list_federation(v1::ListFederationRequest {}).await;
    listed.unwrap().into_inner().relations.remove(0)
}

fn web(url: &str, ca_file: &Path) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: {{ name: partner }}
spec:
  trustDomain: {PARTNER}
  url: {url}/bundle
  profile: https_web
  caFile: {}
  refreshInterval: 1s
",
        ca_file.display()
    )
}

/// A proxy whose join token federates with these, and the bundles that its certificate came with.
async fn proxy(
    control_plane: &ControlPlane,
    federates_with: &[&str],
) -> (Proxy, Vec<v1::TrustBundle>) {
    let client = &control_plane.client;
    let request = v1::CreateJoinTokenRequest {
        spiffe_id: ORDERS.to_owned(),
        federates_with: federates_with
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        ..Default::default()
    };
    let token = client.token_for(request).await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let response = client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    let bundles = response.trust_bundles.clone();
    let svid = svid_of(response, key);
    let proxy = client.stream(&svid, hello(Vec::new())).await.unwrap();
    (proxy, bundles)
}

/// Waits until a proxy is sent bundles that are so.
async fn sent(proxy: &mut Proxy, is_so: impl Fn(&[v1::TrustBundle]) -> bool) {
    let bundles = |message| match message {
        ToProxy::TrustBundles(bundles) => Some(bundles.bundles),
        _ => None,
    };
    while !is_so(&proxy.next_of(bundles).await) {}
}

fn of_partner(bundles: &[v1::TrustBundle]) -> Option<&v1::TrustBundle> {
    bundles.iter().find(|bundle| bundle.trust_domain == PARTNER)
}

#[tokio::test]
async fn a_foreign_bundle_reaches_those_who_federate_and_is_withdrawn_with_its_document() {
    let (one, two) = (root(), root());
    let first = document(3, std::slice::from_ref(&one));
    let story = Story::begin(move || Reply::ok(first.clone())).await;
    story.has(3).await;
    let (mut friend, came_with) = proxy(&story.control_plane, &[PARTNER]).await;
    let authorities = &of_partner(&came_with).unwrap().authorities;
    assert_eq!(authorities, std::slice::from_ref(&one));
    let (mut stranger, came_with) = proxy(&story.control_plane, &[]).await;
    assert_eq!(of_partner(&came_with), None);
    sent(&mut friend, |bundles| {
        of_partner(bundles).is_some_and(|it| it.sequence == 3)
    })
    .await;
    sent(&mut stranger, |bundles| bundles.len() == 1).await;

    story.serve(document(4, &[one, two.clone()]));
    sent(&mut friend, |bundles| {
        of_partner(bundles).is_some_and(|it| it.sequence == 4 && it.authorities.contains(&two))
    })
    .await;
    // An empty bundle says that nobody is believed, and is no reason to keep the old one.
    story.serve(document(5, &[]));
    sent(&mut friend, |bundles| {
        of_partner(bundles).is_some_and(|it| it.sequence == 5 && it.authorities.is_empty())
    })
    .await;
    std::fs::write(story.control_plane.config(), "").unwrap();
    sent(&mut friend, |bundles| of_partner(bundles).is_none()).await;
    let audit = story.control_plane.audit().await;
    let taken = audit
        .iter()
        .filter(|(event, outcome, _)| event == "federation-bundle" && outcome == "granted");
    assert_eq!(taken.count(), 3, "{audit:?}");
}

#[tokio::test]
async fn a_lower_sequence_is_refused_with_an_alarm_after_a_restart_too_until_it_is_forgotten() {
    let (one, two) = (root(), root());
    let first = document(5, &[one]);
    let story = Story::begin(move || Reply::ok(first.clone())).await;
    story.has(5).await;
    let story = story.restart().await;
    story.serve(document(4, std::slice::from_ref(&two)));
    story.last_error("sequence 4 is older than 5").await;
    story.has(5).await;
    let metrics = story.control_plane.get("/metrics").await.1;
    let alarms =
        format!("sidewind_federation_alarms_total{{trust_domain=\"{PARTNER}\",kind=\"rollback\"}}");
    assert!(metrics.contains(&alarms), "{metrics}");
    let refused = |audit: &[(String, String, Option<String>)]| {
        audit
            .iter()
            .filter(|(_, outcome, _)| outcome == "rollback")
            .count()
    };
    let asked = story.partner.asked().len();
    until(async || story.partner.asked().len() > asked + 2).await;
    let audit = story.control_plane.audit().await;
    assert_eq!(
        refused(&audit),
        1,
        "the same document again is no news: {audit:?}"
    );

    let mut admin = story.control_plane.client.admin_service().await;
    let forget = v1::ForgetTrustDomainRequest {
        trust_domain: PARTNER.to_owned(),
    };
    let told = admin.forget_trust_domain(forget.clone()).await.unwrap_err();
    assert!(told.message().contains("take that out first"), "{told:?}");
    let configured = std::fs::read_to_string(story.control_plane.config()).unwrap();
    std::fs::write(story.control_plane.config(), "").unwrap();
    until(async || story.relation().await.url.is_empty()).await;
    admin.forget_trust_domain(forget).await.unwrap();
    std::fs::write(story.control_plane.config(), configured).unwrap();
    until(async || {
        let listed = admin.list_federation(v1::ListFederationRequest {}).await;
        let relations = listed.unwrap().into_inner().relations;
        relations.first().is_some_and(|it| it.sequence == Some(4))
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_has_our_own_key_is_refused() {
    let one = root();
    let first = document(1, &[one]);
    let story = Story::begin(move || Reply::ok(first.clone())).await;
    story.has(1).await;
    let own = story
        .control_plane
        .client
        .bundles
        .get(&domain("sidewind.local"))
        .unwrap()
        .clone();
    // What we publish ourselves, under their name: without the URI name that would give it away.
    let ours = BundleDocument::new(
        own,
        JwtBundle::new(domain("sidewind.local"), Vec::new()).unwrap(),
        Duration::from_secs(300),
    );
    let ours = ours
        .unwrap()
        .to_json()
        .replace("\"spiffe_sequence\":0", "\"spiffe_sequence\":9");
    story.serve(ours);
    // Our root names our trust domain, so it is no authority of theirs, and what is left is an empty bundle.
    story.has(9).await;
    let relation = story.relation().await;
    assert_eq!(relation.x509_authorities, 0, "{relation:?}");
    let metrics = story.control_plane.get("/metrics").await.1;
    assert!(metrics.contains("kind=\"element\"} "), "{metrics}");
}

#[tokio::test]
async fn redirects_are_followed_to_https_alone_and_neither_in_circles_nor_for_ever() {
    let one = root();
    let text = document(2, &[one]);
    let story = Story::begin(|| Reply::status(404, "")).await;
    story.last_error("answered with status 404").await;
    let url = story.partner.url();
    let redirect = |to: String| Reply {
        status: 307,
        location: Some(to),
        body: Vec::new(),
    };
    let user = url.replace("https://", "https://me@");
    for (to, expected) in [
        (
            url.replace("https://", "http://"),
            "must begin with https://",
        ),
        (user, "must have no user"),
        (format!("{url}/bundle"), "redirects in a circle"),
    ] {
        story.partner.set(move |_| redirect(to.clone()));
        story.last_error(expected).await;
    }
    story
        .partner
        .set(move |asked| redirect(format!("{}x", asked.path)));
    story.last_error("more than 3 redirects").await;
    story.partner.set(move |asked| match asked.path.as_str() {
        "/bundle" => redirect("/moved?v=2".to_owned()),
        _ => Reply::ok(text.clone()),
    });
    story.has(2).await;
    // The place that it moved to is not remembered.
    let asked = story.partner.asked().len();
    until(async || story.partner.asked().len() > asked + 2).await;
    assert!(
        story.partner.asked()[asked..]
            .iter()
            .any(|it| it.path == "/bundle")
    );
}

#[tokio::test]
async fn what_is_too_large_or_no_bundle_leaves_the_present_one_and_is_told() {
    let one = root();
    let first = document(1, &[one]);
    let story = Story::begin(move || Reply::ok(first.clone())).await;
    story.has(1).await;
    for (body, expected) in [
        ("x".repeat(300 * 1024), "more than 262144 bytes"),
        ("{}".to_owned(), "'keys' must be an array"),
        ("<html>".to_owned(), "cannot be read"),
    ] {
        story.serve(body);
        story.last_error(expected).await;
        assert_eq!(story.relation().await.sequence, Some(1));
    }
}

#[tokio::test]
async fn an_endpoint_that_is_silent_for_long_raises_the_alarm_and_the_bundle_stays() {
    let one = root();
    let first = document(1, &[one]);
    let story = Story::begin(move || Reply::ok(first.clone())).await;
    story.has(1).await;
    let fresh = format!("sidewind_federation_bundle_stale{{trust_domain=\"{PARTNER}\"}} 0");
    story.control_plane.metric(&fresh).await;
    story.partner.set(|_| Reply::status(503, ""));
    let stale = fresh.replace("} 0", "} 1");
    story.control_plane.metric(&stale).await;
    let relation = story.relation().await;
    assert!(
        relation.stale && relation.last_error.contains("503"),
        "{relation:?}"
    );
    assert_eq!((relation.sequence, relation.x509_authorities), (Some(1), 1));
    let (_, came_with) = proxy(&story.control_plane, &[PARTNER]).await;
    assert!(of_partner(&came_with).is_some());
    let again = document(1, &[root()]);
    story.serve(again);
    story.control_plane.metric(&fresh).await;
}

/// The status, content type and body of a bundle endpoint.
async fn get(
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    method: &str,
    path: &str,
) -> (u16, String, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("bundle.example").unwrap();
    let stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "bundle.example")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let kind = response
        .headers()
        .get("content-type")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

fn web_certificate(directory: &Path) -> (WebEndpoint, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["bundle.example".to_owned()]).unwrap();
    let (certificate, key) = (directory.join("web.pem"), directory.join("web.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let endpoint = WebEndpoint {
        listen: "127.0.0.1:0".parse().unwrap(),
        certificate,
        key,
    };
    (endpoint, Arc::new(tls))
}

#[tokio::test]
async fn the_own_bundle_is_served_by_both_profiles_with_roots_and_token_keys() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let (endpoint, web_tls) = web_certificate(directory.path());
    let path = directory.path().to_owned();
    let control_plane = ControlPlane::start_in(directory, |settings| {
        settings.bundle_endpoints = BundleEndpoints {
            web: Some(endpoint),
            spiffe: Some("127.0.0.1:0".parse().unwrap()),
        };
    })
    .await;
    let [web, spiffe] = control_plane.bundle_endpoints[..] else {
        panic!("two endpoints");
    };
    let bundles = &control_plane.client.bundles;
    let spiffe_tls = sidewind_identity::tls::anonymous_client_config(bundles, &[b"http/1.1"]);
    let spiffe_tls = spiffe_tls.unwrap();
    let now = SystemTime::now();
    for (address, tls) in [(web, &web_tls), (spiffe, &spiffe_tls)] {
        let (status, kind, body) = get(address, tls.clone(), "GET", "/").await;
        assert_eq!((status, kind.as_str()), (200, "application/json"));
        let document =
            BundleDocument::parse(domain("sidewind.local"), body.as_bytes(), now).unwrap();
        assert_eq!(document.findings(), []);
        assert_eq!(
            (document.sequence(), document.refresh_hint().as_secs()),
            (2, 300)
        );
        let own = bundles.get(&domain("sidewind.local")).unwrap();
        assert_eq!(document.x509().authorities(), own.authorities());
        let keys: serde_json::Value = serde_json::from_str(&body).unwrap();
        for key in keys["keys"].as_array().unwrap() {
            let is_root = key["use"] == "x509-svid";
            assert_eq!(key.get("kid").is_some(), !is_root, "{key}");
            assert_eq!(key.get("x5c").is_some(), is_root, "{key}");
        }
        assert!(!document.jwt().authorities().is_empty());
        assert_eq!(get(address, tls.clone(), "POST", "/").await.0, 405);
        assert_eq!(get(address, tls.clone(), "GET", "/other").await.0, 404);
    }
    // A new certificate is taken without a restart.
    let (_, new_tls) = web_certificate(&path);
    within(async {
        loop {
            let stream = TcpStream::connect(web).await.unwrap();
            let name = rustls_pki_types::ServerName::try_from("bundle.example").unwrap();
            let connected = TlsConnector::from(new_tls.clone())
                .connect(name, stream)
                .await;
            if connected.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_that_asks_for_the_bundle_without_end_is_turned_away_and_counted() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let control_plane = ControlPlane::start_in(directory, |settings| {
        settings.bundle_endpoints.spiffe = "127.0.0.1:0".parse().ok();
    })
    .await;
    let address = control_plane.bundle_endpoints[0];
    let refused = "sidewind_bundle_endpoint_requests_total{profile=\"https_spiffe\",outcome=\"rate-limited\"}";
    until(async || {
        for _ in 0..100 {
            drop(TcpStream::connect(address).await.unwrap());
        }
        control_plane.get("/metrics").await.1.contains(refused)
    })
    .await;
}

/// A control plane of another trust domain that serves its bundle by https_spiffe.
async fn partner() -> (ControlPlaneOf, SocketAddr) {
    use sidewind_control_plane::server::{Server, shutdown};
    let directory = tempfile::tempdir().unwrap();
    let mut settings = crate::support::settings(directory.path());
    settings.trust_domain = domain(PARTNER);
    settings.bundle_endpoints.spiffe = "127.0.0.1:0".parse().ok();
    let server = Server::start(settings).await.unwrap();
    let address = server.bundle_endpoint_addresses().unwrap()[0];
    let (trigger, shutdown) = shutdown();
    let running = tokio::spawn(server.run(shutdown));
    let partner = ControlPlaneOf {
        directory,
        _trigger: trigger,
        running,
    };
    (partner, address)
}

struct ControlPlaneOf {
    directory: tempfile::TempDir,
    _trigger: sidewind_control_plane::server::ShutdownTrigger,
    running: tokio::task::JoinHandle<Result<(), sidewind_control_plane::server::StartError>>,
}

fn spiffe(address: SocketAddr, id: &str, bootstrap: &Path) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: {{ name: partner }}
spec:
  trustDomain: {PARTNER}
  url: https://{address}/
  profile: https_spiffe
  endpointSpiffeId: {id}
  bootstrapBundleFile: {}
  refreshInterval: 1s
",
        bootstrap.display()
    )
}

#[tokio::test]
async fn a_bundle_is_fetched_by_spiffe_from_the_endpoint_of_that_id_and_no_other() {
    let (partner, address) = partner().await;
    let bootstrap = partner.directory.path().join("state/trust-bundle.pem");
    let id = format!("spiffe://{PARTNER}/sidewind/control-plane");
    let other = format!("spiffe://{PARTNER}/sidewind/other");
    let story = ControlPlane::start_with(&spiffe(address, &other, &bootstrap)).await;
    let told = format!("is {id}, and not {other}");
    until(async || relation(&story).await.last_error.contains(&told)).await;
    assert_eq!(relation(&story).await.sequence, None);
    std::fs::write(story.config(), spiffe(address, &id, &bootstrap)).unwrap();
    until(async || relation(&story).await.sequence == Some(2)).await;
    // Once a bundle was fetched, it and not the bootstrap bundle is what the endpoint is verified with.
    std::fs::write(&bootstrap, "nothing of use").unwrap();
    let heard = relation(&story).await.confirmed_at_unix;
    until(async || relation(&story).await.confirmed_at_unix > heard).await;
    assert_eq!(relation(&story).await.last_error, "");
    partner.running.abort();
    until(async || relation(&story).await.stale).await;
    assert_eq!(relation(&story).await.sequence, Some(2));
}

#[tokio::test]
async fn an_impostor_with_the_right_id_of_another_root_is_no_endpoint() {
    let (_impostor, address) = partner().await;
    let (honest, _) = partner().await;
    let bootstrap = honest.directory.path().join("state/trust-bundle.pem");
    let id = format!("spiffe://{PARTNER}/sidewind/control-plane");
    let story = ControlPlane::start_with(&spiffe(address, &id, &bootstrap)).await;
    until(async || {
        relation(&story)
            .await
            .last_error
            .contains("invalid peer certificate")
    })
    .await;
    assert_eq!(relation(&story).await.sequence, None);
}
