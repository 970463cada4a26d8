//! What each process of the control plane knows of proxies that have not got a new trust bundle.

use super::super::{Store, StoreError, from_unix_seconds, unix_seconds};
use sqlx::Row as _;
use std::time::{Duration, SystemTime};

/// What one process said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaggardReport {
    /// The bundle that its proxies were compared with.
    pub bundle_sequence: u64,
    /// How many have not got it.
    pub waiting: u64,
    /// The first of them, for people.
    pub laggards: Vec<String>,
    /// When.
    pub reported_at: SystemTime,
}

/// Most laggards of one process that are named.
const NAMED: usize = 100;
/// Reports of processes that are gone are kept so long.
const KEPT: Duration = Duration::from_secs(3600);

impl Store {
    /// Keeps what a process knows in the place of what it said before.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn report_laggards(
        &self,
        process: &str,
        report: &LaggardReport,
    ) -> Result<(), StoreError> {
        let named: Vec<&str> = report
            .laggards
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect();
        sqlx::query(
            "INSERT INTO authority_laggards (process, bundle_sequence, waiting, laggards, reported_at)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (process) DO UPDATE SET bundle_sequence = excluded.bundle_sequence,
                 waiting = excluded.waiting, laggards = excluded.laggards,
                 reported_at = excluded.reported_at",
        )
        .bind(process)
        .bind(i64::try_from(report.bundle_sequence).unwrap_or(i64::MAX))
        .bind(i64::try_from(report.waiting).unwrap_or(i64::MAX))
        .bind(serde_json::Value::from(named).to_string())
        .bind(unix_seconds(report.reported_at))
        .execute(&self.pool)
        .await?;
        sqlx::query("DELETE FROM authority_laggards WHERE reported_at < $1")
            .bind(unix_seconds(report.reported_at - KEPT))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// What the other processes have said since a time.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn laggards_elsewhere(
        &self,
        process: &str,
        since: SystemTime,
    ) -> Result<Vec<LaggardReport>, StoreError> {
        let rows = sqlx::query(
            "SELECT bundle_sequence, waiting, laggards, reported_at FROM authority_laggards
             WHERE process <> $1 AND reported_at >= $2 ORDER BY process",
        )
        .bind(process)
        .bind(unix_seconds(since))
        .fetch_all(&self.pool)
        .await?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let read = |row: &sqlx::any::AnyRow| {
            let laggards: &str = row.try_get("laggards")?;
            Ok(LaggardReport {
                bundle_sequence: count(row.try_get("bundle_sequence")?),
                waiting: count(row.try_get("waiting")?),
                laggards: serde_json::from_str(laggards).map_err(|error| StoreError::Corrupt {
                    what: "list of laggards",
                    why: error.to_string(),
                })?,
                reported_at: from_unix_seconds(row.try_get("reported_at")?),
            })
        };
        rows.iter().map(read).collect()
    }
}
