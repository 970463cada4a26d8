//! Keys that sign JWT-SVIDs.

use super::{AuditRecord, Store, StoreError, Topic, audit, from_unix_seconds, unix_seconds};
use sqlx::AnyConnection;
use std::fmt;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Where a key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtKeyState {
    /// Published and not yet used.
    Prepared,
    /// Signs.
    Active,
    /// Published for the tokens that it signed.
    Old,
}

/// A key as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKeyRecord {
    /// Its name, in tokens and in the trust bundle.
    pub key_id: String,
    /// Where it is in its life.
    pub state: JwtKeyState,
    /// The key in PKCS#8; gone once it is old.
    pub private_key: Option<Zeroizing<Vec<u8>>>,
    /// The public key as SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
    /// No token that it signed lives longer.
    pub not_after: SystemTime,
    /// Since when it is published.
    pub created_at: SystemTime,
    /// Whether it is not to be relied on any more.
    pub tainted: bool,
}

impl fmt::Debug for JwtKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKeyRecord")
            .field("key_id", &self.key_id)
            .field("state", &self.state)
            .field("not_after", &self.not_after)
            .field("tainted", &self.tainted)
            .finish_non_exhaustive()
    }
}

/// The keys, and the trust bundle's sequence when they last changed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKeyRecords {
    /// The keys, the newest first.
    pub keys: Vec<JwtKeyRecord>,
    /// The sequence; 0 while there was never a key.
    pub sequence: u64,
}

/// A change of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeyChange {
    /// Publish a key.
    Prepare(JwtKeyRecord),
    /// Sign with this prepared key; the one that did becomes old and loses its private half.
    Activate(String),
    /// Take an old key out.
    Remove(String),
    /// Rely on an old key no more, and not longer than to this end.
    Taint {
        /// The key.
        key_id: String,
        /// Its new end.
        not_after: SystemTime,
    },
    /// Take a key out that does not sign, whatever of its tokens is left.
    Revoke(String),
}

impl Store {
    /// The keys as they are.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn jwt_keys(&self) -> Result<JwtKeyRecords, StoreError> {
        let mut connection = self.pool.acquire().await?;
        self.read_jwt_keys(&mut connection).await
    }

    /// Changes the keys in one transaction that reads them first, so that of several replicas one decides.
    /// A change of what is published raises the trust bundle's sequence. `decide` gives back the changes, and the record
    /// of them where somebody asked for it, which is written with them. Gives back the keys afterwards.
    ///
    /// # Errors
    /// What `decide` gives back, or when the store fails; then nothing has changed.
    pub async fn change_jwt_keys<E: From<StoreError>>(
        &self,
        decide: impl FnOnce(&[JwtKeyRecord]) -> Result<(Vec<JwtKeyChange>, Option<AuditRecord>), E>,
    ) -> Result<JwtKeyRecords, E> {
        let mut transaction = self.begin_alone("jwt keys").await?;
        let records = self.read_jwt_keys(&mut transaction).await?;
        let (changes, record) = decide(&records.keys)?;
        if changes.is_empty() {
            return Ok(records);
        }
        for change in &changes {
            self.apply_jwt_key(&mut transaction, change).await?;
        }
        let publishes = |change: &JwtKeyChange| !matches!(change, JwtKeyChange::Activate(_));
        if changes.iter().any(publishes) {
            raise_sequence(&mut transaction).await?;
        }
        if let Some(record) = &record {
            audit::insert(&mut transaction, record).await?;
        }
        let records = self.read_jwt_keys(&mut transaction).await?;
        self.announce(&mut transaction, Topic::JwtKeys).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(records)
    }
}

