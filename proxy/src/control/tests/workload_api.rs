//! What the control side does for the Workload API: credentials, refusals, JWT-SVIDs.

use sidewind_api::Reason;

use super::*;

fn audience() -> Vec<String> {
    vec!["billing".to_owned(), "audit".to_owned()]
}

#[tokio::test(start_paused = true)]
async fn credentials_come_with_each_certificate_and_their_key_is_its_own() {
    let world = World::new();
    let fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let mut credentials = proxy.control.credentials.clone();
    assert!(credentials.borrow().is_none());
    let mut keys = Vec::new();
    for generation in 1..=3 {
        let identity = proxy.identity(generation).await;
        let present = credentials.wait_for(|it| {
            it.as_ref()
                .is_some_and(|it| it.svid.serial_hex() == identity.serial_hex)
        });
        let present = present.await.unwrap().clone().unwrap();
        assert_eq!(present.svid.id(), &identity.id);
        assert_eq!(present.bundles.len(), 1);
        let key = present.svid.key().public_key_der();
        assert!(!keys.contains(&key), "each certificate is of a new key");
        keys.push(key);
    }
}

#[tokio::test(start_paused = true)]
async fn new_jwt_keys_reach_the_workload_api_and_disturb_no_connection() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let generation = proxy.identity(1).await.generation;
    let (_, _, answers) = fake.next_stream().await;
    let key = sidewind_identity::PrivateKey::generate().unwrap();
    let authority = v1::JwtAuthority {
        key_id: "first".to_owned(),
        public_key: key.public_key_der(),
        expires_at_unix: 0,
    };
    let mut bundle = fake.authority.bundle(1);
    bundle.jwt_authorities.push(authority);
    let bundles = |bundle: &v1::TrustBundle| {
        Message::TrustBundles(v1::TrustBundles {
            bundles: vec![bundle.clone()],
        })
    };
    send(&answers, bundles(&bundle)).await;
    let mut credentials = proxy.control.credentials.clone();
    let keys = |credentials: &Option<Arc<Credentials>>| {
        let credentials = credentials.as_ref().unwrap();
        let own = credentials.svid.id().trust_domain().clone();
        let bundle = credentials.jwt_bundles.get(&own);
        bundle.map_or(0, |bundle| bundle.authorities().len())
    };
    credentials.wait_for(|it| keys(it) == 1).await.unwrap();
    assert_eq!(proxy.identity(1).await.generation, generation);

    // A key that cannot be used changes nothing.
    bundle.jwt_authorities[0].public_key = vec![1, 2, 3];
    bundle.sequence = 2;
    send(&answers, bundles(&bundle)).await;
    bundle.jwt_authorities.clear();
    // Nor does a later sequence of the same roots disturb anybody.
    let is_second = |it: &Option<Arc<Credentials>>| {
        let credentials = it.as_ref().unwrap();
        credentials
            .bundles
            .iter()
            .all(|bundle| bundle.sequence() == 2)
    };
    credentials.wait_for(is_second).await.unwrap();
    assert_eq!(proxy.identity(1).await.generation, generation);
    assert_eq!(keys(&credentials.borrow_and_update().clone()), 1);
    bundle.sequence = 3;
    send(&answers, bundles(&bundle)).await;
    credentials.wait_for(|it| keys(it) == 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_identity_stands_until_there_is_a_new_svid() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    // Not about the identity.
    fake.behave(|behaviour| behaviour.refuses_as = Some(Reason::Overloaded));
    let status = proxy.status(|status| status.svid_failures > 0).await;
    assert_eq!(status.identity_refusal, None);
    fake.behave(|behaviour| behaviour.refuses_as = Some(Reason::Banned));
    proxy
        .status(|status| status.identity_refusal.is_some())
        .await;
    fake.kill().await;
    let failures = proxy.control.status.borrow().svid_failures;
    let status = proxy
        .status(|status| status.svid_failures > failures + 2)
        .await;
    assert!(status.identity_refusal.is_some(), "nobody took it back");
    fake.behave(|behaviour| behaviour.refuses_as = None);
    fake.restart().await;
    proxy
        .status(|status| status.identity_refusal.is_none())
        .await;
}

#[tokio::test(start_paused = true)]
async fn evidence_that_is_refused_at_the_start_is_a_refusal_and_an_absent_control_plane_is_none() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.tokens.clear());
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let status = proxy.status(|status| status.svid_failures > 0).await;
    assert!(status.identity_refusal.is_some());
    fake.kill().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let status = proxy.status(|status| status.svid_failures > 1).await;
    assert_eq!(status.identity_refusal, None);
}

#[tokio::test(start_paused = true)]
async fn jwt_svids_are_asked_for_as_the_present_svid_at_whichever_control_plane_answers() {
    let world = World::new();
    let authority = Arc::new(Authority::new());
    let mut first = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    let second = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    let urls = [first.url(), second.url()];
    let mut proxy = Proxy::start(&world, &authority, &urls);
    let error = proxy.control.minter.mint(&audience()).await.unwrap_err();
    assert!(matches!(error, ControlError::NoEvidence(_)), "{error}");
    for fake in [&first, &second] {
        fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    }
    let serial = proxy.identity(1).await.serial_hex.clone();
    for kill in [false, true] {
        if kill {
            first.kill().await;
        }
        let minted = proxy.control.minter.mint(&audience()).await.unwrap();
        assert_eq!(minted.token, format!("{serial} billing,audit"));
    }
    second.behave(|behaviour| behaviour.refuses_as = Some(Reason::AudienceRefused));
    let error = proxy.control.minter.mint(&audience()).await.unwrap_err();
    let ControlError::Refused { status, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(Reason::of(status), Some(Reason::AudienceRefused));
    second.behave(|behaviour| {
        behaviour.refuses_as = None;
        behaviour.renews_as = Some("spiffe://sidewind.local/ns/data/sa/other".to_owned());
    });
    let error = proxy.control.minter.mint(&audience()).await.unwrap_err();
    assert!(matches!(error, ControlError::BadAnswer { .. }), "{error}");
}
