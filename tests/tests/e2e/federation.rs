//! Two control planes of two trust domains, and workloads of each that call one another.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::Request;
use serde_json::Value;
use sidewind_tests::authority::{SvidFiles, TestAuthority};
use sidewind_tests::clients::Clients;
use sidewind_tests::envoy;
use sidewind_tests::http::Request as HttpRequest;
use sidewind_tests::mesh::{ControlPlane, MESH_PORT, Mesh, Neighbour, SIDECAR_UID, Workload};
use sidewind_tests::peer::Peer;
use sidewind_tests::process::Process;
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{Answer, TASK_ID};

const HOME: &str = "sidewind.local";
const PARTNER: &str = "partner.example";
const PRICES_ID: &str = "spiffe://partner.example/ns/sales/sa/prices";
/// The name of the endpoint with a certificate for its host.
const WEB: &str = "bundle.home.example";
const ENDPOINT_PORT: u16 = 8443;

/// A task of the home mesh that calls the partner's prices. Home serves its bundle by https_web, the partner by
/// https_spiffe. Fields are dropped in this order.
struct Story {
    task: Workload,
    stranger: Workload,
    prices: Workload,
    _server: Process,
    partner: Neighbour,
    partner_authority: TestAuthority,
    mesh: Mesh,
    files: Scratch,
}

impl Story {
    fn begin() -> Self {
        let files = Scratch::new();
        let made = rcgen::generate_simple_self_signed(vec![WEB.to_owned()]).unwrap();
        let certificate = files.write("web.pem", made.cert.pem());
        let key = files.write_secret("web.key", made.signing_key.serialize_pem(), None);
        let listen = format!("0.0.0.0:{ENDPOINT_PORT}");
        let mut mesh = Mesh::plan()
            .flag("--federation-web-listen", &listen)
            .flag("--federation-web-cert", certificate.to_string_lossy())
            .flag("--federation-web-key", key.to_string_lossy())
            .start();
        let home = mesh.control_plane.host().address;
        mesh.lan().name(WEB, home);

        let partner_authority = TestAuthority::of(PARTNER);
        let root = files.write("partner-root.pem", partner_authority.root_pem());
        let root_key = partner_authority.root_key_pem();
        let root_key = files.write_secret("partner-root.key", root_key, None);
        let (root, root_key) = (root.to_string_lossy(), root_key.to_string_lossy());
        let flags = ["--root-cert", &root, "--root-key", &root_key];
        let flags = [&flags[..], &["--federation-spiffe-listen", &listen]].concat();
        let partner = mesh.neighbour(PARTNER, &flags);
        let bootstrap = files.write("bootstrap.pem", partner.control_plane.trust_bundle());

        let prices = mesh
            .workload("sales", "prices")
            .of(&partner)
            .federates_with(HOME)
            .serves("prices.sales=8080/http")
            .start();
        let server = workloads::api(&prices, 8080, &mesh.scratch);
        let federates = |name: &str, url: String, rest: String| {
            format!(
                "apiVersion: sidewind.dev/v1alpha1\nkind: FederatedTrustDomain\nmetadata: {{ name: other }}\nspec:\n  trustDomain: {name}\n  url: {url}\n  refreshInterval: 1s\n{rest}"
            )
        };
        let spiffe = format!(
            "  profile: https_spiffe\n  endpointSpiffeId: spiffe://{PARTNER}/sidewind/control-plane\n  bootstrapBundleFile: {}\n",
            bootstrap.display()
        );
        let endpoint = (partner.control_plane.host().address, ENDPOINT_PORT);
        let endpoint = SocketAddr::from(endpoint);
        mesh.control_plane.write_config(
            "federation.yaml",
            &(federates(PARTNER, format!("https://{endpoint}/"), spiffe) + &entry(prices.address)),
        );
        let web = format!(
            "  profile: https_web\n  caFile: {}\n",
            certificate.display()
        );
        let url = format!("https://{WEB}:{ENDPOINT_PORT}/");
        partner
            .control_plane
            .write_config("federation.yaml", &federates(HOME, url, web));
        partner.control_plane.write_config("policy.yaml", &policy());

        let task = mesh
            .workload("airflow", "task")
            .federates_with(PARTNER)
            .start();
        let stranger = mesh
            .workload("airflow", "stranger")
            .federates_with(PARTNER)
            .start();
        let story = Self {
            task,
            stranger,
            prices,
            _server: server,
            partner,
            partner_authority,
            mesh,
            files,
        };
        eventually("each side has the other's bundle", PATIENCE, || {
            let home = relation(&story.mesh.control_plane);
            let partner = relation(&story.partner.control_plane);
            let fresh = |it: &Value| it["sequence"].is_u64() && it["workloads"] != 0;
            (fresh(&home) && fresh(&partner)).then_some(())
        });
        story
    }

