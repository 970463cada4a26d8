//! Spans made of finished records, with the attributes of OpenTelemetry's semantic conventions.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::str::FromStr as _;
use std::sync::OnceLock;

use http::Method;
use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::TraceContext;
use crate::retry::Failed;
use crate::telemetry::record::{
    ConnectionRecord, Direction, Peer, Protocol, RequestRecord, TaskContext,
};

/// The span of a finished request.
pub(crate) fn request_span(record: &RequestRecord<'_>, context: &TraceContext) -> SpanData {
    let mut attributes = Attributes(Vec::with_capacity(24));
    http_attributes(&mut attributes, record);
    attributes.common(&Common::from(record));
    if !record.route.is_empty() {
        attributes.text("sidewind.route", record.route.to_owned());
    }
    let error_type = request_error_type(record);
    let failed = error_type.is_some();
    attributes.text_if("error.type", error_type);
    if let Some(agent) = record.user_agent {
        attributes.text(
            "user_agent.original",
            String::from_utf8_lossy(agent).into_owned(),
        );
    }
    SpanData {
        name: request_name(record),
        span_context: span_context(context, record.tracestate),
        start_time: record.started,
        end_time: record.started + record.duration,
        status: status(failed, record.error_detail),
        events: failed_attempts(record),
        ..empty(record.direction, context, attributes)
    }
}

/// One event for each attempt that was followed by another, at its end.
fn failed_attempts(record: &RequestRecord<'_>) -> SpanEvents {
    let events = record.failed_attempts.iter().enumerate();
    let events = events.map(|(index, attempt)| {
        let mut attributes = Attributes(Vec::with_capacity(5));
        attributes.number("http.request.resend_count", index as u64);
        if let Some(endpoint) = attempt.endpoint {
            attributes.text("network.peer.address", endpoint.ip().to_string());
            attributes.number("network.peer.port", u64::from(endpoint.port()));
        }
        match attempt.failed {
            Failed::Response(status, grpc_status) => {
                attributes.number("http.response.status_code", u64::from(status.as_u16()));
                if let Some(status) = grpc_status {
                    attributes.number("rpc.grpc.status_code", u64::from(status));
                }
            }
            Failed::Error(code) => {
                attributes.text_if("error.type", code.map(|code| code.as_str()));
            }
        }
        let at = record.started + attempt.began + attempt.duration;
        Event::new("attempt failed", at, attributes.0, 0)
    });
    let mut list = SpanEvents::default();
    list.events = events.collect();
    list
}

/// The span of a finished connection.
pub(crate) fn connection_span(record: &ConnectionRecord<'_>, context: &TraceContext) -> SpanData {
    let mut attributes = Attributes(Vec::with_capacity(16));
    attributes.common(&Common::from(record));
    attributes.text_if("error.type", record.error.map(|code| code.as_str()));
    SpanData {
        name: Cow::Borrowed(record.protocol.as_str()),
        span_context: span_context(context, None),
        start_time: record.started,
        end_time: record.started + record.duration,
        status: status(record.error.is_some(), record.error_detail),
        ..empty(record.direction, context, attributes)
    }
}

