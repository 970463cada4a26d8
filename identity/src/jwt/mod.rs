//! JSON Web Tokens: read strictly, verified, and signed.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`jws`] | compact JWS (RFC 7515 section 7.1) to header and claims; [`jws::verify`] for tokens of an OIDC issuer |
//! | [`jwks`] | JSON Web Key sets (RFC 7517), as issuers publish them |
//! | [`svid`] | JWT-SVIDs: whose is this token |
//! | [`bundle`] | whose keys sign JWT-SVIDs, for each trust domain by itself |
//! | [`signer`] | signs JWT-SVIDs |
//! | [`shared`] | tokens that are signed with a secret which their verifier has too |
//!
//! Under them: `json` (no member twice), `algorithm` (the nine that are allowed), `key` (public keys of the right kind
//! and size), `claims` (audience, issuer and times).
//!
//! Every input is capped before it is parsed, nothing in a token says where a key is found, and the algorithm is
//! checked against the key's own kind: a token cannot choose how it is verified.

mod algorithm;
pub mod bundle;
mod claims;
mod error;
pub(crate) mod json;
pub mod jwks;
pub mod jws;
mod key;
pub mod shared;
pub mod signer;
pub mod svid;

pub use algorithm::Algorithm;
pub(crate) use error::cut;
pub use error::{JwtError, Part};
pub use key::{KeyMaterialError, VerificationKey};
