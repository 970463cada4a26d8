//! Private keys at rest: sealed with AES-256-GCM when a key for the store is given.
//!
//! Who can read the database, or one of its backups, then has no authority's key. What is sealed begins with
//! a mark that no PKCS#8 key begins with, so that keys from before a key was given can be told apart.

use super::{StateDirError, Store, StoreError, check_group_private};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A key that private keys in the store are sealed with.
pub struct StoreKey(LessSafeKey);

/// Why a file is no key for the store.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is open to others.
    #[error(transparent)]
    TooOpen(#[from] StateDirError),
    /// It has another length.
    #[error(
        "{} must hold 32 random bytes and nothing else; make one with: openssl rand -out {} 32",
        path.display(), path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
    },
}

/// Why sealed keys cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// No key was given.
    #[error(
        "the private keys in the store are sealed; give the file that they were sealed with by --store-key-file"
    )]
    KeyMissing,
    /// Another key was given.
    #[error(
        "the private keys in the store were sealed with another key than the one in --store-key-file"
    )]
    OtherKey,
    /// The system gives no random bytes, or the cipher refused.
    #[error("a private key cannot be sealed")]
    Cipher,
}

const MARK: &[u8] = b"swk1";
const LENGTH: usize = 32;
/// The setting that shows whether a key is the right one.
const CHECK: &str = "store_key_check";
const CHECK_TEXT: &[u8] = b"sidewind store key";

impl StoreKey {
    /// Reads a key of 32 bytes from a file that is open to its owner, and for reading to its group, at most.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        check_group_private(path, "the key of the store")?;
        let failed = |source| KeyFileError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + 1));
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LENGTH as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let length = || KeyFileError::Length {
            path: path.to_owned(),
        };
        if bytes.len() != LENGTH {
            return Err(length());
        }
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| length())?;
        Ok(Self(LessSafeKey::new(key)))
    }

    fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, SealedError> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealedError::Cipher)?;
        let mut sealed = Zeroizing::new(secret.to_vec());
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        self.0
            .seal_in_place_append_tag(nonce_value, Aad::from(context), &mut *sealed)
            .map_err(|_| SealedError::Cipher)?;
        Ok([MARK, &nonce, sealed.as_slice()].concat())
    }

    fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedError> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealedError::OtherKey)?;
        let mut secret = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .0
            .open_in_place(nonce, Aad::from(context), &mut secret)
            .map_err(|_| SealedError::OtherKey)?
            .len();
        secret.truncate(length);
        Ok(secret)
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreKey").finish_non_exhaustive()
    }
}

