//! Kubernetes tokens over the real API, against an API server that answers as told.

use crate::stub::{Asked, Reply, Stub};
use crate::support::{ControlPlane, refusal, svid_of, until};
use serde_json::{Value, json};
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, Svid};
use std::sync::Arc;
use tokio::sync::Notify;
use tonic::Status;

/// From a real API server.
pub(crate) const TOKEN: &str = include_str!("../data/kubernetes/expired-bound-token.jwt");
pub(crate) const AUTHENTICATED: &str = include_str!("../data/kubernetes/authenticated.json");
const WRONG_AUDIENCE: &str = include_str!("../data/kubernetes/wrong-audience.json");
const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/airflow-worker";
pub(crate) const OWN_TOKEN: &str = "the-control-planes-own-token";

pub(crate) const REGISTRATION: &str = r#"
---
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: { name: workers, namespace: airflow }
spec:
  selectors: { kubernetes: { namespace: airflow, podLabels: { component: worker } } }
  spiffeId: "spiffe://sidewind.local/ns/{kubernetes.namespace}/sa/{kubernetes.serviceAccount}"
  svidTtl: 10m
  dnsNames: ["{kubernetes.serviceAccount}.airflow.svc"]
  services: ["worker.{kubernetes.namespace}"]
"#;

pub(crate) fn pod() -> Value {
    json!({
        "metadata": {
            "name": "airflow-worker-0", "namespace": "airflow",
            "uid": "2d45b03d-0c19-45de-a16f-d57bc78dd3bf",
            "labels": {"component": "worker"},
        },
        "spec": {"serviceAccountName": "airflow-worker", "nodeName": "node-1"},
        "status": {"phase": "Running"},
    })
}

/// What the recorded API server would answer: it takes its own token, for the audience that it was made for.
fn api_server(asked: &Asked, pod: &Value) -> Reply {
    assert_eq!(
        asked.authorization.as_deref(),
        Some(format!("Bearer {OWN_TOKEN}").as_str())
    );
    match asked.path.as_str() {
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let review: Value = serde_json::from_slice(&asked.body).unwrap();
            let recorded: Value = serde_json::from_str(AUTHENTICATED).unwrap();
            let good = review["spec"] == recorded["spec"] && review["kind"] == "TokenReview";
            Reply::status(201, if good { AUTHENTICATED } else { WRONG_AUDIENCE })
        }
        "/api/v1/namespaces/airflow/pods/airflow-worker-0" => Reply::ok(pod.to_string()),
        other => panic!("{other} was asked for"),
    }
}

/// A control plane with this behind it; `more` goes into the cluster's entry.
pub(crate) async fn with_cluster(more: &str, registrations: &str) -> (ControlPlane, Stub) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let (ca, token) = (
        directory.path().join("ca.pem"),
        directory.path().join("token"),
    );
    std::fs::write(&token, format!("{OWN_TOKEN}\n")).unwrap();
    let stub = Stub::start(&ca, |asked| api_server(asked, &pod())).await;
    let attestors = format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: prod }}\nspec:\n  kubernetes: [{{ cluster: prod, apiServer: \"{}\", caFile: {}, tokenFile: {}{more} }}]\n",
        stub.url(),
        ca.display(),
        token.display()
    );
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(
        config.join("mesh.yaml"),
        format!("{attestors}{registrations}"),
    )
    .unwrap();
    let change = |settings: &mut sidewind_control_plane::server::Settings| {
        settings.config = Some(config);
    };
    (ControlPlane::start_in(directory, change).await, stub)
}

pub(crate) fn kubernetes(token: &str) -> Evidence {
    Evidence::Kubernetes(v1::KubernetesToken {
        token: token.to_owned(),
        cluster: String::new(),
    })
}

pub(crate) async fn attest(
    control_plane: &ControlPlane,
    evidence: Evidence,
) -> Result<Svid, Status> {
    let key = PrivateKey::generate().unwrap();
    let request = v1::AttestRequest {
        csr: key.csr_der().unwrap(),
        evidence: Some(evidence),
        version: "test".to_owned(),
    };
    let mut service = control_plane.client.identity_service().await;
    let response = service.attest(request).await?.into_inner();
    Ok(svid_of(response, key))
}

pub(crate) async fn renew(control_plane: &ControlPlane, svid: &Svid) -> Result<Svid, Status> {
    let key = PrivateKey::generate().unwrap();
    let response = control_plane.client.renew(svid, key.csr_der().unwrap());
    Ok(svid_of(response.await?, key))
}

fn lifetime(svid: &Svid) -> u64 {
    let lifetime = svid.not_after().duration_since(svid.not_before());
    lifetime.unwrap().as_secs()
}

fn dns_names(svid: &Svid) -> Vec<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_service_account_token_gives_the_identity_of_its_registration_again_and_again() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    for _ in 0..2 {
        let svid = attest(&control_plane, kubernetes(TOKEN)).await.unwrap();
        assert_eq!(svid.id().as_str(), WORKER);
        assert_eq!(lifetime(&svid), 630);
        assert_eq!(dns_names(&svid), ["airflow-worker.airflow.svc"]);
        let mut proxy = control_plane
            .client
            .stream(
                &svid,
                crate::support::hello(vec![crate::support::port(80, "worker.airflow")]),
            )
            .await
            .unwrap();
        assert!(proxy.hello().await.refused.is_empty());
    }
    assert_eq!(stub.asked().len(), 4);
    let audit = control_plane.audit().await;
    let granted = (
        "attest".to_owned(),
        "granted".to_owned(),
        Some(WORKER.to_owned()),
    );
    assert_eq!(audit, [granted.clone(), granted]);
}

