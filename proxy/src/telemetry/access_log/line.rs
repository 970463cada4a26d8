//! One JSON line for each record. `docs/access-log.md` describes the fields.

use super::json::{Object, key};
use super::timestamp::Timestamps;
use crate::retry::Failed;
use crate::telemetry::record::{ConnectionRecord, FailedAttempt, Peer, RequestRecord, TaskContext};
use crate::telemetry::trace::TraceContext;

/// Bounds of what comes from outside, in bytes. A line is below 16 KiB with all of them used up.
const MAX_PATH_BYTES: usize = 2048;
const MAX_NAME_BYTES: usize = 512;
const MAX_DETAIL_BYTES: usize = 1024;

/// Appends the line of a request.
pub(super) fn request(
    out: &mut Vec<u8>,
    timestamps: &mut Timestamps,
    record: &RequestRecord<'_>,
    with_query: bool,
) {
    let mut line = Object::open(out);
    line.plain(key!("timestamp"), timestamps.format(record.started));
    line.plain(key!("kind"), b"request");
    line.plain(key!("direction"), record.direction.as_str().as_bytes());
    line.plain(key!("protocol"), record.protocol.as_str().as_bytes());
    line.string(key!("method"), record.method.as_str(), MAX_NAME_BYTES);
    let path = match record.path.split_once('?') {
        Some((path, _)) if !with_query => path,
        _ => record.path,
    };
    line.string(key!("path"), path, MAX_PATH_BYTES);
    if !record.authority.is_empty() {
        line.string(key!("authority"), record.authority, MAX_NAME_BYTES);
    }
    if let Some(status) = record.status {
        line.number(key!("status"), status.as_u16().into());
    }
    if let Some(status) = record.grpc_status {
        line.number(key!("grpc_status"), status.into());
    }
    if let Some(error) = record.error {
        line.plain(key!("error"), error.as_str().as_bytes());
    }
    if let Some(detail) = record.error_detail {
        line.string(key!("error_detail"), detail, MAX_DETAIL_BYTES);
    }
    ends(
        &mut line,
        record.service,
        record.endpoint,
        record.source,
        record.destination,
    );
    if !record.route.is_empty() {
        line.string(key!("route"), record.route, MAX_NAME_BYTES);
    }
    line.boolean(key!("tls"), record.tls);
    line.number(key!("attempts"), record.attempts.into());
    if !record.failed_attempts.is_empty() {
        line.list(
            key!("failed_attempts"),
            record.failed_attempts,
            failed_attempt,
        );
    }
    line.number(key!("request_bytes"), record.request_bytes);
    line.number(key!("response_bytes"), record.response_bytes);
    line.milliseconds(key!("duration_ms"), record.duration);
    trace(&mut line, record.trace.as_ref());
    if let Some(agent) = record.user_agent {
        line.bytes(key!("user_agent"), agent, MAX_NAME_BYTES);
    }
    task(&mut line, record.task);
    if let Some(reason) = record.task_unknown {
        line.plain(key!("task_unknown"), reason.as_bytes());
    }
    line.close();
    out.push(b'\n');
}

/// Appends the line of a connection.
pub(super) fn connection(
    out: &mut Vec<u8>,
    timestamps: &mut Timestamps,
    record: &ConnectionRecord<'_>,
) {
    let mut line = Object::open(out);
    line.plain(key!("timestamp"), timestamps.format(record.started));
    line.plain(key!("kind"), b"connection");
    line.plain(key!("direction"), record.direction.as_str().as_bytes());
    line.plain(key!("protocol"), record.protocol.as_str().as_bytes());
    if let Some(error) = record.error {
        line.plain(key!("error"), error.as_str().as_bytes());
    }
    if let Some(detail) = record.error_detail {
        line.string(key!("error_detail"), detail, MAX_DETAIL_BYTES);
    }
    ends(
        &mut line,
        record.service,
        record.endpoint,
        record.source,
        record.destination,
    );
    line.boolean(key!("tls"), record.tls);
    line.number(key!("attempts"), record.attempts.into());
    line.number(key!("request_bytes"), record.request_bytes);
    line.number(key!("response_bytes"), record.response_bytes);
    line.milliseconds(key!("duration_ms"), record.duration);
    trace(&mut line, record.trace.as_ref());
    task(&mut line, record.task);
    if let Some(reason) = record.task_unknown {
        line.plain(key!("task_unknown"), reason.as_bytes());
    }
    line.close();
    out.push(b'\n');
}

fn failed_attempt(line: &mut Object<'_>, attempt: &FailedAttempt) {
    if let Some(endpoint) = attempt.endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    match attempt.failed {
        Failed::Response(status, grpc_status) => {
            line.number(key!("status"), status.as_u16().into());
            if let Some(status) = grpc_status {
                line.number(key!("grpc_status"), status.into());
            }
        }
        Failed::Error(code) => {
            let code = code.map_or("unknown", |code| code.as_str());
            line.plain(key!("error"), code.as_bytes());
        }
    }
    line.milliseconds(key!("began_ms"), attempt.began);
    line.milliseconds(key!("duration_ms"), attempt.duration);
}

fn ends(
    line: &mut Object<'_>,
    service: &str,
    endpoint: Option<std::net::SocketAddr>,
    source: Peer<'_>,
    destination: Peer<'_>,
) {
    if !service.is_empty() {
        line.string(key!("service"), service, MAX_NAME_BYTES);
    }
    if let Some(endpoint) = endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    for (key, peer) in [(key!("source"), source), (key!("destination"), destination)] {
        line.object(key, |end| {
            if let Some(address) = peer.address {
                end.address(key!("address"), address);
            }
            if let Some(id) = peer.spiffe_id {
                end.string(key!("spiffe_id"), id, 2 * MAX_NAME_BYTES);
            }
        });
    }
}

fn trace(line: &mut Object<'_>, trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        line.hex(key!("trace_id"), &trace.trace_id);
        line.hex(key!("span_id"), &trace.span_id);
    }
}

fn task(line: &mut Object<'_>, task: Option<&TaskContext>) {
    let Some(task) = task else { return };
    line.string(key!("dag_id"), &task.dag_id, MAX_NAME_BYTES);
    line.string(key!("task_id"), &task.task_id, MAX_NAME_BYTES);
    if !task.run_id.is_empty() {
        line.string(key!("run_id"), &task.run_id, MAX_NAME_BYTES);
    }
    if let Some(index) = task.map_index {
        line.signed(key!("map_index"), index.into());
    }
    if let Some(number) = task.try_number {
        line.number(key!("try_number"), number.into());
    }
    if let Some(kind) = &task.run_type {
        line.string(key!("run_type"), kind, MAX_NAME_BYTES);
    }
    if let Some(team) = &task.team {
        line.string(key!("team"), team, MAX_NAME_BYTES);
    }
    if let Some(user) = &task.triggered_by {
        line.string(key!("triggered_by"), user, MAX_NAME_BYTES);
    }
}
