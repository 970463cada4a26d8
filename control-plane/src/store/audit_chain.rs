//! The audit's seals: a chain of hashes over its records, in which a change shows.
//!
//! Records are sealed within a second of being written, by one process at a time, in an order that the
//! chain itself keeps: transactions of several replicas end in another order than they number their records
//! in. Whoever can write the database can make a new chain, but not one that ends in a hash that was noted
//! elsewhere: the log says the last one each hour, and `sidewind audit --verify` prints it.

mod verify;

pub use verify::Verification;

use super::{Store, StoreError, unix_seconds};
use crate::telemetry::lasting_fault;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long records are kept, in seconds.
pub(super) const KEPT_SECONDS: i64 = 90 * 86_400;
/// How many records are kept: what a disk bears.
pub(super) const KEPT_RECORDS: i64 = 2_000_000;
/// Most records of one page, and of one transaction that seals.
const BATCH: i64 = 256;
/// How far behind the newest sealed one a record may become visible: what replicas write while one of their
/// transactions is open.
const WINDOW: i64 = 20_000;
/// How long a record may become visible after a later one: longer than a transaction may last.
const LATE: Duration = Duration::from_secs(60);
/// How often records are sealed.
const SEAL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the last hash is logged.
const HEAD_INTERVAL: Duration = Duration::from_secs(3600);
/// The hash before the first.
const BEGINNING: [u8; 32] = [0; 32];

/// A record of the audit as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its number.
    pub id: i64,
    /// When, in seconds since 1970.
    pub at: i64,
    /// What was asked for.
    pub event: String,
    /// `granted`, or the reason of the refusal.
    pub outcome: String,
    /// More about a refusal.
    pub detail: Option<String>,
    /// The identity concerned.
    pub spiffe_id: Option<String>,
    /// The registration that it went by.
    pub registration: Option<String>,
    /// Serial number of the certificate issued.
    pub serial: Option<String>,
    /// End of the certificate issued, in seconds since 1970.
    pub not_after: Option<i64>,
    /// Who asked.
    pub caller: String,
    /// SHA-256 of the signing request.
    pub csr_sha256: Option<String>,
}

/// A seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Its place in the chain, from 1 on.
    pub position: i64,
    /// The hash of all up to here.
    pub hash: Vec<u8>,
}

type Columns = (
    i64,
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<i64>,
    String,
    Option<String>,
);

const COLUMNS: &str = "id, at, event, outcome, detail, spiffe_id, registration, serial, not_after, caller, csr_sha256";

impl From<Columns> for StoredRecord {
    fn from(columns: Columns) -> Self {
        let (
            id,
            at,
            event,
            outcome,
            detail,
            spiffe_id,
            registration,
            serial,
            not_after,
            caller,
            csr_sha256,
        ) = columns;
        Self {
            id,
            at,
            event,
            outcome,
            detail,
            spiffe_id,
            registration,
            serial,
            not_after,
            caller,
            csr_sha256,
        }
    }
}

impl StoredRecord {
    /// The hash of a chain that had `previous` before and has this record now. Each field goes in with
    /// whether it is there and its length, so that no two records are written alike.
    fn seal(&self, position: i64, previous: &[u8]) -> [u8; 32] {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(b"sidewind audit chain v1\0");
        context.update(previous);
        let mut field = |value: Option<&[u8]>| match value {
            None => context.update(&[0]),
            Some(bytes) => {
                context.update(&[1]);
                context.update(&(bytes.len() as u64).to_be_bytes());
                context.update(bytes);
            }
        };
        field(Some(&position.to_be_bytes()));
        field(Some(&self.id.to_be_bytes()));
        field(Some(&self.at.to_be_bytes()));
        field(Some(self.event.as_bytes()));
        field(Some(self.outcome.as_bytes()));
        for text in [
            &self.detail,
            &self.spiffe_id,
            &self.registration,
            &self.serial,
        ] {
            field(text.as_deref().map(str::as_bytes));
        }
        field(
            self.not_after
                .map(i64::to_be_bytes)
                .as_ref()
                .map(<[u8; 8]>::as_slice),
        );
        field(Some(self.caller.as_bytes()));
        field(self.csr_sha256.as_deref().map(str::as_bytes));
        let digest = context.finish();
        let mut hash = BEGINNING;
        hash.copy_from_slice(digest.as_ref());
        hash
    }
}

