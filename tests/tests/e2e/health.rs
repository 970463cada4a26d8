//! Servers that are ill, and callers that do not notice.

use std::time::Duration;

use rustix::process::Signal;
use sidewind_tests::load::{Load, RunningLoad};
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::endpoint_states;

/// The address of the service, which no host has.
const VIRTUAL: &str = "10.96.0.10";

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 80, protocol: http, targetPort: 8080 }]
  service: orders-api.data
";

const CHECKED: &str = "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: orders-api, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: orders-api }]
  healthCheck:
    http: { path: /orders }
    interval: 200ms
    timeout: 300ms
    unhealthyThreshold: 2
  outlierDetection: { consecutiveFailures: 3, hold: 2s }
";

/// Three API servers of one service, each beside a sidecar, and a task that calls them.
struct Three {
    task: Workload,
    apis: Vec<(Workload, Process)>,
    mesh: Mesh,
}

impl Three {
    #[track_caller]
    fn start(policy: &str) -> Self {
        Self::with_third(policy, Duration::ZERO)
    }

    /// The same with a third server that takes longer.
    #[track_caller]
    fn with_third(policy: &str, delay: Duration) -> Self {
        let mut mesh = Mesh::plan()
            .config("entry.yaml", ENTRY)
            .config("traffic.yaml", policy)
            .start();
        let apis = (1..=3)
            .map(|number| {
                let name = format!("orders-api-{number}");
                let api = mesh
                    .workload("data", &name)
                    .serves("orders-api.data:80=8080/http")
                    .start();
                let delay = if number == 3 { delay } else { Duration::ZERO };
                let server = workloads::slow_api(&api, 8080, delay, &mesh.scratch);
                (api, server)
            })
            .collect();
        let task = mesh.workload("airflow", "task").start();
        Self { task, apis, mesh }
    }

    /// The state of each server's endpoint, as the task's sidecar has it.
    fn states(&self) -> Vec<String> {
        let endpoints: Vec<_> = self.apis.iter().map(|(api, _)| api.at(8080)).collect();
        endpoint_states(&self.task, "orders-api.data", &endpoints)
    }

    #[track_caller]
    fn wait_for(&self, number: usize, state: &str) {
        eventually(&format!("server {number} is {state}"), PATIENCE, || {
            (self.states().get(number).map(String::as_str) == Some(state)).then_some(())
        });
    }

    /// How many requests a server's sidecar has taken.
    fn taken(&self, number: usize) -> f64 {
        let metrics = self.apis[number].0.sidecar.metrics();
        metrics.sum("sidewind_requests_total", &[("direction", "inbound")])
    }

    /// 200 requests a second to the service.
    fn load(&self) -> RunningLoad {
        let address = format!("{VIRTUAL}:80").parse().expect("an address");
        Load::new(address, "/orders").start(&self.task.place)
    }
}

#[test]
fn of_three_servers_one_hangs_one_dies_and_one_is_slow_and_no_idempotent_request_fails() {
    let mut three = Three::with_third(CHECKED, Duration::from_millis(50));
    let load = three.load();
    for number in 0..3 {
        three.wait_for(number, "healthy");
    }
    eventually("the load runs", PATIENCE, || {
        (load.succeeded() > 200).then_some(())
    });
    three.apis[0].1.signal(Signal::STOP);
    three.wait_for(0, "dead");
    let begun = load.succeeded();
    eventually("it goes on", PATIENCE, || {
        (load.succeeded() > begun + 200).then_some(())
    });
    three.apis[1].1.kill();
    three.wait_for(1, "dead");
    let begun = load.succeeded();
    eventually("one is enough", PATIENCE, || {
        (load.succeeded() > begun + 200).then_some(())
    });
    three.apis[0].1.signal(Signal::CONT);
    three.wait_for(0, "healthy");
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.requests > 600);
}

#[test]
fn the_slow_one_gets_less() {
    let three = Three::with_third(CHECKED, Duration::from_millis(100));
    let load = three.load();
    eventually("the load runs", PATIENCE, || {
        (load.succeeded() > 1500).then_some(())
    });
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    let (first, second, slow) = (three.taken(0), three.taken(1), three.taken(2));
    assert!(
        slow * 2.0 < first && slow * 2.0 < second,
        "{first}, {second}, slow {slow}"
    );
    assert!(slow > 0.0, "it is not given up");
}

#[test]
fn a_hung_server_is_found_out_by_the_requests_alone_where_tries_have_a_limit() {
    let policy = "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: orders-api, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: orders-api }]
  balance: { algorithm: roundRobin }
  outlierDetection: { consecutiveFailures: 2, hold: 30s }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: orders-api }]
  rules: [{ timeouts: { request: 5s, backendRequest: 300ms }, retry: { attempts: 2, codes: [503], backoff: 10ms } }]
";
    let three = Three::start(policy);
    let load = three.load();
    eventually("the load runs", PATIENCE, || {
        (load.succeeded() > 100).then_some(())
    });
    three.apis[1].1.signal(Signal::STOP);
    three.wait_for(1, "ejected");
    let begun = load.succeeded();
    eventually("it goes on", PATIENCE, || {
        (load.succeeded() > begun + 200).then_some(())
    });
    let report = load.stop();
    three.apis[1].1.signal(Signal::CONT);
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    let ejections = three.task.sidecar.metrics();
    let ejections = ejections.sum(
        "sidewind_endpoint_ejections_total",
        &[("service", "orders-api.data")],
    );
    assert!(ejections >= 1.0, "{ejections}");
}

