//! The X.509 profile.

use rustls_pki_types::CertificateDer;
use tonic::Code;

use super::super::proto::{X509BundlesRequest, X509svidRequest, X509svidResponse};
use super::*;

/// What a client must find in a message: certificates and a key that belong together.
fn check(response: &X509svidResponse, expected: &Svid) {
    let [svid] = response.svids.as_slice() else {
        panic!("{} SVIDs", response.svids.len());
    };
    assert_eq!(svid.spiffe_id, OWN);
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
    let chain = split(&svid.x509_svid);
    assert_eq!(chain, expected.chain());
    // It checks that the key is the leaf's.
    Svid::new(chain, key).unwrap();
    assert!(!svid.bundle.is_empty());
}

/// DER after DER.
fn split(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        // SEQUENCE with a length of two bytes, as every certificate of this size has.
        assert_eq!(der[..2], [0x30, 0x82]);
        let length = 4 + usize::from(u16::from_be_bytes([der[2], der[3]]));
        certificates.push(CertificateDer::from(der[..length].to_vec()));
        der = &der[length..];
    }
    certificates
}

#[tokio::test(start_paused = true)]
async fn the_first_message_comes_at_once_and_is_the_whole_state() {
    let world = World::waiting();
    let svid = world.rotate(HOUR);
    let mut client = world.client().await;
    let begun = tokio::time::Instant::now();
    let mut stream = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = next(&mut stream).await.unwrap();
    assert!(begun.elapsed() <= Duration::from_millis(100));
    check(&first, &svid);
    assert_eq!(
        split(&first.svids[0].bundle),
        [world.authority.root.certificate().clone()]
    );
    assert!(first.federated_bundles.is_empty() && first.crl.is_empty());
    assert!(is_quiet(&mut stream).await, "the stream stays open");
}

