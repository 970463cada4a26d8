//! Why there is no control plane.

use super::clock::ClockError;
use super::web_certificate::WebCertificateError;
use crate::config::ConfigErrors;
use crate::issuance::Refusal;
use crate::issuance::authority::AuthorityStartError;
use crate::issuance::jwt::JwtKeysError;
use crate::issuance::own::OwnIdentityError;
use crate::store::{StateDirError, StoreError};
use std::io;

/// Why the control plane did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The clock is surely wrong.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// There is no authority to sign with.
    #[error(transparent)]
    Authority(#[from] AuthorityStartError),
    /// There is no key for JWT-SVIDs.
    #[error(transparent)]
    JwtKeys(#[from] JwtKeysError),
    /// A lifetime cannot be promised.
    #[error("--svid-ttl: {0}")]
    Lifetime(Refusal),
    /// The lifetime of JWT-SVIDs cannot be promised.
    #[error("--jwt-ttl: {0}")]
    JwtLifetime(Refusal),
    /// The resources are wrong.
    #[error("--config:\n{0}")]
    Config(#[from] ConfigErrors),
    /// There is no certificate for the server itself.
    #[error("the control plane has no identity of its own")]
    OwnIdentity(#[from] OwnIdentityError),
    /// The bundle endpoint has no certificate.
    #[error("--federation-web-cert and --federation-web-key: {0}")]
    WebCertificate(#[from] WebCertificateError),
    /// A port or socket cannot be opened.
    #[error("cannot listen on {what}")]
    Listen {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Serving failed.
    #[error("serving failed")]
    Serve(#[from] tonic::transport::Error),
}

impl StartError {
    /// Whether a flag, variable or file that was given is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Lifetime(_)
            | Self::JwtLifetime(_)
            | Self::Config(_)
            | Self::WebCertificate(_) => true,
            Self::StateDir(error) | Self::Store(StoreError::StateDir(error)) => !matches!(
                error,
                StateDirError::InUse { .. } | StateDirError::DatabaseInUse { .. }
            ),
            Self::Store(error) => matches!(
                error,
                StoreError::OtherTrustDomain { .. } | StoreError::Sealed(_)
            ),
            Self::Authority(error) => error.is_usage(),
            _ => false,
        }
    }
}
