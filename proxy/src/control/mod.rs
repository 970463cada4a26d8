//! The proxy's side of the control plane: who this workload is, whom it may trust, who else is there, and who may
//! call it. Everything here runs on the control thread; the workers see snapshots.
//!
//! ```text
//! identity ─ attest, renew ──┐                       ┌→ Control::identity (TLS configurations)
//!   (issuing, evidence, dial)├→ publisher ───────────┘
//! stream ─ bundles ──────────┘                       └→ Control::credentials, minter (the Workload API)
//!   (session, dial)  ─ destinations → discovery ───→ Control::discovery
//!                    ─ policy ─────────────────────→ Control::inbound_policy
//! tasks ─ one SVID for each task (calling) ─────────→ Control::tasks
//! ```
//!
//! `bundle_cache` keeps the trust bundle for a restart, `clock_watch` notices a clock that jumps.

mod backoff;
mod bundle_cache;
mod calling;
mod check;
mod clock;
mod clock_watch;
mod dial;
mod discovery;
mod error;
mod evidence;
mod identity;
mod issuing;
mod minting;
mod network;
mod occasionally;
mod publisher;
mod session;
mod status;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use sidewind_api::{BanList, v1};
use tokio::sync::{Notify, watch};

use crate::config::{Config, ControlPlaneAddress};

pub(crate) use clock::Clock;
#[cfg(test)]
pub(crate) use clock::Simulated;
pub(crate) use discovery::{Discovery, Resolution};
pub(crate) use error::ControlError;
pub(crate) use minting::Minter;
pub(crate) use publisher::{Credentials, MeshIdentity, TaskTerms};
pub(crate) use status::{ControlStatus, IdentityState};
pub(crate) use tasks::{TaskEvidence, TaskIdentities, TaskIdentity, is_refusal};

use bundle_cache::BundleCache;
use calling::Caller;
use dial::{Dialled, Dialler};
use identity::IdentityTask;
use network::Network;
use occasionally::Occasionally;
use publisher::Publisher;
use stream::{StreamTask, Told};

/// This proxy's software version, as it tells the control plane.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the control plane has said, for every thread. Clones see the same.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// None until the first SVID. It stays after the SVID has expired: whoever uses it looks at its end.
    pub(crate) identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
    /// None until it has arrived: inbound refuses until then.
    pub(crate) inbound_policy: watch::Receiver<Option<Arc<v1::InboundPolicy>>>,
    /// What to listen on as a gateway: none until a Gateway document has named this proxy.
    pub(crate) gateway: watch::Receiver<Option<Arc<v1::GatewayConfig>>>,
    /// Who is banned: empty until the control plane has said so.
    pub(crate) bans: watch::Receiver<Arc<BanList>>,
    /// What destinations are.
    pub(crate) discovery: Discovery,
    /// For readiness, metrics and people.
    pub(crate) status: watch::Receiver<ControlStatus>,
    /// SVID, key and bundles, for the Workload API; changes when any of them does.
    pub(crate) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Gets JWT-SVIDs.
    pub(crate) minter: Minter,
    /// Gets identities of tasks.
    pub(crate) tasks: TaskIdentities,
    registration: Arc<watch::Sender<v1::ProxyHello>>,
}

impl Control {
    /// Takes the workload's ports out of discovery, and keeps the stream: for the time of a drain.
    pub(crate) fn withdraw(&self) {
        self.registration.send_if_modified(|hello| {
            let had_ports = !hello.ports.is_empty();
            hello.ports.clear();
            had_ports
        });
    }

    /// This process's random name, which a control plane tells proxies apart by.
    #[cfg(test)]
    pub(crate) fn instance_id(&self) -> String {
        self.registration.borrow().instance_id.clone()
    }
}

/// The connection that the stream is on.
#[derive(Debug, Clone)]
struct OpenStream {
    address: ControlPlaneAddress,
    /// Of the certificate that it was made with.
    serial_hex: String,
    dialled: Dialled,
}

/// What identity and stream share on the control thread.
#[derive(Debug)]
struct Shared {
    publisher: Publisher,
    discovery: Discovery,
    status: watch::Sender<ControlStatus>,
    /// Key identifiers of authorities that are not to be relied on any more.
    tainted: watch::Sender<BTreeSet<String>>,
    /// SHA-256 of the operator's trust bundle file as it was last taken.
    operator_bundle: watch::Sender<Option<[u8; 32]>>,
    /// The stream in use, for renewals on its connection.
    stream: watch::Sender<Option<OpenStream>>,
    /// Notified when the control plane has said that this workload is to have no identity.
    doubt: Notify,
    clock: Clock,
    clock_warning: Mutex<Occasionally>,
}

