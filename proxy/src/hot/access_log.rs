use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};

use crate::telemetry::{Direction, Peer, Protocol, RequestRecord, access_log::Lines};

/// The access-log line of a request that went through the mesh.
#[derive(Debug)]
pub struct AccessLine {
    lines: Lines,
    started: SystemTime,
}

impl Default for AccessLine {
    fn default() -> Self {
        Self {
            lines: Lines::default(),
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        }
    }
}

impl AccessLine {
    /// Formats the line of a request that ended `offset` later than the first, and gives back its bytes.
    pub fn format(&mut self, offset: Duration) -> &[u8] {
        let method = Method::GET;
        let record = RequestRecord {
            started: self.started + offset,
            duration: Duration::from_micros(1234),
            path: "/api/v2/dags/example/dagRuns?limit=10",
            authority: "api-server.airflow:8080",
            status: Some(StatusCode::OK),
            service: "api-server.airflow",
            endpoint: Some(([10, 0, 0, 2], 8080).into()),
            source: Peer {
                address: Some(([10, 0, 0, 1], 40_000).into()),
                spiffe_id: Some("spiffe://sidewind.local/ns/airflow/sa/worker"),
            },
            destination: Peer {
                address: Some(([10, 0, 0, 2], 8080).into()),
                spiffe_id: Some("spiffe://sidewind.local/ns/airflow/sa/api-server"),
            },
            tls: true,
            attempts: 1,
            response_bytes: 1024,
            user_agent: Some(b"python-httpx/0.28.1"),
            ..RequestRecord::new(Direction::Outbound, Protocol::Http1, &method)
        };
        self.lines.of_request(&record)
    }
}