    fn call(&self, from: &Workload) -> Answer {
        let curl = from.curl(&["-i", "http://prices.sales:8080/orders"]);
        Answer::parse(&curl.finish().success())
    }

    fn wait_for_status(&self, from: &Workload, expected: u16) -> Answer {
        eventually(&format!("the call ends with {expected}"), PATIENCE, || {
            Some(self.call(from)).filter(|answer| answer.status == expected)
        })
    }
}

fn entry(prices: Ipv4Addr) -> String {
    format!(
        "---\napiVersion: sidewind.dev/v1alpha1\nkind: ServiceEntry\nmetadata: {{ name: prices }}\nspec:\n  addresses: [{prices}]\n  ports: [{{ port: 8080, protocol: http }}]\n  endpoints: [{{ address: {prices}, spiffeId: '{PRICES_ID}', meshPort: {MESH_PORT} }}]\n"
    )
}

/// The partner lets the task in, and nobody else.
fn policy() -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: prices, namespace: sales }}\nspec:\n  selector: {{ spiffeIds: ['{PRICES_ID}'] }}\n  rules: [{{ from: [{{ spiffeIds: ['{TASK_ID}'] }}] }}]\n"
    )
}

/// A certificate for the task's own ID below the partner's root, right in everything else.
fn forged(story: &Story) -> SvidFiles {
    let root = story.partner_authority.root_pem();
    let root_key = rcgen::KeyPair::from_pem(&story.partner_authority.root_key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root, root_key).unwrap();
    let mut leaf = rcgen::CertificateParams::default();
    leaf.is_ca = rcgen::IsCa::ExplicitNoCa;
    leaf.subject_alt_names = vec![rcgen::SanType::URI(TASK_ID.try_into().unwrap())];
    leaf.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    leaf.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    SvidFiles {
        certificate: story.files.write("forged.der", certificate.der()),
        chain: story.files.write("forged-chain.pem", root),
        key: story.files.write("forged.key", key.serialize_pem()),
    }
}

/// What a control plane knows of its one foreign trust domain.
fn relation(control_plane: &ControlPlane) -> Value {
    let list = ["federation", "list", "-o", "json", "--state-dir"];
    let listed = control_plane
        .command()
        .args(list)
        .arg(control_plane.state());
    let listed: Value = serde_json::from_str(&listed.finish().success()).unwrap();
    listed[0].clone()
}

#[test]
fn a_workload_calls_another_trust_domain_by_a_policy_on_its_foreign_id_until_the_relation_ends() {
    let story = Story::begin();
    let answer = story.wait_for_status(&story.task, 200);
    assert!(!answer.body.is_empty());
    let record = story
        .prices
        .sidecar
        .wait_for_access("the call", |record| record.status() == 200);
    assert!(record.to_string().contains(TASK_ID), "{record}");
    let refused = story.call(&story.stranger);
    assert_eq!(
        (refused.status, refused.error.as_str()),
        (403, "policy-denied"),
        "{refused:?}"
    );

    let control_plane = &story.mesh.control_plane;
    let explain = ["explain", TASK_ID, "--state-dir"];
    let explained = control_plane
        .command()
        .args(explain)
        .arg(control_plane.state());
    let explained = explained.finish().success();
    assert!(explained.contains(PARTNER), "{explained}");

    // Without the relation there is no bundle to verify the task with, and its living connection ends, too.
    story
        .partner
        .control_plane
        .write_config("federation.yaml", "");
    let refused = story.wait_for_status(&story.task, 502);
    assert_eq!(refused.error, "tls-failed", "{refused:?}");
    let cut = [("reason", "distrusted")];
    let cut_off = || {
        let metrics = story.prices.sidecar.metrics();
        metrics.sum("sidewind_mesh_connections_cut_total", &cut)
    };
    eventually("the living connection is cut off", PATIENCE, || {
        (cut_off() >= 1.0).then_some(())
    });
}