#[tokio::test]
async fn what_the_api_server_says_against_a_token_or_its_pod_is_a_refusal() {
    type Change = fn(&mut Value);
    let rows: &[(&str, Change)] = &[
        ("another one than", |pod| {
            pod["metadata"]["uid"] = json!("other")
        }),
        ("has ended", |pod| {
            pod["status"]["phase"] = json!("Succeeded")
        }),
        ("being deleted", |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T04:06:40Z");
        }),
        ("another service account", |pod| {
            pod["spec"]["serviceAccountName"] = json!("other");
        }),
    ];
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    for (expected, change) in rows {
        let mut pod = pod();
        change(&mut pod);
        stub.set(move |asked| api_server(asked, &pod));
        let (reason, message) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
        assert_eq!(reason, Reason::EvidenceRefused);
        assert!(message.contains(expected), "{message}");
    }
    stub.set(|asked| match asked.path.starts_with("/api/v1") {
        true => Reply::status(404, "{}"),
        false => api_server(asked, &pod()),
    });
    let (reason, message) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
    assert_eq!(reason, Reason::EvidenceRefused);
    assert!(
        message.contains("no pod airflow/airflow-worker-0"),
        "{message}"
    );
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let (control_plane, _stub) = with_cluster(", audience: other", REGISTRATION).await;
    let (reason, message) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
    assert_eq!(reason, Reason::EvidenceRefused);
    assert!(message.contains("for audience \"other\""), "{message}");
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_lets_nobody_in() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    let replies = [
        ("an error", Reply::status(500, "{}")),
        ("overloaded", Reply::status(429, "{}")),
        ("no right", Reply::status(403, "{}")),
        ("garbage", Reply::ok("<html>")),
        ("nothing", Reply::ok("")),
        ("something else", Reply::ok("{\"kind\":\"Status\"}")),
        (
            "a token where a truth should be",
            Reply::ok(format!(
                "{{\"status\":{{\"authenticated\":\"{}\"}}}}",
                TOKEN.trim()
            )),
        ),
        (
            "too much",
            Reply::ok(format!(
                "{{\"status\":{{}},\"x\":\"{}\"}}",
                "x".repeat(70_000)
            )),
        ),
        ("deep", Reply::ok("[".repeat(60_000))),
        (
            "a redirect",
            Reply {
                status: 307,
                location: Some(format!("{}/x", stub.url())),
                body: Vec::new(),
            },
        ),
    ];
    for (name, reply) in replies {
        stub.set(move |_| reply.clone());
        let (reason, message) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
        assert_eq!(reason, Reason::EvidenceUnverifiable, "{name}: {message}");
    }
    // The review is good, and the pod is what cannot be read.
    for (name, body) in [
        ("garbage", "<".to_owned()),
        ("too much", "x".repeat((1 << 20) + 1)),
    ] {
        stub.set(move |asked| match asked.path.starts_with("/api/v1") {
            true => Reply::ok(body.clone()),
            false => api_server(asked, &pod()),
        });
        let (reason, _) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
        assert_eq!(reason, Reason::EvidenceUnverifiable, "{name}");
    }
    stub.set(|asked| api_server(asked, &pod()));
    attest(&control_plane, kubernetes(TOKEN)).await.unwrap();
}

#[tokio::test]
async fn an_api_server_with_another_authority_or_none_is_not_asked() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    let directory = control_plane
        .config()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    let other = directory.join("other.pem");
    Stub::start(&other, |_| Reply::ok("")).await;
    let ca = directory.join("ca.pem");
    let good = std::fs::read(&ca).unwrap();
    for bad in [std::fs::read(&other).unwrap(), Vec::new()] {
        std::fs::write(&ca, bad).unwrap();
        let (reason, _) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
        assert_eq!(reason, Reason::EvidenceUnverifiable);
    }
    std::fs::write(&ca, good).unwrap();
    std::fs::remove_file(directory.join("token")).unwrap();
    let (reason, _) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
    assert_eq!(reason, Reason::EvidenceUnverifiable);
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn an_unmatched_pod_is_told_what_it_had_and_so_is_the_audit() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    let mut other = pod();
    other["metadata"]["labels"] = json!({"component": "scheduler"});
    stub.set(move |asked| api_server(asked, &other));
    let (reason, message) = refusal(attest(&control_plane, kubernetes(TOKEN)).await);
    assert_eq!(reason, Reason::NoRegistrationMatches);
    for part in [
        "kubernetes:cluster=prod",
        "kubernetes:namespace=airflow",
        "kubernetes:pod-label:component=scheduler",
        "kubernetes:service-account=airflow-worker",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let database = control_plane.database().await;
    let told = async || -> Option<String> {
        let query = sqlx::query_scalar(
            "SELECT detail FROM audit WHERE outcome = 'no-registration-matches'",
        );
        query.fetch_optional(&database).await.unwrap()
    };
    until(async || told().await.is_some()).await;
    assert_eq!(told().await.unwrap(), message);
}

