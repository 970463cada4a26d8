//! The proxy's side of the control plane: who this workload is, whom it may trust, who else is there, and who may
//! call it. Everything here runs on the control thread; the workers see snapshots.
//!
//! ```text
//! identity ─ attest, renew ──┐                       ┌→ Control::identity (TLS configurations)
//!   (issuing, evidence, dial)├→ publisher ───────────┘
//! stream ─ bundles ──────────┘                       └→ Control::credentials, minter (the Workload API)
//!   (session, dial)  ─ destinations → discovery ───→ Control::discovery
//!                    ─ policy ─────────────────────→ Control::inbound_policy
//! ```

mod backoff;
mod check;
mod clock;
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
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use sidewind_api::{BanList, v1};
use tokio::sync::watch;

use crate::config::Config;

pub(crate) use clock::Clock;
#[cfg(test)]
pub(crate) use clock::Simulated;
pub(crate) use discovery::{Discovery, Resolution};
pub(crate) use error::ControlError;
pub(crate) use minting::Minter;
pub(crate) use publisher::{Credentials, MeshIdentity};
pub(crate) use status::{ControlStatus, IdentityState};

use dial::Dialler;
use identity::IdentityTask;
use network::Network;
use publisher::Publisher;
use stream::StreamTask;

/// This proxy's software version, as it tells the control plane.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the control plane has said, for every thread. Clones see the same.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// None until the first SVID. It stays after the SVID has expired: whoever uses it looks at its end.
    pub(crate) identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
    /// None until it has arrived: inbound refuses until then.
    pub(crate) inbound_policy: watch::Receiver<Option<Arc<v1::InboundPolicy>>>,
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

/// What identity and stream share on the control thread.
#[derive(Debug)]
struct Shared {
    publisher: Publisher,
    discovery: Discovery,
    status: watch::Sender<ControlStatus>,
    /// Key identifiers of authorities that are not to be relied on any more.
    tainted: watch::Sender<BTreeSet<String>>,
    clock: Clock,
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
    let (bans, bans_receiver) = watch::channel(Arc::default());
    let (hello, hello_receiver) = watch::channel(hello(config));
    let shared = Arc::new(Shared {
        publisher: Publisher::new(config.control.trust_domain.clone()),
        discovery: discovery.clone(),
        status,
        tainted: watch::Sender::default(),
        clock,
    });
    let control = Control {
        credentials: shared.publisher.credentials(),
        minter: Minter::new(
            &config.control.control_planes,
            dialler.clone(),
            shared.clone(),
        ),
        identity: shared.publisher.subscribe(),
        inbound_policy: policy_receiver,
        bans: bans_receiver,
        discovery,
        status: status_receiver,
        registration: Arc::new(hello),
    };
    let identity = IdentityTask::new(config.control.clone(), dialler.clone(), shared.clone());
    let stream = StreamTask::new(
        config.control.control_planes.clone(),
        dialler,
        shared,
        policy,
        bans,
        hello_receiver,
    );
    let work = async move {
        tokio::join!(identity.run(), stream.run());
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
    }
}
