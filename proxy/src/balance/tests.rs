use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use sidewind_api::v1;
use tokio::time::{advance, sleep};

use super::*;

fn endpoint(number: u8) -> EndpointDesc {
    weighted(number, 1)
}

fn weighted(number: u8, weight: u32) -> EndpointDesc {
    EndpointDesc {
        address: SocketAddr::from(([10, 0, 0, number], 80)),
        mesh: None,
        workload_name: "".into(),
        weight: NonZeroU32::new(weight).unwrap(),
    }
}

fn endpoints(count: u8) -> Vec<EndpointDesc> {
    (1..=count).map(endpoint).collect()
}

/// Picks `rounds` times, with `in_flight` requests at once, each taking what `latency` says, and counts the picks.
async fn share(
    balancer: &Balancer,
    rounds: usize,
    in_flight: usize,
    latency: impl Fn(&EndpointDesc) -> Duration,
) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    let mut running: Vec<(Instant, Pick)> = Vec::new();
    for _ in 0..rounds {
        let pick = balancer.pick(None).unwrap();
        *counts.entry(pick.desc().address).or_default() += 1;
        running.push((Instant::now() + latency(pick.desc()), pick));
        if running.len() >= in_flight {
            running.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
            let (end, pick) = running.pop().unwrap();
            tokio::time::sleep_until(end).await;
            pick.finish(Outcome::Success);
        }
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_get_equal_shares() {
    let balancer = Balancer::with_seed(&endpoints(4), 1);
    let counts = share(&balancer, 4000, 8, |_| Duration::from_millis(10)).await;
    for (address, count) in counts {
        assert!((700..1300).contains(&count), "{address}: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less() {
    let slow = endpoint(1);
    let balancer = Balancer::with_seed(&endpoints(4), 2);
    let latency = |desc: &EndpointDesc| Duration::from_millis(if *desc == slow { 200 } else { 10 });
    let counts = share(&balancer, 4000, 8, latency).await;
    let slow_count = counts.get(&slow.address).copied().unwrap_or_default();
    assert!(slow_count < 200, "{counts:?}");
    assert!(slow_count > 0, "it is tried now and then");
}

#[tokio::test(start_paused = true)]
async fn weights_are_shares() {
    let balancer = Balancer::with_seed(&[weighted(1, 1), weighted(2, 3)], 3);
    let counts = share(&balancer, 8000, 1, |_| Duration::from_millis(10)).await;
    let heavy = counts[&weighted(2, 3).address];
    assert!((5500..6500).contains(&heavy), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_fast_does_not_draw_the_traffic() {
    let broken = endpoint(1);
    let balancer = Balancer::with_seed(&endpoints(3), 4);
    let mut counts = HashMap::<SocketAddr, usize>::new();
    for _ in 0..3000 {
        let pick = balancer.pick(None).unwrap();
        *counts.entry(pick.desc().address).or_default() += 1;
        if *pick.desc() == broken {
            advance(Duration::from_micros(100)).await;
            pick.finish(Outcome::Failure);
        } else {
            advance(Duration::from_millis(10)).await;
            pick.finish(Outcome::Success);
        }
    }
    assert!(counts[&broken.address] <= 1200, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_endpoint_is_passed_over_for_a_while() {
    let balancer = Balancer::with_seed(&endpoints(2), 5);
    let failed = loop {
        let pick = balancer.pick(None).unwrap();
        if pick.desc().address == endpoint(1).address {
            break pick;
        }
    };
    failed.finish(Outcome::ConnectFailed);
    drop(failed);
    for _ in 0..100 {
        assert_eq!(balancer.pick(None).unwrap().desc(), &endpoint(2));
    }
    sleep(Duration::from_millis(501)).await;
    let tried = (0..100).any(|_| balancer.pick(None).unwrap().desc() == &endpoint(1));
    assert!(tried);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_unreachable_the_one_that_is_back_first_is_tried() {
    let balancer = Balancer::with_seed(&endpoints(2), 6);
    for _ in 0..2 {
        balancer.pick(None).unwrap().finish(Outcome::ConnectFailed);
        advance(Duration::from_millis(100)).await;
    }
    let first = balancer.pick(None).unwrap();
    let other = balancer.pick(Some(first.desc().address)).unwrap();
    assert_ne!(first.desc(), other.desc());
    assert!(
        balancer
            .endpoints
            .borrow()
            .list
            .iter()
            .all(|endpoint| endpoint.penalised_until().is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn penalties_grow_to_a_limit_and_end_with_success() {
    let endpoint = Rc::new(Endpoint::new(endpoint(1), None));
    let mut penalties = Vec::new();
    for _ in 0..8 {
        let now = Instant::now();
        Pick::new(endpoint.clone(), now).finish(Outcome::ConnectFailed);
        penalties.push((endpoint.penalised_until().unwrap() - now).as_millis());
    }
    assert_eq!(
        penalties,
        [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]
    );
    Pick::new(endpoint.clone(), Instant::now()).finish(Outcome::Success);
    assert_eq!(endpoint.penalised_until(), None);
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_to_avoid_is_taken_only_when_it_is_the_only_one() {
    let avoided = Some(endpoint(1).address);
    let several = Balancer::with_seed(&endpoints(3), 7);
    assert!((0..100).all(|_| several.pick(avoided).unwrap().desc() != &endpoint(1)));
    let only = Balancer::with_seed(&endpoints(1), 7);
    assert_eq!(only.pick(avoided).unwrap().desc(), &endpoint(1));
    assert!(Balancer::with_seed(&[], 7).pick(None).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_what_is_known_of_unchanged_endpoints() {
    let balancer = Balancer::with_seed(&endpoints(1), 8);
    let held = balancer.pick(None).unwrap();
    advance(Duration::from_millis(300)).await;
    held.finish(Outcome::Success);
    balancer.update(&endpoints(2));
    let state = |number: u8| {
        let endpoints = balancer.endpoints.borrow();
        let found = endpoints
            .list
            .iter()
            .find(|known| known.desc == endpoint(number));
        found.map(|endpoint| endpoint.load(Instant::now()))
    };
    assert_eq!(state(1), Some(0.6), "300 ms, and one more is in flight");
    assert!(
        state(2) < state(1),
        "a new one is tried at once, by one request"
    );
    let trying = balancer.pick(Some(endpoint(1).address)).unwrap();
    assert_eq!(state(2), Some(0.6), "and else counts as the others");
    drop(trying);
    balancer.update(&[endpoint(2)]);
    assert_eq!(balancer.len(), 1);
    held.finish(Outcome::Success);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pick_leaves_no_trace() {
    let balancer = Balancer::with_seed(&endpoints(1), 9);
    let before = balancer.endpoints.borrow().list[0].load(Instant::now());
    drop(balancer.pick(None));
    assert_eq!(
        balancer.endpoints.borrow().list[0].load(Instant::now()),
        before
    );
}

#[test]
fn endpoints_from_discovery_are_checked() {
    let good = v1::Endpoint {
        address: "10.0.0.1".into(),
        port: 80,
        mesh_port: 15008,
        spiffe_id: "spiffe://sidewind.local/ns/data/sa/orders".into(),
        workload_name: "orders-1".into(),
        weight: 0,
    };
    let desc = EndpointDesc::try_from(&good).unwrap();
    assert_eq!(desc.mesh.unwrap().address.port(), 15008);
    assert_eq!(desc.weight.get(), 1);
    let bad = [
        v1::Endpoint {
            address: "orders".into(),
            ..good.clone()
        },
        v1::Endpoint {
            port: 0,
            ..good.clone()
        },
        v1::Endpoint {
            port: 65_536,
            ..good.clone()
        },
        v1::Endpoint {
            mesh_port: 0,
            ..good.clone()
        },
        v1::Endpoint {
            spiffe_id: String::new(),
            ..good.clone()
        },
        v1::Endpoint {
            spiffe_id: "spiffe://".into(),
            ..good.clone()
        },
    ];
    for endpoint in bad {
        EndpointDesc::try_from(&endpoint).unwrap_err();
    }
    let plain = v1::Endpoint {
        mesh_port: 0,
        spiffe_id: String::new(),
        ..good
    };
    assert_eq!(EndpointDesc::try_from(&plain).unwrap().mesh, None);
}

proptest! {
    /// Whatever happens, a pick is one of the present endpoints, and every pick that ends is no longer in flight.
    #[test]
    fn picks_come_from_the_present_set(steps in proptest::collection::vec((0..4_u8, 0..6_u8), 1..200), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let balancer = Balancer::with_seed(&endpoints(3), seed);
            let mut present = endpoints(3);
            let mut held = Vec::new();
            for (step, argument) in steps {
                match step {
                    0 => {
                        present = (0..argument).map(|number| weighted(number, u32::from(number) + 1)).collect();
                        balancer.update(&present);
                    }
                    1 => drop(held.pop()),
                    _ => match balancer.pick(present.first().map(|desc| desc.address)) {
                        Some(pick) => {
                            assert!(present.contains(pick.desc()));
                            pick.finish([Outcome::Success, Outcome::Failure, Outcome::ConnectFailed][usize::from(argument % 3)]);
                            held.push(pick);
                        }
                        None => assert!(present.is_empty()),
                    },
                }
                advance(Duration::from_millis(u64::from(argument) * 100)).await;
            }
            held.clear();
            assert!(balancer.endpoints.borrow().list.iter().all(|endpoint| endpoint.in_flight() == 0));
        });
    }
}
