use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use http::{Method, StatusCode};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::errors::ErrorCode;
use crate::retry::Failed;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::{Direction, FailedAttempt, Peer, Protocol, TaskContext};
use crate::telemetry::trace::Tracer;

fn task() -> TaskContext {
    TaskContext {
        dag_id: "etl".to_owned(),
        task_id: "load".to_owned(),
        run_id: "manual__2026".to_owned(),
        map_index: Some(-1),
        try_number: Some(2),
        triggered_by: Some("ada".to_owned()),
        run_type: Some("manual".to_owned()),
        team: Some("finance".to_owned()),
    }
}

const FAILED: [FailedAttempt; 1] = [FailedAttempt {
    endpoint: None,
    failed: Failed::Response(StatusCode::BAD_GATEWAY, None),
    began: Duration::from_millis(1),
    duration: Duration::from_millis(2),
}];

/// A record with every field set.
fn full_request(task: &TaskContext) -> RequestRecord<'_> {
    RequestRecord {
        started: UNIX_EPOCH + Duration::from_millis(1_795_241_580_123),
        duration: Duration::from_micros(3_042),
        path: "/orders?key=secret",
        authority: "orders.data",
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        grpc_status: Some(14),
        error: Some(ErrorCode::NoEndpoints),
        error_detail: Some("orders.data has no endpoints.: all \"ejected\""),
        service: "orders.data",
        route: "data/orders",
        failed_attempts: &FAILED,
        endpoint: Some(([10, 0, 0, 9], 8080).into()),
        source: Peer {
            address: Some(([10, 0, 0, 1], 40_000).into()),
            spiffe_id: Some("spiffe://example.org/ns/airflow/sa/worker"),
        },
        destination: Peer {
            address: Some("[fd00::9]:8080".parse().unwrap()),
            spiffe_id: Some("spiffe://example.org/ns/data/sa/orders-api"),
        },
        tls: true,
        attempts: 2,
        request_bytes: 1,
        response_bytes: u64::MAX,
        trace: Some(Tracer::new(1.0, true).begin()),
        user_agent: Some(b"curl/8\xff"),
        task: Some(task),
        task_unknown: Some("timed-out"),
        ..RequestRecord::new(Direction::Outbound, Protocol::Grpc, &Method::POST)
    }
}

