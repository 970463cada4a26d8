//! Signs JWT-SVIDs.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::bundle::JwtAuthority;
use super::key::VerificationKey;
use crate::key::{KeyError, PrivateKey};
use crate::spiffe_id::SpiffeId;

/// The most audiences of one token.
pub const MAX_AUDIENCES: usize = 16;
/// The longest audience in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 256;
/// The shortest life of tokens that may be configured. One token may be given less, where its certificate ends sooner.
pub const MIN_JWT_TTL: Duration = Duration::from_secs(60);
/// The longest life of a token. Nothing takes it back but its end.
pub const MAX_JWT_TTL: Duration = Duration::from_secs(60 * 60);

/// Why a token is not signed.
#[derive(Debug, thiserror::Error)]
pub enum JwtSignError {
    /// There are no audiences, or more than [`MAX_AUDIENCES`].
    #[error("{0} audiences; name 1 to {MAX_AUDIENCES}")]
    Audiences(usize),
    /// An audience is empty, too long, or holds control characters.
    #[error(
        "audience {0} must be 1 to {MAX_AUDIENCE_BYTES} bytes long, without control characters"
    )]
    Audience(usize),
    /// The ID is a trust domain's.
    #[error("{0} is not a workload's ID: it has no path")]
    NotAWorkload(SpiffeId),
    /// The lifetime is out of range.
    #[error("a JWT-SVID lives from 1 second to 1 hour, not {0:?}")]
    Ttl(Duration),
    /// The token would live longer than its key is published.
    #[error("the key {key_id:?} ends {missing:?} before the token would")]
    OutlivesKey {
        /// The key's name.
        key_id: String,
        /// By how much.
        missing: Duration,
    },
    /// The clock is before 1970.
    #[error("the clock is before 1970")]
    Clock,
    /// The cryptographic library failed.
    #[error("the cryptographic library could not sign")]
    Library,
}

/// A token just signed.
#[derive(Clone)]
pub struct SignedJwt {
    /// The token. Whoever has it is its subject: never logged.
    pub token: String,
    /// Its name, for the audit.
    pub token_id: String,
    /// When it was made.
    pub issued_at: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
}

impl fmt::Debug for SignedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedJwt")
            .field("token_id", &self.token_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A key that signs JWT-SVIDs with ES256, under a name and until a day.
pub struct JwtSigner {
    key: EcdsaKeyPair,
    authority: JwtAuthority,
    expires: SystemTime,
}

impl JwtSigner {
    /// A signer with a key, which is named by a hash of its public half.
    ///
    /// # Errors
    /// [`KeyError::NotP256`] when the cryptographic library does not take the key.
    pub fn new(key: &PrivateKey, expires: SystemTime) -> Result<Self, KeyError> {
        let public = key.public_key_der();
        let verification =
            VerificationKey::from_spki_der(&public).map_err(|_| KeyError::NotP256)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &public);
        let authority = JwtAuthority {
            key_id: URL_SAFE_NO_PAD.encode(digest.as_ref()),
            key: verification,
            expires: Some(expires),
        };
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.to_pkcs8_der());
        Ok(Self {
            key: key.map_err(|_| KeyError::NotP256)?,
            authority,
            expires,
        })
    }

    /// What verifies its tokens.
    pub fn authority(&self) -> &JwtAuthority {
        &self.authority
    }

    /// Until when its tokens may live.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Signs a token for a workload.
    ///
    /// # Errors
    /// [`JwtSignError`] for audiences or a lifetime that a token cannot have, or one beyond the key's end.
    pub fn sign(
        &self,
        id: &SpiffeId,
        audience: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedJwt, JwtSignError> {
        check_audience(audience)?;
        if !id.is_workload() {
            return Err(JwtSignError::NotAWorkload(id.clone()));
        }
        if !(Duration::from_secs(1)..=MAX_JWT_TTL).contains(&ttl) {
            return Err(JwtSignError::Ttl(ttl));
        }
        // Tokens count whole seconds.
        let since = now.duration_since(UNIX_EPOCH);
        let issued = since.map_err(|_| JwtSignError::Clock)?.as_secs();
        let expiry = issued + ttl.as_secs();
        let (issued_at, expires) = (at(issued), at(expiry));
        if let Ok(missing) = expires.duration_since(self.expires)
            && !missing.is_zero()
        {
            let key_id = self.authority.key_id.clone();
            return Err(JwtSignError::OutlivesKey { key_id, missing });
        }
        let token_id = random_id()?;
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.authority.key_id });
        let audience = match audience {
            [only] => json!(only),
            several => json!(several),
        };
        let claims = json!({
            "sub": id.as_str(), "aud": audience, "iat": issued, "exp": expiry, "jti": token_id,
        });
        let encode = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let mut token = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), token.as_bytes());
        let signature = signature.map_err(|_| JwtSignError::Library)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(SignedJwt {
            token,
            token_id,
            issued_at,
            expires,
        })
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSigner")
            .field("key_id", &self.authority.key_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Checks audiences that a token is asked for.
///
/// # Errors
/// [`JwtSignError::Audiences`] or [`JwtSignError::Audience`].
pub fn check_audience(audience: &[String]) -> Result<(), JwtSignError> {
    if !(1..=MAX_AUDIENCES).contains(&audience.len()) {
        return Err(JwtSignError::Audiences(audience.len()));
    }
    let bad = |name: &String| {
        !(1..=MAX_AUDIENCE_BYTES).contains(&name.len()) || name.chars().any(char::is_control)
    };
    match audience.iter().position(bad) {
        Some(index) => Err(JwtSignError::Audience(index + 1)),
        None => Ok(()),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// 128 random bits.
fn random_id() -> Result<String, JwtSignError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| JwtSignError::Library)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
