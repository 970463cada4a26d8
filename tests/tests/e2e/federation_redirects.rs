//! A bundle endpoint outside does not choose whom the control plane talks to: its redirects lead no closer than the
//! address that the operator named.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sidewind_identity::bundle::document::BundleDocument;
use sidewind_identity::jwt::bundle::JwtBundle;
use sidewind_identity::{TrustBundle, TrustDomain};
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::Mesh;
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

/// Where the partner's endpoint is: an address of the world, by a name and by itself.
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NAME: &str = "bundles.partner.example";
/// Another server of the partner.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const PORT: u16 = 8443;
const PLAIN_PORT: u16 = 8080;
/// What the control plane's own host serves for itself alone.
const INSIDE_PORT: u16 = 9443;

const FORBIDDEN: &str = "where nobody outside may send this control plane";

/// A control plane, and a partner whose endpoint redirects from each path to another place.
struct Story {
    mesh: Mesh,
    _endpoint: Process,
    partner: Host,
    inside: Vec<TcpListener>,
}

impl Story {
    fn begin() -> Self {
        let mut mesh = Mesh::plan().start();
        let partner = mesh.outsider("partner");
        let lan = mesh.lan();
        lan.add_address(&partner, ENDPOINT);
        lan.add_address(&partner, ELSEWHERE);
        lan.name(NAME, ENDPOINT);
        let own = &mesh.control_plane.host().place;
        let inside = ["127.0.0.1", "[::1]", "0.0.0.0"].map(|address| {
            // Not the same port: the last is all addresses of IPv4.
            let port = INSIDE_PORT + u16::from(address == "0.0.0.0");
            let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
            let listener = own.listen(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let endpoint = endpoint(&mesh, &partner);
        Self {
            mesh,
            _endpoint: endpoint,
            partner,
            inside: inside.into(),
        }
    }
}

/// nginx with a certificate for all that the partner is called; each path but `/bundle` redirects.
fn endpoint(mesh: &Mesh, partner: &Host) -> Process {
    let names = [
        NAME.to_owned(),
        ENDPOINT.to_string(),
        ELSEWHERE.to_string(),
        partner.address.to_string(),
    ];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let scratch = &mesh.scratch;
    let certificate = scratch.write("partner.pem", made.cert.pem());
    let key = scratch.write("partner.key", made.signing_key.serialize_pem());
    // Two of them, since no key may speak for two trust domains.
    let bundle = scratch.write("bundle.json", document());
    let after_hops = scratch.write("after-hops.json", document());
    let mut paths = String::new();
    for (path, to, _) in cases(partner) {
        let _ = writeln!(paths, "location = /{path} {{ return 307 {to}; }}");
    }
    for hop in 1..=4 {
        let next = hop + 1;
        let _ = writeln!(paths, "location = /hop-{hop} {{ return 302 /hop-{next}; }}");
    }
    let bundle = format!(
        "location = /bundle {{ alias {}; }} location = /hop-5 {{ alias {}; }}",
        bundle.display(),
        after_hops.display()
    );
    let servers = format!(
        "server {{ listen 0.0.0.0:{PORT} ssl; ssl_protocols TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; {bundle} {paths} }}
         server {{ listen 0.0.0.0:{PLAIN_PORT}; {bundle} }}",
        certificate.display(),
        key.display()
    );
    workloads::nginx_of(partner, &servers, PORT, scratch)
}

fn document() -> String {
    let domain = || TrustDomain::parse("any.example").unwrap();
    // Without a name of a trust domain it could be anybody's.
    let root = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    ca.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    ca.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
    let root = ca.self_signed(&root).unwrap().der().to_vec();
    let x509 = TrustBundle::from_der(domain(), 1, vec![root]).unwrap();
    let jwt = JwtBundle::new(domain(), Vec::new()).unwrap();
    let document = BundleDocument::new(x509, jwt, Duration::from_secs(300));
    document.unwrap().to_json()
}

/// Each path, where it redirects to, and what becomes of it; nothing where the bundle is taken.
fn cases(partner: &Host) -> Vec<(&'static str, String, &'static str)> {
    let inside = |host: &str| format!("https://{host}:{INSIDE_PORT}/bundle");
    vec![
        ("world", format!("https://{ELSEWHERE}:{PORT}/bundle"), ""),
        (
            "site",
            format!("https://{}:{PORT}/bundle", partner.address),
            FORBIDDEN,
        ),
        ("loopback", inside("127.0.0.1"), FORBIDDEN),
        ("loopback-6", inside("[::1]"), FORBIDDEN),
        ("loopback-mapped", inside("[::ffff:127.0.0.1]"), FORBIDDEN),
        ("loopback-named", inside("localhost"), FORBIDDEN),
        (
            "unspecified",
            format!("https://0.0.0.0:{}/bundle", INSIDE_PORT + 1),
            FORBIDDEN,
        ),
        ("metadata", inside("169.254.169.254"), FORBIDDEN),
        (
            "plain",
            format!("http://{ELSEWHERE}:{PLAIN_PORT}/bundle"),
            "must begin with https://",
        ),
        (
            "user",
            format!("https://me@{ELSEWHERE}:{PORT}/bundle"),
            "must have no user",
        ),
        (
            "circle",
            format!("https://{NAME}:{PORT}/circle"),
            "redirects in a circle",
        ),
        ("many", "/hop-1".to_owned(), "more than 3 redirects"),
        ("three", "/hop-3".to_owned(), ""),
    ]
}

fn relation(name: &str, certificate: &str) -> String {
    format!(
        "---\napiVersion: sidewind.dev/v1alpha1\nkind: FederatedTrustDomain\nmetadata: {{ name: {name} }}\nspec:\n  trustDomain: {name}.example\n  url: https://{NAME}:{PORT}/{name}\n  profile: https_web\n  caFile: {certificate}\n  refreshInterval: 1s\n"
    )
}

#[test]
fn redirects_lead_no_closer_than_the_endpoint_and_to_https_alone_and_not_for_ever() {
    let story = Story::begin();
    let control_plane = &story.mesh.control_plane;
    let certificate = story.mesh.scratch.join("partner.pem");
    let certificate = certificate.to_string_lossy();
    let cases = cases(&story.partner);
    let documents: String = cases
        .iter()
        .map(|(name, ..)| relation(name, &certificate))
        .collect();
    control_plane.write_config("federation.yaml", &documents);
    for (name, to, expected) in &cases {
        let domain = format!("{name}.example");
        let told = eventually(&format!("{domain} was asked"), PATIENCE, || {
            let list = ["federation", "list", "-o", "json", "--state-dir"];
            let listed = control_plane.command().args(list);
            let listed = listed.arg(control_plane.state()).finish().success();
            let listed: Value = serde_json::from_str(&listed).unwrap();
            let all = listed.as_array().unwrap().iter();
            let told = all.clone().find(|it| it["trustDomain"] == *domain)?;
            let is_asked = told["sequence"].is_u64() || told["lastError"] != "";
            is_asked.then(|| told.clone())
        });
        match *expected {
            "" => assert_eq!(told["sequence"], 1, "{name}: {told}"),
            expected => {
                let error = told["lastError"].as_str().unwrap();
                assert!(error.contains(expected), "{name} to {to}: {error}");
                assert!(told["sequence"].is_null(), "{name}: {told}");
            }
        }
    }
    for listener in &story.inside {
        let nobody = listener.accept();
        assert!(nobody.is_err(), "{nobody:?}");
    }
}

/// What somebody at home names is theirs to decide.
#[test]
fn an_endpoint_at_a_private_address_may_redirect_to_another_and_not_to_the_host_itself() {
    let story = Story::begin();
    let control_plane = &story.mesh.control_plane;
    let certificate = story.mesh.scratch.join("partner.pem");
    let at_home = format!("https://{}:{PORT}/", story.partner.address);
    let named = format!("https://{NAME}:{PORT}/");
    let documents: String = ["site", "loopback"]
        .map(|name| relation(name, &certificate.to_string_lossy()).replace(&named, &at_home))
        .concat();
    control_plane.write_config("federation.yaml", &documents);
    eventually("both were asked", PATIENCE, || {
        let list = ["federation", "list", "-o", "json", "--state-dir"];
        let listed = control_plane.command().args(list);
        let listed = listed.arg(control_plane.state()).finish().success();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let of = |name: &str| {
            let mut all = listed.as_array().unwrap().iter();
            all.find(|it| it["trustDomain"] == name).cloned()
        };
        let (site, loopback) = (of("site.example")?, of("loopback.example")?);
        let refused = loopback["lastError"].as_str()?.contains(FORBIDDEN);
        (site["sequence"] == 1 && refused).then_some(())
    });
}
