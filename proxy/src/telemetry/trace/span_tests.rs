use std::time::{Duration, SystemTime};

use http::StatusCode;
use opentelemetry::Value;

use super::*;
use crate::errors::ErrorCode;
use crate::telemetry::FailedAttempt;

fn context() -> TraceContext {
    TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
        parent_id: Some([3; 8]),
        sampled: true,
        keep_tracestate: true,
    }
}

fn request(direction: Direction) -> RequestRecord<'static> {
    RequestRecord {
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        duration: Duration::from_millis(250),
        path: "/orders?key=secret",
        authority: "orders.data:8080",
        status: Some(StatusCode::OK),
        service: "orders.data",
        endpoint: Some(([10, 0, 0, 9], 8080).into()),
        source: Peer {
            address: Some(([10, 0, 0, 1], 40_000).into()),
            spiffe_id: Some("spiffe://example.org/ns/airflow/sa/worker"),
        },
        tls: true,
        attempts: 3,
        tracestate: Some("congo=t61"),
        ..RequestRecord::new(direction, Protocol::Http1, &Method::GET)
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span
        .attributes
        .iter()
        .find(|pair| pair.key.as_str() == key)?;
    Some(match &found.value {
        Value::String(text) => text.to_string(),
        other => other.to_string(),
    })
}

#[test]
fn a_span_has_the_ids_and_times_of_its_record() {
    let span = request_span(&request(Direction::Outbound), &context());
    assert_eq!(span.span_context.trace_id(), TraceId::from_bytes([1; 16]));
    assert_eq!(span.span_context.span_id(), SpanId::from_bytes([2; 8]));
    assert_eq!(span.parent_span_id, SpanId::from_bytes([3; 8]));
    assert!(span.parent_span_is_remote && span.span_context.is_sampled());
    assert_eq!(span.span_context.trace_state().get("congo"), Some("t61"));
    assert_eq!(
        span.end_time
            .duration_since(span.start_time)
            .unwrap()
            .as_millis(),
        250
    );
    assert_eq!((span.span_kind, &*span.name), (SpanKind::Client, "GET"));
    assert_eq!(span.status, Status::Unset);
}

#[test]
fn attributes_follow_the_semantic_conventions() {
    let span = request_span(&request(Direction::Outbound), &context());
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", "2"),
        ("url.path", "/orders"),
        ("server.address", "orders.data"),
        ("server.port", "8080"),
        ("network.peer.address", "10.0.0.9"),
        (
            "sidewind.source.spiffe_id",
            "spiffe://example.org/ns/airflow/sa/worker",
        ),
        ("sidewind.tls", "true"),
    ] {
        assert_eq!(attribute(&span, key).as_deref(), Some(expected), "{key}");
    }
    let inbound = request_span(&request(Direction::Inbound), &context());
    assert_eq!(
        attribute(&inbound, "network.peer.address").as_deref(),
        Some("10.0.0.1")
    );
    assert_eq!(inbound.span_kind, SpanKind::Server);
}

#[test]
fn each_attempt_that_another_followed_is_an_event_of_the_span() {
    let failed = |failed, began, duration| FailedAttempt {
        endpoint: Some(([10, 0, 0, 8], 8080).into()),
        failed,
        began: Duration::from_millis(began),
        duration: Duration::from_millis(duration),
    };
    let attempts = [
        failed(Failed::Error(Some(ErrorCode::ConnectFailed)), 0, 20),
        failed(Failed::Response(StatusCode::BAD_GATEWAY, None), 50, 30),
        failed(Failed::Response(StatusCode::OK, Some(14)), 100, 40),
    ];
    let record = RequestRecord {
        failed_attempts: &attempts,
        ..request(Direction::Outbound)
    };
    let span = request_span(&record, &context());
    let seen: Vec<_> = span.events.iter().map(told).collect();
    let at = "network.peer.address=10.0.0.8 network.peer.port=8080";
    let expected = [
        (20, "0", "error.type=connect-failed"),
        (80, "1", "http.response.status_code=502"),
        (
            140,
            "2",
            "http.response.status_code=200 rpc.grpc.status_code=14",
        ),
    ];
    let expected = expected.map(|(after, index, failed)| {
        let attributes = format!("http.request.resend_count={index} {at} {failed}");
        (after, attributes)
    });
    assert_eq!(seen, expected);
    assert!(
        request_span(&request(Direction::Outbound), &context())
            .events
            .is_empty()
    );
}

