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
        zone: "".into(),
        priority: 0,
        affinity: None,
    }
}

/// A balancer that shares nothing, with default settings.
fn balancer(endpoints: &[EndpointDesc], seed: u64) -> Balancer {
    Balancer::alone(endpoints, BalanceSettings::default(), seed)
}

fn any() -> Selection<'static> {
    Selection::default()
}

fn plan(endpoints: &[EndpointDesc]) -> Plan<'_> {
    Plan {
        endpoints,
        ..Plan::default()
    }
}

fn tried(address: SocketAddr) -> Tried {
    let tried = Tried::default();
    tried.add(address);
    tried
}

/// Picks another endpoint than this one, where there is another.
fn pick_other(balancer: &Balancer, address: SocketAddr) -> Option<Pick> {
    let tried = tried(address);
    balancer.pick(&Selection {
        tried: Some(&tried),
        ..any()
    })
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
        let pick = balancer.pick(&any()).unwrap();
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
    let balancer = balancer(&endpoints(4), 1);
    let counts = share(&balancer, 4000, 8, |_| Duration::from_millis(10)).await;
    for (address, count) in counts {
        assert!((700..1300).contains(&count), "{address}: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less() {
    let slow = endpoint(1);
    let balancer = balancer(&endpoints(4), 2);
    let latency = |desc: &EndpointDesc| Duration::from_millis(if *desc == slow { 200 } else { 10 });
    let counts = share(&balancer, 4000, 8, latency).await;
    let slow_count = counts.get(&slow.address).copied().unwrap_or_default();
    assert!(slow_count < 200, "{counts:?}");
    assert!(slow_count > 0, "it is tried now and then");
}

#[tokio::test(start_paused = true)]
async fn weights_are_shares() {
    let balancer = balancer(&[weighted(1, 1), weighted(2, 3)], 3);
    let counts = share(&balancer, 8000, 1, |_| Duration::from_millis(10)).await;
    let heavy = counts[&weighted(2, 3).address];
    assert!((5500..6500).contains(&heavy), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_fast_does_not_draw_the_traffic() {
    let broken = endpoint(1);
    let balancer = balancer(&endpoints(3), 4);
    let mut counts = HashMap::<SocketAddr, usize>::new();
    for _ in 0..3000 {
        let pick = balancer.pick(&any()).unwrap();
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
    let balancer = balancer(&endpoints(2), 5);
    let failed = loop {
        let pick = balancer.pick(&any()).unwrap();
        if pick.desc().address == endpoint(1).address {
            break pick;
        }
    };
    failed.finish(Outcome::ConnectFailed);
    drop(failed);
    for _ in 0..100 {
        assert_eq!(balancer.pick(&any()).unwrap().desc(), &endpoint(2));
    }
    sleep(Duration::from_millis(501)).await;
    let tried = (0..100).any(|_| balancer.pick(&any()).unwrap().desc() == &endpoint(1));
    assert!(tried);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_unreachable_the_one_that_is_back_first_is_tried() {
    let balancer = balancer(&endpoints(2), 6);
    for _ in 0..2 {
        balancer
            .pick(&any())
            .unwrap()
            .finish(Outcome::ConnectFailed);
        advance(Duration::from_millis(100)).await;
    }
    let first = balancer.pick(&any()).unwrap();
    let other = pick_other(&balancer, first.desc().address).unwrap();
    assert_ne!(first.desc(), other.desc());
    assert!(
        balancer
            .inner
            .borrow()
            .list
            .iter()
            .all(|endpoint| endpoint.penalised_until().is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn penalties_grow_to_a_limit_and_end_with_success() {
    let only = balancer(&endpoints(1), 1);
    let until = || only.inner.borrow().list[0].penalised_until();
    let mut penalties = Vec::new();
    for _ in 0..8 {
        let now = Instant::now();
        only.pick(&any()).unwrap().finish(Outcome::ConnectFailed);
        penalties.push((until().unwrap() - now).as_millis());
    }
    assert_eq!(
        penalties,
        [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]
    );
    only.pick(&any()).unwrap().finish(Outcome::Success);
    assert_eq!(until(), None);
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_to_avoid_is_taken_only_when_it_is_the_only_one() {
    let avoided = endpoint(1).address;
    let several = balancer(&endpoints(3), 7);
    assert!((0..100).all(|_| pick_other(&several, avoided).unwrap().desc() != &endpoint(1)));
    let only = balancer(&endpoints(1), 7);
    assert_eq!(pick_other(&only, avoided).unwrap().desc(), &endpoint(1));
    assert!(balancer(&[], 7).pick(&any()).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_what_is_known_of_unchanged_endpoints() {
    let balancer = balancer(&endpoints(1), 8);
    let held = balancer.pick(&any()).unwrap();
    advance(Duration::from_millis(300)).await;
    held.finish(Outcome::Success);
    balancer.update(&plan(&endpoints(2)));
    let state = |number: u8| {
        let endpoints = balancer.inner.borrow();
        let found = endpoints
            .list
            .iter()
            .find(|known| *known.desc() == endpoint(number));
        found.map(|endpoint| endpoint.load(Instant::now()))
    };
    assert_eq!(state(1), Some(0.6), "300 ms, and one more is in flight");
    assert!(
        state(2) < state(1),
        "a new one is tried at once, by one request"
    );
    let trying = pick_other(&balancer, endpoint(1).address).unwrap();
    assert_eq!(state(2), Some(0.6), "and else counts as the others");
    drop(trying);
    balancer.update(&plan(&[endpoint(2)]));
    assert_eq!(balancer.len(), 1);
    held.finish(Outcome::Success);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pick_leaves_no_trace() {
    let balancer = balancer(&endpoints(1), 9);
    let before = balancer.inner.borrow().list[0].load(Instant::now());
    drop(balancer.pick(&any()));
    assert_eq!(balancer.inner.borrow().list[0].load(Instant::now()), before);
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
        ..Default::default()
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

fn pick_avoiding(balancer: &Balancer, address: Option<SocketAddr>) -> Option<Pick> {
    match address {
        Some(address) => pick_other(balancer, address),
        None => balancer.pick(&any()),
    }
}

proptest! {
    /// Whatever happens, a pick is one of the present endpoints, and every pick that ends is no longer in flight.
    #[test]
    fn picks_come_from_the_present_set(steps in proptest::collection::vec((0..4_u8, 0..6_u8), 1..200), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let balancer = balancer(&endpoints(3), seed);
            let mut present = endpoints(3);
            let mut held = Vec::new();
            for (step, argument) in steps {
                match step {
                    0 => {
                        present = (0..argument).map(|number| weighted(number, u32::from(number) + 1)).collect();
                        balancer.update(&plan(&present));
                    }
                    1 => drop(held.pop()),
                    _ => match pick_avoiding(&balancer, present.first().map(|desc| desc.address)) {
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
            assert!(balancer.inner.borrow().list.iter().all(|endpoint| endpoint.in_flight() == 0));
        });
    }
}

/// Picks this endpoint, as a request does that has tried all others.
fn pick_this(balancer: &Balancer, number: u8) -> Pick {
    let others = Tried::default();
    for endpoint in &balancer.inner.borrow().list {
        if endpoint.desc().address != endpoint_address(number) {
            others.add(endpoint.desc().address);
        }
    }
    let selection = Selection {
        tried: Some(&others),
        ..any()
    };
    let pick = balancer.pick(&selection).unwrap();
    assert_eq!(pick.desc().address, endpoint_address(number));
    pick
}

fn endpoint_address(number: u8) -> SocketAddr {
    endpoint(number).address
}

/// Takes an endpoint out by failures in a row, as many as it takes.
fn fail(balancer: &Balancer, number: u8) {
    while !is_ejected(balancer, number) {
        pick_this(balancer, number).finish(Outcome::Failure);
    }
}

fn is_ejected(balancer: &Balancer, number: u8) -> bool {
    let inner = balancer.inner.borrow();
    let found = inner
        .list
        .iter()
        .find(|it| it.desc().address == endpoint(number).address);
    found.is_some_and(|endpoint| endpoint.health().is_ejected())
}

fn picked(balancer: &Balancer, rounds: usize) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    for _ in 0..rounds {
        let pick = balancer.pick(&any()).unwrap();
        *counts.entry(pick.desc().address).or_default() += 1;
    }
    counts
}

fn algorithm(algorithm: Algorithm) -> BalanceSettings {
    BalanceSettings {
        algorithm,
        ..BalanceSettings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_in_a_row_is_ejected_and_one_request_finds_out_when_it_is_back() {
    let several = balancer(&endpoints(3), 10);
    fail(&several, 1);
    assert!(is_ejected(&several, 1));
    assert!(!picked(&several, 100).contains_key(&endpoint(1).address));
    advance(Duration::from_secs(10)).await;
    let repeatable = Selection {
        repeatable: true,
        ..any()
    };
    let probe = several.pick(&repeatable).unwrap();
    assert_eq!(*probe.desc(), endpoint(1), "the first is the probe");
    for _ in 0..100 {
        assert_ne!(*several.pick(&repeatable).unwrap().desc(), endpoint(1));
    }
    probe.finish(Outcome::Failure);
    drop(probe);
    advance(Duration::from_secs(10)).await;
    assert!(
        !picked(&several, 100).contains_key(&endpoint(1).address),
        "held twice as long"
    );
    advance(Duration::from_secs(10)).await;
    several.pick(&repeatable).unwrap().finish(Outcome::Success);
    assert!(picked(&several, 100).contains_key(&endpoint(1).address));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_probe_fails_is_asked_again_when_fewer_are_left_than_may_be_ejected() {
    let several = balancer(&endpoints(3), 10);
    fail(&several, 1);
    fail(&several, 2);
    several.update(&plan(&endpoints(2)));
    advance(Duration::from_secs(10)).await;
    let repeatable = Selection {
        repeatable: true,
        ..any()
    };
    for _ in 0..2 {
        several.pick(&repeatable).unwrap().finish(Outcome::Failure);
    }
    several.update(&plan(&endpoints(3)));
    assert!(is_ejected(&several, 1) && is_ejected(&several, 2));
    advance(Duration::from_secs(20)).await;
    for _ in 0..2 {
        several.pick(&repeatable).unwrap().finish(Outcome::Success);
    }
    assert!(!is_ejected(&several, 1) && !is_ejected(&several, 2));
}

#[tokio::test(start_paused = true)]
async fn once_all_are_ejected_whichever_answers_is_back() {
    let several = balancer(&endpoints(3), 10);
    fail(&several, 1);
    fail(&several, 2);
    several.update(&plan(&endpoints(2)));
    pick_this(&several, 1).finish(Outcome::Success);
    assert!(!is_ejected(&several, 1) && is_ejected(&several, 2));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_repeated_is_the_last_to_find_out() {
    let several = balancer(&endpoints(3), 11);
    fail(&several, 2);
    advance(Duration::from_secs(15)).await;
    assert!(!picked(&several, 100).contains_key(&endpoint(2).address));
    advance(Duration::from_secs(5)).await;
    assert_eq!(*several.pick(&any()).unwrap().desc(), endpoint(2));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_was_given_up_leaves_its_place_to_another() {
    let several = balancer(&endpoints(3), 12);
    fail(&several, 3);
    advance(Duration::from_secs(20)).await;
    drop(several.pick(&any()).unwrap());
    assert_eq!(*several.pick(&any()).unwrap().desc(), endpoint(3));
}

/// A request that fails at the first endpoint that it draws, and goes to another, which answers or not. Gives both.
fn failed_at_first(balancer: &Balancer, outcome: Outcome) -> [SocketAddr; 2] {
    let tried = Tried::default();
    [Outcome::Failure, outcome].map(|outcome| {
        let selection = Selection {
            tried: Some(&tried),
            ..any()
        };
        let pick = balancer.pick(&selection).unwrap();
        tried.add(pick.desc().address);
        pick.finish(outcome);
        pick.desc().address
    })
}

#[tokio::test(start_paused = true)]
async fn a_request_that_failed_at_all_that_seem_well_goes_to_an_ejected_one() {
    let two = balancer(&endpoints(2), 14);
    let [ejected, well] = [1, 2].map(endpoint_address);
    fail(&two, 1);
    for _ in 0..4 {
        assert_eq!(failed_at_first(&two, Outcome::Failure), [well, ejected]);
    }
    // The well one answers in between: the other stays away for as long as it was told to.
    pick_this(&two, 2).finish(Outcome::Success);
    for _ in 0..4 {
        assert_eq!(failed_at_first(&two, Outcome::Success), [well, ejected]);
    }
    assert!(is_ejected(&two, 1));
    // Only that never all are ejected keeps the one that fails from it: they change places.
    assert_eq!(failed_at_first(&two, Outcome::Success), [well, ejected]);
    assert!(!is_ejected(&two, 1));
    fail(&two, 2);
    assert!(!picked(&two, 100).contains_key(&well));
}

#[tokio::test(start_paused = true)]
async fn a_try_that_waited_in_vain_counts_as_failed_and_a_client_that_left_does_not() {
    let several = balancer(&endpoints(2), 13);
    let patience = Duration::from_secs(1);
    for (waited, ejected) in [(999, false), (1000, true)] {
        for _ in 0..20 {
            if is_ejected(&several, 1) {
                break;
            }
            let pick = pick_this(&several, 1);
            pick.wait_for(Some(patience));
            advance(Duration::from_millis(waited)).await;
            drop(pick);
        }
        assert_eq!(is_ejected(&several, 1), ejected, "{waited} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn round_robin_gives_each_its_turn() {
    let equal = Balancer::alone(&endpoints(3), algorithm(Algorithm::RoundRobin), 1);
    assert_eq!(
        picked(&equal, 9).into_values().collect::<Vec<_>>(),
        [3, 3, 3]
    );
    let weights = [weighted(1, 1), weighted(2, 2), weighted(3, 4)];
    let unequal = Balancer::alone(&weights, algorithm(Algorithm::RoundRobin), 1);
    let counts = picked(&unequal, 70);
    let count = |number: u8| counts[&endpoint(number).address];
    assert_eq!((count(1), count(2), count(3)), (10, 20, 40));
}

#[tokio::test(start_paused = true)]
async fn least_request_takes_the_one_with_fewer_in_flight() {
    let two = Balancer::alone(&endpoints(2), algorithm(Algorithm::LeastRequest), 1);
    let held: Vec<Pick> = (0..10).map(|_| two.pick(&any()).unwrap()).collect();
    let first = held
        .iter()
        .filter(|pick| *pick.desc() == endpoint(1))
        .count();
    assert_eq!(first, 5);
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_with_its_endpoint_and_goes_on_when_that_is_full() {
    let settings = BalanceSettings {
        hash_load_percent: 125,
        ..algorithm(Algorithm::ConsistentHash)
    };
    let several = Balancer::alone(&endpoints(4), settings, 1);
    let of_key = |key: &str| Selection {
        hash: Some(hash(key.as_bytes())),
        ..any()
    };
    let first = several.pick(&of_key("a")).unwrap().desc().clone();
    for _ in 0..50 {
        assert_eq!(*several.pick(&of_key("a")).unwrap().desc(), first);
    }
    let held: Vec<Pick> = (0..40)
        .map(|_| several.pick(&of_key("a")).unwrap())
        .collect();
    let own = held.iter().filter(|pick| *pick.desc() == first).count();
    assert!(
        (10..=13).contains(&own),
        "{own} of 40 at a bound of 125 % of 10"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cookie_names_the_endpoint_whatever_comes_and_goes_and_nothing_else() {
    let sticky = StickySettings {
        cookie: "route".into(),
        max_age_seconds: 60,
        header: None,
    };
    let several = balancer(&endpoints(3), 14);
    let home = several.pick(&any()).unwrap();
    let cookie = home.affinity().set_cookie(&sticky, true).unwrap();
    let cookie = cookie.to_str().unwrap();
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure"),
        "{cookie}"
    );
    assert!(!cookie.contains("10.0.0"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let named = |cookie: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert("cookie", format!("a=b; {cookie}; c=d").parse().unwrap());
        Affinity::of_request(&headers, &sticky)
    };
    assert_eq!(named(pair), Some(home.affinity()));
    // In a header field of a route's choice, likewise.
    let by_header = StickySettings {
        header: Some("x-session".parse().unwrap()),
        ..sticky.clone()
    };
    let mut headers = http::HeaderMap::new();
    home.affinity().tell(&mut headers, &by_header, true);
    assert_eq!(
        Affinity::of_request(&headers, &by_header),
        Some(home.affinity())
    );
    assert!(!headers.contains_key("set-cookie"), "{headers:?}");
    let follow = |cookie: &str| {
        let selection = Selection {
            affinity: named(cookie),
            ..any()
        };
        several.pick(&selection).unwrap().desc().clone()
    };
    let (own, others): (Vec<_>, Vec<_>) = endpoints(3)
        .into_iter()
        .partition(|desc| desc == home.desc());
    assert!((0..50).all(|_| follow(pair) == own[0]));
    several.update(&plan(&[own[0].clone(), endpoint(9), others[0].clone()]));
    assert!(
        (0..50).all(|_| follow(pair) == own[0]),
        "others came and went"
    );
    several.update(&plan(&others));
    assert!(
        (0..50).all(|_| others.contains(&follow(pair))),
        "it is gone"
    );
    for hostile in [
        "route=",
        "route=127.0.0.1:22",
        "route=zz",
        &"route=f".repeat(40),
    ] {
        assert_eq!(named(hostile), None, "{hostile}");
        follow(hostile);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cookie_names_an_endpoint_of_any_zone_and_priority_while_it_is_well() {
    let of = |number: u8, zone: &str, priority: u32| EndpointDesc {
        zone: zone.into(),
        priority,
        ..endpoint(number)
    };
    let settings = BalanceSettings {
        zone: Some("a".into()),
        ..BalanceSettings::default()
    };
    // One of them alone is for those who name none.
    let list = [of(1, "a", 0), of(2, "b", 0), of(3, "a", 1)];
    let several = Balancer::alone(&list, settings, 21);
    assert_eq!(picked(&several, 100).len(), 1);
    let follow = |desc: &EndpointDesc| {
        let named = Selection {
            affinity: Some(Affinity::of(desc)),
            ..any()
        };
        several.pick(&named).unwrap()
    };
    for desc in &list {
        assert!((0..50).all(|_| follow(desc).desc() == desc), "{desc:?}");
    }
    while !is_ejected(&several, 2) {
        follow(&list[1]).finish(Outcome::Failure);
    }
    assert_eq!(follow(&list[1]).desc(), &list[0]);
}

#[tokio::test(start_paused = true)]
async fn a_priority_is_left_when_too_little_of_it_is_well_and_taken_up_when_it_is_healed() {
    let level = |number: u8, priority: u32| EndpointDesc {
        priority,
        ..endpoint(number)
    };
    let several = balancer(&[level(1, 0), level(2, 0), level(3, 0), level(4, 1)], 15);
    assert!(!picked(&several, 200).contains_key(&endpoint(4).address));
    fail(&several, 1);
    let counts = picked(&several, 200);
    assert!(
        !counts.contains_key(&endpoint(4).address),
        "two thirds are left: {counts:?}"
    );
    fail(&several, 2);
    let counts = picked(&several, 200);
    assert_eq!(
        counts.into_keys().collect::<Vec<_>>(),
        [endpoint(4).address]
    );
    advance(Duration::from_secs(20)).await;
    for _ in 0..2 {
        several.pick(&any()).unwrap().finish(Outcome::Success);
    }
    assert!(!picked(&several, 200).contains_key(&endpoint(4).address));
}

#[tokio::test(start_paused = true)]
async fn the_own_zone_comes_first_while_enough_of_it_is_well() {
    let zoned = |number: u8, zone: &str| EndpointDesc {
        zone: zone.into(),
        ..endpoint(number)
    };
    let settings = BalanceSettings {
        zone: Some("a".into()),
        failover_percent: 60,
        ..BalanceSettings::default()
    };
    let list = [zoned(1, "a"), zoned(2, "a"), zoned(3, "b"), zoned(4, "b")];
    let several = Balancer::alone(&list, settings, 16);
    assert_eq!(picked(&several, 200).len(), 2);
    fail(&several, 1);
    let counts = picked(&several, 200);
    assert_eq!(
        counts.len(),
        3,
        "half of the zone is too little: {counts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_little_by_little() {
    let settings = BalanceSettings {
        slow_start: 10_000,
        ..algorithm(Algorithm::RoundRobin)
    };
    let several = Balancer::alone(&endpoints(2), settings.clone(), 17);
    several.update(&Plan {
        settings,
        ..plan(&endpoints(3))
    });
    let new = |counts: HashMap<SocketAddr, usize>| {
        counts
            .get(&endpoint(3).address)
            .copied()
            .unwrap_or_default()
    };
    let at_first = new(picked(&several, 300));
    advance(Duration::from_secs(5)).await;
    let halfway = new(picked(&several, 300));
    advance(Duration::from_secs(5)).await;
    let at_last = new(picked(&several, 300));
    assert!(
        at_first < 30 && (30..90).contains(&halfway),
        "{at_first}, {halfway}"
    );
    assert_eq!(at_last, 100);
}

proptest! {
    /// However requests fail, one endpoint at least is not ejected, and there always is a pick.
    #[test]
    fn never_all_are_ejected(outcomes in proptest::collection::vec((0..3_u8, 0..3000_u64), 1..300), count in 1..6_u8, seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let several = balancer(&endpoints(count), seed);
            for (outcome, pause) in outcomes {
                several.pick(&any()).unwrap().finish([Outcome::Failure, Outcome::ConnectFailed, Outcome::Success][usize::from(outcome)]);
                advance(Duration::from_millis(pause)).await;
                let ejected = (1..=count).filter(|number| is_ejected(&several, *number)).count();
                assert!(ejected < usize::from(count));
                assert!(ejected * 100 <= usize::from(count) * 67);
            }
        });
    }

    /// Whatever went wrong, and whichever endpoints came and went meanwhile: all that are there serve again once they are
    /// well.
    #[test]
    fn all_serve_again_once_they_are_well(
        steps in proptest::collection::vec((1..16_u8, 0..16_u8, 0..30_usize, 0..30_000_u64), 1..40),
        seed: u64,
    ) {
        let has = |set: u8, number: u8| set & (1 << (number - 1)) != 0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let several = balancer(&endpoints(4), seed);
            let repeatable = Selection { repeatable: true, ..any() };
            let is_ill = |pick: &Pick, ill: u8| (1..=4).any(|number| has(ill, number) && pick.desc().address == endpoint_address(number));
            for (set, ill, requests, pause) in steps {
                let there: Vec<EndpointDesc> = (1..=4).filter(|number| has(set, *number)).map(endpoint).collect();
                several.update(&plan(&there));
                // All at once, so that some were chosen before others failed.
                let picks: Vec<Pick> = (0..requests).map(|_| several.pick(&repeatable).unwrap()).collect();
                for pick in picks {
                    pick.finish(if is_ill(&pick, ill) { Outcome::Failure } else { Outcome::Success });
                }
                advance(Duration::from_millis(pause)).await;
            }
            advance(Duration::from_secs(3600)).await;
            for _ in 0..8 {
                several.pick(&repeatable).unwrap().finish(Outcome::Success);
            }
            assert!((1..=4).all(|number| !is_ejected(&several, number)));
        });
    }

    /// When an endpoint goes, its keys move and no others; when it comes back they return.
    #[test]
    fn only_the_keys_of_an_endpoint_that_goes_move(count in 2..12_u8, gone in 0..12_u8, seed: u64) {
        let all = endpoints(count);
        let gone = &all[usize::from(gone % count)];
        let rest: Vec<EndpointDesc> = all.iter().filter(|desc| *desc != gone).cloned().collect();
        let before = ring::Ring::new(all.iter());
        let after = ring::Ring::new(rest.iter());
        for key in 0..500_u64 {
            let key = hash(&(key ^ seed).to_be_bytes());
            let home = &all[before.find(key, |_| Some(true)).unwrap()];
            let now = &rest[after.find(key, |_| Some(true)).unwrap()];
            assert!(home == now || home == gone);
        }
    }

    /// Shares on the ring follow weights, to within what so many points can do.
    #[test]
    fn shares_of_keys_follow_weights(weight in 1..6_u32, seed: u64) {
        let list = [weighted(1, weight), weighted(2, 6)];
        let ring = ring::Ring::new(list.iter());
        let of_first = (0..20_000_u64).filter(|key| ring.find(hash(&(key ^ seed).to_be_bytes()), |_| Some(true)) == Some(0)).count();
        let share = of_first as f64 / 20_000.0;
        let expected = f64::from(weight) / f64::from(weight + 6);
        assert!((share - expected).abs() < 0.12, "{share} and not {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_counts_under_another_weight() {
    let balancer = Balancer::alone(
        &[endpoint(1)],
        BalanceSettings {
            algorithm: Algorithm::LeastRequest,
            ..BalanceSettings::default()
        },
        1,
    );
    let held: Vec<Pick> = (0..9).map(|_| balancer.pick(&any()).unwrap()).collect();
    let changed = [weighted(1, 2), weighted(2, 2)];
    balancer.update(&Plan {
        settings: BalanceSettings {
            algorithm: Algorithm::LeastRequest,
            ..BalanceSettings::default()
        },
        ..plan(&changed)
    });
    for _ in 0..8 {
        let pick = balancer.pick(&any()).unwrap();
        assert_eq!(pick.desc().address, changed[1].address);
    }
    drop(held);
}

/// Two endpoints of a service whose checks take 2 s.
fn checked() -> (Balancer, impl Fn(usize, bool)) {
    let settings = HealthSettings::of(
        &v1::TrafficPolicy {
            health_check: Some(v1::HealthCheck {
                check: Some(v1::health_check::Check::Tcp(v1::TcpCheck {})),
                timeout_ms: 2000,
                ..v1::HealthCheck::default()
            }),
            ..v1::TrafficPolicy::default()
        },
        false,
    );
    let check = settings.check.clone().unwrap();
    let health = Health::default().of("api.data:80");
    let list = endpoints(2);
    let plan = Plan {
        health: settings,
        ..plan(&list)
    };
    let two = Balancer::with_seed(Arc::clone(&health), &plan, 22);
    (two, move |index, answers| {
        health.find(&check, index, answers)
    })
}

/// Whether who waits for this endpoint goes on when a check finds something.
async fn goes_on(two: &Balancer, pick: &Pick, find: impl FnOnce()) -> bool {
    let found = async {
        tokio::task::yield_now().await;
        find();
        two.wake_the_hopeless();
        tokio::task::yield_now().await;
    };
    tokio::select! {
        biased;
        () = pick.died() => true,
        () = found => false,
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_endpoint_that_does_not_answer_goes_on_while_there_is_another() {
    let (two, find) = checked();
    let before = pick_this(&two, 1);
    assert!(!goes_on(&two, &before, || find(1, false)).await);
    assert!(goes_on(&two, &before, || find(0, false)).await);
    assert!(two.is_dead());
    // For want of another it is given its chance, whatever becomes of those of other services.
    let after = two.pick(&any()).unwrap();
    assert!(!goes_on(&two, &after, || ()).await);
    let other = usize::from(*after.desc() == endpoint(1));
    assert!(goes_on(&two, &after, || find(other, true)).await);
    assert!(!two.is_dead());
}

#[tokio::test(start_paused = true)]
async fn the_chance_of_one_that_is_known_not_to_answer_may_end_with_the_time_of_a_check() {
    let (two, find) = checked();
    for (dead, ends) in [(false, false), (true, true)] {
        if dead {
            find(0, false);
            find(1, false);
        }
        let pick = two.pick(&any()).unwrap();
        pick.limit_chance();
        let waited = tokio::time::timeout(Duration::from_secs(10), pick.died());
        let began = Instant::now();
        assert_eq!(waited.await.is_ok(), ends);
        let expected = Duration::from_secs(if ends { 2 } else { 10 });
        assert_eq!(began.elapsed(), expected);
    }
}
