//! What is too much is refused at once, and with a word.

use std::io::{Read, Write};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sidewind_tests::lan::Host;
use sidewind_tests::load::Load;
use sidewind_tests::mesh::{Mesh, Sidecar};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::edge::{FRONT, Front};
use crate::support::{Answer, Pair, working_on};

fn policy(rest: &str) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: orders-api, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: orders-api }}]
{rest}
"
    )
}

fn with(rest: &str) -> Pair {
    let plan = Mesh::plan().config("traffic.yaml", &policy(rest));
    Pair::serving(plan, "orders-api.data=8080/http")
}

#[test]
fn a_rate_limit_beside_the_service_counts_what_it_names_however_it_is_written() {
    let pair = with(
        "  rateLimits: [{ name: echoes, requests: 3, per: 1h, key: sourceIdentity, paths: [/echo] }]",
    );
    for path in ["/echo", "/%65cho", "//echo"] {
        let answer = pair.ask(path, &["--path-as-is"]);
        assert_ne!(answer.status, 429, "{path}: {answer:?}");
    }
    let answer = pair.ask("/echo", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (429, "rate-limited")
    );
    assert!(answer.body.contains("echoes"), "{answer:?}");
    let head = pair.curl("/echo", &["-i"]).to_ascii_lowercase();
    assert!(head.contains("retry-after: "), "{head}");
    assert_eq!(
        pair.ask("/orders", &[]).status,
        200,
        "others are not counted"
    );
    let refused = [("service", "orders-api.data"), ("limit", "echoes")];
    let metrics = pair.api.sidecar.metrics();
    assert_eq!(
        metrics.sum("sidewind_limited_requests_total", &refused),
        2.0
    );
}

#[test]
fn a_rate_limit_at_the_caller_spares_the_service() {
    let pair = with("  rateLimits: [{ name: all, requests: 2, per: 1h, at: caller }]");
    let statuses: Vec<u16> = (0..4).map(|_| pair.ask("/orders", &[]).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let inbound = [("direction", "inbound")];
    let metrics = pair.api.sidecar.metrics();
    assert_eq!(metrics.sum("sidewind_requests_total", &inbound), 2.0);
}

/// Two routes of the API, one of them for the orders alone.
const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: orders-api, port: 8080 }]
  rules: [{ matches: [{ path: { type: Exact, value: /orders } }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: rest, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: orders-api, port: 8080 }]
  rules: [{ matches: [{ path: { type: PathPrefix, value: / } }] }]
";

#[test]
fn a_rate_limit_is_of_the_routes_that_it_names_or_of_each_route() {
    let limits = "  rateLimits:
    - { name: orders, requests: 2, per: 1h, at: caller, routes: [data/orders] }
    - { name: each, requests: 4, per: 1h, at: caller, key: route }";
    let plan = Mesh::plan().config("traffic.yaml", &policy(limits));
    let plan = plan.config("routes.yaml", ROUTES);
    let pair = Pair::serving(plan, "orders-api.data=8080/http");
    for (path, passed, limit) in [("/orders", 2, "orders"), ("/echo", 4, "each")] {
        for _ in 0..passed {
            assert_eq!(pair.ask(path, &[]).status, 200, "{path}");
        }
        let answer = pair.ask(path, &[]);
        assert_eq!(answer.status, 429, "{path}");
        assert!(answer.body.contains(limit), "{answer:?}");
        let refused = [("service", "orders-api.data"), ("limit", limit)];
        let metrics = pair.task.sidecar.metrics();
        let refused = metrics.sum("sidewind_limited_requests_total", &refused);
        assert_eq!(refused, 1.0, "{limit}");
    }
}

#[test]
fn requests_at_once_have_a_bound_and_the_rest_is_told_at_once() {
    let pair = with("  limits: { server: { maxRequests: 1 } }");
    let url = "http://orders-api.data:8080/slow?ms=3000";
    let slow = pair.task.curl(&["-o", "/dev/null"]).arg(url);
    let mut slow = slow.start("slow", &pair.mesh.scratch);
    pair.wait_for_work(1);
    let answer = pair.ask("/orders", &["-X", "POST", "-d", "x"]);
    assert_eq!((answer.status, answer.error.as_str()), (503, "overloaded"));
    slow.wait(sidewind_tests::wait::PATIENCE);
    assert_eq!(pair.ask("/orders", &[]).status, 200);
}

#[test]
fn a_body_that_is_too_large_is_refused_whether_its_length_is_said_or_not() {
    let pair = with("  limits: { server: { maxBodyBytes: 1000 } }");
    let large = "x".repeat(2000);
    for extra in [&[][..], &["-H", "transfer-encoding: chunked"]] {
        let arguments = [
            &["-X", "POST", "-H", "expect:", "-d", large.as_str()],
            extra,
        ]
        .concat();
        let answer = pair.ask("/echo", &arguments);
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (413, "body-too-large"),
            "{extra:?}"
        );
    }
    let small = pair.ask("/echo", &["-X", "POST", "-d", "small"]);
    assert_eq!((small.status, small.body.as_str()), (200, "small"));
}

