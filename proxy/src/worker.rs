//! What the connections of one worker share. A worker is a thread with a runtime of its own: nothing here is
//! shared with another, so nothing here is locked.

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Request, Response};
use sidewind_api::v1;
use sidewind_identity::{SpiffeId, TaskId};
use tokio::{sync::watch, time::Instant};

use crate::{
    airflow::{
        Answered, Callers, ConnectionTask, ExecutionCall, Lookup as TaskLookup, Overheard,
        SocketPair,
    },
    capture::CaptureError,
    complaints::complain,
    config::{Config, InboundPlaintext, ServedPort},
    control::{Control, MeshIdentity, TaskTerms},
    copy::Connection,
    drain::Drain,
    errors::{Chain, ErrorCode, ProxyError},
    exchange::Exchange,
    gateway::GatewayWorker,
    health::Health,
    http::{
        Body, FarTooLarge, H1ServerError, H1ServerSettings, H2ServerError, H2ServerSettings,
        broken_by_client, serve_h1, serve_h2,
    },
    inbound::Forwarding,
    limit::{Limits, Overload, ServiceLimits},
    mesh::{
        AcceptError, Census, ConnectError, KeepaliveSettings, MeshPool, PoolEvents, PoolSettings,
        Proofs,
    },
    outbound::Destinations,
    plaintext::PlaintextClient,
    policy::InboundPolicy,
    retry::OutsideRetries,
    route::Copies,
    telemetry::{
        Direction, Protocol, Telemetry,
        logs::Throttle,
        metrics::{CutOff, HandshakeFailure, OpenConnection, Side},
    },
};

/// How long a connection waits for the proxy's first certificate, or for discovery's answer, before it is
/// refused: below the 5 s after which Airflow's own clients give up.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(3);

/// Streams that a client may have open on one HTTP/2 connection. One whose reader stalls holds up to its window and what
/// h2 has taken for it, 350 KiB in all. Workloads are trusted with many: gRPC's clients keep streams open.
const MOST_STREAMS: u32 = 512;
const MOST_STREAMS_FROM_OUTSIDE: u32 = 128;

/// How often the wall clock is held against the certificates of peers.
const PEER_REVIEW: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) telemetry: Telemetry,
    pub(crate) drain: Drain,
    pub(crate) destinations: Destinations,
    pub(crate) mesh: MeshPool,
    /// Who is at the other ends of mesh connections.
    pub(crate) census: Census,
    /// To the workload.
    pub(crate) workload: PlaintextClient,
    /// To endpoints without a sidecar, in the mesh's services or outside.
    pub(crate) endpoints: PlaintextClient,
    /// Retries of Airflow's requests to API servers outside the mesh.
    pub(crate) outside: OutsideRetries,
    pub(crate) forwarding: Forwarding,
    pub(crate) gateway: GatewayWorker,
    /// Copies of requests that are under way to mirrors.
    pub(crate) copies: Copies,
    pub(crate) limits: Limits,
    pub(crate) overload: Overload,
    /// Finds the tasks behind connections, where that is wanted.
    tasks: Option<TaskLookup>,
    /// As whom the workload's connections go; none where they always go as the workload.
    callers: Option<Callers>,
    /// What the workload offers, by its ports.
    served: HashMap<u16, Served>,
    identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
    policy: RefCell<PolicySnapshot>,
}

#[derive(Debug)]
struct PolicySnapshot {
    updates: watch::Receiver<Option<Arc<v1::InboundPolicy>>>,
    compiled: Option<Arc<InboundPolicy>>,
    /// Of the workload's ports.
    limits: HashMap<u16, Rc<ServiceLimits>>,
}

/// What the workers of a process share of what they learn: in atomics, or on a thread of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) health: Health,
    pub(crate) limits: Limits,
    /// None where nobody looks for tasks.
    pub(crate) tasks: Option<TaskLookup>,
}

