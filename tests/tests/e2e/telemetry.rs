//! What sidecars say about their traffic and themselves.

use std::time::Duration;

use sidewind_tests::collector::{Collector, Span};
use sidewind_tests::http::Request;
use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{API, API_ID, Pair, TASK_ID};

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

#[test]
fn metrics_count_requests_bytes_connections_handshakes_and_certificates() {
    let pair = Pair::start();
    for _ in 0..5 {
        pair.curl("/bytes/1000", &[]);
    }
    let answer = pair.ask("/orders", &["-X", "POST", "-d", "12345"]);
    assert_eq!(answer.status, 503);
    for (workload, direction, peer) in [
        (&pair.task, "outbound", API_ID),
        (&pair.api, "inbound", TASK_ID),
    ] {
        let metrics = workload.sidecar.metrics();
        let sum = |name: &str, labels: &[(&str, &str)]| {
            let labels = [
                labels,
                &[("direction", direction), ("peer", peer), ("tls", "true")],
            ]
            .concat();
            metrics.sum(name, &labels)
        };
        assert_eq!(
            sum(
                "sidewind_requests_total",
                &[("method", "GET"), ("status", "2xx")]
            ),
            5.0,
            "{direction}"
        );
        assert_eq!(
            sum(
                "sidewind_requests_total",
                &[("method", "POST"), ("status", "5xx"), ("error", "none")]
            ),
            1.0
        );
        assert_eq!(sum("sidewind_request_duration_seconds_count", &[]), 6.0);
        assert_eq!(
            sum(
                "sidewind_request_duration_seconds_bucket",
                &[("le", "+Inf")]
            ),
            6.0
        );
        assert_eq!(sum("sidewind_request_bytes_total", &[]), 5.0);
        assert_eq!(
            sum("sidewind_response_bytes_total", &[]),
            5.0 * 1000.0 + 5.0
        );
        let side = if direction == "outbound" {
            "client"
        } else {
            "server"
        };
        assert!(
            metrics.sum(
                "sidewind_tls_handshakes_total",
                &[("side", side), ("result", "ok")]
            ) >= 1.0
        );
        assert!(metrics.sum("sidewind_build_info", &[]) == 1.0);
        assert!(metrics.sum("sidewind_connections_total", &[("direction", direction)]) >= 1.0);
        let remaining = metrics
            .value("sidewind_certificate_remaining_seconds")
            .unwrap();
        assert!((3000.0..=3600.0).contains(&remaining), "{remaining}");
        let own = metrics
            .samples()
            .iter()
            .filter(|sample| sample.name.starts_with("sidewind_"));
        assert!(own.count() > 20);
    }
}

#[test]
fn anyone_may_read_metrics_and_probes_and_only_loopback_may_do_more() {
    let mut pair = Pair::start();
    let outside = pair.mesh.outsider("outside");
    let ask = |method: &str, path: &str| {
        Request::new(method, pair.api.at(15020), path)
            .send(&outside.place)
            .status
    };
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(ask("GET", path), 200, "{path}");
    }
    for (method, path) in [
        ("POST", "/shutdown"),
        ("GET", "/config"),
        ("GET", "/log-level"),
        ("PUT", "/log-level"),
    ] {
        assert_eq!(ask(method, path), 403, "{path}");
    }
    let config = pair.api.sidecar.get("/config");
    assert_eq!(config.status, 200);
    assert!(
        !config.text().contains("swj_") && !config.text().contains("PRIVATE KEY"),
        "{}",
        config.text()
    );
}

#[test]
fn the_log_level_is_changed_while_the_sidecar_runs() {
    let pair = Pair::start();
    let debug = |log: &str| {
        log.lines()
            .filter(|line| line.to_uppercase().contains("\"LEVEL\":\"DEBUG\""))
            .count()
    };
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    assert_eq!(debug(&pair.task.sidecar.log()), 0);
    assert_eq!(pair.task.sidecar.get("/log-level").text().trim(), "info");
    assert_eq!(
        pair.task.sidecar.ask("PUT", "/log-level", "debug").status / 100,
        2
    );
    eventually("there are debug lines", PATIENCE, || {
        assert_eq!(pair.ask("/orders", &[]).status, 200);
        (debug(&pair.task.sidecar.log()) > 0).then_some(())
    });
    assert_eq!(
        pair.task
            .sidecar
            .ask("PUT", "/log-level", "loud=quiet=x")
            .status,
        400
    );
    assert_eq!(
        pair.task.sidecar.ask("PUT", "/log-level", "info").status / 100,
        2
    );
}

