use std::time::Duration;

use http::{Method, StatusCode};

use super::access_log::Destination;
use super::metrics::Format;
use super::*;
use crate::errors::ErrorCode;

fn shared(directory: &tempfile::TempDir) -> SharedTelemetry {
    let metrics = Arc::new(Metrics::new());
    let path = directory.path().join("access.log");
    let access_log = AccessLog::start(Destination::File(path), false, &metrics).unwrap();
    SharedTelemetry {
        metrics,
        access_log,
        spans: None,
        trace_ratio: 1.0,
    }
}

#[test]
fn a_request_ends_in_one_line_and_one_set_of_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    let telemetry = Telemetry::new(&shared, 0);
    let handles = telemetry
        .metrics()
        .request_handles(Direction::Inbound, "orders", None, false);
    let record = RequestRecord {
        status: Some(StatusCode::FORBIDDEN),
        error: Some(ErrorCode::PolicyDenied),
        service: "orders",
        ..RequestRecord::new(Direction::Inbound, Protocol::Http1, &Method::GET)
    };
    telemetry.finish_request(&RequestRecord {
        handles: Some(&handles),
        ..record
    });
    telemetry.finish_request(&record);
    telemetry.flush();
    shared.access_log.shutdown(Duration::from_secs(10));
    let log = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    assert_eq!(log.lines().count(), 2);
    let page = shared.metrics.encode(Format::PrometheusText);
    assert!(page.contains("error=\"policy-denied\"} 2\n"), "{page}");
    let errors = "sidewind_errors_total{direction=\"inbound\",code=\"policy-denied\"} 2\n";
    assert!(page.contains(errors), "{page}");
}

#[test]
fn a_connection_ends_in_one_line_and_one_set_of_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    let telemetry = Telemetry::new(&shared, 3);
    let destination = Peer {
        spiffe_id: Some("spiffe://a/b"),
        address: None,
    };
    telemetry.finish_connection(&ConnectionRecord {
        service: "redis",
        destination,
        request_bytes: 3,
        tls: true,
        ..ConnectionRecord::new(Direction::Outbound, Protocol::Tcp)
    });
    drop(telemetry);
    shared.access_log.shutdown(Duration::from_secs(10));
    let log = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    assert_eq!(
        log.lines().count(),
        1,
        "a dropped worker hands over its lines"
    );
    let page = shared.metrics.encode(Format::PrometheusText);
    let bytes = "sidewind_connection_request_bytes_total{direction=\"outbound\",protocol=\"tcp\",\
                 service=\"redis\",peer=\"spiffe://a/b\",tls=\"true\"} 3\n";
    assert!(page.contains(bytes), "{page}");
}
