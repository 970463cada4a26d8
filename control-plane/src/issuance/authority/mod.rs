//! The certificate authority: a root, and the signing intermediate made from it.

mod keeping;

use super::jwt::{PublishedJwtKeys, REFRESH_HINT};
use crate::store::{Store, StoreError};
use arc_swap::ArcSwap;
use keeping::{new_signing, open_root, read_bundle, stored_signing};
use rustls_pki_types::CertificateDer;
use sidewind_api::{duration, v1};
use sidewind_identity::authority::{
    AuthorityLoadError, RootAuthority, SignError, SigningAuthority, SvidTemplate,
};
use sidewind_identity::{BundleError, KeyError, SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Lifetime of a generated root.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Lifetime of a signing intermediate, when its root lives longer.
pub const SIGNING_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// An intermediate is replaced when this part of its lifetime is left.
const REPLACED_AT_PART: u32 = 6;
/// The path that only the control plane's own identities are under.
pub const RESERVED_PREFIX: &str = "/sidewind";

/// Where the root comes from.
#[derive(Debug)]
pub enum RootSource {
    /// Generated at first and kept in the store.
    Generated,
    /// Given by the one who runs the control plane; only its certificate is kept.
    Given {
        /// Certificate in PEM.
        certificate_pem: String,
        /// Key in PEM.
        key_pem: zeroize::Zeroizing<String>,
    },
}

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityStartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate or key cannot be used.
    #[error("the {which} cannot be used")]
    Load {
        /// Which.
        which: &'static str,
        /// Why not.
        source: AuthorityLoadError,
    },
    /// A stored key cannot be read.
    #[error("the {which}'s key in the store cannot be used")]
    Key {
        /// Whose.
        which: &'static str,
        /// Why not.
        source: KeyError,
    },
    /// The key of the root is not in the store, because it was given as a file before.
    #[error(
        "the root of this state directory was given as files, so its key is not here; give --root-cert and --root-key again"
    )]
    RootKeyElsewhere,
    /// The root ends too soon to sign with.
    #[error("the root certificate has ended or ends within minutes; a new root is needed")]
    RootEnded,
    /// A CA certificate could not be made.
    #[error("cannot make the {which}")]
    Make {
        /// Which.
        which: &'static str,
        /// Why not.
        source: SignError,
    },
    /// The trust bundle cannot be made of the roots.
    #[error("the trust bundle cannot be made")]
    Bundle(#[from] BundleError),
}

/// A lifetime that cannot be promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an SVID lifetime of {} cannot be honoured: the signing certificate lives {} and is replaced when a sixth of that is left, and no SVID outlives its issuer, so the longest is {} / {REPLACED_AT_PART} = {}",
    duration::format(*asked), duration::format(*signing), duration::format(*signing), duration::format(*longest)
)]
pub struct LifetimeError {
    asked: Duration,
    signing: Duration,
    longest: Duration,
}

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate and its intermediates, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// Its end.
    pub not_after: SystemTime,
}

/// The certificate authority of a trust domain.
#[derive(Debug)]
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    store: Store,
    root: RootAuthority,
    signing: ArcSwap<SigningAuthority>,
    bundle: ArcSwap<TrustBundle>,
    jwt_keys: ArcSwap<PublishedJwtKeys>,
}

impl CertificateAuthority {
    /// Takes the authority up where it was left, or makes it anew.
    ///
    /// # Errors
    /// When what is kept or given cannot be used, or the store fails.
    pub async fn open(
        store: Store,
        trust_domain: TrustDomain,
        source: RootSource,
        now: SystemTime,
    ) -> Result<Self, AuthorityStartError> {
        let root = open_root(&store, &trust_domain, source, now).await?;
        if root.not_after() < now + Duration::from_secs(300) {
            return Err(AuthorityStartError::RootEnded);
        }
        let signing = match stored_signing(&store, &trust_domain).await? {
            Some(signing) if !is_due(&signing, now) => signing,
            _ => new_signing(&store, &root, now).await?,
        };
        let bundle = read_bundle(&store, &trust_domain, now).await?;
        Ok(Self {
            trust_domain,
            store,
            root,
            signing: ArcSwap::from_pointee(signing),
            bundle: ArcSwap::from_pointee(bundle),
            jwt_keys: ArcSwap::default(),
        })
    }

    /// The trust domain that the authority signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust bundle: every root that is trusted.
    #[must_use]
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    /// The bundles that this control plane itself verifies clients with.
    #[must_use]
    pub fn bundles(&self) -> Arc<TrustBundles> {
        Arc::new(TrustBundles::from(TrustBundle::clone(&self.bundle.load())))
    }