fn empty(direction: Direction, context: &TraceContext, attributes: Attributes) -> SpanData {
    static SCOPE: OnceLock<InstrumentationScope> = OnceLock::new();
    let scope = SCOPE.get_or_init(|| {
        InstrumentationScope::builder("sidewind-proxy")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build()
    });
    let parent = context
        .parent_id
        .map_or(SpanId::INVALID, SpanId::from_bytes);
    SpanData {
        span_context: SpanContext::NONE,
        parent_span_id: parent,
        parent_span_is_remote: context.parent_id.is_some(),
        span_kind: match direction {
            Direction::Inbound => SpanKind::Server,
            Direction::Outbound | Direction::Gateway => SpanKind::Client,
        },
        name: Cow::Borrowed(""),
        start_time: std::time::UNIX_EPOCH,
        end_time: std::time::UNIX_EPOCH,
        attributes: attributes.0,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}

fn span_context(context: &TraceContext, tracestate: Option<&str>) -> SpanContext {
    let state = tracestate
        .filter(|_| context.keep_tracestate)
        .and_then(|text| TraceState::from_str(text).ok());
    SpanContext::new(
        TraceId::from_bytes(context.trace_id),
        SpanId::from_bytes(context.span_id),
        TraceFlags::new(u8::from(context.sampled)),
        false,
        state.unwrap_or_default(),
    )
}

fn status(failed: bool, detail: Option<&str>) -> Status {
    match failed {
        true => Status::error(detail.unwrap_or_default().to_owned()),
        false => Status::Unset,
    }
}

/// `{package.Service}/{Method}` for gRPC, the method for HTTP: names must be few, and the proxy
/// knows no routes.
fn request_name(record: &RequestRecord<'_>) -> Cow<'static, str> {
    if record.protocol == Protocol::Grpc {
        return Cow::Owned(path_only(record.path).trim_start_matches('/').to_owned());
    }
    Cow::Borrowed(known_method(record.method).unwrap_or("HTTP"))
}

fn http_attributes(attributes: &mut Attributes, record: &RequestRecord<'_>) {
    match known_method(record.method) {
        Some(method) => attributes.text("http.request.method", method),
        None => {
            attributes.text("http.request.method", "_OTHER");
            attributes.text(
                "http.request.method_original",
                record.method.as_str().to_owned(),
            );
        }
    }
    if let Some(status) = record.status {
        attributes.number("http.response.status_code", u64::from(status.as_u16()));
    }
    attributes.text("url.path", path_only(record.path).to_owned());
    attributes.text("url.scheme", "http");
    let version = if record.protocol == Protocol::Http1 {
        "1.1"
    } else {
        "2"
    };
    attributes.text("network.protocol.version", version);
    if let Some((host, port)) = host_and_port(record.authority) {
        attributes.text("server.address", host.to_owned());
        if let Some(port) = port {
            attributes.number("server.port", u64::from(port));
        }
    }
    attributes.number("http.request.body.size", record.request_bytes);
    attributes.number("http.response.body.size", record.response_bytes);
    if record.attempts > 1 {
        attributes.number("http.request.resend_count", u64::from(record.attempts - 1));
    }
    if record.protocol == Protocol::Grpc {
        attributes.text("rpc.system", "grpc");
        if let Some((service, method)) = path_only(record.path)
            .trim_start_matches('/')
            .rsplit_once('/')
        {
            attributes.text("rpc.service", service.to_owned());
            attributes.text("rpc.method", method.to_owned());
        }
        if let Some(status) = record.grpc_status {
            attributes.number("rpc.grpc.status_code", u64::from(status));
        }
    }
}

/// The proxy's own code, else the status where the conventions call it an error: for a client any
/// from 400 on, for a server from 500 on.
fn request_error_type(record: &RequestRecord<'_>) -> Option<Cow<'static, str>> {
    if let Some(code) = record.error {
        return Some(Cow::Borrowed(code.as_str()));
    }
    let client = record.direction != Direction::Inbound;
    if let Some(status) = record.grpc_status {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS.
        let failed = if client {
            status != 0
        } else {
            matches!(status, 2 | 4 | 12..=15)
        };
        return failed.then(|| Cow::Owned(status.to_string()));
    }
    let status = record.status?.as_u16();
    let failed = status >= if client { 400 } else { 500 };
    failed.then(|| Cow::Owned(status.to_string()))
}

fn path_only(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// Splits `host:port`, `[v6]:port`, or either without a port.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if authority.is_empty() {
        return None;
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((
            host,
            port.strip_prefix(':').and_then(|port| port.parse().ok()),
        ));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => Some((host, port.parse().ok())),
        None => Some((authority, None)),
    }
}

fn known_method(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => return None,
    })
}

