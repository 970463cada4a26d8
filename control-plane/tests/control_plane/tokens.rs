//! Join tokens: good once, for a while, and never told to anybody.

use crate::support::{ControlPlane, attest_request, refusal, until};
use sidewind_api::{Reason, v1};
use sidewind_identity::PrivateKey;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

#[tokio::test]
async fn a_used_an_expired_and_a_made_up_token_are_refused_and_the_audit_tells_them_apart() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let used = client.token(ORDERS, &[]).await;
    client.attest(&used, csr()).await.unwrap();
    let (reason, message) = refusal(client.attest(&used, csr()).await);
    assert_eq!(reason, Reason::JoinTokenUsed);
    assert!(message.contains("sidewind token create"), "{message}");

    let request = v1::CreateJoinTokenRequest {
        spiffe_id: ORDERS.to_owned(),
        expires_in_seconds: 1,
        ..Default::default()
    };
    let expired = client.token_for(request).await.unwrap();
    // Times are kept in whole seconds.
    let begin = Instant::now();
    until(async || begin.elapsed() > Duration::from_secs(2)).await;
    assert_eq!(
        refusal(client.attest(&expired, csr()).await).0,
        Reason::JoinTokenExpired
    );

    let made_up = format!("swj_{}", "A".repeat(43));
    for token in [made_up.as_str(), "", "swj_", "' OR 1=1 --"] {
        assert_eq!(
            refusal(client.attest(token, csr()).await).0,
            Reason::JoinTokenUnknown
        );
    }
    let expected = [
        ("token-create", "granted"),
        ("attest", "granted"),
        ("attest", "join-token-used"),
        ("token-create", "granted"),
        ("attest", "join-token-expired"),
        ("attest", "join-token-unknown"),
        ("attest", "join-token-unknown"),
        ("attest", "join-token-unknown"),
        ("attest", "join-token-unknown"),
    ];
    until(async || control_plane.audit().await.len() == expected.len()).await;
    // Refusals are written a moment after they are told, so their order is their own.
    let audit = control_plane.audit().await;
    let mut told: Vec<_> = audit
        .iter()
        .map(|(e, o, _)| (e.as_str(), o.as_str()))
        .collect();
    let mut expected = expected.to_vec();
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_at_once_one_gets_the_certificate() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let token = client.token(ORDERS, &[]).await;
    let mut attempts = JoinSet::new();
    for _ in 0..100 {
        let mut service = client.identity_service().await;
        let request = attest_request(&token, csr());
        attempts.spawn(async move { service.attest(request).await });
    }
    let results = attempts.join_all().await;
    let (granted, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(granted.len(), 1);
    for result in refused {
        assert_eq!(refusal(result).0, Reason::JoinTokenUsed);
    }
    until(async || control_plane.audit().await.len() == 101).await;
    let audit = control_plane.audit().await;
    let granted =
        |(event, outcome, _): &&(String, String, _)| (event == "attest") && outcome == "granted";
    assert_eq!(audit.iter().filter(granted).count(), 1);
}

#[tokio::test]
async fn a_used_token_stays_used_through_a_restart() {
    let control_plane = ControlPlane::start().await;
    let token = control_plane.client.token(ORDERS, &[]).await;
    let unused = control_plane.client.token(ORDERS, &[]).await;
    control_plane.client.attest(&token, csr()).await.unwrap();
    let directory = control_plane.stop().await;
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let client = &control_plane.client;
    assert_eq!(
        refusal(client.attest(&token, csr()).await).0,
        Reason::JoinTokenUsed
    );
    client.attest(&unused, csr()).await.unwrap();
}

#[tokio::test]
async fn a_token_for_what_is_no_workload_of_this_mesh_is_not_made() {
    let control_plane = ControlPlane::start().await;
    let table = [
        (
            "spiffe://sidewind.local/sidewind/control-plane",
            Reason::NotAWorkload,
        ),
        ("spiffe://sidewind.local/sidewind", Reason::NotAWorkload),
        ("spiffe://sidewind.local", Reason::NotAWorkload),
        (
            "spiffe://other.example/ns/data/sa/orders",
            Reason::NotAWorkload,
        ),
        ("spiffe://sidewind.local/a/../b", Reason::InvalidMessage),
        ("orders", Reason::InvalidMessage),
        ("", Reason::InvalidMessage),
    ];
    for (id, expected) in table {
        let request = v1::CreateJoinTokenRequest {
            spiffe_id: id.to_owned(),
            ..Default::default()
        };
        let (reason, _) = refusal(control_plane.client.token_for(request).await);
        assert_eq!(reason, expected, "{id}");
    }
}

#[tokio::test]
async fn the_admin_socket_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let control_plane = ControlPlane::start().await;
    let socket = control_plane.client.admin_socket();
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