impl Worker {
    pub(crate) fn new(
        config: Arc<Config>,
        control: &Control,
        telemetry: Telemetry,
        drain: Drain,
        proofs: Proofs,
        shared: Shared,
    ) -> Self {
        let Shared {
            health,
            limits,
            tasks,
        } = shared;
        let census = Census::new(control.bans.clone(), control.identity.clone(), proofs);
        let traffic = &config.traffic;
        let mut policy_updates = control.inbound_policy.clone();
        policy_updates.mark_changed();
        Self {
            destinations: Destinations::new(
                Arc::clone(&config),
                control.discovery.clone(),
                health,
                limits.clone(),
            ),
            mesh: MeshPool::new(
                PoolSettings {
                    connect_timeout: traffic.connect_timeout,
                    handshake_timeout: traffic.handshake_timeout,
                    keepalive: KeepaliveSettings {
                        idle_timeout: traffic.mesh_idle_timeout,
                        ..KeepaliveSettings::default()
                    },
                    ..PoolSettings::default()
                },
                Box::new(MeshEvents(telemetry.clone())),
                census.clone(),
            ),
            census,
            workload: PlaintextClient::to_workload(&config),
            endpoints: PlaintextClient::to_endpoints(&config),
            outside: OutsideRetries::default(),
            forwarding: Forwarding::new(&config),
            gateway: GatewayWorker::default(),
            copies: Copies::default(),
            overload: Overload::new(config.limits.max_requests),
            limits,
            tasks,
            callers: config.airflow.gives_identities().then(|| {
                let refuses = config.airflow.refuse_unproven;
                Callers::new(control.tasks.clone(), refuses, telemetry.clone())
            }),
            served: served(&config.workload.serve),
            identity: control.identity.clone(),
            policy: RefCell::new(PolicySnapshot {
                updates: policy_updates,
                compiled: None,
                limits: HashMap::new(),
            }),
            telemetry,
            drain,
            config,
        }
    }

    /// The Airflow task behind a connection of the workload, as its own socket sees it, as far as it becomes known.
    pub(crate) fn task_of(&self, socket: SocketPair) -> ConnectionTask {
        match &self.tasks {
            Some(tasks) => ConnectionTask::pending(tasks.ask(socket)),
            None => ConnectionTask::default(),
        }
    }

    /// What a request asks of Airflow's Execution API, if `service`, the service that it is for, is that.
    pub(crate) fn execution_api_call(
        &self,
        service: Option<&str>,
        request: &Request<Body>,
    ) -> Option<ExecutionCall> {
        ExecutionCall::of(request, service, &self.config.airflow.execution_api)
    }

    /// Until when a request waits for what this proxy has not yet or cannot do just now, if its client is Airflow's, whose
    /// tasks a hang harms less than a failure.
    pub(crate) fn waits_until(
        &self,
        exchange: &Exchange,
        request: &Request<Body>,
    ) -> Option<Instant> {
        ExecutionCall::of(request, None, &[])?;
        self.held_until(exchange)
    }

    /// Until when a request to the Execution API is held that cannot be answered; none where none is.
    pub(crate) fn held_until(&self, exchange: &Exchange) -> Option<Instant> {
        let hold = self.config.airflow.hold;
        (!hold.is_zero()).then(|| exchange.started() + hold)
    }

    /// Listens to what a request to the Execution API says of a task, where somebody wants to know.
    pub(crate) fn overhear(
        &self,
        call: &ExecutionCall,
        exchange: &Exchange,
        request: &mut Request<Body>,
    ) -> Option<Overheard> {
        let tasks = self.tasks.as_ref()?;
        let wants_token = self.task_terms().is_some_and(|terms| terms.needs_token);
        let parent = exchange.received_parent();
        Overheard::begin(tasks, call, request, parent, wants_token)
    }

    /// Where the answer to a request to the Execution API came from.
    pub(crate) fn answered_by(&self, exchange: &Exchange) -> Answered {
        // Which service answers is compared where the call is recognized.
        Answered {
            by_airflow: self.task_terms().is_some() && exchange.went_by_mesh(),
            task: exchange.task(),
        }
    }

    /// What the workload's tasks may have; none where they go as the workload.
    fn task_terms(&self) -> Option<TaskTerms> {
        self.callers.as_ref()?;
        self.identity.borrow().as_ref()?.tasks
    }

    /// As whom a connection of the workload goes into the mesh: as its task, where tasks have identities, else as the
    /// workload.
    pub(crate) async fn caller(
        &self,
        task: &ConnectionTask,
    ) -> Result<Arc<MeshIdentity>, ProxyError> {
        let own = self.wait_for_identity().await?;
        match (&self.callers, own.tasks) {
            (Some(callers), Some(terms)) => callers.of(task, own, terms).await,
            _ => Ok(own),
        }
    }

    /// Whether a peer is believed when it says which task a request comes from.
    pub(crate) fn believes_tasks_of(&self, peer: Option<&SpiffeId>) -> bool {
        let patterns = &self.config.airflow.context_from;
        let is_named = |id: &SpiffeId| patterns.iter().any(|pattern| pattern.matches(id));
        // Whoever is believed about its tasks is so when they have identities of their own.
        peer.is_some_and(|peer| {
            is_named(peer) || TaskId::of(peer).is_some_and(|task| is_named(&task.worker))
        })
    }

