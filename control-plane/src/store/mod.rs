//! The state that survives a restart: authorities, registrations, join tokens, workloads, audit.
//!
//! It is one SQLite file in the state directory, used by one process at a time, or a PostgreSQL database
//! shared by any number of replicas. Each query is written once for both: parameters are `$1`, integers are
//! `i64`, truth values are not read back, and what differs is in the migrations and in [`database`].
//!
//! What must be true before an answer leaves (a token is used once) is written in a transaction by the
//! caller; what may follow it (audit of renewals, workloads) goes through [`writer`], so that renewals need
//! no store.

mod attestations;
mod audit;
pub mod audit_chain;
mod authorities;
mod bans;
mod clocks;
pub mod database;
mod federation;
mod health;
mod jwt_keys;
mod keys;
mod lookup;
mod notices;
mod passed;
mod registrations;
mod replicas;
mod restored;
mod rows;
mod settling;
mod state_dir;
mod terms;
mod tokens;
mod workloads;
pub mod writer;

pub use attestations::{Attestation, ChangedFact, PinnedFact};
pub use audit::{AuditRecord, GRANTED};
pub use authorities::{
    AuthorityChange, AuthorityRecord, AuthorityRecords, AuthorityRole, AuthorityState,
    AuthorityStep, LaggardReport, NewAuthority, RememberedRoot,
};
pub use bans::{BanRecord, BanRecords};
pub use clocks::ClockDifferences;
pub use database::{Location, LocationError};
pub use federation::{FederatedBundle, Settlement};
pub use health::Health;
pub use jwt_keys::{JwtKeyChange, JwtKeyRecord, JwtKeyRecords, JwtKeyState};
pub use keys::{KeyFileError, StoreKey};
pub use notices::Topic;
pub use registrations::{Registration, RegistrationId, SvidRecord, TaskTerms};
pub use replicas::{ReplicaId, SharedWorkload};
pub use restored::{LARGEST_STEP, Position};
pub use state_dir::{StateDir, StateDirError, check_group_private, check_private, read_private};
pub use tokens::{JoinTokenRecord, Redemption, RefusedToken};

use database::Kind;
use notices::Notices;
use passed::Passed;
use restored::Watched;
use settling::Settling;
use sqlx::{Any, AnyPool, Transaction};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("the store failed")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the store's schema cannot be used; was it written by a newer sidewind?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The state directory does not take a database.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The database did not answer in time.
    #[error("the store does not answer in time")]
    Slow,
    /// The keys in the store are sealed, and the key for them is another or not given.
    #[error(transparent)]
    Sealed(#[from] keys::SealedError),
    /// An older copy was restored, and signs by what was distrusted since.
    #[error(
        "an older copy of the store was restored, in which the root certificate {key_id} is in use; it was revoked, or taken \
         out of the trust bundle, after that copy was made. Restore a later copy. Only if this root is to be trusted again: \
         delete store-position.json in the state directory of every replica, which is what remembers it"
    )]
    DistrustedRoot {
        /// Its key identifier.
        key_id: String,
    },
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
        "the store belongs to trust domain {stored}, but {asked} was asked for; give --trust-domain {stored}, or another --state-dir or --store"
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
    pool: AnyPool,
    kind: Kind,
    location: Location,
    replica: ReplicaId,
    notices: Arc<Notices>,
    health: Arc<Health>,
    settling: Arc<Settling>,
    passed: Arc<Passed>,
    watched: Arc<Watched>,
    key: Option<Arc<StoreKey>>,
}

impl Store {
    /// Opens the SQLite file of the state directory, creates it where it is missing and brings its schema
    /// up to date.
    ///
    /// # Errors
    /// When the file cannot be opened, or was written by a newer version.
    pub async fn open(state: &StateDir) -> Result<Self, StoreError> {
        Self::open_at(state, Location::StateDir, None).await
    }

