//! One HTTP exchange: what is learned of a request on its way, and the record that it ends in.
//!
//! The stages fill an [`Exchange`] in as they go. Whatever becomes of the request (answered, refused, broken
//! off, its client gone), the exchange ends once, when the response's body has ended or is dropped, and is
//! then recorded: one access-log line, one set of metrics, one span where the trace is sampled.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts, uri::Authority,
};
use hyper::upgrade::OnUpgrade;
use sidewind_identity::SpiffeId;
use tokio::time::Instant;

use crate::{
    airflow::ConnectionTask,
    balance::Pick,
    complaints::{check_header_list, complain},
    config::Patience,
    drain::Active,
    errors::{ErrorCode, ProxyError},
    http::{
        Body, BodyWatcher, Bound, H2Place,
        headers::{AuthorityCache, BadRequest, Upgrade, examine_request, header_list_bytes},
    },
    limit::{Admitted, Asker, Permit, ServiceLimits, client_of},
    mesh::StreamLease,
    telemetry::{
        Direction, FailedAttempt, Peer, Protocol, TaskContext, Telemetry,
        trace::{TraceContext, TraceParent, received_parent},
    },
    worker::Worker,
};

mod attempts;
mod bodies;
mod record;

use self::{attempts::FirstAttempt, bodies::RequestWatcher};

/// What is known of a request, filled in by the stages that it passes.
#[derive(Debug)]
pub(crate) struct Exchange {
    telemetry: Telemetry,
    direction: Direction,
    protocol: Protocol,
    started_at: SystemTime,
    started: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    tracestate: Option<HeaderValue>,
    trace: Cell<TraceContext>,
    /// What its client said of its trace, for whoever listens to Airflow's own requests.
    received_parent: Option<TraceParent>,
    authorities: Rc<RefCell<AuthorityCache>>,
    source: Party,
    /// Who it is sent as, where that is another than its source: the Airflow task that it comes from.
    caller: OnceCell<SpiffeId>,
    destination: RefCell<Party>,
    service: OnceCell<Rc<str>>,
    endpoint: Cell<Option<SocketAddr>>,
    tls: Cell<bool>,
    /// It was sent somewhere whose proxy has not proved who it is. Two tries may be under way at once.
    went_in_plain: Cell<bool>,
    attempts: Cell<u32>,
    /// When the present attempt began, after `started`; 0 for the first.
    attempt_began: Cell<Duration>,
    failed_attempts: RefCell<Vec<FailedAttempt>>,
    route: OnceCell<Rc<str>>,
    error: RefCell<Option<(ErrorCode, String)>>,
    status: Cell<Option<StatusCode>>,
    grpc_status: Cell<Option<u8>>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
    /// Why the request's body broke off, if it did.
    broken_request: Cell<Option<ErrorCode>>,
    /// How long bodies may stand still.
    patience: Patience,
    /// The same for the response's.
    response_bound: Cell<Option<Bound>>,
    /// The client's connection, of a request that asks to go on with another protocol on it. It stays here while the
    /// request is tried, which is one like any other until its server agrees.
    upgrade: RefCell<Option<OnUpgrade>>,
    /// The Airflow task that the request comes from.
    task: RefCell<ConnectionTask>,
    /// Of a request in HTTP/2, as it came; in HTTP/1 no larger one is read. And how many it may have.
    header_bytes: (usize, usize),
    recorded: Cell<bool>,
    /// How long it took, once it has ended.
    took: Cell<Option<Duration>>,
    /// Itself, for a record that waits.
    this: Weak<Self>,
    lease: RefCell<Option<StreamPlace>>,
    /// The endpoint that has the request in hand.
    pick: RefCell<Option<Pick>>,
    /// The attempt that is under way while another one beside it has begun.
    first: RefCell<Option<FirstAttempt>>,
    /// Its places among the requests at once: of this proxy, of a gateway's listener, and of the service.
    places: RefCell<(Option<Admitted>, [Option<Permit>; 2])>,
    /// Most bytes of the request's body; 0 for no bound.
    max_request_bytes: Cell<u64>,
    /// Keeps a drain waiting until the response is out.
    _active: Active,
}

