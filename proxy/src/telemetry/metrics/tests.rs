use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};

use super::*;
use crate::control::ControlStatus;
use crate::errors::ErrorCode;
use crate::telemetry::record::{Direction, Protocol, TaskContext};

const CALLER: &str = "spiffe://example.org/ns/airflow/sa/worker";

fn worker() -> WorkerMetrics {
    WorkerMetrics::new(Arc::new(Metrics::new()), 0)
}

fn get(status: u16) -> FinishedRequest<'static> {
    FinishedRequest {
        method: &Method::GET,
        status: StatusCode::from_u16(status).ok(),
        grpc_status: None,
        error: None,
        duration: Duration::from_millis(3),
        request_bytes: 10,
        response_bytes: 20,
    }
}

/// Makes every family have a series.
fn exercise(metrics: &WorkerMetrics) {
    let handles = metrics.request_handles(Direction::Inbound, "orders.data", Some(CALLER), true);
    handles.record(&get(200));
    handles.retry(RetryReason::Status, RetryOutcome::Retried);
    let connections = metrics.connection_handles(
        Direction::Outbound,
        Protocol::Tcp,
        "redis.data",
        Some(CALLER),
        true,
    );
    drop(connections.open());
    connections.record(1, 2, Duration::from_secs(3));
    metrics.error(Direction::Inbound, ErrorCode::PolicyDenied);
    metrics.shared().admin_refused(AdminRefusal::Silent);
    metrics
        .shared()
        .task_lookup(TaskLookup::Task, Some(Duration::from_millis(1)));
    metrics.shared().task_fact(TaskFact::Learned);
    metrics.task_caller(TaskCaller::Task);
    let task = TaskContext {
        dag_id: "payroll".into(),
        ..TaskContext::default()
    };
    metrics.task_request(Direction::Outbound, &task, None, Duration::from_millis(1));
    metrics.task_connection(Direction::Outbound, &task);
    metrics.task_saved(Some(&task));
    metrics
        .shared()
        .set_task_sight(crate::airflow::Sight::Whole);
    metrics.held("orders.data", HoldOutcome::Held);
    metrics.mirrored("orders.data", MirrorOutcome::Answered);
    metrics
        .shared()
        .ejected("orders.data", Ejection::SuccessRate);
    metrics.shared().limited("orders.data", "max-requests");
    metrics
        .shared()
        .gateway
        .certificates_looked(1, 0, Some(SystemTime::now()));
    let timeout = Err(HandshakeFailure::Timeout);
    metrics.handshake(Side::Server, timeout, Duration::from_secs(10));
    metrics.cut_off(CutOff::Banned, 1);
    metrics
        .shared()
        .set_certificate_expiry(SystemTime::now() + Duration::from_secs(60));
    metrics.shared().set_control_plane_connected(true);
    metrics.shared().control.set(&ControlStatus {
        clock_difference: Some(0.5),
        ..ControlStatus::default()
    });
    let workload_api = &metrics.shared().workload_api;
    workload_api.call_ended("FetchX509SVID", tonic::Code::Ok);
    workload_api.connection_closed(ClosedConnection::Idle);
}

fn line<'a>(page: &'a str, start: &str) -> &'a str {
    page.lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no line starts with {start} in\n{page}"))
}

#[test]
fn a_request_is_counted_with_its_direction_service_peer_and_outcome() {
    let metrics = worker();
    let handles = metrics.request_handles(Direction::Inbound, "orders.data", Some(CALLER), true);
    handles.record(&get(200));
    handles.record(&get(204));
    handles.record(&FinishedRequest {
        error: Some(ErrorCode::UpstreamReset),
        ..get(502)
    });
    let page = metrics.shared().encode(Format::PrometheusText);
    let labels = format!(
        "direction=\"inbound\",service=\"orders.data\",peer=\"{CALLER}\",tls=\"true\",\
         method=\"GET\""
    );
    for expected in [
        format!(
            "sidewind_requests_total{{{labels},status=\"2xx\",grpc_status=\"none\",\
             error=\"none\"}} 2"
        ),
        format!(
            "sidewind_requests_total{{{labels},status=\"5xx\",grpc_status=\"none\",\
             error=\"upstream-reset\"}} 1"
        ),
    ] {
        assert!(page.contains(&expected), "{expected} is not in\n{page}");
    }
    let pair =
        format!("{{direction=\"inbound\",service=\"orders.data\",peer=\"{CALLER}\",tls=\"true\"}}");
    assert!(page.contains(&format!("sidewind_response_bytes_total{pair} 60")));
    assert!(page.contains(&format!("sidewind_request_duration_seconds_count{pair} 3")));
}

#[test]
fn handles_for_the_same_labels_are_looked_up_once() {
    let metrics = worker();
    let first = metrics.request_handles(Direction::Outbound, "a", None, false);
    let second = metrics.request_handles(Direction::Outbound, "a", None, false);
    assert!(Rc::ptr_eq(&first, &second));
    let other = metrics.request_handles(Direction::Outbound, "a", None, true);
    assert!(!Rc::ptr_eq(&first, &other));
}

