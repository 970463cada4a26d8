use tokio::{task::LocalSet, time::sleep};

use super::*;
use crate::worker::{READY_WAIT, testing::worker};

fn target(port: u16) -> Target {
    Target::Address(SocketAddr::from(([10, 0, 0, 1], port)))
}

fn known(worker: &Worker) -> Vec<u16> {
    let known = worker.destinations.known.borrow();
    let mut ports: Vec<u16> = known.keys().map(Target::port).collect();
    ports.sort_unstable();
    ports
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_for_a_destination_wait_for_one_answer_and_only_once() {
    let worker = worker();
    let began = Instant::now();
    let ask = async |after: Duration| {
        sleep(after).await;
        let destination = worker.destinations.get(&target(80));
        let resolved = destination.resolve(&worker, READY_WAIT).await;
        assert!(resolved.is_err(), "{resolved:?}");
        began.elapsed()
    };
    let late = READY_WAIT + Duration::from_secs(7);
    let waits = [Duration::ZERO, READY_WAIT / 3, READY_WAIT * 2 / 3, late];
    let ended = futures_util::future::join_all(waits.map(ask)).await;
    for (after, ended) in waits.into_iter().zip(ended) {
        // Those who come later wait for what is left, and who comes after it not at all. Timers count milliseconds.
        let expected = after.max(READY_WAIT);
        assert!(
            (expected..expected + Duration::from_millis(3)).contains(&ended),
            "{ended:?} for who came after {after:?}"
        );
    }
    // Another destination has a wait of its own.
    let other = worker.destinations.get(&target(81));
    let began = Instant::now();
    assert!(other.resolve(&worker, READY_WAIT).await.is_err());
    assert!(began.elapsed() >= READY_WAIT);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_for_ten_minutes_is_forgotten_and_followed_no_more() {
    let worker = worker();
    let local = LocalSet::new();
    local.spawn_local(Destinations::forget_unused(Rc::clone(&worker)));
    local
        .run_until(async {
            let held = worker.destinations.get(&target(1));
            worker.destinations.get(&target(2));
            let unused = worker.destinations.get(&target(3));
            let follower = Rc::downgrade(&unused);
            drop(unused);
            for _ in 0..12 {
                sleep(REMEMBERED / 10).await;
                worker.destinations.get(&target(2));
            }
            assert_eq!(known(&worker), [1, 2], "held, or used now and then");
            assert!(follower.upgrade().is_none(), "it is still followed");
            drop(held);
            sleep(REMEMBERED * 2).await;
            assert_eq!(known(&worker), [0; 0]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn more_destinations_than_are_remembered_push_out_those_that_nobody_uses() {
    let worker = worker();
    let held = worker.destinations.get(&target(1));
    for port in 2..=u16::try_from(MAX_DESTINATIONS).unwrap() + 1 {
        worker.destinations.get(&target(port));
    }
    assert_eq!(
        known(&worker),
        [1, u16::try_from(MAX_DESTINATIONS).unwrap() + 1]
    );
    assert!(Rc::ptr_eq(&held, &worker.destinations.get(&target(1))));
}
