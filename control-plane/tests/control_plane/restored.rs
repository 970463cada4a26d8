//! A database that was put back to an older copy of itself: it is told, and nobody gets by it what they should not.

use crate::support::{ControlPlane, refusal, svid_of, until};
use sidewind_api::Reason;
use sidewind_identity::PrivateKey;
use std::path::Path;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const LATER: &str = "spiffe://sidewind.local/ns/data/sa/later";

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

/// Puts the database back to a copy, as an operator does with the control plane stopped.
fn restore(state: &Path, copy: &[u8]) {
    for beside in ["sidewind.db-wal", "sidewind.db-shm"] {
        let _ = std::fs::remove_file(state.join(beside));
    }
    // Written in place, so that its mode stays.
    std::fs::write(state.join("sidewind.db"), copy).unwrap();
}

/// Whether the state directory remembers all that the audit holds.
async fn is_remembered(control_plane: &ControlPlane, state: &Path) -> bool {
    let newest = sqlx::query_scalar("SELECT max(id) FROM audit");
    let newest: i64 = newest
        .fetch_one(&control_plane.database().await)
        .await
        .unwrap();
    let remembered = std::fs::read(state.join("store-position.json")).unwrap();
    let remembered: serde_json::Value = serde_json::from_slice(&remembered).unwrap();
    remembered["record"].as_i64().unwrap() >= newest
}

#[tokio::test]
async fn a_database_restored_from_yesterday_is_told_and_gives_no_certificate_twice() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let early = client.svid(ORDERS, &[]).await;
    let token = client.token(LATER, &[]).await;
    let directory = control_plane.stop().await;
    let state = directory.path().join("state");
    let yesterday = std::fs::read(state.join("sidewind.db")).unwrap();
    let root = std::fs::read(state.join("trust-bundle.pem")).unwrap();

    // What the copy does not know of: the token was used.
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let client = &control_plane.client;
    let key = PrivateKey::generate().unwrap();
    let response = client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    let before = response.trust_bundles[0].sequence;
    let late = svid_of(response, key);
    until(async || is_remembered(&control_plane, &state).await).await;
    let directory = control_plane.stop().await;
    restore(&state, &yesterday);

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let client = &control_plane.client;
    let again = client.attest(&token, csr()).await;
    assert_eq!(refusal(again).0, Reason::JoinTokenUsed);
    let metrics = control_plane.get("/metrics").await.1;
    assert!(
        metrics.contains("sidewind_store_restored_total 1\n"),
        "{metrics}"
    );
    let audit = control_plane.audit().await;
    assert!(
        audit.iter().any(|(event, ..)| event == "store-restored"),
        "{audit:?}"
    );
    // Nobody loses trust in anybody: the root is the same, and no proxy takes its bundle for an old one.
    assert_eq!(std::fs::read(state.join("trust-bundle.pem")).unwrap(), root);
    let renewed = client.renew(&early, csr()).await.unwrap();
    assert!(renewed.trust_bundles[0].sequence > before);
    // Who came in the time that is lost is told to come again.
    let (reason, message) = refusal(client.renew(&late, csr()).await);
    assert_eq!(reason, Reason::NotRegistered, "{message}");
    assert!(message.contains("attest again"), "{message}");
}