#[tokio::test]
async fn a_renewal_follows_its_registration_and_ends_with_it_without_asking_the_api_server() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    let svid = attest(&control_plane, kubernetes(TOKEN)).await.unwrap();
    let asked = stub.asked().len();
    let config = control_plane.config();
    let text = std::fs::read_to_string(&config).unwrap();
    let reloads = "sidewind_config_reloads_total{outcome=\"taken\"}";

    let changed = text
        .replace("svidTtl: 10m", "svidTtl: 20m")
        .replace("worker.{", "new.{");
    std::fs::write(&config, changed).unwrap();
    control_plane.metric(&format!("{reloads} 1")).await;
    let renewed = renew(&control_plane, &svid).await.unwrap();
    assert_eq!(lifetime(&renewed), 1230);
    let ports = vec![crate::support::port(80, "new.airflow")];
    let mut proxy = control_plane
        .client
        .stream(&renewed, crate::support::hello(ports))
        .await
        .unwrap();
    assert!(proxy.hello().await.refused.is_empty());

    // After a restart, too.
    let attestors = text.split("---").next().unwrap().to_owned();
    let directory = control_plane.stop().await;
    let again = directory.path().join("config");
    let change = move |settings: &mut sidewind_control_plane::server::Settings| {
        settings.config = Some(again);
    };
    let control_plane = ControlPlane::start_in(directory, change).await;
    let renewed = renew(&control_plane, &renewed).await.unwrap();
    assert_eq!(lifetime(&renewed), 1230);

    std::fs::write(&config, attestors).unwrap();
    control_plane.metric(&format!("{reloads} 1")).await;
    let (reason, message) = refusal(renew(&control_plane, &renewed).await);
    assert_eq!(reason, Reason::NotRegistered);
    assert!(message.contains("attest again"), "{message}");
    assert_eq!(stub.asked().len(), asked);
    // What came of a join token goes on.
    let svid = control_plane.client.svid(WORKER, &[]).await;
    renew(&control_plane, &svid).await.unwrap();
}

#[tokio::test]
async fn a_lifetime_that_the_authority_cannot_honour_is_refused_with_the_arithmetic() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let attestors = "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: { name: prod }\nspec: { kubernetes: [{ cluster: prod, inCluster: true }] }\n";
    for (change, expected) in [
        (
            ("svidTtl: 10m", "svidTtl: 25h"),
            "spec.svidTtl: must be from 1m to 1d",
        ),
        (
            ("sidewind.local", "other.local"),
            "spec.spiffeId: \"spiffe://other.local",
        ),
    ] {
        let registration = REGISTRATION.replace(change.0, change.1);
        std::fs::write(
            config.join("mesh.yaml"),
            format!("{attestors}{registration}"),
        )
        .unwrap();
        let mut settings = crate::support::settings(directory.path());
        settings.config = Some(config.clone());
        let error = sidewind_control_plane::server::Server::start(settings).await;
        let error = error.err().unwrap();
        assert!(error.is_usage());
        assert!(error.to_string().contains(expected), "{error}");
    }
}

pub(crate) fn oidc(token: &str) -> Evidence {
    Evidence::Oidc(v1::OidcToken {
        token: token.to_owned(),
    })
}

/// Many with the same evidence, and then, once the first of them was refused, somebody with a join token. Only so many have
/// got a place by then to ask whoever does not answer.
pub(crate) async fn while_a_crowd_waits(
    control_plane: &ControlPlane,
    stub: &Stub,
    places: usize,
    evidence: Evidence,
) {
    let (control_plane, is_refused) = (&control_plane, &Notify::new());
    let one = async |evidence| {
        let (reason, message) = refusal(attest(control_plane, evidence).await);
        is_refused.notify_one();
        let expected = [Reason::EvidenceUnverifiable, Reason::Overloaded];
        assert!(expected.contains(&reason), "{reason:?}: {message}");
    };
    let crowd = (0..CROWD).map(|_| one(evidence.clone()));
    let crowd = futures_util::future::join_all(crowd);
    let token = control_plane.client.token(JOINING, &[]).await;
    let joining = async {
        is_refused.notified().await;
        assert!(stub.asked().len() <= places);
        let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
        control_plane.client.attest(&token, csr).await.unwrap();
    };
    tokio::join!(crowd, joining);
}

/// Of whom 64 are attested at once. The others would wait for longer than anybody may, if each took five seconds.
const CROWD: usize = 350;
const JOINING: &str = "spiffe://sidewind.local/ns/data/sa/joining";

#[tokio::test]
async fn while_an_api_server_does_not_answer_join_tokens_are_served() {
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    stub.set(|_| Reply::none());
    while_a_crowd_waits(&control_plane, &stub, 24, kubernetes(TOKEN)).await;
}
