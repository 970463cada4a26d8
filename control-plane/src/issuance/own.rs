//! The control plane's own identity, which it signs for itself.

use super::authority::CertificateAuthority;
use crate::telemetry::Metrics;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use sidewind_identity::authority::SignError;
use sidewind_identity::tls::TlsConfigError;
use sidewind_identity::{
    ClientAuth, KeyError, PrivateKey, SpiffeId, SpiffeIdError, Svid, SvidError,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The path of the control plane's identity.
pub const OWN_PATH: &str = "/sidewind/control-plane";
const LIFETIME: Duration = Duration::from_secs(3600);

/// Why the control plane has no identity of its own.
#[derive(Debug, thiserror::Error)]
pub enum OwnIdentityError {
    /// The ID cannot be written.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// The key cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The authority does not sign.
    #[error("the authority cannot sign")]
    Sign(#[from] SignError),
    /// What was signed cannot be used.
    #[error("the certificate just signed cannot be used")]
    Svid(#[from] SvidError),
    /// TLS does not take it.
    #[error("TLS does not take the certificate")]
    Tls(#[from] TlsConfigError),
}

/// The TLS configuration of the gRPC port, replaced before its certificate ends.
#[derive(Debug)]
pub struct OwnIdentity {
    authority: Arc<CertificateAuthority>,
    metrics: Arc<Metrics>,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    svid: Svid,
    tls: Arc<ServerConfig>,
    bundle_endpoint_tls: Arc<ServerConfig>,
    bundle_sequence: u64,
}

impl OwnIdentity {
    /// Signs the first certificate.
    ///
    /// # Errors
    /// When the authority cannot.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        metrics: Arc<Metrics>,
        now: SystemTime,
    ) -> Result<Self, OwnIdentityError> {
        let current = ArcSwap::from_pointee(sign(&authority, &metrics, now)?);
        Ok(Self {
            authority,
            metrics,
            current,
        })
    }

    /// The configuration for a connection that is accepted now.
    #[must_use]
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().tls)
    }

    /// The configuration for a connection to the bundle endpoint that is accepted now: no client is asked who it is
    /// (SPIFFE Federation, section 5.2.2).
    #[must_use]
    pub fn bundle_endpoint_tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().bundle_endpoint_tls)
    }

    /// Signs a new certificate when a third of the present one's life is over, or the trust bundle has
    /// changed.
    ///
    /// # Errors
    /// When the authority cannot; the present one stays in use.
    pub fn maintain(&self, now: SystemTime) -> Result<(), OwnIdentityError> {
        let current = self.current.load();
        let left = current
            .svid
            .not_after()
            .duration_since(now)
            .unwrap_or_default();
        let bundle_changed = current.bundle_sequence != self.authority.bundle().sequence();
        // A clock that was set back makes a certificate that is not valid yet.
        let too_early = now < current.svid.not_before();
        // What proxies would no longer rely on is replaced at once.
        let tainted = self.authority.slots().tainted();
        let is_tainted = !tainted.is_empty() && {
            let chain = current.svid.authority_key_ids();
            tainted.iter().any(|key_id| chain.contains(key_id))
        };
        if left <= LIFETIME / 3 * 2 || bundle_changed || too_early || is_tainted {
            self.current
                .store(Arc::new(sign(&self.authority, &self.metrics, now)?));
        }
        Ok(())
    }
}

fn sign(
    authority: &CertificateAuthority,
    metrics: &Metrics,
    now: SystemTime,
) -> Result<Current, OwnIdentityError> {
    let id = SpiffeId::from_parts(authority.trust_domain(), OWN_PATH)?;
    let key = PrivateKey::generate()?;
    let issued = authority.sign(&key.csr_der()?, &id, LIFETIME, now)?;
    let svid = Svid::new(issued.chain, key)?;
    metrics.count_issued("own");
    metrics.set_certificate_expiry("own", svid.not_after());
    let (bundle, bundles) = (authority.bundle(), authority.bundles());
    Ok(Current {
        bundle_endpoint_tls: sidewind_identity::tls::server_config(
            &svid,
            &bundles,
            &[b"http/1.1"],
            ClientAuth::NotAsked,
        )?,
        tls: sidewind_identity::tls::server_config(
            &svid,
            &bundles,
            &[b"h2"],
            ClientAuth::Optional,
        )?,
        svid,
        bundle_sequence: bundle.sequence(),
    })
}
