//! What the proxy says about its traffic and itself: metrics, access log, traces, log.
//!
//! [`SharedTelemetry`] is made once, on the control thread. Each worker makes a [`Telemetry`] of it,
//! through which every request and connection ends in exactly one access-log line, one set of
//! metrics and, where its trace is sampled, one span.

pub(crate) mod access_log;
pub(crate) mod logs;
pub(crate) mod metrics;
mod record;
pub(crate) mod trace;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;

pub(crate) use record::{
    ConnectionRecord, Direction, FailedAttempt, Peer, Protocol, RequestRecord, TaskContext,
};

use access_log::{AccessLog, LineBuffer};
use metrics::{FinishedRequest, Metrics, WorkerMetrics};
use trace::{SpanQueue, TraceContext, TraceParent, Tracer};

use crate::errors::{ErrorCode, ProxyError};

/// What all workers share.
#[derive(Clone, Debug)]
pub(crate) struct SharedTelemetry {
    /// Every metric of the process.
    pub(crate) metrics: Arc<Metrics>,
    /// The access log.
    pub(crate) access_log: AccessLog,
    /// Where spans go; none without a collector.
    pub(crate) spans: Option<SpanQueue>,
    /// The share of begun traces that is sampled, 0 to 1.
    pub(crate) trace_ratio: f64,
}

/// A worker's telemetry. Clones are the same; not shared between threads.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: WorkerMetrics,
    lines: LineBuffer,
    tracer: Tracer,
    spans: Option<SpanQueue>,
    stopping: Cell<bool>,
}

impl Telemetry {
    /// The telemetry of worker number `worker`.
    pub(crate) fn new(shared: &SharedTelemetry, worker: usize) -> Self {
        Self(Rc::new(Inner {
            metrics: WorkerMetrics::new(Arc::clone(&shared.metrics), worker),
            lines: LineBuffer::new(shared.access_log.clone()),
            tracer: Tracer::new(shared.trace_ratio, shared.spans.is_some()),
            spans: shared.spans.clone(),
            stopping: Cell::new(false),
        }))
    }

    /// Says that whatever is cut off from now on is cut off by this proxy.
    pub(crate) fn stop(&self) {
        self.0.stopping.set(true);
    }

    /// Why something is dropped before its end, for which nothing else is known.
    pub(crate) fn cut_off(&self) -> ProxyError {
        if self.0.stopping.get() {
            ProxyError::new(
                ErrorCode::Stopped,
                "The proxy ended, after its grace period or by a second signal.",
            )
        } else {
            ProxyError::new(ErrorCode::ClientClosed, "The client went away.")
        }
    }

    /// The worker's metrics, for handles and for what has no record.
    pub(crate) fn metrics(&self) -> &WorkerMetrics {
        &self.0.metrics
    }

    /// The trace of a request with these headers, and the parent that they name.
    pub(crate) fn receive_trace(
        &self,
        headers: &HeaderMap,
        parent: Option<TraceParent>,
    ) -> TraceContext {
        self.0.tracer.receive(headers, parent)
    }

    /// What a trace that was begun here becomes when its parent is found after all.
    pub(crate) fn adopt_trace(&self, begun: TraceContext, parent: TraceParent) -> TraceContext {
        self.0.tracer.adopt(begun, parent)
    }

    /// Says everything that there is to say about a request, once it has ended.
    pub(crate) fn finish_request(&self, record: &RequestRecord<'_>) {
        let finished = FinishedRequest {
            method: record.method,
            status: record.status,
            grpc_status: record.grpc_status,
            error: record.error,
            duration: record.duration,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
        };
        let metrics = &self.0.metrics;
        match record.handles {
            Some(handles) => handles.record(&finished),
            None => {
                let peer = record.remote_id();
                metrics
                    .request_handles(record.direction, record.service, peer, record.tls)
                    .record(&finished);
            }
        }
        if let Some(code) = record.error {
            metrics.error(record.direction, code);
        }
        if let Some(task) = record.task {
            metrics.task_request(record.direction, task, record.status, record.duration);
        }
        self.0.lines.request(record);
        if let (Some(spans), Some(context)) = (&self.0.spans, &record.trace)
            && context.sampled
        {
            spans.push(trace::request_span(record, context));
        }
    }

    /// Says everything that there is to say about a connection that was carried as bytes, once it
    /// has ended.
    pub(crate) fn finish_connection(&self, record: &ConnectionRecord<'_>) {
        let metrics = &self.0.metrics;
        let (sent, received) = (record.request_bytes, record.response_bytes);
        match record.handles {
            Some(handles) => handles.record(sent, received, record.duration),
            None => {
                let ConnectionRecord {
                    direction,
                    protocol,
                    service,
                    tls,
                    ..
                } = *record;
                let peer = record.remote_id();
                let handles = metrics.connection_handles(direction, protocol, service, peer, tls);
                // It was accepted, and is over already.
                drop(handles.open());
                handles.record(sent, received, record.duration);
            }
        }
        if let Some(code) = record.error {
            metrics.error(record.direction, code);
        }
        if let Some(task) = record.task {
            metrics.task_connection(record.direction, task);
        }
        self.0.lines.connection(record);
        if let (Some(spans), Some(context)) = (&self.0.spans, &record.trace)
            && context.sampled
        {
            spans.push(trace::connection_span(record, context));
        }
    }

    /// Hands access-log lines to the writer when they have waited long enough. Each worker runs
    /// this as a local task for as long as it lives.
    pub(crate) async fn keep_flushing(self) {
        self.0.lines.keep_flushing().await;
    }

    /// Hands over what the worker has not yet, before it ends.
    pub(crate) fn flush(&self) {
        self.0.lines.flush();
    }
}

#[cfg(test)]
mod tests;
