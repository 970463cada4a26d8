//! What is said about a finished request or connection.
//!
//! Records borrow from whoever carried the request: building one copies no string.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use sidewind_identity::{SpiffeId, TaskId};

use super::metrics::{ConnectionHandles, RequestHandles};
use super::trace::TraceContext;
use crate::errors::ErrorCode;
use crate::retry::Failed;

/// Which way traffic goes, seen from the workload that the proxy stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
    /// From outside the mesh to services within.
    Gateway,
}

impl Direction {
    /// The word used in logs, metrics and spans.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Gateway => "gateway",
        }
    }
}

/// What the client spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 that is not gRPC.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// TLS of the application's own, passed through untouched.
    Tls,
    /// Anything else.
    Tcp,
}

impl Protocol {
    /// The name used in logs, metrics and spans.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// One end of a request or connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peer<'a> {
    /// Its address, as far as it is known.
    pub(crate) address: Option<SocketAddr>,
    /// Its SPIFFE ID, where mutual TLS proved one.
    pub(crate) spiffe_id: Option<&'a str>,
}

/// The Airflow facts of a request or connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskContext {
    /// The DAG.
    pub(crate) dag_id: String,
    /// The task within the DAG.
    pub(crate) task_id: String,
    /// The DAG run; empty where only a certificate names the task.
    pub(crate) run_id: String,
    /// Index of a mapped task instance; none where the task is not mapped.
    pub(crate) map_index: Option<i32>,
    /// The attempt, from 1.
    pub(crate) try_number: Option<u32>,
    /// The user who triggered the run.
    pub(crate) triggered_by: Option<String>,
    /// Why there is a run: `scheduled`, `manual`, `backfill` and the like.
    pub(crate) run_type: Option<String>,
    /// The team that the DAG belongs to.
    pub(crate) team: Option<String>,
}

impl TaskContext {
    /// The task that a peer's identity names, if it is that of a task.
    pub(crate) fn of_certificate(id: &SpiffeId) -> Option<Self> {
        let task = TaskId::of(id)?;
        Some(Self {
            dag_id: task.dag_id,
            task_id: task.task_id,
            ..Self::default()
        })
    }

    /// The same task as the peer's own certificate names, with what its proxy has `said` of it besides. What contradicts
    /// the certificate is not taken.
    pub(crate) fn confirm(proved: Option<&Self>, said: Option<Self>) -> Option<Self> {
        let Some(proved) = proved else {
            return said;
        };
        let agrees = |said: &Self| said.dag_id == proved.dag_id && said.task_id == proved.task_id;
        said.filter(agrees).or_else(|| Some(proved.clone()))
    }
}

/// An attempt to send a request that was followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailedAttempt {
    /// Where it went; none where there was no endpoint.
    pub(crate) endpoint: Option<SocketAddr>,
    /// How it failed.
    pub(crate) failed: Failed,
    /// From the first byte of the request to the beginning of the attempt.
    pub(crate) began: Duration,
    /// How long it took.
    pub(crate) duration: Duration,
}

/// A finished request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestRecord<'a> {
    /// When its first byte was read.
    pub(crate) started: SystemTime,
    /// From then to the last byte of the response, or to the failure.
    pub(crate) duration: Duration,
    /// To or from the workload.
    pub(crate) direction: Direction,
    /// What the client spoke.
    pub(crate) protocol: Protocol,
    /// The method.
    pub(crate) method: &'a Method,
    /// The path, with or without its query, which is logged only where the configuration says so.
    pub(crate) path: &'a str,
    /// The authority that the client named; empty if none.
    pub(crate) authority: &'a str,
    /// The status that the client got; none if it went away before.
    pub(crate) status: Option<StatusCode>,
    /// The `grpc-status` that a gRPC client got.
    pub(crate) grpc_status: Option<u8>,
    /// The proxy's own failure, if it was one.
    pub(crate) error: Option<ErrorCode>,
    /// The failure's message and causes, as [`crate::errors::ProxyError::chain`] shows them.
    pub(crate) error_detail: Option<&'a str>,
    /// The service that the request is for; empty if unknown.
    pub(crate) service: &'a str,
    /// The endpoint that answered, or was tried last.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The caller.
    pub(crate) source: Peer<'a>,
    /// The called.
    pub(crate) destination: Peer<'a>,
    /// Whether the wire between the proxies is mutual TLS.
    pub(crate) tls: bool,
    /// How often the request was sent, retries and the first attempt counted.
    pub(crate) attempts: u32,
    /// Those of them that failed and were followed by another.
    pub(crate) failed_attempts: &'a [FailedAttempt],
    /// The rule that said where the request goes; empty where none did.
    pub(crate) route: &'a str,
    /// Bytes of the request's body.
    pub(crate) request_bytes: u64,
    /// Bytes of the response's body.
    pub(crate) response_bytes: u64,
    /// The trace.
    pub(crate) trace: Option<TraceContext>,
    /// The `tracestate` header as it was received.
    pub(crate) tracestate: Option<&'a str>,
    /// The `user-agent` header, which need not be UTF-8.
    pub(crate) user_agent: Option<&'a [u8]>,
    /// The Airflow task behind the request.
    pub(crate) task: Option<&'a TaskContext>,
    /// Why that is not known; none where it is, where there is none, and where nobody looks.
    pub(crate) task_unknown: Option<&'static str>,
    /// The metric handles, where the caller holds them; looked up otherwise.
    pub(crate) handles: Option<&'a RequestHandles>,
}

