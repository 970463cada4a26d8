//! Whose keys sign JWT-SVIDs, for each trust domain by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::jws::MAX_KEY_ID_BYTES;
use super::key::{KeyMaterialError, VerificationKey};
use crate::spiffe_id::TrustDomain;

/// The most keys of one trust domain.
pub const MAX_JWT_AUTHORITIES: usize = 16;

/// Why keys are no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtBundleError {
    /// There are more than [`MAX_JWT_AUTHORITIES`].
    #[error("{0} JWT authorities; at most {MAX_JWT_AUTHORITIES} are taken")]
    TooMany(usize),
    /// A name is empty or too long.
    #[error("the name of a JWT authority has {0} bytes; 1 to {MAX_KEY_ID_BYTES} are taken")]
    KeyId(usize),
    /// Two keys have one name, and a token would not say which it means.
    #[error("two JWT authorities are named {0:?}")]
    Duplicate(String),
    /// A key cannot be used.
    #[error("the JWT authority {key_id:?}: {reason}")]
    Key {
        /// Its name, cut short.
        key_id: String,
        /// Why not.
        reason: KeyMaterialError,
    },
}

/// A key that signs JWT-SVIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// What tokens call it in their header `kid`.
    pub key_id: String,
    /// The key.
    pub key: VerificationKey,
    /// From when on it verifies nothing; bundle documents do not say.
    pub expires: Option<SystemTime>,
}

impl JwtAuthority {
    /// An authority whose key comes as a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`JwtBundleError::Key`] when it is no key that may verify tokens.
    pub fn from_spki_der(
        key_id: &str,
        der: &[u8],
        expires: Option<SystemTime>,
    ) -> Result<Self, JwtBundleError> {
        let key = VerificationKey::from_spki_der(der).map_err(|reason| JwtBundleError::Key {
            key_id: super::error::cut(key_id),
            reason,
        })?;
        let key_id = key_id.to_owned();
        Ok(Self {
            key_id,
            key,
            expires,
        })
    }

    pub(crate) fn to_jwk(&self) -> Map<String, Value> {
        let mut jwk = self.key.to_jwk();
        jwk.insert("use".to_owned(), "jwt-svid".into());
        jwk.insert("kid".to_owned(), self.key_id.as_str().into());
        jwk
    }
}

/// The keys that sign JWT-SVIDs of one trust domain. One without keys is allowed, and says that no token of the trust
/// domain is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtBundle {
    trust_domain: TrustDomain,
    authorities: Vec<JwtAuthority>,
}

impl JwtBundle {
    /// A bundle of these authorities. Repetitions of one are dropped.
    ///
    /// # Errors
    /// [`JwtBundleError`] for too many, and for names that do not tell keys apart.
    pub fn new(
        trust_domain: TrustDomain,
        authorities: Vec<JwtAuthority>,
    ) -> Result<Self, JwtBundleError> {
        let total = authorities.len();
        let mut kept: Vec<JwtAuthority> = Vec::new();
        for authority in authorities {
            let length = authority.key_id.len();
            if !(1..=MAX_KEY_ID_BYTES).contains(&length) {
                return Err(JwtBundleError::KeyId(length));
            }
            match kept.iter().find(|known| known.key_id == authority.key_id) {
                Some(known) if known.key == authority.key => continue,
                Some(_) => {
                    let name = super::error::cut(&authority.key_id);
                    return Err(JwtBundleError::Duplicate(name));
                }
                None if kept.len() == MAX_JWT_AUTHORITIES => {
                    return Err(JwtBundleError::TooMany(total));
                }
                None => kept.push(authority),
            }
        }
        Ok(Self {
            trust_domain,
            authorities: kept,
        })
    }

    /// The trust domain whose tokens these keys sign.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authorities.
    pub fn authorities(&self) -> &[JwtAuthority] {
        &self.authorities
    }

    /// The key of a name, while it holds.
    pub(super) fn find(&self, key_id: &str, now: SystemTime) -> Option<&VerificationKey> {
        let named = |authority: &&JwtAuthority| authority.key_id == key_id;
        let authority = self.authorities.iter().find(named)?;
        let ended = authority.expires.is_some_and(|end| end < now);
        (!ended).then_some(&authority.key)
    }

    /// The keys as a JSON Web Key set, as the SPIFFE Workload API hands it out: `jwt-svid` keys alone.
    pub fn to_jwks(&self) -> String {
        let keys = self.authorities.iter().map(JwtAuthority::to_jwk);
        let keys: Vec<_> = keys.map(Value::Object).collect();
        json!({ "keys": keys }).to_string()
    }
}

/// The JWT bundles of all trust domains that are believed, kept apart. Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtBundles {
    bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
}

impl JwtBundles {
    /// No bundles: nobody's token is believed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a bundle in the place of its trust domain's earlier one, which is given back.
    pub fn insert(&mut self, bundle: JwtBundle) -> Option<Arc<JwtBundle>> {
        self.bundles
            .insert(bundle.trust_domain.clone(), Arc::new(bundle))
    }

    /// The bundle of a trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&JwtBundle> {
        self.bundles.get(trust_domain).map(Arc::as_ref)
    }

    /// Takes a trust domain's bundle out: its tokens are no longer believed.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>> {
        self.bundles.remove(trust_domain)
    }

    /// All bundles, in the order of their trust domains.
    pub fn iter(&self) -> impl Iterator<Item = &JwtBundle> {
        self.bundles.values().map(Arc::as_ref)
    }
}

impl FromIterator<JwtBundle> for JwtBundles {
    fn from_iter<I: IntoIterator<Item = JwtBundle>>(bundles: I) -> Self {
        let mut all = Self::new();
        for bundle in bundles {
            all.insert(bundle);
        }
        all
    }
}
