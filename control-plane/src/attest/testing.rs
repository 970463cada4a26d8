//! Signs tokens for tests, with keys and key sets of its own. The integration tests use this file too.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// An issuer's key.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    algorithm: &'static str,
    curve: &'static str,
    pub(crate) key_id: String,
}

impl Signer {
    /// A new P-256 key.
    pub(crate) fn es256(key_id: &str) -> Self {
        Self::new(&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", "P-256", key_id)
    }

    /// A new P-384 key.
    pub(crate) fn es384(key_id: &str) -> Self {
        Self::new(&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384", "P-384", key_id)
    }

    fn new(
        kind: &'static EcdsaSigningAlgorithm,
        algorithm: &'static str,
        curve: &'static str,
        key_id: &str,
    ) -> Self {
        Self {
            key: EcdsaKeyPair::generate(kind).unwrap(),
            algorithm,
            curve,
            key_id: key_id.to_owned(),
        }
    }

    /// Its public key as a JSON Web Key.
    fn jwk(&self) -> Value {
        // An uncompressed point: 4, then both coordinates.
        let point = &self.key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({
            "kty": "EC", "use": "sig", "alg": self.algorithm, "crv": self.curve, "kid": self.key_id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// A token of these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm, "kid": self.key_id, "typ": "JWT"});
        self.token_with(&header, claims)
    }

    /// A token with a header of one's own.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap()))
    }
}

/// A key set.
pub(crate) fn jwks(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({"keys": keys}).to_string()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}