impl Shared {
    /// Compares what a control plane says of its clock with this machine's.
    fn compare_clock(&self, control_plane: &str, now_unix_ms: i64) {
        let ahead = sidewind_api::clock::seconds_ahead(now_unix_ms, self.clock.now());
        if ahead.is_none() {
            return;
        }
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.clock_difference, ahead) != ahead
        });
        let Some(alarm) = self.status.borrow().clock_alarm() else {
            return;
        };
        let mut warning = self
            .clock_warning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = warning.count() {
            tracing::warn!(
                control_plane,
                seconds_ahead = ahead,
                times,
                "{alarm}; certificates that are good there may not be here: look after the clocks"
            );
        }
    }
}

/// Sets up the control side. The future does its work: spawn it on the control thread, where it runs for as long as
/// the process does; dropping it ends the registration.
///
/// # Errors
/// [`ControlError::Local`] when the trust domain cannot name a control plane.
pub(crate) fn new(
    config: &Config,
) -> Result<(Control, impl Future<Output = ()> + Send + 'static + use<>), ControlError> {
    // Each begins with one of its own choice, so that replicas share the proxies; each then tries all.
    let mut config = config.clone();
    let planes = &mut config.control.control_planes;
    if !planes.is_empty() {
        let first = rand::random_range(0..planes.len());
        planes.rotate_left(first);
    }
    within(&config, Clock::default(), Network::default())
}

/// As [`new`], in a time and a network that tests choose.
fn within(
    config: &Config,
    clock: Clock,
    network: Network,
) -> Result<(Control, impl Future<Output = ()> + Send + 'static + use<>), ControlError> {
    let dialler = Dialler::new(&config.control.trust_domain, network)?;
    let discovery = Discovery::default();
    let (status, status_receiver) = watch::channel(ControlStatus::default());
    let (policy, policy_receiver) = watch::channel(None);
    let (gateway, gateway_receiver) = watch::channel(None);
    let (bans, bans_receiver) = watch::channel(Arc::default());
    let (hello, hello_receiver) = watch::channel(hello(config));
    let shared = Arc::new(Shared {
        publisher: Publisher::new(config.control.trust_domain.clone()),
        discovery: discovery.clone(),
        status,
        tainted: watch::Sender::default(),
        operator_bundle: watch::Sender::default(),
        stream: watch::Sender::default(),
        doubt: Notify::default(),
        clock,
        clock_warning: Mutex::default(),
    });
    let caller = Caller::new(
        &config.control.control_planes,
        dialler.clone(),
        shared.clone(),
    );
    let (tasks, task_issuing) = tasks::new(caller.clone(), shared.clone());
    let cache = config.control.state_dir.as_deref();
    let cache = cache.map(|dir| BundleCache::new(dir, &config.control.trust_domain));
    let control = Control {
        credentials: shared.publisher.credentials(),
        minter: Minter::new(caller),
        tasks,
        identity: shared.publisher.subscribe(),
        inbound_policy: policy_receiver,
        gateway: gateway_receiver,
        bans: bans_receiver,
        discovery,
        status: status_receiver,
        registration: Arc::new(hello),
    };
    let identity = IdentityTask::new(
        config.control.clone(),
        dialler.clone(),
        shared.clone(),
        cache.clone(),
    );
    let keeping = bundle_cache::keep(cache, shared.clone());
    let watching = clock_watch::watch(shared.clone());
    let stream = StreamTask::new(
        config.control.control_planes.clone(),
        dialler,
        shared,
        Told {
            policy,
            gateway,
            bans,
        },
        hello_receiver,
    );
    let work = async move {
        tokio::join!(
            identity.run(),
            stream.run(),
            task_issuing.run(),
            keeping,
            watching
        );
    };
    Ok((control, work))
}

/// The registration, from configuration.
fn hello(config: &Config) -> v1::ProxyHello {
    let workload = &config.workload;
    let served = |port: &crate::config::ServedPort| v1::ServedPort {
        target_port: port.target_port.into(),
        protocol: port.protocol.into(),
        service: port.service.clone().unwrap_or_default(),
        service_port: port.service_port.into(),
    };
    v1::ProxyHello {
        version: VERSION.to_owned(),
        instance_id: uuid::Uuid::new_v4().to_string(),
        address: workload
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        mesh_port: config.listeners.mesh_port().into(),
        ports: workload.serve.iter().map(served).collect(),
        workload_name: workload.name.clone(),
        zone: workload.zone.clone(),
        gateway: config.gateway.listen.is_some(),
    }
}
