use std::time::Duration;

use http::Request;
use proptest::prelude::*;
use sidewind_api::v1;
use tokio::time::{advance, timeout};

use super::bucket::{Bucket, Rate, Table};
use super::*;
use crate::telemetry::Direction;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_bucket_lets_its_burst_through_and_then_its_rate() {
    let rate = Rate::new(10, SECOND, 5);
    let bucket = Bucket::default();
    let start = 100 * SECOND;
    assert_eq!(
        (0..20).filter(|_| bucket.take(rate, start).is_ok()).count(),
        5
    );
    assert_eq!(bucket.take(rate, start), Err(Duration::from_millis(100)));
    let later = start + SECOND;
    assert_eq!(
        (0..20).filter(|_| bucket.take(rate, later).is_ok()).count(),
        5
    );
}

proptest! {
    /// In no time does a bucket let more through than its burst and what came in since.
    #[test]
    fn a_bucket_never_lets_more_through_than_it_may(
        requests in 1..50_u32,
        burst in 1..50_u32,
        pauses in proptest::collection::vec(0..300_u64, 1..300),
    ) {
        let rate = Rate::new(requests, SECOND, burst);
        let bucket = Bucket::default();
        let (mut now, mut taken) = (SECOND, 0_u64);
        for pause in pauses {
            now += Duration::from_millis(pause);
            taken += u64::from(bucket.take(rate, now).is_ok());
            let earned = (now - SECOND).as_secs_f64() * f64::from(requests);
            prop_assert!(taken as f64 <= f64::from(burst) + earned + 1.0);
        }
    }

    /// However many keys there are, one that goes on asking within its own limit's burst is counted.
    #[test]
    fn a_table_has_a_bucket_for_each_of_the_keys_that_it_has_room_for(keys in proptest::collection::hash_set(1..u64::MAX, 1..200)) {
        let rate = Rate::new(1, 3600 * SECOND, 2);
        let table = Table::default();
        let now = 10 * SECOND;
        // More than a set holds meet by chance alone.
        let mut by_set = std::collections::HashMap::<u64, usize>::new();
        for key in &keys {
            *by_set.entry(key % 1024).or_default() += 1;
        }
        for key in keys.iter().filter(|key| by_set[&(*key % 1024)] <= 4) {
            prop_assert!(table.take(*key, rate, now).is_ok());
            prop_assert!(table.take(*key, rate, now).is_ok());
            prop_assert!(table.take(*key, rate, now).is_err());
        }
    }
}

fn limit(key: v1::RateLimitKey) -> v1::RateLimit {
    v1::RateLimit {
        name: "logins".to_owned(),
        requests: 1,
        per_ms: 60_000,
        key: key.into(),
        methods: vec!["POST".to_owned()],
        path_patterns: vec!["/login".to_owned()],
        ..Default::default()
    }
}

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Body::Empty)
        .unwrap()
}

