//! How this machine's clock differs from the database's and, through that, from those of the other replicas.

use super::{ReplicaId, Store, StoreError};
use sqlx::Row as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// How far this process's clock is ahead of others, in milliseconds; negative when it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockDifferences {
    /// Of the database's, give or take half the time of a query.
    pub store_ms: i64,
    /// Of the replica's that differs most, if there is another.
    pub replica: Option<(ReplicaId, i64)>,
}

impl Store {
    /// Compares a clock with the database's, tells the other replicas, and compares it with theirs. Nothing with
    /// SQLite, which has the clock of its process.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn compare_clocks(
        &self,
        clock: impl Fn() -> SystemTime,
    ) -> Result<Option<ClockDifferences>, StoreError> {
        if !self.is_shared() {
            return Ok(None);
        }
        let mut connection = self.pool.acquire().await?;
        let (ours, asked) = (clock(), Instant::now());
        let theirs: i64 = sqlx::query_scalar(
            "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
        )
        .fetch_one(&mut *connection)
        .await?;
        let store_ms = unix_milliseconds(ours + asked.elapsed() / 2) - theirs;
        sqlx::query("UPDATE replicas SET clock_ahead_ms = $1 WHERE id = $2")
            .bind(store_ms)
            .bind(self.replica().as_str())
            .execute(&mut *connection)
            .await?;
        let rows = sqlx::query(
            "SELECT id, clock_ahead_ms FROM replicas WHERE id <> $1 AND clock_ahead_ms IS NOT NULL",
        )
        .bind(self.replica().as_str())
        .fetch_all(&mut *connection)
        .await?;
        let difference = |row: &sqlx::any::AnyRow| {
            let ahead: i64 = row.try_get("clock_ahead_ms")?;
            let id: String = row.try_get("id")?;
            Ok((ReplicaId::named(id), store_ms.saturating_sub(ahead)))
        };
        let others: Result<Vec<_>, sqlx::Error> = rows.iter().map(difference).collect();
        let furthest = others?.into_iter().max_by_key(|(_, ms)| ms.unsigned_abs());
        Ok(Some(ClockDifferences {
            store_ms,
            replica: furthest,
        }))
    }
}

fn unix_milliseconds(time: SystemTime) -> i64 {
    let milliseconds = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => milliseconds(since),
        Err(error) => -milliseconds(error.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::each_store;
    use super::*;

    const DAYS_MS: i64 = 3 * 86_400_000;

    #[tokio::test]
    async fn a_clock_three_days_ahead_differs_from_the_databases_and_from_the_other_replicas() {
        let days = Duration::from_millis(DAYS_MS.unsigned_abs());
        for store in each_store().await {
            let other = store.second_replica().await;
            for replica in [&*store, &other] {
                replica.beat().await.unwrap();
            }
            let right = store.compare_clocks(SystemTime::now).await.unwrap();
            let wrong = other.compare_clocks(|| SystemTime::now() + days).await;
            let (right, wrong) = match (right, wrong.unwrap()) {
                (Some(right), Some(wrong)) => (right, wrong),
                none => {
                    assert!(!store.is_shared(), "{none:?}");
                    continue;
                }
            };
            assert!(right.store_ms.abs() < 10_000, "{right:?}");
            assert_eq!(right.replica, None);
            let about_days = |ms: i64| (ms - DAYS_MS).abs() < 20_000;
            assert!(about_days(wrong.store_ms), "{wrong:?}");
            let (of, by) = wrong.replica.unwrap();
            assert!(of == *store.replica() && about_days(by), "{of} {by}");
            // And the one that is right hears of it.
            let right = store
                .compare_clocks(SystemTime::now)
                .await
                .unwrap()
                .unwrap();
            let (of, by) = right.replica.unwrap();
            assert!(of == *other.replica() && about_days(-by), "{of} {by}");
        }
    }
}
