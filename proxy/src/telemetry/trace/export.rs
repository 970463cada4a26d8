//! Sending spans to an OpenTelemetry collector over OTLP/gRPC.
//!
//! Workers put finished spans into a bounded queue and go on; one task on the control thread takes
//! them out in batches. The SDK's own batch processor is not used, since it brings a thread of its
//! own and does not say what it dropped.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::telemetry::logs::Throttle;
use crate::telemetry::metrics::Metrics;

/// Spans that wait for the exporter; about 2 MiB at most.
const QUEUE_SPANS: usize = 2_048;

/// Spans in one request to the collector.
const BATCH_SPANS: usize = 512;

/// How long a span waits for others to share its request.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// How long the collector may take for one request.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why exporting could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent to {endpoint}")]
pub(crate) struct ExportError {
    endpoint: String,
    source: ExporterBuildError,
}

/// Whom the spans are from.
#[derive(Clone, Debug)]
pub(crate) struct TraceResource {
    /// `service.name`, unless the environment names one.
    pub(crate) workload_name: String,
    /// `OTEL_SERVICE_NAME`, which overrides everything else.
    pub(crate) otel_service_name: Option<String>,
}

impl TraceResource {
    /// The name is the workload's, overridden by `OTEL_RESOURCE_ATTRIBUTES` and that by
    /// `OTEL_SERVICE_NAME`.
    fn build(self) -> Resource {
        let builder = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", self.workload_name))
            .with_detector(Box::new(EnvResourceDetector::new()));
        match self.otel_service_name.filter(|name| !name.is_empty()) {
            Some(name) => builder.with_service_name(name).build(),
            None => builder.build(),
        }
    }
}

/// Where workers put finished spans. Clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct SpanQueue {
    sender: mpsc::Sender<SpanData>,
    enough: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl SpanQueue {
    /// Hands a span over. Where the queue is full, the span is dropped and counted.
    pub(crate) fn push(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.metrics.dropped_spans.inc();
        }
        // Under load a batch is full before its time is up.
        if self.sender.capacity() <= QUEUE_SPANS - BATCH_SPANS {
            self.enough.notify_one();
        }
    }
}

/// The exporting task.
#[derive(Debug)]
pub(crate) struct SpanExporting {
    task: JoinHandle<()>,
    stop: Arc<Notify>,
}

impl SpanExporting {
    /// Sends what is queued, for at most `timeout`, and ends.
    pub(crate) async fn shutdown(mut self, timeout: Duration) {
        self.stop.notify_one();
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Starts exporting to `endpoint` (`http://host:port`). To be called within the runtime that
/// exports; the connection is made when the first span is there, and again when it was lost.
///
/// # Errors
/// Where the endpoint is not a URL, or is one with a scheme that this build does not speak.
pub(crate) fn start(
    endpoint: &str,
    resource: TraceResource,
    metrics: Arc<Metrics>,
) -> Result<(SpanQueue, SpanExporting), ExportError> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| ExportError {
            endpoint: endpoint.to_owned(),
            source,
        })?;
    exporter.set_resource(&resource.build());
    let (sender, receiver) = mpsc::channel(QUEUE_SPANS);
    let (enough, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let queue = SpanQueue {
        sender,
        enough: Arc::clone(&enough),
        metrics: Arc::clone(&metrics),
    };
    let exporter = Exporter {
        exporter,
        receiver,
        enough,
        stop: Arc::clone(&stop),
        metrics,
    };
    let task = tokio::spawn(exporter.run());
    Ok((queue, SpanExporting { task, stop }))
}

struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    receiver: mpsc::Receiver<SpanData>,
    enough: Arc<Notify>,
    stop: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Exporter {
    async fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let mut batch = Vec::new();
            tokio::select! {
                first = self.receiver.recv() => match first {
                    Some(first) => batch.push(first),
                    None => return,
                },
                () = self.stop.notified() => stopping = true,
            }
            if !stopping {
                tokio::select! {
                    () = tokio::time::sleep(BATCH_DELAY) => {}
                    () = self.enough.notified() => {}
                    () = self.stop.notified() => stopping = true,
                }
            }
            self.drain(batch).await;
        }
    }

    /// Exports the batch and all that is queued now.
    async fn drain(&mut self, mut batch: Vec<SpanData>) {
        loop {
            while batch.len() < BATCH_SPANS {
                let Ok(span) = self.receiver.try_recv() else {
                    break;
                };
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.export(std::mem::take(&mut batch)).await;
        }
    }

    async fn export(&self, batch: Vec<SpanData>) {
        static REFUSED: Throttle = Throttle::new();
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => self.metrics.exported_spans.add(spans),
            Err(error) => {
                self.metrics.dropped_spans.add(spans);
                if let Some(unsaid) = REFUSED.admit() {
                    tracing::warn!(%error, spans, unsaid, "spans could not be exported");
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