/// The partner's own control plane is another's: who shuts the task out is the mesh that it calls.
#[test]
fn a_foreign_identity_that_is_banned_is_cut_off_and_let_in_again_once_the_ban_is_lifted() {
    let story = Story::begin();
    story.wait_for_status(&story.task, 200);
    let partner = &story.partner.control_plane;
    let run = |arguments: &[&str]| {
        let command = partner.command().args(arguments).arg("--state-dir");
        command.arg(partner.state()).finish().success()
    };
    run(&["ban", TASK_ID, "--reason", "its node was stolen"]);
    let refused = story.wait_for_status(&story.task, 502);
    assert_eq!(refused.error, "tls-failed", "{refused:?}");
    let cut = story.prices.sidecar.metrics().sum(
        "sidewind_mesh_connections_cut_total",
        &[("reason", "banned")],
    );
    assert_eq!(cut, 1.0, "the living connection");
    // At home nobody has anything against it.
    let stranger = story.call(&story.stranger);
    assert_eq!(stranger.error, "policy-denied", "{stranger:?}");
    run(&["unban", TASK_ID]);
    story.wait_for_status(&story.task, 200);
}

#[test]
fn an_own_identity_that_the_partners_authority_signed_is_refused() {
    let story = Story::begin();
    story.wait_for_status(&story.task, 200);
    // Whoever has the partner's root signs an identity of home, and brings the whole chain.
    let files = forged(&story);
    let theirs = story.partner_authority.svid_files(
        &story.files,
        "theirs",
        "spiffe://partner.example/ns/sales/sa/clerk",
        SystemTime::now(),
    );
    let request = || {
        Request::get("http://task:8080/")
            .header("sidewind-destination", story.task.at(8080).to_string())
            .body(())
            .unwrap()
    };
    let port = story.task.at(MESH_PORT);
    let peer = || Peer::new(&story.prices.place, port, "sidewind/1");
    assert!(peer().with(&files).ask(request(), "").is_err());
    // The partner's own identity passes the handshake: it is the name that was refused.
    let let_in = peer().with(&theirs).ask(request(), "");
    assert!(let_in.is_ok(), "{let_in:?}");
    let failed = story.task.sidecar.metrics().sum(
        "sidewind_tls_handshakes_total",
        &[("side", "server"), ("reason", "bad-certificate")],
    );
    assert!(failed >= 1.0);
}

#[test]
fn curl_and_python_read_the_bundle_that_is_served_and_the_one_that_was_fetched() {
    let story = Story::begin();
    let ca = story.files.join("web.pem");
    let curl = |arguments: &[&str]| {
        let url = format!("https://{WEB}:{ENDPOINT_PORT}/");
        let curl = story.prices.place.program("curl");
        let curl = curl
            .args(["-sS", "--max-time", "20", "-i", "--cacert"])
            .arg(&ca);
        curl.args(arguments).arg(url).finish().success()
    };
    let answer = Answer::parse(&curl(&[]));
    assert_eq!(answer.status, 200);
    let document: Value = serde_json::from_str(&answer.body).unwrap();
    assert!(document["spiffe_sequence"].is_u64() && document["spiffe_refresh_hint"] == 300);
    for key in document["keys"].as_array().unwrap() {
        let is_root = key["use"] == "x509-svid";
        assert_eq!(key["x5c"].is_array(), is_root, "{key}");
        assert_eq!(key["kid"].is_string(), !is_root, "{key}");
    }
    assert_eq!(Answer::parse(&curl(&["-X", "POST", "-d", "x"])).status, 405);
    let served = story.mesh.control_plane.metrics().sum(
        "sidewind_bundle_endpoint_requests_total",
        &[("profile", "https_web"), ("outcome", "served")],
    );
    assert!(served >= 2.0, "curl and the partner");
}

#[test]
fn a_program_beside_the_proxy_gets_the_foreign_bundles() {
    let mut story = Story::begin();
    let clients = Clients::install(&story.mesh.scratch);
    let directory = story.mesh.scratch.directory("reader", Some(SIDECAR_UID));
    let socket = directory.join("reader.sock");
    let reader = story
        .mesh
        .workload("airflow", "reader")
        .federates_with(PARTNER)
        .flag("--workload-api-socket", socket.to_string_lossy())
        .start();
    let context = clients.ask("x509", &socket, &[]);
    assert_eq!(context["roots"][PARTNER], 1, "{context}");
    assert_eq!(context["bundles"].as_array().unwrap().len(), 2, "{context}");
    drop(reader);
}