#[test]
fn every_request_and_every_connection_has_exactly_one_line_on_each_side() {
    let mut mesh = Mesh::plan().start();
    let plan = mesh
        .workload("data", "server")
        .serves("server.data=8080")
        .serves("server.data:6379=6379/tcp");
    let server = plan.start();
    let _api = workloads::api(&server, 8080, &mesh.scratch);
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    for _ in 0..10 {
        // Two requests on one connection of the client's.
        task.curl(&[
            "http://server.data:8080/orders?secret=1",
            "http://server.data:8080/orders",
        ])
        .finish()
        .success();
        let redis = task
            .program("redis-cli")
            .args(["-h", "server.data", "PING"]);
        assert_eq!(redis.finish().success().trim(), "PONG");
    }
    for (workload, direction) in [(&task, "outbound"), (&server, "inbound")] {
        let count = |requests: bool| {
            let log = workload.sidecar.access_log();
            log.iter()
                .filter(|record| record.is_request() == requests)
                .count()
        };
        eventually("every line is written", PATIENCE, || {
            (count(true) >= 20 && count(false) >= 10).then_some(())
        });
        assert_eq!((count(true), count(false)), (20, 10), "{direction}");
        for record in workload.sidecar.access_log() {
            assert_eq!(record.direction(), direction, "{record}");
            assert_eq!(
                (record.source_id(), record.destination_id()),
                (task.spiffe_id.clone(), server.spiffe_id.clone()),
                "{record}"
            );
            assert!(
                !record.to_string().contains("secret"),
                "queries may hold secrets: {record}"
            );
        }
    }
}

/// A pair whose sidecars send every trace to a collector.
fn traced(ratio: &str) -> (Pair, Collector) {
    let mut mesh = Mesh::plan().start();
    let host = mesh.outsider("collector");
    let collector = Collector::start(&host.place, (host.address, 4317).into());
    let plan = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080");
    let traces = |plan: sidewind_tests::mesh::WorkloadPlan<'_>| {
        plan.flag("--trace-endpoint", collector.endpoint())
            .flag("--trace-ratio", ratio)
            .start()
    };
    let api = traces(plan);
    let server = workloads::api(&api, 8080, &mesh.scratch);
    let task = traces(mesh.workload("airflow", "task"));
    (
        Pair {
            task,
            api,
            server,
            mesh,
        },
        collector,
    )
}

/// The outbound and the inbound span of a trace.
#[track_caller]
fn both(spans: &[Span]) -> (&Span, &Span) {
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let of = |kind: i32| {
        spans
            .iter()
            .find(|span| span.kind == kind)
            .unwrap_or_else(|| panic!("{spans:#?}"))
    };
    (of(CLIENT), of(SERVER))
}

#[test]
fn a_clients_trace_goes_on_through_both_sidecars() {
    let (pair, collector) = traced("0");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = "00f067aa0ba902b7";
    let echoed = pair.curl(
        "/echo",
        &["-H", &format!("traceparent: 00-{trace}-{parent}-01")],
    );
    let spans = collector.trace(trace, 2, PATIENCE);
    let (outbound, inbound) = both(&spans);
    assert_eq!(outbound.parent_id, parent);
    assert_eq!(inbound.parent_id, outbound.span_id);
    // The workload is told of the last span, so that its own go on from there.
    assert!(
        echoed.contains(&format!("00-{trace}-{}-01", inbound.span_id)),
        "{echoed}"
    );
    assert_eq!(
        outbound.attributes.get("url.path").map(String::as_str),
        Some("/echo")
    );
    assert_eq!(
        outbound
            .attributes
            .get("http.response.status_code")
            .map(String::as_str),
        Some("200")
    );
    assert!(outbound.start <= inbound.start && inbound.duration <= outbound.duration);
    let record = pair
        .task
        .sidecar
        .wait_for_access("the trace", |record| record.text("trace_id") == trace);
    assert_eq!(record.text("span_id"), outbound.span_id);
}

#[test]
fn a_trace_begins_at_the_first_sidecar_when_the_client_has_none() {
    let (pair, collector) = traced("1");
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    let spans = collector.trace(&record.text("trace_id"), 2, PATIENCE);
    let (outbound, inbound) = both(&spans);
    assert_eq!(
        (outbound.parent_id.as_str(), &inbound.parent_id),
        ("", &outbound.span_id)
    );
    let log = pair
        .api
        .sidecar
        .wait_for_access("the same trace", |record| record.path() == "/orders");
    assert_eq!(log.text("trace_id"), record.text("trace_id"));
}

#[test]
fn a_client_that_does_not_want_to_be_traced_is_not() {
    let (pair, collector) = traced("1");
    let trace = "11111111111111111111111111111111";
    pair.curl(
        "/orders",
        &[
            "-H",
            &format!("traceparent: 00-{trace}-00f067aa0ba902b7-00"),
        ],
    );
    // One that is traced, so that there is something to wait for.
    pair.curl("/bytes/1", &[]);
    let record = pair
        .api
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/bytes/1");
    assert_eq!(
        collector.trace(&record.text("trace_id"), 2, PATIENCE).len(),
        2
    );
    assert!(collector.spans().iter().all(|span| span.trace_id != trace));
}

#[test]
fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let mut mesh = Mesh::plan().start();
    let plan = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080");
    let api = plan
        .flag("--trace-endpoint", "http://10.77.0.250:4317")
        .flag("--trace-ratio", "1")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let load =
        sidewind_tests::load::Load::new(api.at(8080), "/orders").duration(Duration::from_secs(2));
    let report = load.start(&task.place).finish();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert_eq!(
        task.curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("{API}/orders")
        ])
        .finish()
        .success(),
        "200"
    );
}
