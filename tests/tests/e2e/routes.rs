//! Requests go where routes say.

use sidewind_tests::clients::Clients;
use sidewind_tests::mesh::{Mesh, MeshPlan, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{API, Answer, Pair, endpoint_states};

/// A task, an API, and its next version, which also is what copies go to.
#[derive(Debug)]
struct Versions {
    pair: Pair,
    next: Workload,
    _next_server: Process,
}

impl Versions {
    #[track_caller]
    fn start(rules: &str) -> Self {
        Self::of(Mesh::plan(), rules)
    }

    #[track_caller]
    fn of(plan: MeshPlan, rules: &str) -> Self {
        let mut pair = Pair::with(plan.config("route.yaml", &route(rules)));
        let next = pair.mesh.workload("data", "orders-next");
        let next = next.serves("orders-next.data=8080").start();
        let server = workloads::api(&next, 8080, &pair.mesh.scratch);
        Self {
            pair,
            next,
            _next_server: server,
        }
    }

    fn requests_of(&self, workload: &Workload, path: &str) -> usize {
        let log = workload.sidecar.access_log();
        log.iter().filter(|record| record.path() == path).count()
    }
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: orders, namespace: data }}
spec:
  parentRefs: [{{ kind: Service, group: \"\", name: orders-api, port: 8080 }}]
  rules:
{rules}
"
    )
}

/// What a request brought with it when it arrived, as the API's `/echo` tells.
fn arrived(printed: &str) -> serde_json::Value {
    serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn header(echo: &serde_json::Value, name: &str) -> Option<String> {
    let headers = echo["headers"].as_array()?;
    let found = headers.iter().find(|pair| {
        pair[0]
            .as_str()
            .is_some_and(|found| found.eq_ignore_ascii_case(name))
    })?;
    found[1].as_str().map(str::to_owned)
}

#[test]
fn a_canary_gets_its_share_and_what_asks_for_it_gets_it_always() {
    let versions = Versions::start(
        "    - matches: [{ headers: [{ name: x-version, value: next }] }]
      backendRefs: [{ name: orders-next, port: 8080 }]
    - backendRefs:
        - { name: orders-api, port: 8080, weight: 80 }
        - { name: orders-next, port: 8080, weight: 20 }
        - { name: nowhere, port: 8080, weight: 0 }",
    );
    let pair = &versions.pair;
    for _ in 0..5 {
        assert_eq!(pair.ask("/bytes/1", &["-H", "x-version: next"]).status, 200);
    }
    let load = sidewind_tests::load::Load::new(pair.api.at(8080), "/orders").rate(200);
    let report = load
        .duration(std::time::Duration::from_secs(3))
        .start(&pair.task.place)
        .finish();
    assert_eq!(report.failed(), 0);
    assert!(report.requests > 400, "{}", report.requests);
    let both = || {
        let old = versions.requests_of(&pair.api, "/orders");
        let new = versions.requests_of(&versions.next, "/orders");
        (old, new)
    };
    eventually("every request is in a log", PATIENCE, || {
        let (old, new) = both();
        (old + new >= report.requests as usize).then_some(())
    });
    let (_, new) = both();
    // Six standard deviations of a binomial with p = 0.2.
    let requests = report.requests as f64;
    let spread = 6.0 * (requests * 0.2 * 0.8).sqrt();
    let off = (new as f64 - requests * 0.2).abs();
    assert!(off < spread, "{new} of {requests} went to the canary");
    assert_eq!(versions.requests_of(&versions.next, "/bytes/1"), 5);
    assert_eq!(versions.requests_of(&pair.api, "/bytes/1"), 0);
}

#[test]
fn requests_are_rewritten_and_responses_marked() {
    let versions = Versions::start(
        "    - matches: [{ path: { type: PathPrefix, value: /next } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: orders.example.org, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
        - type: RequestHeaderModifier
          requestHeaderModifier: { set: [{ name: x-team, value: data }], remove: [x-secret] }
      backendRefs:
        - name: orders-next
          port: 8080
          filters:
            - type: ResponseHeaderModifier
              responseHeaderModifier: { add: [{ name: x-version, value: next }] }
    - matches: [{ path: { type: Exact, value: /echo } }]",
    );
    let pair = &versions.pair;
    let secret = ["-H", "x-secret: 1", "-H", "x-team: other"];
    let echo = arrived(&pair.curl("/next/echo?a=b", &secret));
    assert_eq!(echo["path"], "/echo?a=b");
    assert_eq!(header(&echo, "x-team").as_deref(), Some("data"));
    assert_eq!(header(&echo, "x-secret"), None);
    assert_eq!(header(&echo, "host").as_deref(), Some("orders.example.org"));
    let printed = pair.curl("/next/orders", &["-i"]);
    assert!(printed.contains("x-version: next"), "{printed}");
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/next/orders");
    assert_eq!(record.text("route"), "data/orders");
    assert_eq!(record.text("service"), "orders-next.data");
    // The other rule leaves requests as they are, and there is no third.
    let plain = arrived(&pair.curl("/echo", &secret));
    assert_eq!(header(&plain, "x-secret").as_deref(), Some("1"));
    let answer = pair.ask("/orders", &[]);
    assert_eq!((answer.status, answer.error.as_str()), (404, "no-route"));
}

#[test]
fn a_redirect_leads_the_client_on() {
    let pair = Pair::with(Mesh::plan().config(
        "route.yaml",
        &route(
            "    - matches: [{ path: { type: PathPrefix, value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { statusCode: 308, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
    - {}",
        ),
    ));
    let first = pair.curl("/old/echo?x=1", &["-i"]);
    assert!(first.starts_with("HTTP/1.1 308"), "{first}");
    assert!(
        first.contains(&format!("location: {API}/echo?x=1\r\n")),
        "{first}"
    );
    let followed = pair.curl("/old/echo", &["-L", "-X", "POST", "-d", "kept"]);
    assert_eq!(followed, "kept");
}

#[test]
fn a_mirror_gets_copies_and_nobody_notices_what_becomes_of_them() {
    let mirror = "    - filters:
        - type: RequestMirror
          requestMirror: { backendRef: { name: orders-next, port: 8080 } }
        - type: RequestMirror
          requestMirror: { backendRef: { name: nowhere, port: 8080 } }";
    let mut versions = Versions::start(mirror);
    let ask = |versions: &Versions| {
        let pair = &versions.pair;
        assert_eq!(pair.curl("/echo", &["-d", "original"]), "original");
    };
    // Until the mirror's endpoints are known, its copies are dropped.
    eventually("the mirror gets a copy", PATIENCE, || {
        ask(&versions);
        (versions.requests_of(&versions.next, "/echo") > 0).then_some(())
    });
    let copy = versions
        .next
        .sidecar
        .wait_for_access("the copy", |record| record.path() == "/echo");
    assert_eq!((copy.status(), copy.number("request_bytes")), (200, 8));
    // Too large to be copied, and none the worse for it.
    let dropped = [("outcome", "dropped"), ("service", "orders-next.data")];
    let before = versions
        .pair
        .task
        .sidecar
        .metrics()
        .sum("sidewind_mirrored_requests_total", &dropped);
    let large = "x".repeat(100_000);
    assert_eq!(versions.pair.curl("/echo", &["-d", &large]), large);
    let metrics = versions.pair.task.sidecar.metrics();
    assert_eq!(
        metrics.sum("sidewind_mirrored_requests_total", &dropped),
        before + 1.0
    );
    versions._next_server.kill();
    ask(&versions);
    versions.next.sidecar.process().kill();
    ask(&versions);
}

#[test]
fn a_backend_that_does_not_exist_gets_its_share_answered_by_500() {
    let rules = |backends: &str| format!("    - backendRefs: [{backends}]");
    let nowhere = "{ name: nowhere, port: 8080, weight: 1 }";
    let pair = Pair::with(Mesh::plan().config("route.yaml", &route(&rules(nowhere))));
    let answer = pair.ask("/orders", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (500, "backend-invalid")
    );
    // A change is taken over by connections that are open, and an unreadable one is not.
    let both = format!("{nowhere}, {{ name: orders-api, port: 8080, weight: 1 }}");
    pair.mesh
        .control_plane
        .write_config("route.yaml", &route(&rules(&both)));
    let statuses = eventually("both backends are drawn", PATIENCE, || {
        let statuses: Vec<u16> = (0..20).map(|_| pair.ask("/orders", &[]).status).collect();
        (statuses.contains(&200) && statuses.contains(&500)).then_some(statuses)
    });
    assert!(
        statuses.iter().all(|status| [200, 500].contains(status)),
        "{statuses:?}"
    );
}

#[test]
fn each_rule_has_its_own_timeout() {
    let pair = Pair::with(Mesh::plan().config(
        "route.yaml",
        &route(
            "    - matches: [{ queryParams: [{ name: ms, value: \"3000\" }] }]
      timeouts: { request: 200ms }
    - {}",
        ),
    ));
    let Answer { status, error, .. } = pair.ask("/slow?ms=3000", &[]);
    assert_eq!((status, error.as_str()), (504, "request-timeout"));
    assert_eq!(pair.ask("/slow?ms=300", &[]).status, 200);
}

#[test]
fn a_backend_is_spoken_to_as_it_is_declared_whatever_the_client_speaks() {
    let rules = "    - matches: [{ path: { type: PathPrefix, value: /newer } }]
      backendRefs: [{ name: newer, port: 8081 }]
    - matches: [{ path: { type: PathPrefix, value: /orders } }]
      backendRefs: [{ name: orders-next, port: 8080 }]";
    let policy = "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: newer, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: newer }]
  healthCheck: { http: { path: /health }, interval: 100ms, timeout: 5s }
";
    let plan = Mesh::plan().config("traffic.yaml", policy);
    let mut versions = Versions::of(plan, rules);
    let mesh = &mut versions.pair.mesh;
    let clients = Clients::install(&mesh.scratch);
    let newer = mesh.workload("data", "newer");
    let newer = newer.serves("newer.data=8081/http2").start();
    let server = clients.script(&newer.place, "http2/server.py");
    let mut server = server
        .arg("0.0.0.0:8081")
        .user(newer.uid())
        .start("newer", &mesh.scratch);
    let local = newer.local(8081);
    server.wait_until("the server listens", PATIENCE, || {
        newer.place.is_open(local)
    });
    let pair = &versions.pair;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for path in ["/newer", "/orders"] {
            let answer = pair.ask(path, &[version]);
            assert_eq!(answer.status, 200, "{version} {path}: {answer:?}");
        }
    }
    // So it is checked, too.
    eventually("the check passes", PATIENCE, || {
        (endpoint_states(&pair.task, "newer.data", &[newer.at(8081)]) == ["healthy"]).then_some(())
    });
}

const CALLS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: calls, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: calls, port: 50051 }]
  rules:
    - matches: [{ method: { service: calls.Calls, method: Begun } }]
      backendRefs: [{ name: calls-next, port: 50051 }]
    - matches: [{ method: { service: calls.Calls, method: Slow } }]
