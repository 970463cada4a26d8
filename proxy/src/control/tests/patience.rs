//! A control plane that asks to be left alone for a while is.

use sidewind_api::Reason;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Refuses everybody, and asks them to stay away for this long.
fn refuse(fake: &Fake, retry_after: Duration) {
    fake.behave(|behaviour| {
        behaviour.refuses_as = Some(Reason::RateLimited);
        behaviour.retry_after = Some(retry_after);
    });
}

/// The times between the next events of a kind.
async fn waits(fake: &mut Fake, count: usize, is_it: fn(&Seen) -> bool) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() <= count {
        if is_it(&fake.next().await) {
            times.push(Instant::now());
        }
    }
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn attestation_waits_for_as_long_as_it_is_asked_to_and_for_a_minute_at_most() {
    for (asked, shortest, longest) in [
        // Shorter than the fourth wait would be of itself.
        (2 * SECOND, 2 * SECOND, 3 * SECOND + SECOND / 5),
        (20 * SECOND, 20 * SECOND, 31 * SECOND),
        (86_400 * SECOND, 60 * SECOND, 91 * SECOND),
    ] {
        let world = World::new();
        let mut fake = world.control_plane().await;
        refuse(&fake, asked);
        let _proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
        let is_it = |seen: &Seen| matches!(seen, Seen::AttestationRefused);
        let waits = waits(&mut fake, 4, is_it).await;
        for wait in &waits {
            assert!((shortest..=longest).contains(wait), "{waits:?}");
        }
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_waits_for_as_long_as_it_is_asked_to() {
    let world = World::new();
    let fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = 3600 * SECOND);
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.identity(1).await;
    refuse(&fake, 30 * SECOND);
    let mut failed = Vec::new();
    for failures in 1..=4 {
        proxy
            .status(|status| status.svid_failures == failures)
            .await;
        failed.push(Instant::now());
    }
    for pair in failed.windows(2) {
        let wait = pair[1] - pair[0];
        assert!((30 * SECOND..=46 * SECOND).contains(&wait), "{wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_not_opened_again_sooner_than_is_asked() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = 20 * 3600 * SECOND);
    let _proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    let mut farewell = Reason::ShuttingDown.status("come back later");
    let key = sidewind_api::reason::RETRY_AFTER_KEY;
    farewell.metadata_mut().insert(key, 40_000_u64.into());
    let ended = Instant::now();
    refuse(&fake, 30 * SECOND);
    answers.send(Err(farewell)).await.unwrap();
    let is_it = |seen: &Seen| matches!(seen, Seen::StreamRefused);
    loop {
        if is_it(&fake.next().await) {
            break;
        }
    }
    let wait = ended.elapsed();
    assert!((40 * SECOND..=61 * SECOND).contains(&wait), "{wait:?}");
    for wait in waits(&mut fake, 3, is_it).await {
        assert!((30 * SECOND..=46 * SECOND).contains(&wait), "{wait:?}");
    }
}
