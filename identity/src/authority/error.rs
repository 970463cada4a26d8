//! Why the authority does not load or does not sign.

use super::{MAX_CSR_BYTES, MAX_DNS_NAMES, MAX_SVID_TTL, MIN_SVID_TTL};
use crate::bundle::AuthorityError;
use crate::key::KeyError;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::verify::VerifyError;

/// Why a CA certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityLoadError {
    /// The text holds no certificate.
    #[error("no certificate in PEM form found")]
    NoCertificate,
    /// The key cannot be read.
    #[error("private key: {0}")]
    Key(#[from] KeyError),
    /// The certificate may not sign for the trust domain.
    #[error("CA certificate: {0}")]
    Certificate(#[from] AuthorityError),
    /// The certificate was made for another key.
    #[error("the CA certificate is for another private key")]
    OtherKey,
    /// The subject's name cannot be written into what it would sign.
    #[error(
        "the CA certificate's subject name cannot be reproduced: use one value for each attribute"
    )]
    Subject,
}

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is larger than [`MAX_CSR_BYTES`].
    #[error("the signing request is {0} bytes long; at most {MAX_CSR_BYTES} are accepted")]
    CsrTooLarge(usize),
    /// The request cannot be read.
    #[error("the signing request is not a DER-encoded PKCS #10 request")]
    CsrMalformed,
    /// Bytes follow the request.
    #[error("{0} bytes follow the signing request")]
    CsrTrailingBytes(usize),
    /// The key is not P-256.
    #[error("the signing request's key is {0}; only ECDSA P-256 keys are signed")]
    CsrKeyType(String),
    /// The request's signature was not made with the key that it asks to certify.
    #[error("the signing request's own signature is wrong: the sender does not hold the key")]
    CsrSignature,
    /// The request names an identity that its sender was not granted.
    #[error(
        "the signing request names '{asked}', but its sender was granted {granted}; leave the name out"
    )]
    CsrNamesOtherId {
        /// What the request names.
        asked: String,
        /// What attestation granted.
        granted: SpiffeId,
    },
    /// The template's ID belongs to another trust domain.
    #[error("{id} is not in the trust domain '{trust_domain}' of this authority")]
    OtherTrustDomain {
        /// The template's ID.
        id: SpiffeId,
        /// The authority's trust domain.
        trust_domain: TrustDomain,
    },
    /// The template's ID is a trust domain's own.
    #[error("{0} has no path: the ID of a trust domain is not a workload's")]
    NotAWorkload(SpiffeId),
    /// The template's life is out of range.
    #[error("a life of {seconds} s; an SVID lives {} s to {} s", MIN_SVID_TTL.as_secs(), MAX_SVID_TTL.as_secs())]
    Ttl {
        /// The life asked for, in seconds.
        seconds: u64,
    },
    /// The certificate would outlive its issuer.
    #[error(
        "a life of {ttl} s was asked for, but the issuing certificate ends in {left} s; rotate it, or ask for less"
    )]
    OutlivesIssuer {
        /// The life asked for, in seconds.
        ttl: u64,
        /// What is left of the issuer's, in seconds.
        left: u64,
    },
    /// The issuer is not valid yet.
    #[error(
        "the issuing certificate begins in {0} s; does the clock agree with the one that it was made by?"
    )]
    IssuerNotYetValid(u64),
    /// More DNS names than [`MAX_DNS_NAMES`].
    #[error("{0} DNS names; at most {MAX_DNS_NAMES} are signed")]
    TooManyDnsNames(usize),
    /// A DNS name is malformed.
    #[error("'{0}' is not a DNS name in lower case without wildcard")]
    DnsName(String),
    /// The time is outside what certificates can say.
    #[error("the time is outside what a certificate can say")]
    Time,
    /// The system has no randomness.
    #[error("the system gives no random bytes")]
    Random,
    /// Making a key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Making the certificate failed.
    #[error("cannot make the certificate: {0}")]
    Build(#[from] rcgen::Error),
    /// The certificate that was made breaks the rules, and was thrown away.
    #[error("the certificate just made does not pass this authority's own check: {0}")]
    SelfCheck(#[from] VerifyError),
    /// The CA certificate that was made cannot be used, and was thrown away.
    #[error("the CA certificate just made cannot be used: {0}")]
    SelfCheckAuthority(#[from] AuthorityLoadError),
    /// The certificate that was made says something else than was asked, and was thrown away.
    #[error("the certificate just made has another {0} than asked for")]
    SelfCheckContent(&'static str),
}