fn request_line(record: &RequestRecord<'_>, with_query: bool) -> Value {
    let mut out = Vec::new();
    line::request(&mut out, &mut Timestamps::new(), record, with_query);
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(out.last(), Some(&b'\n'));
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn a_request_line_says_everything_that_is_known() {
    let task = task();
    let record = full_request(&task);
    let line = request_line(&record, false);
    let trace = record.trace.unwrap();
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let expected = serde_json::json!({
        "timestamp": "2026-11-21T06:13:00.123Z", "kind": "request", "direction": "outbound",
        "protocol": "gRPC", "method": "POST", "path": "/orders", "authority": "orders.data",
        "status": 503, "grpc_status": 14, "error": "no-endpoints",
        "error_detail": "orders.data has no endpoints.: all \"ejected\"",
        "service": "orders.data", "route": "data/orders", "endpoint": "10.0.0.9:8080",
        "failed_attempts": [{ "status": 502, "began_ms": 1.0, "duration_ms": 2.0 }],
        "source": {
            "address": "10.0.0.1:40000",
            "spiffe_id": "spiffe://example.org/ns/airflow/sa/worker",
        },
        "destination": {
            "address": "[fd00::9]:8080",
            "spiffe_id": "spiffe://example.org/ns/data/sa/orders-api",
        },
        "tls": true, "attempts": 2, "request_bytes": 1, "response_bytes": u64::MAX,
        "duration_ms": 3.042, "trace_id": hex(&trace.trace_id), "span_id": hex(&trace.span_id),
        "user_agent": "curl/8\u{fffd}", "dag_id": "etl", "task_id": "load",
        "run_id": "manual__2026", "map_index": -1, "try_number": 2, "run_type": "manual",
        "team": "finance", "triggered_by": "ada", "task_unknown": "timed-out",
    });
    assert_eq!(line, expected);
}

#[test]
fn a_query_is_logged_only_where_that_is_asked_for() {
    let task = task();
    assert_eq!(
        request_line(&full_request(&task), true)["path"],
        "/orders?key=secret"
    );
}

#[test]
fn what_is_unknown_is_left_out() {
    let record = RequestRecord::new(Direction::Inbound, Protocol::Http1, &Method::GET);
    let line = request_line(&record, false);
    let expected = serde_json::json!({
        "timestamp": "1970-01-01T00:00:00.000Z", "kind": "request", "direction": "inbound",
        "protocol": "HTTP/1.1", "method": "GET", "path": "", "source": {}, "destination": {},
        "tls": false, "attempts": 0, "request_bytes": 0, "response_bytes": 0, "duration_ms": 0.0,
    });
    assert_eq!(line, expected);
}

#[test]
fn a_connection_line_says_what_was_carried() {
    let record = ConnectionRecord {
        service: "redis.data",
        request_bytes: 7,
        response_bytes: 8,
        error: Some(ErrorCode::ConnectFailed),
        ..ConnectionRecord::new(Direction::Outbound, Protocol::Tcp)
    };
    let mut out = Vec::new();
    line::connection(&mut out, &mut Timestamps::new(), &record);
    let line: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(line["kind"], "connection");
    assert_eq!(line["protocol"], "tcp");
    assert_eq!(line["error"], "connect-failed");
    assert_eq!(
        (&line["request_bytes"], &line["response_bytes"]),
        (&7.into(), &8.into())
    );
    assert!(line.get("method").is_none());
}

#[test]
fn the_documentation_lists_every_field() {
    let task = task();
    let line = request_line(&full_request(&task), false);
    let written: BTreeSet<&str> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let documented: BTreeSet<&str> = include_str!("../../../../docs/access-log.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(documented, written);
}

#[test]
fn the_longest_possible_line_is_bounded() {
    let long = "\u{1}".repeat(1 << 20);
    let task = TaskContext {
        dag_id: long.clone(),
        task_id: long.clone(),
        run_id: long.clone(),
        triggered_by: Some(long.clone()),
        ..task()
    };
    let peer = Peer {
        address: None,
        spiffe_id: Some(&long),
    };
    let record = RequestRecord {
        path: &long,
        authority: &long,
        error_detail: Some(&long),
        service: &long,
        source: peer,
        destination: peer,
        user_agent: Some(long.as_bytes()),
        ..full_request(&task)
    };
    let mut out = Vec::new();
    line::request(&mut out, &mut Timestamps::new(), &record, true);
    // Each byte may take six.
    assert!(out.len() < 64 * 1024, "{}", out.len());
    serde_json::from_slice::<Value>(&out).unwrap();
}

/// A log to a file in a directory of its own.
fn file_log() -> (tempfile::TempDir, std::path::PathBuf, AccessLog, Metrics) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let metrics = Metrics::new();
    let log = AccessLog::start(Destination::File(path.clone()), false, &metrics).unwrap();
    (directory, path, log, metrics)
}

#[test]
fn a_full_buffer_is_handed_over_at_once_and_the_rest_at_the_end() {
    let (_directory, path, log, metrics) = file_log();
    let buffer = LineBuffer::new(log.clone());
    let record = RequestRecord::new(Direction::Inbound, Protocol::Http1, &Method::GET);
    for _ in 0..1_000 {
        buffer.request(&record);
        assert!(buffer.state.borrow().bytes.len() < BATCH_BYTES);
    }
    drop(buffer);
    log.shutdown(Duration::from_secs(10));
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(written.lines().count(), 1_000);
    assert!(
        written
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    assert_eq!(metrics.dropped_log_lines.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_single_line_is_handed_over_after_the_delay() {
    let (_directory, path, log, _metrics) = file_log();
    let buffer = LineBuffer::new(log.clone());
    let record = RequestRecord::new(Direction::Inbound, Protocol::Http1, &Method::GET);
    let waiting = async {
        for _ in 0..3 {
            buffer.request(&record);
            tokio::time::sleep(BATCH_DELAY - Duration::from_millis(1)).await;
            assert!(!buffer.state.borrow().bytes.is_empty());
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(buffer.state.borrow().bytes.is_empty());
        }
    };
    tokio::select! {
        () = waiting => {}
        () = buffer.keep_flushing() => {}
    }
    log.shutdown(Duration::from_secs(10));
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 3);
}

#[test]
fn a_log_that_is_off_formats_nothing() {
    let log = AccessLog::start(Destination::Off, false, &Metrics::new()).unwrap();
    let buffer = LineBuffer::new(log);
    buffer.connection(&ConnectionRecord::new(Direction::Inbound, Protocol::Tcp));
    assert_eq!(buffer.state.borrow().bytes.capacity(), 0);
}

proptest! {
    #[test]
    fn any_strings_make_one_line_that_serde_reads(
        path in any::<String>(),
        authority in "\\PC{1,64}",
        detail in any::<String>(),
        agent in any::<Vec<u8>>(),
    ) {
        let task = task();
        let record = RequestRecord {
            path: &path,
            authority: &authority,
            error_detail: Some(&detail),
            user_agent: Some(&agent),
            ..full_request(&task)
        };
        let line = request_line(&record, true);
        if path.len() <= 2048 {
            prop_assert_eq!(line["path"].as_str(), Some(path.as_str()));
        }
        prop_assert_eq!(line["authority"].as_str(), Some(authority.as_str()));
    }
}
