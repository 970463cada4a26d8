//! Tokens that are signed with a secret which their verifier has too (HMAC, RFC 7518 section 3.2).
//!
//! Never a JWT-SVID, and apart from the other algorithms by type: a public key can never be taken for a secret.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::claims;
use super::error::JwtError;
use super::jws::{Parts, Rules};

/// The shortest secret. RFC 7518 section 3.2 asks for 64 bytes, and Airflow makes its own of 16 random ones, in base64.
pub const MIN_SECRET_BYTES: usize = 16;

/// The algorithm of these tokens.
const ALGORITHM: &str = "HS512";

/// A secret that tokens are signed with.
pub struct SharedSecret(Zeroizing<Vec<u8>>);

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret")
    }
}

/// Why a text is no secret that could keep anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret has {0} bytes; fewer than {MIN_SECRET_BYTES} could be guessed")]
pub struct SecretTooShort(usize);

impl SharedSecret {
    /// Takes the bytes of a secret.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn new(bytes: &[u8]) -> Result<Self, SecretTooShort> {
        if bytes.len() < MIN_SECRET_BYTES {
            return Err(SecretTooShort(bytes.len()));
        }
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }
}

/// Verifies a token with a secret, and checks what it says. Gives back its claims. HS512 alone is taken.
///
/// # Errors
/// [`JwtError`], which names the rule that the token breaks.
pub fn verify_shared(
    token: &str,
    secret: &SharedSecret,
    rules: &Rules<'_>,
    now: SystemTime,
) -> Result<Map<String, Value>, JwtError> {
    let is_it = |name: &str| (name == ALGORITHM).then_some(());
    let token = Parts::parse(token, rules.headers(), is_it).map_err(|error| match error {
        JwtError::Algorithm => JwtError::SharedAlgorithm,
        other => other,
    })?;
    let key = hmac::Key::new(hmac::HMAC_SHA512, &secret.0);
    hmac::verify(&key, token.signed.as_bytes(), &token.signature)
        .map_err(|_| JwtError::Signature)?;
    claims::check(&token.claims, rules, now)?;
    Ok(token.claims)
}