#[test]
fn with_least_request_the_slow_one_gets_less_too() {
    let policy = CHECKED.replace("spec:\n", "spec:\n  balance: { algorithm: leastRequest }\n");
    let three = Three::with_third(&policy, Duration::from_millis(100));
    let load = three.load();
    eventually("the load runs", PATIENCE, || {
        (load.succeeded() > 1000).then_some(())
    });
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    let (first, second, slow) = (three.taken(0), three.taken(1), three.taken(2));
    assert!(
        slow * 1.5 < first && slow * 1.5 < second,
        "{first}, {second}, slow {slow}"
    );
}

#[test]
fn servers_that_fail_too_often_are_ejected_and_never_all_of_them() {
    let policy = "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: orders-api, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: orders-api }]
  balance: { algorithm: roundRobin }
  outlierDetection: { consecutiveFailures: 0, successRate: { minPercent: 80, minRequests: 10 }, hold: 1h, maxHold: 1h, maxEjectedPercent: 100 }
";
    let three = Three::start(policy);
    let address = format!("{VIRTUAL}:80").parse().expect("an address");
    // Each server fails every third time.
    let load = Load::new(address, "/flaky").start(&three.task.place);
    let ejected = || {
        let states = three.states();
        states.iter().filter(|state| *state == "ejected").count()
    };
    eventually("two of three are ejected", PATIENCE, || {
        (ejected() == 2).then_some(())
    });
    let begun = load.succeeded();
    eventually("the third goes on, no better than they", PATIENCE, || {
        (load.succeeded() > begun + 200).then_some(())
    });
    assert_eq!(ejected(), 2);
    load.stop();
    let labels = [("service", "orders-api.data"), ("reason", "success-rate")];
    let metrics = three.task.sidecar.metrics();
    let counted = metrics.sum("sidewind_endpoint_ejections_total", &labels);
    assert_eq!(counted, 2.0);
}

#[test]
fn a_check_in_tcp_sees_through_the_mesh_whether_a_port_that_is_declared_as_http_is_open() {
    let policy = "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: orders-api, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: orders-api }]
  healthCheck: { tcp: {}, interval: 100ms, timeout: 2s, unhealthyThreshold: 2 }
";
    let mut three = Three::start(policy);
    let url = format!("http://{VIRTUAL}/orders");
    three.task.curl(&[&url]).finish().success();
    for number in 0..3 {
        three.wait_for(number, "healthy");
    }
    // The kernel accepts for a server that hangs: an open port is all that this check asks for.
    three.apis[1].1.signal(Signal::STOP);
    three.apis[0].1.kill();
    three.wait_for(0, "dead");
    assert_eq!(three.states(), ["dead", "healthy", "healthy"]);
    three.apis[1].1.signal(Signal::CONT);
    // Tunnels in which nothing was asked are no requests, good or bad.
    for (api, _) in &three.apis {
        let metrics = api.sidecar.metrics();
        let refused = [("error", "bad-request")];
        assert_eq!(metrics.sum("sidewind_requests_total", &refused), 0.0);
        assert_eq!(metrics.sum("sidewind_connections_total", &refused), 0.0);
    }
}

/// Requests to the service wait while it is down.
const HELD: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: orders-api }]
  rules: [{ filters: [{ type: ExtensionRef, extensionRef: { group: sidewind.dev, kind: RouteExtension, name: held } }] }]
---
apiVersion: sidewind.dev/v1alpha1
kind: RouteExtension
metadata: { name: held, namespace: data }
spec: { hold: { timeout: 5m } }
";

impl Three {
    /// Requests that are under way.
    fn ask(&self, count: usize, path: &str, arguments: &[&str]) -> Vec<Process> {
        let ask = |number| {
            let name = format!("ask-{}-{number}", path.trim_matches('/'));
            let curl = self.task.curl(&["-i"]).args(arguments);
            let curl = curl.arg(format!("http://{VIRTUAL}{path}"));
            curl.start(&name, &self.mesh.scratch)
        };
        (0..count).map(ask).collect()
    }
}

#[test]
fn while_all_servers_hang_requests_are_held_and_go_to_the_first_that_is_back() {
    let three = Three::start(&format!("{CHECKED}{HELD}"));
    // What nobody has asked for is not checked.
    let url = format!("http://{VIRTUAL}/orders");
    three.task.curl(&[&url]).finish().success();
    for number in 0..3 {
        three.wait_for(number, "healthy");
        three.apis[number].1.signal(Signal::STOP);
    }
    for number in 0..3 {
        three.wait_for(number, "dead");
    }
    let mut calls = three.ask(3, "/orders", &[]);
    calls.extend(three.ask(3, "/echo", &["-d", "not to be sent twice"]));
    eventually("all of them wait", PATIENCE, || {
        let metrics = three.task.sidecar.metrics();
        let held = metrics.sum("sidewind_held_requests_total", &[("outcome", "held")]);
        (held == 6.0).then_some(())
    });
    three.apis[1].1.signal(Signal::CONT);
    for mut call in calls {
        call.wait(PATIENCE);
        let output = call.output();
        assert!(output.starts_with("HTTP/1.1 200 "), "{output}");
    }
    // Of those that hang none has anything of what may not be sent twice, which it would do when it is back.
    for number in [0, 2] {
        three.apis[number].1.signal(Signal::CONT);
        three.wait_for(number, "healthy");
        let log = three.apis[number].0.sidecar.access_log();
        assert!(log.iter().all(|record| record.path() != "/echo"));
    }
}
