//! JWT-SVIDs: the keys that sign them, and who gets one.
//!
//! - [`plan`]: what is due of the keys' life: published, then signing, then published for what they signed
//! - [`JwtKeys`]: carries it out in the store, and has the key that signs
//! - `commands`: rotate, taint and revoke, as the command line asks for them
//! - [`mint`]: a token for a workload
//!
//! Of several replicas on one store each looks every few seconds, and a transaction decides which of them acts.

mod commands;
pub mod mint;
pub mod plan;

pub use commands::JwtRotation;

use crate::store::{
    JwtKeyChange, JwtKeyRecord, JwtKeyRecords, JwtKeyState, Store, StoreError, unix_seconds,
};
use arc_swap::ArcSwap;
use plan::{Asked, KEY_LIFETIME, Step, due};
use sidewind_api::{duration, v1};
use sidewind_identity::jwt::signer::JwtSigner;
use sidewind_identity::{KeyError, PrivateKey};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the bundle document is to be fetched anew by those who fetch it.
pub const REFRESH_HINT: Duration = sidewind_identity::bundle::document::DEFAULT_REFRESH_HINT;

/// Why there is no key to sign JWT-SVIDs with.
#[derive(Debug, thiserror::Error)]
pub enum JwtKeysError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key cannot be made, or the stored one cannot be used.
    #[error("the key for JWT-SVIDs cannot be used")]
    Key(#[from] KeyError),
    /// No key is active, though one was made: something else writes to the store.
    #[error("the store holds no active key for JWT-SVIDs")]
    NoneActive,
}

/// The keys of the trust bundle that verify JWT-SVIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishedJwtKeys {
    /// The trust bundle's sequence at their last change.
    pub sequence: u64,
    /// The keys, the newest first.
    pub authorities: Vec<v1::JwtAuthority>,
}

/// The keys that sign JWT-SVIDs.
#[derive(Debug)]
pub struct JwtKeys {
    store: Store,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    records: JwtKeyRecords,
    signer: Arc<JwtSigner>,
}

impl JwtKeys {
    /// Takes the keys up where they were left, or makes the first.
    ///
    /// # Errors
    /// When the store fails, or what it keeps cannot be used.
    pub async fn open(store: Store, now: SystemTime) -> Result<Self, JwtKeysError> {
        let records = advance(&store, now).await?;
        let current = ArcSwap::from_pointee(Current::new(records)?);
        Ok(Self { store, current })
    }

    /// The key that signs at present.
    #[must_use]
    pub fn signer(&self) -> Arc<JwtSigner> {
        Arc::clone(&self.current.load().signer)
    }

    /// What the trust bundle says of the keys.
    #[must_use]
    pub fn published(&self) -> PublishedJwtKeys {
        let current = self.current.load();
        let authority = |key: &JwtKeyRecord| v1::JwtAuthority {
            key_id: key.key_id.clone(),
            public_key: key.public_key.clone(),
            expires_at_unix: unix_seconds(key.not_after),
        };
        PublishedJwtKeys {
            sequence: current.records.sequence,
            authorities: current.records.keys.iter().map(authority).collect(),
        }
    }

    /// Does what is due, and takes over what another replica has done. Gives back whether what is published
    /// changed.
    ///
    /// # Errors
    /// When the store fails; the present keys stay in use.
    pub async fn maintain(&self, now: SystemTime) -> Result<bool, JwtKeysError> {
        // Reading is all that most looks need, and takes no lock.
        let mut records = self.store.jwt_keys().await?;
        let passed = self.store.passed(now);
        if !due(&records.keys, now, passed, Asked::Nothing).is_empty() {
            records = advance(&self.store, now).await?;
        }
        self.take(records)
    }

    fn take(&self, records: JwtKeyRecords) -> Result<bool, JwtKeysError> {
        let current = self.current.load();
        if current.records == records {
            return Ok(false);
        }
        let republished = current.records.sequence != records.sequence;
        self.current.store(Arc::new(Current::new(records)?));
        Ok(republished)
    }
}

impl Current {
    fn new(records: JwtKeyRecords) -> Result<Self, JwtKeysError> {
        let active = |key: &&JwtKeyRecord| key.state == JwtKeyState::Active;
        let active = records.keys.iter().find(active);
        let active = active.ok_or(JwtKeysError::NoneActive)?;
        let private = active
            .private_key
            .as_ref()
            .ok_or(JwtKeysError::NoneActive)?;
        let key = PrivateKey::from_pkcs8_der(private)?;
        let signer = Arc::new(JwtSigner::new(&key, active.not_after)?);
        Ok(Self { records, signer })
    }
}

/// Does what is due by itself in one transaction.
async fn advance(store: &Store, now: SystemTime) -> Result<JwtKeyRecords, JwtKeysError> {
    let mut steps = Vec::new();
    let records = store
        .change_jwt_keys(|keys| {
            steps = due(keys, now, store.passed(now), Asked::Nothing);
            let changes = steps.iter().map(|step| changes(step, keys, now));
            let changes: Result<Vec<_>, JwtKeysError> = changes.collect();
            Ok::<_, JwtKeysError>((changes?.into_iter().flatten().collect(), None))
        })
        .await?;
    for step in &steps {
        tracing::info!(step = say(step), "rotating the keys of JWT-SVIDs");
    }
    Ok(records)
}

fn changes(
    step: &Step,
    keys: &[JwtKeyRecord],
    now: SystemTime,
) -> Result<Vec<JwtKeyChange>, JwtKeysError> {
    Ok(match step {
        Step::Prepare => vec![JwtKeyChange::Prepare(new_key(now)?)],
        Step::Begin => {
            // A prepared key that ended unused gives its slot up.
            let prepared = |key: &&JwtKeyRecord| key.state == JwtKeyState::Prepared;
            let ended = keys.iter().find(prepared);
            let retired = ended.map(|key| JwtKeyChange::Activate(key.key_id.clone()));
            let record = new_key(now)?;
            let activate = JwtKeyChange::Activate(record.key_id.clone());
            let begin = [JwtKeyChange::Prepare(record), activate];
            retired.into_iter().chain(begin).collect()
        }
        Step::Activate(key_id) => vec![JwtKeyChange::Activate(key_id.clone())],
        Step::Remove(key_id) => vec![JwtKeyChange::Remove(key_id.clone())],
        Step::Wait(_) => Vec::new(),
    })
}

fn new_key(now: SystemTime) -> Result<JwtKeyRecord, KeyError> {
    // Certificates and tokens count whole seconds, and so does the store.
    let now = crate::store::from_unix_seconds(unix_seconds(now));
    let key = PrivateKey::generate()?;
    let not_after = now + KEY_LIFETIME;
    let signer = JwtSigner::new(&key, not_after)?;
    Ok(JwtKeyRecord {
        key_id: signer.authority().key_id.clone(),
        state: JwtKeyState::Prepared,
        private_key: Some(key.to_pkcs8_der()),
        public_key: key.public_key_der(),
        not_after,
        created_at: now,
        tainted: false,
    })
}

fn say(step: &Step) -> String {
    match step {
        Step::Prepare => "publish a new key, which signs later".to_owned(),
        Step::Begin => "make a key and sign with it at once".to_owned(),
        Step::Activate(key_id) => format!("sign with key {key_id}, which was published before"),
        Step::Remove(key_id) => format!("take key {key_id} out of the trust bundle"),
        Step::Wait(left) => format!(
            "wait: the prepared key has to be published for {} more before it signs",
            duration::format(*left)
        ),
    }
}

#[cfg(test)]
mod tests;
