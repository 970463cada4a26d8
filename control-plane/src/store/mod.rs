//! The state that survives a restart: authorities, registrations, join tokens, workloads, audit.
//!
//! One SQLite file in the state directory, used by one process at a time. What must be true before an
//! answer leaves (a token is used once) is written in a transaction by the caller; what may follow it
//! (audit of renewals, workloads) goes through [`writer`], so that renewals need no store.

mod audit;
mod authorities;
mod bans;
mod registrations;
mod state_dir;
mod tokens;
mod workloads;
pub mod writer;

pub use audit::{AuditRecord, GRANTED};
pub use authorities::{AuthorityRecord, AuthorityRole};
pub use bans::{BanRecord, BanRecords};
pub use registrations::{Registration, RegistrationId};
pub use state_dir::{StateDir, StateDirError, check_private};
pub use tokens::{JoinTokenRecord, Redemption, RefusedToken};

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused or failed.
    #[error("the store failed")]
    Sqlite(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the store's schema cannot be used; was it written by a newer sidewind?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row does not hold what it should.
    #[error("the store holds a {what} that cannot be read: {why}")]
    Corrupt {
        /// Which kind of row.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The store was made for another trust domain.
    #[error(
        "the state directory belongs to trust domain {stored}, but {asked} was asked for; give --trust-domain {stored}, or another --state-dir"
    )]
    OtherTrustDomain {
        /// The trust domain that the store was made for.
        stored: String,
        /// The trust domain of the settings.
        asked: String,
    },
}

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the SQLite file of the state directory, creates it where it is missing and brings its schema
    /// up to date.
    ///
    /// # Errors
    /// When the file cannot be opened, or was written by a newer version.
    pub async fn open(state: &StateDir) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(state.database())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A used token must stay used through a power failure.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        // SQLite has one writer at a time: one connection queues fairly where several would collide.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Claims the store for a trust domain, or checks that it is the one that it was made for.
    ///
    /// # Errors
    /// When it was made for another.
    pub async fn claim_trust_domain(&self, asked: &str) -> Result<(), StoreError> {
        self.set_default("trust_domain", asked).await?;
        let stored = self.setting("trust_domain").await?.unwrap_or_default();
        if stored == asked {
            return Ok(());
        }
        let asked = asked.to_owned();
        Err(StoreError::OtherTrustDomain { stored, asked })
    }

    /// The sequence number of the trust bundle, 1 at first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn bundle_sequence(&self) -> Result<u64, StoreError> {
        let text = self.setting("bundle_sequence").await?;
        text.map_or(Ok(1), |text| {
            text.parse().map_err(|_| StoreError::Corrupt {
                what: "bundle sequence",
                why: format!("{text:?} is not a number"),
            })
        })
    }

    async fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let value = sqlx::query_scalar("SELECT value FROM settings WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(value)
    }

    async fn set_default(&self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Deletes what is of no further use: dead certificates, registrations with no living one, tokens
    /// that ended a month ago, and audit beyond its bounds.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn prune(&self, now: SystemTime) -> Result<(), StoreError> {
        // A clock that jumped forward must not delete at once what is still in use.
        const GRACE_SECONDS: i64 = 7 * 86_400;
        const TOKEN_SECONDS: i64 = 30 * 86_400;
        let now = unix_seconds(now);
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM svids WHERE not_after < ?")
            .bind(now - GRACE_SECONDS)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM registrations WHERE created_at < ?
             AND NOT EXISTS (SELECT 1 FROM svids WHERE registration = registrations.id)",
        )
        .bind(now - GRACE_SECONDS)
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM join_tokens WHERE expires_at < ?")
            .bind(now - TOKEN_SECONDS)
            .execute(&mut *transaction)
            .await?;
        audit::prune(&mut transaction, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Writes what is pending into the database file and closes it.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Seconds since 1970 of a time; times before that are 0.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}

/// The time of seconds since 1970; what is negative is 1970.
#[must_use]
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An empty store in a directory of its own.
    pub(crate) async fn empty_store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("state")).unwrap();
        let store = Store::open(&state).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_store_stays_with_its_trust_domain() {
        let (_directory, store) = empty_store().await;
        store.claim_trust_domain("one.example").await.unwrap();
        store.claim_trust_domain("one.example").await.unwrap();
        let error = store.claim_trust_domain("two.example").await.unwrap_err();
        assert!(error.to_string().contains("--trust-domain one.example"));
    }

    #[tokio::test]
    async fn the_database_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (directory, _store) = empty_store().await;
        let state = directory.path().join("state");
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        for entry in std::fs::read_dir(&state).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}
