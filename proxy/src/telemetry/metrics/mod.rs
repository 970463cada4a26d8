//! Prometheus metrics.
//!
//! [`Metrics`] holds every family and is shared by the process. Each worker has a
//! [`WorkerMetrics`], which resolves labels to handles once and has cells of its own in every
//! series. `docs/metrics.md` lists the families; a test compares it with the registry.

mod cell;
mod control;
mod events;
mod exposition;
mod family;
mod gateway;
mod handles;
mod labels;
mod process;
mod tasks;
mod workload_api;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub(crate) use cell::{Counter, Gauge};
pub(crate) use control::ControlNumbers;
pub(crate) use events::{
    AdminRefusal, CutOff, Ejection, HandshakeFailure, HoldOutcome, MirrorOutcome, RetryOutcome,
    RetryReason, Side, TaskCaller, TaskFact, TaskLookup,
};
pub(crate) use exposition::Format;
pub(crate) use gateway::GatewayFamilies;
pub(crate) use handles::{
    ConnectionHandles, FinishedRequest, OpenConnection, RequestHandles, WorkerMetrics,
};
pub(crate) use workload_api::{ClosedConnection, WorkloadApiFamilies};

use crate::airflow::Sight;
use cell::{Cell, Histogram, Latency, Lifetime};
use events::{
    AdminLabels, CodeLabels, CutLabels, EjectionLabels, HandshakeLabels, HoldLabels, LimitLabels,
    MirrorLabels, RetryLabels, SideLabels, TaskCallerLabels, TaskFactLabels, TaskLookupLabels,
};
use family::{Family, Labels, Single};
use labels::{ConnectionLabels, Name, PairLabels, RequestLabels};
use tasks::TaskFamilies;

/// Series that a family of counters or gauges may have.
const MAX_SERIES: usize = 2_000;

/// Series that a family of histograms may have; each is more than a dozen lines.
const MAX_HISTOGRAMS: usize = 500;

/// Every metric of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: RequestFamilies,
    connections: ConnectionFamilies,
    handshakes: HandshakeFamilies,
    errors: Family<CodeLabels, Counter>,
    cut: Family<CutLabels, Counter>,
    admin_refusals: Family<AdminLabels, Counter>,
    ejections: Family<EjectionLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
    task_lookups: Family<TaskLookupLabels, Counter>,
    task_facts: Family<TaskFactLabels, Counter>,
    task_callers: Family<TaskCallerLabels, Counter>,
    tasks: TaskFamilies,
    task_lookup_duration: Arc<Histogram<Latency>>,
    certificate_expiry: Arc<Gauge>,
    control_plane_connected: Arc<Gauge>,
    /// Ports and certificates of a gateway.
    pub(crate) gateway: GatewayFamilies,
    /// What programs beside the proxy ask of the Workload API.
    pub(crate) workload_api: WorkloadApiFamilies,
    /// Access-log lines that were dropped because the log's destination is too slow or fails.
    pub(crate) dropped_log_lines: Arc<Counter>,
    /// What the control side knows of itself.
    pub(crate) control: ControlNumbers,
    /// Spans that the collector accepted.
    pub(crate) exported_spans: Arc<Counter>,
    /// Spans that were dropped because the collector is away or too slow.
    pub(crate) dropped_spans: Arc<Counter>,
}

