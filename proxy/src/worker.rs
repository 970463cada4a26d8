//! What the connections of one worker share. A worker is a thread with a runtime of its own: nothing here is
//! shared with another, so nothing here is locked.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sidewind_api::v1;
use tokio::sync::watch;

use crate::{
    airflow::{Callers, Lookup as TaskLookup, outage::KeptBack},
    config::{Config, InboundPlaintext, ServedPort},
    control::{Control, MeshIdentity},
    drain::Drain,
    errors::{Chain, ErrorCode, ProxyError},
    gateway::GatewayWorker,
    health::Health,
    inbound::Forwarding,
    limit::{Limits, Overload, ServiceLimits},
    mesh::{Census, ConnectError, KeepaliveSettings, MeshPool, PoolEvents, PoolSettings, Proofs},
    outbound::Destinations,
    plaintext::PlaintextClient,
    policy::InboundPolicy,
    retry::OutsideRetries,
    route::Copies,
    telemetry::{
        Telemetry,
        metrics::{CutOff, HandshakeFailure, Side},
    },
};

mod airflow;
mod refusals;
mod serve;
#[cfg(test)]
pub(crate) mod testing;

/// How long a connection waits for the proxy's first certificate, or for discovery's answer, before it is
/// refused: below the 5 s after which Airflow's own clients give up.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(3);

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
    /// Answers of them that say nothing but that there is an outage.
    pub(crate) kept_back: KeptBack,
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
            kept_back: KeptBack::default(),
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
