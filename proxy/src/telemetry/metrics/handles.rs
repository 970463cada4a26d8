//! What the data path holds to record with: series looked up once per connection or service, after
//! which recording is a few atomic additions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};

use super::Metrics;
use super::cell::{Counter, Gauge, Histogram, Latency, Lifetime};
use super::events::{
    CodeLabels, CutLabels, CutOff, FailureLabel, HandshakeFailure, HandshakeLabels, HoldLabels,
    HoldOutcome, MirrorLabels, MirrorOutcome, Outcome, RetryLabels, RetryOutcome, RetryReason,
    Side, SideLabels, TaskCaller, TaskCallerLabels,
};
use super::labels::{
    ConnectionLabels, ErrorLabel, GrpcStatus, MethodLabel, Name, PairLabels, RequestLabels,
    StatusClass,
};
use super::tasks::RecentTasks;
use crate::errors::ErrorCode;
use crate::telemetry::record::{Direction, Protocol, TaskContext};

/// Handles that a worker keeps; beyond, it forgets them all and looks them up again.
const MAX_CACHED_HANDLES: usize = 1024;

/// How many of them are looked through one by one before.
const MAX_RECENT_HANDLES: usize = 8;

/// A worker's way to the metrics. Not shared between threads.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    shared: Arc<Metrics>,
    worker: usize,
    requests: RefCell<HashMap<PairLabels, Rc<RequestHandles>>>,
    /// Those used of late, found without a hash and without an allocation.
    recent_requests: RefCell<Vec<(PairLabels, Rc<RequestHandles>)>>,
    connections: RefCell<HashMap<ConnectionLabels, Rc<ConnectionHandles>>>,
    errors: RefCell<Vec<ErrorCounter>>,
    tasks: RecentTasks,
}

#[derive(Debug)]
struct ErrorCounter {
    labels: CodeLabels,
    counter: Arc<Counter>,
}

impl WorkerMetrics {
    /// The metrics of worker number `worker`.
    pub(crate) fn new(shared: Arc<Metrics>, worker: usize) -> Self {
        Self {
            shared,
            worker,
            requests: RefCell::default(),
            recent_requests: RefCell::default(),
            connections: RefCell::default(),
            errors: RefCell::default(),
            tasks: RecentTasks::default(),
        }
    }

    /// Counts a request of an Airflow task that has ended.
    pub(crate) fn task_request(
        &self,
        direction: Direction,
        task: &TaskContext,
        status: Option<StatusCode>,
        took: Duration,
    ) {
        let families = (&self.shared.tasks, self.worker);
        self.tasks.request(families, direction, task, status, took);
    }

    /// Counts a request to Airflow's Execution API that was answered after more than one try.
    pub(crate) fn task_saved(&self, task: Option<&TaskContext>) {
        self.shared.tasks.saved(self.worker, task);
    }

    /// Counts a connection of an Airflow task that was carried as bytes and has ended.
    pub(crate) fn task_connection(&self, direction: Direction, task: &TaskContext) {
        let families = (&self.shared.tasks, self.worker);
        self.tasks.connection(families, direction, task);
    }

