//! A wall clock that jumps, and bundles that somebody wants back.

use super::*;
use crate::control::publisher::Publisher;
use sidewind_identity::{TrustBundle, TrustDomain};

const HOUR: Duration = Duration::from_secs(3600);
const THREE_DAYS: i64 = 3 * 86_400;

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_three_days_ahead_for_a_while_costs_no_identity() {
    let world = World::new();
    let fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = HOUR);
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    world.time.jump(THREE_DAYS);
    // It says so, and asks on.
    let status = proxy.status(|status| status.svid_failures > 3).await;
    let state = status.identity_state(world.time.now());
    assert!(matches!(state, IdentityState::Expired { .. }), "{state}");
    let error = status.identity_error.unwrap_or_default();
    assert!(error.contains("sidewind token create"), "{error}");
    let still = proxy.control.identity.borrow().clone().unwrap();
    assert_eq!(still.serial_hex, first.serial_hex);

    world.time.jump(-THREE_DAYS);
    let second = proxy.identity(2).await;
    assert_ne!(second.serial_hex, first.serial_hex);
    let status = proxy.status(|status| status.identity_error.is_none()).await;
    let state = status.identity_state(world.time.now());
    assert!(matches!(state, IdentityState::Valid { .. }), "{state}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_three_days_delays_no_renewal() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = HOUR);
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let first = proxy.identity(1).await;
    world.time.jump(-THREE_DAYS);
    // The control plane's clock is right: what it signs lives for an hour from the true now.
    let right = HOUR + Duration::from_secs(THREE_DAYS.unsigned_abs());
    fake.behave(|behaviour| behaviour.svid_ttl = right);
    let set_back = Instant::now();
    loop {
        if let Seen::Renewed { old_serial } = fake.next().await {
            assert_eq!(old_serial, first.serial_hex);
            break;
        }
    }
    // A third of the hour that the certificate had, and not of three days.
    assert!(set_back.elapsed() <= HOUR / 3);
    let second = proxy.identity(2).await;
    assert!(second.not_after > first.not_after);
}

/// A bundle of a trust domain with the root of an authority, or none.
fn bundle(trust_domain: &str, sequence: u64, authority: Option<&Authority>) -> v1::TrustBundle {
    let certificate = authority.map(|authority| authority.root.certificate().to_vec());
    v1::TrustBundle {
        trust_domain: trust_domain.to_owned(),
        sequence,
        authorities: certificate.into_iter().collect(),
        ..v1::TrustBundle::default()
    }
}

#[test]
fn an_older_bundle_is_not_taken_back_also_after_an_empty_one_took_trust_away() {
    let ours = TrustDomain::parse("example.org").unwrap();
    let theirs = TrustDomain::parse("sidewind.local").unwrap();
    let publisher = Publisher::new(ours.clone());
    let (old, new) = (Authority::new(), Authority::new());
    let own = TrustBundle::from_der(ours.clone(), 1, Vec::new()).unwrap();
    publisher.replace_own_bundle(own).unwrap();
    let update = |sequence, authority: Option<&Authority>| {
        let received = vec![bundle(theirs.as_str(), sequence, authority)];
        publisher.update_bundles(received).unwrap()
    };
    let trusted = || {
        let bundles = publisher.bundles();
        let bundle = bundles.get(&theirs).expect("it is kept");
        (bundle.sequence(), bundle.authorities().len())
    };
    assert!(update(5, Some(&new)).changed);
    let update_back = update(4, Some(&old));
    assert!(!update_back.changed && trusted() == (5, 1));
    assert!(
        update_back.problems[0].contains("its sequence 4 is older than 5"),
        "{:?}",
        update_back.problems
    );
    // Empty means that the trust domain is believed no more.
    assert!(update(6, None).changed);
    assert_eq!(trusted(), (6, 0));
    assert!(!update(5, Some(&new)).changed);
    assert_eq!(trusted(), (6, 0));
    // The own trust domain is not touched by any of it.
    assert_eq!(publisher.bundles().get(&ours).unwrap().sequence(), 1);
}