/// A place on an HTTP/2 connection, which is free again when it is dropped.
#[derive(Debug)]
pub(crate) enum StreamPlace {
    Mesh { _lease: StreamLease },
    Plain { _place: H2Place },
}

impl From<StreamLease> for StreamPlace {
    fn from(lease: StreamLease) -> Self {
        Self::Mesh { _lease: lease }
    }
}

impl From<H2Place> for StreamPlace {
    fn from(place: H2Place) -> Self {
        Self::Plain { _place: place }
    }
}

/// One end of an exchange.
#[derive(Clone, Debug, Default)]
pub(crate) struct Party {
    pub(crate) address: Option<SocketAddr>,
    pub(crate) id: Option<SpiffeId>,
}

impl Party {
    pub(crate) fn as_peer(&self) -> Peer<'_> {
        Peer {
            address: self.address,
            spiffe_id: self.id.as_ref().map(SpiffeId::as_str),
        }
    }
}

/// Where a request came from, the same for all requests of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) telemetry: Telemetry,
    pub(crate) direction: Direction,
    pub(crate) source: Party,
    pub(crate) destination: Party,
    /// Whether the request arrived over mutual TLS.
    pub(crate) tls: bool,
    /// Most bytes of a request's header.
    pub(crate) max_header_bytes: usize,
    /// How long bodies may stand still.
    pub(crate) patience: Patience,
    /// The Airflow task that the connection belongs to.
    pub(crate) task: ConnectionTask,
    /// The authorities that the connection's requests name.
    pub(crate) authorities: Rc<RefCell<AuthorityCache>>,
}

impl Origin {
    pub(crate) fn new(worker: &Worker, direction: Direction, source: Party) -> Self {
        Self {
            telemetry: worker.telemetry.clone(),
            max_header_bytes: worker.config.limits.max_header_bytes,
            patience: worker.config.limits.patience,
            direction,
            source,
            destination: Party::default(),
            tls: false,
            task: ConnectionTask::default(),
            authorities: Rc::default(),
        }
    }
}

