//! The certificate authority: roots that are trusted, and the signing authority below one of them.
//!
//! - [`slots`]: every authority with its state, as the store has them
//! - `plan`: what is to be done next, decided and not done
//! - `maker`, `changes`: the certificates of one step, and what of the slots changes by it
//! - `rotation`: steps made, each in one transaction with the record of it
//! - `commands`: rotate, taint and revoke, as the command line asks for them
//! - [`followers`]: who has the trust bundle by now
//! - `issuers`: what the signature of an authority is worth
//! - [`upstream`]: roots that are given and not generated
//! - `signer`: what signs at present
//!
//! The store is the truth: each step is a transaction that another process of the control plane would lose, and
//! whoever loses, or finds the version of the slots changed, reads them again.

mod changes;
mod commands;
mod error;
pub mod followers;
mod issuers;
mod maker;
mod plan;
mod rotation;
mod signer;
pub mod slots;
pub mod upstream;

pub use changes::Event;
pub use commands::{Actor, RotateOptions, Rotation};
pub use error::{AuthorityStartError, LifetimeError};
pub use followers::Followers;
pub use issuers::Standing;

use super::jwt::{PublishedJwtKeys, REFRESH_HINT};
use crate::store::{AuthorityRole, Store, SvidRecord};
use arc_swap::ArcSwap;
use followers::Waiting;
use maker::Maker;
use rotation::Turn;
use rustls_pki_types::CertificateDer;
use sidewind_api::v1;
use sidewind_identity::authority::{SignError, SigningAuthority, SvidTemplate};
use sidewind_identity::{SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use signer::Signer;
use slots::Slots;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use upstream::Upstream;

/// Lifetime of a generated root.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Lifetime of a signing authority, when its root lives longer.
pub const SIGNING_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// How long a prepared root waits for proxies that do not acknowledge it, when nothing else is said.
pub const ROTATION_DEADLINE: Duration = Duration::from_secs(3600);
/// An authority is replaced when this part of its lifetime is left.
const REPLACED_AT_PART: u32 = 6;
/// The path that only the control plane's own identities are under.
pub const RESERVED_PREFIX: &str = "/sidewind";

/// Where the root comes from.
#[derive(Debug)]
pub enum RootSource {
    /// Generated at first and kept in the store.
    Generated,
    /// Given by others; of roots only the certificates are kept.
    Upstream(Arc<dyn Upstream>),
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
    /// SHA-256 of its DER form.
    pub sha256: [u8; 32],
}

impl Issued {
    /// What is kept of it.
    #[must_use]
    pub fn record(&self) -> SvidRecord {
        SvidRecord {
            serial: self.serial.clone(),
            not_after: self.not_after,
            sha256: Some(self.sha256),
        }
    }
}

/// The certificate authority of a trust domain.
#[derive(Debug)]
pub struct CertificateAuthority {
    maker: Maker,
    jwt_keys: ArcSwap<PublishedJwtKeys>,
    deadline: Duration,
    /// Whether the bundle is served to other trust domains.
    has_partners: bool,
    /// This process, among those that use the store.
    process: String,
    /// Whether others use the store at the same time.
    is_shared: bool,
    opened: SystemTime,
    current: ArcSwap<Current>,
    waiting: ArcSwap<Waiting>,
    /// The longest lifetime of SVIDs that was promised, in seconds.
    promised: AtomicU64,
    /// How long signing authorities live below what is given, in seconds.
    given_lifetime: AtomicU64,
    /// Who changes anything has the turn.
    turn: tokio::sync::Mutex<Turn>,
}

/// What a look after the authorities has brought.
#[derive(Debug)]
pub struct Maintenance {
    /// What this process did.
    pub events: Vec<Event>,
    /// Why what is given at present is not taken; what was taken before stays in use.
    pub refused: Option<AuthorityStartError>,
}

/// What signing and verifying need, as one.
#[derive(Debug)]
struct Current {
    slots: Arc<Slots>,
    bundle: Arc<TrustBundle>,
    signer: Arc<Signer>,
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
        rotation::open(store, trust_domain, source, now).await
    }

    /// The same with another time that a prepared root waits for proxies.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same where other trust domains fetch the bundle: a root that is given signs once they have had the time to.
    #[must_use]
    pub fn with_partners(mut self, has_partners: bool) -> Self {
        self.has_partners = has_partners;
        self
    }

    /// The trust domain that the authority signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.maker.trust_domain
    }

    /// The trust bundle: every root that is trusted.
    #[must_use]
    pub fn bundle(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.current.load().bundle)
    }

    /// The bundles that this control plane itself verifies clients with.
    #[must_use]
    pub fn bundles(&self) -> Arc<TrustBundles> {
        Arc::new(TrustBundles::from(TrustBundle::clone(
            &self.current.load().bundle,
        )))
    }

    /// Publishes the keys of JWT-SVIDs with the bundle from now on.
    pub fn set_jwt_keys(&self, keys: PublishedJwtKeys) {
        self.jwt_keys.store(Arc::new(keys));
    }

    /// The bundles in the API's form.
    #[must_use]
    pub fn api_bundles(&self) -> v1::TrustBundles {
        let bundle = self.bundle();
        let authorities = bundle.authorities().iter();
        let jwt_keys = self.jwt_keys.load();
        v1::TrustBundles {
            bundles: vec![v1::TrustBundle {
                trust_domain: bundle.trust_domain().to_string(),
                sequence: self.published_sequence(),
                authorities: authorities.map(|a| a.certificate().to_vec()).collect(),
                jwt_authorities: jwt_keys.authorities.clone(),
                refresh_hint_seconds: u32::try_from(REFRESH_HINT.as_secs()).unwrap_or(u32::MAX),
            }],
        }
    }

    /// The sequence that the bundles are published under: one count for roots and for keys of JWT-SVIDs, each of
    /// which notes what it was at its own last change.
    #[must_use]
    pub fn published_sequence(&self) -> u64 {
        self.bundle().sequence().max(self.jwt_keys.load().sequence)
    }

    /// The authorities that are not to be relied on any more, in the API's form.
    #[must_use]
    pub fn api_tainted(&self) -> v1::TaintedAuthorities {
        v1::TaintedAuthorities {
            subject_key_ids: self.slots().tainted(),
        }
    }

    /// Whether roots are given and not generated.
    #[must_use]
    pub fn is_given(&self) -> bool {
        matches!(self.maker.source, RootSource::Upstream(_))
    }

    /// The authority that signs SVIDs at present.
    #[must_use]
    pub fn signing(&self) -> Arc<SigningAuthority> {
        Arc::clone(&self.current.load().signer.authority)
    }

    /// Every authority with its state.
    #[must_use]
    pub fn slots(&self) -> Arc<Slots> {
        Arc::clone(&self.current.load().slots)
    }

    /// Who has not the bundle of a root that is prepared, as it was last looked at.
    #[must_use]
    pub fn waiting(&self) -> Arc<Waiting> {
        self.waiting.load_full()
    }

    /// Ends of the root in use and of the signing certificate.
    #[must_use]
    pub fn ends(&self) -> (SystemTime, SystemTime) {
        let current = self.current.load();
        let signing = current.signer.authority.not_after();
        let root = current.slots.active(AuthorityRole::Root);
        (root.map_or(signing, |root| root.not_after), signing)
    }

    /// Checks that SVIDs of a lifetime can be promised at any time, also below a root that is given and waits to be
    /// used. What is promised once is kept: an authority
    /// that is given later and could not honour it is not taken.
    ///
    /// # Errors
    /// When they would outlive their issuer at some time, with the arithmetic.
    pub fn check_lifetime(&self, asked: Duration) -> Result<(), LifetimeError> {
        let given = Duration::from_secs(self.given_lifetime.load(Ordering::Relaxed));
        LifetimeError::check(asked, self.current.load().signer.lifetime().min(given))?;
        self.promised.fetch_max(asked.as_secs(), Ordering::Relaxed);
        Ok(())
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

    /// Signs a certificate that says what the template says, for the key of a signing request. DNS names are those
    /// of the template, which come from the registration and never from the request.
    ///
    /// # Errors
    /// What is wrong with the request or the template, or why the authority cannot.
    pub fn sign_template(
        &self,
        csr: &[u8],
        template: &SvidTemplate,
        now: SystemTime,
    ) -> Result<Issued, SignError> {
        let signer = Arc::clone(&self.current.load().signer);
        let chain = signer.authority.sign(csr, template, now)?;
        let identity = sidewind_identity::peer_identity(Some(&chain))
            .map_err(|_| SignError::SelfCheckContent("form"))?;
        signer.note(identity.not_after);
        Ok(Issued {
            chain,
            serial: identity.serial_hex,
            not_after: identity.not_after,
            sha256: identity.certificate_sha256,
        })
    }

    /// Reads the slots again, which another process may have changed. Gives back whether anything is another now.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be used; what is in use stays so.
    pub async fn reload(&self, now: SystemTime) -> Result<bool, AuthorityStartError> {
        let mut turn = self.turn.lock().await;
        self.read_slots(&mut turn, now).await
    }

    /// Makes every step that is due: reads the slots and what is given again, prepares, activates and retires.
    ///
    /// # Errors
    /// When the store fails or nothing can be signed; what is in use stays so.
    pub async fn maintain(
        &self,
        now: SystemTime,
        followers: &dyn Followers,
    ) -> Result<Maintenance, AuthorityStartError> {
        let mut turn = self.turn.lock().await;
        self.read_slots(&mut turn, now).await?;
        self.note_signed(&mut turn, now).await?;
        // What is given may be bad for long, and everything else goes on meanwhile.
        let refused = self.look_upstream(&mut turn, now).await.err();
        let events = self.advance(&mut turn, now, followers).await?;
        Ok(Maintenance { events, refused })
    }

    #[cfg(test)]
    pub(crate) fn shared(mut self) -> Self {
        self.is_shared = true;
        self
    }
}

/// Whether an ID is one of the control plane's own, which no workload may have.
#[must_use]
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.path()
        .strip_prefix(RESERVED_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod tests;