    /// The service that a port of the workload belongs to.
    pub(crate) fn served(&self, port: u16) -> Option<Rc<str>> {
        self.served.get(&port)?.service.clone()
    }

    /// Whether a port of the workload is declared as HTTP, so that nothing else may reach it: a server that believes
    /// `x-forwarded-client-cert` must get no request that this proxy has not read.
    pub(crate) fn serves_http(&self, port: u16) -> bool {
        self.served.get(&port).is_some_and(|served| served.http)
    }

    /// The proxy's present certificate, if it has one that is still valid.
    pub(crate) fn identity(&self) -> Result<Arc<MeshIdentity>, ProxyError> {
        match self.identity.borrow().as_ref() {
            None => Err(ProxyError::new(
                ErrorCode::IdentityUnavailable,
                "This proxy has no certificate yet; its readiness detail says why.",
            )),
            Some(identity) if identity.not_after <= SystemTime::now() => Err(ProxyError::new(
                ErrorCode::IdentityExpired,
                format_args!(
                    "The certificate of {} has expired and could not be renewed.",
                    identity.id
                ),
            )),
            Some(identity) => Ok(Arc::clone(identity)),
        }
    }

    /// The same, waiting for the first certificate of a proxy that has just started.
    pub(crate) async fn wait_for_identity(&self) -> Result<Arc<MeshIdentity>, ProxyError> {
        if self.identity.borrow().is_none() {
            let mut identity = self.identity.clone();
            let first = identity.wait_for(Option::is_some);
            drop(tokio::time::timeout(READY_WAIT, first).await);
        }
        self.identity()
    }

    /// Who may call the workload; an error until the control plane has said so.
    pub(crate) fn inbound_policy(&self) -> Result<Arc<InboundPolicy>, ProxyError> {
        let mut policy = self.policy.borrow_mut();
        if policy.updates.has_changed().unwrap_or(false) {
            let update = policy.updates.borrow_and_update().clone();
            // A policy that cannot be read is no reason to go on with what it replaces: inbound refuses.
            policy.limits = update
                .as_deref()
                .map(|update| self.port_limits(update))
                .unwrap_or_default();
            policy.compiled = update
                .and_then(|update| self.compile(&update))
                .map(Arc::new);
        }
        policy.compiled.clone().ok_or_else(|| {
            ProxyError::new(
                ErrorCode::PolicyNotReady,
                "This proxy has not received its policy from the control plane yet.",
            )
        })
    }

    /// The limits of one of the workload's ports, of the policy that was last asked for.
    pub(crate) fn limits_of(&self, port: u16) -> Option<Rc<ServiceLimits>> {
        let policy = self.policy.borrow();
        if policy.limits.is_empty() {
            return None;
        }
        policy.limits.get(&port).map(Rc::clone)
    }

    fn port_limits(&self, update: &v1::InboundPolicy) -> HashMap<u16, Rc<ServiceLimits>> {
        let ports = update.limits.iter().filter_map(|limits| {
            let port = u16::try_from(limits.port).ok()?;
            let place = format!("inbound {port} {}", limits.service);
            let of = (limits.bounds.as_ref(), &limits.rate_limits);
            let limits = self.limits.of(&place, &limits.service, of.0, of.1)?;
            Some((port, limits))
        });
        ports.collect()
    }

    fn compile(&self, update: &v1::InboundPolicy) -> Option<InboundPolicy> {
        let mut update = update.clone();
        // The control plane may demand strictness as well; the stricter of the two holds.
        if self.config.traffic.inbound_plaintext == Some(InboundPlaintext::Strict) {
            update.set_plaintext(v1::PlaintextMode::Strict);
        }
        InboundPolicy::compile(&update)
            .inspect_err(|error| {
                tracing::error!(error = %Chain(error), "the policy cannot be read, so inbound refuses");
            })
            .ok()
    }

    /// Lets go of mesh connections made under certificates that were renewed, for as long as the worker lives.
    /// They close with their last stream.
    pub(crate) async fn follow_identity(self: Rc<Self>) {
        let mut identity = self.identity.clone();
        while identity.changed().await.is_ok() {
            let renewed = identity.borrow_and_update().clone();
            if let Some(renewed) = renewed {
                self.mesh.retire_older(&renewed);
            }
        }
    }

