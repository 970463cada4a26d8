//! What a caller does not have to see.

use std::time::Duration;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use tokio::time::Instant;

use crate::support::{Pair, names_the_api};

fn route(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: orders, namespace: data }}
spec:
  parentRefs: [{{ kind: Service, group: \"\", name: orders-api }}]
  rules: [{rule}]
"
    )
}

#[test]
fn a_503_is_retried_and_the_caller_sees_only_success() {
    let pair = Pair::start();
    for _ in 0..30 {
        assert_eq!(pair.ask("/flaky", &[]).status, 200);
    }
    eventually("every call is in the log", PATIENCE, || {
        let log = pair.task.sidecar.access_log();
        (log.iter()
            .filter(|record| record.path() == "/flaky")
            .count()
            == 30)
            .then_some(())
    });
    let log = pair.task.sidecar.access_log();
    let retried = log.iter().filter(|record| record.attempts() == 2).count();
    // Every third attempt of the API fails: of 44 or 45 attempts, 14 were retries.
    assert!((14..=15).contains(&retried), "{retried} of 30 were retried");
    let sent_again = [("reason", "status"), ("outcome", "retried")];
    assert_eq!(
        pair.task
            .sidecar
            .metrics()
            .sum("sidewind_retries_total", &sent_again),
        retried as f64
    );
    let attempts = || {
        let log = pair.api.sidecar.access_log();
        log.iter()
            .filter(|record| record.path() == "/flaky")
            .count()
    };
    eventually(
        "the API's sidecar has logged each attempt",
        PATIENCE,
        || (attempts() >= 30 + retried).then_some(()),
    );
    assert_eq!(attempts(), 30 + retried);
}

#[test]
fn what_is_not_idempotent_is_sent_once() {
    let pair = Pair::start();
    let answer = pair.ask("/orders", &["-X", "POST", "-d", "one anemometer"]);
    assert_eq!(
        (answer.status, answer.error.as_str(), answer.body.as_str()),
        (503, "", "busy\n")
    );
    assert_eq!(pair.curl("/posts", &[]), "1");
}

#[test]
fn retries_end_and_the_caller_gets_the_last_answer_of_the_workload() {
    let pair = Pair::start();
    let answer = pair.ask("/failing", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str(), answer.body.as_str()),
        (503, "", "always busy\n")
    );
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/failing");
    assert_eq!(record.attempts(), 3, "{record}");
}

#[test]
fn retries_stay_within_their_budget() {
    let pair = Pair::start();
    let load = sidewind_tests::load::Load::new(pair.api.at(8080), "/failing").rate(400);
    let report = load
        .duration(Duration::from_secs(4))
        .start(&pair.task.place)
        .finish();
    assert_eq!(report.failed(), report.requests, "the API always fails");
    let attempts = pair
        .api
        .sidecar
        .metrics()
        .sum("sidewind_requests_total", &[("direction", "inbound")]);
    // A fifth more, and ten a second: far from the double and triple that unbounded retries would make.
    let bound = report.requests as f64 * 1.2 + 10.0 * 10.0 + 1.0;
    assert!(
        attempts <= bound,
        "{attempts} attempts of {} requests, at most {bound}",
        report.requests
    );
}

#[test]
fn a_workload_that_does_not_listen_is_named_in_the_answer() {
    let mut pair = Pair::start();
    pair.server.kill();
    let answer = pair.ask("/orders", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (503, "workload-unavailable")
    );
    names_the_api(&pair, &answer.body);
}

#[test]
fn a_sidecar_that_died_is_named_in_the_answer() {
    let mut pair = Pair::start();
    // Known, so that it is not unsubscribed at once; then the process and its listener are gone.
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    pair.api.sidecar.process().kill();
    let answer = pair.ask("/orders", &[]);
    assert!(
        answer.status == 503 && !answer.error.is_empty(),
        "{answer:?}"
    );
    assert!(
        ["connect-failed", "no-endpoints", "upstream-reset"].contains(&answer.error.as_str()),
        "{answer:?}"
    );
    names_the_api(&pair, &answer.body);
}

#[test]
fn a_route_sets_retries_and_timeouts() {
    let rule = "{ timeouts: { request: 500ms }, retry: { attempts: 0 } }";
    let pair = Pair::with(Mesh::plan().config("route.yaml", &route(rule)));
    assert_eq!(pair.ask("/failing", &[]).status, 503);
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/failing");
    assert_eq!(record.attempts(), 1, "{record}");

    let begun = Instant::now();
    let answer = pair.ask("/slow?ms=5000", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (504, "request-timeout")
    );
    assert!(
        (Duration::from_millis(450)..Duration::from_secs(3)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    names_the_api(&pair, &answer.body);
}

#[test]
fn a_try_that_takes_too_long_is_given_up_and_made_again() {
    let rule = "{ timeouts: { request: 5s, backendRequest: 300ms }, retry: { attempts: 2, codes: [503], backoff: 10ms } }";
    let pair = Pair::with(Mesh::plan().config("route.yaml", &route(rule)));
    let begun = Instant::now();
    let answer = pair.ask("/slow?ms=4000", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (504, "request-timeout")
    );
    assert!(
        (Duration::from_millis(850)..Duration::from_secs(3)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/slow");
    assert_eq!(record.attempts(), 3, "{record}");
}
