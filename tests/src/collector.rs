//! A collector of traces: takes OTLP over gRPC, and keeps what it was sent for the test to look at.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::place::Place;
use crate::wait::within;

/// A span as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of the resource.
    pub service: String,
    /// The span's name.
    pub name: String,
    /// Hexadecimal.
    pub trace_id: String,
    /// Hexadecimal.
    pub span_id: String,
    /// Hexadecimal; empty for a root.
    pub parent_id: String,
    /// `SPAN_KIND_…` as its number: 2 server, 3 client.
    pub kind: i32,
    /// From start to end.
    pub duration: Duration,
    /// Start in nanoseconds since 1970.
    pub start: u64,
    /// Attributes of the span, then those of the resource, as text.
    pub attributes: BTreeMap<String, String>,
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _stop: oneshot::Sender<()>,
}

impl Collector {
    /// Listens at `address` in `place`.
    ///
    /// # Panics
    /// When the address is taken.
    #[track_caller]
    pub fn start(place: &Place, address: SocketAddr) -> Self {
        let listener = place
            .listen(address)
            .unwrap_or_else(|error| panic!("cannot listen at {address}: {error}"));
        let address = listener.local_addr().expect("a listening socket");
        let spans = Arc::new(Mutex::default());
        let (stop, stopped) = oneshot::channel();
        let sink = Sink(Arc::clone(&spans));
        std::thread::spawn(move || serve(listener, sink, stopped));
        Self {
            address,
            spans,
            _stop: stop,
        }
    }

    /// What `--trace-endpoint` is given.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The spans of one trace as soon as there are `count` of them, or those that came within `patience`.
    pub fn trace(&self, trace_id: &str, count: usize, patience: Duration) -> Vec<Span> {
        let of_trace = || {
            let spans = self
                .spans()
                .into_iter()
                .filter(|span| span.trace_id == trace_id);
            spans.collect::<Vec<_>>()
        };
        within(patience, || {
            Some(of_trace()).filter(|spans| spans.len() >= count)
        })
        .unwrap_or_else(of_trace)
    }
}

fn serve(listener: TcpListener, sink: Sink, stopped: oneshot::Receiver<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    runtime.block_on(async {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(listener));
        let Ok(listener) = listener else { return };
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(sink));
        tokio::select! {
            _ = server.serve_with_incoming(TcpListenerStream::new(listener)) => {}
            _ = stopped => {}
        }
    });
}

#[derive(Clone, Debug)]
struct Sink(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = Vec::new();
        for resource in request.into_inner().resource_spans {
            let common = attributes(
                resource
                    .resource
                    .map(|resource| resource.attributes)
                    .unwrap_or_default(),
            );
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                let mut attributes = attributes(span.attributes);
                for (key, value) in &common {
                    attributes
                        .entry(key.clone())
                        .or_insert_with(|| value.clone());
                }
                spans.push(Span {
                    service: common.get("service.name").cloned().unwrap_or_default(),
                    name: span.name,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_id: hex(&span.parent_span_id),
                    kind: span.kind,
                    duration: Duration::from_nanos(
                        span.end_time_unix_nano
                            .saturating_sub(span.start_time_unix_nano),
                    ),
                    start: span.start_time_unix_nano,
                    attributes,
                });
            }
        }
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|pair| (pair.key, pair.value.map(text).unwrap_or_default()))
        .collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