/// A gateway whose listener for plain HTTP has limits, in front of the API.
struct Gate {
    front: Front,
    client: Host,
    pair: Pair,
}

impl Gate {
    #[track_caller]
    fn with(limits: &str) -> Self {
        let policy = format!(
            "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: web, namespace: airflow }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: Gateway, name: web, sectionName: plain }}]
{limits}
"
        );
        let plan = Mesh::plan().config("gateway.yaml", FRONT);
        let plan = plan.config("traffic.yaml", &policy);
        let mut pair = Pair::serving(plan, "orders-api.data=8080/http");
        let front = Front::of(&mut pair.mesh);
        let client = pair.mesh.outsider("client");
        Self {
            front,
            client,
            pair,
        }
    }

    #[track_caller]
    fn ask(&self, port: u16, path: &str, arguments: &[&str]) -> Answer {
        let scheme = if port == Front::TLS { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.front.at(port));
        let curl = self.client.place.program("curl");
        let curl = curl.args(["-sSki", "--max-time", "30"]).args(arguments);
        Answer::parse(&curl.arg(url).finish().success())
    }

    fn limited(&self, limit: &str) -> f64 {
        let labels = [("service", "airflow/web/plain"), ("limit", limit)];
        let metrics = self.front.gateway.metrics();
        metrics.sum("sidewind_limited_requests_total", &labels)
    }

    fn refused(&self, code: &str) -> f64 {
        let labels = [("direction", "gateway"), ("code", code)];
        let metrics = self.front.gateway.metrics();
        metrics.sum("sidewind_errors_total", &labels)
    }
}

#[test]
fn a_gateways_listener_bounds_bodies_headers_and_requests_and_no_other_listener_does() {
    let gate = Gate::with(
        "  limits: { listener: { maxRequests: 1, maxHeaderBytes: 2048, maxBodyBytes: 1000 } }",
    );
    let url = format!("http://{}/slow?ms=4000", gate.front.at(Front::PLAIN));
    let slow = gate.client.place.program("curl").args(["-sS", &url]);
    let mut slow = slow.start("slow", &gate.pair.mesh.scratch);
    working_on(&gate.pair.server, 1);
    let answer = gate.ask(Front::PLAIN, "/orders", &[]);
    assert_eq!((answer.status, answer.error.as_str()), (503, "overloaded"));
    assert_eq!(gate.ask(Front::TLS, "/orders", &[]).status, 200);
    assert!(slow.wait(PATIENCE).success());
    assert_eq!(gate.ask(Front::PLAIN, "/orders", &[]).status, 200);
    let (large, wide) = ("x".repeat(2000), format!("x-wide: {}", "x".repeat(3000)));
    let post = ["-X", "POST", "-H", "expect:", "-d", large.as_str()];
    let chunked = [&post[..], &["-H", "transfer-encoding: chunked"]].concat();
    let header = ["-H", wide.as_str()];
    for (path, arguments, status, code) in [
        ("/echo", &post[..], 413, "body-too-large"),
        ("/echo", &chunked, 413, "body-too-large"),
        ("/orders", &header, 431, "header-too-large"),
    ] {
        let answer = gate.ask(Front::PLAIN, path, arguments);
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (status, code),
            "{answer:?}"
        );
        assert_eq!(gate.ask(Front::TLS, path, arguments).status, 200);
    }
    for (limit, count) in [
        ("max-body-bytes", 2.0),
        ("max-header-bytes", 1.0),
        ("max-requests", 1.0),
    ] {
        assert_eq!(gate.limited(limit), count, "{limit}");
    }
    for (code, count) in [("body-too-large", 2.0), ("header-too-large", 1.0)] {
        assert_eq!(gate.refused(code), count, "{code}");
    }
}

