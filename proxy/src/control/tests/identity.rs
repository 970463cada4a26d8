//! Attestation, renewal and what happens when neither works.

use super::*;

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_in_time_with_new_keys_and_the_stream_follows_without_a_gap() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let _destination = proxy.control.discovery.subscribe("billing.data:80");
    proxy.status(|status| status.connected).await;
    let mut status = proxy.control.status.clone();
    let watcher = tokio::spawn(async move {
        while status.changed().await.is_ok() {
            assert!(status.borrow_and_update().connected, "there was a gap");
        }
    });
    let mut keys = Vec::new();
    for generation in 1..=10 {
        let identity = proxy.identity(generation).await;
        let (hello, serial, _answers) = fake.next_stream().await;
        assert_eq!(
            serial, identity.serial_hex,
            "the stream is on the new certificate"
        );
        assert_eq!(hello.instance_id, proxy.control.instance_id());
        assert!(matches!(fake.next().await, Seen::Subscribed(name) if name == "billing.data:80"));
        let received = Instant::now();
        let Seen::Renewed { old_serial } = fake.next().await else {
            panic!("not renewed");
        };
        assert_eq!(old_serial, identity.serial_hex);
        // Certificates end on whole seconds, so up to one of the 60 is missing.
        let waited = received.elapsed().as_secs_f64();
        assert!(
            (14.7..=20.1).contains(&waited),
            "renewed after {waited} s of 60"
        );
        assert!(!keys.contains(&identity.serial_hex));
        keys.push(identity.serial_hex.clone());
    }
    assert!(!watcher.is_finished());
    watcher.abort();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_goes_over_the_connection_of_the_stream() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    // One to attest, and one for the stream.
    fake.next_stream().await;
    assert_eq!(fake.connections(), 2);
    for renewals in 1..=5 {
        // The stream that is opened under the next certificate.
        fake.next_stream().await;
        assert_eq!(fake.connections(), 2 + renewals);
    }
    drop(proxy);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_valid_yet_takes_no_good_ones_place() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(4 * 3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    fake.next_stream().await;
    let (soon, late) = (Duration::from_secs(3 * 3600), Duration::from_secs(5 * 3600));
    fake.behave(|behaviour| {
        behaviour.svids_begin_in = Some(soon);
        behaviour.svid_ttl = late;
    });
    let status = proxy.status(|status| status.svid_failures > 2).await;
    let error = status.identity_error.unwrap();
    assert!(error.contains("not valid yet"), "{error}");
    let present = proxy.control.identity.borrow().clone().unwrap();
    assert_eq!(present.serial_hex, first.serial_hex);
    fake.behave(|behaviour| behaviour.svids_begin_in = None);
    proxy.identity(2).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_says_of_the_identity_at_a_streams_end_is_looked_into_at_once() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(20 * 3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (_, _, answers) = fake.next_stream().await;
    fake.behave(|behaviour| behaviour.refuses_as = Some(sidewind_api::Reason::Banned));
    let ended = sidewind_api::Reason::Banned.status("banned");
    let began = Instant::now();
    answers.send(Err(ended)).await.unwrap();
    let status = proxy
        .status(|status| status.identity_refusal.is_some())
        .await;
    assert!(began.elapsed() < Duration::from_secs(60));
    assert!(
        status
            .identity_refusal
            .unwrap()
            .contains("refused by the fake")
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_the_control_plane_is_sent_nothing() {
    let world = World::new();
    let mut imposter = world
        .control_plane_as(WORKLOAD, Arc::new(Authority::new()))
        .await;
    let mut proxy = Proxy::start(&world, &imposter.authority, &[imposter.url()]);
    let status = proxy.status(|status| status.svid_failures > 3).await;
    let error = status.identity_error.unwrap();
    let expected = format!("is {WORKLOAD}, not {CONTROL_PLANE}; nothing was sent to it");
    assert!(error.contains(&expected), "{error}");
    assert!(imposter.seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_of_another_authority_is_sent_nothing() {
    let world = World::new();
    let mut other = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &Authority::new(), &[other.url()]);
    let status = proxy.status(|status| status.svid_failures > 3).await;
    let error = status.identity_error.unwrap();
    assert!(error.starts_with("TLS handshake with https://"), "{error}");
    assert!(!error.contains("OtherError"), "{error}");
    assert!(other.seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_expired_svid_is_replaced_by_a_new_token_without_a_restart() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    fake.kill().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    fake.restart().await;
    let status = proxy
        .status(|status| {
            let error = status.identity_error.as_deref().unwrap_or_default();
            error.contains("not renewed")
        })
        .await;
    let state = status.identity_state(world.time.now());
    let error = status.identity_error.as_deref().unwrap_or_default();
    let remedy =
        format!("run `sidewind token create --spiffe-id {WORKLOAD}` and write its token to");
    assert!(
        matches!(state, IdentityState::Expired { .. }) && error.contains(&remedy),
        "{state}: {error}"
    );
    assert!(matches!(
        status.identity_state(world.time.now()),
        IdentityState::Expired { .. }
    ));

    fake.add_token("second");
    std::fs::write(proxy.files.path().join("token"), "second\n").unwrap();
    proxy.identity(2).await;
    let status = proxy.status(|status| status.identity_error.is_none()).await;
    assert!(matches!(
        status.identity_state(world.time.now()),
        IdentityState::Valid { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_new_token_is_used_as_soon_as_the_svid_is_worth_nothing_and_no_used_one_is() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    fake.behave(|behaviour| behaviour.forgets = true);
    let status = proxy.status(|status| status.svid_failures > 2).await;
    let error = status.identity_error.unwrap();
    assert!(error.contains("forgotten"), "{error}");
    while let Ok(seen) = fake.seen.try_recv() {
        assert!(
            !matches!(seen, Seen::AttestationRefused),
            "with a used token"
        );
    }
    fake.add_token("second");
    std::fs::write(proxy.files.path().join("token"), "second\n").unwrap();
    let second = proxy.identity(2).await;
    assert!(first.not_after > world.time.now(), "long before the end");
    assert_ne!(first.serial_hex, second.serial_hex);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_half_the_certificates_life_is_survived() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    fake.kill().await;
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert!(first.not_after > world.time.now());
    fake.restart().await;
    let second = proxy.identity(2).await;
    assert!(
        second
            .not_after
            .duration_since(first.not_after)
            .unwrap()
            .as_secs()
            > 3000
    );
    assert!(world.time.now() < first.not_after);
    assert!(
        proxy.control.status.borrow().svid_failures >= 30,
        "a try a minute at least"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_and_one_for_another_identity_change_nothing() {
    let world = World::new();
    let fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    fake.behave(|behaviour| behaviour.refuses_renewal = true);
    let status = proxy.status(|status| status.svid_failures == 1).await;
    assert!(status.identity_error.unwrap().contains("not renewed"));
    let other = "spiffe://sidewind.local/ns/data/sa/other";
    fake.behave(|behaviour| {
        behaviour.refuses_renewal = false;
        behaviour.renews_as = Some(other.to_owned());
    });
    let status = proxy.status(|status| status.svid_failures == 2).await;
    assert!(status.identity_error.unwrap().contains(other));
    assert_eq!(
        proxy.control.identity.borrow().as_ref().unwrap().serial_hex,
        first.serial_hex
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_tried_again_ever_more_rarely_and_never_ends_the_proxy() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.tokens.clear());
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let begun = Instant::now();
    let status = proxy.status(|status| status.svid_failures == 10).await;
    assert!((100..=300).contains(&begun.elapsed().as_secs()));
    let error = status.identity_error.unwrap();
    assert!(
        error.contains("the join token is used or unknown"),
        "{error}"
    );
    fake.add_token("token");
    proxy.identity(1).await;
    assert!(matches!(fake.next().await, Seen::AttestationRefused));
}

#[tokio::test(start_paused = true)]
async fn the_trust_bundle_is_waited_for() {
    let world = World::new();
    let fake = world.control_plane().await;
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("token"), "token").unwrap();
    let mut proxy = Proxy::start_with(&world, files, &[fake.url()]);
    let status = proxy.status(|status| status.identity_error.is_some()).await;
    assert_eq!(status.identity_state(world.time.now()), IdentityState::None);
    let error = status.identity_error.unwrap_or_default();
    assert!(error.starts_with("the trust bundle /"), "{error}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let bundle = fake.authority.root.certificate_pem();
    std::fs::write(proxy.files.path().join("roots.pem"), bundle).unwrap();
    let written = Instant::now();
    proxy.identity(1).await;
    assert!(written.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_suspended_renews_within_half_a_minute() {
    let world = World::new();
    let fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    world.time.jump(3000);
    let resumed = Instant::now();
    proxy.identity(2).await;
    assert!(resumed.elapsed() <= Duration::from_secs(31));
    assert!(world.time.now() > SystemTime::now() + Duration::from_secs(2900));
}

fn tainted(key_ids: &[&str]) -> Message {
    Message::TaintedAuthorities(v1::TaintedAuthorities {
        subject_key_ids: key_ids.iter().map(|id| (*id).to_owned()).collect(),
    })
}

#[tokio::test(start_paused = true)]
async fn an_svid_of_a_tainted_authority_is_renewed_within_ten_seconds() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    let (.., answers) = fake.next_stream().await;
    send(&answers, tainted(&["0123"])).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(proxy.identity(1).await.serial_hex, first.serial_hex);

    let old = fake.authority.rotate();
    let told = Instant::now();
    send(&answers, tainted(&["0123", &old])).await;
    proxy.identity(2).await;
    assert!(
        told.elapsed() <= Duration::from_secs(11),
        "{:?}",
        told.elapsed()
    );
    // The new one is of another authority, and is renewed in its own time.
    let (.., answers) = fake.next_stream().await;
    send(&answers, tainted(&["0123", &old])).await;
    let renewed = Instant::now();
    proxy.identity(3).await;
    assert!(renewed.elapsed() >= Duration::from_secs(890));
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_is_of_a_tainted_authority_again_is_renewed_once_a_minute() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    let (.., answers) = fake.next_stream().await;
    let root = fake.authority.root.key_id().to_owned();
    send(&answers, tainted(&[&root])).await;
    proxy.identity(2).await;
    for generation in 3..6 {
        let begun = Instant::now();
        proxy.identity(generation).await;
        let waited = begun.elapsed().as_secs();
        assert!((59..=61).contains(&waited), "{waited}");
    }
}
