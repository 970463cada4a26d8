//! A database that was put back to an older copy of itself: it is told, and nobody gets by it what they should not.

use crate::support::{ControlPlane, Proxy, from_proxy, hello, refusal, svid_of, until};
use sidewind_api::v1::ban::Subject;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{Reason, v1};
use sidewind_identity::PrivateKey;
use std::collections::BTreeSet;
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
    let database = control_plane.database().await;
    let newest = sqlx::query_scalar("SELECT max(id) FROM audit");
    let newest: i64 = newest.fetch_one(&database).await.unwrap();
    // A connection that closes later writes what it has in its log into the copy that is restored.
    database.close().await;
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

async fn rotate_root(control_plane: &ControlPlane) {
    let request = v1::RotateAuthorityRequest {
        kind: v1::AuthorityKind::Root.into(),
        dry_run: false,
        force: true,
    };
    let mut admin = control_plane.client.admin_service().await;
    admin.rotate_authority(request).await.unwrap();
}

/// Key identifier and state of each root, the oldest first.
async fn roots(control_plane: &ControlPlane) -> Vec<(String, String)> {
    let mut admin = control_plane.client.admin_service().await;
    let answer = admin.get_authority(v1::GetAuthorityRequest {}).await;
    let all = answer.unwrap().into_inner().authorities.into_iter();
    let roots = all.filter(|it| it.role == "root");
    roots.map(|it| (it.subject_key_id, it.state)).collect()
}

async fn revoke(control_plane: &ControlPlane, key_id: &str) {
    let request = v1::RevokeAuthorityRequest {
        subject_key_id: key_id.to_owned(),
        force: true,
    };
    let mut admin = control_plane.client.admin_service().await;
    admin.revoke_authority(request).await.unwrap();
}

#[tokio::test]
async fn a_restored_database_brings_no_revoked_root_back_and_forgets_none_that_came_since() {
    let control_plane = ControlPlane::start().await;
    rotate_root(&control_plane).await;
    rotate_root(&control_plane).await;
    let directory = control_plane.stop().await;
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let svid = control_plane.client.svid(ORDERS, &[]).await;
    let directory = control_plane.stop().await;
    let state = directory.path().join("state");
    let yesterday = std::fs::read(state.join("sidewind.db")).unwrap();

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let first = roots(&control_plane).await[0].0.clone();
    revoke(&control_plane, &first).await;
    rotate_root(&control_plane).await;
    let before = roots(&control_plane).await;
    let [_, second, third] = before.as_slice() else {
        panic!("{before:?}");
    };
    let bundle = || std::fs::read_to_string(state.join("trust-bundle.pem")).unwrap();
    let certificates = |pem: &str| -> BTreeSet<String> {
        let all = pem.split_inclusive("-----END CERTIFICATE-----\n");
        all.map(str::to_owned).collect()
    };
    let trusted = certificates(&bundle());
    assert_eq!(trusted.len(), 2);
    until(async || is_remembered(&control_plane, &state).await).await;
    let directory = control_plane.stop().await;
    restore(&state, &yesterday);

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let expected = [
        (first.clone(), "revoked".to_owned()),
        (second.0.clone(), "active".to_owned()),
        (third.0.clone(), "old".to_owned()),
    ];
    assert_eq!(roots(&control_plane).await, expected);
    assert_eq!(certificates(&bundle()), trusted);
    control_plane.client.renew(&svid, csr()).await.unwrap();
    let detail = "SELECT detail FROM audit WHERE event = 'store-restored'";
    let detail: String = sqlx::query_scalar(detail)
        .fetch_one(&control_plane.database().await)
        .await
        .unwrap();
    for expected in [
        format!("{first} was not trusted any more and is revoked"),
        format!("{} had come since and stays trusted", third.0),
    ] {
        assert!(detail.contains(&expected), "{detail}");
    }
}

#[tokio::test]
async fn a_restored_database_that_signs_by_a_revoked_root_is_refused_each_time() {
    let control_plane = ControlPlane::start().await;
    let directory = control_plane.stop().await;
    let state = directory.path().join("state");
    let yesterday = std::fs::read(state.join("sidewind.db")).unwrap();
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let first = roots(&control_plane).await[0].0.clone();
    rotate_root(&control_plane).await;
    rotate_root(&control_plane).await;
    revoke(&control_plane, &first).await;
    until(async || is_remembered(&control_plane, &state).await).await;
    let directory = control_plane.stop().await;
    restore(&state, &yesterday);
    for _ in 0..2 {
        let settings = crate::support::settings(directory.path());
        let refused = sidewind_control_plane::server::Server::start(settings).await;
        let error = sidewind_control_plane::telemetry::chain(&refused.unwrap_err());
        assert!(error.contains(&first), "{error}");
        assert!(error.contains("Restore a later copy"), "{error}");
    }
    // The way out, for who knows better.
    std::fs::remove_file(state.join("store-position.json")).unwrap();
    ControlPlane::start_in(directory, |_| {}).await;
}

