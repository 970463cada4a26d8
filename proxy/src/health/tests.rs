use std::time::Duration;

use tokio::time::advance;

use super::probe::Finding;
use super::*;

fn endpoints(count: u8) -> Vec<EndpointDesc> {
    let plain = |number| EndpointDesc::plain(([10, 0, 0, number], 80).into());
    (1..=count).map(plain).collect()
}

fn check() -> CheckSettings {
    CheckSettings {
        kind: settings::CheckKind::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        healthy_threshold: 2,
        unhealthy_threshold: 3,
        jitter_percent: 0,
    }
}

fn membership<'a>(endpoints: &'a [EndpointDesc], checked: bool) -> Membership<'a> {
    Membership {
        name: "api.data",
        port: 80,
        policy: "data/api",
        settings: HealthSettings {
            check: checked.then(|| Arc::new(check())),
            ..HealthSettings::default()
        },
        endpoints,
    }
}

fn unhealthy() -> Finding {
    Finding::Unhealthy("it answered 503".to_owned())
}

fn silent() -> Finding {
    Finding::NoAnswer("no answer within 1s".to_owned())
}

#[tokio::test(start_paused = true)]
async fn verdicts_change_after_as_many_checks_in_a_row_as_the_policy_says() {
    let service = Health::default().of("api.data:80");
    let cell = &service.update(&membership(&endpoints(1), true))[0];
    let take = |finding: &Finding| {
        service.checked(&check(), cell, finding);
        cell.checked()
    };
    assert_eq!(
        take(&Finding::Healthy),
        Checked::Healthy,
        "the first counts by itself"
    );
    for _ in 0..2 {
        assert_eq!(take(&unhealthy()), Checked::Healthy);
    }
    assert_eq!(take(&Finding::Healthy), Checked::Healthy, "it begins anew");
    for _ in 0..2 {
        assert_eq!(take(&unhealthy()), Checked::Healthy);
    }
    assert_eq!(take(&unhealthy()), Checked::Unhealthy);
    assert_eq!(
        take(&silent()),
        Checked::Dead,
        "ill is ill, and worse is told at once"
    );
    assert_eq!(take(&Finding::Refused("policy".to_owned())), Checked::Dead);
    assert_eq!(take(&Finding::Healthy), Checked::Dead);
    assert_eq!(take(&Finding::Healthy), Checked::Healthy);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_told_when_an_endpoint_dies_or_is_back_and_all_when_it_may_not_be_picked()
{
    let health = Health::default();
    let (service, mut turned) = (health.of("api.data:80"), health.turned());
    let cell = &service.update(&membership(&endpoints(2), true))[0];
    let before = service.generation();
    service.checked(&check(), cell, &unhealthy());
    assert!(service.generation() > before && !cell.is_well());
    assert!(!turned.has_changed().unwrap(), "it still answers");
    service.checked(&check(), cell, &silent());
    assert!(turned.has_changed().unwrap());
    turned.mark_unchanged();
    service.checked(&check(), cell, &Finding::Healthy);
    assert!(!turned.has_changed().unwrap(), "one check is too few");
    service.checked(&check(), cell, &Finding::Healthy);
    assert!(turned.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_service_is_one_for_all_workers_and_forgotten_with_the_last() {
    let health = Health::default();
    let (first, second) = (health.of("api.data:80"), health.of("api.data:80"));
    let (of_first, of_second) = (
        first.update(&membership(&endpoints(2), false)),
        second.update(&membership(&endpoints(2), false)),
    );
    assert!(Arc::ptr_eq(&of_first[1], &of_second[1]));
    assert_eq!(health.services().len(), 1);
    drop((first, second));
    assert_eq!(health.services().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn checks_that_are_over_say_nothing_any_more() {
    let service = Health::default().of("api.data:80");
    let list = endpoints(2);
    let cell = &service.update(&membership(&list, true))[0];
    service.checked(&check(), cell, &unhealthy());
    assert!(!cell.is_well());
    service.update(&membership(&list, false));
    assert!(cell.is_well());
}

#[tokio::test(start_paused = true)]
async fn too_few_successes_in_an_interval_eject() {
    let outliers = OutlierSettings {
        consecutive_failures: 0,
        min_success_percent: 80,
        min_requests: 10,
        ..OutlierSettings::default()
    };
    let service = Health::default().of("api.data:80");
    let cells = service.update(&membership(&endpoints(3), false));
    let observe = |outcome| service.observe(&outliers, &cells[0], outcome, service.now());
    for _ in 0..4 {
        observe(Outcome::Success);
        observe(Outcome::Failure);
    }
    assert!(!cells[0].is_ejected(), "too few to say");
    advance(Duration::from_secs(10)).await;
    for _ in 0..9 {
        observe(Outcome::Success);
    }
    observe(Outcome::Failure);
    observe(Outcome::Failure);
    assert!(!cells[0].is_ejected(), "9 of 11 are enough");
    observe(Outcome::Failure);
    assert!(cells[0].is_ejected(), "9 of 12 are not");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_back_is_judged_by_what_it_answers_from_then_on() {
    let outliers = OutlierSettings {
        consecutive_failures: 0,
        min_success_percent: 80,
        min_requests: 10,
        interval: 60_000,
        ..OutlierSettings::default()
    };
    let service = Health::default().of("api.data:80");
    let cells = service.update(&membership(&endpoints(3), false));
    let observe = |outcome| service.observe(&outliers, &cells[0], outcome, service.now());
    for _ in 0..10 {
        observe(Outcome::Failure);
    }
    assert!(cells[0].is_ejected());
    // Late answers of requests that were under way.
    observe(Outcome::Failure);
    advance(Duration::from_secs(10)).await;
    service.readmit(&cells[0], service.now());
    for _ in 0..9 {
        observe(Outcome::Failure);
        assert!(!cells[0].is_ejected(), "too few to say");
    }
    observe(Outcome::Failure);
    assert!(cells[0].is_ejected());
}

#[tokio::test(start_paused = true)]
async fn people_are_shown_the_state_and_the_reason_of_each_endpoint() {
    let health = Health::default();
    let service = health.of("api.data:80");
    let cells = service.update(&membership(&endpoints(3), true));
    service.checked(&check(), &cells[0], &silent());
    for _ in 0..5 {
        let outliers = OutlierSettings::default();
        service.observe(&outliers, &cells[1], Outcome::Failure, service.now());
    }
    advance(Duration::from_secs(3)).await;
    let report = health.report();
    let shown = &report["services"][0];
    assert_eq!(
        (&shown["service"], &shown["policy"]),
        (&"api.data".into(), &"data/api".into())
    );
    let states: Vec<&str> = (0..3)
        .map(|n| shown["endpoints"][n]["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["dead", "ejected", "unchecked"]);
    let endpoint = |number: usize| &shown["endpoints"][number];
    assert_eq!(
        endpoint(0)["reason"],
        "the health check got no answer: no answer within 1s"
    );
    assert_eq!(
        endpoint(1)["reason"],
        "ejected for 10000 ms: too many requests in a row failed"
    );
    assert_eq!(endpoint(1)["check"]["state"], "unchecked");
    assert_eq!(endpoint(1)["ejection"]["state"], "ejected");
    assert!(endpoint(0)["ejection"].is_null());
    assert_eq!(endpoint(1)["ejectedForMilliseconds"], 7000);
    assert_eq!(endpoint(0)["sinceMilliseconds"], 3000);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_ejected_and_fails_its_checks_is_shown_as_both() {
    let health = Health::default();
    let service = health.of("api.data:80");
    let cell = &service.update(&membership(&endpoints(3), true))[0];
    for _ in 0..5 {
        let outliers = OutlierSettings::default();
        service.observe(&outliers, cell, Outcome::Failure, service.now());
    }
    service.checked(&check(), cell, &silent());
    let report = health.report();
    let shown = &report["services"][0]["endpoints"][0];
    assert_eq!(shown["state"], "dead");
    let (check, ejection) = (
        "the health check got no answer: no answer within 1s",
        "ejected for 10000 ms: too many requests in a row failed",
    );
    assert_eq!(shown["reason"], format!("{check}; {ejection}"));
    assert_eq!(shown["check"]["reason"], check);
    assert_eq!(shown["ejection"]["reason"], ejection);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_under_another_weight_is_as_well_as_before() {
    let health = Health::default();
    let service = health.of("api.data:80");
    let before = endpoints(3);
    let cells = service.update(&membership(&before, true));
    for _ in 0..3 {
        service.checked(&check(), &cells[0], &silent());
    }
    let outliers = OutlierSettings::default();
    for _ in 0..outliers.consecutive_failures {
        service.observe(&outliers, &cells[1], Outcome::Failure, service.now());
    }
    let mut after = before;
    for endpoint in &mut after {
        endpoint.weight = 2.try_into().unwrap();
        endpoint.priority = 1;
    }
    let changed = service.update(&membership(&after, true));
    assert_eq!(changed[0].checked(), Checked::Dead);
    assert!(changed[1].is_ejected());
    assert_eq!(changed[2].warm_since(), 0);
    assert_eq!(changed[0].desc().priority, 1);
    // What was picked before still counts.
    service.readmit(&cells[1], service.now());
    assert!(!changed[1].is_ejected());
}
