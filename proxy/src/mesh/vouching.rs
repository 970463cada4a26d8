//! Whether anybody who is believed still vouches for the peer of a living connection.
//!
//! A handshake verifies a chain once. When an authority leaves the trust bundle of the peer's trust domain (a root
//! that was revoked, say, because its key was stolen), what living connections showed is verified again: the name of
//! an authority in a certificate proves nothing, since whoever has a key can sign any name.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use sidewind_identity::{
    TrustBundle, TrustBundles, TrustDomain, Usage, VerifyOptions, verify_chain,
};

/// What a peer has shown in a handshake. Clones share the certificates.
#[derive(Clone)]
pub(crate) struct Shown {
    chain: Arc<[CertificateDer<'static>]>,
    usage: Usage,
    /// What it was verified with last.
    bundles: Arc<TrustBundles>,
}

impl Shown {
    /// The certificates of a handshake that has just succeeded with these bundles.
    pub(crate) fn new(
        certificates: Option<&[CertificateDer<'_>]>,
        usage: Usage,
        bundles: &Arc<TrustBundles>,
    ) -> Self {
        let certificates = certificates.unwrap_or_default().iter();
        Self {
            chain: certificates
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
            usage,
            bundles: Arc::clone(bundles),
        }
    }

    /// Whether the certificates are as good under these bundles as they were before, at a moment at which they are
    /// valid. Verifies only where an authority of the trust domain has gone.
    pub(crate) fn holds_under(
        &mut self,
        bundles: &Arc<TrustBundles>,
        trust_domain: &TrustDomain,
        at: SystemTime,
    ) -> bool {
        if Arc::ptr_eq(&self.bundles, bundles) {
            return true;
        }
        let has_lost = has_lost_an_authority(&self.bundles, bundles, trust_domain);
        let options = VerifyOptions::default();
        if has_lost && verify_chain(&self.chain, bundles, self.usage, at, &options).is_err() {
            return false;
        }
        self.bundles = Arc::clone(bundles);
        true
    }
}

fn has_lost_an_authority(
    before: &TrustBundles,
    after: &TrustBundles,
    trust_domain: &TrustDomain,
) -> bool {
    let (before, after) = (before.get(trust_domain), after.get(trust_domain));
    let after = after.map(TrustBundle::authorities).unwrap_or_default();
    let before = before.map(TrustBundle::authorities).unwrap_or_default();
    before.iter().any(|authority| !after.contains(authority))
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown")
            .field("certificates", &self.chain.len())
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}
