//! What a caller does not have to see.

use std::time::Duration;

use sidewind_tests::clients::Clients;
use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;
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

fn extension(spec: &str) -> String {
    format!(
        "---
apiVersion: sidewind.dev/v1alpha1
kind: RouteExtension
metadata: {{ name: more, namespace: data }}
spec: {spec}
"
    )
}

const EXTENDED: &str = "{ filters: [{ type: ExtensionRef, extensionRef: { group: sidewind.dev, kind: RouteExtension, name: more } }] }";

#[test]
fn a_method_that_the_route_names_is_retried_with_its_body() {
    let config = route(EXTENDED) + &extension("{ retry: { methods: [POST] } }");
    let pair = Pair::with(Mesh::plan().config("route.yaml", &config));
    let answer = pair.ask("/orders", &["-X", "POST", "-d", "one anemometer"]);
    assert_eq!((answer.status, answer.body.as_str()), (503, "busy\n"));
    assert_eq!(pair.curl("/posts", &[]), "3");
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    assert_eq!(record.attempts(), 3, "{record}");
    let failed = record.list("failed_attempts");
    let statuses: Vec<_> = failed.iter().map(|attempt| &attempt["status"]).collect();
    assert_eq!(statuses, [503, 503], "{record}");
}

#[test]
fn requests_are_held_while_the_api_is_replaced() {
    let config = route(EXTENDED) + &extension("{ hold: { timeout: 60s } }");
    let mut pair = Pair::with(Mesh::plan().config("route.yaml", &config));
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    pair.server.kill();
    let calls: Vec<_> = (0..8)
        .map(|number| {
            let url = format!("{}/echo", crate::support::API);
            let call = pair.task.curl(&["-d", "patience"]).arg(url);
            call.start(&format!("held-{number}"), &pair.mesh.scratch)
        })
        .collect();
    let held = [("outcome", "held")];
    eventually("the calls wait", PATIENCE, || {
        let metrics = pair.task.sidecar.metrics();
        (metrics.sum("sidewind_held_requests_total", &held) == 8.0).then_some(())
    });
    // An outage of two seconds.
    let over = Instant::now() + Duration::from_secs(2);
    eventually("the outage is over", PATIENCE, || {
        (Instant::now() >= over).then_some(())
    });
    pair.server = workloads::api(&pair.api, 8080, &pair.mesh.scratch);
    for mut call in calls {
        call.wait(PATIENCE);
        assert!(call.output().contains("patience"), "{}", call.output());
    }
    let statuses = eventually("each call is on record", PATIENCE, || {
        let log = pair.task.sidecar.access_log();
        let calls = log.iter().filter(|record| record.path() == "/echo");
        let statuses: Vec<u64> = calls.map(|record| record.status()).collect();
        (statuses.len() == 8).then_some(statuses)
    });
    assert_eq!(statuses, [200; 8]);
}

/// The one method whose calls may be made twice.
const CALLS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: calls, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: calls }]
  rules:
    - matches: [{ method: { service: calls.Calls, method: Flaky } }]
      filters: [{ type: ExtensionRef, extensionRef: { group: sidewind.dev, kind: RouteExtension, name: again } }]
    - matches: [{ method: { service: calls.Calls } }]
---
apiVersion: sidewind.dev/v1alpha1
kind: RouteExtension
metadata: { name: again, namespace: data }
spec: { retry: { grpcStatuses: [UNAVAILABLE] } }
";

#[test]
fn a_grpc_call_is_retried_where_its_route_says_so_and_ends_before_its_deadline() {
    let mut mesh = Mesh::plan().config("calls.yaml", CALLS).start();
    let api = mesh
        .workload("data", "calls")
        .serves("calls.data=50051/grpc");
    let api = api.start();
    let clients = Clients::install(&mesh.scratch);
    let at = format!("{}:50051", api.bind());
    let mut server = clients
        .script(&api.place, "calls.py")
        .args(["serve", &at])
        .user(api.uid())
        .start("calls", &mesh.scratch);
    let local = api.local(50_051);
    server.wait_until("the server listens", PATIENCE, || api.place.is_open(local));
    let task = mesh.workload("airflow", "task").start();
    let call = |method, number, seconds| {
        let target = api.at(50_051).to_string();
        let call = clients.script(&task.place, "calls.py");
        let call = call.args(["call", &target, method, number, seconds]);
        call.user(task.uid()).finish().success()
    };
    // Every second one fails, and the retry budget is good for ten in a second.
    assert_eq!(
        call("Flaky", "16", "30").lines().collect::<Vec<_>>(),
        ["OK"; 16]
    );
    let retried = [("reason", "grpc-status"), ("outcome", "retried")];
    let metrics = task.sidecar.metrics();
    let retries = metrics.sum("sidewind_retries_total", &retried);
    assert!(retries >= 7.0, "{retries}");
    // Of another method nothing says that a call may be made twice.
    assert_eq!(
        call("Order", "4", "30").lines().collect::<Vec<_>>(),
        [
            "OK",
            "UNAVAILABLE every second",
            "OK",
            "UNAVAILABLE every second"
        ]
    );
    let metrics = task.sidecar.metrics();
    assert_eq!(metrics.sum("sidewind_retries_total", &retried), retries);
    // What has begun is the client's (gRPC's proposal A6): headers came, and then the same status in trailers.
    assert_eq!(
        call("Begun", "3", "30").lines().collect::<Vec<_>>(),
        [
            "UNAVAILABLE call 1",
            "UNAVAILABLE call 2",
            "UNAVAILABLE call 3"
        ]
    );
    // The proxy's own answer comes before the client's deadline does.
    let late = call("Slow", "1", "2");
    assert!(
        late.starts_with("DEADLINE_EXCEEDED") && late.contains("No response came within"),
        "{late}"
    );
}
