//! What the stream brings, and what happens when it breaks.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_known_stays_while_the_control_plane_is_away_and_is_subscribed_again() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let mut orders = proxy.control.discovery.subscribe("orders:80");
    let (.., answers) = fake.next_stream().await;
    assert!(matches!(fake.next().await, Seen::Subscribed(name) if name == "orders:80"));
    send(&answers, Message::Destination(service("orders"))).await;
    send(&answers, policy(7, "spiffe://sidewind.local/ns/*/sa/*")).await;
    orders.wait_for(Option::is_some).await.unwrap();
    proxy.status(|status| status.policy_received).await;

    fake.kill().await;
    proxy.status(|status| !status.connected).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(matches!(&*orders.borrow(), Some(Resolution::Service(it)) if it.name == "orders"));
    assert_eq!(
        proxy
            .control
            .inbound_policy
            .borrow()
            .as_ref()
            .unwrap()
            .version,
        7
    );
    let billing = proxy.control.discovery.subscribe("billing:80");
    assert_eq!(*billing.borrow(), None);

    fake.restart().await;
    let restarted = Instant::now();
    let (.., answers) = fake.next_stream().await;
    assert!(restarted.elapsed() <= Duration::from_secs(6));
    let mut again = Vec::new();
    for _ in 0..2 {
        if let Seen::Subscribed(name) = fake.next().await {
            again.push(name);
        }
    }
    again.sort();
    assert_eq!(again, ["billing:80", "orders:80"]);
    orders.mark_unchanged();
    send(&answers, Message::Destination(service("orders"))).await;
    let outside = v1::DestinationUpdate {
        destination: "billing:80".to_owned(),
        service: None,
    };
    send(&answers, Message::Destination(outside)).await;
    let mut billing = billing;
    billing
        .wait_for(|it| *it == Some(Resolution::Outside))
        .await
        .unwrap();
    assert!(!orders.has_changed().unwrap(), "the same answer is no news");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_nobody_uses_is_unsubscribed() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(23 * 3600));
    let proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (_hello, _serial, _answers) = fake.next_stream().await;
    let begun = Instant::now();
    drop(proxy.control.discovery.subscribe("orders:80"));
    assert!(matches!(fake.next().await, Seen::Subscribed(_)));
    assert!(matches!(fake.next().await, Seen::Unsubscribed(name) if name == "orders:80"));
    assert!((600..=661).contains(&begun.elapsed().as_secs()));
    assert_eq!(proxy.control.discovery.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_older_trust_bundle_is_refused_and_a_newer_one_reaches_every_connection() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.bundle_sequence = 5);
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    let (.., answers) = fake.next_stream().await;
    let bundles = |bundles| Message::TrustBundles(v1::TrustBundles { bundles });

    send(&answers, bundles(vec![Authority::new().bundle(4)])).await;
    let status = proxy.status(|status| status.bad_messages == 1).await;
    assert!(status.connected);
    assert_eq!(
        proxy.control.identity.borrow().as_ref().unwrap().generation,
        1
    );

    let mut newer = fake.authority.bundle(6);
    newer
        .authorities
        .extend(Authority::new().bundle(6).authorities);
    send(&answers, bundles(vec![newer.clone()])).await;
    let second = proxy.identity(2).await;
    assert_eq!(second.serial_hex, first.serial_hex);
    assert!(!Arc::ptr_eq(&second.server_tls, &first.server_tls));

    newer.sequence = 7;
    newer.authorities.clear();
    send(&answers, bundles(vec![newer])).await;
    proxy.status(|status| status.bad_messages == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_read_leaves_the_one_before_in_force() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    send(&answers, policy(1, "spiffe://sidewind.local/ns/*/sa/*")).await;
    send(&answers, policy(2, "everybody")).await;
    proxy.status(|status| status.bad_messages == 1).await;
    assert_eq!(
        proxy
            .control
            .inbound_policy
            .borrow()
            .as_ref()
            .unwrap()
            .version,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_workload_keeps_its_stream_and_serves_no_ports() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (before, ..) = fake.next_stream().await;
    proxy.status(|status| status.connected).await;
    proxy.control.withdraw();
    let (after, ..) = fake.next_stream().await;
    assert_eq!(before.ports.len(), 1);
    assert!(after.ports.is_empty());
    assert_eq!(before.instance_id, after.instance_id);
    proxy.status(|status| status.streams_opened == 2).await;
    assert!(proxy.control.status.borrow().connected);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_acknowledged_after_each_change_of_it() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    let (.., answers) = fake.next_stream().await;
    assert_eq!(
        fake.next_acknowledgement().await,
        (1, first.serial_hex.clone())
    );

    let newer = Message::TrustBundles(v1::TrustBundles {
        bundles: vec![fake.authority.bundle(2)],
    });
    send(&answers, newer.clone()).await;
    assert_eq!(
        fake.next_acknowledgement().await,
        (2, first.serial_hex.clone())
    );
    // Nothing has changed, and nothing is said, until the next certificate.
    send(&answers, newer).await;
    fake.behave(|behaviour| behaviour.bundle_sequence = 2);
    let second = proxy.identity(3).await;
    assert_ne!(second.serial_hex, first.serial_hex);
    let mut acknowledged = fake.next_acknowledgement().await;
    // On the old stream while there is no new one, and then on the new one.
    while acknowledged.1 != second.serial_hex {
        acknowledged = fake.next_acknowledgement().await;
    }
    assert_eq!(acknowledged, (2, second.serial_hex.clone()));
    fake.next_stream().await;
    assert_eq!(
        fake.next_acknowledgement().await,
        (2, second.serial_hex.clone())
    );
}

#[tokio::test(start_paused = true)]
async fn the_newest_list_of_bans_is_given_back_as_it_was_sent_when_it_is_asked_for() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let _proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    let ban = |number: usize| v1::Ban {
        subject: Some(v1::ban::Subject::Serial(format!("{number:040x}"))),
        reason: "x".repeat(200),
        since_unix: 7,
    };
    let list = |version, bans: usize| v1::Bans {
        version,
        bans: (0..bans).map(ban).collect(),
        seal: vec![1, 2, 3],
    };
    let newest = list(8, 300);
    for bans in [list(7, 1), newest.clone(), list(3, 2)] {
        send(&answers, Message::Bans(bans)).await;
    }
    send(&answers, Message::ReturnBans(v1::ReturnBans {})).await;
    let mut given_back = Vec::new();
    loop {
        let Seen::GaveBack(part) = fake.next().await else {
            continue;
        };
        assert_eq!((part.version, &part.seal), (8, &newest.seal));
        assert!(prost::Message::encoded_len(&part) <= sidewind_api::MAX_PROXY_MESSAGE_BYTES);
        given_back.extend(part.bans);
        if part.last {
            break;
        }
    }
    assert_eq!(given_back, newest.bans);
}
