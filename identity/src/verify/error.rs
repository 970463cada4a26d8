//! Why a certificate chain is not believed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{CertificateError, OtherError};

use super::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES};
use crate::spiffe_id::{SpiffeIdError, TrustDomain};
use crate::x509::{self, MalformedCertificate};

/// Why a certificate chain is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No certificate was presented.
    #[error("the peer presented no certificate")]
    EmptyChain,
    /// The chain is longer than [`MAX_CHAIN_CERTIFICATES`].
    #[error("the chain has {0} certificates; at most {MAX_CHAIN_CERTIFICATES} are allowed")]
    TooManyCertificates(usize),
    /// The chain is larger than [`MAX_CHAIN_BYTES`].
    #[error("the chain is {0} bytes long; at most {MAX_CHAIN_BYTES} are allowed")]
    ChainTooLarge(usize),
    /// The leaf cannot be read.
    #[error("leaf: {0}")]
    Malformed(#[from] MalformedCertificate),
    /// The leaf's key is of a kind or size that is not accepted.
    #[error("leaf: its public key must be P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits")]
    KeyType,
    /// The leaf has no URI name.
    #[error("leaf: no URI name, so it names no SPIFFE ID")]
    NoId,
    /// The leaf has several URI names (X509-SVID section 2).
    #[error("leaf: {0} URI names; exactly one is allowed")]
    ManyIds(usize),
    /// The leaf's URI name is no SPIFFE ID.
    #[error("leaf: its URI name is not a SPIFFE ID: {0}")]
    Id(#[from] SpiffeIdError),
    /// The leaf's URI name is not even text.
    #[error("leaf: its URI name is not text")]
    IdNotText,
    /// The leaf's ID has no path: that is the trust domain's own ID (X509-SVID section 3.1).
    #[error("leaf: the ID of a trust domain is not a workload's; a path must follow")]
    NoPath,
    /// Basic constraints are missing, or say that the leaf is a CA (X509-SVID section 4.1).
    #[error("leaf: basicConstraints must be there and say CA:FALSE")]
    LeafIsCa,
    /// Key usage is missing, not critical, or not the leaf's (X509-SVID section 4.3).
    #[error(
        "leaf: keyUsage must be critical, contain digitalSignature, and neither keyCertSign nor cRLSign"
    )]
    KeyUsage,
    /// Extended key usage is there without both purposes (X509-SVID section 4.4).
    #[error("leaf: extendedKeyUsage must contain both serverAuth and clientAuth, or be absent")]
    ExtendedKeyUsage,
    /// The subject is empty and the alternative name is not critical (X509-SVID section 3.1).
    #[error("leaf: subjectAltName must be critical where the subject is empty")]
    NameNotCritical,
    /// The leaf is valid for too long.
    #[error("leaf: valid for {hours} h; at most {allowed_hours} h are believed")]
    LifetimeTooLong {
        /// The leaf's life.
        hours: u64,
        /// What is believed.
        allowed_hours: u64,
    },
    /// There is no bundle, or an empty one, for the leaf's trust domain.
    #[error("no trust bundle for the trust domain '{0}'; is it the right one, and federated?")]
    UnknownTrustDomain(TrustDomain),
    /// A certificate of the chain has ended.
    #[error("a certificate of the chain ended {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: u64,
        /// When.
        not_after: SystemTime,
    },
    /// A certificate of the chain is not valid yet.
    #[error("a certificate of the chain begins in {seconds} s; do both clocks agree?")]
    NotYetValid {
        /// How long until.
        seconds: u64,
        /// When.
        not_before: SystemTime,
    },
    /// No path leads from the leaf to an authority.
    #[error(
        "no path to an authority of '{trust_domain}': signed by '{issuer}', believed are {trusted}"
    )]
    UnknownIssuer {
        /// The leaf's trust domain.
        trust_domain: TrustDomain,
        /// The issuer that the last certificate of the chain names.
        issuer: String,
        /// The subjects of the bundle's authorities.
        trusted: String,
    },
    /// The path's authority is in the bundle, but has ended or not begun.
    #[error("the authority '{0}' is not valid at this time; replace it in the bundle")]
    AuthorityNotValid(String),
    /// More intermediates than the authority allows.
    #[error("more intermediates than the authority '{0}' allows")]
    AuthorityPathLength(String),
    /// An intermediate that may not sign, or not for this trust domain (X509-SVID section 3.2).
    #[error("an intermediate is not a signing certificate of '{trust_domain}': {reason}")]
    Intermediate {
        /// The leaf's trust domain.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        reason: String,
    },
    /// Path validation failed otherwise.
    #[error("path validation failed: {0}")]
    Path(webpki::Error),
}

impl VerifyError {
    /// A stable name for metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyChain => "no-certificate",
            Self::TooManyCertificates(_) | Self::ChainTooLarge(_) => "chain-too-large",
            Self::Malformed(_) => "malformed",
            Self::KeyType => "key-type",
            Self::NoId | Self::ManyIds(_) | Self::Id(_) | Self::IdNotText | Self::NoPath => {
                "spiffe-id"
            }
            Self::LeafIsCa | Self::KeyUsage | Self::ExtendedKeyUsage | Self::NameNotCritical => {
                "leaf-profile"
            }
            Self::LifetimeTooLong { .. } => "lifetime",
            Self::UnknownTrustDomain(_) => "unknown-trust-domain",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::UnknownIssuer { .. } => "unknown-issuer",
            Self::AuthorityNotValid(_) => "authority-not-valid",
            Self::AuthorityPathLength(_) | Self::Intermediate { .. } | Self::Path(_) => "path",
        }
    }

    /// Finds the reason in a TLS error that this crate's verifiers caused. Expiry is not found here: rustls has a form
    /// of its own for it.
    pub fn from_tls(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(source))) => {
                source.downcast_ref()
            }
            _ => None,
        }
    }

    /// The [`code`](Self::code) of a TLS error that this crate's verifiers caused.
    pub fn code_of_tls(error: &rustls::Error) -> Option<&'static str> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. }) => {
                Some("expired")
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }) => {
                Some("not-yet-valid")
            }
            rustls::Error::NoCertificatesPresented => Some(Self::EmptyChain.code()),
            other => Self::from_tls(other).map(Self::code),
        }
    }
}

impl From<VerifyError> for rustls::Error {
    /// Expiry keeps rustls' own form, so that the peer gets the alert that tells it; everything else carries the
    /// reason, for the log of this side.
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(match error {
            VerifyError::Expired { not_after, seconds } => CertificateError::ExpiredContext {
                time: x509::unix_time(not_after + Duration::from_secs(seconds)),
                not_after: x509::unix_time(not_after),
            },
            VerifyError::NotYetValid {
                not_before,
                seconds,
            } => CertificateError::NotValidYetContext {
                time: x509::unix_time(not_before - Duration::from_secs(seconds)),
                not_before: x509::unix_time(not_before),
            },
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}