impl Store {
    async fn read_jwt_keys(
        &self,
        connection: &mut AnyConnection,
    ) -> Result<JwtKeyRecords, StoreError> {
        type Row = (String, String, Option<Vec<u8>>, Vec<u8>, i64, i64, i64);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT key_id, state, private_key, public_key, not_after, created_at, tainted
         FROM jwt_keys ORDER BY created_at DESC, key_id",
        )
        .fetch_all(&mut *connection)
        .await?;
        let record = |row: Row| {
            let (key_id, state, private_key, public_key, not_after, created_at, tainted) = row;
            let corrupt = |why: String| StoreError::Corrupt {
                what: "JWT key",
                why,
            };
            let context = context(&key_id);
            let open = |stored: Vec<u8>| self.open_key(&context, &Zeroizing::new(stored));
            Ok(JwtKeyRecord {
                state: state_of(&state).ok_or_else(|| corrupt(format!("{state:?} is no state")))?,
                key_id,
                private_key: private_key.map(open).transpose()?,
                public_key,
                not_after: from_unix_seconds(not_after),
                created_at: from_unix_seconds(created_at),
                tainted: tainted != 0,
            })
        };
        let keys: Result<Vec<JwtKeyRecord>, StoreError> = rows.into_iter().map(record).collect();
        let sequence: Option<String> =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'jwt_sequence'")
                .fetch_optional(connection)
                .await?;
        Ok(JwtKeyRecords {
            keys: keys?,
            sequence: sequence.and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }

    async fn apply_jwt_key(
        &self,
        connection: &mut AnyConnection,
        change: &JwtKeyChange,
    ) -> Result<(), StoreError> {
        match change {
            JwtKeyChange::Prepare(record) => {
                let context = context(&record.key_id);
                let seal = |key: &Zeroizing<Vec<u8>>| self.seal_key(&context, key);
                let private_key = record.private_key.as_ref().map(seal).transpose()?;
                sqlx::query(
                "INSERT INTO jwt_keys (key_id, state, private_key, public_key, not_after, created_at)
                 VALUES ($1, 'prepared', $2, $3, $4, $5)",
            )
            .bind(record.key_id.as_str())
            .bind(private_key.as_ref().map(|key| key.as_slice()))
            .bind(record.public_key.as_slice())
            .bind(unix_seconds(record.not_after))
            .bind(unix_seconds(record.created_at))
            .execute(connection)
            .await?;
            }
            JwtKeyChange::Activate(key_id) => {
                let retire =
                    "UPDATE jwt_keys SET state = 'old', private_key = NULL WHERE state = 'active'";
                sqlx::query(retire).execute(&mut *connection).await?;
                let activate =
                    "UPDATE jwt_keys SET state = 'active' WHERE key_id = $1 AND state = 'prepared'";
                let query = sqlx::query(activate).bind(key_id.as_str());
                if query.execute(connection).await?.rows_affected() != 1 {
                    return Err(StoreError::Corrupt {
                        what: "JWT key",
                        why: format!("{key_id:?} is not prepared"),
                    });
                }
            }
            JwtKeyChange::Taint { key_id, not_after } => {
                sqlx::query(
                    "UPDATE jwt_keys SET tainted = 1, not_after = $1 WHERE key_id = $2 AND state = 'old'",
                )
                .bind(unix_seconds(*not_after))
                .bind(key_id.as_str())
                .execute(connection)
                .await?;
            }
            JwtKeyChange::Revoke(key_id) => {
                sqlx::query("DELETE FROM jwt_keys WHERE key_id = $1 AND state <> 'active'")
                    .bind(key_id.as_str())
                    .execute(connection)
                    .await?;
            }
            JwtKeyChange::Remove(key_id) => {
                sqlx::query("DELETE FROM jwt_keys WHERE key_id = $1 AND state = 'old'")
                    .bind(key_id.as_str())
                    .execute(connection)
                    .await?;
            }
        }
        Ok(())
    }
}

/// Which key is sealed: another's cannot be put in its place.
pub(super) fn context(key_id: &str) -> String {
    format!("jwt key {key_id}")
}

fn state_of(text: &str) -> Option<JwtKeyState> {
    match text {
        "prepared" => Some(JwtKeyState::Prepared),
        "active" => Some(JwtKeyState::Active),
        "old" => Some(JwtKeyState::Old),
        _ => None,
    }
}

/// The sequence is one for the whole bundle, and what it was at the last change of these keys is noted.
async fn raise_sequence(connection: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ('bundle_sequence', '1')
         ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(settings.value AS BIGINT) + 1 AS TEXT)",
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO settings (name, value)
         SELECT 'jwt_sequence', value FROM settings WHERE name = 'bundle_sequence'
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::each_store;
    use super::*;
    use std::time::Duration;