    /// Publishes the keys of JWT-SVIDs with the bundle from now on.
    pub fn set_jwt_keys(&self, keys: PublishedJwtKeys) {
        self.jwt_keys.store(Arc::new(keys));
    }

    /// The bundles in the API's form.
    #[must_use]
    pub fn api_bundles(&self) -> v1::TrustBundles {
        let bundle = self.bundle.load();
        let authorities = bundle.authorities().iter();
        let jwt_keys = self.jwt_keys.load();
        v1::TrustBundles {
            bundles: vec![v1::TrustBundle {
                trust_domain: bundle.trust_domain().to_string(),
                // One count for both halves: each notes what it was at its own last change.
                sequence: bundle.sequence().max(jwt_keys.sequence),
                authorities: authorities.map(|a| a.certificate().to_vec()).collect(),
                jwt_authorities: jwt_keys.authorities.clone(),
                refresh_hint_seconds: u32::try_from(REFRESH_HINT.as_secs()).unwrap_or(u32::MAX),
            }],
        }
    }

    /// The authority that signs SVIDs at present.
    #[must_use]
    pub fn signing(&self) -> Arc<SigningAuthority> {
        self.signing.load_full()
    }

    /// Ends of the root and of the signing certificate.
    #[must_use]
    pub fn ends(&self) -> (SystemTime, SystemTime) {
        (self.root.not_after(), self.signing.load().not_after())
    }

    /// Checks that SVIDs of a lifetime can be promised at any time.
    ///
    /// # Errors
    /// When they would outlive their issuer at some time, with the arithmetic.
    pub fn check_lifetime(&self, asked: Duration) -> Result<(), LifetimeError> {
        let signing = lifetime(&self.signing.load());
        let longest = signing / REPLACED_AT_PART;
        if asked <= longest {
            return Ok(());
        }
        Err(LifetimeError {
            asked,
            signing,
            longest,
        })
    }

    /// Signs a certificate for an identity and the key of a signing request.
    ///
    /// # Errors
    /// What is wrong with the request, or why the authority cannot.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, SignError> {
        let template = SvidTemplate {
            id: id.clone(),
            ttl,
            dns_names: Vec::new(),
        };
        self.sign_template(csr, &template, now)
    }

    /// As [`CertificateAuthority::sign`], with everything that a certificate can say.
    ///
    /// # Errors
    /// As [`CertificateAuthority::sign`].
    pub fn sign_template(
        &self,
        csr: &[u8],
        template: &SvidTemplate,
        now: SystemTime,
    ) -> Result<Issued, SignError> {
        let chain = self.signing.load().sign(csr, template, now)?;
        let identity = sidewind_identity::peer_identity(Some(&chain))
            .map_err(|_| SignError::SelfCheckContent("form"))?;
        Ok(Issued {
            chain,
            serial: identity.serial_hex,
            not_after: identity.not_after,
        })
    }

    /// Replaces the signing certificate when it is due, and drops roots from the bundle that have ended.
    /// Gives back whether anything changed.
    ///
    /// # Errors
    /// When the store fails or nothing can be signed; what is in use stays so.
    pub async fn maintain(&self, now: SystemTime) -> Result<bool, AuthorityStartError> {
        let mut changed = false;
        if is_due(&self.signing.load(), now) {
            let signing = new_signing(&self.store, &self.root, now).await?;
            self.signing.store(Arc::new(signing));
            changed = true;
        }
        let ended = |bundle: &TrustBundle| bundle.authorities().iter().any(|a| a.not_after() < now);
        if ended(&self.bundle.load()) {
            let bundle = read_bundle(&self.store, &self.trust_domain, now).await?;
            self.bundle.store(Arc::new(bundle));
            changed = true;
        }
        Ok(changed)
    }
}

/// Whether an ID is one of the control plane's own, which no workload may have.
#[must_use]
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.path()
        .strip_prefix(RESERVED_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn lifetime(signing: &SigningAuthority) -> Duration {
    signing
        .not_after()
        .duration_since(signing.not_before())
        .unwrap_or_default()
        .saturating_sub(sidewind_identity::authority::BACKDATE)
}

fn is_due(signing: &SigningAuthority, now: SystemTime) -> bool {
    now + lifetime(signing) / REPLACED_AT_PART >= signing.not_after()
}

#[cfg(test)]
mod tests;