/// What requests and connections share.
struct Common<'a> {
    direction: Direction,
    service: &'a str,
    endpoint: Option<SocketAddr>,
    source: Peer<'a>,
    destination: Peer<'a>,
    tls: bool,
    attempts: u32,
    task: Option<&'a TaskContext>,
}

impl<'a> From<&RequestRecord<'a>> for Common<'a> {
    fn from(record: &RequestRecord<'a>) -> Self {
        let RequestRecord {
            direction,
            service,
            endpoint,
            source,
            destination,
            ..
        } = *record;
        let RequestRecord {
            tls,
            attempts,
            task,
            ..
        } = *record;
        Self {
            direction,
            service,
            endpoint,
            source,
            destination,
            tls,
            attempts,
            task,
        }
    }
}

impl<'a> From<&ConnectionRecord<'a>> for Common<'a> {
    fn from(record: &ConnectionRecord<'a>) -> Self {
        let ConnectionRecord {
            direction,
            service,
            endpoint,
            source,
            destination,
            ..
        } = *record;
        let ConnectionRecord {
            tls,
            attempts,
            task,
            ..
        } = *record;
        Self {
            direction,
            service,
            endpoint,
            source,
            destination,
            tls,
            attempts,
            task,
        }
    }
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &'static str, value: impl Into<Cow<'static, str>>) {
        let value = match value.into() {
            Cow::Borrowed(text) => opentelemetry::StringValue::from(text),
            Cow::Owned(text) => opentelemetry::StringValue::from(text),
        };
        self.0.push(KeyValue::new(key, value));
    }

    fn text_if(&mut self, key: &'static str, value: Option<impl Into<Cow<'static, str>>>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.0
            .push(KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn common(&mut self, record: &Common<'_>) {
        // The peer is who is at the other end of the proxy's own connection.
        let peer = match record.direction {
            Direction::Inbound => record.source.address,
            Direction::Outbound | Direction::Gateway => record.endpoint,
        };
        if let Some(peer) = peer {
            self.text("network.peer.address", peer.ip().to_string());
            self.number("network.peer.port", u64::from(peer.port()));
        }
        self.text("sidewind.direction", record.direction.as_str());
        if !record.service.is_empty() {
            self.text("sidewind.service", record.service.to_owned());
        }
        self.text_if(
            "sidewind.endpoint",
            record.endpoint.map(|endpoint| endpoint.to_string()),
        );
        let id = |peer: Peer<'_>| peer.spiffe_id.map(str::to_owned);
        self.text_if("sidewind.source.spiffe_id", id(record.source));
        self.text_if("sidewind.destination.spiffe_id", id(record.destination));
        self.0.push(KeyValue::new("sidewind.tls", record.tls));
        self.number("sidewind.attempts", u64::from(record.attempts));
        if let Some(task) = record.task {
            self.task(task);
        }
    }

    /// Airflow's own spans use these names, so that both are found by one query.
    fn task(&mut self, task: &TaskContext) {
        self.text("airflow.dag_id", task.dag_id.clone());
        self.text("airflow.task_id", task.task_id.clone());
        let run_id = (!task.run_id.is_empty()).then(|| task.run_id.clone());
        self.text_if("airflow.dag_run.run_id", run_id);
        if let Some(number) = task.try_number {
            self.number("airflow.task_instance.try_number", u64::from(number));
        }
        if let Some(index) = task.map_index {
            self.0.push(KeyValue::new(
                "airflow.task_instance.map_index",
                i64::from(index),
            ));
        }
        self.text_if("airflow.dag_run.run_type", task.run_type.clone());
        self.text_if("airflow.team", task.team.clone());
        self.text_if("airflow.triggered_by", task.triggered_by.clone());
    }
}

#[cfg(test)]
#[path = "span_tests.rs"]
mod tests;