/// A workload of the home mesh with a Workload API socket, that federates with the partner or not.
fn reader(story: &mut Story, name: &str, federates: bool) -> (Workload, PathBuf) {
    let directory = story.mesh.scratch.directory(name, Some(SIDECAR_UID));
    let socket = directory.join("workload.sock");
    let plan = story.mesh.workload("airflow", name);
    let plan = match federates {
        true => plan.federates_with(PARTNER),
        false => plan,
    };
    let plan = plan.flag("--workload-api-socket", socket.to_string_lossy());
    (plan.start(), socket)
}

#[test]
fn a_token_of_the_partner_is_validated_where_it_is_federated_with_and_nowhere_else() {
    let mut story = Story::begin();
    let clients = Clients::install(&story.mesh.scratch);
    let directory = story.mesh.scratch.directory("clerk", Some(SIDECAR_UID));
    let socket = directory.join("workload.sock");
    let clerk = story
        .mesh
        .workload("sales", "clerk")
        .of(&story.partner)
        .flag("--workload-api-socket", socket.to_string_lossy())
        .start();
    let token = clients.ask("token", &socket, &["billing"]);
    let token = token["token"].as_str().unwrap();

    let (friend, friends) = reader(&mut story, "friend", true);
    let validated = clients.ask("validate", &friends, &["billing", token]);
    let expected = "spiffe://partner.example/ns/sales/sa/clerk";
    assert_eq!(validated["spiffe_id"], expected, "{validated}");
    assert_eq!(validated["by_library"], expected, "{validated}");
    let other = clients.ask("validate", &friends, &["payroll", token]);
    assert_eq!(other["code"], "INVALID_ARGUMENT", "{other}");

    let (stranger, strangers) = reader(&mut story, "nobody", false);
    let refused = clients.ask("validate", &strangers, &["billing", token]);
    assert_eq!(refused["code"], "INVALID_ARGUMENT", "{refused}");
    drop((clerk, friend, stranger));
}

/// Envoy beside a sidecar calls the partner's prices, with what it has from the socket alone.
#[test]
fn an_envoy_calls_the_other_trust_domain_with_its_roots_and_not_with_the_own_ones() {
    let mut story = Story::begin();
    let clients = Clients::install(&story.mesh.scratch);
    story.partner.control_plane.write_config("policy.yaml", "");
    let (caller, socket) = reader(&mut story, "envoy", true);
    let partners = format!("spiffe://{PARTNER}");
    for (port, roots, admitted) in [
        (10_000, "ALL", true),
        (10_001, partners.as_str(), true),
        (10_002, "ROOTCA", false),
    ] {
        let listen = caller.local(port);
        let (mesh_port, destination) = (story.prices.at(MESH_PORT), story.prices.at(8080));
        let configuration =
            envoy::client(&socket, listen, mesh_port, destination, roots, PRICES_ID);
        let file = format!("envoy-{port}.json");
        let file = story.mesh.scratch.write(&file, configuration);
        // As the sidecar's own user, whose connections are not redirected.
        let envoy = clients.envoy(&caller.place, &file).user(Some(SIDECAR_UID));
        let mut envoy = envoy.start(&format!("envoy-{port}"), &story.mesh.scratch);
        let url = format!("http://{listen}/orders");
        let call = || {
            let curl = caller.place.program("curl");
            let curl = curl.args(["-sS", "--max-time", "5", &url]);
            curl.user(Some(SIDECAR_UID)).finish()
        };
        if admitted {
            envoy.wait_until("Envoy carries a call", PATIENCE, || {
                call().out().contains("anemometer")
            });
        } else {
            let place = caller.place.clone();
            envoy.wait_until("Envoy listens", PATIENCE, || place.is_open(listen));
            envoy.wait_until("Envoy refuses its peer", PATIENCE, || {
                let admin = SocketAddr::from((listen.ip(), envoy::ADMIN_PORT));
                let stats = "/stats?format=json&filter=ssl.fail_verify_error";
                let _ = call();
                let reply = HttpRequest::get(admin, stats).try_send(&caller.place);
                reply.is_ok_and(|reply| {
                    let stats: Value = serde_json::from_str(&reply.text()).unwrap_or_default();
                    let mut all = stats["stats"].as_array().into_iter().flatten();
                    all.any(|stat| stat["value"].as_u64() > Some(0))
                })
            });
            assert!(!call().out().contains("anemometer"));
        }
    }
    let record = story
        .prices
        .sidecar
        .wait_for_access("Envoy's call", |record| record.tls());
    assert_eq!(
        record.source_id(),
        "spiffe://sidewind.local/ns/airflow/sa/envoy",
        "{record}"
    );
}
