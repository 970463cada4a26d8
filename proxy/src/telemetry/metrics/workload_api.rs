//! What is counted about the Workload API socket.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::registry::Registry;
use tonic::Code;

use super::cell::{Counter, Gauge};
use super::events::words;
use super::family::{Family, Labels};
use super::labels::encode_as_str;
use super::{Families, single};

/// The socket has a thread of its own, beside the workers.
const THREAD: usize = usize::MAX;

words! {
    /// Why a connection to the socket was closed by the proxy.
    ClosedConnection {
        /// As many are open as may be.
        TooMany = "too-many",
        /// Nobody called anything on it.
        Idle = "idle",
        /// Its client does not read what it asked for.
        NotReading = "not-reading",
    }
}
encode_as_str!(ClosedConnection);

/// A method of a closed set, as the socket's gate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Method(&'static str);

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.0)
    }
}

/// Labels of `sidewind_workload_api_calls_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct CallLabels {
    method: Method,
    code: Method,
}

/// Labels of `sidewind_workload_api_closed_connections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct ClosedLabels {
    reason: ClosedConnection,
}

impl Labels for CallLabels {
    fn overflow(&self) -> Self {
        self.clone()
    }
}

impl Labels for ClosedLabels {
    fn overflow(&self) -> Self {
        self.clone()
    }
}

/// The families of the Workload API.
#[derive(Debug)]
pub(crate) struct WorkloadApiFamilies {
    calls: Family<CallLabels, Counter>,
    closed: Family<ClosedLabels, Counter>,
    /// Calls that are under way; streams last until their client goes.
    pub(crate) open_calls: Arc<Gauge>,
    /// Connections that are open.
    pub(crate) connections: Arc<Gauge>,
}

impl WorkloadApiFamilies {
    pub(super) fn register(families: &mut Families<'_>) -> Self {
        let calls = families.add(
            "sidewind_workload_api_calls",
            "Calls at the Workload API socket that have ended, by gRPC code",
        );
        let closed = families.add(
            "sidewind_workload_api_closed_connections",
            "Connections to the Workload API socket that the proxy closed",
        );
        let registry: &mut Registry = families.registry;
        Self {
            calls,
            closed,
            open_calls: single(
                registry,
                "sidewind_workload_api_open_calls",
                "Calls at the Workload API socket that are under way; a stream is one",
            ),
            connections: single(
                registry,
                "sidewind_workload_api_connections",
                "Connections to the Workload API socket that are open",
            ),
        }
    }

    /// Counts a call that has ended. `method` is one of a closed set.
    pub(crate) fn call_ended(&self, method: &'static str, code: Code) {
        let labels = CallLabels {
            method: Method(method),
            code: Method(code_name(code)),
        };
        self.calls.cell(THREAD, &labels).inc();
    }

    /// Counts a connection that the proxy closed.
    pub(crate) fn connection_closed(&self, reason: ClosedConnection) {
        self.closed.cell(THREAD, &ClosedLabels { reason }).inc();
    }
}

/// The code in words, as the control plane's metrics have it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid-argument",
        Code::DeadlineExceeded => "deadline-exceeded",
        Code::NotFound => "not-found",
        Code::AlreadyExists => "already-exists",
        Code::PermissionDenied => "permission-denied",
        Code::ResourceExhausted => "resource-exhausted",
        Code::FailedPrecondition => "failed-precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out-of-range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data-loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
