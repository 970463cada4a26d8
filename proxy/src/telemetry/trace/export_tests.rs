use std::net::SocketAddr;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::super::{Tracer, request_span};
use super::*;
use crate::telemetry::record::{Direction, Protocol, RequestRecord};

/// A collector that hands what it receives to the test.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[expect(clippy::disallowed_methods, reason = "bounded by what the test sends")]
async fn collector() -> (
    SocketAddr,
    mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (address, receiver)
}

fn resource() -> TraceResource {
    TraceResource {
        workload_name: "orders-7d9f".to_owned(),
        otel_service_name: None,
    }
}

fn exporting(address: SocketAddr) -> (SpanQueue, SpanExporting, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let endpoint = format!("http://{address}");
    let (queue, exporting) = start(&endpoint, resource(), Arc::clone(&metrics)).unwrap();
    (queue, exporting, metrics)
}

fn span(tracer: &Tracer, headers: &HeaderMap, direction: Direction) -> (SpanData, HeaderMap) {
    let context = tracer.receive(headers, crate::telemetry::trace::received_parent(headers));
    let record = RequestRecord {
        started: SystemTime::now(),
        ..RequestRecord::new(direction, Protocol::Http1, &Method::GET)
    };
    let mut sent = headers.clone();
    context.apply(&mut sent);
    (request_span(&record, &context), sent)
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<&Span> {
    let scopes = request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans).collect()
}

#[tokio::test]
async fn spans_of_both_proxies_arrive_at_the_collector_under_their_parents() {
    let (address, mut received) = collector().await;
    let (queue, exporting, metrics) = exporting(address);
    let (client, server) = (Tracer::new(0.0, true), Tracer::new(0.0, true));
    let mut headers = HeaderMap::new();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent", HeaderValue::from_static(parent));

    let (outbound, headers) = span(&client, &headers, Direction::Outbound);
    let (inbound, _) = span(&server, &headers, Direction::Inbound);
    queue.push(outbound);
    queue.push(inbound);
    exporting.shutdown(Duration::from_secs(10)).await;

    let request = received.recv().await.unwrap();
    let [outbound, inbound] = spans(&request)[..] else {
        panic!("{request:?}")
    };
    assert_eq!(outbound.trace_id, inbound.trace_id);
    assert_eq!(
        outbound.parent_span_id,
        0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()
    );
    assert_eq!(inbound.parent_span_id, outbound.span_id);
    assert_eq!((outbound.kind, inbound.kind), (3, 2), "CLIENT and SERVER");
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let name = resource
        .attributes
        .iter()
        .find(|pair| pair.key == "service.name")
        .unwrap();
    assert!(
        format!("{:?}", name.value).contains("orders-7d9f"),
        "{name:?}"
    );
    assert_eq!(metrics.exported_spans.get(), 2);
    assert_eq!(metrics.dropped_spans.get(), 0);
}

#[tokio::test]
async fn many_spans_are_sent_in_bounded_batches() {
    let (address, mut received) = collector().await;
    let (queue, _exporting, _metrics) = exporting(address);
    let tracer = Tracer::new(1.0, true);
    for _ in 0..=BATCH_SPANS {
        queue.push(span(&tracer, &HeaderMap::new(), Direction::Inbound).0);
    }
    for expected in [BATCH_SPANS, 1] {
        let request = received.recv().await.unwrap();
        assert_eq!(spans(&request).len(), expected);
    }
}

// Time is paused so that the waits between attempts pass at once.
#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_costs_nothing_but_a_counter() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (queue, exporting, metrics) = exporting(address);
    let tracer = Tracer::new(1.0, true);
    let pushed = QUEUE_SPANS + 100;
    // Nothing is awaited in between, so the exporter has taken none out.
    for _ in 0..pushed {
        queue.push(span(&tracer, &HeaderMap::new(), Direction::Inbound).0);
    }
    assert_eq!(metrics.dropped_spans.get(), 100, "the queue is bounded");
    exporting.shutdown(Duration::from_secs(3600)).await;
    assert_eq!(metrics.dropped_spans.get(), pushed as u64);
    assert_eq!(metrics.exported_spans.get(), 0);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_used_is_refused_at_start() {
    for endpoint in ["https://collector:4317", "not a url"] {
        let error = start(endpoint, resource(), Arc::new(Metrics::new())).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("traces cannot be sent to {endpoint}")
        );
    }
}

#[test]
fn the_service_name_of_the_environment_goes_before_the_workloads() {
    let name = |resource: TraceResource| {
        resource
            .build()
            .get(&opentelemetry::Key::from_static_str("service.name"))
            .unwrap()
    };
    assert_eq!(name(resource()).as_str(), "orders-7d9f");
    let named = TraceResource {
        otel_service_name: Some("orders".to_owned()),
        ..resource()
    };
    assert_eq!(name(named).as_str(), "orders");
    let empty = TraceResource {
        otel_service_name: Some(String::new()),
        ..resource()
    };
    assert_eq!(name(empty).as_str(), "orders-7d9f");
}