impl Metrics {
    /// All families, empty.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let mut families = Families::new(&mut registry);
        let requests = RequestFamilies::register(&mut families);
        let connections = ConnectionFamilies::register(&mut families);
        let handshakes = HandshakeFamilies::register(&mut families);
        let errors = families.add("sidewind_errors", "Failures of the proxy's own, by code");
        let cut = families.add(
            "sidewind_mesh_connections_cut",
            "Mesh connections that were cut off because their peer may not stay",
        );
        let admin_refusals = families.add(
            "sidewind_admin_refusals",
            "Connections to the admin port that were closed without an answer to a whole request",
        );
        let ejections = families.add(
            "sidewind_endpoint_ejections",
            "Endpoints that were passed over for a while because requests to them failed",
        );
        let limited = families.add(
            "sidewind_limited_requests",
            "Requests and connections that a limit of a service refused",
        );
        let task_lookups = families.add(
            "sidewind_task_lookups",
            "Searches for the Airflow task behind a connection",
        );
        let task_facts = families.add(
            "sidewind_task_facts",
            "What Airflow's own requests said of tasks",
        );
        let task_callers = families.add(
            "sidewind_task_callers",
            "Connections into the mesh by as whom they go, where Airflow tasks have identities",
        );
        let tasks = TaskFamilies::register(&mut families);
        let workload_api = WorkloadApiFamilies::register(&mut families);
        let task_lookup_duration = single(
            &mut registry,
            "sidewind_task_lookup_duration_seconds",
            "How long searches for the Airflow task behind a connection took, waiting for their turn included",
        );
        let certificate_expiry = register_certificate(&mut registry);
        let gateway = GatewayFamilies::register(&mut registry);
        let control_plane_connected = single(
            &mut registry,
            "sidewind_control_plane_connected",
            "1 while the stream to the control plane is up, else 0",
        );
        let dropped_log_lines = single(
            &mut registry,
            "sidewind_access_log_dropped_lines",
            "Access-log lines dropped because their destination is too slow or fails",
        );
        let exported_spans = single(
            &mut registry,
            "sidewind_trace_exported_spans",
            "Spans that the collector accepted",
        );
        let dropped_spans = single(
            &mut registry,
            "sidewind_trace_dropped_spans",
            "Spans dropped because the collector is away, too slow or refuses them",
        );
        process::register(&mut registry);
        let control = ControlNumbers::register(&mut registry);
        Self {
            registry,
            control,
            requests,
            connections,
            handshakes,
            errors,
            cut,
            admin_refusals,
            ejections,
            limited,
            task_lookups,
            task_facts,
            task_callers,
            tasks,
            task_lookup_duration,
            certificate_expiry,
            control_plane_connected,
            gateway,
            workload_api,
            dropped_log_lines,
            exported_spans,
            dropped_spans,
        }
    }

    /// Says when the proxy's certificate expires.
    pub(crate) fn set_certificate_expiry(&self, not_after: SystemTime) {
        self.certificate_expiry.set(unix_seconds(not_after));
    }

    /// Says whether the stream to the control plane is up.
    pub(crate) fn set_control_plane_connected(&self, connected: bool) {
        self.control_plane_connected.set(i64::from(connected));
    }

    /// Counts a connection that the admin port closed.
    pub(crate) fn admin_refused(&self, reason: AdminRefusal) {
        self.admin_refusals.cell(0, &AdminLabels { reason }).inc();
    }

    /// Counts the ejection of an endpoint.
    pub(crate) fn ejected(&self, service: &str, reason: Ejection) {
        let labels = EjectionLabels {
            service: Name::new(service),
            reason,
        };
        self.ejections.cell(0, &labels).inc();
    }

    /// Counts a request or connection that a limit refused.
    pub(crate) fn limited(&self, service: &str, limit: &str) {
        let labels = LimitLabels {
            service: Name::new(service),
            limit: Name::new(limit),
        };
        self.limited.cell(0, &labels).inc();
    }

    /// Counts a search for the task behind a connection, with how long it took where one was made.
    pub(crate) fn task_lookup(&self, result: TaskLookup, took: Option<Duration>) {
        self.task_lookups
            .cell(0, &TaskLookupLabels { result })
            .inc();
        if let Some(took) = took {
            self.task_lookup_duration.observe(took);
        }
    }

    /// Says what can be seen of the processes of Airflow's tasks.
    pub(crate) fn set_task_sight(&self, sight: Sight) {
        self.tasks.set_sight(sight);
    }

    /// Counts something that Airflow's own requests said of a task.
    pub(crate) fn task_fact(&self, result: TaskFact) {
        self.task_facts.cell(0, &TaskFactLabels { result }).inc();
    }

    /// Everything, in the given format.
    pub(crate) fn encode(&self, format: Format) -> String {
        exposition::encode(&self.registry, format)
    }
}

#[derive(Debug)]
struct RequestFamilies {
    total: Family<RequestLabels, Counter>,
    duration: Family<PairLabels, Histogram<Latency>>,
    request_bytes: Family<PairLabels, Counter>,
    response_bytes: Family<PairLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    held: Family<HoldLabels, Counter>,
    mirrored: Family<MirrorLabels, Counter>,
}

impl RequestFamilies {
    fn register(families: &mut Families<'_>) -> Self {
        Self {
            total: families.add("sidewind_requests", "Requests that have ended"),
            duration: families.add_histogram(
                "sidewind_request_duration_seconds",
                "From the first byte of a request to the last of its response",
            ),
            request_bytes: families
                .add("sidewind_request_bytes", "Bytes of the bodies of requests"),
            response_bytes: families.add(
                "sidewind_response_bytes",
                "Bytes of the bodies of responses",
            ),
            retries: families.add(
                "sidewind_retries",
                "Reasons to retry and what became of them",
            ),
            held: families.add(
                "sidewind_held_requests",
                "Requests that met no endpoint that is up, under a route that lets requests wait",
            ),
            mirrored: families.add(
                "sidewind_mirrored_requests",
                "Copies of requests and what became of them",
            ),
        }
    }
}