fn asker(address: u8, identity: Option<&str>) -> Asker<'_> {
    Asker {
        identity,
        address: Some([10, 0, 0, address].into()),
        route: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_many_ipv6_addresses_has_one_bucket() {
    let limits = |key| {
        let limits = Limits::default();
        let rates = [limit(key)];
        limits
            .of("inbound 80", "orders.data", None, &rates)
            .unwrap()
    };
    for key in [
        v1::RateLimitKey::SourceAddress,
        v1::RateLimitKey::SourceIdentity,
    ] {
        // Of a client from outside, and of one in the mesh.
        for (direction, addresses) in [
            (
                Direction::Gateway,
                [
                    ("2001:db8:0:1::1", true),
                    ("2001:db8:0:1::2", false),
                    ("2001:db8:0:1:ffff:ffff:ffff:ffff", false),
                    ("2001:db8:0:2::1", true),
                    ("192.0.2.1", true),
                    ("::ffff:192.0.2.1", false),
                    ("::ffff:192.0.2.2", true),
                ],
            ),
            (
                Direction::Inbound,
                [
                    ("2001:db8:0:1::1", true),
                    ("2001:db8:0:1::2", true),
                    ("2001:db8:0:1::1", false),
                    ("2001:db8:0:2::1", true),
                    ("192.0.2.1", true),
                    ("::ffff:192.0.2.1", false),
                    ("::ffff:192.0.2.2", true),
                ],
            ),
        ] {
            let limits = limits(key);
            for (address, passes) in addresses {
                let asker = Asker {
                    address: Some(client_of(direction, address.parse().unwrap())),
                    ..Asker::default()
                };
                let admitted = limits.admit(&request("POST", "/login"), 0, &asker).await;
                assert_eq!(admitted.is_ok(), passes, "{key:?} {direction:?}: {address}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_source_has_its_own_bucket_and_only_what_is_named_is_counted() {
    use v1::RateLimitKey::{Service, SourceAddress, SourceIdentity};
    let (a, b) = (
        asker(1, Some("spiffe://a/a")),
        asker(2, Some("spiffe://a/a")),
    );
    let anonymous = asker(2, None);
    // Whether the second asker still gets through after the first, and one without an identity.
    for (key, second, third) in [
        (Service, false, false),
        (SourceAddress, true, false),
        (SourceIdentity, false, true),
    ] {
        let limits = Limits::default()
            .of("test", "api.data", None, &[limit(key)])
            .unwrap();
        let post = request("POST", "/login");
        let ask = async |asker| limits.admit(&post, 0, asker).await.is_ok();
        assert!(ask(&a).await);
        assert!(!ask(&a).await);
        assert_eq!(ask(&b).await, second, "{key:?}");
        assert_eq!(ask(&anonymous).await, third, "{key:?}");
        for uncounted in [request("GET", "/login"), request("POST", "/other")] {
            assert!(limits.admit(&uncounted, 0, &a).await.is_ok());
        }
        let error = limits.admit(&post, 0, &a).await.unwrap_err();
        let response = error.into_response::<bytes::Bytes>(false);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(response.headers()["sidewind-error"], "rate-limited");
        advance(60 * SECOND).await;
        assert!(ask(&a).await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_policy_keeps_its_buckets_and_another_begins_anew() {
    let shared = Limits::default();
    let of = |rate: &v1::RateLimit| {
        shared
            .of("test", "api.data", None, std::slice::from_ref(rate))
            .unwrap()
    };
    let (post, who) = (request("POST", "/login"), asker(1, None));
    let rate = limit(v1::RateLimitKey::Service);
    let first = of(&rate);
    assert!(first.admit(&post, 0, &who).await.is_ok());
    assert!(
        of(&rate).admit(&post, 0, &who).await.is_err(),
        "another worker's"
    );
    let wider = v1::RateLimit {
        requests: 2,
        ..rate
    };
    assert!(of(&wider).admit(&post, 0, &who).await.is_ok());
    assert!(
        shared
            .of("test", "api.data", Some(&v1::Bounds::default()), &[])
            .is_none()
    );
}

fn bounded(bounds: v1::Bounds) -> Rc<ServiceLimits> {
    Limits::default()
        .of("test", "api.data", Some(&bounds), &[])
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_above_the_bound_waits_in_a_bounded_queue_and_not_for_ever() {
    let limits = bounded(v1::Bounds {
        max_requests: 1,
        max_pending: 1,
        pending_timeout_ms: 500,
        ..Default::default()
    });
    let (get, who) = (request("GET", "/"), asker(1, None));
    let first = limits.admit(&get, 0, &who).await.unwrap();
    let mut second = std::pin::pin!(limits.admit(&get, 0, &who));
    assert!(
        timeout(Duration::from_millis(100), &mut second)
            .await
            .is_err(),
        "it waits"
    );
    let third = limits.admit(&get, 0, &who).await.unwrap_err();
    assert_eq!(
        third.code(),
        ErrorCode::Overloaded,
        "there is one place in the queue"
    );
    drop(first);
    let second = second.await.unwrap();
    let begun = Instant::now();
    assert!(limits.admit(&get, 0, &who).await.is_err());
    assert!(begun.elapsed() >= Duration::from_millis(500));
    drop(second);
    assert!(limits.admit(&get, 0, &who).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let limits = bounded(v1::Bounds {
        max_header_bytes: 2048,
        max_body_bytes: 10,
        ..Default::default()
    });
    let who = asker(1, None);
    let sized = |bytes: &str| {
        let mut request = request("POST", "/");
        request
            .headers_mut()
            .insert("content-length", bytes.parse().unwrap());
        request
    };
    assert!(limits.admit(&sized("10"), 2048, &who).await.is_ok());
    let error = limits.admit(&sized("11"), 0, &who).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BodyTooLarge);
    let error = limits.admit(&sized("1"), 2049, &who).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::HeaderTooLarge);
}

#[test]
fn connections_have_a_bound_of_their_own() {
    let limits = bounded(v1::Bounds {
        max_connections: 2,
        ..Default::default()
    });
    let held = [
        limits.admit_connection().unwrap(),
        limits.admit_connection().unwrap(),
    ];
    assert!(limits.admit_connection().is_err());
    drop(held);
    assert!(limits.admit_connection().is_ok());
}

#[test]
fn a_busy_worker_refuses_a_growing_share_never_all_and_none_when_it_is_over() {
    let overload = Overload::new(1_000_000);
    let refused = || {
        let admitted: Vec<_> = (0..1000).map(|_| overload.admit()).collect();
        admitted.iter().filter(|it| it.is_err()).count()
    };
    assert_eq!(refused(), 0);
    for late in [300, 1, 300] {
        overload.observe(Duration::from_millis(late));
        assert_eq!(refused(), 0, "a burst is no overload");
    }
    overload.observe(Duration::from_millis(300));
    let first = refused();
    assert!((50..200).contains(&first), "{first}");
    for _ in 0..20 {
        overload.observe(Duration::from_millis(300));
    }
    let most = refused();
    assert!((900..1000).contains(&most), "{most}");
    overload.observe(Duration::from_millis(100));
    assert!(refused() > 900, "in between nothing changes");
    for _ in 0..20 {
        overload.observe(Duration::from_millis(1));
    }
    assert_eq!(refused(), 0);
}

#[test]
fn requests_at_once_have_a_bound() {
    let overload = Overload::new(2);
    let held = [overload.admit().unwrap(), overload.admit().unwrap()];
    let error = overload.admit().unwrap_err();
    let response = error.into_response::<bytes::Bytes>(false);
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["retry-after"]
        ),
        (503, &"1".parse().unwrap())
    );
    drop(held);
    assert!(overload.admit().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_wait_does_so_while_the_proxy_is_busy_and_no_longer_than_it_may() {
    let overload = Overload::new(2);
    for _ in 0..10 {
        overload.observe(Duration::from_millis(300));
    }
    let began = tokio::time::Instant::now();
    let patient = overload.admit_by(began + Duration::from_secs(60));
    let first = patient.await.expect("one in twenty is let in");
    // Whoever waits has a place too.
    let hasty = (0..200).find_map(|_| overload.admit().ok());
    assert!(hasty.is_some());
    let none_left = overload.admit_by(began + Duration::from_secs(120)).await;
    assert_eq!(none_left.unwrap_err().code(), ErrorCode::Overloaded);
    drop((first, hasty));
    let now = tokio::time::Instant::now();
    let refusals = std::iter::repeat_with(|| overload.admit_by(now));
    let mut results = Vec::new();
    for refusal in refusals.take(100) {
        results.push(refusal.await.is_err());
    }
    // Without time it is as for any other.
    assert!(results.contains(&true));
    assert_eq!(tokio::time::Instant::now(), now);
}

#[tokio::test(start_paused = true)]
async fn a_service_has_one_budget_of_retries_whoever_calls_it() {
    let limits = Limits::default();
    let [first, second, other] = ["api.data", "api.data", "web.data"].map(|it| limits.budget(it));
    let drain =
        |budget: &RetryBudget| std::iter::from_fn(|| budget.withdraw().then_some(())).count();
    assert_eq!(drain(&first), 10);
    assert_eq!(drain(&second), 0);
    assert_eq!(drain(&other), 10);
}
