//! Whether certificates are really signed, found out by signing one, and what else there is to say.

use super::Shutdown;
use crate::issuance::authority::CertificateAuthority;
use crate::store::Store;
use crate::telemetry::{Metrics, Throttle, chain};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use sidewind_identity::authority::{MIN_SVID_TTL, SignError};
use sidewind_identity::{
    KeyError, PrivateKey, SpiffeId, SpiffeIdError, Svid, SvidError, TrustBundles, TrustDomain,
    Usage, VerifyError, VerifyOptions, verify_chain,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The path of the throw-away identity, under the prefix that no workload may have.
const PATH: &str = "/sidewind/health-check";
/// Who asks more often than this gets the last answer again, so that probes cannot load the signer.
const KEPT: Duration = Duration::from_secs(3);
/// How long the store may take to answer. A probe's own patience is a few seconds.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// What signs; the certificate authority, and in tests a broken one.
pub(super) trait Signer: std::fmt::Debug + Send + Sync {
    /// Whose identities it signs.
    fn trust_domain(&self) -> &TrustDomain;
    /// Signs a certificate of the shortest life.
    fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError>;
    /// What proxies verify certificates with.
    fn bundles(&self) -> Arc<TrustBundles>;
}

impl Signer for CertificateAuthority {
    fn trust_domain(&self) -> &TrustDomain {
        Self::trust_domain(self)
    }

    fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        Self::sign(self, csr, id, MIN_SVID_TTL, now).map(|issued| issued.chain)
    }

    fn bundles(&self) -> Arc<TrustBundles> {
        Self::bundles(self)
    }
}

/// Why a certificate that was just asked for is none.
#[derive(Debug, thiserror::Error)]
enum SigningError {
    #[error("the ID of the check cannot be written")]
    Id(#[from] SpiffeIdError),
    #[error("a key cannot be made")]
    Key(#[from] KeyError),
    #[error("the authority does not sign")]
    Sign(#[from] SignError),
    #[error("the certificate just signed does not fit its key")]
    Svid(#[from] SvidError),
    #[error("the certificate just signed is refused by the trust bundle")]
    Verify(#[from] VerifyError),
    #[error("the certificate just signed is for {0}")]
    OtherId(SpiffeId),
}

/// A part that readiness looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Component {
    ready: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// The parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Components {
    signing: Component,
    store: Component,
}

/// The document of `/ready`, in the form of the proxy's.
#[derive(Serialize)]
struct Document<'a> {
    ready: bool,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<&'a Components>,
}

/// Answers whether this control plane may be sent traffic.
#[derive(Debug)]
pub(super) struct Health {
    signer: Arc<dyn Signer>,
    store: Store,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    last: Mutex<Option<(Instant, Arc<Components>)>>,
}

impl Health {
    pub(super) fn new(
        signer: Arc<dyn Signer>,
        store: Store,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            signer,
            store,
            metrics,
            shutdown,
            last: Mutex::default(),
        }
    }

    /// Whether it is ready, and the JSON document that says why.
    ///
    /// A store that is away stops attestations and no renewals, and is told in the detail alone: were all
    /// replicas to become unready for it, nobody could renew.
    pub(super) async fn document(&self) -> (bool, String) {
        if self.shutdown.has_begun() {
            let document = Document {
                ready: false,
                draining: true,
                components: None,
            };
            return (false, json(&document));
        }
        let components = self.components().await;
        let ready = components.signing.ready;
        let document = Document {
            ready,
            draining: false,
            components: Some(&components),
        };
        (ready, json(&document))
    }

    /// What is found, or was found a moment ago. The lock is held while it is found out, so that many who
    /// ask at once are one check.
    async fn components(&self) -> Arc<Components> {
        let mut last = self.last.lock().await;
        if let Some((at, components)) = last.as_ref()
            && at.elapsed() < KEPT
        {
            return Arc::clone(components);
        }
        let components = Arc::new(Components {
            signing: self.signing(SystemTime::now()),
            store: self.store().await,
        });
        let (signing, store) = (components.signing.ready, components.store.ready);
        self.metrics.set_healthy("signing", signing);
        self.metrics.set_healthy("store", store);
        *last = Some((Instant::now(), Arc::clone(&components)));
        components
    }

    fn signing(&self, now: SystemTime) -> Component {
        match check_signing(self.signer.as_ref(), now) {
            Ok(()) => Component::ready(),
            Err(error) => Component::failed("signing", chain(&error), None),
        }
    }

    async fn store(&self) -> Component {
        // What the store says of itself may name files and hosts: that is for the log.
        let public =
            "the store does not answer; attestations are refused until it does, renewals are not";
        match tokio::time::timeout(STORE_PATIENCE, self.store.bundle_sequence()).await {
            Ok(Ok(_)) => Component::ready(),
            Ok(Err(error)) => Component::failed("store", chain(&error), Some(public)),
            Err(elapsed) => Component::failed("store", elapsed.to_string(), Some(public)),
        }
    }
}

impl Component {
    fn ready() -> Self {
        Self {
            ready: true,
            detail: String::new(),
        }
    }

    fn failed(what: &'static str, error: String, public: Option<&str>) -> Self {
        static FAILED: Throttle = Throttle::new();
        if let Some(unsaid) = FAILED.admit(what) {
            tracing::warn!(what, error, unsaid, "a health check failed");
        }
        Self {
            ready: false,
            detail: public.map_or(error, str::to_owned),
        }
    }
}

/// Signs a throw-away certificate for a new key and looks at it as a proxy would.
fn check_signing(signer: &dyn Signer, now: SystemTime) -> Result<(), SigningError> {
    let id = SpiffeId::from_parts(signer.trust_domain(), PATH)?;
    let key = PrivateKey::generate()?;
    let chain = signer.sign(&key.csr_der()?, &id, now)?;
    let svid = Svid::new(chain, key)?;
    if *svid.id() != id {
        return Err(SigningError::OtherId(svid.id().clone()));
    }
    let (bundles, options) = (signer.bundles(), VerifyOptions::default());
    for usage in [Usage::Client, Usage::Server] {
        verify_chain(svid.chain(), &bundles, usage, now, &options)?;
    }
    Ok(())
}

fn json(document: &Document<'_>) -> String {
    // A document of strings and truth values can always be written.
    serde_json::to_string(document).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests;
