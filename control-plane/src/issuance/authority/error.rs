//! Why there is no authority to sign with, or why it stays as it is.

use super::REPLACED_AT_PART;
use super::upstream::UpstreamError;
use crate::store::StoreError;
use sidewind_api::duration;
use sidewind_identity::authority::{AuthorityLoadError, SignError};
use sidewind_identity::{BundleError, KeyError};
use std::time::Duration;

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityStartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is given by others cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
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
    /// A key is gone that should be in the store.
    #[error("the {0}'s key is not in the store any more")]
    NoKey(&'static str),
    /// The key of the root is not in the store, because it was given as a file before.
    #[error(
        "the root of this state directory was given as files, so its key is not here; give --root-cert and --root-key again"
    )]
    RootKeyElsewhere,
    /// The root ends too soon to sign with.
    #[error("the root certificate has ended or ends within minutes; a new root is needed")]
    RootEnded,
    /// Nothing can be signed.
    #[error("there is no signing certificate in use, and none could be made")]
    NothingSigns,
    /// The root that is given is distrusted.
    #[error(
        "the root that is given (key {key_id}) was {what} before; give another pair of certificate and key"
    )]
    Distrusted {
        /// Its key identifier.
        key_id: String,
        /// What was done to it.
        what: &'static str,
    },
    /// What is given is too short-lived for what was promised.
    #[error("the new certificate is not taken: {0}")]
    Lifetime(#[from] LifetimeError),
    /// The bundle has no room.
    #[error(
        "the trust bundle has {0} roots and room for no more; revoke those that no longer sign: see `sidewind ca show`"
    )]
    BundleFull(usize),
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

impl AuthorityStartError {
    /// Whether a flag or file that was given is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Load { .. }
                | Self::Upstream(_)
                | Self::RootKeyElsewhere
                | Self::RootEnded
                | Self::Distrusted { .. }
        )
    }
}

/// A lifetime that cannot be promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an SVID lifetime of {} cannot be honoured: the signing certificate lives {} and is replaced when a sixth of that is left, and no SVID outlives its issuer, so the longest is {} / {REPLACED_AT_PART} = {}",
    duration::format(*asked), duration::format(*signing), duration::format(*signing), duration::format(*longest)
)]
pub struct LifetimeError {
    pub(super) asked: Duration,
    pub(super) signing: Duration,
    pub(super) longest: Duration,
}

impl LifetimeError {
    /// Checks a lifetime against that of the signing authority.
    pub(super) fn check(asked: Duration, signing: Duration) -> Result<(), Self> {
        let longest = signing / REPLACED_AT_PART;
        if asked <= longest {
            return Ok(());
        }
        Err(Self {
            asked,
            signing,
            longest,
        })
    }
}
