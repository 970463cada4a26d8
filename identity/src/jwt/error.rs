//! Why a token is refused.

use std::fmt;

use super::algorithm::Algorithm;
use super::json::JsonError;
use super::jws::{MAX_KEY_ID_BYTES, MAX_TOKEN_BYTES};
use crate::spiffe_id::{SpiffeIdError, TrustDomain};

/// A part of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first: how it is signed.
    Header,
    /// The second: what it says.
    Claims,
    /// The third.
    Signature,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Claims => "claims",
            Self::Signature => "signature",
        })
    }
}

/// Why a token is refused. Holds nothing of the token but names, cut short and escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is longer than [`MAX_TOKEN_BYTES`].
    #[error("the token has {0} bytes; at most {MAX_TOKEN_BYTES} are taken")]
    TooLarge(usize),
    /// It is not the compact serialization (RFC 7515 section 7.1).
    #[error(
        "a token is three parts joined by '.', and this has {parts}; JSON serialization and encrypted tokens are not taken"
    )]
    NotCompact {
        /// How many parts it has.
        parts: usize,
    },
    /// A part is not base64url without padding.
    #[error("the {0} is not base64url without padding")]
    Base64(Part),
    /// A part is not one JSON object without repeated members.
    #[error("the {part} cannot be read: {reason}")]
    Json {
        /// Which.
        part: Part,
        /// Why.
        reason: JsonError,
    },
    /// The algorithm is missing or not one of those allowed.
    #[error(
        "the header 'alg' must be one of RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512, or in no JWT-SVID EdDSA"
    )]
    Algorithm,
    /// The algorithm of a token that is signed with a shared secret is missing or another.
    #[error("the header 'alg' must be HS512")]
    SharedAlgorithm,
    /// A header that must not be there.
    #[error("the header {0:?} is not allowed")]
    Header(String),
    /// The header `typ` has a value that is not this kind of token's.
    #[error("the header 'typ' is of another kind of token; it must be 'JWT' or 'JOSE', or absent")]
    Type,
    /// The header `kid` is missing, empty, too long or no text.
    #[error("the header 'kid' must name the signing key, in 1 to {MAX_KEY_ID_BYTES} bytes")]
    KeyId,
    /// Nobody has a key of that name.
    #[error("no key named {key_id:?} is known for {of}")]
    KeyUnknown {
        /// The name that the token gives, cut short.
        key_id: String,
        /// Of whom keys are known.
        of: String,
    },
    /// Without `kid`, more or fewer than one key could be meant.
    #[error("the token names no key, and {0} keys fit its algorithm; exactly one would do")]
    KeyAmbiguous(usize),
    /// The key is no key for that algorithm.
    #[error("the key is of kind {kind}, and the token says {algorithm}")]
    KeyKind {
        /// What the key is.
        kind: &'static str,
        /// What the token says.
        algorithm: Algorithm,
    },
    /// The signature is not the key's.
    #[error("the signature does not verify")]
    Signature,
    /// A claim is missing.
    #[error("the claim '{0}' is missing")]
    ClaimMissing(&'static str),
    /// A claim has a value of the wrong type.
    #[error("the claim '{name}' must be {expected}")]
    ClaimType {
        /// Which.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The subject is no SPIFFE ID.
    #[error("the claim 'sub' is not a SPIFFE ID: {0}")]
    Subject(#[from] SpiffeIdError),
    /// The subject is the ID of a trust domain, which has no path.
    #[error("the claim 'sub' is the ID of a trust domain; a path must follow it")]
    SubjectTrustDomain,
    /// There are no keys for the subject's trust domain.
    #[error("no keys are known for trust domain {0}; federate with it to take its tokens")]
    UnknownTrustDomain(TrustDomain),
    /// The token is for somebody else.
    #[error("the claim 'aud' does not name {0:?}")]
    Audience(String),
    /// Somebody else made the token.
    #[error("the claim 'iss' is not {0:?}")]
    Issuer(String),
    /// The token has ended.
    #[error("the token expired {0} s ago")]
    Expired(u64),
    /// The token does not hold yet.
    #[error("the token holds only in {0} s; compare the clocks")]
    NotYetValid(u64),
    /// The token was made in the future.
    #[error("the token was issued {0} s in the future; compare the clocks")]
    IssuedInFuture(u64),
    /// Nothing to compare the audience with: such a validator would take everybody's tokens.
    #[error("the expected audience is empty; name the audience that tokens must be for")]
    NoExpectedAudience,
    /// No issuer to compare with.
    #[error("the expected issuer is empty; name the issuer whose tokens are taken")]
    NoExpectedIssuer,
}

/// What a stranger wrote, fit for a log: cut short. The messages above escape it.
pub(crate) fn cut(text: &str) -> String {
    const MAX_CHARACTERS: usize = 64;
    text.chars().take(MAX_CHARACTERS).collect()
}
