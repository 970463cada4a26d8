//! What the command line decided.

use super::limits::Limits;
use crate::issuance::authority::RootSource;
use crate::store::{Location, StoreKey};
use sidewind_api::v1::PlaintextMode;
use sidewind_identity::TrustDomain;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that `sidewind serve` needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// Where the store is.
    pub store: Location,
    /// What private keys in the store are sealed with.
    pub store_key: Option<StoreKey>,
    /// Where resources are, if there are any.
    pub config: Option<PathBuf>,
    /// Whose identities are issued.
    pub trust_domain: TrustDomain,
    /// The gRPC port.
    pub listen: SocketAddr,
    /// The port of probes and metrics.
    pub admin_listen: SocketAddr,
    /// Lifetime of certificates whose token says nothing else.
    pub svid_ttl: Duration,
    /// Lifetime of JWT-SVIDs whose registration says nothing else.
    pub jwt_ttl: Duration,
    /// What evidence that is signed for the occasion must name, so that it is good at no other control plane.
    pub server_id: String,
    /// Whether workloads take plaintext from outside the mesh.
    pub inbound_plaintext: PlaintextMode,
    /// Where the root comes from.
    pub root: RootSource,
    /// How often somebody may ask.
    pub limits: Limits,
    /// Where others fetch the own trust bundle.
    pub bundle_endpoints: BundleEndpoints,
    /// Whether to start although the clock is before what has surely happened.
    pub trust_clock: bool,
    /// How long a prepared root waits for proxies that do not acknowledge it.
    pub rotation_deadline: Duration,
}

/// Where others fetch the own trust bundle; nowhere where nothing is said.
#[derive(Debug, Default)]
pub struct BundleEndpoints {
    /// With a certificate for a host.
    pub web: Option<WebEndpoint>,
    /// With the control plane's own SVID.
    pub spiffe: Option<SocketAddr>,
}

/// An endpoint with a certificate for its host.
#[derive(Debug)]
pub struct WebEndpoint {
    /// Its port.
    pub listen: SocketAddr,
    /// Its certificate with those below the root, in PEM.
    pub certificate: PathBuf,
    /// The certificate's key in PEM.
    pub key: PathBuf,
}