impl<'a> RequestRecord<'a> {
    /// A record with everything unknown, to be filled in.
    pub(crate) fn new(direction: Direction, protocol: Protocol, method: &'a Method) -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            direction,
            protocol,
            method,
            path: "",
            authority: "",
            status: None,
            grpc_status: None,
            error: None,
            error_detail: None,
            service: "",
            endpoint: None,
            source: Peer::default(),
            destination: Peer::default(),
            tls: false,
            attempts: 0,
            failed_attempts: &[],
            route: "",
            request_bytes: 0,
            response_bytes: 0,
            trace: None,
            tracestate: None,
            user_agent: None,
            task: None,
            task_unknown: None,
            handles: None,
        }
    }

    /// The SPIFFE ID at the other end, seen from the workload.
    pub(crate) fn remote_id(&self) -> Option<&'a str> {
        remote_id(self.direction, self.source, self.destination)
    }
}

/// A finished connection that was carried as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionRecord<'a> {
    /// When it was accepted.
    pub(crate) started: SystemTime,
    /// From then until both directions were closed.
    pub(crate) duration: Duration,
    /// To or from the workload.
    pub(crate) direction: Direction,
    /// [`Protocol::Tcp`] or [`Protocol::Tls`]; another one where HTTP failed before a request.
    pub(crate) protocol: Protocol,
    /// The proxy's own failure, if it was one.
    pub(crate) error: Option<ErrorCode>,
    /// The failure's message and causes.
    pub(crate) error_detail: Option<&'a str>,
    /// The service that the connection is for; empty if unknown.
    pub(crate) service: &'a str,
    /// The endpoint that was connected to, or tried last.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Who connected.
    pub(crate) source: Peer<'a>,
    /// To whom.
    pub(crate) destination: Peer<'a>,
    /// Whether the wire between the proxies is mutual TLS.
    pub(crate) tls: bool,
    /// How often connecting was tried.
    pub(crate) attempts: u32,
    /// Bytes from the source to the destination.
    pub(crate) request_bytes: u64,
    /// Bytes from the destination to the source.
    pub(crate) response_bytes: u64,
    /// The trace, where one was received or begun.
    pub(crate) trace: Option<TraceContext>,
    /// The Airflow task behind the connection.
    pub(crate) task: Option<&'a TaskContext>,
    /// Why that is not known; none where it is, where there is none, and where nobody looks.
    pub(crate) task_unknown: Option<&'static str>,
    /// The metric handles, where the caller counted the connection as open with them; looked up otherwise.
    pub(crate) handles: Option<&'a ConnectionHandles>,
}

impl<'a> ConnectionRecord<'a> {
    /// A record with everything unknown, to be filled in.
    pub(crate) fn new(direction: Direction, protocol: Protocol) -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            direction,
            protocol,
            error: None,
            error_detail: None,
            service: "",
            endpoint: None,
            source: Peer::default(),
            destination: Peer::default(),
            tls: false,
            attempts: 0,
            request_bytes: 0,
            response_bytes: 0,
            trace: None,
            task: None,
            task_unknown: None,
            handles: None,
        }
    }

    /// The SPIFFE ID at the other end, seen from the workload.
    pub(crate) fn remote_id(&self) -> Option<&'a str> {
        remote_id(self.direction, self.source, self.destination)
    }
}

fn remote_id<'a>(direction: Direction, source: Peer<'a>, destination: Peer<'a>) -> Option<&'a str> {
    match direction {
        Direction::Inbound => source.spiffe_id,
        Direction::Outbound | Direction::Gateway => destination.spiffe_id,
    }
}
