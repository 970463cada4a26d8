//! The JWT profile.

use sidewind_identity::jwt::svid::JwtSvid;
use tonic::Code;

use super::super::proto::{
    JwtBundlesRequest, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
};
use super::*;

fn asking(audience: &[&str], spiffe_id: &str) -> JwtsvidRequest {
    JwtsvidRequest {
        audience: audience.iter().map(ToString::to_string).collect(),
        spiffe_id: spiffe_id.to_owned(),
    }
}

async fn fetch(client: &mut Client, audience: &[&str]) -> Result<String, Status> {
    let answer = client.fetch_jwtsvid(asking(audience, "")).await?;
    Ok(only(&answer.into_inner()))
}

fn only(response: &JwtsvidResponse) -> String {
    let [svid] = response.svids.as_slice() else {
        panic!("{} tokens", response.svids.len());
    };
    assert_eq!(svid.spiffe_id, OWN);
    svid.svid.clone()
}

fn validating(audience: &str, svid: &str) -> ValidateJwtsvidRequest {
    ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_for_its_audience_and_verifies_with_the_bundle() {
    let world = World::new();
    let mut client = world.client().await;
    let token = fetch(&mut client, &["billing", "audit"]).await.unwrap();
    let bundles = world.credentials.borrow().clone().unwrap();
    for audience in ["billing", "audit"] {
        let svid = JwtSvid::validate(&token, audience, &bundles.jwt_bundles, SystemTime::now());
        assert_eq!(svid.unwrap().id().as_str(), OWN);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_until_half_of_its_life_for_the_same_audience() {
    let world = World::new();
    let mut client = world.client().await;
    let minted = || world.minter.minted.load(Ordering::Relaxed);
    let first = fetch(&mut client, &["a", "b"]).await.unwrap();
    assert_eq!(fetch(&mut client, &["b", "a", "b"]).await.unwrap(), first);
    assert_eq!(minted(), 1);
    assert_ne!(fetch(&mut client, &["a"]).await.unwrap(), first);
    assert_eq!(minted(), 2);
    tokio::time::sleep(3 * MINUTE).await;
    assert_ne!(fetch(&mut client, &["a", "b"]).await.unwrap(), first);
    assert_eq!(minted(), 3);
}

#[tokio::test(start_paused = true)]
async fn many_who_want_the_same_token_at_once_get_few_from_the_control_plane() {
    let world = World::new();
    let client = world.client().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut client = client.clone();
        calls.spawn(async move { fetch(&mut client, &["billing"]).await.unwrap() });
    }
    let tokens = calls.join_all().await;
    assert_eq!(tokens.len(), 100);
    assert!(world.minter.minted.load(Ordering::Relaxed) <= 4);
}

#[tokio::test(start_paused = true)]
async fn kept_tokens_are_forgotten_when_their_key_may_have_been_revoked() {
    let world = World::new();
    let mut client = world.client().await;
    let first = fetch(&mut client, &["billing"]).await.unwrap();
    world.rotate(HOUR);
    assert_eq!(fetch(&mut client, &["billing"]).await.unwrap(), first);
    let own = world.authority.root.trust_domain().clone();
    let successor = JwtBundle::new(own, vec![signer().authority().clone()]).unwrap();
    world.change_bundles(
        TrustBundles::from(world.authority.bundle()),
        JwtBundles::from_iter([successor]),
    );
    tokio::task::yield_now().await;
    assert_ne!(fetch(&mut client, &["billing"]).await.unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn more_tokens_than_are_kept_are_served_all_the_same() {
    let world = World::new();
    let mut client = world.client().await;
    for number in 0..300 {
        fetch(&mut client, &[&format!("audience-{number}")])
            .await
            .unwrap();
    }
    let minted = world.minter.minted.load(Ordering::Relaxed);
    fetch(&mut client, &["audience-299"]).await.unwrap();
    assert_eq!(world.minter.minted.load(Ordering::Relaxed), minted);
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_granted_get_the_code_of_the_standard() {
    let world = World::new();
    let mut client = world.client().await;
    let long = "a".repeat(5000);
    let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let cases: [(&[&str], &str, Code); 8] = [
        (&[], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (&["billing", ""], "", Code::InvalidArgument),
        (&[&long], "", Code::InvalidArgument),
        (&many, "", Code::InvalidArgument),
        (&["billing"], "not a SPIFFE ID", Code::InvalidArgument),
        (
            &["billing"],
            "spiffe://sidewind.local/ns/data/sa/other",
            Code::PermissionDenied,
        ),
        (&["billing"], OWN, Code::Ok),
    ];
    for (audience, id, expected) in cases {
        let answer = client.fetch_jwtsvid(asking(audience, id)).await;
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(code, expected, "{id} {}", audience.len());
    }
    assert_eq!(world.minter.minted.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_says_reaches_the_client_in_the_codes_of_the_standard() {
    use sidewind_api::Reason;
    let world = World::new();
    let mut client = world.client().await;
    for (status, expected) in [
        (Reason::Banned.status("banned"), Code::PermissionDenied),
        (Reason::NotRegistered.status("gone"), Code::PermissionDenied),
        (
            Reason::AudienceRefused.status("not that"),
            Code::InvalidArgument,
        ),
        (Reason::NotOffered.status("no"), Code::Unimplemented),
        (Reason::RateLimited.status("slowly"), Code::Unavailable),
        (Reason::StoreUnavailable.status("later"), Code::Unavailable),
        (Reason::Internal.status("oh"), Code::Unavailable),
    ] {
        *world.minter.refuses.lock().unwrap() = Some(status.clone());
        let refused = fetch(&mut client, &["billing"]).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_are_validated_with_the_keys_of_their_own_trust_domain() {
    let world = World::new();
    let other = Authority::new("other.example");
    let mut client = world.client().await;
    let token = fetch(&mut client, &["billing"]).await.unwrap();
    let answer = client.validate_jwtsvid(validating("billing", &token)).await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.spiffe_id, OWN);
    let claims = answer.claims.unwrap().fields;
    let text = |name: &str| match &claims[name].kind {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((text("sub"), text("aud")), (OWN.into(), "billing".into()));
    assert!(matches!(
        claims["exp"].kind,
        Some(prost_types::value::Kind::NumberValue(seconds)) if seconds > 1e9
    ));

    let stranger = SpiffeId::parse("spiffe://other.example/ns/a/sa/b").unwrap();
    let foreign = other
        .jwt
        .sign(
            &stranger,
            &["billing".to_owned()],
            5 * MINUTE,
            SystemTime::now(),
        )
        .unwrap();
    let forged = SpiffeId::parse(OWN).unwrap();
    let forged = other.jwt.sign(
        &forged,
        &["billing".to_owned()],
        5 * MINUTE,
        SystemTime::now(),
    );
    for (audience, token) in [
        ("other", token.as_str()),
        ("", token.as_str()),
        ("billing", ""),
        ("billing", "a.b.c"),
        ("billing", &token[..token.len() - 2]),
        ("billing", &foreign.token),
        ("billing", &forged.unwrap().token),
    ] {
        let refused = client.validate_jwtsvid(validating(audience, token)).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(
            token.is_empty() || !refused.message().contains(token),
            "{refused}"
        );
    }
    let keys = JwtBundles::from_iter([world.authority.jwt_bundle(), other.jwt_bundle()]);
    world.change_bundles(TrustBundles::from(world.authority.bundle()), keys);
    tokio::task::yield_now().await;
    let answer = client
        .validate_jwtsvid(validating("billing", &foreign.token))
        .await;
    assert_eq!(answer.unwrap().into_inner().spiffe_id, stranger.as_str());
    world.time.jump(600);
    let refused = client.validate_jwtsvid(validating("billing", &token)).await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("expired"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn keys_are_pushed_as_key_sets_by_trust_domain() {
    let world = World::new();
    let mut client = world.client().await;
    let stream = client.fetch_jwt_bundles(JwtBundlesRequest {}).await;
    let mut stream = stream.unwrap().into_inner();
    let keys = |bundles: &std::collections::BTreeMap<String, Vec<u8>>, name: &str| {
        let set: serde_json::Value = serde_json::from_slice(&bundles[name]).unwrap();
        set["keys"].as_array().unwrap().clone()
    };
    let first = next(&mut stream).await.unwrap().bundles;
    let own = keys(&first, "spiffe://sidewind.local");
    assert_eq!((first.len(), own.len()), (1, 1));
    assert_eq!(own[0]["use"], "jwt-svid");
    assert_eq!(
        own[0]["kid"],
        world.authority.jwt.authority().key_id.as_str()
    );
    world.rotate(HOUR);
    assert!(is_quiet(&mut stream).await);

    let other = Authority::new("other.example");
    let empty = TrustDomain::parse("empty.example").unwrap();
    let empty = JwtBundle::new(empty, Vec::new()).unwrap();
    world.change_bundles(
        TrustBundles::from(world.authority.bundle()),
        JwtBundles::from_iter([other.jwt_bundle(), empty]),
    );
    let second = next(&mut stream).await.unwrap().bundles;
    assert_eq!(second.len(), 2);
    assert_eq!(keys(&second, "spiffe://other.example").len(), 1);
    assert!(
        keys(&second, "spiffe://sidewind.local").is_empty(),
        "the own one is always there"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_banned_identity_is_not_good() {
    let world = World::new();
    let mut client = world.client().await;
    let id = SpiffeId::parse("spiffe://sidewind.local/ns/a/sa/b/dag/etl/task/load").unwrap();
    let audience = ["billing".to_owned()];
    let signed = (world.authority.jwt).sign(&id, &audience, 5 * MINUTE, SystemTime::now());
    let token = signed.unwrap().token;
    world.ban(&["spiffe://sidewind.local/ns/a/sa/c", "00ff"]);
    tokio::task::yield_now().await;
    let answer = client.validate_jwtsvid(validating("billing", &token)).await;
    assert_eq!(answer.unwrap().into_inner().spiffe_id, id.as_str());
    world.ban(&["spiffe://sidewind.local/ns/a/sa/b"]);
    tokio::task::yield_now().await;
    let refused = client.validate_jwtsvid(validating("billing", &token)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("is banned"), "{refused}");
}
