//! JSON Web Key sets (RFC 7517), as OIDC issuers publish them.

use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::error::{JwtError, cut};
use super::json::{self, JsonError};
use super::jws::MAX_KEY_ID_BYTES;
use super::key::{KeyMaterialError, VerificationKey};

/// The largest key set that is parsed.
pub const MAX_JWKS_BYTES: usize = 256 * 1024;
/// The most keys in a set.
pub const MAX_JWKS_KEYS: usize = 100;

/// Why a key set is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// It is longer than [`MAX_JWKS_BYTES`].
    #[error("the key set has {0} bytes; at most {MAX_JWKS_BYTES} are taken")]
    TooLarge(usize),
    /// It is not one JSON object without repeated members.
    #[error("the key set cannot be read: {0}")]
    Json(#[from] JsonError),
    /// It has no array `keys`.
    #[error("the key set has no array 'keys'")]
    NoKeys,
    /// It holds more than [`MAX_JWKS_KEYS`].
    #[error("the key set holds {0} keys; at most {MAX_JWKS_KEYS} are taken")]
    TooManyKeys(usize),
    /// Two keys have one name, and a token would not say which it means.
    #[error("two keys of the set are named {0:?}")]
    DuplicateKeyId(String),
}

/// Why a key of a set is passed over: RFC 7517 section 5 wants sets with kinds of keys not known here to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoredKey {
    /// It is no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// It is for something else than signatures (`use`, `key_ops`).
    #[error("not for verifying signatures")]
    OtherUse,
    /// It is for an algorithm that is not allowed (`alg`), or not one of its kind.
    #[error("for an algorithm that is not allowed, or not of its kind")]
    OtherAlgorithm,
    /// Its name is empty, too long or no text.
    #[error("its name 'kid' is empty, too long or no text")]
    KeyId,
    /// It is no key that can be used.
    #[error(transparent)]
    Material(#[from] KeyMaterialError),
}

/// A key of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Jwk {
    key_id: Option<String>,
    algorithm: Option<Algorithm>,
    key: VerificationKey,
}

/// The keys of an issuer that verify signatures.
///
/// One without keys is allowed, and verifies nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwkSet {
    keys: Vec<Jwk>,
    ignored: Vec<(usize, IgnoredKey)>,
}

impl JwkSet {
    /// Parses a key set. Keys that cannot be used are passed over: [`JwkSet::ignored`] says which.
    ///
    /// # Errors
    /// [`JwksError`] where the set as a whole cannot be relied on.
    pub fn parse(text: &[u8]) -> Result<Self, JwksError> {
        if text.len() > MAX_JWKS_BYTES {
            return Err(JwksError::TooLarge(text.len()));
        }
        let members = json::parse_object(text)?;
        let Some(Value::Array(elements)) = members.get("keys") else {
            return Err(JwksError::NoKeys);
        };
        if elements.len() > MAX_JWKS_KEYS {
            return Err(JwksError::TooManyKeys(elements.len()));
        }
        let mut set = Self::default();
        for (index, element) in elements.iter().enumerate() {
            match parse_key(element) {
                Ok(key) => set.add(key)?,
                Err(reason) => set.ignored.push((index + 1, reason)),
            }
        }
        Ok(set)
    }

    fn add(&mut self, key: Jwk) -> Result<(), JwksError> {
        if let Some(name) = &key.key_id
            && let Some(known) = self.keys.iter().find(|known| known.key_id == key.key_id)
        {
            // The same key for two algorithms is one key.
            if known.key != key.key {
                return Err(JwksError::DuplicateKeyId(cut(name)));
            }
        }
        self.keys.push(key);
        Ok(())
    }

    /// The keys passed over, by their place from 1, and why.
    pub fn ignored(&self) -> &[(usize, IgnoredKey)] {
        &self.ignored
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key of that name is there. Where it is not, the issuer may have rotated: fetch the set anew.
    pub fn contains(&self, key_id: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.key_id.as_deref() == Some(key_id))
    }

    /// The key that a token means: by name, or the only one for its algorithm where it names none.
    pub(super) fn find(
        &self,
        key_id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&VerificationKey, JwtError> {
        let usable = |key: &&Jwk| key.algorithm.is_none_or(|only| only == algorithm);
        let Some(key_id) = key_id else {
            let mut fitting = self.keys.iter().filter(usable);
            let mut fitting = fitting.by_ref().filter(|key| key.key.fits(algorithm));
            return match (fitting.next(), fitting.count()) {
                (Some(only), 0) => Ok(&only.key),
                (None, _) => Err(JwtError::KeyAmbiguous(0)),
                (Some(_), more) => Err(JwtError::KeyAmbiguous(1 + more)),
            };
        };
        let named = |key: &&Jwk| key.key_id.as_deref() == Some(key_id);
        let key = self.keys.iter().filter(named).find(usable);
        let key = key.ok_or_else(|| JwtError::KeyUnknown {
            key_id: cut(key_id),
            of: "the issuer".to_owned(),
        })?;
        Ok(&key.key)
    }
}

fn parse_key(element: &Value) -> Result<Jwk, IgnoredKey> {
    let jwk = element.as_object().ok_or(IgnoredKey::NotAnObject)?;
    check_use(jwk)?;
    let algorithm = match jwk.get("alg") {
        None => None,
        Some(name) => {
            let known = name.as_str().and_then(Algorithm::parse);
            Some(known.ok_or(IgnoredKey::OtherAlgorithm)?)
        }
    };
    let key_id = match jwk.get("kid") {
        None => None,
        Some(name) => Some(key_id(name).ok_or(IgnoredKey::KeyId)?),
    };
    let key = VerificationKey::from_issuer_jwk(jwk)?;
    if algorithm.is_some_and(|algorithm| !key.fits(algorithm)) {
        return Err(IgnoredKey::OtherAlgorithm);
    }
    Ok(Jwk {
        key_id,
        algorithm,
        key,
    })
}

/// RFC 7517 sections 4.2 and 4.3.
fn check_use(jwk: &Map<String, Value>) -> Result<(), IgnoredKey> {
    let for_signatures = jwk.get("use").is_none_or(|usage| usage == "sig");
    let for_verifying = jwk.get("key_ops").is_none_or(|operations| {
        let operations = operations.as_array();
        operations.is_some_and(|operations| operations.iter().any(|one| one == "verify"))
    });
    if for_signatures && for_verifying {
        Ok(())
    } else {
        Err(IgnoredKey::OtherUse)
    }
}

/// A key's name, within bounds.
pub(crate) fn key_id(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    (1..=MAX_KEY_ID_BYTES)
        .contains(&text.len())
        .then(|| text.to_owned())
}