    /// Cuts off peers that are banned or whose certificates have ended, and meets those again in time whose
    /// connections are to live on; for as long as the worker lives.
    pub(crate) async fn watch_peers(self: Rc<Self>) {
        let mut bans = self.census.bans();
        let mut tick = tokio::time::interval(PEER_REVIEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = bans.changed() => if changed.is_err() {
                    return;
                },
                _ = tick.tick() => {}
            }
            let review = self.census.review(SystemTime::now());
            let metrics = self.telemetry.metrics();
            metrics.cut_off(CutOff::Banned, review.banned);
            metrics.cut_off(CutOff::Distrusted, review.distrusted);
            metrics.cut_off(CutOff::CertificateEnded, review.ended);
            let Ok(own) = self.identity() else {
                continue;
            };
            for due in review.due {
                // By the same identity again: another proves nothing of this one.
                let as_task = |id| self.callers.as_ref().and_then(|it| it.present(id));
                let identity = match due.own() {
                    Some(id) if *id != own.id => as_task(id),
                    _ => Some(Arc::clone(&own)),
                };
                let Some(identity) = identity else {
                    due.put_off(SystemTime::now());
                    continue;
                };
                let worker = Rc::clone(&self);
                tokio::task::spawn_local(async move {
                    worker.mesh.meet_again(&identity, &due).await;
                });
            }
        }
    }

    /// Serves HTTP to one client, who speaks HTTP/2 with prior knowledge when `http2`, with `service` for each
    /// request.
    pub(crate) async fn serve_http<T, S, F>(
        self: &Rc<Self>,
        stream: T,
        http2: bool,
        direction: Direction,
        half_close: bool,
        drain: impl Future<Output = ()>,
        service: S,
    ) where
        T: Connection + Send + 'static,
        S: Fn(Request<Body>) -> F + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
    {
        let limits = &self.config.limits;
        if http2 {
            let settings = H2ServerSettings {
                handshake_timeout: limits.header_timeout,
                max_header_bytes: limits.max_header_bytes,
                max_concurrent_streams: match direction {
                    Direction::Outbound => MOST_STREAMS,
                    Direction::Inbound | Direction::Gateway => MOST_STREAMS_FROM_OUTSIDE,
                },
                idle_timeout: limits.client_idle_timeout,
                reader_timeout: limits.patience.reader,
            };
            let worker = Rc::clone(self);
            let far_too_large =
                move || worker.not_http(direction, ErrorCode::HeaderTooLarge, &FarTooLarge);
            let serving = serve_h2(stream, Rc::new(service), &settings, drain, far_too_large);
            let served = Box::pin(serving).await;
            if let Err(error) = served {
                let code = match &error {
                    H2ServerError::HandshakeTimeout(_) => ErrorCode::ClientTimeout,
                    H2ServerError::Http2(error) if broken_by_client(error) => ErrorCode::BadRequest,
                    H2ServerError::Http2(_) | H2ServerError::Io(_) => ErrorCode::ClientClosed,
                };
                self.not_http(direction, code, &error);
            }
        } else {
            let settings = H1ServerSettings {
                header_timeout: limits.header_timeout,
                idle_timeout: limits.client_idle_timeout,
                max_header_bytes: limits.max_header_bytes,
                reader_timeout: limits.patience.reader,
                half_close,
                ..H1ServerSettings::default()
            };
            let served = Box::pin(serve_h1(stream, &service, &settings, drain)).await;
            if let Err(error) = served {
                let code = match &error {
                    // What was not read has a record of its own.
                    H1ServerError::ReaderTimeout(_) => {
                        complain(direction, ErrorCode::ClientTimeout, &error);
                        return;
                    }
                    H1ServerError::HeaderTimeout(_) => ErrorCode::ClientTimeout,
                    H1ServerError::Http(error) if error.is_parse_too_large() => {
                        ErrorCode::HeaderTooLarge
                    }
                    H1ServerError::Http(error) if error.is_parse() => ErrorCode::BadRequest,
                    H1ServerError::Http(_) | H1ServerError::Io(_) => ErrorCode::ClientClosed,
                };
                self.not_http(direction, code, &error);
            }
        }
    }

    /// Counts what a client did wrong outside of any request that was read, and logs it once a minute for each
    /// cause. A client that went away is no news.
    pub(crate) fn not_http(
        &self,
        direction: Direction,
        code: ErrorCode,
        error: &(dyn Error + 'static),
    ) {
        if complain(direction, code, error) {
            self.telemetry.metrics().error(direction, code);
        } else {
            tracing::debug!(error = %Chain(error), "an HTTP connection ended");
        }
    }

    /// Counts an HTTP connection as open for as long as what is given back lives.
    pub(crate) fn open_http(
        &self,
        direction: Direction,
        http2: bool,
        service: &str,
        peer: Option<&SpiffeId>,
    ) -> OpenConnection {
        let protocol = if http2 {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        let tls = peer.is_some();
        self.telemetry
            .metrics()
            .connection_handles(
                direction,
                protocol,
                service,
                peer.map(SpiffeId::as_str),
                tls,
            )
            .open()
    }

    /// Counts and, once a minute, logs a connection that was refused before it could be told why.
    pub(crate) fn refused(&self, client: SocketAddr, error: &ProxyError) {
        self.refused_by(Direction::Inbound, client, error);
    }

    /// The same, whichever way it was to go.
    pub(crate) fn refused_by(&self, direction: Direction, client: SocketAddr, error: &ProxyError) {
        static REFUSED: Throttle = Throttle::new();
        self.telemetry.metrics().error(direction, error.code());
        if let Some(suppressed) = REFUSED.admit() {
            tracing::warn!(%client, code = %error.code(), error = %error.chain(), suppressed, "a connection was refused");
        }
    }

    /// The same for a failed handshake on the mesh port.
    pub(crate) fn handshake_failed(&self, client: SocketAddr, error: &AcceptError) {
        static FAILED: Throttle = Throttle::new();
        if let Some(suppressed) = FAILED.admit() {
            tracing::warn!(%client, cause = error.cause(), error = %Chain(error), suppressed, "a mesh handshake failed");
        }
    }

    /// The same for a connection of which nobody knows what it was for.
    pub(crate) fn not_captured(
        &self,
        direction: Direction,
        client: SocketAddr,
        error: &CaptureError,
    ) {
        static LOST: Throttle = Throttle::new();
        self.telemetry
            .metrics()
            .error(direction, ErrorCode::LoopDetected);
        if let Some(suppressed) = LOST.admit() {
            tracing::warn!(%client, error = %Chain(error), suppressed, "a connection was closed: its destination is not known");
        }
    }

    /// Counts a connection that found the listener full.
    pub(crate) fn overloaded(&self, direction: Direction) {
        self.telemetry
            .metrics()
            .error(direction, ErrorCode::Overloaded);
    }

    /// Names the remedy for a client that said nothing while its protocol was to be detected.
    pub(crate) fn silent_client(&self, destination: &dyn std::fmt::Display, waited: Duration) {
        static SILENT: Throttle = Throttle::new();
        if let Some(suppressed) = SILENT.admit() {
            tracing::warn!(%destination, ?waited, suppressed, "a client said nothing, so its connection counts as opaque TCP; declare the port's protocol as tcp to spare its connections the wait");
        }
    }
}

/// What is declared of one port of the workload.
#[derive(Debug)]
struct Served {
    service: Option<Rc<str>>,
    http: bool,
}

fn served(ports: &[ServedPort]) -> HashMap<u16, Served> {
    let declared = ports.iter().map(|port| {
        let served = Served {
            service: port.service.as_deref().map(Rc::from),
            http: matches!(
                port.protocol,
                v1::Protocol::Http | v1::Protocol::Http2 | v1::Protocol::Grpc
            ),
        };
        (port.target_port, served)
    });
    declared.collect()
}

#[cfg(test)]
pub(crate) mod testing;

/// Counts the handshakes that this proxy makes as a client.
#[derive(Debug)]
struct MeshEvents(Telemetry);

impl PoolEvents for MeshEvents {
    fn connected(&self, _: SocketAddr, took: Duration) {
        self.0.metrics().handshake(Side::Client, Ok(()), took);
    }

    fn connect_failed(&self, error: &ConnectError) {
        let failure = match error {
            ConnectError::Handshake { source, .. } => HandshakeFailure::from(&**source),
            ConnectError::HandshakeTimeout { .. } => HandshakeFailure::Timeout,
            ConnectError::Alpn { .. } => HandshakeFailure::Incompatible,
            ConnectError::NoIdentity { .. } => HandshakeFailure::BadCertificate,
            ConnectError::WrongIdentity { .. } => HandshakeFailure::WrongIdentity,
            ConnectError::Banned { .. } => HandshakeFailure::Banned,
            ConnectError::Http2 { .. } => HandshakeFailure::Protocol,
            // No handshake was begun.
            _ => return,
        };
        self.0
            .metrics()
            .handshake(Side::Client, Err(failure), Duration::ZERO);
    }
}
