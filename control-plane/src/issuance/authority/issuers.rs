//! Which certificates the authorities vouch for: what a signature says is true only as long as nobody else has the key.

use super::CertificateAuthority;
use super::slots::{Slot, Slots};
use crate::store::{AuthorityRole, AuthorityState};
use rustls_pki_types::CertificateDer;
use sidewind_identity::{
    TrustBundle, TrustBundles, TrustDomain, Usage, VerifyOptions, verify_chain,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long the store may take to say which authorities other replicas have.
const LOOKUP_TIME: Duration = Duration::from_secs(3);

/// What the signature of an authority is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing: there is no such authority here, or its root is revoked.
    None,
    /// Somebody else may have made it: only what is on record as signed here is believed.
    Tainted,
    /// It is enough.
    Good,
}

impl Slots {
    /// What the signature of a signing authority with a key identifier is worth.
    #[must_use]
    pub fn standing(&self, key_id: &str) -> Standing {
        let standings = self.signing_by(key_id).map(|slot| self.standing_of(slot));
        // One key may have several certificates, below one root after another.
        standings.max().unwrap_or(Standing::None)
    }

    /// Key identifiers of the signing authorities.
    pub fn signers(&self) -> impl Iterator<Item = &str> {
        let signing = self
            .iter()
            .filter(|slot| slot.role == AuthorityRole::Signing);
        signing.map(|slot| slot.key_id.as_str())
    }

    fn standing_of(&self, signing: &Slot) -> Standing {
        let roots: Vec<&Slot> = self.roots_of(signing).collect();
        let is_revoked = |root: &&Slot| root.state == AuthorityState::Revoked;
        // A chain that names no key of its root says nothing of it.
        if !signing.root_key_id.is_empty() && roots.iter().all(is_revoked) {
            return Standing::None;
        }
        if signing.tainted || roots.iter().any(|root| root.tainted) {
            return Standing::Tainted;
        }
        Standing::Good
    }

    fn signing_by<'a>(&'a self, key_id: &'a str) -> impl Iterator<Item = &'a Slot> {
        let is_it =
            move |slot: &&Slot| slot.role == AuthorityRole::Signing && slot.key_id == key_id;
        self.iter().filter(is_it)
    }
}

impl CertificateAuthority {
    /// What the signature of the authority is worth that a certificate names as its issuer.
    pub async fn standing(&self, issuer_key_id: &str) -> Standing {
        self.slots_with(issuer_key_id).await.standing(issuer_key_id)
    }

    /// Whether the authority that a certificate names as its issuer has signed it. The name alone says nothing: whoever
    /// has the key of a root can give any name to what is below it.
    pub async fn has_signed(
        &self,
        certificate: &CertificateDer<'_>,
        issuer_key_id: &str,
        now: SystemTime,
    ) -> bool {
        let slots = self.slots_with(issuer_key_id).await;
        slots
            .signing_by(issuer_key_id)
            .any(|slot| is_signed_by(certificate, slot, self.trust_domain(), now))
    }

    /// The authorities; read again where another replica may have one that this process has not seen yet.
    async fn slots_with(&self, key_id: &str) -> Arc<Slots> {
        let slots = self.slots();
        if !self.is_shared || slots.signing_by(key_id).next().is_some() {
            return slots;
        }
        match tokio::time::timeout(LOOKUP_TIME, self.maker.slots()).await {
            Ok(Ok(fresh)) => fresh,
            // What nobody can say now is not believed.
            _ => slots,
        }
    }
}

/// Verifies a certificate with a signing authority as the only one that is trusted.
fn is_signed_by(
    certificate: &CertificateDer<'_>,
    signing: &Slot,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> bool {
    let authority = vec![signing.certificate().to_vec()];
    let Ok(bundle) = TrustBundle::from_der(trust_domain.clone(), 0, authority) else {
        return false;
    };
    let (chain, bundles) = ([certificate.clone()], TrustBundles::from(bundle));
    verify_chain(
        &chain,
        &bundles,
        Usage::Client,
        now,
        &VerifyOptions::default(),
    )
    .is_ok()
}