";

#[test]
fn grpc_calls_go_where_a_grpc_route_says() {
    let mut mesh = Mesh::plan().config("route.yaml", CALLS).start();
    let clients = Clients::install(&mesh.scratch);
    let [(api, _server), (next, _next_server)] = ["calls", "calls-next"].map(|name| {
        let serve = format!("{name}.data=50051/grpc");
        let workload = mesh.workload("data", name).serves(&serve).start();
        let at = format!("{}:50051", workload.bind());
        let server = clients.script(&workload.place, "calls.py");
        let server = server.args(["serve", &at]).user(workload.uid());
        let mut server = server.start(name, &mesh.scratch);
        let local = workload.local(50_051);
        server.wait_until("the server listens", PATIENCE, || {
            workload.place.is_open(local)
        });
        (workload, server)
    });
    let task = mesh.workload("airflow", "task").start();
    let call = |method: &str| {
        let target = api.at(50_051).to_string();
        let call = clients.script(&task.place, "calls.py");
        let call = call.args(["call", &target, method, "1", "30"]);
        call.user(task.uid()).finish().success()
    };
    let no_route = "UNIMPLEMENTED calls.data: No rule of the routes";
    for (method, said, service, server) in [
        (
            "Begun",
            "UNAVAILABLE call 1",
            "calls-next.data",
            Some(&next),
        ),
        ("Slow", "OK", "calls.data", Some(&api)),
        ("Flaky", no_route, "calls.data", None),
    ] {
        let answer = call(method);
        assert!(answer.starts_with(said), "{method}: {answer}");
        let path = format!("/calls.Calls/{method}");
        let record = task
            .sidecar
            .wait_for_access(&path, |record| record.path() == path);
        assert_eq!(record.text("service"), service, "{record}");
        let Some(server) = server else {
            assert_eq!(record.error(), "no-route", "{record}");
            continue;
        };
        assert_eq!(record.text("route"), "data/calls", "{record}");
        server
            .sidecar
            .wait_for_access(&path, |record| record.path() == path);
    }
}
