//! Notices when the database was put back to an older copy of itself.
//!
//! A store counts its records of issuance. The highest number is kept beside the store as well, in the state
//! directory; a store that has counted less than that has lost what came in between. Then
//! - the sequence of the trust bundle is raised above the last one that was handed out, so that no proxy
//!   takes the next bundle for an old one,
//! - bans are counted in small steps from then on, so that the lists of the time that is lost, which proxies have, stay
//!   later ones and are asked for whenever such a proxy returns,
//! - roots that were distrusted in the time that is lost are revoked again, and those that came in it stay trusted; a copy
//!   that signs by a distrusted one is refused,
//! - join tokens that the copy has as unused are put out of use: some were used in the time that is lost,
//! - it is said aloud, in the log, the audit and a metric.

use super::{
    AuditRecord, RememberedRoot, StateDir, Store, StoreError, Topic, audit, authorities, bans,
    unix_seconds,
};
use crate::telemetry::Throttle;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::SystemTime;

/// How far a store has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which store; made up when it was made.
    pub store: String,
    /// Number of its newest record.
    pub record: i64,
    /// Sequence of its trust bundle.
    pub bundle_sequence: u64,
    /// Version of its list of bans.
    #[serde(default)]
    pub bans_version: u64,
    /// Version of its authorities' slots.
    #[serde(default)]
    pub authority_version: u64,
    /// The roots that are trusted.
    #[serde(default)]
    pub roots: Vec<RememberedRoot>,
}

/// The largest step by which the sequence follows what a proxy says that it has: a proxy is not trusted with
/// more.
pub const LARGEST_STEP: u64 = 10_000;

impl Position {
    /// Whether a store that has come as far as another was put back since it was here.
    fn is_beyond(&self, record: i64, authority_version: u64) -> bool {
        record < self.record || authority_version < self.authority_version
    }
}

/// Remembers in the state directory how far the store has come.
#[derive(Debug)]
struct Memory {
    path: PathBuf,
    last: Option<Position>,
    unwritten: Throttle,
    restored: Counter,
}

/// What a process that uses a store knows of how far that had come.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// None until it is watched.
    memory: tokio::sync::Mutex<Option<Memory>>,
    /// The root that an older copy signs by although it was distrusted since.
    distrusted: tokio::sync::watch::Sender<Option<String>>,
}

impl Memory {
    /// What the state directory remembers, if anything that can be read.
    fn of(state: &StateDir, restored: Counter) -> Self {
        let path = state.path().join("store-position.json");
        let text = std::fs::read_to_string(&path).ok();
        Self {
            last: text.and_then(|text| serde_json::from_str(&text).ok()),
            path,
            unwritten: Throttle::new(),
            restored,
        }
    }

    /// Compares the store with what is remembered, makes up for what it has lost, and remembers how far it is
    /// now. `true` when an older copy was restored.
    ///
    /// # Errors
    /// When the store fails; then what was remembered stays so.
    async fn compare(&mut self, store: &Store, now: SystemTime) -> Result<bool, StoreError> {
        let restored = match &self.last {
            Some(last) => store.make_up_for_loss(last, now).await?,
            None => false,
        };
        if restored {
            self.restored.inc();
        }
        let position = store.position().await?;
        if self.last.as_ref() != Some(&position) {
            if let Err(error) = self.write(&position)
                && let Some(unsaid) = self.unwritten.admit("position")
            {
                let path = self.path.display();
                tracing::warn!(%error, unsaid, %path, "cannot remember how far the store has come");
            }
            self.last = Some(position);
        }
        Ok(restored)
    }

    fn write(&self, position: &Position) -> std::io::Result<()> {
        let draft = self.path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(position)?)?;
        std::fs::rename(&draft, &self.path)
    }
}

impl Store {
    /// Remembers in a state directory how far the store has come from now on, and makes up for what it has lost since it
    /// was last remembered there. `restored` counts how often an older copy was restored.
    ///
    /// # Errors
    /// As those of [`Self::look_for_loss`].
    pub async fn watch_for_loss(
        &self,
        state: &StateDir,
        restored: Counter,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        *self.watched.memory.lock().await = Some(Memory::of(state, restored));
        self.look_for_loss(now).await
    }