impl Exchange {
    /// Begins the exchange of `request`: continues or begins its trace, whose context the request carries on, and
    /// counts its body.
    pub(crate) fn begin(origin: &Origin, request: &mut Request<Body>, active: Active) -> Rc<Self> {
        let grpc = is_grpc(request.headers());
        let protocol = match (grpc, request.version()) {
            (true, Version::HTTP_2) => Protocol::Grpc,
            (false, Version::HTTP_2) => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let header_bytes = match request.version() {
            Version::HTTP_2 => header_list_bytes(request),
            _ => 0,
        };
        let received_parent = received_parent(request.headers());
        let trace = origin
            .telemetry
            .receive_trace(request.headers(), received_parent);
        trace.apply(request.headers_mut());
        let headers = request.headers();
        let exchange = Rc::new_cyclic(|this| Self {
            telemetry: origin.telemetry.clone(),
            direction: origin.direction,
            protocol,
            started_at: SystemTime::now(),
            started: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: headers.get(header::HOST).cloned(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            tracestate: headers.get("tracestate").cloned(),
            trace: Cell::new(trace),
            received_parent,
            authorities: Rc::clone(&origin.authorities),
            source: origin.source.clone(),
            caller: OnceCell::new(),
            destination: RefCell::new(origin.destination.clone()),
            service: OnceCell::new(),
            endpoint: Cell::new(None),
            tls: Cell::new(origin.tls),
            went_in_plain: Cell::new(false),
            attempts: Cell::new(0),
            attempt_began: Cell::default(),
            failed_attempts: RefCell::default(),
            route: OnceCell::new(),
            error: RefCell::new(None),
            status: Cell::new(None),
            grpc_status: Cell::new(None),
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
            broken_request: Cell::new(None),
            patience: origin.patience,
            response_bound: Cell::new(None),
            upgrade: RefCell::default(),
            task: RefCell::new(origin.task.clone()),
            header_bytes: (header_bytes, origin.max_header_bytes),
            recorded: Cell::new(false),
            took: Cell::new(None),
            this: Weak::clone(this),
            lease: RefCell::new(None),
            pick: RefCell::new(None),
            first: RefCell::new(None),
            places: RefCell::default(),
            max_request_bytes: Cell::new(0),
            _active: active,
        });
        if !request.body().is_empty() {
            let watcher = RequestWatcher(Rc::clone(&exchange));
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = body.watched(Rc::new(watcher));
        }
        exchange
    }

    /// Refuses a request that is too large or that two servers could read differently, and removes what concerned
    /// only the connection that it came by and what only proxies may set.
    pub(crate) fn clean(&self, request: &mut Request<Body>) -> Result<(), ProxyError> {
        let (bytes, limit) = self.header_bytes;
        check_header_list(bytes, limit, self.direction)?;
        let examined = examine_request(request).map_err(ProxyError::from)?;
        if request.method() == Method::CONNECT {
            let message = "CONNECT is for proxies, and this is none to its clients.";
            return Err(ProxyError::new(ErrorCode::Unsupported, message));
        }
        let upgrade = examined.wants_upgrade() && request.version() == Version::HTTP_11;
        let client = hyper::upgrade::on(&mut *request);
        *self.upgrade.borrow_mut() = upgrade.then_some(client);
        let headers = request.headers_mut();
        examined.strip_reserved(headers);
        let kept = if upgrade {
            Upgrade::Keep
        } else {
            Upgrade::Strip
        };
        examined.strip_hop_by_hop(headers, kept);
        Ok(())
    }

    /// The authority that a request names, or the address that it goes to for one of HTTP/1.0 that names none.
    pub(crate) fn authority(
        &self,
        head: &Parts,
        address: SocketAddr,
    ) -> Result<Authority, ProxyError> {
        let mut cache = self.authorities.borrow_mut();
        match cache.authority(&head.uri, &head.headers)? {
            Some(authority) => Ok(authority),
            None => Authority::try_from(address.to_string())
                .map_err(|_| ProxyError::from(BadRequest::MissingHost)),
        }
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Who asks.
    pub(crate) fn source(&self) -> &Party {
        &self.source
    }

    /// What tells the client apart by its address.
    pub(crate) fn client_address(&self) -> Option<IpAddr> {
        let address = self.source.address?;
        Some(client_of(self.direction, address.ip()))
    }

    /// Whether the client asks to go on with another protocol than HTTP.
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.upgrade.borrow().is_some()
    }

    /// The client's connection, once the server has agreed to another protocol.
    pub(crate) fn take_upgrade(&self) -> Option<OnUpgrade> {
        self.upgrade.borrow_mut().take()
    }

    /// Makes a request that asks for another protocol one that does not, as every server may take it (RFC 9110, section
    /// 7.8): what speaks HTTP/2 knows no such upgrade.
    pub(crate) fn ignore_upgrade(&self, request: &mut Request<Body>) {
        if self.take_upgrade().is_some() {
            let headers = request.headers_mut();
            headers.remove(header::CONNECTION);
            headers.remove(header::UPGRADE);
        }
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    pub(crate) fn set_service(&self, service: &Rc<str>) {
        let _ = self.service.set(Rc::clone(service));
    }

    /// Notes which rule says where the request goes.
    pub(crate) fn set_route(&self, route: &Rc<str>) {
        let _ = self.route.set(Rc::clone(route));
    }

    pub(crate) fn route(&self) -> Option<Rc<str>> {
        self.route.get().cloned()
    }

    /// The Airflow task that the request comes from, as far as it becomes known.
    pub(crate) fn task(&self) -> ConnectionTask {
        self.task.borrow().clone()
    }

    /// Notes that the request comes from a task, as a peer said that is believed.
    pub(crate) fn set_task(&self, task: TaskContext) {
        *self.task.borrow_mut() = ConnectionTask::known(Some(task));
    }

    /// What the client said of its trace.
    pub(crate) fn received_parent(&self) -> Option<TraceParent> {
        self.received_parent
    }

    /// Makes the request a child of its task's own span, where its client has named no parent.
    pub(crate) fn continue_trace(&self, parent: TraceParent, headers: &mut HeaderMap) {
        if self.received_parent.is_none() {
            let trace = self.telemetry.adopt_trace(self.trace.get(), parent);
            trace.apply(headers);
            self.trace.set(trace);
        }
    }

    /// The response that ends the exchange: `result`, or what the proxy itself says of its failure.
    pub(crate) fn end(
        self: &Rc<Self>,
        result: Result<Response<Body>, ProxyError>,
    ) -> Response<Body> {
        let response = result.unwrap_or_else(|error| {
            let error = self.locate(error);
            if error.code() == ErrorCode::ClientTimeout {
                complain(self.direction, error.code(), &error);
            }
            *self.error.borrow_mut() = Some((error.code(), error.chain().to_string()));
            error.into_response(self.is_grpc())
        });
        self.status.set(Some(response.status()));
        if self.is_grpc() {
            self.note_grpc_status(response.headers());
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // What follows is counted by whoever relays it.
            return response;
        }
        self.response_bound.set(self.bound_of(response.body()));
        response.map(|body| body.watched(Rc::clone(self) as Rc<dyn BodyWatcher>))
    }

    /// Notes how an upgraded connection ended before both sides had closed it.
    pub(crate) fn broke_off(&self, error: &ProxyError) {
        self.fail(error.code(), || error.chain().to_string());
    }

    /// Says in a failure which service and endpoint it is about, as far as that is known.
    fn locate(&self, error: ProxyError) -> ProxyError {
        match (self.service.get(), self.endpoint.get()) {
            (Some(service), Some(endpoint)) => error.about(format_args!("{service} at {endpoint}")),
            (Some(service), None) => error.about(service),
            (None, _) => error,
        }
    }

    /// Keeps the place on a connection until the exchange ends.
    pub(crate) fn hold(&self, lease: impl Into<StreamPlace>) {
        *self.lease.borrow_mut() = Some(lease.into());
    }

    /// Counts the request as in flight at its endpoint until the exchange ends.
    pub(crate) fn hold_pick(&self, pick: Pick) {
        *self.pick.borrow_mut() = Some(pick);
    }

    /// Keeps a place among this proxy's requests at once until the exchange ends.
    pub(crate) fn keep_admission(&self, admitted: Admitted) {
        self.places.borrow_mut().0 = Some(admitted);
    }

    /// Lets the request through the limits of its service or listener, and keeps its place until the exchange ends.
    pub(crate) async fn pass(
        &self,
        limits: &ServiceLimits,
        request: &Request<Body>,
        route: Option<&str>,
    ) -> Result<(), ProxyError> {
        let asker = Asker {
            identity: self.source.id.as_ref().map(SpiffeId::as_str),
            address: self.client_address(),
            route,
        };
        let (header_bytes, _) = self.header_bytes;
        let header_bytes = match header_bytes {
            0 => header_list_bytes(request),
            known => known,
        };
        let permit = limits.admit(request, header_bytes, &asker).await?;
        if permit.is_some() {
            let [first, second] = &mut self.places.borrow_mut().1;
            *(if first.is_none() { first } else { second }) = permit;
        }
        let bounds = [self.max_request_bytes.get(), limits.max_body_bytes()];
        let least = bounds.into_iter().filter(|bound| *bound != 0).min();
        self.max_request_bytes.set(least.unwrap_or_default());
        Ok(())
    }

    fn fail(&self, code: ErrorCode, detail: impl FnOnce() -> String) {
        self.error
            .borrow_mut()
            .get_or_insert_with(|| (code, detail()));
    }
}

impl From<BadRequest> for ProxyError {
    fn from(error: BadRequest) -> Self {
        Self::new(
            ErrorCode::BadRequest,
            format_args!("The request was refused: {error}."),
        )
    }
}

/// True for a gRPC message, by its content type (`application/grpc`, `application/grpc+proto`).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