    /// Opens the store where it is and brings its schema up to date. With a key, private keys are sealed
    /// with it.
    ///
    /// # Errors
    /// When it cannot be opened or reached, was written by a newer version, or has keys that were sealed
    /// with another key.
    pub async fn open_at(
        state: &StateDir,
        location: Location,
        key: Option<StoreKey>,
    ) -> Result<Self, StoreError> {
        let (pool, kind) = database::open(state, &location).await?;
        let store = Self {
            pool,
            kind,
            location,
            replica: ReplicaId::random(),
            notices: Arc::default(),
            health: Arc::default(),
            settling: Arc::default(),
            passed: Arc::default(),
            watched: Arc::default(),
            key: key.map(Arc::new),
        };
        store.check_key().await?;
        if kind == Kind::Sqlite {
            let mut transaction = store.begin().await?;
            workloads::adopt(&mut transaction, &store.replica).await?;
            transaction.commit().await?;
        }
        Ok(store)
    }

    /// Where the store is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Whether the store works.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Begins a transaction that will write. On SQLite it is the only one from the start; on PostgreSQL it is
    /// READ COMMITTED, where `UPDATE … WHERE` on what must still be so, and the number of rows that it
    /// changed, decide who of several was first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(match self.kind {
            Kind::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Kind::Postgres => self.pool.begin().await?,
        })
    }

    /// Begins a transaction that no other of the same name runs beside, in this replica or another.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn begin_alone(
        &self,
        name: &'static str,
    ) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.begin().await?;
        if self.kind == Kind::Postgres {
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(database::lock_number(name))
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction)
    }

    /// Keeps every other replica out of what is named until the guard is dropped. With SQLite there is no
    /// other.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn keep_others_out(&self, name: &'static str) -> Result<Exclusive, StoreError> {
        Ok(match self.kind {
            Kind::Sqlite => Exclusive(None),
            Kind::Postgres => Exclusive(Some(self.begin_alone(name).await?)),
        })
    }

    /// Whether other replicas may use this store at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.kind == Kind::Postgres
    }

    /// Whether there may be other replicas that do not hear from this one, since the store has failed for some seconds.
    #[must_use]
    pub fn is_away_from_others(&self) -> bool {
        const AWAY_AFTER: Duration = Duration::from_secs(4);
        let failing = self.health.failing();
        self.is_shared() && failing.is_some_and(|(since, _)| since >= AWAY_AFTER)
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
        let value = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(value)
    }

    async fn set_default(&self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Deletes what is of no further use: dead certificates, registrations with no living one, tokens
    /// that ended a month ago, and audit beyond its bounds. By the time that has [passed](Self::passed).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn prune(&self, now: SystemTime) -> Result<(), StoreError> {
        // A clock that jumped forward must not delete at once what is still in use.
        const GRACE_SECONDS: i64 = 7 * 86_400;
        const ENDED_SECONDS: i64 = 3600;
        const TOKEN_SECONDS: i64 = 30 * 86_400;
        // Long enough for every replica to have heard of it: one that was away reads everything again.
        const FAREWELL_SECONDS: i64 = 600;
        let now = unix_seconds(self.passed(now));
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM svids WHERE not_after < $1")
            .bind(now - GRACE_SECONDS)
            .execute(&mut *transaction)
            .await?;
        // What has ended renews nothing. The last of each registration says how long that is kept.
        sqlx::query(
            "DELETE FROM svids WHERE not_after < $1 AND EXISTS (
                 SELECT 1 FROM svids AS later
                 WHERE later.registration = svids.registration AND later.not_after > svids.not_after)",
        )
        .bind(now - ENDED_SECONDS)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "DELETE FROM registrations WHERE created_at < $1
             AND NOT EXISTS (SELECT 1 FROM svids WHERE registration = registrations.id)",
        )
        .bind(now - GRACE_SECONDS)
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM join_tokens WHERE expires_at < $1")
            .bind(now - TOKEN_SECONDS)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM workloads WHERE gone_at < $1")
            .bind(now - FAREWELL_SECONDS)
            .execute(&mut *transaction)
            .await?;
        // What is older is in a registration, or forgotten.
        sqlx::query("DELETE FROM services WHERE noted_at < $1")
            .bind(now - GRACE_SECONDS)
            .execute(&mut *transaction)
            .await?;
        audit::prune(&mut transaction, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Writes what is pending and closes the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Keeps other replicas out of something; see [`Store::keep_others_out`].
#[derive(Debug)]
pub struct Exclusive(Option<Transaction<'static, Any>>);

impl Drop for Exclusive {
    fn drop(&mut self) {
        // The transaction's end gives the lock back.
        drop(self.0.take());
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
pub(crate) mod tests;
