//! Clocks that differ, and one that jumps.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_control_plane_whose_clock_differs_by_more_than_half_a_minute_raises_an_alarm() {
    for (ahead, expected) in [
        (None, None),
        (Some(0), None),
        (Some(25), None),
        (Some(-25), None),
        (Some(60), Some("clock is 60 s ahead of this machine's")),
        (Some(-600), Some("clock is 600 s behind this machine's")),
    ] {
        let world = World::new();
        let fake = world.control_plane().await;
        fake.behave(|behaviour| behaviour.clock_ahead = ahead);
        let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
        let status = proxy.status(|status| status.identity.is_some()).await;
        let alarm = status.clock_alarm();
        match expected {
            None => assert_eq!(alarm, None),
            Some(expected) => assert!(alarm.as_deref().unwrap().ends_with(expected), "{alarm:?}"),
        }
        assert_eq!(status.clock_difference.is_some(), ahead.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_alarm_ends_once_the_clocks_agree_again() {
    let world = World::new();
    let fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.clock_ahead = Some(3600));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    proxy.status(|status| status.clock_alarm().is_some()).await;
    fake.behave(|behaviour| behaviour.clock_ahead = Some(1));
    proxy.status(|status| status.clock_alarm().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_says_what_the_clock_is_too() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    proxy.status(|status| status.connected).await;
    fake.behave(|behaviour| {
        behaviour.clock_ahead = Some(3600);
        behaviour.refuses_renewal = true;
    });
    answers
        .send(Err(tonic::Status::aborted("go")))
        .await
        .unwrap();
    proxy.status(|status| status.clock_alarm().is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_is_noticed_and_renews_at_once() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(7200));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    fake.next_stream().await;
    proxy.identity(1).await;
    let slept = Instant::now();
    world.time.jump(5400);
    loop {
        if let Seen::Renewed { .. } = fake.next().await {
            break;
        }
    }
    assert!(slept.elapsed() <= Duration::from_secs(31));
    let status = proxy.status(|status| status.clock_jumps == 1).await;
    assert!(status.clock_alarm().is_none());
}
