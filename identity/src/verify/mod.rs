//! Verification of a peer's certificate chain (X509-SVID section 5), for clients and servers alike.
//!
//! In order: bounds on what was sent → what the leaf must look like ([`leaf`]) → the bundle of the leaf's own trust
//! domain → path validation by rustls-webpki with what it leaves out ([`path`]). Nothing is taken from one trust domain
//! to vouch for another.

mod error;
mod leaf;
mod path;

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

pub use error::VerifyError;
pub(crate) use leaf::{Leaf, check_leaf, parse_leaf};

use crate::bundle::TrustBundles;
use crate::spiffe_id::SpiffeId;
use crate::x509;

/// The most certificates in one chain, the leaf included.
pub const MAX_CHAIN_CERTIFICATES: usize = 8;
/// The most bytes in one chain.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;
/// The longest life of a leaf that is believed: a day, and an hour for what issuers backdate.
pub const MAX_LEAF_LIFETIME: Duration = Duration::from_secs(25 * 60 * 60);

/// What the certificate is presented for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// By the side that accepted the connection.
    Server,
    /// By the side that opened the connection.
    Client,
}

/// What a deployment may decide about verification beyond the standard.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Leaves that are valid for longer are refused: a short life is what stands in for revocation.
    pub max_leaf_lifetime: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            max_leaf_lifetime: MAX_LEAF_LIFETIME,
        }
    }
}

/// Verifies a chain, leaf first, and gives back whose it is.
///
/// Who may do what is for the caller to decide: this says only that the ID is true.
///
/// # Errors
/// [`VerifyError`], which names the rule that the chain breaks.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    usage: Usage,
    now: SystemTime,
    options: &VerifyOptions,
) -> Result<SpiffeId, VerifyError> {
    let (leaf_der, intermediates) = chain.split_first().ok_or(VerifyError::EmptyChain)?;
    check_bounds(chain)?;
    // Certificates count whole seconds, and so both ends of a validity are inclusive to the second.
    let now = x509::system_time_of(x509::unix_time(now));
    let leaf = parse_leaf(leaf_der)?;
    let lifetime = leaf
        .not_after
        .duration_since(leaf.not_before)
        .unwrap_or_default();
    if lifetime > options.max_leaf_lifetime {
        return Err(VerifyError::LifetimeTooLong {
            hours: lifetime.as_secs() / 3600,
            allowed_hours: options.max_leaf_lifetime.as_secs() / 3600,
        });
    }
    let bundle = bundles
        .get(leaf.id.trust_domain())
        .filter(|bundle| !bundle.authorities().is_empty())
        .ok_or_else(|| VerifyError::UnknownTrustDomain(leaf.id.trust_domain().clone()))?;
    path::verify(leaf_der, intermediates, bundle, usage, now)?;
    Ok(leaf.id)
}

/// Bounds the work that a chain can cause before any of it is parsed.
pub(crate) fn check_bounds(chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    if chain.len() > MAX_CHAIN_CERTIFICATES {
        return Err(VerifyError::TooManyCertificates(chain.len()));
    }
    let bytes = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > MAX_CHAIN_BYTES {
        return Err(VerifyError::ChainTooLarge(bytes));
    }
    Ok(())
}
