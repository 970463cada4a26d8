//! Signs tokens for tests, with keys and key sets of its own. The integration tests use this file too.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

enum Key {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// An issuer's key.
pub(crate) struct Signer {
    key: Key,
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
            key: Key::Ecdsa(EcdsaKeyPair::generate(kind).unwrap()),
            algorithm,
            curve,
            key_id: key_id.to_owned(),
        }
    }

    /// A new Ed25519 key.
    pub(crate) fn ed25519(key_id: &str) -> Self {
        Self {
            key: Key::Ed25519(Ed25519KeyPair::generate().unwrap()),
            algorithm: "EdDSA",
            curve: "Ed25519",
            key_id: key_id.to_owned(),
        }
    }

    /// Its public key as a JSON Web Key.
    fn jwk(&self) -> Value {
        let mut jwk = json!({
            "use": "sig", "alg": self.algorithm, "crv": self.curve, "kid": self.key_id,
        });
        match &self.key {
            Key::Ecdsa(key) => {
                // An uncompressed point: 4, then both coordinates.
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                jwk["kty"] = "EC".into();
                jwk["x"] = URL_SAFE_NO_PAD.encode(x).into();
                jwk["y"] = URL_SAFE_NO_PAD.encode(y).into();
            }
            Key::Ed25519(key) => {
                jwk["kty"] = "OKP".into();
                jwk["x"] = URL_SAFE_NO_PAD.encode(key.public_key()).into();
            }
        }
        jwk
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
        let signature = match &self.key {
            Key::Ecdsa(key) => key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap(),
            Key::Ed25519(key) => key.sign(signed.as_bytes()),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
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