    /// The metrics of the whole process.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Metrics> {
        &self.shared
    }

    /// Handles for the requests between the workload and one peer. `peer` is its SPIFFE ID, none
    /// where it has proved none; an empty service is one that is not known.
    pub(crate) fn request_handles(
        &self,
        direction: Direction,
        service: &str,
        peer: Option<&str>,
        tls: bool,
    ) -> Rc<RequestHandles> {
        let peer = peer.unwrap_or_default();
        let mut recent = self.recent_requests.borrow_mut();
        let known = recent
            .iter()
            .find(|(labels, _)| labels.is_of(direction, service, peer, tls));
        if let Some((_, handles)) = known {
            return Rc::clone(handles);
        }
        let (labels, handles) = self.cached_request_handles(direction, service, peer, tls);
        if recent.len() >= MAX_RECENT_HANDLES {
            recent.clear();
        }
        recent.push((labels, Rc::clone(&handles)));
        handles
    }

    fn cached_request_handles(
        &self,
        direction: Direction,
        service: &str,
        peer: &str,
        tls: bool,
    ) -> (PairLabels, Rc<RequestHandles>) {
        let (service, peer) = (Name::new(service), Name::new(peer));
        let labels = PairLabels {
            direction,
            service,
            peer,
            tls,
        };
        let mut cache = self.requests.borrow_mut();
        if let Some(handles) = cache.get(&labels).map(Rc::clone) {
            return (labels, handles);
        }
        if cache.len() >= MAX_CACHED_HANDLES {
            cache.clear();
        }
        let handles = Rc::new(RequestHandles::new(
            &self.shared,
            self.worker,
            labels.clone(),
        ));
        cache.insert(labels.clone(), Rc::clone(&handles));
        (labels, handles)
    }

    #[cfg(test)]
    pub(super) fn requests_cached(&self) -> usize {
        self.requests.borrow().len()
    }

    /// Handles for the connections between the workload and one peer.
    pub(crate) fn connection_handles(
        &self,
        direction: Direction,
        protocol: Protocol,
        service: &str,
        peer: Option<&str>,
        tls: bool,
    ) -> Rc<ConnectionHandles> {
        let (service, peer) = (Name::new(service), Name::new(peer.unwrap_or_default()));
        let labels = ConnectionLabels {
            direction,
            protocol,
            service,
            peer,
            tls,
        };
        let mut cache = self.connections.borrow_mut();
        if let Some(handles) = cache.get(&labels) {
            return Rc::clone(handles);
        }
        if cache.len() >= MAX_CACHED_HANDLES {
            cache.clear();
        }
        let handles = Rc::new(ConnectionHandles::new(&self.shared, self.worker, &labels));
        cache.insert(labels, Rc::clone(&handles));
        handles
    }

    /// Counts a failure of the proxy's own. [`crate::telemetry::Telemetry::finish_request`] and
    /// `finish_connection` do this for theirs.
    pub(crate) fn error(&self, direction: Direction, code: ErrorCode) {
        let labels = CodeLabels { direction, code };
        let mut errors = self.errors.borrow_mut();
        if let Some(known) = errors.iter().find(|known| known.labels == labels) {
            return known.counter.inc();
        }
        let counter = self.shared.errors.cell(self.worker, &labels);
        counter.inc();
        errors.push(ErrorCounter { labels, counter });
    }

    /// Counts a request that waits for an endpoint, or had no place to.
    pub(crate) fn held(&self, service: &str, outcome: HoldOutcome) {
        let service = Name::new(service);
        let cell = self
            .shared
            .requests
            .held
            .cell(self.worker, &HoldLabels { service, outcome });
        cell.inc();
    }

    /// Counts as whom a connection goes into the mesh.
    pub(crate) fn task_caller(&self, result: TaskCaller) {
        let callers = &self.shared.task_callers;
        callers
            .cell(self.worker, &TaskCallerLabels { result })
            .inc();
    }

    /// Counts a copy of a request that was for a service.
    pub(crate) fn mirrored(&self, service: &str, outcome: MirrorOutcome) {
        let service = Name::new(service);
        let labels = MirrorLabels { service, outcome };
        self.shared
            .requests
            .mirrored
            .cell(self.worker, &labels)
            .inc();
    }

    /// Counts mesh connections that were cut off.
    pub(crate) fn cut_off(&self, reason: CutOff, connections: usize) {
        if connections > 0 {
            let cell = self.shared.cut.cell(self.worker, &CutLabels { reason });
            cell.add(u64::try_from(connections).unwrap_or(u64::MAX));
        }
    }

    /// Counts a TLS handshake and how long it took.
    pub(crate) fn handshake(
        &self,
        side: Side,
        result: Result<(), HandshakeFailure>,
        duration: Duration,
    ) {
        let reason = FailureLabel(result.err());
        let result = if result.is_ok() {
            Outcome::Ok
        } else {
            Outcome::Error
        };
        let labels = HandshakeLabels {
            side,
            result,
            reason,
        };
        // A handshake costs a thousand such look-ups.
        self.shared
            .handshakes
            .total
            .cell(self.worker, &labels)
            .inc();
        let labels = SideLabels { side };
        self.shared
            .handshakes
            .duration
            .cell(self.worker, &labels)
            .observe(duration);
    }
}

/// Records the requests between the workload and one peer.
#[derive(Debug)]
pub(crate) struct RequestHandles {
    shared: Arc<Metrics>,
    worker: usize,
    labels: PairLabels,
    /// The series that have occurred, by packed key: few, so a scan finds one faster than a hash.
    totals: RefCell<(Vec<u32>, Vec<Arc<Counter>>)>,
    duration: Arc<Histogram<Latency>>,
    request_bytes: Arc<Counter>,
    response_bytes: Arc<Counter>,
}