impl Store {
    /// Records from a time on whose number is greater than `after`, the oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_records(
        &self,
        since: SystemTime,
        after: i64,
        limit: i64,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let query =
            format!("SELECT {COLUMNS} FROM audit WHERE at >= $1 AND id > $2 ORDER BY id LIMIT $3");
        let rows = sqlx::query_as::<_, Columns>(sqlx::AssertSqlSafe(query))
            .bind(unix_seconds(since))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(StoredRecord::from).collect())
    }

    /// Seals records that have no seal yet, a few hundred at most, and gives back how many.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn seal_audit(&self) -> Result<usize, StoreError> {
        let mut transaction = self.begin_alone("audit-chain").await?;
        let head = sqlx::query_as::<_, (i64, Vec<u8>)>(
            "SELECT position, hash FROM audit_chain ORDER BY position DESC LIMIT 1",
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let (mut position, mut previous) = head.unwrap_or_else(|| (0, BEGINNING.to_vec()));
        let query = format!(
            "SELECT {COLUMNS} FROM audit
             WHERE id > (SELECT coalesce(max(audit_id), 0) - $1 FROM audit_chain)
             AND NOT EXISTS (SELECT 1 FROM audit_chain WHERE audit_id = audit.id)
             ORDER BY id LIMIT $2"
        );
        let rows = sqlx::query_as::<_, Columns>(sqlx::AssertSqlSafe(query))
            .bind(WINDOW)
            .bind(BATCH)
            .fetch_all(&mut *transaction)
            .await?;
        let number = rows.len();
        for record in rows.into_iter().map(StoredRecord::from) {
            position += 1;
            let hash = record.seal(position, &previous).to_vec();
            sqlx::query(
                "INSERT INTO audit_chain (position, audit_id, at, previous, hash)
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(position)
            .bind(record.id)
            .bind(record.at)
            .bind(previous)
            .bind(hash.clone())
            .execute(&mut *transaction)
            .await?;
            previous = hash;
        }
        transaction.commit().await?;
        Ok(number)
    }

    /// The number of the newest record, 0 without one.
    async fn newest_record(&self) -> Result<i64, StoreError> {
        let newest = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM audit");
        Ok(newest.fetch_one(&self.pool).await?)
    }

    /// The last seal.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit_head(&self) -> Result<Option<Seal>, StoreError> {
        let row = sqlx::query_as::<_, (i64, Vec<u8>)>(
            "SELECT position, hash FROM audit_chain ORDER BY position DESC LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(position, hash)| Seal { position, hash }))
    }

    /// Deletes seals whose records were pruned.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn prune_audit_chain(&self, now: SystemTime) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM audit_chain
             WHERE (at < $1 OR audit_id <= (SELECT coalesce(max(id), 0) - $2 FROM audit))
             AND position < (SELECT max(position) FROM audit_chain)
             AND NOT EXISTS (SELECT 1 FROM audit WHERE id = audit_chain.audit_id)",
        )
        .bind(unix_seconds(self.passed(now)) - KEPT_SECONDS)
        .bind(KEPT_RECORDS)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Seals what is written, and logs the last hash now and then. Runs until dropped.
pub async fn keep_sealed(store: Store) {
    let mut interval = tokio::time::interval(SEAL_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_head = Instant::now();
    let (mut newest, mut changed) = (0, Instant::now());
    loop {
        interval.tick().await;
        let sealed = async {
            let now_newest = store.newest_record().await?;
            if now_newest != newest {
                (newest, changed) = (now_newest, Instant::now());
            }
            // An idle store is not searched through each second.
            if changed.elapsed() < LATE {
                seal_all(&store).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = sealed.await {
            lasting_fault("the audit is not sealed", &error);
            changed = Instant::now();
            continue;
        }
        if Instant::now() >= next_head {
            next_head = Instant::now() + HEAD_INTERVAL;
            log_head(&store).await;
        }
    }
}

/// Seals everything that is written.
///
/// # Errors
/// When the store fails.
pub async fn seal_all(store: &Store) -> Result<(), StoreError> {
    while store.seal_audit().await? > 0 {}
    Ok(())
}

async fn log_head(store: &Store) {
    // A store that fails is told by whoever seals.
    if let Ok(Some(Seal { position, hash })) = store.audit_head().await {
        let hash = crate::issuance::issuer::hex(&hash);
        tracing::info!(target: "sidewind::audit", position, hash, "the audit is sealed up to here");
    }
}

#[cfg(test)]
mod tests;