async fn ban(control_plane: &ControlPlane, id: &str) {
    let ban = v1::Ban {
        subject: Some(Subject::SpiffeId(id.to_owned())),
        reason: "its node was stolen".to_owned(),
        since_unix: 0,
    };
    let request = v1::SetBanRequest {
        ban: Some(ban),
        lift: false,
    };
    let mut admin = control_plane.client.admin_service().await;
    admin.set_ban(request).await.unwrap();
}

async fn next_bans(proxy: &mut Proxy) -> v1::Bans {
    let bans = |message| match message {
        ToProxy::Bans(bans) => Some(bans),
        _ => None,
    };
    proxy.next_of(bans).await
}

/// Says what a proxy has, and gives it back once it is asked for.
async fn give_back(proxy: &mut Proxy, bans: &v1::Bans) {
    let acknowledge = v1::Acknowledge {
        bans_version: bans.version,
        ..v1::Acknowledge::default()
    };
    let message = from_proxy(FromProxy::Acknowledge(acknowledge));
    proxy.sender.send(message).await.unwrap();
    let asked = |message| matches!(message, ToProxy::ReturnBans(_)).then_some(());
    proxy.next_of(asked).await;
    for (number, ban) in bans.bans.iter().enumerate() {
        let part = v1::KnownBans {
            version: bans.version,
            seal: bans.seal.clone(),
            bans: vec![ban.clone()],
            last: number + 1 == bans.bans.len(),
        };
        let message = from_proxy(FromProxy::KnownBans(part));
        proxy.sender.send(message).await.unwrap();
    }
}

#[tokio::test]
async fn bans_that_a_restored_database_has_lost_come_back_from_proxies_which_can_add_none() {
    let [early, late, victim] = ["early", "late", "victim"].map(|name| format!("{ORDERS}-{name}"));
    let control_plane = ControlPlane::start().await;
    let svid = control_plane.client.svid(ORDERS, &[]).await;
    let liar = control_plane.client.svid(LATER, &[]).await;
    ban(&control_plane, &early).await;
    let directory = control_plane.stop().await;
    let state = directory.path().join("state");
    let yesterday = std::fs::read(state.join("sidewind.db")).unwrap();

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    ban(&control_plane, &late).await;
    let mut proxy = control_plane
        .client
        .stream(&svid, hello(vec![]))
        .await
        .unwrap();
    let known = next_bans(&mut proxy).await;
    assert_eq!(known.bans.len(), 2);
    drop(proxy);
    until(async || is_remembered(&control_plane, &state).await).await;
    let directory = control_plane.stop().await;
    restore(&state, &yesterday);

    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let client = &control_plane.client;
    // A proxy that was broken into would like to have somebody banned.
    let mut forged = known.clone();
    forged.version = u64::MAX / 2;
    forged.bans[1].subject = Some(Subject::SpiffeId(victim.clone()));
    let mut broken = client.stream(&liar, hello(vec![])).await.unwrap();
    let lost = next_bans(&mut broken).await;
    assert_eq!(lost.bans.len(), 1, "the copy has one");
    // Whoever bans somebody meanwhile does not make the lost list an old one.
    let newer = [0, 1, 2].map(|number| format!("{ORDERS}-newer-{number}"));
    for id in &newer {
        ban(&control_plane, id).await;
    }
    give_back(&mut broken, &forged).await;

    let mut proxy = client.stream(&svid, hello(vec![])).await.unwrap();
    give_back(&mut proxy, &known).await;
    let found = loop {
        let bans = next_bans(&mut proxy).await;
        if bans.version > known.version {
            break bans;
        }
    };
    // Above the list that was given back, so that proxies take it.
    let banned = |list: &v1::Bans| -> BTreeSet<String> {
        let all = list.bans.iter().filter_map(|ban| ban.subject.clone());
        all.map(|subject| format!("{subject:?}")).collect()
    };
    let all: BTreeSet<String> = [&early, &late]
        .into_iter()
        .chain(&newer)
        .map(|id| format!("{:?}", Subject::SpiffeId(id.clone())))
        .collect();
    assert_eq!(banned(&found), all);
    let audit = control_plane.audit().await;
    let noted = audit.iter().filter(|(event, ..)| event == "bans-returned");
    assert_eq!(noted.count(), 1, "{audit:?}");
}
