//! Tokens for workloads.

use crate::support::{Client, ControlPlane, hello, refusal};
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle, JwtBundles};
use sidewind_identity::jwt::svid::JwtSvid;
use sidewind_identity::{Svid, TrustDomain};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Status;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

async fn mint(
    client: &Client,
    svid: &Svid,
    audience: &[&str],
) -> Result<v1::MintJwtSvidResponse, Status> {
    let channel = client.channel(client.tls(svid)).await.unwrap();
    let audience = audience.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::MintJwtSvidRequest { audience };
    let mut service = IdentityServiceClient::new(channel);
    Ok(service.mint_jwt_svid(request).await?.into_inner())
}

fn jwt_bundles(bundle: &v1::TrustBundle) -> JwtBundles {
    let authorities = bundle
        .jwt_authorities
        .iter()
        .map(|key| JwtAuthority::from_spki_der(&key.key_id, &key.public_key, None).unwrap());
    let trust_domain = TrustDomain::parse(&bundle.trust_domain).unwrap();
    JwtBundles::from_iter([JwtBundle::new(trust_domain, authorities.collect()).unwrap()])
}

#[tokio::test]
async fn a_workload_gets_a_token_that_the_trust_bundle_verifies() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    let mut proxy = client.stream(&svid, hello(Vec::new())).await.unwrap();
    let bundles = proxy.next_of(|message| match message {
        ToProxy::TrustBundles(bundles) => Some(bundles.bundles),
        _ => None,
    });
    let bundle = bundles.await.remove(0);
    assert_eq!(bundle.refresh_hint_seconds, 300);

    let minted = mint(client, &svid, &["billing", "orders"]).await.unwrap();
    assert_eq!(minted.spiffe_id, ORDERS);
    assert_eq!(minted.expires_at_unix - minted.issued_at_unix, 300);
    let now = SystemTime::now();
    let token = JwtSvid::validate(&minted.token, "orders", &jwt_bundles(&bundle), now).unwrap();
    assert_eq!(token.id().as_str(), ORDERS);
    assert_eq!(token.audience(), ["billing", "orders"]);
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap());
    assert_eq!(token.expires(), at(minted.expires_at_unix));
    assert_eq!(token.issued_at(), Some(at(minted.issued_at_unix)));
    control_plane
        .metric("sidewind_svids_issued_total{call=\"mint-jwt\"} 1")
        .await;

    let jti = token.claims()["jti"].as_str().unwrap().to_owned();
    let directory = control_plane.stop().await;
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let row: (String, String, String, String) = sqlx::query_as(
        "SELECT outcome, spiffe_id, serial, detail FROM audit WHERE event = 'mint-jwt'",
    )
    .fetch_one(&control_plane.database().await)
    .await
    .unwrap();
    let expected = ["granted", ORDERS, &jti, "for billing, orders"];
    assert_eq!([row.0, row.1, row.2, row.3], expected);
    // The keys are those of before the restart.
    let minted = mint(&control_plane.client, &svid, &["a"]).await.unwrap();
    JwtSvid::validate(&minted.token, "a", &jwt_bundles(&bundle), SystemTime::now()).unwrap();
}

#[tokio::test]
async fn audiences_are_bounded() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    let (longest, too_long) = ("a".repeat(256), "a".repeat(257));
    mint(client, &svid, &[&*longest; 16]).await.unwrap();
    for audience in [
        &[][..],
        &["a"; 17],
        &[""],
        &["a", ""],
        &[&too_long],
        &["a\nb"],
    ] {
        let (reason, message) = refusal(mint(client, &svid, audience).await);
        assert_eq!(reason, Reason::AudienceRefused, "{message}");
    }
    control_plane
        .metric("sidewind_svid_refusals_total{call=\"mint-jwt\",reason=\"audience-refused\"} 6")
        .await;
    let refused = control_plane.audit().await.into_iter();
    let refused = refused.filter(|(event, outcome, id)| {
        event == "mint-jwt" && outcome == "audience-refused" && id.as_deref() == Some(ORDERS)
    });
    assert!(refused.count() <= 6);
}

#[tokio::test]
async fn who_is_nobody_or_not_registered_gets_no_token() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let request = v1::MintJwtSvidRequest {
        audience: vec!["a".to_owned()],
    };
    let mut anonymous = client.identity_service().await;
    let (reason, _) = refusal(anonymous.mint_jwt_svid(request).await);
    assert_eq!(reason, Reason::CertificateRequired);

    let svid = client.svid(ORDERS, &[]).await;
    let directory = control_plane.stop().await;
    let database = directory.path().join("state/sidewind.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    for table in ["svids", "registrations"] {
        let delete = sqlx::AssertSqlSafe(format!("DELETE FROM {table}"));
        sqlx::query(delete).execute(&pool).await.unwrap();
    }
    pool.close().await;
    let control_plane = ControlPlane::start_in(directory, |_| {}).await;
    let (reason, _) = refusal(mint(&control_plane.client, &svid, &["a"]).await);
    assert_eq!(reason, Reason::NotRegistered);
}

#[tokio::test]
async fn a_token_lives_no_longer_than_the_certificate_that_asked_for_it() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let request = v1::CreateJoinTokenRequest {
        spiffe_id: ORDERS.to_owned(),
        svid_ttl_seconds: 60,
        ..Default::default()
    };
    let token = client.token_for(request).await.unwrap();
    let key = sidewind_identity::PrivateKey::generate().unwrap();
    let response = client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    let svid = crate::support::svid_of(response, key);
    let minted = mint(client, &svid, &["a"]).await.unwrap();
    let ends = svid.not_after().duration_since(UNIX_EPOCH).unwrap();
    assert!(u64::try_from(minted.expires_at_unix).unwrap() <= ends.as_secs());
    assert!(minted.expires_at_unix > minted.issued_at_unix);
}
