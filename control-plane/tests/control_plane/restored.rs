//! A database that was put back to an older copy of itself.

use crate::support::{Client, ControlPlane, refusal, svid_of};
use sidewind_api::{Reason, v1};
use sidewind_identity::PrivateKey;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

async fn bundle_sequence(client: &Client) -> u64 {
    let mut admin = client.admin_service().await;
    let answer = admin.get_authority(v1::GetAuthorityRequest {}).await;
    answer.unwrap().into_inner().bundle_sequence
}

#[tokio::test]
async fn a_database_restored_from_an_older_copy_is_noticed_and_made_up_for() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let used_later = client.token(ORDERS, &[]).await;
    let svid = client.svid(ORDERS, &[]).await;
    let directory = control_plane.stop().await;
    let database = directory.path().join("state/sidewind.db");
    let copy = directory.path().join("copy.db");
    std::fs::copy(&database, &copy).unwrap();

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let client = &control_plane.client;
    let sequence = bundle_sequence(client).await;
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_der().unwrap();
    client.attest(&used_later, csr.clone()).await.unwrap();
    let renewed = svid_of(client.renew(&svid, csr.clone()).await.unwrap(), key);
    let directory = control_plane.stop().await;
    // It remembers every few seconds, and at its start.
    let directory = ControlPlane::start_in(directory, |_| {}).await.stop().await;
    std::fs::copy(&copy, &database).unwrap();

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    control_plane
        .metric("sidewind_store_restored_total 1")
        .await;
    let client = &control_plane.client;
    assert!(bundle_sequence(client).await > sequence);
    let (reason, _) = refusal(client.attest(&used_later, csr.clone()).await);
    assert_eq!(reason, Reason::JoinTokenUsed);
    // A certificate of the time that is lost can be renewed.
    client.renew(&renewed, csr).await.unwrap();
}
