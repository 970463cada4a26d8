//! Where signing authorities come from when the root is not this control plane's own.
//!
//! An [`Upstream`] says which roots are to be trusted and gives signing authorities below one of them. Everything
//! else (the slots, what is published when, who has it by now) is the same for all of them, and for a root that was
//! generated. [`files`] is a root with its key, or a signing authority of somebody else's root. [`aws_pca`] is a
//! service that signs requests: a key and a request are made in [`Upstream::issue`], and its root is what
//! [`Upstream::offer`] gives.

pub mod aws_pca;
pub mod files;

use crate::store::StateDirError;
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::{AuthorityLoadError, SignError, SigningAuthority};
use sidewind_identity::{BundleError, TrustDomain};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What an upstream has at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The root that what it gives ends at; one of `roots`.
    pub anchor: CertificateDer<'static>,
    /// Every root that is to be trusted.
    pub roots: Vec<CertificateDer<'static>>,
    /// The certificate of the one signing authority that it gives, where it makes none on demand.
    pub signing: Option<CertificateDer<'static>>,
    /// Until when what it gives can be valid.
    pub not_after: SystemTime,
}

/// Gives signing authorities below roots that are not this control plane's.
#[tonic::async_trait]
pub trait Upstream: fmt::Debug + Send + Sync {
    /// What there is at present; asked every few seconds. The same `Arc` while nothing has changed.
    ///
    /// # Errors
    /// Why there is nothing that could be used. What was offered before stays in use.
    async fn offer(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Arc<Offer>, UpstreamError>;

    /// A signing authority below the anchor of the last offer. It ends after `lifetime`, or when the upstream says.
    ///
    /// # Errors
    /// Why there is none.
    async fn issue(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, UpstreamError>;

    /// Whose word this is, for people: `--root-cert`, or a URL.
    fn name(&self) -> String;
}

/// Why an upstream gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A file cannot be read.
    #[error("{flag}: {source}")]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// Why not.
        source: StateDirError,
    },
    /// A file is no text, or larger than any of its kind.
    #[error("{flag}: {path} is not PEM text of at most {limit} bytes", limit = files::MAX_FILE_BYTES)]
    NotText {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: String,
    },
    /// Certificate and key cannot be used.
    #[error("{flag}: {source}")]
    Load {
        /// The flag that names it.
        flag: &'static str,
        /// Why not.
        source: AuthorityLoadError,
    },
    /// The file of roots cannot be used.
    #[error("--upstream-bundle: {0}")]
    Bundle(BundleError),
    /// No root of the file is above the signing certificate.
    #[error(
        "--upstream-bundle: no root in it is above the certificate of --root-cert, or they do not let it sign: {0}"
    )]
    NoRoot(SignError),
    /// It ends too soon.
    #[error("{0} has ended or ends within minutes; give a new one")]
    Ended(&'static str),
    /// AWS Private CA gives nothing.
    #[error("--aws-pca")]
    AwsPca(#[from] aws_pca::AwsPcaError),
    /// There was no usable offer yet.
    #[error("nothing that could sign was read yet")]
    NothingYet,
    /// Nothing could be signed.
    #[error("no signing certificate can be made")]
    Sign(#[from] SignError),
}