impl Store {
    /// A private key in the form in which it may be stored: sealed, when a key for the store was given.
    /// The context says which key it is; it must be the same when it is opened.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub fn seal_key(&self, context: &str, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        Ok(Zeroizing::new(match &self.key {
            Some(key) => key.seal(context, secret)?,
            None => secret.to_vec(),
        }))
    }

    /// A stored private key, sealed or from before a key for the store was given.
    ///
    /// # Errors
    /// When it was sealed with another key, or for another context.
    pub fn open_key(&self, context: &str, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let Some(sealed) = stored.strip_prefix(MARK) else {
            return Ok(Zeroizing::new(stored.to_vec()));
        };
        let key = self.key.as_ref().ok_or(SealedError::KeyMissing)?;
        Ok(key.open(context, sealed)?)
    }

    /// Checks that the key is the one that the store was sealed with, which it becomes when there was none.
    pub(super) async fn check_key(&self) -> Result<(), StoreError> {
        let Some(key) = &self.key else {
            return match self.setting(CHECK).await? {
                Some(_) => Err(SealedError::KeyMissing.into()),
                None => Ok(()),
            };
        };
        let check = hex(&key.seal(CHECK, CHECK_TEXT)?);
        self.set_default(CHECK, &check).await?;
        let stored = self.setting(CHECK).await?.unwrap_or_default();
        let stored = unhex(&stored).ok_or(SealedError::OtherKey)?;
        let sealed = stored.strip_prefix(MARK).ok_or(SealedError::OtherKey)?;
        key.open(CHECK, sealed)?;
        self.seal_plain_keys().await
    }

    /// Seals what was stored before there was a key.
    async fn seal_plain_keys(&self) -> Result<(), StoreError> {
        use sqlx::Row as _;
        let mut transaction = self.begin_alone("store-key").await?;
        let rows = sqlx::query(
            "SELECT id, certificate, private_key FROM authorities WHERE private_key IS NOT NULL",
        )
        .fetch_all(&mut *transaction)
        .await?;
        for row in rows {
            let stored = Zeroizing::new(row.try_get::<Vec<u8>, _>("private_key")?);
            if stored.starts_with(MARK) {
                continue;
            }
            let context = authority_context(row.try_get("certificate")?);
            let sealed = self.seal_key(&context, &stored)?;
            sqlx::query("UPDATE authorities SET private_key = $1 WHERE id = $2")
                .bind(sealed.as_slice())
                .bind(row.try_get::<i64, _>("id")?)
                .execute(&mut *transaction)
                .await?;
        }
        let rows =
            sqlx::query("SELECT key_id, private_key FROM jwt_keys WHERE private_key IS NOT NULL")
                .fetch_all(&mut *transaction)
                .await?;
        for row in rows {
            let stored = Zeroizing::new(row.try_get::<Vec<u8>, _>("private_key")?);
            if stored.starts_with(MARK) {
                continue;
            }
            let key_id: String = row.try_get("key_id")?;
            let sealed = self.seal_key(&super::jwt_keys::context(&key_id), &stored)?;
            sqlx::query("UPDATE jwt_keys SET private_key = $1 WHERE key_id = $2")
                .bind(sealed.as_slice())
                .bind(key_id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// The context of an authority's key: a key goes with its certificate and no other.
pub(super) fn authority_context(certificate: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    format!("authority {}", hex(digest.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    crate::issuance::issuer::hex(bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{each_store, state_dir};
    use super::super::{
        AuthorityChange, AuthorityRole, AuthorityState, AuthorityStep, NewAuthority,
    };
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, SystemTime};

    fn key_file(directory: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = directory.join(format!("key-{}-{mode:o}", bytes.len()));
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_key_file_has_32_bytes_and_is_for_its_owner_and_group() {
        let directory = tempfile::tempdir().unwrap();
        let read = |length: usize, mode| {
            StoreKey::read(&key_file(directory.path(), &vec![7; length], mode))
        };
        for mode in [0o600, 0o400, 0o440] {
            read(32, mode).unwrap();
        }
        for mode in [0o644, 0o660, 0o604] {
            let error = read(32, mode).unwrap_err().to_string();
            assert!(error.contains("chmod"), "{error}");
        }
        for length in [0, 31, 33, 4096] {
            let error = read(length, 0o600).unwrap_err().to_string();
            assert!(error.contains("openssl rand"), "{error}");
        }
    }

    #[tokio::test]
    async fn keys_are_sealed_and_open_with_the_same_key_alone() {
        for plain in each_store().await {
            let (directory, _state) = state_dir();
            let key =
                |byte| StoreKey::read(&key_file(directory.path(), &[byte; LENGTH], 0o600)).unwrap();
            let now = SystemTime::now();
            let authority = NewAuthority {
                role: AuthorityRole::Root,
                state: AuthorityState::Active,
                certificate: b"certificate".to_vec(),
                intermediates: Vec::new(),
                private_key: Some(Zeroizing::new(b"canary".to_vec())),
                not_after: now + Duration::from_secs(60),
            };
            let step = AuthorityStep {
                version: plain.authorities().await.unwrap().version,
                changes: vec![AuthorityChange::Insert(authority)],
                raises_bundle: false,
                audit: None,
                now,
            };
            assert!(plain.change_authorities(step).await.unwrap());
            let id = plain.authorities().await.unwrap().records[0].id;

            let with_key = |key| {
                let mut store = Store::clone(&plain);
                store.key = key;
                store
            };
            let sealed = with_key(Some(std::sync::Arc::new(key(1))));
            sealed.check_key().await.unwrap();
            let stored: Vec<u8> = sqlx::query_scalar("SELECT private_key FROM authorities")
                .fetch_one(&plain.pool)
                .await
                .unwrap();
            assert!(stored.starts_with(MARK));
            assert!(!stored.windows(6).any(|window| window == b"canary"));
            let read = sealed.authority_key(id).await.unwrap().unwrap();
            assert_eq!(read.as_slice(), b"canary");

            let other = with_key(Some(std::sync::Arc::new(key(2))));
            let error = other.check_key().await.unwrap_err().to_string();
            assert!(error.contains("another key"), "{error}");
            let error = plain.check_key().await.unwrap_err().to_string();
            assert!(error.contains("--store-key-file"), "{error}");
            assert!(plain.authority_key(id).await.is_err());
        }
    }
}