impl RequestHandles {
    fn new(shared: &Arc<Metrics>, worker: usize, labels: PairLabels) -> Self {
        Self {
            shared: Arc::clone(shared),
            worker,
            totals: RefCell::default(),
            duration: shared.requests.duration.cell(worker, &labels),
            request_bytes: shared.requests.request_bytes.cell(worker, &labels),
            response_bytes: shared.requests.response_bytes.cell(worker, &labels),
            labels,
        }
    }

    /// Counts a finished request.
    pub(crate) fn record(&self, request: &FinishedRequest<'_>) {
        self.count(request);
        self.duration.observe(request.duration);
        if request.request_bytes > 0 {
            self.request_bytes.add(request.request_bytes);
        }
        if request.response_bytes > 0 {
            self.response_bytes.add(request.response_bytes);
        }
    }

    /// Counts what became of a reason to retry.
    pub(crate) fn retry(&self, reason: RetryReason, outcome: RetryOutcome) {
        let service = self.labels.service.clone();
        let labels = RetryLabels {
            service,
            reason,
            outcome,
        };
        self.shared
            .requests
            .retries
            .cell(self.worker, &labels)
            .inc();
    }

    fn count(&self, request: &FinishedRequest<'_>) {
        let method = MethodLabel::from(request.method);
        let status = StatusClass::from(request.status);
        let grpc_status = GrpcStatus::from(request.grpc_status);
        let error = request.error.map_or(0, |code| code as u32 + 1);
        let key = error << 16
            | u32::from(grpc_status.index()) << 8
            | (status as u32) << 4
            | method as u32;
        let mut totals = self.totals.borrow_mut();
        let (keys, counters) = &mut *totals;
        let found = keys.iter().position(|known| *known == key);
        if let Some(counter) = found.and_then(|index| counters.get(index)) {
            return counter.inc();
        }
        let PairLabels {
            direction,
            service,
            peer,
            tls,
        } = self.labels.clone();
        let error = ErrorLabel::from(request.error);
        let labels = RequestLabels {
            direction,
            service,
            peer,
            tls,
            method,
            status,
            grpc_status,
            error,
        };
        let counter = self.shared.requests.total.cell(self.worker, &labels);
        counter.inc();
        keys.push(key);
        counters.push(counter);
    }
}

/// What [`RequestHandles::record`] counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishedRequest<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// The status, if the client got one.
    pub(crate) status: Option<StatusCode>,
    /// The gRPC status, if it is gRPC.
    pub(crate) grpc_status: Option<u8>,
    /// The proxy's own failure.
    pub(crate) error: Option<ErrorCode>,
    /// First byte in to last byte out.
    pub(crate) duration: Duration,
    /// Bytes of the request's body.
    pub(crate) request_bytes: u64,
    /// Bytes of the response's body.
    pub(crate) response_bytes: u64,
}

/// Records the connections between the workload and one peer.
#[derive(Debug)]
pub(crate) struct ConnectionHandles {
    total: Arc<Counter>,
    active: Arc<Gauge>,
    received: Arc<Counter>,
    sent: Arc<Counter>,
    duration: Arc<Histogram<Lifetime>>,
}

impl ConnectionHandles {
    fn new(shared: &Metrics, worker: usize, labels: &ConnectionLabels) -> Self {
        Self {
            total: shared.connections.total.cell(worker, labels),
            active: shared.connections.active.cell(worker, labels),
            received: shared.connections.request_bytes.cell(worker, labels),
            sent: shared.connections.response_bytes.cell(worker, labels),
            duration: shared.connections.duration.cell(worker, labels),
        }
    }

    /// Counts a connection as open for as long as the guard lives.
    pub(crate) fn open(&self) -> OpenConnection {
        self.total.inc();
        self.active.add(1);
        OpenConnection(Arc::clone(&self.active))
    }

    /// Counts a finished connection: bytes from source to destination, bytes back, and its life.
    pub(crate) fn record(&self, request_bytes: u64, response_bytes: u64, duration: Duration) {
        self.received.add(request_bytes);
        self.sent.add(response_bytes);
        self.duration.observe(duration);
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
#[must_use = "the connection is counted as open until this is dropped"]
pub(crate) struct OpenConnection(Arc<Gauge>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}