#[test]
fn a_connection_is_active_until_its_guard_is_dropped() {
    let metrics = worker();
    let handles =
        metrics.connection_handles(Direction::Inbound, Protocol::Tcp, "redis", None, false);
    let (first, second) = (handles.open(), handles.open());
    drop(first);
    let page = metrics.shared().encode(Format::PrometheusText);
    assert!(line(&page, "sidewind_connections_active{").ends_with(" 1"));
    assert!(line(&page, "sidewind_connections_total{").ends_with(" 2"));
    drop(second);
    let page = metrics.shared().encode(Format::PrometheusText);
    assert!(line(&page, "sidewind_connections_active{").ends_with(" 0"));
}

#[test]
fn a_million_invented_names_make_a_bounded_page() {
    let metrics = worker();
    for number in 0..20_000 {
        let service = format!("service-{number}");
        let handles = metrics.request_handles(Direction::Outbound, &service, None, false);
        handles.record(&get(200));
    }
    let page = metrics.shared().encode(Format::PrometheusText);
    let series = page
        .lines()
        .filter(|line| line.starts_with("sidewind_requests_total"))
        .count();
    assert_eq!(series, MAX_SERIES + 1);
    let overflow = "sidewind_requests_total{direction=\"outbound\",service=\"overflow\"";
    assert!(line(&page, overflow).ends_with(&format!(" {}", 20_000 - MAX_SERIES)));
    assert!(metrics.requests_cached() <= 1024);
}

#[test]
fn the_certificate_gauges_appear_with_the_certificate() {
    let metrics = worker();
    let page = metrics.shared().encode(Format::PrometheusText);
    assert!(!page.contains("\nsidewind_certificate_remaining_seconds "));
    let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
    metrics.shared().set_certificate_expiry(in_an_hour);
    let page = metrics.shared().encode(Format::PrometheusText);
    let remaining = line(&page, "sidewind_certificate_remaining_seconds ");
    let seconds: f64 = remaining.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((3500.0..=3600.0).contains(&seconds), "{seconds}");
}

/// `name type labels` of every family that a page shows.
fn families(page: &str) -> Vec<(String, String, String)> {
    let mut families = Vec::new();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else {
            continue;
        };
        let (name, kind) = rest.split_once(' ').unwrap();
        let sample = page
            .lines()
            .find(|line| {
                let line = line.strip_prefix(name).unwrap_or("#");
                !line.starts_with('#') && line.starts_with(['{', ' ', '_'])
            })
            .unwrap_or_else(|| panic!("{name} has no sample"));
        let labels: Vec<&str> = sample
            .split_once('{')
            .map(|(_, rest)| rest.split(',').filter_map(|pair| pair.split_once('=')))
            .into_iter()
            .flatten()
            .map(|(label, _)| label)
            .filter(|label| *label != "le")
            .collect();
        families.push((name.to_owned(), kind.to_owned(), labels.join(", ")));
    }
    families.sort();
    families
}

#[test]
fn the_documentation_lists_every_family_with_its_type_and_labels() {
    let metrics = worker();
    exercise(&metrics);
    let page = metrics.shared().encode(Format::PrometheusText);
    let mut documented: Vec<(String, String, String)> = include_str!("../../../../docs/metrics.md")
        .lines()
        .take_while(|line| *line != "## The control plane")
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let plain = |cell: &str| cell.replace('`', "");
            (plain(cells[1]), plain(cells[2]), plain(cells[3]))
        })
        .collect();
    documented.sort();
    assert_eq!(documented, families(&page));
}

#[test]
fn every_name_has_the_prefix_and_a_base_unit() {
    let page = worker().shared().encode(Format::PrometheusText);
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(
            name.starts_with("sidewind_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
    }
}

#[test]
fn an_openmetrics_page_ends_with_its_mark() {
    let metrics = worker();
    exercise(&metrics);
    let page = metrics.shared().encode(Format::OpenMetrics);
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE sidewind_requests counter\n"));
    assert!(
        !metrics
            .shared()
            .encode(Format::PrometheusText)
            .contains("# EOF")
    );
}

#[test]
fn tasks_beyond_the_bound_are_counted_together() {
    let metrics = worker();
    for n in 0..1000 {
        let task = TaskContext {
            dag_id: format!("dag_{n}"),
            task_id: "load".into(),
            ..TaskContext::default()
        };
        let took = Duration::from_millis(1);
        metrics.task_request(Direction::Outbound, &task, Some(StatusCode::OK), took);
    }
    let page = metrics.shared().encode(Format::PrometheusText);
    let series = page
        .lines()
        .filter(|line| line.starts_with("sidewind_task_requests_total{"));
    assert_eq!(series.count(), 501);
    let overflow = line(
        &page,
        "sidewind_task_requests_total{direction=\"outbound\",dag_id=\"overflow\",task_id=\"overflow\",status=\"2xx\"}",
    );
    assert!(overflow.ends_with(" 500"), "{overflow}");
}