    /// Compares the store with how far it had come, and makes up for what it has lost: whoever reads what must not be
    /// taken from an older copy looks before. `true` when an older copy was restored.
    ///
    /// # Errors
    /// When the store fails, or is an older copy that signs by a root that was distrusted since. Then nothing of it is to
    /// be relied on, and [`Self::distrusted`] says so.
    pub async fn look_for_loss(&self, now: SystemTime) -> Result<bool, StoreError> {
        let mut memory = self.watched.memory.lock().await;
        let Some(memory) = memory.as_mut() else {
            return Ok(false);
        };
        let compared = memory.compare(self, now).await;
        if let Err(StoreError::DistrustedRoot { key_id }) = &compared {
            self.watched.distrusted.send_replace(Some(key_id.clone()));
        }
        compared
    }

    /// Waits until the store was found to be a copy that nothing may be relied on of.
    pub async fn distrusted(&self) -> StoreError {
        let mut distrusted = self.watched.distrusted.subscribe();
        // The sender lives as long as this store.
        let found = distrusted.wait_for(Option::is_some).await;
        let key_id = found.ok().and_then(|found| found.clone());
        StoreError::DistrustedRoot {
            key_id: key_id.unwrap_or_default(),
        }
    }

    /// How far the store has come.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn position(&self) -> Result<Position, StoreError> {
        self.set_default("store_id", &uuid::Uuid::new_v4().to_string())
            .await?;
        let record = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM audit")
            .fetch_one(&self.pool)
            .await?;
        let mut connection = self.pool.acquire().await?;
        let bans_version = bans::number(&mut connection, "bans_version").await?;
        let authority_version = authorities::version(&mut connection).await?;
        drop(connection);
        Ok(Position {
            store: self.setting("store_id").await?.unwrap_or_default(),
            record,
            bundle_sequence: self.bundle_sequence().await?,
            bans_version,
            authority_version,
            // After the sequence: no root that came by it is missing.
            roots: self.trusted_roots().await?,
        })
    }

    /// Compares the store with how far it had come before, and makes up for what was lost. `true` when an
    /// older copy was restored.
    ///
    /// # Errors
    /// When the store fails, or signs by a root that was distrusted since; then nothing has changed.
    pub async fn make_up_for_loss(
        &self,
        before: &Position,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        let present = self.position().await?;
        if present.store != before.store
            || !before.is_beyond(present.record, present.authority_version)
        {
            return Ok(false);
        }
        let mut transaction = self.begin_alone("restored").await?;
        let record: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM audit")
            .fetch_one(&mut *transaction)
            .await?;
        let version = authorities::version(&mut transaction).await?;
        if !before.is_beyond(record, version) {
            // Another replica was first, or records went on meanwhile.
            return Ok(false);
        }
        let lost = before.record.saturating_sub(record).max(0);
        let tokens = sqlx::query(
            "UPDATE join_tokens SET used_at = $1 WHERE used_at IS NULL AND expires_at > $1",
        )
        .bind(unix_seconds(now))
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        bans::stand_in(&mut transaction, before.bans_version).await?;
        let roots = self
            .restore_roots(&mut transaction, &before.roots, before.bundle_sequence, now)
            .await?;
        // Whoever has seen the slots of the time that is lost sees that these are others.
        let version = version.max(before.authority_version) + 1;
        authorities::set_version(&mut transaction, version).await?;
        let roots: String = roots.iter().map(|done| format!("; {done}")).collect();
        let record = AuditRecord {
            at: now,
            event: "store-restored",
            outcome: audit::NOTED,
            detail: Some(format!(
                "an older copy of the store was restored: {lost} records are lost; {tokens} unused join tokens were put out of use{roots}"
            )),
            spiffe_id: None,
            registration: None,
            serial: None,
            not_after: None,
            caller: self.replica().to_string(),
            csr_sha256: None,
        };
        audit::insert(&mut transaction, &record).await?;
        self.announce(&mut transaction, Topic::Authorities).await?;
        transaction.commit().await?;
        record.log();
        self.raise_bundle_sequence(before.bundle_sequence + 1)
            .await?;
        Ok(true)
    }

    /// Raises the sequence of the trust bundle to a number at least. `true` when it was lower.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn raise_bundle_sequence(&self, least: u64) -> Result<bool, StoreError> {
        let mut transaction = self.begin_alone("bundle-sequence").await?;
        let present: Option<String> =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'bundle_sequence'")
                .fetch_optional(&mut *transaction)
                .await?;
        let present = present.and_then(|text| text.parse().ok()).unwrap_or(1_u64);
        if present >= least {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('bundle_sequence', $1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(least.to_string())
        .execute(&mut *transaction)
        .await?;
        self.announce(&mut transaction, Topic::Authorities).await?;
        transaction.commit().await?;
        tracing::error!(
            was = present,
            now = least,
            "the trust bundle's sequence was behind what proxies have; it was raised"
        );
        Ok(true)
    }

    /// Follows a sequence that a proxy says it has, when it is higher than the store's: then an older copy
    /// was restored. `true` when the store's was raised above it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn follow_acknowledged(&self, acknowledged: u64) -> Result<bool, StoreError> {
        let present = self.bundle_sequence().await?;
        if acknowledged <= present {
            return Ok(false);
        }
        if acknowledged - present > LARGEST_STEP {
            tracing::warn!(
                acknowledged,
                present,
                "a proxy says that it has a trust bundle far newer than any that was made; it is not believed"
            );
            return Ok(false);
        }
        self.raise_bundle_sequence(acknowledged + 1).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{each_store, insert_token, token_registration};
    use super::super::{RefusedToken, tests};
    use super::*;

    #[tokio::test]
    async fn a_store_that_was_restored_from_an_older_copy_is_made_up_for() {
        for store in each_store().await {
            let now = SystemTime::now();
            token_registration(&store, 1, "01").await;
            let mut before = store.position().await.unwrap();
            assert!(!store.make_up_for_loss(&before, now).await.unwrap());
            // What had come since is lost.
            before.record += 40;
            before.bundle_sequence = 7;
            insert_token(&store, 9, now + tests::MINUTE).await;
            assert!(store.make_up_for_loss(&before, now).await.unwrap());
            assert_eq!(store.bundle_sequence().await.unwrap(), 8);
            let token = store.join_token([9; 32], now).await.unwrap();
            assert_eq!(token, Err(RefusedToken::Used));
        }
    }

    #[tokio::test]
    async fn the_state_directory_remembers_how_far_the_store_has_come() {
        let (_directory, state) = tests::state_dir();
        let store = Store::open(&state).await.unwrap();
        let now = SystemTime::now();
        token_registration(&store, 1, "01").await;
        let remembered = || Memory::of(&state, Counter::default());
        assert!(!remembered().compare(&store, now).await.unwrap());
        let mut memory = remembered();
        assert_eq!(memory.last, Some(store.position().await.unwrap()));
        if let Some(last) = &mut memory.last {
            last.record += 1;
        }
        assert!(memory.compare(&store, now).await.unwrap());
        assert!(!memory.compare(&store, now).await.unwrap());
        assert!(!remembered().compare(&store, now).await.unwrap());
        assert_eq!(memory.restored.get(), 1);
    }

    #[tokio::test]
    async fn another_store_is_not_an_older_copy() {
        let (_directory, store) = tests::empty_store().await;
        let before = Position {
            store: "another".to_owned(),
            record: 1_000,
            bundle_sequence: 9,
            bans_version: 0,
            authority_version: 9,
            roots: Vec::new(),
        };
        let now = SystemTime::now();
        assert!(!store.make_up_for_loss(&before, now).await.unwrap());
    }

    #[tokio::test]
    async fn a_sequence_that_a_proxy_has_is_followed_within_bounds() {
        for store in each_store().await {
            assert!(!store.follow_acknowledged(1).await.unwrap());
            assert!(store.follow_acknowledged(5).await.unwrap());
            assert_eq!(store.bundle_sequence().await.unwrap(), 6);
            assert!(!store.follow_acknowledged(u64::MAX).await.unwrap());
            assert_eq!(store.bundle_sequence().await.unwrap(), 6);
        }
    }
}
