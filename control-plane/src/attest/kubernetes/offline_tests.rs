use super::*;
use crate::attest::testing::{Signer, jwks};
use crate::config::attestor_config::ClusterCheck;
use serde_json::{Value, json};
use sidewind_api::Reason;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// From a real API server, with the keys that it publishes.
const TOKEN: &str = include_str!("../../../tests/data/kubernetes/expired-bound-token.jwt");
const KEYS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/kubernetes/jwks.json"
);
const ISSUER: &str = "https://kubernetes.default.svc";
const ISSUED_AT: u64 = 1_795_234_000;

async fn check_at(
    token: &str,
    keys: &Path,
    issuer: &str,
    audience: &str,
    seconds: u64,
) -> Result<Workload, Refusal> {
    let keys = KeySource::File(keys.to_owned());
    let cluster = KubernetesCluster {
        cluster: "prod".to_owned(),
        audience: audience.to_owned(),
        check: ClusterCheck::Keys {
            issuer: issuer.to_owned(),
            keys: keys.clone(),
        },
        default_identities: false,
    };
    let issuer = Issuer {
        cluster: &cluster,
        issuer,
        keys: &keys,
    };
    let now = UNIX_EPOCH + Duration::from_secs(seconds);
    check(&KeyCache::default(), &issuer, token, now).await
}

#[tokio::test]
async fn a_real_token_is_verified_with_its_clusters_keys() {
    let keys = Path::new(KEYS);
    let workload = check_at(TOKEN.trim(), keys, ISSUER, "sidewind", ISSUED_AT + 60).await;
    let workload = workload.unwrap();
    assert_eq!(workload.namespace, "airflow");
    assert_eq!(workload.service_account, "airflow-worker");
    assert_eq!(workload.pod_name, "airflow-worker-0");
    assert_eq!(workload.pod_uid, "2d45b03d-0c19-45de-a16f-d57bc78dd3bf");
}

#[tokio::test]
async fn a_real_token_is_refused_out_of_its_time_and_place() {
    let rows = [
        ("expired", ISSUER, "sidewind", ISSUED_AT + 661),
        ("only in", ISSUER, "sidewind", ISSUED_AT - 61),
        (
            "'iss' is not",
            "https://other.example",
            "sidewind",
            ISSUED_AT + 1,
        ),
        ("'aud' does not name", ISSUER, "other", ISSUED_AT + 1),
    ];
    for (expected, issuer, audience, at) in rows {
        let refusal = check_at(TOKEN.trim(), Path::new(KEYS), issuer, audience, at).await;
        let refusal = refusal.expect_err(expected);
        assert_eq!(refusal.reason, Reason::EvidenceRefused, "{refusal}");
        assert!(refusal.message.contains(expected), "{refusal}");
    }
    // Within the leeway.
    let late = check_at(
        TOKEN.trim(),
        Path::new(KEYS),
        ISSUER,
        "sidewind",
        ISSUED_AT + 659,
    );
    late.await.unwrap();
}

#[tokio::test]
async fn without_keys_nothing_passes_and_it_can_be_tried_again() {
    let missing = Path::new("/nonexistent/jwks.json");
    let refusal = check_at(TOKEN.trim(), missing, ISSUER, "sidewind", ISSUED_AT + 60).await;
    assert_eq!(refusal.unwrap_err().reason, Reason::EvidenceUnverifiable);
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": ["sidewind"],
        "iat": ISSUED_AT, "nbf": ISSUED_AT, "exp": ISSUED_AT + 600,
        "sub": "system:serviceaccount:airflow:worker",
        "kubernetes.io": {
            "namespace": "airflow",
            "serviceaccount": {"name": "worker", "uid": "u1"},
            "pod": {"name": "worker-0", "uid": "u2"},
            "node": {"name": "node-1", "uid": "u3"},
        },
    });
    change(&mut claims);
    claims
}

#[tokio::test]
async fn a_token_that_is_not_bound_to_a_pod_or_disagrees_with_itself_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("jwks.json");
    let signer = Signer::es256("k");
    std::fs::write(&keys, jwks(&[&signer])).unwrap();
    let check = async |change: fn(&mut Value)| {
        let token = signer.token(&claims(change));
        check_at(&token, &keys, ISSUER, "sidewind", ISSUED_AT + 60).await
    };
    assert_eq!(check(|_| {}).await.unwrap().node.as_deref(), Some("node-1"));
    type Change = fn(&mut Value);
    let rows: &[(&str, Change)] = &[
        ("no claims of Kubernetes", |c| {
            drop(c.as_object_mut().unwrap().remove("kubernetes.io"))
        }),
        ("no pod", |c| {
            drop(c["kubernetes.io"].as_object_mut().unwrap().remove("pod"))
        }),
        ("no pod uid", |c| {
            c["kubernetes.io"]["pod"] = json!({"name": "worker-0"})
        }),
        ("an empty pod uid", |c| {
            c["kubernetes.io"]["pod"]["uid"] = json!("")
        }),
        ("a pod name that is a path", |c| {
            c["kubernetes.io"]["pod"]["name"] = json!("../x")
        }),
        ("another namespace", |c| {
            c["kubernetes.io"]["namespace"] = json!("other")
        }),
        ("another account", |c| {
            c["kubernetes.io"]["serviceaccount"]["name"] = json!("admin")
        }),
        ("a user", |c| c["sub"] = json!("alice")),
        ("no subject", |c| {
            drop(c.as_object_mut().unwrap().remove("sub"))
        }),
        ("no time of issue", |c| {
            drop(c.as_object_mut().unwrap().remove("iat"))
        }),
        ("no end", |c| drop(c.as_object_mut().unwrap().remove("exp"))),
        ("issued in the future", |c| {
            c["iat"] = json!(ISSUED_AT + 500)
        }),
    ];
    for (name, change) in rows {
        let refusal = check(*change).await.expect_err(name);
        assert_eq!(refusal.reason, Reason::EvidenceRefused, "{name}: {refusal}");
    }
}