#[tokio::test(start_paused = true)]
async fn each_rotation_is_pushed_on_every_open_stream() {
    let world = World::new();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut client = world.client().await;
        let stream = client.fetch_x509svid(X509svidRequest {}).await;
        streams.push(stream.unwrap().into_inner());
    }
    for stream in &mut streams {
        next(stream).await.unwrap();
    }
    for _ in 0..3 {
        let svid = world.rotate(HOUR);
        for stream in &mut streams {
            check(&next(stream).await.unwrap(), &svid);
        }
    }
    // Nothing has changed: nothing is said.
    let present = world.credentials.borrow().clone().unwrap();
    world.publish(
        present.svid.clone(),
        present.bundles.clone(),
        present.jwt_bundles.clone(),
    );
    world.status.send_modify(|status| status.svids_issued += 1);
    assert!(is_quiet(&mut streams[0]).await);
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_seen_beside_the_old_one_before_it_signs() {
    let world = World::new();
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    let before = next(&mut stream).await.unwrap();
    let successor = Authority::new("sidewind.local");
    let roots = [&world.authority, &successor].map(|it| it.root.certificate().to_vec());
    let own = world.authority.root.trust_domain().clone();
    let both = TrustBundle::from_der(own, 2, roots.to_vec()).unwrap();
    world.change_bundles(TrustBundles::from(both), JwtBundles::new());
    let overlap = next(&mut stream).await.unwrap();
    assert_eq!(overlap.svids[0].x509_svid, before.svids[0].x509_svid);
    assert_eq!(split(&overlap.svids[0].bundle).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn federated_bundles_are_named_by_the_id_of_their_trust_domain_and_empty_ones_left_out() {
    let world = World::new();
    let other = Authority::new("other.example");
    let mut bundles = TrustBundles::from(world.authority.bundle());
    bundles.insert(other.bundle());
    let distrusted = TrustDomain::parse("distrusted.example").unwrap();
    bundles.insert(TrustBundle::from_der(distrusted, 1, Vec::new()).unwrap());
    world.change_bundles(bundles, JwtBundles::new());

    let mut client = world.client().await;
    let svids = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    let first = next(&mut svids.into_inner()).await.unwrap();
    let root = other.root.certificate().to_vec();
    assert_eq!(
        first.federated_bundles,
        [("spiffe://other.example".to_owned(), root.clone())].into()
    );
    let bundles = client
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .unwrap();
    let own = world.authority.root.certificate().to_vec();
    assert_eq!(
        next(&mut bundles.into_inner()).await.unwrap().bundles,
        [
            ("spiffe://other.example".to_owned(), root),
            ("spiffe://sidewind.local".to_owned(), own)
        ]
        .into()
    );
}

#[tokio::test(start_paused = true)]
async fn bundles_are_pushed_when_they_change_and_not_when_the_svid_does() {
    let world = World::new();
    let mut client = world.client().await;
    let stream = client.fetch_x509_bundles(X509BundlesRequest {}).await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().bundles.len(), 1);
    world.rotate(HOUR);
    assert!(is_quiet(&mut stream).await);
    let mut bundles = TrustBundles::from(world.authority.bundle());
    bundles.insert(Authority::new("other.example").bundle());
    world.change_bundles(bundles, JwtBundles::new());
    assert_eq!(next(&mut stream).await.unwrap().bundles.len(), 2);
    world.change_bundles(
        TrustBundles::from(world.authority.bundle()),
        JwtBundles::new(),
    );
    assert_eq!(
        next(&mut stream).await.unwrap().bundles.len(),
        1,
        "what is absent is redacted"
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_identity_yet_every_call_is_unavailable_and_says_why() {
    let world = World::waiting();
    world.status.send_modify(|status| {
        status.identity_error = Some("cannot connect to https://control-plane:15010".to_owned());
    });
    tokio::task::yield_now().await;
    let mut client = world.client().await;
    let refused = [
        client.fetch_x509svid(X509svidRequest {}).await.unwrap_err(),
        client
            .fetch_x509_bundles(X509BundlesRequest {})
            .await
            .unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("cannot connect"), "{status}");
    }
    world.rotate(HOUR);
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    next(&mut stream.into_inner()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_svid_is_never_served_and_bundles_go_on() {
    let world = World::new();
    world.rotate(2 * MINUTE);
    let mut client = world.client().await;
    let mut svids = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    let bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await;
    let mut bundles = bundles.unwrap().into_inner();
    next(&mut svids).await.unwrap();
    next(&mut bundles).await.unwrap();

    tokio::time::sleep(3 * MINUTE).await;
    let ended = next(&mut svids).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(ended.message().contains("expired"), "{ended}");
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        is_quiet(&mut bundles).await,
        "they verify others as they did"
    );

    let svid = world.rotate(HOUR);
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    check(&next(&mut stream.into_inner()).await.unwrap(), &svid);
}

#[tokio::test(start_paused = true)]
async fn after_the_machine_has_slept_through_its_end_an_svid_is_not_served() {
    let world = World::new();
    let mut client = world.client().await;
    world.time.jump(2 * 3600);
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_is_refused_an_identity_is_told_so_and_its_streams_end() {
    let world = World::new();
    let mut client = world.client().await;
    let mut svids = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap()
        .into_inner();
    let bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await;
    let mut bundles = bundles.unwrap().into_inner();
    next(&mut svids).await.unwrap();
    next(&mut bundles).await.unwrap();
    world.refuse("the identity is banned");
    for ended in [
        next(&mut svids).await.map(drop).unwrap_err(),
        next(&mut bundles).await.map(drop).unwrap_err(),
        client
            .fetch_x509svid(X509svidRequest {})
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
        assert!(ended.message().starts_with("no identity issued"), "{ended}");
    }
    world
        .status
        .send_modify(|status| status.identity_refusal = None);
    tokio::task::yield_now().await;
    let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
    next(&mut stream.into_inner()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_banned_workload_gets_nothing_before_its_control_plane_has_said_so() {
    for by_serial in [false, true] {
        let world = World::waiting();
        let serial = world.rotate(HOUR).serial_hex().to_owned();
        let mut client = world.client().await;
        let mut svids = client
            .fetch_x509svid(X509svidRequest {})
            .await
            .unwrap()
            .into_inner();
        next(&mut svids).await.unwrap();
        world.ban(&[if by_serial { &serial } else { OWN }]);
        let ended = next(&mut svids).await.map(drop).unwrap_err();
        assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
        world.ban(&[]);
        tokio::task::yield_now().await;
        let stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap();
        next(&mut stream.into_inner()).await.unwrap();
    }
}