#[test]
fn a_gateways_listener_lets_some_requests_wait_for_a_place_and_refuses_the_rest() {
    let gate = Gate::with(
        "  limits: { listener: { maxRequests: 1, maxPending: 1, pendingTimeout: 20s } }",
    );
    let start = |name: &str, path: &str| {
        let url = format!("http://{}{path}", gate.front.at(Front::PLAIN));
        let curl = gate.client.place.program("curl");
        let curl = curl.args(["-sS", "-w", "%{http_code}", "-o", "/dev/null", &url]);
        curl.start(name, &gate.pair.mesh.scratch)
    };
    let mut slow = start("slow", "/slow?ms=5000");
    working_on(&gate.pair.server, 1);
    // The queue has one place.
    let more = ["second", "third"].map(|name| start(name, "/orders"));
    let mut statuses = more.map(|mut curl| {
        assert!(curl.wait(PATIENCE).success());
        curl.output()
    });
    statuses.sort();
    assert_eq!(statuses, ["200", "503"]);
    assert!(slow.wait(PATIENCE).success());
    assert_eq!(gate.limited("max-requests"), 1.0);
}

#[test]
fn a_gateways_listener_bounds_its_connections() {
    let gate = Gate::with("  limits: { listener: { maxConnections: 2 } }");
    let address = gate.front.at(Front::PLAIN);
    let connect = || {
        let mut stream = gate.client.place.connect(address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET /orders HTTP/1.1\r\nhost: orders-api.data\r\n\r\n";
        let _ = stream.write_all(request.as_bytes());
        let mut answer = [0; 12];
        let answered = stream.read_exact(&mut answer).is_ok();
        (answered && answer == *b"HTTP/1.1 200").then_some(stream)
    };
    let held = [connect(), connect()];
    assert!(held.iter().all(Option::is_some));
    assert!(connect().is_none(), "the third is closed");
    assert_eq!(gate.limited("max-connections"), 1.0);
    assert_eq!(gate.ask(Front::TLS, "/orders", &[]).status, 200);
    drop(held);
    eventually("there is a place again", PATIENCE, || connect().map(drop));
}

/// Has a proxy get almost no CPU, for as long as this lives.
struct Starved {
    end: Option<SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Starved {
    fn new(proxy: &mut Sidecar) -> Self {
        let (end, ended) = sync_channel::<()>(1);
        let id = proxy.process().id().cast_signed();
        let id = Pid::from_raw(id).expect("a process");
        let thread = std::thread::spawn(move || {
            let goes_on = |milliseconds| {
                let waited = ended.recv_timeout(Duration::from_millis(milliseconds));
                waited == Err(RecvTimeoutError::Timeout)
            };
            let mut on = true;
            while on {
                let _ = kill_process(id, Signal::STOP);
                on = goes_on(400);
                let _ = kill_process(id, Signal::CONT);
                on = on && goes_on(10);
            }
        });
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// What a proxy that is too busy does with a steady load: refuses some of it by an answer, and holds no more memory for it.
#[track_caller]
fn sheds(proxy: &mut Sidecar, load: Load, place: &Place, direction: &str) {
    let load = load.rate(200).connections(16).start(place);
    eventually("the load runs", PATIENCE, || {
        (load.succeeded() > 200).then_some(())
    });
    let before = proxy.process().resident_bytes();
    let starved = Starved::new(proxy);
    eventually("some is refused", PATIENCE, || {
        (load.failed() > 20).then_some(())
    });
    let begun = load.succeeded();
    eventually("some is let through", PATIENCE, || {
        (load.succeeded() > begun).then_some(())
    });
    drop(starved);
    let (mut failed, mut succeeded) = (load.failed(), load.succeeded());
    eventually("it is over, and nothing more is refused", PATIENCE, || {
        if load.failed() > failed {
            (failed, succeeded) = (load.failed(), load.succeeded());
        }
        (load.succeeded() > succeeded + 300).then_some(())
    });
    let report = load.stop();
    let kinds: Vec<&str> = report.failures.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["503 overloaded"], "{:?}", report.failures);
    let labels = [("direction", direction), ("code", "overloaded")];
    let counted = proxy.metrics().sum("sidewind_errors_total", &labels);
    assert!(counted >= report.failed() as f64, "{counted}");
    let grown = proxy.process().resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 32, "{grown} MiB");
}

#[test]
fn a_gateway_that_is_too_busy_refuses_some_at_once_and_all_is_well_when_it_is_over() {
    let mut gate = Gate::with("  limits: { listener: { maxRequests: 1000 } }");
    let load = Load::new(gate.front.at(Front::PLAIN), "/orders").host("orders-api.data");
    sheds(&mut gate.front.gateway, load, &gate.client.place, "gateway");
}

#[test]
fn a_sidecar_that_is_too_busy_refuses_some_at_once_and_all_is_well_when_it_is_over() {
    let mut pair = Pair::serving(Mesh::plan(), "orders-api.data=8080/http");
    let load = Load::new(pair.api.at(8080), "/orders").host("orders-api.data:8080");
    sheds(&mut pair.task.sidecar, load, &pair.task.place, "outbound");
}