#[derive(Debug)]
struct ConnectionFamilies {
    total: Family<ConnectionLabels, Counter>,
    active: Family<ConnectionLabels, Gauge>,
    request_bytes: Family<ConnectionLabels, Counter>,
    response_bytes: Family<ConnectionLabels, Counter>,
    duration: Family<ConnectionLabels, Histogram<Lifetime>>,
}

impl ConnectionFamilies {
    fn register(families: &mut Families<'_>) -> Self {
        Self {
            total: families.add("sidewind_connections", "Connections accepted"),
            active: families.add("sidewind_connections_active", "Connections that are open"),
            request_bytes: families.add(
                "sidewind_connection_request_bytes",
                "Bytes carried from source to destination by connections that have ended",
            ),
            response_bytes: families.add(
                "sidewind_connection_response_bytes",
                "Bytes carried from destination to source by connections that have ended",
            ),
            duration: families.add_histogram(
                "sidewind_connection_duration_seconds",
                "How long connections lasted",
            ),
        }
    }
}

#[derive(Debug)]
struct HandshakeFamilies {
    total: Family<HandshakeLabels, Counter>,
    duration: Family<SideLabels, Histogram<Latency>>,
}

impl HandshakeFamilies {
    fn register(families: &mut Families<'_>) -> Self {
        Self {
            total: families.add(
                "sidewind_tls_handshakes",
                "TLS handshakes of the mesh, and of a gateway with its clients",
            ),
            duration: families.add_histogram(
                "sidewind_tls_handshake_duration_seconds",
                "How long TLS handshakes took, failed ones too",
            ),
        }
    }
}

/// Registers families and gives each its bound.
struct Families<'a> {
    registry: &'a mut Registry,
    overflowed: Arc<Counter>,
}

impl<'a> Families<'a> {
    fn new(registry: &'a mut Registry) -> Self {
        let overflowed = single(
            registry,
            "sidewind_metric_series_overflow",
            "Look-ups of series that were counted as overflow because their family is full",
        );
        Self {
            registry,
            overflowed,
        }
    }

    fn add<L: Labels, C: Cell>(&mut self, name: &str, help: &str) -> Family<L, C> {
        self.add_bounded(name, help, MAX_SERIES)
    }

    fn add_histogram<L: Labels, C: Cell>(&mut self, name: &str, help: &str) -> Family<L, C> {
        self.add_bounded(name, help, MAX_HISTOGRAMS)
    }

    fn add_bounded<L: Labels, C: Cell>(
        &mut self,
        name: &str,
        help: &str,
        max_series: usize,
    ) -> Family<L, C> {
        let family = Family::new(max_series, Arc::clone(&self.overflowed));
        self.registry.register(name, help, family.clone());
        family
    }
}

fn single<C: Cell>(registry: &mut Registry, name: &str, help: &str) -> Arc<C> {
    let cell = Arc::new(C::default());
    registry.register(name, help, Single(Arc::clone(&cell)));
    cell
}

/// Registers the two gauges of the certificate's life, which are silent until there is one.
fn register_certificate(registry: &mut Registry) -> Arc<Gauge> {
    let expiry = Arc::new(Gauge::default());
    let not_after = Arc::clone(&expiry);
    registry.register(
        "sidewind_certificate_expiry_timestamp_seconds",
        "When the proxy's certificate expires, in seconds since 1970",
        Computed(move || {
            Some(not_after.get())
                .filter(|at| *at != 0)
                .map(|at| at as f64)
        }),
    );
    let not_after = Arc::clone(&expiry);
    registry.register(
        "sidewind_certificate_remaining_seconds",
        "Seconds until the proxy's certificate expires; negative once it has",
        Computed(move || {
            let not_after = Some(not_after.get()).filter(|at| *at != 0)?;
            Some((not_after - unix_seconds(SystemTime::now())) as f64)
        }),
    );
    expiry
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A gauge that is worked out when it is scraped; none leaves it out.
struct Computed<F>(F);

impl<F> fmt::Debug for Computed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl<F: Fn() -> Option<f64> + Send + Sync + 'static> EncodeMetric for Computed<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match (self.0)() {
            Some(value) => encoder.encode_gauge(&value),
            None => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A counter that is read from elsewhere when it is scraped.
struct ComputedCounter<F>(F);

impl<F> fmt::Debug for ComputedCounter<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ComputedCounter")
    }
}

impl<F: Fn() -> Option<f64> + Send + Sync + 'static> EncodeMetric for ComputedCounter<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match (self.0)() {
            Some(value) => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
            None => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[cfg(test)]
mod tests;