/// How many milliseconds after the request an event was, and its attributes.
fn told(event: &Event) -> (u128, String) {
    assert_eq!(event.name, "attempt failed");
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    let after = event.timestamp.duration_since(started).unwrap();
    let attributes = event.attributes.iter();
    let attributes: Vec<_> = attributes
        .map(|pair| format!("{}={}", pair.key, pair.value))
        .collect();
    (after.as_millis(), attributes.join(" "))
}

#[test]
fn no_attribute_holds_a_query() {
    let span = request_span(&request(Direction::Inbound), &context());
    assert!(
        span.attributes
            .iter()
            .all(|pair| !pair.value.as_str().contains("secret"))
    );
}

#[test]
fn what_counts_as_an_error_depends_on_the_side() {
    let (inbound, outbound) = (Direction::Inbound, Direction::Outbound);
    let error = |record: RequestRecord<'static>| {
        let span = request_span(&record, &context());
        (
            attribute(&span, "error.type"),
            matches!(span.status, Status::Error { .. }),
        )
    };
    let http = |direction, status| {
        let status = StatusCode::from_u16(status).ok();
        error(RequestRecord {
            status,
            ..request(direction)
        })
    };
    let grpc = |direction, status| {
        let protocol = Protocol::Grpc;
        error(RequestRecord {
            protocol,
            grpc_status: Some(status),
            ..request(direction)
        })
    };
    let failed = |text: &str| (Some(text.to_owned()), true);
    let good = (None, false);
    assert_eq!(http(inbound, 404), good);
    assert_eq!(http(outbound, 404), failed("404"));
    assert_eq!(http(inbound, 503), failed("503"));
    assert_eq!(grpc(outbound, 0), good);
    assert_eq!(grpc(outbound, 5), failed("5"));
    assert_eq!(grpc(inbound, 5), good);
    assert_eq!(grpc(inbound, 14), failed("14"));
    let own = RequestRecord {
        error: Some(ErrorCode::PolicyDenied),
        ..request(inbound)
    };
    assert_eq!(error(own), failed("policy-denied"));
}

#[test]
fn a_grpc_span_is_named_by_its_method() {
    let record = RequestRecord {
        protocol: Protocol::Grpc,
        path: "/sidewind.v1.Greeter/Hello",
        ..request(Direction::Inbound)
    };
    let span = request_span(&record, &context());
    assert_eq!(span.name, "sidewind.v1.Greeter/Hello");
    assert_eq!(
        attribute(&span, "rpc.service").as_deref(),
        Some("sidewind.v1.Greeter")
    );
    assert_eq!(attribute(&span, "rpc.method").as_deref(), Some("Hello"));
}

#[test]
fn an_invented_method_does_not_name_a_span() {
    let method = Method::from_bytes(b"BREW").unwrap();
    let record = RequestRecord {
        method: &method,
        ..request(Direction::Inbound)
    };
    let span = request_span(&record, &context());
    assert_eq!(span.name, "HTTP");
    assert_eq!(
        attribute(&span, "http.request.method_original").as_deref(),
        Some("BREW")
    );
}

#[test]
fn a_connection_span_names_the_task_behind_it() {
    let task = TaskContext {
        dag_id: "etl".into(),
        map_index: Some(4),
        ..TaskContext::default()
    };
    let record = ConnectionRecord {
        task: Some(&task),
        error: Some(ErrorCode::ConnectFailed),
        ..ConnectionRecord::new(Direction::Outbound, Protocol::Tcp)
    };
    let span = connection_span(&record, &context());
    assert_eq!(span.name, "tcp");
    assert_eq!(attribute(&span, "airflow.dag_id").as_deref(), Some("etl"));
    assert_eq!(
        attribute(&span, "airflow.task_instance.map_index").as_deref(),
        Some("4")
    );
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("connect-failed")
    );
}

#[test]
fn an_authority_is_split_into_host_and_port() {
    assert_eq!(host_and_port(""), None);
    assert_eq!(host_and_port("a"), Some(("a", None)));
    assert_eq!(host_and_port("a:80"), Some(("a", Some(80))));
    assert_eq!(host_and_port("[::1]:80"), Some(("::1", Some(80))));
    assert_eq!(host_and_port("[::1]"), Some(("::1", None)));
}
