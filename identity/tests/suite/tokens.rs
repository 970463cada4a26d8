//! Makes tokens of every kind, good and bad, for the tests of what reads them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sidewind_identity::jwt::VerificationKey;

/// The moment of every test: well after 1970, so that tokens can be older.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs.
#[derive(Clone)]
pub(crate) enum Key {
    Ec(Arc<EcdsaKeyPair>),
    Rsa(Arc<RsaKeyPair>),
    Ed25519(Arc<Ed25519KeyPair>),
}

impl Key {
    fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(Arc::new(EcdsaKeyPair::generate(algorithm).unwrap()))
    }

    pub(crate) fn p256() -> Self {
        Self::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    pub(crate) fn p384() -> Self {
        Self::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    pub(crate) fn p521() -> Self {
        Self::ec(&ECDSA_P521_SHA512_FIXED_SIGNING)
    }

    /// One RSA key for all tests of a process: making one takes its time.
    pub(crate) fn rsa_2048() -> Self {
        static KEY: OnceLock<Key> = OnceLock::new();
        let make = || RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        KEY.get_or_init(|| Self::Rsa(Arc::new(make()))).clone()
    }

    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(Arc::new(Ed25519KeyPair::generate().unwrap()))
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        let der = match self {
            Self::Ec(key) => key.public_key().as_der().unwrap(),
            Self::Rsa(key) => key.public_key().as_der().unwrap(),
            Self::Ed25519(key) => key.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    pub(crate) fn public(&self) -> VerificationKey {
        VerificationKey::from_spki_der(&self.spki()).unwrap()
    }

    /// The members of its JWK, with others besides.
    pub(crate) fn jwk(&self, others: Value) -> Value {
        let mut jwk = match self {
            Self::Ed25519(key) => {
                let x = b64(key.public_key().as_ref());
                let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
                jwk.as_object().unwrap().clone()
            }
            _ => self.public().to_jwk(),
        };
        jwk.extend(others.as_object().unwrap().clone());
        Value::Object(jwk)
    }

    /// Signs as `alg` says, or, where that is not of this kind of key, as the key can.
    pub(crate) fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Self::Rsa(key) => {
                let encoding: &'static dyn RsaEncoding = match alg {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }
}

/// A token to be spoiled.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) header: Value,
    pub(crate) claims: Value,
    pub(crate) key: Key,
    /// Written instead of `header` or `claims`, for what no JSON value can say.
    pub(crate) raw_header: Option<String>,
    pub(crate) raw_claims: Option<String>,
}

impl Token {
    pub(crate) fn new(key: Key, alg: &str, claims: Value) -> Self {
        Self {
            header: json!({ "alg": alg, "typ": "JWT", "kid": "one" }),
            claims,
            key,
            raw_header: None,
            raw_claims: None,
        }
    }

    pub(crate) fn without_header(&mut self, name: &str) {
        self.header.as_object_mut().unwrap().remove(name);
    }

    pub(crate) fn without_claim(&mut self, name: &str) {
        self.claims.as_object_mut().unwrap().remove(name);
    }

    pub(crate) fn signing_input(&self) -> String {
        let header = self.raw_header.clone();
        let claims = self.raw_claims.clone();
        let header = header.unwrap_or_else(|| self.header.to_string());
        let claims = claims.unwrap_or_else(|| self.claims.to_string());
        format!("{}.{}", b64(header), b64(claims))
    }

    pub(crate) fn build(&self) -> String {
        let signed = self.signing_input();
        let alg = self.header["alg"].as_str().unwrap_or_default();
        let signature = self.key.sign(alg, signed.as_bytes());
        format!("{signed}.{}", b64(signature))
    }
}