    fn record(key_id: &str, minutes: u64) -> JwtKeyRecord {
        let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minutes);
        JwtKeyRecord {
            key_id: key_id.to_owned(),
            state: JwtKeyState::Prepared,
            private_key: Some(Zeroizing::new(b"canary".to_vec())),
            public_key: b"public".to_vec(),
            not_after: created_at + Duration::from_secs(3600),
            created_at,
            tainted: false,
        }
    }

    async fn change(
        store: &Store,
        changes: Vec<JwtKeyChange>,
    ) -> Result<JwtKeyRecords, StoreError> {
        store.change_jwt_keys(|_| Ok((changes, None))).await
    }

    fn states(records: &JwtKeyRecords) -> Vec<(&str, JwtKeyState)> {
        let keys = records.keys.iter();
        keys.map(|key| (key.key_id.as_str(), key.state)).collect()
    }

    #[tokio::test]
    async fn a_key_goes_through_its_slots_and_loses_its_private_half() {
        for store in each_store().await {
            assert_eq!(store.jwt_keys().await.unwrap().sequence, 0);
            let activate = |key: &str| JwtKeyChange::Activate(key.to_owned());
            let one = vec![JwtKeyChange::Prepare(record("one", 1)), activate("one")];
            assert_eq!(change(&store, one).await.unwrap().sequence, 1);
            let two = vec![JwtKeyChange::Prepare(record("two", 2))];
            let records = change(&store, two).await.unwrap();
            let expected = [("two", JwtKeyState::Prepared), ("one", JwtKeyState::Active)];
            assert_eq!((states(&records), records.sequence), (expected.to_vec(), 2));

            let records = change(&store, vec![activate("two")]).await.unwrap();
            let expected = [("two", JwtKeyState::Active), ("one", JwtKeyState::Old)];
            // What is published has not changed.
            assert_eq!((states(&records), records.sequence), (expected.to_vec(), 2));
            assert!(records.keys[0].private_key.is_some() && records.keys[1].private_key.is_none());
            assert!(!format!("{records:?}").contains("canary"));

            let remove = vec![JwtKeyChange::Remove("one".to_owned())];
            let records = change(&store, remove).await.unwrap();
            assert_eq!((records.keys.len(), records.sequence), (1, 3));
            assert_eq!(store.jwt_keys().await.unwrap(), records);
            assert_eq!(store.bundle_sequence().await.unwrap(), 3);
        }
    }

    #[tokio::test]
    async fn a_change_that_fails_changes_nothing() {
        for store in each_store().await {
            let prepare = |key| JwtKeyChange::Prepare(record(key, 1));
            let two_prepared = vec![prepare("one"), prepare("two")];
            assert!(change(&store, two_prepared).await.is_err());
            let not_prepared = vec![prepare("one"), JwtKeyChange::Activate("other".to_owned())];
            assert!(change(&store, not_prepared).await.is_err());
            let records = store.jwt_keys().await.unwrap();
            assert_eq!((records.keys.len(), records.sequence), (0, 0));
            // A key that signs is not taken out.
            let active = vec![prepare("one"), JwtKeyChange::Activate("one".to_owned())];
            change(&store, active).await.unwrap();
            let remove = vec![JwtKeyChange::Remove("one".to_owned())];
            assert_eq!(change(&store, remove).await.unwrap().keys.len(), 1);
        }
    }
}
